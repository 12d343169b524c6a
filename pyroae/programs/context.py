"""Contexts in which a program runs: restored random generators, evaluation mode."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.poutine.messenger import Messenger
from torch import nn

from pyroae.programs.sites import Program
from pyroae.runtime.randomness import fork_random as fork_random


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
