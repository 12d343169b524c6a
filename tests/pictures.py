"""Evaluations without most of their pictures, which take most of the time of a small one."""

import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pyroae.errors import DataError
from pyroae.plots import drawing

PICTURES = {
    **dict.fromkeys(
        ("manifold", "reconstructions", "samples", "latent_scatter", "filters", "kl_per_unit"),
        "pyroae.plots",
    ),
    **dict.fromkeys(("interpolation", "traversals", "column_errors"), "pyroae.plots"),
    **dict.fromkeys(("extremes", "likelihood_per_datum"), "pyroae.plots.likelihood"),
    "predictive_check": "pyroae.commands.pictures",
}
"""Where the functions of the pictures that are left out are looked up."""


def leave_out_pictures(patch: pytest.MonkeyPatch, keep: Collection[str] = ()) -> None:
    """Leave out most pictures of an evaluation, as of a system that does not have them."""

    def left_out(*args: Any, **options: Any) -> Any:
        raise DataError("left out")

    for name, module in PICTURES.items():
        if name not in keep:
            patch.setattr(f"{module}.{name}", left_out)


IN_FULL = drawing._drawn


def blank(figure: object, suffix: str, caption: str, metadata: dict[str, Any]) -> bytes:
    """A picture of one pixel in place of a figure, with the texts that the file has."""
    if suffix != ".png":
        return b"%PDF-"
    texts, content = PngInfo(), io.BytesIO()
    for name, text in metadata.items():
        texts.add_text(name, text)
    Image.new("L", (1, 1)).save(content, "png", pnginfo=texts)
    return content.getvalue()


@contextmanager
def in_full() -> Iterator[None]:
    """Draw pictures, in modules where they are blank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "_drawn", IN_FULL)
        yield
