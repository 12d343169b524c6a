"""Where pyroae and Pyro differ on purpose: the values that docs/differences-from-pyro.md works out
by hand.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.rejection_gamma import RejectionGamma
from pyro.infer import ReweightedWakeSleep, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyroae.objectives import OBJECTIVES, AnalyticKL, TraceELBO
from tests.objectives.test_guide_terms import HALF, automatic, model, positive

pytestmark = pytest.mark.usefixtures("float64")
X = (0.5, -1.0, 2.0)


def grads(objective: Any, program: Any, guide: Any, parameter: Tensor, *args: Any) -> float:
    module = torch.nn.Module()
    module.register_parameter("p", parameter)  # type: ignore[arg-type]

    def announced(*args: Any) -> None:
        pyro.module("q", module)
        guide(*args)

    parameter.grad = None
    pyro.set_rng_seed(1)
    objective.loss_and_grads(program, announced, *args)
    assert parameter.grad is not None
    return -parameter.grad.sum().item()


def test_deltas_of_autoguides_under_a_mean_field_kl() -> None:
    """Pyro's KL of a Delta leaves out its log-density −u: Σ u more, 0.75 in the mean."""
    x = torch.tensor(X)
    guide = automatic(x, x / 2, torch.full((3,), HALF))
    assert AnalyticKL().loss(positive, guide, x) == pytest.approx(5.109, abs=1e-3)
    losses = torch.tensor([TraceMeanField_ELBO().loss(positive, guide, x) for _ in range(300)])
    assert losses.mean().item() == pytest.approx(
        5.109 + 0.75, abs=4.5 * losses.std().item() / math.sqrt(300)
    )
    assert losses.std() > 1


def test_reweighted_wake_sleep_through_dependent_sites() -> None:
    """z₁ = m + ε₁, z₂ = z₁ + ε₂: ∂_m log q at fixed draws is ε₁; Pyro's is ε₁ + ε₂ at K = 1."""

    def program() -> None:
        one = pyro.sample("one", dist.Normal(0.0, 1.0))
        two = pyro.sample("two", dist.Normal(one, 1.0))
        pyro.sample("x", dist.Normal(two, 1.0), obs=torch.tensor(1.0))

    m = torch.nn.Parameter(torch.tensor(0.0))

    def guide() -> None:
        one = pyro.sample("one", dist.Normal(m, 1.0))
        pyro.sample("two", dist.Normal(one, 1.0))

    pyro.set_rng_seed(1)
    first, second = torch.randn(()).item(), torch.randn(()).item()
    ours = grads(OBJECTIVES["rws"](num_particles=1), program, guide, m)
    pyros = ReweightedWakeSleep(num_particles=2, vectorize_particles=False, insomnia=1.0)
    assert ours == pytest.approx(first, rel=1e-12)
    pyro.set_rng_seed(1)
    noise = torch.stack([torch.stack([torch.randn(()), torch.randn(())]) for _ in range(2)])
    one, two = noise[:, 0], noise.sum(1)
    normal = dist.Normal(0.0, 1.0)
    log_w = normal.log_prob(one) + normal.log_prob(1 - two) - normal.log_prob(noise[:, 0])
    weight = log_w.softmax(0)
    assert grads(pyros, program, guide, m) == pytest.approx(
        (weight * noise.sum(1)).sum().item(), rel=1e-9
    )
    assert abs(second) > 0.01


def test_factors_that_are_said_to_be_no_path() -> None:
    """A factor −3 log σ(.2) with has_rsample=False: 9 (1 − σ) by pyroae; Pyro multiplies −3 (1 − σ)
    by Σ log p(x).
    """
    logit, x = torch.nn.Parameter(torch.tensor(0.2)), torch.tensor(X)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, HALF))
            pyro.factor(
                "loss",
                -3.0 * torch.nn.functional.logsigmoid(logit).expand(len(x)),
                has_rsample=False,
            )

    slope = 1 - torch.tensor(0.2).sigmoid().item()
    assert grads(TraceELBO(), model, guide, logit, x) == pytest.approx(9 * slope, rel=1e-10)
    log_p = dist.Normal(0.0, math.sqrt(2)).log_prob(x).sum().item()
    assert grads(Trace_ELBO(), model, guide, logit, x) == pytest.approx(
        -3 * slope * log_p, rel=1e-10
    )
    assert (9 * slope, -3 * slope * log_p) == pytest.approx((4.051, 6.900), abs=1e-3)


def test_rejection_samplers_in_an_event() -> None:
    """z ~ Gamma(2, 1), x ~ Poisson(z), x = 5, q = RejectionGamma(1.1, 1.4).to_event(1)."""
    size = 60_000
    a = torch.nn.Parameter(torch.full((size, 1), 1.1))

    def program() -> None:
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Gamma(torch.full((size, 1), 2.0), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(z).to_event(1), obs=torch.full((size, 1), 5.0))

    def guide() -> None:
        with pyro.plate("data", size):
            pyro.sample("z", RejectionGamma(a, torch.tensor(1.4)).to_event(1))

    one = torch.tensor(1.1, requires_grad=True)
    elbo = (
        (7 - one) * (torch.digamma(one) - math.log(1.4))
        - 0.6 * one / 1.4
        - one * math.log(1.4)
        + torch.lgamma(one)
    )
    (exact,) = torch.autograd.grad(elbo, one)
    assert exact.item() == pytest.approx(8.028, abs=1e-3)
    assert grads(TraceELBO(), program, guide, a) / size == pytest.approx(exact.item(), abs=0.15)
    assert grads(Trace_ELBO(), program, guide, a) / size == pytest.approx(9.12, abs=0.15)
