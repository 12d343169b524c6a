"""The graphs of a training: which one a step takes, how it is traced, what compiles it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.fx.graph_module import GraphModule

from pyroae.compilation import optimizer_updates
from pyroae.compilation.codegen import Graph, inductor, on_device
from pyroae.compilation.divided_steps import DividedStep, NotDividedError, number_of_parts
from pyroae.compilation.graph_calls import GraphCall, SeparateOptimizer
from pyroae.compilation.noise_inputs import NotLiftedError
from pyroae.compilation.optimizer_updates import Update
from pyroae.compilation.shared_code import SharedCode
from pyroae.compilation.step_loop import NoEntryError, start_compiling
from pyroae.compilation.tracing import UntraceableError, trace_to_graph
from pyroae.errors import is_refusal
from pyroae.objectives.base import Bound
from pyroae.programs.pair import System, same_buffers
from pyroae.runtime.memory import is_out_of_memory
from pyroae.runtime.short_repr import Shown


@dataclass(frozen=True, repr=False)
class Traced(Shown):
    """A bound and its gradients as a graph, from parameters and arguments.

    Attributes:
        graph: The operations; the outputs are the bound, a scalar in nats, and the gradient of its
            negative surrogate for each parameter.
        inputs: Parameters, then arguments.
        where: Indices of the arguments, with a weight of the KL as the last, that are inputs.
        reached: Whether each parameter has a gradient.
        update: The optimizer's step; None without a rule for it.
    """

    graph: GraphModule
    inputs: list[Tensor]
    where: list[int]
    reached: list[bool]
    update: Update | None


@dataclass(frozen=True)
class StepGraphs:
    """Makes the graphs of a training.

    Attributes:
        system: A module with a model and a guide.
        objective: The objective.
        parameters: Names and parameters.
        bound: From all values of the programs' arguments and a weight of the KL to the bound.
        optimizer: The optimizer; None for gradients only.
        grad_clip: Largest norm of the whole gradient; None for no limit.
        same_draws: Whether draws on a GPU equal those of eager code.
        precision: Makes a context of mixed precision.
        backend: "inductor", or "eager" for the traced graph without code generation.
        shared: The code that the members of an ensemble share, and the generator of this member's
            draws; None for code of its own.
    """

    system: nn.Module
    objective: ELBO
    parameters: dict[str, nn.Parameter]
    bound: Callable[[tuple[Any, ...], Tensor | float | None], Bound]
    optimizer: torch.optim.Optimizer | None
    grad_clip: float | None
    same_draws: bool
    precision: Callable[[], AbstractContextManager[Any]]
    backend: str
    shared: tuple[SharedCode, torch.Generator] | None

    @property
    def _leaves(self) -> list[nn.Parameter]:
        return list(self.parameters.values())

    def step(self, args: tuple[Any, ...], weights: tuple[Tensor, ...], divisor: float) -> Graph:
        """Compile a step of the optimizer.

        Args:
            args: All values of the programs' arguments.
            weights: The weight of the KL as a tensor; empty for none.
            divisor: The number that the bound is divided by.

        Returns:
            From arguments and weights to the loss: the step divided among threads where that is
            possible, else one graph, with the optimizer outside of it where it has no rule.

        Raises:
            UntraceableError: If the operations depend on values of tensors.
            RuntimeError: If a run changes a buffer.
        """
        assert self.optimizer is not None
        values = (*args, *weights)
        reached = self._reached(args, weights)
        update = self._update(reached)
        if update is not None:
            divided = self.divided_step(values, len(weights), divisor, reached, update)
            return divided or self._call(values, len(weights), divisor, reached, update)
        gradients = self._call(values, len(weights), divisor, reached, None)
        return SeparateOptimizer(
            gradients, self.optimizer, self._leaves, reached, self.grad_clip, divisor
        )

    def gradients(self, args: tuple[Any, ...], weights: tuple[Tensor, ...]) -> Graph:
        """Compile the bound and its gradients.

        Args:
            args: As of `step`.
            weights: As of `step`.

        Returns:
            From arguments and weights to the bound and the gradient for each parameter.

        Raises:
            UntraceableError: As of `step`.
            RuntimeError: As of `step`.
        """
        reached = self._reached(args, weights)
        return self._call((*args, *weights), len(weights), 1.0, reached, None)

    def traced(self, args: tuple[Any, ...], weights: tuple[Tensor, ...]) -> Traced:
        """Trace the bound and its gradients.

        Args:
            args: As of `step`.
            weights: As of `step`.

        Returns:
            The graph and its inputs, with the optimizer's step if there is a rule for it.

        Raises:
            UntraceableError: As of `step`.
            RuntimeError: As of `step`.
        """
        reached, values = self._reached(args, weights), (*args, *weights)
        graph, inputs = self._traced(values, len(weights), self._outputs, 1.0, reached)
        return Traced(graph, inputs, _tensors(values), reached, self._update(reached))

    def divided_step(
        self,
        values: tuple[Any, ...],
        num_weights: int,
        divisor: float,
        reached: list[bool],
        update: Update,
    ) -> DividedStep | None:
        """Compile a step that is divided among threads.

        Args:
            values: All values of the programs' arguments, then the weight of the KL, if any.
            num_weights: 1 with a weight of the KL, else 0.
            divisor: The number that the bound is divided by.
            reached: Whether each parameter has a gradient.
            update: The optimizer's step.

        Returns:
            The step; None on a GPU, and where it is impossible.
        """
        where = _tensors(values)
        batch = next((len(values[i]) for i in where if values[i].ndim), 0)
        threads = 1 if self.shared is not None else torch.get_num_threads()
        generator = torch.default_generator if self.shared is None else self.shared[1]
        devices = {p.device.type for p in self._leaves}
        if devices - {"cpu"} or devices & {*optimizer_updates.GROUPED}:
            return None

        def loss_and_grads(
            bound: Bound, grads: Sequence[Tensor | None], *_: Any
        ) -> tuple[Tensor, ...]:
            return (-bound.value.detach() / divisor, *(g for g in grads if g is not None))

        def trace(rows: Sequence[Tensor]) -> GraphModule:
            part = list(values)
            for i, tensor in zip(where, rows, strict=True):
                part[i] = tensor
            # Objectives check programs in the first run on arguments of new shapes.
            args, weights = part[: len(part) - num_weights], part[len(part) - num_weights :]
            if self._reached(tuple(args), tuple(weights)) != reached:
                raise UntraceableError("other parameters have a gradient in a part of the batch")
            return self._traced(tuple(part), num_weights, loss_and_grads, divisor, reached)[0]

        def divided(parts: int) -> DividedStep:
            return DividedStep(
                trace,
                values,
                self._leaves,
                reached,
                update,
                self.grad_clip,
                threads,
                parts,
                self._code,
                generator,
            )

        parts = number_of_parts(threads, batch, int(getattr(self.objective, "num_particles", 1)))
        try:
            try:
                return divided(parts)
            except (NotDividedError, UntraceableError):
                return divided(1) if parts > 1 else None
        except (NotLiftedError, NotDividedError, NoEntryError, UntraceableError):
            return None
        except Exception as error:  # any error of the compiler: the undivided step is tried next
            if self.backend == "eager" or is_refusal(error) or is_out_of_memory(error):
                raise
            return None

    def _code(self, graph: GraphModule, inputs: Sequence[Tensor], one_core: bool) -> Graph:
        """Code of a divided step, called from C++."""
        if self.shared is None and self.backend == "eager":
            return graph
        start_compiling()
        if self.shared is not None:
            return self.shared[0].compiled(graph, inputs, cpp=True)
        return inductor(graph, inputs, self.same_draws, cpp=True, one_core=one_core)

    def _call(
        self,
        values: tuple[Any, ...],
        num_weights: int,
        divisor: float,
        reached: list[bool],
        update: Update | None,
    ) -> GraphCall:
        """One graph of a step or, without an update, of the bound and its gradients."""

        def step(
            bound: Bound,
            grads: Sequence[Tensor | None],
            leaves: Sequence[Tensor],
            state: Sequence[Tensor],
        ) -> tuple[Tensor, ...]:
            assert update is not None
            loss = -bound.value.detach() / divisor
            with torch.no_grad():
                trained = [p for p, is_reached in zip(leaves, reached, strict=True) if is_reached]
                own = update.clipped([g for g in grads if g is not None], self.grad_clip)
                update.apply(trained, own, state, loss)
            return (loss,)

        of_update: list[Tensor] = []
        outputs, over = self._outputs, 1.0
        if update is not None:
            of_update = [*update.tensors([update.numbers()]), *update.state()]
            outputs, over = step, divisor
        graph, inputs = self._traced(values, num_weights, outputs, over, reached, of_update)
        code: Graph
        if self.shared is not None:
            code = self.shared[0].code_of(graph, inputs, self.shared[1])
        else:
            code = graph if self.backend == "eager" else inductor(graph, inputs, self.same_draws)
        return GraphCall(code, self._leaves, _tensors(values), update)

    def _outputs(self, bound: Bound, grads: Sequence[Tensor | None], *_: Any) -> tuple[Tensor, ...]:
        """The bound and the gradients of all parameters."""
        return (bound.value.detach(), *filled(grads, self._leaves))

    def _update(self, reached: list[bool]) -> Update | None:
        if self.optimizer is None:
            return None
        trained = [p for p, is_reached in zip(self._leaves, reached, strict=True) if is_reached]
        return Update.of(self.optimizer, trained)

    def _traced(
        self,
        values: tuple[Any, ...],
        num_weights: int,
        outputs: Callable[..., tuple[Tensor, ...]],
        divisor: float,
        reached: list[bool],
        of_update: Sequence[Tensor] = (),
    ) -> tuple[GraphModule, list[Tensor]]:
        """The operations and their inputs: parameters, tensors among the values, `of_update`.

        outputs: from the bound, the gradients over `divisor`, the parameters and `of_update` to the
        outputs. reached: whether each parameter has a gradient in an eager run.
        """
        # make_fx recognizes inputs by identity, wherever the programs hold them.
        leaves, where = self._leaves, _tensors(values)

        def function(*inputs: Any) -> tuple[Tensor, ...]:
            end = len(leaves) + len(where)
            traced = list(values)
            for i, tensor in zip(where, inputs[len(leaves) : end], strict=True):
                traced[i] = tensor
            weight = traced.pop() if num_weights else None
            with self.precision():
                bound = self.bound(tuple(traced), weight)
            loss = -bound.surrogate if divisor == 1 else -bound.surrogate / divisor
            grads = torch.autograd.grad(loss, leaves, allow_unused=True)
            self._check_reached(grads, reached)
            return outputs(bound, grads, inputs[: len(leaves)], inputs[end:])

        tensors = [*(values[i] for i in where), *of_update]
        with _unchanged([*leaves, *of_update]):  # tracing runs the step
            programs = cast(System, self.system)
            graph = trace_to_graph(function, [*leaves, *tensors], programs.model, programs.guide)
        return graph, [*[p.detach() for p in leaves], *tensors]

    def _check_reached(self, grads: Sequence[Tensor | None], reached: list[bool]) -> None:
        """Refuse a graph in which other parameters have a gradient than in an eager run."""
        for name, grad, is_reached in zip(self.parameters, grads, reached, strict=True):
            if (grad is not None) != is_reached:
                raise UntraceableError(f"the gradient of '{name}' is lost in tracing")

    def _reached(self, args: tuple[Any, ...], weights: tuple[Tensor, ...]) -> list[bool]:
        """Whether a gradient reaches each parameter, in an eager run that changes no buffer."""
        with same_buffers(self.system) as changed, self.precision():
            surrogate = self.bound(args, weights[0] if weights else None).surrogate
        grads = torch.autograd.grad(-surrogate, self._leaves, allow_unused=True)
        if changed:
            raise RuntimeError(
                f"the buffer '{changed[0]}' is changed by a run, as by batch normalization"
            )
        return [g is not None for g in grads]


def weights_of(kl_weight: float | list[float] | None, device: torch.device) -> tuple[Tensor, ...]:
    """Convert a weight of the KL to arguments of a graph.

    Args:
        kl_weight: A weight, or one for each of S steps; None for none.
        device: The parameters' device.

    Returns:
        One tensor, a scalar or `[S]`; none for None.
    """
    return () if kl_weight is None else (on_device(kl_weight, torch.get_default_dtype(), device),)


def filled(grads: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Fill in the gradients of parameters that none reaches.

    Args:
        grads: A gradient for each parameter; None where none reaches it.
        like: The parameters.

    Returns:
        The gradients, zero where there was none.
    """
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(like, grads, strict=True)]


def _tensors(values: Sequence[Any]) -> list[int]:
    """Indices of the tensors among values."""
    return [i for i, value in enumerate(values) if isinstance(value, Tensor)]


@contextmanager
def _unchanged(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Restore the values of tensors on exit."""
    before = [t.detach().clone() for t in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
