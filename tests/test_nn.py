"""Maps against the same sums written out, in float64; tied weights, atoms, and where a decoder
starts.
"""

import copy
import math
import re
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyroae import likelihoods, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.data.dataset import Dataset
from pyroae.errors import ConfigError
from pyroae.likelihoods import LIKELIHOODS
from pyroae.nn import MAPS, MLP, Conv, Linear, Map, Tied
from pyroae.posteriors import Diagonal, ExactLinear, Point
from tests import oracles

pytestmark = pytest.mark.usefixtures("float64")

IMAGES: list[tuple[int, ...]] = [(8, 8), (28, 28), (9, 11), (3, 32, 32)]
SMALL: dict[str, Map] = {
    "linear": Linear(),
    "atoms": Linear(unit_norm=True),
    "mlp": MLP((7, 5)),
    "conv": Conv((4, 5), 6),
}


def layers(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(m.weight, m.bias) for m in module.modules() if isinstance(m, nn.Linear)]


def randomize(module: nn.Module) -> nn.Module:
    """Biases included, which start at zero."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


# Shapes


@pytest.mark.parametrize("shape", IMAGES, ids=str)
@pytest.mark.parametrize("name", list(MAPS))
def test_leading_dimensions_are_independent(name: str, shape: tuple[int, ...]) -> None:
    """`[3, 2, d] -> [3, 2, outputs]`, each row as if it were alone."""
    d, given = math.prod(shape), SMALL[name]
    encoder, decoder = randomize(given.encoder(shape, 4)), randomize(given.decoder(3, shape, 2))
    for module, inputs, outputs in ((encoder, d, 4), (decoder, 3, 2 * d)):
        x = torch.randn(3, 2, inputs)
        y = module(x)
        assert y.shape == (3, 2, outputs)
        torch.testing.assert_close(module(x[1, 1]), y[1, 1])
        torch.testing.assert_close(module(x[2]), y[2])
        assert not torch.allclose(y[0, 0], y[0, 1])


@pytest.mark.parametrize("name", list(MAPS))
def test_initial_weights(name: str) -> None:
    """Xavier: uniform with variance 2 / (inputs + outputs); biases 0 (Glorot & Bengio 2010)."""
    for module in (MAPS[name]().encoder((20, 20), 30), MAPS[name]().decoder(30, (20, 20), 1)):
        for weight, bias in layers(module):
            variance = 2 / sum(weight.shape)
            assert weight.var().item() == pytest.approx(variance, rel=5 / math.sqrt(weight.numel()))
            assert weight.abs().max() <= math.sqrt(3 * variance)
            assert (bias == 0).all()


# Formulas


def test_linear_is_affine() -> None:
    decoder, z = randomize(Linear().decoder(3, (2, 2), 1)), torch.randn(5, 3)
    ((weight, bias),) = layers(decoder)
    torch.testing.assert_close(decoder(z), torch.einsum("dm,nm->nd", weight, z) + bias)


def test_mlp_is_written_out_and_the_decoder_is_its_mirror() -> None:
    encoder, decoder = (
        randomize(MLP((7, 5)).encoder((6,), 3)),
        randomize(MLP((7, 5)).decoder(3, (6,), 1)),
    )
    assert [w.shape for w, _ in layers(encoder)] == [(7, 6), (5, 7), (3, 5)]
    assert [w.shape for w, _ in layers(decoder)] == [(5, 3), (7, 5), (6, 7)]
    for module, inputs in ((encoder, 6), (decoder, 3)):
        x = torch.randn(4, inputs)
        torch.testing.assert_close(module(x), oracles.mlp(x, layers(module)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tanh", math.tanh(-0.7)),
        ("relu", 0.0),
        ("elu", math.exp(-0.7) - 1),
        ("gelu", -0.7 * 0.5 * (1 + math.erf(-0.7 / math.sqrt(2)))),
        ("silu", -0.7 / (1 + math.exp(0.7))),
        ("softplus", math.log1p(math.exp(-0.7))),
        ("sigmoid", 1 / (1 + math.exp(0.7))),
    ],
)
def test_activations(name: str, expected: float) -> None:
    """One hidden unit with all weights 1: the activation itself, in the hidden layer only."""
    net = MLP((1,), name).encoder((1,), 1)
    for weight, _ in layers(net):
        nn.init.ones_(weight)
    assert net(torch.tensor([-0.7])).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_conv_is_written_out(shape: tuple[int, ...]) -> None:
    given, image = Conv((4, 5), 6), (1, *shape)[-3:]
    encoder, decoder = randomize(given.encoder(shape, 3)), randomize(given.decoder(3, shape, 1))

    h = torch.randn(2, math.prod(shape))
    y = h.reshape(2, *image)
    for conv in (m for m in encoder.modules() if isinstance(m, nn.Conv2d)):
        y = F.elu(F.conv2d(y, conv.weight, conv.bias, stride=2, padding=1))
    inner = y.shape[1:]
    (first, last) = layers(encoder)
    torch.testing.assert_close(
        encoder(h), F.elu(y.flatten(1) @ first[0].T + first[1]) @ last[0].T + last[1]
    )

    z = torch.randn(2, 3)
    (first, last) = layers(decoder)
    y = (F.elu(z @ first[0].T + first[1]) @ last[0].T + last[1]).reshape(2, *inner)
    transposed = [m for m in decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    for unconv, (height, width) in zip(
        transposed, [(image[1] // 2, image[2] // 2), image[1:]], strict=True
    ):
        extra = (height - 2 * y.shape[2], width - 2 * y.shape[3])
        y = F.conv_transpose2d(F.elu(y), unconv.weight, stride=2, padding=1, output_padding=extra)
    bias = cast(nn.Sequential, decoder)[-1].bias
    torch.testing.assert_close(decoder(z), y.flatten(1) + bias)  # type: ignore[operator]


@pytest.mark.parametrize("outputs", [1, 2])
def test_conv_of_images_with_channels_last(outputs: int) -> None:
    """The maps of `[h, w, c]` are those of the same images as `[c, h, w]`, with outputs in the
    layout of the data.
    """
    given, last, first, latent = Conv((4, 5), 6), (8, 9, 3), (3, 8, 9), 2
    maps = {
        shape: (given.encoder(shape, 4), given.decoder(latent, shape, outputs))
        for shape in (last, first)
    }
    for one, other in zip(maps[last], maps[first], strict=True):
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            q.data.copy_(p.data)
    x, z = torch.randn(7, 2, *last), torch.randn(7, 2, latent)
    x_first = x.movedim(-1, -3)
    torch.testing.assert_close(maps[last][0](x.flatten(2)), maps[first][0](x_first.flatten(2)))
    decoded = maps[last][1](z).unflatten(2, (outputs, *last))
    torch.testing.assert_close(decoded.movedim(-1, -3).flatten(2), maps[first][1](z))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MLP((5, 0)), r"each width of an MLP must be at least 1, not \(5, 0\)"),
        (lambda: MLP((5,), "tan"), "unknown activation 'tan': did you mean 'tanh'"),
        (lambda: Conv(activation="rely"), "unknown activation 'rely': did you mean 'relu'"),
        (lambda: Conv(()), "a conv map takes one or more channels and a width of at least 1"),
        (lambda: Conv((4, 0)), "a conv map takes one or more channels and a width of at least 1"),
        (lambda: Conv((4,), 0), "a conv map takes one or more channels and a width of at least 1"),
        (lambda: Conv().encoder((64,), 2), r"needs images .* not data of shape \(64,\)"),
        (
            lambda: Conv().decoder(2, (2, 3, 8, 8), 1),
            r"needs images .* not data of shape \(2, 3, 8, 8\)",
        ),
        (
            lambda: Conv((4, 4)).encoder((8, 3), 2),
            "images of 8×3 are too small for 2 convolutions of stride 2",
        ),
        (
            lambda: Autoencoder((8, 8), 2, encoder=Conv(), tied=True),
            "tied weights need an encoder of linear layers",
        ),
        (
            lambda: Autoencoder(4, 2, posterior=ExactLinear(), tied=True),
            "tied weights need an encoder",
        ),
    ],
)
def test_refused_maps(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


# Tied weights


@pytest.mark.parametrize("posterior", [Point(), Diagonal()], ids=["point", "diagonal"])
def test_tied_decoder_is_the_transposed_encoder(posterior: Point | Diagonal) -> None:
    """Under a diagonal posterior, of the encoder's part that gives the mean."""
    system = Autoencoder(6, 3, posterior=posterior, encoder=MLP((5,)), tied=True)
    randomize(system)
    (inner, outer), biases = layers(system.encoder), cast(Tied, system.decoder).biases
    z = torch.randn(4, 3)
    expected = torch.tanh(z @ outer[0][:3] + biases[0]) @ inner[0] + biases[1]
    torch.testing.assert_close(system.decoder(z), expected)


