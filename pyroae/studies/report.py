"""One HTML page per study: its ranking, differences, learning curves, scores and trainings."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroae._version import __version__
from pyroae.comparison.results import Comparison, Entry, Interval, Outcome, indistinct
from pyroae.comparison.tables import METHODS, scoring_of
from pyroae.config import RunConfig, parse_yaml
from pyroae.errors import PyroaeError
from pyroae.objectives import parse_objective
from pyroae.runs.descriptions import help_of
from pyroae.runs.equations import equations_of, explained
from pyroae.runs.page import number, shown, write_page
from pyroae.studies.cell_files import directory_name

FILES = {
    "study.yaml": "all settings, the fingerprint of the data and the versions",
    "ranking.csv": "the ranking with its intervals, in nats per datum",
    "comparison.csv": "a row for each training",
    "comparison.nc": "an ArviZ DataTree: log p(x) of each datum under each training",
    "table.tex": "the ranking for a paper",
    "tuning.csv": "the trials of tuned settings",
    "figures": "the figures of this page, as PNG and PDF",
}
"""The files of a study that its report links to."""


MAIN = ("data", "system", "latent", "batch_size", "optimizer", "lr")
"""Settings that are shown where they are the default, too."""


@dataclass(frozen=True)
class RankedEntry:
    """A row of the tables of a report.

    Attributes:
        entry: The entry.
        nll: Its NLL with the 95 % interval, in nats per datum.
        gap: The difference from the baseline, with half its interval; NaN for the baseline.
        gap_half: Half the interval of the difference.
        verdict: What is said of the difference from the best.
        is_best: Whether it is the best, or cannot be told from the best.
        tuned: The settings that were chosen for it.
        outcomes: Its trainings.
    """

    entry: Entry
    nll: Interval
    gap: float
    gap_half: float
    verdict: str
    is_best: bool
    tuned: tuple[float, ...]
    outcomes: Sequence[Outcome]

    @property
    def objective(self) -> str:
        """The name of the objective."""
        return self.entry.objective

    @property
    def num_particles(self) -> int:
        """K in training."""
        return self.entry.num_particles

    @property
    def variant(self) -> str:
        """The name of the variant."""
        return self.entry.variant

    @property
    def nll_half(self) -> float:
        """Half the 95 % interval of the NLL, in nats per datum."""
        return self.nll.high - self.nll.value

    @property
    def scoring(self) -> dict[str, Any]:
        """How its trainings were scored, as of `scoring_of`."""
        return scoring_of(self.outcomes)

    @property
    def shift(self) -> float:
        """The correction of the score in nats per datum; NaN where there is none."""
        return math.nan if self.scoring["score_method"] == "is" else float(self.scoring["shift"])

    @property
    def error(self) -> str:
        """The error of the score, in nats per datum."""
        error = float(self.scoring["scoring_error"])
        return number(error) if math.isfinite(error) else "not known"

    @property
    def unreliable(self) -> str:
        """The share of data whose k̂ or ESS is not reliable."""
        return f"{100 * self.scoring['unreliable']:.0f} %"

    @property
    def evaluations(self) -> float:
        """Decoder evaluations of a training."""
        return sum(outcome.evaluations for outcome in self.outcomes) / len(self.outcomes)

    @property
    def seconds(self) -> float:
        """Seconds of a training."""
        return sum(outcome.seconds for outcome in self.outcomes) / len(self.outcomes)


def write_study_report(
    path: Path,
    comparison: Comparison,
    baseline: Entry | None = None,
    failed: Sequence[str] = (),
) -> Path:
    """Write STUDY/report.html, a single file that contains its figures and needs no network.

    Args:
        path: The directory of the study, with its figures.
        comparison: The outcomes of its trainings.
        baseline: The entry that differences are taken from; None takes the first.
        failed: Sentences on trainings that failed.

    Returns:
        The path of the report.

    Raises:
        RunError: If it cannot be written.
    """
    base = comparison.entries[0] if baseline is None else baseline
    file = path / "study.yaml"
    record: dict[str, Any] = parse_yaml(file.read_text()) if file.is_file() else {}
    rows = _rows(comparison, base)
    outcomes = [outcome for row in rows for outcome in row.outcomes]
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.figures)
    return write_page(
        "study.html",
        path / "report.html",
        title=f"{len(rows)} {'entries' if len(rows) > 1 else 'entry'} compared"
        + (f" on {comparison.data}" if comparison.data else ""),
        about=f"Study {path.resolve().name}, {len(outcomes)} trainings, budget "
        f"{record.get('budget', 'not recorded')} each",
        summary=_summary(comparison, base, rows),
        rows=rows,
        baseline=base.short,
        has_variants=any(entry.variant for entry in comparison.entries),
        tuned=() if comparison.tuning is None else tuple(comparison.tuning.grid),
        intervals=_intervals(comparison),
        pictures=shown(sorted((path / "figures").glob("*.png"))),
        scores=_scores(comparison, outcomes),
        cells=[_cell(path, comparison, outcome) for outcome in outcomes],
        figure_names=list(names),
        failed=failed,
        settings=_settings(record, every=False),
        every_setting=_settings(record, every=True),
        objectives=_objectives(comparison),
        commands=_commands(path, record),
        versions=", ".join(f"{n} {v}" for n, v in record.get("versions", {}).items()),
        contents=[(name, text) for name, text in FILES.items() if (path / name).exists()],
        version=__version__,
    )


def _rows(comparison: Comparison, baseline: Entry) -> list[RankedEntry]:
    ranking = comparison.ranking(baseline)
    near, tuning = indistinct(ranking), comparison.tuning
    return [
        RankedEntry(
            row.entry,
            row.nll,
            math.nan if row.entry == baseline else row.from_baseline.estimate.value,
            math.nan
            if row.entry == baseline
            else row.from_baseline.estimate.high - row.from_baseline.estimate.value,
            "best" if place == 0 else row.from_best.verdict,
            place == 0 or row.entry in near,
            () if tuning is None else tuple(tuning.best(row.entry.short).settings.values()),
            comparison.of(row.entry),
        )
        for place, row in enumerate(ranking)
    ]


def _summary(comparison: Comparison, baseline: Entry, rows: Sequence[RankedEntry]) -> list[str]:
    best, near = rows[0], [row for row in rows[1:] if row.is_best]
    found = [
        f"Lowest NLL: {best.entry}, {number(best.nll.value, 2)} ± {number(best.nll_half, 2)} nats "
        f"per datum (95 % interval; {comparison.num_data:,} held-out data, "
        f"{len(comparison.seeds)} seed{'s' * (len(comparison.seeds) != 1)})."
    ]
    if best.entry != baseline and len(rows) > 1:
        found[0] += (
            f" That is {number(best.gap, 2, sign=True)} ± {number(best.gap_half, 2)} against "
            f"{baseline}."
        )
    if near:
        names = "; ".join(str(row.entry) for row in near)
        found.append(f"At 95 %, these cannot be told from it: {names}.")
    elif len(rows) > 1:
        found.append("It differs from every other entry at 95 %, each taken by itself.")
    worst = max(row.scoring["unreliable"] for row in rows)
    reliable = all(math.isfinite(float(row.scoring["scoring_error"])) for row in rows)
    found.append(
        f"Scores: k̂ or ESS under the guide is not reliable for up to {100 * worst:.0f} % of the "
        "data; "
        + ("the error of the corrected scores is in the intervals." if reliable else
           "the error of some scores is not known, and their differences are not told.")
    )  # fmt: skip
    return found


def _intervals(comparison: Comparison) -> str:
    over = (
        "the held-out data alone: one seed says nothing of other seeds"
        if len(comparison.seeds) == 1
        else "seeds and held-out data"
    )
    return f"Differences are paired by seed and datum; their intervals are over {over}."


def _scores(comparison: Comparison, outcomes: Sequence[Outcome]) -> str:
    """How the scores were computed."""
    methods = dict.fromkeys(METHODS[outcome.score.method] for outcome in outcomes)
    subset = next((o.score.correction for o in outcomes if o.score.correction is not None), None)
    on = f" (on {len(subset.index):,} data, chosen at random)" if subset is not None else ""
    draws = outcomes[0].score.num_particles
    with_draws = f" K = {draws:,} draws for each of" if draws else ""
    return (
        f"How log p(x) was estimated: {'; '.join(methods)}{on}.{with_draws} "
        f"{comparison.num_data:,} held-out data."
    )


def _cell(path: Path, comparison: Comparison, outcome: Outcome) -> dict[str, Any]:
    """A training as a row, with a link to its report, or to its directory."""
    cell, tuning = outcome.cell, comparison.tuning
    chosen = {} if tuning is None else tuning.best(cell.entry.short).settings
    folder = directory_name(cell, chosen)
    report = f"{folder}/report.html"
    return {
        "link": report if (path / report).is_file() else f"{folder}/",
        "entry": str(cell.entry),
        "seed": cell.seed,
        "nll": outcome.nll,
        "figures": outcome.figures,
        "epochs": outcome.epochs,
    }


def _settings(record: dict[str, Any], every: bool) -> list[tuple[str, str, str]]:
    """The settings of study.yaml, or those that are not the default and the main ones."""
    usual = RunConfig().to_dict()
    shared = {
        name: value
        for name, value in record.get("settings", {}).items()
        if every or name in MAIN or value != usual.get(name)
    }
    own = {n: record[n] for n in ("seeds", "budget", "fingerprint") if n in record}
    scoring = {f"scoring {n}": v for n, v in record.get("scoring", {}).items()}
    return [
        (name.replace("_", " "), _text(value), help_of(name))
        for name, value in {**own, **shared, **scoring}.items()
        if every or (value is not None and value not in ([], {}, ""))
    ]


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _objectives(comparison: Comparison) -> list[tuple[str, str, list[str]]]:
    """Name, gradient in words and equations of each objective."""
    found: dict[str, tuple[str, list[str]]] = {}
    for entry in comparison.entries:
        try:
            objective = parse_objective(entry.objective, entry.num_particles)
        except PyroaeError:  # an objective that was given in Python
            continue
        found.setdefault(
            entry.objective,
            (explained(objective), equations_of(objective, entry.objective)),
        )
    return [(name, *about) for name, about in found.items()]


def _commands(path: Path, record: dict[str, Any]) -> list[str]:
    """The commands that repeat a study of the command line: from its settings alone."""
    if not record.get("objectives"):
        return ["# a study of compare_training: run its Python program again"]
    name = path.resolve().name
    again = shlex.quote(f"{name}-again")
    return [
        f"mkdir {again}",
        f"cp {shlex.quote(name)}/study.yaml {again}/",
        f"pyroae compare --resume {again}",
    ]
