"""Guides with path gradients at some draws and none at others, and rejection samplers: exact
gradients and Pyro's own.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.rejection_gamma import RejectionGamma, RejectionStandardGamma
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyroae.compilation.svi import Compiled
from pyroae.errors import ProgramError
from pyroae.objectives import (
    ELBO,
    IWAE,
    JVI,
    MIWAE,
    OBJECTIVES,
    TVO,
    Objective,
    Pathwise,
    Renyi,
    Score,
    TraceELBO,
    TwoBounds,
)
from pyroae.objectives.scores import has_path, score_function
from pyroae.programs.particles import Stacked

pytestmark = pytest.mark.usefixtures("float64")

VALUES = (0.3, -0.4, 0.5, 0.7, -0.2)


def quadrature() -> tuple[Tensor, Tensor]:
    """Nodes and masses of a standard normal, by the trapezoid rule."""
    nodes = torch.linspace(-9.0, 9.0, 1801)
    mass = dist.Normal(0.0, 1.0).log_prob(nodes).exp()
    return nodes, mass / mass.sum()


def model(x: Tensor) -> None:
    """z ~ N(0, 1), y ~ Bernoulli(.4), x ~ N(z + 1.5 y, 1)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        y = pyro.sample("y", dist.Bernoulli(torch.full((len(x),), 0.4)))
        pyro.sample("x", dist.Normal(z + 1.5 * y, 1.0), obs=x)


def z_first(p: list[Tensor]) -> Callable[[Tensor], None]:
    """z ~ N(a, e^b), then y | z ~ Bernoulli(σ(c + d z))."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(p[0].expand(len(x)), p[1].exp()))
            pyro.sample("y", dist.Bernoulli(logits=p[2] + p[3] * z))

    return guide


def y_first(p: list[Tensor]) -> Callable[[Tensor], None]:
    """y ~ Bernoulli(σ(c)), then z | y ~ N(a + d y, e^b)."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(logits=p[2].expand(len(x))))
            pyro.sample("z", dist.Normal(p[0] + p[3] * y, p[1].exp()))

    return guide


def log_w(p: list[Tensor], order: str, noise: Tensor, y: Tensor, x: float) -> tuple[Tensor, Tensor]:
    """log w and log q(y | …) at a noise and a y."""
    scale = p[1].exp()
    loc = p[0] if order == "z_first" else p[0] + p[3] * y
    z = loc + scale * noise
    logits = p[2] + p[3] * z if order == "z_first" else p[2].expand_as(noise)
    log_y = dist.Bernoulli(logits=logits, validate_args=False).log_prob(y)
    joint = dist.Normal(0.0, 1.0).log_prob(z) + dist.Bernoulli(0.4 * torch.ones(1)).log_prob(y)
    joint = joint + dist.Normal(z + 1.5 * y, 1.0).log_prob(torch.tensor(x))
    return joint - log_y - dist.Normal(loc, scale).log_prob(z), log_y


def exact_elbo(p: list[Tensor], order: str, x: float) -> Tensor:
    """E log w, by quadrature over the noise and summation over y."""
    nodes, mass = quadrature()
    total = torch.zeros(())
    for y in (0.0, 1.0):
        value, log_y = log_w(p, order, nodes, torch.full_like(nodes, y), x)
        total = total + (mass * log_y.exp() * value).sum()
    return total


def exact_iwae(p: list[Tensor], order: str, x: float) -> Tensor:
    """E log ½(w₁ + w₂), the same for two particles."""
    nodes = torch.linspace(-7.0, 7.0, 241)
    mass = dist.Normal(0.0, 1.0).log_prob(nodes).exp()
    mass = mass / mass.sum()
    parts = [log_w(p, order, nodes, torch.full_like(nodes, y), x) for y in (0.0, 1.0)]
    total = torch.zeros(())
    for one, log_one in parts:
        for two, log_two in parts:
            bound = torch.logaddexp(one[:, None], two[None]) - math.log(2)
            total = (
                total + (mass[:, None] * mass * (log_one[:, None] + log_two).exp() * bound).sum()
            )
    return total


