"""The trapezoid rule over nested lattices in a box, with an estimate of its error.

Shapes: N data, D coordinates of u, P points.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyroae.evaluation.adaptive_quadrature.density import Density
from pyroae.evaluation.adaptive_quadrature.grid import Box, lattice

FIRST_CELLS = {1: 32, 2: 16, 3: 20}
"""Cells per axis of the first lattice, by D; each next lattice has twice as many."""


SMOOTH_RATIO = 0.005
"""Ratio of successive changes below which the density is taken to be smooth.

A density with a kink, whose error falls as h², has a ratio of 1/4.
"""


class Integral(NamedTuple):
    """The integral of each datum.

    Attributes:
        log_px: log p(x), `[N]`, float64, in nats.
        error: Estimate of its absolute error, `[N]`, in nats.
        converged: Whether the error is below the tolerance, `[N]`, boolean.
        num_points: Points of the finest lattice, `[N]`.
    """

    log_px: Tensor
    error: Tensor
    converged: Tensor
    num_points: Tensor


def integrate(density: Density, box: Box, tolerance: float, max_points: int) -> Integral:
    """Halve the spacing until the error of each datum is below the tolerance.

    Data that have converged are not evaluated again.

    Args:
        density: log f of a block of N data.
        box: Their boxes.
        tolerance: Largest error, in nats.
        max_points: Largest number of points per datum; two lattices are evaluated in any case.

    Returns:
        log p(x) of each datum and its error.
    """
    count, size = box.low.shape
    infinite = box.low.new_full((count,), math.inf)
    log_px, total, edge = -infinite, -infinite, -infinite
    error, last, older = infinite.clone(), infinite.clone(), infinite.clone()
    converged, points = torch.zeros_like(log_px, dtype=torch.bool), torch.zeros_like(log_px)
    active = torch.arange(count, device=log_px.device)
    log_volume = box.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_volume = log_volume + (box.high - box.low).log().sum(-1)
    cells, part = FIRST_CELLS[size], density
    limit = max(max_points, (2 * cells + 1) ** size)
    while len(active) and (cells + 1) ** size <= limit:
        some = box.at(active)
        new_total, new_edge = _summed(part, some, cells, first=cells == FIRST_CELLS[size])
        total[active] = torch.logaddexp(total[active], new_total)
        edge[active] = torch.logaddexp(edge[active], new_edge)
        before, now = log_px[active], total[active] + log_volume[active] - size * math.log(cells)
        rounding = density.epsilon * now.abs().clamp_min(1)
        tail = (edge[active] - total[active]).exp()
        change = torch.where(before.isfinite() & now.isfinite(), (now - before).abs(), math.inf)
        spacing = ((some.high - some.low) / cells).amax(-1)
        left_over = _remaining(change, last[active], older[active], size) + tail
        done = (left_over < rounding.clamp_min(tolerance)) & (spacing <= some.narrowest)
        larger = torch.where(last[active].isfinite(), torch.maximum(change, last[active]), change)
        error[active] = torch.where(done, left_over, larger + tail) + rounding
        older[active], last[active] = last[active], change
        log_px[active], converged[active] = now, done
        points[active] = float((cells + 1) ** size)
        cells *= 2
        if bool(done.any()):
            active = active[~done]
            part = density.at(active) if len(active) else density
    return Integral(log_px, error, converged, points)


def _remaining(change: Tensor, last: Tensor, older: Tensor, size: int) -> Tensor:
    """The error that remains, from the last three changes, at least what h² predicts from them.

    A single change may be small by chance, where a kink lies between two points; three small
    changes in a row are unlikely, and are required in one dimension. In two dimensions, a change
    that fell by a factor of 200 or more counts alone: the density is smooth. In three dimensions,
    where another halving is eight times the work, the largest next change of a smooth density
    counts.
    """
    if size == 1:
        return torch.maximum(torch.maximum(change, last / 4), older / 16)
    ratio = change / last.clamp(1e-300, 1)
    smooth, initial = (change, last) if size == 2 else (change * ratio, change)
    remaining = torch.where(ratio < SMOOTH_RATIO, smooth, torch.maximum(change, last / 4))
    return torch.where(last.isfinite(), remaining, initial)


def _summed(density: Density, box: Box, cells: int, *, first: bool) -> tuple[Tensor, Tensor]:
    """Compute log Σ f over the points of a lattice, and over those on the faces, `[N]` each.

    Points of the lattice with twice the spacing are left out, unless this is the first.
    """
    index = lattice(cells, box.low)
    if not first:
        index = index[(index % 2 == 1).any(-1)]
    total = torch.full_like(box.low[:, 0], -math.inf)
    edge = torch.full_like(box.low[:, 0], -math.inf)
    for piece in index.split(density.rows):
        values = density(box.points(piece.double() / cells))
        on_face = ((piece == 0) | (piece == cells)).any(-1)
        total = torch.logaddexp(total, values.logsumexp(0))
        edge = torch.logaddexp(edge, values.masked_fill(~on_face[:, None], -math.inf).logsumexp(0))
    return total, edge
