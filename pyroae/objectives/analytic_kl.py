"""The ELBO with its KL in closed form."""

import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from pyroae.objectives.base import OBJECTIVES, Bound, ObjectiveBase, check_reparameterized
from pyroae.programs.sites import Site, base_distribution, same_scale
from pyroae.programs.traces import Traces, log_density


@OBJECTIVES.register("analytic-kl")
class AnalyticKL(ObjectiveBase):
    """The evidence lower bound with the KL in closed form where there is one.

        L = Σ_n (1/K) Σ_k log p(x_n|z_kn) − KL(q(z|x_n) ‖ p(z))

    In nats, over all data. For a diagonal Gaussian KL = ½ Σ_j (μ_j² + σ_j² − 1 − log σ_j²) (Kingma & Welling 2014). A
    site without a closed form takes log q − log p at its draws, as `pyro.infer.TraceMeanField_ELBO` does; so do all
    sites where model and guide draw them in different orders, for there the closed form would be wrong. With a scale
    s_p on a site of the model and s_q on that of the guide the term is E_q[s_q log q − s_p log p]
    = s_p KL − (s_q − s_p) H(q). Factors, observed sites and Deltas of the guide are terms of log q, at the draws.
    Raises ProgramError for draws that do not carry their whole path gradient.

    >>> import torch
    >>> from pyroae import zoo
    >>> system, x = zoo.vae(4, latent=2), torch.ones(3, 4)
    >>> AnalyticKL(num_particles=8).loss(system.model, system.guide, x) > 0
    True
    """

    @property
    def is_elbo(self) -> bool:
        return True

    def estimate(self, traces: Traces) -> Bound:
        check_reparameterized(traces, "analytic-kl")
        rate = sum(kl_of(traces, name, site) for name, site in latents_of(traces))
        value = log_likelihood_of(traces) - rate - log_terms_of(traces)
        return Bound(value, value)


def latents_of(traces: Traces) -> list[tuple[str, Site]]:
    """Names and sites of what the guide has drawn."""
    return list(traces.sites(traces.guide, observed=False))


def log_likelihood_of(traces: Traces) -> Tensor:
    """Σ_n (1/K) Σ_k log p(x_n|z_kn), over all data."""
    return _sum_of(traces, traces.model)


def log_terms_of(traces: Traces) -> Tensor:
    """The factors and observed sites of the guide, mean over particles and over all data."""
    return _sum_of(traces, traces.guide)


def _sum_of(traces: Traces, trace: poutine.Trace) -> Tensor:
    """Σ of the log-densities of observed sites over all data, mean over particles; 0 where there are none."""
    sites = traces.sites(trace, observed=True)
    terms = [
        traces.total(site, traces.reduce(site, log_density(name, site))) for name, site in sites
    ]
    return sum(terms[1:], terms[0]) if terms else torch.zeros(())


def kl_of(traces: Traces, name: str, q: Site) -> Tensor:
    """KL(q ‖ p) of one latent site of the guide over all data, in closed form where there is one."""
    latent = dict(traces.sites(traces.model, observed=False))
    ordered = list(latent) == [other for other, _ in latents_of(traces) if other in latent]
    return traces.total(q, _divergence(traces, name, q, latent.get(name), ordered))


def closed_kl(q: Distribution, p: Distribution) -> Tensor:
    """KL(q ‖ p) in closed form, NotImplementedError where there is none.

    Pyro's of a Delta leaves out its `log_density`; that under `.mask(False)` is a number without a shape.
    """
    if isinstance(base_distribution(q), Delta):
        raise NotImplementedError
    divergence = kl_divergence(q, p)
    if not isinstance(divergence, Tensor):
        raise NotImplementedError
    return divergence


def _divergence(traces: Traces, name: str, q: Site, p: Site | None, ordered: bool) -> Tensor:
    """E_q[s_q log q − s_p log p] of one site, `[K, N]`: closed form, or its value at the draws."""
    if p is not None and ordered and p["mask"] is q["mask"]:
        try:
            of_p, of_q = traces.exponent(p), traces.exponent(q)
            term = traces.reduce(p, closed_kl(q["fn"], p["fn"]), of_p)
            return (
                term
                if same_scale(of_p, of_q)
                else term - traces.reduce(q, q["fn"].entropy(), of_q - of_p)
            )
        except NotImplementedError:
            pass
    at_draws = traces.reduce(q, log_density(name, q))
    return at_draws if p is None else at_draws - traces.reduce(p, log_density(name, p))
