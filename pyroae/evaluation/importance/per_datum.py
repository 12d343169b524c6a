"""Per-datum estimates of importance sampling and bounds for smaller K, joined over blocks."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyroae.evaluation.importance.above import UpperStream
from pyroae.evaluation.importance.streams import BoundCurve, Smoothed, WeightStream, is_reliable

Curve = dict[int, tuple[Tensor, Tensor]]
"""By K, the mean bound of each datum and its squared standard error, `[N]` each, in nats."""


@dataclass(frozen=True)
class Columns:
    """The estimates of each datum, one column per datum: data are the last dimension.

    Attributes:
        log_px: log (1/K) Σ w, `[N]`, nats.
        se: The standard error of `log_px` by the delta method, `[N]`, nats.
        interval: The 95 % interval of log p(x), `[2, N]`, nats.
        ess: The effective sample size, `[N]`.
        jackknife: `log_px` without its first-order bias, `[N]`, nats.
        smooth_log_px: The estimate by Pareto-smoothed importance sampling, `[N]`, nats.
        smooth_interval: Its 95 % interval, `[2, N]`, nats.
        khat: The index k̂ of the tail of the weights, `[N]`.
        draws: The number of draws, `[N]`.
        above: The sums from which upper bounds are computed, as of `UpperStream`, `[8, N]`.
    """

    log_px: Tensor
    se: Tensor
    interval: Tensor
    ess: Tensor
    jackknife: Tensor
    smooth_log_px: Tensor
    smooth_interval: Tensor
    khat: Tensor
    draws: Tensor
    above: Tensor

    @classmethod
    def of(cls, stream: WeightStream, upper: UpperStream) -> "Columns":
        """Read the estimates of a stream.

        Args:
            stream: The log-weights of one part.
            upper: The same log-weights.

        Returns:
            The estimates, on the CPU.
        """
        log_px, smoothed = stream.log_px(), stream.smoothed()
        figures = (
            log_px,
            stream.se(),
            stream.interval(),
            stream.ess(),
            log_px - stream.jackknife_bias(),
        )
        draws = torch.full(log_px.shape, stream.count)
        smooth = (smoothed.log_px, smoothed.interval, smoothed.khat)
        return cls(*(t.cpu() for t in (*figures, *smooth, draws, upper.sums)))

    @classmethod
    def joined(cls, parts: "list[Columns]") -> "Columns":
        """Concatenate the estimates of all parts.

        Args:
            parts: The estimates of each part, in the order of the data.

        Returns:
            The estimates of all data.
        """
        return cls(
            *(
                torch.cat(column, -1)
                for column in zip(*(tuple(vars(part).values()) for part in parts), strict=True)
            )
        )

    @property
    def smoothed(self) -> Smoothed:
        """The estimates by Pareto-smoothed importance sampling, `[N]` each."""
        return Smoothed(self.smooth_log_px, self.smooth_interval, self.khat)

    def is_reliable(self) -> Tensor:
        """Tell which estimates are reliable.

        Returns:
            Booleans `[N]`, as of `streams.is_reliable`.
        """
        return is_reliable(self.khat, self.ess, self.se, self.draws)

    def unreliable(self) -> Tensor:
        """List the data without a reliable estimate.

        Returns:
            Their indices `[n]`, in rising order.
        """
        return (~self.is_reliable()).nonzero().flatten()

    def with_better(self, index: Tensor, other: "Columns") -> "Columns":
        """Replace the estimates that are better in `other`.

        A reliable estimate is better than an unreliable one; of two equally reliable ones, that
        with the lower k̂, where nan counts as ∞. If both are infinite or nan, the larger log p̂ is
        better, since it exceeds log p(x) by more than b nats with a probability below e^−b only.

        Args:
            index: Indices of the data that `other` holds, `[n]`.
            other: The second estimates of these data, `[n]` each.

        Returns:
            The estimates of all N data.
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
    """Average bounds over all data, at each K that every part has.

    Args:
        curves: The bounds of each part, by K.
        total: N, the number of all data.

    Returns:
        Mean bounds and their standard errors, `[G]` each, in nats per datum.
    """
    ks = [k for k in curves[0] if all(k in curve for curve in curves)]
    means, squares = (
        torch.stack([torch.cat([curve[k][i] for curve in curves]) for k in ks]).sum(1)
        for i in (0, 1)
    )
    return BoundCurve(torch.tensor(ks), means / total, squares.sqrt() / total)
