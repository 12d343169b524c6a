"""Writes into the pages of docs/estimators/ what they say of conformance, and the measured table of their index.

    python docs/_estimators.py              the conformance of every page
    python docs/_estimators.py --measure    and the tables of the index: about two minutes on one core

Reasons for which an estimator is spared an oracle are written by hand in the pages, and kept.
"""

import math
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyroae.objectives import OBJECTIVES, Objective, ObjectiveBase
from pyroae.testing import check_objective

NAMES = ("trace-elbo", *(name for name in OBJECTIVES if name != "trace-elbo"))
PAGES = Path(__file__).parent / "estimators"
PARTICLES = 4
UNWRITTEN = "reason to be written"
OF_SOME = (
    "the mean value is the closed-form ELBO",
    "the mean of exp F is p(x)",
    "the mean value is the same for every K",
    "the mean value never falls with K",
    "the mean gradient is that of the closed-form ELBO",
    "the mean φ-gradient is the one that the gradient names",
)
"""Oracles that are of some kinds of bound or gradient only: no estimator is spared them."""
LOG_P = -0.25 - 0.5 * math.log(4 * math.pi)
"""log N(1; 0, 2)."""


class Conformance(NamedTuple):
    """Names of the oracles that an estimator has passed, and the reason for each that it is spared."""

    passed: list[str]
    spared: dict[str, str]


def checks_of(name: str) -> list[str]:
    """The oracles that `check_objective` ran for a named estimator."""
    return list(
        dict.fromkeys(
            check.name for check in check_objective(OBJECTIVES[name](num_particles=PARTICLES))
        )
    )


def read(page: str) -> Conformance:
    """What a page says."""
    passed = re.search(r"\*\*Passed\*\*: (.*?)\.\n\n", part(page, "conformance"), re.DOTALL)
    spared = re.findall(
        r"^- \*(.+?)\*: (.*?)\n(?=\n|- |\Z)", part(page, "conformance"), re.DOTALL | re.MULTILINE
    )
    names = " ".join(passed[1].split()).split("; ") if passed else []
    return Conformance(names, {name: " ".join(reason.split()) for name, reason in spared})


def written(found: Conformance) -> str:
    """The same as a page's lines."""
    lines = textwrap.wrap(f"**Passed**: {'; '.join(found.passed)}.", 128, break_on_hyphens=False)
    lines += ["", "**Spared**:", ""] if found.spared else ["", "**Spared**: none."]
    for name, reason in found.spared.items():
        lines += textwrap.wrap(
            f"- *{name}*: {reason}", 128, subsequent_indent="  ", break_on_hyphens=False
        )
    return "\n".join(lines)


def part(page: str, name: str) -> str:
    """What stands between the marks `<!-- name -->` and `<!-- end -->`."""
    found = re.search(rf"<!-- {name} -->\n\n(.*?)\n<!-- end -->", page, re.DOTALL)
    return found[1] if found else ""


def with_part(page: str, name: str, text: str) -> str:
    """The page with that part replaced."""
    mark = f"<!-- {name} -->"
    before, after = page.split(mark)
    return f"{before}{mark}\n\n{text}\n\n<!-- end -->{after.partition('<!-- end -->')[2]}"


def write_conformance() -> None:
    """Run every estimator through its oracles and write the pages."""
    passed = {name: checks_of(name) for name in NAMES}
    every = [
        check
        for check in dict.fromkeys(c for checks in passed.values() for c in checks)
        if check not in OF_SOME
    ]
    for name, checks in passed.items():
        path = PAGES / f"{name}.md"
        page = path.read_text()
        known = read(page).spared
        spared = {
            check: known.get(check) or _reason(name, check, known)
            for check in every
            if check not in checks
        }
        path.write_text(with_part(page, "conformance", written(Conformance(checks, spared))))
        for check, reason in spared.items():
            if reason == UNWRITTEN:
                print(f"{path.name}: say why it is spared: {check}")


def _reason(name: str, check: str, known: dict[str, str]) -> str:
    objective = OBJECTIVES[name](num_particles=PARTICLES)
    if not isinstance(objective, Objective):
        return "it is no pair of a bound and a gradient."
    biased = not objective.gradient.unbiased(objective.bound_function)
    return next(iter(known.values()), UNWRITTEN) if biased and "gradient" in check else UNWRITTEN


class Figure(NamedTuple):
    """An estimate and half the width of its 95 % interval."""

    estimate: float
    half: float


type Estimate = Callable[[ObjectiveBase, int], dict[str, Tensor | float]]


