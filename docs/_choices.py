"""Writes docs/choices.md, the table of all choices, from the registries and their docstrings.

python docs/_choices.py
"""

import inspect
import re
from pathlib import Path
from typing import Any

from pyroae.autoencoder.hierarchies import HIERARCHIES
from pyroae.corruptions import CORRUPTIONS
from pyroae.likelihoods import LIKELIHOODS
from pyroae.nn import MAPS
from pyroae.objectives import BOUNDS, GRADIENTS, OBJECTIVES
from pyroae.posteriors import POSTERIORS
from pyroae.priors import PRIORS
from pyroae.registry import Registry
from pyroae.zoo import SYSTEMS

PAGE = Path(__file__).parent / "choices.md"
TITLES: dict[str, tuple[str, Registry[Any]]] = {
    "Systems": ("--system", SYSTEMS),
    "Priors": ("--prior", PRIORS),
    "Posteriors": ("--posterior", POSTERIORS),
    "Likelihoods": ("--likelihood", LIKELIHOODS),
    "Corruptions": ("--corruption", CORRUPTIONS),
    "Hierarchies": ("--hierarchy", HIERARCHIES),
    "Maps": ("--map", MAPS),
    "Objectives": ("--objective", OBJECTIVES),
    "Bounds": ("--bound", BOUNDS),
    "Gradients": ("--gradient", GRADIENTS),
}
GIVEN = ("data", "latent", "choices", "num_particles", "self")
"""Parameters of a choice that other options give."""
INTRODUCTION = """\
# Every choice

This page is generated from the registries by `docs/_choices.py`. A choice is written `name`, or
`name:key=value,key=value` with settings in place of the defaults below; a user's own choices have
names in the same way ([your own choices](own-choice.md)).
"""


def page() -> str:
    """The text of docs/choices.md."""
    parts = [INTRODUCTION]
    for title, (flag, registry) in TITLES.items():
        rows = [row(name, choice) for name, choice in registry.items() if is_own(choice)]
        head = f"| `{flag}` | settings | what it is | source |\n|---|---|---|---|"
        parts.append("\n".join([f"## {title}\n", head, *rows, ""]))
    return "\n".join(parts)


def is_own(choice: Any) -> bool:
    """Whether a choice is of this package, and not registered by a test or a plugin."""
    return str(choice.__module__).startswith("pyroae.")


def row(name: str, choice: Any) -> str:
    """One row of a table."""
    text = inspect.getdoc(choice) or ""
    sentence = " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")
    return f"| `{name}` | {settings(choice)} | {sentence} | {sources(text)} |"


def settings(choice: Any) -> str:
    """The settings of a choice with their defaults."""
    found = []
    for parameter in inspect.signature(choice).parameters.values():
        if parameter.name in GIVEN:
            continue
        default = parameter.default
        if default is inspect.Parameter.empty:
            found.append(f"`{parameter.name}`")
        elif default is not None:
            found.append(f"`{parameter.name}={plain(default)}`")
        else:
            found.append(f"`{parameter.name}`")
    return ", ".join(found)


def plain(value: Any) -> str:
    """A default as it is written on the command line."""
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def sources(text: str) -> str:
    """Authors and years of the papers that a docstring names."""
    references = re.search(r"\nReferences:\n(.*?)(?=\n\S|\Z)", text, re.DOTALL)
    if references is None:
        return ""
    found = re.findall(r"^ {4}(\S[^\n]*?)[ (](\d{4})\b", references[1], re.MULTILINE)
    return "; ".join(f"{authors} {year}" for authors, year in found)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
