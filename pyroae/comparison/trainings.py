"""Compare estimators by what they train: `compare_training`.

All trainings have the same initial weights, batches and budget, and are scored by one metric.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import pyro
import torch
from torch import Tensor, nn

from pyroae.comparison.budget import Budget
from pyroae.comparison.cell_files import CellDirectory
from pyroae.comparison.cells import CellRunner
from pyroae.comparison.curves import CURVE_DATA, Curve, placed
from pyroae.comparison.results import Cell, Comparison, Outcome
from pyroae.comparison.scoring import Scoring, first_of, score
from pyroae.config import TrainConfig
from pyroae.data.dataset import Dataset
from pyroae.data.loading import Splits
from pyroae.errors import ConfigError, DataError
from pyroae.evaluation.blocks import arguments_of
from pyroae.evaluation.checks import check_program
from pyroae.evaluation.gradient_lab.measure import defined_at
from pyroae.objectives.base import ObjectiveBase
from pyroae.programs.arguments import Arguments
from pyroae.programs.context import evaluating
from pyroae.programs.pair import System, system_of
from pyroae.programs.sites import Program
from pyroae.runtime.files import locked
from pyroae.runtime.progress import Progress
from pyroae.runtime.randomness import fork_random
from pyroae.training.fitting import data_for
from pyroae.training.lockstep import is_worth_batching
from pyroae.training.preflight import check

__all__ = ["Curve", "Make", "Scoring", "compare_training"]

Make = Callable[[], nn.Module | tuple[Program, Program]]
"""Returns an untrained system."""


def compare_training(
    make: Make,
    data: Splits
    | tuple[Dataset | Tensor | tuple[Tensor, ...], Dataset | Tensor | tuple[Tensor, ...]],
    objectives: Mapping[str, Callable[[int], ObjectiveBase]],
    *,
    budget: Budget,
    ks: Sequence[int] = (1,),
    seeds: Sequence[int] = (0, 1, 2),
    config: TrainConfig | None = None,
    scoring: Scoring | None = None,
    path: str | Path | None = None,
    progress: bool = True,
) -> Comparison:
    """Train a new system under each objective, K and seed, and score all by the held-out NLL.

    For one seed every training has the same initial weights, order of the data and binarization.
    The seeds of an estimator are trained in one graph where `is_worth_batching` says so; each is
    then charged with its share of the seconds.

    Args:
        make: returns a new system, or a pair (model, guide). Its initial weights come from torch's
            generator, which is at the seed when `make` is called.
        data: Splits, or training and held-out data, each as in `fit`.
        objectives: functions from K, by name; one that raises ConfigError at some K is left out
            there.
        budget: what each training may spend, the same for all.
        ks: numbers of particles.
        seeds: the seeds of each estimator.
        config: the configuration; the budget replaces its epochs and limits. By default the last
            weights are scored.
        scoring: by default IS-5000 on the first 1,000 held-out data.
        path: a directory in which states and outcomes are saved; the same call with the same
            directory resumes an interrupted comparison, bit-exactly. None saves nothing.
        progress: whether to show the progress.

    Returns:
        The outcomes of all trainings.

    Raises:
        ConfigError: before any step, for settings that cannot be used, or a directory of another
            comparison.
        DataError: before any step, for data that the system does not accept.
        ProgramError: before any step, for programs that an objective does not support.
        UndefinedLikelihoodError: before any step, if log p(x) is not defined.
        InterruptedRunError: with a `path`, if a signal ended a training whose state is saved.

    >>> from functools import partial
    >>> from pyroae import load, zoo
    >>> from pyroae.objectives.named import dreg, iwae
    >>> digits = load("digits", binarize="dynamic")
    >>> comparison = compare_training(
    ...     partial(zoo.vae, digits.train, latent=2),
    ...     digits,
    ...     {"iwae": iwae, "dreg": dreg},
    ...     ks=(4,),
    ...     seeds=(0, 1),
    ...     budget=Budget("epochs", 1),
    ...     scoring=Scoring(num_particles=10, num_data=50),
    ...     progress=False,
    ... )
    >>> [entry.objective for entry in comparison.entries], len(comparison.outcomes)
    (['iwae', 'dreg'], 4)
    """
    base, scoring = config or TrainConfig(keep="last"), scoring or Scoring()
    train, valid, held_out = parts_of(data)
    at_k = defined_at(objectives, ks)
    if len(set(seeds)) < len(seeds) or not seeds or min(seeds) < 0:
        raise ConfigError(f"seeds are different whole numbers of at least 0, not {list(seeds)}")
    cells = [
        Cell(name, k, seed) for name in objectives for k in ks if name in at_k[k] for seed in seeds
    ]
    configs = {cell: config_of(cell, base, budget, len(train)) for cell in cells}

    def record(cell: Cell) -> dict[str, Any]:
        return {
            "config": asdict(configs[cell]),
            "num_particles": cell.num_particles,
            "num_data": [len(train), len(held_out)],
            "scoring": asdict(scoring),
        }

    x = first_of(held_out, scoring.num_data)
    runner = CellRunner(
        system=lambda cell: new_system(make, cell.seed),
        objective=lambda cell: at_k[cell.num_particles][cell.objective],
        config=configs.__getitem__,
        score=lambda curve, result: score(curve, result, x, scoring),
        train=train,
        valid=valid,
        along=first_of(held_out if valid is None else valid, CURVE_DATA),
        store=None if path is None else CellDirectory(Path(path), record),
        how=f"the same call of compare_training, with path='{path}'",
    )
    for cell in cells:
        if cell.seed == seeds[0]:
            with pyro.get_param_store().scope():
                check_cell(
                    runner.system(cell), train, held_out, runner.objective(cell), configs[cell]
                )
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        if path is not None:
            stack.enter_context(locked(Path(path), "comparison"))
        bar = stack.enter_context(Progress("trainings", len(cells), progress))
        for group in _groups(cells, runner):
            several = f"{group[0].entry}, {len(group)} seeds at once"
            bar.update(len(outcomes), str(group[0]) if len(group) == 1 else several)
            outcomes += runner.finished(group) or runner.run(group)
    return Comparison(tuple(outcomes))


def _groups(cells: Sequence[Cell], runner: CellRunner) -> Iterator[list[Cell]]:
    """Cells that are trained in one graph: those that differ only in their seed, if it pays."""
    for _, group in groupby(cells, key=lambda cell: cell.entry):
        seeds = list(group)
        first, num_data = seeds[0], len(runner.train)
        with pyro.get_param_store().scope():
            is_batched = is_worth_batching(
                runner.system(first),
                runner.objective(first),
                runner.config(first),
                num_data,
                len(seeds),
            )
        yield from [seeds] if is_batched else [[cell] for cell in seeds]


def parts_of(data: Any) -> tuple[Any, Any, Any]:
    """Return training, validation and held-out data.

    Args:
        data: Splits, or a pair of training and held-out data.

    Returns:
        The three parts; without Splits there are no validation data.

    Raises:
        DataError: if there are no held-out data.
    """
    if isinstance(data, Splits):
        if data.test is None:
            raise DataError("a comparison needs held-out data: the splits have no test part")
        return data.train, data.valid, data.test
    if not isinstance(data, tuple) or len(data) != 2:
        raise DataError("a comparison takes Splits, or a pair of training and held-out data")
    train, held_out = (_part(part) for part in data)
    return train, None, held_out


def _part(data: Any) -> Any:
    if isinstance(data, tuple):
        return Arguments(data)
    return data if isinstance(data, Dataset | Tensor) else Dataset.from_array(data)


def config_of(cell: Cell, base: TrainConfig, budget: Budget, num_data: int) -> TrainConfig:
    """Return the configuration of a cell under a budget.

    Args:
        cell: the cell.
        base: the configuration that all cells share.
        budget: replaces its epochs and limits.
        num_data: the number of training data.

    Returns:
        The configuration.

    Raises:
        ConfigError: if the budget is less than one step.
    """
    return replace(
        base, seed=cell.seed, **budget.limits(cell.num_particles, num_data, base.batch_size)
    )


def new_system(make: Make, seed: int) -> nn.Module:
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
    system: nn.Module, train: Any, held_out: Any, objective: ObjectiveBase, config: TrainConfig
) -> None:
    """Refuse, before any work, what can be neither trained nor scored.

    Args:
        system: the system of the cell.
        train: the training data.
        held_out: the held-out data.
        objective: the objective of the cell.
        config: the configuration of the cell.

    Raises:
        ConfigError: for settings that cannot be used.
        DataError: for data that the system does not accept.
        ProgramError: for programs that the objective does not support.
        UndefinedLikelihoodError: if log p(x) is not defined.
    """
    check(system, data_for(system, train), None, objective, config)
    programs, x = cast(System, system), placed(system, first_of(data_for(system, held_out), 1))
    args = arguments_of(x)
    with evaluating(system), fork_random(args[0].device):
        check_program(programs.model, programs.guide, args)
