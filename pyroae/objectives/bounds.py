"""Bounds: functions F of one datum's log-weights log w_1..K, with the derivatives of F.

Log-weights have the shape `[K, N]` (K particles, N data), in nats; a bound has the shape `[N]`.
ŵ = w / Σ w are the normalized weights.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from pyroae.errors import ConfigError
from pyroae.registry import Registry

BOUNDS: "Registry[BoundFunction]" = Registry("bound")
"""The table of bounds by name."""


class BoundFunction(ABC):
    """A function F of the log-weights of one datum.

    To add a bound, write a frozen dataclass with `value` and register it with
    `@BOUNDS.register("name")`. Its derivatives then follow by autograd; a subclass may replace them
    by closed forms. The claims `is_lower`, `trend` and `is_symmetric` are checked by
    `pyroae.testing.check_objective`.

    Attributes:
        num_particles: K, the number of log-weights per datum.
        least_particles: The smallest K at which F is defined.
        stratified: Whether the draws are stratified: equally many from each component of a mixture.
        independent: Whether F assumes that the K draws of a datum are independent and identically
            distributed.

    Raises:
        ConfigError: `num_particles` is not a whole number, or below `least_particles`.

    >>> @dataclass(frozen=True)
    ... class Largest(BoundFunction):
    ...     num_particles: int = 8
    ...     def value(self, log_weight: Tensor) -> Tensor:
    ...         return log_weight.max(0).values
    >>> Largest(2).slope(torch.tensor([[0.0], [2.0]])).flatten()
    tensor([0., 1.])
    """

    num_particles: int
    least_particles: int = 1
    stratified: ClassVar[bool] = False
    independent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        count = self.num_particles
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(f"num_particles must be a whole number of at least 1, not {count!r}")
        if count < self.least_particles:
            raise ConfigError(
                f"{type(self).__name__} needs num_particles of at least {self.least_particles}, "
                f"not {count}"
            )

    @property
    def smooth(self) -> bool:
        """Whether the slopes c_k are continuous, as doubly reparameterized gradients require."""
        return True

    @property
    def constant_slopes(self) -> bool:
        """Whether every slope c_k is 1/K, so that Σ_k c_k s_k has mean 0."""
        return False

    @property
    def is_lower(self) -> bool:
        """Whether E F ≤ log p(x) for every guide."""
        return False

    @property
    def is_unbiased(self) -> bool:
        """Whether E F = log p(x) for every guide."""
        return False

    @property
    def trend(self) -> int | None:
        """How E F changes with K: 1 never falls, −1 never rises, 0 constant, None no claim."""
        return None

    @property
    def is_symmetric(self) -> bool:
        """Whether F is invariant to the order of the particles."""
        return True

    @abstractmethod
    def value(self, log_weight: Tensor) -> Tensor:
        """Return F, differentiable.

        Args:
            log_weight: Log-weights in nats, shape `[K, N]`.

        Returns:
            The bound of each datum, in nats, shape `[N]`.

        >>> IWAE(2).value(torch.zeros(2, 3))
        tensor([0., 0., 0.])
        """

    def slope(self, log_weight: Tensor) -> Tensor:
        """Return the first derivatives c_k = ∂F/∂log w_k.

        Args:
            log_weight: Log-weights in nats, shape `[K, N]`.

        Returns:
            The slopes, detached, shape `[K, N]`.

        >>> JVI(2).slope(torch.zeros(2, 1)).flatten()
        tensor([0.5000, 0.5000])
        """
        with torch.enable_grad():
            leaf = log_weight.detach().requires_grad_()
            return torch.autograd.grad(self.value(leaf).sum(), leaf)[0]

    def curvature(self, log_weight: Tensor) -> Tensor:
        """Return the second derivatives h_k = ∂c_k/∂log w_k.

        Args:
            log_weight: Log-weights in nats, shape `[K, N]`.

        Returns:
            The curvatures, detached, shape `[K, N]`.

        >>> IWAE(2).curvature(torch.zeros(2, 1)).flatten()
        tensor([0.2500, 0.2500])
        """
        with torch.enable_grad():
            leaf = log_weight.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.value(leaf).sum(), leaf, create_graph=True)
            if not slope.requires_grad:
                return torch.zeros_like(leaf)
            rows = [
                torch.autograd.grad(slope[k].sum(), leaf, retain_graph=True)[0][k]
                for k in range(len(leaf))
            ]
            return torch.stack(rows)

    def without(self, log_weight: Tensor, fill: Tensor | None) -> Tensor:
        """Return F₋ₖ: F with particle k left out, or with its log-weight replaced.

        Args:
            log_weight: Log-weights in nats, shape `[K, N]`.
            fill: The log-weights that replace those of particle k, shape `[K, N]`; None leaves
                particle k out, so that F has K − 1 particles.

        Returns:
            F₋ₖ for each particle k, in nats, shape `[K, N]`.
        """
        rows = []
        for k in range(len(log_weight)):
            others = torch.cat([log_weight[:k], log_weight[k + 1 :]])
            rows.append(
                self.value(others if fill is None else torch.cat([others, fill[k : k + 1]]))
            )
        return torch.stack(rows)


@BOUNDS.register("elbo")
@dataclass(frozen=True)
class ELBO(BoundFunction):
    """The evidence lower bound: the mean log-weight.

        F = (1/K) Σ_k log w_k,   c_k = 1/K,   ∂c_k/∂log w_k = 0

    Attributes:
        num_particles: K, the number of log-weights per datum.

    References:
        Kingma & Welling 2014, Auto-Encoding Variational Bayes.

    >>> ELBO(2).value(torch.tensor([[0.0], [2.0]]))
    tensor([1.])
    """

    num_particles: int = 1
    is_lower = True
    trend = 0
    constant_slopes = True

    def value(self, log_weight: Tensor) -> Tensor:
        """Return the mean log-weight, in nats, shape `[N]`."""
        return log_weight.mean(0)

    def slope(self, log_weight: Tensor) -> Tensor:
        """Return 1/K, shape `[K, N]`."""
        return torch.full_like(log_weight, 1 / len(log_weight))

    def curvature(self, log_weight: Tensor) -> Tensor:
        """Return 0, shape `[K, N]`."""
        return torch.zeros_like(log_weight)

    def without(self, log_weight: Tensor, fill: Tensor | None) -> Tensor:
        """Return F₋ₖ in time linear in K, in nats, shape `[K, N]`."""
        count, rest = len(log_weight), log_weight.sum(0) - log_weight
        return rest / (count - 1) if fill is None else (rest + fill) / count


@BOUNDS.register("iwae")
@dataclass(frozen=True)
class IWAE(BoundFunction):
    """The importance-weighted bound: the log of the mean weight.

        F = log (1/K) Σ_k w_k,   c_k = ŵ_k,   ∂c_k/∂log w_k = ŵ_k (1 − ŵ_k)

    Attributes:
        num_particles: K, the number of log-weights per datum.

    References:
        Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders.

    >>> IWAE(2).value(torch.tensor([[0.0], [0.0]]))
    tensor([0.])
    """

    num_particles: int = 8
    is_lower = True
    trend = 1

    @property
    def constant_slopes(self) -> bool:
        """Whether K is 1."""
        return self.num_particles == 1

    def value(self, log_weight: Tensor) -> Tensor:
        """Return the log-mean-exp of the log-weights, in nats, shape `[N]`."""
        return log_mean_exp(log_weight)

    def slope(self, log_weight: Tensor) -> Tensor:
        """Return the normalized weights ŵ, shape `[K, N]`."""
        return log_weight.detach().softmax(0)

    def curvature(self, log_weight: Tensor) -> Tensor:
        """Return ŵ (1 − ŵ), shape `[K, N]`."""
        weight = self.slope(log_weight)
        return weight * (1 - weight)

    def without(self, log_weight: Tensor, fill: Tensor | None) -> Tensor:
        """Return F₋ₖ in time linear in K, in nats, shape `[K, N]`."""
        others = log_sum_of_others(log_weight)
        if fill is None:
            return others - math.log(len(log_weight) - 1)
        return torch.logaddexp(others, fill) - math.log(len(log_weight))


@BOUNDS.register("renyi")
@dataclass(frozen=True)
class Renyi(BoundFunction):
    """The variational Rényi bound of order α.

        F = (1/(1−α)) log (1/K) Σ_k w_k^{1−α}

    With α → 1 it is the ELBO, with α = 0 IWAE, and with α = −∞ max_k log w_k. With ŵ the normalized
    weights w^{1−α}, c = ŵ and ∂c = (1−α) ŵ (1 − ŵ). It is a lower bound for α ≥ 0; its mean rises
    with K for α < 1 and falls for α > 1.

    Attributes:
        num_particles: K, the number of log-weights per datum.
        alpha: The order α, below infinity.

    Raises:
        ConfigError: `alpha` is +∞ or NaN.

    References:
        Li & Turner 2016, Rényi Divergence Variational Inference.

    >>> Renyi(2, alpha=-math.inf).value(torch.tensor([[0.0], [2.0]]))
    tensor([2.])
    """

    num_particles: int = 8
    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha < math.inf:
            raise ConfigError(f"alpha of a Rényi bound must be below infinity, not {self.alpha}")

    @property
    def constant_slopes(self) -> bool:
        """Whether α or K is 1."""
        return self.alpha == 1 or self.num_particles == 1

    @property
    def smooth(self) -> bool:
        """Whether α is finite: the slopes of the maximum are discontinuous."""
        return self.alpha > -math.inf

    @property
    def is_lower(self) -> bool:
        """Whether α ≥ 0."""
        return self.alpha >= 0

    @property
    def trend(self) -> int | None:
        """The sign of 1 − α."""
        return (self.alpha < 1) - (self.alpha > 1)

    def value(self, log_weight: Tensor) -> Tensor:
        """Return the Rényi bound, in nats, shape `[N]`."""
        if self.alpha == 1:
            return log_weight.mean(0)
        if self.alpha == -math.inf:
            return log_weight.max(0).values
        return log_mean_exp((1 - self.alpha) * log_weight) / (1 - self.alpha)

    def slope(self, log_weight: Tensor) -> Tensor:
        """Return the normalized weights w^{1−α}, shape `[K, N]`; at α = −∞ one at the largest."""
        log_weight = log_weight.detach()
        if self.alpha == -math.inf:
            best = log_weight.argmax(0, keepdim=True)
            return torch.zeros_like(log_weight).scatter(0, best, 1.0)
        return ((1 - self.alpha) * log_weight).softmax(0)

    def curvature(self, log_weight: Tensor) -> Tensor:
        """Return (1−α) ŵ (1 − ŵ), shape `[K, N]`; 0 at α = −∞."""
        if self.alpha == -math.inf:
            return torch.zeros_like(log_weight)
        weight = self.slope(log_weight)
        return (1 - self.alpha) * weight * (1 - weight)

    def without(self, log_weight: Tensor, fill: Tensor | None) -> Tensor:
        """Return F₋ₖ in time linear in K, in nats, shape `[K, N]`."""
        if self.alpha == 1:
            return ELBO(self.num_particles).without(log_weight, fill)
        if self.alpha == -math.inf:
            others = _largest_of_others(log_weight)
            return others if fill is None else torch.maximum(others, fill)
        order = 1 - self.alpha
        powers = None if fill is None else order * fill
        return IWAE(self.num_particles).without(order * log_weight, powers) / order


@BOUNDS.register("miwae")
@dataclass(frozen=True)
class MIWAE(BoundFunction):
    """The mean over M groups of the IWAE bounds of K/M particles.

        F = (1/M) Σ_m log (M/K) Σ_{k in m} w_k

    It depends on which particles form a group, so it is not invariant to their order unless M is
    1 or K.

    Attributes:
        num_particles: K, the number of log-weights per datum, a multiple of `groups`.
        groups: M, the number of groups of equal size.

    Raises:
        ConfigError: `groups` is not a whole number of at least 1 that divides `num_particles`.

    References:
        Rainforth et al. 2018, Tighter Variational Bounds are Not Necessarily Better.

    >>> MIWAE(4, groups=2).value(torch.tensor([[0.0], [0.0], [2.0], [2.0]]))
    tensor([1.])
    """

    num_particles: int = 8
    groups: int = 2
    is_lower = True
    trend = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.groups, int) or self.groups < 1 or self.num_particles % self.groups:
            raise ConfigError(
                f"num_particles of {self.num_particles} cannot be split into {self.groups} equal "
                "groups"
            )

    @property
    def constant_slopes(self) -> bool:
        """Whether M is K."""
        return self.groups == self.num_particles

    @property
    def is_symmetric(self) -> bool:
        """Whether M is 1 or K."""
        return self.groups in (1, self.num_particles)

    def value(self, log_weight: Tensor) -> Tensor:
        """Return the mean of the groups' IWAE bounds, in nats, shape `[N]`."""
        return log_mean_exp(self._grouped(log_weight), 1).mean(0)

    def slope(self, log_weight: Tensor) -> Tensor:
        """Return the weights normalized within each group, divided by M, shape `[K, N]`."""
        return (self._grouped(log_weight.detach()).softmax(1) / self.groups).reshape(
            log_weight.shape
        )

    def curvature(self, log_weight: Tensor) -> Tensor:
        """Return ŵ (1 − ŵ) / M with ŵ normalized within each group, shape `[K, N]`."""
        weight = self._grouped(log_weight.detach()).softmax(1)
        return (weight * (1 - weight) / self.groups).reshape(log_weight.shape)

    def without(self, log_weight: Tensor, fill: Tensor | None) -> Tensor:
        """Return F with particle k left out of its own group, in nats, shape `[K, N]`."""
        grouped = self._grouped(log_weight)
        others = log_sum_of_others(grouped, 1)
        size = grouped.shape[1]
        if fill is None:
            remaining = others - math.log(size - 1) if size > 1 else torch.zeros_like(others)
        else:
            remaining = torch.logaddexp(others, self._grouped(fill)) - math.log(size)
        own = log_mean_exp(grouped, 1)
        return ((own.sum(0) - own)[:, None] + remaining).reshape(log_weight.shape) / self.groups

    def _grouped(self, values: Tensor) -> Tensor:
        """`[K, N]` as `[M, K/M, N]`."""
        return values.reshape(self.groups, -1, *values.shape[1:])


