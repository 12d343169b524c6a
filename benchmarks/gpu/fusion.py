"""The kernel of gradients and Adam (`adam_kernel`): its numbers, and the time of it and of steps.

The checks run first, in processes side by side, and fill the caches of the compilers. On a CPU
Triton interprets the kernel, with TRITON_INTERPRET=1 in the environment.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from benchmarks.gpu.agreement import distance
from benchmarks.gpu.speed import REFERENCE, SMALL, Sizes
from benchmarks.problems import Problem
from benchmarks.subjects_pyro import compiled_step, objective_of, system_of
from pyroae.compilation import adam_kernel, optimizer_updates
from pyroae.compilation.adam_kernel import Tiles, tiles_for
from pyroae.compilation.adam_operators import dense_adam
from pyroae.compilation.codegen import Recorded
from pyroae.compilation.ensemble import Ensemble, Stream
from pyroae.compilation.gradient_fusion import fuse_gradients
from pyroae.compilation.svi import Compiled

EXACT, TF32, LOSSES, PARAMETERS = 1e-5, 3e-3, 1e-4, 1e-2
"""Largest differences: of the kernel by precision, of the losses and of the parameters of steps."""
ADAM = (0.9, 0.999, 1e-8, 0.0, False)
LATE = Tiles(32, 64, 32, early=False)
OF_SMALL = {
    "32x32": Tiles(32, 32, 32),
    "32x32 late": Tiles(32, 32, 32, early=False),
    "16x64": Tiles(16, 64, 32),
    "16x32, 2 warps": Tiles(16, 32, 32, 2),
    "32x64": Tiles(32, 64, 32),
    "32x32 outer": Tiles(32, 32, 32, outer=True),
}
OF_LARGE = {
    "32x64 late": LATE,
    "32x64 late, depth 16": Tiles(32, 64, 16, early=False),
    "64x64 late, 8 warps": Tiles(64, 64, 32, 8, early=False),
    "64x32 late": Tiles(64, 32, 32, early=False),
    "32x64 outer": Tiles(32, 64, 32, early=False, outer=True),
}
MEMBERS, LAUNCHED = 10, 16


@dataclass(frozen=True)
class Case:
    """Layers of the kernel: those of a problem, so many members at once (0: without them)."""

    problem: Problem
    tiles: Tiles
    members: int = 0
    settings: tuple[float, ...] = ADAM


CASES = {
    **{f"B=20, {name}": Case(SMALL, tiles) for name, tiles in OF_SMALL.items()},
    **{f"B=128, {name}": Case(REFERENCE, tiles) for name, tiles in OF_LARGE.items()},
    "B=512, 32x64 late": Case(replace(REFERENCE, batch=512), LATE),
    "ten members, 32x32": Case(SMALL, OF_SMALL["32x32"], MEMBERS),
    "ten members, 32x64 late": Case(SMALL, LATE, MEMBERS),
    "decay": Case(SMALL, OF_SMALL["32x32"], 0, (0.9, 0.99, 1e-8, 0.1, False)),
    "decoupled decay": Case(SMALL, OF_SMALL["32x32"], 0, (0.9, 0.99, 1e-8, 0.1, True)),
}
TINY = Problem((9,), 3, 6, features=20)
TRIALS = {name: replace(CASES[name], problem=TINY) for name in ("B=20, 32x32", "decoupled decay")}


def fusion(sizes: Sizes, workers: int) -> dict[str, Any]:
    """All checks, then the times."""
    from benchmarks.gpu.checks import run_all

    kernels = CASES if sizes.is_gpu else TRIALS
    steps = ("B=20", "B=128", "members") if sizes.is_gpu else ("B=20", "members")
    tasks = [*(("fused_steps", name) for name in steps), *(("kernel", name) for name in kernels)]
    limit = 90.0 if sizes.is_gpu else None
    found = run_all(tasks, sizes.device, workers, limit)
    return {
        **found,
        "kernel, us": {name: _kernel_times(name, case, sizes) for name, case in kernels.items()},
        "step, us": {name: _step_times(name, sizes.device) for name in steps},
    }


# The kernel.


def kernel(name: str, device: str) -> dict[str, Any]:
    """A case of the kernel against torch's operations in double precision."""
    case = (TRIALS if device == "cpu" else CASES)[name]
    gaps = []
    for tf32 in (False, True):
        state, factors, numbers = _operands(case, device)
        exact = tree_map_only(Tensor, Tensor.double, (state, factors, numbers))
        dense_adam(*exact[0], *exact[1], False, exact[2], *case.settings)  # type: ignore[arg-type]
        with _using(case.tiles, tf32):
            adam_kernel.launch(*state, *factors, tf32, numbers, case.settings)
        gaps.append(distance(*(list(chain(*lists)) for lists in (state, exact[0]))))
    return {"difference": gaps[0], "tf32": gaps[1], "ok": gaps[0] <= EXACT and gaps[1] <= TF32}


