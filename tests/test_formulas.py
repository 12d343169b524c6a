"""Losses and gradients against hand-written formulas, float64, to 1e-10 (DESIGN: what the family
must give exactly).
"""

from collections.abc import Callable

import pyro
import pytest
import torch
from torch import Tensor

from pyroae import likelihoods, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.corruptions import Masking
from pyroae.nn import MLP
from pyroae.objectives import OBJECTIVES, AnalyticKL, TraceELBO
from tests import oracles

pytestmark = pytest.mark.usefixtures("float64")
N, D, M = 7, 6, 3
ELBOS = ["trace-elbo", "analytic-kl"]
MAPS = MLP((5,), "tanh")


def layers(module: torch.nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(m.weight, m.bias) for m in module.modules() if isinstance(m, torch.nn.Linear)]


def loss_and_gradient(loss: Tensor, system: Autoencoder) -> tuple[float, Tensor]:
    parameters = list(system.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    flat = [
        torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)
    ]
    return loss.item(), torch.cat([g.flatten() for g in flat])


def assert_agrees(system: Autoencoder, x: Tensor, formula: Callable[[], Tensor], name: str) -> None:
    """The objective's loss and gradient, and those of the formula run on the same random
    numbers.
    """
    pyro.set_rng_seed(1)
    objective = OBJECTIVES[name]()
    loss, gradient = loss_and_gradient(
        objective.differentiable_loss(system.model, system.guide, x), system
    )
    pyro.set_rng_seed(1)
    expected_loss, expected = loss_and_gradient(formula(), system)
    assert expected.abs().max() > 1e-3  # the comparison is not one of zeros
    assert loss == pytest.approx(expected_loss, abs=1e-10)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ELBOS)
def test_autoencoder_is_squared_error(name: str) -> None:
    x, system = torch.rand(N, D), zoo.autoencoder(D, M, encoder=MAPS)

    def formula() -> Tensor:
        z = oracles.mlp(x, layers(system.encoder))
        return (
            0.5 * (x - oracles.mlp(z, layers(system.decoder))).square().sum(1)
            + D * oracles.HALF_LOG_2PI
        ).sum()

    assert_agrees(system, x, formula, name)


@pytest.mark.parametrize("name", ELBOS)
def test_sparse_autoencoder_adds_the_l1_penalty(name: str) -> None:
    x, system = torch.rand(N, D), zoo.sparse_autoencoder(D, 8, rate=0.3, encoder=MAPS)
    decoder = system.decoder[0]  # type: ignore[index]

    def formula() -> Tensor:
        a = oracles.mlp(x, layers(system.encoder))
        z = torch.where(a > 0.3, a - 0.3, torch.where(a < -0.3, a + 0.3, 0.0))
        assert 0 < (z == 0).double().mean() < 1
        atoms = decoder.weight / decoder.weight.square().sum(0).sqrt()
        return (
            oracles.normal_nll(x, z @ atoms.T + decoder.bias) + oracles.laplace_penalty(z, 0.3)
        ).sum()

    assert_agrees(system, x, formula, name)


@pytest.mark.parametrize("name", ELBOS)
def test_sparse_autoencoder_with_a_weight_prior(name: str) -> None:
    from pyroae.posteriors import Point
    from pyroae.priors import GaussianWeights

    prior = GaussianWeights(scale=0.7, num_data=100)
    x, system = (
        torch.rand(N, D),
        zoo.sparse_autoencoder(
            D, 4, rate=1.0, posterior=Point(), encoder=MAPS, decoder=MAPS, weight_prior=prior
        ),
    )

    def formula() -> Tensor:
        z = oracles.mlp(x, layers(system.encoder))
        weights = torch.cat([w.flatten() for w, _ in layers(system.decoder)])
        penalty = oracles.normal_nll(weights, torch.zeros_like(weights), 0.7) * N / 100
        fit = oracles.normal_nll(x, oracles.mlp(z, layers(system.decoder)))
        return (fit + oracles.laplace_penalty(z, 1.0)).sum() + penalty

    assert_agrees(system, x, formula, name)


@pytest.mark.parametrize("name", ELBOS)
def test_denoising_autoencoder_corrupts_the_input_only(name: str) -> None:
    x, system = torch.rand(N, D) + 0.1, zoo.denoising_autoencoder(D, M, Masking(0.5), encoder=MAPS)

    def formula() -> Tensor:
        corrupted = torch.where(torch.rand_like(x) < 0.5, 0.0, x)
        assert (corrupted == 0).any()
        z = oracles.mlp(corrupted, layers(system.encoder))
        return oracles.normal_nll(x, oracles.mlp(z, layers(system.decoder))).sum()

    assert_agrees(system, x, formula, name)


