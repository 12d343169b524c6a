"""Figures of filters and of sparse codes: atoms by their use, the sweep of the rate λ."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyroae.autoencoder import Autoencoder
from pyroae.errors import ConfigError, DataError
from pyroae.evaluation.summary import Evaluation
from pyroae.nn import Atoms, Tied
from pyroae.plots.canvas import Target, canvas
from pyroae.plots.drawing import BLUE, INK, RUNS, draw_grid, is_image, plain, to_array
from pyroae.plots.systems import data_to_draw, refuse_none, refuse_programs
from pyroae.programs.context import evaluating


def filters(
    autoencoder: Autoencoder,
    num: int = 64,
    x: Tensor | tuple[Tensor, ...] | None = None,
    *,
    ax: Target | None = None,
) -> Figure:
    """Draw learned filters, on a colour map with 0 in its middle; those of colour images in colour.

    These are the columns of a linear decoder or the atoms of a dictionary; otherwise the weights of
    the first layer of the encoder, one image per hidden unit, or per kernel of a convolution.
    With data, the columns of a system with a point posterior are sorted by use: those whose codes
    are not 0 for most data come first, and those that no datum uses are crossed out.

    Args:
        autoencoder: The system.
        num: The number of filters, from the first on.
        x: Data, `[N, d]` or `[N, *shape]`, by whose codes columns are sorted; None for the order of
            the units.
        ax: The Axes to draw into; None for a new figure.

    Returns:
        The figure.

    Raises:
        ConfigError: For a system that has neither.
        DataError: Where `num` is below 1, or there are no data.
    """
    refuse_programs(autoencoder)
    values, shape, title = _filters(autoencoder)
    uses = None if x is None or title != COLUMNS else _uses(autoencoder, x)
    if uses is not None:
        order = np.argsort(-uses, kind="stable")
        values, uses = values[order], uses[order]
        title = f"Decoder columns, by use: {(uses > 0).sum()} of {len(uses)} units alive"
    values = values[: max(num, 0)]
    refuse_none("filters", len(values))
    largest = float(np.abs(values).max()) or 1.0
    place = canvas(ax, (5, 4.6))
    axes = place.panels[0]
    draw_grid(axes, values, shape, (-largest, largest), "RdBu_r")
    if uses is not None:
        _cross_out(axes, np.flatnonzero(uses[: len(values)] == 0), len(values))
    axes.set_title(title)
    if is_image(shape) and len(axes.images[0].get_shape()) == 2:
        axes.figure.colorbar(axes.images[0], ax=axes, label="weight", shrink=0.6)
    return place.figure


def sparsity_sweep(
    evaluations: Mapping[float, Evaluation],
    mean_error: float | None = None,
    *,
    ax: Target | None = None,
) -> Figure:
    """Draw sparsity and squared error of sparse autoencoders against the rate λ of their prior.

    One panel has the share of codes that are exactly 0 and the share of live units, the other the
    squared error of the reconstructions.

    Args:
        evaluations: The result of `evaluate` of a system with a point posterior, for each λ.
        mean_error: The squared error of predicting the mean of the training data, drawn as a line.
        ax: Two Axes, or a SubFigure, to draw into; None for a new figure.

    Returns:
        The figure, with two panels.

    Raises:
        DataError: Where there are no evaluations, or one is not of a point posterior.
    """
    refuse_none("evaluations", len(evaluations))
    found = {rate: evaluations[rate].results for rate in sorted(evaluations)}
    if any("zero_share" not in results for results in found.values()):
        raise DataError(
            "a sweep of sparsity is of systems with a point posterior, as sparse-ae has"
        )
    place = canvas(ax, (8.8, 3.4), 1, 2)
    shares, error = (plain(axes) for axes in place.panels)
    curves: tuple[tuple[Axes, str, dict[str, Any]], ...] = (
        (shares, "zero_share", {"label": "codes exactly 0", "color": BLUE}),
        (shares, "live_share", {"label": "live units", "color": RUNS[1]}),
        (error, "squared_error", {"color": BLUE}),
    )
    for axes, name, style in curves:
        values = [results[name].estimate for results in found.values()]
        axes.plot(list(found), values, marker="o", markersize=4, **style)
        axes.set(xscale="log", xlabel="rate λ of the Laplace prior")
    shares.set(title="Sparsity", ylabel="share", ylim=(-0.03, 1.03))
    shares.legend(frameon=False)
    error.set(title="Squared error", ylabel="‖x − x̂‖² per datum")
    if mean_error is not None:
        error.axhline(mean_error, color=INK, linewidth=1, linestyle="--", label="mean predictor")
        error.legend(frameon=False)
    error.set_ylim(bottom=0)
    return place.figure


COLUMNS = "Decoder columns, by latent unit"
"""The title of filters that belong to latent units."""


def _uses(autoencoder: Autoencoder, x: Tensor | tuple[Tensor, ...]) -> np.ndarray | None:
    """The share of the data that use each unit, `[m]`; None without a point posterior."""
    with evaluating(autoencoder):
        found = autoencoder.sparsity(*data_to_draw(autoencoder, x))
    return None if found is None else to_array(found.uses)


def _cross_out(axes: Axes, cells: np.ndarray, count: int) -> None:
    """Draw a cross over cells of a square grid of `draw_grid`."""
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    for row, column in zip(*np.divmod(cells, columns), strict=True):
        left, right = column / columns, (column + 1) / columns
        top, bottom = 1 - row / rows, 1 - (row + 1) / rows
        for ends in ([bottom, top], [top, bottom]):
            axes.plot([left, right], ends, color=INK, linewidth=0.8, transform=axes.transAxes)


def _filters(autoencoder: Autoencoder) -> tuple[np.ndarray, tuple[int, ...], str]:
    """Filters `[n, ...]`, the shape of one filter, and a title."""
    decoder, encoder = autoencoder.decoder, autoencoder.encoder
    layers = [
        m
        for m in (encoder if isinstance(decoder, Tied) else decoder).modules()
        if not list(m.children())
    ]
    is_linear = [type(m) for m in layers] in ([nn.Linear], [Atoms])
    if is_linear and autoencoder.likelihood.layout(autoencoder.shape) == (autoencoder.shape, 1):
        like = next(autoencoder.parameters())
        points = torch.eye(
            autoencoder.latent + 1, autoencoder.latent, dtype=like.dtype, device=like.device
        )  # the last is 0
        with torch.no_grad():
            outputs = decoder(nn.functional.pad(points, (0, autoencoder.condition)))
        return (
            to_array(outputs[:-1] - outputs[-1]),
            autoencoder.shape,
            COLUMNS,
        )
    first = next((m for m in encoder.modules() if isinstance(m, nn.Linear | nn.Conv2d)), None)
    if first is None:
        raise ConfigError(
            "this system has no filters to draw: "
            "its decoder is not linear, its encoder has no first layer"
        )
    weight = to_array(first.weight)  # without the weights of the condition
    inputs = autoencoder.features if isinstance(first, nn.Linear) else first.in_channels
    weight = weight[:, : inputs - autoencoder.condition * isinstance(first, nn.Conv2d)]
    if isinstance(first, nn.Linear):
        return weight, autoencoder.shape, "First layer of the encoder, by hidden unit"
    shape = weight.shape[1:] if is_image(weight.shape[1:]) else weight.shape[2:]
    return (
        weight.reshape(-1, math.prod(shape)),
        shape,
        "First convolution of the encoder, by kernel",
    )
