"""Log-weights of a Pyro model and guide, one per particle and datum.

    log w_kn = log p(x_n | z_kn) + log p(z_kn) − log q(z_kn | x_n),   z_kn ~ q(z | x_n)

Shapes: K particles, N data. In nats. Every objective and every evaluator takes its log-weights from
this module. Nothing is summed over data here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyroae.programs.paired_traces import Traces, log_density, terms_of
from pyroae.programs.sites import Program
from pyroae.programs.traces import prior_of, run
from pyroae.runtime.short_repr import Shown

__all__ = ["LogWeights", "log_weights", "prior_of", "reduce_log_weights"]


@dataclass(frozen=True, repr=False)
class LogWeights(Shown):
    """Log-weights and their parts, in nats.

    Attributes:
        log_lik: log p(x|z), shape `[K, N]`.
        log_prior: log p(z), shape `[K, N]`.
        log_post: log q(z|x) with every term of the guide, shape `[K, N]`.
        scale: The scale of each datum's bound, a number or shape `[N]`: the plate's subsampling
            scale N_total / N times any `poutine.scale` common to all sites of the plate. It is not
            part of the weights: the bound of each datum is computed first and scaled afterwards. A
            scale on single sites stays in the weight as an exponent.
        log_global: The terms of sites outside the plate, shape `[K]`.
        log_terms: The part of `log_post` that is not a density of draws (factors, observed sites
            and the log-density of Deltas), shape `[K, N]`; None where the guide has no such terms.
        densities: The log-density of each draw of the guide by site name, of the site's batch
            shape, without scale and mask.
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
        """The log-weight log p(x|z) + log p(z) − log q(z|x), in nats, shape `[K, N]`."""
        return self.log_lik + self.log_prior - self.log_post

    @property
    def log_draws(self) -> Tensor:
        """The part of `log_post` that is the density of the draws, in nats, shape `[K, N]`."""
        return self.log_post if self.log_terms is None else self.log_post - self.log_terms

    def total(self, per_datum: Tensor) -> Tensor:
        """Return the value over all data of a bound per datum.

            Σ_n scale_n F_n + (1/K) Σ_k log_global_k

        Args:
            per_datum: The bound F_n of each datum, in nats, shape `[N]`.

        Returns:
            The bound over all data, in nats, shape `[]`.
        """
        return (self.scale * per_datum).sum() + self.log_global.mean()


def reduce_log_weights(traces: Traces) -> LogWeights:
    """Return the log-weights of one run of guide and model.

    Args:
        traces: The traces of guide and model, with K particles.

    Returns:
        The log-weights and their parts, shape `[K, N]`, in nats; zeros for one datum where the
            program has no sites.

    Raises:
        ProgramError: The log-density of a site cannot be computed; the message names the site.

    >>> from pyroae import zoo
    >>> system = zoo.ppca(2, latent=1)
    >>> traces = run(system.model, system.guide, (torch.zeros(3, 2),), {}, num_particles=5)
    >>> reduce_log_weights(traces).log_weight.shape
    torch.Size([5, 3])
    """
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
    """The sum of the terms; `zeros` where there are none."""
    return sum(terms[1:], terms[0]) if terms else zeros


def log_weights(
    model: Program, guide: Program, *args: Any, num_particles: int = 1, **kwargs: Any
) -> LogWeights:
    """Draw K values of z from the guide for each datum and return their log-weights.

    Args:
        model: A Pyro program p(z) p(x|z) with one data plate.
        guide: A Pyro program q(z|x) with the same latent sites and the same plate.
        *args: Positional arguments of both programs.
        num_particles: K, the number of draws of z per datum.
        **kwargs: Keyword arguments of both programs.

    Returns:
        The log-weights and their parts, shape `[K, N]`, in nats.

    Raises:
        ProgramError: Model and guide do not match; the message names the site.

    >>> from pyroae import zoo
    >>> system, x = zoo.ppca(2, latent=1, exact=True), torch.zeros(3, 2)
    >>> weights = log_weights(system.model, system.guide, x, num_particles=5).log_weight
    >>> weights.shape, bool(weights.std(0).max() < 1e-5)  # exact posterior: constant log-weights
    (torch.Size([5, 3]), True)
    """
    return reduce_log_weights(run(model, guide, args, kwargs, num_particles))
