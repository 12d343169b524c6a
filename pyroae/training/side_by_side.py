"""Train systems that differ only in their seed on a CPU, the steps of each member by one core."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from functools import partial

from torch import Tensor

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
from pyroae.training.stepping import TakeSteps
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
            if member.next is not None and member.losses.bad is None:
                try:
                    member.take_other(member.next)
                except Exception as error:  # any error of the programs or of the compiler
                    if is_refusal(error) or is_out_of_memory(error):
                        raise
                    raise NotCompiledError([m.state for m in self._members]) from error
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
        """End the steps in progress, each member after the call that it has made."""
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

    next: the batch of the next step; None at the end of an epoch. step: the number of steps that
    were taken, which took `seconds`.
    """

    def __init__(self, trainer: Trainer, stream: Stream) -> None:
        self.trainer, self.stream = trainer, stream
        self.step, self.seconds = 0, 0.0
        self.next: Batch | None = None
        self.is_stopped = self._has_stalled = False
        self._compiled = dict[int, TakeSteps]()

    def start(self, on_epoch: Callable[[State], None] | None) -> None:
        """Make the first state."""
        self._on_epoch = on_epoch
        with self.stream.in_use():
            self.state = self.trainer.initial(on_epoch)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.trainer.system.train()
        self.losses = Losses(self.step)
        self._batches = self.trainer.batches.epoch(self._epoch)
        self._advance(0)

    @property
    def _epoch(self) -> int:
        return len(self.state.history) + 1

    def _advance(self, steps: int = 1) -> None:
        self.step += steps
        is_over = self.trainer.plan.is_over(self.step, 0.0)
        self.next = None if is_over else next(self._batches, None)

    def _successive(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """The next batches of one size that are given to one call."""
        for _ in range(self.trainer.stepper.most):
            if self.next is None or self.next[1] != size:
                return
            yield self.next[0]
            self._advance()

    def take_compiled(self) -> None:
        """Take steps until one is not compiled, the epoch ends, or a loss is not finite."""
        begun = looked = time.monotonic()
        while self.next is not None and not self.is_stopped:
            first, size = self.step, self.next[1]
            if size not in self._compiled:
                break
            batches = list(self._successive(size))
            for loss in self._compiled[size](first, batches):
                self.losses.add(loss, size)
            if time.monotonic() - looked > LOOK_EVERY:
                looked = time.monotonic()
                self.losses.look()
                if self.losses.bad is not None:
                    break
        self.seconds += time.monotonic() - begun

    def take_other(self, batch: Batch) -> None:
        """Compile the next step or, if it is not to be compiled, take it."""
        args, size = batch
        stepper = self.trainer.stepper
        take = stepper.prepare(self.step, args, size)
        if take is not None:
            self._compiled[size] = take
            return
        begun = time.monotonic()
        self.losses.add(stepper.take_one(self.step, 0.0, args, size), size)
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
