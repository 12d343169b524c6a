"""The systems by name, one call each: rows of one table of four choices and two maps."""

import inspect
import math
import os
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from pyroae import corruptions, likelihoods, posteriors, priors
from pyroae.autoencoder import Autoencoder
from pyroae.config import RunConfig
from pyroae.data.dataset import Dataset
from pyroae.errors import ConfigError
from pyroae.nn import MAPS, MLP, Linear, Map
from pyroae.programs.named import program_named
from pyroae.registry import Registry

Data = Dataset | int | tuple[int, ...]


def linear_autoencoder(data: Data, latent: int, **choices: Any) -> Autoencoder:
    """Linear maps, squared error: at its optimum the PCA subspace (Baldi & Hornik 1989).

    Loss a datum: ½‖x − g(f(x))‖² + (d/2) log 2π. `data`: a Dataset, whose mean the output starts at, or its shape.

    >>> linear_autoencoder(64, latent=3).encoder
    Sequential(
      (0): Linear(in_features=64, out_features=3, bias=True)
    )
    """
    return autoencoder(data, latent, **{"encoder": Linear(), **choices})


def autoencoder(data: Data, latent: int, **choices: Any) -> Autoencoder:
    """A (deep) autoencoder: Flat prior, Delta guide; Normal(1) likelihood unless chosen otherwise.

    Loss a datum: ½‖x − g(f(x))‖² + (d/2) log 2π (Hinton & Salakhutdinov 2006 for deep ones).
    """
    row = {
        "prior": priors.Flat(),
        "posterior": posteriors.Point(),
        "likelihood": likelihoods.Normal(),
    }
    return _build(data, latent, {**row, **choices})


def deep_autoencoder(
    data: Data, latent: int, widths: tuple[int, ...] = (512, 256, 128), **choices: Any
) -> Autoencoder:
    """An autoencoder with three hidden layers on each side (Hinton & Salakhutdinov 2006)."""
    return autoencoder(data, latent, **{"encoder": MLP(widths, "relu"), **choices})


def sparse_autoencoder(data: Data, latent: int, rate: float = 1.0, **choices: Any) -> Autoencoder:
    """MAP under a Laplace prior: the autoencoder's loss plus λ‖f(x)‖₁ + m log(2/λ), λ = `rate` (Olshausen & Field 1996).

    Left to itself such a loss is evaded: z shrinks, the decoder grows, no L1 is paid. Here the decoder is a dictionary
    of unit-norm atoms, or, of any other form, has a `weight_prior`. `latent` may exceed d.
    Raises ConfigError for a decoder that could evade the penalty.
    """
    row = {
        "prior": priors.Laplace(rate),
        "posterior": posteriors.Point(),
        "likelihood": likelihoods.Normal(),
        "decoder": Linear(unit_norm=True),
    }
    row.update(choices)
    tied = choices.get("tied") and "decoder" not in choices
    if tied:
        row.pop("decoder")
    form = "tied weights" if tied else f"the decoder {row['decoder']}"
    if row.get("weight_prior") is None and row.get("decoder") != Linear(unit_norm=True):
        raise ConfigError(
            f"a sparse autoencoder with {form} can shrink z and grow the decoder to pay no L1: "
            "use Linear(unit_norm=True), or give a weight_prior such as GaussianWeights(scale=1, num_data=N)"
        )
    return _build(data, latent, row)


def denoising_autoencoder(
    data: Data, latent: int, corruption: corruptions.Corruption | None = None, **choices: Any
) -> Autoencoder:
    """An autoencoder whose guide sees x̃ and whose target is x: ½‖x − g(f(x̃))‖² + (d/2) log 2π (Vincent et al. 2008)."""
    return autoencoder(
        data, latent, **{"corruption": corruption or corruptions.Masking(), **choices}
    )


def ppca(data: Data, latent: int, exact: bool = False, **choices: Any) -> Autoencoder:
    """Probabilistic PCA: z ~ N(0, I), x|z ~ N(W z + b, σ²I), W, b and σ learned (Tipping & Bishop 1999).

    The guide is diagonal with a linear encoder, or with `exact` the exact posterior, whose ELBO is log p(x).
    """
    row = {
        "prior": priors.Normal(),
        "posterior": posteriors.ExactLinear() if exact else posteriors.Diagonal(),
        "likelihood": likelihoods.Normal(learn=True),
        "encoder": Linear(),
    }
    return _build(data, latent, {**row, **choices})


def vae(data: Data, latent: int, **choices: Any) -> Autoencoder:
    """A variational autoencoder: −E_q log p(x|z) + KL(q(z|x) ‖ N(0, I)) (Kingma & Welling 2014)."""
    row = {
        "prior": priors.Normal(),
        "posterior": posteriors.Diagonal(),
        "likelihood": likelihoods.Bernoulli(),
    }
    return _build(data, latent, {**row, **choices})


