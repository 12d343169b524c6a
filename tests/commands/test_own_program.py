"""Counts with a covariate, a program in one file outside the package, through every command.

z ~ N(0, I₂), u ~ Gamma(a, a), x ~ Poisson(u · lib · softmax f(z)): u can be summed out, so that
quadrature over z gives log p(x).
"""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
from torch import Tensor

import pyroae
from pyroae import names, plots
from pyroae.cli import main
from pyroae.comparison.results import Cell
from pyroae.studies.comparison_tree import comparison_to_datatree
from tests.pictures import leave_out_pictures

PROGRAM = '''
"""Counts whose size is a covariate times a Gamma variable."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyroae.data.sources import DATASETS


@DATASETS.register("own-counts")
def counts(count: int = 200, features: int = 6):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(count, 2)) @ rng.normal(size=(2, features))
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    size, u = rng.uniform(10, 40, count), rng.gamma(3.0, 1 / 3.0, count)
    return rng.poisson((u * size)[:, None] * share), size


class Counts(nn.Module):
    def __init__(self, features=6, hidden=8, rate=3.0):
        super().__init__()
        self.rate = rate
        self.decoder = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, features))
        self.encoder = nn.Sequential(nn.Linear(features + 1, hidden), nn.Tanh(),
                                     nn.Linear(hidden, 6))

    def model(self, x, lib):
        pyro.module("counts", self)
        rate = torch.tensor(self.rate).to(lib)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(lib.new_zeros(2), 1.0).to_event(1))
            u = pyro.sample("u", dist.Gamma(rate, rate))
            mean = (u * lib)[..., None] * self.decoder(z).softmax(-1)
            pyro.sample("x", dist.Poisson(mean).to_event(1), obs=x)

    def guide(self, x, lib):
        pyro.module("counts", self)
        out = self.encoder(torch.cat([x.to(lib).log1p(), lib.log()[:, None]], -1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(out[:, :2], out[:, 2:4].exp()).to_event(1))
            pyro.sample("u", dist.LogNormal(out[:, 4], out[:, 5].exp()))

    def summed_out(self, x, lib):
        a, n = torch.tensor(self.rate).to(lib), x.sum(-1)
        constant = (a + n).lgamma() - a.lgamma() + a * a.log() + n * lib.log()
        constant = constant - (a + n) * (a + lib).log() - (x + 1).to(lib).lgamma().sum(-1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(lib.new_zeros(2), 1.0).to_event(1))
            pyro.factor("x", constant + (x * self.decoder(z).log_softmax(-1)).sum(-1))

    def only_z(self, x, lib):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(lib.new_zeros(len(x), 2), 1.0).to_event(1))


def build(hidden: int = 8):
    return Counts(hidden=hidden)
'''

