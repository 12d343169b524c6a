"""What goes wrong is said in one sentence, and loses nothing."""

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae import cli, zoo
from pyroae.compilation import step_graphs as compiler
from pyroae.config import TrainConfig
from pyroae.data.batching import rows_of_batch
from pyroae.data.dataset import Dataset
from pyroae.errors import ConfigError, NonFiniteLossError
from pyroae.runs.run import Run
from pyroae.runtime.files import locked
from pyroae.training.fitting import data_for, fit
from pyroae.training.state import State
from tests.commands.test_full_disk import full_disk

pytestmark = pytest.mark.usefixtures("few_pictures")

SEED = next(
    s
    for s in range(99)
    if not {17, 41} & {*rows_of_batch(Dataset.from_array(torch.randn(60, 1)), 10, s, 1, 0)}
)
SMALL = ["--latent", "2", "--hidden", "10"]


def fails(capsys: Any, *command: object) -> str:
    capsys.readouterr()
    assert cli.main([str(part) for part in command]) == 2
    said: str = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.fixture
def run(tmp_path: Path) -> Path:
    assert cli.main(["train", *SMALL, "--epochs", "2", "--out", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


def everything(path: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()
    }


# Losses that are not finite.


def model(x: Tensor, y: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        slope = pyro.param("slope", torch.tensor(1.0))
        pyro.sample("x", dist.Normal(slope * z, 1.0), obs=x)
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.where(x > 50, torch.tensor(math.nan), y))


def guide(x: Tensor, y: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("shift", torch.tensor(0.0)) * x, 1.0))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, generator=generator)
    x[[17, 41]] = (
        100.0  # in no first batch of the seeds below: that is run with all of Pyro's checks
    )
    return x, torch.randn(60, generator=generator)


