"""`--checkpoint all` of `pyroae evaluate` and `pyroae gradients`: what they write and refuse."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from pyroae import EvaluationSettings, evaluate, load_run, plots
from pyroae.cli import main
from pyroae.commands.evaluation_files import evaluations_of
from pyroae.errors import DataError
from pyroae.evaluation.summary import Evaluation, Result
from pyroae.runs.run import Run
from pyroae.runs.snapshots import weights_along_training
from tests.pictures import in_full

pytestmark = pytest.mark.usefixtures("few_pictures", "short_pilot")
EPOCHS = (0, 1, 3)
LIKELIHOOD = ["--num-particles", "30", "--num-data", "25"]
GRADIENTS = ["--objectives", "iwae,dreg", "--num-particles", "1,4", "--replicates", "25"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small VAE of the digits whose last weights are kept; tests that write take a copy."""
    path = tmp_path_factory.mktemp("snapshots") / "vae"
    options = "--latent 2 --hidden 8 --epochs 4 --keep last --snapshots 0,1,3"
    assert main(["train", *options.split(), "--out", str(path)]) == 0
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "vae"))


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def only(run: Path, epoch: int) -> None:
    """Remove the other snapshots."""
    for file in (run / "checkpoints").glob("epoch-*"):
        if file.stem != f"epoch-{epoch:04d}":
            file.unlink()


def is_drawn(file: Path) -> bool:
    """Whether a picture has more than one colour."""
    return float(matplotlib.image.imread(file).std()) > 0


def same_figures(one: list[Result], two: list[Result]) -> bool:
    fields = ("name", "estimate", "num_data", "num_particles")
    values = [[[getattr(r, f) for f in fields] for r in each] for each in (one, two)]
    return values[0] == values[1]


