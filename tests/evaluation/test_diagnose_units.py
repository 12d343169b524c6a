"""Units of any latent sites: without event dimensions, nested plates, another order in the guide,
flows and mixtures.
"""

import math
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms as T
from torch import Tensor

from pyroae.evaluation.diagnostics import diagnose
from pyroae.evaluation.mutual_information import information

X = torch.tensor([0.5, -1.0, 2.0, 0.3], dtype=torch.float64)
N = len(X)


def zero(value: float = 0.0) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def normal_kl(loc: Tensor, sd: float | Tensor) -> Tensor:
    return 0.5 * (loc.square() + torch.as_tensor(sd).square() - 1 - 2 * torch.as_tensor(sd).log())


def of_one_site(q: Any, p: Any) -> tuple[Any, Any]:
    """Programs with one latent site: q(x) and p as functions of x."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", p(x))
            loc = z.sum(-1) if p(x).event_shape else z
            pyro.sample("x", dist.Normal(loc.double().reshape(*loc.shape), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", q(x))

    return model, guide


def test_sites_without_an_event_dimension() -> None:
    """N data were N units, none of them active."""
    model, guide = of_one_site(
        lambda x: dist.Normal(0.5 * x, 0.7), lambda x: dist.Normal(zero(), 1.0)
    )
    found = diagnose(model, guide, X, num_particles=5, seed=0)
    torch.testing.assert_close(found.kl_per_unit, normal_kl(0.5 * X, 0.7).mean().reshape(1))
    torch.testing.assert_close(found.activity, (0.25 * X.var(correction=0)).reshape(1))
    assert found.active_units == 1
    units = information(model, guide, X, seed=0).units
    assert [(unit.index, unit.collapsed) for unit in units] == [(0, False)]


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("num_particles", [1, 4])
def test_nested_plates(outer: bool, num_particles: int) -> None:
    """Three parts of two elements a datum, the plate of the parts on either side of the data's."""
    of_data, of_parts = (-2, -1) if outer else (-1, -2)
    weight = torch.tensor([[1.0, 0.0], [0.5, 2.0], [0.0, 0.1]], dtype=torch.float64)

    def loc(x: Tensor) -> Tensor:
        values = x[:, None, None] * weight
        return values if outer else values.movedim(1, 0)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=of_data), pyro.plate("parts", 3, dim=of_parts):
            z = pyro.sample("z", dist.Normal(zero(), 1.0).expand([2]).to_event(1))
            pyro.sample(
                "x", dist.Normal(z.sum(-1), 1.0), obs=x[:, None] if outer else x.expand(3, -1)
            )

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=of_data), pyro.plate("parts", 3, dim=of_parts):
            pyro.sample("z", dist.Normal(loc(x), 0.5).to_event(1))

    found = diagnose(model, guide, X, num_particles=num_particles, seed=0)
    flat = X[:, None] * weight.flatten()
    torch.testing.assert_close(found.kl_per_unit, normal_kl(flat, 0.5).mean(0))
    torch.testing.assert_close(found.activity, flat.var(0, correction=0), rtol=1e-9, atol=1e-12)
    assert found.active_units == 4


def chain(x: Tensor, first: str = "b") -> None:
    """The exact posterior of a ~ N(0, 1), b ~ N(a, 1), x ~ N(b, 1), drawn from either end."""
    with pyro.plate("data", len(x)):
        if first == "b":
            b = pyro.sample("b", dist.Normal(x * 2 / 3, math.sqrt(2 / 3)))
            pyro.sample("a", dist.Normal(b / 2, math.sqrt(1 / 2)))
        else:
            a = pyro.sample("a", dist.Normal(x / 3, math.sqrt(2 / 3)))
            pyro.sample("b", dist.Normal((a + x) / 2, math.sqrt(1 / 2)))


def chain_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(zero(), 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(b, 1.0), obs=x)


