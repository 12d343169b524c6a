"""The largest importance weights smoothed by a generalized Pareto distribution, for all data at once."""

import math

import torch
from torch import Tensor

PRIOR_SHAPE, PRIOR_DRAWS = 0.5, 10
"""k̂ is drawn towards a half, as by so many draws (Vehtari et al. 2024, appendix C)."""


AT_ONCE = 2**21
"""Numbers in the largest tensor of a fit."""


def smooth_tail(top: Tensor) -> tuple[Tensor, Tensor]:
    """The tail `[M, N]` of log-weights as the fitted generalized Pareto distribution has it, and k̂ `[N]`.

        w_j ← u + σ ((1 − p_j)^(−k) − 1) / k,   p_j = (j − ½) / M, at most the largest weight (Vehtari et al. 2024)

    top: the M + 1 largest log-weights of each datum in nats, float64, from the largest down; the last one is the threshold u.
    k̂ is −∞ where all of them are alike, nan where one is not finite or more than a quarter of the tail lies at the threshold:
    such a tail stays as it is.

    >>> tail, khat = smooth_tail(torch.linspace(3, 0, 13, dtype=torch.float64)[:, None])
    >>> tail.shape, round(khat.item(), 2)
    (torch.Size([12, 1]), 0.35)
    """
    parts = top.split(max(1, AT_ONCE // (_grid_size(len(top) - 1) * len(top))), 1)
    tails, khats = zip(*map(_smoothed, parts), strict=True)
    return torch.cat(tails, 1), torch.cat(khats)


def _smoothed(top: Tensor) -> tuple[Tensor, Tensor]:
    length, finite = len(top) - 1, torch.isfinite(top).all(0)
    alike = top[0] - top[length - 1] < 1e-12
    fits = finite & ~alike
    high = torch.where(fits, top[0], 0.0)
    weights = torch.where(
        fits, (top - high).exp(), torch.linspace(2, 1, length + 1).to(top)[:, None]
    )
    threshold = weights[length]
    k, sigma = fit((weights[:length] - threshold).flip(0))
    p = (torch.arange(length, 0, -1).to(top)[:, None] - 0.5) / length
    tail = threshold + sigma * torch.expm1(-k * torch.log1p(-p)) / k
    smooth = (tail.log() + high).minimum(top[0])
    khat = torch.where(finite, torch.where(alike, -math.inf, k), math.nan)
    return torch.where(torch.isfinite(khat), smooth, top[:length]), khat


def fit(exceedances: Tensor) -> tuple[Tensor, Tensor]:
    """k̂ and σ̂ `[N]` of generalized Pareto distributions, from exceedances `[M, N]` in rising order (Zhang & Stephens 2009).

    θ is averaged over its posterior on a grid, with a prior that the first quartile scales; then k̂ = mean log(1 − θ x) and
    σ̂ = −k̂/θ, and a prior draws k̂ towards a half. nan where the first quartile is the smallest.
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
    sigma, known = -k / mean, quartile > exceedances[0]
    k = (length * k + PRIOR_DRAWS * PRIOR_SHAPE) / (length + PRIOR_DRAWS)
    k = torch.where(torch.isnan(k), math.inf, k)
    return torch.where(known, k, math.nan), torch.where(known, sigma, math.nan)


def _grid_size(length: int) -> int:
    return 30 + int(math.sqrt(length))
