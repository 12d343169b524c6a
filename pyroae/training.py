"""Training: `fit(system, data, objective, config)`, on Lightning Fabric."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyroae.autoencoder import Autoencoder
from pyroae.config import TrainConfig
from pyroae.data import Arguments, Dataset, Splits, resident
from pyroae.errors import ConfigError, DataError
from pyroae.fabric import default_dtype, fabric_of, launched
from pyroae.objectives import TraceELBO
from pyroae.optimizers import optimizer_of
from pyroae.program import refuse_batch_of_one, refuse_global, rehearse, system_of
from pyroae.states import State, own_generators
from pyroae.step import Step
from pyroae.trainer import FitResult, Trainer
from pyroae.weights import Program


def fit(
    system: nn.Module | tuple[Program, Program],
    data: Splits | Dataset | Tensor | tuple[Tensor, ...],
    objective: ELBO | None = None,
    config: TrainConfig | None = None,
    *,
    valid: Dataset | Tensor | tuple[Tensor, ...] | None = None,
    state: State | None = None,
    on_epoch: Callable[[State], None] | None = None,
    compile: bool | str | None = None,
    progress: bool = True,
) -> FitResult:
    """Train in place, minimizing the negative bound in nats per datum.

        loss = −surrogate(minibatch) / B,  z drawn from torch's generator, seeded with `config.seed`

    system: an Autoencoder, any module with a `model` and a `guide`, or a pair (model, guide) of Pyro programs, whose
    parameters are found as `pyro.infer.SVI` finds them. A program is given minibatches, of all its arguments where `data` is
    a tuple of tensors `[N, ...]`; one that subsamples its plate itself is given all data by a `batch_size` of N. Where its
    plate is subsampled, the bound is divided by the plate's full size.
    data: Splits give validation bounds and early stopping, as `valid` does; a Dataset or tensors are trained on whole.
    objective: an Objective or one of Pyro's own ELBOs that has a `differentiable_loss`; by default TraceELBO().
    state: to go on from; on_epoch: receives the state after each epoch, a `Keeper` also in the middle of one. The caller's
    random generators, those of Python and NumPy too, stay as they were.
    compile: the step as one graph, as of `pyroae.compile`; by default as the configuration says, which is to compile where
    the training is long enough to earn it back. On a CPU the draws are the same, and the results equal but for rounding.
    With `devices` or `num_nodes` above 1 the script is started once more for each process, those of torchrun excepted; they
    take the steps that one process takes on the same batches, each on its share of them.
    The corruption of a denoising system acts in training only, not in validation; the system is left in `eval()` mode.
    Raises ConfigError, DataError, ProgramError before any step; NonFiniteLossError, with step, batch and site, where the loss
    becomes NaN or infinite: the last good weights are then put back.

    >>> from pyroae import load, zoo
    >>> digits = load("digits", binarize="dynamic")
    >>> vae = zoo.vae(digits.train, latent=2)
    >>> result = fit(vae, digits, config=TrainConfig(epochs=2), progress=False)
    >>> result.history[1].valid_nelbo < result.history[0].valid_nelbo
    True
    """
    config = config or TrainConfig()
    config = config if compile is None else replace(config, compile=compile)
    objective = TraceELBO() if objective is None else objective
    with own_generators(torch.device("cpu"), config.seed):
        module = system_of(system)
        train, held_out = train_and_valid(module, data, valid)
        size = check(module, train, held_out, objective, config)
        fabric = launched(config)
        with own_generators(fabric.device, config.seed), default_dtype(config):
            step = Step(module, objective, size)
            trainer = Trainer(step, config, fabric, resident(train, fabric.device), held_out)
            return trainer.run(state, on_epoch, progress)


def train_and_valid(
    system: nn.Module,
    data: Splits | Dataset | Tensor | tuple[Tensor, ...],
    valid: Dataset | Tensor | tuple[Tensor, ...] | None,
) -> tuple[Dataset | Arguments, Dataset | Arguments | None]:
    """The training and validation data of that system.

    Raises ConfigError where the latter are given twice, DataError where they are larger than memory.
    """
    if isinstance(data, Splits) and valid is not None:
        raise ConfigError("the data have a validation part already: give the whole as Splits, or the parts one by one")
    valid = data.valid if isinstance(data, Splits) else valid
    train = data_for(system, data.train if isinstance(data, Splits) else data)
    held_out = None if valid is None else data_for(system, valid)
    if isinstance(held_out, Dataset) and held_out.stream is not None:
        raise DataError(f"validation data are in memory, and {held_out.name} is larger: give some of it, by first(count)")
    return train, held_out


def check(
    system: nn.Module, train: Dataset | Arguments, valid: Dataset | Arguments | None, objective: ELBO, config: TrainConfig
) -> int | None:
    """Refuse, before any work, what cannot be trained. Raises ConfigError, DataError or ProgramError.

    Returns the full size of the data plate where it is subsampled.
    """
    if config.batch_size > len(train):
        raise ConfigError(f"batch_size of {config.batch_size} is larger than the {len(train)} training data")
    if not hasattr(objective, "differentiable_loss"):
        raise ConfigError(
            f"{type(objective).__name__} has no differentiable_loss, so it cannot be used in fit: use one of pyroae's "
            "objectives, or pyro.infer.SVI"
        )
    steps = config.kl_warmup * math.ceil(len(train) / config.batch_size)
    if config.max_steps is not None and steps > config.max_steps:
        raise ConfigError(
            f"kl_warmup of {config.kl_warmup} epochs, {steps} steps, is longer than the training of {config.max_steps}: "
            "the KL weight would never reach 1"
        )
    if isinstance(system, Autoencoder):
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
    """Raises DataError where the system's width or likelihood does not suit the data."""
    autoencoder.flat(dataset.x[:1])
    autoencoder.likelihood.check(dataset.x.round() if dataset.dynamic else dataset.x, what)


def data_for(system: nn.Module, given: Dataset | Arguments | Tensor | tuple[Tensor, ...]) -> Dataset | Arguments:
    """What is given to `fit` as the data of that system: a Dataset, or the arguments of a program."""
    if isinstance(given, Dataset):
        return given
    if isinstance(system, Autoencoder):
        tensors = given.tensors if isinstance(given, Arguments) else given
        return Dataset.from_array(tensors[0] if isinstance(tensors, tuple) and len(tensors) == 1 else tensors)
    if isinstance(given, Arguments):
        return given
    return Arguments(given if isinstance(given, tuple) else (given,))


def _sample_of(train: Dataset | Arguments, config: TrainConfig) -> tuple[Tensor, ...]:
    """A batch to look at before the start: dynamic data, which are probabilities, as black and white."""
    if isinstance(train, Arguments):
        return tuple(t[: config.batch_size] for t in train.tensors)
    x = train.x[: config.batch_size]
    return (x.round() if train.dynamic else x,)
