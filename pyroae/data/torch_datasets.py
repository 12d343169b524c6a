"""Datasets and loaders of torch, read item by item."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from pyroae.data.archives import role_of
from pyroae.data.arrays import Source, array_of, labels_of
from pyroae.data.member_names import NO_LABELS, place_of
from pyroae.errors import DataError
from pyroae.runtime.files import words
from pyroae.runtime.randomness import fork_all_random


def read_tensor_dataset(dataset: TensorDataset, label: str | None = None) -> Source:
    """Read a TensorDataset of the values, or of values and labels.

    Args:
        dataset: One or two tensors `[N, ...]`.
        label: None: tensors have no names.

    Returns:
        The values and the labels.

    Raises:
        DataError: If there are more than two tensors.
    """
    tensors = dataset.tensors
    if not 1 <= len(tensors) <= 2:
        raise DataError(
            f"a tuple of {len(tensors)} is not data: a TensorDataset holds the values, or the "
            "values and the labels"
        )
    labels = labels_of(tensors[1]) if len(tensors) == 2 else None
    return Source("array", array_of(tensors[0]), labels)


def read_dataset(dataset: Any, label: str | None = None) -> Source:
    """Read a dataset of torch with numbered items, once and in their order.

    An item is x, the tuple (x, y), or a dict with x and y. Random transforms draw with a fixed
    seed, so that a dataset is always read as the same values.

    Args:
        dataset: N items; each x is an array, a tensor or an image.
        label: The key of the labels in items that are dicts.

    Returns:
        The values `[N, ...]` and the labels `[N]`.

    Raises:
        DataError: If the dataset has no length or no items, an item cannot be read, or its x has
            another shape than that of item 0.

    >>> read_dataset([(torch.tensor([0.0, 1.0]), 3), (torch.tensor([2.0, 3.0]), 4)]).labels
    array([3, 4])
    """
    title = f"the {type(dataset).__name__}"
    try:
        count = len(dataset)
    except TypeError:
        raise DataError(
            f"{title} has no length: give a list of its items, as in "
            "list(itertools.islice(dataset, 10_000))"
        ) from None
    if not count:
        raise DataError(f"{title} is empty: it has no items")
    with fork_all_random(torch.device("cpu"), 0):
        items = (_item(title, dataset, number, label) for number in range(count))
        x, y = next(items)
        values, labels = np.empty((count, *x.shape), x.dtype), [y]
        values[0] = x
        for number, (one, label_of_one) in enumerate(items, start=1):
            if one.shape != x.shape or (label_of_one is None) != (y is None):
                raise DataError(
                    f"item {number} of {title} has the shape {one.shape} and "
                    f"{'no' if label_of_one is None else 'a'} label, item 0 {x.shape} and "
                    f"{'no' if y is None else 'a'} label: all items need one form"
                )
            values[number] = one
            labels.append(label_of_one)
    return Source("array", values, None if y is None else np.asarray(labels))


def _item(title: str, dataset: Any, number: int, label: str | None) -> tuple[np.ndarray, Any]:
    """The values and the label of an item; the label is None where the items have none."""
    try:
        item = dataset[number]
    except Exception as error:  # whatever a user's dataset raises
        raise DataError(
            f"item {number} of {title} cannot be read: {type(error).__name__}: {words(error)}"
        ) from error
    if isinstance(item, dict):
        x, y = _of_dict(title, item, label)
    elif isinstance(item, tuple | list) and _is_pair(item):
        x, y = (*item, None)[:2]
    elif isinstance(item, tuple):
        raise DataError(
            f"item {number} of {title} is a tuple of {len(item)}: give x, (x, y), or a dict of them"
        )
    else:
        x, y = item, None
    return array_of(x), None if y is None else _scalar(title, number, y)


def _is_pair(item: Sequence[Any]) -> bool:
    """Whether an item is (x,) or (x, y), and not a row of numbers."""
    return 1 <= len(item) <= 2 and (isinstance(item, tuple) or np.ndim(item[0]) > 0)


def _of_dict(title: str, item: dict[str, Any], label: str | None) -> tuple[Any, Any]:
    """The values and the label of an item that is a dict."""
    keys = [str(key) for key in item]
    if label not in (None, NO_LABELS):
        place_of(str(label), keys, f"key of the items of {title}")
    roles = {role_of(key): key for key in keys}
    x, y = roles.get(("train", "data")), label or roles.get(("train", "labels"))
    if x is None:
        raise DataError(f"the items of {title} have no key 'x'; theirs are {', '.join(keys)}")
    y = None if y == NO_LABELS else y
    return item[x], None if y is None else item[y]


def _scalar(title: str, number: int, y: Any) -> Any:
    """The label of an item as a number or a text."""
    if isinstance(y, str):
        return y
    array = np.asarray(y.detach().cpu() if torch.is_tensor(y) else y)
    if array.size != 1 or array.dtype.kind == "O":
        raise DataError(
            f"the label of item {number} of {title} has the shape {array.shape}: a label is one "
            "number or text"
        )
    return array.item()


def read_loader(loader: DataLoader, label: str | None = None) -> Source:
    """Read the dataset of a DataLoader; its batch size and its order are not used.

    Args:
        loader: A DataLoader whose sampler draws every item once.
        label: The key of the labels in items that are dicts.

    Returns:
        The values and the labels of its dataset.

    Raises:
        DataError: If the sampler chooses items, or a `collate_fn` changes them; or as in
            `read_dataset`.
    """
    sampler = loader.sampler
    chooses = not isinstance(loader.dataset, IterableDataset) and (
        not isinstance(sampler, SequentialSampler | RandomSampler)
        or (isinstance(sampler, RandomSampler) and sampler.replacement)
        or len(sampler) != len(loader.dataset)  # type: ignore[arg-type]
    )
    if chooses:
        raise DataError(
            f"the {type(sampler).__name__} of the DataLoader does not draw every item once: give "
            "the items that are meant, as torch.utils.data.Subset(dataset, rows)"
        )
    if loader.batch_size is not None and loader.collate_fn is not default_collate:
        raise DataError(
            "the DataLoader has a collate_fn, which may change the items: give a dataset whose "
            "items are the values that are meant"
        )
    warnings.warn(
        f"the dataset of the DataLoader is read; its batch_size={loader.batch_size} and its order "
        "are not taken over: TrainConfig(batch_size=…) sets the batches",
        stacklevel=2,
    )
    return _of_torch(loader.dataset, label)


def _of_torch(dataset: Any, label: str | None) -> Source:
    is_tensors = isinstance(dataset, TensorDataset)
    return (read_tensor_dataset if is_tensors else read_dataset)(dataset, label)
