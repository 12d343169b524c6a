"""What data are conditioned on: their labels as one-hot vectors, or columns of a table."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from pyroae.data.arrays import Source
from pyroae.errors import ConfigError, DataError, unknown_name

FROM_LABELS = "labels"
"""The name of the condition that is made of the labels."""


MISSING = ("", "nan", "None", "<NA>", "NaT")
"""Texts of labels that are missing."""


UNLABELLED = "-1"
"""The label of data without a label, where labels may be missing."""


@dataclass(frozen=True)
class Conditioning:
    """How the condition c of each datum is made.

        labels: c_n = e_j where label n is class j;   columns: c_n = the values of the columns,
                                                      one-hot vectors of columns of categories

    Attributes:
        columns: Names of columns of a table, which become c unchanged and are no longer features;
            empty for labels.
        classes: The labels that have a place in the one-hot vector, in its order; by default all
            that occur, in numeric or alphabetic order.
        optional: Whether labels may be missing or -1; such data have c = 0.

    >>> Conditioning.named("age, height").columns, Conditioning.named("labels").columns
    (('age', 'height'), ())
    """

    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    optional: bool = False

    @classmethod
    def named(cls, text: str) -> "Conditioning":
        """Return the condition that a text names.

        Args:
            text: `labels`, or names of columns, separated by commas.

        Returns:
            The condition.

        Raises:
            ConfigError: A name is empty, or given twice.
        """
        names = tuple(name.strip() for name in text.split(","))
        if not all(names) or len(set(names)) < len(names):
            raise ConfigError(
                f"a condition is '{FROM_LABELS}', or different names of columns separated by "
                f"commas, not '{text}'"
            )
        if FROM_LABELS in names and len(names) > 1:
            raise ConfigError(
                f"a condition is made either of the labels or of columns, not of both: '{text}'"
            )
        return cls() if names == (FROM_LABELS,) else cls(names)


@dataclass(frozen=True)
class Condition:
    """The conditions of N data.

    Attributes:
        values: c, `[N, C]`, float64.
        names: The name of each element of c: a class, or a column.
    """

    values: np.ndarray
    names: tuple[str, ...]


def separated(source: Source, how: Conditioning) -> tuple[Source, Condition]:
    """Separate the condition from the features.

    Args:
        source: The values `[N, ...]`, with labels or named columns.
        how: What the condition is made of.

    Returns:
        The source without the columns of the condition, and the condition of its N data.

    Raises:
        DataError: If there are no labels, or no column of that name; if a label is missing or has
            no place in `how.classes`; if a value of a column is not finite; or if no feature is
            left.

    >>> source = Source("people", np.array([[1.0, 30.0], [2.0, 40.0]]), columns=("x", "age"))
    >>> rest, condition = separated(source, Conditioning(("age",)))
    >>> rest.columns, condition.values.tolist()
    (('x',), [[30.0], [40.0]])
    """
    if not how.columns:
        if source.labels is None:
            raise DataError(f"{source.name} has no labels to be conditioned on")
        return source, one_hot(source.labels, how, source.name)
    for name in how.columns:
        if name not in source.columns:
            raise _no_column(source, name)
    chosen = [source.columns.index(name) for name in how.columns]
    kept = [i for i in range(len(source.columns)) if i not in chosen]
    if not kept:
        raise DataError(f"all columns of {source.name} are in the condition: no feature is left")
    values = source.values[:, chosen].astype(np.float64)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = wrong[0]
        raise DataError(
            f"{source.name} cannot be conditioned on: the column '{how.columns[column]}' of datum "
            f"{row} is {values[row, column]}"
        )
    columns = tuple(source.columns[i] for i in kept)
    categories = {name: source.categories[name] for name in columns if name in source.categories}
    rest = replace(source, values=source.values[:, kept], columns=columns, categories=categories)
    return rest, _of_columns(values, how.columns, source.categories)


def _of_columns(
    values: np.ndarray, columns: tuple[str, ...], categories: Mapping[str, tuple[str, ...]]
) -> Condition:
    """Columns as a condition: numbers unchanged, codes of categories as one-hot vectors."""
    parts, names = [], []
    for name, column in zip(columns, values.T, strict=True):
        levels = categories.get(name, ())
        parts.append(column[:, None] == np.arange(len(levels)) if levels else column[:, None])
        names += [f"{name}={level}" for level in levels] or [name]
    return Condition(np.concatenate(parts, axis=1).astype(np.float64), tuple(names))


def _no_column(source: Source, name: str) -> Exception:
    if not source.columns:
        return DataError(
            f"{source.name} has no named columns, so none is '{name}': condition on "
            f"'{FROM_LABELS}', or give a table"
        )
    return unknown_name(f"column of {source.name}", name, source.columns)


def one_hot(labels: np.ndarray, how: Conditioning, name: str) -> Condition:
    """Return labels as one-hot vectors.

    Args:
        labels: The labels `[N]`.
        how: The classes, and whether labels may be missing.
        name: The name of the data in messages.

    Returns:
        One-hot vectors, zero where a label is missing, and the classes.

    Raises:
        DataError: A label is missing, or is none of the classes; or there is no label.

    >>> one_hot(np.array(["b", "a"]), Conditioning(), "data").values.tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    texts = np.array([label_text(label) for label in labels.tolist()])
    if how.optional:
        texts[texts == UNLABELLED] = ""
    absent = np.flatnonzero(texts == "")
    if len(absent) and not how.optional:
        raise DataError(
            f"the label of datum {absent[0]} of {name} is missing: a condition needs the label of "
            "every datum"
        )
    classes = how.classes or _sorted(set(texts.tolist()) - {""})
    if not classes:
        raise DataError(f"every label of {name} is missing")
    places = {text: j for j, text in enumerate(classes)} | {"": -1}
    unseen = np.flatnonzero(~np.isin(texts, list(places)))
    if len(unseen):
        raise DataError(
            f"the label '{texts[unseen[0]]}' of datum {unseen[0]} of {name} was never seen in "
            f"training, whose labels are {', '.join(classes)}"
        )
    index = np.array([places[text] for text in texts.tolist()])
    return Condition((index[:, None] == np.arange(len(classes))).astype(np.float64), classes)


def label_text(label: object) -> str:
    """Return a label as text, by which labels of different types are compared.

    Args:
        label: A number, a text, or a missing value.

    Returns:
        The text; empty for None, NaN and an empty text.

    >>> label_text(3), label_text(3.0), label_text("cat"), label_text(float("nan"))
    ('3', '3', 'cat', '')
    """
    whole = isinstance(label, float) and label.is_integer()
    text = str(int(label) if whole else label).strip()  # type: ignore[call-overload]
    return "" if text in MISSING else text


def _sorted(classes: set[str]) -> tuple[str, ...]:
    """Numbers by size, other texts by the alphabet."""
    try:
        return tuple(sorted(classes, key=float))
    except ValueError:
        return tuple(sorted(classes))
