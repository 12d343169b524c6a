"""Where a study is trained does not change what it comes to: on Ray, and on Ray whose workers are
killed.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyroae.cli import main
from pyroae.comparison.results import Cell, Outcome
from pyroae.config import Scoring
from pyroae.errors import ConfigError, DataError, RunError
from pyroae.runs.contents import versions
from pyroae.runs.run import Run
from pyroae.runtime.files import locked
from pyroae.studies import ray_worker
from pyroae.studies.cell_files import read_outcome
from pyroae.studies.executor_names import executor_of
from pyroae.studies.process_executor import InProcesses
from pyroae.studies.ray_executor import OnRay
from pyroae.studies.ray_tasks import SENT, nbytes
from pyroae.studies.ray_worker import pack, read_data, same_versions, train_cell, unpack
from pyroae.studies.study import Study
from pyroae.studies.study_config import StudyConfig, settings_of

pytestmark = pytest.mark.usefixtures("no_study_figures")

SMALL = [
    "--latent",
    "2",
    "--hidden",
    "10",
    "--score-particles",
    "20",
    "--score-data",
    "50",
    "--score-method",
    "is",
    "--budget",
    "epochs:1",
]
FAILS = "beta-elbo:beta=1e38"  # the loss is infinite at once
CHILD = Path(__file__).parents[1] / "killed_workers.py"


def killing(what: str, after: int, *flags: str, status: int = 0) -> tuple[dict[str, Any], str, str]:
    """What the child tells, and what the command says on its two streams."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(CHILD.parents[1]),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, str(CHILD), what, str(after), *flags]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=350, env=environment, check=False
    )
    assert done.returncode == status, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1]), " ".join(done.stdout.split()), done.stderr


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(opened)]


def assert_alike(one: Path, other: Path) -> None:
    """The same table to the last bit, of every cell too, but for the seconds."""
    for name in ("comparison.csv", "ranking.csv"):
        assert rows(one / name) == rows(other / name)
    places = sorted(place.parent.name for place in one.glob("*/outcome.safetensors"))
    assert places == sorted(place.parent.name for place in other.glob("*/outcome.safetensors"))
    for name in places:
        cells = [
            read_outcome(path / name / "outcome.safetensors", Cell("", 1, 0))
            for path in (one, other)
        ]
        if isinstance(cells[0], str):
            assert cells[0] == cells[1]
            continue
        assert isinstance(cells[1], Outcome)
        assert cells[0].score.log_px.equal(cells[1].score.log_px)
        assert cells[0].score.se.equal(cells[1].score.se)
        weights = [Run(path / name).autoencoder("last").state_dict() for path in (one, other)]
        assert all(weights[0][key].equal(weights[1][key]) for key in weights[0])
        for file in ("metrics.csv", "curve.csv"):
            assert rows(one / name / file) == rows(other / name / file)
        assert (one / name / "config.yaml").read_text() == (
            other / name / "config.yaml"
        ).read_text()


# On Ray.


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(tmp_path: Path) -> None:
    """The first process that trains is killed; its cell is run again.

    A cell that fails is told, and fails as it does here.
    """
    flags = ["--objectives", f"iwae,{FAILS}", "--num-particles", "2", "--seeds", "3", *SMALL]
    here, there = tmp_path / "here", tmp_path / "there"
    assert main(["compare", *flags, "--out", str(here)]) == 0
    told, said, _ = killing("process", 0, *flags, "--executor", "ray", "--out", str(there))
    assert told["finished"] < 6
    assert "was lost: it is run again" in said
    assert f"failed: {FAILS}, K = 2, seed 0: the loss became NaN or infinite at step 1" in said
    assert_alike(here, there)


@pytest.mark.slow
def test_twenty_cells_survive_the_loss_of_a_machine(tmp_path: Path) -> None:
    """One of two machines is killed with all that runs on it; the table is that of the local
    executor.
    """
    flags = ["--objectives", "trace-elbo,iwae", "--num-particles", "1,4", "--seeds", "5", *SMALL]
    here, there = tmp_path / "here", tmp_path / "there"
    told, _, _ = killing("node", 5, *flags, "--executor", "ray", "--out", str(there))
    assert 5 <= told["finished"] < 15
    assert told["alive"] == 2  # of three: the head, which trains nothing, and one worker
    assert main(["compare", *flags, "--out", str(here)]) == 0
    assert len(rows(here / "comparison.csv")) == 20
    assert_alike(here, there)


