"""The command `papers`: measure published tables again, beside the printed numbers."""

import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pyroae.data.named_datasets import DATASETS
from pyroae.errors import ConfigError
from pyroae.papers import PAPERS
from pyroae.papers.page import interval, number
from pyroae.papers.paper import Paper, Work
from pyroae.papers.result_files import read_result, record_of_here, write_result
from pyroae.papers.results import PaperResult
from pyroae.runtime.files import locked
from pyroae.runtime.processes import say
from pyroae.runtime.short_text import duration
from pyroae.runtime.signals import stoppable
from pyroae.studies.executor_names import executor_of

RESULT = "result.json"
"""The file in which the numbers of a paper at one scale are kept."""


def papers(
    names: Sequence[str],
    scale: str,
    rows: str,
    data_root: str,
    out: str,
    overwrite: bool,
    place: Mapping[str, Any],
) -> None:
    """Measure papers one after the other; print each beside its printed numbers.

    What was finished before is read and not measured again.

    Args:
        names: The papers; `all` for every one.
        scale: `short` or `full`.
        rows: Words of the rows to measure; empty for all.
        data_root: The folder of torchvision's data sets.
        out: The folder of all results.
        overwrite: Whether what was measured before is removed first.
        place: Where trainings run: executor, jobs, address, gpus_per_cell, as of `executor_of`.

    Raises:
        PyroaeError: Before any work, for an unknown paper, missing data, and rows that no paper
            has; and for what cannot be trained.
    """
    chosen = _chosen(names)
    executor = executor_of(**place)
    _check(chosen, scale, rows, data_root, overwrite)
    for paper in chosen:
        words = ["pyroae", "papers", paper.name, "--scale", scale, "--out", out]
        words += ["--data-root", data_root, *(["--rows", rows] if rows else [])]
        how = shlex.join(words)
        folder = Path(out) / paper.name / scale
        work = Work(scale, folder, data_root, executor, rows, how=how)
        if overwrite:
            shutil.rmtree(folder, ignore_errors=True)
        with locked(folder, "paper"), stoppable(how):
            _tell(paper, _measured(paper, work), folder)


def _chosen(names: Sequence[str]) -> list[Paper]:
    """The papers of that name, each once."""
    known = list(PAPERS) if "all" in names else names
    return [PAPERS.parse(name) for name in dict.fromkeys(known)]


def _check(chosen: Sequence[Paper], scale: str, rows: str, data_root: str, overwrite: bool) -> None:
    """Refuse what cannot be measured, before any work."""
    if rows and overwrite:
        raise ConfigError(
            "--overwrite measures a whole paper again: leave out --rows, or --overwrite"
        )
    for paper in chosen:
        parts = paper.unmeasured(scale)
        texts = [*(row.label for row in parts.rows), *(claim.text for claim in parts.claims)]
        if not any(map(Work(scale, Path(), only=rows).wants, texts)):
            raise ConfigError(
                f"{paper.name} has no row '{rows}'; it has: {'; '.join(dict.fromkeys(texts))}"
            )
    for name in dict.fromkeys(name for paper in chosen for name in paper.datasets):
        DATASETS[name](Path(data_root))


def _measured(paper: Paper, work: Work) -> PaperResult:
    """The result; its file is written after each row and claim."""
    file = work.folder / RESULT
    result, _ = read_result(file, paper, work.scale)
    before = result.seconds if result.is_measured else 0.0
    began, record = time.monotonic(), record_of_here()
    expected = duration(paper.scales[work.scale].seconds)
    say(f"{paper.name}, {work.scale}: about {expected} on two cores for all rows; {work.folder}")
    for part in paper.measure(work):
        result = result.updated(part, before + time.monotonic() - began)
        write_result(file, result, record)
        name = part.key if isinstance(part.key, str) else ", ".join(part.key)
        say(f"{name}: {number(part.estimate)} ({interval(part) or 'no interval'})")
    return result


def _tell(paper: Paper, result: PaperResult, folder: Path) -> None:
    """Print both tables, and the sentences on what they hold."""
    title = f"{paper.reference}: {paper.title}; {result.scale}"
    expected = ("printed", "derived")
    table = _table(title, "quantity", *expected, "measured", "95 %", "difference", "verdict")
    for row in result.rows:
        numbers = (*map(number, (row.printed, row.derived, row.estimate)), interval(row))
        difference = number(row.difference, sign=True)
        label = escape(f"{row.table}: {row.label}")
        table.add_row(label, escape(row.quantity), *numbers, difference, row.verdict)
    Console().print(table)
    if result.claims:
        table = _table(
            "claims; a difference above 0 is in their direction",
            "difference of",
            "derived",
            "measured",
            "95 %",
            "verdict",
        )
        for claim in result.claims:
            numbers = (number(claim.derived), number(claim.estimate), interval(claim))
            table.add_row(escape(claim.text), escape(claim.quantity), *numbers, claim.verdict)
        Console().print(table)
    for reason in dict.fromkeys(row.not_comparable for row in result.rows):
        if reason:
            say(f"not comparable: {reason}")
    say(f"{folder / RESULT}: {paper.scales[result.scale].protocol}")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("", overflow="fold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
