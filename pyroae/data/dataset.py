"""One set of data: values checked and scaled, black and white where that is asked for."""

from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pyroae.data.preprocessing import (
    check_finite,
    check_layout,
    check_spread,
    check_unit,
    converted,
    drawn,
    range_of,
    scaled,
    thresholded,
)
from pyroae.data.sources import Source, labels_of, read
from pyroae.data.streaming import Stream
from pyroae.errors import DataError


@dataclass(frozen=True)
class Dataset:
    """N data of d features each.

    x: `[N, d]`, floating point. shape: of one datum, for example (28, 28). labels: `[N]` where known.
    dynamic: x holds the probabilities of black pixels, and each batch is a fresh Bernoulli draw from them
    (Salakhutdinov & Murray 2008). stream: where the data are larger than memory; x is then a few of them, to be looked at.
    """

    name: str
    x: Tensor
    shape: tuple[int, ...]
    labels: np.ndarray | None = None
    dynamic: bool = False
    stream: Stream | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.x if self.stream is None else self.stream)

    @classmethod
    def from_array(
        cls, values: Any, labels: Any = None, name: str = "array", value_range: Any = None
    ) -> Self:
        """A dataset from an array or a tensor `[N, ...]`, or anything else that `load` takes and that has no test set.

        uint8 values from 0 to 255 and booleans become 0 to 1, other values stay as they are; `value_range=(low, high)`
        maps to 0 to 1. Raises DataError for values that are not finite numbers, empty or constant data.

        >>> Dataset.from_array(np.array([[[0, 255], [51, 0]]], dtype=np.uint8))
        Dataset(name='array', x=tensor([[0.0000, 1.0000, 0.2000, 0.0000]]), shape=(2, 2), labels=None, dynamic=False)
        """
        source = read(values)
        if source.test is not None:
            raise DataError(
                f"{source.name} has a test set of its own: read it by load, which keeps the two apart"
            )
        if source.labels is not None and labels is not None:
            raise DataError("labels are given twice: in the data, and as labels=")
        source = replace(
            source, name=name, labels=source.labels if labels is None else labels_of(labels)
        )
        return cls(source.name, *ready(source, range_in(source, value_range)), source.labels)

    def subset(self, index: np.ndarray) -> Self:
        """The data at `index`, in that order. Raises DataError for data larger than memory, of which `first` gives some."""
        if self.stream is not None:
            raise DataError(
                f"the {len(self)} data of {self.name} are larger than memory: first(count) gives some of them"
            )
        labels = None if self.labels is None else self.labels[index]
        return replace(self, x=self.x[torch.from_numpy(index)], labels=labels)

    def first(self, count: int) -> Self:
        """The first `count` data, or all where there are fewer. Raises DataError where they do not fit into memory."""
        if self.stream is not None:
            x, labels = self.stream.first(min(count, len(self)))
            return replace(self, x=x, labels=labels, stream=None)
        return self.subset(np.arange(min(count, len(self))))

    def to(self, device: torch.device | str) -> Self:
        """The same data with x on `device`."""
        return replace(self, x=self.x.to(device))

    @property
    def mean(self) -> Tensor:
        """Mean of each feature `[d]`; of data larger than memory, before they are made black and white."""
        return self.x.mean(0) if self.stream is None else self.stream.mean


def dataset_of(
    raw: Source, limits: tuple[float, float] | None, shape: tuple[int, ...] | None = None
) -> Dataset:
    """Raw values, checked and scaled. shape: of one datum where it is not that of the values."""
    x, found = ready(raw, limits)
    return Dataset(raw.name, x, shape or found, raw.labels)


def range_in(source: Source, given: Any) -> tuple[float, float] | None:
    """As `range_of`, of values in memory."""
    values = source.values
    return range_of(
        values.dtype, values.max() if values.dtype == np.uint8 and values.size else 0, given
    )


def ready(source: Source, limits: tuple[float, float] | None) -> tuple[Tensor, tuple[int, ...]]:
    """Values as a checked floating-point tensor [N, d], and the shape of one datum."""
    values, name = source.values, source.name
    check_layout(name, values.dtype, values.shape)
    if source.labels is not None and len(source.labels) != len(values):
        raise DataError(f"{name} has {len(values)} data and {len(source.labels)} labels")
    flat = values.reshape(len(values), -1)
    x = converted(flat, torch.get_default_dtype())
    check_finite(flat, x, name)
    check_spread(name, x.min(), x.max(), x.size)
    return scaled(torch.from_numpy(x), limits), tuple(int(n) for n in values.shape[1:])


def binary(dataset: Dataset, binarize: str, bits: np.random.PCG64) -> Dataset:
    """The data in black and white; `static` draws take their bits in the order of the rows."""
    x = dataset.x
    check_unit(dataset.name, x.min(), x.max())
    if binarize == "dynamic":
        return replace(dataset, dynamic=True)
    if binarize == "threshold":
        return replace(dataset, x=thresholded(x))
    return replace(dataset, x=torch.from_numpy(drawn(x, bits)).to(x.dtype))