GUIDES = {"z_first": z_first, "y_first": y_first}
SIZE = 40_000


def gradients(objective: Objective, order: str, x: float = 0.8) -> Tensor:
    """The gradient of the bound for each of four parameters and each of many data, `[4, SIZE]`."""
    p = [torch.full((SIZE,), v, requires_grad=True) for v in VALUES[:4]]
    objective.loss_and_grads(model, GUIDES[order](p), torch.full((SIZE,), x))
    return -torch.stack([leaf.grad for leaf in p])  # type: ignore[misc]


def assert_mean_is(found: Tensor, exact: Tensor) -> None:
    errors = found.std(1) / math.sqrt(SIZE)
    assert ((found.mean(1) - exact).abs() < 4.5 * errors).all(), (found.mean(1), exact, errors)


def exact_gradient(value: Callable[..., Tensor], order: str, x: float = 0.8) -> Tensor:
    p = [torch.tensor(v, requires_grad=True) for v in VALUES[:4]]
    return torch.stack(torch.autograd.grad(value(p, order, x), p))


@pytest.mark.parametrize("order", list(GUIDES))
@pytest.mark.parametrize(
    "objective",
    [
        TraceELBO(),
        TraceELBO(3),
        Objective(ELBO(3), Score()),
        Objective(ELBO(3), Score("arithmetic")),
        Objective(ELBO(), Score("none")),
        OBJECTIVES["score"](num_particles=4),
    ],
    ids=lambda o: f"{o.bound_function}-{o.gradient}",
)
def test_elbo_of_a_mixed_guide(objective: Objective, order: str) -> None:
    assert_mean_is(gradients(objective, order), exact_gradient(exact_elbo, order))


@pytest.mark.parametrize("order", list(GUIDES))
@pytest.mark.parametrize(
    "gradient",
    [Pathwise(), Score(), Score("geometric"), Score("arithmetic"), Score("none")],
    ids=str,
)
def test_iwae_of_a_mixed_guide(gradient: Any, order: str) -> None:
    assert_mean_is(
        gradients(Objective(IWAE(2), gradient), order), exact_gradient(exact_iwae, order)
    )


def scores_alone(order: str, bound: Any) -> Tensor:
    """The gradient of a bound by scores of every draw, written out: F ∂ log q − Σ c ∂ log q,
    `[4, SIZE]`.
    """
    p = [torch.full((SIZE,), v, requires_grad=True) for v in VALUES[:4]]
    noise, x = torch.randn(bound.num_particles, SIZE), torch.full((SIZE,), 0.8)
    with torch.no_grad():
        if order == "z_first":
            z = p[0] + p[1].exp() * noise
            y = torch.bernoulli((p[2] + p[3] * z).sigmoid())
        else:
            y = torch.bernoulli(p[2].sigmoid().expand_as(noise))
            z = p[0] + p[3] * y + p[1].exp() * noise
    loc = p[0] if order == "z_first" else p[0] + p[3] * y
    logits = p[2] + p[3] * z if order == "z_first" else p[2].expand_as(z)
    log_q = dist.Normal(loc, p[1].exp()).log_prob(z) + dist.Bernoulli(logits=logits).log_prob(y)
    log_p = dist.Normal(0.0, 1.0).log_prob(z) + dist.Bernoulli(torch.tensor(0.4)).log_prob(y)
    log_p = log_p + dist.Normal(z + 1.5 * y, 1.0).log_prob(x)
    log_weight = (log_p - log_q).detach()
    ((bound.value(log_weight) - bound.slope(log_weight)) * log_q).sum().backward()
    return torch.stack([leaf.grad for leaf in p])  # type: ignore[misc]


