"""What the sites of a program say: their plates and scales, and whether model and guide match."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyroae.errors import ProgramError

Site = dict[str, Any]


PARTICLES = "num_particles_vectorized"
"""Name of the plate of the particles."""


ANY_SIZE = -1
"""What Pyro gives as the size of a plate without one, as in `pyro.plate("data")`."""


def samples(*traces: poutine.Trace) -> list[Site]:
    """Sample sites of traces, the observed ones too."""
    return [site for trace in traces for site in trace.nodes.values() if site["type"] == "sample"]


def plates_of(site: Site) -> list[CondIndepStackFrame]:
    """The vectorized plates that hold a site, that of the particles left out."""
    return [f for f in site["cond_indep_stack"] if f.vectorized and f.name != PARTICLES]


def undeclared(site: Site) -> list[int]:
    """Batch dimensions of more than one element that no plate declares, that of the particles left out."""
    declared = {f.dim for f in site["cond_indep_stack"] if f.vectorized}
    sizes = reversed(site["fn"].batch_shape)
    return [-1 - i for i, size in enumerate(sizes) if size > 1 and -1 - i not in declared]


def base_distribution(distribution: Any) -> Any:
    """What is left of a distribution without its wrappers (Independent, Expanded, Masked)."""
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return distribution


def is_delta(site: Site) -> bool:
    """Whether a latent site of a guide is a Delta: a function of the draws, with a log-density of its own, and no draw."""
    return isinstance(base_distribution(site["fn"]), Delta)


def data_plate(sites: list[Site]) -> CondIndepStackFrame | None:
    """The outermost plate that holds every site which is in any plate at all; else the one that holds the observed sites.

    Latent sites in plates of their own, such as weights, are then outside the data plate. None where they share a plate with
    observed sites, so that several plates could be that of the data, and where a site is in the plate in one program only.
    """
    inside = [
        stack for stack in map(plates_of, sites) if stack
    ]  # each from the outermost plate to the innermost
    if not inside:
        return None
    plate = next((f for f in inside[0] if all(f in stack for stack in inside)), None)
    return plate or _plate_of_observed(sites)


def _plate_of_observed(sites: list[Site]) -> CondIndepStackFrame | None:
    observed = [stack for site in sites if site["is_observed"] and (stack := plates_of(site))]
    common = [f for f in observed[0] if all(f in stack for stack in observed)] if observed else []
    if not common:
        return None
    plate = common[0]
    held = {site["name"] for site in sites if plate in plates_of(site)}
    outside = [site for site in sites if plate not in plates_of(site)]
    ambiguous = any(
        site["name"] in held or any(f in common for f in plates_of(site)) for site in outside
    )
    return None if ambiguous else plate


def common_scale(sites: list[Site], plate: CondIndepStackFrame | None) -> Tensor | float:
    """The plate's subsampling scale, times what is left of the sites' scales where that is the same for all."""
    base = (plate.full_size or plate.size) / plate.size if plate is not None else 1.0
    rest = [s["scale"] for s in sites]
    common = (
        _per_datum(rest[0], plate)
        if rest and all(equal_scale(rest[0], scale) for scale in rest)
        else None
    )
    return base if common is None else common


def same_scale(one: Tensor | float, other: Tensor | float) -> bool:
    """Whether two scales are known to be the same without a look at the numbers of a tensor."""
    return one is other or (
        not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other
    )


def check_match(model: poutine.Trace, guide: poutine.Trace) -> None:
    """Raises ProgramError for a latent site that the other program lacks, or with another event shape there."""
    latent = {
        name for name, s in model.nodes.items() if s["type"] == "sample" and not s["is_observed"]
    }
    drawn = {
        name: s for name, s in guide.nodes.items() if s["type"] == "sample" and not s["is_observed"]
    }
    for name in sorted(latent - set(drawn)):
        raise ProgramError(
            f"the model's latent site '{name}' has no counterpart in the guide, which has {sorted(drawn)}{_hint(name, model)}"
        )
    for name in sorted(set(drawn) - latent):
        if not drawn[name]["infer"].get("is_auxiliary"):
            raise ProgramError(
                f"the guide's site '{name}' is no latent site of the model, which has {sorted(latent)}; an auxiliary draw "
                "of the guide takes infer={'is_auxiliary': True}"
            )
    check_event_shapes(model, guide)
    for name in sorted(latent & set(drawn)):
        of_model, of_guide = model.nodes[name]["fn"], drawn[name]["fn"]
        if is_discrete(of_guide) and not is_discrete(of_model) and not is_delta(model.nodes[name]):
            kinds = [type(base_distribution(fn)).__name__ for fn in (of_model, of_guide)]
            raise ProgramError(
                f"site '{name}' is continuous in the model ({kinds[0]}) and discrete in the guide ({kinds[1]})"
            )


def _hint(name: str, model: poutine.Trace) -> str:
    """What to do about a discrete latent site of the model that the guide lacks."""
    site = model.nodes[name]
    if not (site["infer"].get("enumerate") or getattr(site["fn"], "has_enumerate_support", False)):
        return ""
    return (
        f": sites are not enumerated in the model here; give the guide a site '{name}', which TraceEnum_ELBO sums out with "
        'infer={"enumerate": "parallel"}, or use pyro.infer.SVI with TraceEnum_ELBO'
    )


def check_event_shapes(model: poutine.Trace, guide: poutine.Trace) -> None:
    """Raises ProgramError for a latent site whose event shape differs."""
    for name, site in model.nodes.items():
        if site["type"] == "sample" and not site["is_observed"] and name in guide.nodes:
            of_model, of_guide = site["fn"].event_shape, guide.nodes[name]["fn"].event_shape
            if of_model != of_guide:
                raise ProgramError(
                    f"site '{name}' has the event shape {tuple(of_model)} in the model and {tuple(of_guide)} in the guide"
                )


def check_declared(model: poutine.Trace, guide: poutine.Trace) -> None:
    """Raises ProgramError for a site with a batch dimension of more than one element to the left of all its plates.

    It is mostly a mistake, as with the shape [N, 1] in a plate of N, which the plate makes [N, N]. Dimensions between plates
    are accepted, as in Pyro.
    """
    of_model = sorted(samples(model), key=lambda site: not site["is_observed"])
    for which, sites in (("the site", of_model), ("the guide's site", samples(guide))):
        for site in sites:
            leftmost = max((-f.dim for f in plates_of(site)), default=0)
            if dims := [dim for dim in undeclared(site) if -dim > leftmost]:
                raise ProgramError(
                    f"{which} '{site['name']}' {undeclared_words(site, dims[0])}: put it into a plate, make it a part of the "
                    "event by .to_event, or give it another shape"
                )


def undeclared_words(site: Site, dim: int) -> str:
    """What is wrong with the batch shape of a site, one dimension of which no plate declares."""
    has_particles = any(f.name == PARTICLES for f in site["cond_indep_stack"])
    shape = tuple(site["fn"].batch_shape)[has_particles:]
    where = (
        f"whose dimension {dim} is that of no plate" if plates_of(site) else "but lies in no plate"
    )
    return f"has the batch shape {shape}, {where}"


def warn_of_plates(model: poutine.Trace, guide: poutine.Trace) -> None:
    """Warn of plates of the guide that the model does not have, in the words of Pyro's own check."""
    of_model, of_guide = (
        {name for name, s in t.nodes.items() if _is_plate(s)} for t in (model, guide)
    )
    if not of_guide <= of_model:
        names = ", ".join(sorted(of_guide - of_model))
        warnings.warn(f"Found plate statements in guide but not model: {names}", stacklevel=2)


