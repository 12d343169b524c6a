"""The rate–distortion curve in RUN/evaluation.nc: its group of the DataTree, and how it is read."""

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
from pyroae.runtime.short_repr import short_repr

if TYPE_CHECKING:
    from xarray import Dataset, DataTree

GROUP = "rate_distortion"
"""The group of the DataTree."""


NATS = ("rate", "distortion", "rate_se", "distortion_se", "log_z_se")
"""Variables in nats per datum that are fields of `RateDistortion`."""


@dataclass(frozen=True)
class EvaluatedCurve:
    """What the evaluation of a run says of rate and distortion.

    Attributes:
        curve: The curve, by annealing.
        guide: Rate and distortion of the guide, means over the data, in nats per datum.
        data: A hash of the data of the evaluation.
    """

    curve: RateDistortion
    guide: tuple[float, float]
    data: str

    __repr__ = short_repr()


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


def curve_of_run(path: str | Path) -> EvaluatedCurve:
    """Read the curve of a run from its evaluation.nc.

    Args:
        path: The run directory.

    Returns:
        The curve, the point of the guide, and a hash of the data.

    Raises:
        RunError: For what is no run, for a run without a curve, and for a file that cannot be read.
    """
    import xarray

    file = Run(path).path / "evaluation.nc"
    missing = RunError(
        f"the run '{path}' has no rate–distortion curve: 'pyroae evaluate {path} --method ais' "
        "makes one"
    )
    if not file.is_file():
        raise missing
    try:
        with xarray.open_datatree(file, engine="h5netcdf") as tree:
            curve = curve_in(tree)
            if curve is None:
                raise missing
            means = tree["per_datum"].to_dataset()[["rate", "distortion"]].mean()
            data = _hash(tree["observed_data"].to_dataset())
    except RunError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"'{file}' cannot be read: {words(error)}") from None
    return EvaluatedCurve(curve, (float(means["rate"]), float(means["distortion"])), data)


def curves_of_runs(paths: list[str]) -> dict[str, EvaluatedCurve]:
    """Read the curves of several runs.

    Args:
        paths: The run directories.

    Returns:
        The curves by the names of the directories, or by their paths where two names are equal.

    Raises:
        RunError: As `curve_of_run`.
        ConfigError: For runs that were evaluated on different data, and for a run given twice.
    """
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise ConfigError("a run is given twice: give each run once")
    found = {path: curve_of_run(path) for path in paths}
    first = found[paths[0]].data
    for path, each in found.items():
        if each.data != first:
            raise ConfigError(
                f"'{paths[0]}' and '{path}' were evaluated on different data, so that their rates "
                "and distortions cannot be compared: evaluate all on the same data and --split, "
                "with the same --num-data"
            )
    names = [Path(path).resolve().name for path in paths]
    return dict(zip(names if len({*names}) == len(names) else paths, found.values(), strict=True))


def _hash(data: "Dataset") -> str:
    digest = hashlib.sha256()
    for name in sorted(map(str, data.data_vars)):
        values = np.ascontiguousarray(data[name].values)
        digest.update(f"{name} {values.shape} {values.dtype}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
