"""Validate, rescale and binarize data."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyroae.config import SCALES
from pyroae.errors import ConfigError, DataError, UnknownScaleError, unknown_name

DTYPES = {torch.float32: np.float32, torch.float64: np.float64, torch.float16: np.float16}
"""The NumPy type of each floating-point type of torch that data are stored in."""


def held_out_count(name: str, fraction: float, count: int) -> int:
    """Return the number of data in a held-out part.

    Args:
        name: The name of the part in the error message, `valid` or `test`.
        fraction: The fraction of the data, in [0, 1).
        count: The number of data.

    Returns:
        `fraction * count`, rounded to an integer, but at least 1; 0 if `fraction` is 0.

    Raises:
        ConfigError: If `fraction` is outside [0, 1).

    >>> [held_out_count("test", 0.1, count) for count in (2, 28)], held_out_count("test", 0.0, 28)
    ([1, 3], 0)
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"the {name} share must be in [0, 1), not {fraction}")
    return max(1, round(fraction * count)) if fraction else 0


SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
"""The positive numbers of single precision, in which data are rescaled, lie between these."""


def check_range(value_range: Any) -> None:
    """Check a pair of limits.

    Args:
        value_range: The lower and the upper limit, or None.

    Raises:
        ConfigError: If the limits are not finite in single precision, or the first is not below the
            second.
    """
    low, high = (0.0, 1.0) if value_range is None else value_range
    if not (high - low >= SMALLEST and max(abs(low), abs(high), high - low) <= LARGEST):
        raise ConfigError(
            f"value_range takes two numbers, LOW below HIGH, not {tuple(value_range)}"
        )


SMALLEST_SIDE, GREY_IMAGES, GREY_ROWS = 8, 64, 200
"""The side of square images that are flattened, and the largest value from which on uint8 values
are grey levels: of images `[N, H, W]`, and of rows `[N, d]`."""


