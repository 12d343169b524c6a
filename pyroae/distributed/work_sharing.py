"""Work that is dealt to processes, whose results and errors all of them come to know."""

import pickle
from collections.abc import Callable, Sequence
from functools import partial

from pyroae.runtime.processes import Share


def of_all[T](share: Share, part: Callable[[], T]) -> list[T]:
    """What every process's part gives, in the order of their ranks, on each of them; each has to call it.

    An error of one comes up on all, so that none waits for it: the first one's, where there are several.
    """
    if share.world == 1:
        return [part()]
    found: T | None = None
    error: Exception | None = None
    try:
        found = part()
    except Exception as caught:
        error = caught
    parts = share.gather((found, None if error is None else _portable(error)))
    for rank, (_, failed) in enumerate(parts):
        if failed is not None:
            raise error if error is not None and rank == share.rank else failed
    return [result for result, _ in parts]


def everywhere[T](share: Share, part: Callable[[], T]) -> T:
    """What this process's own part gives, where no other has an error; it stays here."""
    found: list[T] = []
    of_all(share, lambda: found.append(part()))
    return found[0]


def agreed[T](share: Share, part: Callable[[], T]) -> T:
    """What the part gives on the first process, when all have done it."""
    return of_all(share, part)[0]


def dealt[P, T](share: Share, pieces: Sequence[P], work: Callable[[P], T]) -> list[T]:
    """What `work` gives for every piece, in their order, on every process: they are dealt in turn, a round at a time.

    The processes meet after each round, so that an error of one does not wait for the work of the others.

    >>> dealt(Share(), [1, 2, 3], lambda piece: piece**2)
    [1, 4, 9]
    """
    found: list[T] = []
    for first in range(0, len(pieces), share.world):
        mine = pieces[first + share.rank : first + share.rank + 1]
        for results in of_all(share, partial(_each, work, mine)):
            found += results
    return found


def _each[P, T](work: Callable[[P], T], pieces: Sequence[P]) -> list[T]:
    return [work(piece) for piece in pieces]


def _portable(error: Exception) -> Exception:
    """The error, where another process can have it; else one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its own constructor has to say
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
