"""Read data larger than memory once: fingerprint, checks, statistics and held-out rows."""

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyroae.data.archives import refuse_label
from pyroae.data.image_folders import Images
from pyroae.data.named_datasets import DATASETS
from pyroae.data.preprocessing import (
    check_finite,
    check_layout,
    check_spread,
    held_out_count,
    to_floating,
)
from pyroae.data.storage import IN_MEMORY, Rows, Stored, StoredArray, StoredImages
from pyroae.errors import DataError
from pyroae.runtime.progress import Progress

HELD_OUT = 64 * 2**20
"""Bytes in single precision that the validation data, and the test data, take at most in memory."""


HEAD = 4 * 2**20
"""Bytes in single precision of the first training rows, which serve as a sample in memory."""


def stored_source(source: Any, *, grey: bool = False, label: str | None = None) -> Stored | None:
    """Open a file or a folder that is larger than memory.

    Args:
        source: Any source that `load` accepts.
        grey: Whether images are converted to grey, which only folders of images can be.
        label: The column of a table that holds the labels, as in `read`.

    Returns:
        The stored rows, if `source` is the path of a `.npy` or `.parquet` file or of a folder of
        images with values of more than `IN_MEMORY` bytes in single precision; else None.

    Raises:
        DataError: If the file or the folder is refused.
    """
    path = Path(source) if isinstance(source, str | Path) and source not in DATASETS else None
    if path is None or not path.exists():
        return None
    try:
        stored = _opened(path, grey, label)
    except DataError:
        raise
    except Exception:  # reading the file into memory then fails with a message
        return None
    if stored is None or len(stored) * stored.features * 4 <= IN_MEMORY:
        return None
    if grey and not isinstance(stored, StoredImages) and len(stored.shape) != 3:
        raise DataError(
            f"'{path}' is larger than memory: only folders of images are converted to grey while "
            "they are read; store the file in grey"
        )
    return stored


def _opened(path: Path, grey: bool, label: str | None) -> Stored | None:
    if path.is_dir():
        return StoredImages(Images.of(path, grey=grey))
    if path.suffix == ".npy":
        array = StoredArray(path)
        refuse_label(path, None if array.dtype.names else label)
        return None if array.dtype.names else array  # named fields are a table
    if path.suffix == ".parquet":
        from pyroae.data.parquet import StoredTable

        return StoredTable(path, label)
    return None


@dataclass(frozen=True, eq=False)
class Scan:
    """The result of reading all rows of a file once.

    Attributes:
        fingerprint: The fingerprint, equal to that of the same values in memory.
        mean: The mean of each feature, `[d]`, of the values as stored.
        low: The smallest value.
        high: The largest value.
        head: The first training rows, `[n, d]`.
        extremes: Up to three rows `[E, d]`: one with the smallest value, one with the largest and
            one with a value between them.
        held_out: The values of the rows for validation and test, `[H, d]`.
        labels: The labels of these rows, `[H]`, or None.
    """

    fingerprint: str
    mean: np.ndarray
    low: float
    high: float
    head: np.ndarray
    extremes: np.ndarray
    held_out: np.ndarray
    labels: np.ndarray | None


def scan(stored: Stored, held_out: np.ndarray) -> Scan:
    """Read all rows once, check them and collect what training needs in memory.

    Args:
        stored: The file, N rows of d values.
        held_out: The numbers of the rows for validation and test, `[H]`, in ascending order.

    Returns:
        Statistics, fingerprint and held-out rows.

    Raises:
        DataError: If a value is not finite, all values are equal, or the file cannot be read.
    """
    check_layout(stored.name, stored.dtype, stored.shape)
    digest = hashlib.sha256(f"{stored.dtype.str}{stored.shape}".encode())
    extremes, rows, total = _Extremes(), _RowsInMemory(stored, held_out), np.zeros(stored.features)
    with (
        stored.opened(labels=True) as reader,
        Progress(f"reading {stored.name}", len(stored)) as bar,
    ):
        for number, (first, stop) in enumerate(pairwise(stored.bounds.tolist())):
            part = reader.read(number)
            flat = np.ascontiguousarray(part.values).reshape(stop - first, -1)
            digest.update(flat.reshape(-1).view(np.uint8))
            values = to_floating(flat, torch.get_default_dtype())
            check_finite(flat, values, stored.name, first)
            extremes.update(values, flat)
            total += values.sum(0, dtype=np.float64)
            rows.add(first, Rows(flat, part.labels))
            bar.update(stop)
    check_spread(stored.name, extremes.low, extremes.high, len(stored) * stored.features)
    return Scan(
        digest.hexdigest()[:16],
        total / len(stored),
        extremes.low,
        extremes.high,
        np.concatenate(rows.head),
        np.stack(extremes.rows),
        rows.values,
        np.concatenate(rows.labels) if rows.labels else None,
    )


