"""Masks in an evaluation: a padded step is no coordinate and adds 0; what depends on a masked
latent has no log p(x).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyroae.config import AISSettings
from pyroae.errors import ProgramError
from pyroae.evaluation.adaptive_quadrature import quadrature
from pyroae.evaluation.annealing.bounds import ais, bdmc
from pyroae.evaluation.checks import check_terms
from pyroae.evaluation.diagnostics import diagnose
from pyroae.evaluation.importance.likelihood import log_likelihood
from pyroae.evaluation.importance.proposals import Local, Mixture
from pyroae.evaluation.inference_gaps import gaps
from pyroae.evaluation.local import fit_local
from pyroae.evaluation.mutual_information import information
from pyroae.inference_data import to_datatree
from pyroae.objectives import OBJECTIVES
from pyroae.programs.latents import Latents
from pyroae.programs.traces import prior_of

Args = tuple[Tensor, ...]
STEPS = AISSettings(num_chains=32, num_distributions=50, leapfrog_steps=5)
X = torch.tensor([[0.5, 0.3], [-1.0, 1.2], [0.5, math.nan], [0.2, 9.0]], dtype=torch.float64)
"""Two steps of four data; the second step of the last two is padding."""
LONG = torch.tensor([True, True, False, False])
ARGS = (X, LONG)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def model(x: Tensor, long: Tensor, leak: str = "") -> None:
    """a ~ N(0, 1), x_a ~ N(a, σ = ½), b ~ N(a, 1), x_b ~ N(b, σ = ½), the second step only where it
    is there.
    """
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(number(0.0), 1.0))
        pyro.sample("x_a", dist.Normal(a, 0.5), obs=x[:, 0])
        with poutine.mask(mask=long):
            b = pyro.sample("b", dist.Normal(a, 1.0))
        with poutine.mask(mask=long if leak != "x_b" else torch.ones_like(long)):
            pyro.sample("x_b", dist.Normal(b, 0.5), obs=x[:, 1].nan_to_num() if leak else x[:, 1])
        if leak == "factor":
            pyro.factor("late", -b.square())


def guide(x: Tensor, long: Tensor, masked: bool = True, width: float = 1.0) -> None:
    """The exact posterior, times `width` in scale; what is padding has whatever values."""
    mean, root = posterior(x)
    with pyro.plate("data", len(x)):
        alone = x[:, 0] * 0.8
        a = pyro.sample(
            "a",
            dist.Normal(
                torch.where(long, mean[:, 0], alone),
                width * torch.where(long, root[0, 0], 0.2**0.5),
            ),
        )
        with poutine.mask(mask=long if masked else torch.ones_like(long)):
            apart = (a - mean[:, 0]) / root[0, 0]
            pyro.sample("b", dist.Normal(mean[:, 1] + apart * root[1, 0], width * root[1, 1]))


def posterior(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `[N, 2]` and Cholesky factor of p(a, b | x), with 0 in the place of NaN."""
    prior = torch.tensor([[1.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    covariance = torch.linalg.inv(torch.linalg.inv(prior) + 4 * torch.eye(2, dtype=torch.float64))
    return x.nan_to_num() @ (4 * covariance), torch.linalg.cholesky(covariance)


def exact() -> Tensor:
    both = torch.tensor([[1.25, 1.0], [1.0, 2.25]], dtype=torch.float64)
    of_two = dist.MultivariateNormal(torch.zeros(2, dtype=torch.float64), both).log_prob(
        X.nan_to_num()
    )
    of_one = dist.Normal(number(0.0), math.sqrt(1.25)).log_prob(X[:, 0])
    return torch.where(LONG, of_two, of_one)


def test_the_value_of_the_issue() -> None:
    assert exact()[2].item() == pytest.approx(-1.1305, abs=1e-4)


def test_importance_sampling() -> None:
    found = log_likelihood(model, guide, ARGS, num_particles=100, seed=0)
    torch.testing.assert_close(found.log_px, exact(), rtol=0, atol=1e-9)
    wide = log_likelihood(model, partial(guide, width=1.3), ARGS, num_particles=20_000, seed=0)
    assert ((wide.log_px - exact()).abs() < 5 * wide.se + 1e-9).all()
    mixed = Mixture((partial(guide, width=1.3), partial(guide, width=2.0)))
    found = log_likelihood(model, mixed, ARGS, num_particles=20_000, seed=0)
    assert ((found.log_px - exact()).abs() < 5 * found.se + 1e-9).all()


def test_masked_elements_are_no_coordinates() -> None:
    latents = Latents(model, guide, ARGS, 3)
    assert latents.active is not None
    assert latents.active.tolist() == [[True, True], [True, True], [True, False], [True, False]]
    u = torch.randn(3, 4, 2, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(latents.log_joint(u).total.sum(), u)
    assert gradient.isfinite().all()
    assert (gradient[:, ~latents.active] == 0).all()
    assert (gradient[:, latents.active] != 0).all()
    moved = torch.where(latents.active, u, 1e6)
    torch.testing.assert_close(
        latents.log_joint(moved).total, latents.log_joint(u).total, rtol=0, atol=0
    )


@pytest.mark.parametrize("family", ["diagonal", "full-rank"])
def test_the_local_fit(family: Any) -> None:
    torch.manual_seed(0)
    fitted = fit_local(model, guide, ARGS, family=family, seed=0)
    mean, root = posterior(X)
    torch.testing.assert_close(fitted.loc[2:, 0], X[2:, 0] * 0.8, rtol=0, atol=2e-3)
    torch.testing.assert_close(fitted.loc[:2], mean[:2], rtol=0, atol=2e-2)
    if family == "full-rank":
        torch.testing.assert_close(fitted.scale_tril[:2], root.expand(2, 2, 2), rtol=0, atol=2e-3)
        torch.testing.assert_close(fitted.elbo, exact(), rtol=0, atol=1e-3)
    found = log_likelihood(model, Local(guide, family), ARGS, num_particles=5000, seed=0)
    assert ((found.log_px - exact()).abs() < 5 * found.se + 1e-9).all()
    assert len(found.unreliable) == 0


def test_gaps() -> None:
    found = gaps(model, partial(guide, width=1.3), ARGS, num_particles=4000, seed=0)
    assert ((found.log_px.values - exact()).abs() < 5 * found.log_px.se + 1e-9).all()
    full = found.families["full-rank"]
    assert (full.approximation.values.abs() < 5 * full.approximation.se + 1e-3).all()
    per_dimension = 0.5 * (
        1.3**2 - 1 - math.log(1.3**2)
    )  # KL of the inflated guide, one for each step that is there
    kl = per_dimension * torch.where(LONG, 2.0, 1.0).double()
    assert ((found.inference.values - kl).abs() < 5 * found.inference.se).all()


@pytest.mark.parametrize("given", [guide, None])
def test_quadrature(given: Any) -> None:
    found = quadrature(model, given, ARGS)
    torch.testing.assert_close(found.log_px, exact(), rtol=0, atol=1e-6)
    assert found.converged.all()


def test_quadrature_counts_only_what_is_not_masked() -> None:
    """Five steps of which one datum has one, one has none and one has three."""
    there = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 1, 1, 0]]).bool()
    x = torch.tensor(
        [[0.3, 1, 2, 3, 4], [0, 0, 0, 0, 0], [1.0, 5, -1, 0.5, 2]], dtype=torch.float64
    )

    def steps(x: Tensor, there: Tensor) -> None:
        with (
            pyro.plate("data", len(x), dim=-2),
            pyro.plate("steps", 5, dim=-1),
            poutine.mask(mask=there),
        ):
            z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    expected = (dist.Normal(number(0.0), math.sqrt(2)).log_prob(x) * there).sum(1)
    torch.testing.assert_close(
        quadrature(steps, None, (x, there)).log_px, expected, rtol=0, atol=1e-6
    )
    found = ais(steps, None, (x, there), settings=STEPS, seed=0)
    assert ((found.log_px - expected).abs() < 5 * found.se + 1e-9).all()


@pytest.mark.parametrize("start", [pytest.param("prior", marks=pytest.mark.slow), "guide"])
def test_annealing(start: str) -> None:
    settings = AISSettings(32, 30, leapfrog_steps=5, start=start)
    given = partial(guide, width=1.5)
    # The second step of the guide has no density of its own where it depends on nothing masked.
    if start == "guide":
        found = ais(model, given, ARGS, settings=settings, seed=0)
    else:
        found = ais(model, None, ARGS, settings=settings, seed=0)
    assert found.log_px.isfinite().all()
    assert ((found.log_px - exact()).abs() < 5 * found.se).all()
    assert (found.acceptance_per_datum > 0.3).all()


def test_bidirectional() -> None:
    data = (X.repeat(50, 1), LONG.repeat(50))
    found = bdmc(model, None, data, settings=AISSettings(8, 60, leapfrog_steps=5), seed=0)
    assert found.gap.isfinite().all()
    assert abs(found.mean_gap) < 5 * found.mean_gap_se + 0.05
    assert found.x["x_b"][~data[1]].isnan().sum() == 50  # what is masked stays as it was given


def test_diagnose_and_datatree() -> None:
    found = diagnose(model, guide, ARGS, num_particles=2000, seed=0)
    torch.testing.assert_close(-found.nelbo, exact(), rtol=0, atol=1e-9)
    assert found.kl_per_unit.sum().item() == pytest.approx(found.rate.mean().item(), abs=0.02)


LEAKS = {
    "an observation": (
        partial(model, leak="x_b"),
        "'b' is masked, but the density of 'x_b' depends",
    ),
    "a factor": (partial(model, leak="factor"), "'b' is masked, but the density of 'late' depends"),
}
EVALUATORS: dict[str, Callable[[Any, Any, Args], object]] = {
    "is": lambda m, g, x: log_likelihood(m, g, x, num_particles=30),
    "local": lambda m, g, x: log_likelihood(m, Local(g), x, num_particles=30),
    "retry": lambda m, g, x: log_likelihood(m, g, x, num_particles=30, retry=Local(g)),
    "ais": lambda m, g, x: ais(m, None, x, settings=STEPS),
    "ais from the guide": lambda m, g, x: ais(m, g, x, settings=AISSettings(start="guide")),
    "bdmc": lambda m, g, x: bdmc(m, None, x, settings=STEPS),
    "gaps": lambda m, g, x: gaps(m, g, x, num_particles=10, steps=5),
    "quadrature": quadrature,
    "information": information,
    "diagnose": diagnose,
}


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("leak", LEAKS)
def test_what_depends_on_a_masked_latent_is_refused(evaluator: str, leak: str) -> None:
    program, reason = LEAKS[leak]
    if evaluator == "information":
        reason = "'b' is masked"
    with pytest.raises(ProgramError, match=reason):
        EVALUATORS[evaluator](program, guide, ARGS)


def test_a_leak_of_a_later_datum_is_found() -> None:
    """The first datum has no masked step: one draw of all data says it."""
    with pytest.raises(ProgramError, match="'b' is masked"):
        check_terms(LEAKS["a factor"][0], guide, (X[[0, 1, 3]], LONG[[0, 1, 3]]))
    check_terms(LEAKS["a factor"][0], guide, (X[:2], LONG[:2]))


def test_a_discrete_latent_that_is_masked() -> None:
    """All states are tried: a draw may come out the same."""

    def of(uses: bool) -> Callable[[Tensor, Tensor], None]:
        def program(x: Tensor, there: Tensor) -> None:
            with pyro.plate("data", len(x)):
                with poutine.mask(mask=there):
                    k = pyro.sample("k", dist.Bernoulli(number(0.01)))
                with poutine.mask(mask=torch.ones_like(there) if uses else there):
                    pyro.sample("x", dist.Normal(k, 1.0), obs=x)

        return program

    def proposal(x: Tensor, there: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=there):
            pyro.sample("k", dist.Bernoulli(number(0.01)))

    args = (torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([True, False]))
    with pytest.raises(ProgramError, match="'k' is masked, but the density of 'x'"):
        log_likelihood(of(True), proposal, args, num_particles=5)
    found = log_likelihood(of(False), proposal, args, num_particles=50_000, seed=0)
    weights = torch.tensor([0.99, 0.01]).double()
    expected = (
        dist.Normal(torch.tensor([0.0, 1.0]).double(), 1.0).log_prob(args[0][0]) + weights.log()
    ).logsumexp(0)
    assert found.log_px[1] == 0
    assert abs(found.log_px[0] - expected) < 5 * found.se[0]


@pytest.mark.parametrize("evaluator", ["is", "gaps", "diagnose", "ais from the guide"])
def test_masks_that_differ_between_model_and_guide_are_refused(evaluator: str) -> None:
    with pytest.raises(ProgramError, match="'b' is not masked alike in model and guide"):
        EVALUATORS[evaluator](model, partial(guide, masked=False), ARGS)


def test_where_the_guide_is_a_start_only_its_masks_do_not_matter() -> None:
    start = partial(guide, masked=False)
    found = log_likelihood(model, Local(start), ARGS, num_particles=2000, seed=0)
    assert ((found.log_px - exact()).abs() < 5 * found.se + 1e-9).all()
    torch.testing.assert_close(quadrature(model, start, ARGS).log_px, exact(), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:the model has no observed site")
def test_a_mask_that_is_drawn_or_does_not_fit_is_refused() -> None:
    def drawn(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(number(0.0), 1.0))
            with poutine.mask(mask=a > 0):
                pyro.sample("b", dist.Normal(a, 1.0))

    def closed(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=LONG):
            pyro.sample("a", dist.Normal(number(0.0), 1.0))

    x = torch.zeros(50, dtype=torch.float64)
    with pytest.raises(ProgramError, match="mask of the latent site 'b' depends on what is drawn"):
        ais(drawn, None, x, settings=STEPS)
    with pytest.raises(ProgramError, match="mask of site 'a' has the shape"):
        quadrature(closed, None, x)


def test_missing_data_under_a_mask_of_constrained_sites() -> None:
    """NaN where an observation of a positive or of a counted site is masked: gradients stay finite,
    the value is exact.
    """
    there = torch.tensor([True, False])
    x = torch.tensor([[1.5, 2.0, 0.4], [0.7, math.nan, math.nan]], dtype=torch.float64)

    def program(x: Tensor, there: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(number(2.0), number(1.0)))
            pyro.sample("x", dist.Exponential(z), obs=x[:, 0])
            with poutine.mask(mask=there):
                pyro.sample("n", dist.Poisson(z), obs=x[:, 1])
                pyro.sample("y", dist.Gamma(number(3.0), z), obs=x[:, 2])

    # ∫ z e^−z · z e^−xz · [z² e^−z / 2! · z³ y² e^−yz / 2] dz
    one = math.log(math.gamma(3)) - 3 * math.log(1 + 0.7)
    both = math.log(math.gamma(8) * 0.4**2 / 4) - 8 * math.log(1 + 1.5 + 1 + 0.4)
    expected = torch.tensor([both, one], dtype=torch.float64)
    torch.testing.assert_close(
        quadrature(program, None, (x, there)).log_px, expected, rtol=0, atol=1e-5
    )
    found = ais(program, None, (x, there), settings=STEPS, seed=0)
    assert ((found.log_px - expected).abs() < 5 * found.se).all()
    assert (found.acceptance_per_datum > 0.3).all()


def test_datatree_asks_the_same_check() -> None:
    def program(x: Tensor, uses: bool = True) -> None:
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=x > 0):
                z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def proposal(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=x > 0):
            pyro.sample("z", dist.Normal(number(0.0), 1.0))

    with pytest.raises(ProgramError, match="'z' is masked, but the density of 'x'"):
        to_datatree(program, proposal, torch.tensor([1.0, -1.0], dtype=torch.float64))


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("kind", ["poutine", "distribution"])
def test_objectives_with_missing_data_under_a_mask(kind: str, validation: bool) -> None:
    """The exact posterior of x ~ N(z, 1), z ~ N(0, 1), or the prior where x is missing: values and
    gradients are finite.
    """
    x, there = (
        torch.tensor([0.5, math.nan, 2.0], dtype=torch.float64),
        torch.tensor([True, False, True]),
    )
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def program(x: Tensor, there: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
            fn = dist.Normal(z + shift, 1.0)
            with poutine.mask(mask=there if kind == "poutine" else True):
                pyro.sample("x", fn if kind == "poutine" else fn.mask(there), obs=x)

    def posterior(x: Tensor, there: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = torch.where(there, torch.nan_to_num(x) / 2, 0.0)
            pyro.sample("z", dist.Normal(loc, torch.where(there, math.sqrt(0.5), 1.0)))

    expected = dist.Normal(0.0, math.sqrt(2)).log_prob(x[there]).sum()
    with pyro.validation_enabled(validation):
        found = OBJECTIVES["iwae"](num_particles=4).bound(program, posterior, x, there)
    torch.testing.assert_close(found.value.detach(), expected)
    (gradient,) = torch.autograd.grad(found.surrogate, shift)
    assert gradient.isfinite()


def test_a_mask_of_one_number_is_no_shape() -> None:
    """A program without a plate: the mask has no dimension."""

    def program(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(number(0.0), 1.0))
        with poutine.mask(mask=torch.tensor(False)):
            pyro.sample("y", dist.Normal(number(0.0), 1.0), obs=number(math.nan))
        pyro.sample("x", dist.Normal(number(0.0), 1.0), obs=x[0])

    found = log_likelihood(
        program, prior_of(program), torch.ones(1, dtype=torch.float64), num_particles=30
    )
    assert found.log_px.item() == pytest.approx(
        dist.Normal(0.0, 1.0).log_prob(torch.tensor(1.0)).item()
    )
