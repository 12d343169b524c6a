"""Loggers: what they record, that a resumed training continues them, and that they may fail."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.loggers import CSVLogger, Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pyroae import TrainConfig, fit, load, zoo
from pyroae.commands.train import train
from pyroae.config import RunConfig
from pyroae.errors import ConfigError
from pyroae.runs import loggers as loggers_module
from pyroae.runs.loggers import loggers_of
from pyroae.runs.run import Run
from pyroae.studies.study_config import StudyConfig
from pyroae.training.recording import Recorder

SETTINGS = {
    **{"data": "digits", "latent": 2, "hidden": (5,), "batch_size": 500, "compile": False},
    **{"logger": "csv,tensorboard", "snapshots": (1,), "kl_warmup": 2},
}


class Memory(Logger):
    """Keeps what it is given; fails from a number of calls on."""

    def __init__(self, fails_from: int = 10**9) -> None:
        self.rows: list[tuple[dict[str, float], int | None]] = []
        self.settings: dict[str, Any] = {}
        self.fails_from = fails_from

    name = property(lambda self: "memory")
    version = property(lambda self: 0)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if len(self.rows) >= self.fails_from:
            raise OSError(28, "No space left on device")
        self.rows.append((metrics, step))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.settings = dict(params)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 2 epochs that is resumed for a third."""
    path = tmp_path_factory.mktemp("loggers") / "run"
    train({**SETTINGS, "epochs": 2}, str(path), False, None, None)
    train({"epochs": 3}, None, False, str(path), None)
    return path


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_a_resumed_training_continues_the_csv(run: Path) -> None:
    own, logged = rows_of(run / "metrics.csv"), rows_of(run / "logs" / "csv" / "metrics.csv")
    assert [float(row["epoch"]) for row in logged] == [1, 2, 3]
    for name in ("step", "train_nelbo", "valid_nelbo", "rate"):
        assert [float(row[name]) for row in logged] == [float(row[name]) for row in own]
    assert [float(row["kl_weight"]) for row in logged] == [0.5, 1.0, 1.0]
    assert {float(row["lr"]) for row in logged} == {1e-3}
    assert all(float(row["samples_per_second"]) > 0 for row in logged)
    assert all(float(row["grad_norm"]) > 0 for row in logged)


def test_tensorboard_has_metrics_and_pictures(run: Path) -> None:
    events = EventAccumulator(str(run / "logs" / "tensorboard")).Reload()
    own = rows_of(run / "metrics.csv")
    found = events.Scalars("valid_nelbo")
    assert [event.step for event in found] == [int(row["step"]) for row in own]
    assert [event.value for event in found] == pytest.approx(
        [float(row["valid_nelbo"]) for row in own]
    )
    for name in ("reconstructions", "samples"):  # of the snapshot, and of each end
        assert [event.step for event in events.Images(name)] == [int(row["step"]) for row in own]


def test_fit_records_with_any_logger() -> None:
    memory, system = Memory(), zoo.ppca(4, latent=1)
    config = TrainConfig(epochs=2, batch_size=10, lr=0.25)
    result = fit(system, torch.rand(20, 4), config=config, progress=False, logger=memory)
    assert [step for _, step in memory.rows] == [2, 4]
    assert [row["train_nelbo"] for row, _ in memory.rows] == [
        epoch.train_nelbo for epoch in result.history
    ]
    assert "valid_nelbo" not in memory.rows[0][0]  # there are no validation data
    assert (memory.settings["lr"], memory.settings["objective"]) == (
        0.25,
        "TraceELBO(num_particles=1)",
    )
    norm = torch.stack([p.grad.norm() for p in system.parameters() if p.grad is not None]).norm()
    assert memory.rows[1][0]["grad_norm"] == pytest.approx(norm.item())


def test_a_logger_changes_no_figure(tmp_path: Path) -> None:
    def trained(**given: Any) -> list[float]:
        torch.manual_seed(0)
        system, config = zoo.ppca(4, latent=1), TrainConfig(epochs=2, batch_size=10)
        result = fit(system, torch.ones(20, 4).cumsum(0), config=config, progress=False, **given)
        return [epoch.train_nelbo for epoch in result.history]

    assert trained() == trained(logger=[Memory(), CSVLogger(tmp_path)])


def test_a_logger_that_fails_is_left_out() -> None:
    failing, good = Memory(fails_from=1), Memory()
    config = TrainConfig(epochs=3, batch_size=10)
    with pytest.warns(UserWarning, match="Memory failed and is left out .*: No space") as caught:
        fit(
            *(zoo.ppca(4, latent=1), torch.randn(10, 4)),
            config=config,
            progress=False,
            logger=[failing, good],
        )
    assert len(caught) == 1
    assert (len(failing.rows), len(good.rows)) == (1, 3)


def test_bad_loggers_are_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="unknown logger 'tensorbord': did you mean 'tensorb"):
        RunConfig(logger="csv,tensorbord")
    with pytest.raises(ConfigError, match="nothing"):
        loggers_of("csv:nothing=1", tmp_path)
    monkeypatch.setattr(loggers_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package wandb: pip install 'pyroae\[wandb\]"):
        train({**SETTINGS, "logger": "wandb"}, str(tmp_path / "run"), False, None, None)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="is for one training"):
        StudyConfig(RunConfig(logger="csv"))


def test_overwriting_removes_the_logs(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    assert (copy / "logs").is_dir()
    Run.create(copy, RunConfig(data="digits"), load("digits"), overwrite=True)
    assert not (copy / "logs").exists()


def test_no_logger_no_record() -> None:
    recorder = Recorder.of(None)
    recorder.begin({"lr": 1.0})
    recorder.finalize("success")
    assert recorder.loggers == []
