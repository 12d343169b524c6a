"""Score terms: the part of a gradient that draws without a path gradient need.

With a draw y ~ q(y; φ) that carries no path gradient, ∂_φ E F = E[∂_φ F + F ∂_φ log q(y)]. A
rejection sampler carries a part of its path gradient; the remaining part is the score of its
acceptance probability.

References:
    Naesseth et al. 2017, Reparameterization Gradients through Acceptance-Rejection Sampling
        Algorithms.
"""

from typing import Any

import torch
from pyro.distributions import Distribution, MaskedMixture
from pyro.distributions.util import broadcast_shape, scale_and_mask, sum_rightmost
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform

from pyroae.programs.paired_traces import Traces, log_density
from pyroae.programs.particles import Stacked
from pyroae.programs.sites import Site, is_discrete, samples
from pyroae.weights import LogWeights


def has_path(distribution: Any) -> bool:
    """Return whether draws carry their whole path gradient.

    Discrete distributions carry none. Rejection samplers carry a part of it: their `has_rsample` is
    True although their path gradient omits the acceptance probability.

    Args:
        distribution: A distribution of Pyro or torch.

    Returns:
        True for a reparameterized distribution that is not a rejection sampler.

    >>> import pyro.distributions as dist
    >>> has_path(dist.Normal(0.0, 1.0)), has_path(dist.Bernoulli(0.5))
    (True, False)
    """
    return bool(distribution.has_rsample) and not _is_rejector(distribution)


def moves_support(distribution: Any) -> bool:
    """Return whether the ends of a distribution's support depend on parameters.

    An example is Uniform(0, φ). The score of such a density does not have mean 0, because
    ∂_φ ∫ q(z; φ) dz = 0 also contains boundary terms.

    Args:
        distribution: A distribution of Pyro or torch.

    Returns:
        Whether an end of the support requires a gradient.

    >>> import pyro.distributions as dist
    >>> moves_support(dist.Uniform(0.0, torch.tensor(2.0, requires_grad=True)))
    True
    """
    if isinstance(distribution, Stacked):
        return any(map(moves_support, distribution.parts))
    if isinstance(distribution, MaskedMixture):
        return moves_support(distribution.component0) or moves_support(distribution.component1)
    if isinstance(distribution, torch.distributions.MixtureSameFamily):
        return moves_support(distribution.component_distribution)
    # Subclasses of TransformedDistribution define their own support.
    if type(distribution).__name__ == "TransformedDistribution":
        base = distribution.base_dist
        return moves_support(base) or (
            bool(_ends(base)) and _moves_ends(_ends(base), distribution.transforms)
        )
    if hasattr(distribution, "base_dist") and not isinstance(
        distribution, torch.distributions.TransformedDistribution
    ):
        return moves_support(distribution.base_dist)
    return any(isinstance(end, Tensor) and end.requires_grad for end in _ends(distribution))


def _ends(distribution: Any) -> list[Tensor | float]:
    """The finite ends of a support that is an interval or a half-line; [] for any other."""
    try:
        support = distribution.support
    except (AttributeError, NotImplementedError):
        return []
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    ends = [getattr(support, end, None) for end in ("lower_bound", "upper_bound")]
    return [] if is_discrete(distribution) else [end for end in ends if end is not None]


def _moves_ends(ends: list[Tensor | float], transforms: list[Any]) -> bool:
    """Whether the parameters of the leading affine transforms move these ends."""
    for transform in transforms:
        if not isinstance(transform, AffineTransform):
            return False
        loc, scale = (
            part if isinstance(part, Tensor) else None for part in (transform.loc, transform.scale)
        )
        at_zero = all(not isinstance(end, Tensor) and end == 0 for end in ends)
        if (loc is not None and loc.requires_grad) or (
            scale is not None and scale.requires_grad and not at_zero
        ):
            return True
        ends = ends if loc is None and transform.loc == 0 else [1.0]
    return False


def score_function(distribution: Any, value: Tensor) -> Tensor | None:
    """Return the term of log q whose derivative multiplies the learning signal.

    Args:
        distribution: A distribution q of Pyro or torch.
        value: A draw of it.

    Returns:
        log q(value) for a distribution without a path gradient; the score part of a rejection
            sampler; both of the batch shape. None where the draws carry their whole path gradient.

    >>> import pyro.distributions as dist
    >>> score_function(dist.Bernoulli(torch.tensor(0.25)), torch.tensor(1.0)).exp()
    tensor(0.2500)
    """
    if isinstance(distribution, Stacked):
        pairs = zip(distribution.parts, distribution.rows(value), strict=True)
        terms = [score_function(part, v) for part, v in pairs]
        scores = [term for term in terms if term is not None]
        return distribution.stacked(scores) if len(scores) == len(terms) else None
    if not distribution.has_rsample:
        return distribution.log_prob(value)
    if not _is_rejector(distribution):
        return None
    if isinstance(distribution, MaskedMixture):
        zeros = value.new_zeros(distribution.batch_shape)
        one, other = (
            score_function(part, value)
            for part in (distribution.component1, distribution.component0)
        )
        return torch.where(
            distribution.mask, zeros if one is None else one, zeros if other is None else other
        )
    if not hasattr(distribution, "base_dist"):
        return distribution.score_parts(value).score_function
    for transform in reversed(getattr(distribution, "transforms", [])):
        value = transform.inv(value)
    base = distribution.base_dist
    inner = sum_rightmost(
        score_function(base, value), len(distribution.event_shape) - len(base.event_shape)
    )
    return inner.expand(broadcast_shape(distribution.batch_shape, inner.shape))


