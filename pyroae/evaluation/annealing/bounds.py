"""Annealed importance sampling of log p(x), and bidirectional Monte Carlo bounds on it."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import pyro

from pyroae.compilation.codegen import should_compile
from pyroae.config import AISSettings
from pyroae.distributed.work_sharing import run_on_all
from pyroae.errors import ConfigError
from pyroae.evaluation.annealing.chain_summaries import summarized_steps
from pyroae.evaluation.annealing.checkpoint import Checkpoint
from pyroae.evaluation.annealing.driver import Annealing
from pyroae.evaluation.annealing.estimates import BDMC, AISEstimate, ais_estimate, bdmc_estimate
from pyroae.evaluation.annealing.plan import COMPILE_FROM
from pyroae.evaluation.annealing.preparation import Preparation, in_double, prepare
from pyroae.evaluation.annealing.results import BlockResult
from pyroae.evaluation.blocks import Data, arguments_of, base_seed, rows_of, spans
from pyroae.programs.context import evaluating
from pyroae.programs.sites import Program
from pyroae.runtime.processes import WHOLE, Share
from pyroae.runtime.progress import Progress
from pyroae.runtime.randomness import fork_random

DEFAULTS = AISSettings()


def ais(
    model: Program,
    guide: Program | None,
    x: Data,
    *,
    settings: AISSettings = DEFAULTS,
    seed: int | None = None,
    progress: bool = False,
    checkpoint: Path | None = None,
    compile: bool | str = "auto",
    share: Share = WHOLE,
) -> AISEstimate:
    """Estimate log p(x_n) of each datum by annealed importance sampling.

        log p̂ = log (1/C) Σ_c w_c,   log w = Σ_t (β_t − β_{t−1}) log (f_1/f_0)(u_{t−1})
        f_1 = p(x, z) |dz/du|,   f_0 = p(z) |dz/du|  or  q(z|x) |dz/du|

    u_0 is drawn from f_0, and u_t by a Hamiltonian Monte Carlo move that leaves f_0 (f_1/f_0)^β_t
    invariant. A pilot with its own draws adapts one step size per datum and segment of the path;
    the step sizes are then frozen, so that E log p̂ ≤ log p. Where memory runs out, blocks of data
    are halved, with a warning.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The program q(z|x), used where `settings.start` is `"guide"`; otherwise ignored, and
            may be None.
        x: Data, `[N, ...]`, or a tuple of such arguments of both programs.
        settings: The path and the moves.
        seed: Seed of the draws; the caller's generators are then left unchanged. With None the
            seed is one draw from torch's generator.
        progress: Show a progress bar.
        checkpoint: A file in which the state is kept, from which the same call resumes to the same
            result. The state is written before SIGINT or SIGTERM ends the process.
        compile: Compile densities and gradients, as `pyroae.compile` does; `"auto"` compiles long
            paths, where it saves time.
        share: The part of this process in the work, where several processes call this with the
            same arguments. The estimate is the same on all, and for any number of processes.

    Returns:
        The estimate of each datum, `[N]`, in nats, with its errors and diagnostics.

    Raises:
        UndefinedLikelihoodError: For an improper prior, or a Delta guide to start from.
        ProgramError: Naming the site, for latents that are discrete or outside the data plate.
        DataError: With its index, for a datum whose weights are all zero or not a number.
        RunError: For a checkpoint that cannot be read or written.
        ConfigError: For a checkpoint of another run, or where memory does not hold the chains of
            one datum.

    References:
        Neal (2001), Annealed importance sampling.
        Wu, Burda, Salakhutdinov and Grosse (2017), On the quantitative analysis of decoder-based
        generative models.

    >>> import torch
    >>> from pyroae import exact_log_likelihood, zoo
    >>> system, x = zoo.ppca(4, latent=2), torch.zeros(3, 4)
    >>> settings = AISSettings(num_distributions=20, leapfrog_steps=5)
    >>> estimate = ais(system.model, None, x, settings=settings, seed=0)
    >>> exact = exact_log_likelihood(system, x)
    >>> bool(((estimate.log_px - exact).abs() < 5 * estimate.se).all())
    True
    """
    execution = _Execution(seed, progress, checkpoint, compile, share)
    result, seconds = _anneal(model, guide, x, settings, execution)
    return ais_estimate(result, settings, seconds)


def bdmc(
    model: Program,
    guide: Program | None,
    x: Data,
    *,
    settings: AISSettings = DEFAULTS,
    seed: int | None = None,
    progress: bool = False,
    checkpoint: Path | None = None,
    compile: bool | str = "auto",
    share: Share = WHOLE,
) -> BDMC:
    """Bound log p(x̃) of data drawn from the model from both sides: bidirectional Monte Carlo.

        E log (1/C) Σ w ≤ log p(x̃) ≤ −E log (1/C) Σ 1/w',   (z, x̃) ~ p(z) p(x|z)

    where w' are weights of chains that start at z and follow the path in reverse. The gap between
    the bounds limits the error of annealing with these settings, on data like those of the model.
    With `start="guide"` the guide receives x̃ in place of the argument that was observed.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The program q(z|x), used where `settings.start` is `"guide"`; otherwise ignored, and
            may be None.
        x: As many data as are drawn, `[N, ...]`, or a tuple of arguments. Of their values only
            those matter that the model is conditioned on beside its observed values.
        settings: The path and the moves.
        seed: As in `ais`.
        progress: Show a progress bar.
        checkpoint: As in `ais`.
        compile: As in `ais`.
        share: As in `ais`.

    Returns:
        Both bounds for each simulated datum, `[N]`, in nats, with the simulated data.

    Raises:
        UndefinedLikelihoodError: As `ais`.
        ProgramError: As `ais`, and for a model from which x cannot be drawn.
        DataError: As `ais`.
        RunError: As `ais`.
        ConfigError: As `ais`, and where the guide cannot be given x̃.

    References:
        Grosse, Ghahramani and Adams (2015), Sandwiching the marginal likelihood using
        bidirectional Monte Carlo.

    >>> import torch
    >>> from pyroae import zoo
    >>> system, settings = zoo.ppca(4, latent=2), AISSettings(4, 20, leapfrog_steps=5)
    >>> bounds = bdmc(system.model, None, torch.zeros(200, 4), settings=settings, seed=0)
    >>> bounds.mean_gap > -3 * bounds.mean_gap_se
    True
    """
    execution = _Execution(seed, progress, checkpoint, compile, share)
    result, seconds = _anneal(model, guide, x, settings, execution, simulated=True)
    return bdmc_estimate(result, settings, seconds)


@dataclass(frozen=True)
class _Execution:
    """How a run is executed. Only the seed changes its result."""

    seed: int | None
    progress: bool
    checkpoint: Path | None
    compile: bool | str
    share: Share


def _anneal(
    model: Program,
    guide: Program | None,
    x: Data,
    settings: AISSettings,
    execution: _Execution,
    *,
    simulated: bool = False,
) -> tuple[BlockResult, float]:
    """The tensors of all data, on the CPU, and the wall-clock time in seconds."""
    if settings.start == "guide" and guide is None:
        raise ConfigError('start="guide" needs a guide: give one, or use start="prior"')
    guide = guide if settings.start == "guide" else None
    programs, args = (model,) if guide is None else (model, guide), arguments_of(x)
    if settings.double:
        args = tuple(a.double() if a.is_floating_point() else a for a in args)
    total, size = len(args[0]), min(len(args[0]), max(1, rows_of(args) // settings.num_chains))
    name, share, seed = "bdmc" if simulated else "ais", execution.share, base_seed(execution.seed)

    def prepared() -> tuple[Preparation, Checkpoint]:
        preparation = prepare(model, guide, args, settings, simulated)
        data = {"seed": execution.seed, "data": preparation.fingerprint, "block": size}
        data |= {"temperatures": len(summarized_steps(settings.num_distributions))}
        identity = {"kind": name, **asdict(settings), **data}
        return preparation, Checkpoint(execution.checkpoint, identity, seed, share)

    precision = in_double(programs) if settings.double else nullcontext()
    with (
        evaluating(*programs),
        precision,
        fork_random(args[0].device),
        pyro.validation_enabled(False),
    ):
        preparation, file = run_on_all(share, prepared)
        plan, blocks = preparation.plan, spans(total, size)
        work = sum(plan.work(len(block) * args[0][0].numel()) for block in blocks)
        compiles = should_compile(execution.compile, work >= COMPILE_FROM)
        shown = execution.progress and share.rank == 0
        with Progress(name.upper(), len(blocks) * plan.moves, shown) as bar:
            parts = Annealing(plan, args, size, file, share, compiles, bar).run()
    result = BlockResult.joined(parts, preparation.data_dims)
    return result, max(share.gather(file.elapsed))
