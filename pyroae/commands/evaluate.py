"""The command `evaluate`: log p(x) of a run by every method, as a table, files and figures."""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from pyroae import plots
from pyroae.autoencoder import Autoencoder
from pyroae.autoencoder.hierarchies import site_of
from pyroae.commands.evaluation_files import PartFiles
from pyroae.commands.evaluation_tables import results_table, sandwich_table
from pyroae.commands.pictures import pictures
from pyroae.commands.snapshots import write_evaluations
from pyroae.config import ALL, EvaluationSettings, Part, TrainConfig
from pyroae.data.dataset import Dataset
from pyroae.distributed.fabric import launch_fabric, share_of
from pyroae.errors import PyroaeError, RunError, UndefinedLikelihoodError
from pyroae.evaluation.annealing.estimates import AISEstimate
from pyroae.evaluation.annealing.rate_distortion import RateDistortion
from pyroae.evaluation.blocks import Data
from pyroae.evaluation.exact import exact_posterior_draws
from pyroae.evaluation.importance.likelihood import LikelihoodEstimate
from pyroae.evaluation.importance.streams import LEAST_ESS, LEAST_FOR_PSIS
from pyroae.evaluation.labels import picture_of
from pyroae.evaluation.results import Result, by_name, shown
from pyroae.evaluation.sandwich import SIDES, sandwich_of
from pyroae.evaluation.summary import Evaluation
from pyroae.evaluation.summary import evaluate as evaluate_system
from pyroae.inference_data import to_datatree
from pyroae.plots import likelihood as likelihood_plots
from pyroae.plots.drawing import rendered
from pyroae.programs.arguments import Arguments
from pyroae.programs.pair import like_parameters
from pyroae.runs.evaluated_curves import GROUP, curve_in, to_group
from pyroae.runs.loading import (
    arguments_in,
    chosen,
    own_parameters,
    placed,
    splits_for,
    trained,
)
from pyroae.runs.parts import EvaluatedPart, by_part, name_of_data, weights_of
from pyroae.runs.report import write_report
from pyroae.runs.run import Run, device_of
from pyroae.runs.snapshots import weights_along_training
from pyroae.runs.trees import curve_group, describe, likelihood_in
from pyroae.runtime.processes import WHOLE, say
from pyroae.training.preflight import check_data
from pyroae.training.validation import DEAD

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from xarray import DataTree


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
            if fabric.is_global_zero:
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
    if not fabric.is_global_zero:
        return
    shutil.rmtree(run.path / "annealing", ignore_errors=True)
    rows = files.results()
    say(f"{run.path}: {files.part.title}")
    Console().print(results_table(rows))
    if len(sandwich_of(rows)) > 2:
        Console().print(sandwich_table(rows))
    for line in _notes(found):
        say(line)
    say(f"{run.path / 'report.html'}")
    if along:
        (kept,) = set(along) - set(evaluations)
        every = {epoch: evaluations.get(epoch, found) for epoch in along}
        write_evaluations(run, files, _along(run, files, every, along), kept)


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


def _notes(found: Evaluation) -> list[str]:
    """Sentences on how far the figures can be trusted."""
    notes = []
    if found.likelihood is not None:
        notes += [*_of_likelihood(found.likelihood), *_from_above(found.likelihood)]
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
            if len(bad := annealed.unreliable_posterior.tolist()):
                notes.append(
                    f"{name}: the draws of the posterior of {len(bad)} data are not to be trusted: "
                    f"{_shown(bad)}"
                )
    if found.annealed is not None:
        notes += _of_rate_distortion(found.annealed)
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


def _of_rate_distortion(annealed: AISEstimate) -> list[str]:
    """A sentence where there is no curve, or where parts of it are not to be trusted."""
    curve = annealed.rate_distortion
    if curve is None:
        return ["no rate–distortion curve, as the path starts at the guide (--start prior has one)"]
    bad = curve.unreliable.any(0).nonzero().flatten().tolist()
    if not bad:
        return []
    return [
        f"rate–distortion: at some β one chain has all the weight for {len(bad)} of "
        f"{curve.rate.shape[1]} data, which are not to be trusted there: {_shown(bad)}"
    ]


def _from_above(estimate: LikelihoodEstimate) -> list[str]:
    """How far EUBO and CUBO can be trusted, one sentence each."""
    total, notes = len(estimate.draws), []
    for name, bound in (("EUBO", estimate.eubo), ("CUBO", estimate.cubo)):
        flagged = f"{bound.num_flagged} of {total} data flagged"
        if bound.is_reported:
            notes.append(
                f"{name}: an upper bound as K → ∞ only, biased by {bound.bias.mean():+.4f} here; "
                f"{flagged}, {bound.num_without_interval} without an interval"
            )
        else:
            notes.append(f"{name}: no mean, with {flagged}: k̂ is too high or not known")
    return notes


def _shown(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:20])) + (", …" if len(indices) > 20 else "")


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
    if found.annealed is not None and found.annealed.rate_distortion is not None:
        tree[GROUP] = to_group(found.annealed.rate_distortion, getattr(dataset, "labels", None))
    if found.likelihood is not None:
        tree["bound_curve"] = curve_group(found.likelihood)
    tree, rows = files.united(describe(tree, found.results, files.part.attributes), rows)
    whole = replace(found, results=by_name(rows), likelihood=likelihood_in(tree))
    drawn = figures(
        system, dataset.to(_device(run, fabric)), whole, sandwich_of(rows), curve_in(tree)
    )
    files.write(rows, tree, _pictures(drawn, files.part, rows, tree), options)
    write_report(run)
    return found


def _pictures(
    drawn: Mapping[str, Figure], part: EvaluatedPart, rows: Sequence[Result], tree: "DataTree"
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
        caption = "; ".join([part.title, *dict.fromkeys(methods)])
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


def figures(
    system: Any,
    dataset: Dataset | Arguments,
    found: Evaluation,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    curve: RateDistortion | None = None,
) -> dict[str, Figure]:
    """Draw every picture that the system has.

    Args:
        system: The system, or a program.
        dataset: The data that it was evaluated on.
        found: The evaluation.
        bounds: The bounds of log p(x); None for those of the evaluation.
        curve: The rate–distortion curve; None for that of the evaluation, if it has one.

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
        **pictures(system, x, found.diagnostics),
        **_likelihood_figures(dataset, found, found.sandwich() if bounds is None else bounds),
        **_rate_distortion(dataset, found, curve),
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
    dataset: Dataset | Arguments, found: Evaluation, bounds: Mapping[str, tuple[float, float]]
) -> dict[str, Callable[[], Figure]]:
    makers: dict[str, Callable[[], Figure]] = {}
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
    return makers


def _rate_distortion(
    dataset: Dataset | Arguments, found: Evaluation, curve: RateDistortion | None
) -> dict[str, Callable[[], Figure]]:
    """The curve by annealing, and the point of the guide; without a curve the point alone."""
    if curve is None and found.annealed is not None:
        curve = found.annealed.rate_distortion
    if curve is None and not {"nll", "nll_exact", "nll_ais"} & set(found.results):
        return {}
    point = tuple(found.results[name].estimate for name in ("rate", "distortion"))
    title = f"{len(dataset)} data of {dataset.name}"
    drawn = point if curve is None else curve
    return {"rate_distortion": lambda: plots.rate_distortion({"": drawn}, {"": point}, title)}
