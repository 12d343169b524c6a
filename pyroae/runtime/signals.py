"""Signals that stop work at a point from which it can go on."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from pyroae.errors import InterruptedRunError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Held:
    """A context in which SIGINT and SIGTERM wait for `release`, or for its end; the second one does not wait.

    They then go to whoever had them before. active: False, and any thread but the main one, leaves signals as they are.
    """

    def __init__(self, active: bool = True) -> None:
        self._active = active and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int] = {}
        self._waiting: int | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether there has been a signal."""
        return self._waiting is not None

    def __enter__(self) -> Self:
        for number in SIGNALS if self._active else ():
            before = signal.getsignal(number)
            if before is not None and before != signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._hold)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_back()
        if self._waiting is not None:
            signal.raise_signal(self._waiting)

    def release(self) -> None:
        """Let the signal through that has been waiting; where its handler comes back, the next one waits again."""
        if self._waiting is None:
            return
        number, self._waiting = self._waiting, None
        self._give_back()
        signal.raise_signal(number)
        self.__enter__()

    def _hold(self, number: int, frame: FrameType | None) -> None:
        again, self._waiting = self._waiting is not None, number
        if again:
            self.release()

    def _give_back(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}


SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stoppable(how: str) -> Iterator[None]:
    """A context of work whose parts are kept as they are finished: SIGINT and SIGTERM stop it, and say how to go on.

    how: what to type to go on. Raises InterruptedRunError.
    """
    caught = [signal.SIGINT]

    def stop(number: int, frame: FrameType | None) -> None:
        caught[0] = signal.Signals(number)
        raise KeyboardInterrupt

    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, stop) for number in SIGNALS} if here else {}
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"interrupted; what was finished is kept; go on with: {how}", caught[0]
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
