"""Data sets that have a name: scikit-learn's digits and torchvision's data sets."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pyroae.data.arrays import Source
from pyroae.errors import DataError
from pyroae.registry import Registry
from pyroae.runtime.files import words

DATASETS: Registry[Any] = Registry("dataset")
"""Named data sets: functions that return a `Source`, or anything else that `read` accepts."""


@DATASETS.register("digits")
def _digits(root: Path) -> Source:
    """The 8×8 digits, read from the file of scikit-learn; importing it would take a second."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError("the digits are a file of scikit-learn, which is not installed")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = np.loadtxt(file, delimiter=",")
    images = rows[:, :-1].reshape(-1, 8, 8)
    return Source("digits", (images / 16).astype(np.float32), rows[:, -1].astype(int))


def _torchvision(name: str, make: Callable[[Any, str, bool, bool], Any]) -> None:
    """Register a data set of torchvision.

    `make(torchvision.datasets, root, train, download)` returns its training data or its test data.
    """

    def half(root: Path, train: bool) -> Any:
        from torchvision import datasets

        for download in (False, True):
            try:
                return make(datasets, str(root), train, download)
            except (RuntimeError, OSError) as error:  # not found, or no network
                reason = error
            except Exception as error:  # torchvision may raise anything on a damaged file
                raise DataError(f"{name} in '{root}' is damaged: {words(error)}") from None
        cause = words(reason).partition(". ")[0].partition("\n")[0]
        raise DataError(f"{name} is not in '{root}' and could not be downloaded: {cause}")

    @DATASETS.register(name)
    def load(root: Path) -> Source:
        train, test = (half(root, True), half(root, False))
        return Source(name, *_pixels(train), test=Source(name, *_pixels(test)))


def _pixels(dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """The images `[N, H, W]` and labels `[N]`; Omniglot has a file per image."""
    if hasattr(dataset, "targets"):
        return dataset.data.numpy(), dataset.targets.numpy()
    pairs = [(np.asarray(image), label) for image, label in dataset]
    return np.stack([image for image, _ in pairs]), np.asarray([label for _, label in pairs])


def _mnist(kind: str, sets: Any, root: str, train: bool, download: bool) -> Any:
    return getattr(sets, kind)(root, train=train, download=download)


def _emnist(sets: Any, root: str, train: bool, download: bool) -> Any:
    """EMNIST, whose files hold transposed images."""
    dataset = sets.EMNIST(root, split="balanced", train=train, download=download)
    dataset.data = dataset.data.transpose(1, 2).contiguous()
    return dataset


def _omniglot(sets: Any, root: str, train: bool, download: bool) -> Any:
    """Omniglot, resized to 28×28, with high values for ink."""
    from torchvision import transforms

    resize = transforms.Compose(
        [transforms.Resize((28, 28)), transforms.Lambda(lambda image: 255 - np.asarray(image))]
    )
    return sets.Omniglot(root, background=train, transform=resize, download=download)


_torchvision("mnist", partial(_mnist, "MNIST"))
_torchvision("fashion-mnist", partial(_mnist, "FashionMNIST"))
_torchvision("kmnist", partial(_mnist, "KMNIST"))
_torchvision("emnist", _emnist)
_torchvision("omniglot", _omniglot)
