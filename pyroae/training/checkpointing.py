"""When a training is saved: after each epoch, every few minutes, and on a signal to stop."""

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from pyroae.errors import InterruptedRunError
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.signals import SignalHandlers
from pyroae.training.state import State

MINUTES = 5.0
"""Default time between two states that are saved within an epoch."""


class Keeper(Shown):
    """A context that saves the states of a training; pass it to `fit` as `on_epoch`.

    On SIGINT and SIGTERM the current step ends, the state is saved, and InterruptedRunError gives
    the command that resumes the training; a second signal stops the training at once. A signal
    that was ignored at the start stays ignored.

    Args:
        save: writes a state.
        how: the command that resumes the training, for the message.
        minutes: time between two states that are saved within an epoch.

    Attributes:
        caught: the number of the signal that was received; None before one.

    >>> import torch
    >>> from pyroae import TrainConfig, fit, zoo
    >>> states: list[State] = []
    >>> with Keeper(states.append, "the same call, with state=states[-1]") as checkpoints:
    ...     system, data = zoo.ppca(2, latent=1), torch.randn(200, 2)
    ...     config = TrainConfig(epochs=3)
    ...     result = fit(system, data, config=config, on_epoch=checkpoints, progress=False)
    >>> [state.where() for state in states]
    ['the end of epoch 1', 'the end of epoch 2', 'the end of epoch 3']
    """

    def __init__(self, save: Callable[[State], None], how: str, minutes: float = MINUTES) -> None:
        self.save, self.how, self.minutes = save, how, minutes
        self.caught: int | None = None
        self._handlers = SignalHandlers(self._catch)
        self._saved = time.monotonic()

    def _overview(self) -> Overview:
        state = "no signal yet" if self.caught is None else signal.Signals(self.caught).name
        return Overview([f"every {self.minutes:g} minutes", state], [("resume with", self.how)])

    def __enter__(self) -> Self:
        self._handlers.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._handlers.restore()

    @property
    def is_due(self) -> bool:
        """Whether the state should be saved now, within an epoch."""
        return self.caught is not None or time.monotonic() - self._saved > 60 * self.minutes

    def __call__(self, state: State) -> None:
        """Save a state.

        Args:
            state: the state of the training.

        Raises:
            InterruptedRunError: after saving, if a signal was received.
        """
        self.save(state)
        self._saved = time.monotonic()
        if self.caught is not None:
            name = signal.Signals(self.caught).name
            raise InterruptedRunError(
                f"stopped by {name} at {state.where()}, which is saved; resume with: {self.how}",
                self.caught,
            )

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        self._handlers.restore()
