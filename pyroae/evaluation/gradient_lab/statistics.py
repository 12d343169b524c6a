"""Compute statistics of streamed gradients: batch means and variances, bootstrap and jackknife."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import duration, number, with_error

BATCHES = 20
"""The number of batches of replicates, from which intervals are computed."""


RESAMPLES = 1000
"""The number of bootstrap samples of the batches."""


CHUNK = 2**18
"""The number of elements in the largest tensor of the bootstrap."""


STUDENT = 2.093
"""The 97.5 % quantile of Student's t with 19 degrees of freedom, one less than `BATCHES`."""


ROUNDING = 8
"""Standard deviations up to this multiple of the rounding error of the mean count as 0."""


_HUGE = 1e300
"""Replaces infinity, between which and other values quantiles cannot be interpolated."""


Part = tuple[slice, ...]
"""The positions of the parameters of a group in a gradient `[P]`."""


@dataclass(frozen=True)
class Bias:
    """The bias of an estimator: the difference D of its mean gradient from that of a reference.

        norm = ‖mean D‖,   expected = √Σ_p SE_p²,   E ‖mean D‖² = ‖E D‖² + expected²

    D is paired: both gradients have the same noise. The interval of ‖E D‖ comes from the jackknife
    of the estimate of ‖E D‖² without noise, the mean of D_a · D_b over pairs of batches. Its upper
    end is at least `norm`. In simulations the interval covers ‖E D‖ in 95 to 99 % of cases, and in
    88 % in the worst case, in which the noise has a single direction and the bias has the same
    direction and about the same size. All attributes are in nats per datum, and nan without a
    reference.

    Attributes:
        norm: The estimate of ‖E D‖, noise included.
        expected: The root mean square of `norm` without bias; the standard error for P = 1.
        low: The lower end of the 95 % interval of ‖E D‖.
        high: The upper end of the 95 % interval of ‖E D‖.
        reference_norm: The estimate of ‖E Δ_ref‖, the norm of the reference's mean gradient,
            without noise.

    References:
        Tukey 1958, Bias and confidence in not quite large samples, for the jackknife.
    """

    norm: float = math.nan
    expected: float = math.nan
    low: float = math.nan
    high: float = math.nan
    reference_norm: float = math.nan

    def relative(self, value: float) -> float:
        """Divide a value by the norm of the reference's mean gradient.

        Args:
            value: Any of the attributes, in nats per datum.

        Returns:
            The ratio; nan if the reference's gradient cannot be distinguished from 0.
        """
        return value / self.reference_norm if self.reference_norm > 0 else math.nan


@dataclass(frozen=True, repr=False)
class GradientStatistics(Shown):
    """The distribution of one estimator's gradient in one group of P parameters.

    Gradients are those of the bound for ascent, in nats per datum.

    Attributes:
        mean: The mean gradient, `[P]`; parameters are flattened and concatenated.
        variance: The variance of each element over replicates, `[P]`.
        resampled: The SNR of bootstrap samples of the batches, `[S]`.
        directional_snr: The directional SNR, E ‖Δ∥‖ / ‖Δ⊥‖; inf for one parameter.
        directional_snr_se: The standard error of `directional_snr`.
        offset: The bias from the reference; nan without one.
        replicates: The number of gradients R.
        seconds: The time of one gradient, median over batches.
        evaluations: The mean number of decoder evaluations for one gradient, N times what the
            objective states per datum. Other work, such as a second run of a hierarchical guide,
            counts in `seconds` only.

    References:
        Rainforth et al. 2018, Tighter variational bounds are not necessarily better.
    """

    mean: Tensor
    variance: Tensor
    resampled: Tensor
    directional_snr: float
    directional_snr_se: float
    offset: Bias
    replicates: int
    seconds: float
    evaluations: int

    def _overview(self) -> Overview:
        low, high = self.snr_interval
        rows = [
            ("SNR", f"{number(self.snr, 3)}, 95 % interval {low:.3g} to {high:.3g}"),
            ("directional SNR", with_error(self.directional_snr, self.directional_snr_se)),
            ("bias", f"{number(self.bias, 3)} nats per datum; noise alone {self.bias_se:.2g}"),
            ("cost", f"{duration(self.seconds)}, {number(self.evaluations)} decoder evaluations"),
        ]
        head = [f"P={len(self.mean)}", f"R={self.replicates}", f"SNR {number(self.snr, 3)}"]
        return Overview(head, rows)

    @property
    def snr(self) -> float:
        """The signal-to-noise ratio: the mean over parameters of |E Δ| / σ(Δ), without unit.

        Parameters whose gradient is always 0 are left out. With R replicates the estimate of a
        ratio of 0 is about 0.8 / √R: values below a few times that are noise.
        """
        return (self.mean.abs() / self.variance.sqrt()).nanmean().item()

    @property
    def snr_interval(self) -> tuple[float, float]:
        """The 95 % interval of the SNR by the basic bootstrap over batches.

        The bootstrap corrects the upward bias of the estimate. The interval contains `snr`, which
        is an end of it if that bias exceeds the noise. Both ends are infinite if `snr` is, as for a
        gradient that is the same in all replicates, and nan if all gradients are 0.
        """
        low, high = basic_interval(self.snr, self.resampled)
        return max(low, 0.0), high

    @property
    def bias(self) -> float:
        """The estimate of ‖E Δ − E Δ_ref‖, noise included, in nats per datum.

        It is about `bias_se` if there is no bias.
        """
        return self.offset.norm

    @property
    def bias_se(self) -> float:
        """The root mean square of `bias` without bias, √Σ_p SE_p² of the paired differences."""
        return self.offset.expected

    @property
    def bias_interval(self) -> tuple[float, float]:
        """The 95 % interval of ‖E Δ − E Δ_ref‖ without noise, in nats per datum (see `Bias`).

        The lower end is 0 if no bias is detected.
        """
        return self.offset.low, self.offset.high

    @property
    def relative_bias(self) -> float:
        """The ratio of `bias` to the norm of the reference's mean gradient, as `Bias.relative`."""
        return self.offset.relative(self.bias)


