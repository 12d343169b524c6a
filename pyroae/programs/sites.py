"""Sample sites of a program: their plates, scales and kinds of distribution."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta, ExpandedDistribution, MaskedDistribution
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor
from torch.distributions import Independent

Program = Callable[..., Any]
"""A Pyro model or guide: a function, a module, or a method of one."""


Site = dict[str, Any]
"""A site of a Pyro trace, as a dict of its message."""


KINDS = frozenset({"continuous", "binary", "categorical"})
"""The kinds of latent sites: with draws that carry a path gradient, Bernoulli, and categorical."""

PARTICLES = "num_particles_vectorized"
"""Name of the plate of the particles."""


ANY_SIZE = -1
"""The size that Pyro gives to a plate without one, as in `pyro.plate("data")`."""


def samples(*traces: poutine.Trace) -> list[Site]:
    """List the sample sites of traces.

    Args:
        *traces: Traces of programs.

    Returns:
        The latent and the observed sites, in the order of the programs.
    """
    return [site for trace in traces for site in trace.nodes.values() if site["type"] == "sample"]


def plates_of(site: Site) -> list[CondIndepStackFrame]:
    """List the vectorized plates that hold a site, except the plate of the particles.

    Args:
        site: A sample site of a trace.

    Returns:
        The plates from the outermost to the innermost.
    """
    return [f for f in site["cond_indep_stack"] if f.vectorized and f.name != PARTICLES]


def holds(frames: Iterable[CondIndepStackFrame], plate: CondIndepStackFrame) -> bool:
    """Tell whether a plate is one of some plates, in a tenth of the time of `plate in frames`.

    Args:
        frames: Plates of a site.
        plate: A plate.

    Returns:
        True for a plate of the same name, dimension, size and counter.
    """
    key = plate[:4]  # without the full size, as Pyro's own comparison
    return any(frame[:4] == key for frame in frames)


def undeclared(site: Site) -> list[int]:
    """Find batch dimensions of more than one element that no plate declares.

    Args:
        site: A sample site of a trace.

    Returns:
        The dimensions, negative, from the right to the left.
    """
    declared = {f.dim for f in site["cond_indep_stack"] if f.vectorized}
    sizes = reversed(site["fn"].batch_shape)
    return [-1 - i for i, size in enumerate(sizes) if size > 1 and -1 - i not in declared]


def undeclared_words(site: Site, dim: int) -> str:
    """Describe a batch shape of which no plate declares a dimension, for an error message.

    Args:
        site: A sample site of a trace.
        dim: The undeclared dimension, negative.

    Returns:
        A predicate of which the site is the subject; the particle dimension is left out.
    """
    has_particles = any(f.name == PARTICLES for f in site["cond_indep_stack"])
    shape = tuple(site["fn"].batch_shape)[has_particles:]
    where = (
        f"whose dimension {dim} no plate declares" if plates_of(site) else "but lies in no plate"
    )
    return f"has the batch shape {shape}, {where}"


def base_distribution(distribution: Any) -> Any:
    """Unwrap a distribution.

    Args:
        distribution: A Pyro or torch distribution.

    Returns:
        The innermost distribution inside wrappers such as Independent, Expanded and Masked.
    """
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return distribution


def unwrapped(distribution: Any) -> Any:
    """Return the distribution whose draws are those of another one, whatever their shape.

    Args:
        distribution: A Pyro or torch distribution.

    Returns:
        What is inside Independent, an expansion and a mask; a transformed distribution stays whole.
    """
    while isinstance(distribution, Independent | ExpandedDistribution | MaskedDistribution):
        distribution = distribution.base_dist
    return distribution


def is_delta(site: Site) -> bool:
    """Tell whether a latent site of a guide is a Delta.

    A Delta is a function of the draws, with a log-density of its own, and no draw.

    Args:
        site: A sample site of a trace.

    Returns:
        True if its innermost distribution is a Delta.
    """
    return isinstance(base_distribution(site["fn"]), Delta)


def is_discrete(distribution: Any) -> bool:
    """Tell whether the values of a distribution are known to be discrete.

    Args:
        distribution: A Pyro or torch distribution.

    Returns:
        True for a discrete support; False also where the support depends on the parameters.
    """
    try:
        return bool(distribution.support.is_discrete)
    except (AttributeError, NotImplementedError):  # a support that depends on the parameters
        return False


def data_plate(sites: list[Site]) -> CondIndepStackFrame | None:
    """Find the plate of the data.

    It is the outermost plate that holds every site which lies in any plate; otherwise the
    outermost one that holds all observed sites which lie in a plate. Latent sites in plates of
    their own, such as weights, are then outside the data plate.

    Args:
        sites: Sample sites of model and guide.

    Returns:
        The plate. None without plates, and where none is unambiguous: where a site outside the
        plate shares another plate with all observed sites, so that several plates could be that
        of the data, and where a site lies in the plate in one program only.
    """
    # Of each site in a plate, the plates from the outermost to the innermost.
    inside = [stack for stack in map(plates_of, sites) if stack]
    if not inside:
        return None
    plate = next((f for f in inside[0] if all(holds(stack, f) for stack in inside)), None)
    return plate or _plate_of_observed(sites)


def _plate_of_observed(sites: list[Site]) -> CondIndepStackFrame | None:
    observed = [stack for site in sites if site["is_observed"] and (stack := plates_of(site))]
    common = [f for f in observed[0] if all(holds(s, f) for s in observed)] if observed else []
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
    """Find the scale that all sites of the data plate share.

    Args:
        sites: The sites in the data plate; all sites without one.
        plate: The data plate; None without one.

    Returns:
        The scale of all sites, subsampling included, as a number or `[N]`, where it is the same
        for all and constant within a datum; otherwise the plate's subsampling scale N_total / N.
    """
    base = (plate.full_size or plate.size) / plate.size if plate is not None else 1.0
    scales = [s["scale"] for s in sites]
    is_common = bool(scales) and all(equal_scale(scales[0], scale) for scale in scales)
    common = _per_datum(scales[0], plate) if is_common else None
    return base if common is None else common


def same_scale(one: Tensor | float, other: Tensor | float) -> bool:
    """Tell whether two scales are known to be equal without reading the values of a tensor.

    Args:
        one: A scale, a number or a tensor.
        other: Another scale.

    Returns:
        True for the same object and for equal numbers.
    """
    return one is other or (
        not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other
    )


def equal_scale(one: Tensor | float, other: Tensor | float) -> bool:
    """Tell whether two scales are equal; reads the values of two tensors.

    Args:
        one: A scale, a number or a tensor.
        other: Another scale.

    Returns:
        True for equal numbers, and for tensors of the same shape and values.
    """
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and torch.equal(one, other))
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other


def _per_datum(scale: Tensor | float, plate: CondIndepStackFrame | None) -> Tensor | float | None:
    """A scale as a number or `[N]`; None where it differs within a datum."""
    if not isinstance(scale, Tensor) or scale.numel() == 1:
        return scale.reshape(()) if isinstance(scale, Tensor) else scale
    dim = plate.dim if plate is not None else 0
    along = scale.shape[dim] if -scale.dim() <= dim < 0 else 1
    return scale.reshape(-1) if along == scale.numel() else None
