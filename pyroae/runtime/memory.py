"""Memory: settings that this machine's cannot hold, and work that is done in smaller portions where it runs out."""

import gc
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pyroae.errors import ConfigError

WORDS = (
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
)
"""Of errors of torch's allocators that are no OutOfMemoryError."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, or came up while such a one was handled.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes do not match"))
    (True, False)
    """
    at: BaseException | None = error
    while at is not None:
        told = str(at).lower()
        if isinstance(at, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(at, RuntimeError) and any(words in told for words in WORDS):
            return True
        at = at.__cause__ or at.__context__
    return False


@dataclass
class Portion:
    """How much is done at once: as much as memory is found to hold.

    size: now. unit: of what, in the plural. least: what a portion of one is, in words. warns: whether a smaller one is told.

    >>> portion = Portion(2, "draws", "one draw")
    >>> portion.fitted(lambda size: 10 // size), portion.size
    (5, 2)
    """

    size: int
    unit: str
    least: str
    warns: bool = True

    def fitted[T](self, work: Callable[[int], T]) -> T:
        """What `work` gives for the size, and where memory does not hold it, for a half, and a half of that, with one warning.

        The size stays where it comes to. Raises ConfigError where a portion of one does not fit either.
        """
        before = self.size
        while True:
            try:
                found = work(self.size)
                break
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self.size == 1:
                    told = f"memory does not hold {self.least}: it takes a smaller program or a device with more memory"
                    raise ConfigError(told) from None
            self.size = (self.size + 1) // 2
            _free()
        if self.size < before and self.warns:
            told = f"memory ran out with {before:,} {self.unit} at once: the work goes on with {self.size:,}"
            warnings.warn(told, stacklevel=3)
        return found


def once[T](work: Callable[[], T], least: str) -> T:
    """What work gives that cannot be halved; in words, `least`. Raises ConfigError where memory does not hold it."""
    return Portion(1, "", least).fitted(lambda _: work())


def _free() -> None:
    """Give back what the attempt has left."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
