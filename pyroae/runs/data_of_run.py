"""The data of a run, and checks that they are still those that it was trained on."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from pyroae import zoo
from pyroae.config import SEMI_SUPERVISED, Part, RunConfig
from pyroae.data.arrays import Source
from pyroae.data.conditions import Conditioning
from pyroae.data.dataset import Dataset
from pyroae.data.frames import matched
from pyroae.data.loading import Splits, load, split_arguments
from pyroae.data.partial_labels import partly_labelled
from pyroae.data.preprocessing import range_of
from pyroae.data.sources import named
from pyroae.data.standardizing import Standardization, standardized
from pyroae.errors import DataError, UnknownScaleError
from pyroae.likelihoods import Bernoulli, Mixed
from pyroae.likelihoods.scales import LocationScale
from pyroae.programs.arguments import Arguments
from pyroae.runs.run import Run


def splits_of(
    config: RunConfig,
    data: str | None = None,
    like: Run | None = None,
) -> Splits:
    """Load the data of a configuration.

    Args:
        config: The configuration. For a program, a dataset whose function returns a tuple of
            arrays gives the arguments of the program; data are not binarized unless it says so.
        data: Other data, prepared as the configuration says; None for its own.
        like: The run that other data are prepared for: they receive the order of its columns, its
            categories and classes, and its standardization. Without it other data are
            standardized by the training data of the configuration.

    Returns:
        Training, validation and test data.

    Raises:
        DataError: If they cannot be read, or settings of data of one array are given for several.
        ConfigError: For settings that are not accepted.
    """
    source = config.data if data is None else data
    names = () if like is None else like.condition_names
    if config.program is not None:
        arrays = named(source, config.data_root)
        if isinstance(arrays, tuple):
            return _several(config, source, arrays)
    splits = load(
        source,
        binarize=binarization_of(config),  # type: ignore[arg-type]
        valid=config.valid_fraction,
        test=config.test_fraction,
        seed=config.split_seed,
        data_root=config.data_root,
        value_range=value_range_of(config),
        channels=config.channels,  # type: ignore[arg-type]
        condition=_conditioning(config, names),
        missing=config.missing,
        labels=config.labels,
        array=config.array,
    )
    by = None
    if like is not None:
        splits, by = _in_columns_of(like, splits), standardization_of(like)
    elif data is not None and config.scale == "standard":
        by = splits_of(config).standardization
    if config.scale == "standard":
        splits = standardized(splits, _standard_columns(config), by)
    if not is_semi_supervised(config):
        return splits
    return partly_labelled(splits, config.num_labels if data is None else None, config.split_seed)


def _in_columns_of(run: Run, splits: Splits) -> Splits:
    """Other data with the columns and the categories of a run, in their order."""

    def arranged(part: Dataset | None) -> Dataset | None:
        if part is None or not part.columns or not run.columns:
            return part
        if part.stream is not None and part.columns == run.columns:
            return part
        if part.stream is not None:
            raise DataError(
                f"the columns of {part.name}, which is larger than memory, are not those of the "
                f"run '{run.path}' in their order: {', '.join(run.columns[:10])}"
            )
        x = part.x.numpy()
        own = Source(part.name, x, columns=part.columns, categories=part.categories)
        found = matched(own, run, "new")
        values = torch.from_numpy(found.values).to(part.x.dtype)
        return replace(part, x=values, columns=found.columns, categories=found.categories)

    train, *others = (arranged(part) for part in (splits.train, splits.valid, splits.test))
    assert train is not None
    return replace(splits, train=train, valid=others[0], test=others[1])


def standardization_of(run: Run) -> Standardization | None:
    """Return how the training data of a run are standardized.

    Args:
        run: The run.

    Returns:
        The standardization, by which other data and results are scaled; None without one.

    Raises:
        DataError: If the data have changed since the run, so that it is not known any more.
    """
    if run.config.scale != "standard":
        return None
    splits = splits_of(run.config)
    same_data(run, splits)
    return splits.standardization


def _standard_columns(config: RunConfig) -> tuple[bool, ...] | None:
    """Which columns are standardized: under a mixed likelihood, those with a location and scale."""
    likelihood = None if config.program is not None else zoo.likelihood_of(config)
    if not isinstance(likelihood, Mixed):
        return None
    groups = likelihood.groups
    return tuple(isinstance(part, LocationScale) for part, count in groups for _ in range(count))


def is_semi_supervised(config: RunConfig) -> bool:
    """Return whether the system of a configuration learns from labels that may be missing.

    Args:
        config: The configuration.

    Returns:
        True for M2.
    """
    return config.program is None and config.system == SEMI_SUPERVISED


def _conditioning(config: RunConfig, names: tuple[str, ...]) -> Conditioning | None:
    if is_semi_supervised(config):
        return Conditioning(classes=names, optional=True)
    if config.condition is None:
        return None
    how = Conditioning.named(config.condition)
    return how if how.columns else replace(how, classes=names)


def _several(config: RunConfig, name: str, arrays: tuple[object, ...]) -> Splits:
    settings = ("binarize", "value_range", "scale", "channels", "condition", "missing")
    for setting in (*settings, "labels", "array"):
        if getattr(config, setting) not in (None, "none", False):
            raise DataError(
                f"{setting} is for data of one array; '{name}' has several, for the arguments of "
                f"'{config.program}': prepare them where they are made"
            )
    return split_arguments(
        arrays,
        name=name,
        valid=config.valid_fraction,
        test=config.test_fraction,
        seed=config.split_seed,
    )


def binarization_of(config: RunConfig) -> str:
    """Return how the data of a configuration become black and white.

    Args:
        config: The configuration; its likelihood decides where it does not say.

    Returns:
        One of `BINARIZATIONS`.
    """
    if config.binarize is not None:
        return config.binarize
    if config.program is not None:
        return "none"
    return "dynamic" if isinstance(zoo.likelihood_of(config), Bernoulli) else "none"


def value_range_of(config: RunConfig) -> tuple[float, float] | None:
    """Return the limits that are mapped to 0 and 1 in the data of a configuration.

    Args:
        config: The configuration; its likelihood decides where it does not say.

    Returns:
        The limits as of `load`: (0, 1), which leaves all values as stored, for counts, codes,
        tables of a mixed likelihood and data to be standardized; None for the rule of `load`.
    """
    limits: tuple[float, float] | None = range_of(config.scale, config.value_range)
    if limits is not None:
        return limits
    if config.program is not None or not zoo.likelihood_of(config).is_unscaled:
        return None
    return 0.0, 1.0


def arguments_in(part: Dataset | Arguments) -> tuple[Tensor, ...]:
    """Return the arguments of model and guide that data stand for.

    Args:
        part: Data.

    Returns:
        x `[N, d]` of a Dataset, and its condition c if it has one, else every tensor `[N, ...]`.
    """
    return part.tensors


def own_splits(run: Run, config: RunConfig | None = None) -> Splits:
    """Load the data of a run.

    Args:
        run: The run.
        config: Its configuration with other settings of where it is carried out; by default its
            own.

    Returns:
        Its training, validation and test data.

    Raises:
        DataError: If they cannot be read, or have changed. Before version 0.4 all uint8 values were
            divided by 255; where they may be counts, the message says how config.yaml keeps that.
    """
    try:
        splits = splits_of(run.config if config is None else config)
    except UnknownScaleError as error:
        raise UnknownScaleError(
            f"{str(error).partition(':')[0]}; before version 0.4, of which the run '{run.path}' "
            "seems to be, all were divided by 255: to keep that, add the line 'scale: 255' to "
            f"'{run.path / 'config.yaml'}'"
        ) from None
    same_data(run, splits)
    return splits


def same_data(run: Run, splits: Splits) -> None:
    """Refuse data that have changed since a run.

    Args:
        run: The run.
        splits: Its data as they are now.

    Raises:
        DataError: If their fingerprint is another one.
    """
    if splits.fingerprint != run.fingerprint:
        raise DataError(
            f"the data '{run.config.data}' have changed since the run '{run.path}': their "
            f"fingerprint is {splits.fingerprint}, not {run.fingerprint}"
        )


def part_of(run: Run, part: Part) -> Dataset | Arguments:
    """Return the data that a command is about.

    Args:
        run: The run, whose own data or others of the same width are meant.
        part: Which data, which part of them, and how many.

    Returns:
        A Dataset, black and white in one fixed draw where the run's data are drawn dynamically;
        Arguments for a program of several arguments.

    Raises:
        DataError: If the run's data have changed, there is no such part, or other data are not of
            the same width.
    """
    return chosen(run, part, splits_for(run, part))


def splits_for(run: Run, part: Part) -> Splits:
    """Load the data that a command is about, in all their parts.

    Args:
        run: The run.
        part: Which data.

    Returns:
        The run's own data, or other data prepared like them.

    Raises:
        DataError: If the run's data have changed, or other data cannot be read.
    """
    if part.data is None:
        return own_splits(run)
    return splits_of(run.config, part.data, run)


def chosen(run: Run, part: Part, splits: Splits) -> Dataset | Arguments:
    """Choose a part of loaded data.

    Args:
        run: The run.
        part: Which part of the data, and how many.
        splits: The data, as of `splits_for`.

    Returns:
        The data, as of `part_of`.

    Raises:
        DataError: If there is no such part, or other data are not of the same width.
    """
    found: Dataset | Arguments | None = getattr(splits, part.split)
    if found is None:
        raise DataError(
            f"the data '{part.data or run.config.data}' have no {part.split} part: choose another "
            "--split"
        )
    width, trained_on = math.prod(found.shape), math.prod(run.shape)
    if width != trained_on:
        raise DataError(
            f"{found.name} has {width} features per datum; the run '{run.path}' was trained on "
            f"{trained_on}"
        )
    if is_semi_supervised(run.config) and isinstance(found, Dataset):
        found = replace(found, condition=None)  # p(x) is evaluated: classes are summed
    return _in_memory(found, run, part.num_data).first(part.num_data or len(found))


def whole_of(run: Run, data: str) -> Dataset:
    """Return all rows of other data in their order, prepared as those of a run.

    Args:
        run: The run of a system of the zoo.
        data: A name or a file.

    Returns:
        The data, black and white in one fixed draw where the run's data are drawn dynamically.

    Raises:
        DataError: If they cannot be read, or are not of the width of the run's data.
    """
    config = run.config.but(valid_fraction=0.0, test_fraction=0.0)
    found = _in_memory(splits_of(config, data, run).train, run, None)
    assert isinstance(found, Dataset)
    if math.prod(found.shape) != math.prod(run.shape):
        raise DataError(
            f"{found.name} has {math.prod(found.shape)} features per datum; the run '{run.path}' "
            f"was trained on {math.prod(run.shape)}"
        )
    return found


def _in_memory(part: Dataset | Arguments, run: Run, num_data: int | None) -> Dataset | Arguments:
    """The same data in memory; dynamic ones in one fixed draw."""
    if isinstance(part, Arguments):
        return part
    if part.stream is not None:
        part = part.first(num_data or len(part))
    if part.dynamic:
        fixed = load(part, binarize="static", valid=0, test=0, seed=run.config.split_seed)
        part = replace(fixed.train, name=part.name)
    return part
