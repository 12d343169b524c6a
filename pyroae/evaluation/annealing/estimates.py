"""Results of annealed importance sampling: estimates of log p(x) and bounds on it."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyroae.config import AISSettings
from pyroae.errors import DataError
from pyroae.evaluation.annealing.chain_summaries import LEAST_ESS, student_quantile
from pyroae.evaluation.annealing.hmc import segments
from pyroae.evaluation.annealing.rate_distortion import RateDistortion, curve_of
from pyroae.evaluation.annealing.results import BlockResult
from pyroae.evaluation.importance.likelihood import PerDatumEstimate
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import duration, number, percent, text_of, with_error

LEAST_ACCEPTANCE = 0.05
"""Smallest mean Pr(accept) of a datum that is reliable."""


class SiteValues(Shown, dict[str, Tensor]):
    """Values of sites by name, of which the shapes are shown."""

    def _overview(self) -> Overview:
        rows = [(name, text_of(values)) for name, values in self.items()]
        return Overview([f"{len(rows)} sites"], rows)


@dataclass(frozen=True, repr=False)
class AISEstimate(Shown, PerDatumEstimate):
    """Log-likelihoods by annealed importance sampling, float64, in nats.

    Attributes:
        log_px: log (1/C) Σ w, `[N]`, a lower bound of log p(x) in expectation.
        se: Standard error of `log_px` by the delta method over chains, `[N]`; NaN for C = 1.
        ess: Effective sample size (Σw)²/Σw², `[N]`, from 1 to C.
        log_weights: log w, `[C, N]`.
        acceptance: Mean Pr(accept) in each of S segments of the path, `[S, N]`.
        step_sizes: Leapfrog step sizes, `[S, N]`.
        settings: The path and the moves.
        seconds: Wall-clock time of the run, including the time before an interruption.
        rate_distortion: The rate–distortion curve of each datum; None for a path from the guide,
            whose distributions are not those of the curve.
        posterior: Draws of p(z|x) by site, all of equal weight, `[C, S, N, *nested plates,
            *event]`; empty without `settings.posterior_draws`. Chains of one ancestor start at the
            same z and become independent by their moves only. Elements that a mask of the model
            leaves out are NaN.
        posterior_acceptance: Mean Pr(accept) of the moves between these draws, `[N]`; None without
            them.
    """

    log_px: Tensor
    se: Tensor
    ess: Tensor
    log_weights: Tensor
    acceptance: Tensor
    step_sizes: Tensor
    settings: AISSettings
    seconds: float
    rate_distortion: RateDistortion | None = None
    posterior: dict[str, Tensor] = field(default_factory=SiteValues)
    posterior_acceptance: Tensor | None = None

    def _overview(self) -> Overview:
        count, bad = len(self.log_px), len(self.unreliable)
        nll, chains = with_error(self.nll, self.nll_se, "nats"), len(self.log_weights)
        ess = number(self.ess.nanmedian().item(), 3)
        rows = [
            ("NLL", f"{nll} per datum, ± as a sample of N data"),
            ("Monte Carlo", f"error {self.monte_carlo_se:.2g} nats"),
            ("unreliable", f"{bad} of {count} data"),
            ("ESS", f"median {ess} of {chains} chains"),
            ("acceptance", f"mean {self.acceptance_rate:.2f}"),
        ]
        if self.rate_distortion is not None:
            rows.append(("R–D curve", f"{len(self.rate_distortion.betas)} temperatures"))
        if self.posterior:
            rows.append(("posterior", text_of(dict(self.posterior))))
        path = f"{self.settings.num_distributions} distributions"
        head = [
            f"N={count}",
            f"C={chains}",
            path,
            f"NLL {nll}",
            f"unreliable {percent(bad, count)}",
        ]
        return Overview(head, [*rows, ("time", duration(self.seconds))])

    @property
    def interval(self) -> Tensor:
        """The 95 % confidence interval of log p(x), in nats, shape `[2, N]`.

        log_px ± t se, where t is the quantile of Student's t with C − 1 degrees of freedom.
        """
        reach = student_quantile(len(self.log_weights)) * self.se
        return torch.stack([self.log_px - reach, self.log_px + reach])

    @property
    def unreliable(self) -> Tensor:
        """Indices of the data whose `log_px` and `se` are not reliable, int64.

        These are the data with an ESS below 2 (one chain has all the weight), with a mean
        acceptance below 0.05, or without a finite standard error: all data where C = 1.
        """
        moves = self.acceptance_per_datum >= LEAST_ACCEPTANCE
        if self.settings.num_distributions == 1:  # a path without moves
            moves = torch.ones_like(moves)
        return (~((self.ess >= LEAST_ESS) & self.se.isfinite() & moves)).nonzero().flatten()

    @property
    def unreliable_posterior(self) -> Tensor:
        """Indices of the data whose posterior draws are not reliable, int64; empty without draws.

        These are the data with an ESS of the weights below 2, whose chains all start near one z,
        and those with a mean acceptance of the moves at β = 1 below 0.05. Whether the chains of the
        other data agree, R-hat and ESS of the draws tell.
        """
        if self.posterior_acceptance is None:
            return torch.zeros(0, dtype=torch.int64)
        is_good = (self.ess >= LEAST_ESS) & (self.posterior_acceptance >= LEAST_ACCEPTANCE)
        return (~is_good).nonzero().flatten()

    @property
    def acceptance_rate(self) -> float:
        """Mean Pr(accept) over path, chains and data; NaN for T = 1, a path without moves."""
        return self.acceptance_per_datum.mean().item()

    @property
    def acceptance_per_datum(self) -> Tensor:
        """Mean Pr(accept) over path and chains, `[N]`."""
        return self.acceptance.mean(0)

    @property
    def acceptance_per_segment(self) -> Tensor:
        """Mean Pr(accept) over chains and data, `[S]`."""
        return self.acceptance.mean(1)


@dataclass(frozen=True, repr=False)
class BDMC(Shown):
    """log p(x̃) of simulated data from below and from above, float64, in nats.

    Attributes:
        forward: Annealing from the start of the path to the posterior; its `log_px` is the lower
            bound.
        upper: Upper bound of log p(x̃) in expectation, `[N]`, by annealing in reverse from the z
            that x̃ was drawn with.
        upper_se: Standard error of `upper` over chains, `[N]`. The chains all start from the same
            z: the spread over z is not part of it, but of `mean_gap_se`.
        reverse_log_weights: Log-weights of the reverse chains, which estimate 1/p(x̃), `[C, N]`.
        x: Simulated data by site, in the shape that the program gives them.
        z: Simulated latent values by site, in the shape that the program gives them.
        seconds: Wall-clock time of the run, including the time before an interruption.
    """

    forward: AISEstimate
    upper: Tensor
    upper_se: Tensor
    reverse_log_weights: Tensor
    x: dict[str, Tensor]
    z: dict[str, Tensor]
    seconds: float

    def _overview(self) -> Overview:
        count, gap = len(self.gap), with_error(self.mean_gap, self.mean_gap_se, "nats")
        chains = len(self.reverse_log_weights)
        rows = [
            ("upper bound", f"mean {number(self.upper.mean().item(), 5)} nats"),
            ("lower bound", f"mean {number(self.lower.mean().item(), 5)} nats"),
            ("gap", f"mean {gap}, largest {number(self.gap.max().item(), 3)} nats"),
            ("unreliable", f"{len(self.forward.unreliable)} of {count} data"),
            ("time", duration(self.seconds)),
        ]
        return Overview([f"N={count} simulated data", f"C={chains}", f"gap {gap}"], rows)

    @property
    def lower(self) -> Tensor:
        """Lower bound of log p(x̃) in expectation, log (1/C) Σ w, `[N]`, in nats."""
        return self.forward.log_px

    @property
    def gap(self) -> Tensor:
        """The gap between the bounds, upper − lower, `[N]`, in nats."""
        return self.upper - self.lower

    @property
    def gap_se(self) -> Tensor:
        """Standard error of `gap` over chains, `[N]`, in nats."""
        return (self.upper_se.square() + self.forward.se.square()).sqrt()

    @property
    def mean_gap(self) -> float:
        """Mean of `gap` over data, in nats per datum.

        In expectation it is at least as large as the error of the lower bound.
        """
        return self.gap.mean().item()

    @property
    def mean_gap_se(self) -> float:
        """Standard error of `mean_gap` from the spread of `gap` over data, in nats per datum.

        It includes every source of error; NaN for one datum.
        """
        return (self.gap.std() / math.sqrt(len(self.gap))).item()


def ais_estimate(result: BlockResult, settings: AISSettings, seconds: float) -> AISEstimate:
    """Compute the estimate of log p(x) from the forward chains.

    Args:
        result: The tensors of all data.
        settings: The path and the moves.
        seconds: Wall-clock time of the run.

    Returns:
        The estimate of each datum.

    Raises:
        DataError: With its index, for a datum whose estimate is not finite.
    """
    assert result.log_weights is not None
    assert result.accept is not None
    assert result.step_sizes is not None
    log_px, se = _log_mean_exp(result.log_weights)
    _check_finite(log_px)
    twice = 2 * result.log_weights
    ess = (2 * result.log_weights.logsumexp(0) - twice.logsumexp(0)).exp()
    segment_of = torch.tensor(segments(settings.num_distributions), dtype=torch.int64)
    moves = segment_of.bincount(minlength=len(result.accept))[:, None]
    accept = result.posterior_accept
    return AISEstimate(
        log_px,
        se,
        ess,
        result.log_weights,
        result.accept / moves,
        result.step_sizes,
        settings,
        seconds,
        None if result.curve is None else curve_of(result.curve, settings),
        SiteValues(result.posterior),
        None if accept is None else accept[0] / settings.posterior_moves,
    )


def bdmc_estimate(result: BlockResult, settings: AISSettings, seconds: float) -> BDMC:
    """Compute both bounds of log p(x̃) from the forward and the reverse chains.

    Args:
        result: The tensors of all data.
        settings: The path and the moves.
        seconds: Wall-clock time of the run.

    Returns:
        The bounds of each datum.

    Raises:
        DataError: With its index, for a datum one of whose bounds is not finite.
    """
    assert result.reverse is not None
    negative, se = _log_mean_exp(result.reverse)
    _check_finite(-negative)
    forward = ais_estimate(result, settings, seconds)
    x, z = SiteValues(result.x), SiteValues(result.z)
    return BDMC(forward, -negative, se, result.reverse, x, z, seconds)


def _log_mean_exp(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Compute log (1/C) Σ w and its standard error by the delta method, of `[C, N]`."""
    count = len(log_weights)
    log_mean = log_weights.logsumexp(0) - math.log(count)
    if count == 1:
        return log_mean, torch.full_like(log_mean, math.nan)
    return log_mean, (log_weights - log_mean).exp().std(0) / math.sqrt(count)


def _check_finite(log_px: Tensor) -> None:
    if not torch.isfinite(log_px).all():
        n = int((~torch.isfinite(log_px)).nonzero()[0])
        raise DataError(
            f"the log-weights of datum {n} give log p(x) = {log_px[n].item()}: "
            "all chains miss it or one overflows"
        )