def discrete_vae(
    data: Data, latent: int, categories: int | None = None, **choices: Any
) -> Autoencoder:
    """A VAE with discrete z: `latent` Bernoulli variables, or one-hot variables of so many `categories` that fill z.

    Its draws carry no path gradient: train it with vimco (Mnih & Rezende 2016), rws (Bornschein & Bengio 2015), score or tvo;
    pathwise objectives such as trace-elbo take score terms without a baseline, which are noisier.
    """
    row: dict[str, Any] = {"prior": priors.Bernoulli(), "posterior": posteriors.Bernoulli()}
    if categories is not None:
        row = {
            "prior": priors.Categorical(categories),
            "posterior": posteriors.Categorical(categories),
        }
    return _build(data, latent, {**row, "likelihood": likelihoods.Bernoulli(), **choices})


def _build(data: Data, latent: int, choices: dict[str, Any]) -> Autoencoder:
    if not isinstance(data, Dataset):
        return Autoencoder(data, latent, **choices)
    system = Autoencoder(data.shape, latent, **choices)
    mean: Tensor = data.mean
    return system.start_at(mean.to(next(system.parameters()).dtype))


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
    ("discrete-vae", discrete_vae),
):
    SYSTEMS.register(_name)(_system)


def system_from(config: RunConfig, data: Data) -> nn.Module:
    """Return the system or the program that a configuration names.

    Args:
        config: The configuration.
        data: A Dataset, or the shape of one datum; of no use to a program.

    Returns:
        A new Autoencoder, or a module with the program's `model` and `guide`; initial weights are
        drawn from torch's generator.

    Raises:
        ConfigError: For names and combinations that are not accepted.
    """
    if config.program is not None:
        return program_named(config.program)
    return from_config(config, data)


def from_config(config: RunConfig, data: Data) -> Autoencoder:
    """Return the system that a configuration names.

    Args:
        config: The configuration.
        data: A Dataset, whose mean the output starts at, or the shape of one datum.

    Returns:
        A new system; its initial weights are drawn from torch's generator.

    Raises:
        ConfigError: For names and combinations that are not accepted, and for a configuration of a
            program.

    >>> from_config(RunConfig(prior="laplace:rate=2", latent=3), 64).prior
    Laplace(rate=2)
    """
    if config.program is not None:
        raise ConfigError(f"'{config.program}' is a program, not a system of the zoo")
    shape = data.shape if isinstance(data, Dataset) else data
    refuse_too_large(config, shape if isinstance(shape, int) else math.prod(shape))
    choices: dict[str, Any] = {"tied": config.tied} if config.tied else {}
    for name, registry in (
        ("prior", priors.PRIORS),
        ("posterior", posteriors.POSTERIORS),
        ("likelihood", likelihoods.LIKELIHOODS),
        ("corruption", corruptions.CORRUPTIONS),
    ):
        text = getattr(config, name)
        if text is not None:
            choices[name] = registry.parse(text)
    if config.system not in ("linear-ae", "ppca"):
        choices["encoder"] = _map(config)
    elif config.map not in (None, "linear") or config.hidden:
        raise ConfigError(
            f"the maps of {config.system} are linear: map '{config.map or 'mlp'}' and hidden "
            "layers do not apply"
        )
    if config.system == "sparse-ae":
        choices["rate"] = config.sparsity
    return SYSTEMS[config.system](data, config.latent, **choices)


def likelihood_of(config: RunConfig) -> likelihoods.Likelihood:
    """Return the likelihood that a configuration names, or that its system has by default.

    Args:
        config: The configuration of a system of the zoo.

    Returns:
        The likelihood.

    Raises:
        ConfigError: For an unknown name or setting.
    """
    if config.likelihood is not None:
        return likelihoods.LIKELIHOODS.parse(config.likelihood)
    return (
        likelihoods.Bernoulli()
        if config.system in ("vae", "discrete-vae")
        else likelihoods.Normal(learn=config.system == "ppca")
    )


def _map(config: RunConfig) -> Map:
    name, hidden = config.map or "mlp", config.hidden
    if hidden is None:
        return MAPS.parse(name, activation=config.activation)
    if name == "linear":
        raise ConfigError("a linear map has no hidden layers")
    widths = {"channels" if name == "conv" else "widths": hidden}
    if not widths.keys() & inspect.signature(MAPS[name.partition(":")[0]]).parameters.keys():
        raise ConfigError(f"the map '{name}' takes no widths: leave out hidden layers")
    return MAPS.parse(name, activation=config.activation, **widths)


def refuse_too_large(config: RunConfig, features: int) -> None:
    """Raises ConfigError for widths or particles that need more memory than the machine has, before any is asked for.

    A system that takes its last is ended by the kernel, without a word.

    >>> refuse_too_large(RunConfig(hidden=(10**7, 10**7)), 784)
    Traceback (most recent call last):
    pyroae.errors.ConfigError: weights, gradients and moments of maps of these widths (hidden, latent) take ...
    """
    widths = [features, *(config.hidden or ()), config.latent]
    weights = 16 * 2 * sum(one * other for one, other in pairwise(widths))
    draws = 4 * config.num_particles * config.batch_size * max(widths)
    there = (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if hasattr(os, "sysconf")
        else 2**62
    )
    for what, size in (
        ("weights, gradients and moments of maps of these widths (hidden, latent)", weights),
        (
            f"one layer of a batch of {config.batch_size} data with {config.num_particles} particles each",
            draws,
        ),
    ):
        if size > there:
            raise ConfigError(
                f"{what} take {size / 2**30:,.0f} GiB, more than the {there / 2**30:,.0f} GiB of this machine"
            )
