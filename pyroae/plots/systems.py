"""Figures of systems: training curves, reconstructions, samples.

Each function returns a matplotlib `Figure`, which `figure.savefig(path)` writes: a new one, or that
of the Axes that are given as `ax=`. Figures are made without pyplot: no window is opened, and no
settings or list of open figures are changed. Data are drawn as images where the shape of the system
is (height, width), with 1 or 3 channels first or last; otherwise as curves over the features.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor, nn

from pyroae.autoencoder import Autoencoder
from pyroae.corruptions import Identity
from pyroae.errors import ConfigError, DataError
from pyroae.plots.canvas import Target, canvas
from pyroae.plots.drawing import (
    RUNS,
    draw_curves,
    draw_datum,
    draw_grid,
    is_image,
    limits_of,
    to_array,
)
from pyroae.programs.arguments import Arguments
from pyroae.programs.context import evaluating
from pyroae.programs.pair import System, like_parameters
from pyroae.programs.predictive import predicted
from pyroae.programs.sites import Program
from pyroae.runtime.randomness import fork_random
from pyroae.training.state import Epoch

Labels = Sequence[Any] | np.ndarray | Tensor


def training_curves(
    histories: Mapping[str, Sequence[Epoch]] | Sequence[Epoch], *, ax: Target | None = None
) -> Figure:
    """Draw the negative bound against epochs, in nats per datum.

    A second panel shows rate and distortion of the validation data, where they were recorded.

    Args:
        histories: Epochs of one run, or of several runs by name, each with its own colour.
        ax: One or two Axes, or a SubFigure, to draw into; None for a new figure.

    Returns:
        The figure, with one or two panels.

    Raises:
        DataError: For a run without epochs.
    """
    runs = histories if isinstance(histories, Mapping) else {"": histories}
    for count in [len(runs), *map(len, runs.values())]:
        refuse_none("epochs", count)
    panels = [("Negative bound", ("train_nelbo", "valid_nelbo"))]
    if any(math.isfinite(epoch.distortion) for history in runs.values() for epoch in history):
        panels.append(("Rate and distortion, validation data", ("distortion", "rate")))
    place = canvas(ax, (4.4 * len(panels), 3.4), 1, len(panels))
    for axes, (title, fields) in zip(place.panels, panels, strict=True):
        draw_curves(axes, runs, fields)
        axes.set(title=title, xlabel="epoch", ylabel="nats per datum")
    if "" not in runs:
        handles = [
            Line2D([], [], color=RUNS[i % len(RUNS)], linewidth=3, label=name)
            for i, name in enumerate(runs)
        ]
        place.legend(handles, "outside lower center", ncols=4)
    return place.figure


def reconstructions(
    autoencoder: nn.Module | tuple[Program, Program],
    x: Tensor | tuple[Tensor, ...],
    num: int = 10,
    labels: Labels | None = None,
    shape: tuple[int, ...] | None = None,
    *,
    ax: Target | None = None,
) -> Figure:
    """Draw data above their reconstructions, one column per datum.

    A reconstruction is the mean of p(x|z) at the mean of q(z|x); of a program, at a draw from
    q(z|x), for its first argument that has the size of an observed site. A system with a
    corruption shows the corrupted data too, and reconstructs from those.

    Args:
        autoencoder: An Autoencoder, a module with a model and a guide, or a pair of programs.
        x: `[N, d]` or `[N, *shape]`; of a program all its arguments.
        num: The number of columns.
        labels: `[N]`, titles of the columns.
        shape: Of one datum of a program, where it is an image; by default that of the argument.
        ax: Axes for each datum of each row, or a SubFigure, to draw into; None for a new figure.

    Returns:
        The figure.

    Raises:
        DataError: If there are no data.
        ConfigError: If no observed site has the size of an argument.
    """
    if isinstance(autoencoder, Autoencoder):
        x, *c = data_to_draw(autoencoder, x, max(num, 0))
        shape = autoencoder.shape
        with evaluating(autoencoder), fork_random(x.device, 0):
            seen = autoencoder.corruption(x)
            rows = {
                "input": x,
                "corrupted": seen,
                "reconstruction": autoencoder.reconstruct(seen, *c),
            }
        if isinstance(autoencoder.corruption, Identity):
            del rows["corrupted"]
    else:
        rows, shape = _rows_of_program(autoencoder, x, max(num, 0), shape)
    columns, curves = len(rows["input"]), not is_image(shape)
    size = (0.75 * columns + 1.3, (1.2 if curves else 0.73) * len(rows) + 0.3)
    place = canvas(ax, size, len(rows), columns, sharey=curves)
    grid = place.panels.reshape(len(rows), columns)
    limits = limits_of(to_array(rows["input"]))
    for row, (name, values) in zip(grid, rows.items(), strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes, value in zip(row, to_array(values), strict=True):
            draw_datum(axes, value, shape, limits)
    place.hide_inner_labels()
    for axes, label in zip(grid[0], [] if labels is None else np.asarray(labels), strict=False):
        axes.set_title(str(label), fontsize="medium")
    return place.figure


def samples(
    autoencoder: nn.Module | tuple[Program, Program],
    num: int = 64,
    seed: int = 0,
    x: Tensor | tuple[Tensor, ...] | None = None,
    shape: tuple[int, ...] | None = None,
    *,
    ax: Target | None = None,
) -> Figure:
    """Draw a square grid of means of p(x|z) for draws of z from the prior.

    Torch's generators stay as they were.

    Args:
        autoencoder: An Autoencoder, a module with a model and a guide, or a pair of programs.
        num: The number of draws; of a program at most the number of data.
        seed: Seed of the draws.
        x: Of a program all its arguments: it is run at their first `num` data, whose covariates it
            uses, and its first observed site is drawn. Of a conditional Autoencoder (x, c), or c
            alone: the samples have the first `num` conditions, or all the condition c `[C]`. Unused
            for other Autoencoders.
        shape: Of one datum of a program, where it is an image.
        ax: The Axes to draw into; None for a new figure.

    Returns:
        The figure.

    Raises:
        UndefinedLikelihoodError: Under a Flat prior, which cannot be sampled.
        DataError: Where `num` is below 1, and for a conditional Autoencoder without c.
        ConfigError: For a program without x.

    >>> figure = samples(Autoencoder((8, 8), latent=2), num=9)
    >>> figure.axes[0].images[0].get_array().shape  # three rows of 8 pixels and the gaps
    (26, 26)
    """
    if isinstance(autoencoder, Autoencoder):
        c = _conditions(autoencoder, x, num)
        count = num if c is None or c.dim() == 1 else len(c)
        return sample_grids({"Samples from the prior": autoencoder}, count, seed, c, ax=ax)
    if x is None:
        raise ConfigError("samples of a program are drawn at its arguments: give them as x")
    model, _, args = program_arguments(autoencoder, x, num)
    with fork_random(args[0].device, seed):
        first = next(iter(predicted(model, None, args).values()))
    place, values = canvas(ax, (3.2, 3.6), dpi=200), to_array(first.reshape(len(first), -1))
    draw_grid(place.panels[0], values, _shape_of(first, shape), limits_of(values))
    place.panels[0].set_title("Samples from the prior")
    return place.figure


def sample_grids(
    autoencoders: Mapping[str, Autoencoder],
    num: int = 100,
    seed: int = 0,
    c: Tensor | None = None,
    *,
    ax: Target | None = None,
) -> Figure:
    """Draw a square grid of prior samples for each system, under its name.

    A sample is the mean of p(x|z) at a draw of z. Every system starts from the same seed.

    Args:
        autoencoders: Systems by name.
        num: The number of draws per system.
        seed: Seed of the draws.
        c: The conditions of conditional systems, `[C]` or `[num, C]`.
        ax: One Axes per system, or a SubFigure, to draw into; None for a new figure.

    Returns:
        The figure, with one panel per system.

    Raises:
        UndefinedLikelihoodError: Under a Flat prior, which cannot be sampled.
        ConfigError: For a system that is no Autoencoder.
        DataError: Where there are no systems, or `num` is below 1.

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes, figure 5.
    """
    refuse_none("samples", min(num, len(autoencoders)))
    columns = min(4, len(autoencoders))
    rows = math.ceil(len(autoencoders) / columns)
    for autoencoder in autoencoders.values():
        refuse_programs(autoencoder)
    size, count = (3.2 * columns, 3.6 * rows), len(autoencoders)
    place = canvas(ax, size, rows, columns, count=count, dpi=200)
    for axes, (name, autoencoder) in zip(place.panels, autoencoders.items(), strict=True):
        with evaluating(autoencoder), fork_random(next(autoencoder.parameters()).device, seed):
            values = to_array(autoencoder.sample(num, c))
        draw_grid(axes, values, autoencoder.shape, limits_of(values))
        axes.set_title(name)
    return place.figure


def _conditions(
    autoencoder: Autoencoder, x: Tensor | tuple[Tensor, ...] | None, num: int
) -> Tensor | None:
    """The conditions of samples, `[C]` or `[num, C]`; None for a system without a condition."""
    if not autoencoder.condition:
        return None
    is_alone = isinstance(x, Tensor) and x.shape[-1] == autoencoder.condition
    c = x[1] if isinstance(x, tuple) and len(x) == 2 else x if is_alone else None
    if not isinstance(c, Tensor):
        autoencoder.check_condition(None)
        return None
    (c,) = like_parameters(autoencoder, (c,))
    return c if c.dim() == 1 else c[:num]


def data_to_draw(
    autoencoder: Autoencoder, x: Tensor | tuple[Tensor, ...], num: int | None = None
) -> tuple[Tensor, ...]:
    """Return the data of a figure, in the dtype and on the device of the system.

    Args:
        autoencoder: The system.
        x: Data, `[N, d]` or `[N, *shape]`, or a tuple of these and, for a conditional system, the
            conditions `[N, C]`.
        num: The number of data, from the first on; None takes all.

    Returns:
        Flat data, `[num, d]`, and their conditions if the system has any.

    Raises:
        ConfigError: For a system that is no Autoencoder.
        DataError: Where there are no data, more arguments than the system takes, or no conditions.
    """
    refuse_programs(autoencoder)
    args = x if isinstance(x, tuple) else (x,)
    if not all(isinstance(t, Tensor) for t in args) or not 1 <= len(args) <= 2:
        raise DataError(f"a figure is of data [N, d], not of a {type(x).__name__} of {len(x)}")
    autoencoder.check_condition(args[1] if len(args) == 2 else None)
    x, *c = like_parameters(autoencoder, tuple(t[:num] for t in args))
    refuse_none("data", len(x))
    return autoencoder.flat(x), *c


def refuse_programs(system: Any) -> None:
    """Check that a system is an Autoencoder: other programs have no means to draw.

    Args:
        system: The system.

    Raises:
        ConfigError: For any other system.
    """
    if not isinstance(system, Autoencoder):
        raise ConfigError(f"this figure is of an Autoencoder, not of a {type(system).__name__}")


def program_arguments(
    system: Any, x: Tensor | tuple[Tensor, ...], num: int | None = None
) -> tuple[Program, Program, tuple[Tensor, ...]]:
    """Return the programs of a system and their first arguments.

    Args:
        system: A module with a model and a guide, or a pair of programs.
        x: The arguments of the programs, each `[N, ...]`.
        num: How many of the data; None for all.

    Returns:
        The model, the guide, and the arguments, each `[num, ...]`.

    Raises:
        ConfigError: For anything else than such a system.
        DataError: For arguments that are not of one length.
    """
    if not (isinstance(system, tuple) and len(system) == 2):
        if not isinstance(system, System):
            raise ConfigError(f"a figure is of a system, or of a pair of programs, not {system!r}")
        system = (system.model, system.guide)
    args = Arguments(x if isinstance(x, tuple) else (x,))
    return *system, args.first(len(args) if num is None else num).tensors


def _rows_of_program(
    system: Any, x: Tensor | tuple[Tensor, ...], num: int, shape: tuple[int, ...] | None
) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """Data and reconstructions `[num, d]`, and the shape of one datum."""
    refuse_none("data", num)
    model, guide, args = program_arguments(system, x, num)
    with fork_random(args[0].device, 0):
        found = predicted(model, guide, args)
    for data in args:
        for values in found.values():
            if values.numel() == data.numel() and data.is_floating_point():
                rows = {"input": data, "reconstruction": values}
                flat = {name: value.reshape(len(value), -1) for name, value in rows.items()}
                return flat, _shape_of(data, shape)
    raise ConfigError("no observed site of the program has the size of one of its arguments")


def _shape_of(values: Tensor, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of one datum: that which is known, where it has the same number of features."""
    size = values[0].numel()
    if size < 2:
        raise ConfigError("a figure of data needs two features or more per datum")
    return shape if shape is not None and math.prod(shape) == size else tuple(values.shape[1:])


def refuse_none(what: str, count: int) -> None:
    """Check that there is something to draw.

    Args:
        what: The objects that are drawn, in the plural.
        count: Their number.

    Raises:
        DataError: For a number below 1.
    """
    if count < 1:
        raise DataError(f"there are no {what} to draw")
