"""The update of all parameters by several threads, each of which has rows of its own.

A thread computes the gradients of its rows and updates them: by a kernel where there is one for the
optimizer, else by a compiled graph. With a limit on the norm of the gradient, the update follows
when all threads have their gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.graph_module import GraphModule

from pyroae.compilation.codegen import Graph, copy_of
from pyroae.compilation.gradient_rows import Owned
from pyroae.compilation.invariant_split import as_inputs
from pyroae.compilation.optimizer_steps import Update
from pyroae.compilation.optimizer_updates import ClosedForm
from pyroae.compilation.step_loop import Call, callable_from_c
from pyroae.compilation.tracing import trace_to_graph

MakeCode = Callable[[GraphModule, Sequence[Tensor], bool], Graph]
"""From a graph, examples of its inputs, and whether one core runs it, to code."""


@dataclass(frozen=True)
class Execution:
    """How a step that is divided among threads is compiled and run.

    Attributes:
        make_code: Generates code.
        threads: The number T of threads.
        generator: The generator of the draws.
    """

    make_code: MakeCode
    threads: int
    generator: torch.Generator


@dataclass(frozen=True)
class Code:
    """A graph's code, and the constants that are its last inputs.

    Attributes:
        graph: The code.
        constants: The constants.
    """

    graph: Graph
    constants: list[Tensor]

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        inputs: Sequence[Tensor],
        make_code: MakeCode,
        one_core: bool = True,
    ) -> "Code":
        """Trace and compile a function.

        Args:
            function: A function of tensors, which may change them in place.
            inputs: Its inputs, which keep their values.
            make_code: Generates code.
            one_core: Whether one core runs it.

        Returns:
            The code.
        """
        examples = [copy_of(t) for t in inputs]  # tracing runs the function
        graph, constants = as_inputs(trace_to_graph(function, examples, function, function))
        with callable_from_c():
            return cls(make_code(graph, [*examples, *constants], one_core), constants)

    def call(
        self, phase: int, thread: int, inputs: Sequence[Tensor], result: Tensor | None = None
    ) -> Call:
        """Make a call of the loop.

        Args:
            phase: Number of the phase.
            thread: Number of the thread.
            inputs: The function's inputs.
            result: Where the first output is copied to.

        Returns:
            The call.
        """
        return Call(phase, thread, self.graph, [*inputs, *self.constants], result)


@dataclass(frozen=True)
class _Rows:
    """Rows of a parameter, and the places of its state."""

    owned: Owned
    rows: slice
    places: list[int]


class RowUpdates:
    """The update of all parameters, in the phases of a step after that of the parts.

    Args:
        owned: The parameters, in the order of the optimizer's state.
        numbers: The tensors of the numbers of a step, one for each group.
        update: The optimizer's step.
        execution: The threads, and what generates code.
    """

    def __init__(
        self,
        owned: list[Owned],
        numbers: list[Tensor],
        update: Update,
        execution: Execution,
    ) -> None:
        threads = execution.threads
        self._owned, self._numbers = owned, numbers
        self._threads, self._grad_clip = threads, update.grad_clip
        self._norms = torch.zeros(threads + 1, dtype=owned[0].parameter.dtype)
        self._phases = 1 if update.grad_clip is None else 2
        state = update.state()
        self._codes: dict[tuple[bool, int], Code] = {}
        for thread in (0, threads):
            for phase in range(self._phases):
                inputs = self._inputs(thread, phase, state)
                if inputs:
                    code = Code.of(self._function(thread, phase), inputs, execution.make_code)
                    self._codes[thread == threads, phase] = code

    def calls(self, state: Sequence[Tensor]) -> Iterator[Call]:
        """List the calls of a step.

        Args:
            state: The optimizer's state.

        Yields:
            The calls, from phase 1 on.
        """
        for thread in range(self._threads + 1):
            own = min(thread, self._threads - 1)
            for one in self._rows_of(thread):
                kernel = one.owned.kernel()
                if kernel is not None:
                    own_state = [state[i] for i in one.places]
                    numbers = self._numbers[one.owned.group]
                    inputs = one.owned.kernel_inputs(one.rows, thread, own_state, numbers)
                    yield Call(1, own, kernel, inputs)
            for phase in range(self._phases):
                code = self._codes.get((thread == self._threads, phase))
                if code is not None:
                    yield code.call(1 + phase, own, self._inputs(thread, phase, state))

    def _rows_of(self, thread: int) -> list[_Rows]:
        """The rows that a thread updates."""
        at, result = 0, []
        for owned in self._owned:
            places = list(range(at, at + len(owned.rule.state)))
            at += len(places)
            if (rows := owned.rows(thread, self._threads)) is not None:
                result.append(_Rows(owned, rows, places))
        return result

    def _of_graph(self, thread: int) -> list[_Rows]:
        """The rows that a compiled graph updates."""
        return [one for one in self._rows_of(thread) if one.owned.kernel() is None]

    def _inputs(self, thread: int, phase: int, state: Sequence[Tensor]) -> list[Tensor]:
        """The inputs of the function that `_function` returns; none without rows."""
        items, inputs = self._of_graph(thread), list[Tensor]()
        is_clipped = self._grad_clip is not None
        is_update = phase == 1 or not is_clipped
        if is_clipped:
            inputs.append(self._norms if is_update else self._norms[thread])
        if is_update:
            inputs += self._numbers
        for one in items:
            owned, rows = one.owned, one.rows
            if is_update:
                tensors = [owned.parameter, *(state[i] for i in one.places)]
                inputs += [t[rows] if t.ndim else t for t in tensors]
            if owned.whole is not None:
                inputs.append(owned.whole[rows] if owned.whole.ndim else owned.whole)
            if phase == 0:
                inputs += owned.gradient_inputs(rows, thread)
        return inputs if items else []

    def _function(self, thread: int, phase: int) -> Callable[..., tuple[()]]:
        """The function that computes gradients, updates, or both."""
        items, largest = self._of_graph(thread), self._grad_clip

        def update(*inputs: Tensor) -> tuple[()]:
            left = iter(inputs)
            numbers = [next(left) for _ in self._numbers]
            for one in items:
                owned = one.owned
                parameter, state = next(left), [next(left) for _ in one.places]
                owned.rule.apply(parameter, owned.gradient(left), state, numbers[owned.group])
            return ()

        def gradients(*inputs: Tensor) -> tuple[()]:
            left = iter(inputs)
            square, total = next(left), torch.zeros_like(self._norms[0])
            for one in items:
                whole: Tensor = next(left)
                grad = one.owned.gradient(left)
                whole.copy_(grad)
                if not isinstance(one.owned.rule, ClosedForm):
                    total = total + (grad * grad).sum()
            square.copy_(total)
            return ()

        def clipped_update(*inputs: Tensor) -> tuple[()]:
            assert largest is not None
            left = iter(inputs)
            factor = (largest / (next(left).sum().sqrt() + 1e-6)).clamp(max=1.0)
            numbers = [next(left) for _ in self._numbers]
            for one in items:
                rule, group = one.owned.rule, one.owned.group
                parameter, state, grad = next(left), [next(left) for _ in one.places], next(left)
                if not isinstance(rule, ClosedForm):
                    grad = grad * factor
                rule.apply(parameter, grad, state, numbers[group])
            return ()

        if largest is None:
            return update
        return gradients if phase == 0 else clipped_update
