"""Local Gaussians and the gaps between bounds: against pPCA's closed forms, written by hand;
convergence; refusals.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae import linear_gaussian, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.errors import ConfigError, DataError, ProgramError, UndefinedLikelihoodError
from pyroae.evaluation import blocks
from pyroae.evaluation.adaptive_quadrature import quadrature
from pyroae.evaluation.exact import exact_log_likelihood
from pyroae.evaluation.inference_gaps import Gaps, PerDatum, gaps
from pyroae.evaluation.local import LocalGaussian, fit_local
from pyroae.nn import MLP
from pyroae.programs.latents import Latents
from pyroae.programs.sites import Program
from tests.evaluation.importance import test_proposals
from tests.objectives.test_objectives import DATA, hierarchical
from tests.systems import DISCRETE, system_and_data

pytestmark = pytest.mark.usefixtures("float64")


def correlated(latent: int = 3, num_data: int = 12) -> tuple[Autoencoder, Tensor]:
    """pPCA whose posterior no diagonal Gaussian fits."""
    system = zoo.ppca(10, latent=latent)
    with torch.no_grad():
        weight = next(p for p in system.parameters() if p.shape == (10, latent))
        weight.copy_(torch.randn(10, latent) + torch.randn(10, 1))
    return system, system.sample(num_data, noise=True)


class ClosedForms:
    """M = WᵀW + σ²I and the posterior N(V*(x − b), σ²M⁻¹), of Tipping & Bishop 1999."""

    def __init__(self, system: Autoencoder) -> None:
        self.weight, self.bias, self.scale = (part.detach() for part in system.linear_gaussian())
        self.inner = self.weight.T @ self.weight + self.scale**2 * torch.eye(self.weight.shape[1])
        self.best_map = torch.linalg.solve(self.inner, self.weight.T)
        self.best_variance = self.scale**2 / self.inner.diagonal()

    def approximation(self) -> Tensor:
        """½ (Σ log M_ii − log det M)."""
        return 0.5 * (self.inner.diagonal().log().sum() - torch.logdet(self.inner))

    def amortization(self, x: Tensor, linear: Tensor, variance: Tensor) -> Tensor:
        """½ δᵀ(M/σ²)δ + ½ Σ (D_i M_ii/σ² − 1 − log(D_i M_ii/σ²)), δ = (V − V*)(x − b), a datum."""
        delta = (x - self.bias) @ (linear - self.best_map).T
        ratio = variance / self.best_variance
        return (
            0.5 * ((delta @ self.inner) * delta).sum(-1) / self.scale**2
            + 0.5 * (ratio - 1 - ratio.log()).sum()
        )

    def shortfall(self, x: Tensor, fitted: LocalGaussian) -> Tensor:
        """KL(q ‖ p(z|x)) of a Gaussian, a datum."""
        p = dist.MultivariateNormal(
            (x - self.bias) @ self.best_map.T, precision_matrix=self.inner / self.scale**2
        )
        return torch.distributions.kl_divergence(
            dist.MultivariateNormal(fitted.loc, scale_tril=fitted.scale_tril), p
        )


def diagonal_guide(linear: Tensor, bias: Tensor, variance: Tensor) -> Program:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - bias) @ linear.T, variance.sqrt()).to_event(1))

    return guide


def holds(found: PerDatum, truth: Tensor, slack: float = 0.0) -> None:
    """The mean's interval, of five standard errors; the data's z-scores are as they should be."""
    assert abs(found.mean - truth.mean().item()) < 5 * found.monte_carlo_se + slack
    z = (found.values - truth) / found.se.clamp_min(1e-12)
    assert z.square().mean() < 3 or (found.values - truth).abs().max() < 1e-3


@pytest.mark.parametrize("perturbed", [False, True])
def test_gaps_of_ppca_are_the_closed_forms(perturbed: bool) -> None:
    system, x = correlated()
    truth = ClosedForms(system)
    linear, variance = truth.best_map, truth.best_variance
    if perturbed:
        linear, variance = (
            linear + 0.02 * torch.randn_like(linear),
            variance * torch.tensor([0.5, 1.0, 1.8]),
        )
    guide = diagonal_guide(linear, truth.bias, variance)
    found = gaps(system.model, guide, x, num_particles=1000, steps=300, seed=0)
    approximation = truth.approximation().expand(len(x))
    amortization = truth.amortization(x, linear, variance)
    assert approximation[0] > 0.3
    assert (amortization.mean() > 0.2) == perturbed
    holds(found.families["diagonal"].approximation, approximation, slack=2e-3)
    holds(found.families["diagonal"].amortization, amortization, slack=2e-3)
    holds(found.families["full-rank"].approximation, torch.zeros(len(x)), slack=1e-4)
    holds(found.families["full-rank"].amortization, approximation + amortization, slack=1e-4)
    holds(found.inference, approximation + amortization)
    holds(found.log_px, exact_log_likelihood(system, x))
    assert found.khat is not None
    assert found.khat.max() < 0.5


def test_the_parts_add_up() -> None:
    system, x = correlated(num_data=4)
    found = gaps(system.model, system.guide, x, num_particles=50, steps=50, seed=0)
    for family in found.families.values():
        total = family.approximation.values + family.amortization.values
        torch.testing.assert_close(total, found.inference.values)
        torch.testing.assert_close(
            family.elbo.values + family.approximation.values, found.log_px.values
        )
    names = [name for name, _ in found.rows()]
    assert names[0] == "ELBO of the guide"
    assert names[-1] == "log p(x)"
    assert len(names) == 9


def test_errors_are_the_spread_over_draws() -> None:
    """The same datum 80 times over, each time fitted and drawn anew: the errors of the paired
    differences are honest.
    """
    system, x = correlated(latent=2, num_data=1)
    guide = diagonal_guide(
        *(getattr(ClosedForms(system), name) for name in ("best_map", "bias", "best_variance"))
    )
    found = gaps(system.model, guide, x.repeat(80, 1), num_particles=300, steps=150, seed=0)
    family = found.families["diagonal"]
    for quantity in (family.approximation, family.amortization, found.inference, found.log_px):
        ratio = quantity.values.std() / quantity.se.square().mean().sqrt()
        assert 0.75 < ratio < 1.35


def test_known_likelihoods_are_taken() -> None:
    system, x = correlated(latent=2, num_data=3)
    exact = exact_log_likelihood(system, x)
    settings: dict[str, Any] = {
        "num_particles": 100,
        "steps": 50,
        "seed": 0,
        "families": ("diagonal",),
    }
    by_value = gaps(system.model, system.guide, x, log_px=exact, **settings)
    assert torch.equal(by_value.log_px.values, exact)
    assert by_value.log_px.monte_carlo_se == 0
    assert by_value.khat is None
    assert list(by_value.families) == ["diagonal"]
    estimate = quadrature(system.model, system.guide, x)
    by_estimate = gaps(system.model, system.guide, x, log_px=estimate, **settings)
    torch.testing.assert_close(by_estimate.inference.values, by_value.inference.values)
    assert torch.equal(by_estimate.log_px.se, estimate.error)
    with pytest.raises(DataError, match=r"log_px is of the shape \(2,\), where there are 3 data"):
        gaps(system.model, system.guide, x, log_px=exact[:2], **settings)


def test_a_nonlinear_decoder_against_quadrature() -> None:
    """0 ≤ the full-rank gap ≤ the diagonal one, and the proposal's log p(x) is that of
    quadrature.
    """
    system = zoo.vae(12, latent=2, encoder=MLP((20,)))
    for parameter in system.parameters():
        parameter.data = 0.5 * torch.randn_like(parameter)
    x = system.sample(8, noise=True)
    truth = quadrature(system.model, system.guide, x)
    found = gaps(system.model, system.guide, x, num_particles=2000, steps=400, seed=0)
    full, diagonal = (found.families[name].approximation for name in ("full-rank", "diagonal"))
    assert bool(((found.log_px.values - truth.log_px).abs() < 5 * found.log_px.se + 0.01).all())
    assert full.mean > 0
    assert full.mean < diagonal.mean + 3 * diagonal.monte_carlo_se
    assert found.families["full-rank"].amortization.mean > 0.1  # an encoder that was never trained


def test_blocks_and_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed, the same figures; other blocks, the same within their errors; the caller's
    generator is not touched.
    """
    system, x = correlated(latent=2, num_data=9)
    settings: dict[str, Any] = {"num_particles": 200, "steps": 60, "seed": 3}
    torch.manual_seed(7)
    once = gaps(system.model, system.guide, x, **settings)
    after = torch.rand(2)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(2), after)
    assert torch.equal(
        gaps(system.model, system.guide, x, **settings).inference.values, once.inference.values
    )
    monkeypatch.setattr(blocks, "CHUNK", 2**10)
    sizes: list[int] = []
    drawn = Latents.log_joint

    def watched(self: Latents, u: Tensor) -> Any:
        sizes.append(u.shape[0] * u.shape[1])
        return drawn(self, u)

    monkeypatch.setattr(Latents, "log_joint", watched)
    apart = gaps(system.model, system.guide, x, **settings)
    assert max(sizes) <= 64
    error = (apart.inference.se.square() + once.inference.se.square()).sqrt()
    assert bool(((apart.inference.values - once.inference.values).abs() < 5 * error).all())


