"""A Pyro model, guide and objective as one compiled graph: bound, gradients, random draws and the optimizer's step.

`make_fx` runs the programs once, on one batch, and keeps the tensor operations of the bound and of its gradient: Pyro's
handlers leave no trace in them. `torch._inductor` makes code of that. One graph serves one shape of batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import pyro
import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.fx.graph_module import GraphModule
from torch.utils._pytree import TreeSpec

from pyroae.compilation.codegen import Graph, device_of, inductor, made, on_device
from pyroae.compilation.graph_calls import Beside, Call, Known
from pyroae.compilation.optimizer_updates import Update, clipped
from pyroae.compilation.tracing import Untraceable, traced
from pyroae.errors import ConfigError
from pyroae.objectives.apply import bound_of, refuse_untrained
from pyroae.objectives.base import Bound
from pyroae.programs.arguments import flatten_arguments, unflatten_arguments
from pyroae.programs.context import fork_random
from pyroae.programs.pair import Pair, System, same_buffers, system_of
from pyroae.programs.sites import Program

Key = tuple[Any, ...]


MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def compile(
    model: Program,
    guide: Program,
    objective: ELBO,
    optimizer: MakeOptimizer | PyroOptim | None = None,
    *,
    grad_clip: float | None = None,
    same_draws: bool = False,
) -> "Compiled":
    """Stochastic variational inference as compiled code, in the place of `pyro.infer.SVI`.

        loss = −bound(minibatch) in nats;  a step: gradients of −surrogate, clipped to a norm, and the optimizer

    model, guide: any Pyro programs over the same arguments, free of control flow that depends on values. objective: one of
    pyroae's, or an ELBO of Pyro's with a `differentiable_loss`. optimizer: a function from parameters to an optimizer of
    torch, or one of `pyro.optim`; by default Adam with a learning rate of 1e-3. Adam, AdamW and SGD become part of the graph;
    others step beside it. grad_clip: largest norm of the whole gradient. same_draws: on a GPU, the random numbers of eager
    code from the same seed where all draws are normal or categorical, which takes longer; on a CPU they are always the same.
    The first step is run as it is, with Pyro's checks; the graph is made at the second, once for each shape of arguments, and
    kept on disk by torch for the next process. A program that cannot be compiled is run as it is, with one warning.
    Raises ConfigError for an objective without a differentiable loss, and for programs without parameters.

    >>> from pyroae import TraceELBO, zoo
    >>> system, x = zoo.ppca(4, latent=2), torch.ones(100, 4)
    >>> svi = compile(system.model, system.guide, TraceELBO(), lambda parameters: torch.optim.Adam(parameters, lr=0.1))
    >>> losses = [svi.step(x).item() for _ in range(30)]  # the second one waits for the compiler
    >>> losses[-1] < losses[0], svi.is_compiled
    (True, True)
    """
    made: MakeOptimizer = (
        _default
        if optimizer is None
        else _of_pyro(optimizer)
        if isinstance(optimizer, PyroOptim)
        else optimizer
    )
    return Compiled(
        system_of((model, guide)), objective, made, grad_clip=grad_clip, same_draws=same_draws
    )


class Compiled:
    """What `compile` gives, and what `fit` steps with: `step`, `loss_and_grads`, and `evaluate_loss`.

    system: a module with a model and a guide. precision: a context of mixed precision. backend: "inductor", or "eager" for the
    traced graph without code.
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
        """Whether the first step, which is run as it is, was taken: before the break, in a training that goes on."""
        self._make_optimizer = optimizer
        self._graphs: dict[Key, Graph | None] = {}
        self._known: dict[str, nn.Parameter] = {}
        self._modules: list[nn.Module] = []
        self._last: Key = ()
        self._spec: TreeSpec | None = None

    @property
    def is_compiled(self) -> bool:
        """Whether the last batch was given to a graph."""
        return self._graphs.get(self._last) is not None

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name: parameters of the programs' modules and of Pyro's store; those are known after a run."""
        return dict(self._known) or _trained(self.system)

    def step(
        self, *args: Any, kl_weight: float | None = None, divisor: float = 1.0, **kwargs: Any
    ) -> Tensor:
        """One step of the optimizer; the negative bound before it, divided by `divisor`, as a tensor that waits for nothing.

        kl_weight: of log p and log q of the latent sites, as in KL warm-up, an input of the graph. args, kwargs: of the
        programs, tensors and dicts, lists and tuples of them; other values are constants of a graph.
        """
        args = self._flat(args, kwargs)
        if not self._known:
            self._find(args)
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
        *args: Tensor,
        before: Callable[[int], float | None] | None = None,
        divisor: float = 1.0,
    ) -> Tensor:
        """Several steps, the i-th on row i of every argument `[S, B, ...]`; the negative bounds before each, `[S]`.

        They are the steps that `step` takes one after the other. On a GPU they are one launch, once the step is compiled: what
        the caller does between steps then takes no time. before: called with i ahead of step i, to set the optimizer's rates;
        it returns the step's weight of the KL.
        """
        losses: list[Tensor] = []
        for i, row in enumerate(zip(*args, strict=True)):
            kl_weight = before(i) if before is not None else None
            graph = (
                self._graphs.get(("step", divisor, *self.key(self._flat(row, {}), kl_weight)))
                if self._known
                else None
            )
            if (
                i == 0
                and self.has_stepped
                and isinstance(graph, Call)
                and graph.recorded is not None
            ):
                return self._recorded_steps(graph, args, kl_weight, before)
            losses.append(self.step(*row, kl_weight=kl_weight, divisor=divisor))
        return torch.stack(losses)

    def _recorded_steps(
        self,
        call: Call,
        args: tuple[Tensor, ...],
        kl_weight: float | None,
        before: Callable[[int], float | None] | None,
    ) -> Tensor:
        """Steps of one graph. kl_weight: of the first, whose rates are set already."""
        update, weights, numbers = (
            cast(Update, call.update),
            [kl_weight],
            [cast(Update, call.update).numbers()],
        )
        for i in range(1, len(args[0])):
            weights.append(before(i) if before is not None else None)
            numbers.append(update.numbers(ahead=i))
        given = [*args, *self.weights(None if kl_weight is None else cast(list[float], weights))]
        return call.several([given[i] for i in call.where], numbers)[0]

    def loss_and_grads(self, *args: Any, kl_weight: float | None = None, **kwargs: Any) -> Tensor:
        """The negative bound over all data, in nats, without gradient; adds its gradient to the parameters' `grad`."""
        value, grads = self.value_and_grads(*args, kl_weight=kl_weight, **kwargs)
        for parameter, grad in zip(self._known.values(), grads, strict=True):
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad
        return -value

    def value_and_grads(
        self, *args: Any, kl_weight: float | None = None, **kwargs: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The bound over all data, in nats, and the gradient of its negative surrogate for each parameter."""
        args = self._flat(args, kwargs)
        if not self._known:
            self._find(args)
        key = ("gradients", *self.key(args, kl_weight))
        if key not in self._graphs:
            self._graphs[key] = self._compiled(args, kl_weight, 1.0, "gradients")
        graph, self._last = self._graphs[key], key
        if graph is None:
            return self._eager(args, kl_weight)
        value, *grads = graph(*args, *self.weights(kl_weight))
        return value, tuple(grads)

    def bound(self, *args: Any, kl_weight: float | None = None) -> Bound:
        """Value and surrogate whose `backward` hands on the gradients of the graph: for distributed and scaled training."""
        value, grads = self.value_and_grads(*args, kl_weight=kl_weight)
        return Bound(value, cast(Tensor, Known.apply(value, grads, *self._known.values())))

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """The negative bound over all data, in nats, of a run as it is, without a step."""
        args = self._flat(args, kwargs)
        with torch.no_grad(), pyro.validation_enabled(False), self.precision():
            return -self._bound(args, None).value

    def eager_step(self, args: tuple[Any, ...], kl_weight: float | None, divisor: float) -> Tensor:
        """A step that is run as it is; the negative bound before it, divided by `divisor`."""
        optimizer, values = self._optimizer(), []

        def closure() -> Tensor:
            optimizer.zero_grad()
            with self.precision():
                bound = self._bound(args, kl_weight)
            (-bound.surrogate / divisor).backward()
            if self.grad_clip is not None:
                torch.nn.utils.clip_grad_norm_(self._known.values(), self.grad_clip)
            values.append(-bound.value.detach() / divisor)
            return values[-1]

        optimizer.step(closure)  # type: ignore[arg-type]  # torch says float, and hands on what it is given
        return values[0]

    def traced(self, args: tuple[Any, ...], kl_weight: float | None) -> "Traced":
        """The operations of the bound and its gradients, and what the optimizer would do with these, where a rule says it."""
        reached = self._reached(args, kl_weight)
        return Traced(
            *self._traced(args, kl_weight, 1.0, reached, None), reached, self._update(reached)
        )

    def is_new(self, *args: Any, kl_weight: float | None = None, divisor: float = 1.0) -> bool:
        """Whether a step with such arguments would have to be compiled first."""
        return (
            bool(self._known) and ("step", divisor, *self.key(args, kl_weight)) not in self._graphs
        )

    # Runs as they are.

    def _flat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """All values of the arguments; how they are arranged is remembered for the runs to come."""
        values, self._spec = flatten_arguments(args, kwargs)
        return values

    def _find(self, args: tuple[Any, ...]) -> None:
        """One run as it is, with all checks, which takes up parameters of Pyro's store and leaves the generators alone."""
        given, kwargs = unflatten_arguments(args, self._spec)
        with fork_random(device_of(args)), pyro.validation_enabled(True), same_buffers(self.system):
            if isinstance(self.system, Pair):
                with torch.no_grad():
                    self.system.find_parameters(*given, **kwargs)
            if not _trained(self.system):
                raise ConfigError(
                    "model and guide have no parameters to train: announce them by pyro.param or pyro.module"
                )
            refuse_untrained(self.system, self.objective, given, kwargs)
        self._known = _trained(self.system)
        self._modules = list(self.system.modules())
        if self._make_optimizer is not None:
            self.optimizer = self._make_optimizer(list(self._known.values()))

    def _bound(self, args: tuple[Any, ...], kl_weight: Tensor | float | None) -> Bound:
        given, kwargs = unflatten_arguments(args, self._spec)
        return bound_of(self.system, self.objective, given, kl_weight, kwargs)

    def _eager(
        self, args: tuple[Any, ...], kl_weight: float | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        parameters = list(self._known.values())
        with self.precision():
            bound = self._bound(args, kl_weight)
        grads = torch.autograd.grad(-bound.surrogate, parameters, allow_unused=True)
        return bound.value.detach(), tuple(_filled(grads, parameters))

    def _optimizer(self) -> torch.optim.Optimizer:
        if self.optimizer is None:
            raise ConfigError("a step needs an optimizer: none was given")
        return self.optimizer

    # Graphs.

    def weights(self, kl_weight: float | list[float] | None) -> tuple[Tensor, ...]:
        """The weight of the KL as an argument of a graph, or one for each of several steps, where there is one."""
        like = next(iter(self._known.values()))
        return (
            ()
            if kl_weight is None
            else (on_device(kl_weight, torch.get_default_dtype(), like.device),)
        )

    def key(self, args: tuple[Any, ...], kl_weight: float | None) -> Key:
        """What a graph is made for: shapes, types and devices of tensors, the values of all else, and the modules' mode."""
        parts = [(tuple(a.shape), a.dtype, a.device) if isinstance(a, Tensor) else a for a in args]
        like = next(iter(self._known.values()))
        return (
            *parts,
            self._spec,
            kl_weight is not None,
            like.dtype,
            like.device,
            tuple(m.training for m in self._modules),
        )

    def _compiled(
        self, args: tuple[Any, ...], kl_weight: float | None, divisor: float, what: str
    ) -> Graph | None:
        """The graph of a step, or of the gradients alone; None, with a warning, where it cannot be made."""
        if what == "step":
            return made(lambda: self._whole_step(args, kl_weight, divisor), device_of(args))
        return made(
            lambda: self._graph(args, kl_weight, divisor, self._reached(args, kl_weight), None),
            device_of(args),
        )

    def _whole_step(self, args: tuple[Any, ...], kl_weight: float | None, divisor: float) -> Graph:
        reached = self._reached(args, kl_weight)
        update = self._update(reached)
        if update is not None:
            return self._graph(args, kl_weight, divisor, reached, update)
        gradients = self._graph(args, kl_weight, divisor, reached, None)
        return Beside(
            gradients,
            self._optimizer(),
            list(self._known.values()),
            reached,
            self.grad_clip,
            divisor,
        )

    def _update(self, reached: list[bool]) -> Update | None:
        parameters = [p for p, r in zip(self._known.values(), reached, strict=True) if r]
        return Update.of(self._optimizer(), parameters)

    def _graph(
        self,
        args: tuple[Any, ...],
        kl_weight: float | None,
        divisor: float,
        reached: list[bool],
        update: Update | None,
    ) -> Graph:
        """Traced and made into code."""
        graph, inputs, where = self._traced(args, kl_weight, divisor, reached, update)
        runs: Graph = graph if self.backend == "eager" else inductor(graph, inputs, self.same_draws)
        return Call(runs, list(self._known.values()), where, update)

    def _traced(
        self,
        args: tuple[Any, ...],
        kl_weight: float | None,
        divisor: float,
        reached: list[bool],
        update: Update | None,
    ) -> tuple[GraphModule, list[Tensor], list[int]]:
        """The operations, their inputs, and which of the arguments are among these: parameters, arguments, what is kept.

        reached: which parameters have a gradient. update: the step, where it is in the graph.
        """
        parameters = self._known
        given = (*args, *self.weights(kl_weight))
        where = [i for i, a in enumerate(given) if isinstance(a, Tensor)]
        leaves = list(
            parameters.values()
        )  # inputs are known by identity: wherever the programs keep them, they are found
        kept = [*update.tensors([update.numbers()]), *update.state()] if update is not None else []

        def function(*flat: Any) -> tuple[Tensor, ...]:
            tensors, state = (
                flat[len(leaves) : len(leaves) + len(where)],
                flat[len(leaves) + len(where) :],
            )
            now = list(given)
            for i, tensor in zip(where, tensors, strict=True):
                now[i] = tensor
            with self.precision():
                bound = self._bound(
                    tuple(now[: len(args)]), now[-1] if kl_weight is not None else None
                )
            loss = -bound.surrogate if update is None else -bound.surrogate / divisor
            grads = torch.autograd.grad(loss, leaves, allow_unused=True)
            if [g is not None for g in grads] != reached:
                missed = [
                    name
                    for name, g, r in zip(parameters, grads, reached, strict=True)
                    if (g is not None) != r
                ]
                raise Untraceable(f"the gradient of '{missed[0]}' is lost in tracing")
            if update is None:
                return (bound.value.detach(), *_filled(grads, leaves))
            with torch.no_grad():
                moved = [leaf for leaf, r in zip(flat[: len(leaves)], reached, strict=True) if r]
                update.apply(
                    moved, clipped([g for g in grads if g is not None], self.grad_clip), state
                )
            return (-bound.value.detach() / divisor,)

        with _unchanged([*leaves, *kept]):  # tracing runs the step
            programs = cast(System, self.system)
            graph = traced(
                function,
                [*leaves, *[given[i] for i in where], *kept],
                programs.model,
                programs.guide,
            )
        return graph, [*[p.detach() for p in leaves], *[given[i] for i in where], *kept], where

    def _reached(self, args: tuple[Any, ...], kl_weight: float | None) -> list[bool]:
        """Which parameters a gradient reaches, in a run as it is. Raises RuntimeError where that run changes a buffer."""
        parameters = list(self._known.values())
        with same_buffers(self.system) as changed, self.precision():
            surrogate = self._bound(args, kl_weight).surrogate
        grads = torch.autograd.grad(-surrogate, parameters, allow_unused=True)
        if changed:
            raise RuntimeError(
                f"the buffer '{changed[0]}' is changed by a run, as by batch normalization"
            )
        return [g is not None for g in grads]


@dataclass(frozen=True)
class Traced:
    """The operations of a bound and its gradients: from parameters and arguments to the value and a gradient for each.

    where: which of the arguments, a weight of the KL as the last, are inputs. reached: which parameters have a gradient.
    """

    graph: GraphModule
    inputs: list[Tensor]
    where: list[int]
    reached: list[bool]
    update: Update | None


@contextmanager
def _unchanged(tensors: Sequence[Tensor]) -> Iterator[None]:
    """A context after which the tensors hold what they held."""
    before = [t.detach().clone() for t in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)


def _trained(system: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in system.named_parameters() if p.requires_grad}


def _filled(grads: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(like, grads, strict=True)]


def _default(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def _of_pyro(optimizer: PyroOptim) -> MakeOptimizer:
    """The optimizer of torch that an optimizer of Pyro would make for each parameter, for all of them."""
    if callable(optimizer.pt_optim_args) or not issubclass(
        optimizer.pt_optim_constructor, torch.optim.Optimizer
    ):
        raise ConfigError(
            "an optimizer of Pyro with settings for each parameter has none of torch to stand for it: give a function from "
            "parameters to an optimizer of torch"
        )
    return lambda parameters: optimizer.pt_optim_constructor(parameters, **optimizer.pt_optim_args)
