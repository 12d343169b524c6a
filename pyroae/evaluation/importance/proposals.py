"""Proposals other than the guide as trained: wider, heavier-tailed, the prior, mixtures, Gaussians fitted to each datum."""

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
from pyroae.evaluation.latents import Latents
from pyroae.evaluation.local import fit_local
from pyroae.programs.sites import Program, base_distribution
from pyroae.programs.traces import log_post_of, prior_of, run
from pyroae.weights import reduce_log_weights

Draw = Callable[[int], Tensor]
"""From k to k new log-weights for each datum of a block, `[k, N]`."""


class Proposal(ABC):
    """Something to draw z from that is no Pyro program: a mixture of several, or a distribution fitted to each datum."""

    @abstractmethod
    def prepare(self, model: Program, args: tuple[Tensor, ...], nesting: int) -> Draw:
        """Get ready for a block of data, the arguments of model and guide; nesting: the number of its plate dimensions."""

    @property
    @abstractmethod
    def programs(self) -> tuple[Program, ...]:
        """The Pyro programs that it is made of."""

    def over(self, handler: Callable[[Program], Program]) -> "Proposal":
        """The same of other programs, each made by `handler` of one of these."""
        raise ConfigError(
            f"the proposal {type(self).__name__} takes tensors as arguments alone: it defines no `over`"
        )

    @property
    def fits(self) -> bool:
        """Whether the programs are where a fit starts only, and need no density."""
        return False


@dataclass(frozen=True)
class Mixture(Proposal):
    """The defensive mixture Σ_i a_i q_i(z|x), of Pyro programs over the same latent sites (Hesterberg 1995; Owen & Zhou 2000).

        log w = log p(x, z) − log Σ_i a_i q_i(z|x)

    The weights are bounded by those of each part over its share: with the prior as a part no datum is missed. Each part gives
    its share of the draws, no more and no less (Veach & Guibas 1995), so the standard errors are a little too large. parts:
    guides. shares: a_i, which add up to 1; equal ones by default. Raises ConfigError for shares that are no such numbers.

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
            raise ConfigError("a mixture takes at least one program")
        shares = self.shares or (1 / len(self.parts),) * len(self.parts)
        if len(shares) != len(self.parts) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
            raise ConfigError(
                f"a mixture of {len(self.parts)} takes as many positive shares, which add up to 1, not {shares}"
            )
        object.__setattr__(self, "shares", tuple(shares))

    @property
    def programs(self) -> tuple[Program, ...]:
        return self.parts

    def over(self, handler: Callable[[Program], Program]) -> "Mixture":
        return replace(self, parts=tuple(map(handler, self.parts)))

    def prepare(self, model: Program, args: tuple[Tensor, ...], nesting: int) -> Draw:
        taken, ends = [0] * len(self.parts), list(accumulate(self.shares))

        def draw(k: int) -> Tensor:
            total = sum(taken) + k
            until = [round(end * total) for end in ends[:-1]] + [total]
            counts = [until[i] - (until[i - 1] if i else 0) - taken[i] for i in range(len(taken))]
            counts = _none_negative(counts)
            for i, count in enumerate(counts):
                taken[i] += count
            rows = [
                self._part(model, args, nesting, i, counts) for i in range(len(counts)) if counts[i]
            ]
            return torch.cat(rows)[torch.randperm(k)]

        return draw

    def _part(
        self, model: Program, args: tuple[Tensor, ...], nesting: int, i: int, counts: list[int]
    ) -> Tensor:
        """Draws of one part, weighed against the whole mixture, of the shares that this chunk has: `[counts[i], N]`."""
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
    """Counts of the same sum without any below 0: what rounding may give when few are drawn."""
    counts = list(counts)
    while min(counts) < 0:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(min(counts))] += 1
    return counts


@dataclass(frozen=True)
class Local(Proposal):
    """A Gaussian fitted to each datum's posterior, in unconstrained coordinates, by maximizing its own ELBO from the guide on.

    guide: where the fit starts. family: of the covariance. steps: of Adam. inflation: of its scale when it serves as the
    proposal, above 1 for tails that cover the posterior's. For continuous latents (Cremer et al. 2018 call it the optimal q*).
    Raises ConfigError for an inflation or a number of steps that is not positive.
    """

    guide: Program
    family: Literal["diagonal", "full-rank"] = "full-rank"
    steps: int = 1000
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
        return (self.guide,)

    def over(self, handler: Callable[[Program], Program]) -> "Local":
        return replace(self, guide=handler(self.guide))

    @property
    def fits(self) -> bool:
        return True

    def prepare(self, model: Program, args: tuple[Tensor, ...], nesting: int) -> Draw:
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
    """The guide with the scale of every latent site, Gaussian or of another location-scale family, times `factor`.

    Raises ConfigError for a factor that is not positive; when it runs, ProgramError, naming the site, for another family.
    """
    if not 0 < factor < math.inf:
        raise ConfigError(f"the factor of a wider guide must be positive and finite, not {factor}")
    return _Replaced(lambda name, fn: _scaled(name, fn, factor))(guide)


def heavy_tailed(guide: Program, freedom: float = 5.0) -> Program:
    """The guide with Student's t of `freedom` degrees in place of each Gaussian, of the same location and scale.

    Raises ConfigError unless freedom is positive; when it runs, ProgramError, naming the site, for what is no Gaussian.
    """
    if not 0 < freedom < math.inf:
        raise ConfigError(f"the degrees of freedom must be positive and finite, not {freedom}")
    return _Replaced(lambda name, fn: _student(name, fn, freedom))(guide)


class _Replaced(Messenger):
    """Other distributions at the latent sites of a guide."""

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
    """A distribution with what is inside of Independent replaced."""
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
            f"the site '{name}' is a {type(base_distribution(fn)).__name__}, which has no scale to widen"
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
            f"the site '{name}' is a {type(base_distribution(fn)).__name__}, of which there is no t: a Gaussian has"
        )

    return _outer(fn, inner)


def proposal_named(name: str, model: Program, guide: Program) -> Program | Proposal:
    """A proposal by name: `wider`, 1.5 times the scale; `heavy-tailed`, t with 5 degrees of freedom; `defensive`, a mixture of
    the guide, the guide 3 times as wide and the prior, 0.6, 0.3 and 0.1; `local`, a full-rank Gaussian fitted to each datum.

    Raises ConfigError for another name.
    """
    made: dict[str, Callable[[], Program | Proposal]] = {
        "guide": lambda: guide,
        "prior": lambda: prior_of(model),
        "wider": lambda: widened(guide),
        "heavy-tailed": lambda: heavy_tailed(guide),
        "defensive": lambda: Mixture(
            (guide, widened(guide, 3.0), prior_of(model)), (0.6, 0.3, 0.1)
        ),
        "local": lambda: Local(guide),
    }
    if name not in made:
        raise unknown_name("proposal", name, made)
    return made[name]()
