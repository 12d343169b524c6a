"""Figures of the latent space: posterior means, the learned manifold, KL of units."""

from textwrap import wrap

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn

from pyroae.autoencoder import Autoencoder
from pyroae.autoencoder.hierarchies import site_of
from pyroae.errors import ConfigError, DataError
from pyroae.evaluation.diagnostics import Diagnostics
from pyroae.plots.canvas import Canvas, Target, canvas
from pyroae.plots.drawing import (
    BLUE,
    GREY,
    INK,
    draw_bars,
    draw_grid,
    draw_scatter,
    label_colours,
    limits_of,
    plain,
    to_array,
)
from pyroae.plots.prior import draw_prior
from pyroae.plots.systems import (
    Labels,
    data_to_draw,
    program_arguments,
    refuse_none,
    refuse_programs,
)
from pyroae.priors import Normal
from pyroae.programs.context import evaluating
from pyroae.programs.predictive import encoded
from pyroae.programs.sites import Program
from pyroae.runtime.randomness import fork_random


def latent_scatter(
    autoencoder: nn.Module | tuple[Program, Program],
    x: Tensor | tuple[Tensor, ...],
    labels: Labels | None = None,
    *,
    layer: int = 1,
    label_name: str = "label",
    ax: Target | None = None,
) -> Figure:
    """Draw means of q(z|x): the two units of the largest variance over the data, or a histogram.

    One unit with more than 20 distinct numbers as labels is drawn against these.

    Of an Autoencoder with two latent units, lines of equal density of the prior are drawn too; they
    enclose 50, 90 and 99 % of its probability within the limits of the figure.

    Args:
        autoencoder: An Autoencoder, a module with a model and a guide, or a pair of programs, whose
            means are over 100 draws.
        x: `[N, d]` or `[N, *shape]`; of a program all its arguments.
        labels: `[N]`, by which points are coloured; up to 20 distinct ones have a legend, more a
            colour bar of their ranks.
        layer: The layer of an Autoencoder with several layers of z, from 1 at the data upwards.
        label_name: What the labels are, such as the name of a column, for the colour bar.
        ax: The Axes to draw into; None for a new figure.

    Returns:
        The figure.

    Raises:
        DataError: If the numbers of data and labels differ.
    """
    if isinstance(autoencoder, Autoencoder):
        args = data_to_draw(autoencoder, x)
        with evaluating(autoencoder):
            means = to_array(autoencoder.encode(*args, layer=layer))
    else:
        _, guide, args = program_arguments(autoencoder, x)
        with fork_random(args[0].device, 0):
            means = to_array(encoded(guide, args))
    if labels is not None and len(labels) != len(means):
        raise DataError(f"there are {len(means)} data and {len(labels)} labels")
    names, ranks = np.unique(
        np.zeros(len(means)) if labels is None else np.asarray(labels), return_inverse=True
    )
    colours = label_colours(len(names))
    place = canvas(ax, (5.2, 4.2))
    axes = plain(place.panels[0])
    if means.shape[1] == 1 and len(names) > 20 and names.dtype.kind in "fiu":
        axes.scatter(means[:, 0], names[ranks], s=8, c=BLUE, alpha=0.8, linewidths=0)
        xlabel = f"{site_of(layer)}[0], posterior mean"
        axes.set(title="Latent space", xlabel=xlabel, ylabel=label_name)
        return place.figure
    if means.shape[1] == 1:
        axes.hist(
            [means[ranks == i, 0] for i in range(len(names))], 40, stacked=True, color=colours
        )
        xlabel = f"{site_of(layer)}[0], posterior mean"
        axes.set(title="Latent space", xlabel=xlabel, ylabel="data")
    else:
        draw_scatter(axes, means, np.array(colours)[ranks], site_of(layer))
        if isinstance(autoencoder, Autoencoder) and autoencoder.layers[layer - 1 :] == (2,):
            draw_prior(axes, autoencoder)
    if labels is not None:
        _label_legend(place, names, colours, label_name)
    return place.figure


def _label_legend(place: Canvas, names: np.ndarray, colours: list[str], label_name: str) -> None:
    """Add a legend of the sorted labels; a colour bar of their ranks for more than 20."""
    if len(names) <= 20:
        handles = [
            Patch(color=colour, label=f"{name:.3g}" if isinstance(name, float) else str(name))
            for name, colour in zip(names, colours, strict=True)
        ]
        title = None if label_name == "label" else label_name
        place.legend(handles, "outside right center", handlelength=1, title=title)
        return
    axes = place.panels[0]
    colour_map = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(1, len(names)), "viridis")
    first, last = (
        f"{name:.3g}" if isinstance(name, float) else str(name) for name in (names[0], names[-1])
    )
    axes.figure.colorbar(
        colour_map, ax=axes, label=f"{label_name}, by rank, from {first} to {last}"
    )


