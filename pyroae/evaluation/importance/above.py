"""Estimate log p(x) from above, by EUBO and CUBO, from the same streamed log-weights.

Neither estimate is a certificate: with finitely many draws both are too low in expectation.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyroae.evaluation.importance.streams import (
    LEAST_ESS,
    Z,
    bessel_factor,
    is_constant,
    is_reliable,
    skewed_interval,
)
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import with_error

MOST_SHARE = 0.5
"""The largest share of flagged data with which a mean over the data is reported."""


NEGLIGIBLE = -1000.0
"""The log-weight, relative to the largest one, from which on a weight is 0 in double precision."""


@dataclass(frozen=True, repr=False)
class UpperBound(Shown):
    """Estimates of an upper bound on log p(x) of N data, float64.

    Attributes:
        values: The estimate for each datum, `[N]`, nats.
        se: Its Monte-Carlo standard error by the delta method, `[N]`, nats; nan for K = 1.
        interval: The 95 % interval of the bound, `[2, N]`, nats; nan where it is not to be trusted,
            as where the variance of the estimate is infinite.
        bias: The first-order bias of `values`, `[N]`, nats; negative where the estimate is too low.
        flagged: Where `values` is not to be trusted, `[N]`, booleans.
    """

    values: Tensor
    se: Tensor
    interval: Tensor
    bias: Tensor
    flagged: Tensor

    def _overview(self) -> Overview:
        return Overview([f"N={len(self.values)}", self.summary])

    @property
    def summary(self) -> str:
        """The mean with its error and the number of flags, in words."""
        flags = f"{self.num_flagged} of {len(self.flagged)} flagged"
        if not self.is_reported:
            return f"no mean, {flags}"
        return f"mean {with_error(self.mean, self.mean_se, 'nats')}, {flags}"

    @property
    def num_flagged(self) -> int:
        """The number of data whose estimate is not to be trusted."""
        return int(self.flagged.sum())

    @property
    def num_without_interval(self) -> int:
        """The number of data whose interval is not to be trusted; it includes the flagged ones."""
        return int(self.interval.isnan().any(0).sum())

    @property
    def is_reported(self) -> bool:
        """Whether at most half of the data are flagged, so that a mean is reported."""
        return self.num_flagged <= MOST_SHARE * len(self.flagged)

    @property
    def mean(self) -> float:
        """The mean over all data, in nats per datum; nan where more than half are flagged."""
        return self.values.mean().item() if self.is_reported else math.nan

    @property
    def mean_se(self) -> float:
        """The standard error of `mean` as the mean of a sample of N data, in nats per datum.

        It includes the Monte-Carlo error; nan where `mean` is.
        """
        se = self.values.std() / math.sqrt(len(self.values))
        return se.item() if self.is_reported else math.nan

    @property
    def monte_carlo_se(self) -> float:
        """The standard error of `mean` for these N data, in nats per datum.

        It is nan where the interval of a datum is not to be trusted.
        """
        se = self.se.square().sum().sqrt() / len(self.se)
        return math.nan if self.num_without_interval else se.item()


class UpperStream:
    """The sums of w log w, w² (log w)², w⁴ and others of each datum, from which both bounds follow.

    Sums are relative to the largest weight so far, so that they do not overflow.

    Args:
        num_data: N.
        device: Where the sums are stored.

    Attributes:
        sums: The largest log-weight h, in nats, and with u = exp(log w − h) and l = log w − h the
            sums of u, u l, u², u² l, u² l², u⁴ and u⁶, `[8, N]`.
    """

    def __init__(self, num_data: int, device: torch.device) -> None:
        self.sums = torch.zeros(8, num_data, dtype=torch.float64, device=device)
        self.sums[0] = -math.inf

    def add(self, log_weight: Tensor) -> None:
        """Add log-weights to the stream.

        Args:
            log_weight: `[k, N]`, in nats.
        """
        log_weight = log_weight.double()
        high = torch.maximum(self.sums[0], log_weight.amax(0))
        at = torch.where(high == -math.inf, 0.0, high)
        new, old = _sums(log_weight - at), _shifted(self.sums[1:], self.sums[0] - at)
        self.sums = torch.cat([high[None], old + new])


def _sums(shift: Tensor) -> Tensor:
    """The seven sums of log-weights `[k, N]` relative to the largest one, `[7, N]`."""
    shift = shift.clamp_min(NEGLIGIBLE)
    weight = shift.exp()
    square, linear = weight * weight, weight * shift
    fourth = square * square
    terms = (
        weight,
        linear,
        square,
        weight * linear,
        linear * linear,
        fourth,
        fourth * square,
    )
    return torch.stack([term.sum(0) for term in terms])


def _shifted(sums: Tensor, shift: Tensor) -> Tensor:
    """The seven sums when the largest log-weight rises by −shift, `[7, N]`."""
    shift = shift.clamp_min(NEGLIGIBLE)
    u, u_l, u2, u2_l, u2_ll, u4, u6 = sums
    moved = (u, u_l + shift * u, u2, u2_l + shift * u2, u2_ll + shift * (2 * u2_l + shift * u2))
    powers = torch.tensor([1, 1, 2, 2, 2, 4, 6], device=sums.device)[:, None]
    return torch.stack([*moved, u4, u6]) * (powers * shift).exp()


def eubo(sums: Tensor, khat: Tensor, ess: Tensor, draws: Tensor) -> UpperBound:
    """Estimate the evidence upper bound from streamed sums.

        EUBO = E_{p(z|x)} log w = log p(x) + KL(p(z|x) ‖ q(z|x)) ≥ log p(x)

    The expectation under the posterior is a self-normalized mean, Σ ŵ log w with ŵ = w / Σ w. Its
    bias −Σ ŵ² (log w − EUBO) is of order 1/K and usually negative, as it exceeds log p̂(x) by
    log K at most. It has a finite mean for a tail index below 1, and a finite variance below ½. It
    is flagged where log p̂(x) is unreliable (`is_reliable`), and without an interval from k̂ ≥ ½
    on.

    Args:
        sums: The sums of each datum, as of `UpperStream`, `[8, N]`.
        khat: k̂ of each datum, `[N]`.
        ess: The effective sample size of each datum, `[N]`.
        draws: K of each datum, `[N]`.

    Returns:
        The estimates, `[N]` each, in nats.

    References:
        Ji & Shen 2019, Stochastic variational inference via upper bound.

    >>> stream = UpperStream(1, torch.device("cpu"))
    >>> stream.add(torch.tensor([1.0, 3.0]).log()[:, None])
    >>> none = torch.full((1,), math.nan)
    >>> round(eubo(stream.sums, none, none, torch.tensor([2])).values.item(), 4)
    0.824
    """
    high, u, u_l, u2, u2_l, u2_ll, _, _ = sums
    mean = u_l / u
    square = (u2_ll - 2 * mean * u2_l + mean.square() * u2).clamp_min(0)
    values, bias = high + mean, -(u2_l - mean * u2) / u.square()
    se = (square * bessel_factor(draws)).sqrt() / u
    reliable = is_reliable(khat, ess, se, draws)
    trusted = reliable & _is_light(khat, ess, draws, 0.5)
    ends = torch.stack([values - bias - Z * se, values - bias + Z * se])
    return UpperBound(values, se, torch.where(trusted, ends, math.nan), bias, ~reliable)


def cubo(sums: Tensor, khat: Tensor, ess: Tensor, draws: Tensor) -> UpperBound:
    """Estimate the χ² upper bound from streamed sums.

        CUBO₂ = ½ log E_q w² = log p(x) + ½ log(1 + Var(w)/p(x)²) ≥ log p(x)

    The estimate is ½ log (1/K) Σ w². The log of a finite mean is too low in expectation, to first
    order by se², and it exceeds log p̂(x) by ½ log K at most: it is an upper bound only in the
    limit K → ∞. It is flagged where log p̂(x) is unreliable (`is_reliable`) and from k̂ ≥ ½ on,
    where w² has no mean. It has no interval from k̂ ≥ ¼ on, where w⁴ has no mean, and where the
    ESS of the squared weights is below 10. The interval is corrected for the skewness of w².

    Args:
        sums: The sums of each datum, as of `UpperStream`, `[8, N]`.
        khat: k̂ of each datum, `[N]`.
        ess: The effective sample size of each datum, `[N]`.
        draws: K of each datum, `[N]`.

    Returns:
        The estimates, `[N]` each, in nats.

    References:
        Dieng, Tran, Ranganath, Paisley & Blei 2017, Variational inference via χ upper bound
        minimization.

    >>> stream = UpperStream(1, torch.device("cpu"))
    >>> stream.add(torch.tensor([1.0, 3.0]).log()[:, None])
    >>> none = torch.full((1,), math.nan)
    >>> round(cubo(stream.sums, none, none, torch.tensor([2])).values.exp().item() ** 2, 4)
    5.0
    """
    high, u2, u4, u6 = sums[0], sums[3], sums[6], sums[7]
    count = draws.double()
    values = high + (u2 / count).log() / 2
    variance = (u4 / u2.square() - 1 / count).clamp_min(0) * bessel_factor(draws)
    se = variance.sqrt() / 2
    good = is_reliable(khat, ess, se, draws) & _is_light(khat, ess, draws, 0.5)
    trusted = good & _is_light(khat, ess, draws, 0.25) & (u2.square() / u4 >= LEAST_ESS)
    ends = values + skewed_interval(torch.stack([u2, u4, u6]), draws) / 2
    return UpperBound(values, se, torch.where(trusted, ends, math.nan), -se.square(), ~good)


def _is_light(khat: Tensor, ess: Tensor, draws: Tensor, limit: float) -> Tensor:
    """Whether k̂ lies below a limit, or all weights are equal but for rounding, `[N]`."""
    return (khat < limit) | is_constant(ess, draws)
