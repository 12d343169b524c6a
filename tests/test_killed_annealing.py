"""An annealing whose process is killed, whatever it does at the moment, goes on to the bits of one that never was."""

import multiprocessing
import random
import time
from pathlib import Path

import pytest
import torch

from pyroae import zoo
from pyroae.evaluation import ais as ais_module
from pyroae.evaluation import checkpoint, hmc
from pyroae.evaluation.ais import AISSettings, bdmc
from pyroae.nn import MLP

WORK = "work.safetensors"
SECONDS = 3.0
"""Of work between all the kills together, at the most."""


def _anneal(folder: str, compile: bool) -> None:
    """Write at every move: most of the time goes into that."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    system, x = zoo.vae(6, latent=2, encoder=MLP((5,))), (torch.rand(5, 6) < 0.4).float()
    checkpoint.SAVE_EVERY = 0.0
    ais_module.rows_of = lambda args: 6  # blocks of 2, 2 and 1
    hmc.WARM_UP = 5
    file = Path(folder) / WORK
    settings = AISSettings(3, 25, leapfrog_steps=2)
    found = bdmc(system.model, None, x, settings=settings, seed=5, compile=compile, checkpoint=file)
    torch.save((found.forward.log_weights, found.reverse_log_weights, found.x["x"]), Path(folder) / "found.pt")


def killed(folder: Path, kills: int, compile: bool, seed: int) -> int:
    """Start again and again, killing so often, each time a while after work was first written; how often it was alive then."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_killed_annealing"])
    folder.mkdir()
    moments, hits = random.Random(seed), 0
    for attempt in range(kills + 1):
        process = context.Process(target=_anneal, args=(str(folder), compile))
        started = time.time()
        process.start()
        file = folder / WORK
        while attempt < kills and process.is_alive():
            if file.exists() and file.stat().st_mtime > started:
                time.sleep(moments.uniform(0, SECONDS / kills))
                process.kill()
                break
            time.sleep(0.001)
        process.join(300)
        hits += process.exitcode == -9
    assert process.exitcode == 0
    return hits


def assert_the_same(tmp_path: Path, kills: int, compile: bool) -> None:
    assert killed(tmp_path / "whole", 0, compile, 0) == 0
    hits = killed(tmp_path / "killed", kills, compile, 1)
    assert hits >= 0.8 * kills
    one, other = (torch.load(tmp_path / name / "found.pt") for name in ("whole", "killed"))
    for ours, theirs in zip(one, other, strict=True):
        assert torch.equal(ours, theirs)
    names = {file.name for file in (tmp_path / "killed").iterdir()}
    assert names == {WORK, "work.previous.safetensors", "found.pt"}


def test_an_annealing_is_killed(tmp_path: Path) -> None:
    assert_the_same(tmp_path, kills=4, compile=False)


@pytest.mark.slow
def test_an_annealing_is_killed_at_many_moments(tmp_path: Path) -> None:
    assert_the_same(tmp_path, kills=20, compile=False)


@pytest.mark.slow
def test_a_compiled_annealing_is_killed(tmp_path: Path) -> None:
    assert_the_same(tmp_path, kills=3, compile=True)
