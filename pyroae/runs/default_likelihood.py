"""The likelihood of a new run, chosen by its data where the user gives none."""

import warnings
from dataclasses import dataclass

import numpy as np

from pyroae import zoo
from pyroae._names import NAMES
from pyroae.config import RunConfig
from pyroae.data.arrays import Source
from pyroae.data.conditions import FROM_LABELS, Conditioning, separated
from pyroae.data.dataset import source_limits
from pyroae.data.kinds import Suggestion, columns_of_values, suggestion
from pyroae.data.scan import stored_source
from pyroae.data.sources import read
from pyroae.likelihoods import Bernoulli
from pyroae.runs.data_of_run import value_range_of


@dataclass(frozen=True)
class Completed:
    """The settings of a run with the likelihood that its data suggest.

    Attributes:
        config: The settings, with likelihood and scale where they were chosen.
        sentence: What was chosen and why; empty where the user, the system or the name of the
            data decide.
    """

    config: RunConfig
    sentence: str = ""


def completed(config: RunConfig) -> Completed:
    """Choose the likelihood of a new run by its data, unless the user says what they are.

    A likelihood, a binarization or a range of values that is given decides, as does a system whose
    likelihood is not Bernoulli, and a data set of the package, which has grey values.

    Args:
        config: The settings of a new run.

    Returns:
        The settings with an explicit likelihood and scale, and a sentence that says so.

    Raises:
        DataError: If the data cannot be read, or may be grey levels or counts.
    """
    if not is_open(config):
        return Completed(config)
    found = suggestion_for(config)
    if found is None:
        return Completed(config)
    scale = config.scale or found.scale
    chosen = config.but(likelihood=found.likelihood, scale=scale)
    scaled = f", scale {scale}" if scale and scale != config.scale else ""
    return Completed(
        chosen,
        f"{config.data} {found.reason}: likelihood {found.likelihood}{scaled} (--likelihood "
        "chooses another)",
    )


def is_open(config: RunConfig) -> bool:
    """Return whether the likelihood of a configuration is to be chosen by its data.

    Args:
        config: The configuration.

    Returns:
        Whether neither the user nor the system nor the name of the data decides.
    """
    if config.program is not None or config.likelihood is not None:
        return False
    if config.data.partition(":")[0].strip() in NAMES["dataset"]:
        return False
    is_said = config.binarize is not None or config.value_range is not None
    return not (is_said or config.scale == "255") and isinstance(
        zoo.likelihood_of(config), Bernoulli
    )


def suggestion_for(config: RunConfig) -> Suggestion | None:
    """Return the likelihood that the data of a configuration suggest.

    Args:
        config: The configuration.

    Returns:
        The suggestion; None for grey images and for data that are refused when they are loaded.

    Raises:
        DataError: If the data cannot be read, or may be grey levels or counts.
    """
    source = raw_source(config)
    values = source.values
    if values.dtype.kind not in "buif" or values.ndim < 2 or not values.size:
        return None
    if np.isinf(values).any():
        return None
    if source_limits(source, value_range_of(config)) not in (None, (0.0, 1.0)):
        return None
    columns = None if config.condition is None else Conditioning.named(config.condition)
    if columns is not None and columns.columns and config.condition != FROM_LABELS:
        source = separated(source, columns)[0]
    return suggestion(columns_of_values(source.values, source.columns, source.categories))


def raw_source(config: RunConfig) -> Source:
    """Read the data of a configuration before any scaling; of data larger than memory, a slice.

    Args:
        config: The configuration.

    Returns:
        The values, without a test set.

    Raises:
        DataError: If they cannot be read.
    """
    grey = config.channels == "grey"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they are given when the data are loaded
        stored = stored_source(config.data, grey=grey, label=config.labels)
        if stored is None:
            names = {"labels": config.labels, "array": config.array}
            return read(config.data, config.data_root, grey=grey, **names)
    with stored.opened() as reader:
        values = reader.read(0).values
    limits = stored.limits_for(float(np.max(values)))
    return Source(stored.name, values.reshape(-1, *stored.shape[1:]), limits=limits)
