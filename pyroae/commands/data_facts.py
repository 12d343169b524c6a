"""What `pyroae data` says about data: their columns, labels and parts, and warnings."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from rich import box
from rich.table import Table

from pyroae.data.arrays import Source
from pyroae.data.conditions import label_text
from pyroae.data.kinds import Column

LISTED = 20
"""The number of columns, labels or names that are listed."""


FAR, IMBALANCED = 10.0, 10.0
"""The distance of an outlier in standard deviations; the ratio of frequencies of labels."""


def column_names(source: Source) -> list[str]:
    """Return the names of the features.

    Args:
        source: The values `[N, ...]`.

    Returns:
        The names of columns, or x0, x1, ….

    >>> column_names(Source("array", np.zeros((3, 2))))
    ['x0', 'x1']
    """
    count = int(np.prod(source.values.shape[1:]))
    return list(source.columns) or [f"x{i}" for i in range(count)]


def table_of(source: Source, columns: list[Column]) -> Table:
    """Return the columns as a table; of images, all values as one.

    Args:
        source: The values `[N, ...]`.
        columns: The description of each feature.

    Returns:
        The table, with the first `LISTED` columns.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for name in ("column", "kind"):
        table.add_column(name)
    for name in ("lowest", "highest", "mean", "sd", "missing", "unique"):
        table.add_column(name, justify="right", no_wrap=True)
    if source.values.ndim > 2:
        flat = source.values.reshape(-1)
        column = Column.of(flat)
        kind = "integers" if column.kind in ("counts", "whole") else column.kind
        _add_row(table, "all values", replace(column, kind=kind), flat)
        return table
    names = column_names(source)
    for number, (name, column) in enumerate(zip(names[:LISTED], columns, strict=False)):
        _add_row(table, name, column, source.values[:, number])
    if len(names) > LISTED:
        table.add_row(f"and {len(names) - LISTED} more")
    return table


def _add_row(table: Table, name: str, column: Column, values: np.ndarray) -> None:
    numbers = (column.low, column.high, column.mean, column.deviation)
    known = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    table.add_row(
        name,
        column.kind,
        *(f"{number:.4g}" for number in numbers),
        str(column.missing),
        str(len(np.unique(known))),
    )


def labels_text(labels: np.ndarray | None) -> str:
    """Return the labels and how many data have each.

    Args:
        labels: Labels `[N]`, or None.

    Returns:
        The text, with the most frequent labels.

    >>> labels_text(np.array(["a", "b", "a"]))
    '2: a (2), b (1)'
    """
    if labels is None:
        return "none"
    counts = _counts(labels)
    listed = [f"{label or 'missing'} ({count})" for label, count in counts.most_common(LISTED)]
    more = [f"and {len(counts) - LISTED} more"] if len(counts) > LISTED else []
    return f"{len(counts)}: {', '.join(listed + more)}"


def _counts(labels: np.ndarray) -> Counter[str]:
    return Counter(label_text(label) for label in labels.tolist())


def warnings_of(source: Source, columns: list[Column]) -> Iterator[str]:
    """Yield what a user should know before training.

    Args:
        source: The values as stored, `[N, ...]`.
        columns: The description of each feature.

    Yields:
        Sentences.
    """
    names, values = column_names(source), source.values.reshape(len(source.values), -1)
    is_constant = [c.kind == "constant" for c in columns]
    if source.values.ndim == 2 and any(is_constant):
        yield f"{_listed(names, is_constant)}: one value alone"
    far = [
        c.kind in ("real", "whole") and max(c.high - c.mean, c.mean - c.low) > FAR * c.deviation
        for c in columns
    ]
    if source.values.ndim == 2 and any(far):
        yield (
            f"{_listed(names, far)}: values more than {FAR:g} standard deviations from the mean, "
            "for which the likelihoods student and laplace are made"
        )
    rows = _rows(values)
    if twice := len(values) - len(rows):
        both = ", and may be both training and test data" if source.test is None else ""
        yield f"{twice} of {len(values)} rows occur more than once{both}"
    if source.test is not None:
        test = source.test.values.reshape(len(source.test.values), -1)
        if shared := sum(row.tobytes() in rows for row in np.ascontiguousarray(test)):
            yield f"{shared} of {len(test)} test data are also training data"
    counts = [] if source.labels is None else list(_counts(source.labels).values())
    if counts and max(counts) > IMBALANCED * min(counts) and len(counts) <= len(values) / 2:
        yield f"the most frequent label has {max(counts)} data, the rarest {min(counts)}"


def _listed(names: list[str], is_meant: list[bool]) -> str:
    meant = [name for name, chosen in zip(names, is_meant, strict=True) if chosen]
    more = f" and {len(meant) - 5} more" if len(meant) > 5 else ""
    return f"column{'s' if len(meant) > 1 else ''} {', '.join(meant[:5])}{more}"


def _rows(values: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in np.ascontiguousarray(values)}