def is_grey(shape: tuple[int, ...], largest: Any) -> bool:
    """Tell whether uint8 values are grey levels from 0 to 255, and not counts or codes.

    They are if the largest is 255; or at least 64 in images `[N, H, W, ...]`; or at least 200 in
    rows `[N, d]` where d is the size of a square image of 1 or 3 channels, from 8×8.

    Args:
        shape: The shape of all values, `(N, ...)`.
        largest: The largest value.

    Returns:
        Whether they are.

    >>> is_grey((100, 28, 28), 254), is_grey((100, 784), 254), is_grey((100, 50), 37)
    (True, True, False)
    """
    if len(shape) > 2:
        return bool(largest >= GREY_IMAGES)
    sides = [math.isqrt(shape[1] // c) for c in (1, 3)] if len(shape) == 2 else []
    is_square = any(
        side >= SMALLEST_SIDE and side * side * c == shape[1]
        for side, c in zip(sides, (1, 3), strict=False)
    )
    return bool(largest == 255 or (is_square and largest >= GREY_ROWS))


def range_of(scale: str | None, value_range: Any) -> Any:
    """Return the limits that a scale stands for.

    Args:
        scale: `none` or `standard`, which leave values as stored at first; `255`; or None.
        value_range: The limits of the user; None if there are none.

    Returns:
        (0, 1), which leaves values as stored, (0, 255), or `value_range` where there is no scale.

    Raises:
        ConfigError: If both are given, or there is no such scale.

    >>> range_of("255", None), range_of(None, (0, 16))
    ((0.0, 255.0), (0, 16))
    """
    if scale is None:
        return value_range
    if scale not in SCALES:
        raise unknown_name("scale", scale, SCALES)
    if value_range is not None:
        raise ConfigError(f"give either the scale {scale} or a value_range, not both")
    return (0.0, 255.0) if scale == "255" else (0.0, 1.0)


def limits_of(
    name: str, dtype: np.dtype, shape: tuple[int, ...], largest: Any, value_range: Any
) -> tuple[float, float] | None:
    """Return the limits that are mapped to 0 and 1.

    Args:
        name: The name of the data in the error message.
        dtype: The type of the stored values.
        shape: The shape of all values, `(N, ...)`.
        largest: The largest stored value; it is used for uint8 values only.
        value_range: The limits of the user; None if there are none.

    Returns:
        `value_range` if given, where (0, 1) leaves the values unchanged; else (0, 255) for uint8
        values that are grey levels, as in `is_grey`; else None, which leaves the values unchanged.

    Raises:
        UnknownScaleError: If uint8 values of which one exceeds 1 may be grey levels, counts or
            codes.
        ConfigError: If `value_range` is not a pair of finite numbers in ascending order.
    """
    check_range(value_range)
    if value_range is not None:
        return float(value_range[0]), float(value_range[1])
    if dtype != np.uint8 or largest <= 1:
        return None
    if not is_grey(shape, largest):
        raise UnknownScaleError(
            f"{name} holds uint8 values up to {largest:g}, which may be grey levels, counts or "
            "codes: give the scale 255 to divide them by 255, or the scale none to leave them as "
            "stored"
        )
    return 0.0, 255.0


def check_layout(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Check that an array is numeric, not empty, and has one row per datum.

    Args:
        name: The name of the data in the error message.
        dtype: The type of the values.
        shape: The shape of the array, `(N, ...)`.

    Raises:
        DataError: If the values are not real numbers, or the shape is not `[N, ...]` with at least
            two dimensions, none of which is 0.
    """
    if dtype.kind not in "buif":
        raise DataError(f"{name} holds {dtype} values; numbers are needed")
    if len(shape) == 1:
        raise DataError(f"{name} has the shape {shape}; one row per datum is needed, as in [N, d]")
    if not shape or 0 in shape:
        raise DataError(f"{name} is empty: its shape is {shape}")


def to_floating(flat: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Copy values to a floating-point array in native byte order.

    Args:
        flat: The values `[N, d]`.
        dtype: The floating-point type of the copy; one of `DTYPES`.

    Returns:
        The copy `[N, d]`. A value that exceeds the range of `dtype` becomes infinite.
    """
    with np.errstate(over="ignore"):
        return np.array(flat, dtype=DTYPES[dtype])


def rescaled(x: Tensor, limits: tuple[float, float] | None) -> Tensor:
    """Map values linearly so that the limits become 0 and 1.

        (x − low) / (high − low)

    Args:
        x: The values, of any shape.
        limits: The pair (low, high); None leaves `x` unchanged.

    Returns:
        The mapped values, in the shape of `x`.

    >>> rescaled(torch.tensor([0.0, 4.0, 16.0]), (0.0, 16.0))
    tensor([0.0000, 0.2500, 1.0000])
    """
    return x if limits is None else (x - limits[0]) / (limits[1] - limits[0])


def check_finite(
    stored: np.ndarray,
    values: np.ndarray,
    name: str,
    first: int = 0,
    columns: Sequence[str] = (),
) -> None:
    """Check that all values are finite.

    Args:
        stored: The values as they are stored, `[n, d]`; the error message quotes them.
        values: The same values in floating point, `[n, d]`; these are checked.
        name: The name of the data in the error message.
        first: The number of the first row within the data set.
        columns: The names of the features, d of them; empty if they have none.

    Raises:
        DataError: If a value is NaN or infinite; the message has its row and column.
    """
    finite = np.isfinite(values)
    if finite.all():
        return
    row, column = np.argwhere(~finite)[0]
    value, place = stored[row, column], f"column {column}"
    if len(columns) == values.shape[1]:
        place += f" ('{columns[column]}')"
    hint = "; missing=True (--missing) takes NaN as a missing value" if np.isnan(value) else ""
    raise DataError(
        f"{name} holds {value} at row {first + row}, {place}: every value must be finite{hint}"
    )


def check_spread(name: str, low: Any, high: Any, size: int) -> None:
    """Check that data are not constant.

    Args:
        name: The name of the data in the error message.
        low: The smallest value.
        high: The largest value.
        size: The number of values. A single value is accepted.

    Raises:
        DataError: If there are several values and all are equal.
    """
    if low == high and size > 1:
        raise DataError(f"{name} is constant: every value is {low}")


COARSE = 0.01
"""The largest rounding error of a column as a share of its standard deviation."""


def check_precision(
    stored: np.ndarray, values: np.ndarray, name: str, columns: Sequence[str] = ()
) -> None:
    """Warn of columns whose differences are lost in floating point, such as times since 1970.

    Args:
        stored: The values as they are stored, `[N, d]`.
        values: The same values in the floating-point type of the data, `[N, d]`; NaN where missing.
        name: The name of the data in the warning.
        columns: The names of the features, d of them; empty if they have none.

    >>> times = 1.6e9 + np.arange(20.0)[:, None]
    >>> with warnings.catch_warnings(record=True) as found:
    ...     warnings.simplefilter("always")
    ...     check_precision(times, times.astype(np.float32), "times")
    >>> [str(one.message).partition(":")[0] for one in found]
    ['times, column 0 loses its differences in float32']
    """
    if stored.dtype.kind not in "iuf" or stored.dtype.itemsize <= min(2, values.itemsize):
        return
    low, high = np.fmin.reduce(values, 0), np.fmax.reduce(values, 0)
    error = np.maximum(np.abs(low), np.abs(high)) * float(np.finfo(values.dtype).eps) / 2
    near = np.flatnonzero(error > COARSE * (high.astype(np.float64) - low) / 2)
    for column in near.tolist():
        exact = stored[:, column].astype(np.float64)
        spread, rounding = np.nanstd(exact), np.fmax.reduce(np.abs(exact - values[:, column]))
        if spread > 0 and rounding > COARSE * spread:
            named = f" ('{columns[column]}')" if len(columns) == values.shape[1] else ""
            warnings.warn(
                f"{name}, column {column}{named} loses its differences in {values.dtype}: they are "
                "small beside its values; subtract its smallest value first",
                stacklevel=2,
            )


def check_unit(name: str, low: Any, high: Any) -> None:
    """Check that values can be binarized, which needs values in [0, 1].

    Args:
        name: The name of the data in the error message.
        low: The smallest value.
        high: The largest value.

    Raises:
        DataError: If `low` is negative or `high` exceeds 1.
    """
    if low < 0 or high > 1:
        raise DataError(
            f"{name} has values from {low:g} to {high:g}: "
            "binarization needs values in [0, 1]; give its value_range"
        )


def thresholded(x: Tensor) -> Tensor:
    """Binarize values at 1/2.

    Args:
        x: The values, of any shape.

    Returns:
        1 where `x` exceeds 1/2 and 0 elsewhere, in the shape and type of `x`.

    >>> thresholded(torch.tensor([0.2, 0.5, 0.7]))
    tensor([0., 0., 1.])
    """
    return (x > 0.5).to(x.dtype)


def bernoulli_draw(x: Tensor, bits: np.random.PCG64) -> np.ndarray:
    """Draw from Bernoulli distributions, with the same result on every machine.

    Args:
        x: The probabilities `[N, d]`.
        bits: The source of random bits; 64 of them are used per value, in the order of the rows.

    Returns:
        The draws `[N, d]`, booleans.
    """
    draws = np.empty(x.shape, np.bool_)
    for out, row in zip(draws, x, strict=True):
        uniform = (bits.random_raw(row.numel()) >> np.uint64(11)) * 2.0**-53
        np.less(uniform, row.double().numpy(), out=out)
    return draws
