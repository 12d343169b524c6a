"""Rate, distortion, bounds on the mutual information of data and latents, and collapsed units."""

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
from pyroae.programs.context import evaluating
from pyroae.programs.masks import mask_of
from pyroae.programs.paired_traces import Traces
from pyroae.programs.sites import Program, base_distribution
from pyroae.programs.traces import log_post_of, run
from pyroae.runtime.progress import Progress
from pyroae.runtime.randomness import fork_random
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import duration, number, with_error
from pyroae.weights import reduce_log_weights


@dataclass(frozen=True, repr=False)
class Estimate(Shown):
    """A quantity in nats per datum.

    Attributes:
        value: The estimate.
        se: Its standard error over data and draws; NaN for one datum.
    """

    value: float
    se: float

    def _overview(self) -> Overview:
        return Overview([with_error(self.value, self.se, "nats")])

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval, in nats per datum."""
        return self.value - Z * self.se, self.value + Z * self.se


@dataclass(frozen=True, repr=False)
class Unit(Shown):
    """One latent unit.

    Attributes:
        index: The index j of the unit.
        kl: Mean over the data of its KL(q ‖ p), in nats; NaN where q does not factorize over units.
        activity: Var_x(E_q[z_j|x]).
        collapsed: Whether both are below their thresholds; the activity alone where `kl` is NaN.
    """

    index: int
    kl: float
    activity: float
    collapsed: bool


@dataclass(frozen=True, repr=False)
class Information(Shown):
    """Rate, distortion and mutual information under q(z, x) = p_data(x) q(z|x).

    Attributes:
        rate: R = E KL(q(z|x) ‖ p(z)), in nats per datum.
        distortion: D = −E log p(x|z), in nats per datum.
        lower: Lower bound of I(x; z), in nats.
        upper: Upper bound of I(x; z), in nats.
        marginal_kl: Lower and upper bound of KL(q(z) ‖ p(z)) = R − I(x; z), in nats.
        units: One entry per latent unit.
        num_data: N, the number of data.
        seconds: Wall-clock time.
    """

    rate: Estimate
    distortion: Estimate
    lower: Estimate
    upper: Estimate
    marginal_kl: tuple[Estimate, Estimate]
    units: tuple[Unit, ...]
    num_data: int
    seconds: float

    def _overview(self) -> Overview:
        lower, upper = (with_error(one.value, one.se) for one in (self.lower, self.upper))
        divergence = " to ".join(with_error(one.value, one.se) for one in self.marginal_kl)
        limit = f"limit log N = {math.log(self.num_data):.2f}"
        return Overview(
            [f"N={self.num_data}", f"I(x; z) {lower} to {upper} nats"],
            [
                ("rate", with_error(self.rate.value, self.rate.se, "nats per datum")),
                (
                    "distortion",
                    with_error(self.distortion.value, self.distortion.se, "nats per datum"),
                ),
                ("ELBO", f"{number(self.elbo, 5)} nats per datum"),
                ("I(x; z)", f"at least {lower} nats ({limit}), at most {upper} nats"),
                ("KL(q(z) ‖ p(z))", f"{divergence} nats"),
                ("active units", f"{self.active_units} of {len(self.units)}"),
                ("time", duration(self.seconds)),
            ],
        )

    @property
    def elbo(self) -> float:
        """The ELBO, −(D + R), in nats per datum."""
        return -(self.distortion.value + self.rate.value)

    @property
    def is_saturated(self) -> bool:
        """Whether the lower bound is within 0.1 nats of log N, its limit.

        More data would then raise it.
        """
        return not self.lower.value <= math.log(self.num_data) - 0.1

    @property
    def active_units(self) -> int:
        """The number of units that have not collapsed."""
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
    """Estimate rate and distortion, bound the mutual information I(x; z), and find collapsed units.

        lower = E [log q(z_n|x_n) − log 1/N Σ_j q(z_n|x_j)]
        upper = E [log q(z_n|x_n) − log 1/(N−1) Σ_{j≠n} q(z_n|x_j)]
        lower ≤ I(x; z) ≤ upper

    for data that are a sample. The lower bound is at most log N; it is also an unbiased estimate of
    the information in z about the index of the datum among these N (Hoffman and Johnson 2016).
    R − I = KL(q(z) ‖ p(z)) is the divergence of the aggregate posterior from the prior. I ≤ R and
    ELBO = −(D + R) hold for any entropy H of the data; H − D ≤ I needs it (Alemi et al. 2018). A
    unit has collapsed where its KL and its activity are below both thresholds (Lucas et al. 2019;
    Burda et al. 2016). All N² pairs are evaluated, in blocks whose size does not grow with N.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The program q(z|x).
        x: Data, `[N, ...]` with N ≥ 2, or a tuple of arguments, one row per datum.
        num_particles: Draws per datum.
        kl_threshold: KL below which a unit may have collapsed, in nats.
        activity_threshold: Activity below which a unit may have collapsed.
        seed: Seed of the draws; the caller's generators are then left unchanged.
        progress: Show a progress bar.

    Returns:
        Estimates in nats per datum with their standard errors, and the units.

    Raises:
        ConfigError: For numbers out of range, or a program without a data plate.
        UndefinedLikelihoodError: For a Delta guide or an improper prior.
        ProgramError: For sites outside the data plate, or masked latent sites.

    References:
        Poole, Ozair, van den Oord, Alemi and Tucker (2019), On variational bounds of mutual
        information.
        Hoffman and Johnson (2016), ELBO surgery.
        Alemi, Poole, Fischer, Dillon, Saurous and Murphy (2018), Fixing a broken ELBO.

    >>> from pyroae import zoo
    >>> system, x = zoo.vae(4, latent=2), torch.ones(5, 4)
    >>> result = information(system.model, system.guide, x, seed=0)
    >>> result.lower.value, result.upper.value, len(result.units)  # equal data: no information
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
    columns = zip(*(vars(one).values() for one in rounds), strict=True)
    r = _Round(*(torch.stack(column).mean(0) for column in columns))
    marginal_kl = (
        _estimate(r.rate - r.upper, r.rate - r.upper + r.upper_share),
        _estimate(r.rate - r.lower, r.rate - r.lower + r.lower_share),
    )
    return Information(
        _estimate(r.rate, r.rate),
        _estimate(r.distortion, r.distortion),
        _estimate(r.lower, r.lower - r.lower_share),
        _estimate(r.upper, r.upper - r.upper_share),
        marginal_kl,
        units,
        count,
        time.monotonic() - started,
    )


