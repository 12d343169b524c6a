"""What is rewritten in a graph before inductor makes code of it: the same numbers, from fewer
operations.
"""

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from pyroae.compilation import cpu_rewrites, optimizer_updates
from pyroae.compilation.codegen import Recorded, inductor
from pyroae.compilation.cpu_rewrites import (
    TANH_LIMIT,
    divide_polynomials,
    multiply_before_log,
    split_bias,
    sum_small_products,
    use_onednn,
)
from pyroae.compilation.onednn import LAYER
from pyroae.compilation.optimizer_steps import Update

aten = torch.ops.aten


def traced(function: object, *inputs: Tensor) -> GraphModule:
    return make_fx(function, tracing_mode="fake")(*inputs)  # type: ignore[arg-type]


def targets(graph: GraphModule) -> list[object]:
    return [node.target for node in graph.graph.nodes]


def test_a_bias_is_added_after_the_product() -> None:
    bias, left, right = torch.randn(3), torch.randn(5, 4), torch.randn(4, 3)
    graph = traced(torch.addmm, bias, left, right)
    split_bias(graph.graph)
    graph.recompile()
    assert aten.mm.default in targets(graph)
    assert aten.addmm.default not in targets(graph)
    torch.testing.assert_close(graph(bias, left, right), bias + left @ right)


def test_small_products_are_sums() -> None:
    """Of any sizes and in both precisions; as traced, and in one compiled graph of all."""
    sizes = [(80, 2, 64), (80, 1, 3), (80, 64, 3), (80, 64, 1), (1, 1, 1)]
    inputs = [
        torch.randn(shape, dtype=dtype)
        for dtype in (torch.float32, torch.float64)
        for rows, inner, columns in sizes
        for shape in ((rows, inner), (columns, inner))
    ]

    def layers(*tensors: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(tensors[::2], tensors[1::2], strict=True)
        return tuple((left.square() @ right.t()).tanh() for left, right in pairs)

    graph = traced(layers, *inputs)
    assert targets(graph).count(aten.mm.default) == 2 * len(sizes)
    sum_small_products(graph.graph)
    graph.recompile()
    graph.graph.lint()
    assert aten.mm.default not in targets(graph)
    code = inductor(traced(layers, *inputs), inputs, same_draws=True, one_core=True)
    with torch.no_grad():
        for function in (graph, code):
            torch.testing.assert_close(tuple(function(*inputs)), layers(*inputs))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (torch.randn(80, 5), torch.randn(5, 64)),
        (torch.randn(1000, 2), torch.randn(2, 64)),
        (torch.randn(64, 80).t(), torch.randn(64, 2)),  # strides along the sum
        (torch.randn(80, 0), torch.randn(0, 2)),
        (torch.randn(80, 2, dtype=torch.bfloat16), torch.randn(2, 8, dtype=torch.bfloat16)),
    ],
)
def test_other_products_stay(left: Tensor, right: Tensor) -> None:
    graph = traced(torch.mm, left, right)
    sum_small_products(graph.graph)
    assert aten.mm.default in targets(graph)


def bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """log p(x) of independent pixels, as the sum of a stable form of its terms."""
    softplus = torch.log1p(torch.exp(-logits.abs()))
    return (-((1 - x) * logits - (logits.clamp(max=0) - softplus))).sum(-1)


@pytest.mark.parametrize("size", [784, 64, 8, 122])
def test_logarithms_of_factors_become_one_of_their_product(size: int) -> None:
    logits, x = 20 * torch.randn(7, size), (torch.rand(7, size) < 0.4).float()
    logits[0] = 0.0  # every factor is 2
    graph = traced(bernoulli, logits, x)
    multiply_before_log(graph.graph)
    graph.recompile()
    graph.graph.lint()
    assert aten.log1p.default not in targets(graph)
    assert aten.prod.dim_int in targets(graph)
    found, expected = graph(logits, x).double(), bernoulli(logits.double(), x.double())
    assert (found - expected).abs().max() <= 2 * (
        bernoulli(logits, x).double() - expected
    ).abs().max() + 1e-6


