"""Draws of the Bernoulli sites of a guide in antithetic pairs of particles."""

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyroae.programs.discrete_variables import binary_logits
from pyroae.programs.particles import has_particles, is_draw


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
        logits = binary_logits(msg["fn"])
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
