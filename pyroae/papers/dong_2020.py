"""Dong et al. 2020: antithetic pairs have less variance than the leave-one-out, on one bit."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyroae.evaluation.gradient_lab.measure import measure_gradients
from pyroae.objectives.base import ObjectiveBase
from pyroae.objectives.named import arm, disarm, score
from pyroae.papers.estimates import is_wanted, mean_of, measured_parts
from pyroae.papers.moments import of_one_datum
from pyroae.papers.paper import PAPERS, Paper, Scale, Work
from pyroae.papers.results import Claim, PaperRow

DATUM = 1.5
"""x, so that log p(x|z = 1) − log p(x|z = 0) = 1."""
LOGITS = (-1.5, 0.0, 0.7, 2.0)
ESTIMATORS: dict[str, ObjectiveBase] = {
    "DisARM": disarm(2),
    "ARM": arm(2),
    "leave-one-out": score(2),
}
"""Each with two draws."""


@dataclass(frozen=True)
class Sizes:
    """How many gradients are measured.

    Attributes:
        num_data: Equal data, each with its own logit and independent gradients.
        replicates: Gradients of each of these data.
        seed: The seed of the draws.
    """

    num_data: int
    replicates: int
    seed: int = 0


SIZES = {"short": Sizes(5000, 40), "full": Sizes(5000, 400)}


def exact_moments(name: str, logit: float) -> tuple[float, float]:
    """Return mean and variance of the gradient with respect to the logit of q, from two draws.

        p = σ(a),   q = σ(|a|),   Δ = f(1) − f(0) = 1 − a,   f = log w,   mean Δ p (1 − p)
        DisARM Δ² q² (1 − q)(q − ½),   leave-one-out Δ² p (1 − p)(½ − p (1 − p))
        ARM Δ² (1/12 − ⅔ (q − ½)³ − q² (1 − q)²)

    Args:
        name: A key of `ESTIMATORS`.
        logit: a.

    Returns:
        The mean in nats, and the variance in nats².

    >>> exact_moments("DisARM", 0.0), exact_moments("leave-one-out", 0.0)
    ((0.25, 0.0), (0.25, 0.0625))
    """
    change, q = 1 - logit, 1 / (1 + math.exp(-abs(logit)))
    spread = q * (1 - q)
    variance = {
        "DisARM": q * spread * (q - 0.5),
        "ARM": 1 / 12 - 2 / 3 * (q - 0.5) ** 3 - spread**2,
        "leave-one-out": spread * (0.5 - spread),
    }
    return change * spread, change**2 * variance[name]


def _row(name: str, logit: float, moment: str) -> PaperRow:
    mean, variance = exact_moments(name, logit)
    derived = mean if moment == "mean" else variance
    return PaperRow(
        "One bit",
        f"{moment} of {name}, logit {logit:g}",
        "nats" if moment == "mean" else "nats²",
        math.nan,
        tolerance=0.02 * abs(derived) or 1e-12,
        derived=derived,
    )


ROWS = tuple(
    _row(name, logit, moment)
    for moment in ("mean", "variance")
    for logit in LOGITS
    for name in ESTIMATORS
)
OTHERS = ("leave-one-out", "ARM")
CLAIMS = tuple(
    Claim(
        f"DisARM has less variance than {other}, logit {logit:g}",
        "difference of variances, nats²",
        derived=exact_moments(other, logit)[1] - exact_moments("DisARM", logit)[1],
    )
    for other in OTHERS
    for logit in LOGITS
)


def measure(
    logit: float,
    sizes: Sizes,
    estimators: Mapping[str, ObjectiveBase] = ESTIMATORS,
    *,
    progress: bool = False,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Measure the gradient of the ELBO with respect to the logit of q.

        z ~ Bernoulli(½),   x|z ~ N(z, 1),   x = 1.5,   q = Bernoulli(logits = a)

    Args:
        logit: a.
        sizes: The numbers of data and gradients.
        estimators: The estimators.
        progress: Whether progress is shown.

    Returns:
        Mean and variance of each datum's gradient by estimator, `[N]`.
    """
    logits = torch.full((sizes.num_data,), logit, dtype=torch.float64, requires_grad=True)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full_like(x, 0.5)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    x = torch.full((sizes.num_data,), DATUM, dtype=torch.float64)
    results = measure_gradients(
        model,
        guide,
        x,
        estimators,
        parameters={"logits": logits},
        replicates=sizes.replicates,
        seed=sizes.seed,
        progress=progress,
    )
    return {name: of_one_datum(groups["all"]) for name, groups in results.items()}


def values_of(logit: float, moments: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Return means, variances and their differences by label and text.

    Args:
        logit: a.
        moments: What `measure` returns.

    Returns:
        Estimates with intervals.
    """
    values: dict[str, Any] = {}
    for name, (mean, variance) in moments.items():
        values[f"mean of {name}, logit {logit:g}"] = mean_of(mean)
        values[f"variance of {name}, logit {logit:g}"] = mean_of(variance)
    for other in OTHERS:
        text = f"DisARM has less variance than {other}, logit {logit:g}"
        values[text] = mean_of(moments[other][1] - moments["DisARM"][1])
    return values


def _measure(work: Work) -> Iterator[PaperRow | Claim]:
    sizes = SIZES[work.scale]
    if is_wanted(work, ROWS, CLAIMS):
        values = work.kept("variances", asdict(sizes), partial(_variances, sizes, work.progress))
        yield from measured_parts(work, ROWS, CLAIMS, values)


def _variances(sizes: Sizes, progress: bool) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for logit in LOGITS:
        values |= values_of(logit, measure(logit, sizes, progress=progress))
    return values


NOTES = r"""
z ~ Bernoulli(1/2), x|z ~ N(z, 1), x = 1.5, q = Bernoulli(logits = a), so that f = log w has f(1) −
f(0) = Δ = 1 − a. With p = σ(a) and q = σ(|a|) the mean gradient is Δ p (1 − p), and the variances
of two draws are Δ² q² (1 − q)(q − ½) for DisARM, Δ² p (1 − p)(½ − p (1 − p)) for the leave-one-out
and Δ² (1/12 − ⅔ (q − ½)³ − q² (1 − q)²) for ARM. At a = 0 DisARM has no variance. Agreement is
within 2 %.
"""


@PAPERS.register("dong-2020")
def dong_2020() -> Paper:
    """Return the specification: DisARM has less variance than the leave-one-out and ARM.

    Returns:
        The specification.
    """
    words = "{:,} gradients at each logit, of two draws each."
    protocols = {name: words.format(s.num_data * s.replicates) for name, s in SIZES.items()}
    return Paper(
        "dong-2020",
        "DisARM: An Antithetic Gradient Estimator for Binary Latent Variables",
        "Dong, Mnih & Tucker 2020, NeurIPS",
        "One datum, x = 1.5.",
        {"short": Scale(protocols["short"], 15), "full": Scale(protocols["full"], 100)},
        ROWS,
        CLAIMS,
        _measure,
        notes=NOTES,
    )
