"""Work divided among processes, with results and errors exchanged between them.

All functions are collective: call them on every rank.
"""

import pickle
from collections.abc import Callable, Sequence
from functools import partial

from pyroae.runtime.processes import Share


def gather_results[T](share: Share, part: Callable[[], T]) -> list[T]:
    """Call a function on every process and gather the results.

    An error on one process is raised on all, so that none waits for it; of several errors, that
    of the lowest rank.

    Args:
        share: Rank of this process, and the number of processes.
        part: The function, without arguments; its result is pickled.

    Returns:
        The results of all processes in the order of their ranks, on each of them.

    Raises:
        Exception: The error of the lowest rank that has one; a RuntimeError with its type and
            message if it cannot be pickled.
    """
    if share.world == 1:
        return [part()]
    own: T | None = None
    error: Exception | None = None
    try:
        own = part()
    except Exception as caught:
        error = caught
    parts = share.gather((own, None if error is None else _portable(error)))
    for rank, (_, failed) in enumerate(parts):
        if failed is not None:
            raise error if error is not None and rank == share.rank else failed
    return [result for result, _ in parts]


def run_on_all[T](share: Share, part: Callable[[], T]) -> T:
    """Call a function on every process, without exchanging the results.

    Args:
        share: Rank of this process, and the number of processes.
        part: The function, without arguments.

    Returns:
        The result of this process's own call.

    Raises:
        Exception: The error of the lowest rank that has one, on all processes.
    """
    results: list[T] = []
    gather_results(share, lambda: results.append(part()))
    return results[0]


def first_result[T](share: Share, part: Callable[[], T]) -> T:
    """Call a function on every process and return the result of the first one.

    Args:
        share: Rank of this process, and the number of processes.
        part: The function, without arguments; its result is pickled.

    Returns:
        The result of rank 0, on every process.

    Raises:
        Exception: The error of the lowest rank that has one, on all processes.
    """
    return gather_results(share, part)[0]


def distribute[P, T](share: Share, pieces: Sequence[P], work: Callable[[P], T]) -> list[T]:
    """Apply a function to pieces of work, which are distributed over the processes in turn.

    The processes exchange results after each round of one piece per process, so that an error of
    one is raised before the work of later rounds.

    Args:
        share: Rank of this process, and the number of processes.
        pieces: The arguments, the same on every process.
        work: The function of one piece; its result is pickled.

    Returns:
        The result of every piece, in their order, on every process.

    Raises:
        Exception: The error of the lowest rank that has one, on all processes.

    >>> distribute(Share(), [1, 2, 3], lambda piece: piece**2)
    [1, 4, 9]
    """
    results: list[T] = []
    for first in range(0, len(pieces), share.world):
        own = pieces[first + share.rank : first + share.rank + 1]
        for part in gather_results(share, partial(_each, work, own)):
            results += part
    return results


def _each[P, T](work: Callable[[P], T], pieces: Sequence[P]) -> list[T]:
    return [work(piece) for piece in pieces]


def _portable(error: Exception) -> Exception:
    """The error if it can be pickled; else a RuntimeError with its type and message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # its own constructor may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
