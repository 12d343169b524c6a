"""The box of each datum that holds its mass, in coordinates that are standardized by its modes.

Shapes: N data, D coordinates of u, A modes, P points.
"""

import math

import torch
from torch import Tensor

from pyroae.evaluation.adaptive_quadrature.density import Density
from pyroae.evaluation.adaptive_quadrature.grid import Box, lattice
from pyroae.evaluation.adaptive_quadrature.modes import SURVEY_CELLS, Modes, find_modes

RELEVANT_SHARE = 1e-6
"""Smallest share in the mass of a mode whose width the spacing has to resolve."""


ROUNDS = 12
"""Largest number of adjustments of the box."""


GROWTH = 0.5
"""Growth of the box on a side that cuts off mass, relative to its present width."""


SHRINKAGE = 1.3
"""Ratio of widths, before and after, above which a box that shrank is evaluated again."""


def find_box(density: Density, depth: float) -> Box:
    """Find the box of each datum.

    The modes give the first box, and evaluations of the density adjust it.

    Args:
        density: log f of a block of N data.
        depth: Nats by which log f on the faces lies below its maximum.

    Returns:
        The box of each datum.
    """
    modes = find_modes(density)
    kept = modes.top >= modes.top.amax(0) - depth
    covariance, share = modes.covariance, modes.share(kept)
    center = (share * modes.u).sum(0)
    apart = modes.u - center
    outer = apart.unsqueeze(-1) * apart.unsqueeze(-2)
    root = torch.linalg.cholesky((share[..., None] * (covariance + outer)).sum(0))
    v = torch.linalg.solve_triangular(root, apart.unsqueeze(-1), upper=False).squeeze(-1)
    sd, narrowest = _standard_deviations(root, covariance), _narrowest(root, modes)
    reach = math.sqrt(2 * depth)
    low, high = _extent(v - reach * sd, v + reach * sd, kept)
    inner = reach * narrowest[..., None]
    core = _extent(v - inner, v + inner, kept)
    relevant = share.squeeze(-1) >= RELEVANT_SHARE
    box = Box(center, root, low, high, torch.where(relevant, narrowest, math.inf).amin(0))
    return _fitted(density, box, core, modes.top.amax(0), depth)


def _standard_deviations(root: Tensor, covariance: Tensor) -> Tensor:
    """Standard deviations of each mode along the coordinates v, `[A, N, D]`."""
    whitened = torch.linalg.solve_triangular(root, covariance, upper=False)
    in_v = torch.linalg.solve_triangular(root, whitened.mT, upper=False)
    return in_v.diagonal(dim1=-2, dim2=-1).sqrt()


def _narrowest(root: Tensor, modes: Modes) -> Tensor:
    """The smallest standard deviation of each mode in any direction of v, `[A, N]`."""
    precision = root.mT @ (modes.axes * modes.precision.unsqueeze(-2)) @ modes.axes.mT @ root
    return torch.linalg.eigvalsh(precision)[..., -1].rsqrt()


def _fitted(
    density: Density, box: Box, core: tuple[Tensor, Tensor], highest: Tensor, depth: float
) -> Box:
    """Adjust the box until log f falls by `depth` on all faces and just before each of them.

    core: the smallest box that is allowed, low and high `[N, D]`. highest: log f at the modes.
    """
    cells = SURVEY_CELLS[box.low.shape[-1]]
    unit = lattice(cells, box.low).double() / cells
    low, high = box.low, box.high
    for _ in range(ROUNDS):
        values = density(box.between(low, high).points(unit))
        highest = torch.maximum(highest, values.amax(0))
        cell = (high - low) / cells
        v = low + (high - low) * unit[:, None]
        least, most = _extent(v - cell, v + cell, values > highest - depth)
        least, most = torch.minimum(least, core[0]), torch.maximum(most, core[1])
        grown_low, grown_high = least < low, most > high
        wider = GROWTH * (high - low)
        new_low = torch.where(grown_low, low - wider, least)
        new_high = torch.where(grown_high, high + wider, most)
        shrunk = (high - low) > SHRINKAGE * (new_high - new_low)
        low, high = new_low, new_high
        if not bool((grown_low | grown_high | shrunk).any()):
            break
    return box.between(low, high)


def _extent(low: Tensor, high: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest coordinate, `[N, D]` each, of the points that are kept."""
    dropped = ~kept.unsqueeze(-1)
    return low.masked_fill(dropped, math.inf).amin(0), high.masked_fill(dropped, -math.inf).amax(0)
