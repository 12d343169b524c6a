"""The systems of the family, one function each: rows of a table of four choices and two maps."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypedDict, Unpack, cast

from torch import nn

from pyroae import corruptions, likelihoods, posteriors, priors
from pyroae.autoencoder import M2, Autoencoder
from pyroae.autoencoder.hierarchies import HIERARCHIES, Hierarchy
from pyroae.config import SEMI_SUPERVISED, RunConfig
from pyroae.data.dataset import Dataset
from pyroae.data.image_channels import AXES
from pyroae.data.kinds import columns_of_values, mixed_likelihood
from pyroae.data.loading import Splits
from pyroae.data.missing import check_columns
from pyroae.errors import ConfigError, DataError, unknown_name
from pyroae.nn import MAPS, MLP, Conv, Linear, Map, Tied
from pyroae.programs.named import program_named
from pyroae.registry import Registry
from pyroae.runtime.memory import machine_memory

Data = Dataset | int | tuple[int, ...]
"""A data set, at whose mean the decoder's output starts, or the shape of one datum."""


class MapChoices(TypedDict, total=False):
    """Settings that every system accepts as keywords, except the corruption.

    Attributes:
        prior: p(z).
        posterior: q(z|x).
        likelihood: p(x|z).
        encoder: The form of the encoder.
        decoder: The form of the decoder.
        hidden: The widths of the hidden layers of encoder and decoder, in place of `encoder`.
        tied: Whether the decoder's weights are the encoder's, transposed.
        weight_prior: A Gaussian prior on the decoder's weights.
        condition: C, the size of the condition; by default that of the data set.
        missing: Whether values of x may be missing, NaN; by default as the data set says.
    """

    prior: priors.Prior | None
    posterior: posteriors.Posterior | None
    likelihood: likelihoods.Likelihood | None
    encoder: Map | None
    decoder: Map | None
    hidden: int | Sequence[int] | None
    tied: bool
    weight_prior: priors.GaussianWeights | None
    condition: int
    missing: bool


class Choices(MapChoices, total=False):
    """Settings that every system accepts as keywords.

    Attributes:
        corruption: The corruption of the guide's input.
    """

    corruption: corruptions.Corruption | None


_AUTOENCODER = {
    "prior": priors.Flat(),
    "posterior": posteriors.Point(),
    "likelihood": likelihoods.Normal(),
}


def linear_autoencoder(data: Data, latent: int, **choices: Unpack[Choices]) -> Autoencoder:
    """A linear autoencoder: linear maps and squared error, at its optimum the PCA subspace.

        loss per datum: ½‖x − g(f(x))‖² + (d/2) log 2π

    Args:
        data: A data set, at whose mean the output starts, or the shape of one datum.
        latent: m, the size of z.
        **choices: Settings in place of the defaults below.

    Keyword Args:
        prior (Prior): p(z); default `Flat()`.
        posterior (Posterior): q(z|x); default `Point()`.
        likelihood (Likelihood): p(x|z); default `Normal(scale=1)`.
        corruption (Corruption): Of the guide's input; default none.
        encoder (Map): The form of the encoder; default `Linear()`.
        decoder (Map): The form of the decoder; default the encoder's form.
        tied (bool): Whether the decoder's weights are the encoder's, transposed; default False.
        weight_prior (GaussianWeights): A prior on the decoder's weights; default none.
        condition (int): C, the size of a condition c; default that of the data set, or 0.
        missing (bool): Whether values of x may be missing, NaN; default as the data set says.

    Returns:
        A new autoencoder.

    Raises:
        ConfigError: A setting is unknown, or the settings cannot be combined.

    References:
        Baldi & Hornik 1989, Neural Networks and Principal Component Analysis: Learning from
            Examples Without Local Minima.

    >>> linear_autoencoder(64, latent=3).encoder
    Sequential(
      (0): Linear(in_features=64, out_features=3, bias=True)
    )
    """
    return _build(linear_autoencoder, data, latent, {**_AUTOENCODER, "encoder": Linear()}, choices)


def autoencoder(data: Data, latent: int, **choices: Unpack[Choices]) -> Autoencoder:
    """A (deep) autoencoder with squared error.

        loss per datum: ½‖x − g(f(x))‖² + (d/2) log 2π

    Args:
        data: A data set, at whose mean the output starts, or the shape of one datum.
        latent: m, the size of z.
        **choices: Settings in place of the defaults below.

    Keyword Args:
        prior (Prior): p(z); default `Flat()`.
        posterior (Posterior): q(z|x); default `Point()`.
        likelihood (Likelihood): p(x|z); default `Normal(scale=1)`.
        corruption (Corruption): Of the guide's input; default none.
        encoder (Map): The form of the encoder; default `MLP((200, 200), "tanh")`.
        decoder (Map): The form of the decoder; default the encoder's form.
        hidden (tuple[int, ...]): The widths of the encoder's hidden layers, reversed in the
            decoder, in place of `encoder`; default (200, 200).
        tied (bool): Whether the decoder's weights are the encoder's, transposed; default False.
        weight_prior (GaussianWeights): A prior on the decoder's weights; default none.
        condition (int): C, the size of a condition c; default that of the data set, or 0.
        missing (bool): Whether values of x may be missing, NaN; default as the data set says.

    Returns:
        A new autoencoder.

    Raises:
        ConfigError: A setting is unknown, or the settings cannot be combined.

    References:
        Hinton & Salakhutdinov 2006, Reducing the Dimensionality of Data with Neural Networks.

    >>> autoencoder(64, latent=3, hidden=(20,)).encoder_map
    MLP(widths=(20,), activation='tanh')
    """
    return _build(autoencoder, data, latent, _AUTOENCODER, choices)


