"""What the gradient of a parameter is computed from, some of its rows at a time.

The parts of a batch store sums of products Dᵀ R for the weight of a linear layer, and a gradient
each, to be added, for another parameter. A thread computes the gradient of the rows that it owns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyroae.compilation.adam_rows import AdamRows
from pyroae.compilation.optimizer_updates import Rule


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
