"""What is kept of log-weights as they stream by: moments, the largest ones, and the bounds of fewer particles.

Log-weights come as `[k, N]`, in nats, for a block of N data, and are not stored. Everything here is float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyroae.evaluation.importance.psis import smooth_tail

LEAST_FOR_PSIS = 25
"""The smallest K whose tail, a fifth of it, has the five weights that a generalized Pareto distribution is fitted to."""


LEAST_ESS = 10.0
"""The smallest effective sample size at which the delta method's standard error, about 1/√ESS nats, means something."""


ROUNDING = 1e-6
"""The relative variance of weights that single precision alone may give."""


Z = 1.959963984540054
"""Of a 95 % interval."""


@dataclass(frozen=True)
class Smoothed:
    """Pareto-smoothed importance sampling (Vehtari et al. 2024), a figure a datum: the fitted tail for the largest weights.

    log_px: `[N]`, nats. interval: `[2, N]`, 95 %. khat: `[N]`, the tail's index k̂: weights have 1/k̂ moments. All nan where
    K < 25, too few for a tail; k̂ is nan where the weights underflow, and −∞ where all weights of the tail are alike.
    """

    log_px: Tensor
    interval: Tensor
    khat: Tensor


@dataclass(frozen=True)
class BoundCurve:
    """The mean over the data of E log (1/K) Σ w, for smaller K too, from one set of draws: `[G]` each, nats per datum.

    ks: numbers of particles. bound: the mean over data, and over all groups of K draws. se: its Monte-Carlo standard error.
    """

    ks: Tensor
    bound: Tensor
    se: Tensor


def tail_length(num_particles: int) -> int:
    """How many of K weights are taken for the tail, as in Vehtari et al. 2024: min(K/5, 3 √K)."""
    return int(num_particles / 5) if num_particles <= 225 else int(3 * math.sqrt(num_particles))


def khat_limit(num_particles: Tensor) -> Tensor:
    """min(1 − 1/log₁₀ K, 0.7), for K of each datum: from there on k̂ says not to trust an estimate (Vehtari et al. 2024)."""
    return (1 - 1 / num_particles.double().log10().clamp_min(1e-9)).clamp_max(0.7)


def is_reliable(khat: Tensor, ess: Tensor, se: Tensor, draws: Tensor) -> Tensor:
    """Whether the estimate of a datum and its error are to be trusted, `[N]`: what is not known is not.

    k̂ lies below its limit, at least `LEAST_ESS` draws count, and the standard error is a finite number. k̂ is NaN where weights
    underflow and where K < 25. Weights that differ by rounding alone, as those of an exact posterior do, need no k̂, which then
    is that of the rounding.

    >>> nan, ones = math.nan, torch.ones(4)
    >>> khat, ess = torch.tensor([0.1, 0.1, nan, -math.inf]), torch.tensor([50.0, 1.0, 50.0, 50.0])
    >>> is_reliable(khat, ess, 0.1 * ones, 1000 * ones).tolist()
    [True, False, False, True]
    """
    alike = (ess >= (1 - ROUNDING) * draws) & (draws >= LEAST_FOR_PSIS)
    return ((khat < khat_limit(draws)) | alike) & (ess >= LEAST_ESS) & se.isfinite()


def curve_sizes(num_particles: int) -> list[int]:
    """1, 2, 5, 10, 20, … up to K, and K itself."""
    sizes = [digit * 10**power for power in range(len(str(num_particles))) for digit in (1, 2, 5)]
    return sorted({size for size in sizes if size <= num_particles} | {num_particles})


