"""log p(x) by quadrature: against closed forms and fine grids, for narrow, curved and multimodal
posteriors; refusals.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae import priors, zoo
from pyroae.errors import ConfigError, DataError, ProgramError, UndefinedLikelihoodError
from pyroae.evaluation import blocks
from pyroae.evaluation.adaptive_quadrature import QuadratureEstimate, quadrature
from pyroae.evaluation.exact import exact_log_likelihood
from pyroae.evaluation.importance.likelihood import log_likelihood
from pyroae.evaluation.importance.proposals import Local
from pyroae.nn import MLP
from pyroae.programs.sites import Program
from pyroae.programs.traces import prior_of
from tests.evaluation.importance import test_proposals
from tests.systems import system_and_data

pytestmark = pytest.mark.usefixtures("float64")


def check_right(found: QuadratureEstimate, truth: Tensor, atol: float = 1e-9) -> None:
    """It says that it converged, and it is right."""
    assert bool(found.converged.all())
    assert bool((found.error < 1e-6).all())
    torch.testing.assert_close(found.log_px, truth.double(), rtol=0, atol=atol)


@pytest.mark.parametrize("latent", [1, 2, 3])
def test_ppca_is_the_closed_form(latent: int) -> None:
    system = zoo.ppca(8, latent=latent)
    x = system.sample(10, noise=True)
    truth = exact_log_likelihood(system, x)
    check_right(quadrature(system.model, system.guide, x), truth)
    check_right(quadrature(system.model, None, x), truth)


def test_a_strongly_correlated_posterior_in_three_dimensions() -> None:
    """The condition number of its covariance is above 1,000."""
    system = zoo.ppca(8, latent=3)
    with torch.no_grad():
        weight = next(p for p in system.parameters() if p.shape == (8, 3))
        weight.copy_(10 * torch.randn(8, 1) + 0.3 * torch.randn(8, 3))
    w, _, scale = (part.detach() for part in system.linear_gaussian())
    assert torch.linalg.cond(w.T @ w + scale**2 * torch.eye(3)) > 1000
    x = system.sample(4, noise=True)
    check_right(quadrature(system.model, system.guide, x), exact_log_likelihood(system, x))


def squared(scale: float) -> tuple[Program, Program]:
    """x|z ~ N(z², σ²): two modes, at ±√x, and a guide that knows of one."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z**2, scale), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(1.0, 0.1))

    return model, guide


@pytest.mark.parametrize("scale", [0.5, 0.1, 0.01, 0.001])
def test_two_modes(scale: float) -> None:
    x = torch.tensor([-1.0, 0.0, 0.5, 1.0, 9.0])
    z, width = torch.linspace(-8, 8, 2_000_001), 16 / 2_000_000
    joint = [
        dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z**2, scale).log_prob(value) for value in x
    ]
    truth = torch.stack([column.logsumexp(0) + math.log(width) for column in joint])
    check_right(quadrature(*squared(scale), x), truth)


