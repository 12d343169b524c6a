"""Ensembles: trainings that differ in their seed only, stepped by one graph.

The step of one member is traced with its draws as inputs (`noise_inputs`) and vectorized over the
members by `torch.func.vmap`: parameters, optimizer states and batches are stacked along a first
dimension; shared tensors are not. Each member draws from a generator of its own, with the seed that
`fit` would give it: on a CPU the numbers are those of a separate training.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, cast

import pyro
import torch
from torch import Tensor, nn
from torch.fx.graph_module import GraphModule

from pyroae.compilation.codegen import (
    Graph,
    Outputs,
    Recorded,
    cuda_graph,
    device_of,
    inductor,
    try_compile,
)
from pyroae.compilation.noise_inputs import Draw, lift_draws
from pyroae.compilation.optimizer_steps import Update
from pyroae.compilation.step_graphs import Traced
from pyroae.compilation.svi import Compiled
from pyroae.compilation.tracing import one_mode, reason_of
from pyroae.errors import is_refusal
from pyroae.objectives.apply import next_step, variant_of
from pyroae.runtime.randomness import fork_random, random_state, set_random_state

Batches = Sequence[tuple[Tensor, ...]]
"""The arguments of each member's programs."""


Run = Callable[[Batches, float | None, float], list[Tensor]]
"""From batches, a KL weight and a divisor to the loss of each member, by one step of all."""


