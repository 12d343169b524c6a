"""What the columns of data hold: binary values, counts, shares or real numbers."""

from collections.abc import Mapping, Sequence
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
        kind: `binary`: 0 and 1; `counts`: whole numbers from 0 or 1; `whole`: whole numbers from 2
            or more, which are counts beside columns of counts only; `unit`: numbers in [0, 1];
            `real`: other numbers; `constant`: one value; `codes`: categories.
        low: The smallest value.
        high: The largest value.
        mean: The mean.
        deviation: The standard deviation.
        missing: The number of missing values, NaN.
        categories: The number of categories of codes; 0 for numbers.
    """

    kind: str
    low: float
    high: float
    mean: float
    deviation: float
    missing: int
    categories: int = 0

    @classmethod
    def of(cls, values: np.ndarray, categories: int = 0) -> "Column":
        """Describe a column.

        Args:
            values: The values, `[N]`, NaN where missing.
            categories: The number of categories of codes; 0 for numbers.

        Returns:
            The description; of a column without any value a constant NaN.

        >>> Column.of(np.array([0, 3, 1])).kind, Column.of(np.array([0.5, -1])).kind
        ('counts', 'real')
        """
        known = values[~np.isnan(values)] if values.dtype.kind == "f" else values
        missing = len(values) - len(known)
        if not len(known):
            kind = "codes" if categories else "constant"
            return cls(kind, np.nan, np.nan, np.nan, np.nan, missing, categories)
        low, high = float(known.min()), float(known.max())
        mean, deviation = float(known.mean()), float(known.std(dtype=np.float64))
        kind = "codes" if categories else _kind(known, low, high)
        return cls(kind, low, high, mean, deviation, missing, categories)


def _kind(known: np.ndarray, low: float, high: float) -> str:
    is_whole = known.dtype.kind in "bui" or bool((known == np.round(known)).all())
    if is_whole and low >= 0 and high <= 1:
        return "binary" if low < high else "constant"
    if low == high:
        return "constant"
    if is_whole and low in (0, 1):
        return "counts"
    if is_whole and low > 1:
        return "whole"
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


def columns_of_values(
    values: np.ndarray,
    names: Sequence[str] = (),
    categories: Mapping[str, tuple[str, ...]] | None = None,
) -> list[Column]:
    """Describe each column.

    Args:
        values: The values, `[N, ...]`.
        names: The names of the d columns of a table.
        categories: The categories of columns of codes, by name.

    Returns:
        The description of each of d columns.
    """
    flat = values.reshape(len(values), -1)
    counts = [len((categories or {}).get(name, ())) for name in names] or [0] * flat.shape[1]
    return [Column.of(column, count) for column, count in zip(flat.T, counts, strict=True)]


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
    >>> suggestion(columns_of_values(np.array([[0, 5], [2, 4], [1, 6]]))).likelihood
    'poisson'
    """
    kinds = {column.kind for column in columns} - {"constant"}
    if "codes" in kinds:
        return Suggestion(mixed_likelihood(columns), "standard", "has columns of categories")
    low = min((c.low for c in columns), default=0.0)
    high = max((c.high for c in columns), default=1.0)
    if low >= 0 and high <= 1:
        if kinds <= {"binary"}:
            return Suggestion("bernoulli", None, "has values 0 and 1")
        return Suggestion("bernoulli", None, "has values in [0, 1], which are binarized")
    if "counts" in kinds and kinds <= {"binary", "counts", "whole"}:
        name = count_likelihood(columns)
        return Suggestion(name, None, f"has whole numbers from {low:g} to {high:g}")
    if kinds & {"binary", "counts"} and len(columns) <= MOST_MIXED:
        reason = "has columns of different kinds"
        return Suggestion(mixed_likelihood(columns), "standard", reason)
    reason = f"has values from {low:.4g} to {high:.4g}"
    return Suggestion("normal:scale=learned", "standard", reason)


def mixed_likelihood(columns: Sequence[Column]) -> str:
    """Return the mixed likelihood in which each column has one of its kind.

    Args:
        columns: The description of each column.

    Returns:
        The text: a Categorical for codes, a Bernoulli for 0 and 1, a likelihood of counts for
        whole numbers from 0 or 1 on, else a Normal with a scale of its own.

    >>> mixed_likelihood([Column.of(np.array([0, 1]), 2), Column.of(np.array([0.5, -1]))])
    'mixed:columns=categorical(2)+normal(feature)'
    """
    return f"mixed:columns={_groups([_likelihood(column) for column in columns])}"


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
    if column.categories:
        return f"categorical({column.categories})"
    if column.kind == "counts":
        return count_likelihood([column])
    return "bernoulli" if column.kind == "binary" else "normal(feature)"


def _groups(names: Sequence[str]) -> str:
    """Names of the likelihoods of columns, neighbours together, as `mixed` takes them."""
    counted = [(name, len(list(same))) for name, same in groupby(names)]
    return "+".join(f"{name}*{count}" if count > 1 else name for name, count in counted)
