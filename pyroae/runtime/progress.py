"""Progress of work that takes longer than a few seconds."""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """A context manager that shows progress on stderr.

    It shows a bar on a terminal, and prints a line at most every 10 seconds elsewhere.

    Args:
        title: The name of the work.
        total: The number of steps.
        shown: Whether to show anything.
    """

    def __init__(self, title: str, total: int, shown: bool = True) -> None:
        self.title, self.total = title, total
        self._console = Console(stderr=True)
        self._shown = shown
        self._bar: Bar | None = None
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> Self:
        if self._shown and self._console.is_terminal:
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self._bar = Bar(TextColumn(self.title), *columns, console=self._console, transient=True)
            self._task = self._bar.add_task(self.title, total=self.total, text="")
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, text: str = "") -> None:
        """Show how many steps are finished.

        Args:
            done: The number of finished steps.
            text: An intermediate result to show beside it.
        """
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=text)
        elif self._shown and now - self._printed > 10:
            self._printed = now
            remaining = (now - self._started) * (self.total - done) / max(done, 1)
            print(
                f"{self.title}: {done} of {self.total}, {remaining:.0f} s left {text}",
                file=self._console.file,
                flush=True,
            )
