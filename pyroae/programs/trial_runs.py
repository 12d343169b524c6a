"""Trial runs of a program: without side effects on its modules, with distinct discrete draws."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, Self

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import register_module_forward_pre_hook

from pyroae.programs.context import evaluating, without_parameter_sites
from pyroae.programs.execution import run_pair
from pyroae.programs.model_sums import SumMissing
from pyroae.programs.paired_traces import Traces
from pyroae.programs.particles import has_particles, is_draw
from pyroae.programs.sites import Program, base_distribution, is_delta, is_discrete
from pyroae.runtime.randomness import fork_random, start_random

REDRAWS = 16
"""Number of times that a discrete draw which two particles share is redrawn in a trial run."""


NUM_DISCRETE_PARTICLES = 4
"""Number of particles of a trial run with discrete draws."""


@contextmanager
def trial(
    model: Program, guide: Program, args: tuple[Any, ...], *, training: bool = False
) -> Iterator[None]:
    """Run model and guide in full precision, without effects on generators and modules.

    Pyro's handlers outside do not see the runs, systems do not report their parameters, and
    discrete sites that the guide lacks are summed.

    Args:
        model: A Pyro program.
        guide: A program over the same latent sites.
        args: Their positional arguments, which give the device.
        training: As of `trial_mode`.

    Yields:
        None, in the context.
    """
    device = next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
    has_autocast = torch.amp.is_autocast_available(device.type)
    full_precision = (
        torch.autocast(device.type, enabled=False)
        if has_autocast and torch.is_autocast_enabled(device.type)
        else nullcontext()
    )
    with (
        fork_random(device),
        poutine.block(),
        without_parameter_sites(),
        SumMissing() if training else evaluating(model, guide),
        trial_mode(training=training),
        full_precision,
    ):
        yield


def trial_run(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Traces:
    """Run model and guide once, with one particle, under `trial`.

    The generators have the state of the caller: parameters that a program draws in its first run
    are those of the caller's seed.

    Args:
        model: A Pyro program.
        guide: A program over the same latent sites.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.

    Returns:
        The traces, which several checks can share.

    Raises:
        ProgramError: As of `run`.
    """
    with trial(model, guide, args):
        return run_pair(model, guide, args, kwargs)


@contextmanager
def trial_mode(*, training: bool = False) -> Iterator[None]:
    """Disable gradients, and restore buffers and modes of the modules that are called.

    Batch normalization with its initial statistics is the identity in evaluation mode, for any
    channel dimension. It is given different statistics for each channel here, so that trial runs
    distinguish these dimensions.

    Args:
        training: Whether modules run in their current modes, dropout excepted; False runs them
            in evaluation mode.

    Yields:
        None, in the context.
    """
    modes: dict[nn.Module, bool] = {}
    buffers: dict[Tensor, Tensor] = {}

    def before(module: nn.Module, _: Any) -> None:
        if module not in modes:
            modes[module] = module.training
            buffers.update({b: b.clone() for b in module.buffers(recurse=False)})
            if module.training and (not training or isinstance(module, _DropoutNd)):
                module.training = False
            if (
                isinstance(module, _BatchNorm)
                and not module.training
                and module.running_mean is not None
            ):
                _separate_channels(module)

    hook = register_module_forward_pre_hook(before)
    try:
        with torch.no_grad():
            yield
    finally:
        hook.remove()
        for module, mode in modes.items():
            if module.training != mode:
                module.training = mode
        with torch.no_grad():
            # All buffers: batch normalization does not count its changes as versions.
            for buffer, value in buffers.items():
                buffer.copy_(value)


def _separate_channels(norm: _BatchNorm) -> None:
    """Give each channel different statistics."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    step = torch.linspace(0, 1, mean.numel(), dtype=mean.dtype, device=mean.device)
    mean.add_(step)
    variance.mul_(1 + step)


