"""Tables: `.csv` and `.parquet` files, and the names of their columns."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyroae.data.arrays import LABELS, Source
from pyroae.errors import DataError, unknown_name

INDEX = r"Unnamed: 0(\.\d+)*|__index_level_\d+__"
"""Names that pandas gives to an index without a name, in `.csv` and in `.parquet`."""


ROW_NUMBERS = ("id", "index")
"""Names of columns that number the rows, in upper or lower case."""


def read_table(name: str, title: str, table: pd.DataFrame) -> Source:
    """Read the features and the labels of a table.

    Args:
        name: The name of the source.
        title: The name of the table in error messages.
        table: The table; a column may hold the labels.

    Returns:
        The features `[N, d]`, with NaN for missing values, and the labels `[N]`.

    Raises:
        DataError: If a column of features is not numeric, or the columns are ambiguous, as in
            `columns_of`.
    """
    places, label = columns_of(title, table.columns)
    values = table.iloc[:, places]
    labels = None if label is None else table.iloc[:, label].to_numpy()
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
        label: The name of the column of labels; None to find it by its name.

    Returns:
        The positions of the features, and the position of the labels or None.

    Raises:
        DataError: If there are several columns of labels, a column that numbers the rows, or x
            beside y, which may be two coordinates, or a feature and its labels.
        ConfigError: If there is no column of the name `label`.

    >>> columns_of("the table", ["Unnamed: 0", "height", "width", "Label"])
    ([1, 2], 3)
    """
    names = [str(column) for column in columns]
    used = [i for i, name in enumerate(names) if not re.fullmatch(INDEX, name)]
    labels = [i for i in used if names[i].lower() in LABELS]
    if label is not None:
        if label not in names:
            raise unknown_name(f"column of labels of {title}", label, names)
        labels = [names.index(label)]
        used = sorted({*used, *labels})
    for i in used:
        if names[i].lower() in ROW_NUMBERS and i not in labels:
            raise DataError(
                f"column '{names[i]}' of {title} is named as one that numbers the rows: "
                "remove it, or rename it"
            )
    if len(labels) > 1:
        quoted = " and ".join(f"'{names[i]}'" for i in labels)
        raise DataError(
            f"{title} has several columns named as labels, {quoted}: "
            "keep one, and rename the features"
        )
    if (
        label is None
        and labels
        and names[labels[0]].lower() == "y"
        and "x" in map(str.lower, names)
    ):
        raise DataError(
            f"'y' beside 'x' in {title} may be labels or a coordinate: "
            "name it 'label', or rename both features"
        )
    return [i for i in used if i not in labels], labels[0] if labels else None


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


def read_csv(path: Path) -> Source:
    """Read a `.csv` file with or without a row of column names.

    Args:
        path: The file.

    Returns:
        The features `[N, d]` and the labels `[N]`.

    Raises:
        DataError: If the first row may be column names or a datum, a row has more values than there
            are names, a column is not numeric, or the columns are ambiguous.
    """
    first = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0]
    is_numeric = bool((first.isna() | pd.to_numeric(first, errors="coerce").notna()).all())
    has_index = int(pd.isna(first.iloc[0]))
    cells = list(first.iloc[has_index:])
    is_numbered = len(cells) > 0 and cells == [str(i) for i in range(len(cells))]
    has_names = not is_numeric or (has_index == 1 and is_numbered)
    table = pd.read_csv(path, header=0 if has_names else None)
    is_long = len(cells) > 2 or (len(cells) == 2 and (table.dtypes == "float64").any())
    if is_numbered and not has_names and is_long:
        raise DataError(
            f"the first row of '{path}' is {', '.join(cells)}: numbers of columns, "
            "as pandas writes them, or a datum; write the table with header=False, "
            "or name its columns"
        )
    if not table.index.equals(pd.RangeIndex(len(table))):  # pandas makes an index of extra values
        raise DataError(f"the rows of '{path}' have more values than its first row has names")
    return read_table(path.stem, f"'{path}'", table)


def read_parquet(path: Path) -> Source:
    """Read a `.parquet` file into memory.

    Args:
        path: The file.

    Returns:
        The features `[N, d]` and the labels `[N]`.

    Raises:
        DataError: If a column is not numeric, or the columns are ambiguous, as in `columns_of`.
    """
    return read_table(path.stem, f"'{path}'", pd.read_parquet(path))
