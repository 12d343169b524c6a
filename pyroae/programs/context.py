"""Contexts in which a program runs: evaluation mode, without sites of parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.poutine.messenger import Messenger
from torch import nn

from pyroae.programs.model_sums import SumMissing
from pyroae.programs.sites import Program
from pyroae.runtime.memory import keep_memory

_ANNOUNCES = ContextVar("announces", default=True)


@contextmanager
def without_parameter_sites() -> Iterator[None]:
    """Keep systems from reporting their parameters to Pyro's handlers: a third of a run's time.

    Yields:
        None, in the context.
    """
    token = _ANNOUNCES.set(False)
    try:
        yield
    finally:
        _ANNOUNCES.reset(token)


def announces_parameters() -> bool:
    """Tell whether systems report their parameters.

    Returns:
        True outside of `without_parameter_sites`.
    """
    return _ANNOUNCES.get()


@contextmanager
def evaluating(*programs: Program) -> Iterator[None]:
    """Disable gradients and set the programs' modules to evaluation mode.

    Discrete sites of a model that its guide lacks are summed out, marked for enumeration or not.

    Args:
        *programs: Models or guides; the modules are those that `owner_of` finds.

    Yields:
        None, in the context; the modes are restored on exit.
    """
    keep_memory()
    owners = [owner for owner in map(owner_of, programs) if owner is not None]
    with torch.no_grad(), evaluation_mode(*owners), SumMissing():
        yield


@contextmanager
def evaluation_mode(*owners: Any) -> Iterator[None]:
    """Set modules to evaluation mode; gradients stay enabled.

    Args:
        *owners: Modules, with all modules inside them.

    Yields:
        None, in the context; the modes are restored on exit.
    """
    different = {id(owner): owner for owner in owners}.values()
    training = [module for owner in different for module in owner.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def forget_plates(owner: nn.Module | None) -> None:
    """Clear the plates that a failed run leaves in an `EasyGuide`, which its next run would reuse.

    Args:
        owner: The module of the program; None does nothing.
    """
    for module in owner.modules() if owner is not None else ():
        if isinstance(module, EasyGuide):
            module.plates.clear()


def owner_of(program: Program) -> nn.Module | None:
    """Find the module that a program is, or is a method of.

    `functools.partial` and Pyro's handlers around the program are unwrapped.

    Args:
        program: A model or guide.

    Returns:
        The module; None for a program of no module.

    >>> from pyro import poutine
    >>> from pyroae import zoo
    >>> system = zoo.ppca(2, latent=1)
    >>> owner_of(poutine.scale(system.model, scale=0.5)) is system
    True
    """
    while isinstance(program, partial):
        # A handler turns a program into partial(wrapper, handler, program).
        handled = len(program.args) == 2 and isinstance(program.args[0], Messenger)
        program = program.args[1] if handled else program.func
    owner = getattr(program, "__self__", program)
    return owner if isinstance(owner, nn.Module) else None
