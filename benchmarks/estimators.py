"""Compiled steps of the estimators beside those of IWAE, at equal decoder evaluations.

    python -m benchmarks.estimators [--rounds 40] [NAME ...]

Each estimator trains a system that it takes (784 features, 200 hidden units, batches of 100); IWAE
trains the same system with as many particles as the estimator has decoder evaluations. Steps of the
two are interleaved, on one thread. Prints and keeps the ratio of medians with its quartiles.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from pyroae import posteriors, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.compilation.svi import compile as compiled
from pyroae.objectives import ObjectiveBase, parse_objective

RESULTS = Path(__file__).parent / "results" / "estimators.json"
FEATURES, BATCH = 784, 100

SYSTEMS: dict[str, Callable[[], Autoencoder]] = {
    "gaussian": lambda: zoo.vae(FEATURES, 20, hidden=(200,)),
    "layers": lambda: zoo.hierarchical_vae(FEATURES, (20, 10), hidden=(200,)),
    "mixture": lambda: zoo.vae(FEATURES, 20, hidden=(200,), posterior=posteriors.Mixture(2)),
    "bits": lambda: zoo.discrete_vae(FEATURES, 20, hidden=(200,)),
    "few bits": lambda: zoo.discrete_vae(FEATURES, 4, hidden=(200,)),
}
"""The systems, by the latents that they have."""

ESTIMATORS = {
    "dreg": ("gaussian", 8),
    "gdreg": ("layers", 8),
    "dais:steps=4": ("gaussian", 2),
    "selbo": ("mixture", 8),
    "siwae": ("mixture", 8),
    "score": ("bits", 8),
    "vimco": ("bits", 8),
    "ovis": ("bits", 8),
    "ovis-mc:auxiliary=4": ("bits", 4),
    "vargrad": ("bits", 8),
    "nvil": ("bits", 8),
    "disarm": ("bits", 8),
    "arm": ("bits", 8),
    "gumbel-softmax": ("bits", 4),
    "straight-through": ("bits", 8),
    "rebar": ("bits", 4),
    "relax": ("bits", 4),
    "enumerate": ("few bits", 1),
    "mlmc": ("gaussian", 8),
}
"""The system and K of each estimator."""


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimators", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="estimators (default: all)")
    parser.add_argument("--rounds", type=int, default=40, help="of interleaved steps (default: 40)")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name in settings.names or ESTIMATORS:
        found[name] = _compared(name, settings.rounds)
        row = found[name]
        low, middle, high = row["ratio"]
        print(
            f"{name:20} {row['evaluations']:6.1f} evaluations  {row['ms']:7.2f} ms  "
            f"{middle:5.2f} ({low:.2f} to {high:.2f}) of IWAE",
            flush=True,
        )
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def _compared(name: str, rounds: int) -> dict[str, object]:
    """The step of an estimator, in ms, and its quartiles in units of IWAE's."""
    which, count = ESTIMATORS[name]
    x = (torch.rand(BATCH, FEATURES) < 0.3).float()
    objective = parse_objective(name, count)
    if objective.variant != () or name == "mlmc":
        objective = _at_one_level(objective)
    system = SYSTEMS[which]()
    objective.bound(system.model, system.guide, x)
    evaluations = objective.num_particles if name == "mlmc" else objective.evaluations
    ours = _step(objective, system, x)
    other = _step(parse_objective("iwae", round(evaluations)), SYSTEMS[which](), x)
    times: dict[str, list[float]] = {"ours": [], "other": []}
    for _ in range(rounds):
        for label, step in (("ours", ours), ("other", other)):
            begun = time.perf_counter()
            step()
            times[label].append(time.perf_counter() - begun)
    base = statistics.median(times["other"])
    quartiles = [t / base for t in statistics.quantiles(times["ours"], n=4)]
    return {
        "system": which,
        "evaluations": evaluations,
        "ms": 1000 * statistics.median(times["ours"]),
        "ratio": quartiles,
    }


def _at_one_level(objective: ObjectiveBase) -> ObjectiveBase:
    """An estimator with a random number of particles, at one of them."""
    torch.manual_seed(0)
    while objective.variant in ((), objective.num_particles):
        objective.next_step()
    objective.num_particles = int(str(objective.variant))
    objective.next_step = lambda: None  # type: ignore[method-assign]
    return objective


def _step(objective: ObjectiveBase, system: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """A compiled step, after the steps that compile it."""
    svi = compiled(system.model, system.guide, objective)  # type: ignore[arg-type]
    for _ in range(4):
        svi.step(x)
    if not svi.is_compiled:
        raise SystemExit(f"{type(objective).__name__} is not compiled")
    return lambda: svi.step(x)


if __name__ == "__main__":
    main()
