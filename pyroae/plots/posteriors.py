"""Contours of q(z|x) beside those of the true posterior, for z of two elements."""

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from pyroae.autoencoder import Autoencoder
from pyroae.errors import ConfigError, DataError
from pyroae.plots.canvas import Target, canvas
from pyroae.plots.drawing import BLUE, INK, plain, to_array
from pyroae.plots.systems import data_to_draw, refuse_programs
from pyroae.posteriors import Point, SoftThreshold, TopK
from pyroae.programs.context import evaluating

SHARES = (0.95, 0.5)
"""The probability inside each contour."""

POINTS = 121
"""The number of points of the lattice along each axis."""


def posterior(
    autoencoder: Autoencoder, x: Tensor, index: int = 0, *, ax: Target | None = None
) -> Figure:
    """Draw contours of q(z|x) and of the true posterior p(z|x) of one datum.

    The contours hold 50 and 95 % of the probability. The true posterior is p(x, z) over a lattice,
    divided by its sum: a mode outside of the lattice, which covers N(0, I) up to 5, is not drawn.

    Args:
        autoencoder: A system with two continuous latent elements and a posterior with a density.
        x: Data, shape `[N, d]` or `[N, *shape]`.
        index: The index of the datum.
        ax: The Axes to draw into; None for a new figure.

    Returns:
        The figure.

    Raises:
        ConfigError: For another latent dimension than 2, discrete z, or a `Point` posterior.
        DataError: If there is no datum of this index.
    """
    refuse_programs(autoencoder)
    _check(autoencoder)
    args = data_to_draw(autoencoder, x)
    if not 0 <= index < len(args[0]):
        raise DataError(f"there is no datum {index}: x has {len(args[0])}")
    with evaluating(autoencoder), torch.no_grad():
        one = tuple(t[index : index + 1] for t in args)
        corner = autoencoder.zeros.new_tensor([5.0, 5.0])
        z, *densities = _lattice(autoencoder, one, -corner, corner)
        z, of_q, of_p = _lattice(autoencoder, one, *_box(z, densities))
    place = canvas(ax, (4.6, 4.4))
    axes = plain(place.panels[0])
    across, up = (to_array(part) for part in z.unflatten(0, (POINTS, POINTS)).unbind(-1))
    for density, colour, style in ((of_p, INK, "--"), (of_q, BLUE, "-")):
        values = to_array(density).reshape(POINTS, POINTS)
        levels = sorted({_level(density, share) for share in SHARES})
        axes.contour(across, up, values, levels=levels, colors=colour, linestyles=style)
    axes.set(title=f"Posterior of datum {index}", xlabel="z[0]", ylabel="z[1]")
    handles = [
        Line2D([], [], color=BLUE, label="q(z|x)"),
        Line2D([], [], color=INK, linestyle="--", label="p(z|x)"),
    ]
    place.legend(handles, "outside lower center", ncols=2)
    return place.figure


def _check(autoencoder: Autoencoder) -> None:
    """Refuse systems without a density over a plane."""
    if autoencoder.layers != (2,):
        raise ConfigError(
            "contours are drawn of a latent space of 2 dimensions; this one has "
            f"{', '.join(map(str, autoencoder.layers))}"
        )
    is_point = isinstance(autoencoder.posterior, Point | SoftThreshold | TopK)
    if is_point or autoencoder.p_z().support.is_discrete:
        raise ConfigError(
            f"contours need a density of z given x; {autoencoder.posterior} has none on the plane"
        )


def _lattice(
    autoencoder: Autoencoder, one: tuple[Tensor, ...], low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The points of a lattice, `[P, 2]`, and the probabilities of q(z|x) and p(z|x), `[P]` each."""
    x, *c = one
    steps = torch.linspace(0, 1, POINTS, dtype=low.dtype, device=low.device)
    z = torch.cartesian_prod(*(a + (b - a) * steps for a, b in zip(low, high, strict=True)))
    log_q = autoencoder.q_z(*one).expand((len(z), 1)).log_prob(z[:, None])[:, 0]
    p_x, values = autoencoder.of_observed(autoencoder.p_x(z, *c), x)
    log_joint = autoencoder.p_z().log_prob(z) + p_x.log_prob(values)
    return z, log_q.softmax(0), log_joint.softmax(0)


def _box(z: Tensor, densities: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The corners of a box that holds nearly all of each density, with a margin."""
    holds = torch.stack([d >= _level(d, 0.999) for d in densities]).any(0)
    low, high = z[holds].amin(0), z[holds].amax(0)
    margin = 0.2 * (high - low).clamp_min(0.5)
    return low - margin, high + margin


def _level(density: Tensor, share: float) -> float:
    """The density above which the points hold a share of the probability."""
    ordered = density.sort(descending=True).values
    above = int((ordered.cumsum(0) < share).sum())
    return ordered[min(above, len(ordered) - 1)].item()
