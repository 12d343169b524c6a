"""The command `evaluate`: log p(x) of a run by every method, as a table, files and figures."""

import hashlib
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pyroae import plots
from pyroae.autoencoder import Autoencoder
from pyroae.autoencoder.hierarchies import site_of
from pyroae.commands.snapshots import write_evaluations
from pyroae.config import ALL, EvaluationSettings, Part, TrainConfig
from pyroae.data.dataset import Dataset
from pyroae.distributed.fabric import launch_fabric, share_of
from pyroae.errors import PyroaeError, RunError
from pyroae.evaluation.blocks import Data
from pyroae.evaluation.importance.likelihood import LikelihoodEstimate
from pyroae.evaluation.importance.streams import LEAST_ESS, LEAST_FOR_PSIS
from pyroae.evaluation.summary import Evaluation
from pyroae.evaluation.summary import evaluate as evaluate_system
from pyroae.inference_data import to_datatree
from pyroae.plots import likelihood as likelihood_plots
from pyroae.plots.drawing import save
from pyroae.programs.arguments import Arguments
from pyroae.programs.pair import like_parameters
from pyroae.runs.loading import arguments_in, own_parameters, part_of, placed, trained
from pyroae.runs.report import write_report
from pyroae.runs.run import Run, device_of
from pyroae.runs.snapshots import weights_along_training
from pyroae.runtime.files import guarded
from pyroae.runtime.processes import WHOLE, say
from pyroae.training.preflight import check_data
from pyroae.training.validation import DEAD

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LABELS = {
    "nll": "NLL by importance sampling",
    "nll_jackknife": "  bias removed by the jackknife",
    "nll_psis": "  Pareto-smoothed",
    "nll_ais": "NLL by annealing",
    "nll_exact": "NLL, exact",
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
    "total_correlation": "total correlation of q(z|x)",
    "active_units": "active units",
    "squared_error": "squared error",
    "wrong_codes": "share of wrong codes",
    "bits_per_dimension": "bits per dimension",
    "bits_per_dimension_bound": "bits per dimension, by the negative ELBO",
    "zero_share": "share of codes that are exactly 0",
    "live_share": "share of units that are not 0 for some datum",
    "accuracy": "accuracy of the classes",
}


COUNTS = ("active_units",)


EVALUATION = "evaluation.yaml"
"""The options of the last evaluation, by which `reproduce` repeats it."""


@own_parameters()
def evaluate(
    run_directory: str,
    settings: EvaluationSettings,
    part: Part,
    *,
    imports: Sequence[str] = (),
    devices: int = 1,
    num_nodes: int = 1,
) -> None:
    """Evaluate a run: print one table, and write results.json, evaluation.nc and figures.

    An annealing that was stopped continues when the same command is given again. With the
    checkpoint `all` the snapshots of the run are evaluated too, in one more table, file and figure.

    Args:
        run_directory: The run.
        settings: What is evaluated, and how.
        part: The data and the weights.
        imports: Modules that were imported for this evaluation, beside those of the run.
        devices: Processes of a machine that share importance sampling and annealing; the figures
            do not depend on their number.
        num_nodes: Machines.

    Raises:
        PyroaeError: For what cannot be evaluated.
    """
    run = Run(run_directory)
    along = weights_along_training(run) if part.checkpoint == ALL else {}
    part = replace(part, checkpoint=None) if along else part
    dataset = part_of(run, part)
    fabric = launch_fabric(
        TrainConfig(accelerator=run.config.accelerator, devices=devices, num_nodes=num_nodes)
    )

    def work(checkpoint: str | None) -> EvaluationSettings:
        return replace(settings, checkpoints=_folder(run, dataset, settings, checkpoint))

    evaluations = {}
    for epoch, checkpoint in along.items():
        if checkpoint is not None:
            say(f"{run.path}: the snapshot of epoch {epoch}")
            evaluations[epoch] = _evaluated(run, dataset, work(checkpoint), checkpoint, fabric)[2]
    found = evaluate_run(
        run, dataset, work(part.checkpoint), checkpoint=part.checkpoint, fabric=fabric
    )
    if not fabric.is_global_zero:
        return
    given = {**settings.to_dict(), **asdict(part), "imports": list(imports)}
    guarded(
        run.path / EVALUATION, lambda file: file.write_text(yaml.safe_dump(given, sort_keys=False))
    )
    shutil.rmtree(run.path / "annealing", ignore_errors=True)
    say(f"{run.path}: {len(dataset)} data of {dataset.name}, {part.split} part")
    Console().print(_table(found))
    if len(found.sandwich()) > 2:
        Console().print(_sandwich(found))
    for line in _notes(found):
        say(line)
    if along:
        (kept,) = set(along) - set(evaluations)
        write_evaluations(run, {epoch: evaluations.get(epoch, found) for epoch in along}, kept)


