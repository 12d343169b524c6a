"""The command `gradients`: estimators compared at the weights of a run."""

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyroae.autoencoder import Autoencoder
from pyroae.commands.snapshots import gradients_table
from pyroae.config import ALL, GradientSettings, Part, compared
from pyroae.data.dataset import Dataset
from pyroae.errors import ConfigError, RunError, unknown_name
from pyroae.evaluation.gradient_lab.groups import parameter_groups
from pyroae.evaluation.gradient_lab.measure import measure_slopes
from pyroae.evaluation.gradient_lab.slopes import SNRCurve
from pyroae.evaluation.gradient_lab.statistics import BATCHES, GradientStatistics
from pyroae.inference_data import gradients_to_datatree
from pyroae.objectives import ELBO, AnalyticKL, Objective, ObjectiveBase, parse_objective
from pyroae.plots.drawing import save
from pyroae.plots.gradients import gradient_curves
from pyroae.plots.snapshots import gradients_along_training
from pyroae.posteriors import Point
from pyroae.programs.arguments import Arguments
from pyroae.runs.data_of_run import part_of
from pyroae.runs.loading import own_parameters, placed, trained
from pyroae.runs.parts import weights_of
from pyroae.runs.run import Run, device_of
from pyroae.runs.snapshots import weights_along_training
from pyroae.runs.trees import write_tree
from pyroae.runtime.files import guarded
from pyroae.runtime.processes import say
from pyroae.training.preflight import check_data

Curves = Mapping[str, Mapping[str, SNRCurve]]


MAIN = ("θ", "φ", "shared")
"""The groups of parameters that are always shown."""


EXACT = "enumerate"
"""The objective whose gradient has no noise where all latent sites are discrete."""


MOST = 10**12
"""Upper limit of the seed, so that every replicate has a seed of its own."""


class Files(NamedTuple):
    """The files that the command writes.

    Attributes:
        table: The .csv file.
        tree: The .nc file, an ArviZ DataTree.
        figure: The .png file.
    """

    table: Path
    tree: Path
    figure: Path


@own_parameters()
def gradients(
    run_directory: str,
    part: Part,
    settings: GradientSettings,
    by: str | None,
    out: str | None,
) -> None:
    """Compare gradients of estimators at the weights of a run, for each K.

    One table is printed; a .csv and a .nc file and a figure are written. The corruption of a
    denoising system is off, as in an evaluation. With the checkpoint `all` gradients are compared
    at each snapshot of the run: a table and a figure of their SNR, and a .csv file, are written.

    Args:
        run_directory: The run.
        part: The data and the weights.
        settings: The estimators, and how their gradients are measured.
        by: "module" shows every module in the table.
        out: A path without its suffix; by default in the run directory.

    Raises:
        PyroaeError: For what cannot be measured.
    """
    run, is_along = Run(run_directory), part.checkpoint == ALL
    reference = _checked(settings)
    files = _files(run, out, "gradients_along_training" if is_along else "gradients")
    along = weights_along_training(run) if is_along else {}
    dataset = part_of(run, part)
    title = (
        f"gradients at {len(dataset)} data of {dataset.name} ({part.split}), "
        f"{settings.replicates} replicates; bias from {reference}"
    )
    labels: dict[str, Any] = {
        "num_data": len(dataset),
        "reference": reference,
        "seed": settings.seed,
    }
    if is_along:
        found: dict[int, Curves] = {}
        for epoch, checkpoint in along.items():
            say(f"{run.path}: the weights after epoch {epoch}")
            found[epoch] = _measured(run, checkpoint, dataset, settings, reference)
        say(title)
        Console().print(gradients_table(found if by else _main(found)))
        say(_about_snr(next(iter(found.values())), reference))
        _write_along(found, files, labels, title)
        return
    curves = _measured(run, part.checkpoint, dataset, settings, reference)
    say(title)
    Console().print(_table(curves, reference, by == "module"))
    for line in _notes(_makers(settings), curves, reference, len(dataset)):
        say(line)
    _write(curves, files, labels, f"{title}; weights: {weights_of(run, part.checkpoint)}")


def _measured(
    run: Run,
    checkpoint: str | None,
    dataset: Dataset | Arguments,
    settings: GradientSettings,
    reference: str,
) -> Curves:
    """The gradients of each estimator and K at the weights of a checkpoint."""
    device = device_of(run.config.accelerator)
    system: Any = trained(run, checkpoint, dataset).to(device)
    if isinstance(system, Autoencoder) and isinstance(dataset, Dataset):
        check_data(system, dataset, dataset.name)
        _refuse_delta(run, system)
    parameters = {name: p for name, p in system.named_parameters() if p.requires_grad}
    x = placed(system, dataset, device)
    return measure_slopes(
        system.model,
        system.guide,
        x,
        _makers(settings),
        ks=sorted(settings.num_particles),
        parameters=parameters,
        groups=parameter_groups(system.model, system.guide, x, parameters),
        replicates=settings.replicates,
        seed=settings.seed,
        reference=reference,
        control_steps=settings.control_steps,
        progress=True,
    )


