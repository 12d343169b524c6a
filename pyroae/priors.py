"""The first choice: the prior p(z) over the latent features, `[m]`."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyroae.distributions import BINARY, REAL, OneHots, _Improper, one_hot, states_of
from pyroae.errors import ConfigError
from pyroae.registry import Registry

PRIORS: "Registry[Prior]" = Registry("prior")


class Prior(ABC):
    """A distribution over z. To add one: a frozen dataclass with a `distribution`, and `@PRIORS.register("name")`."""

    def learned(self, latent: int) -> nn.Module:
        """What the prior learns; none by default."""
        return nn.ParameterDict()

    def support(self, latent: int) -> str:
        """What z may be; prior and posterior must agree. Raises ConfigError for a size of z that does not suit."""
        return REAL

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
            raise ConfigError(
                f"the rate of a Laplace prior must be positive and finite, not {self.rate}"
            )

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        return dist.Laplace(zeros, zeros + 1 / self.rate).to_event(1)


@PRIORS.register("bernoulli")
@dataclass(frozen=True)
class Bernoulli(Prior):
    """z_j ~ Bernoulli(p), zeros and ones; with `learn`, each p_j is a parameter that starts at `probability`."""

    probability: float = 0.5
    learn: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1:
            raise ConfigError(
                f"the probability of a Bernoulli prior must be between 0 and 1, not {self.probability}"
            )

    def support(self, latent: int) -> str:
        return BINARY

    def learned(self, latent: int) -> nn.Module:
        return nn.ParameterDict(
            {"logits": torch.full((latent,), self._logit)} if self.learn else {}
        )

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        logits = cast(nn.ParameterDict, learned)["logits"] if self.learn else zeros + self._logit
        return dist.Bernoulli(logits=logits).to_event(1)

    @property
    def _logit(self) -> float:
        return math.log(self.probability) - math.log1p(-self.probability)


@PRIORS.register("categorical")
@dataclass(frozen=True)
class Categorical(Prior):
    """One-hot variables side by side in z, each with as many `categories` (by default one that takes all of z).

    All states are equally likely; with `learn`, their probabilities are parameters.
    """

    categories: int | None = None
    learn: bool = False

    def support(self, latent: int) -> str:
        return one_hot(states_of(latent, self.categories))

    def learned(self, latent: int) -> nn.Module:
        return nn.ParameterDict({"logits": torch.zeros(latent)} if self.learn else {})

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        logits = cast(nn.ParameterDict, learned)["logits"] if self.learn else zeros
        return OneHots(logits.unflatten(-1, (-1, states_of(len(zeros), self.categories))))


@dataclass(frozen=True)
class GaussianWeights:
    """A prior w ~ N(0, scale²) on every weight of the decoder, shared by `num_data` data: MAP, weight decay in nats."""

    scale: float
    num_data: int

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf or self.num_data < 1:
            raise ConfigError(
                f"a weight prior takes a positive scale and at least one datum, not {self}"
            )

    def distribution(self, weights: Tensor) -> dist.TorchDistribution:
        """p(w) with the event shape of `weights`, `[P]`."""
        return dist.Normal(torch.zeros_like(weights), self.scale).to_event(1)
