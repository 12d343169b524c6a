"""Densities and gradients along an annealing path as compiled code.

Draws and the arithmetic of a leapfrog step stay outside of the graphs: one of a whole transition is no faster and takes longer
to compile (docs/compiled.md).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from pyro import poutine
from torch import Tensor

from pyroae.compilation.codegen import Graph, inductor, try_compile
from pyroae.compilation.tracing import trace_to_graph
from pyroae.evaluation.annealing.hmc import Densities, Path, Point
from pyroae.evaluation.latents import Latents
from pyroae.programs.pair import Pair
from pyroae.programs.sites import Program
from pyroae.programs.traces import prior_of


@dataclass(frozen=True)
class Given:
    """What the programs of a path are given for a block.

    args: of the model. seen: of the guide, where it is given something else. data: by site, what the model is conditioned on
    beside what it observes. dims: by site, the dimension of the data.
    """

    args: tuple[Tensor, ...]
    seen: tuple[Tensor, ...] | None = None
    data: dict[str, Tensor] = field(default_factory=dict)
    dims: dict[str, int] = field(default_factory=dict)

    def path(
        self,
        model: Program,
        guide: Program | None,
        num_chains: int,
        nesting: int,
        *,
        like: Latents | None = None,
    ) -> Path:
        """The path of a block. like: latents of another block of the same shape, so that nothing is drawn."""
        model = poutine.condition(model, data=self.data) if self.data else model
        seen = self.args if self.seen is None else self.seen
        program = prior_of(model) if guide is None else lambda *_: guide(*seen)
        return Path(Latents(model, program, self.args, num_chains, nesting, like=like), guide, seen)

    def tensors(self) -> list[Tensor]:
        """All of them, in one order."""
        return [*self.args, *(self.seen or ()), *self.data.values()]

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> Self:
        """The inverse of `tensors`."""
        count, rest = len(self.args), len(tensors) - len(self.data)
        data = dict(zip(self.data, tensors[rest:], strict=True))
        return replace(
            self,
            args=tensors[:count],
            seen=None if self.seen is None else tensors[count:rest],
            data=data,
        )

    def rows(self, index: Tensor) -> Self:
        """Only the data at an index."""
        args = tuple(a.index_select(0, index) for a in self.args)
        seen = None if self.seen is None else tuple(a.index_select(0, index) for a in self.seen)
        data = {
            name: value.index_select(self.dims[name], index) for name, value in self.data.items()
        }
        return replace(self, args=args, seen=seen, data=data)


class PathGraphs:
    """The graphs of all paths of one annealing: two for each number of chains, made when a path first asks for them.

    num_data: N of the graphs; a block with fewer data is filled up. announce: called before the compiler is. What cannot be
    compiled is run as it is, with one warning.
    """

    def __init__(
        self,
        model: Program,
        guide: Program | None,
        nesting: int,
        num_data: int,
        announce: Callable[[], None],
    ) -> None:
        self.model, self.guide, self.nesting, self.num_data = model, guide, nesting, num_data
        self.announce = announce
        self._graphs: dict[int, tuple[Graph, Graph] | None] = {}
        self._leaves: list[Tensor] = []

    def of(self, path: Path, given: Given, num_chains: int) -> Densities:
        """The densities of a path by graphs; the path itself where there are none."""
        count, device = len(given.args[0]), given.args[0].device
        index = (
            None if count == self.num_data else torch.arange(self.num_data, device=device) % count
        )
        given = given if index is None else given.rows(index)
        tensors = [t.detach().contiguous() for t in given.tensors()]
        if num_chains not in self._graphs:
            self.announce()
            given = given.with_tensors(tuple(tensors))
            refused = None in self._graphs.values()
            self._graphs[num_chains] = (
                None if refused else try_compile(lambda: self._traced(given, num_chains), device)
            )
        graphs = self._graphs[num_chains]
        return (
            path
            if graphs is None
            else CompiledPath(graphs, [*[t.detach() for t in self._leaves], *tensors], count, index)
        )

    def _traced(self, given: Given, num_chains: int) -> tuple[Graph, Graph]:
        """Graphs of `Path.at` and `Path.gradient`."""
        start = self.guide or prior_of(self.model)
        if not self._leaves:
            pair = Pair(self.model, start)
            pair.find_parameters(*given.args)
            self._leaves = [*pair.parameters(), *pair.buffers()]
        latents = given.path(self.model, self.guide, num_chains, self.nesting).latents
        leaves, tensors, u = self._leaves, given.tensors(), latents.start

        def path(flat: tuple[Tensor, ...]) -> Path:
            now = given.with_tensors(flat[len(leaves) : len(leaves) + len(tensors)])
            return now.path(self.model, self.guide, num_chains, self.nesting, like=latents)

        def at(*flat: Tensor) -> tuple[Tensor, ...]:
            point = path(flat).at(flat[-1])
            return point.log_start, point.log_ratio, point.grad_start, point.grad_ratio

        def gradient(*flat: Tensor) -> tuple[Tensor, ...]:
            return (path(flat).gradient(flat[-2], flat[-1]),)

        def graph(function: Callable[..., tuple[Tensor, ...]], *further: Tensor) -> Graph:
            inputs = [*leaves, *tensors, *further]
            found = trace_to_graph(function, inputs, self.model, start)
            found.graph.eliminate_dead_code()
            found.recompile()
            return inductor(found, [t.detach() for t in inputs], same_draws=True)

        return graph(at, u), graph(gradient, u, u.new_zeros(()))


class CompiledPath:
    """A path whose densities and gradients are taken by graphs. inputs: all that the graphs are given beside u and β.

    index: which of the block's data stand in the rows of the graph, None where they are the same.
    """

    def __init__(
        self, graphs: tuple[Graph, Graph], inputs: list[Tensor], num_data: int, index: Tensor | None
    ) -> None:
        self._at, self._gradient = graphs
        self._inputs, self._num_data, self._index = inputs, num_data, index

    @torch.no_grad()
    def at(self, u: Tensor) -> Point:
        """Densities and gradients at u, from one run of the model."""
        found = self._at(*self._inputs, self._filled(u))
        return Point(u, *(f[:, : self._num_data] for f in found))

    @torch.no_grad()
    def gradient(self, u: Tensor, beta: float) -> Tensor:
        """∂ log f_β / ∂u at u, `[C, N, D]`."""
        return self._gradient(*self._inputs, self._filled(u), u.new_full((), beta))[0][
            :, : self._num_data
        ]

    def _filled(self, u: Tensor) -> Tensor:
        return u.contiguous() if self._index is None else u.index_select(1, self._index)
