"""The inference gap of each datum, split into an approximation and an amortization gap."""

import time
from collections.abc import Sequence

import pyro
import torch
from torch import Tensor

from pyroae.errors import ConfigError, DataError, unknown_name
from pyroae.evaluation.blocks import CHUNK, Data, arguments_of, part_of, rows_of, spans
from pyroae.evaluation.checks import check_program
from pyroae.evaluation.inference_gaps.block import Block, block_gaps
from pyroae.evaluation.inference_gaps.estimates import FamilyGaps, Gaps, KnownLikelihood, PerDatum
from pyroae.evaluation.local import FAMILIES, Family
from pyroae.evaluation.trial import nesting_of
from pyroae.programs.context import evaluating
from pyroae.programs.sites import Program
from pyroae.runtime.progress import Progress
from pyroae.runtime.randomness import fork_random


def gaps(
    model: Program,
    guide: Program,
    x: Data,
    *,
    log_px: KnownLikelihood | Tensor | None = None,
    elbo: PerDatum | None = None,
    families: Sequence[Family] = FAMILIES,
    num_particles: int = 2000,
    steps: int = 100,
    seed: int | None = None,
    progress: bool = False,
) -> Gaps:
    """Split the inference gap of each datum into an approximation and an amortization gap.

        log p(x) − L[q] = (log p(x) − L[q*]) + (L[q*] − L[q]),   L[q] = E_q [log p(x, z) − log q(z)]

    q* is the Gaussian of a family that maximizes the ELBO of the datum, in unconstrained
    coordinates (`fit_local`); its ELBO is estimated from fresh draws. The families and the proposal
    for log p(x) share their noise, so that the errors of their differences are those of paired
    draws. Where a fit has not converged, the approximation gap is too large by as much as the
    amortization gap is too small: see `FamilyGaps.gain`.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The program q(z|x).
        x: Data, `[N, ...]`, or a tuple of arguments of both programs, one row per datum.
        log_px: An estimate, such as that of `log_likelihood` or `quadrature`, or exact values
            `[N]`, in nats. With None, importance sampling with the full-rank q* as the proposal,
            its scale multiplied by 1.1.
        elbo: L[q] of the guide by independent draws, such as the negative `nelbo` of `bound_parts`;
            None for `num_particles` draws of its own.
        families: Names of families: `"diagonal"`, `"full-rank"`.
        num_particles: Draws per datum for each expectation, at least 2.
        steps: Largest number of steps of each fit.
        seed: Seed of the draws; the caller's generators are then left unchanged.
        progress: Show a progress bar.

    Returns:
        The bounds and gaps of each datum, in nats.

    Raises:
        ConfigError: For an unknown family or too few draws.
        UndefinedLikelihoodError: For a Delta guide or an improper prior.
        ProgramError: For discrete or global latents.
        DataError: Where `log_px` or `elbo` has another length, or a datum has no finite weights.

    References:
        Cremer, Li and Duvenaud (2018), Inference suboptimality in variational autoencoders.

    >>> from pyroae import zoo
    >>> system, x = zoo.ppca(4, latent=2, exact=True), torch.randn(3, 4)
    >>> result = gaps(system.model, system.guide, x, num_particles=100, steps=200, seed=0)
    >>> bool(result.inference.values.abs().max() < 0.1)  # the exact posterior leaves no gap
    True
    >>> list(result.families)
    ['diagonal', 'full-rank']
    """
    for family in families:
        if family not in FAMILIES:
            raise unknown_name("family", family, FAMILIES)
    if not families or num_particles < 2:
        raise ConfigError(
            "gaps take at least one family and 2 particles, "
            f"not {tuple(families)} and {num_particles}"
        )
    started, args = time.monotonic(), arguments_of(x)
    given = None if log_px is None else _given(log_px, len(args[0]))
    if elbo is not None and elbo.values.shape != (len(args[0]),):
        raise DataError(
            f"elbo is of the shape {tuple(elbo.values.shape)}, where there are {len(args[0])} data"
        )
    parts = []
    with (
        evaluating(model, guide),
        fork_random(args[0].device, seed),
        pyro.validation_enabled(False),
    ):
        check_program(model, guide, args)
        nesting = nesting_of(model, guide, args)
        size = max(1, min(rows_of(args) // 8, CHUNK // num_particles))
        with Progress("gaps", len(args[0]), progress) as bar:
            for span in spans(len(args[0]), size):
                block = Block(model, guide, part_of(args, span), nesting, num_particles, steps)
                known = None if given is None else _rows(given, span)
                bound = None if elbo is None else _rows(elbo, span)
                parts.append(block_gaps(block, families, known, bound))
                bar.update(span.stop)
    bound = PerDatum.joined([part.elbo for part in parts])
    likelihood = PerDatum.joined([part.likelihood.log_px for part in parts])
    _check_finite(bound, likelihood)
    by_family = {f: FamilyGaps.joined([part.families[f] for part in parts]) for f in families}
    khats = [part.likelihood.khat for part in parts if part.likelihood.khat is not None]
    flags = [part.likelihood.reliable for part in parts if part.likelihood.reliable is not None]
    reliable = torch.cat(flags) if given is None else _says_reliable(log_px, given)
    return Gaps(
        bound,
        likelihood,
        likelihood.minus(bound),
        by_family,
        torch.cat(khats) if khats else None,
        time.monotonic() - started,
        (~reliable).nonzero().flatten(),
    )


def _given(estimate: KnownLikelihood | Tensor, count: int) -> PerDatum:
    """A given log p(x) and its standard error, `[N]` each."""
    log_px = (estimate if isinstance(estimate, Tensor) else estimate.log_px).detach().double().cpu()
    error = getattr(estimate, "se", None)
    error = getattr(estimate, "error", None) if error is None else error
    se = error.double().cpu() if isinstance(error, Tensor) else torch.zeros_like(log_px)
    if log_px.shape != (count,):
        raise DataError(
            f"log_px is of the shape {tuple(log_px.shape)}, where there are {count} data"
        )
    return PerDatum(log_px, se)


def _rows(quantity: PerDatum, span: range) -> PerDatum:
    """The quantity of a block of data."""
    at = slice(span.start, span.stop)
    return PerDatum(quantity.values[at], quantity.se[at])


def _says_reliable(estimate: KnownLikelihood | Tensor | None, given: PerDatum) -> Tensor:
    """Whether a given estimate is finite and says of itself that it is reliable, `[N]`."""
    reliable = given.values.isfinite() & given.se.isfinite()
    converged = getattr(estimate, "converged", None)
    unreliable = getattr(estimate, "unreliable", None)
    if isinstance(converged, Tensor):
        reliable = reliable & converged.cpu()
    if isinstance(unreliable, Tensor):
        reliable[unreliable.cpu()] = False
    return reliable


def _check_finite(elbo: PerDatum, log_px: PerDatum) -> None:
    bad = (~elbo.values.isfinite() | ~log_px.values.isfinite()).nonzero().flatten()
    if len(bad):
        raise DataError(
            f"the log-weights of datum {int(bad[0])} are not finite: "
            "the model or the guide has no density for it"
        )
