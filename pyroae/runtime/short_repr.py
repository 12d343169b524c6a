"""The `repr` of objects as short as a screen, and the same as a table in Jupyter.

A class names what it shows in `_overview`: items of the first line, and rows below it.
"""

import re
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from html import escape
from textwrap import wrap
from typing import Any

from pyroae.runtime.short_text import ROOM, WIDTH, cut, text_of, width_of

ROWS = 18
"""Largest number of rows, so that a `repr` has fewer than 24 lines."""


HTML_ROWS = 40
"""Largest number of rows of an HTML table."""


CELL = 60
"""Characters of a cell of a table with columns."""


@dataclass(frozen=True)
class Overview:
    """What is shown of an object.

    Attributes:
        head: Items of the first line, in the parentheses behind the name of the class.
        rows: The rows below, each with as many cells; the first cell is the label of the row.
        columns: Names of the columns; empty for rows of a label and a value.
        num_rows: The number of rows of the whole object where `rows` are a part; 0 for all.
    """

    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    columns: Sequence[str] = ()
    num_rows: int = 0


class Shown:
    """An object with a short `repr`, and with the same as HTML in Jupyter.

    A dataclass inherits from it with `repr=False`. Without an `_overview` of its own it shows its
    fields: in one line where they fit, otherwise in a row each.

    >>> import torch
    >>> @dataclass(repr=False)
    ... class Found(Shown):
    ...     values: torch.Tensor
    ...     seconds: float
    >>> Found(torch.arange(100.0), 0.5)
    Found(values=Tensor[100] float32, seconds=0.5)
    >>> @dataclass(repr=False)
    ... class Mean(Found):
    ...     def _overview(self) -> Overview:
    ...         return Overview([f"mean {self.values.mean():.1f} nats"], [("time", "0.5 s")])
    >>> Mean(torch.arange(100.0), 0.5)
    Mean(mean 49.5 nats)
      time        0.5 s
      attributes  values, seconds
    """

    def _overview(self) -> Overview:
        return _of_fields(self, [field.name for field in _fields(self)])

    def _headline(self) -> str:
        """The first line alone, for an object that is part of another one."""
        overview = self._overview()
        if overview.head or not overview.rows:
            return cut(_call(self, overview.head))
        return cut(_call(self, ["=".join(row) for row in overview.rows]), ROOM)

    def __repr__(self) -> str:
        overview = self._overview()
        first = _call(self, overview.head) if overview.head or not overview.rows else ""
        lines = _lines(overview, _attributes(self, overview))
        return "\n".join(map(cut, [*_wrapped(first or type(self).__name__), *lines]))

    def _repr_html_(self) -> str:
        overview = self._overview()
        head = f": {escape(', '.join(overview.head))}" if overview.head else ""
        parts = [f"<div><b>{escape(type(self).__name__)}</b>{head}</div>"]
        if overview.rows:
            parts.append(_table(overview))
        if names := _attributes(self, overview):
            parts.append(f"<small>attributes: {escape(', '.join(names))}</small>")
        return f"<div>{''.join(parts)}</div>"


