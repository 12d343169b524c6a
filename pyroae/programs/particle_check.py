"""Whether the particles of a program can be one more plate on the left, found by trial runs.

A run with a few particles is compared with as many single runs: where the former fails, or the
log-densities of a site differ, the program has to run particle by particle.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

from pyroae.errors import ProgramError, own_error
from pyroae.programs.execution import run_pair
from pyroae.programs.paired_traces import Traces, log_density
from pyroae.programs.particles import LOOP, particle_draws
from pyroae.programs.sites import Program, Site, plates_of, samples, undeclared
from pyroae.programs.trial_runs import (
    DistinctDraws,
    FixedSeed,
    LastSite,
    as_stacked_draws,
    is_close,
    num_trial_particles,
    trial,
    trial_run,
)
from pyroae.runtime.memory import is_out_of_memory


def plate_nesting(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    compared: bool = True,
    first: Traces | None = None,
) -> int:
    """Count the batch dimensions of a program, those of plates and any that no plate declares.

    The trial runs are in evaluation mode and in full precision; generators and buffers are
    afterwards unchanged. A few particles are drawn in one run, and their log-densities computed
    in one run and in single runs. Where the former fails or the log-densities differ, for any site
    and datum, the program has to run particle by particle, and a warning names the site.

    Args:
        model: A Pyro program.
        guide: A program over the same latent sites.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.
        compared: Whether to compare one run with single runs.
        first: The result of `trial_run` for the same arguments; None runs it.

    Returns:
        The number of dimensions, plus LOOP if the program has to run particle by particle.

    Raises:
        ProgramError: As of `run`.
    """
    first = first or trial_run(model, guide, args, kwargs)
    sites = samples(first.model, first.guide)
    dims = (dim for site in sites for dim in [*(f.dim for f in plates_of(site)), *undeclared(site)])
    nesting = -min(dims, default=0)
    if not compared:
        return nesting
    with trial(model, guide, args):
        seeded = partial(run_pair, FixedSeed()(model), FixedSeed()(guide), args, kwargs)
        agrees = _agrees(seeded, nesting, first)
        reason = None if agrees else _why_loop(seeded, nesting, first)
    if reason is None:
        return nesting
    warnings.warn(
        f"the particles are run sequentially, which is slow: {reason}; to be fast, let the program "
        "take particles as one more dimension on the left: index from the right, as in z[..., 0], "
        "and keep the leading dimensions in reductions, reshapes and concatenations",
        stacklevel=2,
    )
    return LOOP + nesting


def _agrees(seeded: Callable[..., Traces], nesting: int, first: Traces) -> bool:
    """Whether a run with particles, at draws of a fixed seed, equals single runs.

    False where a run fails: `_why_loop` then decides. Pyro's validation is left to it as well: a
    parameter out of its range gives NaN, or a log-density other than that of a valid one.
    """
    count, handler = num_trial_particles(first.drawn), DistinctDraws(first.drawn)
    try:
        with pyro.validation_enabled(False):
            together = seeded(count, nesting, handler=handler)
            draws_of_each = as_stacked_draws(together.drawn, first.drawn)
            single = [seeded(drawn=particle_draws(draws_of_each, k)) for k in range(count)]
            return _difference(together, single, equal_nan=False) is None
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return False


def _why_loop(seeded: Callable[..., Traces], nesting: int, first: Traces) -> str | None:
    """The reason why particles cannot be one more dimension of a program; None if they can.

    All runs that are compared are at given draws, and begin with the same seed.
    """
    last = LastSite()
    count, handler = num_trial_particles(first.drawn), DistinctDraws(first.drawn)
    try:
        with last:
            drawn = seeded(count, nesting, handler=handler).drawn
            together = seeded(count, nesting, drawn=drawn)
            draws_of_each = as_stacked_draws(drawn, first.drawn)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        words = " ".join(str(own_error(error)).split())[:200]
        return (
            "with one more dimension on the left it fails at or after the site "
            f"'{last.name}' ({words})"
        )
    separate = seeded(count, LOOP + nesting, drawn=draws_of_each)
    return _difference(together, [separate])


def _difference(together: Traces, runs: list[Traces], *, equal_nan: bool = True) -> str | None:
    """The first site whose log-density in one run differs from that in single runs, in words."""
    for what, trace, others in (
        ("guide", together.guide, [run.guide for run in runs]),
        ("model", together.model, [run.model for run in runs]),
    ):
        for name in {site["name"]: None for site in samples(*others)}:
            if any(name not in one for one in (trace, *others)) or not _is_same(
                name,
                (together, trace.nodes[name]),
                [(run, other.nodes[name]) for run, other in zip(runs, others, strict=True)],
                equal_nan,
            ):
                return (
                    f"with one more dimension on the left the site '{name}' of the {what} has "
                    "another log-density"
                )
    return None


def _is_same(
    name: str, together: tuple[Traces, Site], runs: list[tuple[Traces, Site]], equal_nan: bool
) -> bool:
    """Compare log-densities of a site; one without a log-density is refused elsewhere."""

    def term(run: Traces, site: Site) -> Tensor:
        return run.reduce(site, log_density(name, site))

    try:
        expected = [term(*run) for run in runs]
        if not equal_nan and any(one.isnan().any() for one in expected):
            return False
    except ProgramError:
        return True
    try:
        return is_close(torch.cat(expected), term(*together))
    except (ProgramError, RuntimeError):
        return False
