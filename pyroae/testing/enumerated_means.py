"""Checks of means over draws on enumerable toys, and at the exact posterior of every toy."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from pyroae.objectives.base import ObjectiveBase
from pyroae.objectives.bounds import ELBO, BoundFunction
from pyroae.objectives.gradients import Pathwise
from pyroae.objectives.pair import Objective
from pyroae.testing.case import DATA, REPLICATES, Case
from pyroae.testing.checks import Check, equal, zero
from pyroae.testing.expectations import mean_gradient, mean_value
from pyroae.testing.toy_program import EnumerableToy, ToyProgram


def exact_posterior(objective: ObjectiveBase, toy: ToyProgram) -> Iterator[Check]:
    """Check that the bound is log p(x) where the guide is the exact posterior.

    Args:
        objective: The objective.
        toy: The toy.

    Yields:
        The check.
    """
    at_posterior, x = toy.at_posterior(), torch.randn(6, 3)
    case = Case(objective, at_posterior, x)
    exact = at_posterior.log_evidence(x).sum()
    for _ in range(2):
        value = -case.run()[0]
        yield equal("the bound is log p(x) at the exact posterior", value, exact, case.name)


def gradient_at_exact_posterior(objective: ObjectiveBase, toy: ToyProgram) -> Iterator[Check]:
    """Check that the mean gradient is ∂ log p(x) for θ and 0 for φ at the exact posterior.

    Args:
        objective: The objective.
        toy: The toy.

    Yields:
        The check.
    """
    case = Case(objective, toy.at_posterior(), torch.randn(1, 3).expand(DATA, 3))
    actual = case.replicates(REPLICATES // 2)[1]
    yield zero(
        "the mean gradient is that of log p(x) at the exact posterior",
        actual - _of_evidence(case.toy, case.x[:1]),
        case.name,
    )


def enumerated_means(
    objective: ObjectiveBase, toy: EnumerableToy, unbiased: bool | None
) -> Iterator[Check]:
    """Compare the means of value and gradient with sums over all states.

    Args:
        objective: The objective.
        toy: The toy.
        unbiased: Whether the mean gradient is that of the mean value; None for an objective that
            is not a pair, which is then checked where it is the ELBO.

    Yields:
        The checks that the claims of the objective select.
    """
    case = Case(objective, toy, torch.randn(1, 3).expand(DATA, 3))
    losses, gradients = case.replicates()
    x, name = case.x[0], case.name
    if objective.is_unbiased:
        log_px = toy.log_evidence(x[None])
        yield zero("the mean value is log p(x)", (losses + log_px)[:, None], name)
        rows = (gradients - _of_evidence(toy, x[None]))[:, : None if unbiased else toy.num_theta]
        yield zero("the mean gradient is that of log p(x)", rows, name)
        return
    bound = _bound_of(case)
    exact = None if bound is None else mean_value(bound, toy.states(x))
    if bound is None or exact is None:
        return
    yield zero("the mean value is the sum over all states", (losses + exact)[:, None], name)
    if unbiased or (unbiased is None and objective.is_elbo):
        expected = mean_gradient(Pathwise(), bound, toy, x)
        assert expected is not None
        yield zero(
            "the mean gradient is that of the sum over all states", gradients + expected, name
        )
    elif isinstance(objective, Objective):
        yield from _stated(objective, case, gradients)


def _stated(objective: Objective, case: Case, gradients: Tensor) -> Iterator[Check]:
    """The mean φ-gradient of a biased pair is the one that it names."""
    bound, toy = objective.bound_function, cast(EnumerableToy, case.toy)
    total = torch.zeros(())
    parts = objective.gradient.same_mean(bound)
    for share, other in parts:
        mean = mean_gradient(other, bound, toy, case.x[0])
        if mean is None:
            return
        total = total + share * mean
    if parts:
        yield zero(
            "the mean φ-gradient is the one that the gradient names",
            (gradients + total)[:, toy.num_theta :],
            case.name,
        )


def _bound_of(case: Case) -> BoundFunction | None:
    """The bound of K draws whose mean the value has; None where there is no such claim."""
    objective = case.objective
    if isinstance(objective, Objective):
        return None if case.is_random else objective.bound_function
    return ELBO(1) if objective.is_elbo else None


def _of_evidence(toy: ToyProgram, x: Tensor) -> Tensor:
    """The gradient of −log p(x) with respect to all parameters."""
    exact = -toy.log_evidence(x).sum()
    grads = torch.autograd.grad(exact, list(toy.parameters()), materialize_grads=True)
    return torch.cat([g.flatten() for g in grads])
