"""Systems that are trained by gradients, as scikit-learn estimators: the VAE and autoencoders."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.validation import validate_data
from torch import Tensor

from pyroae import autoencoder, corruptions, likelihoods, zoo
from pyroae.config import TrainConfig
from pyroae.data.dataset import Dataset
from pyroae.evaluation import log_likelihood
from pyroae.nn import MLP
from pyroae.objectives import parse_objective
from pyroae.runtime.randomness import fork_random
from pyroae.sklearn.base import LatentModel, RandomState, seed_from, seeds_of, tensor_of
from pyroae.training.fitting import fit
from pyroae.training.state import Epoch


class Trained(LatentModel):
    """An estimator that trains a system by `pyroae.fit`.

    A subclass has the settings of the training as parameters, and `_system`.

    Attributes:
        history_: The metrics of each epoch.
        n_iter_: The number of epochs.
    """

    hidden: int | Sequence[int]
    activation: str
    objective: str
    epochs: int
    batch_size: int
    lr: float
    accelerator: str
    verbose: int
    history_: tuple[Epoch, ...]

    @abstractmethod
    def _system(self, data: Dataset) -> autoencoder.Autoencoder:
        """A new system for data in single precision."""

    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Train a new system; all random generators have their previous states afterwards.

        Args:
            X: Data, shape `[N, d]`.
            y: Ignored.

        Returns:
            The estimator itself.

        Raises:
            ConfigError: A parameter is not accepted.
            DataError: The likelihood has no density for the data.
            NonFiniteLossError: The loss became NaN or infinite.
        """
        x = validate_data(self, X, dtype=np.float64)
        self._seed = seed_from(self.random_state)
        config = TrainConfig(
            epochs=self.epochs,
            batch_size=min(self.batch_size, len(x)),
            lr=self.lr,
            keep="last",
            seed=self._seed,
            accelerator=self.accelerator,
        )
        data = Dataset("X", tensor_of(x).float(), (x.shape[1],))
        objective = parse_objective(self.objective)
        with fork_random(torch.device("cpu"), self._seed):
            system = self._system(data)
        result = fit(system, data, objective, config, progress=bool(self.verbose))
        self.model_ = system.cpu().double().eval()
        self.history_, self.n_iter_ = result.history, len(result.history)
        return self

    def _widths(self) -> MLP:
        widths = (self.hidden,) if isinstance(self.hidden, int) else tuple(self.hidden)
        return MLP(widths, self.activation)