@pytest.mark.parametrize(
    ("bound", "gradient", "order"),
    [
        pytest.param(bound, gradient, order, marks=pytest.mark.slow if (i + j + k) % 2 else ())
        for i, bound in enumerate((Renyi(3, 0.5), MIWAE(4, 2), JVI(3), TVO(3)))
        for j, gradient in enumerate((Pathwise(), Score()))
        for k, order in enumerate(GUIDES)
    ],
    ids=str,
)
def test_every_bound_of_a_mixed_guide(bound: Any, gradient: Any, order: str) -> None:
    """The mean is that of scores alone, with a smaller spread where there is a baseline."""
    found, reference = gradients(Objective(bound, gradient), order), scores_alone(order, bound)
    errors = (found.var(1) + reference.var(1)).sqrt() / math.sqrt(SIZE)
    assert ((found.mean(1) - reference.mean(1)).abs() < 4.5 * errors).all()
    if isinstance(gradient, Score):
        assert (found.std(1) < reference.std(1)).all()


def test_two_bounds_of_a_mixed_guide() -> None:
    """φ follows MIWAE."""
    found, reference = (
        gradients(Objective(MIWAE(4, 2), g), "y_first") for g in (TwoBounds(), Pathwise())
    )
    errors = (found.var(1) + reference.var(1)).sqrt() / math.sqrt(SIZE)
    assert ((found.mean(1) - reference.mean(1)).abs() < 4.5 * errors).all()


def test_the_score_is_differentiated_through_its_parents() -> None:
    """With y drawn from q(y|z) after z, a stopped z in the score gives another gradient of z's
    location.
    """
    exact = exact_gradient(exact_elbo, "z_first")[0].item()
    nodes, mass = quadrature()
    p = [torch.tensor(v, requires_grad=True) for v in VALUES[:4]]
    stopped = torch.zeros(())
    for y in (0.0, 1.0):
        value, log_y = log_w(p, "z_first", nodes, torch.full_like(nodes, y), 0.8)
        stopped = (
            stopped + (mass * log_y.exp().detach() * value).sum()
        )  # paths alone: the score term through z is lost
    (without,) = torch.autograd.grad(stopped, p[:1])
    assert abs(without.item() - exact) > 0.15
    found = gradients(TraceELBO(2), "z_first")[0]
    assert abs(found.mean().item() - exact) < 4.5 * found.std().item() / math.sqrt(SIZE) < 0.05


def test_paths_reduce_the_spread() -> None:
    """Pathwise at z and a score at y, against scores at both."""
    mixed = gradients(Objective(ELBO(4), Score()), "y_first")
    p = [torch.full((SIZE,), v, requires_grad=True) for v in VALUES[:4]]
    estimator = Objective(ELBO(4), Score())
    guide = y_first(p)
    estimator.cache.get("mixed", (guide,), lambda: False)  # scores everywhere
    estimator.loss_and_grads(model, guide, torch.full((SIZE,), 0.8))
    alone = -torch.stack([leaf.grad for leaf in p])  # type: ignore[misc]
    assert (alone.mean(1) - mixed.mean(1)).abs().max() < 4.5 * alone.std(1).max() / math.sqrt(SIZE)
    assert alone[0].std() > 1.5 * mixed[0].std()


@pytest.mark.parametrize("order", list(GUIDES))
@pytest.mark.parametrize("num_particles", [1, 4])
def test_trace_elbo_equals_pyro(order: str, num_particles: int) -> None:
    """Loss and gradient of `Trace_ELBO` on the same draws, discrete draws in a nested plate and
    outside of any included.
    """
    nested = {"nested": (_nested_model, _nested_guide)}
    programs = {order: (model, GUIDES[order]), **nested}
    for nesting, (program, make) in zip((1, 2), programs.values(), strict=True):
        found = []
        for objective in (
            TraceELBO(num_particles),
            Trace_ELBO(
                num_particles,
                max_plate_nesting=nesting + (num_particles > 1),
                vectorize_particles=num_particles > 1,
            ),
        ):
            p = [torch.tensor(v, requires_grad=True) for v in VALUES]
            guide = _with_parameters(make, p)
            objective.loss(program, guide, torch.tensor([0.5, -1.0, 2.0]))
            pyro.set_rng_seed(4)
            loss = objective.loss_and_grads(program, guide, torch.tensor([0.5, -1.0, 2.0]))
            found.append([loss, *(0.0 if leaf.grad is None else leaf.grad.item() for leaf in p)])
        assert found[0] == pytest.approx(found[1], rel=1e-9, abs=1e-11)
        assert any(value for value in found[0][1:])


