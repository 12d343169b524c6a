"""Processes that work on the same thing: which part of a batch is whose, and what all of them have found."""

import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Share:
    """The part of every batch that process `rank` of `world` takes: contiguous, in the order of the ranks.

    >>> [Share(rank, 2).of(5) for rank in (0, 1)]
    [slice(0, 3, None), slice(3, 5, None)]
    """

    rank: int = 0
    world: int = 1

    def of(self, size: int) -> slice:
        """The part of so many data. Where there are fewer data than processes, the last ones take the last datum again."""
        each, more = divmod(size, self.world)
        start = self.rank * each + min(self.rank, more)
        stop = start + each + (self.rank < more)
        return slice(start, stop) if start < stop else slice(size - 1, size)

    def weight(self, size: int) -> float:
        """What the mean over the part counts in the mean over processes, so that this is the mean over all the data.

        >>> [Share(rank, 2).weight(5) for rank in (0, 1)], Share(1, 2).weight(1)
        ([1.2, 0.8], 0.0)
        """
        each, more = divmod(size, self.world)
        return (each + (self.rank < more)) * self.world / size

    def gather(self, value: Any) -> list[Any]:
        """What every process found, in the order of their ranks; each has to call it."""
        if self.world == 1:
            return [value]
        from torch import distributed

        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, value)
        return found


def is_first() -> bool:
    """Whether this is the process that writes and prints: the only one, or that of rank 0."""
    from torch import distributed

    return (
        not (distributed.is_available() and distributed.is_initialized())
        or distributed.get_rank() == 0
    )


WHOLE = Share()
"""Of one process."""


def say(text: str) -> None:
    """One line of what a command has to say, of several processes once."""
    if is_first():
        print(text, file=sys.stdout, flush=True)
