"""The layers of z above the first: p(z_l | z_{l+1}) in the model, and the order of the guide."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyroae.errors import ConfigError
from pyroae.nn import MLP, Linear, Map
from pyroae.posteriors import Encoding, Posterior
from pyroae.registry import Registry
from pyroae.runtime.short_repr import Shown

HIERARCHIES: "Registry[Hierarchy]" = Registry("hierarchy")
"""The table of hierarchies by name."""

Draw = Callable[[str, dist.TorchDistribution], Tensor]
"""A value of a layer, from the name of its site and its distribution."""


def site_of(layer: int) -> str:
    """Return the name of the Pyro site of a layer: `z` next to the data, then `z2`, `z3`, ...

    Args:
        layer: The number of the layer, from 1 at the data upwards.

    Returns:
        The name.

    >>> [site_of(layer) for layer in (1, 2, 3)]
    ['z', 'z2', 'z3']
    """
    return "z" if layer == 1 else f"z{layer}"


def gaussian(loc: Tensor, log_variance: Tensor) -> dist.TorchDistribution:
    """Return N(μ, diag σ²) from μ and log σ².

    Args:
        loc: μ, shape `[..., m]`.
        log_variance: log σ², shape `[..., m]`.

    Returns:
        A distribution with batch shape `[...]` and event shape `[m]`.

    >>> gaussian(torch.zeros(3, 2), torch.zeros(3, 2)).event_shape
    torch.Size([2])
    """
    return dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1)


class Layer(nn.Module):
    """One layer above the first, with its map up and its map down.

        p(z_{l-1} | z_l) = N(μ(z_l), diag σ(z_l)²)

    The decoder's outputs are μ and log σ², or μ alone where σ is fixed. To the posterior of the
    layer this module is what an autoencoder is to the posterior of z.

    Args:
        encoder: The map up, to the parameters of q(z_l | ·).
        decoder: The map down, from z_l to the parameters of p(z_{l-1} | z_l).
        learned_posterior: Parameters of the layer's posterior beside the encoder's.
        sizes: m_{l-1} and m_l.
        scale: σ, if it is fixed; None if the decoder gives it.

    >>> down = Linear().decoder(2, (3,), outputs=2)
    >>> layer = Layer(nn.Identity(), down, nn.Identity(), sizes=(3, 2), scale=None)
    >>> layer.below(torch.zeros(5, 2)).event_shape
    torch.Size([3])
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        learned_posterior: nn.Module,
        sizes: tuple[int, int],
        scale: float | None,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.learned_posterior = learned_posterior
        self.size_below, self.latent = sizes
        self.scale = scale
        self.register_buffer("zeros", torch.zeros(self.latent), persistent=False)

    def gaussian_below(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return μ and log σ² of p(z_{l-1} | z_l).

        Args:
            z: Values of this layer, shape `[..., m_l]`.

        Returns:
            The means and the log-variances, shape `[..., m_{l-1}]` each.
        """
        output = self.decoder(z)
        if self.scale is None:
            loc, log_variance = output.chunk(2, dim=-1)
            return loc, log_variance
        return output, torch.full_like(output, 2 * math.log(self.scale))

    def below(self, z: Tensor) -> dist.TorchDistribution:
        """Return p(z_{l-1} | z_l), the prior of the layer below.

        Args:
            z: Values of this layer, shape `[..., m_l]`.

        Returns:
            A diagonal Gaussian with batch shape `[...]` and event shape `[m_{l-1}]`.
        """
        return gaussian(*self.gaussian_below(z))

    def linear_gaussian(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return A, a and s of z_{l-1} | z_l ~ N(A z_l + a, s²I).

        Returns:
            A, shape `[m_{l-1}, m_l]`, a, shape `[m_{l-1}]`, and s, shape `[]`, of a linear map down
                and a fixed scale.
        """
        like = next(self.decoder.parameters())
        points = torch.eye(self.latent + 1, self.latent, dtype=like.dtype, device=like.device)
        loc, log_variance = self.gaussian_below(points)  # the last point is 0
        return (loc[:-1] - loc[-1]).t(), loc[-1], (0.5 * log_variance[-1, 0]).exp()


@dataclass(frozen=True, repr=False)
class FirstLayer(Shown):
    """What the posterior of z_1 sees of an autoencoder with several layers.

    Attributes:
        encoder: The map from data to the parameters of q(z_1 | x).
        learned_posterior: Parameters of that posterior beside the encoder's.
        zeros: Zeros of shape `[m_1]`.
    """

    encoder: nn.Module
    learned_posterior: nn.Module
    zeros: Tensor


class Layered(Encoding, Protocol):
    """The parts of an autoencoder that a hierarchy may use.

    Attributes:
        posterior: q(z_l | ·) of each layer.
        upper: The layers above the first, from the data upwards.
    """

    posterior: Posterior
    upper: nn.ModuleList

    @property
    def zeros(self) -> Tensor:
        """Zeros of shape `[m_L]`, which give dtype and device of the weights."""
        ...


@dataclass(frozen=True)
class Hierarchy(ABC):
    """The maps between layers of z, and the order in which the guide draws the layers.

        model: z_L ~ p(z_L),  z_l ~ N(μ(z_{l+1}), diag σ(z_{l+1})²),  x ~ p(x | z_1)

    To add one, write a frozen dataclass with `check`, `outputs`, `layers`, `infer` and `first`, and
    register it with `@HIERARCHIES.register("name")`.

    Attributes:
        widths: The widths of the hidden layers of each map up between two layers of z; the map down
            has them in reverse order. Empty for linear maps.
        activation: The function between them.
        scale: σ of p(z_l | z_{l+1}), the same for all features; None if it is a function of
            z_{l+1}.
        top_first: Whether the guide draws the top layer first, given x alone; a prior that is made
            of the posterior, such as the VampPrior, needs this.

    Raises:
        ConfigError: A width is below 1, the activation is unknown, or the scale is not positive and
            finite.

    References:
        Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders, for the network with
            two layers.

    >>> from pyroae.autoencoder.hierarchies import BottomUp
    >>> BottomUp(widths=(20,)).map
    MLP(widths=(20,), activation='tanh')
    """

    widths: tuple[int, ...] = (100, 100)
    activation: str = "tanh"
    scale: float | None = None
    top_first: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if any(not isinstance(width, int) or width < 1 for width in self.widths):
            raise ConfigError(f"each width of a hierarchy must be at least 1, not {self.widths}")
        MLP((1,), self.activation)
        number = isinstance(self.scale, int | float) and not isinstance(self.scale, bool)
        if self.scale is not None and not (number and 0 < self.scale < math.inf):
            raise ConfigError(
                f"the scale of p(z|z2) must be positive and finite, or null, not {self.scale!r}"
            )

    @property
    def map(self) -> Map:
        """The form of the maps between layers of z."""
        return MLP(self.widths, self.activation) if self.widths else Linear()

    def decoder(self, latent: int, below: int) -> nn.Module:
        """Return a new map from a layer to the parameters of p(z_{l-1} | z_l).

        Args:
            latent: m_l, the size of the layer.
            below: m_{l-1}, the size of the layer below.

        Returns:
            A module from `[..., m_l]` to μ and log σ², or to μ alone where σ is fixed.
        """
        return self.map.decoder(latent, (below,), 2 if self.scale is None else 1)

    @abstractmethod
    def check(self, posterior: Posterior, sizes: Sequence[int]) -> None:
        """Refuse a posterior that the guide cannot use.

        Args:
            posterior: q(z_l | ·) of each layer.
            sizes: m_1, ..., m_L, from the data upwards.

        Raises:
            ConfigError: The guide cannot use it.
        """

    @abstractmethod
    def outputs(self, posterior: Posterior, sizes: Sequence[int]) -> int:
        """Return the number of outputs of the encoder of the data.

        Args:
            posterior: q(z_l | ·) of each layer.
            sizes: m_1, ..., m_L, from the data upwards.

        Returns:
            The number of outputs.
        """

    @abstractmethod
    def layers(self, posterior: Posterior, sizes: Sequence[int]) -> list[Layer]:
        """Return new layers above the first.

        Args:
            posterior: q(z_l | ·) of each layer.
            sizes: m_1, ..., m_L, from the data upwards.

        Returns:
            Layers 2 to L.
        """

    @abstractmethod
    def infer(self, x: Tensor, system: Layered, draw: Draw) -> list[Tensor]:
        """Take a value of each layer from the guide's distributions, in the guide's order.

        Args:
            x: Data, shape `[..., d]`.
            system: The autoencoder.
            draw: What takes the value: `pyro.sample`, or the mean of the distribution.

        Returns:
            z_1, ..., z_L, shape `[..., m_l]` each.
        """

    @abstractmethod
    def first(self, x: Tensor, system: Layered) -> dist.TorchDistribution:
        """Return the guide's distribution of the layer that it draws first, given x alone.

        Args:
            x: Data, shape `[..., d]`.
            system: The autoencoder.

        Returns:
            A distribution with batch shape `[...]` and the layer's event shape.
        """
