"""Estimate log p(x) of each datum by importance sampling.

Log-weights are streamed, so that memory grows neither with K nor with N.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyroae.distributed.work_sharing import gather_results
from pyroae.errors import ConfigError
from pyroae.evaluation.blocks import Data, base_seed
from pyroae.evaluation.checks import check_evidence, check_globals, check_proposal, check_terms
from pyroae.evaluation.importance.above import UpperBound, cubo, eubo
from pyroae.evaluation.importance.per_datum import Columns
from pyroae.evaluation.importance.proposals import Proposal
from pyroae.evaluation.importance.sampler import LEAST, Sampler, programs_of
from pyroae.evaluation.importance.streams import BoundCurve, Smoothed, is_reliable, khat_limit
from pyroae.evaluation.trial import FEW, FirstRun, first_run, nesting_of
from pyroae.programs.arguments import Plain, Structure, structure_of
from pyroae.programs.context import evaluating, without_parameter_sites
from pyroae.programs.sites import Program
from pyroae.programs.traces import run
from pyroae.runtime.memory import ChunkSize, once
from pyroae.runtime.processes import WHOLE, Share
from pyroae.runtime.randomness import fork_random
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import duration, number, percent, with_error
from pyroae.runtime.threads import one_core

TOO_MANY = 0.1
"""The fraction of unreliable data above which all data are sampled again."""


RETRY = 1
"""The stage of the second sampling, which gives the same data other seeds.

