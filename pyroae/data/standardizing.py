"""Features with mean 0 and standard deviation 1, by the statistics of the training data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyroae.data.dataset import Dataset
from pyroae.errors import DataError

if TYPE_CHECKING:
    from pyroae.data.loading import Splits


@dataclass(frozen=True, eq=False)
class Standardization:
    """A shift and a unit for each feature.

        x → (x − mean) / deviation

    A density of standardized values is that of the values as stored, times Π_j deviation_j:
    log p(x stored) = log p(x standardized) − Σ_j log deviation_j.

    Attributes:
        mean: The mean of each feature in the training data, `[d]`; 0 for one that stays as stored.
        deviation: Its standard deviation, `[d]`; 1 for one that stays, or is constant.

    >>> by = Standardization.of(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    >>> by.apply(torch.tensor([[1.0, 5.0], [4.0, 6.0]])).tolist()
    [[-1.0, 0.0], [2.0, 1.0]]
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, x: Tensor, columns: Sequence[bool] | None = None) -> "Standardization":
        """Measure mean and standard deviation.

        Args:
            x: The training data, `[n, d]`, NaN where missing.
            columns: Which features are standardized, d of them; by default all.

        Returns:
            The standardization.
        """
        values = x.double()
        mean = values.nanmean(0)
        deviation = (values - mean).square().nanmean(0).sqrt()
        chosen = torch.ones_like(mean, dtype=torch.bool)
        if columns is not None:
            chosen = torch.tensor(columns, dtype=torch.bool)
        mean = torch.where(chosen & ~mean.isnan(), mean, torch.zeros_like(mean))
        is_spread = chosen & (deviation > 1e-12 * (1 + mean.abs()))
        deviation = torch.where(is_spread, deviation, torch.ones_like(deviation))
        return cls(mean, deviation)

    def apply(self, x: Tensor) -> Tensor:
        """Return standardized values.

        Args:
            x: Values as stored, `[..., d]`.

        Returns:
            The standardized values, in the type of x.
        """
        return ((x.double() - self.mean) / self.deviation).to(x.dtype)

    def log_units(self, x: Tensor) -> Tensor:
        """Return the constant between densities of standardized and of stored values.

            log p(x stored) = log p(x standardized) − log_units,   log_units = Σ_j log deviation_j

        The sum is over the observed features of each datum: log p(x) is that of these.

        Args:
            x: Data, standardized or as stored, `[N, d]`, NaN where missing.

        Returns:
            The constant of each datum, `[N]`, float64, in nats.

        >>> by = Standardization(torch.zeros(2), torch.tensor([0.0, 1.0]).exp())
        >>> by.log_units(torch.tensor([[0.0, 2.0], [0.0, float("nan")]])).round().tolist()
        [1.0, 0.0]
        """
        each = self.deviation.double().log().to(x.device)
        return torch.where(x.isnan(), 0.0, each).sum(-1)

    def inverse(self, x: Tensor) -> Tensor:
        """Return values in the units of the data.

        Args:
            x: Standardized values, `[..., d]`.

        Returns:
            The values as they would be stored, in the type of x.
        """
        return (x.double() * self.deviation + self.mean).to(x.dtype)


def standardized(
    splits: "Splits", columns: Sequence[bool] | None = None, by: Standardization | None = None
) -> "Splits":
    """Standardize all parts by the mean and the standard deviation of the training part.

    Args:
        splits: The data, as stored.
        columns: Which features are standardized; by default all.
        by: A standardization of other training data, which is then used.

    Returns:
        The same parts with standardized values, and the standardization.

    Raises:
        DataError: If the data are larger than memory, are binarized, or have another number of
            features.
    """
    train = splits.train
    if train.stream is not None:
        raise DataError(
            f"{train.name} is larger than memory and read in slices: it cannot be standardized; "
            "give a part of it that fits into memory"
        )
    if splits.binarize != "none":
        raise DataError(
            f"{train.name} is to be standardized and binarized ({splits.binarize}): choose one, "
            "or a normal likelihood"
        )
    given = columns if by is None else by.mean
    if given is not None and len(given) != train.x.shape[1]:
        raise DataError(
            f"{train.name} has {train.x.shape[1]} features, and {len(given)} are to be standardized"
        )
    found = Standardization.of(train.x, columns) if by is None else by

    def changed(part: Dataset | None) -> Dataset | None:
        return None if part is None else replace(part, x=found.apply(part.x), standardization=found)

    return replace(
        splits,
        train=replace(train, x=found.apply(train.x), standardization=found),
        valid=changed(splits.valid),
        test=changed(splits.test),
        standardization=found,
    )
