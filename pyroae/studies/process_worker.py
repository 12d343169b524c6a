"""Run cells of a study in a process of its own, one after another, until the study ends.

The process that started the worker sends a `Job`, then cells, then None; an `Answer` to each cell
is returned. Its checkpoints and its outcome are in the study's directory by then.
"""

import os
import signal
import sys
import traceback
from _thread import interrupt_main
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch

from pyroae.comparison.results import Cell
from pyroae.errors import DataError, InterruptedRunError, PyroaeError
from pyroae.studies.study import Study
from pyroae.studies.study_config import StudyConfig


@dataclass(frozen=True)
class Job:
    """What a worker needs to run cells of a study.

    Attributes:
        path: the directory of the study.
        config: its configuration, as `StudyConfig.to_dict` returns it.
        fingerprint: that of its data.
    """

    path: str
    config: dict[str, Any]
    fingerprint: str

    def study(self) -> Study:
        """Make the study: import the user's modules and load the data.

        Returns:
            The study.

        Raises:
            PyroaeError: if modules or data cannot be used, or the data have changed.
        """
        study = Study(self.path, StudyConfig.from_dict(self.config))
        if study.splits.fingerprint != self.fingerprint:
            raise DataError(
                f"the data '{study.config.settings.data}' have changed since the study was started"
            )
        return study


@dataclass(frozen=True)
class Answer:
    """What became of one cell; its outcome is in the study's directory if both texts are empty.

    Attributes:
        refused: why it could not be run, in one sentence.
        error: the traceback of an error that no input explains.
    """

    refused: str = ""
    error: str = ""


def serve(descriptor: int) -> None:
    """Run the cells that are received, until None is received or the connection is closed.

    SIGINT and SIGTERM are blocked in this process: they reach the process that started it, which
    then sends None. A training in progress stops as on SIGTERM, with its state saved.

    Args:
        descriptor: the file descriptor of the connection.
    """
    connection, cells = Connection(descriptor), SimpleQueue[Cell | None]()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    with suppress(InterruptedRunError, EOFError, OSError):
        study = cache(connection.recv().study)
        Thread(target=_receive, args=(connection, cells), daemon=True).start()
        for cell in iter(cells.get, None):
            connection.send(answer(study, cell))


def answer(study: Callable[[], Study], cell: Cell) -> Answer:
    """Train and score one cell, from its last checkpoint if there is one.

    Args:
        study: returns the study.
        cell: the cell.

    Returns:
        The answer.

    Raises:
        InterruptedRunError: if the training was stopped; its state is saved.
    """
    try:
        study().run(cell, progress=False)
    except InterruptedRunError:
        raise
    except torch.OutOfMemoryError:
        return Answer("the memory of the GPU ran out: run fewer trainings side by side (--jobs)")
    except PyroaeError as error:
        return Answer(str(error))
    except Exception:
        return Answer(error=traceback.format_exc())
    return Answer()


def _receive(connection: Connection, cells: SimpleQueue[Cell | None]) -> None:
    """Pass on what is received: None also stops the main thread; no sender ends the process."""
    while True:
        try:
            cell = connection.recv()
        except (EOFError, OSError):  # killed; a study that is resumed may write to the same files
            os._exit(1)
        if cell is None:
            interrupt_main(signal.SIGTERM)
        cells.put(cell)
