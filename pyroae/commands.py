"""What the commands of the command line do. Each refuses bad input before it starts, and reads what earlier ones wrote."""

import csv
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pyroae import plots, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.config import RunConfig
from pyroae.data import Dataset, Splits, load
from pyroae.errors import ConfigError, DataError, PyroaeError, RunError
from pyroae.evaluation.summary import Evaluation
from pyroae.evaluation.summary import evaluate as evaluate_system
from pyroae.inference_data import to_datatree
from pyroae.likelihoods import Bernoulli
from pyroae.objectives import OBJECTIVES
from pyroae.report import write_report
from pyroae.runs import Run, device_of, refuse_taken, write_whole
from pyroae.training import FitResult, check, check_data, fit

LABELS = {
    "nll": "NLL by importance sampling",
    "nll_exact": "NLL, closed form",
    "nelbo": "negative ELBO",
    "rate": "rate",
    "distortion": "distortion",
    "active_units": "active units",
    "squared_error": "squared error",
}


def demo(out: str, overwrite: bool, epochs: int, num_particles: int) -> None:
    """A VAE on the embedded digits under two ELBO estimators: table, run directories, figures, DataTree."""
    study = Path(out)
    base = RunConfig(latent=10, epochs=epochs, schedule="cosine", lr=3e-3, hidden=(200, 200), batch_size=100)
    rows = {name: base.but(objective=name) for name in ("trace-elbo", "analytic-kl")}
    flat = {"two-dimensional": base.but(objective="analytic-kl", latent=2)}
    for name in {**rows, **flat}:
        refuse_taken(study / name, overwrite)
    results, histories = {}, {}
    for name, config in {**rows, **flat}.items():
        _say(f"{name}: a VAE with {config.latent} latent units on the digits, {epochs} epochs")
        run, trained = _train(config, study / name, overwrite)
        found = _evaluate(run, _splits(run.config).test, num_particles)
        results[name], histories[name] = (found, trained), trained.history
    curves = plots.training_curves({name: histories[name] for name in rows})
    _save(curves, study / "figures" / "training_curves.png")
    Console().print(_comparison({name: results[name] for name in rows}, num_particles))
    _say(
        f"pictures: {study}/figures, {study}/*/figures; a page a run: {study}/*/report.html; DataTree: {study}/*/evaluation.nc"
    )


def train(settings: dict[str, Any], out: str | None, overwrite: bool, resume: str | None) -> None:
    """Train, or go on with, a run; prints the bound of the weights that were kept."""
    if resume is not None:
        if overwrite or (resume and out is not None and Path(out) != Path(resume)) or not (resume or out):
            raise ConfigError("--resume goes on with one run in its own directory: name that, and leave out --overwrite")
        run, result = _resume(Run(resume or str(out)), settings)
    else:
        if out is None:
            raise ConfigError("give --out, the run directory to write")
        run, result = _train(RunConfig.from_mapping(settings), Path(out), overwrite)
    last = result.history[result.best_epoch - 1] if result.best_epoch else result.history[-1]
    stopped = "stopped early; " if result.stopped_early else ""
    bound = last.valid_nelbo if result.best_epoch else last.train_nelbo
    which = "validation" if result.best_epoch else "training"
    _say(f"{stopped}epoch {last.epoch}: {which} negative bound {bound:.3f} nats per datum, {result.seconds:.1f} s; {run.path}")


def evaluate(
    run_directory: str,
    data: str | None,
    split: str,
    num_data: int | None,
    checkpoint: str | None,
    method: str | None,
    num_particles: int,
    seed: int,
) -> None:
    """Evaluate a run: one table, results.json, evaluation.nc, figures."""
    run = Run(run_directory)
    dataset = _part(run, data, split, num_data)
    methods = None if method is None else tuple(m.strip() for m in method.split(","))
    found = _evaluate(run, dataset, num_particles, methods=methods, checkpoint=checkpoint, seed=seed)
    _say(f"{run.path}: {len(dataset)} data of {dataset.name}, {split} part")
    table = Table("in nats per datum", "estimate", "± SE", box=box.SIMPLE_HEAD)
    for name, label in LABELS.items():
        if name in found.results:
            result = found.results[name]
            spread = "" if result.se != result.se else f"{result.se:.3f}"
            table.add_row(label, f"{result.estimate:.{0 if name == 'active_units' else 3}f}", spread)
    Console().print(table)
    if found.likelihood is not None:
        _say(
            f"K = {num_particles}: Monte-Carlo SE of the NLL for these data {found.likelihood.monte_carlo_se:.4f}, "
            f"median ESS {found.likelihood.ess.median():.0f}"
        )
    if found.undefined:
        _say(f"no log-likelihood: {found.undefined}")


