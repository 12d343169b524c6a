"""A Pyro model, guide and objective as one compiled graph: the bound and its gradients, parameters and random draws included.

`make_fx` runs the programs once, on one batch, and keeps the tensor operations of the bound and of its gradient: Pyro's
handlers leave no trace in them. `torch._inductor` makes code of that. One graph serves one shape of batch.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import pyro
import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyroae.errors import ConfigError, PyroaeError
from pyroae.objectives.base import Bound, ObjectiveBase
from pyroae.program import Pair, system_of
from pyroae.weights import Program, fork_random

Graph = Callable[..., tuple[Tensor, ...]]
Key = tuple[Any, ...]


class CompiledObjective:
    """A bound and its gradients as compiled code, in the place of `pyro.infer.SVI`'s loss.

    model, guide: Pyro programs over the same arguments, as of `fit`. objective: one of pyroae's, or any `pyro.infer.ELBO`
    with a `differentiable_loss` that reads no value back. same_draws: the random numbers of eager code, draw by draw, from the
    same seed; slower, for tests. backend: "inductor", or "eager" for the traced graph without code.
    The first batch of each shape is run as it is, with all checks, then traced. A program that cannot be traced, whose control
    flow hangs on values, is run as it is from then on, with one warning that says why.

    >>> from pyroae import TraceELBO, zoo
    >>> system, x = zoo.ppca(4, latent=2), torch.zeros(3, 4)
    >>> compiled = CompiledObjective(system.model, system.guide, TraceELBO(), backend="eager")
    >>> loss = compiled.loss_and_grads(x)
    >>> loss.shape, system.encoder[0].weight.grad.shape, compiled.is_compiled
    (torch.Size([]), torch.Size([2, 4]), True)
    """

    def __init__(
        self, model: Program, guide: Program, objective: ELBO, *, same_draws: bool = False, backend: str = "inductor"
    ) -> None:
        if not hasattr(objective, "differentiable_loss"):
            raise ConfigError(f"{type(objective).__name__} has no differentiable_loss: it cannot be compiled")
        if backend not in ("inductor", "eager"):
            raise ConfigError(f"unknown backend '{backend}': inductor or eager")
        self.system = system_of((model, guide))
        self.objective, self.same_draws, self.backend = objective, same_draws, backend
        self._graphs: dict[Key, Graph | None] = {}
        self._known = False

    @property
    def is_compiled(self) -> bool:
        """Whether the last shape of batch that was new runs as a graph."""
        return bool(self._graphs) and list(self._graphs.values())[-1] is not None

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name: the parameters of the programs' modules and of Pyro's store."""
        return {name: p for name, p in self.system.named_parameters() if p.requires_grad}

    def loss_and_grads(self, *args: Any, kl_weight: float = 1.0) -> Tensor:
        """The negative bound over all data, in nats, without gradient; adds its gradient to the parameters' `grad`."""
        value, grads = self.value_and_grads(*args, kl_weight=kl_weight)
        for parameter, grad in zip(self.parameters().values(), grads, strict=True):
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad
        return -value

    def value_and_grads(self, *args: Any, kl_weight: float = 1.0) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The bound over all data, in nats, and the gradient of its negative surrogate for each parameter.

        kl_weight: of log p and log q of the latent sites, as in KL warm-up; one graph serves every weight below 1.
        """
        if not self._known:
            self._find(args)
        given = args if kl_weight == 1 else (*args, torch.tensor(kl_weight))
        key = (*self._key(args), kl_weight == 1)
        if key not in self._graphs:
            self._graphs[key] = self._compiled(given, kl_weight != 1)
        graph = self._graphs[key]
        if graph is None:
            return self._eager(given, kl_weight != 1)
        with torch.no_grad():
            value, *grads = graph(*self._leaves(), *[a for a in given if isinstance(a, Tensor)])
        return value, tuple(grads)

    def _find(self, args: tuple[Any, ...]) -> None:
        """One eager run with all checks, which takes up the parameters of Pyro's store and leaves the generators alone."""
        with fork_random(_device(args)), torch.no_grad(), pyro.validation_enabled(True), _same_buffers(self.system):
            if isinstance(self.system, Pair):
                self.system.find_parameters(*args)
            cast(Any, self.objective).differentiable_loss(self._model, self._guide, *args)
        if not self.parameters():
            raise ConfigError("model and guide have no parameters to train: announce them by pyro.param or pyro.module")
        self._known = True

    @property
    def _model(self) -> Program:
        return cast(Any, self.system).model

    @property
    def _guide(self) -> Program:
        return cast(Any, self.system).guide

    def _key(self, args: tuple[Any, ...]) -> Key:
        """What a graph is made for: shapes, types and devices of tensors, the values of all else, and the modules' mode."""
        parts = [(tuple(a.shape), a.dtype, a.device) if isinstance(a, Tensor) else a for a in args]
        modes = tuple(m.training for m in self.system.modules())
        return (*parts, *[(p.dtype, p.device) for p in self.parameters().values()], modes)

    def _leaves(self) -> list[Tensor]:
        return [p.detach() for p in self.parameters().values()]

    def _bound(self, args: tuple[Any, ...], weighted: bool) -> Bound:
        rest = args[:-1] if weighted else args
        with _Weighted(args[-1]) if weighted else nullcontext():
            if isinstance(self.objective, ObjectiveBase):
                return self.objective.bound(self._model, self._guide, *rest)
            bound = -cast(Any, self.objective).differentiable_loss(self._model, self._guide, *rest)
            return Bound(bound.detach(), bound)

    def _eager(self, args: tuple[Any, ...], weighted: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        parameters = list(self.parameters().values())
        bound = self._bound(args, weighted)
        grads = torch.autograd.grad(-bound.surrogate, parameters, allow_unused=True)
        return bound.value.detach(), tuple(_filled(grads, parameters))

    def _compiled(self, args: tuple[Any, ...], weighted: bool) -> Graph | None:
        tensors = [a for a in args if isinstance(a, Tensor)]
        try:
            with fork_random(_device(args)), pyro.validation_enabled(False):
                graph = self._traced(args, weighted)
                return graph if self.backend == "eager" else _inductor(graph, [*self._leaves(), *tensors], self.same_draws)
        except PyroaeError:
            raise
        except Exception as error:  # whatever the programs or the compiler have to say
            reason = " ".join(str(error).split())[:200]
            warnings.warn(f"model and guide are run as they are, not compiled: {reason}", stacklevel=4)
            return None

    def _traced(self, args: tuple[Any, ...], weighted: bool) -> torch.fx.GraphModule:
        """Value and gradients as a function of the parameters and of the tensors among the arguments, in order."""
        from torch.fx.experimental.proxy_tensor import make_fx

        parameters = self.parameters()
        reached = self._reached(args, weighted)
        count, where = len(parameters), [i for i, a in enumerate(args) if isinstance(a, Tensor)]

        def function(*flat: Any) -> tuple[Tensor, ...]:
            given = list(args)
            for i, tensor in zip(where, flat[count:], strict=True):
                given[i] = tensor
            bound = self._bound(tuple(given), weighted)
            grads = torch.autograd.grad(-bound.surrogate, leaves, allow_unused=True)
            if [g is not None for g in grads] != reached:
                missed = [name for name, g, r in zip(parameters, grads, reached, strict=True) if (g is not None) != r]
                raise RuntimeError(f"the gradient of '{missed[0]}' is lost in tracing")
            return (bound.value.detach(), *_filled(grads, leaves))

        leaves = list(parameters.values())  # inputs are known by identity: wherever the programs keep them, they are found
        return make_fx(function)(*leaves, *[args[i] for i in where])

    def _reached(self, args: tuple[Any, ...], weighted: bool) -> list[bool]:
        """Which parameters a gradient reaches, in a run as it is. Raises RuntimeError where that run changes a buffer."""
        parameters = list(self.parameters().values())
        with _same_buffers(self.system) as changed:
            grads = torch.autograd.grad(-self._bound(args, weighted).surrogate, parameters, allow_unused=True)
        if changed:
            raise RuntimeError(f"the buffer '{changed[0]}' is changed by a run, as by batch normalization")
        return [g is not None for g in grads]


@contextmanager
def _same_buffers(system: nn.Module) -> Iterator[list[str]]:
    """A context after which the buffers are as they were; the names of those that were changed in it are then in the list."""
    buffers = dict(system.named_buffers())
    kept = {name: (b._version, b.clone()) for name, b in buffers.items()}
    changed: list[str] = []
    yield changed
    for name, (version, value) in kept.items():
        if buffers[name]._version != version:
            changed.append(name)
            with torch.no_grad():
                buffers[name].copy_(value)


class _Weighted(Messenger):
    """`training.KLWeight` with a weight that is a tensor: the same one at every site, which tells that scales agree."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and type(msg["fn"]).__name__ != "_Subsample":
            scale = msg["scale"]
            msg["scale"] = self.weight if not isinstance(scale, Tensor) and scale == 1 else scale * self.weight


def _inductor(graph: torch.fx.GraphModule, inputs: list[Tensor], same_draws: bool) -> Graph:
    import torch._inductor.config as settings
    from torch._inductor.compile_fx import compile_fx

    with settings.patch(fallback_random=same_draws), torch.no_grad():
        compiled: Any = compile_fx(graph, inputs)
        compiled(*inputs)  # code is made when it is first called
    return cast(Graph, compiled)


def _filled(grads: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(like, grads, strict=True)]


def _device(args: tuple[Any, ...]) -> torch.device:
    return next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
