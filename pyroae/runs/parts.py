"""Which data and weights an evaluation of a run is of, and where the files of it are."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pyroae.config import snapshot_epoch, snapshot_name
from pyroae.evaluation.results import Result, by_name
from pyroae.runs.run import Run
from pyroae.runtime.files import read_tensors
from pyroae.training.snapshots import WEIGHTS

SPLITS = ("test", "valid", "train")
"""The parts of the data, the one that evaluations are of by default first."""


TABLES = ("along_training",)
"""The tables of a part, beside its DataTree."""


@dataclass(frozen=True)
class EvaluatedPart:
    """The data and the weights of an evaluation; results of different ones are never mixed.

    Attributes:
        data: The name of the data, with a fingerprint if they are not those of the run; empty if
            they are not known, as in runs of pyroae 0.3.
        split: Their part: test, valid or train.
        num_data: N.
        checkpoint: The weights, as `weights_of` names them.

    >>> EvaluatedPart("digits", "test", 1000, "best, epoch 57").title
    '1,000 data of digits, test part, weights: best, epoch 57'
    """

    data: str = ""
    split: str = ""
    num_data: int = 0
    checkpoint: str = ""

    @classmethod
    def of(cls, result: Result) -> "EvaluatedPart":
        """Return the part of a result.

        Args:
            result: The result.

        Returns:
            Its data and weights.
        """
        return cls(result.data, result.split, result.num_data, result.checkpoint)

    @classmethod
    def recorded(cls, attributes: Mapping[str, Any], num_data: int) -> "EvaluatedPart":
        """Return the part that the attributes of a DataTree record.

        Args:
            attributes: The attributes of its root.
            num_data: N, for a tree that records nothing.

        Returns:
            The data and the weights.
        """
        names = ("data", "split", "checkpoint")
        words = {name: str(attributes.get(name, "")) for name in names}
        return cls(num_data=int(attributes.get("num_data", num_data)), **words)

    @property
    def attributes(self) -> dict[str, str | int]:
        """The attributes of the DataTree of this part."""
        return asdict(self)

    @property
    def title(self) -> str:
        """The part in words."""
        if not self.data:
            return f"{self.num_data:,} data, which an earlier version of pyroae did not record"
        return (
            f"{self.num_data:,} data of {self.data}, {self.split} part, weights: {self.checkpoint}"
        )

    @property
    def folder(self) -> str:
        """The name of the files of this part that are not those of the first one."""
        words = (self.data or "unrecorded", self.split, str(self.num_data), self.checkpoint)
        text = "-".join(filter(None, words))
        plain = re.sub(r"[^\w.]+", "-", text).strip("-.")[-80:]
        exact = text.replace(", ", "-").replace(" ", "-")
        mark = hashlib.sha256(text.encode()).hexdigest()[:6]
        return plain if plain == exact else f"{plain}-{mark}"

    def label(self, results: Iterable[Result]) -> list[Result]:
        """Say of results that they are of this part.

        Args:
            results: Results of an evaluation.

        Returns:
            The same results with the data, their split and the weights.
        """
        return [
            replace(row, data=self.data, split=self.split, checkpoint=self.checkpoint)
            for row in results
        ]

    def rank(self, kept: str) -> tuple[Any, ...]:
        """Return the place among the parts of a run.

        Args:
            kept: The weights that the training kept, as of `weights_of`.

        Returns:
            A key to sort by: the run's own data, evaluated with the kept weights, are first, then
            the test part, then more data.
        """
        split = SPLITS.index(self.split) if self.split in SPLITS else len(SPLITS)
        is_other = ", fingerprint " in self.data
        first = (not self.data, is_other, self.checkpoint != kept, split, -self.num_data)
        return (*first, self.data, self.checkpoint)


def weights_of(run: Run, checkpoint: str | None = None) -> str:
    """Name the weights of a checkpoint, so that those of a longer training have another name.

    Args:
        run: The run.
        checkpoint: `best`, `last`, `previous` or a snapshot; None for the weights that the training
            kept.

    Returns:
        The name and the epoch, such as `best, epoch 57`; `epoch-0010` for a snapshot.

    Raises:
        RunError: If the checkpoint cannot be read.
    """
    if checkpoint is None:
        checkpoint = run.config.keep if run.checkpoint("best").is_file() else "last"
    epoch = snapshot_epoch(checkpoint)
    if epoch is not None:
        return snapshot_name(epoch)
    if checkpoint == "best":
        return f"best, epoch {read_tensors(run.checkpoint('best'), WEIGHTS)['epoch']}"
    state = run.state(checkpoint)
    return f"{checkpoint}, {state.where().removeprefix('the end of ')}"


def name_of_data(name: str, fingerprint: str | None) -> str:
    """Name data in results.

    Args:
        name: Their name.
        fingerprint: The fingerprint of other data than those of the run; None for its own.

    Returns:
        The name, with the fingerprint if there is one.

    >>> name_of_data("new.npy", "0a1b2c3d4e5f")
    'new.npy, fingerprint 0a1b2c3d'
    """
    return name if fingerprint is None else f"{name}, fingerprint {fingerprint[:8]}"


def by_part(run: Run, results: Iterable[Result]) -> dict[EvaluatedPart, list[Result]]:
    """Group results by the data and the weights that they are of.

    Args:
        run: The run.
        results: Its results.

    Returns:
        The results of each part, in the order of `EvaluatedPart.rank`.
    """
    groups: dict[EvaluatedPart, list[Result]] = {}
    for row in results:
        groups.setdefault(EvaluatedPart.of(row), []).append(row)
    if len(groups) < 2:
        return groups
    kept = weights_of(run)
    return dict(sorted(groups.items(), key=lambda item: item[0].rank(kept)))


def first_results(run: Run) -> dict[str, Result]:
    """Return the results of the first part, by name, of each that with the most draws.

    Args:
        run: The run.

    Returns:
        Results by name; empty before an evaluation.
    """
    parts = by_part(run, run.results())
    return by_name(next(iter(parts.values()))) if parts else {}


@dataclass(frozen=True)
class Places:
    """Where the files of a part are.

    Attributes:
        tree: The DataTree.
        figures: The folder of the figures.
        moves: New names of the files of another part, which makes room for this one.
    """

    tree: Path
    figures: Path
    moves: Mapping[Path, Path]


def places(run: Run, part: EvaluatedPart, first: EvaluatedPart | None, own: set[Path]) -> Places:
    """Return where the files of a part are to be.

    evaluation.nc and figures/ hold the first of all parts, whatever the order in which they were
    evaluated; those of the others are in evaluations/ and in folders of figures/.

    Args:
        run: The run.
        part: The part.
        first: The part of the present evaluation.nc; None if there is none.
        own: The pictures of that part in figures/.

    Returns:
        The places, and what has to be moved.
    """
    tree, figures = run.path / "evaluation.nc", run.path / "figures"
    other = run.path / "evaluations" / f"{part.folder}.nc"
    kept = weights_of(run)
    if first == part or (first is None and not other.exists()):
        return Places(tree, figures, {})
    if first is None or other.exists() or first.rank(kept) < part.rank(kept):
        return Places(other, figures / part.folder, {})
    moves = {file: figures / first.folder / file.name for file in own}
    moved = run.path / "evaluations" / f"{first.folder}.nc"
    tables = {beside(tree, first, name): beside(moved, first, name) for name in TABLES}
    moves |= {old: new for old, new in tables.items() if old.exists()}
    return Places(tree, figures, {**moves, tree: moved})


def beside(tree: Path, part: EvaluatedPart, name: str) -> Path:
    """Return the path of a table beside the DataTree of a part.

    Args:
        tree: The DataTree.
        part: The part.
        name: The name of the table.

    Returns:
        The path of a .csv.
    """
    stem = name if tree.name == "evaluation.nc" else f"{part.folder}-{name}"
    return tree.with_name(f"{stem}.csv")