class Stream:
    """The random generators of one member, on the CPU and on its device.

    Args:
        device: The device of the member.

    Attributes:
        devices: The CPU, and the device if it is a GPU.
        generators: A generator by type of device.
    """

    def __init__(self, device: torch.device) -> None:
        self.devices = [torch.device("cpu"), *([device] if device.type == "cuda" else [])]
        self.generators = {d.type: torch.Generator(d) for d in self.devices}
        self.copy_state()

    def copy_state(self) -> None:
        """Set the generators to the states of torch's own."""
        for device in self.devices:
            self.generators[device.type].set_state(random_state(device))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Set torch's own generators to the member's states, and copy the new states on exit.

        Yields:
            None, in the context.
        """
        for device in self.devices:
            set_random_state(self.generators[device.type].get_state(), device)
        try:
            yield
        finally:
            self.copy_state()


class Ensemble:
    """Members of one form that take their steps together, each on a batch of its own.

    The first step runs eagerly, member by member; the graph is made at the second, once for each
    shape of batch. From then on the parameters are parts of stacks, until `separate`. Members that
    cannot be vectorized are stepped sequentially, with one warning. Those whose objective draws a
    variant on the host are too, without a warning, each with a variant of its own.

    Args:
        members: The compiled steps, each with parameters and an optimizer of its own.
        streams: The random generators of each member.

    Attributes:
        leaves: The stacks of the parameters, each `[members, ...]`.
        slots: The stacks of the optimizers' states, by parameter id of the first member and name.
    """

    def __init__(self, members: Sequence[Compiled], streams: Sequence[Stream]) -> None:
        self.members, self.streams = list(members), list(streams)
        self.leaves: list[Tensor] = []
        self.slots: dict[tuple[int, str], Tensor] = {}
        self._runs: dict[Any, Run] = {}
        self._last: Run | None = None

    @property
    def is_batched(self) -> bool:
        """Whether the last step was one graph of all members."""
        return isinstance(self._last, _Batched)

    def is_new(self, batches: Batches, kl_weight: float | None, divisor: float) -> bool:
        """Tell whether a step would have to be compiled first.

        Args:
            batches: The arguments of each member, tensors `[B, ...]`.
            kl_weight: Weight of the KL; None for none.
            divisor: The number that the bounds are divided by.

        Returns:
            True after the first step, for batches of new shapes.
        """
        return (
            self.members[0].has_stepped and self._key(batches, kl_weight, divisor) not in self._runs
        )

    def step(
        self, batches: Batches, kl_weight: float | None = None, divisor: float = 1.0
    ) -> list[Tensor]:
        """Take one step of each member.

        Args:
            batches: The arguments of each member, tensors `[B, ...]`.
            kl_weight: Weight of log p and log q of the latent sites; None for none.
            divisor: The number that the bounds are divided by.

        Returns:
            The negative bound of each member before the step, over `divisor`, scalars, in nats.
        """
        if not self.members[0].has_stepped:
            return self._one_by_one(batches, kl_weight, divisor)
        key = self._key(batches, kl_weight, divisor)
        if key not in self._runs:
            self._runs[key] = self._compiled(batches, kl_weight, divisor)
        self._last = self._runs[key]
        return self._last(batches, kl_weight, divisor)

    def steps(
        self, batches: Sequence[Batches], before: Callable[[int], float | None], divisor: float
    ) -> list[list[Tensor]]:
        """Take several steps of each member; on a GPU by one launch, once they are compiled.

        Args:
            batches: The batches of each step, as of `step`.
            before: Called with i before step i, to set the optimizers' rates; returns the step's
                weight of the KL.
            divisor: The number that the bounds are divided by.

        Returns:
            The negative bound of each member before each step, over `divisor`, in nats.
        """
        losses: list[list[Tensor]] = []
        for i, batch in enumerate(batches):
            kl_weight = before(i)
            run = (
                self._runs.get(self._key(batch, kl_weight, divisor))
                if self.members[0].has_stepped
                else None
            )
            if i == 0 and isinstance(run, _Batched) and run.recorded is not None:
                return self._recorded_steps(run, batches, kl_weight, before)
            losses.append(self.step(batch, kl_weight, divisor))
        return losses

    def _recorded_steps(
        self,
        run: "_Batched",
        batches: Sequence[Batches],
        kl_weight: float | None,
        before: Callable[[int], float | None],
    ) -> list[list[Tensor]]:
        weights, numbers = [kl_weight], [run.updates[0].numbers()]
        for i in range(1, len(batches)):
            weights.append(before(i))
            numbers.append(run.updates[0].numbers(ahead=i))
        count = len(self.members)
        args = [
            stack.unflatten(0, (-1, count))
            for stack in _stacked_arguments([b for step in batches for b in step], run.where)
        ]
        args += self.members[0].eager.weights(
            None if kl_weight is None else cast(list[float], weights)
        )
        return [list(losses.unbind()) for losses in run.run_steps(args, numbers)]

    def eager_step(
        self, batches: Batches, kl_weight: float | None = None, divisor: float = 1.0
    ) -> list[Tensor]:
        """Take one step of each member eagerly, member by member.

        Args:
            batches: The arguments of each member, tensors `[B, ...]`.
            kl_weight: Weight of log p and log q of the latent sites; None for none.
            divisor: The number that the bounds are divided by.

        Returns:
            The negative bound of each member before the step, over `divisor`, scalars, in nats.
        """
        losses = []
        for member, stream, args in zip(self.members, self.streams, batches, strict=True):
            with stream.in_use(), pyro.validation_enabled(False):
                next_step(member.objective)
                losses.append(member.eager.step(args, kl_weight, divisor))
        return losses

    def separate(self) -> None:
        """Give every member parameters and optimizer states of its own again."""
        for member in self.members:
            for parameter in member.parameters().values():
                parameter.data = parameter.data.clone()
            states = member.optimizer.state.values() if member.optimizer is not None else ()
            for state in states:
                state.update(
                    {
                        name: value.clone()
                        for name, value in state.items()
                        if isinstance(value, Tensor)
                    }
                )
        self.leaves, self.slots, self._runs = [], {}, {}

    def _key(self, batches: Batches, kl_weight: float | None, divisor: float) -> Any:
        return divisor, *self.members[0].eager.key(batches[0], kl_weight)

    def _one_by_one(
        self, batches: Batches, kl_weight: float | None, divisor: float
    ) -> list[Tensor]:
        """One step of each member by a graph of its own."""
        losses = []
        for member, stream, args in zip(self.members, self.streams, batches, strict=True):
            with stream.in_use():
                losses.append(member.step(*args, kl_weight=kl_weight, divisor=divisor))
        return losses

    def _compiled(self, batches: Batches, kl_weight: float | None, divisor: float) -> Run:
        # The members' own graphs hold their parameters, which must not become parts of stacks.
        has_variants = variant_of(self.members[0].objective) != ()
        if has_variants or self._one_by_one in self._runs.values():
            return self._one_by_one
        pairs, device = list(zip(self.members, batches, strict=True)), device_of(batches[0])
        traced = try_compile(
            lambda: [member.traced(args, kl_weight) for member, args in pairs], device
        )
        if traced is None:
            return self.eager_step
        try:
            with fork_random(device), pyro.validation_enabled(False):
                return self._batched(traced, batches, kl_weight, divisor)
        except Exception as error:  # any error of vmap or of the compiler
            if is_refusal(error):
                raise
            warnings.warn(
                f"the members of an ensemble are stepped sequentially: {reason_of(error)}",
                stacklevel=4,
            )
            return self._one_by_one

    def _batched(
        self, traced: Sequence[Traced], batches: Batches, kl_weight: float | None, divisor: float
    ) -> "_Batched":
        updates = [one.update for one in traced if one.update is not None]
        if len(updates) < len(traced):
            raise ValueError("their optimizer cannot be part of a graph")
        if len({one.graph.code for one in traced}) > 1:
            raise ValueError("they are not of one form: their graphs differ")
        first, (graph, draws) = traced[0], lift_draws(traced[0].graph)
        constants = _different(graph, [one.graph for one in traced])
        noise = [draw.empty(len(traced)) for draw in draws]
        leaves, state = self._share(updates)
        update, reached = updates[0], first.reached

        def gradients(*inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
            value, *grads = graph(*inputs)
            own = [grad / divisor for grad, r in zip(grads, reached, strict=True) if r]
            return -value / divisor, update.clipped(own)

        def step(*inputs: Tensor) -> tuple[Tensor]:
            of_bound, of_update = inputs[: len(dims)], inputs[len(dims) :]
            losses, grads = torch.func.vmap(gradients, in_dims=dims)(*of_bound)
            trained = [leaf for leaf, r in zip(of_bound, reached, strict=False) if r]
            update.apply(trained, grads, of_update, losses)
            return (losses,)

        args = _stacked_arguments(batches, first.where)
        weights = self.members[0].eager.weights(kl_weight)
        groups = ((leaves, 0), (args, 0), (weights, None), (noise, 0), (constants, 0))
        dims = tuple(dim for tensors, dim in groups for _ in tensors)
        inputs = [
            *(tensor for tensors, _ in groups for tensor in tensors),
            *update.tensors([update.numbers()]),
            *state,
        ]
        code = _code(step, inputs, self.members[0].backend)
        return _Batched(self, code, first.where, updates, state, draws, [*noise, *constants])

    def _share(self, updates: Sequence[Update]) -> tuple[list[Tensor], list[Tensor]]:
        """Stack parameters and optimizer states; the members' own become parts of the stacks."""
        if not self.leaves:
            columns = zip(*(member.parameters().values() for member in self.members), strict=True)
            self.leaves = [_stacked(column) for column in columns]
        state = []
        for places in zip(*(update.slots() for update in updates), strict=True):
            where = id(places[0][0]), places[0][1]
            if where not in self.slots:
                pairs = zip(updates, places, strict=True)
                states = [
                    cast(Any, update.optimizer).state[parameter] for update, (parameter, _) in pairs
                ]
                self.slots[where] = torch.stack([values[where[1]] for values in states])
                for values, part in zip(states, self.slots[where], strict=True):
                    values[where[1]] = part
            state.append(self.slots[where])
        return self.leaves, state


