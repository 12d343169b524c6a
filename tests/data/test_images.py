"""Images as people have them: folders of any mode, arrays with channels first or last, in grey."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pyroae import cli, load, zoo
from pyroae.data import scan
from pyroae.data.image_channels import channel_axis
from pyroae.errors import ConfigError, DataError, PyroaeError
from pyroae.inference_data import to_datatree
from pyroae.likelihoods import Normal
from pyroae.nn import MLP, Conv
from tests.pictures import leave_out_pictures

DRAWN = True

DRAW = np.random.default_rng(0)
COLOURS = DRAW.integers(0, 256, (5, 6, 3)).astype(np.uint8)
GREY = DRAW.integers(0, 256, (5, 6)).astype(np.uint8)
ALPHA = np.where(np.arange(30).reshape(5, 6) % 3 == 0, 0, 255).astype(np.uint8)
HALF = np.full((5, 6), 128, np.uint8)
DEEP = DRAW.integers(0, 65536, (5, 6)).astype(np.uint16)


def on_white(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha / 255 if values.ndim == 2 else alpha[..., None] / 255
    return share * values / 255 + (1 - share)


def palette(transparent: bool) -> Image.Image:
    image = Image.new("P", (6, 5))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([n % 3 for n in range(30)])
    if transparent:
        image.info["transparency"] = 1
    return image


PALETTE = np.eye(3)[np.arange(30).reshape(5, 6) % 3]
MODES: dict[str, tuple[Callable[[], Image.Image], np.ndarray, str]] = {
    "grey": (lambda: Image.fromarray(GREY), GREY / 255, "png"),
    "black and white": (lambda: Image.fromarray(GREY > 127), GREY > 127, "png"),
    "colour": (lambda: Image.fromarray(COLOURS), COLOURS / 255, "png"),
    "colour, bmp": (lambda: Image.fromarray(COLOURS), COLOURS / 255, "bmp"),
    "grey of 16 bits": (lambda: Image.fromarray(DEEP), DEEP / 65535, "png"),
    "grey of 16 bits, tiff": (lambda: Image.fromarray(DEEP), DEEP / 65535, "tiff"),
    "palette": (lambda: palette(False), PALETTE, "png"),
    "opaque alpha": (
        lambda: Image.fromarray(np.dstack([COLOURS, np.full_like(GREY, 255)])),
        COLOURS / 255,
        "png",
    ),
}
TRANSPARENT: dict[str, tuple[Callable[[], Image.Image], np.ndarray, str]] = {
    "colour and alpha": (
        lambda: Image.fromarray(np.dstack([COLOURS, ALPHA])),
        on_white(COLOURS, ALPHA),
        "png",
    ),
    "half transparent": (
        lambda: Image.fromarray(np.dstack([COLOURS, HALF])),
        on_white(COLOURS, HALF),
        "png",
    ),
    "grey and alpha": (
        lambda: Image.fromarray(np.dstack([GREY, ALPHA]), "LA"),
        on_white(GREY, ALPHA),
        "png",
    ),
    "transparent colour of a palette": (
        lambda: palette(True),
        np.where(np.arange(30).reshape(5, 6, 1) % 3 == 1, 1.0, PALETTE),
        "png",
    ),
}


def folder_of(path: Path, *images: Image.Image, suffix: str = "png") -> Path:
    path.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        image.save(path / f"{number}.{suffix}")
    return path


def values(path: Path, **settings: Any) -> np.ndarray:
    """The one image of a folder, as `load` has it."""
    data = load(path, valid=0, test=0, **settings).train
    return data.x.numpy().reshape(len(data), *data.shape)[0]


@pytest.mark.parametrize("name", MODES)
def test_a_folder_of_any_mode(name: str, tmp_path: Path) -> None:
    make, expected, suffix = MODES[name]
    folder = folder_of(tmp_path / "images", make(), suffix=suffix)
    np.testing.assert_allclose(values(folder), expected, atol=1e-6)


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_pixels_are_laid_on_white_and_said(name: str, tmp_path: Path) -> None:
    make, expected, suffix = TRANSPARENT[name]
    folder = folder_of(tmp_path / "images", make(), make(), suffix=suffix)
    with pytest.warns(
        UserWarning, match="has transparent pixels: such images are laid on white"
    ) as said:
        found = values(folder)
    assert len(said) == 1  # once for a folder
    np.testing.assert_allclose(found, expected, atol=1 / 255)


def test_an_image_is_turned_as_its_exif_data_say(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: the picture has to be rotated to the right
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(GREY).save(folder / "0.png", exif=exif)
    np.testing.assert_allclose(values(folder), np.rot90(GREY, -1) / 255, atol=1e-6)


def test_value_range_wins_over_16_bits(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images", Image.fromarray(DEEP // 16))
    np.testing.assert_allclose(
        values(folder, value_range=(0, 4095)), (DEEP // 16) / 4095, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["colours", "sixteen bits"])
def test_streamed_images_have_the_values_of_those_in_memory(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = [(COLOURS if kind == "colours" else DEEP) // (n + 1) for n in range(9)]
    folder = folder_of(tmp_path / "images", *map(Image.fromarray, pixels))
    for channels in (None, "grey"):
        whole = load(folder, channels=channels, test=0.3)
        with monkeypatch.context() as patch:
            patch.setattr(scan, "IN_MEMORY", 0)
            found = load(folder, channels=channels, test=0.3)
        assert found.train.stream is not None
        assert (found.fingerprint, found.train.shape) == (whole.fingerprint, whole.train.shape)
        everything = torch.cat([found.train.first(9).x, found.valid.x, found.test.x])  # type: ignore[union-attr]
        expected = torch.cat([whole.train.x, whole.valid.x, whole.test.x])  # type: ignore[union-attr]
        torch.testing.assert_close(everything.sum(1).sort().values, expected.sum(1).sort().values)


MIXED: dict[str, tuple[Image.Image, str]] = {
    "size": (Image.fromarray(GREY[:4]), r"1\.png' is 6×4 in grey, .*0\.png' is 6×5 in grey"),
    "colour": (Image.fromarray(COLOURS), r"1\.png' is 6×5 in colour, .*0\.png' is 6×5 in grey"),
    "bits": (Image.fromarray(DEEP), r"1\.png' is 6×5 in grey of 16 bits, .*0\.png' is 6×5 in grey"),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_mixed_folder_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    other, words = MIXED[name]
    folder = folder_of(tmp_path / "images", Image.fromarray(GREY), other)
    with pytest.raises(DataError, match=words + ": images of one size are needed, all grey or all"):
        load(folder)


def test_colours_of_a_mixed_folder_as_grey(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images", Image.fromarray(COLOURS), Image.fromarray(GREY))
    data = load(folder, channels="grey", valid=0, test=0).train
    assert data.shape == (5, 6)
    luma = (COLOURS @ np.array([0.299, 0.587, 0.114])) / 255
    np.testing.assert_allclose(data.x[0].reshape(5, 6), luma, atol=1.01 / 255)
    np.testing.assert_allclose(data.x[1].reshape(5, 6), GREY / 255, atol=1e-6)


def test_floats_of_32_bits_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images", Image.new("F", (6, 5), 0.5), suffix="tiff")
    with pytest.raises(DataError, match="is an image of mode F: grey images of 8 or 16 bits"):
        load(folder)


# Arrays.


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_colours_of_an_array_as_grey(axis: int, dtype: type) -> None:
    colours = DRAW.integers(0, 256, (4, 5, 6, 3))
    luma = colours @ np.array([0.299, 0.587, 0.114])
    data = load(np.moveaxis(colours, -1, axis).astype(dtype), channels="grey", valid=0, test=0)
    scale, error = (255, 0.51 / 255) if dtype is np.uint8 else (1, 1e-3)
    assert data.train.shape == (5, 6)
    np.testing.assert_allclose(data.train.x.reshape(4, 5, 6), luma / scale, atol=error)
    again = load(data.train, channels="grey", valid=0, test=0)
    assert torch.equal(again.train.x, data.train.x)


@pytest.mark.parametrize("shape", [(5, 6, 4), (5, 6, 7), (30,)])
def test_other_arrays_are_not_made_grey(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="grey is made of images"):
        load(np.random.default_rng(0).random((4, *shape)), channels="grey")


@pytest.mark.parametrize(
    ("shape", "channels", "error", "words"),
    [
        ((8, 9, 3), "first", ConfigError, r"shape \(8, 9, 3\) have their channels last, not first"),
        ((3, 8, 9), "last", ConfigError, r"shape \(3, 8, 9\) have their channels first, not last"),
        ((8, 9), "last", DataError, "channels are the first or the last of the three dimensions"),
        ((8, 9), "lsat", ConfigError, "unknown place of channels 'lsat': did you mean 'last'"),
    ],
)
def test_channels_that_the_data_do_not_have(
    shape: tuple[int, ...], channels: Any, error: type[PyroaeError], words: str
) -> None:
    with pytest.raises(error, match=words):
        load(np.random.default_rng(0).random((4, *shape)), channels=channels)


@pytest.mark.parametrize("axis", ["first", "last"])
def test_convolutions_use_the_channels_that_are_asked_for(axis: str) -> None:
    """8 bands, of which the shape does not say where they are."""
    shape = (8, 8, 8)
    x = torch.rand(6, *shape)
    data = load(x, channels=axis, valid=0, test=0).train  # type: ignore[arg-type]
    made = zoo.autoencoder(data, 2, encoder=Conv((4,), width=5))
    assert made.encoder_map == made.decoder_map == Conv((4,), width=5, axis=axis)
    kernels = next(m for m in made.encoder.modules() if isinstance(m, torch.nn.Conv2d))
    images = x if axis == "first" else x.permute(0, 3, 1, 2)
    seen: list[torch.Tensor] = []
    kernels.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    assert made.reconstruct(data.x).shape == (6, 512)
    torch.testing.assert_close(seen[0], images)
    with pytest.raises(ConfigError, match="may have their channels first or last: give channels"):
        zoo.autoencoder(shape, 2, encoder=Conv((4,), width=5))


def test_where_channels_are_found() -> None:
    last, first = [(28, 28, c) for c in (1, 2, 3, 4)], [(c, 28, 28) for c in (1, 2, 3, 4)]
    assert {channel_axis(shape) for shape in last} == {2}
    assert {channel_axis(shape) for shape in first} == {0}
    for shape in ((3, 28, 3), (4, 4, 4), (28, 28, 5), (64, 4, 4), (28, 28), (784,)):
        assert channel_axis(shape) is None


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5, 3)])
def test_the_data_tree_has_rows_columns_and_channels(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, *shape)
    system = zoo.autoencoder(shape, 2, encoder=MLP((3,)), likelihood=Normal(1.0))
    tree = to_datatree(system.model, system.guide, x.flatten(1), shape=shape, seed=0)
    observed = tree["observed_data"]["x"]
    names = ["channel", "row", "column"] if shape[0] == 3 else ["row", "column", "channel"]
    for flat, place in enumerate(np.ndindex(shape)):
        pixel = observed.isel(pixel=flat)
        assert tuple(int(pixel[name]) for name in names) == place
        np.testing.assert_allclose(pixel.to_numpy().reshape(-1, 2)[0], x[(slice(None), *place)])


# The command line.


def test_a_run_of_colour_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of colours through convolutions: training, evaluation, colour figures, samples."""
    pictures = ("reconstructions", "samples", "manifold", "filters")
    leave_out_pictures(monkeypatch, keep=pictures)
    draw = np.random.default_rng(1)
    images = [Image.fromarray(draw.integers(0, 256, (8, 8, 3)).astype(np.uint8)) for _ in range(24)]
    folder, run = folder_of(tmp_path / "images", *images), tmp_path / "run"
    small = ["--system", "vae", "--likelihood", "normal:scale=0.3", "--map", "conv", "--hidden"]
    small += ["4", "--latent", "2", "--epochs", "1", "--batch-size", "10"]
    assert cli.main(["train", "--data", str(folder), *small, "--out", str(run)]) == 0
    assert cli.main(["evaluate", str(run), "--num-particles", "20"]) == 0
    for name in pictures:
        with Image.open(run / "figures" / f"{name}.png") as figure:
            pixels = np.asarray(figure.convert("RGB")).astype(int)
        assert (pixels.max(-1) - pixels.min(-1) > 20).mean() > 0.02, name
    assert (run / "report.html").exists()


@pytest.mark.usefixtures("few_pictures")
def test_a_run_with_channels_that_are_said(tmp_path: Path, capsys: Any) -> None:
    np.save(tmp_path / "bands.npy", np.random.default_rng(2).random((20, 8, 8, 8)))
    small = ["--data", str(tmp_path / "bands.npy"), "--system", "ae", "--map", "conv", "--hidden"]
    small += ["4", "--latent", "2", "--epochs", "1", "--batch-size", "10"]
    assert cli.main(["train", *small, "--out", str(tmp_path / "no")]) == 2
    assert "may have their channels first or last: give channels" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert cli.main(["train", *small, "--channels", "last", "--out", str(tmp_path / "run")]) == 0
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 0
