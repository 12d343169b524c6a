"""Data drawn from the model, and the arguments of a guide that conditions on them."""

import pyro.distributions as dist
from pyro import poutine
from torch import Tensor

from pyroae.errors import ConfigError, ProgramError
from pyroae.evaluation.annealing.plan import Plan
from pyroae.evaluation.annealing.results import BlockResult
from pyroae.evaluation.checks import is_one
from pyroae.programs.latents import Latents
from pyroae.programs.masks import where_unmasked
from pyroae.programs.paired_traces import Traces
from pyroae.programs.sites import base_distribution
from pyroae.programs.traces import prior_of, run


def simulate(plan: Plan, args: tuple[Tensor, ...]) -> BlockResult:
    """Draw z and x from the model, given its arguments: (z, x) ~ p(z) p(x|z).

    Sites outside the data plate and masked elements keep their observed values.

    Args:
        plan: The plan of the annealing run.
        args: Arguments of the model, `[N, ...]` each.

    Returns:
        A result with `x`, `z` and `u` of all N data; its other fields are None.

    Raises:
        ProgramError: Naming the site, for an observed site that cannot be drawn: a factor, a
            scaled site, or counts whose density is given their observed total.
    """
    traces = run(plan.model, prior_of(plan.model), args, {}, 1, plan.nesting)
    observed = dict(traces.sites(traces.model, observed=True))
    local = [
        name
        for name, site in observed.items()
        if traces.is_local(site) and not site["infer"].get("_deterministic")
    ]
    for name in local:
        if isinstance(base_distribution(observed[name]["fn"]), dist.Unit):
            raise ProgramError(f"the site '{name}' is a factor: no x can be drawn from the model")
        if getattr(base_distribution(observed[name]["fn"]), "is_given_value", False):
            raise ProgramError(
                f"the density of the site '{name}' is given the total of its own value: draws from "
                "the model do not have it; use library=none, or a number"
            )
        if not is_one(traces.exponent(observed[name])):
            raise ProgramError(
                f"the site '{name}' is scaled: draws from the model do not have its density"
            )
    fixed = {name: site["value"] for name, site in observed.items() if not traces.is_local(site)}
    program = poutine.condition(poutine.uncondition(plan.model), data=fixed)
    nodes = poutine.trace(program).get_trace(*args).nodes
    x = {}
    for name in local:  # masked elements keep the observed value
        site = observed[name]
        x[name] = where_unmasked(name, site, nodes[name]["value"].detach(), site["value"])
    latent = traces.sites(traces.model, observed=False)
    z = {name: nodes[name]["value"].detach() for name, _ in latent}
    model = poutine.condition(plan.model, data=x)
    u = Latents(model, prior_of(model), args, 1, plan.nesting).flatten(z)
    return BlockResult(x, z, u)


def replaced(
    args: tuple[Tensor, ...], traces: Traces, data: dict[str, Tensor]
) -> tuple[Tensor, ...]:
    """Replace the arguments that equal an observed value by the simulated value of its site.

    Args:
        args: Arguments of the guide, `[N, ...]` each.
        traces: A run of the model with the observed values.
        data: Simulated values by site, in the shape of the program.

    Returns:
        The arguments of the guide, of the same shapes.

    Raises:
        ConfigError: Where the observed value of a site equals none or several of the arguments.
    """
    arguments = list(args)
    for name, value in data.items():
        observed = traces.model.nodes[name]["value"]
        same = [
            i
            for i, a in enumerate(args)
            if a.numel() == observed.numel()
            and _equal(a.reshape(observed.shape).to(observed), observed)
        ]
        if len(same) != 1:
            raise ConfigError(
                f"start=\"guide\" needs the guide to see the simulated data of the site '{name}', "
                f"but its observed value is {len(same) or 'none'} of the arguments; "
                'use start="prior"'
            )
        arguments[same[0]] = value.reshape(args[same[0]].shape).to(args[same[0]])
    return tuple(arguments)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether all values are the same, NaN included."""
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
