"""Values that are missing: NaN in data, which are a mask and no error where `missing` is set."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyroae.errors import DataError


def check_columns(x: Tensor, name: str, columns: Sequence[str] = ()) -> None:
    """Refuse a column without any observed value, of which nothing can be learned.

    Args:
        x: The values, `[N, d]`, NaN where missing.
        name: The name of the data in the error message.
        columns: The names of the columns; empty if they have none.

    Raises:
        DataError: If all values of a column are missing; the message has its name or number.
    """
    empty = x.isnan().all(0)
    if bool(empty.any()):
        number = int(empty.nonzero()[0])
        place = f"'{columns[number]}'" if columns else number
        raise DataError(f"column {place} of {name} has no observed value: leave it out")


def keep_missing(x: Tensor, changed: Tensor) -> Tensor:
    """Return changed values, NaN where the values were missing.

    Args:
        x: The values before, NaN where missing.
        changed: The values after, such as a Bernoulli draw, in the shape of `x`.

    Returns:
        The values after, NaN where missing.

    >>> x = torch.tensor([0.2, torch.nan, 0.8])
    >>> keep_missing(x, (x > 0.5).float())
    tensor([0., nan, 1.])
    """
    return torch.where(x.isnan(), x, changed)


def hot_deck(x: Tensor, seed: int = 0) -> Tensor:
    """Fill missing values with observed values of the same column, drawn at random.

    Each column keeps its distribution, so that frequencies and spreads of the result are those of
    the observed values. It serves for start values, not for imputation: the columns are filled
    independently.

    Args:
        x: The values, `[n, d]`, NaN where missing; a column without observed values becomes 0.
        seed: The seed of the draws.

    Returns:
        The values without NaN, `[n, d]`.

    >>> hot_deck(torch.tensor([[1.0, 5.0], [torch.nan, 5.0], [1.0, torch.nan]])).tolist()
    [[1.0, 5.0], [1.0, 5.0], [1.0, 5.0]]
    """
    filled, draws = x.clone(), np.random.default_rng(seed)
    for column in x.isnan().any(0).nonzero().flatten().tolist():
        values, is_missing = x[:, column], x[:, column].isnan()
        observed = values[~is_missing] if not is_missing.all() else values.new_zeros(1)
        chosen = torch.from_numpy(draws.integers(len(observed), size=int(is_missing.sum())))
        filled[is_missing, column] = observed[chosen.to(x.device)]
    return filled