@BOUNDS.register("ciwae")
@dataclass(frozen=True)
class CIWAE(BoundFunction):
    """A convex combination of the ELBO and the IWAE bound.

        F = β (1/K) Σ_k log w_k + (1 − β) log (1/K) Σ_k w_k

    Attributes:
        num_particles: K, the number of log-weights per datum.
        beta: The weight β of the ELBO, in [0, 1].

    Raises:
        ConfigError: `beta` lies outside [0, 1].

    References:
        Rainforth et al. 2018, Tighter Variational Bounds are Not Necessarily Better.

    >>> CIWAE(2, beta=1.0).value(torch.tensor([[0.0], [2.0]]))
    tensor([1.])
    """

    num_particles: int = 8
    beta: float = 0.5
    is_lower = True
    trend = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"beta of CIWAE must be in [0, 1], not {self.beta}")

    @property
    def constant_slopes(self) -> bool:
        """Whether β or K is 1."""
        return self.beta == 1 or self.num_particles == 1

    def value(self, log_weight: Tensor) -> Tensor:
        """Return β ELBO + (1 − β) IWAE, in nats, shape `[N]`."""
        return self.beta * log_weight.mean(0) + (1 - self.beta) * log_mean_exp(log_weight)

    def slope(self, log_weight: Tensor) -> Tensor:
        """Return β/K + (1 − β) ŵ, shape `[K, N]`."""
        return self.beta / len(log_weight) + (1 - self.beta) * log_weight.detach().softmax(0)

    def curvature(self, log_weight: Tensor) -> Tensor:
        """Return (1 − β) ŵ (1 − ŵ), shape `[K, N]`."""
        weight = log_weight.detach().softmax(0)
        return (1 - self.beta) * weight * (1 - weight)

    def without(self, log_weight: Tensor, fill: Tensor | None) -> Tensor:
        """Return F₋ₖ in time linear in K, in nats, shape `[K, N]`."""
        mean, log_mean = (
            part.without(log_weight, fill)
            for part in (ELBO(self.num_particles), IWAE(self.num_particles))
        )
        return self.beta * mean + (1 - self.beta) * log_mean


