"""Layers with the sum of their Bernoulli log-density in one pass: torch's numbers, and where."""

from functools import partial
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

import pyroae
from pyroae import zoo
from pyroae.compilation import core_kernels
from pyroae.compilation.bernoulli_rows import BernoulliRows, Layer
from pyroae.compilation.core_kernels import add_sums, can_sum_rows
from pyroae.compilation.noise_inputs import Draw
from pyroae.evaluation.importance import cache_parts
from pyroae.evaluation.importance.cache_parts import PartByPart
from pyroae.evaluation.importance.compiled import CompiledDraws
from pyroae.likelihoods import Normal
from pyroae.nn import MLP, Linear
from pyroae.programs.context import evaluating

K, N = 9, 5
TANH, RELU = torch.ops.aten.tanh.default, torch.ops.aten.relu.default

pytestmark = pytest.mark.skipif(not can_sum_rows(), reason="layers are not those of torch's BLAS")


def example(sizes: list[int], activation: Any, scale: float) -> tuple[BernoulliRows, list[Tensor]]:
    """Layers of these sizes, and weights, biases and data in this order."""
    torch.manual_seed(0)
    weights = [torch.randn(a, b) * scale / a**0.5 for a, b in pairwise(sizes)]
    count = len(weights)
    layers = [Layer(i, count + i, activation if i < count - 1 else None) for i in range(count)]
    data = (torch.rand(N, sizes[-1]) < 0.5).float()
    return BernoulliRows(tuple(layers), 2 * count), [*weights, *map(torch.randn, sizes[1:]), data]


def added(sums: BernoulliRows, inputs: list[Tensor], rows: Tensor) -> Tensor:
    result = torch.zeros(len(rows))
    add_sums(sums, inputs, rows, result)
    return result


@pytest.mark.parametrize("scale", [1.0, 20.0])
@pytest.mark.parametrize("activation", [TANH, RELU])
@pytest.mark.parametrize("sizes", [[3, 1], [5, 16], [2, 7, 33], [50, 20, 20, 784], [4, 3, 3100]])
def test_the_sums_are_those_of_double_precision(
    sizes: list[int], activation: Any, scale: float
) -> None:
    """Any number of rows and columns: the error is not larger than that of torch's operations."""
    sums, inputs = example(sizes, activation, scale)
    for count in (N, 13 * N, 64 * N):
        rows = torch.randn(count, sizes[0])
        exact = sums([t.double() for t in inputs], rows.double())
        torch_error = (sums(inputs, rows) - exact).abs().max()
        error = (added(sums, inputs, rows) - exact).abs().max()
        assert error <= 1.5 * torch_error + 1e-6 * (1 + exact.abs().max())


def test_the_error_of_a_pixel() -> None:
    """At most 5e-7 nats for logits of any size, and rounding of the logit itself."""
    logits = torch.cat([torch.linspace(-20, 20, 99_999), torch.tensor([-900.0, 0.0, -0.0, 900.0])])
    pixel = BernoulliRows((Layer(0, 1),), 2)
    for x in (0.0, 1.0, 0.3):
        inputs = [torch.ones(1, 1), torch.zeros(1), torch.full((1, 1), x)]
        exact = pixel([t.double() for t in inputs], logits.double()[:, None])
        error = (added(pixel, inputs, logits[:, None]) - exact).abs()
        assert (error <= 5e-7 + 1.2e-7 * exact.abs()).all()


def test_values_that_are_not_numbers_stay() -> None:
    for activation in (TANH, RELU):
        sums, inputs = example([4, 6, 20], activation, 1.0)
        rows = torch.randn(2 * N, 4)
        rows[3, 2] = torch.nan
        assert added(sums, inputs, rows).isnan().nonzero().tolist() == [[3]]


def draws_of(model: Any, guide: Any, x: Tensor, backend: str = "inductor") -> CompiledDraws:
    with evaluating(model, guide), pyro.validation_enabled(False):
        return CompiledDraws(model, guide, (x,), K, 1, backend)


def sums_of(draws: CompiledDraws) -> BernoulliRows | None:
    assert draws._graphs is not None
    code = draws._graphs[1]
    return code._sums if isinstance(code, PartByPart) else None


