"""Papers and their results as Markdown, for the page of the documentation."""

import math
import textwrap
from collections.abc import Iterable, Sequence

from pyroae.papers.paper import Paper
from pyroae.papers.result_files import Record
from pyroae.papers.results import Claim, PaperResult, PaperRow
from pyroae.runtime.short_text import duration


def section(paper: Paper, results: Sequence[tuple[PaperResult, Record]]) -> str:
    """Return the section of a paper.

    Args:
        paper: The paper.
        results: One result for each scale, each with where it was measured.

    Returns:
        Markdown: the reference, the data, the tables of each scale that was measured, and the
        notes. A scale that was not measured has its protocol and one sentence.
    """
    parts = [
        f"## {paper.name}",
        _wrapped(f"*{paper.title}.* {paper.reference}. Data: {paper.data}"),
        *(_of_scale(paper, result, record) for result, record in results),
    ]
    return "\n\n".join([*parts, *([paper.notes.strip()] if paper.notes else [])]) + "\n"


def _of_scale(paper: Paper, result: PaperResult, record: Record) -> str:
    scale = paper.scales[result.scale]
    title = f"### {paper.name}, {result.scale}"
    command = _wrapped(f"`pyroae papers {paper.name} --scale {result.scale}`: {scale.protocol}")
    if not result.is_measured:
        return f"{title}\n\n{command}\n\nNot measured; estimated time {duration(scale.seconds)}."
    parts = [title, command, _measured(result, record), rows_table(result.rows)]
    if result.claims:
        parts.append(claims_table(result.claims))
    return "\n\n".join(part for part in parts if part)


def _measured(result: PaperResult, record: Record) -> str:
    commit = f", commit {record['commit']}" if record["commit"] else ""
    return (
        f"Measured on {record['date']} in {duration(result.seconds)} on {record['cores']} cores of "
        f"{record['machine']}, torch {record['versions']['torch']}, pyroae "
        f"{record['versions']['pyroae']}{commit}."
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 130, break_long_words=False, break_on_hyphens=False)


def rows_table(rows: Sequence[PaperRow]) -> str:
    """Return a table of printed and measured numbers, with a list of reasons below it.

    Args:
        rows: The rows.

    Returns:
        Markdown; why rows are not comparable follows as one sentence for each reason.
    """
    reasons = list(dict.fromkeys(row.not_comparable for row in rows if row.not_comparable))
    is_derived = not all(math.isnan(row.derived) for row in rows)
    expected = ("printed", "derived")[: 1 + is_derived]
    head = ("", "quantity", *expected, "measured", "95 % interval", "difference", "verdict")
    lines = [
        (
            f"{row.table}: {row.label}",
            row.quantity,
            *map(number, (row.printed, row.derived)[: len(expected)]),
            number(row.estimate),
            interval(row),
            number(row.difference, sign=True),
            row.verdict + _mark(row, reasons),
        )
        for row in rows
    ]
    notes = [f"({i}) Not comparable: {reason}." for i, reason in enumerate(reasons, 1)]
    return "\n\n".join([markdown_table(head, lines), *notes])


def _mark(row: PaperRow, reasons: Sequence[str]) -> str:
    return f" ({reasons.index(row.not_comparable) + 1})" if row.not_comparable else ""


def claims_table(claims: Sequence[Claim]) -> str:
    """Return a table of claims with the measured differences.

    Args:
        claims: The claims.

    Returns:
        Markdown; the difference is positive where the claim holds.
    """
    head = ("claim", "difference", "derived", "measured", "95 % interval", "verdict")
    lines = [
        (
            claim.text,
            claim.quantity,
            number(claim.derived),
            number(claim.estimate),
            interval(claim),
            claim.verdict,
        )
        for claim in claims
    ]
    return markdown_table(head, lines)


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table.

    Args:
        head: The titles of the columns.
        lines: The cells of each row.

    Returns:
        The table.

    >>> print(markdown_table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    rows = [f"| {' | '.join(cells)} |" for cells in (head, *lines)]
    return "\n".join([rows[0], "|" + "---|" * len(head), *rows[1:]])


def interval(part: PaperRow | Claim) -> str:
    """Return the 95 % interval of a row or claim as text.

    Args:
        part: The row or claim.

    Returns:
        Both ends; empty where they are not known.
    """
    return "" if math.isnan(part.low) else f"{number(part.low)} to {number(part.high)}"


def number(value: float, sign: bool = False) -> str:
    """Return a number with the digits that a table needs.

    Args:
        value: The number.
        sign: Whether a positive number has its sign.

    Returns:
        Four significant digits, at least two decimals below 1000; empty for nan.

    >>> number(86.756), number(-0.00651234), number(49510.3), number(float("nan"))
    ('86.76', '−0.006512', '49,510', '')
    """
    if math.isnan(value):
        return ""
    size = abs(value)
    if math.isinf(value):
        text = "∞"
    elif size >= 1000:
        text = f"{size:,.0f}"
    elif size == 0 or size >= 1:
        text = f"{size:.2f}"
    else:
        text = f"{size:.4g}"
    return ("−" if value < 0 else "+" if sign and value > 0 else "") + text
