"""Which figures show the data of an observed site: a table by the kind of data."""

from collections.abc import Callable
from math import prod
from typing import Literal

from matplotlib.figure import Figure

from pyroae.evaluation.site_draws import PredictiveDraws
from pyroae.plots.drawing import WIDE, is_image
from pyroae.plots.predictive_draws import fitted, marginals, pairs, sequences

DataKind = Literal["image", "sequence", "table", "column"]
"""What the data of an observed site are drawn as."""


SHORT = 8
"""Vectors of fewer elements are no sequences, unless a plate says so."""


SMOOTH = 0.5
"""The largest von Neumann ratio of a vector that is a sequence; it is 2 for unrelated elements."""


FIGURES: dict[DataKind, dict[str, Callable[[PredictiveDraws], Figure]]] = {
    "image": {},
    "sequence": {"sequences": sequences},
    "table": {"marginals": marginals, "pairs": pairs, "fitted": fitted},
    "column": {"marginals": marginals, "fitted": fitted},
}
"""The figures of each kind by name; images have `reconstructions` and `samples`."""


def data_kind(draws: PredictiveDraws, shape: tuple[int, ...] | None = None) -> DataKind:
    """Choose what the data of an observed site are drawn as.

    One element is a column. A plate inside the data plate, as of times, makes a sequence. Two
    dimensions are an image. A vector is a sequence where neighbours differ little, by the ratio

        Σ_n Σ_j (x_nj − x_n,j−1)² / Σ_n Σ_j (x_nj − x̄_n)²  <  ½,

    or where it has more than 40 elements; otherwise it is a table.

    Args:
        draws: One entry of what `pyroae.predictive_draws` returns.
        shape: The shape of one datum, where it is known and has the same number of elements.

    Returns:
        A key of `FIGURES`.

    References:
        von Neumann 1941, Distribution of the Ratio of the Mean Square Successive Difference to the
            Variance.

    >>> import pyroae, torch
    >>> system = pyroae.zoo.ppca(4, latent=2)
    >>> draws = pyroae.predictive_draws(system.model, system.guide, torch.randn(9, 4), seed=0)
    >>> data_kind(draws["x"]), data_kind(draws["x"], (2, 2))
    ('table', 'image')
    """
    size = draws.data.shape[1]
    if size == 1:
        return "column"
    if draws.in_plates:
        return "sequence"
    if is_image(shape if shape is not None and prod(shape) == size else draws.shape):
        return "image"
    is_smooth = size >= SHORT and "category" not in draws.kinds and _ratio(draws) < SMOOTH
    return "sequence" if size > WIDE or is_smooth else "table"


def _ratio(draws: PredictiveDraws) -> float:
    """The von Neumann ratio of the rows of the data, without rows where a value is missing."""
    rows = draws.data[draws.data.isfinite().all(1)]
    steps = rows.diff(dim=1).square().sum()
    return float(steps / (rows - rows.mean(1, keepdim=True)).square().sum())
