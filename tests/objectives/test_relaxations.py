"""Gumbel-softmax and straight-through: exact values, limits, measured bias, refusals."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor

from pyroae.compilation.tracing import trace_to_graph
from pyroae.errors import ConfigError, ProgramError
from pyroae.objectives import ELBO, IWAE, JVI, Objective, parse_objective
from pyroae.objectives.relaxations import GumbelSoftmax, StraightThrough
from pyroae.programs.discrete_variables import Binary, OneOf, discrete_site
from tests.objectives.relaxed_toys import TwoSites, X, deviation, estimates, gradients
from tests.systems import system_and_data

pytestmark = pytest.mark.usefixtures("float64")
BIASED = (
    "gumbel-softmax",
    "elbo+gumbel-softmax:density=concrete",
    "straight-through",
    "straight-through:path=mean",
)
ALL = (*BIASED, "rebar", "relax")


# The variables of a site.


def test_noise_gives_the_probabilities() -> None:
    n = 200_000
    bits = Binary(torch.tensor([-1.0, 0.3, 2.0]).expand(n, 3))
    states = bits.hard(bits.logits + bits.noise())
    assert deviation(states, torch.sigmoid(bits.logits[0])) < 5
    one = OneOf(torch.tensor([-1.0, 0.3, 2.0]).expand(n, 3))
    states = one.hard(one.logits + one.noise())
    assert states.sum(-1).eq(1).all()
    assert deviation(states, one.logits[0].softmax(-1)) < 5


@pytest.mark.parametrize("kind", [Binary, OneOf])
def test_conditional_draws_are_the_draws_with_that_state(kind: Any) -> None:
    """z drawn given b = H(z′) has the distribution of z, and always the state b."""
    n = 200_000
    variables = kind(torch.tensor([-1.0, 0.3, 2.0]).expand(n, 3).log_softmax(-1))
    z = variables.logits + variables.noise()
    states = variables.hard(variables.logits + variables.noise())
    given = variables.given(states, variables.noise())
    assert torch.equal(variables.hard(given), states)
    for moment in (torch.sigmoid, lambda v: torch.sigmoid(v).square(), lambda v: v > 0.5):
        one, other = moment(z).double(), moment(given).double()
        assert deviation(one - other, torch.zeros(3)) < 5
    joint = torch.sigmoid(z[:, 0]) * torch.sigmoid(z[:, 1])
    assert (
        deviation(joint - torch.sigmoid(given[:, 0]) * torch.sigmoid(given[:, 1]), joint[0] * 0) < 5
    )


@pytest.mark.parametrize("temperature", [0.3, 1.5])
def test_concrete_densities_are_those_of_torch(temperature: float) -> None:
    """Up to the Jacobian of the sigmoid or softmax, which is the same for p and q."""
    logits, z = torch.tensor([0.4, -1.0, 0.2]), torch.tensor([1.0, -0.3, 2.0])
    base = torch.distributions.relaxed_bernoulli.LogitRelaxedBernoulli(
        torch.tensor(temperature), logits=logits
    )
    torch.testing.assert_close(
        Binary(logits).concrete(z, temperature), base.log_prob(z / temperature)
    )
    other = torch.distributions.relaxed_categorical.ExpRelaxedCategorical(
        torch.tensor(temperature), logits=logits
    )
    expected = other.log_prob((z / temperature).log_softmax(-1))
    torch.testing.assert_close(OneOf(logits.log_softmax(-1)).concrete(z, temperature), expected)


def test_linear_densities_are_the_densities_at_the_states() -> None:
    toy = TwoSites(flat=True)
    for fn, value in (
        (dist.Bernoulli(torch.tensor([0.3, 0.8])).to_event(1), torch.tensor([1.0, 0.0])),
        (dist.Bernoulli(torch.tensor([0.3, 0.8])).mask(False), torch.tensor([1.0, 0.0])),
        (toy.one_of(torch.tensor([0.3, 0.8, 0.1])), torch.tensor([0.0, 0.0, 1.0])),
        (dist.OneHotCategorical(torch.tensor([0.3, 0.6, 0.1])), torch.tensor([0.0, 1.0, 0.0])),
    ):
        site = discrete_site(fn)
        assert site is not None
        states = site.unpack(value)
        torch.testing.assert_close(site.reduce(site.variables.linear(states)), fn.log_prob(value))
        assert torch.equal(site.pack(states), value)


# The estimators.


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", BIASED)
def test_the_value_is_the_exact_bound(name: str, flat: bool) -> None:
    toy = TwoSites(flat)
    values, _ = estimates(parse_objective(name, 500), toy, 40, toy.of_guide)
    assert deviation(values, toy.exact(X).detach()) < 5


@pytest.mark.parametrize("name", BIASED)
def test_the_value_is_at_states(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    toy, seen = TwoSites(), []
    decode = toy.decode

    def recorded(*states: Any) -> Any:
        seen.append(states)
        return decode(*states)

    monkeypatch.setattr(toy, "decode", recorded)
    objective = parse_objective(name, 50)
    objective.bound(toy.model, toy.guide, X)
    last = torch.cat([part.flatten() for part in seen[-1]])
    assert ((last == 0) | (last == 1)).all()
    assert objective.evaluations == 50 * (2 if "gumbel" in name else 1)


def test_a_low_temperature_has_the_exact_gradient() -> None:
    """The bias falls with τ, and is within the noise at τ = 0.02."""
    toy = TwoSites()
    exact = gradients(toy.exact(X), toy.of_guide)
    bias = {}
    for temperature in (2.0, 0.5, 0.02):
        pyro.set_rng_seed(0)
        objective = Objective(ELBO(1000), GumbelSoftmax(temperature))
        _, found = estimates(objective, toy, 30, toy.of_guide)
        bias[temperature] = float((found.mean(0) - exact).norm() / exact.norm())
        far = deviation(found, exact)
        assert far < 5 if temperature < 0.1 else far > 20
    assert bias[2.0] > 2 * bias[0.5] > 4 * bias[0.02]


@pytest.mark.parametrize("density", ["linear", "concrete"])
def test_the_gradient_is_that_of_the_relaxed_bound(density: Any) -> None:
    """One bit with decoder h(ζ): the relaxed bound by quadrature over the noise."""
    logit = torch.tensor(0.4, requires_grad=True)
    prior, temperature = torch.tensor(-0.3), 0.7

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(logits=prior))
        pyro.sample("x", dist.Normal(3 * z.square(), 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=logit))

    u = (torch.arange(200_000) + 0.5) / 200_000
    z = logit + torch.logit(u)
    soft = torch.sigmoid(z / temperature)
    log_weight = dist.Normal(3 * soft.square(), 1.0).log_prob(torch.tensor(1.0))
    if density == "linear":
        log_weight = log_weight + Binary(prior).linear(soft) - Binary(logit).linear(soft)
    else:
        log_weight = log_weight + Binary(prior).concrete(z, temperature)
        log_weight = log_weight - Binary(logit).concrete(z, temperature)
    (expected,) = torch.autograd.grad(log_weight.mean(), logit)
    objective = Objective(ELBO(2000), GumbelSoftmax(temperature, density))
    found = [
        torch.autograd.grad(objective.bound(model, guide).surrogate, logit)[0] for _ in range(50)
    ]
    assert deviation(torch.stack(found), expected) < 5


def test_straight_through_the_mean_is_exact_for_a_linear_signal() -> None:
    """Where log p(x | z) is linear in the bits, as log p(z) and log q(z) are by their extension."""
    logits = torch.tensor([0.4, -1.0], requires_grad=True)

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.tensor([0.3, 0.6])).to_event(1))
        pyro.factor("f", z @ torch.tensor([2.0, -1.0]))

    def guide() -> None:
        pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))

    p = torch.sigmoid(logits)
    q, prior = dist.Bernoulli(logits=logits), dist.Bernoulli(torch.tensor([0.3, 0.6]))
    elbo = p @ torch.tensor([2.0, -1.0]) - dist.kl.kl_divergence(q, prior).sum()
    (expected,) = torch.autograd.grad(elbo, logits)
    objective = Objective(ELBO(1000), StraightThrough(path="mean"))
    rows = [
        torch.autograd.grad(objective.bound(model, guide).surrogate, logits)[0] for _ in range(60)
    ]
    assert deviation(torch.stack(rows), expected) < 5


@pytest.mark.parametrize("name", ["gumbel-softmax", "straight-through"])
def test_paths_pass_from_site_to_site(name: str) -> None:
    """A second bit whose logits depend on the first: its gradient reaches the first."""
    first, weight = torch.zeros(4, requires_grad=True), torch.tensor(2.0, requires_grad=True)

    def model() -> None:
        with pyro.plate("data", 4):
            pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))
            b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(b, 1.0), obs=torch.ones(4))

    def guide() -> None:
        with pyro.plate("data", 4):
            a = pyro.sample("a", dist.Bernoulli(logits=first))
            pyro.sample("b", dist.Bernoulli(logits=weight * a))

    value, surrogate = parse_objective(name, 8).bound(model, guide)
    grads = torch.autograd.grad(surrogate, [first, weight])
    assert all(grad.abs().max() > 0 for grad in grads)
    assert torch.isfinite(value)


# Refusals.


def program(fn: Any, decode: Any = lambda z: z) -> tuple[Any, Any]:
    def model() -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", fn())
            pyro.sample("x", dist.Normal(decode(z), 1.0), obs=torch.ones(3))

    def guide() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", fn())

    return model, guide


LOGIT = torch.zeros(3, requires_grad=True)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda: dist.Normal(LOGIT, 1.0), r"site 'z' \(Normal\) is continuous"),
        (
            lambda: dist.Categorical(logits=LOGIT.unsqueeze(-1) * torch.ones(4)),
            r"site 'z' \(Categorical\) is an index.*use OneHotCategorical",
        ),
        (lambda: dist.Poisson(LOGIT.exp()), r"site 'z' \(Poisson\) has no relaxation"),
    ],
)
def test_sites_that_cannot_be_relaxed(name: str, fn: Any, words: str) -> None:
    with pytest.raises(ProgramError, match=words):
        parse_objective(name, 2).bound(*program(fn))


def tables(z: Tensor) -> Tensor:
    return torch.arange(2.0)[z.long()]


def only_states(z: Tensor) -> Tensor:
    return torch.arange(2.0)[z]


@pytest.mark.parametrize("name", ALL)
def test_models_that_index(name: str) -> None:
    bits = lambda: dist.Bernoulli(logits=LOGIT)  # noqa: E731
    with pytest.raises(ProgramError, match=r"'z', and none reaches it.*use vimco"):
        parse_objective(name, 2).bound(*program(bits, tables))
    parse_objective("elbo+relax:relaxed=false", 2).bound(*program(bits, tables))


def test_models_that_reject_relaxed_values() -> None:
    def decode(z: Tensor) -> Tensor:
        if not ((z == 0) | (z == 1)).all():
            raise ValueError("states only")
        return z

    model, guide = program(lambda: dist.Bernoulli(logits=LOGIT), decode)
    parse_objective("straight-through", 2).bound(model, guide)
    for name in ("gumbel-softmax", "rebar", "relax"):
        words = r"between the states, where the model fails after the site 'z'.*states only"
        with pytest.raises(ProgramError, match=words):
            parse_objective(name, 2).bound(model, guide)


def test_a_prior_without_values_between_the_states() -> None:
    def model() -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Poisson(torch.ones(3)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(3))

    _, guide = program(lambda: dist.Bernoulli(logits=LOGIT))
    for name in ("gumbel-softmax", "straight-through", "rebar"):
        with pytest.raises(ProgramError, match="site 'z', where its distribution Poisson"):
            parse_objective(name, 2).bound(model, guide)


@pytest.mark.parametrize("name", ["gumbel-softmax", "straight-through", "rebar"])
def test_a_site_of_the_model_is_summed_beside_relaxed_draws(name: str) -> None:
    def model() -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
            y = pyro.sample("y", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z + 2 * y, 1.0), obs=torch.ones(3))

    def guide() -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(logits=LOGIT + 40.0))

    value = parse_objective(name, 2).bound(model, guide).value
    mixed = (0.7 + 0.3 * math.exp(-2.0)) / math.sqrt(2 * math.pi)
    assert value.item() == pytest.approx(3 * (math.log(mixed) + math.log(0.4)), rel=1e-6)


def test_settings() -> None:
    for bad in (0.0, -1.0, float("inf")):
        for gradient in ("gumbel-softmax", "straight-through", "rebar", "relax"):
            with pytest.raises(ConfigError, match="the temperature must be positive"):
                parse_objective(f"elbo+{gradient}:temperature={bad}".replace("inf", ".inf"), 2)
    with pytest.raises(ConfigError, match="density must be linear or concrete"):
        GumbelSoftmax(density="other")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="path must be gumbel or mean"):
        StraightThrough(path="other")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="for ELBO and IWAE, not for JVI"):
        Objective(JVI(4, 1), GumbelSoftmax())
    assert Objective(IWAE(4), GumbelSoftmax()).evaluations == 8


# Compiled, trained, in Pyro.


@pytest.mark.parametrize(
    ("name", "system"),
    [
        pytest.param(name, system, marks=pytest.mark.slow if (i + j) % 2 else ())
        for i, name in enumerate(ALL)
        for j, system in enumerate(("discrete-vae", "discrete-vae-categorical"))
    ],
)
def test_one_graph_has_the_bound_and_all_gradients(name: str, system: str) -> None:
    """REBAR and RELAX have second derivatives in it."""
    programs, x = system_and_data(system)
    objective = parse_objective(name, 4)
    objective.bound(programs.model, programs.guide, x)
    parameters = list(programs.parameters())
    if objective.controls is not None:
        parameters += list(objective.controls.parameters())

    def step(x: Tensor) -> tuple[Tensor, ...]:
        value, surrogate = objective.bound(programs.model, programs.guide, x)
        found = torch.autograd.grad(surrogate, parameters, allow_unused=True)
        return value, *(gradient for gradient in found if gradient is not None)

    with pyro.validation_enabled(False):
        graph = trace_to_graph(step, [x], programs.model, programs.guide)
        results = []
        for function in (graph, step):
            pyro.set_rng_seed(5)
            results.append(function(x))
    for traced, eager in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        name if name == "gumbel-softmax" else pytest.param(name, marks=pytest.mark.slow)
        for name in ALL
    ],
)
def test_svi_raises_the_bound(name: str) -> None:
    programs, x = system_and_data("discrete-vae")
    objective = parse_objective(name, 4)
    svi = SVI(programs.model, programs.guide, pyro.optim.Adam({"lr": 0.02}), objective)
    losses = [svi.step(x) for _ in range(150)]
    assert sum(losses[-20:]) < 0.95 * sum(losses[:20])
    assert svi.evaluate_loss(x) == pytest.approx(losses[-1], rel=0.3)