The position of a datum is that among the data that are sampled again.
"""


class Trial(NamedTuple):
    """What trial runs of a model and its proposals found.

    Attributes:
        nesting: The number of plate dimensions.
        apart: Whether some latent sites lie outside the data plate.
    """

    nesting: int
    apart: bool


class PerDatumEstimate:
    """The mean of Monte-Carlo estimates of log p(x) over the data, and its errors.

    Attributes:
        log_px: The estimate for each datum, `[N]`, nats.
        se: Its Monte-Carlo standard error, `[N]`, nats.
    """

    log_px: Tensor
    se: Tensor

    @property
    def nll(self) -> float:
        """The negative log-likelihood, −mean log p(x), in nats per datum."""
        return -self.log_px.mean().item()

    @property
    def nll_se(self) -> float:
        """The standard error of `nll` as the mean of a sample of N data, in nats per datum.

        It includes the Monte-Carlo error.
        """
        return (self.log_px.std() / math.sqrt(len(self.log_px))).item()

    @property
    def monte_carlo_se(self) -> float:
        """The standard error of `nll` for these N data, in nats per datum.

        It is what more particles would reduce.
        """
        return (self.se.square().sum().sqrt() / len(self.se)).item()


@dataclass(frozen=True, repr=False)
class LikelihoodEstimate(Shown, PerDatumEstimate):
    """Importance-sampled log-likelihoods of N data, float64.

    Attributes:
        log_px: log (1/K) Σ w, a lower bound of log p(x) in expectation, `[N]`, nats.
        se: The Monte-Carlo standard error of `log_px` by the delta method, `[N]`, nats; nan for
            K = 1.
        interval: The 95 % interval of log p(x), corrected for skewness, `[2, N]`, nats.
        ess: The effective sample size (Σ w)² / Σ w², from 1 to K, `[N]`.
        jackknife: `log_px` without its first-order bias, `[N]`, nats.
        smoothed: The estimates by Pareto-smoothed importance sampling, and k̂, `[N]` each.
        draws: K of each datum, `[N]`.
        curve: The mean bound for each of several smaller K, in nats per datum.
        tolerance: The tolerance that was given, in nats per datum, or None.
        seconds: The time of the estimate.
        eubo: The evidence upper bound E_{p(z|x)} log w, as of `above.eubo`, nats: a report with
            flags, never a certificate. After a retry it is of the proposal that a datum kept.
        cubo: The χ² upper bound ½ log E_q w², as of `above.cubo`, nats.

    References:
        Nowozin 2018, Debiasing evidence approximations, for the jackknife.
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
    eubo: UpperBound
    cubo: UpperBound

    def _overview(self) -> Overview:
        count, bad = len(self.log_px), len(self.unreliable)
        nll, limits = with_error(self.nll, self.nll_se, "nats"), (self.ess, self.smoothed.khat)
        ess, khat = (number(one.nanmedian().item(), 3) for one in limits)
        above = [(name, one) for name, one in (("EUBO", self.eubo), ("CUBO", self.cubo))]
        return Overview(
            [
                f"N={count}",
                f"K={self.num_particles}",
                f"NLL {nll}",
                f"unreliable {percent(bad, count)}",
            ],
            [
                ("NLL", f"{nll} per datum, ± as a sample of N data"),
                ("Monte Carlo", f"error {self.monte_carlo_se:.2g} nats, bias {self.bias:.2g} nats"),
                ("unreliable", f"{bad} of {count} data"),
                ("k̂", f"median {khat}, limit {number(self.khat_limit.min().item(), 2)}"),
                ("ESS", f"median {ess} of {self.num_particles}"),
                *((name, f"{one.summary}, upper bound of log p(x)") for name, one in above),
                ("time", duration(self.seconds)),
            ],
        )

    @property
    def num_particles(self) -> int:
        """K, the number of draws per datum; the largest where a tolerance ended some earlier."""
        return int(self.draws.max())

    @property
    def bias(self) -> float:
        """The jackknife's estimate of the bias of mean log_px, in nats per datum; negative."""
        return (self.log_px - self.jackknife).mean().item()

    @property
    def error(self) -> float:
        """The error of `nll` for these data, √(monte_carlo_se² + bias²), in nats per datum."""
        return math.hypot(self.monte_carlo_se, self.bias)

    @property
    def is_within_tolerance(self) -> bool:
        """Whether all data are reliable and `error` is within the tolerance.

        True if no tolerance was given.
        """
        return self.tolerance is None or (self.error <= self.tolerance and not len(self.unreliable))

    @property
    def khat_limit(self) -> Tensor:
        """The k̂ from which on an estimate is unreliable, min(1 − 1/log₁₀ K, 0.7), `[N]`."""
        return khat_limit(self.draws)

    @property
    def unreliable(self) -> Tensor:
        """Indices of the data whose log_px and standard error are not reliable, `[n]`.

        A datum is unreliable if its k̂ is not below the limit, its ESS is below 10, or its error is
        not finite. All data are unreliable where K < 25.
        """
        reliable = is_reliable(self.smoothed.khat, self.ess, self.se, self.draws)
        return (~reliable).nonzero().flatten()


