"""The draws of a likelihood as compiled code."""

import torch
from torch import Tensor

from pyroae.graphs import Graph, device_of, inductor, made
from pyroae.lifting import Draw, NotLiftedError, lifted
from pyroae.program import Pair
from pyroae.tracing import traced
from pyroae.weights import Program, fork_random, reduce_log_weights, run


class CompiledDraws:
    """Log-weights of fresh draws as one graph: `draws(block, k, seed)` is `[k, N]` in nats, as those of `weights.log_weights`.

    The graph is of one shape: a block with fewer data is filled up, more are refused; fewer particles are cut from it. What
    cannot be compiled is run as it is, with one warning. On a CPU the noise is an input of the graph, made by a generator of
    the call's own, and code is made for one core: several threads may call it at once, where `is_for_threads`.
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
        self._graph = made(lambda: self._code(whole), device_of(block))

    @property
    def is_for_threads(self) -> bool:
        """Whether a call takes one core, and shares nothing with others."""
        return self._graph is not None and self._draws is not None

    def __call__(self, block: tuple[Tensor, ...], num_particles: int, seed: int) -> Tensor:
        """Draw from this seed, and weigh."""
        if self._graph is None:
            with fork_random(device_of(block), seed):
                return self._weights(block, num_particles)
        rows = torch.arange(self.num_data, device=block[0].device) % len(block[0])
        is_full = len(block[0]) == self.num_data
        full = tuple(t.contiguous() if is_full else t.index_select(0, rows) for t in block)
        return self._run(self._graph, full, seed)[:num_particles, : len(block[0])]

    def _run(self, graph: Graph, block: tuple[Tensor, ...], seed: int) -> Tensor:
        leaves = [t.detach() for t in self._leaves]
        with torch.no_grad():
            if self._draws is None:
                with fork_random(device_of(block), seed):
                    return graph(*leaves, *block)[0]
            return graph(*leaves, *block, *_noise(self._draws, seed))[0]

    def _weights(self, block: tuple[Tensor, ...], num_particles: int) -> Tensor:
        model, guide = self.programs.model, self.programs.guide
        return reduce_log_weights(run(model, guide, block, {}, num_particles, self.nesting)).log_weight

    def _code(self, block: tuple[Tensor, ...]) -> Graph:
        def function(*flat: Tensor) -> tuple[Tensor]:
            return (self._weights(flat[len(self._leaves) :], self.num_particles),)

        inputs = [*self._leaves, *block]
        with torch.no_grad():
            graph = traced(function, inputs, self.programs.model, self.programs.guide)
        inputs = [t.detach() for t in inputs]
        if device_of(block).type == "cpu":
            try:
                graph, self._draws = lifted(graph)
                inputs += _noise(self._draws, 0)
            except NotLiftedError:
                self._draws = None
        return graph if self.backend == "eager" else inductor(graph, inputs, same_draws=False, one_core=self._draws is not None)


def _noise(draws: list[Draw], seed: int) -> list[Tensor]:
    """What a graph's draws are made of, from a generator that starts at the seed, in the order in which it would draw."""
    generator = torch.Generator().manual_seed(seed)
    rooms = [draw.room(1)[0] for draw in draws]
    for draw, room in zip(draws, rooms, strict=True):
        draw.fill(room, generator)
    return rooms
