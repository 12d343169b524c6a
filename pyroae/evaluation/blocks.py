"""The data of an evaluation: the arguments of any program, cut into blocks that fit a processor's cache."""

from collections.abc import Iterator

from torch import Tensor

from pyroae.data import Arguments

CHUNK = 2**21
"""Numbers in the largest tensor of one chunk: about what stays in a processor's cache."""
FOR_GPU = 32
"""By how much a chunk is larger on a GPU, where each of its kernels takes a few microseconds to launch."""
Data = Tensor | tuple[Tensor, ...]
"""One argument of model and guide, `[N, ...]`, or all of them, a datum a row."""


def arguments_of(x: Data) -> tuple[Tensor, ...]:
    """The arguments of model and guide. Raises DataError where they are no tensors of one length.

    >>> import torch
    >>> len(arguments_of(torch.zeros(3, 4))), len(arguments_of((torch.zeros(3), torch.ones(3))))
    (1, 2)
    """
    return Arguments(x if isinstance(x, tuple) else (x,)).tensors


def blocks(args: tuple[Tensor, ...], size: int) -> Iterator[tuple[Tensor, ...]]:
    """All the arguments, `size` data at a time.

    >>> import torch
    >>> [len(part[0]) for part in blocks((torch.zeros(5),), 2)]
    [2, 2, 1]
    """
    yield from zip(*(arg.split(size) for arg in args), strict=True)


def rows_of(args: tuple[Tensor, ...]) -> int:
    """How many pairs of a datum and a particle make one chunk."""
    size = CHUNK if args[0].device.type == "cpu" else CHUNK * FOR_GPU
    return max(64, size // max(256, args[0][0].numel()))
