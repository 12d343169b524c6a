"""Tucker et al. 2019: doubly reparameterized gradients beside IWAE's, on two Gaussian models."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache, partial
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyroae.evaluation.gradient_lab.slopes import SNRCurve
from pyroae.papers.estimates import is_wanted, measured_parts, negative
from pyroae.papers.paper import PAPERS, Paper, Scale, Work
from pyroae.papers.rainforth_toy import VARIANCE
from pyroae.papers.results import Claim, PaperRow
from pyroae.papers.tucker_gradients import (
    Sizes,
    intervals_of,
    measure_one,
    measure_toy,
    series_of,
)
from pyroae.papers.tucker_moments import DATUM, MEAN, exact_moments
from pyroae.plots.canvas import Target, canvas
from pyroae.plots.drawing import INK, RUNS, plain, save

SIZES = {"short": Sizes(1000, 100, 200), "full": Sizes(4000, 100, 600)}
KS = SIZES["full"].ks
ENDS = (KS[0], KS[-1])
DRAWN = ("IWAE", "DReG", "STL")
UNITS = {"mean": "nats", "SNR": "SNR", "variance": "ratio", "bias": "nats"}
FALLS, RISES = "the SNR of IWAE falls with K", "the SNR of DReG does not fall with K"


@cache
def exact(ks: tuple[int, ...] = KS) -> dict[str, float]:
    """Return the exact series of the first model.

    Args:
        ks: The numbers of particles.

    Returns:
        Values by label; differences that are 0 up to the quadrature's accuracy are 0.

    >>> exact()["bias, DReG − IWAE, K = 2"], round(exact()["SNR, DReG, slope"], 3)
    (0.0, 0.485)
    """
    series = series_of(exact_moments(ks), ks)
    return {label: round(value.item(), 12) + 0.0 for label, value in series.items()}


def rows_of_one() -> tuple[PaperRow, ...]:
    """Return the rows of the first model.

    Returns:
        Rows, each with its exact value.
    """
    kinds = ("mean", "SNR")
    labels = [f"{kind}, {name}, K = {k}" for kind in kinds for name in DRAWN for k in (2, 8, 64)]
    pairs = ("variance, IWAE / DReG", "variance, RWS / RWS-DReG")
    biases = ("bias, DReG − IWAE", "bias, STL − IWAE", "bias, RWS-DReG − RWS")
    labels += [f"{series}, K = {k}" for series in (*pairs, *biases) for k in ENDS]
    labels += [f"{series}, slope" for series in ("SNR, IWAE", "SNR, DReG", pairs[0])]
    return tuple(_row(label, exact()[label]) for label in labels)


def _row(label: str, derived: float) -> PaperRow:
    unit = UNITS[label.partition(",")[0]]
    unit = "log-log slope in K" if label.endswith("slope") else unit
    within = 0.02 * abs(derived) if derived else 0.002
    return PaperRow("One dimension", label, unit, math.nan, tolerance=within, derived=derived)


def claims_of_one() -> tuple[Claim, ...]:
    """Return the claims about the first model.

    Returns:
        Claims, each with its exact value.
    """
    slope, ratio = "log-log slope, towards the claim", "logarithm of the ratio of variances"
    one = [
        Claim(FALLS, slope, derived=-exact()["SNR, IWAE, slope"]),
        Claim(RISES, slope, derived=exact()["SNR, DReG, slope"]),
    ]
    for k in ENDS:
        values = [exact()[f"variance, {pair}, K = {k}"] for pair in PAIRS]
        for text, value in zip(PAIRS.values(), values, strict=True):
            one.append(Claim(f"{text}, K = {k}", ratio, derived=math.log(value)))
        bias = exact()[f"bias, STL − IWAE, K = {k}"]
        one.append(Claim(f"{BIASED}, K = {k}", "mean of IWAE − STL, nats", derived=-bias))
    return tuple(one)


PAIRS = {
    "IWAE / DReG": "DReG has less variance than IWAE",
    "RWS / RWS-DReG": "RWS-DReG has less variance than RWS",
}
BIASED = "STL is biased for K > 1"
OF_MEAN = "‖bias‖ / ‖mean of DReG‖"


def rows_of_toy() -> tuple[PaperRow, ...]:
    """Return the rows of the toy.

    Returns:
        Rows of the bias of DReG, which is 0.
    """
    return tuple(
        PaperRow("Toy of 5 dimensions", label, OF_MEAN, math.nan, tolerance=0.0, derived=0.0)
        for label in (f"toy: bias of DReG, K = {k}" for k in ENDS)
    )


def claims_of_toy() -> tuple[Claim, ...]:
    """Return the claims about the toy.

    Returns:
        Claims, with the slopes for large K.
    """
    slope = "log-log slope, towards the claim"
    return (
        Claim(f"toy: {FALLS}", slope, derived=0.5),
        Claim(f"toy: {RISES}", slope, derived=0.5),
        *(Claim(f"toy: {BIASED}, K = {k}", OF_MEAN) for k in ENDS),
    )


def values_of_one(curves: Mapping[str, SNRCurve]) -> dict[str, Any]:
    """Return estimates of the first model by label of a row and text of a claim.

    Args:
        curves: Results of `measure_one`.

    Returns:
        Estimates with intervals, ready for JSON.
    """
    values: dict[str, Any] = dict(intervals_of(curves))
    values[FALLS] = negative(values["SNR, IWAE, slope"])
    values[RISES] = values["SNR, DReG, slope"]
    for k in curves["IWAE"].ks:
        for pair, text in PAIRS.items():
            ends = values[f"variance, {pair}, K = {k}"]
            values[f"{text}, K = {k}"] = [math.log(end) if end > 0 else -math.inf for end in ends]
        values[f"{BIASED}, K = {k}"] = negative(values[f"bias, STL − IWAE, K = {k}"])
    return values


def values_of_toy(curves: Mapping[str, SNRCurve]) -> dict[str, Any]:
    """Return estimates of the toy by label of a row and text of a claim, and curves to draw.

    Args:
        curves: Results of `measure_toy`.

    Returns:
        Estimates with intervals, and under "curves" K, SNR and its ends by estimator.
    """
    values: dict[str, Any] = {
        f"toy: {FALLS}": negative(curves["IWAE"].slope),
        f"toy: {RISES}": tuple(curves["DReG"].slope),
    }
    for i, k in enumerate(curves["DReG"].ks):
        size = curves["DReG"].statistics[i].mean.norm().item()
        for name, label in (("DReG", "toy: bias of DReG"), ("STL", f"toy: {BIASED}")):
            one = curves[name].statistics[i]
            values[f"{label}, K = {k}"] = [end / size for end in (one.bias, *one.bias_interval)]
    values["curves"] = {
        name: [list(c.ks), c.snr, *zip(*c.intervals, strict=True), c.slope.slope]
        for name, c in curves.items()
    }
    return values


def draw(one: Mapping[str, Any], toy: Mapping[str, Any], *, ax: Target | None = None) -> Figure:
    """Draw the SNR in the toy, and the mean gradient of the first model, exact and measured.

    Args:
        one: What `values_of_one` returns.
        toy: What `values_of_toy` returns.
        ax: Two Axes, or a SubFigure to draw into; None for a new figure.

    Returns:
        The figure.
    """
    place = canvas(ax, (9.0, 3.8), 1, 2)
    left, right = (plain(axes) for axes in place.panels)
    _draw_toy(left, toy["curves"])
    _draw_means(right, one, tuple(toy["curves"]["IWAE"][0]))
    left.set(ylabel="signal-to-noise ratio of the gradient", title="5-dimensional toy, measured")
    right.set(ylabel="size of the mean gradient", title="one dimension, lines exact")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("K, particles")
        axes.legend(frameon=False)
    return place.figure


def _draw_toy(axes: Axes, curves: Mapping[str, Any]) -> None:
    for colour, name in zip(RUNS, DRAWN, strict=False):
        ks, snr, low, high, slope = curves[name]
        axes.fill_between(ks, low, high, color=colour, alpha=0.25, linewidth=0)
        label = f"{name}, slope {slope:+.2f}".replace("-", "−")
        axes.plot(ks, snr, ".-", color=colour, label=label)


def _draw_means(axes: Axes, one: Mapping[str, Any], ks: tuple[int, ...]) -> None:
    known = exact(ks)
    for colour, name in zip(RUNS, DRAWN, strict=False):
        means = torch.tensor([one[f"mean, {name}, K = {k}"] for k in ks])
        exact_means = [abs(known[f"mean, {name}, K = {k}"]) for k in ks]
        style: dict[str, Any] = {"fmt": "."}
        if name == "IWAE":
            style = {"fmt": "o", "markersize": 8, "markerfacecolor": "none"}
        axes.plot(ks, exact_means, color=colour, linewidth=1)
        size, error = means[:, 0].abs(), means[:, 2] - means[:, 0]
        axes.errorbar(ks, size, error, color=colour, label=name, **style)
    limit = (MEAN - DATUM / 2) / VARIANCE
    axes.axhline(limit, color=INK, linewidth=0.8, linestyle=":", label="|E s| under p(z|x)")


def _measure(work: Work) -> Iterator[PaperRow | Claim]:
    sizes, settings, values = SIZES[work.scale], asdict(SIZES[work.scale]), []
    rows, claims = rows_of_one(), claims_of_one()
    if is_wanted(work, rows, claims):
        values.append(work.kept("one-dimension", settings, partial(_one, sizes, work.progress)))
        yield from measured_parts(work, rows, claims, values[-1])
    rows, claims = rows_of_toy(), claims_of_toy()
    if is_wanted(work, rows, claims):
        values.append(work.kept("toy", settings, partial(_toy, sizes, work.progress)))
        yield from measured_parts(work, rows, claims, values[-1])
    if len(values) == 2:
        save(draw(*values), work.folder / "tucker_2019.png")


def _one(sizes: Sizes, progress: bool) -> dict[str, Any]:
    return values_of_one(measure_one(sizes, progress=progress))


def _toy(sizes: Sizes, progress: bool) -> dict[str, Any]:
    return values_of_toy(measure_toy(sizes, progress=progress))


NOTES = r"""
With the normalized weights $\hat w$, the path derivative P_k of log w_k and the score s_k of q, the
gradients of φ are

