"""Goda & Ishikawa 2019: levels of multilevel Monte Carlo for log p, on Gamma weights."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyroae.objectives.bounds import IWAE, MIWAE, BoundFunction
from pyroae.objectives.multilevel import MLMC
from pyroae.papers.estimates import Interval, is_wanted, jackknife_of, mean_of, measured_parts
from pyroae.papers.moments import log_slope
from pyroae.papers.paper import PAPERS, Paper, Scale, Work
from pyroae.papers.results import Claim, PaperRow

LEVELS = (1, 2, 3, 4, 5, 6, 7, 8)
DRAWS = tuple(2**level for level in LEVELS)
"""The numbers of weights of the levels."""
SHOWN = (1, 4, 8)
BLOCKS = 50
"""Blocks of draws, over which the jackknife leaves one out."""


@dataclass(frozen=True)
class Sizes:
    """How much is drawn.

    Attributes:
        draws: Differences at each level, a multiple of `BLOCKS`.
        roulettes: Randomized estimates.
        seed: The seed of the weights.
    """

    draws: int
    roulettes: int
    seed: int = 0


SIZES = {"short": Sizes(40_000, 20_000), "full": Sizes(400_000, 200_000)}


def exact_level(level: int, *, antithetic: bool = True) -> tuple[float, float]:
    """Return E Δ_l and E Δ_l² for weights that are Exponential(1).

        B ~ Beta(n, n),   n = 2^(l−1)
        antithetic: Δ = L(all) − ½ (L(first half) + L(second half)) = −½ log (4 B (1 − B))
        one half:   Δ = L(all) − L(first half) = −log (2 B)
        E Δ = ψ(2n) − ψ(n) − log 2
        Var Δ = ½ ψ₁(n) − ψ₁(2n)  and  ψ₁(n) − ψ₁(2n)

    Args:
        level: l, at least 1.
        antithetic: Whether both halves are used.

    Returns:
        The mean in nats, and the mean square in nats².

    >>> round(exact_level(1)[0], 4), round(exact_level(8)[1] / exact_level(7)[1], 3)
    (0.3069, 0.249)
    """
    n = torch.tensor(2.0 ** (level - 1), dtype=torch.float64)
    mean = (torch.digamma(2 * n) - torch.digamma(n)).item() - math.log(2)
    of_half, of_all = (torch.polygamma(1, count).item() for count in (n, 2 * n))
    variance = of_half / 2 - of_all if antithetic else of_half - of_all
    return mean, variance + mean**2


def _exact_slope(antithetic: bool) -> float:
    squares = [exact_level(level, antithetic=antithetic)[1] for level in LEVELS]
    return log_slope(torch.tensor(squares), DRAWS).item()


SLOPES = {"both halves": _exact_slope(True), "one half": _exact_slope(False)}
ROWS = (
    *(
        PaperRow(
            "Levels", f"E Δ, level {n}", "nats", math.nan, tolerance=0.0, derived=exact_level(n)[0]
        )
        for n in SHOWN
    ),
    *(
        PaperRow(
            "Levels",
            f"E Δ², level {n}",
            "nats²",
            math.nan,
            tolerance=0.03 * exact_level(n)[1],
            derived=exact_level(n)[1],
        )
        for n in SHOWN
    ),
    *(
        PaperRow(
            "Levels",
            f"decay of E Δ², {name}",
            "log-log slope of E Δ² in the number of draws",
            math.nan,
            tolerance=0.02,
            derived=slope,
        )
        for name, slope in SLOPES.items()
    ),
    PaperRow("Randomized", "mean of the estimate", "nats", math.nan, tolerance=0.03, derived=0.0),
)
FASTER = "E Δ² falls faster than the number of draws of a level grows"
BETTER = "E Δ² falls faster with both halves than with one"
CLAIMS = (
    Claim(FASTER, "difference of slopes", derived=-SLOPES["both halves"] - 1),
    Claim(BETTER, "difference of slopes", derived=SLOPES["one half"] - SLOPES["both halves"]),
)


def antithetic_halves(num_particles: int) -> BoundFunction:
    """Return the mean of the IWAE bounds of both halves.

    Args:
        num_particles: The number of weights, which is even.

    Returns:
        The bound.

    >>> antithetic_halves(4)
    MIWAE(num_particles=4, groups=2)
    """
    return MIWAE(num_particles, 2)


def measure_levels(
    sizes: Sizes, halves: Callable[[int], BoundFunction] = antithetic_halves
) -> dict[str, Tensor]:
    """Draw the differences of all levels.

    Args:
        sizes: The number of draws.
        halves: From the number of weights, what is subtracted from their IWAE bound.

    Returns:
        Δ with both halves and with one, in nats, `[draws, len(LEVELS)]` each.
    """
    generator = torch.Generator().manual_seed(sizes.seed)
    both, one = [], []
    for level in LEVELS:
        weights = torch.empty(2**level, sizes.draws, dtype=torch.float64)
        log_weight = weights.exponential_(generator=generator).log()
        whole = IWAE(2**level).value(log_weight)
        both.append(whole - halves(2**level).value(log_weight))
        first = log_weight[: 2 ** (level - 1)]
        one.append(whole - IWAE(len(first)).value(first))
    return {"both halves": torch.stack(both, 1), "one half": torch.stack(one, 1)}


def measure_roulette(sizes: Sizes) -> Tensor:
    """Draw randomized estimates of log p = 0, each with one weight at level 0.

    Args:
        sizes: The number of estimates.

    Returns:
        The estimates, in nats, `[roulettes]`.
    """
    torch.manual_seed(sizes.seed)
    bound = MLMC(1)
    counts = torch.tensor([bound.draw_particles() for _ in range(sizes.roulettes)])
    estimates = []
    for count, times in zip(*counts.unique(return_counts=True), strict=True):
        weights = torch.empty(int(count), int(times), dtype=torch.float64)
        estimates.append(bound.value(weights.exponential_().log()))
    return torch.cat(estimates)


def values_of(differences: dict[str, Tensor]) -> dict[str, Any]:
    """Return the estimates of the levels by label and text.

    Args:
        differences: What `measure_levels` returns.

    Returns:
        Estimates with intervals; those of slopes by the jackknife over blocks of draws.
    """
    both = differences["both halves"]
    values: dict[str, Any] = {}
    for level in SHOWN:
        of_level = both[:, LEVELS.index(level)]
        values[f"E Δ, level {level}"] = mean_of(of_level)
        values[f"E Δ², level {level}"] = mean_of(of_level.square())
    slopes = {name: _slopes(one) for name, one in differences.items()}
    for name, (slope, left_out) in slopes.items():
        values[f"decay of E Δ², {name}"] = jackknife_of(slope, left_out)
    slope, left_out = slopes["both halves"]
    values[FASTER] = jackknife_of(-slope - 1, -left_out)
    other, others = slopes["one half"]
    values[BETTER] = jackknife_of(other - slope, others - left_out)
    return values


def _slopes(differences: Tensor) -> tuple[float, Tensor]:
    """The slope of all draws, and without each block, `[BLOCKS]`."""
    blocks = differences.square().unflatten(0, (BLOCKS, -1)).mean(1)
    left_out = (blocks.sum(0) - blocks) / (BLOCKS - 1)
    return log_slope(blocks.mean(0), DRAWS).item(), log_slope(left_out, DRAWS)


def _measure(work: Work) -> Iterator[PaperRow | Claim]:
    sizes = SIZES[work.scale]
    if is_wanted(work, ROWS[:-1], CLAIMS):
        values = work.kept("levels", asdict(sizes), lambda: values_of(measure_levels(sizes)))
        yield from measured_parts(work, ROWS[:-1], CLAIMS, values)
    if is_wanted(work, ROWS[-1:], ()):
        values = work.kept("randomized", asdict(sizes), partial(_randomized, sizes))
        yield from measured_parts(work, ROWS[-1:], (), values)


def _randomized(sizes: Sizes) -> dict[str, Interval]:
    return {ROWS[-1].label: mean_of(measure_roulette(sizes))}


NOTES = r"""
The weights are Exponential(1), so that log p = 0. L is the logarithm of the mean weight, and level
l is the difference Δ between L of 2^l draws and the mean of L of their two halves, or L of the
first half. The ratio of the halves' sums has a Beta distribution, from which E Δ and E Δ² follow.
The randomized estimate takes level l with a probability of (1 − 2^−3/2) 2^(−3 l/2), and has the
mean log p without bias. Where E Δ² falls faster than 2^−l, its variance and its mean cost are
finite together.
"""


@PAPERS.register("goda-2019")
def goda_2019() -> Paper:
    """Return the specification: levels of a mean's logarithm fall fast enough to be randomized.

    Returns:
        The specification.
    """
    words = "{:,} differences at each of the levels 1 to 8; {:,} randomized estimates."
    protocols = {name: words.format(s.draws, s.roulettes) for name, s in SIZES.items()}
    return Paper(
        "goda-2019",
        "Multilevel Monte Carlo estimation of log marginal likelihood",
        "Goda & Ishikawa 2019, arXiv",
        "Importance weights drawn from Gamma(1, 1).",
        {"short": Scale(protocols["short"], 10), "full": Scale(protocols["full"], 60)},
        ROWS,
        CLAIMS,
        _measure,
        notes=NOTES,
    )
