"""A Pyro model and guide -> log-weights, one for each particle and datum: the only source of log-weights.

    log w_kn = log p(x_n | z_kn) + log p(z_kn) − log q(z_kn | x_n),   z_kn ~ q(z | x_n)

Shapes: K particles, N data. In nats. Nothing is summed over data here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyroae.programs.sites import Program
from pyroae.programs.traces import Traces, log_density, prior_of, run, terms_of

__all__ = ["LogWeights", "log_weights", "prior_of", "reduce_log_weights"]


@dataclass(frozen=True)
class LogWeights:
    """Log-weights and their parts, each `[K, N]`, in nats.

    scale: of each datum's bound, a number or `[N]`: the plate's subsampling scale N_total / N and any `poutine.scale` common
    to all sites of the plate. It is not in the weights: a bound is taken a datum first and scaled afterwards. A scale on
    single sites stays in the weight as an exponent. log_global: `[K]`, the terms of sites outside the plate.
    log_post: log q(z|x) with every term of the guide. log_terms: the part of it that is the density of no draw: factors,
    observed sites and the log-density of Deltas; None where there are none. densities: the log-density of each draw of the
    guide by name, of its site's batch shape, without scale and mask.
    """

    log_lik: Tensor
    log_prior: Tensor
    log_post: Tensor
    scale: Tensor | float
    log_global: Tensor
    log_terms: Tensor | None = None
    densities: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def log_weight(self) -> Tensor:
        """log p(x|z) + log p(z) − log q(z|x), `[K, N]`."""
        return self.log_lik + self.log_prior - self.log_post

    @property
    def log_draws(self) -> Tensor:
        """The part of log_post that is the density of the draws, `[K, N]`."""
        return self.log_post if self.log_terms is None else self.log_post - self.log_terms

    def total(self, per_datum: Tensor) -> Tensor:
        """The value over all data of a bound taken a datum `[N]`: scaled, summed, with the mean of the global terms."""
        return (self.scale * per_datum).sum() + self.log_global.mean()


def reduce_log_weights(traces: Traces) -> LogWeights:
    """The log-weights of a run; those of an empty program are 0, for one datum."""
    local: dict[str, list[Tensor]] = {
        "log_lik": [],
        "log_prior": [],
        "log_draws": [],
        "log_terms": [],
    }
    densities: dict[str, Tensor] = {}
    outside: list[Tensor] = []
    for part, sites, sign in (
        ("log_lik", traces.sites(traces.model, observed=True), 1),
        ("log_prior", traces.sites(traces.model, observed=False), 1),
        ("log_draws", traces.draws(), -1),
        ("log_terms", terms_of(traces), -1),
    ):
        for name, site in sites:
            density = log_density(name, site)
            if part == "log_draws":
                densities[name] = density
            term = traces.reduce(site, density)
            if traces.is_local(site):
                local[part].append(term)
            else:
                outside.append(sign * term)
    like = next((term for terms in [*local.values(), outside] for term in terms), torch.zeros(()))
    num_data = next((terms[0].shape[1] for terms in local.values() if terms), 1)
    zeros = like.new_zeros(traces.num_particles, num_data)
    lik, prior, post = (
        _total(local[part], zeros) for part in ("log_lik", "log_prior", "log_draws")
    )
    terms = _total(local["log_terms"], zeros) if local["log_terms"] else None
    return LogWeights(
        lik,
        prior,
        post if terms is None else post + terms,
        traces.scale,
        sum(outside, zeros.new_zeros(traces.num_particles)),
        terms,
        densities,
    )


def _total(terms: list[Tensor], zeros: Tensor) -> Tensor:
    return sum(terms[1:], terms[0]) if terms else zeros


def log_weights(
    model: Program, guide: Program, *args: Any, num_particles: int = 1, **kwargs: Any
) -> LogWeights:
    """Draw `num_particles` values of z from the guide for each datum and weigh them: tensors `[K, N]` in nats.

    model, guide: any Pyro programs with the same latent sites and one data plate; `args` and `kwargs` are theirs.
    Raises ProgramError, naming the site, where they do not match.

    >>> from pyroae import zoo
    >>> system = zoo.ppca(2, latent=1, exact=True)
    >>> weights = log_weights(system.model, system.guide, torch.zeros(3, 2), num_particles=5).log_weight
    >>> weights.shape, bool(weights.std(0).max() < 1e-5)  # the exact posterior: constant log-weights
    (torch.Size([5, 3]), True)
    """
    return reduce_log_weights(run(model, guide, args, kwargs, num_particles))
