"""Draws of a prior as a function of its parameters, at noise that is given by the draw."""

from typing import Any

import torch
from torch import Tensor, distributions


def through_prior(distribution: Any, value: Tensor) -> Tensor | None:
    """Return T_p(ε; θ) at ε = T_p⁻¹(z; θ) with ε stopped, whose derivative is ∂_θ T_p.

    For a location-scale family T_p(ε; θ) = loc + scale · ε. It equals the draw z.

    Args:
        distribution: p, a distribution of Pyro or torch.
        value: z, of the batch and event shape of p; it is stopped.

    Returns:
        The draw, differentiable with respect to the parameters of p; None for families other than
            Normal, LogNormal, Laplace, Cauchy, Gumbel, StudentT with a fixed number of degrees of
            freedom, and MultivariateNormal.

    >>> loc = torch.tensor(1.0, requires_grad=True)
    >>> through_prior(distributions.Normal(loc, 2.0), torch.tensor(5.0))
    tensor(5., grad_fn=<AddBackward0>)
    >>> through_prior(distributions.Gamma(loc, 2.0), torch.tensor(5.0)) is None
    True
    """
    p, z = distribution, value.detach()
    while isinstance(p, distributions.Independent):
        p = p.base_dist
    if isinstance(p, distributions.MultivariateNormal):
        shift = (z - p.loc)[..., None]
        noise = torch.linalg.solve_triangular(p.scale_tril, shift, upper=False).detach()
        return p.loc + (p.scale_tril @ noise)[..., 0]
    if isinstance(p, distributions.LogNormal):
        return _location_scale(p, z.log()).exp()
    if isinstance(p, distributions.StudentT) and p.df.requires_grad:
        return None
    families = (
        distributions.Normal,
        distributions.Laplace,
        distributions.Cauchy,
        distributions.Gumbel,
        distributions.StudentT,
    )
    return _location_scale(p, z) if isinstance(p, families) else None


def _location_scale(p: Any, z: Tensor) -> Tensor:
    noise = ((z - p.loc) / p.scale).detach()
    drawn: Tensor = p.loc + p.scale * noise
    return drawn
