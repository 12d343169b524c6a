"""Losses along an epoch, which a device has and nobody waits for."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


class Losses:
    """Losses of steps, a tensor each, that stay on their device until they are looked at.

    total: the sum over `seen` data of those that have arrived, added in their order. bad: the first step whose loss is not
    finite. step: of the first one. reduce: makes them those of all processes. lenient: those that are not finite do not count.
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
        """Per datum; nan before any has arrived."""
        return self.total / self.seen if self.seen else math.nan

    def add(self, value: Tensor, size: int) -> None:
        """The mean loss of so many data."""
        self._values.append(value)
        self._sizes.append(size)

    def look(self, *, wait: bool = False) -> None:
        """Take up what has arrived, and send for what came since; only with `wait` is the device waited for."""
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
