"""log p(x, z) of a block of data at given points, with its derivatives."""

import math

import torch
from torch import Tensor

from pyroae.evaluation.blocks import rows_of
from pyroae.programs.latents import Latents
from pyroae.programs.sites import Program

NUM_DRAWS = 256
"""Draws of the prior, and of the guide, that say where to search for modes."""


class Density:
    """log f(u) = log p(x, z(u)) |dz/du| of a block of N data, float64, in nats.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: A program over the same latent sites.
        args: Arguments of both, `[N, ...]` each.
        nesting: The number of plate dimensions of the programs.
        columns: Indices of the D coordinates of u among all elements of the latents, `[D]`; the
            other elements are masked for all of these data.
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

    def at(self, index: Tensor) -> "Density":
        """Select data.

        Args:
            index: Indices of data of the block, `[M]`, int64.

        Returns:
            The density of these M data.
        """
        args = tuple(a[index.to(a.device)] for a in self.args)
        return Density(self.model, self.guide, args, self.nesting, self.columns)

    def latents(self, num_points: int) -> Latents:
        """Return the latents of the block, cached by the number of points.

        Args:
            num_points: P, the number of points that are evaluated together.

        Returns:
            Latents with P particles.
        """
        if num_points not in self._latents:
            self._latents[num_points] = Latents(
                self.model, self.guide, self.args, num_points, self.nesting
            )
        return self._latents[num_points]

    @property
    def epsilon(self) -> float:
        """The relative rounding error of the precision of the program."""
        return torch.finfo(self.latents(1).start.dtype).eps

    def draws(self, program: Program) -> Tensor:
        """Draw u from a program.

        Args:
            program: The prior, or a guide.

        Returns:
            Draws of u, `[NUM_DRAWS, N, D]`, float64. Values that are not finite are replaced by
            the median over the draws, or by 0 where all are infinite.
        """
        latents = Latents(self.model, program, self.args, NUM_DRAWS, self.nesting)
        u = latents.start[..., self.columns].double()
        finite = u.nan_to_num(posinf=torch.nan, neginf=torch.nan)
        return torch.where(u.isfinite(), u, finite.nanmedian(0).values.nan_to_num())

    def __call__(self, u: Tensor) -> Tensor:
        """Evaluate log f at u `[P, N, D]`: `[P, N]`, in nats; −∞ in place of NaN."""
        parts = []
        for piece in u.split(self.rows):
            latents = self.latents(len(piece))
            elements = self._elements(piece.to(latents.start.dtype), latents)
            parts.append(latents.log_joint(elements).total.double().nan_to_num(nan=-math.inf))
        return torch.cat(parts)

    def _elements(self, u: Tensor, latents: Latents) -> Tensor:
        """Embed u in all elements of the latents."""
        if len(self.columns) == latents.size:
            return u
        return u.new_zeros(*u.shape[:-1], latents.size).index_copy(-1, self.columns, u)

    def curves(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate log f with its first and second derivatives.

        Args:
            u: Points, `[P, N, D]`.

        Returns:
            log f `[P, N]`, its gradient `[P, N, D]` and its Hessian `[P, N, D, D]`. Derivatives
            that are not finite are 0.
        """
        parts = [self._curves(piece) for piece in u.split(self.rows)]
        value, gradient, hessian = (torch.cat(column) for column in zip(*parts, strict=True))
        return value, gradient, hessian

    @torch.enable_grad()
    def _curves(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latents = self.latents(len(u))
        u = u.to(latents.start.dtype).detach().requires_grad_()
        value = latents.log_joint(self._elements(u, latents)).total
        gradient = _gradient(value.sum(), u)
        rows = [_gradient(gradient[..., d].sum(), u) for d in range(u.shape[-1])]
        hessian = torch.stack(rows, -1)
        hessian = (hessian + hessian.mT) / 2
        return (
            value.detach().double().nan_to_num(nan=-math.inf),
            gradient.detach().double().nan_to_num(0, 0, 0),
            hessian.detach().double().nan_to_num(0, 0, 0),
        )


def _gradient(value: Tensor, u: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(u)
    (gradient,) = torch.autograd.grad(value, u, create_graph=True, allow_unused=True)
    return torch.zeros_like(u) if gradient is None else gradient
