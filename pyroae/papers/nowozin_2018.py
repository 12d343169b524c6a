"""Nowozin 2018: the jackknife removes the leading bias of the IWAE bound, on Gamma weights."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyroae.objectives.bounds import IWAE, JVI, BoundFunction
from pyroae.papers.estimates import is_wanted, mean_of, measured_parts
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


SIZES = {"short": Sizes(2_000_000), "full": Sizes(20_000_000)}
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
    sizes: Sizes, make: Callable[[int, int], BoundFunction] = bound
) -> dict[int, dict[int, Tensor]]:
    """Draw estimates of log p = 0 from Exponential(1) weights, paired between the orders.

    Args:
        sizes: The number of estimates.
        make: The bound from K and the order of the jackknife.

    Returns:
        Estimates by K and order, in nats, `[draws]` each.
    """
    generator = torch.Generator().manual_seed(sizes.seed)
    estimates: dict[int, dict[int, list[Tensor]]] = {}
    for k, orders in ORDERS.items():
        estimates[k] = {order: [] for order in orders}
        for start in range(0, sizes.draws, sizes.chunk):
            weights = torch.empty(k, min(sizes.chunk, sizes.draws - start), dtype=torch.float64)
            log_weight = weights.exponential_(generator=generator).log()
            for order in orders:
                estimates[k][order].append(make(k, order).value(log_weight))
    return {k: {m: torch.cat(parts) for m, parts in of.items()} for k, of in estimates.items()}


def values_of(estimates: Mapping[int, Mapping[int, Tensor]]) -> dict[str, Any]:
    """Return biases, and differences of their absolute values, by label and text.

    Args:
        estimates: What `measure` returns.

    Returns:
        Estimates with intervals.
    """
    values: dict[str, Any] = {}
    for k, by_order in estimates.items():
        signed = {}
        for order, draws in by_order.items():
            values[f"bias of {NAMES[order]}, K = {k}"] = mean_of(draws)
            signed[order] = draws * draws.mean().sign()
        for order in list(by_order)[1:]:
            text = f"{NAMES[order]} has less bias than {NAMES[order - 1]}, K = {k}"
            values[text] = mean_of(signed[order - 1] - signed[order])
    return values


def _measure(work: Work) -> Iterator[PaperRow | Claim]:
    sizes = SIZES[work.scale]
    if is_wanted(work, ROWS, CLAIMS):
        values = work.kept("biases", asdict(sizes), partial(_biases, sizes))
        yield from measured_parts(work, ROWS, CLAIMS, values)


def _biases(sizes: Sizes) -> dict[str, Any]:
    return values_of(measure(sizes))


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
    words = "{:,} estimates at each of K = 2, 5, 10"
    return Paper(
        "nowozin-2018",
        "Debiasing Evidence Approximations: On Importance-weighted Autoencoders and Jackknife "
        "Variational Inference",
        "Nowozin 2018, ICLR",
        "importance weights drawn from Gamma(1, 1)",
        {
            "short": Scale(words.format(SIZES["short"].draws), 20),
            "full": Scale(words.format(SIZES["full"].draws), 200),
        },
        ROWS,
        CLAIMS,
        _measure,
        notes=NOTES,
    )
