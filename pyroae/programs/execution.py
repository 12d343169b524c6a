"""Run one program, or guide and model as a pair, with a known number of plate dimensions.

An error of a program becomes a BrokenProgramError, which names the last site.
"""

from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import partial
from typing import Any, TypedDict

import pyro
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyroae.errors import BrokenProgramError, PyroaeError
from pyroae.programs.context import forget_plates, owner_of
from pyroae.programs.model_sums import is_summed, with_sums
from pyroae.programs.paired_traces import Traces
from pyroae.programs.particles import LOOP, SharedDraws, run_in_loop
from pyroae.programs.site_checks import (
    check_declared,
    check_event_shapes,
    check_match,
    check_plate,
    check_sums,
    check_whole,
    refuse_messengers,
    warn_of_plates,
)
from pyroae.programs.sites import (
    PARTICLES,
    Program,
    Site,
    common_scale,
    data_plate,
    holds,
    samples,
)
from pyroae.runtime.memory import is_out_of_memory


class RunOptions(TypedDict, total=False):
    """Options of a run of guide and model.

    Attributes:
        handler: Acts on the guide's run.
        drawn: The guide's trace of an earlier run, whose draws are repeated.
        through: Transform applied to the guide's draws before the model is replayed, from the
            guide's site to a value of the same shape; only to those that require a gradient.
        shared: Names of global sites that have one draw for all particles.
        joint: Whether all data are one datum.
    """

    handler: Messenger | None
    drawn: poutine.Trace | None
    through: Callable[[Site], Tensor] | None
    shared: Collection[str]
    joint: bool


def run_pair(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    num_particles: int = 1,
    nesting: int = 0,
    *,
    handler: Messenger | None = None,
    drawn: poutine.Trace | None = None,
    through: Callable[[Site], Tensor] | None = None,
    shared: Collection[str] = (),
    joint: bool = False,
) -> Traces:
    """Run guide and model: once, with the particles as the leftmost plate, or K times.

    Args:
        model: A Pyro program.
        guide: A program over the same latent sites.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.
        num_particles: The number K of particles.
        nesting: The number of plate dimensions, plus LOOP for K runs; not used for K = 1.
        handler: Acts on the guide's run.
        drawn: As of RunOptions.
        through: As of RunOptions.
        shared: As of RunOptions.
        joint: As of RunOptions.

    Returns:
        The traces, with K particles.

    Raises:
        ProgramError: As of `run`.
    """
    refuse_messengers(guide)
    in_one_run = num_particles > 1 and nesting < LOOP
    with (
        handler or nullcontext(),
        SharedDraws(shared) if shared and in_one_run else nullcontext(),
    ):
        guide_run = trace_program(
            guide, args, kwargs, num_particles, nesting, drawn, shared, what="guide"
        )
    seen = _transformed(guide_run, through)
    model_run = trace_program(model, args, kwargs, num_particles, nesting, seen)
    return paired(model_run, guide_run, num_particles, nesting, joint=joint)


def paired(
    model_run: poutine.Trace,
    guide_run: poutine.Trace,
    num_particles: int = 1,
    nesting: int = 0,
    *,
    joint: bool = False,
) -> Traces:
    """Pair two traces, as of `trace_program`, after a check that they match.

    Args:
        model_run: A trace of the model.
        guide_run: A trace of the guide.
        num_particles: The number K of particles.
        nesting: As of `run_pair`.
        joint: As of RunOptions.

    Returns:
        The traces, with K particles.

    Raises:
        ProgramError: As of `run`.
    """
    model, guide = prune_subsample_sites(model_run), prune_subsample_sites(guide_run)
    check_match(model, guide)
    sites = samples(model, guide)
    if joint:
        check_whole(sites)
    plate = None if joint else data_plate(sites)
    if plate is not None:
        check_plate(model, guide, plate)
        check_sums(model, plate)
    if is_validation_enabled():
        check_declared(model, guide)
        warn_of_plates(model_run, guide_run)
    local = [s for s in sites if plate is None or holds(s["cond_indep_stack"], plate)]
    scale = common_scale(local, plate)
    return Traces(model, guide, num_particles, plate, scale, guide_run, nesting)


