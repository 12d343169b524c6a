"""A user's own choices and program, in a file outside the package, by name in every command."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
import yaml
from torch import nn

import pyroae
from pyroae import names, plots
from pyroae.cli import main
from pyroae.comparison.results import Cell, Outcome
from pyroae.errors import ConfigError
from pyroae.objectives.named import dreg, iwae
from pyroae.runs.run import STATE
from pyroae.runtime.files import read_tensors, write_tensors
from pyroae.studies.cell_files import read_outcome
from tests.pictures import leave_out_pictures

CHOICES = '''
"""A likelihood, a prior, a bound, an objective and a dataset."""

from dataclasses import dataclass

import numpy as np
import pyro.distributions as dist
import torch

from pyroae.data.sources import DATASETS
from pyroae.likelihoods import LIKELIHOODS, Likelihood
from pyroae.objectives import BOUNDS, OBJECTIVES, BoundFunction, Objective, Pathwise
from pyroae.priors import PRIORS, Prior


@LIKELIHOODS.register("own-laplace")
@dataclass(frozen=True)
class Laplace(Likelihood):
    scale: float = 0.5

    def distribution(self, output, learned):
        return dist.Laplace(output, self.scale).to_event(1)

    def bias(self, mean):
        return mean

    def check(self, x, what):
        pass


@PRIORS.register("own_logistic")
@dataclass(frozen=True)
class Logistic(Prior):
    scale: float = 0.5

    def distribution(self, zeros, learned):
        return dist.Logistic(zeros, zeros + self.scale).to_event(1)


@BOUNDS.register("squashed2")
@dataclass(frozen=True)
class Squashed(BoundFunction):
    num_particles: int = 2
    weight: float = 0.5

    def value(self, log_weight):
        iwae = log_weight.logsumexp(0) - torch.tensor(float(len(log_weight))).log()
        return self.weight * iwae + (1 - self.weight) * log_weight.mean(0)


@OBJECTIVES.register("squashed-iwae")
def squashed(num_particles: int = 2):
    return Objective(Squashed(num_particles), Pathwise())


@DATASETS.register("own-waves")
def waves(count: int = 90):
    """Sine waves of 16 points, and the quarter of their phase as a label."""
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 2 * np.pi, count)
    x = np.sin(np.linspace(0, 6, 16) + phase[:, None]) + 0.1 * rng.normal(size=(count, 16))
    return x, (phase // (np.pi / 2)).astype(int)
'''

PROGRAM = '''
"""A regression with a latent variable per datum: y given a covariate."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyroae.data.sources import DATASETS


@DATASETS.register("own-line")
def line(count: int = 90):
    rng = np.random.default_rng(1)
    covariate = rng.normal(size=(count, 3))
    z = rng.normal(size=(count, 1))
    y = covariate @ np.array([[1.0, 0.0, 2.0, 0.5]] * 3) + z + 0.1 * rng.normal(size=(count, 4))
    return y, covariate


class Both(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.slope = nn.Linear(3, 4)
        self.encoder = nn.Sequential(nn.Linear(7, hidden), nn.Tanh(), nn.Linear(hidden, 2))

    def model(self, y, covariate):
        pyro.module("both", self)
        scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(self.slope(covariate) + z, scale).to_event(1), obs=y)

    def guide(self, y, covariate):
        pyro.module("both", self)
        with pyro.plate("data", len(y)):
            mean, log_scale = self.encoder(torch.cat([y, covariate], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))


def build(hidden: int = 5):
    both = Both(hidden)
    return both.model, both.guide
