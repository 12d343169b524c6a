"""Progress of work that takes longer than a few seconds."""

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from pyroae.runtime.short_text import duration

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

FIRST, EVERY = 5.0, 10.0
"""Seconds before the first line, and between two lines, where there is no terminal."""

FEW = 3
"""Time left is shown once the work was seen at so many moments, at least a second apart."""

RECENT = 30
"""The pace is that between the last so many of these moments."""


class Pace:
    """How fast work proceeds of late, and how long the rest takes.

    What comes before the first finished step, such as a compilation, does not count.

    Args:
        total: The number of steps.
        start: The number of steps that were finished before.

    >>> pace = Pace(100, start=55)
    >>> for second in range(4):
    ...     pace.add(float(second), 60 + 5 * second)
    >>> pace.left(75)
    5.0
    """

    def __init__(self, total: float, start: float = 0) -> None:
        self.total, self._last = total, start
        self._seen: deque[tuple[float, float]] = deque(maxlen=RECENT)

    def add(self, now: float, done: float) -> None:
        """Note how many steps are finished, at most once a second.

        Args:
            now: The time in seconds.
            done: The number of steps that are finished.
        """
        is_due = not self._seen or now - self._seen[-1][0] >= 1
        if is_due and done > self._last:
            self._seen.append((now, done))
            self._last = done

    def left(self, done: float) -> float | None:
        """Return the time that the rest takes at the present pace.

        Args:
            done: The number of steps that are finished.

        Returns:
            The time in seconds; None before the pace is known.
        """
        if len(self._seen) < FEW:
            return None
        (began, first), (now, last) = self._seen[0], self._seen[-1]
        return (self.total - done) * (now - began) / (last - first)


class Progress:
    """A context manager that shows progress on stderr.

    It shows a bar on a terminal, and prints a line at most every 10 seconds elsewhere. Within
    another one it has no bar of its own: it moves the bar of the other one within one step.

    Args:
        title: The name of the work.
        total: The number of steps.
        shown: Whether to show anything.
        clock: Returns the time in seconds.
    """

    _open: list["Progress"] = []  # noqa: RUF012

    def __init__(
        self,
        title: str,
        total: int,
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self.total = title, total
        self._shown, self._clock = shown, clock
        self._pace = Pace(total)
        self._done, self._text = 0.0, ""
        self._outer: Progress | None = None
        self._bar: Bar | None = None
        self._line_at = 0.0

    def __enter__(self) -> Self:
        if self._shown:
            self._outer = Progress._open[-1] if Progress._open else None
            Progress._open.append(self)
            self._line_at = self._clock() + FIRST
            if self._outer is None and sys.stderr.isatty():
                self._bar, self._task = _bar(self.title, self.total)
                self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._shown:
            Progress._open.remove(self)
        if self._bar is not None:
            self._bar.stop()

    def begin(self, done: int, text: str = "") -> None:
        """Show how many steps were finished before, which say nothing about the time left.

        Args:
            done: The number of steps.
            text: A text to show beside it.
        """
        self._pace = Pace(self.total, done)
        self.update(done, text)

    def update(self, done: int, text: str = "") -> None:
        """Show how many steps are finished.

        Args:
            done: The number of finished steps.
            text: An intermediate result to show beside it.
        """
        self._done, self._text = done, text
        self._show(done, text)

    def _show(self, done: float, text: str) -> None:
        if not self._shown:
            return
        if self._outer is not None:
            within = f"{self.title} {int(done)} of {self.total} {text}".rstrip()
            self._outer._show(
                self._outer._done + min(1.0, done / max(1, self.total)),
                f"{self._outer._text}: {within}" if self._outer._text else within,
            )
            return
        now = self._clock()
        self._pace.add(now, done)
        if self._bar is not None:
            left = self._left(done)
            self._bar.update(self._task, completed=done, whole=int(done), left=left, text=text)
        elif now >= self._line_at:
            self._line_at = now + EVERY
            parts = (f"{int(done)} of {self.total}", self._left(done), text)
            print(f"{self.title}: {', '.join(filter(None, parts))}", file=sys.stderr, flush=True)

    def _left(self, done: float) -> str:
        left = self._pace.left(done)
        return "" if left is None or done >= self.total else f"{duration(round(left))} left"


def _bar(title: str, total: int) -> tuple["Bar", Any]:
    """A bar of rich, and its task."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    fields = ("{task.fields[whole]}/{task.total}", "{task.fields[left]}", "{task.fields[text]}")
    columns = (
        TextColumn(title, markup=False),
        BarColumn(),
        *(TextColumn(field, markup=False) for field in fields),
    )
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    return bar, bar.add_task(title, total=total, whole=0, left="", text="")
