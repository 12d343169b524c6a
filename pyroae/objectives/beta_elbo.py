"""The ELBO with a weight on its KL: β, warm-up, free bits."""

import math

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent

from pyroae.errors import ConfigError, ProgramError
from pyroae.objectives.analytic_kl import (
    closed_kl,
    kl_of,
    latents_of,
    log_likelihood_of,
    log_terms_of,
)
from pyroae.objectives.base import OBJECTIVES, Bound, ObjectiveBase, check_reparameterized
from pyroae.programs.sites import Site, same_scale
from pyroae.programs.traces import Traces


@OBJECTIVES.register("beta-elbo")
class BetaELBO(ObjectiveBase):
    """The β-ELBO, with free bits where they are asked for.

        F = Σ_n (1/K) Σ_k log p(x_n|z_kn) − β Σ_n KL(q(z|x_n) ‖ p(z))
        with free bits λ:  … − β N Σ_j max(λ, (1/N) Σ_n KL_nj)

    In nats. beta: at least 0; a bound on log p(x) where it is at least 1 (Higgins et al. 2017). It may be changed between
    steps; `fit` and the command line raise it from 0 with `kl_warmup` (Bowman et al. 2016). free_bits: λ in nats a latent
    unit, below which the batch's mean KL of unit j costs nothing more (Kingma et al. 2016); units are the elements of each
    site in the data plate whose distributions are `Independent`, and a whole site elsewhere.
    The KL is in closed form where there is one, as in `AnalyticKL`; β weighs factors and observed sites of the guide too, as
    terms of log q. With β = 1 and λ = 0 this is AnalyticKL.
    Raises ConfigError for beta or free_bits below 0 or not finite; ProgramError for draws that carry no gradient, and, with
    free bits, for a latent site with different scales in model and guide.

    >>> from pyroae import zoo
    >>> system, x = zoo.vae(4, latent=2), torch.ones(3, 4)
    >>> BetaELBO(beta=4.0).loss(system.model, system.guide, x) > 0
    True
    """

    def __init__(self, num_particles: int = 1, beta: float = 1.0, free_bits: float = 0.0) -> None:
        super().__init__(num_particles)
        for name, value in (("beta", beta), ("free_bits", free_bits)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name} of a β-ELBO must be at least 0 and finite, not {value}")
        self.beta, self.free_bits = beta, free_bits

    @property
    def is_evidence(self) -> bool:
        return self.beta == 1 and self.free_bits == 0

    @property
    def is_elbo(self) -> bool:
        return self.is_evidence

    @property
    def is_per_datum(self) -> bool:
        return self.free_bits == 0

    def estimate(self, traces: Traces) -> Bound:
        check_reparameterized(traces, "beta-elbo")
        rate = sum(self._rate(traces, name, site) for name, site in latents_of(traces))
        value = log_likelihood_of(traces) - self.beta * (rate + log_terms_of(traces))
        return Bound(value, value)

    def _rate(self, traces: Traces, name: str, q: Site) -> Tensor:
        p = traces.model.nodes.get(name)
        if not self.free_bits or p is None or not traces.is_local(q):
            return kl_of(traces, name, q)
        exponent = traces.exponent(q)
        if not same_scale(exponent, traces.exponent(p)):
            raise ProgramError(
                f"free bits take one scale for the latent site '{name}', not one in the model and one in the guide"
            )
        of_units, count = _unit_kl(traces, p, q)
        return traces.scale * exponent * of_units.clamp_min(self.free_bits * count).sum()


def _unit_kl(traces: Traces, p: Site, q: Site) -> tuple[Tensor, Tensor]:
    """Σ_n KL_nj of each unit j, `[U]`, mean over particles; and the number of data, those left out by a mask not counted."""
    one, other, value = q["fn"], p["fn"], q["value"]
    events = 0
    if (
        isinstance(one, Independent)
        and isinstance(other, Independent)
        and len(one.event_shape) == len(other.event_shape)
    ):
        events = min(one.reinterpreted_batch_ndims, other.reinterpreted_batch_ndims)
        one, other = (_with_units(fn, events) for fn in (one, other))
    try:
        kl = closed_kl(one, other)
    except NotImplementedError:
        kl = one.log_prob(value) - other.log_prob(value)
    mask = q["mask"]
    if isinstance(mask, Tensor):
        mask = mask.reshape(*mask.shape, *[1] * events)
    kl = scale_and_mask(kl, mask=mask)
    kept = scale_and_mask(torch.ones_like(kl), mask=mask)
    data_dim = kl.dim() - events + (traces.plate.dim if traces.plate is not None else 0)
    kl, kept = ((v.mean(0, keepdim=True) if traces.num_particles > 1 else v) for v in (kl, kept))
    if traces.plate is None:
        return kl.flatten(), kl.new_ones(())
    return kl.sum(data_dim).flatten(), kept.sum(data_dim).max()


def _with_units(distribution: Independent, events: int) -> torch.distributions.Distribution:
    """The distribution with `events` of its event dimensions as batch dimensions."""
    left = distribution.reinterpreted_batch_ndims - events
    return Independent(distribution.base_dist, left) if left else distribution.base_dist
