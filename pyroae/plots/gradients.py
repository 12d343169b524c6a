"""Figure of the gradient laboratory: signal-to-noise ratio, variance and cost of estimators."""

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from pyroae.errors import DataError
from pyroae.evaluation.gradient_lab.slopes import SNRCurve
from pyroae.plots.canvas import Target, canvas
from pyroae.plots.drawing import GREY, RUNS, plain

MARKERS = "osD^vP*X"
"""Markers of the estimators, in addition to their colours."""


NAMES = {"θ": "θ, model", "φ": "φ, guide", "shared": "shared by both"}
"""Titles of the groups of parameters."""


def gradient_curves(
    curves: Mapping[str, Mapping[str, SNRCurve]], *, ax: Target | None = None
) -> Figure:
    """Draw the signal-to-noise ratio, variance and cost of gradient estimators.

    Each group of parameters has a column with three panels: SNR against K with 95 % intervals,
    variance against K, and SNR against the time of one gradient. All axes are logarithmic. Lines
    become thinner and markers smaller from one estimator to the next, so that curves that coincide
    remain visible. The grey line is the estimate of an SNR of 0, about 0.8 / √R with R replicates:
    values near it are noise.

    Args:
        curves: Results of `measure_slopes`, by objective and group.
        ax: Three Axes per group, row by row, or a SubFigure to draw into; None for a new figure.

    Returns:
        The figure.

    Raises:
        DataError: Where there are no curves.

    >>> import torch
    >>> from pyroae import measure_slopes, zoo
    >>> from pyroae.objectives.named import iwae
    >>> system, x = zoo.ppca(4, latent=2), torch.zeros(3, 4)
    >>> parameters = dict(system.named_parameters())
    >>> settings = {"ks": (1, 4), "parameters": parameters, "replicates": 20}
    >>> curves = measure_slopes(system.model, system.guide, x, {"iwae": iwae}, **settings)
    >>> len(gradient_curves(curves).axes)
    3
    """
    groups = [] if not curves else list(next(iter(curves.values())))
    if not groups:
        raise DataError("there are no curves to draw")
    size = (0.5 + 3.2 * len(groups), 7.4)
    place = canvas(ax, size, 3, len(groups), sharey="row", sharex="row")
    panels = place.panels.reshape(3, len(groups))
    styles = {name: _style(i, len(curves)) for i, name in enumerate(curves)}
    every = [
        (one.replicates, one.snr)
        for of in curves.values()
        for c in of.values()
        for one in c.statistics
    ]
    floor = 0.8 / math.sqrt(min(replicates for replicates, _ in every))
    for (ratios, variances, costs), group in zip(panels.T, groups, strict=True):
        shown = {name: of_group[group] for name, of_group in curves.items()}
        count = len(next(iter(shown.values())).statistics[0].mean)
        ratios.set_title(f"{NAMES.get(group, group)}: {count:,} parameters", fontsize="medium")
        _draw_ratios(ratios, shown, styles)
        _draw_variances(variances, shown, styles)
        _draw_costs(costs, shown, styles)
        for axes in (ratios, costs):
            axes.axhline(floor, color=GREY, linewidth=1, linestyle="--", zorder=0)
    lowest = min([floor, *(ratio for _, ratio in every if ratio > 0)])
    for line in (panels[0], panels[2]):
        line[0].set_ylabel("signal-to-noise ratio")
        for axes in line:
            axes.set_ylim(bottom=0.7 * lowest)  # the lower ends of intervals may be cut off
    panels[1][0].set_ylabel("variance, mean")
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    handles.append(
        Line2D([], [], color=GREY, linewidth=1, linestyle="--", label="estimate of a ratio of 0")
    )
    place.legend(handles, "outside lower center", ncols=3, fontsize="small")
    return place.figure


def _draw_ratios(
    axes: Axes, curves: Mapping[str, SNRCurve], styles: Mapping[str, dict[str, Any]]
) -> None:
    for name, curve in curves.items():
        low, high = zip(*curve.intervals, strict=True)
        axes.fill_between(curve.ks, low, high, color=styles[name]["color"], alpha=0.2, linewidth=0)
        axes.plot(curve.ks, curve.snr, **styles[name])
    _over_k(axes, curves)


def _draw_variances(
    axes: Axes, curves: Mapping[str, SNRCurve], styles: Mapping[str, dict[str, Any]]
) -> None:
    for name, curve in curves.items():
        means = [statistics.variance.mean().item() for statistics in curve.statistics]
        positive = [mean or math.nan for mean in means]  # the axis is logarithmic
        axes.plot(curve.ks, positive, **styles[name])
    _over_k(axes, curves)


def _draw_costs(
    axes: Axes, curves: Mapping[str, SNRCurve], styles: Mapping[str, dict[str, Any]]
) -> None:
    for name, curve in curves.items():
        axes.plot([1000 * one.seconds for one in curve.statistics], curve.snr, **styles[name])
    plain(axes).set(xscale="log", yscale="log", xlabel="milliseconds per gradient")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _over_k(axes: Axes, curves: Mapping[str, SNRCurve]) -> None:
    plain(axes).set(xscale="log", yscale="log", xlabel="K, particles")
    ks = sorted({k for curve in curves.values() for k in curve.ks})
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.xaxis.set_minor_locator(NullLocator())


def _style(i: int, count: int) -> dict[str, Any]:
    """Line and markers of estimator `i` of `count`."""
    rest = (count - 1 - i) / max(count - 1, 1)
    return {
        "color": RUNS[i % len(RUNS)],
        "linestyle": "-" if i < len(RUNS) else "--",
        "linewidth": 1 + 1.8 * rest,
        "marker": MARKERS[i % len(MARKERS)],
        "markersize": 3.5 + 4.5 * rest,
        "markerfacecolor": "white" if i < count - 1 else RUNS[i % len(RUNS)],
    }
