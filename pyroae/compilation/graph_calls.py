"""A graph called with the parameters it reads: a step inside of it, beside it, or gradients handed to autograd."""

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from pyroae.compilation.codegen import Graph, Recorded, cuda_graph
from pyroae.compilation.optimizer_updates import Update


class Call:
    """A graph with the parameters it reads, and the step it takes: on a GPU as one launch."""

    is_recorded: ClassVar[bool | None] = None
    """Whether a step is recorded: None for a GPU's alone."""

    def __init__(
        self, graph: Graph, leaves: list[nn.Parameter], where: list[int], update: Update | None
    ) -> None:
        self.graph, self.leaves, self.where, self.update = (
            graph,
            [p.detach() for p in leaves],
            where,
            update,
        )
        is_recorded = (
            self.leaves[0].device.type == "cuda" if self.is_recorded is None else self.is_recorded
        )
        self.recorded = (
            Recorded(self._in_order, cuda_graph) if is_recorded and update is not None else None
        )

    def __call__(self, *given: Any) -> tuple[Tensor, ...]:
        tensors = [given[i] for i in self.where]
        with torch.no_grad():
            if self.update is None:
                return self.graph(*self.leaves, *tensors)
            if self.recorded is not None:
                found = self.several([t.unsqueeze(0) for t in tensors], [self.update.numbers()])
                return tuple(output[0] for output in found)
            found = self.graph(
                *self.leaves,
                *tensors,
                *self.update.tensors([self.update.numbers()]),
                *self.update.state(),
            )
            self.update.count()
        return found

    def several(
        self, tensors: Sequence[Tensor], numbers: Sequence[list[list[float]]]
    ) -> tuple[Tensor, ...]:
        """Recorded steps as one launch. tensors: what each is given, `[S, ...]`. numbers: of the optimizer, for each step."""
        assert self.update is not None
        assert self.recorded is not None
        with torch.no_grad():
            rates = self.update.tensors(numbers, stacked=True)
            found = self.recorded([*self.leaves, *self.update.state()], [*tensors, *rates])
        self.update.count(len(numbers))
        return found

    def _in_order(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What stays comes first where a step is recorded; the graph has its state last."""
        kept = len(tensors) - len(self.where) - len(cast(Update, self.update).rules)
        leaves, state = tensors[: len(self.leaves)], tensors[len(self.leaves) : kept]
        return self.graph(*leaves, *tensors[kept:], *state)


class Beside:
    """A graph of the gradients, and an optimizer that steps beside it."""

    def __init__(
        self,
        gradients: Graph,
        optimizer: torch.optim.Optimizer,
        parameters: list[nn.Parameter],
        reached: list[bool],
        grad_clip: float | None,
        divisor: float,
    ) -> None:
        self.gradients, self.optimizer, self.parameters, self.reached = (
            gradients,
            optimizer,
            parameters,
            reached,
        )
        self.grad_clip, self.divisor = grad_clip, divisor

    def __call__(self, *given: Any) -> tuple[Tensor, ...]:
        values: list[Tensor] = []

        def closure() -> Tensor:
            value, *grads = self.gradients(*given)
            for parameter, grad, reached in zip(self.parameters, grads, self.reached, strict=True):
                parameter.grad = grad.div_(self.divisor) if reached else None
            if self.grad_clip is not None:
                torch.nn.utils.clip_grad_norm_(self.parameters, self.grad_clip)
            values.append(-value / self.divisor)
            return values[-1]

        self.optimizer.step(closure)  # type: ignore[arg-type]
        return (values[0],)


class Known(torch.autograd.Function):
    """A number whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: tuple[Tensor, ...], *parameters: Tensor) -> Tensor:
        ctx.grads = grads
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        return None, None, *(-outer[0] * grad for grad in ctx.grads)
