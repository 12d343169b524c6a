"""Why a bound is loose: the family of the guide, or the encoder that serves all data (Cremer, Li & Duvenaud 2018)."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyro
import torch
from torch import Tensor

from pyroae.errors import ConfigError, DataError, unknown_name
from pyroae.evaluation.blocks import CHUNK, Data, arguments_of, blocks, rows_of
from pyroae.evaluation.checks import check_program
from pyroae.evaluation.importance.streams import WeightStream, Z, is_reliable
from pyroae.evaluation.latents import Latents
from pyroae.evaluation.local import FAMILIES, Family, LocalGaussian, fit_local
from pyroae.evaluation.trial import nesting_of
from pyroae.programs.context import evaluating, fork_random
from pyroae.programs.sites import Program
from pyroae.programs.traces import run
from pyroae.runtime.progress import Progress
from pyroae.weights import reduce_log_weights

INFLATION = 1.1
"""Of the scale of the full-rank q* where it serves as the proposal for log p(x)."""


class KnownLikelihood(Protocol):
    """Anything with log p(x) a datum, `[N]` in nats; its error is `se` or `error`, `[N]`, where it has one."""

    @property
    def log_px(self) -> Tensor: ...


@dataclass(frozen=True)
class PerDatum:
    """A quantity of each datum, `[N]`, float64, in nats, and its Monte-Carlo standard error, independent between data."""

    values: Tensor
    se: Tensor

    @property
    def mean(self) -> float:
        """Over the data, nats per datum."""
        return self.values.mean().item()

    @property
    def monte_carlo_se(self) -> float:
        """Standard error of the mean for these very data: what more particles would reduce."""
        return self.se.square().sum().sqrt().item() / len(self.se)

    @property
    def sample_se(self) -> float:
        """Standard error of the mean over a sample of N data, Monte-Carlo error included; nan for one datum."""
        return (
            (self.values.std() / math.sqrt(len(self.values))).item()
            if len(self.values) > 1
            else math.nan
        )

    @property
    def monte_carlo_interval(self) -> tuple[float, float]:
        """95 %, for the mean of these very data."""
        return self.mean - Z * self.monte_carlo_se, self.mean + Z * self.monte_carlo_se

    @property
    def sample_interval(self) -> tuple[float, float]:
        """95 %, for the mean of what the data are a sample of."""
        return self.mean - Z * self.sample_se, self.mean + Z * self.sample_se


@dataclass(frozen=True)
class FamilyGaps:
    """What the best Gaussian of one family, fitted to each datum, makes of the bound.

    elbo: L[q*]. approximation: log p(x) − L[q*]. amortization: L[q*] − L[q]; below 0 where the guide does better than q*, be it
    of a richer family, be it that the fit fell short. gain: `[N]`, what the last quarter of the fit's steps added.
    """

    elbo: PerDatum
    approximation: PerDatum
    amortization: PerDatum
    gain: PerDatum


@dataclass(frozen=True)
class Gaps:
    """From the ELBO to log p(x), all in nats.

    elbo: L[q] of the guide. log_px: log p(x). inference: log p(x) − L[q], the sum of the two gaps of either family. families:
    by name. khat: `[N]`, of the weights behind log_px (Vehtari et al. 2024), None where log_px was given. seconds: the time
    it took. unreliable: indices of the data whose log_px is not to be trusted, by the rule of `LikelihoodEstimate.unreliable`
    where it comes from weights, and by whether a given log_px is finite and, where it says so, has converged.
    """

    elbo: PerDatum
    log_px: PerDatum
    inference: PerDatum
    families: dict[Family, FamilyGaps]
    khat: Tensor | None
    seconds: float
    unreliable: Tensor

    def rows(self) -> list[tuple[str, PerDatum]]:
        """Every quantity with its name, from the guide's ELBO up to log p(x)."""
        found = [("ELBO of the guide", self.elbo)]
        for name, family in self.families.items():
            found += [
                (f"amortization gap, {name}", family.amortization),
                (f"ELBO of q*, {name}", family.elbo),
                (f"approximation gap, {name}", family.approximation),
            ]
        return [*found, ("inference gap", self.inference), ("log p(x)", self.log_px)]


