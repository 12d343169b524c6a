"""Samples of the pairs of systems and objectives that hold a case of every kind; the whole grid is
slow.
"""

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
from pyro.distributions import Bernoulli, Delta, MixtureSameFamily

from pyroae.objectives import (
    OBJECTIVES,
    DoublyReparameterized,
    DoublyReparameterizedWakeSleep,
    Objective,
)
from pyroae.programs.sites import base_distribution
from tests.systems import KINDS, ZOO, system_and_data

Pair = tuple[str, str]
"""The names of a system and of an objective."""
WAYS = {
    "pathwise": (
        *("trace-elbo", "analytic-kl", "beta-elbo", "iwae", "renyi", "miwae", "ciwae", "jvi"),
        *("piwae", "mlmc", "selbo", "siwae"),
    ),
    "along draws": ("stl", "iwae-stl", "dreg", "rws-dreg", "gdreg"),
    "score": ("vimco", "score", "vargrad", "ovis", "ovis-mc", "nvil", "rws", "tvo"),
    "pairs of bits": ("disarm", "arm"),
    "relaxed": ("gumbel-softmax", "straight-through", "rebar", "relax"),
}
"""Objectives by the way in which they estimate gradients; any other is a way of its own."""
WAY_OF = {name: way for way, names in WAYS.items() for name in names}


@cache
def guide_of(name: str) -> str:
    """The kind of a system's guide: point, mixture, continuous, binary or categorical."""
    system, x = system_and_data(name)
    q = system.q_z(x)
    base = base_distribution(q)
    if isinstance(base, MixtureSameFamily):
        return "mixture"
    if isinstance(base, Delta):
        return "point"
    if q.has_rsample:
        return "continuous"
    return "binary" if isinstance(base, Bernoulli) else "categorical"


def refused_by(name: str) -> set[str]:
    """Objectives that cannot train a system: those that take other kinds of latents, and, as a
    Delta has no density to follow, for such a guide those that follow it.
    """
    guide = guide_of(name)
    kinds = {"mixture": {"continuous", "mixture"}, "point": {"continuous"}}.get(guide, {guide})
    others = {objective for objective in OBJECTIVES if not KINDS[objective] & kinds}
    if guide != "point":
        return others
    along_draws = (DoublyReparameterized, DoublyReparameterizedWakeSleep)
    made = {o: make(num_particles=4) for o, make in OBJECTIVES.items()}
    follow = {
        o
        for o, pair in made.items()
        if isinstance(pair, Objective)
        and (pair.gradient.detached or isinstance(pair.gradient, along_draws))
    }
    return {*others, *follow, "dais", "gdreg"}


REFUSED = {name: refused_by(name) for name in ZOO}
PAIRS = [
    (name, objective) for name in ZOO for objective in OBJECTIVES if objective not in REFUSED[name]
]


def covering(pairs: Iterable[Pair] = PAIRS) -> list[Pair]:
    """Each system with an objective of each way, and each objective with a system of each kind.

    Members of a kind take turns.
    """
    grid, chosen = list(pairs), set[Pair]()
    used: Counter[str] = Counter()

    def take(candidates: list[Pair], other: int) -> None:
        pair = min(candidates, key=lambda p: used[p[other]])
        chosen.add(pair)
        used.update(pair)

    for by, of_other in ((0, way_of), (1, guide_of)):
        for member in dict.fromkeys(pair[by] for pair in grid):
            own = [pair for pair in grid if pair[by] == member]
            for kind in dict.fromkeys(of_other(pair[1 - by]) for pair in own):
                candidates = [pair for pair in own if of_other(pair[1 - by]) == kind]
                if not chosen & set(candidates):
                    take(candidates, 1 - by)
    return [pair for pair in grid if pair in chosen]


def sampled(pairs: Iterable[Pair]) -> list[Any]:
    """All pairs; those that `covering` leaves out are slow, for `make study`."""
    grid = list(pairs)
    chosen = set(covering(grid))
    slow = pytest.mark.slow
    return [pair if pair in chosen else pytest.param(*pair, marks=slow) for pair in grid]


def few(pairs: Iterable[Pair] = PAIRS) -> list[Pair]:
    """Each system and each objective, and each way of estimating with each kind of guide."""
    left, chosen = list(pairs), list[Pair]()

    def marks(pair: Pair) -> set[object]:
        return {("system", pair[0]), ("objective", pair[1]), (guide_of(pair[0]), way_of(pair[1]))}

    wanted = set[object]().union(*map(marks, left))
    while wanted:
        chosen.append(max(left, key=lambda pair: len(marks(pair) & wanted)))
        wanted -= marks(chosen[-1])
    return [pair for pair in left if pair in chosen]


def way_of(objective: str) -> str:
    """The way in which an objective estimates gradients."""
    return WAY_OF.get(objective, objective)
