"""A training that is stopped, at any moment and in any way, goes on to the same last bit as one
that never was.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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
from pyroae.config import RunConfig, TrainConfig
from pyroae.data.loading import Splits, load
from pyroae.errors import InterruptedRunError
from pyroae.runs.contents import STATE
from pyroae.runs.run import Run
from pyroae.runtime.files import read_tensors
from pyroae.training.checkpointing import Keeper
from pyroae.training.fitting import fit
from pyroae.training.state import State

CONFIG = RunConfig(latent=2, hidden=(10,), epochs=4, batch_size=30)
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "warm-up, schedule, clipping": {"kl_warmup": 2, "schedule": "cosine", "grad_clip": 3.0},
    "patience, last weights": {
        "patience": 2,
        "keep": "last",
        "optimizer": "SGD",
        "optimizer_args": {"momentum": 0.9},
    },
    "L-BFGS": {"optimizer": "LBFGS", "epochs": 2},
    "particles": {"objective": "dreg", "num_particles": 3},
    "noise of its own": {
        "system": "denoising-ae",
        "binarize": "dynamic",
        "likelihood": "bernoulli",
    },
    "flow": {"posterior": "iaf:hidden=6", "objective": "stl"},
    "layers": {"system": "hierarchical-vae", "latent": (3, 2), "hierarchy": "top-down:widths=[4]"},
    "double": {"precision": "64-true"},
    "steps": {"max_steps": 17},
}


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def splits() -> Splits:
    digits = load("digits", binarize="dynamic")
    assert digits.valid is not None
    return Splits(
        digits.train.first(200), digits.valid.first(50), None, digits.fingerprint, "dynamic"
    )


def trained(
    config: RunConfig,
    splits: Splits,
    on_epoch: Callable[[State], None] | None = None,
    state: State | None = None,
) -> Any:
    torch.manual_seed(config.seed)
    system = zoo.from_config(config, splits.train)
    from pyroae.objectives import parse_objective

    objective = parse_objective(config.estimator, config.num_particles)
    return fit(
        system, splits, objective, config.training, state=state, on_epoch=on_epoch, progress=False
    )


def same(one: Any, two: Any) -> bool:
    weights = zip(one.system.state_dict().items(), two.system.state_dict().items(), strict=True)
    history = [
        [(e.step, e.train_nelbo, e.valid_nelbo, e.rate) for e in r.history] for r in (one, two)
    ]
    return (
        all(n == m and torch.equal(v, w) for (n, v), (m, w) in weights) and history[0] == history[1]
    )


def stopped_at(config: RunConfig, splits: Splits, run: Run, step: int) -> State:
    """What is read from the run's directory after a stop at that step."""

    def save(state: State) -> None:
        if state.progressed.step >= step:
            run.save(state)
            raise Stop

    with pytest.raises(Stop):
        trained(config, splits, Keeper(save, "", minutes=0))
    return run.state()


POSTERIORS = ("full-rank", "low-rank:rank=2", "mixture", "nsf:hidden=6,bins=4")
"""Beside "flow" of the settings, in slow tests."""


@pytest.mark.slow
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_resumed_with_another_posterior(tmp_path: Path, splits: Splits, posterior: str) -> None:
    config = CONFIG.but(posterior=posterior, objective="dreg", num_particles=3)
    whole = trained(config, splits)
    run = Run.create(tmp_path / "run", config, splits)
    assert same(trained(config, splits, state=stopped_at(config, splits, run, 10)), whole)


EDGES = ("plain", "patience, last weights", "L-BFGS")
"""Settings that are resumed after the first step and before the last one too in `make test`."""


