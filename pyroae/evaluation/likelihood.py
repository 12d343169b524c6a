"""log p(x) of each datum by importance sampling, streamed: memory grows with neither K nor N."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import pyro
import torch
from pyro.distributions import Delta, ImproperUniform
from torch import Tensor

from pyroae.errors import ConfigError, DataError, ProgramError, UndefinedLikelihoodError
from pyroae.evaluation.blocks import Data, arguments_of, blocks, rows_of
from pyroae.evaluation.compiled_draws import CompiledDraws
from pyroae.evaluation.proposals import Draw, Proposal
from pyroae.evaluation.streams import BoundCurve, CurveStream, Smoothed, WeightStream, curve_sizes, khat_limit
from pyroae.graphs import is_wanted
from pyroae.progress import Progress
from pyroae.sites import base_distribution
from pyroae.weights import Program, Traces, evaluating, fork_random, log_density, plate_nesting, reduce_log_weights, run

LEAST_TO_STOP = 100
"""Draws for each datum before a tolerance may end them."""
TOO_MANY = 0.1
"""The share of unreliable data from which on all are tried again."""


COMPILE_FROM = 2_000_000_000
"""Numbers of the data, times K, from which on a compiled graph earns back what it takes to make."""
FLUSH = 2**18
"""Log-weights that are gathered before they are added to the streams."""


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
        """Whether `error` is below the tolerance, where one was given."""
        return self.tolerance is None or self.error <= self.tolerance

    @property
    def khat_limit(self) -> Tensor:
        """`[N]`, min(1 − 1/log₁₀ K, 0.7): the k̂ above which the error is not to be trusted (Vehtari et al. 2024)."""
        return khat_limit(self.draws)

    @property
    def unreliable(self) -> Tensor:
        """Indices of the data with k̂ at its limit or above: neither log_px nor its error is to be trusted."""
        return (self.smoothed.khat >= self.khat_limit).nonzero().flatten()


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
) -> LikelihoodEstimate:
    """Importance-sampled log p(x_n) for each datum (Burda 2016's L_K; Rezende 2014).

        log p̂(x_n) = log (1/K) Σ_k p(x_n, z_k) / q(z_k|x_n),   z_k ~ q(z|x_n)

    A lower bound in expectation: E log p̂ ≤ log p, low by about Var(w) / (2K p²). x: `[N, ...]`, or a tuple of such
    arguments, passed to both programs in slices along the first dimension. guide: any proposal, not only the one that was
    trained: a Pyro program over the same latent sites, or a Mixture or Local. tolerance: in nats per datum; draws end as
    soon as the `error` of the mean is below it, at `num_particles` at the latest. retry: the proposal for data whose k̂ is
    too high, and for all where more than a tenth are: the others' is then low by luck; what it gives is taken where its
    k̂ is lower. seed: of the draws; the caller's generators then stay as they were. compile: draws and weights as one graph,
    as of `pyroae.compile`; "auto" where there is so much to draw that it pays.
    Raises UndefinedLikelihoodError for a Delta guide or an improper prior, ProgramError for latent sites outside the
    data plate, DataError, with its index and the site, for a datum whose weights are all zero or not a number.

    >>> from pyroae import zoo
    >>> system, x = zoo.ppca(4, latent=2), torch.zeros(3, 4)
    >>> estimate = log_likelihood(system.model, system.guide, x, num_particles=5000, seed=0)
    >>> from pyroae import exact_log_likelihood
    >>> bool(((estimate.log_px - exact_log_likelihood(system, x)).abs() < 5 * estimate.se + 1e-6).all())
    True
    """
    if not isinstance(num_particles, int) or num_particles < 1:
        raise ConfigError(f"num_particles must be a whole number of at least 1, not {num_particles!r}")
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise ConfigError(f"a tolerance must be positive and finite, in nats, not {tolerance}")
    started, args = time.monotonic(), arguments_of(x)
    with evaluating(model, *_programs(guide), *_programs(retry)), fork_random(args[0].device, seed):
        nesting = _look(model, (guide, retry), tuple(a[:1] for a in args))
        sampler = _Sampler(model, guide, num_particles, tolerance, nesting, compile)
        columns, curve = sampler.run(args, progress)
        bad = columns.unreliable()
        if len(bad) > TOO_MANY * len(args[0]):
            bad = torch.arange(len(args[0]))
        if retry is not None and len(bad):
            again, _ = replace(sampler, guide=retry).run(tuple(a[bad.to(a.device)] for a in args), progress)
            columns = columns.with_better(bad, again)
    c = columns
    return LikelihoodEstimate(
        c.log_px, c.se, c.interval, c.ess, c.jackknife, c.smoothed, c.draws, curve, tolerance, time.monotonic() - started
    )


@dataclass(frozen=True)
class _Columns:
    """Figures of each datum, the data in the last dimension."""

    log_px: Tensor
    se: Tensor
    interval: Tensor
    ess: Tensor
    jackknife: Tensor
    smooth_log_px: Tensor
    smooth_interval: Tensor
    khat: Tensor
    draws: Tensor

    @property
    def smoothed(self) -> Smoothed:
        return Smoothed(self.smooth_log_px, self.smooth_interval, self.khat)

    def unreliable(self) -> Tensor:
        return (self.khat >= khat_limit(self.draws)).nonzero().flatten()

    def with_better(self, index: Tensor, other: "_Columns") -> "_Columns":
        """The figures of `other` for the data at `index` whose k̂ is lower there."""
        better = other.khat < self.khat[index]
        fields = {}
        for name, values in vars(self).items():
            fields[name] = values.clone()
            fields[name][..., index[better]] = getattr(other, name)[..., better]
        return _Columns(**fields)


@dataclass(frozen=True)
class _Sampler:
    model: Program
    guide: Program | Proposal
    num_particles: int
    tolerance: float | None
    nesting: int
    compile: bool | str

    def run(self, args: tuple[Tensor, ...], progress: bool) -> tuple[_Columns, BoundCurve]:
        total, parts, curves, done = len(args[0]), [], [], 0
        at_once = FLUSH if self.tolerance is None else 1
        with Progress("log p(x)", total * self.num_particles, progress) as bar, pyro.validation_enabled(False):
            compiled = self._compiled(args, bar)
            for block, chunks in _plan(args, self.num_particles):
                draw = self._draw(block, compiled)
                device, count = block[0].device, len(block[0])
                stream = WeightStream(count, device, self.num_particles)
                curve = CurveStream(count, device, curve_sizes(self.num_particles))
                for drawn in _gathered((draw(k) for k in chunks), at_once):
                    stream.add(drawn)
                    curve.add(drawn)
                    bar.update(done + stream.count * count)
                    if self._is_enough(stream, count, total):
                        break
                done += self.num_particles * count
                parts.append(_columns(stream))
                curves.append(curve.result())
        columns = [torch.cat(c, -1).cpu() for c in zip(*(tuple(vars(part).values()) for part in parts), strict=True)]
        self._check(columns[0], args)
        return _Columns(*columns), _joined(curves, total)

    def _compiled(self, args: tuple[Tensor, ...], bar: Progress) -> CompiledDraws | None:
        """Draws from a guide as a graph for the largest block and chunk, where that pays."""
        wanted = is_wanted(self.compile, args[0].numel() * self.num_particles >= COMPILE_FROM)
        if isinstance(self.guide, Proposal) or not wanted:
            return None
        bar.update(0, "compiling")
        block, chunks = next(_plan(args, self.num_particles))
        return CompiledDraws(self.model, self.guide, block, chunks[0], self.nesting, "inductor")

    def _draw(self, block: tuple[Tensor, ...], compiled: CompiledDraws | None) -> Draw:
        guide = self.guide
        if isinstance(guide, Proposal):
            return guide.prepare(self.model, block, self.nesting)
        if compiled is not None:
            return lambda k: compiled(block, k)
        return lambda k: reduce_log_weights(run(self.model, guide, block, {}, k, self.nesting)).log_weight

    def _is_enough(self, stream: WeightStream, count: int, total: int) -> bool:
        """Whether this block has its share of the error: that of all blocks together is then the tolerance at most."""
        if self.tolerance is None or stream.count < min(LEAST_TO_STOP, self.num_particles):
            return False
        se = stream.se().square().sum().sqrt() / count
        bias = stream.jackknife_bias().mean().abs()
        share = self.tolerance / math.sqrt(2)
        return bool((se <= share * math.sqrt(total / count)) & (bias <= share))

    def _check(self, log_px: Tensor, args: tuple[Tensor, ...]) -> None:
        """Raises DataError for a datum whose estimate is not finite."""
        if not torch.isfinite(log_px).all():
            n = int((~torch.isfinite(log_px)).nonzero()[0])
            site = _blamed(self.model, _programs(self.guide)[0], tuple(a[n : n + 1] for a in args), self.nesting)
            why = f"its site '{site}' has no finite log-density" if site else "the proposal misses it or overflows"
            raise DataError(f"the log-weights of datum {n} give log p(x) = {log_px[n].item()}: {why}")


def check_proposal(traces: Traces) -> None:
    """Raises, naming the site, where log p(x) does not exist or the guide cannot serve as its proposal."""
    check_evidence(traces)
    for name, site in traces.sites(traces.guide, observed=False):
        if isinstance(base_distribution(site["fn"]), Delta):
            raise UndefinedLikelihoodError(
                f"log p(x) cannot be estimated with this guide: its site '{name}' is a Delta, which has no density as a "
                "proposal; give another guide over the same sites as the proposal"
            )


def check_evidence(traces: Traces) -> None:
    """Raises, naming the site, where a datum has no log p(x) of its own, whatever the guide."""
    for name, site in traces.sites(traces.model, observed=False):
        if isinstance(base_distribution(site["fn"]), ImproperUniform):
            raise UndefinedLikelihoodError(
                f"log p(x) is undefined: the prior of '{name}' is flat, so the model has no evidence; "
                "use a proper prior (ppca, vae, or a Normal or Laplace prior)"
            )
        if not traces.is_local(site):
            raise ProgramError(f"the latent site '{name}' lies outside the data plate: its data have no log p(x) one by one")
    plate = traces.plate
    if plate is None:
        if any(f.vectorized for _, s in traces.sites(traces.model, observed=True) for f in s["cond_indep_stack"]):
            raise ProgramError("no one plate holds all the sites: there is no log p(x) a datum")
    elif plate.full_size not in (None, plate.size):
        raise ProgramError(f"the plate '{plate.name}' is subsampled: evaluate with all {plate.full_size} data")


def _programs(guide: Program | Proposal | None) -> tuple[Program, ...]:
    if guide is None:
        return ()
    return guide.programs if isinstance(guide, Proposal) else (guide,)


def _look(model: Program, guides: tuple[Program | Proposal | None, ...], first: tuple[Tensor, ...]) -> int:
    """One run of every proposal, which takes no draws from the estimate; the number of plate dimensions."""
    nesting = 0
    with fork_random(first[0].device):
        for guide in guides:
            for program in _programs(guide):
                traces = run(model, program, first, {})
                fits = isinstance(guide, Proposal) and guide.fits
                (check_evidence if fits else check_proposal)(traces)
                nesting = max(nesting, plate_nesting(model, program, first, {}))
    return nesting


def _plan(args: tuple[Tensor, ...], num_particles: int) -> Iterator[tuple[tuple[Tensor, ...], list[int]]]:
    """Blocks of the data, and for each the numbers of particles of its chunks, which add up to K exactly."""
    rows = rows_of(args)
    at_once = min(num_particles, 64)
    for block in blocks(args, max(1, rows // at_once)):
        k = max(1, min(num_particles, rows // len(block[0])))
        full, rest = divmod(num_particles, k)
        yield block, [k] * full + [rest] * (rest > 0)


def _gathered(parts: Iterable[Tensor], least: int) -> Iterator[Tensor]:
    """Log-weights `[k, N]` in larger parts, of at least so many numbers but for the last."""
    waiting: list[Tensor] = []
    for part in parts:
        waiting.append(part)
        if sum(map(Tensor.numel, waiting)) >= least:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def _columns(stream: WeightStream) -> _Columns:
    log_px, smoothed = stream.log_px(), stream.smoothed()
    return _Columns(
        log_px,
        stream.se(),
        stream.interval(),
        stream.ess(),
        log_px - stream.jackknife_bias(),
        smoothed.log_px,
        smoothed.interval,
        smoothed.khat,
        torch.full(log_px.shape, stream.count),
    )


def _joined(curves: list[dict[int, tuple[Tensor, Tensor]]], total: int) -> BoundCurve:
    """The mean over all data, at the K that every block has."""
    ks = [k for k in curves[0] if all(k in curve for curve in curves)]
    means = [sum(curve[k][0].sum().item() for curve in curves) / total for k in ks]
    errors = [math.sqrt(sum(curve[k][1].sum().item() for curve in curves)) / total for k in ks]
    return BoundCurve(torch.tensor(ks), torch.tensor(means, dtype=torch.float64), torch.tensor(errors, dtype=torch.float64))


def _blamed(model: Program, guide: Program, args: tuple[Tensor, ...], nesting: int) -> str | None:
    """The first site whose log-density is nan or infinite in some of 100 draws for one datum."""
    traces = run(model, guide, args, {}, 100, nesting)
    for trace in (traces.guide, traces.model):
        for observed in (True, False):
            for name, site in traces.sites(trace, observed=observed):
                if not torch.isfinite(log_density(name, site)).all():
                    return name
    return None
