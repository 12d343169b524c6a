"""Quadrature of log p(x) for all data: in blocks, and in groups of equal masks."""

import math
import time
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor

from pyroae.errors import ConfigError, DataError
from pyroae.evaluation.adaptive_quadrature.box import find_box
from pyroae.evaluation.adaptive_quadrature.density import Density
from pyroae.evaluation.adaptive_quadrature.grid import Box
from pyroae.evaluation.adaptive_quadrature.trapezoid import FIRST_CELLS, Integral, integrate
from pyroae.evaluation.blocks import Data, arguments_of, blocks, rows_of
from pyroae.evaluation.checks import check_program
from pyroae.evaluation.trial import nesting_of
from pyroae.programs.context import evaluating
from pyroae.programs.latents import Latents
from pyroae.programs.sites import Program
from pyroae.programs.traces import prior_of
from pyroae.runtime.progress import Progress
from pyroae.runtime.randomness import fork_random
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import duration, number, percent, with_error

DEPTH = 14.0
"""Nats by which the density on the faces of the box lies below its maximum, for a tolerance of 1.

A smaller tolerance adds −log tolerance.
"""


BLOCK_POINTS = 64
"""Smallest number of points at which the data of one block are evaluated together."""


@dataclass(frozen=True, repr=False)
class QuadratureEstimate(Shown):
    """log p(x) by quadrature.

    Attributes:
        log_px: log p(x), `[N]`, float64, in nats.
        error: Estimate of the absolute error of `log_px`, `[N]`, in nats: the change by the last
            halving of the spacing or, if larger, the error that a rate of h² predicts from the
            changes before; plus the mass at the faces of the box and the rounding error of the
            program's own precision. Without convergence, the larger of the last two changes.
        converged: Whether the error fell below the tolerance, or to the rounding error, with a
            spacing below the width of the narrowest mode, `[N]`, boolean.
        num_points: The number of points at which log p(x, z) was evaluated, `[N]`, int64.
        seconds: Wall-clock time.
    """

    log_px: Tensor
    error: Tensor
    converged: Tensor
    num_points: Tensor
    seconds: float

    def _overview(self) -> Overview:
        count, converged = len(self.log_px), int(self.converged.sum())
        nll = with_error(self.nll, (self.log_px.std() / count**0.5).item() if count > 1 else None)
        rows = [
            ("NLL", f"{nll} nats per datum, ± as a sample of N data"),
            ("quadrature", f"error at most {self.error.max().item():.2g} nats"),
            ("converged", f"{converged} of {count} data"),
            ("points", f"{number(self.num_points.double().mean().item(), 3)} per datum"),
            ("time", duration(self.seconds)),
        ]
        return Overview(
            [f"N={count}", f"NLL {nll} nats", f"{percent(converged, count)} converged"], rows
        )

    @property
    def nll(self) -> float:
        """The negative log-likelihood, −mean log p(x), in nats per datum."""
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
    """Compute log p(x_n) of each datum by the trapezoid rule, for D = 1, 2 or 3 latent dimensions.

        log p(x) = log ∫ p(x, z(u)) |dz/du| du
                 ≈ log Σ_i p(x, z(u_i)) |dz/du|_i + log det L + Σ_j log h_j,   u_i = c + L v_i

    u are unconstrained coordinates. The v_i form a lattice over a box outside of which log p(x, z)
    is at least 14 − log tolerance below its maximum. c and L are mean and spread of the modes,
    which Newton's method finds from a grid over the prior and from draws of prior and guide. The
    spacings h_j are halved until the error is below the tolerance. For smooth densities that decay
    at both ends the error falls faster than any power of h; with a kink, as of a Laplace prior or
    a ReLU, it falls as h². The result is deterministic, and the caller's generators are left
    unchanged.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: A program over the same sites, which only says where to search; None for the prior.
        x: Data, `[N, ...]`, or a tuple of arguments of model and guide, one row per datum.
        tolerance: Largest error of a converged datum, in nats.
        max_points: Largest number of points per datum; two lattices are evaluated in any case.
        progress: Show a progress bar.

    Returns:
        log p(x) of each datum, `[N]`, in nats, with its error.

    Raises:
        ConfigError: For more than three latent dimensions, or a tolerance that is not positive.
        UndefinedLikelihoodError: For an improper prior.
        ProgramError: For discrete latents.
        DataError: For a datum without any finite density.

    References:
        Trefethen and Weideman (2014), The exponentially convergent trapezoidal rule.

    >>> from pyroae import exact_log_likelihood, zoo
    >>> system, x = zoo.ppca(4, latent=2).double(), torch.zeros(3, 4, dtype=torch.float64)
    >>> estimate = quadrature(system.model, system.guide, x)
    >>> error = estimate.log_px - exact_log_likelihood(system, x)
    >>> bool(error.abs().max() < 1e-9), bool(estimate.converged.all())
    (True, True)
    """
    if not 0 < tolerance < math.inf:
        raise ConfigError(f"a tolerance must be positive and finite, in nats, not {tolerance}")
    started, args = time.monotonic(), arguments_of(x)
    guide = prior_of(model) if guide is None else guide
    parts, order, done = [], [], 0
    with evaluating(model, guide), fork_random(args[0].device, 0), pyro.validation_enabled(False):
        check_program(model, guide, args, "start")
        nesting = max(nesting_of(model, program, args) for program in (guide, prior_of(model)))
        groups = _groups(model, guide, args, nesting)
        with Progress("quadrature", len(args[0]), progress) as bar:
            for columns, rows in groups:
                for index in rows.split(max(1, rows_of(args) // BLOCK_POINTS)):
                    block = tuple(a[index.to(a.device)] for a in args)
                    density = Density(model, guide, block, nesting, columns)
                    parts.append(_integrated(density, tolerance, max_points, index))
                    order.append(index)
                    done += len(index)
                    bar.update(done)
    place = torch.cat(order).argsort()
    joined = Integral(*(torch.cat(column).cpu()[place] for column in zip(*parts, strict=True)))
    _check_finite(joined.log_px)
    return QuadratureEstimate(
        joined.log_px,
        joined.error,
        joined.converged,
        joined.num_points.long(),
        time.monotonic() - started,
    )


def _groups(
    model: Program, guide: Program, args: tuple[Tensor, ...], nesting: int
) -> list[tuple[Tensor, Tensor]]:
    """Elements of u that no mask leaves out, and the data that have exactly these elements.

    Without masks this is one group. Raises ConfigError for more than three elements.
    """
    patterns: list[Tensor] = []
    for block in blocks(args, max(1, rows_of(args) // 8)):
        latents = Latents(model, guide, block, 1, nesting)
        if latents.active is None:
            patterns = [torch.ones(len(args[0]), latents.size, dtype=torch.bool)]
            break
        patterns.append(latents.active.cpu())
    distinct, group = torch.cat(patterns).unique(dim=0, return_inverse=True)
    for num_active in distinct.sum(1).tolist():
        if num_active not in {0, *FIRST_CELLS}:
            raise ConfigError(
                "quadrature is for 1, 2 or 3 latent dimensions per datum, "
                f"not {num_active}: use log_likelihood"
            )
    return [
        (row.nonzero().flatten(), (group == i).nonzero().flatten())
        for i, row in enumerate(distinct)
    ]


def _integrated(density: Density, tolerance: float, max_points: int, index: Tensor) -> Integral:
    """The integral of a block; where all its latents are masked, log p(x) is the density of x."""
    if len(density.columns):
        return integrate(density, _box(density, tolerance, index), tolerance, max_points)
    latents = density.latents(1)
    log_px = latents.log_joint(latents.start).total[0].double()
    ones = torch.ones_like(log_px)
    return Integral(log_px, density.epsilon * log_px.abs().clamp_min(1), ones.bool(), ones)


def _box(density: Density, tolerance: float, index: Tensor) -> Box:
    """The box of a block. Raises DataError where the modes of a datum have no width."""
    try:
        return find_box(density, DEPTH - math.log(tolerance))
    except torch.linalg.LinAlgError as error:
        raise DataError(
            f"log p(x) of the data {index.tolist()[:8]} has no box: "
            "the log-density has no curvature at its modes"
        ) from error


def _check_finite(log_px: Tensor) -> None:
    missed = ~log_px.isfinite() | (log_px < 0.5 * torch.finfo(log_px.dtype).min)
    if missed.any():
        raise DataError(
            f"log p(x) of datum {int(missed.nonzero()[0])} is not finite: "
            "its density is nowhere finite and above zero"
        )
