"""DataFrames: columns of numbers as they are, columns of categories and texts as codes."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from pyroae.data.arrays import Source
from pyroae.errors import DataError

type Categories = tuple[str, ...]

FEW = 10
"""Rows up to which all texts of a column may differ."""


def read_frame(frame: Any, label: str | None = None) -> Source:
    """Read the features and the labels of a pandas DataFrame.

    The index is never a feature. A column of dtype category, or of texts, becomes the codes
    0, 1, …, C − 1 of its categories: in the order of the dtype, or in the order of the alphabet.

    Args:
        frame: The DataFrame.
        label: The name of the column of labels; None for a column named label, target, class or y.

    Returns:
        The features `[N, d]` with their names and categories, NaN for missing values, and the
        labels `[N]`.

    Raises:
        DataError: If columns have one name or several levels of names, or a column holds dates,
            complex numbers, texts between numbers, or texts that are all different.
        ConfigError: If there is no column of the name `label`.

    >>> import pandas
    >>> source = read_frame(pandas.DataFrame({"age": [3, 4, 5], "sex": ["m", "f", "m"]}))
    >>> source.values.tolist(), source.columns, source.categories
    ([[3, 1], [4, 0], [5, 1]], ('age', 'sex'), {'sex': ('f', 'm')})
    """
    from pyroae.data.tables import columns_of, numeric_array

    title = "the DataFrame"
    _check_names(title, frame.columns)
    places, at = columns_of(title, frame.columns, label)
    values = frame.iloc[:, places].copy(deep=False)
    values.columns = [str(name) for name in values.columns]
    categories = {}
    for name in values.columns:
        column, levels = _encoded(title, name, values[name])
        if column is not None:
            values[name] = column
        if levels:
            categories[name] = levels
    labels = None if at is None else frame.iloc[:, at].to_numpy()
    array = numeric_array(title, values)
    return Source("array", array, labels, columns=tuple(values.columns), categories=categories)


def _check_names(title: str, columns: Any) -> None:
    """Refuse names of several levels, and names that occur twice."""
    if columns.nlevels > 1:
        raise DataError(
            f"the columns of {title} have {columns.nlevels} levels of names: join them to one, as "
            "in frame.columns = ['_'.join(map(str, name)) for name in frame.columns]"
        )
    for name, count in Counter(map(str, columns)).items():
        if count > 1:
            raise DataError(f"{title} has {count} columns named '{name}': rename them")


def _encoded(title: str, name: str, column: Any) -> tuple[Any, Categories]:
    """A column as numbers, None where it holds numbers already; and the categories of codes."""
    import pandas as pd

    types = pd.api.types
    if isinstance(column.dtype, pd.CategoricalDtype):
        return _codes(column)
    if types.is_numeric_dtype(column.dtype):
        return None, ()
    if not (types.is_object_dtype(column.dtype) or types.is_string_dtype(column.dtype)):
        raise _not_numeric(title, name, column)
    kind = types.infer_dtype(column, skipna=True)
    if kind in ("boolean", "integer", "floating", "mixed-integer-float", "decimal", "empty"):
        return column.astype("Float64" if column.isna().any() else "float64"), ()
    if kind != "string":
        raise _mixed(title, name, column, kind)
    _check_texts(title, name, column)
    return _codes(column.astype("category"))


def _codes(column: Any) -> tuple[Any, Categories]:
    """The codes of a categorical column, NaN where missing, and its categories."""
    levels = tuple(str(level) for level in column.cat.categories)
    codes = column.cat.codes.astype("int64")
    return codes.where(codes >= 0) if (codes < 0).any() else codes, levels


def _check_texts(title: str, name: str, column: Any) -> None:
    """Refuse numbers as texts, and texts that are all different."""
    import pandas as pd

    known = column[column.notna()]
    numbers = pd.to_numeric(known, errors="coerce").notna()
    if numbers.all():
        raise DataError(
            f"column '{name}' of {title} holds numbers as texts: convert it by astype(float), or "
            "to categories by astype('category')"
        )
    if numbers.mean() > 0.5:
        text = known[~numbers].iloc[0]
        raise DataError(
            f"column '{name}' of {title} is not numeric: it holds the text {text!r:.60} at row "
            f"{_row(column, text)} between numbers"
        )
    if known.nunique() == len(known) > FEW:
        raise DataError(
            f"the {len(known)} texts in column '{name}' of {title} are all different: leave it "
            "out, or convert it by astype('category')"
        )


def _mixed(title: str, name: str, column: Any, kind: str) -> DataError:
    """The error for a column of objects that are neither numbers nor texts."""
    for row, value in enumerate(column):
        if isinstance(value, str) and kind.startswith("mixed"):
            return DataError(
                f"column '{name}' of {title} is not numeric: it holds the text {value!r:.60} at "
                f"row {row} between numbers"
            )
    return _not_numeric(title, name, column, kind)


def _not_numeric(title: str, name: str, column: Any, kind: str = "") -> DataError:
    dates = any(word in f"{column.dtype} {kind}" for word in ("date", "time", "period"))
    hint = ": give a number of days or seconds in place of it, or leave it out" if dates else ""
    return DataError(
        f"column '{name}' of {title} is not numeric: it holds {kind or column.dtype} values{hint}"
    )


def _row(column: Any, value: Any) -> int:
    return int(np.flatnonzero((column == value).to_numpy(dtype=bool, na_value=False))[0])


def read_columns(columns: Any, label: str | None = None) -> Source:
    """Read a mapping from names to columns `[N]`, or a structured array, as a table.

    Args:
        columns: Names and columns; or a NumPy array with named fields.
        label: The name of the column of labels, as in `read_frame`.

    Returns:
        The source, as `read_frame` gives it.

    Raises:
        DataError: As in `read_frame`; and if a field is no single number, or the columns have
            different lengths.

    >>> people = np.array([(1.5, 30)], dtype=[("height", "f8"), ("age", "i4")])
    >>> read_columns(people).columns
    ('height', 'age')
    """
    import pandas as pd

    if isinstance(columns, np.ndarray):
        columns = {name: columns[name] for name in columns.dtype.names or ()}
    shapes = {str(name): np.shape(column) for name, column in columns.items()}
    for name, shape in shapes.items():
        if len(shape) != 1:
            raise DataError(f"column '{name}' has the shape {shape}; one value per row is needed")
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if shape != shapes[first]:
            raise DataError(
                f"column '{name}' has {shape[0]} rows and column '{first}' {shapes[first][0]}"
            )
    native = {name: _native(column) for name, column in columns.items()}
    return read_frame(pd.DataFrame(native), label)


def _native(column: Any) -> Any:
    """A column in the byte order of the machine, as pandas needs it; NaN where masked."""
    if np.ma.is_masked(column):
        column = column.astype(float).filled(np.nan)
    array = np.asarray(column)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def read_arrow(table: Any, label: str | None = None) -> Source:
    """Read a table of pyarrow, polars or another library with Arrow's columns.

    Args:
        table: A table with `to_pandas`, or with the method `__arrow_c_stream__`.
        label: The name of the column of labels, as in `read_frame`.

    Returns:
        The source, as `read_frame` gives it.

    Raises:
        DataError: As in `read_frame`.
    """
    if not hasattr(table, "to_pandas"):
        import pyarrow

        table = pyarrow.table(table)
    return read_frame(table.to_pandas(), label)


class Table(Protocol):
    """What has named columns: a source, or a data set."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""

    @property
    def categories(self) -> Mapping[str, tuple[str, ...]]:
        """The categories of columns of codes, by name."""


