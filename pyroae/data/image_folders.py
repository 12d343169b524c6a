"""Folders of images as arrays of integers."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyroae.errors import DataError
from pyroae.runtime.files import words

MODES = {
    "1": "L",
    "L": "L",
    "LA": "L",
    "La": "L",
    "RGB": "RGB",
    "RGBX": "RGB",
    "RGBA": "RGB",
    "RGBa": "RGB",
    "P": "RGB",
    "PA": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
}
"""The modes of PIL with 8 bits per channel, and the mode to which each is converted."""


DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
"""The modes of PIL with 16 bits and one channel."""


_LAID_ON_WHITE: set[Path] = set()
"""Folders of which it has been said that their transparent pixels are laid on white."""


@dataclass(frozen=True, eq=False)
class Images:
    """N images of one size, all grey or all in colour.

    They are turned as their EXIF data say. Transparent pixels are laid on white, and a warning says
    so. Colours of 16 bits are read with 8.

    Attributes:
        path: The folder.
        files: The paths of the images, `[N]`, ordered by class and by name.
        labels: The names of the folders of the images, `[N]`; None without folders of classes.
        shape: The shape of an image: (H, W) in grey, (H, W, 3) in colour.
        dtype: uint8, or uint16 for grey images of 16 bits.
        grey: Whether colours are converted to grey.
    """

    path: Path
    files: np.ndarray
    labels: np.ndarray | None
    shape: tuple[int, ...]
    dtype: np.dtype
    grey: bool

    @classmethod
    def of(cls, path: Path, *, grey: bool = False) -> "Images":
        """Find the images of a folder, or of its folders, as torchvision's ImageFolder does.

        Args:
            path: A folder that holds images, or one folder per class with images.
            grey: Whether colours are converted to grey.

        Returns:
            The images; the first one determines the shape.

        Raises:
            DataError: If there are no images, if there are images both in the folder and folders in
                it, or if the first image cannot be read.
        """
        from torchvision.datasets.folder import IMG_EXTENSIONS

        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        files = [
            str(entry)
            for entry in entries
            if entry.suffix.lower() in IMG_EXTENSIONS and entry.is_file()
        ]
        folders = [entry for entry in entries if entry.is_dir()]
        if files and folders:
            raise DataError(
                f"'{path}' holds images and the folder '{folders[0].name}': "
                "put the images into it, or into one folder per class"
            )
        labels = None
        if not files:
            files, labels = _in_classes(path) if folders else ([], None)
        if not files:
            raise DataError(
                f"the folder '{path}' holds no images: {', '.join(IMG_EXTENSIONS)} are read"
            )
        first = _pixels(files[0], grey, path)
        return cls(path, np.array(files), labels, first.shape, first.dtype, grey)

    def __len__(self) -> int:
        return len(self.files)

    def limits_for(self, largest: float) -> tuple[float, float] | None:
        """Return black and white, which are mapped to 0 and 1.

        Args:
            largest: The largest value.

        Returns:
            The smallest and the largest value of the type; None for 8 bits of 0 and 1 alone.
        """
        if self.dtype == np.uint16:
            return 0.0, 65535.0
        return (0.0, 255.0) if largest > 1 else None

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.resolve().name

    def read(self, first: int, stop: int) -> np.ndarray:
        """Read consecutive images.

        Args:
            first: The number of the first image.
            stop: The number of the image after the last.

        Returns:
            The images `[stop - first, H, W]` or `[stop - first, H, W, 3]`, of type `dtype`.

        Raises:
            DataError: If an image cannot be read or differs in size, channels or bits from the
                first; the message names the file.
        """
        values = np.empty((stop - first, *self.shape), self.dtype)
        for out, file in zip(values, self.files[first:stop], strict=True):
            pixels = _pixels(file, self.grey, self.path)
            if (pixels.shape, pixels.dtype) != (self.shape, self.dtype):
                raise DataError(
                    f"'{file}' is {_size(pixels.shape, pixels.dtype)}, '{self.files[0]}' is "
                    f"{_size(self.shape, self.dtype)}: images of one size are needed, all grey or "
                    "all in colour; channels 'grey' reads colours as grey"
                )
            out[...] = pixels
        return values


def _in_classes(path: Path) -> tuple[list[str], np.ndarray | None]:
    """The images of the folders of a folder, and the name of the folder of each."""
    from torchvision.datasets import ImageFolder

    try:
        folder: Any = ImageFolder(str(path), allow_empty=True)
    except OSError as error:
        raise DataError(f"cannot read the folder '{path}': {error.strerror or error}") from None
    if not folder.samples:
        return [], None
    return [file for file, _ in folder.samples], np.array(folder.classes)[folder.targets]


def _pixels(file: str, grey: bool, folder: Path) -> np.ndarray:
    """The pixels of an image, `[H, W]` or `[H, W, 3]`, uint8, or uint16 for grey of 16 bits."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            mode = image.mode
            if mode in DEEP:
                return np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16)
            if mode in MODES:
                opaque = _on_white(ImageOps.exif_transpose(image), file, folder)
                return np.asarray(opaque.convert("L" if grey else MODES[mode]))
    except Warning:
        raise
    except Exception as error:  # PIL may raise anything on a damaged file
        raise DataError(f"cannot read '{file}': {words(error)}") from None
    raise DataError(
        f"'{file}' is an image of mode {mode}: "
        "grey images of 8 or 16 bits and coloured ones of 8 bits per channel are read"
    )


def _on_white(image: Any, file: str, folder: Path) -> Any:
    """An image without transparency: laid on white where it has transparent pixels."""
    if not image.has_transparency_data:
        return image
    from PIL import Image

    coloured = image.convert("RGBA")
    if coloured.getextrema()[3][0] == 255:
        return coloured
    if folder not in _LAID_ON_WHITE:
        _LAID_ON_WHITE.add(folder)
        warnings.warn(
            f"'{file}' has transparent pixels: such images are laid on white", stacklevel=2
        )
    white = Image.new("RGBA", coloured.size, "white")
    white.alpha_composite(coloured)
    return white


def _size(shape: tuple[int, ...], dtype: np.dtype) -> str:
    kind = "in colour" if len(shape) > 2 else "in grey"
    return f"{shape[1]}×{shape[0]} {kind}{' of 16 bits' if dtype == np.uint16 else ''}"
