"""Bernoulli sites of a guide: their logits, and draws in antithetic pairs of particles."""

from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyroae.programs.particles import Stacked, has_particles, is_draw

WRAPPERS = (torch.distributions.Independent, MaskedDistribution, ExpandedDistribution)
"""Distributions whose draws are those of the distribution that they wrap."""


def logits_of(distribution: Any) -> Tensor | None:
    """Return the logits of a Bernoulli distribution.

    Args:
        distribution: A distribution of Pyro or torch, or that of a site in several runs.

    Returns:
        Its logits, of the batch and event shape; None where it is no Bernoulli.

    >>> import pyro.distributions as dist
    >>> logits_of(dist.Bernoulli(torch.full((2,), 0.5)).to_event(1))
    tensor([0., 0.])
    >>> logits_of(dist.Normal(0.0, 1.0)) is None
    True
    """
    shape = distribution.batch_shape + distribution.event_shape
    while isinstance(distribution, WRAPPERS):
        distribution = distribution.base_dist
    if isinstance(distribution, Stacked):
        rows = [logits_of(part) for part in distribution.parts]
        known = [row for row in rows if row is not None]
        return torch.stack(known).reshape(shape) if len(known) == len(rows) else None
    if not isinstance(distribution, torch.distributions.Bernoulli):
        return None
    return distribution.logits.expand(shape)


class AntitheticBits(Messenger):
    """Draw the Bernoulli sites of a guide in antithetic pairs: particles k and k + K/2.

        z_k = 1[u_k > σ(−a)],   z_{k+K/2} = 1[1 − u_k > σ(−a)],   u_k ~ U(0, 1)

    Each z is distributed as the guide says, with the logit a.

    Args:
        num_particles: K, an even number.
    """

    def __init__(self, num_particles: int) -> None:
        super().__init__()
        self.num_pairs = num_particles // 2
        self._uniforms: dict[str, list[Tensor]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if not is_draw(msg) or msg["value"] is not None:
            return
        logits = logits_of(msg["fn"])
        if logits is None:
            return
        below = torch.sigmoid(-logits.detach())
        if has_particles(msg):
            first = torch.rand_like(below[: self.num_pairs])
            self._uniforms[msg["name"]] = [first]
            uniform = torch.cat([first, 1 - first])
        else:
            rows = self._uniforms.setdefault(msg["name"], [])
            run = len(rows)
            uniform = (
                torch.rand_like(below) if run < self.num_pairs else 1 - rows[run - self.num_pairs]
            )
            rows.append(uniform)
        msg["value"] = (uniform > below).to(logits.dtype)

    def uniforms(self, name: str) -> Tensor:
        """Return the uniform draws of a site.

        Args:
            name: The name of a Bernoulli site.

        Returns:
            u of the first particle of each pair, a tensor with K/2 as its first dimension and the
                numbers of the site's value after it.
        """
        rows = self._uniforms[name]
        return rows[0] if len(rows) == 1 else torch.stack(rows[: self.num_pairs])


class SpreadBits(Messenger):
    """Give the Bernoulli sites of a trial run values that differ as much as they can.

    The bits of the first particle are 0, those of the second 1, and those of the others fair coins.
    """

    def __init__(self) -> None:
        super().__init__()
        self._runs: dict[str, int] = {}

    def _pyro_sample(self, msg: Any) -> None:
        logits = logits_of(msg["fn"]) if is_draw(msg) and msg["value"] is None else None
        if logits is None:
            return
        coins = (torch.rand_like(logits) < 0.5).to(logits.dtype)
        if has_particles(msg):
            ends = torch.stack([torch.zeros_like(coins[0]), torch.ones_like(coins[0])])
            coins = torch.cat([ends, coins[2:]])
        else:
            run = self._runs[msg["name"]] = self._runs.get(msg["name"], -1) + 1
            coins = torch.full_like(coins, run) if run < 2 else coins
        msg["value"] = coins
