"""Figures of the digits for fixed seeds, on one thread, to compare before and after a change.

    python tests/same_figures.py            prints them
    python tests/same_figures.py FILE       compares them with a file, to the last bit

Training, evaluation, a comparison and gradients. Rounding differs between machines and versions of
torch, so that the figures of one machine are compared with figures of the same machine.
"""

import contextlib
import io
import json
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

import pyroae
from pyroae import cli, zoo
from pyroae.objectives.named import dreg, iwae, iwae_stl


def figures() -> dict[str, Any]:
    """All figures, by what they are of."""
    torch.set_num_threads(1)
    digits = pyroae.load("digits", binarize="dynamic")
    assert digits.test is not None
    x, found = digits.test.x[:20], {}
    for name, objective in {"trace-elbo": pyroae.TraceELBO(), "dreg": dreg(4)}.items():
        torch.manual_seed(0)
        system = zoo.vae(digits.train, latent=4)
        config = pyroae.TrainConfig(epochs=3, schedule="cosine", kl_warmup=1)
        result = pyroae.fit(system, digits, objective, config, progress=False)
        rows = [(r.train_nelbo, r.valid_nelbo) for r in result.history]
        found[f"training by {name}"] = [*rows[-1], *(p.sum().item() for p in system.parameters())]
    model, guide = system.model, system.guide
    estimate = pyroae.log_likelihood(model, guide, x, num_particles=300, seed=0)
    found["importance sampling"] = [*estimate.log_px.tolist(), *estimate.se.tolist()]
    settings = pyroae.AISSettings(num_chains=4, num_distributions=20)
    found["annealing"] = pyroae.ais(model, None, x, settings=settings, seed=0).log_px.tolist()
    found["gaps"] = pyroae.gaps(
        model, guide, x[:5], num_particles=100, seed=0
    ).inference.values.tolist()
    found["diagnose"] = pyroae.diagnose(model, guide, x).nelbo.tolist()
    parameters = dict(system.named_parameters())
    objectives = {"iwae": iwae(4), "iwae-stl": iwae_stl(4)}
    measured = pyroae.measure_gradients(
        model, guide, x, objectives, parameters=parameters, replicates=40, seed=0
    )
    found["gradients"] = [measured[name]["all"].mean.sum().item() for name in objectives]
    comparison = pyroae.compare_training(
        partial(zoo.vae, digits.train, 2),
        objectives={"iwae": iwae, "dreg": dreg},
        train=digits.train,
        held_out=digits.test.x[:40],
        ks=(2,),
        seeds=(0, 1),
        budget=pyroae.Budget("epochs", 1),
        progress=False,
    )
    found["compare_training"] = [o.score.log_px.mean().item() for o in comparison.outcomes]
    found["commands"] = _commands()
    return found


def _commands() -> list[Any]:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        small = ["--data", "digits", "--latent", "2", "--hidden", "20", "--epochs", "1"]
        assert cli.main(["train", *small, "--out", f"{folder}/run"]) == 0
        assert cli.main(["evaluate", f"{folder}/run", "--num-particles", "50"]) == 0
        study = ["--objectives", "iwae,dreg", "--num-particles", "2", "--seeds", "2", "--budget"]
        study += ["epochs:1", "--score-particles", "20", "--score-data", "20"]
        assert cli.main(["compare", *small[:6], *study, "--out", f"{folder}/study"]) == 0
        gradients = ["--objectives", "iwae,dreg", "--num-particles", "2,4", "--replicates", "40"]
        assert cli.main(["gradients", f"{folder}/run", *gradients]) == 0
        results = json.loads(Path(f"{folder}/run/results.json").read_text())
        table = Path(f"{folder}/study/comparison.csv").read_text().splitlines()
        slopes = next(Path(folder).rglob("gradients.csv")).read_text().splitlines()
    return [
        [[row["name"], row["estimate"], row["se"]] for row in results],
        *map(_cells, (table, slopes)),
    ]


def _cells(rows: list[str]) -> list[list[str]]:
    """A table without its columns of seconds."""
    kept = [i for i, name in enumerate(rows[0].split(",")) if "second" not in name]
    return [[row.split(",")[i] for i in kept] for row in rows]


def main() -> int:
    """Print the figures, or compare them with those of a file; 1 where any differs."""
    warnings.simplefilter("ignore")
    text = json.dumps(figures(), indent=1)
    if len(sys.argv) == 1:
        print(text)
        return 0
    before, now = json.loads(Path(sys.argv[1]).read_text()), json.loads(text)
    different = [name for name in before if before[name] != now.get(name)]
    print("the same to the last bit" if not different else f"different: {', '.join(different)}")
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
