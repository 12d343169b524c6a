"""Examples of data, as images or as curves."""

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from pyroae.errors import DataError
from pyroae.plots.canvas import Target, canvas
from pyroae.plots.drawing import draw_grid, is_image, limits_of, to_array

COLUMNS = 10
"""Data in a row."""


def examples(
    x: Tensor, shape: tuple[int, ...], num: int = 2 * COLUMNS, *, ax: Target | None = None
) -> Figure:
    """Draw the first data in rows of ten: as images, otherwise as curves over the features.

    Missing values are drawn as 0.

    Args:
        x: Data, `[N, d]` or `[N, *shape]`.
        shape: The shape of one datum.
        num: The number of data, at most N.
        ax: The Axes to draw into; None for a new figure.

    Returns:
        The figure.

    Raises:
        DataError: Where there are no data.

    >>> import torch
    >>> figure = examples(torch.rand(30, 64), (8, 8))
    >>> figure.axes[0].images[0].get_array().shape  # two rows of 8 pixels and a gap
    (17, 89)
    """
    if not len(x):
        raise DataError("there are no data to draw")
    values = np.nan_to_num(to_array(x[:num]).reshape(min(num, len(x)), -1))
    rows = -(-len(values) // COLUMNS)
    aspect = 1.0
    if is_image(shape):
        height, width = shape[:2] if shape[-1] in (1, 3, 4) else shape[-2:]
        aspect = height / width
    place = canvas(ax, (6.4, 0.64 * aspect * rows + 0.1), dpi=150)
    draw_grid(place.panels[0], values, shape, limits_of(values), columns=COLUMNS)
    return place.figure