def _with_parameters(make: Any, p: list[Tensor]) -> Callable[[Tensor], None]:
    guide = make(p)

    def with_parameters(x: Tensor) -> None:
        module = torch.nn.Module()
        module.p = torch.nn.Parameter(torch.zeros(1))  # Trace_ELBO asks for any parameter
        pyro.module("p", module)
        guide(x)

    return with_parameters


def _nested_model(x: Tensor) -> None:
    top = pyro.sample("top", dist.Bernoulli(0.3))
    with pyro.plate("data", len(x), dim=-2, subsample_size=None):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
        with pyro.plate("features", 2, dim=-1):
            y = pyro.sample("y", dist.Bernoulli(0.4 * torch.ones(len(x), 2)))
            pyro.sample("x", dist.Normal(z + y + top, 1.0), obs=x.unsqueeze(-1).expand(-1, 2))


def _nested_guide(p: list[Tensor]) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        pyro.sample("top", dist.Bernoulli(logits=p[4]))
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(p[0].expand(len(x), 1), p[1].exp()))
            with pyro.plate("features", 2, dim=-1):
                pyro.sample("y", dist.Bernoulli(logits=(p[2] + p[3] * z)))

    return guide


@pytest.mark.parametrize(
    "name", ["stl", "iwae-stl", "dreg", "rws-dreg", "analytic-kl", "beta-elbo"]
)
def test_refusals(name: str) -> None:
    p = [torch.tensor(v, requires_grad=True) for v in VALUES]
    words = (
        r"needs a path gradient at every draw; the guide's site 'y' \(Bernoulli\) has none: "
        "use trace-elbo"
    )
    with pytest.raises(ProgramError, match=words):
        OBJECTIVES[name](num_particles=3).loss(model, z_first(p), torch.zeros(3))


class Mixed(torch.nn.Module):
    """The programs above as one module."""

    def __init__(self) -> None:
        super().__init__()
        self.p = torch.nn.ParameterList(torch.tensor(v) for v in VALUES[:4])

    def model(self, x: Tensor) -> None:
        model(x)

    def guide(self, x: Tensor) -> None:
        pyro.module("mixed", self)
        z_first(list(self.p))(x)


@pytest.mark.parametrize("name", ["trace-elbo", "iwae", "vimco"])
def test_compiled_mixed_programs(name: str) -> None:
    """As one graph: the same bound and gradients as eager code."""
    system, x = Mixed(), torch.tensor([0.5, -1.0, 2.0])
    objective = OBJECTIVES[name](num_particles=4)
    objective.bound(system.model, system.guide, x)
    torch.manual_seed(5)
    value, surrogate = objective.bound(system.model, system.guide, x)
    expected = [
        value.item(),
        *(g.item() for g in torch.autograd.grad(-surrogate, list(system.parameters()))),
    ]
    graphs = Compiled(system, OBJECTIVES[name](num_particles=4), backend="eager")
    torch.manual_seed(5)
    found, grads = graphs.value_and_grads(x)
    assert graphs.is_compiled
    assert [found.item(), *(g.item() for g in grads)] == pytest.approx(expected, rel=1e-9)


# Rejection samplers.