@pytest.mark.parametrize(
    ("name", "where"),
    [
        *((name, "middle") for name in SETTINGS),
        *(
            pytest.param(name, "edges", marks=() if name in EDGES else pytest.mark.slow)
            for name in SETTINGS
        ),
    ],
)
def test_resumed_at_any_step_it_ends_the_same(
    tmp_path: Path, splits: Splits, name: str, where: str
) -> None:
    config = CONFIG.but(**SETTINGS[name])
    whole = trained(config, splits)
    run = Run.create(tmp_path / "run", config, splits)
    steps = whole.history[-1].step
    for step in {steps // 2} if where == "middle" else {1, steps - 1}:
        state = stopped_at(config, splits, run, step)
        assert state.progressed.step == step
        assert same(trained(config, splits, state=state), whole)


def test_the_mean_bound_of_an_epoch_is_of_all_of_it(tmp_path: Path, splits: Splits) -> None:
    run = Run.create(tmp_path / "run", CONFIG, splits)
    state = stopped_at(CONFIG, splits, run, 10)  # 7 steps an epoch
    assert state.progressed.position == 3
    assert state.progressed.seen == 90
    assert state.where() == "epoch 2, step 10"
    assert [e.train_nelbo for e in trained(CONFIG, splits, state=state).history] == [
        e.train_nelbo for e in trained(CONFIG, splits).history
    ]


def test_compiled(tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a graph that is not made into code: the first step is run as it is, and no other in its
    place.
    """
    made: list[Any] = []

    def keep(graph: Any, *_: Any, **settings: Any) -> Any:
        made.append(graph)
        return graph

    monkeypatch.setattr(compiler, "inductor", keep)
    config = CONFIG.but(compile=True)
    whole = trained(config, splits)
    run = Run.create(tmp_path / "run", config, splits)
    for step in (1, 25):
        assert same(trained(config, splits, state=stopped_at(config, splits, run, step)), whole)
    assert len(made) >= 4


@pytest.mark.slow
def test_compiled_to_code(tmp_path: Path, splits: Splits) -> None:
    config = CONFIG.but(compile=True)
    whole = trained(config, splits)
    run = Run.create(tmp_path / "run", config, splits)
    for step in (1, 10, 25):
        assert same(trained(config, splits, state=stopped_at(config, splits, run, step)), whole)


def test_programs_that_draw_from_python_and_numpy(tmp_path: Path, splits: Splits) -> None:
    """Their generators are part of the state, and the caller's stay as they were."""

    def model(x: Tensor) -> None:
        shift = random.gauss(0, 1) + np.random.randn()  # noqa: NPY002
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample(
                "x",
                dist.Normal(z[:, None] * pyro.param("w", torch.ones(3)) + shift, 1.0).to_event(1),
                obs=x,
            )

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ pyro.param("v", torch.zeros(3)), 0.7))

    x, config = torch.randn(60, 3), TrainConfig(epochs=3, batch_size=20, lr=0.05)
    states: list[State] = []
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    def weights(state: State | None, keep: Callable[[State], None] | None) -> list[list[float]]:
        pyro.clear_param_store()
        fit((model, guide), x, config=config, state=state, on_epoch=keep, progress=False)
        return [pyro.param(name).tolist() for name in ("w", "v")]

    wanted = weights(None, Keeper(states.append, "", minutes=0))
    run = Run.create(tmp_path / "run", CONFIG, splits)
    for state in (states[1], states[4]):
        run.save(state)
        assert weights(run.state(), None) == wanted
    assert (
        weights(
            State(
                states[1].weights,
                states[1].optimizer,
                {"cpu": states[1].random["cpu"]},
                progressed=states[1].progressed,
            ),
            None,
        )
        != wanted
    )
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


# Signals.


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(splits: Splits, number: signal.Signals) -> None:
    saved: list[State] = []

    def save(state: State) -> None:
        saved.append(state)

    with Keeper(save, "this") as keeper:
        os.kill(os.getpid(), number)
        with pytest.raises(
            InterruptedRunError,
            match=rf"by {number.name} at epoch 1, step 1, .*; resume with: this",
        ) as stop:
            trained(CONFIG, splits, keeper)
    assert stop.value.signal == number
    assert len(saved) == 1
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    assert same(trained(CONFIG, splits, state=saved[0]), trained(CONFIG, splits))


def test_the_command_says_so_in_its_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    settings = ["--data", "digits", "--latent", "2", "--hidden", "10", "--epochs", "2"]
    assert cli.main(["train", *settings, "--out", str(tmp_path / "whole")]) == 0
    entered = Keeper.__enter__

    def enter(self: Keeper) -> Keeper:
        entered(self)
        os.kill(os.getpid(), signal.SIGTERM)
        return self

    monkeypatch.setattr(Keeper, "__enter__", enter)
    assert cli.main(["train", *settings, "--out", str(tmp_path / "run")]) == 128 + signal.SIGTERM
    assert f"resume with: pyroae train --resume {tmp_path / 'run'}" in capsys.readouterr().err
    monkeypatch.setattr(Keeper, "__enter__", entered)
    assert cli.main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def assert_same_weights(one: Path, two: Path) -> None:
    for name in ("last", "best"):
        found, wanted = (Run(path).autoencoder(name).state_dict() for path in (one, two))
        for key in wanted:
            assert torch.equal(found[key], wanted[key])


# Kills.

KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import lightning_fabric, matplotlib.pyplot, pyroae.commands.train  # once, and not in each child
from pyroae import cli
from pyroae.errors import RunError
from pyroae.plots import data, systems
from pyroae.runs.run import Run

def slowly(path, content):
    "Write half of a file, and the rest 10 ms later, as a slow disk does."
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        time.sleep(0.01)
        return len(content) // 2 + file.write(content[len(content) // 2 :])

