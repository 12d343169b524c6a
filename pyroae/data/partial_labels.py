"""Hide labels: those of most training data, and those of all data that a system is judged by."""

from dataclasses import replace

import numpy as np
import torch

from pyroae.data.dataset import Dataset
from pyroae.data.loading import Splits
from pyroae.errors import ConfigError, DataError


def partly_labelled(splits: Splits, num_labels: int | None = None, seed: int = 0) -> Splits:
    """Keep the labels of some training data, in equal numbers from each class.

    A hidden label is a condition of 0. Validation and test data lose their condition, so that they
    are evaluated by p(x); their `labels` remain, from which the accuracy is computed.

    Args:
        splits: Data whose condition is one-hot labels, 0 where they are missing.
        num_labels: The number of labels that are kept; None for all.
        seed: The seed of the choice, whose bits are the same on every machine.

    Returns:
        The splits with hidden labels.

    Raises:
        DataError: The data have no condition, or fewer labels.
        ConfigError: `num_labels` is below the number of classes.

    References:
        Kingma, Rezende, Mohamed & Welling 2014, Semi-Supervised Learning with Deep Generative
        Models.

    >>> from pyroae.data.loading import load
    >>> digits = partly_labelled(load("digits", condition="labels"), num_labels=100)
    >>> digits.train.condition.sum(0).tolist() == [10.0] * 10, digits.test.condition
    (True, None)
    """
    train = splits.train if num_labels is None else _kept(splits.train, num_labels, seed)
    if train.condition is None:
        raise DataError(f"{train.name} has no labels to be learned from")
    held_out = [
        None if part is None else replace(part, condition=None)
        for part in (splits.valid, splits.test)
    ]
    return replace(splits, train=train, valid=held_out[0], test=held_out[1])


def _kept(train: Dataset, num_labels: int, seed: int) -> Dataset:
    if train.condition is None:
        raise DataError(f"{train.name} has no labels to be learned from")
    labelled = np.flatnonzero(train.condition.sum(1).numpy() > 0)
    classes = train.condition.shape[1]
    if num_labels < classes:
        raise ConfigError(f"num_labels must be at least the number of classes, {classes}")
    if num_labels > len(labelled):
        raise DataError(
            f"{train.name} has {len(labelled)} labelled training data, fewer than num_labels of "
            f"{num_labels}"
        )
    order = labelled[np.argsort(np.random.PCG64(seed).random_raw(len(labelled)), kind="stable")]
    of_class = train.condition[order].argmax(1).numpy()
    ranks = np.empty(len(order), dtype=int)
    for one in range(classes):
        places = np.flatnonzero(of_class == one)
        ranks[places] = np.arange(len(places))
    chosen = order[np.lexsort((of_class, ranks))[:num_labels]]
    keep = torch.zeros(len(train), 1, dtype=train.condition.dtype)
    keep[chosen] = 1
    return replace(train, condition=train.condition * keep)
