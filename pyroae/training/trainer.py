"""One training, step by step: what `fit` runs, what an ensemble runs several of, and what goes on from a checkpoint."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import pyro
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pyroae.compilation.svi import Compiled
from pyroae.config import TrainConfig
from pyroae.data.batching import rows_of_batch, served
from pyroae.data.dataset import Dataset
from pyroae.distributed.fabric import gather_tensors, load_optimizer, load_weights, share_of
from pyroae.programs.arguments import Arguments
from pyroae.programs.context import evaluating, fork_random
from pyroae.programs.pair import like_parameters
from pyroae.runtime.progress import Progress
from pyroae.training.checkpointing import Keeper
from pyroae.training.forward import Step
from pyroae.training.nonfinite import Blame, blame, error_at
from pyroae.training.optimizers import optimizer_of, schedule
from pyroae.training.running_loss import Losses
from pyroae.training.state import (
    Epoch,
    Progressed,
    State,
    random_states,
    set_random_states,
    write_csv,
)

COMPILE_FROM_STEPS, COMPILE_FROM_SECONDS = 5000, 120
"""A training of so many steps of one shape, or of so much time, earns back what its graph takes to make."""


STEPS_A_LAUNCH = 16
"""Steps that a GPU is given at once: it takes longer for them than the host takes for the next ones."""


AGREE_EVERY = 20
"""Steps after which several processes agree on what a clock or a signal asks for."""


VALIDATION_BATCH = 1000


Batch = tuple[tuple[Tensor, ...], int]
"""This process's share of a batch, and the size of the whole."""


@dataclass(frozen=True)
class FitResult:
    """A trained system. best_epoch: of the best validation bound (of the last one, without validation data).

    compile_seconds: what `seconds` holds of making graphs of the step. skipped: steps left out as their loss was not finite.
    """

    system: nn.Module
    history: tuple[Epoch, ...]
    best_epoch: int
    stopped_early: bool
    compile_seconds: float = 0.0
    skipped: int = 0

    @property
    def seconds(self) -> float:
        """Time spent in training, validation not counted."""
        return self.history[-1].seconds

    def to_csv(self, path: Any) -> None:
        """Write the history, a row an epoch."""
        write_csv(path, self.history)


def steps_of(config: TrainConfig, num_data: int) -> int:
    """The steps of a training that neither early stopping nor a clock ends.

    >>> steps_of(TrainConfig(epochs=3, batch_size=10), num_data=25)
    9
    """
    steps = config.epochs * math.ceil(num_data / config.batch_size)
    return steps if config.max_steps is None else min(steps, config.max_steps)


def is_long(steps: int) -> bool:
    """Whether so many steps of one shape earn back what their graph takes to make."""
    return steps >= COMPILE_FROM_STEPS


def grouped[T](
    batches: Iterable[T], size: Callable[[T], int], most: int, left: int
) -> Iterator[list[T]]:
    """Batches in their order, in groups of one size each: `most` of them at the most, and `left` in the first groups together.

    >>> list(grouped([5, 5, 5, 5, 2], lambda n: n, most=3, left=10))
    [[5, 5, 5], [5], [2]]
    """
    group: list[T] = []
    for batch in batches:
        if group and size(batch) != size(group[0]):
            yield group
            left, group = left - len(group), []
        group.append(batch)
        if len(group) >= min(most, left):
            yield group
            left, group = left - len(group), []
    if group:
        yield group


