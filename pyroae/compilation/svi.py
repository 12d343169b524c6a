"""A Pyro model, guide and objective as one compiled graph, with gradients, draws and optimizer.

`make_fx` runs the programs once, on one batch, and records the tensor operations of the bound and
of its gradient, without Pyro's handlers. `torch._inductor` compiles them. One graph serves one
shape of batch.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import pyro
import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyroae.compilation.codegen import Graph, device_of, try_compile
from pyroae.compilation.eager_training import EagerTraining, Key, MakeOptimizer, trained
from pyroae.compilation.graph_calls import KnownGradients
from pyroae.compilation.launches import Before, Launch, TakeSteps, of_several_steps, steps_of
from pyroae.compilation.shared_code import SharedCode
from pyroae.compilation.step_graphs import StepGraphs, Traced
from pyroae.errors import ConfigError
from pyroae.objectives.apply import next_step
from pyroae.objectives.base import Bound
from pyroae.programs.pair import system_of
from pyroae.programs.sites import Program
from pyroae.runtime.randomness import fork_random
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import text_of


def compile(
    model: Program,
    guide: Program,
    objective: ELBO,
    optimizer: MakeOptimizer | PyroOptim | None = None,
    *,
    grad_clip: float | None = None,
    same_draws: bool = False,
) -> "Compiled":
    """Stochastic variational inference as compiled code, instead of `pyro.infer.SVI`.

        loss = −bound(minibatch) in nats

    A step computes the gradients of −surrogate, clips them to a norm, and applies the optimizer.
    The first step runs eagerly, with Pyro's checks. The graph is made at the second step, once for
    each shape of arguments, and torch keeps it on disk for the next process. A program that cannot
    be compiled runs eagerly, with one warning.

    Args:
        model: A Pyro program without control flow that depends on values of tensors.
        guide: A program over the same arguments and latent sites, of the same kind.
        objective: An objective of pyroae, or an ELBO of Pyro with a `differentiable_loss`.
        optimizer: A function from parameters to an optimizer of torch, or one of `pyro.optim`; by
            default Adam with a learning rate of 1e-3. Adam, AdamW and SGD become part of the
            graph; others step outside of it.
        grad_clip: Largest norm of the whole gradient; None for no limit.
        same_draws: Whether draws on a GPU equal those of eager code from the same seed, where all
            draws are normal or categorical, which is slower; on a CPU they are equal, before torch
            2.15 except for several draws with one of a gamma distribution among them.

    Returns:
        The compiled training: `step` takes the arguments of the programs.

    Raises:
        ConfigError: For an objective without a differentiable loss; at the first step, for
            programs without parameters.

    >>> from pyroae import TraceELBO, zoo
    >>> system, x = zoo.ppca(4, latent=2), torch.ones(100, 4)
    >>> def adam(parameters):
    ...     return torch.optim.Adam(parameters, lr=0.1)
    >>> svi = compile(system.model, system.guide, TraceELBO(), adam)
    >>> losses = [svi.step(x).item() for _ in range(30)]  # the second step compiles
    >>> losses[-1] < losses[0], svi.is_compiled
    (True, True)
    """
    if optimizer is None:
        optimizer = _default
    elif isinstance(optimizer, PyroOptim):
        optimizer = _of_pyro(optimizer)
    system = system_of((model, guide))
    return Compiled(system, objective, optimizer, grad_clip=grad_clip, same_draws=same_draws)


class Compiled(Shown):
    """The steps of a training as compiled code, as `compile` returns it and `fit` uses it.

    Args:
        system: A module with a model and a guide.
        objective: An objective of pyroae, or an ELBO of Pyro with a `differentiable_loss`.
        optimizer: A function from parameters to an optimizer of torch; None for gradients only.
        grad_clip: Largest norm of the whole gradient; None for no limit.
        same_draws: Whether draws on a GPU equal those of eager code, as of `compile`.
        precision: Makes a context of mixed precision.
        backend: "inductor", or "eager" for the traced graph without code generation.

    Attributes:
        eager: The training as it runs eagerly.
        has_stepped: Whether the first step, which runs eagerly, was taken; in a resumed training
            before the interruption.
        shared: In an ensemble, the code that its members share and the generator of this member's
            draws; None for code of its own.

    Raises:
        ConfigError: For an objective without a `differentiable_loss`, an unknown backend, and a
            `grad_clip` that is not positive.
    """

    def __init__(
        self,
        system: nn.Module,
        objective: ELBO,
        optimizer: MakeOptimizer | None = None,
        *,
        grad_clip: float | None = None,
        same_draws: bool = False,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
        backend: str = "inductor",
    ) -> None:
        if not hasattr(objective, "differentiable_loss"):
            raise ConfigError(
                f"{type(objective).__name__} has no differentiable_loss: it cannot be compiled"
            )
        if backend not in ("inductor", "eager"):
            raise ConfigError(f"unknown backend '{backend}': inductor or eager")
        if grad_clip is not None and not grad_clip > 0:
            raise ConfigError(f"grad_clip must be positive, not {grad_clip}")
        self.eager = EagerTraining(system, objective, optimizer, grad_clip, precision)
        self.objective, self.same_draws, self.backend = objective, same_draws, backend
        self.has_stepped = False
        self.shared: tuple[SharedCode, torch.Generator] | None = None
        self._graphs: dict[Key, Graph | None] = {}
        self._last: Key = ()

    def _overview(self) -> Overview:
        state = "compiled" if self.is_compiled else "eager" if self.has_stepped else "not run yet"
        return Overview([text_of(self.eager.system), text_of(self.objective), self.backend, state])

    @property
    def system(self) -> nn.Module:
        """The module of model, guide and, after the first run, what the objective learns."""
        return self.eager.system

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer of torch; None before the first run and for gradients only."""
        return self.eager.optimizer

    @property
    def is_compiled(self) -> bool:
        """Whether a graph computed the last batch."""
        return self._graphs.get(self._last) is not None

    def parameters(self) -> dict[str, nn.Parameter]:
        """List the trained parameters.

        Returns:
            Names and parameters of the programs' modules and, after the first run, of Pyro's store
            and of the objective, if it learns.
        """
        return dict(self.eager.parameters) or trained(self.system)

    def step(
        self, *args: Any, kl_weight: float | None = None, divisor: float = 1.0, **kwargs: Any
    ) -> Tensor:
        """Take one step of the optimizer.

        Args:
            *args: Arguments of the programs: tensors `[B, ...]`, and dicts, lists and tuples of
                them; other values are constants of a graph.
            kl_weight: Weight of log p and log q of the latent sites, as in KL warm-up: an input of
                the graph. None for none.
            divisor: The number that the bound is divided by.
            **kwargs: Keyword arguments of the programs.

        Returns:
            The negative bound before the step, over `divisor`, in nats: a scalar tensor, without
            waiting for the device.
        """
        next_step(self.objective)
        return self.step_as_drawn(*args, kl_weight=kl_weight, divisor=divisor, **kwargs)

    def step_as_drawn(
        self, *args: Any, kl_weight: float | None = None, divisor: float = 1.0, **kwargs: Any
    ) -> Tensor:
        """Take one step in the present variant of the objective, which `step` draws first.

        Args:
            *args: As of `step`.
            kl_weight: As of `step`.
            divisor: As of `step`.
            **kwargs: As of `step`.

        Returns:
            As of `step`.
        """
        args = self.eager.flat(args, kwargs)
        if not self.eager.parameters:
            self.eager.find_parameters(args)
        if not self.has_stepped:
            self.has_stepped = True
            with pyro.validation_enabled(True):
                return self.eager.step(args, kl_weight, divisor)
        graph = self._graph(
            self._step_key(args, kl_weight, divisor),
            lambda: self._maker.step(args, self.eager.weights(kl_weight), divisor),
            args,
        )
        if graph is None:
            return self.eager.step(args, kl_weight, divisor)
        return graph(*args, *self.eager.weights(kl_weight))[0]

    def steps(
        self,
        *args: Tensor | Sequence[Tensor],
        before: Before | None = None,
        divisor: float = 1.0,
    ) -> Tensor:
        """Take the steps that S calls of `step` take, by one call for each variant.

        Once the step is compiled, Python then needs no time between steps: a GPU replays them by
        one launch, and a CPU takes them in a loop of C++ code. The variants of the objective are
        drawn in the order of the steps; successive steps of one variant are one call.

        Args:
            *args: Arguments of the programs, tensors `[S, B, ...]` or sequences of S tensors
                `[B, ...]`; step i is on row i.
            before: Called with i before step i, to set the optimizer's rates; returns the step's
                weight of the KL. None for no weight.
            divisor: The number that the bounds are divided by.

        Returns:
            The negative bound before each step, over `divisor`, `[S]`, in nats.
        """
        losses: list[Tensor] = []
        launch = Launch(self.eager, args)
        for i, row in enumerate(zip(*args, strict=True)):
            next_step(self.objective)
            kl_weight = before(i) if before is not None else None
            graph = launch.graph
            if not launch.takes_next:
                losses += launch.run()
                graph = of_several_steps(self._known(row, kl_weight, divisor))
            if graph is None:
                losses.append(self.step_as_drawn(*row, kl_weight=kl_weight, divisor=divisor))
            else:
                launch.add(graph, i, kl_weight)
        return torch.stack([*losses, *launch.run()])

    def _known(
        self, row: tuple[Tensor, ...], kl_weight: float | None, divisor: float
    ) -> Graph | None:
        """The graph of the next step; None where it is new or runs eagerly."""
        if not self.eager.parameters or not self.has_stepped:
            return None
        return self._graphs.get(self._step_key(self.eager.flat(row, {}), kl_weight, divisor))

    def loss_and_grads(self, *args: Any, kl_weight: float | None = None, **kwargs: Any) -> Tensor:
        """Compute the loss and add its gradient to the parameters' `grad`.

        Args:
            *args: Arguments of the programs, as of `step`.
            kl_weight: Weight of log p and log q of the latent sites; None for none.
            **kwargs: Keyword arguments of the programs.

        Returns:
            The negative bound over all data, a scalar without gradient, in nats.
        """
        value, grads = self.value_and_grads(*args, kl_weight=kl_weight, **kwargs)
        for parameter, grad in zip(self.eager.parameters.values(), grads, strict=True):
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad
        return -value

    def value_and_grads(
        self, *args: Any, kl_weight: float | None = None, **kwargs: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute the bound and its gradients.

        Args:
            *args: Arguments of the programs, as of `step`.
            kl_weight: Weight of log p and log q of the latent sites; None for none.
            **kwargs: Keyword arguments of the programs.

        Returns:
            The bound over all data, a scalar, in nats, and the gradient of its negative surrogate
            for each of `parameters`, of its shape.
        """
        next_step(self.objective)
        return self._value_and_grads(self.eager.flat(args, kwargs), kl_weight)

    def _value_and_grads(
        self, args: tuple[Any, ...], kl_weight: float | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The bound and its gradients, in the present variant of the objective."""
        if not self.eager.parameters:
            self.eager.find_parameters(args)
        graph = self._graph(
            ("gradients", *self.eager.key(args, kl_weight)),
            lambda: self._maker.gradients(args, self.eager.weights(kl_weight)),
            args,
        )
        if graph is None:
            return self.eager.value_and_grads(args, kl_weight)
        value, *grads = graph(*args, *self.eager.weights(kl_weight))
        return value, tuple(grads)

    def bound(self, *args: Any, kl_weight: float | None = None) -> Bound:
        """Compute a bound whose `backward` gives the graph's gradients, for distributed training.

        Like `bound` of an objective, it takes the present variant.

        Args:
            *args: Arguments of the programs, as of `step`.
            kl_weight: Weight of log p and log q of the latent sites; None for none.

        Returns:
            Value and surrogate, scalars, in nats; the surrogate can be scaled.
        """
        value, grads = self._value_and_grads(self.eager.flat(args, {}), kl_weight)
        parameters = self.eager.parameters.values()
        return Bound(value, cast(Tensor, KnownGradients.apply(value, grads, *parameters)))

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss eagerly, without a step.

        Args:
            *args: Arguments of the programs, as of `step`.
            **kwargs: Keyword arguments of the programs.

        Returns:
            The negative bound over all data, a scalar without gradient, in nats.
        """
        next_step(self.objective)
        args = self.eager.flat(args, kwargs)
        with torch.no_grad(), pyro.validation_enabled(False), self.eager.precision():
            return -self.eager.bound(args, None).value

    def traced(self, args: tuple[Any, ...], kl_weight: float | None) -> Traced:
        """Trace the bound and its gradients, for an ensemble.

        Args:
            args: All values of the programs' arguments, as `step` flattens them.
            kl_weight: Weight of log p and log q of the latent sites; None for none.

        Returns:
            The graph and its inputs, with the optimizer's step if there is a rule for it.

        Raises:
            UntraceableError: If the operations depend on values of tensors.
            RuntimeError: If a run changes a buffer.
        """
        return self._maker.traced(args, self.eager.weights(kl_weight))

    def is_new(self, *args: Any, kl_weight: float | None = None, divisor: float = 1.0) -> bool:
        """Tell whether a step would have to be compiled first.

        Args:
            *args: Arguments of the programs, without containers.
            kl_weight: Weight of log p and log q of the latent sites; None for none.
            divisor: The number that the bound is divided by.

        Returns:
            True after the first run, for arguments of new shapes.
        """
        is_run = bool(self.eager.parameters)
        return is_run and self._step_key(args, kl_weight, divisor) not in self._graphs

    def prepare(
        self, *args: Tensor, kl_weight: float | None = None, divisor: float = 1.0
    ) -> TakeSteps:
        """Compile a step without taking it. The random generators are unchanged.

        Args:
            *args: Arguments of the programs, without containers.
            kl_weight: Weight of log p and log q of the latent sites; None for none.
            divisor: The number that the bound is divided by.

        Returns:
            A function that takes one or several steps on arguments of the same shapes, in the same
            variant of the objective and modes of the modules.

        Raises:
            Exception: Any error of the programs or of the compiler, in the place of the warning and
                the eager steps of `step`.
        """
        key = self._step_key(args, kl_weight, divisor)
        if key not in self._graphs:
            with fork_random(device_of(args)), pyro.validation_enabled(False):
                weights = self.eager.weights(kl_weight)
                self._graphs[key] = self._maker.step(args, weights, divisor)
        return steps_of(self.eager, cast(Graph, self._graphs[key]))

    def _step_key(self, args: tuple[Any, ...], kl_weight: float | None, divisor: float) -> Key:
        return "step", divisor, *self.eager.key(args, kl_weight)

    def _graph(self, key: Key, make: Callable[[], Graph], args: tuple[Any, ...]) -> Graph | None:
        """The graph of a key, made where it is new; None, after a warning, if that has failed."""
        if key not in self._graphs:
            self._graphs[key] = try_compile(make, device_of(args))
        self._last = key
        return self._graphs[key]

    @property
    def _maker(self) -> StepGraphs:
        """Makes graphs of the training."""
        return StepGraphs(self.eager, self.same_draws, self.backend, self.shared)


def _default(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def _of_pyro(optimizer: PyroOptim) -> MakeOptimizer:
    """One optimizer of torch for all parameters, as an optimizer of Pyro makes for each."""
    if callable(optimizer.pt_optim_args) or not issubclass(
        optimizer.pt_optim_constructor, torch.optim.Optimizer
    ):
        raise ConfigError(
            "an optimizer of Pyro with settings for each parameter corresponds to none of torch: "
            "give a function from parameters to an optimizer of torch"
        )
    return lambda parameters: optimizer.pt_optim_constructor(parameters, **optimizer.pt_optim_args)
