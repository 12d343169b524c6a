"""Code of one step for trainings of one form: compiled once, called with each one's own tensors.

The code uses one core and runs without Python's global lock: threads call it side by side. Its
draws are inputs, from a generator of the member's own: on a CPU the numbers of a separate training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.graph_module import GraphModule

from pyroae.compilation.codegen import Graph, Outputs, inductor
from pyroae.compilation.invariant_split import as_inputs
from pyroae.compilation.noise_inputs import Draw, lift_draws


class SharedCode:
    """Code for one core by the operations of a graph.

    Graphs of the same operations on tensors of the same shapes have one code; constants, in which
    they may differ, are inputs.

    Attributes:
        backend: "inductor", or "eager" for the traced graph without code generation.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self.backend = backend
        self._codes: dict[Any, Graph] = {}

    def code_of(
        self, graph: GraphModule, inputs: Sequence[Tensor], generator: torch.Generator
    ) -> Graph:
        """Compile a graph, or take the code of an equal one.

        Args:
            graph: The traced graph; it does not change.
            inputs: Examples of its inputs.
            generator: The generator on the CPU that its draws come from.

        Returns:
            A function of tensors with the shapes of `inputs`; one thread at a time may call it.

        Raises:
            NotLiftedError: For a draw that is no function of noise without parameters.
        """
        graph, draws = lift_draws(graph)
        graph, constants = as_inputs(graph)
        noise = [draw.empty(1)[0].zero_() for draw in draws]
        code = self.compiled(graph, [*inputs, *noise, *constants])
        return _Drawn(code, draws, noise, constants, generator)

    def compiled(self, graph: GraphModule, inputs: Sequence[Tensor], cpp: bool = False) -> Graph:
        """Compile a graph without draws and constants, or take the code of an equal one.

        Args:
            graph: The traced graph.
            inputs: Examples of its inputs.
            cpp: Whether the code can be called from C++.

        Returns:
            The code.
        """
        key = cpp, graph.code, *((tuple(t.shape), t.stride(), t.dtype) for t in inputs)
        if key not in self._codes:
            self._codes[key] = (
                graph
                if self.backend == "eager"
                else inductor(graph, inputs, same_draws=False, one_core=True, cpp=cpp)
            )
        return self._codes[key]


@dataclass(frozen=True)
class _Drawn:
    """Code with the draws and the constants of one member.

    noise: a buffer for each draw, filled at every call.
    """

    code: Graph
    draws: list[Draw]
    noise: list[Tensor]
    constants: list[Tensor]
    generator: torch.Generator

    def __call__(self, *inputs: Tensor) -> Outputs:
        for draw, tensor in zip(self.draws, self.noise, strict=True):
            draw.fill(tensor, self.generator)
        return self.code(*inputs, *self.noise, *self.constants)
