"""The study of estimators for discrete latents on MNIST, of docs/benchmarks/discrete.md."""

import csv
from pathlib import Path

import pytest

from pyroae.cli import main

pytestmark = pytest.mark.usefixtures("no_study_figures")

STUDY = Path(__file__).parents[2] / "benchmarks" / "discrete.yaml"


@pytest.mark.slow
def test_discrete_latents_on_mnist(mnist_root: Path) -> None:
    """Eight estimators, equal decoder evaluations, tuned rates, three seeds, NLL by exact sums:
    an hour of one core.

    No score is estimated, and no estimator of an unbiased gradient is far behind another.
    """
    path = Path("runs/mnist-discrete")
    going_on = ["--resume", str(path)] if (path / "study.yaml").is_file() else ["--out", str(path)]
    scored = ["--score-method", "enumeration", "--score-data", "500", "--score-particles", "500"]
    flags = ["--config", str(STUDY), "--data-root", str(mnist_root), *scored, *going_on]
    assert main(["compare", *flags]) == 0
    with (path / "ranking.csv").open(newline="") as file:
        rows = {row["objective"]: row for row in csv.DictReader(file)}
    assert len(rows) == 8
    assert all(90 < float(row["nll"]) < 160 for row in rows.values())
    with (path / "comparison.csv").open(newline="") as file:
        assert all(float(row["scoring_error"]) == 0 for row in csv.DictReader(file))
    cell = next(path.glob("vimco-k8-*seed0"))
    compared = ["--objectives", "vimco,ovis,rws,score,disarm", "--num-particles", "8"]
    assert main(["gradients", str(cell), *compared, "--checkpoint", "all", "--num-data", "20"]) == 0
