"""Figures of systems: training curves, reconstructions, samples, latent space, filters.

Each function returns a new matplotlib `Figure`, which `figure.savefig(path)` writes. Figures are
made without pyplot: no window is opened, and no settings or list of open figures are changed. Data
are drawn as images where the shape of the system is (height, width), with 1 or 3 channels first or
last; otherwise as curves over the features.
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
from pyroae.programs.context import evaluating, fork_random
from pyroae.training.state import Epoch

Labels = Sequence[Any] | np.ndarray | Tensor


def training_curves(histories: Mapping[str, Sequence[Epoch]] | Sequence[Epoch]) -> Figure:
    """Draw the negative bound against epochs, in nats per datum.

    A second panel shows rate and distortion of the validation data, where they were recorded.

    Args:
        histories: Epochs of one run, or of several runs by name, each with its own colour.

    Returns:
        The figure, with one or two panels.

    Raises:
        DataError: For a run without epochs.
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
    autoencoder: Autoencoder,
    x: Tensor | tuple[Tensor, ...],
    num: int = 10,
    labels: Labels | None = None,
) -> Figure:
    """Draw data above their reconstructions: the mean of p(x|z) at the mean of q(z|x).

    A system with a corruption shows the corrupted data too, and reconstructs from these.

    Args:
        autoencoder: The system.
        x: Data, `[N, d]` or `[N, *shape]`.
        num: The number of data that are drawn, from the first on.
        labels: Titles of the columns.

    Returns:
        The figure, with one column per datum.

    Raises:
        ConfigError: For a system that is no Autoencoder.
        DataError: Where there are no data.
    """
    x = _ready(autoencoder, x, max(num, 0))
    with evaluating(autoencoder), fork_random(x.device, 0):
        seen = autoencoder.corruption(x)
        rows = {"input": x, "corrupted": seen, "reconstruction": autoencoder.reconstruct(seen)}
    if isinstance(autoencoder.corruption, Identity):
        del rows["corrupted"]
    curves = not is_image(autoencoder.shape)
    size = (0.75 * len(x) + 1.3, (1.2 if curves else 0.73) * len(rows) + 0.3)
    figure = Figure(size, dpi=150, layout="constrained")
    grid = figure.subplots(len(rows), len(x), squeeze=False, sharey=curves)
    for row, (name, values) in zip(grid, rows.items(), strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes, value in zip(row, to_array(values), strict=True):
            draw_datum(axes, value, autoencoder.shape, limits_of(to_array(x)))
    for axes, label in zip(grid[0], [] if labels is None else np.asarray(labels), strict=False):
        axes.set_title(str(label), fontsize="medium")
    return figure


def samples(autoencoder: Autoencoder, num: int = 64, seed: int = 0) -> Figure:
    """Draw a square grid of means of p(x|z) for draws of z from the prior.

    Torch's generators are left unchanged.

    Args:
        autoencoder: The system.
        num: The number of draws.
        seed: Seed of the draws.

    Returns:
        The figure.

    Raises:
        UndefinedLikelihoodError: Under a Flat prior, which cannot be sampled.
        DataError: Where `num` is below 1.

    >>> figure = samples(Autoencoder((8, 8), latent=2), num=9)
    >>> figure.axes[0].images[0].get_array().shape  # three rows of 8 pixels and the gaps
    (26, 26)
    """
    return sample_grids({"Samples from the prior": autoencoder}, num, seed)


def sample_grids(autoencoders: Mapping[str, Autoencoder], num: int = 100, seed: int = 0) -> Figure:
    """Draw a square grid of prior samples for each system, under its name.

    A sample is the mean of p(x|z) at a draw of z. Every system starts from the same seed.

    Args:
        autoencoders: Systems by name.
        num: The number of draws per system.
        seed: Seed of the draws.

    Returns:
        The figure, with one panel per system.

    Raises:
        UndefinedLikelihoodError: Under a Flat prior, which cannot be sampled.
        ConfigError: For a system that is no Autoencoder.
        DataError: Where there are no systems, or `num` is below 1.

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes, figure 5.
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
    autoencoder: Autoencoder, x: Tensor | tuple[Tensor, ...], labels: Labels | None = None
) -> Figure:
    """Draw the means of q(z|x), coloured by label.

    Two latent units are drawn: those of the largest variance over the data. One latent unit gives
    a histogram.

    Args:
        autoencoder: The system.
        x: Data, `[N, d]` or `[N, *shape]`.
        labels: Labels, `[N]`. Up to 20 distinct labels get a legend, more a colour bar of their
            ranks.

    Returns:
        The figure.

    Raises:
        ConfigError: For a system that is no Autoencoder.
        DataError: Where there are no data, or the numbers of data and labels differ.
    """
    x = _ready(autoencoder, x)
    if labels is not None and len(labels) != len(x):
        raise DataError(f"there are {len(x)} data and {len(labels)} labels")
    with evaluating(autoencoder):
        means = to_array(autoencoder.encode(x))
    names, ranks = np.unique(
        np.zeros(len(x)) if labels is None else np.asarray(labels), return_inverse=True
    )
    colours = label_colours(len(names))
    figure = Figure((5.2, 4.2), dpi=150, layout="constrained")
    axes = plain(figure.subplots())
    if autoencoder.latent == 1:
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
    """Draw the means of p(x|z) over a plane of z.

    Both axes are quantiles of N(0, 1) from 0.02 to 0.98. z[0] increases to the right, z[1] upwards.

    Args:
        autoencoder: A system with two latent units and a Normal prior.
        num: The number of quantiles per axis.

    Returns:
        The figure.

    Raises:
        ConfigError: For another latent dimension than 2, or another prior than Normal.
        DataError: Where `num` is below 1.

    References:
        Kingma and Welling (2014), Auto-encoding variational Bayes, figure 4.
    """
    _refuse_programs(autoencoder)
    if autoencoder.latent != 2:
        raise ConfigError(
            "a manifold is drawn of a latent space of 2 dimensions; "
            f"this one has {autoencoder.latent}"
        )
    if not isinstance(autoencoder.prior, Normal):
        raise ConfigError(
            "a manifold is drawn through the quantiles of a Normal prior; "
            f"this prior is {autoencoder.prior}"
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
    """Draw KL(q ‖ p) of each latent unit, in nats, as sorted bars; inactive units are grey.

    Where no unit has a KL (Delta guides), the bars are the activities Var_x(E_q[z_j|x]), with their
    threshold as a line.

    Args:
        diagnostics: The result of `diagnose`.

    Returns:
        The figure.
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
    """Draw learned filters, on a colour map with 0 in its middle.

    These are the columns of a linear decoder or the atoms of a dictionary; otherwise the weights of
    the first layer of the encoder, one image per hidden unit, or per kernel of a convolution.

    Args:
        autoencoder: The system.
        num: The number of filters, from the first on.

    Returns:
        The figure.

    Raises:
        ConfigError: For a system that has neither.
        DataError: Where `num` is below 1.
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


def _like(autoencoder: Autoencoder) -> Tensor:
    return next(autoencoder.parameters())


def _ready(
    autoencoder: Autoencoder, x: Tensor | tuple[Tensor, ...], num: int | None = None
) -> Tensor:
    """The first `num` data, `[N, d]`, in the dtype and on the device of the system."""
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
    """Raise ConfigError for a system that is no Autoencoder: programs have no means to draw."""
    if not isinstance(system, Autoencoder):
        raise ConfigError(f"this figure is of an Autoencoder, not of a {type(system).__name__}")


def _refuse_none(what: str, count: int) -> None:
    if count < 1:
        raise DataError(f"there are no {what} to draw")


def _filters(autoencoder: Autoencoder) -> tuple[np.ndarray, tuple[int, ...], str]:
    """Filters `[n, ...]`, the shape of one filter, and a title."""
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
            "this system has no filters to draw: "
            "its decoder is not linear, its encoder has no first layer"
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
