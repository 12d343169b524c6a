"""Objectives that learn: their parameters are announced, stepped, saved, resumed and compiled like
the model's, in every kind of training.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.nn import PyroParam
from torch import Tensor, nn

import pyroae
from pyroae import TrainConfig, cli, fit, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.comparison.budget import Budget
from pyroae.compilation.svi import Compiled
from pyroae.config import Scoring
from pyroae.data.dataset import Dataset
from pyroae.errors import ConfigError
from pyroae.evaluation.gradient_lab.measure import measure_gradients, measure_slopes
from pyroae.nn import MLP
from pyroae.objectives.named import nvil
from pyroae.objectives.pair import Objective
from pyroae.runs.loading import load_run
from pyroae.runs.run import Run
from pyroae.studies.trainings import compare_training
from pyroae.training.checkpointing import Keeper
from pyroae.training.lockstep import are_trained_together, fit_ensemble
from pyroae.training.state import State
from tests.pictures import leave_out_pictures

WIDTH = 6


def learning(**settings: Any) -> Objective:
    return nvil(**{"num_particles": 2, "hidden": 4, **settings})


def data() -> Tensor:
    return (torch.rand(40, WIDTH, generator=torch.Generator().manual_seed(1)) < 0.4).float()


def made(seed: int = 0) -> tuple[Autoencoder, Tensor]:
    torch.manual_seed(seed)
    return zoo.discrete_vae(WIDTH, latent=3, encoder=MLP((5,))), data()


def config_of(**changes: Any) -> TrainConfig:
    settings = {"epochs": 3, "batch_size": 10, "lr": 0.02, "accelerator": "cpu", **changes}
    return TrainConfig(**settings)


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.02)


def weights_of(module: nn.Module | None) -> Tensor:
    assert module is not None
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs run as they are traced, without code generation."""
    for module in ("step_graphs", "ensemble", "shared_code"):
        monkeypatch.setattr(
            f"pyroae.compilation.{module}.inductor",
            lambda graph, inputs, same_draws, **settings: graph,
        )


def prepared(objective: Objective) -> Tensor:
    """What the objective would learn, before the first step."""
    fresh, (system, x) = deepcopy(objective), made()
    fresh.forget_controls()
    fresh.prepare(system.model, system.guide, (x,), {})
    return weights_of(fresh.controls)


# Pyro.


def stepped(objective: Objective, steps: int = 3, seed: int = 0) -> tuple[Autoencoder, list[float]]:
    system, x = made(seed)
    svi = SVI(system.model, system.guide, pyro.optim.Adam({"lr": 0.02}), objective)
    torch.manual_seed(3)
    return system, [svi.step(x) for _ in range(steps)]


def test_svi_steps_what_an_objective_learns() -> None:
    objective = learning()
    stepped(objective)
    assert not torch.allclose(weights_of(objective.controls), prepared(objective))
    names = [name for name in pyro.get_param_store() if name.startswith("objective_")]
    assert len(names) == len(list(objective.controls.parameters()))  # type: ignore[union-attr]


def test_svi_takes_the_steps_of_a_compiled_training() -> None:
    """Each with Adam of the same rate, model and guide included."""
    objective, other = learning(), learning()
    system, losses = stepped(objective, 5)
    same, x = made()
    svi = Compiled(same, other, adam, backend="eager")
    torch.manual_seed(3)
    assert losses == pytest.approx([svi.step(x).item() for _ in range(5)], rel=1e-5)
    torch.testing.assert_close(weights_of(system), weights_of(same), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        weights_of(objective.controls), weights_of(other.controls), rtol=1e-4, atol=1e-6
    )


