"""Hamiltonian Monte Carlo along a path of distributions, over chains and data at once, with step sizes that are frozen.

    log f_β(u) = log f_0(u) + β log (f_1/f_0)(u),   f_1 = p(x, z) |dz/du|,   f_0 = p(z) |dz/du|  or  q(z|x) |dz/du|

Shapes: C chains, N data, D elements of u a datum, S segments of the path. In nats. Nothing here waits for the device.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from pyroae.evaluation.latents import Latents
from pyroae.programs.sites import Program
from pyroae.programs.traces import Traces, log_density, log_post_of

SEGMENTS = 50
"""The most segments of a path; each has a step size of its own."""


SEGMENT_STEPS = 10
"""The fewest transitions in a segment, where there is more than one."""


WARM_UP = 30
"""Transitions at the start of the path before a pilot sets out along it."""


JITTER = 0.2
"""Each trajectory's step size is multiplied by a number drawn within 1 ± this: a fixed length can come back to its start."""


@dataclass(frozen=True)
class Point:
    """Where the chains are, u `[C, N, D]`, and log f_0 and log f_1/f_0 there, `[C, N]`, with their gradients `[C, N, D]`."""

    u: Tensor
    log_start: Tensor
    log_ratio: Tensor
    grad_start: Tensor
    grad_ratio: Tensor

    def log_density(self, beta: float) -> Tensor:
        """log f_β, `[C, N]`."""
        return self.log_start + beta * self.log_ratio

    def gradient(self, beta: float) -> Tensor:
        """∂ log f_β / ∂u, `[C, N, D]`."""
        return self.grad_start + beta * self.grad_ratio

    def or_else(self, other: Self, chosen: Tensor) -> "Point":
        """This point for the chains that are chosen `[C, N]`, the other for the rest."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Point(
            *(torch.where(chosen if a.dim() == 2 else chosen[..., None], a, b) for a, b in pairs)
        )


class Densities(Protocol):
    """What moves ask of a path."""

    def at(self, u: Tensor) -> Point:
        """Densities and gradients at u `[C, N, D]`."""

    def gradient(self, u: Tensor, beta: float) -> Tensor:
        """∂ log f_β / ∂u at u, `[C, N, D]`."""


class Path:
    """log f_0 and log f_1/f_0 at u `[C, N, D]`, and their gradients.

    guide: None for a path that starts at the prior; else the guide, whose density q(z|x) is where the path starts. args: of
    the guide. Of a guide with one latent site only the density is taken again at each u; one with several is run again.
    """

    def __init__(
        self, latents: Latents, guide: Program | None = None, args: tuple[Tensor, ...] = ()
    ) -> None:
        self.latents, self._guide, self._args = latents, guide, args

    def log_densities(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """log f_0 and log f_1/f_0, each `[C, N]`, differentiable."""
        joint = self.latents.log_joint(u)
        if self._guide is None:
            return joint.log_prior, joint.log_lik
        log_guide = self._log_guide(self._guide, u)
        return log_guide, joint.total - log_guide

    @torch.enable_grad()
    def at(self, u: Tensor) -> Point:
        """Densities and gradients at u, from one run of the model."""
        u = u.detach().requires_grad_()
        log_start, log_ratio = self.log_densities(u)
        grad_start, grad_ratio = _gradient(log_start, u, keep=True), _gradient(log_ratio, u)
        return Point(u.detach(), log_start.detach(), log_ratio.detach(), grad_start, grad_ratio)

    @torch.enable_grad()
    def gradient(self, u: Tensor, beta: Tensor | float) -> Tensor:
        """∂ log f_β / ∂u at u, `[C, N, D]`."""
        u = u.detach().requires_grad_()
        log_start, log_ratio = self.log_densities(u)
        return _gradient(log_start + beta * log_ratio, u)

    def _log_guide(self, guide: Program, u: Tensor) -> Tensor:
        """log q(z|x) |dz/du|, `[C, N]`."""
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
            total = log_post_of(replace(traces, drawn=drawn), guide, self._args, {})
        return sum(self.latents.jacobians(transformed), total)


def transition(
    path: Densities, point: Point, beta: float, step_size: Tensor, leapfrog_steps: int
) -> tuple[Point, Tensor]:
    """One Hamiltonian move of all chains, which leaves f_β as it is (Neal 2011): the next point, and Pr(accept) `[C, N]`.

    step_size: `[N]`. Momenta are drawn afresh; a proposal without finite densities and gradients is rejected. One gradient a
    leapfrog step: that at the start comes with the point.
    """
    spread = 1 + JITTER * (2 * torch.rand_like(point.log_start) - 1)
    step = (step_size.to(point.u.dtype) * spread)[..., None]
    momentum = torch.randn_like(point.u)
    before = point.log_density(beta) - 0.5 * momentum.square().sum(-1)
    momentum = momentum + 0.5 * step * point.gradient(beta)
    u = point.u + step * momentum
    for _ in range(leapfrog_steps - 1):
        momentum = momentum + step * path.gradient(u, beta)
        u = u + step * momentum
    proposal = path.at(u)
    momentum = momentum + 0.5 * step * proposal.gradient(beta)
    after = proposal.log_density(beta) - 0.5 * momentum.square().sum(-1)
    usable = after.isfinite() & momentum.isfinite().all(-1)
    log_accept = torch.where(usable, after - before, -math.inf).nan_to_num(
        nan=-math.inf, posinf=0.0, neginf=-math.inf
    )
    accepted = torch.rand_like(log_accept).log() < log_accept
    return proposal.or_else(point, accepted), log_accept.clamp_max(0).exp()


def segments(num_distributions: int) -> list[int]:
    """The segment of each transition from β_1 to β_{T−1}.

    >>> segments(4), len(set(segments(101))), len(set(segments(1000)))
    ([0, 0, 0], 10, 50)
    """
    count = num_distributions - 1
    pieces = max(1, min(SEGMENTS, count // SEGMENT_STEPS))
    return [i * pieces // count for i in range(count)]


@dataclass
class Pilot:
    """Chains whose step sizes follow their acceptance along the path; only the step sizes are kept.

        log ε ← log ε + r (Pr(accept) − target),   r = max(0.1, (1 + i)^−½),   i the number of transitions so far

    log_step: `[N]`, now. total: `[S, N]`, the sum of log ε over each segment's transitions.
    """

    point: Point
    log_step: Tensor
    total: Tensor
    done: int = 0

    def move(
        self, path: Densities, beta: float, segment: int | None, leapfrog_steps: int, target: float
    ) -> None:
        """One transition; segment: None in the warm-up."""
        self.point, accept = transition(path, self.point, beta, self.log_step.exp(), leapfrog_steps)
        rate = max(0.1, (1 + self.done) ** -0.5)
        self.log_step = self.log_step + rate * (accept.mean(0).to(self.log_step.dtype) - target)
        if segment is not None:
            self.total[segment] += self.log_step
        self.done += 1


@dataclass
class Chains:
    """Chains on their way along a path, with step sizes that do not change.

    log_weight: `[C, N]`, Σ_t (β_t − β_{t−1}) log (f_1/f_0)(u_{t−1}). accept: `[S, N]`, the sum over each segment's transitions
    of the mean Pr(accept) over chains.
    """

    point: Point
    log_weight: Tensor
    accept: Tensor
    done: int = 0

    def weigh(self, difference: float) -> None:
        """Add the weight of going from one distribution to the next."""
        self.log_weight = self.log_weight + difference * self.point.log_ratio.double()

    def move(
        self, path: Densities, beta: float, segment: int, step_size: Tensor, leapfrog_steps: int
    ) -> None:
        """One transition at the distribution that the chains have come to."""
        self.point, accept = transition(path, self.point, beta, step_size, leapfrog_steps)
        self.accept[segment] += accept.mean(0).double()


Step = Callable[[], None]
"""Called after each transition."""


def run_pilot(
    path: Densities,
    pilot: Pilot,
    betas: list[float],
    leapfrog_steps: int,
    target: float,
    after: Step,
) -> Tensor:
    """Take a pilot from where it is to the end of the path; the step sizes `[S, N]`, a mean of log ε over each segment."""
    where = segments(len(betas) - 1)
    steps: list[tuple[float, int | None]] = [(betas[1], None)] * WARM_UP
    steps += [(beta, segment) for beta, segment in zip(betas[1:-1], where, strict=True)]
    for beta, segment in steps[pilot.done :]:
        pilot.move(path, beta, segment, leapfrog_steps, target)
        after()
    counts = torch.tensor(
        [where.count(s) for s in range(max(where) + 1)], device=pilot.total.device
    )
    return (pilot.total / counts[:, None]).exp()


def run_chains(
    path: Densities,
    chains: Chains,
    betas: list[float],
    step_sizes: Tensor,
    leapfrog_steps: int,
    after: Step,
    *,
    reverse: bool = False,
) -> None:
    """Take chains from where they are to the other end of the path; `reverse` from f_1 to f_0, with betas still rising."""
    last = len(betas) - 1
    where = segments(last) if last > 1 else []
    order = range(last, -1, -1) if reverse else range(last + 1)
    for i, j in list(itertools.pairwise(order))[chains.done :]:
        chains.weigh(betas[j] - betas[i])
        chains.done += 1
        if 0 < j < last:
            chains.move(path, betas[j], where[j - 1], step_sizes[where[j - 1]], leapfrog_steps)
        after()


def _gradient(value: Tensor, u: Tensor, keep: bool = False) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(u)
    (found,) = torch.autograd.grad(value.sum(), u, retain_graph=keep, allow_unused=True)
    return torch.zeros_like(u) if found is None else found
