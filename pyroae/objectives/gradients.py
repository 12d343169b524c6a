"""Gradients: estimators of the φ-gradient of a bound F, given by coefficients of two derivatives.

θ always follows Σ_k c_k ∂_θ log p(x, z_k), with c_k = ∂F/∂log w_k detached. Let P_k be the path
derivative of log w_k through z_k with the parameters of q stopped, and s_k = ∂_φ log q(z_k) with
z_k stopped. A gradient is a choice of detached coefficients of P_k and s_k. Factors, observed sites
and the log-density of Deltas in the guide are not densities of draws: every gradient differentiates
them whole, with c_k.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pyroae.errors import ConfigError
from pyroae.objectives.bounds import ELBO, IWAE, TVO, BoundFunction
from pyroae.programs.paired_traces import Traces
from pyroae.programs.sites import KINDS
from pyroae.registry import Registry
from pyroae.runtime.short_repr import Shown

GRADIENTS: "Registry[Gradient]" = Registry("gradient")
"""The table of gradients by name."""


@dataclass(frozen=True, repr=False)
class Coefficients(Shown):
    """Coefficients for gradient ascent, each of shape `[K, N]`.

    At most one of `path`, `whole` and `score` is given.

    Attributes:
        theta: Of ∂_θ log p, and of the guide's terms that are not densities of draws.
        path: Of P_k.
        whole: Of P_k − s_k.
        score: Of s_k, for every draw.
        learning: The learning signal. It multiplies the scores of draws that carry no path
            gradient, and in `detached` gradients the scores of all draws.
    """

    theta: Tensor
    path: Tensor | None = None
    whole: Tensor | None = None
    score: Tensor | None = None
    learning: Tensor | None = None


class Gradient(ABC):
    """An estimator of a bound's gradient.

    To add one, write a frozen dataclass with `coefficients` and register it with
    `@GRADIENTS.register("name")`. The claims `unbiased` and `same_mean` are checked by
    `pyroae.testing.check_objective`.

    Attributes:
        reparameterized: Whether every draw has to carry a path gradient.
        detached: Whether the draws are stopped, so that φ follows scores alone. `Score` stops them
            only where every draw carries a path gradient, or none does.
        takes_moving_support: Whether the estimator is valid where the ends of a draw's support
            depend on φ, as those of Uniform(0, φ), so that the score of q does not have mean 0.
        takes_globals: Whether the estimator is defined for the bound of each datum given one draw
            of the latent sites outside the data plate.
        independent: Whether the estimator assumes that the K draws of a datum are independent and
            identically distributed; those that do are refused where draws are stratified or
            coupled.
        coupled: Whether the estimator couples the draws of a datum, so that their order matters.
        learns: Whether the estimator has parameters of its own, from `make_controls`.
        takes_dependent: Whether the logits of a discrete site may depend on other draws.
        exact_at_posterior: Whether the mean gradient is that of log p(x) at the exact posterior;
            gradients of relaxed draws are biased there too.
    """

    reparameterized: ClassVar[bool] = False
    detached: ClassVar[bool] = False
    takes_moving_support: ClassVar[bool] = False
    takes_globals: ClassVar[bool] = False
    independent: ClassVar[bool] = True
    coupled: ClassVar[bool] = False
    learns: ClassVar[bool] = False
    takes_dependent: ClassVar[bool] = True
    exact_at_posterior: ClassVar[bool] = True

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of latent sites that are taken: continuous, binary, categorical."""
        return frozenset({"continuous"}) if self.reparameterized else KINDS

    def make_controls(self, traces: Traces, args: tuple[Any, ...]) -> nn.Module:
        """Make what the estimator learns, such as a baseline, where `learns` is True.

        Args:
            traces: One run of guide and model.
            args: Positional arguments of both programs.

        Returns:
            A module on the device and of the precision of the arguments.
        """
        raise NotImplementedError

    def evaluations(self, bound: BoundFunction) -> float:
        """Return the mean number of decoder evaluations per datum of one estimate.

        Args:
            bound: The bound F.

        Returns:
            By default the mean number of particles of the bound.
        """
        return bound.evaluations

    @property
    def inclusive(self) -> bool:
        """Whether φ descends KL(p ‖ q) rather than ascends F.

        Such a gradient is not defined for terms of the guide that depend on φ and are not densities
        of draws.
        """
        return False

    @abstractmethod
    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        """Return the coefficients of the estimator.

        Args:
            bound: The bound F.
            log_weight: Detached log-weights in nats, shape `[K, N]`.

        Returns:
            The coefficients, each of shape `[K, N]`.
        """

    def check(self, bound: BoundFunction) -> None:
        """Refuse a bound with which the gradient is not defined; by default every bound is taken.

        Args:
            bound: The bound F.

        Raises:
            ConfigError: The pair is not defined.

        >>> Covariance().check(IWAE(4))
        Traceback (most recent call last):
        pyroae.errors.ConfigError: the covariance gradient is defined for TVO, not for IWAE
        """
        return

    def unbiased(self, bound: BoundFunction) -> bool:
        """Return whether the estimator's mean is the gradient of the bound's mean.

        Args:
            bound: The bound F.

        Returns:
            True by default.

        >>> TwoBounds().unbiased(IWAE(4)), DoublyReparameterized().unbiased(IWAE(4))
        (False, True)
        """
        return True

    def same_mean(self, bound: BoundFunction) -> "tuple[tuple[float, Gradient], ...]":
        """Return gradients whose weighted sum has the same mean for φ.

        `pyroae.testing.check_objective` checks this claim on reparameterized guides.

        Args:
            bound: The bound F.

        Returns:
            Pairs of a weight and a gradient; by default `Pathwise` where the estimator is unbiased,
                and no pair where no such sum is known.
        """
        return ((1.0, Pathwise()),) if self.unbiased(bound) else ()