def test_two_objectives_share_no_parameters() -> None:
    """Not even one and its copy, with the same parameters of model and guide in the store."""
    one = learning()
    stepped(one)
    other = deepcopy(one)
    before = weights_of(one.controls)
    pyro.clear_param_store()
    stepped(other, seed=1)
    stepped_twice = weights_of(other.controls)
    assert torch.equal(weights_of(one.controls), before)
    assert not torch.equal(stepped_twice, before)
    system, x = made()
    svi = SVI(system.model, system.guide, pyro.optim.Adam({"lr": 0.02}), one)
    pyro.clear_param_store()
    svi.step(x)
    third = learning()
    svi = SVI(system.model, system.guide, pyro.optim.Adam({"lr": 0.02}), third)
    svi.step(x)
    names = [name for name in pyro.get_param_store() if name.startswith("objective_")]
    assert len({name.split("$$$")[0] for name in names}) == 2
    assert torch.equal(weights_of(other.controls), stepped_twice)


def test_nothing_is_announced_where_nothing_listens() -> None:
    """Neither by an estimate, nor in trainings, of which one has KL warm-up, a handler of Pyro."""
    objective, (system, x) = learning(), made()
    objective.bound(system.model, system.guide, x)
    objective.loss_and_grads(system.model, system.guide, x)
    svi = pyroae.compile(system.model, system.guide, learning(), adam)
    svi.step(x)
    fit(system, x, learning(), config_of(kl_warmup=1), progress=False)
    assert [name for name in pyro.get_param_store() if name.startswith("objective")] == []


def test_a_store_with_other_parameters_is_refused() -> None:
    objective = learning()
    stepped(objective)
    state = deepcopy(pyro.get_param_store().get_state())
    pyro.clear_param_store()
    pyro.get_param_store().set_state(state)
    system, x = made()
    svi = SVI(lambda x: None, lambda x: None, pyro.optim.Adam({"lr": 0.02}), objective)
    with pytest.raises(ConfigError, match=r"another parameter 'objective_\d+.* than the objective"):
        svi.step(x)
    del system


class Programs(pyro.nn.PyroModule):
    """A model and a guide of one Bernoulli site, whose parameters are of the kind that Pyro's SVI
    finds under `module_local_params`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slope = PyroParam(torch.tensor(0.1))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(self.slope * z, 1.0), obs=x[:, 0])


class Guide(pyro.nn.PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.steepness = PyroParam(torch.tensor(0.1))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.steepness * x[:, 1]))


@pytest.fixture
def local_params() -> Iterator[None]:
    pyro.settings.set(module_local_params=True)
    yield
    pyro.settings.set(module_local_params=False)


@pytest.mark.usefixtures("local_params")
def test_parameters_of_modules_stay_local() -> None:
    objective, model, guide = learning(), Programs(), Guide()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), objective)
    svi.step(data())
    first = weights_of(objective.controls)
    svi.step(data())
    assert not torch.equal(weights_of(objective.controls), first)
    assert guide.steepness != 0.1
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("local", [False, True])
def test_as_a_module(local: bool) -> None:
    pyro.settings.set(module_local_params=local)
    try:
        objective, model, guide = learning(), Programs(), Guide()
        loss = objective(model, guide)
        with pytest.raises(ConfigError, match="call the module once"):
            list(loss.parameters())
        loss(data())
        assert sum(name.startswith("controls") for name, _ in loss.named_parameters()) == 4
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
        before = weights_of(objective.controls)
        for _ in range(2):
            optimizer.zero_grad()
            loss(data()).backward()
            optimizer.step()
        assert not torch.equal(weights_of(objective.controls), before)
        assert [n for n in pyro.get_param_store() if n.startswith("objective")] == []
    finally:
        pyro.settings.set(module_local_params=False)


def test_another_objective_as_a_module_is_as_before() -> None:
    loss = pyroae.TraceELBO()(Programs(), Guide())
    assert [name for name, _ in loss.named_parameters()] == [
        "model.slope_unconstrained",
        "guide.steepness_unconstrained",
    ]


# `fit`.


def by_dict() -> tuple[Any, Any]:
    """Programs of a module with data in a dict."""

    class System(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(WIDTH, 3)
            self.decoder = nn.Linear(3, WIDTH)
            self.modes: list[bool] = []

        def model(self, batch: dict[str, Tensor]) -> None:
            x = batch["x"]
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
                logits = self.decoder(z)
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

        def guide(self, batch: dict[str, Tensor]) -> None:
            self.modes.append(self.training)
            with pyro.plate("data", len(batch["x"])):
                z = dist.Bernoulli(logits=self.net(batch["x"]) + batch["y"][:, None])
                pyro.sample("z", z.to_event(1))

    torch.manual_seed(0)
    return System(), {"x": data(), "y": data()[:, 0]}


def by_pair() -> tuple[Any, Any]:
    """Functions with parameters in Pyro's store."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(pyro.param("w", torch.tensor(0.1)) * z, 1.0), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            slope = pyro.param("slope", torch.tensor(0.1))
            pyro.sample("z", dist.Bernoulli(logits=slope * x[:, 1]))

    return (model, guide), data()


