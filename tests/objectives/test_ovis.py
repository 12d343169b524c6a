"""OVIS, VarGrad and closed forms without a particle: by hand, by published figures, and broken."""

import math
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyroae.errors import ConfigError
from pyroae.objectives import (
    CIWAE,
    ELBO,
    IWAE,
    OBJECTIVES,
    TVO,
    Coefficients,
    Objective,
    Renyi,
    Score,
    parse_objective,
)
from pyroae.objectives.bounds import BoundFunction
from pyroae.objectives.named import vargrad
from pyroae.objectives.ovis import OVIS, OVISMonteCarlo, log_rest, ovis, ovis_mc
from pyroae.testing import check_objective
from tests.caught import assert_caught
from tests.test_estimator_pages import pages


@pytest.fixture(autouse=True)
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


# OVIS by hand, and its check values.


def test_the_coefficients_are_the_formula() -> None:
    log_weight = 3 * torch.randn(5, 7)
    weight = log_weight.softmax(0)
    for gamma in (0.0, 0.3, 1.0):
        c = OVIS(gamma).coefficients(IWAE(5), log_weight)
        assert c.learning is not None
        assert c.score is not None
        torch.testing.assert_close(
            c.learning + c.score, -torch.log(1 - weight) - (1 - gamma) * weight
        )


def test_it_is_the_score_with_the_sum_of_the_others_over_k_as_baseline() -> None:
    """d_k − c_k with d_k = log Ẑ − ŵ_k and c_k = log (1/K) Σ_{j≠k} w_j, written by a loop."""
    log_weight = torch.randn(4, 3)
    c = OVIS(0.0).coefficients(IWAE(4), log_weight)
    for k in range(4):
        others = torch.cat([log_weight[:k], log_weight[k + 1 :]]).exp().sum(0) / 4
        d = log_weight.exp().mean(0).log() - log_weight.softmax(0)[k]
        torch.testing.assert_close((c.learning + c.score)[k], d - others.log())  # type: ignore[operator]


def test_a_dominant_weight_is_exact() -> None:
    log_weight = torch.tensor([[0.0], [-800.0], [-801.0]])
    rest = -800.0 + math.log1p(math.exp(-1.0))
    assert log_rest(log_weight)[0].item() == pytest.approx(rest, rel=1e-14)
    small = log_rest(torch.tensor([[0.0], [-30.0]], dtype=torch.float32) - 100.0)
    assert small[1].item() == pytest.approx(-math.exp(-30.0), rel=1e-5)


def test_the_auxiliary_baseline_is_the_mean_over_replaced_draws() -> None:
    log_weight, others = torch.randn(4, 3), torch.randn(5, 3)
    first, second = OVISMonteCarlo(5).parts(log_weight, others)
    found = first - second
    for k in range(4):
        replaced = []
        for s in range(5):
            w = log_weight.clone()
            w[k] = others[s]
            replaced.append(w.exp().mean(0).log() - w.softmax(0)[k])
        d = log_weight.exp().mean(0).log() - log_weight.softmax(0)[k]
        torch.testing.assert_close(found[k], d - torch.stack(replaced).mean(0))


@pytest.mark.parametrize(
    ("name", "exponent"),
    [
        ("ovis:num_particles=2", 0.0),
        ("ovis-mc:num_particles=2,auxiliary=3", 0.3),
        pytest.param("ovis:num_particles=2", 0.3, marks=pytest.mark.slow),
        pytest.param("ovis-mc:num_particles=2,auxiliary=3", 0.0, marks=pytest.mark.slow),
    ],
)
def test_a_site_with_an_exponent_has_the_enumerated_gradient(name: str, exponent: float) -> None:
    logit, num = torch.tensor(2.0, requires_grad=True), 20_000
    mask = bool(exponent)

    def program(logit: Tensor) -> Tensor:
        with poutine.scale(scale=exponent or 1.0), poutine.mask(mask=mask):
            return pyro.sample("z", dist.Bernoulli(logits=logit))

    def model() -> None:
        with pyro.plate("data", num):
            z = program(torch.tensor(-0.5))
            pyro.sample("x", dist.Normal(1.5 * z, 1.0), obs=torch.ones(num))

    def guide() -> None:
        with pyro.plate("data", num):
            program(logit)

    bits = torch.tensor([0.0, 1.0])
    q, p = (dist.Bernoulli(logits=a).log_prob(bits) for a in (logit, torch.tensor(-0.5)))
    log_w = dist.Normal(1.5 * bits, 1.0).log_prob(torch.tensor(1.0)) + exponent * (p - q)
    pairs = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    bound = (q[pairs].sum(1).exp() * (log_w[pairs].logsumexp(1) - math.log(2))).sum()
    (expected,) = torch.autograd.grad(bound, logit)
    torch.manual_seed(0)
    objective, found = parse_objective(name), []
    for _ in range(40):
        surrogate = objective.bound(model, guide).surrogate / num
        found.append(torch.autograd.grad(surrogate, logit)[0])
    error = torch.stack(found).std() / math.sqrt(40)
    assert error < 0.05 * expected.abs()
    assert (torch.stack(found).mean() - expected).abs() < 4 * error


