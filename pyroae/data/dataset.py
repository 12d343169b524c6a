"""One data set: values that are checked, rescaled and, on request, binarized."""

from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pyroae.data.arrays import Source, labels_of
from pyroae.data.preprocessing import (
    bernoulli_draw,
    check_finite,
    check_layout,
    check_spread,
    check_unit,
    limits_of,
    rescaled,
    thresholded,
    to_floating,
)
from pyroae.data.sources import read
from pyroae.data.streaming import Stream
from pyroae.errors import DataError
from pyroae.runtime.short_repr import short_repr


@dataclass(frozen=True)
class Dataset:
    """N data of d features each.

    Attributes:
        name: The name in messages and reports.
        x: The values `[N, d]`, floating point. For data larger than memory, a few of their rows,
            which serve as a sample.
        shape: The shape of one datum, for example (28, 28); its product is d.
        labels: The labels `[N]`, or None.
        dynamic: Whether x holds the probabilities of ones, from which each batch is a new Bernoulli
            draw.
        stream: The rows on disk of data larger than memory; None for data in memory.
        channels: Where images have their channels, `first` or `last`, where that was asked for;
            None to find it from the shape.

    References:
        Salakhutdinov and Murray (2008), On the Quantitative Analysis of Deep Belief Networks, for
        dynamic binarization.
    """

    name: str
    x: Tensor
    shape: tuple[int, ...]
    labels: np.ndarray | None = None
    dynamic: bool = False
    stream: Stream | None = field(default=None, repr=False)
    channels: str | None = field(default=None, repr=False)

    __repr__ = short_repr()

    def __len__(self) -> int:
        return len(self.x if self.stream is None else self.stream)

    @classmethod
    def from_array(
        cls, values: Any, labels: Any = None, name: str = "array", value_range: Any = None
    ) -> Self:
        """Make a data set from an array, a tensor or another source without a test set.

        uint8 values from 0 to 255 and booleans are mapped to [0, 1]; other values are unchanged.

        Args:
            values: An array or a tensor `[N, ...]`, or another source that `load` accepts.
            labels: Labels `[N]`; by default those of `values`, if it has any.
            name: The name of the data set.
            value_range: The values (low, high) that are mapped to 0 and 1; None for the rule above.

        Returns:
            The data set, with the values flattened to `[N, d]`.

        Raises:
            DataError: If the values are not finite numbers, empty or constant, or the source has a
                test set, or labels are given twice.
            ConfigError: If `value_range` is not a pair of numbers in ascending order.

        >>> Dataset.from_array(np.array([[[0, 255], [51, 0]]], dtype=np.uint8))
        Dataset(
            name='array',
            x=Tensor[1, 4] float32 (0, 1, 0.2, 0),
            shape=(2, 2),
            labels=None,
            dynamic=False,
        )
        """
        source = read(values)
        if source.test is not None:
            raise DataError(
                f"{source.name} has a test set of its own: read it by load, which keeps it separate"
            )
        if source.labels is not None and labels is not None:
            raise DataError("labels are given twice: in the data, and as labels=")
        source = replace(
            source, name=name, labels=source.labels if labels is None else labels_of(labels)
        )
        return cls(
            source.name, *to_tensor(source, source_limits(source, value_range)), source.labels
        )

    def subset(self, index: np.ndarray) -> Self:
        """Select data by their row numbers.

        Args:
            index: The row numbers `[n]`.

        Returns:
            The n data in the order of `index`, with their labels.

        Raises:
            DataError: If the data are larger than memory; use `first` instead.
        """
        if self.stream is not None:
            raise DataError(
                f"the {len(self)} data of {self.name} are larger than memory: "
                "first(count) gives some of them"
            )
        labels = None if self.labels is None else self.labels[index]
        return replace(self, x=self.x[torch.from_numpy(index)], labels=labels)

    def first(self, count: int) -> Self:
        """Select the first data; those of a stream are read into memory.

        Args:
            count: The number of data; all are selected if there are fewer.

        Returns:
            The data in memory, with their labels.

        Raises:
            DataError: If the data do not fit into memory, or their file has changed or cannot be
                read.

        >>> Dataset.from_array([[1.0], [2.0], [3.0]]).first(2).x.tolist()
        [[1.0], [2.0]]
        """
        if self.stream is not None:
            x, labels = self.stream.first(min(count, len(self)))
            return replace(self, x=x, labels=labels, stream=None)
        return self.subset(np.arange(min(count, len(self))))

    def to(self, device: torch.device | str) -> Self:
        """Transfer the values to a device.

        Args:
            device: The device of `x` in the result.

        Returns:
            The same data set with `x` on `device`.
        """
        return replace(self, x=self.x.to(device))

    @property
    def mean(self) -> Tensor:
        """The mean of each feature, `[d]`; for data larger than memory, before binarization."""
        return self.x.mean(0) if self.stream is None else self.stream.mean