@pytest.mark.parametrize("make", [made, by_dict, by_pair])
def test_a_training_steps_what_the_objective_learns(make: Callable[[], tuple[Any, Any]]) -> None:
    system, x = make()
    names = [] if isinstance(system, tuple) else list(system.state_dict())
    objective = learning()
    result = fit(system, x, objective, config_of(snapshots=(0, 3)), progress=False)
    trained = weights_of(objective.controls)
    assert trained.abs().sum() > 0
    start = deepcopy(objective)
    start.forget_controls()
    fit(make()[0], x, start, config_of(max_steps=1, lr=1e-9), progress=False)
    assert not torch.allclose(weights_of(start.controls), trained, atol=1e-4)
    if not isinstance(system, tuple):
        assert result.system is system
        assert list(system.state_dict()) == names
        for weights in result.snapshots.values():
            system.load_state_dict(weights)


def test_the_modes_of_a_system_are_those_of_its_training() -> None:
    """A program that reads `self.training` sees them, with data in a dict too."""
    system, x = by_dict()
    fit(system, x, learning(), config_of(max_steps=3), valid=x, progress=False)
    assert system.modes[-1] is False  # the validation
    assert any(system.modes)
    assert not system.training


def test_a_second_training_starts_anew() -> None:
    objective, results = learning(), []
    for _ in range(2):
        system, x = made()
        history = fit(system, x, objective, config_of(), progress=False).history
        results.append(([e.train_nelbo for e in history], weights_of(objective.controls)))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    "settings",
    [
        {"grad_clip": 0.5, "objective": {"normalize": True}},
        {"optimizer": "AdamW", "optimizer_args": {"weight_decay": 0.1}, "nonfinite": "skip"},
        {"kl_warmup": 1, "optimizer": "SGD", "lr": 1e-3, "objective": {"hidden": 0}},
        *(
            pytest.param(settings, marks=pytest.mark.slow)
            for settings in (
                {},
                {"grad_clip": 0.5, "kl_warmup": 1},
                {"optimizer": "AdamW", "optimizer_args": {"weight_decay": 0.1}},
                {"optimizer": "SGD", "lr": 1e-3},
                {"nonfinite": "skip"},
                {"objective": {"normalize": True}},
                {"objective": {"hidden": 0}},
            )
        ),
    ],
)
def test_compiled_is_eager(settings: dict[str, Any]) -> None:
    settings, results = dict(settings), []
    of_objective = settings.pop("objective", {})
    for compile in (False, True):
        (system, x), objective = made(), learning(**of_objective)
        config = config_of(compile=compile, precision="64-true", **settings)
        result = fit(system, x, objective, config, valid=x, progress=False)
        results.append(
            (
                [e.train_nelbo for e in result.history],
                weights_of(objective.controls),
                weights_of(system),
            )
        )
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-10)
    for one, other in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_a_graph_with_generated_code() -> None:
    (system, x), (same, _) = made(), made()
    objective, other = learning(), learning()
    svi = pyroae.compile(system.model, system.guide, objective, adam)
    eager = Compiled(same, other, adam)
    torch.manual_seed(0)
    losses = [svi.step(x).item() for _ in range(4)]
    torch.manual_seed(0)
    eager.eager.find_parameters((x,))
    assert losses == pytest.approx(
        [eager.eager.step((x,), None, 1.0).item() for _ in range(4)], rel=1e-5
    )
    assert svi.is_compiled
    assert sum(name.startswith("objective.") for name in svi.parameters()) == 4
    torch.testing.assert_close(
        weights_of(objective.controls), weights_of(other.controls), rtol=1e-4, atol=1e-6
    )
    system.zero_grad()
    svi.loss_and_grads(x)
    assert all(p.grad is not None for p in objective.controls.parameters())  # type: ignore[union-attr]


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("make", "compile"),
    [
        (made, True),
        (by_dict, False),
        pytest.param(made, False, marks=pytest.mark.slow),
        pytest.param(by_dict, True, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_training_ends_the_same(
    compile: bool, make: Callable[[], tuple[Any, Any]]
) -> None:
    """From its own parameters and the optimizer's state of them, in and at the end of epochs."""

    def trained(state: State | None = None, on_epoch: Any = None) -> tuple[Any, ...]:
        (system, x), objective = make(), learning()
        result = fit(
            system,
            x,
            objective,
            config_of(compile=compile),
            valid=x,
            state=state,
            on_epoch=on_epoch,
            progress=False,
        )
        return (
            [(e.train_nelbo, e.valid_nelbo) for e in result.history],
            weights_of(system),
            weights_of(objective.controls),
        )

    states: list[State] = []
    whole = trained(on_epoch=Keeper(states.append, "", minutes=0))
    assert any(name.startswith("objective.network") for name in states[0].weights)
    # Compiled steps are taken several a call, here an epoch of four.
    assert states[0].progressed.position == (4 if compile else 1)
    for state in states[:1] if compile else states[:-1:3]:
        history, *weights = trained(state)
        assert history == whole[0]
        assert all(torch.equal(a, b) for a, b in zip(weights, whole[1:], strict=True))


def test_a_submodule_of_the_same_name_is_refused() -> None:
    system, x = made()
    system.objective = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="submodule 'objective'"):
        fit(system, x, learning(), config_of(), progress=False)
    fit(system, x, pyroae.objectives.named.score(), config_of(epochs=1), progress=False)


@pytest.mark.parametrize(
    "prior",
    [pytest.param("bernoulli", marks=pytest.mark.slow), "bernoulli:learn=true"],
)
def test_a_command(tmp_path: Path, prior: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, resumed, evaluated, and its gradients measured; the run's system is a plain one."""
    leave_out_pictures(monkeypatch)
    settings = ["--system", "discrete-vae", "--latent", "3", "--hidden", "5", "--prior", prior]
    settings += ["--batch-size", "300", "--objective", "nvil:hidden=4", "--snapshots", "1"]
    out = tmp_path / "run"
    cli.main(["train", *settings, "--epochs", "2", "--out", str(out)])
    state = Run(out).state()
    assert sum(name.startswith("objective.") for name in state.weights) == 6
    cli.main(["train", "--resume", str(out), "--epochs", "3"])
    loaded = load_run(out)
    assert not any(name.startswith("objective") for name in loaded.system.state_dict())
    assert [epoch for epoch, _ in loaded.snapshots] == [1]
    cli.main(["evaluate", str(out), "--num-data", "10", "--num-particles", "20"])
    cli.main(
        [
            *("gradients", str(out), "--objectives", "nvil:hidden=4,score", "--num-data", "5"),
            *("--num-particles", "2", "--replicates", "20", "--control-steps", "3"),
        ]
    )
    assert cli.main(["gradients", str(out), "--control-steps", "-1"]) != 0


# Ensembles.


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("batched", [True, False])
def test_each_member_of_an_ensemble_has_its_own(batched: bool) -> None:
    """Equal to single trainings; the given objective is left as it is."""
    config = config_of(compile=batched, precision="64-true", batch_size=15)
    seeds, objective = (3, 4), learning()
    systems = [made(seed)[0] for seed in seeds]
    assert are_trained_together(systems[0], objective, config, 40, 2) is batched
    together = fit_ensemble(systems, data(), objective, config, seeds=seeds, progress=False)
    assert objective.controls is None
    for seed, one in zip(seeds, together, strict=True):
        system, x = made(seed)
        alone = fit(
            system,
            x,
            learning(),
            config_of(precision="64-true", batch_size=15, seed=seed),
            progress=False,
        )
        assert [e.train_nelbo for e in one.history] == pytest.approx(
            [e.train_nelbo for e in alone.history], rel=1e-10
        )
        torch.testing.assert_close(weights_of(one.system), weights_of(system), atol=1e-9, rtol=1e-7)
        assert list(one.system.state_dict()) == list(system.state_dict())


def test_members_are_stepped_by_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyroae.compilation.ensemble import Ensemble

    batched: list[bool] = []
    step = Ensemble.step

    def counted(self: Ensemble, *args: Any) -> Any:
        losses = step(self, *args)
        batched.append(self.is_batched)
        return losses

    monkeypatch.setattr("pyroae.training.lockstep.is_batched", lambda device: True)
    monkeypatch.setattr(Ensemble, "step", counted)
    for module in ("step_graphs", "ensemble", "shared_code"):
        monkeypatch.setattr(
            f"pyroae.compilation.{module}.inductor",
            lambda graph, inputs, same_draws, **settings: graph,
        )
    systems = [made(seed)[0] for seed in (3, 4)]
    fit_ensemble(systems, data(), learning(), config_of(compile=True), seeds=(3, 4), progress=False)
    assert batched[0] is False
    assert all(batched[1:])


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_in_a_comparison() -> None:
    """One graph for the members of a cell gives the scores of single trainings."""
    x, scores = Dataset.from_array(data()), []
    for compile in (True, False):
        found = compare_training(
            lambda: made()[0],
            None,
            {"nvil": lambda k: learning(num_particles=k)},
            train=x,
            held_out=x,
            ks=(2,),
            seeds=(0, 1),
            budget=Budget("epochs", 2),
            config=config_of(keep="last", compile=compile, precision="64-true"),
            scoring=Scoring(num_particles=20, num_data=None, method="is"),
            progress=False,
        )
        scores.append([outcome.nll for outcome in found.outcomes])
    assert len(scores[0]) == 2
    assert scores[0] == pytest.approx(scores[1], rel=1e-8)


# The laboratory.


def test_the_laboratory_trains_a_baseline_at_fixed_parameters() -> None:
    """The variance of the gradient falls; the system stays as it is."""
    system, x = made()
    parameters, before = dict(system.named_parameters()), weights_of(system)
    variances = []
    for steps in (0, 100):
        objective = learning()
        objective.prepare(system.model, system.guide, (x,), {})
        with torch.no_grad():
            objective.controls.constant.add_(3.0)  # type: ignore[union-attr, operator]
        found = measure_gradients(
            system.model,
            system.guide,
            x,
            {"nvil": objective},
            parameters={n: p for n, p in parameters.items() if n.startswith("encoder")},
            replicates=100,
            control_steps=steps,
        )
        variances.append(found["nvil"]["all"].variance.mean())
    assert torch.equal(weights_of(system), before)
    assert all(p.grad is None for p in parameters.values())
    assert variances[1] < variances[0] / 3


def test_the_laboratory_at_several_k() -> None:
    system, x = made()
    curves = measure_slopes(
        system.model,
        system.guide,
        x,
        {"nvil": lambda k: learning(num_particles=k)},
        ks=(1, 4),
        parameters=dict(system.named_parameters()),
        replicates=40,
        control_steps=5,
    )
    assert curves["nvil"]["all"].snr[0] > 0
    with pytest.raises(ConfigError, match="control_steps must be"):
        measure_gradients(
            system.model,
            system.guide,
            x,
            {"nvil": learning()},
            parameters=dict(system.named_parameters()),
            control_steps=-1,
        )
