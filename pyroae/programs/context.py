"""Contexts in which a program runs: restored random generators, evaluation mode."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.poutine.messenger import Messenger
from torch import nn

from pyroae.programs.sites import Program


@contextmanager
def fork_random(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """A context after which torch's generators are as they were; inside it they start from `seed`, where one is given."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if seed is not None:
            start_random(device, seed)
        yield


@contextmanager
def evaluating(*programs: Program) -> Iterator[None]:
    """A context for evaluation: no gradients, and the modules that the programs belong to in `eval()` mode."""
    owners = [owner for owner in map(owner_of, programs) if owner is not None]
    modules = [m for owner in owners for m in owner.modules() if m.training]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for module in modules:
            stack.callback(setattr, module, "training", True)
            module.training = False
        yield


def forget_plates(owner: nn.Module | None) -> None:
    """Clear the plates of a run that has failed, which an `EasyGuide` would take for those of its next run."""
    for module in owner.modules() if owner is not None else ():
        if isinstance(module, EasyGuide):
            module.plates.clear()


def owner_of(program: Program) -> nn.Module | None:
    """The module that a program is, or is a method of, seen through `functools.partial` and Pyro's handlers.

    >>> from pyroae import zoo
    >>> system = zoo.ppca(2, latent=1)
    >>> owner_of(poutine.scale(system.model, scale=0.5)) is system
    True
    """
    while isinstance(
        program, partial
    ):  # a handler makes partial(wrapper, handler, program) of a program
        handled = len(program.args) == 2 and isinstance(program.args[0], Messenger)
        program = program.args[1] if handled else program.func
    owner = getattr(program, "__self__", program)
    return owner if isinstance(owner, nn.Module) else None


def start_random(device: torch.device, seed: int) -> None:
    """Start the generators of the CPU and of a device from a seed.

    `torch.manual_seed` does the same, and for devices that are not in use it keeps the seed and the stack of the call: half the
    time of a small step, and memory that grows with every call.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
