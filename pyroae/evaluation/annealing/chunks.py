"""Transitions of annealing as compiled code, in chunks of chains that belong to one core each.

A row is one chain of one datum. All transitions of a call, with their leapfrog steps, are loops
inside one compiled function, which runs without Python's lock: a chunk stays in the cache of a core
from noise to result. The graph is the same for the pilot and for all chains, and has the body of
each loop once.

Shapes: C chains, N data, D elements of u per datum, R rows in a chunk, M transitions in a call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx.graph_module import GraphModule
from torch.nn.functional import pad

from pyroae.compilation.codegen import Graph, inductor
from pyroae.compilation.invariant_split import as_inputs, split_invariant
from pyroae.compilation.tracing import fixed_shapes, trace_to_graph
from pyroae.config import AISSettings
from pyroae.evaluation.annealing.hmc import Moved, Moves, Noise, moved
from pyroae.programs.annealing_path import Path, Point
from pyroae.programs.sites import Program
from pyroae.runtime.threads import Threads

Fixed = tuple[Tensor, ...]
"""The inputs of the compiled graph that do not change along a path."""


MOST_JOINED = 2**15
"""Most numbers in parameters and arguments that a chunk has copies of, joined and transposed."""


ALIGNED = 16
"""Numbers of which a multiple is before each tensor of a joined input."""


@dataclass(frozen=True)
class RowGraph:
    """The compiled transitions of R rows.

    Attributes:
        fixed: From parameters and arguments of R rows to the inputs that do not change along a
            path: the part of densities and gradients that does not depend on u or β.
        run: From a state, transitions, noise and the fixed inputs to the next state.
        rows: R.
        longest: M.
    """

    fixed: Callable[..., Fixed]
    run: Graph
    rows: int
    longest: int


def row_graph(
    path_of: Callable[[tuple[Tensor, ...]], Path],
    inputs: list[Tensor],
    u: Tensor,
    programs: tuple[Program, Program],
    settings: AISSettings,
    longest: int,
) -> RowGraph:
    """Compile transitions.

    Args:
        path_of: From parameters and arguments of R rows to the path, with one chain.
        inputs: Examples of these.
        u: Examples of positions, `[1, R, D]`.
        programs: Model and guide, for errors.
        settings: Leapfrog steps and target acceptance.
        longest: M, the largest number of transitions of a call.

    Returns:
        The graph.

    Raises:
        UntraceableError: For programs that cannot be traced.
    """

    def at(*flat: Tensor) -> tuple[Tensor, ...]:
        point = path_of(flat[:-1]).at(flat[-1])
        return point.log_start, point.log_ratio, point.grad_start, point.grad_ratio

    def gradient(*flat: Tensor) -> tuple[Tensor, ...]:
        return (path_of(flat[:-2]).gradient(flat[-2], flat[-1]),)

    is_small = sum(t.numel() for t in inputs) <= MOST_JOINED
    parts = [
        _split(at, inputs, [u], programs, is_small),
        _split(gradient, inputs, [u, u.new_zeros(())], programs, is_small),
    ]
    flat = [t.detach() for t in inputs]

    def every(*flat: Tensor) -> list[list[Tensor]]:
        return [
            [*[t.contiguous() for t in early(*flat)], *constants] for early, _, constants in parts
        ]

    of_parts = every(*flat)
    first: dict[int, tuple[int, int]] = {}
    for i, part in enumerate(of_parts):
        for j, tensor in enumerate(part):
            first.setdefault(id(tensor), (i, j))
    places = [*dict.fromkeys(first[id(t)] for part in of_parts for t in part)]
    indices = [[places.index(first[id(t)]) for t in part] for part in of_parts]
    joined = _Joined([of_parts[i][j] for i, j in places], is_small)

    def fixed(*flat: Tensor) -> Fixed:
        found = every(*flat)
        return joined.join([found[i][j] for i, j in places])

    late_at, late_gradient = (late for _, late, _ in parts)
    function = _Transitions(late_at, late_gradient, indices, joined, settings)
    arguments = [*_example(u, longest), *fixed(*flat)]
    with torch.no_grad():
        graph = trace_to_graph(function, arguments, *programs)
    with fixed_shapes():
        run = inductor(graph, arguments, same_draws=True, one_core=True)
    return RowGraph(fixed, run, u.shape[1], longest)


def _split(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: list[Tensor],
    further: list[Tensor],
    programs: tuple[Program, Program],
    transpose: bool,
) -> tuple[GraphModule, GraphModule, list[Tensor]]:
    """The part without u and β, the part with them, and the constants that the latter takes."""
    module = trace_to_graph(function, [*inputs, *further], *programs)
    module.graph.eliminate_dead_code()
    names = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    early, late = split_invariant(module, names[len(inputs) :], transpose)
    late, constants = as_inputs(late, len(further))
    return early, late, constants


def _example(u: Tensor, longest: int) -> list[Tensor]:
    """The inputs of the graph that change along a path, in its order."""
    _, rows, size = u.shape
    zeros, double = u.new_zeros, partial(u.new_zeros, dtype=torch.float64)
    state = [u[0], zeros(rows), zeros(rows), zeros(rows, size), zeros(rows, size)]
    noise = [zeros(rows, longest), zeros(rows, longest, size), zeros(rows, longest)]
    numbers = [zeros(longest), double(longest), double(longest)]
    count = torch.zeros((), dtype=torch.int64)
    return [
        count, *state, double(rows), double(rows), *numbers, *noise, zeros(rows, rows)
    ]  # fmt: skip


class _Joined:
    """Tensors as one for each type: a loop allocates a handle for each input in every step.

    Args:
        tensors: Examples.
        is_small: Whether they are joined; otherwise they stay as they are.
    """

    def __init__(self, tensors: list[Tensor], is_small: bool) -> None:
        self._examples, self._is_small = [(t.shape, t.dtype) for t in tensors], is_small

    def join(self, tensors: list[Tensor]) -> Fixed:
        """Join tensors of the shapes and types of the examples."""
        if not self._is_small:
            return tuple(tensors)
        parts: dict[torch.dtype, list[Tensor]] = {}
        for t in tensors:
            parts.setdefault(t.dtype, []).append(pad(t.flatten(), (0, -t.numel() % ALIGNED)))
        return tuple(torch.cat(part) for part in parts.values())

    def split(self, joined: Sequence[Tensor]) -> list[Tensor]:
        """The inverse of `join`, as views."""
        if not self._is_small:
            return [*joined]
        rest = {whole.dtype: whole for whole in joined}
        found = []
        for shape, kind in self._examples:
            count = shape.numel()
            found.append(rest[kind][:count].view(shape))
            rest[kind] = rest[kind][count + -count % ALIGNED :]
        return found


class _Transitions:
    """The function that is traced: transitions of R rows, in a loop.

    Args:
        at: From inputs that do not change along a path and u to densities and gradients.
        gradient: From such inputs, u and β to the gradient.
        indices: Which of these inputs each of the two has. A loop takes no input twice.
        joined: How the inputs are joined.
        settings: Leapfrog steps and target acceptance.
    """

    def __init__(
        self,
        at: GraphModule,
        gradient: GraphModule,
        indices: list[list[int]],
        joined: _Joined,
        settings: AISSettings,
    ) -> None:
        self.at, self.gradient, self.joined, self.settings = at, gradient, joined, settings
        self.of_at, self.of_gradient = indices

    def __call__(self, count: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        state, log_weight, log_step, rest = flat[:5], flat[5], flat[6], flat[7:]
        first, accepts, total = (torch.zeros_like(t) for t in (count, log_weight, log_weight))
        carried = (first, *state, log_weight, log_step, accepts, total)
        result = _while(
            lambda i, *other: i < other[len(carried) - 1],
            lambda i, *other: self._next(i, other[: len(carried) - 1], other[len(carried) :]),
            carried,
            (count, *rest),
        )
        return tuple(result[1:])

    def _next(
        self, i: Tensor, carried: tuple[Tensor, ...], rest: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """One transition of all rows."""
        *state, log_weight, log_step, accepts, total = carried
        betas, differences, rates, jitter, momentum, uniform, averages, *fixed = rest
        row = i.reshape(1)
        beta, difference, rate = (
            numbers.index_select(0, row).squeeze(0) for numbers in (betas, differences, rates)
        )
        noise = Noise(*(n.index_select(1, row).movedim(1, 0) for n in (jitter, momentum, uniform)))
        point = Point(*(t.unsqueeze(0) for t in state))
        log_weight = log_weight + difference * point.log_ratio[0].double()

        def at(u: Tensor) -> Point:
            separate = self.joined.split(fixed)
            return Point(u, *self.at(*[separate[k] for k in self.of_at], u))

        further = partial(self._further, beta, fixed)
        point, accept = moved(at, point, beta, log_step.exp(), noise, further)
        mean = (averages @ accept[0][:, None])[:, 0].double()
        log_step = log_step + rate * (mean - self.settings.target_acceptance)
        state = [t[0] for t in (point.u, point.log_start, point.log_ratio)]
        state += [point.grad_start[0], point.grad_ratio[0]]
        return i + 1, *state, log_weight, log_step, accepts + accept[0].double(), total + log_step

    def _further(
        self, beta: Tensor, fixed: list[Tensor], u: Tensor, momentum: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The leapfrog steps after the first."""
        count = self.settings.leapfrog_steps - 1
        if count == 0:
            return u, momentum

        def body(
            j: Tensor, u: Tensor, momentum: Tensor, step: Tensor, beta: Tensor, *fixed: Tensor
        ) -> tuple[Tensor, ...]:
            separate = self.joined.split(fixed)
            inputs = [separate[k] for k in self.of_gradient]
            momentum = momentum + step * self.gradient(*inputs, u, beta)[0]
            return j + 1, u + step * momentum, momentum

        first = torch.zeros((), dtype=torch.int64)
        _, u, momentum = _while(
            lambda j, *other: j < count, body, (first, u, momentum), (step, beta, *fixed)
        )
        return u, momentum