def gaps(
    model: Program,
    guide: Program,
    x: Data,
    *,
    log_px: KnownLikelihood | Tensor | None = None,
    families: Sequence[Family] = FAMILIES,
    num_particles: int = 2000,
    steps: int = 1000,
    seed: int | None = None,
    progress: bool = False,
) -> Gaps:
    """The inference gap of each datum, split into an approximation and an amortization gap (Cremer et al. 2018).

        log p(x) − L[q] = (log p(x) − L[q*]) + (L[q*] − L[q]),   L[q] = E_q [log p(x, z) − log q(z)]

    q*: the Gaussian of a family that maximizes the datum's own ELBO, in unconstrained coordinates (`fit_local`); its ELBO is
    taken from fresh draws. x: `[N, ...]`, or a tuple of arguments of model and guide, a datum a row. log_px: an estimate, as of
    `log_likelihood` or `quadrature`, or exact values `[N]`; by default importance sampling with the full-rank q*, its scale
    times 1.1, as the proposal. families: diagonal, full-rank. num_particles: draws a datum for each expectation; those of the
    families and of the proposal share their noise, and the errors of differences are those of paired draws. steps: of each
    fit, at the most. seed: of the draws; the caller's generators then stay as they were.
    A fit that fell short moves its shortfall from the amortization gap to the approximation gap: see `gain`.
    Raises ConfigError for an unknown family or too few draws, UndefinedLikelihoodError for a Delta guide or an improper
    prior, ProgramError for discrete or global latents, DataError where log_px has another length or a datum no finite weights.

    >>> from pyroae import zoo
    >>> system, x = zoo.ppca(4, latent=2, exact=True), torch.randn(3, 4)
    >>> found = gaps(system.model, system.guide, x, num_particles=100, steps=200, seed=0)
    >>> bool(found.inference.values.abs().max() < 0.1), list(found.families)  # the exact posterior leaves no gap
    (True, ['diagonal', 'full-rank'])
    """
    for family in families:
        if family not in FAMILIES:
            raise unknown_name("family", family, FAMILIES)
    if not families or num_particles < 2:
        raise ConfigError(
            f"gaps take at least one family and 2 particles, not {tuple(families)} and {num_particles}"
        )
    started, args = time.monotonic(), arguments_of(x)
    known = None if log_px is None else _known(log_px, len(args[0]))
    parts: list[_Block] = []
    with (
        evaluating(model, guide),
        fork_random(args[0].device, seed),
        pyro.validation_enabled(False),
    ):
        check_program(model, guide, args)
        nesting = nesting_of(model, guide, args)
        size, done = max(1, min(rows_of(args) // 8, CHUNK // num_particles)), 0
        with Progress("gaps", len(args[0]), progress) as bar:
            for block in blocks(args, size):
                part = (
                    None
                    if known is None
                    else tuple(column[done : done + len(block[0])] for column in known)
                )
                parts.append(
                    _block(
                        _Task(model, guide, block, nesting, num_particles, steps),
                        tuple(families),
                        part,
                    )
                )
                done += len(block[0])
                bar.update(done)
    joined = {name: _joined([part.found[name] for part in parts]) for name in parts[0].found}
    bad = (
        (~joined["elbo"].values.isfinite() | ~joined["log_px"].values.isfinite())
        .nonzero()
        .flatten()
    )
    if len(bad):
        raise DataError(
            f"the log-weights of datum {int(bad[0])} are not finite: the model or the guide has no density for it"
        )
    khats = [part.khat for part in parts if part.khat is not None]
    by_family = {f: FamilyGaps(*(joined[f"{f} {what}"] for what in _OF_A_FAMILY)) for f in families}
    khat = torch.cat(khats) if khats else None
    trusted = (
        torch.cat([part.trusted for part in parts]) if known is None else _trusted(log_px, known)
    )
    seconds, bad = time.monotonic() - started, (~trusted).nonzero().flatten()
    return Gaps(
        joined["elbo"], joined["log_px"], joined["inference"], by_family, khat, seconds, bad
    )


_OF_A_FAMILY = ("elbo", "approximation", "amortization", "gain")


@dataclass(frozen=True)
class _Task:
    """What is asked for a block of data."""

    model: Program
    guide: Program
    args: tuple[Tensor, ...]
    nesting: int
    num_particles: int
    steps: int

    def chunks(self) -> list[int]:
        """Numbers of particles that are run at once, K in all."""
        most = max(1, rows_of(self.args) // len(self.args[0]))
        full, rest = divmod(self.num_particles, most)
        return [most] * full + [rest] * (rest > 0)

    def guide_weights(self) -> Tensor:
        """log w under the guide, `[K, N]`, float64."""
        runs = (run(self.model, self.guide, self.args, {}, k, self.nesting) for k in self.chunks())
        return torch.cat([reduce_log_weights(traces).log_weight.double() for traces in runs])

    def weights_of(self, fitted: dict[str, LocalGaussian]) -> dict[str, Tensor]:
        """log w under each of the Gaussians, `[K, N]`, float64, by the same noise."""
        found: dict[str, list[Tensor]] = {name: [] for name in fitted}
        latents: dict[int, Latents] = {}
        like = next(iter(fitted.values())).loc
        for k in self.chunks():
            if k not in latents:
                latents[k] = Latents(self.model, self.guide, self.args, k, self.nesting)
            noise = torch.randn(k, *like.shape, dtype=like.dtype, device=like.device)
            for name, gaussian in fitted.items():
                u, log_q = gaussian.draw(k, noise)
                found[name].append((latents[k].log_joint(u).total - log_q).double())
        return {name: torch.cat(parts) for name, parts in found.items()}


@dataclass
class _Block:
    found: dict[str, PerDatum] = field(default_factory=dict)
    khat: Tensor | None = None
    trusted: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))


def _block(task: _Task, families: tuple[Family, ...], known: tuple[Tensor, ...] | None) -> _Block:
    """All the quantities of a block."""
    fitted: dict[str, LocalGaussian] = {}
    full = fit_local(task.model, task.guide, task.args, steps=task.steps)
    for family in families:
        is_full = family == "full-rank"
        fitted[family] = (
            full
            if is_full
            else fit_local(
                task.model, task.guide, task.args, family=family, steps=task.steps, start=full
            )
        )
    block = _Block()
    weights = task.weights_of(
        {**fitted, **({} if known else {"proposal": full.inflated(INFLATION)})}
    )
    guide = task.guide_weights().cpu()
    elbo = block.found["elbo"] = _mean(guide)
    if known:
        log_px, influence = PerDatum(*known), None
    else:
        drawn = weights.pop("proposal")
        stream = WeightStream(drawn.shape[1], drawn.device, task.num_particles)
        stream.add(drawn)
        log_px = PerDatum(stream.log_px().cpu(), stream.se().cpu())
        influence = ((drawn - stream.log_px()).exp() - 1).cpu()
        block.khat = stream.smoothed().khat.cpu()
        draws = torch.full_like(block.khat, task.num_particles)
        block.trusted = is_reliable(block.khat, stream.ess().cpu(), log_px.se, draws)
    block.found["log_px"] = log_px
    block.found["inference"] = _minus(log_px, elbo)
    for name, log_weight in weights.items():
        of_q = log_weight.cpu()
        best = _mean(of_q)
        approximation = _minus(log_px, best)
        if influence is not None:
            approximation = PerDatum(approximation.values, _mean(influence - of_q).se)
        gain = PerDatum(fitted[name].gain, fitted[name].gain_se)
        for what, value in zip(
            _OF_A_FAMILY, (best, approximation, _minus(best, elbo), gain), strict=True
        ):
            block.found[f"{name} {what}"] = value
    return block


def _known(given: KnownLikelihood | Tensor, count: int) -> tuple[Tensor, Tensor]:
    """log p(x) and its standard error, as they were given."""
    log_px = (given if isinstance(given, Tensor) else given.log_px).detach().double().cpu()
    error = getattr(given, "se", None)
    error = getattr(given, "error", None) if error is None else error
    se = error.double().cpu() if isinstance(error, Tensor) else torch.zeros_like(log_px)
    if log_px.shape != (count,):
        raise DataError(
            f"log_px is of the shape {tuple(log_px.shape)}, where there are {count} data"
        )
    return log_px, se


def _trusted(given: KnownLikelihood | Tensor | None, known: tuple[Tensor, Tensor]) -> Tensor:
    """What a given estimate says of itself, `[N]`."""
    trusted = known[0].isfinite() & known[1].isfinite()
    converged, unreliable = getattr(given, "converged", None), getattr(given, "unreliable", None)
    if isinstance(converged, Tensor):
        trusted = trusted & converged.cpu()
    if isinstance(unreliable, Tensor):
        trusted[unreliable.cpu()] = False
    return trusted


def _mean(values: Tensor) -> PerDatum:
    """The mean over K independent draws `[K, N]`."""
    return PerDatum(values.mean(0), values.std(0) / math.sqrt(len(values)))


def _minus(one: PerDatum, other: PerDatum) -> PerDatum:
    """A difference of independent estimates."""
    return PerDatum(one.values - other.values, (one.se.square() + other.se.square()).sqrt())


def _joined(parts: list[PerDatum]) -> PerDatum:
    return PerDatum(
        torch.cat([part.values for part in parts]), torch.cat([part.se for part in parts])
    )
