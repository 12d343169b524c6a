"""Loggers by name, which record a run beside its metrics.csv."""

import csv as table
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyroae.config import loggers_in
from pyroae.errors import ConfigError
from pyroae.registry import Registry

if TYPE_CHECKING:
    from lightning_fabric.loggers import Logger

LOGGERS: "Registry[Logger]" = Registry("logger")
"""Functions that make a logger of Lightning Fabric, by name.

Each may take `folder`, the folder of the run's logs, and `step`, from which the training resumes.
"""

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""The package that each logger needs, which is also the name of pyroae's extra."""


def check_loggers(text: str | None) -> None:
    """Refuse loggers that do not exist, or whose package is missing.

    Args:
        text: Names with settings, as `--logger` takes them.

    Raises:
        ConfigError: For an unknown logger, or one that cannot be imported.

    >>> check_loggers("csv,tensorboard")
    """
    for one in loggers_in(text):
        name = one.partition(":")[0].strip()
        LOGGERS[name]
        package = PACKAGES.get(name)
        if package is not None and find_spec(package) is None:
            raise ConfigError(
                f"the logger '{name}' needs the package {package}: pip install 'pyroae[{package}]'"
            )


def loggers_of(text: str | None, folder: Path, step: int = 0) -> "Sequence[Logger]":
    """Make the loggers of a run.

    Args:
        text: Names with settings, as `--logger` takes them.
        folder: The folder of the run's logs.
        step: The step from which the training resumes; what was logged after it is replaced.

    Returns:
        The loggers; none of them has written anything.

    Raises:
        ConfigError: For a setting that a logger does not have.
    """
    return [LOGGERS.parse(one, folder=folder, step=step) for one in loggers_in(text)]


@LOGGERS.register("csv")
def csv(*, folder: Path, step: int = 0) -> "Logger":
    """Lightning Fabric's CSVLogger: RUN/logs/csv/metrics.csv, a row per epoch.

    Args:
        folder: The folder of the run's logs.
        step: The step from which the training resumes; rows after it are removed.

    Returns:
        The logger.
    """
    from lightning_fabric.loggers import CSVLogger

    logger = CSVLogger(folder, name="csv", version="", flush_logs_every_n_steps=1)
    file = folder / "csv" / "metrics.csv"
    if file.is_file():  # Fabric's writer would warn, and delete it
        with file.open(newline="") as opened:
            rows = [row for row in table.DictReader(opened) if int(row["step"]) <= step]
        file.unlink()
        for row in rows:
            logger.log_metrics({k: float(v) for k, v in row.items() if v}, int(row["step"]))
    return logger


@LOGGERS.register("tensorboard")
def tensorboard(*, folder: Path, step: int = 0) -> "Logger":
    """Lightning Fabric's TensorBoardLogger: RUN/logs/tensorboard, metrics and pictures.

    Args:
        folder: The folder of the run's logs.
        step: The step from which the training resumes; TensorBoard hides what is after it.

    Returns:
        The logger.
    """
    from lightning_fabric.loggers import TensorBoardLogger

    purge: dict[str, Any] = {"purge_step": step + 1} if step else {}
    return TensorBoardLogger(folder, name="tensorboard", version="", **purge)


@LOGGERS.register("wandb")
def wandb(project: str = "pyroae", entity: str = "", mode: str = "", *, folder: Path) -> "Logger":
    """Weights & Biases, metrics and pictures.

    Args:
        project: The project.
        entity: The user or team; empty for the account's default.
        mode: online, offline or disabled; empty for that of the environment.
        folder: The folder of the run's logs, which keeps the run's id for a resumed training.

    Returns:
        The logger.
    """
    from pyroae.runs.wandb_logger import WandbLogger

    return WandbLogger(folder / "wandb", project, entity or None, mode or None)


@LOGGERS.register("mlflow")
def mlflow(experiment: str = "pyroae", uri: str = "", *, folder: Path) -> "Logger":
    """MLflow, metrics and pictures.

    Args:
        experiment: The experiment.
        uri: The tracking server or store, as `sqlite:///mlflow.db`; empty for that of the
            environment.
        folder: The folder of the run's logs, which keeps the run's id for a resumed training.

    Returns:
        The logger.
    """
    from pyroae.runs.mlflow_logger import MLflowLogger

    return MLflowLogger(folder / "mlflow", experiment, uri or None)
