"""Examples of data: images, curves, or pairs of columns of a table."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from pyroae.errors import DataError
from pyroae.plots.canvas import Target, canvas
from pyroae.plots.drawing import (
    BLUE,
    WIDE,
    draw_grid,
    is_image,
    label_colours,
    limits_of,
    plain,
    to_array,
)

PER_ROW = 10
"""Images or curves in a row."""


MOST_COLUMNS, MOST_POINTS, MOST_LABELS = 5, 1000, 20
"""The largest numbers of columns of which pairs are drawn, of points, and of labels of a legend."""


def examples(
    x: Tensor,
    shape: tuple[int, ...],
    num: int = 2 * PER_ROW,
    *,
    columns: Sequence[str] = (),
    labels: Sequence[Any] | np.ndarray | None = None,
    ax: Target | None = None,
) -> Figure:
    """Draw the first data: images in rows of ten, pairs of columns of a table, or curves.

    Of a table of at most 40 columns, the first five have a panel for each pair, with up to 1000
    data as points, and histograms on the diagonal. In images and curves, missing values are 0.

    Args:
        x: Data, `[N, d]` or `[N, *shape]`.
        shape: The shape of one datum.
        num: The number of images or curves, at most N.
        columns: The names of the d columns of a table; empty for curves.
        labels: `[N]`, by which the points of a table are coloured; None for one colour.
        ax: The Axes to draw into, k² of a table with k columns; None for a new figure.

    Returns:
        The figure.

    Raises:
        DataError: Where there are no data.

    >>> import torch
    >>> figure = examples(torch.rand(30, 64), (8, 8))
    >>> figure.axes[0].images[0].get_array().shape  # two rows of 8 pixels and a gap
    (17, 89)
    >>> len(examples(torch.rand(30, 3), (3,), columns=("a", "b", "c")).axes)
    9
    """
    if not len(x):
        raise DataError("there are no data to draw")
    if 0 < len(columns) <= WIDE and not is_image(shape):
        return _pairs(to_array(x[:MOST_POINTS]), columns, labels, ax)
    values = np.nan_to_num(to_array(x[:num]).reshape(min(num, len(x)), -1))
    rows = -(-len(values) // PER_ROW)
    aspect = 1.0
    if is_image(shape):
        height, width = shape[:2] if shape[-1] in (1, 3, 4) else shape[-2:]
        aspect = height / width
    place = canvas(ax, (6.4, 0.64 * aspect * rows + 0.1), dpi=150)
    draw_grid(place.panels[0], values, shape, limits_of(values), columns=PER_ROW)
    return place.figure


def _pairs(
    values: np.ndarray, columns: Sequence[str], labels: Any | None, ax: Target | None
) -> Figure:
    """A panel for each pair of the first columns; histograms on the diagonal."""
    count = min(values.shape[1], MOST_COLUMNS)
    side = 1.6 * count + 0.6
    place = canvas(ax, (side, side), count, count)
    colours, names = _colours(labels, len(values))
    for number, axes in enumerate(place.panels):
        row, column = divmod(number, count)
        plain(axes).tick_params(labelsize=6)
        across, up = values[:, column], values[:, row]
        if row == column:
            axes.hist(across[np.isfinite(across)], bins=30, color=BLUE)
        else:
            axes.scatter(across, up, s=4, c=colours, linewidths=0, alpha=0.6)
        if row == count - 1:
            axes.set_xlabel(columns[column], fontsize=8)
        if column == 0:
            axes.set_ylabel(columns[row], fontsize=8)
    if 0 < len(names) <= MOST_LABELS:
        handles = [Patch(color=colour, label=name) for name, colour in names.items()]
        place.legend(handles, "outside right center", fontsize=8, handlelength=1)
    return place.figure


def _colours(labels: Any | None, count: int) -> tuple[list[str], dict[str, str]]:
    """The colour of each datum, and that of each label."""
    if labels is None:
        return [BLUE] * count, {}
    given = np.asarray(labels)[:count]
    known, places = np.unique(
        given if given.dtype.kind in "biuf" else given.astype(str), return_inverse=True
    )
    colours = label_colours(len(known))
    return [colours[i] for i in places], dict(zip(map(str, known), colours, strict=True))
