"""Transitions along an annealing path as compiled code.

On a CPU they are loops of one graph (`chunks`). On a GPU, where the condition of a loop would wait
for the device, only densities and gradients are compiled.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from pyro import poutine
from torch import Tensor

from pyroae.compilation.codegen import Graph, inductor, try_compile
from pyroae.compilation.tracing import trace_to_graph
from pyroae.evaluation.annealing.chunks import ChunkedMover, RowGraph, row_graph
from pyroae.evaluation.annealing.hmc import Mover, Stepwise
from pyroae.evaluation.annealing.plan import Plan
from pyroae.programs.annealing_path import Path, Point
from pyroae.programs.latents import Latents
from pyroae.programs.pair import Pair
from pyroae.programs.sites import Program
from pyroae.programs.traces import prior_of
from pyroae.runtime.threads import Threads


@dataclass(frozen=True)
class BlockArguments:
    """What the programs of a path receive for one block of N data.

    Attributes:
        args: Arguments of the model, `[N, ...]` each.
        guide_args: Arguments of the guide; None where they are those of the model.
        data: Values by site that the model is conditioned on, beside its observed values.
        data_dims: The dimension of the data of each such site, counted from the right.
    """

    args: tuple[Tensor, ...]
    guide_args: tuple[Tensor, ...] | None = None
    data: dict[str, Tensor] = field(default_factory=dict)
    data_dims: dict[str, int] = field(default_factory=dict)

    def path(self, plan: Plan, num_chains: int, *, like: Latents | None = None) -> Path:
        """Build the path of the block.

        Args:
            plan: The programs and where the path starts.
            num_chains: C.
            like: Latents of another block of the same shape, whose draws are used; None draws
                from the start of the path.

        Returns:
            The densities of the path, by eager code.
        """
        model = poutine.condition(plan.model, data=self.data) if self.data else plan.model
        guide, guide_args = plan.guide, self.args if self.guide_args is None else self.guide_args
        start = prior_of(model) if guide is None else lambda *_: guide(*guide_args)
        latents = Latents(model, start, self.args, num_chains, plan.nesting, like=like)
        return Path(latents, guide, guide_args)

    def tensors(self) -> list[Tensor]:
        """Return all tensors in a fixed order.

        Returns:
            Arguments of the model, of the guide where they differ, and values of sites.
        """
        return [*self.args, *(self.guide_args or ()), *self.data.values()]

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> Self:
        """Return the inverse of `tensors`.

        Args:
            tensors: As many tensors, in the same order.

        Returns:
            The same structure with these tensors.
        """
        count, rest = len(self.args), len(tensors) - len(self.data)
        data = dict(zip(self.data, tensors[rest:], strict=True))
        guide_args = None if self.guide_args is None else tensors[count:rest]
        return replace(self, args=tensors[:count], guide_args=guide_args, data=data)

    def rows(self, index: Tensor) -> Self:
        """Select data by index.

        Args:
            index: Indices of data, `[M]`, int64; repetitions are allowed.

        Returns:
            The arguments of these M data.
        """

        def selected(args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(a.index_select(0, index) for a in args)

        guide_args = None if self.guide_args is None else selected(self.guide_args)
        data = {
            name: value.index_select(self.data_dims[name], index)
            for name, value in self.data.items()
        }
        return replace(self, args=selected(self.args), guide_args=guide_args, data=data)


class PathGraphs:
    """The compiled transitions of all paths of one annealing run.

    On a CPU one graph runs transitions of chunks of chains, for the pilot and for all chains. On
    other devices there are graphs of densities and gradients, two for each number of chains. They
    are compiled when a path first needs them. A program that cannot be compiled runs eagerly, with
    one warning.

    Args:
        plan: The programs and where the path starts.
        num_data: N of the graphs; a block with fewer data is padded with repetitions of its data.
        announce: Called before the compiler runs.
        threads: Provides the threads that run chunks, when the first graph needs them.
    """

    def __init__(
        self,
        plan: Plan,
        num_data: int,
        announce: Callable[[], None],
        threads: Callable[[], Threads],
    ) -> None:
        self.plan, self.num_data, self.announce, self.threads = plan, num_data, announce, threads
        self._graphs: dict[int, tuple[Graph, Graph] | RowGraph | None] = {}
        self._parameters: list[Tensor] = []

    def mover(self, path: Path, arguments: BlockArguments, num_chains: int) -> Mover:
        """Return what runs transitions along a path.

        Args:
            path: The path, by eager code.
            arguments: The arguments of its block.
            num_chains: C.

        Returns:
            Compiled transitions; those of `path` where its programs cannot be compiled.
        """
        device = arguments.args[0].device
        if device.type == "cpu":
            return self._chunked(path, arguments, num_chains)
        count = len(arguments.args[0])
        index = (
            None if count == self.num_data else torch.arange(self.num_data, device=device) % count
        )
        padded = _dense(arguments if index is None else arguments.rows(index))
        graphs = self._compiled(num_chains, lambda: self._traced(padded, num_chains), device)
        if not isinstance(graphs, tuple):
            return Stepwise(path, self.plan.settings)
        inputs = [*[t.detach() for t in self._parameters], *padded.tensors()]
        return Stepwise(CompiledPath(graphs, inputs, count, index), self.plan.settings)

    def _compiled(
        self, key: int, make: Callable[[], tuple[Graph, Graph] | RowGraph], device: torch.device
    ) -> tuple[Graph, Graph] | RowGraph | None:
        if key not in self._graphs:
            self.announce()
            refused = None in self._graphs.values()
            self._graphs[key] = None if refused else try_compile(make, device)
        return self._graphs[key]

    def _chunked(self, path: Path, arguments: BlockArguments, num_chains: int) -> Mover:
        """Transitions in chunks of R rows, of one chain of one datum each."""
        num_data, numel = len(arguments.args[0]), arguments.args[0][0].numel()
        rows = self.plan.chunk_rows(self.num_data, numel)
        longest = self.plan.moves_at_once(self.num_data, numel)
        of_pilot = num_chains == self.plan.pilot_chains
        chunk = rows // num_chains * num_chains if of_pilot else rows

        def chunk_arguments(first: int) -> BlockArguments:
            count = min(chunk, num_chains * num_data - first)
            return _dense(arguments.rows((first + torch.arange(rows) % count) // num_chains))

        example = chunk_arguments(0)
        graph = self._compiled(0, lambda: self._row_graph(example, longest), torch.device("cpu"))
        if not isinstance(graph, RowGraph):
            return Stepwise(path, self.plan.settings)
        parameters = [t.detach() for t in self._parameters]
        with torch.no_grad():
            fixed = [
                graph.fixed(*parameters, *chunk_arguments(first).tensors())
                for first in range(0, num_chains * num_data, chunk)
            ]
        return ChunkedMover(graph, fixed, num_chains, num_data, chunk, self.threads())

    def _row_graph(self, arguments: BlockArguments, longest: int) -> RowGraph:
        programs = self._programs(arguments)
        latents = arguments.path(self.plan, 1).latents

        def path(flat: tuple[Tensor, ...]) -> Path:
            now = arguments.with_tensors(flat[len(self._parameters) :])
            return now.path(self.plan, 1, like=latents)

        inputs = [*self._parameters, *arguments.tensors()]
        return row_graph(path, inputs, latents.start, programs, self.plan.settings, longest)

    def _programs(self, arguments: BlockArguments) -> tuple[Program, Program]:
        """The model and the program at which the path starts, whose parameters are looked for."""
        model, start = self.plan.model, self.plan.guide or prior_of(self.plan.model)
        if not self._parameters:
            pair = Pair(model, start)
            pair.find_parameters(*arguments.args)
            self._parameters = [*pair.parameters(), *pair.buffers()]
        return model, start

    def _traced(self, arguments: BlockArguments, num_chains: int) -> tuple[Graph, Graph]:
        """Graphs of `Path.at` and `Path.gradient`."""
        model, start = self._programs(arguments)
        latents = arguments.path(self.plan, num_chains).latents
        parameters, tensors, u = self._parameters, arguments.tensors(), latents.start

        def path(flat: tuple[Tensor, ...]) -> Path:
            first = len(parameters)
            now = arguments.with_tensors(flat[first : first + len(tensors)])
            return now.path(self.plan, num_chains, like=latents)

        def at(*flat: Tensor) -> tuple[Tensor, ...]:
            point = path(flat).at(flat[-1])
            return point.log_start, point.log_ratio, point.grad_start, point.grad_ratio

        def gradient(*flat: Tensor) -> tuple[Tensor, ...]:
            return (path(flat).gradient(flat[-2], flat[-1]),)

        def graph(function: Callable[..., tuple[Tensor, ...]], *further: Tensor) -> Graph:
            inputs = [*parameters, *tensors, *further]
            module = trace_to_graph(function, inputs, model, start)
            module.graph.eliminate_dead_code()
            module.recompile()
            return inductor(module, [t.detach() for t in inputs], same_draws=True)

        return graph(at, u), graph(gradient, u, u.new_zeros(()))


def _dense(arguments: BlockArguments) -> BlockArguments:
    """The same arguments, contiguous: compiled code expects one memory layout."""
    return arguments.with_tensors(tuple(t.detach().contiguous() for t in arguments.tensors()))


class CompiledPath:
    """A path whose densities and gradients are evaluated by graphs.

    Args:
        graphs: The graphs of `Path.at` and `Path.gradient`.
        inputs: Parameters, buffers and arguments: all inputs of the graphs except u and β.
        num_data: N of the block, at most that of the graphs.
        index: The datum of the block in each row of the graphs; None where they are the same.
    """

    def __init__(
        self, graphs: tuple[Graph, Graph], inputs: list[Tensor], num_data: int, index: Tensor | None
    ) -> None:
        self._at, self._gradient = graphs
        self._inputs, self._num_data, self._index = inputs, num_data, index

    @torch.no_grad()
    def at(self, u: Tensor) -> Point:
        """Return densities and gradients at u `[C, N, D]`, from one run of the model."""
        outputs = self._at(*self._inputs, self._padded(u))
        return Point(u, *(output[:, : self._num_data] for output in outputs))

    @torch.no_grad()
    def gradient(self, u: Tensor, beta: float) -> Tensor:
        """Return ∂ log f_β / ∂u at u, `[C, N, D]`."""
        (gradient,) = self._gradient(*self._inputs, self._padded(u), u.new_full((), beta))
        return gradient[:, : self._num_data]

    def _padded(self, u: Tensor) -> Tensor:
        return u.contiguous() if self._index is None else u.index_select(1, self._index)
