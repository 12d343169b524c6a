"""The command `compare`: estimators compared by what they train."""

import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pyroae.commands.train import resumed
from pyroae.comparison.budget import Budget
from pyroae.comparison.results import Cell, Comparison, Entry, Outcome, Row
from pyroae.comparison.tables import scoring_of
from pyroae.comparison.tuning import Tuning, combinations
from pyroae.config import Scoring, compared, recorded, with_imports
from pyroae.config.checks import one_of
from pyroae.errors import ConfigError, RunError
from pyroae.names import import_all, located
from pyroae.runs.default_likelihood import completed
from pyroae.runtime.files import locked
from pyroae.runtime.links import report_line
from pyroae.runtime.processes import say
from pyroae.runtime.signals import stoppable
from pyroae.studies.executor_names import executor_of
from pyroae.studies.executors import Executor
from pyroae.studies.study import Study, refuse_other
from pyroae.studies.study_config import EXTENDED, StudyConfig, settings_of
from pyroae.studies.study_files import write_comparison
from pyroae.studies.tuning import Grid, tuning_of
from pyroae.studies.variants import split_grid, variants_of


def compare(
    settings: Mapping[str, Any],
    given: Mapping[str, Any],
    scoring: Mapping[str, Any],
    baseline: str | None,
    out: str | None,
    overwrite: bool,
    resume: str | None,
    place: Mapping[str, Any],
) -> None:
    """Train under each objective, K, variant and seed; write one table, files and figures.

    Args:
        settings: Settings of every training; a numeric one with several values is tuned. From YAML,
            also the settings of `given`.
        given: Settings of the study that are given: objectives, num_particles, seeds, budget,
            cpus_per_cell, vary, tune_on.
        scoring: Settings of `Scoring` that are given.
        baseline: The entry that differences are measured from, as NAME or NAME@K.
        out: The study directory to write.
        overwrite: Whether a study that is there is replaced.
        resume: The study to continue; an empty text means `out`.
        place: Where trainings run: executor, jobs, address, gpus_per_cell, as of `executor_of`.

    Raises:
        PyroaeError: For what cannot be trained or scored.
    """
    where = executor_of(**place)
    settings, given = _separated(settings, {**given, **({"scoring": scoring} if scoring else {})})
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
        study = Study(out, _suited(_config(settings, given)))
        cells = study.check()
        begin = partial(study.start, overwrite)
    base = _baseline(baseline, cells)
    with where.ready(study), locked(study.path, "study"):
        begin()
        _compare(study, cells, base, where)


def _compare(study: Study, cells: Sequence[Cell], base: Entry, executor: Executor) -> None:
    with stoppable(f"pyroae compare --resume {shlex.quote(str(study.path))}"):
        study, tuning = _tuned(study, cells, executor)
        outcomes = _run(study, cells, executor)
    finished = [outcome for outcome in outcomes.values() if isinstance(outcome, Outcome)]
    failed = {cell: reason for cell, reason in outcomes.items() if isinstance(reason, str)}
    if not finished:
        raise RunError(f"every training failed; {cells[0]}: {failed[cells[0]]}")
    comparison = Comparison(tuple(finished), tuning, Path(study.config.settings.data).stem)
    base = base if base in comparison.entries else comparison.entries[0]
    reasons = [f"{cell}: {reason}" for cell, reason in failed.items()]
    write_comparison(study.path, comparison, base, reasons)
    _tell(comparison, study, base, failed)


def _tuned(study: Study, cells: Sequence[Cell], executor: Executor) -> tuple[Study, Tuning | None]:
    """The study with the settings that its tuning has chosen, and that tuning."""
    if not study.config.tune:
        return study, None
    first = study.for_tuning()
    known = first.path / "study.yaml"
    if known.is_file():
        first.resume()
    else:
        first.start(overwrite=False)
    its_cells = first.config.cells()
    say(f"tuning of {', '.join(study.config.tune)} on validation data: {first.path}")
    found = _run(first, its_cells, executor)
    tuning = tuning_of((cell.entry for cell in cells), study.config.tune, found)
    chosen = {name: dict(tuning.best(name).settings) for name in tuning.entries}
    study = Study(study.path, replace(study.config, tuned=chosen), study.splits)
    study.write_config()
    return study, tuning


STUDY = (*EXTENDED, "budget", "cpus_per_cell", "vary", "tune_on")
"""Settings of a study that YAML may hold beside those of its trainings."""


