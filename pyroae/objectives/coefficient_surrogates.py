"""The surrogate of coefficients: along the scores of the draws, or along their paths."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyroae.errors import ProgramError
from pyroae.objectives.gradients import Coefficients
from pyroae.objectives.pair_checks import check_deltas, check_terms
from pyroae.objectives.scores import score_terms
from pyroae.objectives.surrogates import (
    TINY,
    Scaled,
    at_fixed_draws,
    path_through_log_post,
    without_tiny,
)
from pyroae.programs.paired_traces import Traces, log_density, terms_of
from pyroae.programs.sites import Program, equal_scale, same_scale
from pyroae.weights import LogWeights

if TYPE_CHECKING:
    from pyroae.objectives.pair import Objective


def along_scores(
    pair: "Objective", traces: Traces, weights: LogWeights, coefficients: Coefficients
) -> Tensor:
    """Return the surrogate of a run whose draws are stopped.

    Args:
        pair: The bound and the gradient.
        traces: The traces of guide and model.
        weights: Their log-weights.
        coefficients: The coefficients, each of shape `[K, N]`.

    Returns:
        The surrogate over all data, shape `[]`.

    Raises:
        ProgramError: The guide has terms that are not densities of draws and for which the gradient
            is not defined; the message names the site.
    """
    check_deltas(traces, pair.label)
    theta = without_tiny(coefficients.theta)
    terms = theta * (weights.log_lik + weights.log_prior)
    if weights.log_terms is not None:
        if pair.gradient.inclusive:
            check_terms(traces, pair.label)
        terms = terms - theta * weights.log_terms
    if coefficients.score is not None:
        terms = terms + without_tiny(coefficients.score) * weights.log_draws
    if coefficients.whole is not None:
        terms = terms - without_tiny(coefficients.whole) * weights.log_draws
    scores = score_terms(traces, weights, every=True)
    if coefficients.learning is not None and scores is not None:
        terms = terms + without_tiny(coefficients.learning) * scores
    return (weights.scale * terms).sum() + weights.log_global.mean()


def along_paths(
    pair: "Objective",
    traces: Traces,
    weights: LogWeights,
    coefficients: Coefficients,
    scaled: Scaled,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor:
    """Return the surrogate of a run that follows the paths of the draws.

    Args:
        pair: The bound and the gradient.
        traces: The traces of guide and model.
        weights: Their log-weights.
        coefficients: The coefficients, each of shape `[K, N]`.
        scaled: Scaled the draws of this run; its ratio is set here.
        guide: The guide.
        args: Positional arguments of the guide.
        kwargs: Keyword arguments of the guide.

    Returns:
        The surrogate over all data, shape `[]`.

    Raises:
        ProgramError: As of `along_scores`, or the draws of the guide have different scales.
    """
    theta = torch.where(coefficients.theta.abs() < TINY, TINY, coefficients.theta)
    scale, log_joint = weights.scale, weights.log_lik + weights.log_prior
    if coefficients.path is None:
        path = coefficients.whole
        assert path is not None
        post = (scale * path * weights.log_post).sum()
    else:
        path = _under_exponent(pair, traces, coefficients)
        post = path_through_log_post(traces, guide, args, kwargs, scale * path)
        fixed = traces
        if coefficients.path is not coefficients.theta and not traces.is_plain:
            fixed = at_fixed_draws(traces, guide, args, kwargs)
            check_deltas(fixed, pair.label)
            if pair.gradient.inclusive:
                check_terms(fixed, pair.label)
        post = post + _guide_terms(fixed, weights, coefficients, path)
    scaled.set_ratio(traces, path / theta)
    of_globals = global_term(traces, weights, guide, args, kwargs)
    surrogate = (scale * theta * log_joint).sum() - post + of_globals
    terms = None if coefficients.learning is None else score_terms(traces, weights)
    if coefficients.learning is not None and terms is not None:
        surrogate = surrogate + (scale * without_tiny(coefficients.learning) * terms).sum()
    return surrogate


def global_term(
    traces: Traces,
    weights: LogWeights,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor:
    """Return the log-ratio of the global sites without the score of their q, which has mean 0.

    Args:
        traces: The traces of guide and model.
        weights: Their log-weights.
        guide: The guide.
        args: Positional arguments of the guide.
        kwargs: Keyword arguments of the guide.

    Returns:
        The mean over the particles, in nats, shape `[]`.
    """
    drawn = [(name, site) for name, site in traces.draws() if not traces.is_local(site)]
    if not drawn:
        return weights.log_global.mean()
    each = torch.full_like(weights.log_global, 1 / len(weights.log_global))
    terms = (traces.reduce(site, weights.densities[name]) for name, site in drawn)
    without_draws = weights.log_global + sum(terms)
    through = path_through_log_post(traces, guide, args, kwargs, each, local=False)
    return without_draws.mean() - through


def _guide_terms(
    fixed: Traces, weights: LogWeights, coefficients: Coefficients, path: Tensor
) -> Tensor | float:
    """The terms of the guide that are not densities of draws.

    Their derivative through the draws has the coefficient of P_k, that at fixed draws c_k.
    """
    if weights.log_terms is None:
        return 0.0
    through = (weights.scale * path * weights.log_terms).sum()
    if coefficients.path is coefficients.theta:
        return through
    directly = [
        fixed.reduce(site, log_density(name, site))
        for name, site in terms_of(fixed)
        if fixed.is_local(site)
    ]
    return through + (weights.scale * (coefficients.theta - path) * sum(directly)).sum()


def _under_exponent(pair: "Objective", traces: Traces, coefficients: Coefficients) -> Tensor:
    """The coefficient of P_k: c_k − β ∂c_k/∂log w_k where β log q is in the log-weight."""
    path, slope = coefficients.path, coefficients.theta
    assert path is not None
    draws = [(name, site) for name, site in traces.draws() if traces.is_local(site)]
    is_common = isinstance(traces.scale, Tensor)  # one scale for all sites: divided out
    if path is slope or pair.gradient.inclusive or is_common or not draws:
        return path
    site = draws[0][1]
    exponent = traces.exponent(site)
    different = [name for name, s in draws if not equal_scale(s["scale"], site["scale"])]
    if different or torch.as_tensor(exponent).numel() > 1:
        name = [*different, draws[0][0]][0]
        raise ProgramError(
            f"{pair.label} takes one scale for all draws of the guide; the site '{name}' has "
            "another one"
        )
    return path if same_scale(exponent, 1.0) else slope + exponent * (path - slope)
