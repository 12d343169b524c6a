"""Tests of calibration p-values: their symmetry about ½, their dispersion, their uniformity.

All take p-values `[R]` of R independent simulations and are distribution-free.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np


def symmetry_test(p: np.ndarray) -> float:
    """Test that p and 1 − p have the same distribution: no bias of location (Yao et al. 2018).

        D = sup_u |F(u) + F(1 − u) − 1|,   F the empirical distribution of p

    D is the two-sample Kolmogorov-Smirnov statistic of p against 1 − p. These samples depend on
    each other, so the table of two independent samples does not apply: at its level .05 it rejects
    about 10 % of symmetric samples. Under symmetry the signs of p − ½, ordered by |p − ½|, are
    independent coins, and R D is the largest distance from 0 of their random walk, whose
    distribution is exact.

    Args:
        p: p-values, `[R]`.

    Returns:
        Pr(the walk of R coins comes as far as this one).

    References:
        Yao, Vehtari, Simpson and Gelman (2018), Yes, but did it work?: evaluating variational
        inference.
        Butler (1969), A test for symmetry using the sample distribution function.

    >>> round(symmetry_test(np.array([0.1, 0.2, 0.8, 0.95])), 3)
    1.0
    >>> round(symmetry_test(np.linspace(0.01, 0.45, 10)), 4)  # all ten on one side: 2 / 2^10
    0.002
    """
    distance = p - 0.5
    walk = np.cumsum(np.sign(distance[np.argsort(-np.abs(distance))]))
    return _walk_reaches(int(np.abs(walk).max()), len(p))


@lru_cache(maxsize=1000)
def _walk_reaches(height: int, steps: int) -> float:
    """Pr(max |S_k| ≥ height) of a symmetric random walk with S_0 = 0."""
    if height <= 1:
        return 1.0
    inside = np.zeros(2 * height - 1)
    inside[height - 1] = 1.0
    for _ in range(steps):
        inside = 0.5 * (np.append(inside[1:], 0.0) + np.append(0.0, inside[:-1]))
    return float(np.clip(1 - inside.sum(), 0, 1))


def normal_scores(p: np.ndarray) -> np.ndarray:
    """Return y = Φ⁻¹(p), which is N(0, 1) where p is uniform.

    Where q and the posterior are Gaussian, q = N(m, v) against N(μ, s²), y is distributed as
    N((μ − m)/√v, s²/v).

    Args:
        p: p-values in (0, 1), of any shape.

    Returns:
        The scores, of the same shape.
    """
    from scipy.special import ndtri

    edge = np.finfo(np.float64).tiny
    return np.asarray(ndtri(np.clip(p, edge, 1 - np.finfo(np.float64).eps)))


def dispersion_test(p: np.ndarray) -> float:
    """Test that the normal scores of p have the variance 1, whatever their mean.

        Σ_r (y_r − ȳ)² ~ χ²(R − 1)

    A variance above 1 is that of a q that is too narrow, one below 1 of a q that is too wide.

    Args:
        p: p-values, `[R]`.

    Returns:
        The two-sided p-value of the test.

    References:
        Cook, Gelman and Rubin (2006), Validation of software for Bayesian models using posterior
        quantiles.
    """
    from scipy.special import chdtr, chdtrc

    scores, degrees = normal_scores(p), len(p) - 1
    total = np.square(scores - scores.mean()).sum()
    return float(min(1.0, 2 * min(chdtr(degrees, total), chdtrc(degrees, total))))


def uniformity_test(p: np.ndarray) -> float:
    """Test that p is uniform, by the exact one-sample Kolmogorov-Smirnov test.

    Args:
        p: p-values, `[R]`.

    Returns:
        The p-value of the test.
    """
    from scipy.stats import kstest

    return float(kstest(p, "uniform").pvalue)


def holm(p: Sequence[float]) -> np.ndarray:
    """Adjust the p-values of several tests (Holm 1979).

    Rejecting what is adjusted below a level makes one or more false rejections with at most that
    probability, however the tests depend on each other.

    Args:
        p: p-values, `[T]`; NaN, for a test that was not made, is not counted and stays.

    Returns:
        The adjusted p-values, `[T]`.

    >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, dtype=float)
    adjusted = np.full(values.shape, np.nan)
    made = np.flatnonzero(~np.isnan(values))
    order = made[np.argsort(values[made])]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return adjusted


def coverage(p: np.ndarray, probability: float) -> tuple[float, float, float]:
    """Return how often the central interval of q holds the true value.

    The interval of probability c holds it where |p − ½| ≤ c/2.

    Args:
        p: p-values, `[R]`.
        probability: c, the probability of the interval under q.

    Returns:
        The share, and the ends of its 95 % binomial interval (Clopper and Pearson 1934).

    >>> [round(value, 3) for value in coverage(np.array([0.02, 0.4, 0.6, 0.9]), 0.5)]
    [0.5, 0.068, 0.932]
    """
    from scipy.special import betaincinv

    inside = int((np.abs(p - 0.5) <= probability / 2).sum())
    outside = len(p) - inside
    low = betaincinv(inside, outside + 1, 0.025) if inside else 0.0
    high = betaincinv(inside + 1, outside, 0.975) if outside else 1.0
    return inside / len(p), float(low), float(high)