def dataset_of(
    source: Source, limits: tuple[float, float] | None, shape: tuple[int, ...] | None = None
) -> Dataset:
    """Check and rescale the values of a source.

    Args:
        source: The values `[N, ...]` and labels.
        limits: The values that are mapped to 0 and 1; None leaves the values unchanged.
        shape: The shape of one datum; by default that of the values.

    Returns:
        The data set, with values `[N, d]`.

    Raises:
        DataError: If the values are not finite numbers, empty or constant, or the number of labels
            is not N.
    """
    x, own_shape = to_tensor(source, limits)
    return Dataset(source.name, x, shape or own_shape, source.labels)


def source_limits(source: Source, value_range: Any) -> tuple[float, float] | None:
    """Return the limits that are mapped to 0 and 1, for values in memory.

    Args:
        source: The values `[N, ...]`.
        value_range: The limits of the user; None if there are none.

    Returns:
        Those of the source where it has some and the user gives none; else as `limits_of`.

    Raises:
        ConfigError: If `value_range` is not a pair of finite numbers in ascending order.
    """
    if value_range is None and source.limits is not None:
        return source.limits
    values = source.values
    largest = values.max() if values.dtype == np.uint8 and values.size else 0
    return limits_of(values.dtype, largest, value_range)


def to_tensor(source: Source, limits: tuple[float, float] | None) -> tuple[Tensor, tuple[int, ...]]:
    """Convert the values of a source to a checked floating-point tensor.

    Args:
        source: The values `[N, ...]` and labels.
        limits: The values that are mapped to 0 and 1; None leaves the values unchanged.

    Returns:
        The values `[N, d]` in torch's default type, and the shape of one datum.

    Raises:
        DataError: If the values are not finite numbers, empty or constant, or the number of labels
            is not N.
    """
    values, name = source.values, source.name
    check_layout(name, values.dtype, values.shape)
    if source.labels is not None and len(source.labels) != len(values):
        raise DataError(f"{name} has {len(values)} data and {len(source.labels)} labels")
    flat = values.reshape(len(values), -1)
    x = to_floating(flat, torch.get_default_dtype())
    check_finite(flat, x, name)
    check_spread(name, x.min(), x.max(), x.size)
    return rescaled(torch.from_numpy(x), limits), tuple(int(n) for n in values.shape[1:])


def binarized(dataset: Dataset, binarize: str, bits: np.random.PCG64) -> Dataset:
    """Binarize a data set.

    Args:
        dataset: Data with values in [0, 1].
        binarize: `dynamic` marks the values as probabilities from which each batch is drawn;
            `threshold` maps values above 1/2 to 1 and the others to 0; `static` makes one Bernoulli
            draw.
        bits: The source of the bits of static draws, used in the order of the rows.

    Returns:
        The binarized data set.

    Raises:
        DataError: If a value is outside [0, 1].
    """
    x = dataset.x
    check_unit(dataset.name, x.min(), x.max())
    if binarize == "dynamic":
        return replace(dataset, dynamic=True)
    if binarize == "threshold":
        return replace(dataset, x=thresholded(x))
    return replace(dataset, x=torch.from_numpy(bernoulli_draw(x, bits)).to(x.dtype))
