"""What only a fresh process shows: the time to start, to the first and the second step, and the
growth of peak memory.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.workers import Timing

NOTHING, TORCH, PYRO, IMPORT, HELP = (
    "python",
    "import torch",
    "import pyro",
    "import pyroae",
    "pyroae --help",
)
COLD, WARM, SVI = "pyroae, cold cache", "pyroae, warm cache", "Pyro SVI"
FIRST, SECOND = "from start to the first step", "the second step"
PEAK = "log_likelihood, K="
PARTICLES = (500, 50_000)
Say = Callable[[str], None]


def commands(rounds: int, say: Say) -> list[Timing]:
    """Seconds from the start of a process to its end."""
    found = {
        NOTHING: [sys.executable, "-c", "pass"],
        TORCH: [sys.executable, "-c", "import torch"],
        PYRO: [sys.executable, "-c", "import pyro"],
        IMPORT: [sys.executable, "-c", "import pyroae"],
        HELP: [str(Path(sys.executable).with_name("pyroae")), "--help"],
    }
    timings = {name: Timing(name) for name in found}
    order, generator = list(found), random.Random(0)
    for i in range(rounds + 1):  # the first round, which reads files from the disk, does not count
        say(f"round {i} of {rounds}")
        generator.shuffle(order)
        for name in order:
            begun = time.monotonic()
            _run(timings[name], found[name])
            if i:
                timings[name].seconds.append(time.monotonic() - begun)
    return list(timings.values())


def first_steps(rounds: int, say: Say) -> list[Timing]:
    """Seconds to the first step and of the second, at which the graph is made, with the caches of
    torch cold and warm.
    """
    kinds = (COLD, WARM, SVI)
    timings = {
        name: Timing(name) for kind in kinds for name in (f"{kind}: {FIRST}", f"{kind}: {SECOND}")
    }
    with tempfile.TemporaryDirectory() as warm:
        for i in range(rounds + 1):
            for kind in kinds:
                say(f"round {i} of {rounds}: {kind}")
                with tempfile.TemporaryDirectory() as cold:
                    _first_steps(timings, kind, cold if kind == COLD and i else warm, counts=i > 0)
    return list(timings.values())


def _first_steps(timings: dict[str, Timing], kind: str, cache: str, counts: bool) -> None:
    pair = [timings[f"{kind}: {FIRST}"], timings[f"{kind}: {SECOND}"]]
    engine = "svi" if kind == SVI else "pyroae"
    call = f"first_steps({time.monotonic()}, '{engine}')"
    code = f"from benchmarks.subjects_pyro import first_steps; {call}"
    text = _run(pair[0], [sys.executable, "-c", code], {"TORCHINDUCTOR_CACHE_DIR": cache})
    pair[1].skipped = pair[0].skipped
    if counts and text:
        for timing, number in zip(pair, text.split(), strict=True):
            timing.seconds.append(float(number))


def memory(rounds: int, say: Say) -> list[Timing]:
    """Growth of peak memory in MiB, for a small and a large K."""
    timings = [Timing(f"{PEAK}{k:,}") for k in PARTICLES]
    for i in range(1, rounds + 1):
        for timing, k in zip(timings, PARTICLES, strict=True):
            say(f"round {i} of {rounds}: {timing.name}")
            text = _run(
                timing,
                [
                    sys.executable,
                    "-c",
                    f"from benchmarks.subjects_pyro import peak_memory; peak_memory({k})",
                ],
            )
            if text:
                timing.seconds.append(float(text.split()[-1]))
    return timings


def _run(timing: Timing, command: list[str], environment: dict[str, str] | None = None) -> str:
    """Its output; where it fails, the timing says why."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
            env={**os.environ, **(environment or {})},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        timing.skipped = str(error)[:150]
        return ""
    if done.returncode:
        timing.skipped = " ".join(
            (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1].split()
        )[:150]
        return ""
    return done.stdout
