"""Results -> matplotlib figures: each function returns a Figure of its own, to be written by `figure.savefig(path)`.

Figures are made without pyplot: no window, no settings and no list of open figures are touched. Data are drawn as images
where the system's shape is (height, width), (1, height, width) or (3, height, width), else as curves over the features.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from pyroae.autoencoder import Autoencoder
from pyroae.corruptions import Identity
from pyroae.errors import ConfigError, DataError
from pyroae.evaluation.diagnostics import Diagnostics
from pyroae.evaluation.likelihood import LikelihoodEstimate
from pyroae.nn import Atoms, Tied
from pyroae.priors import Normal
from pyroae.training import Epoch
from pyroae.weights import evaluating, fork_random

Labels = Sequence[Any] | np.ndarray | Tensor

BLUE, GREY, INK = "#0072B2", "#B8B8B8", "#333333"
RUNS = (BLUE, "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6BB1")
"""Okabe & Ito's colours, which a colour-blind reader can tell apart, and a violet."""
LABELS = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
"""Petroff's ten (2021), chosen for the same reason, for labels."""
CURVES: dict[str, tuple[str, Any, float]] = {
    "train_nelbo": ("training", (0, (4, 2)), 0.9),
    "valid_nelbo": ("validation", "-", 1.8),
    "distortion": ("distortion", "-", 1.8),
    "rate": ("rate", ":", 1.8),
}
"""Fields of an Epoch: name, dashes and width of the line."""


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
    for axes, (title, fields) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _curves(axes, runs, fields)
        axes.set(title=title, xlabel="epoch", ylabel="nats per datum")
    if "" not in runs:
        handles = [Line2D([], [], color=RUNS[i % len(RUNS)], linewidth=3, label=name) for i, name in enumerate(runs)]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def reconstructions(autoencoder: Autoencoder, x: Tensor, num: int = 10, labels: Labels | None = None) -> Figure:
    """Data above their reconstructions, the mean of p(x|z) at the mean of q(z|x), a column each for the first `num`.

    A system with a corruption shows the corrupted data too, and reconstructs from those. x: `[N, d]` or `[N, *shape]`.
    labels: titles of the columns. Raises DataError where there are no data.
    """
    x = _ready(autoencoder, x[: max(num, 0)])
    with evaluating(autoencoder), fork_random(x.device, 0):
        seen = autoencoder.corruption(x)
        rows = {"input": x, "corrupted": seen, "reconstruction": autoencoder.reconstruct(seen)}
    if isinstance(autoencoder.corruption, Identity):
        del rows["corrupted"]
    curves = not _is_image(autoencoder.shape)
    size = (0.75 * len(x) + 1.3, (1.2 if curves else 0.73) * len(rows) + 0.3)
    figure = Figure(size, dpi=150, layout="constrained")
    grid = figure.subplots(len(rows), len(x), squeeze=False, sharey=curves)
    for row, (name, values) in zip(grid, rows.items(), strict=True):
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes, value in zip(row, _array(values), strict=True):
            _one(axes, value, autoencoder.shape, _limits(_array(x)))
    for axes, label in zip(grid[0], [] if labels is None else np.asarray(labels), strict=False):
        axes.set_title(str(label), fontsize="medium")
    return figure


def samples(autoencoder: Autoencoder, num: int = 64, seed: int = 0) -> Figure:
    """A square grid of means of p(x|z) for `num` draws of z from the prior; torch's generators stay as they were.

    Raises UndefinedLikelihoodError under a Flat prior, which cannot be sampled.

    >>> figure = samples(Autoencoder((8, 8), latent=2), num=9)
    >>> figure.axes[0].images[0].get_array().shape  # three rows of 8 pixels, one pixel apart
    (26, 26)
    """
    return sample_grids({"Samples from the prior": autoencoder}, num, seed)


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
    for axes, (name, autoencoder) in zip(panels, autoencoders.items(), strict=False):
        with evaluating(autoencoder), fork_random(_like(autoencoder).device, seed):
            values = _array(autoencoder.sample(num))
        _grid(axes, values, autoencoder.shape, _limits(values))
        axes.set_title(name)
    for axes in panels[len(autoencoders) :]:
        axes.set_axis_off()
    return figure


