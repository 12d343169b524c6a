"""Importance sampling of blocks of data: draws with seeds of their own, streamed, dealt to processes, as memory holds them."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import batched, chain, islice

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyroae.compilation.codegen import should_compile
from pyroae.distributed.work_sharing import distribute
from pyroae.errors import DataError
from pyroae.evaluation.blocks import FOR_CORE, FOR_GPU, block_seed, part_of, rows_of, spans
from pyroae.evaluation.importance.compiled import CompiledDraws, Weights
from pyroae.evaluation.importance.per_datum import Columns, Curve, joined_curve
from pyroae.evaluation.importance.proposals import Draw, Proposal
from pyroae.evaluation.importance.streams import (
    LEAST_ESS,
    BoundCurve,
    CurveStream,
    WeightStream,
    curve_sizes,
)
from pyroae.programs.context import fork_random
from pyroae.programs.particles import LOOP
from pyroae.programs.sites import Program
from pyroae.programs.traces import log_density, run
from pyroae.runtime.memory import Portion
from pyroae.runtime.processes import Share
from pyroae.runtime.progress import Progress
from pyroae.runtime.threads import Threads, one_core_each
from pyroae.weights import reduce_log_weights

LEAST_TO_STOP = 100
"""Draws for each datum before a tolerance may end them."""


COMPILE_FROM = 2_000_000_000
"""Numbers of the data, times K, from which on a compiled graph earns back what it takes to make."""


FLUSH = 2**18
"""Log-weights that are gathered before they are added to the streams."""


LEAST = "one draw for one datum"
"""What memory has to hold."""


@dataclass(frozen=True)
class Sampler:
    """How data are sampled. apart: each datum has draws of its own also of latent sites outside the data plate.

    seed: that of each block comes from it. share: who takes which blocks. progress: shown or not.
    """

    model: Program
    guide: Program | Proposal
    num_particles: int
    tolerance: float | None
    nesting: int
    apart: bool
    compile: bool | str
    seed: int
    share: Share
    progress: bool

    def run(self, args: tuple[Tensor, ...], stage: int = 0) -> tuple[Columns, BoundCurve]:
        """Every process finds the same, whatever their number. stage: tells these draws from others of the same data.

        Raises DataError for a datum whose estimate is not finite.
        """
        total, most = len(args[0]), rows_of(args, self.compiles(args))
        size = 1 if self.apart else _block_size(total, self.num_particles, most)
        portion = Portion(size * _chunks(self.num_particles, size, most)[0], "draws", LEAST)
        shown = self.progress and self.share.rank == 0
        bar = Progress("log p(x)", total * self.num_particles, shown)
        with pyro.validation_enabled(False), bar, _Blocks(self, args, stage, size, bar) as blocks:

            def block(span: range) -> list[tuple[Columns, Curve]]:
                return portion.fitted(lambda rows: blocks.sampled(span, rows))

            found = [
                part
                for parts in distribute(self.share, spans(total, size), block)
                for part in parts
            ]
        columns = Columns.joined([part for part, _ in found])
        self._check(columns.log_px, args)
        return columns, joined_curve([curve for _, curve in found], total)

    def compiles(self, args: tuple[Tensor, ...]) -> bool:
        """Whether the draws for these data are to be code: not where a graph would hold every particle's run."""
        if self.nesting >= LOOP:
            return False
        wanted = should_compile(self.compile, args[0].numel() * self.num_particles >= COMPILE_FROM)
        return wanted and not isinstance(self.guide, Proposal)

    def is_enough(self, stream: WeightStream, count: int, total: int) -> bool:
        """Whether this block has its share of the error: that of all blocks together is then the tolerance at most.

        An error from an ESS near 1 does not count: it is at most 1 nat per datum, however wrong the estimate is.
        """
        if self.tolerance is None or stream.count < min(LEAST_TO_STOP, self.num_particles):
            return False
        se = stream.se().square().sum().sqrt() / count
        bias = stream.jackknife_bias().mean().abs()
        share = self.tolerance / math.sqrt(2)
        known = (stream.ess() >= min(LEAST_ESS, self.num_particles)).all()
        return bool((se <= share * math.sqrt(total / count)) & (bias <= share) & known)

    def _check(self, log_px: Tensor, args: tuple[Tensor, ...]) -> None:
        if not torch.isfinite(log_px).all():
            n = int((~torch.isfinite(log_px)).nonzero()[0])
            one = part_of(args, range(n, n + 1))
            with (
                fork_random(args[0].device, block_seed(self.seed, n)),
                pyro.validation_enabled(False),
            ):
                site = _blamed(self.model, programs_of(self.guide)[0], one, self.nesting)
            why = (
                f"its site '{site}' has no finite log-density"
                if site
                else "the proposal misses it or overflows"
            )
            raise DataError(
                f"the log-weights of datum {n} give log p(x) = {log_px[n].item()}: {why}"
            )


