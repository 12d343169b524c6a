"""`pyroae compare` as a user runs it: what it writes, how it goes on, what it refuses."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz
import pytest
import torch
import yaml

from pyroae import load_run, log_likelihood
from pyroae.cli import main
from pyroae.comparison.results import Cell, Outcome
from pyroae.runs.run import Run
from pyroae.studies import cells as cell_runner
from pyroae.studies import study as studies
from pyroae.studies.cell_files import read_outcome
from pyroae.studies.study import Study
from tests.conftest import sample_of

DRAWN = True

SMALL = [
    "--latent",
    "2",
    "--hidden",
    "8",
    "--score-particles",
    "20",
    "--score-data",
    "30",
    "--score-method",
    "is",
    "--budget",
    "epochs:2",
]
CELLS = [
    f"{name}-k{k}-seed{seed}"
    for name, k in (("iwae", 1), ("iwae", 4), ("vimco", 4))
    for seed in (0, 1)
]


def compare(*flags: str) -> int:
    return main(["compare", *flags])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("studies") / "study"
    flags = ["--objectives", "iwae,vimco", "--num-particles", "1,4", "--seeds", "2"]
    assert compare(*flags, *SMALL, "--out", str(path)) == 0
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def figures(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.startswith("figures/")}


def outcomes(path: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in path.glob("*/outcome.safetensors"):
        outcome = read_outcome(file, Cell("", 1, 0))
        assert isinstance(outcome, Outcome)
        found[file.parent.name] = outcome.score.log_px
    return found


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_what_is_written(study: Path) -> None:
    assert sorted(p.name for p in study.iterdir() if p.is_dir() and p.name != "figures") == sorted(
        CELLS
    )
    assert {p.name for p in (study / "figures").iterdir()} == {
        f"{name}.{suffix}" for name in ("differences", "curves") for suffix in ("png", "pdf")
    }
    cells = rows(study / "comparison.csv")
    assert [f"{r['objective']}-k{r['num_particles']}-seed{r['seed']}" for r in cells] == sorted(
        CELLS, key=lambda c: c[-1]
    )
    for row in cells:
        place = study / f"{row['objective']}-k{row['num_particles']}-seed{row['seed']}"
        assert float(row["nll"]) == pytest.approx(
            -outcomes(study)[place.name].mean().item(), rel=1e-12
        )
        assert int(row["evaluations"]) == int(row["num_particles"]) * 2 * 1455
        nll = next(
            r for r in json.loads((place / "results.json").read_text()) if r["name"] == "nll"
        )
        assert nll["estimate"] == float(row["nll"])
        assert (nll["num_particles"], nll["num_data"]) == (20, 30)
        assert [p["epoch"] for p in rows(place / "curve.csv")] == ["1", "2"]
    ranking = rows(study / "ranking.csv")
    assert [int(r["rank"]) for r in ranking] == [1, 2, 3]
    assert [float(r["nll"]) for r in ranking] == sorted(float(r["nll"]) for r in ranking)
    (own,) = [r for r in ranking if (r["objective"], r["num_particles"]) == ("iwae", "1")]
    assert own["from_baseline"] == "0.0"
    tree = arviz.from_netcdf(study / "comparison.nc")
    assert dict(tree["outcomes"].sizes) == {"objective": 2, "particles": 2, "seed": 2, "datum": 30}
    tree.close()


def test_each_training_is_a_run_directory(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That other commands read; from one seed, all start and are fed alike."""
    place = study / "vimco-k4-seed1"
    run = Run(place)
    assert (run.config.objective, run.config.num_particles, run.config.seed, run.config.epochs) == (
        "vimco",
        4,
        1,
        2,
    )
    assert len(run.history()) == 2
    assert main(["sample", str(place), "--num", "4", "--out", str(tmp_path / "s.npy")]) == 0
    alone = tmp_path / "alone"
    flags = [
        "--objective",
        "vimco",
        "--num-particles",
        "4",
        "--seed",
        "1",
        "--epochs",
        "2",
        "--latent",
        "2",
        "--hidden",
        "8",
    ]
    assert main(["train", *flags, "--keep", "last", "--out", str(alone)]) == 0
    one, other = (Run(p).autoencoder("last").state_dict() for p in (place, alone))
    assert all(one[name].equal(other[name]) for name in one)