def test_what_gaps_refuse() -> None:
    system, x = system_and_data("vae")
    families: Any = ("banana",)
    with pytest.raises(ConfigError, match="unknown family 'banana'"):
        gaps(system.model, system.guide, x, families=families)
    with pytest.raises(ConfigError, match="at least one family and 2 particles"):
        gaps(system.model, system.guide, x, num_particles=1)
    sparse, x = system_and_data("sparse-ae")
    with pytest.raises(UndefinedLikelihoodError, match="is a Delta"):
        gaps(sparse.model, sparse.guide, x)
    discrete, x = system_and_data(next(iter(DISCRETE)))
    with pytest.raises(ProgramError, match="is discrete"):
        gaps(discrete.model, discrete.guide, x, num_particles=10)
    model, guide, _ = hierarchical()
    with pytest.raises(ProgramError, match="'level' lies outside the data plate"):
        gaps(model, guide, DATA.double())


# The fit of a Gaussian to each datum.


@pytest.mark.parametrize("family", ["full-rank", "diagonal"])
@pytest.mark.parametrize("start", ["a narrow guide that is off", "the prior"])
def test_a_local_fit_reaches_the_optimum(family: Any, start: str) -> None:
    """KL to the posterior within 0.003 nats of the least that the family can have, from starts that
    are far above it.
    """
    system, x = correlated()
    truth = ClosedForms(system)
    guide = None
    if start != "the prior":
        guide = diagonal_guide(truth.best_map + 0.1, truth.bias, 0.01 * truth.best_variance)
        off = truth.amortization(x, truth.best_map + 0.1, 0.01 * truth.best_variance)
        assert off.mean() > 5
    fitted = fit_local(system.model, guide, (x,), family=family, seed=0)
    least = truth.approximation() if family == "diagonal" else torch.zeros(())
    assert (truth.shortfall(x, fitted) - least).mean() < 0.003
    assert bool((truth.shortfall(x, fitted) - least > -1e-9).all())
    assert fitted.steps <= 1000
    assert bool((fitted.gain < 6 * fitted.gain_se + 0.01).all())
    if family == "diagonal":
        assert torch.equal(
            fitted.scale_tril, torch.diag_embed(fitted.scale_tril.diagonal(dim1=-2, dim2=-1))
        )


