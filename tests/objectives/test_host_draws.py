"""Objectives whose next estimate depends on a draw on the host: one draw before each step, in every
path of a training.
"""

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor

import pyroae
from pyroae import TrainConfig, fit, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.compilation.codegen import Recorded
from pyroae.compilation.ensemble import Ensemble, Stream
from pyroae.compilation.graph_calls import GraphCall
from pyroae.compilation.step_graphs import StepGraphs
from pyroae.compilation.svi import Compiled
from pyroae.evaluation.gradient_lab.measure import measure_gradients
from pyroae.nn import MLP
from pyroae.training.checkpointing import Keeper
from pyroae.training.lockstep import are_trained_together, fit_ensemble
from pyroae.training.state import State
from tests.compilation.test_recorded_steps import by_repetition
from tests.random_particles import RandomParticles


def made(seed: int = 0) -> tuple[Autoencoder, Tensor]:
    torch.manual_seed(seed)
    system = zoo.vae(6, latent=2, encoder=MLP((5,)))
    return system, (torch.rand(40, 6, generator=torch.Generator().manual_seed(1)) < 0.4).float()


def config_of(**changes: Any) -> TrainConfig:
    settings = {"epochs": 3, "batch_size": 10, "lr": 0.02, "accelerator": "cpu", **changes}
    return TrainConfig(**settings)


def adam(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.02)


def weights_of(system: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in system.parameters()])


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs run as they are traced, without code generation."""
    for module in ("step_graphs", "ensemble", "shared_code"):
        monkeypatch.setattr(
            f"pyroae.compilation.{module}.inductor",
            lambda graph, inputs, same_draws, **settings: graph,
        )


def by_svi(objective: RandomParticles) -> Callable[[Tensor], Any]:
    system, _ = made()
    return SVI(system.model, system.guide, pyro.optim.Adam({"lr": 0.02}), objective).step


def by_module(objective: RandomParticles) -> Callable[[Tensor], Any]:
    system, _ = made()
    loss = objective(system.model, system.guide)
    return lambda x: loss(x).backward()


def by_graph(objective: RandomParticles) -> Callable[[Tensor], Any]:
    system, _ = made()
    return Compiled(system, objective, adam, backend="eager").step


def by_gradients(objective: RandomParticles) -> Callable[[Tensor], Any]:
    system, _ = made()
    return Compiled(system, objective, backend="eager").value_and_grads


def by_added_gradients(objective: RandomParticles) -> Callable[[Tensor], Any]:
    system, _ = made()
    return Compiled(system, objective, backend="eager").loss_and_grads


@pytest.mark.parametrize("path", [by_svi, by_module, by_graph, by_gradients, by_added_gradients])
def test_one_draw_before_each_step(path: Callable[[RandomParticles], Any]) -> None:
    objective, (_, x) = RandomParticles(), made()
    step = path(objective)
    for steps in range(1, 8):
        step(x)
        assert len(objective.drawn) == steps
    assert len(set(objective.drawn)) > 1


def test_a_bound_takes_the_present_variant() -> None:
    objective, (system, x) = RandomParticles(), made()
    objective.bound(system.model, system.guide, x)
    assert objective.drawn == []


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("settings", "compile"),
    [
        ({}, False),
        ({"nonfinite": "skip"}, True),
        pytest.param({}, True, marks=pytest.mark.slow),
        ({"nonfinite": "skip"}, False),
        ({"batch_size": 15}, False),
        pytest.param({"batch_size": 15}, True, marks=pytest.mark.slow),
    ],
)
def test_a_training_draws_once_for_each_step_and_once_for_each_validation(
    settings: dict[str, Any], compile: bool
) -> None:
    objective, (system, x) = RandomParticles(), made()
    result = fit(
        system, x, objective, config_of(compile=compile, **settings), valid=x, progress=False
    )
    assert len(objective.drawn) == result.history[-1].step + 3
    assert set(objective.drawn) == {1, 2, 3}


@pytest.mark.usefixtures("traced")
def test_compiled_steps_are_those_of_eager_code() -> None:
    """A graph is made for each variant and each size of batches."""
    results = []
    for compile in (False, True):
        (system, x), objective = made(), RandomParticles()
        config = config_of(compile=compile, precision="64-true", epochs=4)
        result = fit(system, x, objective, config, progress=False)
        results.append(([e.train_nelbo for e in result.history], objective.drawn))
    assert results[0][1] == results[1][1]
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-10)


def test_steps_of_one_launch_are_grouped_by_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variants 1, 1, 2, 3 in turn: the steps of each group are one launch."""
    monkeypatch.setattr(StepGraphs, "divided_step", lambda *_: None)  # as on a GPU
    results, launches = [], []
    for together in (False, True):
        (system, x), objective = made(), RandomParticles(cycle=True)
        svi = Compiled(system, objective, adam, backend="eager")
        rows = x.reshape(4, 10, 6)
        for i in range(8):
            svi.step(rows[i % 4], kl_weight=0.5)

        def before(step: int, svi: Compiled = svi) -> float:
            assert svi.optimizer is not None
            svi.optimizer.param_groups[0]["lr"] = 0.05 / (1 + step)
            return (step + 1) / 4

        for call in svi._graphs.values():
            assert isinstance(call, GraphCall)
            call.recorded = Recorded(call._in_order, by_repetition)
            inner = call.run_steps

            def counted(tensors: Any, numbers: Any, inner: Any = inner) -> Any:
                launches.append(len(numbers))
                return inner(tensors, numbers)

            call.run_steps = counted  # type: ignore[method-assign]
        torch.manual_seed(3)
        launches.clear()
        for _ in range(2):
            if together:
                losses = svi.steps(rows, before=before)
            else:
                losses = torch.stack([svi.step(rows[i], kl_weight=before(i)) for i in range(4)])
        results.append((losses, weights_of(system), objective.drawn))
    assert launches == [2, 1, 1] * 2
    assert results[0][2] == results[1][2]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_steps_of_a_new_variant_are_compiled_between_launches() -> None:
    """A graph is made for each variant."""
    (system, x), objective = made(), RandomParticles(cycle=True)
    svi = Compiled(system, objective, adam, backend="eager")
    losses = svi.steps(x.reshape(4, 10, 6))
    assert losses.shape == (4,)
    assert objective.drawn == [1, 1, 2, 3]
    for _ in range(4):
        svi.step(x[:10])
    graphs = list(svi._graphs.values())
    assert len(graphs) == 3
    assert None not in graphs


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_resumed_training_draws_the_same(compile: bool) -> None:
    def trained(
        state: State | None = None, on_epoch: Any = None
    ) -> tuple[Tensor, list[float], list[float]]:
        (system, x), config = made(), config_of(compile=compile)
        result = fit(
            system,
            x,
            RandomParticles(),
            config,
            valid=x,
            state=state,
            on_epoch=on_epoch,
            progress=False,
        )
        history = result.history
        return (
            weights_of(system),
            [e.train_nelbo for e in history],
            [e.valid_nelbo for e in history],
        )

    states: list[State] = []
    whole = trained(on_epoch=Keeper(states.append, "", minutes=0))
    assert [state.progressed.position for state in states][:3] == [1, 2, 3]
    for state in states[:-1:3]:  # in and at the end of epochs
        weights, *bounds = trained(state)
        assert torch.equal(weights, whole[0])
        assert tuple(bounds) == whole[1:]


