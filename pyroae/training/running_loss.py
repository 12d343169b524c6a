"""Accumulate losses on the device and transfer them asynchronously."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


class Losses:
    """Losses of consecutive steps, which stay on their device until they are transferred.

    Args:
        step: the step of the first loss, counted from 0.
        total: the sum at the start, over `seen` data.
        seen: the number of data at the start.
        reduce: reduces losses of shape [S] over all processes; None for one process.
        lenient: whether losses that are not finite are left out instead of reported.

    Attributes:
        total: the sum of the transferred losses over their data, in nats, added in their order.
        seen: the number of data of the transferred losses.
        bad: the first step whose loss is not finite; None if there is none.

    >>> losses = Losses(0)
    >>> losses.add(torch.tensor(2.0), 10)
    >>> losses.add(torch.tensor(4.0), 10)
    >>> losses.look(wait=True)
    >>> losses.mean
    3.0
    """

    def __init__(
        self,
        step: int,
        total: float = 0.0,
        seen: int = 0,
        *,
        reduce: Callable[[Tensor], Tensor] | None = None,
        lenient: bool = False,
    ) -> None:
        self.total, self.seen = total, seen
        self.bad: int | None = None
        self._step, self._reduce, self._lenient = step, reduce, lenient
        self._values: list[Tensor] = []
        self._sizes: list[int] = []
        self._sent: tuple[Tensor, list[int], torch.cuda.Event | None] | None = None

    @property
    def mean(self) -> float:
        """The mean loss in nats per datum; nan before any was transferred."""
        return self.total / self.seen if self.seen else math.nan

    def add(self, value: Tensor, size: int) -> None:
        """Add the loss of one step.

        Args:
            value: the mean loss, a scalar in nats per datum.
            size: the number of data that it is the mean of.
        """
        self._values.append(value)
        self._sizes.append(size)

    def look(self, *, wait: bool = False) -> None:
        """Read the losses that were transferred, and start to transfer those added since.

        Args:
            wait: whether to wait for the device, so that every loss is read.
        """
        self._take(wait)
        if self._sent is None and self._values:
            values = torch.stack(self._values)
            values = values if self._reduce is None else self._reduce(values)
            arrived = torch.cuda.Event() if values.is_cuda else None
            self._sent = values.to("cpu", non_blocking=True), self._sizes, arrived
            if arrived is not None:
                arrived.record()
            self._values, self._sizes = [], []
            if wait or arrived is None:
                self._take(wait)

    def _take(self, wait: bool) -> None:
        if self._sent is None:
            return
        values, sizes, arrived = self._sent
        if arrived is not None:
            if wait:
                arrived.synchronize()
            elif not arrived.query():
                return
        for i, (value, size) in enumerate(zip(values.tolist(), sizes, strict=True)):
            if math.isfinite(value):
                self.total += value * size
                self.seen += size
            elif not self._lenient:
                self.bad = self._step + i if self.bad is None else self.bad
        self._step += len(sizes)
        self._sent = None