def log_likelihood(
    model: Program,
    guide: Program | Proposal,
    x: Data,
    *,
    num_particles: int = 1000,
    tolerance: float | None = None,
    retry: Program | Proposal | None = None,
    seed: int | Sequence[int] | None = None,
    compile: bool | str = "auto",
    progress: bool = False,
    share: Share = WHOLE,
    trial: Trial | None = None,
    **kwargs: Any,
) -> LikelihoodEstimate:
    """Estimate log p(x_n) of each datum by importance sampling.

        log p̂(x_n) = log (1/K) Σ_k p(x_n, z_k) / q(z_k|x_n),   z_k ~ q(z|x_n)

    The estimate is a lower bound in expectation: E log p̂ ≤ log p. Its bias is about
    −Var(w) / (2 K p²). Where memory runs out, chunks of draws are halved, with a warning.

    With latent sites θ outside the data plate the estimate is held-out: each datum is a new one,
    under the guide's q(θ) as trained,

        log p̂(x_n) = log (1/S) Σ_s p(x_n, z_s | θ_s) / q(z_s | x_n, θ_s),   θ_s ~ q(θ),   S = K

    with z_s ~ q(z | x_n, θ_s). Each particle has its own θ, which gives the least variance of all
    ways to divide K particles among draws of θ. Each datum has its own draws of θ, so that errors
    of different data are independent; `se` contains the errors of θ and of z.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The proposal, trained or not: a Pyro program over the same latent sites, or a
            `Mixture` or `Local`.
        x: The data: a tensor `[N, ...]`, a dict or list of tensors, or a tuple of such arguments.
            They are passed to both programs in slices along the first dimension.
        num_particles: K, the number of draws per datum; the largest one if a tolerance is given.
        tolerance: In nats per datum: draws end as soon as the `error` of the mean is below it. None
            for K draws of each datum.
        retry: The proposal with which the unreliable data are sampled again, or all data if more
            than a tenth are unreliable, since the k̂ of the others is then low by chance. Its
            estimate replaces the first one where it is reliable or its k̂ is lower.
        seed: The seed of the draws, or one for each datum, `[N]`: the draws of a datum, which are
            then made one datum at a time, depend on its own seed alone, and not on the other data.
            None takes one draw from the caller's generator, which is otherwise left unchanged.
        compile: Whether draws and weights are compiled as one graph, as in `pyroae.compile`; "auto"
            if there is enough work.
        progress: Whether a progress bar is shown.
        share: The rank of this process and the number of processes that call this function with
            the same arguments and share the work. The estimate is the same on all, and for any
            number of processes.
        trial: What `trial_of` found for the same programs and data, perhaps at other parameters:
            the programs are not checked again. None checks them.
        kwargs: Keyword arguments of the programs: tensors `[N, ...]` and constants.

    Returns:
        The estimates with standard errors and diagnostics, `[N]` each, in nats.

    Raises:
        UndefinedLikelihoodError: For a Delta that depends on no draw, or an improper prior.
        ProgramError: For a θ whose q depends on the data, latent sites outside the plate under a
            `Proposal`, or scales and masks of latent sites (`check_terms`); with the site.
        DataError: For a datum whose weights are all zero or not a number; with its index and the
            site.
        ConfigError: For settings out of range, another number of seeds than of data, or if one draw
            for one datum does not fit into memory.

    References:
        Rezende, Mohamed & Wierstra 2014, Stochastic backpropagation and approximate inference in
        deep generative models.
        Burda, Grosse & Salakhutdinov 2016, Importance weighted autoencoders.

    >>> from pyroae import exact_log_likelihood, zoo
    >>> system, x = zoo.ppca(4, latent=2), torch.zeros(3, 4)
    >>> estimate = log_likelihood(system.model, system.guide, x, num_particles=5000, seed=0)
    >>> error = estimate.log_px - exact_log_likelihood(system, x)
    >>> bool((error.abs() < 5 * estimate.se + 1e-6).all())
    True
    """
    _check_settings(num_particles, tolerance)
    structure = structure_of(x, kwargs, model)
    model, guide, retry = (
        structure(model),
        _restructured(guide, structure),
        _restructured(retry, structure),
    )
    started, args = time.monotonic(), structure.tensors
    drawn = _seeds(seed, len(args[0]))
    with evaluating(model, *programs_of(guide), *programs_of(retry)), fork_random(args[0].device):
        (nesting, apart, base), *_ = gather_results(
            share, lambda: (*(trial or _trial_runs(model, (guide, retry), args)), drawn)
        )
        sampler = Sampler(
            model, guide, num_particles, tolerance, nesting, apart, compile, base, share, progress
        )
        columns, curve = sampler.run(args)
        if retry is not None:
            columns = _retried(replace(sampler, guide=retry), columns, args)
    seconds = max(share.gather(time.monotonic() - started))
    return _estimate_of(columns, curve, tolerance, seconds)


