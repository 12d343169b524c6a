"""Several processes: draws that are shared, trainings that take the steps of one process, their
checkpoints.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae import cli
from pyroae.config import TrainConfig
from pyroae.distributed.fabric import fabric_of
from pyroae.distributed.shared_draws import shared_draws
from pyroae.errors import ConfigError, ProgramError
from pyroae.runs.run import Run
from pyroae.runtime.processes import Share
from pyroae.training.fitting import fit
from tests.distributed.test_shared_evaluation import compare_evaluations
from tests.shares import results_in

pytestmark = pytest.mark.usefixtures("few_pictures")

QUIET = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(("size", "world"), [(10, 2), (11, 4), (3, 4), (1, 2), (7, 7)])
def test_shares_are_all_of_a_batch(size: int, world: int) -> None:
    shares = [Share(rank, world) for rank in range(world)]
    counted = [row for share in shares if share.weight(size) for row in range(size)[share.of(size)]]
    assert counted == list(range(size))
    values = torch.randn(size)
    means = [share.weight(size) * values[share.of(size)].mean() for share in shares]
    torch.testing.assert_close(torch.stack(means).mean(), values.mean())
    assert sum(share.weight(size) for share in shares) == pytest.approx(world)
    assert all(len(values[share.of(size)]) for share in shares)


# Draws.


def draws(x: Tensor) -> dict[str, Tensor]:
    """Of every kind that is the very one of one process."""
    m, s = x[:, 0], x.abs() + 0.1
    made = {
        "normal": dist.Normal(m, 1.0),
        "features": dist.Normal(x, s).to_event(1),
        "uniform": dist.Uniform(m - 5, m + 5),
        "bernoulli": dist.Bernoulli(logits=x).to_event(1),
        "categorical": dist.Categorical(logits=x),
        "categories": dist.Categorical(
            logits=x[:, None, :].expand(len(x), 17, x.shape[1])
        ).to_event(1),
        "one-hot": dist.OneHotCategorical(logits=x),
        "multivariate": dist.MultivariateNormal(x, torch.eye(x.shape[1])),
        "low-rank": dist.LowRankMultivariateNormal(x, x[..., None], torch.ones_like(x)),
        "log-normal": dist.LogNormal(m, 1.0),
        "exponential": dist.Exponential(s[:, 0]),
        "cauchy": dist.Cauchy(m, 1.0),
        "laplace": dist.Laplace(m, 1.0),
        "geometric": dist.Geometric(logits=m),
        "relaxed": dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), logits=m),
        "mixture": dist.MixtureSameFamily(dist.Categorical(logits=x), dist.Normal(x, 1.0)),
    }
    with pyro.plate("data", len(x)):
        found = {name: pyro.sample(name, fn) for name, fn in made.items()}
    with pyro.plate("particles", 19, dim=-2), pyro.plate("data", len(x), dim=-1):
        found["particles"] = pyro.sample("particles", dist.Normal(m, 1.0)).T
    return {
        **found,
        "dropout": torch.nn.functional.dropout(x),
        "global": torch.randn(23).expand(len(x), 23),
    }


@pytest.mark.parametrize(("size", "world"), [(10, 2), (11, 2), (10, 4), (2, 3), (9, 3)])
def test_shared_draws_are_those_of_one_process(size: int, world: int) -> None:
    x = torch.randn(size, 13)
    torch.manual_seed(0)
    whole, state = draws(x), torch.get_rng_state()
    for rank in range(world):
        part = Share(rank, world).of(size)
        torch.manual_seed(0)
        with shared_draws(Share(rank, world), size):
            own = draws(x[part])
        assert torch.equal(torch.get_rng_state(), state)
        for name, value in own.items():
            torch.testing.assert_close(value, whole[name][part], rtol=1e-5, atol=1e-6, msg=name)


def crossed_draws(x: Tensor) -> dict[str, Tensor]:
    """Draws in the data plate, in another plate as long as a process's part, and in both."""
    with pyro.plate("items", 5, dim=-2):
        found = {"items": pyro.sample("items", dist.Normal(torch.zeros(5, 1), 1.0)).T}
        found["classes"] = pyro.sample("classes", dist.Categorical(torch.ones(5, 1, 3))).T
        with pyro.plate("data", len(x), dim=-1):
            found["both"] = pyro.sample("both", dist.Normal(x[:, 0], 1.0)).T
    with pyro.plate("data", len(x), dim=-2), pyro.plate("more", 5, dim=-1):
        found["data first"] = pyro.sample("data first", dist.Bernoulli(logits=x))
    return {**found, "items": found["items"].expand(len(x), 5), "classes": found["classes"]}


