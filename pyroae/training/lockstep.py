"""Trainings that differ in their seed alone, their steps taken together: `fit_ensemble`."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from typing import Any

from pyro.infer import ELBO
from torch import Tensor, nn

from pyroae.compilation.ensemble import Batches, Ensemble, Stream
from pyroae.compilation.optimizer_updates import rule_of
from pyroae.config import TrainConfig
from pyroae.data.batching import resident, served
from pyroae.data.dataset import Dataset
from pyroae.data.loading import Splits
from pyroae.distributed.fabric import default_dtype, fabric_of
from pyroae.errors import ConfigError, NonFiniteLossError
from pyroae.objectives import TraceELBO
from pyroae.programs.context import fork_random
from pyroae.programs.pair import Pair, like, system_of
from pyroae.runtime.progress import Progress
from pyroae.training.fitting import fit, train_and_valid
from pyroae.training.forward import Step
from pyroae.training.optimizers import optimizer_of
from pyroae.training.preflight import check
from pyroae.training.running_loss import Losses
from pyroae.training.state import Epoch, State
from pyroae.training.trainer import STEPS_A_LAUNCH, FitResult, Trainer, grouped, is_long, steps_of

CPU_PRODUCTS = 3 * 10**7
"""On two cores five seeds took 0.75 of their time in turn at 7·10⁶ products of weights a step, and all of it at 8·10⁷."""


CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def fit_ensemble(
    systems: Sequence[nn.Module],
    data: Splits | Dataset | Tensor | tuple[Tensor, ...],
    objective: ELBO | None = None,
    config: TrainConfig | None = None,
    *,
    seeds: Sequence[int],
    valid: Dataset | Tensor | tuple[Tensor, ...] | None = None,
    on_epoch: Callable[[int, State], None] | None = None,
    progress: bool = True,
) -> list[FitResult]:
    """Train systems of one form in place, each from a seed of its own, in one batched graph.

        what `fit(system, data, objective, replace(config, seed=seed))` does for each, its draws and batches included

    systems: modules with a `model` and a `guide`, alike but for their weights. seeds: of each, in the place of `config.seed`.
    on_epoch: receives the index of a member and its state, from which `fit` goes on. The rest is as in `fit`. On a CPU losses
    and weights are those of separate trainings but for rounding; `seconds` of a member are its equal share of those of all.
    Members are trained one after the other where `is_worth_batching` does not hold, or, with a warning, where their draws or
    operations cannot be batched.
    Raises what `fit` raises; NonFiniteLossError names the seed, and every member then has the weights of its last good epoch;
    ConfigError for another number of seeds than of systems, and for a pair of programs, whose parameters Pyro's store shares.

    >>> from pyroae import load, zoo
    >>> digits = load("digits", binarize="dynamic")
    >>> members = [zoo.vae(digits.train, latent=2) for _ in range(2)]
    >>> results = fit_ensemble(members, digits, config=TrainConfig(epochs=1), seeds=(0, 1), progress=False)
    >>> [20 < result.history[0].valid_nelbo < 35 for result in results]
    [True, True]
    """
    config = config or TrainConfig()
    objective = TraceELBO() if objective is None else objective
    modules = [_module(system) for system in systems]
    if len(modules) != len(seeds) or not modules:
        raise ConfigError(
            f"an ensemble has a seed for each system, not {len(seeds)} for {len(modules)}"
        )
    configs = [replace(config, seed=seed) for seed in seeds]
    parts = [train_and_valid(module, data, valid) for module in modules]
    if not is_worth_batching(modules[0], objective, config, len(parts[0][0]), len(modules)):
        return [
            _alone(i, modules[i], data, objective, one, valid, on_epoch, progress)
            for i, one in enumerate(configs)
        ]
    sizes = [
        check(m, *part, objective, one)
        for m, part, one in zip(modules, parts, configs, strict=True)
    ]
    fabrics = [fabric_of(one) for one in configs]
    with fork_random(fabrics[0].device), default_dtype(config):
        train, trainers, streams = resident(parts[0][0], fabrics[0].device), [], []
        for module, one, fabric, size, (_, held_out) in zip(
            modules, configs, fabrics, sizes, parts, strict=True
        ):
            trainers.append(
                Trainer(Step(module, deepcopy(objective), size), one, fabric, train, held_out)
            )
            streams.append(Stream(fabric.device))
        return _Lockstep(trainers, streams).run(on_epoch, progress)


def is_worth_batching(
    system: nn.Module, objective: ELBO, config: TrainConfig, num_data: int, members: int
) -> bool:
    """Whether so many trainings of such systems are made one ensemble: a rule of the configuration, never of a clock.

    Not where members would fall out of step (`patience`, `max_seconds`), for gradients that are scaled (`16-mixed`), shared by
    processes or looked at (`nonfinite="skip"`), for an optimizer that no graph can hold, for a pair of programs, and where
    compilation is turned off or does not pay: by `compile="auto"` an ensemble has 5,000 steps or more, those of all members
    counted. On a CPU, which one member's step can fill, not for convolutions, nor where parameters × batch × K are more than
    3·10⁷.
    """
    if members < 2 or isinstance(system, Pair) or not config.compile:
        return False
    if (
        config.patience is not None
        or config.max_seconds is not None
        or config.precision == "16-mixed"
    ):
        return False
    if config.is_distributed or config.nonfinite == "skip":
        return False
    optimizer = optimizer_of(config, system)
    if any(rule_of(optimizer, group) is None for group in optimizer.param_groups):
        return False
    if fabric_of(config).device.type == "cpu":
        products = (
            sum(p.numel() for p in system.parameters())
            * config.batch_size
            * getattr(objective, "num_particles", 1)
        )
        if products > CPU_PRODUCTS or any(isinstance(m, CONVOLUTIONS) for m in system.modules()):
            return False
    return config.compile is True or is_long(members * steps_of(config, num_data))


def _module(system: Any) -> nn.Module:
    module = system_of(system)
    if isinstance(module, Pair):
        raise ConfigError(
            "an ensemble is one of modules: the parameters of a pair (model, guide) may be in Pyro's one store"
        )
    return module


def _alone(
    index: int,
    module: nn.Module,
    data: Any,
    objective: ELBO,
    config: TrainConfig,
    valid: Any,
    on_epoch: Callable[[int, State], None] | None,
    progress: bool,
) -> FitResult:
    after = None if on_epoch is None else lambda state: on_epoch(index, state)
    return fit(module, data, objective, config, valid=valid, on_epoch=after, progress=progress)


class _Lockstep:
    """Trainings whose steps are taken together; all else is each one's own."""

    def __init__(self, trainers: Sequence[Trainer], streams: Sequence[Stream]) -> None:
        self.trainers, self.streams, self.first = list(trainers), list(streams), trainers[0]
        self.ensemble = Ensemble(
            [compiled for t in trainers if (compiled := t.compiler()) is not None], streams
        )
        self.seconds = self.compile_seconds = 0.0

    def run(self, on_epoch: Callable[[int, State], None] | None, progress: bool) -> list[FitResult]:
        first, step = self.first, 0
        states = self._each(lambda i: self.trainers[i].state([], {}, 0))
        with ExitStack() as stack:
            self.progress = stack.enter_context(
                Progress("training an ensemble", int(first.total_steps), progress)
            )
            stack.callback(self.ensemble.separate)
            for epoch in range(1, first.config.epochs + 1):
                if step >= first.total_steps:
                    break
                step, nelbos = self._epoch(epoch, step, states)
                seconds = self.seconds / len(self.trainers)
                for i, trainer in enumerate(self.trainers):
                    with self.streams[i].in_use():
                        row = Epoch(epoch, step, seconds, nelbos[i], *trainer.validate())
                        states[i] = trainer.after(row, states[i])
                        if on_epoch is not None:
                            on_epoch(i, states[i])
        for trainer in self.trainers:
            trainer.compile_seconds = self.compile_seconds / len(self.trainers)
        return self._each(lambda i: self.trainers[i].finish(states[i], False))

    def _epoch(self, epoch: int, step: int, good: Sequence[State]) -> tuple[int, list[float]]:
        """One pass of each over its training data, or what is left of the steps; the mean negative bounds along it."""
        for trainer in self.trainers:
            trainer.system.train()
        losses = [Losses(step) for _ in self.trainers]
        begun, before = time.monotonic(), self.seconds
        shown = begun
        for group in self._groups(epoch, step):
            for batches, found in zip(group, self._steps(step, group), strict=True):
                for kept, loss in zip(losses, found, strict=True):
                    kept.add(loss, len(batches[0][0]))
            step += len(group)
            now = time.monotonic()
            if now - shown > 0.5:
                shown = now
                self._look(losses, epoch, good, wait=False)
                mean = sum(kept.mean for kept in losses) / len(losses)
                self.progress.update(step, f"epoch {epoch}, bounds of about {-mean:.3f} nats")
            if step >= self.first.total_steps:
                break
        self._look(losses, epoch, good, wait=True)
        self.seconds = before + time.monotonic() - begun
        return step, [kept.mean for kept in losses]

    def _batches(self, epoch: int) -> Iterator[list[tuple[Tensor, ...]]]:
        """A batch of each."""
        device, size = self.first.fabric.device, self.first.config.batch_size
        each = [
            served(self.first.train, size, seed=t.config.seed, epoch=epoch, device=device)
            for t in self.trainers
        ]
        first = next(self.first.system.parameters())  # they are alike
        for batches in zip(*each, strict=True):
            yield [like(first, args) for args in batches]

    def _groups(self, epoch: int, step: int) -> Iterator[list[Batches]]:
        """Batches of one size whose steps are one launch on a GPU; each by itself elsewhere."""
        most = STEPS_A_LAUNCH if self.first.fabric.device.type == "cuda" else 1
        return grouped(
            self._batches(epoch),
            lambda batches: len(batches[0][0]),
            most,
            self.first.total_steps - step,
        )

    def _steps(self, step: int, group: list[Batches]) -> list[list[Tensor]]:
        size, divisor = len(group[0][0][0]), self.first.raw.num_data(group[0][0])
        compiled = self.first.is_worth_compiling(size, len(self.trainers))
        if (
            len(group) == 1
            or not compiled
            or self.ensemble.is_new(group[0], self._begin(step), divisor)
        ):
            return [self._step(step + i, batches) for i, batches in enumerate(group)]
        return self.ensemble.steps(group, lambda i: self._begin(step + i), divisor)

    def _begin(self, step: int) -> float | None:
        """Set the rates of a step; its weight of the KL."""
        (kl_weight,) = {trainer.begin(step) for trainer in self.trainers}
        return kl_weight

    def _step(self, step: int, batches: Batches) -> list[Tensor]:
        kl_weight, divisor = self._begin(step), self.first.raw.num_data(batches[0])
        if not self.first.is_worth_compiling(len(batches[0][0]), len(self.trainers)):
            return self.ensemble.eager_step(batches, kl_weight, divisor)
        if not self.ensemble.is_new(batches, kl_weight, divisor):
            return self.ensemble.step(batches, kl_weight, divisor)
        self.progress.update(step, "compiling the step")
        begun = time.monotonic()
        losses = self.ensemble.step(batches, kl_weight, divisor)
        self.compile_seconds += time.monotonic() - begun
        return losses

    def _look(
        self, losses: Sequence[Losses], epoch: int, good: Sequence[State], *, wait: bool
    ) -> None:
        """Take up the losses that have arrived. Raises NonFiniteLossError, with every member at its last good weights."""
        for trainer, kept, state in zip(self.trainers, losses, good, strict=True):
            kept.look(wait=wait)
            try:
                trainer.refuse_bad(kept, epoch, state, replay=False)
            except NonFiniteLossError as error:
                for other, last in zip(self.trainers, good, strict=True):
                    other.system.load_state_dict(last.weights)
                raise NonFiniteLossError(
                    f"seed {trainer.config.seed}: {error}", error.step, error.batch
                ) from None

    def _each[Found](self, what: Callable[[int], Found]) -> list[Found]:
        """Of every member, in its own stream."""
        found = []
        for i, stream in enumerate(self.streams):
            with stream.in_use():
                found.append(what(i))
        return found
