"""Newton's method for the Gaussian of each datum that maximizes its ELBO.

    q = N(m, L Lᵀ),   u = m + L ε,   a(ε) = Lᵀ ∇ log p(x, z(u)) |dz/du| + ε
    optimal:   E a = 0  and  E[a εᵀ] = 0
    step:      P = I − S,   m ← m + L P⁻¹ E a,   L ← L P^(−½)

a is the path gradient with the parameters of q stopped, and S the slope of the regression of a on
ε. If the posterior is Gaussian, a is linear in ε, S has no sampling error, and one step reaches the
posterior.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from pyroae.evaluation.blocks import rows_of
from pyroae.evaluation.latents import Latents
from pyroae.programs.sites import Program

AVERAGED = 6
"""Steps over which the Gaussian of a datum is averaged after its ELBO has stopped increasing."""


PRECISIONS = (0.25, 16.0)
"""Limits of the factor by which a step multiplies the precision in any direction."""


LEAST_CURVATURE = 0.01
"""The least curvature, relative to the precision of q, with which a step moves the mean."""


LEAST_TRUST = 2e-3
"""Fraction of a full step below which a datum is given up: no shorter step increases its ELBO."""


@dataclass(frozen=True)
class Target:
    """The log-joint densities of N data.

    Attributes:
        model: The Pyro program p(z) p(x|z).
        guide: A program over the same latent sites.
        args: Arguments of both, `[N, ...]` each.
        nesting: The number of plate dimensions.
    """

    model: Program
    guide: Program
    args: tuple[Tensor, ...]
    nesting: int

    def latents(self, num_particles: int) -> Latents:
        """Draw from the guide.

        Args:
            num_particles: K.

        Returns:
            The latent sites of the data, with K draws.
        """
        return Latents(self.model, self.guide, self.args, num_particles, self.nesting)

    def rows(self, index: Tensor) -> "Target":
        """Select data by index.

        Args:
            index: Indices of data, `[M]`, int64.

        Returns:
            The log-joint densities of these data.
        """
        args = tuple(a.index_select(0, index.to(a.device)) for a in self.args)
        return Target(self.model, self.guide, args, self.nesting)


@dataclass(frozen=True)
class Fits:
    """The Gaussians of N data during a fit, and what was measured at their draws.

    Attributes:
        loc: m, `[N, D]`.
        root: L, any root of the covariance, `[N, D, D]`.
        log_det: log |det L| of the active elements, `[N]`.
        shift: Estimate of E a, `[N, D]`.
        slope: The symmetric part of S, `[N, D, D]`.
        elbo: ELBO, in nats, averaged as the Gaussian is, `[N]`, float64.
        variance: Its squared standard error, `[N]`.
        gain: Increase of the ELBO in the last step, `[N]`, in nats.
        gain_variance: Its squared standard error, `[N]`.
        trust: Length of the longest step, 1 at first, `[N]`.
        averaged: Number of steps since the ELBO stopped increasing, 0 before, `[N]`.
    """

    loc: Tensor
    root: Tensor
    log_det: Tensor
    shift: Tensor
    slope: Tensor
    elbo: Tensor
    variance: Tensor
    gain: Tensor
    gain_variance: Tensor
    trust: Tensor
    averaged: Tensor

    @property
    def weight(self) -> Tensor:
        """The weight of the next step in the average, `[N]`: 1, then 2/3, 2/4, 2/5 and so on."""
        return 2 / (self.averaged + 2)

    @property
    def is_live(self) -> Tensor:
        """Whether a datum needs further steps, `[N]`, boolean."""
        return (self.averaged <= AVERAGED) & (self.trust >= LEAST_TRUST)

    def rows(self, index: Tensor) -> "Fits":
        """Select data by index `[M]`."""
        return Fits(*(t.index_select(0, index) for t in self._tensors()))

    def with_rows(self, index: Tensor, other: Self) -> "Fits":
        """Replace the data of an index `[M]` by those of `other`."""
        pairs = zip(self._tensors(), other._tensors(), strict=True)
        return Fits(*(mine.index_copy(0, index, theirs) for mine, theirs in pairs))

    def where(self, chosen: Tensor, other: Self) -> "Fits":
        """Select this fit for the chosen data `[N]`, and `other` for the rest."""
        pairs = zip(self._tensors(), other._tensors(), strict=True)
        return Fits(
            *(
                torch.where(chosen.reshape(-1, *[1] * (mine.dim() - 1)), mine, theirs)
                for mine, theirs in pairs
            )
        )

    def _tensors(self) -> Sequence[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


def maximize(
    target: Target, loc: Tensor, root: Tensor, *, diagonal: bool, steps: int, num_pairs: int
) -> tuple[Fits, int]:
    """Maximize the ELBO of each datum by damped Newton steps.

    A step that lowers the ELBO of a datum by more than twice the Monte Carlo error is undone and
    shortened. When the ELBO of a datum increases by less than the error, later steps are averaged,
    with weights that rise linearly, and the datum is finished after `AVERAGED` of them. Finished
    data are removed from the batch when they are half of it.

    Args:
        target: The log-joint densities of N data.
        loc: Means at the start, `[N, D]`.
        root: Cholesky factors at the start, `[N, D, D]`.
        diagonal: Whether the Gaussians remain diagonal, as `root` then is.
        steps: Largest number of steps.
        num_pairs: Pairs ±ε per step.

    Returns:
        The Gaussians, and the number of steps.

    References:
        Opper and Archambeau (2009), The variational Gaussian approximation revisited: the
        conditions of optimality.
        Salimans and Knowles (2013), Fixed-form variational posterior approximation through
        stochastic linear regression.
        Roeder, Wu and Duvenaud (2017), Sticking the landing: the path gradient.
    """
    ascent = _Ascent(target, diagonal, num_pairs)
    current = whole = ascent.start(loc, root)
    index, count = torch.arange(len(loc), device=loc.device), 0
    while count < steps and bool((live := current.is_live).any()):
        if int(live.sum()) <= len(live) // 2:
            whole, index = whole.with_rows(index, current), index[live]
            current, ascent = whole.rows(index), _Ascent(target.rows(index), diagonal, num_pairs)
        current = ascent.step(current)
        count += 1
    return whole.with_rows(index, current), count


class _Ascent:
    """Newton steps of the data of one batch."""

    def __init__(self, target: Target, diagonal: bool, num_pairs: int) -> None:
        self._target, self._diagonal, self._num_pairs = target, diagonal, num_pairs
        self._most = max(1, rows_of(target.args) // len(target.args[0]))
        self._latents: dict[int, Latents] = {}

    def start(self, loc: Tensor, root: Tensor) -> Fits:
        """Measure the Gaussians of the start."""
        log_det = root.diagonal(dim1=-2, dim2=-1).log()
        active = self._of(self._most).active
        log_det = (log_det if active is None else torch.where(active, log_det, 0.0)).sum(-1)
        none = torch.zeros(len(loc), dtype=torch.float64, device=loc.device)
        measured = self._measured(loc, root, log_det)
        return Fits(loc, root, log_det, *measured, none, none, none + 1, none)

    def step(self, now: Fits) -> Fits:
        """One step of all data that are not finished."""
        loc, root, log_det, is_full = self._moved(now)
        shift, slope, elbo, variance = self._measured(loc, root, log_det)
        gain, gain_variance = elbo - now.elbo, now.variance + variance
        error, live = gain_variance.sqrt().nan_to_num(), now.is_live
        accepted = (gain > -2 * error) | (now.elbo.isinf() & elbo.isfinite())
        stalled = ((now.averaged > 0) | is_full) & ~(gain > error)
        weight = torch.where(now.elbo.isinf(), 1.0, now.weight)
        moved = Fits(
            loc,
            root,
            log_det,
            shift,
            slope,
            torch.where(weight == 1, elbo, now.elbo + weight * gain),
            torch.where(weight == 1, variance, (1 - weight) ** 2 * now.variance)
            + torch.where(weight == 1, 0.0, weight**2 * variance),
            gain,
            gain_variance,
            (3 * now.trust).clamp_max(1e4),
            now.averaged + stalled,
        )
        shorter = Fits(*now._tensors()[:-2], now.trust.clamp_max(1) / 4, now.averaged)
        return moved.where(accepted & live, shorter.where(live, now))

    def _moved(self, now: Fits) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean, root and log-determinant after a step, and whether nothing limited the step."""
        size, dtype = now.loc.shape[-1], now.loc.dtype
        damping = torch.minimum(now.trust.clamp_max(1), now.weight).to(dtype)
        identity = torch.eye(size, dtype=dtype, device=now.loc.device)
        curvature, axes = torch.linalg.eigh(identity - damping[:, None, None] * now.slope)
        along = (axes.mT @ now.shift.unsqueeze(-1)).squeeze(-1)
        along = along / curvature.clamp_min(LEAST_CURVATURE)
        radius = now.trust.to(dtype) * (2 + math.sqrt(size))
        scale = curvature.clamp(*PRECISIONS).rsqrt()
        length = (along / scale).norm(dim=-1)
        is_full = (now.trust >= 1) & (length <= radius)
        along = along * torch.minimum(damping, radius / length.clamp_min(1e-12))[:, None]
        loc = now.loc + (now.root @ axes @ along.unsqueeze(-1)).squeeze(-1)
        if self._diagonal:
            factor = (1 - damping[:, None] * now.slope.diagonal(dim1=-2, dim2=-1)).clamp(
                *PRECISIONS
            )
            root = now.root * factor.rsqrt().unsqueeze(-2)
            return loc, root, now.log_det - 0.5 * factor.log().sum(-1), is_full
        root = now.root @ (axes * scale.unsqueeze(-2)) @ axes.mT
        return loc, root, now.log_det + scale.log().sum(-1), is_full

    def _measured(
        self, loc: Tensor, root: Tensor, log_det: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Estimates of E a, of the slope S, of the ELBO and of its squared error."""
        half = _directions(self._num_pairs, loc)
        noise = torch.cat([half, -half])
        log_joint, gradient = self._log_joint(loc + (noise @ root.mT).movedim(1, 0))
        path = gradient.movedim(0, 1) @ root + noise
        active = self._of(self._most).active
        log_terms = -0.5 * (noise.square() + math.log(2 * math.pi))
        if active is None:
            log_q = log_terms.sum(-1, keepdim=True) - log_det
        else:
            path = torch.where(active.unsqueeze(1), path, 0.0)
            log_q = log_terms @ active.mT.to(log_terms) - log_det
        odd = (path[:, : len(half)] - path[:, len(half) :]) / 2
        slope = torch.linalg.pinv(half) @ odd
        if active is not None:
            slope = torch.where(active.unsqueeze(-1) & active.unsqueeze(-2), slope, 0.0)
        log_weight = (log_joint - log_q).double()
        pairs = (log_weight[: len(half)] + log_weight[len(half) :]) / 2
        elbo, variance = pairs.mean(0), pairs.var(0) / len(half)
        lost = ~elbo.isfinite()
        return (
            path.mean(1).nan_to_num(0.0, 0.0, 0.0),
            ((slope + slope.mT) / 2).nan_to_num(0.0, 0.0, 0.0),
            torch.where(lost, -math.inf, elbo),
            torch.where(lost, 0.0, variance),
        )

    def _log_joint(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log-joint densities at u `[K, N, D]` and their gradients, in chunks of particles."""
        densities, gradients = [], []
        for part in u.split(self._most):
            with torch.enable_grad():
                at = part.contiguous().requires_grad_()
                log_joint = self._of(len(part)).log_joint(at).total
                (gradient,) = torch.autograd.grad(log_joint.sum(), at)
            densities.append(log_joint.detach())
            gradients.append(gradient.nan_to_num(0.0, 0.0, 0.0))
        return torch.cat(densities), torch.cat(gradients)

    def _of(self, num_particles: int) -> Latents:
        count = min(num_particles, 2 * self._num_pairs)
        if count not in self._latents:
            self._latents[count] = self._target.latents(count)
        return self._latents[count]


def _directions(count: int, like: Tensor) -> Tensor:
    """Standard normal vectors `[count, D]`, orthogonal within each group of D of them.

    Groups of orthogonal directions make the regression well conditioned.
    """
    size = like.shape[-1]
    groups = -(-count // size)
    normal = torch.randn(2, groups, size, size, dtype=like.dtype, device=like.device)
    basis = torch.linalg.qr(normal[0])[0]
    return (basis * normal[1].norm(dim=-1, keepdim=True)).flatten(0, 1)[:count]
