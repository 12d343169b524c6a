"""A linear-Gaussian model with one latent: gradients near its posterior, and SGD to it."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyroae.evaluation.gradient_lab.measure import Results, measure_gradients
from pyroae.objectives import AnalyticKL, ObjectiveBase, TraceELBO
from pyroae.objectives.named import stl
from pyroae.papers.moments import of_one_datum

WEIGHT, NOISE, DATUM = 1.0, 1.0, 1.0
"""w, s and x."""
RATIO = (WEIGHT / NOISE) ** 2
"""λ."""
VARIANCE = 1 / (1 + RATIO)
MEAN = VARIANCE * WEIGHT * DATUM / NOISE**2
"""Variance and mean of the posterior."""
RATE = 0.02
"""The rate of SGD."""
ESTIMATORS: dict[str, ObjectiveBase] = {
    "Monte-Carlo KL": TraceELBO(),
    "analytic KL": AnalyticKL(),
    "STL": stl(),
}
SYMBOLS = {"mean": "m", "log_scale": "log σ"}


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        num_data: Equal data, each with independent gradients.
        replicates: Gradients of each of these data at each variance.
        runs: Independent runs of SGD.
        steps: Steps of each run.
        times: Variances of q, in units of the posterior's.
        seed: The seed of the draws.
    """

    num_data: int
    replicates: int
    runs: int
    steps: int
    times: tuple[float, ...] = (
        *(0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9),
        *(1.0, 1.1, 1.25, 1.5, 2.0, 2.5, 3.0),
    )
    seed: int = 0


class OneLatent(nn.Module):
    """The model, and a guide of its own for each of N equal data.

        z ~ N(0, 1),   x|z ~ N(w z, s²),   x = 1,   q = N(m, σ²)

    The data give independent gradients, or independent runs of SGD.

    Args:
        count: N.
        mean: m, at the start.
        variance: σ², at the start.

    >>> OneLatent(3, 0.5, 0.5).mean.tolist()
    [0.5, 0.5, 0.5]
    """

    def __init__(self, count: int, mean: float, variance: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.full((count,), mean, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.full_like(self.mean, variance).log() / 2)

    def model(self, x: Tensor) -> None:
        """Run p(z) p(x|z) as a Pyro program on x `[N]`."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(WEIGHT * z, NOISE), obs=x)

    def guide(self, x: Tensor) -> None:
        """Run q(z) as a Pyro program on x `[N]`."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.mean, self.log_scale.exp()))


def exact_variance(name: str, parameter: str, times: float) -> float:
    """Return the variance of the gradient of one datum and one draw, where m is the posterior's.

        v = σ²,   λ = w²/s²,   d = m − x/w
        m:      Monte-Carlo KL (1 + λ)² v,  analytic KL λ² v,  STL (1/√v − (1 + λ) √v)²
        log σ:  2 (1 + λ)² v²,  λ² (2 v² + d² v),  2 (1 − (1 + λ) v)²

    Args:
        name: A key of `ESTIMATORS`.
        parameter: `mean` or `log_scale`.
        times: v in units of the posterior's variance.

    Returns:
        The variance, in nats².

    References:
        Roeder, Wu & Duvenaud 2017, Sticking the Landing, for the estimator.

    >>> exact_variance("STL", "mean", 0.25), exact_variance("Monte-Carlo KL", "mean", 0.25)
    (4.5, 0.5)
    """
    v, one = times * VARIANCE, 1 + RATIO
    in_mean = {
        "Monte-Carlo KL": one**2 * v,
        "analytic KL": RATIO**2 * v,
        "STL": (1 - one * v) ** 2 / v,
    }
    in_scale = {
        "Monte-Carlo KL": 2 * one**2 * v**2,
        "analytic KL": RATIO**2 * (2 * v**2 + (MEAN - DATUM / WEIGHT) ** 2 * v),
        "STL": 2 * (1 - one * v) ** 2,
    }
    return (in_mean if parameter == "mean" else in_scale)[name]


def exact_square(name: str) -> float:
    """Return E (m − μ)² of the iterates of SGD, to first order in its rate.

        Monte-Carlo KL: η (1 + λ) v/(2 − η (1 + λ)),   analytic KL: λ²/(1 + λ)² of it,   STL: 0

    Args:
        name: A key of `ESTIMATORS`.

    Returns:
        The mean square, where q has the posterior's variance v.

    >>> round(exact_square("Monte-Carlo KL"), 4)
    0.0102
    """
    left = RATE * (1 + RATIO) * VARIANCE / (2 - RATE * (1 + RATIO))
    share = {"Monte-Carlo KL": 1.0, "analytic KL": RATIO**2 / (1 + RATIO) ** 2, "STL": 0.0}
    return left * share[name]


def measure(
    sizes: Sizes,
    estimators: Mapping[str, ObjectiveBase] = ESTIMATORS,
    *,
    progress: bool = False,
) -> dict[float, Results]:
    """Measure the gradients of m and log σ at each variance, with m at the posterior's.

    Args:
        sizes: The numbers of data and gradients.
        estimators: The estimators, `Monte-Carlo KL` among them.
        progress: Whether progress is shown.

    Returns:
        Statistics by variance in units of the posterior's, estimator and parameter.
    """
    results = {}
    for i, times in enumerate(sizes.times):
        system = OneLatent(sizes.num_data, MEAN, times * VARIANCE)
        parameters = dict(system.named_parameters())
        results[times] = measure_gradients(
            system.model,
            system.guide,
            torch.full((sizes.num_data,), DATUM, dtype=torch.float64),
            estimators,
            parameters=parameters,
            groups={name: (name,) for name in parameters},
            replicates=sizes.replicates,
            seed=sizes.seed + i,
            reference="Monte-Carlo KL",
            progress=progress,
        )
    return results


def train(objective: ObjectiveBase, sizes: Sizes) -> Tensor:
    """Run SGD from the prior, m = 0 and v = 1.

    Args:
        objective: The estimator of the gradient.
        sizes: The numbers of runs and steps.

    Returns:
        KL(q ‖ posterior) in nats and (m − μ)² before every step, `[steps, runs, 2]`.
    """
    torch.manual_seed(sizes.seed)
    system = OneLatent(sizes.runs, 0.0, 1.0)
    x = torch.full((sizes.runs,), DATUM, dtype=torch.float64)
    optimizer = torch.optim.SGD(system.parameters(), lr=RATE)
    errors = []
    for _ in range(sizes.steps):
        with torch.no_grad():
            ratio, square = (2 * system.log_scale).exp() / VARIANCE, (system.mean - MEAN) ** 2
            divergence = (ratio + square / VARIANCE - 1 - ratio.log()) / 2
            errors.append(torch.stack([divergence, square], -1))
        optimizer.zero_grad()
        objective.loss_and_grads(system.model, system.guide, x)
        optimizer.step()
    return torch.stack(errors)


def variances(results: Mapping[float, Results], name: str, parameter: str, times: float) -> Tensor:
    """Return the variance of one datum's gradient, from each of the data.

    Args:
        results: What `measure` returns.
        name: A key of `ESTIMATORS`.
        parameter: `mean` or `log_scale`.
        times: The variance of q, in units of the posterior's.

    Returns:
        Variances, in nats², `[N]`.
    """
    return of_one_datum(results[times][name][parameter])[1]
