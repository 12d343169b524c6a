"""Shuffled batches of data larger than memory.

An epoch reads the slices of a file in random order. The rows are shuffled within windows, groups of
successive slices that fit into a buffer of fixed size. Order and values depend on seed and epoch
only, and a batch can be read without the windows before its own.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

import numpy as np
import torch
from torch import Tensor

from pyroae.data.storage import Reader, Stored
from pyroae.data.streaming import Stream
from pyroae.runtime.processes import Share

WINDOW = 64 * 2**20
"""Bytes of the buffer in which rows are shuffled, as stored; a thread fills a second one."""


class Windows:
    """The order of one epoch: windows of slices, and the order of the rows within each window.

    Args:
        stream: The training rows of a file.
        seed: The seed of the epoch.

    Attributes:
        slices: The numbers of the slices `[S]`, in the order of the epoch.
        window: The window of each of them, `[S]`, ascending from 0.
        starts: The position in the epoch of the first row of each window, and the number of rows;
            `[W + 1]`.
    """

    def __init__(self, stream: Stream, seed: int) -> None:
        self.stream, self.seed = stream, seed
        stored = stream.stored
        self.slices = _slice_order(stored, seed)
        sizes = np.diff(stored.bounds)[self.slices]
        held_out = np.diff(np.searchsorted(stream.held_out, stored.bounds))[self.slices]
        before = (np.cumsum(sizes) - sizes) * stored.row_bytes
        self.window = np.unique(before // WINDOW, return_inverse=True)[1]
        counts = np.bincount(self.window, sizes - held_out, int(self.window[-1]) + 1)
        self.starts = np.append(0, np.cumsum(counts.astype(np.int64)))

    def window_at(self, position: int) -> int:
        """Return the window that contains a row of the epoch.

        Args:
            position: The position of the row in the epoch.

        Returns:
            The number of the window.
        """
        return int(np.searchsorted(self.starts, position, side="right")) - 1

    def slices_in(self, window: int) -> np.ndarray:
        """Return the slices of a window.

        Args:
            window: The number of the window.

        Returns:
            The numbers of its slices, in the order in which they are read.
        """
        return self.slices[self.window == window]

    def size(self, window: int) -> int:
        """Return the number of training rows in a window.

        Args:
            window: The number of the window.

        Returns:
            The number of rows, n.
        """
        return int(self.starts[window + 1] - self.starts[window])

    def order(self, window: int) -> np.ndarray:
        """Return the order in which the rows of a window are used.

        Args:
            window: The number of the window.

        Returns:
            A permutation `[n]` of the rows that `load` returns.
        """
        generator = torch.Generator().manual_seed((self.seed + 7919 * (window + 1)) % 2**32)
        return torch.randperm(self.size(window), generator=generator).numpy()

    def load(self, reader: Reader, window: int, cancelled: Event) -> np.ndarray:
        """Read the rows of a window into memory.

        Args:
            reader: An open reader of the file.
            window: The number of the window.
            cancelled: An event that ends the reading early; the rest of the rows is then undefined.

        Returns:
            The values `[n, d]` in the order of the slices: uint8 if the stream is binarized, else
            as stored.

        Raises:
            DataError: If the file has changed or cannot be read.
        """
        stream = self.stream
        dtype = np.dtype(np.uint8) if stream.is_binary else stream.stored.dtype
        buffer, at = np.empty((self.size(window), stream.stored.features), dtype), 0
        for number in self.slices_in(window):
            if cancelled.is_set():
                break
            values = stream.slice(reader, int(number)).values
            buffer[at : at + len(values)] = values
            at += len(values)
        return buffer

    def rows(self, first: int, stop: int) -> np.ndarray:
        """Return which rows of the file are at some positions of the epoch.

        Args:
            first: The first position.
            stop: The position after the last.

        Returns:
            The row numbers within the file, `[stop - first]`.
        """
        parts = []
        for window in range(self.window_at(first), self.window_at(stop - 1) + 1):
            slices = [self.stream.rows_in(int(number)) for number in self.slices_in(window)]
            start = int(self.starts[window])
            rows = np.concatenate(slices)[self.order(window)]
            parts.append(rows[max(0, first - start) : stop - start])
        return np.concatenate(parts)


def streamed(
    stream: Stream, batch_size: int, seed: int, start: int, share: Share
) -> Iterator[tuple[int, int, Tensor]]:
    """Iterate over the batches of one epoch; a thread reads the next window meanwhile.

    Args:
        stream: The training rows of a file.
        batch_size: The number of data in a batch over all processes, B.
        seed: The seed of the epoch.
        start: The number of the first batch; those before it are not read.
        share: The part of every batch that this process receives.

    Yields:
        The number of the batch, its size over all processes, and this process's part `[b, d]`.

    Raises:
        DataError: If the file has changed or cannot be read.
    """
    windows, total = Windows(stream, seed), len(stream)
    with stream.stored.opened() as reader, _Prefetcher(windows, reader) as prefetcher:
        for number in range(start, -(-total // batch_size)):
            first, stop = number * batch_size, min((number + 1) * batch_size, total)
            part = share.of(stop - first)
            rows = prefetcher.take(first + part.start, first + part.stop)
            yield number, stop - first, stream.to_tensor(rows)


class _Prefetcher:
    """Successive windows; a thread reads the next one, and at most two are in memory."""

    def __init__(self, windows: Windows, reader: Reader) -> None:
        self.windows, self.reader = windows, reader
        self.thread, self.cancelled = ThreadPoolExecutor(1, "pyroae-reader"), Event()
        self.next: Future[np.ndarray] | None = None
        self.number, self.values, self.order = -1, np.empty(0), np.empty(0)

    def __enter__(self) -> "_Prefetcher":
        return self

    def __exit__(self, *error: object) -> None:
        self.cancelled.set()
        self.thread.shutdown(wait=True, cancel_futures=True)

    def take(self, first: int, stop: int) -> np.ndarray:
        """The rows at positions of the epoch. Positions must ascend from call to call."""
        parts = []
        for window in range(self.windows.window_at(first), self.windows.window_at(stop - 1) + 1):
            if window != self.number:
                self._move(window)
            start = int(self.windows.starts[window])
            parts.append(self.values[self.order[max(0, first - start) : stop - start]])
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _move(self, window: int) -> None:
        """Release the current window, wait for another one and start to read the one after it."""
        if self.next is None or window != self.number + 1:
            self.next = self._begin(window)
        future, self.next, self.values = self.next, None, np.empty(0)
        self.number, self.values, self.order = window, future.result(), self.windows.order(window)
        if window + 2 < len(self.windows.starts):
            self.next = self._begin(window + 1)

    def _begin(self, number: int) -> "Future[np.ndarray]":
        return self.thread.submit(self.windows.load, self.reader, number, self.cancelled)


def _slice_order(stored: Stored, seed: int) -> np.ndarray:
    """The slices in the order of an epoch.

    Runs are opened in random order, a few at a time; the next slice of a random one is read.
    """
    generator = torch.Generator().manual_seed(seed)
    runs = torch.randperm(len(stored.runs), generator=generator).numpy()
    if (stored.runs == 1).all():
        return runs
    first = np.cumsum(stored.runs) - stored.runs
    waiting = [(int(first[run]), int(first[run] + stored.runs[run])) for run in runs[::-1]]
    opened = [waiting.pop() for _ in range(min(stored.max_open_runs, len(waiting)))]
    order = []
    num_slices = int(stored.runs.sum())
    for draw in torch.rand(num_slices, generator=generator, dtype=torch.float64).tolist():
        run = int(draw * len(opened))
        number, end = opened[run]
        order.append(number)
        if number + 1 < end:
            opened[run] = (number + 1, end)
        elif waiting:
            opened[run] = waiting.pop()
        else:
            opened.pop(run)
    return np.array(order)