def test_tied_parameters_are_there_once() -> None:
    system = Autoencoder(6, 3, posterior=Point(), encoder=MLP((5,)), tied=True)
    assert sorted(p.shape for p in system.decoder.parameters()) == [(5,), (6,)]
    assert sum(p.numel() for p in system.parameters()) == (6 * 5 + 5 * 3) + (5 + 3) + (5 + 6)
    assert len(system.state_dict()) == 6


def test_gradient_of_tied_weights_comes_from_both_maps() -> None:
    """Of ½‖r‖², r = x − w(w·x), for one unit: −(w·x) r from the decoder, −(w·r) x from the
    encoder.
    """
    system = zoo.linear_autoencoder(4, 1, tied=True)
    x, w = torch.randn(4), system.encoder.get_parameter("0.weight")
    (gradient,) = torch.autograd.grad(
        0.5 * (x - system.decoder(system.encoder(x))).square().sum(), [w]
    )
    residual = x - w[0] * (w[0] @ x)
    torch.testing.assert_close(gradient[0], -(w[0] @ x) * residual - (w[0] @ residual) * x)


def test_tied_copy_is_tied_to_its_own_encoder() -> None:
    system = zoo.linear_autoencoder(4, 2, tied=True)
    other, z = copy.deepcopy(system), torch.randn(3, 2)
    before = system.decoder(z)
    with torch.no_grad():
        other.encoder.get_parameter("0.weight").mul_(2)
    torch.testing.assert_close(system.decoder(z), before)
    torch.testing.assert_close(other.decoder(z), 2 * before)


