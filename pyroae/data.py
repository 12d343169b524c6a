"""Data ready for a model: checked, scaled, split, binarized, and served in batches whose order a seed fixes."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from pyroae.config import BINARIZATIONS
from pyroae.errors import ConfigError, DataError, unknown_name
from pyroae.processes import WHOLE, Share
from pyroae.sources import Source, read

Binarization = Literal["none", "threshold", "dynamic", "static"]


@dataclass(frozen=True)
class Dataset:
    """N data of d features each.

    x: `[N, d]`, floating point. shape: of one datum, for example (28, 28). labels: `[N]` where known.
    dynamic: x holds the probabilities of black pixels, and each batch is a fresh Bernoulli draw from them
    (Salakhutdinov & Murray 2008).
    """

    name: str
    x: Tensor
    shape: tuple[int, ...]
    labels: np.ndarray | None = None
    dynamic: bool = False

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def from_array(cls, values: Any, labels: Any = None, name: str = "array", value_range: Any = None) -> Self:
        """A dataset from an array or a tensor `[N, ...]`.

        uint8 values from 0 to 255 and booleans become 0 to 1, other values stay as they are; `value_range=(low, high)`
        maps to 0 to 1. Raises DataError for values that are not finite numbers, empty or constant data.

        >>> Dataset.from_array(np.array([[[0, 255], [51, 0]]], dtype=np.uint8))
        Dataset(name='array', x=tensor([[0.0000, 1.0000, 0.2000, 0.0000]]), shape=(2, 2), labels=None, dynamic=False)
        """
        source = read(values)
        source = replace(source, name=name, labels=source.labels if labels is None else np.asarray(labels))
        return cls(source.name, *_ready(source, _range(source, value_range)), source.labels)

    def subset(self, index: np.ndarray) -> Self:
        """The data at `index`, in that order."""
        labels = None if self.labels is None else self.labels[index]
        return replace(self, x=self.x[torch.from_numpy(index)], labels=labels)

    def first(self, count: int) -> Self:
        """The first `count` data, or all where there are fewer."""
        return self.subset(np.arange(min(count, len(self))))

    def to(self, device: torch.device | str) -> Self:
        """The same data with x on `device`."""
        return replace(self, x=self.x.to(device))

    @property
    def mean(self) -> Tensor:
        """Mean of each feature `[d]`."""
        return self.x.mean(0)


@dataclass(frozen=True)
class Arguments:
    """N data as the arguments of a program of one's own: tensors `[N, ...]` of any dtype, cut alike along the first dimension.

    Served in batches they are shuffled; in one batch of all N they keep their order, so that a program can number its data.
    Raises DataError where they are not of one length.
    """

    tensors: tuple[Tensor, ...]
    name: str = "data"

    def __post_init__(self) -> None:
        for other in (t for t in self.tensors if not isinstance(t, Tensor)):
            raise DataError(f"the arguments of a program are tensors, not {type(other).__name__}")
        shapes = [tuple(t.shape) for t in self.tensors]
        if len({s[:1] for s in shapes}) != 1 or not shapes[0]:
            raise DataError(f"the arguments of a program are tensors of one length N, a datum a row, not of shapes {shapes}")

    def __len__(self) -> int:
        return len(self.tensors[0])

    def to(self, device: torch.device | str) -> Self:
        """The same data on `device`."""
        return replace(self, tensors=tuple(t.to(device) for t in self.tensors))


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
    """Training, validation and test data from a known name, a file (.npy .npz .csv .parquet), an array or a tensor.

    test: share of the data held out; a source with a test set of its own keeps that one. valid: share of the rest.
    `seed` draws both.
    binarize: `threshold` at 1/2; `static`, one Bernoulli draw; `dynamic`, a fresh draw each time a batch is served,
    while validation and test data are one fixed draw, so that every evaluation sees the same data. The fixed draws and
    the splits come from the bits of PCG64 and are the same on every machine.
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
    if isinstance(source, Dataset) and source.dynamic and binarize == "none":
        binarize = "dynamic"
    raw = Source(source.name, source.x.numpy(), source.labels) if isinstance(source, Dataset) else read(source, data_root)
    shape = source.shape if isinstance(source, Dataset) else None
    limits = _range(raw, value_range)
    whole = _dataset(raw, limits, shape)
    bits = np.random.PCG64(seed)
    order = np.argsort(bits.random_raw(len(whole)), kind="stable")
    num_test = 0 if raw.test is not None else _share("test", test, len(whole))
    num_valid = _share("valid", valid, len(whole) - num_test)
    if num_valid + num_test >= len(whole):
        raise DataError(
            f"{len(whole)} data leave none to train on after {num_valid} for validation and {num_test} for the test"
        )
    parts = np.split(order, [len(order) - num_valid - num_test, len(order) - num_test])
    held_out = whole.subset(np.sort(parts[2])) if num_test else None
    if raw.test is not None:
        held_out = _dataset(raw.test, limits, shape)
    train = whole.subset(np.sort(parts[0]))
    held_in = whole.subset(np.sort(parts[1])) if num_valid else None
    if binarize != "none":
        train = _binary(train, binarize, bits)
        fixed = "static" if binarize == "dynamic" else binarize
        held_in, held_out = (part and _binary(part, fixed, bits) for part in (held_in, held_out))
    return Splits(train, held_in, held_out, _fingerprint(raw), binarize)