OWN = ["--program", "own_counts.py:build", "--data", "own-counts", "--test-fraction", "0.2"]
STUDY = [
    *[*OWN, "--objectives", "iwae", "--num-particles", "4", "--seeds", "3"],
    *["--budget", "epochs:3", "--lr", "1e-2", "--batch-size", "36", "--accelerator", "cpu"],
    *["--score-particles", "200", "--score-subset", "20"],
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the program; registries and modules are afterwards as before."""
    for registry in names.REGISTRIES.values():
        monkeypatch.setattr(registry, "_choices", dict(registry._choices))
    monkeypatch.setattr(names, "_modules", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_counts.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("own_counts", None)


def figures(run: str) -> dict[str, Any]:
    rows = json.loads((Path(run) / "results.json").read_text())
    return {row["name"]: {**row, "seconds": 0} for row in rows}


def table(study: str) -> list[dict[str, str]]:
    """comparison.csv without the seconds."""
    with (Path(study) / "comparison.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def started(*argv: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment["RAY_USAGE_STATS_ENABLED"] = "0"
    command = [sys.executable, "-m", "pyroae.cli", "compare", *argv]
    return subprocess.Popen(command, env=environment)


def until_one_is_finished(study: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while not list(study.glob("*/outcome.safetensors")):
        assert process.poll() is None, "the study ended before it was killed"
        assert time.monotonic() < end
        time.sleep(0.02)


def test_train_evaluate_gradients_and_reproduce(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--objective", "iwae", "--num-particles", "4", "--epochs", "3", "--lr", "1e-2"]
    flags += ["--batch-size", "36", "--accelerator", "cpu", "--out", "run"]
    assert main(["train", *OWN, *flags]) == 0
    with monkeypatch.context() as patch:
        leave_out_pictures(patch)
        assert main(["evaluate", "run", "--num-particles", "200"]) == 0
    few = ["--objectives", "iwae,dreg", "--num-particles", "4", "--replicates", "20"]
    assert main(["gradients", "run", *few]) == 0
    with monkeypatch.context() as patch:
        leave_out_pictures(patch)
        assert main(["reproduce", "run"]) == 0
    assert figures("run-again") == figures("run")
    run = pyroae.load_run("run")
    system: Any = run.system
    x: Any = run.data.test.tensors  # type: ignore[union-attr]
    found = pyroae.log_likelihood(system.model, system.guide, x, num_particles=200, seed=0)
    assert found.nll == pytest.approx(figures("run")["nll"]["estimate"], abs=1e-6)
    tree = pyroae.to_datatree(system.model, system.guide, x, num_draws=5)
    assert tree["guide"]["z"].shape == (5, 40, 2)
    assert float(tree["guide"]["u"].min()) > 0
    plots.latent_scatter(system, x)
    plots.samples(system, 4, x=x)
    plots.kl_per_unit(pyroae.diagnose(system.model, system.guide, x))


@pytest.mark.usefixtures("no_study_figures")
def test_compare() -> None:
    """Scores as of quadrature."""
    assert main(["compare", *STUDY, "--seeds", "1", "--out", "one"]) == 0
    assert {row["score_method"] for row in table("one")} == {"local"}
    check_scores("one", Cell("iwae", 4, 0))


@pytest.mark.slow
@pytest.mark.usefixtures("no_study_figures")
def test_killed_and_resumed(here: Path) -> None:
    """With two jobs: the table of one process."""
    process = started(*STUDY, "--jobs", "2", "--out", "two")
    until_one_is_finished(here / "two", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (here / "two" / "comparison.csv").exists()
    assert main(["compare", "--resume", "two"]) == 0
    assert main(["compare", *STUDY, "--out", "one"]) == 0
    assert table("two") == table("one")
    assert len(table("one")) == 3


def check_scores(path: str, cell: Cell) -> None:
    study = pyroae.load_study(path)
    tree = comparison_to_datatree(study.comparison)
    assert cell == study.cells[-1]
    trained = study.trained(cell)
    system: Any = trained.system
    x = held_out_of(study.path / f"iwae-k4-seed{cell.seed}")
    again = pyroae.log_likelihood(system.model, system.guide, x, num_particles=200, seed=0)
    score = trained.outcome.score
    assert score.log_px.equal(again.log_px)
    in_tree = tree["outcomes"]["log_px"].sel(objective="iwae", particles=4, seed=cell.seed)
    assert in_tree.to_numpy().tolist() == again.log_px.tolist()
    correction: Any = score.correction
    index = correction.index[:4]
    exact = of_quadrature(system, tuple(t[index] for t in x))
    weak = again.log_px[index].double() - exact
    strong = correction.log_px[:4].double() - exact
    assert strong.abs().max() < 4 * correction.se[:4].max() + 0.01
    assert strong.abs().max() < 0.1 < weak.abs().max()


def held_out_of(run: Path) -> tuple[Tensor, ...]:
    parts: Any = pyroae.load_run(run).data.test
    return tuple(parts.tensors)


def of_quadrature(system: Any, x: tuple[Tensor, ...]) -> Tensor:
    system.double()
    return pyroae.quadrature(system.summed_out, system.only_z, tuple(t.double() for t in x)).log_px


@pytest.mark.slow
def test_on_ray() -> None:
    assert started(*STUDY, "--executor", "ray", "--out", "there").wait(300) == 0
    assert main(["compare", *STUDY, "--out", "here"]) == 0
    assert table("there") == table("here")


GLOBAL = '''
"""The mean of Gaussian data, unknown."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal


def model(x):
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(theta[..., None], torch.ones(2)).to_event(1), obs=x)


def build():
    return model, AutoNormal(model, init_scale=0.01)
'''


def test_global_latents(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Held-out log p(x) under q(θ), which is narrow: that of a Gaussian with the learned mean."""
    (here / "own_mean.py").write_text(GLOBAL)
    x = np.random.default_rng(0).normal(1.5, 1.0, (100, 2)).astype(np.float32)
    np.save(here / "x.npy", x)
    own = ["--program", "own_mean.py:build", "--data", "x.npy", "--test-fraction", "0.2"]
    more = ["--epochs", "20", "--lr", "5e-2", "--batch-size", "72", "--num-particles", "8"]
    assert main(["train", *own, *more, "--out", "run"]) == 0
    assert main(["evaluate", "run", "--num-particles", "100"]) == 0
    held_out: Any = pyroae.load_run("run").data.test
    theta = pyro.param("AutoNormal.locs.theta").item()
    assert theta > 0.5  # it starts at about 0
    exact = 0.5 * (held_out.x - theta).square().sum(-1).mean().item() + math.log(2 * math.pi)
    assert figures("run")["nll"]["estimate"] == pytest.approx(exact, abs=0.02)
