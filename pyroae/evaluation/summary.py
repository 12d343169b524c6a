"""Evaluate one system on one data set: bound, active units, and log p(x) by several methods."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyroae.autoencoder import Autoencoder, correct_classes
from pyroae.config import EvaluationSettings
from pyroae.distributed.work_sharing import first_result
from pyroae.distributions import REAL
from pyroae.errors import ConfigError, DataError, UndefinedLikelihoodError
from pyroae.evaluation.adaptive_quadrature import QuadratureEstimate, quadrature
from pyroae.evaluation.annealing.bounds import ais, bdmc
from pyroae.evaluation.annealing.estimates import BDMC, AISEstimate
from pyroae.evaluation.blocks import Data
from pyroae.evaluation.bound_parts import bound_parts
from pyroae.evaluation.diagnostics import Diagnostics, diagnose
from pyroae.evaluation.enumeration import LIMIT, enumerated_log_likelihood
from pyroae.evaluation.exact import exact_log_likelihood
from pyroae.evaluation.importance.likelihood import LikelihoodEstimate, log_likelihood
from pyroae.evaluation.importance.proposals import proposal_named
from pyroae.evaluation.inference_gaps import Gaps, gaps
from pyroae.evaluation.inference_gaps.estimates import PerDatum
from pyroae.evaluation.mutual_information import Information, information
from pyroae.evaluation.results import Result, Results, method_of, result_table
from pyroae.evaluation.sandwich import sandwich_of
from pyroae.evaluation.units import in_units, sign_of
from pyroae.posteriors.sparse import Sparsity
from pyroae.programs.arguments import Structure, structure_of
from pyroae.programs.pair import System
from pyroae.programs.sites import Program
from pyroae.runtime.processes import WHOLE, Share
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import with_error

UNIT_DRAWS, ELBO_DRAWS, GAP_DRAWS = 10, 100, 2000
"""Draws per datum for the figures of latent units; for the ELBO, rate and distortion; for the gaps,
and then for the ELBO too: an evaluation has one ELBO."""


@dataclass(frozen=True, repr=False)
class Evaluation(Shown):
    """The results of an evaluation, and the estimates that they come from.

    Attributes:
        results: Each figure, by its name.
        diagnostics: The parts of the bound, and the figures of each latent unit.
        likelihood: The estimate of importance sampling; None if it was not computed, as for all
            attributes below.
        annealed: The estimate of annealed importance sampling.
        bidirectional: The bounds of bidirectional Monte Carlo, on simulated data.
        exact: log p(x) in closed form, or as a sum over all discrete latents, `[N]`, nats.
        quadrature: log p(x) by quadrature.
        gaps: The inference gaps.
        information: The mutual information of x and z.
        undefined: Why no log-likelihood is defined; empty if one is.
        log_units: What was subtracted from log p(x) of each datum, whose values are standardized,
            for a density in the units of their source, `[N]`, nats; None for other values.
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
    log_units: Tensor | None = None

    def _overview(self) -> Overview:
        table = result_table(self.results.values())
        nll = self.results.get("nll")
        head = [f"NLL {with_error(nll.estimate, nll.se, 'nats per datum')}"] if nll else []
        if self.undefined:
            head.append("no log-likelihood")
        return replace(table, head=[*head, *table.head])

    def sandwich(self) -> dict[str, tuple[float, float]]:
        """Collect the bounds and estimates of the mean log p(x), from the loosest up.

        Returns:
            By name, the estimate and half the width of its 95 % interval, in nats per datum, as of
            `sandwich_of`; the latter is nan if there is none.
        """
        return sandwich_of(self.results.values())