@GRADIENTS.register("pathwise")
@dataclass(frozen=True)
class Pathwise(Gradient):
    """The derivative of the bound itself.

        φ: Σ_k c_k (P_k − s_k)

    Draws without a path gradient add F s_k, the score function without a baseline. Under the ELBO
    their learning signal is the sum of the terms of log w in their own plates, as in
    `pyro.infer.Trace_ELBO`.

    References:
        Kingma & Welling 2014, Auto-Encoding Variational Bayes.
        Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders.

    >>> Pathwise().coefficients(ELBO(2), torch.zeros(2, 1)).whole
    tensor([[0.5000],
            [0.5000]])
    """

    takes_moving_support: ClassVar[bool] = True
    takes_globals: ClassVar[bool] = True
    independent: ClassVar[bool] = False

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        """Return c_k for θ and for P_k − s_k, with F as the learning signal."""
        slope = bound.slope(log_weight)
        return Coefficients(
            slope, whole=slope, learning=bound.value(log_weight).expand_as(log_weight)
        )


@GRADIENTS.register("sticking-the-landing")
@dataclass(frozen=True)
class StickingTheLanding(Gradient):
    """The path derivative without the score of q.

        φ: Σ_k c_k P_k

    Unbiased for the ELBO, and biased for every other bound with K > 1.

    References:
        Roeder, Wu & Duvenaud 2017, Sticking the Landing: Simple, Lower-Variance Gradient Estimators
            for Variational Inference.
        Tucker et al. 2019, Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives
            (the bias).

    >>> StickingTheLanding().unbiased(ELBO(8)), StickingTheLanding().unbiased(IWAE(8))
    (True, False)
    """

    reparameterized: ClassVar[bool] = True
    takes_globals: ClassVar[bool] = True
    independent: ClassVar[bool] = False

    def unbiased(self, bound: BoundFunction) -> bool:
        """Return whether the bound's mean is the ELBO for every K, or K is 1."""
        return bound.trend == 0 or bound.num_particles == 1

    def same_mean(self, bound: BoundFunction) -> tuple[tuple[float, Gradient], ...]:
        """Return `Pathwise` plus `WakeSleep` for IWAE with K > 1, else the default."""
        if isinstance(bound, IWAE) and bound.num_particles > 1:
            return ((1.0, Pathwise()), (1.0, WakeSleep()))
        return super().same_mean(bound)

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        """Return c_k for θ and for P_k."""
        slope = bound.slope(log_weight)
        return Coefficients(slope, path=slope)


