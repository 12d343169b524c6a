"""Checks of the tensors that are given to an autoencoder."""

from typing import Any

import torch
from torch import Tensor

from pyroae.errors import DataError


def check_numbers(name: str, values: Any) -> None:
    """Refuse everything but dense tensors of real numbers.

    Args:
        name: The name of the values in the message.
        values: What was given.

    Raises:
        DataError: It is no tensor, or a sparse or complex one.

    >>> check_numbers("x", [1.0])
    Traceback (most recent call last):
    pyroae.errors.DataError: x is a list; an autoencoder takes a torch tensor
    """
    if not isinstance(values, Tensor):
        raise DataError(f"{name} is a {type(values).__name__}; an autoencoder takes a torch tensor")
    if values.is_complex() or values.layout != torch.strided:
        kind = (
            f"sparse ({values.layout})" if values.layout != torch.strided else f"of {values.dtype}"
        )
        raise DataError(f"{name} is {kind}; an autoencoder takes a dense tensor of real numbers")


def check_finite(name: str, values: Tensor) -> None:
    """Refuse values that are not finite, and name the index of the first.

    Args:
        name: The name of the values in the message.
        values: A tensor of any shape.

    Raises:
        DataError: A value is NaN or infinite, or the tensor has no values.
    """
    if values.is_meta:
        raise DataError(f"{name} is on the device 'meta': it has no values")
    finite = values.isfinite()
    if not finite.all():
        at = tuple(int(i) for i in (~finite).nonzero()[0])
        raise DataError(
            f"{name} holds {values[at].item()} at {list(at)}: every value must be finite"
        )
