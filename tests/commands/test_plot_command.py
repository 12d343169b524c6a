"""`pyroae plot`: the rate–distortion curves of several runs, from their evaluations."""

import json
import shutil
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pytest
import torch

from pyroae.cli import FIGURES, main
from pyroae.commands import plot
from pyroae.config import AISSettings
from pyroae.evaluation.annealing.bounds import ais
from pyroae.runs.evaluated_curves import curves_of_run, curves_of_runs
from pyroae.runs.loading import load_run
from tests.pictures import in_full

pytestmark = pytest.mark.usefixtures("few_pictures", "short_pilot")
PATH = ["--num-chains", "4", "--num-distributions", "6", "--leapfrog-steps", "2"]
TRAIN = ["train", "--system", "ppca", "--data", "digits", "--likelihood", "normal", "--latent", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that were evaluated by annealing, and one that was not."""
    path = tmp_path_factory.mktemp("runs")
    for name, epochs in (("one", "1"), ("two", "2")):
        assert main([*TRAIN, "--epochs", epochs, "--out", str(path / name)]) == 0
        flags = ["--method", "ais", "--num-data", "7", *PATH]
        assert main(["evaluate", str(path / name), *flags]) == 0
    shutil.copytree(path / "one", path / "bare")
    (path / "bare" / "evaluation.nc").unlink()
    shutil.rmtree(path / "bare" / "figures")
    return path


def test_the_curve_is_in_results_and_the_tree(runs: Path) -> None:
    run = load_run(runs / "one")
    system: Any = run.system
    assert run.data.test is not None
    x = run.data.test.x[:7]
    settings = AISSettings(4, 6, leapfrog_steps=2)
    expected = ais(system.model, None, x, settings=settings, seed=0).rate_distortion
    assert expected is not None
    tree = arviz.from_netcdf(runs / "one" / "evaluation.nc")
    group = tree["rate_distortion"].to_dataset()
    assert dict(group.sizes) == {"beta": 7, "datum": 7}
    assert group["distortion"].units == "nats"
    np.testing.assert_array_equal(group["beta"], settings.betas)
    np.testing.assert_array_equal(group["label"], tree["per_datum"]["label"])
    tree.close()
    (found,) = curves_of_run(runs / "one")
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(found.curve, name), value, rtol=1e-6, atol=1e-6)
    rows = {row["name"]: row for row in json.loads((runs / "one" / "results.json").read_text())}
    total = rows["rate_ais"]["estimate"] + rows["distortion_ais"]["estimate"]
    assert total == pytest.approx(rows["nll_ais"]["estimate"], rel=1e-9)
    assert found.guide[0] == pytest.approx(rows["rate"]["estimate"], rel=1e-5)
    assert (runs / "one" / "figures" / "rate_distortion.png").exists()


def test_several_runs_on_one_axes(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    both = [str(runs / "one"), str(runs / "two")]
    for flags, file in (([], "rate-distortion.png"), (["--out", "a/b.svg"], "a/b.svg")):
        with in_full():
            assert main(["plot", "rate-distortion", *both, *flags]) == 0
        assert (tmp_path / file).stat().st_size > 5000
        assert f"{file}: rate-distortion of" in capsys.readouterr().out
    assert list(curves_of_runs(both)) == ["one", "two"]
    figure = plot.FIGURES["rate-distortion"](both)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    words = [text.get_text().split(" −")[0] for text in legend.get_texts()]
    assert words[:4] == ["one: log p(x)", "one: ELBO", "two: log p(x)", "two: ELBO"]
    assert figure.axes[0].get_title() == "7 data, by annealing"


def test_the_command_and_its_help_have_the_same_figures() -> None:
    assert list(plot.FIGURES) == list(FIGURES)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["bare"], "'pyroae evaluate {runs}/bare --method ais' makes one"),
        (["one", "one"], "a run is given twice"),
        (["one", "nowhere"], "'{runs}/nowhere' holds no run"),
        (["one", "two", "--out", "figure.txt"], "--out takes a file that ends in .png, .pdf, .svg"),
    ],
)
def test_what_is_refused(
    given: list[str], sentence: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word if word.startswith("--") or "." in word else f"{runs}/{word}" for word in given]
    capsys.readouterr()
    assert main(["plot", "rate-distortion", *words]) == 2
    error = capsys.readouterr().err
    assert sentence.format(runs=runs) in error
    assert error.count("\n") == 1


def test_other_data_and_a_damaged_file_are_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = str(runs / "one"), str(tmp_path / "other")
    shutil.copytree(one, other)
    tree = arviz.from_netcdf(runs / "one" / "evaluation.nc").load()
    tree["observed_data"]["x"].values[0, 0] += 1
    tree.to_netcdf(Path(other, "evaluation.nc"), engine="h5netcdf")
    tree.close()
    assert main(["plot", "rate-distortion", one, other]) == 2
    assert "were evaluated on different data" in capsys.readouterr().err
    Path(other, "evaluation.nc").write_bytes(b"no netCDF")
    assert main(["plot", "rate-distortion", one, other]) == 2
    assert "evaluation.nc' cannot be read" in capsys.readouterr().err


def test_runs_are_drawn_on_the_data_that_all_have(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs / "one", other)
    tree = arviz.from_netcdf(runs / "one" / "evaluation.nc").load()
    tree["observed_data"]["x"].values[0, 0] += 1
    (other / "evaluations").mkdir()
    (other / "evaluation.nc").rename(other / "evaluations" / "part.nc")
    tree.to_netcdf(other / "evaluation.nc", engine="h5netcdf")
    tree.close()
    first, second = curves_of_run(other)
    assert first.data != second.data
    both = curves_of_runs([str(runs / "one"), str(other)])
    assert {curve.data for curve in both.values()} == {second.data}


def test_a_path_from_the_guide_has_a_point_and_a_sentence(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = runs / "bare"
    flags = ["--method", "ais", "--num-data", "3", "--start", "guide", *PATH]
    assert main(["evaluate", str(other), *flags]) == 0
    assert "no rate–distortion curve, as the path starts at the guide" in capsys.readouterr().out
    assert not (other / "figures" / "rate_distortion.png").exists()  # no lone point
    assert main(["plot", "rate-distortion", str(other)]) == 2
    assert f"'pyroae evaluate {other} --method ais' makes one" in capsys.readouterr().err


def test_an_unknown_figure_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plot", "rate-distortio", "run"])
    assert "did you mean rate-distortion?" in capsys.readouterr().err
