"""Gradients of five estimators on the two models of `tucker_2019`, and their moments by series."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pyroae.evaluation.gradient_lab.measure import measure_gradients
from pyroae.evaluation.gradient_lab.slopes import SNRCurve, curve
from pyroae.evaluation.gradient_lab.statistics import GradientStatistics
from pyroae.objectives.base import ObjectiveBase
from pyroae.objectives.named import dreg, iwae, iwae_stl, rws, rws_dreg
from pyroae.papers.estimates import Interval
from pyroae.papers.moments import Moments, at_each_k, jackknifed, log_slope
from pyroae.papers.rainforth_toy import RainforthToy, toy_data
from pyroae.papers.tucker_moments import DATUM, MEAN

DIMENSIONS, OFFSET, TOY_DATA = 5, 0.04, 64

Families = tuple[Mapping[str, Callable[[int], ObjectiveBase]], ...]
"""Estimators by name; the bias is measured from the first of each mapping."""

FAMILIES: Families = (
    {"IWAE": iwae, "DReG": dreg, "STL": iwae_stl},
    {"RWS": rws, "RWS-DReG": rws_dreg},
)


@dataclass(frozen=True)
class Sizes:
    """How many gradients are measured.

    Attributes:
        num_data: Equal data of the first model, each with independent gradients.
        replicates: Gradients of each of these data, at each K.
        toy_replicates: Gradients of the toy's whole data set, at each K.
        ks: The numbers of particles.
        seed: The seed of data, parameters and draws.
    """

    num_data: int
    replicates: int
    toy_replicates: int
    ks: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    seed: int = 0


def _mean(name: str, moments: Moments) -> Tensor:
    return moments[name][0]


def _snr(name: str, moments: Moments) -> Tensor:
    return moments[name][0].abs() / moments[name][1].sqrt()


def _ratio(above: str, below: str, moments: Moments) -> Tensor:
    return moments[above][1] / moments[below][1]


def _bias(name: str, reference: str, moments: Moments) -> Tensor:
    return moments[name][0] - moments[reference][0]


SERIES: dict[str, Callable[[Moments], Tensor]] = {
    **{f"mean, {name}": partial(_mean, name) for name in FAMILIES[0]},
    **{f"SNR, {name}": partial(_snr, name) for name in FAMILIES[0]},
    "variance, IWAE / DReG": partial(_ratio, "IWAE", "DReG"),
    "variance, RWS / RWS-DReG": partial(_ratio, "RWS", "RWS-DReG"),
    "bias, DReG − IWAE": partial(_bias, "DReG", "IWAE"),
    "bias, STL − IWAE": partial(_bias, "STL", "IWAE"),
    "bias, RWS-DReG − RWS": partial(_bias, "RWS-DReG", "RWS"),
}
"""Functions of the moments of the first model, `[..., len(ks)]`."""


def series_of(moments: Moments, ks: Sequence[int]) -> dict[str, Tensor]:
    """Return every series at every K, and the log-log slopes of those that are positive.

    Args:
        moments: Means and variances, `[..., len(ks)]`.
        ks: The numbers of particles.

    Returns:
        By label, values of shape `[...]`.
    """
    values = {}
    for name, function in SERIES.items():
        series = function(moments)
        values.update({f"{name}, K = {k}": series[..., i] for i, k in enumerate(ks)})
        if name.startswith(("SNR", "variance")):
            values[f"{name}, slope"] = log_slope(series, ks)
    return values


def measure(
    toy: RainforthToy,
    x: Tensor,
    ks: Sequence[int],
    replicates: int,
    seed: int,
    families: Families = FAMILIES,
    *,
    progress: bool = False,
) -> dict[str, SNRCurve]:
    """Measure the gradient of b by every estimator at each K; the noise differs between K.

    Args:
        toy: Model and guide.
        x: Data, shape `[N, D]`.
        ks: The numbers of particles.
        replicates: The number of gradients at each K.
        seed: The seed of the draws.
        families: The estimators.
        progress: Whether progress is shown.

    Returns:
        The curves by estimator.
    """
    at_k: list[dict[str, GradientStatistics]] = []
    for k in ks:
        at_k.append({})
        for family in families:
            statistics = measure_gradients(
                toy.model,
                toy.guide,
                x,
                {name: make(k) for name, make in family.items()},
                parameters={"b": toy.b},
                replicates=replicates,
                seed=seed + k,
                reference=next(iter(family)),
                progress=progress,
            )
            at_k[-1].update({name: groups["all"] for name, groups in statistics.items()})
    return {name: curve(ks, [statistics[name] for statistics in at_k]) for name in at_k[0]}


def measure_one(
    sizes: Sizes, families: Families = FAMILIES, *, progress: bool = False
) -> dict[str, SNRCurve]:
    """Measure the first model: data x = 1, each with a guide of its own, thus independent.

    Args:
        sizes: The numbers of data, gradients and particles.
        families: The estimators.
        progress: Whether progress is shown.

    Returns:
        The curves by estimator.
    """
    start = torch.full((sizes.num_data, 1), MEAN - DATUM / 2)  # b, where A x is x/2
    toy = RainforthToy(torch.zeros(1), torch.full((1, 1), 0.5), start)
    x = torch.full((sizes.num_data, 1), DATUM)
    return measure(toy, x, sizes.ks, sizes.replicates, sizes.seed, families, progress=progress)


def measure_toy(
    sizes: Sizes, families: Families = FAMILIES, *, progress: bool = False
) -> dict[str, SNRCurve]:
    """Measure Rainforth's toy near its optimum, on data drawn from it.

    Args:
        sizes: The numbers of gradients and particles.
        families: The estimators.
        progress: Whether progress is shown.

    Returns:
        The curves by estimator.
    """
    torch.manual_seed(sizes.seed)
    x = toy_data(TOY_DATA, DIMENSIONS)
    toy = RainforthToy.near_optimum(x, OFFSET)
    return measure(toy, x, sizes.ks, sizes.toy_replicates, sizes.seed, families, progress=progress)


def intervals_of(curves: Mapping[str, SNRCurve]) -> dict[str, Interval]:
    """Return every series of the first model with its interval, by the jackknife over data.

    Args:
        curves: Results of `measure_one`.

    Returns:
        Estimate and interval by label.
    """
    moments = {name: at_each_k(one.statistics) for name, one in curves.items()}
    return jackknifed(moments, partial(series_of, ks=curves["IWAE"].ks))
