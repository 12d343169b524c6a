"""Closed forms of the linear-Gaussian model z ~ N(0, I), x|z ~ N(W z + b, σ² I). In nats.

Shapes: d observed features, m latent features.

References:
    Tipping & Bishop 1999, Probabilistic Principal Component Analysis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal

from pyroae.errors import ConfigError
from pyroae.runtime.short_repr import Shown


def posterior(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    is_observed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return mean and Cholesky factor of the exact posterior p(z|x), or p(z|x_o).

        z|x ~ N(M⁻¹Wᵀ(x − b), σ²M⁻¹),   M = WᵀW + σ²I

    Given some features only, W and b have the rows of these features.

    Args:
        x: Data, shape `[..., d]`.
        weight: W, shape `[d, m]`.
        bias: b, shape `[d]`.
        scale: σ, shape `[]`.
        is_observed: Which features are observed, shape `[..., d]`; None for all. x may have any
            value at the others.

    Returns:
        The mean, shape `[..., m]`, and the lower Cholesky factor of the covariance, shape `[m, m]`,
            or `[..., m, m]` given some features.

    >>> posterior(torch.tensor([[1.0]]), torch.eye(1), torch.zeros(1), torch.tensor(1.0))[0]
    tensor([[0.5000]])
    """
    weight, residual = _of_observed(x - bias, weight, is_observed)
    root = _root(weight, scale)
    loc = torch.cholesky_solve(weight.mT @ residual.unsqueeze(-1), root).squeeze(-1)
    return loc, torch.linalg.cholesky(scale**2 * torch.cholesky_inverse(root))


