"""Results -> matplotlib figures: each function returns a Figure of its own, to be written by `figure.savefig(path)`.

Figures are made without pyplot: no window, no settings and no list of open figures are touched. Data are drawn as images
where the system's shape is (height, width), with 1 or 3 channels before or after these, else as curves over the features.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor, nn

from pyroae.autoencoder import Autoencoder
from pyroae.corruptions import Identity
from pyroae.errors import ConfigError, DataError
from pyroae.evaluation.diagnostics import Diagnostics
from pyroae.nn import Atoms, Tied
from pyroae.plots.drawing import (
    BLUE,
    GREY,
    INK,
    RUNS,
    draw_bars,
    draw_curves,
    draw_datum,
    draw_grid,
    draw_scatter,
    is_image,
    label_colours,
    label_legend,
    limits_of,
    plain,
    to_array,
)
from pyroae.priors import Normal
from pyroae.programs.arguments import Arguments
from pyroae.programs.context import evaluating, fork_random
from pyroae.programs.pair import System
from pyroae.programs.predictive import encoded, predicted
from pyroae.programs.sites import Program
from pyroae.training.state import Epoch

Labels = Sequence[Any] | np.ndarray | Tensor


def training_curves(histories: Mapping[str, Sequence[Epoch]] | Sequence[Epoch]) -> Figure:
    """Negative bound against epoch, and rate and distortion of the validation data beside it, where there are any.

    histories: of one run, or of several by name, a colour each. Raises DataError for a run without epochs.
    """
    runs = histories if isinstance(histories, Mapping) else {"": histories}
    for count in [len(runs), *map(len, runs.values())]:
        _refuse_none("epochs", count)
    panels = [("Negative bound", ("train_nelbo", "valid_nelbo"))]
    if any(math.isfinite(epoch.distortion) for history in runs.values() for epoch in history):
        panels.append(("Rate and distortion, validation data", ("distortion", "rate")))
    figure = Figure((4.4 * len(panels), 3.4), dpi=150, layout="constrained")
    for axes, (title, fields) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        draw_curves(axes, runs, fields)
        axes.set(title=title, xlabel="epoch", ylabel="nats per datum")
    if "" not in runs:
        handles = [
            Line2D([], [], color=RUNS[i % len(RUNS)], linewidth=3, label=name)
            for i, name in enumerate(runs)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def reconstructions(
    autoencoder: nn.Module | tuple[Program, Program],
    x: Tensor | tuple[Tensor, ...],
    num: int = 10,
    labels: Labels | None = None,
    shape: tuple[int, ...] | None = None,
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

    Returns:
        The figure.

    Raises:
        DataError: If there are no data.
        ConfigError: If no observed site has the size of an argument.
    """
    if isinstance(autoencoder, Autoencoder):
        x = _ready(autoencoder, x, max(num, 0))
        shape = autoencoder.shape
        with evaluating(autoencoder), fork_random(x.device, 0):
            seen = autoencoder.corruption(x)
            rows = {"input": x, "corrupted": seen, "reconstruction": autoencoder.reconstruct(seen)}
        if isinstance(autoencoder.corruption, Identity):
            del rows["corrupted"]
    else:
        rows, shape = _rows_of_program(autoencoder, x, max(num, 0), shape)
    columns, curves = len(rows["input"]), not is_image(shape)
    size = (0.75 * columns + 1.3, (1.2 if curves else 0.73) * len(rows) + 0.3)
    figure = Figure(size, dpi=150, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, sharey=curves)
    limits = limits_of(to_array(rows["input"]))
    for row, (name, values) in zip(grid, rows.items(), strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes, value in zip(row, to_array(values), strict=True):
            draw_datum(axes, value, shape, limits)
    for axes, label in zip(grid[0], [] if labels is None else np.asarray(labels), strict=False):
        axes.set_title(str(label), fontsize="medium")
    return figure


def samples(
    autoencoder: nn.Module | tuple[Program, Program],
    num: int = 64,
    seed: int = 0,
    x: Tensor | tuple[Tensor, ...] | None = None,
    shape: tuple[int, ...] | None = None,
) -> Figure:
    """Draw a square grid of means of p(x|z) for draws of z from the prior.

    Torch's generators stay as they were.

    Args:
        autoencoder: An Autoencoder, a module with a model and a guide, or a pair of programs.
        num: The number of draws; of a program at most the number of data.
        seed: Seed of the draws.
        x: Of a program all its arguments: it is run at their first `num` data, whose covariates it
            uses, and its first observed site is drawn. Unused for an Autoencoder.
        shape: Of one datum of a program, where it is an image.

    Returns:
        The figure.

    Raises:
        UndefinedLikelihoodError: Under a Flat prior, which cannot be sampled.
        ConfigError: For a program without x.

    >>> figure = samples(Autoencoder((8, 8), latent=2), num=9)
    >>> figure.axes[0].images[0].get_array().shape  # three rows of 8 pixels, one pixel apart
    (26, 26)
    """
    if isinstance(autoencoder, Autoencoder):
        return sample_grids({"Samples from the prior": autoencoder}, num, seed)
    if x is None:
        raise ConfigError("samples of a program are drawn at its arguments: give them as x")
    model, _, args = _program(autoencoder, x, num)
    with fork_random(args[0].device, seed):
        first = next(iter(predicted(model, None, args).values()))
    figure = Figure((3.2, 3.6), dpi=200, layout="constrained")
    axes, values = figure.subplots(), to_array(first.reshape(len(first), -1))
    draw_grid(axes, values, _shape_of(first, shape), limits_of(values))
    axes.set_title("Samples from the prior")
    return figure


def sample_grids(autoencoders: Mapping[str, Autoencoder], num: int = 100, seed: int = 0) -> Figure:
    """A square grid of prior samples for each system, under its name (Kingma & Welling 2014, figure 5).

    `num` draws of z, and of each the mean of p(x|z); every system starts from `seed`.
    Raises UndefinedLikelihoodError under a Flat prior, which cannot be sampled.
    """
    _refuse_none("samples", min(num, len(autoencoders)))
    columns = min(4, len(autoencoders))
    rows = math.ceil(len(autoencoders) / columns)
    figure = Figure((3.2 * columns, 3.6 * rows), dpi=200, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for autoencoder in autoencoders.values():
        _refuse_programs(autoencoder)
    for axes, (name, autoencoder) in zip(panels, autoencoders.items(), strict=False):
        with evaluating(autoencoder), fork_random(_like(autoencoder).device, seed):
            values = to_array(autoencoder.sample(num))
        draw_grid(axes, values, autoencoder.shape, limits_of(values))
        axes.set_title(name)
    for axes in panels[len(autoencoders) :]:
        axes.set_axis_off()
    return figure


def latent_scatter(
    autoencoder: nn.Module | tuple[Program, Program],
    x: Tensor | tuple[Tensor, ...],
    labels: Labels | None = None,
) -> Figure:
    """Draw means of q(z|x): the two units of the largest variance over the data, or a histogram.

    Args:
        autoencoder: An Autoencoder, a module with a model and a guide, or a pair of programs, whose
            means are over 100 draws.
        x: `[N, d]` or `[N, *shape]`; of a program all its arguments.
        labels: `[N]`, by which points are coloured; up to 20 distinct ones have a legend, more a
            colour bar of their ranks.

    Returns:
        The figure.

    Raises:
        DataError: If the numbers of data and labels differ.
    """
    if isinstance(autoencoder, Autoencoder):
        x = _ready(autoencoder, x)
        with evaluating(autoencoder):
            means = to_array(autoencoder.encode(x))
    else:
        _, guide, args = _program(autoencoder, x)
        with fork_random(args[0].device, 0):
            means = to_array(encoded(guide, args))
    if labels is not None and len(labels) != len(means):
        raise DataError(f"there are {len(means)} data and {len(labels)} labels")
    names, ranks = np.unique(
        np.zeros(len(means)) if labels is None else np.asarray(labels), return_inverse=True
    )
    colours = label_colours(len(names))
    figure = Figure((5.2, 4.2), dpi=150, layout="constrained")
    axes = plain(figure.subplots())
    if means.shape[1] == 1:
        axes.hist(
            [means[ranks == i, 0] for i in range(len(names))], 40, stacked=True, color=colours
        )
        axes.set(title="Latent space", xlabel="z[0], posterior mean", ylabel="data")
    else:
        draw_scatter(axes, means, np.array(colours)[ranks])
    if labels is not None:
        label_legend(axes, names, colours)
    return figure


def manifold(autoencoder: Autoencoder, num: int = 20) -> Figure:
    """Means of p(x|z) over a plane of z, `num` by `num`: quantiles of N(0, 1) from 0.02 to 0.98 on both axes.

    z[0] grows to the right, z[1] upwards (Kingma & Welling 2014, figure 4).
    Raises ConfigError for a latent space of another dimension than 2, or another prior than Normal.
    """
    _refuse_programs(autoencoder)
    if autoencoder.latent != 2:
        raise ConfigError(
            f"a manifold is drawn of a latent space of 2 dimensions; this one has {autoencoder.latent}"
        )
    if not isinstance(autoencoder.prior, Normal):
        raise ConfigError(
            f"a manifold is drawn through the quantiles of a Normal prior; this prior is {autoencoder.prior}"
        )
    _refuse_none("quantiles", num)
    like = _like(autoencoder)
    quantiles = torch.special.ndtri(
        torch.linspace(0.02, 0.98, num, dtype=like.dtype, device=like.device)
    )
    with evaluating(autoencoder):
        values = to_array(
            autoencoder.decode(torch.cartesian_prod(quantiles.flip(0), quantiles).flip(-1))
        )
    figure = Figure((5, 5), dpi=200, layout="constrained")
    axes = figure.subplots()
    draw_grid(axes, values, autoencoder.shape, limits_of(values))
    axes.set(
        title="Learned manifold",
        xlabel="z[0], quantiles 0.02 to 0.98 →",
        ylabel="z[1], quantiles 0.02 to 0.98 →",
    )
    return figure


def kl_per_unit(diagnostics: Diagnostics) -> Figure:
    """Bars of each latent unit's KL(q ‖ p) in nats, sorted; inactive units are grey.

    Where no unit has a KL (Delta guides), of its activity Var_x(E_q[z_j|x]), with the threshold as a line.
    """
    kl, activity, threshold = (
        to_array(diagnostics.kl_per_unit),
        to_array(diagnostics.activity),
        diagnostics.threshold,
    )
    figure = Figure((min(10.0, 4.4 + 0.16 * len(kl)), 3.6), dpi=150, layout="constrained")
    axes = plain(figure.subplots())
    axes.set_title(f"{diagnostics.active_units} of {len(kl)} units active")
    if np.isnan(kl).all():
        draw_bars(axes, activity, activity > threshold)
        axes.axhline(threshold, color=INK, linewidth=1, linestyle="--")
        axes.set(
            yscale="log", ylabel="variance of the posterior mean\n(this guide has no KL by unit)"
        )
        axes.set_ylim(min([threshold, *activity[activity > 0]]) / 2)
    else:
        draw_bars(axes, kl, activity > threshold)
        axes.set_ylabel("KL(q ‖ p), nats")
    names = {BLUE: f"variance of the posterior mean > {threshold:g}", GREY: "inactive"}
    handles = [Patch(color=colour, label=name) for colour, name in names.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def filters(autoencoder: Autoencoder, num: int = 64) -> Figure:
    """The first `num` learned filters, 0 in the middle of the colours.

    The columns of a linear decoder, the atoms of a dictionary; else the weights of the encoder's first layer, one image a
    hidden unit, or for convolutions one a kernel. Raises ConfigError for a system that has neither.
    """
    _refuse_programs(autoencoder)
    values, shape, title = _filters(autoencoder)
    values = values[: max(num, 0)]
    _refuse_none("filters", len(values))
    largest = float(np.abs(values).max()) or 1.0
    figure = Figure((5, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    draw_grid(axes, values, shape, (-largest, largest), "RdBu_r")
    axes.set_title(title)
    if is_image(shape) and len(axes.images[0].get_shape()) == 2:
        figure.colorbar(axes.images[0], ax=axes, label="weight", shrink=0.6)
    return figure


# What the figures are made of.


def _like(autoencoder: Autoencoder) -> Tensor:
    return next(autoencoder.parameters())


def _ready(
    autoencoder: Autoencoder, x: Tensor | tuple[Tensor, ...], num: int | None = None
) -> Tensor:
    """The first `num` data as `[N, d]` in the system's dtype and on its device. Raises ConfigError, DataError for others."""
    _refuse_programs(autoencoder)
    if isinstance(x, tuple) and len(x) == 1:
        x = x[0]
    if not isinstance(x, Tensor):
        raise DataError(f"a figure is of one tensor of data [N, d], not of a {type(x).__name__}")
    x = x[:num]
    _refuse_none("data", len(x))
    like = _like(autoencoder)
    return autoencoder.flat(x.to(like.device, like.dtype))


def _refuse_programs(system: Any) -> None:
    """Raises ConfigError for what is no Autoencoder: programs have no means to draw."""
    if not isinstance(system, Autoencoder):
        raise ConfigError(f"this figure is of an Autoencoder, not of a {type(system).__name__}")


def _program(
    system: Any, x: Tensor | tuple[Tensor, ...], num: int | None = None
) -> tuple[Program, Program, tuple[Tensor, ...]]:
    """Model, guide and the first `num` data of a program. Raises ConfigError, DataError for others."""
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
    _refuse_none("data", num)
    model, guide, args = _program(system, x, num)
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


def _refuse_none(what: str, count: int) -> None:
    if count < 1:
        raise DataError(f"there are no {what} to draw")


def _filters(autoencoder: Autoencoder) -> tuple[np.ndarray, tuple[int, ...], str]:
    """Filters `[n, ...]`, the shape of one, and what they are."""
    decoder, encoder = autoencoder.decoder, autoencoder.encoder
    layers = [
        m
        for m in (encoder if isinstance(decoder, Tied) else decoder).modules()
        if not list(m.children())
    ]
    if [type(m) for m in layers] in ([nn.Linear], [Atoms]) and autoencoder.likelihood.outputs == 1:
        like = _like(autoencoder)
        points = torch.eye(
            autoencoder.latent + 1, autoencoder.latent, dtype=like.dtype, device=like.device
        )  # the last is 0
        with torch.no_grad():
            outputs = decoder(points)
        return (
            to_array(outputs[:-1] - outputs[-1]),
            autoencoder.shape,
            "Decoder columns, by latent unit",
        )
    first = next((m for m in encoder.modules() if isinstance(m, nn.Linear | nn.Conv2d)), None)
    if first is None:
        raise ConfigError(
            "this system has no filters to draw: its decoder is not linear, its encoder has no first layer"
        )
    weight = to_array(first.weight)
    if isinstance(first, nn.Linear):
        return weight, autoencoder.shape, "First layer of the encoder, by hidden unit"
    shape = weight.shape[1:] if is_image(weight.shape[1:]) else weight.shape[2:]
    return (
        weight.reshape(-1, math.prod(shape)),
        shape,
        "First convolution of the encoder, by kernel",
    )
