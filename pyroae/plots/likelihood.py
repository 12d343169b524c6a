"""Log-likelihoods -> matplotlib figures: per datum with their errors, against K, k̂, the sandwich of bounds, worst and best."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyroae.errors import DataError
from pyroae.evaluation.importance.likelihood import LikelihoodEstimate
from pyroae.plots.drawing import BLUE, GREY, INK, RUNS, draw_datum, limits_of, plain, to_array

BAD = RUNS[1]
"""The colour of what is not to be trusted."""


def likelihood_per_datum(estimate: LikelihoodEstimate) -> Figure:
    """log p(x) of each datum with its 95 % interval, sorted, those of too high a k̂ apart; beside it the ESS as a share of K."""
    log_px, share = to_array(estimate.log_px), to_array(estimate.ess / estimate.draws)
    ends = np.abs(to_array(estimate.interval) - log_px)
    order = np.argsort(log_px)
    bad = np.isin(order, to_array(estimate.unreliable))
    figure = Figure((8.8, 3.4), dpi=150, layout="constrained")
    left, right = (plain(axes) for axes in figure.subplots(1, 2, width_ratios=(3, 2)))
    for which, colour, pale, label in (
        (~bad, BLUE, "#8FC1E0", ""),
        (bad, BAD, "#EDB98F", f"k̂ too high: {bad.sum()}"),
    ):
        at = np.arange(len(order))[which]
        if len(at):
            error = np.nan_to_num(ends[:, order[which]], nan=0.0, posinf=0.0)
            left.errorbar(
                at,
                log_px[order[which]],
                yerr=error,
                fmt=".",
                markersize=3,
                color=colour,
                ecolor=pale,
                elinewidth=1,
            )
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
    return figure


def bound_curve(
    estimates: Mapping[str, LikelihoodEstimate], levels: Mapping[str, float] | None = None
) -> Figure:
    """The mean bound against K, with its 95 % band, of each proposal by name; where it is flat, K is large enough.

    levels: horizontal lines, such as the exact log p(x), in nats per datum.
    """
    figure = Figure((5.6, 3.6), dpi=150, layout="constrained")
    axes = plain(figure.subplots())
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
    axes.legend(frameon=False, fontsize="small")
    return figure


def khat(estimate: LikelihoodEstimate) -> Figure:
    """k̂ of each datum, by arviz_plots, with the data named whose k̂ is too high. Raises DataError where K is too small for k̂."""
    from arviz_plots import plot_khat
    from matplotlib import pyplot
    from xarray import DataArray

    values = to_array(estimate.smoothed.khat)
    if np.isnan(values).all():
        raise DataError(f"there is no k̂: K = {estimate.num_particles} is too few for a tail")
    limit = float(estimate.khat_limit.min())
    shown = np.where(np.isfinite(values), values, np.nan_to_num(np.nanmin(values), neginf=-1.0))
    pareto_k = DataArray(shown, dims="datum", coords={"datum": np.arange(len(shown))})
    data: Any = SimpleNamespace(
        pareto_k=pareto_k, good_k=limit
    )  # what the plot reads of the results of a cross-validation
    made = plot_khat(data, threshold=limit, backend="matplotlib")
    figure: Figure = made.viz["figure"].item()
    pyplot.close(figure)
    for axes in figure.axes:
        axes.axhline(limit, color=BAD, linewidth=1, linestyle="--")
        axes.set(
            title=f"Pareto k̂, limit {limit:.2f} for K = {estimate.num_particles:,}",
            xlabel="datum",
            ylabel="k̂",
        )
    return figure


def sandwich(bounds: Mapping[str, tuple[float, float]], title: str = "") -> Figure:
    """Bounds and estimates of the mean log p(x), by name from the loosest up: (value, half of its 95 % interval), nats."""
    figure = Figure((6.4, 0.42 * len(bounds) + 1.0), dpi=150, layout="constrained")
    axes = plain(figure.subplots())
    for i, (name, (value, half)) in enumerate(bounds.items()):
        upper = "upper" in name
        colour = RUNS[2] if upper else INK if name in ("exact", "quadrature") else BLUE
        error = 0.0 if np.isnan(half) else half
        axes.errorbar(
            [value],
            [i],
            xerr=[error],
            fmt="<" if upper else "o",
            color=colour,
            markersize=5,
            elinewidth=2,
        )
        axes.annotate(
            _nats(value),
            (value, i),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize="x-small",
        )
    axes.set_yticks(range(len(bounds)), list(bounds))
    axes.set(xlabel="log p(x), nats per datum", title=title, ylim=(len(bounds) - 0.4, -0.7))
    axes.margins(x=0.12)
    return figure


def extremes(
    x: Tensor | tuple[Tensor, ...],
    log_px: Tensor,
    shape: tuple[int, ...],
    num: int = 10,
    marked: Sequence[int] = (),
) -> Figure:
    """The data of the lowest and of the highest log p(x), under each its index and log p(x); those `marked` in colour.

    x: `[N, d]`, of several arguments the first. Raises DataError where there are no data or as many figures as data.
    """
    x = x[0] if isinstance(x, tuple) else x
    if not len(x) or len(x) != len(log_px):
        raise DataError(f"there are {len(x)} data and {len(log_px)} log-likelihoods")
    order = torch.argsort(log_px)
    num = min(num, len(x))
    rows = {"worst": order[:num].tolist(), "best": order.flip(0)[:num].tolist()}
    if len(marked):
        rows["k̂ too high"] = list(marked)[:num]
    return _rows_of_data(x, log_px, shape, rows, set(marked))


def _rows_of_data(
    x: Tensor,
    log_px: Tensor,
    shape: tuple[int, ...],
    rows: Mapping[str, Sequence[int]],
    marked: set[int],
) -> Figure:
    columns = max(map(len, rows.values()))
    figure = Figure((0.8 * columns + 1.3, 1.0 * len(rows) + 0.3), dpi=150, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
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
    return figure


def rate_distortion(points: Mapping[str, Sequence[float]]) -> Figure:
    """(rate, distortion) of each system by name, with lines of equal ELBO = −(D + R) (Alemi et al. 2018). Nats per datum."""
    figure = Figure((4.8, 4.0), dpi=150, layout="constrained")
    axes = plain(figure.subplots())
    rates, distortions = (np.array([p[i] for p in points.values()]) for i in (0, 1))
    span = max(np.ptp(rates), np.ptp(distortions), 0.1 * np.abs(rates + distortions).max(), 1e-3)
    axes.set(xlim=(max(0.0, rates.min() - 0.3 * span), rates.max() + 0.4 * span))
    axes.set(ylim=(distortions.min() - 0.3 * span, distortions.max() + 0.4 * span))
    for total in np.linspace(
        (rates + distortions).min() - 0.3 * span, (rates + distortions).max() + 0.3 * span, 7
    ):
        axes.axline((0, total), slope=-1, color=GREY, linewidth=0.8)
    for i, (name, (rate, distortion)) in enumerate(points.items()):
        axes.plot(rate, distortion, "o", color=RUNS[i % len(RUNS)])
        axes.annotate(
            f"{name}, ELBO {_nats(-rate - distortion)}",
            (rate, distortion),
            xytext=(6, 4),
            textcoords="offset points",
        )
    axes.set(xlabel="rate, nats", ylabel="distortion, nats")
    return figure


def _nats(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", "−")
