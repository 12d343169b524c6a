"""Sites outside the data plate, and whether a bound of each datum exists given their draws.

    log p(x) ≥ E_q(w) [ log p(w) − log q(w) + Σ_n F(log w_1n, …, log w_Kn) ],
    w_kn = p(x_n, z_kn | w) / q(z_kn | w, x_n)

All K particles share one draw of w, so no density of a site outside the plate may depend on
draws inside it.
"""

from typing import Any, NamedTuple

from pyroae.errors import ProgramError
from pyroae.programs.execution import run_pair
from pyroae.programs.paired_traces import Traces, log_density
from pyroae.programs.particle_check import plate_nesting
from pyroae.programs.particles import LOOP
from pyroae.programs.sites import Program, Site, samples
from pyroae.programs.trial_runs import is_close, trial, trial_run


class Globals(NamedTuple):
    """The guide's latent sites outside the data plate.

    Attributes:
        names: Names of these sites.
        hold_all_draws: Whether the guide draws nothing inside the plate.
    """

    names: frozenset[str]
    hold_all_draws: bool


def globals_of(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    first: Traces | None = None,
) -> Globals:
    """Find the latent sites outside the data plate, by trial runs.

    Random generators and buffers are afterwards unchanged.

    Args:
        model: A Pyro program.
        guide: A program over the same latent sites.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.
        first: The result of `trial_run` for the same arguments; None runs it.

    Returns:
        The global sites; none for a program without a data plate.

    Raises:
        ProgramError: Names a site outside the plate whose log-density differs between two
            particles that share the draws of the global sites. It depends on draws inside the
            plate, so the data have no bound given the global draws.
    """
    first = first or trial_run(model, guide, args, kwargs)
    if all(map(first.is_local, samples(first.model, first.guide))):
        return Globals(frozenset(), hold_all_draws=False)
    names = frozenset(
        name for name, site in first.sites(first.guide, observed=False) if not first.is_local(site)
    )
    draws = [site for _, site in first.draws()]
    nesting = plate_nesting(model, guide, args, kwargs, compared=False, first=first)
    with trial(model, guide, args):
        traces = run_pair(model, guide, args, kwargs, 2, LOOP + nesting, shared=names)
        for which, trace in (("guide", traces.guide), ("model", traces.model)):
            for site in samples(trace):
                if not traces.is_local(site) and _differs(traces, site):
                    raise ProgramError(
                        f"the site '{site['name']}' of the {which} lies outside the data plate and "
                        "depends on draws inside it, so given its value the data are not "
                        "independent: no datum has a bound or a log p(x) of its own"
                    )
    return Globals(names, bool(draws) and not any(map(first.is_local, draws)))


def _differs(traces: Traces, site: Site) -> bool:
    one, other = traces.reduce(site, log_density(site["name"], site))
    return not is_close(one, other)
