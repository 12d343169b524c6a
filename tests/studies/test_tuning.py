"""Settings tuned on validation data, variants as entries, and studies that are read again."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pyroae import Budget, Scoring, Variant, compare_training, load, load_study, log_likelihood, zoo
from pyroae.cli import main
from pyroae.comparison.results import Cell, Entry
from pyroae.comparison.scores import Interval
from pyroae.comparison.tuning import Trial, Tuning
from pyroae.config import TrainConfig
from pyroae.data.loading import Splits
from pyroae.errors import ConfigError, RunError
from pyroae.objectives.named import dreg, iwae
from pyroae.runs.run import Run
from pyroae.studies.tuning import TUNING_SEED
from pyroae.studies.variants import split_grid, variants_of

SMALL = ["--latent", "2", "--hidden", "8", "--budget", "epochs:2", "--accelerator", "cpu"]
SCORED = ["--score-particles", "30", "--score-data", "40", "--score-method", "is"]
GRID = ["--lr", "1e-4,3e-2", "--tune-on", "valid"]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load("digits", binarize="dynamic")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("studies") / "study"
    flags = ["--objectives", "iwae", "--num-particles", "2", "--seeds", "1"]
    vary = ["--vary", "activation=tanh,relu"]
    assert main(["compare", *flags, *SMALL, *SCORED, *GRID, *vary, "--out", str(path)]) == 0
    return path


def test_each_entry_gets_its_best_value(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the score on validation data, from a seed of the tuning alone."""
    trials = rows(study / "tuning.csv")
    entries = {t["entry"] for t in trials}
    assert len(trials) == 4
    assert entries == {f"iwae@2[activation={a}]" for a in ("tanh", "relu")}
    assert {p.name.rpartition("seed")[2] for p in (study / "tuning").glob("*-seed*")} == {
        str(TUNING_SEED)
    }
    for entry in entries:
        own = [t for t in trials if t["entry"] == entry]
        (chosen,) = [t for t in own if t["chosen"] == "True"]
        assert float(chosen["nll"]) == min(float(t["nll"]) for t in own)
        activation = entry.partition("=")[2].rstrip("]")
        config = Run(study / f"iwae-k2-activation={activation}-lr=0.03-seed0").config
        assert (config.lr, config.activation) == (float(chosen["lr"]), activation)
        assert config.lr == 3e-2  # 1e-4 hardly moves in two epochs
    ranking = rows(study / "ranking.csv")
    assert [float(r["tuned_lr"]) for r in ranking] == [3e-2] * 2
    assert [int(r["tuning_evaluations"]) for r in ranking] == [2 * 2 * 2 * 1455] * 2
    assert main(["compare", "--resume", str(study)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "2 of 2 trainings are finished already" in out
    assert "iwae@2[activation=tanh] 26." in out
    assert "tuning: 2.33e+04 decoder evaluations" in out
    assert "is at the end of its grid, lr = 0.03: a better value may lie outside" in out
    assert (study / "figures" / "tuning.png").is_file()


@pytest.mark.usefixtures("no_study_figures")
def test_a_tuned_training_is_that_with_its_value(study: Path, tmp_path: Path) -> None:
    """Neither the tuning nor the variants around it change a training."""
    flags = ["--objectives", "iwae", "--num-particles", "2", "--seeds", "1", "--lr", "3e-2"]
    alone = [*flags, *SMALL, *SCORED, "--activation", "relu", "--out", str(tmp_path / "alone")]
    assert main(["compare", *alone]) == 0
    (one,) = load_study(tmp_path / "alone").comparison.outcomes
    other = load_study(study).comparison.of(Entry("iwae", 2, "activation=relu"))[0]
    assert one.score.log_px.equal(other.score.log_px)
    assert one.evaluations == other.evaluations


@pytest.mark.slow
@pytest.mark.usefixtures("no_study_figures")
def test_more_of_a_tuned_study(study: Path, tmp_path: Path) -> None:
    """A further objective is tuned like the others; what is finished stays."""
    path = tmp_path / "more"
    flags = ["--objectives", "iwae", "--num-particles", "2", "--seeds", "1"]
    assert main(["compare", *flags, *SMALL, *SCORED, *GRID, "--out", str(path)]) == 0
    (first,) = load_study(path).comparison.outcomes
    assert main(["compare", "--resume", str(path), "--objectives", "dreg", "--seeds", "2"]) == 0
    found = load_study(path)
    assert len(found.cells) == 4
    assert found.comparison.of(Entry("iwae", 2))[0].score.log_px.equal(first.score.log_px)
    assert found.comparison.tuning is not None
    assert found.comparison.tuning.entries == ("iwae@2", "dreg@2")


def test_a_trial_that_failed_is_not_chosen() -> None:
    grid = {"lr": (0.1, 0.01, 0.001)}
    nll = {0.1: None, 0.01: Interval(89.0, 88.0, 90.0), 0.001: Interval(91.0, 90.0, 92.0)}
    trials = tuple(Trial("iwae@2", {"lr": lr}, nll[lr], 10, 1.0) for lr in grid["lr"])
    tuning = Tuning(grid, trials)
    assert tuning.best("iwae@2").settings == {"lr": 0.01}
    assert tuning.at_end("iwae@2") == []
    assert tuning.cost("iwae@2") == (30, 3.0)
    assert tuning.table()["chosen"].tolist() == [False, True, False]
    with pytest.raises(ConfigError, match="every training of iwae@2 failed in tuning"):
        Tuning(grid, trials[:1]).best("iwae@2")


def test_variants_are_read() -> None:
    assert variants_of(["prior=laplace:rate=2,normal", "hidden=8;16,8"]) == {
        "prior=laplace:rate=2,hidden=8": {"prior": "laplace:rate=2", "hidden": (8,)},
        "prior=laplace:rate=2,hidden=16x8": {"prior": "laplace:rate=2", "hidden": (16, 8)},
        "prior=normal,hidden=8": {"prior": "normal", "hidden": (8,)},
        "prior=normal,hidden=16x8": {"prior": "normal", "hidden": (16, 8)},
    }
    listed: Any = [{"prior": "normal"}, {"prior": "laplace", "lr": 1e-2}]
    assert list(variants_of(listed).values()) == listed
    assert list(variants_of({"latent": [2, 3]})) == ["latent=2", "latent=3"]
    for wrong, words in (
        (["prio=normal"], "unknown setting 'prio': did you mean 'prior'?"),
        (["prior"], "takes name=value,value, not 'prior'"),
        (["latent=2,2"], "'latent=2' is given twice"),
        (3, "vary takes name=value,value"),
    ):
        with pytest.raises(ConfigError, match=words):
            variants_of(wrong)


def test_lists_of_numbers_are_grids() -> None:
    given = {"lr": (1e-3, 1e-2), "hidden": (8, 8), "latent": 2}
    assert split_grid(given) == ({"hidden": (8, 8), "latent": 2}, {"lr": (1e-3, 1e-2)})
    with pytest.raises(ConfigError, match="the values of lr are different numbers"):
        split_grid({"lr": (1e-3, 1e-3)})


@pytest.mark.usefixtures("no_study_figures")
def test_further_values_of_a_tuned_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a study with all values from the start; entries with another best are trained again."""
    flags = ["--objectives", "iwae", "--num-particles", "2", "--seeds", "1", *SMALL, *SCORED]
    path, whole = tmp_path / "more", tmp_path / "whole"
    few = ["--lr", "1e-4,1e-3", "--tune-on", "valid"]
    assert main(["compare", *flags, *few, "--out", str(path)]) == 0
    assert load_study(path).comparison.tuning.best("iwae@2").settings == {"lr": 1e-3}  # type: ignore[union-attr]
    assert main(["compare", "--resume", str(path), "--lr", "3e-2"]) == 0
    full = ["--lr", "1e-4,1e-3,3e-2", "--tune-on", "valid"]
    assert main(["compare", *flags, *full, "--out", str(whole)]) == 0
    for name in ("tuning.csv", "ranking.csv"):
        seconds = ("seconds", "tuning_seconds", "seconds_per_evaluation")
        one, other = (
            [{k: v for k, v in row.items() if k not in seconds} for row in rows(folder / name)]
            for folder in (path, whole)
        )
        assert one == other
    assert {p.name for p in path.glob("iwae*")} == {
        "iwae-k2-lr=0.001-seed0",
        "iwae-k2-lr=0.03-seed0",
    }
    capsys.readouterr()
    assert (
        main(["compare", "--resume", str(path), "--batch-size", "20,30", "--tune-on", "valid"]) == 2
    )
    assert "--resume keeps what the study tunes: lr, not batch_size" in capsys.readouterr().err


# In Python.


def test_variants_tuning_and_a_directory_in_python(digits: Splits, tmp_path: Path) -> None:
    variants: dict[str, Any] = {
        "narrow": partial(zoo.vae, digits.train, latent=2, hidden=(8,)),
        "wide": Variant(partial(zoo.vae, digits.train, latent=3, hidden=(8,)), {"batch_size": 50}),
    }
    settings: dict[str, Any] = {
        "ks": (2,),
        "seeds": (0,),
        "budget": Budget("epochs", 2),
        "config": TrainConfig(keep="last"),
        "scoring": Scoring(num_particles=50, num_data=40, subset=10),
        "tune": {"lr": (1e-4, 3e-2)},
        "out": tmp_path,
        "progress": False,
    }
    found = compare_training(variants, digits, {"dreg": dreg}, **settings)
    assert [str(e) for e in found.entries] == ["dreg, K = 2, narrow", "dreg, K = 2, wide"]
    assert [o.steps for o in found.outcomes] == [30, 60]
    assert all(o.score.method == "local" for o in found.outcomes)
    assert found.tuning is not None
    assert all(found.tuning.best(e).settings == {"lr": 3e-2} for e in found.tuning.entries)
    again = load_study(tmp_path, variants)
    assert again.comparison.table().equals(found.table())
    cell = Cell("dreg", 2, 0, "wide")
    trained = again.trained(cell)
    system: Any = trained.system
    assert digits.test is not None
    x = digits.test.x[:40]
    likelihood = log_likelihood(system.model, system.guide, x, num_particles=50, seed=0)
    (outcome,) = found.of(cell.entry)
    assert likelihood.log_px.equal(outcome.score.log_px)
    assert [row.epoch for row in trained.history] == [1, 2]
    for name in ("table.tex", "ranking.csv", "comparison.nc", "figures/differences.pdf"):
        assert (tmp_path / name).is_file()
    with pytest.raises(ConfigError, match="records no system: give the same make= to load_study"):
        load_study(tmp_path).trained(cell)
    with pytest.raises(RunError, match="are of another system than `make` returns"):
        load_study(tmp_path, {"wide": variants["narrow"]}).trained(cell)
    assert main(["compare", "--resume", str(tmp_path)]) == 2


def test_refusals_in_python(digits: Splits) -> None:
    make = partial(zoo.vae, 4, 2)
    x = torch.rand(20, 4).round()
    common: dict[str, Any] = {"objectives": {"iwae": iwae}, "budget": Budget("epochs", 1)}
    tune, one = {"lr": (1.0, 2.0)}, {"a": Variant(make, {"lr": 1.0})}
    with pytest.raises(ConfigError, match="unknown setting 'lrr': did you mean 'lr'"):
        compare_training(make, train=x, held_out=x, tune={"lrr": (1, 2)}, **common)
    with pytest.raises(ConfigError, match="lr is tuned, and the variant 'a' gives it too"):
        compare_training(one, train=x, valid=x, held_out=x, tune=tune, **common)
    with pytest.raises(ConfigError, match="the seed 1000 is that of the tuning"):
        compare_training(make, train=x, valid=x, held_out=x, seeds=(1000,), tune=tune, **common)
