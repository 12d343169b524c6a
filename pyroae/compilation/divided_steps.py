"""Steps of a training on a CPU, several a call, in parts that belong to one core each.

    phase 1: each thread computes the loss and the gradients of a part of the batch
    phase 2: each thread adds the gradients of its rows of every parameter, and updates these rows

The gradient of a linear layer's weight is computed in phase 2, from the whole batch, by the thread
that owns its rows. With a limit on the norm of the gradient, a third phase updates. All noise is
drawn before the call, in the order of eager code.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph_module import GraphModule

from pyroae.compilation.batch_parts import adds_up, parts_of, products_of
from pyroae.compilation.codegen import Graph, copy_of
from pyroae.compilation.invariant_split import as_inputs
from pyroae.compilation.noise_inputs import Draw, NotLiftedError, lift_draws
from pyroae.compilation.optimizer_updates import ClosedForm, Rule, Update
from pyroae.compilation.step_loop import Call, Copy, StepLoop, callable_from_c
from pyroae.compilation.tracing import trace_to_graph

MOST_STEPS = 64
"""Largest number of steps of one call."""


LEAST_ROWS = 4
"""Fewest data of a part: with fewer, weights are read for too little work."""


LEAST_PRODUCTS_ROWS = 32
"""Fewest rows of a part's products where the weights do not stay in a core's cache."""


CACHED_WEIGHTS = 2**19
"""Numbers of the parameters that stay in a core's cache, which other processors have smaller."""


MakeCode = Callable[[GraphModule, Sequence[Tensor]], Graph]
"""From a graph and examples of its inputs to code for one core."""


Trace = Callable[[Sequence[Tensor]], tuple[GraphModule, list[Tensor]]]
"""From arguments to the graph of a loss and of the gradients that are reached, and its inputs."""


def number_of_parts(threads: int, batch: int, particles: int = 1, weights: int = 0) -> int:
    """Choose into how many parts a batch is divided.

    Each core reads all weights for its part. If these do not stay in its cache, a divided step with
    few rows is slower than one whose products are divided.

    Args:
        threads: Torch's number of threads.
        batch: The number of data B.
        particles: K, the number of draws for each of them.
        weights: The number of all elements of the parameters.

    Returns:
        The largest number of at most `threads` equal parts of enough data; 1 without one.

    >>> number_of_parts(2, 20), number_of_parts(8, 20), number_of_parts(2, 25)
    (2, 5, 1)
    >>> number_of_parts(2, 20, weights=2**20), number_of_parts(2, 20, 50, weights=2**20)
    (1, 2)
    """
    rows = 1 if weights <= CACHED_WEIGHTS else LEAST_PRODUCTS_ROWS

    def is_enough(parts: int) -> bool:
        return batch >= parts * LEAST_ROWS and batch * particles >= parts * rows

    return next((n for n in range(threads, 1, -1) if batch % n == 0 and is_enough(n)), 1)


@dataclass(frozen=True)
class _Code:
    """A graph's code, and the constants that are its last inputs."""

    graph: Graph
    constants: list[Tensor]

    def call(
        self, phase: int, thread: int, inputs: Sequence[Tensor], result: Tensor | None = None
    ) -> Call:
        return Call(phase, thread, self.graph, [*inputs, *self.constants], result)


@dataclass
class _Owned:
    """A parameter with its gradient between the phases.

    Attributes:
        parameter: The parameter.
        rule: How it is updated.
        group: Number of its group, whose numbers the rule takes.
        factors: D and R of each product; without any, `sums` has the gradient.
        sums: The gradient of each part, `[P, *shape]`.
        whole: The gradient; None without a limit on the norm.
    """

    parameter: Tensor
    rule: Rule
    group: int
    factors: list[tuple["_Columns", Tensor]] = field(default_factory=list)
    sums: Tensor | None = None
    whole: Tensor | None = None

    def rows(self, thread: int, threads: int) -> slice | None:
        """The rows of a thread; of thread P, those that are left. None without rows."""
        count = len(self.parameter) // threads if self.parameter.ndim else 0
        if thread < threads:
            return slice(thread * count, (thread + 1) * count) if count else None
        if not self.parameter.ndim:
            return slice(None)
        return slice(threads * count, None) if len(self.parameter) > threads * count else None