def _folder(
    run: Run, dataset: Dataset | Arguments, settings: EvaluationSettings, checkpoint: str | None
) -> Path:
    """Where annealing keeps its work: a folder for these settings, weights and data alone."""
    text = f"{settings.annealing} {settings.seed} {checkpoint} {len(dataset)}".encode()
    data = b"".join(t.contiguous().numpy().tobytes() for t in arguments_in(dataset))
    mark = hashlib.sha256(text + data).hexdigest()[:12]
    folder = run.path / "annealing" / mark
    if {"ais", "bdmc"} & set(settings.methods or ()):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot write '{folder}': {error.strerror or error}") from None
    return folder


def _labels(found: Evaluation) -> dict[str, str]:
    """The labels of figures, with those of each layer of z after those of all."""
    labels = {}
    for name, label in LABELS.items():
        labels[name] = label
        if name in ("rate", "active_units"):
            sites = dict.fromkeys(found.diagnostics.site)
            labels |= {f"{name}_{site}": f"{label}, {site}" for site in sorted(sites)}
    return labels


def _table(found: Evaluation) -> Table:
    table = Table("in nats per datum", "estimate", "± SE", box=box.SIMPLE_HEAD)
    for name, label in _labels(found).items():
        if name in found.results:
            result = found.results[name]
            spread = "" if math.isnan(result.se) else f"{result.se:.3f}"
            digits = 0 if name.startswith(COUNTS) else 3
            table.add_row(label, f"{result.estimate:.{digits}f}", spread)
    return table


def _sandwich(found: Evaluation) -> Table:
    """Bounds and estimates of log p(x) on these data, the loosest first."""
    table = Table(
        "log p(x), nats per datum", "estimate", "± 95 %, Monte Carlo", box=box.SIMPLE_HEAD
    )
    for name, (value, half) in found.sandwich().items():
        table.add_row(name, f"{value:.3f}", "" if math.isnan(half) else f"{half:.4f}")
    return table


def _notes(found: Evaluation) -> list[str]:
    """Sentences on how far the figures can be trusted."""
    notes = _of_likelihood(found.likelihood) if found.likelihood is not None else []
    for name, annealed in (
        ("AIS", found.annealed),
        ("BDMC", found.bidirectional and found.bidirectional.forward),
    ):
        if annealed:
            settings, rate = annealed.settings, annealed.acceptance_rate
            notes.append(
                f"{name}: {settings.num_chains} chains, {settings.num_distributions:,} "
                f"distributions, acceptance {rate:.2f} (target {settings.target_acceptance:.2f}), "
                f"median ESS {annealed.ess.median():.1f}"
            )
            if len(bad := annealed.unreliable.tolist()):
                notes.append(
                    f"{name}: one chain has all the weight, or hardly a move is accepted, for "
                    f"{len(bad)} of {len(annealed.ess)} data, which are not to be trusted: "
                    f"{_shown(bad)}"
                )
    if found.quadrature is not None and not bool(found.quadrature.converged.all()):
        notes.append(
            f"quadrature: {int((~found.quadrature.converged).sum())} data have not converged"
        )
    if found.gaps is not None and len(bad := found.gaps.unreliable.tolist()):
        notes.append(f"gaps: the log p(x) of {len(bad)} data is not to be trusted: {_shown(bad)}")
    if found.information is not None and found.information.is_saturated:
        notes.append(
            "the lower bound on the mutual information is at its limit, log N: give more data"
        )
    if "live_share" in found.results and not found.results["live_share"].estimate:
        notes.append(DEAD)
    if found.undefined:
        notes.append(f"no log-likelihood: {found.undefined}")
    return notes


