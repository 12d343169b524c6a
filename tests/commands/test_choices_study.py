"""The study of priors, posteriors and layers on MNIST, of docs/benchmarks/choices.md."""

import csv
from pathlib import Path

import pytest

from pyroae.cli import main

STUDY = Path(__file__).parents[2] / "benchmarks" / "choices.yaml"


@pytest.mark.slow
def test_choices_on_mnist(mnist_root: Path) -> None:
    """Seven choices, 50 epochs, one seed, corrected scores, and the gaps of each: 40 minutes of two
    cores.

    Richer posteriors lose less between log p(x) and the ELBO than the diagonal one.
    """
    path = Path("runs/mnist-choices")
    going_on = ["--resume", str(path)] if (path / "study.yaml").is_file() else ["--out", str(path)]
    scored = ["--score-data", "200", "--score-subset", "60", "--jobs", "2"]
    flags = ["--config", str(STUDY), "--data-root", str(mnist_root), *scored, *going_on]
    assert main(["compare", *flags]) == 0
    with (path / "comparison.csv").open(newline="") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert len(rows) == 7
    assert all(80 < float(row["nll"]) < 110 for row in rows.values())
    lost = {name: float(row["nelbo"]) - float(row["nll"]) for name, row in rows.items()}
    diagonal = lost["posterior=diagonal"]
    assert lost["posterior=full-rank"] < diagonal
    assert lost["posterior=iaf:hidden=200"] < diagonal
    for cell in path.glob("trace-elbo-*"):
        assert main(["evaluate", str(cell), "--method", "gaps", "--num-data", "60"]) == 0