class _Columns:
    """A matrix D `[n, m]`, in blocks of columns that belong to one thread each."""

    def __init__(self, rows: int, columns: int, threads: int, dtype: torch.dtype) -> None:
        self.own = torch.zeros(threads, rows, columns // threads, dtype=dtype)
        self.rest = torch.zeros(rows, columns % threads, dtype=dtype)

    def part(self, part: int, parts: int) -> list[Tensor]:
        """The rows of one part of the batch, which `store` fills."""
        count = self.rest.shape[0] // parts
        rows = slice(part * count, (part + 1) * count)
        return [t for t in (self.own[:, rows], self.rest[rows]) if t.numel()]

    def of(self, thread: int) -> Tensor:
        """The columns of a thread; of thread P, those that are left."""
        return self.own[thread] if thread < len(self.own) else self.rest

    @staticmethod
    def store(matrix: Tensor, targets: Iterator[Tensor], threads: int) -> None:
        """Copy the rows of a part of the batch."""
        count = matrix.shape[1] // threads
        if count:
            blocks = matrix[:, : count * threads].unflatten(1, (threads, count))
            next(targets).copy_(blocks.transpose(0, 1))
        if matrix.shape[1] % threads:
            next(targets).copy_(matrix[:, count * threads :])


class DividedStep:
    """A step of a training in parts, and many steps in one call.

    Args:
        trace: Traces the loss over some rows of the batch.
        values: All arguments, a weight of the KL last; tensors are `[B, ...]` or the same for all
            data.
        leaves: The parameters.
        reached: Whether each parameter has a gradient.
        update: The optimizer's step.
        grad_clip: Largest norm of the whole gradient; None for no limit.
        parts: The number P of parts and threads.
        make_code: Generates code for one core.

    Attributes:
        update: The optimizer's step.
        parts: The number P of parts.
        where: Indices of the arguments that are tensors.

    Raises:
        NotLiftedError: If a draw cannot be an input, or the parts do not add up to the whole.
        NoEntryError: If the code cannot be called from C++.
    """

    def __init__(
        self,
        trace: Trace,
        values: Sequence[Any],
        leaves: Sequence[nn.Parameter],
        reached: Sequence[bool],
        update: Update,
        grad_clip: float | None,
        parts: int,
        make_code: MakeCode,
    ) -> None:
        self.update, self.parts = update, parts
        self.where = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
        args = [values[i] for i in self.where]
        self._grad_clip, self._make_code = grad_clip, make_code
        self._leaves = [p.detach() for p in leaves]
        self._places = [i for i, is_reached in enumerate(reached) if is_reached]
        batch = next((len(t) for t in args if t.ndim), 0)
        self._args = [t.detach().clone(memory_format=torch.contiguous_format) for t in args]
        self._dims: list[int | None] = [
            0 if t.ndim and len(t) == batch and parts > 1 else None for t in args
        ]
        own = self._args_of(0)
        graph, self._draws = lift_draws(trace(own)[0])
        self._noise_dims: list[int | None] = [None] * len(self._draws)
        shapes = [draw.shape for draw in self._draws]
        if parts > 1:
            self._check(graph, *lift_draws(trace(self._args)[0]))
        self._numbers = update.tensors([update.numbers()])
        self._noise = [
            [
                draw.empty(1)[0].new_zeros(shape)
                for draw, shape in zip(self._draws, shapes, strict=True)
            ]
            for _ in range(parts)
        ]
        self._own_args = [self._args_of(i) for i in range(parts)]
        self._losses = torch.zeros(MOST_STEPS, parts, dtype=_loss_type(graph))
        self._owned = [
            _Owned(self._leaves[self._places[place]], update.rules[group], group)
            for place, group in zip(update.order, self._groups(), strict=True)
        ]
        self._norms = torch.zeros(parts + 1, dtype=self._leaves[0].dtype)
        self._codes = self._whole(graph) if parts == 1 else self._divided(graph)
        self._state: list[Tensor] = []
        self._loop: StepLoop | None = None
        self._loop_of(update.state())

    def _args_of(self, part: int) -> list[Tensor]:
        """The arguments of a part: its rows of the batch's tensor, or a tensor of its own."""
        return [
            t.clone() if dim is None and part else t if dim is None else t.chunk(self.parts)[part]
            for t, dim in zip(self._args, self._dims, strict=True)
        ]

    def _groups(self) -> list[int]:
        return [i for i, group in enumerate(self.update.parameters) for _ in group]

    def _check(self, part: GraphModule, whole: GraphModule, draws: list[Draw]) -> None:
        """Refuse a loss that is no sum over the parts; take the draws of the whole batch."""
        dims = parts_of(draws, self._draws, self.parts)
        if dims is None:
            raise NotLiftedError("the draws of a part are no part of those of the batch")
        self._draws, self._noise_dims = draws, [*dims]
        all_dims = [*[None] * len(self._leaves), *self._dims, *self._noise_dims]
        generator = torch.Generator().manual_seed(0)
        for scale in (0.0, 0.1):
            leaves = [
                p + scale * torch.empty_like(p).normal_(generator=generator) for p in self._leaves
            ]
            args = [
                t.roll(1, 0) if scale and dim == 0 else t
                for t, dim in zip(self._args, self._dims, strict=True)
            ]
            noise = [draw.empty(1)[0] for draw in draws]
            for draw, tensor in zip(draws, noise, strict=True):
                draw.fill(tensor, generator)
            if not adds_up(whole, part, [*leaves, *args, *noise], all_dims, self.parts):
                raise NotLiftedError("the gradients of the parts do not add up to those of a batch")

    # Graphs.

    def _code(self, function: Callable[..., Any], inputs: list[Tensor]) -> "_Code":
        examples = [copy_of(t) for t in inputs]  # tracing runs the function
        graph, constants = as_inputs(trace_to_graph(function, examples, function, function))
        with callable_from_c():
            return _Code(self._make_code(graph, [*examples, *constants]), constants)

    def _whole(self, graph: GraphModule) -> list["_Code | None"]:
        """One part: the gradients and the update."""
        count, leaves = len(graph.graph.find_nodes(op="placeholder")), len(self._leaves)

        def step(*inputs: Tensor) -> tuple[Tensor]:
            loss, *grads = fx.Interpreter(graph).run(*inputs[:count])
            parameters = [inputs[:leaves][i] for i in self._places]
            grads = self.update.clipped(grads, self._grad_clip)
            self.update.apply(parameters, grads, inputs[count:], loss)
            return (loss,)

        inputs = [*self._leaves, *self._own_args[0], *self._noise[0], *self._numbers]
        return [self._code(step, [*inputs, *self.update.state()])]

    def _divided(self, graph: GraphModule) -> list["_Code | None"]:
        """The gradients of a part, and the updates of a thread's rows and of the rows left."""
        count, stored = len(graph.graph.find_nodes(op="placeholder")), self._stores(graph)
        parts = self.parts

        def part(*inputs: Tensor) -> tuple[Tensor]:
            loss, *values = fx.Interpreter(graph).run(*inputs[:count])
            targets = iter(inputs[count:])
            for value, (is_transposed, is_divided) in zip(values, stored, strict=True):
                matrix = value.t() if is_transposed else value
                if is_divided:
                    _Columns.store(matrix, targets, parts)
                else:
                    next(targets).copy_(matrix)
            return (loss,)

        codes: list[_Code | None] = [self._code(part, self._part_inputs(0))]
        state = self.update.state()
        for thread in (0, parts):
            for phase in range(1 if self._grad_clip is None else 2):
                inputs = self._update_inputs(thread, phase, state)
                function = self._update_of(thread, phase)
                codes.append(self._code(function, inputs) if inputs else None)
        return codes

    def _stores(self, graph: GraphModule) -> list[tuple[bool, bool]]:
        """Let the graph return what phase 2 needs: whether to transpose it, and to divide it."""
        output = graph.graph.find_nodes(op="output")[0]
        placeholders = graph.graph.find_nodes(op="placeholder")
        loss, *grads = output.args[0]
        divided_args = [
            node if dim == 0 else None
            for node, dim in zip(placeholders[len(self._leaves) :], self._dims, strict=False)
        ]
        nodes: list[fx.Node] = []
        stored: list[tuple[bool, bool]] = []
        self._targets: list[_Columns | Tensor] = []
        for owned, place in zip(self._owned, self.update.order, strict=True):
            grad = grads[place]
            if self._grad_clip is not None:
                owned.whole = torch.zeros_like(owned.parameter)
            products = products_of(grad, divided_args)
            if products is None or grad.meta["val"].dtype != owned.parameter.dtype:
                owned.sums = torch.zeros(
                    self.parts, *grad.meta["val"].shape, dtype=grad.meta["val"].dtype
                )
                nodes.append(grad)
                stored.append((False, False))
                self._targets.append(owned.sums)
                continue
            for product in products:
                value, length = product.left.meta["val"], owned.parameter.shape
                rows = self.parts * value.shape[1 if product.is_transposed else 0]
                columns = _Columns(rows, length[0], self.parts, value.dtype)
                nodes.append(product.left)
                stored.append((product.is_transposed, True))
                self._targets.append(columns)
                if product.argument is None:
                    right = torch.zeros(rows, length[1], dtype=value.dtype)
                    nodes.append(product.right)
                    stored.append((not product.is_transposed, False))
                    self._targets.append(right)
                else:
                    right = self._args[product.argument].view(rows, length[1])
                owned.factors.append((columns, right))
        output.args = ((loss, *nodes),)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        return stored

    def _part_inputs(self, part: int) -> list[Tensor]:
        inputs = [*self._leaves, *self._own_args[part], *self._noise[part]]
        for target in self._targets:
            if isinstance(target, _Columns):
                inputs += target.part(part, self.parts)
            else:
                inputs.append(target.chunk(self.parts)[part])
        return inputs

    def _rows_of(self, thread: int) -> list[tuple[_Owned, slice, list[int]]]:
        """The parameters that a thread updates, its rows, and the places of their state."""
        at, result = 0, []
        for owned in self._owned:
            places = list(range(at, at + len(owned.rule.state)))
            at += len(places)
            if (rows := owned.rows(thread, self.parts)) is not None:
                result.append((owned, rows, places))
        return result

    def _gradient_inputs(self, owned: _Owned, rows: slice, thread: int) -> list[Tensor]:
        """What the gradient of a thread's rows is computed from."""
        if owned.sums is not None:
            return [owned.sums[:, rows] if owned.parameter.ndim else owned.sums]
        return [t for columns, right in owned.factors for t in (columns.of(thread), right)]

    def _update_inputs(self, thread: int, phase: int, state: Sequence[Tensor]) -> list[Tensor]:
        """The inputs of the function that `_update_of` returns; none without rows."""
        items, inputs = self._rows_of(thread), list[Tensor]()
        is_clipped = self._grad_clip is not None
        is_update = phase == 1 or not is_clipped
        if is_clipped:
            inputs.append(self._norms if is_update else self._norms[thread])
        if is_update:
            inputs += self._numbers
        for owned, rows, places in items:
            if is_update:
                tensors = [owned.parameter, *(state[i] for i in places)]
                inputs += [t[rows] if t.ndim else t for t in tensors]
            if owned.whole is not None:
                inputs.append(owned.whole[rows] if owned.whole.ndim else owned.whole)
            if phase == 0:
                inputs += self._gradient_inputs(owned, rows, thread)
        return inputs if items else []

    def _update_of(self, thread: int, phase: int) -> Callable[..., tuple[()]]:
        """The function that computes gradients, updates, or both."""
        items, largest = self._rows_of(thread), self._grad_clip

        def update(*inputs: Tensor) -> tuple[()]:
            left = iter(inputs)
            numbers = [next(left) for _ in self._numbers]
            for owned, _, places in items:
                parameter, state = next(left), [next(left) for _ in places]
                owned.rule.apply(parameter, _gradient(owned, left), state, numbers[owned.group])
            return ()

        def gradients(*inputs: Tensor) -> tuple[()]:
            left = iter(inputs)
            square, total = next(left), torch.zeros_like(self._norms[0])
            for owned, _, _ in items:
                whole: Tensor = next(left)
                grad = _gradient(owned, left)
                whole.copy_(grad)
                if not isinstance(owned.rule, ClosedForm):
                    total = total + (grad * grad).sum()
            square.copy_(total)
            return ()

        def clipped_update(*inputs: Tensor) -> tuple[()]:
            assert largest is not None
            left = iter(inputs)
            factor = (largest / (next(left).sum().sqrt() + 1e-6)).clamp(max=1.0)
            numbers = [next(left) for _ in self._numbers]
            for owned, _, places in items:
                parameter, state, grad = next(left), [next(left) for _ in places], next(left)
                if not isinstance(owned.rule, ClosedForm):
                    grad = grad * factor
                owned.rule.apply(parameter, grad, state, numbers[owned.group])
            return ()

        if largest is None:
            return update
        return gradients if phase == 0 else clipped_update

    # Steps.

    def draw(self) -> list[Tensor]:
        """Draw the noise of the next step from torch's generator, as eager code does.

        Returns:
            The noise of the whole batch.
        """
        noise = [draw.empty(1)[0] for draw in self._draws]
        for draw, tensor in zip(self._draws, noise, strict=True):
            draw.fill(tensor, torch.default_generator)
        return noise

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        """Take a step.

        Args:
            *args: All arguments of the programs, a KL weight last.

        Returns:
            The loss before the step: the negative bound over the divisor, a scalar, in nats.
        """
        tensors, numbers = [[args[i]] for i in self.where], [self.update.numbers()]
        return (self.run_steps(tensors, numbers, [self.draw()])[0],)

    def run_steps(
        self,
        tensors: Sequence[Sequence[Tensor]],
        numbers: Sequence[list[list[float]]],
        noise: Sequence[Sequence[Tensor]],
    ) -> Tensor:
        """Take S steps, at most `MOST_STEPS`.

        Args:
            tensors: The arguments that are tensors, S of each.
            numbers: The optimizer's numbers of each step, as of `Update.numbers`.
            noise: The result of `draw` for each step.

        Returns:
            The loss before each step, `[S]`, in nats.
        """
        args = list(zip(*tensors, strict=True)) if tensors else [()] * len(numbers)
        rates = self.update.tensors(numbers, stacked=True)
        sources = [
            [*(t.contiguous() for t in args[i]), *noise[i], *(rate[i] for rate in rates)]
            for i in range(len(args))
        ]
        with torch.no_grad():
            self._loop_of(self.update.state())(sources)
            self.update.count(len(args))
            losses = self._losses[: len(args), 0].clone()
            for i in range(1, self.parts):
                losses += self._losses[: len(args), i]
        return losses

    def _loop_of(self, state: list[Tensor]) -> StepLoop:
        """The loop over the optimizer's state, which a restored state has replaced."""
        is_same = len(state) == len(self._state) and all(
            a is b for a, b in zip(state, self._state, strict=True)
        )
        if self._loop is None or not is_same:
            self._loop = StepLoop(self.parts, list(self._calls(state)), list(self._copies()))
            self._state = state
        return self._loop

    def _calls(self, state: list[Tensor]) -> Iterator[Call]:
        whole, *updates = self._codes
        assert whole is not None
        if self.parts == 1:
            inputs = [*self._leaves, *self._own_args[0], *self._noise[0], *self._numbers, *state]
            yield whole.call(0, 0, inputs, self._losses[:, 0])
            return
        for part in range(self.parts):
            yield whole.call(0, part, self._part_inputs(part), self._losses[:, part])
        phases = len(updates) // 2
        for thread in range(self.parts + 1):
            for phase in range(phases):
                inputs = self._update_inputs(thread, phase, state)
                code = updates[phase + phases * (thread == self.parts)]
                if code is not None:
                    yield code.call(1 + phase, min(thread, self.parts - 1), inputs)

    def _copies(self) -> Iterator[Copy]:
        given = [*self._args, *(draw.empty(1)[0] for draw in self._draws)]
        dims = [*self._dims, *self._noise_dims]
        for part in range(self.parts):
            targets = [*self._own_args[part], *self._noise[part]]
            for i, (target, dim) in enumerate(zip(targets, dims, strict=True)):
                start = 0 if dim is None else part * target.shape[dim]
                yield Copy(part, i, target, given[i].shape, dim, start)
        for i, numbers in enumerate(self._numbers, len(given)):
            yield Copy(0, i, numbers, numbers.shape)


def _gradient(owned: _Owned, left: Iterator[Tensor]) -> Tensor:
    """The gradient of a parameter's rows, from the inputs that follow."""
    if owned.sums is not None:
        first, *others = next(left).unbind()
        for other in others:
            first = first + other
        return first
    total = None
    for _ in owned.factors:
        product = next(left).t() @ next(left)
        total = product if total is None else total + product
    assert total is not None
    return total


def _loss_type(graph: GraphModule) -> torch.dtype:
    output: Any = graph.graph.find_nodes(op="output")[0]
    dtype: torch.dtype = output.args[0][0].meta["val"].dtype
    return dtype