def batches(
    dataset: Dataset, batch_size: int, *, seed: int, epoch: int, device: torch.device | str | None = None
) -> Iterator[Tensor]:
    """The batches `[B, d]` of one epoch; order and Bernoulli draws are a function of `seed` and `epoch` alone.

    Data that live on `device` are gathered there by index; others are brought by a DataLoader.

    >>> data = Dataset.from_array(np.arange(5.0)[:, None])
    >>> served = list(batches(data, 2, seed=0, epoch=0))
    >>> [len(batch) for batch in served], sorted(torch.cat(served).flatten().tolist())
    ([2, 2, 1], [0.0, 1.0, 2.0, 3.0, 4.0])
    """
    return (x for (x,) in served(dataset, batch_size, seed=seed, epoch=epoch, device=device))


def served(
    data: Dataset | Arguments,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    device: torch.device | str | None = None,
    start: int = 0,
    share: Share = WHOLE,
) -> Iterator[tuple[Tensor, ...]]:
    """The batches of one epoch as the arguments of model and guide, in the order of `batches`; Arguments whole in their own.

    start: batches that are left out, as they were served before. share: the part of every batch that is served here.
    """
    tensors = data.tensors if isinstance(data, Arguments) else (data.x,)
    dynamic = isinstance(data, Dataset) and data.dynamic
    target = torch.device(device or tensors[0].device)
    noise = Noise(seed, epoch, target)
    index = _order(data, batch_size, seed, epoch)[start:]
    here = all(t.device == target or (t.device.type == target.type and target.index is None) for t in tensors)
    own = tuple(i[share.of(len(i))] for i in index)
    parts = (tuple(t.index_select(0, i.to(t.device)) for t in tensors) for i in own)
    for number, batch in enumerate(parts if here else _loaded(tensors, own, target), start):
        yield tuple(noise.binary(t, number, len(index[number - start]), share) for t in batch) if dynamic else batch


def rows_of_batch(data: Dataset | Arguments, batch_size: int, seed: int, epoch: int, number: int) -> list[int]:
    """Which of the data are in one batch of an epoch, that of `number` counted from 0; none where there is no such batch."""
    parts = _order(data, batch_size, seed, epoch)
    return parts[number].tolist() if number < len(parts) else []


