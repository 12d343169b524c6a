"""Trainings side by side in processes: killed ones, and signals, change nothing in the results."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
import torch

from pyroae.cli import main
from pyroae.comparison.results import Cell
from pyroae.errors import DataError, InterruptedRunError
from pyroae.runs.run import Run
from pyroae.studies import process_executor
from pyroae.studies.executor_names import executor_of
from pyroae.studies.process_executor import InProcesses, jobs_for
from pyroae.studies.process_worker import Answer, Job, answer
from pyroae.studies.ray_executor import OnRay
from pyroae.studies.study import Study
from pyroae.studies.study_config import StudyConfig, settings_of
from tests.studies.test_executors import FAILS, SMALL, assert_alike, study_at

pytestmark = pytest.mark.usefixtures("no_study_figures")
LONG = [*SMALL[:-1], "epochs:2", "--batch-size", "4", "--compile", "false"]
SHORT = [*SMALL[:-1], "epochs:20", "--batch-size", "20", "--compile", "false"]
CELL = Cell("iwae", 2, 0)


def begun(study: Path) -> list[Path]:
    """The directories of trainings that are not finished."""
    places = [file.parent for file in study.glob("*/config.yaml")]
    return [place for place in places if not (place / "outcome.safetensors").exists()]


def saved(study: Path) -> list[Path]:
    """Those of them that have a state."""
    return [place for place in begun(study) if (place / "checkpoints/last.safetensors").exists()]


def at_two_trainings(study: Path, act: Callable[[], None], number: int = 2) -> None:
    """Call a function soon after two trainings, or so many, have begun."""

    def wait() -> None:
        until = time.monotonic() + 200
        while len(begun(study)) < number and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(0.2)  # until the first steps
        act()

    threading.Thread(target=wait, daemon=True).start()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Popen[bytes]]:
    """The processes that an executor has started."""
    processes: list[Popen[bytes]] = []

    def record(*args: Any, **options: Any) -> Popen[bytes]:
        processes.append(Popen(*args, **options))
        return processes[-1]

    monkeypatch.setattr(process_executor, "Popen", record)
    return processes


@pytest.mark.slow
def test_a_killed_process_changes_nothing(
    tmp_path: Path, started: list[Popen[bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its cell is run again from its last state; a cell that fails, fails as it does here."""
    here, there = tmp_path / "here", tmp_path / "there"
    flags = ["--objectives", f"iwae,{FAILS}", "--num-particles", "2", "--seeds", "2", *SHORT]
    at_two_trainings(there, lambda: started[0].kill())  # noqa: PLW0108
    assert main(["compare", *flags, "--jobs", "2", "--out", str(there)]) == 0
    said = capsys.readouterr().out
    assert "was lost: it is run again, from its last checkpoint, if any" in said
    assert f"failed: {FAILS}, K = 2, seed 0: the loss became NaN or infinite at step 1" in said
    assert len(started) == 3
    assert all(process.poll() is not None for process in started)
    assert main(["compare", *flags, "--out", str(here)]) == 0
    assert_alike(here, there)


