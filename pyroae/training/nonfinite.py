"""Find what made a loss NaN or infinite: the first site of the programs, and its data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pyro
import torch
from torch import Tensor, nn

from pyroae.distributed.fabric import load_weights
from pyroae.errors import NonFiniteLossError
from pyroae.programs.pair import System
from pyroae.programs.paired_traces import Traces, log_density
from pyroae.programs.sites import Site
from pyroae.programs.traces import run
from pyroae.training.minibatches import Minibatches
from pyroae.training.state import State
from pyroae.training.stepping import Stepper


@dataclass(frozen=True)
class Cause:
    """Where the first number is that is not finite.

    Attributes:
        text: a description.
        site: the name of the site; None if no single site is the cause.
        rows: the rows of the batch for which it is not finite.
    """

    text: str
    site: str | None = None
    rows: tuple[int, ...] = ()


class NonFiniteHandler:
    """Stop a training whose loss or weights are not finite, and say why.

    Args:
        stepper: takes the steps of the training.
        batches: the batches of the training.

    Attributes:
        show: called with a step and a message while steps are repeated.
    """

    def __init__(self, stepper: Stepper, batches: Minibatches) -> None:
        self.stepper, self.batches = stepper, batches
        self.show: Callable[[int, str], None] = lambda step, text: None

    def checked(self, state: State, epoch: int, good: State) -> State:
        """Return a state if its weights are finite.

        Args:
            state: the state to check.
            epoch: its epoch, counted from 1.
            good: the last state with finite weights.

        Returns:
            `state`.

        Raises:
            NonFiniteLossError: if a weight is not finite; the weights of `good` are restored.
        """
        self.check(None if state.is_finite else state.progressed.step, epoch, good)
        return state

    def check(self, bad: int | None, epoch: int, good: State, *, replay: bool = True) -> None:
        """Raise an error if a loss was not finite.

        Args:
            bad: the first step whose loss is not finite, counted from 0; None if there is none.
            epoch: the epoch of that step, counted from 1.
            good: the last state with finite weights.
            replay: whether to repeat the steps since `good` to find the cause; several processes
                do not.

        Raises:
            NonFiniteLossError: if there is such a step; the weights of `good` are restored.
        """
        if bad is None:
            return
        first = good.history[-1].step if good.history else 0
        rows = self.batches.rows(epoch, bad - first)
        is_replayed = replay and self.stepper.share.world == 1
        cause = self._replayed(bad, epoch, good) if is_replayed else None
        load_weights(self.batches.system, good.weights)
        where = f"the weights of {good.where()}" if good.progressed.step else "the initial weights"
        raise error_at(bad + 1, epoch, rows, cause, f"{where} were kept")

    def _replayed(self, bad: int, epoch: int, good: State) -> Cause:
        """Repeat the steps after a state; the cause of the first loss that is not finite."""
        system, done = self.batches.system, good.progressed
        self.stepper.restore(good)
        system.train()
        message = (
            f"the loss became NaN or infinite at step {bad + 1}: repeating steps to find out why"
        )
        for step, (args, size) in enumerate(self.batches.epoch(epoch, done.position), done.step):
            self.show(step, message)
            if step == bad:
                return find_cause(
                    system, args, getattr(self.stepper.forward.objective, "num_particles", 1)
                )
            self.stepper.take_one(step, done.seconds, args, size)
        return find_cause(system, (), 1)


def find_cause(system: nn.Module, args: tuple[Any, ...], num_particles: int) -> Cause:
    """Find the first weight, value or log-density that is not finite in a run of guide and model.

    Args:
        system: a module with a `model` and a `guide`.
        args: the arguments of the programs, each of shape [B, ...].
        num_particles: the number of particles, K.

    Returns:
        The cause, by the order of the parameters, then of the sites of guide and model.
    """
    for name, parameter in system.named_parameters():
        if not torch.isfinite(parameter).all():
            return Cause(
                f"the weights '{name}' were no longer finite, made so by the gradient of the step "
                "before"
            )
    programs = cast(System, system)
    with torch.no_grad(), pyro.validation_enabled(False):
        try:
            traces = run(programs.model, programs.guide, args, {}, num_particles)
        except (ValueError, RuntimeError) as error:
            return Cause(f"the programs fail there: {' '.join(str(error).split())[:200]}")
        return _first(traces) or Cause("no single site is, but their sum or its gradient")


def error_at(
    step: int, epoch: int, batch: tuple[int, ...], cause: Cause | None, kept: str
) -> NonFiniteLossError:
    """Return the error for a loss that is not finite.

    Args:
        step: counted from 1.
        epoch: counted from 1.
        batch: the rows of the training data in the batch.
        cause: None if it is not known.
        kept: a clause that says which weights were kept.

    Returns:
        The error, with the step, the batch and the site.
    """
    rows = tuple(batch[i] for i in cause.rows if i < len(batch)) if cause is not None else ()
    why = ""
    if cause is not None:
        why = f": {cause.text}" + (f", for {_named(rows)} of the training data" if rows else "")
    return NonFiniteLossError(
        f"the loss became NaN or infinite at step {step}, in epoch {epoch}, on a batch of "
        f"{_named(batch)}{why}; {kept}: try a lower learning rate, gradient clipping (grad_clip), "
        'KL warm-up (kl_warmup), or to leave such steps out (nonfinite="skip")',
        step,
        batch,
        None if cause is None else cause.site,
    )


def _named(rows: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, rows[:8]))
    return f"the rows {shown}{f' and {len(rows) - 8} more' if len(rows) > 8 else ''}"


def _first(traces: Traces) -> Cause | None:
    for program, trace in (("guide", traces.guide), ("model", traces.model)):
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or not isinstance(site["value"], Tensor):
                continue
            value = site["value"]
            if (
                value.is_floating_point()
                and (program == "guide" or site["is_observed"])
                and not torch.isfinite(value).all()
            ):
                bad = ~torch.isfinite(value)
                for _ in range(site["fn"].event_dim):
                    bad = bad.any(-1)
                return Cause(
                    f"the site '{name}' of the {program} is not finite",
                    name,
                    _rows(traces, site, bad),
                )
            bad = ~torch.isfinite(log_density(name, site))
            if bad.any():
                return Cause(
                    f"the site '{name}' of the {program} has no finite log-density",
                    name,
                    _rows(traces, site, bad),
                )
    return None


def _rows(traces: Traces, site: Site, bad: Tensor) -> tuple[int, ...]:
    """The data for which a site is not finite; none for a site outside the data plate."""
    if not traces.is_local(site):
        return ()
    whole = bad.expand(site["fn"].batch_shape).to(torch.float64)
    return tuple(traces.reduce(site, whole, 1.0).sum(0).nonzero().flatten().tolist())
