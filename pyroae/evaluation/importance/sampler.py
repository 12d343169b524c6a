"""Importance sampling of all data, block by block, on one or several processes and threads.

Log-weights are streamed: they are reduced as they are drawn and not stored. Where memory runs out,
chunks are halved.
"""

import math
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyroae.compilation.codegen import should_compile
from pyroae.distributed.work_sharing import distribute
from pyroae.errors import DataError
from pyroae.evaluation.blocks import FOR_GPU, part_of, part_seed, rows_of
from pyroae.evaluation.importance.above import UpperStream
from pyroae.evaluation.importance.per_datum import Columns, Curve, joined_curve
from pyroae.evaluation.importance.plan import Plan, block_size
from pyroae.evaluation.importance.proposals import Proposal
from pyroae.evaluation.importance.streams import (
    LEAST_ESS,
    BoundCurve,
    CurveStream,
    WeightStream,
    curve_sizes,
)
from pyroae.evaluation.importance.tasks import DrawTasks
from pyroae.programs.paired_traces import log_density
from pyroae.programs.particles import LOOP
from pyroae.programs.sites import Program
from pyroae.programs.traces import run
from pyroae.runtime.memory import ChunkSize
from pyroae.runtime.processes import Share
from pyroae.runtime.progress import Progress
from pyroae.runtime.randomness import fork_random
from pyroae.runtime.threads import Threads, one_core_each

LEAST_TO_STOP = 100
"""Draws per datum before a tolerance may end the sampling of a block."""


COMPILE_FROM = 2_000_000_000
"""The number of elements of the data times K from which on compilation saves time."""


LEAST_OF_PROGRAM, LEAST_OF_GRAPH = 64, 32
"""Draws per datum that one chunk of a whole block holds at least, where K is not smaller.

A graph runs the encoder once for all chunks.
"""


CHUNKS_PER_TASK = 4
"""The number of chunks that a graph computes in a call of C++ code."""


FLUSH = 2**16
"""The number of log-weights that are gathered before they are added to the streams."""


LEAST = "one draw for one datum"
"""The smallest work that must fit into memory, as error messages name it."""


