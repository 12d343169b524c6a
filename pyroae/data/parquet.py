"""`.parquet` files larger than memory.

A row group is unpacked a few columns at a time, and then read slice by slice.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pyroae.data.storage import Reader, Rows, Stored
from pyroae.data.tables import check_numeric, columns_of, common_dtype
from pyroae.errors import DataError

TABLE_SLICE = 4 * 2**20
"""Bytes of a slice, which has at least one row.

A row group of one slice is unpacked in memory, a larger one in a scratch file.
"""


UNPACKED_AT_ONCE = 16 * 2**20
"""Bytes of the pages and dictionaries of the columns that are unpacked together."""


COLUMN_BYTES = 2 * 2**20
"""Bytes that the reader of a column needs at most: a page and a dictionary of 1 MiB each."""


SCRATCH, MAX_OPEN_GROUPS = 4 * 2**30, 8
"""Limits of the row groups open at once: the bytes of their scratch files, and their number."""


class StoredTable(Stored):
    """A `.parquet` file with numeric columns, and optionally a column of labels.

    The reader of a column holds a page and a dictionary in memory; the readers of all columns may
    need more memory than the row group. Therefore a few columns are unpacked at a time: in memory
    if the row group is one slice, else in a scratch file in the folder that TMPDIR names.

    Args:
        path: The file.
        label: The name of the column of labels, as in `columns_of`.

    Attributes:
        names: The names of the columns of features, d of them.
        label: The name of the column of labels, or None.
        groups: The numbers of the row groups that are not empty, `[R]`; each is a run.
        starts: The first row of each of these row groups, `[R]`.
        slice_rows: The number of rows in a slice.

    Raises:
        DataError: If a column is not numeric, or the columns are ambiguous, as in `columns_of`.
    """

    def __init__(self, path: Path, label: str | None = None) -> None:
        with pq.ParquetFile(path) as file:
            self.metadata, schema = file.metadata, file.schema_arrow
        dtype = self._find_columns(path, schema, label)
        groups = range(self.metadata.num_row_groups)
        counts = np.array([self.metadata.row_group(i).num_rows for i in groups], np.int64)
        self.groups = np.flatnonzero(counts)
        rows = counts[self.groups]
        self.starts = np.cumsum(rows) - rows
        row_bytes = max(1, len(self.names) * dtype.itemsize)
        self.slice_rows = max(1, TABLE_SLICE // row_bytes)
        firsts = [
            np.arange(start, start + n, self.slice_rows)
            for start, n in zip(self.starts, rows, strict=True)
        ]
        bounds = np.concatenate([*firsts, [rows.sum()]]).astype(np.int64)
        runs = -(-rows // self.slice_rows)
        super().__init__(path, path.stem, dtype, (int(rows.sum()), len(self.names)), bounds, runs)
        group_bytes = row_bytes * rows.max(initial=1)
        self.max_open_runs = int(np.clip(SCRATCH // group_bytes, 1, MAX_OPEN_GROUPS))

    def _find_columns(self, path: Path, schema: pa.Schema, named: str | None) -> np.dtype:
        """Set the names of the columns; return the common type of the features."""
        frame: pd.DataFrame = schema.empty_table().to_pandas()
        index = (schema.pandas_metadata or {}).get("index_columns", ())
        names = [name for name in schema.names if name not in index]
        places, label = columns_of(f"'{path}'", frame.columns, named)
        values = frame.iloc[:, places]
        check_numeric(f"'{path}'", values)
        self.label = None if label is None else names[label]
        self.names = [names[i] for i in places]
        return common_dtype(values)

    def reader(self, labels: bool) -> Reader:
        """Open the file for reading, and its column of labels if requested."""
        return _TableReader(self, labels)

    def blocks(self, group: int) -> list[slice]:
        """Divide the columns of a row group into blocks that are unpacked together.

        Args:
            group: The number of the row group among those that are not empty.

        Returns:
            Slices of `names`, each of about `UNPACKED_AT_ONCE` bytes at most.
        """
        metadata, size, begin = self.metadata.row_group(int(self.groups[group])), 0, 0
        blocks = []
        columns = [metadata.column(i) for i in range(metadata.num_columns)]
        sizes = {column.path_in_schema: column.total_uncompressed_size for column in columns}
        for number, name in enumerate(self.names):
            more = min(sizes.get(name, COLUMN_BYTES), COLUMN_BYTES)
            if size and size + more > UNPACKED_AT_ONCE:
                blocks.append(slice(begin, number))
                begin, size = number, 0
            size += more
        return [*blocks, slice(begin, len(self.names))]


class _TableReader(Reader):
    stored: StoredTable

    def __init__(self, stored: StoredTable, labels: bool) -> None:
        super().__init__(stored, labels)
        self.file = pq.ParquetFile(
            stored.path, metadata=stored.metadata, pre_buffer=False, buffer_size=2**16
        )
        self.first_slices = np.cumsum(stored.runs) - stored.runs
        self.open: dict[int, _Group] = {}

    def rows(self, number: int, first: int, stop: int) -> Rows:
        run = int(np.searchsorted(self.first_slices, number, side="right")) - 1
        group = self.open.get(run)
        if group is None:
            group = self.open[run] = _Group(self.stored, self.file, run)
        start = int(self.stored.starts[run])
        values = group.read(first - start, stop - start)
        labels = group.labels(first - start, stop - start) if self.labels else None
        if number == self.first_slices[run] + self.stored.runs[run] - 1:
            self.open.pop(run).close()
        return Rows(values, labels)

    def close(self) -> None:
        for group in self.open.values():
            group.close()
        self.open.clear()
        self.file.close()


class _Group:
    """The unpacked values of a row group `[n, d]`, in memory or in a scratch file."""

    def __init__(self, stored: StoredTable, file: pq.ParquetFile, number: int) -> None:
        self.stored, self.file, self.number = stored, file, int(stored.groups[number])
        count = stored.metadata.row_group(self.number).num_rows
        self._labels: np.ndarray | None = None
        self._scratch: Any = None
        shape = (count, len(stored.names))
        self.values: Any = None
        try:
            self.values = (
                np.empty(shape, stored.dtype) if stored.runs[number] == 1 else self._mapped(shape)
            )
            for block in stored.blocks(number):
                self._unpack(block, int(stored.starts[number]))
        except BaseException:
            self.close()
            raise

    def read(self, first: int, stop: int) -> np.ndarray:
        """A copy of some rows."""
        return np.array(self.values[first:stop])

    def labels(self, first: int, stop: int) -> np.ndarray | None:
        """The labels of some rows, or None if the file has no labels."""
        if self.stored.label is None:
            return None
        if self._labels is None:
            column = self.file.read_row_group(
                self.number, columns=[self.stored.label], use_threads=False
            )
            self._labels = column.column(0).to_pandas().to_numpy()
        return self._labels[first:stop]

    def close(self) -> None:
        """Release the memory or the scratch file."""
        self.values = None
        if self._scratch is not None:
            self._scratch.close()

    def _mapped(self, shape: tuple[int, int]) -> np.ndarray:
        """An array in a scratch file whose space is reserved; DataError if the disk is full."""
        size = shape[0] * shape[1] * self.stored.dtype.itemsize
        self._scratch = tempfile.TemporaryFile()  # `close` closes it  # noqa: SIM115
        try:
            _reserve(self._scratch, size)
        except OSError as error:
            folder = tempfile.gettempdir()
            raise DataError(
                f"a row group of '{self.stored.path}' needs {size / 2**20:.0f} MiB in '{folder}' "
                f"to be read in slices: {error.strerror}; set TMPDIR to another folder"
            ) from None
        return np.memmap(self._scratch, self.stored.dtype, "r+", shape=shape)

    def _unpack(self, block: slice, start: int) -> None:
        """Read a block of columns; `start` is the number of the first row in the file."""
        names, at = self.stored.names[block], 0
        for batch in self.file.iter_batches(
            self.stored.slice_rows,
            row_groups=[self.number],
            columns=names,
            use_threads=False,
            use_pandas_metadata=False,
        ):
            columns = [
                _numbers(batch.column(i), name, self.stored, start + at)
                for i, name in enumerate(names)
            ]
            self.values[at : at + batch.num_rows, block] = np.stack(columns, 1)
            at += batch.num_rows


def _reserve(file: Any, size: int) -> None:
    """Reserve disk space, so that later writes cannot fail; OSError if there is not enough."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for at in range(0, size, TABLE_SLICE):
        file.write(bytes(min(TABLE_SLICE, size - at)))
    file.flush()


def _numbers(column: pa.Array, name: str, stored: StoredTable, first: int) -> np.ndarray:
    """The values of a column `[n]`; DataError with the place of a missing one."""
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        place = stored.names.index(name)
        raise DataError(
            f"{stored.name} holds nan at row {first + row}, column {place}: "
            "every value must be finite"
        )
    return column.to_numpy(zero_copy_only=False)
