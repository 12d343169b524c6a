"""Data larger than memory, served in windows of shuffled rows.

An epoch is the slices of a file in random order; a window of them, a buffer of fixed size, has its rows shuffled. Order and
values are functions of seed and epoch; a batch needs no window before its own.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyroae.errors import DataError
from pyroae.processes import Share
from pyroae.storage import IN_MEMORY, Reader, Stored
from pyroae.values import converted, scaled, thresholded

WINDOW = 64 * 2**20
"""Bytes of the buffer in which rows are shuffled, as they are stored; the next one is read meanwhile."""


@dataclass(frozen=True, eq=False)
class Stream:
    """The rows of a file but for those held out, as training data.

    limits: the stored values that become 0 and 1. mean: `[d]`. held: rows that are not served, in ascending order.
    binarize: "threshold" or "static", a Bernoulli draw by the number of the row from `seed`; anything else leaves values alone.
    """

    stored: Stored
    mean: Tensor
    limits: tuple[float, float] | None
    held: np.ndarray
    binarize: str
    seed: int

    def __len__(self) -> int:
        return len(self.stored) - len(self.held)

    def first(self, count: int) -> Tensor:
        """The first rows `[count, d]`. Raises DataError where they do not fit into memory."""
        if count * self.stored.features * 4 > IN_MEMORY:
            raise DataError(
                f"{count} data of {self.stored.name} do not fit into {IN_MEMORY // 2**20} MiB: ask for fewer of them (num_data)"
            )
        parts, found = [], 0
        with self.stored.reader() as reader:
            for number in range(len(self.stored.bounds) - 1):
                parts.append(self.ready(self.slice(reader, number)[0]))
                found += len(parts[-1])
                if found >= count:
                    break
        return torch.cat(parts)[:count]

    def slice(self, reader: Reader, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The values `[n, d]` of a slice, as a window holds them, and the numbers of their rows."""
        rows = self.rows_in(number)
        first = int(self.stored.bounds[number])
        flat = reader.read(number).values.reshape(int(self.stored.bounds[number + 1]) - first, -1)
        if self.binarize in ("threshold", "static"):
            values = scaled(torch.from_numpy(converted(flat, torch.float64)), self.limits)
            flat = (thresholded(values).numpy() if self.binarize == "threshold" else self._drawn(values, first)).astype(
                np.uint8
            )
        return flat[rows - first], rows

    def rows_in(self, number: int) -> np.ndarray:
        """The numbers of the rows of a slice that are served."""
        first, stop = self.stored.bounds[number : number + 2].tolist()
        here = self.held[np.searchsorted(self.held, first) : np.searchsorted(self.held, stop)] - first
        return np.delete(np.arange(first, stop), here)

    def ready(self, values: np.ndarray) -> Tensor:
        """Values of a window as a model takes them."""
        x = torch.from_numpy(converted(values, torch.get_default_dtype()))
        return x if self.binarize in ("threshold", "static") else scaled(x, self.limits)

    def _drawn(self, probabilities: Tensor, first: int) -> np.ndarray:
        bits = np.random.PCG64([self.seed, 1]).advance(first * probabilities.shape[1])
        uniform = (bits.random_raw(probabilities.numel()) >> np.uint64(11)) * 2.0**-53
        return uniform.reshape(probabilities.shape) < probabilities.numpy()


