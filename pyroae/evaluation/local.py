"""Gaussians fitted to the posterior of each datum, without an encoder.

They show what the family of a guide can reach at best (Cremer et al. 2018).
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pyroae.errors import ConfigError, unknown_name
from pyroae.evaluation.latents import Latents
from pyroae.programs.particle_check import plate_nesting
from pyroae.programs.sites import Program
from pyroae.programs.traces import prior_of
from pyroae.runtime.randomness import fork_random
from pyroae.runtime.short_repr import short_repr

Family = Literal["diagonal", "full-rank"]
"""The covariance of a local Gaussian."""


FAMILIES: tuple[Family, ...] = ("diagonal", "full-rank")


MOMENTS = 200
"""Draws whose mean and covariance the fit starts from."""


WINDOW = 25
"""Steps between two checks of whether the ELBO of a datum still increases."""


RATES = (0.3, 0.12, 0.05, 0.02, 0.008, 0.003, 0.001)
"""Step sizes, in units of the scale of the Gaussian, in the order in which they are used.

A datum proceeds to the next when its ELBO has stopped increasing.
"""


SMALL = 8
"""Largest dimension in which the noise of a full covariance does not harm the first fit."""


COMPARED = 100
"""Draws by which two fits are compared."""


@dataclass(frozen=True)
class LocalGaussian:
    """A Gaussian of each datum in unconstrained coordinates, in the program's precision and device.

        q*(u|x_n) = N(loc_n, L_n L_nᵀ)

    Attributes:
        loc: The mean, `[N, D]`.
        scale_tril: The Cholesky factor L, `[N, D, D]`, diagonal for the family `"diagonal"`.
        elbo: ELBO at the end of the fit, `[N]`, in nats, from the draws of the fit itself.
        gain: Increase of the ELBO over the last quarter of the steps, `[N]`, in nats.
        gain_se: Its Monte Carlo standard error, `[N]`, in nats. A gain well above its error says
            that the fit has not converged.
        steps: The number of steps of the fit.
        active: `[N, D]`, False for masked elements, which have no density; None without masks.
    """

    loc: Tensor
    scale_tril: Tensor
    elbo: Tensor
    gain: Tensor
    gain_se: Tensor
    steps: int
    active: Tensor | None = None

    __repr__ = short_repr()

    def draw(self, num_particles: int, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw u = loc + L ε.

        Args:
            num_particles: K.
            noise: ε, standard normal, `[K, N, D]`; None draws it.

        Returns:
            u `[K, N, D]` and log q*(u) `[K, N]`, in nats.
        """
        if noise is None:
            noise = torch.randn(
                num_particles, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device
            )
        u = self.loc + (self.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
        return u, self._log_density(noise)

    def log_prob(self, u: Tensor) -> Tensor:
        """Evaluate the log-density.

        Args:
            u: Unconstrained coordinates, `[K, N, D]`.

        Returns:
            log q*(u), `[K, N]`, in nats.
        """
        apart = (u - self.loc).unsqueeze(-1)
        noise = torch.linalg.solve_triangular(self.scale_tril, apart, upper=False)
        return self._log_density(noise.squeeze(-1))

    def inflated(self, factor: float) -> "LocalGaussian":
        """Multiply the scale, for a proposal whose tails cover those of the posterior.

        Args:
            factor: The factor on L.

        Returns:
            The same Gaussian with the scale `factor` L.
        """
        return replace(self, scale_tril=factor * self.scale_tril)

    def _log_density(self, noise: Tensor) -> Tensor:
        return _log_gaussian(noise, self.scale_tril, self.active)


def fit_local(
    model: Program,
    guide: Program | None,
    args: tuple[Tensor, ...],
    *,
    family: Family = "full-rank",
    steps: int = 1000,
    num_particles: int = 8,
    start: LocalGaussian | None = None,
    seed: int | None = None,
) -> LocalGaussian:
    """Fit the Gaussian q*(u) that maximizes the ELBO of each datum, in unconstrained coordinates.

        L[q] = E_q [log p(x, z(u)) |dz/du| − log q(u)],   u = m + L ε
        Δm = L a,   ΔL = L tril(a εᵀ),   a = Lᵀ ∇ log p(x, z(u)) + ε

    a is the path gradient with the parameters of q stopped (sticking the landing), which vanishes
    for every draw where q is the posterior. It is taken in coordinates in which q is standard
    normal: this is the natural gradient, whose steps Adam limits. Each datum has its own step
    size, which decreases when its ELBO has not increased by more than its standard error over a
    window of draws; the fit then restarts from the mean iterate of the window. It ends when all
    data are at the last step size (the rule of Cremer et al. 2018, for each datum separately).

    A diagonal fit is preceded by a full-rank fit, and starts from its mean with the scales
    (Σ⁻¹)_jj^(−½), which are optimal for a Gaussian posterior. In more than 8 dimensions, where
    noise may spoil the first full-rank fit, a second one starts from the diagonal fit, and the
    better of the two is returned for each datum.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The program whose draws give mean and covariance at the start. None takes the
            prior; for a Delta the scale is that of the prior.
        args: Arguments of both, `[N, ...]` each.
        family: `"diagonal"` or `"full-rank"`.
        steps: Largest number of steps of each fit.
        num_particles: Draws per step and datum.
        start: A full-rank fit of the same block to start from; None fits it.
        seed: Seed of the draws; the caller's generators are then left unchanged. None draws from
            these generators.

    Returns:
        The fitted Gaussian of each datum.

    Raises:
        ConfigError: For an unknown family or numbers below 1.
        ProgramError: For discrete or global latents.

    References:
        Cremer, Li and Duvenaud (2018), Inference suboptimality in variational autoencoders.
        Roeder, Wu and Duvenaud (2017), Sticking the landing.
        Kingma and Ba (2015), Adam: a method for stochastic optimization.

    >>> from pyroae import linear_gaussian, zoo
    >>> system, x = zoo.ppca(4, latent=2).double(), torch.randn(3, 4, dtype=torch.float64)
    >>> fitted = fit_local(system.model, system.guide, (x,), seed=0)
    >>> parameters = [part.detach() for part in system.linear_gaussian()]
    >>> loc, scale_tril = linear_gaussian.posterior(x, *parameters)
    >>> bool((fitted.loc - loc).abs().max() < 1e-3)
    True
    >>> bool((fitted.scale_tril - scale_tril).abs().max() < 1e-3)
    True
    """
    if family not in FAMILIES:
        raise unknown_name("family", family, FAMILIES)
    if steps < 1 or num_particles < 1:
        raise ConfigError(
            "a local fit takes steps and num_particles of at least 1, "
            f"not {steps} and {num_particles}"
        )
    with fork_random(args[0].device, seed) if seed is not None else nullcontext(), torch.no_grad():
        program = prior_of(model) if guide is None else guide
        nesting = plate_nesting(model, program, args, {})
        latents = Latents(model, program, args, num_particles, nesting)
        if start is None:
            loc, root = _moments(model, program, args, nesting)
            start = _climbed(_Climb(latents, loc, root, "full-rank", steps), num_particles)
        elif family == "full-rank":
            start = _climbed(
                _Climb(latents, start.loc, start.scale_tril, family, steps), num_particles
            )
        if family == "full-rank" and start.loc.shape[-1] <= SMALL:
            return start
        precision = torch.cholesky_inverse(start.scale_tril).diagonal(dim1=-2, dim2=-1)
        near = _Climb(
            latents,
            start.loc,
            torch.diag_embed(precision.rsqrt()),
            "diagonal",
            steps,
            rates=RATES[2:],
        )
        diagonal = _climbed(near, num_particles)
        if family == "diagonal":
            return diagonal
        again = _Climb(latents, diagonal.loc, diagonal.scale_tril, family, steps, rates=RATES[3:])
        return _better(
            Latents(model, program, args, COMPARED, nesting), start, _climbed(again, num_particles)
        )


def _better(latents: Latents, one: LocalGaussian, other: LocalGaussian) -> LocalGaussian:
    """Select for each datum the fit with the larger ELBO, estimated from the same noise."""
    noise = torch.randn_like(latents.start)
    elbos = []
    for fitted in (one, other):
        u, log_q = fitted.draw(len(noise), noise)
        elbos.append((latents.log_joint(u).total - log_q).mean(0))
    other_wins = ~(elbos[0] >= elbos[1])
    at = other_wins.cpu()
    return LocalGaussian(
        torch.where(other_wins[:, None], other.loc, one.loc),
        torch.where(other_wins[:, None, None], other.scale_tril, one.scale_tril),
        torch.where(at, other.elbo, one.elbo),
        torch.where(at, other.gain, one.gain),
        torch.where(at, other.gain_se, one.gain_se),
        max(one.steps, other.steps),
        one.active,
    )


def _moments(
    model: Program, program: Program, args: tuple[Tensor, ...], nesting: int
) -> tuple[Tensor, Tensor]:
    """Mean `[N, D]` and Cholesky factor `[N, D, D]` of draws; of the prior where they have none."""
    latents = Latents(model, program, args, MOMENTS, nesting)
    drawn, active = latents.start, latents.active
    loc, sd = drawn.mean(0), drawn.std(0)
    if active is not None:
        loc, sd = torch.where(active, loc, 0.0), torch.where(active, sd, 1.0)
    unusable = ~loc.isfinite() | ~sd.isfinite()
    flat = unusable | (sd <= 1e-9 * (1 + loc.abs()))
    if bool(flat.any()):
        prior = Latents(model, prior_of(model), args, MOMENTS, nesting).start
        loc, sd = torch.where(unusable, prior.mean(0), loc), torch.where(flat, prior.std(0), sd)
    if bool(flat.any()):
        return loc, torch.diag_embed(sd)
    apart = (drawn - loc) / sd
    if active is not None:
        apart = torch.where(active, apart, 0.0)
    size = loc.shape[-1]
    correlation = torch.einsum("kni,knj->nij", apart, apart) / (MOMENTS - 1)
    share = size / (size + MOMENTS)
    correlation = (1 - share) * correlation + share * torch.eye(
        size, dtype=loc.dtype, device=loc.device
    )
    return loc, sd.unsqueeze(-1) * torch.linalg.cholesky(correlation)


def _climbed(climb: "_Climb", num_particles: int) -> LocalGaussian:
    while climb.step < climb.most and not climb.is_done:
        climb.move(num_particles)
    return climb.result()


class _Climb:
    """Adam on the mean and the Cholesky factor of all data, with one step size per datum."""

    def __init__(
        self,
        latents: Latents,
        loc: Tensor,
        root: Tensor,
        family: Family,
        steps: int,
        rates: tuple[float, ...] = RATES,
    ) -> None:
        self.latents, self.loc, self.root, self.most = latents, loc, root, steps
        shape = torch.ones_like(root[0])
        self._mask = (
            shape.tril()
            if family == "full-rank"
            else torch.eye(len(shape), dtype=root.dtype, device=root.device)
        )
        if latents.active is not None:
            self._mask = self._mask * (latents.active.unsqueeze(-1) & latents.active.unsqueeze(-2))
        self._averages = [torch.zeros_like(t) for t in (loc, loc, root, root)]
        self._rates = torch.tensor(rates, dtype=loc.dtype, device=loc.device)
        self._stage = torch.zeros(len(loc), dtype=torch.long, device=loc.device)
        self._best = torch.full((len(loc),), -math.inf, dtype=torch.float64, device=loc.device)
        self._sums = (torch.zeros_like(loc), torch.zeros_like(root))
        self._elbos: list[Tensor] = []
        self.step = 0

    @property
    def is_done(self) -> bool:
        """Whether no datum improves with the smallest step size any more."""
        return bool((self._stage >= len(self._rates)).all())

    def move(self, num_particles: int) -> None:
        """One step of all data; after every `WINDOW` steps a check of their ELBOs."""
        noise = torch.randn(
            num_particles, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device
        )
        with torch.enable_grad():
            u = (self.loc + (self.root @ noise.unsqueeze(-1)).squeeze(-1)).requires_grad_()
            log_joint = self.latents.log_joint(u).total
            gradient = torch.autograd.grad(log_joint.sum(), u)[0].nan_to_num(0.0, 0.0, 0.0)
        path = (self.root.mT @ gradient.unsqueeze(-1)).squeeze(-1) + noise
        if self.latents.active is not None:
            path = torch.where(self.latents.active, path, 0.0)
        outer = torch.einsum("kni,knj->nij", path, noise) / num_particles * self._mask
        log_q = _log_gaussian(noise, self.root, self.latents.active)
        self._elbos.append((log_joint.detach() - log_q).double().mean(0))
        left = 4 * (1 - self.step / self.most)
        rate = self._rates[self._stage.clamp_max(len(self._rates) - 1)].minimum(
            self._rates[0] * left
        )
        rate = rate * (self._stage < len(self._rates))
        self.step += 1
        by_loc = self._adam(0, path.mean(0), rate[:, None])
        change = self._adam(2, outer, rate[:, None, None].clamp_max(0.1))
        self.loc = self.loc + (self.root @ by_loc.unsqueeze(-1)).squeeze(-1)
        diagonal = change.diagonal(dim1=-2, dim2=-1)
        self.root = self.root @ (change.tril(-1) + torch.diag_embed(diagonal.exp()))
        self._sums = (self._sums[0] + self.loc, self._sums[1] + self.root)
        if self.step % WINDOW == 0:
            self._check_progress()

    def _adam(self, which: int, gradient: Tensor, rate: Tensor) -> Tensor:
        """Adam's step with decay rates 0.9 and 0.99: at most about `rate`, else the gradient."""
        first = self._averages[which] = 0.9 * self._averages[which] + 0.1 * gradient
        second = self._averages[which + 1] = (
            0.99 * self._averages[which + 1] + 0.01 * gradient.square()
        )
        size = (second / (1 - 0.99**self.step)).sqrt() + rate
        return rate * (first / (1 - 0.9**self.step)) / size.clamp_min(1e-12)

    def _check_progress(self) -> None:
        """Where the ELBO has not increased: a smaller step, from the mean iterate of the window."""
        window = torch.stack(self._elbos[-WINDOW:])
        now, error = window.mean(0), window.std(0) / math.sqrt(WINDOW)
        stalled = ~(now > self._best + error) & (self._stage < len(self._rates))
        self._best = torch.maximum(self._best, now.nan_to_num(nan=-math.inf))
        self.loc = torch.where(stalled[:, None], self._sums[0] / WINDOW, self.loc)
        self.root = torch.where(stalled[:, None, None], self._sums[1] / WINDOW, self.root)
        self._stage = self._stage + stalled
        self._sums = (torch.zeros_like(self.loc), torch.zeros_like(self.root))

    def result(self) -> LocalGaussian:
        """The current fit, with the gain over the last quarter of its steps."""
        elbos = torch.stack(self._elbos)
        quarter = max(1, len(elbos) // 4)
        eighth = max(1, quarter // 2)
        last, before = elbos[-eighth:], elbos[-quarter - eighth : -quarter]
        before = before if len(before) else elbos[:1]
        several = eighth > 1
        error = (
            (last.var(0) / len(last) + before.var(0) / len(before)).sqrt()
            if several
            else last[0] * math.nan
        )
        gain = (last.mean(0) - before.mean(0)).cpu()
        active = self.latents.active
        return LocalGaussian(
            self.loc, self.root, last.mean(0).cpu(), gain, error.cpu(), self.step, active
        )


def _log_gaussian(noise: Tensor, root: Tensor, active: Tensor | None) -> Tensor:
    """Evaluate log N(m + L ε; m, L Lᵀ) `[K, N]` at ε `[K, N, D]`, over the active elements."""
    terms = -0.5 * (noise.square() + math.log(2 * math.pi)) - root.diagonal(dim1=-2, dim2=-1).log()
    return (terms if active is None else torch.where(active, terms, 0.0)).sum(-1)