class WeightStream:
    """Sums of w, w² and w³ for each datum, relative to its largest weight so far, and the largest weights themselves.

    most: the number of particles after which the stream ends, at the latest: what the tail is sized for.
    """

    def __init__(self, num_data: int, device: torch.device, most: int) -> None:
        self._kept = max(64, tail_length(most) + 1)
        self.high = torch.full((num_data,), -math.inf, dtype=torch.float64, device=device)
        self._bulk = torch.zeros(3, num_data, dtype=torch.float64, device=device)
        self._top = torch.full((0, num_data), -math.inf, dtype=torch.float64, device=device)
        self._waiting: list[Tensor] = []
        self.count = 0

    def add(self, log_weight: Tensor) -> None:
        """Take in `[k, N]`."""
        log_weight = log_weight.double()
        self.count += len(log_weight)
        self._waiting.append(log_weight)
        if sum(map(len, self._waiting)) >= self._kept:
            self._settle()

    def _settle(self) -> None:
        if not self._waiting:
            return
        all_weights = torch.cat([self._top, *self._waiting])
        self._waiting = []
        self._top, place = all_weights.topk(min(self._kept, len(all_weights)), 0)
        rest = all_weights.scatter_(0, place, -math.inf)
        high = self._top[0]
        shrink = (self.high - _finite(high)).exp()
        self._bulk = self._bulk * torch.stack([shrink, shrink**2, shrink**3]) + _moments(
            rest, _finite(high)
        )
        self.high = high

    def _sums(self, top: Tensor) -> Tensor:
        """Σ w^j / high^j, j = 1, 2, 3, with `top` for the largest weights: `[3, N]`."""
        return self._bulk + _moments(top, _finite(self.high))

    def log_px(self) -> Tensor:
        """log (1/K) Σ w, `[N]`."""
        self._settle()
        return self.high + self._sums(self._top)[0].log() - math.log(self.count)

    def se(self) -> Tensor:
        """Standard error of `log_px` by the delta method, `[N]`; nan for K = 1."""
        self._settle()
        return _relative(self._sums(self._top), self.count)[0]

    def ess(self) -> Tensor:
        """(Σw)² / Σw², `[N]`."""
        self._settle()
        sums = self._sums(self._top)
        return sums[0].square() / sums[1]

    def interval(self) -> Tensor:
        """95 % interval of log p(x), `[2, N]`, corrected for the skewness of the weights."""
        return self.log_px() + skewed_interval(self._sums(self._top), self.count)

    def jackknife_bias(self) -> Tensor:
        """(K − 1) (mean_k L_{−k} − L_K), `[N]`: the jackknife's estimate of E log p̂ − log p; nan for K = 1.

        The largest weights are left out one by one; for the others log(1 − ŵ) is its series, whose fourth term is nothing.
        """
        self._settle()
        sums, count = self._sums(self._top), self.count
        share = (self._top - _finite(self.high)).exp() / sums[0]
        first = (share - torch.cat([share[:1], torch.zeros_like(share[1:])])).sum(0) + self._bulk[
            0
        ] / sums[0]
        logs = (
            torch.log1p(-share[1:]).sum(0) + first.log()
        )  # 1 − ŵ of the largest is what the others have
        bulk = self._bulk / torch.stack([sums[0], sums[0] ** 2, sums[0] ** 3])
        mean = (logs - bulk[0] - bulk[1] / 2 - bulk[2] / 3) / count
        if count == 1:
            return torch.full_like(mean, math.nan)
        return (count - 1) * (math.log(count / (count - 1)) + mean)

    def smoothed(self) -> Smoothed:
        """PSIS."""
        log_px = self.log_px()
        if self.count < LEAST_FOR_PSIS:
            nothing = torch.full_like(log_px, math.nan)
            return Smoothed(nothing, torch.stack([nothing, nothing]), nothing)
        length = tail_length(self.count)
        tail, khat = smooth_tail(self._top[: length + 1])
        sums = self._sums(torch.cat([tail, self._top[length:]]))
        smooth = self.high + sums[0].log() - math.log(self.count)
        return Smoothed(smooth, smooth + skewed_interval(sums, self.count), khat)


def skewed_interval(sums: Tensor, count: int) -> Tensor:
    """95 % interval of log p(x) − log p̂(x) from Σ w, Σ w², Σ w³: `[3, N]` -> `[2, N]`.

    t = (p̂ − p)/se is not normal where the weights are skewed; Hall's transformation of it nearly is:
    g(t) = t + γt²/3 + γ²t³/27 + γ/6, γ = skewness/√K (Hall 1992, On the removal of skewness by transformation).
    """
    se, skewness = _relative(sums, count)
    gamma = (skewness / math.sqrt(count)).clamp_min(1e-9)
    ends = []
    for z in (Z, -Z):
        inside = 1 + gamma * (z - gamma / 6)
        t = 3 / gamma * (inside.sign() * inside.abs() ** (1 / 3) - 1)
        ends.append(torch.log((1 - se * t).clamp_min(0)))
    return torch.where(torch.isnan(se), torch.nan, torch.stack(ends))


