"""A training run eagerly: its programs and objective, their parameters, the optimizer.

Graphs are traced from it, and it takes the steps that are not compiled.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec

from pyroae.compilation.codegen import device_of, on_device
from pyroae.compilation.optimizer_updates import closed_form_steps
from pyroae.errors import ConfigError
from pyroae.objectives.apply import bound_of, controls_of, refuse_untrained, variant_of
from pyroae.objectives.base import Bound
from pyroae.programs.arguments import flatten_arguments, unflatten_arguments
from pyroae.programs.controlled import with_controls
from pyroae.programs.pair import Pair, same_buffers
from pyroae.runtime.randomness import fork_random

Key = tuple[Any, ...]
"""The properties of arguments and programs that a graph is made for."""


MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""From parameters to an optimizer of torch."""


class EagerTraining:
    """A training whose programs run as they are.

    Args:
        system: A module with a model and a guide.
        objective: An objective of pyroae, or an ELBO of Pyro with a `differentiable_loss`.
        make_optimizer: A function from parameters to an optimizer of torch; None for gradients
            only.
        grad_clip: Largest norm of the whole gradient; None for no limit.
        precision: Makes a context of mixed precision.

    Attributes:
        parameters: Names and parameters; empty before `find_parameters`.
        optimizer: The optimizer of torch; None before `find_parameters` and for gradients only.
    """

    def __init__(
        self,
        system: nn.Module,
        objective: ELBO,
        make_optimizer: MakeOptimizer | None,
        grad_clip: float | None,
        precision: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.system, self.objective = system, objective
        self.grad_clip, self.precision = grad_clip, precision
        self.optimizer: torch.optim.Optimizer | None = None
        self.parameters: dict[str, nn.Parameter] = {}
        self._make_optimizer = make_optimizer
        self._modules: list[nn.Module] = []
        self._spec: TreeSpec | None = None

    def flat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Flatten the programs' arguments; their arrangement is stored for later runs.

        Args:
            args: Positional arguments: tensors, dicts, lists and tuples of them, other values.
            kwargs: Keyword arguments.

        Returns:
            All values.
        """
        values, self._spec = flatten_arguments(args, kwargs)
        return values

    def find_parameters(self, args: tuple[Any, ...]) -> None:
        """Run with all checks, to find parameters. The random generators are unchanged.

        Args:
            args: All values of the programs' arguments, as of `flat`.

        Raises:
            ConfigError: For programs without parameters.
        """
        positional, kwargs = unflatten_arguments(args, self._spec)
        with fork_random(device_of(args)), pyro.validation_enabled(True), same_buffers(self.system):
            if isinstance(self.system, Pair):
                with torch.no_grad():
                    self.system.find_parameters(*positional, **kwargs)
            if not trained(self.system):
                raise ConfigError(
                    "model and guide have no parameters to train: announce them by pyro.param or "
                    "pyro.module"
                )
            refuse_untrained(self.system, self.objective, positional, kwargs)
        self.system = with_controls(self.system, controls_of(self.objective))
        self.parameters = trained(self.system)
        self._modules = list(self.system.modules())
        if self._make_optimizer is not None:
            self.optimizer = self._make_optimizer(list(self.parameters.values()))

    def bound(self, args: tuple[Any, ...], kl_weight: Tensor | float | None) -> Bound:
        """Compute the bound, in the present variant of the objective.

        Args:
            args: As of `find_parameters`.
            kl_weight: Weight of log p and log q of the latent sites; None for none.

        Returns:
            Value and surrogate, scalars, in nats.
        """
        positional, kwargs = unflatten_arguments(args, self._spec)
        return bound_of(self.system, self.objective, positional, kl_weight, kwargs)

    def value_and_grads(
        self, args: tuple[Any, ...], kl_weight: float | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute the bound and its gradients.

        Args:
            args: As of `bound`.
            kl_weight: As of `bound`.

        Returns:
            The bound over all data, a scalar, in nats, and the gradient of its negative surrogate
            for each parameter, of its shape.
        """
        parameters = list(self.parameters.values())
        with self.precision():
            bound = self.bound(args, kl_weight)
        grads = torch.autograd.grad(-bound.surrogate, parameters, allow_unused=True)
        return bound.value.detach(), tuple(filled(grads, parameters))

    def step(self, args: tuple[Any, ...], kl_weight: float | None, divisor: float) -> Tensor:
        """Take one step.

        Args:
            args: As of `bound`.
            kl_weight: As of `bound`.
            divisor: The number that the bound is divided by.

        Returns:
            The negative bound before the step, over `divisor`, a scalar, in nats.

        Raises:
            ConfigError: Without an optimizer.
        """
        optimizer, values = self.required_optimizer(), []

        def closure() -> Tensor:
            optimizer.zero_grad()
            with self.precision():
                bound = self.bound(args, kl_weight)
            (-bound.surrogate / divisor).backward()
            closed_form = closed_form_steps(optimizer)
            if self.grad_clip is not None:
                torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.grad_clip)
            values.append(-bound.value.detach() / divisor)
            closed_form()
            return values[-1]

        # Torch annotates a float, and returns the closure's result.
        optimizer.step(closure)  # type: ignore[arg-type]
        return values[0]

    def required_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer.

        Returns:
            The optimizer of torch.

        Raises:
            ConfigError: Without one.
        """
        if self.optimizer is None:
            raise ConfigError("a step needs an optimizer: none was given")
        return self.optimizer

    def reached(self, args: tuple[Any, ...], weights: tuple[Tensor, ...]) -> list[bool]:
        """Tell whether a gradient reaches each parameter.

        Args:
            args: As of `bound`.
            weights: As `weights` returns them.

        Returns:
            A value for each parameter.

        Raises:
            RuntimeError: If a run changes a buffer.
        """
        with same_buffers(self.system) as changed, self.precision():
            surrogate = self.bound(args, weights[0] if weights else None).surrogate
        parameters = list(self.parameters.values())
        grads = torch.autograd.grad(-surrogate, parameters, allow_unused=True)
        if changed:
            raise RuntimeError(
                f"the buffer '{changed[0]}' is changed by a run, as by batch normalization"
            )
        return [g is not None for g in grads]

    # Arguments of a graph.

    def weights(self, kl_weight: float | list[float] | None) -> tuple[Tensor, ...]:
        """Convert a weight of the KL to arguments of a graph.

        Args:
            kl_weight: A weight, or one for each of S steps; None for none.

        Returns:
            One tensor, a scalar or `[S]`, on the parameters' device; none for None.
        """
        if kl_weight is None:
            return ()
        device = next(iter(self.parameters.values())).device
        return (on_device(kl_weight, torch.get_default_dtype(), device),)

    def key(self, args: tuple[Any, ...], kl_weight: float | None) -> Key:
        """List the properties that a graph is made for.

        Args:
            args: As of `bound`.
            kl_weight: Weight of the KL; only whether there is one matters.

        Returns:
            Shapes, types and devices of tensors, other values, the modes of the modules, and the
            variant of the objective.
        """
        parts = [(tuple(a.shape), a.dtype, a.device) if isinstance(a, Tensor) else a for a in args]
        like = next(iter(self.parameters.values()))
        return (
            *parts,
            self._spec,
            kl_weight is not None,
            like.dtype,
            like.device,
            tuple(m.training for m in self._modules),
            variant_of(self.objective),
        )


def trained(system: nn.Module) -> dict[str, nn.Parameter]:
    """List the parameters of a module that have a gradient.

    Args:
        system: The module.

    Returns:
        Names and parameters.
    """
    return {name: p for name, p in system.named_parameters() if p.requires_grad}


def filled(grads: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Fill in the gradients of parameters that none reaches.

    Args:
        grads: A gradient for each parameter; None where none reaches it.
        like: The parameters.

    Returns:
        The gradients, zero where there was none.
    """
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(like, grads, strict=True)]