@pytest.mark.slow
def test_an_interrupted_study_goes_on_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGINT on Ray; the rest is trained here; then more seeds on Ray again, on a cluster of this
    machine alone.
    """
    flags = ["--objectives", "iwae", "--num-particles", "2", *SMALL[:-1], "epochs:40"]
    here, there = tmp_path / "here", tmp_path / "there"
    told, _, error = killing(
        "interrupt", 1, *flags, "--seeds", "5", "--executor", "ray", "--out", str(there), status=130
    )
    assert told["finished"] < 5
    assert (
        f"stopped by SIGINT; finished work is saved; resume with: pyroae compare --resume {there}"
        in error
    )
    under_way = [
        p
        for p in there.glob("*/checkpoints/last.safetensors")
        if not (p.parents[1] / "outcome.safetensors").exists()
    ]
    assert under_way  # what the interrupted trainings sent at last
    assert main(["compare", "--resume", str(there)]) == 0
    command = [
        sys.executable,
        "-m",
        "pyroae.cli",
        "compare",
        "--resume",
        str(there),
        "--seeds",
        "6",
        "--executor",
        "ray",
    ]
    environment = {**os.environ, "PYTHONPATH": str(CHILD.parents[1])}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "5 of 6 trainings are finished already" in done.stdout
    assert main(["compare", *flags, "--seeds", "6", "--out", str(here)]) == 0
    capsys.readouterr()
    assert_alike(here, there)


# What a worker does, in this process.


def study_at(path: Path, **settings: Any) -> Study:
    given = {"latent": 2, "hidden": (10,), **settings}
    config = StudyConfig(settings_of(given), ("iwae",), (2,), (0,), "epochs:3", Scoring(20, 50))
    return Study(path, config)


def job_of(study: Study, **changed: Any) -> dict[str, Any]:
    job = {
        "cell": ("iwae", 2, 0),
        "config": study.config.to_dict(),
        "settings": study.config.settings.to_dict(),
    }
    return {**job, "fingerprint": study.splits.fingerprint, "versions": versions(), **changed}


def test_a_worker_goes_on_from_what_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoints are sent along the way; from one of them another worker comes to the same
    outcome.
    """
    monkeypatch.setattr(ray_worker, "SEND_EVERY", 0.0)
    study, sent = study_at(tmp_path / "study"), list[ray_worker.Files]()
    whole = train_cell(job_of(study), study.splits, [], sent.append)
    assert [name for name, _ in whole][-1] == "outcome.safetensors"
    assert {"config.yaml", "metrics.csv", "curve.csv", "results.json"} < {name for name, _ in whole}
    assert len(sent) == 3
    assert all("outcome.safetensors" not in dict(files) for files in sent)
    later: list[ray_worker.Files] = []
    again = train_cell(job_of(study), None, sent[0], later.append)
    assert len(later) == 2  # the first epoch was not trained again
    for name, files in (("whole", whole), ("again", again)):
        unpack(tmp_path / name, files)
    one, other = (
        read_outcome(tmp_path / name / "outcome.safetensors", Cell("iwae", 2, 0))
        for name in ("whole", "again")
    )
    assert isinstance(one, Outcome)
    assert isinstance(other, Outcome)
    assert one.score.log_px.equal(other.score.log_px)
    assert [point[3:] for point in one.curve] == [point[3:] for point in other.curve]


