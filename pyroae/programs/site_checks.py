"""Checks of the sites of a model and a guide: each raises ProgramError or warns, with names."""

import warnings
from collections.abc import Iterator
from functools import partial

from pyro import poutine
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.util import site_is_subsample

from pyroae.errors import ProgramError
from pyroae.programs.model_sums import Summed
from pyroae.programs.sites import (
    Program,
    Site,
    base_distribution,
    holds,
    is_delta,
    is_discrete,
    plates_of,
    samples,
    undeclared,
    undeclared_words,
)


def check_match(model: poutine.Trace, guide: poutine.Trace) -> None:
    """Refuse latent sites that the other program lacks or defines otherwise.

    Args:
        model: A trace of the model.
        guide: A trace of the guide.

    Raises:
        ProgramError: For a latent site of the model without a counterpart in the guide, a site of
            the guide that is neither latent in the model nor auxiliary, another event shape, and a
            site that is continuous in the model and discrete in the guide.
    """
    latent, drawn = _latent(model), _latent(guide)
    for name in sorted(set(latent) - set(drawn)):
        raise ProgramError(
            f"the model's latent site '{name}' has no counterpart in the guide, which has "
            f"{sorted(drawn)}{_enumeration_hint(name, model)}"
        )
    for name in sorted(set(drawn) - set(latent)):
        if not drawn[name]["infer"].get("is_auxiliary"):
            raise ProgramError(
                f"the guide's site '{name}' is no latent site of the model, which has "
                f"{sorted(latent)}; an auxiliary draw of the guide takes "
                "infer={'is_auxiliary': True}"
            )
    check_event_shapes(model, guide)
    for name in sorted(set(latent) & set(drawn)):
        of_model, of_guide = latent[name]["fn"], drawn[name]["fn"]
        if is_discrete(of_guide) and not is_discrete(of_model) and not is_delta(latent[name]):
            kinds = [type(base_distribution(fn)).__name__ for fn in (of_model, of_guide)]
            raise ProgramError(
                f"site '{name}' is continuous in the model ({kinds[0]}) and discrete in the guide "
                f"({kinds[1]})"
            )


def _latent(trace: poutine.Trace) -> dict[str, Site]:
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"]
    }


def _enumeration_hint(name: str, model: poutine.Trace) -> str:
    """A remedy for a discrete latent site of the model that the guide lacks; '' for others."""
    site = model.nodes[name]
    if not (site["infer"].get("enumerate") or getattr(site["fn"], "has_enumerate_support", False)):
        return ""
    return (
        f': mark it with infer={{"enumerate": "parallel"}} in the model, so that it is summed '
        f"out of p(x, z), or give the guide a site '{name}'"
    )


def check_event_shapes(model: poutine.Trace, guide: poutine.Trace) -> None:
    """Refuse a latent site whose event shape differs between model and guide.

    Args:
        model: A trace of the model.
        guide: A trace of the guide.

    Raises:
        ProgramError: Names the site and both shapes.
    """
    for name, site in _latent(model).items():
        if name in guide.nodes:
            of_model, of_guide = site["fn"].event_shape, guide.nodes[name]["fn"].event_shape
            if of_model != of_guide:
                raise ProgramError(
                    f"site '{name}' has the event shape {tuple(of_model)} in the model and "
                    f"{tuple(of_guide)} in the guide"
                )


def check_declared(model: poutine.Trace, guide: poutine.Trace) -> None:
    """Refuse a batch dimension of more than one element to the left of all plates of its site.

    It is usually a mistake, as with the shape [N, 1] in a plate of N, which the plate expands to
    [N, N]. Undeclared dimensions between plates are accepted, as in Pyro.

    Args:
        model: A trace of the model.
        guide: A trace of the guide.

    Raises:
        ProgramError: Names the site and the dimension; observed sites of the model are checked
            first.
    """
    of_model = sorted(samples(model), key=lambda site: not site["is_observed"])
    for which, sites in (("the site", of_model), ("the guide's site", samples(guide))):
        for site in sites:
            leftmost = max((-f.dim for f in plates_of(site)), default=0)
            if dims := [dim for dim in undeclared(site) if -dim > leftmost]:
                raise ProgramError(
                    f"{which} '{site['name']}' {undeclared_words(site, dims[0])}: put it into a "
                    "plate, make it a part of the event by .to_event, or give it another shape"
                )