def matched(part: Source, train: Table, kind: str) -> Source:
    """Bring the columns and codes of another part of the data in the order of the training data.

    Args:
        part: The other part.
        train: The training data.
        kind: The name of the part in messages, such as "test".

    Returns:
        The part with the columns and the categories of the training data.

    Raises:
        DataError: If a column is missing or is not in the training data, or a category was never
            seen in training.

    >>> train = Source("a", np.array([[0.0], [1.0]]), columns=("s",), categories={"s": ("a", "b")})
    >>> test = Source("a", np.array([[0.0]]), columns=("s",), categories={"s": ("b", "c")})
    >>> matched(test, train, "test").values.tolist()
    [[1.0]]
    """
    if not part.columns or not train.columns:
        return part
    _check_columns(part.columns, train.columns, kind)
    values = part.values[:, [part.columns.index(name) for name in train.columns]]
    for place, name in enumerate(train.columns):
        own, known = part.categories.get(name, ()), train.categories.get(name, ())
        if bool(own) != bool(known):
            raise DataError(
                f"column '{name}' holds {'categories' if known else 'numbers'} in the training "
                f"data and {'categories' if own else 'numbers'} in the {kind} data"
            )
        if own != known:
            values = values.astype(np.float64)
            values[:, place] = _recoded(values[:, place], own, known, name, kind)
    return replace(part, values=values, columns=train.columns, categories=train.categories)


