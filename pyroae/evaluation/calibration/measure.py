"""Calibration of an amortized posterior on simulated data, without fitting anything again."""

import time
from collections.abc import Iterator

import pyro
import torch
from pyro.distributions import ImproperUniform
from torch import Tensor

from pyroae.config.calibration import CalibrationSettings
from pyroae.errors import ProgramError, UndefinedLikelihoodError
from pyroae.evaluation.blocks import Data, block_seed, part_of, rows_of, spans
from pyroae.evaluation.calibration.results import Calibration, judged
from pyroae.evaluation.calibration.simulation import (
    Plan,
    Ranks,
    check_reads_data,
    rank,
    simulate,
)
from pyroae.evaluation.checks import check_terms, points_of
from pyroae.evaluation.trial import nesting_of
from pyroae.programs.arguments import structure_of
from pyroae.programs.context import evaluating
from pyroae.programs.paired_traces import Traces
from pyroae.programs.particle_check import plate_nesting
from pyroae.programs.sites import Program, base_distribution
from pyroae.programs.traces import run
from pyroae.runtime.memory import once
from pyroae.runtime.progress import Progress
from pyroae.runtime.randomness import fork_random

DEFAULTS = CalibrationSettings()


FEW = 20
"""The number of data of the simulation that checks the programs."""


def measure_calibration(
    model: Program,
    guide: Program,
    x: Data,
    *,
    settings: CalibrationSettings = DEFAULTS,
    progress: bool = False,
    **kwargs: object,
) -> Calibration:
    """Test whether true latent values look like draws of q(z|x), on data simulated by the model.

        (z*, x̃) ~ p(z) p(x|z),   z_1, …, z_L ~ q(z|x̃),   p_j = P_q(z_j ≤ z*_j | x̃)

    p_j is uniform for each scalar latent j if q is the posterior. It is the randomized rank of z*_j
    among the draws (simulation-based calibration), whose asymmetry shows a bias of q and whose
    dispersion shows a q that is too narrow or too wide (VSBC). With `draws="importance"` the draws
    are weighted by p(x̃, z)/q(z|x̃). Ranks of log p(z), log p(x̃|z) and log p(x̃, z) are tested too.

    Uniform p-values say that q fits p(z|x) on average over data of the model. They say nothing
    about data that the model does not produce.

    Each datum is a repetition. Where latents lie outside the data plate each simulated data set is
    one, with the local latents of one datum.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The program q(z|x).
        x: Data `[N, ...]` whose shape the simulated data have, or the arguments of model and guide.
            Of observed values only masks and missing ones matter. Covariates are used: simulations
            go through the rows in random order, repeatedly.
        settings: The numbers of simulations and draws, their weights, the level and the seed; the
            caller's generators are left unchanged.
        progress: Show a progress bar.
        kwargs: Keyword arguments of the programs: tensors `[N, ...]` and constants.

    Returns:
        The p-values, and a verdict for each latent and for all.

    Raises:
        UndefinedLikelihoodError: For a flat prior, or a guide of a point (Delta).
        ProgramError: Naming the site, for a model from which x cannot be drawn, and for a guide
            that does not depend on the data.
        ConfigError: Where the guide cannot be given simulated data.

    References:
        Yao, Vehtari, Simpson and Gelman (2018), Yes, but did it work?: evaluating variational
        inference.
        Talts, Betancourt, Simpson, Vehtari and Gelman (2018), Validating Bayesian inference
        algorithms with simulation-based calibration.
        Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman and Vehtari (2023),
        Simulation-based calibration checking for Bayesian computation.

    >>> from pyroae import zoo
    >>> system, x = zoo.ppca(4, latent=2, exact=True), torch.zeros(1, 4)
    >>> found = measure_calibration(system.model, system.guide, x)
    >>> found.verdict, found.p_values.shape
    ('calibrated within noise (5 quantities, level 0.05, 500 simulations)', torch.Size([500, 5]))
    """
    started = time.monotonic()
    structure = structure_of(x, kwargs, model)
    model, guide, args = structure(model), structure(guide), structure.tensors
    with (
        evaluating(model, guide),
        fork_random(args[0].device, settings.seed),
        pyro.validation_enabled(False),
    ):
        plan = _plan(model, guide, args, settings)
        parts = []
        with Progress("calibration", settings.num_simulations, progress) as bar:
            for part in _repetitions(plan, args):
                parts.append(part)
                bar.update(sum(len(each.p) for each in parts))
    ranks = Ranks.joined(parts)
    quantities = judged(ranks.names, ranks.p, settings)
    return Calibration(quantities, ranks.p, ranks.ess, settings, time.monotonic() - started)


