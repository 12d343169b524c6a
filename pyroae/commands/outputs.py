"""Commands that write what a trained system gives: `sample`, `reconstruct`, `encode`, `report`."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyroae import plots
from pyroae.autoencoder import Autoencoder
from pyroae.autoencoder.hierarchies import site_of
from pyroae.config import Part, at_least_one
from pyroae.data.conditions import FROM_LABELS
from pyroae.data.dataset import Dataset
from pyroae.errors import ConfigError, PyroaeError
from pyroae.programs.arguments import Arguments
from pyroae.programs.pair import like_parameters
from pyroae.programs.predictive import encoded, predicted
from pyroae.runs.data_of_run import arguments_in, is_semi_supervised, part_of, standardization_of
from pyroae.runs.loading import own_parameters, placed, trained
from pyroae.runs.parts import EvaluatedPart, weights_of
from pyroae.runs.run import Run, refuse_data_file
from pyroae.runtime.files import guarded
from pyroae.runtime.links import report_line
from pyroae.runtime.processes import say
from pyroae.runtime.randomness import fork_random

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyroae.commands.data_pictures import DataPictures

CPU = torch.device("cpu")


@own_parameters()
def sample(
    run_directory: str,
    num: int,
    noise: bool,
    seed: int,
    out: str | None,
    label: str | None = None,
) -> None:
    """Write draws from the prior, decoded.

    A program, and a system that is conditioned on columns, have the covariates of the first test
    data, at most as many as there are. A system that is conditioned on labels is drawn for each
    label, in a picture a row per label, or for one of them.

    Args:
        run_directory: The run.
        num: How many.
        noise: Whether to write draws of x, not means of p(x|z).
        seed: Seed of the draws.
        label: The label of all draws; by default each label in turn.
        out: A .png, .npy or .csv file; by default RUN/figures/samples.png.

    Raises:
        PyroaeError: For a flat prior, a label that the run has not, and for a file that cannot be
            written.
    """
    at_least_one("num", num)
    run = Run(run_directory)
    place = None if label is None else _place_of(label, run)
    if run.config.program is None:
        _sample_system(run, num, noise, seed, out, place)
        return
    part = part_of(run, Part(num_data=num))
    program: Any = trained(run, None, part)
    args = like_parameters(program, arguments_in(part))
    with fork_random(CPU, seed):
        values = _columns(predicted(program.model, None, args, noise=noise))
    _write(
        values,
        run,
        out,
        "samples.png",
        lambda: (
            _pictures_of(program, args, part).table("pairs", "marginals")
            or plots.samples(program, num, seed, args, part.shape)
        ),
    )


def _place_of(label: str, run: Run) -> int:
    """The place of a label in the one-hot condition of a run."""
    if not _has_labels(run):
        raise ConfigError(
            f"--label needs a system that is conditioned on labels; '{run.path}' was trained "
            "without"
        )
    if label not in run.condition_names:
        raise ConfigError(
            f"the label '{label}' was never seen in training, whose labels are "
            f"{', '.join(run.condition_names)}"
        )
    return run.condition_names.index(label)


def _has_labels(run: Run) -> bool:
    """Whether the condition of a system of the zoo is one-hot labels."""
    is_of_labels = run.config.condition == FROM_LABELS or is_semi_supervised(run.config)
    return is_of_labels and run.config.program is None


def _sample_system(
    run: Run, num: int, noise: bool, seed: int, out: str | None, place: int | None
) -> None:
    """Write samples of a system of the zoo."""
    system, names = run.autoencoder(), run.condition_names
    labels: np.ndarray | None = None
    c: Tensor | None = None
    if _has_labels(run):
        index = np.arange(num) % len(names) if place is None else np.full(num, place)
        labels, c = np.asarray(names)[index], torch.eye(len(names))[index]
    elif run.config.condition is not None:
        c = arguments_in(part_of(run, Part(num_data=num)))[1]
    if c is not None:
        (c,) = like_parameters(system, (c,))
    count = num if c is None else len(c)
    torch.manual_seed(seed)
    x = system.sample(count, c, noise=noise)
    by_class = labels is not None and place is None
    _write(
        x,
        run,
        out,
        "samples.png",
        lambda: (
            plots.class_samples(system, names, max(1, num // len(names)), seed)
            if by_class
            else _beside_data(run, system, num) or plots.samples(system, count, seed, c)
        ),
        labels,
    )


def _pictures_of(system: Any, args: tuple[Tensor, ...], part: Any) -> "DataPictures":
    """The pictures of data beside draws; matplotlib is imported for these only."""
    from pyroae.commands.data_pictures import data_pictures

    return data_pictures(system, args, part)


def _beside_data(run: Run, system: Autoencoder, num: int) -> "Figure | None":
    """Samples of a table beside the data; None for images, sequences and conditional systems."""
    from pyroae.plots.drawing import is_image

    if is_image(system.shape) or system.condition:
        return None
    part = part_of(run, Part(num_data=num))
    args = like_parameters(system, arguments_in(part))
    return _pictures_of(system, args, part).table("pairs", "marginals")


@own_parameters()
def reconstruct(run_directory: str, part: Part, out: str | None) -> None:
    """Write data that were encoded and decoded; of a program, from one draw of z.

    Args:
        run_directory: The run.
        part: The data and the weights.
        out: A .png, .npy or .csv file; by default RUN/figures/reconstructions.png.

    Raises:
        PyroaeError: For data that cannot be read, and for a file that cannot be written.
    """
    run = Run(run_directory)
    dataset = part_of(run, part)
    system: Any = trained(run, part.checkpoint, dataset)
    args = like_parameters(system, arguments_in(dataset))
    if isinstance(system, Autoencoder):
        x = system.reconstruct(*args)
    else:
        with fork_random(CPU, 0):
            x = _columns(predicted(system.model, system.guide, args))
    _write(
        x,
        run,
        out,
        "reconstructions.png",
        lambda: (
            _pictures_of(system, args, dataset).table("fitted")
            or plots.reconstructions(system, args, shape=dataset.shape)
        ),
        caption=EvaluatedPart(
            dataset.name, part.split, len(dataset), weights_of(run, part.checkpoint)
        ).title,
    )


@own_parameters()
def encode(run_directory: str, part: Part, out: str | None) -> None:
    """Write posterior means to .npy, means and labels to .csv, draws of q and weights to .nc.

    Means of several layers of z are side by side, from the data upwards: columns z0, z1, ...,
    z2_0, z2_1, ....

    Args:
        run_directory: The run.
        part: The data and the weights.
        out: The file; by default RUN/latents.csv. Means of a program are over 100 draws.

    Raises:
        PyroaeError: For data that cannot be read, and for a file that cannot be written.
    """
    run = Run(run_directory)
    dataset = part_of(run, part)
    system: Any = trained(run, part.checkpoint, dataset)
    path = Path(out) if out else run.path / "latents.csv"
    refuse_data_file(path, run.config.data)
    args = like_parameters(system, arguments_in(dataset))
    labels = getattr(dataset, "labels", None)
    if path.suffix == ".nc":
        _write_draws(path, system, dataset)
    elif isinstance(system, Autoencoder):
        codes = system.codes(*args)
        names = [f"{site_of(n)}{'_' if n > 1 else ''}" for n in range(1, len(codes) + 1)]
        _write_table(path, torch.cat(codes, 1), labels, _columns_of(names, codes))
    else:
        with fork_random(CPU, 0):
            means = encoded(system.guide, args)
        _write_table(path, means, labels, _columns_of(["z"], [means]))
    say(f"{len(dataset)} data: {path}")


def report(run_directory: str) -> None:
    """Write one HTML page of a run, or of a study.

    Args:
        run_directory: The run, or the study.
    """
    from pyroae.runs.report import write_report

    path = Path(run_directory)
    if (path / "study.yaml").is_file():
        from pyroae.studies.loading import report_study

        say(report_line(report_study(path)))
    else:
        say(report_line(write_report(Run(path))))


def _write_draws(path: Path, system: Any, dataset: Dataset | Arguments) -> None:
    from pyroae.inference_data import to_datatree
    from pyroae.runs.trees import write_tree

    tree = to_datatree(
        system.model,
        system.guide,
        placed(system, dataset, CPU),
        labels=getattr(dataset, "labels", None),
        shape=dataset.shape,
        seed=0,
    )
    write_tree(path, tree)


def _columns(sites: dict[str, Tensor]) -> Tensor:
    """The values of the observed sites, side by side `[N, ...]`."""
    return torch.cat([value.reshape(len(value), -1) for value in sites.values()], 1)


def _write(
    x: Tensor,
    run: Run,
    out: str | None,
    default: str,
    picture: "Callable[[], Figure]",
    labels: np.ndarray | None = None,
    caption: str = "",
) -> None:
    path = Path(out) if out else run.path / "figures" / default
    refuse_data_file(path, run.config.data)
    if path.suffix == ".png":
        from pyroae.plots.drawing import save

        save(picture(), path, caption)
    else:
        by = standardization_of(run)
        table = x if by is None else by.inverse(x.cpu())
        _write_table(path, table, labels, _feature_names(run, x))
    say(f"{len(x)} rows: {path}" if path.suffix != ".png" else str(path))


def _feature_names(run: Run, x: Tensor) -> list[str]:
    """The names of the columns of the run's table; x0, x1, … without one, or if it is gone."""
    try:
        names = list(getattr(part_of(run, Part(num_data=1)), "columns", ()))
    except PyroaeError:
        names = []
    return names if len(names) == x.shape[1] else _columns_of(["x"], [x])


def _columns_of(prefixes: Sequence[str], parts: Sequence[Tensor]) -> list[str]:
    """Names of the columns of parts `[N, m]` side by side, each numbered from 0."""
    return [
        f"{prefix}{i}"
        for prefix, part in zip(prefixes, parts, strict=True)
        for i in range(part.shape[1])
    ]


def _write_table(
    path: Path, values: Tensor, labels: np.ndarray | None, names: Sequence[str]
) -> None:
    array = values.cpu().numpy()
    if path.suffix == ".npy":
        guarded(path, lambda file: np.save(file, array))
    elif path.suffix == ".csv":
        guarded(path, lambda file: _write_csv(file, array, labels, names))
    else:
        raise ConfigError(f"'{path}' is not of a kind that this command writes; .npy and .csv are")


def _write_csv(
    path: Path, array: np.ndarray, labels: np.ndarray | None, names: Sequence[str]
) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, *([] if labels is None else ["label"])])
        writer.writerows(
            [*row, *([] if labels is None else [labels[i]])] for i, row in enumerate(array.tolist())
        )
