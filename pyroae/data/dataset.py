"""One data set: values that are checked, rescaled and, on request, binarized."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from pyroae.data.arrays import Source, array_of
from pyroae.data.frames import matched, to_frame
from pyroae.data.missing import hot_deck, keep_missing
from pyroae.data.preprocessing import (
    bernoulli_draw,
    check_finite,
    check_layout,
    check_precision,
    check_spread,
    check_unit,
    limits_of,
    range_of,
    rescaled,
    thresholded,
    to_floating,
)
from pyroae.data.sources import read
from pyroae.data.streaming import Stream
from pyroae.errors import DataError
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import memory_text, shape_text

if TYPE_CHECKING:
    import pandas as pd

    from pyroae.data.standardizing import Standardization


@dataclass(frozen=True, repr=False)
class Dataset(Shown):
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
        condition: What x is conditioned on, c `[N, C]`, in the type of x; None without a condition.
        condition_names: The name of each element of c: a class or a column; empty if unknown.
        missing: Whether values may be missing, NaN in x.
        channels: Where images have their channels, `first` or `last`, where that was asked for;
            None to find it from the shape.
        columns: The names of the d features of a table; empty for other data.
        categories: The categories of each column of codes 0, 1, …, by the name of the column.
        standardization: How the values were standardized; None for values as stored.

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
    condition: Tensor | None = field(default=None, repr=False)
    condition_names: tuple[str, ...] = field(default=(), repr=False)
    missing: bool = field(default=False, repr=False)
    channels: str | None = field(default=None, repr=False)
    columns: tuple[str, ...] = field(default=(), repr=False)
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    standardization: "Standardization | None" = field(default=None, repr=False)

    def _overview(self) -> Overview:
        rows = [("shape", shape_text(self.shape)), *self.facts.items()]
        return Overview([self.name, f"N={len(self)}", f"d={self.x.shape[1]}"], rows)

    @property
    def facts(self) -> dict[str, str]:
        """The type of values, labels and condition in words, without a pass over the data."""
        values = ["drawn from x in each batch"] if self.dynamic else []
        values += ["streamed from disk"] if self.stream is not None else []
        values += ["with missing values"] if self.missing else []
        size = memory_text(self.x.numel() * self.x.element_size())
        labels, c = self.labels, self.condition
        return {
            "x": ", ".join([str(self.x.dtype).removeprefix("torch."), size, *values]),
            "labels": "none" if labels is None else str(labels.dtype),
            "condition": "none" if c is None else f"C={c.shape[1]}",
        }

    def __len__(self) -> int:
        return len(self.x if self.stream is None else self.stream)

    @classmethod
    def from_array(
        cls,
        values: Any,
        labels: Any = None,
        name: str = "array",
        value_range: Any = None,
        missing: bool = False,
        like: "Dataset | None" = None,
        scale: str | None = None,
    ) -> Self:
        """Make a data set from an array, a tensor or another source without a test set.

        Grey levels of type uint8 are mapped from [0, 255] to [0, 1]; other values are unchanged.

        Args:
            values: An array or a tensor `[N, ...]`, or another source that `load` accepts.
            labels: Labels `[N]`, or the name of the column that holds them; by default those of
                `values`, if it has any.
            name: The name of the data set.
            value_range: The values (low, high) that are mapped to 0 and 1; (0, 1) leaves all values
                as stored. None for the rule above.
            missing: Whether NaN is a missing value; else it is refused.
            like: Other data of a table, such as those of a training, whose order of columns and
                codes of categories the new data receive; None to find their own.
            scale: `255` divides values by 255; `none` leaves them as stored.

        Returns:
            The data set, with the values flattened to `[N, d]`.

        Raises:
            DataError: If the values are not finite numbers, empty or constant, or the source has a
                test set, or labels are given twice, or a column or category is not in `like`.
            ConfigError: If `value_range` is not a pair of numbers in ascending order.

        >>> Dataset.from_array(np.array([[[0, 255], [51, 0]]], dtype=np.uint8))
        Dataset(array, N=1, d=4)
          shape       2 × 2
          x           float32, 16 bytes
          labels      none
          condition   none
          attributes  name, x, shape, labels, dynamic, stream, condition, condition_names, missing,
                      channels, columns, categories, standardization
        """
        source = read(values, labels=labels)
        if source.test is not None or source.valid is not None:
            raise DataError(
                f"{source.name} has a test set of its own: read it by load, which keeps it separate"
                if source.test is not None
                else f"{source.name} has validation data of its own: read it by load"
            )
        source = replace(source, name=name)
        if like is not None:
            source = matched(source, like, "new")
        limits = source_limits(source, range_of(scale, value_range))
        return dataset_of(source, limits, missing=missing)  # type: ignore[return-value]

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
        rows = torch.from_numpy(index)
        return replace(
            self,
            x=self.x[rows],
            labels=None if self.labels is None else self.labels[index],
            condition=None if self.condition is None else self.condition[rows],
        )

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
            The same data set with `x` and the condition on `device`.
        """
        condition = None if self.condition is None else self.condition.to(device)
        return replace(self, x=self.x.to(device), condition=condition)

    def conditioned_on(self, c: Any, names: tuple[str, ...] = ()) -> Self:
        """Give each datum a condition.

        Args:
            c: The conditions, `[N, C]`.
            names: The name of each element of c.

        Returns:
            The same data with the condition.

        Raises:
            DataError: If the data are larger than memory, or c does not have one row of finite
                numbers for each datum.

        >>> data = Dataset.from_array([[1.0], [2.0]]).conditioned_on([[0.0, 1.0], [1.0, 0.0]])
        >>> [tuple(t.shape) for t in data.tensors]
        [(2, 1), (2, 2)]
        """
        if self.stream is not None:
            raise DataError(
                f"the {len(self)} data of {self.name} are larger than memory: they cannot have a "
                "condition"
            )
        values = array_of(c)
        if values.ndim != 2 or len(values) != len(self) or not values.shape[1]:
            raise DataError(
                f"the condition of {self.name} has the shape {values.shape}; it needs a row for "
                f"each datum, [{len(self)}, C]"
            )
        if values.dtype.kind not in "buif" or not np.isfinite(values).all():
            raise DataError(
                f"the condition of {self.name} holds values that are not finite numbers"
            )
        condition = torch.tensor(values, dtype=self.x.dtype, device=self.x.device)
        return replace(self, condition=condition, condition_names=names)

    def to_frame(self, values: Any = None) -> "pd.DataFrame":
        """Make a table of values, with the names of the columns and texts for categories.

        Args:
            values: Values `[n, d]` in the columns of these data, such as reconstructions or
                imputations; by default x.

        Returns:
            A pandas DataFrame; a column of codes becomes one of dtype category, missing where the
            code is NaN or no category.

        Raises:
            DataError: If the values have another number of columns, or the data are larger than
                memory.

        >>> Dataset.from_array({"age": [3, 4], "sex": ["m", "f"]}).to_frame()
           age sex
        0  3.0   m
        1  4.0   f
        """
        if values is None and self.stream is not None:
            raise DataError(f"the {len(self)} data of {self.name} are larger than memory")
        array, features = array_of(self.x if values is None else values), math.prod(self.shape)
        if array.ndim != 2 or array.shape[1] != features:
            raise DataError(
                f"values of shape {array.shape} are not of the {features} columns of {self.name}"
            )
        return to_frame(array, self.columns, self.categories)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The arguments of a program: x `[N, d]`, and c `[N, C]` if there is a condition."""
        return (self.x,) if self.condition is None else (self.x, self.condition)

    @property
    def log_units(self) -> Tensor | None:
        """What is subtracted from log p(x) for a density in the units of the source, `[N]`, nats.

        None where the values are not standardized. See `Standardization.log_units`.
        """
        by = self.standardization
        return None if by is None else by.log_units(self.x)

    @property
    def mean(self) -> Tensor:
        """The mean of each feature, `[d]`; for data larger than memory, before binarization.

        Missing values are left out.
        """
        if self.stream is not None:
            return self.stream.mean
        return self.x.nanmean(0) if self.missing else self.x.mean(0)

    @property
    def filled(self) -> Tensor:
        """X without missing values, `[N, d]`: these are random observed ones of their column.

        They are 0 in a column without any observed value.
        """
        return hot_deck(self.x) if self.missing else self.x


def dataset_of(
    source: Source,
    limits: tuple[float, float] | None,
    shape: tuple[int, ...] | None = None,
    missing: bool = False,
) -> Dataset:
    """Check and rescale the values of a source.

    Args:
        source: The values `[N, ...]` and labels.
        limits: The values that are mapped to 0 and 1; None leaves the values unchanged.
        shape: The shape of one datum; by default that of the values.
        missing: Whether NaN is a missing value.

    Returns:
        The data set, with values `[N, d]`.

    Raises:
        DataError: If the values are not finite numbers, empty or constant, or the number of labels
            is not N, or all values are missing.
    """
    for column, levels in source.categories.items():
        if len(levels) < 2:
            raise DataError(
                f"column '{column}' of {source.name} has {len(levels)} categories, and at least 2 "
                "are needed: leave it out"
            )
    x, own_shape = to_tensor(source, limits, missing)
    return Dataset(
        source.name,
        x,
        shape or own_shape,
        source.labels,
        missing=missing,
        columns=source.columns,
        categories=source.categories,
    )


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
    return limits_of(source.name, values.dtype, values.shape, largest, value_range)


def to_tensor(
    source: Source, limits: tuple[float, float] | None, missing: bool = False
) -> tuple[Tensor, tuple[int, ...]]:
    """Convert the values of a source to a checked floating-point tensor.

    Args:
        source: The values `[N, ...]` and labels.
        limits: The values that are mapped to 0 and 1; None leaves the values unchanged.
        missing: Whether NaN is a missing value.

    Returns:
        The values `[N, d]` in torch's default type, and the shape of one datum.

    Raises:
        DataError: If the values are not finite numbers, empty or constant, the limits map one
            beyond the range of the type, or the number of labels is not N.
    """
    values, name = source.values, source.name
    check_layout(name, values.dtype, values.shape)
    if source.labels is not None and len(source.labels) != len(values):
        raise DataError(f"{name} has {len(values)} data and {len(source.labels)} labels")
    flat = values.reshape(len(values), -1)
    x = to_floating(flat, torch.get_default_dtype())
    observed = x[~np.isnan(x)] if missing else x
    if not observed.size:
        raise DataError(f"{name} has no observed value")
    known = np.where(np.isnan(x), 0, x) if missing else x
    check_finite(flat, known, name, columns=source.columns)
    check_spread(name, observed.min(), observed.max(), observed.size)
    check_precision(flat, x, name, source.columns)
    mapped = rescaled(torch.from_numpy(x), limits)
    if mapped.isinf().any():
        raise DataError(
            f"the value_range {limits} of {name} maps values from {observed.min()} to "
            f"{observed.max()} beyond the range of {x.dtype}"
        )
    return mapped, tuple(int(n) for n in values.shape[1:])


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
    x, filled = dataset.x, dataset.filled
    check_unit(dataset.name, filled.min(), filled.max())
    if binarize == "dynamic":
        return replace(dataset, dynamic=True)
    changed = (
        thresholded(x)
        if binarize == "threshold"
        else torch.from_numpy(bernoulli_draw(x, bits)).to(x.dtype)
    )
    return replace(dataset, x=keep_missing(x, changed) if dataset.missing else changed)
