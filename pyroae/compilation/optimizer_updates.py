"""Optimizers of torch as functions inside a graph: the same state and arithmetic, nothing read.

The numbers that change between steps (learning rate, corrections of the moments' bias) are computed
outside of the graph, in double precision as in torch, and are its inputs: inside, the powers would
be computed again for every few weights.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from pyroae.compilation.adam_operators import ADAM, adam

GROUPED = ("cuda",)
"""Devices on which the launch of a kernel costs more than the update of a small parameter.

One kernel then updates all parameters.
"""


FUSED = False
"""Whether the gradients of dense layers and their updates are one kernel on devices of GROUPED.

It is off until a GPU has confirmed it: `python -m benchmarks.gpu fusion` compares and times it.
"""


class Rule(ABC):
    """One step of an optimizer for one parameter.

    Attributes:
        state: Names of the tensors that torch's optimizer stores for a parameter, each of its
            shape.
    """

    state: ClassVar[tuple[str, ...]]

    @abstractmethod
    def numbers(self, step: int, group: Mapping[str, Any]) -> list[float]:
        """Compute the numbers that differ between steps.

        Args:
            step: Number of the step, from 1.
            group: The parameter group of torch's optimizer.

        Returns:
            The numbers, as many for each step.
        """

    @abstractmethod
    def apply(
        self, parameter: Tensor, grad: Tensor, state: Sequence[Tensor], numbers: Tensor
    ) -> None:
        """Change a parameter and its state in place.

        Args:
            parameter: The parameter.
            grad: Its gradient, of the same shape.
            state: The tensors of `self.state`, each of the same shape.
            numbers: The numbers of the step, a vector.
        """

    def apply_all(
        self,
        parameters: Sequence[Tensor],
        grads: Sequence[Tensor],
        states: Sequence[Sequence[Tensor]],
        numbers: Tensor,
    ) -> None:
        """Change all parameters of a group and their states in place.

        Args:
            parameters: The parameters.
            grads: The gradient of each.
            states: The state of each, as of `apply`.
            numbers: The numbers of the step, a vector.
        """
        for parameter, grad, state in zip(parameters, grads, states, strict=True):
            self.apply(parameter, grad, state, numbers)


@dataclass(frozen=True)
class Adam(Rule):
    """Adam, and AdamW where the weight decay is decoupled.

        m += (1 − β₁)(g − m);  v = β₂ v + (1 − β₂) g²;  w −= lr m̂ / (√v̂ + ε)

    Attributes:
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: The coefficient of the weight decay.
        decoupled: Whether the decay acts on the weights (AdamW), not on the gradient.

    References:
        Kingma & Ba 2015, Adam: a method for stochastic optimization.
        Loshchilov & Hutter 2019, Decoupled weight decay regularization.
    """

    betas: tuple[float, float]
    eps: float
    weight_decay: float
    decoupled: bool
    state = ("exp_avg", "exp_avg_sq")

    def numbers(self, step: int, group: Mapping[str, Any]) -> list[float]:
        """Compute the numbers of step t.

        Args:
            step: Number of the step, from 1.
            group: The parameter group of torch's optimizer.

        Returns:
            −lr / (1 − β₁ᵗ), 1 / √(1 − β₂ᵗ) and the factor of the decoupled decay.
        """
        first, second = (1 - beta**step for beta in self.betas)
        return [-group["lr"] / first, 1 / math.sqrt(second), 1 - group["lr"] * self.weight_decay]

    def apply(
        self, parameter: Tensor, grad: Tensor, state: Sequence[Tensor], numbers: Tensor
    ) -> None:
        """Change a parameter and its moments in place.

        Args:
            parameter: The parameter.
            grad: Its gradient, of the same shape.
            state: m and v, of the same shape.
            numbers: The result of `numbers`, `[3]`.
        """
        mean, square = state
        size, correction, decay = numbers.unbind()
        if self.weight_decay and self.decoupled:
            parameter.mul_(decay)
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
        """Change all parameters by the same arithmetic; on devices of GROUPED by one kernel.

        Args:
            parameters: The parameters.
            grads: The gradient of each.
            states: m and v of each.
            numbers: The result of `numbers`, `[3]`.
        """
        if not parameters or parameters[0].device.type not in GROUPED:
            super().apply_all(parameters, grads, states, numbers)
            return
        means, squares = [state[0] for state in states], [state[1] for state in states]
        settings = (*self.betas, self.eps, self.weight_decay, self.decoupled)
        step = ADAM if FUSED else adam
        step(list(parameters), means, squares, list(grads), numbers, *settings)


@dataclass(frozen=True)
class SGD(Rule):
    """Stochastic gradient descent, with momentum or without.

        b = μ b + g;  w −= lr b,  or lr (g + μ b) after Nesterov

    Attributes:
        momentum: μ; 0 for none.
        weight_decay: The coefficient of the weight decay, which is added to the gradient.
        nesterov: Whether the momentum is Nesterov's.
    """

    momentum: float
    weight_decay: float
    nesterov: bool

    @property
    def state(self) -> tuple[str, ...]:  # type: ignore[override]
        """The name of the momentum; none without one."""
        return ("momentum_buffer",) if self.momentum else ()

    def numbers(self, step: int, group: Mapping[str, Any]) -> list[float]:
        """Compute the number of a step.

        Args:
            step: Number of the step, from 1.
            group: The parameter group of torch's optimizer.

        Returns:
            The step size −lr.
        """
        return [-group["lr"]]

    def apply(
        self, parameter: Tensor, grad: Tensor, state: Sequence[Tensor], numbers: Tensor
    ) -> None:
        """Change a parameter and its momentum in place.

        Args:
            parameter: The parameter.
            grad: Its gradient, of the same shape.
            state: b, of the same shape; empty without momentum.
            numbers: The result of `numbers`, `[1]`.
        """
        if self.weight_decay:
            grad = grad + self.weight_decay * parameter
        if self.momentum:
            buffer = state[0].mul_(self.momentum).add_(grad)
            grad = grad + self.momentum * buffer if self.nesterov else buffer
        parameter.add_(numbers[0] * grad)


@dataclass(frozen=True)
class ClosedForm(Rule):
    """The running mean of the error that is the optimal scale σ of a likelihood.

        log σ += log(1 − ρ g) / p,   that is  σᵖ ← (1 − r) σᵖ + r E

    Here g is the gradient of the loss with respect to log σ, and ρ = r/d. It is the same for every
    optimizer, and no part of the norm by which gradients are clipped.

    Attributes:
        power: p, the power of the error.
        rate: ρ.
    """

    power: int
    rate: float
    state = ()

    def numbers(self, step: int, group: Mapping[str, Any]) -> list[float]:
        """Return the rate, which is the same for all steps.

        Args:
            step: Number of the step, from 1.
            group: The parameter group of torch's optimizer.

        Returns:
            −ρ.
        """
        return [-self.rate]

    def apply(
        self, parameter: Tensor, grad: Tensor, state: Sequence[Tensor], numbers: Tensor
    ) -> None:
        """Change log σ in place; the mean falls by half at most.

        Args:
            parameter: log σ.
            grad: g, of the same shape.
            state: Empty.
            numbers: The result of `numbers`, `[1]`.
        """
        parameter.add_(torch.log1p((numbers[0] * grad).clamp_min(-0.5)) / self.power)


def closed_form_of(group: Mapping[str, Any]) -> ClosedForm | None:
    """Find the closed form of a parameter group.

    Args:
        group: A parameter group of an optimizer of torch.

    Returns:
        The rule; None for parameters that the optimizer changes.
    """
    return ClosedForm(*group["closed_form"]) if "closed_form" in group else None


def closed_form_steps(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Take the gradients of parameters with a closed form away from an optimizer.

    Args:
        optimizer: An optimizer of torch, after the backward pass and before gradients are clipped.

    Returns:
        A function that takes the steps of these parameters; the optimizer leaves them alone.
    """
    steps: list[tuple[ClosedForm, Tensor, Tensor | None]] = []
    for group in optimizer.param_groups:
        rule = closed_form_of(group)
        if rule is not None:
            steps += [(rule, parameter, parameter.grad) for parameter in group["params"]]
    for _, parameter, _ in steps:
        parameter.grad = None

    def take() -> None:
        with torch.no_grad():
            for rule, parameter, grad in steps:
                if grad is not None:
                    rule.apply(parameter, grad, (), grad.new_tensor(rule.numbers(1, {})))

    return take


