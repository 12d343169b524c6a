"""DataTrees as files: written through memory, read whole, and united group by group."""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyroae.errors import RunError
from pyroae.evaluation.importance.above import UpperBound
from pyroae.evaluation.importance.likelihood import LikelihoodEstimate
from pyroae.evaluation.importance.streams import BoundCurve, Smoothed
from pyroae.evaluation.results import Result, precision
from pyroae.runs.parts import EvaluatedPart
from pyroae.runtime.files import guarded, words

if TYPE_CHECKING:
    from xarray import Dataset, DataTree


_FROM_ABOVE = tuple(
    f"{bound}{of}"
    for bound in ("eubo", "cubo")
    for of in ("", "_se", "_low", "_high", "_bias", "_flagged")
)


SOURCES = {
    **dict.fromkeys(_FROM_ABOVE, "nll"),
    "log_px": "nll",
    "log_px_se": "nll",
    "log_px_low": "nll",
    "log_px_high": "nll",
    "log_px_jackknife": "nll",
    "log_px_psis": "nll",
    "ess": "nll",
    "khat": "nll",
    "draws": "nll",
    "bound_curve": "nll",
    "log_px_ais": "nll_ais",
    "log_px_ais_se": "nll_ais",
    "acceptance": "nll_ais",
    "log_px_exact": "nll_exact",
    "log_px_quadrature": "nll_quadrature",
    "log_px_quadrature_error": "nll_quadrature",
    "rate_distortion": "rate_ais",
    "simulated": "bdmc_gap",
}
"""The result whose method and K a variable of `per_datum`, or a whole group, has.

A variable with the name of a result has those of that result.
"""


OF_DRAWS = ("posterior", "sample_stats", "log_prior", "posterior_predictive")
"""Groups of the same draws of p(z|x), which come from one evaluation."""


def tree_bytes(tree: "DataTree") -> bytes:
    """Convert a DataTree to the bytes of a netCDF file, in memory.

    HDF5 never sees the disk: where it is full it would print its internals and crash.

    Args:
        tree: The tree.

    Returns:
        The content of a file.
    """
    memory = io.BytesIO()
    tree.to_netcdf(memory, engine="h5netcdf")
    return memory.getvalue()


def write_tree(path: Path, tree: "DataTree") -> None:
    """Write a DataTree as a netCDF file, completely or not at all.

    Args:
        path: The file.
        tree: The tree.

    Raises:
        RunError: If it cannot be written; the present file is then unchanged.
    """
    content = tree_bytes(tree)
    guarded(path, lambda file: file.write_bytes(content))


def read_tree(path: Path) -> "DataTree":
    """Read a DataTree into memory.

    Args:
        path: A netCDF file.

    Returns:
        The tree, independent of the file.

    Raises:
        RunError: If the file cannot be read.
    """
    from xarray import DataTree, open_datatree

    with _readable(path), open_datatree(io.BytesIO(path.read_bytes()), engine="h5netcdf") as tree:
        # DataTree.load leaves out a variable that has the name of a group, such as log_prior
        nodes = tree.subtree_with_keys
        groups = {name: node.to_dataset(inherit=False).load() for name, node in nodes}
        return DataTree.from_dict(groups)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Report a file that is no DataTree in one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise RunError(
            f"'{path}' cannot be read: {words(error)}; move it away to evaluate again"
        ) from None


def first_part(path: Path) -> EvaluatedPart | None:
    """Return the part of the data that a tree is of.

    Args:
        path: A netCDF file, which need not exist.

    Returns:
        The part; None if there is no file.

    Raises:
        RunError: If the file cannot be read.
    """
    if not path.is_file():
        return None
    import h5netcdf  # type: ignore[import-untyped]

    with _readable(path), h5netcdf.File(path, "r") as file:
        sizes = [
            group.dimensions["datum"].size
            for group in file.groups.values()
            if "datum" in group.dimensions
        ]
        return EvaluatedPart.recorded(dict(file.attrs), max(sizes, default=0))


def describe(tree: "DataTree", results: Mapping[str, Result], attributes: Mapping[str, Any]) -> Any:
    """Record in a tree which data it is of, and the method and K of its variables.

    Args:
        tree: The tree of an evaluation.
        results: The results of the evaluation, by name.
        attributes: The attributes of the root.

    Returns:
        The same tree.
    """
    from xarray import DataTree

    groups: dict[str, Any] = {}
    for path in tree.groups:
        group: Any = tree[path]
        data, name = group.to_dataset(inherit=False), path.strip("/")
        for variable in data.data_vars:
            row = results.get(SOURCES.get(name) or _source(str(variable)))
            if row is not None:
                about = {"method": row.method, "num_particles": row.num_particles}
                data[variable].attrs |= about
        groups[path] = data
    groups["/"].attrs |= dict(attributes)
    return DataTree.from_dict(groups)


