"""Load data: validate, rescale, split and binarize."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pyroae.config import BINARIZATIONS, CHANNELS
from pyroae.data.arrays import Source
from pyroae.data.conditions import Condition, Conditioning, separated
from pyroae.data.dataset import Dataset, binarized, dataset_of, source_limits
from pyroae.data.image_channels import AXES, check_channels, to_grey
from pyroae.data.in_memory import with_labels
from pyroae.data.preprocessing import check_range, held_out_count, limits_of, range_of, rescaled
from pyroae.data.scan import check_train_part, held_out_rows, scan, stored_source
from pyroae.data.sources import read
from pyroae.data.standardizing import Standardization, standardized
from pyroae.data.storage import Stored
from pyroae.data.stored_matrices import stored_matrix
from pyroae.data.streaming import Stream
from pyroae.errors import ConfigError, DataError, unknown_name
from pyroae.programs.arguments import Arguments
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import shape_text, text_of

Binarization = Literal["none", "threshold", "dynamic", "static"]
Channels = Literal["first", "last", "grey"]
Scale = Literal["none", "255", "standard"]


@dataclass(frozen=True, repr=False)
class Splits(Shown):
    """Training, validation and test data.

    Attributes:
        train: The training data.
        valid: The validation data, or None.
        test: The test data, or None.
        fingerprint: The first 16 digits of the SHA-256 hash of the values before scaling.
        binarize: The binarization: `none`, `threshold`, `dynamic` or `static`.
        standardization: How the features were standardized; None if they were not.
    """

    train: Dataset
    valid: Dataset | None
    test: Dataset | None
    fingerprint: str
    binarize: str
    standardization: Standardization | None = field(default=None, repr=False)

    def _overview(self) -> Overview:
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        rows = [
            (name, str(len(part)), *_cells(part))
            for name, part in parts.items()
            if part is not None
        ]
        sizes = [f"{len(part)} {name}" for name, part in parts.items() if part is not None]
        head = [self.train.name, *sizes, f"binarize {self.binarize}"]
        return Overview(head, rows, ("part", "N", "shape", "values", "labels", "condition"))


def _cells(part: Any) -> tuple[str, ...]:
    """The cells of a part behind its size; of a program's arguments their shapes."""
    if isinstance(part, Dataset):
        return (shape_text(part.shape), *part.facts.values())
    return ("", text_of(part), "", "")


