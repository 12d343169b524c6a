"""Annealing of all data: blocks that fit memory, shared between processes and kept on disk."""

from contextlib import ExitStack
from functools import partial

from torch import Tensor

from pyroae.distributed.work_sharing import distribute
from pyroae.evaluation.annealing.block import Block
from pyroae.evaluation.annealing.checkpoint import Checkpoint
from pyroae.evaluation.annealing.compiled import PathGraphs
from pyroae.evaluation.annealing.plan import Plan
from pyroae.evaluation.annealing.results import BlockResult
from pyroae.evaluation.blocks import block_seed, part_of, spans
from pyroae.runtime.memory import ChunkSize
from pyroae.runtime.processes import Share
from pyroae.runtime.progress import Progress
from pyroae.runtime.randomness import fork_random
from pyroae.runtime.signals import DeferredSignals
from pyroae.runtime.threads import Threads, one_core_each

Results = dict[int, BlockResult]
"""Results of blocks, on the CPU, by the index of their first datum."""


class Annealing:
    """Run a plan on all blocks of data.

    Signals that would end the process are held until the end of a move, so that the checkpoint is
    written first.

    Args:
        plan: The operations on every block.
        args: Arguments of the programs, `[N, ...]` each.
        size: Number of data of a block.
        checkpoint: The file of the run.
        share: The part of this process in the work.
        compiles: Whether densities and gradients are compiled.
        bar: The progress bar, in moves.
    """

    def __init__(
        self,
        plan: Plan,
        args: tuple[Tensor, ...],
        size: int,
        checkpoint: Checkpoint,
        share: Share,
        compiles: bool,
        bar: Progress,
    ) -> None:
        self.plan, self.args, self.checkpoint, self.share = plan, args, checkpoint, share
        self._blocks, self._finished = spans(len(args[0]), size), checkpoint.meet(share)
        smallest = f"the {plan.settings.num_chains} chains of one datum"
        self._portion = ChunkSize(min(size, checkpoint.size or size), "data", smallest)
        self._compiles, self._bar, self._moves = compiles, bar, 0
        self._graphs: PathGraphs | None = None
        self._threads: Threads | None = None

    def run(self) -> list[BlockResult]:
        """Run all blocks that have not finished.

        Returns:
            The results of all blocks, in the order of the data; the same on every process.
        """
        todo = [span for span in self._blocks if not self._is_finished(span)]
        self._moves = (len(self._blocks) - len(todo)) * self.plan.moves
        self._bar.begin(self._moves)
        deferred = DeferredSignals(self.checkpoint.path is not None)
        with ExitStack() as self._stack, deferred as self._held:
            for results in distribute(self.share, todo, self._block):
                self._finished |= results
        return [self._finished[first] for first in sorted(self._finished)]

    def _block(self, span: range) -> Results:
        return self._portion.fitted(lambda size: self._in_parts(span, size))

    def _in_parts(self, span: range, size: int) -> Results:
        """A block, `size` data at a time; parts that have finished are not run again."""
        self.checkpoint.size = size
        results, at = {}, span.start
        while at < span.stop:
            if at not in self._finished:
                later = (first for first in self._finished if first > at)
                part = range(at, min([at + size, span.stop, *later]))
                self._finished[at] = self._part(part, min(size, len(self._blocks[0])))
            results[at] = self._finished[at]
            at += results[at].num_data
        return results

    def _part(self, span: range, size: int) -> BlockResult:
        """Data that follow the path together. size: N of the graphs."""
        block = Block(self.plan, part_of(self.args, span), graphs=self._graphs_of(size))
        snapshot = self.checkpoint.unfinished.pop(span.start, None)
        if snapshot is not None and snapshot["num_data"] == len(span):
            block.restore(snapshot)
            self._moves += block.moves * self.share.world
            self._bar.begin(self._moves)

        def after_move(count: int) -> None:
            block.moves += count
            self._moves += count * self.share.world
            self.checkpoint.tick(span.start, block, now=self._held.is_waiting)
            self._held.release()
            self._show()

        with fork_random(self.args[0].device, block_seed(self.checkpoint.seed, span.start)):
            result = block.run(after_move)
        result.u = None
        result = result.map(Tensor.cpu)
        self.checkpoint.finish(span.start, result)
        return result

    def _is_finished(self, span: range) -> bool:
        at = span.start
        while at < span.stop and at in self._finished:
            at += self._finished[at].num_data
        return at >= span.stop

    def _graphs_of(self, size: int) -> PathGraphs | None:
        """Graphs for `size` data."""
        if self._compiles and (self._graphs is None or self._graphs.num_data != size):
            announce = partial(self._show, "compiling")
            self._graphs = PathGraphs(self.plan, size, announce, self._started)
        return self._graphs

    def _started(self) -> Threads:
        """The threads, started when the first graph needs them; eager code divides operations."""
        if self._threads is None:
            self._threads = self._stack.enter_context(one_core_each())
        return self._threads

    def _show(self, text: str = "") -> None:
        """Show the progress, assuming that of this process for all."""
        self._bar.update(min(self._moves, len(self._blocks) * self.plan.moves), text)
