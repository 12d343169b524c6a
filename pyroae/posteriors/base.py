"""What a posterior q(z|x) is: a distribution made of the encoder's outputs and learned parts."""

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import pyro.distributions as dist
from torch import Tensor, nn

from pyroae.distributions import REAL
from pyroae.errors import ConfigError
from pyroae.registry import Registry

POSTERIORS: "Registry[Posterior]" = Registry("posterior")
"""The table of posteriors by name."""


class Encoding(Protocol):
    """The parts of an autoencoder that a posterior may use.

    Attributes:
        encoder: The map from data to the parameters of q(z|x).
        learned_posterior: The module that `Posterior.learned` returned.
        missing: Whether values of x may be missing.
    """

    encoder: nn.Module
    learned_posterior: nn.Module
    missing: bool

    @property
    def zeros(self) -> Tensor:
        """Zeros of shape `[m]`, which give size, dtype and device of z."""
        ...

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

    Attributes:
        takes_missing: Whether `distribution` takes x with NaN at missing features; else these are
            filled before.
    """

    takes_missing: ClassVar[bool] = False

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


def check_counts(what: str, **counts: int) -> None:
    """Refuse settings that are not whole numbers of at least 1.

    Args:
        what: The choice, for the message.
        counts: The settings by name.

    Raises:
        ConfigError: A setting is not a whole number of at least 1; the message names it.

    >>> check_counts("a low-rank posterior", rank=0)
    Traceback (most recent call last):
    pyroae.errors.ConfigError: rank of a low-rank posterior must be at least 1, not 0
    """
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(f"{name} of {what} must be at least 1, not {count}")


def location_and_scale(outputs: Tensor, zeros: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split the outputs of an encoder into μ, σ and the rest.

    Args:
        outputs: μ, log σ² and further outputs, shape `[..., 2m + r]`.
        zeros: Zeros of shape `[m]`, whose dtype the results have: under automatic mixed precision
            the outputs are of a lower precision, in which triangular systems are not solved.

    Returns:
        μ and σ, shape `[..., m]`, and the rest, shape `[..., r]`.

    >>> import torch
    >>> loc, scale, rest = location_and_scale(torch.zeros(5, 7), torch.zeros(2))
    >>> loc.shape, scale[0].tolist(), rest.shape
    (torch.Size([5, 2]), [1.0, 1.0], torch.Size([5, 3]))
    """
    sizes = [len(zeros), len(zeros), outputs.shape[-1] - 2 * len(zeros)]
    loc, log_variance, others = outputs.to(zeros.dtype).split(sizes, -1)
    return loc, (0.5 * log_variance).exp(), others
