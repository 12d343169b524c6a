"""Samples of a conditional system, one row per class."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from pyroae.autoencoder import Autoencoder
from pyroae.errors import ConfigError
from pyroae.plots.canvas import Target, canvas
from pyroae.plots.drawing import draw_grid, limits_of, to_array
from pyroae.plots.systems import refuse_none, refuse_programs
from pyroae.programs.context import evaluating
from pyroae.runtime.randomness import fork_random


def class_samples(
    autoencoder: Autoencoder,
    classes: Sequence[str],
    columns: int = 10,
    seed: int = 0,
    *,
    ax: Target | None = None,
) -> Figure:
    """Draw means of p(x|z, c), with a row for each class c and a column for each draw of z.

    All rows have the same draws of z, so that a column shows what z keeps between classes.

    Args:
        autoencoder: A system that is conditioned on one-hot labels.
        classes: The class of each element of c.
        columns: The number of draws of z.
        seed: Seed of the draws.
        ax: The Axes to draw into; None for a new figure.

    Returns:
        The figure.

    Raises:
        ConfigError: If the system has no condition of that size.
        DataError: If `columns` is below 1.
        UndefinedLikelihoodError: Under a Flat prior, which cannot be sampled.

    References:
        Kingma, Mohamed, Rezende and Welling (2014), Semi-supervised learning with deep generative
        models, figure 1.

    >>> figure = class_samples(Autoencoder((8, 8), latent=2, condition=3), "abc", columns=4)
    >>> figure.axes[0].images[0].get_array().shape  # three rows of four images of 8 pixels
    (26, 35)
    """
    refuse_programs(autoencoder)
    refuse_none("samples", columns)
    if not autoencoder.condition or autoencoder.condition != len(classes):
        raise ConfigError(
            f"samples by class need a system that is conditioned on {len(classes)} classes; this "
            f"one has a condition of size {autoencoder.condition}"
        )
    zeros, rows = autoencoder.zeros, len(classes)
    one_hot = torch.eye(rows, dtype=zeros.dtype, device=zeros.device)
    with evaluating(autoencoder), fork_random(zeros.device, seed), torch.no_grad():
        z = autoencoder.draws_of_z(columns)
        means = autoencoder.p_x(z.repeat(rows, 1), one_hot.repeat_interleave(columns, 0)).mean
    values = to_array(means)
    place = canvas(ax, (0.5 * columns + 0.6, 0.5 * rows + 0.5), dpi=200)
    axes = place.panels[0]
    draw_grid(axes, values, autoencoder.shape, limits_of(values), columns=columns)
    bottom, top = axes.get_ylim()
    centres = [top + (row + 0.5) * (bottom - top) / rows for row in range(rows)]
    axes.set_yticks(centres, [str(name) for name in classes])
    axes.tick_params(length=0)
    axes.set_title("Samples by class")
    return place.figure
