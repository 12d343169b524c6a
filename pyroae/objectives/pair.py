"""A bound times a gradient: the estimator of every valid pair."""

from collections.abc import Hashable
from contextlib import nullcontext
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyroae.objectives.base import Bound, ObjectiveBase, check_reparameterized
from pyroae.objectives.bounds import ELBO as ELBOBound
from pyroae.objectives.bounds import BoundFunction
from pyroae.objectives.coefficient_surrogates import along_paths, along_scores
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
)
from pyroae.objectives.pair_checks import check_globals, check_one_datum, check_pair, check_support
from pyroae.objectives.program_gradient import ProgramGradient
from pyroae.objectives.scores import (
    elbo_scores,
    has_path,
    score_mean_zero,
    score_terms,
)
from pyroae.objectives.stratified import StratifiedBound
from pyroae.objectives.surrogates import Detached, Scaled, with_cut_gradient, without_tiny
from pyroae.programs.context import evaluating
from pyroae.programs.model_sums import SumMissing
from pyroae.programs.paired_traces import Traces
from pyroae.programs.sites import (
    Program,
)
from pyroae.runtime.randomness import fork_random, random_state, set_random_state
from pyroae.runtime.short_repr import Overview
from pyroae.runtime.short_text import text_of
from pyroae.weights import LogWeights, reduce_log_weights


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
        check_pair(bound, self.gradient)

    def _overview(self) -> Overview:
        if type(self) is not Objective:
            return super()._overview()
        joint = ["joint=True"] if self.joint else []
        return Overview([text_of(self.bound_function), text_of(self.gradient), *joint])

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
        return list((self.cache.latest("enumerations") or {}).values())

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
            scores = (weights.scale * without_tiny(coefficients.learning) * terms).sum()
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
            return self.bound_function.estimate_on(self, model, guide, args, kwargs)
        if self._sums_out:
            every = SumMissing() if isinstance(self.gradient, Enumerate) else nullcontext()
            with every:
                return self._by_paths(model, guide, args, kwargs)
        if self.gradient.detached and not self._takes_paths(model, guide, args, kwargs):
            attached = self._globals_of(model, guide, args, kwargs)
            traces = self.run(model, guide, args, kwargs, handler=Detached(attached))
            self.check(traces)
            weights, value, coefficients = self._parts(traces)
            return Bound(value, along_scores(self, traces, weights, coefficients))
        if isinstance(self.gradient, Pathwise | Score):
            return self.estimate(self.run(model, guide, args, kwargs))
        scaled = Scaled()
        traces = self.run(model, guide, args, kwargs, through=scaled)
        self.check(traces)
        weights, value, coefficients = self._parts(traces)
        surrogate = along_paths(self, traces, weights, coefficients, scaled, guide, args, kwargs)
        return Bound(value, surrogate)

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
        key = (*kwargs, *map(str, shapes))
        known: dict[tuple[Any, ...], Enumeration] = self.cache.get("enumerations", (guide,), dict)
        found = known.get(key)
        if found is None or not found.parts:
            device = next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
            before = random_state(device) if found is None else None
            traces = self.run(model, guide, args, kwargs)
            found = known.setdefault(key, self._enumeration_in(traces))
            if not found.parts:
                return self.estimate(traces)
            if before is not None:
                set_random_state(before, device)
        count = found.total * found.repeats(self.num_particles)
        handler = found.handler(self.num_particles)
        traces = self.run(model, guide, args, kwargs, count, handler=handler)
        self.check(traces)
        weights, log_weight = summed_out(traces, found, self.label)
        value = weights.total(self.bound_function.value(log_weight))
        return Bound(value, value)

    def _enumeration_in(self, traces: Traces) -> Enumeration:
        """The sites of a guide that the pair sums: all discrete ones, or those that are marked."""
        if isinstance(self.gradient, Enumerate):
            return discrete_in(traces, self.gradient.limit)
        return marked_in(traces)

    def _takes_paths(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Whether only some draws in the data plate carry a path gradient; cached per guide."""
        if not isinstance(self.gradient, Score):
            return False

        def find() -> bool:
            device = next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
            with fork_random(device), poutine.block(), evaluating(model, guide):
                traces = self.run(model, guide, args, kwargs)
            draws = [site["fn"] for _, site in traces.draws() if traces.is_local(site)]
            return len(set(map(has_path, draws))) == 2

        return self.cache.get("mixed", (guide,), find)

    def _parts(self, traces: Traces) -> tuple[LogWeights, Tensor, Coefficients]:
        """The log-weights, and from them, detached, the bound and the coefficients."""
        weights = reduce_log_weights(traces)
        log_weight = weights.log_weight.detach()
        value = weights.total(self.bound_function.value(log_weight)).detach()
        return weights, value, self.gradient.coefficients(self.bound_function, log_weight)

    @property
    def label(self) -> str:
        """The names of bound and gradient, for messages."""
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
        if self.gradient.reparameterized and not self.bound_function.stratified:
            check_reparameterized(traces, self.label)
        check_support(traces, self.gradient, self.label)
        if self._is_elbo_of_paths:
            return
        check_globals(traces, self.gradient, self.label, self._request)
        if not self.joint:
            check_one_datum(traces, self.label, self._request)

    @property
    def _request(self) -> str:
        """The objective to recommend for programs that have no bound per datum."""
        return (
            f"all data as one datum, Objective({self.bound_function!r}, {self.gradient!r}, "
            "joint=True)"
        )
