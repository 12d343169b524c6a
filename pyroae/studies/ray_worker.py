"""Train one cell of a study in a Ray worker, in a temporary directory, and return its files."""

import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import torch

from pyroae.comparison.results import Cell
from pyroae.config import RunConfig
from pyroae.data.loading import Splits
from pyroae.errors import DataError, InterruptedRunError, PyroaeError, RunError
from pyroae.names import import_sources
from pyroae.runs.contents import versions
from pyroae.runs.data_of_run import splits_of
from pyroae.runtime.files import write_whole
from pyroae.studies.study import Study
from pyroae.studies.study_config import StudyConfig

Files = list[tuple[str, bytes]]
"""File names within a run directory and contents, in the order in which they were written."""


SEND_EVERY = 20.0
"""Seconds after which the files of a running training are sent to the study again."""


_cache: dict[str, Splits] = {}
"""The data that this process has read, by their fingerprint."""


def train_cell(
    job: dict[str, Any], splits: Splits | None, files: Files, send: Callable[[Files], object]
) -> Files:
    """Train and score a cell, from the checkpoint among its files if there is one.

    Args:
        job: `cell`, the `config` of the study, the `settings` with which data are read, their
            `fingerprint`, the `versions` of the study, and the `sources` of its modules.
        splits: the data; None to read them here.
        files: the files of the cell's run directory so far.
        send: receives the files of the running training every `SEND_EVERY` seconds, and when it
            is stopped.

    Returns:
        The files of the run directory.

    Raises:
        PyroaeError: if the cell cannot be trained here.
        InterruptedRunError: if the training is stopped.
    """
    same_versions(job["versions"])
    import_sources(job.get("sources", ()))
    data = (
        read_data(RunConfig.from_mapping(job["settings"]), job["fingerprint"])
        if splits is None
        else splits
    )
    with TemporaryDirectory(prefix="pyroae-") as scratch:
        study, cell = Study(scratch, StudyConfig.from_dict(job["config"]), data), Cell(*job["cell"])
        place = study.place(cell)
        unpack(place, files)
        sent = monotonic()

        def saved() -> None:
            nonlocal sent
            if monotonic() - sent > SEND_EVERY:
                sent = monotonic()
                send(pack(place))

        try:
            study.run(cell, saved, progress=False)
        except (KeyboardInterrupt, InterruptedRunError):
            send(pack(place))
            raise
        except torch.OutOfMemoryError:
            raise RunError(
                "the memory of the GPU ran out: give a cell a larger share (--gpus-per-cell)"
            ) from None
        return pack(place)


def same_versions(wanted: dict[str, str]) -> None:
    """Refuse versions of packages other than those of the study.

    Args:
        wanted: the versions of the study, by package.

    Raises:
        RunError: for the first package of another version.
    """
    for name, here in versions().items():
        if name != "python" and _public(here) != _public(wanted[name]):
            raise RunError(
                f"the worker {socket.gethostname()} has {name} {here}, the study {wanted[name]}: "
                "install the same one"
            )


def read_data(settings: RunConfig, fingerprint: str) -> Splits:
    """Read the data of a study in this worker.

    Args:
        settings: what to read.
        fingerprint: the fingerprint of the data of the study.

    Returns:
        The data, from memory if they were read before.

    Raises:
        DataError: if they cannot be read, or have another fingerprint.
    """
    if fingerprint not in _cache:
        host = socket.gethostname()
        try:
            splits = splits_of(settings)
        except PyroaeError as error:
            raise DataError(
                f"the worker {host} cannot read the data, too large to be sent: {error}"
            ) from None
        if splits.fingerprint != fingerprint:
            raise DataError(
                f"the data '{settings.data}' of the worker {host} are not those of the study"
            )
        _cache.clear()
        _cache[fingerprint] = splits
    return _cache[fingerprint]


def pack(place: Path) -> Files:
    """Return the files of a run directory, without hidden ones: temporary files and the lock.

    Args:
        place: the directory, which need not exist.

    Returns:
        Names and contents, in the order in which they were written.
    """
    files = [file for file in place.rglob("*") if file.is_file() and not file.name.startswith(".")]
    files.sort(key=lambda file: file.stat().st_mtime_ns)
    return [(file.relative_to(place).as_posix(), file.read_bytes()) for file in files]


def unpack(place: Path, files: Files) -> None:
    """Write files into a run directory, each as a whole.

    Args:
        place: the directory.
        files: names and contents.

    Raises:
        RunError: if a file cannot be written.
    """
    for name, content in files:
        path = place / name
        if path.is_file() and path.read_bytes() == content:
            continue
        try:
            write_whole(path, partial(_write, content))
        except OSError as error:
            raise RunError(f"cannot write '{path}': {error.strerror or error}") from None


def _write(content: bytes, file: Path) -> None:
    file.write_bytes(content)


def _public(version: str) -> str:
    return version.partition("+")[0]
