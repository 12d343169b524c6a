"""The graphs of a training: which one a step takes, how it is traced, what compiles it."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx.graph_module import GraphModule

from pyroae.compilation import optimizer_updates
from pyroae.compilation.codegen import Graph, inductor
from pyroae.compilation.divided_steps import DividedStep, NotDividedError, number_of_parts
from pyroae.compilation.eager_training import EagerTraining, filled
from pyroae.compilation.graph_calls import GraphCall, SeparateOptimizer
from pyroae.compilation.noise_inputs import NotLiftedError
from pyroae.compilation.optimizer_steps import Update
from pyroae.compilation.row_updates import Execution
from pyroae.compilation.shared_code import SharedCode
from pyroae.compilation.step_loop import NoEntryError, start_compiling
from pyroae.compilation.tracing import UntraceableError, reason_of, trace_to_graph
from pyroae.errors import is_refusal
from pyroae.objectives.base import Bound
from pyroae.programs.pair import System
from pyroae.runtime.memory import is_out_of_memory
from pyroae.runtime.short_repr import Shown

Outputs = Callable[..., tuple[Tensor, ...]]
"""From a bound, the gradients of a loss (None where none reaches a parameter), the parameters and
the tensors of the optimizer's step to the outputs of a graph.
"""


@dataclass(frozen=True, repr=False)
class Traced(Shown):
    """A bound and its gradients as a graph, from parameters and arguments.

    Attributes:
        graph: The operations; the outputs are the bound, a scalar in nats, and the gradient of its
            negative surrogate for each parameter.
        inputs: Parameters, then arguments.
        where: Indices of the arguments, with a weight of the KL as the last, that are inputs.
        reached: Whether each parameter has a gradient.
        update: The optimizer's step; None without a rule for it.
    """

    graph: GraphModule
    inputs: list[Tensor]
    where: list[int]
    reached: list[bool]
    update: Update | None


@dataclass(frozen=True)
class Example:
    """What a graph is made for: arguments of the programs and the step that is taken on them.

    Attributes:
        args: All values of the programs' arguments.
        weights: The weight of the KL as a tensor; empty for none.
        divisor: The number that the bound is divided by.
        reached: Whether each parameter has a gradient.
        update: The optimizer's step; None for the bound and its gradients.
    """

    args: tuple[Any, ...]
    weights: tuple[Tensor, ...]
    divisor: float
    reached: list[bool]
    update: Update | None

    @property
    def values(self) -> tuple[Any, ...]:
        """The arguments, then the weight of the KL."""
        return *self.args, *self.weights

    @property
    def where(self) -> list[int]:
        """Indices of the tensors among the values."""
        return [i for i, value in enumerate(self.values) if isinstance(value, Tensor)]

    def on(self, tensors: Sequence[Tensor]) -> "Example":
        """Replace the tensors among the values.

        Args:
            tensors: Other tensors, one for each of `where`.

        Returns:
            The example on these tensors.
        """
        values = list(self.values)
        for i, tensor in zip(self.where, tensors, strict=True):
            values[i] = tensor
        count = len(self.args)
        return replace(self, args=tuple(values[:count]), weights=tuple(values[count:]))


@dataclass(frozen=True)
class StepGraphs:
    """Makes the graphs of a training.

    Attributes:
        training: The training as it runs eagerly.
        same_draws: Whether draws on a GPU equal those of eager code.
        backend: "inductor", or "eager" for the traced graph without code generation.
        shared: The code that the members of an ensemble share, and the generator of this member's
            draws; None for code of its own.
    """

    training: EagerTraining
    same_draws: bool
    backend: str
    shared: tuple[SharedCode, torch.Generator] | None

    def step(self, args: tuple[Any, ...], weights: tuple[Tensor, ...], divisor: float) -> Graph:
        """Compile a step of the optimizer.

        Args:
            args: All values of the programs' arguments.
            weights: The weight of the KL as a tensor; empty for none.
            divisor: The number that the bound is divided by.

        Returns:
            From arguments and weights to the loss: the step divided among threads where that is
            possible, else one graph, with the optimizer outside of it where it has no rule.

        Raises:
            ConfigError: Without an optimizer.
            UntraceableError: If the operations depend on values of tensors.
            RuntimeError: If a run changes a buffer.
        """
        optimizer = self.training.required_optimizer()
        example = self._example(args, weights, divisor)
        if example.update is None:
            gradients = self._call(replace(example, divisor=1.0))
            clip = self.training.grad_clip
            return SeparateOptimizer(
                gradients, optimizer, self._leaves, example.reached, clip, divisor
            )
        try:
            divided = self.divided_step(example)
        except Exception as error:  # any error of the compiler: one graph may still be compiled
            if self.backend == "eager" or is_refusal(error) or is_out_of_memory(error):
                raise
            graph = self._call(example)
            _warn_of_one_graph(reason_of(error))
            return graph
        return divided or self._call(example)

    def gradients(self, args: tuple[Any, ...], weights: tuple[Tensor, ...]) -> Graph:
        """Compile the bound and its gradients.

        Args:
            args: As of `step`.
            weights: As of `step`.

        Returns:
            From arguments and weights to the bound and the gradient for each parameter.

        Raises:
            UntraceableError: As of `step`.
            RuntimeError: As of `step`.
        """
        return self._call(replace(self._example(args, weights), update=None))

    def traced(self, args: tuple[Any, ...], weights: tuple[Tensor, ...]) -> Traced:
        """Trace the bound and its gradients.

        Args:
            args: As of `step`.
            weights: As of `step`.

        Returns:
            The graph and its inputs, with the optimizer's step if there is a rule for it.

        Raises:
            UntraceableError: As of `step`.
            RuntimeError: As of `step`.
        """
        example = self._example(args, weights)
        graph, inputs = self._traced(example, self._outputs)
        return Traced(graph, inputs, example.where, example.reached, example.update)

    @property
    def _leaves(self) -> list[nn.Parameter]:
        return list(self.training.parameters.values())

    def _example(
        self, args: tuple[Any, ...], weights: tuple[Tensor, ...], divisor: float = 1.0
    ) -> Example:
        """What a graph is made for, by an eager run."""
        training, update = self.training, None
        reached = training.reached(args, weights)
        if training.optimizer is not None:
            own = [p for p, is_reached in zip(self._leaves, reached, strict=True) if is_reached]
            update = Update.of(training.optimizer, own, training.grad_clip)
        return Example(args, weights, divisor, reached, update)

    # Steps divided among threads.

    def divided_step(self, example: Example) -> DividedStep | None:
        """Compile a step that is divided among threads.

        Args:
            example: What the graph is made for.

        Returns:
            The step; None on a GPU, and where it is impossible.

        Raises:
            Exception: Any error of the compiler.
        """
        devices = {p.device.type for p in self._leaves}
        if devices - {"cpu"} or devices & {*optimizer_updates.GROUPED}:
            return None
        assert example.update is not None
        execution, values = self._execution, example.values
        trace = partial(self._traced_loss, example)
        batch = next((len(values[i]) for i in example.where if values[i].ndim), 0)
        particles = int(getattr(self.training.objective, "num_particles", 1))
        parts = number_of_parts(execution.threads, batch, particles)
        try:
            for count in sorted({parts, 1}, reverse=True):
                with suppress(NotDividedError, UntraceableError):
                    return DividedStep(
                        trace, values, self._leaves, example.update, execution, count
                    )
        except (NotLiftedError, NoEntryError):
            pass
        return None

    @property
    def _execution(self) -> Execution:
        """How a divided step is run."""
        if self.shared is None:
            return Execution(self._code, torch.get_num_threads(), torch.default_generator)
        return Execution(self._code, 1, self.shared[1])

    def _code(self, graph: GraphModule, inputs: Sequence[Tensor], one_core: bool) -> Graph:
        """Code of a divided step, called from C++."""
        if self.shared is None and self.backend == "eager":
            return graph
        start_compiling()
        if self.shared is not None:
            return self.shared[0].compiled(graph, inputs, cpp=True)
        return inductor(graph, inputs, self.same_draws, cpp=True, one_core=one_core)

    def _traced_loss(self, example: Example, rows: Sequence[Tensor]) -> GraphModule:
        """The loss over some rows of the batch, and the gradients that are reached."""

        def loss_and_grads(
            bound: Bound, grads: Sequence[Tensor | None], *_: Any
        ) -> tuple[Tensor, ...]:
            loss = -bound.value.detach() / example.divisor
            return (loss, *(g for g in grads if g is not None))

        part = example.on(rows)
        # Objectives check programs in the first run on arguments of new shapes.
        if self.training.reached(part.args, part.weights) != part.reached:
            raise UntraceableError("other parameters have a gradient in a part of the batch")
        return self._traced(part, loss_and_grads)[0]

    # One graph.

    def _call(self, example: Example) -> GraphCall:
        """One graph of a step or, without an update, of the bound and its gradients."""
        update, of_update, outputs = example.update, list[Tensor](), self._outputs
        if update is not None:
            of_update = [*update.tensors([update.numbers()]), *update.state()]
            outputs = partial(_step, example, update)
        graph, inputs = self._traced(example, outputs, of_update)
        code: Graph
        if self.shared is not None:
            code = self.shared[0].code_of(graph, inputs, self.shared[1])
        else:
            code = graph if self.backend == "eager" else inductor(graph, inputs, self.same_draws)
        return GraphCall(code, self._leaves, example.where, update)

    def _outputs(self, bound: Bound, grads: Sequence[Tensor | None], *_: Any) -> tuple[Tensor, ...]:
        """The bound and the gradients of all parameters."""
        return (bound.value.detach(), *filled(grads, self._leaves))

    def _traced(
        self, example: Example, outputs: Outputs, of_update: Sequence[Tensor] = ()
    ) -> tuple[GraphModule, list[Tensor]]:
        """The operations and their inputs: parameters, tensors of the example, `of_update`."""
        # make_fx recognizes inputs by identity, wherever the programs hold them.
        leaves, training, divisor = self._leaves, self.training, example.divisor
        tensors = [*(example.values[i] for i in example.where), *of_update]
        end = len(leaves) + len(example.where)

        def function(*inputs: Any) -> tuple[Tensor, ...]:
            on = example.on(inputs[len(leaves) : end])
            with training.precision():
                bound = training.bound(on.args, on.weights[0] if on.weights else None)
            loss = -bound.surrogate if divisor == 1 else -bound.surrogate / divisor
            grads = torch.autograd.grad(loss, leaves, allow_unused=True)
            self._check_reached(grads, example.reached)
            return outputs(bound, grads, inputs[: len(leaves)], inputs[end:])

        with _unchanged([*leaves, *of_update]):  # tracing runs the step
            programs = cast(System, training.system)
            graph = trace_to_graph(function, [*leaves, *tensors], programs.model, programs.guide)
        return graph, [*[p.detach() for p in leaves], *tensors]

    def _check_reached(self, grads: Sequence[Tensor | None], reached: list[bool]) -> None:
        """Refuse a graph in which other parameters have a gradient than in an eager run."""
        for name, grad, is_reached in zip(self.training.parameters, grads, reached, strict=True):
            if (grad is not None) != is_reached:
                raise UntraceableError(f"the gradient of '{name}' is lost in tracing")


def _step(
    example: Example,
    update: Update,
    bound: Bound,
    grads: Sequence[Tensor | None],
    leaves: Sequence[Tensor],
    of_update: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """The loss before a step, which changes parameters and state in place."""
    loss = -bound.value.detach() / example.divisor
    with torch.no_grad():
        own = [p for p, is_reached in zip(leaves, example.reached, strict=True) if is_reached]
        clipped = update.clipped([g for g in grads if g is not None])
        update.apply(own, clipped, of_update, loss)
    return (loss,)


@cache
def _warn_of_one_graph(reason: str) -> None:
    """Warn once that steps are not taken by the loop."""
    warnings.warn(
        "training steps are compiled as one graph, called from Python for each step, and not as "
        f"a loop in C++: {reason}",
        stacklevel=9,
    )


@contextmanager
def _unchanged(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Restore the values of tensors on exit."""
    before = [t.detach().clone() for t in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
