"""Figures of a comparison of trainings: paired differences with intervals, and learning curves."""

import math
import re
from collections.abc import Iterable, Sequence
from itertools import cycle
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from pyroae.comparison.results import Comparison, Entry, Outcome
from pyroae.comparison.tables import scoring_of
from pyroae.comparison.tuning import Tuning
from pyroae.errors import DataError
from pyroae.plots.canvas import Target, canvas
from pyroae.plots.drawing import GREY, INK, RUNS, plain

DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
"""Dashes of lines, by the rank of K."""


WIDTH = 34
"""Characters in a line of an entry's name."""


def differences(
    comparison: Comparison, baseline: Entry | None = None, *, ax: Target | None = None
) -> Figure:
    """Draw the NLL of each entry less that of the baseline, with 95 % intervals.

    The best entry is on top. Grey dots are the differences of single seeds, in nats per datum; an
    open circle is a difference that is not told. On the right stand the share of data with an
    unreliable k̂ or ESS under the guide, the median ESS, and the correction of the score.

    Args:
        comparison: The outcomes of all trainings.
        baseline: The entry that is subtracted; None takes the first.
        ax: The Axes to draw into; None for a new figure.

    Returns:
        The figure.

    Raises:
        DataError: Where the baseline is the only entry.

    >>> import torch
    >>> from pyroae.comparison.results import Cell, Outcome
    >>> from pyroae.comparison.scores import Score
    >>> score = Score(-80 - torch.rand(9), torch.zeros(9))
    >>> outcomes = [
    ...     Outcome(Cell(name, 8, seed), score, {}, 1, 1, 1, 1.0)
    ...     for name in ("trace-elbo", "iwae") for seed in (0, 1)
    ... ]
    >>> axes = differences(Comparison(tuple(outcomes))).axes[0]
    >>> [label.get_text() for label in axes.get_yticklabels()]
    ['iwae, K = 8']
    """
    baseline = comparison.entries[0] if baseline is None else baseline
    rows = [row for row in comparison.ranking(baseline) if row.entry != baseline]
    if not rows:
        raise DataError(f"there is nothing to compare with the baseline, {baseline}")
    colours, labels = _colours(comparison), _labels(comparison.entries)
    longest = max(len(line) for row in rows for line in labels[row.entry].splitlines())
    place = canvas(ax, (4.9 + 0.085 * longest, 1.1 + 0.34 * len(rows)))
    axes = plain(place.panels[0])
    axes.axvline(0, color=INK, linewidth=0.8)
    for i, row in enumerate(rows):
        per_seed, estimate = row.from_baseline.per_seed, row.from_baseline.estimate
        heights, colour = [i + 0.22] * len(per_seed), colours[_name(row.entry)]
        axes.plot(per_seed, heights, ".", color=GREY, markersize=5, zorder=1)
        ends = [estimate.low, estimate.high]
        axes.plot(ends, [i, i], color=colour, linewidth=2, solid_capstyle="butt")
        filled = "full" if row.from_baseline.is_told else "none"
        axes.plot(estimate.value, i, "o", color=colour, markersize=5, fillstyle=filled)
        axes.annotate(
            _scores(comparison.of(row.entry)),
            (1.02, i),
            xycoords=("axes fraction", "data"),
            va="center",
            color="0.35",
            fontsize="x-small",
        )
    axes.set_yticks(range(len(rows)), [labels[row.entry] for row in rows])
    axes.set(
        ylim=(len(rows) - 0.5, -0.5),
        xlabel=f"NLL less that of {' '.join(labels[baseline].splitlines())},\n"
        "nats per datum: left is better",
    )
    return place.figure


def _labels(entries: Sequence[Entry]) -> dict[Entry, str]:
    """The names of entries, without objective and K where all have the same ones, in lines."""
    shared = len({entry[:2] for entry in entries}) == 1 and all(entry.variant for entry in entries)
    texts = {entry: entry.variant if shared else str(entry) for entry in entries}
    spaced = {entry: re.sub(", *", ", ", text) for entry, text in texts.items()}
    return {entry: fill(text, WIDTH) for entry, text in spaced.items()}


def learning_curves(comparison: Comparison, *, ax: Target | None = None) -> Figure:
    """Draw the NLL of validation data against epochs, seconds and decoder evaluations.

    Each training has one line: its colour is the objective and variant, its dashes are K. The
    beginning, where the curves fall steeply, is cut off. NLL is in nats per datum.

    Args:
        comparison: The outcomes of all trainings, with their learning curves.
        ax: Three Axes or a SubFigure to draw into; None for a new figure.

    Returns:
        The figure, with three panels.

    Raises:
        DataError: Where no training has a learning curve.
    """
    curves = [outcome for outcome in comparison.outcomes if outcome.curve]
    if not curves:
        raise DataError("there are no learning curves to draw")
    colours, ks = _colours(comparison), sorted({outcome.cell.num_particles for outcome in curves})
    dashes = dict(zip(ks, cycle(DASHES), strict=False))
    place = canvas(ax, (11.4, 3.9), 1, 3, sharey=True)
    for axes, name in zip(place.panels, ("epoch", "seconds", "evaluations"), strict=True):
        for outcome in curves:
            along = [getattr(point, name) for point in outcome.curve]
            style = {
                "color": colours[_name(outcome.cell.entry)],
                "linestyle": dashes[outcome.cell.num_particles],
            }
            axes.plot(
                along,
                [p.nll for p in outcome.curve],
                linewidth=1,
                marker="." if len(along) == 1 else None,
                **style,
            )
        _label(axes, name)
    place.panels[0].set_ylabel("validation NLL, nats per datum")
    limits = _limits([[point.nll for point in outcome.curve] for outcome in curves])
    for axes in place.panels:
        axes.set_ylim(*limits)
    handles = [
        Line2D([], [], color=colour, linewidth=3, label=objective)
        for objective, colour in colours.items()
    ]
    if len(ks) > 1:
        handles += [
            Line2D([], [], color=INK, linewidth=1.2, linestyle=dashes[k], label=f"K = {k}")
            for k in ks
        ]
    place.legend(handles, "outside lower center", ncols=6, fontsize="small", handlelength=3)
    return place.figure