def is_close(one: Tensor, other: Tensor) -> bool:
    """Tell whether log-densities are equal up to rounding, NaN and infinities included.

    Args:
        one: Log-densities, in nats, of any shape.
        other: Log-densities to compare, in nats.

    Returns:
        True for the same shape and values within a tolerance, relative and absolute, of 1000
        machine precisions, at most 0.05; on the device "meta" shapes alone are compared.
    """
    if one.shape != other.shape or one.is_meta:
        return one.shape == other.shape
    tolerance = min(1000 * torch.finfo(one.dtype).eps, 0.05)
    return torch.allclose(one, other.to(one.dtype), tolerance, tolerance, equal_nan=True)


class LastSite(Messenger):
    """Record the last sample site of a run, for the text of a warning.

    Attributes:
        name: Name of the site; None before the first one.
    """

    name: str | None = None

    def _pyro_sample(self, msg: Any) -> None:
        self.name = msg["name"]


class FixedSeed(Messenger):
    """Seed torch's generators at the start of every run of a program.

    Args:
        seed: The seed.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def __enter__(self) -> Self:
        if _has_accelerator():  # every device has a generator
            torch.manual_seed(self.seed)
        else:
            start_random(torch.device("cpu"), self.seed)
        return super().__enter__()


@cache
def _has_accelerator() -> bool:
    """Without a GPU each look for one opens a library that is not there: 50 µs."""
    return torch.accelerator.is_available()


def num_trial_particles(trace: poutine.Trace) -> int:
    """Choose the number of particles of a trial run.

    Args:
        trace: One run of the guide.

    Returns:
        2; more for a guide with discrete draws, which may be equal by chance.
    """
    is_any_discrete = any(is_draw(s) and is_discrete(s["fn"]) for s in trace.nodes.values())
    return NUM_DISCRETE_PARTICLES if is_any_discrete else 2


class DistinctDraws(Messenger):
    """Give the particles of a guide distinct discrete draws, and the subsamples of a single run.

    Discrete draws of the other particles are values other than the first particle's, where there
    are any: draws that are equal by chance would not reveal that a program reads the draw of
    another particle.

    Args:
        single: A run of the same guide with one particle.
    """

    def __init__(self, single: poutine.Trace) -> None:
        super().__init__()
        self.single = single

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["name"] not in self.single or is_delta(msg):
            return
        if site_is_subsample(msg):
            msg["value"] = self.single.nodes[msg["name"]]["value"]
        elif has_particles(msg) and is_discrete(msg["fn"]):
            msg["value"] = _unlike_first(msg["fn"], msg["value"])


def _unlike_first(fn: Any, value: Tensor) -> Tensor:
    """Values of a discrete site: the next states after the first particle's, or redraws."""
    base = base_distribution(fn)
    if base.has_enumerate_support and len(base.event_shape) < 2:
        if base.event_shape:  # one-hot
            return torch.stack([value[0].roll(k, -1) for k in range(len(value))])
        states = base.enumerate_support(expand=False).flatten().to(value.dtype)
        at = torch.searchsorted(states, value[0].contiguous())
        return torch.stack([states[(at + k) % len(states)] for k in range(len(value))])
    for _ in range(REDRAWS):
        same = value == value[:1]
        for _ in range(len(base.event_shape)):
            same = same.all(-1, keepdim=True)
        again = torch.where(same, fn.sample().to(value.dtype), value)
        value = torch.cat([value[:1], again[1:]])
    return value


def as_stacked_draws(trace: poutine.Trace, single: poutine.Trace) -> poutine.Trace:
    """Convert a trace with the particles as a plate to one that single runs can repeat.

    Args:
        trace: A run of a guide with the particles as a plate.
        single: A run of the same guide with one particle.

    Returns:
        A copy of `trace` whose draws `particle_draws` can select.

    Raises:
        ValueError: If the draws of a particle have another shape than those of the single run.
    """
    other = trace.copy()
    for name, site in trace.nodes.items():
        if is_draw(site) and has_particles(site):
            alone = single.nodes[name]
            pad = len(site["fn"].batch_shape) - 1 - len(alone["fn"].batch_shape)
            if site["value"].flatten(0, pad).shape[1:] != alone["value"].shape:
                raise ValueError(f"site '{name}' has the shape {tuple(site['value'].shape)}")
            other.nodes[name] = {**site, "pad": pad}
    return other
