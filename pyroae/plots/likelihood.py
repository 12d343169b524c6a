"""Figures of log-likelihoods: per datum, against K, k̂, bounds from both sides, extreme data."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from pyroae.errors import DataError
from pyroae.evaluation.importance.likelihood import LikelihoodEstimate
from pyroae.plots.canvas import Target, canvas
from pyroae.plots.drawing import BLUE, INK, RUNS, draw_datum, limits_of, plain, to_array
from pyroae.plots.rate_distortion_curves import rate_distortion

__all__ = [
    "bound_curve",
    "extremes",
    "khat",
    "likelihood_per_datum",
    "rate_distortion",
    "sandwich",
]

BAD = RUNS[1]
"""The colour of unreliable data."""


MOST_NUMBERS = 10
"""The largest number of data whose number stands beside their k̂."""


def likelihood_per_datum(estimate: LikelihoodEstimate, *, ax: Target | None = None) -> Figure:
    """Draw log p(x) of each datum, sorted, and the effective sample sizes.

    The left panel has 95 % intervals in nats, and a colour for unreliable data. The right panel is
    a histogram of ESS / K.

    Args:
        estimate: Importance-sampled log-likelihoods.
        ax: Two Axes or a SubFigure to draw into; None for a new figure.

    Returns:
        The figure, with two panels.
    """
    log_px, share = to_array(estimate.log_px), to_array(estimate.ess / estimate.draws)
    ends = np.abs(to_array(estimate.interval) - log_px)
    order = np.argsort(log_px)
    bad = np.isin(order, to_array(estimate.unreliable))
    place = canvas(ax, (8.8, 3.4), 1, 2, width_ratios=(3, 2))
    left, right = map(plain, place.panels)
    for which, colour, pale, label in (
        (~bad, BLUE, "#8FC1E0", ""),
        (bad, BAD, "#EDB98F", f"k̂ too high: {bad.sum()}"),
    ):
        at, data = np.arange(len(order))[which], order[which]
        style: dict[str, Any] = {"markersize": 3, "color": colour, "ecolor": pale, "elinewidth": 1}
        if len(at):
            error = np.nan_to_num(ends[:, data], nan=0.0, posinf=0.0)
            left.errorbar(at, log_px[data], yerr=error, fmt=".", **style)
        if label and len(at):
            left.plot([], [], ".", color=colour, label=label)
    left.axhline(
        -estimate.nll,
        color=INK,
        linewidth=1,
        linestyle="--",
        label=f"mean, {_nats(-estimate.nll)} nats",
    )
    left.legend(frameon=False, loc="lower right")
    left.set(
        title=f"log p(x), 95 % intervals, K = {estimate.num_particles:,}",
        xlabel="datum, sorted",
        ylabel="log p(x), nats",
    )
    low = min(1 / estimate.num_particles, 0.01)
    right.hist(share.clip(low, 1), np.geomspace(low, 1, 31).tolist(), color=BLUE)
    right.set(
        title="Effective sample size", xlabel="ESS / K", ylabel="data", xscale="log", xlim=(low, 1)
    )
    right.xaxis.set_major_formatter("{x:g}")
    return place.figure


def bound_curve(
    estimates: Mapping[str, LikelihoodEstimate],
    levels: Mapping[str, float] | None = None,
    *,
    ax: Target | None = None,
) -> Figure:
    """Draw the mean bound on log p(x) against K, with its 95 % band.

    Where a curve is flat, K is large enough. The diamonds are the jackknife's estimates of the
    limit K → ∞.

    Args:
        estimates: Importance-sampled log-likelihoods, by the name of their proposal.
        levels: Horizontal lines by name, such as the exact log p(x), in nats per datum.
        ax: The Axes to draw into; None for a new figure.

    Returns:
        The figure.
    """
    place = canvas(ax, (5.6, 3.6))
    axes = plain(place.panels[0])
    for i, (name, estimate) in enumerate(estimates.items()):
        curve, colour = estimate.curve, RUNS[i % len(RUNS)]
        ks, bound = to_array(curve.ks), to_array(curve.bound)
        half = 1.96 * np.nan_to_num(to_array(curve.se), nan=estimate.monte_carlo_se)
        axes.plot(ks, bound, ".-", color=colour, linewidth=1.6, markersize=4, label=name)
        axes.fill_between(ks, bound - half, bound + half, color=colour, alpha=0.25, linewidth=0)
        jackknife = estimate.jackknife.mean().item()
        axes.plot(ks[-1:], [jackknife], "D", color=colour, markersize=4, markerfacecolor="white")
    axes.plot(
        [], [], "D", color=INK, markersize=4, markerfacecolor="white", label="jackknife, K → ∞"
    )
    for (name, level), dashes in zip((levels or {}).items(), ("--", ":", "-.", "-"), strict=False):
        axes.axhline(
            level, color=INK, linewidth=1, linestyle=dashes, label=f"{name}, {_nats(level)}"
        )
    axes.set(xscale="log", xlabel="K, particles", ylabel="bound on log p(x), nats per datum")
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize="small")
    return place.figure


def khat(estimate: LikelihoodEstimate, *, ax: Target | None = None) -> Figure:
    """Draw k̂ of each datum; the largest ones that are too high have the number of their datum.

    Args:
        estimate: Importance-sampled log-likelihoods.
        ax: The Axes to draw into; None for a new figure.

    Returns:
        The figure.

    Raises:
        DataError: Where K is too small for k̂.
    """
    values = to_array(estimate.smoothed.khat)
    if np.isnan(values).all():
        raise DataError(f"there is no k̂: K = {estimate.num_particles} is too few for a tail")
    limit = float(estimate.khat_limit.min())
    drawn = np.where(np.isfinite(values), values, np.nan_to_num(np.nanmin(values), neginf=-1.0))
    place = canvas(ax, (6.4, 3.2))
    axes, bad = plain(place.panels[0]), drawn >= limit
    for which, colour, words in ((~bad, BLUE, "below the limit"), (bad, BAD, "too high")):
        if which.any():
            at, label = np.flatnonzero(which), f"{words}: {which.sum():,}"
            axes.scatter(at, drawn[which], s=14, color=colour, linewidths=0, label=label)
    axes.axhline(limit, color=INK, linewidth=1, linestyle="--", label=f"limit, {limit:.2f}")
    for n in _apart(drawn, np.flatnonzero(bad)):
        above: dict[str, Any] = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center"}
        axes.annotate(str(n), (n, drawn[n]), fontsize="x-small", color=BAD, **above)
    axes.margins(y=0.15)
    axes.set(
        title=f"Pareto k̂, limit {limit:.2f} for K = {estimate.num_particles:,}",
        xlabel="datum",
        ylabel="k̂",
    )
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return place.figure


def _apart(values: np.ndarray, candidates: np.ndarray) -> list[int]:
    """At most `MOST_NUMBERS` candidates, the largest first, whose numbers do not overlap."""
    span = max(float(np.ptp(values)), 1e-9)
    chosen: list[int] = []
    for n in candidates[np.argsort(-values[candidates], kind="stable")].tolist():
        is_free = all(
            abs(n - other) > 0.07 * len(values) or abs(values[n] - values[other]) > 0.12 * span
            for other in chosen
        )
        if is_free and len(chosen) < MOST_NUMBERS:
            chosen.append(n)
    return chosen


def sandwich(
    bounds: Mapping[str, tuple[float, float]], title: str = "", *, ax: Target | None = None
) -> Figure:
    """Draw bounds and estimates of the mean log p(x), one per row.

    Args:
        bounds: (value, half of its 95 % interval) in nats per datum, by name, from the loosest
            lower bound up. NaN draws no interval.
        title: The title of the figure.
        ax: The Axes to draw into; None for a new figure.

    Returns:
        The figure.

    >>> figure = sandwich({"ELBO": (-95.0, 0.1), "exact": (-92.0, 0.0)})
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['ELBO', 'exact']
    """
    place = canvas(ax, (6.4, 0.42 * len(bounds) + 1.0))
    axes = plain(place.panels[0])
    for i, (name, (value, half)) in enumerate(bounds.items()):
        upper = "upper" in name
        colour = RUNS[2] if upper else INK if name in ("exact", "quadrature") else BLUE
        error = 0.0 if np.isnan(half) else half
        style: dict[str, Any] = {
            "fmt": "<" if upper else "o",
            "color": colour,
            "markersize": 5,
            "elinewidth": 2,
        }
        axes.errorbar([value], [i], xerr=[error], **style)
        above: dict[str, Any] = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center"}
        axes.annotate(_nats(value), (value, i), fontsize="x-small", **above)
    axes.set_yticks(range(len(bounds)), list(bounds))
    axes.set(xlabel="log p(x), nats per datum", title=title, ylim=(len(bounds) - 0.4, -0.7))
    axes.margins(x=0.12)
    return place.figure


def extremes(
    x: Tensor | tuple[Tensor, ...],
    log_px: Tensor,
    shape: tuple[int, ...],
    num: int = 10,
    marked: Sequence[int] = (),
    *,
    ax: Target | None = None,
) -> Figure:
    """Draw the data of the lowest and of the highest log p(x).

    The index and log p(x), in nats, are written below each datum.

    Args:
        x: Data, `[N, d]`, or a tuple of arguments, of which the first is drawn.
        log_px: log p(x) of each datum, `[N]`, in nats.
        shape: The shape of one datum.
        num: The number of data per row.
        marked: Indices of unreliable data, which get a row and a colour.
        ax: Axes for `num` data of each row, or a SubFigure, to draw into; None for a new figure.

    Returns:
        The figure.

    Raises:
        DataError: Where there are no data, or the numbers of data and log-likelihoods differ.
    """
    x = x[0] if isinstance(x, tuple) else x
    if not len(x) or len(x) != len(log_px):
        raise DataError(f"there are {len(x)} data and {len(log_px)} log-likelihoods")
    order = torch.argsort(log_px)
    num = min(num, len(x))
    rows = {"worst": order[:num].tolist(), "best": order.flip(0)[:num].tolist()}
    if len(marked):
        rows["k̂ too high"] = list(marked)[:num]
    return _rows_of_data(x, log_px, shape, rows, set(marked), ax)


def _rows_of_data(
    x: Tensor,
    log_px: Tensor,
    shape: tuple[int, ...],
    rows: Mapping[str, Sequence[int]],
    marked: set[int],
    ax: Target | None,
) -> Figure:
    columns = max(map(len, rows.values()))
    place = canvas(ax, (0.8 * columns + 1.3, 1.0 * len(rows) + 0.3), len(rows), columns)
    place.hide_inner_labels()
    grid = place.panels.reshape(len(rows), columns)
    for line, (name, index) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes in line[len(index) :]:
            axes.set_axis_off()
        for axes, n in zip(line, index, strict=False):
            draw_datum(axes, to_array(x[n]), shape, limits_of(to_array(x)))
            axes.set_xlabel(
                f"{n}: {_nats(log_px[n].item(), 1)}",
                fontsize="x-small",
                color=BAD if n in marked else INK,
            )
    return place.figure


def _nats(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", "−")
