"""The cells of a study as Ray tasks.

Each task sends its files to the study; a cell whose worker was lost is run again.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from pyroae.comparison.results import Cell, Outcome
from pyroae.data.loading import Splits
from pyroae.errors import InterruptedRunError, PyroaeError
from pyroae.names import is_known, sources_of
from pyroae.programs.arguments import Arguments
from pyroae.runs.contents import versions
from pyroae.runs.data_of_run import arguments_in
from pyroae.runtime.files import words
from pyroae.runtime.progress import Progress
from pyroae.studies.attempts import Attempts
from pyroae.studies.ray_worker import Files, pack, unpack
from pyroae.studies.study import Study

SENT = 2**30
"""The largest data, in bytes, that are sent to workers; each worker reads larger ones itself."""


PATIENCE = 15.0
"""Seconds for interrupted trainings to send their last files."""


class Tasks:
    """The tasks of a study.

    Args:
        ray: the module.
        study: the study.
        options: `num_cpus` and `num_gpus` of a task.
        retries: how often a cell is run again after its worker was lost.

    Attributes:
        attempts: how often cells were lost, and which could not be run.
    """

    def __init__(
        self, ray: ModuleType, study: Study, options: dict[str, float], retries: int
    ) -> None:
        self.ray, self.study, self.attempts = ray, study, Attempts(retries)
        self._running: dict[Any, Cell] = {}
        small = nbytes(study.splits) <= SENT
        self._splits = ray.put(study.splits) if small else None
        self._gpus = options["num_gpus"]
        self._mail, self._task = _mailbox(ray), _task(ray).options(max_retries=0, **options)

    def run(self, cells: Sequence[Cell], bar: Progress) -> Iterator[tuple[Cell, Outcome | str]]:
        """Run cells side by side.

        Args:
            cells: the cells.
            bar: shows how many are finished.

        Yields:
            Each cell with its outcome or why it failed, once its files are written.
        """
        for cell in cells:
            self._submit(cell)
        done = 0
        while self._running:
            ready, _ = self.ray.wait(list(self._running), timeout=1.0)
            self._collect()
            for ref in ready:
                cell = self._running.pop(ref)
                if self._receive(ref, cell):
                    done += 1
                    outcome = self.study.outcome(cell)
                    assert outcome is not None
                    yield cell, outcome
            bar.update(done)

    def stop(self) -> None:
        """Stop the running tasks: ask them for their last files, then end them."""
        if not self._running:
            return
        with suppress(Exception):  # a cluster that is gone has nothing to stop
            for force in (False, True):
                for ref in self._running:
                    self.ray.cancel(ref, force=force)
                if not force:
                    self.ray.wait(
                        list(self._running), num_returns=len(self._running), timeout=PATIENCE
                    )
            self._collect()

    def _submit(self, cell: Cell) -> None:
        study = self.study
        job = {
            "cell": tuple(cell),
            "config": study.config.to_dict(),
            "settings": _anywhere(study),
            "fingerprint": study.splits.fingerprint,
            "versions": versions(),
            "sources": sources_of(study.config.settings.modules),
            "gpus": self._gpus,
        }
        files = pack(study.place(cell))
        self._running[self._task.remote(job, self._splits, files, self._mail)] = cell

    def _receive(self, ref: Any, cell: Cell) -> bool:
        """Whether a task has finished its cell; if its worker was lost, the cell is run again."""
        errors = self.ray.exceptions
        try:
            unpack(self.study.place(cell), self.ray.get(ref))
            return True
        except errors.RayTaskError as error:
            if isinstance(error.cause, InterruptedRunError):
                self._lose(cell, error.cause)
            elif isinstance(error.cause, PyroaeError | ImportError):
                self.attempts.refused[cell] = _sentence(error.cause)
            else:
                raise
        except errors.RayError as error:
            self._lose(cell, error)
        return False

    def _lose(self, cell: Cell, error: Exception) -> None:
        """Run a cell again after its worker has stopped, up to `retries` times."""
        if "No module named" in str(error):
            self.attempts.refused[cell] = _sentence(error)
        elif self.attempts.is_run_again(cell, words(error)):
            self._submit(cell)

    def _collect(self) -> None:
        """Write the files that running trainings have sent."""
        try:
            sent: dict[Cell, Files] = self.ray.get(self._mail.take.remote(), timeout=10)
        except self.ray.exceptions.RayError:  # the mailbox is moved; its files are sent again
            return
        for name, files in sent.items():
            cell = Cell(*name)
            if cell in self._running.values():
                unpack(self.study.place(cell), files)


def _task(ray: ModuleType) -> Any:
    """The task, which imports pyroae itself: a worker without pyroae reports that."""

    @ray.remote
    def cell(job: dict[str, Any], splits: Any, files: Any, mail: Any) -> Any:
        import os

        if not job["gpus"]:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else a cell would use GPUs of others
        from pyroae.studies.ray_worker import train_cell

        return train_cell(
            job, splits, files, lambda some: mail.put.remote(tuple(job["cell"]), some)
        )

    return cell


def _mailbox(ray: ModuleType) -> Any:
    """An actor on this node that holds the files that each cell sent last."""

    class Mailbox:
        def __init__(self) -> None:
            self.files: dict[Any, Any] = {}

        def put(self, cell: Any, files: Any) -> None:
            self.files[cell] = files

        def take(self) -> dict[Any, Any]:
            files, self.files = self.files, {}
            return files

    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(Mailbox).remote()


def _anywhere(study: Study) -> dict[str, Any]:
    """The settings with which a worker reads the data, with absolute paths."""
    settings = study.config.settings
    is_named = is_known("dataset", settings.data.partition(":")[0].strip())
    data = settings.data if is_named else str(Path(settings.data).resolve())
    return replace(settings, data=data, data_root=str(Path(settings.data_root).resolve())).to_dict()


def nbytes(splits: Splits) -> float:
    """Return the size of data in memory.

    Args:
        splits: the data.

    Returns:
        Bytes; infinite for data that are streamed.
    """
    parts = [part for part in (splits.train, splits.valid, splits.test) if part is not None]
    return sum(
        sum(t.nbytes for t in arguments_in(part))
        if isinstance(part, Arguments) or part.stream is None
        else math.inf
        for part in parts
    )


def _sentence(error: BaseException) -> str:
    if isinstance(error, PyroaeError):
        return str(error)
    return f"the workers of the Ray cluster cannot run pyroae, install it there: {words(error)}"
