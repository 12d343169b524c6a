"""Add an evaluation to the files of a run, without losing or mixing what is there."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pyroae.config import read_yaml
from pyroae.errors import RunError
from pyroae.evaluation.results import Result, united
from pyroae.runs.contents import results_text
from pyroae.runs.parts import EvaluatedPart, beside, places
from pyroae.runs.report import pictures_of
from pyroae.runs.run import Run
from pyroae.runs.trees import first_part, merged, read_tree, tree_bytes
from pyroae.runtime.files import remove_temporaries, write_together

if TYPE_CHECKING:
    from xarray import DataTree

EVALUATIONS = "evaluation.yaml"
"""The options of all evaluations, by which `reproduce` repeats them."""


RESULTS = "results.json"
"""The results of all evaluations."""


class PartFiles:
    """The files of one part of the data, with the same weights, in a run directory.

    Args:
        run: The run.
        part: The data and the weights.

    Raises:
        RunError: If the directory cannot be written, or files that are there cannot be read; this
            is found before any work.
    """

    def __init__(self, run: Run, part: EvaluatedPart) -> None:
        self.run, self.part = run, part
        if not os.access(run.path, os.W_OK):
            raise RunError(f"cannot write to '{run.path}': Permission denied")
        run.results()
        evaluations_of(run)
        first = first_part(run.path / "evaluation.nc")
        own = set() if first is None else pictures_of(run.path / "figures", first)
        self.places = places(run, part, first, own)
        for folder in (
            run.path,
            run.path / "figures",
            self.places.figures,
            self.places.tree.parent,
        ):
            remove_temporaries(folder)

    def results(self) -> list[Result]:
        """Read the results of this part.

        Returns:
            The results of all its evaluations.
        """
        return [row for row in self.run.results() if EvaluatedPart.of(row) == self.part]

    def united(self, tree: "DataTree", rows: Sequence[Result]) -> tuple["DataTree", list[Result]]:
        """Unite a new evaluation with those that are there.

        Args:
            tree: The tree of the new evaluation.
            rows: Its results.

        Returns:
            The tree and the results of this part, of all evaluations.
        """
        file = self.places.tree
        old = read_tree(file) if first_part(file) == self.part else None
        return merged(old, tree), united(self.results(), rows)

    def write(
        self,
        rows: Sequence[Result],
        tree: "DataTree",
        pictures: Mapping[str, bytes],
        options: Mapping[str, Any] | None,
    ) -> None:
        """Write the tree, the pictures, results.json and evaluation.yaml: all, or none of them.

        Args:
            rows: The results of this part.
            tree: The DataTree of this part.
            pictures: PNG files by name; others of this part stay.
            options: The options of the evaluation; None for one that is not recorded.

        Raises:
            RunError: If a file cannot be written; all files are then unchanged.
        """
        where = self.places
        results = results_text(united(self.run.results(), rows))
        contents = {
            where.tree: tree_bytes(tree),
            **{where.figures / f"{name}.png": content for name, content in pictures.items()},
            self.run.path / RESULTS: results.encode(),
        }
        if options is not None:
            text = yaml.safe_dump(_added(evaluations_of(self.run), options), sort_keys=False)
            contents[self.run.path / EVALUATIONS] = text.encode()
        write_together(contents, where.moves)

    def table(self, name: str) -> Path:
        """Return the path of a table of this part.

        Args:
            name: Its name, one of `TABLES`.

        Returns:
            The path of a .csv, beside the DataTree.
        """
        return beside(self.places.tree, self.part, name)

    def picture(self, name: str) -> Path:
        """Return the path of a picture of this part.

        Args:
            name: Its name.

        Returns:
            The path of a .png.
        """
        return self.places.figures / f"{name}.png"


def evaluations_of(run: Run) -> list[dict[str, Any]]:
    """Read the options of all evaluations of a run.

    Args:
        run: The run.

    Returns:
        The options of each, in the order of time; pyroae 0.3 kept one.

    Raises:
        RunError: If evaluation.yaml cannot be read.
    """
    file = run.path / EVALUATIONS
    if not file.is_file():
        return []
    read = read_yaml(file)
    return list(read["evaluations"]) if "evaluations" in read else [read]


def _added(before: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> dict[str, Any]:
    """All evaluations; one that differs only in its draws is replaced, as its figures are."""
    others = [dict(one) for one in before if _identity(one) != _identity(options)]
    return {"evaluations": [*others, dict(options)]}


def _identity(options: Mapping[str, Any]) -> str:
    free = ("seed", "compile", "imports")
    return repr(sorted((name, str(value)) for name, value in options.items() if name not in free))
