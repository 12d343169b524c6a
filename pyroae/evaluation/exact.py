"""Compute log p(x) of linear-Gaussian systems in closed form."""

import torch
from torch import Tensor

from pyroae import linear_gaussian
from pyroae.autoencoder import Autoencoder
from pyroae.errors import DataError


@torch.no_grad()
def exact_log_likelihood(autoencoder: Autoencoder, x: Tensor, c: Tensor | None = None) -> Tensor:
    """Compute log p(x_n) of a linear-Gaussian system in closed form.

        log p(x_n) = log N(x_n; b, W Wᵀ + σ² I),   b = b(c_n) for a conditional system

    Args:
        autoencoder: A system with a standard normal prior, a linear decoder z ↦ W z + b, and a
            normal likelihood with scale σ.
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
    parts, flat = (
        (part.double() for part in autoencoder.linear_gaussian(c)),
        autoencoder.flat(x).double(),
    )
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
    return linear_gaussian.marginal(*parts).log_prob(flat).cpu()
