"""A bound times a gradient: the estimator of every valid pair."""

from collections.abc import Hashable
from contextlib import nullcontext
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyroae.errors import ConfigError, ProgramError
from pyroae.objectives.base import Bound, ObjectiveBase, check_reparameterized, weak_reference
from pyroae.objectives.bounds import ELBO as ELBOBound
from pyroae.objectives.bounds import BoundFunction
from pyroae.objectives.enumerated import (
    Enumerate,
    Enumeration,
    discrete_in,
    marked_in,
    summed_out,
)
from pyroae.objectives.gradients import (
    Coefficients,
    Gradient,
    Pathwise,
    Score,
    StickingTheLanding,
)
from pyroae.objectives.program_gradient import ProgramGradient
from pyroae.objectives.scores import (
    elbo_scores,
    has_path,
    moves_support,
    score_mean_zero,
    score_terms,
)
from pyroae.objectives.strata import Strata
from pyroae.objectives.stratified import StratifiedBound
from pyroae.objectives.surrogates import Detached, Scaled, at_fixed_draws, path_through_log_post
from pyroae.programs.context import evaluating
from pyroae.programs.model_sums import SumMissing
from pyroae.programs.paired_traces import Traces, log_density, terms_of
from pyroae.programs.sites import (
    Program,
    base_distribution,
    equal_scale,
    plates_of,
    same_scale,
    undeclared,
    undeclared_words,
)
from pyroae.runtime.randomness import fork_random, random_state, set_random_state
from pyroae.weights import LogWeights, reduce_log_weights

TINY = 1e-20
"""Coefficients below this size are set to 0: in a sum in single precision they have no effect.

For θ, whose coefficient is a divisor, they are set to this size.
"""


def _cut(coefficient: Tensor) -> Tensor:
    """Set coefficients below `TINY` to 0.

    In the backward pass through the networks they would become subnormal numbers, whose products
    take many processors a hundred times as long: a step of IWAE with K = 64 took four times as
    long.
    """
    return torch.where(coefficient.abs() < TINY, 0.0, coefficient)


def with_cut_gradient(log_weight: Tensor) -> Tensor:
    """Return log-weights whose gradient is set to 0 where it is below `TINY`.

    Args:
        log_weight: Log-weights, any shape.

    Returns:
        The same log-weights, with a hook on their gradient.
    """
    if log_weight.requires_grad:
        log_weight = log_weight.clone()
        log_weight.register_hook(_cut)
    return log_weight


def _check_draws(bound: BoundFunction, gradient: Gradient) -> None:
    """Refuse a pair of which one part couples or stratifies the draws and the other forbids it."""
    one, other = type(bound).__name__, type(gradient).__name__
    if gradient.coupled and (bound.independent or bound.stratified):
        raise ConfigError(
            f"{other} couples the draws of a datum, and {one} "
            + ("stratifies them" if bound.stratified else "needs independent ones")
        )
    if bound.stratified and gradient.independent:
        raise ConfigError(
            f"{other} needs independent, identically distributed draws, and {one} stratifies them "
            "by the components of a mixture: use Pathwise"
        )
    taken = isinstance(gradient, Pathwise | StickingTheLanding) and gradient.unbiased(bound)
    if bound.stratified and not taken:
        raise ConfigError(f"{other} is not an estimator of the gradient of {one}: use Pathwise")


