"""Deterministic maps between data and latent space: linear, MLP, convolutional, tied."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from pyroae.activations import ACTIVATIONS
from pyroae.data.image_channels import AXES, axis_of
from pyroae.errors import ConfigError, unknown_name
from pyroae.registry import Registry

MAPS: "Registry[Map]" = Registry("map")
"""The table of maps by name."""


class Map(ABC):
    """The form of an encoder and a decoder, from which their modules are built.

    To add one, write a frozen dataclass with `encoder` and `decoder` and register it with
    `@MAPS.register("name")`.

    >>> MLP((20,)).encoder((8, 8), outputs=4)(torch.zeros(3, 64)).shape
    torch.Size([3, 4])
    >>> MLP((20,)).decoder(2, (8, 8), outputs=1)(torch.zeros(3, 2)).shape
    torch.Size([3, 64])
    """

    @abstractmethod
    def encoder(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Return a new module from data to the parameters of q(z|x).

        Args:
            shape: The shape of one datum; the module takes it flattened, `[..., d]`.
            outputs: The number of outputs.

        Returns:
            A module from `[..., d]` to `[..., outputs]`.

        Raises:
            ConfigError: The map is not defined for data of this shape.
        """

    def conditional_encoder(
        self, shape: tuple[int, ...], condition: int, outputs: int
    ) -> nn.Module:
        """Return a new module from data and their condition to the parameters of q(z|x, c).

        By default the condition is C more features of a flat datum; a map of images takes it as
        constant planes.

        Args:
            shape: The shape of one datum, with d features in all.
            condition: C, the size of the condition.
            outputs: The number of outputs.

        Returns:
            A module from `[..., d + C]` to `[..., outputs]`.

        Raises:
            ConfigError: The map is not defined for such data.

        >>> MLP((20,)).conditional_encoder((8, 8), 10, outputs=4)(torch.zeros(3, 74)).shape
        torch.Size([3, 4])
        """
        return self.encoder((math.prod(shape) + condition,), outputs)

    @abstractmethod
    def decoder(self, latent: int, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Return a new module from z to the parameters of p(x|z).

        Args:
            latent: m, the size of z.
            shape: The shape of one datum, with d features in all.
            outputs: The number of outputs per feature.

        Returns:
            A module from `[..., m]` to `[..., outputs * d]`. Its last layer has a bias of shape
                `[outputs * d]`.

        Raises:
            ConfigError: The map is not defined for data of this shape.
        """


@MAPS.register("linear")
@dataclass(frozen=True)
class Linear(Map):
    """An affine map W z + b.

    Attributes:
        unit_norm: Whether each column of the decoder's W, an atom of the dictionary, is scaled to
            length 1.

    >>> Linear().decoder(2, (8, 8), outputs=1)
    Sequential(
      (0): Linear(in_features=2, out_features=64, bias=True)
    )
    """

    unit_norm: bool = False

    def encoder(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Return one linear layer from `[..., d]` to `[..., outputs]`."""
        return nn.Sequential(_linear(math.prod(shape), outputs))

    def decoder(self, latent: int, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Return one linear layer, or `Atoms`, from `[..., m]` to `[..., outputs * d]`."""
        size = outputs * math.prod(shape)
        return nn.Sequential(Atoms(latent, size) if self.unit_norm else _linear(latent, size))


@MAPS.register("mlp")
@dataclass(frozen=True)
class MLP(Map):
    """A multilayer perceptron.

    Attributes:
        widths: The widths of the encoder's hidden layers; the decoder has them in reverse order.
        activation: The function between layers: tanh, relu, elu, gelu, silu, softplus or sigmoid.

    Raises:
        ConfigError: `activation` is unknown, or a width is below 1.

    >>> MLP((20,), "relu").decoder(2, (8, 8), outputs=1)
    Sequential(
      (0): Linear(in_features=2, out_features=20, bias=True)
      (1): ReLU()
      (2): Linear(in_features=20, out_features=64, bias=True)
    )
    """

    widths: tuple[int, ...] = (200, 200)
    activation: str = "tanh"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise unknown_name("activation", self.activation, ACTIVATIONS)
        if any(width < 1 for width in self.widths):
            raise ConfigError(f"each width of an MLP must be at least 1, not {self.widths}")

    def encoder(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the layers from `[..., d]` through `widths` to `[..., outputs]`."""
        return self._chain([math.prod(shape), *self.widths, outputs])

    def decoder(self, latent: int, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the layers from `[..., m]` through reversed `widths` to `[..., outputs * d]`."""
        return self._chain([latent, *reversed(self.widths), outputs * math.prod(shape)])

    def _chain(self, sizes: list[int]) -> nn.Module:
        """Linear layers between consecutive sizes, with activations between them."""
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [_linear(inputs, outputs), ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers[:-1])


@MAPS.register("conv")
@dataclass(frozen=True)
class Conv(Map):
    """Convolutions with stride 2 and one hidden layer.

    It takes images of shape (height, width), (channels, height, width) or (height, width,
    channels).

    Attributes:
        channels: The channels of the encoder's convolutions; the decoder has them in reverse order.
        width: The width of the hidden layer.
        activation: The function between layers: tanh, relu, elu, gelu, silu, softplus or sigmoid.
        axis: Where the data have their channels, `first` or `last`; None to find it from the shape
            by `channel_axis`.

    Raises:
        ConfigError: `activation` is unknown, `channels` is empty, or a number is below 1.

    >>> Conv((8, 16), width=32).encoder((28, 28), outputs=4)(torch.zeros(3, 784)).shape
    torch.Size([3, 4])
    """

    channels: tuple[int, ...] = (32, 64)
    width: int = 256
    activation: str = "elu"
    axis: str | None = None

    def __post_init__(self) -> None:
        if self.axis is not None and self.axis not in AXES:
            raise unknown_name("axis of channels", self.axis, AXES)
        if self.activation not in ACTIVATIONS:
            raise unknown_name("activation", self.activation, ACTIVATIONS)
        if not self.channels or min(*self.channels, self.width) < 1:
            raise ConfigError(
                f"a conv map takes one or more channels and a width of at least 1, not {self}"
            )

    def encoder(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Return convolutions and two linear layers from `[..., d]` to `[..., outputs]`."""
        image, sizes, is_last = self._sizes(shape)
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
            Images(shape, nn.Sequential(ChannelsFirst(), *net)) if is_last else Images(image, net)
        )

    def conditional_encoder(
        self, shape: tuple[int, ...], condition: int, outputs: int
    ) -> nn.Module:
        """Return an encoder of images with C more channels, each of which is constant."""
        (channels, height, width), _, is_last = self._sizes(shape)
        first = replace(self, axis="first")
        net = first.encoder((channels + condition, height, width), outputs)
        return Planes(shape, condition, net, is_last)

    def decoder(self, latent: int, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Return two linear layers and transposed convolutions to `[..., outputs * d]`."""
        image, sizes, is_last = self._sizes(shape)
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
        if is_last:
            layers.append(ChannelsLast(outputs))
        head = nn.Sequential(
            _linear(latent, self.width), act(), _linear(self.width, math.prod(inner))
        )
        return nn.Sequential(
            head, Images(inner, nn.Sequential(*layers)), Offset(outputs * math.prod(shape))
        )

    def _sizes(
        self, shape: tuple[int, ...]
    ) -> tuple[tuple[int, int, int], list[tuple[int, int]], bool]:
        """The image's (c, h, w), h and w before each convolution, whether channels are last."""
        if len(shape) not in (2, 3):
            raise ConfigError(
                "a conv map needs images (height, width), (channels, height, width) or "
                f"(height, width, channels), not data of shape {shape}"
            )
        is_last = len(shape) == 3 and axis_of(shape, self.axis) == AXES["last"]
        image = cast(tuple[int, int, int], (shape[2], *shape[:2]) if is_last else (1, *shape)[-3:])
        sizes = [image[1:]]
        for _ in self.channels:
            sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
        if min(sizes[-1]) < 1:
            raise ConfigError(
                f"images of {image[1]}×{image[2]} are too small for {len(self.channels)} "
                "convolutions of stride 2"
            )
        return image, sizes, is_last


class Atoms(nn.Module):
    """The affine map D z + b in which each column of D has length 1.

    Because the length is fixed, larger decoder weights cannot compensate for a smaller z.

    Args:
        latent: m, the size of z.
        outputs: The number of outputs.

    References:
        Olshausen & Field 1996, Emergence of Simple-Cell Receptive Field Properties by Learning a
            Sparse Code for Natural Images.

    >>> Atoms(latent=2, outputs=5).atoms.norm(dim=0).round(decimals=4).tolist()
    [1.0, 1.0]
    """

    def __init__(self, latent: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_linear(latent, outputs).weight.detach().clone())
        self.bias = nn.Parameter(torch.zeros(outputs))

    @torch.no_grad()
    def start_at(self, x: Tensor, mean: Tensor) -> None:
        """Start the atoms at the directions of data from their mean, drawn without replacement.

        Atoms that point to data explain something of them from the first step on, so that fewer
        units die than with random atoms. Atoms for which there are no data keep their random start.

        Args:
            x: Data, shape `[n, outputs]`; those equal to the mean are not used.
            mean: The mean of the data, shape `[outputs]`.
        """
        latent = self.weight.shape[1]
        some = torch.randperm(len(x))[: 4 * latent].to(x.device)
        directions = x[some] - mean
        lengths = directions.norm(dim=1)
        chosen = (directions / lengths[:, None])[lengths > 0][:latent].t()
        first = self.weight[:, : chosen.shape[1]]
        first.copy_(chosen * first.norm(dim=0))

    @property
    def atoms(self) -> Tensor:
        """The dictionary D, shape `[outputs, m]`, with columns of length 1."""
        return nn.functional.normalize(self.weight, dim=0)

    def forward(self, z: Tensor) -> Tensor:
        """Return D z + b, shape `[..., outputs]`, for z `[..., m]`."""
        return nn.functional.linear(z, self.atoms, self.bias)


class Tied(nn.Module):
    """A decoder with the transposed weights of a linear or MLP encoder, and its own biases.

    Args:
        encoder: The encoder, a sequence of linear layers and activations.
        latent: m, the size of z. Of the encoder's outputs the first m are inverted.

    Raises:
        ConfigError: The encoder has no linear layers.

    >>> encoder = MLP((20,)).encoder((64,), outputs=4)
    >>> Tied(encoder, latent=2)(torch.zeros(3, 2)).shape
    torch.Size([3, 64])
    """

    def __init__(self, encoder: nn.Module, latent: int) -> None:
        super().__init__()
        layers = list(encoder) if isinstance(encoder, nn.Sequential) else []
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        if not linear:
            raise ConfigError(
                "tied weights need an encoder of linear layers: a linear or an MLP map"
            )
        # In a tuple, so that the encoder's parameters are not registered twice.
        self._layers = (layers, latent)
        self.biases = nn.ParameterList(
            [nn.Parameter(torch.zeros(layer.in_features)) for layer in reversed(linear)]
        )

    def shared_weights(self) -> list[Tensor]:
        """Return the weights that encoder and decoder share, from the last layer to the first.

        Returns:
            The weights of the encoder's linear layers; of the last one the rows of the first m
                outputs.

        >>> encoder = MLP((20,)).encoder((64,), outputs=4)
        >>> [weight.shape for weight in Tied(encoder, latent=2).shared_weights()]
        [torch.Size([2, 20]), torch.Size([20, 64])]
        """
        layers, latent = self._layers
        weights = [layer.weight for layer in reversed(layers) if isinstance(layer, nn.Linear)]
        return [weights[0][:latent], *weights[1:]]

    @property
    def bias(self) -> nn.Parameter:
        """The bias of the last layer, shape `[d]`."""
        return cast(nn.Parameter, self.biases[-1])

    def forward(self, z: Tensor) -> Tensor:
        """Return the decoder's output, shape `[..., d]`, for z `[..., m]`."""
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
    """Apply a network for images to flat data with any leading dimensions.

    Args:
        image: The shape of one image as the network takes it, such as (c, h, w).
        net: A network on `[B, *image]`.

    >>> Images((1, 2, 2), nn.Identity())(torch.zeros(5, 3, 4)).shape
    torch.Size([5, 3, 4])
    """

    def __init__(self, image: tuple[int, ...], net: nn.Module) -> None:
        super().__init__()
        self.image, self.net = image, net

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output, flattened, for flat images x `[..., c * h * w]`."""
        return self.net(x.reshape(-1, *self.image)).reshape(*x.shape[:-1], -1)


class Planes(nn.Module):
    """Apply a network for images to images and a condition, as constant channels after theirs.

    Args:
        shape: The shape of one image: (h, w), (c, h, w) or (h, w, c).
        condition: C, the size of the condition.
        net: A network on flat images of shape (c + C, h, w).
        is_last: Whether the shape is (h, w, c).

    >>> Planes((2, 2), 3, nn.Identity())(torch.arange(7.0)[None]).reshape(4, 4)[1:].tolist()
    [[4.0, 4.0, 4.0, 4.0], [5.0, 5.0, 5.0, 5.0], [6.0, 6.0, 6.0, 6.0]]
    """

    def __init__(
        self, shape: tuple[int, ...], condition: int, net: nn.Module, is_last: bool = False
    ) -> None:
        super().__init__()
        self.shape, self.condition, self.net, self.is_last = shape, condition, net, is_last

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output for flat images and conditions `[..., d + C]`."""
        images, c = x[..., : -self.condition], x[..., -self.condition :]
        images = images.unflatten(-1, self.shape)
        if self.is_last:
            images = images.movedim(-1, -3)
        images = images.reshape(*c.shape[:-1], -1, *images.shape[-2:])
        planes = c[..., None, None].expand(*c.shape, *images.shape[-2:])
        return self.net(torch.cat([images, planes], -3).flatten(-3))


class ChannelsFirst(nn.Module):
    """Permute `[B, h, w, c]` to `[B, c, h, w]`.

    >>> ChannelsFirst()(torch.zeros(5, 8, 9, 3)).shape
    torch.Size([5, 3, 8, 9])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return x as `[B, c, h, w]`."""
        return x.permute(0, 3, 1, 2)


class ChannelsLast(nn.Module):
    """Permute `[B, outputs * c, h, w]` to `[B, outputs, h, w, c]`, the layout of the data.

    Args:
        outputs: The number of outputs per feature.

    >>> ChannelsLast(outputs=2)(torch.zeros(5, 6, 8, 9)).shape
    torch.Size([5, 2, 8, 9, 3])
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return x as `[B, outputs, h, w, c]`."""
        return x.unflatten(1, (self.outputs, -1)).permute(0, 1, 3, 4, 2)


class Offset(nn.Module):
    """Add a learned bias, initially 0, to each output.

    Args:
        outputs: The number of outputs.

    >>> Offset(3)(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus the bias, shape `[..., outputs]`."""
        return x + self.bias


def set_output_bias(decoder: nn.Module, bias: Tensor) -> None:
    """Set the bias of the decoder's last layer, in place.

    Args:
        decoder: A module with a `bias`, or a sequence whose last module has one.
        bias: The new values, shape `[outputs * d]`.

    >>> decoder = Linear().decoder(2, (3,), outputs=1)
    >>> set_output_bias(decoder, torch.tensor([1.0, 2.0, 3.0]))
    >>> decoder(torch.zeros(2)).tolist()
    [1.0, 2.0, 3.0]
    """
    last = decoder[-1] if isinstance(decoder, nn.Sequential) else decoder
    with torch.no_grad():
        cast(Tensor, last.bias).copy_(bias)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with Glorot weights and zero biases."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
