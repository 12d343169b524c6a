"""The data of an evaluation: the arguments of any program, cut into blocks that fit a processor's cache."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyroae.programs.arguments import Arguments

CHUNK = 2**21
"""Numbers in the largest tensor of one chunk: about what stays in a processor's cache."""


FOR_GPU = 32
"""By how much a chunk is larger on a GPU, where each of its kernels takes a few microseconds to launch."""


FOR_CORE = 4
"""By how much it is smaller as compiled code, which a core of a processor goes through by itself."""


Data = Tensor | dict[str, Any] | tuple[Any, ...]
"""One argument of model and guide, a tensor `[N, ...]` or a dict of these, or all positional ones, a datum a row."""


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


def spans(num_data: int, size: int) -> list[range]:
    """Where the blocks of `size` data stand.

    >>> spans(5, 2)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    return [range(first, min(first + size, num_data)) for first in range(0, num_data, size)]


def part_of(args: tuple[Tensor, ...], span: range) -> tuple[Tensor, ...]:
    """The arguments of a block."""
    return tuple(arg[span.start : span.stop] for arg in args)


def base_seed(seed: int | None) -> int:
    """The seed that those of all blocks come from: the one that is given, else a draw of torch's generator."""
    return int(torch.randint(2**63 - 1, ())) if seed is None else int(seed)


def block_seed(seed: int, first: int, *stage: int) -> int:
    """The seed of the block with this first datum, whoever takes it, and after whatever others. stage: where it is taken again.

    >>> block_seed(0, 0) != block_seed(0, 1) != block_seed(0, 1, 1), block_seed(3, 8) == block_seed(3, 8)
    (True, True)
    """
    sequence = np.random.SeedSequence(seed % 2**64, spawn_key=(first, *stage))
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def rows_of(args: tuple[Tensor, ...], compiled: bool = False) -> int:
    """How many pairs of a datum and a particle make one chunk. compiled: of draws that are code."""
    on_cpu = args[0].device.type == "cpu"
    size = CHUNK * FOR_GPU if not on_cpu else CHUNK // FOR_CORE if compiled else CHUNK
    return max(64, size // max(256, args[0][0].numel()))
