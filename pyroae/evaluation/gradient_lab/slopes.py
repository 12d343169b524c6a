"""Relate the signal-to-noise ratio of gradients to K: curves, and log-log slopes with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyroae.errors import ConfigError
from pyroae.evaluation.gradient_lab.statistics import GradientStatistics, basic_interval
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import number


class Slope(NamedTuple):
    """A log-log slope and its 95 % interval.

    Attributes:
        slope: d log SNR / d log K by least squares, without unit.
        low: The lower end of the interval.
        high: The upper end of the interval.
    """

    slope: float
    low: float
    high: float


@dataclass(frozen=True, repr=False)
class SNRCurve(Shown):
    """The gradient statistics of one estimator and group at each K, and the slope of the SNR.

    Attributes:
        ks: The numbers of particles, G of them.
        statistics: The statistics at each K, G of them.
        slope: The log-log slope of the SNR in K; nan if fewer than two K have an SNR.
    """

    ks: tuple[int, ...]
    statistics: tuple[GradientStatistics, ...]
    slope: Slope

    def _overview(self) -> Overview:
        slope, low, high = self.slope
        rows = [
            (f"{k}", number(snr, 3), f"{ends[0]:.3g} to {ends[1]:.3g}")
            for k, snr, ends in zip(self.ks, self.snr, self.intervals, strict=True)
        ]
        head = [f"log-log slope {slope:.2f}", f"95 % interval {low:.2f} to {high:.2f}"]
        return Overview(head, rows, ("K", "SNR", "95 % interval"))

    @property
    def snr(self) -> list[float]:
        """The SNR at each K, G numbers without unit."""
        return [each.snr for each in self.statistics]

    @property
    def intervals(self) -> list[tuple[float, float]]:
        """The 95 % interval of the SNR at each K, G pairs."""
        return [each.snr_interval for each in self.statistics]


def curve(ks: Sequence[int], statistics: Sequence[GradientStatistics]) -> SNRCurve:
    """Make the curve of an estimator from its statistics at each K.

    A K is used for the slope if its SNR is positive and finite. A gradient that is always 0, as
    that of RWS-DReG at K = 1, has no SNR; a gradient without noise has an infinite one.

    Args:
        ks: The numbers of particles.
        statistics: The statistics at each K, from paired bootstrap samples.

    Returns:
        The curve; its slope is nan if fewer than two K are used.
    """
    ratios = [each.snr for each in statistics]
    used = [i for i, ratio in enumerate(ratios) if 0 < ratio < math.inf]
    fitted = Slope(math.nan, math.nan, math.nan)
    if len({ks[i] for i in used}) > 1:
        resampled = torch.stack([statistics[i].resampled for i in used], 1)
        fitted = slope([ks[i] for i in used], [ratios[i] for i in used], resampled)
    return SNRCurve(tuple(ks), tuple(statistics), fitted)


def slope(ks: Sequence[int], values: Sequence[float], resampled: Tensor) -> Slope:
    """Fit the log-log slope of values in K, with its 95 % interval by the basic bootstrap.

        slope = Σ_k (log K_k − mean log K) log v_k / Σ_k (log K_k − mean log K)²

    Args:
        ks: The numbers of particles, G of them.
        values: The value v at each K, positive.
        resampled: Bootstrap samples of the values, `[S, G]`. A row uses the same resampling for all
            K, since noise is shared between them.

    Returns:
        The slope and its interval.

    Raises:
        ConfigError: For fewer than two different values of K.

    >>> result = slope((4, 16, 64), (8.0, 4.0, 2.0), torch.tensor([[8.0, 4.0, 2.0]]))
    >>> round(result.slope, 6), round(result.low, 6)
    (-0.5, -0.5)
    """
    if len(set(ks)) < 2:
        raise ConfigError(f"a slope in K needs at least two different values of K, not {list(ks)}")
    log_k = torch.tensor(ks, dtype=torch.float64).log()
    direction = log_k - log_k.mean()
    direction = direction / direction.square().sum()
    estimate = (torch.tensor(values, dtype=torch.float64).log() @ direction).item()
    return Slope(estimate, *basic_interval(estimate, resampled.double().log() @ direction))
