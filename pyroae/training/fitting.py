"""Training: `fit(system, data, objective, config)`, on Lightning Fabric."""

from collections.abc import Callable
from dataclasses import replace

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
from pyroae.programs.arguments import Arguments
from pyroae.programs.pair import system_of
from pyroae.programs.sites import Program
from pyroae.training.forward import Step
from pyroae.training.preflight import check, data_plate_name
from pyroae.training.state import State, own_generators
from pyroae.training.trainer import FitResult, Trainer


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
        fabric = launch_fabric(config)
        with own_generators(fabric.device, config.seed), default_dtype(config):
            step = Step(module, objective, size)
            step.plate = data_plate_name(module, train, config) if config.is_distributed else None
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
        raise ConfigError(
            "the data have a validation part already: give the whole as Splits, or the parts one by one"
        )
    valid = data.valid if isinstance(data, Splits) else valid
    train = data_for(system, data.train if isinstance(data, Splits) else data)
    held_out = None if valid is None else data_for(system, valid)
    if isinstance(held_out, Dataset) and held_out.stream is not None:
        raise DataError(
            f"validation data are in memory, and {held_out.name} is larger: give some of it, by first(count)"
        )
    return train, held_out


def data_for(
    system: nn.Module, given: Dataset | Arguments | Tensor | tuple[Tensor, ...]
) -> Dataset | Arguments:
    """What is given to `fit` as the data of that system: a Dataset, or the arguments of a program."""
    if isinstance(given, Dataset):
        return given
    if isinstance(system, Autoencoder):
        tensors = given.tensors if isinstance(given, Arguments) else given
        return Dataset.from_array(
            tensors[0] if isinstance(tensors, tuple) and len(tensors) == 1 else tensors
        )
    if isinstance(given, Arguments):
        return given
    return Arguments(given if isinstance(given, tuple) else (given,))
