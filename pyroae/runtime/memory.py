"""Keep freed memory for the next use; do less work at once when memory runs out."""

import gc
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from pyroae.errors import ConfigError

WORDS = (
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
)
"""Parts of the messages of those errors of torch's allocators that are not OutOfMemoryError."""


def machine_memory() -> int:
    """Return the physical memory of the machine.

    Returns:
        Bytes; 2⁶² where the system does not tell.
    """
    if not hasattr(os, "sysconf"):
        return 2**62
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def keep_memory() -> None:
    """Let the allocator of a Linux process use the memory of large freed tensors again.

    glibc returns blocks above a threshold to the system, and every page of the next one costs a
    page fault: a third of the time of an eager likelihood, a quarter of that of a training step of
    many particles. The threshold rises, to at most 32 MiB, with the largest such block that was
    ever freed.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8, device="cpu")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error, or an error in its chain of causes, says that memory ran out.

    Args:
        error: The error.

    Returns:
        Whether one of the errors is a MemoryError, torch's OutOfMemoryError or a RuntimeError of an
        allocator.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes do not match"))
    (True, False)
    """
    link: BaseException | None = error
    while link is not None:
        message = str(link).lower()
        if isinstance(link, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(link, RuntimeError) and any(words in message for words in WORDS):
            return True
        link = link.__cause__ or link.__context__
    return False


@dataclass
class ChunkSize:
    """The amount of work done at once, which is halved when memory runs out.

    Attributes:
        size: The present amount, in units.
        unit: The unit in the plural, for example "draws".
        least: The smallest amount in words, for example "one draw".
        warns: Whether to warn when the amount was reduced.

    >>> chunk_size = ChunkSize(2, "draws", "one draw")
    >>> chunk_size.fitted(lambda size: 10 // size), chunk_size.size
    (5, 2)
    """

    size: int
    unit: str
    least: str
    warns: bool = True

    def fitted[T](self, work: Callable[[int], T]) -> T:
        """Do work for `size` units; as long as memory runs out, halve the size and repeat.

        The reduced size is kept for later calls. A single warning has the first and the last size.

        Args:
            work: A function of the size.

        Returns:
            The result of `work`.

        Raises:
            ConfigError: If memory is too small for a size of 1.
        """
        before = self.size
        while True:
            try:
                result = work(self.size)
                break
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self.size == 1:
                    raise ConfigError(
                        f"memory does not hold {self.least}: "
                        "use a smaller program or a device with more memory"
                    ) from None
            self.size = (self.size + 1) // 2
            _release()
        if self.size < before and self.warns:
            message = (
                f"memory ran out with {before:,} {self.unit} at once: continuing with {self.size:,}"
            )
            warnings.warn(message, stacklevel=3)
        return result


def once[T](work: Callable[[], T], least: str) -> T:
    """Do work that cannot be divided, and report a lack of memory.

    Args:
        work: The function.
        least: The work in words, for the error message.

    Returns:
        The result of `work`.

    Raises:
        ConfigError: If memory runs out.
    """
    return ChunkSize(1, "", least).fitted(lambda _: work())


def _release() -> None:
    """Release the memory of a failed attempt."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
