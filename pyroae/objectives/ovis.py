"""OVIS: score-function gradients of the importance-weighted bound whose SNR rises with K.

With d_k = log (1/K) Σ_j w_j − ŵ_k the score-function gradient of IWAE is Σ_k (d_k − c_k) s_k for
any c_k that does not depend on z_k. The variance is least, asymptotically in K, where c_k is the
mean of d_k over z_k given the other draws.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyroae.errors import ConfigError
from pyroae.objectives.base import OBJECTIVES, Bound
from pyroae.objectives.bounds import IWAE, BoundFunction, log_sum_of_others
from pyroae.objectives.coefficient_surrogates import along_scores
from pyroae.objectives.gradients import GRADIENTS, Coefficients, Gradient, Pathwise, WakeSleep
from pyroae.objectives.pair import Objective
from pyroae.objectives.program_gradient import ProgramGradient
from pyroae.objectives.surrogates import Detached
from pyroae.programs.sites import Program
from pyroae.weights import reduce_log_weights


@GRADIENTS.register("ovis")
@dataclass(frozen=True)
class OVIS(Gradient):
    """The asymptotic form of OVIS, for any guide, discrete ones included.

        φ: Σ_k (−log(1 − ŵ_k) − (1 − γ) ŵ_k) s_k

    It is the score function with the baseline c_k = log (1/K) Σ_{j≠k} w_j, which still divides by
    K, plus γ times the wake-φ update. Its mean is that of IWAE + γ · RWS: unbiased for γ = 0.

    Attributes:
        gamma: γ, in [0, 1]: the published OVIS~ with 0 for a large effective sample size and 1 for
            a small one.

    Raises:
        ConfigError: `gamma` lies outside [0, 1].

    References:
        Liévin, Dittadi, Christensen & Winther 2020, Optimal Variance Control of the Score-Function
            Gradient Estimator for Importance-Weighted Bounds.

    >>> OVIS(1.0).coefficients(IWAE(2), torch.zeros(2, 1)).learning.flatten()
    tensor([0.6931, 0.6931])
    """

    detached: ClassVar[bool] = True
    gamma: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ConfigError(f"gamma of OVIS must be in [0, 1], not {self.gamma}")

    @property
    def inclusive(self) -> bool:
        """Whether γ > 0: a part of φ then descends KL(p ‖ q)."""
        return self.gamma > 0

    def check(self, bound: BoundFunction) -> None:
        """Refuse every bound but IWAE, and K = 1."""
        _check_bound("OVIS", bound)

    def unbiased(self, bound: BoundFunction) -> bool:
        """Return whether γ is 0."""
        return self.gamma == 0

    def same_mean(self, bound: BoundFunction) -> tuple[tuple[float, Gradient], ...]:
        """Return `Pathwise` + γ `WakeSleep`."""
        return ((1.0, Pathwise()), *(((self.gamma, WakeSleep()),) if self.gamma else ()))

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        """Return ŵ_k for θ, −log(1 − ŵ_k) as the signal, and −(1 − γ) ŵ_k for s_k."""
        weight = bound.slope(log_weight)
        learning = -log_rest(log_weight)
        return Coefficients(weight, score=(self.gamma - 1) * weight, learning=learning)


@GRADIENTS.register("ovis-mc")
@dataclass(frozen=True)
class OVISMonteCarlo(ProgramGradient):
    """OVIS with a baseline estimated from S auxiliary draws z⁽¹⁾, …, z⁽ˢ⁾ of each datum.

        φ: Σ_k (d_k − c_k) s_k,   d_k = log (1/K) Σ_j w_j − ŵ_k
        c_k = (1/S) Σ_s d_k with z⁽ˢ⁾ in place of z_k

    Unbiased, as c_k does not depend on z_k. The value is the bound of the K draws; an estimate
    takes K + S decoder evaluations. All k share the auxiliary draws.

    Attributes:
        auxiliary: S, at least 1.

    Raises:
        ConfigError: `auxiliary` is not a whole number of at least 1.

    References:
        Liévin, Dittadi, Christensen & Winther 2020, Optimal Variance Control of the Score-Function
            Gradient Estimator for Importance-Weighted Bounds.

    >>> OVISMonteCarlo(auxiliary=4).evaluations(IWAE(8))
    12.0
    """

    detached: ClassVar[bool] = True
    auxiliary: int = 8

    def __post_init__(self) -> None:
        count = self.auxiliary
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(
                f"auxiliary of OVIS must be a whole number of at least 1, not {count!r}"
            )

    def check(self, bound: BoundFunction) -> None:
        """Refuse every bound but IWAE, and K = 1."""
        _check_bound("OVIS", bound)

    def evaluations(self, bound: BoundFunction) -> float:
        """Return K + S."""
        return float(bound.num_particles + self.auxiliary)

    def parts(self, log_weight: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two parts of d_k − c_k, of which the second enters with a minus.

        The first is the learning signal of the draws. The second multiplies the derivative of
        log w_k, in which log q may have an exponent (a scale or a mask of a single site).

        Args:
            log_weight: Log-weights of the K draws in nats, shape `[K, N]`.
            others: Log-weights of the auxiliary draws in nats, shape `[S, N]`.

        Returns:
            log Σ_j w_j and ŵ_k, each minus its mean with z⁽ˢ⁾ in place of z_k, shape `[K, N]`.

        >>> first, second = OVISMonteCarlo(1).parts(torch.zeros(2, 1), torch.zeros(1, 1))
        >>> first.flatten(), second.flatten()
        (tensor([0., 0.]), tensor([0., 0.]))
        """
        total = torch.logaddexp(log_sum_of_others(log_weight)[:, None], others)
        learning = log_weight.logsumexp(0) - total.mean(1)
        return learning, log_weight.softmax(0) - (others - total).exp().mean(1)

    def estimate_on(
        self,
        objective: Objective,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Bound:
        """Run K + S draws, the last S of which make the baseline alone."""
        bound = objective.bound_function
        count = bound.num_particles
        traces = objective.run(
            model, guide, args, kwargs, count + self.auxiliary, handler=Detached()
        )
        objective.check(traces)
        weights = reduce_log_weights(traces)
        log_weight, others = weights.log_weight.detach().split([count, self.auxiliary])
        learning, whole = self.parts(log_weight, others)
        of_each = (bound.slope(log_weight), whole, learning)
        theta, whole, learning = (torch.cat([c, torch.zeros_like(others)]) for c in of_each)
        coefficients = Coefficients(theta, whole=whole, learning=learning)
        value = weights.total(bound.value(log_weight)).detach()
        return Bound(value, along_scores(objective, traces, weights, coefficients))


def log_rest(log_weight: Tensor) -> Tensor:
    """Return log(1 − ŵ_k), exact where ŵ_k is close to 0 or to 1.

    Args:
        log_weight: Log-weights in nats, shape `[K, N]`.

    Returns:
        The logarithms, shape `[K, N]`.

    >>> log_rest(torch.tensor([[0.0], [-200.0]])).flatten()
    tensor([-200., -0.])
    """
    weight = log_weight.softmax(0)
    best = log_weight.argmax(0, keepdim=True)
    is_best = torch.zeros_like(weight, dtype=torch.bool).scatter(0, best, True)
    relative = log_weight - log_weight.gather(0, best)
    rest = relative.masked_fill(is_best, -math.inf).logsumexp(0, keepdim=True)
    of_best = rest - torch.logaddexp(rest, torch.zeros_like(rest))
    # The weights of all others are at most a half.
    return torch.where(is_best, of_best, torch.log1p(-weight.masked_fill(is_best, 0.0)))


def _check_bound(what: str, bound: BoundFunction) -> None:
    if not isinstance(bound, IWAE):
        raise ConfigError(
            f"{what} is a gradient of IWAE; it is not defined for {type(bound).__name__}"
        )
    if bound.num_particles < 2:
        raise ConfigError(f"{what} needs num_particles of at least 2, not {bound.num_particles}")


@OBJECTIVES.register("ovis")
def ovis(num_particles: int = 8, gamma: float = 0.0) -> Objective:
    """OVIS: IWAE by the score function with the asymptotically optimal baseline.

    It takes discrete latent variables as well.

    Args:
        num_particles: K, the number of draws of z per datum, at least 2.
        gamma: γ in [0, 1]; above 0 the gradient is that of IWAE + γ · RWS.

    Returns:
        IWAE × OVIS.

    Raises:
        ConfigError: `gamma` lies outside [0, 1], or `num_particles` is below 2.

    References:
        Liévin et al. 2020, Optimal Variance Control of the Score-Function Gradient Estimator for
            Importance-Weighted Bounds.
    """
    return Objective(IWAE(num_particles), OVIS(gamma))


@OBJECTIVES.register("ovis-mc")
def ovis_mc(num_particles: int = 8, auxiliary: int = 8) -> Objective:
    """OVIS whose baseline is estimated from auxiliary draws.

    It takes discrete latent variables as well.

    Args:
        num_particles: K, the number of draws of z per datum, at least 2.
        auxiliary: S, the number of auxiliary draws per datum.

    Returns:
        IWAE × OVISMonteCarlo.

    Raises:
        ConfigError: `auxiliary` is not a whole number of at least 1, or `num_particles` is below 2.

    References:
        Liévin et al. 2020, Optimal Variance Control of the Score-Function Gradient Estimator for
            Importance-Weighted Bounds.
    """
    return Objective(IWAE(num_particles), OVISMonteCarlo(auxiliary))
