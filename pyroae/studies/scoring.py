"""Score a trained system: the likelihood of held-out data, and where its bound goes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyroae.autoencoder import Autoencoder
from pyroae.comparison.budget import evaluations_of
from pyroae.comparison.results import Outcome
from pyroae.comparison.scores import Correction, Score
from pyroae.config import AISSettings, Scoring
from pyroae.data.dataset import Dataset
from pyroae.errors import ConfigError, ProgramError, PyroaeError, UndefinedLikelihoodError
from pyroae.evaluation.annealing.bounds import ais
from pyroae.evaluation.blocks import Data, arguments_of, blocks
from pyroae.evaluation.diagnostics import diagnose
from pyroae.evaluation.enumeration import check_enumerable, enumerated_log_likelihood
from pyroae.evaluation.exact import exact_log_likelihood
from pyroae.evaluation.importance.likelihood import LikelihoodEstimate, log_likelihood
from pyroae.evaluation.importance.proposals import Local
from pyroae.evaluation.units import sampled_in_units, sign_of
from pyroae.programs.arguments import Arguments
from pyroae.programs.context import evaluating
from pyroae.programs.latents import Latents
from pyroae.programs.pair import System
from pyroae.runtime.randomness import fork_random
from pyroae.studies.curves import Curve, placed
from pyroae.training.trainer import FitResult
from pyroae.weights import log_weights

FEW_VALUES = 4096
"""The largest number of values of all discrete latents of a datum over which scores are summed."""


LOCAL_DRAWS = 1000
"""The least number of draws per datum from the fitted Gaussians of the method `local`."""


def first_of(data: Dataset | Arguments | Tensor, count: int | None) -> Any:
    """Return the first data of a set.

    Args:
        data: the data.
        count: how many; None for all.

    Returns:
        A tensor [count, ...], or a tuple of the arguments of a program or of x and c.
    """
    if isinstance(data, Tensor):
        return data[:count]
    first = tuple(t[:count] for t in data.tensors)
    return first if isinstance(data, Arguments) or len(first) > 1 else first[0]


def mean_units(data: Any, count: int | None) -> float:
    """Return what is added to the mean −log p(x) of standardized data, as of `log_units_of`.

    Args:
        data: the data.
        count: how many of them; None for all.

    Returns:
        The mean of `Dataset.log_units`, in nats per datum; 0 for other data.
    """
    units = data.log_units if isinstance(data, Dataset) else None
    return 0.0 if units is None else units[:count].mean().item()


def score(
    curve: Curve,
    result: FitResult,
    x: Data,
    scoring: Scoring,
    *,
    progress: bool = False,
    log_units: Tensor | None = None,
) -> Outcome:
    """Return the outcome of a training.

    Args:
        curve: its learning curve.
        result: its result.
        x: held-out data [N, ...], or the arguments of a program.
        scoring: how they are scored.
        progress: whether to show the progress.
        log_units: what is subtracted from log p(x) of each datum, [N], nats; None for nothing.

    Returns:
        The score of `x`, figures, and what the training spent.
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
    figures = figures_of(result.system, x, scoring.seed)
    if log_units is not None:
        likelihood = sampled_in_units(likelihood, log_units)
        mean = log_units.mean().item()
        figures = {name: value + sign_of(name) * mean for name, value in figures.items()}
    scored = corrected(
        likelihood, result.system, x, scoring, progress=progress, log_units=log_units
    )
    return outcome_of(curve, result, scored, figures)


def corrected(
    likelihood: LikelihoodEstimate,
    system: nn.Module,
    x: Data,
    scoring: Scoring,
    *,
    progress: bool = False,
    log_units: Tensor | None = None,
) -> Score:
    """Return the score of a system: importance sampling, and stronger estimates of a subset.

    Args:
        likelihood: importance sampling from the guide, for all held-out data.
        system: the trained system.
        x: the held-out data [N, ...], or the arguments of a program.
        scoring: how they are scored.
        progress: whether to show the progress.
        log_units: what was subtracted from `likelihood`, [N], nats; None for nothing.

    Returns:
        The score, on the CPU.
    """
    num_data = len(likelihood.log_px)
    score = Score(
        likelihood.log_px,
        likelihood.se,
        likelihood.smoothed.khat,
        likelihood.ess,
        _without(likelihood.unreliable, num_data),
        num_particles=likelihood.num_particles,
    )
    method = method_for(system, x, scoring)
    if method == "is":
        return score
    count = num_data if method in ("exact", "enumeration") else scoring.subset_of(num_data)
    index = _subset(num_data, count, scoring.seed)
    part = tuple(t[index.to(t.device)] for t in arguments_of(x))
    log_px, *others = _ESTIMATES[method](cast(System, system), part, scoring, progress)
    if log_units is not None:
        log_px = log_px - log_units[index]
    return replace(score, correction=Correction(method, index, log_px, *others))


