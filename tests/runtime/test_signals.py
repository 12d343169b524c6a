"""Signals that stop work: an ignored one stays ignored, and the previous handlers are restored."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from pyroae.errors import InterruptedRunError
from pyroae.runtime.signals import SIGNALS, DeferredSignals, SignalHandlers, stoppable
from pyroae.training.checkpointing import Keeper
from pyroae.training.state import State

CONTEXTS: list[Callable[[], AbstractContextManager[object]]] = [
    lambda: SignalHandlers(lambda number, frame: pytest.fail("handled")),
    DeferredSignals,
    lambda: stoppable("this"),
    lambda: Keeper(lambda state: None, "this"),
]


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("context", CONTEXTS)
def test_an_ignored_signal_stays_ignored(
    context: Callable[[], AbstractContextManager[object]],
) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    with context() as entered:
        for number in SIGNALS:
            signal.raise_signal(number)
            assert signal.getsignal(number) is signal.SIG_IGN
        if isinstance(entered, Keeper):
            entered(State({}, {}, {}))  # would raise InterruptedRunError after a signal
    assert [signal.getsignal(number) for number in SIGNALS] == [signal.SIG_IGN] * 2


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("context", CONTEXTS)
def test_handlers_are_those_of_the_context_and_then_the_previous_ones(
    context: Callable[[], AbstractContextManager[object]],
) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with context():
        assert all(signal.getsignal(n) is not b for n, b in zip(SIGNALS, before, strict=True))
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("number", SIGNALS)
def test_stoppable_names_the_signal_and_the_command(number: signal.Signals) -> None:
    def stopped() -> None:
        with stoppable("that command"):
            signal.raise_signal(number)

    with pytest.raises(InterruptedRunError, match="resume with: that command") as stop:
        stopped()
    assert stop.value.signal == number


def test_other_threads_leave_handlers_alone() -> None:
    """`signal.signal` raises ValueError there."""
    before = [signal.getsignal(number) for number in SIGNALS]
    seen: list[object] = []

    def work() -> None:
        for context in CONTEXTS:
            with context():
                seen.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == before * len(CONTEXTS)


def test_under_nohup_a_command_ignores_the_signal() -> None:
    """SIGINT was ignored before the interpreter started, as a shell does for a background job."""
    program = (
        "import os, signal\n"
        "from pyroae.runtime.signals import stoppable\n"
        "with stoppable('this'):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "print('finished')\n"
    )
    start = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", start, program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "finished\n"
