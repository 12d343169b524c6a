"""How fast, on a device: steps, ensembles, likelihoods and scores, beside peers; where a step's
time goes; lower precision.
"""

import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import pyroae
from benchmarks import report
from benchmarks.panels import HAND, HAND_EAGER, LOOP, OURS, SVI, Panel
from benchmarks.problems import Index, Problem
from benchmarks.workers import Subject
from pyroae import AISSettings, Local, TrainConfig, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.nn import MLP

PYRO, TORCH, NUMPYRO = (f"benchmarks.subjects_{name}:" for name in ("pyro", "torch", "numpyro"))
FIT, GRAPHED = "pyroae fit, compiled", "hand-written, CUDA graph"
EXACT_LOOP, ONE_BY_ONE = "NumPyro, fori_loop, single precision", "pyroae compiled, a step a call"
TF32 = "pyroae compiled, TF32"
TUNED = "pyroae compiled, TF32, products tuned"
TUNING = {"max_autotune_gemm": True, "max_autotune_gemm_backends": "ATEN,TRITON"}
SMALL = Problem(widths=(200,), latent=50, batch=20)
REFERENCE = Problem()
DEEP = Problem(widths=(200, 200), latent=50)


@dataclass(frozen=True)
class Sizes:
    """How much is measured. device: in torch's names."""

    device: str
    rounds: int = 7
    block: float = 0.15
    images: int = 10_000
    particles: int = 5000
    annealed: int = 1000
    distributions: int = 1000
    epochs: int = 8
    members: int = 10
    profiled: int = 200

    @property
    def is_gpu(self) -> bool:
        """Whether it is a CUDA device."""
        return self.device != "cpu"


SHORT = Sizes("cpu", 1, 0.01, 40, 100, 4, 12, 1, 2, 4)
"""A trial of every part on a CPU."""


# Steps.


def steps(sizes: Sizes) -> dict[str, Any]:
    """A training step by ours, with further settings of the compiler too, and by peers, in
    turns.
    """
    found = {}
    for problem in (SMALL, REFERENCE):
        there = replace(problem, device=sizes.device)
        rows = [
            (OURS, PYRO + "compiled", {}),
            (SVI, PYRO + "svi", {}),
            (LOOP, NUMPYRO + "loop", {}),
        ]
        if sizes.is_gpu:
            rows.append((FIT, PYRO + "fit", {}))
            rows.append((GRAPHED, TORCH + "train_graphed", {}))
            rows.append((EXACT_LOOP, NUMPYRO + "loop", {"products": "highest"}))
            rows.append((ONE_BY_ONE, PYRO + "compiled", {"several": False}))
            rows.append((TF32, PYRO + "compiled", {"tf32": True}))
        if sizes.is_gpu and problem is SMALL:
            rows.append((TUNED, PYRO + "compiled", {"inductor": TUNING, "tf32": True}))
        found |= _measured(
            Panel(f"B={problem.batch}", f"VAE {problem.label}", SVI, _subjects(rows, there)),
            sizes,
        )
    return found


def ensembles(sizes: Sizes) -> dict[str, Any]:
    """A step of all members at once, and of one."""
    there, count = replace(SMALL, device=sizes.device), sizes.members
    rows = [
        (f"{count} seeds at once", PYRO + "many", {"members": count, "together": True}),
        (f"{count} seeds by fit_ensemble", PYRO + "fit_many", {"members": count}),
        (FIT, PYRO + "fit", {}),
        ("one seed", PYRO + "compiled", {}),
    ]
    return _measured(
        Panel("ensemble", f"{count} VAEs {there.label}", "one seed", _subjects(rows, there)),
        sizes,
    )


def _subjects(rows: list[tuple[str, str, dict[str, Any]]], problem: Problem) -> list[Subject]:
    return [Subject(name, home, problem, settings) for name, home, settings in rows]


