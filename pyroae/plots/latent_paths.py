"""Pictures along paths in the latent space: between two data, and along one unit at a time."""

from collections.abc import Sequence
from typing import cast

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyroae.autoencoder import Autoencoder
from pyroae.autoencoder.hierarchies import site_of
from pyroae.autoencoder.semi_supervised import M2
from pyroae.distributions import BINARY, REAL, states_of
from pyroae.errors import ConfigError, DataError
from pyroae.evaluation.diagnostics import Diagnostics, diagnose
from pyroae.plots.canvas import Target, canvas
from pyroae.plots.drawing import draw_grid, limits_of, to_array
from pyroae.plots.systems import data_to_draw, refuse_none
from pyroae.priors import Categorical, Flat, Normal
from pyroae.programs.context import evaluating
from pyroae.runtime.randomness import fork_random

MOST_UNITS = 10
"""The largest number of units that are drawn by default."""
NUM_DATA = 500
"""The number of data by which units are sorted, and whose codes give a range."""
NUM_DRAWS = 4000
"""The number of draws of a prior without closed form whose quantiles give a range."""
TAILS = (0.01, 0.99)
"""The quantiles between which a unit moves where its prior is not N(0, 1)."""


def interpolation(
    autoencoder: Autoencoder,
    x_a: Tensor | tuple[Tensor, ...],
    x_b: Tensor | tuple[Tensor, ...],
    num: int = 9,
    *,
    spherical: bool = False,
    layer: int = 1,
    ax: Target | None = None,
) -> Figure:
    """Draw pairs of data and, between them, what is decoded between their posterior means.

        linear:    z(t) = (1 − t) z_a + t z_b
        spherical: z(t) = [sin((1 − t)ω) z_a + sin(tω) z_b] / sin ω,   cos ω = z_aᵀz_b / ‖z_a‖‖z_b‖

    There is a row per pair. Under N(0, I) of many dimensions nearly all z have a norm of about √m,
    which the linear path leaves and the spherical one keeps. Of discrete z the units that differ
    are switched one after the other. Conditions change linearly.

    Args:
        autoencoder: The system.
        x_a: The first datum of each pair, `[P, d]` or `[P, *shape]`; of a conditional system
            (x, c). M2 without c takes the class that it finds.
        x_b: The second datum of each pair, likewise.
        num: The number of points along a path, both ends included.
        spherical: Whether the path is spherical.
        layer: The layer of z, from 1 at the data upwards.
        ax: The Axes to draw into; None for a new figure.

    Returns:
        The figure.

    Raises:
        DataError: There are no data, unequal numbers of them, or fewer than two points.
        ConfigError: The system is no Autoencoder, has no such layer, or a spherical path is asked
            for discrete z.

    References:
        White 2016, Sampling Generative Networks, for spherical interpolation.

    >>> x = (torch.arange(256).reshape(4, 64) % 3 == 0).float()
    >>> figure = interpolation(Autoencoder((8, 8), latent=2), x[:2], x[2:], num=3)
    >>> figure.axes[0].images[0].get_array().shape  # two rows of five images of 8 pixels
    (17, 44)
    """
    a, b = data_to_draw(autoencoder, x_a), data_to_draw(autoencoder, x_b)
    if len(a[0]) != len(b[0]):
        raise DataError(f"pairs need equally many data, not {len(a[0])} and {len(b[0])}")
    if num < 2:
        raise DataError(f"a path has at least its two ends, not {num} points")
    with evaluating(autoencoder):
        (z_a, c_a), (z_b, c_b) = (_code(autoencoder, args, layer) for args in (a, b))
        states = _states(autoencoder)
        if states is not None:
            if spherical:
                raise ConfigError(f"there is no spherical path of {autoencoder.prior} z")
            z = switched(_rounded(z_a, states), _rounded(z_b, states), num, states)
        else:
            z = (slerp if spherical else lerp)(z_a, z_b, num)
        c = None if c_a is None or c_b is None else lerp(c_a, c_b, num)
        decoded = autoencoder.decode(z, c, layer=layer)
    rows = torch.cat([a[0].unsqueeze(1), decoded, b[0].unsqueeze(1)], 1)
    ticks = ["data", *(f"{t:.2g}" for t in torch.linspace(0, 1, num).tolist()), "data"]
    figure, axes = _draw(rows, autoencoder.shape, ticks, ax)
    kind = "Switching units" if states else "Spherical path" if spherical else "Linear path"
    axes.set_title(f"{kind} of {site_of(layer)} between data", fontsize="medium")
    return figure