@dataclass
class _Batched:
    """The graph of all members' steps, with the tensors that it reads and changes.

    noise: buffers of the draws, then constants in which the members' graphs differ.
    """

    ensemble: Ensemble
    graph: Graph
    where: list[int]
    updates: list[Update]
    state: list[Tensor]
    draws: list[Draw]
    noise: list[Tensor]

    def __post_init__(self) -> None:
        leaves = self.ensemble.leaves
        generators = [stream.generators[leaves[0].device.type] for stream in self.ensemble.streams]
        on_gpu = leaves[0].device.type == "cuda"
        self.recorded = Recorded(self._in_order, cuda_graph, generators) if on_gpu else None
        self.draw_stream = torch.cuda.Stream(leaves[0].device) if on_gpu else None
        self.drawn: list[list[Tensor]] = []

    def __call__(self, batches: Batches, kl_weight: float | None, divisor: float) -> list[Tensor]:
        args = [
            *_stacked_arguments(batches, self.where),
            *self.ensemble.members[0].eager.weights(kl_weight),
        ]
        numbers = [self.updates[0].numbers()]
        if self.recorded is not None:
            return list(self.run_steps([t.unsqueeze(0) for t in args], numbers)[0].unbind())
        with torch.no_grad():
            self._fill(self.noise)
            leaves, rates = self.ensemble.leaves, self.updates[0].tensors(numbers)
            losses = self.graph(*leaves, *args, *self.noise, *rates, *self.state)[0]
        self._count(1)
        return list(losses.unbind())

    def run_steps(self, args: Sequence[Tensor], numbers: Sequence[list[list[float]]]) -> Tensor:
        """Take S recorded steps: from args `[S, members, B, ...]` to losses `[S, members]`."""
        assert self.recorded is not None
        with torch.no_grad():
            rates = self.updates[0].tensors(numbers, stacked=True)
            losses = self.recorded(
                [*self.ensemble.leaves, *self.noise, *self.state], [*args, *rates]
            )[0]
        self._count(len(numbers))
        return losses

    def _fill(self, noise: Sequence[Tensor]) -> None:
        """Draw for all members, in place."""
        for draw, buffer in zip(self.draws, noise, strict=False):
            for part, stream in zip(buffer, self.ensemble.streams, strict=True):
                draw.fill(part, stream.generators[draw.device.type])

    def _drawn(self, noise: Sequence[Tensor]) -> Sequence[Tensor]:
        """The buffers, filled; while a GPU records, new ones, filled on a second stream.

        A draw is one small kernel for each member; on the stream of the steps they would need a
        tenth of the time. The second stream is not ordered with the steps, so that no buffer may be
        used twice: all are kept while the recording lasts.
        """
        if self.draw_stream is None or not torch.cuda.is_current_stream_capturing():
            self._fill(noise)
            return noise
        now = torch.cuda.current_stream()
        with torch.cuda.stream(self.draw_stream):
            if not torch.cuda.is_current_stream_capturing():  # the first step of a recording
                self.draw_stream.wait_stream(now)
                self.drawn = []
            self.drawn.append([draw.empty(len(self.updates)) for draw in self.draws])
            self._fill(self.drawn[-1])
        now.wait_stream(self.draw_stream)
        return [*self.drawn[-1], *noise[len(self.draws) :]]

    def _count(self, steps: int) -> None:
        for update in self.updates:
            update.count(steps)

    def _in_order(self, *tensors: Tensor) -> Outputs:
        """Run the graph on tensors of which the static ones, the noise included, are first."""
        ends = list(
            accumulate(
                len(part) for part in (self.ensemble.leaves, self.noise, self.state, self.where)
            )
        )
        leaves, noise, state, args = (tensors[a:b] for a, b in pairwise([0, *ends]))
        return self.graph(*leaves, *args, *self._drawn(noise), *tensors[ends[-1] :], *state)


