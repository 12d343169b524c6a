"""Importance sampling of blocks of data: draws with seeds of their own, streamed, dealt to processes, as memory holds them."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor

from pyroae.errors import DataError
from pyroae.evaluation.blocks import block_seed, part_of, rows_of, spans
from pyroae.evaluation.compiled_draws import CompiledDraws
from pyroae.evaluation.dealing import dealt
from pyroae.evaluation.proposals import Draw, Proposal
from pyroae.evaluation.streams import BoundCurve, CurveStream, Smoothed, WeightStream, curve_sizes, khat_limit
from pyroae.graphs import is_wanted
from pyroae.memory import Portion
from pyroae.processes import Share
from pyroae.progress import Progress
from pyroae.weights import Program, fork_random, log_density, reduce_log_weights, run

LEAST_TO_STOP = 100
"""Draws for each datum before a tolerance may end them."""
COMPILE_FROM = 2_000_000_000
"""Numbers of the data, times K, from which on a compiled graph earns back what it takes to make."""
FLUSH = 2**18
"""Log-weights that are gathered before they are added to the streams."""
LEAST = "one draw for one datum"
"""What memory has to hold."""

Curve = dict[int, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Columns:
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

    @classmethod
    def of(cls, stream: WeightStream) -> "Columns":
        """What a stream has come to, on the CPU."""
        log_px, smoothed = stream.log_px(), stream.smoothed()
        figures = (log_px, stream.se(), stream.interval(), stream.ess(), log_px - stream.jackknife_bias())
        draws = torch.full(log_px.shape, stream.count)
        return cls(*(t.cpu() for t in (*figures, smoothed.log_px, smoothed.interval, smoothed.khat, draws)))

    @classmethod
    def joined(cls, parts: "list[Columns]") -> "Columns":
        """Those of all blocks."""
        return cls(*(torch.cat(column, -1) for column in zip(*(tuple(vars(part).values()) for part in parts), strict=True)))

    @property
    def smoothed(self) -> Smoothed:
        """PSIS."""
        return Smoothed(self.smooth_log_px, self.smooth_interval, self.khat)

    def unreliable(self) -> Tensor:
        """Indices of the data whose k̂ is too high."""
        return (self.khat >= khat_limit(self.draws)).nonzero().flatten()

    def with_better(self, index: Tensor, other: "Columns") -> "Columns":
        """The figures of `other` for the data at `index` whose k̂ is lower there."""
        better = other.khat < self.khat[index]
        fields = {}
        for name, values in vars(self).items():
            fields[name] = values.clone()
            fields[name][..., index[better]] = getattr(other, name)[..., better]
        return Columns(**fields)


@dataclass(frozen=True)
class Sampler:
    """How data are sampled. seed: that of each block comes from it. share: who takes which blocks. progress: shown or not."""

    model: Program
    guide: Program | Proposal
    num_particles: int
    tolerance: float | None
    nesting: int
    compile: bool | str
    seed: int
    share: Share
    progress: bool

    def run(self, args: tuple[Tensor, ...], stage: tuple[int, ...] = ()) -> tuple[Columns, BoundCurve]:
        """Every process finds the same, whatever their number. stage: tells these draws from others of the same data.

        Raises DataError for a datum whose estimate is not finite.
        """
        total, size = len(args[0]), _block_size(args, self.num_particles)
        portion = Portion(_rows(args, self.num_particles), "draws", LEAST)
        shown = self.progress and self.share.rank == 0
        with Progress("log p(x)", total * self.num_particles, shown) as bar, pyro.validation_enabled(False):
            blocks = _Blocks(self, args, stage, size, bar)

            def block(span: range) -> list[tuple[Columns, Curve]]:
                return portion.fitted(lambda rows: blocks.sampled(span, rows))

            found = [part for parts in dealt(self.share, spans(total, size), block) for part in parts]
        columns = Columns.joined([part for part, _ in found])
        self._check(columns.log_px, args)
        return columns, _joined([curve for _, curve in found], total)

    def is_enough(self, stream: WeightStream, count: int, total: int) -> bool:
        """Whether this block has its share of the error: that of all blocks together is then the tolerance at most."""
        if self.tolerance is None or stream.count < min(LEAST_TO_STOP, self.num_particles):
            return False
        se = stream.se().square().sum().sqrt() / count
        bias = stream.jackknife_bias().mean().abs()
        share = self.tolerance / math.sqrt(2)
        return bool((se <= share * math.sqrt(total / count)) & (bias <= share))

    def _check(self, log_px: Tensor, args: tuple[Tensor, ...]) -> None:
        if not torch.isfinite(log_px).all():
            n = int((~torch.isfinite(log_px)).nonzero()[0])
            one = part_of(args, range(n, n + 1))
            with fork_random(args[0].device, block_seed(self.seed, n)):
                site = _blamed(self.model, programs_of(self.guide)[0], one, self.nesting)
            why = f"its site '{site}' has no finite log-density" if site else "the proposal misses it or overflows"
            raise DataError(f"the log-weights of datum {n} give log p(x) = {log_px[n].item()}: {why}")


class _Blocks:
    """The blocks of one process, one after another.

    size: data in a block. A graph of the draws is made where it pays, and made again for fewer draws at once.
    """

    def __init__(self, sampler: Sampler, args: tuple[Tensor, ...], stage: tuple[int, ...], size: int, bar: Progress) -> None:
        self.sampler, self.args, self.stage, self.size, self.bar = sampler, args, stage, size, bar
        wanted = is_wanted(sampler.compile, args[0].numel() * sampler.num_particles >= COMPILE_FROM)
        self._compiles = wanted and not isinstance(sampler.guide, Proposal)
        self._graph: CompiledDraws | None = None
        self._finished = self._done = 0

    def sampled(self, span: range, rows: int) -> list[tuple[Columns, Curve]]:
        """A block, with `rows` pairs of a datum and a particle at once: in parts where it has more data than that."""
        if self._compiles:
            self._compile(rows)
        self._done = self._finished
        parts = spans(len(span), min(rows, len(span)))
        found = [self._part(range(span.start + p.start, span.start + p.stop), rows) for p in parts]
        self._finished += len(span) * self.sampler.num_particles
        return found

    def _part(self, span: range, rows: int) -> tuple[Columns, Curve]:
        sampler, block = self.sampler, part_of(self.args, span)
        count, total, device = len(span), len(self.args[0]), block[0].device
        stream = WeightStream(count, device, sampler.num_particles)
        curve = CurveStream(count, device, curve_sizes(sampler.num_particles))
        chunks = _chunks(sampler.num_particles, min(self.size, rows), rows)
        with fork_random(device, block_seed(sampler.seed, span.start, *self.stage)):
            draw = self._draw(block)
            for drawn in _gathered((draw(k) for k in chunks), FLUSH if sampler.tolerance is None else 1):
                stream.add(drawn)
                curve.add(drawn)
                self._show(stream.count * count)
                if sampler.is_enough(stream, count, total):
                    break
        self._done += sampler.num_particles * count
        return Columns.of(stream), {k: (mean.cpu(), square.cpu()) for k, (mean, square) in curve.result().items()}

    def _draw(self, block: tuple[Tensor, ...]) -> Draw:
        sampler, guide, graph = self.sampler, self.sampler.guide, self._graph
        if isinstance(guide, Proposal):
            return guide.prepare(sampler.model, block, sampler.nesting)
        if graph is not None:
            return lambda k: graph(block, k)
        return lambda k: reduce_log_weights(run(sampler.model, guide, block, {}, k, sampler.nesting)).log_weight

    def _compile(self, rows: int) -> None:
        """A graph for the largest part and chunk, of the first data whoever takes them."""
        guide, count = self.sampler.guide, min(self.size, rows)
        k = _chunks(self.sampler.num_particles, count, rows)[0]
        has_it = self._graph is not None and (self._graph.num_data, self._graph.num_particles) == (count, k)
        if has_it or isinstance(guide, Proposal):
            return
        self._show(0, "compiling")
        self._graph = None
        first = part_of(self.args, range(count))
        self._graph = CompiledDraws(self.sampler.model, guide, first, k, self.sampler.nesting, "inductor")

    def _show(self, more: int, text: str = "") -> None:
        """As if all processes were as far as this one."""
        done = (self._done + more) * self.sampler.share.world
        self.bar.update(min(done, len(self.args[0]) * self.sampler.num_particles), text)


def programs_of(guide: Program | Proposal | None) -> tuple[Program, ...]:
    """The Pyro programs that a proposal is made of."""
    if guide is None:
        return ()
    return guide.programs if isinstance(guide, Proposal) else (guide,)


def _block_size(args: tuple[Tensor, ...], num_particles: int) -> int:
    """Data in a block: so few that a chunk has 64 particles of each, where there are as many."""
    return min(len(args[0]), max(1, rows_of(args) // min(num_particles, 64)))


def _rows(args: tuple[Tensor, ...], num_particles: int) -> int:
    """Pairs of a datum and a particle in a chunk of a whole block."""
    size = _block_size(args, num_particles)
    return size * _chunks(num_particles, size, rows_of(args))[0]


def _chunks(num_particles: int, num_data: int, rows: int) -> list[int]:
    """The numbers of particles of a block's chunks, which add up to K exactly."""
    k = max(1, min(num_particles, rows // num_data))
    full, rest = divmod(num_particles, k)
    return [k] * full + [rest] * (rest > 0)


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


def _joined(curves: list[Curve], total: int) -> BoundCurve:
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
