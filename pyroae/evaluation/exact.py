"""Compute log p(x) and draw from p(z|x) of linear-Gaussian systems in closed form."""

import torch
from torch import Tensor

from pyroae import linear_gaussian
from pyroae.autoencoder import Autoencoder
from pyroae.errors import DataError, UndefinedLikelihoodError
from pyroae.evaluation.blocks import CHUNK
from pyroae.priors import MixtureDistribution
from pyroae.programs.context import evaluating
from pyroae.runtime.randomness import fork_random


@torch.no_grad()
def exact_log_likelihood(autoencoder: Autoencoder, x: Tensor, c: Tensor | None = None) -> Tensor:
    """Compute log p(x_n) of a linear-Gaussian system in closed form.

        log p(x_n) = log N(x_n; b, W Wᵀ + σ² I),   b = b(c_n) for a conditional system
        log p(x_n) = log Σ_c π_c N(x_n; W μ_c + b, W Σ_c Wᵀ + σ² I)

    The second is that of a mixture of Gaussians as the prior, Σ_c π_c N(z; μ_c, Σ_c), which is also
    a VampPrior whose posteriors are Gaussian. Where values are missing, it is log p of the observed
    features: W and b have their rows only.

    Args:
        autoencoder: A system with a standard normal prior or a mixture of Gaussians, a linear
            decoder z ↦ W z + b, and a normal likelihood with scale σ.
        x: Data `[N, ...]`.
        c: The conditions `[N, C]` of a conditional system.

    Returns:
        log p(x) of each datum, `[N]`, float64, in nats.

    Raises:
        UndefinedLikelihoodError: For another system, with the choice that is not linear-Gaussian.
        DataError: For no data, or a datum that is not finite.

    References:
        Tipping & Bishop 1999, Probabilistic principal component analysis.

    >>> from pyroae import zoo
    >>> exact_log_likelihood(zoo.ppca(3, latent=1), torch.zeros(2, 3)).shape
    torch.Size([2])
    >>> exact_log_likelihood(zoo.vae(3, latent=1), torch.zeros(2, 3))
    Traceback (most recent call last):
    pyroae.errors.UndefinedLikelihoodError: closed forms need a linear-Gaussian system; ...
    """
    mixture = _gaussians(autoencoder)
    parts = autoencoder.linear_gaussian(c) if mixture is None else autoencoder.linear_likelihood(c)
    flat = _flat(autoencoder, x)
    weight, bias, scale = (part.double() for part in parts)
    if mixture is None:
        return _log_prob(flat, weight, bias, scale).cpu()
    log_weights, loc, tril = (part.double() for part in mixture)
    each = _log_prob(flat[:, None], weight @ tril, loc @ weight.t() + bias, scale)
    return (log_weights + each).logsumexp(-1).cpu()


@torch.no_grad()
def exact_posterior_draws(
    autoencoder: Autoencoder,
    x: Tensor,
    c: Tensor | None = None,
    *,
    num_chains: int = 4,
    num_draws: int = 100,
    seed: int | None = None,
) -> dict[str, Tensor]:
    """Draw from the posterior of a linear-Gaussian system, independently.

        z|x ~ N(M⁻¹Wᵀ(x − b), σ²M⁻¹),   M = WᵀW + σ²I

    Given some features only, W and b have their rows only.

    Args:
        autoencoder: A system with a standard normal prior, one layer of z, a linear decoder
            z ↦ W z + b, and a normal likelihood with scale σ.
        x: Data `[N, ...]`.
        c: The conditions `[N, C]` of a conditional system.
        num_chains: C, parts of the draws that ArviZ may compare.
        num_draws: S, draws of each part.
        seed: Seed of the draws; the caller's generators are then left unchanged.

    Returns:
        The draws of the site z, `[C, S, N, m]`.

    Raises:
        UndefinedLikelihoodError: For another system, with the choice that is not linear-Gaussian.
        DataError: For no data, or a datum that is not finite.

    >>> from pyroae import zoo
    >>> exact_posterior_draws(zoo.ppca(3, latent=1), torch.zeros(2, 3), num_draws=5)["z"].shape
    torch.Size([4, 5, 2, 1])
    """
    if len(autoencoder.layers) > 1:
        raise UndefinedLikelihoodError(
            f"draws in closed form need one layer of z, not {len(autoencoder.layers)}"
        )
    weight, bias, scale = (part.double() for part in autoencoder.linear_gaussian(c))
    flat = _flat(autoencoder, x)
    observed = None if not flat.isnan().any() else ~flat.isnan()
    loc, tril = linear_gaussian.posterior(flat, weight, bias, scale, observed)
    with fork_random(flat.device, seed):
        noise = torch.randn(num_chains, num_draws, *loc.shape, 1, dtype=loc.dtype).to(loc)
    return {"z": (loc + (tril @ noise).squeeze(-1)).cpu()}


def _flat(autoencoder: Autoencoder, x: Tensor) -> Tensor:
    """Data as rows `[N, d]`, float64; raises DataError for what has no log p(x)."""
    flat = autoencoder.flat(x).double()
    if not len(flat) or flat.is_meta:
        raise DataError(
            f"x has no data: its shape is {tuple(flat.shape)}, on the device {flat.device}"
        )
    finite = (flat.isfinite() | (flat.isnan() & autoencoder.missing)).all(-1)
    if not finite.all():
        n = int((~finite).nonzero()[0])
        raise DataError(
            f"log p(x) of datum {n} does not exist: its value at the site 'x' is not finite"
        )
    return flat


def _log_prob(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    """Log p of what is observed of x `[N, ..., d]`, for W `[..., d, m]`."""
    if not x.isnan().any():
        return linear_gaussian.marginal(weight, bias, scale).log_prob(x)
    rows = max(1, CHUNK // weight.numel())
    biases = bias.split(rows) if bias.dim() == 2 and len(bias) == len(x) else None
    parts = [
        linear_gaussian.observed_log_prob(
            part, weight, bias if biases is None else biases[i], scale, ~part.isnan()
        )
        for i, part in enumerate(x.split(rows))
    ]
    return torch.cat(parts)


def _gaussians(autoencoder: Autoencoder) -> tuple[Tensor, Tensor, Tensor] | None:
    """Log-weights, means and Cholesky factors of a mixture of Gaussians; None of other priors."""
    with evaluating(autoencoder):
        p_z = autoencoder.p_z()
        return p_z.gaussians() if isinstance(p_z, MixtureDistribution) else None
