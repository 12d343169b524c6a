"""The files of a cell of a comparison: its state, its learning curve, its outcome."""

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from pyroae.comparison.results import Cell, Outcome, Point
from pyroae.comparison.scores import Correction, Score
from pyroae.comparison.tuning import Tuning, name_of
from pyroae.errors import ConfigError, RunError
from pyroae.runtime.checkpoint_files import CheckpointFile
from pyroae.runtime.files import guarded, read_tensors, words, write_tensors
from pyroae.runtime.processes import say
from pyroae.studies.cells import CellStore
from pyroae.studies.tuning import joined
from pyroae.training.snapshots import read_snapshots, write_snapshots
from pyroae.training.state import Epoch, History, State, write_csv
from pyroae.training.trainer import FitResult

STATE = "state of a training"
"""The kind of the files that hold a state."""


OUTCOME = "outcome.safetensors"
"""The name of the file that marks a cell as finished."""


TRAINED = "checkpoints/trained.safetensors"
"""The name of the file with the weights of a finished cell."""


WEIGHTS = "trained weights"
"""The kind of that file."""


def directory_name(cell: Cell, chosen: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Return the name of a cell's directory.

    Args:
        cell: the cell.
        chosen: the settings that a tuning has chosen for it.

    Returns:
        A name without characters that a shell or a file system treats specially.

    >>> directory_name(Cell("beta-elbo:beta=2", 8, 0))
    'beta-elbo-beta=2-k8-seed0'
    >>> directory_name(Cell("iwae", 8, 0, "posterior=iaf,prior=normal"))
    'iwae-k8-posterior=iaf-prior=normal-seed0'
    >>> directory_name(Cell("iwae", 8, 0), {"lr": 0.01})
    'iwae-k8-lr=0.01-seed0'
    """
    variant = joined(cell.variant, name_of(chosen)) if chosen else cell.variant
    parts = [cell.objective, f"k{cell.num_particles}", variant, f"seed{cell.seed}"]
    return "-".join(re.sub(r"[^\w.=+-]+", "-", part) for part in parts if part)


def check_names(cells: Sequence[Cell]) -> None:
    """Refuse cells of which two would have the same directory.

    Args:
        cells: the cells of a comparison.

    Raises:
        ConfigError: for a cell that is given twice, or names that differ in special characters
            alone.
    """
    known: dict[str, Cell] = {}
    for cell in cells:
        other = known.setdefault(directory_name(cell), cell)
        if other is not cell:
            raise ConfigError(
                "an objective, K, variant or seed is given twice"
                if other == cell
                else f"'{other}' and '{cell}' would have one directory: give them other names"
            )


class CellDirectory(CellStore):
    """A directory with a folder for each cell.

    Args:
        path: the directory.
        record: returns all that decides the figures of a cell, as JSON accepts it.
        tuning: how settings of each entry were chosen; None without a tuning.
    """

    def __init__(
        self,
        path: Path,
        record: Callable[[Cell], Mapping[str, Any]],
        tuning: Tuning | None = None,
    ) -> None:
        self.path, self.record, self.tuning = path, record, tuning

    def place(self, cell: Cell) -> Path:
        """Return the folder of a cell."""
        chosen = {} if self.tuning is None else self.tuning.best(cell.entry.short).settings
        return self.path / directory_name(cell, chosen)

    def outcome(self, cell: Cell) -> Outcome | str | None:
        """Return the outcome of a cell; None if it is not finished.

        Raises:
            ConfigError: if the cell was trained with other settings.
        """
        self.check(cell)
        return outcome_in(self.place(cell), cell)

    def begin(self, cell: Cell) -> tuple[State | None, list[Point]]:
        """Return the last state of a cell and its learning curve; record the settings of a new one.

        Raises:
            ConfigError: if the cell was trained with other settings.
            RunError: if neither the last state nor the one before can be read.
        """
        self.check(cell)
        self._write_record(cell)
        file = self._states(cell)
        if not file.exists:
            return None, []
        content, damage = file.read()
        state = State.from_content(content)
        if damage is not None:
            say(f"{damage}: resuming from {state.where()}")
        state.snapshots = read_snapshots(self._checkpoints(cell), len(state.history))
        return state, read_curve(self.place(cell) / "curve.csv")

    def save(self, cell: Cell, state: State, points: Sequence[Point]) -> None:
        """Write a state; the one before it stays, under another name."""
        write_curve(self.place(cell) / "curve.csv", points)
        self.keep_snapshots(cell, state)
        self._states(cell).write(state.to_content())

    def keep_snapshots(self, cell: Cell, state: State) -> None:
        """Write the snapshots of a state."""
        write_snapshots(self._checkpoints(cell), state)

    def finish(self, cell: Cell, outcome: Outcome, result: FitResult) -> None:
        """Write the trained weights, the history, the curve and the outcome of a cell."""
        self._write_record(cell)
        place = self.place(cell)
        content = {"weights": result.system.state_dict(), "history": [*map(asdict, result.history)]}
        write_tensors(place / TRAINED, WEIGHTS, content)
        guarded(place / "metrics.csv", lambda file: write_csv(file, result.history))
        write_curve(place / "curve.csv", outcome.curve)
        write_outcome(place / OUTCOME, outcome)

    def trained(self, cell: Cell) -> tuple[dict[str, Tensor], History]:
        """Read the trained weights and the history of a finished cell.

        Args:
            cell: the cell.

        Returns:
            The weights by name, and one entry per epoch.

        Raises:
            RunError: if the cell is not finished, or its file cannot be read.
        """
        content = read_tensors(self.place(cell) / TRAINED, WEIGHTS)
        return dict(content["weights"]), History(Epoch(**row) for row in content["history"])

    def _states(self, cell: Cell) -> CheckpointFile:
        return CheckpointFile.in_directory(self._checkpoints(cell), STATE)

    def _checkpoints(self, cell: Cell) -> Path:
        return self.place(cell) / "checkpoints"

    def _write_record(self, cell: Cell) -> None:
        text = json.dumps(self.record(cell), indent=2)
        file = self.place(cell) / "cell.json"
        guarded(file, lambda temporary: temporary.write_text(text))

    def check(self, cell: Cell) -> None:
        """Refuse a cell that was trained with other settings, data, system or objective.

        Args:
            cell: the cell.

        Raises:
            ConfigError: if it was; a record of an earlier version may say less.
        """
        file = self.place(cell) / "cell.json"
        if not file.is_file():
            return
        record = json.loads(json.dumps(self.record(cell)))
        for name, value in json.loads(file.read_text()).items():
            if record.get(name) != value:
                raise ConfigError(
                    f"'{file.parent}' was trained with other settings, its {name} among them: give "
                    "another directory, or remove it to train it again"
                )


def outcome_in(place: Path, cell: Cell) -> Outcome | str | None:
    """Return the outcome in the directory of a cell.

    Args:
        place: the directory.
        cell: the cell.

    Returns:
        The outcome; why the training failed; None if it is not finished.

    Raises:
        RunError: if the file cannot be read.
    """
    return read_outcome(place / OUTCOME, cell) if (place / OUTCOME).is_file() else None


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Write the outcome of a training, which marks it as finished.

    Args:
        path: the file to write.
        outcome: the outcome.

    Raises:
        RunError: if it cannot be written.
    """
    content = {f.name: getattr(outcome, f.name) for f in fields(Outcome) if f.name != "cell"}
    write_tensors(path, "outcome", {**content, "score": asdict(outcome.score)})


def write_failure(path: Path, reason: str) -> None:
    """Write why a training failed, which marks it as finished: it would fail again.

    Args:
        path: the file to write.
        reason: the message of the error.

    Raises:
        RunError: if it cannot be written.
    """
    write_tensors(path, "outcome", {"failed": reason})


def read_outcome(path: Path, cell: Cell) -> Outcome | str:
    """Read what `write_outcome` or `write_failure` wrote.

    Args:
        path: the file.
        cell: the cell of the outcome.

    Returns:
        The outcome, or why the training failed.

    Raises:
        RunError: if the file cannot be read.
    """
    try:
        content = read_tensors(path, "outcome")
        if "failed" in content:
            return str(content["failed"])
        content["curve"] = tuple(Point(*point) for point in content["curve"])
        return Outcome(cell, _score(content), **content)
    except RunError as error:
        raise RunError(f"{error}; remove '{path.parent}' to train it again") from None
    except (KeyError, TypeError) as error:
        raise RunError(
            f"'{path}' holds no outcome: {words(error)}; remove '{path.parent}' to train it again"
        ) from None


def _score(content: dict[str, Any]) -> Score:
    """Take the score out of the content of a file; versions before 0.3 have no diagnostics."""
    if "score" not in content:
        return Score(content.pop("log_px"), content.pop("log_px_se"))
    score = content.pop("score")
    correction = score.pop("correction")
    return Score(**score, correction=None if correction is None else Correction(**correction))


def write_curve(path: Path, points: Sequence[Point]) -> None:
    """Write a learning curve as a table with the names of the columns in the first row.

    Args:
        path: the file to write.
        points: the points.

    Raises:
        RunError: if it cannot be written.
    """

    def write(file: Path) -> None:
        with file.open("w", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow(Point._fields)
            writer.writerows(points)

    guarded(path, write)


def read_curve(path: Path) -> list[Point]:
    """Read what `write_curve` wrote.

    Args:
        path: the file.

    Returns:
        The points; none if there is no file.
    """
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    types = Point.__annotations__
    return [Point(**{name: types[name](row[name]) for name in Point._fields}) for row in rows]
