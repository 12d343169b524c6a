"""Stratified draws: equally many from each component of the mixture that a guide draws from."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import MixtureOfDiagNormals
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyroae.errors import ProgramError
from pyroae.objectives.scores import has_path
from pyroae.programs.paired_traces import Traces
from pyroae.programs.particles import has_particles, is_draw
from pyroae.programs.sites import base_distribution, unwrapped


def mixture_in(distribution: Any) -> tuple[Tensor, Any] | None:
    """Return the shares and the components of a mixture with C components.

    Args:
        distribution: A distribution of Pyro or torch.

    Returns:
        log π_c, shape `batch_shape + [C]`, and the components as a distribution of this batch
            shape; None where the distribution is no mixture.

    >>> parts = dist.Normal(torch.zeros(2), torch.ones(2))
    >>> mixture = dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(2)), parts)
    >>> mixture_in(mixture)[0].exp()
    tensor([0.5000, 0.5000])
    """
    distribution = unwrapped(distribution)
    if isinstance(distribution, torch.distributions.MixtureSameFamily):
        shares = distribution.mixture_distribution.logits
        return shares.log_softmax(-1), distribution.component_distribution
    if isinstance(distribution, MixtureOfDiagNormals):
        parts = dist.Normal(distribution.locs, distribution.coord_scale).to_event(1)
        return distribution.component_logits.log_softmax(-1), parts
    return None


class Strata(Messenger):
    """Draw T = K/C values from each of the C components of the guide's mixture site.

    Particle k has the component c = ⌊k/T⌋, from which its value is reparameterized. The density of
    the site stays that of the whole mixture.

    Args:
        num_particles: K, a multiple of C.
        objective: The name of the objective, for messages.
    """

    def __init__(self, num_particles: int, objective: str) -> None:
        super().__init__()
        self.num_particles, self.objective = num_particles, objective
        self._site: str | None = None
        self._components = 1
        self._log_shares: list[Tensor] = []

    def _pyro_sample(self, msg: Any) -> None:
        mixture = mixture_in(msg["fn"]) if is_draw(msg) and msg["value"] is None else None
        if mixture is None:
            return
        log_shares, parts = mixture
        self._check(msg["name"], log_shares.shape[-1], parts)
        dim = -1 - len(parts.event_shape)
        draws = parts.rsample()
        if has_particles(msg):
            msg["value"] = self._diagonal(draws, dim)
            self._log_shares = [self._diagonal(log_shares, -1)]
        else:
            component = len(self._log_shares) * self._components // self.num_particles
            msg["value"] = draws.select(dim, component)
            self._log_shares.append(log_shares.select(-1, component))

    def _diagonal(self, values: Tensor, dim: int) -> Tensor:
        """Of values for all particles and components, those of each particle's own component."""
        strata = values.unflatten(0, (self._components, -1))
        return torch.cat([stratum.select(dim, c) for c, stratum in enumerate(strata)])

    def _check(self, name: str, components: int, parts: Any) -> None:
        """Refuse a second mixture, a K that C does not divide, and draws without a path."""
        if self._site not in (None, name):
            raise ProgramError(
                f"{self.objective} draws equally often from each component of one mixture; the "
                f"guide has two, the sites '{self._site}' and '{name}'"
            )
        if self.num_particles % components:
            raise ProgramError(
                f"{self.objective} draws equally often from each of the {components} components of "
                f"the guide's site '{name}': num_particles must be a multiple of {components}, not "
                f"{self.num_particles}"
            )
        if not has_path(parts):
            raise ProgramError(
                f"{self.objective} needs components whose draws carry a path gradient; those of "
                f"the guide's site '{name}' ({type(base_distribution(parts)).__name__}) carry none"
            )
        self._site, self._components = name, components

    def log_ratio(self, traces: Traces) -> Tensor:
        """Return the log-ratio of a component's share under the mixture and under the strata.

            log (C π_c(k))

        Args:
            traces: The run under this handler.

        Returns:
            The log-ratios in nats, shape `[K, N]`.

        Raises:
            ProgramError: The guide has no mixture, several values of it per datum, or another draw
                without a path gradient; the message names the site.
        """
        self._check_draws(traces)
        assert self._site is not None
        site, rows = traces.guide.nodes[self._site], self._log_shares
        log_shares = rows[0] if len(rows) == 1 else torch.stack(rows)
        num_data = 1 if traces.plate is None else traces.plate.size
        if not traces.is_local(site) or log_shares.numel() != self.num_particles * num_data:
            raise ProgramError(
                f"{self.objective} draws one value per datum from a mixture; the guide's site "
                f"'{self._site}' is not in the data plate, or holds several mixtures per datum"
            )
        return log_shares.reshape(self.num_particles, num_data) + math.log(self._components)

    def _check_draws(self, traces: Traces) -> None:
        """Refuse a guide without a mixture, and other draws without a path gradient."""
        draws = {
            name: f"'{name}' ({type(base_distribution(site['fn'])).__name__})"
            for name, site in traces.draws()
        }
        if self._site is None:
            raise ProgramError(
                f"{self.objective} draws equally often from each component of a mixture, and the "
                f"guide has none, only {', '.join(draws.values()) or 'Deltas'}: use iwae or "
                "trace-elbo"
            )
        for name, site in traces.draws():
            if name != self._site and not has_path(site["fn"]):
                raise ProgramError(
                    f"{self.objective} needs a path gradient at every draw beside the mixture; "
                    f"the guide's site {draws[name]} has none: use iwae"
                )
