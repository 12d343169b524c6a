"""Exact means of bounds and gradients on enumerable toys: sums over all K-tuples of states."""

import math
from functools import lru_cache
from itertools import combinations_with_replacement, product
from math import comb, factorial, prod

import torch
from torch import Tensor

from pyroae.objectives.bounds import BoundFunction
from pyroae.objectives.gradients import Gradient
from pyroae.objectives.program_gradient import ProgramGradient
from pyroae.objectives.stratified import StratifiedBound
from pyroae.testing.toy_program import EnumerableToy, States

MOST = 200_000
"""The largest number of tuples that are summed."""


@lru_cache(maxsize=32)
def tuples(num_states: int, num_particles: int, symmetric: bool) -> tuple[Tensor, Tensor] | None:
    """Return the K-tuples of states.

    Args:
        num_states: S.
        num_particles: K.
        symmetric: Return one order of each multiset alone, with the number of its orders.

    Returns:
        The tuples, shape `[K, T]`, and the logarithm of the number of orders of each, shape `[T]`;
            None for more than `MOST` tuples.

    >>> tuples(2, 2, True)[0].T.tolist(), tuples(2, 2, True)[1].exp().tolist()
    ([[0, 0], [0, 1], [1, 1]], [1.0, 2.0, 1.0])
    """
    several = comb(num_states + num_particles - 1, num_particles)
    if (several if symmetric else num_states**num_particles) > MOST:
        return None
    if not symmetric:
        index = torch.tensor(list(product(range(num_states), repeat=num_particles)))
        return index.T, torch.zeros(len(index), dtype=torch.float64)
    rows = list(combinations_with_replacement(range(num_states), num_particles))
    orders = [
        factorial(num_particles) / prod(factorial(row.count(s)) for s in set(row)) for row in rows
    ]
    return torch.tensor(rows).T, torch.tensor(orders, dtype=torch.float64).log()


def mean_value(bound: BoundFunction, states: States) -> Tensor | None:
    """Return E F for K draws of the guide, independent or stratified as the bound takes them.

        Σ_{s_1, …, s_K} q(s_1) ⋯ q(s_K) F(log w_{s_1}, …, log w_{s_K})

    Args:
        bound: F.
        states: The states of one datum.

    Returns:
        The mean in nats, shape `[]`, differentiable; None for too many tuples, and for a bound that
            is not smooth where the states are nodes of a quadrature.
    """
    if not (bound.smooth or states.exact):
        return None
    if isinstance(bound, StratifiedBound):
        return _stratified_mean(bound, states)
    found = tuples(len(states.log_prob), bound.num_particles, bound.is_symmetric)
    if found is None:
        return None
    index, log_orders = found
    probability = (states.log_prob[index].sum(0) + log_orders).exp()
    return (probability * bound.value((states.log_p - states.log_q)[index])).sum()


def _stratified_mean(bound: StratifiedBound, states: States) -> Tensor | None:
    """E F for K/C draws of each component."""
    assert states.log_share is not None
    components, count = states.components, bound.num_particles
    size = len(states.log_prob) // components
    found = tuples(size, count, False)
    if found is None:
        return None
    component = torch.arange(count) * components // count
    index = found[0] + size * component[:, None]
    probability = (states.log_prob - states.log_share)[index].sum(0).exp()
    log_ratio = states.log_share[index] + math.log(components)
    return (probability * bound.weighted((states.log_p - states.log_q)[index], log_ratio)).sum()


def mean_gradient(
    gradient: Gradient, bound: BoundFunction, toy: EnumerableToy, x: Tensor
) -> Tensor | None:
    """Return the mean of an estimator of the gradient.

    It is the gradient of E F for an unbiased one, the sum of the coefficients times log-densities
    for one that follows scores alone, and otherwise the sum that the estimator names.

    Args:
        gradient: The estimator.
        bound: F.
        toy: The toy.
        x: One datum, shape `[3]`.

    Returns:
        The mean for ascent, with respect to all parameters, shape `[P]`; None where it is not
            known.
    """
    if gradient.unbiased(bound):
        return _derivative(mean_value(bound, toy.states(x)), toy)
    if gradient.detached and not isinstance(gradient, ProgramGradient):
        return _derivative(_scores(gradient, bound, toy.states(x, stopped=True)), toy)
    parts = [
        (share, mean_gradient(part, bound, toy, x)) for share, part in gradient.same_mean(bound)
    ]
    known = [share * mean for share, mean in parts if mean is not None]
    return sum(known[1:], known[0]) if known and len(known) == len(parts) else None


def _scores(gradient: Gradient, bound: BoundFunction, states: States) -> Tensor | None:
    """The mean of the surrogate of an estimator that follows scores alone."""
    if not (bound.smooth or states.exact):
        return None
    found = tuples(len(states.log_prob), bound.num_particles, bound.is_symmetric)
    if found is None:
        return None
    index, log_orders = found
    probability = (states.log_prob[index].sum(0) + log_orders).exp().detach()
    log_weight = (states.log_p - states.log_q).detach()[index]
    c = gradient.coefficients(bound, log_weight)
    score = sum(part for part in (c.score, c.learning) if part is not None)
    score = score - c.whole if c.whole is not None else score
    each = c.theta * states.log_p[index] + score * states.log_q[index]
    return (probability * each.sum(0)).sum()


def _derivative(value: Tensor | None, toy: EnumerableToy) -> Tensor | None:
    """The derivative with respect to all parameters of a toy, as a vector."""
    if value is None:
        return None
    grads = torch.autograd.grad(value, list(toy.parameters()), materialize_grads=True)
    return torch.cat([g.flatten() for g in grads])