def trial_of(model: Program, guide: Program, x: Data) -> Trial:
    """Check programs by trial runs, for several calls of `log_likelihood` along a training.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The program that proposes.
        x: The data, as of `log_likelihood`.

    Returns:
        What the runs found; generators are unchanged.

    Raises:
        PyroaeError: As of `log_likelihood`.
    """
    structure = structure_of(x, {}, model)
    model, guide, args = structure(model), structure(guide), structure.tensors
    with evaluating(model, guide), fork_random(args[0].device):
        return _trial_runs(model, (guide,), args)


def _check_settings(num_particles: int, tolerance: float | None) -> None:
    if not isinstance(num_particles, int) or num_particles < 1:
        raise ConfigError(
            f"num_particles must be a whole number of at least 1, not {num_particles!r}"
        )
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise ConfigError(f"a tolerance must be positive and finite, in nats, not {tolerance}")


def _seeds(seed: int | Sequence[int] | None, num_data: int) -> int | tuple[int, ...]:
    """The seed of all data, or that of each; refuse another number of seeds than of data."""
    if seed is None or isinstance(seed, int):
        return base_seed(seed)
    if len(seed) != num_data:
        raise ConfigError(f"there are {len(seed)} seeds for {num_data} data: give one for each")
    return tuple(seed)


def _retried(sampler: Sampler, columns: Columns, args: tuple[Tensor, ...]) -> Columns:
    """The estimates, replaced by those of a second proposal where these are better."""
    index = columns.unreliable()
    if not len(index):
        return columns
    if len(index) > TOO_MANY * len(args[0]):
        index = torch.arange(len(args[0]))
    if not isinstance(sampler.seed, int):
        sampler = replace(sampler, seed=tuple(sampler.seed[n] for n in index.tolist()))
    again, _ = sampler.run(tuple(a[index.to(a.device)] for a in args), RETRY)
    return columns.with_better(index, again)


def _estimate_of(
    columns: Columns, curve: BoundCurve, tolerance: float | None, seconds: float
) -> LikelihoodEstimate:
    weights = (columns.above, columns.khat, columns.ess, columns.draws)
    return LikelihoodEstimate(
        columns.log_px,
        columns.se,
        columns.interval,
        columns.ess,
        columns.jackknife,
        columns.smoothed,
        columns.draws,
        curve,
        tolerance,
        seconds,
        eubo(*weights),
        cubo(*weights),
    )


def _restructured[G: Program | Proposal | None](guide: G, structure: Structure | Plain) -> G:
    """The guide or proposal as a program of flat tensors."""
    if guide is None or isinstance(structure, Plain):
        return guide
    over: Any = guide.over(structure) if isinstance(guide, Proposal) else structure(guide)
    return over


def _trial_runs(
    model: Program, guides: tuple[Program | Proposal | None, ...], args: tuple[Tensor, ...]
) -> Trial:
    """Run and check every proposal on a few data; the draws of the estimate do not change."""
    nesting, held_out, first = 0, False, tuple(a[:1] for a in args)
    with fork_random(first[0].device), without_parameter_sites(), one_core():
        for guide in guides:
            fits = isinstance(guide, Proposal) and guide.fits
            for program in programs_of(guide):
                outside, few = False, None
                if not isinstance(guide, Proposal):
                    chunk_size = ChunkSize(min(FEW, len(args[0])), "data", LEAST, warns=False)
                    outside, few = chunk_size.fitted(partial(_has_globals, model, program, args))
                traces = once(partial(run, model, program, first, {}), LEAST)
                if fits:
                    check_evidence(traces)
                else:
                    check_proposal(traces, program, first, held_out=outside)
                check_terms(model, program, args, "start" if fits else "proposal")
                nesting, held_out = (
                    max(nesting, nesting_of(model, program, args, few)),
                    held_out or outside,
                )
    return Trial(nesting, held_out)


def _has_globals(
    model: Program, guide: Program, args: tuple[Tensor, ...], count: int
) -> tuple[bool, FirstRun]:
    """Whether there are latent sites outside the plate, and the run that shows it."""
    first = first_run(model, guide, args, count)
    return check_globals(model, guide, *first), first
