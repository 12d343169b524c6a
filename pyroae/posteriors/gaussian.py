"""Gaussian posteriors, from a point mass to a full covariance."""

from dataclasses import dataclass

import pyro.distributions as dist
from torch import Tensor

from pyroae import linear_gaussian
from pyroae.posteriors.base import POSTERIORS, Encoding, Posterior


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
