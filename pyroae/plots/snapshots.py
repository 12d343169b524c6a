"""Figures of the snapshots of a training: its bound, gaps and gradients against its epochs."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

from pyroae.errors import DataError
from pyroae.evaluation.gradient_lab.slopes import SNRCurve
from pyroae.evaluation.summary import Evaluation
from pyroae.plots.canvas import Canvas, Target, canvas
from pyroae.plots.comparison import DASHES
from pyroae.plots.drawing import GREY, INK, RUNS, plain
from pyroae.plots.gradients import NAMES

Lines = Mapping[str, Sequence[float]]
"""Values at each epoch, by the label of their line."""


PANELS: dict[str, tuple[str, dict[str, str]]] = {
    "bound and likelihood": (
        "nats per datum",
        {
            "nelbo": "negative ELBO",
            "nll": "NLL, importance sampling",
            "nll_ais": "NLL, annealing",
            "nll_exact": "NLL, closed form",
            "nll_quadrature": "NLL, quadrature",
        },
    ),
    "gaps": (
        "nats per datum",
        {
            "inference_gap": "inference gap",
            "amortization_gap": "amortization gap",
            "approximation_gap": "approximation gap",
        },
    ),
    "active units": ("active units", {"active_units": "active units"}),
}
"""Panels of `along_training`: the label of the y-axis, and the lines by the names of results."""


def along_training(
    evaluations: Mapping[int, Evaluation], kept: int | None = None, *, ax: Target | None = None
) -> Figure:
    """Draw bound, NLL, inference gaps and active units of snapshots against the epochs.

    Epochs are on a logarithmic axis that has a place for 0, the initial weights. With three
    snapshots or more, what the initial weights add to the range of the bound is cut off. A panel
    without results is left out.

    Args:
        evaluations: Results of `evaluate` with the weights after each epoch, by epoch.
        kept: The epoch of the weights that the training kept, marked by a dashed line.
        ax: One Axes for each panel that has results, or a SubFigure; None for a new figure.

    Returns:
        The figure.

    Raises:
        DataError: Where there are no evaluations.

    >>> import torch
    >>> from pyroae import EvaluationSettings, TrainConfig, evaluate, fit, plots, zoo
    >>> system, x = zoo.ppca(4, latent=2), torch.randn(100, 4)
    >>> config = TrainConfig(epochs=3, snapshots=(0, 1, 3))
    >>> evaluations = {}
    >>> for epoch, weights in fit(system, x, config=config, progress=False).snapshots.items():
    ...     _ = system.load_state_dict(weights)
    ...     evaluations[epoch] = evaluate(system, x, EvaluationSettings(num_particles=10))
    >>> figure = plots.along_training(evaluations)
    >>> [axes.get_title() for axes in figure.axes]
    ['bound and likelihood', 'active units']
    """
    if not evaluations:
        raise DataError("there are no evaluations to draw")
    epochs, panels = sorted(evaluations), _panels(evaluations)
    place = canvas(ax, (0.6 + 3.7 * len(panels), 3.9), 1, len(panels))
    for axes, (title, lines) in zip(place.panels, panels.items(), strict=True):
        for i, (label, values) in enumerate(lines.items()):
            axes.plot(epochs, values, marker="o", markersize=3.5, color=RUNS[i], label=label)
        _over_epochs(axes, epochs)
        axes.set(title=title, ylabel=PANELS[title][0])
        if title == "bound and likelihood":
            axes.set_ylim(*_limits(epochs, lines))
        else:
            axes.set_ylim(bottom=min(0.0, *map(min, lines.values())))
        if kept is not None:
            axes.axvline(kept, color=GREY, linewidth=1, linestyle="--", zorder=0, label="kept")
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize="small")
    return place.figure


def _panels(evaluations: Mapping[int, Evaluation]) -> dict[str, Lines]:
    """The lines of each panel that has some."""
    panels: dict[str, Lines] = {}
    for title, (_, labels) in PANELS.items():
        lines = {label: _values(evaluations, name) for name, label in labels.items()}
        lines = {
            label: values for label, values in lines.items() if any(map(math.isfinite, values))
        }
        if lines:
            panels[title] = lines
    return panels


def _values(evaluations: Mapping[int, Evaluation], name: str) -> list[float]:
    """A result at each epoch; NaN where an evaluation does not have it."""
    results = (evaluations[epoch].results for epoch in sorted(evaluations))
    return [each[name].estimate if name in each else math.nan for each in results]


def _limits(epochs: Sequence[int], lines: Lines) -> tuple[float, float]:
    """The range of the values, of the initial weights only where there are few others."""
    first = 1 if epochs[0] == 0 and len(epochs) > 2 else 0
    shown = [v for values in lines.values() for v in values[first:] if math.isfinite(v)]
    shown = shown or [v for values in lines.values() for v in values if math.isfinite(v)]
    margin = 0.06 * max(max(shown) - min(shown), 1e-3)
    return min(shown) - margin, max(shown) + margin


def _over_epochs(axes: Axes, epochs: Sequence[int]) -> None:
    """Label the epochs on an axis that is linear up to 1, and logarithmic from there."""
    plain(axes).set_xscale("symlog", linthresh=1, linscale=0.5)
    axes.set(xlabel="epoch", xlim=(0.85 * epochs[0] or -0.12, 1.15 * epochs[-1] or 0.12))
    if len(epochs) <= 10:
        axes.xaxis.set_major_locator(FixedLocator([float(epoch) for epoch in epochs]))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())


def gradients_along_training(
    curves: Mapping[int, Mapping[str, Mapping[str, SNRCurve]]], *, ax: Target | None = None
) -> Figure:
    """Draw the signal-to-noise ratio of gradient estimators against the epochs.

    Each group of parameters has a panel, each estimator a colour, and each K dashes of its own.
    Lines become thinner from one estimator to the next, so that those that coincide remain visible.
    Bands are 95 % intervals. The grey line is the estimate of an SNR of 0, about 0.8 / √R with R
    replicates: values near it are noise.

    Args:
        curves: Results of `measure_slopes` with the weights after each epoch, by epoch.
        ax: One Axes for each group, or a SubFigure; None for a new figure.

    Returns:
        The figure.

    Raises:
        DataError: Where there are no curves.

    >>> import torch
    >>> from pyroae import measure_slopes, plots, zoo
    >>> from pyroae.objectives.named import iwae
    >>> x, curves = torch.zeros(3, 4), {}
    >>> for epoch, system in {0: zoo.ppca(4, latent=2), 10: zoo.ppca(4, latent=2)}.items():
    ...     settings = {"ks": (1, 4), "parameters": dict(system.named_parameters())}
    ...     curves[epoch] = measure_slopes(
    ...         system.model, system.guide, x, {"iwae": iwae}, replicates=20, **settings
    ...     )
    >>> len(plots.gradients_along_training(curves).axes)
    1
    """
    epochs = sorted(curves)
    first = curves[epochs[0]] if epochs else {}
    groups = list(next(iter(first.values()))) if first else []
    if not groups:
        raise DataError("there are no curves to draw")
    place = canvas(ax, (0.6 + 3.7 * len(groups), 4.2), 1, len(groups), sharey=True)
    ks = sorted({k for of_group in first.values() for k in of_group[groups[0]].ks})
    lowest = []
    for axes, group in zip(place.panels, groups, strict=True):
        of_epochs = [{name: curves[e][name][group] for name in first} for e in epochs]
        lowest.append(_draw_ratios(axes, epochs, of_epochs, ks))
        axes.set_title(NAMES.get(group, group), fontsize="medium")
    place.panels[0].set_ylabel("signal-to-noise ratio")
    place.share_y()
    for axes in place.panels:
        axes.set_ylim(bottom=0.7 * min(lowest))  # the lower ends of intervals may be cut off
    _legend(place, list(first), ks)
    return place.figure


def _draw_ratios(
    axes: Axes, epochs: Sequence[int], curves: Sequence[Mapping[str, SNRCurve]], ks: Sequence[int]
) -> float:
    """Draw the SNR of each estimator and K, with intervals; the lowest value that is drawn."""
    names = list(curves[0])
    floor = 0.8 / math.sqrt(curves[0][names[0]].statistics[0].replicates)
    axes.axhline(floor, color=GREY, linewidth=1, zorder=0)
    lowest = floor
    for i, name in enumerate(names):
        colour, rest = RUNS[i % len(RUNS)], (len(names) - 1 - i) / max(len(names) - 1, 1)
        for j, k in enumerate(curves[0][name].ks):
            ratios = [of[name].snr[j] or math.nan for of in curves]  # the axis is logarithmic
            low, high = zip(*(of[name].intervals[j] for of in curves), strict=True)
            axes.fill_between(epochs, low, high, color=colour, alpha=0.12, linewidth=0)
            style = {"linestyle": DASHES[ks.index(k) % len(DASHES)], "linewidth": 1 + 2 * rest}
            axes.plot(epochs, ratios, marker="o", markersize=3, color=colour, **style)
            lowest = min([lowest, *(ratio for ratio in ratios if ratio > 0)])
    axes.set_yscale("log")
    _over_epochs(axes, epochs)
    return lowest


def _legend(place: Canvas, names: Sequence[str], ks: Sequence[int]) -> None:
    """Name the colours of estimators and the dashes of K below the panels."""
    handles = [
        Line2D([], [], color=RUNS[i % len(RUNS)], linewidth=3, label=name)
        for i, name in enumerate(names)
    ]
    handles += [
        Line2D([], [], color=INK, linestyle=DASHES[i % len(DASHES)], label=f"K = {k}")
        for i, k in enumerate(ks)
    ]
    handles.append(Line2D([], [], color=GREY, linewidth=1, label="estimate of a ratio of 0"))
    place.legend(handles, "outside lower center", ncols=3, fontsize="small", handlelength=3)
