"""Sparse matrices and memory-mapped arrays that are too large when dense, read in slices."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyroae.data.arrays import labels_of
from pyroae.data.storage import IN_MEMORY, SLICE, Reader, Rows, Stored
from pyroae.errors import DataError


class StoredMatrix(Stored):
    """A sparse matrix or a memory-mapped array; a slice of its rows is made dense when it is read.

    Args:
        values: The values `[N, ...]`: rows are taken by `values[first:stop]`.
        labels: The labels `[N]`, or None.
    """

    def __init__(self, values: Any, labels: np.ndarray | None) -> None:
        self.values, self.row_labels = values, labels
        rows, width = values.shape[0], int(np.prod(values.shape[1:], dtype=np.int64))
        size = max(1, SLICE // max(1, width * values.dtype.itemsize))
        bounds = np.append(np.arange(0, rows, size), rows)
        super().__init__(Path("array"), "array", values.dtype, values.shape, bounds)

    def reader(self, labels: bool) -> Reader:
        """Make a reader of dense rows."""
        return _MatrixReader(self, labels)

    def refuse_changed(self) -> None:
        """Accept the values, which are in memory or mapped into it."""


class _MatrixReader(Reader):
    stored: StoredMatrix

    def rows(self, number: int, first: int, stop: int) -> Rows:
        part, labels = self.stored.values[first:stop], self.stored.row_labels
        values = part.toarray() if hasattr(part, "toarray") else np.array(part)
        return Rows(values, labels[first:stop] if self.labels and labels is not None else None)


def stored_matrix(source: Any, labels: Any = None) -> StoredMatrix | None:
    """Return a sparse matrix or a memory-mapped array as stored rows, if it is large when dense.

    Args:
        source: Any source that `load` accepts.
        labels: The labels `[N]` beside it; None for those of a pair (values, labels).

    Returns:
        The stored rows, if the source is a sparse matrix `[N, d]` of SciPy or torch or a
        memory-mapped array, alone or in a pair with labels, and its values take more than
        `IN_MEMORY` bytes in single precision; else None.

    Raises:
        DataError: If the number of labels is not N.

    >>> stored_matrix(np.zeros((3, 2))) is None
    True
    """
    is_pair = isinstance(source, tuple) and len(source) == 2 and labels is None
    values, given = source if is_pair else (source, labels)
    if isinstance(given, str | tuple) or not _is_sliced(values):
        return None
    if int(np.prod(values.shape, dtype=np.int64)) * 4 <= IN_MEMORY:
        return None
    rows = _rows_of(values)
    own = None if given is None else labels_of(given)
    if own is not None and len(own) != rows.shape[0]:
        raise DataError(f"array has {rows.shape[0]} data and {len(own)} labels")
    return StoredMatrix(rows, own)


def _is_sliced(values: Any) -> bool:
    """Whether values are sparse or mapped, with rows of one dimension or more."""
    if isinstance(values, torch.Tensor):
        return values.layout == torch.sparse_coo and values.ndim == 2
    is_sparse = hasattr(values, "tocsr") and len(values.shape) == 2
    return is_sparse or (isinstance(values, np.memmap) and values.ndim > 1)


def _rows_of(values: Any) -> Any:
    """The values in a form whose rows can be sliced."""
    if isinstance(values, np.memmap):
        return values
    if isinstance(values, torch.Tensor):
        import scipy.sparse

        held = values.detach().cpu().coalesce()
        places = tuple(held.indices().numpy())
        return scipy.sparse.coo_array((held.values().numpy(), places), values.shape).tocsr()
    return values.tocsr()