run, kills, settings = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
dice = random.Random(7)
left, steps, done = 0, [], 0
while True:
    is_there = (run / "config.yaml").is_file()
    begin = ["--resume", str(run)] if is_there else [*settings, "--out", str(run)]
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        Path.write_bytes = slowly
        os._exit(cli.main(["train", *begin]))
    if done < kills:
        has_begun = (run / "config.yaml").is_file() and Run(run).has_begun
        before = Run(run).state().progressed.step if has_begun else 0
        last = run / "checkpoints" / "last.safetensors"
        deadline = time.monotonic() + dice.choice((0.1, 9, 9, 9))
        seen = last.stat().st_mtime_ns if last.is_file() else 0
        def saved():
            return last.is_file() and last.stat().st_mtime_ns != seen
        while time.monotonic() < deadline and not saved():
            time.sleep(0.002)  # one in four before the training has begun
        deadline = time.monotonic() + dice.uniform(0.0, 0.4)
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while time.monotonic() < deadline and not os.waitid(os.P_PID, child, flags):
            time.sleep(0.002)
        deadline += 1.0 * (done % 2)  # every second time while a file is being written
        while time.monotonic() < deadline and not [*run.glob("checkpoints/.*.safetensors")]:
            pass
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        done += os.WIFSIGNALED(status)
        left += bool([*run.glob("checkpoints/.*.safetensors"), *run.glob(".metrics*")])
        if (run / "config.yaml").is_file() and Run(run).has_begun:
            steps.append(Run(run).state().progressed.step)  # readable, always
            assert steps[-1] >= before
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, status
            break
    else:
        assert os.waitpid(child, 0)[1] == 0
        break
print(json.dumps({"kills": done, "half-written": left, "steps": steps}))
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("kills", "compiled"),
    [
        (6, False),
        *(pytest.param(20, compiled, marks=pytest.mark.slow) for compiled in (False, True)),
    ],
)
def test_killed_at_random_moments(tmp_path: Path, kills: int, compiled: bool) -> None:
    """SIGKILL, writes of checkpoints included: one is written after each step.

    Never is the directory unreadable.
    """
    settings = ["--data", "digits", "--latent", "2", "--hidden", "50", "--batch-size", "20"]
    settings += ["--epochs", "20" if compiled else str(kills // 2)]
    settings += ["--compile", str(compiled).lower()]
    often = json.dumps([*settings, "--save-minutes", "1e-9"])
    code = [sys.executable, "-c", KILLER, str(tmp_path / "cut"), str(kills), often]
    found = subprocess.run(
        code,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stderr[-2000:]
    told = json.loads(found.stdout.splitlines()[-1])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert cli.main(["train", *settings, "--out", str(tmp_path / "whole")]) == 0
    finally:
        torch.set_num_threads(threads)
    assert told["kills"] == kills
    assert told["half-written"] > kills // 4
    assert len(set(told["steps"])) > kills // 2
    assert_same_weights(tmp_path / "cut", tmp_path / "whole")
    assert [r.valid_nelbo for r in Run(tmp_path / "cut").history()] == [
        r.valid_nelbo for r in Run(tmp_path / "whole").history()
    ]


# What is kept.


def test_the_last_two_states_are_there(tmp_path: Path, splits: Splits) -> None:
    run = Run.create(tmp_path / "run", CONFIG, splits)
    trained(CONFIG, splits, run.save)
    assert (len(run.state().history), len(run.state("previous").history)) == (4, 3)
    last = run.checkpoint("last")
    content = read_tensors(last, STATE)
    assert content["record"]["fingerprint"] == splits.fingerprint
    assert content["record"]["versions"]["torch"] in torch.__version__
    assert {*content["random"]} == {"python", "numpy", "cpu"}


def test_from_the_state_before(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "run"
    assert (
        cli.main(["train", "--latent", "2", "--hidden", "10", "--epochs", "2", "--out", str(path)])
        == 0
    )
    whole = Run(path).autoencoder("last").state_dict()
    last = Run(path).checkpoint("last")
    last.write_bytes(last.read_bytes()[:-1])
    assert cli.main(["train", "--resume", str(path)]) == 2
    said = capsys.readouterr().err
    assert "is damaged" in said
    assert (
        "the checkpoint 'previous', of the end of epoch 1, is intact: "
        "resume from it with --checkpoint previous" in said
    )
    assert said.count("\n") == 1
    assert cli.main(["train", "--resume", str(path), "--checkpoint", "previous"]) == 0
    for name, value in Run(path).autoencoder("last").state_dict().items():
        assert torch.equal(value, whole[name])


def test_a_run_that_was_killed_before_its_first_state(tmp_path: Path, splits: Splits) -> None:
    digits = load("digits", binarize="dynamic")
    Run.create(tmp_path / "run", CONFIG.but(epochs=2), digits)
    assert cli.main(["train", "--resume", str(tmp_path / "run")]) == 0
    settings = ["--latent", "2", "--hidden", "10", "--epochs", "2", "--batch-size", "30"]
    assert cli.main(["train", *settings, "--out", str(tmp_path / "whole")]) == 0
    assert_same_weights(tmp_path / "run", tmp_path / "whole")
    del splits


def test_every_few_minutes(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    now, saved = [time.monotonic()], []
    monkeypatch.setattr("pyroae.training.checkpointing.time.monotonic", lambda: now[0])

    def save(state: State) -> None:
        saved.append(state.progressed.step)

    keeper = Keeper(save, "", minutes=5)
    assert not keeper.is_due
    now[0] += 301
    assert keeper.is_due
    trained(CONFIG, splits, keeper)
    assert saved[:2] == [1, 7]
    with pytest.raises(Exception, match="save_minutes must be positive"):
        TrainConfig(save_minutes=0)
