"""Figures of predictive checks: statistics of the data beside those of replicates."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pyroae.errors import DataError
from pyroae.evaluation.predictive_checks import PredictiveCheck
from pyroae.plots.canvas import Target, canvas
from pyroae.plots.drawing import BLUE, INK, RUNS, plain, to_array
from pyroae.plots.systems import refuse_none

KINDS = {
    "prior_predictive": (BLUE, "new data, z ~ p(z)"),
    "posterior_predictive": (RUNS[1], "replicates, z ~ q(z|x): x is used twice"),
}
"""The colour and the label of each kind of check."""


def predictive_check(*checks: PredictiveCheck, ax: Target | None = None) -> Figure:
    """Draw the statistics of the data as lines, and histograms of those of replicates.

    There is a panel per statistic, with the p-values and their Monte-Carlo errors above it.
    Statistics that are the same for the data and all replicates, such as the largest pixel of
    binary images, are left out.

    Args:
        checks: Results of `pyroae.predictive_check` with the same statistics on the same data:
            prior predictive, posterior predictive, or both.
        ax: An Axes for each statistic that varies, or a SubFigure, to draw into; None for a new
            figure.

    Returns:
        The figure.

    Raises:
        DataError: There are no checks, they have different statistics, or no statistic varies.

    >>> import torch
    >>> from pyroae import zoo
    >>> from pyroae.evaluation import predictive_check as check
    >>> system, x = zoo.ppca(4, latent=2), torch.randn(9, 4)
    >>> figure = predictive_check(check(system.model, None, x, num_draws=20, seed=0))
    >>> [axes.get_xlabel() for axes in figure.axes if axes.has_data()]
    ['mean', 'sd', 'spread', 'min', 'max']
    """
    refuse_none("checks", len(checks))
    names = list(checks[0].statistics)
    if any(list(check.statistics) != names for check in checks):
        raise DataError("a figure of several predictive checks needs the same statistics in each")
    names = [n for n in names if not all(check.statistics[n].is_constant for check in checks)]
    refuse_none("statistics that vary", len(names))
    columns = 2 if len(names) == 4 else min(3, len(names))
    rows = math.ceil(len(names) / columns)
    place = canvas(ax, (3.0 * columns, 2.5 * rows + 0.4), rows, columns, count=len(names))
    for axes, name in zip(place.panels, names, strict=True):
        _draw(plain(axes), name, checks)
        axes.locator_params(axis="x", nbins=4)
    handles: list[Patch | Line2D] = [
        Patch(color=KINDS[check.group][0], alpha=0.6, label=KINDS[check.group][1])
        for check in checks
    ]
    handles.append(Line2D([], [], color=INK, linewidth=1.5, label="data"))
    place.legend(handles, "outside lower center", ncols=columns)
    return place.figure


def _draw(axes: Axes, name: str, checks: tuple[PredictiveCheck, ...]) -> None:
    """Histograms of one statistic, and the line of the data."""
    found = [check.statistics[name] for check in checks]
    for check, one in zip(checks, found, strict=True):
        values = to_array(one.draws)
        style: dict[str, Any] = {"color": KINDS[check.group][0], "alpha": 0.6, "density": True}
        axes.hist(values[np.isfinite(values)], bins=15, **style)
    axes.axvline(found[0].observed, color=INK, linewidth=1.5)
    axes.set(xlabel=name, yticks=[])
    axes.spines["left"].set_visible(False)
    for i, (check, one) in enumerate(zip(checks, found, strict=True)):
        text, (colour, _) = f"p = {one.p:.3f} ± {one.p_se:.3f}", KINDS[check.group]
        place: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "fontsize": "small"}
        axes.text(0.5, 1.02 + 0.1 * i, text, color=colour, **place)
