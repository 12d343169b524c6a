"""The estimators keep scikit-learn's conventions, and PPCA agrees with its PCA."""

import pickle
import random
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyroae import exact_log_likelihood, zoo
from pyroae.errors import ConfigError, DataError
from pyroae.evaluation import log_likelihood
from pyroae.likelihoods import Bernoulli, Normal
from pyroae.sklearn import PPCA, VAE, Autoencoder, DenoisingAutoencoder, SparseAutoencoder
from pyroae.sklearn.base import seeds_of

SMALL: dict[str, Any] = {"hidden": (4,), "epochs": 1}
ESTIMATORS = [
    PPCA(),
    VAE(num_particles=5, **SMALL),
    Autoencoder(**SMALL),
    DenoisingAutoencoder(**SMALL),
    SparseAutoencoder(**SMALL),
]


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return load_digits().data / 16


@pytest.fixture(scope="module")
def vae(digits: np.ndarray) -> VAE:
    """A VAE trained for a moment on few digits."""
    return VAE(2, epochs=2, lr=0.01, num_particles=50, random_state=3).fit(digits[:200])


@parametrize_with_checks(ESTIMATORS)
def test_conventions(estimator: Any, check: Any) -> None:
    check(estimator)


def test_ppca_agrees_with_pca(digits: np.ndarray) -> None:
    """PCA divides by N − 1: its covariance is c = N/(N − 1) times the maximum-likelihood one."""
    ppca, pca, num_data = PPCA(10).fit(digits), PCA(10).fit(digits), len(digits)
    assert ppca.noise_variance_ == pytest.approx(
        pca.noise_variance_ * (num_data - 1) / num_data, rel=1e-10
    )
    assert ppca.score(digits) == pytest.approx(pca.score(digits), abs=1e-4)
    assert ppca.score(digits) > pca.score(digits)  # it maximizes the likelihood
    ratio, size = num_data / (num_data - 1), digits.shape[1]
    covariance = ppca.components_.T @ ppca.components_ + ppca.noise_variance_ * np.eye(size)
    constant = size * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1]
    square = -2 * ppca.score_samples(digits) - constant
    expected = -0.5 * (constant + size * np.log(ratio) + square / ratio)
    np.testing.assert_allclose(pca.score_samples(digits), expected, atol=1e-8)
    assert subspace_angles(ppca.components_.T, pca.components_.T).max() < 1e-6
    np.testing.assert_allclose(ppca.mean_, pca.mean_, atol=1e-12)


def test_ppca_maps_by_its_components(digits: np.ndarray) -> None:
    ppca = PPCA(3).fit(digits)
    z = ppca.transform(digits[:5])
    back = ppca.inverse_transform(z)
    np.testing.assert_allclose(back, z @ ppca.components_ + ppca.mean_, atol=1e-12)
    inner = ppca.components_ @ ppca.components_.T + ppca.noise_variance_ * np.eye(3)
    exact = np.linalg.solve(inner, ppca.components_ @ (digits[:5] - ppca.mean_).T).T
    np.testing.assert_allclose(z, exact, atol=1e-10)


def test_ppca_refuses_data_without_noise() -> None:
    with pytest.raises(DataError, match="noise would be 0"):
        PPCA(2).fit(np.random.default_rng(0).normal(size=(3, 5)))


def test_log_likelihoods_are_those_of_the_package(vae: VAE, digits: np.ndarray) -> None:
    x = torch.from_numpy(digits[200:208])
    system = vae.model_
    seeds = seeds_of(x, 3)
    estimate = log_likelihood(system.model, system.guide, x, num_particles=50, seed=seeds)
    np.testing.assert_array_equal(vae.score_samples(digits[200:208]), estimate.log_px.numpy())
    assert vae.score(digits[200:208]) == pytest.approx(estimate.log_px.mean().item())


def test_score_samples_are_right_for_a_linear_system() -> None:
    """With the exact posterior as the guide the importance weights are constant."""
    x = np.random.default_rng(0).normal(size=(6, 3))
    vae = VAE(1, epochs=1, num_particles=3, random_state=0).fit(x)
    vae.model_ = zoo.ppca(3, latent=1, exact=True).double().eval()
    exact = exact_log_likelihood(vae.model_, torch.from_numpy(x))
    np.testing.assert_allclose(vae.score_samples(x), exact.numpy(), atol=1e-9)


def test_draws_of_a_datum_depend_on_no_other(vae: VAE, digits: np.ndarray) -> None:
    whole = vae.score_samples(digits[:6])
    np.testing.assert_allclose(vae.score_samples(digits[3:6][::-1]), whole[3:6][::-1], atol=1e-9)
    vae_again = pickle.loads(pickle.dumps(vae))
    np.testing.assert_array_equal(vae_again.score_samples(digits[:6]), whole)


