"""Runs of guide and model at relaxed states of discrete sites, and their log-weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyroae.errors import BrokenProgramError, ProgramError, own_error
from pyroae.objectives.surrogates import graph_of
from pyroae.programs.discrete_variables import DiscreteSite, Variables, discrete_site
from pyroae.programs.paired_traces import Traces, log_density
from pyroae.programs.particles import is_draw
from pyroae.programs.sites import Site, base_distribution, is_discrete
from pyroae.weights import LogWeights, reduce_log_weights

ALTERNATIVES = "use vimco, score or rws, which need no value between the states"
"""What to use in place of a relaxation, for messages."""

Form = Callable[[Variables, Tensor], Tensor]
"""States of variables at z = logits + noise."""


class RelaxedDraws(Messenger):
    """Draw the discrete sites of a guide as a function of logits and noise.

    Args:
        form: The states at z.
        noise: The noise of an earlier run by site, one tensor for each run of the guide; None to
            draw it.

    Attributes:
        noise: The noise of this run.
        z: z = logits + noise by site, one tensor for each run of the guide.
    """

    def __init__(self, form: Form, noise: Mapping[str, list[Tensor]] | None = None) -> None:
        super().__init__()
        self.form, self._given = form, noise
        self.noise: dict[str, list[Tensor]] = {}
        self.z: dict[str, list[Tensor]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        site = discrete_site(msg["fn"]) if is_draw(msg) else None
        if site is None:
            return
        drawn, zs = (each.setdefault(msg["name"], []) for each in (self.noise, self.z))
        noise = (
            site.variables.noise() if self._given is None else self._given[msg["name"]][len(drawn)]
        )
        drawn.append(noise)
        zs.append(site.variables.logits + noise)
        msg["value"], msg["done"] = site.pack(self.form(site.variables, zs[-1])), True

    def z_of(self, name: str, site: DiscreteSite) -> Tensor:
        """Return z of a site for all particles.

        Args:
            name: The name of the site.
            site: Its variables in the run.

        Returns:
            z of the shape of the logits.
        """
        rows, shape = self.z[name], site.variables.logits.shape
        return (rows[0] if len(rows) == 1 else torch.stack(rows)).reshape(shape)


@dataclass
class _Density:
    """Stands for the distribution of a site whose density is evaluated in another way."""

    fn: Any
    log_prob: Callable[[Tensor], Tensor]
    has_rsample: bool = True
    batch_shape: torch.Size = field(init=False)
    event_shape: torch.Size = field(init=False)

    def __post_init__(self) -> None:
        self.batch_shape, self.event_shape = self.fn.batch_shape, self.fn.event_shape


def relaxed_weights(
    traces: Traces,
    sites: Mapping[str, DiscreteSite],
    density: Callable[[str, DiscreteSite, Tensor], Tensor],
    objective: str,
    logits: Mapping[str, Tensor] | None = None,
) -> LogWeights:
    """Return the log-weights of a run at relaxed states.

    Args:
        traces: The traces of guide and model at these states.
        sites: The discrete sites of the guide.
        density: The log-density of each variable of a site of guide or model: a function of the
            name, the site and its states in the shape of the logits.
        objective: The name of the objective, for the message.
        logits: Logits of the guide in place of its own, by site.

    Returns:
        The log-weights.

    Raises:
        ProgramError: The model has another distribution at a site, or does not depend on its
            relaxed value along a path.
    """
    model, guide = traces.model.copy(), traces.guide.copy()
    priors: dict[str, DiscreteSite] = {}
    for name, site in sites.items():
        ours = site if logits is None else replace(site, variables=site.at(logits[name]))
        _set_density(guide, name, ours, density)
        if name in model.nodes:
            priors[name] = _prior(name, model.nodes[name], objective)
            _set_density(model, name, priors[name], density)
    weights = reduce_log_weights(replace(traces, model=model, guide=guide))
    _check_paths(traces, weights, priors, objective)
    return weights


def _prior(name: str, node: Site, objective: str) -> DiscreteSite:
    """The variables of a latent site of the model."""
    prior = discrete_site(node["fn"])
    if prior is None:
        kind = type(base_distribution(node["fn"])).__name__
        raise ProgramError(
            f"{objective} evaluates the model between the states of the site '{name}', where its "
            f"distribution {kind} has no density: use Bernoulli or OneHotCategorical there, or "
            f"{ALTERNATIVES}"
        )
    return prior


def _set_density(
    trace: poutine.Trace,
    name: str,
    site: DiscreteSite,
    density: Callable[[str, DiscreteSite, Tensor], Tensor],
) -> None:
    """Replace the distribution of a site by one with another density."""
    node = trace.nodes[name]

    def log_prob(value: Tensor) -> Tensor:
        return site.reduce(density(name, site, site.unpack(value)))

    trace.nodes[name] = {**node, "fn": _Density(node["fn"], log_prob)}


def _check_paths(
    traces: Traces, weights: LogWeights, priors: Mapping[str, DiscreteSite], objective: str
) -> None:
    """Refuse models that index or round the relaxed value of a site, so that no gradient passes."""
    values = {name: traces.guide.nodes[name]["value"] for name in priors}
    moving = [name for name, value in values.items() if value.requires_grad]
    if not moving or not any(traces.sites(traces.model, observed=True)):
        return
    reached = graph_of(weights.log_lik).union(
        *(graph_of(prior.variables.logits) for prior in priors.values()),
        *(
            graph_of(log_density(name, site))
            for name, site in traces.sites(traces.model, observed=False)
            if name not in priors
        ),
    )
    for name in moving:
        if values[name].grad_fn not in reached:
            raise ProgramError(
                f"{objective} needs a path gradient through the model at values between the states "
                f"of the site '{name}', and none reaches it, as where the model indexes or rounds "
                f"the value: {ALTERNATIVES}"
            )


def linear(_name: str, site: DiscreteSite, states: Tensor) -> Tensor:
    """Return log q of each variable, extended linearly between the states.

    Args:
        _name: The name of the site.
        site: Its variables.
        states: Their states, of the shape of the logits.

    Returns:
        The log-probabilities in nats, without the dimension of the states.
    """
    return site.variables.linear(states)


def at_relaxed(
    objective: str, run: Callable[[], Traces], at_states: Callable[[], Traces] | None = None
) -> Traces:
    """Run programs at relaxed states, and say so where they fail.

    Args:
        objective: The name of the objective, for the message.
        run: Runs the programs.
        at_states: Runs them at states, if they have not run there before: programs that fail there
            too fail for another reason than the relaxation.

    Returns:
        The traces.

    Raises:
        BrokenProgramError: A program fails at states, or rejects values between them.
    """
    try:
        return run()
    except BrokenProgramError as error:
        if at_states is not None:
            at_states()
        raise BrokenProgramError(
            f"{objective} runs the programs at values between the states, where {error}: "
            f"{ALTERNATIVES}"
        ) from own_error(error)


def discrete_sites(traces: Traces, objective: str) -> dict[str, DiscreteSite]:
    """Return the variables of every draw of the guide.

    Args:
        traces: The traces of guide and model.
        objective: The name of the objective, for the message.

    Returns:
        The variables by the name of the site.

    Raises:
        ProgramError: A site is continuous, an index, or another distribution without a relaxation;
            or the guide draws nothing.
    """
    found = {}
    for name, site in traces.draws():
        variables = discrete_site(site["fn"])
        if variables is None:
            kind = type(base_distribution(site["fn"])).__name__
            raise ProgramError(f"{objective} {_refusal(name, kind, site['fn'])}")
        found[name] = variables
    if not found:
        raise ProgramError(f"{objective} takes Bernoulli and one-hot sites; the guide draws none")
    return found


def _refusal(name: str, kind: str, fn: object) -> str:
    which = f"takes Bernoulli and one-hot sites; the guide's site '{name}' ({kind})"
    if kind == "Categorical":
        return f"{which} is an index, between whose values there are none: use OneHotCategorical"
    if not is_discrete(fn):
        return f"{which} is continuous: use trace-elbo, iwae or dreg, or score for mixed guides"
    return f"{which} has no relaxation: {ALTERNATIVES}"
