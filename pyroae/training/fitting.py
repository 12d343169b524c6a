"""Train a system on data: `fit`, on Lightning Fabric."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyroae.autoencoder import Autoencoder
from pyroae.config import TrainConfig
from pyroae.data.batching import resident
from pyroae.data.dataset import Dataset
from pyroae.data.loading import Splits
from pyroae.distributed.fabric import default_dtype, launch_fabric
from pyroae.errors import ConfigError, DataError
from pyroae.objectives import TraceELBO
from pyroae.objectives.apply import controls_of, forget_controls
from pyroae.programs.arguments import Arguments
from pyroae.programs.controlled import with_controls, without_controls
from pyroae.programs.pair import flattened, system_of
from pyroae.programs.sites import Program
from pyroae.runtime.randomness import fork_all_random
from pyroae.training.forward import Step
from pyroae.training.preflight import check, data_plate_name
from pyroae.training.recording import Recorder
from pyroae.training.state import State
from pyroae.training.trainer import FitResult, Trainer

if TYPE_CHECKING:
    from lightning_fabric.loggers import Logger

Data = Dataset | Arguments | Tensor | dict[str, Any] | tuple[Any, ...]
"""What a system is trained on: a Dataset, or the arguments of a program, tensors [N, ...]."""


def fit(
    system: nn.Module | tuple[Program, Program],
    data: Any,
    objective: ELBO | None = None,
    config: TrainConfig | None = None,
    *,
    valid: Data | None = None,
    state: State | None = None,
    on_epoch: Callable[[State], None] | None = None,
    compile: bool | str | None = None,
    progress: bool = True,
    logger: "Logger | Sequence[Logger] | Recorder | None" = None,
) -> FitResult:
    """Train a system in place by minimizing the negative bound.

        loss = −surrogate(minibatch) / B,  z drawn from torch's generator, seeded with `config.seed`

    B is the batch size or, where the data plate is subsampled, its full size. The corruption of a
    denoising system is applied in training only, not in validation.

    On a CPU a compiled step has the same draws, and its results are equal up to rounding. With
    `devices` or `num_nodes` above 1 the script is started once more for each process, unless
    torchrun has started them; the processes take the steps that one process takes on the same
    batches, each on its share of them.

    Args:
        system: an Autoencoder, any module with a `model` and a `guide`, or a pair (model, guide) of
            Pyro programs, whose parameters are found as `pyro.infer.SVI` finds them. Programs
            receive minibatches of all their arguments. One that subsamples its plate itself
            receives all data with a `batch_size` of N.
        data: Splits give validation bounds and early stopping, as `valid` does; a Dataset, a
            tensor, a dict of tensors, or a tuple of these, the positional arguments of a program,
            are trained on as a whole. Tensors have the shape [N, ...]. An Autoencoder takes all
            that `Dataset.from_array` does: arrays, tables, datasets of torch.
        objective: an Objective, or an ELBO of Pyro with a `differentiable_loss`; by default
            `TraceELBO()`. One that learns parameters of its own starts anew, or from `state`; what
            it has learned in the training is afterwards its `controls`.
        config: the configuration; by default `TrainConfig()`.
        valid: validation data, in the forms of `data`.
        state: the state to resume from; None starts the training.
        on_epoch: receives the state after each epoch, and before the first one where
            `config.snapshots` has 0; a `Keeper` also within an epoch.
        compile: whether a step is one graph, as in `pyroae.compile`; by default as the
            configuration says, which is to compile where the training is long enough.
        progress: whether to show the progress.
        logger: loggers of Lightning Fabric that record the settings and the metrics of each epoch;
            they stay open, and one that fails is left out with a warning.

    Returns:
        The system, in `eval()` mode, the history of its training, and its snapshots. The random
        generators of the caller, those of Python and NumPy too, have their previous states.

    Raises:
        ConfigError: before any step, for settings that cannot be used.
        DataError: before any step, for data that the system does not accept.
        ProgramError: before any step, for programs that the objective does not support.
        NonFiniteLossError: if the loss becomes NaN or infinite, with step, batch and site; the
            last good weights are restored.

    >>> from pyroae import load, zoo
    >>> digits = load("digits", binarize="dynamic")
    >>> vae = zoo.vae(digits.train, latent=2)
    >>> result = fit(vae, digits, config=TrainConfig(epochs=2), progress=False)
    >>> result.history[1].valid_nelbo < result.history[0].valid_nelbo
    True
    >>> config = TrainConfig(epochs=2, snapshots=(0, 1))
    >>> sorted(fit(vae, digits, config=config, progress=False).snapshots)
    [0, 1]
    """
    config = config or TrainConfig()
    config = config if compile is None else replace(config, compile=compile)
    objective = TraceELBO() if objective is None else objective
    with fork_all_random(torch.device("cpu"), config.seed):
        module = system_of(system)
        train, held_out = train_and_valid(module, data, valid)
        forget_controls(objective)
        size = check(flattened(module, train), train, held_out, objective, config)
        original, module = module, trained_module(module, train, objective)
        fabric = launch_fabric(config)
        with fork_all_random(fabric.device, config.seed), default_dtype(config):
            step = Step(module, objective, size)
            step.plate = data_plate_name(module, train, config) if config.is_distributed else None
            trainer = Trainer(step, config, fabric, resident(train, fabric.device), held_out)
            recorder = Recorder.of(logger if fabric.is_global_zero else None)
            if state is None:
                recorder.begin({**asdict(config), "objective": _text_of(objective)})
            result = trainer.run(state, on_epoch, progress, recorder)
    return returned(result, original)


def _text_of(objective: ELBO) -> str:
    """The objective for a record: its settings where it shows them, else its class."""
    is_plain = type(objective).__repr__ is object.__repr__
    return type(objective).__name__ if is_plain else repr(objective)


def trained_module(system: nn.Module, train: Dataset | Arguments, objective: ELBO) -> nn.Module:
    """Return the module that a training steps and saves.

    Args:
        system: the user's system.
        train: the training data.
        objective: the objective, which has made what it learns.

    Returns:
        The system with the parameters that the objective learns, and with flat arguments.
    """
    return flattened(with_controls(system, controls_of(objective)), train)


def returned(result: FitResult, system: nn.Module) -> FitResult:
    """Return a result with the user's system in the place of the module that was trained.

    Args:
        result: the result of a training.
        system: the user's system, which shares the parameters.

    Returns:
        The result; the system is in the mode of the trained one. Its snapshots are weights of the
        system, without those of the objective.
    """
    system.training = result.system.training
    snapshots = {
        epoch: without_controls(weights, system) for epoch, weights in result.snapshots.items()
    }
    return replace(result, system=system, snapshots=snapshots)


def train_and_valid(
    system: nn.Module,
    data: Splits | Data,
    valid: Data | None,
) -> tuple[Dataset | Arguments, Dataset | Arguments | None]:
    """Return the training and validation data in the form that a system is trained on.

    Args:
        system: the system.
        data: as in `fit`.
        valid: as in `fit`.

    Returns:
        Training data, and validation data or None.

    Raises:
        ConfigError: for validation data both in `data` and in `valid`.
        DataError: for validation data that are larger than memory, or arranged differently.
    """
    if isinstance(data, Splits) and valid is not None:
        raise ConfigError(
            "the data have a validation part already: give either Splits, or both parts separately"
        )
    valid = data.valid if isinstance(data, Splits) else valid
    train = data_for(system, data.train if isinstance(data, Splits) else data)
    held_out = None if valid is None else data_for(system, valid)
    if isinstance(held_out, Dataset) and held_out.stream is not None:
        raise DataError(
            f"validation data are in memory, and {held_out.name} is larger: give some of it, by "
            "first(count)"
        )
    if isinstance(train, Arguments) and isinstance(held_out, Arguments):
        one, other = train.structure, held_out.structure
        if not (one is other or (one is not None and one.is_like(other))):
            raise DataError("the validation data are not arranged as the training data are")
    return train, held_out


def data_for(system: nn.Module, given: Data) -> Dataset | Arguments:
    """Return data in the form that a system is trained on.

    Args:
        system: an Autoencoder takes a Dataset, a conditional one also a pair (x, c); other programs
            take a Dataset or their arguments.
        given: a Dataset, arguments, a tensor, a dict of tensors, or a tuple of these; for an
            Autoencoder all that `Dataset.from_array` takes.

    Returns:
        A Dataset, or the arguments of a program.

    Raises:
        DataError: for data that cannot be read, and for arguments of a program that are no tensors.
    """
    if isinstance(given, Dataset):
        return given
    if isinstance(system, Autoencoder):
        if getattr(given, "structure", None) is not None:
            raise DataError(
                "an autoencoder takes what Dataset.from_array takes, not nested arguments"
            )
        tensors = given.tensors if isinstance(given, Arguments) else given
        if not isinstance(tensors, tuple):
            return Dataset.from_array(tensors, missing=system.missing)
        if len(tensors) == 2 and system.condition:
            x, c = tensors
            return Dataset.from_array(x, missing=system.missing).conditioned_on(c)
        x = tensors[0] if len(tensors) == 1 else tensors
        return Dataset.from_array(x, missing=system.missing)
    if isinstance(given, Arguments):
        return given
    return Arguments.of(given)
