"""Read values from a named data set, a file, a folder or an array, before any scaling."""

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from pyroae.data.arrays import Source
from pyroae.data.image_channels import to_grey
from pyroae.data.image_folders import Images
from pyroae.data.in_memory import read_in_memory, with_labels
from pyroae.data.member_names import NO_LABELS
from pyroae.data.named_datasets import DATASETS
from pyroae.errors import DataError, PyroaeError, unknown_name
from pyroae.runtime.files import words

READERS = {
    ".npy": "archives.read_npy",
    ".npz": "archives.read_npz",
    ".csv": "text_tables.read_text_table",
    ".tsv": "text_tables.read_text_table",
    ".txt": "text_tables.read_text_table",
    ".parquet": "tables.read_parquet",
    ".feather": "tables.read_feather",
    ".arrow": "tables.read_feather",
    ".mat": "foreign_archives.read_mat",
    ".h5": "foreign_archives.read_hdf5",
    ".hdf5": "foreign_archives.read_hdf5",
    ".pt": "foreign_archives.read_pt",
    ".pth": "foreign_archives.read_pt",
}
"""The function that reads files of each suffix; its module is imported when it is used."""


ARCHIVES = (".npz", ".mat", ".h5", ".hdf5", ".pt", ".pth")
"""Suffixes of files that may hold several arrays."""


COMPRESSED = (".csv", ".tsv", ".txt")
"""Suffixes of files that are read when compressed too, as in `.csv.gz`."""


def read(
    source: Any,
    data_root: str | Path = "data",
    *,
    grey: bool = False,
    labels: Any = None,
    array: str | None = None,
) -> Source:
    """Read a source into memory.

    Args:
        source: One of: a known name; the path of a file or of a folder of images; data in memory of
            one of the kinds of `pyroae.data.in_memory`.
        data_root: The folder of torchvision's data sets.
        grey: Whether images are converted to grey, `[N, H, W]`.
        labels: The labels `[N]`; or the name of the column, the array or the key that holds them;
            `none` if there are no labels; None to find them by their name.
        array: The array of a file that holds the data; None to find it by its name.

    Returns:
        The values `[N, ...]`, the labels `[N]` and the test set, as far as the source has them.

    Raises:
        DataError: If the source cannot be read or is ambiguous.
        ConfigError: If the source is an unknown name.

    >>> read(([[0.0, 1.0], [2.0, 3.0]], [7, 8])).labels
    array([7, 8])
    """
    how = Reading(data_root, grey, labels, array)
    return _in_grey(_read(source, how)) if grey else _read(source, how)


@dataclass(frozen=True)
class Reading:
    """How a source is read: the arguments of `read`.

    Attributes:
        data_root: The folder of torchvision's data sets.
        grey: Whether images are converted to grey.
        labels: The labels, or the name of the column or the array that holds them.
        array: The name of the array of data.
    """

    data_root: str | Path
    grey: bool
    labels: Any
    array: str | None

    @property
    def label(self) -> str | None:
        """The name of the column or the array of labels, if one is given."""
        return self.labels if isinstance(self.labels, str) else None

    @property
    def names(self) -> dict[str, str]:
        """The names that are given, by option."""
        given = {"labels": self.label, "array": self.array}
        return {option: name for option, name in given.items() if name is not None}


def _in_grey(source: Source) -> Source:
    test, valid = (None if part is None else _in_grey(part) for part in (source.test, source.valid))
    return replace(source, values=to_grey(source.values, source.name), test=test, valid=valid)


def _read(source: Any, how: Reading) -> Source:
    """The source as it is; a folder of images in grey, if that is asked for."""
    made = named(source, how.data_root)
    beside = None if how.label else how.labels
    if isinstance(made, Source):
        _refuse_names(source, how)
        return with_labels(made, beside)
    if made is not source:
        return replace(_read(made, how), name=str(source))
    if isinstance(source, str | Path):
        return with_labels(_read_path(Path(source), how), beside)
    return read_in_memory(source, how.labels)


def _refuse_names(source: Any, how: Reading) -> None:
    """Refuse names of columns or arrays for a source that has none."""
    for option, name in how.names.items():
        if not isinstance(source, Source) and (option, name) != ("labels", NO_LABELS):
            raise DataError(f"'{source}' has no {option} '{name}': it has no names to choose from")


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


def _read_path(path: Path, how: Reading) -> Source:
    if path.is_dir():
        _refuse_names(path, how)
        images = Images.of(path, grey=how.grey)
        values = images.read(0, len(images))
        return Source(images.name, values, images.labels, limits=images.limits_for(values.max()))
    suffix = suffix_of(path)
    if suffix not in READERS:
        if path.exists():
            raise DataError(
                f"'{path}' has an unknown suffix: {', '.join(READERS)} are read, "
                "and folders of images"
            )
        raise unknown_name("dataset", str(path), DATASETS)
    if not path.is_file():
        raise DataError(f"there is no file '{path}'")
    if how.array is not None and suffix not in ARCHIVES:
        raise DataError(
            f"'{path}' holds no arrays with names, so none is '{how.array}': array is for "
            f"{', '.join(ARCHIVES)}"
        )
    module, name = READERS[suffix].split(".")
    names = {"label": how.label, **({"array": how.array} if suffix in ARCHIVES else {})}
    try:
        return getattr(import_module(f"pyroae.data.{module}"), name)(path, **names)
    except DataError:
        raise
    except Exception as error:  # a reader may raise anything on a damaged file
        raise DataError(f"cannot read '{path}': {words(error)}") from None


def suffix_of(path: Path) -> str:
    """Return the suffix that says how a file is read.

    Args:
        path: The file.

    Returns:
        The suffix in lower case, without that of a compression.

    >>> suffix_of(Path("table.CSV")), suffix_of(Path("table.csv.gz")), suffix_of(Path("x.npy.gz"))
    ('.csv', '.csv', '.gz')
    """
    suffix, inner = path.suffix.lower(), Path(path.stem).suffix.lower()
    return inner if suffix == ".gz" and inner in COMPRESSED else suffix
