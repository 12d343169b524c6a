"""Every objective on every system of the zoo: compiled and eager code have the same value and
gradients, or refuse alike.

In single precision, from the same seed. A difference is the largest of a parameter's gradient,
relative to the largest element of that gradient, or that of the value, relative to the value.
"""

import re
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyroae.autoencoder import Autoencoder
from pyroae.compilation.svi import Compiled
from pyroae.errors import ProgramError
from pyroae.objectives import OBJECTIVES, ObjectiveBase
from pyroae.objectives.apply import bound_of, next_step
from tests.covering import PAIRS, REFUSED, few
from tests.systems import (
    DISCRETE,
    FOR_BINARY,
    FOR_DISCRETE,
    FOR_GAUSSIANS,
    FOR_MIXTURES,
    PROPER,
    SYSTEMS,
    ZOO,
    system_and_data,
)

AGREEMENT = 1e-5
ONE_OF_A_KIND = ("linear-ae", "vae", "discrete-vae", "vae-mixture")
"""A system with a Delta, a Gaussian, a discrete guide and a mixture."""
SOME = few()
"""Pairs for `make test`."""


def made(objective: str) -> ObjectiveBase:
    return OBJECTIVES[objective](num_particles=4)


def started(name: str, objective: str) -> tuple[Autoencoder, Tensor, ObjectiveBase]:
    torch.manual_seed(0)
    return *system_and_data(name), made(objective)


def as_it_is(name: str, objective: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Value and gradients of eager code."""
    system, x, estimator = started(name, objective)
    system, x = system.to(dtype), x.to(dtype)
    torch.manual_seed(5)
    next_step(estimator)
    with SameDraws() if dtype is torch.float64 else nullcontext():
        value, surrogate = bound_of(system, estimator, (x,))
    return [value.detach(), *torch.autograd.grad(-surrogate, list(system.parameters()))]


def compiled(name: str, objective: str, backend: str) -> list[Tensor]:
    """Value and gradients of compiled code."""
    system, x, estimator = started(name, objective)
    graphs = Compiled(system, estimator, backend=backend)
    torch.manual_seed(5)
    value, grads = graphs.value_and_grads(x)
    assert graphs.is_compiled
    own = [name for name, _ in system.named_parameters()]
    names = list(graphs.parameters())  # with those of an objective that learns
    assert names == own or (estimator.learns and set(names) > set(own))
    found = dict(zip(names, grads, strict=True))
    return [value, *(found[name] for name in own)]


class SameDraws(TorchFunctionMode):
    """The random numbers of single precision in double precision."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.normal_:
            return args[0].copy_(torch.empty(args[0].shape, dtype=torch.float32).normal_())
        if func in (torch.bernoulli, torch.multinomial, torch.rand_like, torch.randn_like):
            drawn = func(args[0].float(), *args[1:], **(kwargs or {}))
            return drawn.to(args[0].dtype) if drawn.is_floating_point() else drawn
        return func(*args, **(kwargs or {}))


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest over value and gradients; NaN where one is."""
    gaps = []
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 0
        gaps.append((one - other).abs().max() / other.abs().max())
    return torch.stack(gaps).max().item()


def assert_code_agrees(name: str, objective: str) -> None:
    """To 1e-5; where rounding alone is more than that, inductor's code is as near to double
    precision as eager code.

    A score function weighs differences of log-weights of some tens of nats, each rounded to 1e-6
    nats: their last digits are those of the order in which a sum is taken.
    """
    code, eager = compiled(name, objective, "inductor"), as_it_is(name, objective)
    gap = distance(code, eager)
    print(f"{name}, {objective}: {gap:.1e}")
    if not gap <= AGREEMENT:
        exact = as_it_is(name, objective, torch.float64)
        errors = distance(code, exact), distance(eager, exact)
        print(
            f"{name}, {objective}: from double precision {errors[0]:.1e}, "
            f"eager code {errors[1]:.1e}"
        )
        assert errors[0] <= 2 * errors[1]


def assert_traced_alike(name: str, objectives: Iterable[str]) -> None:
    """Traced and eager code have the same numbers, or refuse in the same words."""
    tried, refused, apart = list(objectives), {}, {}
    for objective in tried:
        try:
            eager = as_it_is(name, objective)
        except ProgramError as error:
            refused[objective] = str(error)
            continue
        gap = distance(compiled(name, objective, "eager"), eager)
        if not gap <= AGREEMENT:
            apart[objective] = gap
    assert apart == {}
    assert set(refused) == REFUSED[name] & set(tried)
    for objective, words in refused.items():
        with pytest.raises(ProgramError, match=f"^{re.escape(words)}$"):
            compiled(name, objective, "eager")


@pytest.mark.parametrize("name", list(ZOO))
def test_objectives_are_traced_to_the_numbers_of_eager_code(name: str) -> None:
    """Pairs of every kind, and for some systems an objective that it refuses."""
    taken = [objective for system, objective in SOME if system == name]
    assert taken
    refused = [o for o in OBJECTIVES if o in REFUSED[name]] if name in ONE_OF_A_KIND else []
    assert_traced_alike(name, [*taken, *refused[::8]])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ZOO))
def test_every_objective_is_traced_to_the_numbers_of_eager_code(name: str) -> None:
    assert_traced_alike(name, OBJECTIVES)


def test_which_pairs_are_refused() -> None:
    """The autoencoders' Delta guides refuse the objectives for discrete latents, and discrete
    latents all the others; some objectives need discrete or binary latents, or a mixture as guide.
    """
    points = set(SYSTEMS) - {*PROPER, "denoising-vae"}
    others = set(OBJECTIVES) - set(FOR_GAUSSIANS)
    for name in SYSTEMS:
        along_draws = {"rws", "vimco", "score", "tvo", "dreg", "rws-dreg"}
        along_draws |= {"ovis", "ovis-mc", "vargrad", "nvil", "dais", "gdreg"}
        assert REFUSED[name] == (along_draws | others if name in points else others), name
    for name in DISCRETE:
        taken = {*FOR_DISCRETE, *(() if name == "discrete-vae-categorical" else FOR_BINARY)}
        assert REFUSED[name] == set(OBJECTIVES) - taken, name
    assert REFUSED["vae-mixture"] == others - set(FOR_MIXTURES)
    words = f"{len(PAIRS)} of the {len(OBJECTIVES) * len(ZOO)} pairs"
    assert words in (Path(__file__).parents[2] / "docs" / "compiled.md").read_text().replace(
        "\n  ", " "
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "objective"),
    [("vae-normal", "dreg"), ("discrete-vae", "vimco"), ("vae-conv", "trace-elbo")],
)
def test_code_has_the_numbers_of_eager_code(name: str, objective: str) -> None:
    assert_code_agrees(name, objective)


@pytest.mark.slow
@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize("name", list(ZOO))
def test_code_of_every_pair_has_the_numbers_of_eager_code(name: str, objective: str) -> None:
    """Some seconds a pair; `-k` picks a system or an objective."""
    if objective in REFUSED[name]:
        with pytest.raises(ProgramError):
            compiled(name, objective, "inductor")
    else:
        assert_code_agrees(name, objective)
