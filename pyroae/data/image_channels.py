"""Where images have their channels, and colours as grey."""

import numpy as np

from pyroae.errors import ConfigError, DataError

AXES = {"first": 0, "last": 2}
"""The dimension of the channels in the shape of one datum, by name."""


LUMA = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in grey (ITU-R BT.601), as PIL has them."""


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """Find the dimension of the channels of images.

    It is the first or the last of three dimensions, if that has at most 4 elements and is smaller
    than the other two. Folders of images and TensorFlow have it last, torch has it first.

    Args:
        shape: The shape of one datum.

    Returns:
        0 or 2; None where the shape does not tell, or is not of three dimensions.

    >>> [channel_axis(s) for s in ((3, 28, 28), (28, 28, 3), (28, 28, 28), (4, 4, 4), (28, 28))]
    [0, 2, None, None, None]
    """
    if len(shape) != 3:
        return None
    for axis, others in ((2, shape[:2]), (0, shape[1:])):
        if shape[axis] <= 4 and shape[axis] < min(others):
            return axis
    return None


def axis_of(shape: tuple[int, ...], channels: str | None) -> int:
    """Return the dimension of the channels: the one that is asked for, or the one that is found.

    Args:
        shape: The shape of one datum, of three dimensions.
        channels: `first` or `last`; None to find it from the shape.

    Returns:
        0 or 2.

    Raises:
        ConfigError: The shape does not tell, or tells another dimension than is asked for.

    >>> axis_of((28, 28, 16), "last")
    2
    >>> axis_of((28, 28, 16), None)
    Traceback (most recent call last):
    pyroae.errors.ConfigError: images of shape (28, 28, 16) may have their channels first or ...
    """
    found, asked = channel_axis(shape), None if channels is None else AXES[channels]
    if found is None and asked is None:
        raise ConfigError(
            f"images of shape {shape} may have their channels first or last: give channels, "
            "'first' or 'last'"
        )
    if None not in (found, asked) and found != asked:
        name = next(name for name, axis in AXES.items() if axis == found)
        raise ConfigError(f"images of shape {shape} have their channels {name}, not {channels}")
    return found if asked is None else asked  # type: ignore[return-value]


def to_grey(values: np.ndarray, name: str) -> np.ndarray:
    """Convert colours to grey.

        0.299 red + 0.587 green + 0.114 blue

    Args:
        values: Images `[N, H, W]`, which are grey already, or with 1 or 3 channels, first or last.
        name: The name of the data in the error message.

    Returns:
        The images `[N, H, W]`, in the type of `values`; integers are rounded.

    Raises:
        DataError: The values are not such images.

    >>> to_grey(np.full((1, 4, 4, 3), [255, 0, 0], np.uint8), "red images")[0, 0].tolist()
    [76, 76, 76, 76]
    """
    if values.ndim == 3:
        return values
    axis = channel_axis(values.shape[1:])
    count = 0 if axis is None else values.shape[1 + axis]
    if axis is None or count not in (1, 3):
        raise DataError(
            f"{name} has the shape {values.shape}: grey is made of images [N, H, W], or of images "
            "with 1 or 3 channels, first or last"
        )
    if count == 1:
        return values.squeeze(1 + axis)
    grey = np.tensordot(values.astype(np.float64), LUMA, ([1 + axis], [0]))
    return (grey.round() if values.dtype.kind in "iu" else grey).astype(values.dtype)


def check_channels(shape: tuple[int, ...], channels: str, name: str) -> None:
    """Refuse data of another shape than images with channels where they are said to be.

    Args:
        shape: The shape of one datum.
        channels: `first` or `last`.
        name: The name of the data in the error message.

    Raises:
        DataError: The data are not of three dimensions.
        ConfigError: The shape tells another dimension.
    """
    if len(shape) != 3:
        raise DataError(
            f"{name} has data of shape {shape}: channels are the first or the last of the three "
            "dimensions of an image"
        )
    axis_of(shape, channels)