def sample(run_directory: str, num: int, noise: bool, seed: int, out: str | None) -> None:
    """Draws from the prior, decoded."""
    _at_least_one("num", num)
    run = Run(run_directory)
    system = run.autoencoder()
    torch.manual_seed(seed)
    x = system.sample(num, noise=noise)
    _write(x, run, out, "samples.png", lambda: plots.samples(system, num, seed))


def reconstruct(
    run_directory: str, data: str | None, split: str, num_data: int | None, checkpoint: str | None, out: str | None
) -> None:
    """Data, encoded and decoded."""
    run = Run(run_directory)
    dataset = _part(run, data, split, num_data)
    system = run.autoencoder(checkpoint)
    x = system.reconstruct(dataset.x)
    _write(x, run, out, "reconstructions.png", lambda: plots.reconstructions(system, dataset.x))


def encode(
    run_directory: str, data: str | None, split: str, num_data: int | None, checkpoint: str | None, out: str | None
) -> None:
    """Posterior means to .npy, means and labels to .csv, draws with their weights to .nc."""
    run = Run(run_directory)
    dataset = _part(run, data, split, num_data)
    system = run.autoencoder(checkpoint)
    path = Path(out) if out else run.path / "latents.csv"
    if path.suffix == ".nc":
        tree = to_datatree(system.model, system.guide, dataset.x, labels=dataset.labels, shape=dataset.shape, seed=0)
        _guarded(path, lambda file: tree.to_netcdf(file, engine="h5netcdf"))
    else:
        _write_table(path, system.encode(dataset.x), dataset.labels, "z")
    _say(f"{len(dataset)} data: {path}")


def report(run_directory: str) -> None:
    """One HTML page of a run."""
    _say(str(write_report(Run(run_directory))))


# What the commands share.


def _splits(config: RunConfig, data: str | None = None) -> Splits:
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


def _train(config: RunConfig, path: Path, overwrite: bool) -> tuple[Run, FitResult]:
    refuse_taken(path, overwrite)
    splits = _splits(config)
    torch.manual_seed(config.seed)
    system = zoo.from_config(config, splits.train)
    objective = OBJECTIVES.parse(config.objective, num_particles=config.num_particles)
    check(system, splits.train, splits.valid, objective, config.training)
    run = Run.create(path, config, splits, overwrite=overwrite)
    result = fit(system, splits, objective, config.training, on_epoch=run.save)
    _draw_curves(run, result)
    return run, result


def _resume(run: Run, settings: dict[str, Any]) -> tuple[Run, FitResult]:
    state = run.state()
    config = RunConfig.from_mapping({**run.config.to_dict(), **settings})
    for name, value in config.to_dict().items():
        if name not in ("epochs", "accelerator", "data_root") and value != run.config.to_dict()[name]:
            raise ConfigError(f"--resume goes on with the settings of the run: {name} is {run.config.to_dict()[name]} there")
    if len(state.history) >= config.epochs:
        raise ConfigError(f"the run '{run.path}' has finished its {config.epochs} epochs: give more --epochs to go on")
    splits = _splits(config)
    _same_data(run, splits)
    system = zoo.from_config(config, splits.train)
    objective = OBJECTIVES.parse(config.objective, num_particles=config.num_particles)
    run.write_config(config, splits)
    result = fit(system, splits, objective, config.training, state=state, on_epoch=run.save)
    _draw_curves(run, result)
    return run, result


def _same_data(run: Run, splits: Splits) -> None:
    if splits.fingerprint != run.fingerprint:
        raise DataError(
            f"the data '{run.config.data}' have changed since the run '{run.path}': their fingerprint is "
            f"{splits.fingerprint}, not {run.fingerprint}"
        )


def _part(run: Run, data: str | None, split: str, num_data: int | None) -> Dataset:
    """The part of the data that a command is about: of the run's own, or of other data of the same width."""
    if num_data is not None:
        _at_least_one("num_data", num_data)
    splits = _splits(run.config, data)
    if data is None:
        _same_data(run, splits)
    dataset = getattr(splits, split)
    if dataset is None:
        raise DataError(f"the data '{data or run.config.data}' have no {split} part: choose another --split")
    if dataset.dynamic:  # training data are drawn anew each epoch; to look at them, one fixed draw
        dataset = replace(
            load(dataset, binarize="static", valid=0, test=0, seed=run.config.split_seed).train, name=dataset.name
        )
    width, trained_on = dataset.x.shape[1], int(np.prod(run.shape))
    if width != trained_on:
        raise DataError(f"{dataset.name} has {width} features a datum; the run '{run.path}' was trained on {trained_on}")
    return dataset.first(num_data or len(dataset))


