"""What the columns of data hold: binary values, counts, shares or real numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

OVERDISPERSED = 1.5
"""The mean ratio of variance and mean from which on counts are not Poisson."""


MOST_MIXED = 200
"""The number of columns up to which each column has a likelihood of its own kind."""


@dataclass(frozen=True)
class Column:
    """What one column holds.

    Attributes:
        kind: `binary`: 0 and 1; `counts`: whole numbers from 0 or 1; `unit`: numbers in [0, 1];
            `real`: other numbers; `constant`: one value.
        low: The smallest value.
        high: The largest value.
        mean: The mean.
        deviation: The standard deviation.
        missing: The number of missing values, NaN.
    """

    kind: str
    low: float
    high: float
    mean: float
    deviation: float
    missing: int

    @classmethod
    def of(cls, values: np.ndarray) -> "Column":
        """Describe a column.

        Args:
            values: The values, `[N]`, NaN where missing.

        Returns:
            The description; of a column without any value a constant NaN.

        >>> Column.of(np.array([0, 3, 1])).kind, Column.of(np.array([0.5, -1])).kind
        ('counts', 'real')
        """
        known = values[~np.isnan(values)] if values.dtype.kind == "f" else values
        missing = len(values) - len(known)
        if not len(known):
            return cls("constant", np.nan, np.nan, np.nan, np.nan, missing)
        low, high = float(known.min()), float(known.max())
        mean, deviation = float(known.mean()), float(known.std(dtype=np.float64))
        return cls(_kind(known, low, high), low, high, mean, deviation, missing)


def _kind(known: np.ndarray, low: float, high: float) -> str:
    is_whole = known.dtype.kind in "bui" or bool((known == np.round(known)).all())
    if is_whole and low >= 0 and high <= 1:
        return "binary" if low < high else "constant"
    if low == high:
        return "constant"
    if is_whole and low in (0, 1):
        return "counts"
    return "unit" if low >= 0 and high <= 1 else "real"


@dataclass(frozen=True)
class Suggestion:
    """The likelihood that suits data, where the user gives none.

    Attributes:
        likelihood: Its name with settings.
        scale: The scale that goes with it, or None.
        reason: Why, for a sentence that begins with the name of the data.
    """

    likelihood: str
    scale: str | None
    reason: str


def columns_of_values(values: np.ndarray) -> list[Column]:
    """Describe each column.

    Args:
        values: The values, `[N, ...]`.

    Returns:
        The description of each of d columns.
    """
    return [Column.of(column) for column in values.reshape(len(values), -1).T]


def suggestion(columns: Sequence[Column]) -> Suggestion:
    """Return the likelihood that suits the columns of data.

    Args:
        columns: The description of each column.

    Returns:
        `bernoulli` for values in [0, 1]; `poisson` or `negative-binomial` for whole numbers from 0
        on; `mixed` where binary or count columns are beside real ones, up to `MOST_MIXED` columns;
        else `normal`, of standardized values.

    >>> suggestion(columns_of_values(np.array([[0, 3.5], [1, -2.0]]))).likelihood
    'mixed:columns=bernoulli+normal(feature)'
    """
    kinds = {column.kind for column in columns} - {"constant"}
    low = min((c.low for c in columns), default=0.0)
    high = max((c.high for c in columns), default=1.0)
    if low >= 0 and high <= 1:
        if kinds <= {"binary"}:
            return Suggestion("bernoulli", None, "has values 0 and 1")
        return Suggestion("bernoulli", None, "has values in [0, 1], which are binarized")
    if low >= 0 and kinds <= {"binary", "counts"}:
        name = count_likelihood(columns)
        return Suggestion(name, None, f"has whole numbers from {low:g} to {high:g}")
    if kinds & {"binary", "counts"} and len(columns) <= MOST_MIXED:
        groups = _groups([_likelihood(column) for column in columns])
        reason = "has columns of different kinds"
        return Suggestion(f"mixed:columns={groups}", "standard", reason)
    reason = f"has values from {low:.4g} to {high:.4g}"
    return Suggestion("normal:scale=learned", "standard", reason)


def count_likelihood(columns: Sequence[Column]) -> str:
    """Return the likelihood of counts: Poisson, unless their variances exceed their means.

    Args:
        columns: The description of columns of counts.

    Returns:
        `poisson` or `negative-binomial`.
    """
    ratios = [c.deviation**2 / c.mean for c in columns if c.mean > 0]
    return "negative-binomial" if ratios and np.mean(ratios) > OVERDISPERSED else "poisson"


def _likelihood(column: Column) -> str:
    if column.kind == "counts":
        return count_likelihood([column])
    return "bernoulli" if column.kind == "binary" else "normal(feature)"


def _groups(names: Sequence[str]) -> str:
    """Names of the likelihoods of columns, neighbours together, as `mixed` takes them."""
    counted = [(name, len(list(same))) for name, same in groupby(names)]
    return "+".join(f"{name}*{count}" if count > 1 else name for name, count in counted)
