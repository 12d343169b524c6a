"""Results as an ArviZ DataTree: named dimensions (datum, latent, pixel), labels where known."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyroae.comparison.results import Comparison, Entry
from pyroae.errors import ProgramError
from pyroae.evaluation.blocks import CHUNK, Data, blocks
from pyroae.evaluation.checks import check_terms, filled
from pyroae.evaluation.gradient_lab.slopes import SNRCurve
from pyroae.evaluation.gradient_lab.statistics import GradientStatistics
from pyroae.programs.arguments import structure_of
from pyroae.programs.context import evaluating, fork_random
from pyroae.programs.sites import PARTICLES, Program, Site, plates_of
from pyroae.programs.traces import Traces, run
from pyroae.weights import reduce_log_weights

if TYPE_CHECKING:
    from xarray import DataTree


Arrays = dict[str, np.ndarray]


_NATS = "nats per datum"


_FIGURES: dict[str, tuple[str, Callable[[GradientStatistics], float]]] = {
    "snr": ("1", lambda found: found.snr),
    "snr_low": ("1", lambda found: found.snr_interval[0]),
    "snr_high": ("1", lambda found: found.snr_interval[1]),
    "directional_snr": ("1", lambda found: found.directional_snr),
    "directional_snr_se": ("1", lambda found: found.directional_snr_se),
    "variance": (f"({_NATS})^2, mean over parameters", lambda found: found.variance.mean().item()),
    "bias": (_NATS, lambda found: found.bias),
    "bias_se": (_NATS, lambda found: found.bias_se),
    "bias_low": (_NATS, lambda found: found.bias_interval[0]),
    "bias_high": (_NATS, lambda found: found.bias_interval[1]),
    "reference_norm": (_NATS, lambda found: found.offset.reference_norm),
    "relative_bias": ("1", lambda found: found.relative_bias),
    "relative_bias_se": ("1", lambda found: found.offset.relative(found.bias_se)),
    "relative_bias_low": ("1", lambda found: found.offset.relative(found.bias_interval[0])),
    "relative_bias_high": ("1", lambda found: found.offset.relative(found.bias_interval[1])),
}
"""What a DataTree of the gradient laboratory holds of each estimator, K and group, and its unit."""


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
    """Draws from the guide at each datum x `[N, d]`, with their log-weights, as an ArviZ DataTree.

    x, kwargs: the arguments of the programs, as of `log_likelihood`; all tensors among them are observed_data, under the names
    that they have in dicts and as keyword arguments, else x, x_1, …
    Groups: posterior (latent sites: chain, draw, datum, a dimension for each nested plate, latent),
    log_likelihood (log p(x|z)), sample_stats (log_weight,
    log_prior, log_post), observed_data (datum, pixel), per_datum (`statistics`, each `[N]`, such as log_px), simulated (such
    statistics of simulated data). `shape` of an image gives each pixel its row and column; `labels` `[N]` become a coordinate
    of datum. The draws are of the guide, not of the posterior: weigh them by log_weight. Raises ProgramError, naming the site,
    for a latent site outside the data plate, which has no value for each datum, and for scales and masks of latent sites.

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
    posterior = {name: np.concatenate([p[0][name] for p in parts], 1)[None] for name in parts[0][0]}
    weights = {name: np.concatenate([p[1][name] for p in parts], 1)[None] for name in parts[0][1]}
    plates = parts[0][2]
    dims = {
        name: ["datum", *plates[name], *_latent_dims(name, v, plates[name], len(posterior))]
        for name, v in posterior.items()
    }
    observed = {
        name: tensor.detach().cpu().reshape(count, -1).numpy()
        for name, tensor in structure.named().items()
    }
    for name, values in observed.items():
        dims[name] = [
            "datum",
            "pixel" if values.shape[1] == args[0][0].numel() else f"{name}_pixel",
        ]
    tree = arviz_base.from_dict(
        {
            "posterior": posterior,
            "log_likelihood": {"x": weights.pop("log_lik")},
            "sample_stats": weights,
            "observed_data": observed,
        },
        dims={"x": ["datum"], **dims, **{name: ["datum"] for name in weights}},
        coords={"datum": np.arange(count), "pixel": np.arange(args[0][0].numel())},
    )
    for group, columns in (("per_datum", statistics), ("simulated", simulated)):
        if columns:
            arrays = {name: values.detach().cpu().numpy() for name, values in columns.items()}
            tree[group] = arviz_base.dict_to_dataset(
                arrays,
                sample_dims=[],
                dims={name: ["datum"] for name in arrays},
                coords={"datum": np.arange(len(next(iter(arrays.values()))))},
            )
    return _with_coordinates(tree, labels, shape)


