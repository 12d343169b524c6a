"""Sticking the landing: without the score of q, the ELBO's gradient has no noise at the posterior
(Roeder et al. 2017).

    z ~ N(0, 1),   x|z ~ N(w z, s²),   x = 1,   q = N(m, v),   σ = √v,   λ = w²/s²,
    posterior N(μ, 1/(1 + λ)),   w = s = 1

One gradient is that of one datum and one draw z = m + σ ε. Monte-Carlo KL is the total derivative
of log w, STL its path through z alone. With m = μ and d = m − x/w, the gradients' variances are

                     in m                        in log σ
    Monte-Carlo KL   (1 + λ)² v                  2 (1 + λ)² v²
    analytic KL      λ² v                        λ² (2 v² + d² v)
    STL              (1/√v − (1 + λ) √v)²        2 (1 − (1 + λ) v)²

STL's are 0 at v = 1/(1 + λ), the posterior, and above those of the Monte-Carlo KL where v is below
half of that. Steps of SGD at rate η leave E(m − μ)² = η (1 + λ) v / (2 − η (1 + λ)) under the
Monte-Carlo KL, λ²/(1 + λ)² of it under the analytic one, both to first order in η, and nothing
under STL. Published is what the paper's abstract says in words.

python examples/papers/roeder_2017.py    under a minute on one core
"""

import argparse
import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyroae.evaluation.gradient_lab.measure import measure_gradients
from pyroae.evaluation.gradient_lab.statistics import GradientStatistics
from pyroae.objectives import AnalyticKL, ObjectiveBase, TraceELBO
from pyroae.objectives.named import stl
from pyroae.plots.drawing import INK, RUNS, plain

WEIGHT, NOISE, DATUM = 1.0, 1.0, 1.0
RATIO = (WEIGHT / NOISE) ** 2
VARIANCE = 1 / (1 + RATIO)
MEAN = VARIANCE * WEIGHT * DATUM / NOISE**2
"""Of the posterior."""
SWEEP = tuple(
    VARIANCE * times
    for times in (0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 2.5, 3.0)
)
RATE, FLOOR = 0.02, 1e-16
SYMBOLS = {"mean": "m", "log_scale": "log σ"}
ESTIMATORS: dict[str, ObjectiveBase] = {
    "Monte-Carlo KL": TraceELBO(),
    "analytic KL": AnalyticKL(),
    "STL": stl(),
}
type Found = dict[float, dict[str, dict[str, GradientStatistics]]]
"""Statistics by v, estimator and parameter."""


class Claim(NamedTuple):
    """A figure with its 95 % interval, beside what the paper says and what is derived for the
    model.
    """

    name: str
    published: str
    derived: float
    measured: float
    low: float
    high: float


class Study(NamedTuple):
    """Gradients at each v, the error of each step and run `[steps, runs, 2]` in KL and (m − μ)²,
    and claims by name.
    """

    gradients: Found
    errors: dict[str, Tensor]
    claims: dict[str, Claim]


