"""The update of all parameters by several threads, each of which has rows of its own.

A thread computes the gradients of its rows from the results of the parts of the batch: sums of
products Dᵀ R for the weights of linear layers, and sums over the parts for the others. Then it
updates the rows: by a kernel where there is one for the optimizer, else by a compiled graph. With a
limit on the norm of the gradient, the update follows when all threads have their gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx.graph_module import GraphModule

from pyroae.compilation.adam_rows import AdamRows
from pyroae.compilation.codegen import Graph, copy_of
from pyroae.compilation.invariant_split import as_inputs
from pyroae.compilation.optimizer_updates import ClosedForm, Rule, Update
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


class Columns:
    """A matrix D `[B, m]`, in blocks of columns that belong to one thread each.

    Args:
        rows: B.
        columns: m.
        threads: The number T of threads.
        dtype: Type of the numbers.
    """

    def __init__(self, rows: int, columns: int, threads: int, dtype: torch.dtype) -> None:
        self._own = torch.zeros(threads, rows, columns // threads, dtype=dtype)
        self._rest = torch.zeros(rows, columns % threads, dtype=dtype)

    def __len__(self) -> int:
        return len(self._rest)

    def part(self, part: int, parts: int) -> list[Tensor]:
        """Take the rows of one part of the batch, which `store` fills.

        Args:
            part: Number of the part.
            parts: The number of parts.

        Returns:
            Views of the blocks.
        """
        count = len(self) // parts
        rows = slice(part * count, (part + 1) * count)
        return [t for t in (self._own[:, rows], self._rest[rows]) if t.numel()]

    def of(self, thread: int) -> Tensor:
        """Take the columns of a thread.

        Args:
            thread: Number of the thread; T for the columns that are left.

        Returns:
            The columns, `[B, m // T]` or fewer.
        """
        return self._own[thread] if thread < len(self._own) else self._rest

    @staticmethod
    def store(matrix: Tensor, targets: Iterator[Tensor], threads: int) -> None:
        """Copy the rows of a part of the batch.

        Args:
            matrix: The rows.
            targets: Yields the result of `part`.
            threads: The number of threads.
        """
        count = matrix.shape[1] // threads
        if count:
            blocks = matrix[:, : count * threads].unflatten(1, (threads, count))
            next(targets).copy_(blocks.transpose(0, 1))
        if matrix.shape[1] % threads:
            next(targets).copy_(matrix[:, count * threads :])


@dataclass
class Owned:
    """A parameter with what its gradient is computed from.

    Attributes:
        parameter: The parameter.
        rule: How it is updated.
        group: Number of its group, whose numbers the rule takes.
        factors: D and R of each product; without any, `sums` has the gradient.
        sums: The gradient of each part, `[P, *shape]`.
        whole: The gradient; None without a limit on the norm.
    """

    parameter: Tensor
    rule: Rule
    group: int
    factors: list[tuple[Columns, Tensor]] = field(default_factory=list)
    sums: Tensor | None = None
    whole: Tensor | None = None

    def rows(self, thread: int, threads: int) -> slice | None:
        """Find the rows of a thread.

        Args:
            thread: Number of the thread; T for the rows that are left.
            threads: The number T of threads.

        Returns:
            The rows; None without any.
        """
        count = len(self.parameter) // threads if self.parameter.ndim else 0
        if thread < threads:
            return slice(thread * count, (thread + 1) * count) if count else None
        if not self.parameter.ndim:
            return slice(None)
        return slice(threads * count, None) if len(self.parameter) > threads * count else None

    def gradient_inputs(self, rows: slice, thread: int) -> list[Tensor]:
        """List what the gradient of rows is computed from.

        Args:
            rows: The rows.
            thread: Number of the thread.

        Returns:
            The inputs of `gradient`.
        """
        if self.sums is not None:
            return [self.sums[:, rows] if self.parameter.ndim else self.sums]
        return [t for columns, right in self.factors for t in (columns.of(thread), right)]

    def gradient(self, left: Iterator[Tensor]) -> Tensor:
        """Compute the gradient of rows.

        Args:
            left: Yields the result of `gradient_inputs`.

        Returns:
            The gradient.
        """
        if self.sums is not None:
            terms = list(next(left).unbind())
        else:
            terms = [next(left).t() @ next(left) for _ in self.factors]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def kernel(self) -> AdamRows | None:
        """Make the kernel that computes the gradient and updates, if there is one.

        Returns:
            The kernel; None without one, and with a limit on the norm.
        """
        if self.whole is not None:
            return None
        if self.sums is None:
            terms = sum(len(columns) for columns, _ in self.factors)
            types = {t.dtype for _, right in self.factors for t in (right, self.parameter)}
        else:
            terms, types = len(self.sums), {self.sums.dtype, self.parameter.dtype}
        return AdamRows.of(self.rule, self.parameter, terms) if len(types) == 1 else None

    def kernel_inputs(
        self, rows: slice, thread: int, state: Sequence[Tensor], numbers: Tensor
    ) -> list[Tensor]:
        """List the inputs of the kernel.

        Args:
            rows: The rows.
            thread: Number of the thread.
            state: The state of the optimizer for the parameter.
            numbers: The numbers of the step.

        Returns:
            The inputs of `AdamRows`; a gradient that is a sum is a product with ones.
        """
        gradient = self.gradient_inputs(rows, thread)
        own = [t[rows] if t.ndim else t for t in (self.parameter, *state)]
        if self.sums is not None:
            own = [t.view(1, -1) for t in own]
            sums = gradient[0].view(len(gradient[0]), -1)
            gradient = [torch.ones(len(sums), 1, dtype=sums.dtype), sums]
        return [*own, numbers, *gradient]


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
