"""The guide from the bottom up: each layer given the layer below it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import pyro.distributions as dist
from torch import Tensor

from pyroae.autoencoder.hierarchies.base import (
    HIERARCHIES,
    Draw,
    FirstLayer,
    Hierarchy,
    Layer,
    Layered,
    site_of,
)
from pyroae.errors import ConfigError
from pyroae.posteriors import Encoding, Point, Posterior


@HIERARCHIES.register("bottom-up")
@dataclass(frozen=True)
class BottomUp(Hierarchy):
    """The guide draws each layer given the layer below it.

        q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1})

    References:
        Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders.

    >>> import torch
    >>> from pyroae import zoo
    >>> system = zoo.hierarchical_vae(4, latent=(3, 2), hierarchy=BottomUp(widths=(5,)))
    >>> [code.shape for code in system.codes(torch.zeros(6, 4))]
    [torch.Size([6, 3]), torch.Size([6, 2])]
    """

    def check(self, posterior: Posterior, sizes: Sequence[int]) -> None:
        """Refuse a point mass, and a posterior without an encoder, in several layers."""
        if len(sizes) > 1 and (isinstance(posterior, Point) or not posterior.outputs(sizes[0])):
            raise ConfigError(
                f"each of the {len(sizes)} layers needs a posterior with a density and an encoder, "
                f"such as Diagonal(), not {posterior}"
            )

    def outputs(self, posterior: Posterior, sizes: Sequence[int]) -> int:
        """Return the number of parameters of q(z_1 | x)."""
        return posterior.outputs(sizes[0])

    def layers(self, posterior: Posterior, sizes: Sequence[int]) -> list[Layer]:
        """Return layers whose maps up go from z_{l-1} to the parameters of q(z_l | z_{l-1})."""
        return [
            Layer(
                self.map.encoder((below,), posterior.outputs(latent)),
                self.decoder(latent, below),
                posterior.learned(latent),
                (below, latent),
                self.scale,
            )
            for below, latent in pairwise(sizes)
        ]

    def infer(self, x: Tensor, system: Layered, draw: Draw) -> list[Tensor]:
        """Take z_1 from q(z_1 | x), then each z_l from q(z_l | z_{l-1})."""
        values = [draw(site_of(1), self.first(x, system))]
        for number, layer in enumerate(system.upper, 2):
            of_layer = system.posterior.distribution(values[-1], cast(Encoding, layer))
            values.append(draw(site_of(number), of_layer))
        return values

    def first(self, x: Tensor, system: Layered) -> dist.TorchDistribution:
        """Return q(z_1 | x)."""
        if not len(system.upper):
            return system.posterior.distribution(x, system)
        zeros = system.zeros.new_zeros(cast(Layer, system.upper[0]).size_below)
        layer = FirstLayer(system.encoder, system.learned_posterior, zeros)
        return system.posterior.distribution(x, cast(Encoding, layer))
