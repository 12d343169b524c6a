"""Where data come from: embedded digits, torchvision's datasets, files and arrays, as they are before any scaling."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyroae.data.image_folders import Images
from pyroae.errors import DataError, PyroaeError, unknown_name
from pyroae.registry import Registry

LABELS = ("label", "labels", "target", "targets", "class", "y")
"""Names of labels, in any case."""


VALUES = ("x", "data", "images", "arr_0")
"""Names of data in an archive of arrays, in any case."""


PART = "train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?"
"""Names of the parts of a data set in the names of its arrays, as in x_train or test_images."""


INDEX = r"Unnamed: 0(\.\d+)*|__index_level_\d+__"
"""Names that pandas gives to an index without a name, in .csv and in .parquet."""


ROW_NUMBERS = ("id", "index")
"""Names of columns that number the rows."""


@dataclass(frozen=True)
class Source:
    """Values as they were found `[N, ...]`, labels where known, and the test set where the source has its own.

    Raises DataError where the test data have another shape than the training data, or only one of the two are bytes.
    """

    name: str
    values: np.ndarray
    labels: np.ndarray | None = None
    test: "Source | None" = None

    def __post_init__(self) -> None:
        if self.test is None:
            return
        one, other = self.values, self.test.values
        if one.shape[1:] != other.shape[1:]:
            raise DataError(
                f"{self.name} has training data of shape {one.shape} and test data of shape {other.shape}"
            )
        if (one.dtype == np.uint8) != (other.dtype == np.uint8):
            raise DataError(
                f"{self.name} has training data of type {one.dtype} and test data of type {other.dtype}"
            )


def read(source: Any, data_root: str | Path = "data") -> Source:
    """Read what `source` stands for.

    Args:
        source: a known name; the path of a file or a folder of images; an array `[N, ...]`: a numpy array, a tensor, nested
            lists, a sparse matrix; a table of pandas, in which a column may hold the labels; a pair (values, labels) or a
            TensorDataset of these; a pair of such pairs, of which the second is the test set.
        data_root: the folder of torchvision's datasets.

    Raises:
        DataError: where it cannot be read.
        ConfigError: for a name that is not known.
    """
    made = named(source, data_root)
    if isinstance(made, Source):
        return made
    if made is not source:
        return replace(read(made, data_root), name=str(source))
    if isinstance(source, str | Path):
        return _file(Path(source))
    if isinstance(source, torch.utils.data.TensorDataset):
        source = source.tensors if len(source.tensors) > 1 else source.tensors[0]
    if not isinstance(source, tuple):
        return _one(source)
    if len(source) != 2:
        raise DataError(
            f"a tuple of {len(source)} is no data: give an array, a pair (values, labels), or a pair of pairs "
            "((x_train, y_train), (x_test, y_test))"
        )
    if all(isinstance(part, tuple) and len(part) == 2 for part in source):
        return replace(_pair(*source[0]), test=_pair(*source[1]))
    return _pair(*source)


def named(source: Any, data_root: str | Path = "data") -> Any:
    """Return what a dataset's function returns, where `source` is the name of a dataset.

    Args:
        source: A registered name, alone or with settings, as in `my-data:size=100`; or anything
            else, which is returned unchanged.
        data_root: The folder of torchvision's datasets, the argument `root` of a function that
            takes one.

    Returns:
        A Source, with the dataset's name, of what the function returns: an array, a table, a pair
        (values, labels), or a pair of such pairs. A tuple of arrays is returned unchanged where it
        is none of these: the arguments of a program.

    Raises:
        DataError: If the function raises an error.
        ConfigError: For settings that it does not take.

    >>> named("digits").values.shape
    (1797, 8, 8)
    """
    name = source.partition(":")[0].strip() if isinstance(source, str) else ""
    if name not in DATASETS:
        return source
    try:
        return DATASETS.parse(source, root=Path(data_root))
    except PyroaeError:
        raise
    except Exception as error:  # whatever a user's function raises
        raise DataError(
            f"the dataset '{source}' cannot be made: {type(error).__name__}: {words(error)}"
        ) from error


def labels_of(values: Any) -> np.ndarray:
    """Labels as an array `[N]`. Raises DataError for another shape; a column `[N, 1]` becomes `[N]`."""
    labels = _array(values)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(f"labels have the shape [N], one for each datum, not {labels.shape}")
    return labels


def _pair(values: Any, labels: Any) -> Source:
    source = _one(values)
    if source.labels is not None:
        raise DataError("labels are given twice: as a column of the table, and beside it")
    return replace(source, labels=labels_of(labels))


def _one(values: Any) -> Source:
    """An array or a table."""
    if (
        not isinstance(values, pd.DataFrame)
        and hasattr(values, "columns")
        and hasattr(values, "to_pandas")
    ):
        values = values.to_pandas()  # a table of pyarrow or polars
    if isinstance(values, pd.DataFrame):
        return _columns("array", "the DataFrame", values)
    return Source("array", _array(values))


def _array(values: Any) -> np.ndarray:
    """The numpy array of anything like one. Raises DataError where there is none, and for masked elements."""
    if isinstance(values, torch.utils.data.Dataset | torch.utils.data.DataLoader):
        raise DataError(
            f"a {type(values).__name__} is no array: give its values as one tensor [N, ...], or a TensorDataset"
        )
    if np.ma.is_masked(values):
        raise DataError("the array has masked elements: every value must be known")
    try:
        if (
            isinstance(values, list)
            and values
            and all(isinstance(value, torch.Tensor) for value in values)
        ):
            values = torch.stack(values)
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu().to_dense().resolve_conj()
            return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return np.asarray(
            values.toarray() if hasattr(values, "toarray") else values
        )  # scipy's sparse arrays
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f"this {type(values).__name__} is no array of numbers: {words(error)}"
        ) from None


DATASETS: Registry[Any] = Registry("dataset")
"""Functions that make data: a Source, or anything else that `read` takes."""


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
            except (
                RuntimeError,
                OSError,
            ) as error:  # torchvision's words for not found, and for no network
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
    pairs = [
        (np.asarray(image), label) for image, label in dataset
    ]  # Omniglot: files, read one by one
    return np.stack([image for image, _ in pairs]), np.asarray([label for _, label in pairs])


def _emnist(sets: Any, root: str, train: bool, download: bool) -> Any:
    dataset = sets.EMNIST(root, split="balanced", train=train, download=download)
    dataset.data = dataset.data.transpose(
        1, 2
    ).contiguous()  # EMNIST stores its images lying on their side
    return dataset


def _omniglot(sets: Any, root: str, train: bool, download: bool) -> Any:
    from torchvision import transforms

    small = transforms.Compose(
        [transforms.Resize((28, 28)), transforms.Lambda(lambda image: 255 - np.asarray(image))]
    )
    return sets.Omniglot(root, background=train, transform=small, download=download)


_torchvision(
    "mnist", lambda sets, root, train, download: sets.MNIST(root, train=train, download=download)
)


_torchvision(
    "fashion-mnist",
    lambda sets, root, train, download: sets.FashionMNIST(root, train=train, download=download),
)


_torchvision(
    "kmnist", lambda sets, root, train, download: sets.KMNIST(root, train=train, download=download)
)


_torchvision("emnist", _emnist)


_torchvision("omniglot", _omniglot)


def _file(path: Path) -> Source:
    if path.is_dir():
        images = Images.of(path)
        return Source(images.name, images.read(0, len(images)), images.labels)
    if path.suffix not in _READERS:
        if path.exists():
            raise DataError(
                f"'{path}' is not of a known kind: {', '.join(_READERS)} are read, and folders of images"
            )
        raise unknown_name("dataset", str(path), DATASETS)
    if not path.is_file():
        raise DataError(f"there is no file '{path}'")
    try:
        return _READERS[path.suffix](path)
    except DataError:
        raise
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise DataError(f"cannot read '{path}': {words(error)}") from None


def words(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _npy(path: Path) -> Source:
    with path.open("rb") as file:
        values = np.load(file, allow_pickle=False)
        if not isinstance(values, np.ndarray):
            raise DataError(f"'{path}' is an archive of arrays: name it .npz")
        return Source(path.stem, values)


def _npz(path: Path) -> Source:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        names = _names_in(path, list(arrays), lambda name: arrays[name].ndim)
        labels = {
            part: labels_of(arrays[name])
            for (part, kind), name in names.items()
            if kind == "labels"
        }
        values = {part: arrays[name] for (part, kind), name in names.items() if kind == "data"}
    sources = {part: Source(path.stem, array, labels.get(part)) for part, array in values.items()}
    return replace(sources["train"], test=sources.get("test"))


def _names_in(
    path: Path, names: list[str], dims: Callable[[str], int]
) -> dict[tuple[str, str], str]:
    """Which array of an archive is which: by part (train, test) and kind (data, labels).

    Where no array is named as data, the one of more than one dimension is. Raises DataError where it is not clear.
    """
    found: dict[tuple[str, str], str] = {}
    for name in names:
        role = _role(name)
        if role in found:
            raise DataError(
                f"'{path}' holds two arrays of {role[1]}, '{found[role]}' and '{name}': remove one, or rename it"
            )
        if role is not None:
            found[role] = name
    if not any(kind == "data" for _, kind in found):
        tables = [name for name in names if name not in found.values() and dims(name) > 1]
        if len(tables) > 1:
            raise DataError(
                f"'{path}' holds several tables, {', '.join(tables)}: name the one with the data 'x'"
            )
        if tables:
            found["train", "data"] = tables[0]
    for part, name in ((part, name) for (part, _), name in found.items()):
        if part == "valid":
            raise DataError(
                f"'{path}' holds validation data, '{name}': give them to fit by valid=, or remove them"
            )
        if part == "test" and (part, "data") not in found:
            raise DataError(f"'{path}' holds '{name}', but no test data")
    if ("train", "data") not in found:
        raise DataError(
            f"'{path}' holds no array named {', '.join(VALUES)}; it holds: {', '.join(names) or 'nothing'}"
        )
    return found


def _role(name: str) -> tuple[str, str] | None:
    """The part of a data set and the kind of array that a name stands for; None for another name.

    >>> _role("x_train"), _role("test_labels"), _role("Y"), _role("values")
    (('train', 'data'), ('test', 'labels'), ('train', 'labels'), None)
    """
    of_part = re.fullmatch(rf"({PART})[_-]?(.*)", name, re.IGNORECASE)
    by_part = re.fullmatch(rf"(.*?)[_-]?({PART})", name, re.IGNORECASE)
    part, rest = (
        of_part.groups() if of_part else by_part.groups()[::-1] if by_part else ("train", name)
    )
    part = next(known for known in ("train", "test", "valid") if known.startswith(part.lower()[:3]))
    if rest.lower() in LABELS:
        return part, "labels"
    is_data = rest.lower() in VALUES or not rest or re.fullmatch(r"arr_\d+", rest)
    return (part, "data") if is_data else None


def _csv(path: Path) -> Source:
    """A table with or without a row of names. Raises DataError where it is not clear which of the two."""
    first = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0]
    numeric = bool((first.isna() | pd.to_numeric(first, errors="coerce").notna()).all())
    has_index = int(pd.isna(first.iloc[0]))
    cells = list(first.iloc[has_index:])
    is_numbered = len(cells) > 0 and cells == [str(i) for i in range(len(cells))]
    named = not numeric or (has_index == 1 and is_numbered)
    table = pd.read_csv(path, header=0 if named else None)
    if (
        is_numbered
        and not named
        and (len(cells) > 2 or (len(cells) == 2 and (table.dtypes == "float64").any()))
    ):
        raise DataError(
            f"the first row of '{path}' is {', '.join(cells)}: numbers of columns, as pandas writes them, or a datum; write "
            "the table with header=False, or name its columns"
        )
    if not table.index.equals(
        pd.RangeIndex(len(table))
    ):  # pandas takes what is too much for an index
        raise DataError(f"the rows of '{path}' have more values than its first row has names")
    return _columns(path.stem, f"'{path}'", table)


def _parquet(path: Path) -> Source:
    return _columns(path.stem, f"'{path}'", pd.read_parquet(path))


def _columns(name: str, what: str, table: pd.DataFrame) -> Source:
    """The numbers of a table, and its labels."""
    places, label = columns_of(what, table.columns)
    values = table.iloc[:, places]
    check_numeric(what, values)
    missing = any(not isinstance(dtype, np.dtype) for dtype in values.dtypes) and bool(
        values.isna().to_numpy().any()
    )
    array = (
        values.to_numpy(np.float64, na_value=np.nan)
        if missing
        else values.to_numpy(common_dtype(values))
    )
    return Source(name, array, None if label is None else table.iloc[:, label].to_numpy())


def columns_of(what: str, columns: Iterable[Any]) -> tuple[list[int], int | None]:
    """The places of the columns of features, and that of the labels; columns that hold an index of pandas are left out.

    Raises DataError for two columns of labels, for one that numbers the rows, and for x beside y, which are coordinates or
    a feature and its labels.
    """
    names = [str(column) for column in columns]
    kept = [i for i, name in enumerate(names) if not re.fullmatch(INDEX, name)]
    labels = [i for i in kept if names[i].lower() in LABELS]
    for i in kept:
        if names[i].lower() in ROW_NUMBERS:
            raise DataError(
                f"column '{names[i]}' of {what} is named as one that numbers the rows: remove it, or rename it"
            )
    if len(labels) > 1:
        found = " and ".join(f"'{names[i]}'" for i in labels)
        raise DataError(
            f"{what} has several columns named as labels, {found}: keep one, and rename the features"
        )
    if labels and names[labels[0]].lower() == "y" and "x" in map(str.lower, names):
        raise DataError(
            f"'y' beside 'x' in {what} may be labels or a coordinate: name it 'label', or rename both features"
        )
    return [i for i in kept if i not in labels], labels[0] if labels else None


def check_numeric(what: str, values: pd.DataFrame) -> None:
    """Raises DataError that names a column of anything but real numbers."""
    for column, dtype in values.dtypes.items():
        if not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_complex_dtype(dtype):
            raise DataError(f"column '{column}' of {what} is not numeric: it holds {dtype} values")


def numpy_dtype(dtype: Any) -> np.dtype:
    """The numpy type of a column: also of pandas' own types, with missing values, and sparse ones."""
    found = getattr(dtype, "numpy_dtype", getattr(dtype, "subtype", dtype))
    return np.dtype(np.float64) if found == np.dtype(object) else np.dtype(found)


def common_dtype(values: pd.DataFrame) -> np.dtype:
    """The type that holds the numbers of all columns."""
    return (
        np.result_type(*map(numpy_dtype, values.dtypes))
        if values.shape[1]
        else np.dtype(np.float64)
    )


_READERS = {".npy": _npy, ".npz": _npz, ".csv": _csv, ".parquet": _parquet}