def _plan(
    model: Program, guide: Program, args: tuple[Tensor, ...], settings: CalibrationSettings
) -> Plan:
    """Check the programs, and find whether each datum is a repetition."""
    traces = once(lambda: run(model, guide, args, {}), "one draw for each datum")
    _check(traces, guide, args)
    if settings.draws == "guide":
        _refuse_factors(traces)
    latent = traces.sites(traces.model, observed=False)
    joint = traces.plate is None or not all(traces.is_local(site) for _, site in latent)
    few = args if joint else tuple(a[torch.arange(FEW) % len(a)] for a in args)
    if not joint:
        _check_amortized(model, guide, few)
    check_terms(model, guide, args)
    nesting = plate_nesting(model, guide, args, {}) if joint else nesting_of(model, guide, args)
    plan = Plan(model, guide, nesting, joint, settings)
    with fork_random(args[0].device, settings.seed):
        check_reads_data(plan, simulate(plan, few))
    return plan


def _check_amortized(model: Program, guide: Program, few: tuple[Tensor, ...]) -> None:
    """Refuse a guide that does not take other numbers of data."""
    for number in (1, 2):
        try:
            run(model, guide, part_of(few, range(number)), {})
        except ProgramError as error:
            raise ProgramError(
                f"calibration needs a guide that takes any data, and with {number} of them: {error}"
            ) from error


def _check(traces: Traces, guide: Program, args: tuple[Tensor, ...]) -> None:
    """Refuse programs without a posterior that could be calibrated."""
    for name, site in traces.sites(traces.model, observed=False):
        if isinstance(base_distribution(site["fn"]), ImproperUniform):
            raise UndefinedLikelihoodError(
                f"nothing can be simulated: the prior of '{name}' is flat and has no draws; "
                "calibrate a system with a proper prior (ppca, vae, or a Normal or Laplace prior)"
            )
    for name in points_of(traces, guide, args, all_sites=True):
        raise UndefinedLikelihoodError(
            f"the guide's site '{name}' is a Delta: a point is no posterior that could be "
            "calibrated; use a posterior with a density, such as diagonal"
        )
    plate = traces.plate
    if plate is not None and plate.full_size not in (None, plate.size):
        raise ProgramError(
            f"the plate '{plate.name}' is subsampled: calibrate with all {plate.full_size} data"
        )
    if not any(True for _ in traces.sites(traces.model, observed=False)):
        raise ProgramError("the program has no latent site")


def _refuse_factors(traces: Traces) -> None:
    for name, _ in traces.sites(traces.guide, observed=True):
        raise ProgramError(
            f"the guide has the factor or observed site '{name}', which its draws do not follow: "
            "use draws=importance, whose weights contain it"
        )


def _repetitions(plan: Plan, args: tuple[Tensor, ...]) -> Iterator[Ranks]:
    """Simulations in blocks of data, or data set by data set."""
    count, device, seed = plan.settings.num_simulations, args[0].device, plan.settings.seed
    if plan.joint:
        for number in range(count):
            with fork_random(device, block_seed(seed, number)):
                yield rank(plan, simulate(plan, args), number % len(args[0]))
        return
    orders = [torch.randperm(len(args[0])) for _ in range(-(-count // len(args[0])))]
    rows = torch.cat(orders)[:count].to(device)
    for span in spans(count, max(1, rows_of(args) // plan.settings.num_draws)):
        with fork_random(device, block_seed(seed, span.start)):
            part = tuple(arg[rows[span.start : span.stop]] for arg in args)
            yield rank(plan, simulate(plan, part))
