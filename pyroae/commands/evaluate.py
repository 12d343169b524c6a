"""The evaluation of a run: every way to log p(x) that is asked for, in one table, results.json, the DataTree and figures."""

import hashlib
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from pyroae.commands.work import evaluate_run, part_of, say
from pyroae.config import TrainConfig
from pyroae.data import Dataset
from pyroae.errors import RunError
from pyroae.evaluation.ais import AISSettings
from pyroae.evaluation.likelihood import LikelihoodEstimate
from pyroae.evaluation.streams import LEAST_ESS, LEAST_FOR_PSIS
from pyroae.evaluation.summary import Evaluation, EvaluationSettings
from pyroae.fabric import launched
from pyroae.files import guarded
from pyroae.runs import Run

LABELS = {
    "nll": "NLL by importance sampling",
    "nll_jackknife": "  bias removed by the jackknife",
    "nll_psis": "  Pareto-smoothed",
    "nll_ais": "NLL by annealing",
    "nll_exact": "NLL, closed form",
    "nll_quadrature": "NLL by quadrature",
    "bdmc_lower": "simulated data: log p(x), lower",
    "bdmc_upper": "simulated data: log p(x), upper",
    "bdmc_gap": "simulated data: BDMC gap",
    "nelbo": "negative ELBO",
    "rate": "rate",
    "distortion": "distortion",
    "inference_gap": "inference gap",
    "amortization_gap": "amortization gap, diagonal q*",
    "approximation_gap": "approximation gap, diagonal q*",
    "amortization_gap_full_rank": "amortization gap, full-rank q*",
    "approximation_gap_full_rank": "approximation gap, full-rank q*",
    "mutual_information_lower": "mutual information, lower",
    "mutual_information_upper": "mutual information, upper",
    "marginal_kl_lower": "KL(q(z) ‖ p(z)), lower",
    "marginal_kl_upper": "KL(q(z) ‖ p(z)), upper",
    "active_units": "active units",
    "squared_error": "squared error",
}
COUNTS = ("active_units",)
EVALUATION = "evaluation.yaml"
"""The options of the last evaluation, by which `reproduce` repeats it."""


def evaluate(
    run_directory: str,
    method: str | None,
    num_particles: int,
    tolerance: float | None,
    proposal: str,
    retry: str | None,
    seed: int,
    compile: bool | str,
    annealing: dict[str, Any],
    devices: int = 1,
    num_nodes: int = 1,
    **part: Any,
) -> None:
    """Evaluate a run: one table, results.json, evaluation.nc, figures.

    annealing: of AISSettings. devices, num_nodes: processes that importance sampling and annealing are dealt to; the figures do
    not depend on their number. part: data, split, num_data and checkpoint, as of other commands. An annealing that was stopped
    goes on when the same command is given again.
    """
    given: dict[str, Any] = {
        "method": method,
        "num_particles": num_particles,
        "tolerance": tolerance,
        "proposal": proposal,
        "retry": retry,
    }
    given |= {"seed": seed, "compile": compile, "annealing": annealing, **part}
    methods = None if method is None else tuple(name.strip() for name in method.split(","))
    along = AISSettings(**annealing)
    settings = EvaluationSettings(methods, num_particles, tolerance, proposal, retry, along, seed, compile=compile)
    run = Run(run_directory)
    dataset = part_of(run, part["data"], part["split"], part["num_data"])
    fabric = launched(TrainConfig(accelerator=run.config.accelerator, devices=devices, num_nodes=num_nodes))
    folder = _folder(run, dataset, settings, part["checkpoint"])
    found = evaluate_run(run, dataset, replace(settings, checkpoints=folder), checkpoint=part["checkpoint"], fabric=fabric)
    if not fabric.is_global_zero:
        return
    guarded(run.path / EVALUATION, lambda file: file.write_text(yaml.safe_dump(given, sort_keys=False)))
    shutil.rmtree(folder.parent, ignore_errors=True)
    say(f"{run.path}: {len(dataset)} data of {dataset.name}, {part['split']} part")
    Console().print(_table(found))
    if len(found.sandwich()) > 2:
        Console().print(_sandwich(found))
    for line in _notes(found):
        say(line)


