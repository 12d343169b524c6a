"""Compile the draws and log-weights of importance sampling as one graph."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.fx.graph_module import GraphModule

from pyroae.compilation.bernoulli_rows import BernoulliRows, without_sum
from pyroae.compilation.codegen import Graph, device_of, inductor, try_compile
from pyroae.compilation.invariant_split import repeat_later, split_invariant
from pyroae.compilation.noise_inputs import Draw, NotLiftedError, ParametricDraw, lift_all_draws
from pyroae.compilation.normal_noise import is_standard_normal
from pyroae.compilation.tracing import trace_to_graph
from pyroae.programs.pair import Pair
from pyroae.programs.sites import Program
from pyroae.programs.traces import run
from pyroae.runtime.randomness import fork_random
from pyroae.weights import reduce_log_weights

if TYPE_CHECKING:
    from pyroae.evaluation.importance.cache_parts import PartByPart

Weights = Callable[[int, int], Tensor]
"""A function from k and a seed to k log-weights for each datum of a block, `[k, N]`, in nats."""


Chunks = Sequence[tuple[int, int]]
"""The number of particles and the seed of each chunk."""


@dataclass(frozen=True)
class ChunkDraw:
    """A draw of a chunk, made outside of the graph of its log-weights.

    Attributes:
        draw: The draw.
        parameters: From what does not depend on draws, and the draws before, to its parameters;
            None for noise, which has none.
    """

    draw: Draw | ParametricDraw
    parameters: Graph | None = None


class CompiledDraws:
    """The log-weights of new draws as one compiled graph.

    `draws.prepare(block)(k, seed)` returns what `weights.log_weights` returns for the same seed.
    The part of the graph that does not depend on the draws, such as the encoder, runs once per
    block. The shape of the compiled part is fixed: a smaller block is padded, a larger one is
    refused, and surplus particles are cut off.

    On a CPU each call has its own random generator and uses one core, so that several threads may
    call it at once where `is_for_threads` is True. Programs that cannot be compiled are run
    eagerly, with one warning.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The Pyro program q(z|x).
        block: Arguments of both programs, `[N, ...]` each, of the largest block.
        num_particles: K, the largest number of draws per datum in a call.
        nesting: The number of plate dimensions.
        backend: "inductor" compiles the graph; "eager" interprets it.

    Attributes:
        num_data: N, the number of data of the graph.
        programs: Model and guide as one module.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        block: tuple[Tensor, ...],
        num_particles: int,
        nesting: int,
        backend: str = "inductor",
    ) -> None:
        self.num_particles, self.nesting = num_particles, nesting
        self.backend, self.num_data = backend, len(block[0])
        self.programs = Pair(model, guide)
        with fork_random(device_of(block)):
            self.programs.find_parameters(*block)
        self._leaves = [*self.programs.parameters(), *self.programs.buffers()]
        self._draws: list[ChunkDraw] | None = None
        self._are_normal = self._is_for_chunks = False
        self._early: list[Graph] = []
        whole = tuple(t.contiguous() for t in block)  # compiled code expects one memory layout
        self._graphs = try_compile(lambda: self._code(whole), device_of(block))

    @property
    def is_for_threads(self) -> bool:
        """Whether a call uses one core and shares no state with other calls."""
        return self._graphs is not None and self._draws is not None

    def prepare(self, block: tuple[Tensor, ...]) -> Weights:
        """Run the part of the graph that does not depend on the draws.

        Args:
            block: Arguments of both programs, `[n, ...]` each, n ≤ N.

        Returns:
            A function from k and a seed to new log-weights `[k, n]`, in nats, k ≤ K.
        """
        of_chunks = self.prepare_chunks(block)
        return lambda num_particles, seed: of_chunks([(num_particles, seed)])

    def prepare_chunks(self, block: tuple[Tensor, ...]) -> Callable[[Chunks], Tensor]:
        """Run the part of the graph that does not depend on the draws, for several chunks a call.

        Args:
            block: Arguments of both programs, `[n, ...]` each, n ≤ N.

        Returns:
            A function from numbers of particles and seeds to the log-weights of all chunks, joined.

        Raises:
            ValueError: If there are more data than those of the graph.
        """
        if len(block[0]) > self.num_data:
            raise ValueError(f"{len(block[0])} data are more than the {self.num_data} of the graph")
        if self._graphs is None:
            return lambda chunks: torch.cat([self._run(block, k, seed) for k, seed in chunks])
        early, late = self._graphs
        rows = torch.arange(self.num_data, device=block[0].device) % len(block[0])
        is_full = len(block[0]) == self.num_data
        full = tuple(t.contiguous() if is_full else t.index_select(0, rows) for t in block)
        inputs = [*[t.detach() for t in self._leaves], *full]
        with torch.no_grad():
            fixed = early(*inputs)
            of_draws = [part(*inputs) for part in self._early]
        num_data, code = len(block[0]), cast("Graph", late)
        if self._draws is None:
            return partial(
                _joined, num_data, lambda seeds: (self._random(code, fixed, s) for s in seeds)
            )
        sample = partial(self._sample, self._draws, of_draws)
        if self._is_for_chunks:
            parts = cast("PartByPart", late)
            of_chunks = partial(parts.of_chunks, parts.prepared(fixed))
            return partial(_joined, num_data, lambda seeds: of_chunks([sample(s) for s in seeds]))
        return partial(
            _joined, num_data, lambda seeds: (code(*fixed, *sample(s))[0] for s in seeds)
        )

    def _random(self, late: Graph, fixed: tuple[Tensor, ...], seed: int) -> Tensor:
        with fork_random(device_of(fixed), seed):
            return late(*fixed)[0]

    def _sample(
        self, draws: list[ChunkDraw], of_draws: list[tuple[Tensor, ...]], seed: int
    ) -> list[Tensor]:
        """The draws of a chunk; those of normal noise alone by code of their own."""
        if not self._are_normal:
            return _drawn(draws, of_draws, seed)
        from pyroae.compilation.core_kernels import fill_normals

        tensors = [torch.empty(each.draw.shape) for each in draws if isinstance(each.draw, Draw)]
        fill_normals(tensors, seed)
        return tensors

    def _run(self, block: tuple[Tensor, ...], num_particles: int, seed: int) -> Tensor:
        with fork_random(device_of(block), seed):
            return self._weights(block, num_particles)

    def _weights(self, block: tuple[Tensor, ...], num_particles: int) -> Tensor:
        model, guide = self.programs.model, self.programs.guide
        return reduce_log_weights(
            run(model, guide, block, {}, num_particles, self.nesting)
        ).log_weight

    def _code(
        self, block: tuple[Tensor, ...], is_divided: bool = True
    ) -> "tuple[GraphModule, Graph | PartByPart]":
        """The part that runs once per block, and the compiled part that runs for each chunk."""
        from pyroae.compilation.core_kernels import can_fill_normals
        from pyroae.compilation.step_loop import NoEntryError, callable_from_c
        from pyroae.evaluation.importance.cache_parts import PartByPart

        inputs = [*self._leaves, *block]
        with torch.no_grad():
            graph, draws = self._traced(inputs, self.num_particles)
            early, late, sums, parts = *_split(graph, inputs), None, 1
            if is_divided and draws and self.backend != "eager":
                early, late, sums, parts = self._divided(graph, draws, inputs)
            values = [t.detach() for t in inputs]
            fixed = early(*values)
            of_draws = self._prepare_draws(draws, values)
        if self.backend == "eager":
            return early, late
        drawn = [] if self._draws is None else _drawn(self._draws, of_draws, 0)
        are_normal = self._draws and all(is_standard_normal(each.draw) for each in self._draws)
        self._are_normal = bool(are_normal) and can_fill_normals()
        if parts == 1 and sums is None:
            return early, self._compiled(late, [*fixed, *drawn])
        rows = math.ceil(self.num_particles / parts)
        try:
            with callable_from_c(), torch.no_grad():
                code = self._compiled(late, [*fixed, *(draw[:rows] for draw in drawn)])
                late_parts = PartByPart(code, fixed, drawn, parts, sums)
        except NoEntryError:
            return self._code(block, is_divided=False)
        self._is_for_chunks = True
        return early, late_parts

    def _traced(
        self, inputs: list[Tensor], num_particles: int
    ) -> tuple[GraphModule, list[Draw | ParametricDraw] | None]:
        """The graph of log-weights, and its draws where they are inputs."""

        def function(*flat: Tensor) -> tuple[Tensor]:
            return (self._weights(flat[len(self._leaves) :], num_particles),)

        graph = trace_to_graph(function, inputs, self.programs.model, self.programs.guide)
        draws: list[Draw | ParametricDraw] | None = None
        if device_of(tuple(inputs)).type == "cpu":
            graph, draws = _lifted(graph)
            _lay_out_weights(graph)
        return graph, draws

    def _divided(
        self, graph: GraphModule, draws: list[Draw | ParametricDraw], inputs: list[Tensor]
    ) -> tuple[GraphModule, GraphModule, BernoulliRows | None, int]:
        """The two graphs of a part of the particles, what adds a sum to it, the number of parts."""
        from pyroae.compilation.core_kernels import can_sum_rows
        from pyroae.evaluation.importance.cache_parts import are_parts, are_rows, num_parts

        early, whole = _split(graph, inputs)
        late, sums = without_sum(whole) if are_rows(draws, self.num_particles) else (whole, None)
        if sums is not None and not can_sum_rows():
            late, sums = whole, None
        parts = num_parts(late, len(draws), self.num_particles)
        if parts == 1:
            return early, late, sums, 1
        rows = math.ceil(self.num_particles / parts)
        part, of_part = self._traced(inputs, rows)
        if not are_parts(draws, of_part, rows):
            return early, whole, None, 1
        early, late = _split(part, inputs)
        late, sums = without_sum(late) if sums is not None else (late, None)
        return early, late, sums, parts

    def _prepare_draws(
        self, draws: list[Draw | ParametricDraw] | None, inputs: list[Tensor]
    ) -> list[tuple[Tensor, ...]]:
        """Split the parameters of draws too; the parts of this block that depend on no draw."""
        if draws is None:
            return []
        self._draws, self._early, of_draws = [], [], []
        for draw in draws:
            if isinstance(draw, Draw):
                self._draws.append(ChunkDraw(draw))
                continue
            names = [n.name for n in draw.parameters.graph.nodes if n.op == "placeholder"]
            early, late = split_invariant(draw.parameters, names[len(inputs) :])
            of_draws.append(early(*inputs))
            self._early.append(early)
            code: Graph = late
            if self.backend != "eager" and _computes(late):
                before = _drawn(self._draws, of_draws, 0)
                code = self._compiled(late, [*of_draws[-1], *before])
            self._draws.append(ChunkDraw(draw, code))
        return of_draws

    def _compiled(self, graph: GraphModule, inputs: list[Tensor]) -> Graph:
        return inductor(graph, inputs, same_draws=False, one_core=self._draws is not None)


