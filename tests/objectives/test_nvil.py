"""NVIL against enumeration: the mean and the variance of its gradient, and the gradient of its
baseline; broken copies of it are caught.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyroae.errors import ConfigError, ProgramError
from pyroae.evaluation.gradient_lab.control_training import train_controls
from pyroae.objectives import ELBO, IWAE, Bound, Objective
from pyroae.objectives.named import nvil
from pyroae.objectives.nvil import NVIL, Baseline
from pyroae.programs.sites import Program
from pyroae.weights import reduce_log_weights
from tests.caught import assert_caught
from tests.conftest import sample_of

VALUES = torch.tensor([-1.0, 0.0, 2.0, 3.0], dtype=torch.float64)
REPEATS = 50_000


class Toy:
    """z ~ Bernoulli(0.3), x|z ~ N(2 z, 1), q(z|x) = Bernoulli(logit), with a logit for each datum;
    x has each of `VALUES` many times.

    Args:
        repeats: How often.
        scale: Of all sites of the plate.
        observed: Whether x is observed, by a mask.
    """

    def __init__(self, repeats: int = REPEATS, scale: float = 1.0, observed: bool = True) -> None:
        self.x = VALUES.repeat_interleave(repeats)
        self.logit = torch.full_like(self.x, 0.4, requires_grad=True)
        self.scale, self.observed = scale, observed

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.scale(scale=self.scale):
            z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.3).expand(len(x))))
            with poutine.mask(mask=self.observed):
                pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.scale(scale=self.scale):
            pyro.sample("z", dist.Bernoulli(logits=self.logit))

    def terms(self) -> tuple[Tensor, Tensor, Tensor]:
        """q(z), log w and ∂ log q for each value of x and each z, `[2, V]`."""
        z = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        logit = torch.tensor(0.4, dtype=torch.float64)
        log_q = dist.Bernoulli(logits=logit).log_prob(z)
        log_lik = dist.Normal(2 * z, 1.0).log_prob(VALUES) * self.observed
        log_weight = dist.Bernoulli(probs=torch.tensor(0.3).double()).log_prob(z) + log_lik - log_q
        return log_q.exp(), log_weight, z - logit.sigmoid()

    def exact(self) -> Tensor:
        """The gradient of the ELBO, `[V]`."""
        probs, log_weight, scores = self.terms()
        return self.scale * (probs * log_weight * scores).sum(0)

    def variance(self, baseline: Tensor) -> Tensor:
        """The variance of the gradient for one particle, at a baseline `[V]`, `[V]`."""
        probs, log_weight, scores = self.terms()
        gradient = self.scale * (log_weight - baseline) * scores
        return (probs * gradient**2).sum(0) - (probs * gradient).sum(0) ** 2

    def gradients(self, objective: Objective) -> Tensor:
        """One gradient for each datum, `[V, repeats]`."""
        surrogate = objective.bound(self.model, self.guide, self.x).surrogate
        (gradient,) = torch.autograd.grad(surrogate, self.logit)
        return gradient.unflatten(0, (len(VALUES), -1))

    def baseline(self, objective: Objective) -> Tensor:
        """The baseline at each value of x, `[V]`."""
        controls: Any = objective.controls
        with torch.no_grad():
            return controls(VALUES[:, None]).expand(len(VALUES))


def trained(objective: Objective, toy: Toy, steps: int = 600) -> Objective:
    """With a baseline that was trained on a small copy of the toy."""
    small = Toy(50, toy.scale, toy.observed)
    train_controls(objective, small.model, small.guide, (small.x,), steps=steps, seed=1)
    return objective


TOYS: tuple[dict[str, Any], ...] = ({}, {"scale": 3.0}, {"observed": False})
BASELINES = ((8, 0), (8, 150), (0, 150))
"""The number of hidden units, and of steps of training."""


@pytest.mark.parametrize(
    ("baseline", "num_particles", "toy"), sample_of(product(BASELINES, (1, 3), TOYS), 5)
)
def test_mean_and_variance_are_those_of_enumeration(
    baseline: tuple[int, int], num_particles: int, toy: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    hidden, steps = baseline
    program = Toy(**toy)
    objective = trained(nvil(num_particles, hidden=hidden), program, steps)
    gradients = program.gradients(objective)
    variance = program.variance(program.baseline(objective)) / num_particles
    error = (variance / REPEATS).sqrt()
    assert ((gradients.mean(1) - program.exact()).abs() <= 5 * error + 1e-12).all()
    squares = (gradients - program.exact()[:, None]) ** 2
    spread = squares.std(1) / REPEATS**0.5
    assert ((squares.mean(1) - variance).abs() <= 5 * spread + 1e-9).all()


@pytest.mark.slow
def test_a_baseline_of_the_data_reduces_the_variance() -> None:
    """None 1.80, a constant 0.17, a network 0.12; 0.11 at the mean of log w, which it learns."""
    toy = Toy()
    none = toy.variance(torch.zeros(4)).mean()
    constant, network = (
        toy.variance(toy.baseline(trained(nvil(hidden=hidden), toy, 2000))).mean()
        for hidden in (0, 8)
    )
    assert network < 0.8 * constant < none / 8
    probs, log_weight, _ = toy.terms()
    mean = (probs * log_weight).sum(0)
    assert network == pytest.approx(toy.variance(mean).mean().item(), rel=0.3)


def controls_of(objective: Objective) -> Baseline:
    assert isinstance(objective.controls, Baseline)
    return objective.controls


def gradients_of_controls(objective: Objective, toy: Toy) -> list[Tensor]:
    torch.manual_seed(5)
    surrogate = objective.bound(toy.model, toy.guide, toy.x).surrogate
    return list(torch.autograd.grad(surrogate, list(controls_of(objective).parameters())))


def of_squared_error(objective: Objective, toy: Toy, weight: float) -> list[Tensor]:
    """What ψ and c descend, by the same draws."""
    controls = controls_of(objective)
    torch.manual_seed(5)
    guide = poutine.trace(toy.guide).get_trace(toy.x)
    model = poutine.trace(poutine.replay(toy.model, guide)).get_trace(toy.x)
    log_weight = sum(model.nodes[name]["fn"].log_prob(model.nodes[name]["value"]) for name in "xz")
    log_weight = log_weight - guide.nodes["z"]["fn"].log_prob(guide.nodes["z"]["value"])
    errors = (log_weight.detach() - controls(toy.x[:, None])) / controls.unit
    return list(torch.autograd.grad(-weight * (errors**2).sum(), list(controls.parameters())))


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_baseline_descends_its_squared_error(weight: float) -> None:
    toy = Toy(10)
    objective = trained(nvil(hidden=4, weight=weight), toy, 10)
    found = gradients_of_controls(objective, toy)
    for one, other in zip(found, of_squared_error(objective, toy, weight), strict=True):
        torch.testing.assert_close(one, other)


def test_the_signal_is_divided_by_its_size_on_request() -> None:
    """By max(1, σ); what it learns of σ² is the mean squared signal."""
    toy = Toy(2000, scale=1.0)
    plain, normalized = nvil(hidden=0), nvil(hidden=0, normalize=True)
    toy.gradients(plain)
    toy.gradients(normalized)
    controls = controls_of(normalized)
    assert controls.variance is not None
    for factor in (0.5, 9.0):
        with torch.no_grad():
            controls.variance.fill_(factor / controls.unit.item() ** 2)
        torch.manual_seed(1)
        gradients = toy.gradients(plain)
        torch.manual_seed(1)
        torch.testing.assert_close(
            toy.gradients(normalized), gradients / max(1.0, factor**0.5), rtol=1e-6, atol=1e-9
        )
    trained(normalized, toy, 1000)
    probs, log_weight, _ = toy.terms()
    errors = (log_weight - toy.baseline(normalized)) / controls.unit
    assert controls.variance.item() == pytest.approx(
        (probs * errors**2).sum(0).mean().item(), rel=0.1
    )
    assert NVIL().unbiased(ELBO(2))
    assert not NVIL(normalize=True).unbiased(ELBO(2))


# What is caught.


@dataclass(frozen=True)
class OfTheDraw(NVIL):
    """Its baseline depends on z."""

    def _baseline(self, baseline: Baseline, args: tuple[Any, ...], log_weight: Tensor) -> Tensor:
        return super()._baseline(baseline, args, log_weight) + 0.5 * log_weight


@dataclass(frozen=True)
class SignalNotDetached(NVIL):
    """The baseline follows the score terms too."""

    def _signal(self, baseline: Baseline, error: Tensor) -> Tensor:
        return error


@dataclass(frozen=True)
class WrongSign(NVIL):
    """The baseline is added."""

    def _signal(self, baseline: Baseline, error: Tensor) -> Tensor:
        return -super()._signal(baseline, error)


@dataclass(frozen=True)
class ErrorOfPrograms(NVIL):
    """The squared error is one of model and guide too, as where log w is not detached in it."""

    def estimate_on(self, objective: Any, *programs: Any) -> Bound:
        value, surrogate = super().estimate_on(objective, *programs)
        log_weight = reduce_log_weights(objective.run(*programs)).log_weight
        return Bound(value, surrogate - (log_weight**2).mean(0).sum())


@pytest.mark.parametrize("broken", [OfTheDraw, WrongSign, ErrorOfPrograms])
def test_a_broken_copy_is_caught(broken: type[NVIL]) -> None:
    """The original passes all checks: tests/test_estimator_pages.py."""
    on_bits = type("OnBits", (broken,), {"kinds": frozenset({"binary"})})
    assert_caught(Objective(ELBO(2), on_bits(4)), "mean gradient", by=("enumerated_means",))
    toy = Toy()
    objective = trained(Objective(ELBO(1), broken(4)), toy, 5)
    gradients = toy.gradients(objective)
    error = gradients.std(1) / REPEATS**0.5
    assert ((gradients.mean(1) - toy.exact()).abs() > 5 * error).any()


def test_a_signal_that_is_not_detached_is_caught() -> None:
    toy = Toy(10)
    objective = trained(Objective(ELBO(1), SignalNotDetached(4)), toy, 10)
    found, wanted = gradients_of_controls(objective, toy), of_squared_error(objective, toy, 1.0)
    assert any(not torch.allclose(*pair) for pair in zip(found, wanted, strict=True))


# What is refused.


def without_arguments() -> tuple[Program, Program]:
    def model() -> None:
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Bernoulli(0.5)), 1.0), obs=ones)

    def guide() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(pyro.param("p", torch.tensor(0.5))))

    ones = torch.ones(3)
    return model, guide


def with_one(x: Any) -> tuple[Program, Program]:
    model, guide = without_arguments()
    return (lambda x: model()), (lambda x: guide())


@pytest.mark.parametrize(
    ("programs", "args", "kwargs"),
    [
        (without_arguments(), (), {}),
        (with_one(0), (torch.ones(3, dtype=torch.long),), {}),
        (with_one(0), (torch.ones(5),), {}),
        (with_one(0), (torch.tensor(1.0),), {}),
        (with_one(0), (), {"x": torch.ones(3)}),
    ],
)
def test_programs_without_data_for_the_baseline_are_refused(
    programs: tuple[Program, Program], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(ProgramError, match=r"floating-point tensor \[N, ...\] of the 3 data"):
        nvil().bound(*programs, *args, **kwargs)
    assert nvil(hidden=0).bound(*programs, *args, **kwargs).value.isfinite()


@pytest.mark.parametrize(
    "argument",
    [
        {"x": torch.ones(3, 2), "y": torch.ones(3, dtype=torch.long)},
        [torch.ones(3), {"z": torch.ones(3, 1, 1)}],
        torch.tensor([[1.0, float("nan")]]).expand(3, 2),
    ],
)
def test_data_in_containers_and_with_missing_values(argument: Any) -> None:
    objective = nvil(hidden=4)
    value, surrogate = objective.bound(*with_one(0), argument)
    assert value.isfinite()
    assert surrogate.isfinite()
    network = controls_of(objective).network
    assert network is not None
    assert network[0].in_features == 2


def test_data_of_another_width_are_refused() -> None:
    objective = nvil(hidden=4)
    objective.bound(*with_one(0), torch.ones(3, 2))
    with pytest.raises(ProgramError, match="made for data of 2 numbers each, not of 5"):
        objective.bound(*with_one(0), torch.ones(3, 5))
    objective.forget_controls()
    objective.bound(*with_one(0), torch.ones(3, 5))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Objective(IWAE(2), NVIL()), "defined for the ELBO, not for IWAE"),
        (lambda: NVIL(hidden=-1), "hidden must be"),
        (lambda: nvil(weight=0.0), "must be positive"),
    ],
)
def test_settings_are_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_sites_are_refused_by_name() -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Bernoulli(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("w", dist.Bernoulli(pyro.param("p", torch.tensor(0.5))))

    with pytest.raises(ProgramError, match="latent site 'w' lies outside"):
        nvil().bound(model, guide, torch.ones(3))

    class Moving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.end = nn.Parameter(torch.tensor(2.0))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Uniform(torch.zeros(len(x)), self.end))

    system = Moving()
    with pytest.raises(ProgramError, match="at the site 'z'"):
        nvil().bound(system.model, system.guide, torch.ones(3))
