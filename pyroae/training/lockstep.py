"""Train systems that differ only in their seed: on a CPU side by side, on a GPU in one graph."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyroae.compilation.ensemble import Batches, Ensemble, Stream
from pyroae.compilation.noise_inputs import NotLiftedError
from pyroae.compilation.optimizer_updates import rule_of
from pyroae.compilation.tracing import UntraceableError, reason_of
from pyroae.config import TrainConfig
from pyroae.data.batching import resident, served
from pyroae.data.loading import Splits
from pyroae.distributed.fabric import default_dtype, fabric_of
from pyroae.errors import ConfigError, NonFiniteLossError
from pyroae.objectives import TraceELBO
from pyroae.objectives.apply import forget_controls, variant_of
from pyroae.programs.pair import Pair, flattened, like, system_of
from pyroae.runtime.progress import Progress
from pyroae.runtime.randomness import fork_random
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.training.fitting import Data, fit, returned, train_and_valid, trained_module
from pyroae.training.forward import Step
from pyroae.training.minibatches import grouped
from pyroae.training.optimizers import optimizer_of
from pyroae.training.plan import is_long, steps_of
from pyroae.training.preflight import check
from pyroae.training.running_loss import Losses
from pyroae.training.side_by_side import NotCompiledError, SideBySide
from pyroae.training.state import Epoch, State
from pyroae.training.stepping import STEPS_A_LAUNCH
from pyroae.training.trainer import FitResult, Trainer


class FitResults(Shown, list[FitResult]):
    """The results of trainings that differ in their seed, in a table."""

    def _overview(self) -> Overview:
        rows = [
            (str(member), str(len(one.history)), one.history[-1].summary, f"{one.best_epoch}")
            for member, one in enumerate(self)
        ]
        columns = ("member", "epochs", "last epoch", "best epoch")
        return Overview([f"{len(rows)} trainings"], rows, columns)


def fit_ensemble(
    systems: Sequence[nn.Module],
    data: Splits | Data,
    objective: ELBO | None = None,
    config: TrainConfig | None = None,
    *,
    seeds: Sequence[int],
    valid: Data | None = None,
    on_epoch: Callable[[int, State], None] | None = None,
    progress: bool = True,
) -> FitResults:
    """Train systems of one form in place, each from its own seed, at once.

        fit(system, data, objective, replace(config, seed=seed))  for each, with the same draws
        and batches

    On a CPU each step is taken by one core, and as many members are stepped side by side as torch
    has threads; losses and weights equal those of separate trainings up to rounding, and do not
    depend on the number of threads. On a GPU one batched graph steps all members. They are trained
    sequentially where `are_trained_together` does not hold or, with a warning, where their draws or
    operations cannot be compiled.

    Args:
        systems: modules with a `model` and a `guide`, alike but for their weights.
        data: as in `fit`, the same for all.
        objective: as in `fit`; by default `TraceELBO()`. Each member has a copy of its own, and
            learns what the objective learns anew; the given one does not change.
        config: as in `fit`; `seed` is replaced by `seeds`.
        seeds: the seed of each system.
        valid: as in `fit`.
        on_epoch: receives the index of a member and its state, from which `fit` can resume: after
            each epoch in the order of the members.
        progress: whether to show the progress.

    Returns:
        The result of each system. The `seconds` of a member are its equal share of those of all.

    Raises:
        ConfigError: for another number of seeds than of systems; for a pair of programs, whose
            parameters Pyro's store shares; and as in `fit`.
        DataError: as in `fit`.
        ProgramError: as in `fit`.
        NonFiniteLossError: names the seed; every member has the weights of its last good epoch.

    >>> from pyroae import load, zoo
    >>> digits = load("digits", binarize="dynamic")
    >>> members = [zoo.vae(digits.train, latent=2) for _ in range(2)]
    >>> config = TrainConfig(epochs=1)
    >>> results = fit_ensemble(members, digits, config=config, seeds=(0, 1), progress=False)
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
    objectives = [deepcopy(objective) for _ in modules]
    if not are_trained_together(modules[0], objective, config, len(parts[0][0]), len(modules)):
        return FitResults(
            _alone(i, modules[i], data, objectives[i], one, valid, on_epoch, progress)
            for i, one in enumerate(configs)
        )
    sizes = []
    for module, part, own, one in zip(modules, parts, objectives, configs, strict=True):
        forget_controls(own)
        sizes.append(check(flattened(module, part[0]), *part, own, one))
    train = parts[0][0]
    systems, modules = (
        modules,
        [trained_module(m, train, own) for m, own in zip(modules, objectives, strict=True)],
    )
    fabrics = [fabric_of(one) for one in configs]
    device, states, sequential = fabrics[0].device, [], configs
    with fork_random(device), default_dtype(config):
        train, trainers, streams = resident(train, device), [], []
        for module, own, one, fabric, size, (_, held_out) in zip(
            modules, objectives, configs, fabrics, sizes, parts, strict=True
        ):
            step = Step(module, own, size)
            trainers.append(Trainer(step, one, fabric, train, held_out, len(modules)))
            streams.append(Stream(device))
        together: _Lockstep | SideBySide = (
            _Lockstep(trainers, streams) if is_batched(device) else SideBySide(trainers, streams)
        )
        try:
            results = together.run(on_epoch, progress)
            return FitResults(returned(*pair) for pair in zip(results, systems, strict=True))
        except NotCompiledError as error:
            states, sequential = error.states, _sequential(configs, error.__cause__)
    return FitResults(
        _alone(i, systems[i], data, objectives[i], one, valid, on_epoch, progress, states[i])
        for i, one in enumerate(sequential)
    )


