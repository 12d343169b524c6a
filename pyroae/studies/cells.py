"""Train and score the cells of a comparison; with a store they resume after an interruption.

A cell is trained by `fit`, and cells that differ only in their seed by `fit_ensemble` where that
pays. Where cells run, sequentially or on several machines, is decided by who calls the runner.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
from torch import nn

from pyroae.autoencoder import Autoencoder
from pyroae.comparison.results import Cell, Outcome, Point
from pyroae.config import TrainConfig
from pyroae.errors import ConfigError
from pyroae.objectives.base import ObjectiveBase
from pyroae.studies.cell_setup import evaluations_per_datum
from pyroae.studies.curves import Curve
from pyroae.training.checkpointing import MINUTES, Keeper
from pyroae.training.fitting import fit
from pyroae.training.lockstep import fit_ensemble
from pyroae.training.state import State
from pyroae.training.trainer import FitResult


class CellStore(ABC):
    """Keeps states, learning curves and outcomes of cells on disk."""

    @abstractmethod
    def outcome(self, cell: Cell) -> Outcome | str | None:
        """Return what a cell came to.

        Args:
            cell: the cell.

        Returns:
            The outcome; why the training failed; None if it is not finished.
        """

    @abstractmethod
    def begin(self, cell: Cell) -> tuple[State | None, list[Point]]:
        """Make the directory of a cell, or return what it holds.

        Args:
            cell: the cell.

        Returns:
            The state to resume from, None for a new cell, and the points of its learning curve.
        """

    @abstractmethod
    def save(self, cell: Cell, state: State, points: Sequence[Point]) -> None:
        """Write a state of a training.

        Args:
            cell: the cell.
            state: the state, after an epoch or within one.
            points: the learning curve so far.
        """

    def keep_snapshots(self, cell: Cell, state: State) -> None:  # noqa: B027
        """Write the snapshots of a member of an ensemble, whose states are not saved.

        A store whose cells are trained one by one writes them in `save`.

        Args:
            cell: the cell.
            state: the state after an epoch, or the initial one.
        """

    @abstractmethod
    def finish(self, cell: Cell, outcome: Outcome, result: FitResult) -> None:
        """Write the outcome of a cell, after which it is finished.

        Args:
            cell: the cell.
            outcome: the outcome.
            result: the trained system and its history.
        """


@dataclass(frozen=True)
class CellRunner:
    """Trains and scores cells.

    Attributes:
        system: returns the untrained system of a cell.
        objective: returns the objective of a cell.
        config: returns the configuration of a cell.
        score: returns the outcome of a training from its curve and its result.
        train: the training data.
        valid: the validation data; None if there are none.
        along: the data of the learning curves.
        log_units: what is added to −log p(x) of the learning curves for standardized data, in nats
            per datum.
        store: where cells are kept; None keeps nothing.
        how: the command that resumes the work, for the message after a signal.
        minutes: time between two states that are saved within an epoch.
    """

    system: Callable[[Cell], nn.Module]
    objective: Callable[[Cell], ObjectiveBase]
    config: Callable[[Cell], TrainConfig]
    score: Callable[[Curve, FitResult], Outcome]
    train: Any
    valid: Any
    along: Any
    log_units: float = 0.0
    store: CellStore | None = None
    how: str = ""
    minutes: float = MINUTES

    def finished(self, group: Sequence[Cell]) -> list[Outcome] | None:
        """Return the outcomes of a group from the store.

        Args:
            group: the cells.

        Returns:
            Their outcomes; None unless all are finished.
        """
        if self.store is None:
            return None
        outcomes = [self.store.outcome(cell) for cell in group]
        finished = [outcome for outcome in outcomes if isinstance(outcome, Outcome)]
        return finished if len(finished) == len(group) else None

    def run(
        self,
        group: Sequence[Cell],
        *,
        saved: Callable[[], None] | None = None,
        progress: bool = False,
    ) -> list[Outcome]:
        """Train and score cells.

        A single cell resumes from its last state in the store. Several are trained as one
        ensemble, from the start: its members depend on each other up to rounding.

        Args:
            group: one cell, or several that differ only in their seed.
            saved: called after each state that is saved.
            progress: whether to show the progress.

        Returns:
            The outcomes.

        Raises:
            ConfigError: before any step, for snapshots without a store that keeps them.
            InterruptedRunError: if a signal ended a training whose state is saved.
            NonFiniteLossError: if a loss is not finite.
        """
        if self.store is None and self.config(group[0]).snapshots:
            raise ConfigError(
                "the snapshots of a comparison are kept in its directory: give a path, or leave "
                "them out"
            )
        with pyro.get_param_store().scope():  # each training has its own parameters
            curves = [self._curve(cell) for cell in group]
            if len(group) == 1:
                results = [self._fit(curves[0], saved, progress)]
            else:
                results = self._fit_ensemble(curves, progress)
            return [self._finish(*pair) for pair in zip(curves, results, strict=True)]

    def _curve(self, cell: Cell) -> Curve:
        system, objective = self.system(cell), self.objective(cell)
        evaluations = evaluations_per_datum(objective, self.system(cell), self.along)
        curve = Curve(system, self.along, cell, self.config(cell), len(self.train), evaluations)
        curve.log_units = self.log_units if isinstance(system, Autoencoder) else 0.0
        return curve

    def _fit(self, curve: Curve, saved: Callable[[], None] | None, progress: bool) -> FitResult:
        cell, store = curve.cell, self.store
        settings: dict[str, Any] = {"valid": self.valid, "progress": progress}
        objective = self.objective(cell)
        if store is None:
            on_epoch = curve.after_epoch
            return fit(
                curve.system, self.train, objective, curve.config, on_epoch=on_epoch, **settings
            )
        state, points = store.begin(cell)
        if state is not None:
            curve.points = [point for point in points if point.step <= state.progressed.step]

        def save(after: State) -> None:
            if not after.progressed.position:
                curve.after_epoch(after)
            store.save(cell, after, curve.points)
            if saved is not None:
                saved()

        with Keeper(save, self.how, self.minutes) as checkpoints:
            return fit(
                curve.system,
                self.train,
                objective,
                curve.config,
                state=state,
                on_epoch=checkpoints,
                **settings,
            )

    def _fit_ensemble(self, curves: Sequence[Curve], progress: bool) -> list[FitResult]:
        first, store = curves[0], self.store

        def after_epoch(i: int, state: State) -> None:
            curves[i].after_epoch(state)
            if store is not None:
                store.keep_snapshots(curves[i].cell, state)

        return fit_ensemble(
            [curve.system for curve in curves],
            self.train,
            self.objective(first.cell),
            first.config,
            seeds=[curve.cell.seed for curve in curves],
            valid=self.valid,
            on_epoch=after_epoch,
            progress=progress,
        )

    def _finish(self, curve: Curve, result: FitResult) -> Outcome:
        row = result.history[-1]
        curve.add(row.epoch, row.step, row.seconds)
        outcome = self.score(curve, result)
        if self.store is not None:
            self.store.finish(curve.cell, outcome, result)
        return outcome