def test_a_finished_study_is_shown_again(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(study)
    assert compare("--resume", str(study), "--baseline", "vimco@4") == 0
    out = capsys.readouterr().out
    assert "6 of 6 trainings are finished already" in out
    assert "differences from vimco@4" in " ".join(out.split())
    assert "training 1" not in out
    after = contents(study)
    assert {n for n in before if before[n] != after[n]} <= {
        "ranking.csv",
        "report.html",
        "table.tex",
        "comparison.nc",
        "figures/differences.png",
        "figures/differences.pdf",
    }
    assert before["figures/differences.pdf"] != after["figures/differences.pdf"]
    assert compare("--resume", str(study)) == 0
    assert figures(contents(study)) == figures(before)


# A study that is stopped.


class Stop:
    """Raises KeyboardInterrupt at the n-th call of a function."""

    def __init__(self, function: Callable[..., Any], at: int) -> None:
        self.function, self.left = function, at

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return self.function(*args, **kwargs)


@pytest.mark.usefixtures("no_study_figures")
@pytest.mark.parametrize(
    ("where", "at"),
    sample_of(
        [
            ("write_outcome", 3),
            ("save", 6),
            ("save", 3),
            ("fit", 2),
            ("evaluate_system", 5),
            ("save", 9),
        ],
        6,
    ),
)
def test_a_stopped_study_goes_on(
    study: Path,
    tmp_path: Path,
    where: str,
    at: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Between trainings, within one, before or after its checkpoint: the same outcomes as unbroken,
    bit for bit.
    """
    path = tmp_path / "study"
    flags = ["--objectives", "iwae,vimco", "--num-particles", "1,4", "--seeds", "2", *SMALL]
    if where == "save":
        stop, inner = Stop(lambda *_: None, at), Run.save

        def save(self: Run, state: Any) -> None:
            stop()
            inner(self, state)

        monkeypatch.setattr(Run, "save", save)
    else:
        module = cell_runner if where == "fit" else studies
        monkeypatch.setattr(module, where, Stop(getattr(module, where), at))
    assert compare(*flags, "--out", str(path)) == 130
    assert "stopped by SIGINT; finished work is saved" in capsys.readouterr().err
    assert len(outcomes(path)) < 6
    monkeypatch.undo()
    assert compare("--resume", str(path)) == 0
    whole, parts = outcomes(study), outcomes(path)
    assert whole.keys() == parts.keys()
    assert all(whole[name].equal(parts[name]) for name in whole)
    for name in CELLS:
        one, other = (Run(p / name).history() for p in (study, path))
        assert [(e.train_nelbo, e.valid_nelbo) for e in one] == [
            (e.train_nelbo, e.valid_nelbo) for e in other
        ]
        points = [
            [(p["epoch"], p["nll"]) for p in rows(p_ / name / "curve.csv")] for p_ in (study, path)
        ]
        assert points[0] == points[1]


@pytest.mark.usefixtures("no_study_figures")
def test_a_study_is_given_more(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More seeds and objectives; those that are there stay as they are."""
    path = tmp_path / "study"
    assert (
        compare(
            "--objectives",
            "iwae",
            "--num-particles",
            "4",
            "--seeds",
            "1",
            *SMALL,
            "--out",
            str(path),
        )
        == 0
    )
    (first,) = outcomes(path).values()
    assert (
        compare("--resume", str(path), "--seeds", "2", "--objectives", "jvi+doubly-reparameterized")
        == 0
    )
    found = outcomes(path)
    assert set(found) == {
        f"{n}-k4-seed{s}" for n in ("iwae", "jvi+doubly-reparameterized") for s in (0, 1)
    }
    assert found["iwae-k4-seed0"].equal(first)
    assert found["iwae-k4-seed1"].equal(outcomes(study)["iwae-k4-seed1"])
    assert yaml.safe_load((path / "study.yaml").read_text())["seeds"] == [0, 1]
    assert "1 of 4 trainings are finished already" in capsys.readouterr().out


@pytest.mark.usefixtures("no_study_figures")
def test_a_training_that_fails_is_told_and_not_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--objectives", "trace-elbo,iwae", "--num-particles", "2", "--seeds", "2", *SMALL]
    config = tmp_path / "c.yaml"
    config.write_text("likelihood: normal\nbinarize: none\noptimizer: SGD\nlr: 1e-3\n")
    path = tmp_path / "study"
    assert compare(*flags, "--config", str(config), "--out", str(path)) == 0
    capsys.readouterr()
    place = path / "iwae-k2-seed1"
    studies.write_failure(
        place / "outcome.safetensors", "the loss became NaN or infinite at step 3"
    )
    assert compare("--resume", str(path)) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "failed: iwae, K = 2, seed 1: the loss became NaN or infinite at step 3" in out
    assert "4 of 4 trainings are finished already" in out
    lost = tmp_path / "lost"
    config.write_text("likelihood: normal\nbinarize: none\noptimizer: SGD\nlr: 1e12\n")
    assert compare(*flags, "--config", str(config), "--out", str(lost)) == 2
    assert (
        "every training failed; trace-elbo, K = 2, seed 0: the loss became NaN or infinite"
        in capsys.readouterr().err
    )


@pytest.mark.usefixtures("no_study_figures")
def test_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "study"
    flags = [
        "--objectives",
        "iwae",
        "--num-particles",
        "2",
        "--seeds",
        "1",
        *SMALL,
        "--out",
        str(path),
    ]
    assert compare(*flags) == 0
    (path / "notes.txt").write_text("mine")
    assert compare(*flags, "--objectives", "dreg", "--overwrite") == 0
    assert set(outcomes(path)) == {"dreg-k2-seed0"}
    assert not (path / "iwae-k2-seed0").exists()
    assert (path / "notes.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.usefixtures("no_study_figures")
def test_other_budgets(tmp_path: Path) -> None:
    few = ["--num-particles", "2,8", "--seeds", "1", *SMALL, "--objectives", "iwae"]
    assert compare(*few, "--budget", "evaluations:8000", "--out", str(tmp_path / "e")) == 0
    assert [int(r["evaluations"]) for r in rows(tmp_path / "e" / "comparison.csv")] == [
        7820,
        8000,
    ]  # two passes and ten steps; ten steps
    assert compare(*few, "--budget", "seconds:0.3", "--out", str(tmp_path / "s")) == 0
    assert all(float(r["seconds"]) >= 0.3 for r in rows(tmp_path / "s" / "comparison.csv"))


# Bad input.


BAD: dict[str, tuple[list[str], str]] = {
    "no place": ([], "give --out, the study directory to write"),
    "objective": (["--objectives", "iwae,drge"], "unknown objective 'drge': did you mean 'dreg'?"),
    "bound": (["--objectives", "jvj+pathwise"], "unknown bound 'jvj': did you mean 'jvi'?"),
    "own K": (
        ["--objectives", "iwae:num_particles=4"],
        "leave num_particles out of 'iwae:num_particles=4'",
    ),
    "K of 0": (["--num-particles", "0,8"], "num_particles must be at least 1, not 0"),
    "K twice": (
        ["--num-particles", "8,8"],
        "K takes different whole numbers of at least 1, not [8, 8]",
    ),
    "nowhere defined": (
        ["--objectives", "vimco", "--num-particles", "1"],
        "'vimco' is defined at none of K = 1",
    ),
    "invalid pair": (
        ["--objectives", "elbo+covariance"],
        "the covariance gradient is defined for TVO, not for ELBO",
    ),
    "seeds": (["--seeds", "0"], "seeds are whole numbers of at least 0, not none"),
    "negative seed": (["--seeds", "0,-1"], "seeds are whole numbers of at least 0, not 0, -1"),
    "seed twice": (["--seeds", "3,3"], "an objective, K, variant or seed is given twice"),
    "budget": (
        ["--budget", "epochs"],
        "a budget is epochs:N, evaluations:N or seconds:N, not 'epochs'",
    ),
    "small budget": (
        ["--budget", "evaluations:10"],
        "a budget of 10 evaluations is less than one step of 100 data at 1 evaluations per datum",
    ),
    "baseline": (
        ["--baseline", "vimco@8"],
        "the baseline 'vimco@8' is not compared here: trace-elbo@1, trace-elbo@8",
    ),
    "scoring": (
        ["--score-particles", "0"],
        "num_particles of the scoring must be at least 1, not 0",
    ),
    "no likelihood": (["--system", "ae"], "the prior of 'z' is flat"),
    "discrete": (
        ["--system", "discrete-vae", "--objectives", "vimco,dreg"],
        "site 'z' (Bernoulli) has none",
    ),
    "warm-up": (["--kl-warmup", "30"], "kl_warmup of 30 epochs is longer than the training of 20"),
    "none held out": (["--test-fraction", "0"], "a comparison needs held-out data"),
    "data": (["--data", "nowhere.npy"], "nowhere.npy"),
    "variant twice": (["--vary", "lr=1e-3,0.001"], "the variant 'lr=0.001' is given twice"),
    "varied twice": (
        ["--vary", "batch-size=50", "--vary", "batch_size=100"],
        "the setting 'batch_size' is given twice",
    ),
    "empty value": (
        ["--vary", "prior=normal,,laplace"],
        "prior=normal,,laplace has an empty value",
    ),
    "empty widths": (["--vary", "hidden=8;"], "hidden=8; has an empty value"),
    "data of a variant": (
        ["--vary", "binarize=static,dynamic"],
        "binarize cannot differ between the entries of a comparison",
    ),
    "tuned data": (
        ["--valid-fraction", "0.1,0.2", "--tune-on", "valid"],
        "valid_fraction cannot differ between the entries of a comparison",
    ),
    "no effect": (
        ["--sparsity", "1,2", "--tune-on", "valid"],
        "sparsity makes no difference for the system 'vae'",
    ),
    "no effect on one": (
        ["--vary", "system=vae,ppca", "--vary", "activation=tanh,relu"],
        "activation makes no difference for the system 'ppca'",
    ),
    "nothing to tune on": (
        ["--lr", "1e-3,1e-2", "--tune-on", "valid", "--valid-fraction", "0"],
        "settings are tuned on validation data, and there are none",
    ),
    "no annealing": (
        ["--score-method", "ais", "--system", "discrete-vae", "--objectives", "vimco"],
        "the score method 'ais' cannot be used here",
    ),
    "batch": (["--batch-size", "5000"], "batch_size of 5000 is larger than the 1455 training data"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence, before any training; nothing is written."""
    flags, words = BAD[case]
    out = [] if case == "no place" else ["--out", str(tmp_path / "study")]
    assert compare(*flags, *out) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["vary: []", "vary: {prior: []}", "lr: [[1], 2]\ntune_on: valid"])
def test_bad_variants_in_yaml(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert compare("--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "s")) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("no_study_figures")
def test_a_study_whose_settings_were_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finished trainings with other settings are not taken for those of the study."""
    flags = ["--objectives", "iwae", "--num-particles", "2", "--seeds", "1", *SMALL]
    path = tmp_path / "study"
    assert compare(*flags, "--out", str(path)) == 0
    file = path / "study.yaml"
    file.write_text(file.read_text().replace("batch_size: 100", "batch_size: 50"))
    capsys.readouterr()
    assert compare("--resume", str(path)) == 2
    error = capsys.readouterr().err
    assert "was trained with batch_size = 100, and the study has 50" in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("no_study_figures")
def test_variants_have_the_data_of_the_study(tmp_path: Path) -> None:
    """Also where a variant alone would not make them black and white."""
    flags = ["--objectives", "iwae", "--num-particles", "2", "--seeds", "1", *SMALL]
    path = tmp_path / "study"
    assert compare(*flags, "--vary", "likelihood=bernoulli,normal", "--out", str(path)) == 0
    for likelihood, place in (("bernoulli", None), ("normal", "dynamic")):
        run = load_run(path / f"iwae-k2-likelihood={likelihood}-seed0")
        assert run.config.binarize == place
        assert run.data.test is not None
        assert set(run.data.test.x.unique().tolist()) == {0.0, 1.0}
        system: Any = run.system
        x = run.data.test.x[:30]
        found = log_likelihood(system.model, system.guide, x, num_particles=20, seed=0)
        outcome = outcomes(path)[f"iwae-k2-likelihood={likelihood}-seed0"]
        assert outcome.equal(found.log_px)


@pytest.mark.parametrize("flag", ["--objective", "--epochs", "--seed", "--max-steps"])
def test_settings_that_are_not_every_trainings_own(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        compare(flag, "3", "--out", str(tmp_path / "s"))
    assert stopped.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err
    name = flag[2:].replace("-", "_")
    (tmp_path / "c.yaml").write_text(f"{name}: 3\n")
    assert compare("--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "s")) == 2
    assert f"{name} is no setting of a comparison" in capsys.readouterr().err


def test_bad_use_of_a_study(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(study)
    run = study / "iwae-k1-seed0"
    for flags, words in (
        (
            ["--out", str(study)],
            "holds a study already: give --overwrite to replace it, or --resume to continue it",
        ),
        (["--out", str(run)], "is the directory of a run: a study needs one of its own"),
        (["--resume", str(run)], "holds no study: there is no study.yaml in it"),
        (["--resume"], "--resume continues one study"),
        (["--resume", str(study), "--overwrite"], "leave out --overwrite"),
        (
            ["--resume", str(study), "--latent", "3"],
            "--resume keeps the settings of the study: latent is 2 there",
        ),
        (["--resume", str(study), "--budget", "epochs:3"], "budget is epochs:2 there"),
        (["--resume", str(study), "--score-data", "31"], "num_data is 30 there"),
        (
            ["--resume", str(study), "--baseline", "dreg"],
            "the baseline 'dreg' is not compared here",
        ),
        (["--out", str(study / "study.yaml")], "is a file, not a directory"),
    ):
        assert compare(*flags) == 2, flags
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert contents(study) == before


def test_damaged_studies(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "study"
    path.mkdir()
    for text, words in (
        ("objectives: [iwae]\n", "cannot be used"),
        ("- a list\n", "cannot be used"),
        ("a: [\n", "cannot be used"),
    ):
        (path / "study.yaml").write_text(text)
        assert compare("--resume", str(path)) == 2
        assert words in capsys.readouterr().err
    record = yaml.safe_load((study / "study.yaml").read_text())
    (path / "study.yaml").write_text(yaml.safe_dump({**record, "fingerprint": "0123"}))
    assert compare("--resume", str(path)) == 2
    assert "have changed since the study" in capsys.readouterr().err
    (path / "study.yaml").write_text(yaml.safe_dump(record))
    (path / "iwae-k1-seed0").mkdir()
    (path / "iwae-k1-seed0" / "outcome.safetensors").write_bytes(b"not a tensor")
    assert compare("--resume", str(path)) == 2
    error = capsys.readouterr().err
    assert "outcome.safetensors' is damaged, or not a file of pyroae" in error
    assert f"remove '{path / 'iwae-k1-seed0'}' to train it again" in error


def test_read_is_what_was_written(study: Path) -> None:
    config = Study.read(study)
    assert config.objectives == ("iwae", "vimco")
    assert config.settings.keep == "last"
    assert config.cells()[0] == Cell("iwae", 1, 0)


@pytest.mark.slow
def test_mnist_study(mnist_root: Path) -> None:
    """Five estimators, tuned, three seeds, 1.6e6 decoder evaluations of MNIST with K = 8: the table
    of docs/benchmarks/comparison.md.

    Importance sampling alone favours guides that are better proposals: it adds more to the NLL of
    VIMCO, RWS and IWAE than to that of the ELBO.
    """
    flags = ["--objectives", "trace-elbo,iwae,dreg,vimco,rws", "--num-particles", "8"]
    flags += ["--seeds", "3", "--budget", "evaluations:1.6e6", "--score-data", "500"]
    flags += ["--lr", "1e-3,3e-3,1e-2", "--tune-on", "valid", "--jobs", "2"]
    net = ["--latent", "50", "--hidden", "200,200", "--batch-size", "100"]
    path = Path("runs/mnist-comparison")
    going_on = ["--resume", str(path)] if (path / "study.yaml").is_file() else ["--out", str(path)]
    assert compare(*flags, *net, "--data", "mnist", "--data-root", str(mnist_root), *going_on) == 0
    ranking = {row["objective"]: row for row in rows(path / "ranking.csv")}
    shift = {name: float(row["shift"]) for name, row in ranking.items()}
    assert shift["vimco"] < shift["rws"] < shift["iwae"] < shift["trace-elbo"] < -0.5
    assert all(abs(float(ranking[name]["from_baseline"])) < 1.5 for name in ("dreg", "iwae"))
    assert {row["tuned_lr"] for row in ranking.values()} == {"0.003"}
    assert all(86 < float(row["nll"]) < 105 for row in ranking.values())