class Stream:
    """The running statistics of gradients `[P]`, in batches.

    A batch has a count, a mean and a sum of squared deviations. Each group has a directional SNR.

    Args:
        groups: The positions of the parameters of each group.
        along: The stream whose mean is the direction of the directional SNR; by default this one.

    Attributes:
        counts: The number of gradients of each batch.
        means: The mean gradient of each batch, `[B, P]`.
        squares: The sum of squared deviations of each batch, `[B, P]`.
        projections: The directional SNR of each group.

    References:
        Welford 1962, Note on a method for calculating corrected sums of squares and products.
    """

    def __init__(self, groups: Mapping[str, Part], along: "Stream | None" = None) -> None:
        self.groups = groups
        self.along = along
        self.counts = [0] * BATCHES
        self.means = self.squares = torch.empty(0)
        self.projections: dict[str, _Projection] = {}

    def add(self, batch: int, gradient: Tensor) -> None:
        """Add the gradient of one replicate.

        Args:
            batch: The index of the batch, not below that of the replicate before.
            gradient: `[P]`.
        """
        if not sum(self.counts):
            self.means, self.squares = (
                gradient.new_zeros(BATCHES, len(gradient)) for _ in range(2)
            )
        self.counts[batch] += 1
        deviation = gradient - self.means[batch]
        self.means[batch] += deviation / self.counts[batch]
        self.squares[batch].addcmul_(deviation, gradient - self.means[batch])
        if batch >= BATCHES // 2:
            if not self.projections:
                mean = (self.along or self).mean(BATCHES // 2)
                self.projections = {
                    group: _Projection(select(mean, part)) for group, part in self.groups.items()
                }
            for group, part in self.groups.items():
                self.projections[group].add(select(gradient, part))

    def weights(self, batches: int = BATCHES) -> Tensor:
        """Compute the weight of each of the first batches in the mean over them.

        Args:
            batches: The number of batches.

        Returns:
            Numbers `[batches]` with sum 1, proportional to the counts.
        """
        counts = torch.tensor(
            self.counts[:batches], dtype=self.means.dtype, device=self.means.device
        )
        return counts / counts.sum()

    def mean(self, batches: int = BATCHES) -> Tensor:
        """Compute the mean gradient over the first batches.

        Args:
            batches: The number of batches; by default all.

        Returns:
            The mean `[P]`, in nats per datum.
        """
        return self.weights(batches) @ self.means[:batches]

    def variance(self) -> Tensor:
        """Compute the variance over all replicates, within batches and between them.

        Returns:
            The variance of each parameter, `[P]`.
        """
        total = sum(self.counts)
        between = self.weights() @ (self.means - self.mean()).square()
        return without_rounding((self.squares.sum(0) + total * between) / (total - 1), self.mean())

    def statistics(
        self, reference: "Stream | None", seed: int, seconds: float, evaluations: int
    ) -> dict[str, GradientStatistics]:
        """Compute the statistics of each group.

        Args:
            reference: The stream of the reference, from which the bias is measured, or None.
            seed: The seed of the bootstrap samples.
            seconds: The time of one gradient.
            evaluations: The number of decoder evaluations for one gradient.

        Returns:
            The statistics by group.
        """
        mean, variance = self.mean().cpu(), self.variance().cpu()
        resampled = self._resampled(seed)
        return {
            group: GradientStatistics(
                select(mean, part),
                select(variance, part),
                resampled[group],
                *self.projections[group].result(),
                self._bias(reference, part),
                sum(self.counts),
                seconds,
                evaluations,
            )
            for group, part in self.groups.items()
        }

    def _bias(self, reference: "Stream | None", part: Part) -> Bias:
        if reference is None:
            return Bias()
        means = select(reference.means, part)
        return bias_of(select(self.means, part) - means, means, self.weights())

    def _resampled(self, seed: int) -> dict[str, Tensor]:
        """The SNR of bootstrap samples, `[S]` for each group; overlaps are computed once."""
        ends = sorted(
            {
                end
                for part in self.groups.values()
                for columns in part
                for end in (columns.start, columns.stop)
            }
        )
        samples = _Samples(self.counts, seed, self.means)
        pieces = {
            start: samples.ratios(self.means[:, start:stop], self.squares[:, start:stop])
            for start, stop in pairwise(ends)
        }
        resampled = {}
        for group, part in self.groups.items():
            inside = [
                piece
                for start, piece in pieces.items()
                if any(c.start <= start < c.stop for c in part)
            ]
            ratios, used = (torch.stack(parts).sum(0) for parts in zip(*inside, strict=True))
            resampled[group] = (ratios / used).cpu()
        return resampled


class _Projection:
    """The running mean of ‖Δ∥‖ / ‖Δ⊥‖ in one group, along the direction of a vector `[P]`."""

    def __init__(self, along: Tensor) -> None:
        self.direction = along / along.norm()
        self.count = 0
        self.total, self.squares = (along.new_zeros((), dtype=torch.float64) for _ in range(2))

    def add(self, gradient: Tensor) -> None:
        """Add one gradient `[P]`."""
        along = gradient @ self.direction
        across = (gradient - along * self.direction).norm()
        floor = ROUNDING * torch.finfo(across.dtype).eps * along.abs()
        ratio = along.abs().double() / torch.where(across <= floor, 0.0, across).double()
        self.count += 1
        self.total += ratio
        self.squares += ratio.square()

    def result(self) -> tuple[float, float]:
        """The mean and its standard error."""
        mean = self.total / self.count
        if mean.isinf():  # every ratio is infinite, except for rounding
            return math.inf, 0.0
        variance = (self.squares / self.count - mean.square()).clamp_min(0)
        return mean.item(), (variance / (self.count - 1)).sqrt().item()


def without_rounding(variance: Tensor, mean: Tensor) -> Tensor:
    """Replace variances that rounding of the mean alone may cause by 0.

    Such a variance belongs to gradients that are the same in all replicates.

    Args:
        variance: Variances of any shape.
        mean: The means, of the same shape.

    Returns:
        The variances.
    """
    return torch.where(
        variance <= (ROUNDING * torch.finfo(mean.dtype).eps * mean).square(), 0.0, variance
    )


def select(values: Tensor, part: Part) -> Tensor:
    """Select the parameters of one group.

    Args:
        values: `[..., P]`.
        part: The positions of the group.

    Returns:
        The values of the group, `[..., p]`; a view if they are contiguous.
    """
    return (
        values[..., part[0]]
        if len(part) == 1
        else torch.cat([values[..., columns] for columns in part], -1)
    )


def bias_of(differences: Tensor, reference: Tensor, weights: Tensor) -> Bias:
    """Compute the bias from batch means.

        ‖E D‖² ≈ Σ_{a≠b} w_a w_b D_a · D_b / Σ_{a≠b} w_a w_b

    Args:
        differences: The mean of the paired differences of each batch, `[B, P]`.
        reference: The mean of the reference's gradient of each batch, `[B, P]`.
        weights: The weight w of each batch, `[B]`, with sum 1.

    Returns:
        The bias with its interval, in nats per datum.

    >>> differences, reference = torch.tensor([[3.0, 4.0]] * 4), torch.tensor([[0.0, 2.0]] * 4)
    >>> bias = bias_of(differences, reference, torch.full((4,), 0.25))  # equal batches
    >>> bias.norm, bias.expected, bias.low, bias.high, bias.relative(bias.norm)
    (5.0, 0.0, 5.0, 5.0, 2.5)
    """
    mean = weights @ differences
    squared_se = (
        weights.square() @ (differences - mean).square() * len(weights) / (len(weights) - 1)
    )
    gram, shares = (differences @ differences.T).double(), weights.double()
    without = shares.expand(len(shares), -1) * ~torch.eye(
        len(shares), dtype=torch.bool, device=shares.device
    )
    left_out = _squared_norms(gram, without / without.sum(1, keepdim=True))
    squared = _squared_norms(gram, shares[None]).item()
    of_reference = _squared_norms((reference @ reference.T).double(), shares[None]).item()
    half = STUDENT * ((len(left_out) - 1) * left_out.var(correction=0)).sqrt().item()
    # the projections of the batches on the direction of the mean difference
    along = gram @ shares / (shares @ gram @ shares).sqrt().clamp_min(1e-300)
    half_along = STUDENT * along.std().item() / math.sqrt(len(along))
    norm = mean.norm().item()
    return Bias(
        norm=norm,
        expected=squared_se.sum().sqrt().item(),
        low=min(math.sqrt(max(squared - half, 0.0)), norm),
        high=max(
            math.sqrt(max(squared + half, 0.0)),
            math.sqrt(max(squared, 0.0)) + half_along,
            norm,
        ),
        reference_norm=math.sqrt(max(of_reference, 0.0)),
    )


def basic_interval(estimate: float, resampled: Tensor) -> tuple[float, float]:
    """Compute the 95 % interval of an estimate by the basic bootstrap.

        low = 2 estimate − q_97.5,   high = 2 estimate − q_2.5

    q are quantiles of the bootstrap values. The interval corrects a bias that the bootstrap values
    and the estimate share. It is widened to contain the estimate.

    Args:
        estimate: The estimate from the data.
        resampled: The estimates from bootstrap samples, `[S]`; nan is left out.

    Returns:
        The ends of the interval; both are the estimate if that is infinite or nan.

    >>> basic_interval(1.0, torch.tensor([2.0, 2.0])), basic_interval(math.inf, torch.ones(1))
    ((0.0, 1.0), (inf, inf))
    """
    if not math.isfinite(estimate):
        return estimate, estimate
    values = resampled.double().nan_to_num(nan=math.nan, posinf=_HUGE, neginf=-_HUGE)
    ends = values.nanquantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    low, high = (math.copysign(math.inf, end) if abs(end) > _HUGE / 1e6 else end for end in ends)
    return min(2 * estimate - high, estimate), max(2 * estimate - low, estimate)


def _squared_norms(gram: Tensor, weights: Tensor) -> Tensor:
    """Σ_{a≠b} w_a w_b D_a · D_b / Σ_{a≠b} w_a w_b, for rows of weights `[n, B]` with sum 1."""
    squares = weights.square()
    pairs = ((weights @ gram) * weights).sum(1) - squares @ gram.diagonal()
    return pairs / (1 - squares.sum(1))


class _Samples:
    """Bootstrap samples of the batches, which depend on the seed alone."""

    def __init__(self, counts: list[int], seed: int, like: Tensor) -> None:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(BATCHES, (RESAMPLES, BATCHES), generator=generator)
        ones = torch.ones(RESAMPLES, BATCHES)
        times = torch.zeros_like(ones).scatter_add_(1, drawn, ones).to(like)
        sizes = torch.tensor(counts).to(like)
        totals = (times @ sizes)[:, None]
        self.shares = sizes / sizes.sum()
        self.of_means = times * sizes / totals
        self.of_squares = torch.cat([times, times * sizes], 1) / (totals - 1)
        self.correction = totals / (totals - 1)

    def ratios(self, means: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_p |mean| / σ of each sample, `[S]`, and the number of parameters in the sum."""
        total, used = (
            torch.zeros(RESAMPLES, dtype=torch.float64, device=means.device) for _ in range(2)
        )
        width = max(1, CHUNK // RESAMPLES)
        for some, deviations in zip(means.split(width, 1), squares.split(width, 1), strict=True):
            centre = self.shares @ some
            apart = some - centre  # centred, so that no squares of large numbers are subtracted
            shift = self.of_means @ apart
            variance = self.of_squares @ torch.cat([deviations, apart.square()])
            variance.addcmul_(self.correction * shift, shift, value=-1).clamp_min_(0)
            mean = shift.add_(centre)
            ratio = mean.abs().div_(without_rounding(variance, mean).sqrt_())
            valid = ~ratio.isnan()
            total += ratio.nansum(1) if not valid.all() else ratio.sum(1)
            used += valid.sum(1)
        return total, used
