"""Doubly reparameterized gradients: DReG has IWAE's mean, without the noise that drowns it (Tucker
et al. 2019).

With ŵ = w / Σ w, P_k = (∂ log w_k / ∂z_k)(∂z_k / ∂φ), q's parameters stopped, and
s_k = ∂_φ log q(z_k), gradients of φ are

    IWAE  Σ ŵ (P − s)     DReG  Σ ŵ² P     STL  Σ ŵ P     RWS  Σ ŵ s     RWS-DReG  Σ (ŵ − ŵ²) P

E Σ ŵ s = E Σ (ŵ − ŵ²) P: so IWAE and DReG have one mean, RWS and RWS-DReG another, and the bias of
STL is the second. As K grows the first goes to 0 as 1/K and the second to E_{p(z|x)} s; standard
deviations go as K^{−1/2}, DReG's as K^{−3/2}. Hence, for large K, slopes of −1/2 and +1/2 for the
SNR of IWAE and DReG, and of 2 for the ratio of their variances.

1. z ~ N(0, 1), x|z ~ N(z, 1), x = 1, q = N(0.8, 2/3): the gradient of q's mean from one datum and
   K draws, beside its exact mean and variance.
2. Rainforth's toy (2018) in 5 dimensions: z ~ N(μ, I), x|z ~ N(z, I), q = N(A x + b, (2/3) I) near
   its optimum, each parameter perturbed by N(0, 0.04²): the gradient of b from the whole data set,
   its SNR a mean over b's elements.

Published is what the paper's abstract and introduction say in words.

python examples/papers/tucker_2019.py    about two minutes on one core
"""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyroae.evaluation.gradient_lab.measure import measure_gradients
from pyroae.evaluation.gradient_lab.slopes import SNRCurve, slope
from pyroae.evaluation.gradient_lab.statistics import GradientStatistics
from pyroae.objectives.named import dreg, iwae, iwae_stl, rws, rws_dreg
from pyroae.plots.drawing import INK, RUNS, plain

KS = (2, 4, 8, 16, 32, 64)
DIMENSIONS, OFFSET, VARIANCE = 5, 0.04, 2 / 3
FAMILIES = ({"IWAE": iwae, "DReG": dreg, "STL": iwae_stl}, {"RWS": rws, "RWS-DReG": rws_dreg})
"""The bias is measured from the first of each."""
DRAWN = ("IWAE", "DReG", "STL")

type Moments = dict[str, tuple[Tensor, Tensor]]
"""Mean and variance of one datum's gradient at each K, `[..., len(ks)]`, by estimator."""

SERIES: dict[str, Callable[[Moments], Tensor]] = {
    **{f"mean, {name}": partial(lambda name, found: found[name][0], name) for name in DRAWN},
    **{
        f"SNR, {name}": partial(
            lambda name, found: found[name][0].abs() / found[name][1].sqrt(), name
        )
        for name in DRAWN
    },
    "variance, IWAE / DReG": lambda found: found["IWAE"][1] / found["DReG"][1],
    "variance, RWS / RWS-DReG": lambda found: found["RWS"][1] / found["RWS-DReG"][1],
    "bias, DReG − IWAE": lambda found: found["DReG"][0] - found["IWAE"][0],
    "bias, STL − IWAE": lambda found: found["STL"][0] - found["IWAE"][0],
    "bias, RWS-DReG − RWS": lambda found: found["RWS-DReG"][0] - found["RWS"][0],
}
CLAIMS: tuple[tuple[str, str, tuple[int | None, ...]], ...] = (
    ("SNR, IWAE", "falls", (None,)),
    ("SNR, DReG", "does not fall", (None,)),
    ("variance, IWAE / DReG", "", (None,)),
    ("variance, IWAE / DReG", "above 1", (0, -1)),
    ("variance, RWS / RWS-DReG", "above 1", (0, -1)),
    ("bias, DReG − IWAE", "0", (0, -1)),
    ("bias, STL − IWAE", "not 0", (0, -1)),
    ("bias, RWS-DReG − RWS", "0", (0, -1)),
)
"""A series, what the paper says of it, and where it is looked at: at the first or last K, or, for
None, its slope in K.
"""


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
    """Statistics of both models by estimator; the paper's claims, and mean and SNR in the first
    model, by name.
    """

    one: dict[str, SNRCurve]
    toy: dict[str, SNRCurve]
    claims: dict[str, Claim]
    moments: dict[str, Claim]


