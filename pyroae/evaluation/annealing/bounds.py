"""log p(x) of each datum by annealed importance sampling, and from both sides by bidirectional Monte Carlo."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import pyro
import scipy.stats
import torch
from torch import Tensor

from pyroae.compilation.codegen import is_wanted
from pyroae.config import AISSettings
from pyroae.distributed.work_sharing import everywhere
from pyroae.errors import BrokenProgramError, ConfigError, DataError
from pyroae.evaluation.annealing.block import (
    COMPILE_FROM,
    Placeholders,
    Plan,
    fingerprint,
    in_double,
)
from pyroae.evaluation.annealing.checkpoint import Checkpoint
from pyroae.evaluation.annealing.driver import Annealing
from pyroae.evaluation.annealing.hmc import segments
from pyroae.evaluation.blocks import Data, arguments_of, base_seed, rows_of, spans
from pyroae.evaluation.checks import check_evidence, check_proposal, check_terms
from pyroae.evaluation.importance.likelihood import PerDatumEstimate
from pyroae.evaluation.importance.sampler import LEAST
from pyroae.evaluation.trial import nesting_of
from pyroae.programs.context import evaluating, fork_random
from pyroae.programs.sites import Program
from pyroae.programs.traces import prior_of, run
from pyroae.runtime.memory import once
from pyroae.runtime.processes import WHOLE, Share
from pyroae.runtime.progress import Progress

LEAST_ESS, LEAST_ACCEPTANCE = 2.0, 0.05
"""Below which a datum's annealing is not to be trusted: the ESS of its chains, the mean Pr(accept)."""


@dataclass(frozen=True)
class AISEstimate(PerDatumEstimate):
    """Annealed log-likelihoods, float64, in nats.

    log_px: `[N]`, log (1/C) Σ w, a lower bound in expectation. se: `[N]`, its standard error by the delta method over
    chains, nan for C = 1. ess: `[N]`, (Σw)²/Σw², from 1 to C. log_weights: `[C, N]`. acceptance: `[S, N]`, the mean Pr(accept)
    in each of S segments of the path. step_sizes: `[S, N]`. seconds: the time it took.
    """

    log_px: Tensor
    se: Tensor
    ess: Tensor
    log_weights: Tensor
    acceptance: Tensor
    step_sizes: Tensor
    settings: AISSettings
    seconds: float

    @property
    def interval(self) -> Tensor:
        """95 % interval of log p(x), `[2, N]`: log_px ± t se, t the quantile of Student's t with C − 1 degrees of freedom."""
        reach = _student(len(self.log_weights)) * self.se
        return torch.stack([self.log_px - reach, self.log_px + reach])

    @property
    def unreliable(self) -> Tensor:
        """Indices of the data of which neither log_px nor its error is to be trusted.

        Those whose ESS is below 2 (one chain has all the weight), whose moves are hardly ever accepted, or without a finite
        error: all of them where C = 1.
        """
        moves = self.acceptance_per_datum >= LEAST_ACCEPTANCE
        if self.settings.num_distributions == 1:  # which has no moves
            moves = torch.ones_like(moves)
        return (~((self.ess >= LEAST_ESS) & self.se.isfinite() & moves)).nonzero().flatten()

    @property
    def acceptance_rate(self) -> float:
        """Mean Pr(accept) over path, chains and data; nan for T = 1, which has no moves."""
        return self.acceptance_per_datum.mean().item()

    @property
    def acceptance_per_datum(self) -> Tensor:
        """Mean Pr(accept) over path and chains, `[N]`."""
        return self.acceptance.mean(0)

    @property
    def acceptance_per_segment(self) -> Tensor:
        """Mean Pr(accept) over chains and data, `[S]`."""
        return self.acceptance.mean(1)


@dataclass(frozen=True)
class BDMC:
    """log p(x̃) of simulated data from below and from above, float64, in nats.

    forward: annealing from the start to the posterior, whose log_px is the lower bound. upper: `[N]`, by annealing back from
    the z that x̃ was drawn with, an upper bound in expectation. upper_se: `[N]`, over chains, which all start from that one
    z: the spread over z itself is not in it, but is in `mean_gap_se`. reverse_log_weights: `[C, N]`, of 1/p(x̃). x, z: what
    was drawn, by site, in the shape the program has it. seconds: the time it took.
    """

    forward: AISEstimate
    upper: Tensor
    upper_se: Tensor
    reverse_log_weights: Tensor
    x: dict[str, Tensor]
    z: dict[str, Tensor]
    seconds: float

    @property
    def lower(self) -> Tensor:
        """log (1/C) Σ w of the way there, `[N]`."""
        return self.forward.log_px

    @property
    def gap(self) -> Tensor:
        """upper − lower, `[N]`."""
        return self.upper - self.lower

    @property
    def gap_se(self) -> Tensor:
        """Standard error of `gap` over chains, `[N]`."""
        return (self.upper_se.square() + self.forward.se.square()).sqrt()

    @property
    def mean_gap(self) -> float:
        """Mean of `gap` over data: at least as large, in expectation, as the error of the lower bound."""
        return self.gap.mean().item()

    @property
    def mean_gap_se(self) -> float:
        """Standard error of `mean_gap` from its spread over data, which has everything in it; nan for one datum."""
        return (self.gap.std() / math.sqrt(len(self.gap))).item()


