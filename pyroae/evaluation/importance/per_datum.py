"""What importance sampling finds of each datum, and the bounds at fewer particles, joined over blocks of data."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyroae.evaluation.importance.streams import BoundCurve, Smoothed, WeightStream, is_reliable

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
        figures = (
            log_px,
            stream.se(),
            stream.interval(),
            stream.ess(),
            log_px - stream.jackknife_bias(),
        )
        draws = torch.full(log_px.shape, stream.count)
        return cls(
            *(t.cpu() for t in (*figures, smoothed.log_px, smoothed.interval, smoothed.khat, draws))
        )

    @classmethod
    def joined(cls, parts: "list[Columns]") -> "Columns":
        """Those of all blocks."""
        return cls(
            *(
                torch.cat(column, -1)
                for column in zip(*(tuple(vars(part).values()) for part in parts), strict=True)
            )
        )

    @property
    def smoothed(self) -> Smoothed:
        """PSIS."""
        return Smoothed(self.smooth_log_px, self.smooth_interval, self.khat)

    def is_reliable(self) -> Tensor:
        """Of each datum, whether its estimate and error are to be trusted, `[N]`."""
        return is_reliable(self.khat, self.ess, self.se, self.draws)

    def unreliable(self) -> Tensor:
        """Indices of the data that are not to be trusted."""
        return (~self.is_reliable()).nonzero().flatten()

    def with_better(self, index: Tensor, other: "Columns") -> "Columns":
        """The figures of `other` for the data at `index` that are better there.

        What is reliable is better than what is not, then a lower k̂, nan the highest. Where neither k̂ is known, the larger
        log p̂ is: it exceeds log p(x) by more than b nats with a probability of less than e^−b.
        """
        khat, khats = self.khat[index].nan_to_num(nan=math.inf), other.khat.nan_to_num(nan=math.inf)
        was, now = self.is_reliable()[index], other.is_reliable()
        lower = (khats < khat) | (
            (khats == math.inf) & (khat == math.inf) & (other.log_px > self.log_px[index])
        )
        better = (now & ~was) | ((now == was) & lower)
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
    return BoundCurve(
        torch.tensor(ks),
        torch.tensor(means, dtype=torch.float64),
        torch.tensor(errors, dtype=torch.float64),
    )
