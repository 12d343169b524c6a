"""REBAR and RELAX: control variates of the relaxed bound, and of a network."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from pyroae.errors import ConfigError
from pyroae.objectives.base import OBJECTIVES
from pyroae.objectives.bounds import ELBO
from pyroae.objectives.control_variates import ControlVariateGradient
from pyroae.objectives.gradients import GRADIENTS
from pyroae.objectives.learned_controls import ControlVariate, NetworkOfDraws, network_input
from pyroae.objectives.pair import Objective
from pyroae.objectives.relaxations import check_temperature
from pyroae.objectives.relaxed_runs import discrete_sites
from pyroae.programs.paired_traces import Traces


@GRADIENTS.register("rebar")
@dataclass(frozen=True)
class Rebar(ControlVariateGradient):
    """The score function with the relaxed bound as its control variate.

        l: (f(b) − η f(σ_λ(z̃))) ∂_l log q(b) + η ∂_l f(σ_λ(z)) − η ∂_l f(σ_λ(z̃))

    f = log w without the derivative of log q; z = l + noise, b = H(z), z̃ ~ q(z | b). K particles
    give the mean of K such estimates. η and log λ descend Σ g², an unbiased estimate of the
    second moment of the gradient at the logits, per datum. Unbiased for every η and λ.

    Attributes:
        scale: η at the start.
        temperature: λ > 0 at the start.
        coupled_noise: Whether z̃ has the noise for which z̃ = z, so that one evaluation of the
            decoder serves both; otherwise noise of its own.

    Raises:
        ConfigError: The temperature is not positive.

    References:
        Tucker, Mnih, Maddison, Lawson & Sohl-Dickstein 2017, REBAR: Low-Variance, Unbiased Gradient
            Estimates for Discrete Latent Variable Models.

    >>> Rebar().evaluations(ELBO(4)), Rebar(coupled_noise=False).evaluations(ELBO(4))
    (8.0, 12.0)
    """

    scale: float = 1.0
    temperature: float = 0.5
    coupled_noise: bool = True

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    @property
    def name(self) -> str:
        """The name in the registry."""
        return "rebar"

    def make_controls(self, traces: Traces, args: tuple[Any, ...]) -> nn.Module:
        """Return η and log λ."""
        sites = discrete_sites(traces, self.name)
        like = next(iter(sites.values())).variables.logits
        return ControlVariate(self.scale, self.temperature, None, like)


@GRADIENTS.register("relax")
@dataclass(frozen=True)
class Relax(ControlVariateGradient):
    """The score function with a network, and the relaxed bound, as its control variate.

        l: (f(b) − c(z̃)) ∂_l log q(b) + ∂_l c(z) − ∂_l c(z̃),   c(z) = η f(σ_λ(z)) + r_ρ(z)

    Notation and claims are those of `Rebar`; ρ descends Σ g² as well.

    Attributes:
        scale: η at the start.
        temperature: λ > 0 at the start.
        hidden: The number of hidden units of r_ρ.
        relaxed: Whether f is in c; without it the model runs at hard draws only, which any model
            takes.
        coupled_noise: As of `Rebar`.

    Raises:
        ConfigError: The temperature is not positive, or `hidden` is below 1.

    References:
        Grathwohl, Choi, Wu, Roeder & Duvenaud 2018, Backpropagation through the Void: Optimizing
            Control Variates for Black-Box Gradient Estimation.

    >>> Relax().evaluations(ELBO(4)), Relax(relaxed=False).evaluations(ELBO(4))
    (8.0, 4.0)
    """

    scale: float = 1.0
    temperature: float = 0.5
    hidden: int = 32
    relaxed: bool = True
    coupled_noise: bool = True

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if not isinstance(self.hidden, int) or self.hidden < 1:
            raise ConfigError(f"hidden must be a whole number of at least 1, not {self.hidden!r}")

    @property
    def name(self) -> str:
        """The name in the registry."""
        return "relax"

    @property
    def _at_relaxed(self) -> bool:
        return self.relaxed

    def make_controls(self, traces: Traces, args: tuple[Any, ...]) -> nn.Module:
        """Return η, log λ and the network, whose unit is one nat per observed element."""
        sites = discrete_sites(traces, self.name)
        states = {name: site.variables.logits for name, site in sites.items()}
        inputs = network_input(traces, sites, states)
        observed = sum(s["value"].numel() for _, s in traces.sites(traces.model, observed=True))
        unit = max(1.0, observed / inputs[..., 0].numel())
        network = NetworkOfDraws(inputs.shape[-1], self.hidden, unit, inputs)
        scale = self.scale if self.relaxed else None
        return ControlVariate(scale, self.temperature, network, inputs)


@OBJECTIVES.register("rebar")
def rebar(
    num_particles: int = 1,
    scale: float = 1.0,
    temperature: float = 0.5,
    coupled_noise: bool = True,
) -> Objective:
    """REBAR: the ELBO by the score function, with the relaxed bound as control variate.

    Args:
        num_particles: K, the number of draws of z per datum.
        scale: η at the start.
        temperature: λ at the start.
        coupled_noise: Whether z̃ equals z, so that one relaxed evaluation serves both.

    Returns:
        ELBO × Rebar.

    Raises:
        ConfigError: The temperature is not positive.

    References:
        Tucker et al. 2017, REBAR: Low-Variance, Unbiased Gradient Estimates for Discrete Latent
            Variable Models.
    """
    return Objective(ELBO(num_particles), Rebar(scale, temperature, coupled_noise))


@OBJECTIVES.register("relax")
def relax(
    num_particles: int = 1,
    scale: float = 1.0,
    temperature: float = 0.5,
    hidden: int = 32,
    relaxed: bool = True,
    coupled_noise: bool = True,
) -> Objective:
    """RELAX: the ELBO by the score function, with a network in the control variate.

    Args:
        num_particles: K, the number of draws of z per datum.
        scale: η at the start.
        temperature: λ at the start.
        hidden: The number of hidden units of the network.
        relaxed: Whether the control variate has the relaxed bound in it.
        coupled_noise: Whether z̃ equals z, so that one relaxed evaluation serves both.

    Returns:
        ELBO × Relax.

    Raises:
        ConfigError: The temperature is not positive, or `hidden` is below 1.

    References:
        Grathwohl et al. 2018, Backpropagation through the Void: Optimizing Control Variates for
            Black-Box Gradient Estimation.
    """
    return Objective(ELBO(num_particles), Relax(scale, temperature, hidden, relaxed, coupled_noise))