@BOUNDS.register("jvi")
@dataclass(frozen=True)
class JVI(BoundFunction):
    """Jackknife variational inference: IWAE with its bias reduced by the jackknife of order m.

        F = Σ_{j≤m} c_j L̄_{K−j},   c_j = (−1)^j (K−j)^m / ((m−j)! j!)

    L̄_{K−j} is the mean of the IWAE bounds of all subsets of K − j weights. The bias of F as an
    estimate of log p(x) is of order K^{−m−1}; F is not a bound.

    Attributes:
        num_particles: K, the number of log-weights per datum, at least `order` + 1.
        order: m, 1 or 2.

    Raises:
        ConfigError: `order` is neither 1 nor 2, or `num_particles` is too small for it.

    References:
        Nowozin 2018, Debiasing Evidence Approximations: On Importance-weighted Autoencoders and
            Jackknife Variational Inference.

    >>> JVI(2).value(torch.zeros(2, 1))
    tensor([0.])
    """

    num_particles: int = 8
    order: int = 1
    independent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ConfigError(f"the order of JVI is 1 or 2, not {self.order}")
        object.__setattr__(self, "least_particles", self.order + 1)
        super().__post_init__()

    def value(self, log_weight: Tensor) -> Tensor:
        """Return the jackknife estimate of log p(x), in nats, shape `[N]`."""
        count, order = len(log_weight), self.order
        one_out = log_sum_of_others(log_weight)
        means = [log_mean_exp(log_weight), one_out.mean(0) - math.log(count - 1)]
        if order == 2:
            means.append(_pairs_left_out(log_weight) - math.log(count - 2))
        signs = [
            (-1) ** j * (count - j) ** order / (math.factorial(order - j) * math.factorial(j))
            for j in range(order + 1)
        ]
        return torch.stack([sign * mean for sign, mean in zip(signs, means, strict=True)]).sum(0)