def _subset(num_data: int, count: int, seed: int) -> Tensor:
    """The same random subset for all systems, [count], in rising order."""
    order = torch.randperm(num_data, generator=torch.Generator().manual_seed(seed))
    return order[:count].sort().values


Estimate = tuple[Tensor, Tensor, Tensor]
"""log p(x), its standard error, and which are reliable, [M] each."""


def _exactly(system: System, x: tuple[Tensor, ...], scoring: Scoring, progress: bool) -> Estimate:
    log_px = _exact(system, x)
    return log_px, torch.zeros_like(log_px), torch.ones_like(log_px, dtype=torch.bool)


def _summed(system: System, x: tuple[Tensor, ...], scoring: Scoring, progress: bool) -> Estimate:
    log_px = enumerated_log_likelihood(system.model, system.guide, x, progress=progress)
    return log_px, torch.zeros_like(log_px), torch.ones_like(log_px, dtype=torch.bool)


def _locally(system: System, x: tuple[Tensor, ...], scoring: Scoring, progress: bool) -> Estimate:
    found = log_likelihood(
        system.model,
        Local(system.guide),
        x,
        num_particles=max(LOCAL_DRAWS, scoring.num_particles),
        seed=scoring.seed,
        progress=progress,
    )
    return found.log_px, found.se, _without(found.unreliable, len(found.log_px))


def _annealed(system: System, x: tuple[Tensor, ...], scoring: Scoring, progress: bool) -> Estimate:
    settings = AISSettings(start="guide")
    found = ais(
        system.model, system.guide, x, settings=settings, seed=scoring.seed, progress=progress
    )
    return found.log_px, found.se, _without(found.unreliable, len(found.log_px))


_ESTIMATES: dict[str, Callable[[System, tuple[Tensor, ...], Scoring, bool], Estimate]] = {
    "exact": _exactly,
    "enumeration": _summed,
    "local": _locally,
    "ais": _annealed,
}
"""The stronger estimates, by their names in `Scoring.method`."""


def _without(index: Tensor, count: int) -> Tensor:
    kept = torch.ones(count, dtype=torch.bool)
    kept[index] = False
    return kept


def _exact(system: System, x: tuple[Tensor, ...]) -> Tensor:
    """The closed form of a linear-Gaussian system, or the sum over few discrete latents, [N]."""
    if isinstance(system, Autoencoder):
        try:
            return exact_log_likelihood(system, *x)
        except UndefinedLikelihoodError:
            pass
    return enumerated_log_likelihood(system.model, system.guide, x, limit=FEW_VALUES)


def method_for(system: nn.Module, x: Data, scoring: Scoring) -> str:
    """Return the method that corrects the scores of a system.

    Args:
        system: the system, trained or not.
        x: data [N, ...], or the arguments of a program, of which one datum is used.
        scoring: how they are scored.

    Returns:
        `exact`, `enumeration`, `local`, `ais` or `is`.

    Raises:
        ConfigError: if the method of `scoring` does not apply to the system.
    """
    if scoring.method == "is":
        return "is"
    first = tuple(t[:1] for t in arguments_of(placed(system, x)))
    names = ("exact", "local") if scoring.method == "auto" else (scoring.method,)
    reason: PyroaeError | None = None
    for name in names:
        try:
            _try_method(name, system, first)
            return name
        except (ProgramError, UndefinedLikelihoodError) as error:
            reason = error
    if scoring.method == "auto":
        return "is"
    raise ConfigError(f"the score method '{scoring.method}' cannot be used here: {reason}")


def _try_method(name: str, system: nn.Module, x: tuple[Tensor, ...]) -> None:
    """Raise an error where a method does not apply."""
    programs = cast(System, system)
    with evaluating(system), fork_random(x[0].device, 0), torch.no_grad():
        if name == "exact":
            _exact(programs, x)
        elif name == "enumeration":
            check_enumerable(programs.model, programs.guide, x)
        else:
            Latents(programs.model, programs.guide, x)


def outcome_of(curve: Curve, result: FitResult, score: Score, figures: dict[str, float]) -> Outcome:
    """Return an outcome from its parts.

    Args:
        curve: the learning curve of the training.
        result: the result of the training.
        score: estimates of log p(x) of the held-out data.
        figures: further figures, in nats per datum.

    Returns:
        The outcome, with what the training spent.
    """
    row = result.history[-1]
    evaluations = evaluations_of(
        row.step, curve.evaluations, curve.num_data, curve.config.batch_size
    )
    return Outcome(
        curve.cell,
        score,
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
