"""Progress of anything that takes longer than a few seconds: a bar on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """A context in which `update(done, text)` shows how far the work is, on stderr.

    title: what is done. total: of `done`. shown: False keeps silent.
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, text: str = "") -> None:
        """`done` of the total is finished; `text` says what it came to."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=text)
        elif self._shown and now - self._printed > 10:
            self._printed = now
            left = (now - self._started) * (self.total - done) / max(done, 1)
            print(
                f"{self.title}: {done} of {self.total}, {left:.0f} s left {text}",
                file=self._console.file,
                flush=True,
            )
