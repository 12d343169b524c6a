"""What training on many images costs: measured scaling of processes on this machine, and
projections with their arithmetic.

    python -m benchmarks.cost [--seconds 6]

Measures images a second of one process, and of two that share batches (DDP, a thread each).
What is projected for GPUs rests on ASSUMED, which is not measured.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "cost.json"
ASSUMED = {
    "flops of a GPU": 67e12,
    "share of them reached": 0.25,
    "seconds of a step beside its arithmetic": 2e-3,
    "bytes a second between GPUs": 5e10,
    "bytes a second of a node's disk": 3e9,
    "GPUs of a node": 8,
}
"""An H100's peak in single precision outside its tensor cores (NVIDIA's data sheet), what wide
batches are hoped to reach of it, Python's part of a step of DDP, a 400 Gbit network, a fast disk.
"""
SIZES = (10**6, 10**7, 10**8, 10**9)
EPOCHS, FEATURES, PER_GPU = 50, 784, 4096

WORKER = """
import json, sys, time
import torch
torch.set_num_threads(int(sys.argv[3]))
from pyroae import TrainConfig, fit, zoo
from pyroae.config import RunConfig
from pyroae.data.loading import Dataset
from pyroae.runtime.processes import is_first
from pyroae.training.state import State
devices, seconds = int(sys.argv[1]), float(sys.argv[2])
noise = torch.rand(32768, 784, generator=torch.Generator().manual_seed(0))
data = Dataset.from_array((noise < 0.2).float())
system = zoo.from_config(RunConfig(hidden=(400,), latent=20, likelihood="bernoulli"), data)
config = TrainConfig(
    epochs=10**6, batch_size=4096, max_seconds=seconds,
    accelerator="cpu", devices=devices, compile=False,
)
marks = []
keep = lambda state: marks.append((state.progressed.step, state.progressed.seconds))
fit(system, data, config=config, on_epoch=keep, progress=False)
if is_first():
    (first, begun), (last, ended) = marks[0], marks[-1]
    parameters = sum(p.numel() for p in system.parameters())
    speed = (last - first) * 4096 / (ended - begun)
    print(json.dumps({"images a second": speed, "parameters": parameters}))
"""


def main() -> None:
    """Measure, project, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=6.0, help="of each measurement (default: 6)"
    )
    seconds = parser.parse_args().seconds
    rounds = [{name: _rate(*how, seconds) for name, how in _SUBJECTS.items()} for _ in range(3)]
    measured = {name: sorted(r[name]["images a second"] for r in rounds) for name in _SUBJECTS}
    parameters = int(rounds[0]["one process, one thread"]["parameters"])
    found = {
        "images a second, three rounds": measured,
        "parameters": parameters,
        "assumed": ASSUMED,
        "hours of 50 epochs": _projected(parameters),
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    for name, values in measured.items():
        print(f"{name}: {values[1]:,.0f} images a second ({values[0]:,.0f} to {values[2]:,.0f})")
    for row in _projected(parameters):
        print(" | ".join(f"{value:.3g}" for value in row.values()))


_SUBJECTS = {
    "one process, one thread": (1, 1),
    "one process, two threads": (1, 2),
    "two processes, a thread each": (2, 1),
}


def _rate(devices: int, threads: int, seconds: float) -> dict[str, float]:
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(WORKER)
        script.flush()
        command = [sys.executable, script.name, str(devices), str(seconds), str(threads)]
        found = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
    told: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return told


def _projected(parameters: int) -> list[dict[str, float]]:
    """For each number of images and GPUs: hours of arithmetic, of steps, of sharing gradients, of
    reading; bytes.
    """
    rows = []
    for images in SIZES:
        for gpus in (1, 8, 64):
            steps = images * EPOCHS / (PER_GPU * gpus)
            parts = {
                "arithmetic": 6
                * parameters
                * images
                * EPOCHS
                / (ASSUMED["flops of a GPU"] * ASSUMED["share of them reached"] * gpus),
                "steps": steps * ASSUMED["seconds of a step beside its arithmetic"],
                "sharing": steps
                * 8
                * parameters
                / ASSUMED["bytes a second between GPUs"]
                * (gpus > 1),
                "reading": images * FEATURES * EPOCHS / ASSUMED["bytes a second of a node's disk"],
            }
            hours = {name: seconds / 3600 for name, seconds in parts.items()}
            whole = max(hours["arithmetic"] + hours["steps"] + hours["sharing"], hours["reading"])
            rows.append(
                {
                    "images": images,
                    "GPUs": gpus,
                    **hours,
                    "all": whole,
                    "bytes of data": images * FEATURES,
                }
            )
    return rows


if __name__ == "__main__":
    main()
