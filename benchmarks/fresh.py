"""What only a fresh process shows: the time to start, to the first and the second step, and the
growth of peak memory. An older checkout has the same processes, in the same rounds.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.against import Older
from benchmarks.workers import ROOT, Timing

NOTHING, TORCH, PYRO, IMPORT, HELP = (
    "python",
    "import torch",
    "import pyro",
    "import pyroae",
    "pyroae --help",
)
COLD, WARM, SVI = "pyroae, cold cache", "pyroae, warm cache", "Pyro SVI"
FIRST, IMPORTS, SECOND = (
    "from start to the first step",
    "imports of the second step",
    "the second step without imports",
)
PEAK = "log_likelihood, K="
PARTICLES = (500, 50_000)
Say = Callable[[str], None]


def commands(rounds: int, say: Say, older: Older | None = None) -> list[Timing]:
    """Seconds from the start of a process to its end."""
    words = {
        NOTHING: ["-c", "pass"],
        TORCH: ["-c", "import torch"],
        PYRO: ["-c", "import pyro"],
        IMPORT: ["-c", "import pyroae"],
        HELP: ["-m", "pyroae.cli", "--help"],
    }
    found = [(Timing(name), ROOT) for name in words]
    if older is not None:
        found += [(Timing(name, is_old=True), Path(older.folder)) for name in (IMPORT, HELP)]
    order, generator = list(found), random.Random(0)
    for i in range(rounds + 1):  # the first round, which reads files from the disk, does not count
        say(f"round {i} of {rounds}")
        generator.shuffle(order)
        for timing, place in order:
            begun = time.monotonic()
            _run(timing, words[timing.name], place)
            if i:
                timing.seconds.append(time.monotonic() - begun)
    return [timing for timing, _ in found]


def first_steps(rounds: int, say: Say, older: Older | None = None) -> list[Timing]:
    """Seconds to the first step, and of the second, at which the graph is made, with the caches of
    torch cold and warm.
    """
    kinds = [(kind, ROOT, False) for kind in (COLD, WARM, SVI)]
    if older is not None:
        kinds += [(kind, Path(older.folder), True) for kind in (COLD, WARM)]
    timings = {
        kind: [Timing(f"{kind[0]}: {part}", is_old=kind[2]) for part in (FIRST, IMPORTS, SECOND)]
        for kind in kinds
    }
    with ExitStack() as stack:
        warm = {
            place: stack.enter_context(tempfile.TemporaryDirectory())
            for place in {place for _, place, _ in kinds}
        }
        for i in range(rounds + 1):
            for kind in kinds:
                name, place, is_old = kind
                say(f"round {i} of {rounds}: {name}{' (older)' if is_old else ''}")
                with tempfile.TemporaryDirectory() as cold:
                    cache = cold if name == COLD and i else warm[place]
                    _first_steps(timings[kind], name, place, cache, counts=i > 0)
    return [timing for parts in timings.values() for timing in parts]


def _first_steps(parts: Sequence[Timing], kind: str, place: Path, cache: str, counts: bool) -> None:
    script = str(ROOT / "benchmarks" / "first_step.py")
    words = ["-P", script, str(time.monotonic()), "svi" if kind == SVI else "pyroae"]
    # Torch keeps compiled headers in the temporary folder, whatever its cache is.
    text = _run(parts[0], words, place, {"TORCHINDUCTOR_CACHE_DIR": cache, "TMPDIR": cache})
    for timing in parts:
        timing.skipped = parts[0].skipped
    if counts and text:
        for timing, number in zip(parts, text.split(), strict=True):
            timing.seconds.append(float(number))


def memory(rounds: int, say: Say, older: Older | None = None) -> list[Timing]:
    """Growth of peak memory in MiB, for a small and a large K."""
    places = [(ROOT, False), *([(Path(older.folder), True)] if older is not None else [])]
    timings = [
        (Timing(f"{PEAK}{k:,}", is_old=is_old), place, k)
        for place, is_old in places
        for k in PARTICLES
    ]
    script = str(ROOT / "benchmarks" / "peak_memory.py")
    for i in range(1, rounds + 1):
        for timing, place, k in timings:
            say(f"round {i} of {rounds}: {timing.name}")
            if text := _run(timing, ["-P", script, str(k)], place):
                timing.seconds.append(float(text.split()[-1]))
    return [timing for timing, _, _ in timings]


def _run(
    timing: Timing, words: list[str], place: Path, environment: dict[str, str] | None = None
) -> str:
    """Output of Python with a checkout of pyroae; where it fails, the timing says why."""
    try:
        done = subprocess.run(
            [sys.executable, *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
            cwd=place,  # `-c` and `-m` look here first
            env={**os.environ, "PYTHONPATH": str(place), **(environment or {})},
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
