"""Convert results to ArviZ DataTrees with named dimensions and units."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyroae.data.image_channels import channel_axis
from pyroae.evaluation.annealing.estimates import AISEstimate
from pyroae.evaluation.blocks import Data
from pyroae.evaluation.checks import check_terms
from pyroae.evaluation.gradient_lab.slopes import SNRCurve
from pyroae.evaluation.gradient_lab.statistics import GradientStatistics
from pyroae.evaluation.tree_datasets import (
    Dimensions,
    per_datum,
    posterior_datasets,
    prior_datasets,
    sample_stats,
)
from pyroae.evaluation.tree_groups import (
    Arrays,
    Group,
    guide_groups,
    posterior_groups,
    prior_groups,
)
from pyroae.programs.arguments import structure_of
from pyroae.programs.context import evaluating
from pyroae.programs.sites import Program
from pyroae.runtime.randomness import fork_random

if TYPE_CHECKING:
    from xarray import DataTree


PREDICTIVE_BYTES, MOST_PREDICTIVE = 2**24, 100
"""By default the draws of x in a predictive group take so many bytes, and are at most so many."""


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
    annealed: AISEstimate | None = None,
    posterior: Mapping[str, Tensor] | None = None,
    num_draws: int = 100,
    num_predictive: int | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> "DataTree":
    """Collect draws of z and x, log-densities and statistics in a DataTree of ArviZ's schema.

    The group posterior holds draws of p(z|x), all of equal weight: those of `annealed`, or
    `posterior`. Without either it is missing, and `arviz.summary` has nothing to summarize. Draws
    of the guide are in the group guide. They are independent, with the one dimension sample that
    `arviz_base.from_numpyro_svi` has, and have weights: exp(log_weight) of sample_stats_guide.
    There is no group log_likelihood, and `arviz.loo` refuses the tree: as z is local, leaving out
    x_n would estimate p(x_n) by the harmonic mean of p(x_n|z), which has a large or infinite
    variance. `to_elpd` gives ArviZ the held-out log p(x).

    The groups, with further dimensions of nested plates and events after datum:

    - posterior: z ~ p(z|x), by site (chain, draw, datum);
    - sample_stats: of annealing, log_weight before resampling (weighted_chain, datum), its ess, the
      acceptance_rate of the moves between draws, and whether these are unreliable (datum);
    - log_prior: log p(z) of each site at the posterior draws (chain, draw, datum);
    - posterior_predictive: x ~ p(x|z) from some of the posterior draws (chain, draw, datum);
    - prior, prior_predictive: (z, x) ~ p(z) p(x|z) (chain, draw, datum);
    - guide: z ~ q(z|x) (sample, datum);
    - sample_stats_guide: log_weight = log_lik + log_prior − log_q, with log_lik = log p(x|z)
      (sample, datum);
    - observed_data: the tensors among the arguments (datum, pixel), by their names in dicts and as
      keyword arguments, otherwise x, x_1, …, and the observed sites by theirs;
    - per_datum: `statistics`; simulated: the statistics of simulated data.

    What cannot be made is left out: the prior groups of a flat prior; x of factors, of scaled sites
    and of counts that are given their total; x from posterior draws where sites are summed out; and
    latent sites outside the data plate, which have no value for each datum: log-densities are given
    one draw of them for each block of data.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The Pyro program q(z|x).
        x: The data `[N, ...]`, or the arguments of model and guide as in `log_likelihood`.
        labels: The label of each datum, `[N]`, which becomes a coordinate of datum.
        shape: The shape of an image, which gives each pixel a row and a column, and a channel.
        statistics: Per-datum statistics by name, `[N]` each, such as log_px.
        simulated: Per-datum statistics of simulated data by name, `[N]` each.
        annealed: The result of `ais` for these data.
        posterior: Other draws of p(z|x) by site, `[C, S, N, ...]`; by default those of `annealed`.
        num_draws: The number of draws of the guide per datum.
        num_predictive: The number of draws per datum in prior, prior_predictive and
            posterior_predictive, or somewhat fewer in the last; 0 leaves the three out. By default
            as many as take 16 MiB in each of the last two, at least 1 and at most 100.
        seed: The seed of the draws. The state of the caller's generators is restored.
        kwargs: Keyword arguments of the programs: tensors `[N, ...]` and constants.

    Returns:
        The DataTree; log-densities are in nats.

    Raises:
        ProgramError: For scales and masks of latent sites, with the name of the site.
        ConfigError: For posterior draws of other sites or data than those of the model.

    >>> import torch
    >>> from pyroae import AISSettings, ais, zoo
    >>> system, x = zoo.ppca(4, latent=2), torch.zeros(3, 4)
    >>> settings = AISSettings(4, 20, leapfrog_steps=3, posterior_draws=5)
    >>> annealed = ais(system.model, None, x, settings=settings, seed=0)
    >>> tree = to_datatree(system.model, system.guide, x, annealed=annealed, num_draws=5)
    >>> dict(tree["posterior"]["z"].sizes)
    {'chain': 4, 'draw': 5, 'datum': 3, 'latent': 2}
    >>> dict(tree["guide"]["z"].sizes)
    {'sample': 5, 'datum': 3, 'latent': 2}
    """
    structure = structure_of(x, kwargs, model)
    model, guide, args = structure(model), structure(guide), structure.tensors
    if posterior is None:
        posterior = {} if annealed is None else annealed.posterior
    check_terms(model, guide, args, "parts")
    with evaluating(model, guide), fork_random(args[0].device, seed):
        draws, densities, sites = guide_groups(model, guide, args, num_draws)
        observed = _observed(structure.named(), sites)
        names = Dimensions(observed, draws, args[0])
        groups = {
            "guide": names.dataset(draws.arrays, "sample"),
            "sample_stats_guide": names.dataset(densities, "sample"),
            "observed_data": names.dataset(observed),
        }
        count = _num_predictive(sites) if num_predictive is None else num_predictive
        if count:
            groups |= prior_datasets(names, prior_groups(model, args, count))
        if posterior:
            num_chains, each = next(iter(posterior.values())).shape[:2]
            kept = spread(num_chains, each, count)
            found = posterior_groups(model, guide, args, posterior, kept)
            groups |= posterior_datasets(names, posterior, *found, kept)
    if annealed is not None:
        groups["sample_stats"] = sample_stats(annealed)
    for group, columns in (("per_datum", statistics), ("simulated", simulated)):
        if columns:
            groups[group] = per_datum(columns)
    return _tree(groups, labels, shape)


def spread(num_chains: int, num_draws: int, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose chains and draws that are far apart.

    Args:
        num_chains: C.
        num_draws: S.
        total: How many pairs of a chain and a draw, at most.

    Returns:
        Indices of chains and of draws, both ascending; all pairs of them are meant.

    >>> spread(4, 10, 8), spread(4, 10, 2)
    ((array([0, 1, 2, 3]), array([4, 9])), (array([0, 2]), array([9])))
    """
    count = min(num_chains, total)
    chains = np.arange(count) * num_chains // max(count, 1)
    each = min(num_draws, total // num_chains) or 1
    return chains, (np.arange(each) + 1) * num_draws // each - 1


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


def _observed(arguments: Mapping[str, Tensor], sites: Group) -> Arrays:
    """Arguments and observed sites as rows `[N, pixels]`.

    An argument of the name of a site that has other values is renamed.
    """
    rows = {
        name: value.detach().cpu().reshape(len(value), -1).numpy()
        for name, value in arguments.items()
    }
    for name, values in sites.arrays.items():
        own = values[0].reshape(len(values[0]), -1)
        same = name in rows and np.array_equal(rows[name].astype(own.dtype), own, equal_nan=True)
        if name in rows and not same:
            rows[f"{name}_argument"] = rows.pop(name)
        if not same:
            rows[name] = own
    return rows


def _num_predictive(sites: Group) -> int:
    """As many draws of x as take `PREDICTIVE_BYTES`."""
    size = sum(values[0].size for values in sites.arrays.values()) * np.dtype(np.float32).itemsize
    return max(1, min(MOST_PREDICTIVE, PREDICTIVE_BYTES // max(1, size)))


def _tree(groups: Mapping[str, Any], labels: np.ndarray | None, shape: tuple[int, ...]) -> Any:
    """Add labels of the data, and rows, columns and channels of pixels.

    Simulated data have no labels.
    """
    from xarray import DataTree

    extra: dict[str, Any] = {} if labels is None else {"label": ("datum", np.asarray(labels))}
    axis, names = channel_axis(shape), ["row", "column"]
    if len(shape) == 2 or axis is not None:
        if axis is not None:
            names.insert(axis, "channel")
        places = np.unravel_index(np.arange(math.prod(shape)), shape)
        extra |= {name: ("pixel", place) for name, place in zip(names, places, strict=True)}
    complete = {}
    for group, data in groups.items():
        unlabelled = group in ("simulated", "prior", "prior_predictive")
        fitting = {
            name: coord
            for name, coord in extra.items()
            if coord[0] in data.dims and not (unlabelled and name == "label")
        }
        complete[group] = data.assign_coords(fitting)
    return DataTree.from_dict(complete)
