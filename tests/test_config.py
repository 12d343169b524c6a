"""A configuration is checked when it is made, survives YAML, and knows the registries' names."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pyroae import config, nn, zoo
from pyroae._names import NAMES
from pyroae.config import RunConfig, TrainConfig, read_yaml
from pyroae.data.loading import load
from pyroae.errors import ConfigError
from pyroae.training import optimizers
from tests import registered_names
from tests.systems import OF_CONDITIONS

OTHER: dict[str, Any] = {
    "epochs": 7,
    "compile": True,
    "max_steps": 1000,
    "max_seconds": 60.0,
    "batch_size": 11,
    "optimizer": "SGD",
    "lr": 1e-5,
    "optimizer_args": {"momentum": 0.9, "nesterov": True},
    "schedule": "burda",
    "grad_clip": 2.0,
    "kl_warmup": 3,
    "patience": 4,
    "keep": "last",
    "snapshots": (0, 3),
    "seed": 5,
    "accelerator": "cpu",
    "precision": "64-true",
    "devices": 2,
    "num_nodes": 3,
    "strategy": "ddp",
    "nonfinite": "skip",
    "save_minutes": 0.5,
    "logger": "csv",
    "system": "m2",
    "data": "some file, with: signs.csv",
    "data_root": "elsewhere",
    "labels": "species",
    "array": "group/x",
    "value_range": (0.0, 16.0),
    "channels": "last",
    "binarize": "none",
    "valid_fraction": 0.0,
    "test_fraction": 0.25,
    "split_seed": 6,
    "objective": "analytic-kl",
    "num_particles": 8,
    "latent": (9, 4),
    "hierarchy": "top-down:widths=[7],scale=0.5",
    "map": "conv",
    "hidden": (12, 13),
    "activation": "relu",
    "tied": True,
    "prior": "laplace:rate=2",
    "posterior": "point",
    "likelihood": "normal:scale=0.1",
    "corruption": "masking:probability=0.5",
    "sparsity": 0.01,
    "condition": "labels",
    "missing": True,
    "num_labels": 50,
    "classification": 0.5,
}
PAIR = {"bound": "jvi:order=2", "gradient": "doubly-reparameterized"}
"""In place of an objective."""
PROGRAM = {"program": "tests.registered_names:table", "imports": ("json",), "scale": "none"}
"""In place of a system."""


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


# YAML


def test_other_settings_cover_every_field() -> None:
    """So that the round trip below leaves none out."""
    default = RunConfig()
    other = {**OTHER, **PAIR, **PROGRAM}
    assert [
        f.name
        for f in fields(RunConfig)
        if other.get(f.name, getattr(default, f.name)) == getattr(default, f.name)
    ] == []


@pytest.mark.parametrize(
    "values",
    [{}, OTHER, PAIR, PROGRAM, {"hidden": ()}, {"lr": 1}, {"system": "ae", "map": "linear"}],
)
def test_round_trip_through_yaml(values: dict[str, Any], tmp_path: Path) -> None:
    made = RunConfig(**values)
    assert RunConfig.from_yaml(written(tmp_path / "c.yaml", made.to_dict())) == made
    assert RunConfig.from_mapping(made.to_dict()) == made


def test_a_number_written_by_hand(tmp_path: Path) -> None:
    """1e-3 is a number to everyone but YAML 1.1, which needs 1.0e-3."""
    assert RunConfig.from_yaml(
        written(tmp_path / "c.yaml", "lr: 1e-3\ngrad_clip: 5E2")
    ) == RunConfig(lr=1e-3, grad_clip=500)


def test_flags_win(tmp_path: Path) -> None:
    path = written(tmp_path / "c.yaml", "batch-size: 50\nepochs: 3\nlatent: 4\n")
    assert RunConfig.from_yaml(path, batch_size=10, hidden=[5]) == RunConfig(
        batch_size=10, epochs=3, latent=4, hidden=(5,)
    )


def test_the_record_of_a_run_is_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "c.yaml", {"epochs": 3, **dict.fromkeys(config.RECORD, "x")})
    assert {"versions", "fingerprint"} <= set(config.RECORD)
    assert read_yaml(path) == {"epochs": 3}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("epoch: 3", "unknown setting 'epoch': did you mean 'epochs'"),
        ("1: 3", "unknown setting '1'"),
        ("epochs: three", "epochs takes int, not 'three'"),
        ("epochs:", "epochs takes int, not None"),
        ("- 1\n- 2", "holds no settings of the form 'name: value'"),
        ("", "holds no settings of the form 'name: value'"),
        ("epochs: [1", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("epochs: !!python/name:os.system", "is not YAML"),
    ],
)
def test_refused_yaml(content: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        RunConfig.from_yaml(written(tmp_path / "c.yaml", content))
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for path, words in (
        (tmp_path / "absent.yaml", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "bytes.yaml", "can't decode"),
    ):
        with pytest.raises(ConfigError, match=f"cannot read the configuration {path}: .*{words}"):
            RunConfig.from_yaml(path)


# Settings


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"batch_size": -3}, "batch_size must be at least 1, not -3"),
        ({"kl_warmup": -1}, "kl_warmup must be at least 0, not -1"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"lr": 0}, "lr must be positive, not 0"),
        ({"lr": float("nan")}, "lr must be positive, not nan"),
        ({"grad_clip": -1.0}, "grad_clip must be positive, not -1.0"),
        ({"patience": 0}, "patience must be positive, not 0"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin': did you mean 'cosine'"),
        ({"keep": "first"}, "unknown keep 'first'; known: best, last"),
        ({"epochs": 5, "kl_warmup": 6}, "kl_warmup of 6 epochs is longer than the training of 5"),
        ({"epochs": 2.5}, "epochs takes int, not 2.5"),
        ({"epochs": True}, "epochs takes int, not True"),
        ({"lr": "fast"}, "lr takes float, not 'fast'"),
        ({"lr": False}, "lr takes float, not False"),
        ({"grad_clip": "1"}, r"grad_clip takes float \| None, not '1'"),
        ({"optimizer": None}, "optimizer takes str, not None"),
        ({"optimizer_args": [1]}, r"optimizer_args takes dict, not \[1\]"),
    ],
)
@pytest.mark.parametrize("kind", [TrainConfig, RunConfig])
def test_refused_training_settings(
    kind: type[TrainConfig], values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        kind(**values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"latent": 0}, "latent must be at least 1, not 0"),
        ({"latent": (3, 0)}, "latent must be at least 1, not 0"),
        ({"latent": ()}, "latent takes the size of at least one layer, not an empty list"),
        ({"latent": (3, 1.5)}, r"latent takes int \| tuple\[int, ...\], not \(3, 1.5\)"),
        ({"hierarchy": "top-dwn"}, "unknown hierarchy 'top-dwn': did you mean 'top-down'"),
        ({"num_particles": 0}, "num_particles must be at least 1, not 0"),
        ({"split_seed": -1}, "split_seed must be at least 0, not -1"),
        ({"system": "vea"}, "unknown system 'vea': did you mean 'vae'"),
        (
            {"objective": "trace-elbow"},
            "unknown objective 'trace-elbow': did you mean 'trace-elbo'",
        ),
        ({"activation": "rely"}, "unknown activation 'rely': did you mean 'relu'"),
        ({"binarize": "statick"}, "unknown binarization 'statick': did you mean 'static'"),
        ({"map": "mpl"}, "unknown map 'mpl': did you mean 'mlp'"),
        ({"hidden": (200, 0)}, "hidden must be at least 1, not 0"),
        ({"hidden": (1.5,)}, r"hidden takes tuple\[int, ...\] \| None, not \(1.5,\)"),
        ({"hidden": 200}, r"hidden takes .*, not 200"),
        ({"valid_fraction": 1.0}, r"valid_fraction must be in \[0, 1\), not 1.0"),
        ({"test_fraction": -0.1}, r"test_fraction must be in \[0, 1\), not -0.1"),
        ({"test_fraction": float("nan")}, r"test_fraction must be in \[0, 1\), not nan"),
        (
            {"value_range": (1.0, 1.0)},
            r"value_range takes two numbers, LOW below HIGH, not \(1.0, 1.0\)",
        ),
        ({"value_range": (255.0, 0.0)}, "value_range takes two numbers, LOW below HIGH"),
        ({"value_range": (0.0, 1.0, 2.0)}, "value_range takes two numbers, LOW below HIGH"),
        ({"tied": 1}, "tied takes bool, not 1"),
        ({"prior": 3}, r"prior takes str \| None, not 3"),
    ],
)
def test_refused_run_settings(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RunConfig(**values)


def test_but_changes_and_checks() -> None:
    assert RunConfig(latent=3).but(epochs=2) == RunConfig(latent=3, epochs=2)
    with pytest.raises(ConfigError, match="epochs must be at least 1"):
        RunConfig().but(epochs=0)


def test_training_part() -> None:
    settings = {f.name: OTHER[f.name] for f in fields(TrainConfig)}
    assert RunConfig(**OTHER).training == TrainConfig(**settings)
    assert type(RunConfig().training) is TrainConfig


# Names: a generated table holds them, so that the command line needs no torch


def test_names_are_those_of_the_registries() -> None:
    """After a change: python -m tests.registered_names."""
    assert registered_names.FILE.read_text() == registered_names.table()


def test_every_binarization_is_known_to_load() -> None:
    for name in config.BINARIZATIONS:
        assert load([[0.0, 1.0], [0.25, 0.75]], binarize=name, valid=0, test=0).binarize == name  # type: ignore[arg-type]


def test_every_schedule_is_known_to_training() -> None:
    """An unknown one is constant: each of the others must differ from that somewhere."""
    late = {name: optimizers.schedule(name, 0.9) for name in config.SCHEDULES}
    assert len(set(late.values())) == len(config.SCHEDULES)
    assert late["constant"] == 1


def test_config_needs_no_torch() -> None:
    code = "import sys, pyroae.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# From a configuration to a system


def test_every_setting_reaches_the_system() -> None:
    given: dict[str, Any] = {"system": "sparse-ae", "condition": None, "num_labels": None}
    given |= {"latent": 9, "hierarchy": None, "missing": False, "tied": False}
    made = zoo.from_config(RunConfig(**{**OTHER, **given}), (8, 8))
    assert made.latent == 9
    assert made.encoder_map == nn.Conv((12, 13), activation="relu", axis="last")
    assert made.decoder_map == nn.Linear(unit_norm=True)
    # A prior that is named wins over the one that `sparsity` makes.
    assert [repr(c) for c in (made.prior, made.posterior, made.likelihood, made.corruption)] == [
        "Laplace(rate=2)",
        "Point()",
        "Normal(scale=0.1, learn=False)",
        "Masking(probability=0.5)",
    ]


@pytest.mark.parametrize("name", NAMES["system"])
def test_every_system_can_be_named(name: str) -> None:
    condition = 4 if name in OF_CONDITIONS else 0
    system = zoo.from_config(RunConfig(system=name, latent=3), 6, condition)
    assert zoo.likelihood_of(RunConfig(system=name)) == system.likelihood
    c = (torch.eye(4)[:2],) if condition else ()
    assert system.encode(torch.zeros(2, 6), *c).shape == (2, 3)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"system": "ppca", "map": "mlp"},
            "the maps of ppca are linear: map 'mlp' and hidden layers do not apply",
        ),
        ({"system": "linear-ae", "hidden": (5,)}, "the maps of linear-ae are linear"),
        (
            {"latent": (3, 2)},
            r"zoo.vae has one layer of z, not \(3, 2\): layers are those of hierarchical_vae",
        ),
        (
            {"hierarchy": "top-down"},
            "the system 'vae' takes no hierarchy: 'top-down' is for hierarchical-vae",
        ),
        (
            {"system": "hierarchical-vae", "hierarchy": "top-down:scale=0"},
            "the scale of p\\(z|z2\\) must be positive and finite",
        ),
        (
            {"system": "hierarchical-vae", "posterior": "point"},
            "each of the 2 layers needs a posterior with a density",
        ),
        ({"map": "linear", "hidden": (5,)}, "a linear map has no hidden layers"),
        ({"map": "conv"}, "a conv map needs images"),
        ({"prior": "laplas"}, "unknown prior 'laplas': did you mean 'laplace'"),
        (
            {"likelihood": "normal:scale=-1"},
            "the scale of a Normal likelihood must be positive and finite, not -1",
        ),
        (
            {"system": "sparse-ae", "sparsity": 0.0},
            "the rate of a Laplace prior must be positive and finite, not 0.0",
        ),
        ({"posterior": "exact-linear", "tied": True}, "tied weights need an encoder"),
    ],
)
def test_refused_systems(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        zoo.from_config(RunConfig(**values), 4)
