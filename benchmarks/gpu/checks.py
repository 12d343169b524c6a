"""The checks of a device, in processes side by side."""

import multiprocessing
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures import TimeoutError as Late
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[2] / "tests"
Task = tuple[str, ...]
"""A kind of check and its arguments."""


def tasks_of(part: str, short: bool) -> list[Task]:
    """The checks of a part, those that take longest first."""
    from benchmarks.gpu import agreement, evaluators

    left = [
        p
        for p in agreement.PAIRS
        if p not in agreement.COVERING and p[0] not in agreement.OTHER_DRAWS
    ]
    if part == "grid":
        return [("code", *pair) for pair in left][: 1 if short else None]
    pairs = agreement.PAIRS[:: 160 if short else 1]
    return [
        *([] if short else [("tests",)]),
        *(
            ("on_device", name)
            for name in evaluators.ON_DEVICE
            if not short or name == "ensemble, traced"
        ),
        *([] if short else (("code", *pair) for pair in agreement.COVERING)),
        *([] if short else (("steps", *pair) for pair in agreement.STEPS)),
        *(("against_cpu", name) for name in list(evaluators.AGAINST_CPU)[:: 6 if short else 1]),
        *(("choice", name) for name in list(agreement.ROWS)[:: 12 if short else 1]),
        *(("eager", *pair) for pair in pairs),
    ]


def check(task: Task, device: str) -> dict[str, Any]:
    """One check, in a worker's process; an error is a failed check."""
    from benchmarks.gpu import agreement, evaluators

    kind, *arguments = task
    checks: dict[str, Callable[..., dict[str, Any]]] = {
        "eager": agreement.eager,
        "choice": agreement.choice,
        "code": agreement.code,
        "steps": agreement.steps,
        "against_cpu": evaluators.against_cpu,
        "on_device": evaluators.on_device,
        "tests": _tests,
    }
    if kind in ("kernel", "fused_steps"):  # their module imports Triton
        from benchmarks.gpu import fusion

        checks |= {"kernel": fusion.kernel, "fused_steps": fusion.fused_steps}
    begun = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = checks[kind](*arguments, device)
    except Exception as error:
        found = {
            "ok": False,
            "error": f"{type(error).__name__}: {error}"[:600],
            "at": traceback.format_exc()[-1500:],
        }
    return {**found, "seconds": round(time.monotonic() - begun, 2)}


def _tests(device: str) -> dict[str, Any]:
    """The tests that need a device, of the files that have one: others may need more packages."""
    options = ["-m", "gpu", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *map(str, files_of_tests())],
        capture_output=True,
        text=True,
        check=False,
    )
    return {"ok": run.returncode == 0, "output": run.stdout[-3000:]}


def files_of_tests() -> list[Path]:
    """The files of tests in which a test is marked as one for a device."""
    files = sorted(TESTS.rglob("test_*.py"))
    return [file for file in files if "@pytest.mark.gpu" in file.read_text(encoding="utf-8")]


def run_all(tasks: list[Task], device: str, workers: int, limit: float | None) -> dict[str, Any]:
    """All checks in so many processes; those that are not done in `limit` seconds are left out."""
    done: dict[str, dict[str, Any]] = {}
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, _quiet)
    futures: dict[Future[dict[str, Any]], Task] = {
        pool.submit(check, task, device): task for task in tasks
    }
    try:
        for future in as_completed(futures, limit):
            task, found = futures[future], future.result()
            done[" ".join(task)] = found
            if not found["ok"]:
                print(f"{' '.join(task)}: {found}", flush=True)
    except Late:
        print(f"{len(tasks) - len(done)} of {len(tasks)} checks were left out", flush=True)
    finally:
        for process in list(pool._processes.values()) if len(done) < len(tasks) else []:
            process.kill()
        pool.shutdown(wait=True, cancel_futures=True)
    bad = [name for name, found in done.items() if not found["ok"]]
    worst = max((found.get("difference", 0.0) for found in done.values()), default=0.0)
    print(f"{len(done)} of {len(tasks)} checks, {len(bad)} failed", flush=True)
    return {
        "ok": not bad,
        "checks": len(tasks),
        "done": len(done),
        "failed": bad,
        "largest": worst,
        "found": done,
    }


def _quiet() -> None:
    """One thread a process; no pool of compilers beside it."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
