"""Checks of the tensors that are given to an autoencoder."""

from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
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


def count_of_draws(conditions: int | None, size: int | None) -> int:
    """Return how many data a model draws.

    Args:
        conditions: The number of conditions; None where there are none, or one for all data.
        size: The number that was asked for; None for the default.

    Returns:
        The size, by default the number of conditions, or 1.

    Raises:
        DataError: The size is no whole number of at least 1, or not the number of conditions.

    >>> count_of_draws(None, None), count_of_draws(5, None), count_of_draws(None, 3)
    (1, 5, 3)
    """
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise DataError(f"size, the number of data that are drawn, is at least 1, not {size!r}")
    if conditions is not None and size not in (None, conditions):
        raise DataError(f"the size is {size}, but c holds {conditions} conditions: leave it out")
    return conditions or size or 1


def sample_rows(count: int, name: str, p: TorchDistribution) -> Tensor:
    """Run `pyro.sample` for a latent site, of which a handler may give draws: those of N data.

    Args:
        count: N, the number of data that the model draws.
        name: The name of the site.
        p: Its distribution.

    Returns:
        The value, shape `[..., N, m]`.

    Raises:
        DataError: The draws that are given are of another number of data.
    """
    z: Tensor = pyro.sample(name, p)
    if z.dim() > 1 and z.shape[-2] not in (1, count):
        raise DataError(
            f"the draws of '{name}' are of {z.shape[-2]} data, but the model draws {count}: give "
            f"size={z.shape[-2]}, as in Predictive(model, draws)(None, size={z.shape[-2]})"
        )
    return z
