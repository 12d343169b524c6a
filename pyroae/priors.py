"""The first choice: the prior p(z) over the latent features, `[m]`."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyroae.errors import ConfigError
from pyroae.registry import Registry

PRIORS: "Registry[Prior]" = Registry("prior")


class Prior(ABC):
    """A distribution over z. To add one: a frozen dataclass with a `distribution`, and `@PRIORS.register("name")`."""

    def learned(self, latent: int) -> nn.Module:
        """What the prior learns; none by default."""
        return nn.ParameterDict()

    @abstractmethod
    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """p(z) with event shape `[m]`; `zeros` `[m]` gives size, dtype and device."""


@PRIORS.register("flat")
@dataclass(frozen=True)
class Flat(Prior):
    """The improper p(z) ∝ 1 of PCA and plain autoencoders: log-density 0, no samples, no evidence."""

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        return _Improper(zeros)


@PRIORS.register("normal")
@dataclass(frozen=True)
class Normal(Prior):
    """z ~ N(0, I)."""

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        return dist.Normal(zeros, zeros + 1).to_event(1)


@PRIORS.register("laplace")
@dataclass(frozen=True)
class Laplace(Prior):
    """z_j ~ Laplace(0, 1/λ): −log p(z) = λ‖z‖₁ + m log(2/λ), the L1 penalty under MAP (Olshausen & Field 1996)."""

    rate: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise ConfigError(f"the rate of a Laplace prior must be positive and finite, not {self.rate}")

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        return dist.Laplace(zeros, zeros + 1 / self.rate).to_event(1)


@dataclass(frozen=True)
class GaussianWeights:
    """A prior w ~ N(0, scale²) on every weight of the decoder, shared by `num_data` data: MAP, weight decay in nats."""

    scale: float
    num_data: int

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf or self.num_data < 1:
            raise ConfigError(f"a weight prior takes a positive scale and at least one datum, not {self}")

    def distribution(self, weights: Tensor) -> dist.TorchDistribution:
        """p(w) with the event shape of `weights`, `[P]`."""
        return dist.Normal(torch.zeros_like(weights), self.scale).to_event(1)


class _Improper(dist.ImproperUniform):
    """Pyro's ImproperUniform with log-densities in the dtype and on the device of z."""

    def __init__(self, zeros: Tensor, batch_shape: tuple[int, ...] = ()) -> None:
        self._zeros = zeros
        super().__init__(constraints.real_vector, batch_shape, zeros.shape)

    def expand(self, batch_shape: tuple[int, ...], _instance: object = None) -> "_Improper":
        return _Improper(self._zeros, tuple(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return (value.sum(-1) * 0).expand(value.shape[:-1])
