"""Exact moments of five gradients of a one-dimensional Gaussian model, by quadrature."""

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from pyroae.papers.moments import Moments
from pyroae.papers.rainforth_toy import VARIANCE

MEAN, DATUM = 0.8, 1.0
"""The mean of q, and x."""


def exact_moments(ks: Sequence[int]) -> Moments:
    """Return mean and variance of the gradient of q's mean, in double precision.

        z ~ N(0, 1),   x|z ~ N(z, 1),   x = 1,   q = N(0.8, 2/3),   S = Σ_k w_k,   M = E e^{−tw}

        1/S^p = ∫ t^p e^{−tS} d log t / Γ(p), so that
        E Σ_k w_k^p g_k / S^p = K ∫ E[(tw)^p g e^{−tw}] M^{K−1} d log t / Γ(p)

    Second moments are K terms of one draw and K (K − 1) of two. The integrals over z and log t are
    sums over grids.

    Args:
        ks: The numbers of particles, all above 1.

    Returns:
        Mean and variance, shape `[len(ks)]` each, in nats, of IWAE, DReG, STL, RWS and RWS-DReG.

    >>> mean, variance = exact_moments((8,))["DReG"]
    >>> f"{mean.item():.4f} {(mean.abs() / variance.sqrt()).item():.2f}"
    '-0.0544 2.88'
    """
    z, log_t = (
        torch.linspace(-7.0, 8.6, 801, dtype=torch.float64),
        torch.linspace(-32.0, 12.0, 801, dtype=torch.float64),
    )
    score = (z - MEAN) / VARIANCE
    path = DATUM - 2 * z + score
    log_q = -0.5 * (VARIANCE * score**2 + math.log(2 * math.pi * VARIANCE))
    log_p = -(z**2) / 2 - (DATUM - z) ** 2 / 2 - math.log(2 * math.pi)
    log_tw = log_t[:, None] + log_p - log_q
    k = torch.tensor(ks, dtype=torch.float64)

    def expect(p: int, g: Tensor) -> Tensor:
        return ((p * log_tw - log_tw.exp() + log_q).exp() @ g * (z[1] - z[0]))[:, None]

    def integral(values: Tensor, p: int) -> Tensor:
        return values.sum(0) * (log_t[1] - log_t[0]) / math.gamma(p)

    others = expect(0, torch.ones_like(z))
    moments = {}
    for name, parts in _terms(path, score).items():
        mean, square = torch.zeros_like(k), torch.zeros_like(k)
        for p, g in parts:
            mean += integral(k * expect(p, g) * others ** (k - 1), p)
        for (p, g), (r, h) in product(parts, parts):
            pairs = (k - 1) * expect(p, g) * expect(r, h) * others ** (k - 2)
            square += integral(k * (expect(p + r, g * h) * others ** (k - 1) + pairs), p + r)
        moments[name] = mean, square - mean**2
    return moments


def _terms(path: Tensor, score: Tensor) -> dict[str, list[tuple[int, Tensor]]]:
    """Each gradient as a sum of Σ_k ŵ_k^p g_k: pairs of p and g."""
    return {
        "IWAE": [(1, path - score)],
        "DReG": [(2, path)],
        "STL": [(1, path)],
        "RWS": [(1, score)],
        "RWS-DReG": [(1, path), (2, -path)],
    }
