"""The ELBO with a weight β on the KL, and free bits."""

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
from pyroae.programs.paired_traces import Traces
from pyroae.programs.sites import Site, same_scale


@OBJECTIVES.register("beta-elbo")
class BetaELBO(ObjectiveBase):
    """The β-ELBO, optionally with free bits.

        F = Σ_n (1/K) Σ_k log p(x_n|z_kn) − β Σ_n KL(q(z|x_n) ‖ p(z))
        with free bits λ:  … − β N Σ_j max(λ, (1/N) Σ_n KL_nj)

    The value is in nats, over all data. The KL is in closed form where one exists, as in
    `AnalyticKL`; β also multiplies factors and observed sites of the guide, as terms of log q. With
    β = 1 and λ = 0 this is AnalyticKL. `bound` raises ProgramError for draws that carry no path
    gradient and, with free bits, for a latent site with different scales in model and guide.

    Args:
        num_particles: K, the number of draws of z per datum.
        beta: The weight β of the KL, at least 0. F is a bound on log p(x) where β is at least 1. It
            may be changed between steps. For KL warm-up, which raises the weight of the KL from 0,
            use the setting `kl_warmup` of `fit` and of the command line.
        free_bits: λ, in nats per latent unit. Below it, a smaller mean KL of a unit over the batch
            does not increase F. Units are the elements of each site in the data plate whose
            distributions are `Independent`; elsewhere a whole site is one unit.

    Raises:
        ConfigError: `beta` or `free_bits` is negative or not finite.

    References:
        Higgins et al. 2017, beta-VAE: Learning Basic Visual Concepts with a Constrained Variational
            Framework.
        Bowman et al. 2016, Generating Sentences from a Continuous Space (KL warm-up).
        Kingma et al. 2016, Improved Variational Inference with Inverse Autoregressive Flow (free
            bits).

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
        """Whether β is 1 and there are no free bits."""
        return self.beta == 1 and self.free_bits == 0

    @property
    def is_elbo(self) -> bool:
        """Whether β is 1 and there are no free bits."""
        return self.is_evidence

    @property
    def is_per_datum(self) -> bool:
        """Whether there are no free bits, which act on the mean over the batch."""
        return self.free_bits == 0

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of latent sites: those whose draws carry a path gradient."""
        return frozenset({"continuous"})

    def estimate(self, traces: Traces) -> Bound:
        """Return the value, in nats, as its own surrogate."""
        check_reparameterized(traces, "beta-elbo")
        rate = sum(self._rate(traces, name, site) for name, site in latents_of(traces))
        value = log_likelihood_of(traces) - self.beta * (rate + log_terms_of(traces))
        return Bound(value, value)

    def _rate(self, traces: Traces, name: str, q: Site) -> Tensor:
        """The KL of one latent site over all data, with free bits."""
        p = traces.model.nodes.get(name)
        if not self.free_bits or p is None or not traces.is_local(q):
            return kl_of(traces, name, q)
        exponent = traces.exponent(q)
        if not same_scale(exponent, traces.exponent(p)):
            raise ProgramError(
                f"free bits take one scale for the latent site '{name}', not one in the model and "
                "one in the guide"
            )
        unit_kl, count = _unit_kl(traces, p, q)
        return traces.scale * exponent * unit_kl.clamp_min(self.free_bits * count).sum()


def _unit_kl(traces: Traces, p: Site, q: Site) -> tuple[Tensor, Tensor]:
    """Σ_n KL_nj of each unit j, `[U]`, mean over particles, and the number of unmasked data."""
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
    unmasked = scale_and_mask(torch.ones_like(kl), mask=mask)
    data_dim = kl.dim() - events + (traces.plate.dim if traces.plate is not None else 0)
    kl, unmasked = (
        (v.mean(0, keepdim=True) if traces.num_particles > 1 else v) for v in (kl, unmasked)
    )
    if traces.plate is None:
        return kl.flatten(), kl.new_ones(())
    return kl.sum(data_dim).flatten(), unmasked.sum(data_dim).max()


def _with_units(distribution: Independent, events: int) -> torch.distributions.Distribution:
    """The distribution with `events` of its event dimensions as batch dimensions."""
    remaining = distribution.reinterpreted_batch_ndims - events
    return Independent(distribution.base_dist, remaining) if remaining else distribution.base_dist
