"""Conformance of ELBO estimators, one's own included: every oracle that applies, and a word for each that fails."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor, nn

from pyroae import linear_gaussian
from pyroae.objectives.base import Bound, Objective, ObjectiveBase
from pyroae.objectives.gradients import Pathwise
from pyroae.weights import Program, Traces, fork_random


class ConformanceError(AssertionError):
    """An objective fails an oracle; the message says which, with the figures."""


@dataclass(frozen=True)
class Check:
    """One oracle: its name, whether it held, and the figures."""

    name: str
    passed: bool
    detail: str


def check_objective(objective: ObjectiveBase, *, unbiased: bool | None = None, seed: int = 0) -> list[Check]:
    """Run an objective through every oracle that applies, in float64, and return what was found.

    Oracles: the bound is log p(x) at the exact posterior; the value is F of hand-computed log-weights (for a pair); a
    gradient reaches every parameter; the mean gradient is that of the pathwise estimator of the same bound (paired, 5
    standard errors); subsampling and scales act on the bound and not inside it; a batch is the sum of its parts; the SVI,
    differentiable and bound paths agree. An objective whose bound is not log p(x) at the exact posterior, or not a sum over
    data, says so (`is_evidence`, `is_per_datum`) and is spared that oracle. unbiased: whether the mean gradient is the
    bound's own; by default what the pair says of itself, and not checked for objectives that are no pair.
    Raises ConformanceError, naming every oracle that failed.

    >>> from pyroae.objectives import IWAE, DoublyReparameterized
    >>> all(check.passed for check in check_objective(Objective(IWAE(4), DoublyReparameterized())))
    True
    """
    if unbiased is None and isinstance(objective, Objective):
        unbiased = objective.gradient.unbiased(objective.bound_function)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with fork_random(torch.device("cpu"), seed):
            checks = [check for oracle in _oracles(objective, unbiased) for check in oracle(objective)]
    finally:
        torch.set_default_dtype(before)
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.passed]
    if failed:
        raise ConformanceError("; ".join(failed))
    return checks


def _oracles(objective: ObjectiveBase, unbiased: bool | None) -> Iterator[Callable[[ObjectiveBase], Iterator[Check]]]:
    if objective.is_evidence:
        yield _exact_posterior
    yield from (_value, _reaches_parameters, _scales, _paths)
    if objective.is_per_datum:
        yield _parts
    if unbiased:
        yield _mean_gradient


class Toy(nn.Module):
    """z ~ N(W₀, I), x|z ~ N(W z + b, σ²I) and q = N(V x + c, s²), two latent and three observed features; float64.

    `noise` `[K, N, 2]` fixes the standardized draws; `size` is that of the plate, of which the data are a subsample.
    """

    def __init__(self) -> None:
        super().__init__()
        self.prior = nn.Parameter(torch.tensor([0.2, -0.1]))
        self.weight = nn.Parameter(torch.tensor([[0.9, 0.1], [-0.3, 0.8], [0.5, 0.4]]))
        self.bias = nn.Parameter(torch.tensor([0.1, 0.0, -0.2]))
        self.encode = nn.Parameter(torch.tensor([[0.4, -0.2, 0.3], [0.1, 0.5, 0.2]]))
        self.shift = nn.Parameter(torch.tensor([0.3, -0.2]))
        self.log_scale = nn.Parameter(torch.tensor([-0.5, -0.4]))
        self.noise: Tensor | None = None
        self.size: int | None = None

    def plate(self, x: Tensor) -> Any:
        """The data plate."""
        return pyro.plate("data", self.size or len(x), subsample=torch.arange(len(x)))

    def model(self, x: Tensor) -> None:
        """p(z) p(x|z)."""
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(self.prior, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.T + self.bias, 0.7).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z|x)."""
        with self.plate(x):
            loc, scale = x @ self.encode.T + self.shift, self.log_scale.exp()
            pyro.sample("z", _Given(loc, scale.expand_as(loc), self.noise).to_event(1))

    def log_weights(self, x: Tensor, noise: Tensor) -> Tensor:
        """By hand, from torch's own densities: `[K, N]`."""
        normal = torch.distributions.Normal
        loc, scale = x @ self.encode.T + self.shift, self.log_scale.exp()
        z = loc + scale * noise
        log_p = normal(self.prior, 1.0).log_prob(z).sum(-1) + normal(z @ self.weight.T + self.bias, 0.7).log_prob(x).sum(-1)
        return log_p - normal(loc, scale).log_prob(z).sum(-1)


class _Given(dist.Normal):
    """A Normal whose standardized draws are given, or drawn where they are not."""

    def __init__(self, loc: Tensor, scale: Tensor, noise: Tensor | None) -> None:
        self.noise = noise
        super().__init__(loc, scale)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_Given":
        return _Given(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.noise)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        if self.noise is None:
            return super().rsample(torch.Size(sample_shape))
        whole = self.noise.numel() == self.loc.numel()  # else a run without particles, to count the plates
        return self.loc + self.scale * (self.noise if whole else self.noise[0]).reshape(self.loc.shape)


def _toy(objective: ObjectiveBase, num_data: int = 6) -> tuple[Toy, Tensor]:
    toy = Toy()
    toy.noise = torch.randn(objective.num_particles, num_data, 2)
    return toy, torch.randn(num_data, 3)


def _gradient(objective: ObjectiveBase, module: nn.Module, model: Program, guide: Program, x: Tensor) -> tuple[Tensor, Tensor]:
    module.zero_grad()
    loss = objective.loss_and_grads(model, guide, x)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
    return loss, torch.cat([g.flatten() for g in grads])