def check_plate(model: poutine.Trace, guide: poutine.Trace, plate: CondIndepStackFrame) -> None:
    """Refuse latent sites whose data plate differs between model and guide.

    Args:
        model: A trace of the model.
        guide: A trace of the guide.
        plate: The data plate.

    Raises:
        ProgramError: For a site in the plate in one program only, or of another number of data.
    """
    for name, site in _latent(guide).items():
        if name in model.nodes:
            of_model, of_guide = (
                [f.full_size or f.size for f in plates_of(s) if holds([f], plate)]
                for s in (model.nodes[name], site)
            )
            where = f"site '{name}' lies in the plate '{plate.name}'"
            if len(of_model) != len(of_guide):
                one, other = ("model", "guide") if of_model else ("guide", "model")
                raise ProgramError(f"{where} in the {one}, but not in the {other}")
            if of_model != of_guide:
                raise ProgramError(
                    f"{where} of {of_model[0]} data in the model, of {of_guide[0]} in the guide: a "
                    "guide with parameters of its own for each datum, as an autoguide of local "
                    "latents has, takes all its data at once, in fit alone"
                )


def refuse_messengers(guide: Program) -> None:
    """Refuse guides that run the model inside them, whose trace has the observed sites too.

    Args:
        guide: A guide, or a partial of one.

    Raises:
        ProgramError: For an effect-based guide of Pyro, such as AutoNormalMessenger.
    """
    for one in _inside(guide):
        if isinstance(one, GuideMessenger):
            raise ProgramError(
                f"the guide is a {type(one).__name__}, which runs the model inside it: its own "
                "trace has the observed sites, and they would cancel; use an autoguide that is no "
                "messenger, such as AutoNormal"
            )


def _inside(program: Program) -> Iterator[Program]:
    """A program, and the functions and arguments that it is a partial of."""
    if isinstance(program, partial):
        for one in (program.func, *program.args):
            yield from _inside(one)
    else:
        yield program


def check_sums(model: poutine.Trace, plate: CondIndepStackFrame) -> None:
    """Refuse discrete sites outside the data plate that are summed out of the model.

    Args:
        model: A trace of the model.
        plate: The data plate.

    Raises:
        ProgramError: Names the site.
    """
    for site in samples(model):
        fn = site["fn"]
        if isinstance(fn, Summed) and plate in plates_of(site) and plate.name not in fn.plates:
            raise ProgramError(
                f"the model's site '{fn.parent}', which is summed out, lies outside the data plate "
                f"'{plate.name}', and '{site['name']}' within depends on it: the data are not "
                f"independent given the other sites; give the guide a site '{fn.parent}'"
            )


def check_whole(sites: list[Site]) -> None:
    """Refuse subsampled plates where all data are one datum.

    Args:
        sites: Sample sites of model and guide.

    Raises:
        ProgramError: Names a plate that holds a part of its data.
    """
    for frame in (f for site in sites for f in plates_of(site)):
        if frame.full_size not in (None, frame.size):
            raise ProgramError(
                f"all data as one datum need all data: the plate '{frame.name}' holds "
                f"{frame.size} of {frame.full_size}"
            )


def warn_of_plates(model: poutine.Trace, guide: poutine.Trace) -> None:
    """Warn of plates of the guide that the model lacks, in the words of Pyro's own check.

    Args:
        model: A trace of the model with the subsample sites of its plates.
        guide: A trace of the guide with the subsample sites of its plates.
    """
    of_model, of_guide = (
        {name for name, s in t.nodes.items() if _is_plate(s)} for t in (model, guide)
    )
    if not of_guide <= of_model:
        names = ", ".join(sorted(of_guide - of_model))
        warnings.warn(f"Found plate statements in guide but not model: {names}", stacklevel=2)


def warn_of_enumeration(guide: poutine.Trace) -> None:
    """Warn of sites marked for enumeration, which are drawn here like all others.

    Args:
        guide: A trace of the guide.
    """
    marked = [site["name"] for site in samples(guide) if site["infer"].get("enumerate")]
    if marked:
        warnings.warn(
            f"the sites {', '.join(marked)} of the guide are marked for enumeration, but drawn: "
            "trace-elbo and enumerate sum over sites with finitely many values and no mask, if "
            "their joint values are few; or leave the mark out",
            stacklevel=2,
        )


def _is_plate(site: Site) -> bool:
    return site["type"] == "sample" and site_is_subsample(site)