def measure(
    estimate: Estimate, objective: ObjectiveBase, replicates: int, batches: int = 20
) -> dict[str, Figure]:
    """Means, and of gradients SNRs, from replicates in batches; draws are paired between objectives."""
    rows = []
    for seed in range(batches):
        torch.manual_seed(seed)
        rows.append(_moments(estimate(objective, replicates // batches)))
    return {key: _figure([row[key] for row in rows]) for key in rows[0]}


def gaussian(objective: ObjectiveBase, size: int) -> dict[str, Tensor | float]:
    """z ~ N(0, 1), x|z ~ N(z + b, 1), x = 1, q = N(m, 2/3) at b = 0, m = 0.8: the gap E F − log p, gradients of m and b."""
    m = torch.full((size,), 0.8, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(size, dtype=torch.float64)

    def model() -> None:
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Normal(zeros, 1.0))
            pyro.sample("x", dist.Normal(z + b, 1.0), obs=zeros + 1)

    def guide() -> None:
        with pyro.plate("data", size):
            pyro.sample("z", dist.Normal(m, (zeros + 2 / 3).sqrt()))

    loss = objective.loss_and_grads(model, guide)
    assert m.grad is not None
    assert b.grad is not None
    return {"gap": -loss / size - LOG_P, "phi": -m.grad, "theta": -b.grad}


def bernoulli(objective: ObjectiveBase, size: int) -> dict[str, Tensor | float]:
    """z ~ Bernoulli(1/2), x|z ~ N(2 z, 1), x = 2, q = Bernoulli(1/2): the gradient of q's logit; the posterior's logit is 2."""
    logit = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(size, dtype=torch.float64)

    def model() -> None:
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Bernoulli(zeros + 0.5))
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=zeros + 2)

    def guide() -> None:
        with pyro.plate("data", size):
            pyro.sample("z", dist.Bernoulli(logits=logit))

    objective.loss_and_grads(model, guide)
    assert logit.grad is not None
    return {"phi": -logit.grad}


def _moments(found: dict[str, Tensor | float]) -> dict[str, float]:
    moments = {}
    for key, value in found.items():
        moments[key] = value.mean().item() if isinstance(value, Tensor) else value
        if isinstance(value, Tensor):
            moments[f"{key} SNR"] = (value.mean() / value.std()).item()
    return moments


def _figure(values: list[float]) -> Figure:
    of_batches = torch.tensor(values, dtype=torch.float64)
    return Figure(
        of_batches.mean().item(), 2.09 * of_batches.std().item() / math.sqrt(len(values))
    )  # Student, 19 degrees


class Column(NamedTuple):
    """A column of a measured table: its head, K, and which figure."""

    head: str
    num_particles: int
    key: str


TABLES: dict[str, tuple[Estimate, tuple[str, ...], tuple[Column, ...]]] = {
    "gaussian": (
        gaussian,
        NAMES,
        (
            *(
                Column("E F − log p", 8, "gap"),
                Column("φ: mean", 8, "phi"),
                Column("φ: SNR, K = 8", 8, "phi SNR"),
            ),
            *(
                Column("K = 64", 64, "phi SNR"),
                Column("θ: SNR, K = 8", 8, "theta SNR"),
                Column("K = 64", 64, "theta SNR"),
            ),
        ),
    ),
    "bernoulli": (
        bernoulli,
        ("vimco", "rws", "score", "tvo"),
        (
            *(
                Column("mean, K = 8", 8, "phi"),
                Column("K = 64", 64, "phi"),
                Column("SNR, K = 2", 2, "phi SNR"),
            ),
            *(Column("K = 8", 8, "phi SNR"), Column("K = 64", 64, "phi SNR")),
        ),
    ),
}


def row(
    estimate: Estimate, name: str, columns: tuple[Column, ...], replicates: int
) -> list[Figure]:
    """One estimator's figures."""
    counts = dict.fromkeys(column.num_particles for column in columns)
    found = {
        count: measure(estimate, OBJECTIVES[name](num_particles=count), replicates)
        for count in counts
    }
    return [found[column.num_particles][column.key] for column in columns]


def table(which: str, replicates: int = 400_000) -> str:
    """A measured table of the index."""
    estimate, names, columns = TABLES[which]
    lines = [
        "| estimator | " + " | ".join(column.head for column in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in names:
        figures = row(estimate, name, columns, replicates)
        cells = [_cell(figure, column.key) for figure, column in zip(figures, columns, strict=True)]
        lines.append(f"| [`{name}`]({name}.md) | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(figure: Figure, key: str) -> str:
    digits = min(
        max(3, math.ceil(0.3 - math.log10(figure.half))), 5
    )  # the last digit is at most half the interval
    estimate = (
        f"{abs(figure.estimate):.{digits}f}" if "SNR" in key else f"{figure.estimate:+.{digits}f}"
    )
    return f"{estimate} ± {figure.half:.{digits}f}".replace("-", "−")


if __name__ == "__main__":
    write_conformance()
    if "--measure" in sys.argv:
        index = PAGES / "index.md"
        for which in TABLES:
            index.write_text(with_part(index.read_text(), which, table(which)))