class VAE(Trained):
    """A variational autoencoder, with importance-sampled log-likelihoods.

        loss per datum: −E_q log p(x|z) + KL(q(z|x) ‖ N(0, I))

    `score_samples` is log p̂(x) = log (1/K) Σ_k p(x, z_k) / q(z_k|x), a lower bound of log p(x) in
    expectation. The draws of a datum depend on its values and on `random_state` alone, not on the
    other data. Data far from mean 0 and variance 1 train better behind a `StandardScaler`.

    Args:
        n_components: m, the size of z.
        likelihood: p(x|z) as a text, for example `bernoulli` or `normal:scale=feature`; `auto` for
            a Bernoulli where every value is 0 or 1, else a Normal with one learned σ. A density and
            a probability cannot be compared by `score`.
        hidden: The widths of the encoder's hidden layers; the decoder's are in reverse order.
        activation: The function between layers.
        objective: The ELBO estimator as a text, for example `iwae:num_particles=8`.
        epochs: Passes over the data.
        batch_size: Data in one step; all data where there are fewer.
        lr: The learning rate of Adam, for a loss in nats per datum.
        num_particles: K of `score_samples`, draws of z per datum.
        random_state: A seed, or a RandomState, of the initial weights and of all draws; None for
            another one in each fit.
        accelerator: Where the training runs: cpu, cuda, mps or auto.
        verbose: Whether progress is shown.

    Attributes:
        model_: The trained system.
        history_: The metrics of each epoch.
        n_iter_: The number of epochs.

    References:
        Kingma & Welling 2014, Auto-Encoding Variational Bayes.
        Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders, for log p̂(x).

    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> vae = VAE(n_components=1, hidden=(4,), epochs=1, num_particles=10, random_state=0).fit(x)
    >>> vae.transform(x).shape, vae.score_samples(x).shape, vae.sample(2).shape
    ((20, 1), (20,), (2, 3))
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        likelihood: str = "auto",
        hidden: int | Sequence[int] = (64,),
        activation: str = "tanh",
        objective: str = "analytic-kl",
        epochs: int = 50,
        batch_size: int = 100,
        lr: float = 1e-3,
        num_particles: int = 1000,
        random_state: RandomState = None,
        accelerator: str = "cpu",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.likelihood = likelihood
        self.hidden = hidden
        self.activation = activation
        self.objective = objective
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.num_particles = num_particles
        self.random_state = random_state
        self.accelerator = accelerator
        self.verbose = verbose

    def _system(self, data: Dataset) -> autoencoder.Autoencoder:
        text = self.likelihood
        if text == "auto":
            is_binary = bool(((data.x == 0) | (data.x == 1)).all())
            text = "bernoulli" if is_binary else "normal:scale=learned"
        likelihood = likelihoods.LIKELIHOODS.parse(text)
        return zoo.vae(data, self.n_components, encoder=self._widths(), likelihood=likelihood)

    def _log_px(self, x: Tensor) -> Tensor:
        return log_likelihood(
            self.model_.model,
            self.model_.guide,
            x,
            num_particles=self.num_particles,
            seed=seeds_of(x, self._seed),
        ).log_px


class Autoencoder(Trained):
    """A (deep) autoencoder with squared error.

        loss per datum: ½‖x − g(f(x))‖²

    It has no log p(x): its codes have no density p(z). `score` is therefore minus the squared
    error of the reconstructions, which only grows with `n_components`, and cannot choose it.

    Args:
        n_components: m, the size of z.
        hidden: The widths of the encoder's hidden layers; the decoder's are in reverse order.
        activation: The function between layers.
        epochs: Passes over the data.
        batch_size: Data in one step; all data where there are fewer.
        lr: The learning rate of Adam.
        random_state: As of `VAE`.
        accelerator: As of `VAE`.
        verbose: Whether progress is shown.

    Attributes:
        model_: The trained system.
        history_: The metrics of each epoch, the losses with (d/2) log 2π.
        n_iter_: The number of epochs.

    References:
        Hinton & Salakhutdinov 2006, Reducing the Dimensionality of Data with Neural Networks.

    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> ae = Autoencoder(n_components=1, hidden=(4,), epochs=1, random_state=0).fit(x)
    >>> ae.inverse_transform(ae.transform(x)).shape
    (20, 3)
    >>> ae.score_samples(x)
    Traceback (most recent call last):
    AttributeError: This 'Autoencoder' has no attribute 'score_samples'
    """

    lacks: ClassVar[dict[str, str]] = {
        "score_samples": "its codes have no density p(z), so that there is no p(x)",
        "sample": "its codes have no density p(z) to be drawn from",
    }
    objective = "trace-elbo"

    def __init__(
        self,
        n_components: int = 2,
        *,
        hidden: int | Sequence[int] = (64,),
        activation: str = "tanh",
        epochs: int = 50,
        batch_size: int = 100,
        lr: float = 1e-3,
        random_state: RandomState = None,
        accelerator: str = "cpu",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.hidden = hidden
        self.activation = activation
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.random_state = random_state
        self.accelerator = accelerator
        self.verbose = verbose

    def score(self, X: ArrayLike, y: Any = None) -> float:
        """Return minus the mean squared error of the reconstructions.

            −(1/N) Σ_n ‖x_n − g(f(x_n))‖²

        Args:
            X: Data, shape `[N, d]`.
            y: Ignored.

        Returns:
            The mean over the data of the sum over their features; larger is better.
        """
        x = self._seen(X)
        return -(x - self.model_.reconstruct(x)).square().sum(-1).mean().item()

    def _system(self, data: Dataset) -> autoencoder.Autoencoder:
        return zoo.autoencoder(data, self.n_components, encoder=self._widths())

    def _log_px(self, x: Tensor) -> Tensor:
        raise AttributeError(self.lacks["score_samples"])


class DenoisingAutoencoder(Autoencoder):
    """A denoising autoencoder: in training the encoder sees the corrupted x̃, the target is x.

        loss per datum: ½‖x − g(f(x̃))‖²

    `transform` and `score` are of data without corruption.

    Args:
        n_components: m, the size of z.
        corruption: x → x̃ as a text, for example `gaussian:scale=0.5`.
        hidden: As of `Autoencoder`; so are the following parameters.
        activation: The function between layers.
        epochs: Passes over the data.
        batch_size: Data in one step; all data where there are fewer.
        lr: The learning rate of Adam.
        random_state: As of `VAE`.
        accelerator: As of `VAE`.
        verbose: Whether progress is shown.

    References:
        Vincent et al. 2008, Extracting and Composing Robust Features with Denoising Autoencoders.

    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> DenoisingAutoencoder(n_components=1, epochs=1, random_state=0).fit(x).model_.corruption
    Masking(probability=0.25)
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        corruption: str = "masking",
        hidden: int | Sequence[int] = (64,),
        activation: str = "tanh",
        epochs: int = 50,
        batch_size: int = 100,
        lr: float = 1e-3,
        random_state: RandomState = None,
        accelerator: str = "cpu",
        verbose: int = 0,
    ) -> None:
        super().__init__(
            n_components,
            hidden=hidden,
            activation=activation,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            random_state=random_state,
            accelerator=accelerator,
            verbose=verbose,
        )
        self.corruption = corruption

    def _system(self, data: Dataset) -> autoencoder.Autoencoder:
        corruption = corruptions.CORRUPTIONS.parse(self.corruption)
        return zoo.denoising_autoencoder(
            data, self.n_components, corruption=corruption, encoder=self._widths()
        )


