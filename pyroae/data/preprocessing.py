"""Values on their way from a file to a model: what is refused, scaled, made black and white."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyroae.errors import ConfigError, DataError

DTYPES = {torch.float32: np.float32, torch.float64: np.float64, torch.float16: np.float16}


def share_of(name: str, fraction: float, count: int) -> int:
    """So many of `count` data are a share that is not 0. Raises ConfigError for a share outside [0, 1)."""
    if not 0 <= fraction < 1:
        raise ConfigError(f"the {name} share must be in [0, 1), not {fraction}")
    return max(1, round(fraction * count)) if fraction else 0


def check_range(given: Any) -> None:
    """Raises ConfigError for a value_range that is not two numbers, the lower one first."""
    low, high = (0.0, 1.0) if given is None else given
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ConfigError(f"value_range takes two numbers, LOW below HIGH, not {tuple(given)}")


def range_of(dtype: np.dtype, largest: Any, given: Any) -> tuple[float, float] | None:
    """The values that become 0 and 1: those given, or 0 and 255 where bytes are more than 0 and 1."""
    check_range(given)
    if given is None:
        return (0.0, 255.0) if dtype == np.uint8 and largest > 1 else None
    return float(given[0]), float(given[1])


def check_layout(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Raises DataError for values that are no numbers, or not a datum a row."""
    if dtype.kind not in "buif":
        raise DataError(f"{name} holds {dtype} values; numbers are needed")
    if len(shape) == 1:
        raise DataError(f"{name} has the shape {shape}; a datum a row is needed, as in [N, d]")
    if not shape or 0 in shape:
        raise DataError(f"{name} is empty: its shape is {shape}")


def converted(flat: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """A floating-point copy in native order; a value beyond that precision becomes infinite."""
    with np.errstate(over="ignore"):
        return np.array(flat, dtype=DTYPES[dtype])


def scaled(x: Tensor, limits: tuple[float, float] | None) -> Tensor:
    """Values of which `limits` become 0 and 1."""
    return x if limits is None else (x - limits[0]) / (limits[1] - limits[0])


def check_finite(given: np.ndarray, values: np.ndarray, name: str, first: int = 0) -> None:
    """Raises DataError with the place of a value that is not finite. first: the number of the first row."""
    finite = np.isfinite(values)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise DataError(
            f"{name} holds {given[row, column]} at row {first + row}, column {column}: every value must be finite"
        )


def check_spread(name: str, low: Any, high: Any, size: int) -> None:
    """Raises DataError for several values that are all the same."""
    if low == high and size > 1:
        raise DataError(f"{name} is constant: every value is {low}")


def check_unit(name: str, low: Any, high: Any) -> None:
    """Raises DataError for values outside [0, 1], which cannot be made black and white."""
    if low < 0 or high > 1:
        raise DataError(
            f"{name} has values from {low:g} to {high:g}: binarization needs values in [0, 1]; give its value_range"
        )


def thresholded(x: Tensor) -> Tensor:
    """Black, 1, above a half."""
    return (x > 0.5).to(x.dtype)


def drawn(x: Tensor, bits: np.random.PCG64) -> np.ndarray:
    """A Bernoulli draw `[N, d]` of booleans from probabilities, the same on every machine."""
    found = np.empty(x.shape, np.bool_)
    for place, row in zip(found, x, strict=True):
        uniform = (bits.random_raw(row.numel()) >> np.uint64(11)) * 2.0**-53
        np.less(uniform, row.double().numpy(), out=place)
    return found
