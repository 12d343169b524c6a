"""The layers of z above the first: p(z_l | z_{l+1}) in the model, and the order of the guide."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Protocol, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyroae.errors import ConfigError
from pyroae.nn import ACTIVATIONS, MLP, Map
from pyroae.nn import Linear as LinearMap
from pyroae.posteriors import Diagonal, Encoding, Point, Posterior
from pyroae.registry import Registry

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

    >>> down = LinearMap().decoder(2, (3,), outputs=2)
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
        return _normal(*self.gaussian_below(z))

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


@dataclass(frozen=True)
class FirstLayer:
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
        return MLP(self.widths, self.activation) if self.widths else LinearMap()

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


@HIERARCHIES.register("bottom-up")
@dataclass(frozen=True)
class BottomUp(Hierarchy):
    """The guide draws each layer given the layer below it.

        q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1})

    References:
        Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders.

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
            gaussian = estimates[number - 1]
            if values:
                above = cast(Layer, system.upper[number - 1])
                gaussian = precision_weighted(gaussian, above.gaussian_below(values[0]))
            values.insert(0, draw(site_of(number), _normal(*gaussian)))
        return values

    def first(self, x: Tensor, system: Layered) -> dist.TorchDistribution:
        """Return q(z_L | x) = N(μ̂_L, σ̂_L²)."""
        return _normal(*self._estimates(x, system)[-1])

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


def _normal(loc: Tensor, log_variance: Tensor) -> dist.TorchDistribution:
    """N(μ, diag σ²), with event shape `[m]`."""
    return dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1)