$$
\text{IWAE: } \sum_k \hat w_k (P_k - s_k), \quad \text{DReG: } \sum_k \hat w_k^2 P_k, \quad
\text{STL: } \sum_k \hat w_k P_k, \quad \text{RWS: } \sum_k \hat w_k s_k, \quad
\text{RWS-DReG: } \sum_k (\hat w_k - \hat w_k^2) P_k.
$$

![Signal-to-noise ratio and mean against K](../images/tucker_2019.png)

**One dimension**: z ~ N(0, 1), x|z ~ N(z, 1), x = 1, q = N(0.8, 2/3); a gradient is that of q's
mean from one datum and K draws. Its mean and variance under every estimator are known at every K by
quadrature (`pyroae.papers.tucker_moments`), because

$$
\frac{1}{S^p} = \frac{1}{\Gamma(p)} \int_0^\infty t^{p-1} e^{-tS}\, dt
$$

turns a ratio of sums into products of one-dimensional expectations. Slopes are in log K, K from 2
to 64. Draws are paired between estimators; intervals are by the jackknife over the data. Agreement
is within 2 % of the derived value beyond the interval, and within 0.002 nats of a bias of 0.
RWS-DReG − RWS is the negative of DReG − IWAE for the same draws. STL's gradient does not vanish as
the bound becomes tight: it tends to E s = −0.45 under p(z|x), of which IWAE's own is a seventieth
at K = 64. Its high SNR is that of another gradient than the bound's.

