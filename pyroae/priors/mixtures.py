"""Mixtures of C distributions over z, and the Gaussian mixture as a prior."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyroae.errors import ConfigError
from pyroae.priors.base import PRIORS, Prior
from pyroae.programs.sites import base_distribution


class MixtureDistribution(dist.TorchDistribution):
    """A mixture of C distributions of one family, whose densities are summed.

        p(z) = Σ_c π_c p_c(z),   log p(z) = logsumexp_c (log π_c + log p_c(z))

    The batch shape is empty. Draws are not reparameterized: a component is drawn, then z from it.

    Args:
        logits: Unnormalized log-weights, shape `[C]`.
        components: The distributions p_c, batch shape `[C]`, event shape `[m]`.
        at: A function from indices c, shape `[S]`, to the distributions p_c, batch shape `[S]`. It
            is called for draws, so that only the components drawn from are computed.

    References:
        McLachlan & Peel 2000, Finite Mixture Models.

    >>> loc = torch.tensor([[-1.0], [1.0]])
    >>> normal = dist.Normal(loc, 1.0).to_event(1)
    >>> at = lambda index: dist.Normal(loc[index], 1.0).to_event(1)
    >>> p_z = MixtureDistribution(torch.zeros(2), normal, at)
    >>> p_z.log_prob(torch.zeros(3, 1)), p_z.sample((5,)).shape
    (tensor([-1.4189, -1.4189, -1.4189]), torch.Size([5, 1]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(
        self,
        logits: Tensor,
        components: dist.TorchDistribution,
        at: Callable[[Tensor], dist.TorchDistribution],
    ) -> None:
        self.log_weights = logits.log_softmax(-1)
        self.components = components
        self._at = at
        super().__init__(torch.Size(), components.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z) in nats, shape `[...]`, for z `[..., m]`."""
        count, size = len(self.log_weights), value.shape[-1]
        each = value.unsqueeze(-2).expand(*value.shape[:-1], count, size)
        return (self.log_weights + self.components.log_prob(each)).logsumexp(-1)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Return draws of z, shape `[*sample_shape, m]`."""
        index = dist.Categorical(logits=self.log_weights).sample((math.prod(sample_shape),))
        return self._at(index).sample().reshape(*sample_shape, *self.event_shape)

    @property
    def mean(self) -> Tensor:
        """The mean Σ_c π_c μ_c, shape `[m]`."""
        return self.log_weights.exp() @ self.components.mean

    @property
    def variance(self) -> Tensor:
        """The variance Σ_c π_c (σ_c² + μ_c²) − (Σ_c π_c μ_c)² of each unit, shape `[m]`."""
        second = self.components.variance + (self.components.mean - self.mean) ** 2
        return self.log_weights.exp() @ second

    def gaussians(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return the parts of a mixture of Gaussians.

        Returns:
            Log-weights `[C]`, means `[C, m]` and Cholesky factors of the covariances `[C, m, m]`;
            None if the components are not Gaussian.
        """
        base = base_distribution(self.components)
        if isinstance(base, dist.MultivariateNormal):
            return self.log_weights, base.loc, base.scale_tril
        if isinstance(base, dist.Normal):
            return self.log_weights, base.loc, torch.diag_embed(base.scale)
        return None


@PRIORS.register("mixture")
@dataclass(frozen=True)
class GaussianMixture(Prior):
    """A mixture of C Gaussians with diagonal covariances, all learned.

        p(z) = Σ_c π_c N(z; μ_c, diag σ_c²)

    The weights start equal, the means at C well-spread points of N(0, I/2) (a scrambled Sobol
    sequence), and each variance at 1/2, so that the whole starts near N(0, I). Suited to data with
    clusters. The KL to it has no closed form.

    Attributes:
        components: C, the number of Gaussians, at least 1.

    Raises:
        ConfigError: `components` is below 1.

    References:
        Dilokthanakul et al. 2016, Deep Unsupervised Clustering with Gaussian Mixture Variational
            Autoencoders.
        Owen 1998, Scrambling Sobol' and Niederreiter-Xing Points (the start).

    >>> prior = GaussianMixture(components=3)
    >>> prior.distribution(torch.zeros(2), prior.learned(latent=2, features=5)).event_shape
    torch.Size([2])
    """

    components: int = 10

    def __post_init__(self) -> None:
        check_components(self.components, "a mixture prior")

    def learned(self, latent: int, features: int) -> nn.Module:
        """Return logits `[C]`, means `[C, m]` and log standard deviations `[C, m]`."""
        return nn.ParameterDict(
            {
                "logits": torch.zeros(self.components),
                "loc": math.sqrt(0.5) * _spread(self.components, latent),
                "log_scale": torch.full((self.components, latent), 0.5 * math.log(0.5)),
            }
        )

    def distribution(self, zeros: Tensor, learned: nn.Module) -> dist.TorchDistribution:
        """Return the mixture, event shape `[m]`."""
        parts = cast(nn.ParameterDict, learned)
        loc, scale = parts["loc"], parts["log_scale"].exp()
        return MixtureDistribution(
            parts["logits"],
            dist.Normal(loc, scale).to_event(1),
            lambda index: dist.Normal(loc[index], scale[index]).to_event(1),
        )


def check_components(count: int, what: str) -> None:
    """Refuse a mixture without components.

    Args:
        count: The number of components.
        what: The mixture, for the message.

    Raises:
        ConfigError: `count` is below 1.
    """
    if count < 1:
        raise ConfigError(f"{what} needs at least one component, not {count}")


def _spread(count: int, size: int) -> Tensor:
    """Points of N(0, I) that fill the space evenly, `[count, size]`."""
    seed = int(torch.randint(2**31, ()))
    uniform = torch.quasirandom.SobolEngine(size, scramble=True, seed=seed).draw(count)
    return torch.special.ndtri(uniform.clamp(1e-4, 1 - 1e-4))
