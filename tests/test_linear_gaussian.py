"""Closed forms against the joint Gaussian of (z, x) inverted by brute force, and against
scikit-learn's PCA.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from pyroae.errors import PyroaeError
from pyroae.linear_gaussian import (
    PrincipalSubspace,
    marginal,
    maximum_likelihood,
    posterior,
    posterior_distribution,
)

pytestmark = pytest.mark.usefixtures("float64")


def system(d: int, m: int, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(d, m), torch.randn(d), torch.tensor(sigma)


def brute_force_log_density(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    r = x - mean
    quadratic = np.einsum("ni,ij,nj->n", r, np.linalg.inv(covariance), r)
    return -0.5 * (quadratic + np.linalg.slogdet(covariance)[1] + len(mean) * math.log(2 * math.pi))


SIZES = pytest.mark.parametrize(("d", "m"), [(5, 2), (3, 3), (2, 4), (1, 1)])
SCALES = pytest.mark.parametrize("sigma", [1.3, 0.1])


@SIZES
@SCALES
def test_posterior_is_the_conditional_of_the_joint(d: int, m: int, sigma: float) -> None:
    """Cov(z, x) = Wᵀ, Cov(x) = S = WWᵀ + σ²I: z|x ~ N(WᵀS⁻¹(x − b), I − WᵀS⁻¹W)."""
    weight, bias, scale = system(d, m, sigma)
    x = torch.randn(4, d)
    loc, tril = posterior(x, weight, bias, scale)
    w = weight.numpy()
    gain = w.T @ np.linalg.inv(w @ w.T + sigma**2 * np.eye(d))
    np.testing.assert_allclose(loc.numpy(), (x - bias).numpy() @ gain.T, rtol=0, atol=1e-10)
    np.testing.assert_allclose((tril @ tril.T).numpy(), np.eye(m) - gain @ w, rtol=0, atol=1e-10)
    assert (tril.triu(1) == 0).all()


@SIZES
@SCALES
def test_marginal_is_the_gaussian_of_the_full_covariance(d: int, m: int, sigma: float) -> None:
    weight, bias, scale = system(d, m, sigma)
    x, w = torch.randn(4, d), weight.numpy()
    covariance = w @ w.T + sigma**2 * np.eye(d)
    expected = brute_force_log_density(x.numpy(), bias.numpy(), covariance)
    p_x = marginal(weight, bias, scale)
    np.testing.assert_allclose(p_x.log_prob(x).numpy(), expected, rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(p_x.covariance_matrix.numpy(), covariance, rtol=0, atol=1e-12)


@SCALES
def test_bayes_rule_holds_at_every_z(sigma: float) -> None:
    """log p(z) + log p(x|z) − log p(z|x) = log p(x): log-weights under the exact posterior are
    constant.
    """
    weight, bias, scale = system(5, 2, sigma)
    x, z = torch.randn(4, 5), 3 * torch.randn(100, 4, 2)
    normal = torch.distributions.Normal
    joint = normal(0.0, 1.0).log_prob(z).sum(-1) + normal(z @ weight.T + bias, scale).log_prob(
        x
    ).sum(-1)
    log_weight = joint - posterior_distribution(x, weight, bias, scale).log_prob(z)
    expected = marginal(weight, bias, scale).log_prob(x).expand(100, 4)
    torch.testing.assert_close(log_weight, expected, rtol=1e-10, atol=1e-10)


def test_posterior_takes_any_leading_dimensions() -> None:
    weight, bias, scale = system(5, 2, 0.7)
    x = torch.randn(3, 4, 5)
    loc, _ = posterior(x, weight, bias, scale)
    assert loc.shape == (3, 4, 2)
    torch.testing.assert_close(loc[2, 1], posterior(x[2, 1], weight, bias, scale)[0])


# Maximum likelihood


@pytest.fixture
def x() -> Tensor:
    draw = np.random.default_rng(0)
    return torch.from_numpy(
        draw.normal(size=(300, 2)) @ draw.normal(size=(2, 6)) * 2 + draw.normal(size=(300, 6)) + 3
    )


def mean_log_px(x: Tensor, best: PrincipalSubspace) -> float:
    return marginal(best.weight, best.bias, best.scale).log_prob(x).mean().item()


@pytest.mark.parametrize("latent", [1, 2, 5])
def test_maximum_likelihood_is_that_of_scikit_learn(x: Tensor, latent: int) -> None:
    """Whose covariance is of 1/(N − 1), ours of 1/N."""
    pca, best, n = PCA(latent).fit(x.numpy()), maximum_likelihood(x, latent), len(x)
    shrink = (n - 1) / n
    fitted = (best.weight @ best.weight.T + best.scale**2 * torch.eye(6)).numpy()
    np.testing.assert_allclose(fitted, pca.get_covariance() * shrink, rtol=0, atol=1e-10)
    np.testing.assert_allclose(best.scale.item() ** 2, pca.noise_variance_ * shrink, rtol=1e-10)
    np.testing.assert_allclose(best.bias.numpy(), pca.mean_, rtol=0, atol=1e-10)
    expected = brute_force_log_density(x.numpy(), pca.mean_, pca.get_covariance() * shrink).mean()
    assert best.log_px == pytest.approx(expected, abs=1e-10)
    # At 1/(N − 1) the likelihood is lower by d/2 (log(N/(N − 1)) + (N − 1)/N − 1).
    assert best.log_px - pca.score(x.numpy()) == pytest.approx(
        3 * (-math.log(shrink) + shrink - 1), abs=1e-10
    )


@pytest.mark.parametrize("latent", [1, 2, 5])
def test_discarded_variance_is_the_reconstruction_error_of_pca(x: Tensor, latent: int) -> None:
    pca = PCA(latent).fit(x.numpy())
    error = np.square(x.numpy() - pca.inverse_transform(pca.transform(x.numpy()))).sum(1).mean()
    assert maximum_likelihood(x, latent).discarded == pytest.approx(error, abs=1e-10)


@pytest.mark.parametrize("latent", [1, 2, 5])
def test_nothing_near_is_more_likely(x: Tensor, latent: int) -> None:
    best = maximum_likelihood(x, latent)
    assert mean_log_px(x, best) == pytest.approx(best.log_px, abs=1e-10)
    for size in (1e-1, 1e-2):
        for name in ("weight", "bias", "scale"):
            value = getattr(best, name)
            for _ in range(5):
                step = torch.randn_like(value)
                moved = dataclasses.replace(best, **{name: value + size * step / step.norm()})
                assert mean_log_px(x, moved) < best.log_px - 1e-3 * size**2


def test_gradient_vanishes_at_the_maximum(x: Tensor) -> None:
    best = maximum_likelihood(x, 2)
    parameters = [p.clone().requires_grad_() for p in (best.weight, best.bias, best.scale)]
    gradients = torch.autograd.grad(marginal(*parameters).log_prob(x).mean(), parameters)
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-10)
    off = [p.detach() * 1.1 for p in parameters]
    for value in off:
        value.requires_grad_()
    assert (
        min(g.norm() for g in torch.autograd.grad(marginal(*off).log_prob(x).mean(), off)) > 1e-2
    )  # not flat elsewhere


def test_single_precision_data_are_solved_in_double(x: Tensor) -> None:
    best, rounded = maximum_likelihood(x.float(), 2), maximum_likelihood(x.float().double(), 2)
    assert best.weight.dtype == torch.float64
    assert best.log_px == rounded.log_px


@pytest.mark.parametrize("latent", [6, 7])
def test_no_direction_left_for_the_noise(x: Tensor, latent: int) -> None:
    """σ² would be a mean of nothing."""
    with pytest.raises(PyroaeError, match="latent"):
        maximum_likelihood(x, latent)
