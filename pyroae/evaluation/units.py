"""Densities of standardized data in the units of their source."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pyroae.autoencoder import Autoencoder
from pyroae.data.dataset import Dataset
from pyroae.evaluation.annealing.estimates import AISEstimate
from pyroae.evaluation.importance.above import UpperBound
from pyroae.evaluation.importance.likelihood import LikelihoodEstimate

if TYPE_CHECKING:
    from pyroae.evaluation.summary import Evaluation

BELOW = (
    *("nll", "nll_jackknife", "nll_psis", "nll_ais", "nll_exact", "nll_quadrature", "nll_local"),
    *("nelbo", "distortion", "distortion_ais"),
)
"""Figures that contain −log p(x) or −log p(x|z)."""


ABOVE = ("eubo", "cubo", "bdmc_lower", "bdmc_upper")
"""Figures that are log p(x)."""


def sign_of(name: str) -> int:
    """Return the sign with which the unit of the data enters a figure.

    Args:
        name: The name of a result.

    Returns:
        1 for a negative log-density, −1 for a log-density, 0 for a figure without unit: rates,
        gaps, counts, and squared errors, which are of the values as they are.

    >>> [sign_of(name) for name in ("nll", "eubo", "rate")]
    [1, -1, 0]
    """
    return 1 if name in BELOW else -int(name in ABOVE)


def log_units_of(system: nn.Module, part: Any, count: int | None = None) -> Tensor | None:
    """Return what is subtracted from log p(x) for densities in the units of the source.

    Args:
        system: The system.
        part: Data.
        count: How many of them, the first ones; None for all.

    Returns:
        The constant of each datum, `[N]`, nats; None where values are not standardized, and for a
        program, which may have densities of other things than x.
    """
    if not isinstance(system, Autoencoder) or not isinstance(part, Dataset):
        return None
    return None if part.log_units is None else part.log_units[:count]


def in_units(found: "Evaluation", log_units: Tensor | None) -> "Evaluation":
    """Convert the estimates of an evaluation of standardized data.

        log p(x stored) = log p(x standardized) − log_units

    Rates, gaps and information do not depend on the unit. The rows of `results` are those that
    the evaluation has converted.

    Args:
        found: The evaluation, with log-densities of standardized values.
        log_units: The constant of each datum, `[N]`, nats; None leaves all as it is.

    Returns:
        The evaluation with log-densities in the units of the source.
    """
    if log_units is None:
        return found
    units, parts = log_units, found.diagnostics
    converted = replace(
        found,
        log_units=units,
        diagnostics=replace(parts, distortion=parts.distortion.double().cpu() + units),
    )
    if found.likelihood is not None:
        converted = replace(converted, likelihood=sampled_in_units(found.likelihood, units))
    if found.annealed is not None:
        converted = replace(converted, annealed=_annealed(found.annealed, units))
    if (both := found.bidirectional) is not None:
        both = replace(
            both,
            forward=_annealed(both.forward, units),
            upper=both.upper - units,
            reverse_log_weights=both.reverse_log_weights + units,
        )
        converted = replace(converted, bidirectional=both)
    if found.exact is not None:
        converted = replace(converted, exact=found.exact.cpu() - units)
    if (by := found.quadrature) is not None:
        converted = replace(converted, quadrature=replace(by, log_px=by.log_px.cpu() - units))
    if (gaps := found.gaps) is not None:
        elbo, log_px = (
            replace(one, values=one.values.double().cpu() - units)
            for one in (gaps.elbo, gaps.log_px)
        )
        converted = replace(converted, gaps=replace(gaps, elbo=elbo, log_px=log_px))
    return converted


def sampled_in_units(estimate: LikelihoodEstimate, log_units: Tensor) -> LikelihoodEstimate:
    """Convert estimates of importance sampling for standardized data.

    Args:
        estimate: The estimates, of standardized values.
        log_units: The constant of each datum, `[N]`, nats.

    Returns:
        The estimates in the units of the source; errors and diagnostics are the same.
    """
    smoothed, curve = estimate.smoothed, estimate.curve
    return replace(
        estimate,
        log_px=estimate.log_px - log_units,
        interval=estimate.interval - log_units,
        jackknife=estimate.jackknife - log_units,
        smoothed=replace(
            smoothed, log_px=smoothed.log_px - log_units, interval=smoothed.interval - log_units
        ),
        curve=replace(curve, bound=curve.bound - log_units.mean()),
        eubo=_upper(estimate.eubo, log_units),
        cubo=_upper(estimate.cubo, log_units),
    )


def _upper(bound: UpperBound, units: Tensor) -> UpperBound:
    return replace(bound, values=bound.values - units, interval=bound.interval - units)


def _annealed(estimate: AISEstimate, units: Tensor) -> AISEstimate:
    """Log-weights of the chains, and the distortion along the path, in other units."""
    curve = estimate.rate_distortion
    if curve is not None:
        curve = replace(
            curve,
            distortion=curve.distortion + units,
            distortion_interval=curve.distortion_interval + units,
        )
    return replace(
        estimate,
        log_px=estimate.log_px - units,
        log_weights=estimate.log_weights - units,
        rate_distortion=curve,
    )
