"""The ELBO with a Monte-Carlo KL."""

from pyroae.objectives.base import OBJECTIVES
from pyroae.objectives.bounds import ELBO
from pyroae.objectives.gradients import Pathwise
from pyroae.objectives.pair import Objective


@OBJECTIVES.register("trace-elbo")
class TraceELBO(Objective):
    """The evidence lower bound, every term by Monte Carlo.

        L = Σ_n (1/K) Σ_k [log p(x_n|z_kn) + log p(z_kn) − log q(z_kn|x_n)],   z_kn = μ_n + σ_n ε_kn

    In nats, over all data. Gradient by reparameterization (Kingma & Welling 2014), with score terms for draws that carry no
    path gradient; a Delta guide makes it the MAP objective. Value and gradient are those of `pyro.infer.Trace_ELBO`.

    >>> import pyro, torch
    >>> from pyroae import zoo
    >>> system = zoo.ppca(2, latent=1, exact=True)  # its ELBO is log p(x), whatever the draw
    >>> x = torch.tensor([[0.5, -1.0]])
    >>> exact = system.linear_gaussian()
    >>> from pyroae.linear_gaussian import marginal
    >>> loss = TraceELBO(num_particles=3).loss(system.model, system.guide, x)
    >>> abs(loss + marginal(*exact).log_prob(x).item()) < 1e-5
    True
    """

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(ELBO(num_particles), Pathwise())
