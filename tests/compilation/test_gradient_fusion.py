"""A step with fused gradients takes the numbers of one without; on a CPU by torch's operations."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from pyroae import TraceELBO, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.compilation import gradient_fusion, optimizer_updates
from pyroae.compilation.adam_operators import ADAM, DENSE_ADAM
from pyroae.compilation.ensemble import Ensemble, Stream
from pyroae.compilation.gradient_fusion import fuse_gradients
from pyroae.compilation.svi import Compiled
from pyroae.nn import MLP, Linear
from pyroae.objectives import OBJECTIVES

Optimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
aten = torch.ops.aten


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.02)


def adam_with_decay(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.02, weight_decay=0.1, betas=(0.8, 0.99))


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[GraphModule]:
    """The traced steps, which run as rewritten, of updates as on a GPU."""
    found: list[GraphModule] = []

    def rewritten(graph: GraphModule, *_: object, **__: object) -> GraphModule:
        fuse_gradients(graph)
        found.append(graph)
        return graph

    monkeypatch.setattr(optimizer_updates, "GROUPED", ("cpu", "cuda"))
    monkeypatch.setattr(optimizer_updates, "FUSED", True)
    for module in ("step_graphs", "ensemble"):
        monkeypatch.setattr(f"pyroae.compilation.{module}.inductor", rewritten)
    return found


def fused(graph: GraphModule) -> int:
    """How many parameters are updated with their gradients."""
    assert not graph.graph.find_nodes(op="call_function", target=ADAM)
    nodes = graph.graph.find_nodes(op="call_function", target=DENSE_ADAM)
    return sum(len(node.args[0]) for node in nodes)


def products(graph: GraphModule) -> int:
    return sum(
        len(graph.graph.find_nodes(op="call_function", target=target))
        for target in (aten.mm.default, aten.bmm.default)
    )


def vae() -> tuple[Autoencoder, Tensor]:
    torch.manual_seed(0)
    return zoo.vae(37, latent=3, encoder=MLP((17,))), (torch.rand(9, 37) < 0.4).float()


def trained(
    system: nn.Module, x: Tensor, objective: Any, optimizer: Optimizer, **settings: Any
) -> tuple[Tensor, Tensor]:
    """Losses and parameters after five steps."""
    svi = Compiled(system, objective, optimizer, **settings)
    losses = []
    for step in range(5):
        torch.manual_seed(step)
        losses.append(svi.step(x, divisor=len(x)))
    assert svi.is_compiled
    return torch.stack(losses), torch.cat([p.detach().flatten() for p in svi.parameters().values()])


def agree(one: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "particles"),
    [
        pytest.param(optimizer, particles, marks=pytest.mark.slow if i % 2 == j else ())
        for i, optimizer in enumerate((adam, adam_with_decay, adamw))
        for j, particles in enumerate((1, 3))
    ],
)
def test_a_fused_step_is_the_step(
    optimizer: Optimizer,
    particles: int,
    graphs: list[GraphModule],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With several particles the rows of a product are those of all particles."""
    objective = OBJECTIVES["trace-elbo" if particles == 1 else "iwae"](num_particles=particles)
    plain = trained(*vae(), objective, optimizer, backend="eager")
    agree(trained(*vae(), objective, optimizer), plain)
    assert fused(graphs[0]) == 8
    monkeypatch.setattr(gradient_fusion, "LONGEST", 8)  # of nine data or more
    agree(trained(*vae(), objective, optimizer), plain)
    assert fused(graphs[1]) == 0
    assert products(graphs[1]) == products(graphs[0]) + 4


