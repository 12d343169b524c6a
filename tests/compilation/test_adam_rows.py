"""The kernel of Adam with its gradient: torch's numbers, for any shape, type and setting."""

import ctypes
import itertools
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from torch import Tensor

from pyroae.compilation import step_loop
from pyroae.compilation.adam_rows import ENTRY, AdamRows
from pyroae.compilation.optimizer_updates import SGD, Adam
from pyroae.compilation.step_loop import Call, StepLoop, kernel_address

SHAPES = [(1, 1), (6, 64), (7, 65), (13, 100), (5, 3), (12, 16), (3, 87)]

RULES = {
    "Adam": Adam((0.9, 0.999), 1e-8, 0.0, False),
    "decay": Adam((0.8, 0.99), 1e-6, 0.1, False),
    "AdamW": Adam((0.9, 0.999), 1e-8, 0.1, True),
    "no epsilon": Adam((0.9, 0.999), 0.0, 0.0, False),
}


def inputs_of(shape: tuple[int, int], dtype: torch.dtype, terms: tuple[int, ...]) -> list[Tensor]:
    rows, columns = shape
    parameter, mean, square = (torch.randn(shape, dtype=dtype) for _ in range(3))
    numbers = torch.tensor([-1e-2, 1.3, 0.999], dtype=dtype)
    factors = []
    for count in terms:
        # The rows of L are a part of those of a larger matrix, as columns of one thread are.
        factors += [torch.randn(count, rows + 3, dtype=dtype)[:, 2 : 2 + rows]]
        factors += [torch.randn(count, columns, dtype=dtype)]
    return [parameter, mean, square.square(), numbers, *factors]


def run(kernel: AdamRows, inputs: list[Tensor]) -> None:
    """Call the C++ code."""
    arguments = kernel.arguments(inputs)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kernel_address(ENTRY))(ctypes.addressof(arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(RULES))
def test_the_kernel_is_the_rule(name: str, dtype: torch.dtype) -> None:
    kernel, tolerance = AdamRows(RULES[name]), 1e-12 if dtype == torch.float64 else 2e-6
    torch.manual_seed(0)
    for shape, terms in itertools.product(SHAPES, [(1,), (20,), (3, 40)]):
        inputs = inputs_of(shape, dtype, terms)
        wanted = [t.clone() for t in inputs]
        wanted = [t.double() for t in inputs] if name != "no epsilon" else wanted
        kernel(*wanted)
        run(kernel, inputs)
        for found, one in zip(inputs[:3], wanted[:3], strict=True):
            torch.testing.assert_close(
                found, one.to(dtype), rtol=tolerance * 4, atol=tolerance * float(one.abs().max())
            )


def test_zero_and_extreme_moments() -> None:
    """A pixel that is always zero has v = 0; subnormal, huge and missing numbers are torch's."""
    kernel, settings = AdamRows(RULES["Adam"]), {"rtol": 1e-5, "atol": 0.0, "equal_nan": True}
    values = [0.0, 1e-44, 1e-40, 1e-38, 1e-30, 1.0, 1e30, 3e38, float("inf"), float("nan")]
    for value in values:
        inputs = inputs_of((6, 64), torch.float32, (4,))
        inputs[5].zero_()  # the gradient
        inputs[2].zero_()
        inputs[2][1, 3] = inputs[2][2, :] = value
        wanted = [t.clone() for t in inputs]
        kernel(*wanted)
        run(kernel, inputs)
        for found, one in zip(inputs[:3], wanted[:3], strict=True):
            torch.testing.assert_close(found, one, **settings)  # type: ignore[arg-type]


def test_where_there_is_a_kernel() -> None:
    weight = torch.zeros(4, 5)
    adam: Any = RULES["Adam"]
    assert AdamRows.of(adam, weight, 20) is not None
    assert AdamRows.of(adam, weight, 10_000) is None
    assert AdamRows.of(adam, weight.bfloat16(), 20) is None
    assert AdamRows.of(adam, weight.t(), 20) is None
    assert AdamRows.of(SGD(0.9, 0.0, False), weight, 20) is None


def test_the_loop_calls_the_kernel() -> None:
    kernel = AdamRows(RULES["Adam"])
    inputs = inputs_of((7, 65), torch.float32, (20,))
    wanted = [t.clone() for t in inputs]
    for _ in range(3):
        kernel(*wanted)
    StepLoop(1, [Call(0, 0, kernel, inputs)], [])([[], [], []])
    torch.testing.assert_close(inputs[0], wanted[0], rtol=1e-5, atol=1e-5)


def test_a_compiler_without_some_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's code is compiled again, after torch's tests of the instructions."""

    def failed() -> Any:
        future = Future[Any]()
        future.set_exception(RuntimeError("C++ compile error"))
        return future

    calls: list[str] = []
    monkeypatch.setattr(step_loop, "start_compiling", failed)
    monkeypatch.setattr(step_loop, "forget_vectors", lambda: calls.append("forgotten"))
    monkeypatch.setattr(step_loop, "_compiled", lambda: calls.append("compiled"))
    step_loop._library.cache_clear()
    step_loop._library()
    step_loop._library.cache_clear()
    assert calls == ["forgotten", "compiled"]
