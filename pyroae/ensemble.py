"""Many models at once: trainings that differ in their seed alone, stepped by one graph.

The step of one member is traced with its draws as inputs (`pyroae.lifting`) and vectorized over members by `torch.func.vmap`:
parameters, states of the optimizers and batches are stacked along a first dimension, and what is shared stays single. Each
member draws from a generator of its own, with the seed that `fit` would give it: on a CPU the numbers of a separate training.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, cast

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.fx.graph_module import GraphModule

from pyroae import training
from pyroae.compiler import Compiled, Traced
from pyroae.config import TrainConfig
from pyroae.data import Dataset, Splits, resident, served
from pyroae.errors import ConfigError, NonFiniteLossError, PyroaeError
from pyroae.graphs import Graph, Outputs, Recorded, cuda_graph, device_of, inductor, made
from pyroae.lifting import Draw, lifted
from pyroae.objectives import TraceELBO
from pyroae.optimizers import optimizer_of
from pyroae.program import Pair, like_parameters, system_of
from pyroae.progress import Progress
from pyroae.tracing import reason_of
from pyroae.training import (
    Epoch,
    FitResult,
    Losses,
    State,
    Step,
    Trainer,
    check,
    default_dtype,
    fabric_of,
    fit,
    steps_of,
    train_and_valid,
)
from pyroae.updates import Update, clipped, rule_of
from pyroae.weights import fork_random

CPU_PRODUCTS = 3 * 10**7
"""On two cores five seeds took 0.75 of their time in turn at 7·10⁶ products of weights a step, and all of it at 8·10⁷."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Batches = Sequence[tuple[Tensor, ...]]
Run = Callable[[Batches, float | None, float], list[Tensor]]


class Stream:
    """The random numbers of one member, on the CPU and on its device."""

    def __init__(self, device: torch.device) -> None:
        self.devices = [torch.device("cpu"), *([device] if device.type == "cuda" else [])]
        self.generators = {d.type: torch.Generator(d) for d in self.devices}
        self.take()

    def take(self) -> None:
        """Go on where torch's own generators are now."""
        for device in self.devices:
            state = torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)
            self.generators[device.type].set_state(state)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """A context in which torch's own generators are the member's; they are left where they come to."""
        for device in self.devices:
            state = self.generators[device.type].get_state()
            torch.set_rng_state(state) if device.type == "cpu" else torch.cuda.set_rng_state(state, device)
        try:
            yield
        finally:
            self.take()


