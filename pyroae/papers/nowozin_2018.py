"""Nowozin 2018: the jackknife removes the leading bias of the IWAE bound, on Gamma weights."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from pyroae.objectives.bounds import IWAE, JVI, BoundFunction
from pyroae.papers.estimates import Interval, is_wanted, mean_of, measured_parts
from pyroae.papers.paper import PAPERS, Paper, Scale, Work
from pyroae.papers.results import Claim, PaperRow


@dataclass(frozen=True)
class Sizes:
    """How many estimates are drawn.

    Attributes:
        draws: Estimates at each K.
        chunk: Estimates at a time.
        seed: The seed of the weights.
    """

    draws: int
    chunk: int = 100_000
    seed: int = 0


SIZES = {"short": Sizes(2_000_000), "full": Sizes(10_000_000)}
ORDERS = {2: (0, 1), 5: (0, 1, 2), 10: (0, 1)}
"""Orders of the jackknife by K; 0 is IWAE."""
NAMES = ("IWAE", "JVI-1", "JVI-2")


def bound(num_particles: int, order: int) -> BoundFunction:
    """Return the IWAE bound, or its jackknife.

    Args:
        num_particles: K.
        order: The order of the jackknife; 0 for the IWAE bound.

    Returns:
        The bound.

    >>> bound(4, 0), bound(4, 1)
    (IWAE(num_particles=4), JVI(num_particles=4, order=1))
    """
    return JVI(num_particles, order) if order else IWAE(num_particles)


def exact_bias(num_particles: int, order: int) -> float:
    """Return the bias of log p = 0 from K weights that are Exponential(1).

        E L_K = ψ(K) − log K,   E JVI-m = Σ_{j≤m} c_j E L_{K−j},
        c_j = (−1)^j (K−j)^m / ((m−j)! j!)

    Args:
        num_particles: K.
        order: m; 0 for the IWAE bound.

    Returns:
        The bias, in nats.

    >>> [round(exact_bias(10, order), 6) for order in (0, 1)]
    [-0.050833, 0.000923]
    """
    bias = 0.0
    for j in range(order + 1):
        left = num_particles - j
        share = (-1) ** j * left**order / (math.factorial(order - j) * math.factorial(j))
        digamma = torch.digamma(torch.tensor(left, dtype=torch.float64)).item()
        bias += share * (digamma - math.log(left))
    return bias


def _less(num_particles: int, order: int) -> Claim:
    one, other = (abs(exact_bias(num_particles, m)) for m in (order - 1, order))
    text = f"{NAMES[order]} has less bias than {NAMES[order - 1]}, K = {num_particles}"
    return Claim(text, "difference of the sizes, nats", derived=one - other)


ROWS = tuple(
    PaperRow(
        "Gamma(1, 1) weights",
        f"bias of {NAMES[order]}, K = {k}",
        "nats",
        math.nan,
        tolerance=0.0003,
        derived=exact_bias(k, order),
    )
    for k, orders in ORDERS.items()
    for order in orders
)
CLAIMS = tuple(_less(k, order) for k, orders in ORDERS.items() for order in orders[1:])


def measure(
    num_particles: int, sizes: Sizes, make: Callable[[int, int], BoundFunction] = bound
) -> dict[int, Tensor]:
    """Draw estimates of log p = 0 from Exponential(1) weights, paired between the orders.

    Args:
        num_particles: K, a key of `ORDERS`.
        sizes: The number of estimates.
        make: The bound from K and the order of the jackknife.

    Returns:
        Estimates by order, in nats, `[draws]` each.
    """
    generator = torch.Generator().manual_seed(sizes.seed)
    estimates: dict[int, list[Tensor]] = {order: [] for order in ORDERS[num_particles]}
    for start in range(0, sizes.draws, sizes.chunk):
        count = min(sizes.chunk, sizes.draws - start)
        weights = torch.empty(num_particles, count, dtype=torch.float64)
        log_weight = weights.exponential_(generator=generator).log()
        for order, parts in estimates.items():
            parts.append(make(num_particles, order).value(log_weight))
    return {order: torch.cat(parts) for order, parts in estimates.items()}


def values_of(num_particles: int, estimates: Mapping[int, Tensor]) -> dict[str, Interval]:
    """Return biases, and differences of their sizes, by label and text.

    Args:
        num_particles: K.
        estimates: What `measure` returns.

    Returns:
        Estimates with intervals.
    """
    end = f"K = {num_particles}"
    values = {f"bias of {NAMES[m]}, {end}": mean_of(draws) for m, draws in estimates.items()}
    for order in list(estimates)[1:]:
        text = f"{NAMES[order]} has less bias than {NAMES[order - 1]}, {end}"
        values[text] = size_difference(estimates[order - 1], estimates[order])
    return values


def size_difference(one: Tensor, other: Tensor) -> Interval:
    """Estimate |E one| − |E other| from paired values.

    Where the interval of a mean contains 0, its sign is not known: the interval of the difference
    is then the union over both signs.

    Args:
        one: Values, `[N]`.
        other: Values from the same draws, `[N]`.

    Returns:
        The estimate and its interval.

    >>> [round(end, 2) for end in size_difference(-torch.ones(4), torch.full((4,), 0.25))]
    [0.75, 0.75, 0.75]
    """
    of_one, of_other = mean_of(one), mean_of(other)
    ends = [mean_of(a * one - b * other) for a in _signs(of_one) for b in _signs(of_other)]
    lows, highs = [low for _, low, _ in ends], [high for *_, high in ends]
    return abs(of_one[0]) - abs(of_other[0]), min(lows), max(highs)


def _signs(interval: Interval) -> tuple[int, ...]:
    _, low, high = interval
    return (1, -1) if low < 0 < high else (1,) if low >= 0 else (-1,)


def _measure(work: Work) -> Iterator[PaperRow | Claim]:
    sizes = SIZES[work.scale]
    if is_wanted(work, ROWS, CLAIMS):
        values = work.kept("biases", asdict(sizes), partial(_biases, sizes))
        yield from measured_parts(work, ROWS, CLAIMS, values)


def _biases(sizes: Sizes) -> dict[str, Interval]:
    values = {}
    for k in ORDERS:
        values.update(values_of(k, measure(k, sizes)))
    return values


NOTES = r"""
The weights are Exponential(1), so that log p = 0 and E log (1/K) Σ w = ψ(K) − log K. The biases of
the jackknife follow from this. Estimates are paired between the orders. The trained models of the
paper's Table 1 are not measured here. Agreement is within 0.0003 nats.
"""


@PAPERS.register("nowozin-2018")
def nowozin_2018() -> Paper:
    """Return the specification: the jackknife's bias is smaller than that of the IWAE bound.

    Returns:
        The specification.
    """
    words = "{:,} estimates at each of K = 2, 5, 10."
    return Paper(
        "nowozin-2018",
        "Debiasing Evidence Approximations: On Importance-weighted Autoencoders and Jackknife "
        "Variational Inference",
        "Nowozin 2018, ICLR",
        "Importance weights drawn from Gamma(1, 1).",
        {
            "short": Scale(words.format(SIZES["short"].draws), 20),
            "full": Scale(words.format(SIZES["full"].draws), 100),
        },
        ROWS,
        CLAIMS,
        _measure,
        notes=NOTES,
    )
