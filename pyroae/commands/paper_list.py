"""The command `papers --list`, and the check of names: without torch."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from pyroae._names import PAPERS
from pyroae.errors import ConfigError
from pyroae.names import REGISTRIES, check_name, names_of


def list_papers() -> None:
    """Print the papers that can be measured again, with their data and times.

    >>> list_papers()  # doctest: +ELLIPSIS
    papers ...
    """
    table = Table(title="papers", title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for column in ("", "reference", "data", "short", "full"):
        table.add_column(column, overflow="fold")
    for name in names_of("paper"):
        reference, title, *others = _listed(name)
        table.add_row(name, f"{reference}: {title}", *others)
    Console().print(table)


def _listed(name: str) -> tuple[str, ...]:
    """What the list says of a paper; those of a user's own module are in the registry."""
    return PAPERS[name] if name in PAPERS else REGISTRIES["paper"].parse(name).listed


def check_papers(names: Sequence[str]) -> None:
    """Refuse names that no paper has, before anything is loaded.

    Args:
        names: The names; `all` for every paper.

    Raises:
        ConfigError: For no name, and for the first unknown one.

    >>> check_papers(["burda-2015"])
    Traceback (most recent call last):
    pyroae.errors.ConfigError: unknown paper 'burda-2015': did you mean 'burda-2016'? Known: ...
    """
    if not names:
        raise ConfigError(f"name a paper, or all: {', '.join(names_of('paper'))}")
    for name in names:
        if name != "all":
            check_name("paper", name)
