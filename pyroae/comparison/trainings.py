"""Compare estimators by the systems that they train, with equal weights, batches and budget."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, cast

import pyro
import torch
from torch import Tensor, nn

from pyroae.autoencoder import Autoencoder
from pyroae.comparison.budget import Budget, evaluations_of
from pyroae.comparison.results import Cell, Comparison, Outcome, Point
from pyroae.config import TrainConfig
from pyroae.data.dataset import Dataset
from pyroae.data.loading import Splits
from pyroae.errors import ConfigError, DataError
from pyroae.evaluation.blocks import Data, arguments_of, blocks
from pyroae.evaluation.checks import check_program
from pyroae.evaluation.diagnostics import diagnose
from pyroae.evaluation.gradient_lab.measure import defined_at
from pyroae.evaluation.importance.likelihood import LikelihoodEstimate, log_likelihood
from pyroae.objectives.base import ObjectiveBase
from pyroae.programs.arguments import Arguments
from pyroae.programs.context import evaluating, fork_random
from pyroae.programs.pair import System, like_parameters, system_of
from pyroae.programs.sites import Program
from pyroae.runtime.progress import Progress
from pyroae.training.fitting import data_for, fit
from pyroae.training.lockstep import fit_ensemble, is_worth_batching
from pyroae.training.preflight import check
from pyroae.training.state import State
from pyroae.training.trainer import FitResult
from pyroae.weights import log_weights

CURVE_POINTS, CURVE_DATA, CURVE_PARTICLES = 40, 500, 64
"""Of a learning curve: its approximate number of points, and per point validation data and K."""


Make = Callable[[], nn.Module | tuple[Program, Program]]
"""A function that returns a new system, or a pair (model, guide)."""


@dataclass(frozen=True)
class Scoring:
    """How every training is scored, by importance sampling on held-out data.

    Attributes:
        num_particles: K, draws per datum.
        num_data: The number of held-out data, from the first on; None takes all.
        seed: Seed of the draws.

    Raises:
        ConfigError: For numbers below 1.
    """

    num_particles: int = 5000
    num_data: int | None = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_particles", "num_data"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} of the scoring must be at least 1, not {value}")


@dataclass
class Curve:
    """The learning curve of one training: the NLL of validation data, for any training objective.

    Attributes:
        system: The system in training.
        x: Validation data, `[N, ...]`, or a tuple of arguments; None for no curve.
        cell: Objective, K and seed of the training.
        config: Its settings.
        num_data: The number of training data.
        points: The points so far, in nats per datum.
    """

    system: nn.Module
    x: Data | None
    cell: Cell
    config: TrainConfig
    num_data: int
    points: list[Point] = field(default_factory=list)

    def after_epoch(self, state: State) -> None:
        """Add a point, if the last one is long enough ago.

        Args:
            state: State of the training at the end of an epoch.
        """
        row = state.history[-1]
        last = self.points[-1] if self.points else Point(0, 0, 0.0, 0, math.nan)
        if self.config.max_seconds is not None:
            due = row.seconds - last.seconds >= self.config.max_seconds / CURVE_POINTS
        else:
            due = row.epoch - last.epoch >= self.config.epochs / CURVE_POINTS
        if due or row.epoch == self.config.epochs:
            self.add(row.epoch, row.step, row.seconds)

    def add(self, epoch: int, step: int, seconds: float) -> None:
        """Add a point for the current weights, unless this step has one.

        Args:
            epoch: Epochs so far.
            step: Optimization steps so far.
            seconds: Training time so far.
        """
        if self.x is None or (self.points and self.points[-1].step == step):
            return
        system, x = cast(System, self.system), _placed(self.system, self.x)
        found = log_likelihood(system.model, system.guide, x, num_particles=CURVE_PARTICLES, seed=0)
        evaluations = evaluations_of(
            step, self.cell.num_particles, self.num_data, self.config.batch_size
        )
        self.points.append(Point(epoch, step, seconds, evaluations, found.nll))


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
    progress: bool = True,
) -> Comparison:
    """Train a new system for each objective, K and seed, and score all by their held-out NLL.

    Trainings with the same seed have the same initial weights, order of the data and binarization.
    The seeds of an estimator are trained as one batch where `is_worth_batching` holds; each is then
    charged with its share of the seconds.

    Args:
        make: Returns a new system, or a pair (model, guide). Its initial weights come from torch's
            generator, which is set to the seed before the call.
        data: Splits, or a pair of training and held-out data, each as in `fit`.
        objectives: Functions from K to an objective, by name. Where one raises ConfigError at some
            K, it is left out there.
        budget: What each training may spend, the same for all.
        ks: Values of K, the number of particles.
        seeds: Different seeds, at least 0.
        config: Settings of every training. The budget overrides its epochs and limits. The last
            weights are scored, unless `keep="best"`. None takes the defaults.
        scoring: How trainings are scored; None takes K = 5,000 on the first 1,000 held-out data.
        progress: Show a progress bar.

    Returns:
        The outcomes of all trainings, with NLL in nats per datum.

    Raises:
        ConfigError: Before any step, for settings that do not fit.
        DataError: Before any step, for data that cannot be used.
        ProgramError: Before any step, for programs that cannot be trained or scored.
        UndefinedLikelihoodError: Before any step, for systems without log p(x).

    >>> from functools import partial
    >>> from pyroae import load, zoo
    >>> from pyroae.objectives.named import dreg, iwae
    >>> digits = load("digits", binarize="dynamic")
    >>> comparison = compare_training(
    ...     partial(zoo.vae, digits.train, latent=2),
    ...     digits,
    ...     {"iwae": iwae, "dreg": dreg},
    ...     budget=Budget("epochs", 1),
    ...     ks=(4,),
    ...     seeds=(0, 1),
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
    for cell in cells:
        if cell.seed == seeds[0]:
            with pyro.get_param_store().scope():
                check_cell(
                    new_system(make, cell.seed),
                    train,
                    held_out,
                    at_k[cell.num_particles][cell.objective],
                    configs[cell],
                )
    x = first_of(held_out, scoring.num_data)
    along = first_of(held_out if valid is None else valid, CURVE_DATA)
    outcomes: list[Outcome] = []
    with Progress("trainings", len(cells), progress) as bar:
        for group in _groups(cells, configs, at_k, make, len(train)):
            bar.update(
                len(outcomes),
                str(group[0])
                if len(group) == 1
                else f"{group[0].entry}, {len(group)} seeds at once",
            )
            with pyro.get_param_store().scope():  # trainings share no parameters
                curves = [
                    Curve(new_system(make, cell.seed), along, cell, configs[cell], len(train))
                    for cell in group
                ]
                objective = at_k[group[0].num_particles][group[0].objective]
                for curve, result in zip(
                    curves, _train(curves, train, objective, valid), strict=True
                ):
                    outcomes.append(score(curve, result, x, scoring))
    return Comparison(tuple(outcomes))


def _groups(
    cells: Sequence[Cell],
    configs: Mapping[Cell, TrainConfig],
    at_k: Mapping[int, Mapping[str, ObjectiveBase]],
    make: Make,
    num_data: int,
) -> Iterator[list[Cell]]:
    """Batch the cells that differ only in their seed, where that saves time; others are single."""
    for entry, group in groupby(cells, key=lambda cell: cell.entry):
        seeds, objective = list(group), at_k[entry.num_particles][entry.objective]
        with pyro.get_param_store().scope():
            system = new_system(make, seeds[0].seed)
            together = is_worth_batching(system, objective, configs[seeds[0]], num_data, len(seeds))
        yield from [seeds] if together else [[cell] for cell in seeds]


def _train(
    curves: Sequence[Curve], train: Any, objective: ObjectiveBase, valid: Any
) -> list[FitResult]:
    first = curves[0]
    if len(curves) == 1:
        return [
            fit(
                first.system,
                train,
                objective,
                first.config,
                valid=valid,
                on_epoch=first.after_epoch,
                progress=False,
            )
        ]
    return fit_ensemble(
        [curve.system for curve in curves],
        train,
        objective,
        first.config,
        seeds=[curve.cell.seed for curve in curves],
        valid=valid,
        on_epoch=lambda i, state: curves[i].after_epoch(state),
        progress=False,
    )


def parts_of(data: Any) -> tuple[Any, Any, Any]:
    """Split the argument `data` of a comparison.

    Args:
        data: Splits, or a pair of training and held-out data.

    Returns:
        Training data, validation data (None for a pair) and held-out data.

    Raises:
        DataError: Where there are no held-out data.
    """
    if isinstance(data, Splits):
        if data.test is None:
            raise DataError("a comparison needs held-out data: the splits have no test part")
        return data.train, data.valid, data.test
    if not isinstance(data, tuple) or len(data) != 2:
        raise DataError("a comparison takes Splits, or a pair of training and held-out data")
    train, held_out = (_part(d) for d in data)
    return train, None, held_out


def _part(given: Any) -> Any:
    if isinstance(given, tuple):
        return Arguments(given)
    return given if isinstance(given, Dataset | Tensor) else Dataset.from_array(given)


def _placed(system: nn.Module, x: Data) -> Data:
    """Move the arguments to the device and the precision of the parameters."""
    args = like_parameters(system, x if isinstance(x, tuple) else (cast(Tensor, x),))
    return args if isinstance(x, tuple) else args[0]


def config_of(cell: Cell, base: TrainConfig, budget: Budget, num_data: int) -> TrainConfig:
    """Return the settings of the training of a cell under a budget.

    Args:
        cell: Objective, K and seed.
        base: The settings of all trainings.
        budget: What the training may spend.
        num_data: The number of training data.

    Returns:
        The settings with the seed of the cell and the limits of the budget.

    Raises:
        ConfigError: Where the budget is less than one step.
    """
    return replace(
        base, seed=cell.seed, **budget.limits(cell.num_particles, num_data, base.batch_size)
    )


def new_system(make: Make, seed: int) -> nn.Module:
    """Return a new system with initial weights from a seed; torch's generators are unchanged.

    Args:
        make: Returns a new system, or a pair (model, guide).
        seed: Seed of the initial weights.

    Returns:
        The module that `fit` trains.
    """
    with fork_random(torch.device("cpu"), seed):
        return system_of(make())


def check_cell(
    system: nn.Module, train: Any, held_out: Any, objective: ObjectiveBase, config: TrainConfig
) -> None:
    """Check, before any work, that a system can be trained and scored.

    Args:
        system: A new system.
        train: Training data.
        held_out: Held-out data.
        objective: The objective of the cell.
        config: The settings of its training.

    Raises:
        ConfigError: For settings that do not fit.
        DataError: For data that cannot be used.
        ProgramError: For programs that cannot be trained or scored.
        UndefinedLikelihoodError: For systems without log p(x).
    """
    check(system, data_for(system, train), None, objective, config)
    programs, x = cast(System, system), _placed(system, first_of(data_for(system, held_out), 1))
    args = arguments_of(x)
    with evaluating(system), fork_random(args[0].device):
        check_program(programs.model, programs.guide, args)


def first_of(data: Dataset | Arguments | Tensor, count: int | None) -> Any:
    """Return the first data.

    Args:
        data: A data set, the arguments of a program, or a tensor.
        count: The number of data; None takes all.

    Returns:
        A tensor `[count, ...]`, or a tuple of such arguments of a program.
    """
    if isinstance(data, Arguments):
        return tuple(t[:count] for t in data.tensors)
    x = data.x if isinstance(data, Dataset) else data
    return x[:count]


def score(
    curve: Curve, result: FitResult, x: Data, scoring: Scoring, *, progress: bool = False
) -> Outcome:
    """Score a training: its likelihood on held-out data, its rate and its distortion.

    Args:
        curve: The learning curve of the training, to which the last point is added.
        result: The result of `fit`.
        x: Held-out data, `[N, ...]`, or a tuple of arguments.
        scoring: K and seed of the importance sampling.
        progress: Show a progress bar.

    Returns:
        The outcome of the cell.
    """
    row, system = result.history[-1], cast(System, result.system)
    curve.add(row.epoch, row.step, row.seconds)
    x = _placed(result.system, x)
    likelihood = log_likelihood(
        system.model,
        system.guide,
        x,
        num_particles=scoring.num_particles,
        seed=scoring.seed,
        progress=progress,
    )
    return outcome_of(curve, result, likelihood, figures_of(result.system, x, scoring.seed))


def outcome_of(
    curve: Curve, result: FitResult, likelihood: LikelihoodEstimate, figures: dict[str, float]
) -> Outcome:
    """Combine the parts of an outcome.

    Args:
        curve: The learning curve of the training.
        result: The result of `fit`.
        likelihood: Importance-sampled log-likelihoods of the held-out data.
        figures: What `figures_of` returned.

    Returns:
        The outcome of the cell, with what the training spent.
    """
    row = result.history[-1]
    evaluations = evaluations_of(
        row.step, curve.cell.num_particles, curve.num_data, curve.config.batch_size
    )
    spent: dict[str, Any] = {
        "epochs": row.epoch,
        "steps": row.step,
        "evaluations": evaluations,
        "seconds": row.seconds,
    }
    return Outcome(
        curve.cell, likelihood.log_px, likelihood.se, figures, **spent, curve=tuple(curve.points)
    )


def figures_of(system: nn.Module, x: Data, seed: int) -> dict[str, float]:
    """Estimate the bound and its terms by 10 draws per datum.

    Args:
        system: The trained system.
        x: Data, `[N, ...]`, or a tuple of arguments.
        seed: Seed of the draws.

    Returns:
        `nelbo`, `rate` and `distortion` in nats per datum; for an Autoencoder `active_units` too.
    """
    programs = cast(System, system)
    if isinstance(system, Autoencoder):
        found = diagnose(system.model, system.guide, x, seed=seed)
        distortion, rate = found.distortion.mean().item(), found.rate.mean().item()
        return {
            "nelbo": distortion + rate,
            "rate": rate,
            "distortion": distortion,
            "active_units": found.active_units,
        }
    args = arguments_of(x)
    with evaluating(system), fork_random(args[0].device, seed):
        parts = [
            log_weights(programs.model, programs.guide, *some, num_particles=10)
            for some in blocks(args, 1000)
        ]
    rates, distortions = (
        torch.cat([(p.log_post - p.log_prior).double().mean(0) for p in parts]),
        torch.cat([-p.log_lik.double().mean(0) for p in parts]),
    )
    rate, distortion = rates.mean().item(), distortions.mean().item()
    return {"nelbo": distortion + rate, "rate": rate, "distortion": distortion}
