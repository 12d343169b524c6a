"""The ELBO with the KL in closed form."""

import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from pyroae.objectives.base import OBJECTIVES, Bound, ObjectiveBase, check_reparameterized
from pyroae.programs.paired_traces import Traces, log_density
from pyroae.programs.sites import Site, base_distribution, same_scale


@OBJECTIVES.register("analytic-kl")
class AnalyticKL(ObjectiveBase):
    """The evidence lower bound with the KL in closed form where one exists.

        L = Σ_n (1/K) Σ_k log p(x_n|z_kn) − KL(q(z|x_n) ‖ p(z))

    For a diagonal Gaussian guide and the prior N(0, I), KL = ½ Σ_j (μ_j² + σ_j² − 1 − log σ_j²).

    - A site without a closed form contributes log q − log p at its draws, as in
      `pyro.infer.TraceMeanField_ELBO`. So do all sites where model and guide draw them in different
      orders, because the closed form does not hold there.
    - With a scale s_p on a site of the model and s_q on the same site of the guide the term is
      E_q[s_q log q − s_p log p] = s_p KL − (s_q − s_p) H(q).
    - Factors, observed sites and Deltas of the guide are terms of log q, evaluated at the draws.

    The bound is in nats, over all data. `bound` raises ProgramError for draws that do not carry
    their whole path gradient.

    Args:
        num_particles: K, the number of draws of z per datum.

    Raises:
        ConfigError: `num_particles` is not a whole number of at least 1.

    References:
        Kingma & Welling 2014, Auto-Encoding Variational Bayes (appendix B).

    >>> import torch
    >>> from pyroae import zoo
    >>> system, x = zoo.vae(4, latent=2), torch.ones(3, 4)
    >>> AnalyticKL(num_particles=8).loss(system.model, system.guide, x) > 0
    True
    """

    is_elbo = True

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of latent sites: those whose draws carry a path gradient."""
        return frozenset({"continuous"})

    def estimate(self, traces: Traces) -> Bound:
        """Return the bound, in nats, as its own surrogate."""
        check_reparameterized(traces, "analytic-kl")
        rate = sum(kl_of(traces, name, site) for name, site in latents_of(traces))
        value = log_likelihood_of(traces) - rate - log_terms_of(traces)
        return Bound(value, value)


def latents_of(traces: Traces) -> list[tuple[str, Site]]:
    """Return the latent sites of the guide.

    Args:
        traces: The traces of guide and model.

    Returns:
        Pairs of a name and a site, in the order of the guide.
    """
    return list(traces.sites(traces.guide, observed=False))


def log_likelihood_of(traces: Traces) -> Tensor:
    """Return the expected log-likelihood Σ_n (1/K) Σ_k log p(x_n|z_kn).

    Args:
        traces: The traces of guide and model, with K particles.

    Returns:
        The estimate over all data, in nats, shape `[]`.
    """
    return _sum_of(traces, traces.model)


def log_terms_of(traces: Traces) -> Tensor:
    """Return the log-densities of the factors and observed sites of the guide.

    Args:
        traces: The traces of guide and model, with K particles.

    Returns:
        Their mean over particles, summed over all data, in nats, shape `[]`.
    """
    return _sum_of(traces, traces.guide)


def _sum_of(traces: Traces, trace: poutine.Trace) -> Tensor:
    """The log-densities of observed sites, mean over particles, summed over data; 0 if none."""
    sites = traces.sites(trace, observed=True)
    terms = [
        traces.total(site, traces.reduce(site, log_density(name, site))) for name, site in sites
    ]
    return sum(terms[1:], terms[0]) if terms else torch.zeros(())


def kl_of(traces: Traces, name: str, q: Site) -> Tensor:
    """Return KL(q ‖ p) of one latent site, in closed form where one exists.

    Args:
        traces: The traces of guide and model, with K particles.
        name: The name of the site.
        q: The site in the guide.

    Returns:
        The divergence over all data, in nats, shape `[]`.
    """
    latent = dict(traces.sites(traces.model, observed=False))
    ordered = list(latent) == [other for other, _ in latents_of(traces) if other in latent]
    return traces.total(q, _divergence(traces, name, q, latent.get(name), ordered))


def closed_kl(q: Distribution, p: Distribution) -> Tensor:
    """Return KL(q ‖ p) in closed form.

    Two closed forms of Pyro are not used: for a Delta it leaves out the Delta's `log_density`, and
    under `.mask(False)` it returns a number without a shape.

    Args:
        q: A distribution.
        p: A distribution with the same event shape.

    Returns:
        The divergence in nats, of the batch shape.

    Raises:
        NotImplementedError: There is no closed form.

    >>> normal = torch.distributions.Normal
    >>> closed_kl(normal(torch.tensor(1.0), 1.0), normal(0.0, 1.0))
    tensor(0.5000)
    """
    if isinstance(base_distribution(q), Delta):
        raise NotImplementedError
    divergence = kl_divergence(q, p)
    if not isinstance(divergence, Tensor):
        raise NotImplementedError
    return divergence


def _divergence(traces: Traces, name: str, q: Site, p: Site | None, ordered: bool) -> Tensor:
    """E_q[s_q log q − s_p log p] of one site, `[K, N]`, in closed form or at the draws."""
    if p is not None and ordered and p["mask"] is q["mask"]:
        try:
            p_scale, q_scale = traces.exponent(p), traces.exponent(q)
            term = traces.reduce(p, closed_kl(q["fn"], p["fn"]), p_scale)
            return (
                term
                if same_scale(p_scale, q_scale)
                else term - traces.reduce(q, q["fn"].entropy(), q_scale - p_scale)
            )
        except NotImplementedError:
            pass
    at_draws = traces.reduce(q, log_density(name, q))
    return at_draws if p is None else at_draws - traces.reduce(p, log_density(name, p))
