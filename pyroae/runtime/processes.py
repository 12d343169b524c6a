"""Divide batches among processes and gather their results."""

import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Share:
    """The contiguous part of every batch that one process receives.

    Attributes:
        rank: The number of the process; the parts are in the order of the ranks.
        world: The number of processes.

    >>> [Share(rank, 2).of(5) for rank in (0, 1)]
    [slice(0, 3, None), slice(3, 5, None)]
    """

    rank: int = 0
    world: int = 1

    def of(self, size: int) -> slice:
        """Return the part of a batch.

        Args:
            size: The number of data in the batch, B.

        Returns:
            The rows of this process, between B // world and one more of them. If there are fewer
            data than processes, each of the last processes repeats the last datum.
        """
        each, more = divmod(size, self.world)
        start = self.rank * each + min(self.rank, more)
        stop = start + each + (self.rank < more)
        return slice(start, stop) if start < stop else slice(size - 1, size)

    def weight(self, size: int) -> float:
        """Return the weight of the part's mean in the mean over processes.

            weight = world · n / B,

        where n is the number of data of the part, so that the mean over processes of the weighted
        means is the mean over the batch.

        Args:
            size: The number of data in the batch, B.

        Returns:
            The weight; 0 for a process that repeats the last datum.

        >>> [Share(rank, 2).weight(5) for rank in (0, 1)], Share(1, 2).weight(1)
        ([1.2, 0.8], 0.0)
        """
        each, more = divmod(size, self.world)
        return (each + (self.rank < more)) * self.world / size

    def gather(self, value: Any) -> list[Any]:
        """Gather the values of all processes. Collective: call it on every rank.

        Args:
            value: The value of this process.

        Returns:
            The values of all processes, in the order of their ranks.

        >>> Share().gather("result")
        ['result']
        """
        if self.world == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values


def is_first() -> bool:
    """Tell whether this process writes and prints: the only process, or that of rank 0.

    Returns:
        Whether the rank is 0, or torch's process group is not initialized.
    """
    from torch import distributed

    return (
        not (distributed.is_available() and distributed.is_initialized())
        or distributed.get_rank() == 0
    )


WHOLE = Share()
"""The share of a single process: the whole batch."""


def say(text: str) -> None:
    """Print a line on stdout, on the first process only.

    Args:
        text: The line.
    """
    if is_first():
        print(text, file=sys.stdout, flush=True)
