"""log p(x) in closed form, where there is one."""

import torch
from torch import Tensor

from pyroae import linear_gaussian
from pyroae.autoencoder import Autoencoder
from pyroae.errors import DataError


@torch.no_grad()
def exact_log_likelihood(autoencoder: Autoencoder, x: Tensor) -> Tensor:
    """log p(x_n) = log N(x_n; b, WWᵀ + σ²I) of a linear-Gaussian system, `[N]`, float64, nats (Tipping & Bishop 1999).

    Raises UndefinedLikelihoodError, naming the choice that is not linear-Gaussian, for other systems, DataError for a
    datum that is not finite.

    >>> from pyroae import zoo
    >>> exact_log_likelihood(zoo.ppca(3, latent=1), torch.zeros(2, 3)).shape
    torch.Size([2])
    >>> exact_log_likelihood(zoo.vae(3, latent=1), torch.zeros(2, 3))
    Traceback (most recent call last):
    pyroae.errors.UndefinedLikelihoodError: closed forms need a linear-Gaussian system; the likelihood is Bernoulli(), ...
    """
    parts, flat = (
        (part.double() for part in autoencoder.linear_gaussian()),
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
