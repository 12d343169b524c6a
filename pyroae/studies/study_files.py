"""The files of a study: comparison.csv, ranking.csv, table.tex, DataTree, figures, report."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from pyroae.comparison.budget import Budget
from pyroae.comparison.results import Cell, Comparison, Entry, Outcome
from pyroae.config import Scoring, read_yaml
from pyroae.errors import RunError
from pyroae.plots.comparison import differences, learning_curves, tuning_curves
from pyroae.plots.drawing import save_both
from pyroae.runs.contents import versions
from pyroae.runs.trees import write_tree
from pyroae.runtime.files import guarded
from pyroae.studies.comparison_tree import comparison_to_datatree
from pyroae.studies.report import write_study_report

PYTHON = "python"
"""The key of study.yaml that marks a study of `compare_training`."""


def write_comparison(
    path: Path,
    comparison: Comparison,
    baseline: Entry | None = None,
    failed: Sequence[str] = (),
) -> None:
    """Write the tables, the figures and the report of a study.

    Args:
        path: the directory of the study.
        comparison: the outcomes.
        baseline: the entry that differences are taken from; by default the first one.
        failed: sentences on trainings that failed.

    Raises:
        RunError: if a file cannot be written.
    """
    base = comparison.entries[0] if baseline is None else baseline
    guarded(path / "comparison.csv", lambda file: _write_cells(file, comparison))
    guarded(path / "ranking.csv", lambda file: _write_ranking(file, comparison, base))
    guarded(path / "table.tex", lambda file: file.write_text(comparison.to_latex(base)))
    if comparison.tuning is not None:
        guarded(path / "tuning.csv", lambda file: _write_tuning(file, comparison))
    tree = comparison_to_datatree(comparison, base)
    write_tree(path / "comparison.nc", tree)
    _draw(path / "figures", comparison, base)
    write_study_report(path, comparison, base, failed)


def refuse_other_content(path: Path) -> None:
    """Refuse a directory in which `compare_training` cannot write a study.

    Args:
        path: the directory.

    Raises:
        RunError: if it is a file, or the directory of a run or of a study of `pyroae compare`.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"'{path}' is a file, not a directory")
    study = path / "study.yaml"
    is_other = study.is_file() and not read_yaml(study).get(PYTHON)
    if is_other or (path / "config.yaml").exists():
        what = "a study of pyroae compare" if is_other else "a run"
        raise RunError(f"'{path}' is the directory of {what}: give another out=")


def write_python_study(
    path: Path,
    cells: Sequence[Cell],
    budget: Budget,
    scoring: Scoring,
    grid: Mapping[str, tuple[Any, ...]],
    data: str,
) -> None:
    """Write study.yaml for a comparison that is written in Python.

    Args:
        path: the directory of the study.
        cells: its trainings.
        budget: what each may spend.
        scoring: how each is scored.
        grid: the values of the tuned settings.
        data: the name of the held-out data; empty where it is not known.

    Raises:
        RunError: if it cannot be written.
    """
    record = {
        PYTHON: True,
        "data": data,
        "cells": [list(cell) for cell in cells],
        "budget": str(budget),
        "scoring": asdict(scoring),
        "tune": {name: list(values) for name, values in grid.items()},
        "versions": versions(),
    }
    text = yaml.safe_dump(record, sort_keys=False)
    guarded(path / "study.yaml", lambda file: file.write_text(text))


def _draw(folder: Path, comparison: Comparison, baseline: Entry) -> None:
    if len(comparison.entries) > 1:
        save_both(differences(comparison, baseline), folder / "differences")
    if any(outcome.curve for outcome in comparison.outcomes):
        save_both(learning_curves(comparison), folder / "curves")
    if comparison.tuning is not None:
        save_both(tuning_curves(comparison.tuning), folder / "tuning")


SPENT = ("epochs", "steps", "evaluations", "seconds")
"""What a training has spent, as columns of comparison.csv."""


def _write_cells(path: Path, comparison: Comparison) -> None:
    figures = list(
        dict.fromkeys(name for outcome in comparison.outcomes for name in outcome.figures)
    )
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        head = dict.fromkeys(name for o in comparison.outcomes for name in score_columns(o))
        writer.writerow([*Cell._fields, *head, *SPENT, *figures])
        for outcome in comparison.outcomes:
            spent = [getattr(outcome, name) for name in SPENT]
            values = [*score_columns(outcome).values(), *spent]
            writer.writerow(
                [*outcome.cell, *values, *(outcome.figures.get(name, "") for name in figures)]
            )


def score_columns(outcome: Outcome) -> dict[str, float | str]:
    """Return what is known of the score of a training.

    Args:
        outcome: the outcome.

    Returns:
        By name: the corrected NLL with its errors, that of importance sampling, the correction with
        its 95 % interval, all in nats per datum; the method; the share of unreliable k̂ or ESS; the
        median ESS.
    """
    score = outcome.score
    return {
        "nll": outcome.nll,
        "nll_se": outcome.nll_se,
        "scoring_error": score.error,
        "nll_is": score.nll_uncorrected,
        "score_method": score.method,
        **dict(zip(("shift", "shift_low", "shift_high"), score.shift, strict=True)),
        "unreliable": score.unreliable_share,
        "ess_median": score.ess_median,
    }


def _write_ranking(path: Path, comparison: Comparison, baseline: Entry) -> None:
    comparison.table(baseline).to_csv(path, index=False)


def _write_tuning(path: Path, comparison: Comparison) -> None:
    assert comparison.tuning is not None
    comparison.tuning.table().to_csv(path, index=False)
