"""Convert results to ArviZ DataTrees with named dimensions and units."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyroae.data.image_channels import channel_axis
from pyroae.errors import ProgramError
from pyroae.evaluation.blocks import CHUNK, Data, blocks
from pyroae.evaluation.checks import check_terms, filled
from pyroae.evaluation.gradient_lab.slopes import SNRCurve
from pyroae.evaluation.gradient_lab.statistics import GradientStatistics
from pyroae.programs.arguments import structure_of
from pyroae.programs.context import evaluating
from pyroae.programs.paired_traces import Traces
from pyroae.programs.sites import PARTICLES, Program, Site, plates_of
from pyroae.programs.traces import run
from pyroae.runtime.randomness import fork_random
from pyroae.weights import reduce_log_weights

if TYPE_CHECKING:
    from xarray import DataTree


Arrays = dict[str, np.ndarray]
"""Arrays by name."""


_NATS = "nats per datum"


_FIGURES: dict[str, tuple[str, Callable[[GradientStatistics], float]]] = {
    "snr": ("1", lambda each: each.snr),
    "snr_low": ("1", lambda each: each.snr_interval[0]),
    "snr_high": ("1", lambda each: each.snr_interval[1]),
    "directional_snr": ("1", lambda each: each.directional_snr),
    "directional_snr_se": ("1", lambda each: each.directional_snr_se),
    "variance": (f"({_NATS})^2, mean over parameters", lambda each: each.variance.mean().item()),
    "bias": (_NATS, lambda each: each.bias),
    "bias_se": (_NATS, lambda each: each.bias_se),
    "bias_low": (_NATS, lambda each: each.bias_interval[0]),
    "bias_high": (_NATS, lambda each: each.bias_interval[1]),
    "reference_norm": (_NATS, lambda each: each.offset.reference_norm),
    "relative_bias": ("1", lambda each: each.relative_bias),
    "relative_bias_se": ("1", lambda each: each.offset.relative(each.bias_se)),
    "relative_bias_low": ("1", lambda each: each.offset.relative(each.bias_interval[0])),
    "relative_bias_high": ("1", lambda each: each.offset.relative(each.bias_interval[1])),
}
"""The unit and the value of each figure of an estimator, K and group, in a DataTree."""


def to_datatree(
    model: Program,
    guide: Program,
    x: Data,
    *,
    labels: np.ndarray | None = None,
    shape: tuple[int, ...] = (),
    statistics: Mapping[str, Tensor] | None = None,
    simulated: Mapping[str, Tensor] | None = None,
    num_draws: int = 100,
    seed: int | None = None,
    **kwargs: Any,
) -> "DataTree":
    """Draw from the guide at each datum, and return draws and log-weights as a DataTree.

    The draws are from the guide, not from the posterior: weight them by exp(log_weight). There is
    no group log_likelihood, and `arviz.loo` refuses the tree: as z is local, leaving out x_n would
    estimate p(x_n) by the harmonic mean of p(x_n|z), which is wrong under the guide and has a large
    or infinite variance under the posterior. `to_elpd` gives ArviZ the held-out log p(x).

    The groups are

    - posterior: latent sites, with the dimensions chain, draw, datum, one for each nested plate,
      and latent;
    - sample_stats: log_weight = log_lik + log_prior − log_post, with log_lik = log p(x|z);
    - observed_data: the tensors among the arguments, with the dimensions datum and pixel, by their
      names in dicts and as keyword arguments, otherwise x, x_1, …;
    - per_datum: `statistics`;
    - simulated: the statistics of simulated data.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The Pyro program q(z|x).
        x: The data `[N, ...]`, or the arguments of model and guide as in `log_likelihood`.
        labels: The label of each datum, `[N]`, which becomes a coordinate of datum.
        shape: The shape of an image, which gives each pixel a row and a column, and a channel.
        statistics: Per-datum statistics by name, `[N]` each, such as log_px.
        simulated: Per-datum statistics of simulated data by name, `[N]` each.
        num_draws: The number of draws per datum.
        seed: The seed of the draws. The state of the caller's generators is restored.
        kwargs: Keyword arguments of the programs: tensors `[N, ...]` and constants.

    Returns:
        The DataTree; log-densities are in nats.

    Raises:
        ProgramError: For a latent site outside the data plate, which has no value for each datum,
            and for scales and masks of latent sites; with the name of the site.

    >>> import torch
    >>> from pyroae import zoo
    >>> system = zoo.ppca(4, latent=2)
    >>> tree = to_datatree(system.model, system.guide, torch.zeros(3, 4), num_draws=5)
    >>> dict(tree["posterior"]["z"].sizes)
    {'chain': 1, 'draw': 5, 'datum': 3, 'latent': 2}
    """
    import arviz_base

    structure = structure_of(x, kwargs, model)
    model, guide, args = structure(model), structure(guide), structure.tensors
    rows, count = max(1, CHUNK // max(256, args[0][0].numel()) // num_draws), len(args[0])
    check_terms(model, guide, args, "parts")
    with evaluating(model, guide), fork_random(args[0].device, seed):
        parts = [
            _draw(filled(run(model, guide, part, {}, num_draws))) for part in blocks(args, rows)
        ]
    draws, densities = _concatenated(parts)
    observed = {
        name: tensor.detach().cpu().reshape(count, -1).numpy()
        for name, tensor in structure.named().items()
    }
    width = args[0][0].numel()
    tree = arviz_base.from_dict(
        {
            "posterior": draws,
            "sample_stats": densities,
            "observed_data": observed,
        },
        dims={
            **_latent_dims(draws, parts[0][2]),
            **{name: ["datum", _pixel_dim(name, v, width)] for name, v in observed.items()},
            **{name: ["datum"] for name in densities},
        },
        coords={"datum": np.arange(count), "pixel": np.arange(width)},
    )
    for group, columns in (("per_datum", statistics), ("simulated", simulated)):
        if columns:
            tree[group] = _per_datum(columns)
    return _with_coordinates(tree, labels, shape)


def gradients_to_datatree(
    curves: Mapping[str, Mapping[str, SNRCurve]],
    *,
    num_data: int,
    reference: str | None = None,
    seed: int = 0,
) -> "DataTree":
    """Convert the curves of `measure_slopes` to a DataTree.

    The tree has one group, gradients, with the dimensions objective, particles and group:

    - for each objective, K and group: the SNR with its 95 % interval, the directional SNR, the mean
      variance, and the bias from the reference. `bias_se` is the expected value of the bias
      estimate without bias; `relative_` means relative to the norm of the reference's mean
      gradient;
    - for each objective and K: the cost of one gradient, in seconds and decoder evaluations;
    - for each objective and group: the slope of log SNR in log K, with its 95 % interval.

    Values are nan where an objective is not defined. num_parameters is a coordinate of group.

    Args:
        curves: Curves by objective and group.
        num_data: N; it becomes an attribute, like the arguments below.
        reference: The name of the objective that the bias was measured from.
        seed: The seed of the measurement.

    Returns:
        The DataTree; each variable has its unit as an attribute.

    >>> import torch
    >>> from pyroae import zoo
    >>> from pyroae.evaluation.gradient_lab.measure import measure_slopes
    >>> from pyroae.objectives.named import iwae
    >>> system, x = zoo.ppca(4, latent=2), torch.zeros(3, 4)
    >>> settings = {"ks": (1, 4), "parameters": dict(system.named_parameters()), "replicates": 20}
    >>> curves = measure_slopes(system.model, system.guide, x, {"iwae": iwae}, **settings)
    >>> tree = gradients_to_datatree(curves, num_data=3)
    >>> dict(tree["gradients"]["snr"].sizes), tree["gradients"]["evaluations"].values.tolist()
    ({'objective': 1, 'particles': 2, 'group': 1}, [[3.0, 12.0]])
    """
    from xarray import Dataset, DataTree

    names, groups = list(curves), list(next(iter(curves.values())))
    ks = sorted(
        {k for of_groups in curves.values() for curve in of_groups.values() for k in curve.ks}
    )
    cells = {
        (names.index(name), ks.index(k), groups.index(group)): statistics
        for name, of_groups in curves.items()
        for group, curve in of_groups.items()
        for k, statistics in zip(curve.ks, curve.statistics, strict=True)
    }
    sizes = {group: len(statistics.mean) for (_, _, group), statistics in cells.items()}
    shape = (len(names), len(ks), len(groups))
    data = Dataset(
        {
            name: (dims, array, {"units": unit})
            for name, (dims, array, unit) in _arrays(cells, shape).items()
        },
        coords={
            "objective": names,
            "particles": ks,
            "group": groups,
            "num_parameters": ("group", [sizes[i] for i in range(len(groups))]),
        },
    )
    for part, name in (("slope", "slope"), ("low", "slope_low"), ("high", "slope_high")):
        slopes = [
            [getattr(curve.slope, part) for curve in of_groups.values()]
            for of_groups in curves.values()
        ]
        data[name] = (("objective", "group"), slopes, {"units": "log SNR per log K"})
    recorded = {
        "replicates": next(iter(cells.values())).replicates,
        "num_data": num_data,
        "reference": reference or "",
        "seed": seed,
        "units": f"gradients of the bound in {_NATS}, for ascent",
    }
    return DataTree.from_dict(
        {"/": Dataset(attrs=recorded), "gradients": data.assign_attrs(recorded)}
    )


def filled_array(
    values: Mapping[Any, Any], shape: tuple[int, ...], length: int | None = None
) -> np.ndarray:
    """Put numbers, or rows of numbers, at their index in an array of nan.

    Args:
        values: Numbers, or rows of up to `length` numbers, by index.
        shape: The shape of the array without its rows.
        length: The length of a row; None for single numbers.

    Returns:
        An array of `shape`, or `[*shape, length]`, float64.
    """
    array = np.full(shape if length is None else (*shape, length), math.nan)
    for index, value in values.items():
        if length is None:
            array[index] = value
        else:
            array[index][: len(value)] = value
    return array


def _arrays(
    cells: Mapping[tuple[int, int, int], GradientStatistics], shape: tuple[int, int, int]
) -> dict[str, tuple[tuple[str, ...], np.ndarray, str]]:
    """Dimensions, values and unit of each figure; values are nan where there is none."""
    dims = ("objective", "particles", "group")
    arrays: dict[str, tuple[tuple[str, ...], np.ndarray, str]] = {
        name: (dims, filled_array({index: get(each) for index, each in cells.items()}, shape), unit)
        for name, (unit, get) in _FIGURES.items()
    }
    for name, unit in (
        ("seconds", "s per gradient"),
        ("evaluations", "decoder evaluations per gradient"),
    ):
        costs = {index[:2]: getattr(each, name) for index, each in cells.items()}
        arrays[name] = (dims[:2], filled_array(costs, shape[:2]), unit)
    return arrays


def _concatenated(parts: Sequence[tuple[Arrays, Arrays, Any]]) -> tuple[Arrays, Arrays]:
    """Draws and log-densities of all blocks, with a dimension of size 1 for the chain."""
    draws, densities = (
        {name: np.concatenate([part[i][name] for part in parts], 1)[None] for name in parts[0][i]}
        for i in (0, 1)
    )
    return draws, densities


def _per_datum(columns: Mapping[str, Tensor]) -> Any:
    """Statistics `[N]` by name as a Dataset with the dimension datum."""
    import arviz_base

    arrays = {name: values.detach().cpu().numpy() for name, values in columns.items()}
    return arviz_base.dict_to_dataset(
        arrays,
        sample_dims=[],
        dims={name: ["datum"] for name in arrays},
        coords={"datum": np.arange(len(next(iter(arrays.values()))))},
    )


def _draw(traces: Traces) -> tuple[Arrays, Arrays, dict[str, list[str]]]:
    """Latent values `[K, N, ...]`, parts of the log-weights `[K, N]`, and nested plates by site."""
    weights = reduce_log_weights(traces)
    count, draws, plates = traces.num_particles, {}, {}
    for name, site in traces.sites(traces.guide, observed=False):
        if not traces.is_local(site):
            raise ProgramError(
                f"the latent site '{name}' lies outside the data plate: it has no value for each "
                "datum"
            )
        value, plates[name] = _by_datum(traces, site)
        array = value.float().cpu().numpy()
        draws[name] = np.broadcast_to(array, (count, *array.shape[1:]))
    densities = {
        name: getattr(weights, name).cpu().numpy()
        for name in ("log_lik", "log_prior", "log_post", "log_weight")
    }
    return draws, densities, plates


def _by_datum(traces: Traces, site: Site) -> tuple[Tensor, list[str]]:
    """The value of a site as `[K or 1, N, nested plates, event]`, and the names of those plates."""
    batch, event = site["fn"].batch_shape, site["fn"].event_shape
    frames = {frame.dim: frame.name for frame in plates_of(site)}
    data = None if traces.plate is None else traces.plate.dim
    nested = [dim for dim in range(-len(batch), 0) if dim in frames and dim != data]
    first = traces.num_particles > 1 and any(
        frame.name == PARTICLES for frame in site["cond_indep_stack"]
    )
    dims = [*([-len(batch)] if first else []), *([] if data is None else [data]), *nested]
    value = site["value"].expand(*batch, *event)
    order = [dim + len(batch) for dim in dims]
    # dimensions of one element, of plates that the site is not in
    rest = [i for i in range(len(batch)) if i not in order]
    sizes = [batch[i] for i in order]
    value = (
        value.permute(*order, *rest, *range(len(batch), value.dim()))
        .reshape(*sizes, -1, *event)
        .squeeze(len(order))
    )
    value = value if data is not None else value.unsqueeze(int(first))
    return value if first else value.unsqueeze(0), [frames[dim] for dim in nested]


def _latent_dims(draws: Arrays, plates: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The dimensions of each latent site, those of chain and draw left out."""
    dims = {}
    for name, values in draws.items():
        prefix = "latent" if len(draws) == 1 else f"{name}_latent"
        count = values.ndim - 3 - len(plates[name])
        events = [prefix] if count == 1 else [f"{prefix}_{i}" for i in range(count)]
        dims[name] = ["datum", *plates[name], *events]
    return dims


def _pixel_dim(name: str, values: np.ndarray, width: int) -> str:
    """The dimension of the elements of a datum: "pixel" for tensors as wide as the first one."""
    return "pixel" if values.shape[1] == width else f"{name}_pixel"


def _with_coordinates(tree: Any, labels: np.ndarray | None, shape: tuple[int, ...]) -> Any:
    """Add labels, and rows, columns and channels of pixels; simulated data have no labels."""
    extra: dict[str, Any] = {} if labels is None else {"label": ("datum", np.asarray(labels))}
    axis, names = channel_axis(shape), ["row", "column"]
    if len(shape) == 2 or axis is not None:
        if axis is not None:
            names.insert(axis, "channel")
        places = np.unravel_index(np.arange(math.prod(shape)), shape)
        extra |= {name: ("pixel", place) for name, place in zip(names, places, strict=True)}
    for group in tree.groups:
        data = tree[group].to_dataset()
        unlabelled = group.strip("/") == "simulated"
        fitting = {
            name: coord
            for name, coord in extra.items()
            if coord[0] in data.dims and not (unlabelled and name == "label")
        }
        if fitting:
            tree[group] = data.assign_coords(fitting)
    return tree
