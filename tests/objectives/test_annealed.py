"""Differentiable annealed importance sampling: unbiased weights, bounds, gradients, learning.

The toy is z ~ N(0, I), x|z ~ N(z, I) at x = 1 with q = N(m, 2/3 I), in D dimensions: its posterior
is N(1/2, 1/2 I), and the ELBO at m = 0.8, D = 1 lies 0.1128 below log p. Means over draws may
deviate by 5 standard errors.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor, nn
from torch.distributions.transforms import ExpTransform

import pyroae
from pyroae import TrainConfig
from pyroae.errors import ConfigError, ProgramError
from pyroae.objectives import DAIS, IWAE, Objective, TraceELBO, parse_objective
from pyroae.objectives.annealed import Leapfrog
from pyroae.programs.annealing_path import Path
from pyroae.weights import log_weights
from tests.objectives.test_oracles import Given
from tests.systems import system_and_data

float64 = pytest.mark.usefixtures("float64")
LOG_P = -0.25 - 0.5 * math.log(4 * math.pi)
"""log N(1; 0, 2)."""


def toy(size: int, features: int = 1, m: float = 0.8, variance: float = 2 / 3) -> tuple[Any, Any]:
    """Model and guide of `size` copies of the datum."""
    shape = (size, features)

    def model() -> None:
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Normal(torch.zeros(shape), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=torch.ones(shape))

    def guide() -> None:
        with pyro.plate("data", size):
            scale = torch.full(shape, variance).sqrt()
            pyro.sample("z", dist.Normal(torch.full(shape, m), scale).to_event(1))

    return model, guide


class Recorded(DAIS):
    """Keeps the log-weights of the last run."""

    last: Tensor

    def log_weights(self, path: Path) -> Tensor:
        self.last = super().log_weights(path)
        return self.last


class WithoutKinetic(Recorded):
    """The log-weight without the densities of the momenta."""

    def log_weights(self, path: Path) -> Tensor:
        u, momentum = path.latents.draws, torch.randn_like(path.latents.draws)
        log_weight = -path.log_guide(u)
        step_sizes, betas = self.schedule(u)
        for t in range(self.steps):
            middle = u + 0.5 * step_sizes[t] * momentum
            momentum = momentum + step_sizes[t] * path.differentiable_gradient(middle, betas[t])
            u = middle + 0.5 * step_sizes[t] * momentum
        self.last = log_weight + path.latents.log_joint(u).total
        return self.last


class NotReversible(Recorded):
    """A refreshment γ v + (1 − γ) ξ, which does not preserve N(0, I)."""

    def log_weights(self, path: Path) -> Tensor:
        u, momentum = path.latents.draws, torch.randn_like(path.latents.draws)
        log_weight = -path.log_guide(u)
        step_sizes, betas = self.schedule(u)
        for t in range(self.steps):
            middle = u + 0.5 * step_sizes[t] * momentum
            moved = momentum + step_sizes[t] * path.differentiable_gradient(middle, betas[t])
            u = middle + 0.5 * step_sizes[t] * moved
            log_weight = log_weight + 0.5 * (momentum.square() - moved.square()).sum(-1)
            momentum = self.damping * moved + (1 - self.damping) * torch.randn_like(u)
        self.last = log_weight + path.latents.log_joint(u).total
        return self.last


def weights_of(
    objective: Recorded, size: int, features: int = 1, m: float = 0.8, variance: float = 2 / 3
) -> Tensor:
    """log (w / p), `[K, size]`."""
    torch.manual_seed(0)
    with torch.no_grad():
        objective.bound(*toy(size, features, m, variance))
    return objective.last - features * LOG_P


def joint_log_weight(features: int, size: int = 20_000) -> Tensor:
    """log (w / p) of the guide's draws themselves, with the seed's own draws, `[size]`."""
    model, guide = toy(size, features)
    return log_weights(model, guide).log_weight[0] - features * LOG_P


def deviation(values: Tensor, expected: float) -> float:
    """The distance of a mean of independent values from the expected one, in standard errors."""
    return abs(values.mean().item() - expected) / (values.std().item() / math.sqrt(len(values)))


@float64
@pytest.mark.parametrize("damping", [0.0, 0.9])
@pytest.mark.parametrize(("steps", "step_size"), [(1, 0.6), (4, 0.5), (12, 0.9)])
def test_weights_are_unbiased(steps: int, step_size: float, damping: float) -> None:
    objective = Recorded(1, steps, step_size, damping, learn=False)
    log_weight = weights_of(objective, 40_000, 2)[0]
    assert log_weight.std() > 0.1
    assert deviation(log_weight.exp(), 1.0) < 5


@float64
@pytest.mark.parametrize("broken", [WithoutKinetic, NotReversible])
def test_broken_copies_have_biased_weights(broken: type[Recorded]) -> None:
    objective = broken(1, 4, 0.5, 0.5, learn=False)
    assert deviation(weights_of(objective, 40_000, 2)[0].exp(), 1.0) > 8


@float64
def test_the_mean_is_below_log_p_and_rises_with_the_number_of_transitions() -> None:
    """ε = 0.5, D = 10: paired by the guide's draws, which the seed gives to all of them."""
    gaps = {}
    for steps in (1, 4, 8, 16):
        objective = Recorded(1, steps, 0.5, learn=False, bound="elbo")
        gaps[steps] = weights_of(objective, 20_000, 10)[0]
        bound = objective.bound_function.value(objective.last) - 10 * LOG_P
        assert torch.equal(bound, gaps[steps])
    torch.manual_seed(0)
    gaps[0] = joint_log_weight(10)
    assert deviation(gaps[0], -1.128) < 5
    for steps, other in ((0, 1), (1, 4), (4, 8), (8, 16)):
        rise = gaps[other] - gaps[steps]
        assert rise.mean() > 5 * rise.std() / math.sqrt(len(rise))
        assert gaps[other].mean() < -5 * gaps[other].std() / math.sqrt(len(rise))


