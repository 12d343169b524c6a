"""The snapshots of a run: its weights after some epochs, along the training."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyro
from torch import nn

from pyroae.config import snapshot_name
from pyroae.errors import RunError
from pyroae.runs.run import Run
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import text_of


@dataclass(frozen=True, repr=False)
class Snapshots(Shown):
    """The snapshots of a run, in the order of their epochs: iterate over (epoch, system).

    A system is read when its turn comes. Parameters that a program keeps in Pyro's global store
    have the values of the snapshot until the next one, and then those from before the loop.

    Attributes:
        epochs: The epochs; 0 for the initial weights.
        read: Returns the system with the weights after an epoch, in `eval()` mode.

    >>> from pyroae import zoo
    >>> snapshots = Snapshots((0, 10), lambda epoch: zoo.ppca(4, latent=epoch + 1))
    >>> [(epoch, system.latent) for epoch, system in snapshots], len(snapshots)
    ([(0, 1), (10, 11)], 2)
    """

    epochs: tuple[int, ...]
    read: Callable[[int], nn.Module]

    def _overview(self) -> Overview:
        return Overview([f"{len(self)} epochs", text_of(self.epochs)])

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[tuple[int, nn.Module]]:
        for epoch in self.epochs:
            with pyro.get_param_store().scope():
                yield epoch, self.read(epoch)


def weights_along_training(run: Run) -> dict[int, str | None]:
    """Return the weights along a training: its snapshots, and those that it kept.

    Args:
        run: The run.

    Returns:
        The names of checkpoints by epoch, in their order; None for the kept weights, in place of a
        snapshot of the same epoch. Weights within an unfinished epoch count as those of its end.

    Raises:
        RunError: If the run has no snapshots, or its last state cannot be read.
    """
    if not run.snapshots:
        raise RunError(
            f"the run '{run.path}' has no snapshots: train it with --snapshots, as in "
            "--snapshots 0,1,3,10"
        )
    names: dict[int, str | None] = {epoch: snapshot_name(epoch) for epoch in run.snapshots}
    return dict(sorted({**names, run.kept_epoch: None}.items()))
