"""Draws of p(z|x) from annealed chains: resampling by weight, then Hamiltonian moves at β = 1.

Shapes: C chains, S draws of each chain, N data, D elements of u per datum.
"""

import math
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from pyroae.config import AISSettings
from pyroae.errors import ConfigError
from pyroae.evaluation.annealing import hmc
from pyroae.programs.annealing_path import Point
from pyroae.programs.datum_values import by_datum
from pyroae.programs.latents import Latents
from pyroae.programs.masks import where_unmasked
from pyroae.programs.paired_traces import Traces
from pyroae.runtime.memory import machine_memory


def systematic(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Resample the chains of each datum in proportion to their weights.

        a_c = min {i : W_1 + … + W_i > (c − 1 + v) / C},   W = w / Σ w,   v ~ U(0, 1)

    Chain i has ⌊C W_i⌋ or ⌈C W_i⌉ successors, and C W_i in expectation.

    Args:
        log_weights: Log-weights, `[C, N]`, in nats.
        uniform: v of each datum, `[N]`, in [0, 1).

    Returns:
        The index of the ancestor of each chain, `[C, N]`, int64, ascending along the chains.

    References:
        Carpenter, Clifford & Fearnhead 1999, Improved particle filter for nonlinear problems.

    >>> log_weights = torch.tensor([0.5, 0.0, 0.25, 0.25]).log()[:, None]
    >>> systematic(log_weights, torch.tensor([0.3])).flatten().tolist()
    [0, 0, 2, 3]
    """
    count = len(log_weights)
    total = log_weights.double().softmax(0).cumsum(0)
    share = (total / total[-1]).T.contiguous()
    at = (torch.arange(count, device=uniform.device) + uniform.double()[:, None]) / count
    below_one = at.clamp_max(1 - torch.finfo(at.dtype).eps)  # the sum may have been rounded up
    return torch.searchsorted(share, below_one, right=True).clamp_max(count - 1).T


@dataclass
class Draws:
    """Chains that move at β = 1, and their positions that are kept.

    Attributes:
        point: Current positions of the chains.
        kept: Positions after every `thinning` moves, `[S, C, N, D]`.
        accept: Sum over the moves of the mean Pr(accept) over chains, `[1, N]`, float64.
        done: The number of moves so far.
    """

    point: Point
    kept: Tensor
    accept: Tensor
    done: int = 0

    @classmethod
    def of(cls, chains: hmc.Chains, num_draws: int) -> Self:
        """Resample chains at the end of a path by their weights.

        Args:
            chains: The chains, whose current distribution is the posterior.
            num_draws: S.

        Returns:
            Chains of equal weight that have not moved yet.
        """
        index = systematic(chains.log_weight, torch.rand_like(chains.log_weight[0]))
        values = (getattr(chains.point, field.name) for field in fields(Point))
        point = Point(
            *(v.gather(0, index if v.dim() == 2 else index[..., None].expand_as(v)) for v in values)
        )
        kept = point.u.new_zeros(num_draws, *point.u.shape)
        return cls(point, kept, torch.zeros_like(chains.log_weight[:1]))

    def move(self, mover: hmc.Mover, count: int, step_size: Tensor, thinning: int) -> None:
        """Run transitions, and keep the positions if the last one is the last of a draw.

        Args:
            mover: Runs them.
            count: The number of transitions.
            step_size: Leapfrog step size per datum, `[N]`, which does not change.
            thinning: Transitions of each draw.
        """
        weight = torch.zeros_like(self.point.log_start, dtype=torch.float64)
        found = mover.move(self.point, weight, step_size.log(), hmc.Moves.at(1.0, count))
        self.point = found.point
        self.accept += found.accept
        self.done += count
        if self.done % thinning == 0:
            self.kept[self.done // thinning - 1] = self.point.u


def run_draws(
    mover: hmc.Mover,
    draws: Draws,
    settings: AISSettings,
    step_size: Tensor,
    after_move: hmc.AfterMove,
) -> None:
    """Run all moves that have not been made.

    Args:
        mover: Runs the transitions.
        draws: The chains, which are updated in place.
        settings: Thinning and the number of draws.
        step_size: Leapfrog step size per datum, `[N]`.
        after_move: Called after transitions.
    """
    while draws.done < settings.posterior_moves:
        count = min(mover.longest, settings.thinning - draws.done % settings.thinning)
        draws.move(mover, count, step_size, settings.thinning)
        after_move(count)


def site_values(latents: Latents, kept: Tensor) -> dict[str, Tensor]:
    """Return draws of u as values of the latent sites.

    Args:
        latents: The latent sites of the block.
        kept: Draws of u, `[S, C, N, D]`.

    Returns:
        Constrained values by site, `[C, S, N, *nested plates, *event]`; NaN for elements that a
        mask of the model leaves out, which have no posterior.
    """
    traces: Traces = latents._traces
    sites = dict(traces.sites(traces.model, observed=False))
    found: dict[str, list[Tensor]] = {name: [] for name in sites}
    for u in kept:
        for name, value in latents.values(u).items():
            nothing = torch.full_like(value, math.nan)
            kept_value = where_unmasked(name, sites[name], value, nothing)
            found[name].append(by_datum(traces, {**sites[name], "value": kept_value})[0])
    return {name: torch.stack(values, 1) for name, values in found.items()}


def refuse_too_large(traces: Traces, num_data: int, settings: AISSettings) -> None:
    """Refuse more draws than the memory of the machine holds.

    Args:
        traces: A run of the programs for one datum.
        num_data: N.
        settings: The numbers of chains and draws.

    Raises:
        ConfigError: With the size of all draws.
    """
    values = [site["value"] for _, site in traces.sites(traces.model, observed=False)]
    num_draws = settings.num_chains * settings.posterior_draws
    size = num_draws * num_data * sum(v.numel() * v.element_size() for v in values)
    if size > machine_memory():
        raise ConfigError(
            f"posterior_draws={settings.posterior_draws:,}: {num_draws:,} draws of each of "
            f"{num_data:,} data take {size / 2**30:,.1f} GiB, more than the "
            f"{machine_memory() / 2**30:,.0f} GiB of this machine: use fewer draws, or fewer data"
        )