def test_a_fit_that_was_cut_short_says_so() -> None:
    system, x = correlated()
    truth = ClosedForms(system)
    guide = diagonal_guide(truth.best_map + 1.0, truth.bias, 0.01 * truth.best_variance)
    short = fit_local(system.model, guide, (x,), steps=2, seed=0)
    assert truth.shortfall(x, short).mean() > 0.5
    assert short.gain.mean() > 5 * short.gain_se.mean()
    assert short.steps == 2


def test_densities_of_a_local_gaussian() -> None:
    system, x = correlated(num_data=4)
    fitted = fit_local(system.model, system.guide, (x,), steps=30, seed=0)
    by_torch = dist.MultivariateNormal(fitted.loc, scale_tril=fitted.scale_tril)
    u, log_q = fitted.draw(6)
    assert u.shape == (6, 4, 3)
    torch.testing.assert_close(log_q, by_torch.log_prob(u))
    torch.testing.assert_close(fitted.log_prob(u), log_q)
    wide = fitted.inflated(2.0)
    torch.testing.assert_close(
        wide.log_prob(u),
        dist.MultivariateNormal(fitted.loc, scale_tril=2 * fitted.scale_tril).log_prob(u),
    )
    noise = torch.randn(5, 4, 3)
    torch.testing.assert_close(
        fitted.draw(5, noise)[0] - fitted.loc, (wide.draw(5, noise)[0] - fitted.loc) / 2
    )


