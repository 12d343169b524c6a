"""Where data come from: embedded digits, torchvision's datasets, files and arrays, as they are before any scaling."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyroae.errors import DataError, unknown_name
from pyroae.images import Images
from pyroae.registry import Registry

LABELS = ("label", "labels", "target", "targets", "class")
VALUES = ("x", "data", "images", "arr_0")


@dataclass(frozen=True)
class Source:
    """Values as they were found `[N, ...]`, labels where known, and the test set where the source has its own."""

    name: str
    values: np.ndarray
    labels: np.ndarray | None = None
    test: "Source | None" = None


def read(source: Any, data_root: str | Path = "data") -> Source:
    """The source that `source` means: a known name, the path of a file or a folder of images, an array or a tensor, or
    a pair (values, labels).

    Raises DataError where it cannot be read, ConfigError for a name that is not known.
    """
    if isinstance(source, str) and source in DATASETS:
        return DATASETS[source](Path(data_root))
    if isinstance(source, str | Path):
        return _file(Path(source))
    if isinstance(source, tuple) and len(source) == 2:
        return Source("array", _array(source[0]), _array(source[1]))
    return Source("array", _array(source))


def _array(values: Any) -> np.ndarray:
    try:
        return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    except (ValueError, TypeError) as error:
        raise DataError(f"this {type(values).__name__} is no array of numbers: {error}") from None


DATASETS: Registry[Source] = Registry("dataset")


@DATASETS.register("digits")
def _digits(root: Path) -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return Source("digits", (digits.images / 16).astype(np.float32), digits.target)


def _torchvision(name: str, make: Callable[[Any, str, bool, bool], Any]) -> None:
    """Enter one of torchvision's datasets; `make(torchvision.datasets, root, train, download)` gives one of its halves."""

    def half(root: Path, train: bool) -> Any:
        from torchvision import datasets

        for download in (False, True):
            try:
                return make(datasets, str(root), train, download)
            except (RuntimeError, OSError) as error:  # torchvision's words for not found, and for no network
                reason = error
            except Exception as error:  # whatever a damaged file makes torchvision raise
                raise DataError(f"{name} in '{root}' is damaged: {words(error)}") from None
        raise DataError(f"{name} is not in '{root}' and could not be downloaded: {words(reason)}")

    @DATASETS.register(name)
    def load(root: Path) -> Source:
        train, test = (half(root, True), half(root, False))
        return Source(name, *_pixels(train), test=Source(name, *_pixels(test)))


def _pixels(dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    if hasattr(dataset, "targets"):
        return dataset.data.numpy(), dataset.targets.numpy()
    pairs = [(np.asarray(image), label) for image, label in dataset]  # Omniglot: files, read one by one
    return np.stack([image for image, _ in pairs]), np.asarray([label for _, label in pairs])


def _emnist(sets: Any, root: str, train: bool, download: bool) -> Any:
    dataset = sets.EMNIST(root, split="balanced", train=train, download=download)
    dataset.data = dataset.data.transpose(1, 2).contiguous()  # EMNIST stores its images lying on their side
    return dataset


def _omniglot(sets: Any, root: str, train: bool, download: bool) -> Any:
    from torchvision import transforms

    small = transforms.Compose([transforms.Resize((28, 28)), transforms.Lambda(lambda image: 255 - np.asarray(image))])
    return sets.Omniglot(root, background=train, transform=small, download=download)


_torchvision("mnist", lambda sets, root, train, download: sets.MNIST(root, train=train, download=download))
_torchvision("fashion-mnist", lambda sets, root, train, download: sets.FashionMNIST(root, train=train, download=download))
_torchvision("kmnist", lambda sets, root, train, download: sets.KMNIST(root, train=train, download=download))
_torchvision("emnist", _emnist)
_torchvision("omniglot", _omniglot)


def _file(path: Path) -> Source:
    if path.is_dir():
        images = Images.of(path)
        return Source(images.name, images.read(0, len(images)), images.labels)
    if path.suffix not in _READERS:
        if path.exists():
            raise DataError(f"'{path}' is not of a known kind: {', '.join(_READERS)} are read, and folders of images")
        raise unknown_name("dataset", str(path), DATASETS)
    if not path.is_file():
        raise DataError(f"there is no file '{path}'")
    try:
        values, labels = _READERS[path.suffix](path)
    except DataError:
        raise
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise DataError(f"cannot read '{path}': {words(error)}") from None
    return Source(path.stem, values, labels)


def words(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _npy(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with path.open("rb") as file:
        values = np.load(file, allow_pickle=False)
        if not isinstance(values, np.ndarray):
            raise DataError(f"'{path}' is an archive of arrays: name it .npz")
        return values, None


def _npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        tables = [name for name in VALUES if name in arrays] or [name for name in arrays if arrays[name].ndim > 1]
        if not tables:
            raise DataError(f"'{path}' holds no array named {', '.join(VALUES)}; it holds: {', '.join(arrays) or 'nothing'}")
        labels = next((arrays[name] for name in (*LABELS, "y") if name in arrays), None)
        return arrays[tables[0]], labels


def _csv(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    first = pd.read_csv(path, header=None, nrows=1).iloc[0]
    numeric = (first.isna() | pd.to_numeric(first, errors="coerce").notna()).all()
    return _columns(path, pd.read_csv(path, header=None if numeric else 0))


def _parquet(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    return _columns(path, pd.read_parquet(path))


def _columns(path: Path, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray | None]:
    named, values = label_of(table.columns), table
    if named is not None:
        values = table.drop(columns=[named])
    check_numeric(path, values)
    return values.to_numpy(), None if named is None else table[named].to_numpy()


def label_of(columns: Iterable[Any]) -> Any | None:
    """The first column that is named like labels."""
    return next((column for column in columns if str(column).lower() in LABELS), None)


def check_numeric(path: Path, values: pd.DataFrame) -> None:
    """Raises DataError that names a column of anything but numbers."""
    for column in values.columns:
        if not pd.api.types.is_numeric_dtype(values[column]):
            raise DataError(f"column '{column}' of '{path}' is not numeric")


_READERS = {".npy": _npy, ".npz": _npz, ".csv": _csv, ".parquet": _parquet}
