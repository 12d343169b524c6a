"""Read a study: its comparison, and the trained system of every cell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pyroae.comparison.results import Cell, Comparison, Entry, Outcome
from pyroae.comparison.tuning import Tuning, combinations
from pyroae.config import read_yaml
from pyroae.errors import ConfigError, RunError
from pyroae.programs.controlled import without_controls
from pyroae.programs.pair import Pair
from pyroae.runs.loading import load_run
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import text_of
from pyroae.studies.cell_files import CellDirectory, directory_name, outcome_in
from pyroae.studies.cell_setup import new_system
from pyroae.studies.report import write_study_report
from pyroae.studies.study import Study
from pyroae.studies.study_config import StudyConfig
from pyroae.studies.study_files import PYTHON
from pyroae.studies.trainings import Make, Variant
from pyroae.studies.tuning import FOLDER, TUNING_SEED, Grid, joined, tuning_of
from pyroae.training.state import History


@dataclass(frozen=True, repr=False)
class TrainedCell(Shown):
    """A training of a study, read.

    Attributes:
        system: The trained system, with `model` and `guide`, in `eval()` mode.
        history: The finished epochs.
        outcome: Its score and what it has spent.
    """

    system: nn.Module
    history: History
    outcome: Outcome

    def _overview(self) -> Overview:
        rows = [("system", text_of(self.system)), ("training", text_of(self.history))]
        return Overview(self.outcome.summary, rows)


@dataclass(frozen=True, repr=False)
class LoadedStudy(Shown):
    """A study, read.

    Attributes:
        path: Its directory.
        comparison: The outcomes of its finished trainings.
        make: Returns an untrained system, by the name of the variant; empty for a study of the
            command line, which records its systems.
    """

    path: Path
    comparison: Comparison
    make: Mapping[str, Make]

    def _overview(self) -> Overview:
        table = self.comparison.overview
        return replace(table, head=[str(self.path), *table.head])

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The finished trainings."""
        return tuple(outcome.cell for outcome in self.comparison.outcomes)

    def trained(self, cell: Cell, *args: Tensor) -> TrainedCell:
        """Return the trained system of a cell.

        Args:
            cell: The cell, one of `cells`.
            args: A batch of the data, `[n, ...]`, for a pair of programs that keep parameters in
                Pyro's store: they are run once on it.

        Returns:
            The system, its history and its outcome.

        Raises:
            ConfigError: For a cell that is not in the study, or a study of `compare_training`
                that was loaded without `make`.
            RunError: If its files cannot be read.
        """
        if cell not in self.cells:
            raise ConfigError(f"the study '{self.path}' has no finished training of {cell}")
        outcome = next(o for o in self.comparison.outcomes if o.cell == cell)
        if not _python_record(self.path):
            run = load_run(self.path / directory_name(cell, _chosen(self.comparison.tuning, cell)))
            return TrainedCell(run.system, run.history, outcome)
        if cell.variant not in self.make:
            raise ConfigError(
                f"'{self.path}' is a study of compare_training, which records no system: give the "
                "same make= to load_study"
            )
        system = new_system(self.make[cell.variant], cell.seed)
        if isinstance(system, Pair) and args:
            system.find_parameters(*args)
        weights, history = CellDirectory(
            self.path, lambda cell: {}, self.comparison.tuning
        ).trained(cell)
        try:
            system.load_state_dict(without_controls(weights, system))
        except RuntimeError as error:
            raise RunError(
                f"the weights of {cell} in '{self.path}' are of another system than `make` "
                f"returns: {str(error).splitlines()[0]}"
            ) from None
        return TrainedCell(system.eval(), history, outcome)