def graph_of(
    model: Any, guide: Any, x: Tensor
) -> tuple[GraphModule, BernoulliRows | None, list[Tensor]]:
    """The graph that would be compiled, what adds a sum to it, and its inputs."""
    with evaluating(model, guide), pyro.validation_enabled(False), torch.no_grad():
        draws = CompiledDraws(model, guide, (x,), K, 1, "eager")
        inputs = [*draws._leaves, x]
        graph, drawn = draws._traced(inputs, K)
        assert drawn is not None
        early, late, sums, _ = draws._divided(graph, drawn, inputs)
        noise = [each.empty(1)[0].normal_() for each in drawn if isinstance(each, Draw)]
        return late, sums, [*early(*inputs), *noise]


@pytest.mark.parametrize("num_data", [N, 1])
@pytest.mark.parametrize(
    ("system", "layers"),
    [
        (zoo.vae(12, latent=2, encoder=MLP((7,), "relu")), 2),
        (zoo.vae(12, latent=2, encoder=MLP((7, 6), "tanh")), 3),
        (zoo.vae(12, latent=2, encoder=MLP((7,), "softplus")), 1),
        (zoo.vae(12, latent=2, encoder=Linear()), 1),
    ],
    ids=["relu", "tanh", "softplus", "linear"],
)
def test_the_sum_and_the_other_terms_are_the_graph(
    system: Any, layers: int, num_data: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers and activations as found in traced graphs, with the sum by the kernel."""
    x = (torch.rand(num_data, 12) < 0.5).float()
    late, sums, inputs = graph_of(system.model, system.guide, x)
    assert sums is not None
    assert len(sums.layers) == layers
    monkeypatch.setattr(core_kernels, "can_sum_rows", lambda: False)
    whole, none, _ = graph_of(system.model, system.guide, x)
    assert none is None
    with torch.no_grad():
        log_weight, rows = late(*inputs)
        add_sums(sums, inputs, rows.contiguous(), log_weight)
        (expected,) = whole(*inputs)
    torch.testing.assert_close(log_weight, expected, rtol=1e-5, atol=1e-5)


def test_log_weights_are_those_of_the_graph() -> None:
    """For blocks of several data, and for the surplus of a smaller block."""
    system, x = zoo.vae(12, latent=2, hidden=(7,)), (torch.rand(N, 12) < 0.5).float()
    found = draws_of(system.model, system.guide, x)
    wanted = draws_of(system.model, system.guide, x, "eager")
    assert sums_of(found) is not None
    for block in (x, 1 - x, x[:1]):
        for seed in (0, 1):
            one, other = (d.prepare((block,))(K, seed) for d in (found, wanted))
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_other_programs_keep_their_graph() -> None:
    """Another likelihood, masked pixels, and two uses of the logits."""
    decoder = pyro.nn.PyroModule[torch.nn.Linear](2, 12)

    def model(x: Tensor, kind: str) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = decoder(z)
            pixels = dist.Bernoulli(logits=logits)
            if kind == "masked":
                pixels = pixels.mask(x < 2)
            if kind == "scaled":
                with pyro.poutine.scale(scale=0.5):
                    pyro.sample("x", pixels.to_event(1), obs=x)
                return
            pyro.sample("x", pixels.to_event(1), obs=x)
            if kind == "twice":
                pyro.sample("y", dist.Normal(logits, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 0.9).to_event(1))

    x = (torch.rand(N, 12) < 0.5).float()
    for kind, is_found in (("plain", True), ("masked", False), ("scaled", False), ("twice", False)):
        _, sums, _ = graph_of(partial(model, kind=kind), guide, x)
        assert (sums is not None) == is_found, kind
    other = zoo.vae(12, 2, likelihood=Normal())
    assert graph_of(other.model, other.guide, x)[1] is None


def test_chunks_are_divided_where_latents_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_parts, "LARGEST", 2 * N * K // 4)
    system, x = zoo.vae(12, latent=2, hidden=(7,)), (torch.rand(N, 12) < 0.5).float()
    found = draws_of(system.model, system.guide, x)
    wanted = draws_of(system.model, system.guide, x, "eager")
    assert sums_of(found) is not None
    assert found._graphs is not None
    assert isinstance(code := found._graphs[1], PartByPart)
    assert len(code._result_like) > 1
    one, other = (d.prepare((x,))(K, 0) for d in (found, wanted))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_likelihoods_agree_with_eager_ones() -> None:
    system, x = zoo.vae(12, latent=2, hidden=(7,)), (torch.rand(2 * N, 12) < 0.5).float()
    one, other = (
        pyroae.log_likelihood(system.model, system.guide, x, num_particles=4000, seed=0, compile=c)
        for c in (True, False)
    )
    error = (one.log_px - other.log_px).abs()
    assert (error < 5 * (one.se.square() + other.se.square()).sqrt() + 1e-6).all()