'''

PAIR = '''
"""Model and guide of a module, with networks at its top level and a parameter in Pyro's store."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyroae.priors import PRIORS, Normal

PRIORS.register("a-name-of-the-pair")(Normal)
decoder = nn.Linear(2, 64)
encoder = nn.Linear(64, 4)


def model(x):
    pyro.module("decoder", decoder)
    scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=x)


def guide(x):
    pyro.module("encoder", encoder)
    with pyro.plate("data", len(x)):
        mean, log_scale = encoder(x).chunk(2, -1)
        pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))
'''

FEW = ["--epochs", "2", "--batch-size", "20", "--accelerator", "cpu"]
SCORED = ["--score-particles", "20", "--score-data", "10", "--budget", "epochs:2"]
OWN = ["--data", "own-waves:count=80", "--likelihood", "own-laplace:scale=0.4"]
SMALL = ["--prior", "own_logistic:scale=3", "--latent", "2", "--hidden", "8"]


pytestmark = pytest.mark.usefixtures("short_pilot")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registries, modules and the path are afterwards as before."""
    for registry in names.REGISTRIES.values():
        monkeypatch.setattr(registry, "_choices", dict(registry._choices))
    monkeypatch.setattr(names, "_modules", {})
    monkeypatch.setattr(names, "_plugins", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the user's files, which is the working directory."""
    for name, text in (("choices", CHOICES), ("program", PROGRAM), ("pair", PAIR)):
        (tmp_path / f"own_{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def figures(run: Path) -> dict[str, Any]:
    rows = json.loads((run / "results.json").read_text())
    return {row["name"]: {**row, "seconds": 0} for row in rows}


def outcomes(study: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(study.glob("*/outcome.safetensors")):
        outcome = read_outcome(file, Cell("", 1, 0))
        assert isinstance(outcome, Outcome), outcome
        found[file.parent.name] = outcome.score.log_px
    return found


def forget() -> None:
    """As a new process is: no module of the user is imported, none of its names is known."""
    own = [module.__name__ for module in names._modules.values()]
    for registry in names.REGISTRIES.values():
        package = names.NAMES.get(registry.kind, ())
        registry._choices = {name: c for name, c in registry._choices.items() if name in package}
    for name in own:
        sys.modules.pop(name, None)
    names._modules.clear()
    pyro.clear_param_store()


def refused(words: str, capsys: pytest.CaptureFixture[str], *argv: str | Path) -> None:
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1, error


# Choices of one's own.


def test_own_choices_in_every_command(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later commands find the module by the record in config.yaml, from any working directory."""
    leave_out_pictures(monkeypatch)
    run, flags = here / "run", ["--import", "own_choices.py", *OWN, *SMALL, *FEW]
    squashed = ["--bound", "squashed2:weight=0.3", "--num-particles", "3"]
    assert main(["train", *flags, *squashed, "--out", str(run)]) == 0
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["imports"] == [str(here / "own_choices.py")]
    os.chdir("/")
    forget()
    assert main(["evaluate", str(run), "--num-particles", "20", "--split", "valid"]) == 0
    assert figures(run)["nll"]["num_data"] == 7
    forget()
    objectives = "squashed-iwae,iwae,squashed2:weight=0.1+doubly-reparameterized"
    few = ["--num-particles", "2", "--replicates", "20", "--num-data", "4"]
    assert main(["gradients", str(run), "--objectives", objectives, *few]) == 0
    for command in (["sample", str(run), "--num", "4"], ["reconstruct", str(run)]):
        forget()
        assert main([*command, "--out", str(here / "x.npy")]) == 0
    forget()
    assert main(["reproduce", str(run)]) == 0
    assert figures(here / "run-again") == figures(run)


def test_a_configuration_file_names_modules(here: Path) -> None:
    """And further modules on the command line are added; a run that resumes keeps both."""
    (here / "c.yaml").write_text("imports: own_choices\ndata: own-waves\nlikelihood: own-laplace\n")
    flags = ["--config", "c.yaml", "--import", "own_pair", "--prior", "a-name-of-the-pair"]
    assert main(["train", *flags, "--hidden", "8", *FEW, "--out", "run"]) == 0
    found = yaml.safe_load((here / "run" / "config.yaml").read_text())["imports"]
    assert found == ["own_choices", "own_pair"]
    forget()
    assert main(["train", "--resume", "run", "--epochs", "3"]) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("no_study_figures")
def test_own_choices_in_a_comparison(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--import", "own_choices.py", *OWN, *SMALL, *FEW[2:], *SCORED, "--seeds", "1"]
    own = ["--objectives", "squashed-iwae,squashed2+pathwise", "--num-particles", "2"]
    assert main(["compare", *flags, *own, "--out", "study"]) == 0
    found = outcomes(here / "study")
    one, other = (found[f"{n}-k2-seed0"] for n in ("squashed-iwae", "squashed2+pathwise"))
    assert one.equal(other)  # the same estimator under two names
    forget()
    assert main(["compare", "--resume", "study", "--objectives", "iwae"]) == 0
    assert set(outcomes(here / "study")) == {*found, "iwae-k2-seed0"}


# A program of one's own.


@pytest.mark.slow
def test_a_program_with_two_arguments(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train, resume, evaluate, gradients, reproduce; what it draws and encodes."""
    leave_out_pictures(monkeypatch, keep={"marginals", "kl_per_unit"})
    run, flags = here / "run", ["--data", "own-line", *FEW, "--objective", "dreg"]
    named = ["--program", "own_program.py:build:hidden=4"]
    assert main(["train", *named, *flags, "--out", str(run)]) == 0
    forget()
    assert main(["train", "--resume", str(run), "--epochs", "3"]) == 0
    forget()
    methods = ["--method", "is,ais", "--num-chains", "2", "--num-distributions", "5"]
    assert main(["evaluate", str(run), "--num-particles", "50", *methods]) == 0
    found = figures(run)
    assert {"nll", "nll_ais", "nelbo", "rate", "distortion", "active_units"} <= set(found)
    assert found["nll"]["estimate"] < found["nelbo"]["estimate"]
    assert {p.stem for p in (run / "figures").glob("*.png")} >= {"marginals", "kl_per_unit"}
    forget()
    few = ["--objectives", "iwae,dreg", "--num-particles", "2", "--replicates", "20"]
    assert main(["gradients", str(run), *few]) == 0
    for command, shape in ((["sample", "--num", "5"], (5, 4)), (["reconstruct"], (9, 4))):
        forget()
        assert main([command[0], str(run), *command[1:], "--out", "x.npy"]) == 0
        assert np.load("x.npy").shape == shape
    forget()
    assert main(["encode", str(run), "--num-data", "6", "--out", "z.csv"]) == 0
    assert np.loadtxt("z.csv", delimiter=",", skiprows=1).shape == (6,)
    capsys.readouterr()
    forget()
    assert main(["reproduce", str(run)]) == 0
    assert "to the last digit" in capsys.readouterr().out


@pytest.mark.usefixtures("no_study_figures")
def test_a_program_in_a_comparison(here: Path) -> None:
    """Each training starts from weights of its own seed, and resumes as it would have gone on."""
    flags = ["--program", "own_program.py:build", "--data", "own-line", *FEW[2:], *SCORED]
    own = ["--objectives", "iwae", "--num-particles", "2", "--seeds", "2"]
    assert main(["compare", *flags, *own, "--out", "study"]) == 0
    found = outcomes(here / "study")
    assert len(found) == 2
    assert not found["iwae-k2-seed0"].equal(found["iwae-k2-seed1"])
    forget()
    alone = ["--objective", "iwae", "--num-particles", "2", "--seed", "1", "--epochs", "2"]
    assert main(["train", *flags[:6], *alone, "--keep", "last", "--out", "alone"]) == 0
    one, other = (pyroae.load_run(here / p).system for p in ("alone", "study/iwae-k2-seed1"))
    for (name, left), right in zip(
        one.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert left.equal(right), name


def test_a_module_with_model_and_guide(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its networks start anew in every training, from the seed, though it is imported once."""
    leave_out_pictures(monkeypatch, {"reconstructions", "samples", "latent_scatter", "kl_per_unit"})
    flags = ["--program", "own_pair", "--binarize", "dynamic", *FEW, "--batch-size", "500"]
    assert main(["train", *flags, "--out", "one"]) == 0
    assert main(["train", *flags, "--out", "two"]) == 0
    assert main(["train", *flags, "--seed", "1", "--out", "three"]) == 0
    one, two, three = (pyroae.load_run(here / name) for name in ("one", "two", "three"))
    assert [e.train_nelbo for e in one.history] == [e.train_nelbo for e in two.history]
    assert one.history[0].train_nelbo != three.history[0].train_nelbo
    assert main(["evaluate", "one", "--num-particles", "20", "--num-data", "20"]) == 0
    pictures = {p.stem for p in (here / "one" / "figures").glob("*.png")}
    assert {"reconstructions", "samples", "latent_scatter", "kl_per_unit"} <= pictures
    assert main(["sample", "one", "--num", "9", "--out", "s.png"]) == 0
    assert main(["reconstruct", "one", "--num-data", "5", "--out", "r.npy"]) == 0
    assert np.load("r.npy").shape == (5, 64)
    assert (here / "one" / "report.html").is_file()


def test_in_python(here: Path) -> None:
    """`load_run`, and every function that takes a model and a guide."""
    flags = ["--program", "own_program.py:build", "--data", "own-line", *FEW]
    assert main(["train", *flags, "--out", "run"]) == 0
    forget()
    run = pyroae.load_run("run")
    assert isinstance(run.system, nn.Module)
    assert len(run.history) == 2
    assert run.results == {}
    assert run.data.test is not None
    system: Any = run.system
    x: Any = run.data.test.tensors
    pair = (system.model, system.guide)
    settings = pyroae.EvaluationSettings(num_particles=10)
    for given in (system, pair):
        found = pyroae.evaluate(given, x, settings)
        plots.reconstructions(given, x)
        plots.samples(given, 4, x=x)
        plots.latent_scatter(given, x)
    plots.kl_per_unit(pyroae.diagnose(*pair, x))
    tree = pyroae.to_datatree(*pair, x, num_draws=5)
    assert tree["guide"]["z"].sizes["datum"] == len(x[0]) == 9
    phi = dict(system.named_parameters())
    groups = pyroae.parameter_groups(*pair, x, phi)
    assert set(groups) >= {"θ", "φ"}
    measured = pyroae.measure_gradients(
        *pair, x, {"iwae": iwae(2), "dreg": dreg(2)}, parameters=phi, groups=groups, replicates=20
    )
    assert set(measured) == {"iwae", "dreg"}
    assert main(["evaluate", "run", "--num-particles", "10"]) == 0
    again = pyroae.load_run("run")
    assert again.results["nll"].estimate == pytest.approx(found.results["nll"].estimate)


def test_load_run_of_a_system(here: Path) -> None:
    assert main(["train", "--latent", "2", "--hidden", "8", "--epochs", "1", "--out", "run"]) == 0
    run = pyroae.load_run("run")
    assert isinstance(run.system, pyroae.Autoencoder)
    assert run.config.latent == run.system.latent == 2
    assert run.data.train.shape == (8, 8)


OF_CHOICES = ["--import", "own_choices.py", *OWN, *SMALL, "--objectives", "squashed-iwae"]
OF_PROGRAM = ["--program", "own_program:build", "--data", "own-line", *OF_CHOICES[:2]]


@pytest.mark.parametrize(
    "own",
    [
        pytest.param([*OF_PROGRAM, *OF_CHOICES[-2:]], id="program", marks=pytest.mark.slow),
        pytest.param(OF_CHOICES, id="choices", marks=pytest.mark.slow),
    ],
)
def test_on_ray(own: list[str], here: Path) -> None:
    """Workers import the modules that the study sends; the outcomes are those of this process."""
    flags = [*own, "--num-particles", "2", "--seeds", "1", *FEW[2:], *SCORED]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "pyroae.cli", "compare", *flags]
    done = subprocess.run(
        [*command, "--executor", "ray", "--out", "there"],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert main(["compare", *flags, "--out", "here"]) == 0
    one, other = outcomes(here / "here"), outcomes(here / "there")
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)


def test_sources_are_sent(here: Path) -> None:
    """A worker that has no such file imports what was sent, once."""
    given = [str(here / "own_choices.py"), "own_program"]
    names.import_all(given)
    sent = names.sources_of(given)
    assert [name for _, name, _ in sent] == ["own_choices", "own_program"]
    forget()
    for file in here.glob("own_*.py"):
        file.unlink()
    names.import_sources(sent)
    names.import_sources(sent)
    assert pyroae.RunConfig(imports=tuple(given)).imports == tuple(given)
    assert "own-line" in names.names_of("dataset")


# Plugins.


def test_plugins(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points of installed packages are loaded where a name is not known."""
    point = EntryPoint("own", "own_choices", names.PLUGINS)
    monkeypatch.setattr(names, "entry_points", lambda group: [point])
    monkeypatch.syspath_prepend(str(here))
    assert "squashed-iwae" not in names.names_of("objective")
    assert pyroae.RunConfig(objective="squashed-iwae").estimator == "squashed-iwae"
    assert pyroae.load("own-waves:count=40").train.shape == (16,)


def test_a_plugin_that_cannot_be_loaded(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point = EntryPoint("own", "own_missing", names.PLUGINS)
    monkeypatch.setattr(names, "entry_points", lambda group: [point])
    words = "cannot load the plugin 'own', 'own_missing': there is no module 'own_missing'"
    refused(words, capsys, "train", "--objective", "mine", "--out", "run")


# Bad input.


BAD_MODULES = {
    "syntax": ("def f(:", "own_bad.py': SyntaxError: invalid syntax"),
    "name": ("x = 1\ny = z", "NameError: name 'z' is not defined (line 2 of own_bad.py)"),
    "exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "missing import": ("import nowhere_at_all", "No module named 'nowhere_at_all' (line 1 of"),
    "taken": (
        "from pyroae.priors import *\nPRIORS.register('own')(Normal)\n"
        "PRIORS.register('normal')(Normal)",
        "the prior 'normal' is registered already",
    ),
    "no name": (
        "from pyroae.priors import *\nPRIORS.register('my prior')(Normal)",
        "'my prior' cannot be the name of a prior: a name has letters, digits, - and _",
    ),
}


@pytest.mark.parametrize("case", list(BAD_MODULES))
@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_module_that_cannot_be_imported(
    case: str, command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, words = BAD_MODULES[case]
    (here / "own_bad.py").write_text(text)
    refused(words, capsys, command, "--import", "own_bad.py", "--out", "x")
    assert not (here / "x").exists()
    assert "own" not in names.names_of("prior")  # none of its names is left


BAD: dict[str, tuple[list[str], str]] = {
    "no file": (["--import", "own_gone.py"], "there is no such file"),
    "no module": (["--import", "own_gone"], "there is no module 'own_gone' here"),
    "own name": (
        ["--import", "own_choices.py", "--likelihood", "own-laplac"],
        "unknown likelihood 'own-laplac': did you mean 'own-laplace'?",
    ),
    "own objective": (
        ["--import", "own_choices.py", "--objective", "squashed-iwea"],
        "unknown objective 'squashed-iwea': did you mean 'squashed-iwae'?",
    ),
    "own bound": (
        ["--import", "own_choices.py", "--bound", "squashed"],
        "unknown bound 'squashed': did you mean 'squashed2'?",
    ),
    "own dataset": (
        ["--import", "own_choices.py", "--data", "own-wave"],
        "unknown dataset 'own-wave': did you mean 'own-waves'?",
    ),
    "own setting": (
        ["--import", "own_choices.py", "--data", "own-waves:cuont=3"],
        "did you mean 'count'?",
    ),
    "an error of the dataset": (
        ["--import", "own_choices.py", "--data", "own-waves:count=-3"],
        "the dataset 'own-waves:count=-3' cannot be made: ValueError",
    ),
    "no name in the program": (
        ["--program", "own_program:biuld"],
        "unknown name in the module 'own_program' 'biuld': did you mean 'build'?",
    ),
    "no program": (
        ["--program", "own_choices.py"],
        "is a module: it must be a pair (model, guide)",
    ),
    "an error of the program": (
        ["--program", "own_program:build:hidden=-1"],
        "the program 'own_program:build:hidden=-1' cannot be made: RuntimeError",
    ),
    "settings of a system": (
        ["--program", "own_program:build", "--latent", "3"],
        "is the whole of model and guide: leave out latent",
    ),
    "binarize": (
        ["--program", "own_program:build", "--data", "own-line", "--binarize", "static"],
        "binarize is for data of one array; 'own-line' has several",
    ),
    "one argument": (["--program", "own_program:build"], "missing 1 required positional argument"),
    "labels": (
        ["--program", "own_pair", "--import", "own_choices", "--data", "own-waves"],
        "takes 1 positional argument but 2 were given",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence; nothing is written."""
    flags, words = BAD[case]
    refused(words, capsys, "train", *flags, "--batch-size", "10", "--out", "x")
    assert not (here / "x").exists()


def test_a_run_whose_module_is_missing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says so, and is read again where the module's new place is given."""
    own = ["--import", "own_choices.py", *OWN, *SMALL, *FEW]
    assert main(["train", *own, "--out", "run"]) == 0
    flags = ["--import", "own_choices.py", *OWN, *SMALL, *FEW[2:], *SCORED, "--seeds", "1"]
    few = ["--objectives", "iwae", "--num-particles", "1"]
    assert main(["compare", *flags, *few, "--out", "study"]) == 0
    forget()
    (here / "elsewhere").mkdir()
    (here / "own_choices.py").rename(here / "elsewhere" / "own_choices.py")
    words = f"cannot import '{here / 'own_choices.py'}': there is no such file"
    for command in ("evaluate", "gradients", "encode", "sample", "report", "reproduce"):
        refused(
            f"the configuration of the run 'run' cannot be used: {words}", capsys, command, "run"
        )
    refused(words, capsys, "compare", "--resume", "study")
    found = ["--import", "elsewhere/own_choices.py"]
    assert main(["encode", "run", *found]) == 0
    assert main(["compare", "--resume", "study", *found]) == 0
    forget()
    assert main(["train", "--resume", "run", "--epochs", "3", *found]) == 0
    forget()
    assert main(["encode", "run"]) == 0  # the new place was recorded


def test_registrations_of_a_script_are_its_own(here: Path) -> None:
    """A module is imported once, by whatever text: its path, its name, the program in it."""
    one = names.import_own("own_program.py")
    assert names.import_own("own_program") is one
    assert names.import_own(str(here / "own_program.py")) is one
    with pytest.raises(ConfigError, match="is registered already"):
        names.import_own(str((here / "own_copy.py").write_text(PROGRAM) and here / "own_copy.py"))


def test_a_run_of_version_0_1(here: Path) -> None:
    """Without `imports` and `program` in its files it is read and resumed; so is its evaluation."""
    assert main(["train", "--latent", "2", "--hidden", "8", "--epochs", "1", "--out", "run"]) == 0
    file = here / "run" / "checkpoints" / "last.safetensors"
    state = read_tensors(file, STATE)
    content = yaml.safe_load((here / "run" / "config.yaml").read_text())
    for values in (content, state["record"]):
        for name in ("imports", "program"):
            del values[name]
    write_tensors(file, STATE, state)
    (here / "run" / "config.yaml").write_text(yaml.safe_dump(content))
    assert main(["train", "--resume", "run", "--epochs", "2"]) == 0
    old = {"method": "is,exact", "num_particles": 10, "tolerance": None, "proposal": "guide"}
    old |= {"retry": None, "seed": 3, "compile": "auto", "annealing": {"num_chains": 2}}
    found = pyroae.EvaluationSettings.from_dict({**old, "data": None, "split": "test"})
    annealing = pyroae.AISSettings(num_chains=2, posterior_draws=20)
    assert found == pyroae.EvaluationSettings(("is", "exact"), 10, annealing=annealing, seed=3)
    assert pyroae.EvaluationSettings.from_dict(found.to_dict()) == found