def load(
    source: Any,
    *,
    binarize: Binarization = "none",
    valid: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    data_root: str | Path = "data",
    value_range: tuple[float, float] | None = None,
    channels: Channels | None = None,
    condition: str | Conditioning | None = None,
    missing: bool = False,
    scale: Scale | None = None,
    labels: Any = None,
    array: str | None = None,
) -> Splits:
    """Load training, validation and test data.

    The splits and the static draws use the bits of PCG64 and are the same on every machine. A
    `.npy` or `.parquet` file, a folder of images, a sparse matrix or a memory-mapped array of more
    than 256 MiB in single precision is streamed, as dense rows: it is read once for checks, and its
    validation and test data have at most 64 MiB each.

    Args:
        source: One of: a known name (`digits`, `mnist`, ...); the path of a file (`.npy`, `.npz`,
            `.csv`, `.parquet`, `.h5`, ...) or of a folder of images; an array, a tensor, a sparse
            matrix, a table or a dataset of torch with N items; a pair (values, labels); a pair of
            such pairs, the second of which is the test set, or three, of which the second is the
            validation set; a dict of these, such as `{"x_train": …, "y_train": …, "x_test": …}`; a
            `Dataset`.
        binarize: `none`; `threshold`: 1 above 1/2, else 0; `static`: one Bernoulli draw; or
            `dynamic`: a new Bernoulli draw for each training batch, and one fixed draw of
            validation and test data, so that every evaluation uses the same data.
        valid: The fraction of the data that are not test data to use for validation, in [0, 1). A
            source with its own validation data keeps them.
        test: The fraction of the data to use for the test, in [0, 1). A source with its own test
            set keeps that one.
        seed: The seed of the splits and of static draws.
        data_root: The folder of torchvision's data sets, which are downloaded there if missing.
        value_range: The values (low, high) that are mapped to 0 and 1; (0, 1) leaves all values as
            stored, which counts and codes of type uint8 need. With None, uint8 values that are
            grey levels, as in `is_grey`, are mapped from [0, 255] to [0, 1], and other values are
            unchanged.
        channels: `first` or `last`: where images have their channels, for shapes that do not tell;
            `grey`: colours are converted to grey images `[n, H, W]`; None to find the channels from
            the shape.
        condition: What the data are conditioned on: `labels`, as one-hot vectors, or names of
            columns of a table, separated by commas, which are then no features. None for no
            condition, or that of a `Dataset`.
        missing: Whether NaN, a masked element, and an empty cell of a table, is a missing value;
            else it is refused.
        scale: In place of `value_range`: `none` leaves all values as stored; `255` divides them by
            255; `standard` gives each feature mean 0 and standard deviation 1 in the training data,
            but for codes of categories.
        labels: The labels `[N]`, or the name of the column of a table, the array of a file or the
            key of a dict that holds them; `none` if there are no labels; None for those of the
            source, such as a column named label, target, class or y.
        array: The array of a file that holds the data; None for one named x or data, or the only
            one of several dimensions.

    Returns:
        The three parts, values `[n, d]` each, and conditions `[n, C]`.

    Raises:
        DataError: If the source cannot be read, or its values are not finite numbers, are empty or
            constant, or are outside [0, 1] and to be binarized, or no training data are left; or
            the condition cannot be made, as in `separated`.
        ConfigError: If a name is unknown, or a fraction, the seed or the range is not accepted.

    >>> digits = load("digits", binarize="dynamic")
    >>> len(digits.train), len(digits.valid), len(digits.test), digits.train.shape
    (1455, 162, 180, (8, 8))
    """
    _check_arguments(source, binarize, seed, channels)
    value_range = range_of(scale, value_range)
    grey = channels == "grey"
    if isinstance(source, Dataset):
        binarize = "dynamic" if source.dynamic and binarize == "none" else binarize
        channels = source.channels if channels is None else channels  # type: ignore[assignment]
    how = Conditioning.named(condition) if isinstance(condition, str) else condition
    name = labels if isinstance(labels, str) else None
    is_dense = missing or grey or how is not None or scale == "standard"
    matrix = None if is_dense else stored_matrix(source, labels)
    stored = matrix or stored_source(source, grey=grey, label=name)
    if stored is not None:
        _refuse_for_streams(
            stored,
            {
                "a condition": how is not None,
                "missing values": missing,
                "other labels": labels is not None and name is None and matrix is None,
            },
        )
        streamed = _load_streamed(stored, binarize, valid, test, seed, value_range)
        return _finished(streamed, channels, scale)
    shape = source.shape if isinstance(source, Dataset) and not grey else None
    if isinstance(source, Dataset):
        raw = with_labels(_source_of(source, grey), labels)
        missing = missing or source.missing
    else:
        raw = read(source, data_root, grey=grey, labels=labels, array=array)
    digest = _fingerprint(raw)
    parts, conditions = _separated(raw, how)
    limits = source_limits(parts["train"], value_range)
    found = {
        name: _conditioned(dataset_of(part, limits, shape, missing), conditions.get(name))
        for name, part in parts.items()
    }
    whole = found["train"]
    if isinstance(source, Dataset) and source.condition is not None and how is None:
        whole = whole.conditioned_on(source.condition, source.condition_names)
    bits = np.random.PCG64(seed)
    train, valid_part, test_part = _split(
        whole, 0 if "valid" in found else valid, 0 if "test" in found else test, bits
    )
    if binarize != "none":
        train = binarized(train, binarize, bits)
    valid_part = _binarized_once(found.get("valid", valid_part), binarize, bits)
    test_part = _binarized_once(found.get("test", test_part), binarize, bits)
    splits = Splits(
        train, valid_part, test_part, _with_condition(digest, conditions.values()), binarize
    )
    return _finished(splits, channels, scale)


def _finished(splits: Splits, channels: str | None, scale: str | None) -> Splits:
    """Splits that say where images have their channels, standardized if that was asked for."""
    splits, codes = _with_channels(splits, channels), splits.train.categories
    numbers = tuple(name not in codes for name in splits.train.columns) if codes else None
    return standardized(splits, numbers) if scale == "standard" else splits


