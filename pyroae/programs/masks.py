"""Masks of sites: which elements have a density, and values in the support for the others."""

from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyroae.errors import ProgramError
from pyroae.programs.sites import Site


def masks_of(site: Site) -> list[Any]:
    """List the masks of a site: of `poutine.mask`, and of its distribution's own `mask`.

    Args:
        site: A sample site of a trace.

    Returns:
        Booleans and tensors that broadcast with the site's batch shape; None and True are left out.
    """
    fn, masks = site["fn"], [site["mask"]]
    while isinstance(fn, MaskedDistribution):
        masks.append(fn._mask)
        fn = fn.base_dist
    return [mask for mask in masks if mask is not None and mask is not True]


def mask_of(name: str, site: Site) -> Tensor | None:
    """Combine the masks of a site.

    Args:
        name: Name of the site, for the error.
        site: A sample site of a trace.

    Returns:
        A tensor of the site's batch shape, False where the site is masked; None without a mask.

    Raises:
        ProgramError: If a mask does not broadcast to the site's batch shape.
    """
    shape = site["fn"].batch_shape
    result: Tensor | None = None
    for value in masks_of(site):
        mask = torch.as_tensor(value, device=site["value"].device)
        try:
            mask = mask.expand(shape)
        except RuntimeError:
            raise ProgramError(
                f"the mask of site '{name}' has the shape {tuple(mask.shape)}, which does not fit "
                f"into the site's {tuple(shape)}: give masks as arguments, a row per datum"
            ) from None
        result = mask if result is None else result & mask
    return result


def where_unmasked(name: str, site: Site, value: Tensor, other: Tensor) -> Tensor:
    """Choose between two values of a site by its mask.

    Args:
        name: Name of the site, for the error.
        site: A sample site of a trace.
        value: The value where the site is not masked, of the batch and event shape.
        other: The value where it is masked; broadcasts with `value`.

    Returns:
        A tensor of the site's batch and event shape.

    Raises:
        ProgramError: If a mask does not broadcast to the site's batch shape.
    """
    mask = mask_of(name, site)
    return value if mask is None else torch.where(_of_events(mask, site), value, other)


def observed_value(site: Site) -> Tensor:
    """Replace the value of an observed site by one in the support wherever the site is masked.

    A value under a mask, such as NaN for missing data, then reaches neither Pyro's validation
    nor the gradients of the other elements: the derivative of a log-density at NaN is NaN, also
    after multiplication by 0.

    Args:
        site: An observed sample site of a trace.

    Returns:
        The value, of the site's batch and event shape; unchanged without a mask, and where the
        mask does not fit, which is reported where it is applied.
    """
    value, masks = site["value"], masks_of(site)
    if not masks or not isinstance(value, Tensor) or not value.numel():
        return value
    mask = torch.as_tensor(masks[0], device=value.device)
    for other in masks[1:]:
        mask = mask & torch.as_tensor(other, device=value.device)
    try:
        return torch.where(_of_events(mask, site), value, in_support(site).to(value.dtype))
    except (RuntimeError, AttributeError):  # a mask that does not fit, or no support
        return value


def in_support(site: Site) -> Tensor:
    """Construct a value at which a site has a density, without a draw.

    Args:
        site: A sample site of a trace.

    Returns:
        A tensor of the shape of the site's value.
    """
    support, value = site["fn"].support, site["value"]
    try:
        transform = biject_to(support)
        return transform(value.new_zeros(transform.inverse_shape(value.shape)))
    except NotImplementedError:  # discrete sites, and supports without such a map
        pass
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.one_hot:
        return _first_unit_vector(value)
    if isinstance(support, constraints.multinomial):
        count = torch.as_tensor(support.upper_bound, device=value.device)
        count = count.reshape(*count.shape, *[1] * (count.dim() > 0)).to(value.dtype)
        return _first_unit_vector(value) * count
    return torch.zeros_like(value) + getattr(support, "lower_bound", 0)


def _first_unit_vector(value: Tensor) -> Tensor:
    """A tensor like `value` with 1 in the first element of the last dimension, else 0."""
    first = torch.zeros((), dtype=torch.long, device=value.device)
    return torch.zeros_like(value).index_fill(-1, first, 1)


def _of_events(mask: Tensor, site: Site) -> Tensor:
    """Reshape a mask of a batch shape to broadcast with values."""
    return mask.reshape((*mask.shape, *[1] * site["fn"].event_dim))
