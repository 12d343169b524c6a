"""Test statistics of data: the mean, the spread, extremes and the share of zeros."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from pyroae.errors import ConfigError

Statistic = Callable[[Tensor], Tensor]
"""A function from data `[..., N, d]` to one number for each, `[...]`; NaN marks missing values."""


def mean(x: Tensor) -> Tensor:
    """Return the mean of all values.

    Args:
        x: Data, shape `[..., N, d]`, NaN where missing.

    Returns:
        The mean of the values that are not missing, shape `[...]`.

    >>> mean(torch.tensor([[1.0, torch.nan], [2.0, 3.0]]))
    tensor(2.)
    """
    return _mean(x.flatten(-2))


def sd(x: Tensor) -> Tensor:
    """Return the standard deviation of all values, √(Σ (x − x̄)² / n).

    Args:
        x: Data, shape `[..., N, d]`, NaN where missing.

    Returns:
        The standard deviation of the values that are not missing, shape `[...]`.

    >>> sd(torch.tensor([[1.0, torch.nan], [1.0, 4.0]]))
    tensor(1.4142)
    """
    values = x.flatten(-2)
    return _mean((values - _mean(values).unsqueeze(-1)).square()).sqrt()


def zeros(x: Tensor) -> Tensor:
    """Return the share of values that are exactly 0.

    Args:
        x: Data, shape `[..., N, d]`, NaN where missing.

    Returns:
        The share among the values that are not missing, shape `[...]`.

    >>> zeros(torch.tensor([[0.0, torch.nan], [0.0, 4.0]]))
    tensor(0.6667)
    """
    is_zero = (x == 0).to(x.dtype)
    return mean(torch.where(x.isnan(), x, is_zero) if _has_missing(x) else is_zero)


def least(x: Tensor) -> Tensor:
    """Return the smallest value.

    Args:
        x: Data, shape `[..., N, d]`, NaN where missing.

    Returns:
        The smallest of the values that are not missing, shape `[...]`.

    >>> least(torch.tensor([[1.0, torch.nan], [-2.0, 3.0]]))
    tensor(-2.)
    """
    return -largest(-x)


def largest(x: Tensor) -> Tensor:
    """Return the largest value.

    Args:
        x: Data, shape `[..., N, d]`, NaN where missing.

    Returns:
        The largest of the values that are not missing, shape `[...]`; NaN where all are.

    >>> largest(torch.tensor([[1.0, torch.nan], [-2.0, 3.0]]))
    tensor(3.)
    """
    values = x.flatten(-2)
    if not _has_missing(x):
        return values.amax(-1)
    found = torch.where(values.isnan(), -torch.inf, values).amax(-1)
    return torch.where(values.isnan().all(-1), torch.nan, found)


def spread(x: Tensor) -> Tensor:
    """Return the standard deviation, over the data, of the mean of each datum.

    It is large where the values of a datum vary together, as the pixels of bold and of thin digits
    do, which `mean` and `sd` do not see.

    Args:
        x: Data, shape `[..., N, d]`, NaN where missing.

    Returns:
        The standard deviation of the N means, shape `[...]`; 0 for N = 1.

    >>> spread(torch.tensor([[0.0, 2.0], [5.0, 5.0]]))
    tensor(2.)
    """
    return sd(_mean(x).unsqueeze(-1))


STATISTICS: Mapping[str, Statistic] = MappingProxyType(
    {"mean": mean, "sd": sd, "spread": spread, "zeros": zeros, "min": least, "max": largest}
)
"""The statistics of a predictive check by default."""


def views_of(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return data as one set, as N sets of one datum, and as d sets of one feature.

    Args:
        x: Data, shape `[N, d]`.

    Returns:
        Tensors of the shapes `[N, d]`, `[N, 1, d]` and `[d, N, 1]`.

    >>> [tuple(view.shape) for view in views_of(torch.zeros(3, 4))]
    [(3, 4), (3, 1, 4), (4, 3, 1)]
    """
    return x, x.unsqueeze(1), x.t().contiguous().unsqueeze(2)


def applied(name: str, statistic: Statistic, views: Sequence[Tensor]) -> list[Tensor]:
    """Apply a statistic to several views of data.

    Args:
        name: The name of the statistic, for the error.
        statistic: A function from `[..., N, d]` to `[...]`.
        views: Data, shape `[..., N, d]` each.

    Returns:
        For each view the statistics, shape `[...]`, float64.

    Raises:
        ConfigError: The statistic does not return one number for each data set.
    """
    found = []
    for data in views:
        value = torch.as_tensor(statistic(data))
        if value.shape != data.shape[:-2]:
            raise ConfigError(
                f"the statistic '{name}' has the shape {tuple(value.shape)} for data of the shape "
                f"{tuple(data.shape)}: it takes [..., N, d] and returns [...]"
            )
        found.append(value.double())
    return found


def _mean(values: Tensor) -> Tensor:
    """The mean of what is not missing, over the last dimension."""
    return values.nanmean(-1) if _has_missing(values) else values.mean(-1)


def _has_missing(values: Tensor) -> bool:
    """Whether there may be a NaN; the sum is cheaper than a search."""
    return bool(values.sum().isnan())
