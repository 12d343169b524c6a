"""Parts of figures: colours, tiled images, curves, scatter plots, bars.

Nothing here computes statistics or runs a model.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from torch import Tensor

from pyroae.data.image_channels import AXES, channel_axis
from pyroae.runtime.files import guarded
from pyroae.training.state import Epoch

BLUE, GREY, INK = "#0072B2", "#B8B8B8", "#333333"
"""Colours of data, of secondary marks, and of reference lines and text."""


RUNS = (BLUE, "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6BB1")
"""Colours of runs: those of Okabe and Ito, for colour-blind readers, and a violet."""


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
"""Colours of labels: the ten of Petroff (2021), which colour-blind readers can distinguish."""


WIDE = 40
"""Vectors of more elements are drawn as sequences."""


CURVES: dict[str, tuple[str, Any, float]] = {
    "train_nelbo": ("training", (0, (4, 2)), 0.9),
    "valid_nelbo": ("validation", "-", 1.8),
    "distortion": ("distortion", "-", 1.8),
    "rate": ("rate", ":", 1.8),
}
"""Fields of an `Epoch` that are drawn: label, dashes and width of the line."""


def to_array(values: Tensor) -> np.ndarray:
    """Copy a tensor to a NumPy array on the host.

    Args:
        values: A tensor on any device.

    Returns:
        The array, of the same shape.
    """
    return values.detach().cpu().numpy()


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether data of a shape are drawn as images.

    Args:
        shape: The shape of one datum.

    Returns:
        True for (height, width), and for three dimensions with 1, 3 or 4 channels, first or last.

    >>> is_image((8, 8)), is_image((3, 8, 8)), is_image((8, 8, 3)), is_image((20,))
    (True, True, True, False)
    """
    axis = channel_axis(shape)
    return len(shape) == 2 or (axis is not None and shape[axis] in (1, 3, 4))


def limits_of(values: np.ndarray) -> tuple[float, float]:
    """Choose the values that are drawn black and white.

    Args:
        values: Data, of any shape.

    Returns:
        0 and 1 for data in between; otherwise the smallest and the largest value, or a range of 1
        around a constant.
    """
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def tile(values: np.ndarray, shape: tuple[int, ...], columns: int) -> np.ndarray:
    """Arrange images in one array, row by row, separated by one pixel of NaN.

    Args:
        values: Flat images, `[N, d]`.
        shape: The shape of one image, for which `is_image` holds.
        columns: Images per row.

    Returns:
        The array, `[H, W]`, or `[H, W, 3]` for colour images; of 4 channels the first three.
    """
    if channel_axis(shape) == AXES["last"]:
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
    return image[..., 0] if channels == 1 else image[..., :3]


def draw_grid(
    axes: Axes,
    values: np.ndarray,
    shape: tuple[int, ...],
    limits: tuple[float, float],
    colours: str = "gray",
    columns: int | None = None,
) -> None:
    """Draw data in a grid, row by row: images, or curves over the features.

    Args:
        axes: The axes to draw on.
        values: Data, `[N, d]`.
        shape: The shape of one datum.
        limits: The values that are drawn black and white, or at the lower and upper edge.
        colours: A colour map of matplotlib.
        columns: The number of columns; by default that of a square grid.
    """
    columns = columns or math.ceil(math.sqrt(len(values)))
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
    """Draw one datum: an image, or a curve over the features.

    Args:
        axes: The axes to draw on.
        value: The datum, `[d]`.
        shape: Its shape.
        limits: The values that are drawn black and white.
    """
    if is_image(shape):
        draw_image(axes, tile(value[None], shape, 1), limits, "gray")
        return
    plain(axes).plot(value, color=BLUE, linewidth=1)
    axes.set(xlabel="feature")


def draw_image(axes: Axes, image: np.ndarray, limits: tuple[float, float], colours: str) -> None:
    """Draw one array as an image, without ticks.

    Args:
        axes: The axes to draw on.
        image: Pixels, `[H, W]` or `[H, W, 3]`; NaN is black under `"gray"`, otherwise white.
        limits: The values at both ends of the colour map.
        colours: A colour map of matplotlib; colour images ignore it.
    """
    low, high = limits
    if image.ndim == 3:  # matplotlib expects colours from 0 to 1
        image = np.nan_to_num(((image - low) / (high - low)).clip(0, 1))
    axes.imshow(image, cmap=colours, vmin=low, vmax=high)
    nan_colour = "black" if colours == "gray" else "white"
    axes.set(xticks=[], yticks=[], facecolor=nan_colour)
    axes.spines[:].set_visible(False)


def plain(axes: Axes) -> Axes:
    """Remove the upper and right border.

    Args:
        axes: The axes, which are changed in place.

    Returns:
        The same axes.
    """
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def draw_curves(axes: Axes, runs: Mapping[str, Sequence[Epoch]], fields: tuple[str, ...]) -> None:
    """Draw one line per run and field; each run has a colour, and the legend names the fields.

    Args:
        axes: The axes to draw on.
        runs: Epochs of each run, by its name.
        fields: Names of fields, keys of `CURVES`; fields without a finite value are left out.
    """
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


