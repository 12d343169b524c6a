"""A Pyro model, guide and objective as one compiled graph, with gradients, draws and optimizer.

`make_fx` runs the programs once, on one batch, and records the tensor operations of the bound and
of its gradient, without Pyro's handlers. `torch._inductor` compiles them. One graph serves one
shape of batch.
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import pyro
import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec

from pyroae.compilation.codegen import Graph, device_of, try_compile
from pyroae.compilation.divided_steps import MOST_STEPS, DividedStep
from pyroae.compilation.graph_calls import GraphCall, KnownGradients
from pyroae.compilation.optimizer_updates import Update, closed_form_steps
from pyroae.compilation.shared_code import SharedCode
from pyroae.compilation.step_graphs import StepGraphs, Traced, filled, weights_of
from pyroae.errors import ConfigError
from pyroae.objectives.apply import (
    bound_of,
    controls_of,
    next_step,
    refuse_untrained,
    variant_of,
)
from pyroae.objectives.base import Bound
from pyroae.programs.arguments import flatten_arguments, unflatten_arguments
from pyroae.programs.controlled import with_controls
from pyroae.programs.pair import Pair, same_buffers, system_of
from pyroae.programs.sites import Program
from pyroae.runtime.randomness import fork_random
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import text_of

Key = tuple[Any, ...]
"""The properties of arguments and programs that a graph is made for."""


MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""From parameters to an optimizer of torch."""


Before = Callable[[int], float | None]
"""Called with i before step i, to set the optimizer's rates; returns the step's weight of the KL,
None for no weight.
"""


