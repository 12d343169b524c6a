"""The rate–distortion curves in the DataTrees of a run: their group, and how they are read."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyroae.errors import ConfigError, RunError
from pyroae.evaluation.annealing.rate_distortion import RateDistortion
from pyroae.runs.run import Run
from pyroae.runtime.files import words
from pyroae.runtime.short_repr import Shown

if TYPE_CHECKING:
    from xarray import Dataset, DataTree

GROUP = "rate_distortion"
"""The group of the DataTree."""


NATS = ("rate", "distortion", "rate_se", "distortion_se", "log_z_se")
"""Variables in nats per datum that are fields of `RateDistortion`."""


@dataclass(frozen=True, repr=False)
class EvaluatedCurve(Shown):
    """What the evaluation of a run says of rate and distortion.

    Attributes:
        curve: The curve, by annealing.
        guide: Rate and distortion of the guide, means over the data, in nats per datum.
        data: A hash of the data of the evaluation.
    """

    curve: RateDistortion
    guide: tuple[float, float]
    data: str


def to_group(curve: RateDistortion, labels: np.ndarray | None = None) -> "Dataset":
    """Convert a curve to a group of the DataTree, with the dimensions beta and datum.

    Args:
        curve: The curve.
        labels: The label of each datum, `[N]`, which becomes a coordinate of datum.

    Returns:
        The variables rate, distortion, their standard errors and intervals, and log_z_se, each with
        its unit as an attribute, and ess.

    >>> values, ends = torch.zeros(2, 3), torch.zeros(2, 2, 3)
    >>> curve = RateDistortion(torch.tensor([0.0, 1.0]), *[values] * 5, ends, ends, values + 1)
    >>> dict(to_group(curve).sizes), to_group(curve)["rate"].units
    ({'beta': 2, 'datum': 3}, 'nats')
    """
    from xarray import Dataset

    values: dict[str, Tensor] = {name: getattr(curve, name) for name in NATS}
    for name in ("rate", "distortion"):
        low, high = getattr(curve, f"{name}_interval")
        values |= {f"{name}_low": low, f"{name}_high": high}
    dims = ("beta", "datum")
    variables = {name: (dims, value.numpy(), {"units": "nats"}) for name, value in values.items()}
    variables["ess"] = (dims, curve.ess.numpy(), {"units": "1"})
    coords: dict[str, Any] = {"beta": curve.betas.numpy(), "datum": np.arange(curve.rate.shape[1])}
    if labels is not None:
        coords["label"] = ("datum", np.asarray(labels))
    return Dataset(variables, coords)


def from_group(data: "Dataset") -> RateDistortion:
    """Return the inverse of `to_group`.

    Args:
        data: The group.

    Returns:
        The curve.
    """

    def tensor(name: str) -> Tensor:
        return torch.tensor(data[name].values, dtype=torch.float64)

    intervals = {
        f"{name}_interval": torch.stack([tensor(f"{name}_low"), tensor(f"{name}_high")])
        for name in ("rate", "distortion")
    }
    fields = {name: tensor(name) for name in (*NATS, "ess")}
    return RateDistortion(betas=tensor("beta"), **fields, **intervals)


def curve_in(tree: "DataTree") -> RateDistortion | None:
    """Return the curve of a DataTree.

    Args:
        tree: The tree of an evaluation.

    Returns:
        The curve; None for a tree without one.
    """
    return from_group(tree[GROUP].to_dataset()) if GROUP in tree.children else None


def curves_of_run(path: str | Path) -> list[EvaluatedCurve]:
    """Read the curves of a run from the DataTrees of its evaluations.

    Args:
        path: The run directory.

    Returns:
        For each part of the data that has a curve: the curve, the point of the guide, and a hash of
        the data. That of evaluation.nc is the first.

    Raises:
        RunError: For what is no run, for a run without a curve, and for a file that cannot be read.
    """
    folder = Run(path).path
    files = [folder / "evaluation.nc", *sorted((folder / "evaluations").glob("*.nc"))]
    found = [curve for file in files if file.is_file() for curve in _curve_of(file)]
    if not found:
        raise RunError(
            f"the run '{path}' has no rate–distortion curve: 'pyroae evaluate {path} --method ais' "
            "makes one"
        )
    return found


def _curve_of(file: Path) -> list[EvaluatedCurve]:
    """The curve of one DataTree, or none."""
    import xarray

    try:
        with xarray.open_datatree(file, engine="h5netcdf") as tree:
            curve = curve_in(tree)
            if curve is None:
                return []
            means = tree["per_datum"].to_dataset()[["rate", "distortion"]].mean()
            point = float(means["rate"]), float(means["distortion"])
            return [EvaluatedCurve(curve, point, _hash(tree["observed_data"].to_dataset()))]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"'{file}' cannot be read: {words(error)}") from None


def curves_of_runs(paths: list[str]) -> dict[str, EvaluatedCurve]:
    """Read the curves of several runs on the first data that all were evaluated on.

    Args:
        paths: The run directories.

    Returns:
        The curves by the names of the directories, or by their paths where two names are equal.

    Raises:
        RunError: As `curves_of_run`.
        ConfigError: For runs that were evaluated on different data, and for a run given twice.
    """
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise ConfigError("a run is given twice: give each run once")
    found = {path: {each.data: each for each in curves_of_run(path)} for path in paths}
    common = [data for data in found[paths[0]] if all(data in of_run for of_run in found.values())]
    if not common:
        strangers = [path for path in paths if not found[path].keys() & found[paths[0]].keys()]
        other = strangers[0] if strangers else paths[-1]
        raise ConfigError(
            f"'{paths[0]}' and '{other}' were evaluated on different data, so that their rates "
            "and distortions cannot be compared: evaluate all on the same data and --split, "
            "with the same --num-data"
        )
    names = [Path(path).resolve().name for path in paths]
    labels = names if len({*names}) == len(names) else paths
    return {label: found[path][common[0]] for label, path in zip(labels, paths, strict=True)}


def _hash(data: "Dataset") -> str:
    digest = hashlib.sha256()
    for name in sorted(map(str, data.data_vars)):
        values = np.ascontiguousarray(data[name].values)
        digest.update(f"{name} {values.shape} {values.dtype}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