class System(nn.Module):
    """The model, and a q of its own for each of N equal data: independent gradients, or runs."""

    def __init__(self, count: int, mean: float, variance: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.full((count,), mean, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.full_like(self.mean, variance).log() / 2)

    def model(self, x: Tensor) -> None:
        """p(x, z)."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(WEIGHT * z, NOISE), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z)."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.mean, self.log_scale.exp()))


def data(count: int) -> Tensor:
    """x = 1, `count` times, in double precision."""
    return torch.full((count,), DATUM, dtype=torch.float64)


def derived(name: str, parameter: str, v: float) -> float:
    """The variance of one gradient at m = μ."""
    root, one = v**0.5, 1 + RATIO
    in_mean = {
        "Monte-Carlo KL": one**2 * v,
        "analytic KL": RATIO**2 * v,
        "STL": (1 / root - one * root) ** 2,
    }
    in_scale = {
        "Monte-Carlo KL": 2 * one**2 * v**2,
        "analytic KL": RATIO**2 * (2 * v**2 + (MEAN - DATUM / WEIGHT) ** 2 * v),
        "STL": 2 * (1 - one * v) ** 2,
    }
    return (in_mean if parameter == "mean" else in_scale)[name]


def measure(
    num_data: int, replicates: int, variances: Sequence[float] = SWEEP, seed: int = 0
) -> Found:
    """The gradients in the mean and the logarithm of the scale at each v, with m at the
    posterior's.
    """
    found = {}
    for i, v in enumerate(variances):
        system = System(num_data, MEAN, v)
        parameters = dict(system.named_parameters())
        found[v] = measure_gradients(
            system.model,
            system.guide,
            data(num_data),
            ESTIMATORS,
            parameters=parameters,
            groups={name: (name,) for name in parameters},
            replicates=replicates,
            seed=seed + i,
            reference="Monte-Carlo KL",
        )
    return found


def train(objective: ObjectiveBase, runs: int, steps: int, seed: int = 0) -> Tensor:
    """SGD from the prior, m = 0 and v = 1: KL(q ‖ posterior) in nats and (m − μ)², before every
    step, `[steps, runs, 2]`.
    """
    torch.manual_seed(seed)
    system, x = System(runs, 0.0, 1.0), data(runs)
    optimizer = torch.optim.SGD(system.parameters(), lr=RATE)
    errors = []
    for _ in range(steps):
        with torch.no_grad():
            ratio, square = (2 * system.log_scale).exp() / VARIANCE, (system.mean - MEAN) ** 2
            errors.append(
                torch.stack([(ratio + square / VARIANCE - 1 - ratio.log()) / 2, square], -1)
            )
        optimizer.zero_grad()
        objective.loss_and_grads(system.model, system.guide, x)
        optimizer.step()
    return torch.stack(errors)


def variances(found: Found, name: str, parameter: str, v: float) -> Tensor:
    """Of one datum's gradient, from each datum: `[N]`.

    The laboratory's gradients are those of a mean over N.
    """
    one = found[v][name][parameter].variance
    return one * len(one) ** 2


def claim(name: str, published: str, expected: float, values: Tensor) -> Claim:
    """From independent values `[N]` of a figure: their mean."""
    mean, error = (
        values.double().mean().item(),
        1.96 * values.double().std().item() / len(values) ** 0.5,
    )
    return Claim(name, published, expected, mean, mean - error, mean + error)


def claims_of_gradients(found: Found) -> list[Claim]:
    """Variances at the posterior and where q is narrower, and that STL's mean is the Monte-Carlo
    KL's, in paired draws.
    """
    claims = []
    for parameter, times, name in product(SYMBOLS, (0.25, 0.5, 0.75, 1.0), ESTIMATORS):
        v = times * VARIANCE
        title, published = (
            f"variance in {SYMBOLS[parameter]}, {name}, {times:.2f}",
            "0" if name == "STL" and times == 1 else "",
        )
        claims.append(
            claim(
                title, published, derived(name, parameter, v), variances(found, name, parameter, v)
            )
        )
    for parameter, times in product(SYMBOLS, (0.25, 1.0)):
        one, other = (
            found[times * VARIANCE][name][parameter].mean for name in ("STL", "Monte-Carlo KL")
        )
        title = f"mean in {SYMBOLS[parameter]}, STL − Monte-Carlo KL, {times:.2f}"
        claims.append(claim(title, "0", 0.0, (one - other) * len(one)))
    return claims


def claims_of_training(errors: dict[str, Tensor]) -> list[Claim]:
    """What is left in the last third of the steps, a mean a run."""
    claims = []
    left = RATE * (1 + RATIO) * VARIANCE / (2 - RATE * (1 + RATIO))
    expected = {
        "Monte-Carlo KL": left,
        "analytic KL": left * RATIO**2 / (1 + RATIO) ** 2,
        "STL": 0.0,
    }
    for name, error in errors.items():
        divergence, square = error[-(len(error) // 3) :].mean(0).unbind(-1)
        claims.append(claim(f"(m − μ)² after SGD, {name}", "", expected[name], square))
        claims.append(
            claim(
                f"KL(q ‖ posterior) after SGD, {name}",
                "",
                0.0 if name == "STL" else math.nan,
                divergence,
            )
        )
    return claims


def draw(study: Study) -> Figure:
    """Variance in the mean against v, measured and in closed form, and the KL of SGD's iterates, at
    least 1e-16.
    """
    figure = Figure((9.0, 3.8), dpi=150, layout="constrained")
    left, right = (plain(axes) for axes in figure.subplots(1, 2))
    fine = [0.17 + 0.01 * i for i in range(290)]
    for colour, (name, error) in zip(RUNS, study.errors.items(), strict=False):
        measured = [variances(study.gradients, name, "mean", v).mean() for v in study.gradients]
        left.plot(
            fine,
            [derived(name, "mean", times * VARIANCE) for times in fine],
            color=colour,
            linewidth=1,
        )
        left.plot([v / VARIANCE for v in study.gradients], measured, ".", color=colour, label=name)
        low, middle, high = (
            error[..., 0].clamp_min(FLOOR).quantile(torch.tensor([0.1, 0.5, 0.9]).double(), 1)
        )
        right.fill_between(range(len(error)), low, high, color=colour, alpha=0.25, linewidth=0)
        right.plot(middle, color=colour, label=name)
    for times, text in ((0.5, "half of it"), (1.0, "the posterior's")):
        left.axvline(times, color=INK, linewidth=0.8, linestyle=":")
        left.annotate(text, (times, 7.5), (3, 0), textcoords="offset points", fontsize=8, color=INK)
    left.set(
        xlabel="variance of q / variance of the posterior",
        ylabel="variance of the gradient in m",
        ylim=(-0.1, 8),
    )
    right.set(xlabel="steps of SGD", ylabel="KL(q ‖ posterior), nats", yscale="log")
    left.set_title("one datum, one draw; lines: closed form")
    right.set_title(f"median and 10 to 90 % of {error.shape[1]} runs")
    left.legend(frameon=False, loc="upper right")
    right.legend(frameon=False)
    return figure


def main(argv: Sequence[str] | None = None) -> Study:
    """Print each claim beside its published, derived and measured figure, draw, and return all of
    it.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--num-data", type=int, default=2000, help="independent gradients at a time; default: 2000"
    )
    parser.add_argument("--replicates", type=int, default=50, help="times; default: 50")
    parser.add_argument("--runs", type=int, default=500, help="of SGD; default: 500")
    parser.add_argument("--steps", type=int, default=1000, help="of each run; default: 1000")
    parser.add_argument(
        "--out", default="roeder_2017.png", help="the picture; default: roeder_2017.png"
    )
    options = parser.parse_args(argv)

    gradients = measure(options.num_data, options.replicates)
    errors = {
        name: train(objective, options.runs, options.steps)
        for name, objective in ESTIMATORS.items()
    }
    claims = {one.name: one for one in claims_of_gradients(gradients) + claims_of_training(errors)}
    print(
        "claim; v in units of the posterior's            "
        "published   derived   measured   95 % interval"
    )
    for one in claims.values():
        expected = "" if math.isnan(one.derived) else f"{one.derived:.4g}"
        print(
            f"{one.name:47} {one.published:9} {expected:>9} {one.measured:10.4g}   "
            f"{one.low:.4g} to {one.high:.4g}"
        )
    found = Study(gradients, errors, claims)
    draw(found).savefig(options.out)
    print(f"wrote {options.out}")
    return found


if __name__ == "__main__":
    main()