def _of_likelihood(estimate: LikelihoodEstimate) -> list[str]:
    count = estimate.num_particles
    notes = [
        f"K = {count:,}: error of the NLL for these data {estimate.error:.4f} (Monte Carlo "
        f"{estimate.monte_carlo_se:.4f}, bias {estimate.bias:+.4f}), median ESS "
        f"{estimate.ess.median():.0f}"
    ]
    if not estimate.is_within_tolerance:
        notes.append(
            f"the tolerance of {estimate.tolerance} is not reached: give more --num-particles, or "
            "a better --proposal"
        )
    if count < LEAST_FOR_PSIS:
        return [*notes, f"no k̂, which needs K ≥ {LEAST_FOR_PSIS}: no error can be trusted"]
    bad = estimate.unreliable.tolist()
    limit = float(estimate.khat_limit.min())
    if not bad:
        good = f"k̂ is below {limit:.2f} and the ESS is {LEAST_ESS:.0f} or more for all"
        return [*notes, f"{good} {len(estimate.draws)} data: the errors may be trusted"]
    return [
        *notes,
        f"k̂ is {limit:.2f} or more, or not known, or the ESS is below {LEAST_ESS:.0f}, for "
        f"{len(bad)} of {len(estimate.draws)} data: neither their log p(x) nor its error is to be "
        f"trusted (--retry local, or --method ais): {_shown(bad)}",
    ]


def _shown(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:20])) + (", …" if len(indices) > 20 else "")


def evaluate_run(
    run: Run,
    dataset: Dataset | Arguments,
    settings: EvaluationSettings,
    *,
    checkpoint: str | None = None,
    fabric: "Fabric | None" = None,
) -> Evaluation:
    """Evaluate a run on data; the first process writes results.json, evaluation.nc and figures.

    Args:
        run: The run.
        dataset: The data.
        settings: What is evaluated, and how.
        checkpoint: The weights; by default those that the training kept.
        fabric: The processes that share the work; None for one.

    Returns:
        The evaluation, the same in all processes.

    Raises:
        PyroaeError: For what cannot be evaluated.
    """
    system, x, found = _evaluated(run, dataset, settings, checkpoint, fabric)
    if fabric is not None and not fabric.is_global_zero:
        return found
    tree = to_datatree(
        system.model,
        system.guide,
        x,
        labels=getattr(dataset, "labels", None),
        shape=dataset.shape,
        statistics=per_datum(found),
        simulated=simulated(found),
        seed=settings.seed,
    )
    run.write_results(list(found.results.values()))
    guarded(run.path / "evaluation.nc", lambda file: tree.to_netcdf(file, engine="h5netcdf"))
    for name, figure in figures(system, dataset.to(_device(run, fabric)), found).items():
        save(figure, run.path / "figures" / f"{name}.png")
    write_report(run)
    return found


def _evaluated(
    run: Run,
    dataset: Dataset | Arguments,
    settings: EvaluationSettings,
    checkpoint: str | None,
    fabric: "Fabric | None",
) -> tuple[Any, Data, Evaluation]:
    """The system with the weights of a checkpoint, its arguments, and its evaluation."""
    device = _device(run, fabric)
    system: Any = trained(run, checkpoint, dataset).to(device)
    if isinstance(system, Autoencoder) and isinstance(dataset, Dataset):
        check_data(system, dataset, dataset.name)
    x = placed(system, dataset, device)
    share = WHOLE if fabric is None else share_of(fabric)
    found = evaluate_system(
        system,
        x,
        settings,
        progress=True,
        share=share,
        labels=getattr(dataset, "labels", None),
        classes=run.condition_names,
    )
    return system, x, found


def _device(run: Run, fabric: "Fabric | None") -> torch.device:
    """The device of this process, where there are several; else that of the run."""
    several = fabric is not None and fabric.world_size > 1
    return fabric.device if fabric is not None and several else device_of(run.config.accelerator)


def per_datum(found: Evaluation) -> dict[str, Tensor]:
    """Return the estimates and diagnostics of each datum.

    Args:
        found: The evaluation.

    Returns:
        By name a tensor `[N]`, in nats where it is a log-density.
    """
    diagnostics = found.diagnostics
    of = {
        "nelbo": diagnostics.nelbo,
        "rate": diagnostics.rate,
        "distortion": diagnostics.distortion,
    }
    if found.likelihood is not None:
        estimate = found.likelihood
        of |= {
            "log_px": estimate.log_px,
            "log_px_se": estimate.se,
            "ess": estimate.ess,
            "khat": estimate.smoothed.khat,
        }
        of |= {
            "log_px_low": estimate.interval[0],
            "log_px_high": estimate.interval[1],
            "draws": estimate.draws,
        }
        of |= {"log_px_jackknife": estimate.jackknife, "log_px_psis": estimate.smoothed.log_px}
    if found.annealed is not None:
        of |= {"log_px_ais": found.annealed.log_px, "log_px_ais_se": found.annealed.se}
        of |= {"acceptance": found.annealed.acceptance_per_datum}
    if found.exact is not None:
        of["log_px_exact"] = found.exact
    if found.quadrature is not None:
        of |= {
            "log_px_quadrature": found.quadrature.log_px,
            "log_px_quadrature_error": found.quadrature.error,
        }
    if found.gaps is not None:
        of["inference_gap"] = found.gaps.inference.values
        for name, family in found.gaps.families.items():
            suffix = name.replace("-", "_")
            of |= {f"amortization_gap_{suffix}": family.amortization.values}
            of |= {f"approximation_gap_{suffix}": family.approximation.values}
    return of


