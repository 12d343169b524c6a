"""The ELBO with a Monte-Carlo KL."""

from pyroae.objectives.base import OBJECTIVES, Bound, Objective, check_reparameterized
from pyroae.weights import Traces, reduce_log_weights


@OBJECTIVES.register("trace-elbo")
class TraceELBO(Objective):
    """The evidence lower bound, every term by Monte Carlo.

        L = Σ_n (1/K) Σ_k [log p(x_n|z_kn) + log p(z_kn) − log q(z_kn|x_n)],   z_kn = μ_n + σ_n ε_kn

    In nats, over all data. Gradient by reparameterization (Kingma & Welling 2014); a Delta guide makes it the MAP
    objective. Equal to `pyro.infer.Trace_ELBO` for reparameterized guides. Raises ProgramError for others.

    >>> import pyro, torch
    >>> from pyroae import zoo
    >>> system = zoo.ppca(2, latent=1, exact=True)  # its ELBO is log p(x), whatever the draw
    >>> x = torch.tensor([[0.5, -1.0]])
    >>> exact = system.linear_gaussian()
    >>> from pyroae.linear_gaussian import marginal
    >>> torch.allclose(-TraceELBO(num_particles=3).loss(system.model, system.guide, x), marginal(*exact).log_prob(x))
    True
    """

    def estimate(self, traces: Traces) -> Bound:
        check_reparameterized(traces, "trace-elbo")
        weights = reduce_log_weights(traces)
        value = weights.total(weights.log_weight.mean(0))
        return Bound(value, value)
