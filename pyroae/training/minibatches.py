"""Serve the batches of a training, single or in groups of one size."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyroae.config import TrainConfig
from pyroae.data.batching import rows_of_batch, served
from pyroae.data.dataset import Dataset
from pyroae.programs.arguments import Arguments
from pyroae.programs.pair import like_parameters
from pyroae.runtime.processes import Share

Batch = tuple[tuple[Tensor, ...], int]
"""This process's share of a batch, arguments of shape [B / world, ...], and the full size B."""


@dataclass(frozen=True)
class Minibatches:
    """The batches of a training; each epoch's order depends on the seed and the epoch alone.

    Attributes:
        data: the training data.
        config: the configuration: `batch_size` and `seed`.
        system: batches have the device and the precision of its parameters.
        device: where batches are gathered.
        share: this process's share of each batch.
    """

    data: Dataset | Arguments
    config: TrainConfig
    system: nn.Module
    device: torch.device
    share: Share

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of an epoch.

        Args:
            epoch: counted from 1.
            start: the number of batches to leave out at the beginning.

        Yields:
            This process's share of a batch, and the size of the full batch.
        """
        config = self.config
        batches = served(
            self.data,
            config.batch_size,
            seed=config.seed,
            epoch=epoch,
            device=self.device,
            start=start,
            share=self.share,
        )
        for number, args in enumerate(batches, start):
            size = min(config.batch_size, len(self.data) - number * config.batch_size)
            yield like_parameters(self.system, args), size

    def groups(self, epoch: int, start: int, most: int, total: int) -> Iterator[list[Batch]]:
        """Iterate over the batches of an epoch in groups of one size, for steps in one launch.

        Args:
            epoch: counted from 1.
            start: the number of batches to leave out at the beginning.
            most: the largest number of batches of a group.
            total: the number of steps that are left; no group passes it.

        Yields:
            Consecutive batches of one size.
        """
        return grouped(self.epoch(epoch, start), lambda batch: batch[1], most, total)

    def rows(self, epoch: int, number: int) -> tuple[int, ...]:
        """Return the rows of the training data that a batch consists of.

        Args:
            epoch: counted from 1.
            number: the batch of the epoch, counted from 0.

        Returns:
            Row numbers; empty if there is no such batch.
        """
        config = self.config
        return tuple(rows_of_batch(self.data, config.batch_size, config.seed, epoch, number))


def grouped[T](
    batches: Iterable[T], size: Callable[[T], int], most: int, left: int
) -> Iterator[list[T]]:
    """Iterate over batches, in their order, in groups of one size.

    Args:
        batches: the batches.
        size: returns the size of a batch.
        most: the largest number of batches of a group.
        left: a group ends after this number of batches in all.

    Yields:
        Consecutive batches of one size.

    >>> list(grouped([5, 5, 5, 5, 2], lambda n: n, most=3, left=10))
    [[5, 5, 5], [5], [2]]
    """
    group: list[T] = []
    for batch in batches:
        if group and size(batch) != size(group[0]):
            yield group
            left, group = left - len(group), []
        group.append(batch)
        if len(group) >= min(most, left):
            yield group
            left, group = left - len(group), []
    if group:
        yield group
