"""Runs of a guide and a model as a pair of traces with K particles, and repeated runs of one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Unpack

from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyroae.errors import ProgramError
from pyroae.programs.execution import RunOptions, run_pair, trace_program
from pyroae.programs.model_sums import OF_PRIOR, SUMMED
from pyroae.programs.paired_traces import Traces, log_density, terms_of
from pyroae.programs.particle_check import plate_nesting
from pyroae.programs.site_checks import check_match
from pyroae.programs.sites import Program, samples

__all__ = [
    "Traces",
    "at_values",
    "guide_at",
    "log_density",
    "log_post_of",
    "plate_nesting",
    "prior_of",
    "run",
    "terms_of",
]


def run(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    num_particles: int = 1,
    nesting: int | None = None,
    **options: Unpack[RunOptions],
) -> Traces:
    """Run guide and model with K particles: as the leftmost plate of one run, or in K runs.

    Args:
        model: A Pyro program.
        guide: A program over the same latent sites.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.
        num_particles: The number K of particles.
        nesting: The number of plate dimensions, plus LOOP for K runs; by default `plate_nesting`
            determines it.
        **options: `handler`, `drawn`, `through`, `shared` and `joint`, as of RunOptions.

    Returns:
        The traces, with K particles.

    Raises:
        ProgramError: Names the site, where model and guide do not match; for joint data of which
            a subsample only is given; under `pyro.enable_validation()`, which is Pyro's default,
            also for batch dimensions that no plate declares.

    >>> import torch
    >>> from pyroae import zoo
    >>> system = zoo.ppca(4, latent=2)
    >>> traces = run(system.model, system.guide, (torch.zeros(3, 4),), {}, num_particles=5)
    >>> [(name, tuple(site["value"].shape)) for name, site in traces.draws()]
    [('z', (5, 3, 2))]
    """
    if num_particles == 1:
        nesting = 0
    elif nesting is None:
        nesting = plate_nesting(model, guide, args, kwargs)
    return run_pair(model, guide, args, kwargs, num_particles, nesting, **options)


def at_values(
    traces: Traces,
    model: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    values: Mapping[str, Tensor],
) -> Traces:
    """Run the model again with other values of the latent sites. The guide does not run.

    Args:
        traces: A run of model and guide.
        model: The same model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        values: Values by site, each of the shape of the site's value in `traces`.

    Returns:
        The traces at these values; the distributions of the guide are those of `traces`.
    """
    seen = _with_values(traces.drawn, values)
    again = trace_program(model, args, kwargs, traces.num_particles, traces.nesting, seen)
    return replace(
        traces,
        model=prune_subsample_sites(again),
        guide=prune_subsample_sites(seen.copy()),
        drawn=seen,
    )


def guide_at(
    traces: Traces,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    values: Mapping[str, Tensor],
) -> Traces:
    """Run the guide again at given values of its draws. The model does not run.

    Args:
        traces: A run of model and guide.
        guide: The same guide; its Deltas are computed from the values.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        values: Values by site, each of the shape of the site's value in `traces`.

    Returns:
        The traces with the new run of the guide.
    """
    seen = _with_values(traces.drawn, values)
    for name, _ in traces.deltas():
        seen.remove_node(name)
    again = trace_program(
        guide, args, kwargs, traces.num_particles, traces.nesting, seen, what="guide"
    )
    return replace(traces, guide=prune_subsample_sites(again), drawn=again)


def log_post_of(
    traces: Traces, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """Compute log q(z|x) under another guide with the same sites, at the draws of a run.

    Args:
        traces: A run of model and guide.
        guide: The other guide.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        The sum of the log-densities of the guide's sites in the data plate, `[K, N]`, in nats.

    Raises:
        ProgramError: For an auxiliary draw of that guide that the run lacks.
    """
    again = trace_program(
        guide, args, kwargs, traces.num_particles, traces.nesting, traces.drawn, what="guide"
    )
    other = replace(traces, guide=prune_subsample_sites(again))
    check_match(traces.model, other.guide)
    for name, _ in other.draws():
        if name not in traces.drawn.nodes:
            raise ProgramError(
                "the density of another guide is not known here: its auxiliary site "
                f"'{name}' was not drawn"
            )
    terms = [
        other.reduce(site, log_density(site["name"], site))
        for site in samples(other.guide)
        if other.is_local(site)
    ]
    return sum(terms[1:], terms[0])


def _with_values(trace: poutine.Trace, values: Mapping[str, Tensor]) -> poutine.Trace:
    other = trace.copy()
    for name, value in values.items():
        other.nodes[name] = {**other.nodes[name], "value": value}
    return other


def prior_of(model: Program) -> Program:
    """Make the prior p(z) of a model a guide, by hiding its observed sites.

    Sites that are marked for enumeration are summed out of it: p(z) = Σ_y p(y, z).

    Args:
        model: A Pyro program.

    Returns:
        A program over the latent sites of the model.

    >>> import torch
    >>> from pyroae import log_weights, zoo
    >>> system = zoo.ppca(4, latent=2)
    >>> weights = log_weights(system.model, prior_of(system.model), torch.zeros(3, 4))
    >>> torch.equal(weights.log_prior, weights.log_post)
    True
    """
    marked = poutine.infer_config(
        model, lambda site: {OF_PRIOR: True, SUMMED: bool(site["infer"].get("enumerate"))}
    )
    return poutine.block(
        marked, hide_fn=lambda site: site["type"] == "sample" and site["is_observed"]
    )
