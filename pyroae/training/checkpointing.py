"""When a training is saved: after each epoch, every few minutes, and when a signal asks it to stop."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from pyroae.errors import InterruptedRunError
from pyroae.runtime.signals import SIGNALS
from pyroae.training.state import State

MINUTES = 5.0


class Keeper:
    """A context that saves the states of a training; given to `fit` as its `on_epoch`.

    save: writes a state. minutes: between two that are saved within an epoch. how: what to type to go on.
    On SIGINT and SIGTERM the step that is being taken ends, the state is saved, and InterruptedRunError says how to go on;
    a second signal stops at once.
    """

    def __init__(self, save: Callable[[State], None], how: str, minutes: float = MINUTES) -> None:
        self.save, self.how, self.minutes = save, how, minutes
        self.caught: int | None = None
        self._before: dict[int, Any] = {}
        self._saved = time.monotonic()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._catch) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_back()

    @property
    def is_due(self) -> bool:
        """Whether the state is to be saved now, in the middle of an epoch."""
        return self.caught is not None or time.monotonic() - self._saved > 60 * self.minutes

    def __call__(self, state: State) -> None:
        """Save. Raises InterruptedRunError where a signal was caught."""
        self.save(state)
        self._saved = time.monotonic()
        if self.caught is not None:
            name = signal.Signals(self.caught).name
            raise InterruptedRunError(
                f"stopped by {name} at {state.where()}, which is saved; go on with: {self.how}",
                self.caught,
            )

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
