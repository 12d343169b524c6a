"""Figures of data that are no images: columns, pairs of columns and sequences, beside draws."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pyroae.errors import DataError
from pyroae.evaluation.site_draws import PredictiveDraws
from pyroae.plots.canvas import Canvas, Target, canvas
from pyroae.plots.columns_drawing import draw_agreement, draw_fit, draw_marginal, limits, spread_out
from pyroae.plots.drawing import BLUE, GREY, INK, RUNS, plain, to_array

MOST_COLUMNS, MOST_PAIRED = 12, 4
"""The largest numbers of columns of marginal distributions, and of pairs."""
NEW, AGAIN = (BLUE, "new data, z ~ p(z)"), (RUNS[1], "replicates, z ~ q(z|x)")
"""The colour and the label of both kinds of draws."""


def marginals(
    draws: PredictiveDraws,
    columns: Sequence[int] | None = None,
    *,
    names: Sequence[str] | None = None,
    ax: Target | None = None,
) -> Figure:
    """Draw the distribution of each column in the data, in replicates and in new data.

    Real values have histograms; counts a rootogram, the frequencies of the data as bars and those
    of the draws as lines, on a square-root scale; categories the shares of their codes.

    Args:
        draws: One entry of what `pyroae.predictive_draws` returns.
        columns: Which columns; by default all, or of more than 12 those with the largest `misfit`.
        names: The names of the d columns; by default their site and number.
        ax: An Axes for each column, or a SubFigure, to draw into; None for a new figure.

    Returns:
        The figure, with one panel per column.

    Raises:
        DataError: For a column that does not exist, or another number of names.

    References:
        Kleiber & Zeileis 2016, Visualizing Count Data Regressions Using Rootograms.

    >>> import pyroae, torch
    >>> system = pyroae.zoo.ppca(4, latent=2)
    >>> draws = pyroae.predictive_draws(system.model, system.guide, torch.randn(9, 4), seed=0)
    >>> [axes.get_xlabel() for axes in marginals(draws["x"]).axes]
    ['x[0]', 'x[1]', 'x[2]', 'x[3]']
    """
    chosen, labels = _chosen(draws, columns, MOST_COLUMNS), _labels(draws, names)
    place = _grid(len(chosen), ax)
    for axes, j in zip(place.panels, chosen, strict=True):
        draw_marginal(axes, draws.kinds[j], to_array(draws.data[:, j]), _drawn(draws, j))
        axes.set(xlabel=labels[j])
    _legend(place, draws)
    return place.figure


def pairs(
    draws: PredictiveDraws,
    columns: Sequence[int] | None = None,
    *,
    names: Sequence[str] | None = None,
    ax: Target | None = None,
) -> Figure:
    """Draw pairs of columns: the data, below the diagonal with replicates, above with new data.

    The diagonal has the distribution of each column. Counts and codes are spread out at random.
    Draws that are further outside the range of the data than a quarter of it are left out.

    Args:
        draws: One entry of what `pyroae.predictive_draws` returns.
        columns: Which k columns; by default all, or of more than 4 those with the largest `misfit`.
        names: The names of the d columns; by default their site and number.
        ax: k² Axes, row by row, or a SubFigure, to draw into; None for a new figure.

    Returns:
        The figure, with k² panels.

    Raises:
        DataError: For less than two columns, one that does not exist, or another number of names.

    >>> import pyroae, torch
    >>> system = pyroae.zoo.ppca(4, latent=2)
    >>> draws = pyroae.predictive_draws(system.model, system.guide, torch.randn(9, 4), seed=0)
    >>> len(pairs(draws["x"], columns=(0, 3)).axes)
    4
    """
    chosen, labels = _chosen(draws, columns, MOST_PAIRED), _labels(draws, names)
    count = len(chosen)
    if count < 2:
        raise DataError(f"pairs are of two columns or more; '{draws.site}' has {count} to draw")
    place = canvas(ax, (2.1 * count, 2.0 * count + 0.5), count, count)
    for axes, (row, column) in zip(place.panels, np.ndindex(count, count), strict=True):
        i, j = chosen[row], chosen[column]
        if i == j:
            draw_marginal(axes, draws.kinds[i], to_array(draws.data[:, i]), _drawn(draws, i))
        else:
            _draw_pair(axes, draws, i, j, is_upper=row < column)
        axes.set(xlabel=labels[j] if row == count - 1 else "")
        axes.set(ylabel=labels[i] if column == 0 else "")
    _legend(place, draws)
    return place.figure


def fitted(
    draws: PredictiveDraws,
    columns: Sequence[int] | None = None,
    *,
    names: Sequence[str] | None = None,
    ax: Target | None = None,
) -> Figure:
    """Draw the data of each column against the mean of p(x|z) at z ~ q(z|x).

    The title is R², the share of the variance that the means explain. For codes there is, for each
    code, the share of replicates that have the code of the datum, beside that of the code in all
    data.

    Args:
        draws: One entry of what `pyroae.predictive_draws` returns.
        columns: Which columns; by default all, or of more than 12 those with the largest `misfit`.
        names: The names of the d columns; by default their site and number.
        ax: An Axes for each column, or a SubFigure, to draw into; None for a new figure.

    Returns:
        The figure, with one panel per column.

    Raises:
        DataError: For a column that does not exist, or another number of names.

    >>> import pyroae, torch
    >>> system = pyroae.zoo.ppca(4, latent=2)
    >>> draws = pyroae.predictive_draws(system.model, system.guide, torch.randn(9, 4), seed=0)
    >>> fitted(draws["x"]).axes[0].get_xlabel()
    'mean of x[0]'
    """
    chosen, labels = _chosen(draws, columns, MOST_COLUMNS), _labels(draws, names)
    place = _grid(len(chosen), ax)
    for axes, j in zip(place.panels, chosen, strict=True):
        data = to_array(draws.data[:, j])
        if draws.kinds[j] == "category":
            draw_agreement(axes, data, to_array(draws.replicates[:, :, j]))
            axes.set(xlabel=labels[j], ylabel="share of its replicates")
        else:
            draw_fit(axes, data, to_array(draws.means[:, j]))
            axes.set(xlabel=f"mean of {labels[j]}", ylabel="data")
    if any(draws.kinds[j] == "category" for j in chosen):
        base = Line2D([], [], color=INK, marker="_", linestyle="", label="share in all data")
        place.legend([base], "outside lower center")
    return place.figure


def sequences(draws: PredictiveDraws, num: int = 6, *, ax: Target | None = None) -> Figure:
    """Draw sequences: the data as points, the mean of p(x|z), and 90 % of the replicates.

    Of a datum `[T, F]` the first three of the F values are drawn, each in its colour.

    Args:
        draws: One entry of what `pyroae.predictive_draws` returns.
        num: The number of data, equally spaced in the data set.
        ax: An Axes for each datum, or a SubFigure, to draw into; None for a new figure.

    Returns:
        The figure, with one panel per datum.

    Raises:
        DataError: For no data, or data of one element.

    >>> import pyroae, torch
    >>> system = pyroae.zoo.ppca(4, latent=2)
    >>> draws = pyroae.predictive_draws(system.model, system.guide, torch.randn(9, 4), seed=0)
    >>> len(sequences(draws["x"], num=2).axes)
    2
    """
    if min(num, len(draws.data)) < 1 or not draws.shape:
        raise DataError(f"sequences are data of two elements or more; '{draws.site}' has none")
    rows = np.linspace(0, len(draws.data) - 1, min(num, len(draws.data))).round().astype(int)
    place = _grid(len(rows), ax, sharey=True)
    for axes, row in zip(place.panels, rows, strict=True):
        _draw_curves(axes, draws, int(row))
        axes.set_title(f"datum {row}", fontsize="medium")
    for axes in place.panels:
        axes.set(xlabel="position", ylabel=draws.site)
    place.hide_inner_labels()
    place.share_y()
    handles = [
        Line2D([], [], color=INK, marker=".", linestyle="", label="data"),
        Line2D([], [], color=BLUE, label="mean of p(x|z)"),
        Patch(color=BLUE, alpha=0.2, linewidth=0, label="90 % of replicates, z ~ q(z|x)"),
    ]
    place.legend(handles, "outside lower center", ncols=3)
    return place.figure


def _draw_curves(axes: Axes, draws: PredictiveDraws, row: int) -> None:
    """One datum, `[T]` or `[T, F]`, with its band."""
    length = draws.shape[0]
    steps = np.arange(length)
    values, means = (to_array(t[row]).reshape(length, -1) for t in (draws.data, draws.means))
    again = to_array(draws.replicates[:, row]).reshape(-1, length, values.shape[1])
    low, high = np.quantile(again, (0.05, 0.95), axis=0)
    several = values.shape[1] > 1
    for f in range(min(3, values.shape[1])):
        colour = RUNS[f] if several else BLUE
        plain(axes).fill_between(steps, low[:, f], high[:, f], color=colour, alpha=0.2, linewidth=0)
        if np.isfinite(means[:, f]).any():
            axes.plot(steps, means[:, f], color=colour, linewidth=1.2)
        dots = colour if several else INK
        axes.plot(steps, values[:, f], ".", color=dots, markersize=4)


def _draw_pair(axes: Axes, draws: PredictiveDraws, i: int, j: int, *, is_upper: bool) -> None:
    """Column j across and column i up: one draw of each datum, below the data."""
    drawn, (colour, _) = (draws.new, NEW) if is_upper else (draws.replicates, AGAIN)
    for values, shade, size, alpha in (
        (None if drawn is None else drawn[0], colour, 9, 0.45),
        (draws.data, INK, 5, 0.7),
    ):
        if values is not None:
            across, up = (spread_out(to_array(values[:, k]), draws.kinds[k], k) for k in (j, i))
            plain(axes).scatter(across, up, size, shade, alpha=alpha, linewidths=0)
    axes.set(xlim=limits(to_array(draws.data[:, j])), ylim=limits(to_array(draws.data[:, i])))


def _drawn(draws: PredictiveDraws, j: int) -> list[tuple[np.ndarray, str]]:
    """All draws of a column with their colours; where the data are missing, replicates too."""
    known = draws.data[:, j].isfinite()
    found = [(to_array(draws.replicates[:, known, j]).ravel(), AGAIN[0])]
    if draws.new is not None:
        found.append((to_array(draws.new[:, :, j]).ravel(), NEW[0]))
    return found


def _chosen(draws: PredictiveDraws, columns: Sequence[int] | None, most: int) -> list[int]:
    """The columns to be drawn: those that are asked for, or those with the largest misfit."""
    size = draws.data.shape[1]
    if columns is not None:
        bad = [j for j in columns if not 0 <= j < size]
        if bad or not len(columns):
            raise DataError(f"the columns of '{draws.site}' are 0 to {size - 1}, not {columns}")
        return list(columns)
    if size <= most:
        return list(range(size))
    return sorted(draws.misfit.argsort(descending=True)[:most].tolist())


def _labels(draws: PredictiveDraws, names: Sequence[str] | None) -> list[str]:
    size = draws.data.shape[1]
    if names is None:
        return [draws.site] if size == 1 else [f"{draws.site}[{j}]" for j in range(size)]
    if len(names) != size:
        raise DataError(f"'{draws.site}' has {size} columns, and {len(names)} names are given")
    return list(names)


def _grid(count: int, ax: Target | None, **grid: Any) -> Canvas:
    """Panels side by side, at most four in a row."""
    columns = count if count < 4 else 3 if count in (5, 6, 9) else 4
    rows = math.ceil(count / columns)
    width = max(2.4 * columns, 4.2)
    return canvas(ax, (width, 2.2 * rows + 0.4), rows, columns, count=count, **grid)


def _legend(place: Canvas, draws: PredictiveDraws) -> None:
    handles: list[Any] = [Patch(color=GREY, label="data")]
    kinds = [AGAIN, NEW] if draws.new is not None else [AGAIN]
    handles += [Line2D([], [], color=colour, linewidth=2, label=name) for colour, name in kinds]
    place.legend(handles, "outside lower center", ncols=len(handles))
