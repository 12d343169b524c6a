"""Adam on rows of a parameter together with its gradient, in one pass of a CPU's core.

    g = Σⱼ Lⱼᵀ Rⱼ,  then  m += (1 − β₁)(g − m),  v = β₂ v + (1 − β₂) g²,  w −= lr m̂ / (√v̂ + ε)

The gradient of a few elements stays in registers: a separate product writes it to memory, from
which the update reads it again.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyroae.compilation.optimizer_updates import Adam, Rule

SOURCE = Path(__file__).with_name("adam_rows.cpp")
"""The code of the kernel."""


ENTRY = "adam_rows_update"
"""Its function, of the address of `_Arguments`."""


LONGEST = 256
"""The most terms of an element's gradient: a library's product divides longer sums."""


class _Factor(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("left", "right")),
        *((name, ctypes.c_int64) for name in ("depth", "left_stride", "right_stride")),
    ]


class _Arguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("parameter", "mean", "square", "numbers")),
        ("factors", ctypes.POINTER(_Factor)),
        *(
            (name, ctypes.c_int64)
            for name in ("num_factors", "rows", "columns", "is_double", "decoupled")
        ),
        *((name, ctypes.c_double) for name in ("first", "second", "eps", "weight_decay")),
    ]


@dataclass(frozen=True)
class AdamRows:
    """The kernel with the settings of a parameter group.

    Attributes:
        rule: The rule of the group.
    """

    rule: Adam

    @classmethod
    def of(cls, rule: Rule, parameter: Tensor, terms: int) -> "AdamRows | None":
        """Make the kernel for a parameter.

        Args:
            rule: How the parameter is updated.
            parameter: The parameter.
            terms: The number of terms of an element's gradient.

        Returns:
            The kernel; None for other rules and types, and for long sums.
        """
        is_plain = parameter.is_contiguous() and parameter.dtype in (torch.float32, torch.float64)
        return cls(rule) if isinstance(rule, Adam) and is_plain and terms <= LONGEST else None

    def __call__(
        self, parameter: Tensor, mean: Tensor, square: Tensor, numbers: Tensor, *factors: Tensor
    ) -> tuple[()]:
        """Change rows in place, by operations of torch.

        Args:
            parameter: Rows of the parameter, `[n, m]`.
            mean: The same rows of m.
            square: The same rows of v.
            numbers: The numbers of the step, as of the rule.
            *factors: L `[B, n]` and R `[B, m]` of each product in turn.

        Returns:
            Nothing, as a graph without outputs.
        """
        pairs = zip(factors[::2], factors[1::2], strict=True)
        grad = torch.stack([left.t() @ right for left, right in pairs]).sum(0)
        self.rule.apply(parameter, grad, (mean, square), numbers)
        return ()

    def arguments(self, inputs: Sequence[Tensor]) -> ctypes.Structure:
        """Describe a call for the C++ code.

        Args:
            inputs: The arguments of a call, whose rows are contiguous.

        Returns:
            A structure that is valid as long as the tensors.
        """
        parameter, mean, square, numbers, *factors = inputs
        pairs = list(zip(factors[::2], factors[1::2], strict=True))
        described = (_Factor * len(pairs))(
            *(
                _Factor(a.data_ptr(), b.data_ptr(), len(a), a.stride(0), b.stride(0))
                for a, b in pairs
            )
        )
        rule: Any = self.rule
        return _Arguments(
            *(t.data_ptr() for t in (parameter, mean, square, numbers)),
            described,
            len(pairs),
            *parameter.shape,
            parameter.dtype == torch.float64,
            rule.decoupled,
            *(1 - rule.betas[0], rule.betas[1], rule.eps, rule.weight_decay),
        )