def gradients_to_datatree(
    curves: Mapping[str, Mapping[str, SNRCurve]],
    *,
    num_data: int,
    reference: str | None = None,
    seed: int = 0,
) -> "DataTree":
    """What `measure_slopes` found, as a DataTree with the dimensions objective, particles and group.

    Its one group, gradients, holds of each estimator, K and group the SNR and its 95 % interval, the directional SNR, the
    mean variance, and the bias from the reference (`bias_se`: what is found without any bias; `relative_`: to the norm of the
    reference's mean gradient); of each estimator and K the cost of one gradient, seconds and decoder evaluations; of
    each estimator and group the slope of log SNR in log K and its interval. nan where an objective is not defined.
    num_parameters is a coordinate of group. num_data, reference, seed: as they were measured, kept as attributes.

    >>> import torch
    >>> from pyroae import zoo
    >>> from pyroae.evaluation.gradient_lab.measure import measure_slopes
    >>> from pyroae.objectives.named import iwae
    >>> system, x = zoo.ppca(4, latent=2), torch.zeros(3, 4)
    >>> settings = {"ks": (1, 4), "parameters": dict(system.named_parameters()), "replicates": 20}
    >>> tree = gradients_to_datatree(measure_slopes(system.model, system.guide, x, {"iwae": iwae}, **settings), num_data=3)
    >>> dict(tree["gradients"]["snr"].sizes), tree["gradients"]["evaluations"].values.tolist()
    ({'objective': 1, 'particles': 2, 'group': 1}, [[3.0, 12.0]])
    """
    from xarray import Dataset, DataTree

    names, groups = list(curves), list(next(iter(curves.values())))
    ks = sorted(
        {k for of_groups in curves.values() for curve in of_groups.values() for k in curve.ks}
    )
    cells = {
        (names.index(name), ks.index(k), groups.index(group)): found
        for name, of_groups in curves.items()
        for group, curve in of_groups.items()
        for k, found in zip(curve.ks, curve.statistics, strict=True)
    }
    sizes = {group: len(found.mean) for (_, _, group), found in cells.items()}
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


def comparison_to_datatree(comparison: Comparison, baseline: Entry | None = None) -> "DataTree":
    """A comparison of trainings as a DataTree with the dimensions objective, particles, seed, datum and point.

    Groups: outcomes (log_px of each held-out datum, nll, nelbo, rate, distortion, active_units; seconds, evaluations, steps
    of the training), differences (of the NLL from the baseline, by default the first entry, and from the best, with 95 %
    intervals), curves (nll of validation data along each training). nan where an objective is not defined or not trained.

    >>> import torch
    >>> from pyroae.comparison.results import Cell, Outcome
    >>> outcome = Outcome(Cell("iwae", 8, 0), torch.tensor([-1.0, -3.0]), torch.zeros(2), {"rate": 0.5}, 1, 1, 1, 1.0)
    >>> tree = comparison_to_datatree(Comparison((outcome,)))
    >>> dict(tree["outcomes"]["log_px"].sizes), float(tree["outcomes"]["nll"].squeeze())
    ({'objective': 1, 'particles': 1, 'seed': 1, 'datum': 2}, 2.0)
    """
    from xarray import Dataset, DataTree

    baseline = comparison.entries[0] if baseline is None else baseline
    names = list(dict.fromkeys(entry.objective for entry in comparison.entries))
    ks, seeds = (
        sorted({entry.num_particles for entry in comparison.entries}),
        list(comparison.seeds),
    )
    shape = (len(names), len(ks), len(seeds))
    cells = {
        (names.index(o.cell.objective), ks.index(o.cell.num_particles), seeds.index(o.cell.seed)): o
        for o in comparison.outcomes
    }
    figures = dict.fromkeys(name for outcome in comparison.outcomes for name in outcome.figures)
    spent = ("nll", "epochs", "steps", "evaluations", "seconds")
    values = {
        name: {at: getattr(o, name) for at, o in cells.items()}
        for name in (*spent, "log_px", "log_px_se")
    }
    values |= {
        name: {at: o.figures.get(name, math.nan) for at, o in cells.items()} for name in figures
    }
    dims = ("objective", "particles", "seed")
    longest = max(len(outcome.curve) for outcome in comparison.outcomes)
    curves = {
        name: {at: [getattr(point, name) for point in o.curve] for at, o in cells.items()}
        for name in ("epoch", "seconds", "evaluations", "nll")
    }
    rows = {
        (names.index(r.entry.objective), ks.index(r.entry.num_particles)): r
        for r in comparison.ranking(baseline)
    }
    gaps = {
        f"{name}{end}": {at: getattr(getattr(row, name).estimate, part) for at, row in rows.items()}
        for name in ("from_baseline", "from_best")
        for end, part in (("", "value"), ("_low", "low"), ("_high", "high"))
    }
    data = len(comparison.outcomes[0].log_px)
    coords = {"objective": names, "particles": ks, "seed": seeds}
    parts = {
        "outcomes": {
            n: _filled(v, shape, data if n.startswith("log_px") else None)
            for n, v in values.items()
        },
        "differences": {n: _filled(v, shape[:2]) for n, v in gaps.items()},
        "curves": {n: _filled(v, shape, longest) for n, v in curves.items()} if longest else {},
    }
    last = {"outcomes": "datum", "curves": "point"}
    recorded = {
        "baseline": str(baseline),
        "units": "nats per datum; seconds and decoder evaluations of training",
    }
    sets = {
        group: Dataset(
            {n: ((*dims, last.get(group, ""))[: v.ndim], v) for n, v in arrays.items()},
            coords=coords,
        )
        for group, arrays in parts.items()
    }
    return DataTree.from_dict(
        {"/": Dataset(attrs=recorded), **{n: d.assign_attrs(recorded) for n, d in sets.items()}}
    )