def _operands(case: Case, device: str) -> tuple[list[list[Tensor]], tuple[Any, ...], Tensor]:
    """Parameters, m and v; left and right factors and scales of the gradients; numbers."""
    torch.manual_seed(0)
    lead, batch = (case.members,) if case.members else (), case.problem.batch
    layers = [*case.problem.encoder_sizes, *case.problem.decoder_sizes]
    parameters = [torch.randn(*lead, m, n, device=device) for n, m in layers]
    parameters += [torch.randn(*lead, m, device=device) for _, m in layers]
    lefts = 2 * [torch.randn(*lead, batch, m, device=device).mT for _, m in layers]
    rights = [torch.randn(*lead, batch, n, device=device) for n, _ in layers]
    squares = [torch.rand_like(p) + 0.1 for p in parameters]
    state = [parameters, [torch.randn_like(p) for p in parameters], squares]
    numbers = torch.tensor([-0.01, 1.3, 0.999], device=device)
    return state, (lefts, rights, [0.05] * len(lefts)), numbers


def _kernel_times(name: str, case: Case, sizes: Sizes) -> dict[str, float]:
    """Microseconds of the kernel, and of the products of the weights alone."""
    state, (lefts, rights, scales), numbers = _operands(case, sizes.device)
    found = {}
    for precision, tf32 in (("ieee", False), ("tf32", True)):
        factors = (lefts, rights, scales, tf32)

        def update(factors: Any = factors) -> None:
            adam_kernel.launch(*state, *factors, numbers, case.settings)

        def products() -> None:
            _ = [a @ b for a, b in zip(lefts, rights, strict=False)]

        with _using(case.tiles, tf32):
            found[precision] = _replayed(update)
            found[f"products, {precision}"] = _replayed(products)
    print(f"{name}: {found}", flush=True)
    return found


def _replayed(run: Callable[[], None], count: int = 20) -> float:
    """Microseconds of a call, of so many in a CUDA graph."""
    run()
    if not torch.cuda.is_available():
        return _microseconds(run)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            run()
    return _microseconds(graph.replay, 20) / count


def _microseconds(run: Callable[[], object], repeats: int = 1) -> float:
    """Microseconds of a call: the median of five times; on a CPU of one call."""
    times, on_gpu = [], torch.cuda.is_available()
    repeats = repeats if on_gpu else 1
    for _ in range(5 if on_gpu else 1):
        _wait()
        begun = time.perf_counter()
        for _ in range(repeats):
            run()
        _wait()
        times.append(1e6 * (time.perf_counter() - begun) / repeats)
    return median(times)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# Steps.


@dataclass
class Subject:
    """Steps of one training or of ten: a call takes LAUNCHED steps and returns their losses."""

    run: Callable[[], Tensor]
    parameters: Callable[[], list[Tensor]]
    recorded: Callable[[], Recorded | None]


def subject(name: str, device: str, fused: bool) -> Subject:
    """The compiled steps of B=20, B=128 or ten members of B=20, with fused gradients or without."""
    problem = SMALL if name != "B=128" else REFERENCE
    there = replace(problem, device=device) if device != "cpu" else TINY
    x = torch.from_numpy(there.data(LAUNCHED * there.batch)).to(device).unflatten(0, (LAUNCHED, -1))
    with _fused(fused, device):
        return (_members if name == "members" else _training)(there, x)


def _training(problem: Problem, x: Tensor) -> Subject:
    svi = compiled_step(problem)
    (graph,) = [graph for graph in svi._graphs.values() if graph is not None]
    return Subject(
        lambda: svi.steps(x, divisor=problem.batch),
        lambda: list(svi.parameters().values()),
        lambda: getattr(graph, "recorded", None),
    )