def _equal(name: str, found: Tensor, expected: Tensor) -> Check:
    worst = (found - expected).abs().max().item()
    close = torch.allclose(found, expected, rtol=1e-7, atol=1e-9)
    return Check(name, close, f"differs by {worst:.3g}, found {_short(found)}, expected {_short(expected)}")


def _short(values: Tensor) -> str:
    return ", ".join(f"{v:.6g}" for v in values.flatten()[:3].tolist())


def _exact_posterior(objective: ObjectiveBase) -> Iterator[Check]:
    toy, x = _toy(objective)
    parts = (toy.weight.detach(), toy.bias.detach() + toy.weight.detach() @ toy.prior.detach(), torch.tensor(0.7))
    loc, tril = linear_gaussian.posterior(x, *parts)

    def guide(x: Tensor) -> None:
        with toy.plate(x):
            pyro.sample("z", dist.MultivariateNormal(loc + toy.prior.detach(), scale_tril=tril))

    exact = linear_gaussian.marginal(*parts).log_prob(x).sum()
    yield _equal("the bound is log p(x) at the exact posterior", -objective.loss(toy.model, guide, x), exact)


def _value(objective: ObjectiveBase) -> Iterator[Check]:
    if isinstance(objective, Objective):
        toy, x = _toy(objective)
        assert toy.noise is not None
        expected = objective.bound_function.value(toy.log_weights(x, toy.noise)).sum()
        yield _equal("the value is the bound of the log-weights", -objective.loss(toy.model, toy.guide, x), expected)


def _reaches_parameters(objective: ObjectiveBase) -> Iterator[Check]:
    toy, x = _toy(objective)
    _gradient(objective, toy, toy.model, toy.guide, x)
    bare = [name for name, p in toy.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    yield Check("a gradient reaches every parameter", not bare, f"none reaches {', '.join(bare)}")


def _scales(objective: ObjectiveBase) -> Iterator[Check]:
    toy, x = _toy(objective)
    loss, gradient = _gradient(objective, toy, toy.model, toy.guide, x)
    scaled = [poutine.scale(program, scale=0.25) for program in (toy.model, toy.guide)]
    found = _gradient(objective, toy, scaled[0], scaled[1], x)
    yield _equal("a scale multiplies the bound", found[0], 0.25 * loss)
    yield _equal("a scale multiplies the gradient", found[1], 0.25 * gradient)
    toy.size = 10 * len(x)
    found = _gradient(objective, toy, toy.model, toy.guide, x)
    yield _equal("subsampling multiplies the bound", found[0], 10 * loss)
    yield _equal("subsampling multiplies the gradient", found[1], 10 * gradient)


def _parts(objective: ObjectiveBase) -> Iterator[Check]:
    toy, x = _toy(objective)
    noise = toy.noise
    assert noise is not None
    loss, gradient = _gradient(objective, toy, toy.model, toy.guide, x)
    found = []
    for index in (torch.tensor([4, 1]), torch.tensor([0, 5, 2, 3])):
        toy.noise = noise[:, index]
        found.append(_gradient(objective, toy, toy.model, toy.guide, x[index]))
    yield _equal("a batch's bound is the sum over its data", found[0][0] + found[1][0], loss)
    yield _equal("a batch's gradient is the sum over its data", found[0][1] + found[1][1], gradient)


def _paths(objective: ObjectiveBase) -> Iterator[Check]:
    toy, x = _toy(objective)
    loss, gradient = _gradient(objective, toy, toy.model, toy.guide, x)
    toy.zero_grad()
    differentiable = objective(toy.model, toy.guide)(x)
    differentiable.backward()
    found = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in toy.parameters()])
    yield _equal("the differentiable loss is the loss", differentiable.detach(), loss)
    yield _equal("the differentiable loss has its gradient", found, gradient)
    step = SVI(toy.model, toy.guide, pyro.optim.SGD({"lr": 0.0}), objective).step(x)
    yield _equal("SVI's loss is the loss", torch.tensor(step), loss)


def _mean_gradient(objective: ObjectiveBase, replicates: int = 200, num_data: int = 50) -> Iterator[Check]:
    """Paired replicates at two places, near the posterior and away from it."""
    bound = objective.bound_function if isinstance(objective, Objective) else None
    reference = Objective(bound, Pathwise()) if bound is not None else _Attached(objective)
    toy, x = Toy(), torch.randn(1, 3).expand(num_data, 3)
    differences = []
    for _ in range(replicates):
        toy.noise = torch.randn(objective.num_particles, num_data, 2)
        one = _gradient(objective, toy, toy.model, toy.guide, x)[1]
        differences.append((one - _gradient(reference, toy, toy.model, toy.guide, x)[1]) / num_data)
    gaps = torch.stack(differences)
    z = gaps.mean(0).abs() / (gaps.std(0) / math.sqrt(replicates) + 1e-9)
    yield Check("the mean gradient is the bound's", bool(z.max() < 5), f"off by {z.max():.1f} standard errors")


class _Attached(ObjectiveBase):
    """The derivative of an objective's own value."""

    def __init__(self, objective: ObjectiveBase) -> None:
        super().__init__(objective.num_particles)
        self.objective = objective

    def estimate(self, traces: Traces) -> Bound:
        """The value, as its own surrogate."""
        value = self.objective.estimate(traces).value
        return Bound(value, value)
