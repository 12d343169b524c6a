"""Densities and gradients along an annealing path as compiled code.

Random draws and the arithmetic of a leapfrog step stay outside of the graphs: a graph of a whole
transition is no faster and takes longer to compile (docs/compiled.md).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from pyro import poutine
from torch import Tensor

from pyroae.compilation.codegen import Graph, inductor, try_compile
from pyroae.compilation.tracing import trace_to_graph
from pyroae.evaluation.annealing.plan import Plan
from pyroae.programs.annealing_path import Densities, Path, Point
from pyroae.programs.latents import Latents
from pyroae.programs.pair import Pair
from pyroae.programs.traces import prior_of


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
    """The graphs of all paths of one annealing run: two for each number of chains.

    They are compiled when a path first needs them. A program that cannot be compiled runs eagerly,
    with one warning.

    Args:
        plan: The programs and where the path starts.
        num_data: N of the graphs; a block with fewer data is padded with repetitions of its data.
        announce: Called before the compiler runs.
    """

    def __init__(self, plan: Plan, num_data: int, announce: Callable[[], None]) -> None:
        self.plan, self.num_data, self.announce = plan, num_data, announce
        self._graphs: dict[int, tuple[Graph, Graph] | None] = {}
        self._parameters: list[Tensor] = []

    def of(self, path: Path, arguments: BlockArguments, num_chains: int) -> Densities:
        """Return compiled densities of a path.

        Args:
            path: The path, by eager code.
            arguments: The arguments of its block.
            num_chains: C.

        Returns:
            The compiled path; `path` itself where its programs cannot be compiled.
        """
        count, device = len(arguments.args[0]), arguments.args[0].device
        index = (
            None if count == self.num_data else torch.arange(self.num_data, device=device) % count
        )
        padded = arguments if index is None else arguments.rows(index)
        tensors = [t.detach().contiguous() for t in padded.tensors()]
        if num_chains not in self._graphs:
            self.announce()
            example = padded.with_tensors(tuple(tensors))
            refused = None in self._graphs.values()
            self._graphs[num_chains] = (
                None if refused else try_compile(lambda: self._traced(example, num_chains), device)
            )
        graphs = self._graphs[num_chains]
        if graphs is None:
            return path
        inputs = [*[t.detach() for t in self._parameters], *tensors]
        return CompiledPath(graphs, inputs, count, index)

    def _traced(self, arguments: BlockArguments, num_chains: int) -> tuple[Graph, Graph]:
        """Graphs of `Path.at` and `Path.gradient`."""
        model, start = self.plan.model, self.plan.guide or prior_of(self.plan.model)
        if not self._parameters:
            pair = Pair(model, start)
            pair.find_parameters(*arguments.args)
            self._parameters = [*pair.parameters(), *pair.buffers()]
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
