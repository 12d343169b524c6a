"""The result of a paper as a file: numbers, and where and with what they were measured."""

import json
import math
import os
import platform
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pyroae.errors import RunError
from pyroae.papers.paper import Paper
from pyroae.papers.results import PaperResult
from pyroae.runs.contents import versions
from pyroae.runtime.files import guarded, words

Record = dict[str, Any]
"""Where a result was measured: date, machine, cores, commit and versions."""


def record_of_here() -> Record:
    """Return date, machine, commit and versions of this process.

    Returns:
        `date`, `machine`, `cores`, `commit` (empty outside a checkout; with `+` where tracked files
        are changed) and `versions`.

    >>> sorted(record_of_here())
    ['commit', 'cores', 'date', 'machine', 'versions']
    """
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": _processor(),
        "cores": os.cpu_count(),
        "commit": _commit(),
        "versions": versions(),
    }


def _processor() -> str:
    """The name of the processor, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _commit() -> str:
    folder = str(Path(__file__).parent)
    text = []
    for words_of in (["rev-parse", "--short=10", "HEAD"], ["status", "--porcelain", "-uno"]):
        try:
            done = subprocess.run(
                ["git", "-C", folder, *words_of], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return ""
        text.append(done.stdout.strip())
    return text[0] + ("+" if text[1] else "")


def write_result(file: Path, result: PaperResult, record: Record) -> None:
    """Write a result; NaN is null, an infinite end of an interval a text.

    Args:
        file: The file.
        result: The result.
        record: Where it was measured.

    Raises:
        RunError: If the file cannot be written.
    """
    content = {**asdict(result), "record": record}
    text = json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False)
    guarded(file, lambda path: path.write_text(text + "\n"))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def read_result(file: Path, paper: Paper, scale: str) -> tuple[PaperResult, Record]:
    """Read a result, with the printed numbers and claims of the specification as it is now.

    Args:
        file: The file.
        paper: The paper. Measured numbers of rows and claims that it no longer has are left out.
        scale: The scale.

    Returns:
        The result, and where it was measured; all is unmeasured, and the record empty, where there
        is no file.

    Raises:
        RunError: If the file cannot be read.
    """
    result = paper.unmeasured(scale)
    if not file.is_file():
        return result, {}
    try:
        content = json.loads(file.read_text())
        seconds = float(content["seconds"] or 0)
        known: dict[Any, Any] = {
            (r["table"], r["label"], r["quantity"]): r for r in content["rows"]
        }
        known |= {c["text"]: c for c in content["claims"]}
        for part in result.parts:
            if part.key in known:
                values = (_number(known[part.key][n]) for n in ("estimate", "low", "high"))
                result = result.updated(part.measured(*values), seconds)
        return replace(result, seconds=seconds), content["record"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"'{file}' holds no result of a paper: {words(error)}") from None


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
