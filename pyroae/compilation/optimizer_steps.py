"""The step of an optimizer of torch as a part of a graph, on the optimizer's own state."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyroae.compilation.codegen import on_device
from pyroae.compilation.optimizer_updates import ClosedForm, Rule, numbers_after, rule_of


class Update:
    """The step of an optimizer of torch inside a graph, on the optimizer's own state.

    Args:
        optimizer: The optimizer of torch.
        rules: The rule of each parameter group.
        grad_clip: Largest norm of the whole gradient; None for no limit.

    Attributes:
        parameters: The parameters that a gradient reaches, by group.
        order: The place of each of these among the parameters that a graph is made for.
        counts: The optimizer's counts of steps, a scalar tensor for each parameter that has one.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, rules: list[Rule], grad_clip: float | None
    ) -> None:
        self.optimizer, self.rules, self.grad_clip = optimizer, rules, grad_clip
        self.parameters: list[list[Tensor]] = []
        self.order: list[int] = []
        self.counts: list[Tensor] = []
        self._count_arrays: list[Any] = []

    @classmethod
    def of(
        cls,
        optimizer: torch.optim.Optimizer,
        parameters: list[nn.Parameter],
        grad_clip: float | None = None,
    ) -> "Update | None":
        """Make the step of an optimizer.

        Args:
            optimizer: The optimizer of torch, after its first step.
            parameters: The parameters that a gradient reaches.
            grad_clip: Largest norm of the whole gradient; None for no limit.

        Returns:
            The step; None for an optimizer without a rule, for one in which some parameters have
            not taken a step, for counts on a GPU, and for parameters that are not its own.
        """
        rules = [rule_of(optimizer, group) for group in optimizer.param_groups]
        if any(rule is None for rule in rules):
            return None
        update = cls(optimizer, cast(list[Rule], rules), grad_clip)
        ids, order = {id(p) for p in parameters}, []
        for rule, group in zip(update.rules, optimizer.param_groups, strict=True):
            update.parameters.append([p for p in group["params"] if id(p) in ids])
            order += [id(p) for p in update.parameters[-1]]
            states = [optimizer.state.get(p, {}) for p in update.parameters[-1]]
            if any(state.get(name) is None for state in states for name in rule.state):
                return None
            if any("step" in state and state["step"].device.type != "cpu" for state in states):
                return None
        if set(order) != ids:
            return None
        at = {id(p): i for i, p in enumerate(parameters)}
        update.order = [at[one] for one in order]
        update.refresh()
        return update

    def refresh(self) -> None:
        """Read the optimizer's counts of steps, which a restored state has replaced."""
        states = [self.optimizer.state.get(p, {}) for group in self.parameters for p in group]
        self.counts = [state["step"] for state in states if "step" in state]
        # Arrays of the same memory: torch needs thirty times as long to change a number.
        self._count_arrays = [count.numpy() for count in self.counts]

    def numbers(self, ahead: int = 0) -> list[list[float]]:
        """Compute the numbers that differ between steps.

        Args:
            ahead: How many steps after the next one, at the present rates; 0 is the next step.

        Returns:
            The numbers for each parameter group.
        """
        first = next(p for group in self.parameters for p in group)
        if self.counts and self.optimizer.state[first]["step"] is not self.counts[0]:
            self.refresh()
        step = int(self._count_arrays[0]) + 1 + ahead if self._count_arrays else 1
        groups = zip(self.rules, self.optimizer.param_groups, strict=True)
        return [rule.numbers(step, group) for rule, group in groups]

    def tensors(self, numbers: Sequence[list[list[float]]], stacked: bool = False) -> list[Tensor]:
        """Copy the numbers of steps to the device, as inputs of the graph.

        Args:
            numbers: The result of `numbers` for each of S steps.
            stacked: Whether to take all steps, or the first only.

        Returns:
            A vector for each parameter group; with `stacked` a matrix with a row per step.
        """
        like = next(p for group in self.parameters for p in group)
        groups = [list(rows) for rows in zip(*numbers, strict=True)]
        return [on_device(rows if stacked else rows[0], like.dtype, like.device) for rows in groups]

    def state(self) -> list[Tensor]:
        """List the tensors that the optimizer stores for the parameters.

        Returns:
            Tensors of the parameters' shapes, in the order of `slots`.
        """
        return [self.optimizer.state[p][name] for p, name in self.slots()]

    def slots(self) -> list[tuple[Tensor, str]]:
        """List the places of the state that a graph reads.

        Returns:
            Parameters and names of their state, in the graph's order.
        """
        pairs = zip(self.rules, self.parameters, strict=True)
        return [(p, name) for rule, parameters in pairs for p in parameters for name in rule.state]

    def count(self, steps: int = 1) -> None:
        """Add steps to the optimizer's counts, which other graphs and eager steps share.

        Args:
            steps: The number of steps taken.
        """
        for count in self._count_arrays:
            count[()] += steps

    def apply(
        self,
        parameters: Sequence[Tensor],
        grads: Sequence[Tensor],
        tensors: Sequence[Tensor],
        loss: Tensor,
    ) -> None:
        """Take the step on the tensors of a graph, in place, after its loss is computed.

        Args:
            parameters: The parameters that the update was made for, in the same order.
            grads: The gradient of each.
            tensors: The numbers of each group, then the state in the order of `slots`.
            loss: The loss before the step, which the graph returns.
        """
        at, state = 0, iter(tensors[len(self.rules) :])
        parameters, grads = [parameters[i] for i in self.order], [grads[i] for i in self.order]
        for rule, group, numbers in zip(self.rules, self.parameters, tensors, strict=False):
            of_group = slice(at, at + len(group))
            states = [[next(state) for _ in rule.state] for _ in group]
            own = numbers_after(loss, numbers)
            rule.apply_all(parameters[of_group], grads[of_group], states, own)
            at += len(group)

    def clipped(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Scale the gradients that the optimizer uses to a joint norm of at most `grad_clip`.

        Args:
            grads: The gradients, in the order of the parameters that the update was made for.

        Returns:
            The gradients; those of parameters with a closed form are unchanged.
        """
        counts = zip(self.rules, map(len, self.parameters), strict=True)
        is_own = [not isinstance(rule, ClosedForm) for rule, count in counts for _ in range(count)]
        where = [i for i, own in zip(self.order, is_own, strict=True) if own]
        result = list(grads)
        for i, grad in zip(where, clipped([grads[i] for i in where], self.grad_clip), strict=True):
            result[i] = grad
        return result


def clipped(grads: Sequence[Tensor], largest: float | None) -> list[Tensor]:
    """Scale gradients so that their joint norm is at most a given one.

    Args:
        grads: The gradients.
        largest: The largest norm; None for no limit.

    Returns:
        The gradients, all multiplied by the same factor of at most 1.

    >>> clipped([torch.tensor([3.0]), torch.tensor([4.0])], 1.0)
    [tensor([0.6000]), tensor([0.8000])]
    """
    if largest is None:
        return list(grads)
    norm = torch.stack([grad.norm() for grad in grads]).norm()
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    return [grad * factor for grad in grads]
