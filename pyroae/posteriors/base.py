"""What a posterior q(z|x) is: a distribution made of the encoder's outputs and learned parts."""

from abc import ABC, abstractmethod
from typing import Protocol

import pyro.distributions as dist
from torch import Tensor, nn

from pyroae.distributions import REAL
from pyroae.registry import Registry

POSTERIORS: "Registry[Posterior]" = Registry("posterior")
"""The table of posteriors by name."""


class Encoding(Protocol):
    """The parts of an autoencoder that a posterior may use.

    Attributes:
        encoder: The map from data to the parameters of q(z|x).
        learned_posterior: The module that `Posterior.learned` returned.
    """

    encoder: nn.Module
    learned_posterior: nn.Module

    def linear_gaussian(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return W, b and σ of a linear-Gaussian system.

        Returns:
            W, shape `[d, m]`, b, shape `[d]`, and σ, shape `[]`.
        """
        ...


class Posterior(ABC):
    """A distribution over z given x.

    To add one, write a frozen dataclass with `distribution` and register it with
    `@POSTERIORS.register("name")`.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class UnitVariance(Posterior):
    ...     def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
    ...         return dist.Normal(system.encoder(x), 1.0).to_event(1)
    >>> UnitVariance().outputs(latent=2)
    2
    """

    def outputs(self, latent: int) -> int:
        """Return the number of outputs of the encoder.

        Args:
            latent: m, the size of z.

        Returns:
            m by default; 0 for a posterior that needs no encoder.

        >>> from pyroae.posteriors import Diagonal, ExactLinear
        >>> Diagonal().outputs(latent=3), ExactLinear().outputs(latent=3)
        (6, 0)
        """
        return latent

    def learned(self, latent: int) -> nn.Module:
        """Return a new module with parameters beside the encoder's; empty by default.

        Args:
            latent: m, the size of z.

        Returns:
            A module that the autoencoder registers as `learned_posterior`, such as the networks of
                a flow.

        >>> from pyroae.posteriors import Diagonal
        >>> len(list(Diagonal().learned(latent=3).parameters()))
        0
        """
        return nn.ParameterDict()

    def support(self, latent: int) -> str:
        """Return the name of the support of z, which prior and posterior must share.

        Args:
            latent: m, the size of z.

        Returns:
            `real` by default; `binary`, or a name that includes the number of categories.

        Raises:
            ConfigError: The posterior is not defined for z of this size.
        """
        return REAL

    @abstractmethod
    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        """Return the distribution q(z|x).

        Args:
            x: Data, shape `[..., d]`.
            system: The autoencoder, with its encoder.

        Returns:
            q(z|x), with batch shape `[...]` and event shape `[m]`.
        """