def _folder(run: Run, dataset: Dataset, settings: EvaluationSettings, checkpoint: str | None) -> Path:
    """Where annealing keeps its work: a folder for these settings, weights and data, so that nothing else goes on from it."""
    told = f"{settings.annealing} {settings.seed} {checkpoint} {len(dataset)}".encode()
    mark = hashlib.sha256(told + dataset.x.numpy().tobytes()).hexdigest()[:12]
    folder = run.path / "annealing" / mark
    if {"ais", "bdmc"} & set(settings.methods or ()):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot write '{folder}': {error.strerror or error}") from None
    return folder


def _table(found: Evaluation) -> Table:
    table = Table("in nats per datum", "estimate", "± SE", box=box.SIMPLE_HEAD)
    for name, label in LABELS.items():
        if name in found.results:
            result = found.results[name]
            spread = "" if math.isnan(result.se) else f"{result.se:.3f}"
            table.add_row(label, f"{result.estimate:.{0 if name in COUNTS else 3}f}", spread)
    return table


def _sandwich(found: Evaluation) -> Table:
    """Bounds and estimates of log p(x) on these data, the loosest first."""
    table = Table("log p(x), nats per datum", "estimate", "± 95 %, Monte Carlo", box=box.SIMPLE_HEAD)
    for name, (value, half) in found.sandwich().items():
        table.add_row(name, f"{value:.3f}", "" if math.isnan(half) else f"{half:.4f}")
    return table


def _notes(found: Evaluation) -> list[str]:
    """What to know before the figures are believed."""
    notes = _of_likelihood(found.likelihood) if found.likelihood is not None else []
    for name, annealed in (("AIS", found.annealed), ("BDMC", found.bidirectional and found.bidirectional.forward)):
        if annealed:
            asked = annealed.settings
            notes.append(
                f"{name}: {asked.num_chains} chains, {asked.num_distributions:,} distributions, acceptance "
                f"{annealed.acceptance_rate:.2f} (target {asked.target_acceptance:.2f}), median ESS {annealed.ess.median():.1f}"
            )
            if len(bad := annealed.unreliable.tolist()):
                notes.append(
                    f"{name}: one chain has all the weight, or hardly a move is accepted, for {len(bad)} of "
                    f"{len(annealed.ess)} data, which are not to be trusted: {_shown(bad)}"
                )
    if found.quadrature is not None and not bool(found.quadrature.converged.all()):
        notes.append(f"quadrature: {int((~found.quadrature.converged).sum())} data have not converged")
    if found.gaps is not None and len(bad := found.gaps.unreliable.tolist()):
        notes.append(f"gaps: the log p(x) of {len(bad)} data is not to be trusted: {_shown(bad)}")
    if found.information is not None and found.information.is_saturated:
        notes.append("the lower bound on the mutual information is at its limit, log N: give more data")
    if found.undefined:
        notes.append(f"no log-likelihood: {found.undefined}")
    return notes


def _of_likelihood(estimate: LikelihoodEstimate) -> list[str]:
    count = estimate.num_particles
    notes = [
        f"K = {count:,}: error of the NLL for these data {estimate.error:.4f} (Monte Carlo {estimate.monte_carlo_se:.4f}, bias "
        f"{estimate.bias:+.4f}), median ESS {estimate.ess.median():.0f}"
    ]
    if not estimate.is_within_tolerance:
        notes.append(f"the tolerance of {estimate.tolerance} is not reached: give more --num-particles, or a better --proposal")
    if count < LEAST_FOR_PSIS:
        return [*notes, f"no k̂: it takes K of at least {LEAST_FOR_PSIS}; no error is to be trusted"]
    bad = estimate.unreliable.tolist()
    limit = float(estimate.khat_limit.min())
    if not bad:
        told = f"k̂ is below {limit:.2f} and the ESS is {LEAST_ESS:.0f} or more for all {len(estimate.draws)} data"
        return [*notes, f"{told}: the errors may be trusted"]
    return [
        *notes,
        f"k̂ is {limit:.2f} or more, or not known, or the ESS is below {LEAST_ESS:.0f}, for {len(bad)} of {len(estimate.draws)} "
        f"data: neither their log p(x) nor its error is to be trusted (--retry local, or --method ais): {_shown(bad)}",
    ]


def _shown(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:20])) + (", …" if len(indices) > 20 else "")