@float64
@pytest.mark.parametrize("name", ["iwae", "elbo", "renyi:alpha=0.3"])
def test_without_transitions_it_is_the_bound_of_the_guides_draws(name: str) -> None:
    system, x = system_and_data("vae")
    objective = DAIS(3, steps=0, bound=name)
    pair = parse_objective(f"{name}+pathwise", 3)
    figures = []
    for estimator in (objective, pair):
        system.zero_grad()
        pyro.set_rng_seed(1)
        loss = estimator.loss_and_grads(system.model, system.guide, x)
        gradient = torch.cat([p.grad.flatten() for p in system.parameters() if p.grad is not None])
        figures.append((loss, gradient))
    assert figures[0][0] == pytest.approx(figures[1][0], rel=1e-12)
    torch.testing.assert_close(figures[0][1], figures[1][1], rtol=1e-9, atol=1e-9)
    assert objective.is_evidence
    assert not objective.learns
    assert objective.evaluations == 3


@float64
def test_at_the_exact_posterior_the_weight_is_constant_only_in_the_limit_of_small_steps() -> None:
    """The energy error of a leapfrog step is of the third order."""
    spreads = [
        weights_of(Recorded(1, 8, step, 0.9, learn=False), 4000, 1, 0.5, 0.5).std().item()
        for step in (0.4, 0.2, 0.1)
    ]
    assert spreads[0] > 0.01
    assert spreads[0] > 3 * spreads[1] > 9 * spreads[2]
    assert not Recorded(1, 8).is_evidence


def positive(x: Tensor, q: nn.ParameterDict) -> tuple[Any, Any]:
    """Two sites, of which one is positive and in a nested plate; the guide draws them in turn."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            a = pyro.sample("a", dist.Normal(q["p"], 1.0))
            with pyro.plate("features", 2, dim=-1):
                rate = pyro.sample("rate", dist.Gamma(2.0, a.exp()))
                pyro.sample("x", dist.Normal(rate, 0.7), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            a = pyro.sample("a", dist.Normal(q["m"] * x.mean(1, keepdim=True), q["s"].exp()))
            with pyro.plate("features", 2, dim=-1):
                base = dist.Normal(0.3 * a + q["b"], 0.5)
                pyro.sample("rate", dist.TransformedDistribution(base, [ExpTransform()]))

    return model, guide


class FirstOrder(DAIS):
    """The densities' gradients in the leapfrog taken as constants."""

    def log_weights(self, path: Path) -> Tensor:
        path.differentiable_gradient = path.gradient  # type: ignore[method-assign]
        return super().log_weights(path)