def _while(
    condition: Callable[..., Tensor],
    body: Callable[..., tuple[Tensor, ...]],
    carried: tuple[Tensor, ...],
    further: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """A loop of a graph: `body` maps `carried` to its next values while `condition` is true."""
    from torch._higher_order_ops.while_loop import while_loop_op

    loop: Any = while_loop_op
    result: tuple[Tensor, ...] = loop(condition, body, carried, further)
    return result


class ChunkedMover:
    """Runs transitions of all chains of a block in chunks of R rows.

    Rows are ordered by datum, then by chain, so that the chains of a datum are in one chunk where
    the pilot averages over them. The result depends on the chunks, whose size follows from the
    configuration, and not on the threads that run them.

    Args:
        graph: The compiled transitions.
        fixed: The inputs of each chunk that do not change along the path.
        num_chains: C.
        num_data: N.
        chunk: Rows of a chunk that are used: R, or for the pilot a multiple of C.
        threads: Where chunks are run.
    """

    def __init__(
        self,
        graph: RowGraph,
        fixed: list[Fixed],
        num_chains: int,
        num_data: int,
        chunk: int,
        threads: Threads,
    ) -> None:
        self.graph, self.longest = graph, graph.longest
        self._fixed, self._num_chains, self._num_data = fixed, num_chains, num_data
        self._chunk, self._threads = chunk, threads
        self._averages: Tensor | None = None

    @torch.no_grad()
    def move(self, point: Point, log_weight: Tensor, log_step: Tensor, moves: Moves) -> Moved:
        """Run transitions; see `Mover.move`. Draws are those of `hmc.transition`, in its order."""
        drawn = [Noise.like(point) for _ in moves.betas]
        drawn += [drawn[0]] * (self.longest - len(drawn))  # of transitions that are not made
        noise = [
            _rows(torch.stack([getattr(each, f.name) for each in drawn], 2)) for f in fields(Noise)
        ]
        state = [_rows(t) for t in (*_tensors(point), log_weight, log_step.expand_as(log_weight))]
        if self._averages is None:
            self._averages = self._averaging(point.u)
        numbers = [*self._numbers(moves, point.u.dtype), self._averages]
        total = self._num_chains * self._num_data
        spans = [
            slice(first, min(first + self._chunk, total)) for first in range(0, total, self._chunk)
        ]
        tasks = (
            partial(self._run, [t[span] for t in state], numbers, [n[span] for n in noise], fixed)
            for span, fixed in zip(spans, self._fixed, strict=True)
        )
        parts = list(self._threads.in_order(tasks))
        found = [self._chains(torch.cat(p)) for p in zip(*parts, strict=True)]
        *new, log_weight, log_step, accepts, totals = found
        return Moved(Point(*new), log_weight, accepts.mean(0), log_step[0], totals[0])

    def _numbers(self, moves: Moves, dtype: torch.dtype) -> list[Tensor]:
        """The count, β, differences and rates, of M transitions each."""
        filled = [0.0] * (self.longest - len(moves.betas))
        numbers = [torch.tensor(len(moves.betas))]
        numbers.append(torch.tensor([*moves.betas, *filled], dtype=dtype))
        others = (moves.differences, moves.rates)
        return numbers + [torch.tensor([*o, *filled], dtype=torch.float64) for o in others]

    def _run(
        self, state: list[Tensor], numbers: list[Tensor], noise: list[Tensor], fixed: Fixed
    ) -> list[Tensor]:
        """One chunk, on one core; rows beyond those of the state are zeros, and cut off."""
        used, rows = state[0].shape[0], self.graph.rows
        count, betas, differences, rates, averages = numbers
        if used < rows:
            state, noise = [_filled(t, rows) for t in state], [_filled(n, rows) for n in noise]
        *states, log_weight, log_step = state
        with torch.no_grad():
            found = self.graph.run(
                count, *states, log_weight, log_step, betas, differences, rates, *noise,
                averages, *fixed,
            )  # fmt: skip
        return [t[:used] for t in found]

    def _averaging(self, like: Tensor) -> Tensor:
        """The matrix `[R, R]` that averages over the chains of a datum; 0 for divided data."""
        averages = like.new_zeros(self.graph.rows, self.graph.rows)
        if self._chunk % self._num_chains == 0:
            datum = torch.arange(self._chunk) // self._num_chains
            same = datum[:, None] == datum
            averages[: self._chunk, : self._chunk] = same.to(like.dtype) / self._num_chains
        return averages

    def _chains(self, rows: Tensor) -> Tensor:
        """The inverse of `_rows`."""
        return rows.unflatten(0, (self._num_data, self._num_chains)).transpose(0, 1).contiguous()


def _tensors(point: Point) -> list[Tensor]:
    return [point.u, point.log_start, point.log_ratio, point.grad_start, point.grad_ratio]


def _rows(values: Tensor) -> Tensor:
    """`[C, N, ...]` as rows `[N · C, ...]`, by datum, then by chain."""
    return values.transpose(0, 1).flatten(0, 1).contiguous()


def _filled(values: Tensor, length: int) -> Tensor:
    """The values with zeros up to a length."""
    whole = values.new_zeros(length, *values.shape[1:])
    whole[: len(values)] = values
    return whole
