"""Results as an ArviZ DataTree: named dimensions (datum, latent, pixel), labels where known."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyroae.evaluation.likelihood import CHUNK
from pyroae.weights import Program, Traces, evaluating, fork_random, reduce_log_weights, run

if TYPE_CHECKING:
    from xarray import DataTree

Arrays = dict[str, np.ndarray]


def to_datatree(
    model: Program,
    guide: Program,
    x: Tensor,
    *,
    labels: np.ndarray | None = None,
    shape: tuple[int, ...] = (),
    statistics: Mapping[str, Tensor] | None = None,
    num_draws: int = 100,
    seed: int | None = None,
) -> "DataTree":
    """Draws from the guide at each datum x `[N, d]`, with their log-weights, as an ArviZ DataTree.

    Groups: posterior (latent sites: chain, draw, datum, latent), log_likelihood (log p(x|z)), sample_stats (log_weight,
    log_prior, log_post), observed_data (datum, pixel), per_datum (`statistics`, each `[N]`, such as log_px). `shape` of an
    image gives each pixel its row and column; `labels` `[N]` become a coordinate of datum. The draws are of the guide, not
    of the posterior: weigh them by log_weight.

    >>> import torch
    >>> from pyroae import zoo
    >>> system = zoo.ppca(4, latent=2)
    >>> tree = to_datatree(system.model, system.guide, torch.zeros(3, 4), num_draws=5)
    >>> dict(tree["posterior"]["z"].sizes)
    {'chain': 1, 'draw': 5, 'datum': 3, 'latent': 2}
    """
    import arviz_base

    rows = max(1, CHUNK // max(256, x[0].numel()) // num_draws)
    with evaluating(model, guide), fork_random(x.device, seed):
        parts = [_draw(run(model, guide, (part,), {}, num_draws), len(part)) for part in x.split(rows)]
    posterior = {name: np.concatenate([p[0][name] for p in parts], 1)[None] for name in parts[0][0]}
    weights = {name: np.concatenate([p[1][name] for p in parts], 1)[None] for name in parts[0][1]}
    dims = {name: ["datum", *_latent_dims(name, values, len(posterior))] for name, values in posterior.items()}
    tree = arviz_base.from_dict(
        {
            "posterior": posterior,
            "log_likelihood": {"x": weights.pop("log_lik")},
            "sample_stats": weights,
            "observed_data": {"x": x.detach().cpu().reshape(len(x), -1).numpy()},
        },
        dims={**dims, "x": ["datum", "pixel"], **{name: ["datum"] for name in weights}},
        coords={"datum": np.arange(len(x)), "pixel": np.arange(x[0].numel())},
    )
    if statistics:
        per_datum = {name: values.detach().cpu().numpy() for name, values in statistics.items()}
        tree["per_datum"] = arviz_base.dict_to_dataset(
            per_datum, sample_dims=[], dims={name: ["datum"] for name in per_datum}, coords={"datum": np.arange(len(x))}
        )
    return _with_coordinates(tree, labels, shape)


def _draw(traces: Traces, num_data: int) -> tuple[Arrays, Arrays]:
    """Values of the latent sites `[K, N, ...]`, and the parts of the log-weights `[K, N]`."""
    weights = reduce_log_weights(traces)
    values = {
        name: site["value"].reshape(-1, num_data, *site["fn"].event_shape).float().cpu().numpy()
        for name, site in traces.sites(traces.guide, observed=False)
    }
    parts = {name: getattr(weights, name) for name in ("log_lik", "log_prior", "log_post", "log_weight")}
    draws = traces.num_particles
    expanded = {n: np.broadcast_to(v, (draws, *v.shape[1:])) for n, v in values.items()}
    return expanded, {name: part.cpu().numpy() for name, part in parts.items()}


def _latent_dims(name: str, values: np.ndarray, num_sites: int) -> list[str]:
    prefix = "latent" if num_sites == 1 else f"{name}_latent"
    count = values.ndim - 3
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
