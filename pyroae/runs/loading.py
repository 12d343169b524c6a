"""The data of a run, and checks that data and checkpoints belong to it."""

from dataclasses import replace

import numpy as np

from pyroae import zoo
from pyroae.autoencoder import Autoencoder
from pyroae.config import RunConfig, at_least_one
from pyroae.data.dataset import Dataset
from pyroae.data.loading import Splits, load
from pyroae.errors import DataError, RunError
from pyroae.likelihoods import Bernoulli
from pyroae.runs.run import Run
from pyroae.training.state import State


def splits_of(config: RunConfig, data: str | None = None) -> Splits:
    """Load the data of a configuration.

    Args:
        config: The configuration. Without a binarization, data for a Bernoulli likelihood are
            binarized dynamically and others are not binarized.
        data: The name or path of other data, which are prepared in the same way; by default those
            of the configuration.

    Returns:
        Training, validation and test data.

    Raises:
        DataError: If the data cannot be read or are refused, as in `load`.
        ConfigError: If a setting is not accepted.
    """
    likelihood = zoo.likelihood_of(config)
    binarize = config.binarize or ("dynamic" if isinstance(likelihood, Bernoulli) else "none")
    return load(
        config.data if data is None else data,
        binarize=binarize,  # type: ignore[arg-type]
        valid=config.valid_fraction,
        test=config.test_fraction,
        seed=config.split_seed,
        data_root=config.data_root,
        value_range=config.value_range,  # type: ignore[arg-type]
    )


def fits(run: Run, state: State, system: Autoencoder) -> None:
    """Check that a state belongs to a system.

    Args:
        run: The run of the state, for the error message.
        state: The state.
        system: The system whose training is to be resumed.

    Raises:
        RunError: If the names or the shapes of the weights differ.
    """
    shapes = {name: tuple(v.shape) for name, v in system.state_dict().items()}
    if shapes != {name: tuple(v.shape) for name, v in state.weights.items()}:
        raise RunError(
            f"the checkpoint of '{run.path}' belongs to another system: "
            "its weights have other names or shapes"
        )


def same_data(run: Run, splits: Splits) -> None:
    """Check that the data of a run are unchanged.

    Args:
        run: The run.
        splits: The data as they are read now.

    Raises:
        DataError: If the fingerprint of the data is not that of the run.
    """
    if splits.fingerprint != run.fingerprint:
        raise DataError(
            f"the data '{run.config.data}' have changed since the run '{run.path}': "
            f"their fingerprint is {splits.fingerprint}, not {run.fingerprint}"
        )


def part_of(run: Run, data: str | None, split: str, num_data: int | None) -> Dataset:
    """Load one part of the data of a run, or of other data with the same number of features.

    Dynamic binarization is replaced by one Bernoulli draw with the seed of the split.

    Args:
        run: The run.
        data: The name or path of other data; None for those of the run, which must be unchanged.
        split: The part: `train`, `valid` or `test`.
        num_data: The number of data to use, from the first on; None for all.

    Returns:
        The data `[n, d]`, in memory.

    Raises:
        DataError: If the data have changed, have no such part or another number of features, do not
            fit into memory or cannot be read.
        ConfigError: If `num_data` is less than 1.
    """
    if num_data is not None:
        at_least_one("num_data", num_data)
    splits = splits_of(run.config, data)
    if data is None:
        same_data(run, splits)
    dataset = getattr(splits, split)
    if dataset is None:
        raise DataError(
            f"the data '{data or run.config.data}' have no {split} part: choose another --split"
        )
    if dataset.stream is not None:
        dataset = dataset.first(num_data or len(dataset))
    if dataset.dynamic:
        dataset = replace(
            load(dataset, binarize="static", valid=0, test=0, seed=run.config.split_seed).train,
            name=dataset.name,
        )
    width, trained_on = dataset.x.shape[1], int(np.prod(run.shape))
    if width != trained_on:
        raise DataError(
            f"{dataset.name} has {width} features per datum; "
            f"the run '{run.path}' was trained on {trained_on}"
        )
    return dataset.first(num_data or len(dataset))
