"""Every system and every objective on a device against the CPU, with the same draws, and compiled
code against eager code.
"""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pyro
import torch
from torch import Tensor

from benchmarks.gpu.draws import HostDraws
from pyroae import TrainConfig, likelihoods, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.compilation.svi import Compiled
from pyroae.errors import ProgramError
from pyroae.nn import MLP
from pyroae.objectives import OBJECTIVES
from pyroae.objectives.apply import next_step
from pyroae.training.optimizers import optimizer_of
from tests.choice_grid import ROWS
from tests.systems import DISCRETE, KINDS, MIXTURES, ZOO, system_and_data

NUM_PARTICLES = 4
DOUBLE, SINGLE = 1e-9, 1e-5
"""Largest relative differences of values and gradients, in double and in single precision."""
LOSSES, PARAMETERS = 1e-4, 1e-3
"""Largest relative differences of losses and parameters over several steps, in single precision."""
COVERING = (
    *(("vae", name) for name in ("trace-elbo", "analytic-kl", "dreg", "tvo")),
    *(("discrete-vae-categorical", name) for name in ("rws", "vimco")),
    *(("vae-conv", "iwae"), ("vae-normal", "stl"), ("ppca-exact", "renyi")),
    *(("sparse-ae", "jvi"), ("sparse-ae-map", "beta-elbo"), ("vae-laplace", "miwae")),
    *(("discrete-vae-categorical", "ovis"), ("vae-mixture", "siwae"), ("vae-ladder", "gdreg")),
    *(("vae", "dais"), ("vae", "mlmc")),
)
"""Pairs whose code is compiled first: each kind of prior, posterior, likelihood, map and gradient
is in one of them.
"""


def _training(name: str, lr: float, clip: float | None = None, **arguments: Any) -> TrainConfig:
    return TrainConfig(optimizer=name, lr=lr, grad_clip=clip, optimizer_args=arguments)


OPTIMIZERS = {
    "adam": _training("adam", 1e-2),
    "adam-clipped": _training("adam", 1e-2, 1.0, weight_decay=0.1),
    "adamw": _training("adamw", 1e-2, weight_decay=0.1),
    "sgd": _training("sgd", 1e-3, momentum=0.9, nesterov=True),
    "sgd-clipped": _training("sgd", 1e-2, 1.0, momentum=0.9),
}
STEPS = tuple(product(("vae", "vae-optimal", "vae-ladder"), OPTIMIZERS))
"""Systems and optimizers of the steps that are compared."""


def is_trained(system: str, objective: str) -> bool:
    """Whether the objective takes the kind of latent sites of the system."""
    if system in DISCRETE:
        return ("categorical" if system.endswith("categorical") else "binary") in KINDS[objective]
    kinds = {"continuous", "mixture"} if system in MIXTURES else {"continuous"}
    return bool(kinds & KINDS[objective])


