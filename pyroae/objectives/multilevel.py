"""Randomized multilevel Monte Carlo: an estimate of log p(x) without bias, at finite mean cost."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pyroae.errors import ConfigError
from pyroae.objectives.base import OBJECTIVES
from pyroae.objectives.bounds import BOUNDS, IWAE, MIWAE, BoundFunction
from pyroae.objectives.gradients import GRADIENTS, Coefficients, Gradient, Pathwise, Score
from pyroae.objectives.pair import Objective

MOST_PARTICLES = 2**16
"""The largest number of particles per datum of a level; all of them run in one piece."""


@BOUNDS.register("mlmc")
@dataclass(frozen=True)
class MLMC(BoundFunction):
    """Randomized multilevel Monte Carlo of log p(x), the limit of the IWAE bounds.

        F = B̄ + Δ_l / P(l),   Δ_0 = 0,   Δ_l = L(all) − ½ (L(first half) + L(second half))
        B̄ = mean of L over the 2^l groups of K₀ draws,   L = log-mean-exp of weights
        P(l) = (1 − 2^−r) 2^(−r l),   l = 0, 1, 2, …,   K₀ 2^l draws at level l

    Δ_l is log cosh ½ (L(first half) − L(second half)), by which it is computed.

    The means of the Δ_l sum to log p(x) − E L_K₀, so that E F = log p(x) for every guide. F is not
    a bound, and its gradient has the mean ∂ log p(x) for θ and 0 for φ.

    Because the halves are antithetic, Δ_l is of second order in the errors of their mean weights,
    and E Δ_l² falls as 4^−l where the weights have a finite fourth moment. The variance
    Σ E Δ_l² / P(l) is then finite for r < 2, and the mean number of draws
    K₀ (1 − 2^−r) / (1 − 2^(1−r)) for r > 1. With B̄ in place of L of the first K₀ draws, which has
    the same mean and the same covariance with Δ_l, the variance of the base falls from Var L_K₀ to
    Var L_K₀ E 2^−l.

    All data of an estimate have the same level, which `Objective.next_step` draws on the host; F
    reads it from the number of log-weights.

    Attributes:
        num_particles: K₀, the number of log-weights per datum at level 0.
        decay: r, the rate at which the probability of a level falls, in (1, 2).
        max_level: The last level L, with P(l) normalized over 0..L; None for all levels. E F is
            then E L_K of K = K₀ 2^L draws instead of log p(x), with a bias of order 1/K; the
            probability that is left out is 2^(−r (L + 1)).

    Raises:
        ConfigError: `decay` lies outside (1, 2), `max_level` is not a whole number of at least 0,
            or the first or last level has more than `MOST_PARTICLES` draws.

    References:
        Goda & Ishikawa 2019, Multilevel Monte Carlo estimation of log marginal likelihood.
        Rhee & Glynn 2015, Unbiased Estimation with Square Root Convergence for SDE Models.
        Blanchet & Glynn 2015, Unbiased Monte Carlo for Optimization and Functions of Expectations
            via Multi-Level Randomization (antithetic halves).

    >>> MLMC(2).value(torch.zeros(4, 3))
    tensor([0., 0., 0.])
    >>> f"{MLMC(8).evaluations:.2f}"
    '17.66'
    """

    num_particles: int = 8
    decay: float = 1.5
    max_level: int | None = None
    is_random: ClassVar[bool] = True
    independent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.decay > 1:
            raise ConfigError(
                f"a roulette of infinite cost: with decay = {self.decay} the mean number of "
                "particles is infinite; decay must lie in (1, 2)"
            )
        if not self.decay < 2:
            raise ConfigError(
                f"a roulette of infinite variance: with decay = {self.decay} the levels are drawn "
                "too rarely for their size; decay must lie in (1, 2)"
            )
        if self.num_particles > MOST_PARTICLES:
            raise ConfigError(
                f"mlmc takes at most {MOST_PARTICLES:,} particles at level 0, not "
                f"{self.num_particles:,}"
            )
        last = self.max_level
        if last is None:
            return
        if not isinstance(last, int) or isinstance(last, bool) or last < 0:
            raise ConfigError(f"max_level must be a whole number of at least 0, not {last!r}")
        if self.num_particles << last > MOST_PARTICLES:
            raise ConfigError(
                f"max_level = {last} has {self.num_particles << last:,} particles, more than "
                f"{MOST_PARTICLES:,}"
            )

    @property
    def is_unbiased(self) -> bool:
        """Whether E F = log p(x): without a last level."""
        return self.max_level is None

    @property
    def is_symmetric(self) -> bool:
        """Whether F is invariant to the order of the particles: it has groups and halves."""
        return False

    @property
    def evaluations(self) -> float:
        """The mean number of particles, Σ_l P(l) K₀ 2^l."""
        ratio = 2 ** (1 - self.decay)
        levels = 1 / (1 - ratio)
        if self.max_level is not None:
            levels *= 1 - ratio ** (self.max_level + 1)
        return self.num_particles * self.probability(0) * levels

    def probability(self, level: int) -> float:
        """Return P(l).

        Args:
            level: l, at least 0.

        Returns:
            The probability of the level; 0 above `max_level`.

        >>> [round(MLMC(decay=1.5).probability(level), 4) for level in range(3)]
        [0.6464, 0.2286, 0.0808]
        """
        if self.max_level is not None and level > self.max_level:
            return 0.0
        return (1 - 2**-self.decay) * 2 ** (-self.decay * level) / self._mass

    def draw_particles(self) -> int:
        """Draw a level, and return its number of particles K₀ 2^l.

        Returns:
            The number of particles per datum.

        Raises:
            ConfigError: The level has more than `MOST_PARTICLES` particles.

        >>> _ = torch.manual_seed(0)
        >>> [MLMC(8).draw_particles() for _ in range(6)]
        [64, 16, 8, 32, 8, 16]
        """
        uniform = 1 - torch.rand((), dtype=torch.float64).item() * self._mass
        level = int(-math.log2(uniform) / self.decay)
        if self.max_level is not None:
            level = min(level, self.max_level)
        count = self.num_particles << level
        if count > MOST_PARTICLES:
            raise ConfigError(
                f"level {level} of mlmc has been drawn, whose {count:,} particles per datum are "
                f"more than {MOST_PARTICLES:,}; a step draws it or a higher one with probability "
                f"{2 ** (-self.decay * level):.1g}. To leave it out would bias the estimate: set "
                f"max_level={level - 1}, whose mean is the bound of {count // 2:,} particles"
            )
        return count

    def level(self, log_weight: Tensor) -> int:
        """Return the level of log-weights.

        Args:
            log_weight: Log-weights, shape `[K₀ 2^l, N]`.

        Returns:
            l.

        Raises:
            ConfigError: There is no level of this number of particles.

        >>> MLMC(8).level(torch.zeros(32, 1))
        2
        """
        groups, rest = divmod(len(log_weight), self.num_particles)
        if rest or groups & (groups - 1) or not self.probability(groups.bit_length() - 1):
            raise ConfigError(
                f"{self} has levels of {self.num_particles} · 2^l particles, none of "
                f"{len(log_weight)}"
            )
        return groups.bit_length() - 1

    def value(self, log_weight: Tensor) -> Tensor:
        """Return B̄ + Δ_l / P(l), in nats, shape `[N]`."""
        base = self.base(log_weight).value(log_weight)
        if len(log_weight) == self.num_particles:
            return base
        _, half_difference = _halves(log_weight)
        return base + self._roulette(log_weight) * log_cosh(half_difference)

    def slope(self, log_weight: Tensor) -> Tensor:
        """Return the slopes of B̄ plus ± ½ tanh(d) ŵ_k / P(l), ŵ normalized in each half."""
        log_weight = log_weight.detach()
        base = self.base(log_weight).slope(log_weight)
        if len(log_weight) == self.num_particles:
            return base
        weight, half_difference = _halves(log_weight)
        tilt = torch.stack([half_difference, -half_difference])[:, None].tanh() / 2
        return base + self._roulette(log_weight) * (tilt * weight).reshape(log_weight.shape)

    def curvature(self, log_weight: Tensor) -> Tensor:
        """Return those of B̄ plus (¼ ŵ² / cosh²(d) ± ½ tanh(d) ŵ (1 − ŵ)) / P(l)."""
        log_weight = log_weight.detach()
        base = self.base(log_weight).curvature(log_weight)
        if len(log_weight) == self.num_particles:
            return base
        weight, half_difference = _halves(log_weight)
        tanh = torch.stack([half_difference, -half_difference])[:, None].tanh()
        terms = (1 - tanh**2) * weight**2 / 4 + tanh * weight * (1 - weight) / 2
        return base + self._roulette(log_weight) * terms.reshape(log_weight.shape)

    def without(self, log_weight: Tensor, fill: Tensor | None) -> Tensor:
        """Return F₋ₖ at the same level, particle k left out of its group and its half."""
        base = self.base(log_weight).without(log_weight, fill)
        count = len(log_weight)
        if count == self.num_particles:
            return base
        whole, halves = IWAE(count), MIWAE(count, 2)
        change = whole.without(log_weight, fill) - halves.without(log_weight, fill)
        return base + self._roulette(log_weight) * change

    def base(self, log_weight: Tensor) -> MIWAE:
        """Return B̄, the mean of the IWAE bounds of the groups of K₀ draws.

        Args:
            log_weight: Log-weights, shape `[K₀ 2^l, N]`.

        Returns:
            MIWAE with 2^l groups.
        """
        return MIWAE(len(log_weight), 2 ** self.level(log_weight))

    def _roulette(self, log_weight: Tensor) -> float:
        """1 / P(l)."""
        return 1 / self.probability(self.level(log_weight))

    @property
    def _mass(self) -> float:
        """The probability of the levels up to `max_level`, out of all."""
        return 1.0 if self.max_level is None else 1 - 2 ** (-self.decay * (self.max_level + 1))


def log_cosh(x: Tensor) -> Tensor:
    """Return log cosh x, exact to rounding also where x is small.

    Args:
        x: Any shape.

    Returns:
        log cosh x, of the same shape.

    >>> log_cosh(torch.tensor([1e-3, 100.0]))
    tensor([5.0000e-07, 9.9307e+01])
    """
    small = x.abs() < 1
    near, far = torch.where(small, x, 0.0), torch.where(small, 1.0, x).abs()
    of_far = far + torch.log1p((-2 * far).exp()) - math.log(2)
    return torch.where(small, torch.log1p(2 * (near / 2).sinh() ** 2), of_far)


def _halves(log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weights normalized in each half, `[2, K/2, N]`, and d = ½ (L_1 − L_2), `[N]`."""
    halves = log_weight.unflatten(0, (2, -1))
    of_halves = halves.logsumexp(1)
    return halves.softmax(1), (of_halves[0] - of_halves[1]) / 2


