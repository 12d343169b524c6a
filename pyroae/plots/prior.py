"""Figures of the prior: lines of equal density, pseudo-inputs of a VampPrior."""

from typing import cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyroae.autoencoder import Autoencoder
from pyroae.distributions import REAL
from pyroae.errors import ConfigError
from pyroae.plots.canvas import Target, canvas
from pyroae.plots.drawing import GREY, draw_grid, limits_of, to_array
from pyroae.plots.systems import refuse_none, refuse_programs
from pyroae.priors import Flat, PseudoInputs, Vamp
from pyroae.programs.context import evaluating

SHARES = (0.99, 0.9, 0.5)
"""The probabilities that the lines of equal density enclose."""
POINTS = 150
"""The points per axis at which the density is evaluated."""


def draw_prior(axes: Axes, autoencoder: Autoencoder) -> None:
    """Draw lines of equal density of p(z) into a panel, behind what is there.

    The lines enclose 50, 90 and 99 % of the probability within the limits of the panel, which stay
    as they are. A flat prior and a discrete one have no lines.

    Args:
        axes: The panel, with z[0] and z[1] as its axes.
        autoencoder: A system with two latent units.
    """
    is_flat = isinstance(autoencoder.prior, Flat)
    if is_flat or autoencoder.prior.support(autoencoder.latent) != REAL:
        return
    limits = axes.get_xlim(), axes.get_ylim()
    across, up = (torch.linspace(*limit, POINTS).to(autoencoder.zeros) for limit in limits)
    with evaluating(autoencoder):
        log_density = autoencoder.p_z().log_prob(torch.cartesian_prod(across, up)).double()
    density = to_array((log_density - log_density.max()).exp())
    ordered = np.sort(density)[::-1]
    enclosed = np.cumsum(ordered) / ordered.sum()
    levels = np.unique([ordered[np.searchsorted(enclosed, share)] for share in SHARES])
    axes.contour(
        to_array(across),
        to_array(up),
        density.reshape(POINTS, POINTS).T,
        levels,
        colors=GREY,
        linewidths=0.8,
        zorder=0,
    )


def pseudo_inputs(autoencoder: Autoencoder, num: int = 64, *, ax: Target | None = None) -> Figure:
    """Draw pseudo-inputs of a VampPrior, those of the largest weights first.

    Args:
        autoencoder: A system with a VampPrior.
        num: The number of pseudo-inputs.
        ax: The Axes to draw into; None for a new figure.

    Returns:
        The figure.

    Raises:
        ConfigError: For a system with another prior.
        DataError: Where `num` is below 1.

    References:
        Tomczak & Welling 2018, VAE with a VampPrior, figure 4.
    """
    refuse_programs(autoencoder)
    if not isinstance(autoencoder.prior, Vamp):
        raise ConfigError(f"pseudo-inputs belong to a VampPrior; this prior is {autoencoder.prior}")
    refuse_none("pseudo-inputs", num)
    pseudo = cast(PseudoInputs, autoencoder.learned_prior)
    with torch.no_grad():
        order = pseudo.logits.argsort(descending=True, stable=True)[:num]
        values = to_array(pseudo()[order])
    place = canvas(ax, (5, 5))
    axes = place.panels[0]
    draw_grid(axes, values, autoencoder.shape, limits_of(values))
    axes.set_title("Pseudo-inputs of the prior")
    return place.figure
