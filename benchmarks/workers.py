"""Subjects that take turns: each lives in a process of its own, and works only when it is told to.

The parent goes round: in each round every subject, in an order of its own, does one block of steps
while all others wait for a message. What disturbs the machine for a while disturbs all of them, and
ratios are taken within a round.
"""

import importlib
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from benchmarks.problems import Problem

LOADING = 3
"""Steps that a subject takes first, while others still load: what it compiles is compiled then."""
PATIENCE = 900
"""Seconds in which a block must be done, compilation included."""


@dataclass(frozen=True)
class Subject:
    """Something to time.

    home: `module:function` that takes a Problem, Turns and the settings; role: what it is judged
    as.
    """

    name: str
    home: str
    problem: Problem
    settings: dict[str, Any] = field(default_factory=dict)
    role: str = ""


@dataclass
class Timing:
    """Seconds a step of one subject, one number a round; empty, with the reason, where it was
    skipped.
    """

    name: str
    role: str = ""
    seconds: list[float] = field(default_factory=list)
    steps: int = 0
    setup: float = 0.0
    skipped: str = ""


class Ended(BaseException):
    """The parent has no more rounds."""


class Turns:
    """The worker's side: wait for a number of steps, do them, report the seconds that a step
    took.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def wait(self) -> int:
        """Sleep until told to; the number of steps. Raises Ended."""
        try:
            count = self._connection.recv()
        except EOFError:
            count = 0
        if not count:
            raise Ended
        return count

    def report(self, seconds: float) -> None:
        """Of a step."""
        self._connection.send(("did", seconds))

    def serve(self, block: Callable[[int], None]) -> NoReturn:
        """Time blocks of `block(n)`, which returns when its n steps are done, until the parent ends
        it.
        """
        while True:
            count = self.wait()
            begun = time.perf_counter()
            block(count)
            self.report((time.perf_counter() - begun) / count)


def take_turns(
    subjects: Sequence[Subject],
    rounds: int,
    *,
    block: float = 0.3,
    steps: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Timing]:
    """Set up all subjects side by side, then time them in turns.

    block: seconds for which a subject works at a time. steps: so many of each at a time, instead.
    """
    workers = [_Worker(subject) for subject in subjects]
    try:
        for worker in workers:
            worker.start(steps)
        for i, worker in enumerate(workers, 1):
            say(f"setting up {worker.timing.name} ({i} of {len(workers)})")
            worker.is_ready()
        for worker in workers:
            worker.warm_up(block, steps)
        order, generator = list(workers), random.Random(0)
        for i in range(1, rounds + 1):
            say(f"round {i} of {rounds}")
            generator.shuffle(order)
            for worker in order:
                worker.turn()
    finally:
        for worker in workers:
            worker.dismiss()
        for worker in workers:
            worker.end()
    return [worker.timing for worker in workers]


class _Worker:
    """The parent's side."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.timing = subject, Timing(subject.name, subject.role)
        self._process: Any = None
        self._connection: Connection

    def start(self, steps: int | None) -> None:
        """Start it; it loads, and compiles what it compiles, beside the others."""
        self._begun = time.monotonic()
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(self.subject, theirs), daemon=False)
        self._process.start()
        theirs.close()
        self._connection.send(steps or LOADING)

    def is_ready(self) -> None:
        """Wait until its first steps are taken."""
        self._answer()
        self.timing.setup = time.monotonic() - self._begun

    def warm_up(self, block: float, steps: int | None) -> None:
        """See how many steps fill a block, while all others wait."""
        self.timing.steps = steps or self._steps_in(block)
        self._ask(self.timing.steps)

    def _steps_in(self, block: float) -> int:
        """How many steps take so many seconds; the fastest of three tries, for the machine may be
        disturbed.
        """
        seconds = [s for s in (self._ask(3), self._ask(5), self._ask(10)) if s is not None]
        return max(1, round(block / min(seconds))) if seconds else 1

    def turn(self) -> None:
        """One block."""
        seconds = self._ask(self.timing.steps)
        if seconds is not None:
            self.timing.seconds.append(seconds)

    def dismiss(self) -> None:
        """Tell it that there are no more rounds."""
        if self._process is not None:
            with suppress(OSError):
                self._connection.send(0)

    def end(self) -> None:
        """Wait for the process to end, or end it."""
        if self._process is None:
            return
        self._process.join(20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()

    def _ask(self, count: int) -> float | None:
        """Seconds a step of so many; None where the subject has failed, now or before."""
        if self.timing.skipped:
            return None
        with suppress(OSError):
            self._connection.send(count)
        return self._answer()

    def _answer(self) -> float | None:
        """Seconds a step of those that were asked for."""
        try:
            if not self._connection.poll(PATIENCE):
                return self._skip(f"no answer in {PATIENCE} s")
            what, value = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(5)
            return self._skip(f"its process ended with {self._process.exitcode}")
        return value if what == "did" else self._skip(value)

    def _skip(self, reason: str) -> None:
        self.timing.skipped, self.timing.seconds = reason, []


def _work(subject: Subject, connection: Connection) -> None:
    """The worker's process."""
    _silence()
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = (
        "1"  # no pool of compilers beside the subjects; a step is the same
    )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # a GPU's memory is for all subjects
    try:
        module, _, function = subject.home.partition(":")
        getattr(importlib.import_module(module), function)(
            subject.problem, Turns(connection), **subject.settings
        )
    except Ended:
        pass
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name
        reason = (
            f"{missing} is not installed"
            if missing
            else f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
        )
        connection.send(("failed", reason))
    finally:
        connection.close()


def _silence() -> None:
    """Warnings of libraries are no part of the report."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
