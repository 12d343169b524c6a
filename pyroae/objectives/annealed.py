"""Differentiable annealed importance sampling: an annealed bound that trains model and guide."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pyroae.errors import ConfigError, ProgramError
from pyroae.objectives.base import OBJECTIVES, Bound, ObjectiveBase, check_reparameterized
from pyroae.objectives.bounds import BOUNDS
from pyroae.objectives.surrogates import with_cut_gradient
from pyroae.programs.annealing_path import Path
from pyroae.programs.latents import Latents
from pyroae.programs.paired_traces import Traces, terms_of
from pyroae.programs.sites import Program
from pyroae.weights import reduce_log_weights


class Leapfrog(nn.Module):
    """What the bound learns of its T transitions.

    Args:
        steps: T.
        step_size: ε of all transitions at the start.
        like: A tensor of the device and precision of the parameters.

    Attributes:
        log_step: log ε_t, shape `[T]`.
        increments: Logits of β_t − β_{t−1} for t = 1..T+1, shape `[T + 1]`, initially equal.
    """

    def __init__(self, steps: int, step_size: float, like: Tensor) -> None:
        super().__init__()
        self.log_step = nn.Parameter(like.new_full((steps,), math.log(step_size)))
        self.increments = nn.Parameter(like.new_zeros(steps + 1))


@OBJECTIVES.register("dais")
class DAIS(ObjectiveBase):
    """Differentiable annealed importance sampling, also called uncorrected Hamiltonian annealing.

    Each of K chains starts at a draw u_0 of the guide, in unconstrained coordinates, with a
    momentum v_0 ~ N(0, I), and makes T leapfrog steps along π_t ∝ q^(1−β_t) p(x, ·)^β_t, without
    acceptance or rejection (β_0 = 0 is the guide, and β_{T+1} = 1 the model):

        u' = u_{t−1} + ½ ε_t v_{t−1},   v'_t = v_{t−1} + ε_t ∂ log π_t(u'),   u_t = u' + ½ ε_t v'_t
        v_t = γ v'_t + √(1 − γ²) ξ_t,   ξ_t ~ N(0, I)

        log w = log p(x, u_T) − log q(u_0|x) + Σ_t [log N(v'_t; 0, I) − log N(v_{t−1}; 0, I)]

    The bound is F of the K log-weights of a datum, in nats. The leapfrog preserves volume, and the
    refreshment of the momenta is reversible: N(v') N(v | γ v', 1 − γ²) = N(v) N(v' | γ v, 1 − γ²).
    The ratio of the density of a chain run backward from p(x, u_T) N(v'_T) to that of the chain run
    forward from q(u_0) N(v_0) is therefore w, and E w = p(x) for every guide, ε, β and γ. With a
    lower bound such as IWAE or the ELBO, F is a lower bound on log p(x); at T = 0 it is F of the
    guide's draws. Where the guide is the exact posterior, w equals p(x) only in the limit of small
    steps, because the leapfrog does not preserve the energy.

    All parameters follow the derivative of F through the chains, with second derivatives of the
    densities. One estimate evaluates the decoder T + 2 times per chain: at u_0 without a gradient,
    which finds the latent sites, T times with a gradient for z, and at u_T. A compiled step leaves
    out the first, on which no result depends.

    `bound` raises ProgramError, naming the site, for discrete latent sites, latent sites outside
    the data plate, and terms of the guide that are not densities of draws of the model's sites.

    Args:
        num_particles: K, the number of chains per datum.
        steps: T, the number of transitions.
        step_size: ε_t > 0, in unconstrained coordinates; where it is learned, its initial value.
        damping: γ in [0, 1): the part of a momentum that is kept.
        learn: Whether ε_t and β_t are learned, each for each t, through the bound; otherwise
            ε_t is fixed and β_t = t/(T + 1).
        bound: F, the bound over the chains' weights, by its name among the bounds.

    Raises:
        ConfigError: A setting lies outside its range, or F is not known, takes a random number of
            particles, or draws from the components of a mixture.

    References:
        Zhang, Hsu, Li, Finn & Grosse 2021, Differentiable Annealed Importance Sampling and the
            Perils of Gradient Noise.
        Geffner & Domke 2021, MCMC Variational Inference via Uncorrected Hamiltonian Annealing.
        Thin et al. 2021, Monte Carlo Variational Auto-Encoders.

    >>> from pyroae import zoo
    >>> system, x = zoo.vae(4, latent=2), torch.ones(3, 4)
    >>> DAIS(num_particles=2, steps=3).loss(system.model, system.guide, x) > 0
    True
    >>> DAIS(num_particles=2, steps=3).evaluations
    10.0
    """

    def __init__(
        self,
        num_particles: int = 8,
        steps: int = 4,
        step_size: float = 0.1,
        damping: float = 0.9,
        learn: bool = True,
        bound: str = "iwae",
    ) -> None:
        super().__init__(num_particles)
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
            raise ConfigError(f"steps of dais must be a whole number of at least 0, not {steps!r}")
        if not 0 < step_size < math.inf:
            raise ConfigError(f"step_size of dais must be positive and finite, not {step_size}")
        if not 0 <= damping < 1:
            raise ConfigError(f"damping of dais must lie in [0, 1), not {damping}")
        self.steps, self.step_size, self.damping, self.learn = steps, step_size, damping, learn
        self.bound_function = BOUNDS.parse(bound, num_particles=num_particles)
        if self.bound_function.is_random:
            raise ConfigError(f"dais takes a bound of a fixed number of particles, not '{bound}'")
        if self.bound_function.stratified:
            raise ConfigError(f"dais draws from the guide, not from each component, as '{bound}'")

    @property
    def is_evidence(self) -> bool:
        """Whether T is 0: the leapfrog changes weights that are constant at its start."""
        return self.steps == 0

    @property
    def is_elbo(self) -> bool:
        """Whether T is 0 and F is the ELBO."""
        return self.steps == 0 and self.bound_function.trend == 0

    @property
    def is_symmetric(self) -> bool:
        """Whether F is invariant to the order of the particles, and no momenta are drawn."""
        return self.steps == 0 and self.bound_function.is_symmetric

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of latent sites: continuous."""
        return frozenset({"continuous"})

    @property
    def evaluations(self) -> float:
        """K (T + 2); K at T = 0."""
        return float(self.num_particles * (self.steps + 2 if self.steps else 1))

    @property
    def learns(self) -> bool:
        """Whether step sizes and β are learned: T > 0 and `learn`."""
        return self.learn and self.steps > 0

    def make_controls(self, traces: Traces, args: tuple[Any, ...]) -> nn.Module:
        """Return the step sizes and increments of β."""
        values = [site["value"] for _, site in traces.draws()]
        like = next((value for value in values if value.is_floating_point()), torch.zeros(()))
        return Leapfrog(self.steps, self.step_size, like.detach())

    def estimate(self, traces: Traces) -> Bound:
        """Refuse a run of its own: the chains evaluate the programs at other values of z."""
        raise NotImplementedError("dais estimates from programs: call bound")

    def estimate_on(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Bound:
        """Run the chains, and return F of their weights as its own surrogate."""
        traces = self.run(model, guide, args, kwargs)
        _check(traces)
        if self.steps:
            latents = Latents.of_run(model, traces, args, kwargs)
            log_weight = self.log_weights(Path(latents, guide, args, kwargs))
        else:
            log_weight = reduce_log_weights(traces).log_weight
        value = (traces.scale * self.bound_function.value(with_cut_gradient(log_weight))).sum()
        return Bound(value, value)

    def log_weights(self, path: Path) -> Tensor:
        """Run the chains from the guide's draws.

        Args:
            path: The densities of the path from the guide to the model, at the draws of a run.

        Returns:
            log w, `[K, N]`, in nats, differentiable.
        """
        u = path.latents.draws
        log_weight = -path.log_guide(u)
        momentum = torch.randn_like(u)
        step_sizes, betas = self.schedule(u)
        for t in range(self.steps):
            step = step_sizes[t]
            middle = u + 0.5 * step * momentum
            moved = momentum + step * path.differentiable_gradient(middle, betas[t])
            u = middle + 0.5 * step * moved
            log_weight = log_weight + 0.5 * (momentum.square() - moved.square()).sum(-1)
            noise = torch.randn_like(u)
            momentum = self.damping * moved + math.sqrt(1 - self.damping**2) * noise
        return log_weight + path.latents.log_joint(u).total

    def schedule(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the step sizes and the β of all transitions.

        Args:
            like: A tensor of the device and precision of the result.

        Returns:
            ε and β, `[T]` each; β rises between 0 and 1.

        >>> DAIS(steps=3).schedule(torch.zeros(()))[1]
        tensor([0.2500, 0.5000, 0.7500])
        """
        controls = self.controls
        if isinstance(controls, Leapfrog):
            return controls.log_step.exp(), controls.increments.softmax(0).cumsum(0)[:-1]
        ramp = torch.arange(1, self.steps + 1, dtype=like.dtype, device=like.device)
        return like.new_full((self.steps,), self.step_size), ramp / (self.steps + 1)


def _check(traces: Traces) -> None:
    """Refuse guides that are not densities of draws of the model's sites."""
    check_reparameterized(traces, "dais")
    latent = {name for name, _ in traces.sites(traces.model, observed=False)}
    for name, _ in terms_of(traces):
        raise ProgramError(
            f"dais moves the draws of the guide; its site '{name}' is no draw, and its density at "
            "other values is not known: use iwae or trace-elbo"
        )
    for name, _ in traces.draws():
        if name not in latent:
            raise ProgramError(
                f"dais moves the draws of the guide; its site '{name}' is no latent site of the "
                "model, and its density at other values is not known: use iwae or trace-elbo"
            )
