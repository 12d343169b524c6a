"""Run the trainings of a study side by side on this machine, in processes of their own."""

import os
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from subprocess import DEVNULL, Popen
from typing import cast

import torch

from pyroae.comparison.budget import Budget
from pyroae.comparison.results import Cell
from pyroae.config import at_least_one
from pyroae.runtime.memory import machine_memory
from pyroae.runtime.progress import Progress
from pyroae.runtime.signals import SIGNALS
from pyroae.studies.attempts import RETRIES, Attempts
from pyroae.studies.executors import Executor, Local, Outcomes, one_process_each
from pyroae.studies.process_worker import Answer, Job
from pyroae.studies.study import Study
from pyroae.training.plan import is_long

LIBRARIES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Environment variables that say how many threads the libraries of a process start."""

MEMORY = 2**31
"""Bytes of the machine's memory for each process that is started unasked."""


@dataclass(frozen=True)
class InProcesses(Executor):
    """Run trainings side by side on this machine, each in one of several processes.

    The processes write to the study's directory, as `Local` does, and their outcomes are equal to
    those of `Local`, bit for bit: each training has `cpus_per_cell` threads, however many are run.

    Attributes:
        jobs: the number of processes; None for `jobs_for`, and one is this process.
        retries: how often a cell is run again after its process was lost.

    Raises:
        ConfigError: for fewer than one process.
    """

    jobs: int | None = None
    retries: int = RETRIES

    def __post_init__(self) -> None:
        if self.jobs is not None:
            at_least_one("jobs", self.jobs)

    def ready(self, study: Study) -> AbstractContextManager[None]:
        """Return a context without effect.

        Args:
            study: the study.

        Returns:
            The context.

        Raises:
            ConfigError: if a training is to have several devices.
        """
        if self.jobs is not None and self.jobs > 1:
            one_process_each(study, "of --jobs")
        return nullcontext()

    def run(self, study: Study, cells: Sequence[Cell]) -> Outcomes:
        """Train and score cells side by side."""
        jobs = jobs_for(study, cells) if self.jobs is None else self.jobs
        if jobs == 1:
            yield from Local().run(study, cells)
            return
        workers = _Workers(study, min(jobs, len(cells)), self.retries)
        try:
            with Progress("trainings", len(cells)) as bar:
                yield from workers.run(cells, bar)
        finally:
            workers.stop()
        workers.attempts.check()


def jobs_for(study: Study, cells: Sequence[Cell]) -> int:
    """Return how many trainings of a study run side by side if nothing is said.

    They are as many as torch has threads for: a training has `cpus_per_cell` of them. Their number
    changes no result.

    Args:
        study: the study.
        cells: the cells that are not finished.

    Returns:
        The number of processes; 1 on a GPU, which the trainings would share, for a budget of
        seconds, which they would take from each other, for trainings of several processes, and for
        fewer than 5,000 steps in all, in which the start of a process does not pay.
    """
    config, settings = study.config, study.config.settings
    on_gpu = settings.accelerator != "cpu" and torch.accelerator.is_available()
    is_timed = Budget.parse(config.budget).kind == "seconds"
    if on_gpu or is_timed or settings.is_distributed:
        return 1
    jobs = min(
        torch.get_num_threads() // config.cpus_per_cell, len(cells), machine_memory() // MEMORY
    )
    return jobs if jobs > 1 and is_long(sum(map(study.steps, cells))) else 1


class _Workers:
    """Processes that run the cells of a study; one that is lost is replaced."""

    def __init__(self, study: Study, number: int, retries: int) -> None:
        self.study, self.number, self.attempts = study, number, Attempts(retries)
        config = study.config
        self._job = Job(str(study.path), config.to_dict(), study.splits.fingerprint)
        self._todo: deque[Cell] = deque()
        self._idle: list[_Worker] = []
        self._running: dict[Connection, tuple[_Worker, Cell]] = {}

    def run(self, cells: Sequence[Cell], bar: Progress) -> Outcomes:
        """Run cells side by side; yields each with its outcome, once its files are written."""
        self._todo.extend(cells)
        done = 0
        while self._todo or self._running:
            while self._todo and len(self._running) < self.number:
                self._hand_out(self._todo.popleft())
            for connection in wait(list(self._running), timeout=1.0):
                worker, cell = self._running.pop(cast(Connection, connection))
                if self._is_finished(worker, cell):
                    done += 1
                    outcome = self.study.outcome(cell)
                    assert outcome is not None
                    yield cell, outcome
            bar.update(done)

    def stop(self) -> None:
        """End all processes; trainings in progress save their state. A second signal kills them."""
        workers = [*self._idle, *(worker for worker, _ in self._running.values())]
        try:
            for worker in workers:
                worker.send(None)
            for worker in workers:
                worker.process.wait()
        finally:
            for worker in workers:
                worker.end()

    def _hand_out(self, cell: Cell) -> None:
        if not self._idle:
            self._idle.append(_Worker(self._job, self.study.config.cpus_per_cell))
        worker = self._idle.pop()
        self._running[worker.connection] = worker, cell
        worker.send(cell)

    def _is_finished(self, worker: "_Worker", cell: Cell) -> bool:
        """Whether a cell is finished; if its worker was lost, it is the next one to be run."""
        try:
            answer: Answer = worker.connection.recv()
        except (EOFError, OSError):
            if self.attempts.is_run_again(cell, worker.end()):
                self._todo.appendleft(cell)
            return False
        self._idle.append(worker)
        if answer.error:
            raise RuntimeError(f"{cell} raised an error in its process:\n{answer.error}")
        if answer.refused:
            self.attempts.refused[cell] = answer.refused
        return not answer.refused


class _Worker:
    """A process that runs cells."""

    def __init__(self, job: Job, threads: int) -> None:
        self.connection, theirs = Pipe()
        code = f"from pyroae.studies.process_worker import serve; serve({theirs.fileno()})"
        with theirs, _signals_blocked():
            self.process = Popen(
                [sys.executable, "-P", "-c", code],
                stdin=DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={
                    **os.environ,
                    **dict.fromkeys(LIBRARIES, str(threads)),
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                },
            )
        self.send(job)

    def send(self, what: Job | Cell | None) -> None:
        """Send; that a process is lost is seen when its answer is awaited."""
        with suppress(OSError):
            self.connection.send(what)

    def end(self) -> str:
        """Kill the process if it is alive, and return how it ended."""
        self.process.kill()
        status = self.process.wait()
        self.connection.close()
        if status < 0:
            return f"it was killed by {signal.Signals(-status).name}"
        return f"it ended with exit status {status}"


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """A context in which SIGINT and SIGTERM wait; processes started in it do not receive them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
