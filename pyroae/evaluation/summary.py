"""One system on one dataset: the figures that a table of results reports, by every way to log p(x)."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from pyroae.autoencoder import Autoencoder
from pyroae.config import EvaluationSettings
from pyroae.distributed.work_sharing import agreed
from pyroae.errors import ConfigError, DataError, UndefinedLikelihoodError
from pyroae.evaluation.adaptive_quadrature import QuadratureEstimate, quadrature
from pyroae.evaluation.annealing.bounds import BDMC, AISEstimate, ais, bdmc
from pyroae.evaluation.blocks import Data
from pyroae.evaluation.diagnostics import Diagnostics, diagnose
from pyroae.evaluation.exact import exact_log_likelihood
from pyroae.evaluation.importance.likelihood import LikelihoodEstimate, log_likelihood
from pyroae.evaluation.importance.proposals import proposal_named
from pyroae.evaluation.importance.streams import Z
from pyroae.evaluation.inference_gaps import Gaps, gaps
from pyroae.evaluation.mutual_information import Information, information
from pyroae.programs.arguments import Structure, structure_of
from pyroae.programs.pair import System
from pyroae.programs.sites import Program
from pyroae.runtime.processes import WHOLE, Share

ELBO_DRAWS = 10
"""Draws of each datum for rate and distortion."""


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
    """Results by name, and what they were made from, None where it was not asked for.

    exact: `[N]`. undefined: why there is no log-likelihood, where there is none.
    """

    results: dict[str, Result]
    diagnostics: Diagnostics
    likelihood: LikelihoodEstimate | None = None
    annealed: AISEstimate | None = None
    bidirectional: BDMC | None = None
    exact: Tensor | None = None
    quadrature: QuadratureEstimate | None = None
    gaps: Gaps | None = None
    information: Information | None = None
    undefined: str = ""

    def sandwich(self) -> dict[str, tuple[float, float]]:
        """Bounds on, and estimates of, the mean log p(x) of these data, from the loosest up, with half of their 95 % intervals.

        The intervals are of the Monte-Carlo error alone; nan where there is none. An upper end comes from simulated
        data: what annealing loses on them, the BDMC gap, is added to what it finds on these.
        """
        found = {"ELBO": (-self.diagnostics.nelbo.mean().item(), math.nan)}
        if self.gaps is not None:
            found["ELBO"] = (self.gaps.elbo.mean, Z * self.gaps.elbo.monte_carlo_se)
        if self.likelihood is not None:
            found |= _of_likelihood(self.likelihood)
        if self.gaps is not None and self.gaps.khat is not None:
            found["IS, local proposal"] = (
                self.gaps.log_px.mean,
                Z * self.gaps.log_px.monte_carlo_se,
            )
        if self.annealed is not None:
            found["AIS"] = (-self.annealed.nll, Z * self.annealed.monte_carlo_se)
        if self.exact is not None:
            found["exact"] = (self.exact.mean().item(), math.nan)
        if self.quadrature is not None:
            found["quadrature"] = (-self.quadrature.nll, self.quadrature.error.mean().item())
        if self.annealed is not None and self.bidirectional is not None:
            half = Z * math.hypot(self.annealed.monte_carlo_se, self.bidirectional.mean_gap_se)
            found["AIS + BDMC gap, upper"] = (self.bidirectional.mean_gap - self.annealed.nll, half)
        return found


def evaluate(
    system: nn.Module | tuple[Program, Program],
    x: Data,
    settings: EvaluationSettings | None = None,
    *,
    progress: bool = False,
    share: Share = WHOLE,
) -> Evaluation:
    """Bound, rate, distortion, active units, reconstruction error and log-likelihoods of x `[N, d]`, in nats per datum.

    system: an Autoencoder, a module with a model and a guide, or a pair (model, guide) of programs; closed forms and the
    reconstruction error are those of an Autoencoder. x: the arguments as of `log_likelihood`.
    settings: by default every log-likelihood that the system has by importance sampling and in closed form; where there is
    none, `undefined` says why. share: of this process, where several call this with the same arguments: `is`, `ais` and `bdmc`
    are dealt to them, the rest is done by each; what comes back is the same on all. Raises UndefinedLikelihoodError for a
    method that is asked for and not defined, ConfigError for what is no system.

    >>> import torch
    >>> from pyroae import zoo
    >>> found = evaluate(zoo.ppca(4, latent=2), torch.zeros(3, 4), EvaluationSettings(num_particles=10))
    >>> sorted(found.results)[:5]
    ['active_units', 'distortion', 'nelbo', 'nll', 'nll_exact']
    """
    pair: Any = (
        SimpleNamespace(model=system[0], guide=system[1])
        if isinstance(system, tuple) and len(system) == 2
        else system
    )
    if not isinstance(pair, System) or callable(x):
        raise ConfigError(
            "evaluate takes a system or a pair of programs, then the data, as in evaluate((model, guide), x), "
            f"not {type(system).__name__} and {type(x).__name__}"
        )
    if isinstance(settings, Tensor | tuple | dict):
        raise ConfigError(
            "evaluate takes all arguments of the programs as one tuple: evaluate(system, (x, y))"
        )
    structure = structure_of(x, {}, pair.model)
    if not isinstance(pair, Autoencoder):
        pair = SimpleNamespace(model=structure(pair.model), guide=structure(pair.guide))
    elif isinstance(structure, Structure) or len(structure.tensors) > 1:
        raise DataError(
            f"an Autoencoder takes one tensor, not {len(structure.tensors)} in a {type(x).__name__}"
        )
    return _Evaluating(
        pair, structure.tensors, settings or EvaluationSettings(), progress, share
    ).run()


class _Evaluating:
    """An evaluation under way."""

    def __init__(
        self,
        system: Any,
        args: tuple[Tensor, ...],
        settings: EvaluationSettings,
        progress: bool,
        share: Share,
    ) -> None:
        self.system, self.x, self.settings, self.share = system, args, settings, share
        self.num_data = len(args[0])
        self.progress = progress and share.rank == 0
        self.results: list[Result] = []

    def run(self) -> Evaluation:
        found = Evaluation({}, self._diagnosed())
        asked = self.settings.methods
        steps: dict[str, Callable[[Evaluation], Evaluation]] = {
            "is": self._importance,
            "exact": self._exact,
            "quadrature": self._quadrature,
            "ais": self._annealing,
            "bdmc": self._bidirectional,
            "gaps": self._gaps,
        }
        for method in steps if asked is not None else ("is", "exact"):
            if asked is not None and method not in asked:
                continue
            try:
                found = steps[method](found)
            except UndefinedLikelihoodError as reason:
                if asked is not None:
                    raise
                found = replace(
                    found, undefined=found.undefined or (str(reason) if method == "is" else "")
                )
        return replace(found, results={result.name: result for result in self.results})

    def _diagnosed(self) -> Diagnostics:
        system, x = self.system, self.x

        def work() -> tuple[Diagnostics, Tensor | None]:
            found = diagnose(
                system.model, system.guide, x, num_particles=ELBO_DRAWS, seed=self.settings.seed
            )
            if not isinstance(system, Autoencoder):
                return found, None
            return found, (system.reconstruct(x[0]) - system.flat(x[0])).double().square().sum(
                1
            ).cpu()

        (found, error), seconds = self._by_each(work)
        for name, values in (
            ("nelbo", found.nelbo),
            ("distortion", found.distortion),
            ("rate", found.rate),
        ):
            self._mean(name, values, ELBO_DRAWS, seconds)
        self.results.append(
            Result("active_units", found.active_units, math.nan, self.num_data, 0, seconds)
        )
        if error is not None:
            self._mean("squared_error", error, 0, seconds)
        return found

    def _importance(self, found: Evaluation) -> Evaluation:
        settings, model = self.settings, self.system.model
        estimate = log_likelihood(
            model,
            proposal_named(settings.proposal, model, self.system.guide),
            self.x,
            num_particles=settings.num_particles,
            tolerance=settings.tolerance,
            retry=None
            if settings.retry is None
            else proposal_named(settings.retry, model, self.system.guide),
            seed=settings.seed,
            compile=settings.compile,
            progress=self.progress,
            share=self.share,
        )
        count, seconds = estimate.num_particles, estimate.seconds
        self._mean("nll", -estimate.log_px, count, seconds)
        for name, values in (
            ("nll_jackknife", estimate.jackknife),
            ("nll_psis", estimate.smoothed.log_px),
        ):
            if torch.isfinite(values).all():
                self._mean(name, -values, count, seconds)
        self.results.append(
            Result("unreliable", len(estimate.unreliable), math.nan, self.num_data, count, seconds)
        )
        return replace(found, likelihood=estimate)

    def _exact(self, found: Evaluation) -> Evaluation:
        if not isinstance(self.system, Autoencoder):
            raise UndefinedLikelihoodError(
                "closed forms are known of an Autoencoder alone, not of other programs"
            )
        log_px, seconds = self._by_each(lambda: exact_log_likelihood(self.system, self.x[0]))
        self._mean("nll_exact", -log_px, 0, seconds)
        return replace(found, exact=log_px)

    def _quadrature(self, found: Evaluation) -> Evaluation:
        system = self.system
        estimate, _ = self._by_each(
            lambda: quadrature(system.model, system.guide, self.x, progress=self.progress)
        )
        self._mean(
            "nll_quadrature", -estimate.log_px, int(estimate.num_points.max()), estimate.seconds
        )
        return replace(found, quadrature=estimate)

    def _annealing(self, found: Evaluation) -> Evaluation:
        estimate = self._along(ais, "ais")
        self._mean(
            "nll_ais", -estimate.log_px, self.settings.annealing.num_chains, estimate.seconds
        )
        return replace(found, annealed=estimate)

    def _bidirectional(self, found: Evaluation) -> Evaluation:
        estimate = self._along(bdmc, "bdmc")
        for name, values in (
            ("bdmc_lower", estimate.lower),
            ("bdmc_upper", estimate.upper),
            ("bdmc_gap", estimate.gap),
        ):
            self._mean(name, values, self.settings.annealing.num_chains, estimate.seconds)
        return replace(found, bidirectional=estimate)

    def _along[T](self, anneal: Callable[..., T], name: str) -> T:
        settings = self.settings
        return anneal(
            self.system.model,
            self.system.guide,
            self.x,
            settings=settings.annealing,
            seed=settings.seed,
            compile=settings.compile,
            progress=self.progress,
            share=self.share,
            checkpoint=None
            if settings.checkpoints is None
            else settings.checkpoints / f"{name}.safetensors",
        )

    def _gaps(self, found: Evaluation) -> Evaluation:
        known = found.exact if found.exact is not None else found.quadrature
        programs, x = (self.system.model, self.system.guide), self.x
        common = {"seed": self.settings.seed, "progress": self.progress}
        lost, _ = self._by_each(lambda: gaps(*programs, x, log_px=known, **common))  # type: ignore[arg-type]
        for which, family in lost.families.items():
            suffix = "" if which == "diagonal" else "_" + which.replace("-", "_")
            self._mean(f"amortization_gap{suffix}", family.amortization.values, 0, lost.seconds)
            self._mean(f"approximation_gap{suffix}", family.approximation.values, 0, lost.seconds)
        self._mean("inference_gap", lost.inference.values, 0, lost.seconds)
        knows, _ = self._by_each(lambda: information(*programs, x, **common))  # type: ignore[arg-type]
        bounds = (
            ("lower", knows.lower, knows.marginal_kl[0]),
            ("upper", knows.upper, knows.marginal_kl[1]),
        )
        for end, mutual, marginal in bounds:
            for name, of in (("mutual_information", mutual), ("marginal_kl", marginal)):
                self.results.append(
                    Result(f"{name}_{end}", of.value, of.se, self.num_data, 1, knows.seconds)
                )
        return replace(found, gaps=lost, information=knows)

    def _by_each[T](self, work: Callable[[], T]) -> tuple[T, float]:
        """What work that every process does comes to on the first one, and the seconds it took there."""
        started = time.monotonic()
        return agreed(self.share, lambda: (work(), time.monotonic() - started))

    def _mean(self, name: str, values: Tensor, num_particles: int, seconds: float) -> None:
        se = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
        self.results.append(
            Result(name, values.mean().item(), se, len(values), num_particles, seconds)
        )


def _of_likelihood(estimate: LikelihoodEstimate) -> dict[str, tuple[float, float]]:
    """The bounds at K = 50 and at K, and the two corrected estimates."""
    curve, count = estimate.curve, estimate.num_particles
    found = {}
    if 50 in curve.ks.tolist() and count > 50:
        at = curve.ks.tolist().index(50)
        found["IWAE, K = 50"] = (curve.bound[at].item(), Z * curve.se[at].item())
    half = Z * estimate.monte_carlo_se
    found[f"IWAE, K = {count:,}"] = (-estimate.nll, half)
    found["jackknife"] = (estimate.jackknife.mean().item(), half)
    found["PSIS"] = (estimate.smoothed.log_px.mean().item(), half)
    return {name: value for name, value in found.items() if math.isfinite(value[0])}
