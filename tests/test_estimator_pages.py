"""The pages of docs/estimators/ agree with the package: names, checks, code, measured tables."""

import inspect
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pyroae
from pyroae import _names, zoo
from pyroae.cli import make_parser
from pyroae.config import RunConfig, TrainConfig, pair_of
from pyroae.data.loading import Splits
from pyroae.objectives import (
    OBJECTIVES,
    AnalyticKL,
    BetaELBO,
    Objective,
    ObjectiveBase,
    parse_objective,
)
from pyroae.testing import check_objective
from pyroae.training.fitting import fit
from pyroae.training.trainer import FitResult
from tests.covering import way_of
from tests.scripts import script
from tests.systems import CONFORMING

DOCS = Path(__file__).parents[1] / "docs"
PAGES = DOCS / "estimators"
SECTIONS = [
    "Definition",
    "Gradient",
    "How to use",
    "When it helps",
    "When it hurts",
    "Source",
    "Conformance",
]
NAMES = ("trace-elbo", *(n for n in _names.NAMES["objective"] if n != "trace-elbo"))
each = pytest.mark.parametrize("name", NAMES)


def helper() -> ModuleType:
    """`docs/_estimators.py`, which writes what is checked here."""
    return script("docs/_estimators.py")


pages = helper()


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of one language; of none for ''."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [code for found, code in fenced if found == language]


def same(one: ObjectiveBase, other: ObjectiveBase) -> bool:
    """Whether two objectives are the same estimator."""
    if isinstance(one, Objective) and isinstance(other, Objective):
        return (one.bound_function, one.gradient) == (other.bound_function, other.gradient)
    return type(one) is type(other)


# (1) Names.


def test_every_estimator_has_a_page_and_a_place_in_the_navigation() -> None:
    listed = {path.stem for path in PAGES.glob("*.md")}
    assert listed == {"index", *NAMES}
    navigation = re.search(r"```\{toctree\}\n:hidden:\n\n(.*?)```", page("index"), re.DOTALL)
    assert navigation is not None
    assert navigation[1].split() == list(NAMES)
    assert set(NAMES) == set(OBJECTIVES)


def test_the_decision_table_and_the_table_of_names_link_every_page() -> None:
    decisions = page("index").split("## One model")[0]
    assert set(re.findall(r"\]\(([\w-]+)\.md\)", decisions)) == set(NAMES)
    assert set(
        re.findall(r"\]\(estimators/([\w-]+)\.md\)", (DOCS / "objectives.md").read_text())
    ) >= set(NAMES)


@each
def test_sections_and_their_order(name: str) -> None:
    assert re.findall(r"^## (.*)$", page(name), re.MULTILINE) == SECTIONS
    assert page(name).startswith(f"# `{name}`: ")


