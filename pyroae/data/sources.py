"""Read values from a named data set, a file, a folder or an array, before any scaling."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pyroae.data.archives import read_npy, read_npz
from pyroae.data.arrays import Source
from pyroae.data.image_channels import to_grey
from pyroae.data.image_folders import Images
from pyroae.data.in_memory import read_in_memory, with_labels
from pyroae.data.named_datasets import DATASETS
from pyroae.errors import DataError, PyroaeError, unknown_name
from pyroae.runtime.files import words


def _read_tables(path: Path) -> Source:
    from pyroae.data import tables  # pandas takes a second to import

    return tables.read_csv(path) if path.suffix == ".csv" else tables.read_parquet(path)


_READERS = {".npy": read_npy, ".npz": read_npz, ".csv": _read_tables, ".parquet": _read_tables}


def read(
    source: Any, data_root: str | Path = "data", *, grey: bool = False, labels: Any = None
) -> Source:
    """Read a source into memory.

    Args:
        source: One of: a known name; the path of a file or of a folder of images; data in memory of
            one of the kinds of `pyroae.data.in_memory`.
        data_root: The folder of torchvision's data sets.
        grey: Whether images are converted to grey, `[N, H, W]`.
        labels: The labels `[N]`; or the name of a column or key in memory that holds them. None
            for those of the source, if it has any.

    Returns:
        The values `[N, ...]`, the labels `[N]` and the test set, as far as the source has them.

    Raises:
        DataError: If the source cannot be read or is ambiguous.
        ConfigError: If the source is an unknown name.

    >>> read(([[0.0, 1.0], [2.0, 3.0]], [7, 8])).labels
    array([7, 8])
    """
    found = _read(source, data_root, grey, labels)
    return _in_grey(found) if grey else found


def _in_grey(source: Source) -> Source:
    test, valid = (None if part is None else _in_grey(part) for part in (source.test, source.valid))
    return replace(source, values=to_grey(source.values, source.name), test=test, valid=valid)


def _read(source: Any, data_root: str | Path, grey: bool, labels: Any) -> Source:
    """The source as it is; a folder of images in grey, if that is asked for."""
    made = named(source, data_root)
    if made is not source and not isinstance(made, Source):
        return replace(_read(made, data_root, grey, labels), name=str(source))
    if isinstance(made, Source) or isinstance(source, str | Path):
        found = made if isinstance(made, Source) else _read_path(Path(source), grey)
        if isinstance(labels, str):
            raise DataError(
                f"labels='{labels}' is for a table in memory: name the column 'label' in "
                f"'{source}', or read it by pandas"
            )
        return with_labels(found, labels)
    return read_in_memory(source, labels)


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


def _read_path(path: Path, grey: bool) -> Source:
    if path.is_dir():
        images = Images.of(path, grey=grey)
        values = images.read(0, len(images))
        return Source(images.name, values, images.labels, limits=images.limits)
    if path.suffix not in _READERS:
        if path.exists():
            raise DataError(
                f"'{path}' has an unknown suffix: {', '.join(_READERS)} are read, "
                "and folders of images"
            )
        raise unknown_name("dataset", str(path), DATASETS)
    if not path.is_file():
        raise DataError(f"there is no file '{path}'")
    try:
        return _READERS[path.suffix](path)
    except DataError:
        raise
    except Exception as error:  # a reader may raise anything on a damaged file
        raise DataError(f"cannot read '{path}': {words(error)}") from None