class SparseAutoencoder(Autoencoder):
    """A sparse autoencoder: codes with many exact zeros, times a dictionary of unit-norm atoms.

        loss per datum: ½‖x − D f(x)‖² + λ‖f(x)‖₁

    `sample` draws from the Laplace prior of the L1 penalty. There is no log p(x): the encoder gives
    a point, from which no importance weight can be computed.

    Args:
        n_components: m, the number of atoms, which may exceed the number of features.
        rate: λ, the rate of the Laplace prior, and the threshold of the codes.
        hidden: The widths of the encoder's hidden layers.
        activation: The function between layers.
        epochs: Passes over the data.
        batch_size: Data in one step; all data where there are fewer.
        lr: The learning rate of Adam.
        random_state: As of `VAE`.
        accelerator: As of `VAE`.
        verbose: Whether progress is shown.

    References:
        Olshausen & Field 1996, Emergence of Simple-Cell Receptive Field Properties by Learning a
            Sparse Code for Natural Images.

    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> SparseAutoencoder(n_components=5, epochs=1, random_state=0).fit(x).transform(x).shape
    (20, 5)
    """

    lacks: ClassVar[dict[str, str]] = {
        "score_samples": "its encoder gives a point, from which no log p(x) can be estimated",
    }

    def __init__(
        self,
        n_components: int = 2,
        *,
        rate: float = 0.25,
        hidden: int | Sequence[int] = (64,),
        activation: str = "tanh",
        epochs: int = 50,
        batch_size: int = 100,
        lr: float = 1e-3,
        random_state: RandomState = None,
        accelerator: str = "cpu",
        verbose: int = 0,
    ) -> None:
        super().__init__(
            n_components,
            hidden=hidden,
            activation=activation,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            random_state=random_state,
            accelerator=accelerator,
            verbose=verbose,
        )
        self.rate = rate

    def _system(self, data: Dataset) -> autoencoder.Autoencoder:
        return zoo.sparse_autoencoder(
            data, self.n_components, rate=self.rate, encoder=self._widths()
        )