def deep_autoencoder(
    data: Data,
    latent: int,
    widths: tuple[int, ...] = (512, 256, 128),
    **choices: Unpack[Choices],
) -> Autoencoder:
    """An autoencoder with three hidden ReLU layers on each side.

        loss per datum: ½‖x − g(f(x))‖² + (d/2) log 2π

    Args:
        data: A data set, at whose mean the output starts, or the shape of one datum.
        latent: m, the size of z.
        widths: The widths of the encoder's hidden layers, reversed in the decoder.
        **choices: Settings in place of the defaults below.

    Keyword Args:
        prior (Prior): p(z); default `Flat()`.
        posterior (Posterior): q(z|x); default `Point()`.
        likelihood (Likelihood): p(x|z); default `Normal(scale=1)`.
        corruption (Corruption): Of the guide's input; default none.
        encoder (Map): The form of the encoder; default `MLP(widths, "relu")`.
        decoder (Map): The form of the decoder; default the encoder's form.
        hidden (tuple[int, ...]): The same as `widths`, which it replaces.
        tied (bool): Whether the decoder's weights are the encoder's, transposed; default False.
        weight_prior (GaussianWeights): A prior on the decoder's weights; default none.
        condition (int): C, the size of a condition c; default that of the data set, or 0.
        missing (bool): Whether values of x may be missing, NaN; default as the data set says.

    Returns:
        A new autoencoder.

    Raises:
        ConfigError: A setting is unknown, or the settings cannot be combined.

    References:
        Hinton & Salakhutdinov 2006, Reducing the Dimensionality of Data with Neural Networks.

    >>> deep_autoencoder(64, latent=3).encoder_map
    MLP(widths=(512, 256, 128), activation='relu')
    """
    row = {**_AUTOENCODER, "encoder": MLP(widths, "relu")}
    return _build(deep_autoencoder, data, latent, row, choices)


def sparse_autoencoder(
    data: Data, latent: int, rate: float = RunConfig.sparsity, **choices: Unpack[Choices]
) -> Autoencoder:
    """A sparse autoencoder: MAP under a Laplace prior, which is the L1 penalty.

        loss per datum: ½‖x − g(f(x))‖² + (d/2) log 2π + λ‖f(x)‖₁ + m log(2/λ)

    f is the encoder, soft-thresholded at λσ², the proximal map of the prior: codes below it are
    exactly 0. Where λσ² exceeds what an atom can explain of any datum, every code is 0; then lower
    the rate.

    With a free decoder this loss can be evaded: z shrinks, the decoder's weights grow, and the
    penalty vanishes. Therefore the decoder is a dictionary of unit-norm atoms, or another form with
    a `weight_prior`; other decoders are refused.

    Args:
        data: A data set, at whose mean the output starts, or the shape of one datum.
        latent: m, the size of z; it may exceed d.
        rate: λ, the rate of the Laplace prior, in nats per unit of z.
        **choices: Settings in place of the defaults below.

    Keyword Args:
        prior (Prior): p(z); default `Laplace(rate)`.
        posterior (Posterior): q(z|x); default `SoftThreshold(λσ²)`, with the rate of the prior and
            the start of σ, where the likelihood is a Normal, else σ = 1. `TopK` keeps k codes.
        likelihood (Likelihood): p(x|z); default `Normal(scale=1)`.
        corruption (Corruption): Of the guide's input; default none.
        encoder (Map): The form of the encoder; default `MLP((200, 200), "tanh")`.
        decoder (Map): The form of the decoder; default `Linear(unit_norm=True)`.
        hidden (tuple[int, ...]): The widths of the encoder's hidden layers, in place of `encoder`;
            default (200, 200).
        tied (bool): Whether the decoder's weights are the encoder's, transposed; default False.
        weight_prior (GaussianWeights): A prior on the decoder's weights; default none.
        condition (int): C, the size of a condition c; default that of the data set, or 0.
        missing (bool): Whether values of x may be missing, NaN; default as the data set says.

    Returns:
        A new autoencoder.

    Raises:
        ConfigError: The decoder could evade the penalty, a setting is unknown, or the settings
            cannot be combined.

    References:
        Olshausen & Field 1996, Emergence of Simple-Cell Receptive Field Properties by Learning a
            Sparse Code for Natural Images.
        Gregor & LeCun 2010, Learning Fast Approximations of Sparse Coding.

    >>> system = sparse_autoencoder(64, latent=100, rate=0.5)
    >>> system.prior, system.posterior
    (Laplace(rate=0.5), SoftThreshold(threshold=0.5, learn=False))
    """
    prior = choices.get("prior", priors.Laplace(rate))
    row = {**_AUTOENCODER, "prior": prior, "posterior": _proximal(prior, choices)}
    if not choices.get("tied"):
        row["decoder"] = Linear(unit_norm=True)
    system = _build(sparse_autoencoder, data, latent, row, choices)
    tied = isinstance(system.decoder, Tied)
    if system.weight_prior is None and (tied or system.decoder_map != Linear(unit_norm=True)):
        form = "tied weights" if tied else f"the decoder {system.decoder_map}"
        raise ConfigError(
            f"a sparse autoencoder with {form} can shrink z and grow the decoder to pay no L1: use "
            "Linear(unit_norm=True), or give a weight_prior such as "
            "GaussianWeights(scale=1, num_data=N)"
        )
    return system


