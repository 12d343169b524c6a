"""All joint values of the discrete latents of a datum, in the shapes of a program."""

import math

import torch
from torch import Tensor

from pyroae.errors import UndefinedLikelihoodError
from pyroae.programs.masks import mask_of
from pyroae.programs.model_sums import Summed
from pyroae.programs.paired_traces import Traces, log_density
from pyroae.programs.sites import Site, base_distribution, is_discrete
from pyroae.programs.supports import (
    Elements,
    element_of,
    elements_of,
    joint_values,
    size_words,
    states_of,
    total_of,
)


class JointValues:
    """All joint values of the latent sites of a datum, numbered from 0.

    Args:
        traces: A run of model and guide with one datum.
        limit: The largest number of joint values.

    Attributes:
        total: The number of joint values; 1 where all latent sites are summed out of the model.

    Raises:
        UndefinedLikelihoodError: For a site outside the data plate, or without finitely many
            values; for more than `limit` joint values.
    """

    def __init__(self, traces: Traces, limit: int) -> None:
        sites = list(traces.sites(traces.model, observed=False))
        for name, site in sites:
            if not traces.is_local(site):
                raise UndefinedLikelihoodError(
                    f"the latent site '{name}' lies outside the data plate: single data have no "
                    "log p(x)"
                )
        observed = traces.sites(traces.model, observed=True)
        if not sites and not any(isinstance(site["fn"], Summed) for _, site in observed):
            raise UndefinedLikelihoodError("the program has no latent site")
        self._parts = tuple(_elements(name, site) for name, site in sites)
        self._states = {name: _states(site) for name, site in sites}
        self.total = total_of(self._parts)
        if self.total > limit:
            raise UndefinedLikelihoodError(
                f"{size_words(self._parts)}, more than the {limit:,} that are summed over: "
                "set a higher limit, or use log_likelihood"
            )

    def at(self, traces: Traces, index: Tensor) -> dict[str, Tensor]:
        """Return the joint values of some numbers, one for each particle, the same for all data.

        Args:
            traces: A run with K particles.
            index: Numbers of joint values, shape `[K]`; those past the end give the last one.

        Returns:
            Values by site, in the shapes of the program.
        """
        values = {}
        for name, digits in joint_values(self._parts, index.clamp(max=self.total - 1)).items():
            states = self._states[name]
            values[name] = _as_in_program(traces, name, states[digits.to(states.device)])
        return values

    def log_masked(self, traces: Traces) -> Tensor | float:
        """Return the logarithm of the number of values of the masked elements of each datum, `[N]`.

        Args:
            traces: A run with one particle.
        """
        total: Tensor | float = 0.0
        for name, states in self._states.items():
            site = traces.model.nodes[name]
            mask = mask_of(name, site)
            if mask is not None:
                events = site["fn"].event_shape.numel() // states[0].numel()
                term = (~mask).double() * events * math.log(len(states))
                total = total + traces.summed(site, term)[0]
        return total


def log_densities(traces: Traces) -> tuple[Tensor, Tensor]:
    """Compute log p(z) and log p(x, z).

    Args:
        traces: A run of model and guide at joint values.

    Returns:
        Both in nats, `[K, N]`, float64; both are -inf where p(z) is zero.
    """
    log_prior, log_lik = (
        sum(
            traces.reduce(site, log_density(name, site)).double()
            for name, site in traces.sites(traces.model, observed=observed)
            if traces.is_local(site)
        )
        for observed in (False, True)
    )
    like = log_prior if isinstance(log_prior, Tensor) else torch.as_tensor(log_lik)
    log_prior = torch.zeros_like(like, dtype=torch.float64) + log_prior
    return log_prior, torch.where(log_prior == -math.inf, log_prior, log_prior + log_lik)


def _elements(name: str, site: Site) -> Elements:
    """The elements of a site in a run with one datum."""
    fn = site["fn"]
    kind = type(element_of(fn)).__name__
    if not is_discrete(element_of(fn)):
        raise UndefinedLikelihoodError(
            f"the latent site '{name}' is continuous ({kind}): a sum over all values needs latents "
            "that are all discrete; use log_likelihood, or mark the discrete sites for "
            "enumeration and leave them out of the guide"
        )
    part = elements_of(name, fn, 1)
    if part is None or isinstance(base_distribution(fn), Summed):
        raise UndefinedLikelihoodError(
            f"the latent site '{name}' does not have finitely many values that are known ({kind}): "
            "a sum over all values needs Bernoulli, Categorical or OneHotCategorical sites"
        )
    return part


def _states(site: Site) -> Tensor:
    states = states_of(site["fn"])
    assert states is not None
    return states.to(site["value"].dtype)


def _as_in_program(traces: Traces, name: str, elements: Tensor) -> Tensor:
    """Elements `[K, E, ...]` as the value of a site, the same for all data."""
    site = traces.model.nodes[name]
    shape = list(site["value"].shape)
    one_datum = list(shape)
    if traces.plate is not None:
        one_datum[len(shape) - site["fn"].event_dim + traces.plate.dim] = 1
    return elements.reshape(one_datum).expand(shape)