def _filled(
    values: Mapping[Any, Any], shape: tuple[int, ...], length: int | None = None
) -> np.ndarray:
    """Numbers, or rows of up to `length`, in an array of nan."""
    array = np.full(shape if length is None else (*shape, length), math.nan)
    for at, value in values.items():
        if length is None:
            array[at] = value
        else:
            array[at][: len(value)] = value
    return array


def _arrays(
    cells: Mapping[tuple[int, int, int], GradientStatistics], shape: tuple[int, int, int]
) -> dict[str, tuple[tuple[str, ...], np.ndarray, str]]:
    """Dimensions, values and unit of each figure of one gradient; nan where there is none."""
    dims = ("objective", "particles", "group")
    found: dict[str, tuple[tuple[str, ...], np.ndarray, str]] = {}
    for name, (unit, get) in _FIGURES.items():
        array = np.full(shape, math.nan)
        for at, one in cells.items():
            array[at] = get(one)
        found[name] = (dims, array, unit)
    seconds, evaluations = np.full(shape[:2], math.nan), np.full(shape[:2], math.nan)
    for (objective, k, _), one in cells.items():
        seconds[objective, k], evaluations[objective, k] = one.seconds, one.evaluations
    costs = {
        "seconds": (seconds, "s per gradient"),
        "evaluations": (evaluations, "decoder evaluations per gradient"),
    }
    return {**found, **{name: (dims[:2], array, unit) for name, (array, unit) in costs.items()}}


def _draw(traces: Traces) -> tuple[Arrays, Arrays, dict[str, list[str]]]:
    """Values of the latent sites `[K, N, ...]`, the parts of the log-weights `[K, N]`, and the nested plates of each site."""
    weights = reduce_log_weights(traces)
    draws, values, plates = traces.num_particles, {}, {}
    for name, site in traces.sites(traces.guide, observed=False):
        if not traces.is_local(site):
            raise ProgramError(
                f"the latent site '{name}' lies outside the data plate: it has no value for each datum"
            )
        found, plates[name] = _by_datum(traces, site)
        array = found.float().cpu().numpy()
        values[name] = np.broadcast_to(array, (draws, *array.shape[1:]))
    parts = {
        name: getattr(weights, name).cpu().numpy()
        for name in ("log_lik", "log_prior", "log_post", "log_weight")
    }
    return values, parts, plates


def _by_datum(traces: Traces, site: Site) -> tuple[Tensor, list[str]]:
    """The value of a site as `[K or 1, N, nested plates, event]`, and the names of those plates."""
    batch, event = site["fn"].batch_shape, site["fn"].event_shape
    frames = {frame.dim: frame.name for frame in plates_of(site)}
    data = None if traces.plate is None else traces.plate.dim
    nested = [dim for dim in range(-len(batch), 0) if dim in frames and dim != data]
    first = traces.num_particles > 1 and any(
        frame.name == PARTICLES for frame in site["cond_indep_stack"]
    )
    kept = [*([-len(batch)] if first else []), *([] if data is None else [data]), *nested]
    value = site["value"].expand(*batch, *event)
    order = [dim + len(batch) for dim in kept]
    rest = [
        i for i in range(len(batch)) if i not in order
    ]  # of one element: the places of plates that the site is not in
    sizes = [batch[i] for i in order]
    value = (
        value.permute(*order, *rest, *range(len(batch), value.dim()))
        .reshape(*sizes, -1, *event)
        .squeeze(len(order))
    )
    value = value if data is not None else value.unsqueeze(int(first))
    return value if first else value.unsqueeze(0), [frames[dim] for dim in nested]


def _latent_dims(name: str, values: np.ndarray, plates: list[str], num_sites: int) -> list[str]:
    prefix = "latent" if num_sites == 1 else f"{name}_latent"
    count = values.ndim - 3 - len(plates)
    return [prefix] if count == 1 else [f"{prefix}_{i}" for i in range(count)]


def _with_coordinates(tree: Any, labels: np.ndarray | None, shape: tuple[int, ...]) -> Any:
    extra: dict[str, Any] = {} if labels is None else {"label": ("datum", np.asarray(labels))}
    if len(shape) == 2:
        row, column = np.unravel_index(np.arange(shape[0] * shape[1]), shape)
        extra |= {"row": ("pixel", row), "column": ("pixel", column)}
    for group in tree.groups:
        data = tree[group].to_dataset()
        fitting = {name: coord for name, coord in extra.items() if coord[0] in data.dims}
        if fitting:
            tree[group] = data.assign_coords(fitting)
    return tree