def _measured(panel: Panel, sizes: Sizes) -> dict[str, Any]:
    kept = report.record(
        panel, panel.measure(sizes.rounds, sizes.block, lambda text: None), report.machine()
    )
    print(report.table(kept), flush=True)
    return {panel.name: kept}


# Where the time goes.


def profile(sizes: Sizes) -> dict[str, Any]:
    """The kernels of a step, and what waits for the device in an epoch of `fit`."""
    from benchmarks.subjects_pyro import compiled_step
    from benchmarks.subjects_torch import graphed_step

    found: dict[str, Any] = {}
    for problem in (SMALL, REFERENCE):
        there = replace(problem, device=sizes.device)
        x, index = torch.from_numpy(there.data()).to(sizes.device), Index(there)
        rows = torch.from_numpy(index.next(sizes.profiled)).to(sizes.device)
        svi = compiled_step(there)
        subjects: dict[str, Callable[[Tensor], Any]] = {
            ONE_BY_ONE: lambda r, svi=svi, x=x, there=there: svi.step(
                x.index_select(0, r), divisor=there.batch
            )
        }
        if sizes.is_gpu:
            subjects[GRAPHED] = graphed_step(there)
        for name, step in subjects.items():
            found[f"{name}, B={problem.batch}"] = _profiled(step, rows)
        found[f"{OURS}, 10 a call, B={problem.batch}"] = _profiled(
            lambda r, svi=svi, x=x, there=there: svi.steps(x[r], divisor=there.batch),
            rows.unflatten(0, (-1, min(10, len(rows)))),
        )
    return {"kernels of a step": found, "waits": _waits(sizes)}


def _profiled(step: Callable[[Tensor], Any], rows: Tensor) -> dict[str, Any]:
    """Microseconds of a step: of the caller alone, of the device, and of its kernels, by name."""
    for row in rows[:3]:
        step(row)
    _wait(rows)
    begun = time.perf_counter()
    for row in rows:
        step(row)
    called = time.perf_counter() - begun
    _wait(rows)
    whole = time.perf_counter() - begun
    with _profiler() as profiler:
        for row in rows:
            step(row)
        _wait(rows)
    kernels = [
        e
        for e in profiler.key_averages()
        if _device_time(e) > 0 and not e.key.startswith(("cuda", "aten::", "Torch"))
    ]
    top = sorted(kernels, key=_device_time, reverse=True)
    return {
        "calls, us": 1e6 * called / len(rows),
        "whole, us": 1e6 * whole / len(rows),
        "kernels, us": sum(map(_device_time, kernels)) / len(rows),
        "kernels": sum(e.count for e in kernels) / len(rows),
        "names": [
            f"{e.count / len(rows):.2f} x {_device_time(e) / max(1, e.count):.2f} us {e.key[:70]}"
            for e in top[:45]
        ],
        "calls": [
            f"{e.count / len(rows):.2f} {e.key}"
            for e in profiler.key_averages()
            if e.key.startswith("cuda")
        ],
    }


def _waits(sizes: Sizes) -> dict[str, Any]:
    """Calls that wait for the device in trainings of one epoch, of so many steps and of twice as
    many: none a step.
    """
    counts = []
    for times in (1, 2):
        x = (torch.rand(20 * sizes.profiled * times, 784) < 0.3).float()
        torch.manual_seed(0)
        system = zoo.vae(784, latent=50, encoder=MLP((200,)))
        config = TrainConfig(epochs=2, batch_size=20, accelerator=sizes.device, compile=True)
        recorder: list[Any] = []

        def second(state: Any, recorder: list[Any] = recorder) -> None:
            """The first epoch compiles; the second is looked at."""
            if len(state.history) == 1:
                recorder.append(_profiler())
                recorder[0].__enter__()
            else:
                recorder[0].__exit__(None, None, None)

        pyroae.fit(system, x, config=config, on_epoch=second, progress=False)
        events = {e.key: e.count for e in recorder[0].key_averages()}
        counts.append(
            {key: n for key, n in events.items() if "Synchronize" in key or key == "cudaMemcpy"}
        )
    names = sorted(set(counts[0]) | set(counts[1]))
    return {
        "an epoch": counts[0],
        "a step": {
            name: (counts[1].get(name, 0) - counts[0].get(name, 0)) / sizes.profiled
            for name in names
        },
    }


