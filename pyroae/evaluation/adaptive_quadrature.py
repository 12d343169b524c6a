"""log p(x) of each datum by quadrature: deterministic, for one, two or three latent dimensions."""

import math
import time
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor
from torch.nn import functional

from pyroae.errors import ConfigError, DataError
from pyroae.evaluation.blocks import Data, arguments_of, blocks, rows_of
from pyroae.evaluation.checks import check_program
from pyroae.evaluation.latents import Latents
from pyroae.evaluation.trial import nesting_of
from pyroae.programs.context import evaluating, fork_random
from pyroae.programs.sites import Program
from pyroae.programs.traces import prior_of
from pyroae.runtime.progress import Progress

SURVEY = {1: 256, 2: 32, 3: 18}
"""Cells an axis where the mass is looked for, by D."""


CELLS = {1: 32, 2: 16, 3: 20}
"""Cells an axis of the first lattice that is summed; each next one has twice as many."""


DRAWS, STARTS, CLIMBS, ROUNDS = 256, 16, 30, 12
"""Draws of the prior and of the guide, points from which modes are climbed to, steps of each, adjustments of the box."""


@dataclass(frozen=True)
class QuadratureEstimate:
    """log p(x) by quadrature, tensors `[N]`, in nats.

    log_px: float64. error: what the last halving of the spacing changed, or, where that is more, what h² would have left of the
    changes before; with the mass at the edges of the box and the rounding of the program's own precision. Where it has not
    converged, the larger of the last two changes. converged: whether the error came below the tolerance, or to the
    rounding, with the spacing below the width of the narrowest mode.
    num_points: at which log p(x, z) was summed. seconds: the time it took.
    """

    log_px: Tensor
    error: Tensor
    converged: Tensor
    num_points: Tensor
    seconds: float

    @property
    def nll(self) -> float:
        """−mean log p(x), nats per datum."""
        return -self.log_px.mean().item()


