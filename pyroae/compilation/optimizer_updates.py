"""Optimizers of torch as functions that a graph can hold: the same state, the same arithmetic, nothing read back.

What changes from step to step (learning rate, corrections of the moments' bias) is worked out beside the graph, in double
precision as torch does, and is an input of it: inside, a power would be taken again for every few weights.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from pyroae.compilation.codegen import on_device

GROUPED = ("cuda",)
"""Devices on which a kernel costs more to launch than a small parameter takes: one kernel changes all parameters."""


class Rule(ABC):
    """One step of an optimizer for one parameter."""

    state: ClassVar[tuple[str, ...]]
    """The tensors that torch's optimizer keeps for a parameter, each of its shape."""

    @abstractmethod
    def numbers(self, step: int, group: Mapping[str, Any]) -> list[float]:
        """What differs between steps; `step` counts from 1."""

    @abstractmethod
    def apply(
        self, parameter: Tensor, grad: Tensor, state: Sequence[Tensor], numbers: Tensor
    ) -> None:
        """Change the parameter and its state in place."""

    def apply_all(
        self,
        parameters: Sequence[Tensor],
        grads: Sequence[Tensor],
        states: Sequence[Sequence[Tensor]],
        numbers: Tensor,
    ) -> None:
        """Change all parameters of a group and their states in place."""
        for parameter, grad, state in zip(parameters, grads, states, strict=True):
            self.apply(parameter, grad, state, numbers)


@dataclass(frozen=True)
class Adam(Rule):
    """Adam (Kingma & Ba 2015), and AdamW (Loshchilov & Hutter 2019) where the decay of the weights is decoupled."""

    betas: tuple[float, float]
    eps: float
    weight_decay: float
    decoupled: bool
    state = ("exp_avg", "exp_avg_sq")

    def numbers(self, step: int, group: Mapping[str, Any]) -> list[float]:
        """The step size, 1/√ of the second moment's correction, and what is left of a weight that decays."""
        first, second = (1 - beta**step for beta in self.betas)
        return [-group["lr"] / first, 1 / math.sqrt(second), 1 - group["lr"] * self.weight_decay]

    def apply(
        self, parameter: Tensor, grad: Tensor, state: Sequence[Tensor], numbers: Tensor
    ) -> None:
        """m += (1 − β₁)(g − m); v = β₂v + (1 − β₂)g²; w −= lr m̂ / (√v̂ + ε)."""
        mean, square = state
        size, correction, left = numbers.unbind()
        if self.weight_decay and self.decoupled:
            parameter.mul_(left)
        elif self.weight_decay:
            grad = grad + self.weight_decay * parameter
        mean.lerp_(grad, 1 - self.betas[0])
        square.mul_(self.betas[1]).addcmul_(grad, grad, value=1 - self.betas[1])
        parameter.add_(size * mean / (square.sqrt() * correction + self.eps))

    def apply_all(
        self,
        parameters: Sequence[Tensor],
        grads: Sequence[Tensor],
        states: Sequence[Sequence[Tensor]],
        numbers: Tensor,
    ) -> None:
        """The same arithmetic; on devices of `GROUPED` by operations over all parameters, which become one kernel."""
        if not parameters or parameters[0].device.type not in GROUPED:
            super().apply_all(parameters, grads, states, numbers)
            return
        size, correction, left = numbers.unbind()
        weights, slopes = list(parameters), list(grads)
        means, squares = [state[0] for state in states], [state[1] for state in states]
        if self.weight_decay and self.decoupled:
            torch._foreach_mul_(weights, left)
        elif self.weight_decay:
            slopes = list(
                torch._foreach_add(slopes, torch._foreach_mul(weights, self.weight_decay))
            )
        torch._foreach_lerp_(means, slopes, 1 - self.betas[0])
        torch._foreach_mul_(squares, self.betas[1])
        torch._foreach_addcmul_(squares, slopes, slopes, 1 - self.betas[1])
        roots = torch._foreach_add(
            torch._foreach_mul(torch._foreach_sqrt(squares), correction), self.eps
        )
        torch._foreach_add_(weights, torch._foreach_div(torch._foreach_mul(means, size), roots))


@dataclass(frozen=True)
class SGD(Rule):
    """Stochastic gradient descent, with momentum or without."""

    momentum: float
    weight_decay: float
    nesterov: bool

    @property
    def state(self) -> tuple[str, ...]:  # type: ignore[override]
        """The momentum, where there is any."""
        return ("momentum_buffer",) if self.momentum else ()

    def numbers(self, step: int, group: Mapping[str, Any]) -> list[float]:
        """The step size."""
        return [-group["lr"]]

    def apply(
        self, parameter: Tensor, grad: Tensor, state: Sequence[Tensor], numbers: Tensor
    ) -> None:
        """b = μb + g; w −= lr b, or lr (g + μb) after Nesterov."""
        if self.weight_decay:
            grad = grad + self.weight_decay * parameter
        if self.momentum:
            buffer = state[0].mul_(self.momentum).add_(grad)
            grad = grad + self.momentum * buffer if self.nesterov else buffer
        parameter.add_(numbers[0] * grad)