@GRADIENTS.register("doubly-reparameterized")
@dataclass(frozen=True)
class DoublyReparameterized(Gradient):
    """The doubly reparameterized gradient, unbiased for every F with continuous slopes.

        φ: Σ_k (c_k − ∂c_k/∂log w_k) P_k

    For IWAE it is DReG, Σ ŵ_k² P_k. DReG(α) mixes in a share α of RWS-DReG, Σ (ŵ_k − ŵ_k²) P_k, and
    is biased.

    Attributes:
        alpha: The share α of RWS-DReG, in [0, 1].

    Raises:
        ConfigError: `alpha` lies outside [0, 1].

    References:
        Tucker et al. 2019, Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives.
        Bauer & Mnih 2021, Generalized Doubly Reparameterized Gradient Estimators (DReG(α)).

    >>> DoublyReparameterized().coefficients(IWAE(2), torch.zeros(2, 1)).path
    tensor([[0.2500],
            [0.2500]])
    """

    reparameterized: ClassVar[bool] = True
    takes_globals: ClassVar[bool] = True
    alpha: float = 0.0

    @property
    def inclusive(self) -> bool:
        """Whether α > 0."""
        return self.alpha > 0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha of DReG(α) must be in [0, 1], not {self.alpha}")

    def check(self, bound: BoundFunction) -> None:
        """Refuse bounds with discontinuous slopes."""
        if not bound.smooth:
            raise ConfigError(
                f"{bound} has discontinuous slopes, for which the doubly reparameterized gradient "
                "is biased: use Pathwise"
            )

    def unbiased(self, bound: BoundFunction) -> bool:
        """Return whether α is 0."""
        return self.alpha == 0

    def same_mean(self, bound: BoundFunction) -> tuple[tuple[float, Gradient], ...]:
        """Return (1 − α) `Pathwise` + α `WakeSleep` for IWAE with α > 0, else the default."""
        if self.alpha and isinstance(bound, IWAE):
            return ((1 - self.alpha, Pathwise()), (self.alpha, WakeSleep()))
        return super().same_mean(bound)

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        """Return c_k for θ, and (1 − α) (c_k − ∂c_k) + α (ŵ_k − ŵ_k²) for P_k."""
        slope = bound.slope(log_weight)
        path = slope - bound.curvature(log_weight)
        if self.alpha:
            weight = log_weight.softmax(0)
            path = (1 - self.alpha) * path + self.alpha * (weight - weight**2)
        return Coefficients(slope, path=path)