def test_global_generators_and_output_are_left_alone(
    digits: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    before = np.random.get_state()[1].copy(), torch.get_rng_state(), random.getstate()  # noqa: NPY002
    fitted = VAE(1, num_particles=5, **SMALL).fit(digits[:50])
    fitted.score(digits[:5])
    fitted.sample(3)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])
    assert random.getstate() == before[2]
    assert capsys.readouterr() == ("", "")


def test_a_seed_repeats_a_fit_and_none_does_not(digits: np.ndarray) -> None:
    def codes(random_state: Any) -> np.ndarray:
        return Autoencoder(random_state=random_state, **SMALL).fit_transform(digits[:50])

    np.testing.assert_array_equal(codes(1), codes(1))
    np.testing.assert_array_equal(
        codes(np.random.RandomState(1)),
        codes(np.random.RandomState(1)),
    )
    assert not np.allclose(codes(None), codes(None))


def test_the_likelihood_follows_the_data(digits: np.ndarray) -> None:
    def likelihood(x: np.ndarray, **given: Any) -> Any:
        return VAE(1, **SMALL, **given).fit(x).model_.likelihood

    assert likelihood((digits[:50] > 0.5) * 1) == Bernoulli()
    assert likelihood(digits[:50]) == Normal("learned")
    assert likelihood(digits[:50], likelihood="normal:scale=0.5") == Normal(0.5)


def test_a_training_learns(digits: np.ndarray) -> None:
    short, long = (
        Autoencoder(5, epochs=epochs, lr=0.01, random_state=0).fit(digits[:300])
        for epochs in (1, 20)
    )
    assert long.score(digits[300:]) > short.score(digits[300:]) + 0.5
    assert (long.n_iter_, len(long.history_)) == (20, 20)


def test_missing_methods_give_the_reason(digits: np.ndarray) -> None:
    for estimator, method in (
        (Autoencoder(**SMALL), "score_samples"),
        (DenoisingAutoencoder(**SMALL), "sample"),
        (SparseAutoencoder(**SMALL), "score_samples"),
    ):
        assert not hasattr(estimator, method)
        with pytest.raises(AttributeError) as caught:
            getattr(estimator, method)
        assert f"has no {method}: its" in str(caught.value.__cause__)
    assert SparseAutoencoder(**SMALL).fit(digits[:50]).sample(2).shape == (2, 64)


def test_names_of_a_frame_and_of_codes(digits: np.ndarray) -> None:
    frame = pd.DataFrame(digits[:50, 20:24], columns=list("abcd"))
    ppca = PPCA(2).set_output(transform="pandas").fit(frame)
    assert list(ppca.feature_names_in_) == list("abcd")
    assert list(ppca.transform(frame).columns) == ["ppca0", "ppca1"]
    with pytest.raises(ValueError, match="feature names should match"):
        ppca.transform(frame.rename(columns={"a": "z"}))


def test_a_pipeline_and_a_search(digits: np.ndarray) -> None:
    pipeline = make_pipeline(StandardScaler(), PPCA(3)).fit(digits)
    assert pipeline.transform(digits[:2]).shape == (2, 3)
    assert np.isfinite(pipeline.score(digits))
    search = GridSearchCV(PPCA(), {"n_components": [1, 20]}, cv=3).fit(digits[:300])
    assert search.best_params_ == {"n_components": 20}
    small = VAE(num_particles=2, random_state=0, **SMALL)
    found = GridSearchCV(small, {"n_components": [1, 2]}, cv=2).fit(digits[:20])
    assert np.isfinite(found.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_components": 0}, "at least one dimension"),
        ({"likelihood": "bernouli"}, "did you mean 'bernoulli'"),
        ({"objective": "no-such"}, "unknown"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"random_state": -1}, "random_state takes"),
        ({"activation": "relue"}, "did you mean 'relu'"),
    ],
)
def test_bad_settings_are_one_sentence(
    settings: dict[str, Any], words: str, digits: np.ndarray
) -> None:
    estimator = clone(VAE(num_particles=5)).set_params(**settings)
    with pytest.raises(ConfigError, match=words):
        estimator.fit(digits[:20])


def test_values_that_the_likelihood_does_not_have(digits: np.ndarray) -> None:
    with pytest.raises(DataError, match="X"):
        VAE(likelihood="bernoulli", **SMALL).fit(digits[:20] * 16)


def test_seeds_must_be_as_many_as_the_data(vae: VAE, digits: np.ndarray) -> None:
    system, x = vae.model_, torch.from_numpy(digits[:3])
    with pytest.raises(ConfigError, match="2 seeds for 3 data"):
        log_likelihood(system.model, system.guide, x, num_particles=2, seed=[0, 1])
