"""Read values from a named data set, a file, a folder or an array, before any scaling."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pyroae.data.archives import read_npy, read_npz
from pyroae.data.arrays import Source, array_of, labels_of
from pyroae.data.image_channels import to_grey
from pyroae.data.image_folders import Images
from pyroae.data.named_datasets import DATASETS
from pyroae.errors import DataError, PyroaeError, unknown_name
from pyroae.runtime.files import words


def _read_tables(path: Path) -> Source:
    from pyroae.data import tables  # pandas takes a second to import

    return tables.read_csv(path) if path.suffix == ".csv" else tables.read_parquet(path)


_READERS = {".npy": read_npy, ".npz": read_npz, ".csv": _read_tables, ".parquet": _read_tables}


def read(source: Any, data_root: str | Path = "data", *, grey: bool = False) -> Source:
    """Read a source into memory.

    Args:
        source: One of: a known name; the path of a file or of a folder of images; an array
            `[N, ...]`, which is a NumPy array, a tensor, nested lists or a sparse matrix; a table,
            in which a column may hold the labels; a pair (values, labels) or a TensorDataset of
            these; a pair of such pairs, the second of which is the test set.
        data_root: The folder of torchvision's data sets.
        grey: Whether images are converted to grey, `[N, H, W]`.

    Returns:
        The values `[N, ...]`, the labels `[N]` and the test set, as far as the source has them.

    Raises:
        DataError: If the source cannot be read or is ambiguous.
        ConfigError: If the source is an unknown name.

    >>> read(([[0.0, 1.0], [2.0, 3.0]], [7, 8])).labels
    array([7, 8])
    """
    if grey:
        return _in_grey(_read(source, data_root, grey))
    return _read(source, data_root, grey)


def _in_grey(source: Source) -> Source:
    test = None if source.test is None else _in_grey(source.test)
    return replace(source, values=to_grey(source.values, source.name), test=test)


def _read(source: Any, data_root: str | Path, grey: bool) -> Source:
    """The source as it is; a folder of images in grey, if that is asked for."""
    made = named(source, data_root)
    if isinstance(made, Source):
        return made
    if made is not source:
        return replace(_read(made, data_root, grey), name=str(source))
    if isinstance(source, str | Path):
        return _read_path(Path(source), grey)
    if isinstance(source, torch.utils.data.TensorDataset):
        source = source.tensors if len(source.tensors) > 1 else source.tensors[0]
    if not isinstance(source, tuple):
        return _read_values(source)
    if len(source) != 2:
        raise DataError(
            f"a tuple of {len(source)} is not data: give an array, a pair (values, labels), "
            "or a pair of pairs ((x_train, y_train), (x_test, y_test))"
        )
    if all(isinstance(part, tuple) and len(part) == 2 for part in source):
        return replace(_read_pair(*source[0]), test=_read_pair(*source[1]))
    return _read_pair(*source)


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


def _read_pair(values: Any, labels: Any) -> Source:
    source = _read_values(values)
    if source.labels is not None:
        raise DataError("labels are given twice: as a column of the table, and beside it")
    return replace(source, labels=labels_of(labels))


def _read_values(values: Any) -> Source:
    """Read an array, or a table of pandas, pyarrow or polars."""
    if hasattr(values, "columns") and hasattr(values, "to_pandas"):
        values = values.to_pandas()
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(values, pandas.DataFrame):
        from pyroae.data.tables import read_table

        return read_table("array", "the DataFrame", values)
    return Source("array", array_of(values))


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
