"""Checks before a training: a trial run of model, guide and objective on one batch."""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyroae.autoencoder import Autoencoder
from pyroae.config import TrainConfig
from pyroae.data.dataset import Dataset
from pyroae.data.missing import check_columns
from pyroae.distributed.fabric import fabric_of
from pyroae.errors import ConfigError, DataError, ProgramError
from pyroae.objectives.apply import refuse_untrained
from pyroae.programs.arguments import Arguments
from pyroae.programs.context import evaluating
from pyroae.programs.mixing import mixed_site
from pyroae.programs.pair import (
    Pair,
    System,
    announced_parameters,
    full_size,
    like_parameters,
    refuse_batch_of_one,
)
from pyroae.programs.traces import run
from pyroae.runtime.randomness import fork_random
from pyroae.training.optimizers import optimizer_of


def rehearse(
    system: nn.Module, objective: ELBO, args: tuple[Tensor, ...], seed: int, *, double: bool = False
) -> int | None:
    """Run model, guide and gradients once, to refuse what cannot be trained.

    Parameters in Pyro's store are initialized here.

    Args:
        system: a module with a `model` and a `guide`, or a `Pair`.
        objective: the objective.
        args: a batch, each argument of shape [B, ...].
        seed: where the random generators start.
        double: whether the training is in double precision; the system has its own precision
            again afterwards.

    Returns:
        The full size of the data plate if it is subsampled, else None.

    Raises:
        ProgramError: for a site that the objective does not support; the message names it.
        ConfigError: if no parameter would be trained, or one is only in Pyro's store.
    """
    with fork_random(args[0].device, seed), evaluating(system):
        if isinstance(system, Pair):
            system.find_parameters(*like_parameters(system, args))
        for name in (
            {}
            if isinstance(system, Pair)
            else announced_parameters(system, like_parameters(system, args))
        ):
            raise ConfigError(
                f"the parameter '{name}' is in Pyro's store and none of the module's: to train "
                "both, give fit the pair (system.model, system.guide)"
            )
        if not any(parameter.requires_grad for parameter in system.parameters()):
            raise ConfigError(
                "model and guide have no parameters to train: announce them by pyro.param or "
                "pyro.module"
            )
        with _doubled(system) if double else nullcontext():
            size = full_size(refuse_untrained(system, objective, like_parameters(system, args)))
    with fork_random(args[0].device), _doubled(system) if double else nullcontext():
        model, guide = cast(System, system).model, cast(System, system).guide
        site = mixed_site(model, guide, like_parameters(system, args), training=True)
    if site is not None:
        warnings.warn(
            f"the log-density of the site '{site}' of one datum depends on the other data of its "
            "batch, as with BatchNorm in training mode: the bound is none on the log p(x) of each "
            "datum",
            stacklevel=2,
        )
    return size


