"""Complete commands: a study of several seeds as `pyroae compare` runs it, beside the same study
one training after the other, here or by an older checkout.

    python -m benchmarks.study [digits|small] [--rounds N] [--seeds N] [--against FOLDER]

Commands alternate; a ratio is taken within a round. The first command of each, which fills torch's
cache, does not count with `--warm`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]

SCORED = "--score-particles 100 --score-data 100 --score-method is"
KINDS = {
    "digits": "--latent 10 --hidden 200,200 --batch-size 20 --budget epochs:80",
    "small": "--latent 50 --hidden 200 --batch-size 20 --budget epochs:50",
}
"""Settings of trainings that are long enough to be compiled."""


def main() -> int:
    """Print the seconds of each command, and the ratios of the rounds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("kind", nargs="?", default="digits", choices=list(KINDS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--against", type=Path, default=ROOT, metavar="FOLDER")
    parser.add_argument("--warm", action="store_true", help="leave the first round out")
    options = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as place:
        for i in range(options.rounds + options.warm):
            # --jobs 1 is the default of older versions
            old = _seconds(options, place, options.against, "--jobs", "1")
            new = _seconds(options, place, ROOT)
            counts = i >= options.warm
            print(f"in turn {old:.1f} s, by default {new:.1f} s{'' if counts else ', not counted'}")
            ratios += [new / old] if counts else []
    if ratios:
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        print(f"ratio {middle:.2f} ({low:.2f} to {high:.2f})")
    return 0


def _seconds(options: argparse.Namespace, place: str, checkout: Path, *flags: str) -> float:
    """The time of one command."""
    data = ["--data", _images(place)] if options.kind == "small" else []
    command = [sys.executable, "-m", "pyroae.cli", "compare", "--objectives", "trace-elbo"]
    command += ["--num-particles", "1", *KINDS[options.kind].split(), *SCORED.split()]
    command += [*data, *flags, "--seeds", str(options.seeds)]
    command += ["--overwrite", "--out", str(Path(place) / "study")]
    begun = time.monotonic()
    subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(checkout), **_bytecode(place)},
        cwd=place,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.monotonic() - begun


def _bytecode(place: str) -> dict[str, str]:
    """Keep bytecode, as an installation has it: without it, imports compile each module again."""
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(Path(place) / "bytecode")}


def _images(place: str) -> str:
    """A file of 2,500 binary images of 784 pixels, of which 2,000 are for training."""
    file = Path(place) / "images.npy"
    if not file.exists():
        np.save(file, (np.random.default_rng(0).random((2500, 784)) < 0.3).astype(np.float32))
    return str(file)


if __name__ == "__main__":
    sys.exit(main())