def ring(scale: float) -> Program:
    """x|z ~ N(|z|², σ²) in two dimensions, |z|² ~ Exp(½) under the prior."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.square().sum(-1), scale), obs=x)

    return model


def log_px_of_ring(x: Tensor, scale: float) -> Tensor:
    """An exponential plus a Gaussian: log ½ − x/2 + σ²/8 + log Φ((x − σ²/2)/σ)."""
    return (
        math.log(0.5)
        - x / 2
        + scale**2 / 8
        + dist.Normal(0.0, 1.0).cdf((x - scale**2 / 2) / scale).log()
    )


@pytest.mark.parametrize("scale", [0.5, 0.2])
def test_a_ring(scale: float) -> None:
    x = torch.tensor([0.5, 1.0, 4.0, 9.0])
    check_right(quadrature(ring(scale), None, x), log_px_of_ring(x, scale), atol=1e-6)


def test_what_has_not_converged_says_so_and_by_how_much() -> None:
    """A ring too thin for the points that it may have."""
    x = torch.tensor([1.0, 4.0, 9.0])
    found = quadrature(ring(0.02), None, x, max_points=40_000)
    off = (found.log_px - log_px_of_ring(x, 0.02)).abs()
    assert off.max() > 1e-6
    assert not bool(found.converged.any())
    assert bool((off < found.error).all())


def test_a_kink_converges_slowly_and_says_so() -> None:
    """A Laplace prior: the error falls as h² only; log p(x) by hand, from two half-lines of a
    Gaussian.
    """

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Laplace(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    x, s = torch.linspace(-3, 3, 200), 0.5
    phi = dist.Normal(0.0, 1.0).cdf
    terms = [s**2 / 2 + side * x + phi(-(side * x + s**2) / s).log() for side in (1.0, -1.0)]
    truth = torch.stack(terms).logsumexp(0) - math.log(2)
    found = quadrature(model, None, x, tolerance=1e-5)
    assert bool(((found.log_px - truth).abs() <= found.error).all())
    assert found.error.max() < 1e-5
    assert found.num_points.max() > 1000
    rough = quadrature(model, None, x, max_points=600)
    assert bool(((rough.log_px - truth).abs() <= rough.error).all())


@pytest.mark.parametrize("scale", [1e-2, 1e-4])
def test_a_posterior_far_narrower_than_the_prior(scale: float) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    x = torch.tensor([[-2.0, 1.0], [0.0, 0.0], [5.5, -3.0]])
    truth = dist.Normal(0.0, math.sqrt(1 + scale**2)).log_prob(x).sum(-1)
    check_right(quadrature(model, None, x), truth)


def test_constrained_latents() -> None:
    """A Gamma rate under a Poisson; a location that is uniform on an interval, whose bounds cut the
    posterior off.
    """

    def rate(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(pyro.sample("rate", dist.Gamma(2.0, 3.0))), obs=x)

    counts = torch.tensor([0.0, 1.0, 5.0, 100.0])
    check_right(quadrature(rate, None, counts), dist.GammaPoisson(2.0, 3.0).log_prob(counts))

    def interval(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Uniform(-1.0, 2.0)), 0.3), obs=x)

    x, noise = torch.tensor([-2.0, -1.0, 0.0, 1.9, 2.5]), dist.Normal(0.0, 0.3)
    check_right(quadrature(interval, None, x), ((noise.cdf(2 - x) - noise.cdf(-1 - x)) / 3).log())


def test_two_sites_and_two_arguments() -> None:
    """A level and a positive rate, with a nested plate and a mask."""
    data = test_proposals.program_data()
    found = quadrature(test_proposals.model, test_proposals.guide, data)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.log_px, test_proposals.by_hand(*data), rtol=0, atol=1e-4)


def test_a_strongly_nonlinear_decoder_agrees_with_importance_sampling() -> None:
    system = zoo.vae(12, latent=2, encoder=MLP((30,)))
    for parameter in system.parameters():
        parameter.data = 0.7 * torch.randn_like(parameter)
    x = system.sample(6, noise=True)
    found = quadrature(system.model, system.guide, x)
    sampled = log_likelihood(system.model, prior_of(system.model), x, num_particles=50_000, seed=0)
    assert bool(found.converged.all())
    assert sampled.se.max() < 0.02
    assert (found.log_px - sampled.log_px).abs().mean() < 0.02
    assert bool(((found.log_px - sampled.log_px).abs() < 4 * sampled.se).all())


def test_nothing_hangs_on_blocks_or_on_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    system, x = system_and_data("vae-normal")
    system = zoo.vae(16, latent=2, encoder=MLP((7,)))
    torch.manual_seed(1)
    once = quadrature(system.model, system.guide, x)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)
    again = quadrature(system.model, system.guide, x)
    assert torch.equal(once.log_px, again.log_px)
    monkeypatch.setattr(blocks, "CHUNK", 2**15)
    torch.testing.assert_close(
        quadrature(system.model, system.guide, x).log_px, once.log_px, rtol=0, atol=1e-6
    )


def test_single_precision_is_in_the_error() -> None:
    torch.set_default_dtype(torch.float32)
    system = zoo.ppca(50, latent=2)
    x = system.sample(5, noise=True).detach()
    found = quadrature(system.model, system.guide, x)
    off = (found.log_px - exact_log_likelihood(system, x)).abs()
    assert found.log_px.dtype == torch.float64
    assert bool(found.converged.all())
    assert bool((off < found.error).all())
    assert found.error.max() < 1e-4


def flat(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=x)


def test_refusals() -> None:
    system = zoo.vae(16, latent=4)
    with pytest.raises(
        ConfigError, match="quadrature is for 1, 2 or 3 latent dimensions per datum, not 4"
    ):
        quadrature(system.model, system.guide, torch.zeros(2, 16))
    tolerances: list[Any] = [0.0, -1.0, math.inf]
    for tolerance in tolerances:
        with pytest.raises(ConfigError, match="tolerance must be positive and finite"):
            quadrature(system.model, system.guide, torch.zeros(2, 16), tolerance=tolerance)
    linear = zoo.linear_autoencoder(16, 2)
    with pytest.raises(UndefinedLikelihoodError, match="the prior of 'z' is flat"):
        quadrature(linear.model, linear.guide, torch.zeros(2, 16))
    with pytest.raises(ProgramError, match="latent site 'z' is discrete"):
        quadrature(flat, None, torch.zeros(3))


def test_a_datum_without_a_density_is_named() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample(
                "x", dist.Normal(torch.where(x == 3, torch.inf, z), 1.0, validate_args=False), obs=x
            )

    with (
        pytest.raises(DataError, match=r"log p\(x\) of datum 3 is not finite"),
        pyro.validation_enabled(False),
    ):
        quadrature(model, None, torch.arange(5.0))


def test_a_delta_guide_only_says_where_to_look() -> None:
    system = zoo.sparse_autoencoder(16, 1)
    x = torch.randn(3, 16)
    found = quadrature(system.model, system.guide, x)
    sampled = log_likelihood(system.model, Local(system.guide), x, num_particles=5000, seed=0)
    assert bool(((found.log_px - sampled.log_px).abs() < 5 * sampled.se + found.error).all())


def test_a_laplace_prior_of_the_zoo() -> None:
    system = zoo.vae(16, latent=1, prior=priors.Laplace(1.5), encoder=MLP((7,)))
    x = (torch.rand(4, 16) < 0.4).double()
    found = quadrature(system.model, system.guide, x)
    sampled = log_likelihood(system.model, prior_of(system.model), x, num_particles=50_000, seed=0)
    assert bool(((found.log_px - sampled.log_px).abs() < 5 * sampled.se).all())
