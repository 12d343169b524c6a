"""Means and variances of gradients, one of each datum, and functions of them with intervals."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pyroae.evaluation.gradient_lab.statistics import GradientStatistics
from pyroae.papers.estimates import Interval, jackknife_of

Moments = Mapping[str, tuple[Tensor, Tensor]]
"""Mean and variance of one datum's gradient by estimator: `[..., len(ks)]` at several K."""


def of_one_datum(statistics: GradientStatistics) -> tuple[Tensor, Tensor]:
    """Return mean and variance of one datum's gradient, where each of N data has its own parameter.

    The laboratory's gradients are those of a mean over the N data.

    Args:
        statistics: Statistics of the gradient of a parameter `[N]`.

    Returns:
        Mean in nats and variance in nats², `[N]` each, in double precision.
    """
    count = len(statistics.mean)
    return statistics.mean.double() * count, statistics.variance.double() * count**2


def at_each_k(statistics: Sequence[GradientStatistics]) -> tuple[Tensor, Tensor]:
    """Return mean and variance of one datum's gradient at each K.

    Args:
        statistics: Statistics at each K, G of them.

    Returns:
        Mean in nats and variance in nats², `[N, G]` each.
    """
    means, variances = zip(*map(of_one_datum, statistics), strict=True)
    return torch.stack(means, 1), torch.stack(variances, 1)


def log_slope(values: Tensor, ks: Sequence[float]) -> Tensor:
    """Fit the log-log slope of values in K by least squares.

    Args:
        values: Positive values, `[..., len(ks)]`.
        ks: K, at least two different positive numbers.

    Returns:
        The slopes, `[...]`.

    >>> round(log_slope(torch.tensor([8.0, 4.0, 2.0]), (4, 16, 64)).item(), 6)
    -0.5
    """
    log_k = torch.tensor(ks, dtype=torch.float64).log()
    direction = log_k - log_k.mean()
    return values.double().log() @ direction / direction.square().sum()


def jackknifed(
    moments: Moments, series: Callable[[Moments], Mapping[str, Tensor]]
) -> dict[str, Interval]:
    """Return functions of the moments with intervals, by the jackknife over the data.

    Args:
        moments: Mean and variance of each datum's gradient, `[N, ...]` each.
        series: From moments without or with a leading dimension of data, values `[]` or `[N]`.

    Returns:
        Estimate and interval of each value, by its label.
    """
    count = len(next(iter(moments.values()))[0])
    whole = series({name: (mean.mean(0), v.mean(0)) for name, (mean, v) in moments.items()})
    left_out = series(
        {
            name: ((mean.sum(0) - mean) / (count - 1), (v.sum(0) - v) / (count - 1))
            for name, (mean, v) in moments.items()
        }
    )
    return {label: jackknife_of(value.item(), left_out[label]) for label, value in whole.items()}