def tuning_curves(tuning: Tuning, *, ax: Target | None = None) -> Figure:
    """Draw the NLL of validation data against each tuned setting.

    Each entry has one line, with 95 % intervals and a circle around the value that was chosen; of
    several tuned settings, the others are at their best values. NLL is in nats per datum.

    Args:
        tuning: The trials of all entries.
        ax: One Axes for each tuned setting, or a SubFigure; None for a new figure.

    Returns:
        The figure, with one panel for each setting.

    >>> from pyroae.comparison.scores import Interval
    >>> from pyroae.comparison.tuning import Trial
    >>> trials = [
    ...     Trial("iwae@8", {"lr": lr}, Interval(nll, nll - 1, nll + 1), 10, 1.0)
    ...     for lr, nll in ((1e-3, 90.0), (1e-2, 89.0))
    ... ]
    >>> figure = tuning_curves(Tuning({"lr": (1e-3, 1e-2)}, tuple(trials)))
    >>> [axes.get_xlabel() for axes in figure.axes]
    ['lr']
    """
    columns = len(tuning.grid)
    place = canvas(ax, (0.5 + 4.2 * columns, 3.6), 1, columns, sharey=True)
    colours = _coloured(tuning.entries)
    for axes, name in zip(place.panels, tuning.grid, strict=True):
        plain(axes).set_xlabel(name)
        if min(tuning.grid[name]) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(tuning.grid[name], [f"{value:g}" for value in tuning.grid[name]])
        for entry in tuning.entries:
            _tuning_line(axes, tuning, entry, name, colours[entry])
    place.share_y()
    place.panels[0].set_ylabel("validation NLL, nats per datum")
    handles = [Line2D([], [], color=c, linewidth=2, label=e) for e, c in colours.items()]
    place.legend(handles, "outside lower center", ncols=3, fontsize="small")
    return place.figure


def _tuning_line(axes: Axes, tuning: Tuning, entry: str, name: str, colour: str) -> None:
    best = tuning.best(entry)
    line = sorted(
        (trial.settings[name], trial.nll)
        for trial in tuning.of(entry)
        if trial.nll is not None
        and all(trial.settings[n] == best.settings[n] for n in tuning.grid if n != name)
    )
    at = [value for value, _ in line]
    axes.plot(at, [nll.value for _, nll in line], ".-", color=colour, linewidth=1)
    for value, nll in line:
        axes.plot([value, value], [nll.low, nll.high], color=colour, linewidth=0.8)
    assert best.nll is not None
    at_best = (best.settings[name], best.nll.value)
    axes.plot(*at_best, "o", color=colour, fillstyle="none", markersize=9)


def _scores(outcomes: Sequence[Outcome]) -> str:
    """How the trainings of an entry were scored, in a few words."""
    found = scoring_of(outcomes)
    known = f"k̂ {100 * found['unreliable']:.0f} % bad, ESS {found['ess_median']:.0f}"
    if found["score_method"] == "is":
        return known
    half = sum(outcome.score.margin for outcome in outcomes) / len(outcomes)
    error = f"± {half:.2f}" if math.isfinite(half) else "(error not known)"
    return f"{known}, {found['score_method']} {found['shift']:+.2f} {error}".replace("-", "−")


def _label(axes: Axes, name: str) -> None:
    names = {
        "epoch": "epoch",
        "seconds": "seconds of training",
        "evaluations": "decoder evaluations",
    }
    plain(axes).set_xlabel(names[name])
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=name == "epoch", min_n_ticks=1))


def _limits(curves: list[list[float]]) -> tuple[float, float]:
    """From the lowest value to the largest after a sixth of the points, with a margin."""
    lowest, top = min(map(min, curves)), max(max(curve[len(curve) // 6 :]) for curve in curves)
    margin = 0.05 * max(top - lowest, 1e-3)
    return lowest - margin, top + margin


def _colours(comparison: Comparison) -> dict[str, str]:
    return _coloured(dict.fromkeys(map(_name, comparison.entries)))


def _coloured(names: Iterable[str]) -> dict[str, str]:
    return {name: RUNS[i % len(RUNS)] for i, name in enumerate(names)}


def _name(entry: Entry) -> str:
    """An entry without its K."""
    return f"{entry.objective}, {entry.variant}" if entry.variant else entry.objective