def evaluate(
    system: nn.Module | tuple[Program, Program],
    x: Data,
    settings: EvaluationSettings | None = None,
    *,
    progress: bool = False,
    share: Share = WHOLE,
    labels: np.ndarray | None = None,
    classes: tuple[str, ...] = (),
    log_units: Tensor | None = None,
) -> Evaluation:
    """Compute bound, rate, distortion, active units, reconstruction error and log-likelihoods.

    Closed forms and the reconstruction error exist for an `Autoencoder` only; the share of codes
    that are exactly 0 and the share of live units for one with a point posterior. `exact` is the
    closed form of a linear-Gaussian system, or the sum over all values of latents that are all
    discrete.

    Args:
        system: An `Autoencoder`, a module with a model and a guide, or a pair (model, guide) of
            Pyro programs.
        x: The data `[N, ...]`, or the arguments of model and guide as in `log_likelihood`.
        settings: The methods and their settings. None for importance sampling and `exact`, each if
            it is defined; if not, `undefined` says why. A sum over more values than there are
            particles is then left out.
        progress: Whether a progress bar is shown.
        share: The rank of this process and the number of processes that call this function with
            the same arguments. They share the work of `is`, `ais` and `bdmc`, and each does the
            rest. The result is the same on all.
        labels: The labels `[N]` of data that M2 classifies; None if they are unknown.
        classes: The class of each element of its y.
        log_units: What is subtracted from log p(x) of each datum, `[N]`, nats: of standardized
            data, `Dataset.log_units` gives densities in the units of their source. None subtracts
            nothing.

    Returns:
        The figures by name, in nats per datum, and the per-datum estimates, `[N]` each.

    Raises:
        UndefinedLikelihoodError: For a method in `settings.methods` that is not defined for the
            system.
        ConfigError: For something that is not a system, or arguments that are not one tuple.
        DataError: For an `Autoencoder` and data that are not a single tensor, or, where it has a
            condition, not a pair.

    >>> import torch
    >>> from pyroae import zoo
    >>> system, settings = zoo.ppca(4, latent=2), EvaluationSettings(num_particles=10)
    >>> result = evaluate(system, torch.zeros(3, 4), settings)
    >>> [name for name in sorted(result.results) if name.startswith("n")]
    ['nelbo', 'nll', 'nll_exact', 'nll_jackknife']
    """
    pair: Any = (
        SimpleNamespace(model=system[0], guide=system[1])
        if isinstance(system, tuple) and len(system) == 2
        else system
    )
    if not isinstance(pair, System) or callable(x):
        raise ConfigError(
            "evaluate takes a system or a pair of programs, then the data, as in "
            f"evaluate((model, guide), x), not {type(system).__name__} and {type(x).__name__}"
        )
    if isinstance(settings, Tensor | tuple | dict):
        raise ConfigError(
            "evaluate takes all arguments of the programs as one tuple: evaluate(system, (x, y))"
        )
    structure = structure_of(x, {}, pair.model)
    if not isinstance(pair, Autoencoder):
        pair = SimpleNamespace(model=structure(pair.model), guide=structure(pair.guide))
    elif isinstance(structure, Structure) or len(structure.tensors) > 1 + bool(pair.condition):
        takes = "a pair of tensors (x, c)" if pair.condition else "one tensor"
        raise DataError(
            f"this Autoencoder takes {takes}, not {len(structure.tensors)} in a {type(x).__name__}"
        )
    evaluator = _Evaluator(
        pair, structure.tensors, settings or EvaluationSettings(), progress, share
    )
    evaluator.log_units = None if log_units is None else log_units.double().cpu()
    evaluator.classify(labels, classes)
    return evaluator.run()


