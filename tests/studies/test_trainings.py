"""Trainings of a comparison in Python: alike but for the estimator, matched by a budget, scored by
one metric.
"""

import math
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyroae import TrainConfig, fit, load, log_likelihood, zoo
from pyroae.comparison.budget import Budget
from pyroae.comparison.results import Cell, Comparison, Entry
from pyroae.config import Scoring
from pyroae.data.dataset import Dataset
from pyroae.data.loading import Splits
from pyroae.errors import ConfigError, DataError, ProgramError, UndefinedLikelihoodError
from pyroae.evaluation.importance.likelihood import Trial, trial_of
from pyroae.nn import MLP
from pyroae.objectives import OBJECTIVES, parse_objective
from pyroae.objectives.named import dreg, iwae, vimco
from pyroae.studies import curves
from pyroae.studies.cell_files import CellDirectory
from pyroae.studies.curves import Curve
from pyroae.studies.trainings import compare_training

pytestmark = pytest.mark.usefixtures("no_study_figures")

SCORING = Scoring(num_particles=50, num_data=40, method="is")
SMALL: dict[str, Any] = {"latent": 2, "encoder": MLP((8,))}


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load("digits", binarize="dynamic")


def compared(digits: Splits, names: tuple[str, ...], **settings: Any) -> Comparison:
    given: dict[str, Any] = {
        "budget": Budget("epochs", 2),
        "scoring": SCORING,
        "seeds": (0, 1),
        "progress": False,
        **settings,
    }
    make = given.pop("make", partial(zoo.vae, digits.train, **SMALL))
    return compare_training(make, digits, {name: OBJECTIVES[name] for name in names}, **given)


def test_estimators_that_are_one_have_one_outcome(digits: Splits) -> None:
    """IWAE with K = 1 is the ELBO: from the same weights, batches, binarization and draws, the same
    to the last bit.
    """
    found = compared(digits, ("trace-elbo", "iwae"))
    one, other = (found.of(Entry(name, 1)) for name in ("trace-elbo", "iwae"))
    for a, b in zip(one, other, strict=True):
        assert a.score.log_px.equal(b.score.log_px)
        assert [p.nll for p in a.curve] == [p.nll for p in b.curve]
    assert found.difference(Entry("iwae", 1), Entry("trace-elbo", 1)).estimate == (0, 0, 0)
    assert not one[0].score.log_px.equal(one[1].score.log_px)


def test_a_cell_is_fit_and_log_likelihood(digits: Splits) -> None:
    """Neither the comparison around it nor the curve along it changes a training."""
    config = TrainConfig(batch_size=50, lr=3e-3, keep="last")
    found = compared(digits, ("dreg",), ks=(4,), seeds=(5,), config=config).outcomes[0]
    torch.manual_seed(5)
    vae = zoo.vae(digits.train, **SMALL)
    fit(
        vae,
        digits.train,
        dreg(4),
        TrainConfig(epochs=2, batch_size=50, lr=3e-3, keep="last", seed=5),
        progress=False,
    )
    assert digits.test is not None
    likelihood = log_likelihood(vae.model, vae.guide, digits.test.x[:40], num_particles=50, seed=0)
    assert found.score.log_px.equal(likelihood.log_px)
    assert found.score.se.equal(likelihood.se)
    assert found.nll == likelihood.nll
    assert (found.epochs, found.steps, found.evaluations) == (2, 60, 4 * 2 * len(digits.train))
    assert [point.epoch for point in found.curve] == [1, 2]
    assert digits.valid is not None
    last = log_likelihood(vae.model, vae.guide, digits.valid.x, num_particles=64, seed=0)
    assert found.curve[-1].nll == last.nll
    assert found.figures["nelbo"] == pytest.approx(
        found.figures["rate"] + found.figures["distortion"]
    )


