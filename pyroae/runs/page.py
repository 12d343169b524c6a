"""Parts of the HTML pages of runs and studies: pictures, tips of the glossary, numbers."""

import base64
import io
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape
from PIL import Image

from pyroae.evaluation.labels import (
    PER_SITE,
    PICTURES,
    is_count,
    label_of,
    picture_of,
    picture_rank,
)
from pyroae.runtime.files import guarded

_FOLDER = Path(__file__).parent / "templates"


_DPI = 150
"""Pixels per inch of the pictures; a page has 96."""


@dataclass(frozen=True)
class Shown:
    """A picture of a page.

    Attributes:
        title: Its title.
        text: What is seen in it, in words; empty where nothing is known.
        source: What it is of: data, split, N, weights, method and K; empty if nothing says so.
        image: The PNG, in base64.
        width: Its width on the page, in CSS pixels.
    """

    title: str
    text: str
    source: str
    image: str
    width: int


def write_page(template: str, path: Path, **content: Any) -> Path:
    """Fill in a template and write the page, completely or not at all.

    Args:
        template: The name of a file in `templates/`.
        path: The page.
        content: The variables of the template.

    Returns:
        The path of the page.

    Raises:
        RunError: If it cannot be written.
    """
    pages = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    terms = Terms()
    pages.filters |= {"tips": terms.tips, "number": number, "label": label_of, "code": code}
    pages.tests["count"] = is_count
    text = pages.get_template(template).render(terms=terms, **content)
    guarded(path, lambda file: file.write_text(text, encoding="utf-8"))
    return path


def shown(files: Iterable[Path]) -> list[Shown]:
    """Read pictures for a page.

    Args:
        files: PNG files.

    Returns:
        The pictures in the order of the report, with their titles and captions.
    """
    return [_shown(file) for file in sorted(files, key=lambda file: _place(file.stem))]


def _place(name: str) -> tuple[int, tuple[int, str]]:
    """Training and data first, as `captions.yaml` lists them."""
    known = list(_captions())
    first = [one for one in known if "title" in _captions()[one]]
    return (first.index(name) if name in first else len(first), picture_rank(name))


def _shown(file: Path) -> Shown:
    content = file.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        width = round(image.width * 96 / _DPI)
    found = _caption(file.stem)
    title = found.get("title") or picture_of(file.stem).label
    if file.stem not in PICTURES:
        title = title[:1].upper() + title[1:]
    return Shown(
        title,
        found.get("text", ""),
        texts_in(file).get("Description", ""),
        base64.b64encode(content).decode(),
        width,
    )


def _caption(name: str) -> dict[str, str]:
    """The caption of a picture, also of one site of several: latent_scatter_z2."""
    captions = _captions()
    base = next((one for one in PER_SITE if name.startswith(f"{one}_")), "")
    return captions.get(name) or captions.get(base, {})


@cache
def _captions() -> dict[str, dict[str, str]]:
    return dict(yaml.safe_load((_FOLDER / "captions.yaml").read_text(encoding="utf-8")))


def texts_in(file: Path) -> dict[str, str]:
    """Read the texts that a PNG records.

    Args:
        file: The picture.

    Returns:
        Texts by name; empty for a file that is no PNG.
    """
    try:
        with Image.open(file) as image:
            return {str(name): str(text) for name, text in image.info.items()}
    except (OSError, ValueError, SyntaxError):
        return {}


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """Write a number for a table.

    Args:
        value: The number; None or NaN for nothing.
        digits: Digits after the point.
        sign: Whether a positive number has its sign.

    Returns:
        The number with a minus sign, or an empty text.

    >>> number(-1.25, 1), number(2.0, 2, sign=True), number(math.nan)
    ('−1.2', '+2.00', '')
    """
    if value is None or math.isnan(value):
        return ""
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    return text.replace("-", "−")


def code(text: str) -> Markup:
    """Write a text with `names` between backticks as HTML.

    Args:
        text: The text.

    Returns:
        The same text with elements `<code>`.

    >>> code("the mean of `WakeSleep`")
    Markup('the mean of <code>WakeSleep</code>')
    """
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


@cache
def glossary() -> dict[str, str]:
    """Read the glossary of the documentation.

    Returns:
        Definitions by term, as plain text.

    >>> glossary()["NLL"]
    '−log p(x), as a mean over data.'
    """
    text = (_FOLDER / "glossary.md").read_text(encoding="utf-8")
    found = re.findall(r"^(\S.*)\n: ((?:.+\n)(?:  .+\n)*)", text, re.MULTILINE)
    return {term: _plain(definition) for term, definition in found}


def _plain(markdown: str) -> str:
    """Markdown without links and marks."""
    text = re.sub(r"\s*\(\[page\]\([^)]*\)\)|;\s*\[page\]\([^)]*\)", "", " ".join(markdown.split()))
    return text.replace("`", "")


class Terms:
    """Marks terms of the glossary in texts of a page, and collects those that occur.

    Attributes:
        used: The definitions of the terms so far.

    >>> terms = Terms()
    >>> terms.tips("median ESS")
    Markup('median <abbr title="Effective sample size of importance weights, ...">ESS</abbr>')
    >>> list(terms.used)
    ['ESS']
    """

    def __init__(self) -> None:
        self.used: dict[str, str] = {}

    def tips(self, text: str) -> Markup:
        """Mark the terms in a text.

        Args:
            text: A label or a sentence.

        Returns:
            HTML in which each term has its definition as a tip.
        """
        found = re.sub(_terms(), lambda match: self._tip(match[0]), str(escape(text)))
        return Markup(found)

    def _tip(self, word: str) -> str:
        term = next(one for one in glossary() if re.fullmatch(_form(one), word))
        self.used[term] = glossary()[term]
        return f'<abbr title="{escape(glossary()[term])}">{word}</abbr>'


_NO_TIPS = ("Datum", "Map", "Model", "Score", "Choice", "Bound", "System", "Run", "Nats", "Study")
"""Terms whose words occur in every second sentence."""


@cache
def _terms() -> re.Pattern[str]:
    """A pattern of all terms, the longest first, at the borders of words."""
    terms = sorted((t for t in glossary() if t not in _NO_TIPS), key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(_form, terms))})(?![\w-])")


def _form(term: str) -> str:
    """A pattern of a term: in lower case too if it is a word, and in the plural."""
    first = term[0]
    if term.isupper() or not first.isascii() or len(term) < 3:
        return re.escape(term)
    start = f"[{first}{first.lower()}]" if term[1].islower() else re.escape(first)
    return f"{start}{re.escape(term[1:])}s?"