def _proximal(prior: priors.Prior | None, choices: Mapping[str, Any]) -> posteriors.Posterior:
    """The posterior of a sparse autoencoder: soft-thresholded at λσ² under a Laplace prior."""
    if not isinstance(prior, priors.Laplace):
        return posteriors.Point()
    likelihood = choices.get("likelihood")
    scale = likelihood.scale if isinstance(likelihood, likelihoods.Normal) else 1.0
    start = 1.0 if isinstance(scale, str) else scale
    return posteriors.SoftThreshold(prior.rate * start**2)


def denoising_autoencoder(
    data: Data,
    latent: int,
    corruption: corruptions.Corruption | None = None,
    **choices: Unpack[MapChoices],
) -> Autoencoder:
    """A denoising autoencoder: the guide sees the corrupted x̃, the target is x.

        loss per datum: ½‖x − g(f(x̃))‖² + (d/2) log 2π

    Args:
        data: A data set, at whose mean the output starts, or the shape of one datum.
        latent: m, the size of z.
        corruption: x → x̃; None for `Masking(probability=0.25)`.
        **choices: Settings in place of the defaults below.

    Keyword Args:
        prior (Prior): p(z); default `Flat()`.
        posterior (Posterior): q(z|x); default `Point()`.
        likelihood (Likelihood): p(x|z); default `Normal(scale=1)`.
        encoder (Map): The form of the encoder; default `MLP((200, 200), "tanh")`.
        decoder (Map): The form of the decoder; default the encoder's form.
        hidden (tuple[int, ...]): The widths of the encoder's hidden layers, reversed in the
            decoder, in place of `encoder`; default (200, 200).
        tied (bool): Whether the decoder's weights are the encoder's, transposed; default False.
        weight_prior (GaussianWeights): A prior on the decoder's weights; default none.
        condition (int): C, the size of a condition c; default that of the data set, or 0.
        missing (bool): Whether values of x may be missing, NaN; default as the data set says.

    Returns:
        A new autoencoder.

    Raises:
        ConfigError: A setting is unknown, or the settings cannot be combined.

    References:
        Vincent et al. 2008, Extracting and Composing Robust Features with Denoising Autoencoders.

    >>> denoising_autoencoder(64, latent=3).corruption
    Masking(probability=0.25)
    """
    row = {**_AUTOENCODER, "corruption": corruption or corruptions.Masking()}
    return _build(denoising_autoencoder, data, latent, row, choices)


def ppca(data: Data, latent: int, exact: bool = False, **choices: Unpack[Choices]) -> Autoencoder:
    """Probabilistic PCA with learned W, b and σ.

        z ~ N(0, I),   x|z ~ N(W z + b, σ²I)

    Args:
        data: A data set, at whose mean b starts, or the shape of one datum.
        latent: m, the size of z.
        exact: Whether the guide is the exact posterior, with which the ELBO is log p(x); else it is
            a diagonal Gaussian with a linear encoder.
        **choices: Settings in place of the defaults below.

    Keyword Args:
        prior (Prior): p(z); default `Normal()`.
        posterior (Posterior): q(z|x); default `Diagonal()`, or `ExactLinear()` with `exact`.
        likelihood (Likelihood): p(x|z); default `Normal(scale=1, learn=True)`.
        corruption (Corruption): Of the guide's input; default none.
        encoder (Map): The form of the encoder; default `Linear()`.
        decoder (Map): The form of the decoder; default the encoder's form.
        tied (bool): Whether the decoder's weights are the encoder's, transposed; default False.
        weight_prior (GaussianWeights): A prior on the decoder's weights; default none.
        condition (int): C, the size of a condition c; default that of the data set, or 0.
        missing (bool): Whether values of x may be missing, NaN; default as the data set says.

    Returns:
        A new autoencoder.

    Raises:
        ConfigError: A setting is unknown, or the settings cannot be combined.

    References:
        Tipping & Bishop 1999, Probabilistic Principal Component Analysis.

    >>> ppca(64, latent=3, exact=True).posterior
    ExactLinear()
    """
    row = {
        "prior": priors.Normal(),
        "posterior": posteriors.ExactLinear() if exact else posteriors.Diagonal(),
        "likelihood": likelihoods.Normal(learn=True),
        "encoder": Linear(),
    }
    return _build(ppca, data, latent, row, choices)


