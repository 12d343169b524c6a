"""Ensembles: the losses and weights of separate trainings, from one graph for all members."""

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyroae import TrainConfig, fit, load, zoo
from pyroae.comparison.budget import Budget
from pyroae.compilation.codegen import Recorded
from pyroae.compilation.ensemble import Ensemble, Stream, _Batched
from pyroae.compilation.noise_inputs import NotLiftedError, lift_draws
from pyroae.compilation.svi import Compiled
from pyroae.config import Scoring
from pyroae.data.dataset import Dataset
from pyroae.errors import ConfigError, NonFiniteLossError
from pyroae.nn import MLP
from pyroae.objectives import OBJECTIVES, TraceELBO
from pyroae.objectives.named import iwae
from pyroae.studies.trainings import compare_training
from pyroae.training.lockstep import are_trained_together, fit_ensemble
from pyroae.training.side_by_side import SideBySide
from pyroae.training.state import State
from pyroae.training.trainer import FitResult, Trainer
from tests.systems import DISCRETE, SYSTEMS, D

SEEDS = (3, 4, 5)
ALL = {**SYSTEMS, **DISCRETE}
Make = Callable[[], nn.Module]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs run as they are traced: what a step computes, without the minute that code takes."""
    for module in ("step_graphs", "ensemble", "shared_code"):
        monkeypatch.setattr(
            f"pyroae.compilation.{module}.inductor",
            lambda graph, inputs, same_draws, **settings: graph,
        )


@pytest.fixture(params=["side by side", "batched"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How members are stepped: as on a CPU, and as on a GPU."""
    is_batched = request.param == "batched"
    monkeypatch.setattr("pyroae.training.lockstep.is_batched", lambda device: is_batched)
    return str(request.param)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The number of torch's threads, on which no number of an ensemble depends."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def data(num_data: int = 30) -> Tensor:
    return (torch.rand(num_data, D, generator=torch.Generator().manual_seed(5)) < 0.4).to(
        torch.get_default_dtype()
    )


def new(make: Make, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def config_of(**changes: Any) -> TrainConfig:
    return TrainConfig(
        **{
            "epochs": 3,
            "batch_size": 10,
            "lr": 0.01,
            "precision": "64-true",
            "compile": True,
            **changes,
        }
    )


def both(
    make: Make, objective: Any, config: TrainConfig, given: Any, seeds: Sequence[int] = SEEDS
) -> tuple[list[FitResult], list[FitResult]]:
    """The results of an ensemble, and of separate trainings run as they are."""
    together = fit_ensemble(
        [new(make, s) for s in seeds], given, objective(), config, seeds=seeds, progress=False
    )
    alone = [
        fit(
            new(make, s), given, objective(), replace(config, seed=s, compile=False), progress=False
        )
        for s in seeds
    ]
    return together, alone


def assert_alike(
    together: Sequence[FitResult], alone: Sequence[FitResult], rel: float = 1e-9
) -> None:
    """Losses, validation bounds and weights, for members that differ among themselves."""
    for one, other in zip(together, alone, strict=True):
        for name in ("train_nelbo", "valid_nelbo", "rate"):
            found = [getattr(epoch, name) for epoch in one.history]
            assert found == pytest.approx(
                [getattr(epoch, name) for epoch in other.history], rel=rel, nan_ok=True
            ), name
        assert [(e.epoch, e.step) for e in one.history] == [
            (e.epoch, e.step) for e in other.history
        ]
        assert one.best_epoch == other.best_epoch
        assert not one.system.training
        for (name, weight), wanted in zip(
            one.system.named_parameters(), other.system.parameters(), strict=True
        ):
            torch.testing.assert_close(weight, wanted, rtol=10 * rel, atol=rel, msg=name)
    losses = [result.history[-1].train_nelbo for result in together]
    assert all(abs(a - b) > 1e-4 for a, b in pairwise(losses))


# The same numbers as separate trainings.

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped, scheduled": {"grad_clip": 0.3, "schedule": "cosine"},
    "KL warm-up": {"kl_warmup": 2},
    "AdamW": {"optimizer": "AdamW", "optimizer_args": {"weight_decay": 0.1}},
    "SGD": {"optimizer": "SGD", "optimizer_args": {"momentum": 0.9, "nesterov": True}},
    "last batch smaller": {"batch_size": 12},
    "in the middle of an epoch": {"max_steps": 5},
    "last weights": {"keep": "last"},
}
SEVERAL: dict[str, dict[str, Any]] = {
    "last weights": CONFIGS["clipped, scheduled"]
    | CONFIGS["AdamW"]
    | CONFIGS["KL warm-up"]
    | CONFIGS["last batch smaller"]
    | CONFIGS["last weights"],
    "SGD": CONFIGS["SGD"] | CONFIGS["in the middle of an epoch"],
}
"""Every setting in one of two trainings, for `make test`; `make study` has each alone."""


