"""Kernels of a CPU's core that Python calls, and whether they are used on this machine.

Each is compared with torch's operations in a small example.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pyroae.compilation import bernoulli_rows, normal_noise
from pyroae.compilation.bernoulli_rows import BernoulliRows, Layer
from pyroae.compilation.step_loop import have_kernels, kernel_address


@cache
def can_sum_rows() -> bool:
    """Tell whether the kernel of Bernoulli sums is used.

    Returns:
        Whether its sums for a small example are those of torch's operations.
    """
    if not have_kernels():
        return False
    sizes, generator = (3, 18, 5), torch.Generator().manual_seed(0)
    shapes = [*pairwise(sizes), sizes[1:2], sizes[2:], (2, 5), (70, 3)]
    *inputs, rows = (torch.randn(shape, generator=generator) for shape in shapes)
    layers = Layer(0, 2, torch.ops.aten.tanh.default), Layer(1, 3)
    sums, result = BernoulliRows(layers, 4), torch.zeros(len(rows))
    add_sums(sums, inputs, rows, result)
    return torch.allclose(result, sums(inputs, rows), atol=1e-3, rtol=0)


def add_sums(sums: BernoulliRows, inputs: Sequence[Tensor], rows: Tensor, result: Tensor) -> None:
    """Add Bernoulli sums by the kernel.

    Args:
        sums: The layers.
        inputs: The inputs that they refer to.
        rows: h `[R, n]`, contiguous.
        result: `[R]`, contiguous, changed in place.
    """
    kernel = _function(bernoulli_rows.ENTRY, *[ctypes.c_void_p] * 3)
    prepared = sums.of(inputs, len(rows))
    kernel(ctypes.addressof(prepared.arguments), rows.data_ptr(), result.data_ptr())


@cache
def can_fill_normals() -> bool:
    """Tell whether `fill_normals` makes the noise of this torch.

    Returns:
        Whether its numbers are torch's for an example.
    """
    if not have_kernels():
        return False
    found, wanted = ([torch.empty(n) for n in (16, 700, 61)] for _ in range(2))
    seed = 2**62 + 5
    fill_normals(found, seed)
    generator = torch.Generator().manual_seed(seed)
    for tensor in wanted:
        tensor.normal_(generator=generator)
    return all(
        torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(found, wanted, strict=True)
    )


def fill_normals(tensors: Sequence[Tensor], seed: int) -> None:
    """Draw standard normal noise from torch's generator with a seed.

    Args:
        tensors: Tensors that are filled in turn, as of `normal_noise.is_standard_normal`.
        seed: The seed.
    """
    n = len(tensors)
    addresses = (ctypes.c_void_p * n)(*(t.data_ptr() for t in tensors))
    counts = (ctypes.c_int64 * n)(*(t.numel() for t in tensors))
    types = [ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    fill = _function(normal_noise.ENTRY, *types)
    fill(seed, ctypes.addressof(addresses), ctypes.addressof(counts), n)


@cache
def _function(entry: str, *types: Any) -> Callable[..., None]:
    """A kernel as a function of Python."""
    return ctypes.CFUNCTYPE(None, *types)(kernel_address(entry))
