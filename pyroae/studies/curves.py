"""Learning curves: the log-likelihood of validation data along a training."""

import math
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor, nn

from pyroae.comparison.budget import evaluations_of
from pyroae.comparison.results import Cell, Point
from pyroae.config import TrainConfig
from pyroae.evaluation.blocks import Data
from pyroae.evaluation.importance.likelihood import Trial, log_likelihood, trial_of
from pyroae.programs.pair import System, like_parameters
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.training.state import State

CURVE_POINTS = 40
"""About the number of points of a curve."""


CURVE_DATA = 500
"""Validation data of a point."""


CURVE_PARTICLES = 64
"""Importance samples per datum of a point, K."""


@dataclass(repr=False)
class Curve(Shown):
    """The learning curve of a training: −log p(x) of validation data, whatever its own bound.

    Attributes:
        system: the system that is trained.
        x: validation data, [N, ...] or the arguments of a program; None for no curve.
        cell: the training in its comparison.
        config: the configuration of the training.
        num_data: the number of training data.
        evaluations: decoder evaluations per datum and step.
        points: the points so far.
        log_units: what is added to −log p(x) of standardized data, in nats per datum.
    """

    system: nn.Module
    x: Data | None
    cell: Cell
    config: TrainConfig
    num_data: int
    evaluations: float
    points: list[Point] = field(default_factory=list)
    log_units: float = 0.0
    _trial: Trial | None = field(default=None, init=False)

    def _overview(self) -> Overview:
        last = [f"last NLL {self.points[-1].nll:.2f} nats per datum"] if self.points else []
        return Overview([str(self.cell), f"{len(self.points)} points", *last])

    def after_epoch(self, state: State) -> None:
        """Add a point if the last one is far enough back, or at the last epoch.

        Args:
            state: the state after an epoch; the system has its weights. Nothing is added for
                the initial one.
        """
        if not state.history:
            return
        row = state.history[-1]
        last = self.points[-1] if self.points else Point(0, 0, 0.0, 0, math.nan)
        if self.config.max_seconds is not None:
            due = row.seconds - last.seconds >= self.config.max_seconds / CURVE_POINTS
        else:
            due = row.epoch - last.epoch >= self.config.epochs / CURVE_POINTS
        if due or row.epoch == self.config.epochs:
            self.add(row.epoch, row.step, row.seconds)

    def add(self, epoch: int, step: int, seconds: float) -> None:
        """Add a point at the present weights, unless there is one at this step.

        Args:
            epoch: the number of epochs of the training.
            step: the number of steps of the training.
            seconds: the time of the training.
        """
        if self.x is None or (self.points and self.points[-1].step == step):
            return
        system, x = cast(System, self.system), placed(self.system, self.x)
        if self._trial is None:
            self._trial = trial_of(system.model, system.guide, x)
        likelihood = log_likelihood(
            system.model,
            system.guide,
            x,
            num_particles=CURVE_PARTICLES,
            seed=0,
            trial=self._trial,
        )
        evaluations = evaluations_of(step, self.evaluations, self.num_data, self.config.batch_size)
        nll = likelihood.nll + self.log_units
        self.points.append(Point(epoch, step, seconds, evaluations, nll))


def placed(system: nn.Module, x: Data) -> Data:
    """Return data on the device and in the precision of a system's parameters.

    Args:
        system: the system.
        x: data [N, ...], or a tuple of the arguments of a program.

    Returns:
        The same data, a tensor or a tuple.
    """
    args = like_parameters(system, x if isinstance(x, tuple) else (cast(Tensor, x),))
    return args if isinstance(x, tuple) else args[0]