def vae(data: Data, latent: int, **choices: Unpack[Choices]) -> Autoencoder:
    """A variational autoencoder.

        loss per datum: −E_q log p(x|z) + KL(q(z|x) ‖ N(0, I))

    Args:
        data: A data set, at whose mean the output starts, or the shape of one datum.
        latent: m, the size of z.
        **choices: Settings in place of the defaults below.

    Keyword Args:
        prior (Prior): p(z); default `Normal()`.
        posterior (Posterior): q(z|x); default `Diagonal()`.
        likelihood (Likelihood): p(x|z); default `Bernoulli()`.
        corruption (Corruption): Of the guide's input; default none.
        encoder (Map): The form of the encoder; default `MLP((200, 200), "tanh")`.
        decoder (Map): The form of the decoder; default the encoder's form.
        hidden (tuple[int, ...]): The widths of the encoder's hidden layers, reversed in the
            decoder, in place of `encoder`; default (200, 200).
        tied (bool): Whether the decoder's weights are the encoder's, transposed; default False.
        weight_prior (GaussianWeights): A prior on the decoder's weights; default none.
        condition (int): C, the size of a condition c; default that of the data set, or 0.
        missing (bool): Whether values of x may be missing, NaN; default as the data set says.

    Returns:
        A new autoencoder.

    Raises:
        ConfigError: A setting is unknown, or the settings cannot be combined.

    References:
        Kingma & Welling 2014, Auto-Encoding Variational Bayes.

    >>> vae(784, latent=10, hidden=(64,)).encoder
    Sequential(
      (0): Linear(in_features=784, out_features=64, bias=True)
      (1): Tanh()
      (2): Linear(in_features=64, out_features=20, bias=True)
    )
    >>> vae(784, latent=10, encodr=MLP((64,)))
    Traceback (most recent call last):
    pyroae.errors.ConfigError: unknown setting of zoo.vae 'encodr': did you mean 'encoder'? ...
    """
    row = {
        "prior": priors.Normal(),
        "posterior": posteriors.Diagonal(),
        "likelihood": likelihoods.Bernoulli(),
    }
    return _build(vae, data, latent, row, choices)


