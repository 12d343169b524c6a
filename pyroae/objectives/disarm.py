"""The ELBO of binary latents by antithetic pairs of draws: DisARM and ARM.

K is even. Particles k and k + K/2 share the uniform draws: z = 1[u > σ(−a)] and
z̃ = 1[1 − u > σ(−a)], for all bits of a particle at once. Each z has the distribution that the guide
says, so that the value is the ELBO of K draws.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyroae.errors import ConfigError, ProgramError
from pyroae.objectives.antithetic_bits import AntitheticBits
from pyroae.objectives.base import OBJECTIVES, Bound
from pyroae.objectives.bounds import ELBO, BoundFunction
from pyroae.objectives.dependent_logits import dependent_site
from pyroae.objectives.gradients import GRADIENTS
from pyroae.objectives.pair import Objective
from pyroae.objectives.program_gradient import ProgramGradient
from pyroae.objectives.scores import elbo_signals, has_path, score_mean_zero
from pyroae.programs.discrete_variables import binary_logits
from pyroae.programs.paired_traces import Traces
from pyroae.programs.sites import Program, Site, base_distribution
from pyroae.weights import LogWeights, reduce_log_weights


class AntitheticGradient(ProgramGradient):
    """A gradient by antithetic pairs of bits, which `per_logit` defines."""

    independent: ClassVar[bool] = False
    coupled: ClassVar[bool] = True

    @property
    def kinds(self) -> frozenset[str]:
        """Binary sites."""
        return frozenset({"binary"})

    @abstractmethod
    def per_logit(self, logits: Tensor, one: Tensor, other: Tensor, uniform: Tensor) -> Tensor:
        """Return the factor of f(z) − f(z̃) in the gradient with respect to the logits.

        Args:
            logits: a, any shape, detached.
            one: z, of this shape.
            other: z̃, of this shape.
            uniform: u, of this shape.

        Returns:
            The factors, of this shape.
        """

    def check(self, bound: BoundFunction) -> None:
        """Refuse every bound but the ELBO, and an odd K."""
        name = type(self).__name__
        if not isinstance(bound, ELBO):
            raise ConfigError(
                f"{name} is defined for the ELBO, not for {type(bound).__name__}: use Score, whose "
                "baselines take every bound"
            )
        if bound.num_particles % 2:
            raise ConfigError(
                f"{name} draws in antithetic pairs: num_particles must be even, not "
                f"{bound.num_particles}"
            )

    def estimate_on(
        self,
        objective: Objective,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Bound:
        """Return the ELBO of K draws in pairs, and its surrogate."""
        run = partial(objective.run, model, guide, args, kwargs)
        trial = partial(self._check_parents, run, args)
        objective.cache.get("independence", (guide,), trial)
        bits = AntitheticBits(objective.num_particles)
        traces = run(handler=bits)
        sites = self._binary_sites(traces)
        weights = reduce_log_weights(traces)
        value = weights.total(weights.log_weight.mean(0))
        return Bound(value, value + self._terms(traces, weights, sites, bits))

    def _terms(
        self, traces: Traces, weights: LogWeights, sites: dict[str, Site], bits: AntitheticBits
    ) -> Tensor:
        """The term of the surrogate for all bits, without the score of q, which has mean 0."""
        terms = []
        for name, signal in elbo_signals(traces, sites).items():
            site = sites[name]
            logits = binary_logits(site["fn"])
            assert logits is not None
            one, other = site["value"].chunk(2)
            logit = logits.chunk(2)[0]
            uniform = bits.uniforms(name).reshape(logit.shape)
            factor = self.per_logit(logit.detach(), one, other, uniform)
            first, second = signal.chunk(2)
            difference = (first - second).reshape(*first.shape, *[1] * len(site["fn"].event_shape))
            terms.append((difference * factor * logit).sum() / len(one))
        return sum(terms[1:], terms[0]) + score_mean_zero(traces, weights)

    def _binary_sites(self, traces: Traces) -> dict[str, Site]:
        """The Bernoulli sites of the guide; refuses others without a path gradient."""
        sites, others = {}, []
        for name, site in traces.draws():
            words = f"'{name}' is a {type(base_distribution(site['fn'])).__name__}"
            if binary_logits(site["fn"]) is not None:
                sites[name] = site
            elif has_path(site["fn"]):
                others.append(words)
            else:
                raise ProgramError(
                    f"{type(self).__name__} takes Bernoulli sites, and beside them draws that "
                    f"carry a path gradient; the guide's site {words}: use score, vimco or rws"
                )
        if not sites:
            found = f": its site {others[0]}" if others else ""
            raise ProgramError(
                f"{type(self).__name__} takes Bernoulli sites, and the guide has none{found}: use "
                "trace-elbo or stl"
            )
        return sites

    def _check_parents(self, run: Callable[..., Traces], args: tuple[Any, ...]) -> None:
        """Refuse logits that depend on draws of the guide, which differ within a pair."""
        name = dependent_site(run, self._logits, args)
        if name is not None:
            raise ProgramError(
                f"{type(self).__name__} draws in antithetic pairs, which share their logits; "
                f"the logits of the guide's site '{name}' depend on other draws of the guide: use "
                "score, vimco or rws"
            )

    def _logits(self, traces: Traces) -> dict[str, Tensor]:
        """The logits of the Bernoulli sites of the guide."""
        found = {n: binary_logits(site["fn"]) for n, site in self._binary_sites(traces).items()}
        return {name: logits for name, logits in found.items() if logits is not None}


@GRADIENTS.register("disarm")
@dataclass(frozen=True)
class DisARM(AntitheticGradient):
    """The score function of antithetic pairs, averaged over what the bits leave open.

        a: (2/K) Σ_pairs ½ (f(z) − f(z̃)) (−1)^z̃ 1[z ≠ z̃] σ(|a|),   f = log w

    It is `ARM` given z and z̃ (Rao–Blackwell). f consists of the terms of log w in the plates of
    the bit. With one bit, p = σ(a), q = σ(|a|), Δ = f(1) − f(0) and one pair the mean is
    Δ p (1 − p) and the variance Δ² q² (1 − q) (q − ½). Other draws of the guide may carry path
    gradients. Unbiased.

    References:
        Dong, Mnih & Tucker 2020, DisARM: An Antithetic Gradient Estimator for Binary Latent
            Variables.
        Yin, Ho, Yan, Qian & Zhou 2020, Probabilistic Best Subset Selection via Gradient-Based
            Optimization (U2G, the same estimator).

    >>> one, other = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 1.0])
    >>> DisARM().per_logit(torch.zeros(3), one, other, torch.full((3,), 0.9))
    tensor([ 0.2500, -0.2500, 0.0000])
    """

    def per_logit(self, logits: Tensor, one: Tensor, other: Tensor, uniform: Tensor) -> Tensor:
        """Return ½ (−1)^z̃ 1[z ≠ z̃] σ(|a|) = ½ (z − z̃) σ(|a|)."""
        return 0.5 * (one - other) * torch.sigmoid(logits.abs())


@GRADIENTS.register("arm")
@dataclass(frozen=True)
class ARM(AntitheticGradient):
    """Augment, reinforce, merge: the gradient with respect to the logits from uniform draws.

        a: (2/K) Σ_pairs (f(z) − f(z̃)) (u − ½),   f = log w

    Its mean is that of `DisARM`, and its variance is never smaller. f consists of the terms of
    log w in the plates of the bit. Other draws of the guide may carry path gradients. Unbiased.

    References:
        Yin & Zhou 2019, ARM: Augment-REINFORCE-Merge Gradient for Stochastic Binary Networks.

    >>> one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> ARM().per_logit(torch.zeros(2), one, other, torch.tensor([0.9, 0.2]))
    tensor([ 0.4000, -0.3000])
    """

    def per_logit(self, logits: Tensor, one: Tensor, other: Tensor, uniform: Tensor) -> Tensor:
        """Return u − ½."""
        return uniform - 0.5


@OBJECTIVES.register("disarm")
def disarm(num_particles: int = 2) -> Objective:
    """DisARM: the ELBO of binary latents by antithetic pairs of draws.

    Args:
        num_particles: K, the number of draws of z per datum, an even number.

    Returns:
        ELBO × DisARM.

    Raises:
        ConfigError: `num_particles` is odd.

    References:
        Dong, Mnih & Tucker 2020, DisARM: An Antithetic Gradient Estimator for Binary Latent
            Variables.
    """
    return Objective(ELBO(num_particles), DisARM())


@OBJECTIVES.register("arm")
def arm(num_particles: int = 2) -> Objective:
    """ARM: the ELBO of binary latents by pairs of draws from one uniform number.

    Args:
        num_particles: K, the number of draws of z per datum, an even number.

    Returns:
        ELBO × ARM.

    Raises:
        ConfigError: `num_particles` is odd.

    References:
        Yin & Zhou 2019, ARM: Augment-REINFORCE-Merge Gradient for Stochastic Binary Networks.
    """
    return Objective(ELBO(num_particles), ARM())
