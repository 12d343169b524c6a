"""Figures of tables: how well each column is reconstructed."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from pyroae.autoencoder import Autoencoder
from pyroae.errors import ConfigError
from pyroae.plots.canvas import Target, canvas
from pyroae.plots.drawing import BLUE, is_image, to_array
from pyroae.plots.systems import data_to_draw, refuse_programs
from pyroae.programs.context import evaluating

MOST = 100
"""The largest number of columns that have bars of their own."""


def column_errors(
    autoencoder: Autoencoder,
    x: Tensor | tuple[Tensor, ...],
    names: Sequence[str] | None = None,
    *,
    ax: Target | None = None,
) -> Figure:
    """Draw the reconstruction error of each column of a table, relative to that of a constant.

        error_j = √(Σ_n (x_nj − x̂_nj)² / Σ_n (x_nj − x̄_j)²)

    For a column of codes the error is the share of wrong codes, over that of the most frequent
    code. Below 1 the latent features tell something about the column. The second panel has the
    observed mean of each column against the mean of the reconstructions, without codes.

    Args:
        autoencoder: The system.
        x: Data, `[N, d]`.
        names: The names of the d columns; their numbers by default.
        ax: Two Axes, or a SubFigure, to draw into; None for a new figure.

    Returns:
        The figure, with two panels.

    Raises:
        ConfigError: For a system that is no Autoencoder, for images, and for more than 100 columns.
        DataError: Where there are no data.

    >>> import torch
    >>> figure = column_errors(Autoencoder(4, latent=2), torch.eye(4))
    >>> len(figure.axes), len(figure.axes[0].patches)
    (2, 4)
    """
    refuse_programs(autoencoder)
    if is_image(autoencoder.shape) or autoencoder.features > MOST:
        raise ConfigError(
            f"a figure of the errors of columns is of tables of at most {MOST} columns, not of "
            f"data of shape {autoencoder.shape}"
        )
    args = data_to_draw(autoencoder, x)
    with evaluating(autoencoder):
        found = autoencoder.reconstruct(*args)
    codes = to_array(autoencoder.likelihood.codes(autoencoder.features)).astype(bool)
    means = to_array(found)
    data = np.where(np.isnan(to_array(args[0])), means, to_array(args[0]))
    place = canvas(ax, (8.4, 3.4), 1, 2)
    bars, points = place.panels
    labels = [str(j) for j in range(data.shape[1])] if names is None else list(names)
    is_crowded = sum(map(len, labels)) > 40 or len(labels) > 12
    bars.bar(range(data.shape[1]), _relative(data, means, codes), color=BLUE)
    bars.set_xticks(range(data.shape[1]), labels, rotation=90 if is_crowded else 0)
    bars.axhline(1.0, color="black", linewidth=0.8)
    bars.set(title="Error, relative to a constant", xlabel="column")
    ends = _ends(data[:, ~codes].mean(0), means[:, ~codes].mean(0))
    points.plot(ends, ends, color="black", linewidth=0.8)
    points.scatter(data[:, ~codes].mean(0), means[:, ~codes].mean(0), color=BLUE, s=14)
    points.set(title="Means of the columns", xlabel="observed", ylabel="reconstructed")
    return place.figure


def _relative(data: np.ndarray, found: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The error of each column over that of its mean, or of its most frequent code, `[d]`."""
    errors = []
    for values, guesses, is_code in zip(data.T, found.T, codes, strict=True):
        if is_code:
            kinds, counts = np.unique(values, return_counts=True)
            own = np.mean(values != guesses)
            constant = np.mean(values != kinds[counts.argmax()])
        else:
            own = np.sqrt(np.mean((values - guesses) ** 2))
            constant = values.std()
        errors.append(own / constant if constant > 0 else np.nan)
    return np.array(errors)


def _ends(*values: np.ndarray) -> list[float]:
    """The smallest and the largest of all values."""
    joined = np.concatenate([*values, np.zeros(1)])
    return [float(joined.min()), float(joined.max())]
