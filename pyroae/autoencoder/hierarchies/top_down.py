"""The guide from the top down: estimates on a way up, combined with the prior on the way down."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyroae.autoencoder.hierarchies.base import (
    HIERARCHIES,
    Draw,
    Hierarchy,
    Layer,
    Layered,
    gaussian,
    site_of,
)
from pyroae.errors import ConfigError
from pyroae.nn import ACTIVATIONS, MLP
from pyroae.posteriors import Diagonal, Posterior


@HIERARCHIES.register("top-down")
@dataclass(frozen=True)
class TopDown(Hierarchy):
    """The ladder: estimates on a deterministic way up, draws on the way down with the prior's.

        q(z_L | x) q(z_{L-1} | x, z_L) ... q(z_1 | x, z_2),   q(z_l | x, z_{l+1}) = N(μ_l, σ_l²)
        1/σ_l² = 1/σ̂_l² + 1/σ_p²,   μ_l = σ_l² (μ̂_l/σ̂_l² + μ_p/σ_p²)

    μ̂_l(x) and σ̂_l(x) are outputs of the way up, μ_p(z_{l+1}) and σ_p(z_{l+1}) those of
    p(z_l | z_{l+1}), whose maps model and guide share. The posterior of the top layer is
    N(μ̂_L, σ̂_L²).

    References:
        Sønderby, Raiko, Maaløe, Sønderby & Winther 2016, Ladder Variational Autoencoders.

    >>> from pyroae import zoo
    >>> system = zoo.hierarchical_vae(4, latent=(3, 2), hierarchy=TopDown(widths=(5,)))
    >>> system.q_z(torch.zeros(6, 4)).event_shape  # q(z2|x)
    torch.Size([2])
    """

    top_first: ClassVar[bool] = True

    def check(self, posterior: Posterior, sizes: Sequence[int]) -> None:
        """Refuse a posterior other than a diagonal Gaussian."""
        if not isinstance(posterior, Diagonal):
            raise ConfigError(
                "a top-down hierarchy combines diagonal Gaussians: its posterior is Diagonal(), "
                f"not {posterior}"
            )

    def outputs(self, posterior: Posterior, sizes: Sequence[int]) -> int:
        """Return the number of parameters of the estimate of z_1, and of features for z_2."""
        return self._outputs(sizes)[0]

    def layers(self, posterior: Posterior, sizes: Sequence[int]) -> list[Layer]:
        """Return layers whose maps up go from the features of the layer below."""
        outputs = self._outputs(sizes)
        return [
            Layer(
                self._way_up(count),
                self.decoder(latent, below),
                posterior.learned(latent),
                (below, latent),
                self.scale,
            )
            for count, (below, latent) in zip(outputs[1:], pairwise(sizes), strict=True)
        ]

    def infer(self, x: Tensor, system: Layered, draw: Draw) -> list[Tensor]:
        """Take z_L from q(z_L | x), then each z_l from q(z_l | x, z_{l+1})."""
        estimates = self._estimates(x, system)
        values: list[Tensor] = []
        for number in range(len(estimates), 0, -1):
            parameters = estimates[number - 1]
            if values:
                above = cast(Layer, system.upper[number - 1])
                parameters = precision_weighted(parameters, above.gaussian_below(values[0]))
            values.insert(0, draw(site_of(number), gaussian(*parameters)))
        return values

    def first(self, x: Tensor, system: Layered) -> dist.TorchDistribution:
        """Return q(z_L | x) = N(μ̂_L, σ̂_L²)."""
        return gaussian(*self._estimates(x, system)[-1])

    def _outputs(self, sizes: Sequence[int]) -> list[int]:
        """The outputs of each way up: mean and log-variance, then the features for the next."""
        outputs = [2 * sizes[-1]]
        for size in reversed(sizes[:-1]):
            outputs.insert(0, 2 * size + (self.widths[0] if self.widths else outputs[0]))
        return outputs

    def _way_up(self, outputs: int) -> nn.Module:
        """The map of a layer's features, whose first linear layer is in the encoder below."""
        if not self.widths:
            return nn.Identity()
        rest = MLP(self.widths[1:], self.activation).encoder((self.widths[0],), outputs)
        return nn.Sequential(ACTIVATIONS[self.activation](), rest)

    def _estimates(self, x: Tensor, system: Layered) -> list[tuple[Tensor, Tensor]]:
        """μ̂_l and log σ̂_l² of each layer, from the data upwards."""
        output, estimates = system.encoder(x), []
        for layer in (cast(Layer, one) for one in system.upper):
            size = layer.size_below
            rest = output.shape[-1] - 2 * size
            loc, log_variance, features = output.split([size, size, rest], dim=-1)
            estimates.append((loc, log_variance))
            output = layer.encoder(features)
        loc, log_variance = output.chunk(2, dim=-1)
        return [*estimates, (loc, log_variance)]


def precision_weighted(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the normalized product of two Gaussians.

        1/σ² = 1/σ_1² + 1/σ_2²,   μ = σ² (μ_1/σ_1² + μ_2/σ_2²)

    Args:
        one: μ_1 and log σ_1², shape `[..., m]` each.
        other: μ_2 and log σ_2², of shapes that broadcast.

    Returns:
        μ and log σ², shape `[..., m]` each.

    References:
        Sønderby, Raiko, Maaløe, Sønderby & Winther 2016, Ladder Variational Autoencoders.

    >>> zero, one = torch.zeros(1), torch.ones(1)
    >>> precision_weighted((zero, zero), (one, zero))
    (tensor([0.5000]), tensor([-0.6931]))
    """
    (loc, log_variance), (other_loc, other_log_variance) = one, other
    share = torch.sigmoid(other_log_variance - log_variance)  # σ²/σ_1²
    return (
        share * (loc - other_loc) + other_loc,
        -torch.logaddexp(-log_variance, -other_log_variance),
    )
