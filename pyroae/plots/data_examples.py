"""A first look at data: some of the images, or pairs of columns of a table."""

import numpy as np
from matplotlib.figure import Figure

from pyroae.plots.canvas import Target, canvas
from pyroae.plots.drawing import BLUE, draw_grid, is_image, label_colours, limits_of, plain

MOST_COLUMNS, MOST_POINTS = 5, 1000
"""The number of columns of which pairs are drawn, and of data."""


def examples(
    values: np.ndarray,
    shape: tuple[int, ...],
    columns: tuple[str, ...] = (),
    labels: np.ndarray | None = None,
    *,
    ax: Target | None = None,
) -> Figure:
    """Draw the first data: images in a square grid, or a scatter plot for each pair of columns.

    Args:
        values: Data, `[N, d]`.
        shape: The shape of one datum.
        columns: The names of d columns; by default their numbers.
        labels: Labels `[N]`, which colour the points; None for one colour.
        ax: The Axes to draw into; None for a new figure.

    Returns:
        The figure.

    >>> figure = examples(np.random.rand(20, 3), (3,), ("a", "b", "c"))
    >>> len(figure.axes)
    9
    """
    if is_image(shape):
        place = canvas(ax, (3.2, 3.4), dpi=200)
        draw_grid(place.panels[0], values[:64], shape, limits_of(values[:64]))
        return place.figure
    return _pairs(values[:MOST_POINTS], columns, labels, ax)


def _pairs(
    values: np.ndarray,
    columns: tuple[str, ...],
    labels: np.ndarray | None,
    ax: Target | None,
) -> Figure:
    """A panel for each pair of the first columns; histograms on the diagonal."""
    count = min(values.shape[1], MOST_COLUMNS)
    names = columns or tuple(f"x{i}" for i in range(count))
    side = 1.6 * count + 0.6
    place = canvas(ax, (side, side), count, count)
    colours = _colours(labels, len(values))
    for number, axes in enumerate(place.panels):
        row, column = divmod(number, count)
        plain(axes).tick_params(labelsize=6)
        across, up = values[:, column], values[:, row]
        if row == column:
            axes.hist(across[np.isfinite(across)], bins=30, color=BLUE)
        else:
            axes.scatter(across, up, s=4, c=colours, linewidths=0, alpha=0.6)
        if row == count - 1:
            axes.set_xlabel(names[column], fontsize=8)
        if column == 0:
            axes.set_ylabel(names[row], fontsize=8)
    return place.figure


def _colours(labels: np.ndarray | None, count: int) -> list[str]:
    """A colour for each datum."""
    if labels is None:
        return [BLUE] * count
    known, places = np.unique(labels[:count].astype(str), return_inverse=True)
    colours = label_colours(len(known))
    return [colours[place] for place in places]
