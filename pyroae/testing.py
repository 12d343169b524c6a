"""Conformance checks of ELBO estimators against oracles, for user-defined objectives as well."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor, nn

from pyroae import linear_gaussian
from pyroae.objectives.base import Bound, ObjectiveBase
from pyroae.objectives.bounds import IWAE
from pyroae.objectives.gradients import Pathwise
from pyroae.objectives.pair import Objective
from pyroae.programs.paired_traces import Traces
from pyroae.programs.sites import Program
from pyroae.runtime.randomness import fork_random

REPLICATES, DATA = 100, 100
"""Sizes of a mean over draws: the number of runs, and of copies of one datum in each run."""


class ConformanceError(AssertionError):
    """An objective fails oracles; the message names each with its figures."""


@dataclass(frozen=True)
class Check:
    """The result of one oracle.

    Attributes:
        name: What the oracle asserts.
        passed: Whether the assertion holds.
        detail: The figures, such as the difference in standard errors.

    >>> check_objective(Objective(IWAE(2)))[0].name
    'the bound is log p(x) at the exact posterior'
    """

    name: str
    passed: bool
    detail: str


def check_objective(
    objective: ObjectiveBase, *, unbiased: bool | None = None, seed: int = 0
) -> list[Check]:
    """Check an objective against every oracle that applies, in float64.

    The oracles use a linear-Gaussian program, for which closed forms exist:

    - Value: it is F of hand-computed log-weights (for a pair) and log p(x) at the exact posterior.
      Its mean is the ELBO, or below log p(x); for IWAE E exp F = p(x). It changes with K as claimed
      (K against 2K, paired).
    - Gradient: it reaches every parameter. Its mean is the gradient of the closed-form ELBO, or the
      mean of the pathwise estimator of the same bound, or of the estimators that a biased one names
      (`Gradient.same_mean`, paired). At the exact posterior its mean is ∂ log p(x) for θ and 0 for
      φ.
    - Structure: subsampling and scales multiply the bound and do not enter it. A batch is the sum
      of its parts in any order. The order of the particles has no effect. SVI, the differentiable
      loss and the bound agree.

    A mean over draws may deviate by 5 standard errors. The claims of the objective (`is_evidence`,
    `is_elbo`, `is_per_datum`, `is_symmetric`), of its bound (`is_lower`, `trend`) and of its
    gradient (`unbiased`, `same_mean`) select the oracles: what is not claimed is not checked.

    Args:
        objective: The objective.
        unbiased: Whether the mean gradient is the gradient of the bound's mean; None for the claim
            of the pair's gradient, or for `is_elbo` where the objective is not a pair.
        seed: The seed of all draws.

    Returns:
        The results of the oracles, all passed.

    Raises:
        ConformanceError: Oracles failed; the message names each of them.

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
            checks = [
                check for oracle in _oracles(objective, unbiased) for check in oracle(objective)
            ]
    finally:
        torch.set_default_dtype(before)
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.passed]
    if failed:
        raise ConformanceError("; ".join(failed))
    return checks


def _oracles(
    objective: ObjectiveBase, unbiased: bool | None
) -> Iterator[Callable[[ObjectiveBase], Iterator[Check]]]:
    """The oracles that apply to an objective by its claims."""
    pair = objective if isinstance(objective, Objective) else None
    if objective.is_evidence:
        yield _exact_posterior
    # The slopes of a bound that is not smooth are discontinuous where all weights are equal.
    if objective.is_evidence and (pair is None or pair.bound_function.smooth):
        yield _gradient_at_exact_posterior
    yield from (_value, _mean_value, _reaches_parameters, _scales, _paths)
    if pair is not None and pair.bound_function.trend is not None:
        yield _trend
    if objective.is_per_datum:
        yield _parts
    if objective.is_symmetric:
        yield _particles
    if unbiased or (unbiased is None and objective.is_elbo):
        yield _mean_gradient
    elif pair is not None and pair.gradient.same_mean(pair.bound_function):
        yield _stated_mean