@pytest.mark.usefixtures("traced", "float64", "how")
@pytest.mark.parametrize(
    ("how", "settings"),
    [
        pytest.param(how, settings, marks=marks, id=f"{how}-{name}")
        for how in ("side by side", "batched")
        for name, settings, marks in (
            ("last weights and others", SEVERAL["last weights"], ()),
            ("SGD and others", SEVERAL["SGD"], () if how == "batched" else pytest.mark.slow),
            *((name, one, pytest.mark.slow) for name, one in CONFIGS.items()),
        )
    ],
    indirect=["how"],
)
def test_an_ensemble_is_its_members_trained_apart(settings: dict[str, Any]) -> None:
    """Seeds with weights, order of the data, binarization and draws of their own."""
    grey = torch.rand(40, D, generator=torch.Generator().manual_seed(5))
    splits = load(grey, binarize="dynamic", valid=0.2, test=0.1, value_range=(0.0, 1.0))
    config = config_of(**settings)
    together, alone = both(SYSTEMS["vae"], partial(iwae, 3), config, splits, SEEDS[:2])
    assert_alike(together, alone)
    assert together[0].compile_seconds > 0


CASES = [
    ("vae", "trace-elbo"),
    ("vae-laplace", "dreg"),
    ("vae-normal", "tvo"),
    ("vae-conv", "trace-elbo"),
    ("denoising-vae", "stl"),
    ("sparse-ae-map", "trace-elbo"),
    ("ppca-exact", "rws"),
    ("discrete-vae", "vimco"),
    ("discrete-vae-categorical", "score"),
]


ALWAYS = {
    "side by side": ("discrete-vae",),
    "batched": ("vae-conv", "denoising-vae", "discrete-vae-categorical"),
}
"""Systems for `make test`, with a draw of each kind in one of the ways; `make study` has all."""


@pytest.mark.usefixtures("traced", "float64", "how")
@pytest.mark.parametrize(
    ("how", "name", "objective"),
    [
        pytest.param(how, *case, marks=() if case[0] in systems else pytest.mark.slow)
        for how, systems in ALWAYS.items()
        for case in CASES
    ],
    indirect=["how"],
)
def test_systems_and_estimators(name: str, objective: str) -> None:
    """Draws of every kind: normal, uniform, Bernoulli, categorical."""
    config = config_of(epochs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_alike(
            *both(
                ALL[name],
                partial(OBJECTIVES[objective], num_particles=2),
                config,
                data(),
                SEEDS[:2],
            )
        )


@pytest.mark.slow
@pytest.mark.usefixtures("traced", "float64", "how")
@pytest.mark.parametrize("name", list(ALL))
def test_every_system_and_estimator(name: str) -> None:
    for objective, make in OBJECTIVES.items():
        try:
            fit(
                new(ALL[name], 0),
                data(),
                make(num_particles=2),
                config_of(max_steps=1, compile=False),
                progress=False,
            )
        except (ConfigError, ValueError):
            continue  # a pair that is not defined
        assert_alike(*both(ALL[name], partial(make, num_particles=2), config_of(epochs=2), data()))
        assert objective


@pytest.mark.slow
@pytest.mark.usefixtures("how")
def test_as_code_of_inductor_in_single_precision() -> None:
    config = config_of(precision="32-true", epochs=4)
    assert_alike(*both(SYSTEMS["vae"], TraceELBO, config, data()), rel=1e-4)


@pytest.mark.usefixtures("traced", "float64", "how")
def test_a_state_of_a_member_goes_on_alone() -> None:
    """From what `on_epoch` receives, `fit` takes the steps that the ensemble takes."""
    states: dict[int, list[State]] = {0: [], 1: []}
    seeds, config = SEEDS[:2], config_of(epochs=4)
    members = [new(SYSTEMS["vae"], s) for s in seeds]
    results = fit_ensemble(
        members,
        data(),
        config=config,
        seeds=seeds,
        on_epoch=lambda i, state: states[i].append(state),
        progress=False,
    )
    for i, seed in enumerate(seeds):
        again = new(SYSTEMS["vae"], seed)
        result = fit(
            again,
            data(),
            config=replace(config, seed=seed, compile=False),
            state=states[i][1],
            progress=False,
        )
        assert result.history[-1].train_nelbo == pytest.approx(
            results[i].history[-1].train_nelbo, rel=1e-9
        )
        for found, wanted in zip(again.parameters(), members[i].parameters(), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures("traced", "float64", "how")
def test_members_have_tensors_of_their_own_afterwards() -> None:
    before = torch.get_rng_state()
    members = [new(SYSTEMS["vae"], seed) for seed in SEEDS[:2]]
    torch.set_rng_state(before)
    fit_ensemble(members, data(), config=config_of(), seeds=SEEDS[:2], progress=False)
    assert torch.get_rng_state().equal(before)
    for parameter in members[1].parameters():
        assert parameter.untyped_storage().nbytes() == parameter.nbytes


@pytest.mark.usefixtures("traced", "float64", "how")
def test_what_differs_between_members_is_not_taken_from_the_first() -> None:
    """A fixed random projection, which no parameter and no buffer holds."""

    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fixed, self.slope = torch.randn(D), nn.Parameter(torch.randn(()))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z[..., None] * self.fixed, 1.0).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.slope * x.sum(-1), 0.5))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_alike(*both(Projected, TraceELBO, config_of(), data(), SEEDS[:2]))


