"""Gradients: how φ is moved for a bound F. θ always follows Σ_k c_k ∂_θ log p(x, z_k), c_k = ∂F/∂log w_k.

With P_k the path derivative of log w_k through z_k, the parameters of q stopped, and s_k = ∂_φ log q(z_k) with z_k stopped,
a gradient is a choice of coefficients (detached) of P_k and s_k. Factors, observed sites and the log-density of Deltas in the
guide are no densities of draws: every gradient differentiates them whole, with c_k.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pyroae.errors import ConfigError
from pyroae.objectives.bounds import ELBO, IWAE, TVO, BoundFunction
from pyroae.registry import Registry

GRADIENTS: "Registry[Gradient]" = Registry("gradient")


@dataclass(frozen=True)
class Coefficients:
    """Coefficients `[K, N]` for gradient ascent.

    theta: of ∂_θ log p, and of the guide's terms that are no density of a draw. path: of P_k. whole: of P_k − s_k. score: of
    s_k, for every draw. At most one of these three is given. learning: the learning signal, which multiplies the scores of
    draws that carry no path gradient, and in `Detached` gradients those of all draws.
    """

    theta: Tensor
    path: Tensor | None = None
    whole: Tensor | None = None
    score: Tensor | None = None
    learning: Tensor | None = None


class Gradient(ABC):
    """An estimator of a bound's gradient.

    reparameterized: whether every draw has to carry a path gradient. detached: whether the draws are stopped, so that φ
    follows scores alone; `Score` does so only where every draw carries a path gradient, or none does. inclusive: whether φ
    follows KL(p ‖ q), which leaves no place for terms of the guide that depend on φ and are no density of a draw.
    takes_moving_support: whether it is right where the ends of a draw's support depend on φ, as those of Uniform(0, φ), so that
    the score of q does not have the mean 0.
    takes_globals: whether it is defined for the bound of each datum given one draw of the latent sites outside the data plate.
    """

    reparameterized: ClassVar[bool] = False
    detached: ClassVar[bool] = False
    takes_moving_support: ClassVar[bool] = False
    takes_globals: ClassVar[bool] = False

    @property
    def inclusive(self) -> bool:
        return False

    @abstractmethod
    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        """From the bound and detached log-weights `[K, N]`."""

    def check(self, bound: BoundFunction) -> None:
        """Raises ConfigError where the pair with `bound` is not defined; every bound is accepted by default."""
        return

    def unbiased(self, bound: BoundFunction) -> bool:
        """Whether the mean of the estimator is the gradient of the bound's mean."""
        return True

    def same_mean(self, bound: BoundFunction) -> "tuple[tuple[float, Gradient], ...]":
        """Weights and gradients whose weighted sum has the same mean for φ; () where it has a mean of its own.

        Claimed here, it is checked by `pyroae.testing.check_objective`, on guides that are reparameterized.
        """
        return ((1.0, Pathwise()),) if self.unbiased(bound) else ()


@GRADIENTS.register("pathwise")
@dataclass(frozen=True)
class Pathwise(Gradient):
    """φ: Σ c_k (P_k − s_k), the derivative of the bound itself (Kingma & Welling 2014, Burda 2016).

    Draws without a path gradient add F s_k, the score function without a baseline; under the ELBO with the terms of log w in
    their own plates as the learning signal, as `pyro.infer.Trace_ELBO` does.
    """

    takes_moving_support: ClassVar[bool] = True
    takes_globals: ClassVar[bool] = True

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        slope = bound.slope(log_weight)
        return Coefficients(
            slope, whole=slope, learning=bound.value(log_weight).expand_as(log_weight)
        )


@GRADIENTS.register("sticking-the-landing")
@dataclass(frozen=True)
class StickingTheLanding(Gradient):
    """φ: Σ c_k P_k (Roeder 2017). Unbiased for the ELBO; biased for every other bound with K > 1 (Tucker 2019)."""

    reparameterized: ClassVar[bool] = True
    takes_globals: ClassVar[bool] = True

    def unbiased(self, bound: BoundFunction) -> bool:
        return isinstance(bound, ELBO) or bound.num_particles == 1

    def same_mean(self, bound: BoundFunction) -> tuple[tuple[float, Gradient], ...]:
        if isinstance(bound, IWAE) and bound.num_particles > 1:
            return ((1.0, Pathwise()), (1.0, WakeSleep()))
        return super().same_mean(bound)

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        slope = bound.slope(log_weight)
        return Coefficients(slope, path=slope)


