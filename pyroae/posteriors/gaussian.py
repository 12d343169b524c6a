"""Gaussian posteriors, from a point mass to a full covariance."""

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyroae import linear_gaussian
from pyroae.errors import ConfigError
from pyroae.posteriors.base import (
    POSTERIORS,
    Encoding,
    Posterior,
    check_counts,
    location_and_scale,
)


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

    takes_missing = True

    def outputs(self, latent: int) -> int:
        """Return 0: there is no encoder."""
        return 0

    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        """Return the exact posterior of the system's W, b and σ, event shape `[m]`.

        Where values may be missing it is that given the observed features, p(z|x_o).
        """
        is_observed = ~x.isnan() if system.missing else None
        loc, tril = linear_gaussian.posterior(x, *system.linear_gaussian(), is_observed)
        return dist.MultivariateNormal(loc, scale_tril=tril)


@POSTERIORS.register("full-rank")
@dataclass(frozen=True)
class FullRank(Posterior):
    """A Gaussian with a covariance matrix of its own for each datum, reparameterized.

        q(z|x) = N(μ, L Lᵀ),   L = diag(σ) (I + N),   z = μ + L ε,   ε ~ N(0, I)

    μ, σ and the strictly lower triangular N are functions of x: the encoder's outputs are μ,
    log σ² and the m (m − 1) / 2 elements of N, row by row.

    References:
        Kingma & Welling 2019, An Introduction to Variational Autoencoders (section 2.5.1).

    >>> import torch
    >>> from pyroae import zoo
    >>> zoo.vae(4, latent=3, posterior=FullRank()).q_z(torch.zeros(5, 4)).covariance_matrix.shape
    torch.Size([5, 3, 3])
    """

    def outputs(self, latent: int) -> int:
        """Return 2m + m (m − 1) / 2: μ, log σ² and N."""
        return 2 * latent + latent * (latent - 1) // 2

    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        """Return N(μ(x), L(x) L(x)ᵀ), event shape `[m]`."""
        loc, scale, lower = location_and_scale(system.encoder(x), system.zeros)
        tril = scale.unsqueeze(-1) * _unit_lower(lower, loc)
        return dist.MultivariateNormal(loc, scale_tril=tril)


@POSTERIORS.register("low-rank")
@dataclass(frozen=True)
class LowRank(Posterior):
    """A Gaussian whose covariance is a diagonal plus a matrix of low rank, reparameterized.

        q(z|x) = N(μ, diag σ² + V Vᵀ),   z = μ + σ ε + V η,   ε ~ N(0, I_m),  η ~ N(0, I_r)

    The encoder's outputs are μ, log σ² and the m × r elements of V, row by row. A log-density costs
    O(m r²), that of `FullRank` O(m²) with O(m²) outputs.

    Attributes:
        rank: r, between 1 and m.

    Raises:
        ConfigError: `rank` is below 1, or above the size of z.

    References:
        Ong, Nott & Smith 2018, Gaussian Variational Approximation with a Factor Covariance
            Structure.

    >>> import torch
    >>> from pyroae import zoo
    >>> q_z = zoo.vae(4, latent=3, posterior=LowRank(rank=1)).q_z(torch.zeros(5, 4))
    >>> q_z.covariance_matrix.shape
    torch.Size([5, 3, 3])
    """

    rank: int = 1

    def __post_init__(self) -> None:
        check_counts("a low-rank posterior", rank=self.rank)

    def outputs(self, latent: int) -> int:
        """Return 2m + m r: μ, log σ² and V; refuse a rank above m."""
        if self.rank > latent:
            raise ConfigError(
                f"the rank of a low-rank posterior is at most the size of z, {latent}, not "
                f"{self.rank}: use full-rank"
            )
        return (2 + self.rank) * latent

    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        """Return N(μ(x), diag σ(x)² + V(x) V(x)ᵀ), event shape `[m]`."""
        loc, scale, factor = location_and_scale(system.encoder(x), system.zeros)
        return dist.LowRankMultivariateNormal(loc, factor.unflatten(-1, (-1, self.rank)), scale**2)


def _unit_lower(elements: Tensor, loc: Tensor) -> Tensor:
    """I + N, `[..., m, m]`, from the strictly lower elements of N, row by row."""
    size = loc.shape[-1]
    row = torch.arange(size, device=loc.device)
    at, count = row[:, None] * (row[:, None] - 1) // 2 + row, elements.shape[-1]
    index = torch.where(row < row[:, None], at, count + (row == row[:, None]))
    ends = [torch.zeros_like(loc[..., :1]), torch.ones_like(loc[..., :1])]
    return torch.cat([elements, *ends], -1)[..., index]