@pytest.mark.parametrize("compiled", [False, True])
def test_step_batch_datum_and_site_are_named(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bad step is found again by taking the steps before it once more."""
    monkeypatch.setattr(compiler, "inductor", lambda graph, *_, **settings: graph)
    config = TrainConfig(epochs=3, batch_size=10, lr=0.1, seed=SEED, compile=compiled)
    states: list[State] = []
    pyro.clear_param_store()
    with pytest.raises(NonFiniteLossError) as found:
        fit((model, guide), data(), config=config, on_epoch=states.append, progress=False)
    error, arguments = (
        found.value,
        data_for(zoo.ppca(2, latent=1), Dataset.from_array(torch.randn(60, 2))),
    )
    batches = [rows_of_batch(arguments, 10, SEED, 1, number) for number in range(6)]
    first = next(number for number, rows in enumerate(batches) if {17, 41} & {*rows})
    bad = [row for row in batches[first] if row in (17, 41)]
    assert (error.step, error.site, error.batch) == (first + 1, "y", tuple(batches[first]))
    assert f"at step {first + 1}, in epoch 1" in str(error)
    rows_in_words = ", ".join(map(str, bad))
    assert f"'y' of the model is not finite, for the rows {rows_in_words} of the training" in str(
        error
    )
    assert "the initial weights were kept" in str(error)
    assert (pyro.param("slope").item(), pyro.param("shift").item()) == (1.0, 0.0)


def test_a_density_that_is_not_finite_is_blamed_on_its_datum() -> None:
    """A value outside of single precision once it is squared."""
    pyro.clear_param_store()
    x, y = data()
    y[[17, 41]] = 1e30
    config = TrainConfig(epochs=1, batch_size=10, seed=SEED)
    with pytest.raises(
        NonFiniteLossError,
        match=r"the site .y. of the model has no finite log-density, for the rows (17|41)",
    ):
        fit((model, guide), (x.clamp(max=2), y), config=config, progress=False)


def test_weights_that_a_gradient_ruined_are_named() -> None:
    """Their loss is finite, and that of no later step would be."""

    class Ruin(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return grads[0] * math.nan if torch.rand(()) < 0.2 else grads[0]

    def ruined(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample(
                "x", dist.Normal(Ruin.apply(pyro.param("slope", torch.tensor(1.0))) * z, 1.0), obs=x
            )

    pyro.clear_param_store()
    x, y = (t.clamp(max=2) for t in data())
    with pytest.raises(
        NonFiniteLossError,
        match=r"the weights 'store\.slope' were no longer finite, made so by the gradient",
    ):
        fit((ruined, guide), (x, y), config=TrainConfig(epochs=9, batch_size=10), progress=False)
    assert math.isfinite(pyro.param("slope").item())


@pytest.mark.parametrize("compiled", [False, True])
def test_steps_are_left_out_and_counted(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "inductor", lambda graph, *_, **settings: graph)
    config = TrainConfig(
        epochs=4, batch_size=10, lr=0.05, seed=SEED, nonfinite="skip", compile=compiled
    )
    pyro.clear_param_store()
    states: list[State] = []
    result = fit((model, guide), data(), config=config, on_epoch=states.append, progress=False)
    rows = [
        rows_of_batch(Dataset.from_array(torch.randn(60, 1)), 10, SEED, e, b)
        for e in range(1, 5)
        for b in range(6)
    ]
    bad = [bool({17, 41} & {*batch}) for batch in rows]
    assert result.skipped == sum(bad) > 4
    assert all(math.isfinite(epoch.train_nelbo) for epoch in result.history)
    assert pyro.param("slope").item() != 1.0
    assert [s.progressed.skipped for s in states] == [sum(bad[: 6 * e]) for e in range(1, 5)]
    with pytest.raises(ConfigError, match="not LBFGS"):
        TrainConfig(nonfinite="skip", optimizer="LBFGS")


# Directories and disks.


def test_a_full_disk(run: Path, tmp_path: Path, capsys: Any) -> None:
    """The limit of a file's size stands for it: the training stops in one sentence, with the state
    before.
    """
    before = [Run(run).checkpoint(name).read_bytes() for name in ("last", "previous")]
    with full_disk(20_000):
        said = fails(capsys, "train", "--resume", run, "--epochs", 5).strip()
    assert re.fullmatch(
        rf"pyroae train: cannot write '{run}/checkpoints/(best|last)\.safetensors': File too large",
        said,
    )
    assert [Run(run).checkpoint(name).read_bytes() for name in ("last", "previous")] == before
    assert cli.main(["train", "--resume", str(run), "--epochs", "5"]) == 0
    assert cli.main(["train", *SMALL, "--epochs", "5", "--out", str(tmp_path / "whole")]) == 0
    encoders: list[Any] = [Run(p).autoencoder("last").encoder for p in (run, tmp_path / "whole")]
    assert torch.equal(*(encoder[0].weight for encoder in encoders))


def test_directories_that_cannot_be_written(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("mine")
    said = fails(capsys, "train", *SMALL, "--epochs", 1, "--out", tmp_path / "file" / "run")
    assert "cannot write to" in said
    assert "Not a directory" in said
    said = fails(capsys, "train", *SMALL, "--epochs", 1, "--out", "/proc/run")
    assert "cannot write to '/proc/run'" in said
    assert (tmp_path / "file").read_text() == "mine"


def test_another_process_has_the_run(run: Path, capsys: Any) -> None:
    before = everything(run)
    with locked(run, "run"):
        said = fails(capsys, "train", "--resume", run, "--epochs", 5)
        assert f"another process is writing to the run '{run}'" in said
        said = fails(capsys, "train", *SMALL, "--epochs", 1, "--out", run, "--overwrite")
        assert "another process is writing" in said
    assert everything(run) == before


# Checkpoints.


def test_settings_that_were_changed_under_a_checkpoint(run: Path, capsys: Any) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.001", "lr: 0.1"))
    said = fails(capsys, "train", "--resume", run, "--epochs", 5)
    assert "has other settings than config.yaml: lr is 0.001 in it, not 0.1" in said


def test_data_that_were_changed(tmp_path: Path, capsys: Any) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((50, 4)))
    settings = ["--data", tmp_path / "x.npy", "--likelihood", "normal", *SMALL, "--batch-size", 10]
    assert (
        cli.main([*map(str, ["train", *settings, "--epochs", 2, "--out", tmp_path / "run"])]) == 0
    )
    np.save(tmp_path / "x.npy", np.random.default_rng(1).random((50, 4)))
    said = fails(capsys, "train", "--resume", tmp_path / "run", "--epochs", 3)
    assert "have changed since the run" in said


@pytest.mark.parametrize("what", ["pickle", "empty", "directory", "foreign", "flipped"])
def test_what_is_no_checkpoint(
    run: Path, capsys: Any, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    from safetensors.torch import save_file

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("touch exploded",)

    monkeypatch.chdir(run)
    for name in ("last", "previous"):
        file = Run(run).checkpoint(name)
        content = bytearray(file.read_bytes())
        content[-5] ^= 16
        file.unlink()
        if what == "directory":
            file.mkdir()
        elif what == "foreign":
            save_file({"weight": torch.zeros(3)}, file)
        else:
            file.write_bytes(
                {"pickle": pickle.dumps(Bomb()), "empty": b"", "flipped": bytes(content)}[what]
            )
    if what == "directory":
        (Run(run).checkpoint("last")).rmdir()
        (Run(run).checkpoint("last")).write_bytes(b"")
    before = everything(run)
    for command in (
        ("train", "--resume", run, "--epochs", 5),
        ("evaluate", run, "--checkpoint", "last", "--num-particles", 5),
    ):
        said = fails(capsys, *command)
        assert "last.safetensors" in said
    assert everything(run) == before
    assert not (run / "exploded").exists()
