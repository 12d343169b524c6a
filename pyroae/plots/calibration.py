"""Figures of a calibration: p-values of true latents, shift and spread of q, coverage."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyroae.errors import DataError
from pyroae.evaluation.calibration.results import CALIBRATED, TOO_FEW, Calibration, Quantity
from pyroae.plots.canvas import Target, canvas
from pyroae.plots.drawing import BLUE, GREY, INK, RUNS, plain

NAMED = 6
"""The largest number of quantities that have a colour of their own."""


BINS = 20
"""Bars of a histogram of p-values."""


def calibration_summary(found: Calibration, *, ax: Target | None = None) -> Figure:
    """Draw the calibration of all quantities in three panels.

    1. F(p) − p, where F is the empirical distribution of the p-values, with the band that holds
       the whole curve of a calibrated quantity with probability .95.
    2. Shift and spread: the mean and the standard deviation of Φ⁻¹(p), with 95 % intervals. Above
       the line at 1 q is too narrow, below it too wide.
    3. The coverage of central intervals less their probability, with pointwise 95 % limits.

    Quantities that are not calibrated have colours, the others are grey.

    Args:
        found: The calibration.
        ax: Three Axes or a SubFigure to draw into; None for a new figure.

    Returns:
        The figure.

    Raises:
        DataError: Where no quantity has enough simulations.

    References:
        Säilynoja, Bürkner and Vehtari (2022), Graphical test for discrete uniformity and its
        applications in goodness-of-fit evaluation and multiple sample comparison, for the band.
    """
    tested = _tested(found)
    place = canvas(ax, (11.4, 3.6), 1, 3)
    ecdf, moments, covered = map(plain, place.panels)
    styles = _styles(found, tested)
    _bands(ecdf, covered, found.settings.num_simulations)
    for quantity, p in tested:
        colour, order = styles[quantity.name]
        line: dict[str, Any] = {
            "color": colour,
            "linewidth": 1.2,
            "zorder": order,
            "drawstyle": "steps-post",
        }
        at = np.sort(p)
        share = np.arange(1, len(p) + 1) / len(p)
        ecdf.plot([0, *at, 1], [0, *(share - at), 0], **line)
        widths = np.sort(2 * np.abs(p - 0.5))
        covered.plot([0, *widths, 1], [0, *(share - widths), 0], **line)
        shift, spread = quantity.shift, quantity.spread
        moments.errorbar(
            [shift.value],
            [spread.value],
            xerr=[[shift.value - shift.low], [shift.high - shift.value]],
            yerr=[[spread.value - spread.low], [spread.high - spread.value]],
            fmt="o",
            markersize=3,
            elinewidth=0.8,
            color=colour,
            zorder=order,
        )
    moments.axhline(1, color=INK, linewidth=0.8, linestyle="--")
    moments.axvline(0, color=INK, linewidth=0.8, linestyle="--")
    ecdf.set(title="p-values of the truth", xlabel="p", ylabel="F(p) − p")
    moments.set(title="Shift and spread", xlabel="mean of Φ⁻¹(p)", ylabel="sd of Φ⁻¹(p)")
    covered.set(title="Coverage", xlabel="probability of the interval", ylabel="coverage − it")
    for name, (colour, _) in styles.items():
        if colour != GREY:
            ecdf.plot([], [], color=colour, label=name)
    if any(colour != GREY for colour, _ in styles.values()):
        ecdf.legend(frameon=False, fontsize="x-small")
    return place.figure


def calibration_histograms(found: Calibration, num: int = 6, *, ax: Target | None = None) -> Figure:
    """Draw histograms of the p-values of the quantities that are calibrated worst.

    A flat histogram is that of a calibrated q, ∪ of a q that is too narrow, ∩ of one that is too
    wide; more mass on the right means that q lies too low. Each bar of a calibrated quantity lies
    between the dashed lines with probability .95.

    Args:
        found: The calibration.
        num: The largest number of quantities.
        ax: As many Axes as quantities are shown, or a SubFigure; None for a new figure.

    Returns:
        The figure.

    Raises:
        DataError: Where no quantity has enough simulations.
    """
    from scipy.stats import binom

    worst = sorted(_tested(found), key=lambda pair: _least(pair[0]))[:num]
    columns = min(3, len(worst))
    rows = -(-len(worst) // columns)
    place = canvas(ax, (3.4 * columns, 2.5 * rows), rows, columns, count=len(worst))
    for axes, (quantity, p) in zip(map(plain, place.panels), worst, strict=True):
        axes.hist(p, np.linspace(0, 1, BINS + 1).tolist(), color=BLUE)
        for limit in binom.ppf([0.025, 0.975], len(p), 1 / BINS):
            axes.axhline(limit, color=INK, linewidth=0.8, linestyle="--")
        axes.set_title(f"{quantity.name}: {quantity.verdict}", fontsize="small")
        axes.set(xlabel="p", ylabel="simulations", xlim=(0, 1))
    return place.figure


def _tested(found: Calibration) -> list[tuple[Quantity, np.ndarray]]:
    """Quantities with enough simulations, and their p-values without NaN."""
    columns = found.p_values.numpy().T
    pairs = [
        (quantity, p[~np.isnan(p)])
        for quantity, p in zip(found.quantities, columns, strict=True)
        if quantity.verdict != TOO_FEW
    ]
    if not pairs:
        raise DataError("no latent has enough simulations: there is no calibration to draw")
    return pairs


def _least(quantity: Quantity) -> float:
    return min(vars(quantity.tests).values())


def _styles(
    found: Calibration, tested: Sequence[tuple[Quantity, np.ndarray]]
) -> dict[str, tuple[str, int]]:
    """Colour and height of each quantity; those that are worst have a colour of their own."""
    wrong = [q for q, _ in tested if q.verdict != CALIBRATED]
    worst = [q.name for q in sorted(wrong, key=_least)[:NAMED]]
    styles = {quantity.name: (GREY, 1) for quantity in found.quantities}
    return styles | {name: (RUNS[i], 2) for i, name in enumerate(worst)}


def _bands(ecdf: Axes, covered: Axes, count: int) -> None:
    """The simultaneous band of an empirical distribution, and pointwise limits of a coverage."""
    from scipy.stats import binom

    at, low, high = _simultaneous(count)
    ecdf.fill_between(at, low - at, high - at, color="#E8E8E8", zorder=0, linewidth=0)
    points = np.linspace(0, 1, 101)
    low, high = (binom.ppf(q, count, points) / count - points for q in (0.025, 0.975))
    covered.fill_between(points, low, high, color="#E8E8E8", zorder=0, linewidth=0)
    for axes in (ecdf, covered):
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xlim(0, 1)


@cache
def _simultaneous(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, and the 95 % band of the empirical distribution of `count` uniform values there."""
    from arviz_stats.ecdf_utils import ecdf_pit

    uniform = (np.arange(count) + 0.5) / count  # the band does not depend on the values
    at, _, low, high = ecdf_pit(uniform, 0.95, 1000)
    return at, low, high
