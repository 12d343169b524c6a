"""What a Ray worker does for a study: it trains one cell in a directory of its own, and gives the files back."""

import socket
from collections.abc import Callable
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
from pyroae.runs.loading import splits_of
from pyroae.runs.run import versions
from pyroae.runtime.files import write_whole
from pyroae.studies.study import Study, StudyConfig

Files = list[tuple[str, bytes]]
"""Names within a run directory and contents, in the order in which they were written."""


SEND_EVERY = 20.0
"""Seconds between two times that the files of a training under way are sent to the study."""


_known: dict[str, Splits] = {}
"""Data that this process has read, by their fingerprint."""


def train_cell(
    job: dict[str, Any], splits: Splits | None, files: Files, send: Callable[[Files], object]
) -> Files:
    """Train and score a cell, from the checkpoint among `files` where there is one: the files of its run directory.

    job: the study's `config`, the `settings` by which data are read, `cell`, `fingerprint`, `versions`, and the `sources` of a
    user's modules. send: is given the
    files of the training under way, now and then and when it is stopped. Raises PyroaeError.
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
    """Raises RunError where this worker would train by other versions than the study's own."""
    for name, here in versions().items():
        if name != "python" and _public(here) != _public(wanted[name]):
            raise RunError(
                f"the worker {socket.gethostname()} has {name} {here}, the study {wanted[name]}: install the same one"
            )


def read_data(settings: RunConfig, fingerprint: str) -> Splits:
    """The data of a study, read by this worker. Raises DataError where they are not here, or others."""
    if fingerprint not in _known:
        host = socket.gethostname()
        try:
            found = splits_of(settings)
        except PyroaeError as error:
            raise DataError(
                f"the worker {host} cannot read the data, too large to be sent: {error}"
            ) from None
        if found.fingerprint != fingerprint:
            raise DataError(
                f"the data '{settings.data}' of the worker {host} are not those of the study"
            )
        _known.clear()
        _known[fingerprint] = found
    return _known[fingerprint]


def pack(place: Path) -> Files:
    """The files of a run directory; those that are being written, or only lock it, are left out."""
    found = [file for file in place.rglob("*") if file.is_file() and not file.name.startswith(".")]
    found.sort(key=lambda file: file.stat().st_mtime_ns)
    return [(file.relative_to(place).as_posix(), file.read_bytes()) for file in found]


def unpack(place: Path, files: Files) -> None:
    """Write files into a run directory, each whole or not at all. Raises RunError where they cannot be written."""
    for name, content in files:
        path = place / name
        if path.is_file() and path.read_bytes() == content:
            continue
        try:
            write_whole(path, lambda file, content=content: file.write_bytes(content))  # type: ignore[misc]
        except OSError as error:
            raise RunError(f"cannot write '{path}': {error.strerror or error}") from None


def _public(version: str) -> str:
    return version.partition("+")[0]
