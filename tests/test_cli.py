"""The command line: every command on a small run, and bad input refused in one sentence with status
2, nothing lost.
"""

import csv
import json
import shlex
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import arviz
import numpy as np
import pytest
import torch
import yaml

from pyroae.cli import main, make_parser
from pyroae.config import AISSettings, EvaluationSettings, GradientSettings, Part, RunConfig
from pyroae.errors import InterruptedRunError
from tests.pictures import in_full, leave_out_pictures

PLAIN = "what was written before is kept; start again with"
ANNEALED = "the annealing so far is saved; continue with"
SMALL = ["--latent", "2", "--hidden", "16", "--epochs", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE on the digits, trained and evaluated; tests do not change it."""
    path = tmp_path_factory.mktemp("cli") / "vae"
    assert main(["train", *SMALL, "--out", str(path)]) == 0
    with in_full():
        assert main(["evaluate", str(path), "--num-particles", "20", "--num-data", "30"]) == 0
    return path


def snapshot(path: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()
    }


# What the commands do.


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys, pyroae.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.endswith("False\n")
    for command in (
        "data",
        "demo",
        "train",
        "evaluate",
        "gradients",
        "compare",
        "sample",
        "reconstruct",
        "encode",
        "report",
    ):
        assert command in out


def test_commands_run_as_a_module() -> None:
    words = [sys.executable, "-m", "pyroae", "train", "--steps", "x"]
    found = subprocess.run(words, check=False, capture_output=True, text=True)
    assert found.returncode == 2
    assert "--steps" in found.stderr


HEAVY = {
    *("arviz", "arviz_stats", "h5py", "lightning_fabric", "matplotlib", "pandas", "ray", "scipy"),
    *("sklearn", "sympy", "torch._dynamo", "torch._inductor", "triton", "xarray"),
}
"""Modules that take long to import, by any of which a command is slow to start."""


NEEDED: dict[str, set[str]] = {
    "papers --list": set(),
    "papers burda-2015": set(),
    "encode RUN --out z.csv": {"torch"},
    "report RUN": {"torch", "h5py"},
    "sample RUN --out x.png": {"torch", "matplotlib"},
}
"""What commands import of the heavy modules."""


def test_a_command_imports_what_it_uses(run: Path, tmp_path: Path) -> None:
    """Where torch is imported, a line says so at once.

    The first command that needs it leaves it to the others, each in a process that is forked there.
    """
    code = (
        "import os, sys\nfrom pyroae.cli import main\n"
        "for i, line in enumerate(sys.argv[1:]):\n"
        "    child = 0 if i < 3 else os.fork()\n"
        "    if child == 0:\n"
        "        main(line.split())\n"
        "        print(*sys.modules, file=open(f'modules{i}', 'w'))\n"
        "        i < 3 or os._exit(0)\n"
        "    else:\n"
        "        os.waitpid(child, 0)\n"
    )
    lines = [line.replace("RUN", str(run)) for line in NEEDED]
    command = [sys.executable, "-c", code, *lines]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    for i, needed in enumerate(NEEDED.values()):
        loaded = set((tmp_path / f"modules{i}").read_text().split())
        assert (HEAVY | {"torch"}) & loaded == needed, lines[i]
    said = [line for line in done.stderr.splitlines() if "loading" in line]
    assert said == ["pyroae encode: loading torch and Pyro"]


def test_nothing_is_said_of_imports_that_are_done(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["encode", str(run), "--out", str(tmp_path / "z.csv")]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("module", "work", "words", "sentence"),
    [
        ("evaluate", "evaluate_run", ["evaluate", "RUN"], PLAIN),
        ("evaluate", "evaluate_run", ["evaluate", "RUN", "--method", "is,ais"], ANNEALED),
        ("gradients", "measure_slopes", ["gradients", "RUN"], PLAIN),
        ("calibrate", "measure_calibration", ["calibrate", "RUN"], PLAIN),
        ("reproduce", "train_run", ["reproduce", "RUN", "--out", "OUT"], PLAIN),
        ("outputs", "trained", ["encode", "RUN"], PLAIN),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_signal_ends_a_command_with_one_sentence(
    module: str,
    work: str,
    words: list[str],
    sentence: str,
    number: signal.Signals,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is kept, the command that goes on, and the exit status of a shell."""

    def stop(*_: object, **__: object) -> None:
        signal.raise_signal(number)
        pytest.fail("the signal was ignored")

    monkeypatch.setattr(f"pyroae.commands.{module}.{work}", stop)
    places = {"RUN": str(run), "OUT": str(tmp_path / "again")}
    words = [places.get(word, word) for word in words]
    before = snapshot(run)
    assert main(words) == 128 + number
    again = shlex.join(["pyroae", *words, *(["--overwrite"] if words[0] == "reproduce" else [])])
    error = capsys.readouterr().err
    assert error == f"pyroae {words[0]}: stopped by {number.name}; {sentence}: {again}\n"
    assert snapshot(run) == before


def test_a_training_that_reproduces_is_not_resumed(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise InterruptedRunError("resume with: pyroae train --resume again", signal.SIGTERM)

    monkeypatch.setattr("pyroae.commands.reproduce.train_run", stop)
    assert main(["reproduce", str(run), "--out", str(tmp_path / "again"), "--overwrite"]) == 143
    error = capsys.readouterr().err
    assert "train --resume" not in error
    assert error.count("--overwrite") == 1


def test_options_are_the_fields_of_the_settings() -> None:
    """Each has one name in Python, in YAML and on the command line, and its text as help."""
    for command, kinds in (
        ("train", [RunConfig]),
        ("evaluate", [EvaluationSettings, AISSettings, Part]),
        ("gradients", [GradientSettings, Part]),
    ):
        needed = [] if command == "train" else ["RUN"]
        parser = vars(make_parser().parse_args([command, *needed]))["parser"]
        options = {action.dest.rpartition(".")[2]: action for action in parser._actions}
        for field in (f for kind in kinds for f in fields(kind) if "help" in f.metadata):
            assert field.metadata["help"] in options[field.name].help
            flag = field.metadata.get("flag") or f"--{field.name.replace('_', '-')}"
            assert flag in options[field.name].option_strings


def test_train_and_evaluate_write_the_run_directory(run: Path) -> None:
    files = set(snapshot(run))
    for name in ("config.yaml", "metrics.csv", "results.json", "evaluation.nc", "report.html"):
        assert name in files
    for figure in (
        "training_curves",
        "reconstructions",
        "samples",
        "manifold",
        "latent_scatter",
        "kl_per_unit",
        "filters",
        "predictive_check",
        "interpolation",
        "traversals",
    ):
        assert f"figures/{figure}.png" in files
    assert {"checkpoints/best.safetensors", "checkpoints/last.safetensors"} <= files
    assert [name for name in files if "/." in name or name.startswith(".")] == [
        ".lock"
    ]  # no temporary file is left
    results = {row["name"]: row for row in json.loads((run / "results.json").read_text())}
    assert {"nll", "nelbo", "rate", "distortion", "active_units"} <= set(results)
    assert results["nll"]["num_data"] == 30
    assert results["nll"]["num_particles"] == 20
    assert 0 < results["nll"]["estimate"] < results["nelbo"]["estimate"] < 64 * np.log(2)
    assert results["nelbo"]["estimate"] == pytest.approx(
        results["rate"]["estimate"] + results["distortion"]["estimate"]
    )
    tree = arviz.from_netcdf(run / "evaluation.nc")
    assert -float(tree["per_datum"]["log_px"].mean()) == pytest.approx(results["nll"]["estimate"])
    tree.close()
    assert len(list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))) == 2
    assert "data:image/png;base64" in (run / "report.html").read_text()