def merged(old: "DataTree | None", new: "DataTree") -> "DataTree":
    """Unite the trees of two evaluations of the same data with the same weights.

    A variable of the new tree replaces that of its name, unless the old one has more draws.
    Variables whose dimensions have other coordinates than those of more draws are left out. The
    groups of draws of p(z|x) are all of one evaluation: of annealing rather than of the closed
    form, and of that with the most draws.

    Args:
        old: The tree that there is; None if there is none.
        new: The tree of another evaluation.

    Returns:
        The tree with the groups and variables of both.
    """
    from xarray import DataTree

    if old is None:
        return new
    groups, drawn = {}, max(old, new, key=_draws) if _draws(old) != _draws(new) else new
    for path in sorted({*old.groups, *new.groups}):
        trees = (drawn,) if path.strip("/") in OF_DRAWS else (old, new)
        both: list[Any] = [tree[path] for tree in trees if path in tree.groups]
        if not both:
            continue
        parts = [group.to_dataset(inherit=False) for group in both]
        groups[path] = parts[0] if len(parts) == 1 else _united(*parts)
    return DataTree.from_dict(groups)


def _draws(tree: "DataTree") -> tuple[bool, bool, int]:
    """Whether a tree has draws of p(z|x), whether by annealing, and how many for each datum."""
    if "posterior" not in tree.children:
        return False, False, 0
    sizes = tree["posterior"].sizes
    return True, "sample_stats" in tree.children, sizes["chain"] * sizes["draw"]


def likelihood_in(tree: "DataTree") -> LikelihoodEstimate | None:
    """Restore the estimate of importance sampling from a tree.

    Args:
        tree: The tree of one or several evaluations.

    Returns:
        The estimate, without the intervals of Pareto smoothing; None if the tree has none.
    """
    groups = {path.strip("/") for path in tree.groups}
    if not {"per_datum", "bound_curve"} <= groups:
        return None
    data, curve = tree["per_datum"].to_dataset(), tree["bound_curve"].to_dataset()
    if not {name for name, of in SOURCES.items() if of == "nll"} <= {*data, "bound_curve"}:
        return None

    def column(name: str) -> torch.Tensor:
        return torch.from_numpy(np.array(data[name].values))

    interval = torch.stack([column("log_px_low"), column("log_px_high")])
    smoothed = Smoothed(column("log_px_psis"), torch.full_like(interval, torch.nan), column("khat"))
    names = ("particles", "bound", "bound_se")
    points = [torch.from_numpy(np.array(curve[name].values)) for name in names]
    return LikelihoodEstimate(
        column("log_px"),
        column("log_px_se"),
        interval,
        column("ess"),
        column("log_px_jackknife"),
        smoothed,
        column("draws"),
        BoundCurve(*points),
        None,
        0.0,
        *(_upper_bound(column, name) for name in ("eubo", "cubo")),
    )


def _upper_bound(column: Callable[[str], torch.Tensor], name: str) -> UpperBound:
    values, se, low, high, bias, flagged = (
        column(f"{name}{of}") for of in ("", "_se", "_low", "_high", "_bias", "_flagged")
    )
    return UpperBound(values, se, torch.stack([low, high]), bias, flagged.bool())


def curve_group(estimate: LikelihoodEstimate) -> "Dataset":
    """Return the bound curve of importance sampling as a group of a tree.

    Args:
        estimate: The estimate.

    Returns:
        `bound` and `bound_se`, with the dimension particles.
    """
    from xarray import Dataset

    curve, units = estimate.curve, {"units": "nats per datum"}
    values = {"bound": curve.bound, "bound_se": curve.se}
    return Dataset(
        {name: ("particles", value.numpy(), units) for name, value in values.items()},
        coords={"particles": curve.ks.numpy()},
    )


def _source(variable: str) -> str:
    """The result whose method a variable has; gaps have that of the inference gap."""
    return "inference_gap" if "_gap" in variable else SOURCES.get(variable, variable)


def _united(old: "Dataset", new: "Dataset") -> "Dataset":
    """The variables of both groups, those with the most draws first."""
    from xarray import Dataset

    chosen: dict[Any, tuple[Any, bool]] = {}
    for group, is_new in ((old, False), (new, True)):
        for name, variable in group.data_vars.items():
            if name not in chosen or _rank(chosen[name][0].attrs) <= _rank(variable.attrs):
                chosen[name] = variable, is_new
    found = Dataset(attrs={**old.attrs, **new.attrs})
    order = sorted(chosen, key=lambda name: (_rank(chosen[name][0].attrs), chosen[name][1]))
    for name in reversed(order):
        if _fits(chosen[name][0], found):
            found[name] = chosen[name][0]
    return found


def _rank(attributes: Mapping[str, Any]) -> tuple[Any, ...]:
    """A key by which the variable with the most draws is the last; 0 where that is unknown."""
    return precision(str(attributes.get("method", "")), int(attributes.get("num_particles", 0)))


def _fits(variable: Any, group: "Dataset") -> bool:
    """Whether the dimensions of a variable have the sizes and coordinates of the group."""
    for dim, size in variable.sizes.items():
        if dim in group.sizes and group.sizes[dim] != size:
            return False
        both = dim in variable.coords and dim in group.coords
        if both and not np.array_equal(variable.coords[dim].values, group.coords[dim].values):
            return False
    return True
