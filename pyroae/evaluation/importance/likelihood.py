"""log p(x) of each datum by importance sampling, streamed: memory grows with neither K nor N."""

import math
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyroae.distributed.work_sharing import gather_results
from pyroae.errors import ConfigError
from pyroae.evaluation.blocks import Data, base_seed
from pyroae.evaluation.checks import check_evidence, check_globals, check_proposal, check_terms
from pyroae.evaluation.importance.proposals import Proposal
from pyroae.evaluation.importance.sampler import LEAST, Sampler, programs_of
from pyroae.evaluation.importance.streams import BoundCurve, Smoothed, is_reliable, khat_limit
from pyroae.evaluation.trial import FEW, nesting_of
from pyroae.programs.arguments import Plain, Structure, structure_of
from pyroae.programs.context import evaluating, fork_random
from pyroae.programs.sites import Program
from pyroae.programs.traces import run
from pyroae.runtime.memory import Portion, once
from pyroae.runtime.processes import WHOLE, Share

TOO_MANY = 0.1
"""The share of unreliable data from which on all are tried again."""


RETRY = 1
"""What tells the seeds of blocks that are tried again from their first ones; they stand where they are among those data."""


class PerDatumEstimate:
    """What every Monte-Carlo estimate of log p(x) says of its mean, from `log_px` and `se` `[N]`, in nats."""

    log_px: Tensor
    se: Tensor

    @property
    def nll(self) -> float:
        """−mean log p(x), nats per datum."""
        return -self.log_px.mean().item()

    @property
    def nll_se(self) -> float:
        """Standard error of `nll` as the mean over a sample of N data, Monte-Carlo error included."""
        return (self.log_px.std() / math.sqrt(len(self.log_px))).item()

    @property
    def monte_carlo_se(self) -> float:
        """Standard error of `nll` for these very data: what more particles would reduce."""
        return (self.se.square().sum().sqrt() / len(self.se)).item()


@dataclass(frozen=True)
class LikelihoodEstimate(PerDatumEstimate):
    """Importance-sampled log-likelihoods, float64, in nats; tensors are `[N]` where nothing else is said.

    log_px: log (1/K) Σ w, a lower bound in expectation. se: its Monte-Carlo standard error by the delta method, nan for K = 1.
    interval: `[2, N]`, 95 %, corrected for skewness. ess: (Σw)²/Σw², from 1 to K. jackknife: log_px with its bias
    removed to first order (Nowozin 2018). smoothed: PSIS and k̂. draws: K for each datum. curve: the mean bound for smaller
    K. tolerance: what was asked for. seconds: the time it took.
    """

    log_px: Tensor
    se: Tensor
    interval: Tensor
    ess: Tensor
    jackknife: Tensor
    smoothed: Smoothed
    draws: Tensor
    curve: BoundCurve
    tolerance: float | None
    seconds: float

    @property
    def num_particles(self) -> int:
        """K, the number drawn for a datum; the largest, where a tolerance ended some before."""
        return int(self.draws.max())

    @property
    def bias(self) -> float:
        """The jackknife's estimate of the bias of mean log_px, in nats per datum: below 0."""
        return (self.log_px - self.jackknife).mean().item()

    @property
    def error(self) -> float:
        """√(monte_carlo_se² + bias²): the error of `nll` for these data, in nats per datum."""
        return math.hypot(self.monte_carlo_se, self.bias)

    @property
    def is_within_tolerance(self) -> bool:
        """Whether `error` is below the tolerance, where one was given; False where a datum is unreliable."""
        return self.tolerance is None or (self.error <= self.tolerance and not len(self.unreliable))

    @property
    def khat_limit(self) -> Tensor:
        """`[N]`, min(1 − 1/log₁₀ K, 0.7): the k̂ above which the error is not to be trusted (Vehtari et al. 2024)."""
        return khat_limit(self.draws)

    @property
    def unreliable(self) -> Tensor:
        """Indices of the data of which neither log_px nor its error is to be trusted.

        Those without a k̂ below its limit, with an ESS below 10, or without a finite error: all of them where K < 25.
        """
        trusted = is_reliable(self.smoothed.khat, self.ess, self.se, self.draws)
        return (~trusted).nonzero().flatten()


