"""Estimates with 95 % intervals, as the rows and claims of a paper need them."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from pyroae.papers.paper import Work
from pyroae.papers.results import Claim, PaperRow

Interval = tuple[float, float, float]
"""An estimate, and the lower and the upper end of its 95 % interval."""


def mean_of(values: Tensor) -> Interval:
    """Estimate the mean of independent values.

    Args:
        values: The values, `[N]`.

    Returns:
        Their mean, and its interval of ± 1.96 standard errors.

    >>> import torch
    >>> [round(end, 2) for end in mean_of(torch.tensor([1.0, 2.0, 3.0, 4.0]))]
    [2.5, 1.23, 3.77]
    """
    values = values.double()
    mean, error = values.mean().item(), 1.96 * values.std().item() / len(values) ** 0.5
    return mean, mean - error, mean + error


def jackknife_of(value: float, left_out: Tensor) -> Interval:
    """Return the interval of a function of means, by the jackknife.

        SE² = (N − 1)/N Σ_n (f₋ₙ − mean f₋)²

    Args:
        value: The function of all N data.
        left_out: The function without each of the data, `[N]`.

    Returns:
        The value, and its interval of ± 1.96 standard errors.

    References:
        Quenouille 1949, Approximate tests of correlation in time-series.
        Tukey 1958, Bias and confidence in not quite large samples.

    >>> import torch
    >>> [round(end, 2) for end in jackknife_of(2.5, torch.tensor([3.0, 2.667, 2.333, 2.0]))]
    [2.5, 1.23, 3.77]
    """
    count = len(left_out)
    error = 1.96 * ((count - 1) * left_out.double().var(correction=0)).sqrt().item()
    return value, value - error, value + error


def negative(interval: Sequence[float]) -> Interval:
    """Return the interval of the negative of a number.

    Args:
        interval: The estimate and the ends of its interval.

    Returns:
        The same of −1 times the number.

    >>> negative((-0.5, -0.6, -0.4))
    (0.5, 0.4, 0.6)
    """
    value, low, high = interval
    return -value, -high, -low


def is_wanted(work: Work, rows: Sequence[PaperRow], claims: Sequence[Claim]) -> bool:
    """Return whether any of these rows and claims is to be measured.

    Args:
        work: The measurement.
        rows: Rows of the paper.
        claims: Claims of the paper.

    Returns:
        Whether `Work.wants` accepts one of them.
    """
    return any(map(work.wants, [row.label for row in rows] + [claim.text for claim in claims]))


def measured_parts(
    work: Work,
    rows: Sequence[PaperRow],
    claims: Sequence[Claim],
    values: Mapping[str, Sequence[float]],
) -> Iterator[PaperRow | Claim]:
    """Give the rows and claims their estimates.

    Args:
        work: The measurement, which selects rows and claims.
        rows: Rows, whose labels are unique in the paper.
        claims: Claims of the paper.
        values: Estimate and interval by the label of a row or the text of a claim. Others are left
            out.

    Yields:
        The rows and claims that are selected and measured.
    """
    for row in rows:
        if work.wants(row.label) and row.label in values:
            yield row.measured(*values[row.label])
    for claim in claims:
        if work.wants(claim.text) and claim.text in values:
            yield claim.measured(*values[claim.text])
