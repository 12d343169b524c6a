"""Load data: validate, rescale, split and binarize."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pyroae.config import BINARIZATIONS
from pyroae.data.dataset import Dataset, binary, dataset_of, range_in
from pyroae.data.preprocessing import check_range, range_of, scaled, share_of
from pyroae.data.scan import Scan, held_out, scan, stored_of
from pyroae.data.sources import Source, read
from pyroae.data.storage import Stored
from pyroae.data.streaming import Stream
from pyroae.errors import ConfigError, DataError, unknown_name
from pyroae.programs.arguments import Arguments

Binarization = Literal["none", "threshold", "dynamic", "static"]


@dataclass(frozen=True)
class Splits:
    """Training, validation and test data, and the fingerprint of what they were made from (SHA-256, shortened)."""

    train: Dataset
    valid: Dataset | None
    test: Dataset | None
    fingerprint: str
    binarize: str


def load(
    source: Any,
    *,
    binarize: Binarization = "none",
    valid: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    data_root: str | Path = "data",
    value_range: tuple[float, float] | None = None,
) -> Splits:
    """Training, validation and test data from a known name, a file (.npy .npz .csv .parquet), a folder of images, an array, a
    tensor or a table, a pair (values, labels), or a pair of such pairs, of which the second is the test set.

    test: share of the data held out; a source with a test set of its own keeps that one. valid: share of the rest.
    `seed` draws both.
    binarize: `threshold` at 1/2; `static`, one Bernoulli draw; `dynamic`, a fresh draw each time a batch is served,
    while validation and test data are one fixed draw, so that every evaluation sees the same data. The fixed draws and
    the splits come from the bits of PCG64 and are the same on every machine.
    A .npy or .parquet file or a folder of more than 256 MiB in single precision is streamed from disk: it is read once, to be
    checked, and validation and test data are at most 64 MiB of it each.
    Raises DataError or ConfigError, in one sentence, where that cannot be done.

    >>> digits = load("digits", binarize="dynamic")
    >>> len(digits.train), len(digits.valid), len(digits.test), digits.train.shape
    (1455, 162, 180, (8, 8))
    """
    if binarize not in BINARIZATIONS:
        raise unknown_name("binarization", binarize, BINARIZATIONS)
    if isinstance(source, Splits):
        raise DataError("these data are split already; give the whole of them")
    if seed < 0:
        raise ConfigError(f"the seed of a split must be at least 0, not {seed}")
    if isinstance(source, Dataset) and source.stream is not None:
        raise DataError(
            f"the {len(source)} data of {source.name} are larger than memory: give their file, or first(count)"
        )
    if isinstance(source, Dataset) and source.dynamic and binarize == "none":
        binarize = "dynamic"
    stored = stored_of(source)
    if stored is not None:
        return _streamed(stored, binarize, valid, test, seed, value_range)
    raw = (
        Source(source.name, source.x.numpy(), source.labels)
        if isinstance(source, Dataset)
        else read(source, data_root)
    )
    shape = source.shape if isinstance(source, Dataset) else None
    limits = range_in(raw, value_range)
    whole = dataset_of(raw, limits, shape)
    bits = np.random.PCG64(seed)
    rows = _rows(len(whole), valid, test if raw.test is None else 0, bits)
    held_out = whole.subset(rows[2]) if len(rows[2]) else None
    if raw.test is not None:
        held_out = dataset_of(raw.test, limits, shape)
    train = whole.subset(rows[0])
    held_in = whole.subset(rows[1]) if len(rows[1]) else None
    if binarize != "none":
        train = binary(train, binarize, bits)
        fixed = "static" if binarize == "dynamic" else binarize
        held_in, held_out = (part and binary(part, fixed, bits) for part in (held_in, held_out))
    return Splits(train, held_in, held_out, _fingerprint(raw), binarize)


def _rows(count: int, valid: float, test: float, bits: np.random.PCG64) -> list[np.ndarray]:
    """The rows of the training, validation and test part, in ascending order."""
    order = np.argsort(bits.random_raw(count), kind="stable")
    num_test = share_of("test", test, count)
    num_valid = share_of("valid", valid, count - num_test)
    if num_valid + num_test >= count:
        raise DataError(
            f"{count} data leave none to train on after {num_valid} for validation and {num_test} "
            "for the test"
        )
    parts = np.split(order, [count - num_valid - num_test, count - num_test])
    return [np.sort(part) for part in parts]


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
    rows = _rows(len(whole), valid, 0 if has_test else test, np.random.PCG64(seed))
    parts = [whole.subset(index) if len(index) else None for index in rows]
    digest = hashlib.sha256()
    for tensor in (t for part in (whole, *held) for t in part.tensors):
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    train, valid_part, test_part = parts
    test_part = held[0] if held else test_part
    fingerprint = digest.hexdigest()[:16]
    return Splits(train, valid_part, test_part, fingerprint, "none")  # type: ignore[arg-type]


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


def _streamed(
    stored: Stored, binarize: Binarization, valid: float, test: float, seed: int, value_range: Any
) -> Splits:
    """The same of data larger than memory."""
    check_range(value_range)
    bits = np.random.PCG64(seed)
    rows = held_out(len(stored), stored.features, test, valid, bits)
    held = np.sort(np.concatenate(rows))
    found = scan(stored, held)
    limits = range_of(stored.dtype, found.high, value_range)
    shape = tuple(int(n) for n in stored.shape[1:])
    mean = scaled(torch.from_numpy(found.mean), limits).to(torch.get_default_dtype())
    stream = Stream(stored, mean, limits, held, binarize, seed)
    looked_at = Source(stored.name, np.concatenate([found.head, found.extremes]))
    train = dataset_of(looked_at, limits, shape)
    if binarize != "none":
        train = binary(train, binarize, np.random.PCG64(seed))
    train = replace(train, stream=stream)
    parts = [
        _held(found, np.searchsorted(held, part), stored.name, limits, shape, binarize, bits)
        for part in rows
    ]
    return Splits(train, parts[1], parts[0], found.fingerprint, binarize)


def _held(
    found: Scan,
    index: np.ndarray,
    name: str,
    limits: Any,
    shape: tuple[int, ...],
    binarize: str,
    bits: np.random.PCG64,
) -> Dataset | None:
    """Held-out data of a stream."""
    if not len(index):
        return None
    labels = None if found.labels is None else found.labels[index]
    data = dataset_of(Source(name, found.held[index], labels), limits, shape)
    return (
        data
        if binarize == "none"
        else binary(data, "static" if binarize == "dynamic" else binarize, bits)
    )


def _fingerprint(source: Source) -> str:
    digest = hashlib.sha256()
    for part in (source, source.test):
        if part is not None:
            digest.update(f"{part.values.dtype.str}{part.values.shape}".encode())
            digest.update(np.ascontiguousarray(part.values).tobytes())
    return digest.hexdigest()[:16]
