"""Make the tasks that draw chunks of log-weights, from the programs or from a compiled graph."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from pyroae.evaluation.blocks import part_of, part_seed
from pyroae.evaluation.importance.compiled import Chunks, CompiledDraws
from pyroae.evaluation.importance.plan import Plan
from pyroae.evaluation.importance.proposals import Draw, Proposal
from pyroae.programs.sites import Program
from pyroae.programs.traces import run
from pyroae.runtime.randomness import fork_random
from pyroae.weights import reduce_log_weights


class DrawTasks:
    """The tasks that draw the log-weights of N data.

    The seed of a chunk depends on `seed`, on the first datum of its part, on `stage` and on the
    index of the chunk. It does not depend on the process or the thread that runs the task.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The proposal.
        args: Arguments of the model and of the guide, `[N, ...]` each.
        nesting: The number of plate dimensions.
        seed: The seed from which the seeds of all chunks are derived, or that of each datum,
            `[N]`, for parts of one datum.
        stage: Distinguishes repeated draws for the same data.
    """

    def __init__(
        self,
        model: Program,
        guide: Program | Proposal,
        args: tuple[Tensor, ...],
        nesting: int,
        seed: int | tuple[int, ...],
        stage: int,
    ) -> None:
        self.model, self.guide, self.args, self.nesting = model, guide, args, nesting
        self.seed, self.stage = seed, stage
        self._graph: CompiledDraws | None = None

    @property
    def are_for_threads(self) -> bool:
        """Whether several threads may run tasks at once, each on one core."""
        return self._graph is not None and self._graph.is_for_threads

    def have_graph(self, plan: Plan) -> bool:
        """Tell whether there is a graph for the largest part and chunk of a plan.

        Args:
            plan: The division of the data and draws.

        Returns:
            True if `compile` has been called for the same shapes.
        """
        shape = (plan.part_size, plan.chunks[0])
        return self._graph is not None and shape == (
            self._graph.num_data,
            self._graph.num_particles,
        )

    def compile(self, plan: Plan) -> None:
        """Compile a graph for the largest part and chunk; the first data are its example.

        Args:
            plan: The division of the data and draws.
        """
        if isinstance(self.guide, Proposal):
            return
        self._graph = None  # frees the memory of the previous graph
        first = part_of(self.args, range(plan.part_size))
        self._graph = CompiledDraws(self.model, self.guide, first, plan.chunks[0], self.nesting)

    def of(self, part: range, plan: Plan) -> Iterator[Callable[[], Tensor]]:
        """Make the tasks of one part.

        Args:
            part: Indices of the data.
            plan: The division of the data and draws.

        Yields:
            Functions without arguments that return log-weights `[k, len(part)]`, in nats.
        """
        draw = self._draw(part)
        for chunks in plan.tasks(part):
            yield partial(draw, [(k, self._seed(part, i)) for i, k in chunks])

    def _draw(self, part: range) -> Callable[[Chunks], Tensor]:
        """The function from chunks to log-weights of a part."""
        model, guide, nesting = self.model, self.guide, self.nesting
        block = part_of(self.args, part)
        if self._graph is not None:
            return self._graph.prepare_chunks(block)
        device = block[0].device
        if isinstance(guide, Proposal):
            with fork_random(device, self._seed(part)):
                return partial(_joined, device, guide.prepare(model, block, nesting))
        return partial(
            _joined,
            device,
            lambda k: reduce_log_weights(run(model, guide, block, {}, k, nesting)).log_weight,
        )

    def _seed(self, part: range, *chunk: int) -> int:
        return part_seed(self.seed, part.start, self.stage, *chunk)


def _joined(device: torch.device, draw: Draw, chunks: Chunks) -> Tensor:
    """The concatenated log-weights of chunks."""
    return torch.cat([_seeded(device, draw, k, seed) for k, seed in chunks])


def _seeded(device: torch.device, draw: Draw, num_particles: int, seed: int) -> Tensor:
    with fork_random(device, seed):
        return draw(num_particles)
