"""Evaluations and trainings on a device against the same on the CPU, in double precision, with the
same draws.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import pyroae
from benchmarks.gpu.agreement import distance
from benchmarks.gpu.draws import HostDraws
from pyroae import AISSettings, Local, Mixture, TrainConfig, plots, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.compilation.ensemble import Ensemble, Stream
from pyroae.compilation.svi import Compiled
from pyroae.evaluation import blocks
from pyroae.nn import MLP
from pyroae.objectives import OBJECTIVES, TraceELBO
from pyroae.training.state import State

TOLERANCE = 1e-6
"""Largest relative difference: sums of thousands of terms, and moves that are accepted or not."""
SKIPPED = ("seconds", "settings", "figure", "time")
Case = Callable[[str], Any]


def system_on(
    device: str, latent: int = 2, dtype: torch.dtype = torch.float64
) -> tuple[Autoencoder, Tensor]:
    """A small VAE and data, from one seed."""
    torch.manual_seed(0)
    system = zoo.vae(9, latent=latent, encoder=MLP((8,)))
    x = (torch.rand(12, 9) < 0.4).to(dtype)
    return system.to(device, dtype), x.to(device)


def numbers(found: Any) -> list[Tensor]:
    """Every number of a result, but for times and settings."""
    if isinstance(found, Tensor):
        return [found] if found.is_floating_point() or found.dtype == torch.long else []
    if isinstance(found, bool | int | float):
        return [torch.tensor(float(found))]
    if isinstance(found, np.ndarray):
        return [torch.from_numpy(np.ascontiguousarray(found))] if found.dtype.kind == "f" else []
    if is_dataclass(found):
        kept = [f.name for f in fields(found) if not any(word in f.name for word in SKIPPED)]
        return [n for name in kept for n in numbers(getattr(found, name))]
    if isinstance(found, Mapping):
        return [n for key in sorted(found, key=str) for n in numbers(found[key])]
    return (
        [n for part in found for n in numbers(part)]
        if isinstance(found, Sequence) and not isinstance(found, str)
        else []
    )


def _finite(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().cpu().double().nan_to_num(nan=0.0, posinf=1e6, neginf=-1e6) for t in tensors]


# Cases, each a function of the device.


def _likelihood(device: str, proposal: str = "guide", **settings: Any) -> Any:
    system, x = system_on(device)
    guides: dict[str, Callable[[], Any]] = {
        "guide": lambda: system.guide,
        "wider": lambda: pyroae.widened(system.guide),
        "heavy": lambda: pyroae.heavy_tailed(system.guide),
        "mixture": lambda: Mixture((system.guide, pyroae.prior_of(system.model)), (0.8, 0.2)),
        "local": lambda: Local(system.guide, steps=60),
    }
    retry = Local(system.guide, steps=60) if settings.pop("retry", False) else None
    return pyroae.log_likelihood(
        system.model,
        guides[proposal](),
        x,
        num_particles=300,
        seed=1,
        retry=retry,
        compile=False,
        **settings,
    )


def _annealed(device: str, start: str, both: bool = False, posterior_draws: int = 0) -> Any:
    system, x = system_on(device)
    settings = AISSettings(4, 30, start=start, leapfrog_steps=3, posterior_draws=posterior_draws)
    anneal = pyroae.bdmc if both else pyroae.ais
    return anneal(system.model, system.guide, x, settings=settings, seed=1, compile=False)


def _gaps(device: str) -> Any:
    system, x = system_on(device)
    return pyroae.gaps(system.model, system.guide, x[:4], num_particles=100, steps=50, seed=1)


def _quadrature(device: str) -> Any:
    system, x = system_on(device)
    return pyroae.quadrature(system.model, system.guide, x[:3]).log_px


def _information(device: str) -> Any:
    system, x = system_on(device)
    return pyroae.information(system.model, system.guide, x, seed=1)


def _diagnosed(device: str) -> Any:
    system, x = system_on(device)
    return pyroae.diagnose(system.model, system.guide, x, seed=1)


def _exact(device: str) -> Any:
    torch.manual_seed(0)
    system = zoo.ppca(5, latent=2).double().to(device)
    return pyroae.exact_log_likelihood(system, torch.randn(4, 5, dtype=torch.float64).to(device))


def _gradients(device: str) -> Any:
    system, x = system_on(device)
    estimators = {name: OBJECTIVES[name](num_particles=3) for name in ("iwae", "dreg", "vimco")}
    parameters = dict(system.named_parameters())
    return pyroae.measure_gradients(
        system.model,
        system.guide,
        x,
        estimators,
        parameters=parameters,
        replicates=40,
        reference="iwae",
    )


def _datatree(device: str) -> Any:
    system, x = system_on(device)
    tree = pyroae.to_datatree(system.model, system.guide, x, num_draws=5, seed=1)
    return [
        np.asarray(v.values) for group in tree.children.values() for v in group.data_vars.values()
    ]


def _calibration(device: str) -> Any:
    system, x = system_on(device)
    settings = pyroae.CalibrationSettings(num_simulations=60, num_draws=20)
    found = pyroae.measure_calibration(system.model, system.guide, x, settings=settings)
    return [found.p_values, found.ess]


def _predictive(device: str) -> Any:
    system, x = system_on(device)
    check = pyroae.predictive_check(system.model, system.guide, x, num_draws=20, seed=1)
    draws = pyroae.predictive_draws(system.model, system.guide, x, num_draws=3, seed=1)
    return [check, draws]


def _imputed(device: str) -> Any:
    torch.manual_seed(0)
    system = zoo.vae(9, latent=2, encoder=MLP((8,)), missing=True).double().to(device)
    x = _data()[:12]
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.2] = torch.nan
    return pyroae.impute(system, x.to(device), num_particles=50, num_imputations=2, seed=1)


def _enumerated(device: str) -> Any:
    torch.manual_seed(0)
    system = zoo.discrete_vae(9, 5, encoder=MLP((8,))).double().to(device)
    x = _data()[:12].to(device)
    return pyroae.enumerated_log_likelihood(system.model, system.guide, x)


def _summary(device: str) -> Any:
    system, x = system_on(device)
    annealing = AISSettings(4, 20, leapfrog_steps=2)
    settings = pyroae.EvaluationSettings(
        ("is", "bdmc"), num_particles=100, annealing=annealing, compile=False
    )
    return pyroae.evaluate(system, x, settings).results


def _data() -> Tensor:
    return (torch.rand(60, 9, generator=torch.Generator().manual_seed(3)) < 0.4).double()


def _trained(device: str, **settings: Any) -> Any:
    system, _ = system_on(device)
    config = TrainConfig(
        epochs=3,
        batch_size=16,
        lr=1e-2,
        accelerator=device,
        precision="64-true",
        **{"compile": False} | settings,
    )
    result = pyroae.fit(system, _data(), TraceELBO(), config, valid=_data()[:20], progress=False)
    return [
        *system.parameters(),
        *[row.train_nelbo for row in result.history],
        *[row.valid_nelbo for row in result.history],
    ]


def _dynamic(device: str) -> Any:
    """Grey data, binarized afresh in each batch."""
    system, _ = system_on(device)
    grey = torch.rand(
        60, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    ).numpy()
    splits = pyroae.load(grey, binarize="dynamic")
    config = TrainConfig(
        epochs=2, batch_size=16, accelerator=device, precision="64-true", compile=False
    )
    pyroae.fit(system, splits, TraceELBO(), config, progress=False)
    return list(system.parameters())


def _pictures(device: str) -> Any:
    """Figures of a system that is on the device."""
    system, x = system_on(device)
    plots.reconstructions(system, x)
    plots.samples(system, 4)
    plots.manifold(system, 3)
    plots.latent_scatter(system, x)
    plots.kl_per_unit(pyroae.diagnose(system.model, system.guide, x, seed=1))
    return [1.0]


AGAINST_CPU: dict[str, Case] = {
    "importance sampling": _likelihood,
    **{
        f"importance sampling, {p}": lambda device, p=p: _likelihood(device, p)
        for p in ("wider", "heavy", "mixture", "local")
    },
    "importance sampling, tolerance": lambda device: _likelihood(device, tolerance=0.2),
    "importance sampling, retry": lambda device: _likelihood(device, retry=True),
    "annealing from the prior": lambda device: _annealed(device, "prior"),
    "annealing from the guide": lambda device: _annealed(device, "guide"),
    "bidirectional": lambda device: _annealed(device, "prior", both=True),
    "posterior draws": lambda device: _annealed(device, "prior", posterior_draws=2),
    "calibration": _calibration,
    "predictive draws and checks": _predictive,
    "imputation": _imputed,
    "enumeration": _enumerated,
    "gaps": _gaps,
    "quadrature": _quadrature,
    "information": _information,
    "diagnose": _diagnosed,
    "exact": _exact,
    "gradients": _gradients,
    "datatree": _datatree,
    "evaluate": _summary,
    "training": _trained,
    "training, warm-up and clipping": lambda device: _trained(
        device, kl_warmup=1, grad_clip=1.0, schedule="cosine"
    ),
    "training, skipping": lambda device: _trained(device, nonfinite="skip"),
    "training, dynamic binarization": _dynamic,
    "pictures": _pictures,
}


def against_cpu(name: str, device: str) -> dict[str, Any]:
    """One case on the device and on the CPU, with chunks of one size."""
    found = {}
    for where in ("cpu", device):
        with mock.patch.object(blocks, "FOR_GPU", 1), HostDraws():
            torch.manual_seed(7)
            found[where] = _finite(numbers(AGAINST_CPU[name](where)))
    gap = distance(found[device], found["cpu"])
    return {
        "difference": gap,
        "numbers": sum(t.numel() for t in found["cpu"]),
        "ok": gap <= TOLERANCE,
    }


# Cases of a device alone: two ways to one result.


def _resumed(device: str, compile: bool = False) -> float:
    """A training that goes on from its state after the first of three epochs, against one that
    never stopped.
    """
    states: list[State] = []
    config = TrainConfig(epochs=3, batch_size=16, lr=1e-2, accelerator=device, compile=compile)
    whole, _ = system_on(device, dtype=torch.float32)
    x = _data().float()
    pyroae.fit(whole, x, TraceELBO(), config, on_epoch=states.append, progress=False)
    again, _ = system_on(device, dtype=torch.float32)
    pyroae.fit(again, x, TraceELBO(), config, state=states[0], progress=False)
    return distance(list(again.parameters()), list(whole.parameters()))


def _ensemble(device: str, backend: str) -> float:
    """Steps of three members by one graph against steps of each, with the members' own draws."""

    @contextmanager
    def members() -> Iterator[Ensemble]:
        compiled, streams = [], []
        for seed in range(3):
            torch.manual_seed(seed)
            system = zoo.vae(9, latent=2, encoder=MLP((8,))).to(device)
            compiled.append(
                Compiled(
                    system, TraceELBO(), lambda p: torch.optim.Adam(p, lr=1e-2), backend=backend
                )
            )
            torch.manual_seed(100 + seed)
            streams.append(Stream(torch.device(device)))
        yield Ensemble(compiled, streams)

    _, x = system_on(device, dtype=torch.float32)
    found = []
    for together in (True, False):
        with members() as ensemble:
            losses = [
                torch.stack(
                    (ensemble.step if together else _each(ensemble))([(x,)] * 3, None, 12.0)
                )
                for _ in range(4)
            ]
            if together and not ensemble.is_batched:
                return float("inf")
            found.append([*losses, *[p for m in ensemble.members for p in m.parameters().values()]])
    return distance(*found)