@pytest.mark.parametrize("first", ["a", "b"])
def test_sites_drawn_in_another_order(first: str) -> None:
    """The units added up to .846 where the rate is .523: KL(q(b) ‖ p(b|a)) at a draw of a that was
    made from b.
    """
    x = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = diagnose(chain_model, partial(chain, first=first), x, num_particles=500, seed=0)
    covariance = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64) / 3
    mean = x[:, None] * torch.tensor([1.0, 2.0], dtype=torch.float64) / 3
    prior = dist.MultivariateNormal(
        torch.zeros(2).double(), torch.tensor([[1.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    )
    exact = (
        torch.distributions.kl_divergence(dist.MultivariateNormal(mean, covariance), prior)
        .mean()
        .item()
    )
    assert found.rate.mean().item() == pytest.approx(exact, abs=0.01)
    assert found.kl_per_unit.sum().item() == pytest.approx(exact, abs=0.01)
    assert not found.undefined
    assert found.total_correlation == 0
    order = [1, 0] if first == "b" else [0, 1]
    torch.testing.assert_close(
        found.activity, mean.var(0, correction=0)[order], rtol=0.01, atol=0.01
    )


def components(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two Gaussians of two elements a datum, their weights."""
    loc = torch.stack([x, -x / 2], -1)[:, None] + torch.tensor(
        [[0.5, 0.0], [-1.0, 0.3]], dtype=torch.float64
    )
    return loc, torch.tensor([0.3, 0.7], dtype=torch.float64)


def mixture(x: Tensor) -> Any:
    loc, share = components(x)
    return dist.MixtureSameFamily(
        dist.Categorical(share.expand(len(x), 2)), dist.Normal(loc, 0.6).to_event(1)
    )


def flow(x: Tensor) -> Any:
    """Elementwise: z = 0.5 x + 0.8 ε, through two transforms."""
    base = dist.Normal(torch.zeros(len(x), 2, dtype=torch.float64), 1.0).to_event(1)
    return dist.TransformedDistribution(
        base, [T.AffineTransform(0.0, 0.4), T.AffineTransform(0.5 * x[:, None], 2.0)]
    )


def coupled(x: Tensor) -> Any:
    """Not elementwise: a Gaussian with a full covariance, as a flow."""
    root = torch.tensor([[0.8, 0.0], [0.5, 0.6]], dtype=torch.float64)
    base = dist.Normal(torch.zeros(len(x), 2, dtype=torch.float64), 1.0).to_event(1)
    return dist.TransformedDistribution(
        base, [T.LowerCholeskyAffine(torch.stack([x, 0 * x], -1), root)]
    )


def standard(x: Tensor) -> Any:
    return dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)


def test_an_elementwise_flow() -> None:
    """Draws give its mean: the noise of them is no activity."""
    model, guide = of_one_site(flow, standard)
    found = diagnose(model, guide, X, num_particles=3000, seed=0)
    expected = normal_kl(0.5 * X, 0.8).mean().expand(2)
    torch.testing.assert_close(found.kl_per_unit, expected, rtol=0, atol=0.05)
    assert found.kl_per_unit.sum().item() == pytest.approx(found.rate.mean().item())
    torch.testing.assert_close(
        found.activity, (0.25 * X.var(correction=0)).expand(2), rtol=0, atol=0.02
    )
    assert not found.undefined
    assert found.total_correlation == 0


@pytest.mark.parametrize("num_particles", [1, 10])
def test_the_noise_of_draws_is_no_activity(num_particles: int) -> None:
    x = torch.zeros(2000, dtype=torch.float64)
    model, guide = of_one_site(flow, standard)
    found = diagnose(model, guide, x, num_particles=num_particles, seed=0)
    assert found.active_units == 0
    assert (found.activity < 2e-3).all()


def gaussian(x: Tensor) -> Any:
    """The density of `coupled`, with a covariance matrix."""
    root = torch.tensor([[0.8, 0.0], [0.5, 0.6]], dtype=torch.float64)
    return dist.MultivariateNormal(torch.stack([x, 0 * x], -1), scale_tril=root)


def low_rank(x: Tensor) -> Any:
    """The same density again: diag(σ²) + v vᵀ = [[0.64, 0.4], [0.4, 0.61]]."""
    factor = torch.tensor([[0.7], [0.4 / 0.7]], dtype=torch.float64)
    diagonal = torch.tensor([0.64, 0.61], dtype=torch.float64) - factor[:, 0] ** 2
    return dist.LowRankMultivariateNormal(torch.stack([x, 0 * x], -1), factor, diagonal)


@pytest.mark.parametrize("q", [gaussian, low_rank])
def test_a_gaussian_with_covariance_has_the_kl_of_its_marginals(q: Any) -> None:
    """In closed form; and with the total correlation they add up to the KL of the site."""
    model, guide = of_one_site(q, standard)
    found = diagnose(model, guide, X, num_particles=3, seed=0)
    expected = torch.stack([normal_kl(X, 0.8).mean(), normal_kl(0 * X, 0.61**0.5).mean()])
    torch.testing.assert_close(found.kl_per_unit, expected)
    correlation = 0.5 * math.log(0.64 * 0.61 / (0.64 * 0.61 - 0.16))
    assert found.total_correlation.item() == pytest.approx(correlation)  # type: ignore[union-attr]
    prior = dist.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    whole = torch.distributions.kl_divergence(gaussian(X), prior).mean().item()
    assert expected.sum().item() + correlation == pytest.approx(whole)
    assert not found.undefined


def test_a_mixture_has_the_kl_of_its_marginals() -> None:
    """At the draws of the rate, to which they add up with the total correlation; each against an
    integral.
    """
    model, guide = of_one_site(mixture, standard)
    found = diagnose(model, guide, X, num_particles=4000, seed=0)
    assert found.total_correlation is not None
    total = found.kl_per_unit.sum() + found.total_correlation
    torch.testing.assert_close(total, found.rate.mean())
    loc, share = components(X)
    line = torch.linspace(-12, 12, 2401, dtype=torch.float64)[:, None, None]
    log_p = dist.Normal(0.0, 1.0).log_prob(line[..., 0])
    for unit in range(2):
        parts = dist.Normal(loc[..., unit], 0.6).log_prob(line)
        log_q = (parts + share.log()).logsumexp(-1)
        kl = torch.trapezoid(log_q.exp() * (log_q - log_p), line[:, 0, 0], dim=0).mean()
        assert found.kl_per_unit[unit].item() == pytest.approx(kl.item(), abs=0.03)
    assert found.total_correlation > 0.01


def test_a_flow_has_no_kl_by_unit() -> None:
    """Not an equal share of the site's KL, which says nothing of the unit; and the reason."""
    model, guide = of_one_site(coupled, standard)
    found = diagnose(model, guide, X, num_particles=4000, seed=0)
    draws = coupled(X).sample((200_000,))
    kl = (coupled(X).log_prob(draws) - standard(X).log_prob(draws)).mean()
    assert found.rate.mean().item() == pytest.approx(kl.item(), abs=0.03)
    assert found.kl_per_unit.isnan().all()
    assert found.total_correlation.isnan()  # type: ignore[union-attr]
    assert len(found.undefined) == 1
    assert "guide's site 'z'" in found.undefined[0]
    assert "its marginals are unknown" in found.undefined[0]
    torch.testing.assert_close(
        found.activity, draws.mean(0).var(0, correction=0), rtol=0, atol=0.03
    )
    units = information(model, guide, X, seed=0).units
    assert all(math.isnan(unit.kl) for unit in units)
    assert len(units) == 2


def test_a_mixture_without_an_event_dimension() -> None:
    def q(x: Tensor) -> Any:
        loc, share = components(x)
        return dist.MixtureSameFamily(
            dist.Categorical(share.expand(len(x), 2)), dist.Normal(loc[..., 0], 0.6)
        )

    model, guide = of_one_site(q, lambda x: dist.Normal(zero(), 1.0))
    found = diagnose(model, guide, X, num_particles=4000, seed=0)
    assert found.kl_per_unit.shape == (1,)
    assert found.kl_per_unit.item() == pytest.approx(found.rate.mean().item())
    loc, share = components(X)
    torch.testing.assert_close(
        found.activity.item(), (loc[..., 0] @ share).var(correction=0).item()
    )


def test_a_mixture_as_the_prior() -> None:
    model, guide = of_one_site(
        lambda x: dist.Normal(x[:, None].expand(-1, 2), 0.5).to_event(1), lambda x: mixture(x * 0)
    )
    found = diagnose(model, guide, X, num_particles=1000, seed=0)
    assert found.rate.isfinite().all()
    assert found.kl_per_unit.isnan().all()
    assert "model's site 'z'" in found.undefined[0]


def test_a_categorical_site_is_one_unit() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    model, guide = of_one_site(
        lambda x: dist.Categorical(logits=x[:, None] * logits),
        lambda x: dist.Categorical(torch.ones(3).double()),
    )
    found = diagnose(model, guide, X, num_particles=3, seed=0)
    probs = (X[:, None] * logits).softmax(-1)
    expected = (probs * (probs * 3).log()).sum(-1).mean()
    torch.testing.assert_close(found.kl_per_unit, expected.reshape(1))
    torch.testing.assert_close(found.activity, probs.var(0, correction=0).sum().reshape(1))