def test_which_draws_carry_their_whole_path_gradient() -> None:
    ones = torch.ones(3)
    rejector = RejectionStandardGamma(2 * ones)
    partly = [
        rejector,
        RejectionGamma(2 * ones, ones),
        RejectionGamma(2 * ones, ones).to_event(1),
        RejectionGamma(2 * ones, ones).mask(ones > 0),
        RejectionGamma(2 * ones, ones).expand((4, 3)).to_event(1).mask(torch.ones(4) > 0),
        dist.TransformedDistribution(
            RejectionGamma(2 * ones, ones), [dist.transforms.ExpTransform()]
        ),
        dist.MaskedMixture(ones > 0, RejectionGamma(2 * ones, ones), dist.Gamma(2 * ones, ones)),
    ]
    for fn in partly:
        assert fn.has_rsample
        assert not has_path(fn), fn
        value = fn.rsample()
        term = score_function(fn, value)
        assert term is not None
        assert term.shape == fn.batch_shape
    for fn in (
        dist.Gamma(ones, ones),
        dist.Normal(ones, ones).to_event(1),
        dist.LogNormal(ones, ones),
        dist.Delta(ones),
    ):
        assert has_path(fn)
        assert score_function(fn, fn.sample()) is None
    assert not has_path(dist.Bernoulli(ones / 2).to_event(1))


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "in an event"])
@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(TraceELBO(), marks=pytest.mark.slow),
        TraceELBO(2),
        Objective(ELBO(2), Score()),
        Objective(ELBO(2), Score("none")),
    ],
    ids=lambda o: f"{o.bound_function}-{o.gradient}",
)
def test_rejection_sampled_gamma(objective: Objective, wrapped: bool) -> None:
    """z ~ Gamma(2, 1), x ~ Poisson(z), x = 5, q = Gamma(a, b) by rejection: the ELBO is known in
    closed form.

    E log w = (2 + x − a)(ψ(a) − log b) − (1 + 1 − b) a/b − a log b + log Γ(a) + const.
    """
    size, events = 60_000, (1,) if wrapped else ()

    def program() -> None:
        with pyro.plate("data", size):
            prior = dist.Gamma(torch.full((size, *events), 2.0), 1.0)
            z = pyro.sample("z", prior.to_event(1) if wrapped else prior)
            rate = dist.Poisson(z)
            pyro.sample(
                "x", rate.to_event(1) if wrapped else rate, obs=torch.full((size, *events), 5.0)
            )

    a, b = (torch.full((size, *events), v, requires_grad=True) for v in (3.0, 1.4))

    def guide() -> None:
        with pyro.plate("data", size):
            q = RejectionGamma(a, b)
            pyro.sample("z", q.to_event(1) if wrapped else q)

    objective.loss_and_grads(program, guide)
    one, two = torch.tensor(3.0, requires_grad=True), torch.tensor(1.4, requires_grad=True)
    mean_log = torch.digamma(one) - two.log()
    elbo = (2 + 5 - one) * mean_log - (2 - two) * one / two - one * two.log() + torch.lgamma(one)
    exact = torch.stack(torch.autograd.grad(elbo, (one, two)))
    found = -torch.stack([a.grad.flatten(), b.grad.flatten()])  # type: ignore[union-attr]
    errors = found.std(1) / math.sqrt(size)
    assert ((found.mean(1) - exact).abs() < 4.5 * errors).all(), (found.mean(1), exact, errors)
    assert errors.max() < 0.05


@pytest.mark.parametrize("name", ["stl", "dreg", "rws-dreg", "analytic-kl"])
def test_a_rejection_sampler_has_only_a_part_of_a_path(name: str) -> None:
    def program() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Gamma(torch.ones(2), 1.0))

    def guide() -> None:
        with pyro.plate("data", 2):
            pyro.sample("z", RejectionGamma(2 * torch.ones(2), torch.ones(2)))

    with pytest.raises(ProgramError, match=r"the guide's site 'z' \(\w+\) has only a part of one"):
        OBJECTIVES[name](num_particles=2).loss(program, guide)


def test_the_score_function_of_stacked_runs_is_that_of_each_run() -> None:
    ones = torch.ones(4)
    parts = [RejectionGamma(2 * ones, ones), RejectionGamma(3 * ones, ones)]
    value = torch.rand(2, 4) + 0.5
    scores = [
        s
        for part, v in zip(parts, value, strict=True)
        if (s := score_function(part, v)) is not None
    ]
    assert not has_path(Stacked(parts, 1))
    found = score_function(Stacked(parts, 1), value)
    assert found is not None
    assert torch.equal(found, torch.stack(scores))
    assert score_function(Stacked([dist.Normal(ones, ones)] * 2, 1), value) is None
