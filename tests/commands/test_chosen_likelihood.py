"""Runs whose likelihood the data chose, through other commands; runs of earlier versions."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from pyroae.cli import main
from pyroae.runs.run import STATE, Run
from pyroae.runtime.files import read_tensors, write_tensors
from pyroae.studies.study import Study

pytestmark = pytest.mark.usefixtures("few_pictures")

SMALL = ["--latent", "1", "--hidden", "4", "--batch-size", "20"]
FEW = ["--num-particles", "10"]
DRAW = np.random.default_rng(0)
NEW = ("logger", "scale", "labels", "array")
"""Settings that runs before version 0.4 lack."""


def figures(path: Path) -> list[dict[str, object]]:
    return [{**row, "seconds": 0} for row in json.loads((path / "results.json").read_text())]


@pytest.fixture(scope="module")
def heights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Columns with means 170 and 60 and standard deviations 10 and 8, of which cells are empty."""
    values = DRAW.normal((170.0, 60.0), (10.0, 8.0), (80, 2))
    values[5, 0] = values[70, 1] = np.nan
    path = tmp_path_factory.mktemp("heights") / "heights.csv"
    pd.DataFrame(values, columns=["height", "weight"]).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def run(heights: Path) -> Path:
    path = heights.with_name("run")
    flags = ["--data", str(heights), "--missing", *SMALL, "--epochs", "1"]
    assert main(["train", *flags, "--out", str(path)]) == 0
    assert Run(path).config.likelihood == "normal:scale=learned"
    assert Run(path).config.scale == "standard"
    return path


def test_imputed_values_have_the_units_of_the_file(
    heights: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "filled.npz"
    assert main(["impute", str(run), "--data", str(heights), *FEW, "--out", str(out)]) == 0
    filled, given = np.load(out), pd.read_csv(heights).to_numpy()
    known = ~np.isnan(given)
    np.testing.assert_array_equal(filled["is_missing"], ~known)
    np.testing.assert_allclose(filled["x"][known], given[known], rtol=1e-5)
    assert 140 < filled["x"][5, 0] < 200
    assert 36 < filled["x"][70, 1] < 84
    deviations = (filled["high"] - filled["low"])[~known] / (2 * 1.96)
    assert (deviations > 3).all()  # 0.3 of a standard deviation of the data


@pytest.mark.slow
def test_a_run_with_a_chosen_likelihood_is_reproduced(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert main(["evaluate", str(run), *FEW]) == 0
    assert main(["reproduce", str(run), "--out", str(again)]) == 0
    assert figures(again) == figures(run)
    assert Run(again).config == Run(run).config


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("counts") / "counts.npy"
    np.save(path, DRAW.poisson((1.0, 2.0, 3.0), (80, 3)))
    return path


STUDY = [
    *["--objectives", "trace-elbo", "--seeds", "1", "--budget", "epochs:1"],
    *["--score-particles", "10", "--score-method", "is"],
]


def test_compare_chooses_and_its_cells_have_reports(
    counts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"
    assert main(["compare", "--data", str(counts), *SMALL, *STUDY, "--out", str(study)]) == 0
    assert "has whole numbers from 0" in capsys.readouterr().out
    cell = study / "trace-elbo-k1-seed0"
    assert Study.read(study).settings.likelihood == "poisson"
    assert Run(cell).config.likelihood == "poisson"
    assert main(["report", str(cell)]) == 0
    assert str(cell / "report.html") in " ".join(capsys.readouterr().out.split())
    page = (cell / "report.html").read_text()
    assert "poisson" in page
    nll = next(row for row in figures(cell) if row["name"] == "nll")
    printed = [float(text) for text in re.findall(r"(\d+\.\d+) ± ", page)]
    assert any(one == pytest.approx(nll["estimate"], abs=0.06) for one in printed)


def test_compare_leaves_a_given_likelihood(
    counts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*SMALL, "--likelihood", "negative-binomial", "--data", str(counts)]
    assert main(["compare", *given, *STUDY, "--out", str(tmp_path / "study")]) == 0
    assert "has whole numbers" not in capsys.readouterr().out
    assert Study.read(tmp_path / "study").settings.likelihood == "negative-binomial"


def without_new_settings(run: Path) -> None:
    """Write the settings in config.yaml and in the checkpoint as before version 0.4."""
    file = run / "config.yaml"
    config = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({k: v for k, v in config.items() if k not in NEW}))
    last = run / "checkpoints" / "last.safetensors"
    content = read_tensors(last, STATE)
    record = {k: v for k, v in content["record"].items() if k not in NEW}
    write_tensors(last, STATE, {**content, "record": record})


def test_a_run_that_lacks_new_settings(
    heights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", str(heights), "--missing", "--likelihood", "normal:scale=learned"]
    old = tmp_path / "old"
    assert main(["train", *given, *SMALL, "--epochs", "1", "--out", str(old)]) == 0
    assert main(["evaluate", str(old), *FEW]) == 0
    before = figures(old)
    without_new_settings(old)
    assert main(["evaluate", str(old), *FEW]) == 0
    assert figures(old) == before
    assert main(["train", "--resume", str(old), "--epochs", "2"]) == 0


def test_a_run_of_uint8_values_that_are_asked_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command names the line of config.yaml that keeps what was done before."""
    data, old = tmp_path / "levels.npy", tmp_path / "old"
    np.save(data, DRAW.integers(0, 17, (80, 5)).astype(np.uint8))
    given = ["--data", str(data), "--scale", "255", "--keep", "last", *SMALL]
    assert main(["train", *given, "--epochs", "1", "--out", str(old)]) == 0
    assert main(["evaluate", str(old), *FEW]) == 0
    before = figures(old)
    without_new_settings(old)
    capsys.readouterr()
    for command in (
        ["evaluate", str(old), *FEW],
        ["reproduce", str(old)],
        ["train", "--resume", str(old), "--epochs", "2"],
        ["encode", str(old), "--out", str(tmp_path / "z.npy")],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "holds uint8 values up to 16" in error
        assert f"add the line 'scale: 255' to '{old / 'config.yaml'}'" in error
        assert error.count("\n") == 1
    with (old / "config.yaml").open("a") as file:
        file.write("scale: 255\n")
    assert main(["evaluate", str(old), *FEW]) == 0
    assert figures(old) == before
    assert main(["train", "--resume", str(old), "--epochs", "2"]) == 0
