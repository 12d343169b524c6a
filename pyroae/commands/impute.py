"""The command `impute`: the missing values of a table, filled."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyroae.autoencoder import Autoencoder
from pyroae.config.checks import at_least_one
from pyroae.data.arrays import Source
from pyroae.data.conditions import Conditioning
from pyroae.data.dataset import Dataset, source_limits
from pyroae.data.sources import read
from pyroae.errors import ConfigError, DataError
from pyroae.evaluation.imputation import Imputation
from pyroae.evaluation.imputation import impute as impute_missing
from pyroae.programs.pair import like_parameters
from pyroae.runs.data_of_run import standardization_of, value_range_of, whole_of
from pyroae.runs.loading import own_parameters, trained
from pyroae.runs.run import Run, refuse_data_file
from pyroae.runtime.files import guarded
from pyroae.runtime.processes import say

SUFFIXES = (".csv", ".parquet", ".npz")
"""The kinds of files that are written."""


@own_parameters()
def impute(
    run_directory: str,
    data: str,
    out: str,
    num_particles: int,
    num_imputations: int,
    seed: int,
    checkpoint: str | None,
) -> None:
    """Write data with their missing values filled, in the units of the file.

    A table has a row per datum; with multiple imputations it is repeated below, and the column
    `imputation` counts them from 1, the means having 0. Values that are not missing stay as the
    source has them. A .npz file holds `x`, `se`, `low`, `high`,
    `draws`, `is_missing` and `ess` of `Imputation`.

    Args:
        run_directory: The run of a system that was trained with `--missing`.
        data: A name or a file.
        out: A .csv, .parquet or .npz file.
        num_particles: K, draws of z per datum.
        num_imputations: M, the number of multiple imputations.
        seed: The seed of the draws.
        checkpoint: The weights; None for those that the training kept.

    Raises:
        PyroaeError: For a run without missing values, data that cannot be read, and a file that
            cannot be written.
    """
    path = Path(out)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"'{out}' is not of a kind that is written: {', '.join(SUFFIXES)} are")
    at_least_one("num_particles", num_particles)
    run = Run(run_directory)
    for one in (data, run.config.data):
        refuse_data_file(path, one)
    if run.config.program is not None or not run.config.missing:
        raise ConfigError(
            f"the run '{run.path}' was not trained for missing values: train a system with "
            "--missing"
        )
    dataset = whole_of(run, data)
    system = trained(run, checkpoint, dataset)
    assert isinstance(system, Autoencoder)
    found = impute_missing(
        system,
        like_parameters(system, dataset.tensors),
        num_particles=num_particles,
        num_imputations=num_imputations,
        seed=seed,
        progress=True,
    )
    _write(path, found, dataset, run, data)
    count, bad = int(found.is_missing.sum()), len(found.unreliable)
    say(f"{count} values of {len(dataset)} data filled: {path}")
    if bad:
        say(
            f"warning: {bad} data have fewer than 10 effective draws; give more --num-particles, "
            "or do not use their imputation"
        )


def _write(path: Path, found: Imputation, dataset: Dataset, run: Run, data: str) -> None:
    """Write the imputation in the units of the source."""
    config = run.config
    source = read(data, config.data_root, labels=config.labels, array=config.array)
    low, unit = _units(source, run)
    names, is_missing = _names(source.columns, run, found.x.shape[1]), found.is_missing.numpy()
    stored = _stored(source, names)
    arrays = {
        name: np.where(is_missing, low + unit * getattr(found, name).numpy(), stored)
        for name in ("x", "low", "high", "draws")
    }
    others = {"is_missing": is_missing, "ess": found.ess.numpy()}
    if path.suffix == ".npz":
        arrays |= {"se": unit * found.se.numpy(), **others}
        guarded(path, lambda file: file.write_bytes(_archive(arrays)))
        return
    table = _table(arrays["x"], names, dataset, config.labels or "label")
    tables = [table] + [
        table.assign(**dict(zip(table.columns[: draw.shape[1]], draw.T, strict=True)))
        for draw in arrays["draws"]
    ]
    if len(tables) > 1:
        tables = [one.assign(imputation=number) for number, one in enumerate(tables)]
    whole = pd.concat(tables, ignore_index=True)
    if path.suffix == ".csv":
        guarded(path, lambda file: whole.to_csv(file, index=False))
    else:
        content = whole.to_parquet(index=False)
        guarded(path, lambda file: file.write_bytes(content))


def _units(source: Source, run: Run) -> tuple[Any, Any]:
    """What a value of 0 is in the source, and the size of 1: numbers, or arrays `[d]`."""
    if (by := standardization_of(run)) is not None:
        return by.mean.numpy(), by.deviation.numpy()
    low, high = source_limits(source, value_range_of(run.config)) or (0.0, 1.0)
    return low, high - low


def _archive(arrays: dict[str, np.ndarray]) -> bytes:
    """The content of an .npz, in memory: an archive that is cut off complains when it is closed."""
    memory = io.BytesIO()
    np.savez(memory, **arrays)  # type: ignore[arg-type]
    return memory.getvalue()


def _names(columns: tuple[str, ...], run: Run, count: int) -> list[str]:
    """The names of the features, without those of the condition."""
    given = () if run.config.condition is None else Conditioning.named(run.config.condition).columns
    names = [name for name in columns if name not in given]
    if columns and len(names) != count:
        raise DataError(f"the table has {len(names)} columns of features, the run {count}")
    return names or [f"x{i}" for i in range(count)]


def _stored(source: Source, names: list[str]) -> np.ndarray:
    """The values of the features as the source has them, `[N, d]`."""
    values = source.values.reshape(len(source.values), -1)
    return values[:, [source.columns.index(name) for name in names]] if source.columns else values


def _table(x: np.ndarray, names: list[str], dataset: Dataset, label: str) -> pd.DataFrame:
    table = pd.DataFrame(x, columns=names)
    return table if dataset.labels is None else table.assign(**{label: dataset.labels})
