"""Data larger than memory, read once: their fingerprint, what would be refused, the rows that are held out."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyroae.data.image_folders import Images
from pyroae.data.preprocessing import check_finite, check_layout, check_spread, converted, share_of
from pyroae.data.sources import DATASETS
from pyroae.data.storage import IN_MEMORY, Stored, StoredArray, StoredImages
from pyroae.errors import DataError
from pyroae.runtime.progress import Progress

HELD_OUT = 64 * 2**20
"""Bytes in single precision of the validation data, and of the test data, at most: they are kept in memory."""


HEAD = 4 * 2**20
"""Bytes in single precision of the rows that are kept to look at."""


def stored_of(source: Any) -> Stored | None:
    """What lies on disk under that path where it is too large for memory. Raises DataError where it cannot be read."""
    path = Path(source) if isinstance(source, str | Path) and source not in DATASETS else None
    if path is None or not path.exists():
        return None
    try:
        stored = _opened(path)
    except DataError:
        raise
    except Exception:  # what is wrong with it is said by those who read it whole
        return None
    return stored if stored is not None and len(stored) * stored.features * 4 > IN_MEMORY else None


def _opened(path: Path) -> Stored | None:
    if path.is_dir():
        return StoredImages(Images.of(path))
    if path.suffix == ".npy":
        return StoredArray(path)
    if path.suffix == ".parquet":
        from pyroae.data.parquet import StoredTable

        return StoredTable(path)
    return None


@dataclass(frozen=True, eq=False)
class Scan:
    """What one reading found. fingerprint: that of the same values in memory. mean: `[d]`, of the values as they are stored.

    head: the first rows that were not asked for. extremes: `[E, d]`, rows with the least value, the largest, and one that is
    neither, where there are such. held: the rows that were asked for, and their labels where known.
    """

    fingerprint: str
    mean: np.ndarray
    low: float
    high: float
    head: np.ndarray
    extremes: np.ndarray
    held: np.ndarray
    labels: np.ndarray | None


def scan(stored: Stored, held: np.ndarray) -> Scan:
    """Read everything once. held: `[H]`, rows to be kept, in ascending order.

    Raises DataError for values that are not finite, naming the place, or are all the same.
    """
    check_layout(stored.name, stored.dtype, stored.shape)
    digest = hashlib.sha256(f"{stored.dtype.str}{stored.shape}".encode())
    dtype, found, total = torch.get_default_dtype(), _Extremes(), np.zeros(stored.features)
    kept, labels, head = np.empty((len(held), stored.features), stored.dtype), [], []
    wanted = HEAD // (4 * stored.features) + 1
    with (
        stored.opened(labels=True) as reader,
        Progress(f"reading {stored.name}", len(stored)) as bar,
    ):
        for number, (first, stop) in enumerate(
            zip(stored.bounds[:-1].tolist(), stored.bounds[1:].tolist(), strict=True)
        ):
            rows = reader.read(number)
            flat = np.ascontiguousarray(rows.values).reshape(stop - first, -1)
            digest.update(flat.reshape(-1).view(np.uint8))
            values = converted(flat, dtype)
            check_finite(flat, values, stored.name, first)
            found.look(values, flat)
            total += values.sum(0, dtype=np.float64)
            begin, end = np.searchsorted(held, (first, stop))
            here = held[begin:end] - first
            kept[begin:end] = flat[here]
            labels.append(None if rows.labels is None else rows.labels[here])
            if first < wanted:
                head.append(np.delete(flat, here, 0)[: wanted - first])
            bar.update(stop)
    check_spread(stored.name, found.low, found.high, len(stored) * stored.features)
    named = [part for part in labels if part is not None]
    return Scan(
        digest.hexdigest()[:16],
        total / len(stored),
        found.low,
        found.high,
        np.concatenate(head),
        np.stack(found.rows),
        kept,
        np.concatenate(named) if named else None,
    )


class _Extremes:
    """The least and the largest value, one in between, and the rows that they are in."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self._rows: dict[str, np.ndarray] = {}

    @property
    def rows(self) -> list[np.ndarray]:
        return list(self._rows.values())

    def look(self, values: np.ndarray, stored: np.ndarray) -> None:
        for name, at, sign in (("low", values.argmin(), 1), ("high", values.argmax(), -1)):
            value = values.flat[at]
            last = getattr(self, name)
            if sign * value < sign * last:
                if self.low < last < self.high:  # what was an end before is now in between
                    self._rows.setdefault("between", self._rows[name])
                setattr(self, name, float(value))
                self._rows[name] = stored[at // values.shape[1]].copy()
        if "between" not in self._rows:
            grey = np.flatnonzero((values > self.low) & (values < self.high))
            if len(grey):
                self._rows["between"] = stored[grey[0] // values.shape[1]].copy()


def held_out(
    num_data: int, features: int, test: float, valid: float, bits: np.random.PCG64
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of test and validation data, in ascending order: as many as their shares are, and as fit `HELD_OUT`."""
    most = max(1, HELD_OUT // (4 * features))
    num_test = min(share_of("test", test, num_data), most)
    num_valid = min(share_of("valid", valid, num_data - num_test), most)
    if num_test + num_valid >= num_data:
        raise DataError(
            f"{num_data} data leave none to train on after {num_valid} for validation and {num_test} for the test"
        )
    drawn = np.zeros(0, np.uint64)
    while len(drawn) < num_test + num_valid:
        drawn = np.append(drawn, bits.random_raw(2 * (num_test + num_valid)) % np.uint64(num_data))
        drawn = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
    rows = drawn[: num_test + num_valid].astype(np.int64)
    return np.sort(rows[:num_test]), np.sort(rows[num_test:])
