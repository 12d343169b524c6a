"""Take the optimizer steps of a training, compiled or by autograd."""

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import pyro
import torch
from torch import Tensor

from pyroae.compilation.optimizer_updates import closed_form_steps
from pyroae.compilation.svi import Compiled
from pyroae.config import TrainConfig
from pyroae.distributed.fabric import gather_tensors, load_optimizer, load_weights, share_of
from pyroae.objectives.apply import next_step, variant_of
from pyroae.runtime.randomness import all_random_states, set_all_random_states
from pyroae.training.forward import Step
from pyroae.training.minibatches import Batch
from pyroae.training.optimizers import optimizer_of
from pyroae.training.plan import Plan
from pyroae.training.state import Progressed, State

if TYPE_CHECKING:
    from lightning_fabric import Fabric

STEPS_A_LAUNCH = 16
"""Steps in one launch on a GPU: they take longer than the host needs to prepare the next ones."""


NUMBERS_A_CALL = 2**28
"""Products of weights and data in one call on a CPU, about a hundredth of a second."""


TakeSteps = Callable[[int, list[tuple[Tensor, ...]]], list[Tensor]]
"""From the number of the first step and batches, each argument of shape [B, ...], to the losses."""


class Stepper:
    """The optimizer steps of one training.

    Steps on batches of a size that is worth compiling run as one graph, from forward pass to
    update. All others are steps of autograd and of Lightning Fabric; where gradients are scaled,
    inspected or shared by processes, the forward pass alone is a graph.

    Args:
        step: the forward pass, with the system and the objective.
        config: the configuration.
        fabric: the device, the precision and the processes.
        plan: the learning rate and the KL weight of each step.

    Attributes:
        skipped: steps that were left out because a loss or a gradient was not finite.
        compile_seconds: the time that compiling took.
        show: called with a step and a message while that step is compiled.
    """

    def __init__(self, step: Step, config: TrainConfig, fabric: "Fabric", plan: Plan) -> None:
        self.forward, self.config, self.fabric, self.plan = step, config, fabric, plan
        step.share = self.share = share_of(fabric)
        # before the optimizer: FSDP replaces the parameters
        self.module = fabric.setup_module(step)
        self.optimizer = cast(Any, fabric.setup_optimizers(optimizer_of(config, step.system)))
        self.graphs: Compiled | None = None
        self.skipped, self.compile_seconds = 0, 0.0
        self._closed_form: Callable[[], None] = lambda: None
        self.show: Callable[[int, str], None] = lambda step, text: None
        self._update = self._update_if_finite if config.nonfinite == "skip" else self._always_update

    def compile(self) -> None:
        """Choose graphs for the steps on full batches, if that is worth it."""
        if self.plan.is_worth_compiling(self.config.batch_size):
            self.graphs = self.compiled_step()
            if self.graphs is None and self.config.strategy != "fsdp":
                self.forward.compile_for(self.config.batch_size, self.fabric.autocast)

    def compiled_step(self) -> Compiled | None:
        """Return the full step as a graph; None if its gradients are needed in between."""
        config, optimizer = self.config, self.optimizer.optimizer
        if self.share.world > 1 or config.precision == "16-mixed" or config.nonfinite == "skip":
            return None
        return Compiled(
            self.forward.system,
            self.forward.objective,
            lambda _: optimizer,
            grad_clip=config.grad_clip,
            precision=self.fabric.autocast,
        )

    def prepare(self, step: int, args: tuple[Tensor, ...], size: int) -> TakeSteps | None:
        """Compile the steps on batches of one size, without taking one.

        Args:
            step: the next step, counted from 0.
            args: a batch, each argument of shape [B, ...].
            size: its size B.

        Returns:
            A function that takes at most `most` steps. None for the first step and for one of a
            rare size, which are not compiled.

        Raises:
            Exception: any error of the programs or of the compiler.
        """
        graphs = self._graphs_for(size)
        if graphs is None or not graphs.has_stepped:
            return None
        self.show(step, "compiling the step")
        begun, kl_weight = time.monotonic(), self.begin(step)
        take = graphs.prepare(*args, kl_weight=kl_weight, divisor=self.forward.num_data(args))
        self.compile_seconds += time.monotonic() - begun
        return lambda first, batches: take(batches, lambda i: self.begin(first + i))

    @property
    def most(self) -> int:
        """The largest number of steps that `take` should be given at once."""
        if self.graphs is None:
            return 1
        if self.fabric.device.type == "cuda":
            return STEPS_A_LAUNCH
        weights = sum(p.numel() for p in self.forward.system.parameters())
        particles = getattr(self.forward.objective, "num_particles", 1)
        step = weights * self.config.batch_size * max(1, particles)
        return max(1, min(STEPS_A_LAUNCH, NUMBERS_A_CALL // max(1, step)))

    def begin(self, step: int, seconds: float = 0.0) -> float | None:
        """Set the learning rate of a step.

        Args:
            step: counted from 0.
            seconds: the time since the start of the training.

        Returns:
            The KL weight of the step; None without a warm-up.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate(step, seconds)
        return self.plan.kl_weight(step)

    def take(self, step: int, seconds: float, group: list[Batch]) -> list[Tensor]:
        """Take steps on batches of one size.

        Args:
            step: the first step, counted from 0.
            seconds: the time since the start of the training.
            group: the batches.

        Returns:
            The negative bound before each step, a scalar in nats per datum; with several
            processes, this process's part of the mean.
        """
        args, size = group[0]
        graphs = self._graphs_for(size)
        is_first = graphs is not None and graphs.optimizer is None
        if (
            len(group) == 1
            or graphs is None
            or is_first
            or self._is_new(graphs, step, seconds, args)
        ):
            return [
                self.take_one(step + i, seconds, args, size) for i, (args, size) in enumerate(group)
            ]
        losses = graphs.steps(
            *zip(*(args for args, _ in group), strict=True),
            before=lambda i: self.begin(step + i, seconds),
            divisor=self.forward.num_data(args),
        )
        return list(losses.unbind())

    def take_one(self, step: int, seconds: float, args: tuple[Tensor, ...], size: int) -> Tensor:
        """Take one step.

        Args:
            step: counted from 0.
            seconds: the time since the start of the training.
            args: this process's share of a batch, each argument of shape [B / world, ...].
            size: the size B of the full batch.

        Returns:
            As an item of `take`.
        """
        kl_weight, self.forward.size = self.begin(step, seconds), size
        self._next_step()
        graphs = self._graphs_for(size)
        if graphs is not None:
            return self._compiled(graphs, step, args, kl_weight)
        with pyro.validation_enabled(step == 0):
            factor = self.share.weight(size) / self.forward.num_data(args)
            return self._eager(args, kl_weight, factor)

    def _next_step(self) -> None:
        """Draw the variant of the objective: in every process that of the first one."""
        objective = self.forward.objective
        if self.share.world > 1 and variant_of(objective) != ():
            torch.set_rng_state(self.fabric.broadcast(torch.get_rng_state()))
        next_step(objective)

    def _graphs_for(self, size: int) -> Compiled | None:
        is_compiled = self.graphs is not None and self.plan.is_worth_compiling(size)
        return self.graphs if is_compiled else None

    def _is_new(
        self, graphs: Compiled, step: int, seconds: float, args: tuple[Tensor, ...]
    ) -> bool:
        kl_weight = self.begin(step, seconds)
        return graphs.is_new(*args, kl_weight=kl_weight, divisor=self.forward.num_data(args))

    def _compiled(
        self, graphs: Compiled, step: int, args: tuple[Tensor, ...], kl_weight: float | None
    ) -> Tensor:
        divisor = self.forward.num_data(args)
        if not graphs.is_new(*args, kl_weight=kl_weight, divisor=divisor):
            return graphs.step_as_drawn(*args, kl_weight=kl_weight, divisor=divisor)
        self.show(step, "compiling the step")
        begun = time.monotonic()
        loss = graphs.step_as_drawn(*args, kl_weight=kl_weight, divisor=divisor)
        self.compile_seconds += time.monotonic() - begun
        return loss

    def _eager(self, args: tuple[Tensor, ...], kl_weight: float | None, factor: float) -> Tensor:
        losses: list[Tensor] = []

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            value, surrogate = self.module(*args, kl_weight=kl_weight)
            losses.append(-value.detach() * factor)
            loss = -surrogate * factor
            self.fabric.backward(loss)
            self._closed_form = closed_form_steps(self.optimizer.optimizer)
            if self.config.grad_clip is not None:
                self.fabric.clip_gradients(
                    self.module,
                    self.optimizer,
                    max_norm=self.config.grad_clip,
                    error_if_nonfinite=False,
                )
            return cast(Tensor, loss.detach())

        is_updated = self._update(closure)
        return losses[0] if is_updated else torch.full_like(losses[0], math.nan)

    def _always_update(self, closure: Callable[[], Tensor]) -> bool:
        def complete() -> Tensor:
            loss = closure()
            self._closed_form()
            return loss

        self.optimizer.step(complete)
        return True

    def _update_if_finite(self, closure: Callable[[], Tensor]) -> bool:
        is_finite = self._is_finite(closure())
        if is_finite:
            self._closed_form()
            self.optimizer.step()
        self.skipped += not is_finite
        return is_finite

    def _is_finite(self, loss: Tensor) -> bool:
        """Whether the loss and every gradient are finite, in all processes."""
        grads = [p.grad for p in self.forward.system.parameters() if p.grad is not None]
        sums = torch.stack([loss, *(g.norm().to(loss) for g in gather_tensors(grads))])
        if self.share.world > 1:
            sums = cast(Tensor, self.fabric.all_reduce(sums, reduce_op="sum"))
        return bool(torch.isfinite(sums).all())

    def grad_norm(self) -> float:
        """Return the norm of the gradient of the last step.

        Returns:
            The norm, in nats per datum, of a clipped gradient after clipping; nan where the update
            is part of a compiled step, or parameters are sharded.
        """
        grads = [p.grad for p in self.forward.system.parameters() if p.grad is not None]
        if not grads or self.config.strategy == "fsdp":
            return math.nan
        return torch.stack([g.norm() for g in grads]).norm().item()

    def snapshot(self, progressed: Progressed) -> State:
        """Return the present state, in tensors of its own. Collective: call it on every process.

        Args:
            progressed: the progress within the epoch.

        Returns:
            Weights, optimizer and random generators; without a history.
        """
        return State(
            gather_tensors(dict(self.forward.system.state_dict())),
            gather_tensors(self.optimizer.optimizer.state_dict()),
            all_random_states(self.fabric.device),
            progressed=progressed,
        )

    def restore(self, state: State) -> None:
        """Restore what `snapshot` returned.

        Args:
            state: a state of this training.
        """
        load_weights(self.forward.system, state.weights)
        load_optimizer(self.optimizer.optimizer, state.optimizer)
        self.skipped = state.progressed.skipped
        if self.graphs is not None:
            self.graphs.has_stepped = state.progressed.step > 0
        set_all_random_states(state.random, self.fabric.device)
