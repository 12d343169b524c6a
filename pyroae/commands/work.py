"""What the commands share: train a run, continue it, evaluate it; files written whole."""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from matplotlib.figure import Figure
from torch import Tensor

from pyroae import likelihood_plots, plots, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.config import WHERE, RunConfig, check_objective_names
from pyroae.data import Dataset, Splits, load
from pyroae.errors import ConfigError, DataError, PyroaeError, RunError
from pyroae.evaluation.summary import Evaluation, EvaluationSettings
from pyroae.evaluation.summary import evaluate as evaluate_system
from pyroae.fabric import launched, share_of
from pyroae.files import guarded, locked
from pyroae.inference_data import to_datatree
from pyroae.keeper import Keeper
from pyroae.likelihoods import Bernoulli
from pyroae.objectives import parse_objective
from pyroae.objectives.base import ObjectiveBase
from pyroae.processes import WHOLE, is_first
from pyroae.report import write_report
from pyroae.runs import Run, device_of, refuse_taken, versions
from pyroae.states import State
from pyroae.trainer import FitResult
from pyroae.training import check, check_data, fit


def splits_of(config: RunConfig, data: str | None = None) -> Splits:
    """The data of a configuration, or others prepared as it says."""
    likelihood = zoo.likelihood_of(config)
    binarize = config.binarize or ("dynamic" if isinstance(likelihood, Bernoulli) else "none")
    return load(
        config.data if data is None else data,
        binarize=binarize,  # type: ignore[arg-type]
        valid=config.valid_fraction,
        test=config.test_fraction,
        seed=config.split_seed,
        data_root=config.data_root,
        value_range=config.value_range,  # type: ignore[arg-type]
    )


def train_run(config: RunConfig, path: Path, overwrite: bool) -> tuple[Run, FitResult]:
    """A new run, trained; everything is refused before the directory is made."""
    refuse_taken(path, overwrite)
    splits, system, objective = _prepared(config)
    check(system, splits.train, splits.valid, objective, config.training)
    fabric = launched(config.training)
    with _writing(fabric, path):
        if fabric.is_global_zero:
            Run.create(path, config, splits, overwrite=overwrite)
        fabric.barrier()
        run = Run(path)
        return run, _trained(run, system, splits, objective, fabric, None)


def resume_run(run: Run, settings: dict[str, Any], checkpoint: str) -> tuple[Run, FitResult]:
    """A run, continued from where it was saved. Raises ConfigError for settings that differ."""
    config = RunConfig.from_mapping({**run.config.to_dict(), **settings})
    for name, value in config.to_dict().items():
        if name not in (*WHERE, "epochs") and value != run.config.to_dict()[name]:
            raise ConfigError(f"--resume goes on with the settings of the run: {name} is {run.config.to_dict()[name]} there")
    state = run.state(checkpoint) if run.has_begun else None
    if state is not None and len(state.history) >= config.epochs:
        raise ConfigError(f"the run '{run.path}' has finished its {config.epochs} epochs: give more --epochs to go on")
    splits, system, objective = _prepared(config)
    same_data(run, splits)
    if state is not None:
        fits(run, state, system)
    for name, now in versions().items():
        if run.versions.get(name, now) != now:
            say(f"the run is of {name} {run.versions[name]}, this is {now}: from here on figures may differ")
    fabric = launched(config.training)
    with _writing(fabric, run.path):
        if fabric.is_global_zero and config != run.config:
            run.write_config(config, splits)
        run.config = config
        return run, _trained(run, system, splits, objective, fabric, state)


def _writing(fabric: Fabric, path: Path) -> AbstractContextManager[None]:
    """A context in which this process, the first one, has the directory."""
    return locked(path, "run") if fabric.is_global_zero else nullcontext()


def fits(run: Run, state: State, system: Autoencoder) -> None:
    """Raises RunError where a state is of another system."""
    wanted = {name: tuple(v.shape) for name, v in system.state_dict().items()}
    if wanted != {name: tuple(v.shape) for name, v in state.weights.items()}:
        raise RunError(f"the checkpoint of '{run.path}' is of another system: its weights have other names or shapes")


def _prepared(config: RunConfig) -> tuple[Splits, Autoencoder, ObjectiveBase]:
    splits = splits_of(config)
    torch.manual_seed(config.seed)
    return splits, zoo.from_config(config, splits.train), parse_objective(config.estimator, config.num_particles)


