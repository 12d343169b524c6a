"""`.parquet` larger than memory: a row group is unpacked a few columns at a time, then read slice by slice."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pyroae.data.sources import check_numeric, columns_of, common_dtype
from pyroae.data.storage import Reader, Rows, Stored
from pyroae.errors import DataError

TABLE_SLICE = 4 * 2**20
"""Bytes of a slice, at least one row; a row group of one slice is unpacked in memory, a larger one in a scratch file."""


UNPACKED_AT_ONCE = 16 * 2**20
"""Bytes of pages and dictionaries of the columns that are unpacked together."""


OF_A_COLUMN = 2 * 2**20
"""Bytes that the reader of one column holds at most: a page and a dictionary, each of a mebibyte as they are written."""


SCRATCH, MOST_LANES = 4 * 2**30, 8
"""Bytes of the scratch files of the row groups that are open at once, and how many these are at most."""


class StoredTable(Stored):
    """A `.parquet` file: numbers in columns, and a column of labels where one is named so.

    The reader of a column holds a page and a dictionary, of all columns together easily more than the row group: so a few
    columns are unpacked at a time, in a scratch file (of the folder that TMPDIR names) where they do not fit a slice.
    """

    def __init__(self, path: Path) -> None:
        with pq.ParquetFile(path) as file:
            self.metadata, schema = file.metadata, file.schema_arrow
        frame = schema.empty_table().to_pandas()
        index = [
            name
            for name in (schema.pandas_metadata or {}).get("index_columns", ())
            if isinstance(name, str)
        ]
        names = [name for name in schema.names if name not in index]
        places, label = columns_of(f"'{path}'", frame.columns)
        values = frame.iloc[:, places]
        check_numeric(f"'{path}'", values)
        self.label = None if label is None else names[label]
        self.names = [names[i] for i in places]
        dtype, groups = common_dtype(values), range(self.metadata.num_row_groups)
        counts = [self.metadata.row_group(i).num_rows for i in groups]
        row_bytes = max(1, len(self.names) * dtype.itemsize)
        self.slice_rows = max(1, TABLE_SLICE // row_bytes)
        self.groups = np.array([i for i in groups if counts[i]])
        rows = np.array([count for count in counts if count], np.int64)
        self.starts = np.cumsum(rows) - rows
        firsts = [
            np.arange(start, start + n, self.slice_rows)
            for start, n in zip(self.starts, rows, strict=True)
        ]
        bounds = np.concatenate([*firsts, [rows.sum()]]).astype(np.int64)
        runs = -(-rows // self.slice_rows)
        super().__init__(path, path.stem, dtype, (int(rows.sum()), len(self.names)), bounds, runs)
        self.lanes = int(np.clip(SCRATCH // (row_bytes * rows.max(initial=1)), 1, MOST_LANES))

    def reader(self, labels: bool) -> Reader:
        return _TableReader(self, labels)

    def blocks(self, group: int) -> list[slice]:
        """Columns of a row group that are unpacked together."""
        found, size, begun = self.metadata.row_group(int(self.groups[group])), 0, 0
        blocks = []
        sizes = {
            found.column(i).path_in_schema: found.column(i).total_uncompressed_size
            for i in range(found.num_columns)
        }
        for number, name in enumerate(self.names):
            more = min(sizes.get(name, OF_A_COLUMN), OF_A_COLUMN)
            if size and size + more > UNPACKED_AT_ONCE:
                blocks.append(slice(begun, number))
                begun, size = number, 0
            size += more
        return [*blocks, slice(begun, len(self.names))]


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

    def close(self) -> None:  # not every reader has something open
        for group in self.open.values():
            group.close()
        self.open.clear()
        self.file.close()


class _Group:
    """The values of a row group `[n, d]`, unpacked: in memory where they are one slice, else in a scratch file."""

    def __init__(self, stored: StoredTable, file: pq.ParquetFile, number: int) -> None:
        self.stored, self.file, self.number = stored, file, int(stored.groups[number])
        count = stored.metadata.row_group(self.number).num_rows
        self._labels: np.ndarray | None = None
        self._scratch: Any = None
        shape = (count, len(stored.names))
        self.values: Any = None
        try:
            self.values = (
                np.empty(shape, stored.dtype) if stored.runs[number] == 1 else self._reserved(shape)
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
        """Labels of some rows, where there is a column of them."""
        if self.stored.label is None:
            return None
        if self._labels is None:
            column = self.file.read_row_group(
                self.number, columns=[self.stored.label], use_threads=False
            )
            self._labels = column.column(0).to_pandas().to_numpy()
        return self._labels[first:stop]

    def close(self) -> None:  # not every reader has something open
        """Give back memory and scratch."""
        self.values = None
        if self._scratch is not None:
            self._scratch.close()

    def _reserved(self, shape: tuple[int, int]) -> np.ndarray:
        """Room on disk for all of it. Raises DataError where there is none, before it is written to."""
        size = shape[0] * shape[1] * self.stored.dtype.itemsize
        self._scratch = tempfile.TemporaryFile()  # open as long as the group is  # noqa: SIM115
        try:
            _take_room(self._scratch, size)
        except OSError as error:
            folder = tempfile.gettempdir()
            raise DataError(
                f"a row group of '{self.stored.path}' takes {size / 2**20:.0f} MiB in '{folder}', to be read in slices: "
                f"{error.strerror}; name another folder by TMPDIR"
            ) from None
        return np.memmap(self._scratch, self.stored.dtype, "r+", shape=shape)

    def _unpack(self, block: slice, start: int) -> None:
        names, at = self.stored.names[block], 0
        for batch in self.file.iter_batches(
            self.stored.slice_rows,
            row_groups=[self.number],
            columns=names,
            use_threads=False,
            use_pandas_metadata=False,
        ):
            columns = [
                _numbers(batch.column(i), names[i], self.stored, start + at)
                for i in range(len(names))
            ]
            self.values[at : at + batch.num_rows, block] = np.stack(columns, 1)
            at += batch.num_rows


def _take_room(file: Any, size: int) -> None:
    """Make a file so large that writing into it cannot fail for want of room. Raises OSError where there is none."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for at in range(0, size, TABLE_SLICE):
        file.write(bytes(min(TABLE_SLICE, size - at)))
    file.flush()


def _numbers(column: pa.Array, name: str, stored: StoredTable, first: int) -> np.ndarray:
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        place = stored.names.index(name)
        raise DataError(
            f"{stored.name} holds nan at row {first + row}, column {place}: every value must be finite"
        )
    return column.to_numpy(zero_copy_only=False)
