"""Posteriors over binary and categorical z."""

from dataclasses import dataclass

import pyro.distributions as dist
from torch import Tensor

from pyroae.distributions import BINARY, OneHots, one_hot, states_of
from pyroae.posteriors.base import POSTERIORS, Encoding, Posterior


@POSTERIORS.register("bernoulli")
@dataclass(frozen=True)
class Bernoulli(Posterior):
    """Independent binary variables q(z_j|x) = Bernoulli(p_j(x)), not reparameterized.

    The encoder's outputs are the logits of p_j(x).

    >>> import torch
    >>> from pyroae import zoo
    >>> q_z = zoo.discrete_vae(4, latent=2).q_z(torch.zeros(3, 4))
    >>> q_z.batch_shape, q_z.event_shape, q_z.has_rsample
    (torch.Size([3]), torch.Size([2]), False)
    """

    def support(self, latent: int) -> str:
        """Return `binary`."""
        return BINARY

    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        """Return Bernoulli(p_j(x)) for each feature, event shape `[m]`."""
        return dist.Bernoulli(logits=system.encoder(x)).to_event(1)


@POSTERIORS.register("categorical")
@dataclass(frozen=True)
class Categorical(Posterior):
    """Independent categorical variables, concatenated in z as one-hot vectors.

    The encoder's outputs are the logits of the states. The draws are not reparameterized.

    Attributes:
        categories: C, the number of states of each variable; z holds m / C variables. None for one
            variable with m states.

    >>> import torch
    >>> from pyroae import zoo
    >>> zoo.discrete_vae(4, latent=6, categories=3).q_z(torch.zeros(5, 4)).sample().sum(-1)
    tensor([2., 2., 2., 2., 2.])
    """

    categories: int | None = None

    def support(self, latent: int) -> str:
        """Return the name of one-hot vectors of C states; refuse a C that does not divide m."""
        return one_hot(states_of(latent, self.categories))

    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        """Return the concatenated one-hot variables, event shape `[m]`."""
        logits = system.encoder(x)
        return OneHots(logits.unflatten(-1, (-1, states_of(logits.shape[-1], self.categories))))
