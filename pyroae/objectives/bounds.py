"""Bounds: functions F of one datum's log-weights log w_1..K, with the derivatives that gradient estimators need.

Log-weights are `[K, N]`, in nats; a bound is `[N]`. ŵ = w / Σ w.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pyroae.errors import ConfigError
from pyroae.registry import Registry

BOUNDS: "Registry[BoundFunction]" = Registry("bound")


class BoundFunction(ABC):
    """A function F of the log-weights of one datum. To add one, define `value`; the derivatives then follow by autograd."""

    num_particles: int
    least_particles: int = 1
    """The smallest K at which it is defined."""

    def __post_init__(self) -> None:
        count = self.num_particles
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(f"num_particles must be a whole number of at least 1, not {count!r}")
        if count < self.least_particles:
            raise ConfigError(
                f"{type(self).__name__} needs num_particles of at least {self.least_particles}, not {count}"
            )

    @property
    def smooth(self) -> bool:
        """Whether the slopes c_k are continuous: what doubly reparameterized gradients need."""
        return True

    @property
    def is_lower(self) -> bool:
        """Whether E F ≤ log p(x) for every guide. Claimed here, it is checked by `pyroae.testing.check_objective`."""
        return False

    @property
    def trend(self) -> int | None:
        """How E F changes with K: 1 it never falls, −1 it never rises, 0 it stays; None where that is not claimed."""
        return None

    @property
    def is_symmetric(self) -> bool:
        """Whether F is the same in whatever order the particles come."""
        return True

    @abstractmethod
    def value(self, log_weight: Tensor) -> Tensor:
        """F `[N]` of log-weights `[K, N]`, differentiable."""

    def slope(self, log_weight: Tensor) -> Tensor:
        """c_k = ∂F/∂log w_k, `[K, N]`, detached."""
        with torch.enable_grad():
            leaf = log_weight.detach().requires_grad_()
            return torch.autograd.grad(self.value(leaf).sum(), leaf)[0]

    def curvature(self, log_weight: Tensor) -> Tensor:
        """h_k = ∂c_k/∂log w_k, `[K, N]`, detached."""
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
        """F with particle k left out (`fill` None), or with its log-weight replaced by `fill[k]`: `[K, N]` for each k."""
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
    """F = (1/K) Σ log w_k (Kingma & Welling 2014).

    >>> ELBO(2).value(torch.tensor([[0.0], [2.0]]))
    tensor([1.])
    """

    num_particles: int = 1

    @property
    def is_lower(self) -> bool:
        return True

    @property
    def trend(self) -> int | None:
        return 0

    def value(self, log_weight: Tensor) -> Tensor:
        return log_weight.mean(0)

    def slope(self, log_weight: Tensor) -> Tensor:
        return torch.full_like(log_weight, 1 / len(log_weight))

    def curvature(self, log_weight: Tensor) -> Tensor:
        return torch.zeros_like(log_weight)


@BOUNDS.register("iwae")
@dataclass(frozen=True)
class IWAE(BoundFunction):
    """F = log (1/K) Σ w_k (Burda 2016); c = ŵ, ∂c = ŵ(1 − ŵ)."""

    num_particles: int = 8

    @property
    def is_lower(self) -> bool:
        return True

    @property
    def trend(self) -> int | None:
        return 1

    def value(self, log_weight: Tensor) -> Tensor:
        return log_mean_exp(log_weight)

    def slope(self, log_weight: Tensor) -> Tensor:
        return log_weight.detach().softmax(0)

    def curvature(self, log_weight: Tensor) -> Tensor:
        weight = self.slope(log_weight)
        return weight * (1 - weight)

    def without(self, log_weight: Tensor, fill: Tensor | None) -> Tensor:
        others = log_sum_of_others(log_weight)
        if fill is None:
            return others - math.log(len(log_weight) - 1)
        return torch.logaddexp(others, fill) - math.log(len(log_weight))


@BOUNDS.register("renyi")
@dataclass(frozen=True)
class Renyi(BoundFunction):
    """F = (1/(1−α)) log (1/K) Σ w_k^{1−α} (Li & Turner 2016): α → 1 the ELBO, α = 0 IWAE, α = −∞ max_k log w_k.

    c = ŵ of the weights w^{1−α}, ∂c = (1−α) ŵ(1 − ŵ).
    """

    num_particles: int = 8
    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha < math.inf:
            raise ConfigError(f"alpha of a Rényi bound must be below infinity, not {self.alpha}")

    @property
    def smooth(self) -> bool:
        return self.alpha > -math.inf

    @property
    def is_lower(self) -> bool:
        return self.alpha >= 0

    @property
    def trend(self) -> int | None:
        return (self.alpha < 1) - (self.alpha > 1)

    def value(self, log_weight: Tensor) -> Tensor:
        if self.alpha == 1:
            return log_weight.mean(0)
        if self.alpha == -math.inf:
            return log_weight.max(0).values
        return log_mean_exp((1 - self.alpha) * log_weight) / (1 - self.alpha)

    def slope(self, log_weight: Tensor) -> Tensor:
        log_weight = log_weight.detach()
        if self.alpha == -math.inf:
            best = log_weight.argmax(0, keepdim=True)
            return torch.zeros_like(log_weight).scatter(0, best, 1.0)
        return ((1 - self.alpha) * log_weight).softmax(0)

    def curvature(self, log_weight: Tensor) -> Tensor:
        if self.alpha == -math.inf:
            return torch.zeros_like(log_weight)
        weight = self.slope(log_weight)
        return (1 - self.alpha) * weight * (1 - weight)


@BOUNDS.register("miwae")
@dataclass(frozen=True)
class MIWAE(BoundFunction):
    """F = (1/M) Σ_m log (M/K) Σ_{k in m} w_k: the mean over M = `groups` of IWAE bounds of K/M (Rainforth 2018)."""

    num_particles: int = 8
    groups: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.groups, int) or self.groups < 1 or self.num_particles % self.groups:
            raise ConfigError(
                f"num_particles of {self.num_particles} cannot be split into {self.groups} equal groups"
            )

    @property
    def is_lower(self) -> bool:
        return True

    @property
    def trend(self) -> int | None:
        return 1

    @property
    def is_symmetric(self) -> bool:
        return self.groups in (1, self.num_particles)

    def value(self, log_weight: Tensor) -> Tensor:
        return log_mean_exp(self._grouped(log_weight), 1).mean(0)

    def slope(self, log_weight: Tensor) -> Tensor:
        return (self._grouped(log_weight.detach()).softmax(1) / self.groups).reshape(
            log_weight.shape
        )

    def curvature(self, log_weight: Tensor) -> Tensor:
        weight = self._grouped(log_weight.detach()).softmax(1)
        return (weight * (1 - weight) / self.groups).reshape(log_weight.shape)

    def without(self, log_weight: Tensor, fill: Tensor | None) -> Tensor:
        """A particle is left out of its own group."""
        grouped = self._grouped(log_weight)
        others = log_sum_of_others(grouped, 1)
        size = grouped.shape[1]
        if fill is None:
            left = others - math.log(size - 1) if size > 1 else torch.zeros_like(others)
        else:
            left = torch.logaddexp(others, self._grouped(fill)) - math.log(size)
        own = log_mean_exp(grouped, 1)
        return ((own.sum(0) - own)[:, None] + left).reshape(log_weight.shape) / self.groups

    def _grouped(self, values: Tensor) -> Tensor:
        return values.reshape(self.groups, -1, *values.shape[1:])


@BOUNDS.register("ciwae")
@dataclass(frozen=True)
class CIWAE(BoundFunction):
    """F = β (1/K) Σ log w_k + (1 − β) log (1/K) Σ w_k (Rainforth 2018)."""

    num_particles: int = 8
    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"beta of CIWAE must be in [0, 1], not {self.beta}")

    @property
    def is_lower(self) -> bool:
        return True

    @property
    def trend(self) -> int | None:
        return 1

    def value(self, log_weight: Tensor) -> Tensor:
        return self.beta * log_weight.mean(0) + (1 - self.beta) * log_mean_exp(log_weight)

    def slope(self, log_weight: Tensor) -> Tensor:
        return self.beta / len(log_weight) + (1 - self.beta) * log_weight.detach().softmax(0)

    def curvature(self, log_weight: Tensor) -> Tensor:
        weight = log_weight.detach().softmax(0)
        return (1 - self.beta) * weight * (1 - weight)

    def without(self, log_weight: Tensor, fill: Tensor | None) -> Tensor:
        count = len(log_weight)
        rest = log_weight.sum(0) - log_weight
        mean = rest / (count - 1) if fill is None else (rest + fill) / count
        return self.beta * mean + (1 - self.beta) * IWAE(self.num_particles).without(
            log_weight, fill
        )


@BOUNDS.register("jvi")
@dataclass(frozen=True)
class JVI(BoundFunction):
    """Jackknife variational inference (Nowozin 2018): Σ_{j≤m} c_j L̄_{K−j}, c_j = (−1)^j (K−j)^m / ((m−j)! j!), m = `order`.

    L̄_{K−j} is the mean of the IWAE bounds of all subsets of K − j weights. Its bias is of order K^{−m−1}; it is no bound.
    """

    num_particles: int = 8
    order: int = 1

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ConfigError(f"the order of JVI is 1 or 2, not {self.order}")
        object.__setattr__(self, "least_particles", self.order + 1)
        super().__post_init__()

    def value(self, log_weight: Tensor) -> Tensor:
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
    """F = Σ_s (β_{s+1} − β_s) Σ_k ŵ_k(β_s) log w_k, ŵ(β) ∝ w^β: the thermodynamic lower bound (Masrani 2019).

    β runs from 0 to 1 in `partitions` steps, the first at 0, the others evenly in log β from `first` to 1.
    """

    num_particles: int = 8
    partitions: int = 5
    first: float = 0.01
    least_particles = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.partitions < 1 or not 0 < self.first < 1:
            raise ConfigError(
                f"TVO takes at least one partition and a first β in (0, 1), not {self}"
            )

    def betas(self) -> list[float]:
        """β_0 = 0 < β_1 < … < β_S = 1."""
        inner = (
            [self.first ** (1 - s / (self.partitions - 1)) for s in range(self.partitions - 1)]
            if self.partitions > 1
            else []
        )
        return [0.0, *inner, 1.0]

    @property
    def is_lower(self) -> bool:
        return True

    def value(self, log_weight: Tensor) -> Tensor:
        betas = self.betas()
        terms = [
            (after - beta) * ((beta * log_weight).softmax(0) * log_weight).sum(0)
            for beta, after in pairwise(betas)
        ]
        return torch.stack(terms).sum(0)


def log_mean_exp(log_weight: Tensor, dim: int = 0) -> Tensor:
    """log of the mean of exp, along one dimension."""
    return log_weight.logsumexp(dim) - math.log(log_weight.shape[dim])


def log_sum_of_others(log_weight: Tensor, dim: int = 0) -> Tensor:
    """log Σ_{j≠k} w_j for each k, of the shape of `log_weight`; exact also where one weight carries the sum.

    >>> log_sum_of_others(torch.tensor([0.0, -100.0, -100.0]))
    tensor([-9.9307e+01, ...])
    """
    best = log_weight.argmax(dim, keepdim=True)
    is_best = torch.zeros_like(log_weight, dtype=torch.bool).scatter(dim, best, True)
    of_best = log_weight.masked_fill(is_best, -math.inf).logsumexp(dim, keepdim=True)
    total = log_weight.logsumexp(dim, keepdim=True)
    share = (
        (log_weight - total).masked_fill(is_best, -math.inf).exp()
    )  # of the others: at most a half
    return torch.where(is_best, of_best, total + torch.log1p(-share))


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
