"""Roeder et al. 2017: without the score of q, the ELBO's gradient has no noise at the posterior."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from itertools import product
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyroae.evaluation.gradient_lab.measure import Results
from pyroae.objectives.base import ObjectiveBase
from pyroae.papers.estimates import is_wanted, mean_of, measured_parts
from pyroae.papers.moments import of_one_datum
from pyroae.papers.paper import PAPERS, Paper, Scale, Work
from pyroae.papers.results import Claim, PaperRow
from pyroae.papers.roeder_gradients import (
    ESTIMATORS,
    SYMBOLS,
    Sizes,
    exact_square,
    exact_variance,
    measure,
    train,
    variances,
)
from pyroae.plots.canvas import Target, canvas
from pyroae.plots.drawing import INK, RUNS, plain, save

SIZES = {"short": Sizes(2000, 20, 200, 600), "full": Sizes(2000, 50, 500, 1000)}
TIMES = (0.25, 0.5, 0.75, 1.0)
"""Variances of q in the rows, in units of the posterior's."""
FLOOR = 1e-16
"""The least KL that is drawn."""
THIN = 5
"""Every fifth step of SGD is drawn."""
TOLERANCE = {"mean": 0.02, "log_scale": 0.06}
"""Of the derived variance."""
ROUNDING = 1e-12
"""What counts as 0: SGD with STL approaches it geometrically."""


def _variance_row(parameter: str, name: str, times: float) -> PaperRow:
    derived = exact_variance(name, parameter, times)
    label = f"variance in {SYMBOLS[parameter]}, {name}, v = {times:g}"
    within = TOLERANCE[parameter] * derived if derived else ROUNDING
    return PaperRow("Variance", label, "nats²", math.nan, tolerance=within, derived=derived)


VARIANCE_ROWS = tuple(
    _variance_row(parameter, name, times)
    for parameter, times, name in product(SYMBOLS, TIMES, ESTIMATORS)
)
MEAN_ROWS = tuple(
    PaperRow(
        "Mean",
        f"mean in {SYMBOLS[parameter]}, STL − Monte-Carlo KL, v = {times:g}",
        "nats",
        math.nan,
        tolerance=0.02,
        derived=0.0,
    )
    for parameter, times in product(SYMBOLS, (0.25, 1.0))
)
TRAINING_ROWS = tuple(
    PaperRow(
        "After SGD",
        f"(m − 1/2)², {name}",
        "mean square",
        math.nan,
        tolerance=0.05 * exact_square(name) or ROUNDING,
        derived=exact_square(name),
    )
    for name in ESTIMATORS
)
VARIANCE_CLAIMS = tuple(
    Claim(
        f"STL has less variance in {SYMBOLS[parameter]} than the Monte-Carlo KL, v = {times:g}",
        "difference of variances, nats²",
        derived=exact_variance("Monte-Carlo KL", parameter, times)
        - exact_variance("STL", parameter, times),
    )
    for parameter, times in product(SYMBOLS, (0.75, 1.0))
)
TRAINING_CLAIMS = tuple(
    Claim(f"SGD with STL ends nearer to the posterior than with the {name}", "KL, nats")
    for name in ("Monte-Carlo KL", "analytic KL")
)


def values_of_gradients(results: Mapping[float, Results]) -> dict[str, Any]:
    """Return estimates by label of a row and text of a claim, and what is drawn.

    Args:
        results: What `measure` returns, at the variances of `TIMES` and others.

    Returns:
        Estimates with intervals, and under "sweep" the variances of q and those in m by estimator.
    """
    values: dict[str, Any] = {}
    found = partial(variances, results)
    for parameter, times in product(SYMBOLS, TIMES):
        symbol, end = SYMBOLS[parameter], f"v = {times:g}"
        for name in ESTIMATORS:
            label = f"variance in {symbol}, {name}, {end}"
            values[label] = mean_of(found(name, parameter, times))
        stl, total = (found(name, parameter, times) for name in ("STL", "Monte-Carlo KL"))
        text = f"STL has less variance in {symbol} than the Monte-Carlo KL, {end}"
        values[text] = mean_of(total - stl)
        one, other = (
            of_one_datum(results[times][name][parameter])[0] for name in ("STL", "Monte-Carlo KL")
        )
        values[f"mean in {symbol}, STL − Monte-Carlo KL, {end}"] = mean_of(one - other)
    means = {n: [found(n, "mean", v).mean().item() for v in results] for n in ESTIMATORS}
    return values | {"sweep": {"times": list(results), **means}}