def _trained(
    run: Run, system: Autoencoder, splits: Splits, objective: ObjectiveBase, fabric: Fabric, state: State | None
) -> FitResult:
    """The training itself: the first process saves."""
    first, config = fabric.is_global_zero, run.config
    with Keeper(run.save if first else _nothing, f"pyroae train --resume {run.path}", config.save_minutes) as keeper:
        result = fit(system, splits, objective, config.training, state=state, on_epoch=keeper)
    if first:
        draw_curves(run, result)
    return result


def _nothing(state: State) -> None:
    """What processes other than the first do with a state."""


def same_data(run: Run, splits: Splits) -> None:
    """Raises DataError where the data of a run have changed."""
    if splits.fingerprint != run.fingerprint:
        raise DataError(
            f"the data '{run.config.data}' have changed since the run '{run.path}': their fingerprint is "
            f"{splits.fingerprint}, not {run.fingerprint}"
        )


def part_of(run: Run, data: str | None, split: str, num_data: int | None) -> Dataset:
    """The part of the data that a command is about: of the run's own, or of other data of the same width."""
    if num_data is not None:
        at_least_one("num_data", num_data)
    splits = splits_of(run.config, data)
    if data is None:
        same_data(run, splits)
    dataset = getattr(splits, split)
    if dataset is None:
        raise DataError(f"the data '{data or run.config.data}' have no {split} part: choose another --split")
    if dataset.stream is not None:
        dataset = dataset.first(num_data or len(dataset))
    if dataset.dynamic:  # training data are drawn anew each epoch; to look at them, one fixed draw
        dataset = replace(
            load(dataset, binarize="static", valid=0, test=0, seed=run.config.split_seed).train, name=dataset.name
        )
    width, trained_on = dataset.x.shape[1], int(np.prod(run.shape))
    if width != trained_on:
        raise DataError(f"{dataset.name} has {width} features a datum; the run '{run.path}' was trained on {trained_on}")
    return dataset.first(num_data or len(dataset))


def evaluate_run(
    run: Run,
    dataset: Dataset | None,
    settings: EvaluationSettings,
    *,
    checkpoint: str | None = None,
    fabric: Fabric | None = None,
) -> Evaluation:
    """Evaluate a run on data: results.json, evaluation.nc, figures and the report, which the first process writes."""
    assert dataset is not None
    several = fabric is not None and fabric.world_size > 1
    device = fabric.device if fabric is not None and several else device_of(run.config.accelerator)
    system = run.autoencoder(checkpoint).to(device)
    dtype = next(system.parameters()).dtype
    check_data(system, dataset, dataset.name)
    x = dataset.x.to(device, dtype)
    found = evaluate_system(system, x, settings, progress=True, share=WHOLE if fabric is None else share_of(fabric))
    if fabric is not None and not fabric.is_global_zero:
        return found
    tree = to_datatree(
        system.model,
        system.guide,
        x,
        labels=dataset.labels,
        shape=dataset.shape,
        statistics=per_datum(found),
        simulated=simulated(found),
        seed=settings.seed,
    )
    run.write_results(list(found.results.values()))
    guarded(run.path / "evaluation.nc", lambda file: tree.to_netcdf(file, engine="h5netcdf"))
    for name, figure in figures(system, replace(dataset, x=x), found).items():
        save(figure, run.path / "figures" / f"{name}.png")
    write_report(run)
    return found


def per_datum(found: Evaluation) -> dict[str, Tensor]:
    """What was found of each datum, by name, `[N]`."""
    diagnostics = found.diagnostics
    of = {"nelbo": diagnostics.nelbo, "rate": diagnostics.rate, "distortion": diagnostics.distortion}
    if found.likelihood is not None:
        estimate = found.likelihood
        of |= {"log_px": estimate.log_px, "log_px_se": estimate.se, "ess": estimate.ess, "khat": estimate.smoothed.khat}
        of |= {"log_px_low": estimate.interval[0], "log_px_high": estimate.interval[1], "draws": estimate.draws}
        of |= {"log_px_jackknife": estimate.jackknife, "log_px_psis": estimate.smoothed.log_px}
    if found.annealed is not None:
        of |= {"log_px_ais": found.annealed.log_px, "log_px_ais_se": found.annealed.se}
        of |= {"acceptance": found.annealed.acceptance_per_datum}
    if found.exact is not None:
        of["log_px_exact"] = found.exact
    if found.quadrature is not None:
        of |= {"log_px_quadrature": found.quadrature.log_px, "log_px_quadrature_error": found.quadrature.error}
    if found.gaps is not None:
        of["inference_gap"] = found.gaps.inference.values
        for name, family in found.gaps.families.items():
            suffix = name.replace("-", "_")
            of |= {f"amortization_gap_{suffix}": family.amortization.values}
            of |= {f"approximation_gap_{suffix}": family.approximation.values}
    return of


