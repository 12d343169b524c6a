"""`pyroae papers` on a small paper of digits: what it writes, how it goes on, what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyroae.cli import main
from pyroae.config import AISSettings, RunConfig, Scoring
from pyroae.data.named_datasets import DATASETS
from pyroae.errors import DataError
from pyroae.names import import_own
from pyroae.papers import PAPERS, rainforth_2018, wu_2017
from pyroae.papers.trained import Protocol
from pyroae.runs.run import Run

ROOT = Path(__file__).parents[1]
SPEC = """
import math

from pyroae.comparison.results import Entry
from pyroae.config import Scoring
from pyroae.papers import PAPERS, Claim, Paper, PaperRow, Scale
from pyroae.papers.trained import (
    Protocol, TrainedClaim, TrainedRow, lower_nll, measure_trained, nll, units
)

PROTOCOL = Protocol(
    {"data": "digits", "valid_fraction": 0.0, "system": "vae", "hidden": [8],
     "lr": 2e-2, "batch_size": 200, "compile": False},
    epochs=4,
    seeds=(0, 1),
    scoring=Scoring(num_particles=500, num_data=40, method="is"),
    variants={"small": {"latent": 1}, "large": {"latent": 3}},
)
ENTRIES = {"ELBO, small": Entry("trace-elbo", 2, "small"), "IWAE, large": Entry("iwae", 2, "large")}
ROWS = [
    TrainedRow(PaperRow("Table 1", label, "NLL, nats", 26.0, tolerance=5.0), entry, nll)
    for label, entry in ENTRIES.items()
]
ROWS.append(TrainedRow(PaperRow("Table 1", "IWAE, large", "active units", 3, tolerance=0.0),
                       ENTRIES["IWAE, large"], units))
CLAIMS = [TrainedClaim(Claim("large below small", "NLL, nats"), ENTRIES["IWAE, large"],
                       ENTRIES["ELBO, small"], lower_nll)]


def measure(work):
    yield from measure_trained(work, PROTOCOL, ROWS, CLAIMS)


@PAPERS.register("small-paper")
def small_paper():
    other = PaperRow("Table 2", "elsewhere", "NLL, nats", math.nan, not_comparable="a lost file")
    return Paper("small-paper", "Digits", "A. Author 2026", "digits of scikit-learn",
                 {"short": Scale("four epochs", 5.0)}, (*(one.row for one in ROWS), other),
                 tuple(one.claim for one in CLAIMS), measure, datasets=("digits",))
"""
CELL = "trace-elbo-k2-small-seed0"


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file of the specification, whose name is registered for these tests alone."""
    file = tmp_path_factory.mktemp("spec") / "small_paper_spec.py"
    file.write_text(SPEC)
    import_own(str(file))
    yield file
    del PAPERS._choices["small-paper"]


def papers(*flags: str) -> int:
    return main(["papers", *flags])


def numbers(folder: Path) -> dict[str, Any]:
    """All that was measured, by row and claim."""
    content = json.loads((folder / "result.json").read_text())
    return {
        str(part.get("text") or (part["label"], part["quantity"])): [
            part[name] for name in ("estimate", "low", "high")
        ]
        for part in (*content["rows"], *content["claims"])
    }


