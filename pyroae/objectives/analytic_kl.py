"""The ELBO with its KL in closed form."""

from typing import Any

from torch import Tensor
from torch.distributions import kl_divergence

from pyroae.objectives.base import OBJECTIVES, Bound, ObjectiveBase, check_reparameterized
from pyroae.weights import Site, Traces, log_density


@OBJECTIVES.register("analytic-kl")
class AnalyticKL(ObjectiveBase):
    """The evidence lower bound with the KL in closed form where there is one.

        L = Σ_n (1/K) Σ_k log p(x_n|z_kn) − KL(q(z|x_n) ‖ p(z))

    In nats, over all data. For a diagonal Gaussian KL = ½ Σ_j (μ_j² + σ_j² − 1 − log σ_j²) (Kingma & Welling 2014). A
    site without a closed form takes log q − log p at its draws, as `pyro.infer.TraceMeanField_ELBO` does; so do all
    sites where model and guide draw them in different orders, for there the closed form would be wrong. With a scale
    s_p on a site of the model and s_q on that of the guide the term is E_q[s_q log q − s_p log p]
    = s_p KL − (s_q − s_p) H(q). Raises ProgramError for draws that carry no gradient.

    >>> import torch
    >>> from pyroae import zoo
    >>> system, x = zoo.vae(4, latent=2), torch.ones(3, 4)
    >>> AnalyticKL(num_particles=8).loss(system.model, system.guide, x).shape
    torch.Size([])
    """

    def estimate(self, traces: Traces) -> Bound:
        check_reparameterized(traces, "analytic-kl")
        local: list[Tensor] = []
        outside: list[Tensor] = []
        for name, site in traces.sites(traces.model, observed=True):
            term = traces.reduce(site, log_density(name, site))
            (local if traces.is_local(site) else outside).append(term)
        drawn = dict(traces.sites(traces.guide, observed=False))
        latent = dict(traces.sites(traces.model, observed=False))
        ordered = list(latent) == [name for name in drawn if name in latent]
        for name, q in drawn.items():
            term = -_divergence(traces, name, q, latent.get(name), ordered)
            (local if traces.is_local(q) else outside).append(term)
        parts = [(traces.scale * term.mean(0)).sum() for term in local] + [term.mean() for term in outside]
        value = sum(parts[1:], parts[0])
        return Bound(value, value)


def _divergence(traces: Traces, name: str, q: Site, p: Site | None, ordered: bool) -> Tensor:
    """E_q[s_q log q − s_p log p] of one site, `[K, N]`: closed form, or its value at the draws."""
    if p is not None and ordered and p["mask"] is q["mask"]:
        try:
            of_p, of_q = traces.exponent(p), traces.exponent(q)
            term = traces.reduce(p, kl_divergence(q["fn"], p["fn"]), of_p)
            return term if _equal(of_p, of_q) else term - traces.reduce(q, q["fn"].entropy(), of_q - of_p)
        except NotImplementedError:
            pass
    at_draws = traces.reduce(q, log_density(name, q))
    return at_draws if p is None else at_draws - traces.reduce(p, log_density(name, p))


def _equal(one: Any, other: Any) -> bool:
    return one is other or (not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other)