def simulated(found: Evaluation) -> dict[str, Tensor]:
    """What was found of each simulated datum, by name, `[N]`."""
    if found.bidirectional is None:
        return {}
    both = found.bidirectional
    return {"lower": both.lower, "lower_se": both.forward.se, "upper": both.upper, "upper_se": both.upper_se}


def figures(system: Autoencoder, dataset: Dataset, found: Evaluation) -> dict[str, Figure]:
    """Every picture that the system has."""
    makers: dict[str, Callable[[], Figure]] = {
        "reconstructions": lambda: plots.reconstructions(system, dataset.x, labels=dataset.labels),
        "samples": lambda: plots.samples(system),
        "manifold": lambda: plots.manifold(system),
        "latent_scatter": lambda: plots.latent_scatter(system, dataset.x, dataset.labels),
        "kl_per_unit": lambda: plots.kl_per_unit(found.diagnostics),
        "filters": lambda: plots.filters(system),
        **_likelihood_figures(dataset, found),
    }
    figures = {}
    for name, make in makers.items():
        try:
            figures[name] = make()
        except PyroaeError:
            continue  # a picture that this system does not have, such as samples from a Flat prior
    return figures


def _likelihood_figures(dataset: Dataset, found: Evaluation) -> dict[str, Callable[[], Figure]]:
    makers: dict[str, Callable[[], Figure]] = {}
    bounds = found.sandwich()
    if len(bounds) > 1:
        makers["sandwich"] = lambda: likelihood_plots.sandwich(bounds, f"{len(dataset)} data of {dataset.name}")
    if found.likelihood is not None:
        estimate = found.likelihood
        levels: dict[str, float] = {name: bounds[name][0] for name in ("AIS", "exact", "quadrature") if name in bounds}
        makers["likelihood_per_datum"] = lambda: likelihood_plots.likelihood_per_datum(estimate)
        makers["bound_curve"] = lambda: likelihood_plots.bound_curve({"IWAE": estimate}, levels)
        makers["khat"] = lambda: likelihood_plots.khat(estimate)
        bad = estimate.unreliable.tolist()
        makers["extremes"] = lambda: likelihood_plots.extremes(dataset.x, estimate.log_px, dataset.shape, marked=bad)
    if found.likelihood is not None or found.exact is not None:
        point = tuple(found.results[name].estimate for name in ("rate", "distortion"))
        makers["rate_distortion"] = lambda: likelihood_plots.rate_distortion({dataset.name: point})
    return makers


def draw_curves(run: Run, result: FitResult) -> None:
    """The figure of a training."""
    save(plots.training_curves({run.config.estimator: result.history}), run.path / "figures" / "training_curves.png")


def save(figure: Figure, path: Path) -> None:
    """Write a picture whole or not at all."""
    guarded(path, lambda file: figure.savefig(file, dpi=150))


def compared(names: Sequence[str], ks: Sequence[int]) -> None:
    """Raises ConfigError for objectives, to be compared at each K, that do not exist or have a K of their own."""
    for name in names:
        check_objective_names(name)
        if "num_particles=" in name.replace(" ", ""):
            raise ConfigError(f"--num-particles gives every K: leave num_particles out of '{name}'")
    if not ks or min(ks) < 1:
        raise ConfigError(f"num_particles must be at least 1, not {min(ks, default='none')}")


def at_least_one(name: str, value: int) -> None:
    """Raises ConfigError for a count below 1."""
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, not {value}")


def say(text: str) -> None:
    """One line of what a command has to say, of several processes once."""
    if is_first():
        print(text, file=sys.stdout, flush=True)
