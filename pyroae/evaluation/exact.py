"""Compute log p(x) of linear-Gaussian systems in closed form, with mixtures as priors too."""

import torch
from torch import Tensor

from pyroae import linear_gaussian
from pyroae.autoencoder import Autoencoder
from pyroae.errors import DataError
from pyroae.priors import MixtureDistribution
from pyroae.programs.context import evaluating


@torch.no_grad()
def exact_log_likelihood(autoencoder: Autoencoder, x: Tensor) -> Tensor:
    """Compute log p(x_n) of a linear-Gaussian system in closed form.

        log p(x_n) = log N(x_n; b, W Wᵀ + σ² I)
        log p(x_n) = log Σ_c π_c N(x_n; W μ_c + b, W Σ_c Wᵀ + σ² I)

    The second is that of a mixture of Gaussians as the prior, Σ_c π_c N(z; μ_c, Σ_c), which is also
    a VampPrior whose posteriors are Gaussian.

    Args:
        autoencoder: A system with a standard normal prior or a mixture of Gaussians, a linear
            decoder z ↦ W z + b, and a normal likelihood with scale σ.
        x: Data `[N, ...]`.

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
    parts = autoencoder.linear_gaussian() if mixture is None else autoencoder.linear_likelihood()
    flat = autoencoder.flat(x).double()
    if not len(flat) or flat.is_meta:
        raise DataError(
            f"x has no data: its shape is {tuple(flat.shape)}, on the device {flat.device}"
        )
    finite = flat.isfinite().all(-1)
    if not finite.all():
        n = int((~finite).nonzero()[0])
        raise DataError(
            f"log p(x) of datum {n} does not exist: its value at the site 'x' is not finite"
        )
    weight, bias, scale = (part.double() for part in parts)
    if mixture is None:
        return linear_gaussian.marginal(weight, bias, scale).log_prob(flat).cpu()
    log_weights, loc, tril = (part.double() for part in mixture)
    each = linear_gaussian.marginal(weight @ tril, loc @ weight.t() + bias, scale)
    return (log_weights + each.log_prob(flat[:, None])).logsumexp(-1).cpu()


def _gaussians(autoencoder: Autoencoder) -> tuple[Tensor, Tensor, Tensor] | None:
    """Log-weights, means and Cholesky factors of a mixture of Gaussians; None of other priors."""
    with evaluating(autoencoder):
        p_z = autoencoder.p_z()
        return p_z.gaussians() if isinstance(p_z, MixtureDistribution) else None