def test_without_fusion_a_step_has_the_grouped_operations(
    graphs: list[GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer_updates, "FUSED", False)
    plain = trained(*vae(), TraceELBO(), adam, backend="eager")
    agree(trained(*vae(), TraceELBO(), adam), plain)
    targets = {str(node.target) for node in graphs[0].graph.nodes}
    assert "aten._foreach_lerp_.Scalar" in targets
    assert not [target for target in targets if target.startswith("pyroae")]


def test_clipped_gradients_are_not_fused(graphs: list[GraphModule]) -> None:
    plain = trained(*vae(), TraceELBO(), adam, backend="eager", grad_clip=0.5)
    agree(trained(*vae(), TraceELBO(), adam, grad_clip=0.5), plain)
    assert fused(graphs[0]) == 0


class Tied(nn.Module):
    """A layer that is used twice, between two others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(7, 5), nn.Linear(5, 5), nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.first(x).tanh()).tanh()
        return self.last(self.twice(x).tanh())


def test_only_gradients_that_are_one_product_are_fused(graphs: list[GraphModule]) -> None:
    def system() -> Autoencoder:
        torch.manual_seed(1)
        made = zoo.vae(7, latent=2, encoder=MLP((5,)))
        made.decoder = nn.Sequential(nn.Linear(2, 7), Tied())
        return made

    x = (torch.rand(6, 7, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    plain = trained(system(), x, TraceELBO(), adam, backend="eager")
    agree(trained(system(), x, TraceELBO(), adam), plain)
    assert fused(graphs[0]) == 10  # two layers of the encoder and three of the decoder


def test_members_of_an_ensemble_are_fused(
    graphs: list[GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for longest in (512, 0):
        monkeypatch.setattr(gradient_fusion, "LONGEST", longest)
        members = [Compiled(vae()[0], TraceELBO(), adamw) for _ in range(3)]
        streams = []
        for seed in range(3):
            torch.manual_seed(seed)
            streams.append(Stream(torch.device("cpu")))
        ensemble, x = Ensemble(members, streams), vae()[1]
        batches = [(x,), (x.flip(0),), (1 - x,)]
        losses = [torch.stack(ensemble.step(batches, divisor=9.0)) for _ in range(4)]
        assert ensemble.is_batched
        results.append([*losses, *ensemble.leaves])
    agree(*results)
    assert [fused(graph) for graph in graphs] == [8, 0]


def test_compiled_code_reads_a_parameter_before_its_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loss is computed from the parameters before the step; one operator for each layer."""
    monkeypatch.setattr(optimizer_updates, "GROUPED", ("cpu", "cuda"))
    monkeypatch.setattr(optimizer_updates, "FUSED", True)
    monkeypatch.setattr(gradient_fusion, "MOST", 1)

    def linear() -> tuple[Autoencoder, Tensor]:
        torch.manual_seed(0)
        return zoo.vae(9, latent=2, encoder=Linear()), vae()[1][:, :9]

    plain = trained(*linear(), TraceELBO(), adam, backend="eager")
    agree(trained(*linear(), TraceELBO(), adam), plain)


INTERPRETED = """
import torch
from pyroae.compilation import adam_kernel
from pyroae.compilation.adam_operators import dense_adam

numbers = torch.tensor([-0.01, 1.3, 0.999])
for lead, settings in (((), (0.9, 0.999, 1e-8, 0.0, False)), ((3,), (0.8, 0.99, 1e-6, 0.1, False)),
                       ((3,), (0.8, 0.99, 1e-6, 0.1, True))):
    torch.manual_seed(0)
    weights = [torch.randn(*lead, 7, 33), torch.randn(*lead, 40, 5)]
    state = [[*weights, torch.randn(*lead, 40)]]
    state += [[torch.rand_like(p) for p in state[0]] for _ in range(2)]
    left = torch.randn(*lead, 21, 40).mT
    lefts = [torch.randn(*lead, 7, 21), left, left]
    rights = [torch.randn(*lead, 33, 21).mT, torch.randn(*lead, 21, 5)]
    factors = lefts, rights, [0.5, 1.0, 2.0], False, numbers
    for outer in (False, True):
        adam_kernel.tiles_for = lambda batch: adam_kernel.Tiles(16, 16, 16, outer=outer)
        one, other = ([[t.clone() for t in tensors] for tensors in state] for _ in range(2))
        dense_adam(*one, *factors, *settings)
        adam_kernel.launch(*other, *factors, settings)
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernel_interpreted_on_a_cpu() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERPRETED],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.gpu
def test_fused_steps_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for is_fused in (True, False):
        monkeypatch.setattr(optimizer_updates, "FUSED", is_fused)
        system, x = vae()
        results.append([t.cpu() for t in trained(system.cuda(), x.cuda(), TraceELBO(), adam)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
