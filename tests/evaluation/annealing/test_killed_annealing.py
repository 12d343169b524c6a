"""An annealing whose process is killed, whatever it does at the moment, goes on to the bits of one
that never was.
"""

import multiprocessing
import random
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pyroae import zoo
from pyroae.config import AISSettings
from pyroae.evaluation.annealing import bounds as ais_module
from pyroae.evaluation.annealing import checkpoint, hmc
from pyroae.evaluation.annealing.bounds import bdmc
from pyroae.nn import MLP

WORK = "work.safetensors"
SETTINGS = AISSettings(3, 25, leapfrog_steps=2)
WRITES = 3 * (5 + 24 + 2 * 25)
"""Moves of the pilot, of the way there and of the way back, of three blocks."""


def _anneal(folder: str, compile: bool) -> None:
    """Write at every move: most of the time goes into that."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    system, x = zoo.vae(6, latent=2, encoder=MLP((5,))), (torch.rand(5, 6) < 0.4).float()
    checkpoint.SAVE_EVERY = 0.0
    ais_module.rows_of = lambda args, compiled=False: 6  # blocks of 2, 2 and 1
    hmc.WARM_UP = 5
    file = Path(folder) / WORK
    found = bdmc(system.model, None, x, settings=SETTINGS, seed=5, compile=compile, checkpoint=file)
    torch.save(
        (found.forward.log_weights, found.reverse_log_weights, found.x["x"]),
        Path(folder) / "found.pt",
    )


def killed(folder: Path, kills: int, compile: bool) -> int:
    """Start again and again, killing each time soon after so many writes; how often it was alive
    then.

    All kills together come in three quarters of the writes that the work takes, at the most.
    """
    moments, hits = random.Random(1), 0
    for _ in range(kills):
        process = started(folder, compile)
        wait_for_writes(process, folder / WORK, moments.randint(1, int(0.75 * WRITES / kills)))
        time.sleep(moments.uniform(0, 0.01))
        process.kill()
        process.join()
        hits += process.exitcode == -9
    return hits


def wait_for_writes(process: ForkServerProcess, file: Path, count: int) -> None:
    """Each write makes another file of the same name."""
    seen = inode(file)
    while process.is_alive() and count:
        now = inode(file)
        count, seen = count - (now != seen), now
        time.sleep(0.0005)


def inode(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns


def started(folder: Path, compile: bool) -> ForkServerProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.evaluation.annealing.test_killed_annealing"])
    folder.mkdir(exist_ok=True)
    process = context.Process(target=_anneal, args=(str(folder), compile))
    process.start()
    return process


def finished(folder: Path, compile: bool) -> tuple[Tensor, ...]:
    process = started(folder, compile)
    process.join()
    assert process.exitcode == 0
    assert {file.name for file in folder.iterdir()} == {
        WORK,
        "work.previous.safetensors",
        "found.pt",
    }
    found: tuple[Tensor, ...] = torch.load(folder / "found.pt")
    return found


def assert_the_same(tmp_path: Path, kills: int, compile: bool) -> None:
    whole = finished(tmp_path / "whole", compile)
    assert killed(tmp_path / "killed", kills, compile) == kills
    for ours, theirs in zip(whole, finished(tmp_path / "killed", compile), strict=True):
        assert torch.equal(ours, theirs)


SLOW = [
    pytest.param(kills, compiled, marks=pytest.mark.slow)
    for kills, compiled in ((20, False), (3, True))
]


@pytest.mark.long
@pytest.mark.parametrize(("kills", "compile"), [(3, False), *SLOW])
def test_an_annealing_is_killed_at_random_moments(
    tmp_path: Path, kills: int, compile: bool
) -> None:
    assert_the_same(tmp_path, kills, compile)