def _check_columns(own: Sequence[str], known: Sequence[str], kind: str) -> None:
    for names, others, where in ((known, own, kind), (own, known, "training")):
        missing = [name for name in names if name not in others]
        if missing:
            raise DataError(
                f"the {where} data have no column '{missing[0]}'; theirs are {', '.join(others)}"
            )


def _recoded(
    codes: np.ndarray, own: Categories, known: Categories, name: str, kind: str
) -> np.ndarray:
    """Codes of other categories as codes of those of the training data."""
    result = codes.copy()
    for code, level in enumerate(own):
        at = codes == code
        if not at.any():
            continue
        if level not in known:
            raise DataError(
                f"the category '{level}' of column '{name}' of the {kind} data was never seen in "
                f"training, where they are {', '.join(known)}"
            )
        result[at] = known.index(level)
    return result


def to_frame(
    values: np.ndarray, columns: tuple[str, ...], categories: Mapping[str, Categories]
) -> Any:
    """Make a pandas DataFrame of numbers and codes.

    Args:
        values: The values `[n, d]`.
        columns: The names of the d columns; x0, x1, … where there are none.
        categories: The categories of columns of codes.

    Returns:
        The DataFrame; columns of codes are of dtype category.
    """
    import pandas as pd

    table = pd.DataFrame(values, columns=list(columns) or [f"x{j}" for j in range(values.shape[1])])
    for name, levels in categories.items():
        codes = table[name].where(table[name].between(0, len(levels) - 1), -1).round()
        table[name] = pd.Categorical.from_codes(
            codes.to_numpy(np.int64), categories=pd.Index(levels)
        )
    return table


def is_frame(values: Any) -> bool:
    """Tell whether values are a pandas DataFrame, without importing pandas.

    Args:
        values: Any value.

    Returns:
        Whether they are.
    """
    return _is_of_pandas(values, "DataFrame")


def refuse_other_rows(values: Any, labels: Any) -> None:
    """Refuse labels whose index says that they belong to other rows than those of a table.

    Args:
        values: The table; of other values nothing is known.
        labels: The labels, which are taken in their order.

    Raises:
        DataError: If both have the same index in another order.

    >>> import pandas
    >>> table = pandas.DataFrame({"a": [0.5, 1.5]}, index=[3, 4])
    >>> refuse_other_rows(table, pandas.Series([0, 1], index=[4, 3]))
    Traceback (most recent call last):
    pyroae.errors.DataError: the labels have the index of the table in another order: ...
    """
    if not is_frame(values) or not is_series(labels) or len(values) != len(labels):
        return
    one, other = values.index, labels.index
    if not one.equals(other) and one.isin(other).all():
        raise DataError(
            "the labels have the index of the table in another order: align them, as by "
            "labels.loc[table.index], or give labels.to_numpy() to take them in their order"
        )


def is_series(values: Any) -> bool:
    """Tell whether values are a pandas Series, without importing pandas.

    Args:
        values: Any value.

    Returns:
        Whether they are.
    """
    return _is_of_pandas(values, "Series")


def _is_of_pandas(values: Any, name: str) -> bool:
    """Whether values are of a class of pandas, which has been imported if there are any."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(values, getattr(pandas, name))
