"""What importance sampling finds of each datum, and the bounds at fewer particles, joined over blocks of data."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyroae.evaluation.streams import BoundCurve, Smoothed, WeightStream, khat_limit

Curve = dict[int, tuple[Tensor, Tensor]]
"""By K, the mean bound of each datum and its square."""


@dataclass(frozen=True)
class Columns:
    """Figures of each datum, the data in the last dimension."""

    log_px: Tensor
    se: Tensor
    interval: Tensor
    ess: Tensor
    jackknife: Tensor
    smooth_log_px: Tensor
    smooth_interval: Tensor
    khat: Tensor
    draws: Tensor

    @classmethod
    def of(cls, stream: WeightStream) -> "Columns":
        """What a stream has come to, on the CPU."""
        log_px, smoothed = stream.log_px(), stream.smoothed()
        figures = (log_px, stream.se(), stream.interval(), stream.ess(), log_px - stream.jackknife_bias())
        draws = torch.full(log_px.shape, stream.count)
        return cls(*(t.cpu() for t in (*figures, smoothed.log_px, smoothed.interval, smoothed.khat, draws)))

    @classmethod
    def joined(cls, parts: "list[Columns]") -> "Columns":
        """Those of all blocks."""
        return cls(*(torch.cat(column, -1) for column in zip(*(tuple(vars(part).values()) for part in parts), strict=True)))

    @property
    def smoothed(self) -> Smoothed:
        """PSIS."""
        return Smoothed(self.smooth_log_px, self.smooth_interval, self.khat)

    def unreliable(self) -> Tensor:
        """Indices of the data whose k̂ is too high."""
        return (self.khat >= khat_limit(self.draws)).nonzero().flatten()

    def with_better(self, index: Tensor, other: "Columns") -> "Columns":
        """The figures of `other` for the data at `index` whose k̂ is lower there."""
        better = other.khat < self.khat[index]
        fields = {}
        for name, values in vars(self).items():
            fields[name] = values.clone()
            fields[name][..., index[better]] = getattr(other, name)[..., better]
        return Columns(**fields)


def joined_curve(curves: list[Curve], total: int) -> BoundCurve:
    """The mean over all data, at the K that every block has."""
    ks = [k for k in curves[0] if all(k in curve for curve in curves)]
    means = [sum(curve[k][0].sum().item() for curve in curves) / total for k in ks]
    errors = [math.sqrt(sum(curve[k][1].sum().item() for curve in curves)) / total for k in ks]
    return BoundCurve(torch.tensor(ks), torch.tensor(means, dtype=torch.float64), torch.tensor(errors, dtype=torch.float64))
