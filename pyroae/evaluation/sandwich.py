"""Bounds and estimates of the mean log p(x) side by side, from the results of evaluations."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pyroae.evaluation.importance.streams import Z
from pyroae.evaluation.results import Result, by_name, settings_in, shown


@dataclass(frozen=True)
class Side:
    """A result that is a bound or an estimate of log p(x).

    Attributes:
        label: Its label; K stands for the number of particles.
        sign: −1 for a result that estimates −log p(x), 1 for one that estimates log p(x).
    """

    label: str
    sign: int = -1


SIDES = {
    "nelbo": Side("ELBO"),
    "nll_50": Side("IWAE, K = 50"),
    "nll": Side("IWAE, K = {K}"),
    "nll_jackknife": Side("jackknife"),
    "nll_psis": Side("PSIS"),
    "nll_local": Side("IS, local proposal"),
    "nll_ais": Side("AIS"),
    "nll_exact": Side("exact"),
    "nll_quadrature": Side("quadrature"),
    "eubo": Side("EUBO, upper", 1),
    "cubo": Side("CUBO, upper", 1),
}
"""The sides of the sandwich by the names of results, from the loosest lower bound up.

A label with the word "upper" is that of an upper bound.
"""


SINGLE = ("nelbo", "nll_50")
"""Sides of which one is shown, that with the most draws."""


def sandwich_of(rows: Iterable[Result]) -> dict[str, tuple[float, float]]:
    """Collect the bounds and estimates of the mean log p(x), from the loosest up.

    Intervals contain the Monte-Carlo error only. One upper bound comes from simulated data: the
    BDMC gap of annealing on them is added to the estimate of annealing with the same settings on
    the data. EUBO and CUBO have the number of flagged data in their label; where the evaluation
    with the most draws flags most data there is no such bound.

    Args:
        rows: Results of one part of the data with the same weights, of one or several evaluations.

    Returns:
        By label, the estimate and half the width of its 95 % interval, in nats per datum; the
        latter is nan if there is none. A second method of a kind has its settings in its label.

    >>> rows = [Result("nelbo", 95.0, 1.0, 10, 100, 0.1, "guide", 0.1)]
    >>> sandwich_of([*rows, Result("nll_exact", 92.0, 1.0, 10, 0, 0.1, "exact")])
    {'ELBO': (-95.0, 0.195...), 'exact': (-92.0, nan)}
    """
    rows, bounds = shown(rows), {}
    for name, side in SIDES.items():
        several = [row for row in rows if row.name == name and math.isfinite(row.estimate)]
        if name in SINGLE:
            several = list(by_name(several).values())
        for row in several:
            flags = _flags(row, rows)
            if flags is not None and flags.num_particles > row.num_particles:
                continue  # more draws do not report this bound
            half = Z * row.monte_carlo_se
            count = "" if flags is None or not flags.estimate else f", {flags.estimate:.0f} flagged"
            label = _label(row, side, len(several)) + count
            bounds[label] = (side.sign * row.estimate, half)
    return bounds | _annealed_upper(rows)


def _label(row: Result, side: Side, count: int) -> str:
    """The label of a side; with the proposal if it is not the guide, or where there are several."""
    if row.name in SINGLE:
        return side.label
    label = side.label.replace("{K}", f"{row.num_particles:,}")
    settings = settings_in(row.method)
    if row.method.startswith("is"):
        if settings in ("guide", ""):
            return label
        label = label.replace("IWAE", "IS")
        return f"{label}, {settings}"
    return f"{label}, {settings}" if count > 1 and settings else label


def _flags(row: Result, rows: Iterable[Result]) -> Result | None:
    """The number of flagged data of a bound from above; None for other results."""
    wanted = (f"{row.name}_flagged", row.method)
    return next((one for one in rows if (one.name, one.method) == wanted), None)


def _annealed_upper(rows: Iterable[Result]) -> dict[str, tuple[float, float]]:
    """The estimate of annealing plus the BDMC gap of annealing with the same settings."""
    rows, bounds = list(rows), {}
    gaps = {settings_in(r.method): r for r in rows if r.name == "bdmc_gap"}
    annealed = [r for r in rows if r.name == "nll_ais" and settings_in(r.method) in gaps]
    for row in annealed:
        settings = settings_in(row.method)
        gap = gaps[settings]
        half = Z * math.hypot(row.monte_carlo_se, gap.se)
        label = "AIS + BDMC gap, upper" + (f", {settings}" if len(annealed) > 1 else "")
        bounds[label] = (gap.estimate - row.estimate, half)
    return bounds
