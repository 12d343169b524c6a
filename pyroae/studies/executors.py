"""Where the trainings of a study run: `Local`, sequentially in this process."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from pyroae.comparison.results import Cell, Outcome
from pyroae.errors import ConfigError
from pyroae.runtime.processes import say
from pyroae.runtime.short_text import duration
from pyroae.studies.study import Study

Outcomes = Generator[tuple[Cell, Outcome | str]]
"""Cells, each with its outcome or why it failed, as they finish."""


class Executor(ABC):
    """Runs the trainings of a study; their outcomes do not depend on where they run."""

    @abstractmethod
    def ready(self, study: Study) -> AbstractContextManager[None]:
        """Return a context in which `run` can be called.

        Args:
            study: the study.

        Returns:
            The context.

        Raises:
            PyroaeError: if the trainings cannot run here.
        """

    @abstractmethod
    def run(self, study: Study, cells: Sequence[Cell]) -> Outcomes:
        """Train and score cells, in any order.

        Args:
            study: the study.
            cells: the cells that are not finished.

        Yields:
            Each cell with its outcome or why it failed, once the study's directory holds it.

        Raises:
            RunError: at the end, for cells that could not be run.
        """


@dataclass(frozen=True)
class Local(Executor):
    """Run trainings sequentially in this process."""

    def ready(self, study: Study) -> AbstractContextManager[None]:
        """Return a context without effect: nothing is needed."""
        return nullcontext()

    def run(self, study: Study, cells: Sequence[Cell]) -> Outcomes:
        """Train and score cells in their order."""
        began = time.monotonic()
        for done, cell in enumerate(cells):
            left = (time.monotonic() - began) / done * (len(cells) - done) if done else math.nan
            say(
                f"training {done + 1} of {len(cells)}: {cell}"
                + (f"; about {duration(left)} left" if done else "")
            )
            yield cell, study.run(cell)


def one_process_each(study: Study, where: str) -> None:
    """Refuse a study whose trainings have several processes of their own.

    Args:
        study: the study.
        where: which trainings have one process, for the message.

    Raises:
        ConfigError: if a training has several devices or machines.
    """
    if study.config.settings.is_distributed:
        raise ConfigError(
            f"a training {where} is one process on one device: leave out --devices, --num-nodes "
            "and --strategy"
        )
