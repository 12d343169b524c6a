"""Masks of sites: which elements have a density, and values in the support for those that have none."""

from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyroae.errors import ProgramError
from pyroae.programs.sites import Site


def masks_of(site: Site) -> list[Any]:
    """The masks of a site as they were given: that of `poutine.mask`, and those of the distribution's own `mask`."""
    fn, masks = site["fn"], [site["mask"]]
    while isinstance(fn, MaskedDistribution):
        masks.append(fn._mask)
        fn = fn.base_dist
    return [mask for mask in masks if mask is not None and mask is not True]


def mask_of(name: str, site: Site) -> Tensor | None:
    """The mask of a site in its batch shape, False where it is left out; None where nothing can be.

    Raises:
        ProgramError: Where a mask does not fit the site.
    """
    shape = site["fn"].batch_shape
    found: Tensor | None = None
    for given in masks_of(site):
        mask = torch.as_tensor(given, device=site["value"].device)
        try:
            mask = mask.expand(shape)
        except RuntimeError:
            raise ProgramError(
                f"the mask of site '{name}' has the shape {tuple(mask.shape)}, which does not fit into the site's "
                f"{tuple(shape)}: give masks as arguments, a row per datum"
            ) from None
        found = mask if found is None else found & mask
    return found


def where_unmasked(name: str, site: Site, value: Tensor, other: Tensor) -> Tensor:
    """One value of a site where the site is not masked, another where it is."""
    mask = mask_of(name, site)
    return value if mask is None else torch.where(_of_events(mask, site), value, other)


def observed_value(site: Site) -> Tensor:
    """The value of an observed site, with one in the support wherever the site is masked.

    What stands under a mask, such as NaN for missing data, then reaches neither Pyro's validation nor the gradients of the
    rest: the derivative of a log-density at NaN is NaN, and times 0 it is NaN too.
    """
    value, masks = site["value"], masks_of(site)
    if not masks or not isinstance(value, Tensor) or not value.numel():
        return value
    mask = torch.as_tensor(masks[0], device=value.device)
    for other in masks[1:]:
        mask = mask & torch.as_tensor(other, device=value.device)
    try:
        return torch.where(_of_events(mask, site), value, in_support(site).to(value.dtype))
    except (
        RuntimeError,
        AttributeError,
    ):  # a mask that does not fit, which is told where it is applied; no support
        return value


def in_support(site: Site) -> Tensor:
    """A value of the shape of the site's own at which it has a density; nothing is drawn."""
    support, value = site["fn"].support, site["value"]
    try:
        transform = biject_to(support)
        return transform(value.new_zeros(transform.inverse_shape(value.shape)))
    except NotImplementedError:  # of discrete sites, and of supports that have no such map
        pass
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.one_hot:
        return torch.zeros_like(value).index_fill(
            -1, torch.zeros((), dtype=torch.long, device=value.device), 1
        )
    if isinstance(support, constraints.multinomial):
        count = torch.as_tensor(support.upper_bound, device=value.device)
        first = torch.zeros_like(value).index_fill(
            -1, torch.zeros((), dtype=torch.long, device=value.device), 1
        )
        return first * count.reshape(*count.shape, *[1] * (count.dim() > 0)).to(value.dtype)
    return torch.zeros_like(value) + getattr(support, "lower_bound", 0)


def _of_events(mask: Tensor, site: Site) -> Tensor:
    """A mask of a batch shape in a shape that broadcasts with values."""
    return mask.reshape((*mask.shape, *[1] * site["fn"].event_dim))