def rule_of(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> Rule | None:
    """What the optimizer does to the parameters of a group; None for one that is not known here, or is set otherwise.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> adam = torch.optim.Adam([weight], lr=0.1)
    >>> rule_of(adam, adam.param_groups[0])
    Adam(betas=(0.9, 0.999), eps=1e-08, weight_decay=0, decoupled=False)
    """
    unusual = ("amsgrad", "maximize", "differentiable", "capturable", "dampening")
    if any(group.get(name) for name in unusual) or isinstance(group["lr"], Tensor):
        return None
    kind = type(optimizer)
    if kind in (torch.optim.Adam, torch.optim.AdamW):
        decoupled = kind is torch.optim.AdamW or bool(group.get("decoupled_weight_decay"))
        first, second = map(float, group["betas"])
        return Adam((first, second), group["eps"], group["weight_decay"], decoupled)
    if kind is torch.optim.SGD:
        return SGD(group["momentum"], group["weight_decay"], bool(group["nesterov"]))
    return None


class Update:
    """The step of an optimizer of torch in a graph: its state is the optimizer's own, changed in place."""

    def __init__(self, optimizer: torch.optim.Optimizer, rules: list[Rule]) -> None:
        self.optimizer, self.rules = optimizer, rules
        self.parameters: list[list[Tensor]] = []
        self.counts: list[Tensor] = []
        self._shared: list[Any] = []

    @classmethod
    def of(
        cls, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]
    ) -> "Update | None":
        """None for an optimizer without a rule, or one whose state is not that of a step that all parameters took."""
        rules = [rule_of(optimizer, group) for group in optimizer.param_groups]
        if any(rule is None for rule in rules):
            return None
        update = cls(optimizer, cast(list[Rule], rules))
        wanted, order = {id(p) for p in parameters}, []
        for rule, group in zip(update.rules, optimizer.param_groups, strict=True):
            update.parameters.append([p for p in group["params"] if id(p) in wanted])
            order += [id(p) for p in update.parameters[-1]]
            states = [optimizer.state.get(p, {}) for p in update.parameters[-1]]
            if any(state.get(name) is None for state in states for name in rule.state):
                return None
            if any("step" in state and state["step"].device.type != "cpu" for state in states):
                return None
        if order != [id(p) for p in parameters]:
            return None
        update.refresh()
        return update

    def refresh(self) -> None:
        """Take up the optimizer's counts of steps, which a restored state has replaced."""
        states = [self.optimizer.state.get(p, {}) for group in self.parameters for p in group]
        self.counts = [state["step"] for state in states if "step" in state]
        self._shared = [
            count.numpy() for count in self.counts
        ]  # torch takes thirty times as long to change a number

    def numbers(self, ahead: int = 0) -> list[list[float]]:
        """What differs from step to step, for each group. ahead: of the step after so many more, with the rates of now."""
        first = next(p for group in self.parameters for p in group)
        if self.counts and self.optimizer.state[first]["step"] is not self.counts[0]:
            self.refresh()
        step = int(self._shared[0]) + 1 + ahead if self._shared else 1
        groups = zip(self.rules, self.optimizer.param_groups, strict=True)
        return [rule.numbers(step, group) for rule, group in groups]

    def tensors(self, numbers: Sequence[list[list[float]]], stacked: bool = False) -> list[Tensor]:
        """The numbers of one step, or of several steps `[S, ...]`, as the graph takes them: a tensor for each group."""
        like = next(p for group in self.parameters for p in group)
        groups = [list(rows) for rows in zip(*numbers, strict=True)]
        return [on_device(rows if stacked else rows[0], like.dtype, like.device) for rows in groups]

    def state(self) -> list[Tensor]:
        """What the optimizer keeps for each parameter."""
        return [self.optimizer.state[p][name] for p, name in self.slots()]

    def slots(self) -> list[tuple[Tensor, str]]:
        """Where the optimizer keeps the state that a graph reads: by parameter and name, in the graph's order."""
        pairs = zip(self.rules, self.parameters, strict=True)
        return [(p, name) for rule, parameters in pairs for p in parameters for name in rule.state]

    def count(self, steps: int = 1) -> None:
        """Record that steps were taken, where steps of other graphs and those beside them are recorded too."""
        for count in self._shared:
            count[()] += steps

    def apply(
        self, parameters: Sequence[Tensor], grads: Sequence[Tensor], tensors: Sequence[Tensor]
    ) -> None:
        """Take the step, on the tensors of the graph."""
        at, state = 0, iter(tensors[len(self.rules) :])
        for rule, group, numbers in zip(self.rules, self.parameters, tensors, strict=False):
            here = slice(at, at + len(group))
            rule.apply_all(
                parameters[here],
                grads[here],
                [[next(state) for _ in rule.state] for _ in group],
                numbers,
            )
            at += len(group)


def clipped(grads: Sequence[Tensor], largest: float | None) -> list[Tensor]:
    """The gradients, scaled so that the norm of all of them is at most `largest`, where one is given.

    >>> clipped([torch.tensor([3.0]), torch.tensor([4.0])], 1.0)
    [tensor([0.6000]), tensor([0.8000])]
    """
    if largest is None:
        return list(grads)
    norm = torch.stack([grad.norm() for grad in grads]).norm()
    share = (largest / (norm + 1e-6)).clamp(max=1.0)
    return [grad * share for grad in grads]
