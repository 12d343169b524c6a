"""Data drawn from the model for an annealing run."""

from pyro import poutine
from torch import Tensor

from pyroae.evaluation.annealing.plan import Plan
from pyroae.evaluation.annealing.results import BlockResult
from pyroae.evaluation.simulated_data import simulated
from pyroae.programs.latents import Latents
from pyroae.programs.traces import prior_of, run


def simulate(plan: Plan, args: tuple[Tensor, ...]) -> BlockResult:
    """Draw z and x from the model, given its arguments: (z, x) ~ p(z) p(x|z).

    Args:
        plan: The plan of the annealing run.
        args: Arguments of the model, `[N, ...]` each.

    Returns:
        A result with `x`, `z` and `u` of all N data; its other fields are None.

    Raises:
        ProgramError: As of `simulated`.
    """
    traces = run(plan.model, prior_of(plan.model), args, {}, 1, plan.nesting)
    x, z = simulated(plan.model, args, traces)
    model = poutine.condition(plan.model, data=x)
    u = Latents(model, prior_of(model), args, 1, plan.nesting).flatten(z)
    return BlockResult(x, z, u)
