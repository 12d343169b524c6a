"""Where the trainings of a study are run: here, one after the other, or on the machines of a Ray cluster."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from pyroae.comparison.results import Cell, Outcome
from pyroae.runtime.processes import say
from pyroae.studies.study import Study

Found = Generator[tuple[Cell, Outcome | str]]
"""Cells and what they came to, as they are finished."""


class Executor(ABC):
    """Runs trainings; what they come to does not depend on where."""

    @abstractmethod
    def ready(self, study: Study) -> AbstractContextManager[None]:
        """A context in which `run` has what it needs. Raises PyroaeError where it cannot have it."""

    @abstractmethod
    def run(self, study: Study, cells: Sequence[Cell]) -> Found:
        """Train and score the cells, in any order; each is given back once the study's directory holds it.

        A training that fails is given back as the reason. Raises RunError, at the end, for those that could not be run.
        """


@dataclass(frozen=True)
class Local(Executor):
    """This process, one training after the other."""

    def ready(self, study: Study) -> AbstractContextManager[None]:
        """Nothing is needed."""
        return nullcontext()

    def run(self, study: Study, cells: Sequence[Cell]) -> Found:
        began = time.monotonic()
        for done, cell in enumerate(cells):
            left = (time.monotonic() - began) / done * (len(cells) - done) if done else math.nan
            say(
                f"training {done + 1} of {len(cells)}: {cell}"
                + (f"; about {_minutes(left)} left" if done else "")
            )
            yield cell, study.run(cell)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
