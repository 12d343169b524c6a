"""Data in memory of every kind that `load` takes: a table of kinds and their readers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pyroae.data import frames, torch_datasets
from pyroae.data.archives import Archive, role_of
from pyroae.data.arrays import Source, array_of, labels_of
from pyroae.data.member_names import NO_LABELS, place_of
from pyroae.errors import DataError

PARTS = ("train", "valid", "test")
"""The parts of data, in the order of a tuple of three."""


_DATA = {(part, "data") for part in PARTS}


@dataclass(frozen=True)
class Kind:
    """A kind of data in memory.

    Attributes:
        name: The name of the kind, for the documentation.
        matches: Whether a value is of the kind.
        read: Reads a value; the second argument is the name of the labels, or None.
        is_named: Whether the labels can be chosen by a name.
    """

    name: str
    matches: Callable[[Any], bool]
    read: Callable[[Any, str | None], Source]
    is_named: bool = True


def read_in_memory(values: Any, labels: Any = None) -> Source:
    """Read data in memory by the first kind of `KINDS` that matches.

    Args:
        values: Data of one of the kinds.
        labels: The labels `[N]`; or the name of the column or key that holds them. None for the
            rule of the kind.

    Returns:
        The values, the labels, and the validation and test data, as far as there are any.

    Raises:
        DataError: If the data cannot be read, or labels are given twice.
        ConfigError: If there is no column of the name of the labels.

    >>> read_in_memory({"x": [[0.0, 1.0], [2.0, 3.0]], "y": [7, 8]}).labels
    array([7, 8])
    """
    kind = kind_of(values)
    name = labels if isinstance(labels, str) else None
    if name == NO_LABELS:
        return _without_labels(kind.read(values, name if kind.is_named else None))
    if name is not None and not kind.is_named:
        raise DataError(
            f"{kind.name} has no named columns, so none is '{name}': give the labels [N], or a "
            "table"
        )
    frames.refuse_other_rows(values, labels)
    return with_labels(kind.read(values, name), None if name else labels)


def _without_labels(source: Source) -> Source:
    test, valid = (
        None if part is None else replace(part, labels=None) for part in (source.test, source.valid)
    )
    return replace(source, labels=None, test=test, valid=valid)


def kind_of(values: Any) -> Kind:
    """Return the first kind that data in memory are of.

    Args:
        values: Any value.

    Returns:
        The kind; the last one, an array, takes all that no other does.

    >>> kind_of([[0.0, 1.0]]).name, kind_of({"x": [[0.0, 1.0]]}).name
    ('an array', 'a dict')
    """
    return next(kind for kind in KINDS if kind.matches(values))


def with_labels(source: Source, labels: Any) -> Source:
    """Add labels to values.

    Args:
        source: The values.
        labels: The labels `[N]`; None leaves the source as it is.

    Returns:
        The source with the labels.

    Raises:
        DataError: If the source has labels already, or they are not of the length N.
    """
    if labels is None:
        return source
    if source.labels is not None:
        raise DataError("labels are given twice: in the data, and beside them")
    return replace(source, labels=labels_of(labels))


def _array(values: Any, name: str | None) -> Source:
    return Source("array", array_of(values))


def _series(values: Any, name: str | None) -> Source:
    return frames.read_frame(values.to_frame("0" if values.name is None else values.name), name)


def _refused(reason: str) -> Callable[[Any, str | None], Source]:
    def read(values: Any, name: str | None) -> Source:
        raise DataError(f"a {type(values).__name__} {reason}")

    return read


def _mapping(values: Mapping[Any, Any], name: str | None) -> Source:
    """A dict of parts, of data and labels, or of columns."""
    arrays = {str(key): value for key, value in values.items()}
    if not arrays:
        raise DataError("the dict is empty: it holds no data")
    has_data = any(role_of(key) in _DATA for key in arrays)
    if not has_data and all(len(_shape(value)) == 1 for value in arrays.values()):
        return frames.read_columns(arrays, name)
    own = name if name in (*arrays, NO_LABELS) else None
    shapes = {key: _shape(value) for key, value in arrays.items()}
    roles = Archive(Path(), shapes, arrays.__getitem__, "the dict").roles(own)
    keys = {part: key for (part, kind), key in roles.items() if kind == "data"}
    inner = None if own is not None else name
    if inner is not None and not all(kind_of(arrays[key]).is_named for key in keys.values()):
        place_of(inner, list(arrays), "key of the dict")
    parts = {
        part: with_labels(
            read_in_memory(arrays[key], inner), arrays.get(roles.get((part, "labels"), ""))
        )
        for part, key in keys.items()
    }
    return in_parts(parts)


def _shape(value: Any) -> tuple[int, ...]:
    """The shape of an array, or of the first row of a list."""
    if isinstance(value, list | tuple):
        return (len(value), *(_shape(value[0]) if len(value) else ()))
    return tuple(getattr(value, "shape", ()))


def _pair(values: tuple[Any, ...], name: str | None) -> Source:
    """A tuple: (values, labels), or the training, validation and test data."""
    sizes = {len(part) if isinstance(part, tuple) else 0 for part in values}
    if sizes <= {2} or all(isinstance(part, Dataset | DataLoader) for part in values):
        parts = [read_in_memory(part, name) for part in values]
        if len(parts) in (2, 3):
            named = ("train", "test") if len(parts) == 2 else PARTS
            return in_parts(dict(zip(named, parts, strict=True)))
    if len(values) != 2:
        raise DataError(
            f"a tuple of {len(values)} is not data: give an array, a pair (values, labels), "
            "or a pair of pairs ((x_train, y_train), (x_test, y_test))"
        )
    frames.refuse_other_rows(*values)
    return with_labels(read_in_memory(values[0], name), values[1])


def in_parts(parts: Mapping[str, Source]) -> Source:
    """Join training, validation and test data, with the columns of the training data.

    Args:
        parts: The data by the names `train`, `valid` and `test`; the last two may be missing.

    Returns:
        The training data with the others as its validation and test data.

    Raises:
        DataError: If a part has data of its own parts, or other columns than the training data.
    """
    for part in parts.values():
        if part.test is not None or part.valid is not None:
            raise DataError("data of one part have a validation or test part of their own")
    train = parts["train"]
    others = {
        name: frames.matched(parts[name], train, "validation" if name == "valid" else name)
        for name in ("valid", "test")
        if name in parts
    }
    return replace(train, valid=others.get("valid"), test=others.get("test"))


def _is_items(values: Any) -> bool:
    """Whether a list holds items (x, y), or dicts with them, and not rows of numbers."""
    if not isinstance(values, list) or not values:
        return False
    first = values[0]
    pair = isinstance(first, tuple) and len(first) == 2 and np.ndim(first[0]) > 0
    return pair or isinstance(first, Mapping)


def _is_given_parts(values: Any) -> bool:
    """Whether a list holds datasets of torch, as `random_split` returns them."""
    is_list = isinstance(values, list) and bool(values)
    return is_list and all(isinstance(part, Dataset) for part in values)


def _is_table(values: Any) -> bool:
    """Whether values are a table of pyarrow, polars or another library."""
    has_names = hasattr(values, "columns") or hasattr(values, "column_names")
    if has_names and hasattr(values, "to_pandas"):
        return True
    return hasattr(values, "__arrow_c_stream__") and not hasattr(values, "__array__")


def _is_many_variables(values: Any) -> bool:
    return hasattr(values, "data_vars") and hasattr(values, "to_dataframe")


def _rows_of_dicts(values: Sequence[Mapping[str, Any]], name: str | None) -> Source:
    """A list of dicts: the items of a dataset, or the rows of a table."""
    if isinstance(values[0], Mapping) and all(np.ndim(value) == 0 for value in values[0].values()):
        for number, row in enumerate(values):
            if set(row) != set(values[0]):
                raise DataError(
                    f"row {number} of the list has the keys {', '.join(map(str, row))}, and row 0 "
                    f"{', '.join(map(str, values[0]))}"
                )
        return frames.read_columns({key: [row[key] for row in values] for key in values[0]}, name)
    return torch_datasets.read_dataset(values, name)


KINDS = (
    Kind("a pandas DataFrame", frames.is_frame, frames.read_frame),
    Kind("a pandas Series", frames.is_series, _series),
    Kind(
        "an xarray Dataset",
        _is_many_variables,
        _refused("has several variables: give one of them, or its to_dataframe()"),
    ),
    Kind("a table of pyarrow or polars", _is_table, frames.read_arrow),
    Kind(
        "a structured array",
        lambda values: isinstance(values, np.ndarray) and values.dtype.names is not None,
        frames.read_columns,
    ),
    Kind(
        "a TensorDataset",
        lambda values: isinstance(values, TensorDataset),
        torch_datasets.read_tensor_dataset,
        is_named=False,
    ),
    Kind(
        "a Dataset of torch",
        lambda values: isinstance(values, Dataset),
        torch_datasets.read_dataset,
    ),
    Kind(
        "a DataLoader",
        lambda values: isinstance(values, DataLoader),
        torch_datasets.read_loader,
    ),
    Kind("a dict", lambda values: isinstance(values, Mapping), _mapping),
    Kind("a list of datasets", _is_given_parts, lambda values, name: _pair(tuple(values), name)),
    Kind("a list of items", _is_items, _rows_of_dicts),
    Kind("a tuple", lambda values: isinstance(values, tuple), _pair),
    Kind("an array", lambda values: True, _array, is_named=False),
)
"""The kinds of data in memory; the first that matches is read."""
