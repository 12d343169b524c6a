"""The draws of a likelihood as compiled code."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx.graph_module import GraphModule

from pyroae.compilation.codegen import Graph, device_of, inductor, try_compile
from pyroae.compilation.invariant_split import split_invariant
from pyroae.compilation.noise_inputs import Draw, NotLiftedError, lift_draws
from pyroae.compilation.tracing import trace_to_graph
from pyroae.programs.context import fork_random
from pyroae.programs.pair import Pair
from pyroae.programs.sites import Program
from pyroae.programs.traces import run
from pyroae.weights import reduce_log_weights

Weights = Callable[[int, int], Tensor]
"""From k and a seed to k log-weights for each datum of a block, `[k, N]` in nats."""


class CompiledDraws:
    """Log-weights of fresh draws as one graph: `draws.prepare(block)(k, seed)` is what `weights.log_weights` gives for a seed.

    What depends on no draw, such as the encoder, runs once per block, the rest is code. Its shape is fixed: a block with
    fewer data is filled up, more are refused; fewer particles are cut from it. On a CPU the noise is made by a generator of
    the call's own, and code is for one core: several threads may call it at once, where `is_for_threads`. What cannot be
    compiled is run as it is, with one warning.
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
        self._draws: list[Draw] | None = None
        whole = tuple(t.contiguous() for t in block)  # code is made for one layout
        self._graphs = try_compile(lambda: self._code(whole), device_of(block))

    @property
    def is_for_threads(self) -> bool:
        """Whether a call takes one core, and shares nothing with others."""
        return self._graphs is not None and self._draws is not None

    def prepare(self, block: tuple[Tensor, ...]) -> Weights:
        """What draws for these data."""
        if self._graphs is None:
            return partial(self._run, block)
        early, late = self._graphs
        rows = torch.arange(self.num_data, device=block[0].device) % len(block[0])
        is_full = len(block[0]) == self.num_data
        full = tuple(t.contiguous() if is_full else t.index_select(0, rows) for t in block)
        with torch.no_grad():
            known = early(*[t.detach() for t in self._leaves], *full)
        return partial(self._drawn, late, known, len(block[0]))

    def _drawn(
        self, late: Graph, known: tuple[Tensor, ...], num_data: int, num_particles: int, seed: int
    ) -> Tensor:
        with torch.no_grad():
            if self._draws is None:
                with fork_random(device_of(known), seed):
                    found = late(*known)[0]
            else:
                found = late(*known, *_noise(self._draws, seed))[0]
        return found[:num_particles, :num_data]

    def _run(self, block: tuple[Tensor, ...], num_particles: int, seed: int) -> Tensor:
        with fork_random(device_of(block), seed):
            return self._weights(block, num_particles)

    def _weights(self, block: tuple[Tensor, ...], num_particles: int) -> Tensor:
        model, guide = self.programs.model, self.programs.guide
        return reduce_log_weights(
            run(model, guide, block, {}, num_particles, self.nesting)
        ).log_weight

    def _code(self, block: tuple[Tensor, ...]) -> tuple[GraphModule, Graph]:
        """The part that runs once per block, and the part that runs for each chunk of draws, made into code."""

        def function(*flat: Tensor) -> tuple[Tensor]:
            return (self._weights(flat[len(self._leaves) :], self.num_particles),)

        inputs = [*self._leaves, *block]
        with torch.no_grad():
            graph = trace_to_graph(function, inputs, self.programs.model, self.programs.guide)
            if device_of(block).type == "cpu":
                graph, self._draws = _lifted(graph)
                _lay_out_weights(graph)
            names = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
            early, late = split_invariant(graph, names[len(inputs) :])
            known = early(*[t.detach() for t in inputs])
        if self.backend == "eager":
            return early, late
        noise = [] if self._draws is None else _noise(self._draws, 0)
        return early, inductor(
            late, [*known, *noise], same_draws=False, one_core=self._draws is not None
        )


def _lay_out_weights(module: GraphModule) -> None:
    """Each weight of a layer, transposed as the product takes it, as a tensor of its own: one core then reads it faster."""
    graph, aten = module.graph, torch.ops.aten
    for node in graph.find_nodes(op="call_function", target=aten.addmm.default):
        weight: Any = node.args[2]
        if weight.target is aten.t.default and weight.args[0].op == "placeholder":
            with graph.inserting_before(node):
                own = graph.call_function(
                    aten.clone.default, (weight,), {"memory_format": torch.contiguous_format}
                )
            own.meta["val"] = weight.meta["val"].contiguous()
            node.replace_input_with(weight, own)
    module.recompile()


def _lifted(graph: GraphModule) -> tuple[GraphModule, list[Draw] | None]:
    """The graph with its draws as inputs, where they can be."""
    try:
        return lift_draws(graph)
    except NotLiftedError:
        return graph, None


def _noise(draws: list[Draw], seed: int) -> list[Tensor]:
    """What a graph's draws are made of, from a generator that starts at the seed, in the order in which it would draw."""
    generator = torch.Generator().manual_seed(seed)
    rooms = [draw.empty(1)[0] for draw in draws]
    for draw, room in zip(draws, rooms, strict=True):
        draw.fill(room, generator)
    return rooms
