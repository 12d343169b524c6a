"""Snapshots: the weights after some epochs, those of a shorter training bit for bit, kept through
interruptions, ensembles and comparisons, and read again from a run.
"""

from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyroae import cli, load_run, zoo
from pyroae.comparison.budget import Budget
from pyroae.config import Part, RunConfig, Scoring, TrainConfig
from pyroae.data.loading import Splits, load
from pyroae.errors import ConfigError, InterruptedRunError, RunError
from pyroae.objectives import TraceELBO
from pyroae.objectives.named import iwae
from pyroae.runs.run import Run
from pyroae.studies.ray_worker import pack, unpack
from pyroae.studies.study import Study
from pyroae.studies.study_config import StudyConfig, settings_of
from pyroae.studies.trainings import compare_training
from pyroae.training.checkpointing import Keeper
from pyroae.training.fitting import fit
from pyroae.training.lockstep import fit_ensemble
from pyroae.training.snapshots import read_weights
from pyroae.training.state import State
from pyroae.training.trainer import FitResult

pytestmark = pytest.mark.usefixtures("no_study_figures")

SNAPSHOTS = (0, 1, 3)


@pytest.fixture(scope="module")
def splits() -> Splits:
    digits = load("digits", binarize="dynamic")
    assert digits.valid is not None
    return Splits(
        digits.train.first(120),
        digits.valid.first(40),
        digits.valid.first(40),
        digits.fingerprint,
        "dynamic",
    )


def vae(splits: Splits, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return zoo.vae(splits.train, latent=2, hidden=(10,))


def fitted(splits: Splits, epochs: int, **settings: Any) -> FitResult:
    config = TrainConfig(epochs=epochs, batch_size=50, **settings)
    return fit(vae(splits), splits, config=config, progress=False)


def same(one: Any, two: Any) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def same_snapshots(one: Any, two: Any) -> bool:
    return one.keys() == two.keys() and all(same(one[epoch], two[epoch]) for epoch in one)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_snapshot_has_the_weights_of_a_shorter_training(splits: Splits, compile: bool) -> None:
    result = fitted(splits, 4, snapshots=SNAPSHOTS, compile=compile)
    assert tuple(result.snapshots) == SNAPSHOTS
    assert same(result.snapshots[0], vae(splits).state_dict())
    for epoch in (1, 3):
        shorter = fitted(splits, epoch, keep="last", compile=compile)
        assert same(result.snapshots[epoch], shorter.system.state_dict())
    assert not same(result.snapshots[1], result.snapshots[3])


def test_snapshots_do_not_change_a_training(splits: Splits) -> None:
    one, two = fitted(splits, 3, snapshots=SNAPSHOTS), fitted(splits, 3)
    assert same(one.system.state_dict(), two.system.state_dict())
    assert [row.valid_nelbo for row in one.history] == [row.valid_nelbo for row in two.history]
    assert not two.snapshots


def test_snapshots_are_copies(splits: Splits) -> None:
    result = fitted(splits, 1, snapshots=(0, 1))
    for parameter in result.system.parameters():
        parameter.data.zero_()
    assert same(result.snapshots[0], vae(splits).state_dict())
    assert any(value.any() for value in result.snapshots[1].values())


def test_epochs_that_are_not_completed_have_no_snapshot(splits: Splits) -> None:
    # Three steps an epoch: seven steps end within the third.
    result = fitted(splits, 5, snapshots=(0, 2, 3, 4), max_steps=7)
    assert len(result.history) == 3
    assert tuple(result.snapshots) == (0, 2)
    assert fitted(splits, 5, snapshots=(5,), max_seconds=1e-9).snapshots == {}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 3, "snapshots": (0, 4)}, "a snapshot after epoch 4 lies beyond the training"),
        ({"snapshots": (-1,)}, "snapshots are different epochs of at least 0, not"),
        ({"snapshots": (1, 1)}, "snapshots are different epochs of at least 0, not"),
        ({"snapshots": (0.5,)}, "snapshots takes tuple"),
    ],
)
def test_snapshots_that_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainConfig(**settings)


# Interruptions.


