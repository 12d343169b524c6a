"""Calls of a graph with the parameters that it reads.

The optimizer's step is part of the graph or separate, or the gradients are passed to autograd.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from pyroae.compilation.codegen import Graph, Recorded, cuda_graph
from pyroae.compilation.optimizer_steps import Update
from pyroae.compilation.optimizer_updates import closed_form_steps


class GraphCall:
    """A graph with the parameters that it reads and, optionally, the optimizer's step.

    A step on a GPU is one launch of a CUDA graph.

    Args:
        graph: From parameters, arguments and the optimizer's numbers and state to the outputs.
        leaves: The parameters.
        where: Indices of the arguments that are inputs of the graph.
        update: The step; None for a graph without one.

    Attributes:
        is_recorded: Whether steps are recorded as CUDA graphs; None for those on a GPU only.
        recorded: The recorded steps; None if they are not recorded.
    """

    is_recorded: ClassVar[bool | None] = None

    def __init__(
        self, graph: Graph, leaves: list[nn.Parameter], where: list[int], update: Update | None
    ) -> None:
        self.graph, self.where, self.update = graph, where, update
        self.leaves = [p.detach() for p in leaves]
        is_recorded = (
            self.leaves[0].device.type == "cuda" if self.is_recorded is None else self.is_recorded
        )
        self.recorded = (
            Recorded(self._in_order, cuda_graph) if is_recorded and update is not None else None
        )

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        """Run the graph, and count the step if it has one.

        Args:
            *args: All arguments of the programs, a KL weight last.

        Returns:
            The outputs of the graph: the bound and its gradients, or the loss of a step.
        """
        tensors = [args[i] for i in self.where]
        with torch.no_grad():
            if self.update is None:
                return self.graph(*self.leaves, *tensors)
            numbers = [self.update.numbers()]
            if self.recorded is not None:
                outputs = self.run_steps([t.unsqueeze(0) for t in tensors], numbers)
                return tuple(output[0] for output in outputs)
            rates, state = self.update.tensors(numbers), self.update.state()
            outputs = self.graph(*self.leaves, *tensors, *rates, *state)
            self.update.count()
        return outputs

    def run_steps(
        self, tensors: Sequence[Tensor], numbers: Sequence[list[list[float]]]
    ) -> tuple[Tensor, ...]:
        """Take S recorded steps by one launch.

        Args:
            tensors: The inputs of the steps, each `[S, ...]`.
            numbers: The optimizer's numbers of each step, as of `Update.numbers`.

        Returns:
            The outputs of the graph, each `[S, ...]`.
        """
        assert self.update is not None
        assert self.recorded is not None
        with torch.no_grad():
            rates = self.update.tensors(numbers, stacked=True)
            outputs = self.recorded([*self.leaves, *self.update.state()], [*tensors, *rates])
        self.update.count(len(numbers))
        return outputs

    def _in_order(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the graph, whose state is last, on tensors of which the static ones are first."""
        static = len(tensors) - len(self.where) - len(cast(Update, self.update).rules)
        leaves, state = tensors[: len(self.leaves)], tensors[len(self.leaves) : static]
        return self.graph(*leaves, *tensors[static:], *state)


class SeparateOptimizer:
    """A graph of the gradients, and an optimizer that steps outside of it.

    Args:
        gradients: From the arguments to the bound and a gradient for each parameter.
        optimizer: An optimizer of torch.
        parameters: The parameters.
        reached: Whether each parameter has a gradient.
        grad_clip: Largest norm of the whole gradient; None for no limit.
        divisor: The number that bound and gradients are divided by.
    """

    def __init__(
        self,
        gradients: Graph,
        optimizer: torch.optim.Optimizer,
        parameters: list[nn.Parameter],
        reached: list[bool],
        grad_clip: float | None,
        divisor: float,
    ) -> None:
        self.gradients, self.optimizer, self.parameters = gradients, optimizer, parameters
        self.reached, self.grad_clip, self.divisor = reached, grad_clip, divisor

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        """Compute the gradients and take a step.

        Args:
            *args: All arguments of the programs, a KL weight last.

        Returns:
            The loss before the step: the negative bound over the divisor, a scalar, in nats.
        """
        values: list[Tensor] = []

        def closure() -> Tensor:
            value, *grads = self.gradients(*args)
            for parameter, grad, reached in zip(self.parameters, grads, self.reached, strict=True):
                parameter.grad = grad.div_(self.divisor) if reached else None
            closed_form = closed_form_steps(self.optimizer)
            if self.grad_clip is not None:
                torch.nn.utils.clip_grad_norm_(self.parameters, self.grad_clip)
            values.append(-value / self.divisor)
            closed_form()
            return values[-1]

        self.optimizer.step(closure)  # type: ignore[arg-type]
        return (values[0],)


class KnownGradients(torch.autograd.Function):
    """A bound whose gradients are computed already.

    `backward` gives each parameter the gradient of the surrogate: −1 times the stored one.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: tuple[Tensor, ...], *parameters: Tensor) -> Tensor:
        """Store the gradients.

        Args:
            ctx: The context of autograd.
            value: The bound, a scalar, in nats.
            grads: The gradient of the negative surrogate for each parameter, of its shape.
            *parameters: The parameters.

        Returns:
            A copy of the bound.
        """
        ctx.grads = grads
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        """Multiply the stored gradients by the outer gradient.

        Args:
            ctx: The context of autograd.
            *outer: The gradient with respect to the bound, a scalar.

        Returns:
            None for bound and gradients, then a gradient for each parameter.
        """
        return None, None, *(-outer[0] * grad for grad in ctx.grads)