def values_of_training(errors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what is left in the last third of the steps, a mean per run, and what is drawn.

    Args:
        errors: What `train` returns, by estimator.

    Returns:
        Estimates with intervals, and under "runs" deciles and median of the KL against the steps.
    """
    last = {name: error[-(len(error) // 3) :].mean(0) for name, error in errors.items()}
    values: dict[str, Any] = {f"(m − 1/2)², {n}": mean_of(one[:, 1]) for n, one in last.items()}
    for name in ("Monte-Carlo KL", "analytic KL"):
        text = f"SGD with STL ends nearer to the posterior than with the {name}"
        values[text] = mean_of(last[name][:, 0] - last["STL"][:, 0])
    quantiles = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    values["runs"] = {
        name: error[::THIN, :, 0].clamp_min(FLOOR).quantile(quantiles, 1).tolist()
        for name, error in errors.items()
    }
    return values


def draw(
    gradients: Mapping[str, Any], training: Mapping[str, Any], *, ax: Target | None = None
) -> Figure:
    """Draw the variance in the mean against v, and the KL of SGD's iterates.

    Args:
        gradients: What `values_of_gradients` returns.
        training: What `values_of_training` returns.
        ax: Two Axes, or a SubFigure to draw into; None for a new figure.

    Returns:
        The figure.
    """
    place = canvas(ax, (9.0, 3.8), 1, 2)
    left, right = (plain(axes) for axes in place.panels)
    _draw_variances(left, gradients["sweep"])
    for colour, (name, (low, middle, high)) in zip(RUNS, training["runs"].items(), strict=False):
        steps = [THIN * i for i in range(len(middle))]
        right.fill_between(steps, low, high, color=colour, alpha=0.25, linewidth=0)
        right.plot(steps, middle, color=colour, label=name)
    right.set(xlabel="steps of SGD", ylabel="KL(q ‖ posterior), nats", yscale="log")
    right.set_title("median and 10 to 90 % of the runs")
    right.legend(frameon=False)
    return place.figure


def _draw_variances(axes: Axes, sweep: Mapping[str, Any]) -> None:
    fine = [0.17 + 0.01 * i for i in range(290)]
    for colour, name in zip(RUNS, ESTIMATORS, strict=False):
        exact = [exact_variance(name, "mean", times) for times in fine]
        axes.plot(fine, exact, color=colour, linewidth=1)
        axes.plot(sweep["times"], sweep[name], ".", color=colour, label=name)
    for times, text in ((0.5, "half of it"), (1.0, "the posterior's")):
        axes.axvline(times, color=INK, linewidth=0.8, linestyle=":")
        axes.annotate(text, (times, 7.5), (3, 0), textcoords="offset points", fontsize=8, color=INK)
    axes.set(
        xlabel="variance of q / variance of the posterior",
        ylabel="variance of the gradient in m",
        ylim=(-0.1, 8),
        title="one datum, one draw; lines: closed form",
    )
    axes.legend(frameon=False, loc="upper right")


def _measure(work: Work) -> Iterator[PaperRow | Claim]:
    sizes, settings, values = SIZES[work.scale], asdict(SIZES[work.scale]), []
    rows = VARIANCE_ROWS + MEAN_ROWS
    if is_wanted(work, rows, VARIANCE_CLAIMS):
        values.append(work.kept("gradients", settings, partial(_gradients, sizes, work.progress)))
        yield from measured_parts(work, rows, VARIANCE_CLAIMS, values[-1])
    if is_wanted(work, TRAINING_ROWS, TRAINING_CLAIMS):
        values.append(work.kept("training", settings, partial(_training, sizes, ESTIMATORS)))
        yield from measured_parts(work, TRAINING_ROWS, TRAINING_CLAIMS, values[-1])
    if len(values) == 2:
        save(draw(*values), work.folder / "roeder_2017.png")


def _gradients(sizes: Sizes, progress: bool) -> dict[str, Any]:
    return values_of_gradients(measure(sizes, progress=progress))


def _training(sizes: Sizes, estimators: Mapping[str, ObjectiveBase]) -> dict[str, Any]:
    return values_of_training({name: train(one, sizes) for name, one in estimators.items()})


NOTES = r"""
z ~ N(0, 1), x|z ~ N(z, 1), x = 1, q = N(m, v), v = σ²; the posterior is N(1/2, 1/2), and v is given
in units of its variance. A gradient is that of one datum and one draw, with respect to m or log σ,
at m = 1/2. With λ = 1 and d = m − x the variances are

| | in m | in log σ |
|---|---|---|
| Monte-Carlo KL | (1 + λ)² v | 2 (1 + λ)² v² |
| analytic KL | λ² v | λ² (2 v² + d² v) |
| STL | (1/√v − (1 + λ) √v)² | 2 (1 − (1 + λ) v)² |

![Variance of the gradient against that of q; KL of SGD's iterates](../images/roeder_2017.png)

The paper claims that STL's variance goes to 0 as q goes to the posterior; what is left at v = 1 is
the rounding of double precision. Below half the posterior variance STL has more noise than the
Monte-Carlo KL, in m and log σ, which is derived here and not in the paper; in m it has less than
the analytic KL only if v is between 2/3 and 2 posterior variances. SGD starts from the prior at a
rate of 0.02, and the last third of its steps is used; what is derived for it is to first order in
the rate. Agreement is within 2 % of a variance in m, 6 % of one in log σ, 5 % of a mean square
after SGD, and 0.02 nats of a difference of means of 0.
"""


@PAPERS.register("roeder-2017")
def roeder_2017() -> Paper:
    """Return the specification: the gradient of STL has no noise where q is the posterior.

    Returns:
        The specification.
    """
    return Paper(
        "roeder-2017",
        "Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational "
        "Inference",
        "Roeder, Wu & Duvenaud 2017, NeurIPS",
        "One datum, x = 1.",
        {"short": Scale(_protocol("short"), 15), "full": Scale(_protocol("full"), 40)},
        VARIANCE_ROWS + MEAN_ROWS + TRAINING_ROWS,
        VARIANCE_CLAIMS + TRAINING_CLAIMS,
        _measure,
        notes=NOTES,
    )


def _protocol(scale: str) -> str:
    sizes = SIZES[scale]
    return (
        f"{sizes.num_data * sizes.replicates:,} gradients at each variance of q; "
        f"{sizes.runs} runs of SGD of {sizes.steps:,} steps."
    )