@pytest.mark.parametrize("stop", range(4))
def test_a_resumed_training_has_the_same_snapshots(
    splits: Splits, tmp_path: Path, stop: int
) -> None:
    config = RunConfig(latent=2, hidden=(10,), epochs=4, batch_size=50, snapshots=(0, 1, 4))

    def trained(run: Run, state: State | None, stop: int | None) -> FitResult:
        def save(after: State) -> None:
            run.save(after)
            if stop == len(after.history):
                raise InterruptedRunError("stopped", 2)

        with Keeper(save, "") as checkpoints:
            return fit(
                vae(splits),
                splits,
                config=config.training,
                state=state,
                on_epoch=checkpoints,
                progress=False,
            )

    whole = trained(Run.create(tmp_path / "whole", config, splits), None, None)
    run = Run.create(tmp_path / "run", config, splits)
    with pytest.raises(InterruptedRunError):
        trained(run, None, stop)
    state = run.state()
    assert tuple(state.snapshots) == tuple(epoch for epoch in (0, 1, 4) if epoch <= stop)
    resumed = trained(run, state, None)
    assert same_snapshots(resumed.snapshots, whole.snapshots)
    assert run.snapshots == Run(tmp_path / "whole").snapshots == (0, 1, 4)
    for epoch in run.snapshots:
        weights = read_weights(run.checkpoint(str(epoch)))
        assert same(weights, whole.snapshots[epoch])


def test_a_damaged_snapshot_is_named(splits: Splits, tmp_path: Path) -> None:
    config = RunConfig(latent=2, hidden=(10,), epochs=1, snapshots=(0, 1))
    run = Run.create(tmp_path / "run", config, splits)
    fit(vae(splits), splits, config=config.training, on_epoch=run.save, progress=False)
    run.checkpoint("epoch-1").write_bytes(b"damaged")
    assert len(run.history()) == 1  # which does not read it
    with pytest.raises(RunError, match=r"epoch-0001.safetensors' is damaged"):
        run.state()
    with pytest.raises(RunError, match=r"epoch-0001.safetensors' is damaged"):
        run.autoencoder("1")


# Ensembles and comparisons.