@pytest.fixture(scope="module")
def whole(module: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper, measured without an interruption."""
    out = tmp_path_factory.mktemp("papers")
    assert papers("small-paper", "--out", str(out)) == 0
    return out / "small-paper" / "short"


def test_a_paper_end_to_end(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All rows and claims, files as they finish, and nothing measured a second time."""
    found = numbers(whole)
    assert len(found) == 5
    assert found["('elsewhere', 'NLL, nats')"] == [None] * 3
    for name, (estimate, low, high) in found.items():
        assert "elsewhere" in name or float(low) <= estimate <= float(high)
    small, large = (found[f"('{name}', 'NLL, nats')"][0] for name in ("ELBO, small", "IWAE, large"))
    assert found["large below small"][0] == pytest.approx(small - large, abs=1e-6)
    assert large < small
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*.safetensors")}
    assert papers("small-paper", "--out", str(whole.parents[1])) == 0
    assert {file: file.stat().st_mtime_ns for file in whole.rglob("*.safetensors")} == before
    printed = capsys.readouterr().out
    assert "4 of 4 trainings are finished" in printed
    assert "training 1 of" not in printed
    for word in ("ELBO", "26.00", "agrees", "within noise", "not comparable: a lost file"):
        assert word in printed, word
    assert numbers(whole) == found


@pytest.mark.slow
def test_killed_and_resumed(module: Path, whole: Path, tmp_path: Path) -> None:
    """After SIGKILL within a training the same command continues to the same numbers."""
    flags = ["small-paper", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "pyroae.cli", "papers", *flags, "--import", str(module)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "small-paper" / "short"
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    second = folder / CELL.replace("seed0", "seed1") / "checkpoints" / "last.safetensors"
    while not second.is_file():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = folder / CELL / "outcome.safetensors"
    assert first.is_file()
    assert not (second.parents[1] / "outcome.safetensors").exists()
    assert len(Run(second.parents[1]).history()) <= 4
    trained = first.stat().st_mtime_ns
    assert papers(*flags) == 0
    assert first.stat().st_mtime_ns == trained
    assert numbers(folder) == numbers(whole)


def test_rows_are_chosen_by_words(module: Path, whole: Path, tmp_path: Path) -> None:
    """Only the cells of those rows are trained; the claims on others are left."""
    assert papers("small-paper", "--out", str(tmp_path), "--rows", "elbo") == 0
    folder = tmp_path / "small-paper" / "short"
    assert len(list(folder.glob("*/outcome.safetensors"))) == 2
    found = numbers(folder)
    assert found["large below small"] == [None] * 3
    assert found["('ELBO, small', 'NLL, nats')"] == numbers(whole)["('ELBO, small', 'NLL, nats')"]


def test_a_run_of_train_is_adopted(
    module: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished run at the place of a cell is scored and not trained; other settings are refused.

    Without validation data `train` reports the training bound.
    """
    place = tmp_path / "small-paper" / "short" / CELL
    words = {
        **{"data": "digits", "valid-fraction": "0", "system": "vae", "hidden": "8", "lr": "2e-2"},
        **{"latent": "1", "objective": "trace-elbo", "num-particles": "2", "epochs": "4"},
        **{"keep": "last", "seed": "0", "compile": "false", "data-root": "elsewhere"},
        "batch-size": "200",
    }
    train = ["train", *(w for n, value in words.items() for w in (f"--{n}", value))]
    assert main([*train, "--out", str(place)]) == 0
    log = capsys.readouterr().out
    assert "training negative bound" in log
    assert "nan" not in log
    metrics = (place / "metrics.csv").read_bytes()
    flags = ("small-paper", "--out", str(tmp_path), "--rows", "ELBO, small")
    assert papers(*flags) == 0
    assert (place / "metrics.csv").read_bytes() == metrics
    assert (place / "outcome.safetensors").is_file()
    row = "('ELBO, small', 'NLL, nats')"
    assert numbers(place.parent)[row] == pytest.approx(numbers(whole)[row], rel=1e-6)

    other = tmp_path / "other"
    place = other / "small-paper" / "short" / CELL
    assert main([*train, "--out", str(place), "--lr", "1e-3"]) == 0
    assert papers("small-paper", "--out", str(other)) == 2
    assert "are not those of the study: remove it to train it again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["small-papers"], "unknown paper 'small-papers': did you mean 'small-paper'?"),
        ([], "name a paper, or all: "),
        (["small-paper", "--scale", "full"], "small-paper has the scales short, not 'full'"),
        (["small-paper", "--rows", "k = 7"], "small-paper has no row 'k = 7'; it has: ELBO, small"),
        (["small-paper", "--rows", "ELBO", "--overwrite"], "leave out --rows, or --overwrite"),
        (["small-paper", "--address", "auto"], "give --executor ray too"),
        (["burda-2016", "small-paper"], "mnist is not here"),
    ],
)
def test_refusals(
    module: Path,
    flags: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One sentence, exit status 2, before anything is written."""

    def missing(root: Path) -> None:
        raise DataError("mnist is not here")

    monkeypatch.setitem(DATASETS._choices, "mnist", missing)
    out = tmp_path / "papers"
    assert papers(*flags, "--out", str(out)) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_other_settings_need_overwrite(
    module: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = import_own(str(module))
    flags = ("small-paper", "--out", str(tmp_path))
    rows = [one for one in spec.ROWS if one.entry.objective == "iwae"]
    monkeypatch.setattr(spec, "CLAIMS", [])
    monkeypatch.setattr(spec, "ROWS", rows)
    one = spec.Protocol(
        spec.PROTOCOL.settings, 1, (0,), spec.PROTOCOL.scoring, {"large": {"latent": 3}}
    )
    two = spec.Protocol(
        spec.PROTOCOL.settings, 2, (0,), spec.PROTOCOL.scoring, {"large": {"latent": 3}}
    )
    monkeypatch.setattr(spec, "PROTOCOL", one)
    assert papers(*flags) == 0
    before = numbers(tmp_path / "small-paper" / "short")
    monkeypatch.setattr(spec, "PROTOCOL", two)
    assert papers(*flags) == 2
    assert "was made with budget = epochs:1, not epochs:2" in capsys.readouterr().err
    assert papers(*flags, "--overwrite") == 0
    assert numbers(tmp_path / "small-paper" / "short") != before


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert papers("--list") == 0
    assert "burda-2016" in capsys.readouterr().out


def test_settings_of_the_run_of_a_cell(whole: Path) -> None:
    """A cell is a run directory as `train` writes it."""
    config = Run(whole / CELL).config
    assert isinstance(config, RunConfig)
    assert (config.latent, config.epochs, config.keep, config.num_particles) == (1, 4, "last", 2)


def test_the_papers_of_the_package_on_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rainforth 2018 and Wu 2017 with a step or two of everything: all rows and claims come out."""
    settings = {
        **wu_2017.SHORT.protocol.settings,
        "data": "digits",
        "hidden": [8],
        "compile": False,
    }
    settings["batch_size"] = 200
    scoring = Scoring(num_particles=30, num_data=6, method="is")
    tiny = Protocol({**settings, "system": "vae", "latent": 2}, 1, (0,), scoring)
    monkeypatch.setattr(rainforth_2018, "SHORT", tiny)
    monkeypatch.setitem(rainforth_2018.DRAWS, "short", 4)
    variants = {"": {"system": "vae", "latent": 2}}
    path = AISSettings(2, 4, leapfrog_steps=2)
    sizes = wu_2017.Sizes(Protocol(settings, 1, (0,), scoring, variants), 2, path, 3)
    monkeypatch.setattr(wu_2017, "SHORT", sizes)
    monkeypatch.setattr(wu_2017, "IS_DRAWS", {"L_10000": 30, "L_100000": 60})
    monkeypatch.setitem(DATASETS._choices, "mnist", DATASETS["digits"])
    assert papers("rainforth-2018", "wu-2017", "--out", str(tmp_path)) == 0
    for name, count in (("rainforth-2018", 18), ("wu-2017", 7)):
        found = numbers(tmp_path / name / "short")
        assert len(found) == count
        assert all(isinstance(values[0], float) for values in found.values()), found
    wu = tmp_path / "wu-2017" / "short"
    kept = {
        method: json.loads((wu / f"iwae-k2-seed0-{method}.json").read_text())["values"]
        for method in ("AIS", "L_10000", "gap")
    }
    assert [len(values) for values in kept.values()] == [6, 6, 3]
    difference = sum(kept["AIS"]) / 6 - sum(kept["L_10000"]) / 6
    assert numbers(wu)["AIS above L_10000"][0] == pytest.approx(difference)
    bounds = numbers(tmp_path / "rainforth-2018" / "short")
    iwae, vae = (
        bounds[f"('{name}', 'IWAE bound, nats per image')"][0]
        for name in ("IWAE, K = 64", "VAE, 64 draws")
    )
    assert bounds["IWAE above VAE in the bound"][0] == pytest.approx(iwae - vae)
    log_px = bounds["('IWAE, K = 64', 'log p(x), nats per image')"][0]
    assert log_px > iwae - 1  # 30 draws of z, against 4
    assert "not comparable: trained for 4 epochs with K = 5" in capsys.readouterr().out