def load_study(
    path: str | Path, make: Make | Mapping[str, Make | Variant] | None = None
) -> LoadedStudy:
    """Read the directory of a study of `pyroae compare` or `compare_training`.

    Args:
        path: The directory.
        make: For a study of `compare_training`, what it was called with; needed to load its
            systems, not its outcomes.

    Returns:
        The study, whose finished trainings can be loaded one by one.

    Raises:
        RunError: If there is no study, it cannot be read, or no training is finished.

    >>> load_study("nowhere")
    Traceback (most recent call last):
    pyroae.errors.RunError: 'nowhere' holds no study: there is no study.yaml in it
    """
    path = Path(path)
    cells, grid = _recorded(path)
    variants: Mapping[str, Any] = make if isinstance(make, Mapping) else {"": make} if make else {}
    makes = {n: v.make if isinstance(v, Variant) else v for n, v in variants.items()}
    tuning = _tuning(path, cells, grid)
    outcomes = [
        outcome_in(path / directory_name(cell, _chosen(tuning, cell)), cell) for cell in cells
    ]
    finished = tuple(outcome for outcome in outcomes if isinstance(outcome, Outcome))
    if not finished:
        raise RunError(f"the study '{path}' has no finished training")
    return LoadedStudy(path, Comparison(finished, tuning, _data(path)), makes)


def report_study(path: str | Path) -> Path:
    """Write STUDY/report.html from the files of a study.

    Args:
        path: The directory of the study.

    Returns:
        The path of the report.

    Raises:
        RunError: If the study cannot be read, or the report cannot be written.
    """
    study = load_study(path)
    cells, _ = _recorded(study.path)
    tuning, failed = study.comparison.tuning, []
    for cell in cells:
        outcome = outcome_in(study.path / directory_name(cell, _chosen(tuning, cell)), cell)
        if isinstance(outcome, str):
            failed.append(f"{cell}: {outcome}")
    return write_study_report(study.path, study.comparison, _baseline(study), failed)


def _baseline(study: LoadedStudy) -> Entry | None:
    """The entry that the recorded differences of a study are taken from."""
    file = study.path / "comparison.nc"
    if not file.is_file():
        return None
    import h5netcdf  # type: ignore[import-untyped]

    with h5netcdf.File(file, "r") as tree:
        recorded = str(tree.attrs.get("baseline", ""))
    return next((entry for entry in study.comparison.entries if str(entry) == recorded), None)


def _chosen(tuning: Tuning | None, cell: Cell) -> Mapping[str, Any]:
    """The settings that a tuning has chosen for a cell; none where it is not finished."""
    return {} if tuning is None else tuning.best(cell.entry.short).settings


def _python_record(path: Path) -> dict[str, Any]:
    """The content of study.yaml of a study of compare_training; empty for another study."""
    file = path / "study.yaml"
    record = read_yaml(file) if file.is_file() else {}
    return record if record.get(PYTHON) else {}


def _data(path: Path) -> str:
    """The name of the data of a study."""
    record = read_yaml(path / "study.yaml")
    return Path(str(record.get("data") or record.get("settings", {}).get("data", ""))).stem


def _recorded(path: Path) -> tuple[list[Cell], Grid]:
    """The cells of a study, and the grid of its tuning."""
    record = _python_record(path)
    if not record:
        config: StudyConfig = Study.read(path)
        return config.cells(), config.tune
    grid = {name: tuple(values) for name, values in record["tune"].items()}
    return [Cell(*cell) for cell in record["cells"]], grid


def _tuning(path: Path, cells: Sequence[Cell], grid: Grid) -> Tuning | None:
    """The tuning of a study; None if there is none, or it is not finished."""
    if not grid:
        return None
    entries = dict.fromkeys(cell.entry for cell in cells)
    found: dict[Cell, Outcome | str] = {}
    for entry in entries:
        for point in combinations(grid):
            variant = joined(entry.variant, point)
            cell = Cell(entry.objective, entry.num_particles, TUNING_SEED, variant)
            outcome = outcome_in(path / FOLDER / directory_name(cell), cell)
            if outcome is not None:
                found[cell] = outcome
    try:
        return tuning_of(entries, grid, found)
    except ConfigError:
        return None
