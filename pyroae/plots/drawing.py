"""What figures are made of: colours, tiled images, curves, scatters, bars. No statistics, no models."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pyroae.data.image_folders import is_channels_last
from pyroae.runtime.files import guarded
from pyroae.training.state import Epoch

BLUE, GREY, INK = "#0072B2", "#B8B8B8", "#333333"


RUNS = (BLUE, "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6BB1")
"""Okabe & Ito's colours, which a colour-blind reader can tell apart, and a violet."""


LABELS = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)
"""Petroff's ten (2021), chosen for the same reason, for labels."""


CURVES: dict[str, tuple[str, Any, float]] = {
    "train_nelbo": ("training", (0, (4, 2)), 0.9),
    "valid_nelbo": ("validation", "-", 1.8),
    "distortion": ("distortion", "-", 1.8),
    "rate": ("rate", ":", 1.8),
}
"""Fields of an Epoch: name, dashes and width of the line."""


def to_array(values: Tensor) -> np.ndarray:
    """Values as a numpy array on the host."""
    return values.detach().cpu().numpy()


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether data of this shape are drawn as images: (height, width), with 1 or 3 channels before or after these."""
    return len(shape) == 2 or (
        len(shape) == 3 and (shape[2] if is_channels_last(shape) else shape[0]) in (1, 3)
    )


def limits_of(values: np.ndarray) -> tuple[float, float]:
    """Black and white: 0 and 1 for values between them, else the smallest and the largest."""
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def tile(values: np.ndarray, shape: tuple[int, ...], columns: int) -> np.ndarray:
    """Images `[N, d]` as one, row by row, one pixel of nan apart: `[H, W]`, with a last dimension of 3 for coloured ones."""
    if is_channels_last(shape):
        values = values.reshape(-1, *shape).transpose(0, 3, 1, 2)
        shape = (shape[2], *shape[:2])
    channels, height, width = (1, *shape)[-3:]
    rows = math.ceil(len(values) / columns)
    cells = np.full((rows * columns, height + 1, width + 1, channels), np.nan)
    cells[: len(values), :-1, :-1] = values.reshape(-1, channels, height, width).transpose(
        0, 2, 3, 1
    )
    tiled = cells.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    image = tiled.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]
    return image[..., 0] if channels == 1 else image


def draw_grid(
    axes: Axes,
    values: np.ndarray,
    shape: tuple[int, ...],
    limits: tuple[float, float],
    colours: str = "gray",
) -> None:
    """Draw data `[N, d]` in a square grid, row by row."""
    columns = math.ceil(math.sqrt(len(values)))
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)
    if is_image(shape):
        draw_image(axes, tile(values, shape, columns), limits, colours)
        return
    low, high = limits
    cell, inside = np.arange(len(values))[:, None], np.linspace(0.06, 0.94, values.shape[1])
    across, up = (
        cell % columns + inside,
        0.06 + 0.88 * (values - low) / (high - low) - cell // columns,
    )
    axes.add_collection(
        LineCollection(list(np.stack([across, up], -1)), colors=BLUE, linewidths=0.7)
    )
    axes.set(xlim=(0, columns), ylim=(-((len(values) - 1) // columns), 1))


def draw_datum(
    axes: Axes, value: np.ndarray, shape: tuple[int, ...], limits: tuple[float, float]
) -> None:
    """Draw one datum `[d]`: an image, or a curve over the features."""
    if is_image(shape):
        draw_image(axes, tile(value[None], shape, 1), limits, "gray")
        return
    plain(axes).plot(value, color=BLUE, linewidth=1)
    axes.set(xlabel="feature")
    axes.label_outer()


def draw_image(axes: Axes, image: np.ndarray, limits: tuple[float, float], colours: str) -> None:
    """Draw one array as an image, without ticks."""
    low, high = limits
    if image.ndim == 3:  # in colour: matplotlib takes values from 0 to 1
        image = np.nan_to_num(((image - low) / (high - low)).clip(0, 1))
    axes.imshow(image, cmap=colours, vmin=low, vmax=high)
    axes.set(
        xticks=[], yticks=[], facecolor="black" if colours == "gray" else "white"
    )  # the colour of nan
    axes.spines[:].set_visible(False)


def plain(axes: Axes) -> Axes:
    """The same axes without the upper and right border."""
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def draw_curves(axes: Axes, runs: Mapping[str, Sequence[Epoch]], fields: tuple[str, ...]) -> None:
    """A line a run and field, a colour a run; the legend tells the fields apart."""
    plain(axes).xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    handles = {}
    for i, history in enumerate(runs.values()):
        for field in fields:
            values = [getattr(epoch, field) for epoch in history]
            if np.isfinite(values).any():
                label, dashes, width = CURVES[field]
                style: dict[str, Any] = {
                    "linestyle": dashes,
                    "linewidth": width,
                    "marker": "." if len(values) == 1 else None,
                }
                axes.plot(
                    [epoch.epoch for epoch in history], values, color=RUNS[i % len(RUNS)], **style
                )
                handles[field] = Line2D(
                    [], [], color=INK if len(runs) > 1 else BLUE, label=label, **style
                )
    axes.legend(handles=list(handles.values()), frameon=False)


def draw_scatter(axes: Axes, means: np.ndarray, colours: np.ndarray) -> None:
    """Two units of the posterior means `[N, m]`: both of two, else those of the largest variance."""
    two = means.shape[1] == 2
    first, second = (0, 1) if two else np.argsort(-means.var(0), kind="stable")[:2]
    axes.scatter(means[:, first], means[:, second], s=8, c=colours, alpha=0.8, linewidths=0)
    axes.set_title("Latent space" if two else "Latent space, the two units of the largest variance")
    axes.set(xlabel=f"z[{first}], posterior mean", ylabel=f"z[{second}], posterior mean")


def draw_bars(axes: Axes, heights: np.ndarray, active: np.ndarray) -> None:
    """Sorted bars, named by their units where there is room."""
    order = np.argsort(-heights, kind="stable")
    axes.bar(
        np.arange(len(order)), heights[order], color=np.where(active[order], BLUE, GREY).tolist()
    )
    centre, reach = (len(order) - 1) / 2, max(len(order), 12) / 2 + 0.2
    ticks = order.tolist() if len(order) <= 40 else []
    axes.set_xticks(range(len(ticks)), ticks, fontsize=8)
    axes.set(xlim=(centre - reach, centre + reach), xlabel="latent unit, sorted")


def label_colours(count: int) -> list[str]:
    """A colour for each of `count` labels."""
    if count == 1:
        return [BLUE]
    if count <= len(LABELS):
        return list(LABELS[:count])
    colours = matplotlib.colormaps["tab20" if count <= 20 else "viridis"]
    return [
        matplotlib.colors.to_hex(colours(i if count <= 20 else i / (count - 1)))
        for i in range(count)
    ]


def label_legend(axes: Axes, names: np.ndarray, colours: list[str]) -> None:
    """A legend of label names in their colours, beside the axes."""
    if len(names) <= 20:
        handles = [
            Patch(color=colour, label=str(name))
            for name, colour in zip(names, colours, strict=True)
        ]
        axes.figure.legend(
            handles=handles, loc="outside right center", frameon=False, handlelength=1
        )
        return
    colour_map = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(1, len(names)), "viridis")
    axes.figure.colorbar(
        colour_map, ax=axes, label=f"label, by rank, from {names[0]} to {names[-1]}"
    )


def save(figure: Figure, path: Path) -> None:
    """Write a picture whole or not at all."""
    guarded(path, lambda file: figure.savefig(file, dpi=150))
