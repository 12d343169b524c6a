"""The first choice: the prior p(z) over the m latent features."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyroae.distributions import BINARY, REAL, OneHots, _Improper, one_hot, states_of
from pyroae.errors import ConfigError
from pyroae.registry import Registry

PRIORS: "Registry[Prior]" = Registry("prior")
"""The table of priors by name."""


class Amortized(Protocol):
    """The parts of an autoencoder that a prior may use.

    Attributes:
        learned_prior: The module that `Prior.learned` returned.
    """

    learned_prior: nn.Module

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
        >>> Normal().of(zoo.vae(4, latent=2)).event_shape
        torch.Size([2])
        """
        return self.distribution(system.zeros, system.learned_prior)


@PRIORS.register("flat")
@dataclass(frozen=True)
class Flat(Prior):
    """The improper prior p(z) ∝ 1 of PCA and plain autoencoders.

    Its log-density is 0. It cannot be sampled, and log p(x) is undefined under it. With a point
    posterior the ELBO is then the log-likelihood of the reconstruction.

    >>> p_z = Flat().distribution(torch.zeros(3), nn.ParameterDict())
    >>> p_z.log_prob(torch.randn(5, 3)).abs()
    tensor([0., 0., 0., 0., 0.])
    """

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return an improper distribution with log-density 0, event shape `[m]`."""
        return _Improper(zeros)


@PRIORS.register("normal")
@dataclass(frozen=True)
class Normal(Prior):
    """The standard Gaussian prior.

        z ~ N(0, I),   −log p(z) = ½‖z‖² + (m/2) log 2π

    >>> p_z = Normal().distribution(torch.zeros(2), nn.ParameterDict())
    >>> p_z.log_prob(torch.zeros(2))  # −log 2π
    tensor(-1.8379)
    """

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return N(0, I), event shape `[m]`."""
        return dist.Normal(zeros, zeros + 1).to_event(1)


@PRIORS.register("laplace")
@dataclass(frozen=True)
class Laplace(Prior):
    """Independent Laplace variables: the L1 penalty of sparse coding under MAP.

        z_j ~ Laplace(0, 1/λ),   −log p(z) = λ‖z‖₁ + m log(2/λ)

    Attributes:
        rate: λ, positive and finite.

    Raises:
        ConfigError: `rate` is not positive and finite.

    References:
        Olshausen & Field 1996, Emergence of Simple-Cell Receptive Field Properties by Learning a
            Sparse Code for Natural Images.

    >>> p_z = Laplace(rate=2.0).distribution(torch.zeros(3), nn.ParameterDict())
    >>> p_z.log_prob(torch.zeros(3))  # m log(λ/2) = 0
    tensor(0.)
    """

    rate: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise ConfigError(
                f"the rate of a Laplace prior must be positive and finite, not {self.rate}"
            )

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return Laplace(0, 1/λ) for each feature, event shape `[m]`."""
        return dist.Laplace(zeros, zeros + 1 / self.rate).to_event(1)


@PRIORS.register("bernoulli")
@dataclass(frozen=True)
class Bernoulli(Prior):
    """Independent binary variables z_j ~ Bernoulli(p_j).

    Attributes:
        probability: The probability of a one, strictly between 0 and 1.
        learn: Whether each p_j is a parameter that starts at `probability`.

    Raises:
        ConfigError: `probability` is not strictly between 0 and 1.

    >>> Bernoulli(0.25).distribution(torch.zeros(2), nn.ParameterDict()).mean
    tensor([0.2500, 0.2500])
    """

    probability: float = 0.5
    learn: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1:
            raise ConfigError(
                "the probability of a Bernoulli prior must be between 0 and 1, "
                f"not {self.probability}"
            )

    def support(self, latent: int) -> str:
        """Return `binary`."""
        return BINARY

    def learned(self, latent: int, features: int) -> nn.Module:
        """Return the logits of p_j, shape `[m]`, if they are learned."""
        return nn.ParameterDict(
            {"logits": torch.full((latent,), self._logit)} if self.learn else {}
        )

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return Bernoulli(p_j) for each feature, event shape `[m]`."""
        logits = cast(nn.ParameterDict, learned)["logits"] if self.learn else zeros + self._logit
        return dist.Bernoulli(logits=logits).to_event(1)

    @property
    def _logit(self) -> float:
        return math.log(self.probability) - math.log1p(-self.probability)


@PRIORS.register("categorical")
@dataclass(frozen=True)
class Categorical(Prior):
    """Independent categorical variables, concatenated in z as one-hot vectors.

    Attributes:
        categories: C, the number of states of each variable; z holds m / C variables. None for one
            variable with m states.
        learn: Whether the probabilities of the states are parameters. They start equal; without
            `learn` they stay equal.

    >>> Categorical(2).distribution(torch.zeros(4), nn.ParameterDict()).mean
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """

    categories: int | None = None
    learn: bool = False

    def support(self, latent: int) -> str:
        """Return the name of one-hot vectors of C states; refuse a C that does not divide m."""
        return one_hot(states_of(latent, self.categories))

    def learned(self, latent: int, features: int) -> nn.Module:
        """Return the logits of the states, shape `[m]`, if they are learned."""
        return nn.ParameterDict({"logits": torch.zeros(latent)} if self.learn else {})

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return the concatenated one-hot variables, event shape `[m]`."""
        logits = cast(nn.ParameterDict, learned)["logits"] if self.learn else zeros
        return OneHots(logits.unflatten(-1, (-1, states_of(len(zeros), self.categories))))


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