def ais(
    model: Program,
    guide: Program | None,
    x: Data,
    *,
    settings: AISSettings = AISSettings(),
    seed: int | None = None,
    progress: bool = False,
    checkpoint: Path | None = None,
    compile: bool | str = "auto",
    share: Share = WHOLE,
) -> AISEstimate:
    """Annealed importance sampling of log p(x_n) for each datum (Neal 2001; Wu et al. 2017).

        log w = Σ_t (β_t − β_{t−1}) log (f_1/f_0)(u_{t−1}),   f_1 = p(x, z) |dz/du|,   f_0 = p(z) |dz/du| or q(z|x) |dz/du|

    u_0 is drawn from f_0, u_t by Hamiltonian Monte Carlo that leaves f_0 (f_1/f_0)^β_t as it is. Step sizes, one a datum
    and segment of the path, come from a pilot with draws of its own and then stay: E log p̂ ≤ log p. x: `[N, ...]`, or a tuple
    of such arguments. guide: used where `settings.start` is "guide"; may else be None, or any. seed: of the draws; the
    caller's generators then stay as they were, and give one draw where it is None. checkpoint: a file in which the work is kept
    and from which the same call goes on, to the same result; the state is written before SIGINT or SIGTERM ends the process.
    compile: densities and gradients as graphs, as of `pyroae.compile`; "auto" where the path is so long that it pays. share: of
    this process in the work, where several call this with the same arguments; the estimate is the same on all, and for any
    number of them. Where memory runs out, blocks are halved, with a warning.
    Raises UndefinedLikelihoodError for an improper prior, or a Delta guide to start from; ProgramError, naming the site, for
    latents that are discrete or outside the data plate; DataError, with its index, for a datum whose weights are all zero or
    not a number; RunError or ConfigError for a checkpoint that cannot be read or is of another run; ConfigError where memory
    does not hold the chains of one datum.

    >>> from pyroae import exact_log_likelihood, zoo
    >>> system, x = zoo.ppca(4, latent=2), torch.zeros(3, 4)
    >>> found = ais(system.model, None, x, settings=AISSettings(num_distributions=20, leapfrog_steps=5), seed=0)
    >>> bool(((found.log_px - exact_log_likelihood(system, x)).abs() < 5 * found.se).all())
    True
    """
    found, seconds = _anneal(
        model, guide, x, settings, seed, progress, checkpoint, compile, share, simulated=False
    )
    return _estimate(found, settings, seconds)


def bdmc(
    model: Program,
    guide: Program | None,
    x: Data,
    *,
    settings: AISSettings = AISSettings(),
    seed: int | None = None,
    progress: bool = False,
    checkpoint: Path | None = None,
    compile: bool | str = "auto",
    share: Share = WHOLE,
) -> BDMC:
    """Bidirectional Monte Carlo: log p(x̃) of data drawn from the model, between two bounds (Grosse et al. 2015).

        E log (1/C) Σ w ≤ log p(x̃) ≤ E −log (1/C) Σ 1/w',   w' on the way back from z,   (z, x̃) ~ p(z) p(x|z)

    The gap between them bounds the error of annealing with these settings, on data like the model's. x: as many data as are
    drawn; of its values only those matter that the model is conditioned on beside what it observes. With start="guide" the
    guide is given x̃ in place of the argument that was observed.
    Raises what `ais` raises; ProgramError for a model that cannot be drawn from; ConfigError where the guide cannot be given x̃.

    >>> from pyroae import zoo
    >>> system = zoo.ppca(4, latent=2)
    >>> found = bdmc(system.model, None, torch.zeros(200, 4), settings=AISSettings(4, 20, leapfrog_steps=5), seed=0)
    >>> found.mean_gap > -3 * found.mean_gap_se
    True
    """
    found, seconds = _anneal(
        model, guide, x, settings, seed, progress, checkpoint, compile, share, simulated=True
    )
    reverse = found["reverse"]
    below, se = _log_mean_exp(reverse)
    _check_finite(-below)
    sites = {
        kind: {name[2:]: v for name, v in found.items() if name.startswith(f"{kind}/")}
        for kind in "xz"
    }
    return BDMC(
        _estimate(found, settings, seconds), -below, se, reverse, sites["x"], sites["z"], seconds
    )


