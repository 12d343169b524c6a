"""The gradient laboratory: mean, variance, signal-to-noise ratio and bias of gradient estimators at fixed θ and φ, streamed."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from pyroae.errors import ConfigError, ProgramError, unknown_name
from pyroae.objectives.base import ObjectiveBase
from pyroae.progress import Progress
from pyroae.weights import Program, fork_random

BATCHES = 20
"""Batches that the replicates are split into, for intervals without the replicates themselves."""
RESAMPLES = 1000
"""Bootstrap samples of the batches."""
CHUNK = 2**22
"""Numbers in the largest tensor of the bootstrap."""


@dataclass(frozen=True)
class GradientStatistics:
    """The distribution of one estimator's gradient in one group of P parameters: ascent, of the bound in nats per datum.

    mean, variance: `[P]`, parameters one after the other, flattened. resampled: `[S]`, the SNR of bootstrap samples of the
    batches. directional_snr: E ‖Δ∥‖ / ‖Δ⊥‖ (Rainforth 2018), inf for one parameter, with its standard error.
    bias: ‖E Δ − E Δ_ref‖; bias_se: its root mean square if there were no bias, √Σ_p SE_p² of the paired differences, so
    the standard error where P = 1; both nan without a reference. seconds: for one gradient.
    """

    mean: Tensor
    variance: Tensor
    resampled: Tensor
    directional_snr: float
    directional_snr_se: float
    bias: float
    bias_se: float
    replicates: int
    seconds: float

    @property
    def snr(self) -> float:
        """Mean over parameters of |E Δ| / σ(Δ) (Rainforth 2018), those left out whose gradient is always 0.

        With R replicates the estimate of a ratio of 0 is about 0.8 / √R: less than a few times that is noise.
        """
        return (self.mean.abs() / self.variance.sqrt()).nanmean().item()

    @property
    def snr_interval(self) -> tuple[float, float]:
        """95 % interval by the basic bootstrap over batches, which takes out the upward bias of the estimate.

        With few replicates and many parameters, that bias exceeds the noise: the interval may then lie below `snr`.
        """
        low, high = _basic_interval(self.snr, self.resampled)
        return max(low, 0.0), high


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


def measure_gradients(
    model: Program,
    guide: Program,
    x: Tensor,
    objectives: Mapping[str, ObjectiveBase],
    *,
    parameters: Mapping[str, Tensor],
    groups: Mapping[str, Sequence[str]] | None = None,
    replicates: int = 1000,
    seed: int = 0,
    reference: str | None = None,
    progress: bool = False,
) -> dict[str, dict[str, GradientStatistics]]:
    """Statistics of each objective's gradient over draws of z, by objective and group: (θ, φ) and the data are held.

        Δ_r = (1/N) ∇ surrogate(x; noise r),   SNR = mean_p |E Δ_p| / σ(Δ_p),   DSNR = E ‖Δ∥‖ / ‖Δ − Δ∥‖,   Δ∥ = (Δ·u) u

    x: `[N, ...]`, passed whole to both programs. parameters: leaves by name, as of `dict(system.named_parameters())`;
    one that the bound does not reach has the gradient 0. groups: names of parameters, by group; all in one, "all", where
    there are none. Replicate r of every objective starts from the same seed: at equal K the noise is paired.
    reference: the objective whose mean gradient the bias is measured from, in paired differences.

    Replicates are not stored. They come in 20 batches with a mean and a variance each (Welford 1962): 40 P numbers, also
    for 10,000 replicates. Intervals are bootstrapped over the batches; the bias has its error from their spread.
    u is the direction of the mean, of the reference's where there is one, over the first half of the replicates; the
    DSNR is a mean over the second half, which has no part in u.
    Torch's generators stay as they were. Raises ConfigError for fewer than 20 replicates, unknown names, empty groups
    and parameters that are no leaves with a gradient; ProgramError where the surrogate reaches no parameter at all.
    Rainforth et al. 2018, Tighter variational bounds are not necessarily better.

    >>> from pyroae import zoo
    >>> from pyroae.objectives.named import iwae, iwae_stl
    >>> system, x = zoo.ppca(4, latent=2), torch.ones(3, 4)
    >>> estimators, phi = {"iwae": iwae(4), "stl": iwae_stl(4)}, dict(system.encoder.named_parameters())
    >>> found = measure_gradients(system.model, system.guide, x, estimators, parameters=phi, replicates=100, reference="iwae")
    >>> found["stl"]["all"].mean.shape, found["stl"]["all"].bias > 3 * found["stl"]["all"].bias_se
    (torch.Size([20]), True)
    """
    groups = {"all": tuple(parameters)} if groups is None else groups
    _check(objectives, parameters, groups, replicates, reference)
    order = sorted(objectives, key=lambda name: name != reference)  # the reference first
    known: dict[str, _Stream] = {}
    found = {}
    with fork_random(x.device), Progress("gradients", len(order) * replicates, progress) as bar:
        for i, name in enumerate(order):
            work = _Work(model, guide, x, objectives[name], parameters)
            streams = {group: _Stream(known.get(group)) for group in groups}
            work.gradient(seed)  # a look before the start, with Pyro's checks
            _synchronize(x)
            started = time.perf_counter()
            for r in work.collect(streams, groups, replicates, seed):
                bar.update(i * replicates + r + 1, name)
            _synchronize(x)
            seconds = (time.perf_counter() - started) / replicates
            if name == reference:
                known = streams
            found[name] = {group: _statistics(stream, known.get(group), seed, seconds) for group, stream in streams.items()}
    return {name: found[name] for name in objectives}


def measure_slopes(
    model: Program,
    guide: Program,
    x: Tensor,
    make: Mapping[str, Callable[[int], ObjectiveBase]],
    *,
    ks: Sequence[int],
    parameters: Mapping[str, Tensor],
    groups: Mapping[str, Sequence[str]] | None = None,
    replicates: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, dict[str, SNRCurve]]:
    """SNR against K, the number of particles, with its log-log slope, by objective and group.

    make: by name, a function from K to an objective. The others are those of `measure_gradients`.
    Raises what that raises, and ConfigError for fewer than two values of K.
    Rainforth et al. 2018: IWAE's slope is +1/2 for θ and −1/2 for φ; Tucker et al. 2019: DReG's is +1/2 for φ.

    >>> from pyro.distributions import Normal
    >>> from pyroae.objectives.named import dreg
    >>> phi = torch.full((20,), 0.8, requires_grad=True)  # the posterior mean is 0.5
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", Normal(pyro.sample("z", Normal(0.0, 1.0)), 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", Normal(phi, 0.8))
    >>> found = measure_slopes(
    ...     model, guide, torch.ones(20), {"dreg": dreg}, ks=(8, 64), parameters={"phi": phi}, replicates=100
    ... )
    >>> round(found["dreg"]["all"].slope.slope, 1)
    0.5
    """
    _check_ks(ks)
    at_k = [
        measure_gradients(
            model,
            guide,
            x,
            {name: function(k) for name, function in make.items()},
            parameters=parameters,
            groups=groups,
            replicates=replicates,
            seed=seed,
            progress=progress,
        )
        for k in ks
    ]
    curves: dict[str, dict[str, SNRCurve]] = {}
    for name in make:
        curves[name] = {}
        for group in at_k[0][name]:
            found = tuple(one[name][group] for one in at_k)
            values, resampled = [one.snr for one in found], torch.stack([one.resampled for one in found], 1)
            curves[name][group] = SNRCurve(tuple(ks), found, slope(ks, values, resampled))
    return curves


def slope(ks: Sequence[int], values: Sequence[float], resampled: Tensor) -> Slope:
    """The least-squares slope of log value in log K, and its 95 % interval by the basic bootstrap.

    values: one at each K. resampled: `[S, len(ks)]`, bootstrap samples of them; a row resamples all K alike, since noise
    is shared between them. Raises ConfigError for fewer than two different values of K.

    >>> found = slope((4, 16, 64), (8.0, 4.0, 2.0), torch.tensor([[8.0, 4.0, 2.0]]))
    >>> round(found.slope, 6), round(found.low, 6)
    (-0.5, -0.5)
    """
    _check_ks(ks)
    log_k = torch.tensor(ks, dtype=torch.float64).log()
    direction = log_k - log_k.mean()
    direction = direction / direction.square().sum()
    found = (torch.tensor(values, dtype=torch.float64).log() @ direction).item()
    return Slope(found, *_basic_interval(found, resampled.double().log() @ direction))


class _Work:
    """Gradients of one objective at the same place."""

    def __init__(
        self, model: Program, guide: Program, x: Tensor, objective: ObjectiveBase, parameters: Mapping[str, Tensor]
    ) -> None:
        self.model, self.guide, self.x, self.objective = model, guide, x, objective
        self.parameters = parameters

    def gradient(self, seed: int) -> dict[str, Tensor]:
        """Of the bound per datum, flattened, by the parameter's name, with the noise of a seed."""
        torch.manual_seed(seed)
        surrogate = self.objective.bound(self.model, self.guide, self.x).surrogate
        if not surrogate.requires_grad:
            raise ProgramError(f"the surrogate of {type(self.objective).__name__} hangs on no parameter of model and guide")
        leaves = list(self.parameters.values())
        found = torch.autograd.grad(surrogate / len(self.x), leaves, allow_unused=True, materialize_grads=True)
        return {name: gradient.flatten() for name, gradient in zip(self.parameters, found, strict=True)}

    def collect(
        self, streams: Mapping[str, "_Stream"], groups: Mapping[str, Sequence[str]], replicates: int, seed: int
    ) -> Iterator[int]:
        """Add every replicate to the stream of each group; yields the number of each as it is done."""
        for r in range(replicates):
            with pyro.validation_enabled(False):
                gradient = self.gradient(seed * 1_000_003 + r)
            for group, names in groups.items():
                part = torch.cat([gradient[parameter] for parameter in names])
                streams[group].add(r * BATCHES // replicates, part)
            yield r


class _Stream:
    """Count, mean and sum of squared deviations of each batch, and the directional SNR, as gradients come."""

    def __init__(self, reference: "_Stream | None" = None) -> None:
        self.reference = reference
        self.counts = [0] * BATCHES
        self.means = self.squares = self.ratio = self.ratio_squares = torch.empty(0)
        self.direction: Tensor | None = None
        self.ratios = 0

    def add(self, batch: int, gradient: Tensor) -> None:
        """One more replicate, `[P]`, of a batch; batches come in order."""
        if not sum(self.counts):
            self.means, self.squares = (gradient.new_zeros(BATCHES, len(gradient)) for _ in range(2))
            self.ratio, self.ratio_squares = (gradient.new_zeros((), dtype=torch.float64) for _ in range(2))
        self.counts[batch] += 1
        deviation = gradient - self.means[batch]
        self.means[batch] += deviation / self.counts[batch]
        self.squares[batch].addcmul_(deviation, gradient - self.means[batch])
        if batch >= BATCHES // 2:
            self._project(gradient)

    def _project(self, gradient: Tensor) -> None:
        if self.direction is None:
            mean = (self.reference or self).mean(BATCHES // 2)
            self.direction = mean / mean.norm()
        along = gradient @ self.direction
        ratio = along.abs().double() / (gradient - along * self.direction).norm().double()
        self.ratios += 1
        self.ratio += ratio
        self.ratio_squares += ratio.square()

    def directional(self) -> tuple[float, float]:
        """Mean and standard error of ‖Δ∥‖ / ‖Δ⊥‖."""
        mean = self.ratio / self.ratios
        variance = (self.ratio_squares / self.ratios - mean.square()).clamp_min(0)
        return mean.item(), (variance / (self.ratios - 1)).sqrt().item()

    def weights(self, batches: int = BATCHES) -> Tensor:
        """Share of each of the first batches in their replicates."""
        counts = torch.tensor(self.counts[:batches], dtype=self.means.dtype, device=self.means.device)
        return counts / counts.sum()

    def mean(self, batches: int = BATCHES) -> Tensor:
        """Over the first batches, `[P]`."""
        return self.weights(batches) @ self.means[:batches]

    def variance(self) -> Tensor:
        """Over all replicates, `[P]`: within batches and between them."""
        total = sum(self.counts)
        between = self.weights() @ (self.means - self.mean()).square()
        return (self.squares.sum(0) + total * between) / (total - 1)

    def resampled(self, seed: int) -> Tensor:
        """The SNR of bootstrap samples of the batches, `[S]`, float64; the samples depend on the seed alone."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(BATCHES, (RESAMPLES, BATCHES), generator=generator)
        times = torch.zeros(RESAMPLES, BATCHES).scatter_add_(1, drawn, torch.ones(RESAMPLES, BATCHES))
        times = times.to(self.means)
        counted = times * torch.tensor(self.counts).to(self.means)
        totals = counted.sum(1, keepdim=True)
        mean = self.mean()
        ratios, used = (torch.zeros(RESAMPLES, dtype=torch.float64, device=mean.device) for _ in range(2))
        size = max(1, CHUNK // RESAMPLES)
        for part, means, squares in zip(mean.split(size), self.means.split(size, 1), self.squares.split(size, 1), strict=True):
            apart = means - part  # centred, so that no squares of large numbers are subtracted
            shift = counted @ apart / totals
            variance = (times @ squares + counted @ apart.square() - totals * shift.square()) / (totals - 1)
            ratio = (part + shift).abs() / variance.clamp_min(0).sqrt()
            ratios += ratio.nansum(1)
            used += (~ratio.isnan()).sum(1)
        return (ratios / used).cpu()


def _statistics(stream: _Stream, reference: _Stream | None, seed: int, seconds: float) -> GradientStatistics:
    bias, bias_se = _bias(stream, reference) if reference is not None else (float("nan"), float("nan"))
    directional_snr, directional_snr_se = stream.directional()
    return GradientStatistics(
        mean=stream.mean().cpu(),
        variance=stream.variance().cpu(),
        resampled=stream.resampled(seed),
        directional_snr=directional_snr,
        directional_snr_se=directional_snr_se,
        bias=bias,
        bias_se=bias_se,
        replicates=sum(stream.counts),
        seconds=seconds,
    )


def _bias(stream: _Stream, reference: _Stream) -> tuple[float, float]:
    """Norm of the mean difference and what it would be without bias, from the batches' paired differences."""
    differences = stream.means - reference.means
    weights = stream.weights()
    mean = weights @ differences
    squared_se = weights.square() @ (differences - mean).square() * BATCHES / (BATCHES - 1)
    return mean.norm().item(), squared_se.sum().sqrt().item()


def _basic_interval(found: float, resampled: Tensor) -> tuple[float, float]:
    """2·estimate less the upper and lower 2.5 % of bootstrap values: what pulled those up pulled the estimate up too."""
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=resampled.dtype)).tolist()
    return 2 * found - high, 2 * found - low


def _synchronize(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def _check_ks(ks: Sequence[int]) -> None:
    if len(set(ks)) < 2:
        raise ConfigError(f"a slope in K needs at least two different values of K, not {list(ks)}")


def _check(
    objectives: Mapping[str, ObjectiveBase],
    parameters: Mapping[str, Tensor],
    groups: Mapping[str, Sequence[str]],
    replicates: int,
    reference: str | None,
) -> None:
    if not isinstance(replicates, int) or replicates < BATCHES:
        raise ConfigError(f"replicates must be a whole number of at least {BATCHES}, not {replicates!r}")
    if reference is not None and reference not in objectives:
        raise unknown_name("reference", reference, objectives)
    for name, parameter in parameters.items():
        if not (parameter.is_leaf and parameter.requires_grad):
            raise ConfigError(f"the parameter '{name}' must be a leaf that requires a gradient")
    for group, names in groups.items():
        if not names:
            raise ConfigError(f"the group '{group}' has no parameters")
        for name in names:
            if name not in parameters:
                raise unknown_name("parameter", name, parameters)
