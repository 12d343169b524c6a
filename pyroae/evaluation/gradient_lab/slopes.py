"""How the signal-to-noise ratio of gradients depends on K: curves, and their log-log slopes with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyroae.errors import ConfigError
from pyroae.evaluation.gradient_lab.statistics import GradientStatistics, basic_interval


class Slope(NamedTuple):
    """A log-log slope and the ends of its 95 % interval."""

    slope: float
    low: float
    high: float


@dataclass(frozen=True)
class SNRCurve:
    """One estimator's statistics in one group at each K, and the log-log slope of its SNR in K."""

    ks: tuple[int, ...]
    statistics: tuple[GradientStatistics, ...]
    slope: Slope

    @property
    def snr(self) -> list[float]:
        """At each K."""
        return [found.snr for found in self.statistics]

    @property
    def intervals(self) -> list[tuple[float, float]]:
        """95 % intervals of `snr`."""
        return [found.snr_interval for found in self.statistics]


def curve(ks: Sequence[int], statistics: Sequence[GradientStatistics]) -> SNRCurve:
    """The curve of an estimator from its statistics at each K; its slope is nan where fewer than two K have an SNR.

    A gradient that is always 0, as that of RWS-DReG at K = 1, has none; one without noise has an infinite one.
    """
    ratios = [found.snr for found in statistics]
    used = [i for i, ratio in enumerate(ratios) if 0 < ratio < math.inf]
    found = Slope(math.nan, math.nan, math.nan)
    if len({ks[i] for i in used}) > 1:
        resampled = torch.stack([statistics[i].resampled for i in used], 1)
        found = slope([ks[i] for i in used], [ratios[i] for i in used], resampled)
    return SNRCurve(tuple(ks), tuple(statistics), found)


def slope(ks: Sequence[int], values: Sequence[float], resampled: Tensor) -> Slope:
    """The least-squares slope of log value in log K, and its 95 % interval by the basic bootstrap.

    values: one at each K. resampled: `[S, len(ks)]`, bootstrap samples of them; a row resamples all K alike, since noise
    is shared between them. Raises ConfigError for fewer than two different values of K.

    >>> found = slope((4, 16, 64), (8.0, 4.0, 2.0), torch.tensor([[8.0, 4.0, 2.0]]))
    >>> round(found.slope, 6), round(found.low, 6)
    (-0.5, -0.5)
    """
    if len(set(ks)) < 2:
        raise ConfigError(f"a slope in K needs at least two different values of K, not {list(ks)}")
    log_k = torch.tensor(ks, dtype=torch.float64).log()
    direction = log_k - log_k.mean()
    direction = direction / direction.square().sum()
    found = (torch.tensor(values, dtype=torch.float64).log() @ direction).item()
    return Slope(found, *basic_interval(found, resampled.double().log() @ direction))
