"""Tables: `.parquet` and Arrow files, and the names of their columns."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pyroae.data.arrays import LABELS, Source
from pyroae.data.member_names import NO_LABELS, place_of
from pyroae.errors import DataError

INDEX = r"Unnamed: 0(\.\d+)*|__index_level_\d+__"
"""Names that pandas gives to an index without a name, in `.csv` and in `.parquet`."""


ROW_NUMBERS = ("id", "index")
"""Names of columns that number the rows, in upper or lower case."""


def read_table(name: str, title: str, table: pd.DataFrame, label: str | None = None) -> Source:
    """Read the features and the labels of a table.

    Args:
        name: The name of the source.
        title: The name of the table in error messages.
        table: The table; a column may hold the labels.
        label: The name of that column, as in `columns_of`.

    Returns:
        The features `[N, d]`, with NaN for missing values, and the labels `[N]`.

    Raises:
        DataError: If a column of features is not numeric, or the columns are ambiguous, as in
            `columns_of`.
    """
    places, at = columns_of(title, table.columns, label)
    values = table.iloc[:, places]
    labels = None if at is None else table.iloc[:, at].to_numpy()
    columns = tuple(str(column) for column in values.columns)
    return Source(name, numeric_array(title, values), labels, columns=columns)


def numeric_array(title: str, values: pd.DataFrame) -> np.ndarray:
    """Convert a table of numbers to an array.

    Args:
        title: The name of the table in error messages.
        values: The table; its columns may be of pandas' nullable types.

    Returns:
        The values `[N, d]`, in a type that can hold all columns; NaN for missing values.

    Raises:
        DataError: If a column is not numeric.
    """
    check_numeric(title, values)
    has_missing = any(not isinstance(dtype, np.dtype) for dtype in values.dtypes) and bool(
        values.isna().to_numpy().any()
    )
    if has_missing:
        return values.to_numpy(np.float64, na_value=np.nan)
    return values.to_numpy(common_dtype(values))


def columns_of(
    title: str, columns: Iterable[Any], label: str | None = None
) -> tuple[list[int], int | None]:
    """Find the columns of features and of labels; columns that hold a pandas index are left out.

    Args:
        title: The name of the table in error messages.
        columns: The names of all columns.
        label: The name of the column of labels; `none` if all columns are features; None to find
            it by its name.

    Returns:
        The positions of the features, and the position of the labels or None.

    Raises:
        DataError: If there are several columns of labels, a column that numbers the rows, or x
            beside y, which may be two coordinates, or a feature and its labels.
        DataError: If there is no column of the name `label`.

    >>> columns_of("the table", ["Unnamed: 0", "height", "width", "Label"])
    ([1, 2], 3)
    """
    names = [str(column) for column in columns]
    used = [i for i, name in enumerate(names) if not re.fullmatch(INDEX, name)]
    labels = [i for i in used if names[i].lower() in LABELS]
    if label is not None:
        labels = [] if label == NO_LABELS else [place_of(label, names, f"column of {title}")]
        used = sorted({*used, *labels})
    for i in used:
        if names[i].lower() in ROW_NUMBERS and i not in labels:
            raise DataError(
                f"column '{names[i]}' of {title} is named as one that numbers the rows: "
                "remove it, or rename it"
            )
    if label is None:
        _check_labels(title, names, labels)
    return [i for i in used if i not in labels], labels[0] if labels else None


def _check_labels(title: str, names: list[str], labels: list[int]) -> None:
    """Refuse several columns of labels, and x beside y."""
    if len(labels) > 1:
        quoted = " and ".join(f"'{names[i]}'" for i in labels)
        raise DataError(
            f"{title} has several columns named as labels, {quoted}: "
            "give the one that holds them as labels, or rename the features"
        )
    if labels and names[labels[0]].lower() == "y" and "x" in map(str.lower, names):
        raise DataError(
            f"'y' beside 'x' in {title} may be labels or a coordinate: give labels as 'y' or 'none'"
        )


def check_numeric(title: str, values: pd.DataFrame) -> None:
    """Check that all columns hold real numbers.

    Args:
        title: The name of the table in the error message.
        values: The table.

    Raises:
        DataError: If a column holds anything else; the message names the column.
    """
    for column, dtype in values.dtypes.items():
        if not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_complex_dtype(dtype):
            raise DataError(f"column '{column}' of {title} is not numeric: it holds {dtype} values")


def _numpy_dtype(dtype: Any) -> np.dtype:
    """The NumPy type of a column, also of pandas' nullable and sparse types."""
    converted = getattr(dtype, "numpy_dtype", getattr(dtype, "subtype", dtype))
    return np.dtype(np.float64) if converted == np.dtype(object) else np.dtype(converted)


def common_dtype(values: pd.DataFrame) -> np.dtype:
    """Return the type that can hold the numbers of all columns.

    Args:
        values: The table.

    Returns:
        The NumPy type; float64 for a table without columns.
    """
    dtypes = [_numpy_dtype(dtype) for dtype in values.dtypes]
    return np.result_type(*dtypes) if dtypes else np.dtype(np.float64)


def read_parquet(path: Path, label: str | None = None) -> Source:
    """Read a `.parquet` file into memory.

    Args:
        path: The file.
        label: The name of the column of labels, as in `columns_of`.

    Returns:
        The features `[N, d]` and the labels `[N]`.

    Raises:
        DataError: If a column is not numeric, or the columns are ambiguous, as in `columns_of`.
    """
    return read_table(path.stem, f"'{path}'", pd.read_parquet(path), label)


def read_feather(path: Path, label: str | None = None) -> Source:
    """Read a file of Arrow's format, `.feather` or `.arrow`, into memory.

    Args:
        path: The file, in the format of files or of streams.
        label: The name of the column of labels, as in `columns_of`.

    Returns:
        The features `[N, d]` and the labels `[N]`.

    Raises:
        DataError: If a column is not numeric, or the columns are ambiguous, as in `columns_of`.
    """
    try:
        with pa.ipc.open_file(path) as file:
            table = file.read_pandas()
    except pa.ArrowInvalid:
        with path.open("rb") as stream, pa.ipc.open_stream(stream) as file:
            table = file.read_pandas()
    return read_table(path.stem, f"'{path}'", table, label)
