"""What all scikit-learn estimators of the package share: transform, its inverse, and draws."""

from abc import ABC, abstractmethod
from hashlib import blake2b
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from pyroae import autoencoder
from pyroae.errors import ConfigError
from pyroae.runtime.randomness import fork_random

Array = NDArray[np.float64]
"""Numbers in double precision."""

RandomState = int | np.random.RandomState | None
"""A seed, a generator that gives one, or None for a new seed in every call."""


def _has(method: str) -> Any:
    """A method that a class lacks where `lacks` gives the reason."""

    def check(estimator: "LatentModel") -> bool:
        if method in estimator.lacks:
            raise AttributeError(
                f"{type(estimator).__name__} has no {method}: {estimator.lacks[method]}"
            )
        return True

    return available_if(check)


class LatentModel(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator, ABC):
    """A system of the package as a transformer of scikit-learn, x ↦ E_q[z|x].

    A subclass has the parameters `n_components` and `random_state`, `fit`, which sets `model_`, and
    `_log_px`. The trained system is kept on the CPU in double precision, so that results do not
    depend on the data that are passed together, and a pickle can be read on any machine.

    Attributes:
        lacks: Methods that the estimator does not have, and why.
        model_: The trained `pyroae.Autoencoder`.
        n_features_in_: d, the number of features seen in `fit`.
        feature_names_in_: Their names, of a DataFrame.
    """

    lacks: ClassVar[dict[str, str]] = {}
    n_components: int
    random_state: RandomState
    model_: autoencoder.Autoencoder
    n_features_in_: int
    _seed: int

    @abstractmethod
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Train on data.

        Args:
            X: Data, shape `[N, d]`.
            y: Ignored.

        Returns:
            The estimator itself.
        """

    @abstractmethod
    def _log_px(self, x: Tensor) -> Tensor:
        """Log p(x) of data `[N, d]`, shape `[N]`, nats."""

    def transform(self, X: ArrayLike) -> Array:
        """Return the mean of q(z|x).

        Args:
            X: Data, shape `[N, d]`.

        Returns:
            Codes, shape `[N, n_components]`.
        """
        return self.model_.encode(self._seen(X)).numpy()

    def inverse_transform(self, X: ArrayLike) -> Array:
        """Return the mean of p(x|z).

        Args:
            X: Codes z, shape `[N, n_components]`.

        Returns:
            Data, shape `[N, d]`; under a Bernoulli likelihood probabilities.
        """
        check_is_fitted(self)
        codes = check_array(X, dtype=np.float64)
        return self.model_.decode(tensor_of(codes)).numpy()

    @_has("score_samples")
    def score_samples(self, X: ArrayLike) -> Array:
        """Return log p(x) of each datum.

        Args:
            X: Data, shape `[N, d]`.

        Returns:
            The log-density, or of discrete data the log-probability, shape `[N]`, in nats.
        """
        return self._log_px(self._seen(X)).numpy()

    def score(self, X: ArrayLike, y: Any = None) -> float:
        """Return the mean of log p(x).

        Args:
            X: Data, shape `[N, d]`.
            y: Ignored.

        Returns:
            The mean, in nats per datum; larger is better.
        """
        return float(np.mean(self.score_samples(X)))

    @_has("sample")
    def sample(self, n_samples: int = 1) -> Array:
        """Draw new data from p(z) p(x|z).

        Args:
            n_samples: The number of draws.

        Returns:
            Data, shape `[n_samples, d]`; the same in every call if `random_state` is a number.

        Raises:
            ConfigError: `n_samples` is below 1.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ConfigError(f"n_samples must be at least 1, not {n_samples}")
        with fork_random(torch.device("cpu"), seed_from(self.random_state)):
            return self.model_.sample(n_samples, noise=True).numpy()

    @property
    def _n_features_out(self) -> int:
        """The number of codes, by which scikit-learn names the columns."""
        return self.model_.latent

    def _seen(self, X: ArrayLike) -> Tensor:
        """Data to be transformed, checked against those of `fit`."""
        check_is_fitted(self)
        return tensor_of(validate_data(self, X, dtype=np.float64, reset=False))


def tensor_of(values: Array) -> Tensor:
    """Return an array as a tensor with memory of its own, which may be written to.

    Args:
        values: Numbers, any shape.

    Returns:
        The same numbers, float64.
    """
    return torch.from_numpy(np.array(values, dtype=np.float64, order="C"))


def seed_from(random_state: RandomState) -> int:
    """Return a seed, without touching the global generator of NumPy.

    Args:
        random_state: A seed; a generator, which draws one; or None for a new one in each call.

    Returns:
        A number from 0 to 2³¹ − 1, or the seed that was given.

    Raises:
        ConfigError: It is none of these, or negative.

    >>> seed_from(3)
    3
    """
    if random_state is None:
        return int(np.random.default_rng().integers(2**31))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if not isinstance(random_state, int | np.integer) or random_state < 0:
        raise ConfigError(
            f"random_state takes None, a seed of at least 0 or a RandomState, not {random_state!r}"
        )
    return int(random_state)


def seeds_of(x: Tensor, seed: int) -> list[int]:
    """Return a seed for each datum, which depends on the values of the datum and on one seed.

    Args:
        x: Data, shape `[N, d]`.
        seed: The seed of all of them.

    Returns:
        N seeds; equal data have equal ones.

    >>> one, other = torch.zeros(1, 2), torch.ones(1, 2)
    >>> seeds_of(torch.cat([one, other]), seed=0)[1] == seeds_of(other, seed=0)[0]
    True
    """
    key = seed.to_bytes(8, "little")
    rows = (blake2b(row.tobytes(), digest_size=7, key=key) for row in x.numpy())
    return [int.from_bytes(row.digest(), "little") for row in rows]