def _profiler() -> Any:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities)


def _device_time(event: Any) -> float:
    return float(getattr(event, "self_device_time_total", 0.0))


# Likelihoods and scores.


def mnist(sizes: Sizes) -> tuple[Any, Tensor]:
    """Splits of binarized MNIST and its test images; random images where PYROAE_DATA names no
    folder.
    """
    root = os.environ.get("PYROAE_DATA")
    if not root or not Path(root).is_dir():
        grey = (
            torch.rand(
                60 if not sizes.is_gpu else 60_000,
                28,
                28,
                generator=torch.Generator().manual_seed(0),
            ).numpy()
            ** 4
        )
        splits = pyroae.load(grey, binarize="dynamic", test=0.2)
    else:
        splits = pyroae.load("mnist", binarize="dynamic", data_root=root)
    return splits, splits.test.x[: sizes.images]


def trained(sizes: Sizes, splits: Any, precision: str = "32-true") -> tuple[Autoencoder, Any]:
    """A VAE 784-200-200-50, and its history."""
    torch.manual_seed(0)
    system = zoo.vae(splits.train, latent=50, encoder=MLP((200, 200)))
    config = TrainConfig(
        epochs=sizes.epochs,
        batch_size=20,
        accelerator=sizes.device,
        precision=precision,
        compile=True,
    )
    return system, pyroae.fit(system, splits, config=config, progress=False)


