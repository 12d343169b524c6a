"""Arrays of any library as NumPy arrays, before any scaling."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pyroae.errors import DataError
from pyroae.runtime.files import words
from pyroae.runtime.memory import machine_memory


@dataclass(frozen=True)
class Source:
    """Values as they were read, before any check or scaling.

    Attributes:
        name: The name in messages and reports.
        values: The values `[N, ...]`.
        labels: The labels `[N]`, or None.
        test: The test set, if the source has its own; its data have the shape of the training data.
        columns: The names of the features of a table, one for each; empty for other sources.
        limits: The values that are mapped to 0 and 1 unless the user gives others; None for the
            rule of `limits_of`.
        valid: The validation data, if the source has its own, likewise.
        categories: The categories of each column of codes 0, 1, …, by the name of the column.

    Raises:
        DataError: If the data of the test set have another shape than the training data, or exactly
            one of the two is of type uint8.
    """

    name: str
    values: np.ndarray
    labels: np.ndarray | None = None
    test: "Source | None" = None
    columns: tuple[str, ...] = ()
    limits: tuple[float, float] | None = None
    valid: "Source | None" = None
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind, part in (("test", self.test), ("validation", self.valid)):
            if part is not None:
                self._check_part(kind, part.values)

    def _check_part(self, kind: str, part: np.ndarray) -> None:
        train = self.values
        if train.shape[1:] != part.shape[1:]:
            raise DataError(
                f"{self.name} has training data of shape {train.shape} "
                f"and {kind} data of shape {part.shape}"
            )
        if (train.dtype == np.uint8) != (part.dtype == np.uint8):
            raise DataError(
                f"{self.name} has training data of type {train.dtype} "
                f"and {kind} data of type {part.dtype}"
            )


def labels_of(values: Any) -> np.ndarray:
    """Convert labels to an array.

    Args:
        values: The labels `[N]`, or a column of them `[N, 1]`; numbers or texts.

    Returns:
        The labels `[N]`.

    Raises:
        DataError: If the labels have another shape, are masked, or are not an array.

    >>> labels_of([[3], [4]])
    array([3, 4])
    """
    if np.ma.is_masked(values):
        raise DataError("the labels are masked: every label must be known")
    labels = _plain(values)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(f"labels have the shape [N], one for each datum, not {labels.shape}")
    return labels


def array_of(values: Any) -> np.ndarray:
    """Convert an array, a tensor, a sparse matrix or nested lists to a NumPy array.

    Args:
        values: The values. A list of tensors is stacked; bfloat16 becomes float32; masked elements
            become NaN; arrays of Python numbers become float64, and None in them NaN.

    Returns:
        The values as a dense array in the memory of the CPU; a NumPy array is not copied.

    Raises:
        DataError: If the values are not an array, have rows of different lengths, hold other
            objects than numbers, or are sparse and too large when dense.

    >>> array_of(np.ma.masked_equal([[1, 2], [3, 4]], 3)).tolist()
    [[1.0, 2.0], [nan, 4.0]]
    """
    if np.ma.isMaskedArray(values):
        return _unmasked(values)
    array = _plain(values)
    if array.dtype.kind in "OUS":
        return _numbers(array)
    return array


def _plain(values: Any) -> np.ndarray:
    """The values as an array of any type."""
    try:
        _check_rows(values)
        if isinstance(values, list | tuple) and len(values) and all(map(torch.is_tensor, values)):
            values = torch.stack(list(values))
        if isinstance(values, torch.Tensor):
            return _of_tensor(values)
        if hasattr(values, "toarray"):  # a sparse array of SciPy
            check_dense_size(values.shape, values.dtype.itemsize)
            return np.asarray(values.toarray())
        if hasattr(values, "__dlpack__") and not hasattr(values, "__array__"):
            return _of_tensor(torch.from_dlpack(values))
        return np.asarray(values)
    except DataError:
        raise
    except Exception as error:  # a foreign array may raise anything
        raise DataError(
            f"this {type(values).__name__} is not an array of numbers: {words(error)}"
        ) from None


def _of_tensor(values: torch.Tensor) -> np.ndarray:
    if values.is_meta:
        raise DataError("the tensor is on the device 'meta' and has no values")
    if values.layout != torch.strided:
        check_dense_size(tuple(values.shape), values.element_size())
    values = values.detach().cpu().to_dense().resolve_conj().resolve_neg()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def check_dense_size(shape: tuple[int, ...], itemsize: int) -> None:
    """Refuse a sparse array that does not fit into memory when dense.

    Args:
        shape: The shape of the array.
        itemsize: The size of a value, in bytes.

    Raises:
        DataError: If the values and their copy in single precision exceed half of the memory.
    """
    needed, memory = math.prod(shape) * (itemsize + 4), machine_memory()
    if needed > memory / 2:
        raise DataError(
            f"a sparse array of shape {tuple(shape)} takes {needed / 2**30:.1f} GiB when dense, "
            f"more than half of the memory of {memory / 2**30:.1f} GiB: select some of its columns"
        )


def _unmasked(values: np.ma.MaskedArray) -> np.ndarray:
    """The values with NaN in place of masked elements; without any, as they are."""
    if not np.ma.is_masked(values):
        return _plain(values.data)
    if values.dtype.kind not in "buif":
        raise DataError(f"the masked array holds {values.dtype} values; numbers are needed")
    dtype = values.dtype if values.dtype.kind == "f" else np.dtype(np.float64)
    return np.ma.filled(values.astype(dtype), np.nan)


def _check_rows(values: Any) -> None:
    """Refuse rows of different lengths."""
    if not isinstance(values, list | tuple):
        return
    sizes = [0 if isinstance(row, str) else _size(row) for row in values]
    for number, size in enumerate(sizes):
        if size != sizes[0]:
            raise DataError(
                f"row {number} of the {type(values).__name__} has {size} values, and row 0 has "
                f"{sizes[0]}: this is not an array of numbers"
            )


def _size(row: Any) -> int:
    """The number of values of a row; 0 where it is a number itself."""
    try:
        return len(row)
    except TypeError:
        return 0


def _numbers(values: np.ndarray) -> np.ndarray:
    """An array of Python objects as numbers, NaN for None and other missing values."""
    if not values.ndim:
        raise DataError(f"a {type(values.item()).__name__} is not an array; numbers are needed")
    if values.dtype.kind != "O":
        raise _text(values)
    numbers = [_number(value) for value in values.flat]
    bad = next((place for place, number in enumerate(numbers) if number is None), None)
    if bad is not None:
        raise DataError(f"array holds object values, {_at(values, bad)}; numbers are needed")
    return np.array(numbers, dtype=np.float64).reshape(values.shape)


def _text(values: np.ndarray) -> DataError:
    """The error for an array of texts, which names the first that is no number."""
    for place, value in enumerate(values.flat):
        try:
            float(value)
        except ValueError:
            return DataError(f"array holds text values, {_at(values, place)}; numbers are needed")
    return DataError("array holds numbers as texts; numbers are needed: convert by astype(float)")


def _at(values: np.ndarray, place: int) -> str:
    """A value, and where it is."""
    index = zip(("row", "column"), np.unravel_index(place, values.shape), strict=False)
    value = values.flat[place]
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return f"{text:.60} at {', '.join(f'{name} {i}' for name, i in index)}"


def _number(value: Any) -> float | None:
    """The number that an object is, NaN for a missing value; None for anything else."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return math.nan
    if isinstance(value, str | bytes | complex | np.complexfloating):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


LABELS = ("label", "labels", "target", "targets", "class", "y")
"""Names of labels, in upper or lower case."""
