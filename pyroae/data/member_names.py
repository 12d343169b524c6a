"""Columns of a table and arrays of an archive by name."""

from collections.abc import Sequence
from difflib import SequenceMatcher

from pyroae.errors import DataError, unknown_name

NO_LABELS = "none"
"""The name that says that there are no labels: all columns of a table are features."""


LISTED = 20
"""The number of names that a message lists at most."""


def place_of(name: str, names: Sequence[str], kind: str) -> int:
    """Return the place of a name.

    Args:
        name: The name; upper and lower case count only where names differ in nothing else.
        names: The names that there are.
        kind: What they are names of, for the message.

    Returns:
        The place in `names`.

    Raises:
        DataError: If there is no such name; the message lists the nearest first.

    >>> place_of("Species", ["width", "species"], "column of the table")
    1
    >>> place_of("spices", ["width", "species"], "column of the table")
    Traceback (most recent call last):
    pyroae.errors.DataError: unknown column of the table 'spices': did you mean 'species'? ...
    """
    if name in names:
        return list(names).index(name)
    alike = [i for i, other in enumerate(names) if other.lower() == name.lower()]
    if len(alike) == 1:
        return alike[0]
    nearest = sorted(names, key=lambda other: -_similarity(name, other))
    listed = nearest[:LISTED]
    if len(names) > LISTED:
        listed.append(f"and {len(names) - LISTED} more")
    raise DataError(str(unknown_name(kind, name, listed)))


def _similarity(one: str, other: str) -> float:
    return SequenceMatcher(None, one.lower(), other.lower()).ratio()
