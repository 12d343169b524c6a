"""What each training of a comparison starts from: data, configuration, system; checks of these."""

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, cast

import pyro
import torch
from pyro.infer import ELBO
from torch import nn

from pyroae.autoencoder import Autoencoder
from pyroae.comparison.budget import Budget
from pyroae.comparison.results import Cell
from pyroae.config import Scoring, TrainConfig
from pyroae.config.checks import as_list, different_numbers
from pyroae.data.dataset import Dataset
from pyroae.data.loading import Splits
from pyroae.errors import ConfigError, DataError
from pyroae.evaluation.blocks import Data, arguments_of
from pyroae.evaluation.checks import check_program
from pyroae.objectives.base import ObjectiveBase
from pyroae.programs.arguments import Arguments
from pyroae.programs.context import evaluating
from pyroae.programs.pair import Pair, System, system_of
from pyroae.runtime.randomness import fork_random
from pyroae.runtime.short_repr import Shown
from pyroae.studies.curves import placed
from pyroae.studies.scoring import first_of, method_for
from pyroae.training.fitting import data_for, train_and_valid
from pyroae.training.preflight import check


@dataclass(frozen=True)
class Parts:
    """The data of a comparison.

    Attributes:
        train: the training data.
        valid: the validation data; None if there are none.
        held_out: the data that trainings are scored on.
        arranged: Arguments whose structure the programs take; None for tensors one by one.
    """

    train: Any
    valid: Any
    held_out: Any
    arranged: Arguments | None = None

    @classmethod
    def of(cls, splits: Splits) -> "Parts":
        """Return the parts of Splits.

        Args:
            splits: the data.

        Returns:
            The parts; the test part is held out.

        Raises:
            DataError: if there is no test part.
        """
        if splits.test is None:
            raise DataError("a comparison needs held-out data: the splits have no test part")
        return cls(splits.train, splits.valid, splits.test)

    def tuning(self) -> "Parts":
        """Return the parts for the choice of settings: the validation data are held out.

        Returns:
            The parts.

        Raises:
            DataError: if there are no validation data.
        """
        if self.valid is None:
            raise DataError("settings are tuned on validation data, and there are none")
        return replace(self, held_out=self.valid)


def as_data(data: Any) -> Dataset | Arguments:
    """Return data in one of the forms that `fit` accepts as a Dataset or as Arguments.

    Args:
        data: a Dataset, an array or tensor [N, ...], or for a program a dict of tensors [N, ...]
            or a tuple of its arguments.

    Returns:
        A Dataset or Arguments; a tensor stays as it is.

    Raises:
        DataError: for other values.
    """
    if isinstance(data, tuple | dict):
        return Arguments.of(data)
    known = isinstance(data, Dataset | Arguments | torch.Tensor)
    return data if known else Dataset.from_array(data)


def fingerprint_of(data: Any) -> str:
    """Return a fingerprint of the values of data.

    Args:
        data: Data in one of the forms of `as_data`.

    Returns:
        Hexadecimal digits; of data larger than memory only the number of data and their name.

    >>> x = torch.zeros(3, 2)
    >>> fingerprint_of(x) == fingerprint_of(Arguments((x,))) != fingerprint_of(x + 1)
    True
    """
    if isinstance(data, Dataset) and data.stream is not None:
        return f"{len(data)} data of {data.name}"
    dynamic = isinstance(data, Dataset) and data.dynamic
    found = sha256(b"dynamic" if dynamic else b"")
    for tensor in (data,) if isinstance(data, torch.Tensor) else data.tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def described(choice: Any) -> str:
    """Return a choice as text that does not depend on where it lies in memory.

    Args:
        choice: An objective, a prior, or another choice.

    Returns:
        Its `repr` without addresses; for one without a `repr` of its own its type and attributes.

    >>> described(Budget("epochs", 2))
    "Budget(kind='epochs', amount=2)"
    >>> from pyroae.objectives import TraceELBO
    >>> described(TraceELBO(8)) == described(TraceELBO(8)) != described(TraceELBO(2))
    True
    """
    is_plain = type(choice).__repr__ in (object.__repr__, Shown.__repr__)
    if is_plain and hasattr(choice, "__dict__"):
        values = ", ".join(f"{name}={value!r}" for name, value in vars(choice).items())
        text = f"{type(choice).__name__}({values})"
    else:
        text = repr(choice)
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def described_system(system: nn.Module) -> dict[str, Any]:
    """Return what is known of a system without its weights.

    Args:
        system: A module with a model and a guide.

    Returns:
        Its type, the choices of an Autoencoder, and the shapes of its parameters by name.
    """
    choices = ("prior", "posterior", "likelihood", "corruption", "encoder_map", "decoder_map")
    of_zoo = choices if isinstance(system, Autoencoder) else ()
    return {
        "type": type(system).__name__,
        **{name: described(getattr(system, name)) for name in of_zoo},
        "shapes": {name: list(tensor.shape) for name, tensor in system.state_dict().items()},
    }


