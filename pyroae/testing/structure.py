"""Checks that hold for every single draw: scales, sums over data, orders, and agreeing paths."""

import copy
from collections.abc import Iterator

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import nn

from pyroae.objectives.base import ObjectiveBase
from pyroae.objectives.pair import Objective
from pyroae.testing.case import REPLICATES, Case
from pyroae.testing.checks import Check, equal, zero
from pyroae.testing.toy_program import ToyProgram


def structure(objective: ObjectiveBase, toy: ToyProgram) -> Iterator[Check]:
    """Check what holds for every draw, on one toy.

    Args:
        objective: The objective.
        toy: The toy.

    Yields:
        The checks.
    """
    case = Case(objective, toy, torch.randn(6, 3))
    fixed = case.fix_draws()
    if fixed and isinstance(objective, Objective):
        yield _value(case)
    yield _reaches_parameters(case)
    yield from _scales(case)
    yield from _paths(case)
    if objective.is_per_datum:
        yield from _fixed_parts(case) if fixed else _parts(case)
    if objective.is_symmetric and fixed:
        yield from _particles(case)
    toy.noise = None
    yield _evaluations(case)


def _value(case: Case) -> Check:
    objective = case.objective
    expected = objective.bound_function.value(case.toy.log_weights(case.x, case.noise)).sum()
    actual = objective.bound(case.toy.model, case.toy.guide, case.x).value
    return equal("the value is the bound of the log-weights", actual, expected, case.name)


def _reaches_parameters(case: Case) -> Check:
    controls = case.objective.controls or nn.Module()
    modules = {"": case.toy, "controls.": controls}
    left = [prefix + name for prefix, of in modules.items() for name, _ in of.named_parameters()]
    start = copy.deepcopy(controls.state_dict())
    for seed in range(3):  # the draws of one run may all be equal
        controls.zero_grad()
        case.run(seed=seed)
        reached = {
            prefix + name
            for prefix, module in modules.items()
            for name, p in module.named_parameters()
            if p.grad is not None and p.grad.abs().max() > 0
        }
        left = [name for name in left if name not in reached]
        with torch.no_grad():  # a layer that starts at 0 passes no gradient on
            for p in controls.parameters():
                p.sub_(0.0 if p.grad is None else 0.01 * p.grad.sign())
    controls.load_state_dict(start)
    return Check(
        "a gradient reaches every parameter",
        not left,
        f"none reaches {', '.join(left)} ({case.name})",
    )


def _scales(case: Case) -> Iterator[Check]:
    toy, x = case.toy, case.x
    loss, gradient = case.run(seed=1)
    model, guide = (poutine.scale(program, scale=0.25) for program in (toy.model, toy.guide))
    actual = Case(case.objective, toy, x).run(model=model, guide=guide, seed=1)
    yield equal("a scale multiplies the bound", actual[0], 0.25 * loss, case.name)
    yield equal("a scale multiplies the gradient", actual[1], 0.25 * gradient, case.name)
    toy.size = 10 * len(x)
    actual = case.run(seed=1)
    toy.size = None
    yield equal("subsampling multiplies the bound", actual[0], 10 * loss, case.name)
    yield equal("subsampling multiplies the gradient", actual[1], 10 * gradient, case.name)


def _fixed_parts(case: Case) -> Iterator[Check]:
    toy, x, name = case.toy, case.x, case.name
    loss, gradient = case.run()
    parts = []
    for index in (torch.tensor([4, 1]), torch.tensor([0, 5, 2, 3])):
        toy.noise = case.noise[:, index]
        parts.append(case.run(x[index]))
    bound, slope = parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]
    yield equal("a batch's bound is the sum over its data", bound, loss, name)
    yield equal("a batch's gradient is the sum over its data", slope, gradient, name)
    index = torch.tensor([4, 1, 0, 5, 2, 3])
    toy.noise = case.noise[:, index]
    whole = case.run(x[index])
    toy.noise = case.noise
    yield equal("the order of the data changes nothing in the bound", whole[0], loss, name)
    yield equal("the order of the data changes nothing in the gradient", whole[1], gradient, name)


def _parts(case: Case) -> Iterator[Check]:
    """The same with the random numbers of a seed, which are those of the same rows of a batch."""
    x, other, name = case.x, case.x.clone(), case.name
    other[:2] = torch.randn(2, 3)
    one, two = x.clone(), other.clone()
    one[2:4], two[2:4] = other[2:4].flip(0), other[2:4].flip(0)
    # Two groups of rows change: the changes add up if each row has a bound of its own.
    rows = [case.run(data, seed=1) for data in (x, two, other, one)]
    bound, slope = (a + b - c - d for a, b, c, d in zip(*rows, strict=True))
    nothing = torch.zeros(())
    yield equal("a batch's bound is the sum over its data", bound, nothing, name)
    yield equal("a batch's gradient is the sum over its data", slope, torch.zeros_like(slope), name)
    differences = []
    for _ in range(REPLICATES):
        forward, backward = case.run(x), case.run(x.flip(0))
        differences.append(torch.cat([(forward[0] - backward[0])[None], forward[1] - backward[1]]))
    found = torch.stack(differences)
    yield zero("the order of the data changes nothing in the bound", found[:, :1], name)
    yield zero("the order of the data changes nothing in the gradient", found[:, 1:], name)


def _particles(case: Case) -> Iterator[Check]:
    loss, gradient = case.run()
    case.toy.noise = case.noise.roll(1, 0)
    actual = case.run()
    case.toy.noise = case.noise
    yield equal("the particles may change places in the bound", actual[0], loss, case.name)
    yield equal("the particles may change places in the gradient", actual[1], gradient, case.name)


def _paths(case: Case) -> Iterator[Check]:
    toy, objective = case.toy, case.objective
    case.run(seed=1)
    draws = torch.get_rng_state()
    loss, gradient = _at(case, draws)
    toy.zero_grad()
    torch.set_rng_state(draws)
    differentiable = objective(toy.model, toy.guide)(case.x)
    differentiable.backward()
    yield equal("the differentiable loss is the loss", differentiable.detach(), loss, case.name)
    yield equal("the differentiable loss has its gradient", case.gradient(), gradient, case.name)
    if case.is_random:  # SVI may draw another one
        return
    svi = SVI(toy.model, toy.guide, pyro.optim.SGD({"lr": 0.0}), objective)
    torch.set_rng_state(draws)
    step = torch.tensor(svi.step(case.x))
    yield equal("SVI's loss is the loss", step, loss, case.name)


def _at(case: Case, draws: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient at a state of the generator, without a next step of the objective."""
    case.toy.zero_grad()
    torch.set_rng_state(draws)
    loss = case.objective.loss_and_grads(case.toy.model, case.toy.guide, case.x)
    return torch.tensor(loss), case.gradient()


def _evaluations(case: Case) -> Check:
    """The mean number of decoder evaluations per datum is the one that is stated."""
    name, found = "the decoder evaluations are those that are stated", []
    for seed in range(4 * REPLICATES):
        case.toy.evaluations = 0.0
        case.run(seed=seed)
        found.append(case.toy.evaluations)
        if seed == 2 and not case.is_random:
            break
    stated = case.objective.evaluations
    return zero(name, torch.tensor(found)[:, None] - stated, case.name)
