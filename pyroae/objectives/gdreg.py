"""The generalized doubly reparameterized gradient: θ of priors follows paths through draws too.

For a latent site l of the model let T_l(ε; θ) be its draw as a function of its parameters, and ε
the noise at which it gives the draw of the guide. With the other draws held, integration by parts
gives

    E_q[c_k ∂_θ log p(z_kl | ·)]
        = E_q[(∂c_k/∂z_kl + c_k ∂(log q(z_k) − log p(z_kl | ·))/∂z_kl) ∂_θ T_l]

in which ∂c_k/∂z_kl = h_k ∂ log w_k/∂z_kl with h_k = ∂c_k/∂log w_k. For IWAE with one layer it is
Σ_k (ŵ_k ∂ log p(x|z_k) − ŵ_k² ∂ log w_k) ∂_θ T.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyroae.errors import ProgramError
from pyroae.objectives.base import OBJECTIVES, Bound
from pyroae.objectives.bounds import IWAE, BoundFunction
from pyroae.objectives.gradients import GRADIENTS, DoublyReparameterized
from pyroae.objectives.pair import Objective
from pyroae.objectives.prior_transforms import through_prior
from pyroae.objectives.program_gradient import ProgramGradient
from pyroae.objectives.surrogates import without_tiny
from pyroae.programs.paired_traces import Traces, log_density, terms_of
from pyroae.programs.sites import Program, Site, same_scale
from pyroae.programs.traces import guide_at
from pyroae.weights import reduce_log_weights


@GRADIENTS.register("generalized-doubly-reparameterized")
@dataclass(frozen=True)
class GeneralizedDoublyReparameterized(ProgramGradient):
    """The doubly reparameterized gradient of φ, and of the parameters of priors.

        φ: Σ_k (c_k − h_k) P_k,   h_k = ∂c_k/∂log w_k
        θ of p(z_l | ·): Σ_k a_kl ∂_θ T_l
        a_kl = h_k ∂ log w_k/∂z_kl + c_k ∂(log q(z_k) − log p(z_kl | ·))/∂z_kl

    Learned priors and the layers of a hierarchy are such sites. Unbiased for every F with
    continuous slopes. Where the family of a site has no T_l (see `through_prior`), or its draw does
    not depend on φ, its θ follows c_k ∂_θ log p(z_kl | ·), as that of the likelihood does.

    References:
        Bauer & Mnih 2021, Generalized Doubly Reparameterized Gradient Estimators.

    >>> GeneralizedDoublyReparameterized().unbiased(IWAE(8))
    True
    """

    reparameterized: ClassVar[bool] = True

    def check(self, bound: BoundFunction) -> None:
        """Refuse bounds with discontinuous slopes."""
        DoublyReparameterized().check(bound)

    def weights_of_path(
        self, c: Tensor, h: Tensor, of_weight: Tensor, of_post: Tensor, of_prior: Tensor
    ) -> Tensor:
        """Return a_kl, the coefficients of ∂_θ T_l of one site.

        Args:
            c: c_k, of a shape that broadcasts with the site's value.
            h: h_k, of the same shape.
            of_weight: ∂ log w_k/∂z_kl, of the shape of the site's value.
            of_post: ∂ log q(z_k)/∂z_kl, of the same shape.
            of_prior: ∂ log p(z_kl | ·)/∂z_kl, of the same shape.

        Returns:
            The coefficients, of the shape of the site's value.
        """
        return h * of_weight + c * (of_post - of_prior)

    def estimate_on(
        self,
        objective: Objective,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Bound:
        """Run the model at draws that are leaves, from whose gradients both paths follow."""
        leaves: dict[str, Tensor] = {}

        def leaf(site: Site) -> Tensor:
            leaves[site["name"]] = site["value"].detach().requires_grad_()
            return leaves[site["name"]]

        traces = objective.run(model, guide, args, kwargs, through=leaf)
        objective.check(traces)
        _check_draws(traces)
        weights = reduce_log_weights(traces)
        bound = objective.bound_function
        log_weight = weights.log_weight.detach()
        slope = without_tiny(bound.slope(log_weight))
        curvature = without_tiny(bound.curvature(log_weight))
        value = weights.total(bound.value(log_weight)).detach()
        log_joint = weights.log_lik + weights.log_prior
        of_joint = _gradients(log_joint, leaves)
        of_post = _gradients(_log_post(traces, guide, args, kwargs, leaves), leaves)
        surrogate = torch.zeros_like(value)
        priors = dict(traces.sites(traces.model, observed=False))
        for name, at in leaves.items():
            site = traces.guide.nodes[name]
            c, h = (traces.expand_to(site, weights.scale * part) for part in (slope, curvature))
            of_weight = of_joint[name] - of_post[name]
            surrogate = surrogate + ((c - h) * of_weight * site["value"]).sum()
            prior = priors[name]
            drawn = through_prior(prior["fn"], at)
            if drawn is not None and drawn.requires_grad:
                log_prior = traces.reduce(prior, log_density(name, prior))
                (of_prior,) = torch.autograd.grad(log_prior.sum(), at, retain_graph=True)
                along = self.weights_of_path(c, h, of_weight, of_post[name], of_prior)
                surrogate = surrogate + (along * drawn).sum()
                log_joint = log_joint - log_prior
        return Bound(value, surrogate + (weights.scale * slope * log_joint).sum())


def _check_draws(traces: Traces) -> None:
    """Refuse terms of the guide beside its draws, and scales or masks on single latent sites."""
    name = "GeneralizedDoublyReparameterized"
    for other, _ in terms_of(traces):
        raise ProgramError(
            f"{name} takes guides of draws alone; the guide's site '{other}' is a Delta, a factor "
            "or an observation: use dreg"
        )
    for trace in (traces.model, traces.guide):
        for other, site in traces.sites(trace, observed=False):
            if site["mask"] is not None or not same_scale(traces.exponent(site), 1.0):
                raise ProgramError(
                    f"{name} takes one scale for all sites and no mask on latent ones; the latent "
                    f"site '{other}' has another scale, or a mask: use dreg"
                )


def _log_post(
    traces: Traces, guide: Program, args: Any, kwargs: Any, leaves: dict[str, Tensor]
) -> Tensor:
    """Log q of the draws as a function of the leaves, `[K, N]`."""
    sites = guide_at(traces, guide, args, kwargs, leaves).guide.nodes if len(leaves) > 1 else None
    terms = []
    for name, at in leaves.items():
        site = traces.guide.nodes[name]
        at_leaves = log_density(name, site, at) if sites is None else log_density(name, sites[name])
        terms.append(traces.reduce(site, at_leaves))
    return sum(terms[1:], terms[0]) if terms else torch.zeros(())


def _gradients(log_density_of_leaves: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """The derivative with respect to each leaf, the other leaves held."""
    if not leaves:
        return {}
    grads = torch.autograd.grad(
        log_density_of_leaves.sum(), list(leaves.values()), retain_graph=True, allow_unused=True
    )
    pairs = zip(leaves.items(), grads, strict=True)
    return {name: torch.zeros_like(at) if g is None else g for (name, at), g in pairs}


@OBJECTIVES.register("gdreg")
def gdreg(num_particles: int = 8) -> Objective:
    """Generalized doubly reparameterized IWAE, for hierarchies and learned priors.

    Args:
        num_particles: K, the number of draws of z per datum.

    Returns:
        IWAE × GeneralizedDoublyReparameterized.

    References:
        Bauer & Mnih 2021, Generalized Doubly Reparameterized Gradient Estimators.
    """
    return Objective(IWAE(num_particles), GeneralizedDoublyReparameterized())