def traversals(
    autoencoder: Autoencoder,
    x: Tensor | tuple[Tensor, ...],
    units: Sequence[int] | None = None,
    num: int = 9,
    *,
    layer: int = 1,
    ax: Target | None = None,
) -> Figure:
    """Draw what is decoded where one unit of z moves and the others stay at the first datum's mean.

    There is a row per unit. A unit under N(0, 1) moves within ±3; under another prior, between its
    quantiles 0.01 and 0.99; under a Flat prior, and in a layer below the top, between those of the
    codes of the data. A discrete unit takes all its states.

    Args:
        autoencoder: The system.
        x: Data, `[N, d]` or `[N, *shape]`; of a conditional system (x, c).
        units: The units, from 0, in the order of the rows; None for the 10 with the largest KL on
            these data. A unit of categorical z is a variable.
        num: The number of values of a continuous unit.
        layer: The layer of z, from 1 at the data upwards.
        ax: The Axes to draw into; None for a new figure.

    Returns:
        The figure.

    Raises:
        DataError: There are no data, no units or no values.
        ConfigError: The system is no Autoencoder, or has no such layer or unit.

    References:
        Higgins et al. 2017, β-VAE, for traversals of units.

    >>> x = (torch.arange(256).reshape(4, 64) % 3 == 0).float()
    >>> figure = traversals(Autoencoder((8, 8), latent=2), x, num=5)
    >>> figure.axes[0].images[0].get_array().shape  # two units, five values
    (17, 44)
    """
    args = data_to_draw(autoencoder, x, NUM_DATA)
    refuse_none("values of a unit", num)
    with evaluating(autoencoder):
        codes, c = _code(autoencoder, args, layer)
        states = _states(autoencoder)
        by_kl = units is None
        if units is None:
            found = diagnose(autoencoder.model, autoencoder.guide, args, seed=0)
            units = units_by_kl(found, site_of(layer))[:MOST_UNITS]
        _check_units(units, codes.shape[1] // (states or 1))
        if states is None:
            grid, ticks, words = _grid(autoencoder, codes, num, layer)
            z = _moved(codes[0], grid, units)
        else:
            z, words = _flipped(_rounded(codes[:1], states)[0], states, units), "all states"
            ticks = [str(state) for state in range(z.shape[1])]
        decoded = autoencoder.decode(z, None if c is None else c[0], layer=layer)
    figure, axes = _draw(decoded, autoencoder.shape, ticks, ax, [str(unit) for unit in units])
    axes.set_ylabel(f"unit of {site_of(layer)}" + (", the largest KL first" if by_kl else ""))
    axes.set_title(f"One unit at a time\n{words}", fontsize="medium")
    return figure


def units_by_kl(diagnostics: Diagnostics, site: str = "z") -> list[int]:
    """Sort the units of a site by KL, the largest first; by activity where they have no KL.

    Args:
        diagnostics: The result of `diagnose`.
        site: The name of the site.

    Returns:
        The units of the site, counted from 0.
    """
    mask = torch.tensor([name == site for name in diagnostics.site])
    kl, activity = diagnostics.kl_per_unit[mask], diagnostics.activity[mask]
    values = activity if kl.isnan().any() else kl
    return values.argsort(descending=True, stable=True).tolist()


def lerp(a: Tensor, b: Tensor, num: int) -> Tensor:
    """Return points on the line between two points.

    Args:
        a: The first points, shape `[P, m]`.
        b: The second points, shape `[P, m]`.
        num: T, the number of points on each line, both ends included.

    Returns:
        Points, shape `[P, T, m]`.

    >>> lerp(torch.zeros(1, 1), torch.ones(1, 1), 3).flatten()
    tensor([0.0000, 0.5000, 1.0000])
    """
    t = torch.linspace(0, 1, num, dtype=a.dtype, device=a.device).unsqueeze(-1)
    return (1 - t) * a.unsqueeze(1) + t * b.unsqueeze(1)


def slerp(a: Tensor, b: Tensor, num: int) -> Tensor:
    """Return points on the arc between two points, seen from the origin.

    Args:
        a: The first points, shape `[P, m]`.
        b: The second points, shape `[P, m]`.
        num: T, the number of points on each arc, both ends included.

    Returns:
        Points, shape `[P, T, m]`; on the line where the points lie on one line with the origin.

    References:
        Shoemake 1985, Animating rotation with quaternion curves.

    >>> slerp(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), 3).norm(dim=-1)
    tensor([[2.0000, 2.0000, 2.0000]])
    """
    a, b = a.unsqueeze(1), b.unsqueeze(1)
    angle = nn.functional.cosine_similarity(a, b, -1).clamp(-1, 1).acos().unsqueeze(-1)
    t = torch.linspace(0, 1, num, dtype=a.dtype, device=a.device).unsqueeze(-1)
    sine = angle.sin()
    flat = sine < 1e-4
    sine = torch.where(flat, torch.ones_like(sine), sine)
    one = torch.where(flat, 1 - t, ((1 - t) * angle).sin() / sine)
    other = torch.where(flat, t, (t * angle).sin() / sine)
    return one * a + other * b


def switched(a: Tensor, b: Tensor, num: int, states: int) -> Tensor:
    """Return discrete points between two points: units that differ are switched in their order.

    Args:
        a: The first points, shape `[P, m]`.
        b: The second points, shape `[P, m]`.
        num: T, the number of points, both ends included.
        states: C, the number of neighbouring elements that are switched together.

    Returns:
        Points, shape `[P, T, m]`.

    >>> switched(torch.zeros(1, 2), torch.ones(1, 2), 3, 1).int().tolist()
    [[[0, 0], [1, 0], [1, 1]]]
    """
    differs = (a != b).unflatten(-1, (-1, states)).any(-1)
    rank, total = differs.cumsum(-1), differs.sum(-1, keepdim=True)
    t = torch.linspace(0, 1, num, device=a.device).unsqueeze(-1)
    done = rank.unsqueeze(1) <= (t * total.unsqueeze(1)).round()
    return torch.where(done.repeat_interleave(states, -1), b.unsqueeze(1), a.unsqueeze(1))


def _code(
    system: Autoencoder, args: tuple[Tensor, ...], layer: int
) -> tuple[Tensor, Tensor | None]:
    """Posterior means `[N, m]` and conditions `[N, C]`, which M2 finds where there are none."""
    if isinstance(system, M2):
        given = args[1] if len(args) > 1 else system.zeros.new_zeros(len(args[0]), system.condition)
        found = nn.functional.one_hot(system.classify(args[0]), system.condition).to(given)
        args = (args[0], torch.where(given.sum(-1, keepdim=True) > 0, given, found))
    return system.encode(*args, layer=layer), args[1] if len(args) > 1 else None


def _states(system: Autoencoder) -> int | None:
    """The number of elements of a discrete unit: 1 if it is binary; None for real z."""
    support = system.prior.support(system.layers[-1])
    if support == REAL:
        return None
    return (
        1
        if support == BINARY
        else states_of(system.latent, cast(Categorical, system.prior).categories)
    )


def _rounded(means: Tensor, states: int) -> Tensor:
    """The most probable states of discrete units, `[N, m]`."""
    if states == 1:
        return (means > 0.5).to(means.dtype)
    place = means.unflatten(-1, (-1, states)).argmax(-1)
    return nn.functional.one_hot(place, states).flatten(-2).to(means.dtype)


def _grid(
    system: Autoencoder, codes: Tensor, num: int, layer: int
) -> tuple[Tensor, list[str], str]:
    """Values of each unit `[T, m]`, their ticks, and what they are in words."""
    t = torch.linspace(0, 1, num, dtype=codes.dtype, device=codes.device).unsqueeze(-1)
    is_top = layer == len(system.layers)
    if is_top and isinstance(system.prior, Normal):
        values = 6 * t - 3
        ticks = [f"{value:.2g}" for value in values.flatten().tolist()]
        return values.expand(-1, codes.shape[1]), ticks, "±3 standard deviations of the prior"
    source = "codes"
    if is_top and not isinstance(system.prior, Flat):
        with fork_random(codes.device, 0):
            codes, source = system.p_z().sample((NUM_DRAWS,)), "prior"
    low, high = codes.quantile(torch.tensor(TAILS, dtype=codes.dtype, device=codes.device), 0)
    return low + t * (high - low), [], f"quantiles 0.01 to 0.99 of the {source}"


def _moved(code: Tensor, grid: Tensor, units: Sequence[int]) -> Tensor:
    """The code with each unit at each value, `[U, T, m]`."""
    z = code.repeat(len(units), len(grid), 1)
    for row, unit in enumerate(units):
        z[row, :, unit] = grid[:, unit]
    return z


def _flipped(code: Tensor, states: int, units: Sequence[int]) -> Tensor:
    """The code with each unit in each of its states, `[U, S, m]`."""
    values = torch.eye(states) if states > 1 else torch.tensor([[0.0], [1.0]])
    z = code.repeat(len(units), len(values), 1)
    for row, unit in enumerate(units):
        z[row, :, unit * states : (unit + 1) * states] = values.to(z)
    return z


def _check_units(units: Sequence[int], count: int) -> None:
    """Refuse units that a layer does not have."""
    refuse_none("units", len(units))
    bad = [unit for unit in units if unit not in range(count)]
    if bad:
        raise ConfigError(f"there is no unit {bad[0]} of z; there are 0 to {count - 1}")


def _draw(
    rows: Tensor,
    shape: tuple[int, ...],
    ticks: Sequence[str],
    ax: Target | None,
    names: Sequence[str] = (),
) -> tuple[Figure, Axes]:
    """A grid of data `[R, T, d]`, with ticks above the columns and names beside the rows."""
    count, columns = rows.shape[:2]
    values = to_array(rows.flatten(0, 1))
    place = canvas(ax, (max(3.2, 0.5 * columns + 0.6), 0.5 * count + 0.6), dpi=200)
    axes = place.panels[0]
    draw_grid(axes, values, shape, limits_of(values), columns=columns)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    across = [left + (i + 0.5) * (right - left) / columns for i in range(len(ticks))]
    down = [top + (i + 0.5) * (bottom - top) / count for i in range(len(names))]
    axes.set_xticks(across, ticks, fontsize="small")
    axes.set_yticks(down, names, fontsize="small")
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    return place.figure, axes
