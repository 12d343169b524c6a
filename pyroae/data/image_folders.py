"""Folders of images as arrays of bytes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyroae.errors import DataError
from pyroae.runtime.files import words

MODES = {
    "L": "L",
    "1": "L",
    "LA": "L",
    "RGB": "RGB",
    "RGBA": "RGB",
    "P": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
}
"""The modes of PIL that are read, and the mode to which each is converted.

The result is grey or coloured, with 8 bits per channel and without transparency.
"""


@dataclass(frozen=True, eq=False)
class Images:
    """N images of one size, of type uint8.

    Attributes:
        path: The folder.
        files: The paths of the images, `[N]`, ordered by class and by name.
        labels: The names of the folders of the images, `[N]`; None without folders of classes.
        shape: The shape of an image: (H, W) in grey, (H, W, 3) in colour.
    """

    path: Path
    files: np.ndarray
    labels: np.ndarray | None
    shape: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> "Images":
        """Find the images of a folder, or of its folders, as torchvision's ImageFolder does.

        Args:
            path: A folder that holds images, or one folder per class with images.

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
        return cls(path, np.array(files), labels, _pixels(files[0]).shape)

    def __len__(self) -> int:
        return len(self.files)

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
            The images `[stop - first, H, W]` or `[stop - first, H, W, 3]`, uint8.

        Raises:
            DataError: If an image cannot be read or has another size; the message names the file.
        """
        values = np.empty((stop - first, *self.shape), np.uint8)
        for out, file in zip(values, self.files[first:stop], strict=True):
            pixels = _pixels(file)
            if pixels.shape != self.shape:
                raise DataError(
                    f"'{file}' is {_size(pixels.shape)}, '{self.files[0]}' is {_size(self.shape)}: "
                    "images of one size are needed"
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


def _pixels(file: str) -> np.ndarray:
    """The pixels of an image, `[H, W]` or `[H, W, 3]`."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode in MODES:
                return np.asarray(image.convert(MODES[image.mode]))
            mode = image.mode
    except Exception as error:  # PIL may raise anything on a damaged file
        raise DataError(f"cannot read '{file}': {words(error)}") from None
    raise DataError(
        f"'{file}' is an image of mode {mode}: "
        "grey and coloured images of 8 bits per channel are read"
    )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}×{shape[0]} in {'colour' if len(shape) > 2 else 'grey'}"
