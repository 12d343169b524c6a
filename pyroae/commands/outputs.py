"""Commands that write what a trained system gives: `sample`, `reconstruct`, `encode` and `report`."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyroae import plots
from pyroae.config import at_least_one
from pyroae.errors import ConfigError
from pyroae.inference_data import to_datatree
from pyroae.plots.drawing import save
from pyroae.runs.loading import part_of
from pyroae.runs.report import write_report
from pyroae.runs.run import Run
from pyroae.runtime.files import guarded
from pyroae.runtime.processes import say


def sample(run_directory: str, num: int, noise: bool, seed: int, out: str | None) -> None:
    """Draws from the prior, decoded."""
    at_least_one("num", num)
    run = Run(run_directory)
    system = run.autoencoder()
    torch.manual_seed(seed)
    x = system.sample(num, noise=noise)
    _write(x, run, out, "samples.png", lambda: plots.samples(system, num, seed))


def reconstruct(
    run_directory: str,
    data: str | None,
    split: str,
    num_data: int | None,
    checkpoint: str | None,
    out: str | None,
) -> None:
    """Data, encoded and decoded."""
    run = Run(run_directory)
    dataset = part_of(run, data, split, num_data)
    system = run.autoencoder(checkpoint)
    x = system.reconstruct(dataset.x)
    _write(x, run, out, "reconstructions.png", lambda: plots.reconstructions(system, dataset.x))


def encode(
    run_directory: str,
    data: str | None,
    split: str,
    num_data: int | None,
    checkpoint: str | None,
    out: str | None,
) -> None:
    """Posterior means to .npy, means and labels to .csv, draws with their weights to .nc."""
    run = Run(run_directory)
    dataset = part_of(run, data, split, num_data)
    system = run.autoencoder(checkpoint)
    path = Path(out) if out else run.path / "latents.csv"
    if path.suffix == ".nc":
        tree = to_datatree(
            system.model,
            system.guide,
            dataset.x,
            labels=dataset.labels,
            shape=dataset.shape,
            seed=0,
        )
        guarded(path, lambda file: tree.to_netcdf(file, engine="h5netcdf"))
    else:
        _write_table(path, system.encode(dataset.x), dataset.labels, "z")
    say(f"{len(dataset)} data: {path}")


def report(run_directory: str) -> None:
    """One HTML page of a run."""
    say(str(write_report(Run(run_directory))))


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
        writer.writerows(
            [*row, *([] if labels is None else [labels[i]])] for i, row in enumerate(array.tolist())
        )