@GRADIENTS.register("doubly-reparameterized")
@dataclass(frozen=True)
class DoublyReparameterized(Gradient):
    """φ: Σ (c_k − ∂c_k/∂log w_k) P_k, unbiased for every F; for IWAE it is DReG, Σ ŵ² P (Tucker 2019).

    alpha: a share of RWS-DReG, Σ (ŵ − ŵ²) P, mixed in: DReG(α) (Bauer & Mnih 2021).
    """

    reparameterized: ClassVar[bool] = True
    takes_globals: ClassVar[bool] = True
    alpha: float = 0.0

    @property
    def inclusive(self) -> bool:
        return self.alpha > 0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha of DReG(α) must be in [0, 1], not {self.alpha}")

    def check(self, bound: BoundFunction) -> None:
        if not bound.smooth:
            raise ConfigError(
                f"{bound} has slopes that jump, where the doubly reparameterized gradient is biased: use Pathwise"
            )

    def unbiased(self, bound: BoundFunction) -> bool:
        return self.alpha == 0

    def same_mean(self, bound: BoundFunction) -> tuple[tuple[float, Gradient], ...]:
        if self.alpha and isinstance(bound, IWAE):
            return ((1 - self.alpha, Pathwise()), (self.alpha, WakeSleep()))
        return super().same_mean(bound)

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        slope = bound.slope(log_weight)
        path = slope - bound.curvature(log_weight)
        if self.alpha:
            weight = log_weight.softmax(0)
            path = (1 - self.alpha) * path + self.alpha * (weight - weight**2)
        return Coefficients(slope, path=path)


@GRADIENTS.register("score")
@dataclass(frozen=True)
class Score(Gradient):
    """φ: Σ (F − F₋ₖ) s_k − Σ c_k s_k, for any guide, discrete ones too.

    Where some draws carry a path gradient and others do not, the former take it, Σ c_k P_k, and the latter alone the learning
    signal: their scores are differentiated through the draws that they depend on. A guide whose draws all carry a path
    gradient is followed by scores alone; with `Pathwise` it is followed by paths. Draws outside the data plate take the path.

    baseline: F₋ₖ, `none`, `leave-one-out` (F of the others), or F with log w_k replaced by the `arithmetic` (log of the mean
    weight) or `geometric` (mean log-weight) mean of the others: for IWAE, VIMCO (Mnih & Rezende 2016).
    """

    detached: ClassVar[bool] = True
    takes_globals: ClassVar[bool] = True
    baseline: Literal["none", "leave-one-out", "arithmetic", "geometric"] = "leave-one-out"

    def __post_init__(self) -> None:
        if self.baseline not in ("none", "leave-one-out", "arithmetic", "geometric"):
            raise ConfigError(
                f"unknown baseline '{self.baseline}': none, leave-one-out, arithmetic or geometric"
            )

    def check(self, bound: BoundFunction) -> None:
        needed = (
            1
            if self.baseline == "none"
            else bound.least_particles + (self.baseline == "leave-one-out")
        )
        if bound.num_particles < max(needed, 1 + (self.baseline != "none")):
            raise ConfigError(
                f"the baseline '{self.baseline}' of {type(bound).__name__} needs num_particles of at least "
                f"{max(needed, 2)}, not {bound.num_particles}"
            )

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        slope = bound.slope(log_weight)
        value = bound.value(log_weight)
        learning = value.expand_as(log_weight)
        if self.baseline != "none":
            learning = learning - bound.without(log_weight, self._fill(log_weight))
        return Coefficients(slope, whole=slope, learning=learning)

    def _fill(self, log_weight: Tensor) -> Tensor | None:
        others = len(log_weight) - 1
        if self.baseline == "geometric":
            return (log_weight.sum(0) - log_weight) / others
        if self.baseline == "arithmetic":
            return IWAE(len(log_weight)).without(log_weight, None)
        return None


