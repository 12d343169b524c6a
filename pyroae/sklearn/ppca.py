"""Probabilistic PCA at the maximum of its likelihood, as a scikit-learn estimator."""

from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.validation import validate_data
from torch import Tensor

from pyroae import linear_gaussian, zoo
from pyroae.config.checks import at_least
from pyroae.errors import DataError
from pyroae.evaluation.exact import exact_log_likelihood
from pyroae.sklearn.base import LatentModel, RandomState, tensor_of


class PPCA(LatentModel):
    """Probabilistic PCA, fitted in closed form.

        z ~ N(0, I),   x|z ~ N(W z + b, σ²I)

    `transform` is the exact posterior mean E[z|x], `score_samples` the exact log p(x). They are
    those of the maximum of the likelihood, where `sklearn.decomposition.PCA` divides variances by
    N − 1 instead of N.

    Args:
        n_components: m, the size of z, below the number of features.
        random_state: A seed, or a RandomState, of `sample`; the fit has no draws.

    Attributes:
        components_: Wᵀ, shape `[m, d]`; x is reconstructed as `z @ components_ + mean_`.
        mean_: b, shape `[d]`.
        noise_variance_: σ².
        model_: The system, `zoo.ppca` with the exact posterior.

    References:
        Tipping & Bishop 1999, Probabilistic Principal Component Analysis.

    >>> x = np.random.default_rng(0).normal(size=(50, 3)) * [3.0, 1.0, 1.0]
    >>> ppca = PPCA(n_components=1).fit(x)
    >>> ppca.transform(x).shape, ppca.get_feature_names_out()
    ((50, 1), array(['ppca0'], dtype=object))
    """

    def __init__(self, n_components: int = 1, *, random_state: RandomState = None) -> None:
        self.n_components = n_components
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Fit W, b and σ at the maximum of the likelihood.

        Args:
            X: Data, shape `[N, d]`.
            y: Ignored.

        Returns:
            The estimator itself.

        Raises:
            ConfigError: `n_components` is below 1.
            DataError: The data lie in `n_components` dimensions, so that σ would be 0.
        """
        at_least("n_components", self.n_components, 1)
        x = validate_data(
            self,
            X,
            dtype=np.float64,
            ensure_min_samples=2,
            ensure_min_features=self.n_components + 1,
        )
        fitted = linear_gaussian.maximum_likelihood(tensor_of(x), self.n_components)
        variance = float(x.var(0).sum())
        rounding = max(x.shape) * np.finfo(np.float64).eps * variance
        if not fitted.scale.square() > rounding:
            raise DataError(
                f"the {len(x)} samples lie in {self.n_components} dimensions, so that the noise "
                "would be 0: give fewer n_components or more samples"
            )
        system = zoo.ppca(x.shape[1], self.n_components, exact=True).double()
        system.decoder.load_state_dict({"0.weight": fitted.weight, "0.bias": fitted.bias})
        with torch.no_grad():
            cast(Any, system.learned_likelihood)["log_scale"].copy_(fitted.scale.log())
        self.model_ = system.eval()
        self.components_ = fitted.weight.t().contiguous().numpy()
        self.mean_ = fitted.bias.numpy()
        self.noise_variance_ = fitted.scale.square().item()
        return self

    def _log_px(self, x: Tensor) -> Tensor:
        return exact_log_likelihood(self.model_, x)
