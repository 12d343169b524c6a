"""Arrays of any library as NumPy arrays, before any scaling."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyroae.errors import DataError
from pyroae.runtime.files import words


@dataclass(frozen=True)
class Source:
    """Values as they were read, before any check or scaling.

    Attributes:
        name: The name in messages and reports.
        values: The values `[N, ...]`.
        labels: The labels `[N]`, or None.
        test: The test set, if the source has its own; its data have the shape of the training data.
        columns: The names of the features of a table, one for each; empty for other sources.
        limits: The values that are mapped to 0 and 1 unless the user gives others; None for the
            rule of `limits_of`.

    Raises:
        DataError: If the data of the test set have another shape than the training data, or exactly
            one of the two is of type uint8.
    """

    name: str
    values: np.ndarray
    labels: np.ndarray | None = None
    test: "Source | None" = None
    columns: tuple[str, ...] = ()
    limits: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.test is None:
            return
        train, test = self.values, self.test.values
        if train.shape[1:] != test.shape[1:]:
            raise DataError(
                f"{self.name} has training data of shape {train.shape} "
                f"and test data of shape {test.shape}"
            )
        if (train.dtype == np.uint8) != (test.dtype == np.uint8):
            raise DataError(
                f"{self.name} has training data of type {train.dtype} "
                f"and test data of type {test.dtype}"
            )


def labels_of(values: Any) -> np.ndarray:
    """Convert labels to an array.

    Args:
        values: The labels `[N]`, or a column of them `[N, 1]`.

    Returns:
        The labels `[N]`.

    Raises:
        DataError: If the labels have another shape, or are not an array.

    >>> labels_of([[3], [4]])
    array([3, 4])
    """
    labels = array_of(values)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(f"labels have the shape [N], one for each datum, not {labels.shape}")
    return labels


def array_of(values: Any) -> np.ndarray:
    """Convert an array, a tensor, a sparse matrix or nested lists to a NumPy array.

    Args:
        values: The values. A list of tensors is stacked; bfloat16 becomes float32.

    Returns:
        The values as a dense array in the memory of the CPU.

    Raises:
        DataError: If the values are not an array, are a data set or a loader of torch, or have
            masked elements.
    """
    if isinstance(values, torch.utils.data.Dataset | torch.utils.data.DataLoader):
        raise DataError(
            f"a {type(values).__name__} is not an array: "
            "give its values as one tensor [N, ...], or a TensorDataset"
        )
    if np.ma.is_masked(values):
        raise DataError("the array has masked elements: every value must be known")
    try:
        if isinstance(values, list) and values and all(map(torch.is_tensor, values)):
            values = torch.stack(values)
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu().to_dense().resolve_conj()
            return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        is_sparse = hasattr(values, "toarray")  # a sparse array of SciPy
        return np.asarray(values.toarray() if is_sparse else values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f"this {type(values).__name__} is not an array of numbers: {words(error)}"
        ) from None


LABELS = ("label", "labels", "target", "targets", "class", "y")
"""Names of labels, in upper or lower case."""
