"""Folders of images: which files they hold, and each of them as an array of bytes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyroae.errors import DataError

KEPT = {
    "L": "L",
    "1": "L",
    "LA": "L",
    "RGB": "RGB",
    "RGBA": "RGB",
    "P": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
}
"""Modes of PIL that are read, and what they become: grey or colour, 8 bits a channel, without transparency."""


def is_channels_last(shape: tuple[int, ...]) -> bool:
    """Whether data of this shape are images (height, width, channels), as folders and TensorFlow have them.

    So they are read where the last dimension is at most 4 and the smallest; else as (channels, height, width).

    >>> is_channels_last((28, 28, 3)), is_channels_last((3, 28, 28)), is_channels_last((64, 4, 4))
    (True, False, False)
    """
    return len(shape) == 3 and shape[2] <= 4 and shape[2] < min(shape[:2])


@dataclass(frozen=True, eq=False)
class Images:
    """N images of one size: grey ones `[H, W]`, coloured ones `[H, W, 3]`, as bytes.

    files: `[N]`, in the order of classes and names. labels: `[N]`, the names of their folders, where there are such.
    """

    path: Path
    files: np.ndarray
    labels: np.ndarray | None
    shape: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> "Images":
        """The images in a folder, or in its folders, one a class, as torchvision's ImageFolder finds them.

        Raises DataError where there are none, where they are both in the folder and in folders of it, or cannot be read.
        """
        from torchvision.datasets.folder import IMG_EXTENSIONS

        inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        files = [
            str(entry)
            for entry in inside
            if entry.suffix.lower() in IMG_EXTENSIONS and entry.is_file()
        ]
        folders = [entry for entry in inside if entry.is_dir()]
        if files and folders:
            raise DataError(
                f"'{path}' holds images and the folder '{folders[0].name}': images lie in it, or in a folder a class"
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
        """That of the folder."""
        return self.path.resolve().name

    def read(self, first: int, stop: int) -> np.ndarray:
        """Images of consecutive numbers, `[stop - first, *shape]`. Raises DataError that names a file of another size."""
        values = np.empty((stop - first, *self.shape), np.uint8)
        for place, pixels in zip(values, self._each(first, stop), strict=True):
            place[...] = pixels
        return values

    def _each(self, first: int, stop: int) -> Iterator[np.ndarray]:
        for file in self.files[first:stop]:
            pixels = _pixels(file)
            if pixels.shape != self.shape:
                sizes = (
                    f"'{file}' is {_size(pixels.shape)}, '{self.files[0]}' is {_size(self.shape)}"
                )
                raise DataError(f"{sizes}: images of one size are needed")
            yield pixels


def _in_classes(path: Path) -> tuple[list[str], np.ndarray | None]:
    from torchvision.datasets import ImageFolder

    try:
        found: Any = ImageFolder(str(path), allow_empty=True)
    except OSError as error:
        raise DataError(f"cannot read the folder '{path}': {error.strerror or error}") from None
    names = np.array(found.classes)
    return [file for file, _ in found.samples], names[
        [target for _, target in found.samples]
    ] if found.samples else None


def _pixels(file: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode in KEPT:
                return np.asarray(image.convert(KEPT[image.mode]))
            mode = image.mode
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise DataError(
            f"cannot read '{file}': {' '.join(str(error).split()) or type(error).__name__}"
        ) from None
    raise DataError(
        f"'{file}' is an image of mode {mode}: grey and coloured ones of 8 bits a channel are read"
    )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}×{shape[0]} in {'colour' if len(shape) > 2 else 'grey'}"
