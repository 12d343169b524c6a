"""A graph cut in two: the same numbers, what does not depend on the draws computed once, nothing
large handed on.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from pyroae.compilation.invariant_split import as_inputs, repeat_later, split_invariant

aten = torch.ops.aten
INPUTS = {"weight": torch.randn(5, 4), "x": torch.randn(3, 4), "noise": torch.randn(7, 3, 5)}


def cut(
    function: Callable[..., Any], *inputs: Tensor, draws: int = 1
) -> tuple[GraphModule, GraphModule]:
    """The function's graph in two, its last inputs being draws."""
    graph = make_fx(function)(*inputs)
    names = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    early, late = split_invariant(graph, names[len(names) - draws :])
    early.graph.lint()
    late.graph.lint()
    return early, late


def calls(graph: GraphModule) -> list[object]:
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


def encoded(weight: Tensor, x: Tensor, noise: Tensor) -> Tensor:
    """An encoder, its scale spread over particles, and a decoder."""
    loc, scale = x @ weight.t(), (x @ weight.t()).exp()
    z = loc.expand(7, 3, 5) + scale.expand(7, 3, 5) * noise
    return (z.reshape(21, 5) @ weight).reshape(7, 3, 4) * x.expand(7, 3, 4) + scale.log().sum(-1)[
        ..., None
    ]


def test_both_are_the_graph() -> None:
    weight, x, noise = INPUTS.values()
    early, late = cut(encoded, weight, x, noise)
    known = early(weight, x)
    for other in (noise, 2 * noise):
        torch.testing.assert_close(late(*known, other), encoded(weight, x, other), rtol=0, atol=0)


def test_what_hangs_on_no_draw_is_early_and_nothing_larger_than_it_is_handed_on() -> None:
    weight, x, noise = INPUTS.values()
    early, late = cut(encoded, weight, x, noise)
    assert aten.exp.default in calls(early)
    assert aten.log.default in calls(early)
    assert aten.exp.default not in calls(late)
    assert calls(late).count(aten.mm.default) == 1  # the decoder's
    assert max(t.numel() for t in early(weight, x)) <= weight.numel()
    assert aten.expand.default in calls(late)


def test_transposes_are_early_where_they_are_asked_for() -> None:
    def layers(weight: Tensor, noise: Tensor) -> Tensor:
        return (noise @ weight.t()).tanh() @ weight

    weight, noise = INPUTS["weight"], torch.randn(3, 4)
    graph = make_fx(layers)(weight, noise)
    early, late = split_invariant(graph, ["noise_1"], transpose=True)
    assert aten.t.default in calls(early)
    assert aten.t.default not in calls(late)
    known = [t.contiguous() for t in early(weight)]
    torch.testing.assert_close(late(*known, noise), layers(weight, noise))


def test_new_draws_need_nothing_of_the_first_part() -> None:
    early, late = cut(lambda x, noise: noise.square(), INPUTS["x"], INPUTS["noise"])
    assert early(INPUTS["x"]) == ()
    assert torch.equal(late(INPUTS["noise"]), INPUTS["noise"].square())


@pytest.mark.parametrize(
    "draw", [torch.randn_like, torch.bernoulli, lambda x: torch.empty_like(x).normal_()]
)
def test_draws_within_the_graph_are_late(draw: Callable[[Tensor], Tensor]) -> None:
    """And what is filled in place by them."""
    x = torch.rand(4)
    early, late = cut(lambda x: x.exp() + draw(x), x, draws=0)
    assert aten.exp.default in calls(early)
    known = early(x)
    torch.manual_seed(1)
    found = late(*known)
    torch.manual_seed(1)
    torch.testing.assert_close(found, x.exp() + draw(x), rtol=0, atol=0)
    assert not torch.equal(late(*known), found)


def test_what_a_late_operation_changes_in_place_is_made_anew() -> None:
    """Else the second run would start from what the first one left."""

    def adding(x: Tensor, noise: Tensor) -> Tensor:
        total = x.exp()
        part = total[:2]
        before = part.sum()
        part.add_(noise)
        return total * before

    x, noise = torch.rand(3), torch.rand(2)
    early, late = cut(adding, x, noise)
    known = early(x)
    for _ in range(3):
        torch.testing.assert_close(late(*known, noise), adding(x, noise), rtol=0, atol=0)


def test_constants_are_where_they_are_needed() -> None:
    table = torch.arange(3.0)
    x, noise = torch.rand(3), torch.rand(3)
    early, late = cut(lambda x, noise: (x + table).exp() + noise * table, x, noise)
    torch.testing.assert_close(late(*early(x), noise), (x + table).exp() + noise * table)


def test_each_result_of_an_operation_is_handed_on_by_itself() -> None:
    """Of several new tensors, as of a factorization, those that are needed; of several views what
    they are views of.
    """
    matrix, noise = torch.eye(3) + 0.1, torch.randn(7, 3)

    def function(matrix: Tensor, noise: Tensor) -> Tensor:
        first, second = matrix.exp().split([1, 2])
        values, vectors = torch.linalg.eigh(matrix)
        return noise @ vectors * values + first * noise.sum() + second.sum()

    early, late = cut(function, matrix, noise)
    known = early(matrix)
    assert sorted(tuple(t.shape) for t in known) == [(), (3,), (3, 3), (3, 3)]
    torch.testing.assert_close(late(*known, noise), function(matrix, noise), rtol=0, atol=0)


def test_constants_become_inputs_before_the_last_ones() -> None:
    constant = torch.tensor([2.0, 3.0])
    graph = make_fx(lambda x, u: x * constant + u)(torch.ones(2), torch.ones(2))
    changed, constants = as_inputs(graph, 1)
    changed.graph.lint()
    assert [t.tolist() for t in constants] == [[2.0, 3.0]]
    assert changed(torch.ones(2), constants[0], torch.ones(2)).tolist() == [3.0, 4.0]
    assert not changed.graph.find_nodes(op="get_attr")


def test_repetitions_come_after_elementwise_operations() -> None:
    """Chains of operations, with the same values; not where a reduction or a view follows."""

    def function(scale: Tensor, noise: Tensor) -> Tensor:
        wide = scale.expand(7, 3, 5)
        return noise / (2 * wide**2) - wide.log() - scale.expand(7, 3, 5).exp().view(21, 5).sum()

    inputs = torch.rand(3, 5) + 1, torch.randn(7, 3, 5)
    graph = make_fx(function)(*inputs)
    later = repeat_later(graph)
    later.graph.lint()
    torch.testing.assert_close(later(*inputs), graph(*inputs), rtol=0, atol=0)
    names = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    early, _ = split_invariant(later, names[1:])
    sizes = {node.target: node.meta["val"].numel() for node in early.graph.nodes if node.meta}
    assert sizes[aten.log.default] == sizes[aten.pow.Tensor_Scalar] == sizes[aten.mul.Tensor] == 15
    assert sizes[aten.exp.default] == 105


def test_graphs_with_operations_in_place_do_not_change() -> None:
    graph = make_fx(lambda scale: scale.expand(7, 3).log().add_(1))(torch.ones(3))
    assert repeat_later(graph) is graph
