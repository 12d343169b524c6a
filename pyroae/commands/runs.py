"""The commands about one run. Each refuses bad input before it starts, and reads what earlier ones wrote."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pyroae import likelihood_plots, plots
from pyroae.commands.work import at_least_one, evaluate_run, part_of, resume_run, save, say, splits_of, train_run
from pyroae.config import RunConfig
from pyroae.errors import ConfigError
from pyroae.evaluation.summary import Evaluation, EvaluationSettings
from pyroae.files import guarded
from pyroae.inference_data import to_datatree
from pyroae.report import write_report
from pyroae.runs import Run, refuse_taken
from pyroae.trainer import FitResult


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
        say(f"{name}: a VAE with {config.latent} latent units on the digits, {epochs} epochs")
        run, trained = train_run(config, study / name, overwrite)
        found = evaluate_run(run, splits_of(run.config).test, EvaluationSettings(num_particles=num_particles))
        results[name], histories[name] = (found, trained), trained.history
    curves = plots.training_curves({name: histories[name] for name in rows})
    save(curves, study / "figures" / "training_curves.png")
    points = {name: tuple(found.results[of].estimate for of in ("rate", "distortion")) for name, (found, _) in results.items()}
    save(likelihood_plots.rate_distortion(points), study / "figures" / "rate_distortion.png")
    Console().print(_comparison({name: results[name] for name in rows}, num_particles))
    say(f"pictures: {study}/figures, {study}/*/figures; a page a run: {study}/*/report.html; DataTree: {study}/*/evaluation.nc")


def train(settings: dict[str, Any], out: str | None, overwrite: bool, resume: str | None, checkpoint: str | None) -> None:
    """Train, or go on with, a run; prints the bound of the weights that were kept."""
    if checkpoint is not None and resume is None:
        raise ConfigError("--checkpoint says from where --resume goes on: name the run with --resume RUN")
    if resume is not None:
        if overwrite or (resume and out is not None and Path(out) != Path(resume)) or not (resume or out):
            raise ConfigError("--resume goes on with one run in its own directory: name that, and leave out --overwrite")
        run, result = resume_run(Run(resume or str(out)), settings, checkpoint or "last")
    else:
        if out is None:
            raise ConfigError("give --out, the run directory to write")
        run, result = train_run(RunConfig.from_mapping(settings), Path(out), overwrite)
    last = result.history[result.best_epoch - 1] if result.best_epoch else result.history[-1]
    stopped = "stopped early; " if result.stopped_early else ""
    bound = last.valid_nelbo if result.best_epoch else last.train_nelbo
    which = "validation" if result.best_epoch else "training"
    skipped = f"; {result.skipped} steps were left out, their loss or gradient not finite" if result.skipped else ""
    seconds = f"{result.seconds:.1f} s"
    say(f"{stopped}epoch {last.epoch}: {which} negative bound {bound:.3f} nats per datum, {seconds}; {run.path}{skipped}")


def sample(run_directory: str, num: int, noise: bool, seed: int, out: str | None) -> None:
    """Draws from the prior, decoded."""
    at_least_one("num", num)
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
    dataset = part_of(run, data, split, num_data)
    system = run.autoencoder(checkpoint)
    x = system.reconstruct(dataset.x)
    _write(x, run, out, "reconstructions.png", lambda: plots.reconstructions(system, dataset.x))


def encode(
    run_directory: str, data: str | None, split: str, num_data: int | None, checkpoint: str | None, out: str | None
) -> None:
    """Posterior means to .npy, means and labels to .csv, draws with their weights to .nc."""
    run = Run(run_directory)
    dataset = part_of(run, data, split, num_data)
    system = run.autoencoder(checkpoint)
    path = Path(out) if out else run.path / "latents.csv"
    if path.suffix == ".nc":
        tree = to_datatree(system.model, system.guide, dataset.x, labels=dataset.labels, shape=dataset.shape, seed=0)
        guarded(path, lambda file: tree.to_netcdf(file, engine="h5netcdf"))
    else:
        _write_table(path, system.encode(dataset.x), dataset.labels, "z")
    say(f"{len(dataset)} data: {path}")


def report(run_directory: str) -> None:
    """One HTML page of a run."""
    say(str(write_report(Run(run_directory))))


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
        save(picture(), path)
    else:
        _write_table(path, x, None, "x")
    say(f"{len(x)}: {path}")


def _write_table(path: Path, values: Tensor, labels: np.ndarray | None, letter: str) -> None:
    array = values.cpu().numpy()
    if path.suffix == ".npy":
        guarded(path, lambda file: np.save(file, array))
    elif path.suffix == ".csv":
        guarded(path, lambda file: _write_csv(file, array, labels, letter))
    else:
        raise ConfigError(f"'{path}' is not of a kind that this command writes; .npy and .csv are")


def _write_csv(path: Path, array: np.ndarray, labels: np.ndarray | None, letter: str) -> None:
    names = [f"{letter}{i}" for i in range(array.shape[1])] + ([] if labels is None else ["label"])
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([*row, *([] if labels is None else [labels[i]])] for i, row in enumerate(array.tolist()))
