"""Turns docstrings, which are plain text with Google-style sections, into reStructuredText.

Doctests are kept, indented blocks (equations) are shown literally, references become a list, and
code between backticks is shown as code. Sections such as `Args:` are left to napoleon.
"""

import re
import textwrap
from itertools import groupby
from typing import Any

from sphinx.application import Sphinx

SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|References|Examples?|Notes?):$")
CODE = re.compile(r"(`+)(.+?)\1")
SPECIAL = re.compile(r"([*|\\]|(?<=\w)_(?!\w))")
ITEM = re.compile(r"([-*]|\d+\.) ")


def indent_of(line: str) -> int:
    """The number of spaces before a line."""
    return len(line) - len(line.lstrip())


def escaped(line: str) -> str:
    """Return the line with double backticks for code, and markup escaped elsewhere."""
    parts, end = [], 0
    for match in CODE.finditer(line):
        parts += [SPECIAL.sub(r"\\\1", line[end : match.start()]), f"``{match[2]}``"]
        end = match.end()
    return "".join([*parts, SPECIAL.sub(r"\\\1", line[end:])])


def paragraphs(text: str) -> list[list[str]]:
    """Split a text at its empty lines."""
    parts = re.split(r"\n\s*\n", text.strip("\n"))
    return [part.splitlines() for part in parts if part.strip()]


def literal(lines: list[str]) -> list[str]:
    """A block that is shown as it is written."""
    return ["::", "", *textwrap.indent(textwrap.dedent("\n".join(lines)), "    ").split("\n"), ""]


def prose(lines: list[str]) -> list[str]:
    """A paragraph outside of the sections; its indented lines are shown literally."""
    if ITEM.match(lines[0].lstrip()):
        return [*map(escaped, lines), ""]
    result: list[str] = []
    for indented, group in groupby(lines, key=lambda line: indent_of(line) > 0):
        block = list(group)
        result += literal(block) if indented else [*map(escaped, block), ""]
    return result


def references(lines: list[str]) -> list[str]:
    """The papers of a section `References:` as a list; continued lines are indented further."""
    text = textwrap.dedent("\n".join(lines))
    papers = re.split(r"\n(?=\S)", text)
    return [f"- {escaped(' '.join(paper.split()))}" for paper in papers] + [""]


def converted(lines: list[str]) -> list[str]:
    """A docstring as reStructuredText."""
    result: list[str] = []
    section = ""
    for block in paragraphs("\n".join(lines)):
        if not indent_of(block[0]):
            match = SECTION.match(block[0])
            section = match[1] if match else ""
        if block[0].lstrip().startswith(">>>"):
            result += [*block, ""]
        elif section == "References":
            body = block[1:] if SECTION.match(block[0]) else block
            result += [".. rubric:: References", ""] if body is not block else []
            result += references(body) if body else []
        elif section:
            result += [*map(escaped, block), ""]
        else:
            result += prose(block)
    return result


def convert(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Convert one docstring in place."""
    lines[:] = converted(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the conversion, which runs before napoleon's."""
    app.connect("autodoc-process-docstring", convert, priority=400)
    return {"parallel_read_safe": True}
