"""REBAR and RELAX against gradients summed over all states, and what their controls learn."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyroae import zoo
from pyroae.errors import ConfigError, ProgramError
from pyroae.objectives import ELBO, IWAE, Objective, control_variates, parse_objective
from pyroae.objectives.rebar import Rebar, Relax
from tests.objectives.relaxed_toys import TwoSites, X, deviation, estimates, gradients

pytestmark = pytest.mark.usefixtures("float64")
SETTINGS: dict[str, Any] = {
    "rebar-0": Rebar(scale=0.0),
    "rebar-1": Rebar(),
    "rebar-independent": Rebar(temperature=0.3, coupled_noise=False),
    "relax": Relax(),
    "relax-independent": Relax(coupled_noise=False),
    "relax-network": Relax(relaxed=False),
}
each = pytest.mark.parametrize("setting", list(SETTINGS))
slow = pytest.mark.slow
LEARNING = ("rebar-1", "rebar-independent", "relax", "relax-network")
"""Settings with controls that learn."""


def some(*chosen: str) -> list[Any]:
    """The settings that learn, of which those that are not chosen are slow."""
    return [name if name in chosen else pytest.param(name, marks=slow) for name in LEARNING]


def prepared(setting: str, particles: int, toy: TwoSites, steps: int = 0) -> Objective:
    """The objective with a network that is not 0, after some steps of its controls."""
    objective = Objective(ELBO(particles), SETTINGS[setting])
    objective.prepare(toy.model, toy.guide, (X,), {})
    assert objective.controls is not None
    network = objective.controls.network
    if isinstance(network, nn.Module):
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    optimizer = torch.optim.Adam(objective.controls.parameters(), lr=0.05)
    small = Objective(ELBO(20), SETTINGS[setting])
    small._controls = objective.controls
    for _ in range(steps):
        optimizer.zero_grad()
        (-small.bound(toy.model, toy.guide, X).surrogate).backward()
        optimizer.step()
    toy.zero_grad()
    return objective


def far_from_exact(objective: Objective, toy: TwoSites, repeats: int = 30) -> tuple[float, float]:
    """Distances of the mean value and gradient from the exact ones, in standard errors."""
    exact = toy.exact(X)
    parameters = list(toy.parameters())
    values, found = estimates(objective, toy, repeats, parameters)
    return deviation(values, exact.detach()), deviation(found, gradients(exact, parameters))


CASES = [
    (setting, flat, steps) for setting in SETTINGS for flat in (False, True) for steps in (0, 30)
]


@pytest.mark.parametrize(
    ("setting", "flat", "steps"),
    [
        case if i % 4 == i // 4 % 4 else pytest.param(*case, marks=slow)
        for i, case in enumerate(CASES)
    ],
)
def test_the_mean_gradient_is_the_exact_one(setting: str, flat: bool, steps: int) -> None:
    """For θ and φ, within two plates, with scales and a mask, before and after training."""
    toy = TwoSites(flat)
    objective = prepared(setting, 500, toy, steps)
    assert max(far_from_exact(objective, toy)) < 5


@pytest.mark.parametrize("name", some("relax")[1:3])
def test_the_mean_gradient_is_exact_particle_by_particle(name: str) -> None:
    """For a program that takes no particle dimension."""
    toy = TwoSites()

    def decode(bits: Tensor, state: Tensor) -> Tensor:
        assert bits.dim() == 2
        return TwoSites.decode(toy, bits, state)

    exact = gradients(toy.exact(X), toy.of_guide)
    toy.decode = decode  # type: ignore[method-assign]
    objective = prepared(name, 8, toy)
    with pytest.warns(UserWarning, match="sequentially"):
        _, found = estimates(objective, toy, 30, toy.of_guide)
    assert deviation(found, exact) < 5


@pytest.mark.parametrize("setting", some("rebar-independent"))
def test_broken_copies_are_caught(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """∂z̃ taken as ∂z, the wrong sign of c(z̃), no c(z̃)."""
    toy = TwoSites()
    objective = prepared(setting, 500, toy)
    assert max(far_from_exact(objective, toy)) < 5

    def without_states(self: Any, run: Any) -> Any:
        z, _ = draws(self, run)
        return z, z

    def minus(self: Any, run: Any, name: str, signal: Tensor) -> Tensor:
        return term(self, run, name, 2 * run.learning - signal)

    def no_control(self: Any, run: Any, name: str, signal: Tensor) -> Tensor:
        return term(self, run, name, run.learning)

    cls = control_variates.ControlVariateGradient
    term, draws = cls._score_term, cls._relaxed_draws
    for attribute, broken in (
        ("_relaxed_draws", without_states),
        ("_score_term", minus),
        ("_score_term", no_control),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(cls, attribute, broken)
            assert far_from_exact(objective, toy)[1] > 6, broken.__name__


def test_a_control_that_reaches_the_model_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """−Σ g² without its detachment from θ."""
    toy = TwoSites()
    objective = prepared("rebar-1", 500, toy)

    def attached(run: Any, weights: Any, found: Any, _: Any) -> Tensor:
        factors = {n: control_variates._factor(run, weights, n) for n in found}
        return sum(((factors[n] * g.square()).sum() for n, g in found.items()), torch.zeros(()))

    monkeypatch.setattr(control_variates, "_of_controls", attached)
    assert far_from_exact(objective, toy)[1] > 6


@each
@pytest.mark.parametrize("flat", [False, True])
def test_the_controls_descend_the_second_moment(setting: str, flat: bool) -> None:
    """The gradient that the surrogate gives them is that of Σ g², by finite differences.

    Each datum and particle counts as one estimate: the moment is Σ_n scale_n mean_k |g_nk|².
    """
    toy = TwoSites(flat)
    objective = prepared(setting, 7, toy)
    controls = objective.controls
    assert controls is not None
    found: dict[str, Tensor] = {}
    kept = control_variates._at_logits

    def moment() -> Tensor:
        squares: list[Tensor] = []

        def keep(run: Any, weights: Any, gradients: dict[str, Tensor]) -> Tensor:
            for name, gradient in gradients.items():
                squares.append(
                    (control_variates._factor(run, weights, name) * gradient.square()).sum()
                )
            return kept(run, weights, gradients)

        control_variates._at_logits = keep  # type: ignore[assignment]
        try:
            pyro.set_rng_seed(4)
            _, surrogate = objective.bound(toy.model, toy.guide, X)
        finally:
            control_variates._at_logits = kept
        names, parameters = zip(*controls.named_parameters(), strict=True)
        gradient = torch.autograd.grad(surrogate, parameters, allow_unused=True)
        found.update({n: g for n, g in zip(names, gradient, strict=True) if g is not None})
        return torch.stack(squares).sum().detach()

    moment()
    ascent = dict(found)
    assert ascent
    for name, parameter in controls.named_parameters():
        if name not in ascent:
            continue
        direction = torch.randn_like(parameter)
        step, differences = 1e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
            differences.append(moment())
            with torch.no_grad():
                parameter.sub_(sign * step * direction)
        slope = (differences[0] - differences[1]) / (2 * step)
        assert slope.abs() > 1e-6 or (setting == "rebar-0" and name == "log_temperature")
        torch.testing.assert_close(-(ascent[name] * direction).sum(), slope, rtol=1e-5, atol=1e-7)


def spread(objective: Any, toy: TwoSites, repeats: int = 40) -> float:
    """The variance of φ's gradient times decoder evaluations."""
    pyro.set_rng_seed(0)
    _, found = estimates(objective, toy, repeats, toy.of_guide)
    return float(found.var(0).sum()) * objective.evaluations