@GRADIENTS.register("score")
@dataclass(frozen=True)
class Score(Gradient):
    """The score-function gradient with a baseline, for any guide, discrete ones included.

        φ: Σ_k (F − F₋ₖ) s_k − Σ_k c_k s_k

    The last sum is left out for bounds of constant slopes, such as the ELBO, where its mean is 0:
    the estimator with the baseline `leave-one-out` is then VarGrad.

    Where some draws carry a path gradient and others do not, the former follow their paths,
    Σ c_k P_k, and only the latter take the learning signal; their scores are differentiated through
    the draws that they depend on. A guide whose draws all carry a path gradient is followed by
    scores alone; use `Pathwise` to follow the paths. Draws outside the data plate follow their
    paths.

    Attributes:
        baseline: F₋ₖ: `none`; `leave-one-out`, F of the other particles; or F with log w_k replaced
            by the `arithmetic` mean (log of the mean weight) or the `geometric` mean (mean
            log-weight) of the others. For IWAE the last two are VIMCO.

    Raises:
        ConfigError: `baseline` is none of these names.

    References:
        Mnih & Rezende 2016, Variational Inference for Monte Carlo Objectives (VIMCO).
        Richter et al. 2020, VarGrad: A Low-Variance Gradient Estimator for Variational Inference.

    >>> Score("leave-one-out").coefficients(ELBO(2), torch.tensor([[0.0], [2.0]])).learning
    tensor([[-1.],
            [ 1.]])
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
        """Refuse a K too small for the baseline."""
        needed = (
            1
            if self.baseline == "none"
            else bound.least_particles + (self.baseline == "leave-one-out")
        )
        if bound.num_particles < max(needed, 1 + (self.baseline != "none")):
            raise ConfigError(
                f"the baseline '{self.baseline}' of {type(bound).__name__} needs num_particles of "
                f"at least {max(needed, 2)}, not {bound.num_particles}"
            )

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        """Return c_k for θ and, if not constant, for P_k − s_k; F − F₋ₖ is the signal."""
        slope = bound.slope(log_weight)
        value = bound.value(log_weight)
        learning = value.expand_as(log_weight)
        if self.baseline != "none":
            learning = learning - bound.without(log_weight, self._fill(log_weight))
        whole = None if bound.constant_slopes else slope
        return Coefficients(slope, whole=whole, learning=learning)

    def _fill(self, log_weight: Tensor) -> Tensor | None:
        """The log-weights that replace log w_k in F₋ₖ, `[K, N]`; None to leave particle k out."""
        others = len(log_weight) - 1
        if self.baseline == "geometric":
            return (log_weight.sum(0) - log_weight) / others
        if self.baseline == "arithmetic":
            return IWAE(len(log_weight)).without(log_weight, None)
        return None


@GRADIENTS.register("wake-sleep")
@dataclass(frozen=True)
class WakeSleep(Gradient):
    """The wake-φ update of reweighted wake-sleep: descends KL(p ‖ q) rather than ascends F.

        φ: Σ_k ŵ_k s_k

    It is defined with the IWAE bound, which θ follows.

    References:
        Bornschein & Bengio 2015, Reweighted Wake-Sleep.

    >>> WakeSleep().coefficients(IWAE(2), torch.zeros(2, 1)).score
    tensor([[0.5000],
            [0.5000]])
    """

    detached: ClassVar[bool] = True
    inclusive = True

    def check(self, bound: BoundFunction) -> None:
        """Refuse every bound but IWAE, and the ELBO with K = 1, which is the same."""
        _needs_iwae("reweighted wake-sleep", bound)

    def unbiased(self, bound: BoundFunction) -> bool:
        """Return False: φ does not follow F."""
        return False

    def same_mean(self, bound: BoundFunction) -> tuple[tuple[float, Gradient], ...]:
        """Return `DoublyReparameterizedWakeSleep`."""
        return ((1.0, DoublyReparameterizedWakeSleep()),)

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        """Return ŵ_k for θ and for s_k."""
        weight = bound.slope(log_weight)
        return Coefficients(weight, score=weight)


@GRADIENTS.register("wake-sleep-doubly-reparameterized")
@dataclass(frozen=True)
class DoublyReparameterizedWakeSleep(Gradient):
    """The doubly reparameterized wake-φ update: the mean of `WakeSleep` with less variance.

        φ: Σ_k (ŵ_k − ŵ_k²) P_k

    References:
        Tucker et al. 2019, Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives.

    >>> DoublyReparameterizedWakeSleep().coefficients(IWAE(2), torch.zeros(2, 1)).path
    tensor([[0.2500],
            [0.2500]])
    """

    reparameterized: ClassVar[bool] = True
    inclusive = True

    def check(self, bound: BoundFunction) -> None:
        """Refuse every bound but IWAE, and the ELBO with K = 1, which is the same."""
        _needs_iwae("reweighted wake-sleep", bound)

    def unbiased(self, bound: BoundFunction) -> bool:
        """Return False: φ does not follow F."""
        return False

    def same_mean(self, bound: BoundFunction) -> tuple[tuple[float, Gradient], ...]:
        """Return `WakeSleep`."""
        return ((1.0, WakeSleep()),)

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        """Return ŵ_k for θ, and ŵ_k − ŵ_k² for P_k."""
        weight = bound.slope(log_weight)
        return Coefficients(weight, path=weight - weight**2)


@GRADIENTS.register("covariance")
@dataclass(frozen=True)
class Covariance(Gradient):
    """The covariance gradient of the thermodynamic variational objective.

        ∂ E_π_β[f] = E_π_β[∂f] + Cov_π_β[∂ log π̃_β, f],   f = log w,   π̃_β = q^{1−β} p^β

    The covariances carry the factor K/(K−1). It takes any guide, discrete ones included, and
    follows every draw by its score.

    References:
        Masrani, Le & Wood 2019, The Thermodynamic Variational Objective.

    >>> Covariance().coefficients(TVO(2), torch.zeros(2, 1)).theta
    tensor([[0.5000],
            [0.5000]])
    """

    detached: ClassVar[bool] = True

    def check(self, bound: BoundFunction) -> None:
        """Refuse every bound but TVO."""
        if not isinstance(bound, TVO):
            raise ConfigError(
                f"the covariance gradient is defined for TVO, not for {type(bound).__name__}"
            )

    def unbiased(self, bound: BoundFunction) -> bool:
        """Return False: the estimator is consistent in K, not unbiased."""
        return False

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        """Return the sums over the schedule of the weights and of their covariances with log w."""
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
    """One bound for each set of parameters: θ follows IWAE over all K particles, φ the bound F.

        θ: Σ_k ŵ_k ∂_θ log p(x, z_k),   φ: Σ_k c_k (P_k − s_k)

    With MIWAE as the bound it is PIWAE.

    References:
        Rainforth et al. 2018, Tighter Variational Bounds are Not Necessarily Better.

    >>> import math
    >>> TwoBounds().coefficients(ELBO(2), torch.tensor([[0.0], [math.log(3)]])).theta.flatten()
    tensor([0.2500, 0.7500])
    """

    takes_moving_support: ClassVar[bool] = True

    def check(self, bound: BoundFunction) -> None:
        """Refuse bounds of a random K: θ would follow IWAE of that K, and φ nothing in the mean."""
        if bound.is_random:
            raise ConfigError(
                f"{type(bound).__name__} has a random number of particles, of which IWAE is no "
                "unbiased θ-gradient: use BaseBound, whose θ follows the bound"
            )

    def unbiased(self, bound: BoundFunction) -> bool:
        """Return False: θ does not follow F."""
        return False

    def same_mean(self, bound: BoundFunction) -> tuple[tuple[float, Gradient], ...]:
        """Return `Pathwise`, whose φ-gradient is the same."""
        return ((1.0, Pathwise()),)

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        """Return ŵ_k for θ and c_k for P_k − s_k, with F as the learning signal."""
        learning = bound.value(log_weight).expand_as(log_weight)
        return Coefficients(log_weight.softmax(0), whole=bound.slope(log_weight), learning=learning)


def _needs_iwae(what: str, bound: BoundFunction) -> None:
    if not isinstance(bound, IWAE | ELBO) or (isinstance(bound, ELBO) and bound.num_particles > 1):
        raise ConfigError(
            f"{what} takes its θ-gradient from IWAE; it is not defined for {type(bound).__name__}"
        )
