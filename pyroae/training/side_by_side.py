"""Train systems that differ only in their seed on a CPU, the steps of each member by one core."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from functools import partial

from pyroae.compilation.ensemble import Stream
from pyroae.compilation.shared_code import SharedCode
from pyroae.distributed.fabric import load_weights
from pyroae.errors import NonFiniteLossError, is_refusal
from pyroae.runtime.memory import is_out_of_memory
from pyroae.runtime.progress import Progress
from pyroae.runtime.threads import one_core_each
from pyroae.training.minibatches import Batch
from pyroae.training.running_loss import Losses
from pyroae.training.state import Epoch, State
from pyroae.training.trainer import FitResult, Trainer

LOOK_EVERY = 0.5
"""Seconds between two looks at the losses."""


class NotCompiledError(Exception):
    """The steps of an ensemble cannot be compiled; the cause says why.

    Args:
        states: the last state of each member.
    """

    def __init__(self, states: list[State]) -> None:
        super().__init__("the steps of an ensemble cannot be compiled")
        self.states = states


class SideBySide:
    """Trainings of one form, whose compiled steps threads take side by side.

    Members share the code of a step, which uses one core and no lock of Python. All else (steps
    that are not compiled, validation, `on_epoch`) is done in the calling thread, member after
    member in a fixed order, because torch and Pyro have one global state.

    Args:
        trainers: the members' trainings.
        streams: the random generators of each member.
    """

    def __init__(self, trainers: Sequence[Trainer], streams: Sequence[Stream]) -> None:
        codes = SharedCode()
        self._members = [_Member(*pair) for pair in zip(trainers, streams, strict=True)]
        self._queue = deque[tuple[_Member, Future[None]]]()
        for trainer, stream in zip(trainers, streams, strict=True):
            trainer.stepper.compile()
            if trainer.stepper.graphs is not None:
                trainer.stepper.graphs.shared = codes, stream.generators["cpu"]

    def run(self, on_epoch: Callable[[int, State], None] | None, progress: bool) -> list[FitResult]:
        """Train all members.

        Args:
            on_epoch: receives the index of a member and its state: after each epoch in the order of
                the members, and before the first one where that is a snapshot.
            progress: whether to show the progress.

        Returns:
            The result of each member.

        Raises:
            NonFiniteLossError: names the seed; every member has the weights of its last good epoch.
            NotCompiledError: if the steps cannot be compiled.
        """
        for i, member in enumerate(self._members):
            member.start(None if on_epoch is None else partial(on_epoch, i))
        total = sum(member.trainer.plan.total_steps for member in self._members)
        with ExitStack() as stack:
            self._bar = stack.enter_context(Progress("training an ensemble", total, progress))
            threads = stack.enter_context(one_core_each())
            at_once = min(threads.count, len(self._members))
            stack.callback(self._stop)
            self._queue.extend((m, threads.submit(m.take_compiled)) for m in self._members)
            while self._queue:
                member, part = self._queue.popleft()
                self._wait(part)
                if self._goes_on(member, at_once):
                    self._queue.append((member, threads.submit(member.take_compiled)))
        compile_seconds = self._compile_seconds
        for member in self._members:
            member.trainer.stepper.compile_seconds = compile_seconds
        return [member.finish() for member in self._members]

    def _goes_on(self, member: "_Member", at_once: int) -> bool:
        """Do what follows the compiled steps; whether the member has further ones."""
        with member.stream.in_use():
            if member.next and member.losses.bad is None:
                try:
                    is_compiled = member.prepare()
                except Exception as error:  # any error of the programs or of the compiler
                    if is_refusal(error) or is_out_of_memory(error):
                        raise
                    raise NotCompiledError([m.state for m in self._members]) from error
                if not is_compiled:
                    member.take(1)
                return True
            try:
                return member.end_epoch(member.seconds / at_once + self._compile_seconds)
            except NonFiniteLossError as error:
                self._restore()
                raise NonFiniteLossError(
                    f"seed {member.trainer.config.seed}: {error}", error.step, error.batch
                ) from None

    @property
    def _compile_seconds(self) -> float:
        """A member's share of the time that compiling takes."""
        seconds = sum(member.trainer.stepper.compile_seconds for member in self._members)
        return seconds / len(self._members)

    def _wait(self, part: Future[None]) -> None:
        while not wait([part], timeout=LOOK_EVERY).done:
            self._show()
        part.result()
        self._show()

    def _show(self) -> None:
        means = [member.losses.mean for member in self._members]
        epoch = min(len(member.state.history) for member in self._members) + 1
        steps = sum(member.step for member in self._members)
        bound = -sum(means) / len(means)
        self._bar.update(steps, f"epoch {epoch}, bounds of about {bound:.3f} nats")

    def _stop(self) -> None:
        """End the steps in progress, each member after the one that it is taking."""
        for member in self._members:
            member.is_stopped = True

    def _restore(self) -> None:
        """Give every member the weights of its last state."""
        self._stop()
        wait([part for _, part in self._queue])
        for member in self._members:
            load_weights(member.trainer.system, member.state.weights)


