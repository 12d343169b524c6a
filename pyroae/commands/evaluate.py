"""The command `evaluate`: log p(x) of a run by every method, as a table, files and figures."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from pyroae.autoencoder import Autoencoder
from pyroae.commands.evaluation_figures import figures
from pyroae.commands.evaluation_files import PartFiles
from pyroae.commands.evaluation_notes import notes_of
from pyroae.commands.evaluation_tables import results_table, sandwich_table
from pyroae.commands.snapshots import write_evaluations
from pyroae.config import ALL, EvaluationSettings, Part, TrainConfig
from pyroae.data.dataset import Dataset
from pyroae.distributed.fabric import launch_fabric, share_of
from pyroae.errors import RunError, UndefinedLikelihoodError
from pyroae.evaluation.blocks import Data
from pyroae.evaluation.exact import exact_posterior_draws
from pyroae.evaluation.labels import picture_of
from pyroae.evaluation.results import Result, by_name, shown
from pyroae.evaluation.sandwich import SIDES, sandwich_of
from pyroae.evaluation.summary import Evaluation
from pyroae.evaluation.summary import evaluate as evaluate_system
from pyroae.evaluation.units import log_units_of
from pyroae.inference_data import to_datatree
from pyroae.plots.drawing import rendered
from pyroae.programs.arguments import Arguments
from pyroae.runs.data_of_run import arguments_in, chosen, splits_for
from pyroae.runs.evaluated_curves import GROUP, curve_in, to_group
from pyroae.runs.loading import own_parameters, placed, trained
from pyroae.runs.parts import EvaluatedPart, by_part, name_of_data, weights_of
from pyroae.runs.report import write_report
from pyroae.runs.run import Run, device_of
from pyroae.runs.snapshots import weights_along_training
from pyroae.runs.tree_units import tree_in_units
from pyroae.runs.trees import curve_group, describe, likelihood_in
from pyroae.runtime.links import report_line
from pyroae.runtime.processes import WHOLE, say
from pyroae.training.preflight import check_data

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from xarray import DataTree

OF_VALUES = (
    *("reconstructions", "curves", "marginals", "pairs", "fitted", "columns", "samples"),
    *("predictive_check", "extremes", "filters", "manifold", "pseudo_inputs"),
)
"""Pictures of values of x, which are those that the model sees."""


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
    """Evaluate a run: print one table, and add to results.json, evaluation.nc and figures.

    What is there of the same data and weights stays, beside the same figure, which is replaced;
    the table has all of it. Other data have files of their own (`runs.parts`). An annealing that
    was stopped continues when the same command is given again. With the checkpoint `all` the
    snapshots of the run are evaluated too, in one more table, file and figure.

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
    splits = splits_for(run, part)
    dataset = chosen(run, part, splits)
    data = name_of_data(dataset.name, None if part.data is None else splits.fingerprint)
    weights = weights_of(run, None if along else part.checkpoint)
    files = PartFiles(run, EvaluatedPart(data, part.split, len(dataset), weights))
    place = TrainConfig(accelerator=run.config.accelerator, devices=devices, num_nodes=num_nodes)
    fabric = launch_fabric(place) if place.is_distributed else None
    is_first = fabric is None or fabric.is_global_zero

    def work(checkpoint: str | None) -> EvaluationSettings:
        return replace(settings, checkpoints=_folder(run, dataset, settings, checkpoint))

    evaluations = {}
    for epoch, checkpoint in along.items():
        if checkpoint is not None:
            say(f"{run.path}: the snapshot of epoch {epoch}")
            evaluations[epoch] = _evaluated(run, dataset, work(checkpoint), checkpoint, fabric)[2]
            if is_first:
                snapshot = replace(files.part, checkpoint=checkpoint)
                run.write_results(snapshot.label(evaluations[epoch].results.values()))
    found = evaluate_run(
        run,
        dataset,
        work(None if along else part.checkpoint),
        checkpoint=None if along else part.checkpoint,
        fabric=fabric,
        files=files,
        options={**settings.to_dict(), **asdict(part), "imports": list(imports)},
    )
    if not is_first:
        return
    shutil.rmtree(run.path / "annealing", ignore_errors=True)
    rows = files.results()
    say(f"{run.path}: {files.part.title}")
    Console().print(results_table(rows))
    if len(sandwich_of(rows)) > 2:
        Console().print(sandwich_table(rows))
    for line in notes_of(found):
        say(line)
    if along:
        (kept,) = set(along) - set(evaluations)
        every = {epoch: evaluations.get(epoch, found) for epoch in along}
        write_evaluations(run, files, _along(run, files, every, along), kept)
    say(report_line(run.path / "report.html"))


def _along(
    run: Run,
    files: PartFiles,
    evaluations: Mapping[int, Evaluation],
    along: Mapping[int, str | None],
) -> dict[int, Evaluation]:
    """Evaluations with the results of all evaluations of the same data with the same weights."""
    groups = by_part(run, run.results())
    parts = {
        epoch: files.part if name is None else replace(files.part, checkpoint=name)
        for epoch, name in along.items()
    }
    return {
        epoch: replace(found, results=by_name(groups[parts[epoch]]))
        for epoch, found in evaluations.items()
    }


