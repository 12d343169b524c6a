"""All that decides how a training goes on: what a checkpoint holds."""

import csv
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyroae.programs.context import fork_random


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: a row of metrics.csv. In nats per datum; nan where there is no validation data."""

    epoch: int
    step: int
    seconds: float
    train_nelbo: float
    valid_nelbo: float = math.nan
    distortion: float = math.nan
    rate: float = math.nan


@dataclass(frozen=True)
class Progressed:
    """How far the epoch is that is not finished.

    step: of the training, the next to be taken. position: batches of the epoch that were served. total, seen: the sum of the
    losses of so many data along it. seconds: of training. skipped: steps that were left out as their loss was not finite.
    """

    step: int = 0
    position: int = 0
    total: float = 0.0
    seen: int = 0
    seconds: float = 0.0
    skipped: int = 0


@dataclass
class State:
    """All that decides how a training goes on: a resumed one takes the same steps.

    random: the states of the generators of Python, NumPy and torch; the order of the data is a function of seed and epoch.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    random: dict[str, Any]
    history: list[Epoch] = field(default_factory=list)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    progressed: Progressed = field(default_factory=Progressed)

    @property
    def is_finite(self) -> bool:
        """Whether every weight is a finite number."""
        return all(
            bool(torch.isfinite(v).all()) for v in self.weights.values() if v.is_floating_point()
        )

    def where(self) -> str:
        """How far it is, in words.

        >>> State({}, {}, {}, progressed=Progressed(step=7, position=7)).where()
        'epoch 1, step 7'
        """
        if self.progressed.position:
            return f"epoch {len(self.history) + 1}, step {self.progressed.step}"
        return f"the end of epoch {len(self.history)}" if self.history else "the start"


def write_csv(path: str | Path, history: Sequence[Epoch]) -> None:
    """Write epochs as a table with their names in the first row."""
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Epoch)])
        writer.writeheader()
        writer.writerows(
            {k: "" if math.isnan(v) else v for k, v in asdict(epoch).items()} for epoch in history
        )


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of all generators that a program may draw from, in numbers, texts and tensors."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # programs share it  # noqa: NPY002
    states = {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "cpu": torch.get_rng_state(),
    }
    return states if device.type != "cuda" else {**states, "cuda": torch.cuda.get_rng_state(device)}


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """The inverse of `random_states`; a generator that has no state there stays as it is."""
    if "python" in states:
        version, numbers, gauss = states["python"]
        random.setstate((version, tuple(numbers), gauss))
    if "numpy" in states:
        kind, keys, *rest = states["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def own_generators(device: torch.device, seed: int) -> Iterator[None]:
    """A context in which the generators of Python, NumPy and torch start from `seed`, and after which they are as they were."""
    before = random_states(torch.device("cpu"))
    with fork_random(device, seed):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # the generator that programs share  # noqa: NPY002
        try:
            yield
        finally:
            set_random_states(before, torch.device("cpu"))