def log_likelihood(
    model: Program,
    guide: Program | Proposal,
    x: Data,
    *,
    num_particles: int = 1000,
    tolerance: float | None = None,
    retry: Program | Proposal | None = None,
    seed: int | None = None,
    compile: bool | str = "auto",
    progress: bool = False,
    share: Share = WHOLE,
    **kwargs: Any,
) -> LikelihoodEstimate:
    """Importance-sampled log p(x_n) for each datum (Burda 2016's L_K; Rezende 2014).

        log p̂(x_n) = log (1/K) Σ_k p(x_n, z_k) / q(z_k|x_n),   z_k ~ q(z|x_n)

    A lower bound in expectation: E log p̂ ≤ log p, low by about Var(w) / (2K p²). x: `[N, ...]`, or a tuple of such
    arguments, passed to both programs in slices along the first dimension; an argument may be a dict or a list of tensors.
    kwargs: keyword arguments of the programs, tensors `[N, ...]` and constants. guide: any proposal, not only the one that was
    trained: a Pyro program over the same latent sites, or a Mixture or Local. tolerance: in nats per datum; draws end as
    soon as the `error` of the mean is below it, at `num_particles` at the latest. retry: the proposal for the data that are
    `unreliable`, and for all where more than a tenth are: the others' k̂ is then low by luck; what it gives is taken where it is
    reliable or its k̂ is lower. seed: of the draws; the caller's generators then stay as they were, and give one draw where it
    is None. compile: draws and weights as one graph, as of `pyroae.compile`; "auto" where there is so much to draw that it
    pays. share: of this process in the work, where several call this with the same arguments; the estimate is the same on
    all, and for any number of them. Where memory runs out, chunks are halved, with a warning.

    With latent sites θ outside the data plate it is held-out: each datum is a new one, under the guide's q(θ) as trained,

        log p̂(x_n) = log (1/S) Σ_s p(x_n, z_s | θ_s) / q(z_s | x_n, θ_s),   θ_s ~ q(θ), z_s ~ q(z | x_n, θ_s),   S = K

    Each particle has a θ of its own: of all ways to share K particles among the draws of θ this has the least variance. Each
    datum draws its own, so errors are independent, those of θ and z are both in `se`, and means over data have theirs.

    Raises UndefinedLikelihoodError for a Delta that depends on no draw, or an improper prior, ProgramError for a θ whose q
    depends on the data, for latent sites outside the plate under a Proposal, and for scales and masks of latent sites
    (`check_terms`), DataError, with its index and the site, for a
    datum whose weights are all zero or not a number, ConfigError where memory does not hold one draw for one datum.

    >>> from pyroae import zoo
    >>> system, x = zoo.ppca(4, latent=2), torch.zeros(3, 4)
    >>> estimate = log_likelihood(system.model, system.guide, x, num_particles=5000, seed=0)
    >>> from pyroae import exact_log_likelihood
    >>> bool(((estimate.log_px - exact_log_likelihood(system, x)).abs() < 5 * estimate.se + 1e-6).all())
    True
    """
    if not isinstance(num_particles, int) or num_particles < 1:
        raise ConfigError(
            f"num_particles must be a whole number of at least 1, not {num_particles!r}"
        )
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise ConfigError(f"a tolerance must be positive and finite, in nats, not {tolerance}")
    structure = structure_of(x, kwargs, model)
    model, guide, retry = (
        structure(model),
        _restructured(guide, structure),
        _restructured(retry, structure),
    )
    started, args, drawn = time.monotonic(), structure.tensors, base_seed(seed)
    with evaluating(model, *programs_of(guide), *programs_of(retry)), fork_random(args[0].device):
        (nesting, apart, base), *_ = gather_results(
            share, lambda: (*_look(model, (guide, retry), args), drawn)
        )
        sampler = Sampler(
            model, guide, num_particles, tolerance, nesting, apart, compile, base, share, progress
        )
        columns, curve = sampler.run(args)
        bad = columns.unreliable()
        if len(bad) > TOO_MANY * len(args[0]):
            bad = torch.arange(len(args[0]))
        if retry is not None and len(bad):
            again, _ = replace(sampler, guide=retry).run(
                tuple(a[bad.to(a.device)] for a in args), RETRY
            )
            columns = columns.with_better(bad, again)
    c, seconds = columns, max(share.gather(time.monotonic() - started))
    return LikelihoodEstimate(
        c.log_px,
        c.se,
        c.interval,
        c.ess,
        c.jackknife,
        c.smoothed,
        c.draws,
        curve,
        tolerance,
        seconds,
    )


def _restructured[G: Program | Proposal | None](guide: G, structure: Structure | Plain) -> G:
    """The guide or proposal as one of flat tensors."""
    if guide is None or isinstance(structure, Plain):
        return guide
    return guide.over(structure) if isinstance(guide, Proposal) else structure(guide)  # type: ignore[return-value]


def _look(
    model: Program, guides: tuple[Program | Proposal | None, ...], args: tuple[Tensor, ...]
) -> tuple[int, bool]:
    """One run of every proposal, which takes no draws from the estimate.

    Returns:
        The number of plate dimensions, and whether some latent sites lie outside the data plate.
    """
    nesting, held_out, first = 0, False, tuple(a[:1] for a in args)
    with fork_random(first[0].device):
        for guide in guides:
            fits = isinstance(guide, Proposal) and guide.fits
            for program in programs_of(guide):
                portion = Portion(min(FEW, len(args[0])), "data", LEAST, warns=False)
                checked = partial(_has_globals, model, program, args)
                outside = not isinstance(guide, Proposal) and portion.fitted(checked)
                traces = once(partial(run, model, program, first, {}), LEAST)
                if fits:
                    check_evidence(traces)
                else:
                    check_proposal(traces, program, first, held_out=outside)
                check_terms(model, program, args, "start" if fits else "proposal")
                nesting, held_out = (
                    max(nesting, nesting_of(model, program, args)),
                    held_out or outside,
                )
    return nesting, held_out


def _has_globals(model: Program, guide: Program, args: tuple[Tensor, ...], count: int) -> bool:
    return check_globals(model, guide, tuple(a[:count] for a in args))
