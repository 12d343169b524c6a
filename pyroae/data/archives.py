"""`.npy` and `.npz` files, and the names of the arrays in an archive."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pyroae.data.arrays import LABELS, Source, array_of, labels_of
from pyroae.data.member_names import NO_LABELS, place_of
from pyroae.errors import DataError

VALUES = ("x", "data", "images", "arr_0")
"""Names of data in an archive, in upper or lower case."""


SPARSE = {"format", "shape", "data"}
"""Names of arrays in the archive of a sparse matrix, as SciPy saves it."""


type Role = tuple[str, str]
"""A part of the data, train, test or valid, and a kind, data or labels."""


OPTIONS = {"data": "array", "labels": "labels"}
"""The argument that chooses an array of each kind."""


PART = "train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?"
"""A regular expression for the part of a data set within a name, as in x_train or test_images."""


@dataclass(frozen=True)
class Archive:
    """Arrays by name.

    Attributes:
        path: The file.
        shapes: The shape of each array.
        array: Reads the array of a name.
        title: The name in messages; by default the path in quotes.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    array: Callable[[str], np.ndarray]
    title: str = ""

    def __str__(self) -> str:
        return self.title or f"'{self.path}'"

    def source(self, label: str | None = None, array: str | None = None) -> Source:
        """Read the data and the labels; names tell which arrays they are.

        Args:
            label: The name of the array of labels; `none` for data without labels; None to find
                it by its name.
            array: The name of the array of data; None to find it by its name.

        Returns:
            The values `[N, ...]`, the labels `[N]`, and the validation and test data, if any.

        Raises:
            DataError: If there are no data, or the names are ambiguous.
        """
        names = self.roles(label, array)
        labels = {
            part: labels_of(self.array(name))
            for (part, kind), name in names.items()
            if kind == "labels"
        }
        values = {part: self.array(name) for (part, kind), name in names.items() if kind == "data"}
        stem = self.path.stem
        sources = {part: Source(stem, found, labels.get(part)) for part, found in values.items()}
        return replace(sources["train"], test=sources.get("test"), valid=sources.get("valid"))

    def roles(self, label: str | None = None, array: str | None = None) -> dict[Role, str]:
        """Find the array of each part and kind by its name.

        Args:
            label: The name of the array of labels, as in `source`.
            array: The name of the array of data, as in `source`.

        Returns:
            The names of the arrays; arrays of neither kind are left out.

        Raises:
            DataError: If there are no training data, or the names are ambiguous.
        """
        found: dict[Role, list[str]] = {}
        for name in self.shapes:
            if (role := role_of(name)) is not None:
                found.setdefault(role, []).append(name)
        if array is not None:
            found = _chosen(self._named(array), found)
        if label is not None:
            labels = [] if label == NO_LABELS else [self._named(label)]
            found = {role: [n for n in names if n not in labels] for role, names in found.items()}
            found["train", "labels"] = labels
        for (_, kind), names in found.items():
            if len(names) > 1:
                raise DataError(
                    f"{self} holds several arrays of {kind}, {self.listed(*names)}: "
                    f"remove or rename all but one, or choose it by {OPTIONS[kind]}"
                )
        roles = {role: names[0] for role, names in found.items() if names}
        if not any(kind == "data" for _, kind in roles):
            self._add_only_table(roles)
        self._check_parts(roles)
        return roles

    def _named(self, name: str) -> str:
        names = list(self.shapes)
        return names[place_of(name, names, f"array of {self}")]

    def _check_parts(self, roles: dict[Role, str]) -> None:
        """Refuse labels without data, and an archive without training data."""
        for (part, _), name in roles.items():
            if part != "train" and (part, "data") not in roles:
                word = "validation" if part == "valid" else part
                raise DataError(f"{self} holds '{name}', but no {word} data")
        if ("train", "data") not in roles:
            held = ", ".join(f"{name} {shape}" for name, shape in self.shapes.items())
            raise DataError(
                f"{self} holds no array named {', '.join(VALUES)}; it holds: {held or 'nothing'}"
            )

    def _add_only_table(self, roles: dict[Role, str]) -> None:
        """Add the only array of several dimensions as the data."""
        rest = [name for name in self.shapes if name not in roles.values()]
        tables = [name for name in rest if len(self.shapes[name]) > 1]
        if len(tables) > 1:
            raise DataError(
                f"{self} holds several tables, {self.listed(*tables)}: "
                "name the one with the data 'x', or choose it by array"
            )
        if tables:
            roles["train", "data"] = tables[0]

    def listed(self, *names: str) -> str:
        """Return names with the shapes of their arrays, for messages.

        Args:
            *names: Names of arrays.

        Returns:
            The text.

        >>> Archive(Path("a.npz"), {"x": (5, 3)}, np.zeros).listed("x")
        "'x' (5, 3)"
        """
        return ", ".join(f"'{name}' {self.shapes[name]}" for name in names)


def read_npy(path: Path, label: str | None = None) -> Source:
    """Read a `.npy` file into memory.

    Args:
        path: The file; an array with named fields is a table.
        label: The name of the field of labels, as in `columns_of`.

    Returns:
        The values `[N, ...]`; of a table, the labels `[N]` too.

    Raises:
        DataError: If the file is an archive of arrays.
    """
    with path.open("rb") as file:
        values = np.load(file, allow_pickle=False)
    if not isinstance(values, np.ndarray):
        raise DataError(f"'{path}' is an archive of arrays: name it .npz")
    if values.dtype.names:
        import pandas as pd  # takes a second to import

        from pyroae.data.tables import read_table

        return read_table(path.stem, f"'{path}'", pd.DataFrame.from_records(values), label)
    refuse_label(path, label)
    return Source(path.stem, values)


def read_npz(path: Path, label: str | None = None, array: str | None = None) -> Source:
    """Read a `.npz` archive into memory, of NumPy's arrays or of a sparse matrix of SciPy.

    Args:
        path: The file.
        label: The name of the array of labels, as in `Archive.source`.
        array: The name of the array of data.

    Returns:
        The values `[N, ...]`, the labels `[N]`, and the validation and test data, if any.

    Raises:
        DataError: If there are no data, or the names are ambiguous.
    """
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise DataError(f"'{path}' is one array: name it .npy")
        if set(arrays) >= SPARSE:
            refuse_label(path, label)
            from scipy.sparse import load_npz

            return Source(path.stem, array_of(load_npz(path)))
        shapes = {name: arrays[name].shape for name in arrays}
        return Archive(path, shapes, arrays.__getitem__).source(label, array)


def refuse_label(path: Path, label: str | None) -> None:
    """Refuse the name of labels for a file that holds no labels.

    Args:
        path: The file.
        label: The name; None, or `none`, is accepted.

    Raises:
        DataError: If there is a name.
    """
    if label not in (None, NO_LABELS):
        raise DataError(f"'{path}' holds one array without names: it has no labels '{label}'")


def _chosen(name: str, found: dict[Role, list[str]]) -> dict[Role, list[str]]:
    """The arrays that belong to a chosen array of data: its labels, and the test set of x_train."""
    own = role_of(name)
    if own == ("train", "data"):
        return {**found, own: [name]}
    part = own[0] if own is not None and own[1] == "data" else "train"
    labels = [other for other in found.get((part, "labels"), []) if other != name]
    return {("train", "data"): [name], ("train", "labels"): labels}


def role_of(name: str) -> Role | None:
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
