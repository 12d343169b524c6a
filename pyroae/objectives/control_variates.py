"""The ELBO of discrete latents by the score function with a learned control variate.

f = log w. The derivative of −log q(b) in f with respect to φ has mean 0 at fixed b, and is left out
of f everywhere, in the control variate too: log q has its logits stopped.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyroae.errors import ConfigError, ProgramError
from pyroae.objectives.base import Bound
from pyroae.objectives.bounds import ELBO, BoundFunction
from pyroae.objectives.dependent_logits import dependent_site
from pyroae.objectives.learned_controls import (
    ControlVariate,
    network_input,
    to_logits,
)
from pyroae.objectives.pair import Objective
from pyroae.objectives.program_gradient import ProgramGradient
from pyroae.objectives.relaxations import DISCRETE
from pyroae.objectives.relaxed_runs import (
    ALTERNATIVES,
    at_relaxed,
    discrete_sites,
    linear,
    relaxed_weights,
)
from pyroae.programs.discrete_variables import DiscreteSite, Variables
from pyroae.programs.paired_traces import Traces, terms_of
from pyroae.programs.sites import Program
from pyroae.programs.traces import at_values
from pyroae.weights import LogWeights, reduce_log_weights


@dataclass(frozen=True)
class HardRun:
    """What one run at hard draws gives to the control variate.

    Attributes:
        traces: The traces of guide and model.
        sites: The discrete sites of the guide.
        logits: Their logits as leaves of a new graph.
        states: The draws b, of the shapes of the logits.
        learning: f(b), in nats, shape `[K, N]`.
        at_values: Runs the model again at other values of the sites.
    """

    traces: Traces
    sites: dict[str, DiscreteSite]
    logits: dict[str, Tensor]
    states: dict[str, Tensor]
    learning: Tensor
    at_values: Callable[[dict[str, Tensor]], Traces]

    def variables(self, name: str) -> Variables:
        """Return the variables of a site at the leaves."""
        return self.sites[name].at(self.logits[name])


class ControlVariateGradient(ProgramGradient):
    """A gradient at the logits by a control variate c that is learned.

    g = (f(b) − c(z̃)) ∂_l log q(b) + ∂_l c(z) − ∂_l c(z̃),   b = H(z),   z̃ ~ q(z | b)
    """

    learns: ClassVar[bool] = True
    takes_dependent: ClassVar[bool] = False
    temperature: float
    coupled_noise: bool

    @property
    def kinds(self) -> frozenset[str]:
        """Binary and one-hot sites."""
        return DISCRETE

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the gradient, for messages."""

    @property
    def _at_relaxed(self) -> bool:
        """Whether c has f in it, so that the model runs at relaxed states."""
        return True

    def check(self, bound: BoundFunction) -> None:
        """Refuse bounds other than the ELBO."""
        if not isinstance(bound, ELBO):
            raise ConfigError(
                f"{type(self).__name__} is defined for the ELBO, not for {type(bound).__name__}: "
                "use Score, whose baselines take every bound"
            )

    def evaluations(self, bound: BoundFunction) -> float:
        """Return K for each set of draws: b, and if f is in c, z and z̃, which may be one."""
        relaxed = (1 if self.coupled_noise else 2) if self._at_relaxed else 0
        return float(bound.num_particles * (1 + relaxed))

    def estimate_on(
        self,
        objective: Objective,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Bound:
        """Return the ELBO of the hard draws, and the surrogate for θ, φ and the control variate."""
        run = partial(objective.run, model, guide, args, kwargs)
        trial = partial(self._check_parents, run, args)
        objective.cache.get("independence", (guide,), trial)
        traces = run()
        sites = self._sites_of(objective, traces)
        weights = reduce_log_weights(traces)
        value = weights.total(weights.log_weight.mean(0)).detach()
        if not torch.is_grad_enabled():
            return Bound(value, value)
        theta = weights.total((weights.log_lik + weights.log_prior).mean(0))
        hard = HardRun(
            traces,
            sites,
            {n: s.variables.logits.detach().requires_grad_() for n, s in sites.items()},
            {n: s.unpack(traces.guide.nodes[n]["value"]) for n, s in sites.items()},
            weights.log_weight.detach(),
            partial(at_values, traces, model, args, kwargs),
        )
        controls = objective.controls
        assert isinstance(controls, ControlVariate)
        gradients = self._gradients(hard, controls)
        return Bound(
            value,
            theta
            + _at_logits(hard, weights, gradients)
            - _of_controls(hard, weights, gradients, controls),
        )

    def _sites_of(self, objective: Objective, traces: Traces) -> dict[str, DiscreteSite]:
        """The discrete sites of a guide that has no others."""
        sites = discrete_sites(traces, self.name)
        objective.check(traces)
        for name, _ in terms_of(traces):
            raise ProgramError(
                f"{self.name} takes guides that consist of draws; the site '{name}' of the guide "
                f"is none: {ALTERNATIVES}"
            )
        return sites

    def _gradients(
        self,
        run: HardRun,
        controls: ControlVariate,
    ) -> dict[str, Tensor]:
        """The estimate g by site, of the shape of the logits, differentiable in the controls."""
        evaluate = partial(self._control, run, controls)
        z, conditional = self._relaxed_draws(run)
        if self.coupled_noise:  # the same point: its derivative is that of c(z) − c(z̃)
            at_conditional = difference = evaluate(
                {n: z[n].detach() + (z[n] - conditional[n]) for n in z}
            )
        else:
            at_conditional = evaluate(conditional)
            difference = evaluate(z) - at_conditional
        paths = torch.autograd.grad(
            difference.sum(), list(run.logits.values()), create_graph=True, materialize_grads=True
        )
        signal = run.learning - at_conditional
        return {
            name: path + self._score_term(run, name, signal)
            for (name, path) in zip(run.logits, paths, strict=True)
        }

    def _score_term(self, run: HardRun, name: str, signal: Tensor) -> Tensor:
        """(f(b) − c(z̃)) ∂_l log q(b), with the derivative in closed form."""
        site, variables = (
            run.traces.guide.nodes[name],
            run.sites[name].at(run.logits[name].detach()),
        )
        factor = to_logits(run.traces, site, variables.logits, signal)
        return factor * variables.score(run.states[name])

    def _relaxed_draws(self, run: HardRun) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Relaxed draws z and z̃ by site, as functions of the logits.

        z given b has the distribution of z = l + noise where b is drawn first. z̃ has noise of its
        own, or, coupled, the noise for which it equals z.
        """
        z, conditional = {}, {}
        for name, states in run.states.items():
            variables = run.variables(name)
            noise = variables.noise()
            drawn = variables.given(states, noise)
            z[name] = drawn.detach() + (variables.logits - variables.logits.detach())
            own = drawn if self.coupled_noise else variables.given(states, variables.noise())
            conditional[name] = own
        return z, conditional

    def _control(
        self,
        run: HardRun,
        controls: ControlVariate,
        z: Mapping[str, Tensor],
    ) -> Tensor:
        """c(z), in nats, shape `[K, N]`."""
        total = torch.zeros_like(run.learning)
        if self._at_relaxed:
            total = total + controls.scale * self._relaxed_learning(run, controls, z)
        if controls.network is not None:
            soft = {n: run.variables(n).soft(z[n]) for n in z}
            means = {n: run.variables(n).soft(run.logits[n].detach()) for n in z}
            total = total + controls.network(
                network_input(run.traces, run.sites, soft),
                network_input(run.traces, run.sites, means),
            )
        return total

    def _relaxed_learning(
        self,
        run: HardRun,
        controls: ControlVariate,
        z: Mapping[str, Tensor],
    ) -> Tensor:
        """f(σ_λ(z)), with the logits of log q stopped."""
        temperature = controls.temperature
        values = {n: s.pack(run.variables(n).soft(z[n], temperature)) for n, s in run.sites.items()}
        again = at_relaxed(self.name, partial(run.at_values, values))
        stopped = {name: logits.detach() for name, logits in run.logits.items()}
        return relaxed_weights(again, run.sites, linear, self.name, stopped).log_weight

    def _check_parents(self, run: Callable[..., Traces], args: tuple[Any, ...]) -> None:
        """Refuse logits that depend on other draws of the guide."""
        name = dependent_site(run, self._logits, args)
        if name is not None:
            raise ProgramError(
                f"{self.name} needs independent sites; the logits of the guide's site '{name}' "
                f"depend on other draws of the guide: {ALTERNATIVES}"
            )

    def _logits(self, traces: Traces) -> dict[str, Tensor]:
        """The logits of the sites of the guide."""
        return {n: site.variables.logits for n, site in discrete_sites(traces, self.name).items()}


def _at_logits(run: HardRun, weights: LogWeights, gradients: Mapping[str, Tensor]) -> Tensor:
    """Σ g · l over all data, with g stopped."""
    total = torch.zeros_like(run.learning[0, 0])
    for name, gradient in gradients.items():
        factor = _factor(run, weights, name)
        total = total + (factor * gradient.detach() * run.sites[name].variables.logits).sum()
    return total


def _of_controls(
    run: HardRun, weights: LogWeights, gradients: Mapping[str, Tensor], controls: ControlVariate
) -> Tensor:
    """A number whose gradient is that of Σ g² with respect to the control variate alone."""
    parameters = [p for p in controls.parameters() if p.requires_grad]
    squares = [(_factor(run, weights, n) * g.square()).sum() for n, g in gradients.items()]
    if not parameters:
        return torch.zeros_like(squares[0])
    found = torch.autograd.grad(squares, parameters, allow_unused=True)
    terms = [(g * p).sum() for g, p in zip(found, parameters, strict=True) if g is not None]
    return sum(terms[1:], terms[0])


def _factor(run: HardRun, weights: LogWeights, name: str) -> Tensor:
    """The scale of each datum over K, to broadcast with the logits of a site."""
    factor = weights.scale * torch.ones_like(run.learning) / len(run.learning)
    return to_logits(run.traces, run.traces.guide.nodes[name], run.logits[name], factor)
