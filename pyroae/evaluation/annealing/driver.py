"""All the data taken along an annealing path: in blocks that are dealt to processes, as memory holds them, kept on disk."""

from torch import Tensor

from pyroae.distributed.work_sharing import dealt
from pyroae.evaluation.annealing.block import Block, Plan
from pyroae.evaluation.annealing.checkpoint import Checkpoint
from pyroae.evaluation.annealing.compiled import PathGraphs
from pyroae.evaluation.blocks import block_seed, part_of, spans
from pyroae.programs.context import fork_random
from pyroae.runtime.memory import Portion
from pyroae.runtime.processes import Share
from pyroae.runtime.progress import Progress
from pyroae.runtime.signals import DeferredSignals

Found = dict[int, dict[str, Tensor]]
"""What blocks have come to, on the CPU, by their first datum."""


class Annealing:
    """The work on all blocks. size: data in a block. compiles: whether densities and gradients are graphs.

    Signals that would end the process wait for the end of a move, so that what is kept is no older.
    """

    def __init__(
        self,
        plan: Plan,
        args: tuple[Tensor, ...],
        size: int,
        kept: Checkpoint,
        share: Share,
        compiles: bool,
        bar: Progress,
    ) -> None:
        self.plan, self.args, self.kept, self.share = plan, args, kept, share
        self._blocks, self._known = spans(len(args[0]), size), kept.meet(share)
        least = f"the {plan.num_chains} chains of one datum"
        self._portion = Portion(min(size, kept.size or size), "data", least)
        self._compiles, self._bar, self._done = compiles, bar, 0
        self._graphs: PathGraphs | None = None

    def run(self) -> list[dict[str, Tensor]]:
        """What every block has come to, in the order of the data; the same on every process."""
        todo = [span for span in self._blocks if not self._is_known(span)]
        self._done = (len(self._blocks) - len(todo)) * self.plan.moves
        with DeferredSignals(self.kept.path is not None) as self._held:
            for found in dealt(self.share, todo, self._block):
                self._known |= found
        return [self._known[first] for first in sorted(self._known)]

    def _block(self, span: range) -> Found:
        return self._portion.fitted(lambda size: self._in_parts(span, size))

    def _in_parts(self, span: range, size: int) -> Found:
        """A block, with so many data at once; parts that are known already are not done again."""
        self.kept.size = size
        found, at = {}, span.start
        while at < span.stop:
            if at not in self._known:
                stop = min([at + size, span.stop, *(first for first in self._known if first > at)])
                self._known[at] = self._part(range(at, stop), min(size, len(self._blocks[0])))
            found[at] = self._known[at]
            at += _count(found[at])
        return found

    def _part(self, span: range, size: int) -> dict[str, Tensor]:
        """Data that go along the path together."""
        block = Block(self.plan, part_of(self.args, span), graphs=self._graphs_of(size))
        left = self.kept.left.pop(span.start, None)
        if left is not None and left["num_data"] == len(span):
            block.go_on_from(left)

        def after() -> None:
            self._done += self.share.world
            self.kept.tick(span.start, block, now=self._held.is_waiting)
            self._held.release()
            self._show()

        with fork_random(self.args[0].device, block_seed(self.kept.seed, span.start)):
            found = block.run(after)
        found = {name: value.cpu() for name, value in found.items() if name != "u"}
        self.kept.finish(span.start, found)
        return found

    def _is_known(self, span: range) -> bool:
        at = span.start
        while at < span.stop and at in self._known:
            at += _count(self._known[at])
        return at >= span.stop

    def _graphs_of(self, size: int) -> PathGraphs | None:
        """Graphs for so many data at once."""
        if self._compiles and (self._graphs is None or self._graphs.num_data != size):
            plan = self.plan
            self._graphs = PathGraphs(
                plan.model, plan.guide, plan.nesting, size, lambda: self._show("compiling")
            )
        return self._graphs

    def _show(self, text: str = "") -> None:
        """As if all processes were as far as this one."""
        self._bar.update(min(self._done, len(self._blocks) * self.plan.moves), text)


def _count(found: dict[str, Tensor]) -> int:
    """The data of a block that is finished."""
    return found["log_weights"].shape[1]