@each
def test_settings_and_their_defaults(name: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| .+ \|$", page(name), re.MULTILINE)
    known = inspect.signature(OBJECTIVES[name]).parameters.values()
    assert rows == [(parameter.name, str(parameter.default)) for parameter in known]


# (2) Conformance.


ON_ONE_TOY = {
    **{"enumerate": "binary", "gumbel-softmax": "binary", "nvil": "binary", "relax": "binary"},
    **{"ovis": "categorical", "rws": "categorical", "tvo": "categorical"},
}
"""Estimators of several kinds of latents, and the kind of the one toy that `make test` runs."""


@pytest.mark.parametrize(
    "name",
    [
        n if n in CONFORMING and n not in ON_ONE_TOY else pytest.param(n, marks=pytest.mark.slow)
        for n in NAMES
    ],
)
def test_passed_checks_are_those_that_ran(name: str) -> None:
    assert pages.read(page(name)).passed == pages.checks_of(name)


@pytest.mark.parametrize(("name", "kind"), ON_ONE_TOY.items())
def test_checks_on_one_toy_are_among_the_passed(name: str, kind: str) -> None:
    checks = check_objective(OBJECTIVES[name](num_particles=pages.PARTICLES), kinds={kind})
    named, passed = {check.name for check in checks}, set(pages.read(page(name)).passed)
    assert named <= passed
    # Means in closed form are those of continuous latents.
    assert len(passed - named) == (3 if name == "enumerate" else 0)


@each
def test_every_other_check_is_exempt_for_a_reason(name: str) -> None:
    found = pages.read(page(name))
    every = {check for other in NAMES for check in pages.read(page(other)).passed}
    assert len(every) >= 13
    assert set(found.exempt) == every - set(pages.OF_SOME) - set(found.passed)
    assert all(reason and pages.NO_REASON not in reason for reason in found.exempt.values())
    assert pages.section(page(name), "conformance").strip() == pages.formatted(found)


@pytest.mark.slow
def test_what_the_pages_say_of_other_settings() -> None:
    def named(objective: ObjectiveBase, unbiased: bool | None = None) -> set[str]:
        checks = check_objective(objective, unbiased=unbiased, kinds={"continuous"})
        return {check.name for check in checks}

    every = {check for name in NAMES for check in pages.read(page(name)).passed}
    at_posterior, mean_gradient = (
        "the bound is log p(x) at the exact posterior",
        "the mean gradient is the bound's",
    )
    batch = {check for check in every if check.startswith(("a batch's ", "the order of the data "))}
    assert {at_posterior, mean_gradient} <= every
    assert len(batch) == 4
    plain = named(BetaELBO(4))
    of_elbo = {
        check for check in plain if "posterior" in check or "ELBO" in check or "below" in check
    } | {mean_gradient}
    assert at_posterior in of_elbo
    assert plain - named(BetaELBO(4, beta=4.0)) == of_elbo
    assert plain - named(BetaELBO(4, free_bits=0.1)) == {*of_elbo, *batch}
    assert mean_gradient in named(AnalyticKL(4)) & plain & named(BetaELBO(4, beta=4.0), True)
    dreg = set(pages.read(page("dreg")).passed)  # as test_passed_checks_are_those_that_ran has it
    assert dreg - named(OBJECTIVES["dreg"](4, alpha=0.5)) == {mean_gradient}


# (3) Code blocks.


@pytest.fixture(scope="module")
def digits() -> Splits:
    """As in the pages; a few hundred of the training data, for a short epoch."""
    whole = pyroae.load("digits", binarize="dynamic")
    return replace(whole, train=whole.train.first(200))


@each
def test_python_blocks_run_and_train_the_estimator_of_the_page(
    name: str, digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Any] = []

    def short(
        system: Any, data: Any, objective: Any, config: TrainConfig | None = None
    ) -> FitResult:
        trained.append(objective)
        config = config or TrainConfig()
        return fit(
            system,
            data,
            objective,
            replace(config, epochs=1, kl_warmup=min(config.kl_warmup, 1)),
            progress=False,
        )

    monkeypatch.setattr(pyroae, "fit", short, raising=False)
    names = {"pyroae": pyroae, "zoo": zoo, "digits": digits, "vae": zoo.vae(digits.train, latent=2)}
    for block in blocks(page(name), "python"):
        exec(block, names)
    assert len(trained) >= 1
    assert all(
        same(objective, OBJECTIVES[name](num_particles=objective.num_particles))
        for objective in trained
    )


# (4) Command lines.


def settings_of(line: str) -> dict[str, Any]:
    """The settings that a command line of `pyroae train` gives."""
    options = vars(make_parser().parse_args(shlex.split(line)[1:]))
    assert options["command"] == "train"
    settings: dict[str, Any] = options["parser"].grouped(options)["settings"]
    return settings


@each
def test_command_lines_parse_to_the_estimator_of_the_page(name: str) -> None:
    lines = [
        line
        for block in blocks(page(name), "")
        for line in block.splitlines()
        if line.startswith("pyroae ")
    ]
    assert lines
    for line in lines:
        config = RunConfig(**settings_of(line))
        assert (
            parse_objective(config.estimator, config.num_particles).num_particles
            == config.num_particles
        )
        assert (pair_of(config.objective) or [config.objective])[0].partition(":")[0] == name
    assert not pair_of(settings_of(lines[0])["objective"])


# The measured tables.


ROWS = [(which, name) for which, (_, names, _) in pages.TABLES.items() for name in names]
OF_EACH_WAY = {
    (which, way_of(name)): (which, name) for which, name in ROWS if name not in ("dais", "relax")
}.values()
"""A row of each table for each way of estimating but the two that take longest, for `make test`;
`make study` measures all.
"""


@pytest.mark.parametrize(
    ("which", "name"),
    [row if row in OF_EACH_WAY else pytest.param(*row, marks=pytest.mark.slow) for row in ROWS],
)
def test_measured_tables(which: str, name: str) -> None:
    """Every figure again from 8,000 replicates: within 5 standard errors of both."""
    estimate, _, columns = pages.TABLES[which]
    table = pages.section(page("index"), which)
    line = next(line for line in table.splitlines() if line.startswith(f"| [`{name}`]"))
    printed = [
        tuple(float(v.replace("−", "-")) for v in cell.split(" ± "))
        for cell in line.strip("| ").split(" | ")[1:]
    ]
    again = pages.row(estimate, name, columns, 8_000)
    for column, (value, half), figure in zip(columns, printed, again, strict=True):
        found = abs(figure.estimate) if "SNR" in column.key else figure.estimate
        assert found == pytest.approx(value, abs=2.5 * math.hypot(half, figure.half)), column