def error_of_gradient(objective: DAIS) -> float:
    """The largest relative error against central differences with common noise.

    It is of θ, φ, the step sizes and β, on a hierarchy with a positive site.
    """
    start = {"p": 0.1, "m": 0.4, "s": -0.5, "b": 0.2}
    q = nn.ParameterDict({n: nn.Parameter(torch.tensor(v)) for n, v in start.items()})
    x = torch.tensor([[0.8, 1.5], [0.3, 2.0]])
    model, guide = positive(x, q)
    objective.prepare(model, guide, (x,), {})
    controls = objective.controls
    assert isinstance(controls, Leapfrog)
    with torch.no_grad():
        controls.increments.copy_(torch.tensor([0.3, -0.2, 0.1, 0.4]))
    parameters = [*q.values(), *controls.parameters()]

    def value() -> Tensor:
        torch.manual_seed(2)
        return objective.bound(model, guide, x).surrogate

    gradients = torch.autograd.grad(value(), parameters, allow_unused=True)
    worst = 0.0
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for i in range(parameter.numel()):
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[i] += sign * 1e-5
                ends.append(value().item())
                with torch.no_grad():
                    parameter.view(-1)[i] -= sign * 1e-5
            expected = (ends[0] - ends[1]) / 2e-5
            actual = 0.0 if gradient is None else gradient.view(-1)[i].item()
            worst = max(worst, abs(actual - expected) / (abs(expected) + 1e-3))
    return worst


@float64
@pytest.mark.parametrize("num_particles", [1, 3])
def test_the_gradient_is_the_derivative_with_common_noise(num_particles: int) -> None:
    objective = DAIS(num_particles, steps=3, step_size=0.2, damping=0.7)
    assert error_of_gradient(objective) < 1e-5
    broken = FirstOrder(num_particles, steps=3, step_size=0.2, damping=0.7)
    assert error_of_gradient(broken) > 0.01


@float64
def test_scales_and_masks_are_those_of_the_programs() -> None:
    system, x = system_and_data("vae")
    objective = DAIS(2, steps=2, learn=False)
    keep = torch.tensor([True, False, True, True, False, True])

    def loss(wrapped: Any, data: Tensor) -> float:
        torch.manual_seed(3)
        return objective.loss(wrapped(system.model), wrapped(system.guide), data)

    plain = loss(lambda program: program, x)
    quarter = loss(lambda program: poutine.scale(program, scale=0.25), x)
    assert quarter == pytest.approx(plain / 4, rel=1e-12)
    masked = loss(lambda program: poutine.mask(program, mask=keep), x)
    changed = torch.where(keep[:, None], x, 1 - x)
    assert abs(masked - plain) > 1
    assert loss(lambda program: poutine.mask(program, mask=keep), changed) == pytest.approx(
        masked, rel=1e-12
    )