def manifold(autoencoder: Autoencoder, num: int = 20, *, ax: Target | None = None) -> Figure:
    """Draw the means of p(x|z) over a plane of z.

    Both axes are quantiles of N(0, 1) from 0.02 to 0.98. z[0] increases to the right, z[1] upwards.

    Args:
        autoencoder: A system with two latent units and a Normal prior. With several layers the
            plane is that of the top layer, and layers below are at their means.
        num: The number of quantiles per axis.
        ax: The Axes to draw into; None for a new figure.

    Returns:
        The figure.

    Raises:
        ConfigError: For another latent dimension than 2, or another prior than Normal.
        DataError: Where `num` is below 1.

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes, figure 4.
    """
    refuse_programs(autoencoder)
    top = len(autoencoder.layers)
    if autoencoder.layers[-1] != 2:
        raise ConfigError(
            f"a manifold is drawn of {site_of(top)} with 2 dimensions; "
            f"this one has {autoencoder.layers[-1]}"
        )
    if not isinstance(autoencoder.prior, Normal):
        raise ConfigError(
            "a manifold is drawn through the quantiles of a Normal prior; "
            f"this prior is {autoencoder.prior}"
        )
    refuse_none("quantiles", num)
    like = next(autoencoder.parameters())
    quantiles = torch.special.ndtri(
        torch.linspace(0.02, 0.98, num, dtype=like.dtype, device=like.device)
    )
    with evaluating(autoencoder):
        points = torch.cartesian_prod(quantiles.flip(0), quantiles).flip(-1)
        values = to_array(autoencoder.decode(points, layer=top))
    place = canvas(ax, (5, 5), dpi=200)
    axes = place.panels[0]
    draw_grid(axes, values, autoencoder.shape, limits_of(values))
    axes.set(
        title="Learned manifold",
        xlabel=f"{site_of(top)}[0], quantiles 0.02 to 0.98 →",
        ylabel=f"{site_of(top)}[1], quantiles 0.02 to 0.98 →",
    )
    return place.figure


def kl_per_unit(diagnostics: Diagnostics, *, ax: Target | None = None) -> Figure:
    """Draw KL(q ‖ p) of each latent unit, in nats, as sorted bars; inactive units are grey.

    The title has the total correlation, where the units are dependent under q(z|x). Where no unit
    has a KL (flows and Delta guides), the title says why, and the bars are the activities
    Var_x(E_q[z_j|x]), with their threshold as a line.

    Args:
        diagnostics: The result of `diagnose`.
        ax: The Axes to draw into; None for a new figure.

    Returns:
        The figure.
    """
    kl, activity, threshold = (
        to_array(diagnostics.kl_per_unit),
        to_array(diagnostics.activity),
        diagnostics.threshold,
    )
    place = canvas(ax, (min(10.0, 4.4 + 0.16 * len(kl)), 3.6))
    axes = plain(place.panels[0])
    axes.set_title(
        "\n".join([f"{diagnostics.active_units} of {len(kl)} units active", *_notes(diagnostics)])
    )
    if np.isnan(kl).all():
        draw_bars(axes, activity, activity > threshold)
        axes.axhline(threshold, color=INK, linewidth=1, linestyle="--")
        axes.set(yscale="log", ylabel="variance of the posterior mean\n(no KL by unit)")
        axes.set_ylim(min([threshold, *activity[activity > 0]]) / 2)
    else:
        draw_bars(axes, kl, activity > threshold)
        axes.set_ylabel("KL(q ‖ p), nats")
    names = {BLUE: f"variance of the posterior mean > {threshold:g}", GREY: "inactive"}
    handles = [Patch(color=colour, label=name) for colour, name in names.items()]
    place.legend(handles, "outside lower center", ncols=2)
    return place.figure


def _notes(diagnostics: Diagnostics) -> list[str]:
    """Why units have no KL, and the total correlation, as lines of a title."""
    lines = [wrap(f"No KL: {reason}", 60) for reason in diagnostics.undefined]
    correlation = diagnostics.total_correlation
    if correlation is not None and correlation > 0:
        lines.append([f"total correlation {correlation:.3g} nats"])
    return [line for part in lines for line in part]