def is_batched(device: torch.device) -> bool:
    """Return whether one graph steps all members, instead of threads that each step one.

    Args:
        device: the device of the ensemble.

    Returns:
        Whether it is a GPU, on which a kernel of one small step takes less time than its launch.
    """
    return device.type == "cuda"


def _sequential(configs: list[TrainConfig], error: BaseException | None) -> list[TrainConfig]:
    """Configurations of trainings one after the other, with a warning that says why."""
    if isinstance(error, NotLiftedError):  # code of one training draws inside of its graph
        warnings.warn(f"the members of an ensemble are trained sequentially: {error}", stacklevel=3)
        return configs
    assert error is not None
    reason = str(error) if isinstance(error, UntraceableError) else reason_of(error)
    warnings.warn(f"model and guide run eagerly, not compiled: {reason}", stacklevel=3)
    return [replace(one, compile=False) for one in configs]


def are_trained_together(
    system: nn.Module, objective: ELBO, config: TrainConfig, num_data: int, members: int
) -> bool:
    """Return whether trainings of one form are one ensemble.

    The rule depends on the configuration alone, not on measured times. Trainings are sequential

    - with `max_seconds`: a second of one core is not a second of all;
    - if gradients are scaled (`16-mixed`), shared by processes or inspected (`nonfinite="skip"`);
    - for an optimizer that cannot be part of a graph, and for a pair of programs;
    - for an objective that draws a variant on the host, in which members would differ;
    - if compilation is turned off or does not pay: with `compile="auto"` an ensemble needs 5,000
      steps, those of all members counted;
    - on a CPU, if there are fewer members than half of torch's threads;
    - on a GPU with `patience`, by which members end at different steps.

    Args:
        system: one of the systems.
        objective: the objective, with its number of particles.
        config: the configuration, the same for all but for the seed.
        num_data: the number of training data, N.
        members: the number of systems.

    Returns:
        Whether `fit_ensemble` trains them at once.
    """
    if members < 2 or isinstance(system, Pair) or not config.compile or variant_of(objective) != ():
        return False
    has_limit, is_scaled = config.max_seconds is not None, config.precision == "16-mixed"
    if has_limit or is_scaled or config.is_distributed or config.nonfinite == "skip":
        return False
    optimizer = optimizer_of(config, system)
    if any(rule_of(optimizer, group) is None for group in optimizer.param_groups):
        return False
    on_gpu = is_batched(fabric_of(config).device)
    if config.patience is not None if on_gpu else 2 * members < torch.get_num_threads():
        return False
    return config.compile is True or is_long(members * steps_of(config, num_data))


def _module(system: Any) -> nn.Module:
    module = system_of(system)
    if isinstance(module, Pair):
        raise ConfigError(
            "an ensemble consists of modules: the parameters of a pair (model, guide) may be in "
            "Pyro's one store"
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
    state: State | None = None,
) -> FitResult:
    after = None if on_epoch is None else lambda state: on_epoch(index, state)
    return fit(
        module, data, objective, config, valid=valid, state=state, on_epoch=after, progress=progress
    )