def likelihoods(sizes: Sizes) -> dict[str, Any]:
    """log p(x) of the test images by importance sampling: seconds in all, and the mean NLL, by
    precision and by peer.
    """
    from benchmarks.subjects_pyro import plain_likelihood
    from benchmarks.subjects_torch import likelihood, products

    splits, x = mnist(sizes)
    system, history = trained(sizes, splits)
    x = x.to(sizes.device)
    found: dict[str, Any] = {"training": _training_of(history)}
    for name, (compile, precision) in {
        "pyroae": ("auto", "highest"),
        "pyroae, eager": (False, "highest"),
        "pyroae, TF32": ("auto", "high"),
        "pyroae, bf16": ("auto", "bf16"),
        "pyroae, eager, bf16": (False, "bf16"),
    }.items():
        found[name] = _scored(lambda: _is(system, x, sizes, compile), precision, repeat=2)  # noqa: B023
        print(f"{name}: {found[name]}", flush=True)
    problem = replace(DEEP, num_particles=sizes.particles, device=sizes.device)
    peers: dict[str, tuple[Callable[..., None], int, dict[str, Any]]] = {
        HAND_EAGER: (likelihood, len(x), {}),
        HAND: (likelihood, len(x), {"compiled": True}),
        "matrix products alone": (products, len(x), {}),
        "plain Pyro": (plain_likelihood, max(1, len(x) // 100), {}),
    }
    for name, (subject, count, settings) in peers.items():
        timer = _Timer(count)
        subject(problem, timer, **settings)
        found[name] = {
            "seconds": [s * len(x) / count for s in timer.seconds],
            "images timed": count,
        }
        print(f"{name}: {found[name]}", flush=True)
    return found


class _Timer:
    """In the place of turns: two blocks of so many data."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seconds: list[float] = []

    def serve(self, block: Callable[[int], None]) -> None:
        """Time two blocks."""
        for _ in range(2):
            begun = time.perf_counter()
            block(self.count)
            self.seconds.append(time.perf_counter() - begun)


def _is(system: Autoencoder, x: Tensor, sizes: Sizes, compile: bool | str) -> Any:
    return pyroae.log_likelihood(
        system.model, system.guide, x, num_particles=sizes.particles, seed=0, compile=compile
    )


def _scored(score: Callable[[], Any], precision: str, repeat: int = 1) -> dict[str, Any]:
    """Seconds of each call, the mean negative log-likelihood, and its Monte-Carlo error."""
    seconds = []
    before = torch.get_float32_matmul_precision()
    half = (
        torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16)
        if precision == "bf16"
        else nullcontext()
    )
    torch.set_float32_matmul_precision("highest" if precision == "bf16" else precision)
    try:
        for _ in range(repeat):
            begun = time.perf_counter()
            with half:
                found = score()
            seconds.append(time.perf_counter() - begun)
    finally:
        torch.set_float32_matmul_precision(before)
    nll = -found.log_px
    error = getattr(found, "se", torch.zeros(1)).square().sum().sqrt().item() / len(nll)
    return {"seconds": seconds, "nll": nll.mean().item(), "monte carlo se": error}


def precision(sizes: Sizes) -> dict[str, Any]:
    """Trainings in single precision, with TF32 products, and with bf16 products, each scored in
    single precision.
    """
    splits, x = mnist(sizes)
    x = x[:1000].to(sizes.device)
    found = {}
    for name, setting, products in (
        ("single", "32-true", "highest"),
        ("TF32 products", "32-true", "high"),
        ("bf16 products", "bf16-mixed", "highest"),
    ):
        torch.set_float32_matmul_precision(products)
        try:
            system, result = trained(sizes, splits, setting)
        finally:
            torch.set_float32_matmul_precision("highest")
        scored = _scored(lambda: _is(system, x, sizes, "auto"), "highest")  # noqa: B023
        found[name] = {"training": _training_of(result), **scored}
        print(f"{name}: {found[name]}", flush=True)
    return found


def _training_of(result: Any) -> dict[str, Any]:
    steps, seconds = result.history[-1].step, [0.0, *(row.seconds for row in result.history)]
    epochs = [b - a for a, b in pairwise(seconds[1:])] or [seconds[-1]]
    return {
        "steps": steps,
        "seconds": seconds[-1],
        "seconds to compile": result.compile_seconds,
        "ms a step after the first epoch": 1e3 * median(epochs) * len(result.history) / steps,
        "valid_nelbo": result.history[-1].valid_nelbo,
    }


def scores(sizes: Sizes) -> dict[str, Any]:
    """What a study asks of a trained system: importance sampling of all, `Local` of a part,
    annealing.
    """
    splits, x = mnist(sizes)
    system, _ = trained(sizes, splits)
    x = x.to(sizes.device)
    local = Local(system.guide)
    settings = AISSettings(16 if sizes.is_gpu else 4, sizes.distributions)
    found: dict[str, Any] = {}
    rows: dict[str, tuple[int, Callable[[Tensor], Any]]] = {
        "importance sampling": (len(x), lambda part: _is(system, part, sizes, "auto")),
        "AIS": (
            sizes.annealed,
            lambda part: pyroae.ais(system.model, None, part, settings=settings, seed=0),
        ),
        "Local": (
            max(2, sizes.annealed // 2),
            lambda part: pyroae.log_likelihood(
                system.model, local, part, num_particles=sizes.particles // 5, seed=0
            ),
        ),
    }
    for name, (count, score) in rows.items():
        found[name] = {"images": min(count, len(x)), **_scored(lambda: score(x[:count]), "highest")}  # noqa: B023
        print(f"{name}: {found[name]}", flush=True)
    found["of all images, projected, s"] = {
        name: math.ceil(row["seconds"][-1] * sizes.images / row["images"])
        for name, row in found.items()
    }
    return found


def _wait(like: Tensor) -> None:
    if like.is_cuda:
        torch.cuda.synchronize()