class Toy(nn.Module):
    """Model and guide; b is `[D]`, or `[N, D]` where each datum has its own."""

    def __init__(self, mu: Tensor, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.mu, self.a, self.b = mu, a, nn.Parameter(b)

    def model(self, x: Tensor) -> None:
        """p(x, z)."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.mu, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z|x)."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ self.a.T + self.b, VARIANCE**0.5).to_event(1))


def measure(
    toy: Toy, x: Tensor, ks: Sequence[int], replicates: int, seed: int
) -> dict[str, SNRCurve]:
    """The gradient of b by every estimator at each K; the noise differs between K."""
    at_k = []
    for k in ks:
        found: dict[str, dict[str, GradientStatistics]] = {}
        for family in FAMILIES:
            found |= measure_gradients(
                toy.model,
                toy.guide,
                x,
                {name: make(k) for name, make in family.items()},
                parameters={"b": toy.b},
                replicates=replicates,
                seed=seed + k,
                reference=next(iter(family)),
                progress=True,
            )
        at_k.append(found)
    curves = {}
    for name in at_k[0]:
        statistics = tuple(found[name]["all"] for found in at_k)
        ratios, resampled = (
            [one.snr for one in statistics],
            torch.stack([one.resampled for one in statistics], 1),
        )
        curves[name] = SNRCurve(tuple(ks), statistics, slope(ks, ratios, resampled))
    return curves


def measure_one(
    num_data: int, replicates: int, ks: Sequence[int] = KS, seed: int = 0
) -> dict[str, SNRCurve]:
    """The first model. All data are x = 1, each with a q of its own: independent gradients."""
    toy = Toy(torch.zeros(1), torch.full((1, 1), 0.5), torch.full((num_data, 1), 0.3))
    return measure(toy, torch.ones(num_data, 1), ks, replicates, seed)


def measure_toy(
    num_data: int, replicates: int, ks: Sequence[int] = KS, seed: int = 0
) -> dict[str, SNRCurve]:
    """The second model, on data drawn from it."""
    torch.manual_seed(seed)
    x = torch.randn(DIMENSIONS) + 2**0.5 * torch.randn(num_data, DIMENSIONS)
    optimum = (x.mean(0), torch.eye(DIMENSIONS) / 2, x.mean(0) / 2)
    mu, a, b = (value + OFFSET * torch.randn_like(value) for value in optimum)
    return measure(Toy(mu, a, b), x, ks, replicates, seed)


def exact(ks: Sequence[int]) -> Moments:
    """Of the first model, for K > 1, by quadrature over z and log t, in double precision: with
    S = Σ w and M = E e^{−tw},

    1 / S^p = ∫ t^p e^{−tS} d log t / Γ(p),   so   E Σ w_k^p g_k / S^p = K ∫ E[(tw)^p g e^{−tw}]
    M^{K−1} d log t / Γ(p)

    and likewise second moments: K terms of one draw, and K (K − 1) of two.
    """
    z, log_t = (
        torch.linspace(-7.0, 8.6, 801, dtype=torch.float64),
        torch.linspace(-32.0, 12.0, 801, dtype=torch.float64),
    )
    score = (z - 0.8) / VARIANCE
    path = 1 - 2 * z + score
    log_q = -0.5 * (VARIANCE * score**2 + math.log(2 * math.pi * VARIANCE))
    log_tw = log_t[:, None] - z**2 / 2 - (1 - z) ** 2 / 2 - math.log(2 * math.pi) - log_q
    k = torch.tensor(ks, dtype=torch.float64)

    def expect(p: int, g: Tensor) -> Tensor:
        return ((p * log_tw - log_tw.exp() + log_q).exp() @ g * (z[1] - z[0]))[:, None]

    def integral(values: Tensor, p: int) -> Tensor:
        return values.sum(0) * (log_t[1] - log_t[0]) / math.gamma(p)

    terms = {
        "IWAE": [(1, path - score)],
        "DReG": [(2, path)],
        "STL": [(1, path)],
        "RWS": [(1, score)],
    }
    terms["RWS-DReG"] = [(1, path), (2, -path)]
    others = expect(0, torch.ones_like(z))
    found: Moments = {}
    for name, parts in terms.items():
        mean, square = torch.zeros_like(k), torch.zeros_like(k)
        for p, g in parts:
            mean += integral(k * expect(p, g) * others ** (k - 1), p)
        for (p, g), (r, h) in product(parts, parts):
            pairs = (k - 1) * expect(p, g) * expect(r, h) * others ** (k - 2)
            square += integral(k * (expect(p + r, g * h) * others ** (k - 1) + pairs), p + r)
        found[name] = mean, square - mean**2
    return found


def moments(curves: dict[str, SNRCurve]) -> Moments:
    """As measured for each datum of the first model: `[N, len(ks)]`.

    The laboratory's gradients are those of a mean over N.
    """
    found = {}
    for name, curve in curves.items():
        count = len(curve.statistics[0].mean)
        mean, variance = (
            torch.stack([getattr(one, of) for one in curve.statistics], 1)
            for of in ("mean", "variance")
        )
        found[name] = mean.double() * count, variance.double() * count**2
    return found


def look(values: Tensor, ks: Sequence[int], index: int | None) -> Tensor:
    """A series `[..., len(ks)]` at one K, or its least-squares slope in logarithms: `[...]`."""
    if index is not None:
        return values[..., index]
    log_k = torch.tensor(ks, dtype=torch.float64).log()
    direction = log_k - log_k.mean()
    return values.log() @ direction / direction.square().sum()


def compare(
    series: str, published: str, index: int | None, ks: Sequence[int], known: Moments, data: Moments
) -> Claim:
    """One number of a series, derived and measured; its error by the jackknife over data
    (Quenouille 1949, Tukey 1958).
    """
    count = len(data["IWAE"][0])
    whole = {name: (mean.mean(0), variance.mean(0)) for name, (mean, variance) in data.items()}
    rest = {
        name: ((m.sum(0) - m) / (count - 1), (v.sum(0) - v) / (count - 1))
        for name, (m, v) in data.items()
    }
    derived, found, without = (look(SERIES[series](one), ks, index) for one in (known, whole, rest))
    value, error = found.item(), 1.96 * ((count - 1) * without.var(correction=0)).sqrt().item()
    place = "slope in K" if index is None else f"K = {ks[index]}"
    return Claim(
        f"{series}, {place}",
        published,
        round(derived.item(), 12) + 0.0,
        value,
        value - error,
        value + error,
    )


def claims_of_toy(curves: dict[str, SNRCurve]) -> list[Claim]:
    """In the second model: slopes, derived for large K, and relative biases, whose intervals are on
    the wide side.
    """
    claims = []
    for name, published, derived in (("IWAE", "falls", -0.5), ("DReG", "does not fall", 0.5)):
        claims.append(
            Claim(f"toy: SNR, {name}, slope in K", published, derived, *curves[name].slope)
        )
    for name, published, derived in (("DReG", "0", 0.0), ("STL", "not 0", math.nan)):
        for i in (0, -1):
            one, size = curves[name].statistics[i], curves["DReG"].statistics[i].mean.norm().item()
            bias, error = one.bias / size, 1.96 * one.bias_se / size
            title = f"toy: ‖bias‖ / ‖mean‖, {name}, K = {curves[name].ks[i]}"
            claims.append(
                Claim(title, published, derived, bias, max(bias - error, 0.0), bias + error)
            )
    return claims


def study(one: dict[str, SNRCurve], toy: dict[str, SNRCurve]) -> Study:
    """Every claim, from what was measured."""
    ks = one["IWAE"].ks
    known, data = exact(ks), moments(one)
    claims = [
        compare(series, says, i, ks, known, data) for series, says, places in CLAIMS for i in places
    ]
    rest = [
        compare(f"{what}, {name}", "", i, ks, known, data)
        for name, what, i in product(DRAWN, ("mean", "SNR"), range(len(ks)))
    ]
    return Study(
        one, toy, {c.name: c for c in claims + claims_of_toy(toy)}, {c.name: c for c in rest}
    )


def draw(found: Study) -> Figure:
    """SNR against K in the toy; size of the mean gradient against K in the first model, exact and
    measured.
    """
    figure = Figure((9.0, 3.8), dpi=150, layout="constrained")
    left, right = (plain(axes) for axes in figure.subplots(1, 2))
    ks = found.one["IWAE"].ks
    known = exact(ks)
    for colour, name in zip(RUNS, DRAWN, strict=False):
        curve = found.toy[name]
        low, high = zip(*curve.intervals, strict=True)
        label = f"{name}, slope {curve.slope.slope:+.2f}".replace("-", "−")
        left.fill_between(ks, low, high, color=colour, alpha=0.25, linewidth=0)
        left.plot(ks, curve.snr, ".-", color=colour, label=label)
        means = [found.moments[f"mean, {name}, K = {k}"] for k in ks]
        marker = (
            {"fmt": "o", "markersize": 8, "markerfacecolor": "none"}
            if name == "IWAE"
            else {"fmt": "."}
        )
        size, error = (
            [abs(one.measured) for one in means],
            [one.high - one.measured for one in means],
        )
        right.plot(ks, known[name][0].abs(), color=colour, linewidth=1)
        right.errorbar(ks, size, error, color=colour, label=name, **marker)
    right.axhline(
        (0.8 - 0.5) / VARIANCE, color=INK, linewidth=0.8, linestyle=":", label="|E s| under p(z|x)"
    )
    left.set(ylabel="signal-to-noise ratio of the gradient", title="5-dimensional toy, measured")
    right.set(ylabel="size of the mean gradient", title="one dimension, lines exact")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("K, particles")
        axes.legend(frameon=False)
    return figure


def main(argv: Sequence[str] | None = None) -> Study:
    """Print each claim beside its published, derived and measured figure, draw, and return all of
    it.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--replicates", type=int, default=600, help="gradients of the toy at each K; default: 600"
    )
    parser.add_argument(
        "--num-data",
        type=int,
        default=4000,
        help="data of the first model, 100 gradients each; default: 4000",
    )
    parser.add_argument(
        "--ks", type=int, nargs="+", default=KS, metavar="K", help="default: 2 4 8 16 32 64"
    )
    parser.add_argument(
        "--out", default="tucker_2019.png", help="the picture; default: tucker_2019.png"
    )
    options = parser.parse_args(argv)

    found = study(
        measure_one(options.num_data, 100, options.ks),
        measure_toy(64, options.replicates, options.ks),
    )
    print(
        "claim                                    published       "
        "derived   measured   95 % interval"
    )
    for claim in (*found.claims.values(), *found.moments.values()):
        derived = "" if math.isnan(claim.derived) else f"{claim.derived:.4g}"
        line = f"{claim.name:40} {claim.published:13} {derived:>9} {claim.measured:10.4g}"
        print(f"{line}   {claim.low:.4g} to {claim.high:.4g}")
    draw(found).savefig(options.out)
    print(f"wrote {options.out}")
    return found


if __name__ == "__main__":
    main()
