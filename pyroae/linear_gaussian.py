"""Closed forms of the linear-Gaussian model z ~ N(0, I), x|z ~ N(W z + b, σ² I) (Tipping & Bishop 1999). In nats.

weight: W `[d, m]`. bias: b `[d]`. scale: σ, a number in a tensor. x: `[..., d]`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal

from pyroae.errors import ConfigError


def posterior(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `[..., m]` and lower Cholesky factor `[m, m]` of the covariance of p(z|x).

    With M = WᵀW + σ²I: z|x ~ N(M⁻¹Wᵀ(x − b), σ²M⁻¹).

    >>> posterior(torch.tensor([[1.0]]), torch.eye(1), torch.zeros(1), torch.tensor(1.0))[0]
    tensor([[0.5000]])
    """
    inner = weight.t() @ weight + scale**2 * torch.eye(
        weight.shape[1], dtype=weight.dtype, device=weight.device
    )
    root = torch.linalg.cholesky(inner)
    loc = torch.cholesky_solve(weight.t() @ (x - bias).unsqueeze(-1), root).squeeze(-1)
    return loc, torch.linalg.cholesky(scale**2 * torch.cholesky_inverse(root))


def posterior_distribution(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor
) -> MultivariateNormal:
    """The exact posterior p(z|x) as a distribution over `[m]`."""
    loc, tril = posterior(x, weight, bias, scale)
    return MultivariateNormal(loc, scale_tril=tril)


def marginal(weight: Tensor, bias: Tensor, scale: Tensor) -> LowRankMultivariateNormal:
    """The evidence p(x) = N(b, WWᵀ + σ²I).

    >>> marginal(torch.ones(1, 1), torch.zeros(1), torch.tensor(1.0)).log_prob(torch.ones(1))
    tensor(-1.5155)
    """
    return LowRankMultivariateNormal(bias, weight, (scale**2).expand(bias.shape))


@dataclass(frozen=True)
class PrincipalSubspace:
    """What is best possible: W `[d, m]`, b `[d]`, σ, log p(x) a datum in nats, and the variance left by m directions."""

    weight: Tensor
    bias: Tensor
    scale: Tensor
    log_px: float
    discarded: float


def maximum_likelihood(x: Tensor, latent: int) -> PrincipalSubspace:
    """The maximum-likelihood pPCA of `x` `[N, d]`, in float64.

    W = U_m (Λ_m − σ²I)^½, σ² the mean of the discarded eigenvalues of the covariance (of 1/N), and
    log p(x) a datum = −½ [Σ_{j≤m} log λ_j + (d − m) log σ² + d log 2π + d].
    Raises ConfigError unless 1 ≤ m < d.
    """
    if not 1 <= latent < x.shape[1]:
        raise ConfigError(
            f"latent must be at least 1 and below the {x.shape[1]} features, not {latent}"
        )
    x = x.double()
    bias = x.mean(0)
    values, vectors = torch.linalg.eigh((x - bias).t() @ (x - bias) / len(x))
    values, vectors = values.flip(0), vectors.flip(1)
    d, kept, rest = len(values), values[:latent], values[latent:]
    variance = rest.mean()
    weight = vectors[:, :latent] * (kept - variance).clamp_min(0).sqrt()
    log_px = -0.5 * (kept.log().sum() + len(rest) * variance.log() + d * math.log(2 * math.pi) + d)
    return PrincipalSubspace(weight, bias, variance.sqrt(), float(log_px), float(rest.sum()))
