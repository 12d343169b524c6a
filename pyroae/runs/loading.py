"""The trained system of a run, and whether a checkpoint fits it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyro
import torch
from torch import nn

from pyroae import zoo
from pyroae.config import RunConfig, snapshot_name
from pyroae.data.dataset import Dataset
from pyroae.data.loading import Splits
from pyroae.errors import RunError
from pyroae.evaluation.blocks import Data
from pyroae.evaluation.results import Result
from pyroae.programs.arguments import Arguments
from pyroae.programs.context import evaluating
from pyroae.programs.controlled import without_controls
from pyroae.programs.pair import Pair, like_parameters
from pyroae.runs.data_of_run import arguments_in, own_splits
from pyroae.runs.parts import first_results
from pyroae.runs.run import Run
from pyroae.runs.snapshots import Snapshots
from pyroae.runtime.randomness import fork_random
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import text_of, with_error
from pyroae.training.state import History, State, history_table


@dataclass(frozen=True, repr=False)
class LoadedRun(Shown):
    """A run directory, read.

    Attributes:
        config: Its settings.
        system: The trained system or program, with `model` and `guide`, in `eval()` mode.
        data: The data that it was trained on: Splits of Datasets; of Arguments for a program of
            several arguments.
        history: The finished epochs.
        results: The figures of its evaluation by name, as of `first_results`; empty before an
            evaluation. `Run(path).results()` has those of all parts of the data and methods.
        snapshots: The system after each epoch of `config.snapshots`: iterate over (epoch, system).
    """

    config: RunConfig
    system: nn.Module
    data: Splits
    history: History
    results: dict[str, Result]
    snapshots: Snapshots

    def _overview(self) -> Overview:
        table = history_table(self.history)
        trained = f"{', '.join(table.head)}, {self.config.estimator}"
        nll = self.results.get("nll")
        rows = [
            ("system", text_of(self.system)),
            ("data", text_of(self.data)),
            ("training", trained),
            ("last epoch", text_of(self.history[-1]) if self.history else "none"),
            ("results", f"{len(self.results)} figures"),
            ("snapshots", text_of(self.snapshots)),
        ]
        head = [f"NLL {with_error(nll.estimate, nll.se, 'nats')}"] if nll else []
        return Overview([self.config.program or self.config.system, self.config.data, *head], rows)


def load_run(path: str | Path, checkpoint: str | None = None) -> LoadedRun:
    """Read a run directory, as `pyroae train` writes it.

    The modules that config.yaml records are imported. Parameters that a program keeps in Pyro's
    global store have the values of the run that was read last.

    Args:
        path: The run directory.
        checkpoint: The weights: `best`, `last`, `previous` or a snapshot, as `epoch-10`; by default
            those that the training kept.

    Returns:
        The trained system, the data, the epochs, the results and the snapshots.

    Raises:
        RunError: If there is no run, it cannot be read, or one of its modules is missing.
        DataError: If the data cannot be read, or have changed.
    """
    run = Run(path)
    splits = own_splits(run)
    system = trained(run, checkpoint, splits.train)
    snapshots = Snapshots(
        run.snapshots, lambda epoch: trained(run, snapshot_name(epoch), splits.train)
    )
    return LoadedRun(run.config, system, splits, run.history(), first_results(run), snapshots)


def trained(
    run: Run, checkpoint: str | None = None, part: Dataset | Arguments | None = None
) -> nn.Module:
    """Return the trained system or program of a run.

    Args:
        run: The run.
        checkpoint: As in `load_run`.
        part: Data like those of the run, on which a program is run once to find the parameters
            that it keeps in Pyro's store; by default its training data.

    Returns:
        An Autoencoder, or a module with `model` and `guide`, in `eval()` mode.

    Raises:
        RunError: If the checkpoint cannot be read, or is of another system.
    """
    if run.config.program is None:
        return run.autoencoder(checkpoint)
    part = own_splits(run).train if part is None else part
    system = zoo.system_from(run.config, run.shape, len(run.condition_names))
    find_parameters(system, part, run.config)
    run.restore(system, checkpoint)
    return system


def find_parameters(system: nn.Module, part: Dataset | Arguments, config: RunConfig) -> None:
    """Run a program once on a batch, so that a Pair holds the parameters of Pyro's store.

    Args:
        system: The system; nothing is done for what is no Pair.
        part: Data of the program.
        config: The configuration; its batch size and seed are used.
    """
    if isinstance(system, Pair):
        args = like_parameters(system, arguments_in(part.first(config.batch_size)))
        with fork_random(args[0].device, config.seed), evaluating(system):
            system.find_parameters(*args)


def placed(system: nn.Module, part: Dataset | Arguments, device: torch.device) -> Data:
    """Return the arguments on a device, in the precision of the system's parameters.

    Args:
        system: The system, on that device.
        part: Data.
        device: The device.

    Returns:
        One tensor for a Dataset without a condition, else a tuple of tensors.
    """
    args = like_parameters(system, tuple(t.to(device) for t in arguments_in(part)))
    return args if isinstance(part, Arguments) or len(args) > 1 else args[0]


@contextmanager
def own_parameters() -> Iterator[None]:
    """Give a block of code an empty parameter store of Pyro, and restore the caller's afterwards.

    Yields:
        None, in the context.
    """
    with pyro.get_param_store().scope():
        yield


def fits(run: Run, state: State, system: nn.Module) -> None:
    """Refuse a state of another system.

    Args:
        run: The run, for the message.
        state: A saved state of a training.
        system: The system that is to continue from it.

    Raises:
        RunError: If its weights have other names or shapes.
    """
    shapes = {name: tuple(v.shape) for name, v in system.state_dict().items()}
    weights = without_controls(state.weights, system)
    if shapes != {name: tuple(v.shape) for name, v in weights.items()}:
        raise RunError(
            f"the checkpoint of '{run.path}' is of another system: its weights have other names or "
            "shapes"
        )