def simulated(found: Evaluation) -> dict[str, Tensor]:
    """Return the bounds of each simulated datum.

    Args:
        found: The evaluation.

    Returns:
        By name a tensor `[N]`, in nats; empty without bidirectional Monte Carlo.
    """
    if found.bidirectional is None:
        return {}
    both = found.bidirectional
    return {
        "lower": both.lower,
        "lower_se": both.forward.se,
        "upper": both.upper,
        "upper_se": both.upper_se,
    }


def figures(system: Any, dataset: Dataset | Arguments, found: Evaluation) -> dict[str, Figure]:
    """Draw every picture that the system has.

    Args:
        system: The system, or a program.
        dataset: The data that it was evaluated on.
        found: The evaluation.

    Returns:
        Figures by name; one that the system does not have, such as samples from a flat prior, is
        left out.
    """
    x = like_parameters(system, arguments_in(dataset))
    labels = getattr(dataset, "labels", None)
    makers: dict[str, Callable[[], Figure]] = {
        "reconstructions": lambda: plots.reconstructions(
            system, x, labels=labels, shape=dataset.shape
        ),
        "columns": lambda: plots.column_errors(system, x),
        "samples": lambda: _samples(system, dataset, x),
        "manifold": lambda: plots.manifold(system),
        "latent_scatter": lambda: plots.latent_scatter(system, x, labels),
        **_scatters_above(system, x, labels),
        "kl_per_unit": lambda: plots.kl_per_unit(found.diagnostics),
        "filters": lambda: plots.filters(system, x=x),
        "pseudo_inputs": lambda: plots.pseudo_inputs(system),
        **_likelihood_figures(dataset, found),
    }
    figures = {}
    for name, make in makers.items():
        try:
            figures[name] = make()
        except PyroaeError:
            continue
    return figures


def _samples(system: Any, dataset: Dataset | Arguments, x: tuple[Tensor, ...]) -> Figure:
    """Samples; of a system that is conditioned on one-hot labels, a row per label."""
    names = getattr(dataset, "condition_names", ())
    is_conditional = isinstance(system, Autoencoder) and len(names) > 0
    if is_conditional and (len(x) == 1 or bool((x[1].square().sum(1) == 1).all())):
        return plots.class_samples(system, names)
    return plots.samples(system, x=x, shape=dataset.shape)


def _scatters_above(system: Any, x: Any, labels: Any) -> dict[str, Callable[[], Figure]]:
    """The scatter plots of the layers above z, where the system has such layers."""
    num_layers = len(system.layers) if isinstance(system, Autoencoder) else 1
    return {
        f"latent_scatter_{site_of(n)}": partial(plots.latent_scatter, system, x, labels, layer=n)
        for n in range(2, num_layers + 1)
    }


def _likelihood_figures(
    dataset: Dataset | Arguments, found: Evaluation
) -> dict[str, Callable[[], Figure]]:
    makers: dict[str, Callable[[], Figure]] = {}
    bounds = found.sandwich()
    if len(bounds) > 1:
        makers["sandwich"] = lambda: likelihood_plots.sandwich(
            bounds, f"{len(dataset)} data of {dataset.name}"
        )
    if found.likelihood is not None:
        estimate = found.likelihood
        levels: dict[str, float] = {
            name: bounds[name][0] for name in ("AIS", "exact", "quadrature") if name in bounds
        }
        makers["likelihood_per_datum"] = lambda: likelihood_plots.likelihood_per_datum(estimate)
        makers["bound_curve"] = lambda: likelihood_plots.bound_curve({"IWAE": estimate}, levels)
        makers["khat"] = lambda: likelihood_plots.khat(estimate)
        bad = estimate.unreliable.tolist()
        if isinstance(dataset, Dataset):
            makers["extremes"] = lambda: likelihood_plots.extremes(
                dataset.x, estimate.log_px, dataset.shape, marked=bad
            )
    if found.likelihood is not None or found.exact is not None:
        point = tuple(found.results[name].estimate for name in ("rate", "distortion"))
        makers["rate_distortion"] = lambda: likelihood_plots.rate_distortion({dataset.name: point})
    return makers