@pytest.mark.parametrize("setting", some("relax-network"))
def test_the_variance_falls_in_training(setting: str) -> None:
    toy = TwoSites()
    before = spread(prepared(setting, 200, toy), toy)
    after = spread(prepared(setting, 200, toy, steps=80), toy)
    assert after < 0.6 * before


@pytest.mark.slow
def test_the_variance_is_below_leave_one_out() -> None:
    """At equal decoder evaluations, after training: RELAX without f below K = 8."""
    toy = TwoSites()
    trained = spread(prepared("relax-network", 200, toy, steps=400), toy, 200)
    assert trained < spread(parse_objective("score", 8), toy, 1000)


def test_evaluations() -> None:
    counts = {name: Objective(ELBO(4), gradient).evaluations for name, gradient in SETTINGS.items()}
    assert counts == {
        "rebar-0": 8,
        "rebar-1": 8,
        "rebar-independent": 12,
        "relax": 8,
        "relax-independent": 12,
        "relax-network": 4,
    }


@each
def test_the_decoder_runs_as_often_as_is_said(setting: str, monkeypatch: Any) -> None:
    toy = TwoSites()
    objective = prepared(setting, 50, toy)
    objective.bound(toy.model, toy.guide, X)
    seen, decode = [], toy.decode

    def counted(*states: Any) -> Any:
        seen.append(len(states[0]))
        return decode(*states)

    monkeypatch.setattr(toy, "decode", counted)
    objective.bound(toy.model, toy.guide, X)
    assert sum(seen) == objective.evaluations