class Objective(ObjectiveBase):
    """A bound times a gradient: every valid pair is an estimator.

        value = Σ_n F(log w_1n, …, log w_Kn)
        gradient of the surrogate: θ by Σ_k c_k ∂_θ log p(x, z_k), φ by `gradient`

    The bound is in nats, over all data. `bound` raises ProgramError, naming the site, for a program
    to which the pair does not apply.

    Args:
        bound: F, a function of each datum's log-weights.
        gradient: The estimator of the φ-gradient; `Pathwise` by default.
        joint: Treat all data as one datum with the weight p(w, z, x) / q(w, z | x). This is defined
            for every bound and gradient where some latent sites w lie outside the data plate, and
            is far looser than the bound of each datum given one draw of w.

    Raises:
        ConfigError: The pair is not defined.

    >>> from pyroae.objectives import IWAE, DoublyReparameterized
    >>> Objective(IWAE(num_particles=8), DoublyReparameterized()).num_particles
    8
    """

    def __init__(
        self, bound: BoundFunction, gradient: Gradient | None = None, *, joint: bool = False
    ) -> None:
        super().__init__(bound.num_particles)
        self.bound_function, self.gradient, self.joint = bound, gradient or Pathwise(), joint
        self.gradient.check(bound)
        _check_draws(bound, self.gradient)
        self._mixed: tuple[Any, bool] | None = None
        self._enumerations: tuple[Any, dict[tuple[Any, ...], Enumeration]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_mixed": None, "_enumerations": None}

    @property
    def is_elbo(self) -> bool:
        """Whether the bound's mean is the ELBO for every number of particles."""
        return self.bound_function.trend == 0

    @property
    def is_unbiased(self) -> bool:
        """Whether the bound's mean is log p(x) for every guide."""
        return self.bound_function.is_unbiased

    @property
    def is_symmetric(self) -> bool:
        """Whether bound and gradient are invariant to the order of the particles."""
        return self.bound_function.is_symmetric and not self.gradient.coupled

    @property
    def is_per_datum(self) -> bool:
        """Whether each datum has its own bound: False for `joint`."""
        return not self.joint

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of latent sites that bound and gradient take."""
        mixtures = frozenset({"mixture"})
        return mixtures if self.bound_function.stratified else self.gradient.kinds

    @property
    def evaluations(self) -> float:
        """Mean decoder evaluations per datum of one estimate.

        For S joint values that are summed they are S·K, or S where the guide has no other draws,
        which is known after the first estimate.
        """
        counts = [one.total * one.repeats(self.num_particles) for one in self._found]
        return float(max(counts)) if counts else self.gradient.evaluations(self.bound_function)

    @property
    def is_noiseless(self) -> bool:
        """Whether all draws of the guide are summed, as found in the last estimate."""
        return bool(self._found) and all(one.is_whole for one in self._found)

    @property
    def _found(self) -> list[Enumeration]:
        known = self._enumerations
        return [] if known is None else list(known[1].values())

    @property
    def learns(self) -> bool:
        """Whether the gradient has parameters of its own."""
        return self.gradient.learns

    @property
    def variant(self) -> Hashable:
        """The number of particles of the next estimate where the bound draws it, () elsewhere."""
        return self._count if self.bound_function.is_random else ()

    def next_step(self) -> None:
        """Draw the number of particles, where it is random."""
        self._count = self.bound_function.draw_particles()

    def make_controls(self, traces: Traces, args: tuple[Any, ...]) -> nn.Module:
        """Return the module that the gradient learns."""
        return self.gradient.make_controls(traces, args)

    @property
    def _is_joint(self) -> bool:
        return self.joint

    @property
    def _shares_globals(self) -> bool:
        bound = self.bound_function
        several = (bound.num_particles > 1 or bound.is_random) and not self._is_elbo_of_paths
        return (
            not self.joint and self.gradient.takes_globals and (several or self.gradient.detached)
        )

    def estimate(self, traces: Traces) -> Bound:
        """Return the bound and its derivative, plus score terms for draws without a path."""
        self.check(traces)
        weights = reduce_log_weights(traces)
        log_weight = with_cut_gradient(weights.log_weight)
        value = weights.total(self.bound_function.value(log_weight))
        if self._is_elbo_of_paths:
            scores = elbo_scores(traces, weights)
        elif (terms := score_terms(traces, weights)) is not None:
            coefficients = self.gradient.coefficients(self.bound_function, log_weight.detach())
            assert coefficients.learning is not None
            scores = (weights.scale * _cut(coefficients.learning) * terms).sum()
            if isinstance(self.gradient, Score) and self.bound_function.constant_slopes:
                scores = scores + score_mean_zero(traces, weights)
        else:
            scores = None
        return Bound(value, value if scores is None else value + scores)

    def estimate_on(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Bound:
        """Run guide and model, and estimate the bound and its gradient by the pair."""
        if isinstance(self.gradient, ProgramGradient):
            return self.gradient.estimate_on(self, model, guide, args, kwargs)
        if isinstance(self.bound_function, StratifiedBound):
            return self._stratified(self.bound_function, model, guide, args, kwargs)
        if self._sums_out:
            every = SumMissing() if isinstance(self.gradient, Enumerate) else nullcontext()
            with every:
                return self._by_paths(model, guide, args, kwargs)
        if self.gradient.detached and not self._takes_paths(model, guide, args, kwargs):
            attached = self._globals_of(model, guide, args, kwargs)
            return self._by_score(self.run(model, guide, args, kwargs, handler=Detached(attached)))
        if isinstance(self.gradient, Pathwise | Score):
            return self.estimate(self.run(model, guide, args, kwargs))
        scaled = Scaled()
        traces = self.run(model, guide, args, kwargs, through=scaled)
        self.check(traces)
        weights, value, coefficients = self._parts(traces)
        theta = torch.where(coefficients.theta.abs() < TINY, TINY, coefficients.theta)
        scale, log_joint = weights.scale, weights.log_lik + weights.log_prior
        if coefficients.path is None:
            path = coefficients.whole
            assert path is not None
            post = (scale * path * weights.log_post).sum()
        else:
            path = self._under_exponent(traces, coefficients)
            post = path_through_log_post(traces, guide, args, kwargs, scale * path)
            post = post + self._guide_terms(
                traces, weights, guide, args, kwargs, coefficients, path
            )
        scaled.set_ratio(traces, path / theta)
        surrogate = (
            (scale * theta * log_joint).sum()
            - post
            + self._global_term(traces, weights, guide, args, kwargs)
        )
        if (
            coefficients.learning is not None
            and (terms := score_terms(traces, weights)) is not None
        ):
            surrogate = surrogate + (scale * _cut(coefficients.learning) * terms).sum()
        return Bound(value, surrogate)

    def _stratified(
        self,
        bound: StratifiedBound,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Bound:
        """The bound of stratified draws, differentiated along the paths, shares included.

        Sticking the landing leaves out the score of q, whose mean under the shares is 0.
        """
        strata = Strata(self.num_particles, type(bound).__name__)
        traces = self.run(model, guide, args, kwargs, handler=strata)
        self.check(traces)
        log_ratio = strata.log_ratio(traces)
        weights = reduce_log_weights(traces)
        log_weight = with_cut_gradient(weights.log_weight)
        value = weights.total(bound.weighted(log_weight, log_ratio))
        if isinstance(self.gradient, Pathwise):
            return Bound(value, value)
        share, log_weight = log_ratio.exp() / self.num_particles, log_weight.detach()
        coefficient = weights.scale * share.detach()
        terms = coefficient * (weights.log_lik + weights.log_prior)
        if weights.log_terms is not None:
            terms = terms - coefficient * weights.log_terms
        through = path_through_log_post(traces, guide, args, kwargs, coefficient)
        surrogate = (terms + weights.scale * share * log_weight).sum() - through
        return Bound(value, surrogate + self._global_term(traces, weights, guide, args, kwargs))

    @property
    def _sums_out(self) -> bool:
        """Whether the pair is defined with an exact sum over discrete sites of the guide."""
        return self._is_elbo_of_paths and not self.joint

    def _sums(self, traces: Traces) -> bool:
        """Whether the marked sites of a guide are summed, not drawn."""
        return self._sums_out and bool(self._enumeration_in(traces).parts)

    def _by_paths(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Bound:
        """The bound of a pathwise pair, with the marked sites of the guide summed exactly.

        Which there are is seen in a run, and remembered by guide and shapes. If there are any, that
        run is repeated with the same random numbers.
        """
        shapes = (a.shape if isinstance(a, Tensor) else a for a in (*args, *kwargs.values()))
        key, known = (*kwargs, *map(str, shapes)), self._enumerations
        if known is None or known[0]() != guide:
            known = self._enumerations = (weak_reference(guide), {})
        found = known[1].get(key)
        if found is None or not found.parts:
            device = next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
            before = random_state(device) if found is None else None
            traces = self.run(model, guide, args, kwargs)
            found = known[1].setdefault(key, self._enumeration_in(traces))
            if not found.parts:
                return self.estimate(traces)
            if before is not None:
                set_random_state(before, device)
        count = found.total * found.repeats(self.num_particles)
        handler = found.handler(self.num_particles)
        traces = self.run(model, guide, args, kwargs, count, handler=handler)
        self.check(traces)
        weights, log_weight = summed_out(traces, found, self._name)
        value = weights.total(self.bound_function.value(log_weight))
        return Bound(value, value)

    def _enumeration_in(self, traces: Traces) -> Enumeration:
        """The sites of a guide that the pair sums: all discrete ones, or those that are marked."""
        if isinstance(self.gradient, Enumerate):
            return discrete_in(traces, self.gradient.limit)
        return marked_in(traces)

    def _global_term(
        self,
        traces: Traces,
        weights: LogWeights,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Tensor:
        """The log-ratio of the global sites without the score of their q, which has mean 0."""
        drawn = [(name, site) for name, site in traces.draws() if not traces.is_local(site)]
        if not drawn:
            return weights.log_global.mean()
        each = torch.full_like(weights.log_global, 1 / len(weights.log_global))
        terms = (traces.reduce(site, weights.densities[name]) for name, site in drawn)
        without_draws = weights.log_global + sum(terms)
        return without_draws.mean() - path_through_log_post(
            traces, guide, args, kwargs, each, local=False
        )

    def _by_score(self, traces: Traces) -> Bound:
        """The bound and its surrogate where the draws are stopped."""
        self.check(traces)
        return self.follow_scores(traces, *self._parts(traces))

    def follow_scores(
        self, traces: Traces, weights: LogWeights, value: Tensor, coefficients: Coefficients
    ) -> Bound:
        """Return the surrogate of coefficients of scores, for a run whose draws are stopped.

        Args:
            traces: The traces of guide and model.
            weights: Their log-weights.
            value: The bound over all data, in nats, shape `[]`.
            coefficients: The coefficients, each of shape `[K, N]`.

        Returns:
            The bound and its surrogate.

        Raises:
            ProgramError: The guide has terms that are not densities of draws and for which the
                gradient is not defined; the message names the site.
        """
        self._check_deltas(traces)
        theta = _cut(coefficients.theta)
        terms = theta * (weights.log_lik + weights.log_prior)
        if weights.log_terms is not None:
            self._check_terms(traces)
            terms = terms - theta * weights.log_terms
        if coefficients.score is not None:
            terms = terms + _cut(coefficients.score) * weights.log_draws
        if coefficients.whole is not None:
            terms = terms - _cut(coefficients.whole) * weights.log_draws
        if (
            coefficients.learning is not None
            and (scores := score_terms(traces, weights, every=True)) is not None
        ):
            terms = terms + _cut(coefficients.learning) * scores
        return Bound(value, (weights.scale * terms).sum() + weights.log_global.mean())

    def _guide_terms(
        self,
        traces: Traces,
        weights: LogWeights,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        coefficients: Coefficients,
        path: Tensor,
    ) -> Tensor | float:
        """The terms of the guide that are not densities of draws.

        Their derivative through the draws has the coefficient of P_k, that at fixed draws c_k.
        """
        follows_slope = coefficients.path is coefficients.theta
        if not follows_slope and not traces.is_plain:
            fixed = at_fixed_draws(traces, guide, args, kwargs)
            self._check_deltas(fixed)
            self._check_terms(fixed)
        if weights.log_terms is None:
            return 0.0
        through = (weights.scale * path * weights.log_terms).sum()
        if follows_slope:
            return through
        directly = [
            fixed.reduce(s, log_density(name, s))
            for name, s in terms_of(fixed)
            if fixed.is_local(s)
        ]
        return through + (weights.scale * (coefficients.theta - path) * sum(directly)).sum()

    def _under_exponent(self, traces: Traces, coefficients: Coefficients) -> Tensor:
        """The coefficient of P_k: c_k − β ∂c_k/∂log w_k where β log q is in the log-weight."""
        path, slope = coefficients.path, coefficients.theta
        assert path is not None
        draws = [(name, site) for name, site in traces.draws() if traces.is_local(site)]
        is_common = isinstance(traces.scale, Tensor)  # one scale for all sites: divided out
        if path is slope or self.gradient.inclusive or is_common or not draws:
            return path
        site = draws[0][1]
        exponent = traces.exponent(site)
        different = [name for name, s in draws if not equal_scale(s["scale"], site["scale"])]
        if different or torch.as_tensor(exponent).numel() > 1:
            name = [*different, draws[0][0]][0]
            raise ProgramError(
                f"{self._name} takes one scale for all draws of the guide; the site '{name}' has "
                "another one"
            )
        return path if same_scale(exponent, 1.0) else slope + exponent * (path - slope)

    def _takes_paths(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Whether only some draws in the data plate carry a path gradient; cached per guide."""
        if not isinstance(self.gradient, Score):
            return False
        if self._mixed is None or self._mixed[0]() != guide:
            device = next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
            with fork_random(device), poutine.block(), evaluating(model, guide):
                traces = self.run(model, guide, args, kwargs)
                paths = {
                    has_path(site["fn"]) for _, site in traces.draws() if traces.is_local(site)
                }
                self._mixed = (weak_reference(guide), len(paths) == 2)
        return self._mixed[1]

    def _parts(self, traces: Traces) -> tuple[LogWeights, Tensor, Coefficients]:
        """The log-weights, and from them, detached, the bound and the coefficients."""
        weights = reduce_log_weights(traces)
        log_weight = weights.log_weight.detach()
        value = weights.total(self.bound_function.value(log_weight)).detach()
        return weights, value, self.gradient.coefficients(self.bound_function, log_weight)

    @property
    def _name(self) -> str:
        return f"{type(self.bound_function).__name__} with {type(self.gradient).__name__}"

    @property
    def _is_elbo_of_paths(self) -> bool:
        return isinstance(self.bound_function, ELBOBound) and isinstance(
            self.gradient, Pathwise | Enumerate
        )

    def check(self, traces: Traces) -> None:
        """Refuse programs to which the pair does not apply.

        Args:
            traces: The traces of guide and model.

        Raises:
            ProgramError: The pair does not apply; the message names the site.
        """
        name = self._name
        if self.gradient.reparameterized and not self.bound_function.stratified:
            check_reparameterized(traces, name)
        for site_name, site in traces.draws():
            takes = self.gradient.takes_moving_support and has_path(site["fn"])
            if not takes and moves_support(site["fn"]):
                raise ProgramError(
                    f"{name} assumes that the score of the guide has mean 0, which does not hold "
                    f"where the support depends on parameters, as at the site '{site_name}' "
                    f"({type(base_distribution(site['fn'])).__name__}): use trace-elbo or iwae, or "
                    "a transform of a fixed support"
                )
        if self._is_elbo_of_paths:
            return
        for site_name, site in traces.sites(traces.guide, observed=False):
            if not traces.is_local(site) and not (
                self.gradient.takes_globals and has_path(site["fn"])
            ):
                raise ProgramError(
                    f"{name} needs a bound per datum; the latent site '{site_name}' lies outside "
                    "the data plate: use trace-elbo, or, if its draws carry a gradient, iwae, "
                    "renyi, stl, dreg, vimco or score, which take the bound of each datum given "
                    f"one draw of it; or {self._request}"
                )
        if not self.joint:
            self._check_one_datum(traces)

    @property
    def _request(self) -> str:
        """The objective to recommend for programs that have no bound per datum."""
        return (
            f"all data as one datum, Objective({self.bound_function!r}, {self.gradient!r}, "
            "joint=True)"
        )

    def _check_one_datum(self, traces: Traces) -> None:
        """Refuse programs without one data plate, or with batch dimensions outside all plates."""
        sites = {
            f"the site '{n}'": s
            for observed in (True, False)
            for n, s in traces.sites(traces.model, observed=observed)
        }
        sites |= {
            f"the guide's site '{n}'": site
            for n, site in traces.sites(traces.guide, observed=False)
        }
        in_plates = {
            plates_of(site)[0]: (which, site)
            for which, site in reversed(sites.items())
            if plates_of(site)
        }
        if traces.plate is None and in_plates:
            where = (
                f"{which} in {' and '.join(repr(f.name) for f in plates_of(s))}"
                for which, s in reversed(in_plates.values())
            )
            raise ProgramError(
                f"{self._name} needs a bound per datum, but no one plate holds all the sites: "
                f"{', '.join(where)}: use {self._request}"
            )
        for which, site in sites.items():
            dims = undeclared(site)
            if dims:
                raise ProgramError(
                    f"{self._name} needs a bound per datum; {which} "
                    f"{undeclared_words(site, dims[0])}"
                )

    def _check_deltas(self, fixed: Traces) -> None:
        """Refuse Deltas that depend on parameters at fixed draws, or in a guide without draws."""
        deltas = [(name, site) for name, site in fixed.deltas() if fixed.is_local(site)]
        moving = [
            name for name, site in deltas if site["value"].requires_grad or not any(fixed.draws())
        ]
        if moving:
            raise ProgramError(
                f"{self._name} follows the density of the guide's draws; its site '{moving[0]}' is "
                "a Delta, which has none, and its value depends on parameters at fixed draws: use "
                "trace-elbo or iwae"
            )

    def _check_terms(self, fixed: Traces) -> None:
        """Refuse guide terms that depend on φ and are not densities of draws, under KL(p ‖ q)."""
        if not self.gradient.inclusive:
            return
        for name, site in terms_of(fixed):
            if log_density(name, site).requires_grad:
                raise ProgramError(
                    f"{self._name} follows the density of the guide's draws alone; the guide's "
                    f"site '{name}' is no draw, and its log-density depends on parameters: use "
                    "vimco, dreg or iwae"
                )
