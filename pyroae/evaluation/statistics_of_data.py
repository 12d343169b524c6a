"""Test statistics of data: the mean, the spread, extremes and the share of zeros."""

from collections.abc import Callable, Mapping
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
    return x.flatten(-2).nanmean(-1)


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
    return (values - values.nanmean(-1, keepdim=True)).square().nanmean(-1).sqrt()


def zeros(x: Tensor) -> Tensor:
    """Return the share of values that are exactly 0.

    Args:
        x: Data, shape `[..., N, d]`, NaN where missing.

    Returns:
        The share among the values that are not missing, shape `[...]`.

    >>> zeros(torch.tensor([[0.0, torch.nan], [0.0, 4.0]]))
    tensor(0.6667)
    """
    return mean(torch.where(x.isnan(), x, (x == 0).to(x.dtype)))


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
    return sd(x.nanmean(-1, keepdim=True))


STATISTICS: Mapping[str, Statistic] = MappingProxyType(
    {"mean": mean, "sd": sd, "spread": spread, "zeros": zeros, "min": least, "max": largest}
)
"""The statistics of a predictive check by default."""


def of_set_rows_and_columns(
    name: str, statistic: Statistic, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply a statistic to all data, to each datum and to each feature.

    Args:
        name: The name of the statistic, for the error.
        statistic: A function from `[..., N, d]` to `[...]`.
        x: Data, shape `[N, d]`.

    Returns:
        T(x), shape `[]`; T of each datum, shape `[N]`; and of each feature, shape `[d]`; float64.

    Raises:
        ConfigError: The statistic does not return one number for each data set.
    """
    found = []
    for data, shape in ((x, ()), (x.unsqueeze(1), x.shape[:1]), (x.t().unsqueeze(2), x.shape[1:])):
        value = torch.as_tensor(statistic(data))
        if value.shape != shape:
            raise ConfigError(
                f"the statistic '{name}' has the shape {tuple(value.shape)} for data of the shape "
                f"{tuple(data.shape)}: it takes [..., N, d] and returns [...]"
            )
        found.append(value.double())
    return found[0], found[1], found[2]
