"""Turns docstrings, which are plain text with Google-style sections, into reStructuredText."""

import re
import textwrap
from typing import Any

from sphinx.application import Sphinx

SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|References|Examples?|Notes?):$")
CODE = re.compile(r"(`+)(.+?)\1")
SPECIAL = re.compile(r"([*|\\]|(?<=\w)_(?!\w))")


def escaped(line: str) -> str:
    """Return the line with double backticks for code, and markup escaped elsewhere."""
    parts, end = [], 0
    for match in CODE.finditer(line):
        parts += [SPECIAL.sub(r"\\\1", line[end : match.start()]), f"``{match[2]}``"]
        end = match.end()
    return "".join([*parts, SPECIAL.sub(r"\\\1", line[end:])])


def blocks(text: str) -> list[list[str]]:
    """Split a text into paragraphs."""
    return [block.splitlines() for block in re.split(r"\n\s*\n", text.strip("\n")) if block.strip()]


def converted(lines: list[str]) -> list[str]:
    """A docstring as reStructuredText: doctests stay, indented blocks are shown literally.

    Sections of Google style keep their indentation, which napoleon reads.
    """
    result: list[str] = []
    section = False
    for block in blocks("\n".join(lines)):
        indent = len(block[0]) - len(block[0].lstrip())
        if not indent:
            section = bool(SECTION.match(block[0]))
        if block[0].lstrip().startswith(">>>"):
            result += [*block, ""]
        elif indent and not section:
            result += [
                "::",
                "",
                *textwrap.indent(textwrap.dedent("\n".join(block)), "    ").split("\n"),
                "",
            ]
        else:
            result += [*map(escaped, block), ""]
    return result


def convert(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Convert one docstring in place."""
    lines[:] = converted(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the conversion, which runs before napoleon's."""
    app.connect("autodoc-process-docstring", convert, priority=400)
    return {"parallel_read_safe": True}