def latent_scatter(autoencoder: Autoencoder, x: Tensor, labels: Labels | None = None) -> Figure:
    """Means of q(z|x): the two units of the largest variance over the data, coloured by label; a histogram for m = 1.

    x: `[N, d]` or `[N, *shape]`. labels: `[N]`; up to 20 distinct ones get a legend, more a colour bar of their ranks.
    Raises DataError where the numbers of data and labels differ.
    """
    x = _ready(autoencoder, x)
    if labels is not None and len(labels) != len(x):
        raise DataError(f"there are {len(x)} data and {len(labels)} labels")
    with evaluating(autoencoder):
        means = _array(autoencoder.encode(x))
    names, ranks = np.unique(np.zeros(len(x)) if labels is None else np.asarray(labels), return_inverse=True)
    colours = _label_colours(len(names))
    figure = Figure((5.2, 4.2), dpi=150, layout="constrained")
    axes = _plain(figure.subplots())
    if autoencoder.latent == 1:
        axes.hist([means[ranks == i, 0] for i in range(len(names))], 40, stacked=True, color=colours)
        axes.set(title="Latent space", xlabel="z[0], posterior mean", ylabel="data")
    else:
        _scatter(axes, means, np.array(colours)[ranks])
    if labels is not None:
        _label_legend(axes, names, colours)
    return figure


def manifold(autoencoder: Autoencoder, num: int = 20) -> Figure:
    """Means of p(x|z) over a plane of z, `num` by `num`: quantiles of N(0, 1) from 0.02 to 0.98 on both axes.

    z[0] grows to the right, z[1] upwards (Kingma & Welling 2014, figure 4).
    Raises ConfigError for a latent space of another dimension than 2, or another prior than Normal.
    """
    if autoencoder.latent != 2:
        raise ConfigError(f"a manifold is drawn of a latent space of 2 dimensions; this one has {autoencoder.latent}")
    if not isinstance(autoencoder.prior, Normal):
        raise ConfigError(f"a manifold is drawn through the quantiles of a Normal prior; this prior is {autoencoder.prior}")
    _refuse_none("quantiles", num)
    like = _like(autoencoder)
    quantiles = torch.special.ndtri(torch.linspace(0.02, 0.98, num, dtype=like.dtype, device=like.device))
    with evaluating(autoencoder):
        values = _array(autoencoder.decode(torch.cartesian_prod(quantiles.flip(0), quantiles).flip(-1)))
    figure = Figure((5, 5), dpi=200, layout="constrained")
    axes = figure.subplots()
    _grid(axes, values, autoencoder.shape, _limits(values))
    axes.set(title="Learned manifold", xlabel="z[0], quantiles 0.02 to 0.98 →", ylabel="z[1], quantiles 0.02 to 0.98 →")
    return figure