class _Lockstep:
    """Trainings whose steps are taken at once; everything else is done for each."""

    def __init__(self, trainers: Sequence[Trainer], streams: Sequence[Stream]) -> None:
        self.trainers, self.streams, self.first = list(trainers), list(streams), trainers[0]
        steps = [trainer.stepper.compiled_step() for trainer in trainers]
        self.ensemble = Ensemble([step for step in steps if step is not None], streams)
        self.total_steps, self.batch_size = (
            self.first.plan.total_steps,
            self.first.config.batch_size,
        )
        self.seconds = self.compile_seconds = 0.0

    def run(self, on_epoch: Callable[[int, State], None] | None, progress: bool) -> FitResults:
        step = 0
        states = self._each(
            lambda i: self.trainers[i].initial(None if on_epoch is None else partial(on_epoch, i))
        )
        with ExitStack() as stack:
            self.progress = stack.enter_context(
                Progress("training an ensemble", self.total_steps, progress)
            )
            stack.callback(self.ensemble.separate)
            for epoch in range(1, self.first.config.epochs + 1):
                if step >= self.total_steps:
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
            trainer.stepper.compile_seconds = self.compile_seconds / len(self.trainers)
        return FitResults(self._each(lambda i: self.trainers[i].finish(states[i], False)))

    def _epoch(self, epoch: int, step: int, good: Sequence[State]) -> tuple[int, list[float]]:
        """Take the steps of an epoch; the next step and the mean negative bounds."""
        for trainer in self.trainers:
            trainer.system.train()
        running = [Losses(step) for _ in self.trainers]
        begun, before = time.monotonic(), self.seconds
        shown = begun
        for group in self._groups(epoch, step):
            for batches, values in zip(group, self._steps(step, group), strict=True):
                for losses, value in zip(running, values, strict=True):
                    losses.add(value, len(batches[0][0]))
            step += len(group)
            now = time.monotonic()
            if now - shown > 0.5:
                shown = now
                self._look(running, epoch, good, wait=False)
                mean = sum(losses.mean for losses in running) / len(running)
                self.progress.update(step, f"epoch {epoch}, bounds of about {-mean:.3f} nats")
            if step >= self.total_steps:
                break
        self._look(running, epoch, good, wait=True)
        self.seconds = before + time.monotonic() - begun
        return step, [losses.mean for losses in running]

    def _batches(self, epoch: int) -> Iterator[list[tuple[Tensor, ...]]]:
        """The batches of all members, step by step."""
        device, data = self.first.fabric.device, self.first.batches.data
        each = [
            served(data, self.batch_size, seed=t.config.seed, epoch=epoch, device=device)
            for t in self.trainers
        ]
        parameter = next(self.first.system.parameters())  # they are alike
        for batches in zip(*each, strict=True):
            yield [like(parameter, args) for args in batches]

    def _groups(self, epoch: int, step: int) -> Iterator[list[Batches]]:
        """Batches of one size whose steps are one launch on a GPU; single ones elsewhere."""
        most = STEPS_A_LAUNCH if self.first.fabric.device.type == "cuda" else 1
        return grouped(
            self._batches(epoch),
            lambda batches: len(batches[0][0]),
            most,
            self.total_steps - step,
        )

    def _steps(self, step: int, group: list[Batches]) -> list[list[Tensor]]:
        divisor = self._divisor(group[0])
        if (
            len(group) == 1
            or not self._is_compiled(group[0])
            or self.ensemble.is_new(group[0], self._begin(step), divisor)
        ):
            return [self._step(step + i, batches) for i, batches in enumerate(group)]
        return self.ensemble.steps(group, lambda i: self._begin(step + i), divisor)

    def _step(self, step: int, batches: Batches) -> list[Tensor]:
        kl_weight, divisor = self._begin(step), self._divisor(batches)
        if not self._is_compiled(batches):
            return self.ensemble.eager_step(batches, kl_weight, divisor)
        if not self.ensemble.is_new(batches, kl_weight, divisor):
            return self.ensemble.step(batches, kl_weight, divisor)
        self.progress.update(step, "compiling the step")
        begun = time.monotonic()
        losses = self.ensemble.step(batches, kl_weight, divisor)
        self.compile_seconds += time.monotonic() - begun
        return losses

    def _begin(self, step: int) -> float | None:
        """Set the learning rates of a step; its KL weight."""
        (kl_weight,) = {trainer.stepper.begin(step) for trainer in self.trainers}
        return kl_weight

    def _divisor(self, batches: Batches) -> int:
        return self.first.stepper.forward.num_data(batches[0])

    def _is_compiled(self, batches: Batches) -> bool:
        return self.first.plan.is_worth_compiling(len(batches[0][0]))

    def _look(
        self, running: Sequence[Losses], epoch: int, good: Sequence[State], *, wait: bool
    ) -> None:
        """Read the losses; a NonFiniteLossError restores the last good weights of every member."""
        for trainer, losses, state in zip(self.trainers, running, good, strict=True):
            losses.look(wait=wait)
            try:
                trainer.nonfinite.check(losses.bad, epoch, state, replay=False)
            except NonFiniteLossError as error:
                for other, last in zip(self.trainers, good, strict=True):
                    other.system.load_state_dict(last.weights)
                raise NonFiniteLossError(
                    f"seed {trainer.config.seed}: {error}", error.step, error.batch
                ) from None

    def _each[Result](self, function: Callable[[int], Result]) -> list[Result]:
        """Call a function for every member, with the member's random generators."""
        results = []
        for i, stream in enumerate(self.streams):
            with stream.in_use():
                results.append(function(i))
        return results
