"""The command `data`: how data would be read, scaled, split and modelled, without training."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from pyroae import zoo
from pyroae.commands.data_facts import column_names, labels_text, table_of, warnings_of
from pyroae.config import RunConfig, recorded
from pyroae.data.arrays import Source
from pyroae.data.dataset import source_limits
from pyroae.data.kinds import columns_of_values
from pyroae.data.loading import Splits
from pyroae.errors import ConfigError
from pyroae.runs.data_of_run import binarization_of, splits_of, value_range_of
from pyroae.runs.default_likelihood import completed, raw_source

SUFFIXES = (".png", ".pdf", ".svg")
"""Formats of the picture."""


def data(source: str, settings: Mapping[str, Any], out: str | None) -> None:
    """Print how data would be read: columns, labels, parts, scaling, likelihood and warnings.

    Args:
        source: A name or a path, as `--data` of `train` takes it.
        settings: Settings of a RunConfig that are about the data.
        out: A picture of the first data to write; None for none.

    Raises:
        DataError: If the data would be refused.
        ConfigError: For a picture of an unknown format.
    """
    if out is not None and Path(out).suffix not in SUFFIXES:
        raise ConfigError(f"--out takes a file that ends in {', '.join(SUFFIXES)}, not '{out}'")
    config = RunConfig.from_mapping({**recorded(settings), "data": source})
    raw = raw_source(config)
    num_missing = _num_missing(raw)
    chosen = completed(config.but(missing=config.missing or num_missing > 0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        splits = splits_of(chosen.config)
    columns = columns_of_values(raw.values, raw.columns, raw.categories)
    console = Console()
    console.print(f"{source}: {_title(raw, splits)}", markup=False, highlight=False)
    facts = _facts(raw, splits, chosen.config)
    facts["likelihood"] = _likelihood(chosen.config, chosen.sentence)
    for name, fact in facts.items():
        console.print(f"  {name:<14}{fact}", markup=False, highlight=False, soft_wrap=True)
    console.print(table_of(raw, columns))
    notes = [str(one.message) for one in caught] + list(warnings_of(raw, columns))
    if num_missing and not config.missing:
        notes.insert(0, f"{num_missing} values are missing: train with --missing")
    if splits.train.stream is not None:
        notes.insert(
            0, f"kinds and ranges of columns are those of the first {len(raw.values)} rows"
        )
    for note in notes:
        console.print(f"warning: {note}", markup=False, highlight=False, soft_wrap=True)
    if out is not None:
        _draw(raw, splits, Path(out))
        console.print(out, markup=False, highlight=False, soft_wrap=True)


def _num_missing(raw: Source) -> int:
    parts = [raw] if raw.test is None else [raw, raw.test]
    return sum(int(np.isnan(p.values).sum()) for p in parts if p.values.dtype.kind == "f")


def _title(raw: Source, splits: Splits) -> str:
    """The kind of data, their number and the shape of one."""
    shape = splits.train.shape
    count = sum(len(part) for part in (splits.train, splits.valid, splits.test) if part is not None)
    if raw.columns:
        what = f"a table of {len(raw.columns)} columns"
    elif len(shape) == 1:
        what = f"rows of {shape[0]} values"
    else:
        what = f"arrays of shape {'×'.join(map(str, shape))}"
    return f"{count} data, {what} ({raw.values.dtype})"


def _facts(raw: Source, splits: Splits, config: RunConfig) -> dict[str, str]:
    """What is done to the data, by name."""
    train = splits.train
    parts = {"training": train, "validation": splits.valid, "test": splits.test}
    sizes = [f"{name} {len(part)}" for name, part in parts.items() if part is not None]
    count = sum(len(part) for part in parts.values() if part is not None)
    size = 4 * count * int(np.prod(train.shape)) / 2**20
    where = "in memory" if train.stream is None else "read from disk in slices while training"
    labels = raw.labels if train.stream is None or splits.test is None else splits.test.labels
    test = ", with a test set of its own" if raw.test is not None else ""
    return {
        "labels": labels_text(labels),
        "parts": ", ".join(sizes) + (test or f" (split seed {config.split_seed})"),
        "scaling": _scaling(raw, config),
        "binarization": binarization_of(config),
        "memory": f"{size:.1f} MiB in single precision, {where}",
        "fingerprint": splits.fingerprint,
    }


def _scaling(raw: Source, config: RunConfig) -> str:
    if config.scale == "standard":
        mixed = (config.likelihood or "").startswith("mixed")
        which = " of columns with a location and scale" if mixed else ""
        return f"mean 0 and standard deviation 1{which}, by the training data"
    limits = source_limits(raw, value_range_of(config))
    if limits in (None, (0.0, 1.0)):
        return "as stored"
    low, high = limits or (0.0, 1.0)
    return f"{low:g} to {high:g} becomes 0 to 1"


def _likelihood(config: RunConfig, sentence: str) -> str:
    """The likelihood of `train` with these data, and why."""
    if sentence:
        reason = sentence.removeprefix(f"{config.data} ").partition(":")[0]
        return f"{config.likelihood} (the data set {reason})"
    given = config.likelihood is not None
    name = config.likelihood or type(zoo.likelihood_of(config)).__name__.lower()
    return f"{name} ({'as given' if given else f'the default of {config.system}'})"


def _draw(raw: Source, splits: Splits, path: Path) -> None:
    """Draw the first data, in the units of the file."""
    from pyroae import plots  # matplotlib takes time to import
    from pyroae.plots.data import MOST_POINTS
    from pyroae.plots.drawing import save

    values = raw.values[:MOST_POINTS]
    x = torch.from_numpy(values.reshape(len(values), -1).astype(float))
    names = column_names(raw)
    save(plots.examples(x, splits.train.shape, 60, columns=names, labels=raw.labels), path)
