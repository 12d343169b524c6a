"""The command `compare`: estimators compared by what they train."""

import csv
import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from pyroae.commands.train import resumed
from pyroae.comparison.budget import Budget
from pyroae.comparison.results import Cell, Comparison, Entry, Outcome, Row, indistinct
from pyroae.comparison.scoring import Scoring
from pyroae.config import compared, recorded, with_imports
from pyroae.errors import ConfigError, RunError, unknown_name
from pyroae.inference_data import comparison_to_datatree
from pyroae.names import import_all
from pyroae.plots.comparison import differences, learning_curves
from pyroae.plots.drawing import save
from pyroae.runtime.files import guarded, locked
from pyroae.runtime.processes import say
from pyroae.runtime.signals import stoppable
from pyroae.studies.executors import Executor, Local
from pyroae.studies.study import EXTENDED, Study, StudyConfig, refuse_other, settings_of


def compare(
    settings: Mapping[str, Any],
    given: Mapping[str, Any],
    baseline: str | None,
    out: str | None,
    overwrite: bool,
    resume: str | None,
    place: Mapping[str, Any],
) -> None:
    """Train under each objective, K and seed; write one table, files and figures.

    Args:
        settings: Settings of every training.
        given: Settings of the study that are given: objectives, num_particles, seeds, budget,
            score_particles, score_data, cpus_per_cell.
        baseline: The entry that differences are measured from, as NAME or NAME@K.
        out: The study directory to write.
        overwrite: Whether a study that is there is replaced.
        resume: The study to continue; an empty text means `out`.
        place: Where trainings run: executor, jobs, address, gpus_per_cell, as of `executor_of`.

    Raises:
        PyroaeError: For what cannot be trained or scored.
    """
    where = executor_of(**place)
    if resume is not None:
        path = resumed("study", out, overwrite, resume)
        import_all(recorded(settings).get("imports", ()))
        study = Study(path, _extended(Study.read(path), settings, given))
        cells = study.check()
        begin = study.resume
    else:
        if out is None:
            raise ConfigError("give --out, the study directory to write")
        refuse_other(Path(out), overwrite)
        study = Study(out, _config(settings, given))
        cells = study.check()
        begin = partial(study.start, overwrite)
    base = _baseline(baseline, cells)
    with where.ready(study), locked(study.path, "study"):
        begin()
        _compare(study, cells, base, where)


def _compare(study: Study, cells: Sequence[Cell], base: Entry, executor: Executor) -> None:
    with stoppable(f"pyroae compare --resume {shlex.quote(str(study.path))}"):
        outcomes = _run(study, cells, executor)
    finished = [outcome for outcome in outcomes.values() if isinstance(outcome, Outcome)]
    failed = {cell: reason for cell, reason in outcomes.items() if isinstance(reason, str)}
    if not finished:
        raise RunError(f"every training failed; {cells[0]}: {failed[cells[0]]}")
    comparison = Comparison(tuple(finished))
    base = base if base in comparison.entries else comparison.entries[0]
    _write(comparison, study, base)
    _tell(comparison, study, base, failed)


def _config(settings: Mapping[str, Any], given: Mapping[str, Any]) -> StudyConfig:
    config = StudyConfig(settings_of(settings), scoring=_scoring(Scoring(), given))
    return _checked(replace(config, **_alike(config, given), **_lists(given)))


def _extended(
    known: StudyConfig, settings: Mapping[str, Any], given: Mapping[str, Any]
) -> StudyConfig:
    """A configuration with further objectives, K and seeds; settings that differ are refused."""
    settings = with_imports(recorded(settings), known.settings.imports)
    merged = settings_of({**known.to_dict()["settings"], **settings})
    other = replace(
        known, settings=merged, scoring=_scoring(known.scoring, given), **_alike(known, given)
    )
    for name, value in _flat(other).items():
        if name not in ("accelerator", "data_root", "imports") and value != _flat(known)[name]:
            raise ConfigError(
                f"--resume keeps the settings of the study: {name} is {_flat(known)[name]} there"
            )
    more: dict[str, Any] = {
        name: tuple(dict.fromkeys((*getattr(known, name), *values)))
        for name, values in _lists(given).items()
    }
    return _checked(replace(other, **more))