def _refuse_for_streams(stored: Stored, asked: Mapping[str, bool]) -> None:
    """Refuse what data larger than memory cannot have."""
    for what in (what for what, is_asked in asked.items() if is_asked):
        raise DataError(
            f"{stored.name} is larger than memory and read in slices: it cannot have {what}; "
            "give a part of it that fits into memory"
        )


def _separated(
    raw: Source, how: Conditioning | None
) -> tuple[dict[str, Source], dict[str, Condition]]:
    """The parts of a source without their conditions, and the conditions."""
    parts = {"train": replace(raw, valid=None, test=None), "valid": raw.valid, "test": raw.test}
    sources = {name: part for name, part in parts.items() if part is not None}
    conditions: dict[str, Condition] = {}
    if how is None:
        return sources, conditions
    for name, part in sources.items():
        sources[name], conditions[name] = separated(part, how)
        if not how.columns:
            how = replace(how, classes=conditions["train"].names)
    return sources, conditions


def _conditioned(dataset: Dataset, condition: Condition | None) -> Dataset:
    return (
        dataset if condition is None else dataset.conditioned_on(condition.values, condition.names)
    )


def _with_condition(digest: str, conditions: Iterable[Condition]) -> str:
    """The fingerprint of data and conditions; of data alone where there are none."""
    given = list(conditions)
    found = hashlib.sha256(digest.encode())
    for condition in given:
        found.update(f"{condition.names}{condition.values.shape}".encode())
        found.update(np.ascontiguousarray(condition.values).tobytes())
    return found.hexdigest()[:16] if given else digest


def _source_of(data: Dataset, grey: bool) -> Source:
    """The values of a data set, flat; in grey as images."""
    values = data.x.numpy()
    if grey:
        values = to_grey(values.reshape(len(values), *data.shape), data.name)
        return Source(data.name, values, data.labels)
    return Source(data.name, values, data.labels, columns=data.columns, categories=data.categories)


def _with_channels(splits: Splits, channels: str | None) -> Splits:
    """Splits whose parts say where images have their channels, if that was asked for."""
    if channels not in AXES:
        return splits
    check_channels(splits.train.shape, channels, splits.train.name)
    valid, test = (
        None if part is None else replace(part, channels=channels)
        for part in (splits.valid, splits.test)
    )
    return replace(splits, train=replace(splits.train, channels=channels), valid=valid, test=test)


def _check_arguments(source: Any, binarize: str, seed: int, channels: str | None) -> None:
    if binarize not in BINARIZATIONS:
        raise unknown_name("binarization", binarize, BINARIZATIONS)
    if channels is not None and channels not in CHANNELS:
        raise unknown_name("place of channels", channels, CHANNELS)
    if isinstance(source, Splits):
        raise DataError("these data are split already; give the data before the split")
    if seed < 0:
        raise ConfigError(f"the seed of a split must be at least 0, not {seed}")
    if isinstance(source, Dataset) and source.stream is not None:
        raise DataError(
            f"the {len(source)} data of {source.name} are larger than memory: "
            "give their file, or first(count)"
        )


def _split[Part: (Dataset, Arguments)](
    whole: Part, valid: float, test: float, bits: np.random.PCG64
) -> tuple[Part, Part | None, Part | None]:
    """Split data at random; each part keeps the order of `whole`."""
    order = np.argsort(bits.random_raw(len(whole)), kind="stable")
    num_test = held_out_count("test", test, len(whole))
    num_valid = held_out_count("valid", valid, len(whole) - num_test)
    check_train_part(len(whole), num_valid, num_test)
    parts = np.split(order, [len(order) - num_valid - num_test, len(order) - num_test])
    train, valid_part, test_part = (whole.subset(np.sort(part)) for part in parts)
    return train, valid_part if num_valid else None, test_part if num_test else None


def _binarized_once(data: Dataset | None, binarize: str, bits: np.random.PCG64) -> Dataset | None:
    """Binarize held-out data, with one fixed draw if the binarization is dynamic."""
    if data is None or binarize == "none":
        return data
    return binarized(data, "static" if binarize == "dynamic" else binarize, bits)