def test_data_are_fitted_one_by_one() -> None:
    """From the exact posterior the path gradient vanishes draw by draw: nothing moves but what the
    start was off by.
    """
    system, _ = system_and_data("ppca-exact")
    x = system.sample(5, noise=True).detach()
    loc, tril = (part.detach() for part in linear_gaussian.posterior(x, *system.linear_gaussian()))
    at = LocalGaussian(loc, tril.expand(5, 3, 3), torch.zeros(5), torch.zeros(5), torch.zeros(5), 0)
    fitted = fit_local(system.model, system.guide, (x,), start=at, steps=30, seed=0)
    torch.testing.assert_close(fitted.loc, loc, rtol=0, atol=1e-6)
    torch.testing.assert_close(fitted.scale_tril, at.scale_tril, rtol=0, atol=1e-6)
    torch.testing.assert_close(fitted.elbo, exact_log_likelihood(system, x), rtol=0, atol=1e-6)


def test_constrained_sites_and_two_arguments() -> None:
    """The bound of the fit lies below log p(x), by little, and above that of the guide."""
    data = test_proposals.program_data()
    found = gaps(
        test_proposals.model, test_proposals.guide, data, num_particles=1000, steps=300, seed=0
    )
    truth = test_proposals.by_hand(*data)
    assert bool(((found.log_px.values - truth).abs() < 5 * found.log_px.se + 1e-4).all())
    assert -0.01 < found.families["full-rank"].approximation.mean < 0.1
    assert found.families["full-rank"].amortization.mean > 0


def test_a_delta_guide_starts_where_it_points() -> None:
    system = zoo.sparse_autoencoder(16, 1)
    x = torch.randn(3, 16)
    fitted = fit_local(system.model, system.guide, (x,), seed=0)
    truth = quadrature(system.model, system.guide, x)
    assert bool((fitted.elbo < truth.log_px + 0.1).all())
    assert (truth.log_px - fitted.elbo).mean() < 0.3


def test_a_seed_leaves_the_generator_alone() -> None:
    system, x = correlated(num_data=2)
    torch.manual_seed(5)
    once = fit_local(system.model, system.guide, (x,), steps=5, seed=1)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(fit_local(system.model, system.guide, (x,), steps=5, seed=1).loc, once.loc)
    bad: list[dict[str, Any]] = [{"steps": 0}, {"num_particles": 0}]
    for settings in bad:
        with pytest.raises(ConfigError, match="steps and num_particles of at least 1"):
            fit_local(system.model, system.guide, (x,), **settings)


@pytest.mark.slow
def test_twenty_correlated_units_from_a_far_start() -> None:
    """The diagonal family's gap is 10 nats and more; the fit ends within 0.5 of it."""
    system = zoo.ppca(40, latent=20)
    with torch.no_grad():
        next(p for p in system.parameters() if p.shape == (40, 20)).copy_(
            torch.randn(40, 20) + 2 * torch.randn(40, 1)
        )
    x, truth = system.sample(20, noise=True), ClosedForms(system)
    guide = diagonal_guide(truth.best_map + 0.01, truth.bias, 0.01 * truth.best_variance)
    assert truth.amortization(x, truth.best_map + 0.01, 0.01 * truth.best_variance).mean() > 50
    fitted = fit_local(system.model, guide, (x,), family="diagonal", seed=0)
    assert truth.approximation() > 10
    assert (truth.shortfall(x, fitted) - truth.approximation()).mean() < 0.5
    assert isinstance(gaps(system.model, guide, x, num_particles=10, seed=0), Gaps)
    assert math.isfinite(fitted.gain.mean())