def test_budgets_match_trainings(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    spent = 5 * len(digits.train)
    by_evaluations = compared(
        digits, ("iwae",), ks=(1, 4), seeds=(0,), budget=Budget("evaluations", spent)
    ).outcomes
    assert [o.evaluations for o in by_evaluations] == [
        spent,
        4 * (1455 + 300),
    ]  # an epoch of 15 steps, and three of 100
    assert [o.steps for o in by_evaluations] == [75, 18]
    assert by_evaluations[1].evaluations <= spent < by_evaluations[1].evaluations + 400
    clock = iter(range(10**6))
    monkeypatch.setattr("pyroae.training.trainer.time.monotonic", lambda: next(clock) / 10)
    (by_seconds,) = compared(
        digits, ("iwae",), ks=(1,), seeds=(0,), budget=Budget("seconds", 3.0)
    ).outcomes
    assert 3.0 <= by_seconds.seconds < 3.4
    assert by_seconds.steps > 12  # two looks at the clock a step


def test_points_of_a_curve_are_spread(digits: Splits) -> None:
    """About 40 of them, the last at the end."""
    settings = {"budget": Budget("epochs", 50), "config": TrainConfig(batch_size=400, lr=1e-2)}
    found = compared(digits, ("iwae",), seeds=(0,), **settings).outcomes[0].curve
    assert 20 <= len(found) <= 41
    assert found[-1].epoch == 50
    assert [p.evaluations for p in found] == [p.epoch * len(digits.train) for p in found]
    assert all(a.seconds < b.seconds for a, b in pairwise(found))
    assert found[-1].nll < found[0].nll


def test_a_curve_leaves_the_training_alone(digits: Splits) -> None:
    vae = zoo.vae(digits.train, **SMALL)
    vae.train()
    before = torch.get_rng_state()
    curve = Curve(vae, digits.train.x[:20].round(), Cell("iwae", 1, 0), TrainConfig(), 100, 1.0)
    curve.add(1, 1, 0.5)
    curve.add(1, 1, 0.5)
    assert len(curve.points) == 1
    assert vae.training
    assert torch.get_rng_state().equal(before)


def test_a_curve_checks_its_programs_once(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its later points, at other weights, are those of programs that are checked, bit for bit."""
    vae, x = zoo.vae(digits.train, **SMALL), digits.train.x[:20].round()
    checks: list[Trial] = []

    def counted(*given: Any) -> Trial:
        checks.append(trial_of(*given))
        return checks[-1]

    monkeypatch.setattr(curves, "trial_of", counted)
    curve = Curve(vae, x, Cell("iwae", 1, 0), TrainConfig(), 100, 1.0)
    for step in (1, 2, 3):
        curve.add(step, step, 0.5 * step)
        found = log_likelihood(
            vae.model, vae.guide, x, num_particles=curves.CURVE_PARTICLES, seed=0
        )
        assert curve.points[-1].nll == found.nll
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.mul_(1.1)
    assert len(checks) == 1
    assert len({point.nll for point in curve.points}) == 3


def test_a_curve_refuses_programs_that_mix_data(digits: Splits) -> None:
    class Mixing(nn.Module):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z + x.mean(), 1.0), obs=x.mean(1))

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x.mean(1), 1.0))

    curve = Curve(Mixing(), digits.train.x[:20], Cell("iwae", 1, 0), TrainConfig(), 100, 1.0)
    with pytest.raises(ProgramError, match="the other data of its batch"):
        curve.add(1, 1, 0.5)


def test_an_objective_is_left_out_where_it_is_not_defined(digits: Splits) -> None:
    found = compared(digits, ("iwae", "vimco"), ks=(1, 2), seeds=(0,), budget=Budget("epochs", 1))
    assert found.entries == (Entry("iwae", 1), Entry("iwae", 2), Entry("vimco", 2))


# A comparison that is saved.


@pytest.mark.parametrize(
    ("method", "at"), [("save", 4), pytest.param("finish", 2, marks=pytest.mark.slow)]
)
def test_an_interrupted_comparison_resumes(
    digits: Splits, tmp_path: Path, method: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a checkpoint or between two cells: the outcomes of an unbroken run, bit for bit."""
    whole = compared(digits, ("iwae",), ks=(4,))
    calls, inner = count(1), getattr(CellDirectory, method)

    def interrupted(*args: Any) -> None:
        inner(*args)
        if next(calls) == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(CellDirectory, method, interrupted)
    with pytest.raises(KeyboardInterrupt):
        compared(digits, ("iwae",), ks=(4,), out=tmp_path)
    resumed = compared(digits, ("iwae",), ks=(4,), out=tmp_path)
    monkeypatch.setattr("pyroae.studies.cells.fit", pytest.fail)
    again = compared(digits, ("iwae",), ks=(4,), out=tmp_path)
    for comparison in (resumed, again):
        for one, other in zip(whole.outcomes, comparison.outcomes, strict=True):
            assert one.score.log_px.equal(other.score.log_px)
            assert one.figures == other.figures
            assert [p.nll for p in one.curve] == [p.nll for p in other.curve]


@pytest.mark.parametrize("as_code", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_seeds_of_an_ensemble_resume_together(
    digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_code: bool
) -> None:
    """They are trained again from the start: their outcomes are bit for bit those of one call.

    In `make test` the graph is run as it is traced.
    """
    made: list[Any] = []

    def kept(graph: Any, *_: Any, **__: Any) -> Any:
        made.append(graph)
        return graph

    if not as_code:
        monkeypatch.setattr("pyroae.compilation.shared_code.inductor", kept)
    config = TrainConfig(keep="last", compile=True)
    whole = compared(digits, ("iwae",), config=config)
    calls, inner = count(1), CellDirectory.finish

    def interrupted(*args: Any) -> None:
        inner(*args)
        if next(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(CellDirectory, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compared(digits, ("iwae",), config=config, out=tmp_path)
    resumed = compared(digits, ("iwae",), config=config, out=tmp_path)
    assert len(made) == (0 if as_code else 3)
    for one, other in zip(whole.outcomes, resumed.outcomes, strict=True):
        assert one.score.log_px.equal(other.score.log_px)


def test_a_directory_of_another_comparison(digits: Splits, tmp_path: Path) -> None:
    compared(digits, ("iwae",), seeds=(0,), budget=Budget("epochs", 1), out=tmp_path)
    with pytest.raises(ConfigError, match=r"iwae-k1-seed0' was trained with other settings"):
        compared(digits, ("iwae",), seeds=(0,), budget=Budget("epochs", 2), out=tmp_path)


def test_a_damaged_state_gives_way_to_the_one_before(
    digits: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = compared(digits, ("iwae",), seeds=(0,), out=tmp_path)
    (tmp_path / "iwae-k1-seed0" / "outcome.safetensors").unlink()
    (tmp_path / "iwae-k1-seed0" / "checkpoints" / "last.safetensors").write_bytes(b"damaged")
    resumed = compared(digits, ("iwae",), seeds=(0,), out=tmp_path)
    assert "resuming from the end of epoch 1" in capsys.readouterr().out
    assert whole.outcomes[0].score.log_px.equal(resumed.outcomes[0].score.log_px)


# Programs of one's own.


def programs() -> tuple[Any, Any]:
    """z ~ N(0, 1), x|z ~ N(w z, 1), q = N(a x, s²), their parameters in Pyro's store."""

    def model(x: Tensor) -> None:
        weight = pyro.param("weight", torch.tensor(0.2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(weight * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, scale))

    return model, guide


def test_programs_with_parameters_in_the_store() -> None:
    """Each training starts anew, and the caller's store is left alone.

    Marginally x ~ N(0, 1 + w²): known at the optimum.
    """
    torch.manual_seed(0)
    x = 2 * torch.randn(500)
    pyro.param("weight", torch.tensor(7.0))
    found = compare_training(
        programs,
        None,
        {"vimco": vimco},
        train=x[:400],
        held_out=x[400:],
        ks=(4,),
        seeds=(0, 1),
        budget=Budget("epochs", 60),
        config=TrainConfig(lr=0.02, batch_size=100, keep="last"),
        scoring=Scoring(num_particles=1000, num_data=None),
        progress=False,
    )
    assert pyro.param("weight").item() == 7.0
    variance = x[:400].square().mean()
    best = -dist.Normal(0.0, variance.sqrt()).log_prob(x[400:]).mean().item()
    start = -dist.Normal(0.0, math.sqrt(1.04)).log_prob(x[400:]).mean().item()
    assert start - best > 0.5
    for entry in found.entries:
        for outcome in found.of(entry):
            assert outcome.nll == pytest.approx(best, abs=0.02)
            assert outcome.curve[0].nll > best + 0.2
            assert "active_units" not in outcome.figures
    assert len({outcome.score.log_px.sum().item() for outcome in found.outcomes}) == 2


# Refusals, before any step.


def test_refusals(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a training was started")

    monkeypatch.setattr("pyroae.studies.cells.fit", never)
    with pytest.raises(ConfigError, match=r"different whole numbers of at least 0, not \[1, 1\]"):
        compared(digits, ("iwae",), seeds=(1, 1))
    with pytest.raises(ConfigError, match="seeds are different"):
        compared(digits, ("iwae",), seeds=())
    with pytest.raises(
        ConfigError, match=r"K takes different whole numbers of at least 1, not \[0\]"
    ):
        compared(digits, ("iwae",), ks=(0,))
    with pytest.raises(ConfigError, match=r"the objective 'vimco' is defined at none of K = 1"):
        compared(digits, ("iwae", "vimco"), ks=(1,))
    with pytest.raises(ConfigError, match="less than one step"):
        compared(digits, ("iwae",), ks=(64,), budget=Budget("evaluations", 100))
    with pytest.raises(ConfigError, match="batch_size of 5000 is larger"):
        compared(digits, ("iwae",), config=TrainConfig(batch_size=5000))
    with pytest.raises(
        ConfigError, match=r"kl_warmup of 9 epochs is longer than the training of 2"
    ):
        compared(digits, ("iwae",), config=TrainConfig(kl_warmup=9))
    with pytest.raises(UndefinedLikelihoodError, match="the prior of 'z' is flat"):
        compared(digits, ("trace-elbo",), make=partial(zoo.linear_autoencoder, digits.train, 2))
    with pytest.raises(ProgramError, match=r"site 'z' \(Bernoulli\) has none"):
        compared(
            digits, ("vimco", "dreg"), ks=(2,), make=partial(zoo.discrete_vae, digits.train, 4)
        )
    with pytest.raises(DataError, match="no test part"):
        compared(Splits(digits.train, digits.valid, None, "", "dynamic"), ("iwae",))
    with pytest.raises(DataError, match="a comparison takes Splits, or its data by name"):
        compare_training(
            partial(zoo.vae, 4, 2),
            torch.ones(3, 4),  # type: ignore[arg-type]
            {"iwae": iwae},
            budget=Budget("epochs", 1),
        )
    with pytest.raises(ConfigError, match="num_particles of the scoring must be at least 1, not 0"):
        Scoring(num_particles=0)


def test_held_out_data_of_another_width(digits: Splits) -> None:
    other = Dataset.from_array(torch.ones(3, 5) * torch.tensor([[0.0], [1.0], [0.0]]))
    with pytest.raises(
        DataError, match=r"x has the shape \(1, 5\); this autoencoder takes \[N, 64\]"
    ):
        compare_training(
            partial(zoo.vae, digits.train, **SMALL),
            objectives={"iwae": iwae},
            train=digits.train,
            held_out=other,
            budget=Budget("epochs", 1),
        )


def test_sums_over_states_are_counted_in_the_budget() -> None:
    x = (torch.rand(40, 9, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    comparison = compare_training(
        {name: partial(zoo.discrete_vae, 9, latent=m) for name, m in (("m2", 2), ("m4", 4))},
        train=x,
        held_out=x[:5],
        objectives={"enumerate": lambda k: parse_objective("enumerate", k)},
        ks=(2,),
        seeds=(0,),
        budget=Budget("evaluations", 1280),
        config=TrainConfig(batch_size=20),
        progress=False,
    )
    spent = {o.cell.variant: (o.steps, o.evaluations) for o in comparison.outcomes}
    assert spent == {"m2": (16, 1280), "m4": (4, 1280)}
