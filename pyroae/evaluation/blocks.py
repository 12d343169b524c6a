"""Split the data of an evaluation into blocks that fit into a processor's cache, with own seeds."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyroae.compilation.bernoulli_rows import ROWS
from pyroae.programs.arguments import Arguments

CHUNK = 2**21
"""The number of elements in the largest tensor of one chunk, which fits into a CPU's cache."""


FOR_GPU = 32
"""The factor of `CHUNK` on a GPU, where each kernel needs a few microseconds to launch."""


FOR_CORE = 2
"""The divisor of `CHUNK` for compiled code, which runs on a single core, part by part."""


Data = Tensor | dict[str, Any] | tuple[Any, ...]
"""One argument of model and guide, or a tuple of all positional ones.

An argument is a tensor `[N, ...]`, one row per datum, or a dict of such tensors.
"""


def arguments_of(x: Data) -> tuple[Tensor, ...]:
    """List the arguments of model and guide.

    Args:
        x: One argument, or a tuple of all of them.

    Returns:
        The tensors, `[N, ...]` each.

    Raises:
        DataError: If they are not tensors of equal length.

    >>> import torch
    >>> len(arguments_of(torch.zeros(3, 4))), len(arguments_of((torch.zeros(3), torch.ones(3))))
    (1, 2)
    """
    return Arguments(x if isinstance(x, tuple) else (x,)).tensors


def blocks(args: tuple[Tensor, ...], size: int) -> Iterator[tuple[Tensor, ...]]:
    """Split all arguments into blocks.

    Args:
        args: Tensors `[N, ...]`.
        size: The number of data in a block.

    Yields:
        Tensors `[n, ...]` of the next block, n ≤ size.

    >>> import torch
    >>> [len(part[0]) for part in blocks((torch.zeros(5),), 2)]
    [2, 2, 1]
    """
    yield from zip(*(arg.split(size) for arg in args), strict=True)


def spans(num_data: int, size: int) -> list[range]:
    """List the indices of the data of each block.

    Args:
        num_data: N.
        size: The number of data in a block.

    Returns:
        One range for each block, in order.

    >>> spans(5, 2)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    return [range(first, min(first + size, num_data)) for first in range(0, num_data, size)]


def part_of(args: tuple[Tensor, ...], span: range) -> tuple[Tensor, ...]:
    """Select the arguments of one block.

    Args:
        args: Tensors `[N, ...]`.
        span: The indices of the data of the block.

    Returns:
        Tensors `[len(span), ...]`, views of the arguments.
    """
    return tuple(arg[span.start : span.stop] for arg in args)


def base_seed(seed: int | None) -> int:
    """Choose the seed from which the seeds of all blocks are derived.

    Args:
        seed: The seed, or None.

    Returns:
        The given seed, or a draw from torch's generator.
    """
    return int(torch.randint(2**63 - 1, ())) if seed is None else int(seed)


def block_seed(seed: int, first: int, *stage: int) -> int:
    """Derive the seed of a block.

    It depends neither on the process that computes the block nor on the blocks before it.

    Args:
        seed: The seed of all blocks, as of `base_seed`.
        first: The index of the first datum of the block.
        stage: Further indices, for repeated draws or for chunks of the same block.

    Returns:
        A number from 0 to 2⁶³ − 1.

    >>> block_seed(0, 0) != block_seed(0, 1) != block_seed(0, 1, 1)
    True
    >>> block_seed(3, 8) == block_seed(3, 8)
    True
    """
    # The words of SeedSequence(seed, spawn_key=(first, *stage)), which takes twice the time.
    words = np.array([seed % 2**32, seed // 2**32 % 2**32, 0, 0, first, *stage], np.uint32)
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def part_seed(seed: int | tuple[int, ...], first: int, *stage: int) -> int:
    """Derive the seed of a part of the data.

    Args:
        seed: The seed of all data, or that of each datum, `[N]`, for parts of one datum.
        first: The index of the first datum of the part.
        stage: As of `block_seed`.

    Returns:
        A number from 0 to 2⁶³ − 1. With a seed for each datum it does not depend on `first`.

    >>> part_seed((4, 7), 1) == part_seed((7,), 0) == block_seed(7, 0)
    True
    """
    return (
        block_seed(seed, first, *stage)
        if isinstance(seed, int)
        else block_seed(seed[first], 0, *stage)
    )


def rows_of(args: tuple[Tensor, ...], compiled: bool = False) -> int:
    """Compute the number of pairs of a datum and a particle in one chunk.

    Compiled code on a CPU takes a multiple of the rows that a kernel takes at a time.

    Args:
        args: Tensors `[N, ...]`; the size of a datum is that of the first tensor.
        compiled: Whether the draws are compiled.

    Returns:
        A number of at least 64.
    """
    on_cpu, numel = args[0].device.type == "cpu", max(256, args[0][0].numel())
    if on_cpu and compiled:
        return max(2, math.ceil(CHUNK / FOR_CORE / numel / ROWS)) * ROWS
    return max(64, (CHUNK if on_cpu else CHUNK * FOR_GPU) // numel)
