"""The fourth choice: a corruption of the guide's input, as in denoising autoencoders. The target is never touched."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pyroae.errors import ConfigError
from pyroae.registry import Registry

CORRUPTIONS: "Registry[Corruption]" = Registry("corruption")


class Corruption(ABC):
    """A random map x → x̃. To add one: a frozen dataclass, and `@CORRUPTIONS.register("name")`."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A corrupted copy of x `[..., d]`, drawn from torch's generator."""


@CORRUPTIONS.register("none")
@dataclass(frozen=True)
class Identity(Corruption):
    """x̃ = x."""

    def __call__(self, x: Tensor) -> Tensor:
        return x


@CORRUPTIONS.register("gaussian")
@dataclass(frozen=True)
class Gaussian(Corruption):
    """x̃ = x + scale ε, ε ~ N(0, I) (Vincent et al. 2010)."""

    scale: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ConfigError(
                f"the scale of a Gaussian corruption must be positive and finite, not {self.scale}"
            )

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.randn_like(x)


@CORRUPTIONS.register("masking")
@dataclass(frozen=True)
class Masking(Corruption):
    """Each feature is set to 0 with the given probability (Vincent et al. 2008)."""

    probability: float = 0.25

    def __post_init__(self) -> None:
        _check_probability(self.probability)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(torch.rand_like(x) < self.probability, torch.zeros_like(x), x)


@CORRUPTIONS.register("salt-and-pepper")
@dataclass(frozen=True)
class SaltAndPepper(Corruption):
    """Each feature is set to 0 or 1, evenly, with the given probability (Vincent et al. 2010)."""

    probability: float = 0.25

    def __post_init__(self) -> None:
        _check_probability(self.probability)

    def __call__(self, x: Tensor) -> Tensor:
        u = torch.rand_like(x)
        return torch.where(u < self.probability, (u < self.probability / 2).to(x.dtype), x)


def _check_probability(probability: float) -> None:
    if not 0 < probability <= 1:
        raise ConfigError(f"the probability of a corruption must be in (0, 1], not {probability}")
