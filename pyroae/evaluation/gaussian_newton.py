"""Newton's method for the Gaussian of each datum that maximizes its ELBO.

    q = N(m, L Lᵀ),   u = m + L ε,   a(ε) = Lᵀ ∇ log p(x, z(u)) |dz/du| + ε
    optimal:   E a = 0  and  E[a εᵀ] = 0
    step:      P = I − S,   m ← m + t L P⁻¹ E a,   L ← L P^(−t/2),   0 < t ≤ 1

a is the path gradient with the parameters of q stopped, and S the slope of the regression of a on
ε. If the posterior is Gaussian, a is linear in ε, S has no sampling error, and one step with t = 1
reaches the posterior.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from pyroae.evaluation.blocks import rows_of
from pyroae.programs.latents import Latents
from pyroae.programs.sites import Program
from pyroae.runtime.short_repr import Shown

AVERAGED = 6
"""Steps over which the Gaussian of a datum is averaged after its ELBO has stopped increasing."""


PRECISIONS = (0.25, 16.0)
"""Limits of the factor by which a step multiplies the precision in any direction."""


LEAST_CURVATURE = 0.01
"""The least |P| along a direction by which a step of the mean is divided."""


LEAST_TRUST = 2e-3
"""Fraction of a full step below which a datum is given up: no shorter step increases its ELBO."""


LARGEST = 1e6
"""Largest absolute value of the estimates of a step, which would overflow otherwise."""


@dataclass(frozen=True, repr=False)
class Target(Shown):
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


@dataclass(frozen=True, repr=False)
class Fits(Shown):
    """The Gaussians of N data during a fit, and what was measured at their draws.

    Attributes:
        loc: m, `[N, D]`.
        root: L, any root of the covariance, `[N, D, D]`.
        log_det: log |det L| of the active elements, `[N]`.
        shift: Estimate of E a, `[N, D]`.
        slope: The symmetric part of S, `[N, D, D]`.
        elbo: ELBO, in nats, averaged as the Gaussian is, `[N]`, float64.
        variance: Its squared standard error, `[N]`; twice as large for each step undone since.
        gain: Increase of the ELBO in the last step, `[N]`, in nats.
        gain_variance: Its squared standard error, `[N]`.
        trust: Length of the longest step, 1 at first, `[N]`.
        averaged: Number of steps since the ELBO stopped increasing, 0 before, `[N]`.
        rejected: Number of steps that were undone, `[N]`.
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
    rejected: Tensor

    @property
    def weight(self) -> Tensor:
        """The weight of the next step in the average, `[N]`: 1, then 2/3, 2/4, 2/5 and so on."""
        return 2 / (self.averaged + 2)

    @property
    def damping(self) -> Tensor:
        """The fraction of a Newton step that the next step takes at most, `[N]`."""
        return torch.minimum(self.trust.clamp_max(1), 2 / (self.averaged + self.rejected / 2 + 2))

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
    shortened. While the ELBO is not finite, a step halves the scale. When the ELBO of a datum
    increases by less than the error, later steps are averaged, with weights that rise linearly, and
    the datum is finished after `AVERAGED` of them. Finished data are removed from the batch when
    they are half of it.

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
        return Fits(loc, root, log_det, *measured, none, none, none + 1, none, none)

    def step(self, now: Fits) -> Fits:
        """One step of all data that are not finished."""
        loc, root, log_det, is_full = self._moved(now)
        shift, slope, elbo, variance = self._measured(loc, root, log_det)
        gain, gain_variance = elbo - now.elbo, now.variance + variance
        live = now.is_live
        # A far step has an error that would make any decrease of the ELBO look like chance.
        error = (now.variance + variance.minimum(10 * now.variance)).sqrt()
        # At a posterior that is a Gaussian all that differs is rounding.
        error = error + 4 * torch.finfo(loc.dtype).eps * elbo.abs()
        was_lost = ~now.elbo.isfinite()
        is_near = error < _radius(loc)  # no Gaussian close to a posterior has a larger error
        stalled = ((now.averaged > 0) | is_full) & ~(gain > error) & is_near & ~was_lost
        before, weight = torch.where(was_lost, elbo, now.elbo), now.weight
        moved = Fits(
            loc,
            root,
            log_det,
            shift,
            slope,
            before + weight * (elbo - before),
            (1 - weight) ** 2 * now.variance + weight**2 * variance,
            gain,
            gain_variance,
            (3 * now.trust).clamp_max(1e4),
            now.averaged + stalled,
            now.rejected,
        )
        undone = replace(
            now,
            variance=2 * now.variance,  # the ELBO before the step may be high by chance
            trust=now.trust.clamp_max(1) / 4,
            rejected=now.rejected + 1,
        )
        return moved.where(live & (was_lost | (gain > -2 * error)), undone.where(live, now))

    def _moved(self, now: Fits) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean, root and log-determinant after a step, and whether nothing limited the step."""
        damping, radius = now.damping.to(now.loc), now.trust.to(now.loc) * _radius(now.loc)
        slopes, axes = torch.linalg.eigh(now.slope)
        shift = (axes.mT @ now.shift.unsqueeze(-1)).squeeze(-1)
        along = shift / (1 - slopes).abs().clamp_min(LEAST_CURVATURE)
        scale = _scales(slopes, damping)
        length = (along / scale).norm(dim=-1)
        along = along * torch.minimum(damping, radius / length.clamp_min(1e-12))[:, None]
        loc = now.loc + (now.root @ axes @ along.unsqueeze(-1)).squeeze(-1)
        is_full = (now.trust >= 1) & (length <= radius)
        if self._diagonal:
            scale = _scales(now.slope.diagonal(dim1=-2, dim2=-1), damping)
            root = now.root * scale.unsqueeze(-2)
        else:
            root = now.root @ (axes * scale.unsqueeze(-2)) @ axes.mT
        return loc, root, now.log_det + scale.log().sum(-1), is_full

    def _measured(
        self, loc: Tensor, root: Tensor, log_det: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Estimates of E a, of the slope S, of the ELBO and of its squared error."""
        half = directions(self._num_pairs, loc)
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
        shift = path.mean(1).nan_to_num(0.0).clamp(-LARGEST, LARGEST)
        slope = ((slope + slope.mT) / 2).nan_to_num(0.0).clamp(-LARGEST, LARGEST)
        half_scale = -3 * torch.eye(slope.shape[-1], dtype=slope.dtype, device=slope.device)
        return (
            torch.where(lost[:, None], 0.0, shift),
            torch.where(lost[:, None, None], half_scale, slope),
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


def _scales(slopes: Tensor, damping: Tensor) -> Tensor:
    """Factors (1 − s)^(−½ damping) of the scale for slopes s `[N, D]`, within limits."""
    return (1 - slopes).clamp(*PRECISIONS) ** (-0.5 * damping[:, None])


def _radius(loc: Tensor) -> float:
    """The length of nearly all standard normal vectors of D elements is below this."""
    return 2 + math.sqrt(loc.shape[-1])


def directions(count: int, like: Tensor) -> Tensor:
    """Draw standard normal vectors that are orthogonal within each group of D of them.

    Each vector is standard normal; groups of orthogonal ones make the regression well conditioned.

    Args:
        count: Number of vectors.
        like: A tensor `[..., D]` of their precision and device.

    Returns:
        The vectors, `[count, D]`.

    >>> e = directions(5, torch.zeros(3))
    >>> bool(((e[:3] @ e[:3].T).triu(1).abs() < 1e-5).all())
    True
    """
    size = like.shape[-1]
    groups = -(-count // size)
    normal = torch.randn(2, groups, size, size, dtype=like.dtype, device=like.device)
    basis, upper = torch.linalg.qr(normal[0])
    basis = basis * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # uniform rotations
    return (basis * normal[1].norm(dim=-1, keepdim=True)).flatten(0, 1)[:count]