def test_factors_by_a_polynomial() -> None:
    """As near to 1 + exp(−|l|) as the exponential in single precision, 1 far away; nan stays."""
    ends = torch.tensor([0.0, 1e-20, torch.inf, -torch.inf, torch.nan])
    logits = torch.cat([torch.linspace(-110, 110, 1_000_001), ends])
    alike = logits[:, None].expand(-1, 8)
    graph = traced(lambda x: torch.log1p(torch.exp(-x.abs())).sum(-1), alike)
    multiply_before_log(graph.graph)
    graph.recompile()
    assert aten.exp.default not in targets(graph)
    found, exact = graph(alike).double() / 8, torch.log1p(torch.exp(-logits.double().abs()))
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=2.6e-7, equal_nan=True)
    assert (found[logits.abs() > 18] == 0).all()


def test_a_bernoulli_likelihood_in_compiled_code() -> None:
    """The error of a sum of 784 terms is that of rounding, also where all have one sign."""
    inputs = []
    for kind in (torch.float32, torch.float64):
        logits = 6 * torch.randn(50, 784, dtype=kind)
        logits[:10] = torch.linspace(0, 30, 10, dtype=kind)[:, None]
        inputs += [logits, (torch.rand(50, 784) < 0.4).to(kind)]
    both = traced(lambda *given: (bernoulli(*given[:2]), bernoulli(*given[2:])), *inputs)
    results = inductor(both, inputs, False, one_core=True)(*inputs)
    for found, logits, x in zip(results, inputs[::2], inputs[1::2], strict=True):
        exact = bernoulli(logits.double(), x.double())
        terms = ((1 - x) * logits).abs().sum(-1) + 784
        error = 4 * torch.finfo(found.dtype).eps * terms.double()
        assert ((found.double() - exact).abs() <= error).all()


def of_the_mean(logits: Tensor, x: Tensor) -> Tensor:
    return (x * torch.log1p(torch.exp(-logits.abs()))).sum(-1)


def used_twice(logits: Tensor, x: Tensor) -> Tensor:
    softplus = torch.log1p(torch.exp(-logits.abs()))
    return softplus.sum(-1) + softplus.square().sum(-1)


def of_other_numbers(logits: Tensor, x: Tensor) -> Tensor:
    return torch.log1p(torch.exp(logits)).sum(-1)


@pytest.mark.parametrize("function", [of_the_mean, used_twice, of_other_numbers])
def test_other_sums_of_logarithms_stay(function: object) -> None:
    """Weighted terms, those that something else needs, and factors that may be large."""
    inputs = torch.randn(3, 64), torch.rand(3, 64)
    graph = traced(function, *inputs)
    before = targets(graph)
    multiply_before_log(graph.graph)
    assert targets(graph) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logarithms_in_half_precision_stay(dtype: torch.dtype) -> None:
    """2^112 is none of its numbers."""
    graph = traced(bernoulli, torch.zeros(3, 784, dtype=dtype), torch.zeros(3, 784, dtype=dtype))
    multiply_before_log(graph.graph)
    assert aten.log1p.default in targets(graph)


def test_a_prime_number_of_pixels_stays() -> None:
    graph = traced(bernoulli, torch.randn(3, 127), torch.rand(3, 127))
    multiply_before_log(graph.graph)
    assert aten.log1p.default in targets(graph)


def test_tanh_as_a_quotient() -> None:
    """As near to tanh in single precision as torch's own, small numbers and large ones included."""
    x = torch.cat(
        [
            torch.linspace(-20, 20, 100_001),
            torch.logspace(-20, 0, 1000),
            torch.tensor([0.0, TANH_LIMIT]),
        ]
    )
    graph = traced(torch.tanh, x)
    divide_polynomials(graph.graph)
    graph.recompile()
    assert aten.tanh.default not in targets(graph)
    found, exact = graph(x).double(), torch.tanh(x.double())
    assert ((found - exact).abs() <= 4e-7 * exact.abs()).all()


def test_tanh_in_double_precision_stays() -> None:
    graph = traced(torch.tanh, torch.zeros(3, dtype=torch.float64))
    divide_polynomials(graph.graph)
    assert aten.tanh.default in targets(graph)


