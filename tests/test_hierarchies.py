"""Several layers of z: closed forms of linear-Gaussian layers, densities written by hand, and every
part of the package on both guides.
"""

from typing import Any

import pyro
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyroae import ais, log_likelihood, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.config import AISSettings
from pyroae.evaluation.adaptive_quadrature import quadrature
from pyroae.evaluation.diagnostics import diagnose
from pyroae.evaluation.exact import exact_log_likelihood
from pyroae.evaluation.inference_gaps import gaps
from pyroae.hierarchies import BottomUp, Hierarchy, TopDown, precision_weighted
from pyroae.likelihoods import Normal
from pyroae.nn import MLP, Linear
from pyroae.weights import log_weights
from tests import oracles

pytestmark = pytest.mark.usefixtures("float64")
D, SIZES = 5, (4, 3, 2)
BOTH = pytest.mark.parametrize("guide", [BottomUp, TopDown])


def small(hierarchy: Hierarchy, sizes: tuple[int, ...] = SIZES, **choices: Any) -> Autoencoder:
    return zoo.hierarchical_vae(D, sizes, hierarchy, **{"encoder": MLP((6,)), **choices})


def linear(
    guide: type[Hierarchy], sizes: tuple[int, ...], features: int = D, scale: float = 0.6
) -> Autoencoder:
    """Linear-Gaussian layers with random weights."""
    system = zoo.hierarchical_vae(
        features,
        sizes,
        guide((), scale=scale),
        encoder=Linear(),
        likelihood=Normal(0.5, learn=True),
    )
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return system


def marginal(system: Autoencoder) -> MultivariateNormal:
    """p(x) from the covariances of the layers, one after the other."""
    mean = torch.zeros(system.layers[-1])
    covariance = torch.eye(system.layers[-1])
    for layer in reversed(list(system.upper)):
        weight, bias = layer.decoder[0].weight, layer.decoder[0].bias
        mean = weight @ mean + bias
        covariance = weight @ covariance @ weight.T + layer.scale**2 * torch.eye(len(bias))
    weight, bias = system.decoder[0].weight, system.decoder[0].bias
    noise = system.learned_likelihood["log_scale"].exp() ** 2 * torch.eye(len(bias))
    return MultivariateNormal(weight @ mean + bias, weight @ covariance @ weight.T + noise)


# Linear-Gaussian layers.


@BOTH
@pytest.mark.parametrize("sizes", [(2,), (3, 2), (2, 3, 1)])
def test_evidence_of_linear_layers(guide: type[Hierarchy], sizes: tuple[int, ...]) -> None:
    system, x = linear(guide, sizes), torch.randn(7, D)
    with torch.no_grad():
        expected = marginal(system).log_prob(x)
    torch.testing.assert_close(exact_log_likelihood(system, x), expected, rtol=0, atol=1e-8)


def test_collapsed_layers_have_the_covariance_of_draws() -> None:
    system = linear(BottomUp, (2, 3))
    with torch.no_grad():
        weight, bias, _ = system.linear_gaussian()
        assert weight.shape == (D, 5)
        x = system.sample(200_000)  # the means of p(x|z)
    torch.testing.assert_close(x.mean(0), bias, atol=0.02, rtol=0)
    torch.testing.assert_close(x.T.cov(), weight @ weight.T, atol=0.05, rtol=0.02)


def at_posterior(guide: type[Hierarchy]) -> Autoencoder:
    """Layers of one unit, whose guide is the exact posterior in either order."""
    system = linear(guide, (1, 1), features=1, scale=0.7)
    with torch.no_grad():
        (w,), b = system.decoder[0].weight[0], system.decoder[0].bias[0]
        layer = system.upper[0]
        (a,), c = layer.decoder[0].weight[0], layer.decoder[0].bias[0]
        noise, scale = system.learned_likelihood["log_scale"].exp() ** 2, torch.tensor(0.49)
        head = system.encoder[0]
        if guide is TopDown:  # μ̂, log σ̂² of z given x alone; then mean and log-variance of z2|x
            gain = w * a / ((w * a) ** 2 + w**2 * scale + noise)
            rows = [(1 / w, -b / w), (0 * w, (noise / w**2).log())]
            rows += [(gain, -gain * (w * c + b)), (0 * w, (1 - gain * w * a).log())]
        else:
            gain = w * (a**2 + scale) / (w**2 * (a**2 + scale) + noise)
            variance = (1 - gain * w) * (a**2 + scale)
            rows = [(gain, c - gain * (w * c + b)), (0 * w, variance.log())]
            up, above = layer.encoder[0], a / (a**2 + scale)
            up.weight.copy_(torch.stack([above, 0 * a])[:, None])
            up.bias.copy_(torch.stack([-above * c, (1 - above * a).log()]))
        head.weight.copy_(torch.stack([slope for slope, _ in rows])[:, None])
        head.bias.copy_(torch.stack([offset for _, offset in rows]))
    return system


@BOTH
def test_exact_posterior_makes_every_weight_the_evidence(guide: type[Hierarchy]) -> None:
    """The combined precisions of a ladder are those of p(z|x, z2) at the exact estimates."""
    system, x = at_posterior(guide), torch.randn(6, 1)
    weights = log_weights(system.model, system.guide, x, num_particles=5).log_weight
    expected = exact_log_likelihood(system, x).expand(5, -1)
    torch.testing.assert_close(weights.detach(), expected, rtol=0, atol=1e-10)