class Windows:
    """The order of an epoch: windows of slices, and in each the order of its rows."""

    def __init__(self, stream: Stream, seed: int) -> None:
        self.stream, self.seed = stream, seed
        stored = stream.stored
        self.slices = _sequence(stored, seed)
        held = np.diff(np.searchsorted(stream.held, stored.bounds))
        counts = (np.diff(stored.bounds) - held)[self.slices]
        before = (np.cumsum(np.diff(stored.bounds)[self.slices]) - np.diff(stored.bounds)[self.slices]) * stored.row_bytes
        self.window = np.unique(before // WINDOW, return_inverse=True)[1]
        self.starts = np.append(0, np.cumsum(np.bincount(self.window, counts, int(self.window[-1]) + 1).astype(np.int64)))

    def of(self, row: int) -> int:
        """The window that has the row at that place of the epoch."""
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def members(self, window: int) -> np.ndarray:
        """Its slices."""
        return self.slices[np.searchsorted(self.window, window) : np.searchsorted(self.window, window, side="right")]

    def order(self, window: int) -> np.ndarray:
        """The order of its rows."""
        generator = torch.Generator().manual_seed((self.seed + 7919 * (window + 1)) % 2**32)
        return torch.randperm(int(self.starts[window + 1] - self.starts[window]), generator=generator).numpy()

    def load(self, reader: Reader, window: int) -> np.ndarray:
        """The rows of a window `[n, d]`, in the order of its slices."""
        return np.concatenate([self.stream.slice(reader, int(number))[0] for number in self.members(window)])

    def rows(self, first: int, stop: int) -> np.ndarray:
        """The numbers, in the file, of the rows at these places of the epoch."""
        found = []
        for window in range(self.of(first), self.of(stop - 1) + 1):
            rows = np.concatenate([self.stream.rows_in(int(number)) for number in self.members(window)])[self.order(window)]
            start = int(self.starts[window])
            found.append(rows[max(0, first - start) : stop - start])
        return np.concatenate(found)


def streamed(stream: Stream, batch_size: int, seed: int, start: int, share: Share) -> Iterator[tuple[int, int, Tensor]]:
    """The batches of an epoch from number `start` on: its number, its size, and this process's share `[b, d]` of it.

    seed: of the epoch. One window is served while a thread reads the next.
    """
    windows, total = Windows(stream, seed), len(stream)
    with stream.stored.reader() as reader, _Ahead(windows, reader) as ahead:
        for number in range(start, -(-total // batch_size)):
            first, stop = number * batch_size, min((number + 1) * batch_size, total)
            part = share.of(stop - first)
            yield number, stop - first, stream.ready(ahead.take(first + part.start, first + part.stop))


class _Ahead:
    """Windows by their numbers, of which the next is read in a thread."""

    def __init__(self, windows: Windows, reader: Reader) -> None:
        self.windows, self.reader = windows, reader
        self.thread = ThreadPoolExecutor(1, "pyroae-reader")
        self.coming: dict[int, Future[np.ndarray]] = {}
        self.now: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __enter__(self) -> "_Ahead":
        return self

    def __exit__(self, *error: object) -> None:
        self.thread.shutdown(wait=True, cancel_futures=True)

    def take(self, first: int, stop: int) -> np.ndarray:
        """The rows at these places of the epoch."""
        begin, end = self.windows.of(first), self.windows.of(stop - 1)
        self.now = {number: kept for number, kept in self.now.items() if number >= begin}
        parts = []
        for window in range(begin, end + 1):
            values, order = self._window(window)
            start = int(self.windows.starts[window])
            parts.append(values[order[max(0, first - start) : stop - start]])
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _window(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        if number not in self.now:
            coming = self.coming.pop(number, None) or self._begin(number)
            self.now[number] = coming.result(), self.windows.order(number)
            if number + 2 < len(self.windows.starts):
                self.coming[number + 1] = self._begin(number + 1)
        return self.now[number]

    def _begin(self, number: int) -> "Future[np.ndarray]":
        return self.thread.submit(self.windows.load, self.reader, number)


def _sequence(stored: Stored, seed: int) -> np.ndarray:
    """The slices in the order of an epoch: runs in random order, some of them open at once, the next slice of any of these."""
    generator = torch.Generator().manual_seed(seed)
    runs = torch.randperm(len(stored.runs), generator=generator).numpy()
    if (stored.runs == 1).all():
        return runs
    first = np.cumsum(stored.runs) - stored.runs
    waiting = [(int(first[run]), int(first[run] + stored.runs[run])) for run in runs[::-1]]
    lanes = [waiting.pop() for _ in range(min(stored.lanes, len(waiting)))]
    found = []
    for draw in torch.rand(int(stored.runs.sum()), generator=generator, dtype=torch.float64).tolist():
        lane = int(draw * len(lanes))
        number, end = lanes[lane]
        found.append(number)
        if number + 1 < end:
            lanes[lane] = (number + 1, end)
        elif waiting:
            lanes[lane] = waiting.pop()
        else:
            lanes.pop(lane)
    return np.array(found)