@pytest.fixture
def as_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of ensembles are run as they are traced: their code is tested elsewhere."""
    monkeypatch.setattr("pyroae.compilation.shared_code.inductor", lambda graph, *_, **__: graph)


@pytest.mark.usefixtures("as_traced")
def test_members_of_an_ensemble_have_snapshots(splits: Splits) -> None:
    config = TrainConfig(epochs=3, batch_size=50, snapshots=SNAPSHOTS, compile=True)
    seen: list[tuple[int, int]] = []
    results = fit_ensemble(
        [vae(splits, seed) for seed in (0, 1)],
        splits,
        TraceELBO(),
        config,
        seeds=(0, 1),
        on_epoch=lambda i, state: seen.append((i, len(state.history))),
        progress=False,
    )
    assert seen == [(i, epoch) for epoch in range(4) for i in (0, 1)]
    for seed, result in enumerate(results):
        assert tuple(result.snapshots) == SNAPSHOTS
        assert same(result.snapshots[0], vae(splits, seed).state_dict())
        alone = fit(
            vae(splits, seed),
            splits,
            config=TrainConfig(epochs=1, batch_size=50, seed=seed, keep="last"),
            progress=False,
        ).system.state_dict()
        for name, value in result.snapshots[1].items():
            torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("as_traced")
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])  # a training, or an ensemble
def test_a_comparison_keeps_snapshots_in_its_directory(
    splits: Splits, tmp_path: Path, seeds: tuple[int, ...]
) -> None:
    settings: dict[str, Any] = {
        "budget": Budget("epochs", 2),
        "seeds": seeds,
        "scoring": Scoring(num_particles=10, num_data=20),
        "config": TrainConfig(batch_size=50, keep="last", snapshots=(0, 2), compile=len(seeds) > 1),
        "progress": False,
    }
    make = partial(zoo.vae, splits.train, latent=2, hidden=(10,))
    with pytest.raises(ConfigError, match="kept in its directory: give a path"):
        compare_training(make, splits, {"iwae": iwae}, **settings)
    compare_training(make, splits, {"iwae": iwae}, out=tmp_path, **settings)
    for seed in seeds:
        folder = tmp_path / f"iwae-k1-seed{seed}" / "checkpoints"
        assert same(read_weights(folder / "epoch-0000.safetensors"), vae(splits, seed).state_dict())
        assert (folder / "epoch-0002.safetensors").is_file()


def test_a_cell_of_a_study_keeps_and_sends_its_snapshots(splits: Splits, tmp_path: Path) -> None:
    given = {"latent": 2, "hidden": [10], "batch_size": 50, "snapshots": [0, 2]}
    config = StudyConfig(
        settings_of(given),
        objectives=("iwae",),
        num_particles=(1, 4),
        seeds=(0,),
        budget="evaluations:300",
        scoring=Scoring(num_particles=10, num_data=20),
    )
    study = Study(tmp_path / "study", config, splits)
    one, four = study.check()  # 300 evaluations: 2.5 epochs with K = 1, less than one with K = 4
    for cell in (one, four):
        assert not isinstance(study.run(cell, progress=False), str)
    assert Run(study.place(one)).snapshots == (0, 2)
    assert Run(study.place(four)).snapshots == (0,)
    unpack(tmp_path / "there", pack(study.place(one)))
    there = Run(tmp_path / "there")
    assert there.snapshots == (0, 2)
    assert same(
        there.autoencoder("epoch-2").state_dict(),
        Run(study.place(one)).autoencoder("2").state_dict(),
    )


def test_a_study_refuses_snapshots_beyond_its_budget(splits: Splits, tmp_path: Path) -> None:
    config = StudyConfig(settings_of({"latent": 2, "snapshots": [0, 9]}), budget="epochs:2")
    with pytest.raises(ConfigError, match="a snapshot after epoch 9 lies beyond the training of 2"):
        Study(tmp_path, config, splits).check()
    assert not list(tmp_path.iterdir())


# Runs.


def test_the_snapshots_of_a_run_are_systems(tmp_path: Path) -> None:
    settings = "--data digits --latent 2 --hidden 10 --epochs 2 --snapshots 0,2"
    out = tmp_path / "run"
    assert cli.main(["train", *settings.split(), "--out", str(out)]) == 0
    loaded = load_run(out)
    found = {epoch: system.state_dict() for epoch, system in loaded.snapshots}
    assert tuple(found) == loaded.snapshots.epochs == (0, 2)
    assert len(loaded.snapshots) == 2
    torch.manual_seed(0)
    assert same(found[0], zoo.system_from(loaded.config, loaded.data.train).state_dict())
    assert same(found[2], load_run(out, "last").system.state_dict())
    assert same(found[0], load_run(out, "epoch-0").system.state_dict())


def program(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(slope + z[..., None], 1.0).to_event(1), obs=x)


def encoder(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc + x.mean(-1), 1.0))


def build() -> tuple[Any, Any]:
    return program, encoder


def test_parameters_of_the_store_are_those_of_the_snapshot(tmp_path: Path) -> None:
    options = f"--program {__file__}:build --data digits --epochs 2 --snapshots 0,1 --keep last"
    assert cli.main(["train", *options.split(), "--out", str(tmp_path / "run")]) == 0
    loaded = load_run(tmp_path / "run")
    kept = pyro.param("slope").item()
    slopes = [pyro.param("slope").item() for _ in loaded.snapshots]
    assert slopes[0] == 0.0
    assert len({*slopes, kept}) == 3
    assert pyro.param("slope").item() == kept


def test_a_run_may_be_extended_by_later_snapshots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, settings = tmp_path / "run", "--data digits --latent 2 --hidden 10"
    line = ["train", *settings.split(), "--epochs", "2", "--snapshots", "1", "--out", str(out)]
    assert cli.main(line) == 0
    more = ["train", "--resume", str(out), "--epochs", "3", "--snapshots"]
    assert cli.main([*more, "1,2"]) == 2
    assert "a snapshot after epoch 2 can no longer be taken" in capsys.readouterr().err
    assert Run(out).config.snapshots == (1,)
    assert cli.main([*more, "1,3"]) == 0
    assert Run(out).snapshots == (1, 3)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train --epochs 3 --snapshots 4 --out {new}", "lies beyond the training of 3 epochs"),
        ("train --snapshots one --out {new}", "invalid comma-separated numbers value: 'one'"),
        ("encode {run} --checkpoint epoch-7", "has no snapshot of epoch 7: it has 0, 1"),
        ("encode {run} --checkpoint all", "the checkpoint 'all' is for evaluate and gradients"),
        ("encode {run} --checkpoint lest", "unknown checkpoint 'lest': did you mean 'last'?"),
    ],
)
def test_bad_input_is_one_sentence(
    line: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = "--data digits --latent 2 --hidden 10 --epochs 1 --snapshots 0,1"
    assert cli.main(["train", *run.split(), "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    given = line.format(run=tmp_path / "run", new=tmp_path / "new").split()
    try:
        status = cli.main(given)
    except SystemExit as stop:  # by the parser
        status = int(stop.code or 0)
    found = capsys.readouterr()
    assert status == 2
    assert words in found.err
    assert found.err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_names_of_checkpoints() -> None:
    for name in (None, "best", "last", "previous", "all", "epoch-10", "10"):
        assert Part(checkpoint=name).checkpoint == name
    with pytest.raises(ConfigError, match="unknown checkpoint 'epoch-x'"):
        Part(checkpoint="epoch-x")