def draws_without_size(x: Tensor) -> dict[str, Tensor]:
    """Draws in a data plate without a size, of which the last has no element for each datum."""
    with pyro.plate("data"):
        found = {
            "normal": pyro.sample("normal", dist.Normal(x[:, 0], 1.0)),
            "features": pyro.sample("features", dist.Normal(x.T, 1.0).mask(True)).T,
            "event": pyro.sample("event", dist.Normal(x, 1.0).to_event(1)),
            "class": pyro.sample("class", dist.Categorical(logits=x)),
            "shared": pyro.sample("shared", dist.Normal(0.0, 1.0)),
        }
    return {**found, "shared": found["shared"].expand(len(x))}


@pytest.mark.parametrize("draws_of", [crossed_draws, draws_without_size])
@pytest.mark.parametrize("rank", [0, 1])
def test_shared_draws_follow_the_data_plate_of_their_site(
    draws_of: Callable[[Tensor], dict[str, Tensor]], rank: int
) -> None:
    """Not the first dimension of an equal length: everything here has 5 of it, a process's part."""
    x, part = torch.randn(10, 5), Share(rank, 2).of(10)
    torch.manual_seed(0)
    whole = draws_of(x)
    torch.manual_seed(0)
    with shared_draws(Share(rank, 2), 10, plate="data"):
        own = draws_of(x[part])
    for name, value in own.items():
        expected = whole[name] if name == "classes" else whole[name][part]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("plate", ["data", None])
def test_gamma_draws_in_a_plate_without_a_size_are_each_processes_own(plate: str | None) -> None:
    found = []
    for rank in range(2):
        torch.manual_seed(0)
        with shared_draws(Share(rank, 2), 10, plate=plate), pyro.plate("data"):
            found.append(pyro.sample("g", dist.Gamma(torch.ones(5), 1.0)))
    assert not torch.equal(*found)


@pytest.mark.parametrize(
    "fn", [lambda m: dist.Gamma(m, 1.0), dist.Poisson, lambda m: dist.Beta(m, 2.0)]
)
def test_draws_that_depend_on_their_parameters_are_each_processes_own(fn: Any) -> None:
    """Right in distribution, other than another process's, and the common generator stays
    common.
    """
    found, states = [], []
    for rank in range(2):
        torch.manual_seed(0)
        with shared_draws(Share(rank, 2), 4000), pyro.plate("data", 2000):
            found.append(pyro.sample("g", fn(torch.full((2000,), 3.0))))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert not torch.equal(*found)
    mean = fn(torch.tensor(3.0)).mean
    for draw in found:
        assert (draw.mean() - mean).abs() < 5 * fn(torch.tensor(3.0)).variance.sqrt() / 2000**0.5


# Trainings.


def several(out: Path, *words: str, launcher: tuple[str, ...] = ()) -> dict[str, float]:
    command = [sys.executable, *launcher, "-m", "tests.several", str(out), *words]
    found = subprocess.run(
        command, capture_output=True, text=True, check=False, env=QUIET, timeout=300
    )
    assert found.returncode == 0, found.stderr[-3000:]
    told: dict[str, float] = json.loads(out.read_text())
    return told


