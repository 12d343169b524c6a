"""Checks of means over draws on the linear-Gaussian toy."""

import dataclasses
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from pyroae.objectives.base import Bound, ObjectiveBase
from pyroae.objectives.bounds import IWAE
from pyroae.objectives.gradients import Pathwise
from pyroae.objectives.pair import Objective
from pyroae.programs.paired_traces import Traces
from pyroae.programs.sites import Program
from pyroae.testing.case import DATA, REPLICATES, Case, fresh
from pyroae.testing.checks import Check, not_below, zero
from pyroae.testing.gaussian import Toy


def value_means(objective: ObjectiveBase) -> Iterator[Check]:
    """Check the mean of the value.

    Args:
        objective: The objective.

    Yields:
        The checks that its claims select.
    """
    toy, x = Toy(), torch.randn(3)
    toy.requires_grad_(False)
    log_p = toy.log_evidence(x[None])
    bound = objective.bound_function if isinstance(objective, Objective) else None
    case = Case(objective, Toy(), x.expand(DATA, 3))
    found = -case.replicates()[0]
    if bound is not None and not case.is_random:
        draws = 400 * DATA
        noise = torch.randn(objective.num_particles, draws, 2)
        actual = bound.value(toy.log_weights(x.expand(draws, 3), noise))
        rest = actual.reshape(len(found), -1).mean(1)
        yield zero("the mean value is the mean of the bound", (found - rest)[:, None])
    else:
        actual = found
    if objective.is_elbo:
        yield zero("the mean value is the closed-form ELBO", (actual - toy.elbo(x))[:, None])
    if objective.is_unbiased:
        yield zero("the mean value is log p(x)", (found - log_p)[:, None])
    if isinstance(bound, IWAE):
        yield zero("the mean of exp F is p(x)", ((actual - log_p).exp() - 1)[:, None])
    if objective.is_elbo or (bound is not None and bound.is_lower):
        yield not_below("the mean value is below log p(x)", log_p - actual)


def trend(objective: Objective) -> Iterator[Check]:
    """Compare F of all 2K particles with the mean of F over the two halves.

    Args:
        objective: The pair, whose bound claims a trend.

    Yields:
        The check.
    """
    bound, count, draws = objective.bound_function, objective.num_particles, 100 * DATA
    twice = dataclasses.replace(cast(Any, bound), num_particles=2 * count)
    toy, x = Toy(), torch.randn(3)
    with torch.no_grad():
        log_weight = toy.log_weights(x.expand(draws, 3), torch.randn(2 * count, draws, 2))
    halves = (bound.value(log_weight[:count]) + bound.value(log_weight[count:])) / 2
    change = twice.value(log_weight) - halves
    if bound.trend == 0:
        yield zero("the mean value is the same for every K", change[:, None])
    else:
        yield not_below(
            f"the mean value never {'falls' if bound.trend == 1 else 'rises'} with K",
            (bound.trend or 0) * change,
        )


def gradient_means(objective: ObjectiveBase, unbiased: bool | None) -> Iterator[Check]:
    """Check the mean gradient of an unbiased objective.

    Args:
        objective: The objective.
        unbiased: As of `check_objective`: where it is not True, and the value is an unbiased
            estimate of log p(x), θ alone is checked.

    Yields:
        The checks that its claims select.
    """
    pair = objective if isinstance(objective, Objective) else None
    if objective.is_unbiased:
        case = Case(objective, Toy(), torch.randn(1, 3).expand(DATA, 3))
        exact = torch.autograd.grad(
            -case.toy.log_evidence(case.x[:1]).sum(),
            list(case.toy.parameters()),
            materialize_grads=True,
        )
        expected = torch.cat([g.flatten() for g in exact])
        rows = (case.replicates()[1] - expected)[:, : None if unbiased else case.toy.num_theta]
        yield zero("the mean gradient is that of log p(x)", rows)
        return
    reference = Attached(objective) if pair is None else Objective(pair.bound_function, Pathwise())
    actual, expected, exact_elbo = _paired(objective, [(1.0, reference)])
    yield zero("the mean gradient is the bound's", actual - expected)
    if objective.is_elbo:
        yield zero("the mean gradient is that of the closed-form ELBO", actual - exact_elbo)


def stated_means(objective: Objective) -> Iterator[Check]:
    """Compare the mean φ-gradient of a biased pair with the one that its gradient names.

    Args:
        objective: The pair.

    Yields:
        The check.
    """
    bound = objective.bound_function
    parts = [
        (share, Objective(bound, other)) for share, other in objective.gradient.same_mean(bound)
    ]
    actual, expected, _ = _paired(objective, parts)
    yield zero(
        "the mean φ-gradient is the one that the gradient names",
        (actual - expected)[:, Toy().num_theta :],
    )


def _paired(
    objective: ObjectiveBase, others: list[tuple[float, Any]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients per datum, from the same noise those of others, and that of the ELBO.

    The noise is the same where it fixes the draws. Returns the objective's gradients `[R, P]`, the
    weighted sums of the others' `[R, P]`, and the gradient of the closed-form ELBO `[P]`.
    """
    toy, x = Toy(), torch.randn(1, 3).expand(DATA, 3)
    case = Case(objective, toy, x)
    cases = [(share, Case(other, toy, x)) for share, other in others]
    fixed, rows = case.fix_draws(), []
    for _ in range(REPLICATES):
        toy.noise = torch.randn(objective.num_particles, DATA, 2) if fixed else None
        one = case.run()[1]
        sums = sum(share * other.run()[1] for share, other in cases)
        rows.append((one / DATA, torch.as_tensor(sums) / DATA))
    exact = torch.autograd.grad(-toy.elbo(x[0]), list(toy.parameters()))
    actual, expected = (torch.stack(part) for part in zip(*rows, strict=True))
    return actual, expected, torch.cat([g.flatten() for g in exact])


class Attached(ObjectiveBase):
    """An objective whose surrogate is another objective's value.

    Args:
        objective: The other objective.
    """

    def __init__(self, objective: ObjectiveBase) -> None:
        super().__init__(objective.num_particles)
        self.objective = fresh(objective)

    def next_step(self) -> None:
        """Take the other objective to its next step."""
        self.objective.next_step()

    def estimate(self, traces: Traces) -> Bound:
        """Return the value of one run as its own surrogate."""
        value = self.objective.estimate(traces).value
        return Bound(value, value)

    def estimate_on(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Bound:
        """Return the value as its own surrogate."""
        value = self.objective.bound(model, guide, *args, **kwargs).value
        return Bound(value, value)
