"""Progress as lines: when they come, what they say, and the time left by a clock of the test."""

import pytest

from pyroae.runtime.progress import Pace, Progress
from pyroae.runtime.short_text import duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0.4 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3599.6, "1 h"),
        (5820, "1 h 37 min"),
        (86399, "1 d"),
        (641000, "7 d 10 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def lines(captured: pytest.CaptureFixture[str]) -> list[str]:
    return captured.readouterr().err.splitlines()


def test_lines_come_after_5_seconds_and_then_every_10(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("log p(x)", 100, clock=clock) as bar:
        for second in range(31):
            clock.now = 100.0 + second
            bar.update(second)
    assert [line.split(",")[0] for line in lines(capsys)] == [
        f"log p(x): {done} of 100" for done in (5, 15, 25)
    ]


def test_time_left_does_not_count_resumed_steps(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training resumed at step 9,000 of 10,000 that takes a step a second."""
    with Progress("training", 10_000, clock=clock) as bar:
        bar.begin(9_000, "resumed at the end of epoch 9")
        for second in range(1, 11):
            clock.now = 100.0 + second
            bar.update(9_000 + second)
    assert lines(capsys) == ["training: 9005 of 10000, 16 min 35 s left"]


def test_time_left_does_not_count_the_compilation(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first step takes 60 s, each further one 0.1 s: 1,000 steps do not take 1,000 minutes."""
    with Progress("training", 1000, clock=clock) as bar:
        bar.begin(0)
        clock.now += 0.5
        bar.update(0, "compiling the step")
        clock.now += 60
        for step in range(1, 251):
            clock.now += 0.1
            bar.update(step)
    first, *later = lines(capsys)
    assert first == "training: 1 of 1000"  # the pace is not known
    assert [line.partition(", ")[2] for line in later] == ["1 min 30 s left", "1 min 20 s left"]


def test_pace_follows_the_last_moments() -> None:
    pace = Pace(1000)
    for second in range(100):
        pace.add(second, second + 1)
    assert pace.left(100) == 900
    for second in range(100, 140):
        pace.add(second, 100 + 10 * (second - 99))
    assert pace.left(500) == 50


def test_no_time_left_before_a_few_units() -> None:
    pace = Pace(10)
    for done in (0, 1, 2):
        assert pace.left(done) is None
        pace.add(60.0 * done, done)
    pace.add(180.0, 3)
    assert pace.left(3) == 7 * 60


def test_progress_within_another_moves_it(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Two trainings of 10 steps each; a step takes 3 s."""
    with Progress("trainings", 2, clock=clock) as outer:
        for number in range(2):
            outer.update(number, f"seed {number}")
            with Progress("training", 10, clock=clock) as inner:
                for step in range(1, 11):
                    clock.now += 3
                    inner.update(step, f"epoch {step}")
    first, second, third, *_ = lines(capsys)
    assert first == "trainings: 0 of 2, seed 0: training 2 of 10 epoch 2"
    assert second == "trainings: 0 of 2, 42 s left, seed 0: training 6 of 10 epoch 6"
    assert third == "trainings: 1 of 2, 30 s left, seed 0: training 10 of 10 epoch 10"


def test_nothing_is_shown_where_it_is_not_wanted(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("gaps", 10, shown=False, clock=clock) as bar:
        clock.now += 100
        bar.update(5)
    assert not lines(capsys)
    assert not Progress._open


def test_a_bar_on_a_terminal(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress("training", 40, clock=clock) as bar:
        assert bar._bar is not None
        for step in range(1, 31):
            clock.now += 1
            bar.update(step, "[bound]")
        (task,) = bar._bar.tasks
        assert (task.completed, task.total) == (30, 40)
        assert task.fields == {"whole": 30, "left": "10 s left", "text": "[bound]"}
