"""Moves along an annealing path: step sizes that stay, densities that are kept; blocks of data, resumed bit for bit."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae import linear_gaussian
from pyroae.errors import ConfigError, RunError
from pyroae.evaluation import ais as ais_module
from pyroae.evaluation import annealing, checkpoint, hmc
from pyroae.evaluation.ais import AISSettings, ais, bdmc
from tests.test_ais import TINY, ppca

pytestmark = pytest.mark.usefixtures("float64")


def test_step_sizes_stay_as_the_pilot_left_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the pilot they change at each move; for the chains they are the reported ones, whatever those accept."""
    system, x = ppca()
    seen: list[tuple[int, Tensor]] = []
    transition = hmc.transition

    def watched(path: hmc.Path, point: hmc.Point, beta: float, step: Tensor, steps: int) -> tuple[hmc.Point, Tensor]:
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
        assert torch.equal(step.cpu(), found.step_sizes[segment])


def test_moves_leave_each_distribution_as_it_is() -> None:
    """From exact draws of the posterior, ten moves at β = 1 keep its mean and variance."""
    system, x = ppca(copies=4000)
    block = annealing.Block(annealing.Plan(system.model, None, 1, [0.0, 1.0], 5, 0.65, 1), (x,))
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
    """Raises KeyboardInterrupt at the given moves, counted over all calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, moments: list[int]) -> None:
        self.count, self.moments, self._transition = 0, moments, hmc.transition
        monkeypatch.setattr(hmc, "transition", self)

    def __call__(self, *args: Any) -> tuple[hmc.Point, Tensor]:
        self.count += 1
        if self.count in self.moments:
            raise KeyboardInterrupt
        return self._transition(*args)


def finished(run: Callable[[], Any]) -> tuple[Any, int]:
    """What a call gives that is made until it is not interrupted, and how often it was."""
    breaks = 0
    while True:
        try:
            return run(), breaks
        except KeyboardInterrupt:
            breaks += 1


@pytest.mark.parametrize("function", [ais, bdmc])
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
    assert not [f for f in tmp_path.iterdir() if f != file]
    for one, other in ((whole, found), (whole, function(system.model, None, x, checkpoint=file, **arguments))):
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
        ais(system.model, None, x, settings=AISSettings(3, 8, leapfrog_steps=3), seed=0, checkpoint=file)
    with pytest.raises(ConfigError, match="this one has kind = 'bdmc', not 'ais'"):
        bdmc(system.model, None, x, settings=TINY, seed=0, checkpoint=file)
    with pytest.raises(ConfigError, match="this one has data ="):
        ais(system.model, None, x + 1, settings=TINY, seed=0, checkpoint=file)
    other, _ = ppca()
    with pytest.raises(ConfigError, match="this one has data ="):
        ais(other.model, None, x, settings=TINY, seed=0, checkpoint=file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", "cut"])
def test_a_corrupt_checkpoint_is_refused_in_one_sentence(content: bytes | str, tmp_path: Path) -> None:
    system, x = ppca()
    file = tmp_path / "work.safetensors"
    ais(system.model, None, x, settings=TINY, seed=0, checkpoint=file)
    file.write_bytes(content if isinstance(content, bytes) else file.read_bytes()[:-100])
    with pytest.raises(RunError, match="cannot be read") as error:
        ais(system.model, None, x, settings=TINY, seed=0, checkpoint=file)
    assert "\n" not in str(error.value)