class _Blocks(ExitStack):
    """The blocks of one process, one after another; each chunk of particles draws from a seed of its own.

    size: data in a block. A graph of the draws is made where it pays, and made again for fewer draws at once; threads then do
    the chunks, where the graph lets them, those of the next blocks too before these are asked for.
    """

    def __init__(
        self, sampler: Sampler, args: tuple[Tensor, ...], stage: int, size: int, bar: Progress
    ) -> None:
        super().__init__()
        self.sampler, self.args, self.stage, self.size, self.bar = sampler, args, stage, size, bar
        self._compiles = sampler.compiles(args)
        self._graph: CompiledDraws | None = None
        self._threads: Threads | None = None
        self._coming: Generator[Tensor] | None = None
        self._finished = self._done = 0

    def sampled(self, span: range, rows: int) -> list[tuple[Columns, Curve]]:
        """A block, with `rows` pairs of a datum and a particle at once: in parts where it has more data than that."""
        if self._compiles:
            self._compile(rows)
        self._done = self._finished
        try:
            found = [self._part(part, rows) for part in _parts(span, rows)]
        except BaseException:
            self._stop()
            raise
        self._finished += len(span) * self.sampler.num_particles
        return found

    def _part(self, part: range, rows: int) -> tuple[Columns, Curve]:
        sampler, count, total, device = (
            self.sampler,
            len(part),
            len(self.args[0]),
            self.args[0].device,
        )
        stream = WeightStream(count, device, sampler.num_particles)
        curve = CurveStream(count, device, curve_sizes(sampler.num_particles))
        flush = FLUSH if device.type == "cpu" else FLUSH * FOR_GPU
        least = flush if sampler.tolerance is None else 1
        for drawn in _gathered(self._drawn(part, rows), least, sampler.num_particles):
            stream.add(drawn)
            curve.add(drawn)
            self._show(stream.count * count)
            if sampler.is_enough(stream, count, total):
                break
        if sampler.tolerance is not None:
            self._stop()
        self._done += sampler.num_particles * count
        return Columns.of(stream), {
            k: (mean.cpu(), square.cpu()) for k, (mean, square) in curve.result().items()
        }

    def _drawn(self, part: range, rows: int) -> Iterator[Tensor]:
        """The log-weights of a part, chunk by chunk. Where each part has all its chunks, those after it are on their way."""
        if self._coming is None:
            parts = [part] if self.sampler.tolerance is not None else self._from(part, rows)
            tasks = chain.from_iterable(self._tasks(each, rows) for each in parts)
            self._coming = self._hands().in_order(tasks)
        return islice(self._coming, len(self._groups(rows)))

    def _from(self, part: range, rows: int) -> list[range]:
        """This part of the process's data, and those after it."""
        share = self.sampler.share
        mine = spans(len(self.args[0]), self.size)[share.rank :: share.world]
        return [each for span in mine for each in _parts(span, rows) if each.start >= part.start]

    def _tasks(self, part: range, rows: int) -> Iterator[Callable[[], Tensor]]:
        """What gives the chunks of a part, a few of them where they are small."""
        draw = self._draw(part)
        for group in self._groups(rows):
            yield partial(_joined, draw, [(k, self._seed(part, i)) for i, k in group])

    def _draw(self, part: range) -> Weights:
        """What draws for the data of a part."""
        model, guide, nesting = self.sampler.model, self.sampler.guide, self.sampler.nesting
        block = part_of(self.args, part)
        if self._graph is not None:
            return self._graph.prepare(block)
        device = block[0].device
        if isinstance(guide, Proposal):
            with fork_random(device, self._seed(part)):
                return partial(_seeded, device, guide.prepare(model, block, nesting))
        return partial(
            _seeded,
            device,
            lambda k: reduce_log_weights(run(model, guide, block, {}, k, nesting)).log_weight,
        )

    def _seed(self, part: range, *chunk: int) -> int:
        return block_seed(self.sampler.seed, part.start, self.stage, *chunk)

    def _chunks(self, rows: int) -> list[int]:
        return _chunks(self.sampler.num_particles, min(self.size, rows), rows)

    def _groups(self, rows: int) -> list[tuple[tuple[int, int], ...]]:
        """The chunks of a task: their numbers, and their particles."""
        return list(batched(enumerate(self._chunks(rows)), FOR_CORE if self._compiles else 1))

    def _hands(self) -> Threads:
        """Threads, once there is a graph for them."""
        if self._graph is None or not self._graph.is_for_threads:
            return Threads()
        if self._threads is None:
            self._threads = self.enter_context(one_core_each())
            self.callback(self._stop)
        return self._threads

    def _stop(self) -> None:
        """Leave what was begun ahead."""
        if self._coming is not None:
            self._coming.close()
        self._coming = None

    def _compile(self, rows: int) -> None:
        """A graph for the largest part and chunk, of the first data whoever takes them."""
        guide, count, k = self.sampler.guide, min(self.size, rows), self._chunks(rows)[0]
        has_it = self._graph is not None and (self._graph.num_data, self._graph.num_particles) == (
            count,
            k,
        )
        if has_it or isinstance(guide, Proposal):
            return
        self._show(0, "compiling")
        self._graph = None
        first = part_of(self.args, range(count))
        self._graph = CompiledDraws(
            self.sampler.model, guide, first, k, self.sampler.nesting, "inductor"
        )

    def _show(self, more: int, text: str = "") -> None:
        """As if all processes were as far as this one."""
        done = (self._done + more) * self.sampler.share.world
        self.bar.update(min(done, len(self.args[0]) * self.sampler.num_particles), text)