class Trainer:
    """One training: `fit` runs it; an ensemble takes the steps of several at once and leaves all else to each."""

    def __init__(
        self,
        step: Step,
        config: TrainConfig,
        fabric: Fabric,
        train: Dataset | Arguments,
        valid: Dataset | Arguments | None,
    ) -> None:
        self.system, self.config, self.fabric = step.system, config, fabric
        self.train, self.valid = train, valid
        torch.manual_seed(config.seed)
        self.raw, self.share = step, share_of(fabric)
        step.share = self.share
        module = fabric.setup_module(
            step
        )  # before the optimizer: FSDP puts other parameters in the place of these
        self.step, self.optimizer = (
            module,
            cast(Any, fabric.setup_optimizers(optimizer_of(config, step.system))),
        )
        self.steps_per_epoch = math.ceil(len(train) / config.batch_size)
        self.total_steps = steps_of(config, len(train))
        self.seconds = self.compile_seconds = 0.0
        self.graphs: Compiled | None = None
        self.skipped = 0

    @property
    def skips(self) -> bool:
        """Whether steps whose loss is not finite are left out."""
        return self.config.nonfinite == "skip"

    # Graphs.

    def compiler(self) -> Compiled | None:
        """The whole step as graphs; where gradients are scaled, looked at or shared by processes, these alone."""
        optimizer, objective = cast(Any, self.optimizer).optimizer, self.raw.objective
        if self.share.world == 1 and self.config.precision != "16-mixed" and not self.skips:
            clip, precision = self.config.grad_clip, self.fabric.autocast
            return Compiled(
                self.system, objective, lambda _: optimizer, grad_clip=clip, precision=precision
            )
        if self.config.strategy != "fsdp":
            self.raw.graphs = Compiled(self.system, objective, precision=self._drawing)
        return None

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        with self.fabric.autocast(), self.raw.drawing():
            yield

    def is_worth_compiling(self, size: int, members: int = 1) -> bool:
        """Whether batches of that size are given to a graph: a rule of the configuration, so that runs are the same again.

        members: so many trainings share the graph, and what it takes to make.
        """
        config, whole = self.config, size == self.config.batch_size
        if config.compile == "auto":
            if config.max_seconds is not None:
                return whole and config.max_seconds >= COMPILE_FROM_SECONDS
            steps = self.total_steps if whole else self.total_steps // self.steps_per_epoch
            return is_long(steps * members)
        epochs = (
            COMPILE_FROM_STEPS
            if config.max_seconds is not None
            else self.total_steps // self.steps_per_epoch
        )
        return bool(config.compile) and (whole or is_long(epochs * members))

    # The course of it.

    def run(
        self, state: State | None, on_epoch: Callable[[State], None] | None, progress: bool
    ) -> FitResult:
        """Every epoch that is left, from a state or from the start."""
        self.graphs = self.compiler() if self.is_worth_compiling(self.config.batch_size) else None
        state = self.restore(state) if state is not None else self.state([], {}, 0)
        config, stopped = self.config, False
        self.good = state
        total = int(self.total_steps if config.max_seconds is None else config.max_seconds)
        with Progress("training", total, progress and self.share.rank == 0) as self.progress:
            for epoch in range(len(state.history) + 1, config.epochs + 1):
                if not state.progressed.position and self._is_over(state.progressed.step):
                    break
                state = self._epoch(epoch, state, on_epoch)
                if on_epoch is not None:
                    on_epoch(state)
                if (
                    config.patience is not None
                    and self.valid
                    and epoch - state.best_epoch >= config.patience
                ):
                    stopped = True
                    break
        return self.finish(state, stopped)

    def finish(self, state: State, stopped: bool) -> FitResult:
        """The system with the weights that it keeps."""
        if self.config.keep == "best" and state.best_weights:
            load_weights(self.system, state.best_weights)
        self.system.eval()
        best = state.best_epoch or len(state.history)
        return FitResult(
            self.system, tuple(state.history), best, stopped, self.compile_seconds, self.skipped
        )

    def _is_over(self, step: int) -> bool:
        limit = self.config.max_seconds
        return step >= self.total_steps or (limit is not None and self.seconds >= limit)

    def _epoch(self, epoch: int, begin: State, on_epoch: Callable[[State], None] | None) -> State:
        """One pass over the training data, or what is left of it, of the steps or the seconds; the state after it."""
        self.system.train()
        done, keeper = begin.progressed, on_epoch if isinstance(on_epoch, Keeper) else None
        losses = Losses(done.step, done.total, done.seen, reduce=self._reduce(), lenient=self.skips)
        clock = _Clock(done.seconds)
        for group in self._groups(epoch, done):
            for loss, (_, size) in zip(self._take_steps(done.step, group), group, strict=True):
                losses.add(loss, size)
            done = replace(done, step=done.step + len(group), position=done.position + len(group))
            self.seconds = clock.seconds
            over, due = self._agreed(
                done.step, self._is_over(done.step), keeper is not None and keeper.is_due
            )
            if due or clock.is_time(done.step if self.share.world > 1 else None):
                losses.look(wait=due)
                self.refuse_bad(losses, epoch, begin)
                self._show(done.step, f"epoch {epoch}, bound {-losses.mean:.3f} nats")
            if due:
                begin = self._middle(begin, self._so_far(done, losses), epoch)
                cast(Keeper, keeper)(begin)
            if over:
                break
        losses.look(wait=True)
        self.refuse_bad(losses, epoch, begin)
        self.seconds = clock.seconds
        row = Epoch(epoch, done.step, self.seconds, losses.mean, *self.validate())
        return self._checked(self.after(row, begin), epoch, begin)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """This process's share of the batches that are left of an epoch, and the size of the whole of each."""
        config, device = self.config, self.fabric.device
        parts = served(
            self.train,
            config.batch_size,
            seed=config.seed,
            epoch=epoch,
            device=device,
            start=start,
            share=self.share,
        )
        for number, args in enumerate(parts, start):
            size = min(config.batch_size, len(self.train) - number * config.batch_size)
            yield like_parameters(self.system, args), size

    def _groups(self, epoch: int, done: Progressed) -> Iterator[list[Batch]]:
        """Batches of one size whose steps are one launch on a GPU; each by itself elsewhere."""
        most = (
            STEPS_A_LAUNCH if self.graphs is not None and self.fabric.device.type == "cuda" else 1
        )
        batches = self._batches(epoch, done.position)
        return grouped(batches, lambda batch: batch[1], most, self.total_steps - done.step)

    def _agreed(self, step: int, *asked: bool) -> tuple[bool, ...]:
        """What a clock or a signal asks for, in every process alike."""
        if self.share.world == 1:
            return asked
        over = step >= self.total_steps
        if over or step % AGREE_EVERY:
            return over, False
        votes = torch.tensor([float(a) for a in asked], device=self.fabric.device)
        return tuple((cast(Tensor, self.fabric.all_reduce(votes, reduce_op="sum")) > 0).tolist())

    def _reduce(self) -> Callable[[Tensor], Tensor] | None:
        if self.share.world == 1:
            return None
        return lambda values: cast(Tensor, self.fabric.all_reduce(values, reduce_op="mean"))

    def _show(self, step: int, text: str) -> None:
        self.progress.update(step if self.config.max_seconds is None else int(self.seconds), text)

    # A step.

    def _take_steps(self, step: int, group: list[Batch]) -> list[Tensor]:
        """The steps of a group, as `take_step` takes each."""
        args, size = group[0]
        if len(group) == 1 or self.graphs is None or not self.is_worth_compiling(size):
            return [self.take_step(step + i, args, size) for i, (args, size) in enumerate(group)]
        if self.graphs.is_new(*args, kl_weight=self.begin(step), divisor=self.raw.num_data(args)):
            return [self.take_step(step + i, args, size) for i, (args, size) in enumerate(group)]
        stacks = [torch.stack(rows) for rows in zip(*(args for args, _ in group), strict=True)]
        losses = self.graphs.steps(
            *stacks, before=lambda i: self.begin(step + i), divisor=self.raw.num_data(args)
        )
        return list(losses.unbind())

    def take_step(self, step: int, args: tuple[Tensor, ...], size: int) -> Tensor:
        """The negative bound before it, in nats per datum; of several processes, this one's part of the mean."""
        kl_weight, num_data = self.begin(step), self.raw.num_data(args)
        self.raw.size = size
        if self.graphs is not None and self.is_worth_compiling(size):
            return self._compiled_step(step, args, kl_weight, num_data)
        graphs, self.raw.graphs = (
            self.raw.graphs,
            self.raw.graphs if size == self.config.batch_size else None,
        )
        try:
            with pyro.validation_enabled(step == 0):
                return self._eager_step(args, kl_weight, self.share.weight(size) / num_data)
        finally:
            self.raw.graphs = graphs

    def begin(self, step: int) -> float | None:
        """Set the learning rate of a step; the weight of the KL in it, while that grows."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * schedule(config.schedule, self._done(step))
        warmup = config.kl_warmup * self.steps_per_epoch
        return min(1.0, (step + 1) / warmup) if warmup else None

    def _compiled_step(
        self, step: int, args: tuple[Tensor, ...], kl_weight: float | None, num_data: int
    ) -> Tensor:
        assert self.graphs is not None
        if not self.graphs.is_new(*args, kl_weight=kl_weight, divisor=num_data):
            return self.graphs.step(*args, kl_weight=kl_weight, divisor=num_data)
        self._show(step, "compiling the step")
        begun = time.monotonic()
        loss = self.graphs.step(*args, kl_weight=kl_weight, divisor=num_data)
        self.compile_seconds += time.monotonic() - begun
        return loss

    def _eager_step(
        self, args: tuple[Tensor, ...], kl_weight: float | None, factor: float
    ) -> Tensor:
        config, values = self.config, []

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            value, surrogate = self.step(*args, kl_weight=kl_weight)
            values.append(-value.detach() * factor)
            loss = -surrogate * factor
            self.fabric.backward(loss)
            if config.grad_clip is not None:
                self.fabric.clip_gradients(
                    self.step, self.optimizer, max_norm=config.grad_clip, error_if_nonfinite=False
                )
            return loss.detach()

        if not self.skips:
            self.optimizer.step(closure)
        elif self._is_finite(closure()):
            self.optimizer.step()
        else:
            self.skipped += 1
            values = [torch.full_like(values[0], math.nan)]
        return values[0]

    def _is_finite(self, loss: Tensor) -> bool:
        """Whether the loss and every gradient are, in all processes."""
        grads = [p.grad for p in self.system.parameters() if p.grad is not None]
        norms = torch.stack([loss, *(g.norm().to(loss) for g in gather_tensors(grads))])
        sums = (
            norms
            if self.share.world == 1
            else cast(Tensor, self.fabric.all_reduce(norms, reduce_op="sum"))
        )
        return bool(torch.isfinite(sums).all())

    def _done(self, step: int) -> float:
        """The share of the training that is done, in [0, 1)."""
        if self.config.max_seconds is None:
            return step / self.total_steps
        return min(self.seconds / self.config.max_seconds, 1 - 1e-9)

    def validate(self) -> tuple[float, float, float]:
        """nelbo, distortion −E log p(x|z) and rate E[log q(z|x) − log p(z)] of the validation data, at full KL weight."""
        if self.valid is None:
            return math.nan, math.nan, math.nan
        sums = torch.zeros(3, dtype=torch.float64)
        device, quiet = self.fabric.device, pyro.validation_enabled(False)
        with (
            evaluating(self.system),
            fork_random(device, self.config.seed),
            quiet,
            self.fabric.autocast(),
        ):
            tensors = self.valid.tensors if isinstance(self.valid, Arguments) else (self.valid.x,)
            for part in zip(*(t.split(VALIDATION_BATCH) for t in tensors), strict=True):
                self.raw.size = size = len(part[0])
                args = like_parameters(self.system, tuple(t[self.share.of(size)] for t in part))
                counts = self.share.weight(size) * size / self.share.world / len(args[0])
                sums += counts * cast(Tensor, self.raw(*args, validate=True)).cpu()
        if self.share.world > 1:
            sums = cast(Tensor, self.fabric.all_reduce(sums.to(device), reduce_op="sum")).cpu()
        nelbo, distortion, rate_mean = (sums / len(self.valid)).tolist()
        return nelbo, distortion, rate_mean

    # States.

    def state(
        self, history: list[Epoch], best_weights: dict[str, Tensor], best_epoch: int
    ) -> State:
        """What it is now, in tensors of its own."""
        now = (
            Progressed(history[-1].step, seconds=history[-1].seconds, skipped=self.skipped)
            if history
            else Progressed()
        )
        random = random_states(self.fabric.device)
        return State(
            gather_tensors(dict(self.system.state_dict())),
            gather_tensors(self.optimizer.optimizer.state_dict()),
            random,
            history,
            best_weights,
            best_epoch,
            now,
        )

    def after(self, row: Epoch, before: State) -> State:
        """The state after one more epoch."""
        state = self.state([*before.history, row], before.best_weights, before.best_epoch)
        best = min(
            (e.valid_nelbo for e in before.history if math.isfinite(e.valid_nelbo)),
            default=math.inf,
        )
        if row.valid_nelbo < best:
            state.best_weights, state.best_epoch = state.weights, row.epoch
        return state

    def _so_far(self, done: Progressed, losses: Losses) -> Progressed:
        return replace(
            done, total=losses.total, seen=losses.seen, seconds=self.seconds, skipped=self.skipped
        )

    def _middle(self, before: State, now: Progressed, epoch: int) -> State:
        """The state in the middle of an epoch."""
        state = self.state(before.history, before.best_weights, before.best_epoch)
        state.progressed = now
        return self._checked(state, epoch, before)

    def _checked(self, state: State, epoch: int, good: State) -> State:
        """A state with finite weights. Raises NonFiniteLossError for another, with the weights of the last good one back."""
        if not state.is_finite:
            losses = Losses(state.progressed.step)
            losses.bad = state.progressed.step
            self.refuse_bad(losses, epoch, good)
        return state

    def restore(self, state: State) -> State:
        """Go on from a state."""
        load_weights(self.system, state.weights)
        load_optimizer(self.optimizer.optimizer, state.optimizer)
        self.skipped, self.seconds = state.progressed.skipped, state.progressed.seconds
        if self.graphs is not None:
            self.graphs.has_stepped = state.progressed.step > 0
        set_random_states(state.random, self.fabric.device)
        return state

    # Losses that are not finite.

    def refuse_bad(self, losses: Losses, epoch: int, good: State, *, replay: bool = True) -> None:
        """Raises NonFiniteLossError where one of them is not finite; the last good weights are put back.

        replay: the steps since that state are taken again, up to the bad one, to find what is to blame.
        """
        if losses.bad is None:
            return
        position = losses.bad - (good.history[-1].step if good.history else 0)
        rows: tuple[int, ...] = tuple(
            rows_of_batch(self.train, self.config.batch_size, self.config.seed, epoch, position)
        )
        found = (
            self._replayed(losses.bad, epoch, good) if replay and self.share.world == 1 else None
        )
        load_weights(self.system, good.weights)
        where = f"the weights of {good.where()}" if good.progressed.step else "the initial weights"
        raise error_at(losses.bad + 1, epoch, rows, found, f"{where} were kept")

    def _replayed(self, bad: int, epoch: int, good: State) -> Blame:
        """The steps from a good state again, and what is not finite before the bad one."""
        self.restore(good)
        self.system.train()
        step = good.progressed.step
        for args, size in self._batches(epoch, good.progressed.position):
            self._show(
                step,
                f"the loss became NaN or infinite at step {bad + 1}: going back to find out why",
            )
            if step == bad:
                return blame(self.system, args, getattr(self.raw.objective, "num_particles", 1))
            self.take_step(step, args, size)
            step += 1
        return blame(self.system, (), 1)


class _Clock:
    """Seconds of an epoch, and when half of one has passed since the last look; of several processes, steps."""

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