def split_arguments(
    arrays: tuple[Any, ...],
    *,
    name: str = "arguments",
    valid: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
) -> Splits:
    """Split the arguments of a program, such as data and a covariate, into parts.

    Args:
        arrays: The arguments in their order, arrays or tensors `[N, ...]`; or a pair of such
            tuples, of which the second is the test set. Floating-point values become tensors of
            torch's default type, others keep theirs; nothing is flattened or rescaled.
        name: What the data are called in messages.
        valid: Share of the training data held out for validation.
        test: Share of the data held out for evaluation, where there is no test set.
        seed: Seed of both draws, as in `load`.

    Returns:
        Splits whose parts are Arguments; there are no labels.

    Raises:
        DataError: If the arrays are not of one length, or not finite.

    >>> splits = split_arguments((np.zeros((10, 3)), np.arange(10)))
    >>> len(splits.train), [tuple(t.shape) for t in splits.test.tensors]
    (8, [(1, 3), (1,)])
    """
    has_test = len(arrays) == 2 and all(isinstance(part, tuple) for part in arrays)
    whole, *held = (_arguments(part, name) for part in (arrays if has_test else (arrays,)))
    bits = np.random.PCG64(seed)
    train, valid_part, test_part = _split(whole, valid, 0 if has_test else test, bits)
    digest = hashlib.sha256()
    for tensor in (t for part in (whole, *held) for t in part.tensors):
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    parts: dict[str, Any] = {"train": train, "valid": valid_part}
    parts["test"] = held[0] if held else test_part
    return Splits(**parts, fingerprint=digest.hexdigest()[:16], binarize="none")


def _arguments(arrays: tuple[Any, ...], name: str) -> Arguments:
    tensors = []
    for values in (read(given).values for given in arrays):
        if values.dtype.kind not in "buif":
            raise DataError(f"{name} holds {values.dtype} values; numbers are needed")
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if tensor.is_floating_point():
            tensor = tensor.to(torch.get_default_dtype())
            if not tensor.isfinite().all():
                raise DataError(f"{name} holds values that are not finite")
        tensors.append(tensor)
    return Arguments(tuple(tensors), name)


def _load_streamed(
    stored: Stored, binarize: Binarization, valid: float, test: float, seed: int, value_range: Any
) -> Splits:
    """Load data larger than memory."""
    check_range(value_range)
    bits = np.random.PCG64(seed)
    rows = held_out_rows(len(stored), stored.features, test, valid, bits)
    held_out = np.sort(np.concatenate(rows))
    result = scan(stored, held_out)
    limits = stored.limits_for(result.high)
    if value_range is not None or limits is None:
        limits = limits_of(stored.name, stored.dtype, stored.shape, result.high, value_range)
    shape = tuple(int(n) for n in stored.shape[1:])
    mean = rescaled(torch.from_numpy(result.mean), limits).to(torch.get_default_dtype())
    stream = Stream(stored, mean, limits, held_out, binarize, seed)
    sample = Source(stored.name, np.concatenate([result.head, result.extremes]))
    train = dataset_of(sample, limits, shape)
    if binarize != "none":
        train = binarized(train, binarize, np.random.PCG64(seed))
    parts: list[Dataset | None] = []
    for part in rows:
        index = np.searchsorted(held_out, part)
        labels = None if result.labels is None else result.labels[index]
        source = Source(stored.name, result.held_out[index], labels)
        data = dataset_of(source, limits, shape) if len(index) else None
        parts.append(_binarized_once(data, binarize, bits))
    return Splits(replace(train, stream=stream), parts[1], parts[0], result.fingerprint, binarize)


def _fingerprint(source: Source) -> str:
    """The fingerprint of the values, and of the names of categories, where there are some."""
    digest = hashlib.sha256()
    for part in (source, source.valid, source.test):
        if part is not None:
            digest.update(f"{part.values.dtype.str}{part.values.shape}".encode())
            values = np.ascontiguousarray(part.values)
            digest.update(values.reshape(-1).view(np.uint8))
    if source.categories:
        digest.update(str(sorted(source.categories.items())).encode())
    return digest.hexdigest()[:16]
