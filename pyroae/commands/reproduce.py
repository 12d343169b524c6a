"""The command `reproduce`: train and evaluate a run again, and compare every figure."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pyroae.commands.evaluate import evaluate
from pyroae.commands.evaluation_files import evaluations_of
from pyroae.commands.train import train_run
from pyroae.config import EvaluationSettings, Part
from pyroae.errors import RunError
from pyroae.evaluation.results import Result
from pyroae.names import import_all
from pyroae.runs.contents import versions
from pyroae.runs.data_of_run import own_splits
from pyroae.runs.run import Run, refuse_taken
from pyroae.runtime.processes import say


def reproduce(run_directory: str, out: str | None, overwrite: bool) -> None:
    """Train a run again from its directory alone, repeat its evaluations, and compare the results.

    Args:
        run_directory: A run that was evaluated.
        out: The run directory to write; by default RUN-again.
        overwrite: Whether a run that is there is replaced.

    Raises:
        RunError: If a figure differs, however little; seconds are not compared.
        PyroaeError: If it cannot be trained or evaluated again.
    """
    run = Run(run_directory)
    evaluations = evaluations_of(run)
    if not evaluations or not run.results():
        raise RunError(f"'{run.path}' has no results to be compared with: evaluate it first")
    for options in evaluations:
        import_all(options.get("imports", ()))
    given = [(EvaluationSettings.from_dict(one), _part(one), one) for one in evaluations]
    path = Path(out) if out is not None else run.path.with_name(f"{run.path.name}-again")
    refuse_taken(path, overwrite)
    own_splits(run)
    again, _ = train_run(run.config.but(logger=None), path, overwrite)
    for settings, part, options in given:
        evaluate(str(path), settings, part, imports=options.get("imports", ()))
    _compare(run, again)


def _part(options: Mapping[str, Any]) -> Part:
    return Part(**{f.name: options[f.name] for f in fields(Part) if f.name in options})


def _compare(run: Run, again: Run) -> None:
    """Print all results of both runs. Raises RunError where one differs."""
    old = [result for result in run.results() if result.data]
    before = _by_key(old or run.results(), bool(old))
    after = _by_key(again.results(), bool(old))
    known = {result.checkpoint for result in again.results()}
    lost = {key for key, result in before.items() if old and result.checkpoint not in known}
    before = {key: result for key, result in before.items() if key not in lost}
    Console().print(_table(before, after))
    if lost:
        say(f"{len(lost)} figures are of weights that the run no longer has: they are not repeated")
    other = [
        key
        for key in {**before, **after}
        if (old or key in before) and _figures(before.get(key)) != _figures(after.get(key))
    ]
    if other or not before:
        now = versions()
        changed = [f"{n} {v}, now {now.get(n)}" for n, v in run.versions.items() if now.get(n) != v]
        raise RunError(
            f"{len(other)} of {len(before)} figures of '{run.path}' differ in '{again.path}': "
            + ", ".join(dict.fromkeys(str(key[0]) for key in other))
            + (f"; it was made with {'; '.join(changed)}" if changed else "")
        )
    say(f"'{again.path}' has the figures of '{run.path}', to the last digit")


def _by_key(results: Iterable[Result], is_recorded: bool) -> dict[tuple[str | int, ...], Result]:
    """Results by name and what they are of; earlier versions recorded N and K alone."""
    return {
        (result.name, *result.identity)
        if is_recorded
        else (result.name, result.num_data, result.num_particles): result
        for result in results
    }


def _figures(result: Result | None) -> str | None:
    """A figure and its errors, as text, since nan differs from itself."""
    return None if result is None else str((result.estimate, result.se))


def _table(
    before: Mapping[tuple[str | int, ...], Result], after: Mapping[tuple[str | int, ...], Result]
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("")
    for column in ("N", "before", "again", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for key in {**before, **after}:
        one, two = before.get(key), after.get(key)
        same = "the same" if _figures(one) == _figures(two) else "differs"
        values = ("" if r is None else f"{r.estimate:.6f}" for r in (one, two))
        count = one or two
        table.add_row(str(key[0]), "" if count is None else f"{count.num_data}", *values, same)
    return table
