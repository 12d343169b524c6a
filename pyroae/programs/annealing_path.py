"""Densities along an annealing path, and their gradients.

    log f_β(u) = log f_0(u) + β log (f_1/f_0)(u)
    f_1 = p(x, z) |dz/du|,   f_0 = p(z) |dz/du|  or  q(z|x) |dz/du|

Shapes: C chains, N data, D elements of u per datum. Densities are in nats.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from pyroae.programs.latents import Latents
from pyroae.programs.paired_traces import Traces, log_density
from pyroae.programs.sites import Program
from pyroae.programs.traces import log_post_of


@dataclass(frozen=True)
class Point:
    """Positions of the chains, with the densities and gradients of the path at these positions.

    Attributes:
        u: Positions in unconstrained coordinates, `[C, N, D]`.
        log_start: log f_0(u), `[C, N]`, in nats.
        log_ratio: log (f_1/f_0)(u), `[C, N]`, in nats.
        grad_start: ∂ log f_0 / ∂u, `[C, N, D]`.
        grad_ratio: ∂ log (f_1/f_0) / ∂u, `[C, N, D]`.
    """

    u: Tensor
    log_start: Tensor
    log_ratio: Tensor
    grad_start: Tensor
    grad_ratio: Tensor

    def log_density(self, beta: Tensor | float) -> Tensor:
        """Evaluate the density of the path at β.

        Args:
            beta: β, from 0 to 1.

        Returns:
            log f_β(u), `[C, N]`, in nats.
        """
        return self.log_start + beta * self.log_ratio

    def gradient(self, beta: Tensor | float) -> Tensor:
        """Evaluate the gradient of the path at β.

        Args:
            beta: β, from 0 to 1.

        Returns:
            ∂ log f_β / ∂u, `[C, N, D]`.
        """
        return self.grad_start + beta * self.grad_ratio

    def or_else(self, other: Self, chosen: Tensor) -> "Point":
        """Select this point for some chains and another point for the others.

        Args:
            other: The point of the chains that are not chosen, of the same shapes.
            chosen: Whether a chain takes this point, `[C, N]`, boolean.

        Returns:
            The combined point, of the same shapes.
        """
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Point(
            *(torch.where(chosen if a.dim() == 2 else chosen[..., None], a, b) for a, b in pairs)
        )


class Densities(Protocol):
    """The interface that transitions need of a path: eager (`Path`) or compiled."""

    def at(self, u: Tensor) -> Point:
        """Evaluate the densities and their gradients.

        Args:
            u: Positions, `[C, N, D]`.

        Returns:
            The positions with log f_0, log (f_1/f_0) and their gradients.
        """

    def gradient(self, u: Tensor, beta: float) -> Tensor:
        """Evaluate the gradient of the path at β.

        Args:
            u: Positions, `[C, N, D]`.
            beta: β, from 0 to 1.

        Returns:
            ∂ log f_β / ∂u, `[C, N, D]`.
        """


class Path:
    """log f_0 and log (f_1/f_0) at u `[C, N, D]`, and their gradients, by eager code.

    A guide with one latent site is not run again: only its density is evaluated at each u. A guide
    with several latent sites is run again, because its densities may depend on other sites.

    Args:
        latents: The latent sites of the block as a vector u.
        guide: The program q(z|x) at which the path starts; None for a path from the prior.
        args: Positional arguments of the guide.
        kwargs: Keyword arguments of the guide.
    """

    def __init__(
        self,
        latents: Latents,
        guide: Program | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.latents, self._guide, self._args, self._kwargs = latents, guide, args, kwargs or {}

    def log_densities(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the two densities of the path, differentiably.

        Args:
            u: Positions, `[C, N, D]`.

        Returns:
            log f_0 and log (f_1/f_0), `[C, N]` each, in nats.
        """
        joint = self.latents.log_joint(u)
        if self._guide is None:
            return joint.log_prior, joint.log_lik
        log_guide = self.log_guide(u)
        return log_guide, joint.total - log_guide

    @torch.enable_grad()
    def at(self, u: Tensor) -> Point:
        """Return densities and gradients at u `[C, N, D]`, from one run of the model."""
        u = u.detach().requires_grad_()
        log_start, log_ratio = self.log_densities(u)
        grad_start, grad_ratio = _gradient(log_start, u, keep=True), _gradient(log_ratio, u)
        return Point(u.detach(), log_start.detach(), log_ratio.detach(), grad_start, grad_ratio)

    @torch.enable_grad()
    def gradient(self, u: Tensor, beta: Tensor | float) -> Tensor:
        """Return ∂ log f_β / ∂u at u, `[C, N, D]`."""
        u = u.detach().requires_grad_()
        log_start, log_ratio = self.log_densities(u)
        return _gradient(log_start + beta * log_ratio, u)

    @torch.enable_grad()
    def differentiable_gradient(self, u: Tensor, beta: Tensor) -> Tensor:
        """Evaluate the gradient of the path as a function of u, β and all parameters.

        Args:
            u: Positions, `[C, N, D]`.
            beta: β, shape `[]`.

        Returns:
            ∂ log f_β / ∂u, `[C, N, D]`, with a graph of its own.
        """
        u = u if u.requires_grad else u.detach().requires_grad_()
        log_start, log_ratio = self.log_densities(u)
        value = (log_start + beta * log_ratio).sum()
        return torch.autograd.grad(value, u, create_graph=True)[0]

    def log_guide(self, u: Tensor) -> Tensor:
        """Evaluate the density of the guide.

        Args:
            u: Positions, `[C, N, D]`.

        Returns:
            log q(z|x) |dz/du|, `[C, N]`, in nats.
        """
        guide = self._guide
        assert guide is not None
        transformed = self.latents._transformed(u)
        traces: Traces = self.latents._traces
        values = {name: value for name, (value, _) in transformed.items()}
        if len(values) == 1:
            ((name, value),) = values.items()
            site = {**traces.guide.nodes[name], "value": value}
            total = traces.reduce(site, log_density(name, site))
        else:
            drawn = traces.drawn.copy()
            drawn.nodes.update(
                {name: {**drawn.nodes[name], "value": value} for name, value in values.items()}
            )
            total = log_post_of(replace(traces, drawn=drawn), guide, self._args, self._kwargs)
        return sum(self.latents.jacobians(transformed), total)


def _gradient(value: Tensor, u: Tensor, keep: bool = False) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(u)
    (gradient,) = torch.autograd.grad(value.sum(), u, retain_graph=keep, allow_unused=True)
    return torch.zeros_like(u) if gradient is None else gradient