class _Evaluator:
    """Runs the methods of one evaluation in turn and collects the results."""

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
        self.log_units: Tensor | None = None

    def classify(self, labels: np.ndarray | None, classes: tuple[str, ...]) -> None:
        """Add the share of labelled data whose class is found, for a system that has classes."""
        found, seconds = self._by_each(
            lambda: correct_classes(self.system, self.x[0], labels, classes)
        )
        if found is not None:
            self._mean("accuracy", found, 0, seconds)

    def run(self) -> Evaluation:
        """Run the methods; without a list of methods skip those that are not defined."""
        evaluation = Evaluation({}, self._named("guide", self._diagnosed))
        methods = self.settings.methods
        steps: dict[str, Callable[[Evaluation], Evaluation]] = {
            "is": self._importance,
            "exact": self._exact,
            "quadrature": self._quadrature,
            "ais": self._annealing,
            "bdmc": self._bidirectional,
            "gaps": self._gaps,
        }
        for method in steps if methods is not None else ("is", "exact"):
            if methods is not None and method not in methods:
                continue
            try:
                evaluation = self._named(
                    method_of(method, self.settings), steps[method], evaluation
                )
            except UndefinedLikelihoodError as reason:
                if methods is not None:
                    raise
                undefined = evaluation.undefined or (str(reason) if method == "is" else "")
                evaluation = replace(evaluation, undefined=undefined)
        if isinstance(self.system, Autoencoder) and self.system.likelihood.has_bits:
            self.results += bits_per_dimension(self.results, self.system.features)
        results = Results((r.name, r) for r in self.results)
        return in_units(replace(evaluation, results=results), self.log_units)

    def _named[**P, T](self, method: str, step: Callable[P, T], *args: P.args, **kw: P.kwargs) -> T:
        """Run a step; results that it adds without a method get this one."""
        before = len(self.results)
        outcome = step(*args, **kw)
        added = self.results[before:]
        self.results[before:] = [r if r.method else replace(r, method=method) for r in added]
        return outcome

    def _diagnosed(self) -> Diagnostics:
        system, x, seed = self.system, self.x, self.settings.seed
        draws = GAP_DRAWS if "gaps" in (self.settings.methods or ()) else ELBO_DRAWS

        def work() -> tuple[Diagnostics, dict[str, PerDatum], dict[str, Tensor], Sparsity | None]:
            diagnostics = diagnose(
                system.model, system.guide, x, num_particles=UNIT_DRAWS, seed=seed
            )
            parts = bound_parts(system.model, system.guide, x, num_particles=draws, seed=seed)
            if not isinstance(system, Autoencoder):
                return diagnostics, parts, {}, None
            return diagnostics, parts, reconstruction_errors(system, *x), system.sparsity(*x)

        (diagnostics, parts, errors, sparsity), seconds = self._by_each(work)
        self.elbo = PerDatum(-parts["nelbo"].values, parts["nelbo"].se)
        for name in ("nelbo", "distortion", "rate"):
            part = parts[name]
            self._mean(name, part.values, draws, seconds, monte_carlo_se=part.monte_carlo_se)
        distortion, rate = parts["distortion"].values, parts["rate"].values
        diagnostics = replace(diagnostics, distortion=distortion, rate=rate)
        units = diagnostics.active_units
        self.results.append(Result("active_units", units, math.nan, self.num_data, 0, seconds))
        correlation = diagnostics.total_correlation
        if correlation is not None and correlation > 0:  # NaN where it is unknown
            value = correlation.item()
            self.results.append(
                Result("total_correlation", value, math.nan, self.num_data, UNIT_DRAWS, seconds)
            )
        if isinstance(system, Autoencoder) and len(system.layers) > 1:
            self._of_layers(diagnostics, seconds)
        for name, error in errors.items():
            self._mean(name, error, 0, seconds)
        if sparsity is not None:
            self._mean("zero_share", sparsity.zeros, 0, seconds)
            live = sparsity.live_share
            self.results.append(Result("live_share", live, math.nan, self.num_data, 0, seconds))
        return diagnostics

    def _of_layers(self, diagnostics: Diagnostics, seconds: float) -> None:
        """The rate and the number of active units of each layer of z."""
        for name, values, draws in (
            ("rate", diagnostics.rate_per_site, UNIT_DRAWS),
            ("active_units", diagnostics.active_per_site, 0),
        ):
            for site, value in sorted(values.items()):
                self.results.append(
                    Result(f"{name}_{site}", value, math.nan, self.num_data, draws, seconds)
                )

    def _importance(self, evaluation: Evaluation) -> Evaluation:
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
        error = estimate.monte_carlo_se
        self._mean("nll", -estimate.log_px, count, seconds, monte_carlo_se=error)
        self._at_fifty(estimate)
        for name, values in (
            ("nll_jackknife", estimate.jackknife),
            ("nll_psis", estimate.smoothed.log_px),
        ):
            if torch.isfinite(values).all():
                self._mean(name, -values, count, seconds, monte_carlo_se=error)
        for name, bound in (("eubo", estimate.eubo), ("cubo", estimate.cubo)):
            if bound.is_reported:
                error = bound.monte_carlo_se
                self._mean(name, bound.values, count, seconds, monte_carlo_se=error)
            flagged = bound.num_flagged
            self.results.append(
                Result(f"{name}_flagged", flagged, math.nan, self.num_data, count, seconds)
            )
        self.results.append(
            Result("unreliable", len(estimate.unreliable), math.nan, self.num_data, count, seconds)
        )
        return replace(evaluation, likelihood=estimate)

    def _at_fifty(self, estimate: LikelihoodEstimate) -> None:
        """The bound of the guide at K = 50, by the same draws where there are more."""
        ks, curve = estimate.curve.ks.tolist(), estimate.curve
        if 50 not in ks[:-1] or self.settings.proposal != "guide":
            return
        at = ks.index(50)
        units = 0.0 if self.log_units is None else self.log_units.mean().item()
        row = Result("nll_50", units - curve.bound[at].item(), math.nan, self.num_data, 50, 0.0)
        method = f"{method_of('is', self.settings)}, of {estimate.num_particles:,} draws"
        se = curve.se[at].item()
        self.results.append(
            replace(row, seconds=estimate.seconds, monte_carlo_se=se, method=method)
        )

    def _exact(self, evaluation: Evaluation) -> Evaluation:
        log_px, seconds = self._by_each(self._exact_log_px)
        self._mean("nll_exact", -log_px, 0, seconds)
        return replace(evaluation, exact=log_px)

    def _exact_log_px(self) -> Tensor:
        """The closed form of a linear-Gaussian system; else a sum over all discrete latents.

        Without a list of methods the sum has at most as many terms as there are particles.
        """
        system, settings = self.system, self.settings
        if isinstance(system, Autoencoder) and system.prior.support(system.latent) == REAL:
            return exact_log_likelihood(system, *self.x)
        limit = LIMIT if settings.methods is not None else min(LIMIT, settings.num_particles)
        return enumerated_log_likelihood(
            system.model, system.guide, self.x, limit=limit, progress=self.progress
        )

    def _quadrature(self, evaluation: Evaluation) -> Evaluation:
        system = self.system
        estimate, _ = self._by_each(
            lambda: quadrature(system.model, system.guide, self.x, progress=self.progress)
        )
        points = int(estimate.num_points.max())
        self._mean("nll_quadrature", -estimate.log_px, points, estimate.seconds)
        return replace(evaluation, quadrature=estimate)

    def _annealing(self, evaluation: Evaluation) -> Evaluation:
        estimate, chains = self._annealed(ais, "ais"), self.settings.annealing.num_chains
        error, seconds = estimate.monte_carlo_se, estimate.seconds
        self._mean("nll_ais", -estimate.log_px, chains, seconds, monte_carlo_se=error)
        curve = estimate.rate_distortion
        if curve is not None:
            for name in ("rate", "distortion"):
                values, of_data = getattr(curve, name)[-1], getattr(curve, f"mean_{name}_error")
                self._mean(
                    f"{name}_ais", values, chains, seconds, monte_carlo_se=float(of_data[-1])
                )
        return replace(evaluation, annealed=estimate)

    def _bidirectional(self, evaluation: Evaluation) -> Evaluation:
        estimate, chains = self._annealed(bdmc, "bdmc"), self.settings.annealing.num_chains
        for name in ("lower", "upper", "gap"):
            values, seconds = getattr(estimate, name), estimate.seconds
            error = estimate.forward.monte_carlo_se if name == "lower" else math.nan
            self._mean(f"bdmc_{name}", values, chains, seconds, monte_carlo_se=error)
        return replace(evaluation, bidirectional=estimate)

    def _annealed[T](self, anneal: Callable[..., T], name: str) -> T:
        """Run `ais` or `bdmc` with the settings of the evaluation."""
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

    def _gaps(self, evaluation: Evaluation) -> Evaluation:
        log_px = evaluation.exact if evaluation.exact is not None else evaluation.quadrature
        programs, x = (self.system.model, self.system.guide), self.x
        common: Any = {"seed": self.settings.seed, "progress": self.progress}
        gap, _ = self._by_each(
            lambda: gaps(
                *programs,
                x,
                log_px=log_px,
                elbo=self.elbo,
                num_particles=GAP_DRAWS,
                **common,
            )
        )
        known = (
            "" if log_px is None else ", exact" if evaluation.exact is not None else ", quadrature"
        )
        if gap.khat is not None:
            self._of_gap("nll_local", PerDatum(-gap.log_px.values, gap.log_px.se), gap, known)
        for which, family in gap.families.items():
            suffix = "" if which == "diagonal" else "_" + which.replace("-", "_")
            self._of_gap(f"amortization_gap{suffix}", family.amortization, gap, known)
            self._of_gap(f"approximation_gap{suffix}", family.approximation, gap, known)
        self._of_gap("inference_gap", gap.inference, gap, known)
        info, _ = self._by_each(lambda: information(*programs, x, **common))
        bounds = (
            ("lower", info.lower, info.marginal_kl[0]),
            ("upper", info.upper, info.marginal_kl[1]),
        )
        for end, mutual, marginal in bounds:
            for name, bound in (("mutual_information", mutual), ("marginal_kl", marginal)):
                self.results.append(
                    Result(f"{name}_{end}", bound.value, bound.se, self.num_data, 1, info.seconds)
                )
        return replace(evaluation, gaps=gap, information=info)

    def _by_each[T](self, work: Callable[[], T]) -> tuple[T, float]:
        """The result of work that every process does, on the first process, and its seconds."""
        started = time.monotonic()
        return first_result(self.share, lambda: (work(), time.monotonic() - started))

    def _of_gap(self, name: str, quantity: PerDatum, gap: Gaps, known: str) -> None:
        """A figure of the gaps; `known` is where log p(x) is from, if not from local proposals."""
        self._mean(
            name,
            quantity.values,
            GAP_DRAWS,
            gap.seconds,
            method=f"gaps{known}",
            monte_carlo_se=quantity.monte_carlo_se,
        )

    def _mean(
        self,
        name: str,
        values: Tensor,
        num_particles: int,
        seconds: float,
        *,
        method: str = "",
        monte_carlo_se: float = math.nan,
    ) -> None:
        """Add the mean over the data; the method is that of the step if none is given."""
        if self.log_units is not None and sign_of(name):
            values = values.double().cpu() + sign_of(name) * self.log_units
        se = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
        mean, count = values.mean().item(), len(values)
        self.results.append(
            Result(name, mean, se, count, num_particles, seconds, method, monte_carlo_se)
        )