def refuse_global(system: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Refuse latent sites outside the data plate, if several processes share a batch.

    Each process would count their terms in full.

    Args:
        system: a module with a `model` and a `guide`.
        args: a batch, each argument of shape [B, ...].

    Raises:
        ProgramError: for such a site; the message names it.
    """
    model, guide = cast(System, system).model, cast(System, system).guide
    with fork_random(args[0].device), evaluating(system):
        traces = run(model, guide, like_parameters(system, args), {})
    for name, site in traces.sites(traces.model, observed=False):
        if not traces.is_local(site):
            raise ProgramError(
                f"several processes share a batch, but the latent site '{name}' lies outside the "
                "data plate: give the plate its full size, as in pyro.plate('data', N, "
                "subsample=index), or use one process"
            )


def data_plate_name(
    system: nn.Module, train: Dataset | Arguments, config: TrainConfig
) -> str | None:
    """Find the name of the data plate by a trial run on one batch; generators stay unchanged.

    Args:
        system: A module with a model and a guide.
        train: The training data.
        config: The configuration of the training.

    Returns:
        The name; None for programs without one data plate.
    """
    args = _sample_of(train, config)
    model, guide = cast(System, system).model, cast(System, system).guide
    precision = _doubled(system) if config.precision == "64-true" else nullcontext()
    with fork_random(args[0].device), evaluating(system), precision:
        plate = run(model, guide, like_parameters(system, args), {}).plate
    return None if plate is None else plate.name


@contextmanager
def _doubled(system: nn.Module) -> Iterator[None]:
    """Double precision of a system and of new tensors, as Fabric sets it in training."""
    before, default = (
        {t.dtype for t in system.state_dict().values() if t.is_floating_point()},
        torch.get_default_dtype(),
    )
    torch.set_default_dtype(torch.float64)
    try:
        system.double()
        yield
    finally:
        torch.set_default_dtype(default)
        if len(before) == 1:
            system.to(before.pop())


def check(
    system: nn.Module,
    train: Dataset | Arguments,
    valid: Dataset | Arguments | None,
    objective: ELBO,
    config: TrainConfig,
) -> int | None:
    """Refuse, before any work, what cannot be trained.

    Args:
        system: a module with a `model` and a `guide`, or a `Pair`.
        train: the training data.
        valid: the validation data; None if there are none.
        objective: the objective.
        config: the configuration.

    Returns:
        The full size of the data plate if it is subsampled, else None.

    Raises:
        ConfigError: for settings that do not fit the data, the objective or the hardware.
        DataError: for data that do not fit an autoencoder's width or likelihood.
        ProgramError: for programs that the objective does not support.
    """
    if config.batch_size > len(train):
        raise ConfigError(
            f"batch_size of {config.batch_size} is larger than the {len(train)} training data: "
            f"give {len(train)} or less"
        )
    if not hasattr(objective, "differentiable_loss"):
        raise ConfigError(
            f"{type(objective).__name__} has no differentiable_loss, so it cannot be used in fit: "
            "use one of pyroae's objectives, or pyro.infer.SVI"
        )
    steps = config.kl_warmup * math.ceil(len(train) / config.batch_size)
    if config.max_steps is not None and steps > config.max_steps:
        raise ConfigError(
            f"kl_warmup of {config.kl_warmup} epochs, {steps} steps, is longer than the training "
            f"of {config.max_steps}: the KL weight would never reach 1"
        )
    if isinstance(system, Autoencoder):
        if isinstance(train, Dataset) and train.missing:
            check_columns(train.x, f"{train.name} (training data)")
        for part, dataset in (("training", train), ("validation", valid)):
            if isinstance(dataset, Dataset):
                check_data(system, dataset, f"{dataset.name} ({part} data)")
    fabric_of(config)
    sample = _sample_of(train, config)
    size = rehearse(system, objective, sample, config.seed, double=config.precision == "64-true")
    refuse_batch_of_one(system, sample, len(train), config.batch_size)
    if config.is_distributed and size is None:
        refuse_global(system, sample)
    optimizer_of(config, system)
    return size


def check_data(autoencoder: Autoencoder, dataset: Dataset, what: str) -> None:
    """Refuse data that do not fit an autoencoder.

    Args:
        autoencoder: the autoencoder, with its width and its likelihood.
        dataset: the data.
        what: a name for them, for the message.

    Raises:
        DataError: for another width, a condition that is missing or of another width, or values
            outside the support of the likelihood.
    """
    autoencoder.check_condition(dataset.condition)
    if dataset.missing and not autoencoder.missing:
        raise DataError(
            f"{what} has missing values, for which the autoencoder was not made: make it from "
            "these data, or with missing=True"
        )
    autoencoder.flat(dataset.x[:1])
    observed = dataset.filled
    try:
        autoencoder.likelihood.check(observed.round() if dataset.dynamic else observed, what)
    except DataError as error:
        raise DataError(with_names(str(error), dataset.columns)) from None


def with_names(message: str, columns: Sequence[str]) -> str:
    """Replace the numbers of columns in a message by their names.

    Args:
        message: A text such as "x holds 2 at row 0, column 1".
        columns: The names of all columns; empty if they have none.

    Returns:
        The text with names in quotes.

    >>> with_names("x holds 2 at row 0, column 1", ("age", "height"))
    "x holds 2 at row 0, column 'height'"
    """
    if not columns:
        return message
    return re.sub(r"\bcolumn (\d+)\b", lambda found: f"column '{columns[int(found[1])]}'", message)


def _sample_of(train: Dataset | Arguments, config: TrainConfig) -> tuple[Tensor, ...]:
    """A batch for the trial run; dynamic data, which are probabilities, are rounded."""
    x, *others = (t[: config.batch_size] for t in train.tensors)
    is_dynamic = isinstance(train, Dataset) and train.dynamic
    return (x.round() if is_dynamic else x, *others)