class CurveStream:
    """Bounds of groups of 1, 2, 5, 10, … particles, for each datum: their sums and sums of squares over the groups.

    A group is made of whole groups of the largest size that divides its own: each weight is exponentiated a few times only.
    """

    def __init__(self, num_data: int, device: torch.device, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self._made_of = [
            max((j for j, part in enumerate(self.sizes[:i]) if size % part == 0), default=None)
            for i, size in enumerate(self.sizes)
        ]
        shape = (len(self.sizes), num_data)
        self._open = torch.full(shape, -math.inf, dtype=torch.float64, device=device)
        self._filled = [0] * len(self.sizes)
        self._sum, self._square = torch.zeros(2, *shape, dtype=torch.float64, device=device)
        self._groups = [0] * len(self.sizes)

    def add(self, log_weight: Tensor) -> None:
        """Take in `[k, N]`."""
        found: list[Tensor] = []
        for i, (size, parts) in enumerate(zip(self.sizes, self._made_of, strict=True)):
            terms, each = (
                (log_weight.double(), 1) if parts is None else (found[parts], self.sizes[parts])
            )
            found.append(self._grouped(i, terms, size // each))
            bounds = found[i] - math.log(size)
            self._sum[i] += bounds.sum(0)
            self._square[i] += bounds.square().sum(0)
            self._groups[i] += len(bounds)

    def _grouped(self, i: int, terms: Tensor, size: int) -> Tensor:
        """The groups of so many terms that these make whole, as logarithms of sums; the rest is kept."""
        if size == 1:
            return terms
        ended: list[Tensor] = []
        if self._filled[i]:
            first, terms = terms[: size - self._filled[i]], terms[size - self._filled[i] :]
            self._fill(i, first)
            if self._filled[i] == size:
                ended.append(self._open[i : i + 1].clone())
                self._open[i], self._filled[i] = -math.inf, 0
        whole = len(terms) // size * size
        ended.append(terms[:whole].reshape(-1, size, terms.shape[1]).logsumexp(1))
        self._fill(i, terms[whole:])
        return torch.cat(ended)

    def _fill(self, i: int, part: Tensor) -> None:
        if len(part):
            self._open[i] = torch.logaddexp(self._open[i], part.logsumexp(0))
            self._filled[i] += len(part)

    def result(self) -> dict[int, tuple[Tensor, Tensor]]:
        """For each size that has a group, the mean bound of each datum and its squared standard error (nan of one group)."""
        found = {}
        for i, (size, groups) in enumerate(zip(self.sizes, self._groups, strict=True)):
            if groups:
                mean = self._sum[i] / groups
                spread = (self._square[i] / groups - mean.square()).clamp_min(0)
                found[size] = (
                    mean,
                    spread / (groups - 1) if groups > 1 else torch.full_like(mean, math.nan),
                )
        return found


def _moments(log_weight: Tensor, high: Tensor) -> Tensor:
    weight = (log_weight - high).exp()
    square = weight * weight
    return torch.stack([weight.sum(0), square.sum(0), (square * weight).sum(0)])


def _relative(sums: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Relative standard error of the mean weight, and the skewness of the weights, `[N]` each."""
    mean, square, cube = sums / count
    variance = (square / mean**2 - 1).clamp_min(0)
    third = cube / mean**3 - 3 * square / mean**2 + 2
    skewness = torch.where(variance > 0, third / variance.clamp_min(1e-300) ** 1.5, 0.0)
    unbiased = count / (count - 1) if count > 1 else math.nan
    return (variance * unbiased / count).sqrt(), skewness


def _finite(high: Tensor) -> Tensor:
    """The largest log-weight, 0 where all weights so far are zero."""
    return torch.where(high == -math.inf, 0.0, high)
