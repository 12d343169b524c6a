"""One system on one dataset: the figures that a table of results reports."""

import math
import time
from dataclasses import dataclass

from torch import Tensor

from pyroae.autoencoder import Autoencoder
from pyroae.errors import ConfigError, UndefinedLikelihoodError, unknown_name
from pyroae.evaluation.diagnostics import Diagnostics, diagnose
from pyroae.evaluation.exact import exact_log_likelihood
from pyroae.evaluation.likelihood import LikelihoodEstimate, log_likelihood

METHODS = ("is", "exact")


@dataclass(frozen=True)
class Result:
    """One figure. se: standard error of the mean over the data, Monte-Carlo error included; nan where there is none."""

    name: str
    estimate: float
    se: float
    num_data: int
    num_particles: int
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Results by name, and what they were made from; `undefined` says why there is no log-likelihood, where there is none."""

    results: dict[str, Result]
    diagnostics: Diagnostics
    likelihood: LikelihoodEstimate | None
    undefined: str


def evaluate(
    autoencoder: Autoencoder,
    x: Tensor,
    *,
    methods: tuple[str, ...] | None = None,
    num_particles: int = 5000,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Bound, rate, distortion, active units, reconstruction error and log-likelihood of x `[N, d]`, in nats per datum.

    methods: ways to the log-likelihood: `is` (importance sampling with K = `num_particles`), `exact`. By default all that
    the system has; where there is none, `undefined` says why. Raises UndefinedLikelihoodError for a method that is asked
    for and not defined, ConfigError for an unknown one.

    >>> import torch
    >>> from pyroae import zoo
    >>> found = evaluate(zoo.ppca(4, latent=2), torch.zeros(3, 4), num_particles=10)
    >>> sorted(found.results)
    ['active_units', 'distortion', 'nelbo', 'nll', 'nll_exact', 'rate', 'squared_error']
    """
    for method in methods or ():
        if method not in METHODS:
            raise unknown_name("method", method, METHODS)
    if num_particles < 1:
        raise ConfigError(f"num_particles must be at least 1, not {num_particles}")
    model, guide = autoencoder.model, autoencoder.guide
    started = time.monotonic()
    found = diagnose(model, guide, x, num_particles=10, seed=seed)
    error = (autoencoder.reconstruct(x) - autoencoder.flat(x)).double().square().sum(1).cpu()
    seconds = time.monotonic() - started
    results = [
        _mean("nelbo", found.nelbo, 10, seconds),
        _mean("distortion", found.distortion, 10, seconds),
        _mean("rate", found.rate, 10, seconds),
        Result("active_units", found.active_units, math.nan, len(x), 0, seconds),
        _mean("squared_error", error, 0, seconds),
    ]
    likelihood, undefined = None, ""
    if methods is None or "is" in methods:
        try:
            likelihood = log_likelihood(model, guide, x, num_particles=num_particles, seed=seed, progress=progress)
            results.insert(0, _mean("nll", -likelihood.log_px, num_particles, likelihood.seconds))
        except UndefinedLikelihoodError as reason:
            if methods is not None:
                raise
            undefined = str(reason)
    if methods is None or "exact" in methods:
        results += _exact(autoencoder, x, required=methods is not None)
    return Evaluation({r.name: r for r in results}, found, likelihood, undefined)


def _exact(autoencoder: Autoencoder, x: Tensor, required: bool) -> list[Result]:
    started = time.monotonic()
    try:
        log_px = exact_log_likelihood(autoencoder, x)
    except UndefinedLikelihoodError:
        if required:
            raise
        return []
    return [_mean("nll_exact", -log_px, 0, time.monotonic() - started)]


def _mean(name: str, values: Tensor, num_particles: int, seconds: float) -> Result:
    se = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Result(name, values.mean().item(), se, len(values), num_particles, seconds)
