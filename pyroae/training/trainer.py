"""One training: its epochs, the states after them, and its result."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from pyroae.config import TrainConfig
from pyroae.data.dataset import Dataset
from pyroae.distributed.fabric import load_weights
from pyroae.programs.arguments import Arguments
from pyroae.runtime.memory import keep_memory
from pyroae.runtime.progress import Progress
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import duration
from pyroae.training.checkpointing import Keeper
from pyroae.training.forward import Step
from pyroae.training.minibatches import Minibatches
from pyroae.training.nonfinite import NonFiniteHandler
from pyroae.training.plan import Plan
from pyroae.training.recording import Recorder
from pyroae.training.running_loss import Losses
from pyroae.training.state import Epoch, History, Progressed, State, history_table, write_csv
from pyroae.training.stepping import Stepper
from pyroae.training.validation import Validator, warn_if_dead

if TYPE_CHECKING:
    from lightning_fabric import Fabric

AGREE_EVERY = 20
"""Steps after which several processes exchange what a clock or a signal asks for."""


@dataclass(frozen=True, repr=False)
class FitResult(Shown):
    """A trained system and the history of its training.

    Attributes:
        system: the system, in `eval()` mode.
        history: the metrics of each epoch.
        best_epoch: the epoch of the best validation bound; without validation data the last one.
        stopped_early: whether `patience` ended the training.
        compile_seconds: the part of `seconds` that compiling the step took.
        skipped: steps that were left out because a loss or a gradient was not finite.
        snapshots: the weights (`state_dict`) after each of `config.snapshots` that was reached, by
            epoch.
    """

    system: nn.Module
    history: History
    best_epoch: int
    stopped_early: bool
    compile_seconds: float = 0.0
    skipped: int = 0
    snapshots: Mapping[int, dict[str, Tensor]] = field(default_factory=dict)

    def _overview(self) -> Overview:
        table = history_table(self.history)
        head = [type(self.system).__name__, *table.head, f"best epoch {self.best_epoch}"]
        if self.stopped_early:
            head.append("stopped early")
        if self.skipped:
            head.append(f"{self.skipped} steps skipped")
        return replace(table, head=[*head, duration(self.seconds)])

    @property
    def seconds(self) -> float:
        """The time of the training in seconds, without validation."""
        return self.history[-1].seconds

    def to_csv(self, path: str | Path) -> None:
        """Write the history as a table, one row per epoch.

        Args:
            path: the file to write.
        """
        write_csv(path, self.history)


class Trainer:
    """One training. `fit` runs it; an ensemble takes the steps of several trainings at once.

    Args:
        step: the forward pass, with the system and the objective.
        config: the configuration.
        fabric: the device, the precision and the processes.
        train: the training data.
        valid: the validation data; None if there are none.
        members: the number of trainings of an ensemble, which share the time to compile a step.

    Attributes:
        plan: the number of steps and their schedules.
        batches: the batches of each epoch.
        stepper: takes the steps.
        validate: evaluates the validation data.
        sample: the validation data, or the training data where there are none.
        nonfinite: handles losses and weights that are not finite.
        seconds: the time of the training so far.
    """

    def __init__(
        self,
        step: Step,
        config: TrainConfig,
        fabric: "Fabric",
        train: Dataset | Arguments,
        valid: Dataset | Arguments | None,
        members: int = 1,
    ) -> None:
        torch.manual_seed(config.seed)
        self.system, self.config, self.fabric = step.system, config, fabric
        self.plan = Plan(config, len(train), members)
        self.stepper = Stepper(step, config, fabric, self.plan)
        self.share = self.stepper.share
        self.batches = Minibatches(train, config, step.system, fabric.device, self.share)
        self.validate = Validator(step, valid, fabric, config.seed)
        self.sample = train if valid is None else valid
        self.nonfinite = NonFiniteHandler(self.stepper, self.batches)
        self.seconds = 0.0

    def run(
        self,
        state: State | None,
        on_epoch: Callable[[State], None] | None,
        progress: bool,
        recorder: Recorder | None = None,
    ) -> FitResult:
        """Train for the epochs that are left.

        Args:
            state: the state to resume from; None starts the training.
            on_epoch: receives the state after each epoch, and before the first one where that is
                a snapshot; a `Keeper` also within an epoch.
            progress: whether to show the progress.
            recorder: records the metrics of each epoch, before `on_epoch` receives its state.

        Returns:
            The trained system and its history.

        Raises:
            NonFiniteLossError: if a loss or a weight is not finite.
        """
        config, is_first = self.config, self.share.rank == 0
        keep_memory()
        self.stepper.compile()
        state = self.initial(on_epoch) if state is None else self._restored(state)
        stopped = False
        total = int(self.plan.total_steps if config.max_seconds is None else config.max_seconds)
        with Progress("training", total, progress and is_first) as self._bar:
            begun = state.progressed.step
            self._bar.begin(self._shown_step(begun), f"resumed at {state.where()}" * bool(begun))
            self.stepper.show = self.nonfinite.show = self._show
            for epoch in range(len(state.history) + 1, config.epochs + 1):
                done = state.progressed
                if not done.position and self.plan.is_over(done.step, self.seconds):
                    break
                before, state = state, self._epoch(epoch, state, on_epoch)
                if recorder is not None and recorder.loggers:
                    recorder.epoch(state.history[-1], self._rates(state.history[-1], before))
                if on_epoch is not None:
                    on_epoch(state)
                stopped = self.has_stalled(state)
                if stopped:
                    break
            if recorder is not None:
                recorder.save()
        return self.finish(state, stopped)

    def _rates(self, row: Epoch, before: State) -> dict[str, float]:
        """Further metrics of an epoch, for loggers; the gradient is that of its last step."""
        first = before.history[-1] if before.history else Epoch(0, 0, 0.0, math.nan)
        data = min((row.step - first.step) * self.config.batch_size, self.plan.num_data)
        weight = self.plan.kl_weight(row.step - 1)
        return {
            "lr": self.plan.learning_rate(row.step - 1, row.seconds),
            "kl_weight": 1.0 if weight is None else weight,
            "grad_norm": self.stepper.grad_norm(),
            "samples_per_second": data / max(row.seconds - first.seconds, 1e-9),
        }

    def has_stalled(self, state: State) -> bool:
        """Return whether early stopping ends the training.

        Args:
            state: the state after an epoch.

        Returns:
            Whether the validation bound has not improved for `patience` epochs.
        """
        patience, epoch = self.config.patience, len(state.history)
        has_valid = bool(self.validate.data)
        return patience is not None and has_valid and epoch - state.best_epoch >= patience

    def finish(self, state: State, stopped: bool) -> FitResult:
        """Load the weights that the training keeps, and return the result.

        Args:
            state: the last state.
            stopped: whether `patience` ended the training.

        Returns:
            The trained system, in `eval()` mode, and its history.
        """
        if self.config.keep == "best" and state.best_weights:
            load_weights(self.system, state.best_weights)
        self.system.eval()
        # One process alone cannot run a system whose parameters are sharded.
        if self.share.rank == 0 and self.config.strategy != "fsdp":
            warn_if_dead(self.system, self.sample)
        return FitResult(
            self.system,
            History(state.history),
            state.best_epoch or len(state.history),
            stopped,
            self.stepper.compile_seconds,
            self.stepper.skipped,
            state.snapshots,
        )

    def _epoch(self, epoch: int, begin: State, on_epoch: Callable[[State], None] | None) -> State:
        """The state after one pass over the data, or over what is left of it."""
        self.system.train()
        done, checkpoints = begin.progressed, on_epoch if isinstance(on_epoch, Keeper) else None
        is_lenient = self.config.nonfinite == "skip"
        losses = Losses(
            done.step, done.total, done.seen, reduce=self._reduction(), lenient=is_lenient
        )
        clock = _Clock(done.seconds)
        left = self.plan.total_steps - done.step
        for group in self.batches.groups(epoch, done.position, self.stepper.most, left):
            values = self.stepper.take(done.step, self.seconds, group)
            for loss, (_, size) in zip(values, group, strict=True):
                losses.add(loss, size)
            done = replace(done, step=done.step + len(group), position=done.position + len(group))
            self.seconds = clock.seconds
            is_over, is_due = self._agreed(
                done.step,
                self.plan.is_over(done.step, self.seconds),
                checkpoints is not None and checkpoints.is_due,
            )
            if is_due or clock.is_time(done.step if self.share.world > 1 else None):
                losses.look(wait=is_due)
                self.nonfinite.check(losses.bad, epoch, begin)
                self._show(done.step, f"epoch {epoch}, bound {-losses.mean:.3f} nats")
            if is_due:
                begin = self._within(epoch, begin, done, losses)
                cast(Keeper, checkpoints)(begin)
            if is_over:
                break
        losses.look(wait=True)
        self.nonfinite.check(losses.bad, epoch, begin)
        self.seconds = clock.seconds
        row = Epoch(epoch, done.step, self.seconds, losses.mean, *self.validate())
        return self.nonfinite.checked(self.after(row, begin), epoch, begin)

    def _agreed(self, step: int, *votes: bool) -> tuple[bool, ...]:
        """What a clock or a signal asks for, the same in every process."""
        if self.share.world == 1:
            return votes
        is_over = step >= self.plan.total_steps
        if is_over or step % AGREE_EVERY:
            return is_over, False
        values = torch.tensor([float(vote) for vote in votes], device=self.fabric.device)
        sums = cast(Tensor, self.fabric.all_reduce(values, reduce_op="sum"))
        return tuple((sums > 0).tolist())

    def _reduction(self) -> Callable[[Tensor], Tensor] | None:
        if self.share.world == 1:
            return None
        return lambda values: cast(Tensor, self.fabric.all_reduce(values, reduce_op="mean"))

    def _show(self, step: int, text: str) -> None:
        self._bar.update(self._shown_step(step), text)

    def _shown_step(self, step: int) -> int:
        """Steps; of a training that ends after some time, seconds."""
        return step if self.config.max_seconds is None else int(self.seconds)

    # States.

    def initial(self, on_epoch: Callable[[State], None] | None = None) -> State:
        """Return the state before the first step. Collective: call it on every process.

        Args:
            on_epoch: receives the state if the initial weights are a snapshot.

        Returns:
            The state, in tensors of its own.
        """
        state = self.stepper.snapshot(Progressed())
        if 0 in self.config.snapshots:
            state.snapshots = {0: state.weights}
            if on_epoch is not None:
                on_epoch(state)
        return state

    def after(self, row: Epoch, before: State) -> State:
        """Return the state after an epoch. Collective: call it on every process.

        Args:
            row: the metrics of the epoch.
            before: the state before it, with the best weights so far.

        Returns:
            The state, in tensors of its own.
        """
        progressed = Progressed(row.step, seconds=row.seconds, skipped=self.stepper.skipped)
        state = self._following(before, progressed, row)
        best = min(
            (e.valid_nelbo for e in before.history if math.isfinite(e.valid_nelbo)),
            default=math.inf,
        )
        if row.valid_nelbo < best:
            state.best_weights, state.best_epoch = state.weights, row.epoch
        is_complete = row.step == row.epoch * self.plan.steps_per_epoch
        if is_complete and row.epoch in self.config.snapshots:
            state.snapshots = {**state.snapshots, row.epoch: state.weights}
        return state

    def _within(self, epoch: int, before: State, done: Progressed, losses: Losses) -> State:
        """The state within an epoch."""
        progressed = replace(
            done,
            total=losses.total,
            seen=losses.seen,
            seconds=self.seconds,
            skipped=self.stepper.skipped,
        )
        return self.nonfinite.checked(self._following(before, progressed), epoch, before)

    def _following(self, before: State, progressed: Progressed, *rows: Epoch) -> State:
        return replace(
            self.stepper.snapshot(progressed),
            history=[*before.history, *rows],
            best_weights=before.best_weights,
            best_epoch=before.best_epoch,
            snapshots=before.snapshots,
        )

    def _restored(self, state: State) -> State:
        self.stepper.restore(state)
        self.seconds = state.progressed.seconds
        return state


class _Clock:
    """The time of an epoch, and when to show it: twice a second, or after a number of steps."""

    def __init__(self, before: float) -> None:
        self.before, self.begun = before, time.monotonic()
        self.shown = self.begun

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.begun

    def is_time(self, step: int | None) -> bool:
        if step is not None:
            return step % AGREE_EVERY == 0
        now = time.monotonic()
        if now - self.shown <= 0.5:
            return False
        self.shown = now
        return True
