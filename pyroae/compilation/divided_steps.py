"""Steps of a training on a CPU, several a call of a loop in C++.

    phase 1: each thread computes the loss and the gradients of a part of the batch, or all threads
             those of the whole batch
    phase 2: each thread adds the gradients of its rows of every parameter, and updates these rows

The gradient of a linear layer's weight is computed in phase 2, from the whole batch, by the thread
that owns its rows. With a limit on the norm of the gradient, a third phase updates. All noise is
drawn before the call, in the order of eager code.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph_module import GraphModule

from pyroae.compilation.batch_parts import adds_up, parts_of, products_of
from pyroae.compilation.gradient_rows import Columns, Owned
from pyroae.compilation.noise_inputs import Draw, lift_draws
from pyroae.compilation.optimizer_steps import Update
from pyroae.compilation.row_updates import Code, Execution, RowUpdates
from pyroae.compilation.step_loop import ALL, Call, Copy, StepLoop

MOST_STEPS = 64
"""Largest number of steps of one call."""


LEAST_ROWS = 32
"""Fewest rows of a part's products: with fewer, each core reads all weights for too little work."""


Trace = Callable[[Sequence[Tensor]], GraphModule]
"""From arguments to the graph of a loss and of the gradients that are reached."""


def number_of_parts(threads: int, batch: int, particles: int = 1) -> int:
    """Choose into how many parts a batch is divided.

    Each core reads all weights for its part. With few rows, products that all cores divide are
    faster.

    Args:
        threads: Torch's number of threads.
        batch: The number of data B.
        particles: K, the number of draws for each of them.

    Returns:
        The largest number of equal parts of enough rows that more than half of the threads have;
        1 without one.

    >>> number_of_parts(2, 128), number_of_parts(2, 20), number_of_parts(8, 20, 50)
    (2, 1, 5)
    """
    rows = batch * particles
    sizes = range(threads, threads // 2, -1)
    return next((n for n in sizes if batch % n == 0 and rows >= n * LEAST_ROWS), 1)


class NotDividedError(Exception):
    """A step whose batch cannot be divided into parts; the message says why."""


class DividedStep:
    """A step of a training whose work is divided among threads, and many steps in one call.

    Args:
        trace: Traces the loss over some rows of the batch.
        values: All arguments, a weight of the KL last; tensors are `[B, ...]` or the same for all
            data.
        leaves: The parameters.
        update: The optimizer's step, on those that have a gradient.
        execution: The threads, what generates code, and the generator of the draws.
        parts: The number P of parts of the batch, at most that of threads; 1 for operations that
            use all threads.

    Attributes:
        update: The optimizer's step.
        parts: The number P of parts.
        where: Indices of the arguments that are tensors.

    Raises:
        NotLiftedError: If a draw cannot be an input.
        NotDividedError: If the parts do not add up to the whole.
        NoEntryError: If the code cannot be called from C++.
    """

    def __init__(
        self,
        trace: Trace,
        values: Sequence[Any],
        leaves: Sequence[nn.Parameter],
        update: Update,
        execution: Execution,
        parts: int,
    ) -> None:
        self.update, self.parts = update, parts
        self._threads, self._generator = execution.threads, execution.generator
        self.where = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
        args = [values[i] for i in self.where]
        self._leaves = [p.detach() for p in leaves]
        batch = next((len(t) for t in args if t.ndim), 0)
        self._args = [t.detach().clone(memory_format=torch.contiguous_format) for t in args]
        self._dims: list[int | None] = [
            0 if t.ndim and len(t) == batch and parts > 1 else None for t in args
        ]
        own = self._args_of(0)
        graph, self._draws = lift_draws(trace(own))
        self._noise_dims: list[int | None] = [None] * len(self._draws)
        shapes = [draw.shape for draw in self._draws]
        if parts > 1:
            self._check(graph, *lift_draws(trace(self._args)))
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
            Owned(parameter.detach(), update.rules[i], i)
            for i, group in enumerate(update.parameters)
            for parameter in group
        ]
        if update.grad_clip is not None:
            for owned in self._owned:
                owned.whole = torch.zeros_like(owned.parameter)
        self._targets: list[Columns | Tensor] = []
        self._code = self._code_of(graph, execution)
        self._updates = RowUpdates(self._owned, self._numbers, update, execution)
        self._state: list[Tensor] = []
        self._loop: StepLoop | None = None
        self._loop_of(update.state())

    def _args_of(self, part: int) -> list[Tensor]:
        """The arguments of a part: its rows of the batch's tensor, or a tensor of its own."""
        return [
            t.clone() if dim is None and part else t if dim is None else t.chunk(self.parts)[part]
            for t, dim in zip(self._args, self._dims, strict=True)
        ]

    def _check(self, part: GraphModule, whole: GraphModule, draws: list[Draw]) -> None:
        """Refuse a loss that is no sum over the parts; take the draws of the whole batch."""
        dims = parts_of(draws, self._draws, self.parts)
        if dims is None:
            raise NotDividedError("the draws of a part are no part of those of the batch")
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
                raise NotDividedError(
                    "the gradients of the parts do not add up to those of a batch"
                )

    # Graphs.

    def _code_of(self, graph: GraphModule, execution: Execution) -> Code:
        """The gradients of a part."""
        count, stored = len(graph.graph.find_nodes(op="placeholder")), self._stores(graph)
        threads = self._threads

        def part(*inputs: Tensor) -> tuple[Tensor]:
            loss, *values = fx.Interpreter(graph).run(*inputs[:count])
            targets = iter(inputs[count:])
            for value, (is_transposed, is_divided) in zip(values, stored, strict=True):
                matrix = value.t() if is_transposed else value
                if is_divided:
                    Columns.store(matrix, targets, threads)
                else:
                    next(targets).copy_(matrix)
            return (loss,)

        return Code.of(part, self._part_inputs(0), execution.make_code, self._is_one_core)

    @property
    def _is_one_core(self) -> bool:
        """Whether the code of a part uses one core."""
        return self.parts > 1 or self._threads == 1

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
        for owned, place in zip(self._owned, self.update.order, strict=True):
            grad = grads[place]
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
                columns = Columns(rows, length[0], self._threads, value.dtype)
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
            if isinstance(target, Columns):
                inputs += target.part(part, self.parts)
            else:
                inputs.append(target.chunk(self.parts)[part])
        return inputs

    # Steps.

    def draw(self) -> list[Tensor]:
        """Draw the noise of the next step, as eager code does.

        Returns:
            The noise of the whole batch.
        """
        noise = [draw.empty(1)[0] for draw in self._draws]
        for draw, tensor in zip(self._draws, noise, strict=True):
            draw.fill(tensor, self._generator)
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
            self._loop = StepLoop(self._threads, list(self._calls(state)), list(self._copies()))
            self._state = state
        return self._loop

    def _calls(self, state: list[Tensor]) -> Iterator[Call]:
        for part in range(self.parts):
            thread = part if self._is_one_core else ALL
            yield self._code.call(0, thread, self._part_inputs(part), self._losses[:, part])
        yield from self._updates.calls(state)

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


def _loss_type(graph: GraphModule) -> torch.dtype:
    output: Any = graph.graph.find_nodes(op="output")[0]
    dtype: torch.dtype = output.args[0][0].meta["val"].dtype
    return dtype