def test_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise in both precisions, over 16 transitions."""
    system, x = system_and_data("vae")
    torch.manual_seed(4)
    noise = [torch.randn(4, len(x), 3, dtype=torch.float64) for _ in range(17)]
    losses = []
    for kind in (torch.float32, torch.float64):
        system.to(kind)
        draws = iter([value.to(kind) for value in noise])
        monkeypatch.setattr(
            "pyroae.objectives.annealed.torch.randn_like", lambda _, draws=draws: next(draws)
        )
        objective = DAIS(4, steps=16, step_size=0.3, learn=False)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                mean, log_variance = system.encoder(x).chunk(2, -1)
                scale = (0.5 * log_variance).exp()
                pyro.sample("z", Given(mean, scale, noise[0].to(x.dtype)).to_event(1))

        losses.append(objective.loss(system.model, guide, x.to(kind)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# Training.


def test_the_learned_step_sizes_tighten_the_bound() -> None:
    """Only the controls are trained: the bound of a fixed program rises from that of its guide."""
    model, guide = toy(100, 10)
    objective = DAIS(1, steps=6, step_size=0.02, bound="elbo")
    torch.manual_seed(7)
    objective.prepare(model, guide, (), {})
    controls = objective.controls
    assert isinstance(controls, Leapfrog)
    optimizer = torch.optim.Adam(controls.parameters(), lr=0.1)
    values = []
    for _ in range(100):
        value, surrogate = objective.bound(model, guide)
        optimizer.zero_grad()
        (-surrogate).backward()
        optimizer.step()
        values.append(value.item() / 100 - 10 * LOG_P)
    before, after = (sum(part) / 10 for part in (values[:10], values[-10:]))
    assert controls.log_step.exp().min() > 0.2
    assert before < -1
    assert after > -0.6


def test_svi_learns_the_step_sizes() -> None:
    model, guide = toy(100, 10)
    objective = DAIS(1, steps=3, step_size=0.02, bound="elbo")
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), objective)
    torch.manual_seed(7)
    losses = [svi.step() for _ in range(50)]
    controls = objective.controls
    assert isinstance(controls, Leapfrog)
    assert controls.log_step.exp().min() > 0.2
    assert sum(losses[-10:]) / 1000 < sum(losses[:10]) / 1000 - 0.2


@pytest.mark.slow
def test_svi_trains_a_system() -> None:
    torch.manual_seed(8)
    system, x = system_and_data("vae", 64)
    objective = DAIS(2, steps=2, learn=False)
    svi = SVI(system.model, system.guide, pyro.optim.Adam({"lr": 3e-2}), objective)
    losses = [svi.step(x) for _ in range(100)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 10 * len(x) * 0.5


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "text",
    [pytest.param("dais:steps=2,learn=false", marks=pytest.mark.slow), "dais:steps=2", "mlmc"],
)
def test_fit_trains_a_system(text: str, compiled: bool) -> None:
    torch.manual_seed(8)
    system, x = system_and_data("vae", 64)

    def gap() -> float:
        torch.manual_seed(6)
        with torch.no_grad():
            return TraceELBO(50).loss(system.model, system.guide, x) / len(x)

    before = gap()
    config = TrainConfig(epochs=25, batch_size=32, lr=3e-2, compile=compiled)
    pyroae.fit(system, x, parse_objective(text, 2), config, progress=False)
    assert gap() < before - 0.5


# Refusals.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dais:steps=-1", "steps of dais must be a whole number of at least 0, not -1"),
        ("dais:step_size=0", "step_size of dais must be positive and finite, not 0"),
        ("dais:damping=1", r"damping of dais must lie in \[0, 1\), not 1"),
        ("dais:bound=siwae", "dais draws from the guide, not from each component, as 'siwae'"),
        ("dais:bound=mlmc", "dais takes a bound of a fixed number of particles, not 'mlmc'"),
        ("dais:bound=abc", "abc"),
    ],
)
def test_settings_outside_their_range(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_objective(text)


def test_programs_that_are_refused() -> None:
    objective, x = DAIS(2, steps=1), torch.zeros(3)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def delta(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(x))

    def auxiliary(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(u, 1.0))

    def outside(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    with pytest.raises(ProgramError, match="its site 'z' is no draw"):
        objective.bound(model, delta, x)
    with pytest.raises(ProgramError, match="its site 'u' is no latent site of the model"):
        objective.bound(model, auxiliary, x)
    with pytest.raises(ProgramError, match="the latent site 'w' lies outside the data plate"):
        objective.bound(outside, lambda x: pyro.sample("w", dist.Normal(0.0, 1.0)), x)
    system, bits = system_and_data("discrete-vae")
    with pytest.raises(ProgramError, match=r"dais needs a path .* site 'z' \(Bernoulli\)"):
        objective.bound(system.model, system.guide, bits)


def test_pairs_of_a_fixed_number_keep_their_particles() -> None:
    assert Objective(IWAE(4)).variant == ()
