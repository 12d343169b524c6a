"""A script of several processes: trainings by all of them, each held against that of one process on
the same batches.

    python -m tests.several OUT WORLD STRATEGY PRECISION CASE… [evaluation]

Lightning Fabric starts the other processes, unless torchrun has; the first one writes the largest
differences to OUT, as JSON.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.distributed
from torch import Tensor

from pyroae import zoo
from pyroae.config import RunConfig, TrainConfig
from pyroae.data.dataset import Dataset
from pyroae.data.loading import load
from pyroae.distributed.fabric import gather_tensors
from pyroae.objectives import ObjectiveBase, parse_objective
from pyroae.runtime.processes import Share, is_first
from pyroae.training.fitting import fit
from tests.random_particles import RandomParticles

NUM_DATA = 103  # with batches of 25 the last has 3: fewer than four processes


def model(x: Tensor, y: Tensor) -> None:
    """A latent site outside the data plate, two inside, one of them with features."""
    scale = pyro.sample("s", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", NUM_DATA, subsample=torch.arange(len(x))):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        k = pyro.sample("k", dist.Normal(0.0, 1.0))
        pyro.sample(
            "y", dist.Normal(x @ pyro.param("w", torch.zeros(3)) + z.sum(-1) + k, scale), obs=y
        )


def guide(x: Tensor, y: Tensor) -> None:
    """Of the same sites."""
    a, b = pyro.param("a", torch.zeros(4)), pyro.param("b", torch.tensor(-1.0))
    pyro.sample("s", dist.LogNormal(a[3], b.exp()))
    with pyro.plate("data", NUM_DATA, subsample=torch.arange(len(x))):
        pyro.sample("z", dist.Normal(x[:, :2] * a[:2], 0.5).to_event(1))
        pyro.sample("k", dist.Normal(y * a[2], 0.5))


def sizeless_model(x: Tensor, y: Tensor) -> None:
    """A data plate without a size, and one of features that is as long as the part of a process."""
    with pyro.plate("features", 13, dim=-2), pyro.plate("data", dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(13, len(x)), 1.0))
    with pyro.plate("data"):
        mean = x @ pyro.param("w", torch.zeros(3)) + z.sum(-2)
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def sizeless_guide(x: Tensor, y: Tensor) -> None:
    """Of the same sites."""
    loc = pyro.param("a", torch.zeros(13, 1)) * y
    with pyro.plate("features", 13, dim=-2), pyro.plate("data", dim=-1):
        pyro.sample("z", dist.Normal(loc, pyro.param("b", torch.tensor(-1.0)).exp()))


def regression() -> tuple[Tensor, Tensor]:
    """Inputs and outputs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(NUM_DATA, 3, generator=generator)
    return x, x.sum(1) + torch.randn(NUM_DATA, generator=generator)


Case = tuple[Callable[[], Any], str | Callable[[], ObjectiveBase], Any, dict[str, Any]]
"""A system, an objective, data, settings."""