def reconstruction_errors(
    system: Autoencoder, x: Tensor, c: Tensor | None = None
) -> dict[str, Tensor]:
    """Compare data with their reconstructions.

    Args:
        system: The system.
        x: Data, `[N, d]` or `[N, *shape]`.
        c: The conditions of a conditional system, `[N, C]`.

    Returns:
        `squared_error`, summed over the observed features that are no codes, and `wrong_codes`,
        the share of wrong codes among the others, `[N]` each; one is left out where there is no
        such feature.
    """
    codes = system.likelihood.codes(system.features)
    difference = (system.reconstruct(x, c) - system.flat(x)).double().cpu()
    errors = {}
    if not codes.all():
        errors["squared_error"] = difference[:, ~codes].square().nansum(1)
    if codes.any():
        wrong = torch.where(difference.isnan(), difference, (difference != 0).double())
        errors["wrong_codes"] = wrong[:, codes].nanmean(1)
    return errors


def bits_per_dimension(results: list[Result], features: int) -> list[Result]:
    """Convert negative log-likelihoods of discretized data to bits per dimension.

        −log₂ p(x) / d

    Args:
        results: The results of an evaluation, in nats per datum.
        features: d.

    Returns:
        `bits_per_dimension` from the first of importance sampling, annealing, quadrature and the
        closed form that there is, and `bits_per_dimension_bound` from the negative ELBO.

    References:
        van den Oord, Kalchbrenner & Kavukcuoglu 2016, Pixel Recurrent Neural Networks.
    """
    by_name = {result.name: result for result in results}
    sources = ("nll", "nll_ais", "nll_quadrature", "nll_exact")
    best = next((by_name[name] for name in sources if name in by_name), None)
    named = (("bits_per_dimension", best), ("bits_per_dimension_bound", by_name.get("nelbo")))
    nats = features * math.log(2)
    return [
        replace(
            result,
            name=name,
            estimate=result.estimate / nats,
            se=result.se / nats,
            monte_carlo_se=result.monte_carlo_se / nats,
        )
        for name, result in named
        if result is not None
    ]