def _code(function: Callable[..., Any], inputs: Sequence[Tensor], backend: str) -> Graph:
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad(), warnings.catch_warnings(), one_mode():
        # Of operations that vmap computes member by member.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        traced = make_fx(function)(*[tensor.clone() for tensor in inputs])  # tracing runs the step
    return traced if backend == "eager" else inductor(traced, inputs, False)


def _stacked_arguments(batches: Batches, where: Sequence[int]) -> list[Tensor]:
    return [torch.stack([batch[i] for batch in batches]) for i in where if i < len(batches[0])]


def _stacked(parameters: Sequence[nn.Parameter]) -> Tensor:
    stack = torch.stack([parameter.detach() for parameter in parameters])
    for parameter, part in zip(parameters, stack, strict=True):
        parameter.data = part
    return stack


def _different(graph: GraphModule, graphs: Sequence[GraphModule]) -> list[Tensor]:
    """Stack the constants in which the members' graphs differ; they become inputs of `graph`."""
    stacks: list[Tensor] = []
    for node in [n for n in graph.graph.nodes if n.op == "get_attr"]:
        values = [getattr(one, str(node.target)) for one in graphs]
        if all(value is values[0] or torch.equal(value, values[0]) for value in values):
            continue
        last = [n for n in graph.graph.nodes if n.op == "placeholder"][-1]
        with graph.graph.inserting_after(last):
            constant = graph.graph.placeholder(f"constant_{len(stacks)}")
        node.replace_all_uses_with(constant)
        graph.graph.erase_node(node)
        stacks.append(torch.stack([value.detach() for value in values]))
    graph.recompile()
    return stacks
