"""Run the trainings of a study on a Ray cluster of one machine or many."""

import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from pyroae.comparison.results import Cell
from pyroae.errors import ConfigError, RunError
from pyroae.runtime.files import words
from pyroae.runtime.processes import say
from pyroae.runtime.progress import Progress
from pyroae.studies.attempts import RETRIES
from pyroae.studies.executors import Executor, Outcomes, one_process_each
from pyroae.studies.ray_tasks import SENT, Tasks, nbytes
from pyroae.studies.study import Study

STORE = 200 * 2**20
"""The smallest object store, in bytes, of a cluster that is started here."""


@dataclass(frozen=True)
class OnRay(Executor):
    """Run trainings as tasks of a Ray cluster.

    Attributes:
        address: `auto`, HOST:PORT or ray://HOST:PORT; by default RAY_ADDRESS, or a cluster of this
            machine alone, started for the study.
        gpus_per_cell: the share of a GPU per cell, in [0, 1]; by default 1 if the cluster has GPUs
            and the accelerator may be one, else 0.
        retries: how often a cell is run again after its worker was lost.

    Raises:
        ConfigError: for another number of GPUs.
    """

    address: str | None = None
    gpus_per_cell: float | None = None
    retries: int = RETRIES

    def __post_init__(self) -> None:
        if self.gpus_per_cell is not None and not 0 <= self.gpus_per_cell <= 1:
            raise ConfigError(
                "a cell has one GPU, a share of one or none: gpus_per_cell in [0, 1], not "
                f"{self.gpus_per_cell}"
            )

    @contextmanager
    def ready(self, study: Study) -> Iterator[None]:
        """Return a context in which this process is connected to the cluster.

        Args:
            study: the study.

        Yields:
            None.

        Raises:
            ConfigError: if Ray is not installed, or a cell needs more than a machine has.
            RunError: if there is no cluster at the address.
        """
        one_process_each(study, "on Ray")
        ray = ray_module()
        with _cluster(ray, self.address, study):
            share = self._share(ray, study)
            if _address(self.address) == "local" and not _fits(ray, share):
                raise ConfigError(
                    f"this machine has no {share['num_cpus']} CPUs and {share['num_gpus']:g} GPUs "
                    "for a cell"
                )
            yield

    def run(self, study: Study, cells: Sequence[Cell]) -> Outcomes:
        """Train and score cells side by side, as many as the cluster holds."""
        ray = ray_module()
        share = self._share(ray, study)
        if not _fits(ray, share):
            say(
                f"waiting for a node with {share['num_cpus']} CPUs and {share['num_gpus']:g} GPUs "
                "for a cell"
            )
        tasks = Tasks(ray, study, share, self.retries)
        try:
            with Progress("trainings", len(cells)) as bar:
                yield from tasks.run(cells, bar)
        finally:
            tasks.stop()
        tasks.attempts.check()

    def _share(self, ray: ModuleType, study: Study) -> dict[str, float]:
        """The CPUs and GPUs of a cell."""
        gpus = self.gpus_per_cell
        if gpus is None:
            may_be_gpu = study.config.settings.accelerator in ("auto", "cuda", "gpu")
            gpus = float(may_be_gpu and ray.cluster_resources().get("GPU", 0) >= 1)
        return {"num_cpus": study.config.cpus_per_cell, "num_gpus": gpus}


def _fits(ray: ModuleType, share: dict[str, float]) -> bool:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(
        node.get("CPU", 0) >= share["num_cpus"] and node.get("GPU", 0) >= share["num_gpus"]
        for node in nodes
    )


def ray_module() -> ModuleType:
    """Import Ray.

    Returns:
        The module.

    Raises:
        ConfigError: if it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
    except ImportError:
        raise ConfigError("studies on Ray need the extra: pip install 'pyroae[ray]'") from None
    return ray


@contextmanager
def _cluster(ray: ModuleType, address: str | None, study: Study) -> Iterator[None]:
    """A context in which this process is connected to a cluster; closes a connection of its own.

    Raises RunError if there is no cluster at the address, or one of another version.
    """
    if ray.is_initialized():
        yield
        return
    address = _address(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        size = nbytes(study.splits)
        options |= {
            "include_dashboard": False,
            "object_store_memory": int(max(STORE, 2 * size if size <= SENT else 0)),
        }
    try:
        _reach(address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, ImportError, OSError) as error:
        raise RunError(f"no Ray cluster can be used at '{address}': {words(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise OSError if nothing answers at HOST:PORT; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _address(given: str | None) -> str:
    return given or os.environ.get("RAY_ADDRESS") or "local"