def _of_observed(
    residual: Tensor, weight: Tensor, is_observed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """W and x − b with 0 in the rows of missing features."""
    if is_observed is None:
        return weight, residual
    return is_observed.unsqueeze(-1) * weight, torch.where(is_observed, residual, 0.0)


def _root(weight: Tensor, scale: Tensor) -> Tensor:
    """The Cholesky factor of M = WᵀW + σ²I."""
    unit = torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
    return torch.linalg.cholesky(weight.mT @ weight + scale**2 * unit)


def observed_log_prob(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, is_observed: Tensor
) -> Tensor:
    """Return log p(x_o) of the observed features.

        log p(x_o) = log N(x_o; b_o, W_o W_oᵀ + σ²I)

    Args:
        x: Data, shape `[..., d]`, with any value at missing features.
        weight: W, shape `[..., d, m]`.
        bias: b, shape `[..., d]`.
        scale: σ, shape `[]`.
        is_observed: Which features are observed, shape `[..., d]`.

    Returns:
        The log-density, in nats, shape `[...]`; 0 where nothing is observed.

    >>> x, one = torch.tensor([[1.0, torch.nan]]), torch.ones(2, 1)
    >>> observed_log_prob(x, one, torch.zeros(2), torch.tensor(1.0), ~x.isnan())  # N(1; 0, 2)
    tensor([-1.5155])
    """
    weight, residual = _of_observed(x - bias, weight, is_observed)
    root, count = _root(weight, scale), is_observed.sum(-1)
    inner = torch.linalg.solve_triangular(root, weight.mT @ residual.unsqueeze(-1), upper=False)
    square = (residual.square().sum(-1) - inner.square().sum((-2, -1))) / scale**2
    log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_det = log_det + 2 * (count - weight.shape[-1]) * scale.log()
    return -0.5 * (square + log_det + count * math.log(2 * math.pi))


def posterior_distribution(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor
) -> MultivariateNormal:
    """Return the exact posterior p(z|x) as a distribution.

    Args:
        x: Data, shape `[..., d]`.
        weight: W, shape `[d, m]`.
        bias: b, shape `[d]`.
        scale: σ, shape `[]`.

    Returns:
        A Gaussian with batch shape `[...]` and event shape `[m]`.

    >>> ones = torch.ones(1, 1)
    >>> posterior_distribution(ones, ones, torch.zeros(1), torch.tensor(1.0)).variance
    tensor([[0.5000]])
    """
    loc, tril = posterior(x, weight, bias, scale)
    return MultivariateNormal(loc, scale_tril=tril)


def conditional_mean(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, is_observed: Tensor
) -> Tensor:
    """Return E[x | x_o], the observed features themselves and the mean of the others given them.

        E[x_m | x_o] = b_m + W_m M_o⁻¹ W_oᵀ(x_o − b_o),   M_o = W_oᵀW_o + σ²I

    Args:
        x: Data, shape `[..., d]`, with any value at missing features.
        weight: W, shape `[d, m]`.
        bias: b, shape `[d]`.
        scale: σ, shape `[]`.
        is_observed: Which features are observed, shape `[..., d]`.

    Returns:
        The filled data, shape `[..., d]`.

    >>> x, one = torch.tensor([1.0, torch.nan]), torch.ones(2, 1)
    >>> conditional_mean(x, one, torch.zeros(2), torch.tensor(1.0), ~x.isnan())
    tensor([1.0000, 0.5000])
    """
    loc, _ = posterior(x, weight, bias, scale, is_observed)
    return torch.where(is_observed, x, bias + loc @ weight.mT)


def marginal(weight: Tensor, bias: Tensor, scale: Tensor) -> LowRankMultivariateNormal:
    """Return the evidence p(x) = N(b, WWᵀ + σ²I).

    Args:
        weight: W, shape `[..., d, m]`.
        bias: b, shape `[..., d]`.
        scale: σ, shape `[]`.

    Returns:
        A Gaussian with batch shape `[...]` and event shape `[d]`.

    >>> marginal(torch.ones(1, 1), torch.zeros(1), torch.tensor(1.0)).log_prob(torch.ones(1))
    tensor(-1.5155)
    """
    return LowRankMultivariateNormal(bias, weight, (scale**2).expand(bias.shape))


def collapsed(
    weight: Tensor, bias: Tensor, upper: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return W̃ and b̃ of a hierarchy whose layers are integrated out.

        z_L = ε_L,   z_l = A_l z_{l+1} + a_l + s_l ε_l,   W z_1 + b = W̃ (ε_L, ..., ε_1) + b̃

    The ε_l ~ N(0, I) are independent, so that p(x) = N(b̃, W̃W̃ᵀ + σ²I); with two layers
    W̃ = (W A, s W) and b̃ = W a + b.

    Args:
        weight: W, shape `[d, m_1]`.
        bias: b, shape `[d]`.
        upper: (A_l, a_l, s_l), shapes `[m_l, m_{l+1}]`, `[m_l]` and `[]`, from the data upwards.

    Returns:
        W̃, shape `[d, m_L + ... + m_1]`, and b̃, shape `[d]`; W and b where `upper` is empty.

    >>> one = torch.ones(1, 1)
    >>> collapsed(2 * one, one[0], [(3 * one, one[0], torch.tensor(0.5))])
    (tensor([[6., 1.]]), tensor([3.]))
    """
    if not upper:
        return weight, bias
    sizes = [weight.shape[1], *(a.shape[1] for a, _, _ in upper)]
    factor, mean = torch.eye(sizes[-1]).to(weight), torch.zeros(sizes[-1]).to(weight)
    for matrix, offset, scale in reversed(upper):
        noise = scale * torch.eye(len(offset)).to(weight)
        factor, mean = torch.cat([matrix @ factor, noise], 1), matrix @ mean + offset
    return weight @ factor, weight @ mean + bias


@dataclass(frozen=True, repr=False)
class PrincipalSubspace(Shown):
    """The maximum-likelihood fit of probabilistic PCA.

    Attributes:
        weight: W, shape `[d, m]`.
        bias: b, the mean of the data, shape `[d]`.
        scale: σ, shape `[]`.
        log_px: The mean of log p(x) per datum, in nats.
        discarded: The variance outside the m principal directions, Σ_{j>m} λ_j.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    log_px: float
    discarded: float


def maximum_likelihood(x: Tensor, latent: int) -> PrincipalSubspace:
    """Return the maximum-likelihood probabilistic PCA of data, computed in float64.

        W = U_m (Λ_m − σ²I)^½,   σ² = (1/(d − m)) Σ_{j>m} λ_j
        (1/N) Σ_n log p(x_n) = −½ [Σ_{j≤m} log λ_j + (d − m) log σ² + d log 2π + d]

    λ_1 ≥ … ≥ λ_d are the eigenvalues of the covariance with the factor 1/N, U_m the eigenvectors of
    the m largest.

    Args:
        x: Data, shape `[N, d]`.
        latent: m, at least 1 and below d.

    Returns:
        The fit, in float64.

    Raises:
        ConfigError: `latent` is below 1, or not below d.

    References:
        Tipping & Bishop 1999, Probabilistic Principal Component Analysis.

    >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.5], [0.0, -0.5]])
    >>> fit = maximum_likelihood(x, latent=1)
    >>> fit.discarded, fit.weight.shape
    (0.125, torch.Size([2, 1]))
    """
    if not 1 <= latent < x.shape[1]:
        raise ConfigError(
            f"latent must be at least 1 and below the {x.shape[1]} features, not {latent}"
        )
    x = x.double()
    bias = x.mean(0)
    values, vectors = torch.linalg.eigh((x - bias).t() @ (x - bias) / len(x))
    values, vectors = values.flip(0), vectors.flip(1)
    d, principal, rest = len(values), values[:latent], values[latent:]
    variance = rest.mean()
    weight = vectors[:, :latent] * (principal - variance).clamp_min(0).sqrt()
    log_px = -0.5 * (
        principal.log().sum() + len(rest) * variance.log() + d * math.log(2 * math.pi) + d
    )
    return PrincipalSubspace(weight, bias, variance.sqrt(), float(log_px), float(rest.sum()))
