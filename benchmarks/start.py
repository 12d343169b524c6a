"""What a command costs before it works: CPU seconds of whole processes, and the first output.

    python -m benchmarks.start [--rounds 5] [--before DIR]

Processes are interleaved and ratios are taken within a round, so that other work on the machine
disturbs all of them. Every row is a process from start to end: `train` takes one step, evaluates
the validation data, writes the run and draws its curves; Pyro's program takes one step of SVI.
`--before` adds the commands of another checkout of pyroae. Prints and keeps ratios of CPU seconds
with their quartiles, and the wall time to the first output.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.report import machine, quartiles, ratios

RESULTS = Path(__file__).parent / "results" / "start.json"
IMPORTS, SVI = "import torch, pyro", "one step of Pyro's SVI"
PROGRAM = """
import pyro, pyro.distributions as dist, torch
from pyro.infer import SVI, Trace_ELBO
from sklearn.datasets import load_digits
from torch import nn

def layers(inputs, outputs):
    return nn.Sequential(
        nn.Linear(inputs, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, outputs)
    )

encoder, decoder = layers(64, 20), layers(10, 64)

def model(x):
    pyro.module("decoder", decoder)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 10), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

def guide(x):
    pyro.module("encoder", encoder)
    with pyro.plate("data", len(x)):
        loc, log_scale = encoder(x).chunk(2, -1)
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

x = torch.tensor(load_digits().data / 16, dtype=torch.float32).round()
SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(x[:100])
"""
TRAIN = ("train", "--system", "vae", "--data", "digits", "--latent", "10", "--hidden", "200,200")
ONE_STEP = (*TRAIN, "--batch-size", "100", "--max-steps", "1", "--overwrite", "--out")
TARGETS = {
    "--help": (None, 0.5),
    "sample": (IMPORTS, 1.6),
    "encode": (IMPORTS, 1.6),
    "report": (IMPORTS, 1.6),
    "train": (SVI, 1.5),
}
"""By command what its CPU seconds are divided by, and the largest ratio; seconds without that."""
FIRST_OUTPUT = 1.0
"""Largest wall time to the first output, in seconds, on a machine without other work."""


@dataclass
class Times:
    """Times of one command, one number a round: CPU seconds, and seconds to the first output."""

    cpu: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=5, help="of all processes (default: 5)")
    parser.add_argument("--before", metavar="DIR", help="another checkout of pyroae")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(commands(Path(folder), settings.before), settings.rounds)
    rows = {name: row(name, times, found) for name, times in found.items()}
    RESULTS.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    for name, values in rows.items():
        print(
            f"{name:30} {values['cpu']:6.2f} CPU s   first output {values['first']:5.2f} s", end=""
        )
        low, middle, high = values["ratio"] or (0.0, 0.0, 0.0)
        text = f"   {middle:.2f} ({low:.2f} to {high:.2f}) of {values['of']}"
        print(text if values["ratio"] else "")


def commands(folder: Path, before: str | None) -> dict[str, tuple[list[str], str]]:
    """Return the processes to time.

    Args:
        folder: Where a run is trained and files are written.
        before: Another checkout; None for this one alone.

    Returns:
        By name the words of the process, and its PYTHONPATH.
    """
    here = str(Path(__file__).parents[1])
    found = {IMPORTS: ([sys.executable, "-c", IMPORTS], here)}
    found[SVI] = ([sys.executable, "-c", PROGRAM], here)
    for label, place in (("", here), *([("before: ", before)] if before else [])):
        run = str(folder / f"run{len(label)}")
        pyroae = [sys.executable, "-m", "pyroae.cli"]
        _timed([*pyroae, *ONE_STEP, run], place)
        given = [("--help",), ("papers", "--list"), ("sample", run), ("encode", run)]
        for words in (*given, ("report", run), (*ONE_STEP, f"{run}-again")):
            found[label + words[0]] = ([*pyroae, *words], place)
    return found


def measured(found: Mapping[str, tuple[list[str], str]], rounds: int) -> dict[str, Times]:
    """Run all processes in each round, in a random order.

    Args:
        found: The processes.
        rounds: How many rounds are counted; the one before them, which reads files, is not.

    Returns:
        Their times.
    """
    times = {name: Times() for name in found}
    order, generator = list(found), random.Random(0)
    for i in range(rounds + 1):
        print(f"round {i} of {rounds}", file=sys.stderr, flush=True)
        generator.shuffle(order)
        for name in order:
            cpu, first = _timed(*found[name])
            if i:
                times[name].cpu.append(cpu)
                times[name].first.append(first)
    return times


def _timed(words: Sequence[str], path: str) -> tuple[float, float]:
    """CPU seconds of a process, and wall seconds to its first output."""
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    begun = time.monotonic()
    process = subprocess.Popen(  # `-m` looks in the working directory first: that of the checkout
        words, env=environment, cwd=path, stdout=pipe, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    process.stdout.read1(1)
    first = time.monotonic() - begun
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: {output.decode()}")
    return used.ru_utime + used.ru_stime, first


def row(name: str, times: Times, found: Mapping[str, Times]) -> dict[str, object]:
    """Return what is kept of a command.

    Args:
        name: The command.
        times: Its times.
        found: The times of all.

    Returns:
        Medians of CPU seconds and of the wall time to the first output, the quartiles of the ratio
        to what the command is compared with, and the target.
    """
    of, target = TARGETS.get(name.removeprefix("before: "), (IMPORTS, None))
    return {
        "cpu": median(times.cpu),
        "cpu quartiles": quartiles(times.cpu),
        "first": median(times.first),
        "of": of,
        "ratio": None if of is None else ratios(times.cpu, found[of].cpu),
        "target": target,
    }


if __name__ == "__main__":
    main()
