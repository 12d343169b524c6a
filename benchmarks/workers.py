"""Subjects that take turns: each lives in a process of its own, and works only when it is told to.

The parent goes round: in each round every subject, in an order of its own, does one block of steps
while all others wait for a message. What disturbs the machine for a while disturbs all of them, and
ratios are taken within a round.
"""

import importlib
import inspect
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.problems import Problem

ROOT = Path(__file__).parents[1]
"""The checkout that this file belongs to."""
LOADING = 3
"""Steps that a subject takes first, while others still load: what it compiles is compiled then."""
PATIENCE = 900
"""Seconds in which a block must be done, compilation included."""


@dataclass(frozen=True)
class Subject:
    """Something to time.

    home: `module:function` that takes a Problem, Turns and the settings; role: what it is judged
    as; cores: how many its process may use, 0 for all; checkout: the folder of an older pyroae that
    is timed instead of this one.
    """

    name: str
    home: str
    problem: Problem
    settings: dict[str, Any] = field(default_factory=dict)
    role: str = ""
    cores: int = 0
    checkout: str = ""


@dataclass
class Timing:
    """Seconds a step of one subject, one number a round; empty, with the reason, where it was
    skipped.

    memory: largest resident memory of its process in MiB; 0 where the system does not say. is_old:
    whether an older checkout was timed.
    """

    name: str
    role: str = ""
    seconds: list[float] = field(default_factory=list)
    steps: int = 0
    setup: float = 0.0
    skipped: str = ""
    memory: float = 0.0
    is_old: bool = False


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

    Subjects of one name, such as that of an older checkout, have their turns one after the other.
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
        names = list(dict.fromkeys(subject.name for subject in subjects))
        for i in range(1, rounds + 1):
            say(f"round {i} of {rounds}")
            generator.shuffle(order)
            generator.shuffle(names)
            for worker in sorted(order, key=lambda w: names.index(w.subject.name)):
                worker.turn()
        for worker in workers:
            worker.weigh()
    finally:
        for worker in workers:
            worker.dismiss()
        for worker in workers:
            worker.end()
    return [worker.timing for worker in workers]


class _Worker:
    """The parent's side."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.timing = Timing(subject.name, subject.role, is_old=bool(subject.checkout))
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection

    def start(self, steps: int | None) -> None:
        """Start it; it loads, and compiles what it compiles, beside the others."""
        self._begun = time.monotonic()
        self._connection, theirs = Pipe()
        descriptor = theirs.fileno()
        self._process = subprocess.Popen(  # warnings of libraries are no part of the report
            [
                sys.executable,
                "-P",
                "-c",
                f"from benchmarks.workers import work; work({descriptor})",
            ],
            pass_fds=[descriptor],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        self._connection.send(self.subject)
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

    def weigh(self) -> None:
        """Read the peak memory of its process."""
        status = Path(f"/proc/{self._process.pid}/status") if self._process else Path()
        with suppress(OSError):
            lines = [line.split() for line in status.read_text().splitlines()]
            self.timing.memory = next(
                (int(line[1]) / 1024 for line in lines if line[0] == "VmHWM:"), 0.0
            )

    def dismiss(self) -> None:
        """Tell it that there are no more rounds."""
        if self._process is not None:
            with suppress(OSError):
                self._connection.send(0)

    def end(self) -> None:
        """Wait for the process to end, or end it."""
        if self._process is None:
            return
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
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
            assert self._process is not None
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            return self._skip(f"its process ended with {self._process.returncode}")
        return value if what == "did" else self._skip(value)

    def _skip(self, reason: str) -> None:
        self.timing.skipped, self.timing.seconds = reason, []


def work(descriptor: int) -> None:
    """The worker's process: serve the subject that comes through a pipe."""
    connection = Connection(descriptor)
    subject: Subject = connection.recv()
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = (
        "1"  # no pool of compilers beside the subjects; a step is the same
    )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # a GPU's memory is for all subjects
    if subject.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: subject.cores])
        os.environ["OMP_NUM_THREADS"] = str(subject.cores)
    try:
        function = _function(subject.home) if not subject.checkout else _older_function(subject)
        function(subject.problem, Turns(connection), **subject.settings)
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


def _function(home: str) -> Callable[..., Any]:
    """What `module:function` names."""
    module, _, name = home.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _older_function(subject: Subject) -> Callable[..., Any]:
    """The subject's code of another checkout, which knows that pyroae; this one's, if it has none
    with these settings. Either runs that checkout's pyroae.
    """
    sys.path.insert(0, subject.checkout)
    import pyroae

    if not Path(pyroae.__file__).is_relative_to(subject.checkout):
        raise RuntimeError(f"pyroae is {pyroae.__file__}, not that of {subject.checkout}")
    _forget_benchmarks()
    try:
        function = _function(subject.home)
        inspect.signature(function).bind(subject.problem, None, **subject.settings)
    except (ImportError, AttributeError, TypeError):
        sys.path.remove(subject.checkout)
        _forget_benchmarks()
        function = _function(subject.home)
    return function


def _forget_benchmarks() -> None:
    """Let the next import of this package look along the present path."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "benchmarks"]:
        del sys.modules[name]
