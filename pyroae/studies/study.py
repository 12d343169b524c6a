"""A study: a comparison on disk, with a run directory for each training; it can be resumed."""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from pyroae import zoo
from pyroae.comparison.results import Cell, Outcome, Point
from pyroae.config import (
    WHERE,
    RunConfig,
    read_yaml,
)
from pyroae.config.evaluation import EvaluationSettings
from pyroae.data.loading import Splits
from pyroae.errors import ConfigError, DataError, NonFiniteLossError, RunError
from pyroae.evaluation.blocks import arguments_of
from pyroae.evaluation.results import Result
from pyroae.evaluation.summary import evaluate as evaluate_system
from pyroae.evaluation.units import log_units_of
from pyroae.objectives import parse_objective
from pyroae.programs.pair import like_parameters
from pyroae.runs.contents import versions
from pyroae.runs.data_of_run import same_data, splits_of
from pyroae.runs.loading import own_parameters
from pyroae.runs.parts import EvaluatedPart, weights_of
from pyroae.runs.run import Run
from pyroae.runtime.files import guarded
from pyroae.runtime.processes import say
from pyroae.studies.cell_files import (
    OUTCOME,
    check_names,
    directory_name,
    outcome_in,
    read_curve,
    write_curve,
    write_failure,
    write_outcome,
)
from pyroae.studies.cell_setup import (
    Parts,
    check_cell,
    check_scoring,
    evaluations_per_datum,
    new_system,
)
from pyroae.studies.cells import CellRunner, CellStore
from pyroae.studies.curves import CURVE_DATA, Curve
from pyroae.studies.scoring import corrected, first_of, mean_units, outcome_of
from pyroae.studies.study_config import StudyConfig
from pyroae.studies.tuning import FOLDER
from pyroae.training.plan import steps_of
from pyroae.training.state import State
from pyroae.training.trainer import FitResult

FIGURES = ("nelbo", "rate", "distortion", "active_units")
"""Figures of an evaluation that an outcome holds."""


