"""The draws of a likelihood as compiled code."""

import torch
from torch import Tensor

from pyroae.graphs import Graph, device_of, inductor, made
from pyroae.program import Pair
from pyroae.tracing import traced
from pyroae.weights import Program, fork_random, reduce_log_weights, run


class CompiledDraws:
    """Log-weights of fresh draws as one graph: `draws(block, k)` is `[k, N]` in nats, as `weights.log_weights` gives them.

    The graph is of one shape: a block with fewer data is filled up, more are refused; fewer particles are cut from it. What
    cannot be compiled is run as it is, with one warning.
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
        whole = tuple(t.contiguous() for t in block)  # code is made for one layout
        self._graph = made(lambda: self._traced(whole), device_of(block))

    def __call__(self, block: tuple[Tensor, ...], num_particles: int) -> Tensor:
        """Draw, and weigh."""
        if self._graph is None:
            return self._weights(block, num_particles)
        rows = torch.arange(self.num_data, device=block[0].device) % len(block[0])
        is_full = len(block[0]) == self.num_data
        full = tuple(t.contiguous() if is_full else t.index_select(0, rows) for t in block)
        with torch.no_grad():
            return self._graph(*[t.detach() for t in self._leaves], *full)[0][:num_particles, : len(block[0])]

    def _weights(self, block: tuple[Tensor, ...], num_particles: int) -> Tensor:
        model, guide = self.programs.model, self.programs.guide
        return reduce_log_weights(run(model, guide, block, {}, num_particles, self.nesting)).log_weight

    def _traced(self, block: tuple[Tensor, ...]) -> Graph:
        def function(*flat: Tensor) -> tuple[Tensor]:
            return (self._weights(flat[len(self._leaves) :], self.num_particles),)

        inputs = [*self._leaves, *block]
        with torch.no_grad():
            graph = traced(function, inputs, self.programs.model, self.programs.guide)
        return graph if self.backend == "eager" else inductor(graph, [t.detach() for t in inputs], same_draws=False)
