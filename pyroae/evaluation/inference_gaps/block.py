"""Local fits and expectations for one block of data."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyroae.evaluation.blocks import rows_of
from pyroae.evaluation.importance.streams import WeightStream, is_reliable
from pyroae.evaluation.inference_gaps.estimates import FamilyGaps, PerDatum
from pyroae.evaluation.local import Family, LocalGaussian, fit_local
from pyroae.programs.latents import Latents
from pyroae.programs.sites import Program
from pyroae.programs.traces import run
from pyroae.weights import reduce_log_weights

INFLATION = 1.1
"""Factor on the scale of the full-rank q* where it is the proposal for log p(x)."""


@dataclass(frozen=True)
class Block:
    """The programs and N data of a block, and the size of its fits and expectations.

    Attributes:
        model: The Pyro program p(z) p(x|z).
        guide: The program q(z|x).
        args: Arguments of both, `[N, ...]` each.
        nesting: The number of plate dimensions of the programs.
        num_particles: K, draws per datum for each expectation.
        steps: Largest number of steps of each fit.
    """

    model: Program
    guide: Program
    args: tuple[Tensor, ...]
    nesting: int
    num_particles: int
    steps: int

    def chunks(self) -> list[int]:
        """Divide the draws into runs that fit a processor's cache.

        Returns:
            The number of particles of each run; their sum is K.
        """
        most = max(1, rows_of(self.args) // len(self.args[0]))
        full, rest = divmod(self.num_particles, most)
        return [most] * full + [rest] * (rest > 0)

    def fits(self, families: Sequence[Family]) -> tuple[LocalGaussian, dict[Family, LocalGaussian]]:
        """Fit q* of each family to each datum.

        Args:
            families: Names of families.

        Returns:
            The full-rank fit, and the fit of each family.
        """
        programs, steps = (self.model, self.guide, self.args), self.steps
        full = fit_local(*programs, steps=steps)
        by_family: dict[Family, LocalGaussian] = {}
        for family in families:
            by_family[family] = (
                full
                if family == "full-rank"
                else fit_local(*programs, family=family, steps=steps, start=full)
            )
        return full, by_family

    def guide_weights(self) -> Tensor:
        """Draw from the guide and weigh the draws.

        Returns:
            log w = log p(x, z) − log q(z|x), `[K, N]`, float64, in nats.
        """
        runs = (run(self.model, self.guide, self.args, {}, k, self.nesting) for k in self.chunks())
        return torch.cat([reduce_log_weights(traces).log_weight.double() for traces in runs])

    def local_weights(self, gaussians: Sequence[LocalGaussian]) -> list[Tensor]:
        """Return log w = log p(x, z) − log q(z) under Gaussians that share their noise.

        Args:
            gaussians: Gaussians of the data of the block.

        Returns:
            Log-weights for each Gaussian, `[K, N]`, float64, in nats.
        """
        weights: list[list[Tensor]] = [[] for _ in gaussians]
        latents: dict[int, Latents] = {}
        like = gaussians[0].loc
        for k in self.chunks():
            if k not in latents:
                latents[k] = Latents(self.model, self.guide, self.args, k, self.nesting)
            noise = torch.randn(k, *like.shape, dtype=like.dtype, device=like.device)
            for parts, gaussian in zip(weights, gaussians, strict=True):
                u, log_q = gaussian.draw(k, noise)
                parts.append((latents[k].log_joint(u).total - log_q).double())
        return [torch.cat(parts) for parts in weights]


@dataclass(frozen=True)
class Likelihood:
    """log p(x) of the data of a block.

    Attributes:
        log_px: The estimate.
        influence: w/p̂ − 1 of each draw, `[K, N]`; None where log p(x) was given.
        khat: Pareto k̂ of the weights, `[N]`; None where log p(x) was given.
        reliable: Whether the estimate is reliable, `[N]`, boolean; None where it was given.
    """

    log_px: PerDatum
    influence: Tensor | None = None
    khat: Tensor | None = None
    reliable: Tensor | None = None


@dataclass(frozen=True)
class BlockGaps:
    """The quantities of the data of a block.

    Attributes:
        elbo: L[q] of the guide.
        likelihood: log p(x).
        families: The gaps of each family, by its name.
    """

    elbo: PerDatum
    likelihood: Likelihood
    families: dict[Family, FamilyGaps]


def block_gaps(
    block: Block,
    families: Sequence[Family],
    log_px: PerDatum | None,
    elbo: PerDatum | None = None,
) -> BlockGaps:
    """Compute all quantities of a block.

    Args:
        block: The programs and data.
        families: Names of families.
        log_px: log p(x) of the data of the block; None for importance sampling.
        elbo: L[q] of the guide; None for draws of the guide.

    Returns:
        The quantities of each datum, on the CPU.
    """
    full, fits = block.fits(families)
    proposals = [] if log_px is not None else [full.inflated(INFLATION)]
    weights = block.local_weights([*fits.values(), *proposals])
    if elbo is None:
        elbo = PerDatum.over_draws(block.guide_weights().cpu())
    likelihood = _importance_sampled(weights.pop()) if log_px is None else Likelihood(log_px)
    by_family = {
        name: _family_gaps(fit, log_weight.cpu(), elbo, likelihood)
        for (name, fit), log_weight in zip(fits.items(), weights, strict=True)
    }
    return BlockGaps(elbo, likelihood, by_family)


def _importance_sampled(log_weight: Tensor) -> Likelihood:
    """Estimate log p(x) from log-weights of the proposal, `[K, N]`."""
    num_particles, num_data = log_weight.shape
    stream = WeightStream(num_data, log_weight.device, num_particles)
    stream.add(log_weight)
    log_px = PerDatum(stream.log_px().cpu(), stream.se().cpu())
    influence = ((log_weight - stream.log_px()).exp() - 1).cpu()
    khat = stream.smoothed().khat.cpu()
    draws = torch.full_like(khat, num_particles)
    reliable = is_reliable(khat, stream.ess().cpu(), log_px.se, draws)
    return Likelihood(log_px, influence, khat, reliable)


def _family_gaps(
    fit: LocalGaussian, log_weight: Tensor, elbo: PerDatum, likelihood: Likelihood
) -> FamilyGaps:
    """The gaps of a family, from log-weights `[K, N]` of draws that the proposal shares."""
    best = PerDatum.over_draws(log_weight)
    approximation = likelihood.log_px.minus(best)
    if likelihood.influence is not None:
        paired = PerDatum.over_draws(likelihood.influence - log_weight)
        approximation = PerDatum(approximation.values, paired.se)
    return FamilyGaps(best, approximation, best.minus(elbo), PerDatum(fit.gain, fit.gain_se))
