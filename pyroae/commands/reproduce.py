"""The command `reproduce`: train and evaluate a run again, and compare every figure."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pyroae.commands.evaluate import EVALUATION, evaluate
from pyroae.commands.train import train_run
from pyroae.config import EvaluationSettings, Part, read_yaml
from pyroae.errors import RunError
from pyroae.evaluation.summary import Result
from pyroae.names import import_all
from pyroae.runs.contents import versions
from pyroae.runs.loading import same_data, splits_of
from pyroae.runs.run import Run, refuse_taken
from pyroae.runtime.processes import say


def reproduce(run_directory: str, out: str | None, overwrite: bool) -> None:
    """Train a run again from its directory alone, evaluate it again, and compare results.json.

    Args:
        run_directory: A run that was evaluated.
        out: The run directory to write; by default RUN-again.
        overwrite: Whether a run that is there is replaced.

    Raises:
        RunError: If a figure differs, however little; seconds are not compared.
        PyroaeError: If it cannot be trained or evaluated again.
    """
    run = Run(run_directory)
    options = _options(run)
    import_all(options.get("imports", ()))
    settings = EvaluationSettings.from_dict(options)
    part = Part(**{f.name: options[f.name] for f in fields(Part) if f.name in options})
    path = Path(out) if out is not None else run.path.with_name(f"{run.path.name}-again")
    refuse_taken(path, overwrite)
    same_data(run, splits_of(run.config))
    again, _ = train_run(run.config, path, overwrite)
    evaluate(str(path), settings, part, imports=options.get("imports", ()))
    before, after = _by_name(run), _by_name(again)
    Console().print(_table(before, after))
    other = [
        name
        for name in {**before, **after}
        if _figures(before.get(name)) != _figures(after.get(name))
    ]
    if other:
        now = versions()
        changed = [f"{n} {v}, now {now.get(n)}" for n, v in run.versions.items() if now.get(n) != v]
        raise RunError(
            f"{len(other)} of {len(before)} figures of '{run.path}' differ in '{path}': "
            + ", ".join(other)
            + (f"; it was made with {'; '.join(changed)}" if changed else "")
        )
    say(f"'{path}' has the figures of '{run.path}', to the last digit")


def _options(run: Run) -> dict[str, Any]:
    """How the run was evaluated. Raises RunError where it was not."""
    file = run.path / EVALUATION
    if not file.is_file() or not run.results():
        raise RunError(f"'{run.path}' has no results to be compared with: evaluate it first")
    return read_yaml(file)


def _by_name(run: Run) -> dict[str, Result]:
    return {result.name: result for result in run.results()}


def _figures(result: Result | None) -> str | None:
    """A figure without its seconds, as text, since nan differs from itself."""
    return None if result is None else str({**asdict(result), "seconds": 0})


def _table(before: dict[str, Result], after: dict[str, Result]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("")
    for column in ("before", "again", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for name in {**before, **after}:
        one, two = before.get(name), after.get(name)
        same = "the same" if _figures(one) == _figures(two) else "differs"
        table.add_row(name, *("" if r is None else f"{r.estimate:.6f}" for r in (one, two)), same)
    return table