def _makers(settings: GradientSettings) -> dict[str, Callable[[int], ObjectiveBase]]:
    names, reference = list(settings.names), settings.reference
    if reference is not None and reference not in names:
        names.append(reference)
    return {name: partial(parse_objective, name) for name in names}


def _refuse_delta(run: Run, system: Autoencoder) -> None:
    if isinstance(system.posterior, Point):
        raise ConfigError(
            f"the guide of the run '{run.path}' is a Delta: its gradients have no noise that could "
            "be measured"
        )


def _checked(settings: GradientSettings) -> str:
    """The reference; refuses what cannot be measured, before any data are read."""
    names, ks, reference = settings.names, sorted(settings.num_particles), settings.reference
    compared(names, ks)
    if len(set(ks)) < len(ks):
        raise ConfigError(f"K takes different whole numbers of at least 1, not {list(ks)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"an objective is given twice: {', '.join(names)}")
    if settings.replicates < BATCHES:
        raise ConfigError(f"replicates must be at least {BATCHES}, not {settings.replicates}")
    if settings.control_steps < 0:
        raise ConfigError(f"control_steps must be at least 0, not {settings.control_steps}")
    if not 0 <= settings.seed < MOST:
        raise ConfigError(f"seed must be at least 0 and below {MOST:.0e}, not {settings.seed}")
    if reference is None:
        return "iwae" if "iwae" in names else names[0]
    if _is_exact(reference):
        _refuse_other_bounds(settings, reference)
    elif reference not in names:
        raise unknown_name("reference", reference, [*names, EXACT])
    return reference


def _is_exact(reference: str) -> bool:
    return reference == EXACT or reference.startswith(f"{EXACT}:")


def _refuse_other_bounds(settings: GradientSettings, reference: str) -> None:
    """Refuse objectives whose bound is not the ELBO, the bound of the exact reference."""
    largest = max(settings.num_particles)
    for name, make in _makers(settings).items():
        objective = make(largest)
        if largest > 1 and not objective.is_elbo:
            raise ConfigError(
                f"--reference {reference} is the exact gradient of the ELBO, and '{name}' with "
                f"K = {largest} has another bound, whose exact gradient is a sum over tuples of K "
                "values: compare estimators of the ELBO, or take K = 1"
            )


def _files(run: Run, out: str | None, name: str) -> Files:
    """Where the results go. Raises RunError where they cannot be written."""
    if out is None:
        files = Files(
            run.path / f"{name}.csv",
            run.path / f"{name}.nc",
            run.path / "figures" / f"{name}.png",
        )
    elif Path(out).is_dir():
        raise RunError(
            f"cannot write '{out}': it is a directory, and --out takes the path of files without "
            "their suffix"
        )
    else:
        stem = str(Path(out)).removesuffix(".csv").removesuffix(".nc").removesuffix(".png")
        files = Files(*(Path(stem + suffix) for suffix in (".csv", ".nc", ".png")))
    for file in files:
        place = next(folder for folder in file.absolute().parents if folder.exists())
        if file.is_dir() or not place.is_dir() or not os.access(place, os.W_OK):
            raise RunError(
                f"cannot write '{file}': '{file if file.is_dir() else place}' is no place for a "
                "file"
            )
    return files


def _main(found: Mapping[int, Curves]) -> dict[int, Curves]:
    """The curves of the main groups of parameters."""
    return {
        epoch: {
            name: {g: c for g, c in of_group.items() if g in MAIN}
            for name, of_group in curves.items()
        }
        for epoch, curves in found.items()
    }


def _rows(tree: Any) -> Any:
    """A row for each objective, number of particles and group, as a DataFrame."""
    rows = tree["gradients"].to_dataset().to_dataframe(["objective", "particles", "group"])
    return rows[rows["seconds"].notna()].astype({"evaluations": int})


def _write_along(
    found: Mapping[int, Curves], files: Files, labels: Mapping[str, Any], caption: str
) -> None:
    import pandas as pd

    rows = {e: _rows(gradients_to_datatree(curves, **labels)) for e, curves in found.items()}
    guarded(files.table, pd.concat(rows, names=["epoch"]).to_csv)
    save(gradients_along_training(_main(found)), files.figure, caption)
    say(f"{files.table}, {files.figure}")


def _write(curves: Curves, files: Files, labels: Mapping[str, Any], caption: str) -> None:
    tree = gradients_to_datatree(curves, **labels)
    guarded(files.table, _rows(tree).to_csv)
    write_tree(files.tree, tree)
    save(gradient_curves(_main({0: curves})[0]), files.figure, caption)
    say(f"{files.table}, {files.tree}, {files.figure}")


def _table(curves: Curves, reference: str, every: bool) -> Table:
    """A table with a section per group; in it a row per estimator and K, and its SNR's slope."""
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("", overflow="fold")
    for column in ("K", "SNR", "95 %", "DSNR", "variance", "bias %", "if none", "ms"):
        table.add_column(column, justify="left" if column == "95 %" else "right", no_wrap=True)
    for group in next(iter(curves.values())):
        if not every and group not in MAIN:
            continue
        table.add_row(Text(group, style="bold"))
        for name, of_group in curves.items():
            curve = of_group[group]
            for i, (k, found) in enumerate(zip(curve.ks, curve.statistics, strict=True)):
                table.add_row(Text("" if i else name), str(k), *_cells(found, name == reference))
            slope = curve.slope
            if not math.isnan(slope.slope):
                table.add_row(
                    "",
                    "slope",
                    f"{slope.slope:+.2f}",
                    f"{slope.low:+.2f} to {slope.high:+.2f}",
                    style="italic",
                )
        table.add_section()
    return table


def _cells(found: GradientStatistics, is_reference: bool) -> list[str]:
    low, high = found.snr_interval
    biases = [100 * value for value in (found.relative_bias, found.offset.relative(found.bias_se))]
    return [
        _number(found.snr),
        ""
        if math.isnan(found.snr)
        else _number(low)
        if low == high == found.snr
        else f"{_number(low)} to {_number(high)}",
        _number(found.directional_snr),
        f"{found.variance.mean():.2g}",
        *(
            "" if is_reference or math.isnan(value) else f"{value:.{0 if value >= 100 else 1}f}"
            for value in biases
        ),
        f"{1000 * found.seconds:.3g}",
    ]


def _number(value: float) -> str:
    """Three digits; "–" for NaN, as of the SNR of a gradient that is always 0."""
    return "–" if math.isnan(value) else f"{value:.3g}"


def _notes(
    make: Mapping[str, Callable[[int], ObjectiveBase]],
    curves: Curves,
    reference: str,
    num_data: int,
) -> list[str]:
    """Sentences on the columns, the sizes of the groups, and biases by design."""
    notes = [
        _about_snr(curves, reference),
        f"DSNR: length of the gradient along the mean of {reference} over that across it",
        f"one gradient: its milliseconds under ms, and K × {num_data} evaluations of the decoder",
        f"bias: distance from the mean of {reference}, in % of its norm; if none: the distance "
        "that noise alone gives",
    ]
    at = {
        name: objective(max(next(iter(curves[name].values())).ks))
        for name, objective in make.items()
    }
    known = _bound_of(at[reference])
    other = [
        name
        for name, objective in at.items()
        if objective.num_particles > 1 and _bound_of(objective) != known
    ]
    biased = [
        name
        for name, objective in at.items()
        if isinstance(objective, Objective)
        and not objective.gradient.unbiased(objective.bound_function)
    ]
    notes += [f"another bound than that of {reference}: {', '.join(other)}"] if other else []
    notes += [f"by design not the gradient of their bound: {', '.join(biased)}"] if biased else []
    costs = [
        f"{name} {objective.evaluations * num_data:.4g} at K = {objective.num_particles}"
        for name, objective in at.items()
        if objective.evaluations != objective.num_particles
    ]
    notes += [f"other numbers of evaluations of the decoder: {', '.join(costs)}"] if costs else []
    return notes


def _about_snr(curves: Curves, reference: str) -> str:
    """A sentence on the sizes of the groups, and on their SNR."""
    of_groups = {
        group: curve.statistics[0] for group, curve in curves[reference].items() if group in MAIN
    }
    sizes = [f"{group} {len(found.mean):,}" for group, found in of_groups.items()]
    count = next(iter(of_groups.values())).replicates
    return (
        f"parameters: {', '.join(sizes)}; SNR: mean over them of |mean| / σ, about "
        f"{0.8 / count**0.5:.2g} where the mean is 0"
    )


def _bound_of(objective: ObjectiveBase) -> object:
    if isinstance(objective, AnalyticKL):
        return ELBO(objective.num_particles)
    return objective.bound_function if isinstance(objective, Objective) else objective