def cases(train: Dataset) -> dict[str, Case]:
    """By name."""
    labelled, train = train, replace(train, condition=None)

    def of(data: Dataset = train, **settings: Any) -> Callable[[], Any]:
        return lambda: zoo.from_config(
            RunConfig(**{"latent": 3, "hidden": (20,), **settings}), data
        )

    return {
        "vae": (
            of(),
            "trace-elbo",
            train,
            {"kl_warmup": 2, "grad_clip": 5.0, "schedule": "cosine"},
        ),
        "dreg": (of(), "dreg:num_particles=5", train, {}),
        "vimco": (of(system="discrete-vae"), "vimco:num_particles=4", train, {}),
        "categorical": (
            of(
                system="discrete-vae",
                latent=6,
                prior="categorical:categories=3",
                posterior="categorical:categories=3",
            ),
            "rws:num_particles=4",
            train,
            {},
        ),
        "denoising": (of(system="denoising-ae"), "trace-elbo", train, {"nonfinite": "skip"}),
        "optimal": (
            of(likelihood="normal:scale=optimal"),
            "iwae:num_particles=3",
            train,
            {"grad_clip": 5.0},
        ),
        "pair": (lambda: (model, guide), "trace-elbo", regression(), {}),
        "sizeless": (lambda: (sizeless_model, sizeless_guide), "trace-elbo", regression(), {}),
        "layers": (
            of(system="hierarchical-vae", latent=(3, 2), hierarchy="top-down:widths=[4]"),
            "dreg:num_particles=3",
            train,
            {},
        ),
        "compiled": (of(), "trace-elbo", train, {"compile": True}),
        "conditional": (of(labelled, system="conditional-vae"), "trace-elbo", labelled, {}),
        "random": (of(), RandomParticles, train, {}),
        "nvil": (of(system="discrete-vae"), "nvil:num_particles=2,normalize=true", train, {}),
        "nvil compiled": (
            of(system="discrete-vae"),
            "nvil:num_particles=2",
            train,
            {"compile": True},
        ),
        "m2": (of(labelled, system="m2"), "trace-elbo", labelled, {}),
    }


def of_choice(text: str, train: Dataset) -> Case:
    """A VAE with one choice, as `prior=vamp:components=4`."""
    part, _, choice = text.partition("=")
    train = replace(train, condition=None)
    settings: dict[str, Any] = {"latent": 3, "hidden": (20,), part: choice}
    if choice.partition(":")[0] in ("point", "soft-threshold", "top-k"):
        settings["prior"] = "laplace"
    return lambda: zoo.from_config(RunConfig(**settings), train), "trace-elbo", train, {}


def objective_of(which: str | Callable[[], ObjectiveBase]) -> ObjectiveBase:
    """By its name, or made."""
    return parse_objective(which) if isinstance(which, str) else which()


def differences(world: int, strategy: str, precision: str, names: list[str]) -> dict[str, float]:
    """The largest difference of any weight, relative to the largest of its tensor."""
    digits, found = load("digits", binarize="dynamic", condition="labels"), {}
    for name in names:
        train = digits.train.first(NUM_DATA)
        make, objective, data, settings = (
            of_choice(name, train) if "=" in name else cases(train)[name]
        )
        valid = None if name in ("pair", "sizeless", "conditional") else digits.valid
        valid = None if valid is None else replace(valid, condition=None)
        weights, histories = [], []
        for devices in (world, 1):
            pyro.clear_param_store()
            torch.manual_seed(0)
            config = TrainConfig(
                epochs=3,
                batch_size=25,
                accelerator="cpu",
                devices=devices,
                strategy=strategy if devices > 1 else "auto",
                precision=precision,
                keep="last",
                **settings,
            )
            result = fit(make(), data, objective_of(objective), config, valid=valid, progress=False)
            weights.append(gather_tensors(dict(result.system.state_dict())))
            histories.append([round(e.train_nelbo, 3) for e in result.history])
        assert histories[0] == histories[1], (name, histories)
        several, one = weights
        found[name] = max(
            ((several[k] - one[k]).abs().max() / one[k].abs().max()).item()
            for k in one
            if one[k].is_floating_point() and one[k].any()
        )
    return found


def evaluation(folder: Path) -> None:
    """By the processes of the training before it; each saves its results in the folder."""
    from tests.distributed.test_shared_evaluation import everything

    torch.set_default_dtype(torch.float64)
    share = Share(torch.distributed.get_rank(), torch.distributed.get_world_size())
    torch.save(everything(share, folder), folder / f"found{share.rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, count, *rest = sys.argv[1:]
    names = [name for name in rest[2:] if name != "evaluation"]
    told = differences(int(count), rest[0], rest[1], names)
    if "evaluation" in rest:
        evaluation(Path(out).parent)
    if is_first():
        Path(out).write_text(json.dumps(told))
