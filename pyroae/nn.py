"""Maps between data and latent space: linear, MLP, convolutional, tied. No probability here."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from pyroae.data.image_folders import is_channels_last
from pyroae.errors import ConfigError, unknown_name
from pyroae.registry import Registry

ACTIVATIONS: Registry[nn.Module] = Registry("activation")
"""Activations by name, each a class of modules."""


for _name, _activation in (
    ("tanh", nn.Tanh),
    ("relu", nn.ReLU),
    ("elu", nn.ELU),
    ("gelu", nn.GELU),
    ("silu", nn.SiLU),
    ("softplus", nn.Softplus),
    ("sigmoid", nn.Sigmoid),
):
    ACTIVATIONS.register(_name)(_activation)


MAPS: "Registry[Map]" = Registry("map")


class Map(ABC):
    """The form of an encoder or a decoder: makes a module from `[..., inputs]` to `[..., outputs]`."""

    @abstractmethod
    def encoder(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """From data of `shape`, flattened to `[..., d]`, to `[..., outputs]`."""

    @abstractmethod
    def decoder(self, latent: int, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """From `[..., m]` to `[..., outputs * d]`; the last layer has a bias of that size."""


@MAPS.register("linear")
@dataclass(frozen=True)
class Linear(Map):
    """An affine map `W z + b`; with `unit_norm` each column of W, an atom of the dictionary, is scaled to length 1."""

    unit_norm: bool = False

    def encoder(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        return nn.Sequential(_linear(math.prod(shape), outputs))

    def decoder(self, latent: int, shape: tuple[int, ...], outputs: int) -> nn.Module:
        size = outputs * math.prod(shape)
        return nn.Sequential(Atoms(latent, size) if self.unit_norm else _linear(latent, size))


@MAPS.register("mlp")
@dataclass(frozen=True)
class MLP(Map):
    """A multilayer perceptron; `widths` are the encoder's hidden layers, and the decoder's in reverse order."""

    widths: tuple[int, ...] = (200, 200)
    activation: str = "tanh"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise unknown_name("activation", self.activation, ACTIVATIONS)
        if any(width < 1 for width in self.widths):
            raise ConfigError(f"each width of an MLP must be at least 1, not {self.widths}")

    def encoder(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        return self._chain([math.prod(shape), *self.widths, outputs])

    def decoder(self, latent: int, shape: tuple[int, ...], outputs: int) -> nn.Module:
        return self._chain([latent, *reversed(self.widths), outputs * math.prod(shape)])

    def _chain(self, sizes: list[int]) -> nn.Module:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [_linear(inputs, outputs), ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers[:-1])


@MAPS.register("conv")
@dataclass(frozen=True)
class Conv(Map):
    """Convolutions with stride 2, then one hidden layer.

    For images (height, width), (channels, height, width), or (height, width, channels) where `is_channels_last` says so.
    """

    channels: tuple[int, ...] = (32, 64)
    width: int = 256
    activation: str = "elu"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise unknown_name("activation", self.activation, ACTIVATIONS)
        if not self.channels or min(*self.channels, self.width) < 1:
            raise ConfigError(
                f"a conv map takes one or more channels and a width of at least 1, not {self}"
            )

    def encoder(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        image, sizes = self._sizes(shape)
        counts = [image[0], *self.channels]
        layers: list[nn.Module] = []
        for before, after in pairwise(counts):
            layers += [
                nn.Conv2d(before, after, 4, stride=2, padding=1),
                ACTIVATIONS[self.activation](),
            ]
        inner = self.channels[-1] * math.prod(sizes[-1])
        head = [
            nn.Flatten(),
            _linear(inner, self.width),
            ACTIVATIONS[self.activation](),
            _linear(self.width, outputs),
        ]
        net = nn.Sequential(*layers, *head)
        return (
            Images(shape, nn.Sequential(ChannelsFirst(), *net))
            if is_channels_last(shape)
            else Images(image, net)
        )

    def decoder(self, latent: int, shape: tuple[int, ...], outputs: int) -> nn.Module:
        image, sizes = self._sizes(shape)
        inner = (self.channels[-1], *sizes[-1])
        act = ACTIVATIONS[self.activation]
        layers: list[nn.Module] = []
        counts = [*reversed(self.channels), outputs * image[0]]
        for before, after, small, large in zip(
            counts, counts[1:], sizes[::-1], sizes[-2::-1], strict=False
        ):
            extra = (large[0] - 2 * small[0], large[1] - 2 * small[1])
            layers += [
                act(),
                nn.ConvTranspose2d(
                    before, after, 4, stride=2, padding=1, output_padding=extra, bias=False
                ),
            ]
        if is_channels_last(shape):
            layers.append(ChannelsLast(outputs))
        head = nn.Sequential(
            _linear(latent, self.width), act(), _linear(self.width, math.prod(inner))
        )
        return nn.Sequential(
            head, Images(inner, nn.Sequential(*layers)), Offset(outputs * math.prod(shape))
        )

    def _sizes(self, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], list[tuple[int, int]]]:
        if len(shape) not in (2, 3):
            raise ConfigError(
                "a conv map needs images (height, width), (channels, height, width) or (height, width, channels), "
                f"not data of shape {shape}"
            )
        image = cast(
            tuple[int, int, int],
            (shape[2], *shape[:2]) if is_channels_last(shape) else (1, *shape)[-3:],
        )
        sizes = [image[1:]]
        for _ in self.channels:
            sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
        if min(sizes[-1]) < 1:
            raise ConfigError(
                f"images of {image[1]}×{image[2]} are too small for {len(self.channels)} convolutions of stride 2"
            )
        return image, sizes


class Atoms(nn.Module):
    """`D z + b` where each column of D has length 1 (Olshausen & Field 1996): growing the decoder cannot shrink z."""

    def __init__(self, latent: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_linear(latent, outputs).weight.detach().clone())
        self.bias = nn.Parameter(torch.zeros(outputs))

    @property
    def atoms(self) -> Tensor:
        """The dictionary `[outputs, m]`, columns of length 1."""
        return nn.functional.normalize(self.weight, dim=0)

    def forward(self, z: Tensor) -> Tensor:
        return nn.functional.linear(z, self.atoms, self.bias)


class Tied(nn.Module):
    """The decoder whose weights are those of a linear or MLP encoder, transposed, with biases of its own."""

    def __init__(self, encoder: nn.Module, latent: int) -> None:
        super().__init__()
        layers = list(encoder) if isinstance(encoder, nn.Sequential) else []
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        if not linear:
            raise ConfigError(
                "tied weights need an encoder of linear layers: a linear or an MLP map"
            )
        self._layers = (
            layers,
            latent,
        )  # in a tuple, so that the encoder's parameters are not registered twice
        self.biases = nn.ParameterList(
            [nn.Parameter(torch.zeros(layer.in_features)) for layer in reversed(linear)]
        )

    def shared_weights(self) -> list[Tensor]:
        """The encoder's weights that it uses."""
        layers, latent = self._layers
        weights = [layer.weight for layer in reversed(layers) if isinstance(layer, nn.Linear)]
        return [weights[0][:latent], *weights[1:]]

    @property
    def bias(self) -> nn.Parameter:
        """Of the last layer, `[d]`."""
        return cast(nn.Parameter, self.biases[-1])

    def forward(self, z: Tensor) -> Tensor:
        layers, latent = self._layers
        h, used = z, 0
        for layer in reversed(layers):
            if isinstance(layer, nn.Linear):
                weight = layer.weight[:latent] if used == 0 else layer.weight
                h = nn.functional.linear(h, weight.t(), self.biases[used])
                used += 1
            else:
                h = layer(h)
        return h


class Images(nn.Module):
    """Applies a network for images to `[..., c * h * w]`, whatever the leading dimensions, and flattens its result."""

    def __init__(self, image: tuple[int, ...], net: nn.Module) -> None:
        super().__init__()
        self.image, self.net = image, net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.reshape(-1, *self.image)).reshape(*x.shape[:-1], -1)


class ChannelsFirst(nn.Module):
    """From `[B, h, w, c]` to `[B, c, h, w]`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class ChannelsLast(nn.Module):
    """From `[B, outputs * c, h, w]` to `[B, outputs, h, w, c]`: each output in the layout of the data."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.outputs, -1)).permute(0, 1, 3, 4, 2)


class Offset(nn.Module):
    """Adds a bias of its own to each output."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


def set_output_bias(decoder: nn.Module, bias: Tensor) -> None:
    """Start the decoder at the mean of the data: writes the last layer's bias."""
    last = decoder[-1] if isinstance(decoder, nn.Sequential) else decoder
    with torch.no_grad():
        cast(Tensor, last.bias).copy_(bias)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
