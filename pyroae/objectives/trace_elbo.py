"""The ELBO with a Monte-Carlo KL."""

from pyroae.objectives.base import OBJECTIVES
from pyroae.objectives.bounds import ELBO
from pyroae.objectives.gradients import Pathwise
from pyroae.objectives.pair import Objective


@OBJECTIVES.register("trace-elbo")
class TraceELBO(Objective):
    """The evidence lower bound, with every term estimated by Monte Carlo.

        L = Σ_n (1/K) Σ_k [log p(x_n|z_kn) + log p(z_kn) − log q(z_kn|x_n)],   z_kn = μ_n + σ_n ε_kn

    The bound is in nats, over all data. The gradient is by reparameterization, with score terms for
    draws that carry no path gradient. With a Delta guide it is the MAP objective. Value and
    gradient equal those of `pyro.infer.Trace_ELBO`.

    Args:
        num_particles: K, the number of draws of z per datum.

    Raises:
        ConfigError: `num_particles` is not a whole number of at least 1.

    References:
        Kingma & Welling 2014, Auto-Encoding Variational Bayes.

    >>> import pyro, torch
    >>> from pyroae import zoo
    >>> system = zoo.ppca(2, latent=1, exact=True)  # its ELBO is log p(x) for every draw
    >>> x = torch.tensor([[0.5, -1.0]])
    >>> exact = system.linear_gaussian()
    >>> from pyroae.linear_gaussian import marginal
    >>> loss = TraceELBO(num_particles=3).loss(system.model, system.guide, x)
    >>> abs(loss + marginal(*exact).log_prob(x).item()) < 1e-5
    True
    """

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(ELBO(num_particles), Pathwise())
