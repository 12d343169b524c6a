"""Data drawn from a model, in the shape of given arguments, and the arguments that hold them."""

from collections.abc import Iterator

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyroae.errors import ConfigError, ProgramError
from pyroae.evaluation.checks import is_one
from pyroae.programs.masks import where_unmasked
from pyroae.programs.paired_traces import Traces, log_density
from pyroae.programs.sites import Program, Site, base_distribution

Values = dict[str, Tensor]
"""Values by site, in the shape that the program gives them."""


def simulated(
    model: Program, args: tuple[Tensor, ...], traces: Traces
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draw z and x from the model, given its arguments: (z, x) ~ p(z) p(x|z).

    Sites outside the data plate and masked elements keep their observed values. A factor is
    accepted where it is 0 at all that is drawn, as that of a label which is missing.

    Args:
        model: The Pyro program p(z) p(x|z).
        args: Arguments of the model, `[N, ...]` each.
        traces: A run of the model with these arguments.

    Returns:
        Values of the observed and of the latent sites by name, in the shape of the program.

    Raises:
        ProgramError: Naming the site, for an observed site that cannot be drawn: a factor, a
            scaled site, or counts whose density is given their observed total.
    """
    observed = dict(traces.sites(traces.model, observed=True))
    local = {
        name: site
        for name, site in observed.items()
        if traces.is_local(site) and not site["infer"].get("_deterministic")
    }
    factors = {n for n, s in local.items() if isinstance(base_distribution(s["fn"]), dist.Unit)}
    for name in local.keys() - factors:
        _check_drawable(name, local[name], traces)
    fixed = {name: site["value"] for name, site in observed.items() if not traces.is_local(site)}
    program = poutine.condition(poutine.uncondition(model), data=fixed)
    nodes = poutine.trace(program).get_trace(*args).nodes
    for name in factors:
        if bool((log_density(name, nodes[name]) != 0).any()):
            raise ProgramError(f"the site '{name}' is a factor: no x can be drawn from the model")
    x = {  # masked elements keep the observed value
        name: where_unmasked(name, site, nodes[name]["value"].detach(), site["value"])
        for name, site in local.items()
        if name not in factors
    }
    latent = traces.sites(traces.model, observed=False)
    return x, {name: nodes[name]["value"].detach() for name, _ in latent}


def _check_drawable(name: str, site: Site, traces: Traces) -> None:
    """Refuse an observed site whose value cannot be drawn."""
    if getattr(base_distribution(site["fn"]), "is_given_value", False):
        raise ProgramError(
            f"the density of the site '{name}' is given the total of its own value: draws from "
            "the model do not have it; use library=none, or a number"
        )
    if not is_one(traces.exponent(site)):
        raise ProgramError(
            f"the site '{name}' is scaled: draws from the model do not have its density"
        )


def replaced(
    args: tuple[Tensor, ...], traces: Traces, data: Values, *, use: str, instead: str
) -> tuple[Tensor, ...]:
    """Replace the arguments that hold the observed value of a site by the simulated value.

    An observed value is found as a view of an argument, such as a column or a reshaped one, or
    else as an argument of the same values. Missing values, NaN, stay missing.

    Args:
        args: Arguments of the guide, `[N, ...]` each.
        traces: A run of the model with the observed values.
        data: Simulated values by site, in the shape of the program.
        use: What needs the guide to see the data, for the error message.
        instead: What to do otherwise, for the error message.

    Returns:
        The arguments of the guide, of the same shapes.

    Raises:
        ConfigError: Where the observed value of a site is in none or several of the arguments.
    """
    arguments = [arg.clone(memory_format=torch.contiguous_format) for arg in args]
    for name, value in data.items():
        observed = traces.model.nodes[name]["value"]
        places = [
            place
            for arg, new in zip(args, arguments, strict=True)
            if (place := _view(observed, arg, new)) is not None
        ]
        places = places or list(_equal(observed, args, arguments))
        if len(places) != 1:
            raise ConfigError(
                f"{use} needs the guide to see the simulated data of the site '{name}', "
                f"but its observed value is {len(places) or 'none'} of the arguments; {instead}"
            )
        place = places[0]
        new_value = value.reshape(place.shape).to(place)
        place.copy_(torch.where(place.isnan(), place, new_value))
    return tuple(arguments)


def _view(observed: Tensor, arg: Tensor, new: Tensor) -> Tensor | None:
    """The part of `new` that `observed` is of `arg`; None where it is no view of `arg`."""
    is_view = (
        observed.untyped_storage().data_ptr() == arg.untyped_storage().data_ptr()
        and observed.dtype == arg.dtype
        and arg.is_contiguous()
        and observed.numel() > 0
    )
    if not is_view:
        return None
    offset = observed.storage_offset() - arg.storage_offset()
    reach = sum((n - 1) * s for n, s in zip(observed.shape, observed.stride(), strict=True))
    inside = offset >= 0 and offset + reach < arg.numel() and 0 not in observed.stride()
    return new.as_strided(observed.shape, observed.stride(), offset) if inside else None


def _equal(observed: Tensor, args: tuple[Tensor, ...], new: list[Tensor]) -> Iterator[Tensor]:
    """Copies of the arguments whose values are those of a site; a NaN stands for any value."""
    for arg, copy in zip(args, new, strict=True):
        if arg.numel() == observed.numel():
            given = arg.reshape(observed.shape).to(observed)
            if bool(((given == observed) | given.isnan()).all()):
                yield copy