@BOTH
def test_estimates_agree_with_the_closed_form(guide: type[Hierarchy]) -> None:
    """Importance sampling and annealing within 4 standard errors, quadrature to its error."""
    system = at_posterior(guide)
    with torch.no_grad():  # off the posterior, and wider
        system.encoder[0].bias.add_(0.3)
    x = system.sample(4, noise=True)
    exact = exact_log_likelihood(system, x)
    importance = log_likelihood(system.model, system.guide, x, num_particles=4000, seed=0)
    settings = AISSettings(64, 15)
    annealed = ais(system.model, system.guide, x, settings=settings, seed=0)
    for found in (importance, annealed):
        assert 0 < found.monte_carlo_se < 0.1
        assert abs(found.nll + exact.mean()) < 4 * found.monte_carlo_se
    grid = quadrature(system.model, system.guide, x)
    torch.testing.assert_close(grid.log_px, exact, rtol=0, atol=1e-6)


@BOTH
def test_full_local_gaussians_close_the_approximation_gap(guide: type[Hierarchy]) -> None:
    """The posterior over both layers together is a Gaussian with correlations."""
    system = linear(guide, (2, 2))
    x = system.sample(5, noise=True)
    found = gaps(system.model, system.guide, x, log_px=exact_log_likelihood(system, x), seed=0)
    full = found.families["full-rank"].approximation.values
    assert full.abs().max() < 1e-5
    assert found.families["diagonal"].approximation.values.min() > 1e-3


# Densities written by hand.


def run_layers(module: torch.nn.Module, x: Tensor) -> Tensor:
    layers = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
    return oracles.mlp(x, [(layer.weight, layer.bias) for layer in layers])


def by_hand(system: Autoencoder, x: Tensor, z: dict[str, Tensor]) -> Tensor:
    """log p(x, z) − log q(z|x) of three layers with one hidden layer of 6 and maps of 3."""
    z1, z2, z3 = z["z"], z["z2"], z["z3"]
    up, down = ([getattr(u, n) for u in system.upper] for n in ("encoder", "decoder"))

    def normal(value: Tensor, output: Tensor) -> Tensor:
        mean, log_variance = output.chunk(2, -1)
        return -oracles.normal_nll(value, mean, (0.5 * log_variance).exp())

    log_p = (
        -oracles.bernoulli_nll(x, run_layers(system.decoder, z1))
        + normal(z1, run_layers(down[0], z2))
        + normal(z2, run_layers(down[1], z3))
        - oracles.normal_nll(z3, torch.zeros(2))
    )
    if isinstance(system.hierarchy, BottomUp):
        first = normal(z1, run_layers(system.encoder, x))
        upper = normal(z2, run_layers(up[0], z1)) + normal(z3, run_layers(up[1], z2))
        return log_p - first - upper

    def combined(value: Tensor, estimate: Tensor, prior: Tensor) -> Tensor:
        (mean, s), (other, t) = estimate.chunk(2, -1), prior.chunk(2, -1)
        precision = 1 / s.exp() + 1 / t.exp()
        centre = (mean / s.exp() + other / t.exp()) / precision
        return -oracles.normal_nll(value, centre, precision**-0.5)

    first = run_layers(system.encoder, x)
    second = run_layers(up[0], torch.tanh(first[..., 8:]))
    third = run_layers(up[1], torch.tanh(second[..., 6:]))
    return (
        log_p
        - normal(z3, third)
        - combined(z2, second[..., :6], run_layers(down[1], z3))
        - combined(z1, first[..., :8], run_layers(down[0], z2))
    )


@BOTH
def test_log_weights_by_hand(guide: type[Hierarchy]) -> None:
    system, x = small(guide((3,))), (torch.rand(4, D) < 0.5).double()
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        pyro.set_rng_seed(1)
        weights = log_weights(system.model, system.guide, x, num_particles=7).log_weight
        pyro.set_rng_seed(1)
        traces = log_weights_traces(system, x)
        torch.testing.assert_close(weights, by_hand(system, x, traces), rtol=0, atol=1e-10)


def log_weights_traces(system: Autoencoder, x: Tensor) -> dict[str, Tensor]:
    """The draws of 7 particles by site, `[7, 4, m]`."""
    from pyroae.programs.traces import run

    traces = run(system.model, system.guide, (x,), {}, 7)
    return {name: traces.guide.nodes[name]["value"].detach() for name in ("z", "z2", "z3")}


def test_combination_of_precisions_with_extreme_variances() -> None:
    one, other = (torch.tensor([1.0]), torch.tensor([-60.0])), (torch.zeros(1), torch.zeros(1))
    for first, second in ((one, other), (other, one)):
        loc, log_variance = precision_weighted(first, second)
        torch.testing.assert_close(loc, torch.ones(1))
        torch.testing.assert_close(log_variance, torch.tensor([-60.0]))


@BOTH
def test_kl_by_layer(guide: type[Hierarchy]) -> None:
    """From the top down the KL of each layer has a closed form; the layers add up to the rate."""
    system, x = small(guide((3,))), (torch.rand(40, D) < 0.5).double()
    found = diagnose(system.model, system.guide, x, num_particles=400, seed=0)
    upwards = ("z",) * 4 + ("z2",) * 3 + ("z3",) * 2
    assert found.site == (upwards if guide is BottomUp else upwards[::-1])
    assert sum(found.rate_per_site.values()) == pytest.approx(found.rate.mean().item(), abs=0.05)
    assert sum(found.active_per_site.values()) == found.active_units
    if guide is TopDown:
        assert min(found.rate_per_site.values()) >= 0
        mean, scale = system.q_z(x).mean, system.q_z(x).stddev
        top = oracles.gaussian_kl(mean, scale).mean().item()
        assert found.rate_per_site["z3"] == pytest.approx(top, rel=1e-10)
