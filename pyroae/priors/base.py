"""What a prior p(z) is: a frozen value with a name, learned parts and a distribution."""

from abc import ABC, abstractmethod
from typing import Any, Protocol

import pyro.distributions as dist
from torch import Tensor, nn

from pyroae.distributions import REAL
from pyroae.registry import Registry

PRIORS: "Registry[Prior]" = Registry("prior")
"""The table of priors by name."""


class Amortized(Protocol):
    """The parts of an autoencoder that a prior may use.

    Attributes:
        learned_prior: The module that `Prior.learned` returned.
        posterior: The choice of q(z|x).
        features: d, the number of features of one datum.
    """

    learned_prior: nn.Module
    posterior: Any
    features: int

    @property
    def zeros(self) -> Tensor:
        """Zeros of shape `[m]`, which give size, dtype and device of z."""
        ...

    def q_z(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch shape `[N]`, event shape `[m]`, for x `[N, d]`."""
        ...


class Prior(ABC):
    """A distribution over z.

    To add one, write a frozen dataclass with `distribution` and register it with
    `@PRIORS.register("name")`.

    >>> import torch
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Wide(Prior):
    ...     def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
    ...         return dist.Normal(zeros, zeros + 10).to_event(1)
    >>> Wide().distribution(torch.zeros(2), nn.ParameterDict()).event_shape
    torch.Size([2])
    """

    def learned(self, latent: int, features: int) -> nn.Module:
        """Return a new module with the prior's parameters; empty by default.

        Args:
            latent: m, the size of z.
            features: d, the number of observed features, for priors that are made of data.

        Returns:
            A module that the autoencoder registers and passes to `distribution`.

        >>> from pyroae.priors import Bernoulli
        >>> Bernoulli(learn=True).learned(latent=3, features=5)["logits"].shape
        torch.Size([3])
        """
        return nn.ParameterDict()

    def start(self, learned: nn.Module, x: Tensor) -> None:
        """Set the learned parameters to their start for a data set; unchanged by default.

        Args:
            learned: The module that `learned` returned, which is changed in place.
            x: Some of the data, shape `[n, d]`.
        """
        return

    def support(self, latent: int) -> str:
        """Return the name of the support of z, which prior and posterior must share.

        Args:
            latent: m, the size of z.

        Returns:
            `real` by default; `binary`, or a name that includes the number of categories.

        Raises:
            ConfigError: The prior is not defined for z of this size.
        """
        return REAL

    def check(self, system: Amortized) -> None:
        """Refuse a system of which the prior cannot be made; by default every system is taken.

        Args:
            system: The autoencoder, whose parts exist.

        Raises:
            ConfigError: The prior cannot be made of this posterior.
        """
        return

    @abstractmethod
    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return the distribution p(z).

        Args:
            zeros: Zeros of shape `[m]`, which give size, dtype and device.
            learned: The module that `learned` returned.

        Returns:
            p(z), with event shape `[m]`.
        """

    def of(self, system: Amortized) -> dist.TorchDistribution:
        """Return p(z) of a system; a prior that is made of its posterior overrides this.

        Args:
            system: The autoencoder.

        Returns:
            `distribution` of the system's zeros and learned parameters, event shape `[m]`.

        >>> from pyroae import zoo
        >>> from pyroae.priors import Normal
        >>> Normal().of(zoo.vae(4, latent=2)).event_shape
        torch.Size([2])
        """
        return self.distribution(system.zeros, system.learned_prior)