def _transformed(guide: poutine.Trace, through: Callable[[Site], Tensor] | None) -> poutine.Trace:
    """Apply a transform to the draws of a guide that require a gradient."""
    if through is None:
        return guide
    seen = guide.copy()
    for name, site in guide.nodes.items():
        is_latent = site["type"] == "sample" and not site["is_observed"]
        if is_latent and isinstance(site["value"], Tensor) and site["value"].requires_grad:
            seen.nodes[name] = {**site, "value": through(site)}
    return seen


def trace_program(
    program: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    num_particles: int,
    nesting: int,
    seen: poutine.Trace | None,
    shared: Collection[str] = (),
    what: str = "model",
    given: bool | None = None,
) -> poutine.Trace:
    """Run a program once with all its particles, or K times as one stacked trace.

    Args:
        program: A model or guide.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        num_particles: The number K of particles.
        nesting: The number of plate dimensions, plus LOOP for K runs; not used for K = 1.
        seen: A trace whose draws the run repeats; None to draw all.
        shared: Names of sites that have one draw for all of K runs.
        what: "model" or "guide".
        given: Whether `seen` holds all draws of a guide; None if it is not None.

    Returns:
        The trace, with the subsample sites of plates.

    Raises:
        BrokenProgramError: For an error of the program's own; names the last site.
        ProgramError: For runs with different sites, and event shapes other than in `seen`.
        RuntimeError: If memory runs out: the error of torch.
    """
    if num_particles > 1 and nesting >= LOOP:
        given = seen is not None
        one_run = partial(trace_program, program, args, kwargs, 1, 0, what=what, given=given)
        return run_in_loop(one_run, num_particles, nesting - LOOP, seen, shared)
    if num_particles > 1:
        program = pyro.plate(PARTICLES, num_particles, dim=-1 - nesting)(program)
    retrace = partial(_trace, program, args, kwargs, what)
    trace = retrace(seen)
    lacks = seen if seen is not None and given is not False else None
    names = [n for n, site in trace.nodes.items() if is_summed(site, lacks, what == "model")]
    return with_sums(trace, names, retrace) if names else trace


def _trace(
    program: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    what: str,
    seen: poutine.Trace | None,
    handler: Messenger | None = None,
) -> poutine.Trace:
    """Run a program once; report an error of its own with the last site."""
    owner = owner_of(program)
    tracer = poutine.trace(program if seen is None else poutine.replay(program, trace=seen))
    try:
        with handler or nullcontext():
            return tracer.get_trace(*args, **kwargs)
    except Exception as raised:  # often because a site is of another shape in the guide
        forget_plates(owner)
        if is_out_of_memory(raised):
            raise
        error = _without_shapes(raised)
    if isinstance(error, PyroaeError):
        raise error
    partial_trace = prune_subsample_sites(tracer.trace)
    if seen is not None:
        check_event_shapes(partial_trace, seen)
    raise BrokenProgramError(
        f"the {what} fails {_place(partial_trace)}: {_words(error)}"
    ) from error


def _place(trace: poutine.Trace) -> str:
    """The last site of a run that failed, in words."""
    names = [name for name, site in trace.nodes.items() if site["type"] == "sample"]
    return f"after the site '{names[-1]}'" if names else "before its first site has a value"


def _without_shapes(error: Exception) -> Exception:
    """The error before Pyro's tracer added the shapes of all sites to its message."""
    cause = error.__cause__
    return cause if "Trace Shapes:" in str(error) and isinstance(cause, type(error)) else error


def _words(error: BaseException) -> str:
    """Type and message of an error in one line of at most 300 characters."""
    words = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