def warn_of_enumeration(guide: poutine.Trace) -> None:
    """Warn of sites marked for enumeration, which are drawn here like all others."""
    marked = [site["name"] for site in samples(guide) if site["infer"].get("enumerate")]
    if marked:
        warnings.warn(
            f"the sites {', '.join(marked)} of the guide are marked for enumeration, but drawn: use TraceEnum_ELBO to sum over "
            "them, or leave the mark out",
            stacklevel=2,
        )


def _is_plate(site: Site) -> bool:
    return site["type"] == "sample" and site_is_subsample(site)


def check_plate(model: poutine.Trace, guide: poutine.Trace, plate: CondIndepStackFrame) -> None:
    """Raises ProgramError for a latent site that lies in the data plate in one of the programs only, or of another size."""
    for name, site in guide.nodes.items():
        if site["type"] == "sample" and not site["is_observed"] and name in model.nodes:
            of_model, of_guide = (
                [f.full_size or f.size for f in plates_of(s) if f == plate]
                for s in (model.nodes[name], site)
            )
            where = f"site '{name}' lies in the plate '{plate.name}'"
            if len(of_model) != len(of_guide):
                one, other = ("model", "guide") if of_model else ("guide", "model")
                raise ProgramError(f"{where} in the {one}, but not in the {other}")
            if of_model != of_guide:
                raise ProgramError(
                    f"{where} of {of_model[0]} data in the model, of {of_guide[0]} in the guide"
                )


def check_whole(sites: list[Site]) -> None:
    """Raises ProgramError for a plate that holds a part of its data, where all data are to be one datum."""
    for frame in (f for site in sites for f in plates_of(site)):
        if frame.full_size not in (None, frame.size):
            raise ProgramError(
                f"all data as one datum need all data: the plate '{frame.name}' holds {frame.size} of {frame.full_size}"
            )


def is_discrete(distribution: Any) -> bool:
    """Whether the values of a distribution are known to be discrete."""
    try:
        return bool(distribution.support.is_discrete)
    except (AttributeError, NotImplementedError):  # a support that depends on the parameters
        return False


def _per_datum(scale: Tensor | float, plate: CondIndepStackFrame | None) -> Tensor | float | None:
    """A scale as a number or `[N]`; None where it differs within a datum."""
    if not isinstance(scale, Tensor) or scale.numel() == 1:
        return scale.reshape(()) if isinstance(scale, Tensor) else scale
    dim = plate.dim if plate is not None else 0
    along = scale.shape[dim] if -scale.dim() <= dim < 0 else 1
    return scale.reshape(-1) if along == scale.numel() else None


def equal_scale(one: Tensor | float, other: Tensor | float) -> bool:
    """Whether two scales are the same; looks at the numbers of two tensors."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and torch.equal(one, other))
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other


Program = Callable[..., Any]