TakeSteps = Callable[[Sequence[tuple[Tensor, ...]], Before], list[Tensor]]
"""From the arguments of at most `MOST_STEPS` steps to the loss before each, a scalar, in nats."""


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
        optimizer: The optimizer of torch; None before the first run and for gradients only.
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
        self.system, self.objective, self.grad_clip = system, objective, grad_clip
        self.same_draws, self.precision, self.backend = same_draws, precision, backend
        self.optimizer: torch.optim.Optimizer | None = None
        self.has_stepped = False
        self.shared: tuple[SharedCode, torch.Generator] | None = None
        self._make_optimizer = optimizer
        self._graphs: dict[Key, Graph | None] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self._modules: list[nn.Module] = []
        self._last: Key = ()
        self._spec: TreeSpec | None = None

    def _overview(self) -> Overview:
        state = "compiled" if self.is_compiled else "eager" if self.has_stepped else "not run yet"
        return Overview([text_of(self.system), text_of(self.objective), self.backend, state])

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
        return dict(self._parameters) or _trained(self.system)

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
        args = self._flat(args, kwargs)
        if not self._parameters:
            self._find_parameters(args)
        if not self.has_stepped:
            self.has_stepped = True
            with pyro.validation_enabled(True):
                return self.eager_step(args, kl_weight, divisor)
        key = ("step", divisor, *self.key(args, kl_weight))
        if key not in self._graphs:
            self._graphs[key] = self._compiled(args, kl_weight, divisor, "step")
        graph, self._last = self._graphs[key], key
        if graph is None:
            return self.eager_step(args, kl_weight, divisor)
        return graph(*args, *self.weights(kl_weight))[0]

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
        launch = _Launch(self, args)
        for i, row in enumerate(zip(*args, strict=True)):
            next_step(self.objective)
            kl_weight = before(i) if before is not None else None
            graph = launch.graph
            is_other = launch.is_full or variant_of(self.objective) != launch.variant
            if not launch.steps or is_other:
                losses += launch.run()
                graph = self._several(row, kl_weight, divisor)
            if graph is None:
                losses.append(self.step_as_drawn(*row, kl_weight=kl_weight, divisor=divisor))
            else:
                launch.add(graph, i, kl_weight)
        return torch.stack([*losses, *launch.run()])

    def _several(
        self, row: tuple[Tensor, ...], kl_weight: float | None, divisor: float
    ) -> GraphCall | DividedStep | None:
        """The graph of the next step, if it takes several in a call; None where it is new."""
        if not self._parameters or not self.has_stepped:
            return None
        graph = self._graphs.get(("step", divisor, *self.key(self._flat(row, {}), kl_weight)))
        is_divided = isinstance(graph, DividedStep)
        is_recorded = isinstance(graph, GraphCall) and graph.recorded is not None
        return cast(GraphCall | DividedStep, graph) if is_divided or is_recorded else None

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
        for parameter, grad in zip(self._parameters.values(), grads, strict=True):
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
        return self._value_and_grads(self._flat(args, kwargs), kl_weight)

    def _value_and_grads(
        self, args: tuple[Any, ...], kl_weight: float | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The bound and its gradients, in the present variant of the objective."""
        if not self._parameters:
            self._find_parameters(args)
        key = ("gradients", *self.key(args, kl_weight))
        if key not in self._graphs:
            self._graphs[key] = self._compiled(args, kl_weight, 1.0, "gradients")
        graph, self._last = self._graphs[key], key
        if graph is None:
            return self._eager(args, kl_weight)
        value, *grads = graph(*args, *self.weights(kl_weight))
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
        value, grads = self._value_and_grads(self._flat(args, {}), kl_weight)
        return Bound(
            value, cast(Tensor, KnownGradients.apply(value, grads, *self._parameters.values()))
        )

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss eagerly, without a step.

        Args:
            *args: Arguments of the programs, as of `step`.
            **kwargs: Keyword arguments of the programs.

        Returns:
            The negative bound over all data, a scalar without gradient, in nats.
        """
        next_step(self.objective)
        args = self._flat(args, kwargs)
        with torch.no_grad(), pyro.validation_enabled(False), self.precision():
            return -self._bound(args, None).value

    def eager_step(self, args: tuple[Any, ...], kl_weight: float | None, divisor: float) -> Tensor:
        """Take one step eagerly.

        Args:
            args: All values of the programs' arguments, as `step` flattens them.
            kl_weight: Weight of log p and log q of the latent sites; None for none.
            divisor: The number that the bound is divided by.

        Returns:
            The negative bound before the step, over `divisor`, a scalar, in nats.
        """
        optimizer, values = self._optimizer(), []

        def closure() -> Tensor:
            optimizer.zero_grad()
            with self.precision():
                bound = self._bound(args, kl_weight)
            (-bound.surrogate / divisor).backward()
            closed_form = closed_form_steps(optimizer)
            if self.grad_clip is not None:
                torch.nn.utils.clip_grad_norm_(self._parameters.values(), self.grad_clip)
            values.append(-bound.value.detach() / divisor)
            closed_form()
            return values[-1]

        # Torch annotates a float, and returns the closure's result.
        optimizer.step(closure)  # type: ignore[arg-type]
        return values[0]

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
        return self._maker.traced(args, self.weights(kl_weight))

    def is_new(self, *args: Any, kl_weight: float | None = None, divisor: float = 1.0) -> bool:
        """Tell whether a step would have to be compiled first.

        Args:
            *args: Arguments of the programs, without containers.
            kl_weight: Weight of log p and log q of the latent sites; None for none.
            divisor: The number that the bound is divided by.

        Returns:
            True after the first run, for arguments of new shapes.
        """
        return (
            bool(self._parameters)
            and ("step", divisor, *self.key(args, kl_weight)) not in self._graphs
        )

    def prepare(
        self, *args: Tensor, kl_weight: float | None = None, divisor: float = 1.0
    ) -> "TakeSteps":
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
        key = ("step", divisor, *self.key(args, kl_weight))
        if key not in self._graphs:
            with fork_random(device_of(args)), pyro.validation_enabled(False):
                self._graphs[key] = self._whole_step(args, kl_weight, divisor)
        graph = cast(Graph, self._graphs[key])

        def take(batches: Sequence[tuple[Tensor, ...]], before: Before) -> list[Tensor]:
            if not isinstance(graph, DividedStep):
                pairs = ((args, self.weights(before(i))) for i, args in enumerate(batches))
                return [graph(*args, *weights)[0] for args, weights in pairs]
            launch = _Launch(self, list(zip(*batches, strict=True)))
            for i in range(len(batches)):
                launch.add(graph, i, before(i))
            return launch.run()

        return take

    # Eager runs.

    def _flat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """All values of the arguments; their arrangement is stored for later runs."""
        values, self._spec = flatten_arguments(args, kwargs)
        return values

    def _find_parameters(self, args: tuple[Any, ...]) -> None:
        """Run eagerly with all checks, to find parameters; generators are unchanged."""
        positional, kwargs = unflatten_arguments(args, self._spec)
        with fork_random(device_of(args)), pyro.validation_enabled(True), same_buffers(self.system):
            if isinstance(self.system, Pair):
                with torch.no_grad():
                    self.system.find_parameters(*positional, **kwargs)
            if not _trained(self.system):
                raise ConfigError(
                    "model and guide have no parameters to train: announce them by pyro.param or "
                    "pyro.module"
                )
            refuse_untrained(self.system, self.objective, positional, kwargs)
        self.system = with_controls(self.system, controls_of(self.objective))
        self._parameters = _trained(self.system)
        self._modules = list(self.system.modules())
        if self._make_optimizer is not None:
            self.optimizer = self._make_optimizer(list(self._parameters.values()))

    def _bound(self, args: tuple[Any, ...], kl_weight: Tensor | float | None) -> Bound:
        positional, kwargs = unflatten_arguments(args, self._spec)
        return bound_of(self.system, self.objective, positional, kl_weight, kwargs)

    def _eager(
        self, args: tuple[Any, ...], kl_weight: float | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        parameters = list(self._parameters.values())
        with self.precision():
            bound = self._bound(args, kl_weight)
        grads = torch.autograd.grad(-bound.surrogate, parameters, allow_unused=True)
        return bound.value.detach(), tuple(filled(grads, parameters))

    def _optimizer(self) -> torch.optim.Optimizer:
        if self.optimizer is None:
            raise ConfigError("a step needs an optimizer: none was given")
        return self.optimizer

    # Graphs.

    def weights(self, kl_weight: float | list[float] | None) -> tuple[Tensor, ...]:
        """Convert a weight of the KL to arguments of a graph.

        Args:
            kl_weight: A weight, or one for each of S steps; None for none.

        Returns:
            One tensor, a scalar or `[S]`, on the parameters' device; none for None.
        """
        return weights_of(kl_weight, next(iter(self._parameters.values())).device)

    def key(self, args: tuple[Any, ...], kl_weight: float | None) -> Key:
        """List the properties that a graph is made for.

        Args:
            args: All values of the programs' arguments, as `step` flattens them.
            kl_weight: Weight of the KL; only whether there is one matters.

        Returns:
            Shapes, types and devices of tensors, other values, the modes of the modules, and the
            variant of the objective.
        """
        parts = [(tuple(a.shape), a.dtype, a.device) if isinstance(a, Tensor) else a for a in args]
        like = next(iter(self._parameters.values()))
        return (
            *parts,
            self._spec,
            kl_weight is not None,
            like.dtype,
            like.device,
            tuple(m.training for m in self._modules),
            variant_of(self.objective),
        )

    def _compiled(
        self, args: tuple[Any, ...], kl_weight: float | None, divisor: float, what: str
    ) -> Graph | None:
        """The graph of a step, or of the gradients only; None, with a warning, if that fails."""

        def make() -> Graph:
            if what == "step":
                return self._whole_step(args, kl_weight, divisor)
            return self._maker.gradients(args, self.weights(kl_weight))

        return try_compile(make, device_of(args))

    def _whole_step(self, args: tuple[Any, ...], kl_weight: float | None, divisor: float) -> Graph:
        self._optimizer()
        return self._maker.step(args, self.weights(kl_weight), divisor)

    @property
    def _maker(self) -> StepGraphs:
        """Makes graphs of the training."""
        return StepGraphs(
            self.system,
            self.objective,
            self._parameters,
            self._bound,
            self.optimizer,
            self.grad_clip,
            self.same_draws,
            self.precision,
            self.backend,
            self.shared,
        )


class _Launch:
    """Successive steps of one graph, which are one call."""

    def __init__(self, compiled: Compiled, args: Sequence[Tensor | Sequence[Tensor]]) -> None:
        self.compiled, self.args = compiled, args
        self.graph: GraphCall | DividedStep | None = None
        self.variant: Hashable = ()
        self.steps: list[int] = []
        self.weights: list[float | None] = []
        self.numbers: list[list[list[float]]] = []
        self.noise: list[list[Tensor]] = []

    def add(self, graph: GraphCall | DividedStep, step: int, kl_weight: float | None) -> None:
        """Add a step, whose rates are set; the graph is that of the steps before it."""
        self.graph, self.variant = graph, variant_of(self.compiled.objective)
        self.numbers.append(cast(Update, graph.update).numbers(ahead=len(self.steps)))
        self.steps.append(step)
        self.weights.append(kl_weight)
        if isinstance(graph, DividedStep):
            self.noise.append(graph.draw())

    @property
    def is_full(self) -> bool:
        """Whether another step would be too many for one call."""
        return isinstance(self.graph, DividedStep) and len(self.steps) == MOST_STEPS

    def run(self) -> list[Tensor]:
        """Take the steps that were added, none or several; their losses."""
        if not self.steps:
            return []
        graph, weights = self.graph, self.weights
        assert graph is not None
        rows = slice(self.steps[0], self.steps[-1] + 1)
        has_weight = weights[0] is not None
        inputs: list[Any] = [
            *(argument[rows] for argument in self.args),
            *self.compiled.weights(cast(list[float], weights) if has_weight else None),
        ]
        tensors = [inputs[i] for i in graph.where]
        if isinstance(graph, DividedStep):
            losses = graph.run_steps(tensors, self.numbers, self.noise)
        else:
            stacks = [t if isinstance(t, Tensor) else torch.stack(list(t)) for t in tensors]
            losses = graph.run_steps(stacks, self.numbers)[0]
        self.steps, self.weights, self.numbers, self.noise = [], [], [], []
        return list(losses.unbind())


def _trained(system: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in system.named_parameters() if p.requires_grad}


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
