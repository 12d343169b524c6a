"""Checks of pairs of a bound and a gradient, and of the programs to which they are applied."""

from pyroae.errors import ConfigError, ProgramError
from pyroae.objectives.bounds import BoundFunction
from pyroae.objectives.gradients import Gradient, Pathwise, StickingTheLanding
from pyroae.objectives.scores import has_path, moves_support
from pyroae.programs.paired_traces import Traces, log_density, terms_of
from pyroae.programs.sites import base_distribution, plates_of, undeclared, undeclared_words


def check_pair(bound: BoundFunction, gradient: Gradient) -> None:
    """Refuse a pair of which one part couples or stratifies the draws and the other forbids it.

    Args:
        bound: F.
        gradient: The estimator of the φ-gradient.

    Raises:
        ConfigError: The pair is not defined.
    """
    one, other = type(bound).__name__, type(gradient).__name__
    if gradient.coupled and (bound.independent or bound.stratified):
        raise ConfigError(
            f"{other} couples the draws of a datum, and {one} "
            + ("stratifies them" if bound.stratified else "needs independent ones")
        )
    if bound.stratified and gradient.independent:
        raise ConfigError(
            f"{other} needs independent, identically distributed draws, and {one} stratifies them "
            "by the components of a mixture: use Pathwise"
        )
    taken = isinstance(gradient, Pathwise | StickingTheLanding) and gradient.unbiased(bound)
    if bound.stratified and not taken:
        raise ConfigError(f"{other} is not an estimator of the gradient of {one}: use Pathwise")


def check_support(traces: Traces, gradient: Gradient, label: str) -> None:
    """Refuse draws whose support depends on parameters, so that their score does not have mean 0.

    Args:
        traces: The traces of guide and model.
        gradient: The estimator of the φ-gradient.
        label: The name of the objective, for the message.

    Raises:
        ProgramError: The guide has such a draw; the message names its site.
    """
    for site_name, site in traces.draws():
        takes = gradient.takes_moving_support and has_path(site["fn"])
        if not takes and moves_support(site["fn"]):
            raise ProgramError(
                f"{label} assumes that the score of the guide has mean 0, which does not hold "
                f"where the support depends on parameters, as at the site '{site_name}' "
                f"({type(base_distribution(site['fn'])).__name__}): use trace-elbo or iwae, or "
                "a transform of a fixed support"
            )


def check_globals(traces: Traces, gradient: Gradient, label: str, request: str) -> None:
    """Refuse latent sites outside the data plate, where the gradient does not take them.

    Args:
        traces: The traces of guide and model.
        gradient: The estimator of the φ-gradient.
        label: The name of the objective, for the message.
        request: The objective to recommend.

    Raises:
        ProgramError: The guide has such a site; the message names it.
    """
    for site_name, site in traces.sites(traces.guide, observed=False):
        if not traces.is_local(site) and not (gradient.takes_globals and has_path(site["fn"])):
            raise ProgramError(
                f"{label} needs a bound per datum; the latent site '{site_name}' lies outside "
                "the data plate: use trace-elbo, or, if its draws carry a gradient, iwae, "
                "renyi, stl, dreg, vimco or score, which take the bound of each datum given "
                f"one draw of it; or {request}"
            )


def check_one_datum(traces: Traces, label: str, request: str) -> None:
    """Refuse programs without one data plate, or with batch dimensions outside all plates.

    Args:
        traces: The traces of guide and model.
        label: The name of the objective, for the message.
        request: The objective to recommend.

    Raises:
        ProgramError: No one plate holds all the sites; the message names them.
    """
    sites = {
        f"the site '{n}'": s
        for observed in (True, False)
        for n, s in traces.sites(traces.model, observed=observed)
    }
    sites |= {
        f"the guide's site '{n}'": site for n, site in traces.sites(traces.guide, observed=False)
    }
    in_plates = {
        plates_of(site)[0]: (which, site)
        for which, site in reversed(sites.items())
        if plates_of(site)
    }
    if traces.plate is None and in_plates:
        where = (
            f"{which} in {' and '.join(repr(f.name) for f in plates_of(s))}"
            for which, s in reversed(in_plates.values())
        )
        raise ProgramError(
            f"{label} needs a bound per datum, but no one plate holds all the sites: "
            f"{', '.join(where)}: use {request}"
        )
    for which, site in sites.items():
        dims = undeclared(site)
        if dims:
            raise ProgramError(
                f"{label} needs a bound per datum; {which} {undeclared_words(site, dims[0])}"
            )


def check_deltas(fixed: Traces, label: str) -> None:
    """Refuse Deltas that depend on parameters at fixed draws, or in a guide without draws.

    Args:
        fixed: The traces of guide and model, with the draws stopped.
        label: The name of the objective, for the message.

    Raises:
        ProgramError: The guide has such a Delta; the message names it.
    """
    deltas = [(name, site) for name, site in fixed.deltas() if fixed.is_local(site)]
    moving = [
        name for name, site in deltas if site["value"].requires_grad or not any(fixed.draws())
    ]
    if moving:
        raise ProgramError(
            f"{label} follows the density of the guide's draws; its site '{moving[0]}' is "
            "a Delta, which has none, and its value depends on parameters at fixed draws: use "
            "trace-elbo or iwae"
        )


def check_terms(fixed: Traces, label: str) -> None:
    """Refuse guide terms that depend on φ and are not densities of draws, for KL(p ‖ q).

    Args:
        fixed: The traces of guide and model, with the draws stopped.
        label: The name of the objective, for the message.

    Raises:
        ProgramError: The guide has such a term; the message names its site.
    """
    for name, site in terms_of(fixed):
        if log_density(name, site).requires_grad:
            raise ProgramError(
                f"{label} follows the density of the guide's draws alone; the guide's "
                f"site '{name}' is no draw, and its log-density depends on parameters: use "
                "vimco, dreg or iwae"
            )
