"""The state of a training, from which it resumes bit-exactly, and the metrics of its epochs."""

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import duration, text_of

EPOCHS = 8
"""The number of epochs that are shown of a training."""


METRICS = {
    "train_nelbo": "train −bound, nats",
    "valid_nelbo": "valid −bound, nats",
    "distortion": "distortion",
    "rate": "rate",
    "accuracy": "accuracy",
    "seconds": "time, s",
}
"""The label of each metric in a table of epochs."""


@dataclass(frozen=True, repr=False)
class Epoch(Shown):
    """The metrics of one epoch, a row of metrics.csv.

    Attributes:
        epoch: counted from 1.
        step: the number of steps at its end.
        seconds: the time of the training at its end.
        train_nelbo: the mean negative bound during the epoch, in nats per datum.
        valid_nelbo: the negative bound of the validation data, in nats per datum; nan without any.
        distortion: −E log p(x|z) of the validation data, in nats per datum; nan without any.
        rate: E[log q(z|x) − log p(z)] of the validation data, likewise.
        accuracy: the share of the validation data whose class M2 finds; nan for other systems.
    """

    epoch: int
    step: int
    seconds: float
    train_nelbo: float
    valid_nelbo: float = math.nan
    distortion: float = math.nan
    rate: float = math.nan
    accuracy: float = math.nan

    def _overview(self) -> Overview:
        return Overview([f"epoch {self.epoch}", f"step {self.step}", self.summary])

    @property
    def summary(self) -> str:
        """The bounds of the training and the validation data, and the time."""
        valid = "" if math.isnan(self.valid_nelbo) else f", valid {self.valid_nelbo:.2f}"
        return f"−bound: train {self.train_nelbo:.2f}{valid} nats, {duration(self.seconds)}"


class History(Shown, tuple[Epoch, ...]):
    """The metrics of the epochs of a training, in a table of some of them."""

    def _overview(self) -> Overview:
        return history_table(self)


def history_table(history: Sequence[Epoch]) -> Overview:
    """Return epochs as rows, evenly spaced from the first to the last one.

    Args:
        history: The epochs.

    Returns:
        The table; columns without a value are left out.
    """
    last = len(history) - 1
    index = sorted({round(i * last / (EPOCHS - 1)) for i in range(EPOCHS)}) if history else []
    names = [
        name for name in METRICS if any(not math.isnan(getattr(history[i], name)) for i in index)
    ]
    rows = [
        (str(history[i].epoch), *(f"{getattr(history[i], name):.2f}" for name in names))
        for i in index
    ]
    head = [f"{last + 1} epochs", f"{history[last].step} steps"] if history else ["no epochs"]
    return Overview(head, rows, ("epoch", *(METRICS[name] for name in names)))


@dataclass(frozen=True)
class Progressed:
    """The progress of a training, within an epoch or at its end.

    Attributes:
        step: the next step, counted from 0.
        position: the number of batches of the unfinished epoch that were served; 0 at its end.
        total: the sum of the losses of the unfinished epoch over its data, in nats.
        seen: the number of data in `total`.
        seconds: the time of the training.
        skipped: steps that were left out because a loss or a gradient was not finite.
    """

    step: int = 0
    position: int = 0
    total: float = 0.0
    seen: int = 0
    seconds: float = 0.0
    skipped: int = 0


@dataclass(repr=False)
class State(Shown):
    """The state of a training: one that is resumed from it takes the same steps.

    The order of the data is no part of it: it depends on the seed and the epoch alone.

    Attributes:
        weights: the `state_dict` of the system, and under `objective.` what the objective learns.
        optimizer: the `state_dict` of the optimizer.
        random: the states of the generators of Python, NumPy and torch, as `all_random_states`
            returns them.
        history: the metrics of the finished epochs.
        best_weights: the weights of the best validation bound; empty if there are none yet.
        best_epoch: the epoch of `best_weights`; 0 if there is none yet.
        progressed: the progress within the epoch.
        snapshots: the weights after those of `config.snapshots` that were reached, by epoch.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    random: dict[str, Any]
    history: list[Epoch] = field(default_factory=list)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    progressed: Progressed = field(default_factory=Progressed)
    snapshots: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def _overview(self) -> Overview:
        size = sum(weight.numel() for weight in self.weights.values())
        rows = [
            ("weights", f"{size:,} numbers in {len(self.weights)} tensors"),
            ("history", text_of(History(self.history))),
            ("best epoch", str(self.best_epoch or "none yet")),
            ("snapshots", ", ".join(map(str, self.snapshots)) or "none"),
        ]
        return Overview([self.where()], rows)

    @property
    def is_finite(self) -> bool:
        """Whether every weight is a finite number."""
        return all(
            bool(torch.isfinite(v).all()) for v in self.weights.values() if v.is_floating_point()
        )

    @property
    def is_best(self) -> bool:
        """Whether this is the end of the epoch with the best validation bound."""
        return not self.progressed.position and self.best_epoch == len(self.history) > 0

    def to_content(self) -> dict[str, Any]:
        """Return the state in the form that `write_tensors` accepts.

        Returns:
            The attributes by name; `best_weights` is None where they are the weights themselves.
            Snapshots are left out: `write_snapshots` writes each to a file of its own, once.
        """
        content: dict[str, Any] = {
            **vars(self),
            "history": [asdict(epoch) for epoch in self.history],
            "progressed": asdict(self.progressed),
        }
        del content["snapshots"]
        return {**content, "best_weights": None} if self.is_best else content

    @classmethod
    def from_content(cls, content: Any) -> Self:
        """Return the state from what `to_content` returned.

        Args:
            content: the content of a file; further entries are ignored.

        Returns:
            The state, without snapshots.
        """
        names = ("weights", "optimizer", "random", "best_weights", "best_epoch")
        state = cls(
            **{name: content[name] for name in names},
            history=[Epoch(**row) for row in content["history"]],
            progressed=Progressed(**content["progressed"]),
        )
        if state.best_weights is None:
            state.best_weights = state.weights
        return state

    def where(self) -> str:
        """Return how far the training is, in words.

        Returns:
            The epoch, and the step within an unfinished one.

        >>> State({}, {}, {}, progressed=Progressed(step=7, position=7)).where()
        'epoch 1, step 7'
        """
        if self.progressed.position:
            return f"epoch {len(self.history) + 1}, step {self.progressed.step}"
        return f"the end of epoch {len(self.history)}" if self.history else "the start"


def write_csv(path: str | Path, history: Sequence[Epoch]) -> None:
    """Write epochs as a table with the names of the columns in the first row.

    Args:
        path: the file to write.
        history: the epochs; nan is written as an empty field.
    """
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Epoch)])
        writer.writeheader()
        writer.writerows(
            {k: "" if math.isnan(v) else v for k, v in asdict(epoch).items()} for epoch in history
        )