def rule_of(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> Rule | None:
    """Find the rule by which an optimizer changes the parameters of a group.

    Args:
        optimizer: An optimizer of torch.
        group: One of its parameter groups.

    Returns:
        The rule; None for an optimizer other than Adam, AdamW and SGD, for unusual settings, and
        for a learning rate that is a tensor.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> adam = torch.optim.Adam([weight], lr=0.1)
    >>> rule_of(adam, adam.param_groups[0])
    Adam(betas=(0.9, 0.999), eps=1e-08, weight_decay=0, decoupled=False)
    """
    if (closed_form := closed_form_of(group)) is not None:
        return closed_form
    unusual = ("amsgrad", "maximize", "differentiable", "capturable", "dampening")
    if any(group.get(name) for name in unusual) or isinstance(group["lr"], Tensor):
        return None
    kind = type(optimizer)
    if kind in (torch.optim.Adam, torch.optim.AdamW):
        decoupled = kind is torch.optim.AdamW or bool(group.get("decoupled_weight_decay"))
        betas = cast(tuple[float, float], tuple(map(float, group["betas"])))
        return Adam(betas, group["eps"], group["weight_decay"], decoupled)
    if kind is torch.optim.SGD:
        return SGD(group["momentum"], group["weight_decay"], bool(group["nesterov"]))
    return None


def numbers_after(loss: Tensor, numbers: Tensor) -> Tensor:
    """Make the numbers of a step depend on the loss before it, where one kernel takes the step.

    Inductor (torch 2.11) computes the loss of a graph after a grouped update in place, from biases
    that are already changed.

    Args:
        loss: The loss before the step.
        numbers: The numbers of the step.

    Returns:
        Equal numbers; on devices of GROUPED a function of the loss.
    """
    if loss.device.type not in GROUPED:
        return numbers
    never = torch.lt(loss, loss).any()
    return numbers + never.to(numbers.dtype)
