"""The second choice: the amortized posterior q(z|x), a function of the encoder's output."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import pyro.distributions as dist
from torch import Tensor, nn

from pyroae import linear_gaussian
from pyroae.distributions import BINARY, REAL, OneHots, one_hot, states_of
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


@POSTERIORS.register("point")
@dataclass(frozen=True)
class Point(Posterior):
    """A point mass (Delta) at z = f(x), the output of the encoder.

    With it the ELBO is the MAP objective log p(x|z) + log p(z). It has no density, so that
    estimates of log p(x) need another proposal.

    >>> import torch
    >>> from pyroae import zoo
    >>> q_z = zoo.autoencoder(4, latent=2).q_z(torch.zeros(3, 4))
    >>> torch.equal(q_z.sample(), q_z.sample())
    True
    """

    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        """Return a Delta at the encoder's output, event shape `[m]`."""
        return dist.Delta(system.encoder(x)).to_event(1)


@POSTERIORS.register("diagonal")
@dataclass(frozen=True)
class Diagonal(Posterior):
    """A Gaussian with diagonal covariance, reparameterized.

        q(z|x) = N(μ(x), diag σ(x)²),   z = μ + σ ε,   ε ~ N(0, I)

    The encoder's outputs are μ(x) and log σ(x)².

    References:
        Kingma & Welling 2014, Auto-Encoding Variational Bayes.
    """

    def outputs(self, latent: int) -> int:
        """Return 2m: μ and log σ²."""
        return 2 * latent

    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        """Return N(μ(x), diag σ(x)²), event shape `[m]`."""
        loc, log_variance = system.encoder(x).chunk(2, dim=-1)
        return dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1)


@POSTERIORS.register("exact-linear")
@dataclass(frozen=True)
class ExactLinear(Posterior):
    """The exact posterior of a linear-Gaussian system, without an encoder.

        q(z|x) = N(M⁻¹Wᵀ(x − b), σ²M⁻¹),   M = WᵀW + σ²I

    With it the ELBO equals log p(x) for every draw of z.

    References:
        Tipping & Bishop 1999, Probabilistic Principal Component Analysis.
    """

    def outputs(self, latent: int) -> int:
        """Return 0: there is no encoder."""
        return 0

    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        """Return the exact posterior of the system's W, b and σ, event shape `[m]`."""
        loc, tril = linear_gaussian.posterior(x, *system.linear_gaussian())
        return dist.MultivariateNormal(loc, scale_tril=tril)


@POSTERIORS.register("bernoulli")
@dataclass(frozen=True)
class Bernoulli(Posterior):
    """Independent binary variables q(z_j|x) = Bernoulli(p_j(x)), not reparameterized.

    The encoder's outputs are the logits of p_j(x).

    >>> import torch
    >>> from pyroae import zoo
    >>> q_z = zoo.discrete_vae(4, latent=2).q_z(torch.zeros(3, 4))
    >>> q_z.batch_shape, q_z.event_shape, q_z.has_rsample
    (torch.Size([3]), torch.Size([2]), False)
    """

    def support(self, latent: int) -> str:
        """Return `binary`."""
        return BINARY

    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        """Return Bernoulli(p_j(x)) for each feature, event shape `[m]`."""
        return dist.Bernoulli(logits=system.encoder(x)).to_event(1)


@POSTERIORS.register("categorical")
@dataclass(frozen=True)
class Categorical(Posterior):
    """Independent categorical variables, concatenated in z as one-hot vectors.

    The encoder's outputs are the logits of the states. The draws are not reparameterized.

    Attributes:
        categories: C, the number of states of each variable; z holds m / C variables. None for one
            variable with m states.

    >>> import torch
    >>> from pyroae import zoo
    >>> zoo.discrete_vae(4, latent=6, categories=3).q_z(torch.zeros(5, 4)).sample().sum(-1)
    tensor([2., 2., 2., 2., 2.])
    """

    categories: int | None = None

    def support(self, latent: int) -> str:
        """Return the name of one-hot vectors of C states; refuse a C that does not divide m."""
        return one_hot(states_of(latent, self.categories))

    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        """Return the concatenated one-hot variables, event shape `[m]`."""
        logits = system.encoder(x)
        return OneHots(logits.unflatten(-1, (-1, states_of(logits.shape[-1], self.categories))))
