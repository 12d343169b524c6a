"""`.npy` and `.npz` files, and the names of the arrays in an archive."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from pyroae.data.arrays import LABELS, Source, labels_of
from pyroae.errors import DataError

VALUES = ("x", "data", "images", "arr_0")
"""Names of data in an archive, in upper or lower case."""


PART = "train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?"
"""A regular expression for the part of a data set within a name, as in x_train or test_images."""


def read_npy(path: Path) -> Source:
    """Read a `.npy` file into memory.

    Args:
        path: The file.

    Returns:
        The values `[N, ...]`, without labels.

    Raises:
        DataError: If the file is an archive of arrays.
    """
    with path.open("rb") as file:
        values = np.load(file, allow_pickle=False)
        if not isinstance(values, np.ndarray):
            raise DataError(f"'{path}' is an archive of arrays: name it .npz")
        return Source(path.stem, values)


def read_npz(path: Path) -> Source:
    """Read a `.npz` archive into memory; the names of its arrays tell data from labels.

    Args:
        path: The file.

    Returns:
        The values `[N, ...]`, the labels `[N]`, and the validation and test data if the archive has
        them.

    Raises:
        DataError: If there are no data, or the names are ambiguous.
    """
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        names = names_in(f"'{path}'", list(arrays), lambda name: arrays[name].ndim)
        labels = {
            part: labels_of(arrays[name])
            for (part, kind), name in names.items()
            if kind == "labels"
        }
        values = {part: arrays[name] for (part, kind), name in names.items() if kind == "data"}
    sources = {part: Source(path.stem, array, labels.get(part)) for part, array in values.items()}
    return replace(sources["train"], test=sources.get("test"), valid=sources.get("valid"))


def names_in(
    title: str, names: list[str], dims: Callable[[str], int]
) -> dict[tuple[str, str], str]:
    """Find the array of each part (train, valid, test) and kind (data, labels) by its name.

    If no array is named as data, the only one of several dimensions is the data.

    Args:
        title: The name of the archive in error messages.
        names: The names of all arrays.
        dims: The number of dimensions of an array, by its name.

    Returns:
        The names of the arrays by part and kind; other arrays are left out.

    Raises:
        DataError: If there are no training data, a part has labels and no data, or the names are
            ambiguous.

    >>> names_in("a.npz", ["x_train", "y_train", "note"], lambda name: 2)
    {('train', 'data'): 'x_train', ('train', 'labels'): 'y_train'}
    """
    roles: dict[tuple[str, str], str] = {}
    for name in names:
        role = role_of(name)
        if role in roles:
            raise DataError(
                f"{title} holds two arrays of {role[1]}, '{roles[role]}' and '{name}': "
                "remove one, or rename it"
            )
        if role is not None:
            roles[role] = name
    if not any(kind == "data" for _, kind in roles):
        tables = [name for name in names if name not in roles.values() and dims(name) > 1]
        if len(tables) > 1:
            raise DataError(
                f"{title} holds several tables, {', '.join(tables)}: name the one with the data 'x'"
            )
        if tables:
            roles["train", "data"] = tables[0]
    _check_parts(title, names, roles)
    return roles


def _check_parts(title: str, names: list[str], roles: dict[tuple[str, str], str]) -> None:
    """Refuse labels without data, and an archive without training data."""
    for (part, _), name in roles.items():
        if part != "train" and (part, "data") not in roles:
            word = "validation" if part == "valid" else part
            raise DataError(f"{title} holds '{name}', but no {word} data")
    if ("train", "data") not in roles:
        raise DataError(
            f"{title} holds no array named {', '.join(VALUES)}; "
            f"it holds: {', '.join(names) or 'nothing'}"
        )


def role_of(name: str) -> tuple[str, str] | None:
    """Return the part of a data set and the kind of array that a name stands for.

    Args:
        name: The name of an array, such as `x_train`.

    Returns:
        The part, `train`, `valid` or `test`, and the kind, `data` or `labels`; None for other
        names.

    >>> role_of("x_train"), role_of("test_labels"), role_of("Y"), role_of("values")
    (('train', 'data'), ('test', 'labels'), ('train', 'labels'), None)
    """
    prefixed = re.fullmatch(rf"({PART})[_-]?(.*)", name, re.IGNORECASE)
    suffixed = re.fullmatch(rf"(.*?)[_-]?({PART})", name, re.IGNORECASE)
    part, rest = (
        prefixed.groups() if prefixed else suffixed.groups()[::-1] if suffixed else ("train", name)
    )
    part = next(p for p in ("train", "test", "valid") if p.startswith(part.lower()[:3]))
    if rest.lower() in LABELS:
        return part, "labels"
    is_data = rest.lower() in VALUES or not rest or re.fullmatch(r"arr_\d+", rest)
    return (part, "data") if is_data else None