@dataclass(frozen=True)
class Sampler:
    """Settings of importance sampling, and the sampling of all data under them.

    Attributes:
        model: The Pyro program p(z) p(x|z).
        guide: The proposal.
        num_particles: K, the number of draws per datum; the largest one if a tolerance is given.
        tolerance: The error of the mean log p(x) at which draws end, in nats per datum; None for K
            draws of each datum.
        nesting: The number of plate dimensions.
        apart: Whether each datum has draws of its own of the latent sites outside the data plate.
        compile: Whether draws and weights are compiled; "auto" if there is enough work.
        seed: The seed from which the seeds of all blocks are derived; or the seed of each datum,
            `[N]`, which then is a block of its own.
        share: The rank of this process and the number of processes, which share the blocks.
        progress: Whether a progress bar is shown.
    """

    model: Program
    guide: Program | Proposal
    num_particles: int
    tolerance: float | None
    nesting: int
    apart: bool
    compile: bool | str
    seed: int | tuple[int, ...]
    share: Share
    progress: bool

    def run(self, args: tuple[Tensor, ...], stage: int = 0) -> tuple[Columns, BoundCurve]:
        """Sample all data. Every process returns the same, whatever the number of processes.

        Args:
            args: Arguments of the model and of the guide, `[N, ...]` each.
            stage: Distinguishes repeated draws for the same data.

        Returns:
            The estimates of each datum, and the mean bound for each smaller K, in nats per datum.

        Raises:
            DataError: For a datum whose estimate is not finite, with its index and the site.
        """
        compiles, total = self.compiles(args), len(args[0])
        plan = self._plan(args, compiles)
        chunk_size = ChunkSize(plan.part_size * plan.chunks[0], "draws", LEAST)
        shown = self.progress and self.share.rank == 0
        bar = Progress("log p(x)", total * self.num_particles, shown)
        tasks = DrawTasks(self.model, self.guide, args, self.nesting, self.seed, stage)
        with pyro.validation_enabled(False), bar, ExitStack() as stack:
            runner = _Runner(self, tasks, plan, compiles, bar, stack)
            blocks = distribute(
                self.share,
                plan.blocks,
                lambda block: chunk_size.fitted(partial(runner.run, block)),
            )
        parts = list(chain.from_iterable(blocks))
        columns = Columns.joined([part for part, _ in parts])
        self._check(columns.log_px, args)
        return columns, joined_curve([curve for _, curve in parts], total)

    def compiles(self, args: tuple[Tensor, ...]) -> bool:
        """Tell whether the draws for these data are compiled.

        They are not under a `Proposal`, nor where particles are run in a loop, since the graph
        would then contain the run of every particle.

        Args:
            args: Arguments of the model and of the guide, `[N, ...]` each.

        Returns:
            What `compile` asks for, if the draws can be compiled.
        """
        if self.nesting >= LOOP:
            return False
        wanted = should_compile(self.compile, args[0].numel() * self.num_particles >= COMPILE_FROM)
        return wanted and not isinstance(self.guide, Proposal)

    def is_enough(self, stream: WeightStream, count: int, total: int) -> bool:
        """Tell whether the error of a block is small enough for the tolerance.

        If it is so for every block, the error of the mean over all data is the tolerance at most.
        A standard error from an ESS near 1 is not accepted: it is at most 1 nat per datum, however
        wrong the estimate is.

        Args:
            stream: The log-weights of the block so far.
            count: The number of data in the block.
            total: N, the number of all data.

        Returns:
            Whether sampling of the block may end; False without a tolerance.
        """
        if self.tolerance is None or stream.count < min(LEAST_TO_STOP, self.num_particles):
            return False
        se = stream.se().square().sum().sqrt() / count
        bias = stream.jackknife_bias().mean().abs()
        limit = self.tolerance / math.sqrt(2)
        accepted = (stream.ess() >= min(LEAST_ESS, self.num_particles)).all()
        return bool((se <= limit * math.sqrt(total / count)) & (bias <= limit) & accepted)

    def _plan(self, args: tuple[Tensor, ...], compiles: bool) -> Plan:
        total, rows = len(args[0]), rows_of(args, compiles)
        is_single = self.apart or not isinstance(self.seed, int)
        least = LEAST_OF_GRAPH if compiles else LEAST_OF_PROGRAM
        size = 1 if is_single else block_size(total, self.num_particles, rows, least)
        if compiles:  # blocks of a graph are filled up
            size = math.ceil(total / math.ceil(total / size))
        if not compiles:
            return Plan(total, self.num_particles, size, rows)
        apart = 2 * CHUNKS_PER_TASK if self.tolerance is None else 0
        return Plan(total, self.num_particles, size, rows, CHUNKS_PER_TASK, apart)

    def _check(self, log_px: Tensor, args: tuple[Tensor, ...]) -> None:
        if not torch.isfinite(log_px).all():
            n = int((~torch.isfinite(log_px)).nonzero()[0])
            one = part_of(args, range(n, n + 1))
            with (
                fork_random(args[0].device, part_seed(self.seed, n)),
                pyro.validation_enabled(False),
            ):
                site = _nonfinite_site(self.model, programs_of(self.guide)[0], one, self.nesting)
            why = (
                f"its site '{site}' has no finite log-density"
                if site
                else "the proposal misses it or overflows"
            )
            raise DataError(
                f"the log-weights of datum {n} give log p(x) = {log_px[n].item()}: {why}"
            )