def moments(which: str, objective: Objective, size: int = 40_000) -> tuple[float, float, float]:
    """Mean, its standard error, and SNR of the φ-gradient on a toy of docs/estimators."""
    torch.manual_seed(1)
    phi = {"gaussian": pages.gaussian, "bernoulli": pages.bernoulli}[which](objective, size)["phi"]
    mean, std = phi.mean().item(), phi.std().item()
    return mean, std / math.sqrt(size), abs(mean) / std


@pytest.mark.parametrize(
    ("num_particles", "gamma", "mean", "snr"),
    [
        (8, 0.0, -0.0543, 1.75),
        pytest.param(64, 0.0, -0.00651, 5.61, marks=pytest.mark.slow),
        (8, 1.0, -0.463, None),
    ],
)
def test_check_values_of_the_gaussian_toy(
    num_particles: int, gamma: float, mean: float, snr: float | None
) -> None:
    found, error, ratio = moments("gaussian", ovis(num_particles, gamma))
    assert found == pytest.approx(mean, abs=5 * error + 5e-4)
    if snr is not None:
        assert ratio == pytest.approx(snr, rel=0.06)
        assert ratio > 10 * moments("gaussian", OBJECTIVES["vimco"](num_particles))[2]


@pytest.mark.parametrize(
    ("num_particles", "snr", "vimco"),
    [(8, 4.0, 0.40), pytest.param(64, 16.0, 0.146, marks=pytest.mark.slow)],
)
def test_check_values_of_the_bernoulli_toy(num_particles: int, snr: float, vimco: float) -> None:
    assert moments("bernoulli", ovis(num_particles))[2] == pytest.approx(snr, rel=0.15)
    assert moments("bernoulli", OBJECTIVES["vimco"](num_particles))[2] == pytest.approx(
        vimco, abs=0.025
    )


def test_the_value_of_the_monte_carlo_form_is_the_bound_of_the_first_draws() -> None:
    objective = ovis_mc(4, auxiliary=3)
    assert objective.evaluations == 7
    logits, x = torch.tensor([0.3, -0.4], requires_grad=True), torch.randn(2)
    drawn: list[Tensor] = []

    def model() -> None:
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(2)))
            drawn.append(z)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    value = objective.bound(model, guide).value
    z = drawn[-1]
    assert z.shape == (7, 2)
    q = torch.distributions.Bernoulli(logits=logits)
    log_w = torch.distributions.Normal(z, 1.0).log_prob(x) + math.log(0.5) - q.log_prob(z)
    torch.testing.assert_close(value, IWAE(4).value(log_w[:4]).sum().detach())


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"gamma of OVIS must be in \[0, 1\], not 1.5"):
        OVIS(1.5)
    with pytest.raises(ConfigError, match="OVIS needs num_particles of at least 2, not 1"):
        ovis(1)
    with pytest.raises(ConfigError, match="OVIS needs num_particles of at least 2, not 1"):
        ovis_mc(1)
    with pytest.raises(ConfigError, match="auxiliary of OVIS must be a whole number"):
        OVISMonteCarlo(0)
    with pytest.raises(ConfigError, match="OVIS is a gradient of IWAE; it is not defined for ELBO"):
        parse_objective("elbo+ovis", 4)


# Broken copies.


@dataclass(frozen=True)
class WrongSign(OVIS):
    """+ log(1 − ŵ_k)."""

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        right = super().coefficients(bound, log_weight)
        assert right.learning is not None
        return Coefficients(right.theta, score=right.score, learning=-right.learning)


@dataclass(frozen=True)
class WithoutOwnWeight(OVIS):
    """−log(1 − ŵ_k) alone at γ = 0: the estimator of γ = 1."""

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        right = super().coefficients(bound, log_weight)
        return Coefficients(right.theta, learning=right.learning)