@pytest.mark.long
def test_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They train as one process on the same batches, and then they evaluate to what one finds: one
    start of processes, which takes most of the time.
    """
    names = ["dreg", "pair", "sizeless", "random", "nvil"]
    found = several(tmp_path / "out", "2", "ddp", "64-true", *names, "evaluation")
    assert [*found] == names
    assert max(found.values()) < 1e-10
    torch.set_default_dtype(torch.float64)
    compare_evaluations(2, results_in(2, tmp_path), tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "names"),
    [
        (2, ["vae", "vimco", "categorical", "denoising", "optimal", "layers"]),
        (2, ["conditional", "m2"]),
        (4, ["dreg", "vimco", "denoising", "pair"]),
    ],
)
def test_they_train_as_one_process_on_the_same_batches(
    tmp_path: Path, world: int, names: list[str]
) -> None:
    """Three epochs in double precision, dynamic binarization, five batches, the last of three
    data.
    """
    found = several(tmp_path / "out", str(world), "ddp", "64-true", *names)
    assert [*found] == names
    assert max(found.values()) < 1e-10


@pytest.mark.slow
def test_fully_sharded(tmp_path: Path) -> None:
    found = several(
        tmp_path / "out", "2", "fsdp", "32-true", "dreg", "denoising", "optimal", "nvil"
    )
    assert max(found.values()) < 1e-3


@pytest.mark.slow
def test_started_by_torchrun(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    assert (
        several(tmp_path / "out", "2", "ddp", "64-true", "dreg", launcher=launcher)["dreg"] < 1e-10
    )


@pytest.mark.slow
def test_compiled(tmp_path: Path) -> None:
    names = ["compiled", "nvil compiled"]
    found = several(tmp_path / "out", "2", "ddp", "64-true", *names)
    assert max(found.values()) < 1e-6


TRAIN = "train --latent 2 --hidden 10 --epochs 2 --batch-size 200 --accelerator cpu".split()  # noqa: SIM905


def test_the_command(tmp_path: Path) -> None:
    """One directory, one line, a checkpoint that one process goes on from."""
    shared = ["--devices", "2", "--out", str(tmp_path / "two")]
    command = [sys.executable, "-m", "pyroae.cli", *TRAIN, *shared]
    found = subprocess.run(
        command, capture_output=True, text=True, check=False, env=QUIET, timeout=300
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.count("validation negative bound") == 1
    assert cli.main([*TRAIN, "--out", str(tmp_path / "one")]) == 0
    more = ["--epochs", "3", "--devices", "1"]
    assert cli.main(["train", "--resume", str(tmp_path / "two"), *more]) == 0
    assert cli.main(["train", "--resume", str(tmp_path / "one"), *more]) == 0
    one, two = (Run(tmp_path / name).autoencoder("last").state_dict() for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_the_command_evaluates(tmp_path: Path) -> None:
    assert cli.main([*TRAIN, "--out", str(tmp_path / "one")]) == 0
    evaluate = ["evaluate", str(tmp_path / "one"), "--num-particles", "100", "--num-data", "60"]
    command = [sys.executable, "-m", "pyroae.cli", *evaluate, "--devices", "2"]
    assert (
        subprocess.run(
            command, capture_output=True, text=True, check=False, env=QUIET, timeout=300
        ).returncode
        == 0
    )
    shared = [(r.name, r.estimate) for r in Run(tmp_path / "one").results()]
    assert cli.main(evaluate) == 0
    assert shared == [(r.name, r.estimate) for r in Run(tmp_path / "one").results()]


def test_what_cannot_be_shared_is_refused() -> None:
    def model(x: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("w", torch.tensor(0.0)), scale), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("scale", dist.LogNormal(pyro.param("v", torch.tensor(0.0)), 1.0))

    config = TrainConfig(epochs=1, batch_size=5, devices=2, accelerator="cpu")
    with pytest.raises(
        ProgramError,
        match="the latent site 'scale' lies outside the data plate: give the plate its full size",
    ):
        fit((model, guide), torch.randn(10), config=config, progress=False)
    for config, said in (
        (TrainConfig(strategy="dpp", accelerator="cpu"), "strategy='dpp'"),
        (
            TrainConfig(strategy="fsdp", precision="64-true", accelerator="cpu", devices=2),
            "precision '64-true'",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            fabric_of(config)
    with pytest.raises(ConfigError, match="devices must be at least 1, not 0"):
        TrainConfig(devices=0)