class _Runner:
    """Runs the tasks of one process, and reduces their log-weights to estimates.

    If a graph allows threads, they run the tasks of later blocks ahead. `stack` closes the threads.
    """

    def __init__(
        self,
        sampler: Sampler,
        tasks: DrawTasks,
        plan: Plan,
        compiles: bool,
        bar: Progress,
        stack: ExitStack,
    ) -> None:
        self.sampler, self.tasks, self.plan, self.compiles = sampler, tasks, plan, compiles
        self.bar, self.stack = bar, stack
        self._threads: Threads | None = None
        self._pending: Generator[Tensor] | None = None
        self._done = 0

    def run(self, block: range, rows: int) -> list[tuple[Columns, Curve]]:
        """Sample a block in chunks of at most `rows` pairs; one result for each of its parts."""
        plan, done = replace(self.plan, rows=rows), self._done
        try:
            if self.compiles and not self.tasks.have_graph(plan):
                self._show(0, "compiling")
                self.tasks.compile(plan)
            return [self._sampled(part, plan) for part in plan.parts(block)]
        except BaseException:
            self._done = done
            self._cancel()
            raise

    def _sampled(self, part: range, plan: Plan) -> tuple[Columns, Curve]:
        sampler, count, most = self.sampler, len(part), plan.num_particles
        device = self.tasks.args[0].device
        stream, upper = WeightStream(count, device, most), UpperStream(count, device)
        curve = CurveStream(count, device, curve_sizes(most))
        draws = self._gathered_draws(part, plan)
        for log_weight in _gathered(self._log_weights(part, plan), draws):
            stream.add(log_weight)
            curve.add(log_weight)
            upper.add(log_weight)
            self._show(stream.count * count)
            if sampler.is_enough(stream, count, plan.num_data):
                break
        if sampler.tolerance is not None:
            self._cancel()
        self._done += most * count
        return Columns.of(stream, upper), {
            k: (mean.cpu(), square.cpu()) for k, (mean, square) in curve.result().items()
        }

    def _gathered_draws(self, part: range, plan: Plan) -> int:
        """The number of draws per datum that are added to the streams at once.

        It is that of a task under a tolerance, which may end the draws, and otherwise, if possible,
        one of the numbers of particles of the curve: fewer of its groups stay open.
        """
        least = sum(draws for _, draws in plan.tasks(part)[0])
        if self.sampler.tolerance is not None:
            return least
        flush = FLUSH if self.tasks.args[0].device.type == "cpu" else FLUSH * FOR_GPU
        most = flush // len(part)
        sizes = [size for size in curve_sizes(plan.num_particles) if size <= most]
        return max([least, *sizes[-1:]])

    def _log_weights(self, part: range, plan: Plan) -> Iterator[Tensor]:
        """The log-weights of a part, task by task; without a tolerance later parts are begun."""
        if self._pending is None:
            ahead = self.sampler.tolerance is None
            parts = plan.parts_from(part.start, self.sampler.share) if ahead else [part]
            tasks = chain.from_iterable(self.tasks.of(each, plan) for each in parts)
            self._pending = self._pool().in_order(tasks)
        return islice(self._pending, len(plan.tasks(part)))

    def _pool(self) -> Threads:
        """The threads, started when the first graph allows them."""
        if not self.tasks.are_for_threads:
            return Threads()
        if self._threads is None:
            self._threads = self.stack.enter_context(one_core_each())
            self.stack.callback(self._cancel)
        return self._threads

    def _cancel(self) -> None:
        """Cancel the tasks that were begun ahead."""
        if self._pending is not None:
            self._pending.close()
        self._pending = None

    def _show(self, more: int, text: str = "") -> None:
        """Show the progress, on the assumption that all processes are equally far."""
        done = (self._done + more) * self.sampler.share.world
        self.bar.update(min(done, self.plan.num_data * self.plan.num_particles), text)


def programs_of(guide: Program | Proposal | None) -> tuple[Program, ...]:
    """List the Pyro programs of a proposal.

    Args:
        guide: A Pyro program, a `Proposal`, or None.

    Returns:
        The program itself, the programs of the `Proposal`, or none.
    """
    if guide is None:
        return ()
    return guide.programs if isinstance(guide, Proposal) else (guide,)


def _gathered(parts: Iterable[Tensor], rows: int) -> Iterator[Tensor]:
    """Log-weights `[k, N]`, joined or divided into parts of so many draws, float64.

    Log-weights are copied into one buffer: small tensors kept between large temporary ones would
    fragment the memory, by up to half a gigabyte.
    """
    buffer, count = torch.empty(0), 0
    for part in parts:
        if not len(buffer):
            buffer = part.new_empty(rows, part.shape[1])
        for piece in (part[: rows - count], *part[rows - count :].split(rows)):
            buffer[count : count + len(piece)] = piece
            count += len(piece)
            if count == rows:
                yield buffer.to(torch.float64, copy=True)
                count = 0
    if count:
        yield buffer[:count].to(torch.float64, copy=True)


def _nonfinite_site(
    model: Program, guide: Program, args: tuple[Tensor, ...], nesting: int
) -> str | None:
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
