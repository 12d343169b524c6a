"""The ELBO of each datum and its two parts, with their Monte-Carlo errors."""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from pyroae.errors import DataError
from pyroae.evaluation.blocks import Data, blocks, rows_of
from pyroae.evaluation.checks import check_terms, filled
from pyroae.evaluation.inference_gaps.estimates import PerDatum
from pyroae.programs.arguments import structure_of
from pyroae.programs.context import evaluating
from pyroae.programs.sites import Program
from pyroae.programs.traces import run
from pyroae.runtime.randomness import fork_random
from pyroae.weights import reduce_log_weights


def bound_parts(
    model: Program,
    guide: Program,
    x: Data,
    *,
    num_particles: int = 100,
    seed: int | None = None,
    **kwargs: Any,
) -> dict[str, PerDatum]:
    """Estimate the negative ELBO of each datum, and split it into distortion and rate.

        −ELBO = distortion + rate = −E_q log p(x|z) + E_q[log q(z|x) − log p(z)]

    The three are means over the same draws, so that the sum is exact. Draws are streamed: memory
    does not grow with their number.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The Pyro program q(z|x).
        x: The data `[N, ...]`, or the arguments of model and guide as in `log_likelihood`.
        num_particles: K, the number of draws per datum.
        seed: The seed of the draws. The state of the caller's generators is restored.
        kwargs: Keyword arguments of the programs.

    Returns:
        `nelbo`, `distortion` and `rate`, `[N]` each with Monte-Carlo standard errors, nats; nan
        errors for K = 1.

    Raises:
        ProgramError: For scales and masks under which the parts are not those of a bound, with the
            name of the site.
        DataError: For a datum whose bound is nan.

    References:
        Alemi et al. 2018, Fixing a broken ELBO.

    >>> from pyroae import zoo
    >>> system = zoo.vae(4, latent=2)
    >>> parts = bound_parts(system.model, system.guide, torch.zeros(3, 4), num_particles=10)
    >>> list(parts), parts["rate"].values.shape
    (['distortion', 'rate', 'nelbo'], torch.Size([3]))
    """
    structure = structure_of(x, kwargs, model)
    model, guide, args = structure(model), structure(guide), structure.tensors
    check_terms(model, guide, args, "parts")
    rows = rows_of(args)
    found: dict[str, list[PerDatum]] = defaultdict(list)
    with evaluating(model, guide), fork_random(args[0].device, seed):
        for block in blocks(args, max(1, rows // num_particles)):
            for name, part in _of_block(model, guide, block, num_particles, rows).items():
                found[name].append(part)
    joined = {name: PerDatum.joined(parts) for name, parts in found.items()}
    bad = joined["nelbo"].values.isnan().nonzero().flatten()
    if len(bad):
        raise DataError(
            f"the bound of datum {int(bad[0])} is nan: the model or the guide has no density for it"
        )
    return joined


def _of_block(
    model: Program, guide: Program, block: tuple[Tensor, ...], count: int, rows: int
) -> dict[str, PerDatum]:
    """The parts of the data of a block, from draws in chunks that fit into memory."""
    most = max(1, rows // len(block[0]))
    sizes = [most] * (count // most) + [count % most] * (count % most > 0)
    distortion, rate = [], []
    for size in sizes:
        weights = reduce_log_weights(filled(run(model, guide, block, {}, size)))
        distortion.append(-weights.log_lik.double())
        rate.append((weights.log_post - weights.log_prior).double())
    parts = {"distortion": torch.cat(distortion), "rate": torch.cat(rate)}
    parts["nelbo"] = parts["distortion"] + parts["rate"]
    return {name: _over_draws(values.cpu()) for name, values in parts.items()}


def _over_draws(values: Tensor) -> PerDatum:
    """The mean over draws `[K, N]` and its standard error."""
    if len(values) == 1:
        return PerDatum(values[0], torch.full_like(values[0], math.nan))
    return PerDatum.over_draws(values)
