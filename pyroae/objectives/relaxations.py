"""Gradients through relaxed draws of discrete sites: Gumbel-softmax and straight-through."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pyroae.errors import ConfigError
from pyroae.objectives.base import OBJECTIVES, Bound
from pyroae.objectives.bounds import ELBO, IWAE, BoundFunction
from pyroae.objectives.gradients import GRADIENTS
from pyroae.objectives.pair import Objective
from pyroae.objectives.program_gradient import ProgramGradient
from pyroae.objectives.relaxed_runs import (
    RelaxedDraws,
    at_relaxed,
    discrete_sites,
    linear,
    relaxed_weights,
)
from pyroae.programs.discrete_variables import DiscreteSite, Variables
from pyroae.programs.sites import Program
from pyroae.weights import reduce_log_weights

DISCRETE = frozenset({"binary", "categorical"})
"""The kinds of sites that have a relaxation."""


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive.

    Args:
        temperature: τ.

    Raises:
        ConfigError: τ is not a positive number.
    """
    if not 0 < temperature < float("inf"):
        raise ConfigError(f"the temperature must be positive and finite, not {temperature!r}")


class Relaxation(ProgramGradient):
    """A biased gradient through relaxed draws, of the ELBO or IWAE."""

    independent: ClassVar[bool] = False
    exact_at_posterior: ClassVar[bool] = False

    @property
    def kinds(self) -> frozenset[str]:
        """Binary and one-hot sites."""
        return DISCRETE

    def check(self, bound: BoundFunction) -> None:
        """Refuse bounds other than the ELBO and IWAE."""
        if not isinstance(bound, ELBO | IWAE):
            raise ConfigError(
                f"{type(self).__name__} is defined for ELBO and IWAE, not for "
                f"{type(bound).__name__}"
            )

    def unbiased(self, bound: BoundFunction) -> bool:
        """Return False."""
        return False


