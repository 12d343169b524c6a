"""Finite supports of discrete sites: the elements of a datum, and their joint values by number."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import TransformedDistribution

from pyroae.programs.sites import base_distribution, is_discrete


@dataclass(frozen=True)
class Elements:
    """The elements of a discrete site of one datum, which all have the same states.

    Attributes:
        name: The name of the site.
        num_states: S, the number of states of an element.
        count: E, the number of elements, those of nested plates and of events included.
    """

    name: str
    num_states: int
    count: int

    @property
    def size(self) -> int:
        """S^E, the number of joint values of the elements."""
        return self.num_states**self.count


def element_of(fn: Any) -> Any:
    """Return the distribution of the elements of a site.

    Args:
        fn: A distribution.

    Returns:
        The innermost distribution; its `variables` where it is a vector of several, as `OneHots`.
    """
    element = base_distribution(fn)
    return getattr(element, "variables", element)


def states_of(fn: Any) -> Tensor | None:
    """List the states of an element of a site.

    Args:
        fn: A distribution, such as a Bernoulli, a categorical, or an event of several.

    Returns:
        The states, shape `[S, *event shape of an element]`; None for a continuous distribution, and
            where the states are not known to be finitely many and the same for all elements.

    >>> import pyro.distributions as dist
    >>> states_of(dist.Bernoulli(torch.zeros(5)).to_event(1)).tolist()
    [0.0, 1.0]
    >>> states_of(dist.Poisson(1.0)) is None
    True
    """
    element = element_of(fn)
    if _is_transformed(fn) or not is_discrete(element):
        return None
    if not getattr(element, "has_enumerate_support", False):
        return None
    try:
        states = element.enumerate_support(expand=False)
    except NotImplementedError:
        return None
    return states.reshape(-1, *element.event_shape)


def elements_of(name: str, fn: Any, num_data: int) -> Elements | None:
    """Count the elements of a site and their states.

    Args:
        name: The name of the site.
        fn: Its distribution.
        num_data: The number of data times the number of particles in its batch shape.

    Returns:
        The elements of one datum; None where `states_of` is None.
    """
    states = states_of(fn)
    if states is None:
        return None
    size = math.prod((*fn.batch_shape, *fn.event_shape)) // math.prod(states.shape[1:])
    return Elements(name, len(states), size // num_data)


def joint_values(parts: tuple[Elements, ...], index: Tensor) -> dict[str, Tensor]:
    """Return the states of all elements in some of their joint values.

    The joint values are numbered from 0; the first element of the first site varies fastest.

    Args:
        parts: The sites.
        index: Numbers of joint values, shape `[P]`.

    Returns:
        By site the number of the state of each element, shape `[P, E]`.

    >>> joint_values((Elements("z", 2, 2),), torch.arange(4))["z"].tolist()
    [[0, 0], [1, 0], [0, 1], [1, 1]]
    """
    values = {}
    for part in parts:
        base = part.num_states ** torch.arange(part.count, device=index.device)
        values[part.name] = index[:, None] // base % part.num_states
        index = index // part.size
    return values


def total_of(parts: tuple[Elements, ...]) -> int:
    """Return the number of joint values of several sites.

    Args:
        parts: The sites.

    Returns:
        The product of their sizes; 1 without sites.
    """
    return math.prod(part.size for part in parts)


def size_words(parts: tuple[Elements, ...]) -> str:
    """Say in words how many joint values sites have, and which sites they are.

    Args:
        parts: The sites, at least one.

    Returns:
        A sentence without its end.

    >>> size_words((Elements("z", 2, 20), Elements("y", 10, 1)))
    "the latent sites 'z' (2^20) and 'y' (10) have 10,485,760 joint values"
    """
    each = [
        f"'{part.name}' ({part.num_states}" + (f"^{part.count})" if part.count > 1 else ")")
        for part in parts
    ]
    sites = f"the latent site {each[0]} has" if len(each) == 1 else ""
    sites = sites or f"the latent sites {', '.join(each[:-1])} and {each[-1]} have"
    return f"{sites} {_count(total_of(parts))} joint values"


def _is_transformed(fn: Any) -> bool:
    """Whether values are transforms of those of the innermost distribution."""
    while hasattr(fn, "base_dist"):
        if isinstance(fn, TransformedDistribution):
            return True
        fn = fn.base_dist
    return False


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**15 else f"{number:.1e}" if number < 10**300 else "too many"