def _members(problem: Problem, x: Tensor) -> Subject:
    members, streams = [], []
    for seed in range(MEMBERS):
        svi = Compiled(
            system_of(problem), objective_of(problem), lambda p: torch.optim.Adam(p, lr=1e-3)
        )
        members.append(svi)
        torch.manual_seed(seed)
        streams.append(Stream(x.device))
    ensemble, batches = Ensemble(members, streams), [[(row,)] * MEMBERS for row in x]
    for _ in range(2):  # the second step makes the graph
        ensemble.step(batches[0], divisor=problem.batch)
    if not ensemble.is_batched:
        raise RuntimeError("the step is not compiled")

    def run() -> Tensor:
        return torch.stack([*chain(*ensemble.steps(batches, lambda i: None, problem.batch))])

    return Subject(run, lambda: ensemble.leaves, lambda: ensemble._last.recorded)  # type: ignore[union-attr]


def fused_steps(name: str, device: str) -> dict[str, Any]:
    """Losses and parameters of steps with fused gradients against those of steps without."""
    found = []
    for fused in (True, False):
        steps = subject(name, device, fused)
        torch.manual_seed(1)
        found.append(([steps.run() for _ in range(2)], steps.parameters()))
    losses, parameters = (distance(list(a), list(b)) for a, b in zip(*found, strict=True))
    ok = losses <= LOSSES and parameters <= PARAMETERS
    return {"difference": losses, "parameters": parameters, "ok": ok}


def _step_times(name: str, device: str) -> dict[str, list[float]]:
    """Microseconds of a step, of the replay alone and of the whole call; in turns, by tile."""
    of_problem = {"B=20": OF_SMALL, "B=128": OF_LARGE}.get(name, {"32x32": OF_SMALL["32x32"]})
    tiles = list(of_problem.items()) if device != "cpu" else list(of_problem.items())[:1]
    both = {fused: subject(name, device, fused) for fused in (False, True)}
    found: dict[str, list[float]] = {}
    for tf32 in (False, True):
        for label, chosen in [("", None), *tiles, (" again", None)]:
            steps = both[chosen is not None]
            with _using(chosen, tf32):
                replay = _recorded_again(steps)
                times = [_microseconds(one, 10) / LAUNCHED for one in (replay, steps.run)]
            row = f"{'tf32' if tf32 else 'ieee'}, {label if chosen else 'not fused' + label}"
            found[row] = times
            print(f"{name}, {row}: {times}", flush=True)
    return found


def _recorded_again(steps: Subject) -> Callable[[], object]:
    """Record the steps with the present tiles and precision; the kernel is compiled before."""
    steps.run()
    recorded = steps.recorded()
    if recorded is None:
        return steps.run
    static = [tensor.clone() for tensor in recorded._static]
    rows = [row[0].clone() for row in recorded._recordings[LAUNCHED][0]]
    with torch.no_grad():
        recorded._run(*static, *rows)
    recorded._recordings.clear()
    steps.run()
    return recorded._recordings[LAUNCHED][1]


# Settings.


@contextmanager
def _using(tiles: Tiles | None, tf32: bool) -> Iterator[None]:
    """Products of this precision, and the kernel with these tiles."""
    own = adam_kernel.launch
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")

    def launch(*arguments: Any) -> None:
        own(*arguments[:6], tf32, *arguments[7:])

    chosen = mock.patch.object(adam_kernel, "tiles_for", lambda batch: tiles or tiles_for(batch))
    try:
        with chosen, mock.patch.object(adam_kernel, "launch", launch):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _fused(fused: bool, device: str) -> Iterator[None]:
    """Updates with fused gradients or without; on a CPU by the rewritten graph as it is."""

    def rewritten(graph: torch.fx.GraphModule, *_: object) -> torch.fx.GraphModule:
        fuse_gradients(graph)
        return graph

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(optimizer_updates, "FUSED", fused))
        if device == "cpu":
            stack.enter_context(mock.patch.object(optimizer_updates, "GROUPED", ("cpu", "cuda")))
            for module in ("svi", "ensemble"):
                where = f"pyroae.compilation.{module}.inductor"
                stack.enter_context(mock.patch(where, rewritten))
        yield