def test_an_interrupted_worker_sends_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, sent, save = study_at(tmp_path / "study"), list[ray_worker.Files](), Run.save

    def stop(run: Run, state: Any) -> None:
        save(run, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        train_cell(job_of(study), study.splits, [], sent.append)
    assert "checkpoints/last.safetensors" in dict(sent[0])


def test_what_a_worker_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.npy"
    np.save(file, np.random.default_rng(0).random((50, 6)))
    study = study_at(tmp_path / "study", data=str(file), batch_size=10)
    assert (
        read_data(study.config.settings, study.splits.fingerprint).fingerprint
        == study.splits.fingerprint
    )
    monkeypatch.setattr(ray_worker, "_cache", {})
    with pytest.raises(DataError, match=r"of the worker .* are not those of the study"):
        read_data(study.config.settings, "0123")
    file.unlink()
    with pytest.raises(
        DataError, match="cannot read the data, too large to be sent: there is no file"
    ):
        train_cell(job_of(study), None, [], lambda _: None)
    with pytest.raises(RunError, match=r"has torch .*, the study 1\.0\.0: install the same one"):
        same_versions({**versions(), "torch": "1.0.0"})
    same_versions(
        {**versions(), "torch": f"{torch.__version__.partition('+')[0]}+cu999", "python": "3.13.0"}
    )


def test_files_travel_in_the_order_in_which_they_were_written(tmp_path: Path) -> None:
    place = tmp_path / "run"
    unpack(
        place, [("config.yaml", b"a"), ("checkpoints/last.safetensors", b"b"), ("curve.csv", b"c")]
    )
    (place / ".lock").touch()
    os.utime(place / "curve.csv", ns=(1, 1))
    assert [name for name, _ in pack(place)] == [
        "curve.csv",
        "config.yaml",
        "checkpoints/last.safetensors",
    ]
    assert pack(tmp_path / "nothing") == []
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write"):
        unpack(tmp_path / "file", [("a", b"")])


# What both share.


def test_a_training_has_the_threads_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever torch has here: sums over data are added up in an order that depends on their
    number.
    """
    before, seen = torch.get_num_threads(), list[int]()
    monkeypatch.setattr(Run, "save", lambda *_: seen.append(torch.get_num_threads()))
    flags = [
        "--objectives",
        "iwae",
        "--num-particles",
        "2",
        "--seeds",
        "1",
        *SMALL,
        "--out",
        str(tmp_path / "study"),
    ]
    assert main(["compare", *flags, "--cpus-per-cell", "3"]) == 0
    assert seen == [3]
    assert torch.get_num_threads() == before
    assert Study.read(tmp_path / "study").cpus_per_cell == 3


def test_one_process_writes_to_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "study"
    flags = ["--objectives", "iwae", "--num-particles", "2", "--seeds", "1", *SMALL]
    path.mkdir()
    with locked(path, "study"):
        assert main(["compare", *flags, "--out", str(path)]) == 2
    assert f"another process is writing to the study '{path}'" in capsys.readouterr().err
    assert main(["compare", *flags, "--out", str(path)]) == 0
    assert main(["compare", "--resume", str(path), "--cpus-per-cell", "2"]) == 2
    assert "cpus_per_cell is 1 there" in capsys.readouterr().err


# Bad use.


def test_executors_by_name() -> None:
    assert executor_of("local") == InProcesses()
    assert executor_of("ray", "auto", 0.25) == OnRay("auto", 0.25)
    with pytest.raises(ConfigError, match="unknown executor 'rey': did you mean 'ray'"):
        executor_of("rey")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--address", "auto"], "--address is for trainings on Ray: give --executor ray too"),
        (["--gpus-per-cell", "0.5"], "--gpus-per-cell is for trainings on Ray"),
        (["--executor", "ray", "--gpus-per-cell", "1.5"], "gpus_per_cell in [0, 1], not 1.5"),
        (["--cpus-per-cell", "0"], "cpus_per_cell must be at least 1, not 0"),
    ],
)
def test_bad_use(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *flags, "--out", str(tmp_path / "study")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["compare", "--executor", "ray", "--out", str(tmp_path / "study")]) == 2
    assert (
        capsys.readouterr().err
        == "pyroae compare: studies on Ray need the extra: pip install 'pyroae[ray]'\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_no_cluster(tmp_path: Path) -> None:
    """One sentence, and nothing is written."""
    environment = {**os.environ, "PYTHONPATH": str(CHILD.parents[1])}
    for flags, words in (
        (["--address", "127.0.0.1:1"], "no Ray cluster can be used at '127.0.0.1:1'"),
        (["--cpus-per-cell", "9999"], "this machine has no 9999 CPUs and 0 GPUs for a cell"),
    ):
        command = [
            sys.executable,
            "-m",
            "pyroae.cli",
            "compare",
            "--executor",
            "ray",
            *flags,
            "--out",
            str(tmp_path / "study"),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=200, env=environment, check=False
        )
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.iterdir())


def test_data_that_are_sent(tmp_path: Path) -> None:
    """Small ones; in memory they are as large as their parts."""
    splits = study_at(tmp_path).splits
    assert splits.valid is not None
    assert splits.test is not None
    assert (
        nbytes(splits)
        == sum(len(part) for part in (splits.train, splits.valid, splits.test)) * 64 * 4
        < SENT
    )
