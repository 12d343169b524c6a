"""Sites outside the data plate, and whether a bound of each datum exists given their draws.

    log p(x) ≥ E_q(w) [ log p(w) − log q(w) + Σ_n F(log w_1n, …, log w_Kn) ],   w_kn = p(x_n, z_kn | w) / q(z_kn | w, x_n)

All K particles share one draw of w, so no density of a site outside the plate may depend on draws inside it.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyroae.errors import ProgramError
from pyroae.particles import LOOP, agree, undisturbed
from pyroae.sites import Site, samples
from pyroae.weights import Program, Traces, evaluating, fork_random, log_density, plate_nesting, run


def global_sites(model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> frozenset[str]:
    """Names of the guide's latent sites outside the data plate, from a trial run; none for a program without a plate."""
    with _trial(model, guide, args):
        traces = run(model, guide, args, kwargs)
    return frozenset(name for name, site in traces.sites(traces.guide, observed=False) if not traces.is_local(site))


def check_given(model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any], shared: frozenset[str]) -> None:
    """Refuse a program whose data have no bound given the draws of the sites `shared`, from a trial run of two particles.

    Raises ProgramError, naming the site, where the log-density of a site outside the data plate differs between particles
    that share these draws: it depends on draws inside.
    """
    nesting = plate_nesting(model, guide, args, kwargs, compared=False)
    with _trial(model, guide, args):
        traces = run(model, guide, args, kwargs)
        if all(traces.is_local(site) for site in samples(traces.model, traces.guide)):
            return
        traces = run(model, guide, args, kwargs, 2, LOOP + nesting, shared=shared)
        for which, trace in (("guide", traces.guide), ("model", traces.model)):
            for site in samples(trace):
                if not traces.is_local(site) and _differs(traces, site):
                    raise ProgramError(
                        f"the site '{site['name']}' of the {which} lies outside the data plate and depends on draws inside it, "
                        "so given its value the data are not independent: they have no bounds, and no log p(x), one by one"
                    )


def warn_of_equal_particles(model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any], use: str) -> None:
    """Warn where a guide draws nothing inside the data plate, so that all particles are the same given the draws outside.

    use: what to use for a tighter bound.
    """
    with _trial(model, guide, args):
        traces = run(model, guide, args, kwargs)
    drawn = dict(traces.draws())
    if drawn and not any(traces.is_local(site) for site in drawn.values()):
        warnings.warn(
            f"the guide draws {sorted(drawn)} outside the data plate and nothing inside it: given these draws all particles "
            f"are the same, and the bound of any number of them is the ELBO; for a tighter one use {use}",
            stacklevel=2,
        )


def _differs(traces: Traces, site: Site) -> bool:
    one, other = traces.reduce(site, log_density(site["name"], site))
    return not agree(one, other)


@contextmanager
def _trial(model: Program, guide: Program, args: tuple[Any, ...]) -> Iterator[None]:
    """A context for trial runs, after which generators and buffers are as they were."""
    device = next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
    with fork_random(device), evaluating(model, guide), poutine.block(), undisturbed():
        yield