def draw_scatter(axes: Axes, means: np.ndarray, colours: np.ndarray, site: str = "z") -> None:
    """Draw two units of posterior means: both of two, otherwise those of the largest variance.

    Args:
        axes: The axes to draw on.
        means: Posterior means, `[N, m]` with m ≥ 2.
        colours: A colour per datum, `[N]`.
        site: The name of the site, for the labels of the axes.
    """
    two = means.shape[1] == 2
    first, second = (0, 1) if two else np.argsort(-means.var(0), kind="stable")[:2]
    axes.scatter(means[:, first], means[:, second], s=8, c=colours, alpha=0.8, linewidths=0)
    axes.set_title("Latent space" if two else "Latent space, the two units of the largest variance")
    axes.set(xlabel=f"{site}[{first}], posterior mean", ylabel=f"{site}[{second}], posterior mean")


def draw_bars(axes: Axes, heights: np.ndarray, active: np.ndarray) -> None:
    """Draw sorted bars, labelled with their units if there are at most 40.

    Args:
        axes: The axes to draw on.
        heights: The height of the bar of each unit, `[m]`.
        active: Whether the unit is active, `[m]`; the others are grey.
    """
    order = np.argsort(-heights, kind="stable")
    axes.bar(
        np.arange(len(order)), heights[order], color=np.where(active[order], BLUE, GREY).tolist()
    )
    centre, reach = (len(order) - 1) / 2, max(len(order), 12) / 2 + 0.2
    ticks = order.tolist() if len(order) <= 40 else []
    axes.set_xticks(range(len(ticks)), ticks, fontsize=8)
    axes.set(xlim=(centre - reach, centre + reach), xlabel="latent unit, sorted")


def label_colours(count: int) -> list[str]:
    """Choose a colour for each label.

    Args:
        count: The number of labels.

    Returns:
        `count` colours: distinct ones for up to 20 labels, otherwise a sequence.
    """
    if count == 1:
        return [BLUE]
    if count <= len(LABELS):
        return list(LABELS[:count])
    colours = matplotlib.colormaps["tab20" if count <= 20 else "viridis"]
    return [
        matplotlib.colors.to_hex(colours(i if count <= 20 else i / (count - 1)))
        for i in range(count)
    ]


def rendered(figure: Figure, suffix: str = ".png", caption: str = "", **about: str) -> bytes:
    """Convert a figure to the content of a file.

    A PDF has its text as text (TrueType fonts) and no creation date: equal figures give equal
    files.

    Args:
        figure: The figure.
        suffix: The format, as the suffix of a file.
        caption: A line that is drawn below the figure, and is the `Description` of a PNG; empty for
            none.
        **about: Other texts to record in a PNG, by their names.

    Returns:
        The content, in memory: a full disk cannot leave half of it.
    """
    metadata: dict[str, Any] = {"CreationDate": None} if suffix == ".pdf" else {}
    if suffix == ".png":
        metadata = {**about, **({"Description": caption} if caption else {})}
    return _drawn(figure, suffix, caption, metadata)


def _drawn(figure: Figure, suffix: str, caption: str, metadata: dict[str, Any]) -> bytes:
    box = _with_caption(figure, caption) if caption else None
    memory = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(memory, format=suffix[1:], dpi=150, metadata=metadata, bbox_inches=box)
    return memory.getvalue()


def _with_caption(figure: Figure, caption: str) -> Bbox:
    """Draw a line below a figure, and return the box of both, in inches.

    Here the layout is computed and kept: for `bbox_inches="tight"` matplotlib would draw twice.
    """
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.execute(figure)
        with matplotlib.rc_context(
            {"figure.autolayout": False, "figure.constrained_layout.use": False}
        ):
            figure.set_layout_engine(None)
    for legend in figure.legends:  # else a tight box moves them to its own edge, over the caption
        legend.set_bbox_to_anchor((0.0, 0.0, 1.0, 1.0), figure.transFigure)
    drawn = figure.get_tightbbox()
    bottom = min(0.0, drawn.y0 / figure.get_figheight())
    lines = wrap(caption, max(40, int(19 * figure.get_figwidth())))
    text = figure.text(
        0.5, bottom - 0.01, "\n".join(lines), fontsize=6, color=INK, ha="center", va="top"
    )
    below = text.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    return Bbox.union([drawn, below]).padded(0.05)


def save(figure: Figure, path: Path, caption: str = "") -> None:
    """Write a figure to a file, completely or not at all.

    Args:
        figure: The figure.
        path: The file; its suffix is the format, as of `rendered`.
        caption: A line below the figure; empty for none.

    Raises:
        RunError: Where it cannot be written.
    """
    content = rendered(figure, path.suffix, caption)
    guarded(path, lambda file: file.write_bytes(content))


def save_both(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG, for a screen, and as PDF, for a paper.

    Args:
        figure: The figure.
        path: The files, without `.png` and `.pdf`, which are appended.

    Returns:
        The two files.

    Raises:
        RunError: Where one cannot be written.
    """
    files = [path.with_name(path.name + suffix) for suffix in (".png", ".pdf")]
    for file in files:
        save(figure, file)
    return files
