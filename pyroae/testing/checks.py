"""The result of a check, and the comparisons that checks are made of."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyroae.runtime.short_repr import Overview, Shown


class ConformanceError(AssertionError):
    """An objective fails checks; the message names each with its figures.

    Args:
        message: The message.
        checks: The results of all checks.
    """

    def __init__(self, message: str, checks: "Checks | None" = None) -> None:
        super().__init__(message)
        self.checks = checks or Checks()


@dataclass(frozen=True, repr=False)
class Check(Shown):
    """The result of one check.

    Attributes:
        name: What the check asserts.
        passed: Whether the assertion holds.
        detail: The figures, such as the difference in standard errors, and the toy program.

    >>> equal("one is one", torch.ones(1), torch.ones(1)).passed
    True
    """

    name: str
    passed: bool
    detail: str

    def _overview(self) -> Overview:
        return Overview(["passed" if self.passed else "FAILED", self.name, self.detail])


class Checks(Shown, list[Check]):
    """The results of checks, in a table with a row for each assertion, failed ones first."""

    def _overview(self) -> Overview:
        failed = [check for check in self if not check.passed]
        names = dict.fromkeys(check.name for check in (*failed, *self))
        head = [f"{len(self)} checks", f"{len(failed)} failed" if failed else "all passed"]
        return Overview(
            head, [self._row(name) for name in names], ("", "passed", "check", "figures")
        )

    def _row(self, name: str) -> tuple[str, ...]:
        """How many checks of one assertion passed, and the figures of the first that failed."""
        checks = sorted((check for check in self if check.name == name), key=lambda c: c.passed)
        passed = sum(check.passed for check in checks)
        mark = "pass" if passed == len(checks) else "FAIL"
        return mark, f"{passed} of {len(checks)}", name, checks[0].detail

    def text(self) -> str:
        """Return all checks as text.

        Returns:
            A line for each check: whether it passed, what it asserts, and its figures.
        """
        return "\n".join(f"{'pass' if c.passed else 'FAIL'}  {c.name}: {c.detail}" for c in self)


def equal(name: str, actual: Tensor, expected: Tensor, of: str = "") -> Check:
    """Check that two tensors agree to rounding.

    Args:
        name: What is asserted.
        actual: The tensor of the objective.
        expected: Its right value, of the same shape.
        of: The toy program, for the detail.

    Returns:
        The check.
    """
    worst = (actual - expected).abs().max().item()
    close = torch.allclose(actual, expected, rtol=1e-7, atol=1e-9)
    found = f"found {_short(actual)}, expected {_short(expected)}"
    return Check(name, close, _of(f"differs by {worst:.3g}, {found}", of))


def zero(name: str, replicates: Tensor, of: str = "") -> Check:
    """Check that the mean of replicates is 0 in every column, to 5 standard errors.

    Args:
        name: What is asserted.
        replicates: Independent rows, shape `[R, P]`.
        of: The toy program, for the detail.

    Returns:
        The check.

    >>> zero("0.1 is 0", torch.tensor([[0.1], [0.1]])).passed
    False
    """
    z = replicates.mean(0).abs() / (replicates.std(0) / math.sqrt(len(replicates)) + 1e-9)
    return Check(name, bool(z.max() < 5), _of(f"off by {z.max():.1f} standard errors", of))


def not_below(name: str, replicates: Tensor, of: str = "") -> Check:
    """Check that the mean of replicates is 0 or more, to 5 standard errors.

    Args:
        name: What is asserted.
        replicates: Independent numbers, shape `[R]`.
        of: The toy program, for the detail.

    Returns:
        The check.
    """
    z = -replicates.mean() / (replicates.std() / math.sqrt(len(replicates)) + 1e-9)
    return Check(name, bool(z < 5), _of(f"off by {z:.1f} standard errors", of))


def _of(detail: str, toy: str) -> str:
    return f"{detail} ({toy})" if toy else detail


def _short(values: Tensor) -> str:
    return ", ".join(f"{v:.6g}" for v in values.flatten()[:3].tolist())
