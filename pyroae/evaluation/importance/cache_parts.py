"""Compute the log-weights of a chunk part by part, so that tensors stay in the cache of a core.

Import this module only where something is compiled.
"""

import math
import threading
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.fx.graph_module import GraphModule
from torch.nn.functional import pad

from pyroae.compilation.bernoulli_rows import BernoulliRows, RowSums
from pyroae.compilation.codegen import Graph
from pyroae.compilation.noise_inputs import Draw, ParametricDraw
from pyroae.compilation.step_loop import Call, Copy, NoEntryError, StepLoop

LARGEST = 2**17
"""The most numbers of a part's largest tensor; with the weights of its layer they take 1 MiB."""


def num_parts(graph: GraphModule, num_draws: int, num_particles: int) -> int:
    """Choose the number of parts of a chunk.

    Args:
        graph: The graph of all particles.
        num_draws: The number of its draws, the last inputs.
        num_particles: K.

    Returns:
        A number P from 1 to K/2. Up to twice the smallest sufficient number is taken where K is a
        multiple of it, or nearly so.
    """
    drawn = set(graph.graph.find_nodes(op="placeholder")[-num_draws:])
    for node in graph.graph.nodes:
        if node.op == "call_function" and not drawn.isdisjoint(node.all_input_nodes):
            drawn.add(node)
    values = (node.meta.get("val") for node in drawn)
    largest = max(v.numel() for v in values if isinstance(v, Tensor))
    most = num_particles // 2
    least = min(math.ceil(largest / LARGEST), most)
    if least < 2:
        return 1
    numbers = range(least, min(2 * least, most) + 1)
    return min(numbers, key=lambda parts: parts * math.ceil(num_particles / parts))


def are_parts(
    whole: Sequence[Draw | ParametricDraw], part: Sequence[Draw | ParametricDraw] | None, rows: int
) -> bool:
    """Tell whether the draws of a part are rows of those of the chunk.

    Args:
        whole: The draws of the chunk.
        part: The draws of a part; None if they are not inputs.
        rows: The number of particles of a part.

    Returns:
        Whether each is noise, contiguous, with the particles first.
    """
    return (
        part is not None
        and len(whole) == len(part)
        and all(
            isinstance(one, Draw)
            and isinstance(other, Draw)
            and (one.method, one.parameters, one.dtype)
            == (other.method, other.parameters, other.dtype)
            and len(one.shape) > 0
            and other.shape == (rows, *one.shape[1:])
            and one.shape[0] > rows
            and one.is_contiguous
            and other.is_contiguous
            for one, other in zip(whole, part, strict=True)
        )
    )


def are_rows(draws: Sequence[Draw | ParametricDraw], num_particles: int) -> bool:
    """Tell whether a chunk can be one part.

    Args:
        draws: The draws of the chunk.
        num_particles: K.

    Returns:
        Whether each is noise, contiguous, with the particles first.
    """
    return all(
        isinstance(draw, Draw) and draw.shape[:1] == (num_particles,) and draw.is_contiguous
        for draw in draws
    )


class Shared(NamedTuple):
    """What all parts share.

    Attributes:
        tensors: The first inputs of the code.
        sums: What is added to the log-weights.
    """

    tensors: tuple[Tensor, ...]
    sums: RowSums | None


class PartByPart:
    """Code for a part of a chunk, which computes chunks; each thread has tensors of its own.

    Args:
        code: Code of one part, made within `callable_from_c`: from tensors that all parts share,
            and the draws of a part, to log-weights `[k, N]`.
        shared: Examples of these tensors.
        draws: Examples of the draws of a chunk, `[K, ...]` each.
        parts: The number P of parts; the last one may have surplus particles.
        sums: What is added to the log-weights, computed from rows that are the second output.

    Raises:
        NoEntryError: If the code cannot be called from C++.
    """

    def __init__(
        self,
        code: Graph,
        shared: Sequence[Tensor],
        draws: Sequence[Tensor],
        parts: int,
        sums: BernoulliRows | None = None,
    ) -> None:
        self._code, self._sums = code, sums
        self._rows, self._own = math.ceil(len(draws[0]) / parts), threading.local()
        first, *rows = code(*shared, *(draw[: self._rows] for draw in draws))
        if not all(each.is_contiguous() for each in (first, *rows)):
            raise NoEntryError("an output has another memory layout")
        self._result_like = first.new_empty(parts, *first.shape)
        self._loop(self.prepared(tuple(shared)), draws, parts)

    def prepared(self, tensors: tuple[Tensor, ...]) -> Shared:
        """Prepare tensors that all parts share, for calls of several threads.

        Args:
            tensors: The tensors.

        Returns:
            The tensors, and what is added to the log-weights.
        """
        count = self._result_like[0].numel()
        return Shared(tensors, None if self._sums is None else self._sums.of(tensors, count))

    def of_chunks(self, shared: Shared, draws: Sequence[Sequence[Tensor]]) -> Tensor:
        """Compute the log-weights of several chunks by one call of C++ code.

        Args:
            shared: What `prepared` returned.
            draws: The draws of each chunk, `[K, ...]` each.

        Returns:
            The log-weights `[C, K, N]`, in memory that this thread's next call overwrites.
        """
        count, parts = len(draws), len(self._result_like)
        loop, result = self._loop(shared, draws[0], count * parts)
        sources = [
            part
            for chunk in draws
            for part in zip(*(self._whole_parts(d).split(self._rows) for d in chunk), strict=True)
        ]
        loop(sources)
        chunks = result[: count * parts].unflatten(0, (count, parts)).flatten(1, 2)
        return chunks[:, : len(draws[0][0])]

    def _whole_parts(self, draw: Tensor) -> Tensor:
        """A draw with as many rows as all parts have; surplus rows are zero."""
        count = len(self._result_like) * self._rows
        return (
            draw
            if len(draw) == count
            else pad(draw, [0, 0] * (draw.ndim - 1) + [0, count - len(draw)])
        )

    def _loop(self, shared: Shared, draws: Sequence[Tensor], parts: int) -> tuple[StepLoop, Tensor]:
        """This thread's loop over parts, and the results of as many, for these tensors."""
        is_known = getattr(self._own, "shared", None) is shared
        if not is_known or len(self._own.loop[1]) < parts:
            own = [draw[: self._rows].clone() for draw in draws]
            result = self._result_like.new_empty(parts, *self._result_like.shape[1:])
            call = Call(0, 0, self._code, [*shared.tensors, *own], result, shared.sums)
            copies = [Copy(0, i, tensor, tensor.shape) for i, tensor in enumerate(own)]
            self._own.loop = StepLoop(1, [call], copies), result
            self._own.shared = shared
        loop: tuple[StepLoop, Tensor] = self._own.loop
        return loop
