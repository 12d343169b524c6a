"""The length and the schedules of a training, as its configuration says."""

import math
from dataclasses import dataclass
from functools import cached_property

from pyroae.config import TrainConfig
from pyroae.training.optimizers import schedule

COMPILE_FROM_STEPS = 5000
"""Steps of one shape from which compiling them takes less time than it saves."""


COMPILE_FROM_SECONDS = 120
"""Seconds of a training from which compiling its steps takes less time than it saves."""


@dataclass(frozen=True)
class Plan:
    """How many steps a training has, and the learning rate and the KL weight of each.

    Attributes:
        config: the configuration.
        num_data: the number of training data, N.
        members: the number of trainings that share a graph, and the time to compile it.

    >>> plan = Plan(TrainConfig(epochs=3, batch_size=10, kl_warmup=2), num_data=25)
    >>> plan.steps_per_epoch, plan.total_steps, plan.kl_weight(2)
    (3, 9, 0.5)
    """

    config: TrainConfig
    num_data: int
    members: int = 1

    @cached_property
    def steps_per_epoch(self) -> int:
        """The number of batches of an epoch."""
        return math.ceil(self.num_data / self.config.batch_size)

    @cached_property
    def total_steps(self) -> int:
        """The number of steps, unless early stopping or a time limit ends the training before."""
        return steps_of(self.config, self.num_data)

    def is_over(self, step: int, seconds: float) -> bool:
        """Return whether the training ends before a step.

        Args:
            step: the number of steps that were taken.
            seconds: the time that they took.

        Returns:
            True once `max_steps`, the epochs or `max_seconds` are reached.
        """
        limit = self.config.max_seconds
        return step >= self.total_steps or (limit is not None and seconds >= limit)

    def learning_rate(self, step: int, seconds: float) -> float:
        """Return the learning rate of a step.

        Args:
            step: counted from 0.
            seconds: the time since the start, by which `max_seconds` measures the progress.

        Returns:
            `config.lr`, scaled by the schedule.
        """
        config = self.config
        done = step / self.total_steps
        if config.max_seconds is not None:
            done = min(seconds / config.max_seconds, 1 - 1e-9)
        return config.lr * schedule(config.schedule, done)

    def kl_weight(self, step: int) -> float | None:
        """Return the weight of the KL term in a step.

        Args:
            step: counted from 0.

        Returns:
            A weight that grows linearly to 1 over `kl_warmup` epochs; None without a warm-up.
        """
        warmup = self.config.kl_warmup * self.steps_per_epoch
        return min(1.0, (step + 1) / warmup) if warmup else None

    def is_worth_compiling(self, size: int) -> bool:
        """Return whether steps on batches of one size are compiled.

        The rule depends on the configuration alone, not on measured times, so that a repeated
        run takes the same steps.

        Args:
            size: the number of data in the batch.

        Returns:
            For `compile="auto"`, whether there are enough steps; else whether `compile` is set and
            the batch is a full one or occurs often enough.
        """
        config, is_full = self.config, size == self.config.batch_size
        epochs = self.total_steps // self.steps_per_epoch
        if config.compile == "auto":
            if config.max_seconds is not None:
                return is_full and config.max_seconds >= COMPILE_FROM_SECONDS
            return is_long((self.total_steps if is_full else epochs) * self.members)
        repeats = COMPILE_FROM_STEPS if config.max_seconds is not None else epochs
        return bool(config.compile) and (is_full or is_long(repeats * self.members))


def steps_of(config: TrainConfig, num_data: int) -> int:
    """Return the number of steps of a training without early stopping or a time limit.

    Args:
        config: the configuration: `epochs`, `batch_size` and `max_steps`.
        num_data: the number of training data, N.

    Returns:
        epochs · ⌈N / batch_size⌉, at most `max_steps`.

    >>> steps_of(TrainConfig(epochs=3, batch_size=10), num_data=25)
    9
    """
    steps = config.epochs * math.ceil(num_data / config.batch_size)
    return steps if config.max_steps is None else min(steps, config.max_steps)


def is_long(steps: int) -> bool:
    """Return whether compiling a step takes less time than it saves in a number of steps.

    Args:
        steps: the number of steps of one shape.

    Returns:
        Whether there are at least `COMPILE_FROM_STEPS`.
    """
    return steps >= COMPILE_FROM_STEPS