class Toy(nn.Module):
    """A linear-Gaussian program with two latent and three observed features.

        z ~ N(W₀, I),   x|z ~ N(W z + b, σ²I),   q(z|x) = N(V x + c, diag s²)

    Attributes:
        prior: W₀, shape `[2]`.
        weight: W, shape `[3, 2]`.
        bias: b, shape `[3]`.
        encode: V, shape `[2, 3]`.
        shift: c, shape `[2]`.
        log_scale: log s, shape `[2]`.
        noise: The standardized draws of the guide, shape `[K, N, 2]`; None for random ones.
        size: The size of the data plate, of which the data are a subsample; None for their number.
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
        """Return the data plate.

        Args:
            x: Data, shape `[N, 3]`.

        Returns:
            A Pyro plate of `size` data with a subsample of N.

        >>> Toy().plate(torch.zeros(4, 3)).size
        4
        """
        return pyro.plate("data", self.size or len(x), subsample=torch.arange(len(x)))

    def model(self, x: Tensor) -> None:
        """Run p(z) p(x|z) as a Pyro program on x `[N, 3]`."""
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(self.prior, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.T + self.bias, 0.7).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Run q(z|x) as a Pyro program on x `[N, 3]`."""
        with self.plate(x):
            loc, scale = x @ self.encode.T + self.shift, self.log_scale.exp()
            pyro.sample("z", _FixedNoise(loc, scale.expand_as(loc), self.noise).to_event(1))

    def elbo(self, x: Tensor) -> Tensor:
        """Return the ELBO in closed form.

        Args:
            x: Data, shape `[N, 3]` or `[3]`.

        Returns:
            The ELBO of each datum, in nats, shape `[N]` or `[]`.

        >>> Toy().elbo(torch.zeros(4, 3)).shape
        torch.Size([4])
        """
        loc, variance = x @ self.encode.T + self.shift, (2 * self.log_scale).exp()
        normal = torch.distributions.Normal(loc @ self.weight.T + self.bias, 0.7)
        spread = (self.weight.square() @ variance).sum() / (2 * 0.7**2)
        rate = 0.5 * ((loc - self.prior).square() + variance - 1 - 2 * self.log_scale).sum(-1)
        return normal.log_prob(x).sum(-1) - spread - rate

    def log_weights(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return the log-weights, computed from torch's densities without Pyro.

        Args:
            x: Data, shape `[N, 3]`.
            noise: Standardized draws of the guide, shape `[K, N, 2]`.

        Returns:
            The log-weights, in nats, shape `[K, N]`.
        """
        normal = torch.distributions.Normal
        loc, scale = x @ self.encode.T + self.shift, self.log_scale.exp()
        z = loc + scale * noise
        log_p = normal(self.prior, 1.0).log_prob(z).sum(-1) + normal(
            z @ self.weight.T + self.bias, 0.7
        ).log_prob(x).sum(-1)
        return log_p - normal(loc, scale).log_prob(z).sum(-1)


class AtPosterior(Toy):
    """The model of `Toy` with the guide q = N(A x + c, L Lᵀ), initially the exact posterior.

    Attributes:
        matrix: A, shape `[2, 3]`.
        offset: c, shape `[2]`.
        tril: L, shape `[2, 2]`.
    """

    def __init__(self) -> None:
        super().__init__()
        del self.encode, self.shift, self.log_scale
        with torch.no_grad():
            ends = torch.cat([torch.zeros(1, 3), torch.eye(3)])
            loc, tril = linear_gaussian.posterior(ends, *self.linear_gaussian())
        loc = loc + self.prior.detach()
        self.matrix, self.offset = (
            nn.Parameter((loc[1:] - loc[0]).T.clone()),
            nn.Parameter(loc[0].clone()),
        )
        self.tril = nn.Parameter(tril.clone())

    def linear_gaussian(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return W, b and σ of the same p(x) under z ~ N(0, I).

        Returns:
            W, shape `[3, 2]`, b, shape `[3]`, and σ, shape `[]`.

        >>> [part.shape for part in AtPosterior().linear_gaussian()]
        [torch.Size([3, 2]), torch.Size([3]), torch.Size([])]
        """
        return self.weight, self.bias + self.weight @ self.prior, torch.tensor(0.7)

    def guide(self, x: Tensor) -> None:
        """Run q(z|x) as a Pyro program on x `[N, 3]`."""
        with self.plate(x):
            pyro.sample(
                "z", dist.MultivariateNormal(x @ self.matrix.T + self.offset, scale_tril=self.tril)
            )


class _FixedNoise(dist.Normal):
    """A Normal with given standardized draws, or random ones where `noise` is None."""

    def __init__(self, loc: Tensor, scale: Tensor, noise: Tensor | None) -> None:
        self.noise = noise
        super().__init__(loc, scale)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_FixedNoise":
        return _FixedNoise(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.noise)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        if self.noise is None:
            return super().rsample(torch.Size(sample_shape))
        # A trial run may have another number of particles than the noise.
        index = torch.arange(self.loc.numel()) % self.noise.numel()
        return self.loc + self.scale * self.noise.flatten()[index].reshape(self.loc.shape)


def _toy(objective: ObjectiveBase, num_data: int = 6) -> tuple[Toy, Tensor]:
    """A `Toy` with fixed noise, and data `[num_data, 3]`."""
    toy = Toy()
    toy.noise = torch.randn(objective.num_particles, num_data, 2)
    return toy, torch.randn(num_data, 3)


def _gradient(
    objective: ObjectiveBase, module: nn.Module, model: Program, guide: Program, x: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient with respect to all parameters as a vector."""
    module.zero_grad()
    loss = torch.tensor(objective.loss_and_grads(model, guide, x))
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
    return loss, torch.cat([g.flatten() for g in grads])


def _equal(name: str, actual: Tensor, expected: Tensor) -> Check:
    worst = (actual - expected).abs().max().item()
    close = torch.allclose(actual, expected, rtol=1e-7, atol=1e-9)
    return Check(
        name, close, f"differs by {worst:.3g}, found {_short(actual)}, expected {_short(expected)}"
    )


def _short(values: Tensor) -> str:
    return ", ".join(f"{v:.6g}" for v in values.flatten()[:3].tolist())


def _exact_posterior(objective: ObjectiveBase) -> Iterator[Check]:
    toy, x = AtPosterior(), torch.randn(6, 3)
    exact = linear_gaussian.marginal(*toy.linear_gaussian()).log_prob(x).sum()
    yield _equal(
        "the bound is log p(x) at the exact posterior",
        objective.bound(toy.model, toy.guide, x).value,
        exact,
    )


def _gradient_at_exact_posterior(objective: ObjectiveBase) -> Iterator[Check]:
    toy, x = AtPosterior(), torch.randn(1, 3).expand(DATA, 3)
    exact = -linear_gaussian.marginal(*toy.linear_gaussian()).log_prob(x[0])
    theta_gradient = torch.autograd.grad(exact, [toy.prior, toy.weight, toy.bias])
    expected = torch.cat(
        [*(g.flatten() for g in theta_gradient), torch.zeros(toy.matrix.numel() + 6)]
    )
    actual = torch.stack(
        [_gradient(objective, toy, toy.model, toy.guide, x)[1] for _ in range(REPLICATES // 2)]
    )
    yield _zero(
        "the mean gradient is that of log p(x) at the exact posterior", actual / DATA - expected
    )


def _value(objective: ObjectiveBase) -> Iterator[Check]:
    if isinstance(objective, Objective):
        toy, x = _toy(objective)
        assert toy.noise is not None
        expected = objective.bound_function.value(toy.log_weights(x, toy.noise)).sum()
        yield _equal(
            "the value is the bound of the log-weights",
            objective.bound(toy.model, toy.guide, x).value,
            expected,
        )


def _mean_value(objective: ObjectiveBase) -> Iterator[Check]:
    toy, x = Toy(), torch.randn(3)
    toy.requires_grad_(False)
    log_p = linear_gaussian.marginal(*AtPosterior().linear_gaussian()).log_prob(x)
    if isinstance(objective, Objective):
        draws = 400 * DATA
        log_weight = toy.log_weights(
            x.expand(draws, 3), torch.randn(objective.num_particles, draws, 2)
        )
        actual = objective.bound_function.value(log_weight)
    else:
        many = x.expand(DATA, 3)
        actual = torch.tensor(
            [-objective.loss(toy.model, toy.guide, many) / DATA for _ in range(REPLICATES)]
        )
    if objective.is_elbo:
        yield _zero("the mean value is the closed-form ELBO", (actual - toy.elbo(x))[:, None])
    bound = objective.bound_function if isinstance(objective, Objective) else None
    if isinstance(bound, IWAE):
        yield _zero("the mean of exp F is p(x)", ((actual - log_p).exp() - 1)[:, None])
    if objective.is_elbo or (bound is not None and bound.is_lower):
        yield _not_below("the mean value is below log p(x)", log_p - actual)


def _trend(objective: ObjectiveBase) -> Iterator[Check]:
    """Compare F of all 2K particles with the mean of F over the two halves."""
    assert isinstance(objective, Objective)
    bound, count, draws = objective.bound_function, objective.num_particles, 100 * DATA
    twice = dataclasses.replace(cast(Any, bound), num_particles=2 * count)
    toy, x = Toy(), torch.randn(3)
    with torch.no_grad():
        log_weight = toy.log_weights(x.expand(draws, 3), torch.randn(2 * count, draws, 2))
    change = (
        twice.value(log_weight)
        - (bound.value(log_weight[:count]) + bound.value(log_weight[count:])) / 2
    )
    if bound.trend == 0:
        yield _zero("the mean value is the same for every K", change[:, None])
    else:
        yield _not_below(
            f"the mean value never {'falls' if bound.trend == 1 else 'rises'} with K",
            (bound.trend or 0) * change,
        )


def _reaches_parameters(objective: ObjectiveBase) -> Iterator[Check]:
    toy, x = _toy(objective)
    _gradient(objective, toy, toy.model, toy.guide, x)
    bare = [
        name for name, p in toy.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ]
    yield Check("a gradient reaches every parameter", not bare, f"none reaches {', '.join(bare)}")


def _scales(objective: ObjectiveBase) -> Iterator[Check]:
    toy, x = _toy(objective)
    loss, gradient = _gradient(objective, toy, toy.model, toy.guide, x)
    scaled = [poutine.scale(program, scale=0.25) for program in (toy.model, toy.guide)]
    actual = _gradient(objective, toy, scaled[0], scaled[1], x)
    yield _equal("a scale multiplies the bound", actual[0], 0.25 * loss)
    yield _equal("a scale multiplies the gradient", actual[1], 0.25 * gradient)
    toy.size = 10 * len(x)
    actual = _gradient(objective, toy, toy.model, toy.guide, x)
    yield _equal("subsampling multiplies the bound", actual[0], 10 * loss)
    yield _equal("subsampling multiplies the gradient", actual[1], 10 * gradient)


def _parts(objective: ObjectiveBase) -> Iterator[Check]:
    toy, x = _toy(objective)
    noise = toy.noise
    assert noise is not None
    loss, gradient = _gradient(objective, toy, toy.model, toy.guide, x)
    actual = []
    for index in (torch.tensor([4, 1]), torch.tensor([0, 5, 2, 3])):
        toy.noise = noise[:, index]
        actual.append(_gradient(objective, toy, toy.model, toy.guide, x[index]))
    yield _equal("a batch's bound is the sum over its data", actual[0][0] + actual[1][0], loss)
    yield _equal(
        "a batch's gradient is the sum over its data", actual[0][1] + actual[1][1], gradient
    )
    index = torch.tensor([4, 1, 0, 5, 2, 3])
    toy.noise = noise[:, index]
    whole = _gradient(objective, toy, toy.model, toy.guide, x[index])
    yield _equal("the order of the data changes nothing in the bound", whole[0], loss)
    yield _equal("the order of the data changes nothing in the gradient", whole[1], gradient)


def _particles(objective: ObjectiveBase) -> Iterator[Check]:
    toy, x = _toy(objective)
    assert toy.noise is not None
    loss, gradient = _gradient(objective, toy, toy.model, toy.guide, x)
    toy.noise = toy.noise.roll(1, 0)
    actual = _gradient(objective, toy, toy.model, toy.guide, x)
    yield _equal("the particles may change places in the bound", actual[0], loss)
    yield _equal("the particles may change places in the gradient", actual[1], gradient)


def _paths(objective: ObjectiveBase) -> Iterator[Check]:
    toy, x = _toy(objective)
    loss, gradient = _gradient(objective, toy, toy.model, toy.guide, x)
    toy.zero_grad()
    differentiable = objective(toy.model, toy.guide)(x)
    differentiable.backward()
    actual = torch.cat(
        [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in toy.parameters()]
    )
    yield _equal("the differentiable loss is the loss", differentiable.detach(), loss)
    yield _equal("the differentiable loss has its gradient", actual, gradient)
    step = SVI(toy.model, toy.guide, pyro.optim.SGD({"lr": 0.0}), objective).step(x)
    yield _equal("SVI's loss is the loss", torch.tensor(step), loss)


def _mean_gradient(objective: ObjectiveBase) -> Iterator[Check]:
    pair = objective if isinstance(objective, Objective) else None
    reference = _Attached(objective) if pair is None else Objective(pair.bound_function, Pathwise())
    actual, expected, exact = _paired(objective, [(1.0, reference)])
    yield _zero("the mean gradient is the bound's", actual - expected)
    if objective.is_elbo:
        yield _zero("the mean gradient is that of the closed-form ELBO", actual - exact)


def _stated_mean(objective: ObjectiveBase) -> Iterator[Check]:
    assert isinstance(objective, Objective)
    bound = objective.bound_function
    parts = [
        (share, Objective(bound, gradient))
        for share, gradient in objective.gradient.same_mean(bound)
    ]
    actual, expected, _ = _paired(objective, parts)
    num_phi = sum(p.numel() for p in (Toy().encode, Toy().shift, Toy().log_scale))
    yield _zero(
        "the mean φ-gradient is the one that the gradient names", (actual - expected)[:, -num_phi:]
    )


def _paired(
    objective: ObjectiveBase, others: list[tuple[float, Any]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients per datum, from the same noise those of others, and that of the ELBO.

    Returns the objective's gradients `[R, P]`, the weighted sums of the others' `[R, P]`, and the
    gradient of the closed-form ELBO `[P]`.
    """
    toy, x = Toy(), torch.randn(1, 3).expand(DATA, 3)
    rows = []
    for _ in range(REPLICATES):
        toy.noise = torch.randn(objective.num_particles, DATA, 2)
        one = _gradient(objective, toy, toy.model, toy.guide, x)[1]
        sums = sum(
            share * _gradient(other, toy, toy.model, toy.guide, x)[1] for share, other in others
        )
        rows.append((one / DATA, torch.as_tensor(sums) / DATA))
    exact = torch.autograd.grad(-toy.elbo(x[0]), list(toy.parameters()))
    return (
        torch.stack([one for one, _ in rows]),
        torch.stack([sums for _, sums in rows]),
        torch.cat([g.flatten() for g in exact]),
    )


def _zero(name: str, replicates: Tensor) -> Check:
    """Whether the mean of replicates `[R, P]` is 0 in every column, to 5 standard errors."""
    z = replicates.mean(0).abs() / (replicates.std(0) / math.sqrt(len(replicates)) + 1e-9)
    return Check(name, bool(z.max() < 5), f"off by {z.max():.1f} standard errors")


def _not_below(name: str, replicates: Tensor) -> Check:
    """Whether the mean of replicates `[R]` is 0 or more, to 5 standard errors."""
    z = -replicates.mean() / (replicates.std() / math.sqrt(len(replicates)) + 1e-9)
    return Check(name, bool(z < 5), f"off by {z:.1f} standard errors")


class _Attached(ObjectiveBase):
    """An objective whose surrogate is another objective's value."""

    def __init__(self, objective: ObjectiveBase) -> None:
        super().__init__(objective.num_particles)
        self.objective = objective

    def estimate(self, traces: Traces) -> Bound:
        """Return the value as its own surrogate."""
        value = self.objective.estimate(traces).value
        return Bound(value, value)
