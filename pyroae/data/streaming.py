"""Data larger than memory, served in windows of shuffled rows.

An epoch is the slices of a file in random order; a window of them, a buffer of fixed size, has its rows shuffled. Order and
values are functions of seed and epoch; a batch needs no window before its own.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

import numpy as np
import torch
from torch import Tensor

from pyroae.data.preprocessing import converted, drawn, scaled, thresholded
from pyroae.data.storage import IN_MEMORY, Reader, Rows, Stored
from pyroae.errors import DataError
from pyroae.runtime.processes import Share

WINDOW = 64 * 2**20
"""Bytes of the buffer in which rows are shuffled, as they are stored; the next one is read meanwhile."""


AT_ONCE = 2**18
"""Values that are made black and white at once."""


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

    @property
    def is_binary(self) -> bool:
        """Whether a window holds the values in black and white."""
        return self.binarize in ("threshold", "static")

    def first(self, count: int) -> tuple[Tensor, np.ndarray | None]:
        """The first rows `[count, d]`, and their labels where known. Raises DataError where they do not fit into memory."""
        if count * self.stored.features * 4 > IN_MEMORY:
            raise DataError(
                f"{count} data of {self.stored.name} do not fit into {IN_MEMORY // 2**20} MiB: ask for fewer of them (num_data)"
            )
        parts, labels, left = [], [], count
        with self.stored.opened(labels=True) as reader:
            for number in range(len(self.stored.bounds) - 1):
                rows = self.slice(reader, number)
                parts.append(self.ready(rows.values[:left]))
                labels += [] if rows.labels is None else [rows.labels[:left]]
                left -= len(parts[-1])
                if not left:
                    break
        return torch.cat(parts), np.concatenate(labels) if labels else None

    def slice(self, reader: Reader, number: int) -> Rows:
        """The rows of a slice that are served, `[n, d]`, as a window holds them."""
        found, first = reader.read(number), int(self.stored.bounds[number])
        flat, own = found.values.reshape(len(found.values), -1), self.rows_in(number) - first
        values = self._binary(flat, first) if self.is_binary else flat
        return Rows(values[own], None if found.labels is None else found.labels[own])

    def rows_in(self, number: int) -> np.ndarray:
        """The numbers of the rows of a slice that are served."""
        first, stop = self.stored.bounds[number : number + 2].tolist()
        here = (
            self.held[np.searchsorted(self.held, first) : np.searchsorted(self.held, stop)] - first
        )
        return np.delete(np.arange(first, stop), here)

    def ready(self, values: np.ndarray) -> Tensor:
        """Values of a window as a model takes them."""
        x = torch.from_numpy(converted(values, torch.get_default_dtype()))
        return x if self.is_binary else scaled(x, self.limits)

    def _binary(self, flat: np.ndarray, first: int) -> np.ndarray:
        """Values in black and white, some rows at a time: in double precision they take eight times as much."""
        found, rows = np.empty(flat.shape, np.uint8), max(1, AT_ONCE // flat.shape[1])
        bits = np.random.PCG64([self.seed, 1]).advance(first * flat.shape[1])
        for at in range(0, len(flat), rows):
            values = scaled(
                torch.from_numpy(converted(flat[at : at + rows], torch.float64)), self.limits
            )
            found[at : at + rows] = (
                thresholded(values) if self.binarize == "threshold" else drawn(values, bits)
            )
        return found


class Windows:
    """The order of an epoch: windows of slices, and in each the order of its rows."""

    def __init__(self, stream: Stream, seed: int) -> None:
        self.stream, self.seed = stream, seed
        stored = stream.stored
        self.slices = _sequence(stored, seed)
        held = np.diff(np.searchsorted(stream.held, stored.bounds))
        counts = (np.diff(stored.bounds) - held)[self.slices]
        before = (
            np.cumsum(np.diff(stored.bounds)[self.slices]) - np.diff(stored.bounds)[self.slices]
        ) * stored.row_bytes
        self.window = np.unique(before // WINDOW, return_inverse=True)[1]
        self.starts = np.append(
            0,
            np.cumsum(np.bincount(self.window, counts, int(self.window[-1]) + 1).astype(np.int64)),
        )

    def of(self, row: int) -> int:
        """The window that has the row at that place of the epoch."""
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def members(self, window: int) -> np.ndarray:
        """Its slices."""
        return self.slices[
            np.searchsorted(self.window, window) : np.searchsorted(
                self.window, window, side="right"
            )
        ]

    def order(self, window: int) -> np.ndarray:
        """The order of its rows."""
        generator = torch.Generator().manual_seed((self.seed + 7919 * (window + 1)) % 2**32)
        return torch.randperm(
            int(self.starts[window + 1] - self.starts[window]), generator=generator
        ).numpy()

    def load(self, reader: Reader, window: int, dropped: Event) -> np.ndarray:
        """The rows of a window `[n, d]`, in the order of its slices. dropped: set where nobody waits for them any more."""
        dtype = np.dtype(np.uint8) if self.stream.is_binary else self.stream.stored.dtype
        buffer, at = (
            np.empty(
                (int(self.starts[window + 1] - self.starts[window]), self.stream.stored.features),
                dtype,
            ),
            0,
        )
        for number in self.members(window):
            if dropped.is_set():
                break
            values = self.stream.slice(reader, int(number)).values
            buffer[at : at + len(values)] = values
            at += len(values)
        return buffer

    def rows(self, first: int, stop: int) -> np.ndarray:
        """The numbers, in the file, of the rows at these places of the epoch."""
        found = []
        for window in range(self.of(first), self.of(stop - 1) + 1):
            rows = np.concatenate(
                [self.stream.rows_in(int(number)) for number in self.members(window)]
            )[self.order(window)]
            start = int(self.starts[window])
            found.append(rows[max(0, first - start) : stop - start])
        return np.concatenate(found)


def streamed(
    stream: Stream, batch_size: int, seed: int, start: int, share: Share
) -> Iterator[tuple[int, int, Tensor]]:
    """The batches of an epoch from number `start` on: its number, its size, and this process's share `[b, d]` of it.

    seed: of the epoch. One window is served while a thread reads the next.
    """
    windows, total = Windows(stream, seed), len(stream)
    with stream.stored.opened() as reader, _Ahead(windows, reader) as ahead:
        for number in range(start, -(-total // batch_size)):
            first, stop = number * batch_size, min((number + 1) * batch_size, total)
            part = share.of(stop - first)
            yield (
                number,
                stop - first,
                stream.ready(ahead.take(first + part.start, first + part.stop)),
            )


class _Ahead:
    """Windows one after the other, of which the next is read in a thread: two are held, never three."""

    def __init__(self, windows: Windows, reader: Reader) -> None:
        self.windows, self.reader = windows, reader
        self.thread, self.dropped = ThreadPoolExecutor(1, "pyroae-reader"), Event()
        self.coming: Future[np.ndarray] | None = None
        self.number, self.values, self.order = -1, np.empty(0), np.empty(0)

    def __enter__(self) -> "_Ahead":
        return self

    def __exit__(self, *error: object) -> None:
        self.dropped.set()
        self.thread.shutdown(wait=True, cancel_futures=True)

    def take(self, first: int, stop: int) -> np.ndarray:
        """The rows at these places of the epoch; none of those before `first` is taken any more."""
        parts = []
        for window in range(self.windows.of(first), self.windows.of(stop - 1) + 1):
            if window != self.number:
                self._move(window)
            start = int(self.windows.starts[window])
            parts.append(self.values[self.order[max(0, first - start) : stop - start]])
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _move(self, window: int) -> None:
        """Let go of the window that was used, take that one, and have the next one read."""
        coming = (
            self.coming
            if self.coming is not None and window == self.number + 1
            else self._begin(window)
        )
        self.values, self.coming = np.empty(0), None
        self.number, self.values, self.order = window, coming.result(), self.windows.order(window)
        if window + 2 < len(self.windows.starts):
            self.coming = self._begin(window + 1)

    def _begin(self, number: int) -> "Future[np.ndarray]":
        return self.thread.submit(self.windows.load, self.reader, number, self.dropped)


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
    for draw in torch.rand(
        int(stored.runs.sum()), generator=generator, dtype=torch.float64
    ).tolist():
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