@dataclass(frozen=True)
class _Round:
    """One draw per datum, `[N]` each, float64, in nats.

    lower, upper: the terms of the bounds. lower_share, upper_share: the share of x_j in the means
    of the denominators, summed over the draws: by this much a datum changes the bounds through the
    terms of the other data.
    """

    rate: Tensor
    distortion: Tensor
    lower: Tensor
    upper: Tensor
    lower_share: Tensor
    upper_share: Tensor


@dataclass(frozen=True)
class _Pairs:
    """Evaluate log q(z_n|x_j) of all pairs: blocks of draws, and of data for each."""

    model: Program
    guide: Program
    args: tuple[Tensor, ...]
    nesting: int

    def round(self, bar: Progress, done: int) -> _Round:
        """Draw z for each datum and evaluate it under the guide of every datum."""
        count = len(self.args[0])
        rate, distortion, lower, upper = [], [], [], []
        shares = torch.zeros(2, count, dtype=torch.float64, device=self.args[0].device)
        lower_share, upper_share = shares
        first = 0
        for block in blocks(self.args, max(1, min(count, rows_of(self.args) // 2, CHUNK // count))):
            drawn = run(self.model, self.guide, block, {}, 1, self.nesting)
            weights = reduce_log_weights(drawn)
            rate.append((weights.log_post - weights.log_prior)[0].double())
            distortion.append(-weights.log_lik[0].double())
            log_q = self.against_all(drawn)
            row = torch.arange(len(log_q), device=log_q.device)
            log_ratio = log_q - log_q[row, first + row][:, None]
            lower.append(math.log(count) - log_ratio.logsumexp(1))
            lower_share += log_ratio.softmax(1).sum(0)
            log_ratio[row, first + row] = -math.inf
            upper.append(math.log(count - 1) - log_ratio.logsumexp(1))
            upper_share += log_ratio.softmax(1).nan_to_num(0.0).sum(0)
            first += len(block[0])
            bar.update(done + first)
        terms = [torch.cat(column) for column in (rate, distortion, lower, upper)]
        return _Round(*(term.cpu() for term in (*terms, lower_share, upper_share)))

    def against_all(self, drawn: Traces) -> Tensor:
        """Evaluate log q(z_k|x_j) of draws of k data under every datum's guide, `[k, N]`."""
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
    """The value of a site with the dimension of the data first."""
    assert traces.plate is not None
    return site["value"].movedim(len(site["fn"].batch_shape) + traces.plate.dim, 0)


def _for_all(traces: Traces, site: dict[str, Any], rows: Tensor) -> Tensor:
    """Expand k values to all data, in the shape of the site with k (at least 2) particles."""
    assert traces.plate is not None
    rows = rows.repeat(2, *[1] * (rows.dim() - 1)) if len(rows) == 1 else rows
    shape = [len(rows), *site["value"].shape[1:]]
    data = len(site["fn"].batch_shape) + traces.plate.dim
    return rows.reshape(*shape[:data], 1, *shape[data + 1 :]).expand(shape)


def _check(traces: Traces) -> None:
    """Raise, naming the site, where the rate or the information does not exist."""
    check_evidence(traces)
    if traces.plate is None:
        raise ConfigError(
            "the program has no data plate: "
            "the mutual information is between z and the index of one datum of many"
        )
    for name, site in traces.sites(traces.guide, observed=False):
        if mask_of(name, site) is not None:
            raise ProgramError(
                f"the latent site '{name}' is masked: "
                "the mutual information is defined for latents that all data have"
            )
        if isinstance(base_distribution(site["fn"]), Delta):
            raise UndefinedLikelihoodError(
                f"the guide's site '{name}' is a Delta: "
                "its rate and its mutual information with the data are infinite"
            )


def _units(
    model: Program,
    guide: Program,
    args: tuple[Tensor, ...],
    kl_threshold: float,
    activity_threshold: float,
) -> tuple[Unit, ...]:
    """KL and activity of each latent unit."""
    diagnostics = diagnose(model, guide, args, threshold=activity_threshold)
    rows = zip(diagnostics.kl_per_unit.tolist(), diagnostics.activity.tolist(), strict=True)
    return tuple(
        Unit(j, kl, activity, not kl >= kl_threshold and activity < activity_threshold)
        for j, (kl, activity) in enumerate(rows)
    )


def _estimate(values: Tensor, influence: Tensor) -> Estimate:
    """The mean of `values`; its standard error from the influence of each datum, `[N]` each."""
    return Estimate(values.mean().item(), (influence.std() / math.sqrt(len(values))).item())
