"""The data of a run, and checks that they are still the same."""

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
    """The data of a configuration, or others prepared as it says."""
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
    """Raises RunError where a state is of another system."""
    wanted = {name: tuple(v.shape) for name, v in system.state_dict().items()}
    if wanted != {name: tuple(v.shape) for name, v in state.weights.items()}:
        raise RunError(
            f"the checkpoint of '{run.path}' is of another system: its weights have other names or shapes"
        )


def same_data(run: Run, splits: Splits) -> None:
    """Raises DataError where the data of a run have changed."""
    if splits.fingerprint != run.fingerprint:
        raise DataError(
            f"the data '{run.config.data}' have changed since the run '{run.path}': their fingerprint is "
            f"{splits.fingerprint}, not {run.fingerprint}"
        )


def part_of(run: Run, data: str | None, split: str, num_data: int | None) -> Dataset:
    """The part of the data that a command is about: of the run's own, or of other data of the same width."""
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
    if dataset.dynamic:  # training data are drawn anew each epoch; to look at them, one fixed draw
        dataset = replace(
            load(dataset, binarize="static", valid=0, test=0, seed=run.config.split_seed).train,
            name=dataset.name,
        )
    width, trained_on = dataset.x.shape[1], int(np.prod(run.shape))
    if width != trained_on:
        raise DataError(
            f"{dataset.name} has {width} features a datum; the run '{run.path}' was trained on {trained_on}"
        )
    return dataset.first(num_data or len(dataset))
