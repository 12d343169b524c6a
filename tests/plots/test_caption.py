"""The line below a picture is below everything else that the picture shows."""

import io

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from pyroae.plots.drawing import rendered

DRAWN = True


def lowest(content: bytes) -> tuple[int, int]:
    """Rows of pixels: the last one of the red text, and the height."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    is_red = (pixels[..., 0] > 200) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60)
    return int(is_red.any(1).nonzero()[0].max()), len(pixels)


def test_a_caption_is_below_a_text_outside_of_the_figure() -> None:
    figure = plt.figure(figsize=(4, 2))
    figure.text(0.5, -0.2, "outside", color=(1, 0, 0), ha="center", va="top", fontsize=20)
    content = rendered(figure, caption="180 data of digits")
    last, height = lowest(content)
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    below = pixels[last + 3 :]
    assert height - last > 10
    assert (below < 200).any(), "the caption"


def test_a_caption_is_below_a_legend_outside_of_the_axes() -> None:
    """A tight box must not move the legend to the edge where the caption is."""
    figure = plt.figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="unit")
    axes.xaxis.label.set_color((0, 0, 1))
    (line,) = axes.plot([0, 1], color="black")
    figure.legend([line], ["units"], loc="outside lower center", labelcolor=(1, 0, 0))
    plain, full = lowest(rendered(figure))
    content = rendered(figure, caption="180 data of digits")
    last, height = lowest(content)
    assert height > full, "the caption has its own space"
    assert height - last > full - plain + 10
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    is_blue = (pixels[..., 2] > 200) & (pixels[..., 0] < 60) & (pixels[..., 1] < 60)
    is_red = (pixels[..., 0] > 200) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60)
    assert is_blue.any(1).nonzero()[0].max() < is_red.any(1).nonzero()[0].min(), "the label"