@BOUNDS.register("tvo")
@dataclass(frozen=True)
class TVO(BoundFunction):
    """The thermodynamic lower bound.

        F = Σ_s (β_{s+1} − β_s) Σ_k ŵ_k(β_s) log w_k,   ŵ(β) ∝ w^β

    β runs from 0 to 1 in `partitions` steps: β_0 = 0, the others are spaced evenly in log β from
    `first` to 1.

    Attributes:
        num_particles: K, the number of log-weights per datum, at least 2.
        partitions: S, the number of steps of β.
        first: β_1, in (0, 1).

    Raises:
        ConfigError: `partitions` is below 1, or `first` lies outside (0, 1).

    References:
        Masrani, Le & Wood 2019, The Thermodynamic Variational Objective.

    >>> TVO(2, partitions=3).betas()
    [0.0, 0.01, 0.1, 1.0]
    """

    num_particles: int = 8
    partitions: int = 5
    first: float = 0.01
    least_particles = 2
    is_lower = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.partitions < 1 or not 0 < self.first < 1:
            raise ConfigError(
                f"TVO takes at least one partition and a first β in (0, 1), not {self}"
            )

    def betas(self) -> list[float]:
        """Return the schedule β_0 = 0 < β_1 < … < β_S = 1.

        Returns:
            A list of S + 1 numbers: 0, then S numbers spaced evenly in log β from `first` to 1; for
                S = 1 only 0 and 1.

        >>> TVO(partitions=1).betas(), TVO(partitions=2, first=0.1).betas()
        ([0.0, 1.0], [0.0, 0.1, 1.0])
        """
        inner = (
            [self.first ** (1 - s / (self.partitions - 1)) for s in range(self.partitions - 1)]
            if self.partitions > 1
            else []
        )
        return [0.0, *inner, 1.0]

    def value(self, log_weight: Tensor) -> Tensor:
        """Return the left Riemann sum over the schedule, in nats, shape `[N]`."""
        betas = self.betas()
        terms = [
            (after - beta) * ((beta * log_weight).softmax(0) * log_weight).sum(0)
            for beta, after in pairwise(betas)
        ]
        return torch.stack(terms).sum(0)

    def without(self, log_weight: Tensor, fill: Tensor | None) -> Tensor:
        """Return F₋ₖ in time linear in K, in nats, shape `[K, N]`."""
        terms = []
        for beta, after in pairwise(self.betas()):
            mean = _mean_of_others(beta * log_weight, log_weight)
            if fill is not None:
                share = (beta * fill - log_sum_of_others(beta * log_weight)).sigmoid()
                mean = mean + share * (fill - mean)
            terms.append((after - beta) * mean)
        return torch.stack(terms).sum(0)


