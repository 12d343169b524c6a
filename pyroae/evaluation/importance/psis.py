"""Smooth the largest importance weights by a generalized Pareto distribution, for all data at once.

References:
    Vehtari, Simpson, Gelman, Yao & Gabry 2024, Pareto smoothed importance sampling.
"""

import math

import torch
from torch import Tensor

PRIOR_SHAPE, PRIOR_DRAWS = 0.5, 10
"""The prior mean of k̂ and its weight in draws (Vehtari et al. 2024, appendix C)."""


AT_ONCE = 2**21
"""The number of elements in the largest tensor of a fit."""


def smooth_tail(top: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the tail of the weights by quantiles of a fitted generalized Pareto distribution.

        w_j ← min(u + σ ((1 − p_j)^(−k) − 1) / k, max w),   p_j = (j − ½) / M

    Args:
        top: The M + 1 largest log-weights of each datum, `[M + 1, N]`, float64, in nats, in falling
            order; the last one is the logarithm of the threshold u.

    Returns:
        The smoothed tail `[M, N]`, in nats, and k̂ `[N]`: −∞ where all weights of the tail are
        equal, and nan where one is not finite or more than a quarter of the tail equals the
        threshold; such a tail is returned unchanged.

    References:
        Vehtari, Simpson, Gelman, Yao & Gabry 2024, Pareto smoothed importance sampling.

    >>> tail, khat = smooth_tail(torch.linspace(3, 0, 13, dtype=torch.float64)[:, None])
    >>> tail.shape, round(khat.item(), 2)
    (torch.Size([12, 1]), 0.35)
    """
    parts = top.split(max(1, AT_ONCE // (_grid_size(len(top) - 1) * len(top))), 1)
    tails, khats = zip(*map(_smoothed, parts), strict=True)
    return torch.cat(tails, 1), torch.cat(khats)


def _smoothed(top: Tensor) -> tuple[Tensor, Tensor]:
    length, finite = len(top) - 1, torch.isfinite(top).all(0)
    constant = top[0] - top[length - 1] < 1e-12
    fits = finite & ~constant
    high = torch.where(fits, top[0], 0.0)
    weights = torch.where(
        fits, (top - high).exp(), torch.linspace(2, 1, length + 1).to(top)[:, None]
    )
    threshold = weights[length]
    k, sigma = fit((weights[:length] - threshold).flip(0))
    p = (torch.arange(length, 0, -1).to(top)[:, None] - 0.5) / length
    tail = threshold + sigma * torch.expm1(-k * torch.log1p(-p)) / k
    smooth = (tail.log() + high).minimum(top[0])
    khat = torch.where(finite, torch.where(constant, -math.inf, k), math.nan)
    return torch.where(torch.isfinite(khat), smooth, top[:length]), khat


def fit(exceedances: Tensor) -> tuple[Tensor, Tensor]:
    """Fit generalized Pareto distributions to exceedances.

        k̂ = mean_j log(1 − θ x_j),   σ̂ = −k̂ / θ

    θ is its posterior mean on a grid, under a prior scaled by the first quartile. A prior with mean
    ½ then shrinks k̂.

    Args:
        exceedances: Weights less the threshold, `[M, N]`, in rising order.

    Returns:
        k̂ and σ̂, `[N]` each; nan where the first quartile equals the smallest exceedance.

    References:
        Zhang & Stephens 2009, A new and efficient estimation method for the generalized Pareto
        distribution.
    """
    length, size = len(exceedances), _grid_size(len(exceedances))
    quartile = exceedances[int(length / 4 + 0.5) - 1]
    steps = 1 - torch.sqrt(size / (torch.arange(1, size + 1).to(exceedances) - 0.5))
    theta = steps[:, None] / (3 * quartile) + 1 / exceedances[-1]
    shapes = torch.log1p(-theta[:, None] * exceedances).mean(1)
    likelihood = length * (torch.log(-theta / shapes) - shapes - 1)
    share = (likelihood - likelihood.logsumexp(0)).exp()
    share = torch.where(share >= 10 * torch.finfo(share.dtype).eps, share, 0.0)
    mean = (theta * share).sum(0) / share.sum(0)
    k = torch.log1p(-mean * exceedances).mean(0)
    sigma, valid = -k / mean, quartile > exceedances[0]
    k = (length * k + PRIOR_DRAWS * PRIOR_SHAPE) / (length + PRIOR_DRAWS)
    k = torch.where(torch.isnan(k), math.inf, k)
    return torch.where(valid, k, math.nan), torch.where(valid, sigma, math.nan)


def _grid_size(length: int) -> int:
    return 30 + int(math.sqrt(length))