def score_terms(traces: Traces, weights: LogWeights, *, every: bool = False) -> Tensor | None:
    """Return the sum of the score functions of the draws in the data plate.

    Scales and masks are not applied, because the draws do not depend on them.

    Args:
        traces: The traces of guide and model, with K particles.
        weights: The log-weights of the traces.
        every: Include draws with a path gradient, for runs in which the draws were detached.

    Returns:
        The sum per particle and datum, shape `[K, N]`; None where no draw needs a score.
    """
    terms = []
    for name, site in traces.draws():
        if not traces.is_local(site):
            continue
        term = weights.densities[name] if every else _score_of(name, site, weights)
        if term is not None:
            terms.append(traces.summed(site, term))
    return sum(terms[1:], terms[0]) if terms else None


def elbo_scores(traces: Traces, weights: LogWeights) -> Tensor | None:
    """Return the term that makes the ELBO's gradient unbiased for draws without a path gradient.

    The learning signal of a draw is the sum of the terms of log w in its plates. Other data are
    independent of the draw; so are other elements of plates that do not contain it. Leaving them
    out is the partial Rao-Blackwellization of `pyro.infer.Trace_ELBO`.

    Args:
        traces: The traces of guide and model, with K particles.
        weights: The log-weights of the traces.

    Returns:
        The term to add to the ELBO over all data, shape `[]`; None where every draw carries its
            whole path gradient.
    """
    scored = {
        n: (s, term) for n, s in traces.draws() if (term := _score_of(n, s, weights)) is not None
    }
    if not scored:
        return None
    signals = [
        (site, sign * _scaled(site))
        for trace, sign in ((traces.model, 1), (traces.guide, -1))
        for site in samples(trace)
    ]
    terms = []
    for site, term in scored.values():
        signal = sum(_within(site, other, value) for other, value in signals)
        terms.append((signal * term).sum() / traces.num_particles)
    return sum(terms[1:], terms[0]) + score_mean_zero(traces, weights)


def score_mean_zero(traces: Traces, weights: LogWeights) -> Tensor | float:
    """Return the term that removes −c_k s_k, of mean 0 for a bound with constant slopes c_k = 1/K.

    Args:
        traces: The traces of guide and model, with K particles.
        weights: The log-weights of the traces.

    Returns:
        The mean over the particles of log q of all draws without a path gradient, over all data, in
            nats, shape `[]`; 0 where there are none.
    """
    terms = [
        traces.total(site, traces.reduce(site, weights.densities[name]))
        for name, site in traces.draws()
        if not site["fn"].has_rsample
    ]
    return sum(terms[1:], terms[0]) if terms else 0.0


def _scaled(site: Site) -> Tensor:
    """The log-density of a site under its scale and mask, of its batch shape, detached."""
    return scale_and_mask(
        log_density(site["name"], site).detach(), scale=site["scale"], mask=site["mask"]
    )


def _score_of(name: str, site: Site, weights: LogWeights) -> Tensor | None:
    """The score function of a site at its draw; None where the draw carries its whole path."""
    return (
        weights.densities[name]
        if not site["fn"].has_rsample
        else score_function(site["fn"], site["value"])
    )


def _within(site: Site, other: Site, term: Tensor) -> Tensor:
    """The terms of another site, summed over all dimensions but those of shared plates."""
    shared = {
        f.dim for f in site["cond_indep_stack"] if f.vectorized and f in other["cond_indep_stack"]
    }
    summed = [d for d in range(-term.dim(), 0) if d not in shared]
    term = term.sum(summed, keepdim=True) if summed else term
    while term.dim() > len(site["fn"].batch_shape):
        term = term.squeeze(0)
    return term


def _is_rejector(distribution: Any) -> bool:
    """Whether a distribution, or one that it wraps, overrides `score_parts`."""
    if isinstance(distribution, Stacked):
        return _is_rejector(distribution.parts[0])
    if isinstance(distribution, MaskedMixture):
        return _is_rejector(distribution.component0) or _is_rejector(distribution.component1)
    if hasattr(distribution, "base_dist"):
        return _is_rejector(distribution.base_dist)
    return (
        getattr(type(distribution), "score_parts", Distribution.score_parts)
        is not Distribution.score_parts
    )