def _each(ensemble: Ensemble) -> Callable[..., list[Tensor]]:
    """Steps that are run as they are; the first one finds the parameters."""
    return lambda *args: (
        ensemble.eager_step(*args) if ensemble.members[0].has_stepped else ensemble.step(*args)
    )


def _compiled_likelihood(device: str) -> float:
    """Compiled draws are others than eager ones: both estimates in standard errors of their
    difference, over data.
    """
    system, x = system_on(device, dtype=torch.float32)
    one, other = (
        pyroae.log_likelihood(
            system.model, system.guide, x, num_particles=20_000, seed=1, compile=compile
        )
        for compile in (True, False)
    )
    apart = (one.log_px - other.log_px) / (one.se.square() + other.se.square()).sqrt()
    return apart.abs().max().item() / 5


def _compiled_annealing(device: str) -> float:
    """In double precision: draws are the same, moves the same."""
    system, x = system_on(device)
    settings = AISSettings(4, 30, leapfrog_steps=3)
    found = [
        pyroae.ais(system.model, None, x, settings=settings, seed=1, compile=compile)
        for compile in (True, False)
    ]
    return distance(*(_finite(numbers(f)) for f in found))


def _reproduced(device: str) -> float:
    """Two likelihoods from one seed are the same to the last bit."""
    system, x = system_on(device, dtype=torch.float32)
    a, b = (
        pyroae.log_likelihood(system.model, system.guide, x, num_particles=1000, seed=4).log_px
        for _ in range(2)
    )
    return (a - b).abs().max().item()


