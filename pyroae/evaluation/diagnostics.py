"""Where the bound goes: distortion, rate, the KL of each latent unit, and how many units are used."""

from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from pyroae.arguments import structure_of
from pyroae.discrete import OneHots
from pyroae.evaluation.blocks import Data, blocks
from pyroae.sites import Site
from pyroae.weights import Program, Traces, evaluating, fork_random, reduce_log_weights, run


@dataclass(frozen=True)
class Diagnostics:
    """Parts of the bound, float64, in nats.

    distortion: `[N]`, −E_q log p(x|z). rate: `[N]`, E_q[log q(z|x) − log p(z)]; for a Delta guide −log p(z), the MAP
    penalty. kl_per_unit: `[m]`, mean over the data of each unit's KL(q ‖ p), a unit being one categorical variable of a
    one-hot z; nan where q is a Delta or has no factors.
    activity: `[m]`, Var_x(E_q[z_j|x]), summed over the states of a categorical variable.
    """

    distortion: Tensor
    rate: Tensor
    kl_per_unit: Tensor
    activity: Tensor
    threshold: float

    @property
    def nelbo(self) -> Tensor:
        """Distortion + rate: the negative ELBO of each datum, `[N]`."""
        return self.distortion + self.rate

    @property
    def active_units(self) -> int:
        """Units with Var_x(E_q[z_j|x]) above the threshold (Burda 2016)."""
        return int((self.activity > self.threshold).sum())


def diagnose(
    model: Program,
    guide: Program,
    x: Data,
    *,
    num_particles: int = 10,
    threshold: float = 0.01,
    seed: int | None = None,
    **kwargs: Any,
) -> Diagnostics:
    """Rate, distortion, KL per latent unit and active units on x `[N, ...]`, or on the arguments as of `log_likelihood`.

    Distortion and rate are means over `num_particles` draws (Alemi 2018); the KL per unit is in closed form where torch
    knows one, else a mean over draws. Units of several latent sites stand one after the other. seed: of the draws.

    >>> from pyroae import zoo
    >>> system = zoo.vae(4, latent=2)
    >>> found = diagnose(system.model, system.guide, torch.zeros(3, 4))
    >>> found.kl_per_unit.shape, found.active_units  # data that are all alike activate no unit
    (torch.Size([2]), 0)
    """
    structure = structure_of(x, kwargs, model)
    model, guide, args = structure(model), structure(guide), structure.tensors
    rows = max(1, 2**21 // max(256, args[0][0].numel()) // num_particles)
    distortion, rate, units, means = [], [], [], []
    with evaluating(model, guide), fork_random(args[0].device, seed):
        for part in blocks(args, rows):
            traces = run(model, guide, part, {}, num_particles)
            weights = reduce_log_weights(traces)
            distortion.append(-weights.log_lik.double().mean(0))
            rate.append((weights.log_post - weights.log_prior).double().mean(0))
            sites = [(traces.model.nodes[name], q) for name, q in _latents(traces)]
            units.append(torch.cat([_unit_kl(p, q, len(part[0])) for p, q in sites], -1).sum(0))
            means.append([_by_datum(q["fn"].mean.double(), len(part[0])) for _, q in sites])
    activity = [torch.cat(column).var(0, correction=0) for column in zip(*means, strict=True)]
    units_of = [_per_variable(q["fn"], values) for (_, q), values in zip(sites, activity, strict=True)]
    return Diagnostics(
        torch.cat(distortion).cpu(),
        torch.cat(rate).cpu(),
        (torch.stack(units).sum(0) / len(args[0])).cpu(),
        torch.cat(units_of).cpu(),
        threshold,
    )


def _latents(traces: Traces) -> list[tuple[str, Site]]:
    known = dict(traces.sites(traces.model, observed=False))
    return [(name, site) for name, site in traces.sites(traces.guide, observed=False) if name in known]


def _unit_kl(p: Site, q: Site, num_data: int) -> Tensor:
    """KL of each unit, mean over particles, `[N, units]`; nan where it is not defined unit by unit."""
    one, other = q["fn"], p["fn"]
    if isinstance(one, OneHots) and isinstance(other, OneHots):
        return _by_datum(kl_divergence(one.variables, other.variables).double(), num_data)
    factors = isinstance(one, Independent) and isinstance(other, Independent)
    if not factors or isinstance(one.base_dist, Delta):
        return _by_datum(torch.full_like(q["value"], torch.nan, dtype=torch.float64), num_data)
    try:
        kl = kl_divergence(one.base_dist, other.base_dist)
    except NotImplementedError:
        kl = one.base_dist.log_prob(q["value"]) - other.base_dist.log_prob(q["value"])
    return _by_datum(kl.double(), num_data)


def _per_variable(distribution: object, activity: Tensor) -> Tensor:
    """The activity of each element of z, or of each categorical variable of a one-hot z."""
    return activity.unflatten(0, distribution.logits.shape[-2:]).sum(-1) if isinstance(distribution, OneHots) else activity


def _by_datum(values: Tensor, num_data: int) -> Tensor:
    """`[K, ..., N, units]` as `[N, units]`, mean over particles."""
    return values.reshape(-1, num_data, values.shape[-1]).mean(0)