def log_mean_exp(log_weight: Tensor, dim: int = 0) -> Tensor:
    """Return log (1/K) Σ_k exp(log w_k) along one dimension.

    Args:
        log_weight: Log-weights in nats, any shape.
        dim: The dimension of the mean; it is removed.

    Returns:
        The log of the mean weight, in nats, `log_weight.shape` without `dim`.

    >>> log_mean_exp(torch.zeros(4, 2))
    tensor([0., 0.])
    """
    return log_weight.logsumexp(dim) - math.log(log_weight.shape[dim])


def log_sum_of_others(log_weight: Tensor, dim: int = 0) -> Tensor:
    """Return log Σ_{j≠k} w_j for each k, exact also where one weight dominates the sum.

    Args:
        log_weight: Log-weights in nats, any shape.
        dim: The dimension of the particles.

    Returns:
        The log of the sum of the other weights, in nats, of the shape of `log_weight`.

    >>> log_sum_of_others(torch.tensor([0.0, -100.0, -100.0]))
    tensor([-9.9307e+01, ...])
    """
    best = log_weight.argmax(dim, keepdim=True)
    is_best = torch.zeros_like(log_weight, dtype=torch.bool).scatter(dim, best, True)
    of_best = log_weight.masked_fill(is_best, -math.inf).logsumexp(dim, keepdim=True)
    total = log_weight.logsumexp(dim, keepdim=True)
    # The share of each of the other weights, at most a half.
    share = (log_weight - total).masked_fill(is_best, -math.inf).exp()
    return torch.where(is_best, of_best, total + torch.log1p(-share))


