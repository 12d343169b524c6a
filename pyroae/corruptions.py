"""The fourth choice: a corruption x → x̃ of the guide's input, as in denoising autoencoders.

The target of the likelihood stays x.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pyroae.errors import ConfigError
from pyroae.registry import Registry

CORRUPTIONS: "Registry[Corruption]" = Registry("corruption")
"""The table of corruptions by name."""


class Corruption(ABC):
    """A random map x → x̃.

    To add one, write a frozen dataclass with `__call__` and register it with
    `@CORRUPTIONS.register("name")`.

    >>> @dataclass(frozen=True)
    ... class Negative(Corruption):
    ...     def __call__(self, x: Tensor) -> Tensor:
    ...         return -x
    >>> Negative()(torch.ones(2))
    tensor([-1., -1.])
    """

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Return a corrupted copy of x, with random draws from torch's generator.

        Args:
            x: Data, shape `[..., d]`.

        Returns:
            x̃, of the shape of `x`.
        """


@CORRUPTIONS.register("none")
@dataclass(frozen=True)
class Identity(Corruption):
    """No corruption: x̃ = x.

    >>> Identity()(torch.ones(3))
    tensor([1., 1., 1.])
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Return x itself."""
        return x


@CORRUPTIONS.register("gaussian")
@dataclass(frozen=True)
class Gaussian(Corruption):
    """Additive Gaussian noise.

        x̃ = x + scale ε,   ε ~ N(0, I)

    Attributes:
        scale: The standard deviation of the noise, positive and finite, in units of x.

    Raises:
        ConfigError: `scale` is not positive and finite.

    References:
        Vincent et al. 2010, Stacked Denoising Autoencoders: Learning Useful Representations in a
            Deep Network with a Local Denoising Criterion.

    >>> Gaussian(scale=0.1)(torch.zeros(3, 4)).shape
    torch.Size([3, 4])
    """

    scale: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ConfigError(
                f"the scale of a Gaussian corruption must be positive and finite, not {self.scale}"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """Return x plus noise, of the shape of `x`."""
        return x + self.scale * torch.randn_like(x)


@CORRUPTIONS.register("masking")
@dataclass(frozen=True)
class Masking(Corruption):
    """Masking noise: each feature is set to 0 with a given probability.

    Attributes:
        probability: The probability that a feature is set to 0, in (0, 1].

    Raises:
        ConfigError: `probability` lies outside (0, 1].

    References:
        Vincent et al. 2008, Extracting and Composing Robust Features with Denoising Autoencoders.

    >>> Masking(probability=1.0)(torch.ones(3))
    tensor([0., 0., 0.])
    """

    probability: float = 0.25

    def __post_init__(self) -> None:
        _check_probability(self.probability)

    def __call__(self, x: Tensor) -> Tensor:
        """Return x with masked features, of the shape of `x`."""
        return torch.where(torch.rand_like(x) < self.probability, torch.zeros_like(x), x)


@CORRUPTIONS.register("salt-and-pepper")
@dataclass(frozen=True)
class SaltAndPepper(Corruption):
    """Salt-and-pepper noise: each feature is set to 0 or 1 with a given probability.

    Attributes:
        probability: The probability that a feature is replaced, in (0, 1]; 0 and 1 are equally
            likely.

    Raises:
        ConfigError: `probability` lies outside (0, 1].

    References:
        Vincent et al. 2010, Stacked Denoising Autoencoders: Learning Useful Representations in a
            Deep Network with a Local Denoising Criterion.

    >>> sorted(SaltAndPepper(probability=1.0)(torch.full((100,), 0.5)).unique().tolist())
    [0.0, 1.0]
    """

    probability: float = 0.25

    def __post_init__(self) -> None:
        _check_probability(self.probability)

    def __call__(self, x: Tensor) -> Tensor:
        """Return x with replaced features, of the shape of `x`."""
        u = torch.rand_like(x)
        return torch.where(u < self.probability, (u < self.probability / 2).to(x.dtype), x)


def _check_probability(probability: float) -> None:
    if not 0 < probability <= 1:
        raise ConfigError(f"the probability of a corruption must be in (0, 1], not {probability}")