class Ensemble:
    """Members of one form that take their steps together: `step`, for a batch of each.

    members: as `fit` steps with, each with parameters and an optimizer of its own. streams: of their draws. The first step is
    run as it is, a member after the other; the graph is made at the second, once for each shape of batch. From then on the
    parameters are parts of stacks, `separate` ends that. What cannot be vectorized is stepped one by one, with one warning.
    """

    def __init__(self, members: Sequence[Compiled], streams: Sequence[Stream]) -> None:
        self.members, self.streams = list(members), list(streams)
        self.leaves: list[Tensor] = []
        self.slots: dict[tuple[int, str], Tensor] = {}
        self._runs: dict[Any, Run] = {}
        self._last: Run | None = None

    @property
    def is_batched(self) -> bool:
        """Whether the last step was that of one graph for all."""
        return isinstance(self._last, _Batched)

    def is_new(self, batches: Batches, kl_weight: float | None, divisor: float) -> bool:
        """Whether a step with such batches would have to be compiled first."""
        return self.members[0].has_stepped and self._key(batches, kl_weight, divisor) not in self._runs

    def step(self, batches: Batches, kl_weight: float | None = None, divisor: float = 1.0) -> list[Tensor]:
        """One step of each; the negative bounds before it, divided by `divisor`."""
        if not self.members[0].has_stepped:
            return self._one_by_one(batches, kl_weight, divisor)
        key = self._key(batches, kl_weight, divisor)
        if key not in self._runs:
            self._runs[key] = self._made(batches, kl_weight, divisor)
        self._last = self._runs[key]
        return self._last(batches, kl_weight, divisor)

    def eager_step(self, batches: Batches, kl_weight: float | None = None, divisor: float = 1.0) -> list[Tensor]:
        """One step of each, run as it is, a member after the other."""
        losses = []
        for member, stream, args in zip(self.members, self.streams, batches, strict=True):
            with stream.lent(), pyro.validation_enabled(False):
                losses.append(member.eager_step(args, kl_weight, divisor))
        return losses

    def separate(self) -> None:
        """Give every member tensors of its own again."""
        for member in self.members:
            for parameter in member.parameters().values():
                parameter.data = parameter.data.clone()
            states = member.optimizer.state.values() if member.optimizer is not None else ()
            for state in states:
                state.update({name: value.clone() for name, value in state.items() if isinstance(value, Tensor)})
        self.leaves, self.slots, self._runs = [], {}, {}

    def _key(self, batches: Batches, kl_weight: float | None, divisor: float) -> Any:
        return divisor, *self.members[0].key(batches[0], kl_weight)

    def _one_by_one(self, batches: Batches, kl_weight: float | None, divisor: float) -> list[Tensor]:
        """One step of each by a graph of its own."""
        losses = []
        for member, stream, args in zip(self.members, self.streams, batches, strict=True):
            with stream.lent():
                losses.append(member.step(*args, kl_weight=kl_weight, divisor=divisor))
        return losses

    def _made(self, batches: Batches, kl_weight: float | None, divisor: float) -> Run:
        if self._one_by_one in self._runs.values():  # the members' own graphs know where their parameters are
            return self._one_by_one
        pairs, device = list(zip(self.members, batches, strict=True)), device_of(batches[0])
        traced = made(lambda: [member.traced(args, kl_weight) for member, args in pairs], device)
        if traced is None:
            return self.eager_step
        try:
            with fork_random(device), pyro.validation_enabled(False):
                return self._batched(traced, batches, kl_weight, divisor)
        except PyroaeError:
            raise
        except Exception as error:  # whatever vmap or the compiler have to say
            warnings.warn(f"the members of an ensemble are stepped one after the other: {reason_of(error)}", stacklevel=4)
            return self._one_by_one

    def _batched(self, traced: Sequence[Traced], batches: Batches, kl_weight: float | None, divisor: float) -> "_Batched":
        updates = [one.update for one in traced if one.update is not None]
        if len(updates) < len(traced):
            raise ValueError("their optimizer is none that a graph can hold")
        if len({one.graph.code for one in traced}) > 1:
            raise ValueError("they are not of one form: their graphs differ")
        first, (graph, draws) = traced[0], lifted(traced[0].graph)
        constants = _different(graph, [one.graph for one in traced])
        rooms = [draw.room(len(traced)) for draw in draws]
        leaves, state = self._share(updates)
        clip, update, reached = self.members[0].grad_clip, updates[0], first.reached

        def gradients(*inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
            value, *grads = graph(*inputs)
            kept = [grad / divisor for grad, r in zip(grads, reached, strict=True) if r]
            return -value / divisor, clipped(kept, clip)

        def step(*inputs: Tensor) -> tuple[Tensor]:
            given, kept = inputs[: len(dims)], inputs[len(dims) :]
            losses, grads = torch.func.vmap(gradients, in_dims=dims)(*given)
            moved = [leaf for leaf, r in zip(given, reached, strict=False) if r]
            update.apply(moved, grads, kept)
            return (losses,)

        args = _stacked_arguments(batches, first.where)
        weights = self.members[0].weights(kl_weight)
        groups = ((leaves, 0), (args, 0), (weights, None), (rooms, 0), (constants, 0))
        dims = tuple(dim for tensors, dim in groups for _ in tensors)
        inputs = [*(tensor for tensors, _ in groups for tensor in tensors), *update.numbers(), *state]
        code = _code(step, inputs, self.members[0].backend)
        return _Batched(self, code, first.where, updates, state, draws, [*rooms, *constants])

    def _share(self, updates: Sequence[Update]) -> tuple[list[Tensor], list[Tensor]]:
        """Stacks of the parameters and of the optimizers' states, of which those of the members are parts from now on."""
        if not self.leaves:
            columns = zip(*(member.parameters().values() for member in self.members), strict=True)
            self.leaves = [_stacked(column) for column in columns]
        state = []
        for places in zip(*(update.slots() for update in updates), strict=True):
            where = id(places[0][0]), places[0][1]
            if where not in self.slots:
                pairs = zip(updates, places, strict=True)
                kept = [cast(Any, update.optimizer).state[parameter] for update, (parameter, _) in pairs]
                self.slots[where] = torch.stack([values[where[1]] for values in kept])
                for values, part in zip(kept, self.slots[where], strict=True):
                    values[where[1]] = part
            state.append(self.slots[where])
        return self.leaves, state


@dataclass
class _Batched:
    """The graph of all members' steps, with the tensors that it reads and changes. rooms: of the draws, then constants."""

    ensemble: Ensemble
    graph: Graph
    where: list[int]
    updates: list[Update]
    state: list[Tensor]
    draws: list[Draw]
    rooms: list[Tensor]

    def __post_init__(self) -> None:
        self.parts = [
            (draw, part, stream.generators[draw.device.type])
            for draw, room in zip(self.draws, self.rooms, strict=False)
            for part, stream in zip(room, self.ensemble.streams, strict=True)
        ]
        leaves = self.ensemble.leaves
        self.recorded = Recorded(self._in_order, cuda_graph) if leaves[0].device.type == "cuda" else None

    def __call__(self, batches: Batches, kl_weight: float | None, divisor: float) -> list[Tensor]:
        leaves, numbers = self.ensemble.leaves, self.updates[0].numbers()
        with torch.no_grad():
            for draw, part, generator in self.parts:
                draw.fill(part, generator)
            args = [*_stacked_arguments(batches, self.where), *self.ensemble.members[0].weights(kl_weight)]
            if self.recorded is not None:
                losses = self.recorded([*leaves, *self.rooms, *self.state], [*args, *numbers])[0]
            else:
                losses = self.graph(*leaves, *args, *self.rooms, *numbers, *self.state)[0]
        for update in self.updates:
            update.count()
        return list(losses.unbind())

    def _in_order(self, *tensors: Tensor) -> Outputs:
        """What stays comes first where a step is recorded."""
        ends = list(accumulate(len(part) for part in (self.ensemble.leaves, self.rooms, self.state, self.where)))
        leaves, rooms, state, args = (tensors[a:b] for a, b in pairwise([0, *ends]))
        return self.graph(*leaves, *args, *rooms, *tensors[ends[-1] :], *state)


def _code(function: Callable[..., Any], inputs: Sequence[Tensor], backend: str) -> Graph:
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # such an operation is made member by member
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
    """Stacks of the constants in which the members' graphs differ; in `graph` these become further inputs."""
    stacks: list[Tensor] = []
    for node in [n for n in graph.graph.nodes if n.op == "get_attr"]:
        values = [getattr(one, str(node.target)) for one in graphs]
        if all(value is values[0] or torch.equal(value, values[0]) for value in values):
            continue
        last = [n for n in graph.graph.nodes if n.op == "placeholder"][-1]
        with graph.graph.inserting_after(last):
            given = graph.graph.placeholder(f"constant_{len(stacks)}")
        node.replace_all_uses_with(given)
        graph.graph.erase_node(node)
        stacks.append(torch.stack([value.detach() for value in values]))
    graph.recompile()
    return stacks


# Training.


def fit_ensemble(
    systems: Sequence[nn.Module],
    data: Splits | Dataset | Tensor | tuple[Tensor, ...],
    objective: ELBO | None = None,
    config: TrainConfig | None = None,
    *,
    seeds: Sequence[int],
    valid: Dataset | Tensor | tuple[Tensor, ...] | None = None,
    on_epoch: Callable[[int, State], None] | None = None,
    progress: bool = True,
) -> list[FitResult]:
    """Train systems of one form in place, each from a seed of its own, in one batched graph.

        what `fit(system, data, objective, replace(config, seed=seed))` does for each, its draws and batches included

    systems: modules with a `model` and a `guide`, alike but for their weights. seeds: of each, in the place of `config.seed`.
    on_epoch: receives the index of a member and its state, from which `fit` goes on. The rest is as in `fit`. On a CPU losses
    and weights are those of separate trainings but for rounding; `seconds` of a member are its equal share of those of all.
    Members are trained one after the other where `is_worth_batching` does not hold, or, with a warning, where their draws or
    operations cannot be batched.
    Raises what `fit` raises; NonFiniteLossError names the seed, and every member then has the weights of its last good epoch;
    ConfigError for another number of seeds than of systems, and for a pair of programs, whose parameters Pyro's store shares.

    >>> from pyroae import load, zoo
    >>> digits = load("digits", binarize="dynamic")
    >>> members = [zoo.vae(digits.train, latent=2) for _ in range(2)]
    >>> results = fit_ensemble(members, digits, config=TrainConfig(epochs=1), seeds=(0, 1), progress=False)
    >>> [20 < result.history[0].valid_nelbo < 35 for result in results]
    [True, True]
    """
    config = config or TrainConfig()
    objective = TraceELBO() if objective is None else objective
    modules = [_module(system) for system in systems]
    if len(modules) != len(seeds) or not modules:
        raise ConfigError(f"an ensemble has a seed for each system, not {len(seeds)} for {len(modules)}")
    configs = [replace(config, seed=seed) for seed in seeds]
    parts = [train_and_valid(module, data, valid) for module in modules]
    if not is_worth_batching(modules[0], objective, config, len(parts[0][0]), len(modules)):
        return [_alone(i, modules[i], data, objective, one, valid, on_epoch, progress) for i, one in enumerate(configs)]
    sizes = [check(m, *part, objective, one) for m, part, one in zip(modules, parts, configs, strict=True)]
    fabrics = [fabric_of(one) for one in configs]
    with fork_random(fabrics[0].device), default_dtype(config):
        train, trainers, streams = resident(parts[0][0], fabrics[0].device), [], []
        for module, one, fabric, size, (_, held_out) in zip(modules, configs, fabrics, sizes, parts, strict=True):
            trainers.append(Trainer(Step(module, deepcopy(objective), size), one, fabric, train, held_out))
            streams.append(Stream(fabric.device))
        return _Lockstep(trainers, streams).run(on_epoch, progress)


def is_worth_batching(system: nn.Module, objective: ELBO, config: TrainConfig, num_data: int, members: int) -> bool:
    """Whether so many trainings of such systems are made one ensemble: a rule of the configuration, never of a clock.

    Not where members would fall out of step (`patience`, `max_seconds`), for gradients that are scaled (`16-mixed`), for an
    optimizer that no graph can hold, for a pair of programs, and where compilation is turned off or does not pay: by
    `compile="auto"` an ensemble has 5,000 steps or more, those of all members counted. On a CPU, which one member's step can
    fill, not for convolutions, nor where parameters × batch × K are more than 3·10⁷.
    """
    if members < 2 or isinstance(system, Pair) or not config.compile:
        return False
    if config.patience is not None or config.max_seconds is not None or config.precision == "16-mixed":
        return False
    optimizer = optimizer_of(config, system)
    if any(rule_of(optimizer, group) is None for group in optimizer.param_groups):
        return False
    if fabric_of(config).device.type == "cpu":
        products = sum(p.numel() for p in system.parameters()) * config.batch_size * getattr(objective, "num_particles", 1)
        if products > CPU_PRODUCTS or any(isinstance(m, CONVOLUTIONS) for m in system.modules()):
            return False
    return config.compile is True or members * steps_of(config, num_data) >= training.COMPILE_FROM_STEPS


def _module(system: Any) -> nn.Module:
    module = system_of(system)
    if isinstance(module, Pair):
        raise ConfigError("an ensemble is one of modules: the parameters of a pair (model, guide) may be in Pyro's one store")
    return module


def _alone(
    index: int,
    module: nn.Module,
    data: Any,
    objective: ELBO,
    config: TrainConfig,
    valid: Any,
    on_epoch: Callable[[int, State], None] | None,
    progress: bool,
) -> FitResult:
    after = None if on_epoch is None else lambda state: on_epoch(index, state)
    return fit(module, data, objective, config, valid=valid, on_epoch=after, progress=progress)


class _Lockstep:
    """Trainings whose steps are taken together; all else is each one's own."""

    def __init__(self, trainers: Sequence[Trainer], streams: Sequence[Stream]) -> None:
        self.trainers, self.streams, self.first = list(trainers), list(streams), trainers[0]
        self.ensemble = Ensemble([compiled for t in trainers if (compiled := t.compiler()) is not None], streams)
        self.seconds = self.compile_seconds = 0.0

    def run(self, on_epoch: Callable[[int, State], None] | None, progress: bool) -> list[FitResult]:
        first, step = self.first, 0
        states = self._each(lambda i: self.trainers[i].state([], {}, 0))
        with ExitStack() as stack:
            self.progress = stack.enter_context(Progress("training an ensemble", int(first.total_steps), progress))
            stack.callback(self.ensemble.separate)
            for epoch in range(1, first.config.epochs + 1):
                if step >= first.total_steps:
                    break
                step, nelbos = self._epoch(epoch, step, states)
                seconds = self.seconds / len(self.trainers)
                for i, trainer in enumerate(self.trainers):
                    with self.streams[i].lent():
                        row = Epoch(epoch, step, seconds, nelbos[i], *trainer.validate())
                        states[i] = trainer.after(row, states[i])
                        if on_epoch is not None:
                            on_epoch(i, states[i])
        for trainer in self.trainers:
            trainer.compile_seconds = self.compile_seconds / len(self.trainers)
        return self._each(lambda i: self.trainers[i].finish(states[i], False))

    def _epoch(self, epoch: int, step: int, good: Sequence[State]) -> tuple[int, list[float]]:
        """One pass of each over its training data, or what is left of the steps; the mean negative bounds along it."""
        for trainer in self.trainers:
            trainer.system.train()
        losses = [Losses(step) for _ in self.trainers]
        begun, before = time.monotonic(), self.seconds
        shown = begun
        for batches in self._batches(epoch):
            for kept, loss in zip(losses, self._step(step, batches), strict=True):
                kept.add(loss, len(batches[0][0]))
            step += 1
            now = time.monotonic()
            if now - shown > 0.5:
                shown = now
                self._look(losses, epoch, good, wait=False)
                mean = sum(kept.mean for kept in losses) / len(losses)
                self.progress.update(step, f"epoch {epoch}, bounds of about {-mean:.3f} nats")
            if step >= self.first.total_steps:
                break
        self._look(losses, epoch, good, wait=True)
        self.seconds = before + time.monotonic() - begun
        return step, [kept.mean for kept in losses]

    def _batches(self, epoch: int) -> Iterator[list[tuple[Tensor, ...]]]:
        """A batch of each."""
        device, size = self.first.fabric.device, self.first.config.batch_size
        each = [served(self.first.train, size, seed=t.config.seed, epoch=epoch, device=device) for t in self.trainers]
        for batches in zip(*each, strict=True):
            yield [like_parameters(t.system, args) for t, args in zip(self.trainers, batches, strict=True)]

    def _step(self, step: int, batches: Batches) -> list[Tensor]:
        (kl_weight,) = {trainer.begin(step) for trainer in self.trainers}
        divisor = self.first.raw.num_data(batches[0])
        if not self.first.is_worth_compiling(len(batches[0][0]), len(self.trainers)):
            return self.ensemble.eager_step(batches, kl_weight, divisor)
        if not self.ensemble.is_new(batches, kl_weight, divisor):
            return self.ensemble.step(batches, kl_weight, divisor)
        self.progress.update(step, "compiling the step")
        begun = time.monotonic()
        losses = self.ensemble.step(batches, kl_weight, divisor)
        self.compile_seconds += time.monotonic() - begun
        return losses

    def _look(self, losses: Sequence[Losses], epoch: int, good: Sequence[State], *, wait: bool) -> None:
        """Take up the losses that have arrived. Raises NonFiniteLossError, with every member at its last good weights."""
        for trainer, kept, state in zip(self.trainers, losses, good, strict=True):
            kept.look(wait=wait)
            try:
                trainer.refuse_bad(kept, epoch, state)
            except NonFiniteLossError as error:
                for other, last in zip(self.trainers, good, strict=True):
                    other.system.load_state_dict(last.weights)
                raise NonFiniteLossError(f"seed {trainer.config.seed}: {error}") from None

    def _each[Found](self, what: Callable[[int], Found]) -> list[Found]:
        """Of every member, in its own stream."""
        found = []
        for i, stream in enumerate(self.streams):
            with stream.lent():
                found.append(what(i))
        return found
