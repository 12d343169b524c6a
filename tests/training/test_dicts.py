"""Programs whose arguments are dicts and lists, trained as those that take tensors one by one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyroae import (
    Budget,
    Scoring,
    TrainConfig,
    compare_training,
    fit,
    fit_ensemble,
    load_study,
    log_likelihood,
    zoo,
)
from pyroae.errors import DataError
from pyroae.objectives.named import iwae
from pyroae.programs.arguments import Arguments

pytestmark = pytest.mark.usefixtures("no_study_figures")

COUNTS = torch.arange(60).remainder(7).float()
X = torch.linspace(-1, 2, 60)[:, None] + COUNTS[:, None] / 10


class Flat(nn.Module):
    """A program of two tensors; its guide draws noise in training mode only, as dropout does."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))
        self.encoder = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
        self.register_buffer("runs", torch.zeros(()))

    def model(self, x: Tensor, counts: Tensor) -> None:
        pyro.module("program", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            loc = z + self.slope * counts[:, None]
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def guide(self, x: Tensor, counts: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(torch.cat([x, counts[:, None]], -1)).chunk(2, -1)
            scale = log_scale.exp() + (0.1 if self.training else 0.0)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


class Nested(Flat):
    """The same program of one dict with a list in it, and a constant."""

    def model(self, batch: Any) -> None:  # type: ignore[override]
        super().model(batch["x"], batch["more"][0])

    def guide(self, batch: Any) -> None:  # type: ignore[override]
        super().guide(batch["x"], batch["more"][0])


NESTED = {"x": X, "more": [COUNTS], "name": "a constant"}


def pair_of(kind: Callable[[], Flat]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return kind()


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_dict_trains_as_its_tensors(compiled: bool) -> None:
    config = TrainConfig(epochs=2, batch_size=25, compile=compiled)
    states: list[Any] = []
    flat: Any = pair_of(Flat)
    nested: Any = pair_of(Nested)
    one = fit(flat, (X, COUNTS), iwae(3), config, valid=(X[:9], COUNTS[:9]), progress=False)
    valid = {**NESTED, "x": X[:9], "more": [COUNTS[:9]]}
    other = fit(
        nested, NESTED, iwae(3), config, valid=valid, on_epoch=states.append, progress=False
    )
    assert other.system is nested
    assert not nested.training
    assert [e.valid_nelbo for e in one.history] == [e.valid_nelbo for e in other.history]
    for name, tensor in flat.state_dict().items():
        assert tensor.equal(nested.state_dict()[name])
    resumed = pair_of(Nested)
    fit(resumed, NESTED, iwae(3), config, valid=valid, state=states[0], progress=False)
    for name, tensor in flat.state_dict().items():
        assert tensor.equal(resumed.state_dict()[name])
    programs: list[tuple[Any, Any]] = [(flat, (X, COUNTS)), (nested, NESTED)]
    values = [
        log_likelihood(p.model, p.guide, x, num_particles=20, seed=0).log_px for p, x in programs
    ]
    assert values[0].equal(values[1])


def test_two_programs_of_a_dict() -> None:
    """As a pair, whose parameters are found as those of SVI are."""
    one, other = pair_of(Flat), pair_of(Nested)
    config = TrainConfig(epochs=1, batch_size=25)
    fit((one.model, one.guide), (X, COUNTS), config=config, progress=False)
    fit((other.model, other.guide), NESTED, config=config, progress=False)
    assert one.slope.equal(other.slope)
    assert not one.slope.equal(pair_of(Flat).slope)


def test_an_ensemble_on_a_dict() -> None:
    config = TrainConfig(epochs=2, batch_size=30)
    members = [pair_of(Nested) for _ in range(2)]
    results = fit_ensemble(members, NESTED, config=config, seeds=(0, 1), progress=False)
    assert [result.system for result in results] == members
    for seed, member in enumerate(members):
        alone = pair_of(Nested)
        fit(alone, NESTED, config=TrainConfig(epochs=2, batch_size=30, seed=seed), progress=False)
        torch.testing.assert_close(member.slope, alone.slope)


def test_a_comparison_on_a_dict(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "seeds": (0, 1),
        "budget": Budget("epochs", 1),
        "config": TrainConfig(batch_size=25, keep="last"),
        "scoring": Scoring(num_particles=20),
        "progress": False,
    }
    nested = compare_training(
        lambda: pair_of(Nested),
        None,
        {"iwae": iwae},
        train=NESTED,
        held_out=NESTED,
        out=tmp_path / "study",
        **settings,
    )
    flat = compare_training(
        lambda: pair_of(Flat),
        None,
        {"iwae": iwae},
        train=(X, COUNTS),
        held_out=(X, COUNTS),
        **settings,
    )
    for one, other in zip(nested.outcomes, flat.outcomes, strict=True):
        assert one.score.log_px.equal(other.score.log_px)
        assert one.nll == other.nll
    study = load_study(tmp_path / "study", lambda: pair_of(Nested))
    programs: Any = study.trained(study.cells[0]).system
    again = log_likelihood(programs.model, programs.guide, NESTED, num_particles=20, seed=0)
    assert again.log_px.equal(nested.of(study.cells[0].entry)[0].score.log_px)


def test_bad_dicts() -> None:
    config = TrainConfig(epochs=1, batch_size=25)
    with pytest.raises(DataError, match="validation data are not arranged as the training data"):
        fit(pair_of(Nested), NESTED, config=config, valid={"x": X, "more": [COUNTS]})
    with pytest.raises(DataError, match="the data of a program hold no tensor"):
        fit(pair_of(Nested), {"x": 3}, config=config)
    with pytest.raises(DataError, match="of one length N"):
        fit(pair_of(Nested), {"x": X, "more": [COUNTS[1:]]}, config=config)
    with pytest.raises(DataError, match="an autoencoder takes what Dataset"):
        fit(zoo.vae(1, 2), Arguments.of({"x": X}), config=config)


def test_an_autoencoder_takes_a_dict_as_load_does() -> None:
    config = TrainConfig(epochs=1, batch_size=25)
    histories = []
    for data in ({"x": X, "y": COUNTS.int()}, X):
        torch.manual_seed(0)
        histories.append(fit(zoo.ppca(1, 1), data, config=config, progress=False).history)
    assert histories[0][0].train_nelbo == histories[1][0].train_nelbo
