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
    order = np.argsort(bits.random_raw(len(whole)), kind="stable")
    num_test = 0 if raw.test is not None else share_of("test", test, len(whole))
    num_valid = share_of("valid", valid, len(whole) - num_test)
    if num_valid + num_test >= len(whole):
        raise DataError(
            f"{len(whole)} data leave none to train on after {num_valid} for validation and {num_test} for the test"
        )
    parts = np.split(order, [len(order) - num_valid - num_test, len(order) - num_test])
    held_out = whole.subset(np.sort(parts[2])) if num_test else None
    if raw.test is not None:
        held_out = dataset_of(raw.test, limits, shape)
    train = whole.subset(np.sort(parts[0]))
    held_in = whole.subset(np.sort(parts[1])) if num_valid else None
    if binarize != "none":
        train = binary(train, binarize, bits)
        fixed = "static" if binarize == "dynamic" else binarize
        held_in, held_out = (part and binary(part, fixed, bits) for part in (held_in, held_out))
    return Splits(train, held_in, held_out, _fingerprint(raw), binarize)


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