@pytest.mark.usefixtures("float64")
def test_a_recorded_step_is_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where a step is replayed on tensors that stay where they are: here by a function
    in the graph's place.
    """

    def record(
        run: Callable[[], tuple[Tensor, ...]], generators: object
    ) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        outputs = (torch.empty(1, 2),)

        def replay() -> None:
            outputs[0].copy_(run()[0])

        return replay, outputs

    losses, seeds = [], SEEDS[:2]
    for is_recorded in (False, True):
        compiled = [
            Compiled(
                new(SYSTEMS["vae"], seed),
                iwae(2),
                lambda p: torch.optim.Adam(p, lr=0.02),
                backend="eager",
            )
            for seed in seeds
        ]
        torch.manual_seed(0)
        ensemble = Ensemble(compiled, [Stream(torch.device("cpu")) for _ in seeds])
        for step in range(4):
            found = ensemble.step([(data(10),)] * 2, kl_weight=0.2 + 0.1 * step, divisor=10)
            run = ensemble._last
            if is_recorded and step == 1:
                assert isinstance(run, _Batched)
                run.recorded = Recorded(run._in_order, record)
        losses.append(torch.stack(found))
    assert ensemble.is_batched
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)


# Members side by side.


@pytest.mark.usefixtures("traced", "float64")
@pytest.mark.parametrize("threads", [2], indirect=True)
def test_the_number_of_threads_changes_nothing(threads: int) -> None:
    """To the last bit; callbacks come in the order of epochs, then of members."""
    grey = torch.rand(40, D, generator=torch.Generator().manual_seed(5))
    splits = load(grey, binarize="dynamic", valid=0.2, test=0.1, value_range=(0.0, 1.0))
    seen: list[tuple[int, int]] = []

    def trained() -> list[FitResult]:
        return fit_ensemble(
            [new(SYSTEMS["vae"], s) for s in SEEDS],
            splits,
            config=config_of(batch_size=12, snapshots=(0, 2)),
            seeds=SEEDS,
            on_epoch=lambda i, state: seen.append((len(state.history), i)),
            progress=False,
        )

    results = trained()
    assert torch.get_num_threads() == threads
    assert seen == [(epoch, i) for epoch in range(4) for i in range(3)]
    assert [sorted(result.snapshots) for result in results] == [[0, 2]] * 3
    torch.set_num_threads(3 - threads)
    for one, other in zip(results, trained(), strict=True):
        assert one.history[-1].train_nelbo == other.history[-1].train_nelbo
        for weight, wanted in zip(one.system.parameters(), other.system.parameters(), strict=True):
            assert weight.equal(wanted)


@pytest.mark.usefixtures("traced", "float64")
def test_members_that_stop_early() -> None:
    """Each by its own validation bound, as trained alone."""
    grey = torch.rand(40, D, generator=torch.Generator().manual_seed(5))
    splits = load(grey, binarize="dynamic", valid=0.2, test=0.1, value_range=(0.0, 1.0))
    together, alone = both(
        SYSTEMS["vae"], TraceELBO, config_of(epochs=40, patience=1, lr=0.1), splits
    )
    assert_alike(together, alone)
    lengths = [len(result.history) for result in together]
    assert len(set(lengths)) > 1
    assert max(lengths) < 40
    assert all(result.stopped_early for result in together)


@pytest.mark.usefixtures("float64")
def test_one_code_for_all_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of a full batch and that of a smaller one are each compiled once."""
    made: list[bool] = []

    def compiled(
        graph: Any, inputs: Any, same_draws: bool, one_core: bool = False, cpp: bool = False
    ) -> Any:
        made.append(one_core)
        return graph

    monkeypatch.setattr("pyroae.compilation.shared_code.inductor", compiled)
    monkeypatch.setattr("pyroae.training.plan.COMPILE_FROM_STEPS", 9)
    config = config_of(batch_size=12)
    results = both(SYSTEMS["vae"], TraceELBO, config, data())
    assert made == [True, True]
    assert_alike(*results)
    seconds = [result.compile_seconds for result in results[0]]
    assert len(set(seconds)) == 1
    assert all(result.seconds > result.compile_seconds > 0 for result in results[0])