def programs_of(guide: Program | Proposal | None) -> tuple[Program, ...]:
    """The Pyro programs that a proposal is made of."""
    if guide is None:
        return ()
    return guide.programs if isinstance(guide, Proposal) else (guide,)


def _block_size(num_data: int, num_particles: int, rows: int) -> int:
    """Data in a block: so few that a chunk of so many rows has 64 particles of each, where there are as many."""
    return min(num_data, max(1, rows // min(num_particles, 64)))


def _parts(span: range, rows: int) -> list[range]:
    """The parts of a block that one chunk can have."""
    return [
        range(span.start + p.start, span.start + p.stop)
        for p in spans(len(span), min(rows, len(span)))
    ]


def _joined(draw: Weights, chunks: Sequence[tuple[int, int]]) -> Tensor:
    """Chunks of so many particles each, from seeds of their own, one after the other."""
    return torch.cat([draw(k, seed) for k, seed in chunks])


def _seeded(device: torch.device, draw: Draw, num_particles: int, seed: int) -> Tensor:
    with fork_random(device, seed):
        return draw(num_particles)


def _chunks(num_particles: int, num_data: int, rows: int) -> list[int]:
    """The numbers of particles of a block's chunks, which add up to K exactly."""
    k = max(1, min(num_particles, rows // num_data))
    full, rest = divmod(num_particles, k)
    return [k] * full + [rest] * (rest > 0)


def _gathered(parts: Iterable[Tensor], least: int, most: int) -> Iterator[Tensor]:
    """Log-weights `[k, N]` in larger parts, float64, of at least so many numbers but for the last; most: particles in all.

    They are copied to one place: small tensors that are kept between the large ones that come and go would have these lie ever
    further apart, up to half a gigabyte.
    """
    room, count = torch.empty(0), 0
    for part in parts:
        if not len(room):
            room = part.new_empty(min(most, least // part.shape[1] + 1 + len(part)), part.shape[1])
        room[count : count + len(part)] = part
        count += len(part)
        if count * part.shape[1] >= least:
            yield room[:count].to(torch.float64, copy=True)
            count = 0
    if count:
        yield room[:count].to(torch.float64, copy=True)


def _blamed(model: Program, guide: Program, args: tuple[Tensor, ...], nesting: int) -> str | None:
    """The first site whose log-density is nan or infinite in some of 100 draws for one datum."""
    traces = run(model, guide, args, {}, 100, nesting)
    for trace in (traces.guide, traces.model):
        for observed in (True, False):
            for name, site in traces.sites(trace, observed=observed):
                if not torch.isfinite(
                    scale_and_mask(log_density(name, site), mask=site["mask"])
                ).all():
                    return name
    return None
