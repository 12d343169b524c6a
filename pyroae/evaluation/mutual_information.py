"""What the latents know about the data: rate and distortion, bounds on the mutual information, units that have collapsed."""

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro.distributions import Delta
from torch import Tensor

from pyroae.errors import ConfigError, ProgramError, UndefinedLikelihoodError
from pyroae.evaluation.blocks import CHUNK, Data, arguments_of, blocks, rows_of
from pyroae.evaluation.checks import check_evidence, check_terms
from pyroae.evaluation.diagnostics import diagnose
from pyroae.evaluation.importance.streams import Z
from pyroae.evaluation.trial import nesting_of
from pyroae.programs.context import evaluating, fork_random
from pyroae.programs.masks import mask_of
from pyroae.programs.sites import Program, base_distribution
from pyroae.programs.traces import Traces, log_post_of, run
from pyroae.runtime.progress import Progress
from pyroae.weights import reduce_log_weights


@dataclass(frozen=True)
class Estimate:
    """A figure in nats per datum, and its standard error over data and draws; nan for one datum."""

    value: float
    se: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 %."""
        return self.value - Z * self.se, self.value + Z * self.se


@dataclass(frozen=True)
class Unit:
    """One latent unit. kl: mean over the data of its KL(q ‖ p), nats; nan where q does not factorize over units.

    activity: Var_x(E_q[z_j|x]). collapsed: both are low, or the activity where it is all there is.
    """

    index: int
    kl: float
    activity: float
    collapsed: bool


@dataclass(frozen=True)
class Information:
    """Rate, distortion and mutual information under q(z, x) = p_data(x) q(z|x), in nats per datum.

    rate: R = E KL(q(z|x) ‖ p(z)). distortion: D = −E log p(x|z). lower, upper: of I(x; z). marginal_kl: its lower and upper
    bound, of KL(q(z) ‖ p(z)) = R − I. units: a row per latent unit. num_data: N. seconds: the time
    it took.
    """

    rate: Estimate
    distortion: Estimate
    lower: Estimate
    upper: Estimate
    marginal_kl: tuple[Estimate, Estimate]
    units: tuple[Unit, ...]
    num_data: int
    seconds: float

    @property
    def elbo(self) -> float:
        """−(D + R), nats per datum."""
        return -(self.distortion.value + self.rate.value)

    @property
    def is_saturated(self) -> bool:
        """Whether the lower bound has come within 0.1 nats of log N, above which it cannot go: more data would raise it."""
        return not self.lower.value <= math.log(self.num_data) - 0.1

    @property
    def active_units(self) -> int:
        """Units that have not collapsed."""
        return sum(not unit.collapsed for unit in self.units)


def information(
    model: Program,
    guide: Program,
    x: Data,
    *,
    num_particles: int = 1,
    kl_threshold: float = 0.01,
    activity_threshold: float = 0.01,
    seed: int | None = None,
    progress: bool = False,
) -> Information:
    """Rate, distortion, bounds on the mutual information I(x; z), and the units that have collapsed.

        lower = E [log q(z_n|x_n) − log (1/N) Σ_j q(z_n|x_j)] ≤ I(x; z) ≤ E [log q(z_n|x_n) − log 1/(N−1) Σ_{j≠n} q(z_n|x_j)]

    for data that are a sample (Poole et al. 2019). The lower bound is at most log N; it is also the unbiased estimate of the
    information that z has on which of these N data it comes from (Hoffman & Johnson 2016). R − I = KL(q(z) ‖ p(z)) says how far
    the aggregate posterior is from the prior, and I ≤ R, ELBO = −(D + R), whatever the entropy H of the data; H − D ≤ I needs
    it (Alemi et al. 2018). x: `[N, ...]`, N ≥ 2, or a tuple of arguments, a datum a row. All N² pairs are weighed, in blocks
    whose size does not grow with N. num_particles: draws a datum. A unit has collapsed where its KL and its activity are below
    both thresholds (Lucas et al. 2019; Burda 2016). seed: of the draws; the caller's generators then stay as they were.
    Raises ConfigError for numbers out of range, UndefinedLikelihoodError for a Delta guide or an improper prior,
    ProgramError for sites outside the data plate.

    >>> from pyroae import zoo
    >>> system, x = zoo.vae(4, latent=2), torch.ones(5, 4)
    >>> found = information(system.model, system.guide, x, seed=0)  # data that are all alike: nothing to know
    >>> found.lower.value, found.upper.value, len(found.units)
    (0.0, 0.0, 2)
    """
    started, args = time.monotonic(), arguments_of(x)
    count = len(args[0])
    if num_particles < 1 or count < 2:
        raise ConfigError(
            f"information takes at least 1 particle and 2 data, not {num_particles} and {count}"
        )
    with (
        evaluating(model, guide),
        fork_random(args[0].device, seed),
        pyro.validation_enabled(False),
    ):
        with fork_random(args[0].device):
            first = tuple(a[:1] for a in args)
            traces = run(model, guide, first, {})
            _check(traces)
            check_terms(model, guide, args)
            nesting = nesting_of(model, guide, args)
        pairs = _Pairs(model, guide, args, nesting)
        with Progress("information", count * num_particles, progress) as bar:
            rounds = [pairs.round(bar, count * i) for i in range(num_particles)]
        units = _units(model, guide, args, kl_threshold, activity_threshold)
    r = _Round(
        *(
            torch.stack(column).mean(0)
            for column in zip(*(vars(one).values() for one in rounds), strict=True)
        )
    )
    return Information(
        _estimate(r.rate, r.rate),
        _estimate(r.distortion, r.distortion),
        _estimate(r.own, r.own - r.taken),
        _estimate(r.others, r.others - r.taken_by_others),
        (
            _estimate(r.rate - r.others, r.rate - r.others + r.taken_by_others),
            _estimate(r.rate - r.own, r.rate - r.own + r.taken),
        ),
        units,
        count,
        time.monotonic() - started,
    )


@dataclass(frozen=True)
class _Round:
    """One draw of each datum, `[N]` each, float64.

    own, others: log q(z_n|x_n) less the log of the mean over all data, over the others. taken, taken_by_others: the sum over
    the draws of x_j's share in those means, by which a datum moves the bounds through the denominators.
    """

    rate: Tensor
    distortion: Tensor
    own: Tensor
    others: Tensor
    taken: Tensor
    taken_by_others: Tensor


@dataclass(frozen=True)
class _Pairs:
    """log q(z_n|x_j) of all pairs, the draws in blocks, and the data in blocks for each."""

    model: Program
    guide: Program
    args: tuple[Tensor, ...]
    nesting: int

    def round(self, bar: Progress, done: int) -> _Round:
        """Draw z for each datum and weigh it against all."""
        count = len(self.args[0])
        rate, distortion, own, others = [], [], [], []
        taken, taken_by_others = torch.zeros(
            2, count, dtype=torch.float64, device=self.args[0].device
        )
        first = 0
        for block in blocks(self.args, max(1, min(count, rows_of(self.args) // 2, CHUNK // count))):
            drawn = run(self.model, self.guide, block, {}, 1, self.nesting)
            weights = reduce_log_weights(drawn)
            rate.append((weights.log_post - weights.log_prior)[0].double())
            distortion.append(-weights.log_lik[0].double())
            log_q = self.against_all(drawn)
            row = torch.arange(len(log_q), device=log_q.device)
            log_ratio = log_q - log_q[row, first + row][:, None]
            own.append(math.log(count) - log_ratio.logsumexp(1))
            taken += log_ratio.softmax(1).sum(0)
            log_ratio[row, first + row] = -math.inf
            others.append(math.log(count - 1) - log_ratio.logsumexp(1))
            taken_by_others += log_ratio.softmax(1).nan_to_num(0.0).sum(0)
            first += len(block[0])
            bar.update(done + first)
        rows = (
            torch.cat(rate),
            torch.cat(distortion),
            torch.cat(own),
            torch.cat(others),
            taken,
            taken_by_others,
        )
        return _Round(*(row.cpu() for row in rows))

    def against_all(self, drawn: Traces) -> Tensor:
        """log q(z_k|x_j) `[k, N]`, float64, of the draws of a block of k data under every datum's guide."""
        values = {
            name: _by_row(drawn, site) for name, site in drawn.sites(drawn.guide, observed=False)
        }
        draws = max(2, len(next(iter(values.values()))))
        parts = []
        for block in blocks(self.args, max(1, rows_of(self.args) // draws)):
            small = run(self.model, self.guide, block, {}, 2, self.nesting)
            trace = small.drawn.copy()
            for name, value in values.items():
                trace.nodes[name] = {
                    **trace.nodes[name],
                    "value": _for_all(small, trace.nodes[name], value),
                }
            many = replace(small, num_particles=draws, drawn=trace)
            parts.append(log_post_of(many, self.guide, block, {}).double())
        return torch.cat(parts, 1)[: len(next(iter(values.values())))]


def _by_row(traces: Traces, site: dict[str, Any]) -> Tensor:
    """The value of a site with the data first."""
    assert traces.plate is not None
    return site["value"].movedim(len(site["fn"].batch_shape) + traces.plate.dim, 0)


def _for_all(traces: Traces, site: dict[str, Any], rows: Tensor) -> Tensor:
    """The values of k draws, the same for all data, in the shape that the site has with k particles (at least 2)."""
    assert traces.plate is not None
    rows = rows.repeat(2, *[1] * (rows.dim() - 1)) if len(rows) == 1 else rows
    shape = [len(rows), *site["value"].shape[1:]]
    data = len(site["fn"].batch_shape) + traces.plate.dim
    return rows.reshape(*shape[:data], 1, *shape[data + 1 :]).expand(shape)


def _check(traces: Traces) -> None:
    """Raises, naming the site, where the rate or the information does not exist."""
    check_evidence(traces)
    if traces.plate is None:
        raise ConfigError(
            "the program has no data plate: the information is that of z about which datum of many it is"
        )
    for name, site in traces.sites(traces.guide, observed=False):
        if mask_of(name, site) is not None:
            raise ProgramError(
                f"the latent site '{name}' is masked: the information is that of latents which all data have"
            )
        if isinstance(base_distribution(site["fn"]), Delta):
            raise UndefinedLikelihoodError(
                f"the guide's site '{name}' is a Delta: its rate and its mutual information with the data are infinite"
            )


def _units(
    model: Program,
    guide: Program,
    args: tuple[Tensor, ...],
    kl_threshold: float,
    activity_threshold: float,
) -> tuple[Unit, ...]:
    """KL and activity of each unit."""
    found = diagnose(model, guide, args, threshold=activity_threshold)
    assert found.is_share is not None
    kl_per_unit = found.kl_per_unit.masked_fill(found.is_share, math.nan)
    rows = zip(kl_per_unit.tolist(), found.activity.tolist(), strict=True)
    return tuple(
        Unit(j, kl, activity, not kl >= kl_threshold and activity < activity_threshold)
        for j, (kl, activity) in enumerate(rows)
    )


def _estimate(values: Tensor, influence: Tensor) -> Estimate:
    """A mean over the data; the standard error of it from what each datum contributes in all."""
    return Estimate(values.mean().item(), (influence.std() / math.sqrt(len(values))).item())
