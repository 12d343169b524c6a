"""The ELBO, its discrete sites summed exactly, as a registered objective."""

from pyroae.objectives.base import OBJECTIVES
from pyroae.objectives.bounds import ELBO
from pyroae.objectives.enumerated import MOST, Enumerate
from pyroae.objectives.pair import Objective


@OBJECTIVES.register("enumerate")
def enumerate_(num_particles: int = 1, limit: int = MOST) -> Objective:
    """ELBO × Enumerate: the ELBO with every discrete site of the guide summed exactly.

        L = Σ_n (1/K) Σ_k Σ_s q(y_s | x_n) [log p(x_n, y_s, z_ks) − log q(y_s, z_ks | x_n)]

    The bound is in nats, over all data. y_1, …, y_S are the joint values of the discrete sites of a
    datum, marked or not; the model runs S·K times per datum. Where all latent sites are discrete,
    value and gradient have no noise.

    Args:
        num_particles: K, the number of draws of the continuous sites for each joint value.
        limit: The largest S; a guide with more joint values is refused.

    Returns:
        The objective.

    References:
        Kingma, Rezende, Mohamed & Welling 2014, Semi-Supervised Learning with Deep Generative
            Models.

    >>> import torch
    >>> from pyroae import zoo
    >>> system, x = zoo.discrete_vae(4, latent=3), torch.ones(2, 4)
    >>> losses = [enumerate_().loss(system.model, system.guide, x) for _ in range(2)]
    >>> losses[0] == losses[1]
    True
    """
    return Objective(ELBO(num_particles), Enumerate(limit))
