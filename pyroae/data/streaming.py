"""The rows of a file larger than memory, rescaled and binarized slice by slice."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyroae.data.preprocessing import bernoulli_draw, rescaled, thresholded, to_floating
from pyroae.data.storage import IN_MEMORY, Reader, Rows, Stored
from pyroae.errors import DataError

AT_ONCE = 2**18
"""The number of values that are binarized at once."""


@dataclass(frozen=True, eq=False)
class Stream:
    """Training data on disk: all rows of a file except those held out.

    Attributes:
        stored: The file, N rows of d values.
        mean: The mean of each feature, `[d]`, after rescaling and before binarization.
        limits: The stored values that are mapped to 0 and 1; None leaves the values unchanged.
        held_out: The numbers of the rows for validation and test, `[H]`, in ascending order.
        binarize: `threshold`, or `static`: one Bernoulli draw per value, which depends on `seed`
            and the number of the row. Any other name leaves the values unchanged.
        seed: The seed of static draws.
    """

    stored: Stored
    mean: Tensor
    limits: tuple[float, float] | None
    held_out: np.ndarray
    binarize: str
    seed: int

    def __len__(self) -> int:
        return len(self.stored) - len(self.held_out)

    @property
    def is_binary(self) -> bool:
        """Whether the values that a window holds are binarized."""
        return self.binarize in ("threshold", "static")

    def first(self, count: int) -> tuple[Tensor, np.ndarray | None]:
        """Read the first rows into memory.

        Args:
            count: The number of rows.

        Returns:
            The values `[count, d]`, and the labels `[count]` if the file has labels, else None.

        Raises:
            DataError: If the rows do not fit into memory, or the file has changed or cannot be
                read.
        """
        if count * self.stored.features * 4 > IN_MEMORY:
            raise DataError(
                f"{count} data of {self.stored.name} do not fit into {IN_MEMORY // 2**20} MiB: "
                "ask for fewer of them (num_data)"
            )
        parts, labels, missing = [], [], count
        with self.stored.opened(labels=True) as reader:
            for number in range(len(self.stored.bounds) - 1):
                rows = self.slice(reader, number)
                parts.append(self.to_tensor(rows.values[:missing]))
                labels += [] if rows.labels is None else [rows.labels[:missing]]
                missing -= len(parts[-1])
                if not missing:
                    break
        return torch.cat(parts), np.concatenate(labels) if labels else None

    def slice(self, reader: Reader, number: int) -> Rows:
        """Read the training rows of a slice.

        Args:
            reader: An open reader of the file.
            number: The number of the slice.

        Returns:
            The values `[n, d]`, binarized if `is_binary` and as stored otherwise, and their labels.

        Raises:
            DataError: If the file has changed or cannot be read.
        """
        rows, first = reader.read(number), int(self.stored.bounds[number])
        flat, own = rows.values.reshape(len(rows.values), -1), self.rows_in(number) - first
        values = self._binarized(flat, first) if self.is_binary else flat
        return Rows(values[own], None if rows.labels is None else rows.labels[own])

    def rows_in(self, number: int) -> np.ndarray:
        """Return the numbers of the training rows of a slice.

        Args:
            number: The number of the slice.

        Returns:
            The row numbers `[n]` within the file, in ascending order.
        """
        first, stop = self.stored.bounds[number : number + 2].tolist()
        begin, end = np.searchsorted(self.held_out, (first, stop))
        return np.delete(np.arange(first, stop), self.held_out[begin:end] - first)

    def to_tensor(self, values: np.ndarray) -> Tensor:
        """Convert values of `slice` to the input of a model.

        Args:
            values: Values `[n, d]`, as `slice` returns them.

        Returns:
            The values `[n, d]` in torch's default type, rescaled by `limits`.
        """
        x = torch.from_numpy(to_floating(values, torch.get_default_dtype()))
        return x if self.is_binary else rescaled(x, self.limits)

    def _binarized(self, flat: np.ndarray, first: int) -> np.ndarray:
        """Binarize `AT_ONCE` values at a time: a double takes eight times the memory of a byte."""
        result, rows = np.empty(flat.shape, np.uint8), max(1, AT_ONCE // flat.shape[1])
        bits = np.random.PCG64([self.seed, 1]).advance(first * flat.shape[1])
        for at in range(0, len(flat), rows):
            values = rescaled(
                torch.from_numpy(to_floating(flat[at : at + rows], torch.float64)), self.limits
            )
            result[at : at + rows] = (
                thresholded(values)
                if self.binarize == "threshold"
                else bernoulli_draw(values, bits)
            )
        return result
