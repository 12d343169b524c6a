"""Reduce streamed log-weights to moments, the largest weights, and bounds for smaller K.

Log-weights of a block of N data arrive in parts `[k, N]`, in nats, and are not stored. All
computations are in float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyroae.evaluation.importance.psis import smooth_tail
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import number, with_error

LEAST_FOR_PSIS = 25
"""The smallest K with a tail of five weights, enough to fit a generalized Pareto distribution."""


LEAST_ESS = 10.0
"""The smallest ESS at which the delta method's standard error, about 1/√ESS nats, is meaningful."""


ROUNDING = 1e-6
"""The relative variance of weights that rounding in single precision may cause."""


Z = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution, for 95 % intervals."""


@dataclass(frozen=True, repr=False)
class Smoothed(Shown):
    """Per-datum estimates by Pareto-smoothed importance sampling (PSIS).

    The largest weights are replaced by quantiles of a fitted generalized Pareto distribution. All
    values are nan where K < 25, too few draws for a tail.

    Attributes:
        log_px: The estimate of log p(x), `[N]`, nats.
        interval: Its 95 % interval, `[2, N]`, nats.
        khat: The index k̂ of the tail, `[N]`: weights have 1/k̂ moments. It is nan if the weights
            underflow, and −∞ where all weights of the tail are equal.

    References:
        Vehtari, Simpson, Gelman, Yao & Gabry 2024, Pareto smoothed importance sampling.
    """

    log_px: Tensor
    interval: Tensor
    khat: Tensor

    def _overview(self) -> Overview:
        khat = number(self.khat.nanmedian().item(), 3)
        mean = number(self.log_px.nanmean().item())
        return Overview([f"N={len(self.khat)}", f"mean log p(x) {mean} nats", f"median k̂ {khat}"])


@dataclass(frozen=True, repr=False)
class BoundCurve(Shown):
    """The mean bound for each of several K, from one set of draws.

        bound(K) = (1/N) Σ_n E log (1/K) Σ_k w_nk

    Attributes:
        ks: The numbers of particles, `[G]`.
        bound: The mean over data and over all groups of K draws, `[G]`, nats per datum.
        se: Its Monte-Carlo standard error, `[G]`, nats per datum.
    """

    ks: Tensor
    bound: Tensor
    se: Tensor

    def _overview(self) -> Overview:
        points = list(zip(self.ks.tolist(), self.bound.tolist(), self.se.tolist(), strict=True))
        rows = [(f"{k}", with_error(bound, se)) for k, bound, se in points]
        head = [f"{len(rows)} numbers of particles"]
        return Overview(head, rows, ("K", "bound ± Monte-Carlo error, nats per datum"))


def tail_length(num_particles: int) -> int:
    """Compute the number of weights in the tail, min(K/5, 3 √K).

    Args:
        num_particles: K.

    Returns:
        The number of weights, rounded down.

    References:
        Vehtari, Simpson, Gelman, Yao & Gabry 2024, Pareto smoothed importance sampling.

    >>> tail_length(100), tail_length(10_000)
    (20, 300)
    """
    return int(num_particles / 5) if num_particles <= 225 else int(3 * math.sqrt(num_particles))


def khat_limit(num_particles: Tensor) -> Tensor:
    """Compute the k̂ from which on an estimate is unreliable, min(1 − 1/log₁₀ K, 0.7).

    Args:
        num_particles: K of each datum, `[N]`.

    Returns:
        The limits `[N]`, float64.

    References:
        Vehtari, Simpson, Gelman, Yao & Gabry 2024, Pareto smoothed importance sampling.

    >>> khat_limit(torch.tensor([100, 10_000])).tolist()
    [0.5, 0.7]
    """
    return (1 - 1 / num_particles.double().log10().clamp_min(1e-9)).clamp_max(0.7)


def is_reliable(khat: Tensor, ess: Tensor, se: Tensor, draws: Tensor) -> Tensor:
    """Tell which estimates, with their standard errors, are reliable.

    An estimate is reliable if k̂ lies below its limit, the ESS is at least `LEAST_ESS`, and the
    standard error is finite. A k̂ that is nan, as where weights underflow or K < 25, is not below
    the limit. Weights that differ by rounding only, such as those of an exact posterior, need no
    k̂, which then measures the rounding.

    Args:
        khat: k̂ of each datum, `[N]`.
        ess: The effective sample size of each datum, `[N]`.
        se: The standard error of log p̂(x), `[N]`, nats.
        draws: K of each datum, `[N]`.

    Returns:
        Booleans `[N]`.

    >>> nan, ones = math.nan, torch.ones(4)
    >>> khat, ess = torch.tensor([0.1, 0.1, nan, -math.inf]), torch.tensor([50.0, 1.0, 50.0, 50.0])
    >>> is_reliable(khat, ess, 0.1 * ones, 1000 * ones).tolist()
    [True, False, False, True]
    """
    light = (khat < khat_limit(draws)) | is_constant(ess, draws)
    return light & (ess >= LEAST_ESS) & se.isfinite()


def is_constant(ess: Tensor, draws: Tensor) -> Tensor:
    """Tell where all weights are equal but for rounding, and enough to say so.

    Args:
        ess: The effective sample size of each datum, `[N]`.
        draws: K of each datum, `[N]`.

    Returns:
        Booleans `[N]`; False where K < 25.

    >>> is_constant(torch.tensor([99.99999, 99.0, 2.0]), torch.tensor([100, 100, 2])).tolist()
    [True, False, False]
    """
    return (ess >= (1 - ROUNDING) * draws) & (draws >= LEAST_FOR_PSIS)


def bessel_factor(count: int | Tensor) -> Tensor:
    """Compute K/(K − 1), the factor that makes the variance of a sample unbiased.

    Args:
        count: K, of any shape.

    Returns:
        The factors, float64; nan where K = 1.

    >>> bessel_factor(torch.tensor([1, 3])).tolist()
    [nan, 1.5]
    """
    count = torch.as_tensor(count).double()
    return torch.where(count > 1, count / (count - 1), math.nan)


def curve_sizes(num_particles: int) -> list[int]:
    """List the K of a bound curve: 1, 2, 5, 10, 20, … up to K, and K itself.

    Args:
        num_particles: K.

    Returns:
        The numbers of particles in rising order.

    >>> curve_sizes(30)
    [1, 2, 5, 10, 20, 30]
    """
    sizes = [digit * 10**power for power in range(len(str(num_particles))) for digit in (1, 2, 5)]
    return sorted({size for size in sizes if size <= num_particles} | {num_particles})


class WeightStream:
    """The sums of w, w² and w³ of each datum and its largest weights.

    Sums are relative to the largest weight so far, so that they do not overflow.

    Args:
        num_data: N.
        device: Where the sums are stored.
        most: The largest number of particles, for which the tail is allocated.

    Attributes:
        count: The number of particles so far.
        high: The largest log-weight of each datum outside the buffer, `[N]`, nats.
    """

    def __init__(self, num_data: int, device: torch.device, most: int) -> None:
        self._top_size = max(64, tail_length(most) + 1)
        self.high = torch.full((num_data,), -math.inf, dtype=torch.float64, device=device)
        self._bulk = torch.zeros(3, num_data, dtype=torch.float64, device=device)
        self._top = torch.full((0, num_data), -math.inf, dtype=torch.float64, device=device)
        self._buffer: list[Tensor] = []
        self.count = 0

    def add(self, log_weight: Tensor) -> None:
        """Add log-weights to the stream.

        Args:
            log_weight: `[k, N]`, in nats.
        """
        log_weight = log_weight.double()
        self.count += len(log_weight)
        self._buffer.append(log_weight)
        if sum(map(len, self._buffer)) >= self._top_size:
            self._settle()

    def _settle(self) -> None:
        """Move the log-weights of the buffer to the largest ones or to the sums."""
        if not self._buffer:
            return
        all_weights = torch.cat([self._top, *self._buffer])
        self._buffer = []
        self._top, index = all_weights.topk(min(self._top_size, len(all_weights)), 0)
        rest = all_weights.scatter_(0, index, -math.inf)
        high = self._top[0]
        shrink = (self.high - _finite(high)).exp()
        self._bulk = self._bulk * torch.stack([shrink, shrink**2, shrink**3]) + _moments(
            rest, _finite(high)
        )
        self.high = high

    def _sums(self, top: Tensor) -> Tensor:
        """Σ w^j / max(w)^j for j = 1, 2, 3, `[3, N]`, with `top` as the largest log-weights."""
        return self._bulk + _moments(top, _finite(self.high))

    def log_px(self) -> Tensor:
        """Compute the estimate of log p(x).

        Returns:
            log (1/K) Σ w, `[N]`, nats.
        """
        self._settle()
        return self.high + self._sums(self._top)[0].log() - math.log(self.count)

    def se(self) -> Tensor:
        """Compute the standard error of `log_px` by the delta method.

        Returns:
            sd(w) / (√K mean w), `[N]`, nats; nan for K = 1.
        """
        self._settle()
        return _relative(self._sums(self._top), self.count)[0]

    def ess(self) -> Tensor:
        """Compute the effective sample size.

        Returns:
            (Σ w)² / Σ w², `[N]`, from 1 to K.
        """
        self._settle()
        sums = self._sums(self._top)
        return sums[0].square() / sums[1]

    def interval(self) -> Tensor:
        """Compute the 95 % interval of log p(x), corrected for the skewness of the weights.

        Returns:
            The ends, `[2, N]`, nats.
        """
        return self.log_px() + skewed_interval(self._sums(self._top), self.count)

    def jackknife_bias(self) -> Tensor:
        """Compute the jackknife's estimate of the bias E log p̂ − log p.

            bias = (K − 1) (mean_k L_{−k} − L_K)

        Each of the largest weights is left out exactly. For the others log(1 − ŵ) is replaced by
        the first three terms of its series; the fourth is negligible.

        Returns:
            The bias `[N]`, nats; nan for K = 1.

        References:
            Nowozin 2018, Debiasing evidence approximations.
        """
        self._settle()
        sums, count = self._sums(self._top), self.count
        share = (self._top - _finite(self.high)).exp() / sums[0]
        # 1 − ŵ of the largest weight is the sum of the other normalized weights
        others = (share - torch.cat([share[:1], torch.zeros_like(share[1:])])).sum(0)
        first = others + self._bulk[0] / sums[0]
        logs = torch.log1p(-share[1:]).sum(0) + first.log()
        bulk = self._bulk / torch.stack([sums[0], sums[0] ** 2, sums[0] ** 3])
        mean = (logs - bulk[0] - bulk[1] / 2 - bulk[2] / 3) / count
        if count == 1:
            return torch.full_like(mean, math.nan)
        return (count - 1) * (math.log(count / (count - 1)) + mean)

    def smoothed(self) -> Smoothed:
        """Compute the estimates by Pareto-smoothed importance sampling.

        Returns:
            Per-datum estimates, `[N]` each; nan where K < 25.
        """
        log_px = self.log_px()
        if self.count < LEAST_FOR_PSIS:
            missing = torch.full_like(log_px, math.nan)
            return Smoothed(missing, torch.stack([missing, missing]), missing)
        length = tail_length(self.count)
        tail, khat = smooth_tail(self._top[: length + 1])
        sums = self._sums(torch.cat([tail, self._top[length:]]))
        smooth = self.high + sums[0].log() - math.log(self.count)
        return Smoothed(smooth, smooth + skewed_interval(sums, self.count), khat)


def skewed_interval(sums: Tensor, count: int | Tensor) -> Tensor:
    """Compute the 95 % interval of log p(x) − log p̂(x) from the moments of the weights.

        t = (p̂ − p) / se,   g(t) = t + γ t²/3 + γ² t³/27 + γ/6,   γ = skewness / √K

    t is not normal where the weights are skewed; Hall's transformation g(t) nearly is. The interval
    is that of the normal distribution for g(t), transformed back.

    Args:
        sums: Σ w, Σ w² and Σ w³ of each datum, `[3, N]`, on any common scale of w.
        count: K, or that of each datum, `[N]`.

    Returns:
        The ends of the interval, `[2, N]`, nats; nan for K = 1.

    References:
        Hall 1992, On the removal of skewness by transformation.
    """
    se, skewness = _relative(sums, count)
    gamma = (skewness / count**0.5).clamp_min(1e-9)
    ends = []
    for z in (Z, -Z):
        inside = 1 + gamma * (z - gamma / 6)
        t = 3 / gamma * (inside.sign() * inside.abs() ** (1 / 3) - 1)
        ends.append(torch.log((1 - se * t).clamp_min(0)))
    return torch.where(torch.isnan(se), torch.nan, torch.stack(ends))


class CurveStream:
    """The bounds of groups of 1, 2, 5, 10, … particles of each datum.

    The stream stores the sum and the sum of squares of the bounds over the groups. A group is
    formed from groups of the largest size that divides its own, so that each weight is
    exponentiated a few times only.

    Args:
        num_data: N.
        device: Where the sums are stored.
        sizes: The numbers of particles, in rising order, as of `curve_sizes`.

    Attributes:
        sizes: The same numbers.
    """

    def __init__(self, num_data: int, device: torch.device, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self._part_index = [
            max((j for j, part in enumerate(self.sizes[:i]) if size % part == 0), default=None)
            for i, size in enumerate(self.sizes)
        ]
        shape = (len(self.sizes), num_data)
        self._open = torch.full(shape, -math.inf, dtype=torch.float64, device=device)
        self._filled = [0] * len(self.sizes)
        self._sum, self._square = torch.zeros(2, *shape, dtype=torch.float64, device=device)
        self._groups = [0] * len(self.sizes)

    def add(self, log_weight: Tensor) -> None:
        """Add log-weights to the stream.

        Args:
            log_weight: `[k, N]`, in nats.
        """
        log_sums: list[Tensor] = []
        for i, (size, part) in enumerate(zip(self.sizes, self._part_index, strict=True)):
            terms, each = (
                (log_weight.double(), 1) if part is None else (log_sums[part], self.sizes[part])
            )
            log_sums.append(self._grouped(i, terms, size // each))
            bounds = log_sums[i] - math.log(size)
            self._sum[i] += bounds.sum(0)
            self._square[i] += bounds.square().sum(0)
            self._groups[i] += len(bounds)

    def _grouped(self, i: int, terms: Tensor, size: int) -> Tensor:
        """The log-sums of the groups of `size` terms that these complete; the rest stays open."""
        if size == 1:
            return terms
        complete: list[Tensor] = []
        if self._filled[i]:
            first, terms = terms[: size - self._filled[i]], terms[size - self._filled[i] :]
            self._fill(i, first)
            if self._filled[i] == size:
                complete.append(self._open[i : i + 1].clone())
                self._open[i], self._filled[i] = -math.inf, 0
        whole = len(terms) // size * size
        complete.append(terms[:whole].reshape(-1, size, terms.shape[1]).logsumexp(1))
        self._fill(i, terms[whole:])
        return torch.cat(complete)

    def _fill(self, i: int, part: Tensor) -> None:
        if len(part):
            self._open[i] = torch.logaddexp(self._open[i], part.logsumexp(0))
            self._filled[i] += len(part)

    def result(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Compute the mean bound for each number of particles.

        Returns:
            For each size with a complete group, the mean bound of each datum and its squared
            standard error, `[N]` each, in nats; the latter is nan for a single group.
        """
        bounds = {}
        for i, (size, groups) in enumerate(zip(self.sizes, self._groups, strict=True)):
            if groups:
                mean = self._sum[i] / groups
                spread = (self._square[i] / groups - mean.square()).clamp_min(0)
                bounds[size] = (
                    mean,
                    spread / (groups - 1) if groups > 1 else torch.full_like(mean, math.nan),
                )
        return bounds


def _moments(log_weight: Tensor, high: Tensor) -> Tensor:
    weight = (log_weight - high).exp()
    square = weight * weight
    return torch.stack([weight.sum(0), square.sum(0), (square * weight).sum(0)])


def _relative(sums: Tensor, count: int | Tensor) -> tuple[Tensor, Tensor]:
    """Relative standard error of the mean weight, and skewness of the weights, `[N]` each."""
    mean, square, cube = sums / count
    variance = (square / mean**2 - 1).clamp_min(0)
    third = cube / mean**3 - 3 * square / mean**2 + 2
    skewness = torch.where(variance > 0, third / variance.clamp_min(1e-300) ** 1.5, 0.0)
    return (variance * bessel_factor(count) / count).sqrt(), skewness


def _finite(high: Tensor) -> Tensor:
    """The largest log-weight, replaced by 0 where all weights so far are zero."""
    return torch.where(high == -math.inf, 0.0, high)
