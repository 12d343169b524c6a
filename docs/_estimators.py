"""Writes the generated parts of the pages in docs/estimators/.

    python docs/_estimators.py              the conformance checks of every page
    python docs/_estimators.py --measure    also the tables of the index (two minutes on one core)

The reasons for exemptions from checks are written by hand in the pages, and are preserved.
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

from pyroae.objectives import OBJECTIVES, Objective, ObjectiveBase, ProgramGradient
from pyroae.testing import check_objective

NAMES = ("trace-elbo", *(name for name in OBJECTIVES if name != "trace-elbo"))


def names_of(kind: str) -> tuple[str, ...]:
    """Return the names of the estimators of a fixed K that take a kind of latent sites."""
    made = {name: OBJECTIVES[name](num_particles=2) for name in NAMES}
    return tuple(n for n, made in made.items() if kind in made.kinds and made.variant == ())


PAGES = Path(__file__).parent / "estimators"
PARTICLES = 4
NO_REASON = "reason to be written"
OF_SOME = (
    "the mean value is the mean of the bound",
    "the mean value is the closed-form ELBO",
    "the mean value is log p(x)",
    "the mean gradient is that of log p(x)",
    "the mean of exp F is p(x)",
    "the mean value is the same for every K",
    "the mean value never falls with K",
    "the mean gradient is that of the closed-form ELBO",
    "the mean φ-gradient is the one that the gradient names",
)
"""Checks of some kinds of bound or gradient only: an exemption needs no reason."""
LOG_P = -0.25 - 0.5 * math.log(4 * math.pi)
"""log N(1; 0, 2)."""


class Conformance(NamedTuple):
    """The names of the checks that an estimator passed, and the reason for each exemption."""

    passed: list[str]
    exempt: dict[str, str]


def checks_of(name: str) -> list[str]:
    """Return the names of the checks that `check_objective` runs for a named estimator."""
    return list(
        dict.fromkeys(
            check.name for check in check_objective(OBJECTIVES[name](num_particles=PARTICLES))
        )
    )


def read(page: str) -> Conformance:
    """Read the conformance section of a page."""
    passed = re.search(r"\*\*Passed\*\*: (.*?)\.\n\n", section(page, "conformance"), re.DOTALL)
    exempt = re.findall(
        r"^- \*(.+?)\*: (.*?)\n(?=\n|- |\Z)", section(page, "conformance"), re.DOTALL | re.MULTILINE
    )
    names = " ".join(passed[1].split()).split("; ") if passed else []
    return Conformance(names, {name: " ".join(reason.split()) for name, reason in exempt})


def formatted(conformance: Conformance) -> str:
    """Format the conformance section of a page."""
    lines = textwrap.wrap(
        f"**Passed**: {'; '.join(conformance.passed)}.", 100, break_on_hyphens=False
    )
    lines += ["", "**Exempt**:", ""] if conformance.exempt else ["", "**Exempt**: none."]
    for name, reason in conformance.exempt.items():
        lines += textwrap.wrap(
            f"- *{name}*: {reason}", 100, subsequent_indent="  ", break_on_hyphens=False
        )
    return "\n".join(lines)


def section(page: str, name: str) -> str:
    """Return the text between the marks `<!-- name -->` and `<!-- end -->`."""
    match = re.search(rf"<!-- {name} -->\n\n(.*?)\n<!-- end -->", page, re.DOTALL)
    return match[1] if match else ""


def with_section(page: str, name: str, text: str) -> str:
    """Return the page with that section replaced."""
    mark = f"<!-- {name} -->"
    before, after = page.split(mark)
    return f"{before}{mark}\n\n{text}\n\n<!-- end -->{after.partition('<!-- end -->')[2]}"


def write_conformance() -> None:
    """Run the checks of every estimator and write the pages."""
    passed = {name: checks_of(name) for name in NAMES}
    every = [
        check
        for check in dict.fromkeys(c for checks in passed.values() for c in checks)
        if check not in OF_SOME
    ]
    for name, checks in passed.items():
        path = PAGES / f"{name}.md"
        page = path.read_text()
        reasons = read(page).exempt
        exempt = {
            check: reasons.get(check) or _reason(name, check, reasons)
            for check in every
            if check not in checks
        }
        path.write_text(with_section(page, "conformance", formatted(Conformance(checks, exempt))))
        for check, reason in exempt.items():
            if reason == NO_REASON:
                print(f"{path.name}: write the reason for the exemption from: {check}")


def _reason(name: str, check: str, reasons: dict[str, str]) -> str:
    objective = OBJECTIVES[name](num_particles=PARTICLES)
    of_draws = ("the value is the bound of", "the particles may change places")
    if "over all states" in check and objective.kinds == {"continuous"}:
        return "it takes continuous draws alone."
    of_gaussian = ("the mean value is below log p(x)", "the mean gradient is the bound's")
    if check in of_gaussian and "continuous" not in objective.kinds:
        return "it takes discrete draws alone, whose means are sums over all states."
    if check == "SVI's loss is the loss":
        return "K is random, and SVI draws another one."
    if not isinstance(objective, Objective):
        return "it is not a pair of a bound and a gradient."
    if check.startswith(of_draws) and isinstance(objective.gradient, ProgramGradient):
        return "K independent draws do not determine the estimate."
    biased = not objective.gradient.unbiased(objective.bound_function)
    return next(iter(reasons.values()), NO_REASON) if biased and "gradient" in check else NO_REASON


class Figure(NamedTuple):
    """An estimate, and half the width of its 95 % interval."""

    estimate: float
    half: float


type Estimate = Callable[[ObjectiveBase, int], dict[str, Tensor | float]]


def measure(
    estimate: Estimate, objective: ObjectiveBase, replicates: int, batches: int = 20
) -> dict[str, Figure]:
    """Return means, and SNRs of gradients; the draws of all objectives are paired."""
    rows = []
    for seed in range(batches):
        torch.manual_seed(seed)
        rows.append(_moments(estimate(objective, replicates // batches)))
    return {key: _figure([row[key] for row in rows]) for key in rows[0]}


def gaussian(objective: ObjectiveBase, size: int) -> dict[str, Tensor | float]:
    """Return the gap E F − log p and the gradients of m and b for a Gaussian latent.

    z ~ N(0, 1), x|z ~ N(z + b, 1), x = 1, q = N(m, 2/3), at b = 0 and m = 0.8.
    """
    m = torch.full((size,), 0.8, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(size, dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Normal(zeros, 1.0))
            pyro.sample("x", dist.Normal(z + b, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", size):
            pyro.sample("z", dist.Normal(m, (zeros + 2 / 3).sqrt()))

    loss = objective.loss_and_grads(model, guide, zeros + 1)
    assert m.grad is not None
    assert b.grad is not None
    return {"gap": -loss / size - LOG_P, "phi": -m.grad, "theta": -b.grad}


def bernoulli(objective: ObjectiveBase, size: int) -> dict[str, Tensor | float]:
    """Return the gradient of q's logit for a Bernoulli latent; the posterior's logit is 2.

    z ~ Bernoulli(1/2), x|z ~ N(2 z, 1), x = 2, q = Bernoulli(1/2).
    """
    logit = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(size, dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Bernoulli(zeros + 0.5))
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", size):
            pyro.sample("z", dist.Bernoulli(logits=logit))

    objective.loss_and_grads(model, guide, zeros + 2)
    assert logit.grad is not None
    return {"phi": -logit.grad}


def _moments(samples: dict[str, Tensor | float]) -> dict[str, float]:
    moments = {}
    for key, value in samples.items():
        moments[key] = value.mean().item() if isinstance(value, Tensor) else value
        if isinstance(value, Tensor):
            moments[f"{key} SNR"] = (value.mean() / value.std()).item()
    return moments


def _figure(values: list[float]) -> Figure:
    batches = torch.tensor(values, dtype=torch.float64)
    return Figure(
        batches.mean().item(), 2.09 * batches.std().item() / math.sqrt(len(values))
    )  # Student, 19 degrees


class Column(NamedTuple):
    """A column of a measured table: its heading, K, and the key of the figure."""

    head: str
    num_particles: int
    key: str


TABLES: dict[str, tuple[Estimate, tuple[str, ...], tuple[Column, ...]]] = {
    "gaussian": (
        gaussian,
        names_of("continuous"),
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
        tuple(n for n in names_of("binary") if n not in ("disarm", "enumerate", "nvil")),
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
    """Measure the row of one estimator."""
    counts = dict.fromkeys(column.num_particles for column in columns)
    results = {
        count: measure(estimate, OBJECTIVES[name](num_particles=count), replicates)
        for count in counts
    }
    return [results[column.num_particles][column.key] for column in columns]


def table(which: str, replicates: int = 400_000) -> str:
    """Format a measured table of the index."""
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
            index.write_text(with_section(index.read_text(), which, table(which)))