def _evaluate(
    run: Run,
    dataset: Dataset | None,
    num_particles: int,
    *,
    methods: tuple[str, ...] | None = None,
    checkpoint: str | None = None,
    seed: int = 0,
) -> Evaluation:
    assert dataset is not None
    device = device_of(run.config.accelerator)
    system = run.autoencoder(checkpoint).to(device)
    dtype = next(system.parameters()).dtype
    check_data(system, dataset, dataset.name)
    x = dataset.x.to(device, dtype)
    found = evaluate_system(system, x, methods=methods, num_particles=num_particles, seed=seed, progress=True)
    statistics = {"nelbo": found.diagnostics.nelbo, "rate": found.diagnostics.rate, "distortion": found.diagnostics.distortion}
    if found.likelihood is not None:
        statistics |= {"log_px": found.likelihood.log_px, "log_px_se": found.likelihood.se, "ess": found.likelihood.ess}
    tree = to_datatree(
        system.model, system.guide, x, labels=dataset.labels, shape=dataset.shape, statistics=statistics, seed=seed
    )
    run.write_results(list(found.results.values()))
    _guarded(run.path / "evaluation.nc", lambda file: tree.to_netcdf(file, engine="h5netcdf"))
    for name, figure in _figures(system, replace(dataset, x=x), found).items():
        _save(figure, run.path / "figures" / f"{name}.png")
    write_report(run)
    return found


def _figures(system: Autoencoder, dataset: Dataset, found: Evaluation) -> dict[str, Figure]:
    """Every picture that the system has."""
    makers = {
        "reconstructions": lambda: plots.reconstructions(system, dataset.x, labels=dataset.labels),
        "samples": lambda: plots.samples(system),
        "manifold": lambda: plots.manifold(system),
        "latent_scatter": lambda: plots.latent_scatter(system, dataset.x, dataset.labels),
        "kl_per_unit": lambda: plots.kl_per_unit(found.diagnostics),
        "filters": lambda: plots.filters(system),
    }
    if found.likelihood is not None:
        estimate = found.likelihood
        makers["likelihood_per_datum"] = lambda: plots.likelihood_per_datum(estimate)
    figures = {}
    for name, make in makers.items():
        try:
            figures[name] = make()
        except PyroaeError:
            continue  # a picture that this system does not have, such as samples from a Flat prior
    return figures


def _draw_curves(run: Run, result: FitResult) -> None:
    _save(plots.training_curves({run.config.objective: result.history}), run.path / "figures" / "training_curves.png")


def _comparison(results: dict[str, tuple[Evaluation, FitResult]], num_particles: int) -> Table:
    """The demo's table: an objective a row."""
    table = Table(title=f"held-out digits, nats per datum ± SE, K = {num_particles}", box=box.SIMPLE_HEAD, padding=0)
    for column in ("objective", "ELBO", "NLL", "rate", "distortion", "active", "seconds"):
        table.add_column(column, justify="left" if column == "objective" else "right", no_wrap=True, min_width=9)
    for name, (found, trained) in results.items():
        of = found.results
        cells = [f"{of[key].estimate * sign:.2f} ± {of[key].se:.2f}" for key, sign in (("nelbo", -1), ("nll", 1))]
        cells += [f"{of[key].estimate:.2f}" for key in ("rate", "distortion")]
        table.add_row(name, *cells, f"{of['active_units'].estimate:.0f}", f"{trained.seconds:.1f}")
    return table


def _write(x: Tensor, run: Run, out: str | None, default: str, picture: Any) -> None:
    path = Path(out) if out else run.path / "figures" / default
    if path.suffix == ".png":
        _save(picture(), path)
    else:
        _write_table(path, x, None, "x")
    _say(f"{len(x)}: {path}")


def _write_table(path: Path, values: Tensor, labels: np.ndarray | None, letter: str) -> None:
    array = values.cpu().numpy()
    if path.suffix == ".npy":
        _guarded(path, lambda file: np.save(file, array))
    elif path.suffix == ".csv":
        _guarded(path, lambda file: _write_csv(file, array, labels, letter))
    else:
        raise ConfigError(f"'{path}' is not of a kind that this command writes; .npy and .csv are")


def _write_csv(path: Path, array: np.ndarray, labels: np.ndarray | None, letter: str) -> None:
    names = [f"{letter}{i}" for i in range(array.shape[1])] + ([] if labels is None else ["label"])
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([*row, *([] if labels is None else [labels[i]])] for i, row in enumerate(array.tolist()))


def _save(figure: Figure, path: Path) -> None:
    _guarded(path, lambda file: figure.savefig(file, dpi=150))


def _guarded(path: Path, write: Any) -> None:
    try:
        write_whole(path, write)
    except OSError as error:
        raise RunError(f"cannot write '{path}': {error.strerror or error}") from None


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, not {value}")


def _say(text: str) -> None:
    print(text, file=sys.stdout, flush=True)