def test_all_evaluates_the_snapshots_and_the_kept_weights(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", str(run), *LIKELIHOOD]
    assert main(given) == 0
    kept, options = Run(run).results(), evaluations_of(Run(run))
    capsys.readouterr()
    with in_full():
        assert main([*given, "--checkpoint", "all"]) == 0
    results = Run(run).results()
    assert same_figures([r for r in results if r.checkpoint == "last, epoch 4"], kept)
    snapshots = {"epoch-0000", "epoch-0001", "epoch-0003"}
    assert {r.checkpoint for r in results} == snapshots | {"last, epoch 4"}
    assert evaluations_of(Run(run)) == [*options, {**options[0], "checkpoint": "all"}]
    table = rows(run / "along_training.csv")
    assert [(row["epoch"], row["kept"]) for row in table] == [
        ("0", "false"),
        ("1", "false"),
        ("3", "false"),
        ("4", "true"),
    ]
    assert {r.name: r.estimate for r in kept}["nll"] == float(table[-1]["nll"])
    shown = capsys.readouterr().out
    for row in table:
        for name in ("nelbo", "nll", "rate", "distortion"):
            assert f"{float(row[name]):.3f}" in shown
    assert is_drawn(run / "figures" / "along_training.png")
    assert "along training" in (run / "report.html").read_text()


def test_each_row_is_that_of_the_snapshot_alone(run: Path) -> None:
    given = ["evaluate", str(run), *LIKELIHOOD]
    assert main([*given, "--checkpoint", "all"]) == 0
    table = {row["epoch"]: row for row in rows(run / "along_training.csv")}
    for name in ("epoch-1", "3"):
        assert main([*given, "--checkpoint", name]) == 0
        epoch = name.removeprefix("epoch-")
        for result in Run(run).results():
            if result.checkpoint != f"epoch-{int(epoch):04d}":
                continue
            written = table[epoch][result.name]
            assert float(written) == result.estimate, result.name
    loaded = load_run(run)
    assert loaded.data.test is not None
    x, settings = loaded.data.test.x[:25], EvaluationSettings(num_particles=30)
    for at, system in loaded.snapshots:
        found = evaluate(system, x, settings)
        assert float(table[str(at)]["nll"]) == found.results["nll"].estimate
    assert len({row["nll"] for row in table.values()}) == 4


def test_gaps_are_along_the_training_too(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only(run, 0)
    line = ["evaluate", str(run), "--checkpoint", "all", "--method", "gaps", "--num-data", "4"]
    capsys.readouterr()
    assert main(line) == 0
    shown = capsys.readouterr().out
    for row in rows(run / "along_training.csv"):
        parts = float(row["amortization_gap"]) + float(row["approximation_gap"])
        assert parts == pytest.approx(float(row["inference_gap"]), abs=1e-6)
        assert "nll" not in row
        assert f"{float(row['inference_gap']):.3f}" in shown


@pytest.mark.slow
def test_each_snapshot_has_an_annealing_of_its_own(run: Path) -> None:
    only(run, 0)
    options = "--checkpoint all --method ais --num-data 5 --num-chains 2 --num-distributions 5"
    assert main(["evaluate", str(run), *options.split()]) == 0
    assert not (run / "annealing").exists()
    estimates = [row["nll_ais"] for row in rows(run / "along_training.csv")]
    assert len(set(estimates)) == 2


def test_all_measures_gradients_at_each_snapshot(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only(run, 1)
    given = ["gradients", str(run), *GRADIENTS, "--num-data", "10"]
    capsys.readouterr()
    with in_full():
        assert main([*given, "--checkpoint", "all"]) == 0
    table = rows(run / "gradients_along_training.csv")
    assert not (run / "gradients.csv").exists()
    assert is_drawn(run / "figures" / "gradients_along_training.png")
    cells = {(row["epoch"], row["objective"], row["particles"], row["group"]) for row in table}
    for epoch in ("1", "4"):
        for k in ("1", "4"):
            assert {(epoch, name, k, g) for name in ("iwae", "dreg") for g in "θφ"} <= cells
    shown = capsys.readouterr().out
    for row in table:
        if row["group"] in ("θ", "φ"):
            assert f"{float(row['snr']):.3g}" in shown
    assert main([*given, "--checkpoint", "1"]) == 0
    alone = {
        (row["objective"], row["particles"], row["group"]): row["snr"]
        for row in rows(run / "gradients.csv")
    }
    for row in table:
        if row["epoch"] == "1":
            assert alone[row["objective"], row["particles"], row["group"]] == row["snr"]


def test_gradients_along_a_training_go_where_out_says(run: Path, tmp_path: Path) -> None:
    only(run, 0)
    options = "--checkpoint all --num-data 5 --objectives iwae --num-particles 1 --replicates 25"
    line = ["gradients", str(run), *options.split()]
    assert main([*line, "--out", str(tmp_path / "snr")]) == 0
    assert {file.name for file in tmp_path.glob("snr*")} == {"snr.csv", "snr.png"}


@pytest.mark.parametrize("command", ["evaluate", "gradients"])
def test_a_run_without_snapshots_is_refused(
    run: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    only(run, -1)
    before = sorted(run.rglob("*"))
    capsys.readouterr()
    assert main([command, str(run), "--checkpoint", "all"]) == 2
    message = capsys.readouterr().err
    assert "has no snapshots: train it with --snapshots" in message
    assert message.count("\n") == 1
    assert sorted(run.rglob("*")) == before


def test_the_kept_weights_have_an_epoch(trained: Path, tmp_path: Path) -> None:
    assert weights_along_training(Run(trained)) == {
        0: "epoch-0000",
        1: "epoch-0001",
        3: "epoch-0003",
        4: None,
    }
    # With the best weights kept, they stand in place of the snapshot of their epoch.
    best = tmp_path / "best"
    options = "--latent 2 --hidden 8 --epochs 3 --snapshots 0,1,2,3"
    assert main(["train", *options.split(), "--out", str(best)]) == 0
    names = weights_along_training(Run(best))
    assert tuple(names) == (0, 1, 2, 3)
    (kept,) = (epoch for epoch, name in names.items() if name is None)
    assert kept == Run(best).state().best_epoch
    one, two = (Run(best).autoencoder(name).state_dict() for name in (str(kept), None))
    assert all(torch.equal(one[name], two[name]) for name in one)


# Figures.


def evaluations(nelbo: Callable[[int], float], **others: float) -> dict[int, Evaluation]:
    """Evaluations with given figures, at the epochs of the tests."""
    found = {}
    for epoch in EPOCHS:
        values = {"nelbo": nelbo(epoch), "active_units": 2.0, **others}
        results = {n: Result(n, value, 0.1, 10, 5, 1.0) for n, value in values.items()}
        found[epoch] = Evaluation(results, None)  # type: ignore[arg-type]
    return found


def test_panels_and_lines_of_the_figure() -> None:
    gaps = {"inference_gap": 3.0, "amortization_gap": 1.0, "approximation_gap": 2.0}
    found = evaluations(lambda epoch: 90.0 - epoch, nll=80.0, **gaps)
    figure = plots.along_training(found, kept=3)
    bounds, of_gaps, units = figure.axes
    assert [axes.get_title() for axes in figure.axes] == [
        "bound and likelihood",
        "gaps",
        "active units",
    ]
    lines = {line.get_label(): line for line in bounds.get_lines()}
    assert np.asarray(lines["negative ELBO"].get_xdata()).tolist() == list(EPOCHS)
    assert np.asarray(lines["negative ELBO"].get_ydata()).tolist() == [90.0, 89.0, 87.0]
    assert [np.asarray(line.get_ydata())[0] for line in of_gaps.get_lines()[:3]] == [3.0, 1.0, 2.0]
    assert units.get_ylim()[0] == 0
    assert len(plots.along_training(evaluations(lambda _: 90.0)).axes) == 2


def test_the_initial_bound_does_not_flatten_the_others() -> None:
    (bounds, _) = plots.along_training(evaluations(lambda e: 500.0 if e == 0 else 80.0 + e)).axes
    assert bounds.get_ylim()[1] < 90


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(DataError, match="there are no evaluations to draw"):
        plots.along_training({})
    with pytest.raises(DataError, match="there are no curves to draw"):
        plots.gradients_along_training({})