class Study:
    """A directory of trainings: `study.yaml`, and a run directory for each cell.

    Args:
        path: the directory.
        config: the configuration.
        splits: the data; by default they are loaded as the configuration says.
        how: the command that resumes a training, for the message after a signal.
    """

    def __init__(
        self,
        path: str | Path,
        config: StudyConfig,
        splits: Splits | None = None,
        how: str | None = None,
    ) -> None:
        self.path, self.config = Path(path), config
        self.how = f"pyroae compare --resume {self.path}" if how is None else how
        self.splits: Splits = splits_of(config.settings) if splits is None else splits
        parts = Parts.of(self.splits)
        self.parts = parts.tuning() if config.scored == "valid" else parts

    @classmethod
    def read(cls, path: str | Path) -> StudyConfig:
        """Read the configuration of a study.

        Args:
            path: the directory of the study.

        Returns:
            The configuration.

        Raises:
            RunError: if there is none that can be used.
        """
        file = Path(path) / "study.yaml"
        if not file.is_file():
            raise RunError(f"'{path}' holds no study: there is no study.yaml in it")
        try:
            return StudyConfig.from_dict(read_yaml(file))
        except (ConfigError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"the configuration of the study '{path}' cannot be used: {error}"
            ) from None

    def check(self, cells: Sequence[Cell] | None = None) -> list[Cell]:
        """Refuse, before any training, what cannot be trained or scored.

        Args:
            cells: the cells that are checked; by default all of the configuration.

        Returns:
            The cells.

        Raises:
            ConfigError: for settings that cannot be used, or a cell that is given twice.
            DataError: for data that the system does not accept.
            ProgramError: for programs that an objective does not support.
        """
        cells = self.config.cells() if cells is None else list(cells)
        check_names(cells)
        check_scoring(self.parts.held_out, self.config.scoring)
        for cell in cells:
            if cell.seed == self.config.seeds[0]:
                objective, config = _objective(cell), self._run_config(cell).training
                with own_parameters():
                    check_cell(
                        self._system(cell), self.parts, objective, config, self.config.scoring
                    )
        if self.config.tune:
            self.for_tuning().check()
        return cells

    def for_tuning(self) -> "Study":
        """Return the study that chooses the tuned settings, in the folder `tuning` of this one.

        Returns:
            The study.

        Raises:
            DataError: if there are no validation data.
        """
        return Study(self.path / FOLDER, self.config.for_tuning(), self.splits)

    def start(self, overwrite: bool) -> None:
        """Make the directory.

        Args:
            overwrite: whether a study in it is replaced.

        Raises:
            RunError: if it holds a study, and `overwrite` is not set.
        """
        refuse_other(self.path, overwrite)
        for old in self.path.glob("*-k*-seed*/config.yaml"):
            shutil.rmtree(old.parent)
        shutil.rmtree(self.path / FOLDER, ignore_errors=True)
        self.write_config()

    def resume(self) -> None:
        """Record that an existing study is resumed.

        Raises:
            DataError: if its data have changed.
        """
        recorded = yaml.safe_load((self.path / "study.yaml").read_text()).get("fingerprint")
        if recorded != self.splits.fingerprint:
            raise DataError(
                f"the data '{self.config.settings.data}' have changed since the study "
                f"'{self.path}': their fingerprint is {self.splits.fingerprint}, not {recorded}"
            )
        self.write_config()

    def write_config(self) -> None:
        """Write study.yaml: the configuration, the fingerprint of the data and the versions."""
        record = {"fingerprint": self.splits.fingerprint, "versions": versions()}
        text = yaml.safe_dump({**self.config.to_dict(), **record}, sort_keys=False)
        guarded(self.path / "study.yaml", lambda file: file.write_text(text))

    def place(self, cell: Cell) -> Path:
        """Return the run directory of a cell.

        Args:
            cell: the cell.

        Returns:
            The directory, which need not exist; its name has the settings that were tuned.
        """
        return self.path / directory_name(cell, self.config.tuned.get(cell.entry.short, {}))

    def outcome(self, cell: Cell) -> Outcome | str | None:
        """Return the outcome of a cell.

        Args:
            cell: the cell.

        Returns:
            The outcome; why the training failed; None if it is not finished.

        Raises:
            ConfigError: if it was trained with other settings than the study has.
        """
        outcome = outcome_in(self.place(cell), cell)
        if outcome is not None:
            self._refuse_other_settings(cell)
        return outcome

    def _refuse_other_settings(self, cell: Cell) -> None:
        """Refuse a finished cell whose recorded settings are not those of the study."""
        path, now = self.place(cell), self._run_config(cell).to_dict()
        recorded = read_yaml(path / "config.yaml") if (path / "config.yaml").is_file() else {}
        for name, value in recorded.items():
            if name in now and name not in (*WHERE, "program") and now[name] != value:
                raise ConfigError(
                    f"'{path}' was trained with {name} = {value}, and the study has {now[name]}: "
                    "remove it to train it again"
                )

    def run(
        self, cell: Cell, saved: Callable[[], None] | None = None, progress: bool = True
    ) -> Outcome | str:
        """Train and score one cell, from its last checkpoint if there is one.

        Args:
            cell: the cell.
            saved: called after each checkpoint.
            progress: whether to show the progress.

        Returns:
            The outcome, or why the training failed.

        Raises:
            InterruptedRunError: if a signal ended the training; its state is saved.
        """
        parts = self.parts
        runner = CellRunner(
            system=self._system,
            objective=_objective,
            config=lambda cell: self._run_config(cell).training,
            score=partial(self._score, progress=progress),
            train=parts.train,
            valid=parts.valid,
            along=first_of(parts.held_out if parts.valid is None else parts.valid, CURVE_DATA),
            log_units=mean_units(
                parts.held_out if parts.valid is None else parts.valid, CURVE_DATA
            ),
            store=_Runs(self),
            how=self.how,
            minutes=self.config.settings.save_minutes,
        )
        with _threads(self.config.cpus_per_cell), own_parameters():
            try:
                (outcome,) = runner.run([cell], saved=saved, progress=progress)
                return outcome
            except (NonFiniteLossError, DataError) as error:
                write_failure(self.place(cell) / OUTCOME, str(error))
                return str(error)

    def steps(self, cell: Cell) -> int:
        """Return the number of steps of a training.

        Args:
            cell: the cell.

        Returns:
            The steps of its budget; early stopping may leave some out.
        """
        return steps_of(self._run_config(cell).training, len(self.parts.train))

    def _run_config(self, cell: Cell) -> RunConfig:
        def per_datum(config: RunConfig) -> float:
            system = new_system(lambda: zoo.system_from(config, self.splits.train), cell.seed)
            return evaluations_per_datum(_objective(cell), system, first_of(self.parts.held_out, 1))

        return self.config.run_config(cell, len(self.parts.train), per_datum)

    def _system(self, cell: Cell) -> nn.Module:
        config = self._run_config(cell)
        return new_system(lambda: zoo.system_from(config, self.splits.train), cell.seed)

    def _score(self, curve: Curve, result: FitResult, progress: bool) -> Outcome:
        """Evaluate a trained system, and write results.json."""
        scoring = self.config.scoring
        x = like_parameters(
            result.system, arguments_of(first_of(self.parts.held_out, scoring.num_data))
        )
        units = log_units_of(result.system, self.parts.held_out, scoring.num_data)
        evaluation = evaluate_system(
            result.system,
            x,
            EvaluationSettings(("is",), scoring.num_particles, seed=scoring.seed),
            progress=progress,
            log_units=units,
        )
        assert evaluation.likelihood is not None
        figures = {name: evaluation.results[name].estimate for name in FIGURES}
        score = corrected(
            evaluation.likelihood, result.system, x, scoring, progress=progress, log_units=units
        )
        outcome = outcome_of(curve, result, score, figures)
        run, rows = Run(self.place(curve.cell)), evaluation.results
        found = [*rows.values(), *_results(outcome, rows["nll"])]
        run.write_results(self._part(run, rows["nll"].num_data).label(found))
        return outcome

    def _part(self, run: Run, num_data: int) -> EvaluatedPart:
        """The data that a cell is scored on, and its weights."""
        held_out, weights = self.parts.held_out, weights_of(run) if run.has_begun else ""
        split = "valid" if held_out is self.parts.valid else "test"
        return EvaluatedPart(getattr(held_out, "name", "data"), split, num_data, weights)


