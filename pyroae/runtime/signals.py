"""Handle SIGINT and SIGTERM, so that work stops at a point from which it can be resumed.

`SignalHandlers` installs handlers; `DeferredSignals` and `stoppable` use it, as do trainings.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from pyroae.errors import InterruptedRunError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""The signals that ask a process to end."""


class SignalHandlers:
    """A context in which one function handles SIGINT and SIGTERM.

    A signal that is ignored stays ignored, as SIGINT is under `nohup` and in a background job of a
    shell. Handlers that were not installed from Python are left alone, and so is every handler in
    a thread other than the main one. The previous handlers are restored at the end of the context.

    Args:
        handle: called with the number of the signal and the interrupted frame.

    >>> received = []
    >>> with SignalHandlers(lambda number, frame: received.append(number)):
    ...     signal.raise_signal(signal.SIGTERM)
    >>> received == [signal.SIGTERM]
    True
    """

    def __init__(self, handle: Callable[[int, FrameType | None], Any]) -> None:
        self._handle = handle
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()

    def install(self) -> None:
        """Install the handler for each signal that is not ignored."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            previous = signal.getsignal(number)
            if previous not in (None, signal.SIG_IGN):
                self._previous[number] = previous
                signal.signal(number, self._handle)

    def restore(self) -> None:
        """Restore the previous handlers."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous = {}


class DeferredSignals:
    """A context in which SIGINT and SIGTERM wait for `release`, or for the end of the context.

    They are then passed to the previous handler. A second signal does not wait.

    Args:
        active: False leaves every handler unchanged.

    >>> with DeferredSignals() as deferred:
    ...     deferred.is_waiting
    False
    """

    def __init__(self, active: bool = True) -> None:
        self._active = active
        self._handlers = SignalHandlers(self._defer)
        self._waiting: int | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether a signal was received and not yet passed on."""
        return self._waiting is not None

    def __enter__(self) -> Self:
        if self._active:
            self._handlers.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._handlers.restore()
        if self._waiting is not None:
            signal.raise_signal(self._waiting)

    def release(self) -> None:
        """Pass the waiting signal to its previous handler; if that returns, defer the next one."""
        if self._waiting is None:
            return
        number, self._waiting = self._waiting, None
        self._handlers.restore()
        signal.raise_signal(number)
        self._handlers.install()

    def _defer(self, number: int, frame: FrameType | None) -> None:
        is_second, self._waiting = self._waiting is not None, number
        if is_second:
            self.release()


def interruption(number: int, kept: str, how: str) -> InterruptedRunError:
    """Return the error of work that a signal has ended.

    Args:
        number: the number of the signal.
        kept: what is kept, and what the command does.
        how: the command that goes on.

    Returns:
        The error, whose message is one sentence.

    >>> print(interruption(15, "nothing is kept; start again with", "pyroae calibrate runs/vae"))
    stopped by SIGTERM; nothing is kept; start again with: pyroae calibrate runs/vae
    """
    name = signal.Signals(number).name
    return InterruptedRunError(f"stopped by {name}; {kept}: {how}", number)


@contextmanager
def stoppable(how: str, kept: str = "finished work is saved; resume with") -> Iterator[None]:
    """Return a context for work that SIGINT and SIGTERM stop, with a sentence on what is kept.

    Args:
        how: the command that goes on, for the message.
        kept: what is kept, and what the command does.

    Yields:
        None.

    Raises:
        InterruptedRunError: on a signal, or on a KeyboardInterrupt within the context.

    >>> with stoppable("pyroae compare --resume study"):
    ...     raise KeyboardInterrupt
    Traceback (most recent call last):
    pyroae.errors.InterruptedRunError: stopped by SIGINT; finished work is saved; resume with: ...
    """
    received: list[int] = [signal.SIGINT]

    def stop(number: int, frame: FrameType | None) -> None:
        received[0] = number
        raise KeyboardInterrupt

    try:
        with SignalHandlers(stop):
            yield
    except KeyboardInterrupt:
        raise interruption(received[0], kept, how) from None