def _folder(
    run: Run, dataset: Dataset | Arguments, settings: EvaluationSettings, checkpoint: str | None
) -> Path:
    """Where annealing keeps its work: a folder for these settings, weights and data alone."""
    weights = weights_of(run, checkpoint)
    text = f"{settings.annealing} {settings.seed} {weights} {len(dataset)}".encode()
    data = b"".join(t.contiguous().numpy().tobytes() for t in arguments_in(dataset))
    mark = hashlib.sha256(text + data).hexdigest()[:12]
    folder = run.path / "annealing" / mark
    if {"ais", "bdmc"} & set(settings.methods or ()):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot write '{folder}': {error.strerror or error}") from None
    return folder


def evaluate_run(
    run: Run,
    dataset: Dataset | Arguments,
    settings: EvaluationSettings,
    *,
    checkpoint: str | None = None,
    fabric: "Fabric | None" = None,
    files: PartFiles | None = None,
    options: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Evaluate a run on data; the first process adds it to the files of the run.

    Args:
        run: The run.
        dataset: The data.
        settings: What is evaluated, and how.
        checkpoint: The weights; by default those that the training kept.
        fabric: The processes that share the work; None for one.
        files: The files of these data with these weights; None for data of the run's test part.
        options: The options of the command, to be recorded in evaluation.yaml; None for none.

    Returns:
        The evaluation, the same in all processes.

    Raises:
        PyroaeError: For what cannot be evaluated.
    """
    if files is None:
        weights = weights_of(run, checkpoint)
        files = PartFiles(run, EvaluatedPart(dataset.name, "test", len(dataset), weights))
    system, x, found = _evaluated(run, dataset, settings, checkpoint, fabric)
    rows = files.part.label(found.results.values())
    found = replace(found, results={row.name: row for row in rows})
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
        annealed=found.annealed,
        posterior=exact_draws(system, x, found, settings),
        seed=settings.seed,
    )
    if found.log_units is not None and isinstance(dataset, Dataset):
        tree = tree_in_units(tree, dataset, found.log_units)
    if found.annealed is not None and found.annealed.rate_distortion is not None:
        tree[GROUP] = to_group(found.annealed.rate_distortion, getattr(dataset, "labels", None))
    if found.likelihood is not None:
        tree["bound_curve"] = curve_group(found.likelihood)
    tree, rows = files.united(describe(tree, found.results, files.part.attributes), rows)
    whole = replace(found, results=by_name(rows), likelihood=likelihood_in(tree))
    drawn = figures(
        system, dataset.to(_device(run, fabric)), whole, sandwich_of(rows), curve_in(tree)
    )
    files.write(
        rows,
        tree,
        _pictures(drawn, files.part, rows, tree, run.config.scale == "standard"),
        options,
    )
    write_report(run)
    return found


def _pictures(
    drawn: Mapping[str, Figure],
    part: EvaluatedPart,
    rows: Sequence[Result],
    tree: "DataTree",
    is_standardized: bool,
) -> dict[str, bytes]:
    """Pictures as files, each with a line that says which data, method and K it is of."""
    results, pictures = by_name(rows), {}
    for name, figure in drawn.items():
        picture = picture_of(name)
        of = [results[one] for one in picture.results if one in results]
        if name == "sandwich":
            of = [row for row in shown(rows) if row.name in SIDES or row.name == "bdmc_gap"]
        methods = [f"{row.method}, K = {row.num_particles:,}" for row in of]
        if name == GROUP and name in tree.children:
            about = tree[name]["rate"].attrs
            methods = [f"curve: {about['method']}, K = {about['num_particles']:,}"] + [
                f"point: {method}" for method in methods
            ]
        remarks = ["standardized values"] if is_standardized and name.startswith(OF_VALUES) else []
        caption = "; ".join([part.title, *dict.fromkeys(methods), *remarks])
        texts = {"part": part.folder, "Title": picture.label}
        pictures[name] = rendered(figure, caption=caption, **texts)
    return pictures


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
        log_units=log_units_of(system, dataset),
    )
    return system, x, found


def exact_draws(
    system: Any, x: Data, found: Evaluation, settings: EvaluationSettings
) -> dict[str, Tensor] | None:
    """Draw from p(z|x) in closed form, where annealing has not drawn from it.

    Args:
        system: The system, or a program.
        x: Its arguments.
        found: Its evaluation.
        settings: The numbers of chains and draws, and the seed.

    Returns:
        Draws by site; None without the closed form, and where annealing has draws.
    """
    along = settings.annealing
    has_draws = found.annealed is not None and bool(found.annealed.posterior)
    if has_draws or found.exact is None or not isinstance(system, Autoencoder):
        return None
    if not along.posterior_draws:
        return None
    try:
        return exact_posterior_draws(
            system,
            *(x if isinstance(x, tuple) else (x,)),
            num_chains=along.num_chains,
            num_draws=along.posterior_draws,
            seed=settings.seed,
        )
    except UndefinedLikelihoodError:
        return None


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
        for name, bound in (("eubo", estimate.eubo), ("cubo", estimate.cubo)):
            low, high = bound.interval
            of |= {name: bound.values, f"{name}_se": bound.se, f"{name}_flagged": bound.flagged}
            of |= {f"{name}_low": low, f"{name}_high": high, f"{name}_bias": bound.bias}
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