def _joined(
    num_data: int, log_weights: Callable[[Iterable[int]], Iterable[Tensor]], chunks: Chunks
) -> Tensor:
    """The log-weights of chunks, from a function of their seeds, without surplus ones."""
    with torch.no_grad():
        found = log_weights([seed for _, seed in chunks])
        return torch.cat([each[:k, :num_data] for (k, _), each in zip(chunks, found, strict=True)])


def _split(graph: GraphModule, inputs: Sequence[Tensor]) -> tuple[GraphModule, GraphModule]:
    """The parts of a graph that do not and do depend on the draws, its last inputs."""
    names = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    return split_invariant(repeat_later(graph), names[len(inputs) :])


def _computes(graph: GraphModule) -> bool:
    """Whether a graph is more than views of its inputs."""
    return any(
        not getattr(node.target, "is_view", False)
        for node in graph.graph.nodes
        if node.op == "call_function"
    )


def _lay_out_weights(module: GraphModule) -> None:
    """Copy each transposed weight of a linear layer into contiguous memory: it is read faster."""
    graph, aten = module.graph, torch.ops.aten
    for node in graph.find_nodes(op="call_function", target=aten.addmm.default):
        weight: Any = node.args[2]
        if weight.target is aten.t.default and weight.args[0].op == "placeholder":
            with graph.inserting_before(node):
                copy = graph.call_function(
                    aten.clone.default, (weight,), {"memory_format": torch.contiguous_format}
                )
            copy.meta["val"] = weight.meta["val"].contiguous()
            node.replace_input_with(weight, copy)
    module.recompile()


def _lifted(graph: GraphModule) -> tuple[GraphModule, list[Draw | ParametricDraw] | None]:
    """The graph with its draws as inputs, or the graph itself and None if that is impossible."""
    try:
        return lift_all_draws(graph)
    except NotLiftedError:
        return graph, None


def _drawn(
    draws: list[ChunkDraw], of_draws: Sequence[tuple[Tensor, ...]], seed: int
) -> list[Tensor]:
    """The draws of a chunk in their order, from a new generator with this seed."""
    generator, fixed = torch.Generator().manual_seed(seed), iter(of_draws)
    tensors: list[Tensor] = []
    for each in draws:
        if isinstance(each.draw, Draw):
            tensor = each.draw.empty(1)[0]
            each.draw.fill(tensor, generator)
        else:
            assert each.parameters is not None
            parameters = each.parameters(*next(fixed), *tensors)
            tensor = each.draw.draw(parameters, generator).contiguous()
        tensors.append(tensor)
    return tensors
