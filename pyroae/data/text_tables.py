"""Tables as text, `.csv`, `.tsv` and `.txt`, with or without names of columns."""

import csv
import gzip
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyroae.data.arrays import Source
from pyroae.data.tables import columns_of, read_table
from pyroae.errors import DataError

DELIMITERS = (",", ";", "\t", "|")
"""What may separate cells; white space does where a line has none of these."""


SPACES = r"\s+"
"""White space as a delimiter, as pandas writes it."""


MISSING = ("", "na", "n/a", "#n/a", "nan", "null", "none", "<na>")
"""Cells without a value, in upper or lower case."""


COUNTED = 10
"""The rows from which on a first column 0, 1, 2, … is taken for their numbers."""


@dataclass(frozen=True)
class Layout:
    """How a text is a table.

    Attributes:
        path: The file.
        delimiter: What separates cells.
        skipped: The number of comments at the top.
        first: The cells of the first line below them.
        has_names: Whether these are the names of the columns.
    """

    path: Path
    delimiter: str
    skipped: int
    first: list[str]
    has_names: bool

    @classmethod
    def of(cls, path: Path) -> "Layout":
        """Find the layout of a file from its first lines.

        Args:
            path: The file.

        Returns:
            The layout.

        Raises:
            DataError: If the file is empty, or a name of a column occurs twice.
        """
        skipped = 0
        with _opened(path) as file:
            for line in file:
                if line.strip() and not line.startswith("#"):
                    break
                skipped += 1
            else:
                raise DataError(f"cannot read '{path}': it has no row")
        delimiter = "\t" if ".tsv" in path.suffixes else _delimiter(line)
        first = _cells(line, delimiter)
        names = Counter(name for name in first if name)
        has_names = not all(map(_is_number, first)) or (not first[0] and _counts(first[1:]))
        twice = [name for name, count in names.items() if count > 1]
        if has_names and twice:
            raise DataError(
                f"'{path}' has {names[twice[0]]} columns named '{twice[0]}': rename them"
            )
        return cls(path, delimiter, skipped, first, has_names)

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Read the cells of all lines that are not empty, with the number of each line.

        Yields:
            The number of a line, from 1, and its cells.
        """
        with _opened(self.path) as file:
            if self.delimiter == SPACES:
                for number, line in enumerate(file, 1):
                    if number > self.skipped and line.strip():
                        yield number, line.split()
                return
            reader = csv.reader(file, delimiter=self.delimiter, skipinitialspace=True)
            for row in reader:
                if reader.line_num > self.skipped and row:
                    yield reader.line_num, row


def read_text_table(path: Path, label: str | None = None) -> Source:
    """Read a table as text. The delimiter and whether there are names of columns are found.

    A first column that counts the rows, from 0 or from 1, is no feature; a warning says so.

    Args:
        path: The file.
        label: The name of the column of labels, as in `columns_of`.

    Returns:
        The features `[N, d]`, with NaN for empty cells, and the labels `[N]`.

    Raises:
        DataError: If the first row may be names of columns or a datum, a row has more or fewer
            values than the first, a column is not numeric, or the columns are ambiguous.
    """
    layout = Layout.of(path)
    table = _frame(layout)
    title = f"'{path}'"
    _check_first_row(layout, table)
    table = _without_row_numbers(title, table, label)
    table.columns = [str(name) for name in table.columns]
    places, _ = columns_of(title, table.columns, label)
    for name in table.columns[places]:
        _check_column(title, name, table[name])
    return read_table(path.name.partition(".")[0], title, table, label)


def _opened(path: Path) -> Any:
    opening = gzip.open if path.suffix == ".gz" else open
    return opening(path, "rt", encoding="utf-8-sig", newline="")


def _delimiter(line: str) -> str:
    """The delimiter that a line has most of, outside quotes."""
    bare = re.sub(r'"[^"]*"', "", line)
    found = max(DELIMITERS, key=bare.count)
    if found in bare:
        return found
    return SPACES if re.search(r"\S\s+\S", bare) else ","


def _cells(line: str, delimiter: str) -> list[str]:
    if delimiter == SPACES:
        return line.split()
    return next(csv.reader([line.strip("\r\n")], delimiter=delimiter, skipinitialspace=True))


def _is_number(cell: str) -> bool:
    if cell.strip().lower() in MISSING:
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # which Python takes for a part of a number


def _counts(cells: list[str]) -> bool:
    return bool(cells) and cells == [str(i) for i in range(len(cells))]


def _frame(layout: Layout) -> pd.DataFrame:
    path = layout.path
    try:
        table = pd.read_csv(
            path,
            sep=layout.delimiter,
            header=0 if layout.has_names else None,
            skiprows=layout.skipped,
            encoding="utf-8-sig",
            skipinitialspace=True,
            low_memory=False,
        )
    except pd.errors.ParserError as error:
        found = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error))
        if found is None:
            raise
        raise DataError(
            f"cannot read '{path}': line {found[2]} has {found[3]} values, and the first {found[1]}"
        ) from None
    if not table.index.equals(pd.RangeIndex(len(table))):  # pandas makes an index of extra values
        raise DataError(f"the rows of '{path}' have more values than its first row has names")
    if not len(table):
        raise DataError(f"cannot read '{path}': it has names of columns, and no row")
    if table.iloc[:, -1].isna().any():  # pandas fills short rows
        for number, cells in layout.rows():
            if len(cells) != len(layout.first):
                raise DataError(
                    f"cannot read '{path}': line {number} has {len(cells)} values, and the first "
                    f"{len(layout.first)}"
                )
    return table


def _check_first_row(layout: Layout, table: pd.DataFrame) -> None:
    """Refuse a first row 0, 1, 2, …, which may be numbers of columns, or a datum."""
    cells = layout.first
    is_long = len(cells) > 2 or (len(cells) == 2 and (table.dtypes == "float64").any())
    if _counts(cells) and not layout.has_names and is_long:
        raise DataError(
            f"the first row of '{layout.path}' is {', '.join(cells)}: numbers of columns, "
            "as pandas writes them, or a datum; write the table with header=False, "
            "or name its columns"
        )


def _without_row_numbers(title: str, table: pd.DataFrame, label: str | None) -> pd.DataFrame:
    """The table without a first column that counts its rows."""
    name, first = table.columns[0], table.iloc[:, 0]
    is_counted = (
        len(table) >= COUNTED
        and table.shape[1] > 1
        and first.dtype == np.int64
        and str(name) != label
        and first.iloc[0] in (0, 1)
        and bool((first.diff().iloc[1:] == 1).all())
    )
    if not is_counted:
        return table
    if not str(name).startswith("Unnamed: 0"):  # without a name it is an index of pandas
        warnings.warn(
            f"column '{name}' of {title} counts the rows from {first.iloc[0]} and is no feature",
            stacklevel=2,
        )
    return table.iloc[:, 1:]


def _check_column(title: str, name: str, column: pd.Series) -> None:
    """Refuse a column of features with a cell that is no number; the message has the cell."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        return
    bad = column[column.notna() & pd.to_numeric(column, errors="coerce").isna()]
    if not len(bad):
        return
    cell, row = str(bad.iloc[0]), bad.index[0]
    if re.fullmatch(r"\s*[-+]?[\d.]*\d,\d+([eE][-+]?\d+)?\s*", cell):
        raise DataError(
            f"column '{name}' of {title} has commas in place of decimal points, as in '{cell}' at "
            "row " + f"{row}: write the table with decimal points"
        )
    raise DataError(
        f"column '{name}' of {title} is not numeric: it holds '{cell:.60}' at row {row}; leave "
        f"the column out, or, if it holds the labels, give labels='{name}' (--labels {name})"
    )