def check_scoring(held_out: Any, scoring: Scoring) -> None:
    """Refuse a scoring that the held-out data are too few for.

    Args:
        held_out: the held-out data.
        scoring: how they are scored.

    Raises:
        ConfigError: for a subset that is larger than the data.
    """
    scoring.subset_of(min(len(held_out), scoring.num_data or len(held_out)))


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that are not different whole numbers.

    Args:
        seeds: the seeds of each entry.

    Raises:
        ConfigError: if there is none, one is negative or one is given twice.
    """
    if not different_numbers(seeds, 0):
        raise ConfigError(f"seeds are different whole numbers of at least 0, not {as_list(seeds)}")


def evaluations_per_datum(objective: ELBO, system: nn.Module, x: Data) -> float:
    """Return the mean number of decoder evaluations per datum of a training step.

    An objective that sums over discrete sites knows it after an estimate: one is made for one
    datum, with a copy of the objective. Generators and parameters are as before.

    Args:
        objective: an objective of pyroae or of Pyro.
        system: the system that is trained.
        x: data [N, ...], or a tuple of the arguments of a program; the first datum is taken.

    Returns:
        What the objective states for the system; K for an ELBO of Pyro.

    >>> from pyroae import zoo
    >>> from pyroae.objectives import parse_objective
    >>> x = torch.ones(2, 4)
    >>> evaluations_per_datum(parse_objective("dais:steps=3", 2), zoo.vae(4, latent=2), x)
    10.0
    >>> evaluations_per_datum(parse_objective("enumerate", 2), zoo.discrete_vae(4, latent=3), x)
    8.0
    """
    if not isinstance(objective, ObjectiveBase):
        return float(objective.num_particles)
    copy = deepcopy(objective)
    args = tuple(arg[:1] for arg in arguments_of(placed(system, x)))
    programs = cast(System, system)
    with pyro.get_param_store().scope(), evaluating(system), fork_random(args[0].device):
        if isinstance(system, Pair):
            system.find_parameters(*args)
        copy.bound(programs.model, programs.guide, *args)
    return copy.evaluations


def config_of(
    cell: Cell, base: TrainConfig, budget: Budget, num_data: int, per_datum: Callable[[], float]
) -> TrainConfig:
    """Return the configuration of a cell under a budget.

    Args:
        cell: the cell.
        base: the configuration that all cells share.
        budget: replaces its epochs and limits.
        num_data: the number of training data.
        per_datum: returns the decoder evaluations per datum of a step; called for a budget of them.

    Returns:
        The configuration.

    Raises:
        ConfigError: if the budget is less than one step.
    """
    evaluations = per_datum() if budget.kind == "evaluations" else 1.0
    return replace(base, seed=cell.seed, **budget.limits(evaluations, num_data, base.batch_size))


def new_system(make: Callable[[], Any], seed: int) -> nn.Module:
    """Return a new system; torch's generators have their previous states afterwards.

    Args:
        make: makes the system.
        seed: where the draws of its initial weights start.

    Returns:
        A module with a `model` and a `guide`.
    """
    with fork_random(torch.device("cpu"), seed):
        return system_of(make())


def check_cell(
    system: nn.Module,
    parts: Parts,
    objective: ObjectiveBase,
    config: TrainConfig,
    scoring: Scoring,
) -> None:
    """Refuse, before any work, what can be neither trained nor scored.

    Args:
        system: the system of the cell.
        parts: the data.
        objective: the objective of the cell.
        config: the configuration of the cell.
        scoring: how it is scored.

    Raises:
        ConfigError: for settings that cannot be used.
        DataError: for data that the system does not accept.
        ProgramError: for programs that the objective does not support.
        UndefinedLikelihoodError: if log p(x) is not defined.
    """
    check(system, *train_and_valid(system, parts.train, parts.valid), objective, config)
    x = placed(system, first_of(data_for(system, parts.held_out), 1))
    programs = cast(System, system)
    args = arguments_of(x)
    with evaluating(system), fork_random(args[0].device):
        check_program(programs.model, programs.guide, args)
    method_for(system, x, scoring)