**Toy**: Rainforth's model in 5 dimensions, every parameter perturbed by N(0, 0.04²) from the
optimum, gradients of the whole data set; derived slopes are those for large K. DReG's slope is
below +1/2 because the smallest K are far from that limit. ‖bias‖ is measured with its noise, and is
as large as its error where there is no bias.
"""


@PAPERS.register("tucker-2019")
def tucker_2019() -> Paper:
    """Return the specification: DReG has IWAE's mean, and an SNR that does not fall with K.

    Returns:
        The specification.
    """
    return Paper(
        "tucker-2019",
        "Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives",
        "Tucker, Lawson, Gu & Maddison 2019, ICLR",
        "x = 1 for the model in one dimension; 64 data drawn from the toy of 5 dimensions.",
        {
            "short": Scale(_protocol(SIZES["short"]), 60),
            "full": Scale(_protocol(SIZES["full"]), 150),
        },
        rows_of_one() + rows_of_toy(),
        claims_of_one() + claims_of_toy(),
        _measure,
        notes=NOTES,
    )


def _protocol(sizes: Sizes) -> str:
    return (
        f"{sizes.num_data * sizes.replicates:,} gradients in one dimension and "
        f"{sizes.toy_replicates} of the toy's data set, at each of K = {', '.join(map(str, KS))}."
    )