@pytest.mark.slow
def test_evaluation_repeats(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_pictures(monkeypatch)
    before = json.loads((run / "results.json").read_text())
    main(["evaluate", str(run), "--num-particles", "20", "--num-data", "30"])
    after = json.loads((run / "results.json").read_text())
    for one, other in zip(before, after, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_configuration_file_gives_the_same_run(run: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, "epochs": 7}))
    again = [
        "train",
        "--config",
        str(tmp_path / "config.yaml"),
        "--epochs",
        "2",
        "--out",
        str(tmp_path / "again"),
    ]
    assert main(again) == 0  # the flag wins
    one, other = (
        (path / "metrics.csv").read_text().splitlines() for path in (run, tmp_path / "again")
    )
    for left, right in zip(csv.DictReader(one), csv.DictReader(other), strict=True):
        assert {**left, "seconds": ""} == {**right, "seconds": ""}


def test_resume_is_one_long_run(tmp_path: Path) -> None:
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    assert main(["train", *SMALL, "--epochs", "4", "--out", whole]) == 0
    assert main(["train", *SMALL, "--epochs", "2", "--out", parts]) == 0
    assert main(["train", "--resume", parts, "--epochs", "3"]) == 0
    assert main(["train", "--out", parts, "--resume", "--epochs", "4"]) == 0
    from pyroae.runs.run import Run

    one, other = (Run(path).state() for path in (whole, parts))
    assert [e.train_nelbo for e in one.history] == [e.train_nelbo for e in other.history]
    for name, value in one.weights.items():
        assert torch.equal(value, other.weights[name])


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".png"])
@pytest.mark.parametrize("command", ["sample", "reconstruct"])
def test_sample_and_reconstruct(run: Path, tmp_path: Path, command: str, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    count = ["--num", "9"] if command == "sample" else ["--num-data", "9"]
    assert main([command, str(run), *count, "--out", str(out)]) == 0
    if suffix == ".png":
        assert out.read_bytes().startswith(b"\x89PNG")
    else:
        values = np.load(out) if suffix == ".npy" else np.loadtxt(out, delimiter=",", skiprows=1)
        assert values.shape == (9, 64)
        assert 0 < values.min() < values.max() < 1


def test_encode(run: Path, tmp_path: Path) -> None:
    for suffix in (".npy", ".csv", ".nc"):
        assert (
            main(["encode", str(run), "--num-data", "9", "--out", str(tmp_path / f"z{suffix}")])
            == 0
        )
    values = np.load(tmp_path / "z.npy")
    rows = list(csv.DictReader((tmp_path / "z.csv").read_text().splitlines()))
    np.testing.assert_allclose([[float(r["z0"]), float(r["z1"])] for r in rows], values, rtol=1e-6)
    assert {r["label"] for r in rows} <= set("0123456789")
    tree = arviz.from_netcdf(tmp_path / "z.nc")
    assert dict(tree["guide"]["z"].sizes) == {"sample": 100, "datum": 9, "latent": 2}
    tree.close()


SYSTEMS = [
    ["--system", "linear-ae"],
    ["--system", "ae", "--likelihood", "normal:scale=0.5", "--tied"],
    ["--system", "ae", "--map", "conv", "--hidden", "4,8"],
    ["--system", "sparse-ae", "--sparsity", "0.3", "--latent", "70"],
    ["--system", "denoising-ae", "--corruption", "salt-and-pepper:probability=0.2"],
    ["--system", "ppca", "--posterior", "exact-linear", "--precision", "64-true"],
    [
        "--system",
        "vae",
        "--prior",
        "laplace:rate=1.5",
        "--objective",
        "analytic-kl",
        "--num-particles",
        "2",
    ],
    [
        "--system",
        "vae",
        "--likelihood",
        "continuous-bernoulli",
        "--optimizer",
        "SGD",
        "--optimizer-args",
        "momentum=0.9",
    ],
]


IN_FULL = [SYSTEMS[2], SYSTEMS[5]]
"""For `make test`: one without a likelihood, one with an exact one; their pictures are drawn."""


@pytest.mark.parametrize(
    "flags",
    [pytest.param(flags, marks=() if flags in IN_FULL else pytest.mark.slow) for flags in SYSTEMS],
    ids=lambda f: "-".join(f[1::2])[:40],
)
def test_every_system(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    maps = [] if flags[1] in ("linear-ae", "ppca") or "--map" in flags else ["--hidden", "16"]
    assert (
        main(
            [
                "train",
                "--latent",
                "2",
                *maps,
                "--epochs",
                "1",
                *flags,
                "--out",
                str(tmp_path / "run"),
            ]
        )
        == 0
    )
    with in_full() if flags[1] in ("ppca", "ae") else nullcontext():
        assert main(["evaluate", str(tmp_path / "run"), "--num-particles", "10"]) == 0
    out = capsys.readouterr().out
    proper = flags[1] in ("vae", "ppca")
    assert ("NLL" in out) == proper
    assert ("no log-likelihood: log p(x)" in out) == (not proper)
    assert (tmp_path / "run" / "figures" / "reconstructions.png").is_file()


def test_a_bound_and_a_gradient(tmp_path: Path) -> None:
    """From options and from YAML, where it is the same run."""
    pair = ["--bound", "jvi", "--gradient", "doubly-reparameterized", "--num-particles", "4"]
    assert main(["train", *SMALL, *pair, "--out", str(tmp_path / "a")]) == 0
    (tmp_path / "c.yaml").write_text(
        "bound: jvi\ngradient: doubly-reparameterized\nnum_particles: 4\n"
    )
    assert (
        main(["train", *SMALL, "--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "b")])
        == 0
    )
    text = ["--objective", "jvi+doubly-reparameterized", "--num-particles", "4"]
    assert main(["train", *SMALL, *text, "--out", str(tmp_path / "c")]) == 0
    weights = [
        (tmp_path / run / "checkpoints" / "best.safetensors").read_bytes()[-1000:] for run in "abc"
    ]
    assert weights[0] == weights[1] == weights[2]


@pytest.mark.slow
def test_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_pictures(monkeypatch)
    table = np.random.default_rng(0).normal(size=(200, 5))
    np.savetxt(tmp_path / "mine.csv", table, delimiter=",", header="a,b,c,d,e", comments="")
    data = [
        "--data",
        str(tmp_path / "mine.csv"),
        "--system",
        "ppca",
        "--latent",
        "2",
        "--epochs",
        "60",
        "--lr",
        "0.05",
    ]
    assert main(["train", *data, "--out", str(tmp_path / "run")]) == 0
    assert (
        main(["evaluate", str(tmp_path / "run"), "--method", "is,exact", "--num-particles", "500"])
        == 0
    )
    results = {
        row["name"]: row for row in json.loads((tmp_path / "run" / "results.json").read_text())
    }
    assert results["nll"]["estimate"] == pytest.approx(results["nll_exact"]["estimate"], abs=0.1)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_other_parts_of_the_data(run: Path, tmp_path: Path, split: str) -> None:
    assert main(["encode", str(run), "--split", split, "--out", str(tmp_path / "z.npy")]) == 0
    assert len(np.load(tmp_path / "z.npy")) == {"train": 1455, "valid": 162}[split]


# Bad input.


def nan_file(path: Path) -> list[str]:
    values = np.ones((20, 4))
    values[3, 2] = np.nan
    np.save(path / "nan.npy", values)
    return ["--data", str(path / "nan.npy")]


def saved(path: Path, values: object) -> list[str]:
    np.save(path / "data.npy", np.asarray(values))
    return ["--data", str(path / "data.npy")]


def garbage(path: Path) -> list[str]:
    (path / "bad.npy").write_bytes(b"no array")
    return ["--data", str(path / "bad.npy")]


TRAIN = {
    "unknown system": (["--system", "vea"], "unknown system 'vea': did you mean 'vae'?"),
    "unknown objective": (
        ["--objective", "trace-elb"],
        "unknown objective 'trace-elb': did you mean 'trace-elbo'?",
    ),
    "unknown bound": (["--bound", "jvj"], "unknown bound 'jvj': did you mean 'jvi'?"),
    "unknown gradient": (
        ["--bound", "iwae", "--gradient", "scor"],
        "unknown gradient 'scor': did you mean 'score'?",
    ),
    "a gradient alone": (["--gradient", "score"], "the gradient 'score' needs its bound"),
    "an objective and a bound": (
        ["--objective", "iwae", "--bound", "iwae"],
        "give either the objective 'iwae' or the bound",
    ),
    "an invalid pair": (
        ["--bound", "iwae", "--gradient", "covariance"],
        "the covariance gradient is defined for TVO, not for IWAE",
    ),
    "one particle for VIMCO": (
        ["--objective", "vimco"],
        "needs num_particles of at least 2, not 1",
    ),
    "one particle for JVI": (["--bound", "jvi"], "JVI needs num_particles of at least 2, not 1"),
    "one particle for TVO": (
        ["--objective", "tvo"],
        "TVO needs num_particles of at least 2, not 1",
    ),
    "no particles": (["--num-particles", "0"], "num_particles must be at least 1, not 0"),
    "beta out of range": (
        ["--objective", "ciwae:beta=2"],
        "beta of CIWAE must be in [0, 1], not 2",
    ),
    "negative beta": (
        ["--objective", "beta-elbo:beta=-1"],
        "beta of a β-ELBO must be at least 0 and finite, not -1",
    ),
    "alpha out of range": (
        ["--objective", "renyi:alpha=.inf"],
        "alpha of a Rényi bound must be below infinity, not inf",
    ),
    "pathwise on a discrete site": (
        ["--system", "discrete-vae", "--objective", "dreg"],
        "the guide's site 'z' (Bernoulli) has none",
    ),
    "a score of a Delta": (
        ["--system", "ae", "--objective", "vimco", "--num-particles", "4"],
        "its site 'z' is a Delta",
    ),
    "unknown data": (["--data", "digit"], "unknown dataset 'digit': did you mean 'digits'?"),
    "unknown prior": (["--prior", "laplase"], "unknown prior 'laplase': did you mean 'laplace'?"),
    "unknown setting of a prior": (["--prior", "laplace:rte=1"], "did you mean 'rate'?"),
    "unknown option": (
        ["--epoch", "5"],
        "unrecognized arguments: --epoch 5; did you mean --epochs?",
    ),
    "one label": (
        ["--label", "species"],
        "unrecognized arguments: --label species; did you mean --labels?",
    ),
    "unknown optimizer": (
        ["--optimizer", "Adan"],
        "unknown optimizer 'Adan': did you mean 'Adam'?",
    ),
    "unknown activation": (
        ["--activation", "tahn"],
        "unknown activation 'tahn': did you mean 'tanh'?",
    ),
    "unknown binarization": (
        ["--binarize", "dynamik"],
        "unknown binarization 'dynamik': did you mean 'dynamic'?",
    ),
    "no whole number": (["--epochs", "ten"], "argument --epochs: invalid int value: 'ten'"),
    "latent 0": (["--latent", "0"], "latent must be at least 1, not 0"),
    "no width": (["--hidden", "200,0"], "hidden must be at least 1, not 0"),
    "negative rate": (["--lr", "-1"], "lr must be positive, not -1.0"),
    "large batch": (
        ["--batch-size", "5000"],
        "batch_size of 5000 is larger than the 1455 training data",
    ),
    "long warm-up": (
        ["--kl-warmup", "9", "--epochs", "3"],
        "kl_warmup of 9 epochs is longer than the training of 3",
    ),
    "grey": (
        ["--binarize", "none"],
        "grey values, for which a Bernoulli has no density: binarize them",
    ),
    "missing file": (["--data", "nowhere/data.npy"], "there is no file 'nowhere/data.npy'"),
    "missing configuration": (
        ["--config", "nowhere.yaml"],
        "cannot read the configuration nowhere.yaml",
    ),
    "maps of a linear system": (
        ["--system", "ppca", "--hidden", "5"],
        "the maps of ppca are linear",
    ),
    "a rate without a sparse autoencoder": (
        ["--sparsity", "2"],
        "sparsity makes no difference for the system 'vae': leave it out or choose another",
    ),
    "a sparse decoder": (
        ["--system", "sparse-ae", "--tied", "--sparsity", "-1"],
        "must be positive",
    ),
}
FILES = {
    "unreadable file": (garbage, "cannot read"),
    "NaN": (nan_file, "holds nan at row 3, column 2: every value must be finite"),
    "infinite": (lambda p: saved(p, [[1.0, np.inf], [0.0, 1.0]]), "holds inf at row 0, column 1"),
    "constant": (lambda p: saved(p, np.full((20, 3), 0.5)), "is constant: every value is 0.5"),
    "empty": (lambda p: saved(p, np.ones((0, 3))), "is empty"),
    "one-dimensional": (
        lambda p: saved(p, np.arange(5.0)),
        "has the shape (5,); one row per datum is needed",
    ),
    "outside of [0, 1]": (
        lambda p: [*saved(p, np.arange(800.0).reshape(200, 4)), "--binarize", "none"],
        "values from",
    ),
    "binarizing what is not grey": (
        lambda p: [*saved(p, np.arange(800.0).reshape(200, 4)), "--binarize", "dynamic"],
        "binarization needs values in [0, 1]",
    ),
    "too few": (lambda p: saved(p, np.eye(2)), "leave none to train on"),
}


def refused(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: object = main(argv)
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("pyroae")
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("case", list(TRAIN))
def test_bad_options(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags, words = TRAIN[case]
    refused(["train", *flags, "--out", str(tmp_path / "run")], words, capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", list(FILES))
def test_bad_files(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, words = FILES[case]
    refused(
        ["train", "--latent", "2", *make(tmp_path), "--out", str(tmp_path / "run")], words, capsys
    )
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(run)
    refused(["train", *SMALL, "--out", str(run)], "holds a run already: give --overwrite", capsys)
    refused(
        ["train", "--latent", "0", "--out", str(run), "--overwrite"],
        "latent must be at least 1",
        capsys,
    )
    refused(
        ["train", "--data", "nowhere.npy", "--out", str(run), "--overwrite"],
        "there is no file",
        capsys,
    )
    refused(
        ["train", "--resume", str(run), "--latent", "5", "--epochs", "9"],
        "latent is 2 there",
        capsys,
    )
    refused(
        ["train", "--resume", str(run)], "has finished its 2 epochs: give more --epochs", capsys
    )
    refused(["train", "--resume", str(run), "--out", "elsewhere"], "in its own directory", capsys)
    refused(["train", "--resume", str(run), "--overwrite"], "leave out --overwrite", capsys)
    refused(["train", "--resume"], "name that", capsys)
    refused(["trian"], "invalid choice: 'trian'", capsys)
    refused(["trian"], "did you mean train?", capsys)
    refused(["train"], "give --out", capsys)
    assert snapshot(run) == before


def test_bad_use_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(run)
    refused(["evaluate", str(tmp_path)], "holds no run", capsys)
    refused(
        ["evaluate", str(run), "--method", "iss"],
        "unknown method 'iss': did you mean 'is'?",
        capsys,
    )
    refused(
        ["evaluate", str(run), "--method", "exact"],
        "the likelihood is Bernoulli(), not Normal",
        capsys,
    )
    refused(
        ["evaluate", str(run), "--num-particles", "0"], "num_particles must be at least 1", capsys
    )
    refused(["evaluate", str(run), "--num-data", "0"], "num_data must be at least 1", capsys)
    wide = saved(tmp_path, np.tile(np.eye(100)[:, :5], (1, 1)))
    refused(["evaluate", str(run), *wide], "5 features per datum; the run", capsys)
    refused(["sample", str(run), "--num", "0"], "num must be at least 1", capsys)
    refused(["sample", str(run), "--out", str(tmp_path / "x.tiff")], ".npy and .csv are", capsys)
    assert snapshot(run) == before


def test_changed_data_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = saved(tmp_path, np.random.default_rng(0).random((50, 3)))
    flags = [
        "train",
        "--system",
        "ppca",
        "--latent",
        "1",
        "--batch-size",
        "10",
        "--epochs",
        "1",
        *data,
    ]
    assert main([*flags, "--out", str(tmp_path / "run")]) == 0
    saved(tmp_path, np.random.default_rng(1).random((50, 3)))
    capsys.readouterr()
    refused(["evaluate", str(tmp_path / "run")], "have changed since the run", capsys)
    refused(
        ["train", "--resume", str(tmp_path / "run"), "--epochs", "2"],
        "have changed since the run",
        capsys,
    )


def test_no_samples_from_a_flat_prior(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "train",
                "--system",
                "linear-ae",
                "--latent",
                "2",
                "--epochs",
                "1",
                "--out",
                str(tmp_path / "ae"),
            ]
        )
        == 0
    )
    capsys.readouterr()
    refused(["sample", str(tmp_path / "ae")], "a Flat prior cannot be sampled", capsys)
    refused(["evaluate", str(tmp_path / "ae"), "--method", "is"], "log p(x) is undefined", capsys)


def test_a_loss_that_becomes_nan_keeps_the_last_good_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--system",
        "linear-ae",
        "--latent",
        "2",
        "--optimizer",
        "SGD",
        "--lr",
        "1e12",
        "--epochs",
        "50",
    ]
    refused(
        ["train", *flags, "--out", str(tmp_path / "run")],
        "the loss became NaN or infinite at step",
        capsys,
    )
    from pyroae.runs.run import Run

    system = Run(tmp_path / "run").config
    assert system.lr == 1e12
    for checkpoint in (tmp_path / "run" / "checkpoints").glob("*"):
        for parameter in Run(tmp_path / "run").autoencoder(checkpoint.stem).parameters():
            assert torch.isfinite(parameter).all()


def test_an_unwritable_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    refused(["train", *SMALL, "--out", str(tmp_path / "file" / "run")], "cannot write to", capsys)
    assert (tmp_path / "file").read_text() == "mine"


def test_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_out_pictures(monkeypatch, keep={"manifold"})
    demo = ["demo", "--out", str(tmp_path / "demo"), "--epochs", "1", "--num-particles", "10"]
    assert main(demo) == 0
    out = capsys.readouterr().out
    assert "trace-elbo" in out
    assert "analytic-kl" in out
    assert (tmp_path / "demo" / "figures" / "training_curves.png").is_file()
    assert (tmp_path / "demo" / "two-dimensional" / "figures" / "manifold.png").is_file()
    before = snapshot(tmp_path / "demo")
    refused(demo, "holds a run already", capsys)
    assert snapshot(tmp_path / "demo") == before