@pytest.mark.usefixtures("traced", "float64")
@pytest.mark.parametrize("threads", [2], indirect=True)
def test_an_interrupted_ensemble_ends_its_threads(threads: int) -> None:
    def interrupt(member: int, state: State) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        fit_ensemble(
            [new(SYSTEMS["vae"], s) for s in SEEDS],
            data(),
            config=config_of(epochs=10**6),
            seeds=SEEDS,
            on_epoch=interrupt,
            progress=False,
        )
    assert threading.active_count() == before
    assert torch.get_num_threads() == threads


# What is stepped sequentially.


class Gamma(nn.Module):
    """z ~ Gamma: a draw that no noise without parameters stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.randn(()))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None].expand(x.shape), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(2.0, self.log_rate.exp()))


@pytest.mark.usefixtures("traced", "float64", "how")
def test_a_draw_that_cannot_be_lifted() -> None:
    """One warning, and the numbers of separate trainings."""
    with pytest.warns(
        UserWarning,
        match="(stepped|trained) sequentially: the draw 'aten._standard_gamma.default' cannot be",
    ) as found:
        results = both(Gamma, TraceELBO, config_of(), data(), SEEDS[:2])
    assert len(found) == 1
    assert_alike(*results)


class Branching(Gamma):
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            mean = z if z.sum() < 1e6 else 1 / z
            pyro.sample("x", dist.Normal(mean[..., None].expand(x.shape), 1.0).to_event(1), obs=x)


@pytest.mark.usefixtures("traced", "float64", "how")
def test_what_cannot_be_traced_is_run_as_it_is() -> None:
    with pytest.warns(
        UserWarning, match="run eagerly, not compiled: after the site 'z' of the model"
    ) as found:
        results = both(Branching, TraceELBO, config_of(), data(), SEEDS[:2])
    assert len(found) == 1
    assert_alike(*results)


@pytest.mark.usefixtures("traced")
def test_members_of_two_forms() -> None:
    members = [zoo.vae(D, 3, encoder=MLP((7,))), zoo.vae(D, 3, encoder=MLP((8,)))]
    compiled = [Compiled(m, TraceELBO(), lambda p: torch.optim.SGD(p, lr=0.01)) for m in members]
    ensemble = Ensemble(compiled, [Stream(torch.device("cpu")) for _ in members])
    batches = [(data(10),), (data(10),)]
    ensemble.step(batches, divisor=10)
    with pytest.warns(UserWarning, match="not of one form: their graphs differ"):
        losses = ensemble.step(batches, divisor=10)
    assert not ensemble.is_batched
    assert len(losses) == 2


# The rule.

RULE: dict[str, tuple[dict[str, Any], int, bool]] = {
    "asked for": ({}, 3, True),
    "one member": ({}, 1, False),
    "not to be compiled": ({"compile": False}, 3, False),
    "auto, too short": ({"compile": "auto", "epochs": 500}, 3, False),
    "auto, long enough together": ({"compile": "auto", "epochs": 556}, 3, True),
    "auto, steps": ({"compile": "auto", "epochs": 5000, "max_steps": 1666}, 3, False),
    "seconds": ({"max_seconds": 9.0}, 3, False),
    "scaled gradients": ({"precision": "16-mixed"}, 3, False),
    "another optimizer": ({"optimizer": "RMSprop"}, 3, False),
}


@pytest.mark.parametrize("case", list(RULE))
def test_when_members_are_trained_together(case: str) -> None:
    changes, members, wanted = RULE[case]
    assert (
        are_trained_together(SYSTEMS["vae"](), TraceELBO(), config_of(**changes), 30, members)
        is wanted
    )


@pytest.mark.parametrize(
    ("threads", "members", "wanted"), [(1, 2, True), (2, 2, True), (8, 3, False), (8, 4, True)]
)
def test_few_members_leave_cores_idle(
    threads: int, members: int, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    system, config = SYSTEMS["vae-conv"](), config_of(accelerator="cpu")
    assert are_trained_together(system, TraceELBO(), config, 30, members) is wanted


def test_early_stopping_in_one_graph(how: str) -> None:
    """Members of one graph cannot end at different steps."""
    system, config = SYSTEMS["vae"](), config_of(patience=3)
    wanted = how == "side by side"
    assert are_trained_together(system, TraceELBO(), config, 30, 3) is wanted


@pytest.mark.usefixtures("float64")
def test_others_are_trained_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("an ensemble was made")

    monkeypatch.setattr("pyroae.training.lockstep.Ensemble", never)
    monkeypatch.setattr("pyroae.training.lockstep.SideBySide", never)
    seen: list[tuple[int, int]] = []
    config = config_of(epochs=2, optimizer="RMSprop")
    members = [new(SYSTEMS["vae"], seed) for seed in SEEDS]
    results = fit_ensemble(
        members,
        data(),
        config=replace(config, compile=False),
        seeds=SEEDS,
        on_epoch=lambda i, state: seen.append((i, len(state.history))),
        progress=False,
    )
    assert seen == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]
    alone = fit(
        new(SYSTEMS["vae"], 4),
        data(),
        config=replace(config, seed=4, compile=False),
        progress=False,
    )
    assert results[1].history[-1].train_nelbo == alone.history[-1].train_nelbo


# Draws.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lifted_draws_are_those_of_torch(dtype: torch.dtype) -> None:
    """To the last bit, in whatever order they come, and the generator is left where torch leaves
    it.
    """

    def draws(p: Tensor) -> tuple[Tensor, ...]:
        return (
            torch.empty_like(p).normal_(),
            torch.randn_like(p.T),
            torch.bernoulli(p.expand(4, *p.shape)),
            torch.rand(5, dtype=p.dtype),
            torch.normal(p, 2 * p),
            torch.multinomial(p, 1, replacement=True),
            torch.multinomial(p[:1].expand(6, 7), 1),
            torch.empty(3, dtype=p.dtype).exponential_(2.0),
            torch.empty_like(p).uniform_(-1, 1),
        )

    p = torch.rand(6, 7, dtype=dtype)
    graph, found = lift_draws(make_fx(draws)(p))
    generator, rooms = torch.Generator().manual_seed(11), [draw.empty(2) for draw in found]
    for draw, room in zip(found, rooms, strict=True):
        draw.fill(room[1], generator)
    torch.manual_seed(11)
    for one, other in zip(graph(p, *[room[1] for room in rooms]), draws(p), strict=True):
        assert one.equal(other)
    assert generator.get_state().equal(torch.get_rng_state())


def test_a_draw_into_a_part_of_a_tensor_is_refused() -> None:
    def draw(x: Tensor) -> Tensor:
        y = x.clone()
        y[0].normal_()
        return y

    with pytest.raises(
        NotLiftedError, match=r"'aten.normal_.default' is made into a tensor that is used elsewhere"
    ):
        lift_draws(make_fx(draw)(torch.zeros(2, 3)))


# Errors.


@pytest.mark.usefixtures("traced", "float64")
def test_a_loss_that_is_not_finite_names_its_seed(how: str) -> None:
    """Of the second member alone; all are left with their weights of the last good epoch: side by
    side the first member finishes one before.
    """
    members = [new(SYSTEMS["vae"], seed) for seed in SEEDS]
    last: dict[int, dict[str, Tensor]] = {}
    with torch.no_grad():
        list(members[1].parameters())[-1].fill_(1e308)  # the decoder's last bias
    with pytest.raises(
        NonFiniteLossError, match=r"seed 4: the loss became NaN or infinite at step 1, in epoch 1"
    ):
        fit_ensemble(
            members,
            data(),
            config=config_of(),
            seeds=SEEDS,
            on_epoch=lambda i, state: last.update({i: state.weights}),
            progress=False,
        )
    assert set(last) == ({0} if how == "side by side" else set())
    for i in (0, 2):
        wanted = last.get(i, new(SYSTEMS["vae"], SEEDS[i]).state_dict())
        assert all(weight.equal(wanted[name]) for name, weight in members[i].state_dict().items())


def test_refusals() -> None:
    members = [SYSTEMS["vae"]() for _ in range(2)]
    with pytest.raises(ConfigError, match="a seed for each system, not 3 for 2"):
        fit_ensemble(members, data(), seeds=SEEDS)
    with pytest.raises(ConfigError, match="an ensemble consists of modules"):
        fit_ensemble([(members[0].model, members[0].guide)], data(), seeds=(0,))  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="batch_size of 100 is larger than the 30 training data"):
        fit_ensemble(members, data(), config=TrainConfig(compile=True), seeds=(0, 1))


# In a comparison.


@pytest.mark.usefixtures("traced", "float64")
def test_a_comparison_trains_its_seeds_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its outcomes are those of cells trained apart."""
    made: list[int] = []

    def recorded(trainers: Sequence[Trainer], streams: Sequence[Stream]) -> SideBySide:
        made.append(len(trainers))
        return SideBySide(trainers, streams)

    monkeypatch.setattr("pyroae.training.lockstep.SideBySide", recorded)
    parts = (Dataset.from_array(data(30)), Dataset.from_array(data(20)))
    found = [
        compare_training(
            SYSTEMS["vae"],
            None,
            {"iwae": iwae, "trace-elbo": lambda k: TraceELBO(num_particles=k)},
            train=parts[0],
            held_out=parts[1],
            ks=(2,),
            seeds=SEEDS[:2],
            budget=Budget("epochs", 2),
            config=config_of(keep="last", compile=compiled),
            scoring=Scoring(num_particles=20, num_data=None, method="is"),
            progress=False,
        )
        for compiled in (True, False)
    ]
    assert made == [2, 2]
    assert [o.cell for o in found[0].outcomes] == [o.cell for o in found[1].outcomes]
    for one, other in zip(found[0].outcomes, found[1].outcomes, strict=True):
        torch.testing.assert_close(one.score.log_px, other.score.log_px, rtol=1e-7, atol=1e-7)
        assert [p.nll for p in one.curve] == pytest.approx([p.nll for p in other.curve], rel=1e-8)
        assert (one.epochs, one.steps, one.evaluations) == (
            other.epochs,
            other.steps,
            other.evaluations,
        )


@pytest.mark.usefixtures("traced")
def test_the_seconds_of_a_member_are_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by a second at each step: nine of them, of which the second one makes
    the graph.
    """
    now, step = [0.0], Ensemble.step

    def timed(self: Ensemble, *args: Any) -> list[Tensor]:
        now[0] += 1
        return step(self, *args)

    monkeypatch.setattr("pyroae.training.lockstep.is_batched", lambda device: True)
    monkeypatch.setattr(Ensemble, "step", timed)
    monkeypatch.setattr("pyroae.training.lockstep.time.monotonic", lambda: now[0])
    members = [new(SYSTEMS["vae"], seed) for seed in SEEDS]
    results = fit_ensemble(members, data(), config=config_of(), seeds=SEEDS, progress=False)
    assert [[epoch.seconds for epoch in r.history] for r in results] == [[1, 2, 3]] * 3
    assert [r.compile_seconds for r in results] == pytest.approx([1 / 3] * 3)
