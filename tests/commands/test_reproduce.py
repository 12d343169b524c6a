"""A run again from its directory alone: the same results.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from pyroae import cli
from pyroae.commands.evaluation_files import evaluations_of
from pyroae.runs.run import Run

pytestmark = pytest.mark.usefixtures("few_pictures", "short_pilot")
SMALL = ["--latent", "2", "--hidden", "10", "--epochs", "3", "--kl-warmup", "1", "--seed", "4"]


def made(path: Path, *more: str, evaluate: tuple[str, ...] = ()) -> Path:
    assert cli.main(["train", *SMALL, *more, "--out", str(path)]) == 0
    options = ("--num-particles", "50", "--num-data", "40", *evaluate)
    assert cli.main(["evaluate", str(path), *options]) == 0
    return path


def figures(path: Path) -> list[dict[str, Any]]:
    return [{**row, "seconds": 0} for row in json.loads((path / "results.json").read_text())]


@pytest.mark.slow
def test_the_figures_are_the_same(tmp_path: Path, capsys: Any) -> None:
    annealing = (
        "--method",
        "is,ais",
        "--num-distributions",
        "10",
        "--num-chains",
        "2",
        "--posterior-draws",
        "3",
        "--split",
        "valid",
        "--seed",
        "3",
    )
    run = made(tmp_path / "run", "--objective", "dreg", "--num-particles", "3", evaluate=annealing)
    assert cli.main(["reproduce", str(run)]) == 0
    assert "has the figures of" in capsys.readouterr().out
    assert figures(tmp_path / "run-again") == figures(run)
    assert len(figures(run)) > 6


def test_every_evaluation_is_repeated(tmp_path: Path, capsys: Any) -> None:
    """Of different data, of the same figure twice, and one of an earlier version."""
    run = made(tmp_path / "run", "--objective", "dreg", "--num-particles", "3")
    annealing = "--method is,ais --num-distributions 10 --num-chains 2 --posterior-draws 3"
    for options in (
        ["--split", "valid", "--num-data", "10", "--num-particles", "20", *annealing.split()],
        ["--num-particles", "50", "--num-data", "40", "--seed", "3"],
    ):
        assert cli.main(["evaluate", str(run), *options]) == 0
    assert [one["seed"] for one in evaluations_of(Run(run))] == [0, 3]
    assert cli.main(["reproduce", str(run)]) == 0
    assert "has the figures of" in capsys.readouterr().out
    assert figures(tmp_path / "run-again") == figures(run)
    assert {row["split"] for row in figures(run)} == {"test", "valid"}


def test_a_figure_that_differs_is_named(tmp_path: Path, capsys: Any) -> None:
    run = made(tmp_path / "run")
    file = run / "results.json"
    rows = json.loads(file.read_text())
    next(row for row in rows if row["name"] == "nll")["estimate"] += 1e-6
    file.write_text(json.dumps(rows))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("  numpy: ", "  numpy: 0."))
    assert cli.main(["reproduce", str(run), "--out", str(tmp_path / "other")]) == 2
    said = capsys.readouterr().err
    assert "figures of" in said
    assert ": nll; it was made with numpy 0." in said


def test_what_cannot_be_reproduced(tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["train", *SMALL, "--out", str(tmp_path / "run")]) == 0
    assert cli.main(["reproduce", str(tmp_path / "run")]) == 2
    assert "has no results to be compared with: evaluate it first" in capsys.readouterr().err
    made(tmp_path / "whole")
    assert cli.main(["reproduce", str(tmp_path / "whole"), "--out", str(tmp_path / "run")]) == 2
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_of_thousands_of_steps(tmp_path: Path) -> None:
    """Compiled, as it is long enough for that."""
    run = made(
        tmp_path / "run",
        "--epochs",
        "400",
        "--hidden",
        "200,200",
        evaluate=("--num-particles", "5000"),
    )
    assert cli.main(["reproduce", str(run)]) == 0
    assert figures(tmp_path / "run-again") == figures(run)