def _alike(known: StudyConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that all trainings share."""
    return {name: given.get(name, getattr(known, name)) for name in ("budget", "cpus_per_cell")}


def _flat(config: StudyConfig) -> dict[str, Any]:
    content = config.to_dict()
    alike = {"budget": str(Budget.parse(config.budget)), "cpus_per_cell": config.cpus_per_cell}
    return {**alike, **content["scoring"], **content["settings"]}


def _lists(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in EXTENDED if name in given}


def _scoring(known: Scoring, given: Mapping[str, Any]) -> Scoring:
    names = {"score_particles": "num_particles", "score_data": "num_data"}
    return replace(known, **{names[name]: value for name, value in given.items() if name in names})


def _checked(config: StudyConfig) -> StudyConfig:
    Budget.parse(config.budget)
    compared(config.objectives, config.num_particles)
    if not config.seeds or min(config.seeds) < 0:
        raise ConfigError(
            "seeds are whole numbers of at least 0, not "
            + (", ".join(map(str, config.seeds)) or "none")
        )
    return config


def _baseline(text: str | None, cells: Sequence[Cell]) -> Entry:
    """What differences are from: NAME or NAME@K; by default the first entry, at its lowest K."""
    if text is None:
        return min(
            (cell.entry for cell in cells if cell.objective == cells[0].objective),
            key=lambda e: e.num_particles,
        )
    name, _, k = text.rpartition("@") if text.rpartition("@")[1] else (text, "", "")
    found = [
        cell.entry
        for cell in cells
        if cell.objective == name and k in ("", str(cell.num_particles))
    ]
    if not found:
        known = ", ".join(dict.fromkeys(f"{cell.objective}@{cell.num_particles}" for cell in cells))
        raise ConfigError(f"the baseline '{text}' is not compared here: {known} are")
    return min(found, key=lambda entry: entry.num_particles)


def _run(study: Study, cells: Sequence[Cell], executor: Executor) -> dict[Cell, Outcome | str]:
    """The outcome of every cell; finished ones are read and not trained again."""
    known = {cell: study.outcome(cell) for cell in cells}
    todo = [cell for cell in cells if known[cell] is None]
    if len(todo) < len(cells):
        say(
            f"{study.path}: {len(cells) - len(todo)} of {len(cells)} trainings are finished already"
        )
    found = {cell: outcome for cell, outcome in known.items() if outcome is not None}
    if todo:
        with closing(executor.run(study, todo)) as outcomes:
            found.update(outcomes)
    return {cell: found[cell] for cell in cells}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _write(comparison: Comparison, study: Study, baseline: Entry) -> None:
    guarded(study.path / "comparison.csv", lambda file: _write_cells(file, comparison))
    guarded(
        study.path / "ranking.csv", lambda file: _write_ranking(file, comparison.ranking(baseline))
    )
    tree = comparison_to_datatree(comparison, baseline)
    guarded(study.path / "comparison.nc", lambda file: tree.to_netcdf(file, engine="h5netcdf"))
    figures: dict[str, Figure] = {}
    if len(comparison.entries) > 1:
        figures["differences"] = differences(comparison, baseline)
    if any(outcome.curve for outcome in comparison.outcomes):
        figures["curves"] = learning_curves(comparison)
    for name, figure in figures.items():
        save(figure, study.path / "figures" / f"{name}.png")


def _write_cells(path: Path, comparison: Comparison) -> None:
    figures = list(
        dict.fromkeys(name for outcome in comparison.outcomes for name in outcome.figures)
    )
    names = ("nll", "nll_se", "monte_carlo_se", "epochs", "steps", "evaluations", "seconds")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*Cell._fields, *names, *figures])
        for outcome in comparison.outcomes:
            values = [getattr(outcome, name) for name in names]
            writer.writerow(
                [*outcome.cell, *values, *(outcome.figures.get(name, "") for name in figures)]
            )


def _write_ranking(path: Path, ranking: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        parts = [
            f"{name}{end}"
            for name in ("nll", "from_baseline", "from_best")
            for end in ("", "_low", "_high")
        ]
        writer.writerow(["rank", *Entry._fields, *parts])
        for i, row in enumerate(ranking, 1):
            writer.writerow(
                [i, *row.entry, *row.nll, *row.from_baseline.estimate, *row.from_best.estimate]
            )


def _tell(
    comparison: Comparison, study: Study, baseline: Entry, failed: Mapping[Cell, str]
) -> None:
    ranking = comparison.ranking(baseline)
    Console().print(_table(comparison, study, ranking, baseline))
    for line in _notes(comparison, study, ranking, failed):
        say(line)
    say(
        f"{study.path}: comparison.csv, ranking.csv, comparison.nc, figures; a run directory for "
        "each training"
    )


def _table(comparison: Comparison, study: Study, ranking: Sequence[Row], baseline: Entry) -> Table:
    scoring, num_data = study.config.scoring, len(comparison.outcomes[0].log_px)
    table = Table(
        title=f"held-out NLL, IS-{scoring.num_particles}, {num_data} data, "
        f"{_count(len(comparison.seeds), 'seed')}, {study.config.budget}; in nats per datum",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("", justify="right")
    table.add_column("objective", overflow="fold")
    for column in (
        "K",
        "NLL",
        f"less {baseline.objective}@{baseline.num_particles}",
        "± 95 %",
        "−ELBO",
        "active",
        "train s",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for i, row in enumerate(ranking, 1):
        outcomes, gap = comparison.of(row.entry), row.from_baseline.estimate
        own = row.entry == baseline
        table.add_row(
            str(i),
            row.entry.objective,
            str(row.entry.num_particles),
            f"{row.nll.value:.3f}",
            "" if own else f"{gap.value:+.3f}",
            "" if own else f"{gap.high - gap.value:.3f}",
            f"{_mean(outcomes, 'nelbo'):.2f}",
            f"{_mean(outcomes, 'active_units'):.1f}",
            f"{sum(outcome.seconds for outcome in outcomes) / len(outcomes):.1f}",
        )
    return table


def _mean(outcomes: Sequence[Outcome], name: str) -> float:
    values = [outcome.figures.get(name, math.nan) for outcome in outcomes]
    return sum(values) / len(values)


def _notes(
    comparison: Comparison, study: Study, ranking: Sequence[Row], failed: Mapping[Cell, str]
) -> list[str]:
    """Sentences on the intervals, on differences within noise, and on failed trainings."""
    seeds = len(comparison.seeds)
    over = (
        "the held-out data alone: one seed says nothing of other seeds"
        if seeds == 1
        else "seeds and held-out data"
    )
    notes = [f"differences are paired by seed and datum; intervals are over {over}"]
    close = indistinct(ranking)
    if close:
        notes.append(f"within noise of the best, {ranking[0].entry}: {'; '.join(map(str, close))}")
    elif len(ranking) > 1:
        notes.append(
            f"the best, {ranking[0].entry}, differs from every other at 95 %, each taken by itself"
        )
    error = max(outcome.monte_carlo_se for outcome in comparison.outcomes)
    notes.append(f"Monte-Carlo error of an NLL: at most {error:.3f}, included in the intervals")
    notes += [f"failed: {cell}: {reason}" for cell, reason in failed.items()]
    return notes


def executor_of(
    executor: str = "local",
    address: str | None = None,
    gpus_per_cell: float | None = None,
    jobs: int | None = None,
) -> Executor:
    """Return the executor that the command line names.

    Args:
        executor: `local` or `ray`.
        address: The address of the Ray cluster; None for this machine alone.
        gpus_per_cell: The share of a GPU per training, in [0, 1].
        jobs: How many trainings of this machine run side by side; None for one.

    Returns:
        The executor.

    Raises:
        ConfigError: For another name, for options of Ray without Ray, and for `jobs` with it.

    >>> executor_of("local"), executor_of("ray", gpus_per_cell=0.25)
    (Local(), OnRay(address=None, gpus_per_cell=0.25, retries=3))
    """
    from pyroae.studies.process_executor import InProcesses
    from pyroae.studies.ray_executor import OnRay

    if executor == "ray":
        if jobs is not None:
            raise ConfigError(
                "--jobs is for trainings on this machine: Ray decides how many it runs"
            )
        return OnRay(address, gpus_per_cell)
    if executor != "local":
        raise unknown_name("executor", executor, ("local", "ray"))
    for flag, value in (("--address", address), ("--gpus-per-cell", gpus_per_cell)):
        if value is not None:
            raise ConfigError(f"{flag} is for trainings on Ray: give --executor ray too")
    return InProcesses(jobs) if jobs is not None and jobs != 1 else Local()