def hierarchical_vae(
    data: Data,
    latent: int | Sequence[int] = (100, 50),
    hierarchy: Hierarchy | None = None,
    **choices: Unpack[Choices],
) -> Autoencoder:
    """A VAE with several layers of z.

        z_L ~ N(0, I),   z_l | z_{l+1} ~ N(μ(z_{l+1}), diag σ(z_{l+1})²),   x ~ p(x | z_1)

    The defaults are the network with two layers of Burda et al. 2016: x-200-200-z(100)-100-100-
    z2(50), and back.

    Args:
        data: A data set, at whose mean the decoder's output starts, or the shape of one datum.
        latent: m_1, ..., m_L, the sizes of the layers from the data upwards; one number m stands
            for two layers, of m and max(1, m // 2).
        hierarchy: The maps between the layers and the order of the guide; None for `BottomUp()`.
        **choices: Settings in place of the defaults below.

    Keyword Args:
        prior (Prior): p(z_L) of the top layer; default `Normal()`.
        posterior (Posterior): Of each layer; default `Diagonal()`.
        likelihood (Likelihood): p(x|z_1); default `Bernoulli()`.
        corruption (Corruption): Of the guide's input; default none.
        encoder (Map): The form of the encoder of z_1; default `MLP((200, 200), "tanh")`.
        decoder (Map): The form of the decoder of z_1; default the encoder's form.
        hidden (tuple[int, ...]): The widths of the hidden layers between the data and z_1, reversed
            in the decoder, in place of `encoder`; default (200, 200).
        tied (bool): False, as tied weights are refused.
        weight_prior (GaussianWeights): A prior on the weights of decoder and maps down; default
            none.
        condition (int): C, the size of a condition c; default that of the data set, or 0.
        missing (bool): Whether values of x may be missing, NaN; default as the data set says.

    Returns:
        A new autoencoder.

    Raises:
        ConfigError: A setting is unknown, or the settings cannot be combined.

    References:
        Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders.
        Sønderby, Raiko, Maaløe, Sønderby & Winther 2016, Ladder Variational Autoencoders.

    >>> hierarchical_vae(784).layers, hierarchical_vae(784, latent=20).layers
    ((100, 50), (20, 10))
    """
    row = {
        "prior": priors.Normal(),
        "posterior": posteriors.Diagonal(),
        "likelihood": likelihoods.Bernoulli(),
        "hierarchy": hierarchy,
    }
    layers = tuple(latent) if isinstance(latent, Sequence) else (latent, max(1, latent // 2))
    return _build(hierarchical_vae, data, layers, row, choices)


def conditional_vae(data: Data, latent: int, **choices: Unpack[Choices]) -> Autoencoder:
    """A conditional variational autoencoder, whose model and guide take (x, c).

        loss per datum: −E_q log p(x|z, c) + KL(q(z|x, c) ‖ N(0, I))

    Encoder and decoder take [x, c] and [z, c]; a convolutional encoder takes c as constant planes.
    The prior of z does not depend on c.

    Args:
        data: A data set with a condition, at whose mean the output starts, or the shape of one
            datum, with `condition`.
        latent: m, the size of z.
        **choices: Settings in place of the defaults below.

    Keyword Args:
        condition (int): C, the size of c; default that of the data set.
        missing (bool): Whether values of x may be missing, NaN; default as the data set says.
        prior (Prior): p(z); default `Normal()`.
        posterior (Posterior): q(z|x, c); default `Diagonal()`.
        likelihood (Likelihood): p(x|z, c); default `Bernoulli()`.
        corruption (Corruption): Of the guide's x; default none.
        encoder (Map): The form of the encoder; default `MLP((200, 200), "tanh")`.
        decoder (Map): The form of the decoder; default the encoder's form.
        hidden (tuple[int, ...]): The widths of the encoder's hidden layers, reversed in the
            decoder, in place of `encoder`; default (200, 200).
        tied (bool): Refused: tied weights have no condition.
        weight_prior (GaussianWeights): A prior on the decoder's weights; default none.

    Returns:
        A new autoencoder.

    Raises:
        ConfigError: There is no condition, a setting is unknown, or the settings cannot be
            combined.

    References:
        Sohn, Lee & Yan 2015, Learning Structured Output Representation using Deep Conditional
            Generative Models.

    >>> import torch
    >>> system = conditional_vae(64, latent=3, condition=10)
    >>> system.sample(5, torch.eye(10)[3]).shape
    torch.Size([5, 64])
    """
    given = data.condition if isinstance(data, Dataset) else None
    if given is None and not choices.get("condition"):
        raise ConfigError(
            "a conditional VAE needs a condition: load the data with condition='labels' or names "
            "of columns, or give its size, as in zoo.conditional_vae(64, 2, condition=10)"
        )
    row = {
        "prior": priors.Normal(),
        "posterior": posteriors.Diagonal(),
        "likelihood": likelihoods.Bernoulli(),
    }
    return _build(conditional_vae, data, latent, row, choices)


def m2(data: Data, latent: int, classification: float = 0.1, **choices: Unpack[Choices]) -> M2:
    """The semi-supervised model M2: a VAE with a class y that is observed for some data.

        loss per labelled datum:   −E_q log p(x, y, z)/q(z|x, y) − α log q(y|x)
        loss per unlabelled datum: −Σ_y q(y|x) [E_q log p(x, y, z)/q(z|x, y) − log q(y|x)]

    Args:
        data: A data set whose condition is one-hot labels, 0 where they are missing, as from
            `partly_labelled`; or the shape of one datum, with `condition`.
        latent: m, the size of z.
        classification: α = classification · N / N_labelled is the weight of the classification
            term; α = classification for the shape of one datum.
        **choices: Settings in place of the defaults below.

    Keyword Args:
        condition (int): C, the number of classes; default that of the data set.
        missing (bool): Whether values of x may be missing, NaN; default as the data set says.
        prior (Prior): p(z); default `Normal()`.
        posterior (Posterior): q(z|x, y); default `Diagonal()`.
        likelihood (Likelihood): p(x|z, y); default `Bernoulli()`.
        corruption (Corruption): Of the guide's x; default none.
        encoder (Map): The form of encoder and classifier; default `MLP((200, 200), "tanh")`.
        decoder (Map): The form of the decoder; default the encoder's form.
        hidden (tuple[int, ...]): The widths of the encoder's hidden layers, reversed in the
            decoder, in place of `encoder`; default (200, 200).
        tied (bool): Refused: tied weights have no condition.
        weight_prior (GaussianWeights): Refused: M2 has none.

    Returns:
        A new system, with `classify`.

    Raises:
        ConfigError: There are no classes, none of the data has a label, a setting is unknown, or
            the settings cannot be combined.

    References:
        Kingma, Rezende, Mohamed & Welling 2014, Semi-Supervised Learning with Deep Generative
            Models.

    >>> m2(64, latent=3, condition=10).classifier[-1]
    Linear(in_features=200, out_features=10, bias=True)
    """
    if choices.get("weight_prior") is not None:
        raise ConfigError("M2 has no weight_prior: leave it out")
    given = data.condition if isinstance(data, Dataset) else None
    if given is None and not choices.get("condition"):
        raise ConfigError(
            "M2 needs labels: load the data with condition='labels', or give the number of "
            "classes, as in zoo.m2(64, 2, condition=10)"
        )
    ratio = 1.0
    if given is not None:
        num_labelled = int((given.sum(1) > 0).sum())
        if not num_labelled:
            raise ConfigError("M2 learns from labels, and none of the training data has one")
        ratio = len(given) / num_labelled
    row = {
        "prior": priors.Normal(),
        "posterior": posteriors.Diagonal(),
        "likelihood": likelihoods.Bernoulli(),
        "alpha": classification * ratio,
    }
    return cast(M2, _build(m2, data, latent, row, choices))


def discrete_vae(
    data: Data, latent: int, categories: int | None = None, **choices: Unpack[Choices]
) -> Autoencoder:
    """A VAE with discrete z: Bernoulli variables, or categorical ones as one-hot vectors.

    Its draws carry no path gradient. Train it with the objectives vimco, rws, score or tvo;
    pathwise objectives such as trace-elbo use score terms without a baseline, which are noisier.

    Args:
        data: A data set, at whose mean the output starts, or the shape of one datum.
        latent: m, the size of z: the number of Bernoulli variables, or the total number of states.
        categories: The number of states of each categorical variable; None for Bernoulli variables.
        **choices: Settings in place of the defaults below.

    Keyword Args:
        prior (Prior): p(z); default `Bernoulli()`, or `Categorical(categories)`.
        posterior (Posterior): q(z|x); default `Bernoulli()`, or `Categorical(categories)`.
        likelihood (Likelihood): p(x|z); default `Bernoulli()`.
        corruption (Corruption): Of the guide's input; default none.
        encoder (Map): The form of the encoder; default `MLP((200, 200), "tanh")`.
        decoder (Map): The form of the decoder; default the encoder's form.
        hidden (tuple[int, ...]): The widths of the encoder's hidden layers, reversed in the
            decoder, in place of `encoder`; default (200, 200).
        tied (bool): Whether the decoder's weights are the encoder's, transposed; default False.
        weight_prior (GaussianWeights): A prior on the decoder's weights; default none.
        condition (int): C, the size of a condition c; default that of the data set, or 0.
        missing (bool): Whether values of x may be missing, NaN; default as the data set says.

    Returns:
        A new autoencoder.

    Raises:
        ConfigError: `categories` does not divide `latent`, a setting is unknown, or the settings
            cannot be combined.

    References:
        Mnih & Rezende 2016, Variational Inference for Monte Carlo Objectives (VIMCO).
        Bornschein & Bengio 2015, Reweighted Wake-Sleep.

    >>> discrete_vae(64, latent=12, categories=4).prior
    Categorical(categories=4, learn=False)
    """
    row: dict[str, Any] = {"prior": priors.Bernoulli(), "posterior": posteriors.Bernoulli()}
    if categories is not None:
        row = {
            "prior": priors.Categorical(categories),
            "posterior": posteriors.Categorical(categories),
        }
    row["likelihood"] = likelihoods.Bernoulli()
    return _build(discrete_vae, data, latent, row, choices)


def table_likelihood(data: Dataset) -> likelihoods.Mixed:
    """Return a likelihood for a table: each column has the one of its kind.

        log p(x|z) = Σ_j log p_j(x_j|z)

    A column of categories has a Categorical; one of 0 and 1 a Bernoulli; whole numbers from 0 or 1
    on have a Poisson or a negative binomial; any other a Normal with a scale of its own.

    Args:
        data: A table, as `load` or `Dataset.from_array` reads a DataFrame.

    Returns:
        The likelihood, with a group for each column or for neighbours of one kind.

    Raises:
        DataError: The data have no named columns.

    References:
        Nazábal et al. 2020, Handling Incomplete Heterogeneous Data using VAEs.

    >>> people = Dataset.from_array({"age": [3, 4, 5], "sex": ["m", "f", "m"]})
    >>> [type(likelihood).__name__ for likelihood, _ in table_likelihood(people).groups]
    ['Normal', 'Categorical']
    """
    if not data.columns:
        raise DataError(f"{data.name} has no named columns: give it as a table, or a likelihood")
    columns = columns_of_values(data.x.numpy(), data.columns, data.categories)
    return cast(likelihoods.Mixed, likelihoods.LIKELIHOODS.parse(mixed_likelihood(columns)))


def _build(
    system: Callable[..., Autoencoder],
    data: Data,
    latent: int | Sequence[int],
    row: Mapping[str, Any],
    choices: Mapping[str, Any],
) -> Autoencoder:
    """The autoencoder of a row of the table, with choices in place of the row's."""
    if isinstance(latent, Sequence) and len(latent) > 1 and system is not hierarchical_vae:
        raise ConfigError(
            f"zoo.{system.__name__} has one layer of z, not {tuple(latent)}: layers are those of "
            "hierarchical_vae"
        )
    own = list(inspect.signature(system).parameters)[2:-1]
    for name in choices:
        if name not in Choices.__annotations__:
            known = [*own, *Choices.__annotations__]
            raise unknown_name(f"setting of zoo.{system.__name__}", name, known)
    if isinstance(data, Splits):
        raise ConfigError(
            f"zoo.{system.__name__} takes one data set, not Splits: give the training data, "
            "data.train"
        )
    settings = {**row, **choices}
    if isinstance(data, Dataset) and data.condition is not None:
        settings.setdefault("condition", data.condition.shape[1])
    if isinstance(data, Dataset) and data.missing:
        check_columns(data.x, data.name, data.columns)
        settings.setdefault("missing", True)
    if (hidden := settings.pop("hidden", None)) is not None:
        settings["encoder"] = _perceptron(system.__name__, row, choices, hidden)
    kind: Callable[..., Autoencoder] = Autoencoder
    if system is m2:
        kind, settings["classes"] = M2, settings.pop("condition")
    if not isinstance(data, Dataset):
        return kind(data, latent, **settings)
    for name in ("encoder", "decoder"):
        if isinstance(form := settings.get(name), Conv) and form.axis is None:
            settings[name] = replace(form, axis=data.channels)
    result = kind(data.shape, latent, **settings)
    dtype = next(result.parameters()).dtype
    return result.start_at(data.mean.to(dtype), data.filled.to(dtype))


def _perceptron(
    system: str, row: Mapping[str, Any], choices: Mapping[str, Any], hidden: int | Sequence[int]
) -> Map:
    """The row's MLP with other widths; refused with an encoder, and where maps are linear."""
    if choices.get("encoder") is not None:
        raise ConfigError(f"zoo.{system} takes either hidden or encoder, not both")
    form = row.get("encoder", MLP())
    if not isinstance(form, MLP):
        raise ConfigError(f"the maps of zoo.{system} are linear: hidden layers do not apply")
    return replace(form, widths=(hidden,) if isinstance(hidden, int) else tuple(hidden))


# From names to instances.

SYSTEMS: Registry[Autoencoder] = Registry("system")
"""Functions from data, latent and choices to a system, by name."""


for _name, _system in (
    ("linear-ae", linear_autoencoder),
    ("ae", autoencoder),
    ("sparse-ae", sparse_autoencoder),
    ("denoising-ae", denoising_autoencoder),
    ("ppca", ppca),
    ("vae", vae),
    ("hierarchical-vae", hierarchical_vae),
    ("conditional-vae", conditional_vae),
    ("discrete-vae", discrete_vae),
    ("m2", m2),
):
    SYSTEMS.register(_name)(_system)


def system_from(config: RunConfig, data: Data, condition: int = 0) -> nn.Module:
    """Return the system or the program that a configuration names.

    Args:
        config: The configuration.
        data: A Dataset, or the shape of one datum; of no use to a program.
        condition: The size of the condition, where `data` is a shape.

    Returns:
        A new Autoencoder, or a module with the program's `model` and `guide`; initial weights are
        drawn from torch's generator.

    Raises:
        ConfigError: For names and combinations that are not accepted.
    """
    if config.program is not None:
        return program_named(config.program)
    return from_config(config, data, condition)


def from_config(config: RunConfig, data: Data, condition: int = 0) -> Autoencoder:
    """Return the system that a configuration names.

    Args:
        config: The settings of a run.
        data: A data set, at whose mean the decoder's output starts, or the shape of one datum.
        condition: The size of the condition, where `data` is a shape.

    Returns:
        A new autoencoder.

    Raises:
        ConfigError: A name is unknown, the settings cannot be combined, or the system needs more
            memory than the machine has.

    >>> from_config(RunConfig(system="vae", latent=2, hidden=(5,)), 64).encoder_map
    MLP(widths=(5,), activation='tanh')
    """
    if config.program is not None:
        raise ConfigError(f"'{config.program}' is a program, not a system of the zoo")
    shape = data.shape if isinstance(data, Dataset) else data
    refuse_too_large(config, shape if isinstance(shape, int) else math.prod(shape))
    choices: dict[str, Any] = {"tied": config.tied} if config.tied else {}
    if condition:
        choices["condition"] = condition
    if config.missing:
        choices["missing"] = True
    for name, registry in (
        ("prior", priors.PRIORS),
        ("posterior", posteriors.POSTERIORS),
        ("likelihood", likelihoods.LIKELIHOODS),
        ("corruption", corruptions.CORRUPTIONS),
    ):
        text = getattr(config, name)
        if text is not None:
            choices[name] = registry.parse(text)
    if config.system not in LINEAR:
        choices["encoder"] = _map(config)
    elif config.map not in (None, "linear") or config.hidden:
        raise ConfigError(
            f"the maps of {config.system} are linear: map '{config.map or 'mlp'}' and hidden "
            "layers do not apply"
        )
    if config.system == "sparse-ae":
        choices["rate"] = config.sparsity
    if config.hierarchy is not None or config.system == "hierarchical-vae":
        choices["hierarchy"] = _hierarchy(config)
    if config.system == SEMI_SUPERVISED:
        choices["classification"] = config.classification
    return SYSTEMS[config.system](data, config.latent, **choices)


def _hierarchy(config: RunConfig) -> Hierarchy:
    """The hierarchy that a configuration names; refused for a system of the zoo with one layer."""
    builder = SYSTEMS[config.system]
    if "hierarchy" not in inspect.signature(builder).parameters:
        raise ConfigError(
            f"the system '{config.system}' takes no hierarchy: '{config.hierarchy}' is for "
            "hierarchical-vae"
        )
    return HIERARCHIES.parse(config.hierarchy or "bottom-up", activation=config.activation)


LINEAR = ("linear-ae", "ppca")
"""Systems whose maps are linear."""


def unused_settings(config: RunConfig) -> tuple[str, ...]:
    """Return settings that make no difference for the system of a configuration.

    Args:
        config: The settings of a run.

    Returns:
        Names of settings.

    >>> unused_settings(RunConfig(system="vae")), unused_settings(RunConfig(system="sparse-ae"))
    (('sparsity', 'classification'), ('classification',))
    """
    if config.program is not None:
        return ()  # every setting of a system is refused beside a program
    unused = () if config.system == "sparse-ae" else ("sparsity",)
    if config.system != SEMI_SUPERVISED:
        unused = (*unused, "classification")
    is_linear = config.system in LINEAR or (config.map or "").startswith("linear")
    is_layered = config.system == "hierarchical-vae"
    return (*unused, "activation") if is_linear and not is_layered else unused


def likelihood_of(config: RunConfig) -> likelihoods.Likelihood:
    """Return the likelihood that a configuration names, or its system's default.

    Args:
        config: The settings of a run.

    Returns:
        The likelihood.

    Raises:
        ConfigError: The name of the likelihood is unknown.

    >>> likelihood_of(RunConfig(system="ppca"))
    Normal(scale=1.0, learn=True)
    """
    if config.likelihood is not None:
        return likelihoods.LIKELIHOODS.parse(config.likelihood)
    return (
        likelihoods.Bernoulli()
        if config.system in ("vae", "hierarchical-vae", "conditional-vae", "discrete-vae", "m2")
        else likelihoods.Normal(learn=config.system == "ppca")
    )


def _map(config: RunConfig) -> Map:
    """The form of the encoder that a configuration names."""
    name = config.map or "mlp"
    given: dict[str, Any] = {"activation": config.activation}
    if config.channels in AXES:
        given["axis"] = config.channels
    if config.hidden is None:
        return MAPS.parse(name, **given)
    if name == "linear":
        raise ConfigError("a linear map has no hidden layers")
    widths = {"channels" if name == "conv" else "widths": config.hidden}
    if not widths.keys() & inspect.signature(MAPS[name.partition(":")[0]]).parameters.keys():
        raise ConfigError(f"the map '{name}' takes no widths: leave out hidden layers")
    return MAPS.parse(name, **given, **widths)


def refuse_too_large(config: RunConfig, features: int) -> None:
    """Refuse widths or numbers of particles that need more memory than the machine has.

    The check runs before any memory is allocated, because the kernel ends a process that exhausts
    the memory without a message.

    Args:
        config: The settings of a run.
        features: d, the number of observed features.

    Raises:
        ConfigError: The weights, or one layer of a batch, exceed the machine's memory.

    >>> refuse_too_large(RunConfig(hidden=(10**7, 10**7)), 784)
    Traceback (most recent call last):
    pyroae.errors.ConfigError: weights, gradients and moments of maps of these widths ...
    """
    latent = (config.latent,) if isinstance(config.latent, int) else config.latent
    widths = [features, *(config.hidden or ()), *latent]
    weights = 16 * 2 * sum(one * other for one, other in pairwise(widths))
    draws = 4 * config.num_particles * config.batch_size * max(widths)
    memory = machine_memory()
    for what, size in (
        ("weights, gradients and moments of maps of these widths (hidden, latent)", weights),
        (
            f"one layer of a batch of {config.batch_size} data with {config.num_particles} "
            "particles each",
            draws,
        ),
    ):
        if size > memory:
            raise ConfigError(
                f"{what} take {size / 2**30:,.0f} GiB, more than the {memory / 2**30:,.0f} GiB of "
                "this machine"
            )
