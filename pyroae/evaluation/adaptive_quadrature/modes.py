"""The modes of log p(x, z) of each datum: a survey of the space, then Newton's method.

Shapes: N data, D coordinates of u, A starting points (`NUM_STARTS`).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pyroae.evaluation.adaptive_quadrature.density import Density
from pyroae.evaluation.adaptive_quadrature.grid import lattice
from pyroae.programs.traces import prior_of

SURVEY_CELLS = {1: 256, 2: 32, 3: 18}
"""Cells per axis of the grid on which the mass is searched for, by D."""


PRIOR_REACH = 6
"""Half-width of this grid, in standard deviations of the prior."""


NUM_STARTS = 16
"""Points from which Newton's method starts: one half from the grid, one half from the draws."""


NEWTON_STEPS = 30
"""Largest number of Newton steps from each of them."""


NEWTON_CONVERGED = 1e-6
"""Length of a step, relative to the widest side of the grid, below which no step is needed."""


FLAT_CURVATURE = 1e-3
"""Smallest curvature of a Newton step, in units of one over the squared widest side."""


LEAST_PRECISION = 9
"""Smallest precision of a mode, in units of one over the squared narrowest side of the grid.

Its standard deviation is then at most a third of that side.
"""


LOWEST = -1e300
"""A finite number below any log-density, in place of −∞ where −∞ − (−∞) would be NaN."""


@dataclass(frozen=True)
class Modes:
    """The points that Newton's method ended at, with a Gaussian fitted at each.

    Attributes:
        top: log f at the points, `[A, N]`, in nats.
        u: The points, `[A, N, D]`.
        precision: Eigenvalues of the negative Hessian, bounded from below, `[A, N, D]`.
        axes: Its eigenvectors, in columns, `[A, N, D, D]`.
    """

    top: Tensor
    u: Tensor
    precision: Tensor
    axes: Tensor

    @property
    def covariance(self) -> Tensor:
        """The inverse of the negative Hessian, `[A, N, D, D]`."""
        return self.axes @ (self.axes.mT / self.precision.unsqueeze(-1))

    def share(self, kept: Tensor) -> Tensor:
        """Return the share of each point in the mass, by Laplace's approximation.

        Args:
            kept: The points to count, `[A, N]`, boolean.

        Returns:
            Shares that sum to one over the points, `[A, N, 1]`.
        """
        log_mass = self.top - 0.5 * self.precision.log().sum(-1)
        return torch.where(kept, log_mass, -math.inf).softmax(0)[..., None]


def find_modes(density: Density) -> Modes:
    """Search for the modes of each datum.

    Args:
        density: log f of a block of N data.

    Returns:
        Local maxima of log f, of which several may coincide.
    """
    prior = density.draws(prior_of(density.model))
    wide = PRIOR_REACH * prior.std(0)
    draws = torch.cat([prior, density.draws(density.guide)])
    low = torch.minimum(prior.mean(0) - wide, draws.amin(0))
    high = torch.maximum(prior.mean(0) + wide, draws.amax(0))
    cells = SURVEY_CELLS[low.shape[-1]]
    grid = low + (high - low) * (lattice(cells, low).double() / cells)[:, None]
    starts = _starts(density, grid, draws)
    top, u, hessian = _climb(density, starts, (high - low) / cells, high - low)
    precision, axes = torch.linalg.eigh(-hessian)
    least = LEAST_PRECISION / (high - low).square().amin(-1)[:, None]
    return Modes(top.clamp(LOWEST, -LOWEST), u, torch.maximum(precision, least), axes)


def _starts(density: Density, grid: Tensor, draws: Tensor) -> Tensor:
    """The best local maxima of the grid and the best draws, `[A, N, D]`."""
    size = grid.shape[-1]
    cube = density(grid).clamp_min(LOWEST).mT.reshape(-1, 1, *[SURVEY_CELLS[size] + 1] * size)
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[size - 1]
    peaks = torch.where(cube == pool(cube, 3, 1, 1), cube, cube - 1e6).flatten(1).mT
    starts = []
    for points, values in ((grid, peaks), (draws, density(draws))):
        best = values.topk(NUM_STARTS // 2, 0).indices
        starts.append(points.gather(0, best.unsqueeze(-1).expand(-1, -1, size)))
    return torch.cat(starts)


def _climb(
    density: Density, u: Tensor, radius: Tensor, sides: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton ascent in trust regions, of all points in parallel: log f, points and Hessians.

    Eigenvalues of the Hessian enter by their absolute value. A step that does not increase log f
    is undone, and its trust region shrinks. radius: the first region. sides: of the grid, `[N, D]`.
    """
    trust = radius.norm(dim=-1).expand(u.shape[:2]).clone()
    flat = FLAT_CURVATURE / sides.square().amax(-1).clamp_min(1e-12)[:, None]
    value, gradient, hessian = density.curves(u)
    for _ in range(NEWTON_STEPS):
        values, axes = torch.linalg.eigh(hessian)
        size = values.abs().clamp_min(flat)
        step = (axes @ ((axes.mT @ gradient.unsqueeze(-1)) / size.unsqueeze(-1))).squeeze(-1)
        length = step.norm(dim=-1)
        step = step * (trust / length.clamp_min(1e-300)).clamp_max(1).unsqueeze(-1)
        new_value, new_gradient, new_hessian = density.curves(u + step)
        up = new_value > value
        u = torch.where(up[..., None], u + step, u)
        value = torch.where(up, new_value, value)
        gradient = torch.where(up[..., None], new_gradient, gradient)
        hessian = torch.where(up[..., None, None], new_hessian, hessian)
        trust = torch.where(up, 2 * trust, torch.minimum(trust, length) / 4)
        if not bool((up & (length > NEWTON_CONVERGED * sides.amax(-1))).any()):
            break
    return value, u, hessian
