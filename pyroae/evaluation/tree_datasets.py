"""Draws and statistics as Datasets of ArviZ's schema, with named dimensions."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pyroae._version import __version__
from pyroae.evaluation.annealing.estimates import AISEstimate
from pyroae.evaluation.tree_groups import Arrays, Group

if TYPE_CHECKING:
    from xarray import Dataset

SAMPLE = ("chain", "draw")
"""The sample dimensions of ArviZ's schema."""


def dataset(
    arrays: Mapping[str, np.ndarray],
    dims: Mapping[str, Sequence[str]],
    sample: Sequence[str] = (),
    coordinates: Mapping[str, np.ndarray] | None = None,
) -> "Dataset":
    """Make a Dataset with the attributes of ArviZ's schema.

    Args:
        arrays: Arrays by name.
        dims: The dimensions of each array, after those of `sample`.
        sample: The first dimensions of all arrays.
        coordinates: Coordinates by dimension; by default numbers from 0.

    Returns:
        The Dataset; among its attributes are `inference_library` and `created_at`.

    >>> found = dataset({"log_px": np.zeros(3)}, {"log_px": ["datum"]})
    >>> dict(found.sizes), found.attrs["inference_library"]
    ({'datum': 3}, 'pyroae')
    """
    import arviz_base

    return arviz_base.dict_to_dataset(
        arrays,
        attrs={"inference_library": "pyroae", "inference_library_version": __version__},
        dims={name: list(names) for name, names in dims.items()},
        sample_dims=list(sample),
        coords=dict(coordinates or {}),
        check_conventions=False,  # it warns of more chains than draws, which are usual here
    )


class Dimensions:
    """The dimensions of all variables that have a row for each datum.

    Args:
        observed: Arguments and observed sites, `[N, pixels]` each.
        draws: Draws of the latent sites.
        first: The first argument, whose elements are the pixels.
    """

    def __init__(self, observed: Arrays, draws: Group, first: Tensor) -> None:
        width = first[0].numel()
        self._coordinates = {"datum": np.arange(len(first)), "pixel": np.arange(width)}
        self._dims = {
            name: ["datum", "pixel" if values.shape[1] == width else f"{name}_pixel"]
            for name, values in observed.items()
        }
        for name, values in draws.arrays.items():
            plates = draws.plates[name]
            prefix = "latent" if len(draws.arrays) == 1 else f"{name}_latent"
            count = values.ndim - 2 - len(plates)
            events = [prefix] if count == 1 else [f"{prefix}_{i}" for i in range(count)]
            self._dims[name] = ["datum", *plates, *events]

    def dataset(
        self, arrays: Mapping[str, np.ndarray], *sample: str, **coordinates: np.ndarray
    ) -> "Dataset":
        """Make a Dataset of variables.

        Args:
            arrays: By name, with the dimensions `sample`, datum, and those of the site of that
                name; log-densities have no more than datum.
            *sample: The first dimensions.
            **coordinates: Coordinates of these; by default numbers from 0.

        Returns:
            The Dataset.
        """
        dims = {
            name: self._dims.get(name, ["datum"])[: values.ndim - len(sample)]
            for name, values in arrays.items()
        }
        return dataset(arrays, dims, sample, {**self._coordinates, **coordinates})


def prior_datasets(
    dimensions: Dimensions, found: tuple[Group, Group] | None
) -> "dict[str, Dataset]":
    """Make the groups prior and prior_predictive.

    Args:
        dimensions: The dimensions of all variables.
        found: z and x, `[S, N, ...]` each; None where the prior cannot be sampled.

    Returns:
        The groups by name; without x only the first, and none for None.
    """
    if found is None:
        return {}
    z, x = found
    groups = {"prior": dimensions.dataset({n: v[None] for n, v in z.arrays.items()}, *SAMPLE)}
    if x.arrays:
        groups["prior_predictive"] = dimensions.dataset(_rows(x, 1, -1), *SAMPLE)
    return groups


def posterior_datasets(
    dimensions: Dimensions,
    posterior: Mapping[str, Tensor],
    log_prior: Arrays,
    x: Group,
    kept: tuple[np.ndarray, np.ndarray],
) -> "dict[str, Dataset]":
    """Make the groups posterior, log_prior and posterior_predictive.

    Args:
        dimensions: The dimensions of all variables.
        posterior: Draws of p(z|x) by site, `[C, S, N, ...]`.
        log_prior: log p(z) by site, `[C, S, N]`, in nats.
        x: One draw for each of the kept draws of z; empty where there are none.
        kept: Indices of the chains and of the draws from which x is drawn.

    Returns:
        The groups by name.
    """
    draws = {name: value.detach().float().cpu().numpy() for name, value in posterior.items()}
    groups = {
        "posterior": dimensions.dataset(draws, *SAMPLE),
        "log_prior": dimensions.dataset(log_prior, *SAMPLE),
    }
    if x.arrays:
        chains, at = kept
        groups["posterior_predictive"] = dimensions.dataset(
            _rows(x, len(chains), len(at)), *SAMPLE, chain=chains, draw=at
        )
    return groups


def _rows(x: Group, chains: int, draws: int) -> Arrays:
    """Values of observed sites, `[chains, draws, N, pixels]`."""
    return {
        name: values.reshape(chains, draws if draws >= 0 else len(values), values.shape[1], -1)
        for name, values in x.arrays.items()
    }


def sample_stats(annealed: AISEstimate) -> "Dataset":
    """Make the group sample_stats: the weights of annealing, and how far its draws can be trusted.

    Args:
        annealed: The result of annealing.

    Returns:
        log_weight before resampling, in nats, its ESS, and for posterior draws the acceptance_rate
        of the moves between them and whether they are unreliable.
    """
    arrays = {"log_weight": annealed.log_weights.numpy(), "ess": annealed.ess.numpy()}
    if annealed.posterior_acceptance is not None:
        unreliable = np.zeros(len(annealed.ess), dtype=bool)
        unreliable[annealed.unreliable_posterior.numpy()] = True
        arrays["acceptance_rate"] = annealed.posterior_acceptance.numpy()
        arrays["unreliable"] = unreliable
    dims = {name: ["datum"] for name in arrays} | {"log_weight": ["weighted_chain", "datum"]}
    return dataset(arrays, dims)


def per_datum(columns: Mapping[str, Tensor]) -> "Dataset":
    """Make a group of statistics.

    Args:
        columns: Statistics by name, `[N]` each.

    Returns:
        The statistics with the dimension datum.
    """
    arrays = {name: values.detach().cpu().numpy() for name, values in columns.items()}
    return dataset(arrays, {name: ["datum"] for name in arrays})
