"""Code that torch keeps on disk is found again, and only where it is the code of the same graph."""

import platform
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._guards import TracingContext, detect_fake_mode, tracing
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from pyroae.compilation import codegen, cpu_settings
from pyroae.compilation.codegen import Graph, inductor
from pyroae.compilation.cpu_rewrites import CPURewrites

CACHE = "fxgraph_cache_hit"


def traced(function: Callable[..., Any], *inputs: Tensor) -> GraphModule:
    """As `trace_to_graph` traces programs."""
    with tracing(TracingContext(FakeTensorMode())):
        return make_fx(function)(*inputs)


def compiled(function: Callable[..., Any], *inputs: Tensor) -> tuple[Graph, int]:
    """Code for a function, and how often it was found in the cache."""
    before = counters["inductor"][CACHE]
    code = inductor(traced(function, *inputs), inputs, False, one_core=True)
    return code, counters["inductor"][CACHE] - before


def test_code_is_found_again_and_for_other_constants_and_shapes_is_another() -> None:
    def with_constants(size: int, constant: float) -> Callable[[Tensor], tuple[Tensor]]:
        held = torch.full((size,), constant)
        return lambda x: ((x * held).cos() + constant,)

    for is_known in (False, True):
        for size, constant in ((4, 1.0), (4, 2.0), (5, 1.0)):
            function, x = with_constants(size, constant), torch.randn(3, size)
            code, hits = compiled(function, x)
            assert hits == 1 or not is_known
            torch.testing.assert_close(code(x)[0], function(x)[0])


def test_inputs_that_share_memory_are_not_those_that_do_not() -> None:
    def function(a: Tensor, b: Tensor) -> tuple[Tensor]:
        a.mul_(2.0)
        return (a + b,)

    both = torch.ones(8)
    for a, b in ((torch.ones(4), torch.ones(4)), (both[:4], both[4:])) * 2:
        code, _ = compiled(function, a, b)
        a.fill_(1.0)  # tracing runs the function
        torch.testing.assert_close(code(a, b)[0], torch.full((4,), 3.0))
        torch.testing.assert_close(a, torch.full((4,), 2.0))
    assert CPURewrites(True, (0, 1)).uuid() != CPURewrites(True, (0, 0)).uuid()


def test_graphs_with_large_constants_are_not_looked_for() -> None:
    """Torch would write out each of their numbers."""
    largest = codegen.LARGEST_CONSTANT
    for size, expected in ((largest, True), (largest + 1, False)):
        graph = traced(partial(torch.add, torch.randn(size)), torch.ones(1))
        with codegen._cached(graph, [torch.ones(1)]) as is_looked_for:
            assert is_looked_for == expected


@pytest.mark.parametrize(
    "error",
    [OSError("undefined symbol: Sleef_expf16_u10"), RuntimeError("C++ compile error\n\nCommand:")],
    ids=["load", "compile"],
)
def test_code_is_generated_again_without_instructions_that_the_compiler_lacks(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    import torch._inductor.config as settings

    tested: list[bool | None] = []

    def compile_fx(graph: Any, examples: Any) -> Any:
        tested.append(settings.cpp.vec_isa_ok)
        if len(tested) == 1:
            raise error
        return graph

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)
    x = torch.ones(3)
    code = inductor(make_fx(lambda x: (x + 1,))(x), [x], False)
    assert tested == [True, None]
    assert code(x)[0].tolist() == [2.0, 2.0, 2.0]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="tests of x86 instructions")
def test_instructions_that_were_assumed_are_tested_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.cpu_vec_isa import VecISA, invalid_vec_isa, pick_vec_isa

    monkeypatch.setattr(VecISA, "check_build", lambda self, code: False)
    cpu_settings.forget_vectors()
    with cpu_settings.untested_vectors():
        assert pick_vec_isa() is not invalid_vec_isa
    cpu_settings.forget_vectors()
    assert pick_vec_isa() is invalid_vec_isa
    cpu_settings.forget_vectors()


def test_other_errors_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def compile_fx(graph: Any, examples: Any) -> Any:
        calls.append(1)
        raise NotImplementedError("no lowering")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)
    x = torch.ones(3)
    with pytest.raises(NotImplementedError, match="no lowering"):
        inductor(make_fx(lambda x: (x + 1,))(x), [x], False)
    assert len(calls) == 1


def test_the_code_has_fixed_shapes() -> None:
    """A shape environment would make sizes variables."""
    x = torch.randn(4, 6).t()
    graph = traced(lambda x: (x + 1,), x)
    with codegen._cached(graph, [x]) as is_looked_for:
        assert is_looked_for
        assert detect_fake_mode([]).shape_env is not None  # type: ignore[union-attr]
    example = next(iter(graph.graph.nodes)).meta["val"]
    assert (example.shape, example.stride()) == (x.shape, x.stride())
    assert all(type(size) is int for size in (*example.shape, *example.stride()))