def kl_per_unit(diagnostics: Diagnostics) -> Figure:
    """Bars of each latent unit's KL(q ‖ p) in nats, sorted; inactive units are grey.

    Where no unit has a KL (Delta guides), of its activity Var_x(E_q[z_j|x]), with the threshold as a line.
    """
    kl, activity, threshold = _array(diagnostics.kl_per_unit), _array(diagnostics.activity), diagnostics.threshold
    figure = Figure((min(10.0, 4.4 + 0.16 * len(kl)), 3.6), dpi=150, layout="constrained")
    axes = _plain(figure.subplots())
    axes.set_title(f"{diagnostics.active_units} of {len(kl)} units active")
    if np.isnan(kl).all():
        _bars(axes, activity, activity > threshold)
        axes.axhline(threshold, color=INK, linewidth=1, linestyle="--")
        axes.set(yscale="log", ylabel="variance of the posterior mean\n(this guide has no KL by unit)")
        axes.set_ylim(min([threshold, *activity[activity > 0]]) / 2)
    else:
        _bars(axes, kl, activity > threshold)
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
    values, shape, title = _filters(autoencoder)
    values = values[: max(num, 0)]
    _refuse_none("filters", len(values))
    largest = float(np.abs(values).max()) or 1.0
    figure = Figure((5, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    _grid(axes, values, shape, (-largest, largest), "RdBu_r")
    axes.set_title(title)
    if _is_image(shape) and math.prod(shape[:-2]) == 1:
        figure.colorbar(axes.images[0], ax=axes, label="weight", shrink=0.6)
    return figure


def likelihood_per_datum(estimate: LikelihoodEstimate) -> Figure:
    """Estimates of log p(x), sorted, ± 2 standard errors; beside them the effective sample size as a share of K."""
    log_px, se, share = (_array(v) for v in (estimate.log_px, estimate.se, estimate.ess / estimate.num_particles))
    order = np.argsort(log_px)
    figure = Figure((8.8, 3.4), dpi=150, layout="constrained")
    left, right = (_plain(axes) for axes in figure.subplots(1, 2, width_ratios=(3, 2)))
    style: dict[str, Any] = {"fmt": ".", "markersize": 3, "color": BLUE, "ecolor": "#8FC1E0", "elinewidth": 1}
    left.errorbar(np.arange(len(order)), log_px[order], yerr=2 * se[order], **style)
    mean = f"mean, {-estimate.nll:.2f} nats".replace("-", "−")
    left.axhline(-estimate.nll, color=INK, linewidth=1, linestyle="--", label=mean)
    left.legend(frameon=False, loc="lower right")
    left.set(title=f"log p(x) ± 2 SE, K = {estimate.num_particles:,}", xlabel="datum, sorted", ylabel="log p(x), nats")
    low = min(1 / estimate.num_particles, 0.01)
    right.hist(share.clip(low, 1), np.geomspace(low, 1, 31).tolist(), color=BLUE)
    right.set(title="Effective sample size", xlabel="ESS / K", ylabel="data", xscale="log", xlim=(low, 1))
    right.xaxis.set_major_formatter("{x:g}")
    return figure


# What the figures are made of.


def _like(autoencoder: Autoencoder) -> Tensor:
    return next(autoencoder.parameters())


def _ready(autoencoder: Autoencoder, x: Tensor) -> Tensor:
    """x as `[N, d]` in the system's dtype and on its device."""
    _refuse_none("data", len(x))
    like = _like(autoencoder)
    return autoencoder.flat(x.to(like.device, like.dtype))


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()


def _refuse_none(what: str, count: int) -> None:
    if count < 1:
        raise DataError(f"there are no {what} to draw")


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Black and white: 0 and 1 for values between them, else the smallest and the largest."""
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _tile(values: np.ndarray, shape: tuple[int, ...], columns: int) -> np.ndarray:
    """Images `[N, d]` as one, row by row, one pixel of nan apart: `[H, W]`, with a last dimension of 3 for (3, h, w)."""
    channels, height, width = (1, *shape)[-3:]
    rows = math.ceil(len(values) / columns)
    cells = np.full((rows * columns, height + 1, width + 1, channels), np.nan)
    cells[: len(values), :-1, :-1] = values.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
    tiled = cells.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    image = tiled.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]
    return image[..., 0] if channels == 1 else image


def _grid(axes: Axes, values: np.ndarray, shape: tuple[int, ...], limits: tuple[float, float], colours: str = "gray") -> None:
    """Draw data `[N, d]` in a square grid, row by row."""
    columns = math.ceil(math.sqrt(len(values)))
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)
    if _is_image(shape):
        _image(axes, _tile(values, shape, columns), limits, colours)
        return
    low, high = limits
    cell, inside = np.arange(len(values))[:, None], np.linspace(0.06, 0.94, values.shape[1])
    across, up = cell % columns + inside, 0.06 + 0.88 * (values - low) / (high - low) - cell // columns
    axes.add_collection(LineCollection(list(np.stack([across, up], -1)), colors=BLUE, linewidths=0.7))
    axes.set(xlim=(0, columns), ylim=(-((len(values) - 1) // columns), 1))


def _one(axes: Axes, value: np.ndarray, shape: tuple[int, ...], limits: tuple[float, float]) -> None:
    """Draw one datum `[d]`: an image, or a curve over the features."""
    if _is_image(shape):
        _image(axes, _tile(value[None], shape, 1), limits, "gray")
        return
    _plain(axes).plot(value, color=BLUE, linewidth=1)
    axes.set(xlabel="feature")
    axes.label_outer()


def _image(axes: Axes, image: np.ndarray, limits: tuple[float, float], colours: str) -> None:
    low, high = limits
    if image.ndim == 3:  # in colour: matplotlib takes values from 0 to 1
        image = np.nan_to_num(((image - low) / (high - low)).clip(0, 1))
    axes.imshow(image, cmap=colours, vmin=low, vmax=high)
    axes.set(xticks=[], yticks=[], facecolor="black" if colours == "gray" else "white")  # the colour of nan
    axes.spines[:].set_visible(False)


def _plain(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _curves(axes: Axes, runs: Mapping[str, Sequence[Epoch]], fields: tuple[str, ...]) -> None:
    """A line a run and field, a colour a run; the legend tells the fields apart."""
    _plain(axes).xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    handles = {}
    for i, history in enumerate(runs.values()):
        for field in fields:
            values = [getattr(epoch, field) for epoch in history]
            if np.isfinite(values).any():
                label, dashes, width = CURVES[field]
                style: dict[str, Any] = {"linestyle": dashes, "linewidth": width, "marker": "." if len(values) == 1 else None}
                axes.plot([epoch.epoch for epoch in history], values, color=RUNS[i % len(RUNS)], **style)
                handles[field] = Line2D([], [], color=INK if len(runs) > 1 else BLUE, label=label, **style)
    axes.legend(handles=list(handles.values()), frameon=False)


def _scatter(axes: Axes, means: np.ndarray, colours: np.ndarray) -> None:
    """Two units of the posterior means `[N, m]`: both of two, else those of the largest variance."""
    two = means.shape[1] == 2
    first, second = (0, 1) if two else np.argsort(-means.var(0), kind="stable")[:2]
    axes.scatter(means[:, first], means[:, second], s=8, c=colours, alpha=0.8, linewidths=0)
    axes.set_title("Latent space" if two else "Latent space, the two units of the largest variance")
    axes.set(xlabel=f"z[{first}], posterior mean", ylabel=f"z[{second}], posterior mean")


def _bars(axes: Axes, heights: np.ndarray, active: np.ndarray) -> None:
    """Sorted bars, named by their units where there is room."""
    order = np.argsort(-heights, kind="stable")
    axes.bar(np.arange(len(order)), heights[order], color=np.where(active[order], BLUE, GREY).tolist())
    centre, reach = (len(order) - 1) / 2, max(len(order), 12) / 2 + 0.2
    ticks = order.tolist() if len(order) <= 40 else []
    axes.set_xticks(range(len(ticks)), ticks, fontsize=8)
    axes.set(xlim=(centre - reach, centre + reach), xlabel="latent unit, sorted")


def _label_colours(count: int) -> list[str]:
    if count == 1:
        return [BLUE]
    if count <= len(LABELS):
        return list(LABELS[:count])
    colours = matplotlib.colormaps["tab20" if count <= 20 else "viridis"]
    return [matplotlib.colors.to_hex(colours(i if count <= 20 else i / (count - 1))) for i in range(count)]


def _label_legend(axes: Axes, names: np.ndarray, colours: list[str]) -> None:
    if len(names) <= 20:
        handles = [Patch(color=colour, label=str(name)) for name, colour in zip(names, colours, strict=True)]
        axes.figure.legend(handles=handles, loc="outside right center", frameon=False, handlelength=1)
        return
    colour_map = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(1, len(names)), "viridis")
    axes.figure.colorbar(colour_map, ax=axes, label=f"label, by rank, from {names[0]} to {names[-1]}")


def _filters(autoencoder: Autoencoder) -> tuple[np.ndarray, tuple[int, ...], str]:
    """Filters `[n, ...]`, the shape of one, and what they are."""
    decoder, encoder = autoencoder.decoder, autoencoder.encoder
    layers = [m for m in (encoder if isinstance(decoder, Tied) else decoder).modules() if not list(m.children())]
    if [type(m) for m in layers] in ([nn.Linear], [Atoms]) and autoencoder.likelihood.outputs == 1:
        like = _like(autoencoder)
        points = torch.eye(autoencoder.latent + 1, autoencoder.latent, dtype=like.dtype, device=like.device)  # the last is 0
        with torch.no_grad():
            outputs = decoder(points)
        return _array(outputs[:-1] - outputs[-1]), autoencoder.shape, "Decoder columns, by latent unit"
    first = next((m for m in encoder.modules() if isinstance(m, nn.Linear | nn.Conv2d)), None)
    if first is None:
        raise ConfigError("this system has no filters to draw: its decoder is not linear, its encoder has no first layer")
    weight = _array(first.weight)
    if isinstance(first, nn.Linear):
        return weight, autoencoder.shape, "First layer of the encoder, by hidden unit"
    shape = weight.shape[1:] if _is_image(weight.shape[1:]) else weight.shape[2:]
    return weight.reshape(-1, math.prod(shape)), shape, "First convolution of the encoder, by kernel"
