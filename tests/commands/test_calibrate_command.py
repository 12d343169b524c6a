"""`pyroae calibrate` as a user runs it: what it writes and shows, and what it refuses."""

import json
from pathlib import Path

import arviz
import matplotlib.image
import pytest

from pyroae.cli import main
from tests.pictures import in_full

FEW = ["--num-simulations", "100", "--num-draws", "200"]


def run_of(path: Path, *flags: str) -> Path:
    small = ["--latent", "2", "--hidden", "8", "--epochs", "1", "--accelerator", "cpu"]
    assert main(["train", *small, *flags, "--out", str(path)]) == 0
    return path


def calibrate(run: Path, *flags: str) -> int:
    return main(["calibrate", str(run), *FEW, *flags])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("calibrate") / "vae")


def test_files_table_and_report(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with in_full():
        assert calibrate(trained) == 0
    shown = capsys.readouterr().out
    assert "log p(x|z)" in shown
    assert "this is about data that the model simulates" in shown
    record = json.loads((trained / "calibration.json").read_text())
    assert record["verdict"] in shown.replace("\n", " ")
    assert record["settings"]["num_simulations"] == 100
    assert [q["name"] for q in record["quantities"]][:2] == ["z[0]", "z[1]"]
    tree = arviz.from_netcdf(trained / "calibration.nc")
    assert tree["calibration"]["p_value"].shape == (100, len(record["quantities"]))
    assert tree["calibration"].attrs["overall_verdict"] == record["verdict"]
    for name in ("calibration", "calibration_histograms"):
        assert matplotlib.image.imread(trained / "figures" / f"{name}.png").std() > 0
    assert main(["report", str(trained)]) == 0
    assert "Calibration histograms" in (trained / "report.html").read_text()


def test_other_settings_replace_nothing_silently(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (trained / "calibration.json").exists():
        assert calibrate(trained) == 0
    before = (trained / "calibration.json").read_text()
    capsys.readouterr()
    assert calibrate(trained, "--seed", "1") == 2
    words = "holds a calibration with other settings (seed 0): give --overwrite to replace it"
    assert words in capsys.readouterr().err
    assert calibrate(trained, "--split", "train") == 2
    assert "(split 'test')" in capsys.readouterr().err
    assert calibrate(trained, "--draws", "importance") == 0
    assert json.loads((trained / "calibration_importance.json").read_text())["is_calibrated"]
    assert (trained / "figures" / "calibration_importance.png").is_file()
    assert (trained / "calibration.json").read_text() == before
    assert calibrate(trained) == 0  # the same settings again: the same figures
    same, old = (json.loads(t) for t in ((trained / "calibration.json").read_text(), before))
    assert same["quantities"] == old["quantities"]
    assert calibrate(trained, "--seed", "1", "--overwrite") == 0
    assert json.loads((trained / "calibration.json").read_text())["settings"]["seed"] == 1


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = run_of(tmp_path / "ae", "--system", "ae")
    capsys.readouterr()
    assert calibrate(flat) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "the prior of 'z' is flat and has no draws; calibrate a system with" in message
    assert not (flat / "calibration.json").exists()
    assert calibrate(tmp_path) == 2
    assert "holds no run" in capsys.readouterr().err
    assert calibrate(flat, "--draws", "gide") == 2
    assert "unknown draws 'gide': did you mean 'guide'?" in capsys.readouterr().err


def test_a_system_that_is_conditioned_on_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "cvae", "--condition", "labels")
    assert calibrate(run, "--draws", "importance", "--num-draws", "3000") == 0
    assert json.loads((run / "calibration_importance.json").read_text())["is_calibrated"]
