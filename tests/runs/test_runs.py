"""The run directory: what is written is read back; nothing is overwritten or half-written."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import yaml

from pyroae import zoo
from pyroae.config import RunConfig
from pyroae.data.loading import Splits, load
from pyroae.errors import ConfigError, RunError
from pyroae.evaluation.summary import Result
from pyroae.runs.run import Run, device_of
from pyroae.runtime.files import write_whole
from pyroae.training.fitting import fit
from pyroae.training.state import State

CONFIG = RunConfig(latent=2, hidden=(10,), epochs=3)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load("digits", binarize="dynamic")


@pytest.fixture
def run(tmp_path: Path, splits: Splits) -> Run:
    run = Run.create(tmp_path / "run", CONFIG, splits)
    fit(
        zoo.from_config(CONFIG, splits.train),
        splits,
        config=CONFIG.training,
        on_epoch=run.save,
        progress=False,
    )
    return run


def test_config_and_record(run: Run, splits: Splits) -> None:
    again = Run(run.path)
    assert again.config == CONFIG
    assert again.fingerprint == splits.fingerprint
    assert again.shape == (8, 8)
    record = yaml.safe_load((run.path / "config.yaml").read_text())
    assert (
        record["versions"]["torch"] == torch.__version__.split("+")[0]
        or record["versions"]["torch"] in torch.__version__
    )


@pytest.mark.parametrize(
    "config", [CONFIG, CONFIG.but(optimizer="LBFGS"), CONFIG.but(optimizer="SGD")]
)
def test_state_round_trip(tmp_path: Path, splits: Splits, config: RunConfig) -> None:
    run = Run.create(tmp_path / "run", config, splits)
    states: list[State] = []

    def keep(state: State) -> None:
        states.append(state)
        run.save(state)

    few = Splits(splits.train.first(200), splits.valid, None, splits.fingerprint, "dynamic")
    fit(
        zoo.from_config(config, splits.train),
        few,
        config=config.training,
        on_epoch=keep,
        progress=False,
    )
    found = run.state()
    assert as_text(found.history) == as_text(states[-1].history)
    assert found.best_epoch == states[-1].best_epoch > 0
    for name, value in states[-1].weights.items():
        assert torch.equal(value, found.weights[name])
        assert torch.equal(states[-1].best_weights[name], found.best_weights[name])
    assert torch.equal(found.random["cpu"], states[-1].random["cpu"])
    assert str(found.optimizer["state"].keys()) == str(states[-1].optimizer["state"].keys())
    longer = fit(
        zoo.from_config(config, splits.train),
        few,
        config=config.but(epochs=4).training,
        state=found,
        progress=False,
    )
    assert len(longer.history) == 4


def test_best_and_last(run: Run) -> None:
    last = torch.cat([p.flatten() for p in run.autoencoder("last").parameters()])
    best = torch.cat([p.flatten() for p in run.autoencoder("best").parameters()])
    kept = torch.cat([p.flatten() for p in run.autoencoder().parameters()])
    state = run.state()
    assert torch.equal(kept, best)
    assert torch.equal(
        last,
        torch.cat([state.weights[n].flatten() for n, _ in run.autoencoder().named_parameters()]),
    )
    assert not run.autoencoder().training


def test_taken_missing_and_broken(run: Run, splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match="holds a run already: give --overwrite to replace it, or --resume"
    ):
        Run.create(run.path, CONFIG, splits)
    with pytest.raises(RunError, match="holds no run"):
        Run(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="is a file, not a directory"):
        Run.create(tmp_path / "file", CONFIG, splits)
    assert (tmp_path / "file").read_text() == "mine"
    checkpoint = run.path / "checkpoints" / "last.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(
        RunError,
        match=r"last\.safetensors' is damaged, .*; "
        "the checkpoint 'previous', of the end of epoch 2, is intact",
    ):
        run.state()
    (run.path / "config.yaml").write_text("latent: [")
    with pytest.raises(RunError, match=r"cannot be used: the configuration .* is not YAML"):
        Run(run.path)


def test_a_checkpoint_of_another_system(run: Run, splits: Splits) -> None:
    run.write_config(CONFIG.but(latent=5), splits)
    with pytest.raises(RunError, match="belongs to another system"):
        Run(run.path).autoencoder()


def test_overwriting_removes_the_run_and_nothing_else(run: Run, splits: Splits) -> None:
    (run.path / "notes.txt").write_text("mine")
    run.write_results([Result("nll", 1.0, 0.1, 10, 5, 0.1)])
    fresh = Run.create(run.path, CONFIG, splits, overwrite=True)
    assert (run.path / "notes.txt").read_text() == "mine"
    assert fresh.results() == []
    with pytest.raises(RunError, match="nothing has been saved there"):
        fresh.state()


def as_text(rows: Iterable[object]) -> list[str]:
    """All fields of dataclasses: nan is not equal to itself, but its text is."""
    return [str(vars(row)) for row in rows]


def test_results(run: Run) -> None:
    part = ("mnist", "test", "best")
    results = [
        Result("nll", 92.1, 0.8, 1000, 5000, 3.2, "is", 0.01, *part),
        Result("active_units", 19.0, math.nan, 1000, 0, 1.0, "guide", math.nan, *part),
    ]
    run.write_results(results)
    rows = json.loads((run.path / "results.json").read_text())
    assert rows[0] == {
        "name": "nll",
        "estimate": 92.1,
        "se": 0.8,
        "num_data": 1000,
        "num_particles": 5000,
        "seconds": 3.2,
        "method": "is",
        "monte_carlo_se": 0.01,
        "data": "mnist",
        "split": "test",
        "checkpoint": "best",
    }
    assert rows[1]["se"] is None
    assert as_text(run.results()) == as_text(results)
    again = Result("nll", 92.2, 0.8, 1000, 5000, 3.2, "is", 0.01, *part)
    run.write_results([again])
    assert as_text(run.results()) == as_text([again, results[1]])
    (run.path / "results.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        run.results()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("old")

    def fail(file: Path) -> None:
        file.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_device() -> None:
    assert device_of("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="the device 'abacus' cannot be used"):
        device_of("abacus")
