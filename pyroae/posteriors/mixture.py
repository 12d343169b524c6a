"""A posterior that is a mixture of diagonal Gaussians, with pathwise gradients."""

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyroae.posteriors.base import POSTERIORS, Encoding, Posterior, check_counts


@POSTERIORS.register("mixture")
@dataclass(frozen=True)
class Mixture(Posterior):
    """A mixture of C Gaussians with diagonal covariances.

        q(z|x) = Σ_c π_c(x) N(z; μ_c(x), diag σ_c(x)²)

    The encoder's outputs are the C means, the C vectors log σ², and the C logits of π. The first m
    outputs are the mean of the first component. Draws are reparameterized, see `GaussianMixture`:
    the gradient reaches π too, and every objective takes this posterior.

    Attributes:
        components: C, at least 1.

    Raises:
        ConfigError: `components` is below 1.

    References:
        Morningstar, Vikram, Ham, Gallagher & Dillon 2021, Automatic Differentiation Variational
            Inference with Mixtures.

    >>> from pyroae import zoo
    >>> q_z = zoo.vae(4, latent=2, posterior=Mixture(components=3)).q_z(torch.zeros(5, 4))
    >>> q_z.mixture_distribution.probs.shape, q_z.has_rsample
    (torch.Size([5, 3]), True)
    """

    components: int = 2

    def __post_init__(self) -> None:
        check_counts("a mixture posterior", components=self.components)

    def outputs(self, latent: int) -> int:
        """Return (2m + 1) C: the means, log σ², and the logits of π."""
        return (2 * latent + 1) * self.components

    def distribution(self, x: Tensor, system: Encoding) -> dist.TorchDistribution:
        """Return the mixture, event shape `[m]`."""
        size = len(system.zeros) * self.components
        outputs = system.encoder(x).to(system.zeros.dtype).split([size, size, self.components], -1)
        loc, log_variance = (part.unflatten(-1, (self.components, -1)) for part in outputs[:2])
        return GaussianMixture(
            dist.Categorical(logits=outputs[2]),
            dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1),
        )


class GaussianMixture(dist.MixtureSameFamily):
    """A mixture of diagonal Gaussians whose draws carry the whole path gradient.

    A component is drawn, then z from it. The gradient of the draw is that of the inverse of the
    distribution functions of each element given the ones before it (implicit reparameterization):

        F_j(z_j | z_<j) = Σ_c π_c(z_<j) Φ((z_j − μ_cj) / σ_cj) = u_j
        dz_j = −dF_j(z_j | z_<j) / q(z_j | z_<j)   at fixed u_j

    π_c(z_<j) ∝ π_c Π_{i<j} N(z_i; μ_ci, σ_ci²). It costs m steps, one after another.

    Args:
        mixture_distribution: `Categorical` over C components, batch shape `[...]`.
        component_distribution: `Normal(...).to_event(1)`, batch shape `[..., C]`, event shape
            `[m]`.

    References:
        Graves 2016, Stochastic Backpropagation through Mixture Density Distributions.
        Figurnov, Mohamed & Mnih 2018, Implicit Reparameterization Gradients.

    >>> logits = torch.zeros(2, requires_grad=True)
    >>> parts = dist.Normal(torch.tensor([[-1.0], [1.0]]), 1.0).to_event(1)
    >>> draws = GaussianMixture(dist.Categorical(logits=logits), parts).rsample((20_000,))
    >>> torch.autograd.grad(draws.mean(), logits)[0].round(decimals=1)  # (π₂ μ₂ + π₁ μ₁)' = ∓ 0.5
    tensor([-0.5000,  0.5000])
    """

    has_rsample = True

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Return draws with their path gradient, shape `sample_shape + [..., m]`."""
        value = self.sample(sample_shape)
        if not torch.is_grad_enabled():
            return value
        parts, log_share = self.component_distribution.base_dist, self.mixture_distribution.logits
        elements = []
        for at, loc, scale in zip(
            value.unbind(-1), parts.loc.unbind(-1), parts.scale.unbind(-1), strict=True
        ):
            share = log_share.softmax(-1)
            standardized = (at.unsqueeze(-1) - loc) / scale
            density = (share * _log_normal(standardized, scale).exp()).sum(-1).detach()
            below = (share * 0.5 * (1 + torch.erf(standardized / math.sqrt(2)))).sum(-1)
            tiny = torch.finfo(density.dtype).tiny
            element = at - (below - below.detach()) / density.clamp_min(tiny)
            elements.append(element)
            log_share = log_share + _log_normal((element.unsqueeze(-1) - loc) / scale, scale)
        return torch.stack(elements, -1)


def _log_normal(standardized: Tensor, scale: Tensor) -> Tensor:
    """The log-density of N(0, σ²) at σ times a standardized value."""
    return -0.5 * standardized**2 - scale.log() - 0.5 * math.log(2 * math.pi)