def _mean_of_others(logits: Tensor, values: Tensor) -> Tensor:
    """Σ_{j≠k} p_j v_j / Σ_{j≠k} p_j with p = softmax of logits, for each k, `[K, N]`.

    Exact also where one p dominates: the mean without the largest is computed by itself.
    """
    best = logits.argmax(0, keepdim=True)
    is_best = torch.zeros_like(logits, dtype=torch.bool).scatter(0, best, True)
    of_best = (logits.masked_fill(is_best, -math.inf).softmax(0) * values).sum(0)
    weight = logits.softmax(0)
    share = weight.masked_fill(is_best, 0.0)  # at most a half
    of_others = ((weight * values).sum(0) - share * values) / (1 - share)
    return torch.where(is_best, of_best, of_others)


def _largest_of_others(log_weight: Tensor) -> Tensor:
    """max_{j≠k} log w_j for each k, `[K, N]`."""
    best = log_weight.argmax(0, keepdim=True)
    is_best = torch.zeros_like(log_weight, dtype=torch.bool).scatter(0, best, True)
    of_best = log_weight.masked_fill(is_best, -math.inf).max(0).values
    return torch.where(is_best, of_best, log_weight.max(0).values)


def _pairs_left_out(log_weight: Tensor) -> Tensor:
    """The mean over all pairs i < j of log Σ_{k≠i,j} w_k, `[N]`."""
    count = len(log_weight)
    keep = ~torch.eye(count, dtype=torch.bool, device=log_weight.device)
    index = (
        torch.arange(count, device=log_weight.device)
        .expand(count, count)[keep]
        .reshape(count, count - 1)
    )
    rest = log_weight[index]  # [K, K−1, N]: row i without particle i
    return log_sum_of_others(rest, 1).mean((0, 1))