def _order(data: Dataset | Arguments, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """The data of each batch, by their numbers."""
    order = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    whole = isinstance(data, Arguments) and batch_size >= len(data)
    return (torch.arange(len(data)) if whole else torch.randperm(len(data), generator=order)).split(batch_size)


class Noise:
    """Bernoulli draws of the batches of one epoch, each from a seed of its own: batch i needs none of those before it."""

    def __init__(self, seed: int, epoch: int, device: torch.device) -> None:
        self._seed, self._generator = epoch_seed(seed, epoch) + 1, torch.Generator(device)

    def binary(self, probability: Tensor, number: int, size: int, share: Share) -> Tensor:
        """A share of the draw for batch `number`, of `size` data; `torch.bernoulli` takes twice as long on a CPU."""
        self._generator.manual_seed((self._seed + number) % 2**32)
        shape = (size, *probability.shape[1:])
        whole = torch.rand(shape, generator=self._generator, dtype=probability.dtype, device=probability.device)
        return (whole[share.of(size)] < probability).to(probability.dtype)


def _loaded(tensors: tuple[Tensor, ...], index: tuple[Tensor, ...], target: torch.device) -> Iterator[tuple[Tensor, ...]]:
    pin = target.type == "cuda"
    chunks: Any = list(index)
    own = torch.Generator()  # else the loader draws a seed from torch's global generator

    def gather(i: Any) -> tuple[Tensor, ...]:
        return tuple(t[i] for t in tensors)

    loader: Any = torch.utils.data.DataLoader(chunks, batch_size=None, collate_fn=gather, pin_memory=pin, generator=own)
    return (tuple(t.to(target, non_blocking=True) for t in batch) for batch in loader)


def resident(data: Dataset | Arguments, device: torch.device) -> Dataset | Arguments:
    """The data on `device` where they take at most half of the memory that is free there, else as they are."""
    size = sum(t.nbytes for t in (data.tensors if isinstance(data, Arguments) else (data.x,)))
    if device.type == "cuda" and size > torch.cuda.mem_get_info(device)[0] / 2:
        return data
    return data.to(device)


def epoch_seed(seed: int, epoch: int) -> int:
    """What the order of an epoch is drawn from."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def _share(name: str, fraction: float, count: int) -> int:
    if not 0 <= fraction < 1:
        raise ConfigError(f"the {name} share must be in [0, 1), not {fraction}")
    return max(1, round(fraction * count)) if fraction else 0


def _range(source: Source, given: Any) -> tuple[float, float] | None:
    """The values that become 0 and 1: those given, or 0 and 255 where bytes are more than 0 and 1."""
    if given is None:
        grey = source.values.dtype == np.uint8 and source.values.size > 0 and source.values.max() > 1
        return (0.0, 255.0) if grey else None
    low, high = given
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ConfigError(f"value_range takes two numbers, LOW below HIGH, not {tuple(given)}")
    return float(low), float(high)


def _dataset(raw: Source, limits: tuple[float, float] | None, shape: tuple[int, ...] | None) -> Dataset:
    x, found = _ready(raw, limits)
    return Dataset(raw.name, x, shape or found, raw.labels)


def _ready(source: Source, limits: tuple[float, float] | None) -> tuple[Tensor, tuple[int, ...]]:
    """Values as a checked floating-point tensor [N, d], and the shape of one datum."""
    values, name = source.values, source.name
    if values.dtype.kind not in "buif":
        raise DataError(f"{name} holds {values.dtype} values; numbers are needed")
    if values.ndim == 1:
        raise DataError(f"{name} has the shape {values.shape}; a datum a row is needed, as in [N, d]")
    if values.size == 0 or values.ndim == 0:
        raise DataError(f"{name} is empty: its shape is {values.shape}")
    if source.labels is not None and len(source.labels) != len(values):
        raise DataError(f"{name} has {len(values)} data and {len(source.labels)} labels")
    shape = values.shape[1:]
    flat = values.reshape(len(values), -1)
    with np.errstate(over="ignore"):  # a value beyond single precision is refused below
        x = torch.from_numpy(np.array(flat, dtype=_DTYPES[torch.get_default_dtype()]))  # a copy, in native order
    _check_values(flat, x.numpy(), name)
    if limits is not None:
        x = (x - limits[0]) / (limits[1] - limits[0])
    return x, tuple(int(n) for n in shape)


_DTYPES = {torch.float32: np.float32, torch.float64: np.float64, torch.float16: np.float16}


def _check_values(given: np.ndarray, values: np.ndarray, name: str) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise DataError(f"{name} holds {given[row, column]} at row {row}, column {column}: every value must be finite")
    low, high = values.min(), values.max()
    if low == high and values.size > 1:
        raise DataError(f"{name} is constant: every value is {low}")


def _binary(dataset: Dataset, binarize: str, bits: np.random.PCG64) -> Dataset:
    x = dataset.x
    if x.min() < 0 or x.max() > 1:
        raise DataError(
            f"{dataset.name} has values from {x.min():g} to {x.max():g}: binarization needs values in [0, 1]; "
            "give its value_range"
        )
    if binarize == "dynamic":
        return replace(dataset, dynamic=True)
    if binarize == "threshold":
        return replace(dataset, x=(x > 0.5).to(x.dtype))
    rows = [(_uniform(bits, row.numel()) < row.double().numpy()) for row in x]
    return replace(dataset, x=torch.from_numpy(np.stack(rows)).to(x.dtype))


def _uniform(bits: np.random.PCG64, count: int) -> np.ndarray:
    return (bits.random_raw(count) >> np.uint64(11)) * 2.0**-53


def _fingerprint(source: Source) -> str:
    digest = hashlib.sha256()
    for part in (source, source.test):
        if part is not None:
            digest.update(f"{part.values.dtype.str}{part.values.shape}".encode())
            digest.update(np.ascontiguousarray(part.values).tobytes())
    return digest.hexdigest()[:16]