@GRADIENTS.register("base-bound")
@dataclass(frozen=True)
class BaseBound(Gradient):
    """θ follows the multilevel estimate of log p(x), φ the IWAE bounds of its groups of K₀ draws.

        θ: Σ_k c_k ∂_θ log p(x, z_k),   φ: 2^−l Σ_groups Σ_{k in group} ŵ_k (P_k − s_k)

    Every guide has the same E F = log p(x), so that F has no gradient for φ. The base term of F
    has: the mean of its gradient is that of E L_K₀ at every level. Draws without a path gradient
    follow their scores, with leave-one-out baselines from their group where K₀ > 1.

    References:
        Goda & Ishikawa 2019, Multilevel Monte Carlo estimation of log marginal likelihood.
        Rainforth et al. 2018, Tighter Variational Bounds are Not Necessarily Better (a bound for θ
            and another one for φ).

    >>> BaseBound().coefficients(MLMC(1), torch.tensor([[0.0], [2.0]])).whole.flatten()
    tensor([0.5000, 0.5000])
    """

    takes_moving_support: ClassVar[bool] = True
    takes_globals: ClassVar[bool] = True

    def check(self, bound: BoundFunction) -> None:
        """Refuse every bound but MLMC."""
        if not isinstance(bound, MLMC):
            raise ConfigError(
                f"the gradient of the base bound is defined for MLMC, not for "
                f"{type(bound).__name__}"
            )

    def unbiased(self, bound: BoundFunction) -> bool:
        """Return False: φ does not follow F."""
        return False

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        """Return c_k for θ, and the slopes of the base with its learning signal for φ."""
        assert isinstance(bound, MLMC)
        of_draws = Score("leave-one-out") if bound.num_particles > 1 else Pathwise()
        base = of_draws.coefficients(bound.base(log_weight), log_weight)
        return Coefficients(bound.slope(log_weight), whole=base.theta, learning=base.learning)


@OBJECTIVES.register("mlmc")
def mlmc(num_particles: int = 8, decay: float = 1.5, max_level: int | None = None) -> Objective:
    """Randomized multilevel Monte Carlo: θ follows log p(x) without bias, φ follows IWAE.

    Args:
        num_particles: K₀, the number of draws of z per datum at level 0.
        decay: r in (1, 2): level l has K₀ 2^l draws and the probability ∝ 2^(−r l).
        max_level: The last level; None for all levels, without bias.

    Returns:
        MLMC × BaseBound.

    Raises:
        ConfigError: `decay` lies outside (1, 2), or `max_level` is not accepted.

    References:
        Goda & Ishikawa 2019, Multilevel Monte Carlo estimation of log marginal likelihood.
        Rhee & Glynn 2015, Unbiased Estimation with Square Root Convergence for SDE Models.
    """
    return Objective(MLMC(num_particles, decay, max_level), BaseBound())
