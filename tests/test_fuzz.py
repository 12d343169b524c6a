"""Whatever is given is used or refused in one sentence: configurations, arrays, files, commands;
`make study` tries 2,500.
"""

import io
import os
import tempfile
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from datetime import date, datetime
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pyroae import cli, zoo
from pyroae._names import NAMES
from pyroae.config import BINARIZATIONS, SCHEDULES, RunConfig, parse_yaml
from pyroae.data.dataset import Dataset
from pyroae.data.loading import load
from pyroae.errors import PyroaeError
from pyroae.objectives import parse_objective
from pyroae.runs.contents import STATE
from pyroae.runs.run import Run
from pyroae.runtime.files import read_tensors
from pyroae.studies.study import Study
from pyroae.training.preflight import check
from pyroae.training.snapshots import WEIGHTS

pytestmark = pytest.mark.usefixtures("few_pictures")

TRIES = settings(
    max_examples=int(os.environ.get("PYROAE_TRIES", "60")),
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=3),
)
SIZED = ("latent", "hidden", "num_particles")
"""Numbers that ask for memory: small, or more than any machine has."""
HUGE = (
    st.integers(-(2**70), 99)
    | st.integers(2**40, 2**70)
    | st.none()
    | st.text(max_size=8)
    | st.floats()
)
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "system": st.sampled_from(NAMES["system"]),
    "objective": st.sampled_from(
        [
            *NAMES["objective"],
            "iwae:num_particles=3",
            "renyi:alpha=nan",
            "iwae+score",
            "jvi:order=9",
            "x+y",
        ]
    ),
    "bound": st.none() | st.sampled_from(NAMES["bound"]),
    "gradient": st.none() | st.sampled_from(NAMES["gradient"]),
    "map": st.none() | st.sampled_from(NAMES["map"]),
    "binarize": st.none() | st.sampled_from(BINARIZATIONS),
    "activation": st.sampled_from(NAMES["activation"]),
    "schedule": st.sampled_from(SCHEDULES),
    "optimizer": st.sampled_from(
        ["Adam", "SGD", "LBFGS", "adamw", "SparseAdam", "Muon", "Nothing"]
    ),
    "optimizer_args": st.dictionaries(
        st.sampled_from(["momentum", "betas", "eps", "x"]), ODD, max_size=2
    ),
    "prior": st.none()
    | st.sampled_from(
        ["flat", "normal", "laplace", "laplace:rate=-1", "laplace:rate=0", "mixture"]
    ),
    "posterior": st.none()
    | st.sampled_from(
        [
            "point",
            "soft-threshold",
            "top-k",
            "diagonal",
            "exact-linear",
            "bernoulli",
            "categorical:categories=1",
        ]
    ),
    "likelihood": st.none()
    | st.sampled_from(["bernoulli", "normal", "normal:scale=0", "continuous-bernoulli", "poisson"]),
    "corruption": st.none()
    | st.sampled_from(["masking", "gaussian:scale=-1", "masking:probability=2", "none", "salt"]),
    "latent": st.integers(-1, 6),
    "hidden": st.none() | st.lists(st.integers(-1, 9) | st.integers(2**40, 2**70), max_size=3),
    "num_particles": st.integers(0, 4),
    "lr": st.floats(-1, 1e3),
    "precision": st.sampled_from(["32-true", "64-true", "bf16-mixed", "16-true", "8"]),
    "accelerator": st.sampled_from(["cpu", "auto", "cuda", "tpu", "none"]),
    "batch_size": st.integers(-1, 200),
    "epochs": st.integers(-1, 3),
    "kl_warmup": st.integers(-1, 3),
    "tied": st.booleans(),
    "nonfinite": st.sampled_from(["stop", "skip", "go"]),
    "devices": st.sampled_from([1, 1, 1, 0, -2]),
    "strategy": st.sampled_from(["auto", "auto", "ddp", "fsdp", "none"]),
    "value_range": st.none() | st.lists(st.floats(), min_size=1, max_size=3),
}
SETTINGS = st.dictionaries(st.sampled_from(sorted(LIKELY)), st.none(), max_size=6).flatmap(
    lambda names: st.fixed_dictionaries(
        {
            name: st.one_of(
                LIKELY[name], LIKELY[name], LIKELY[name], HUGE if name in SIZED else ODD
            )
            for name in names
        }
    )
)
IMAGES = {
    "grey": torch.rand(30, 12),
    "black and white": (torch.rand(30, 12) < 0.5).float(),
    "real": torch.randn(30, 12),
}


