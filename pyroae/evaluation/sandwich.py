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
    the data. EUBO and CUBO have the number of flagged data in their label; they are left out where
    most data are flagged, by the evaluation with the most draws.

    Args:
        rows: Results of one part of the data with the same weights, of one or several evaluations.

    Returns:
        By label, the estimate and half the width of its 95 % interval, in nats per datum; the
        latter is nan if there is none. A second method of a kind has its settings in its label.

    >>> rows = [Result("nelbo", 95.0, 1.0, 10, 100, 0.1, "guide", 0.1)]
    >>> sandwich_of([*rows, Result("nll_exact", 92.0, 1.0, 10, 0, 0.1, "exact")])
    {'ELBO': (-95.0, 0.195...), 'exact': (-92.0, nan)}
    """
    every, bounds = list(rows), {}
    rows = shown(every)
    for name, side in SIDES.items():
        several = [row for row in rows if row.name == name and math.isfinite(row.estimate)]
        several = [row for row in several if not _is_withdrawn(row, rows)]
        if name in SINGLE:
            several = list(by_name(several).values())
        for row in several:
            half = Z * row.monte_carlo_se
            label = _label(row, side, len(several)) + _flagged(row, rows)
            bounds[label] = (side.sign * row.estimate, half)
    return bounds | _annealed_upper(every)


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


def _flags(row: Result, rows: Iterable[Result]) -> list[Result]:
    """The number of flagged data of a bound from above, of its method and the most draws."""
    name = f"{row.name}_flagged"
    return [one for one in rows if (one.name, one.method) == (name, row.method)]


def _is_withdrawn(row: Result, rows: Iterable[Result]) -> bool:
    """Whether more draws flag most data, so that they have no such bound."""
    return any(one.num_particles > row.num_particles for one in _flags(row, rows))


def _flagged(row: Result, rows: Iterable[Result]) -> str:
    count = int(sum(one.estimate for one in _flags(row, rows)))
    return f", {count} flagged" if count else ""


def _annealed_upper(rows: list[Result]) -> dict[str, tuple[float, float]]:
    """The estimate of annealing plus the BDMC gap of annealing with the same path and chains."""
    gaps = {_annealing(row): row for row in rows if row.name == "bdmc_gap"}
    annealed = shown(r for r in rows if r.name == "nll_ais" and _annealing(r) in gaps)
    bounds = {}
    for row in annealed:
        gap = gaps[_annealing(row)]
        half = Z * math.hypot(row.monte_carlo_se, gap.se)
        label = "AIS + BDMC gap, upper"
        label += f", {settings_in(row.method)}" if len(annealed) > 1 else ""
        bounds[label] = (gap.estimate - row.estimate, half)
    return bounds


def _annealing(row: Result) -> tuple[str, int]:
    return settings_in(row.method), row.num_particles