class _Member:
    """A training that is taken part by part.

    next: the batches of the next steps; empty at the end of an epoch. step: the number of steps
    that were taken, which took `seconds`.
    """

    def __init__(self, trainer: Trainer, stream: Stream) -> None:
        self.trainer, self.stream = trainer, stream
        self.step, self.seconds = 0, 0.0
        self.next: list[Batch] = []
        self.is_stopped = self._has_stalled = False
        self._compiled_sizes = set[int]()

    def start(self, on_epoch: Callable[[State], None] | None) -> None:
        """Make the first state."""
        self._on_epoch = on_epoch
        with self.stream.in_use():
            self.state = self.trainer.initial(on_epoch)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        trainer, left = self.trainer, self.trainer.plan.total_steps - self.step
        trainer.system.train()
        self.losses = Losses(self.step)
        self._groups: Iterator[list[Batch]] = trainer.batches.groups(
            self._epoch, 0, trainer.stepper.most, left
        )
        self._advance()

    @property
    def _epoch(self) -> int:
        return len(self.state.history) + 1

    def _advance(self) -> None:
        is_over = self.trainer.plan.is_over(self.step, 0.0)
        self.next = [] if is_over else next(self._groups, [])

    def take_compiled(self) -> None:
        """Take steps until one is not compiled, the epoch ends, or a loss is not finite."""
        looked = time.monotonic()
        while self.next and self.next[0][1] in self._compiled_sizes and not self.is_stopped:
            self.take(len(self.next))
            if time.monotonic() - looked > LOOK_EVERY:
                looked = time.monotonic()
                self.losses.look()
                if self.losses.bad is not None:
                    return

    def prepare(self) -> bool:
        """Compile the next steps; whether they are compiled."""
        args, size = self.next[0]
        if self.trainer.stepper.prepare(self.step, args, size):
            self._compiled_sizes.add(size)
        return size in self._compiled_sizes

    def take(self, count: int) -> None:
        """Take some of the next steps."""
        begun, group = time.monotonic(), self.next[:count]
        losses = self.trainer.stepper.take(self.step, 0.0, group)
        for loss, (_, size) in zip(losses, group, strict=True):
            self.losses.add(loss, size)
        self.step += len(group)
        self.next = self.next[count:]
        if not self.next:
            self._advance()
        self.seconds += time.monotonic() - begun

    def end_epoch(self, seconds: float) -> bool:
        """Make the state after an epoch and begin the next one; whether there is a next one."""
        trainer, before = self.trainer, self.state
        self.losses.look(wait=True)
        trainer.nonfinite.check(self.losses.bad, self._epoch, before, replay=False)
        row = Epoch(self._epoch, self.step, seconds, self.losses.mean, *trainer.validate())
        after = trainer.after(row, before)
        bad = None if after.is_finite else self.step - 1
        trainer.nonfinite.check(bad, self._epoch, before, replay=False)
        self.state = after
        if self._on_epoch is not None:
            self._on_epoch(after)
        self._has_stalled = trainer.has_stalled(after)
        is_last = len(after.history) == trainer.config.epochs
        if is_last or self._has_stalled or trainer.plan.is_over(self.step, 0.0):
            return False
        self._begin_epoch()
        return True

    def finish(self) -> FitResult:
        """The result, with the weights that the training keeps."""
        with self.stream.in_use():
            return self.trainer.finish(self.state, self._has_stalled)
