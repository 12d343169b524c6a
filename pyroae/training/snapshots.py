"""Snapshots: the weights of a training after some of its epochs, as files beside its states."""

from pathlib import Path

from torch import Tensor

from pyroae.config import snapshot_epoch, snapshot_name
from pyroae.errors import RunError
from pyroae.runtime.files import read_tensors, words, write_tensors
from pyroae.training.state import State

WEIGHTS = "weights"
"""The kind of the files that hold weights, for `read_tensors`."""


def write_snapshots(folder: Path, state: State) -> None:
    """Write the snapshots of a state that the folder lacks, and that of the state's own epoch.

    Args:
        folder: The folder of the checkpoints.
        state: The state of the training.

    Raises:
        RunError: If a file cannot be written.

    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> weights = {"loc": torch.ones(2)}
    >>> with TemporaryDirectory() as folder:
    ...     write_snapshots(Path(folder), State(weights, {}, {}, snapshots={0: weights}))
    ...     snapshots_in(Path(folder)), read_weights(Path(folder) / "epoch-0000.safetensors")
    ((0,), {'loc': tensor([1., 1.])})
    """
    for epoch, weights in state.snapshots.items():
        file = folder / f"{snapshot_name(epoch)}.safetensors"
        if weights is state.weights or not file.is_file():
            write_tensors(file, WEIGHTS, {"weights": weights, "epoch": epoch})


def snapshots_in(folder: Path) -> tuple[int, ...]:
    """Return the epochs whose weights a folder holds.

    Args:
        folder: The folder of the checkpoints, which need not exist.

    Returns:
        The epochs, sorted.
    """
    epochs = (snapshot_epoch(file.stem) for file in folder.glob("epoch-*.safetensors"))
    return tuple(sorted(epoch for epoch in epochs if epoch is not None))


def read_snapshots(folder: Path, last: int) -> dict[int, dict[str, Tensor]]:
    """Read the snapshots of a training up to an epoch.

    Args:
        folder: The folder of the checkpoints.
        last: The last epoch to read.

    Returns:
        The weights, by epoch.

    Raises:
        RunError: If a file cannot be read.
    """
    return {
        epoch: read_weights(folder / f"{snapshot_name(epoch)}.safetensors")
        for epoch in snapshots_in(folder)
        if epoch <= last
    }


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a file of weights.

    Args:
        file: A snapshot, or the best weights.

    Returns:
        The `state_dict` of a system.

    Raises:
        RunError: If it cannot be read, or holds something else.
    """
    try:
        return dict(read_tensors(file, WEIGHTS)["weights"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"'{file}' holds no weights: {words(error)}") from None
