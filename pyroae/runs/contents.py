"""The contents of the files of a run directory."""

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from pyroae._version import __version__
from pyroae.config import RunConfig
from pyroae.data.loading import Splits
from pyroae.evaluation.results import Result
from pyroae.runtime.files import guarded

STATE = "state of a training"
"""The kind of the files that hold a state, for `read_tensors`."""


FILES = (
    "config.yaml",
    "metrics.csv",
    "logs",
    "checkpoints",
    "results.json",
    "evaluation.nc",
    "evaluations",
    "evaluation.yaml",
    "annealing",
    "along_training.csv",
    "gradients_along_training.csv",
    "calibration.json",
    "calibration.nc",
    "calibration_importance.json",
    "calibration_importance.nc",
    "figures",
    "report.html",
)
"""The names of the files and folders of a run, which overwriting removes."""


PARTS = ("train", "valid", "test")
"""The parts of the data."""


def write_config(path: Path, config: RunConfig, splits: Splits) -> None:
    """Write config.yaml: the settings, and a record of the data and the versions.

    Args:
        path: The run directory.
        config: The settings.
        splits: The data, of which the fingerprint, the shape of a datum, the sizes and the names
            of the condition and of columns are recorded.

    Raises:
        RunError: If the file cannot be written.
    """
    record = {
        "fingerprint": splits.fingerprint,
        "shape": list(splits.train.shape),
        "sizes": {n: len(p) for n in PARTS if (p := getattr(splits, n)) is not None},
        "condition_names": list(getattr(splits.train, "condition_names", ())),
        **_table_of(splits.train),
        "versions": versions(),
    }
    text = yaml.safe_dump({**config.to_dict(), **record}, sort_keys=False)
    guarded(path / "config.yaml", lambda file: file.write_text(text))


def _table_of(train: Any) -> dict[str, Any]:
    """Names of columns and categories of a table, in whose order other data are read."""
    columns, categories = (getattr(train, name, ()) for name in ("columns", "categories"))
    table: dict[str, Any] = {"columns": list(map(str, columns))} if columns else {}
    if categories:
        table["categories"] = {str(name): list(levels) for name, levels in categories.items()}
    return table


def versions() -> dict[str, str]:
    """Return the versions of the software on which results depend.

    Returns:
        The versions of Python, pyroae and the libraries that it computes with, by name.

    >>> list(versions())
    ['python', 'pyroae', 'torch', 'pyro-ppl', 'lightning-fabric', 'numpy', 'arviz']
    """
    return {"python": platform.python_version(), "pyroae": __version__, **_of_libraries()}


@cache
def _of_libraries() -> dict[str, str]:
    """The versions of the libraries, whose files are read once."""
    names = ("torch", "pyro-ppl", "lightning-fabric", "numpy", "arviz")
    return {name: version(name) for name in names}


def results_text(results: Sequence[Result]) -> str:
    """Convert results to the text of results.json.

    Args:
        results: The results, in nats per datum unless their name says otherwise.

    Returns:
        A JSON list of objects with the fields of `Result`, with null for NaN.
    """
    rows = [
        {
            k: None if isinstance(v, float) and math.isnan(v) else v
            for k, v in asdict(result).items()
        }
        for result in results
    ]
    return json.dumps(rows, indent=2) + "\n"


def results_from(text: str) -> list[Result]:
    """Restore results from the text of results.json.

    Args:
        text: The text that `results_text` returned.

    Returns:
        The results, with NaN for null.

    >>> results_from(results_text([Result("nll", 1.5, math.nan, 10, 5, 0.1, "is")]))
    [Result(nll 1.5, N=10, K=5, is)]
    """
    rows: list[dict[str, Any]] = [
        {k: math.nan if v is None else v for k, v in row.items()} for row in json.loads(text)
    ]
    return [Result(**row) for row in rows]
