"""log p(x) of each datum by importance sampling, streamed: memory grows with neither K nor N."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.distributions import Delta, ImproperUniform
from torch import Tensor

from pyroae.errors import ConfigError, DataError, ProgramError, UndefinedLikelihoodError
from pyroae.progress import Progress
from pyroae.sites import base_distribution
from pyroae.weights import (
    Program,
    Traces,
    evaluating,
    fork_random,
    plate_nesting,
    reduce_log_weights,
    run,
)

CHUNK = 2**21
"""Numbers in the largest tensor of one chunk: about what stays in a processor's cache."""


@dataclass(frozen=True)
class LikelihoodEstimate:
    """Importance-sampled log-likelihoods, float64, in nats.

    log_px: `[N]`. se: `[N]`, Monte-Carlo standard error of log_px by the delta method, nan for K=1. ess: `[N]`, the
    effective sample size (Σw)²/Σw², from 1 to K. num_particles: K, the number drawn. seconds: the time it took.
    """

    log_px: Tensor
    se: Tensor
    ess: Tensor
    num_particles: int
    seconds: float

    @property
    def nll(self) -> float:
        """−mean log p(x), nats per datum."""
        return -self.log_px.mean().item()

    @property
    def nll_se(self) -> float:
        """Standard error of `nll` as the mean over a sample of N data, Monte-Carlo error included."""
        return (self.log_px.std() / math.sqrt(len(self.log_px))).item()

    @property
    def monte_carlo_se(self) -> float:
        """Standard error of `nll` for these very data: what more particles would reduce."""
        return (self.se.square().sum().sqrt() / len(self.se)).item()


def log_likelihood(
    model: Program,
    guide: Program,
    x: Tensor,
    *,
    num_particles: int = 1000,
    seed: int | None = None,
    progress: bool = False,
) -> LikelihoodEstimate:
    """Importance-sampled log p(x_n) for each datum (Burda 2016's L_K; Rezende 2014).

        log p̂(x_n) = log (1/K) Σ_k p(x_n, z_k) / q(z_k|x_n),   z_k ~ q(z|x_n)

    A lower bound in expectation: E log p̂ ≤ log p, low by about Var(w) / (2K p²). x: `[N, ...]`, passed to both programs
    in slices along its first dimension. guide: any proposal, not only the one that was trained. seed: of the draws; the
    caller's generators then stay as they were.
    Raises UndefinedLikelihoodError for a Delta guide or an improper prior, ProgramError for latent sites outside the
    data plate, DataError, with its index, for a datum whose weights are all zero or not a number.

    >>> from pyroae import zoo
    >>> system, x = zoo.ppca(4, latent=2), torch.zeros(3, 4)
    >>> estimate = log_likelihood(system.model, system.guide, x, num_particles=5000, seed=0)
    >>> from pyroae import exact_log_likelihood
    >>> bool(((estimate.log_px - exact_log_likelihood(system, x)).abs() < 5 * estimate.se + 1e-6).all())
    True
    """
    if not isinstance(num_particles, int) or num_particles < 1:
        raise ConfigError(f"num_particles must be a whole number of at least 1, not {num_particles!r}")
    started = time.monotonic()
    with evaluating(model, guide), fork_random(x.device, seed):
        with fork_random(x.device):  # the look before the start takes no draws from the estimate
            check_proposal(run(model, guide, (x[:1],), {}))
            nesting = plate_nesting(model, guide, (x[:1],), {})
        parts, done = [], 0
        with Progress("log p(x)", len(x) * num_particles, progress) as bar, pyro.validation_enabled(False):
            for block, chunks in _plan(x, num_particles):
                total = _Stream(len(block), x.device)
                for k in chunks:
                    total.add(reduce_log_weights(run(model, guide, (block,), {}, k, nesting)).log_weight)
                    done += k * len(block)
                    bar.update(done)
                parts.append(total)
    log_px, se, ess = (torch.cat(column).cpu() for column in zip(*(part.result() for part in parts), strict=True))
    if not torch.isfinite(log_px).all():
        n = int((~torch.isfinite(log_px)).nonzero()[0])
        raise DataError(f"the log-weights of datum {n} give log p(x) = {log_px[n].item()}: the proposal misses it or overflows")
    return LikelihoodEstimate(log_px, se, ess, num_particles, time.monotonic() - started)


def check_proposal(traces: Traces) -> None:
    """Raises, naming the site, where log p(x) does not exist or the guide cannot serve as its proposal."""
    for name, site in traces.sites(traces.model, observed=False):
        if isinstance(base_distribution(site["fn"]), ImproperUniform):
            raise UndefinedLikelihoodError(
                f"log p(x) is undefined: the prior of '{name}' is flat, so the model has no evidence; "
                "use a proper prior (ppca, vae, or a Normal or Laplace prior)"
            )
        if not traces.is_local(site):
            raise ProgramError(f"the latent site '{name}' lies outside the data plate: its data have no log p(x) one by one")
    for name, site in traces.sites(traces.guide, observed=False):
        if isinstance(base_distribution(site["fn"]), Delta):
            raise UndefinedLikelihoodError(
                f"log p(x) cannot be estimated with this guide: its site '{name}' is a Delta, which has no density as a "
                "proposal; give another guide over the same sites as the proposal"
            )
    plate = traces.plate
    if plate is None:
        if any(f.vectorized for _, s in traces.sites(traces.model, observed=True) for f in s["cond_indep_stack"]):
            raise ProgramError("no one plate holds all the sites: there is no log p(x) a datum")
    elif plate.full_size not in (None, plate.size):
        raise ProgramError(f"the plate '{plate.name}' is subsampled: evaluate with all {plate.full_size} data")


def _plan(x: Tensor, num_particles: int) -> Iterator[tuple[Tensor, list[int]]]:
    """Slices of the data, and for each the numbers of particles of its chunks, which add up to K exactly."""
    rows = max(64, CHUNK // max(256, x[0].numel()))
    at_once = min(num_particles, 64)
    for block in x.split(max(1, rows // at_once)):
        k = max(1, min(num_particles, rows // len(block)))
        full, rest = divmod(num_particles, k)
        yield block, [k] * full + [rest] * (rest > 0)


class _Stream:
    """Σ w and Σ w² for each datum, as they come, relative to the largest log-weight so far."""

    def __init__(self, num_data: int, device: torch.device) -> None:
        kind: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self.high = torch.full((num_data,), -math.inf, **kind)
        self.sum = torch.zeros(num_data, **kind)
        self.squares = torch.zeros(num_data, **kind)
        self.count = 0

    def add(self, log_weight: Tensor) -> None:
        log_weight = log_weight.double()
        high = torch.maximum(self.high, log_weight.max(0).values)
        base = torch.where(torch.isinf(high) & (high < 0), 0.0, high)  # all weights zero so far
        weight, shrink = (log_weight - base).exp(), (self.high - base).exp()
        self.sum = self.sum * shrink + weight.sum(0)
        self.squares = self.squares * shrink.square() + weight.square().sum(0)
        self.high, self.count = high, self.count + len(log_weight)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        log_px = self.high + self.sum.log() - math.log(self.count)
        spread = (self.squares / self.sum.square() - 1 / self.count).clamp_min(0)
        unbiased = self.count / (self.count - 1) if self.count > 1 else math.nan
        return log_px, (spread * unbiased).sqrt(), self.sum.square() / self.squares