def test_a_recorded_step_reads_what_is_given_and_changes_what_stays() -> None:
    """With a recording that calls the function again, as replaying it would do."""
    recordings = 0

    def record(run, generators):  # type: ignore[no-untyped-def]
        nonlocal recordings
        recordings += 1
        outputs = (torch.zeros(1),)
        return lambda: outputs[0].copy_(run()[0]), outputs

    def run(total: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        total.add_(x)
        return (total.sum(),)

    step, total = Recorded(run, record), torch.zeros(2)
    first = step([total], [torch.ones(1, 2)])
    second = step([total], [torch.full((1, 2), 3.0)])
    assert (first[0].item(), second[0].item()) == (
        2.0,
        8.0,
    )  # outputs of an earlier call are not overwritten
    assert recordings == 1
    other = torch.zeros(2)
    assert step([other], [torch.ones(1, 2)])[0].item() == 2.0
    assert recordings == 2
    assert total.tolist() == [4.0, 4.0]


def layer_then_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x, weight.t()).tanh().sum(-1)


def test_layers_by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight may lie in memory by its rows or by its columns; what comes after the layer reads
    the same numbers.
    """

    def both(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        rows, columns, bias = tensors
        return layer_then_norm(x, rows, bias), layer_then_norm(x, columns, bias)

    rows, columns = torch.randn(60, 50), torch.randn(50, 60).t()
    inputs = [torch.randn(37, 50), rows, columns, torch.randn(60)]
    graph = traced(both, *inputs)
    use_onednn(graph.graph)
    assert LAYER not in targets(graph)  # too small
    monkeypatch.setattr(cpu_rewrites, "LEAST_PRODUCT", 37 * 50 * 60)
    use_onednn(graph.graph)
    graph.graph.lint()
    graph.recompile()
    assert aten.addmm.default not in targets(graph)
    assert targets(graph).count(LAYER) == 2
    expected = both(*(each.double() for each in inputs))
    code = inductor(traced(both, *inputs), inputs, False, one_core=True)
    for results in (graph(*inputs), code(*inputs)):
        for found, wanted in zip(results, expected, strict=True):
            torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_layers_that_onednn_has_none_for_stay() -> None:
    """In double precision, with a factor, and with a bias for each row."""

    def scaled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.addmm(bias, x, weight.t(), beta=2.0)

    def each(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.addmm(x @ weight.t() + bias, x, weight.t())

    x, weight, bias = torch.randn(4, 5), torch.randn(6, 5), torch.randn(6)
    for function, inputs in (
        (scaled, (x, weight, bias)),
        (each, (x, weight, bias)),
        (layer_then_norm, (x.double(), weight.double(), bias.double())),
    ):
        graph = traced(function, *inputs)
        use_onednn(graph.graph)
        assert aten.addmm.default in targets(graph)
        assert LAYER not in targets(graph)


@pytest.mark.parametrize("members", [0, 3])
def test_a_grouped_update_waits_for_the_loss(monkeypatch: pytest.MonkeyPatch, members: int) -> None:
    """Every operation that changes a parameter depends on the loss, which does not change it."""
    monkeypatch.setattr(optimizer_updates, "GROUPED", ("cpu",))
    weights = torch.nn.Parameter(torch.randn(4))
    optimizer = torch.optim.Adam([weights], lr=0.1)
    weights.grad = torch.randn(4)
    optimizer.step()
    update = Update.of(optimizer, [weights])
    assert update is not None
    numbers, state = update.tensors([update.numbers()]), update.state()

    def step(w: Tensor, x: Tensor, *tensors: Tensor) -> Tensor:
        loss = (w * x).sum(-1)
        update.apply([w], [x.sum(0) if members else x], tensors, loss)
        return loss

    x = torch.randn(members, 4) if members else torch.randn(4)
    graph = traced(step, weights.detach(), x, *numbers, *state).graph
    (output,) = graph.find_nodes(op="output")
    (loss,) = output.all_input_nodes
    changes = graph.find_nodes(op="call_function", target=aten._foreach_add_.List)
    assert changes
    assert all(loss in _before(node) for node in changes)

    for value in (0.5, float("nan"), float("inf")):
        same = optimizer_updates.numbers_after(torch.full((members or 1,), value), numbers[0])
        assert torch.equal(same, numbers[0])


def _before(node: Node) -> set[Node]:
    """All nodes that a node depends on."""
    found = set(node.all_input_nodes)
    return found.union(*map(_before, node.all_input_nodes))
