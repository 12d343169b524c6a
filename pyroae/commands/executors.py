"""Where the trainings of a study are run: here, one after the other, or on the machines of a Ray cluster."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from pyroae.commands.study import Study
from pyroae.commands.work import say
from pyroae.errors import ConfigError, unknown_name
from pyroae.evaluation.comparison import Cell, Outcome

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
            say(f"training {done + 1} of {len(cells)}: {cell}" + (f"; about {_minutes(left)} left" if done else ""))
            yield cell, study.run(cell)


def executor_of(name: str, address: str | None = None, gpus_per_cell: float | None = None) -> Executor:
    """The executor that the command line names. Raises ConfigError for a name or an option that it does not have.

    >>> executor_of("local"), executor_of("ray", gpus_per_cell=0.25)
    (Local(), OnRay(address=None, gpus_per_cell=0.25, retries=3))
    """
    from pyroae.commands.on_ray import OnRay

    if name == "ray":
        return OnRay(address, gpus_per_cell)
    if name != "local":
        raise unknown_name("executor", name, ("local", "ray"))
    for flag, value in (("--address", address), ("--gpus-per-cell", gpus_per_cell)):
        if value is not None:
            raise ConfigError(f"{flag} is for trainings on Ray: give --executor ray too")
    return Local()


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