@pytest.mark.long
@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_signal_saves_every_running_training(
    tmp_path: Path,
    started: list[Popen[bytes]],
    capsys: pytest.CaptureFixture[str],
    seeds: int,
) -> None:
    """The study goes on in this process, and comes to the figures of one that was not stopped.

    That a stopped study does so is also tested with one process, in test_compare_command.py.
    """
    here, there = tmp_path / "here", tmp_path / "there"
    flags = ["--objectives", "iwae", "--num-particles", "2", "--seeds", str(seeds), *LONG]
    before: list[int] = []

    def stop() -> None:
        before.append(len(saved(there)))
        os.kill(os.getpid(), signal.SIGTERM)

    at_two_trainings(there, stop, seeds)
    assert main(["compare", *flags, "--jobs", "2", "--out", str(there)]) == 143
    assert capsys.readouterr().err.endswith(
        "pyroae compare: stopped by SIGTERM; finished work is saved; resume with: "
        f"pyroae compare --resume {there}\n"
    )
    assert all(process.poll() is not None for process in started)
    assert before[0] < seeds  # an epoch is not over yet
    assert len(started) == len(saved(there)) == seeds
    assert all(0 < Run(place).state().progressed.step < 728 for place in saved(there))
    if seeds == 1:
        return
    assert main(["compare", "--resume", str(there)]) == 0
    assert main(["compare", *flags, "--out", str(here)]) == 0
    assert_alike(here, there)


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """SIGKILL of the study: its processes end at once, and it can be resumed."""
    here, there = tmp_path / "here", tmp_path / "there"
    flags = ["--objectives", "iwae", "--num-particles", "2", "--seeds", "3", *LONG]
    code = "import sys; from pyroae.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "compare", *flags, "--jobs", "2", "--out", str(there)]
    study = Popen(command, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    killed = threading.Event()
    at_two_trainings(there, killed.set)
    assert killed.wait(200)
    children = Path(f"/proc/{study.pid}/task/{study.pid}/children").read_text().split()
    assert len(children) == 2
    study.kill()
    study.wait()
    until = time.monotonic() + 5
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert begun(there)
    assert main(["compare", "--resume", str(there), "--jobs", "2"]) == 0
    assert main(["compare", *flags, "--out", str(here)]) == 0
    assert_alike(here, there)


# What a process answers, in this process.


def test_answers(tmp_path: Path) -> None:
    study = study_at(tmp_path / "study")
    job = Job(str(study.path), study.config.to_dict(), study.splits.fingerprint)
    assert answer(job.study, CELL) == Answer()
    assert study.outcome(CELL) is not None
    with pytest.raises(DataError, match="the data 'digits' have changed since the study was star"):
        Job(str(study.path), study.config.to_dict(), "0123").study()


@pytest.mark.parametrize(
    ("error", "refused", "traced"),
    [
        (DataError("no such file"), "no such file", ""),
        (torch.OutOfMemoryError(), "the memory of the GPU ran out: run fewer trainings side", ""),
        (ZeroDivisionError("by zero"), "", "ZeroDivisionError: by zero"),
    ],
)
def test_errors_are_answers(error: Exception, refused: str, traced: str) -> None:
    def fail() -> Any:
        raise error

    given = answer(fail, CELL)
    assert given.refused.startswith(refused)
    assert bool(given.refused) == bool(refused)
    assert traced in given.error
    assert bool(given.error) == bool(traced)


def test_a_stopped_training_is_no_answer() -> None:
    def stop() -> Any:
        raise InterruptedRunError("stopped", signal.SIGTERM)

    with pytest.raises(InterruptedRunError):
        answer(stop, CELL)


# By name, and bad use.


def test_jobs_by_name() -> None:
    assert executor_of() == InProcesses(None)
    assert executor_of(jobs=1) == InProcesses(1)
    assert executor_of("local", jobs=3) == InProcesses(3)
    assert executor_of("ray") == OnRay()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--jobs", "0"], "jobs must be at least 1, not 0"),
        (["--jobs", "2", "--executor", "ray"], "--jobs is for trainings on this machine"),
        (["--jobs", "2", "--devices", "2"], "a training of --jobs is one process on one device"),
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


# How many there are unasked.


@pytest.mark.parametrize(
    ("changes", "cells", "wanted"),
    [
        ({}, 10, 4),
        ({}, 3, 3),
        ({"cpus_per_cell": 2}, 10, 2),
        ({"cpus_per_cell": 8}, 10, 1),
        ({"budget": "epochs:4"}, 10, 1),  # of 500 steps
        ({"budget": "seconds:1e4"}, 10, 1),
    ],
)
def test_jobs_by_default(
    changes: dict[str, Any],
    cells: int,
    wanted: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    settings = settings_of({"latent": 2, "batch_size": 100, "accelerator": "cpu"})
    config = StudyConfig(settings, seeds=(0,), **{"budget": "epochs:500", **changes})
    study = Study(tmp_path / "study", config)
    assert jobs_for(study, [Cell("iwae", 8, seed) for seed in range(cells)]) == wanted
    monkeypatch.setattr(process_executor, "machine_memory", lambda: 2**30)
    assert jobs_for(study, [Cell("iwae", 8, seed) for seed in range(cells)]) == 1


def test_one_job_is_this_process(
    tmp_path: Path, started: list[Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    flags = ["--objectives", "iwae", "--num-particles", "2", "--seeds", "2", *SMALL]
    assert main(["compare", *flags, "--out", str(tmp_path / "study")]) == 0
    assert not started
