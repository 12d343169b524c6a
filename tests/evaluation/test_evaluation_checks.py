"""Each evaluator asks the same one check of a program: what one refuses, all refuse, by the same
site.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyroae import exact_log_likelihood, zoo
from pyroae.config import AISSettings
from pyroae.errors import DataError, ProgramError
from pyroae.evaluation.adaptive_quadrature import quadrature
from pyroae.evaluation.annealing.bounds import ais, bdmc
from pyroae.evaluation.checks import check_program, is_one
from pyroae.evaluation.diagnostics import diagnose
from pyroae.evaluation.importance.likelihood import log_likelihood
from pyroae.evaluation.importance.proposals import Local, Mixture
from pyroae.evaluation.inference_gaps import gaps
from pyroae.evaluation.mutual_information import information
from pyroae.inference_data import to_datatree
from tests.conftest import sample_of

SHORT = AISSettings(num_chains=16, num_distributions=60, leapfrog_steps=5)
TINY = AISSettings(num_chains=3, num_distributions=8, leapfrog_steps=2)
FROM_GUIDE = AISSettings(num_chains=16, num_distributions=60, leapfrog_steps=5, start="guide")
X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
OF_MODEL: dict[str, Callable[[Any, Any, Tensor], object]] = {
    "local": lambda m, g, x: log_likelihood(m, Local(g), x, num_particles=30),
    "ais": lambda m, g, x: ais(m, None, x, settings=TINY),
    "bdmc": lambda m, g, x: bdmc(m, None, x, settings=TINY),
    "quadrature": quadrature,
}
"""Evaluators that take no density of the guide."""
OF_BOTH: dict[str, Callable[[Any, Any, Tensor], object]] = {
    "is": lambda m, g, x: log_likelihood(m, g, x, num_particles=30),
    "mixture": lambda m, g, x: log_likelihood(m, Mixture((g, g)), x, num_particles=30),
    "ais from the guide": lambda m, g, x: ais(m, g, x, settings=FROM_GUIDE),
    "gaps": lambda m, g, x: gaps(m, g, x, num_particles=10, steps=5),
    "information": information,
    "diagnose": diagnose,
    "datatree": to_datatree,
}


def model(x: Tensor, of_z: Any = 1.0, of_x: Any = 1.0) -> None:
    with pyro.plate("data", len(x)):
        with poutine.scale(scale=of_z):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
        with poutine.scale(scale=of_x):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor, of_z: Any = 1.0) -> None:
    with pyro.plate("data", len(x)), poutine.scale(scale=of_z):
        pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))


@pytest.mark.parametrize("evaluator", [*OF_MODEL, *OF_BOTH])
def test_a_scaled_latent_site_is_refused(evaluator: str) -> None:
    """Importance sampling, annealing and quadrature gave three different values for it."""
    programs = partial(model, of_z=0.5), partial(guide, of_z=0.5)
    with pytest.raises(ProgramError, match="latent site 'z' is scaled in the model"):
        (OF_MODEL | OF_BOTH)[evaluator](*programs, X)


@pytest.mark.parametrize("evaluator", OF_BOTH)
def test_a_scale_of_the_guide_alone_is_refused(evaluator: str) -> None:
    with pytest.raises(ProgramError, match="latent site 'z' is scaled in the guide"):
        OF_BOTH[evaluator](model, partial(guide, of_z=0.5), X)


@pytest.mark.parametrize("evaluator", OF_MODEL)
def test_a_scale_of_a_guide_without_a_say_does_not_matter(evaluator: str) -> None:
    found = []
    for program in (guide, partial(guide, of_z=0.5)):
        torch.manual_seed(0)
        estimate = cast(Any, OF_MODEL[evaluator](model, program, X))
        found.append(estimate.lower if evaluator == "bdmc" else estimate.log_px)
    assert torch.equal(*found)


@pytest.mark.parametrize("scale", [torch.tensor([1.0, 1.0, 1.01]), torch.tensor(2.0)])
def test_a_scale_that_is_not_one_everywhere_is_refused(scale: Tensor) -> None:
    with pytest.raises(ProgramError, match="'z' is scaled in the model"):
        quadrature(partial(model, of_z=scale), None, X)


def test_what_counts_as_no_scale() -> None:
    assert [is_one(1.0), is_one(1 + 1e-9), is_one(torch.ones(3))] == 3 * [True]
    assert [is_one(math.nan), is_one(0.0), is_one(torch.tensor([1.0, math.inf]))] == 3 * [False]


def log_p(power: float) -> Tensor:
    """log ∫ N(z; 0, 1) N(x; z, 1)^s dz = log N(x; 0, 1 + 1/s) − ½ log s + ½ (1 − s) log 2π."""
    of_x = dist.Normal(torch.zeros((), dtype=torch.float64), math.sqrt(1 + 1 / power)).log_prob(X)
    return of_x - 0.5 * math.log(power) + 0.5 * (1 - power) * math.log(2 * math.pi)


@pytest.mark.parametrize("power", sample_of([3.0, 1.0, 0.5], 3))
def test_a_scale_of_an_observed_site_is_the_same_power_for_all(power: float) -> None:
    program, expected = partial(model, of_x=power), log_p(power)
    torch.testing.assert_close(quadrature(program, None, X).log_px, expected, rtol=0, atol=1e-6)
    for found in (
        log_likelihood(program, guide, X, num_particles=20_000, seed=0),
        log_likelihood(program, Local(guide), X, num_particles=2000, seed=0),
        ais(program, None, X, settings=SHORT, seed=0),
        gaps(program, guide, X, num_particles=4000, seed=0).log_px,
    ):
        value = found.values if hasattr(found, "values") else found.log_px
        assert ((value - expected).abs() < 5 * found.se + 1e-6).all()


@pytest.mark.parametrize("scale", [0.25, torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)])
def test_a_scale_common_to_all_sites_is_divided_out(scale: Any) -> None:
    def scaled(program: Any) -> Any:
        return lambda x: poutine.scale(
            program, scale=scale[: len(x)] if isinstance(scale, Tensor) else scale
        )(x)

    programs = scaled(model), scaled(guide)
    found = log_likelihood(*programs, X, num_particles=10)
    torch.testing.assert_close(found.log_px, log_p(1.0), rtol=0, atol=1e-9)
    torch.testing.assert_close(-diagnose(*programs, X).nelbo, log_p(1.0), rtol=0, atol=1e-9)


def test_only_some_data_are_scaled() -> None:
    """The first datum is as it should be: the check looks at all of them."""

    def some(x: Tensor) -> None:
        model(x, of_z=torch.where(x > 1, 0.5, 1.0))

    with pytest.raises(ProgramError, match="'z' is scaled in the model"):
        log_likelihood(some, guide, X, num_particles=5)
    log_likelihood(some, guide, X[:2], num_particles=5)


def test_roles() -> None:
    scaled = partial(guide, of_z=2.0)
    check_program(model, scaled, (X,), "start")
    for role in ("proposal", "path", "parts"):
        with pytest.raises(ProgramError, match="scaled in the guide"):
            check_program(model, scaled, (X,), role)


def test_the_generators_stay_as_they_were() -> None:
    torch.manual_seed(3)
    check_program(model, guide, (X,))
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)


def test_masks_of_the_distribution_count_as_those_of_the_handler() -> None:
    there = X > 0

    def of(kind: str, uses: bool = False) -> tuple[Any, Any]:
        def program(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                fn = dist.Exponential(torch.ones((), dtype=x.dtype))
                z = pyro.sample("z", fn.expand([len(x)]).mask(x > 0) if kind == "own" else fn)
                with poutine.mask(mask=torch.ones_like(x).bool() if uses else x > 0):
                    pyro.sample("x", dist.Exponential(z), obs=x.abs())

        def proposal(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Gamma(2 * torch.ones_like(x), 1.5).mask(x > 0))

        return program, proposal

    expected = torch.where(there, -2 * (1 + X.abs()).log(), 0.0)  # ∫ z e^{−z(1 + x)} dz
    program, proposal = of("own")
    torch.testing.assert_close(quadrature(program, None, X).log_px, expected, rtol=0, atol=1e-6)
    for found in (
        log_likelihood(program, proposal, X, num_particles=20_000, seed=0),
        log_likelihood(program, Local(proposal), X, num_particles=20_000, seed=0),
        ais(program, None, X, settings=SHORT, seed=0),
    ):
        assert ((found.log_px - expected).abs() < 5 * found.se + 1e-6).all()
    with pytest.raises(ProgramError, match="'z' is masked, but the density of 'x'"):
        log_likelihood(of("own", uses=True)[0], proposal, X, num_particles=5)
    with pytest.raises(ProgramError, match="'z' is not masked alike"):
        log_likelihood(of("none")[0], proposal, X, num_particles=5)


def test_values_that_are_not_finite_are_refused() -> None:
    system, x = zoo.ppca(4, latent=2), torch.zeros(3, 4)
    x[1, 2] = math.nan
    with pytest.raises(DataError, match="datum 1 does not exist: its value at the site 'x'"):
        exact_log_likelihood(system, x)
    bad = torch.tensor([0.5, math.nan], dtype=torch.float64)
    with pyro.validation_enabled(False):
        with pytest.raises(DataError, match="bound of datum 1 is nan"):
            diagnose(model, lambda x: guide(x.nan_to_num()), bad)
        with pytest.raises(DataError, match="datum 1"):
            log_likelihood(model, lambda x: guide(x.nan_to_num()), bad, num_particles=5)
