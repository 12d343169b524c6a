"""The second choice: the amortized posterior q(z|x), given by what the encoder puts out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import pyro.distributions as dist
from torch import Tensor, nn

from pyroae import linear_gaussian
from pyroae.distributions import BINARY, REAL, OneHots, one_hot, states_of
from pyroae.registry import Registry

POSTERIORS: "Registry[Posterior]" = Registry("posterior")


class Encoding(Protocol):
    """What a posterior may use of the autoencoder it belongs to."""

    encoder: nn.Module

    def linear_gaussian(self) -> tuple[Tensor, Tensor, Tensor]:
        """W `[d, m]`, b `[d]` and σ of a linear-Gaussian system."""
        ...


class Posterior(ABC):
    """A distribution over z given x. To add one: a frozen dataclass, and `@POSTERIORS.register("name")`."""

    def outputs(self, latent: int) -> int:
        """How many numbers the encoder puts out; 0 where no encoder is needed."""
        return latent

    def support(self, latent: int) -> str:
        """What z may be; prior and posterior must agree. Raises ConfigError for a size of z that does not suit."""
        return REAL

    @abstractmethod
    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        """q(z|x) for x `[..., d]`, with batch shape `[...]` and event shape `[m]`."""


@POSTERIORS.register("point")
@dataclass(frozen=True)
class Point(Posterior):
    """z = f(x), a Delta: the ELBO becomes the MAP objective log p(x|z) + log p(z)."""

    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        return dist.Delta(system.encoder(x)).to_event(1)


@POSTERIORS.register("diagonal")
@dataclass(frozen=True)
class Diagonal(Posterior):
    """q(z|x) = N(μ(x), diag σ(x)²), reparameterized as z = μ + σ ε (Kingma & Welling 2014)."""

    def outputs(self, latent: int) -> int:
        return 2 * latent

    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        loc, log_variance = system.encoder(x).chunk(2, dim=-1)
        return dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1)


@POSTERIORS.register("exact-linear")
@dataclass(frozen=True)
class ExactLinear(Posterior):
    """The exact posterior of a linear-Gaussian system, N(M⁻¹Wᵀ(x − b), σ²M⁻¹) with M = WᵀW + σ²I: no encoder.

    The ELBO then equals log p(x), sample by sample (Tipping & Bishop 1999).
    """

    def outputs(self, latent: int) -> int:
        return 0

    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        loc, tril = linear_gaussian.posterior(x, *system.linear_gaussian())
        return dist.MultivariateNormal(loc, scale_tril=tril)


@POSTERIORS.register("bernoulli")
@dataclass(frozen=True)
class Bernoulli(Posterior):
    """q(z_j|x) = Bernoulli(p_j(x)): zeros and ones, without reparameterization."""

    def support(self, latent: int) -> str:
        return BINARY

    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=system.encoder(x)).to_event(1)


@POSTERIORS.register("categorical")
@dataclass(frozen=True)
class Categorical(Posterior):
    """One-hot variables side by side in z, each with as many `categories` (by default one that takes all of z)."""

    categories: int | None = None

    def support(self, latent: int) -> str:
        return one_hot(states_of(latent, self.categories))

    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        logits = system.encoder(x)
        return OneHots(logits.unflatten(-1, (-1, states_of(logits.shape[-1], self.categories))))