PAIRS = tuple(pair for pair in product(ZOO, OBJECTIVES) if is_trained(*pair))
OTHER_DRAWS = ("discrete-vae", "discrete-vae-learned", "denoising-vae")
"""Systems with Bernoulli draws, which compiled code of a GPU makes in another way: there are no
equal numbers to compare.
"""


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference over tensors, each relative to its largest element; infinite where one
    is not finite.
    """
    gaps = []
    for pair in zip(found, expected, strict=True):
        one, other = (t.detach().cpu().double() for t in pair)
        if other.numel():
            gaps.append((one - other).abs().max() / other.abs().max().clamp_min(1e-30))
    worst = torch.stack(gaps).max().item() if gaps else 0.0
    return math.inf if math.isnan(worst) else worst


Made = Callable[[], tuple[Autoencoder, tuple[Tensor, ...]]]
"""Makes a system and its data."""


def two_steps(made: Made, objective: str, device: str) -> list[Tensor]:
    """Losses and parameters of two steps of Adam in double precision, and the bound after them."""
    torch.manual_seed(0)
    module, data = made()
    module, args = module.double().to(device), tuple(x.double().to(device) for x in data)
    steps = Compiled(
        module,
        OBJECTIVES[objective](num_particles=NUM_PARTICLES),
        lambda p: torch.optim.Adam(p, lr=1e-2),
    )
    steps.eager.find_parameters(args)
    torch.manual_seed(5)
    losses = []
    for _ in range(2):
        next_step(steps.objective)
        losses.append(steps.eager.step(args, 0.5, float(len(args[0]))))
    return [*losses, steps.evaluate_loss(*args), *steps.parameters().values()]


def eager(system: str, objective: str, device: str) -> dict[str, Any]:
    """Two steps on the device against two on the CPU; a pair that one refuses is refused in the
    same words by both.
    """

    def made() -> tuple[Autoencoder, tuple[Tensor, ...]]:
        module, x = system_and_data(system)
        return module, (x,)

    return _against_cpu(made, objective, device)


def choice(name: str, device: str) -> dict[str, Any]:
    """Two steps of a system with one choice of prior, posterior, likelihood, hierarchy, condition
    or missing values on the device against two on the CPU.
    """
    make, data = ROWS[name]
    discrete = (
        name.rsplit(maxsplit=1)[-1] in ("bernoulli", "categorical") and "likelihood" not in name
    )
    return _against_cpu(lambda: (make(), data()), "rws" if discrete else "trace-elbo", device)


def _against_cpu(made: Made, objective: str, device: str) -> dict[str, Any]:
    with pyro.validation_enabled(True), HostDraws():
        try:
            expected = two_steps(made, objective, "cpu")
        except ProgramError as error:
            refusal = str(error)
        else:
            gap = distance(two_steps(made, objective, device), expected)
            return {"difference": gap, "ok": gap <= DOUBLE}
        try:
            two_steps(made, objective, device)
        except ProgramError as error:
            return {"refused": str(error), "ok": str(error) == refusal}
    return {"refused": refusal, "ok": False}


def code(system: str, objective: str, device: str, backend: str = "inductor") -> dict[str, Any]:
    """Value and gradients of compiled code against eager code on the same device, from the same
    seed, in single precision.
    """
    found: list[list[Tensor]] = []
    for compiled in (False, True):
        torch.manual_seed(0)
        module, x = system_and_data(system)
        module, x = module.to(device), x.to(device)
        graphs = Compiled(
            module,
            OBJECTIVES[objective](num_particles=NUM_PARTICLES),
            same_draws=True,
            backend=backend,
        )
        try:
            graphs.eager.find_parameters((x,))
            torch.manual_seed(5)
            next_step(graphs.objective)
            find = graphs._value_and_grads if compiled else graphs.eager.value_and_grads
            value, grads = find((x,), None)
        except ProgramError as error:
            return {"refused": str(error), "ok": not compiled}
        if compiled and not graphs.is_compiled:
            return {"ok": False, "why": "it is not compiled"}
        found.append([value, *grads])
    gap = distance(found[1], found[0])
    return {"difference": gap, "ok": gap <= SINGLE}


def steps(system: str, optimizer: str, device: str, backend: str = "inductor") -> dict[str, Any]:
    """Losses and parameters of compiled steps with a weight of the KL against those of eager steps
    on the same device, from the same seeds, in single precision.

    A step changes parameters in place, which its loss and its gradients must not see.
    """
    config, found = OPTIMIZERS[optimizer], []
    for compiled in (False, True):
        torch.manual_seed(0)
        module, x = _to_step(system)
        module, args, count = module.to(device), (x.to(device),), float(len(x))
        svi = Compiled(
            module,
            OBJECTIVES["trace-elbo"](num_particles=1),
            lambda p, module=module: optimizer_of(config, module),  # type: ignore[misc]
            grad_clip=config.grad_clip,
            same_draws=True,
            backend=backend,
        )
        losses = []
        for step in range(6):
            torch.manual_seed(step)
            if compiled or not step:
                losses.append(svi.step(*args, kl_weight=0.5, divisor=count))
            else:
                losses.append(svi.eager.step(args, 0.5, count))
        if compiled and not svi.is_compiled:
            return {"ok": False, "why": "it is not compiled"}
        found.append((losses, list(svi.parameters().values())))
    losses_gap, gap = (distance(list(a), list(b)) for a, b in zip(*found, strict=True))
    ok = losses_gap <= LOSSES and gap <= PARAMETERS
    return {"difference": losses_gap, "parameters": gap, "ok": ok}


def _to_step(system: str) -> tuple[Autoencoder, Tensor]:
    """A system and its data; vae-optimal has a scale whose step is a closed form."""
    if system != "vae-optimal":
        return system_and_data(system)
    normal = likelihoods.Normal("optimal")
    return zoo.vae(16, 3, encoder=MLP((7,)), likelihood=normal), torch.randn(12, 16)
