"""Data on disk that are larger than memory: `.npy`, `.parquet` and folders of images, read slice by slice.

A slice is some consecutive rows, small beside the buffer in which data are shuffled. A run is the slices that are cheap to
read while it is open, such as those of one row group of `.parquet`.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from pyroae.data.image_folders import Images
from pyroae.data.sources import words
from pyroae.errors import DataError

IN_MEMORY = 256 * 2**20
"""Bytes: a file or folder whose values take more in single precision is streamed."""


SLICE = 256 * 2**10
"""Bytes of a slice of `.npy`: so many are read at once from one place."""


class Rows(NamedTuple):
    """Values `[n, ...]` of consecutive rows as they are stored, and their labels where known."""

    values: np.ndarray
    labels: np.ndarray | None


class Stored(ABC):
    """N rows on disk. shape: (N, ...); bounds: `[S + 1]`, the first row of each slice; runs: `[R]`, slices of each run.

    lanes: so many runs may be open at once.
    """

    lanes = 1

    def __init__(
        self,
        path: Path,
        name: str,
        dtype: np.dtype,
        shape: tuple[int, ...],
        bounds: np.ndarray,
        runs: np.ndarray | None = None,
    ) -> None:
        self.path, self.name, self.dtype, self.shape, self.bounds = path, name, dtype, shape, bounds
        self.runs = np.ones(len(bounds) - 1, np.int64) if runs is None else runs
        self.row_bytes = max(1, int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize)
        self._mark = _mark(path)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def features(self) -> int:
        """Values of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64))

    @abstractmethod
    def reader(self, labels: bool) -> "Reader":
        """A reader of one's own, of labels too where that is asked for."""

    def opened(self, *, labels: bool = False) -> "Reader":
        """A reader of the file that was found first. Raises DataError where it is gone, has changed or cannot be read."""
        self.refuse_changed()
        try:
            return self.reader(labels)
        except Exception as error:  # whatever a damaged file makes its reader raise
            raise DataError(f"cannot read '{self.path}': {words(error)}") from None

    def refuse_changed(self) -> None:
        """Raises DataError where the file is not the one that was found first."""
        try:
            changed = _mark(self.path) != self._mark
        except OSError as error:
            raise DataError(f"'{self.path}' is gone: {error.strerror or error}") from None
        if changed:
            raise DataError(
                f"'{self.path}' has changed since its values were first read: start again"
            )


class Reader(ABC):
    """What is open while slices are read; a context, left with nothing open."""

    def __init__(self, stored: Stored, labels: bool) -> None:
        self.stored, self.labels = stored, labels

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def read(self, number: int) -> Rows:
        """A slice. Raises DataError, in one sentence, where it cannot be read."""
        first, stop = self.stored.bounds[number : number + 2].tolist()
        try:
            rows = self.rows(number, first, stop)
        except DataError:
            raise
        except Exception as error:  # whatever a damaged file makes its reader raise
            raise DataError(
                f"cannot read rows {first} to {stop} of '{self.stored.path}': {words(error)}"
            ) from None
        self.stored.refuse_changed()
        return rows

    @abstractmethod
    def rows(self, number: int, first: int, stop: int) -> Rows:
        """The rows of a slice, from `first` on."""

    def close(self) -> None:  # not every reader has something open  # noqa: B027
        """Close what is open."""


class StoredArray(Stored):
    """A `.npy` file in C or Fortran order.

    It is mapped into memory to learn what it holds, and then read by position: a mapped file that is cut ends the process.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                raise DataError(f"'{path}' is an archive of arrays: name it .npz")
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        self.offset, self.is_fortran = mapped.offset, mapped.flags.fnc and mapped.ndim > 1
        rows = mapped.shape[0] if mapped.ndim else 0
        size = max(1, SLICE * rows // max(1, mapped.nbytes))
        super().__init__(path, path.stem, mapped.dtype, mapped.shape, _even(rows, size))

    def reader(self, labels: bool) -> Reader:
        return _ArrayReader(self, labels)


class _ArrayReader(Reader):
    stored: StoredArray

    def __init__(self, stored: StoredArray, labels: bool) -> None:
        super().__init__(stored, labels)
        self.file = stored.path.open("rb", buffering=0)

    def rows(self, number: int, first: int, stop: int) -> Rows:
        stored = self.stored
        if not stored.is_fortran:
            values = np.empty((stop - first, *stored.shape[1:]), stored.dtype)
            self._fill(values, first * stored.row_bytes)
            return Rows(values, None)
        columns = np.empty((*stored.shape[:0:-1], stop - first), stored.dtype)
        for place, column in enumerate(columns.reshape(-1, stop - first)):
            self._fill(column, (place * len(stored) + first) * stored.dtype.itemsize)
        return Rows(np.ascontiguousarray(columns.T), None)

    def _fill(self, values: np.ndarray, start: int) -> None:
        self.file.seek(self.stored.offset + start)
        left = memoryview(values.reshape(-1).view(np.uint8))
        while left:
            count = self.file.readinto(left)
            if not count:
                raise DataError(
                    f"'{self.stored.path}' ended before its last row: it was cut after it was first read"
                )
            left = left[count:]

    def close(self) -> None:  # not every reader has something open
        self.file.close()


class StoredImages(Stored):
    """A folder of images, each a slice."""

    def __init__(self, images: Images) -> None:
        self.images = images
        shape = (len(images), *images.shape)
        super().__init__(images.path, images.name, np.dtype(np.uint8), shape, _even(len(images), 1))

    def reader(self, labels: bool) -> Reader:
        return _ImageReader(self, labels)

    def refuse_changed(self) -> None:
        """An image that is gone or of another size is refused when it is read."""


class _ImageReader(Reader):
    stored: StoredImages

    def rows(self, number: int, first: int, stop: int) -> Rows:
        labels = self.stored.images.labels
        known = labels[first:stop] if self.labels and labels is not None else None
        return Rows(self.stored.images.read(first, stop), known)


def _even(rows: int, size: int) -> np.ndarray:
    """The first row of each slice of `size` rows, and the end of the last."""
    return np.append(np.arange(0, rows, size), rows)


def _mark(path: Path) -> tuple[int, int]:
    """What tells that a file was changed, short of reading it."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns
