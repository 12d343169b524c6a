"""Liévin et al. 2020: the optimal baseline lets the SNR of the score function rise with K."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache, partial
from typing import Any

from torch import Tensor

from pyroae.papers.estimates import is_wanted, measured_parts
from pyroae.papers.lievin_gradients import (
    KS,
    Sizes,
    exact_bernoulli,
    measure_bernoulli,
    measure_gaussian,
)
from pyroae.papers.moments import Moments, jackknifed, log_slope
from pyroae.papers.paper import PAPERS, Paper, Scale, Work
from pyroae.papers.results import Claim, PaperRow
from pyroae.papers.tucker_moments import exact_moments

SIZES = {"short": Sizes(1000, 40), "full": Sizes(4000, 100)}
TOYS = {"Gaussian": measure_gaussian, "Bernoulli": measure_bernoulli}
LOOKED = (KS[0], KS[-1])


def series_of(moments: Moments) -> dict[str, Tensor]:
    """Return means, SNRs, their ratios and their slopes, by the ends of the labels.

    Args:
        moments: Mean and variance by estimator, `[..., len(KS)]`.

    Returns:
        Values of shape `[...]` by label.
    """
    snr = {name: mean.abs() / variance.sqrt() for name, (mean, variance) in moments.items()}
    values = {}
    for i, k in enumerate(KS):
        for name, (mean, _) in moments.items():
            values[f"mean, {name}, K = {k}"] = mean[..., i]
            values[f"SNR, {name}, K = {k}"] = snr[name][..., i]
        values[f"{ABOVE}, K = {k}"] = (snr["OVIS"] / snr["VIMCO"])[..., i].log()
    for name, ratios in snr.items():
        values[f"SNR, {name}, slope"] = log_slope(ratios, KS)
    values[RISES] = values["SNR, OVIS, slope"]
    return values


RISES = "the SNR of OVIS rises with K"
ABOVE = "the SNR of OVIS is above that of VIMCO"


@cache
def exact() -> dict[str, float]:
    """Return what is known exactly: all of the Bernoulli toy, and the means of the Gaussian one.

    Returns:
        Values by label.
    """
    bits = series_of(exact_bernoulli(KS))
    values = {f"Bernoulli: {label}": value.item() for label, value in bits.items()}
    gaussian = exact_moments(LOOKED)
    for i, k in enumerate(LOOKED):
        means = {name: mean[i].item() for name, (mean, _) in gaussian.items()}
        values[f"Gaussian: mean, OVIS, K = {k}"] = means["IWAE"]
        values[f"Gaussian: mean, VIMCO, K = {k}"] = means["IWAE"]
        values[f"Gaussian: mean, OVIS, γ = 1, K = {k}"] = means["IWAE"] + means["RWS"]
    return values


def rows() -> tuple[PaperRow, ...]:
    """Return the rows of both toys.

    Returns:
        Rows, each with its exact value.
    """
    names = ("OVIS", "OVIS, γ = 1", "VIMCO")
    labels = [f"{toy}: mean, {name}, K = {k}" for toy in TOYS for name in names for k in LOOKED]
    labels += [f"Bernoulli: SNR, {name}, K = {k}" for name in ("OVIS", "VIMCO") for k in LOOKED]
    labels += [f"Bernoulli: SNR, {name}, slope" for name in ("OVIS", "VIMCO")]
    return tuple(_row(label) for label in labels)


def _row(label: str) -> PaperRow:
    toy, _, rest = label.partition(": ")
    unit = "nats" if rest.startswith("mean") else "SNR"
    unit = "log-log slope in K" if rest.endswith("slope") else unit
    value = exact()[label]
    within = 0.02 * abs(value)
    return PaperRow(f"{toy} latent", label, unit, math.nan, tolerance=within, derived=value)


def claims() -> tuple[Claim, ...]:
    """Return the claims on both toys.

    Returns:
        Claims; derived values are known for the Bernoulli toy.
    """
    ratio = "logarithm of the ratio of SNRs"
    every = []
    for toy in TOYS:
        for text, unit in (
            (RISES, "log-log slope"),
            *((f"{ABOVE}, K = {k}", ratio) for k in LOOKED),
        ):
            label = f"{toy}: {text}"
            every.append(Claim(label, unit, derived=exact().get(label, math.nan)))
    return tuple(every)


def values_of(toy: str, moments: Moments) -> dict[str, Any]:
    """Return every series of a toy with its interval, by the jackknife over data.

    Args:
        toy: A key of `TOYS`.
        moments: Mean and variance of each datum's gradient, `[N, len(KS)]`.

    Returns:
        Estimates with intervals by label and text.
    """
    return {f"{toy}: {label}": one for label, one in jackknifed(moments, series_of).items()}


def _measure(work: Work) -> Iterator[PaperRow | Claim]:
    sizes = SIZES[work.scale]
    for toy in TOYS:
        of_toy = [row for row in rows() if row.label.startswith(toy)]
        texts = [claim for claim in claims() if claim.text.startswith(toy)]
        if is_wanted(work, of_toy, texts):
            compute = partial(_values, toy, sizes, work.progress)
            values: Mapping[str, Any] = work.kept(toy.lower(), asdict(sizes), compute)
            yield from measured_parts(work, of_toy, texts, values)


def _values(toy: str, sizes: Sizes, progress: bool) -> dict[str, Any]:
    return values_of(toy, TOYS[toy](sizes, progress=progress))


NOTES = r"""
The Gaussian latent is that of Tucker 2019 in one dimension: z ~ N(0, 1), x|z ~ N(z,
1), x = 1, q = N(0.8, 2/3), without reparameterization; the gradient is that of q's mean. The
Bernoulli latent is z ~ Bernoulli(1/2), x|z ~ N(2 z, 1), x = 2, q = Bernoulli(1/2), with the
gradient of q's logit; its moments are sums over the number of ones among K bits. The mean of OVIS
with γ is that of IWAE plus γ times that of RWS. VIMCO has its geometric baseline. Intervals are by
the jackknife over the data; agreement is within 2 %.
"""


@PAPERS.register("lievin-2020")
def lievin_2020() -> Paper:
    """Return the specification: the SNR of OVIS rises with K, and is above that of VIMCO.

    Returns:
        The specification.
    """
    words = "{:,} gradients of either toy at each of K = 8, 16, 32, 64."
    protocols = {name: words.format(s.num_data * s.replicates) for name, s in SIZES.items()}
    return Paper(
        "lievin-2020",
        "Optimal Variance Control of the Score-Function Gradient Estimator for "
        "Importance-Weighted Bounds",
        "Liévin, Dittadi, Christensen & Winther 2020, NeurIPS",
        "One datum: x = 1 for the Gaussian latent, x = 2 for the Bernoulli latent.",
        {"short": Scale(protocols["short"], 10), "full": Scale(protocols["full"], 100)},
        rows(),
        claims(),
        _measure,
        notes=NOTES,
    )