def test_members_of_an_ensemble_are_trained_one_after_the_other() -> None:
    system, x = made()
    config = config_of(compile=True, precision="64-true")
    assert not are_trained_together(system, RandomParticles(), config, len(x), 2)
    assert are_trained_together(system, pyroae.TraceELBO(), config, len(x), 2)


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_members_of_an_ensemble_are_single_trainings() -> None:
    config = config_of(compile=True, precision="64-true")
    systems = [made(seed)[0] for seed in (3, 4)]
    x = made()[1]
    together = fit_ensemble(
        systems, x, RandomParticles(most=2), config, seeds=(3, 4), progress=False
    )
    for seed, one in zip((3, 4), together, strict=True):
        alone = fit(
            made(seed)[0],
            x,
            RandomParticles(most=2),
            config_of(compile=True, precision="64-true", seed=seed),
            progress=False,
        )
        assert torch.equal(weights_of(one.system), weights_of(alone.system))


def test_members_that_are_stepped_together_draw_each_their_own() -> None:
    """By the ensemble itself: step by step, and without a warning."""
    x, results = made()[1], []
    for together in (True, False):
        members, streams = [], []
        for seed in (3, 4):
            torch.manual_seed(seed)
            streams.append(Stream(torch.device("cpu")))
            objective = RandomParticles(most=2)
            members.append(Compiled(made(seed)[0], objective, adam, backend="eager"))
        ensemble = Ensemble(members, streams)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(6):
                if together:
                    ensemble.step([(x,), (x,)])
                else:
                    for member, stream in zip(members, streams, strict=True):
                        with stream.in_use():
                            member.step(x)
        assert not ensemble.is_batched
        results.append([(weights_of(member.system), member.objective.drawn) for member in members])
    for (one, drawn), (other, same) in zip(*results, strict=True):
        assert drawn == same
        assert torch.equal(one, other)
    assert results[0][0][1] != results[0][1][1]


def test_the_laboratory_draws_for_each_replicate() -> None:
    (system, x), objective = made(), RandomParticles()
    found = measure_gradients(
        system.model,
        system.guide,
        x,
        {"random": objective},
        parameters=dict(system.named_parameters()),
        replicates=40,
    )["random"]["all"]
    assert len(objective.drawn) == 40 + 2  # a trial run, and one that is not timed
    assert set(objective.drawn) == {1, 2, 3}
    assert found.evaluations == 2 * len(x)