class _RowsInMemory:
    """The held-out rows of a file, and its first training rows."""

    def __init__(self, stored: Stored, held_out: np.ndarray) -> None:
        self.held_out = held_out
        self.values = np.empty((len(held_out), stored.features), stored.dtype)
        self.labels: list[np.ndarray] = []
        self.head: list[np.ndarray] = []
        self._head_rows = HEAD // (4 * stored.features) + 1

    def add(self, first: int, rows: Rows) -> None:
        """Copy the rows from those of a slice, the first of which has the number `first`."""
        begin, end = np.searchsorted(self.held_out, (first, first + len(rows.values)))
        index = self.held_out[begin:end] - first
        self.values[begin:end] = rows.values[index]
        if rows.labels is not None:
            self.labels.append(rows.labels[index])
        if first < self._head_rows:
            self.head.append(np.delete(rows.values, index, 0)[: self._head_rows - first])


class _Extremes:
    """The smallest and the largest value, and rows with these and with a value between them."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self._rows: dict[str, np.ndarray] = {}

    @property
    def rows(self) -> list[np.ndarray]:
        return list(self._rows.values())

    def update(self, values: np.ndarray, stored: np.ndarray) -> None:
        for name, at, sign in (("low", values.argmin(), 1), ("high", values.argmax(), -1)):
            value = values.flat[at]
            last = getattr(self, name)
            if sign * value < sign * last:
                if self.low < last < self.high:  # the former extreme is now between the two
                    self._rows.setdefault("between", self._rows[name])
                setattr(self, name, float(value))
                self._rows[name] = stored[at // values.shape[1]].copy()
        if "between" not in self._rows:
            grey = np.flatnonzero((values > self.low) & (values < self.high))
            if len(grey):
                self._rows["between"] = stored[grey[0] // values.shape[1]].copy()


def held_out_rows(
    num_data: int, features: int, test: float, valid: float, bits: np.random.PCG64
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the rows for test and validation, at most `HELD_OUT` bytes of each.

    Args:
        num_data: The number of data, N.
        features: The number of values of a datum, d.
        test: The fraction of the data for the test.
        valid: The fraction of the other data for validation.
        bits: The source of random bits.

    Returns:
        The row numbers of the test data and of the validation data, each in ascending order.

    Raises:
        DataError: If no row is left for training.
        ConfigError: If a fraction is outside [0, 1).
    """
    most = max(1, HELD_OUT // (4 * features))
    num_test = min(held_out_count("test", test, num_data), most)
    num_valid = min(held_out_count("valid", valid, num_data - num_test), most)
    check_train_part(num_data, num_valid, num_test)
    count = num_test + num_valid
    rows = np.zeros(0, np.uint64)
    while len(rows) < count:
        rows = np.append(rows, bits.random_raw(2 * count) % np.uint64(num_data))
        rows = rows[np.sort(np.unique(rows, return_index=True)[1])]
    rows = rows[:count].astype(np.int64)
    return np.sort(rows[:num_test]), np.sort(rows[num_test:])


def check_train_part(num_data: int, num_valid: int, num_test: int) -> None:
    """Check that some data are left for training.

    Args:
        num_data: The number of data.
        num_valid: The number of validation data.
        num_test: The number of test data.

    Raises:
        DataError: If validation and test take all data.
    """
    if num_valid + num_test >= num_data:
        raise DataError(
            f"{num_data} data leave none to train on after {num_valid} for validation "
            f"and {num_test} for the test"
        )