@GRADIENTS.register("wake-sleep")
@dataclass(frozen=True)
class WakeSleep(Gradient):
    """φ: Σ ŵ_k s_k, the wake-φ update of reweighted wake-sleep: descends KL(p ‖ q), not F (Bornschein & Bengio 2015)."""

    detached: ClassVar[bool] = True

    @property
    def inclusive(self) -> bool:
        return True

    def check(self, bound: BoundFunction) -> None:
        _needs_iwae("reweighted wake-sleep", bound)

    def unbiased(self, bound: BoundFunction) -> bool:
        return False

    def same_mean(self, bound: BoundFunction) -> tuple[tuple[float, Gradient], ...]:
        return ((1.0, DoublyReparameterizedWakeSleep()),)

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        weight = bound.slope(log_weight)
        return Coefficients(weight, score=weight)


@GRADIENTS.register("wake-sleep-doubly-reparameterized")
@dataclass(frozen=True)
class DoublyReparameterizedWakeSleep(Gradient):
    """φ: Σ (ŵ_k − ŵ_k²) P_k, the mean of the wake-φ update with less variance (Tucker 2019)."""

    reparameterized: ClassVar[bool] = True

    @property
    def inclusive(self) -> bool:
        return True

    def check(self, bound: BoundFunction) -> None:
        _needs_iwae("reweighted wake-sleep", bound)

    def unbiased(self, bound: BoundFunction) -> bool:
        return False

    def same_mean(self, bound: BoundFunction) -> tuple[tuple[float, Gradient], ...]:
        return ((1.0, WakeSleep()),)

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        weight = bound.slope(log_weight)
        return Coefficients(weight, path=weight - weight**2)


@GRADIENTS.register("covariance")
@dataclass(frozen=True)
class Covariance(Gradient):
    """TVO's own: ∂ E_π_β[f] = E_π_β[∂f] + Cov_π_β[∂ log π̃_β, f], f = log w, π̃_β = q^{1−β} p^β (Masrani 2019).

    The covariances carry the factor K/(K−1). For any guide, discrete ones too: every draw is followed by its score.
    """

    detached: ClassVar[bool] = True

    def check(self, bound: BoundFunction) -> None:
        if not isinstance(bound, TVO):
            raise ConfigError(
                f"the covariance gradient is that of TVO, not of {type(bound).__name__}"
            )

    def unbiased(self, bound: BoundFunction) -> bool:
        return False

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        assert isinstance(bound, TVO)
        betas, unbiased = bound.betas(), len(log_weight) / (len(log_weight) - 1)
        theta, learning = torch.zeros_like(log_weight), torch.zeros_like(log_weight)
        for beta, after in pairwise(betas):
            weight = (after - beta) * (beta * log_weight).softmax(0)
            mean = (weight * log_weight).sum(0) / (after - beta)
            spread = weight * (log_weight - mean) * unbiased
            theta = theta + weight + beta * spread
            learning = learning + spread
        return Coefficients(theta, whole=theta, learning=learning)


@GRADIENTS.register("two-bounds")
@dataclass(frozen=True)
class TwoBounds(Gradient):
    """θ follows the IWAE bound over all K particles, φ the bound itself, pathwise: with MIWAE, PIWAE (Rainforth 2018)."""

    takes_moving_support: ClassVar[bool] = True

    def unbiased(self, bound: BoundFunction) -> bool:
        return False

    def same_mean(self, bound: BoundFunction) -> tuple[tuple[float, Gradient], ...]:
        return ((1.0, Pathwise()),)

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        learning = bound.value(log_weight).expand_as(log_weight)
        return Coefficients(log_weight.softmax(0), whole=bound.slope(log_weight), learning=learning)


def _needs_iwae(what: str, bound: BoundFunction) -> None:
    if not isinstance(bound, IWAE | ELBO) or (isinstance(bound, ELBO) and bound.num_particles > 1):
        raise ConfigError(
            f"{what} takes its θ-gradient from IWAE; it is not defined for {type(bound).__name__}"
        )
