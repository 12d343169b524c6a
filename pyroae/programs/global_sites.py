"""Sites outside the data plate, and whether a bound of each datum exists given their draws.

    log p(x) ≥ E_q(w) [ log p(w) − log q(w) + Σ_n F(log w_1n, …, log w_Kn) ],   w_kn = p(x_n, z_kn | w) / q(z_kn | w, x_n)

All K particles share one draw of w, so no density of a site outside the plate may depend on draws inside it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pyroae.errors import ProgramError
from pyroae.programs.context import evaluating, fork_random
from pyroae.programs.particles import LOOP, agree, undisturbed
from pyroae.programs.sites import Program, Site, samples
from pyroae.programs.traces import Traces, log_density, plate_nesting, run


class Globals(NamedTuple):
    """names: of the guide's latent sites outside the data plate. hold_all_draws: whether it draws nothing inside the plate."""

    names: frozenset[str]
    hold_all_draws: bool


def globals_of(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Globals:
    """The latent sites outside the data plate, from trial runs; none for a program without a plate.

    Raises ProgramError, naming the site, where the log-density of a site outside the plate differs between two particles that
    share the draws of these: it depends on draws inside, and the data have no bound given them.
    """
    with _trial(model, guide, args):
        traces = run(model, guide, args, kwargs)
        if all(traces.is_local(site) for site in samples(traces.model, traces.guide)):
            return Globals(frozenset(), hold_all_draws=False)
        names = frozenset(
            name
            for name, site in traces.sites(traces.guide, observed=False)
            if not traces.is_local(site)
        )
        drawn = [site for _, site in traces.draws()]
        found = Globals(names, bool(drawn) and not any(map(traces.is_local, drawn)))
    nesting = plate_nesting(model, guide, args, kwargs, compared=False)
    with _trial(model, guide, args):
        traces = run(model, guide, args, kwargs, 2, LOOP + nesting, shared=names)
        for which, trace in (("guide", traces.guide), ("model", traces.model)):
            for site in samples(trace):
                if not traces.is_local(site) and _differs(traces, site):
                    raise ProgramError(
                        f"the site '{site['name']}' of the {which} lies outside the data plate and depends on draws inside it, "
                        "so given its value the data are not independent: they have no bounds, and no log p(x), one by one"
                    )
    return found


def _differs(traces: Traces, site: Site) -> bool:
    one, other = traces.reduce(site, log_density(site["name"], site))
    return not agree(one, other)


@contextmanager
def _trial(model: Program, guide: Program, args: tuple[Any, ...]) -> Iterator[None]:
    """A context for trial runs, after which generators and buffers are as they were."""
    device = next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
    with fork_random(device), evaluating(model, guide), poutine.block(), undisturbed():
        yield
