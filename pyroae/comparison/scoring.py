"""Score a trained system: the likelihood of held-out data, and where its bound goes."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyroae.autoencoder import Autoencoder
from pyroae.comparison.budget import evaluations_of
from pyroae.comparison.curves import Curve, placed
from pyroae.comparison.results import Outcome
from pyroae.data.dataset import Dataset
from pyroae.errors import ConfigError
from pyroae.evaluation.blocks import Data, arguments_of, blocks
from pyroae.evaluation.diagnostics import diagnose
from pyroae.evaluation.importance.likelihood import LikelihoodEstimate, log_likelihood
from pyroae.programs.arguments import Arguments
from pyroae.programs.context import evaluating
from pyroae.programs.pair import System
from pyroae.runtime.randomness import fork_random
from pyroae.training.trainer import FitResult
from pyroae.weights import log_weights


@dataclass(frozen=True)
class Scoring:
    """How every training is scored.

    Attributes:
        num_particles: importance samples per datum, K.
        num_data: the number of held-out data; None for all.
        seed: where the draws start.

    >>> Scoring(num_particles=100, num_data=None)
    Scoring(num_particles=100, num_data=None, seed=0)
    """

    num_particles: int = 5000
    num_data: int | None = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_particles", "num_data"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} of the scoring must be at least 1, not {value}")


def first_of(data: Dataset | Arguments | Tensor, count: int | None) -> Any:
    """Return the first data of a set.

    Args:
        data: the data.
        count: how many; None for all.

    Returns:
        A tensor [count, ...], or a tuple of the arguments of a program.
    """
    if isinstance(data, Arguments):
        return tuple(t[:count] for t in data.tensors)
    x = data.x if isinstance(data, Dataset) else data
    return x[:count]


def score(
    curve: Curve, result: FitResult, x: Data, scoring: Scoring, *, progress: bool = False
) -> Outcome:
    """Return the outcome of a training.

    Args:
        curve: its learning curve.
        result: its result.
        x: held-out data [N, ...], or the arguments of a program.
        scoring: how they are scored.
        progress: whether to show the progress.

    Returns:
        The importance-sampling likelihood of `x`, figures, and what the training spent.
    """
    system = cast(System, result.system)
    x = placed(result.system, x)
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
    """Return an outcome from its parts.

    Args:
        curve: the learning curve of the training.
        result: the result of the training.
        likelihood: log p(x) of the held-out data.
        figures: further figures, in nats per datum.

    Returns:
        The outcome, with what the training spent.
    """
    row = result.history[-1]
    evaluations = evaluations_of(
        row.step, curve.cell.num_particles, curve.num_data, curve.config.batch_size
    )
    return Outcome(
        curve.cell,
        likelihood.log_px,
        likelihood.se,
        figures,
        epochs=row.epoch,
        steps=row.step,
        evaluations=evaluations,
        seconds=row.seconds,
        curve=tuple(curve.points),
    )


def figures_of(system: nn.Module, x: Data, seed: int) -> dict[str, float]:
    """Return negative bound, rate and distortion of a system from 10 draws per datum.

    Args:
        system: the system.
        x: data [N, ...], or the arguments of a program.
        seed: where the draws start.

    Returns:
        `nelbo`, `rate` and `distortion` in nats per datum; `active_units` of an Autoencoder.
    """
    programs = cast(System, system)
    if isinstance(system, Autoencoder):
        diagnosis = diagnose(system.model, system.guide, x, seed=seed)
        figures = _split(diagnosis.rate.mean().item(), diagnosis.distortion.mean().item())
        return {**figures, "active_units": diagnosis.active_units}
    args = arguments_of(x)
    with evaluating(system), fork_random(args[0].device, seed):
        parts = [
            log_weights(programs.model, programs.guide, *block, num_particles=10)
            for block in blocks(args, 1000)
        ]
    rates = torch.cat([(p.log_post - p.log_prior).double().mean(0) for p in parts])
    distortions = torch.cat([-p.log_lik.double().mean(0) for p in parts])
    return _split(rates.mean().item(), distortions.mean().item())


def _split(rate: float, distortion: float) -> dict[str, float]:
    return {"nelbo": distortion + rate, "rate": rate, "distortion": distortion}
