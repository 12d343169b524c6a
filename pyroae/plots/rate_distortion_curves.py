"""Rate–distortion curves of systems, and the points of their guides."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyroae.evaluation.annealing.rate_distortion import RateDistortion
from pyroae.plots.canvas import Target, canvas
from pyroae.plots.drawing import GREY, INK, RUNS, plain, to_array

Entry = RateDistortion | Sequence[float]
"""A curve, or the point (rate, distortion) of a guide, in nats per datum."""


LEAST_SHARE = 0.02
"""The share of the rate of the posterior up to which the steep start of a curve may lie outside."""


def rate_distortion(
    curves: Mapping[str, Entry],
    guides: Mapping[str, Sequence[float]] | None = None,
    title: str = "",
    *,
    ax: Target | None = None,
) -> Figure:
    """Draw rate–distortion curves with 95 % bands, points, and lines of equal −(R + D).

    A curve is the mean over the data; it ends at the posterior, where −(R + D) is log p(x) and the
    line of equal −(R + D) is its tangent. The band is the error of the mean for these data, from
    the chains alone. A point is that of a guide: its −(R + D) is the ELBO.

    Args:
        curves: The curve of each system by name, or the point (rate, distortion) of its guide, in
            nats per datum.
        guides: The points of guides beside the curves, by the same names.
        title: The title of the figure.
        ax: The Axes to draw into; None for a new figure.

    Returns:
        The figure.

    References:
        Alemi et al. 2018, Fixing a broken ELBO.
        Huang et al. 2020, Evaluating lossy compression rates of deep generative models.

    >>> figure = rate_distortion({"vae": (20.0, 75.0), "sparse": (12.0, 90.0)})
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()][:2]
    ['vae: ELBO −95.00', 'sparse: ELBO −102.00']
    """
    place = canvas(ax, (6.4, 4.6))
    axes = plain(place.panels[0])
    points = dict(guides or {})
    for i, (name, entry) in enumerate(curves.items()):
        style = {"color": RUNS[i % len(RUNS)], "zorder": 3}
        if isinstance(entry, RateDistortion):
            _draw_curve(axes, name, entry, style)
        else:
            points[name] = entry
        if name in points:
            _draw_point(axes, name, points[name], style)
    _set_limits(axes, curves, list(points.values()))
    _draw_equal_sums(axes)
    axes.set(xlabel="rate R, nats per datum", ylabel="distortion D, nats per datum")
    axes.set_title(title, fontsize="medium", pad=14)
    axes.legend(
        frameon=False,
        fontsize="small",
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        ncols=1 if any(len(name) > 24 for name in curves) else 2,
    )
    return place.figure


def _draw_curve(axes: Axes, name: str, curve: RateDistortion, style: dict[str, Any]) -> None:
    """The mean curve up to the posterior, its band, and its tangent there.

    Errors along the curve can exchange neighbouring temperatures, so the line follows the order of
    the distortions, and what lies beyond the posterior is left out.
    """
    rate, distortion = to_array(curve.mean_rate), to_array(curve.mean_distortion)
    log_px = -(rate[-1] + distortion[-1])
    inside = np.isfinite(distortion) & (rate <= rate[-1]) & (distortion >= distortion[-1])
    order = np.argsort(-distortion[inside], kind="stable")
    half = 1.96 * np.nan_to_num(to_array(curve.curve_error))[inside][order]
    rate, distortion = rate[inside][order], distortion[inside][order]
    axes.fill_betweenx(
        distortion, rate - half, rate + half, color=style["color"], alpha=0.25, linewidth=0
    )
    label = _label(name, "log p(x)", log_px)
    line: dict[str, Any] = {"marker": "D", "markevery": [-1], "markersize": 5, "linewidth": 1.6}
    axes.plot(rate, distortion, label=label, **line, **style)
    axes.axline((0, -log_px), slope=-1, linewidth=0.9, linestyle=":", **style)


def _draw_point(axes: Axes, name: str, point: Sequence[float], style: dict[str, Any]) -> None:
    rate, distortion = point
    label = _label(name, "ELBO", -rate - distortion)
    axes.plot([rate], [distortion], "o", markersize=6, label=label, **style)
    axes.axline((0, rate + distortion), slope=-1, linewidth=0.9, linestyle="--", **style)


def _set_limits(axes: Axes, curves: Mapping[str, Entry], points: list[Sequence[float]]) -> None:
    """Show points and curves; of a curve, its steep start may lie outside."""
    seen = [np.array(points, dtype=float).reshape(-1, 2)]
    for entry in curves.values():
        if isinstance(entry, RateDistortion):
            rate, distortion = to_array(entry.mean_rate), to_array(entry.mean_distortion)
            inside = np.isfinite(distortion) & (rate >= LEAST_SHARE * rate[-1])
            seen.append(np.stack([rate, distortion], 1)[inside])
    every = np.concatenate(seen)
    low, high = every.min(0), every.max(0)
    span = np.maximum(high - low, max(0.1 * np.abs(every.sum(1)).max(), 1e-3))
    start = 0.0 if len(seen) > 1 else max(0.0, low[0] - 0.3 * span[0])
    axes.set(xlim=(start, high[0] + 0.15 * span[0]))
    axes.set(ylim=(low[1] - 0.15 * span[1], high[1] + 0.15 * span[1]))


def _draw_equal_sums(axes: Axes) -> None:
    """Lines of equal R + D at round values, each with −(R + D) where it leaves the axes."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    style: dict[str, Any] = {"color": GREY, "linewidth": 0.8, "zorder": 1}
    for total in MaxNLocator(7).tick_values(left + bottom, right + top):
        axes.axline((0, total), slope=-1, **style)
        at_right = bottom <= total - right <= top
        if at_right or left <= total - top <= right:
            place = (right, total - right) if at_right else (total - top, top)
            text: dict[str, Any] = {"va": "center"} if at_right else {"ha": "center"}
            shift = (4, 0) if at_right else (0, 3)
            axes.annotate(
                f"{-total:g}".replace("-", "−"),
                place,
                xytext=shift,
                textcoords="offset points",
                fontsize="x-small",
                color=INK,
                annotation_clip=False,
                **text,
            )
    axes.plot([], [], label="equal −(R + D), nats", **style)


def _label(name: str, quantity: str, value: float) -> str:
    """The label of a system, without its name where it has none."""
    text = f"{quantity} {value:.2f}".replace("-", "−")
    return f"{name}: {text}" if name else text
