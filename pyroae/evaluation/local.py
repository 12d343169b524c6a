"""Gaussians fitted to the posterior of each datum, without an encoder.

They show what the family of a guide can reach at best (Cremer et al. 2018).
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import pyro
import torch
from torch import Tensor

from pyroae.errors import ConfigError, unknown_name
from pyroae.evaluation.gaussian_newton import Target, maximize
from pyroae.programs.particle_check import plate_nesting
from pyroae.programs.sites import Program
from pyroae.programs.traces import prior_of
from pyroae.runtime.randomness import fork_random
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import number

Family = Literal["diagonal", "full-rank"]
"""The covariance of a local Gaussian."""


FAMILIES: tuple[Family, ...] = ("diagonal", "full-rank")


MOMENTS = 200
"""Draws whose mean and covariance the fit starts from."""


FEWEST_PAIRS = 64
"""Pairs ±ε per step where there are fewer dimensions."""


@dataclass(frozen=True, repr=False)
class LocalGaussian(Shown):
    """A Gaussian of each datum in unconstrained coordinates, in the program's precision and device.

        q*(u|x_n) = N(loc_n, L_n L_nᵀ)

    Attributes:
        loc: The mean, `[N, D]`.
        scale_tril: The Cholesky factor L, `[N, D, D]`, diagonal for the family `"diagonal"`.
        elbo: ELBO at the end of the fit, `[N]`, in nats, from the draws of the fit itself.
        gain: Increase of the ELBO in the last step, `[N]`, in nats.
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

    def _overview(self) -> Overview:
        count, size = self.loc.shape
        elbo = number(self.elbo.mean().item(), 5)
        gain = f"last step {self.gain.mean().item():.2g}"
        head = [f"N={count}", f"D={size}", f"{self.steps} steps", f"ELBO {elbo} nats", gain]
        return Overview(head)

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
        u = self.loc + (noise.movedim(1, 0) @ self.scale_tril.mT).movedim(0, 1)
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
    steps: int = 100,
    num_particles: int | None = None,
    start: LocalGaussian | None = None,
    seed: int | None = None,
) -> LocalGaussian:
    """Fit the Gaussian q*(u) that maximizes the ELBO of each datum, in unconstrained coordinates.

        L[q] = E_q [log p(x, z(u)) |dz/du| − log q(u)],   u = m + L ε
        a(ε) = Lᵀ ∇ log p(x, z(u)) |dz/du| + ε,   optimal where E a = 0 and E[a εᵀ] = 0

    a is the path gradient with the parameters of q stopped (sticking the landing), which vanishes
    for every draw where q is the posterior. A step is a Newton step to the zero of the linear
    regression of a on ε: one step reaches a Gaussian posterior. Steps that lower the ELBO are
    undone and shortened; when the ELBO of a datum has stopped increasing, a few more steps are
    averaged (`gaussian_newton.maximize`). Fits of 50 dimensions take about 10 steps of 100 draws.

    A diagonal fit is preceded by a full-rank fit, and starts from its mean with the scales
    (Σ⁻¹)_jj^(−½), which are optimal for a Gaussian posterior.

    Args:
        model: The Pyro program p(z) p(x|z).
        guide: The program whose draws give mean and covariance at the start. None takes the
            prior; for a Delta the scale is that of the prior.
        args: Arguments of both, `[N, ...]` each.
        family: `"diagonal"` or `"full-rank"`.
        steps: Largest number of steps of each fit.
        num_particles: Draws per step and datum, in pairs ±ε that all data share; at least 4 are
            drawn. None takes 2 max(D, 64). With fewer than 2 D a step changes the covariance in a
            subspace only.
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
        Salimans and Knowles (2013), Fixed-form variational posterior approximation through
        stochastic linear regression.

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
    if steps < 1 or (num_particles is not None and num_particles < 1):
        raise ConfigError(
            "a local fit takes steps and num_particles of at least 1, "
            f"not {steps} and {num_particles}"
        )
    draws = fork_random(args[0].device, seed) if seed is not None else nullcontext()
    with draws, torch.no_grad(), pyro.validation_enabled(False):  # a step may be far off
        program = prior_of(model) if guide is None else guide
        target = Target(model, program, args, plate_nesting(model, program, args, {}))
        if start is None:
            start = _fitted(target, *_moments(target), "full-rank", steps, num_particles)
        elif family == "full-rank":
            start = _fitted(target, start.loc, start.scale_tril, family, steps, num_particles)
        if family == "full-rank":
            return start
        precision = torch.cholesky_inverse(start.scale_tril).diagonal(dim1=-2, dim2=-1)
        scales = torch.diag_embed(precision.rsqrt())
        return _fitted(target, start.loc, scales, family, steps, num_particles)


def _fitted(
    target: Target,
    loc: Tensor,
    root: Tensor,
    family: Family,
    steps: int,
    num_particles: int | None,
) -> LocalGaussian:
    """The fit from a start; its scale is the Cholesky factor of the covariance."""
    num_pairs = (
        max(loc.shape[-1], FEWEST_PAIRS)
        if num_particles is None
        else max(2, -(-num_particles // 2))
    )
    diagonal = family == "diagonal"
    fits, count = maximize(target, loc, root, diagonal=diagonal, steps=steps, num_pairs=num_pairs)
    upper = fits.root if diagonal else torch.linalg.qr(fits.root.mT)[1]
    sign = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(upper)
    return LocalGaussian(
        fits.loc,
        (upper * sign.unsqueeze(-1)).mT,
        fits.elbo.cpu(),
        fits.gain.cpu(),
        fits.gain_variance.sqrt().cpu(),
        count,
        target.latents(1).active,
    )


def _moments(target: Target) -> tuple[Tensor, Tensor]:
    """Mean `[N, D]` and Cholesky factor `[N, D, D]` of draws; of the prior where they have none."""
    latents = target.latents(MOMENTS)
    drawn, active = latents.start, latents.active
    loc, sd = drawn.mean(0), drawn.std(0)
    if active is not None:
        loc, sd = torch.where(active, loc, 0.0), torch.where(active, sd, 1.0)
    unusable = ~loc.isfinite() | ~sd.isfinite()
    flat = unusable | (sd <= 1e-9 * (1 + loc.abs()))
    if bool(flat.any()):
        prior = replace(target, guide=prior_of(target.model)).latents(MOMENTS).start
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


def _log_gaussian(noise: Tensor, root: Tensor, active: Tensor | None) -> Tensor:
    """Evaluate log N(m + L ε; m, L Lᵀ) `[K, N]` at ε `[K, N, D]`, over the active elements."""
    terms = -0.5 * (noise.square() + math.log(2 * math.pi)) - root.diagonal(dim1=-2, dim2=-1).log()
    return (terms if active is None else torch.where(active, terms, 0.0)).sum(-1)
