"""What is measured on a GPU: a trial of the script on a CPU, and its evaluations and trainings
where there is a device.
"""

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import __main__ as script
from benchmarks.gpu import agreement, checks, evaluators
from benchmarks.gpu.draws import HostDraws
from pyroae.compilation import optimizer_updates
from pyroae.compilation.eager_training import EagerTraining


def test_a_check_of_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the script, in this process."""
    tasks = {task[0]: task for task in checks.tasks_of("agreement", short=True)}
    monkeypatch.setattr(checks, "tasks_of", lambda *_: list(tasks.values()))
    monkeypatch.setattr(checks, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    assert script.main(["agreement", "--device", "cpu", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu-agreement.json").read_text())
    assert found["where"]["device"] == "cpu"
    assert found["done"] == found["checks"] == len(tasks) == 4
    assert found["failed"] == []


@pytest.mark.slow
@pytest.mark.parametrize("part", ["agreement", "scores"])
def test_a_trial_of_the_script(tmp_path: Path, part: str) -> None:
    assert (
        script.main(
            [
                part,
                "--short",
                "--device",
                "cpu",
                "--out",
                str(tmp_path),
                "--workers",
                "1",
            ]
        )
        == 0
    )
    found = json.loads((tmp_path / f"gpu-{part}.json").read_text())
    assert found["where"]["device"] == "cpu"
    if part == "scores":
        assert found["AIS"]["images"] == 4
        return
    assert found["done"] == found["checks"] >= 10
    assert found["failed"] == []


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_a_trial_of_the_fused_kernel(tmp_path: Path) -> None:
    """In a process of its own: Triton interprets only what is imported after it is told to."""
    options = ["--short", "--device", "cpu", "--workers", "1", "--out", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "fusion", *options],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads((tmp_path / "gpu-fusion.json").read_text())
    assert found["done"] == found["checks"] == 4
    assert found["failed"] == []
    assert set(found["step, us"]) == {"B=20", "members"}
    assert min(min(times.values()) for times in found["kernel, us"].values()) > 0


@pytest.mark.parametrize("optimizer", ["adam-clipped", "sgd"])
def test_losses_of_compiled_steps_are_compared(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By grouped updates, as on a GPU; a loss that is read after its step is found."""
    monkeypatch.setattr(optimizer_updates, "GROUPED", ("cpu", "cuda"))
    assert agreement.steps("vae-optimal", optimizer, "cpu", backend="eager")["ok"]
    own = EagerTraining.step

    def late(training: EagerTraining, args: tuple[Any, ...], *others: Any) -> Tensor:
        own(training, args, *others)
        return -training.bound(args, None).value.detach() / len(args[0])

    monkeypatch.setattr(EagerTraining, "step", late)
    assert not agreement.steps("vae-optimal", optimizer, "cpu", backend="eager")["ok"]


def test_only_files_with_a_test_for_a_device_are_collected() -> None:
    names = {file.name for file in checks.files_of_tests()}
    assert {"test_gpu.py", "test_recorded_steps.py", "test_gradient_fusion.py"} <= names
    assert "test_notebooks.py" not in names


def test_a_check_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        evaluators,
        "AGAINST_CPU",
        {"noise": lambda device: [torch.rand(3)], "none": lambda device: 1 / 0},
    )
    monkeypatch.setattr(evaluators, "HostDraws", lambda: torch.random.fork_rng(devices=[]))
    assert "ZeroDivisionError" in checks.check(("against_cpu", "none"), "cpu")["error"]
    assert agreement.distance([torch.tensor([1.0, float("nan")])], [torch.ones(2)]) == float("inf")
    assert agreement.distance([torch.tensor([1.0, 1.5])], [torch.tensor([1.0, 2.0])]) == 0.25


def test_draws_of_the_cpu_are_the_same_on_any_device() -> None:
    """On the device "meta" there are no numbers to compare, so the shapes: the draw itself is made
    on the CPU.
    """
    generator = torch.Generator().manual_seed(5)
    with HostDraws():
        torch.manual_seed(0)
        drawn = [
            torch.randn(3),
            torch.bernoulli(torch.full((4,), 0.5)),
            torch.empty(2).normal_(generator=generator),
        ]
    torch.manual_seed(0)
    expected = [
        torch.randn(3),
        torch.bernoulli(torch.full((4,), 0.5)),
        torch.empty(2).normal_(generator=generator.manual_seed(5)),
    ]
    for one, other in zip(drawn, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(evaluators.AGAINST_CPU))
def test_evaluations_are_those_of_the_cpu(name: str) -> None:
    assert checks.check(("against_cpu", name), "cuda")["ok"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(evaluators.ON_DEVICE))
def test_two_ways_to_one_result(name: str) -> None:
    assert checks.check(("on_device", name), "cuda")["ok"]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "pair", [("vae", "trace-elbo"), ("vae-conv", "dreg"), ("discrete-vae-categorical", "vimco")]
)
def test_steps_are_those_of_the_cpu(pair: tuple[str, str]) -> None:
    assert checks.check(("eager", *pair), "cuda")["ok"]