@GRADIENTS.register("gumbel-softmax")
@dataclass(frozen=True)
class GumbelSoftmax(Relaxation):
    """The derivative of the bound with every discrete draw replaced by a relaxed one.

        surrogate = F(log p(x, ζ) − log q(ζ)),   ζ = σ_τ(l + noise),   value = F(log w(b))

    The noise is logistic for Bernoulli and Gumbel for one-hot sites; σ_τ is the sigmoid or softmax
    at temperature τ, and b the hard draw of the same noise, in a second run without gradient. So
    the value is that of the bound itself, and the gradient is biased for φ and θ.

    Attributes:
        temperature: τ > 0. A lower one has less bias and more variance.
        density: `linear` takes Σ_c ζ_c log p_c, the linear extension of the log-probabilities;
            `concrete` the densities of ζ at temperature τ under p and q, so that the surrogate is a
            bound of the relaxed model.

    Raises:
        ConfigError: The temperature is not positive, or the density has another name.

    References:
        Maddison, Mnih & Teh 2017, The Concrete Distribution (`concrete`).
        Jang, Gu & Poole 2017, Categorical Reparameterization with Gumbel-Softmax.

    >>> GumbelSoftmax(0.5).evaluations(ELBO(4))
    8.0
    """

    temperature: float = 0.5
    density: Literal["linear", "concrete"] = "linear"

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if self.density not in ("linear", "concrete"):
            raise ConfigError(f"density must be linear or concrete, not {self.density!r}")

    def evaluations(self, bound: BoundFunction) -> float:
        """Return 2K: the relaxed and the hard draws."""
        return 2.0 * bound.num_particles

    def estimate_on(
        self,
        objective: Objective,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Bound:
        """Return the bound of the hard draws, and that of the relaxed draws as the surrogate."""
        name, function = "gumbel-softmax", objective.bound_function
        draws = RelaxedDraws(self._soft)
        run = partial(objective.run, model, guide, args, kwargs)
        traces = at_relaxed(name, partial(run, handler=draws), run)
        sites = discrete_sites(traces, name)
        objective.check(traces)
        density = partial(self._density, draws) if self.density == "concrete" else linear
        weights = relaxed_weights(traces, sites, density, name)
        surrogate = weights.total(function.value(weights.log_weight))
        with torch.no_grad():
            again = RelaxedDraws(_hard, draws.noise)
            exact = reduce_log_weights(run(handler=again, drawn=traces.drawn))
            value = exact.total(function.value(exact.log_weight))
        return Bound(value, surrogate)

    def _soft(self, variables: Variables, z: Tensor) -> Tensor:
        return variables.soft(z, self.temperature)

    def _density(
        self, draws: RelaxedDraws, name: str, site: DiscreteSite, _states: Tensor
    ) -> Tensor:
        return site.variables.concrete(draws.z_of(name, site), self.temperature)


def _hard(variables: Variables, z: Tensor) -> Tensor:
    """The states H(z)."""
    return variables.hard(z)


@GRADIENTS.register("straight-through")
@dataclass(frozen=True)
class StraightThrough(Relaxation):
    """The derivative of the bound at hard draws, with the derivative of relaxed draws behind them.

        value = F(log w(b)),   b = H(z),   ∂b/∂φ := ∂ζ/∂φ,   ζ = σ_τ(z),   z = l + noise

    log p(z) and log q(z) are extended linearly between the states. Biased.

    Attributes:
        temperature: τ > 0, of the derivative.
        path: `gumbel` for ζ = σ_τ(z) (Jang 2017); `mean` for the probabilities ζ = σ_1(l), whatever
            τ is (Bengio 2013).

    Raises:
        ConfigError: The temperature is not positive, or the path has another name.

    References:
        Bengio, Léonard & Courville 2013, Estimating or Propagating Gradients Through Stochastic
            Neurons for Conditional Computation.
        Jang, Gu & Poole 2017, Categorical Reparameterization with Gumbel-Softmax.

    >>> StraightThrough().evaluations(ELBO(4)), StraightThrough().unbiased(ELBO(4))
    (4.0, False)
    """

    temperature: float = 1.0
    path: Literal["gumbel", "mean"] = "gumbel"

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if self.path not in ("gumbel", "mean"):
            raise ConfigError(f"path must be gumbel or mean, not {self.path!r}")

    def estimate_on(
        self,
        objective: Objective,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Bound:
        """Return the bound of the hard draws, with the derivative of relaxed ones."""
        name, draws = "straight-through", RelaxedDraws(self._states)
        traces = objective.run(model, guide, args, kwargs, handler=draws)
        sites = discrete_sites(traces, name)
        objective.check(traces)
        weights = relaxed_weights(traces, sites, linear, name)
        value = weights.total(objective.bound_function.value(weights.log_weight))
        return Bound(value, value)

    def _states(self, variables: Variables, z: Tensor) -> Tensor:
        mean = self.path == "mean"
        soft = variables.soft(variables.logits) if mean else variables.soft(z, self.temperature)
        return variables.hard(z).detach() + (soft - soft.detach())


@OBJECTIVES.register("gumbel-softmax")
def gumbel_softmax(
    num_particles: int = 1, temperature: float = 0.5, density: str = "linear"
) -> Objective:
    """The ELBO of discrete latents with the gradient of relaxed draws.

    Args:
        num_particles: K, the number of draws of z per datum.
        temperature: τ, of the relaxed draws.
        density: `linear` or `concrete`, of the relaxed draws.

    Returns:
        ELBO × GumbelSoftmax.

    Raises:
        ConfigError: The temperature is not positive, or the density has another name.

    References:
        Maddison, Mnih & Teh 2017, The Concrete Distribution.
        Jang, Gu & Poole 2017, Categorical Reparameterization with Gumbel-Softmax.
    """
    return Objective(ELBO(num_particles), GumbelSoftmax(temperature, density))  # type: ignore[arg-type]


@OBJECTIVES.register("straight-through")
def straight_through(
    num_particles: int = 1, temperature: float = 1.0, path: str = "gumbel"
) -> Objective:
    """The ELBO of discrete latents at hard draws, with the derivative of relaxed ones.

    Args:
        num_particles: K, the number of draws of z per datum.
        temperature: τ, of the derivative.
        path: `gumbel` or `mean`: the relaxed draws, or the probabilities.

    Returns:
        ELBO × StraightThrough.

    Raises:
        ConfigError: The temperature is not positive, or the path has another name.

    References:
        Bengio, Léonard & Courville 2013, Estimating or Propagating Gradients Through Stochastic
            Neurons for Conditional Computation.
        Jang, Gu & Poole 2017, Categorical Reparameterization with Gumbel-Softmax.
    """
    return Objective(ELBO(num_particles), StraightThrough(temperature, path))  # type: ignore[arg-type]
