"""Gradients of dense layers and Adam by one Triton kernel.

Each program computes a tile of the gradient of one weight, or a part of that of one bias, in
registers, and changes the parameter, m and v there. The gradients of the layers do not depend on
each other, and are short sums, over a batch. By cuBLAS they are a kernel for each layer, and Adam
reads them again.

Import this module only on a machine with a GPU: it imports Triton.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """Sizes of the tile of one program.

    Attributes:
        height: Rows of a weight.
        width: Columns of a weight.
        depth: Elements of the batch that are read at once.
        warps: Warps of a program.
        early: Whether weight, m and v are read before the product, not after it.
        outer: Whether the product is a sum of outer products, without shared memory.
    """

    height: int
    width: int
    depth: int
    warps: int = 4
    early: bool = True
    outer: bool = False


BIASES = 32
"""Elements of a bias that one program changes."""


def tiles_for(batch: int) -> Tiles:
    """Choose the tiles: small ones are limited by memory, large ones by arithmetic.

    Args:
        batch: The number of terms of a gradient.

    Returns:
        The sizes.
    """
    return Tiles(32, 32, 32) if batch <= 32 else Tiles(32, 64, 32, early=False)


def launch(
    parameters: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    lefts: Sequence[Tensor],
    rights: Sequence[Tensor],
    scales: Sequence[float],
    tf32: bool,
    numbers: Tensor,
    settings: Sequence[float],
) -> None:
    """Launch the kernel on the current stream; the arguments are those of `DENSE_ADAM`.

    Args:
        parameters: Weights `[m, n]` or `[members, m, n]`, then biases, contiguous.
        means: m of each, contiguous.
        squares: v of each, contiguous.
        lefts: `[m, B]` or `[members, m, B]` of each.
        rights: `[B, n]` or `[members, B, n]` of each weight.
        scales: The number that each gradient is multiplied by.
        tf32: Whether products may have ten bits of mantissa.
        numbers: The result of `Adam.numbers`, `[3]`.
        settings: β₁, β₂, ε, the weight decay and whether it is decoupled.
    """
    tiles = tiles_for(max(left.shape[-1] for left in lefts))
    layers, count = layers_of(lefts, rights, scales, tiles)
    _update[(count,)](
        tuple(parameters),
        tuple(means),
        tuple(squares),
        tuple(lefts),
        tuple(rights),
        numbers,
        layers,
        len(rights),
        len(lefts),
        *settings,
        "tf32" if tf32 else "ieee",
        tiles.height,
        tiles.width,
        tiles.depth,
        BIASES,
        tiles.early,
        tiles.outer,
        num_warps=tiles.warps,
    )


def layers_of(
    lefts: Sequence[Tensor], rights: Sequence[Tensor], scales: Sequence[float], tiles: Tiles
) -> tuple[tuple[tuple[Any, ...], ...], int]:
    """Describe the parameters to the kernel.

    Args:
        lefts: The left factors.
        rights: The right factors, of weights.
        scales: The scales.
        tiles: The sizes of tiles.

    Returns:
        For each parameter its first program and the one after its last, m, n, B, the scale, and the
        strides of the factors; and the number of programs.
    """
    layers, first = [], 0
    for i, (left, scale) in enumerate(zip(lefts, scales, strict=True)):
        members, (height, batch) = left.shape[0] if left.ndim == 3 else 1, left.shape[-2:]
        if i < len(rights):
            width, right_strides = rights[i].shape[-1], _strides(rights[i])
            programs = triton.cdiv(height, tiles.height) * triton.cdiv(width, tiles.width)
        else:
            width, right_strides, programs = 1, (0, 0, 0), triton.cdiv(height, BIASES)
        last = first + members * programs
        strides = (*_strides(left), *right_strides)
        layers.append((first, last, height, width, batch, scale, *strides))
        first = last
    return tuple(layers), first


def _strides(matrix: Tensor) -> tuple[int, int, int]:
    """The strides of members, rows and columns."""
    strides = matrix.stride()
    return (0, *strides) if matrix.ndim == 2 else strides  # type: ignore[return-value]


@triton.jit
def _update(
    parameters,
    means,
    squares,
    lefts,
    rights,
    numbers,
    LAYERS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    COUNT: tl.constexpr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    DECAY: tl.constexpr,
    DECOUPLED: tl.constexpr,
    PRECISION: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    BIASES: tl.constexpr,
    EARLY: tl.constexpr,
    OUTER: tl.constexpr,
):
    """Each program changes one tile of one parameter."""
    program = tl.program_id(0)
    for i in tl.static_range(COUNT):
        if (program >= LAYERS[i][0]) & (program < LAYERS[i][1]):
            if i < WEIGHTS:
                _weight(
                    parameters[i], means[i], squares[i], lefts[i], rights[i], numbers,
                    program - LAYERS[i][0], LAYERS, i,
                    BETA1, BETA2, EPS, DECAY, DECOUPLED,
                    PRECISION, HEIGHT, WIDTH, DEPTH, EARLY, OUTER,
                )  # fmt: skip
            else:
                _bias(
                    parameters[i], means[i], squares[i], lefts[i], numbers,
                    program - LAYERS[i][0], LAYERS, i,
                    BETA1, BETA2, EPS, DECAY, DECOUPLED, BIASES, DEPTH,
                )  # fmt: skip


@triton.jit
def _weight(
    parameter,
    mean,
    square,
    left,
    right,
    numbers,
    tile,
    LAYERS: tl.constexpr,
    AT: tl.constexpr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    DECAY: tl.constexpr,
    DECOUPLED: tl.constexpr,
    PRECISION: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    EARLY: tl.constexpr,
    OUTER: tl.constexpr,
):
    """A tile of a weight."""
    M: tl.constexpr = LAYERS[AT][2]
    N: tl.constexpr = LAYERS[AT][3]
    B: tl.constexpr = LAYERS[AT][4]
    across: tl.constexpr = tl.cdiv(N, WIDTH)
    member = (tile // (tl.cdiv(M, HEIGHT) * across)).to(tl.int64)
    rows = (tile // across) % tl.cdiv(M, HEIGHT) * HEIGHT + tl.arange(0, HEIGHT)
    columns = tile % across * WIDTH + tl.arange(0, WIDTH)
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    place = member * (M * N) + rows[:, None] * N + columns[None, :]
    if EARLY:
        w = tl.load(parameter + place, mask=inside)
        m = tl.load(mean + place, mask=inside)
        v = tl.load(square + place, mask=inside)
    left += member * LAYERS[AT][6] + rows * LAYERS[AT][7]
    right += member * LAYERS[AT][9] + columns * LAYERS[AT][11]
    grad = tl.zeros((HEIGHT, WIDTH), dtype=tl.float32)
    if OUTER:
        for b in tl.range(0, B, loop_unroll_factor=4):
            a = tl.load(left + b * LAYERS[AT][8], mask=rows < M, other=0.0)
            x = tl.load(right + b * LAYERS[AT][10], mask=columns < N, other=0.0)
            grad += a[:, None] * x[None, :]
    else:
        for start in tl.range(0, B, DEPTH):
            b = start + tl.arange(0, DEPTH)
            a = tl.load(
                left[:, None] + b[None, :] * LAYERS[AT][8],
                mask=(rows < M)[:, None] & (b < B)[None, :],
                other=0.0,
            )
            x = tl.load(
                right[None, :] + b[:, None] * LAYERS[AT][10],
                mask=(b < B)[:, None] & (columns < N)[None, :],
                other=0.0,
            )
            grad = tl.dot(a, x, grad, input_precision=PRECISION)
    if not EARLY:
        w = tl.load(parameter + place, mask=inside)
        m = tl.load(mean + place, mask=inside)
        v = tl.load(square + place, mask=inside)
    w, m, v = _adam(w, m, v, grad * LAYERS[AT][5], numbers, BETA1, BETA2, EPS, DECAY, DECOUPLED)
    tl.store(parameter + place, w, mask=inside)
    tl.store(mean + place, m, mask=inside)
    tl.store(square + place, v, mask=inside)


@triton.jit
def _bias(
    parameter,
    mean,
    square,
    left,
    numbers,
    tile,
    LAYERS: tl.constexpr,
    AT: tl.constexpr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    DECAY: tl.constexpr,
    DECOUPLED: tl.constexpr,
    HEIGHT: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """A part of a bias."""
    M: tl.constexpr = LAYERS[AT][2]
    B: tl.constexpr = LAYERS[AT][4]
    member = (tile // tl.cdiv(M, HEIGHT)).to(tl.int64)
    rows = tile % tl.cdiv(M, HEIGHT) * HEIGHT + tl.arange(0, HEIGHT)
    inside = rows < M
    place = member * M + rows
    w = tl.load(parameter + place, mask=inside)
    m = tl.load(mean + place, mask=inside)
    v = tl.load(square + place, mask=inside)
    left += member * LAYERS[AT][6] + rows * LAYERS[AT][7]
    terms = tl.zeros((HEIGHT, DEPTH), dtype=tl.float32)
    for start in tl.range(0, B, DEPTH):
        b = start + tl.arange(0, DEPTH)
        terms += tl.load(
            left[:, None] + b[None, :] * LAYERS[AT][8],
            mask=inside[:, None] & (b < B)[None, :],
            other=0.0,
        )
    grad = tl.sum(terms, axis=1) * LAYERS[AT][5]
    w, m, v = _adam(w, m, v, grad, numbers, BETA1, BETA2, EPS, DECAY, DECOUPLED)
    tl.store(parameter + place, w, mask=inside)
    tl.store(mean + place, m, mask=inside)
    tl.store(square + place, v, mask=inside)


@triton.jit
def _adam(
    w,
    m,
    v,
    grad,
    numbers,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    DECAY: tl.constexpr,
    DECOUPLED: tl.constexpr,
):
    """The arithmetic of `optimizer_updates.Adam`."""
    if DECAY != 0:
        if DECOUPLED:
            w *= tl.load(numbers + 2)
        else:
            grad += DECAY * w
    m += (1 - BETA1) * (grad - m)
    v = BETA2 * v + (1 - BETA2) * grad * grad
    w += tl.load(numbers) * m / (tl.sqrt_rn(v) * tl.load(numbers + 1) + EPS)
    return w, m, v