def _commands(device: str) -> float:
    """The command line from training to the report, on the device; the number of commands that
    fail.
    """
    from pyroae.cli import main

    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        where = ["--accelerator", device]
        train = [
            "train",
            "--system",
            "vae",
            "--data",
            "digits",
            "--latent",
            "2",
            "--hidden",
            "16",
            "--epochs",
            "2",
            *where,
        ]
        commands = [
            [*train, "--out", run],
            ["evaluate", run, "--num-particles", "200", "--num-data", "20", "--method", "is,gaps"],
            [
                "gradients",
                run,
                "--objectives",
                "iwae,dreg",
                "--num-particles",
                "1,4",
                "--replicates",
                "40",
            ],
            ["sample", run, "--num", "4"],
        ]
        return float(sum(main(command) != 0 for command in commands))


ON_DEVICE: dict[str, tuple[Callable[[str], float], float]] = {
    "resume": (_resumed, 0.0),
    "resume, compiled": (lambda device: _resumed(device, True), 0.0),
    "ensemble, traced": (lambda device: _ensemble(device, "eager"), 1e-4),
    "ensemble, compiled": (lambda device: _ensemble(device, "inductor"), 1e-4),
    "likelihood, compiled": (_compiled_likelihood, 1.0),
    "annealing, compiled": (_compiled_annealing, TOLERANCE),
    "likelihood, repeated": (_reproduced, 0.0),
    "commands": (_commands, 0.0),
}
"""What is compared, and the largest difference that is accepted."""


def on_device(name: str, device: str) -> dict[str, Any]:
    """One case of a device alone."""
    compare, limit = ON_DEVICE[name]
    gap = compare(device)
    return {"difference": gap, "limit": limit, "ok": gap <= limit}