def refused_or(work: Callable[[], Any]) -> Any:
    """What it gives, or None where it is refused in one sentence; any other error is the test's
    failure.
    """
    try:
        return work()
    except PyroaeError as refusal:
        said = str(refusal).strip()
    assert said
    assert "\n" not in said
    return None


@TRIES
@given(values=SETTINGS, images=st.sampled_from(sorted(IMAGES)))
def test_configurations(values: dict[str, Any], images: str) -> None:
    """Settings, right and wrong, up to the first step of what they describe."""

    def work() -> None:
        config = RunConfig.from_mapping(values)
        assert RunConfig.from_mapping(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config
        binarize: Any = config.binarize or "none"
        data = load(Dataset.from_array(IMAGES[images]), binarize=binarize, valid=0, test=0)
        system = zoo.from_config(config, data.train)
        check(
            system,
            data.train,
            None,
            parse_objective(config.estimator, config.num_particles),
            config.training,
        )

    refused_or(work)


@TRIES
@given(
    values=arrays.arrays(
        st.one_of(
            arrays.floating_dtypes(),
            arrays.integer_dtypes(),
            arrays.unsigned_integer_dtypes(),
            st.just(np.dtype(bool)),
            arrays.complex_number_dtypes(),
            arrays.unicode_string_dtypes(max_len=3),
            st.just(np.dtype("datetime64[s]")),
        ),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
    ),
    binarize=st.sampled_from(BINARIZATIONS),
    shares=st.tuples(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5)),
    limits=st.none() | st.tuples(st.floats(), st.floats()),
    seed=st.integers(-1, 2**40),
)
@example(np.zeros((1, 1), np.float16), "none", (0.0, 0.0), (-3.4028235677973366e38, 0.0), 0)
def test_arrays(
    values: Any, binarize: Any, shares: tuple[float, float], limits: Any, seed: int
) -> None:
    """Arrays of every type and shape as data."""

    def work() -> None:
        splits = load(
            values,
            binarize=binarize,
            valid=shares[0],
            test=shares[1],
            value_range=limits,
            seed=seed,
        )
        parts = [part for part in (splits.train, splits.valid, splits.test) if part is not None]
        assert sum(map(len, parts)) == len(values)
        assert all(torch.isfinite(part.x).all() for part in parts)

    refused_or(work)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of every kind that pyroae reads, as they should be."""
    folder = tmp_path_factory.mktemp("written")
    values = np.random.default_rng(0).random((20, 3))
    np.save(folder / "x.npy", values)
    np.savez(folder / "x.npz", x=values, labels=np.arange(20))
    frame = pd.DataFrame(values, columns=["a", "b", "c"]).assign(label=range(20))
    frame.to_csv(folder / "x.csv", index=False)
    frame.to_parquet(folder / "x.parquet")
    run = ["train", "--latent", "2", "--hidden", "5", "--epochs", "2", "--out", str(folder / "run")]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        assert cli.main(run) == 0
        assert (
            cli.main(["evaluate", str(folder / "run"), "--num-particles", "5", "--num-data", "10"])
            == 0
        )
    (folder / "study.yaml").write_text(
        yaml.safe_dump({"objectives": ["iwae"], "settings": {}, "budget": "epochs:1"})
    )
    files = [
        *folder.glob("x.*"),
        folder / "study.yaml",
        *(folder / "run").glob("*.yaml"),
        folder / "run" / "results.json",
    ]
    files += [
        folder / "run" / "checkpoints" / f"{name}.safetensors"
        for name in ("last", "previous", "best")
    ]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@TRIES
@given(data=st.data())
def test_files(written: dict[str, bytes], data: st.DataObject) -> None:
    """Files that are cut, flipped, swapped or noise, in the place of every file that pyroae
    reads.
    """
    name = data.draw(st.sampled_from(sorted(written)))
    content = bytearray(written[name])
    how = data.draw(st.sampled_from(["cut", "flip", "noise", "other", "insert"]))
    if how == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    elif how == "flip":
        for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
            content[at] ^= data.draw(st.integers(1, 255))
    elif how == "noise":
        content = bytearray(data.draw(st.binary(max_size=200)))
    elif how == "other":
        content = bytearray(written[data.draw(st.sampled_from(sorted(written)))])
    else:
        at = data.draw(st.integers(0, len(content)))
        content[at:at] = data.draw(st.binary(min_size=1, max_size=30))
    with tempfile.TemporaryDirectory() as folder:
        for other, whole in written.items():
            file = Path(folder) / other
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bytes(content) if other == name else whole)
        read(Path(folder), name)
        if name.endswith(".safetensors") and how != "other" and bytes(content) != written[name]:
            kind = WEIGHTS if "best" in name else STATE
            assert refused_or(lambda: read_tensors(Path(folder) / name, kind)) is None


def read(folder: Path, name: str) -> None:
    """The file by every way that reads it."""
    if name.startswith("x."):
        refused_or(lambda: load(folder / name))
        return
    if name == "study.yaml":
        refused_or(lambda: Study.read(folder))
        return
    run = refused_or(lambda: Run(folder / "run"))
    if run is not None:
        for work in (
            run.state,
            lambda: run.state("previous"),
            lambda: run.autoencoder("best"),
            run.autoencoder,
            run.results,
        ):
            refused_or(work)
    refused_or(lambda: read_tensors(folder / name, STATE))


WORDS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        [
            "--resume",
            "--out",
            "--checkpoint",
            "last",
            "best",
            "previous",
            "digits",
            "mnist",
            "x.npy",
            "--num-data",
        ]
    ),
    st.sampled_from(
        [
            "0",
            "-1",
            "1e9",
            "nan",
            "inf",
            "1,2",
            "a=b",
            "true",
            "--overwrite",
            "--config",
            "--seed",
            "--help",
            "--",
        ]
    ),
    st.sampled_from([f"--{name.replace('_', '-')}" for name in RunConfig.__dataclass_fields__]),
)


@TRIES
@given(
    command=st.sampled_from(
        [
            "train",
            "evaluate",
            "compare",
            "gradients",
            "sample",
            "reconstruct",
            "encode",
            "report",
            "reproduce",
        ]
    ),
    words=st.lists(WORDS, max_size=5),
    run=st.sampled_from(["run", "empty", "missing", "file"]),
)
def test_commands(written: dict[str, bytes], command: str, words: list[str], run: str) -> None:
    """Commands with options that make no sense: exit status 2 and one sentence, or the help."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "empty").mkdir()
        (place / "file").write_text("mine")
        for name in ("config.yaml", "checkpoints/last.safetensors", "checkpoints/best.safetensors"):
            file = place / "run" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(written[f"run/{name}"])
        own = (
            ["--resume", str(place / run), "--epochs", "1"]
            if command in ("train", "compare")
            else [str(place / run)]
        )
        out, err = io.StringIO(), io.StringIO()
        kept = [
            w
            for w in words
            if not w.startswith(("--accelerator", "--devices", "--num-nodes", "--strategy"))
        ]
        few = ["--num-data", "1"] if command in ("reconstruct", "encode") else []
        limits = {
            "evaluate": ["--num-particles", "0"],
            "gradients": ["--replicates", "0"],
            "sample": ["--num", "0"],
        }
        with chdir(place), redirect_stdout(out), redirect_stderr(err):
            try:
                status = cli.main([command, *own, *kept, *few, *limits.get(command, [])])
            except SystemExit as stop:
                status = int(stop.code or 0)
        assert status in (0, 2)
        assert status == 0 or err.getvalue().strip()
        assert "Traceback" not in err.getvalue()
        assert (place / "file").read_text() == "mine"


@TRIES
@given(text=st.text(max_size=60))
def test_yaml(text: str) -> None:
    """Any text as YAML gives plain values, whatever its tags ask for."""
    todo = [refused_or(lambda: parse_yaml(text))]
    while todo:
        value = todo.pop()
        assert type(value) in (
            NoneType,
            bool,
            int,
            float,
            str,
            bytes,
            date,
            datetime,
            list,
            dict,
            set,
        )
        if isinstance(value, dict):
            todo += [*value.keys(), *value.values()]
        elif isinstance(value, list | set):
            todo += value