def _results(outcome: Outcome, nll: Result) -> list[Result]:
    """The corrected NLL as a row of results.json; none without a correction."""
    if outcome.score.correction is None:
        return []
    method = f"{nll.method}, corrected by {outcome.score.method}"
    row = replace(nll, name="nll_corrected", method=method, monte_carlo_se=math.nan)
    return [replace(row, estimate=outcome.nll, se=outcome.nll_se)]


class _Runs(CellStore):
    """The run directories of a study."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._run: Run | None = None

    def outcome(self, cell: Cell) -> Outcome | str | None:
        return self.study.outcome(cell)

    def begin(self, cell: Cell) -> tuple[State | None, list[Point]]:
        path, config = self.study.place(cell), self.study._run_config(cell)
        if not ((path / "config.yaml").is_file() and Run(path).has_begun):
            self._run = Run.create(path, config, self.study.splits, overwrite=True)
            return None, []
        run = self._run = Run(path)
        where = {name: getattr(config, name) for name in WHERE}
        if run.config.but(**where) != config:
            raise ConfigError(
                f"the settings of '{path}' are not those of the study: remove it to train it again"
            )
        same_data(run, self.study.splits)
        return _state(run), read_curve(path / "curve.csv")

    def save(self, cell: Cell, state: State, points: Sequence[Point]) -> None:
        run = self._run or Run(self.study.place(cell))
        if not state.progressed.position:
            write_curve(run.path / "curve.csv", points)
        run.save(state)

    def finish(self, cell: Cell, outcome: Outcome, result: FitResult) -> None:
        path = self.study.place(cell)
        write_curve(path / "curve.csv", outcome.curve)
        write_outcome(path / OUTCOME, outcome)


def _objective(cell: Cell) -> Any:
    return parse_objective(cell.objective, cell.num_particles)


def _state(run: Run) -> State:
    """The last state or, if its file is damaged, the one before: the results are the same."""
    try:
        return run.state()
    except RunError as error:
        try:
            state = run.state("previous")
        except RunError:
            raise error from None
        say(f"{error}: resuming from {state.where()}")
        return state


def refuse_other(path: Path, overwrite: bool) -> None:
    """Refuse a path at which no study can be started.

    Args:
        path: the directory of a study.
        overwrite: whether a study in it may be replaced.

    Raises:
        RunError: if there is a file, a run, or a study that must not be replaced.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"'{path}' is a file, not a directory")
    if (path / "config.yaml").exists():
        raise RunError(f"'{path}' is the directory of a run: a study needs one of its own")
    if (path / "study.yaml").exists() and not overwrite:
        raise RunError(
            f"'{path}' holds a study already: give --overwrite to replace it, or --resume to "
            "continue it"
        )


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """A context in which torch has a number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