def test_tied_weights_leave_no_choice_of_decoder() -> None:
    """The form that is asked for would be dropped in silence, and closed forms would take it for
    linear.
    """
    with pytest.raises(ConfigError, match="tied"):
        Autoencoder(
            4, 2, encoder=MLP((5,)), decoder=Linear(), likelihood=likelihoods.Normal(), tied=True
        )


# Atoms


def test_atoms_have_length_one_whatever_the_weight() -> None:
    decoder, z = Linear(unit_norm=True).decoder(7, (2, 2), 1), torch.randn(5, 7)
    randomize(decoder)
    weight, bias = decoder.get_parameter("0.weight"), decoder.get_parameter("0.bias")
    expected = (
        z @ torch.stack([column / column.square().sum().sqrt() for column in weight.T]) + bias
    )
    torch.testing.assert_close(decoder(z), expected)
    atoms = cast(nn.Sequential, decoder)[0].atoms
    torch.testing.assert_close(cast(Tensor, atoms).square().sum(0), torch.ones(7))
    with torch.no_grad():
        weight.mul_(torch.tensor([1e-3, 0.5, 1, 2, 10, 100, 1e4]))
    torch.testing.assert_close(decoder(z), expected)


def test_gradient_of_an_atom_does_not_change_its_length() -> None:
    decoder, z = Linear(unit_norm=True).decoder(3, (6,), 1), torch.randn(5, 3)
    weight = decoder.get_parameter("0.weight")
    (gradient,) = torch.autograd.grad(decoder(z).square().sum(), [weight])
    torch.testing.assert_close((gradient * weight).sum(0), torch.zeros(3))
    assert gradient.abs().max() > 1e-3


# Where the output starts


