"""The prior of the decoder's weights, for MAP."""

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyroae.errors import ConfigError


@dataclass(frozen=True)
class GaussianWeights:
    """A Gaussian prior on every weight of the decoder, for MAP: weight decay in nats.

        w_i ~ N(0, scale²)

    The training set shares one set of weights: a batch of B data adds log p(w) · B / num_data.

    Attributes:
        scale: The standard deviation of each weight, positive and finite.
        num_data: The number of data in the training set, at least 1.

    Raises:
        ConfigError: `scale` is not positive and finite, or `num_data` is below 1.

    >>> GaussianWeights(scale=1.0, num_data=100).distribution(torch.zeros(5)).event_shape
    torch.Size([5])
    """

    scale: float
    num_data: int

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf or self.num_data < 1:
            raise ConfigError(
                f"a weight prior takes a positive scale and at least one datum, not {self}"
            )

    def distribution(self, weights: Tensor) -> dist.TorchDistribution:
        """Return the prior p(w) of a vector of weights.

        Args:
            weights: The P weights, shape `[P]`, which give size, dtype and device.

        Returns:
            p(w), with event shape `[P]`.

        >>> GaussianWeights(2.0, 100).distribution(torch.zeros(5)).variance
        tensor([4., 4., 4., 4., 4.])
        """
        return dist.Normal(torch.zeros_like(weights), self.scale).to_event(1)