@pytest.mark.parametrize("name", ELBOS)
@pytest.mark.parametrize("kind", ["bernoulli", "normal"])
def test_vae(name: str, kind: str) -> None:
    likelihood = likelihoods.Bernoulli() if kind == "bernoulli" else likelihoods.Normal(scale=0.5)
    x = (torch.rand(N, D) < 0.5).double() if kind == "bernoulli" else torch.rand(N, D)
    system = zoo.vae(D, M, encoder=MAPS, likelihood=likelihood)

    def formula() -> Tensor:
        mean, log_variance = oracles.mlp(x, layers(system.encoder)).chunk(2, -1)
        scale = (0.5 * log_variance).exp()
        z = mean + scale * torch.randn(N, M)
        out = oracles.mlp(z, layers(system.decoder))
        distortion = (
            oracles.bernoulli_nll(x, out)
            if kind == "bernoulli"
            else oracles.normal_nll(x, out, 0.5)
        )
        zero = torch.zeros_like(z)
        sampled = (
            oracles.normal_nll(z, zero)
            - oracles.normal_nll((z - mean) / scale, zero)
            - scale.log().sum(-1)
        )
        return (
            distortion + (oracles.gaussian_kl(mean, scale) if name == "analytic-kl" else sampled)
        ).sum()

    assert_agrees(system, x, formula, name)


def test_kl_of_the_prior_is_zero_and_its_closed_form_holds() -> None:
    """Encoder weights set by hand, so that q is known: KL from the objective's difference with the
    distortion.
    """
    system = zoo.vae(D, M, encoder=MAPS)
    last, x = layers(system.encoder)[-1], torch.ones(N, D)
    for mean, scale in ((0.0, 1.0), (0.7, 0.3)):
        with torch.no_grad():
            last[0].zero_()
            last[1][:M], last[1][M:] = mean, 2 * torch.tensor(scale).log()
        pyro.set_rng_seed(2)
        nelbo = AnalyticKL().loss(system.model, system.guide, x)
        pyro.set_rng_seed(2)
        z = mean + scale * torch.randn(N, M)
        kl = nelbo - oracles.bernoulli_nll(x, system.decoder(z)).sum()
        expected = N * oracles.gaussian_kl(torch.full((M,), mean), torch.full((M,), scale))
        torch.testing.assert_close(kl, expected, rtol=0, atol=1e-10)
    assert oracles.gaussian_kl(torch.zeros(M), torch.ones(M)) == 0


@pytest.mark.parametrize("name", ELBOS)
def test_ppca(name: str) -> None:
    x, system = torch.randn(N, D), zoo.ppca(D, M)
    (encode,), (decode,) = layers(system.encoder), layers(system.decoder)

    def formula() -> Tensor:
        mean, log_variance = (x @ encode[0].T + encode[1]).chunk(2, -1)
        scale = (0.5 * log_variance).exp()
        z = mean + scale * torch.randn(N, M)
        sigma = system.learned_likelihood.get_parameter("log_scale").exp()
        distortion = oracles.normal_nll(x, z @ decode[0].T + decode[1], sigma)
        zero = torch.zeros_like(z)
        sampled = (
            oracles.normal_nll(z, zero)
            - oracles.normal_nll((z - mean) / scale, zero)
            - scale.log().sum(-1)
        )
        return (
            distortion + (oracles.gaussian_kl(mean, scale) if name == "analytic-kl" else sampled)
        ).sum()

    assert_agrees(system, x, formula, name)


def test_exact_posterior_makes_the_elbo_the_log_likelihood() -> None:
    """Loss and gradient: those of −log N(x; b, WWᵀ + σ²I), at every draw."""
    x, system = torch.randn(N, D), zoo.ppca(D, M, exact=True)
    ((weight, bias),) = layers(system.decoder)

    def formula() -> Tensor:
        sigma = system.learned_likelihood.get_parameter("log_scale").exp()
        covariance = weight @ weight.T + sigma**2 * torch.eye(D)
        return -torch.distributions.MultivariateNormal(bias, covariance).log_prob(x).sum()

    assert_agrees(system, x, formula, "trace-elbo")
    assert TraceELBO(num_particles=5).loss(system.model, system.guide, x) == pytest.approx(
        formula().item(), abs=1e-10
    )
