"""pyroae on a CUDA device: the numbers of a CPU, and speed, in parts that each leave a file when
they are done.

    python -m benchmarks.gpu [PART ...] [--out FOLDER] [--short --device cpu]

Parts, in the order of worth: agreement (systems, objectives, evaluations and trainings against the
CPU; some as compiled code; the tests that need a device), steps, fusion (the kernel of gradients
and Adam: compared, and timed by its tiles), likelihoods, profile, ensembles, scores, precision,
grid (compiled code of every pair). PYROAE_DATA names the folder of torchvision's MNIST; random
images stand for it elsewhere.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
LIMITS = {"agreement": 150, "grid": 120}
"""Seconds after which what is not done of a part is left out."""
SPEED = ("steps", "fusion", "likelihoods", "profile", "ensembles", "scores", "precision")
PARTS = ("agreement", *SPEED, "grid")


def main(argv: Sequence[str] | None = None) -> int:
    """Do the parts one after the other; 1 where a check failed."""
    options = _parser().parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for part in options.parts or PARTS:
        begun = time.monotonic()
        print(f"# {part}", flush=True)
        try:
            found = _checks(part, options) if part in LIMITS else _timed(part, options)
        except Exception as error:  # a part that fails leaves the others alone
            traceback.print_exc()
            found = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        found = {
            "where": where(options.device),
            "seconds": round(time.monotonic() - begun, 1),
            **found,
        }
        (options.out / f"gpu-{part}.json").write_text(
            json.dumps(found, indent=1) + "\n", encoding="utf-8"
        )
        print(f"# {part}: {found['seconds']} s", flush=True)
        failed |= not found.get("ok", True)
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--device", default="cuda", help="in torch's names (default: cuda)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--short", action="store_true", help="a trial: few pairs, small sizes")
    parser.add_argument(
        "--workers",
        type=int,
        default=max(1, (os.cpu_count() or 2) - 2),
        help="processes that check side by side",
    )
    return parser


def where(device: str) -> dict[str, Any]:
    """The device, and what it was measured with."""
    import torch

    from benchmarks import report

    name = torch.cuda.get_device_name() if device == "cuda" else device
    return {"device": name, "cuda": torch.version.cuda, **report.machine()}


def _checks(part: str, options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.gpu import checks

    tasks = checks.tasks_of(part, options.short)
    return checks.run_all(
        tasks, options.device, options.workers, LIMITS[part] if options.device == "cuda" else None
    )


def _timed(part: str, options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.gpu import speed

    sizes = speed.SHORT if options.short else speed.Sizes(options.device)
    if part == "fusion":
        from benchmarks.gpu.fusion import fusion

        return fusion(sizes, options.workers)
    measure: Callable[[Any], dict[str, Any]] = getattr(speed, part)
    return measure(sizes)


if __name__ == "__main__":
    sys.exit(main())