def _separated(
    settings: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the trainings, and those of the study, with the grid of what is tuned."""
    lists = {
        n: v for n, v in settings.items() if n in STUDY and (n != "num_particles" or _several(v))
    }
    lists = {n: tuple(v) if n in EXTENDED and _several(v) else v for n, v in lists.items()}
    single, grid = split_grid({n: v for n, v in settings.items() if n not in lists})
    given = {**lists, **given}
    if grid and given.get("tune_on") is None:
        name, values = next(iter(grid.items()))
        listed = ",".join(f"{value:g}" for value in values)
        raise ConfigError(
            f"{name} has several values: give --tune-on valid to choose the best for each entry, "
            f"or --vary {name}={listed} to compare them"
        )
    if given.get("tune_on") is not None and not grid:
        raise ConfigError(
            "--tune-on needs a numeric setting with several values, as --lr 1e-3,1e-2"
        )
    if given.get("tune_on") is not None:
        one_of("part to tune on", given["tune_on"], ("valid",))
    return single, {**given, **({"tune": grid} if grid else {})}


def _several(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _config(settings: Mapping[str, Any], given: Mapping[str, Any]) -> StudyConfig:
    config = StudyConfig(settings_of(settings), scoring=_scoring(Scoring(), given))
    return _checked(replace(config, **_alike(config, given), **_lists(given), **_choices(given)))


def _suited(config: StudyConfig) -> StudyConfig:
    """The study with the likelihood that its data suggest, unless it compares likelihoods."""
    if any(
        "likelihood" in settings or "system" in settings for settings in config.variants.values()
    ):
        return config
    chosen = completed(config.settings)
    if chosen.sentence:
        say(chosen.sentence)
    return replace(config, settings=chosen.config)


def _choices(given: Mapping[str, Any]) -> dict[str, Any]:
    """The variants and the grid of the tuning that are given."""
    found: dict[str, Any] = {"tune": given["tune"]} if "tune" in given else {}
    if "vary" in given:
        variants = variants_of(given["vary"])
        found["variants"] = {name: _located(settings) for name, settings in variants.items()}
    return found


def _located(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a variant, where a program does not depend on the working directory."""
    program = settings.get("program")
    return {**settings, **({"program": located(program)} if isinstance(program, str) else {})}


def _extended(
    known: StudyConfig, settings: Mapping[str, Any], given: Mapping[str, Any]
) -> StudyConfig:
    """A configuration with further objectives, K, variants, seeds and values of tuned settings."""
    choices = _choices(given)
    more_values = {name: (settings[name],) for name in known.tune if name in settings}
    tune = _more_values(known.tune, {**more_values, **choices.get("tune", {})})
    settings = {name: value for name, value in settings.items() if name not in known.tune}
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
    more["variants"] = {**known.variants, **choices.get("variants", {})}
    return _checked(replace(other, tune=tune, **more))


def _more_values(known: Grid, given: Grid) -> dict[str, tuple[Any, ...]]:
    """The grid of a study that is resumed with further values, in ascending order."""
    other = next((name for name in given if name not in known), None)
    if other is not None:
        raise ConfigError(
            f"--resume keeps what the study tunes: {', '.join(known) or 'nothing'}, not {other}"
        )
    return {
        name: tuple(sorted({*values, *given[name]})) if name in given else values
        for name, values in known.items()
    }


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
    return replace(known, **given.get("scoring", {}))


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
    """What differences are from, as NAME, NAME@K or NAME@K[VARIANT]; by default the first entry."""
    first = cells[0].entry
    if text is None:
        return min(
            (e for c in cells if (e := c.entry)[::2] == first[::2]), key=lambda e: e.num_particles
        )
    found = [
        cell.entry
        for cell in cells
        if text in (cell.objective, cell.entry._replace(variant="").short)
        or text == cell.entry.short
    ]
    if not found:
        known = ", ".join(dict.fromkeys(cell.entry.short for cell in cells))
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


def _tell(
    comparison: Comparison, study: Study, baseline: Entry, failed: Mapping[Cell, str]
) -> None:
    ranking = comparison.ranking(baseline)
    Console().print(_table(comparison, study, ranking, baseline))
    if comparison.tuning is not None:
        Console().print(_tuning_table(comparison.tuning))
    for line in _notes(comparison, study, ranking, failed):
        say(line)
    say(
        f"{study.path}: comparison.csv, ranking.csv, comparison.nc, figures; a run directory for "
        "each training"
    )
    say(report_line(study.path / "report.html"))


def _table(comparison: Comparison, study: Study, ranking: Sequence[Row], baseline: Entry) -> Table:
    title = f"held-out NLL, {comparison.num_data} data, {_count(len(comparison.seeds), 'seed')}"
    base = escape(baseline.short)
    table = Table(
        title=f"{title}, {study.config.budget}; nats per datum; differences from {base}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("", justify="right")
    table.add_column("objective", overflow="fold", min_width=9)
    has_variants = any(entry.variant for entry in comparison.entries)
    tuned = list(study.config.tune)
    for column in (
        "K",
        *(["variant"] if has_variants else []),
        *tuned,
        "NLL",
        "difference",
        "± 95 %",
        "correction",
        "k̂ bad",
        "ESS",
        "train s",
    ):
        is_text = column == "variant"
        table.add_column(
            column,
            justify="left" if is_text else "right",
            no_wrap=not is_text,
            overflow="fold" if is_text else "ellipsis",
        )
    for i, row in enumerate(ranking, 1):
        entry, outcomes, gap = row.entry, comparison.of(row.entry), row.from_baseline.estimate
        scoring, own = scoring_of(outcomes), row.entry == baseline
        chosen = study.config.tuned.get(entry.short, {})
        table.add_row(
            str(i),
            entry.objective,
            str(entry.num_particles),
            *([entry.variant] if has_variants else []),
            *(f"{chosen[name]:g}" for name in tuned),
            f"{row.nll.value:.3f}",
            "" if own else f"{gap.value:+.3f}",
            "" if own else f"{gap.high - gap.value:.3f}",
            "" if scoring["score_method"] == "is" else f"{scoring['shift']:+.3f}",
            f"{100 * scoring['unreliable']:.0f} %",
            f"{scoring['ess_median']:.0f}",
            f"{sum(outcome.seconds for outcome in outcomes) / len(outcomes):.1f}",
        )
    return table


def _tuning_table(tuning: Tuning) -> Table:
    """The NLL of the validation data at every point of the grid; a star marks the best."""
    points = list(combinations(tuning.grid))
    table = Table("validation NLL", box=box.SIMPLE_HEAD, padding=0)
    for point in points:
        table.add_column(point, justify="right", overflow="fold")
    for entry in tuning.entries:
        best = tuning.best(entry)
        cells = [
            "failed" if t.nll is None else f"{t.nll.value:.3f}{'*' if t is best else ' '}"
            for t in tuning.of(entry)
        ]
        table.add_row(escape(entry), *cells)
    return table


def _notes(
    comparison: Comparison, study: Study, ranking: Sequence[Row], failed: Mapping[Cell, str]
) -> list[str]:
    """Sentences on the intervals, the scores, the tuning, and failed trainings."""
    seeds = len(comparison.seeds)
    over = (
        "the held-out data alone: one seed says nothing of other seeds"
        if seeds == 1
        else "seeds and held-out data"
    )
    notes = [f"differences are paired by seed and datum; intervals are over {over}"]
    verdicts = {row.entry: row.from_best.verdict for row in ranking[1:]}
    for verdict, words in (
        ("within noise", "within noise of"),
        ("score not known", "cannot be told, as the error of a score is not known, from"),
    ):
        entries = [str(entry) for entry, its in verdicts.items() if its == verdict]
        if entries:
            notes.append(f"{words} the best, {ranking[0].entry}: {'; '.join(entries)}")
    if verdicts and set(verdicts.values()) == {"worse"}:
        notes.append(
            f"the best, {ranking[0].entry}, differs from every other at 95 %, each taken by itself"
        )
    notes += _of_scores(comparison, study.config.scoring)
    if comparison.tuning is not None:
        notes += _of_tuning(comparison.tuning)
    notes += [f"failed: {cell}: {reason}" for cell, reason in failed.items()]
    return notes


def _of_scores(comparison: Comparison, scoring: Scoring) -> list[str]:
    """How the scores were computed, and how far they can be trusted."""
    scores = [outcome.score for outcome in comparison.outcomes]
    methods = dict.fromkeys(score.method for score in scores)
    notes = []
    for method in methods:
        on = next(s.correction for s in scores if s.method == method)
        corrected = f", corrected on {len(on.index)} data by {NAMES[method]}" if on else ""
        notes.append(f"scores: IS-{scoring.num_particles} from each guide{corrected}")
    error = max(score.error for score in scores)
    if math.isfinite(error):
        return [*notes, f"error of a score for these data: at most {error:.3f}, in the intervals"]
    bad = [o.cell for o in comparison.outcomes if not math.isfinite(o.score.error)]
    return [
        *notes,
        f"the error of the score is not known for {_count(len(bad), 'training')}, whose "
        "differences are not told: k̂ or ESS flags more than a tenth of its estimates, as of "
        f"{bad[0]} (--score-method local or ais)",
    ]


NAMES = {
    "local": "local Gaussian fits",
    "ais": "annealing",
    "exact": "exact values",
    "enumeration": "exact sums",
}
"""What the notes call the methods of the correction."""


def _of_tuning(tuning: Tuning) -> list[str]:
    """What the tuning has cost, and a warning for best values at the end of a grid."""
    costs = [tuning.cost(entry) for entry in tuning.entries]
    evaluations, seconds = (sum(column) for column in zip(*costs, strict=True))
    notes = [f"tuning: {evaluations:.3g} decoder evaluations and {seconds:.0f} s of training more"]
    for entry in tuning.entries:
        names = tuning.at_end(entry)
        if names:
            best = tuning.best(entry).settings
            values = ", ".join(f"{name} = {best[name]:g}" for name in names)
            notes.append(
                f"warning: the best of {entry} is at the end of its grid, {values}: a better value "
                "may lie outside"
            )
    return notes