@each
def test_relaxed_draws_have_the_states_of_the_draws(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """z̃ drawn without regard to b leaves the mean as it is, and only costs variance."""
    toy, seen = TwoSites(), []
    draws = control_variates.ControlVariateGradient._relaxed_draws

    def keep(self: Any, run: Any) -> Any:
        seen.append((run, *draws(self, run)))
        return seen[-1][1:]

    monkeypatch.setattr(control_variates.ControlVariateGradient, "_relaxed_draws", keep)
    prepared(setting, 50, toy).bound(toy.model, toy.guide, X)
    run, z, conditional = seen[0]
    for name, states in run.states.items():
        assert torch.equal(run.variables(name).hard(z[name]), states)
        assert torch.equal(run.variables(name).hard(conditional[name]), states)
        assert torch.equal(z[name], conditional[name]) == SETTINGS[setting].coupled_noise


def test_no_gradients_are_computed_without_grad() -> None:
    toy = TwoSites()
    objective = prepared("relax", 5, toy)
    with torch.no_grad():
        value, surrogate = objective.bound(toy.model, toy.guide, X)
    assert not surrogate.requires_grad
    assert torch.isfinite(value)


def test_controls_have_the_precision_and_are_reproducible() -> None:
    toy = TwoSites()
    one, other = (Objective(ELBO(4), Relax()) for _ in range(2))
    pyro.set_rng_seed(1)
    one.prepare(toy.model, toy.guide, (X,), {})
    pyro.set_rng_seed(2)
    other.prepare(toy.model, toy.guide, (2 * X,), {})
    assert one.controls is not None
    assert other.controls is not None
    assert {p.dtype for p in one.controls.parameters()} == {torch.float64}
    for ours, theirs in zip(one.controls.parameters(), other.controls.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# Refusals.


def chain(second: Any) -> tuple[Any, Any]:
    """A guide whose second bit has logits of the first."""
    logits = torch.zeros(4, requires_grad=True)

    def model() -> None:
        with pyro.plate("data", 4):
            a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))
            b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=torch.ones(4))

    def guide() -> None:
        with pyro.plate("data", 4):
            a = pyro.sample("a", dist.Bernoulli(logits=logits))
            pyro.sample("b", dist.Bernoulli(logits=logits + second(a)))

    return model, guide


@pytest.mark.parametrize("name", ["rebar", "relax", "elbo+relax:relaxed=false"])
@pytest.mark.parametrize("particles", [1, 3])
def test_dependent_sites(name: str, particles: int) -> None:
    table, weight = torch.tensor([0.0, 1.0]), torch.zeros((), requires_grad=True)
    for second in (lambda a: a, lambda a: table[a.long()], lambda a: weight * a):
        with pytest.raises(ProgramError, match=r"independent sites; .* site 'b' depend"):
            parse_objective(name, particles).bound(*chain(second))
    parse_objective(name, particles).bound(*chain(torch.zeros_like))


def test_sites_that_are_no_draws() -> None:
    def model() -> None:
        with pyro.plate("data", 4):
            a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))
            m = pyro.sample("m", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(a + m, 1.0), obs=torch.ones(4))

    def guide() -> None:
        with pyro.plate("data", 4):
            pyro.sample("a", dist.Bernoulli(logits=torch.zeros(4, requires_grad=True)))
            pyro.sample("m", dist.Delta(torch.zeros(4, requires_grad=True)))

    for name in ("rebar", "relax"):
        with pytest.raises(ProgramError, match="consist of draws; the site 'm' of the guide"):
            parse_objective(name, 2).bound(model, guide)
    _, surrogate = parse_objective("gumbel-softmax", 2).bound(model, guide)
    surrogate.backward()


def test_settings() -> None:
    with pytest.raises(ConfigError, match="for the ELBO, not for IWAE: use Score"):
        Objective(IWAE(4), Rebar())
    with pytest.raises(ConfigError, match="hidden must be a whole number of at least 1"):
        Relax(hidden=0)


@pytest.mark.parametrize("name", ["relax", "nvil"])
def test_what_is_learned_takes_another_precision_and_refuses_another_size(name: str) -> None:
    objective, x = parse_objective(name), torch.eye(4)
    for dtype in (torch.float32, torch.float64):
        system = zoo.discrete_vae(4, latent=2).to(dtype)
        loss = objective.differentiable_loss(system.model, system.guide, x.to(dtype))
        assert loss.dtype == dtype
        loss.backward()
    size = 5 if name == "nvil" else 4
    other = zoo.discrete_vae(size, latent=3).double()
    with pytest.raises(ProgramError, match="was made for"):
        objective.loss(other.model, other.guide, torch.eye(size, dtype=torch.float64))