class Settings(Shown):
    """A dataclass of settings, of which those are shown that differ from the defaults.

    >>> @dataclass(frozen=True, repr=False)
    ... class Moves(Settings):
    ...     steps: int = 10
    ...     double: bool = False
    >>> Moves(), Moves(steps=20)
    (Moves(), Moves(steps=20))
    """

    def _overview(self) -> Overview:
        changed = [f.name for f in _fields(self) if getattr(self, f.name) != _default(f)]
        overview = _of_fields(self, changed)
        rows = [(name, cut(text, WIDTH // 4)) for name, text in overview.rows]
        if len(rows) <= ROWS:
            return overview
        half = (len(rows) + 1) // 2
        left, right = rows[:half], [*rows[half:], ("", "")][:half]
        return Overview(rows=[(*a, *b) for a, b in zip(left, right, strict=True)])


def _fields(one: Any) -> list[Field[Any]]:
    return [field for field in fields(one) if field.repr]


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _call(one: Any, items: Sequence[str]) -> str:
    return f"{type(one).__name__}({', '.join(items)})"


def _of_fields(one: Any, names: Sequence[str]) -> Overview:
    """Fields of a dataclass: in one line where they fit, otherwise in a row each."""
    items = [(name, text_of(getattr(one, name))) for name in names]
    head = [f"{name}={text}" for name, text in items]
    return Overview(head) if width_of(_call(one, head)) <= WIDTH else Overview(rows=items)


def _attributes(one: Any, overview: Overview) -> list[str]:
    """Fields of a dataclass that an overview of its own does not list."""
    is_own = type(one)._overview not in (Shown._overview, Settings._overview)
    if not overview.rows or not is_own or not is_dataclass(one):
        return []
    return [field.name for field in fields(one) if not field.name.startswith("_")]


def _wrapped(text: str) -> list[str]:
    """A first line that is too long, in two: broken at a comma."""
    if width_of(text) <= WIDTH:
        return [text]
    at = text.rfind(", ", 0, WIDTH) + 1 or WIDTH
    return [text[:at], f"    {text[at:].strip()}"]


def _kept(overview: Overview, most: int = ROWS) -> tuple[list[list[str]], str]:
    """The rows that are shown, and a remark on the others."""
    total = overview.num_rows or len(overview.rows)
    kept = overview.rows if len(overview.rows) <= most else overview.rows[: most - 1]
    room = CELL if overview.columns else WIDTH
    rows = [[cut(cell, room) for cell in row] for row in kept]
    return rows, f"({len(rows)} of {total})" if total > len(rows) else ""


def _lines(overview: Overview, names: Sequence[str]) -> list[str]:
    """The rows as lines, and the names of attributes."""
    rows, more = _kept(overview)
    rest = [f"  {more}"] if more else []
    if overview.columns:
        lines = _aligned(_fitted([list(overview.columns), *rows]), _sides(overview, rows))
        return [*lines, *rest, *_aligned(_listed(names, len("attributes")), [False, False])]
    indent = max([len("attributes"), *(width_of(row[0]) for row in rows)])
    rows += _listed(names, indent)
    return [*_aligned(rows, [False] * len(rows[0] if rows else ())), *rest]


def _listed(names: Sequence[str], indent: int) -> list[list[str]]:
    """Rows with the names of attributes, behind a label of a width."""
    lines = wrap(", ".join(names), WIDTH - indent - 4)
    return [["" if n else "attributes", line] for n, line in enumerate(lines)]


def _aligned(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """Rows with columns of one width, aligned to the right or to the left."""
    widths = [max(map(width_of, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(_padded, row, widths, right)).rstrip() for row in rows]


def _fitted(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Rows of a table with its widest column cut, so that a line fits."""
    widths = [max(map(width_of, column)) for column in zip(*rows, strict=True)]
    excess = sum(width + 2 for width in widths) - WIDTH
    widest = widths.index(max(widths))
    room = max(widths[widest] - max(excess, 0), 12)
    return [[cut(x, room) if n == widest else x for n, x in enumerate(row)] for row in rows]


def _sides(overview: Overview, rows: Sequence[Sequence[str]]) -> list[bool]:
    """Whether each column is aligned to the right: numbers of a table with columns."""
    columns = list(zip(*rows, strict=True)) or [()] * len(overview.columns)
    return [bool(overview.columns) and _is_numeric(column) for column in columns]


def _padded(text: str, width: int, to_right: bool) -> str:
    space = " " * (width - width_of(text))
    return space + text if to_right else text + space


def _is_numeric(cells: Sequence[str]) -> bool:
    """Whether all cells of a column are numbers, with or without an error or a unit."""
    return all(not cell or re.match(r"[-−<>~]?(\d|nan|inf|∞)", cell) for cell in cells)


def _table(overview: Overview) -> str:
    """The rows as an HTML table in the colours of the page."""
    rows, more = _kept(overview, HTML_ROWS)
    right = _sides(overview, rows)
    head = "".join(_cell("th", name, to) for name, to in zip(overview.columns, right, strict=False))
    body = "".join(
        "<tr>"
        + _cell("th", row[0], right[0])
        + "".join(_cell("td", text, to) for text, to in zip(row[1:], right[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    header = f"<thead><tr>{head}</tr></thead>" if head else ""
    rest = f"<div>{more}</div>" if more else ""
    return f"<table>{header}<tbody>{body}</tbody></table>{rest}"


def _cell(tag: str, text: str, to_right: bool) -> str:
    side = "right" if to_right else "left"
    return f'<{tag} style="text-align: {side}; padding: 0.1em 0.6em">{escape(text)}</{tag}>'