@torch.no_grad()
def quadrature(
    model: Program,
    guide: Program | None,
    x: Data,
    *,
    tolerance: float = 1e-6,
    max_points: int = 2**22,
    progress: bool = False,
) -> QuadratureEstimate:
    """log p(x_n) of each datum by the trapezoid rule, for D = 1, 2 or 3 latent dimensions in all.

        log p(x) = log ∫ p(x, z(u)) |dz/du| du ≈ log Σ_i p(x, z(u_i)) |dz/du|_i + log det L + Σ_j log h_j,   u_i = c + L v_i

    u: unconstrained coordinates. The v_i are a lattice over the box outside of which log p(x, z) is 14 − log tolerance below
    its largest value; c and L are the mean and the spread of the modes, which are climbed to from a grid over the prior, and
    from draws of prior and guide. The spacings h_j are halved until the error is below the tolerance. For smooth
    densities that decay at both ends the error falls faster than any power of h (Trefethen & Weideman 2014); with a kink, as
    of a Laplace prior or a ReLU, as h². x: `[N, ...]`, or a tuple of arguments of model and guide, a datum a row. guide: says
    where to look, no more; None for the prior alone. max_points: where the halving of a datum ends at the latest.
    Nothing random remains in the result, and the caller's generators stay as they were.
    Raises ConfigError for more than three dimensions, UndefinedLikelihoodError for an improper prior, ProgramError for discrete
    latents, DataError for a datum without any finite density.

    >>> from pyroae import exact_log_likelihood, zoo
    >>> system, x = zoo.ppca(4, latent=2).double(), torch.zeros(3, 4, dtype=torch.float64)
    >>> found = quadrature(system.model, system.guide, x)
    >>> bool((found.log_px - exact_log_likelihood(system, x)).abs().max() < 1e-9), bool(found.converged.all())
    (True, True)
    """
    if not 0 < tolerance < math.inf:
        raise ConfigError(f"a tolerance must be positive and finite, in nats, not {tolerance}")
    started, args = time.monotonic(), arguments_of(x)
    where = prior_of(model) if guide is None else guide
    parts, order, done = [], [], 0
    with evaluating(model, where), fork_random(args[0].device, 0), pyro.validation_enabled(False):
        check_program(model, where, args, "start")
        nesting = max(nesting_of(model, program, args) for program in (where, prior_of(model)))
        groups = _groups(model, where, args, nesting)
        for columns, _ in groups:
            if len(columns) not in {0, *CELLS}:
                raise ConfigError(
                    f"quadrature is for 1, 2 or 3 latent dimensions a datum, not {len(columns)}: use log_likelihood"
                )
        with Progress("quadrature", len(args[0]), progress) as bar:
            for columns, rows in groups:
                for index in rows.split(max(1, rows_of(args) // 64)):
                    density = _Density(
                        model, where, tuple(a[index.to(a.device)] for a in args), nesting, columns
                    )
                    if len(columns):
                        found = _integrated(
                            density, _boxed(density, tolerance, index), tolerance, max_points
                        )
                    else:
                        found = _without_latents(density)
                    parts.append(found)
                    order.append(index)
                    done += len(index)
                    bar.update(done)
    place = torch.cat(order).argsort()
    log_px, error, converged, points = (
        torch.cat(column).cpu()[place] for column in zip(*parts, strict=True)
    )
    missed = ~log_px.isfinite() | (log_px < 0.5 * torch.finfo(log_px.dtype).min)
    if missed.any():
        n = int(missed.nonzero()[0])
        raise DataError(
            f"log p(x) of datum {n} comes to nothing finite: its density is nowhere finite and above zero"
        )
    return QuadratureEstimate(log_px, error, converged, points.long(), time.monotonic() - started)


def _boxed(density: "_Density", tolerance: float, index: Tensor) -> "_Box":
    """The box of these data. Raises DataError where the modes of one have no widths."""
    try:
        return _box(density, 14 - math.log(tolerance))
    except torch.linalg.LinAlgError as error:
        raise DataError(
            f"log p(x) of the data {index.tolist()[:8]} has no box: the log-density has no curvature at its modes"
        ) from error


def _groups(
    model: Program, guide: Program, args: tuple[Tensor, ...], nesting: int
) -> list[tuple[Tensor, Tensor]]:
    """Which elements of u are coordinates, and the data that have these and no others: one group where nothing is masked."""
    size, patterns = 0, []
    for block in blocks(args, max(1, rows_of(args) // 8)):
        latents = Latents(model, guide, block, 1, nesting)
        size = latents.size
        if latents.active is None:
            return [(torch.arange(size), torch.arange(len(args[0])))]
        patterns.append(latents.active.cpu())
    distinct, group = torch.cat(patterns).unique(dim=0, return_inverse=True)
    return [
        (row.nonzero().flatten(), (group == i).nonzero().flatten())
        for i, row in enumerate(distinct)
    ]


def _without_latents(density: "_Density") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `_integrated` gives for data all of whose latent elements are masked: log p(x) is the density of x."""
    latents = density.latents(1)
    log_px = latents.log_joint(latents.start).total[0].double()
    ones = torch.ones_like(log_px)
    return log_px, density.epsilon * log_px.abs().clamp_min(1), ones.bool(), ones


class _Density:
    """log f(u) = log p(x, z(u)) |dz/du| of a block of data, at any number of points u `[P, N, D]`, float64.

    columns: the places that u has among all elements of the latents; the others are masked for all of these data.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        args: tuple[Tensor, ...],
        nesting: int,
        columns: Tensor,
    ) -> None:
        self.model, self.guide, self.args, self.nesting = model, guide, args, nesting
        self.columns = columns.to(args[0].device)
        self.rows = max(1, rows_of(args) // len(args[0]))
        self._latents: dict[int, Latents] = {}

    def at(self, index: Tensor) -> "_Density":
        """The density of some of the data."""
        args = tuple(a[index.to(a.device)] for a in self.args)
        return _Density(self.model, self.guide, args, self.nesting, self.columns)

    def latents(self, count: int) -> Latents:
        if count not in self._latents:
            self._latents[count] = Latents(self.model, self.guide, self.args, count, self.nesting)
        return self._latents[count]

    @property
    def epsilon(self) -> float:
        """Of the program's own precision."""
        return torch.finfo(self.latents(1).start.dtype).eps

    def draws(self, program: Program) -> Tensor:
        """DRAWS values of u `[DRAWS, N, D]`; what is not finite is taken from another draw, or is 0."""
        found = (
            Latents(self.model, program, self.args, DRAWS, self.nesting)
            .start[..., self.columns]
            .double()
        )
        usual = (
            found.nan_to_num(posinf=torch.nan, neginf=torch.nan).nanmedian(0).values.nan_to_num()
        )
        return torch.where(found.isfinite(), found, usual)

    def __call__(self, u: Tensor) -> Tensor:
        parts = []
        for piece in u.split(self.rows):
            latents = self.latents(len(piece))
            whole = self._whole(piece.to(latents.start.dtype), latents)
            parts.append(latents.log_joint(whole).total.double().nan_to_num(nan=-math.inf))
        return torch.cat(parts)

    def _whole(self, u: Tensor, latents: Latents) -> Tensor:
        """u among all elements of the latents."""
        if len(self.columns) == latents.size:
            return u
        return u.new_zeros(*u.shape[:-1], latents.size).index_copy(-1, self.columns, u)

    def curves(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log f `[P, N]`, its gradient `[P, N, D]` and its Hessian `[P, N, D, D]`."""
        found = [self._curves(piece) for piece in u.split(self.rows)]
        value, gradient, hessian = (torch.cat(column) for column in zip(*found, strict=True))
        return value, gradient, hessian

    @torch.enable_grad()
    def _curves(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latents = self.latents(len(u))
        u = u.to(latents.start.dtype).detach().requires_grad_()
        value = latents.log_joint(self._whole(u, latents)).total
        gradient = _gradient(value.sum(), u)
        hessian = torch.stack(
            [_gradient(gradient[..., d].sum(), u) for d in range(u.shape[-1])], -1
        )
        hessian = (hessian + hessian.mT) / 2
        value = value.detach().double().nan_to_num(nan=-math.inf)
        return (
            value,
            gradient.detach().double().nan_to_num(0, 0, 0),
            hessian.detach().double().nan_to_num(0, 0, 0),
        )


@dataclass(frozen=True)
class _Box:
    """Where each datum's mass lies: u = center + root v, low ≤ v ≤ high. narrowest: `[N]`, of the modes, in v."""

    center: Tensor
    root: Tensor
    low: Tensor
    high: Tensor
    narrowest: Tensor

    def at(self, index: Tensor) -> "_Box":
        return _Box(*(field[index] for field in vars(self).values()))

    def points(self, unit: Tensor) -> Tensor:
        """u `[P, N, D]` at points `[P, D]` of the unit cube."""
        v = self.low + (self.high - self.low) * unit[:, None]
        return self.center + (self.root @ v.unsqueeze(-1)).squeeze(-1)


def _box(density: _Density, depth: float) -> _Box:
    """The mass of each datum: modes climbed to from a wide survey, and a box about them, fitted to the density."""
    drawn = density.draws(prior_of(density.model))
    wide = 6 * drawn.std(0)
    others = torch.cat([drawn, density.draws(density.guide)])
    low = torch.minimum(drawn.mean(0) - wide, others.amin(0))
    high = torch.maximum(drawn.mean(0) + wide, others.amax(0))
    unit = _lattice(SURVEY[low.shape[-1]], low).double() / SURVEY[low.shape[-1]]
    grid = low + (high - low) * unit[:, None]
    starts = _starts(density, grid, others)
    top, modes, curvature = _climb(
        density, starts, (high - low) / SURVEY[low.shape[-1]], high - low
    )
    top = top.clamp(-1e300, 1e300)
    kept = top >= top.amax(0) - depth
    values, axes = torch.linalg.eigh(-curvature)
    values = torch.maximum(values, 9 / (high - low).square().amin(-1)[:, None])
    covariance = axes @ (axes.mT / values.unsqueeze(-1))
    share = torch.where(kept, top - 0.5 * values.log().sum(-1), -math.inf).softmax(0)[..., None]
    center = (share * modes).sum(0)
    apart = modes - center
    spread = (share[..., None] * (covariance + apart.unsqueeze(-1) * apart.unsqueeze(-2))).sum(0)
    root = torch.linalg.cholesky(spread)
    narrow = torch.linalg.eigvalsh(root.mT @ (axes * values.unsqueeze(-2)) @ axes.mT @ root)[
        ..., -1
    ].rsqrt()
    v = torch.linalg.solve_triangular(root, apart.unsqueeze(-1), upper=False).squeeze(-1)
    whitened = torch.linalg.solve_triangular(root, covariance, upper=False)
    sd = (
        torch.linalg.solve_triangular(root, whitened.mT, upper=False)
        .diagonal(dim1=-2, dim2=-1)
        .sqrt()
    )
    reach = math.sqrt(2 * depth)
    v_low, v_high = _extent(v - reach * sd, v + reach * sd, kept)
    relevant = share.squeeze(-1) >= 1e-6
    box = _Box(center, root, v_low, v_high, torch.where(relevant, narrow, math.inf).amin(0))
    core = _extent(v - reach * narrow[..., None], v + reach * narrow[..., None], kept)
    return _fitted(density, box, core, top.amax(0), depth)


def _starts(density: _Density, grid: Tensor, others: Tensor) -> Tensor:
    """STARTS points `[STARTS, N, D]` to climb from: the best local maxima of the grid, the best of the draws."""
    size = grid.shape[-1]
    surveyed = density(grid)
    cube = surveyed.clamp_min(-1e300).mT.reshape(-1, 1, *[SURVEY[size] + 1] * size)
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[size - 1]
    peaks = torch.where(cube == pool(cube, 3, 1, 1), cube, cube - 1e6).flatten(1).mT
    found = []
    for points, values, count in (
        (grid, peaks, STARTS // 2),
        (others, density(others), STARTS // 2),
    ):
        best = values.topk(count, 0).indices
        found.append(points.gather(0, best.unsqueeze(-1).expand(-1, -1, size)))
    return torch.cat(found)


def _climb(
    density: _Density, u: Tensor, radius: Tensor, whole: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Newton's steps uphill inside a region of trust, of all points at once: log f, the modes and the Hessians there.

    The eigenvalues of the Hessian count by their size; a step that does not go up is taken back and its region shrinks.
    """
    trust = radius.norm(dim=-1).expand(u.shape[:2]).clone()
    value, gradient, hessian = density.curves(u)
    for _ in range(CLIMBS):
        values, axes = torch.linalg.eigh(hessian)
        size = values.abs().clamp_min(1e-3 / whole.square().amax(-1).clamp_min(1e-12)[:, None])
        step = (axes @ ((axes.mT @ gradient.unsqueeze(-1)) / size.unsqueeze(-1))).squeeze(-1)
        length = step.norm(dim=-1)
        step = step * (trust / length.clamp_min(1e-300)).clamp_max(1).unsqueeze(-1)
        new = density.curves(u + step)
        up = new[0] > value
        u = torch.where(up[..., None], u + step, u)
        value = torch.where(up, new[0], value)
        gradient = torch.where(up[..., None], new[1], gradient)
        hessian = torch.where(up[..., None, None], new[2], hessian)
        trust = torch.where(up, 2 * trust, torch.minimum(trust, length) / 4)
        if not bool((up & (length > 1e-6 * whole.amax(-1))).any()):
            break
    return value, u, hessian


def _fitted(
    density: _Density, box: _Box, core: tuple[Tensor, Tensor], highest: Tensor, depth: float
) -> _Box:
    """The box moved until log f is `depth` below its largest value on all faces and reaches that near each of them."""
    size = box.low.shape[-1]
    unit = _lattice(SURVEY[size], box.low).double() / SURVEY[size]
    low, high = box.low, box.high
    for _ in range(ROUNDS):
        values = density(_Box(box.center, box.root, low, high, box.narrowest).points(unit))
        highest = torch.maximum(highest, values.amax(0))
        inside = values > highest - depth
        cell = (high - low) / SURVEY[size]
        v = low + (high - low) * unit[:, None]
        least, most = _extent(v - cell, v + cell, inside)
        least, most = torch.minimum(least, core[0]), torch.maximum(most, core[1])
        grown_low, grown_high = least < low, most > high
        wider = 0.5 * (high - low)
        new_low, new_high = (
            torch.where(grown_low, low - wider, least),
            torch.where(grown_high, high + wider, most),
        )
        shrunk = (high - low) > 1.3 * (new_high - new_low)
        low, high = new_low, new_high
        if not bool((grown_low | grown_high | shrunk).any()):
            break
    return _Box(box.center, box.root, low, high, box.narrowest)


def _integrated(
    density: _Density, box: _Box, tolerance: float, max_points: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p, its error, whether it converged and the number of points, `[N]`; data that have converged are left behind."""
    count, size = box.low.shape
    log_px, error = box.low.new_full((count,), -math.inf), box.low.new_full((count,), math.inf)
    last, older = torch.full_like(log_px, math.inf), torch.full_like(log_px, math.inf)
    converged, points = torch.zeros_like(log_px, dtype=torch.bool), torch.zeros_like(log_px)
    active = torch.arange(count, device=log_px.device)
    total, edge = torch.full_like(log_px, -math.inf), torch.full_like(log_px, -math.inf)
    log_volume = box.root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + (box.high - box.low).log().sum(
        -1
    )
    cells, part = CELLS[size], density
    while len(active) and (cells + 1) ** size <= max(max_points, (2 * CELLS[size] + 1) ** size):
        some = box.at(active)
        new_total, new_edge = _summed(part, some, cells, first=cells == CELLS[size])
        total[active], edge[active] = (
            torch.logaddexp(total[active], new_total),
            torch.logaddexp(edge[active], new_edge),
        )
        before, now = log_px[active], total[active] + log_volume[active] - size * math.log(cells)
        rounding = density.epsilon * now.abs().clamp_min(1)
        tail = (edge[active] - total[active]).exp()
        change = torch.where(before.isfinite() & now.isfinite(), (now - before).abs(), math.inf)
        spacing = ((some.high - some.low) / cells).amax(-1)
        left_over = _left_over(change, last[active], older[active], size) + tail
        done = (left_over < rounding.clamp_min(tolerance)) & (spacing <= some.narrowest)
        larger = (
            torch.where(last[active].isfinite(), torch.maximum(change, last[active]), change) + tail
        )
        error[active] = torch.where(done, left_over, larger) + rounding
        older[active] = last[active]
        log_px[active], points[active], last[active], converged[active] = (
            now,
            float((cells + 1) ** size),
            change,
            done,
        )
        left = ~converged[active]
        cells *= 2
        if not bool(left.all()):
            active = active[left]
            part = density.at(active) if len(active) else density
    return log_px, error, converged, points


def _left_over(change: Tensor, last: Tensor, older: Tensor, size: int) -> Tensor:
    """What is left of the error, from the last three changes: no less than h² would make of the ones before.

    A change may be small by the luck of where a kink lies between two points; that three are is unlikely, and in one dimension
    three are asked for. In two, a change that fell by 200 or more counts by itself: the density is smooth. In three, where
    another halving is eight times the work, so does what the next change of a smooth density is at the most.
    """
    if size == 1:
        return torch.maximum(torch.maximum(change, last / 4), older / 16)
    ratio = change / last.clamp(1e-300, 1)
    if size == 2:
        return torch.where(ratio < 0.005, change, torch.maximum(change, last / 4)).where(
            last.isfinite(), last
        )
    return torch.where(ratio < 0.005, change * ratio, torch.maximum(change, last / 4)).where(
        last.isfinite(), change
    )


def _summed(density: _Density, box: _Box, cells: int, *, first: bool) -> tuple[Tensor, Tensor]:
    """log Σ f over the points that a lattice has and the one of twice its spacing has not, and over those on the faces."""
    index = _lattice(cells, box.low)
    if not first:
        index = index[(index % 2 == 1).any(-1)]
    total, edge = (
        torch.full_like(box.low[:, 0], -math.inf),
        torch.full_like(box.low[:, 0], -math.inf),
    )
    for piece in index.split(density.rows):
        values = density(box.points(piece.double() / cells))
        on_face = ((piece == 0) | (piece == cells)).any(-1)
        total = torch.logaddexp(total, values.logsumexp(0))
        edge = torch.logaddexp(edge, values.masked_fill(~on_face[:, None], -math.inf).logsumexp(0))
    return total, edge


def _lattice(cells: int, like: Tensor) -> Tensor:
    """Whole numbers from 0 to `cells` in each of D dimensions: `[P, D]`."""
    axis = torch.arange(cells + 1, device=like.device)
    return torch.cartesian_prod(*[axis] * like.shape[-1]).reshape(-1, like.shape[-1])


def _extent(low: Tensor, high: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest coordinate, `[N, D]` each, of the points that are kept."""
    apart = ~kept.unsqueeze(-1)
    return low.masked_fill(apart, math.inf).amin(0), high.masked_fill(apart, -math.inf).amax(0)


def _gradient(value: Tensor, u: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(u)
    (found,) = torch.autograd.grad(value, u, create_graph=True, allow_unused=True)
    return torch.zeros_like(u) if found is None else found
