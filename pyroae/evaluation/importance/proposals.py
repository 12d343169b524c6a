"""Proposals for importance sampling other than the trained guide.

They are the guide with wider or heavier-tailed distributions, the prior, mixtures of programs, and
Gaussians fitted to each datum.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyroae.errors import ConfigError, ProgramError, unknown_name
from pyroae.evaluation.local import fit_local
from pyroae.programs.latents import Latents
from pyroae.programs.sites import Program, base_distribution
from pyroae.programs.traces import log_post_of, prior_of, run
from pyroae.runtime.short_repr import Shown
from pyroae.weights import reduce_log_weights

Draw = Callable[[int], Tensor]
"""A function from k to k new log-weights for each datum of a block, `[k, N]`, in nats."""


class Proposal(ABC):
    """A distribution to draw z from that is not a single Pyro program.

    Examples are a mixture of programs and a distribution fitted to each datum. A subclass defines
    `prepare` and `programs`; `over` if it accepts arguments that are dicts or lists; and `fits` if
    its programs are only where a fit starts.
    """

    @abstractmethod
    def prepare(self, model: Program, args: tuple[Tensor, ...], nesting: int) -> Draw:
        """Prepare the draws for a block of data.

        Args:
            model: The Pyro program p(z) p(x|z).
            args: Arguments of the model and of the programs, `[N, ...]` each.
            nesting: The number of plate dimensions of the block.

        Returns:
            A function from k to new log-weights `[k, N]`, in nats.
        """

    @property
    @abstractmethod
    def programs(self) -> tuple[Program, ...]:
        """The Pyro programs that the proposal is made of."""

    def over(self, handler: Callable[[Program], Program]) -> "Proposal":
        """Apply a handler to each program of the proposal.

        Args:
            handler: A function from a program to a program, for example one that restores the
                nested arguments from flat tensors.

        Returns:
            The same proposal, of the new programs.

        Raises:
            ConfigError: If the subclass does not define `over`.
        """
        raise ConfigError(
            f"the proposal {type(self).__name__} accepts tensors as arguments only: "
            "it does not define `over`"
        )

    @property
    def fits(self) -> bool:
        """Whether the programs are only where a fit starts, so that they need no density."""
        return False


@dataclass(frozen=True, repr=False)
class Mixture(Shown, Proposal):
    """A mixture of Pyro programs over the same latent sites, as a proposal.

        log w = log p(x, z) − log Σ_i a_i q_i(z|x)

    The weight of the mixture is at most the weight of each part divided by its share a_i. With the
    prior as a part, no datum is missed. The number of draws of each part is its share of K, not
    random, so that the standard errors are slightly too large.

    Args:
        parts: The Pyro programs q_i(z|x).
        shares: The weights a_i, positive, with sum 1; equal by default.

    Raises:
        ConfigError: For no part, or shares that are not as many positive numbers with sum 1.

    References:
        Hesterberg 1995, Weighted average importance sampling and defensive mixture distributions.
        Owen & Zhou 2000, Safe and effective importance sampling.
        Veach & Guibas 1995, Optimally combining sampling techniques for Monte Carlo rendering.

    >>> import torch
    >>> from pyroae import log_likelihood, zoo
    >>> from pyroae.programs.traces import prior_of
    >>> system, x = zoo.ppca(4, latent=2), torch.zeros(3, 4)
    >>> defensive = Mixture((system.guide, prior_of(system.model)), (0.9, 0.1))
    >>> log_likelihood(system.model, defensive, x, num_particles=100, seed=0).log_px.shape
    torch.Size([3])
    """

    parts: tuple[Program, ...]
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("a mixture needs at least one program")
        shares = self.shares or (1 / len(self.parts),) * len(self.parts)
        if len(shares) != len(self.parts) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
            raise ConfigError(
                f"a mixture of {len(self.parts)} takes as many positive shares, which add up to 1, "
                f"not {shares}"
            )
        object.__setattr__(self, "shares", tuple(shares))

    @property
    def programs(self) -> tuple[Program, ...]:
        """The parts."""
        return self.parts

    def over(self, handler: Callable[[Program], Program]) -> "Mixture":
        """Apply a handler to each part; shares are unchanged."""
        return replace(self, parts=tuple(map(handler, self.parts)))

    def prepare(self, model: Program, args: tuple[Tensor, ...], nesting: int) -> Draw:
        """Prepare the draws; later calls balance the rounding of earlier counts per part."""
        drawn, ends = [0] * len(self.parts), list(accumulate(self.shares))

        def draw(k: int) -> Tensor:
            total = sum(drawn) + k
            until = [round(end * total) for end in ends[:-1]] + [total]
            counts = [until[i] - (until[i - 1] if i else 0) - drawn[i] for i in range(len(drawn))]
            counts = _none_negative(counts)
            for i, count in enumerate(counts):
                drawn[i] += count
            rows = [
                self._part(model, args, nesting, i, counts) for i in range(len(counts)) if counts[i]
            ]
            return torch.cat(rows)[torch.randperm(k)]

        return draw

    def _part(
        self, model: Program, args: tuple[Tensor, ...], nesting: int, i: int, counts: list[int]
    ) -> Tensor:
        """Log-weights of draws of part i against the mixture of this chunk, `[counts[i], N]`."""
        traces = run(model, self.parts[i], args, {}, counts[i], nesting)
        weights = reduce_log_weights(traces)
        terms = [
            math.log(count / sum(counts))
            + (weights.log_post if j == i else log_post_of(traces, part, args, {}))
            for j, (part, count) in enumerate(zip(self.parts, counts, strict=True))
            if count
        ]
        return weights.log_lik + weights.log_prior - torch.stack(terms).logsumexp(0)


def _none_negative(counts: list[int]) -> list[int]:
    """Counts with the same sum and none below 0, which rounding of few draws may give."""
    counts = list(counts)
    while min(counts) < 0:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(min(counts))] += 1
    return counts


@dataclass(frozen=True, repr=False)
class Local(Shown, Proposal):
    """A Gaussian fitted to the posterior of each datum, as a proposal.

        q*(u|x_n) = argmax_q E_q[log p(x_n, u) − log q(u)],   u unconstrained, q Gaussian

    The fit starts from the guide and maximizes the ELBO of each datum by Newton steps. Latent sites
    must be continuous.

    Args:
        guide: The Pyro program that the fit starts from.
        family: The covariance, "diagonal" or "full-rank".
        steps: The largest number of Newton steps; most data need 5 to 15.
        inflation: The factor of the scale of the fitted Gaussian when it is the proposal; above 1
            its tails cover those of the posterior.

    Raises:
        ConfigError: For another family, steps below 1, or an inflation that is not positive.

    References:
        Cremer, Li & Duvenaud 2018, Inference suboptimality in variational autoencoders, where it is
        called the optimal q*.
    """

    guide: Program
    family: Literal["diagonal", "full-rank"] = "full-rank"
    steps: int = 100
    inflation: float = 1.1

    def __post_init__(self) -> None:
        if self.family not in ("diagonal", "full-rank"):
            raise ConfigError(f"unknown family '{self.family}': diagonal or full-rank")
        if self.steps < 1 or not self.inflation > 0:
            raise ConfigError(
                f"a local proposal takes steps of at least 1 and a positive inflation, not {self}"
            )

    @property
    def programs(self) -> tuple[Program, ...]:
        """The guide that the fit starts from."""
        return (self.guide,)

    def over(self, handler: Callable[[Program], Program]) -> "Local":
        """Apply a handler to the guide."""
        return replace(self, guide=handler(self.guide))

    @property
    def fits(self) -> bool:
        """True: the density of the guide is not used."""
        return True

    def prepare(self, model: Program, args: tuple[Tensor, ...], nesting: int) -> Draw:
        """Fit the Gaussians of a block and prepare the draws from them."""
        fitted = fit_local(model, self.guide, args, family=self.family, steps=self.steps).inflated(
            self.inflation
        )
        latents: dict[int, Latents] = {}

        def draw(k: int) -> Tensor:
            if k not in latents:
                latents[k] = Latents(model, self.guide, args, k, nesting)
            u, log_q = fitted.draw(k)
            return latents[k].log_joint(u).total - log_q

        return draw


def widened(guide: Program, factor: float = 1.5) -> Program:
    """Multiply the scale of every latent site of a guide.

    Accepted are Gaussians, including multivariate and low-rank ones, and the Student, log-normal,
    Laplace, Cauchy and Gumbel families.

    Args:
        guide: The Pyro program q(z|x).
        factor: The factor of each scale, positive.

    Returns:
        The Pyro program with the wider distributions. When it runs, it raises ProgramError, with
        the name of the site, for another family.

    Raises:
        ConfigError: For a factor that is not positive and finite.

    >>> import torch
    >>> from pyroae import log_likelihood, zoo
    >>> system, x = zoo.ppca(4, latent=2), torch.zeros(3, 4)
    >>> wide = widened(system.guide, 2.0)
    >>> log_likelihood(system.model, wide, x, num_particles=100, seed=0).log_px.shape
    torch.Size([3])
    """
    if not 0 < factor < math.inf:
        raise ConfigError(f"the factor of a wider guide must be positive and finite, not {factor}")
    return _Replaced(lambda name, fn: _scaled(name, fn, factor))(guide)


def heavy_tailed(guide: Program, freedom: float = 5.0) -> Program:
    """Replace every Gaussian of a guide by a Student t distribution of the same location and scale.

    Args:
        guide: The Pyro program q(z|x).
        freedom: The degrees of freedom, positive.

    Returns:
        The Pyro program with the heavier tails. When it runs, it raises ProgramError, with the name
        of the site, for a site that is not Gaussian.

    Raises:
        ConfigError: For degrees of freedom that are not positive and finite.

    >>> import torch
    >>> from pyroae import log_likelihood, zoo
    >>> system, x = zoo.ppca(4, latent=2), torch.zeros(3, 4)
    >>> heavy = heavy_tailed(system.guide)
    >>> log_likelihood(system.model, heavy, x, num_particles=100, seed=0).log_px.shape
    torch.Size([3])
    """
    if not 0 < freedom < math.inf:
        raise ConfigError(f"the degrees of freedom must be positive and finite, not {freedom}")
    return _Replaced(lambda name, fn: _student(name, fn, freedom))(guide)


class _Replaced(Messenger):
    """Replaces the distributions of the latent sites of a guide."""

    def __init__(self, other: Callable[[str, Any], Any]) -> None:
        super().__init__()
        self.other = other

    def _pyro_sample(self, msg: Any) -> None:
        if (
            not msg["is_observed"]
            and not msg["infer"].get("_do_not_trace")
            and type(msg["fn"]).__name__ != "_Subsample"
        ):
            msg["fn"] = self.other(msg["name"], msg["fn"])


def _outer(fn: Any, inner: Callable[[Any], Any]) -> Any:
    """A distribution with the innermost one inside of Independent replaced."""
    if isinstance(fn, torch.distributions.Independent):
        return dist.Independent(_outer(fn.base_dist, inner), fn.reinterpreted_batch_ndims)
    return inner(fn)


def _scaled(name: str, fn: Any, factor: float) -> Any:
    def inner(fn: Any) -> Any:
        if isinstance(fn, torch.distributions.MultivariateNormal):
            return dist.MultivariateNormal(fn.loc, scale_tril=factor * fn.scale_tril)
        if isinstance(fn, torch.distributions.LowRankMultivariateNormal):
            return dist.LowRankMultivariateNormal(
                fn.loc, factor * fn.cov_factor, factor**2 * fn.cov_diag
            )
        if isinstance(fn, torch.distributions.StudentT):
            return dist.StudentT(fn.df, fn.loc, factor * fn.scale)
        if isinstance(fn, torch.distributions.LogNormal):
            return dist.LogNormal(fn.loc, factor * fn.scale)
        for kind in (dist.Normal, dist.Laplace, dist.Cauchy, dist.Gumbel):
            if isinstance(fn, kind):
                return kind(fn.loc, factor * fn.scale)
        raise ProgramError(
            f"the site '{name}' is a {type(base_distribution(fn)).__name__}, "
            "which has no scale to widen"
        )

    return _outer(fn, inner)


def _student(name: str, fn: Any, freedom: float) -> Any:
    def inner(fn: Any) -> Any:
        if isinstance(fn, torch.distributions.MultivariateNormal):
            return dist.MultivariateStudentT(
                torch.as_tensor(freedom).to(fn.loc), fn.loc, fn.scale_tril
            )
        if isinstance(fn, torch.distributions.Normal):
            return dist.StudentT(freedom, fn.loc, fn.scale)
        raise ProgramError(
            f"`heavy_tailed` supports Gaussian sites only; the site '{name}' is a "
            f"{type(base_distribution(fn)).__name__}"
        )

    return _outer(fn, inner)


def proposal_named(name: str, model: Program, guide: Program) -> Program | Proposal:
    """Make a proposal from its name.

    Args:
        name: `guide`, the guide itself; `prior`, the model's prior; `wider`, the guide with 1.5
            times the scale; `heavy-tailed`, the guide with t distributions of 5 degrees of freedom;
            `defensive`, a mixture of the guide, the guide with 3 times the scale and the prior,
            with shares 0.6, 0.3 and 0.1; `local`, a full-rank Gaussian fitted to each datum.
        model: The Pyro program p(z) p(x|z).
        guide: The Pyro program q(z|x).

    Returns:
        The proposal.

    Raises:
        ConfigError: For another name.

    >>> from pyroae import zoo
    >>> system = zoo.ppca(4, latent=2)
    >>> proposal_named("defensive", system.model, system.guide).shares
    (0.6, 0.3, 0.1)
    """
    constructors: dict[str, Callable[[], Program | Proposal]] = {
        "guide": lambda: guide,
        "prior": lambda: prior_of(model),
        "wider": lambda: widened(guide),
        "heavy-tailed": lambda: heavy_tailed(guide),
        "defensive": lambda: Mixture(
            (guide, widened(guide, 3.0), prior_of(model)), (0.6, 0.3, 0.1)
        ),
        "local": lambda: Local(guide),
    }
    if name not in constructors:
        raise unknown_name("proposal", name, constructors)
    return constructors[name]()
