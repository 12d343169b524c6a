"""Files of several arrays from other programs: `.mat`, `.h5` and `.hdf5`, `.pt` and `.pth`."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from pyroae.data.archives import Archive, refuse_label
from pyroae.data.arrays import Source, array_of, labels_of
from pyroae.errors import DataError


def read_mat(path: Path, label: str | None = None, array: str | None = None) -> Source:
    """Read a `.mat` file of MATLAB, up to version 7.

    Args:
        path: The file.
        label: The name of the variable with the labels, as in `Archive.source`.
        array: The name of the variable with the data.

    Returns:
        The values `[N, ...]`, the labels `[N]`, and the test set if the file has one.

    Raises:
        DataError: If there are no data, the names are ambiguous, or the file is of version 7.3.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(path)
    except NotImplementedError:
        raise DataError(
            f"'{path}' is of MATLAB 7.3, which is HDF5 with reversed dimensions: save it with -v7"
        ) from None
    arrays = {name: array_of(value) for name, value in content.items() if name[:2] != "__"}
    return _of_arrays(path, arrays).source(label, array)


def read_hdf5(path: Path, label: str | None = None, array: str | None = None) -> Source:
    """Read an `.h5` or `.hdf5` file. A dataset in a group has the name GROUP/NAME.

    Args:
        path: The file.
        label: The name of the dataset with the labels, as in `Archive.source`.
        array: The name of the dataset with the data.

    Returns:
        The values `[N, ...]`, the labels `[N]`, and the test set if the file has one.

    Raises:
        DataError: If there are no data, or the names are ambiguous.
    """
    with h5py.File(path, "r") as file:
        shapes: dict[str, tuple[int, ...]] = {}

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and item.shape is not None:
                shapes[name] = item.shape

        file.visititems(visit)
        return Archive(path, shapes, lambda name: _values(file[name])).source(label, array)


def _values(dataset: h5py.Dataset) -> np.ndarray:
    """The values of a dataset; texts as strings."""
    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    return np.asarray(dataset.asstr()[()], dtype=str) if is_text else dataset[()]


def read_pt(path: Path, label: str | None = None, array: str | None = None) -> Source:
    """Read a `.pt` file that holds tensors and nothing else, so that reading runs no code.

    Args:
        path: The file: a tensor, a pair (values, labels), or a dictionary of tensors.
        label: The key of the labels, as in `Archive.source`.
        array: The key of the data.

    Returns:
        The values `[N, ...]`, the labels `[N]`, and the test set if there is one.

    Raises:
        DataError: If the file holds other objects, or the keys are ambiguous.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise DataError(
            f"'{path}' holds objects other than tensors, which run code when they are read: save "
            "a tensor, a pair (values, labels), or a dictionary of tensors"
        ) from None
    if isinstance(content, Mapping):
        arrays = {str(key): value for key, value in content.items() if torch.is_tensor(value)}
        return _of_arrays(path, {k: array_of(v) for k, v in arrays.items()}).source(label, array)
    refuse_label(path, label)
    if isinstance(content, tuple | list) and len(content) == 2:
        return Source(path.stem, array_of(content[0]), labels_of(content[1]))
    if not torch.is_tensor(content):
        raise DataError(
            f"'{path}' holds a {type(content).__name__}: save a tensor, a pair (values, labels), "
            "or a dictionary of tensors"
        )
    return Source(path.stem, array_of(content))


def _of_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> Archive:
    shapes = {name: array.shape for name, array in arrays.items()}
    return Archive(path, shapes, lambda name: arrays[name])