@pytest.mark.parametrize(
    ("form", "tied"), [*((form, False) for form in SMALL), ("linear", True), ("mlp", True)], ids=str
)
@pytest.mark.parametrize("name", ["bernoulli", "continuous-bernoulli", "normal", "poisson"])
def test_output_starts_at_the_mean_of_the_data(name: str, form: str, tied: bool) -> None:
    """At z = 0, where the weights have no part."""
    mean = torch.linspace(0.05, 0.95, 64)
    likelihood = LIKELIHOODS.parse(name)
    system = Autoencoder((8, 8), 2, likelihood=likelihood, encoder=SMALL[form], tied=tied)
    before = system.decode(torch.zeros(2))
    torch.testing.assert_close(system.start_at(mean).decode(torch.zeros(2)), mean)
    assert not torch.allclose(before, mean, atol=0.1)


@pytest.mark.parametrize("make", [zoo.vae, zoo.ppca, zoo.autoencoder, zoo.sparse_autoencoder])
def test_a_dataset_gives_shape_and_start(make: Callable[..., Autoencoder]) -> None:
    data = Dataset.from_array(torch.rand(50, 2, 3) * 0.3)
    made = make(data, 4)
    assert made.shape == (2, 3)
    torch.testing.assert_close(made.decode(torch.zeros(4)), data.mean)


@pytest.mark.parametrize(
    "make", [zoo.vae, zoo.autoencoder, zoo.discrete_vae, zoo.denoising_autoencoder]
)
def test_hidden_gives_the_widths_of_encoder_and_decoder(make: Callable[..., Autoencoder]) -> None:
    """As on the command line; activation and all else stay."""
    made, same = make(6, 4, hidden=(5, 3)), make(6, 4, encoder=MLP((5, 3)))
    assert made.encoder_map == made.decoder_map == MLP((5, 3))
    assert str(made) == str(same)
    assert make(6, 4, hidden=5).encoder_map == make(6, 4, hidden=[5]).encoder_map == MLP((5,))
    assert make(6, 4, hidden=None).encoder_map == MLP()


def test_hidden_keeps_what_a_system_says_of_its_maps() -> None:
    assert zoo.deep_autoencoder(6, 2, hidden=(5,)).encoder_map == MLP((5,), "relu")
    sparse = zoo.sparse_autoencoder(6, 9, hidden=(5,))
    assert (sparse.encoder_map, sparse.decoder_map) == (MLP((5,)), Linear(unit_norm=True))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: zoo.vae(6, 2, encodr=MLP()), r"zoo\.vae.*'encodr'.*did you mean 'encoder'"),  # type: ignore[call-arg]
        (
            lambda: zoo.linear_autoencoder(6, 2, tide=True),  # type: ignore[call-arg]
            r"zoo\.linear_autoencoder.*'tide'.*did you mean 'tied'",
        ),
        (lambda: zoo.ppca(6, 2, exat=True), r"zoo\.ppca.*'exat'.*did you mean 'exact'"),  # type: ignore[call-arg]
        (
            lambda: zoo.sparse_autoencoder(6, 2, decoder=MLP(), weight_prio=1),  # type: ignore[call-arg]
            r"zoo\.sparse_autoencoder.*'weight_prio'.*did you mean 'weight_prior'",
        ),
        (lambda: zoo.ppca(6, 2, hidden=(5,)), "maps of zoo.ppca are linear: hidden layers do not"),
        (lambda: zoo.linear_autoencoder(6, 2, hidden=5), "maps of zoo.linear_autoencoder are"),
        (lambda: zoo.vae(6, 2, hidden=(5,), encoder=Linear()), "either hidden or encoder"),
        (lambda: zoo.vae(6, 2, hidden=(0,)), "each width of an MLP must be at least 1"),
    ],
)
def test_refused_settings(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize(
    "system", [zoo.SYSTEMS[name] for name in zoo.SYSTEMS], ids=lambda system: system.__name__
)
def test_every_setting_is_documented(system: Callable[..., Autoencoder]) -> None:
    is_linear = system in (zoo.linear_autoencoder, zoo.ppca)
    settings = {*zoo.Choices.__annotations__} - ({"hidden"} if is_linear else set())
    assert settings <= set(re.findall(r"^ {8}(\w+)", str(system.__doc__), re.MULTILINE))


def test_a_mean_of_zero_or_one_leaves_a_bernoulli_finite() -> None:
    system = Autoencoder(3, 2).start_at(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(system.decode(torch.zeros(2)), torch.tensor([1e-3, 0.5, 1 - 1e-3]))