@dataclass(frozen=True)
class WrongShare(OVIS):
    """Claims γ/2 · RWS."""

    def same_mean(self, bound: BoundFunction) -> Any:
        (one, path), (share, wake) = super().same_mean(bound)
        return ((one, path), (share / 2, wake))


@dataclass(frozen=True)
class OwnDrawInBaseline(OVISMonteCarlo):
    """The baseline's sum of others contains z_k."""

    def parts(self, log_weight: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.logaddexp(log_weight[:, None], others)
        learning = log_weight.logsumexp(0) - total.mean(1)
        return learning, log_weight.softmax(0) - (others - total).exp().mean(1)


@pytest.mark.parametrize(
    "broken", [WrongSign(), WithoutOwnWeight(), WrongShare(1.0), OwnDrawInBaseline(4)]
)
def test_broken_copies_are_caught(broken: Any) -> None:
    words = (
        "the mean gradient is that of the sum over all states|the mean φ-gradient is the one that"
    )
    by = ("enumerated_means",)
    assert_caught(Objective(IWAE(4), broken), f"({words}).*: off by", by, kinds={"binary"})


def test_every_gamma_conforms() -> None:
    named = {check.name for check in check_objective(ovis(3, gamma=0.4), kinds={"binary"})}
    assert "the mean φ-gradient is the one that the gradient names" in named


# VarGrad.


def test_vargrad_is_the_gradient_of_the_log_variance_loss() -> None:
    """−½ ∂ of the sample variance of log w, the draws stopped: equal draw by draw."""
    num_particles, x = 5, torch.randn(6)
    slope, logit = (torch.tensor(v, requires_grad=True) for v in (0.4, -0.2))
    drawn: list[Tensor] = []

    def model() -> None:
        with pyro.plate("data", 6):
            z = pyro.sample("z", dist.Bernoulli(0.3 * torch.ones(6)))
            drawn.append(z)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide() -> None:
        with pyro.plate("data", 6):
            pyro.sample("z", dist.Bernoulli(logits=slope * x + logit))

    for objective in (vargrad(num_particles), OBJECTIVES["score"](num_particles)):
        slope.grad = logit.grad = None
        objective.loss_and_grads(model, guide)
        q = torch.distributions.Bernoulli(logits=slope * x + logit)
        prior = torch.distributions.Bernoulli(0.3 * torch.ones(6))
        z = drawn[-1]
        log_w = torch.distributions.Normal(z, 1.0).log_prob(x) + prior.log_prob(z) - q.log_prob(z)
        loss = 0.5 * log_w.var(0).sum()
        expected = torch.autograd.grad(loss, [slope, logit])
        for found, value in zip((slope.grad, logit.grad), expected, strict=True):
            torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)


def test_the_variance_of_the_score_estimator() -> None:
    """.158 on the Gaussian toy at K = 8, where the score of mean 0 would add up to .470."""
    mean, _, snr = moments("gaussian", OBJECTIVES["score"](8))
    assert (mean / snr) ** 2 == pytest.approx(0.158, rel=0.05)


@pytest.mark.parametrize("bound", [ELBO(3), CIWAE(3, 1.0), Renyi(3, 1.0)])
def test_bounds_of_constant_slopes_leave_out_the_score_of_mean_zero(bound: BoundFunction) -> None:
    assert bound.constant_slopes
    torch.testing.assert_close(bound.slope(torch.randn(3, 4)), torch.full((3, 4), 1 / 3))
    assert Score().coefficients(bound, torch.randn(3, 4)).whole is None
    for other in (CIWAE(3, 0.9), Renyi(3, 0.5), IWAE(3), TVO(3)):
        assert not other.constant_slopes
        assert Score().coefficients(other, torch.randn(3, 4)).whole is not None


# F without a particle.


@pytest.mark.parametrize(
    "bound",
    [ELBO(5), Renyi(5, 0.5), Renyi(5, 2.0), Renyi(5, 1.0), Renyi(5, -math.inf), TVO(5)],
    ids=str,
)
@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_closed_forms_without_a_particle_are_the_loop(bound: BoundFunction, spread: float) -> None:
    log_weight, fill = spread * torch.randn(5, 8), spread * torch.randn(5, 8)
    for other in (None, fill):
        torch.testing.assert_close(
            bound.without(log_weight, other), BoundFunction.without(bound, log_weight, other)
        )
