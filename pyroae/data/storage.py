"""Files larger than memory, read slice by slice: `.npy` files and folders of images.

A slice is a few consecutive rows, small compared with the buffer in which rows are shuffled. A run
is a sequence of slices that are cheap to read while it is open, such as a row group of `.parquet`.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from pyroae.data.image_folders import Images
from pyroae.errors import DataError
from pyroae.runtime.files import words

IN_MEMORY = 256 * 2**20
"""Bytes in single precision above which a file or a folder is streamed instead of loaded."""


SLICE = 256 * 2**10
"""Bytes of a slice of `.npy`, which is read at once."""


class Rows(NamedTuple):
    """Consecutive rows of a file.

    Attributes:
        values: The values `[n, ...]`, as stored.
        labels: The labels `[n]`; None if the file has none, or they were not requested.
    """

    values: np.ndarray
    labels: np.ndarray | None


class Stored(ABC):
    """N rows on disk.

    Args:
        path: The file or the folder.
        name: The name of the data in messages and reports.
        dtype: The type of the stored values.
        shape: The shape `(N, ...)`.
        bounds: The first row of each slice, and N; `[S + 1]`.
        runs: The number of slices of each run, `[R]`; by default each slice is a run.

    Attributes:
        max_open_runs: The number of runs that may be open at once.
        row_bytes: The size of a row in bytes.
    """

    max_open_runs = 1

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
        self.row_bytes = max(1, self.features * dtype.itemsize)
        self._stamp = _stamp(path) if path.exists() else None  # of a matrix in memory

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def features(self) -> int:
        """The number of values of a row, d."""
        return int(np.prod(self.shape[1:], dtype=np.int64))

    def limits_for(self, largest: float) -> tuple[float, float] | None:
        """Return the values that are mapped to 0 and 1 unless the user gives others.

        Args:
            largest: The largest value.

        Returns:
            The values; None for the rule of `limits_of`.
        """
        return None

    @abstractmethod
    def reader(self, labels: bool) -> "Reader":
        """Open the file for reading.

        Args:
            labels: Whether to read labels too.

        Returns:
            A new reader.
        """

    def opened(self, *, labels: bool = False) -> "Reader":
        """Open the file for reading, if it has not changed.

        Args:
            labels: Whether to read labels too.

        Returns:
            A new reader, which is a context manager.

        Raises:
            DataError: If the file is missing, has changed or cannot be read.
        """
        self.refuse_changed()
        try:
            return self.reader(labels)
        except Exception as error:  # a reader may raise anything on a damaged file
            raise DataError(f"cannot read '{self.path}': {words(error)}") from None

    def refuse_changed(self) -> None:
        """Check that the file has the size and the modification time that it had at first.

        Raises:
            DataError: If the file is missing or has changed.
        """
        try:
            changed = _stamp(self.path) != self._stamp
        except OSError as error:
            raise DataError(f"'{self.path}' is missing: {error.strerror or error}") from None
        if changed:
            raise DataError(
                f"'{self.path}' has changed since its values were first read: start again"
            )


class Reader(ABC):
    """An open file from which slices are read; a context manager, which closes it.

    Args:
        stored: The file.
        labels: Whether to read labels too.
    """

    def __init__(self, stored: Stored, labels: bool) -> None:
        self.stored, self.labels = stored, labels

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def read(self, number: int) -> Rows:
        """Read a slice.

        Args:
            number: The number of the slice.

        Returns:
            The values `[n, ...]` and labels of its rows.

        Raises:
            DataError: If the file has changed or cannot be read.
        """
        first, stop = self.stored.bounds[number : number + 2].tolist()
        try:
            rows = self.rows(number, first, stop)
        except DataError:
            raise
        except Exception as error:  # a reader may raise anything on a damaged file
            raise DataError(
                f"cannot read rows {first} to {stop} of '{self.stored.path}': {words(error)}"
            ) from None
        self.stored.refuse_changed()
        return rows

    @abstractmethod
    def rows(self, number: int, first: int, stop: int) -> Rows:
        """Read a slice without checks; `read` calls this method.

        Args:
            number: The number of the slice.
            first: The number of its first row.
            stop: The number of the row after its last.

        Returns:
            The values `[stop - first, ...]` and labels of its rows.
        """

    def close(self) -> None:  # a reader may have nothing to close  # noqa: B027
        """Close the file."""


class StoredArray(Stored):
    """A `.npy` file in C or Fortran order.

    The file is mapped into memory only to read its header. Rows are read by position, because the
    process is killed if a mapped file is truncated.

    Args:
        path: The file.

    Raises:
        DataError: If the file is an archive of arrays.
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
        """Open the file for reading; it has no labels."""
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
        """Read values from a position, in bytes after the header."""
        self.file.seek(self.stored.offset + start)
        buffer = memoryview(values.reshape(-1).view(np.uint8))
        while buffer:
            count = self.file.readinto(buffer)
            if not count:
                raise DataError(
                    f"'{self.stored.path}' ended before its last row: "
                    "it was truncated after it was first read"
                )
            buffer = buffer[count:]

    def close(self) -> None:
        self.file.close()


class StoredImages(Stored):
    """A folder of images, each of which is a slice.

    Args:
        images: The images.
    """

    def __init__(self, images: Images) -> None:
        self.images = images
        shape = (len(images), *images.shape)
        super().__init__(images.path, images.name, images.dtype, shape, _even(len(images), 1))

    def limits_for(self, largest: float) -> tuple[float, float] | None:
        """Return black and white of the images."""
        return self.images.limits_for(largest)

    def reader(self, labels: bool) -> Reader:
        """Make a reader of images, and of the names of their folders as labels."""
        return _ImageReader(self, labels)

    def refuse_changed(self) -> None:
        """Accept the folder; an image that is missing or has another size is refused when read."""


class _ImageReader(Reader):
    stored: StoredImages

    def rows(self, number: int, first: int, stop: int) -> Rows:
        images = self.stored.images
        labels = images.labels if self.labels else None
        return Rows(images.read(first, stop), None if labels is None else labels[first:stop])


def _even(rows: int, size: int) -> np.ndarray:
    """The first row of each slice of `size` rows, and the end of the last."""
    return np.append(np.arange(0, rows, size), rows)


def _stamp(path: Path) -> tuple[int, int]:
    """The size and the modification time of a file, which detect changes without reading it."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns
