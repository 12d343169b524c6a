"""Moves along an annealing path: step sizes that stay, densities that are kept; blocks of data,
resumed bit for bit.
"""

import contextlib
import math
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae import linear_gaussian
from pyroae.autoencoder import Autoencoder
from pyroae.config import AISSettings
from pyroae.errors import ConfigError, RunError
from pyroae.evaluation.annealing import bounds as ais_module
from pyroae.evaluation.annealing import checkpoint, hmc
from pyroae.evaluation.annealing.block import Block
from pyroae.evaluation.annealing.bounds import ais, bdmc
from pyroae.evaluation.annealing.plan import Plan
from pyroae.programs.annealing_path import Path as AnnealingPath
from pyroae.runtime.signals import DeferredSignals
from tests.evaluation.annealing.test_ais import TINY, ppca

pytestmark = pytest.mark.usefixtures("float64")


def test_step_sizes_stay_as_the_pilot_left_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the pilot they change at each move; for the chains they are the reported ones, whatever
    those accept.
    """
    system, x = ppca()
    seen: list[tuple[int, Tensor]] = []
    transition = hmc.transition

    def watched(
        path: AnnealingPath, point: hmc.Point, beta: float, step: Tensor, steps: int
    ) -> tuple[hmc.Point, Tensor]:
        seen.append((len(point.u), step.clone()))
        return transition(path, point, beta, step, steps)

    monkeypatch.setattr(hmc, "transition", watched)
    settings = AISSettings(8, 24, leapfrog_steps=2)
    found = ais(system.model, None, x, settings=settings, seed=0)
    pilot = [step for chains, step in seen if chains == 4]
    frozen = [step for chains, step in seen if chains == 8]
    assert len(pilot) == hmc.WARM_UP + 23
    assert len({tuple(step.tolist()) for step in pilot}) == len(pilot)
    assert len(frozen) == 23
    for step, segment in zip(frozen, hmc.segments(24), strict=True):
        torch.testing.assert_close(step.cpu(), found.step_sizes[segment], rtol=1e-14, atol=0)


def test_moves_leave_each_distribution_as_it_is() -> None:
    """From exact draws of the posterior, ten moves at β = 1 keep its mean and variance."""
    system, x = ppca(copies=4000)
    settings = AISSettings(num_chains=1, num_distributions=1, leapfrog_steps=5)
    block = Block(Plan(system.model, None, settings, nesting=1), (x,))
    path = block._path(1)
    with torch.no_grad():
        loc, tril = linear_gaussian.posterior(x[:1], *system.linear_gaussian())
        exact = dist.MultivariateNormal(loc[0], scale_tril=tril)
        point = path.at(exact.sample((1, 4000)))
        for _ in range(10):
            point, accept = hmc.transition(path, point, 1.0, exact.stddev.min().expand(4000), 5)
    assert 0.3 < accept.mean() < 0.99
    u = point.u[0]
    assert ((u.mean(0) - loc[0]).abs() < 4 * exact.stddev / math.sqrt(4000)).all()
    assert ((u.var(0) / exact.variance - 1).abs() < 4 * math.sqrt(2 / 4000)).all()


class Interruption:
    """Raises KeyboardInterrupt at the given calls of a function, `transition` if no other."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        moments: list[int],
        owner: Any = hmc,
        name: str = "transition",
    ) -> None:
        self.count, self.moments, function = 0, moments, getattr(owner, name)

        def counted(*args: Any) -> Any:
            self.count += 1
            if self.count in self.moments:
                raise KeyboardInterrupt
            return function(*args)

        monkeypatch.setattr(owner, name, counted)


def finished(run: Callable[[], Any]) -> tuple[Any, int]:
    """What a call gives that is made until it is not interrupted, and how often it was."""
    breaks = 0
    while True:
        try:
            return run(), breaks
        except KeyboardInterrupt:
            breaks += 1


@pytest.mark.parametrize("function", [pytest.param(ais, marks=pytest.mark.slow), bdmc])
def test_an_interrupted_run_goes_on_to_the_same_result(
    function: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, x = ppca()
    monkeypatch.setattr(ais_module, "rows_of", lambda args: 6)  # blocks of 2, 2 and 1
    monkeypatch.setattr(checkpoint, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(hmc, "WARM_UP", 5)
    arguments: dict[str, Any] = {"settings": TINY, "seed": 5}
    whole = function(system.model, None, x, **arguments)
    interruption = Interruption(monkeypatch, [2, *(torch.randperm(60)[:6] + 5).tolist()])
    file = tmp_path / "work.safetensors"
    found, breaks = finished(lambda: function(system.model, None, x, checkpoint=file, **arguments))
    assert breaks == 7
    assert {f.name for f in tmp_path.iterdir()} == {"work.safetensors", "work.previous.safetensors"}
    for one, other in (
        (whole, found),
        (whole, function(system.model, None, x, checkpoint=file, **arguments)),
    ):
        pairs = [(one, other)] if function is ais else [(one.forward, other.forward), (one, other)]
        for a, b in pairs:
            for name, value in vars(a).items():
                if isinstance(value, Tensor):
                    assert torch.equal(value, getattr(b, name)), name
        if function is bdmc:
            assert torch.equal(one.x["x"], other.x["x"])
            assert torch.equal(one.z["z"], other.z["z"])
    count = interruption.count
    function(system.model, None, x, checkpoint=file, **arguments)
    assert interruption.count == count  # a finished file holds the result


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    system, x = ppca()
    file = tmp_path / "work.safetensors"
    ais(system.model, None, x, settings=TINY, seed=0, checkpoint=file)
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="is of another run: this one has seed = 1, not 0"):
        ais(system.model, None, x, settings=TINY, seed=1, checkpoint=file)
    with pytest.raises(ConfigError, match="this one has leapfrog_steps = 3, not 2"):
        ais(
            system.model,
            None,
            x,
            settings=AISSettings(3, 8, leapfrog_steps=3),
            seed=0,
            checkpoint=file,
        )
    with pytest.raises(ConfigError, match="this one has kind = 'bdmc', not 'ais'"):
        bdmc(system.model, None, x, settings=TINY, seed=0, checkpoint=file)
    with pytest.raises(ConfigError, match="this one has data ="):
        ais(system.model, None, x + 1, settings=TINY, seed=0, checkpoint=file)
    other, _ = ppca()
    with pytest.raises(ConfigError, match="this one has data ="):
        ais(other.model, None, x, settings=TINY, seed=0, checkpoint=file)
    assert file.read_bytes() == before


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "foreign": lambda content: b"not a checkpoint at all",
    "cut": lambda content: content[:-100],
    "flipped": lambda content: content[:-9] + bytes([content[-9] ^ 4]) + content[-8:],
    "a pickle": lambda content: b"\x80\x04cos\nsystem\n(S'touch opened'\ntR.",
}


@pytest.fixture
def broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of an annealing of five data, which came to the last move of the second block of
    two; and the one before.
    """
    system, x = program()
    monkeypatch.setattr(ais_module, "rows_of", lambda args: 6)
    monkeypatch.setattr(checkpoint, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(hmc, "WARM_UP", 5)
    Interruption(monkeypatch, [38])
    with pytest.raises(KeyboardInterrupt):
        ais(system.model, None, x, settings=TINY, seed=5, checkpoint=tmp_path / "work.safetensors")
    return tmp_path / "work.safetensors"


def program() -> tuple[Autoencoder, Tensor]:
    """That of `broken_off`."""
    torch.manual_seed(0)
    return ppca()


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    damage: str, broken_off: Path
) -> None:
    system, x = program()
    before = broken_off.with_name("work.previous.safetensors")
    broken_off.write_bytes(DAMAGES[damage](broken_off.read_bytes()))
    kept = before.read_bytes()
    with pytest.warns(
        UserWarning,
        match=r"work\.safetensors' .*: resuming from the previous one, '.*work\.previous",
    ):
        found = ais(system.model, None, x, settings=TINY, seed=5, checkpoint=broken_off)
    assert torch.equal(
        found.log_weights, ais(system.model, None, x, settings=TINY, seed=5).log_weights
    )
    assert before.read_bytes() != kept
    again = ais(
        system.model, None, x, settings=TINY, seed=5, checkpoint=broken_off
    )  # both are sound again
    assert torch.equal(again.log_weights, found.log_weights)
    assert not Path("opened").exists()


def test_the_one_before_is_never_replaced_by_a_damaged_one(
    broken_off: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, x = program()
    before = broken_off.with_name("work.previous.safetensors")
    kept = before.read_bytes()
    broken_off.write_bytes(b"")
    Interruption(monkeypatch, [2])
    with (
        pytest.warns(UserWarning, match="resuming from the previous one"),
        pytest.raises(KeyboardInterrupt),
    ):
        ais(system.model, None, x, settings=TINY, seed=5, checkpoint=broken_off)
    assert before.read_bytes() == kept  # after one write


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_where_no_checkpoint_can_be_read_it_is_said_in_one_sentence(
    damage: str, broken_off: Path
) -> None:
    system, x = program()
    before = broken_off.with_name("work.previous.safetensors")
    broken_off.write_bytes(DAMAGES[damage](broken_off.read_bytes()))
    before.write_bytes(DAMAGES[damage](before.read_bytes()))
    contents = broken_off.read_bytes(), before.read_bytes()
    for words in (
        "neither can the previous one, '.*'; remove both to start from the beginning",
        "; remove it to start from the beginning",
    ):
        with pytest.raises(
            RunError, match=rf"the checkpoint cannot be read: '.*work\.safetensors'.*{words}"
        ) as error:
            ais(system.model, None, x, settings=TINY, seed=5, checkpoint=broken_off)
        assert "\n" not in str(error.value)
        assert broken_off.read_bytes() == contents[0]
        before.unlink(missing_ok=True)


def test_what_a_killed_process_left_half_written_is_removed(broken_off: Path) -> None:
    system, x = program()
    for name in (
        ".work.123.safetensors",
        ".work.previous.99.safetensors",
        ".work.rank1.5.safetensors",
        ".other.1.safetensors",
    ):
        broken_off.with_name(name).write_bytes(b"half")
    ais(system.model, None, x, settings=TINY, seed=5, checkpoint=broken_off)
    left = {f.name for f in broken_off.parent.iterdir() if f.name.startswith(".")}
    assert left == {".work.rank1.5.safetensors", ".other.1.safetensors"}


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    system, x = ppca()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write '.*work\.safetensors'"):
        ais(
            system.model,
            None,
            x,
            settings=TINY,
            seed=0,
            checkpoint=tmp_path / "file" / "work.safetensors",
        )


def test_an_annealing_without_a_seed_goes_on_with_the_one_it_drew(
    broken_off: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, x = program()
    file = broken_off.with_name("unseeded.safetensors")
    torch.manual_seed(7)
    whole = ais(system.model, None, x, settings=TINY)
    torch.manual_seed(7)
    Interruption(monkeypatch, [20])
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            found = ais(system.model, None, x, settings=TINY, checkpoint=file)
    assert torch.equal(found.log_weights, whole.log_weights)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_a_move(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is then written, though the last time is not long ago: no move is made twice."""
    system, x = ppca()
    monkeypatch.setattr(ais_module, "rows_of", lambda args: 6)
    monkeypatch.setattr(hmc, "WARM_UP", 5)
    whole = ais(system.model, None, x, settings=TINY, seed=5)
    count, transition = [0], hmc.transition

    def interrupted(*args: Any) -> tuple[hmc.Point, Tensor]:
        count[0] += 1
        if count[0] in (3, 15, 26):
            signal.raise_signal(number)
        return transition(*args)

    def ended(given: int, frame: Any) -> None:
        raise KeyboardInterrupt(given)

    monkeypatch.setattr(hmc, "transition", interrupted)
    before = signal.signal(number, ended)
    try:
        run = partial(
            ais,
            system.model,
            None,
            x,
            settings=TINY,
            seed=5,
            checkpoint=tmp_path / "work.safetensors",
        )
        found, breaks = finished(run)
        assert signal.getsignal(number) is ended
    finally:
        signal.signal(number, before)
    assert breaks == 3
    assert torch.equal(found.log_weights, whole.log_weights)
    assert count[0] == 3 * (12 + 7)


@pytest.mark.usefixtures("default_signals")
def test_a_second_signal_does_not_wait() -> None:
    def twice() -> None:
        with DeferredSignals():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("it waited")

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("default_signals")
def test_signals_go_to_whoever_had_them() -> None:
    """A handler that comes back lets the work go on; what is ignored stays so; one that waits at
    the end comes up there.
    """
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with DeferredSignals() as held:
            for times in (1, 2):
                signal.raise_signal(signal.SIGTERM)
                assert held.is_waiting
                held.release()
                assert seen == [signal.SIGTERM] * times
            held.release()
            signal.raise_signal(signal.SIGTERM)
            assert len(seen) == 2
        assert len(seen) == 3
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with DeferredSignals() as held:
            signal.raise_signal(signal.SIGTERM)
            assert not held.is_waiting
        with DeferredSignals(active=False) as held:
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
