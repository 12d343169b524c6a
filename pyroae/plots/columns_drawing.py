"""Parts of figures of tables: the distribution of a column, and its fit, by the column's kind."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from pyroae.evaluation.site_draws import ColumnKind
from pyroae.plots.drawing import BLUE, GREY, INK, plain

Drawn = Sequence[tuple[np.ndarray, str]]
"""Draws of a column, pooled, each with a colour."""


BINS = 20
"""Bins of real values, and the largest number of counts with a bar of their own."""


def draw_marginal(axes: Axes, kind: ColumnKind, data: np.ndarray, drawn: Drawn) -> None:
    """Draw the distribution of a column in the data and in draws.

    Args:
        axes: The axes to draw on.
        kind: The kind of the column.
        data: Its values, `[N]`; NaN where missing.
        drawn: Draws with their colours.
    """
    data = data[np.isfinite(data)]
    drawn = [(values[np.isfinite(values)], colour) for values, colour in drawn]
    if not data.size:
        axes.text(0.5, 0.5, "all missing", ha="center", transform=axes.transAxes)
        return
    _MARGINALS[kind](plain(axes), data, drawn)


def _histogram(axes: Axes, data: np.ndarray, drawn: Drawn) -> None:
    """Densities of real values, within the range of the data and a quarter of it on each side."""
    edges = np.linspace(*limits(data), BINS + 1).tolist()
    axes.hist(data, edges, density=True, color=GREY)
    for values, colour in drawn:
        heights = np.histogram(values, edges)[0] / max(len(values), 1) / np.diff(edges)
        axes.stairs(heights, edges, color=colour, linewidth=1.3)
    axes.set(yticks=[])


def _rootogram(axes: Axes, data: np.ndarray, drawn: Drawn) -> None:
    """Frequencies of counts on a square-root scale; draws beyond the data are left out."""
    low, high = int(data.min()), int(np.ceil(1.25 * data.max())) + 1
    width = max(1, -(-(high - low + 1) // (2 * BINS)))
    edges = np.arange(low, high + width + 1, width) - 0.5
    middle = edges[:-1] + width / 2
    axes.bar(middle, np.histogram(data, edges)[0] / len(data), 0.85 * width, color=GREY)
    for values, colour in drawn:
        shares = np.histogram(values, edges)[0] / max(len(values), 1)
        axes.plot(middle, shares, ".-", color=colour, linewidth=1, markersize=4)
    axes.set_yscale("function", functions=(_root, np.square))
    axes.set_ylim(bottom=0)
    axes.set(yticks=[])


def _root(values: Any) -> Any:
    return np.sqrt(np.maximum(values, 0))


def _bars(axes: Axes, data: np.ndarray, drawn: Drawn) -> None:
    """Shares of codes, side by side."""
    codes = np.unique(np.concatenate([data, *(values for values, _ in drawn)]))
    groups = [(data, GREY), *drawn]
    width = 0.8 / len(groups)
    for i, (values, colour) in enumerate(groups):
        shares = [(values == code).mean() if values.size else 0.0 for code in codes]
        axes.bar(np.arange(len(codes)) + (i + 0.5) * width - 0.4, shares, width, color=colour)
    _code_ticks(axes, codes)


_MARGINALS = {"continuous": _histogram, "count": _rootogram, "category": _bars}


def draw_fit(axes: Axes, data: np.ndarray, means: np.ndarray) -> None:
    """Draw data against means, the line where they are equal, and R² as the title.

    Args:
        axes: The axes to draw on.
        data: The values of a column, `[N]`; NaN where missing.
        means: The means, `[N]`.
    """
    known = np.isfinite(data) & np.isfinite(means)
    data, means = data[known], means[known]
    plain(axes).scatter(means, data, s=7, c=BLUE, alpha=0.6, linewidths=0)
    if data.size:
        ends = [min(data.min(), means.min()), max(data.max(), means.max())]
        axes.plot(ends, ends, color=INK, linewidth=0.8)
    if data.size and data.std() > 0:
        explained = 1 - np.mean((data - means) ** 2) / data.var()
        axes.set_title(f"R² = {explained:.2f}", fontsize="medium")


def draw_agreement(axes: Axes, data: np.ndarray, replicates: np.ndarray) -> None:
    """Draw, for each code, the share of replicates that have it where the data have it.

    Args:
        axes: The axes to draw on.
        data: The codes of a column, `[N]`; NaN where missing.
        replicates: Draws of them, `[S, N]`.
    """
    codes, counts = np.unique(data[np.isfinite(data)], return_counts=True)
    shares = [(replicates[:, data == code] == code).mean() for code in codes]
    plain(axes).bar(np.arange(len(codes)), shares, 0.7, color=BLUE)
    expected = counts / max(int(counts.sum()), 1)
    axes.scatter(np.arange(len(codes)), expected, s=250, marker="_", color=INK)
    axes.set(ylim=(0, 1))
    _code_ticks(axes, codes)


def limits(data: np.ndarray) -> tuple[float, float]:
    """Return the range of the data with a quarter of it on each side.

    Args:
        data: The values of a column, `[N]`; NaN where missing.

    Returns:
        The lower and the upper limit; 1 apart for a constant.

    >>> limits(np.array([0.0, 4.0]))
    (-1.0, 5.0)
    """
    known = data[np.isfinite(data)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    margin = 0.25 * (high - low) or 0.5
    return low - margin, high + margin


def spread_out(values: np.ndarray, kind: ColumnKind, seed: int = 0) -> np.ndarray:
    """Spread counts and codes out at random, so that points do not hide each other.

    Args:
        values: The values of a column, `[N]`.
        kind: The kind of the column.
        seed: The seed of the noise, which differs between columns.

    Returns:
        The values, `[N]`; those that are not real within 0.3 of themselves, the same in each call.

    >>> spread_out(np.array([0.0, 1.0]), "continuous")
    array([0., 1.])
    """
    if kind == "continuous":
        return values
    return values + np.random.default_rng(seed).uniform(-0.3, 0.3, len(values))


def _code_ticks(axes: Axes, codes: np.ndarray) -> None:
    step = -(-len(codes) // 10)
    places = np.arange(len(codes))[::step]
    axes.set_xticks(places, [f"{code:g}" for code in codes[::step]])
