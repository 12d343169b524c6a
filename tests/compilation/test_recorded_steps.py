"""A step as one CUDA graph: the numbers of eager code, nothing waited for; on a CPU, with a
function in the graph's place.
"""

import warnings
from collections.abc import Callable, Iterator
from itertools import batched

import pytest
import torch
from torch import Tensor

import pyroae
from pyroae import TraceELBO, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.compilation import graph_calls as calls
from pyroae.compilation.codegen import Recorded
from pyroae.compilation.graph_calls import GraphCall
from pyroae.compilation.svi import Compiled
from pyroae.config import TrainConfig
from pyroae.nn import MLP
from pyroae.training.fitting import fit
from pyroae.training.minibatches import Batch, Minibatches

Outputs = tuple[Tensor, ...]


def made() -> tuple[Autoencoder, Tensor]:
    torch.manual_seed(0)
    return zoo.vae(6, latent=2, encoder=MLP((5,))), (torch.rand(3, 8, 6) < 0.4).float()


def adam(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.02)


def trained(svi: Compiled, batches: Tensor) -> tuple[list[float], Tensor]:
    """Losses and parameters of ten steps, each with a seed of its own and a weight of KL
    warm-up.
    """
    losses = []
    for step in range(10):
        torch.manual_seed(step)
        losses.append(svi.step(batches[step % len(batches)], kl_weight=(step + 1) / 10))
    found = torch.stack(losses).tolist()
    return found, torch.cat([p.detach().flatten() for p in svi.parameters().values()]).cpu()


def by_repetition(
    run: Callable[[], Outputs], generators: object = ()
) -> tuple[Callable[[], None], Outputs]:
    """What a recording does, by running the function again."""
    outputs = (torch.empty(0),)

    def replay() -> None:
        found = run()[0]
        outputs[0].resize_(found.shape).copy_(found)

    return replay, outputs


@pytest.fixture
def undivided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are one graph, as on a GPU."""
    monkeypatch.setattr("pyroae.compilation.step_graphs.StepGraphs.divided_step", lambda *_: None)


@pytest.mark.usefixtures("undivided")
def test_a_recorded_step_is_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def recorded(graphs: Compiled) -> int:
        calls = [call for call in graphs._graphs.values() if call is not None]
        for call in calls:
            call.recorded = Recorded(call._in_order, by_repetition)  # type: ignore[attr-defined]
        return len(calls)

    results = []
    for on_gpu in (False, True):
        system, batches = made()
        svi = Compiled(system, TraceELBO(), adam, backend="eager")
        for step in range(2):
            torch.manual_seed(100 + step)
            svi.step(batches[0], kl_weight=0.5)
        assert not on_gpu or recorded(svi) == 1
        results.append(trained(svi, batches))
        assert svi.optimizer is not None
        svi.optimizer.load_state_dict(
            svi.optimizer.state_dict()
        )  # other tensors: what stays is recorded again
        results[-1][0].extend(trained(svi, batches)[0])
    (plain, weights), (replayed, same) = results
    assert replayed == plain
    assert torch.equal(same, weights)


@pytest.mark.usefixtures("undivided")
def test_several_recorded_steps_are_those_of_one_after_the_other() -> None:
    """Rates and weights of the KL differ from step to step; a second launch goes on where the first
    one ended.
    """
    results = []
    for together in (False, True):
        system, batches = made()
        svi = Compiled(system, TraceELBO(), adam, backend="eager")
        for _ in range(2):
            svi.step(batches[0], kl_weight=0.5)
        for call in svi._graphs.values():
            assert isinstance(call, GraphCall)
            call.recorded = Recorded(call._in_order, by_repetition)

        def before(step: int, svi: Compiled = svi) -> float:
            assert svi.optimizer is not None
            svi.optimizer.param_groups[0]["lr"] = 0.05 / (1 + step)
            return (step + 1) / 3

        torch.manual_seed(3)
        for _ in range(2):
            if together:
                losses = svi.steps(batches, before=before)
            else:
                losses = torch.stack([svi.step(batches[i], kl_weight=before(i)) for i in range(3)])
        results.append((losses, torch.cat([p.detach().flatten() for p in system.parameters()])))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.usefixtures("undivided")
def test_fit_groups_steps_without_a_change_of_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of three steps, of a training whose steps are recorded, against steps one by one; the
    last group is shorter. The graph is run as it is traced.
    """
    monkeypatch.setattr(
        "pyroae.compilation.step_graphs.inductor",
        lambda graph, inputs, same_draws, **settings: graph,
    )
    histories = []
    for most in (1, 3):
        system, batches = made()

        def groups(
            minibatches: Minibatches, epoch: int, start: int, *left: int, most: int = most
        ) -> Iterator[list[Batch]]:
            yield from (list(group) for group in batched(minibatches.epoch(epoch, start), most))

        monkeypatch.setattr(Minibatches, "groups", groups)
        monkeypatch.setattr(calls, "Recorded", lambda run, record: Recorded(run, by_repetition))
        monkeypatch.setattr(GraphCall, "is_recorded", True)
        config = TrainConfig(
            epochs=3,
            batch_size=3,
            lr=0.02,
            kl_warmup=2,
            schedule="cosine",
            accelerator="cpu",
            compile=True,
        )
        result = fit(system, batches.flatten(0, 1), config=config, progress=False)
        histories.append([row.train_nelbo for row in result.history])
    assert histories[0] == histories[1]


@pytest.fixture
def no_waiting() -> Iterator[Callable[[], None]]:
    """A function after which torch raises where it waits for the device."""

    def raises() -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")

    yield raises
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_step_on_a_gpu_is_that_of_eager_code(no_waiting: Callable[[], None]) -> None:
    system, batches = made()
    batches = batches.cuda()
    svi = pyroae.compile(*programs(system.cuda()), TraceELBO(), adam, same_draws=True)
    for _ in range(2):
        svi.step(batches[0], kl_weight=1.0)
    assert svi.is_compiled
    no_waiting()
    losses = [svi.step(batches[i % 3], kl_weight=1.0) for i in range(10)]
    torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(losses).isfinite().all()

    plain, _ = made()
    eager = Compiled(plain.cuda(), TraceELBO(), adam, backend="eager", same_draws=True)
    system, _ = made()
    compiled = Compiled(system.cuda(), TraceELBO(), adam, same_draws=True)
    (one, these), (other, those) = trained(compiled, batches), trained(eager, batches)
    assert one == pytest.approx(other, rel=1e-5)
    torch.testing.assert_close(these, those, rtol=1e-4, atol=1e-5)


def programs(system: Autoencoder) -> tuple[Callable[..., object], Callable[..., object]]:
    return system.model, system.guide


@pytest.mark.gpu
def test_training_on_a_gpu_by_recorded_steps() -> None:
    system, batches = made()
    config = TrainConfig(epochs=20, batch_size=8, lr=0.02, accelerator="cuda", compile=True)
    result = fit(system, batches.flatten(0, 1), config=config, progress=False)
    assert result.history[-1].train_nelbo < result.history[0].train_nelbo