def _anneal(
    model: Program,
    guide: Program | None,
    x: Data,
    settings: AISSettings,
    seed: int | None,
    progress: bool,
    checkpoint: Path | None,
    compile: bool | str,
    share: Share,
    *,
    simulated: bool,
) -> tuple[dict[str, Tensor], float]:
    """What every block has found, joined along the data, on the CPU; and the seconds it took."""
    if settings.start == "guide" and guide is None:
        raise ConfigError('start="guide" needs a guide: give one, or use start="prior"')
    guide = guide if settings.start == "guide" else None
    programs, args = (model,) if guide is None else (model, guide), arguments_of(x)
    if settings.double:
        args = tuple(a.double() if a.is_floating_point() else a for a in args)
    total, size = len(args[0]), min(len(args[0]), max(1, rows_of(args) // settings.num_chains))
    name = "bdmc" if simulated else "ais"

    def prepared() -> tuple[Plan, dict[str, int], Checkpoint]:
        plan, dims, mark = _look(model, guide, args, settings, simulated)
        identity = {"kind": name, **asdict(settings), "seed": seed, "data": mark, "block": size}
        return plan, dims, Checkpoint(checkpoint, identity, base, share)

    base = base_seed(seed)
    with _ready(programs, settings), fork_random(args[0].device), pyro.validation_enabled(False):
        plan, dims, kept = everywhere(share, prepared)
        parts = spans(total, size)
        work = sum(plan.work(len(span) * args[0][0].numel()) for span in parts)
        compiles = is_wanted(compile, work >= COMPILE_FROM)
        with Progress(name.upper(), len(parts) * plan.moves, progress and share.rank == 0) as bar:
            found = Annealing(plan, args, size, kept, share, compiles, bar).run()
    return _joined(found, dims), max(share.gather(kept.elapsed))


@contextmanager
def _ready(programs: tuple[Program, ...], settings: AISSettings) -> Iterator[None]:
    """Evaluation mode and precision. Raises ConfigError where a program does not run in double precision."""
    with evaluating(*programs), in_double(programs) if settings.double else nullcontext():
        yield


def _look(
    model: Program,
    guide: Program | None,
    args: tuple[Tensor, ...],
    settings: AISSettings,
    simulated: bool,
) -> tuple[Plan, dict[str, int], str]:
    """Refuses what has no log p(x); the plan, where each site has its data, and a fingerprint."""
    first = tuple(a[:1] for a in args)
    program = prior_of(model) if guide is None else guide
    with fork_random(first[0].device), Placeholders():
        try:
            traces = once(lambda: run(model, program, first, {}), LEAST)
        except (RuntimeError, BrokenProgramError) as error:
            if settings.double and "dtype" in str(error):
                raise ConfigError(
                    f"double=True: the program does not run in double precision: {error}"
                ) from error
            raise
        (check_evidence if guide is None else check_proposal)(traces)
        check_terms(model, program, args, "path")
        nesting = nesting_of(model, program, args)
    mark = fingerprint(traces, (model,) if guide is None else (model, guide), args)
    plan = Plan(
        model,
        guide,
        settings.num_chains,
        settings.betas,
        settings.leapfrog_steps,
        settings.target_acceptance,
        nesting,
        simulated,
    )
    plate = traces.plate.dim if traces.plate is not None else 0
    dims = {
        name: plate - site["fn"].event_dim
        for name, site in traces.model.nodes.items()
        if site["type"] == "sample"
    }
    return plan, dims, mark


def _joined(parts: list[dict[str, Tensor]], dims: dict[str, int]) -> dict[str, Tensor]:
    return {
        n: torch.cat([p[n] for p in parts], dims.get(n[2:], 1)) if len(parts) > 1 else parts[0][n]
        for n in parts[0]
    }


def _estimate(found: dict[str, Tensor], settings: AISSettings, seconds: float) -> AISEstimate:
    log_weights = found["log_weights"]
    log_px, se = _log_mean_exp(log_weights)
    _check_finite(log_px)
    ess = (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()
    where = torch.tensor(segments(settings.num_distributions), dtype=torch.int64)
    moves = where.bincount(minlength=len(found["accept"]))[:, None]
    return AISEstimate(
        log_px,
        se,
        ess,
        log_weights,
        found["accept"] / moves,
        found["step_sizes"],
        settings,
        seconds,
    )


def _log_mean_exp(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """log (1/C) Σ w and its standard error by the delta method, of `[C, N]`."""
    count = len(log_weights)
    log_mean = log_weights.logsumexp(0) - math.log(count)
    if count == 1:
        return log_mean, torch.full_like(log_mean, math.nan)
    return log_mean, (log_weights - log_mean).exp().std(0) / math.sqrt(count)


def _check_finite(log_px: Tensor) -> None:
    if not torch.isfinite(log_px).all():
        n = int((~torch.isfinite(log_px)).nonzero()[0])
        raise DataError(
            f"the log-weights of datum {n} give log p(x) = {log_px[n].item()}: all chains miss it or one overflows"
        )


def _student(count: int) -> float:
    return float(scipy.stats.t.ppf(0.975, count - 1)) if count > 1 else math.nan
