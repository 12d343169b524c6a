"""Randomized multilevel Monte Carlo: closed forms of its levels, and its means on programs.

With Gamma(1, 1) weights log p is 0. L_a − L_b of two halves of K/2 draws depends on the Beta(K/2,
K/2) share of one of them alone, so that the moments of a level are polygamma functions. Means over
draws may deviate by 5 standard errors unless a test says otherwise; levels are stratified, so that
no figure depends on how often a rare one was drawn.
"""

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import polygamma, psi
from torch import Tensor

from pyroae.errors import ConfigError
from pyroae.objectives import (
    IWAE,
    MLMC,
    OBJECTIVES,
    BaseBound,
    BoundFunction,
    DoublyReparameterized,
    Gradient,
    Objective,
    Pathwise,
    Score,
    parse_objective,
)
from pyroae.objectives import multilevel as module

pytestmark = pytest.mark.usefixtures("float64")
LEVELS = 7
LOG_P = -0.25 - 0.5 * math.log(4 * math.pi)
"""log N(1; 0, 2)."""


def deviation(values: Tensor, expected: float | Tensor) -> float:
    """The distance of a mean of independent values from the expected one, in standard errors."""
    error = values.std(0) / math.sqrt(len(values))
    return ((values.mean(0) - expected).abs() / error).max().item()


# Closed forms for Gamma(1, 1) weights.


def base_moments(bound: MLMC) -> tuple[float, float]:
    """Mean and variance of L of K₀ draws."""
    return psi(bound.num_particles) - math.log(bound.num_particles), polygamma(
        1, bound.num_particles
    )


def level_moments(bound: MLMC, level: int) -> tuple[float, float]:
    """Mean and variance of Δ_l."""
    half = bound.num_particles * 2 ** (level - 1)
    mean = psi(2 * half) - psi(half) - math.log(2)
    return mean, polygamma(1, half) / 2 - polygamma(1, 2 * half)


def variance_of(bound: MLMC, levels: int = 40) -> float:
    """E F² = Σ P(l) E (B̄_l + Δ_l / P(l))²; Cov(B̄_l, Δ_l) = −Var Δ_l. E F is 0 for all levels."""
    mean, variance = base_moments(bound)
    total = 0.0
    for level in range(levels):
        p = bound.probability(level)
        total += p * (variance / 2**level + mean**2)
        if level:
            change, spread = level_moments(bound, level)
            total += 2 * (mean * change - spread) + (spread + change**2) / p
    return total


def gamma_weights(count: int, draws: int) -> Tensor:
    """Log-weights of Gamma(1, 1), `[count, draws]`."""
    return torch.distributions.Exponential(1.0).sample((count, draws)).log()


def change_of(bound: MLMC, level: int, draws: int = 40_000) -> Tensor:
    """Draws of Δ_l by the bound's own value, `[draws]`."""
    log_weight = gamma_weights(bound.num_particles << level, draws)
    value, base = bound.value(log_weight), bound.base(log_weight).value(log_weight)
    return (value - base) * (1 - 2**-bound.decay) * 2 ** (-bound.decay * level)


def faults_of(bound: MLMC) -> list[str]:
    """What is wrong with a multilevel estimate, by its levels under Gamma(1, 1) weights."""
    torch.manual_seed(0)
    faults, mean_squares = [], []
    for level in range(1, LEVELS):
        change = change_of(bound, level)
        mean, variance = level_moments(bound, level)
        if deviation(change, mean) > 5:
            faults.append(f"the mean of level {level}")
        mean_squares.append(change.square().mean().item())
        if deviation(change.square(), variance + mean**2) > 5:
            faults.append(f"the mean square of level {level}")
    falls = [one / other for one, other in itertools.pairwise(mean_squares)]
    if not all(3.4 < fall < 6 for fall in falls[1:]):
        faults.append("the fall of the mean squares")
    return faults


@pytest.mark.parametrize("num_particles", [1, 2])
def test_levels_have_their_closed_form_moments(num_particles: int) -> None:
    assert faults_of(MLMC(num_particles)) == []


def test_the_closed_forms_sum_to_log_p() -> None:
    bound = MLMC(1)
    assert base_moments(bound)[0] == pytest.approx(-0.5772156649)
    total = sum(level_moments(bound, level)[0] for level in range(1, 45))
    assert base_moments(bound)[0] + total == pytest.approx(0, abs=1e-12)
    squares = [sum(v * v if i == 0 else v for i, v in enumerate(level_moments(bound, level)))
               for level in range(8, 12)]  # fmt: skip
    assert [a / b for a, b in itertools.pairwise(squares)] == pytest.approx([4] * 3, rel=0.01)


@dataclass(frozen=True)
class NotNormalized(MLMC):
    """The probabilities of the levels without their normalization."""

    def probability(self, level: int) -> float:
        return 2 ** (-self.decay * level)


@dataclass(frozen=True)
class NotHalved(MLMC):
    """L(all) − (L(first half) + L(second half))."""

    def value(self, log_weight: Tensor) -> Tensor:
        base, halves = self.base(log_weight).value(log_weight), log_weight.unflatten(0, (2, -1))
        of_halves = halves.logsumexp(1) - math.log(halves.shape[1])
        change = IWAE().value(log_weight) - of_halves.sum(0)
        return base + change / self.probability(self.level(log_weight))


@dataclass(frozen=True)
class NotAntithetic(MLMC):
    """L(all) − L(first half): of the right mean."""

    def value(self, log_weight: Tensor) -> Tensor:
        base, half = self.base(log_weight).value(log_weight), log_weight[: len(log_weight) // 2]
        change = IWAE().value(log_weight) - IWAE().value(half)
        return base + change / self.probability(self.level(log_weight))


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (NotNormalized, "the mean of level 1"),
        (NotHalved, "the mean of level 1"),
        (NotAntithetic, "the fall of the mean squares"),
    ],
)
def test_broken_copies_are_caught(broken: Any, fault: str) -> None:
    faults = faults_of(broken(1))
    assert fault in faults
    if broken is NotAntithetic:
        assert not any(fault.startswith("the mean of") for fault in faults)


def test_cost_variance_and_mean_are_the_stated_ones() -> None:
    """At r = 1.2 the fourth moment is finite too, as for r < 4/3: a variance can be measured."""
    torch.manual_seed(1)
    bound, draws = MLMC(2, decay=1.2), 100_000
    levels = Counter(bound.draw_particles() // 2 for _ in range(draws))
    counts = torch.tensor([float(2 * c) for c, n in levels.items() for _ in range(n)])
    for size, count in levels.items():
        share, p = count / draws, bound.probability(size.bit_length() - 1)
        assert abs(share - p) < 5 * math.sqrt(p / draws) + 1e-9
    small = MLMC(2, decay=1.2, max_level=6)  # the variance of the cost itself is infinite
    counts = torch.tensor([float(small.draw_particles()) for _ in range(50_000)])
    assert deviation(counts, small.evaluations) < 5
    assert bound.evaluations == pytest.approx(
        sum(bound.probability(level) * 2 * 2**level for level in range(400))
    )
    parts = [
        small.value(gamma_weights(2 << level, round(small.probability(level) * 400_000)))
        for level in range(7)
    ]
    values = torch.cat(parts)
    mean = psi(128) - math.log(128)
    assert values.mean().item() == pytest.approx(mean, abs=5 * values.std().item() / 632)
    fourth = (values - values.mean()).pow(4).mean().sqrt().item() / math.sqrt(len(values))
    of_levels = variance_of(small, 7) - mean**2
    assert values.var().item() == pytest.approx(of_levels, abs=5 * fourth)
    assert variance_of(MLMC(1), 40) == pytest.approx(variance_of(MLMC(1), 30), rel=1e-4)


def test_base_terms_of_all_draws_have_less_variance_at_the_same_cost() -> None:
    """L of the first K₀ draws has the same covariance with Δ_l, and Var B̄ = Var L / 2^l."""
    torch.manual_seed(6)
    bound, level = MLMC(1), 2
    _, spread = level_moments(bound, level)
    _, of_base = base_moments(bound)
    log_weight = gamma_weights(4, 400_000)
    base, first = bound.base(log_weight).value(log_weight), log_weight[0]
    change = (bound.value(log_weight) - base) * bound.probability(level)
    change = change - change.mean()
    assert deviation(base * change, -spread) < 5
    assert deviation(first * change, -spread) < 5
    assert deviation((base - base.mean()).square(), of_base / 4) < 5
    assert variance_of(bound) == pytest.approx(3.8930, abs=1e-3)
    shared = sum(bound.probability(level) / 2**level for level in range(40))
    assert shared == pytest.approx((1 - 2**-1.5) / (1 - 2**-2.5))


@pytest.mark.parametrize("num_particles", [1, 2, 3])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_derivatives_are_those_of_the_value(num_particles: int, level: int) -> None:
    bound, log_weight = MLMC(num_particles, 1.4), 2 * torch.randn(num_particles << level, 5)
    torch.testing.assert_close(bound.slope(log_weight), BoundFunction.slope(bound, log_weight))
    torch.testing.assert_close(
        bound.curvature(log_weight), BoundFunction.curvature(bound, log_weight)
    )
    fill = torch.randn_like(log_weight)
    for k, row in enumerate(bound.without(log_weight, fill)):
        replaced = log_weight.clone()
        replaced[k] = fill[k]
        torch.testing.assert_close(row, bound.value(replaced))


def test_single_precision_at_a_high_level() -> None:
    """Log-weights of −300 nats: the plain difference would be wrong by several nats."""
    torch.manual_seed(0)
    bound, log_weight = MLMC(8), 0.5 * torch.randn(8 << 11, 10) - 300
    value, single = bound.value(log_weight), log_weight.float()
    whole, halves = IWAE().value(single), IWAE().value(single.unflatten(0, (2, -1)).movedim(1, 0))
    plain = (whole - halves.mean(0)) / bound.probability(11)
    plain = bound.base(single).value(single) + plain
    assert (bound.value(single) - value).abs().max() < 0.3
    assert (plain - value).abs().max() > 1


# Means on programs: levels are stratified, Σ_l P(l) E[· | l].


LAST: list[Tensor] = []
"""The last values of `AtLevel`, per datum."""


@dataclass(frozen=True)
class AtLevel(MLMC):
    """The estimate of a given level."""

    at: int = 0

    def value(self, log_weight: Tensor) -> Tensor:
        LAST[:] = [super().value(log_weight)]
        return LAST[0]

    def draw_particles(self) -> int:
        return self.num_particles << self.at


def gaussian(objective: Objective, size: int) -> dict[str, Tensor]:
    """F, and the gradients of m and b, per datum: z ~ N(0, 1), x|z ~ N(z + b, 1), q = N(m, 2/3)."""
    m = torch.full((size,), 0.8, requires_grad=True)
    b = torch.zeros(size, requires_grad=True)

    def model() -> None:
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Normal(torch.zeros(size), 1.0))
            pyro.sample("x", dist.Normal(z + b, 1.0), obs=torch.ones(size))

    def guide() -> None:
        with pyro.plate("data", size):
            pyro.sample("z", dist.Normal(m, torch.full((size,), 2 / 3).sqrt()))

    objective.next_step()
    phi, theta = torch.autograd.grad(objective.bound(model, guide).surrogate, [m, b])
    return {"value": LAST[0].detach() if LAST else theta, "phi": phi, "theta": theta}


def stratified(
    gradient: Gradient, num_particles: int, run: Any = gaussian, levels: int = LEVELS
) -> dict[str, tuple[float, float]]:
    """Mean and standard error of each figure up to a last level."""
    last = MLMC(num_particles, max_level=levels - 1)
    sums: dict[str, tuple[float, float]] = {}
    for level in range(levels):
        size = 20_000 >> min(level, 3)
        bound = AtLevel(num_particles, max_level=levels - 1, at=level)
        p = last.probability(level)
        for key, values in run(Objective(bound, gradient), size).items():
            mean, square = sums.get(key, (0.0, 0.0))
            mean += p * values.mean().item()
            sums[key] = mean, square + p**2 * values.var().item() / size
    return {key: (mean, math.sqrt(square)) for key, (mean, square) in sums.items()}


@pytest.mark.parametrize("num_particles", [1, 2])
@pytest.mark.parametrize(
    "gradient", [Pathwise(), DoublyReparameterized(), Score("arithmetic"), BaseBound()]
)
def test_the_mean_is_log_p_and_its_gradient(gradient: Gradient, num_particles: int) -> None:
    """E F = log p within 3 standard errors, ∂ log p / ∂b = ½; φ has mean 0, or that of the base.

    The bias of the last level, 64 or 128 draws, is −Var(w)/(2 K p²) > −0.0011 (K = 64), of the
    order of the standard error of the value.
    """
    if gradient == Score("arithmetic") and num_particles == 1:
        pytest.skip("a baseline needs two particles")
    torch.manual_seed(3)
    figures = stratified(gradient, num_particles)
    value, error = figures["value"]
    assert error < 0.004
    assert abs(value - LOG_P) < 3 * error + 0.0011
    theta, error = figures["theta"]
    assert abs(theta - 0.5) < 5 * error + 0.003
    phi, error = figures["phi"]
    if not isinstance(gradient, BaseBound):
        assert abs(phi) < 5 * error + 0.003
        return
    torch.manual_seed(4)
    of_base = gaussian(Objective(IWAE(num_particles)), 200_000)["phi"]
    slack = of_base.std().item() / math.sqrt(len(of_base))
    assert abs(phi - of_base.mean().item()) < 5 * math.hypot(error, slack)
    assert abs(phi) > 20 * error


def bernoulli(objective: Objective, size: int) -> dict[str, Tensor]:
    """The gradient of q's logit: z ~ Bernoulli(1/2), x|z ~ N(2 z + b, 1), x = 2, q = σ(0.3)."""
    logit = torch.full((size,), 0.3, requires_grad=True)
    b = torch.zeros(size, requires_grad=True)

    def model() -> None:
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Bernoulli(torch.full((size,), 0.5)))
            pyro.sample("x", dist.Normal(2 * z + b, 1.0), obs=torch.full((size,), 2.0))

    def guide() -> None:
        with pyro.plate("data", size):
            pyro.sample("z", dist.Bernoulli(logits=logit))

    objective.next_step()
    surrogate = objective.bound(model, guide).surrogate
    phi, theta = torch.autograd.grad(surrogate, [logit, b])
    return {"phi": phi, "theta": theta}


@pytest.mark.parametrize("num_particles", [1, 2])
def test_discrete_draws_follow_the_enumerated_gradients(num_particles: int) -> None:
    torch.manual_seed(5)
    logit = torch.tensor(0.3, requires_grad=True)
    log_joint = dist.Normal(torch.tensor([0.0, 2.0]), 1.0).log_prob(torch.tensor(2.0))
    log_joint = log_joint - math.log(2)
    log_q = torch.stack(
        [-torch.nn.functional.softplus(logit), -torch.nn.functional.softplus(-logit)]
    )
    bound = torch.zeros(())
    for draws in itertools.product((0, 1), repeat=num_particles):
        index = torch.tensor(draws)
        value = (log_joint - log_q)[index].logsumexp(0) - math.log(num_particles)
        bound = bound + log_q[index].sum().exp() * value
    (expected,) = torch.autograd.grad(bound, logit)
    figures = stratified(BaseBound(), num_particles, bernoulli)
    phi, error = figures["phi"]
    assert error < expected.abs() / 10
    assert abs(phi - expected.item()) < 5 * error
    # ∂ log p / ∂b = Σ_z p(z|x) (x − 2 z); the last level is biased by O(1/64).
    theta, error = figures["theta"]
    assert abs(theta - 2 * log_joint.softmax(0)[0].item()) < 5 * error + 0.005


# The objective.


def test_the_level_is_drawn_before_the_step_and_read_from_the_draws() -> None:
    objective = OBJECTIVES["mlmc"](num_particles=2)
    assert objective.variant == 2
    torch.manual_seed(0)
    drawn = []
    for _ in range(30):
        objective.next_step()
        drawn.append(objective.variant)
    assert set(drawn) >= {2, 4, 8}
    torch.manual_seed(0)
    repeated = OBJECTIVES["mlmc"](num_particles=2)
    repeated.next_step()
    assert repeated.variant == drawn[0]
    assert objective.evaluations == pytest.approx(2 * 2.20711, rel=1e-5)
    assert OBJECTIVES["iwae"](num_particles=2).evaluations == 2


def test_a_level_that_is_too_large_is_refused_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PARTICLES", 8)
    torch.manual_seed(0)
    message = r"level 3 of mlmc has been drawn, whose 16 particles per datum are more than 8;"
    with pytest.raises(ConfigError, match=message):
        [MLMC(2).draw_particles() for _ in range(1000)]
    assert max(MLMC(2, max_level=2).draw_particles() for _ in range(1000)) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mlmc:decay=1", "a roulette of infinite cost: with decay = 1"),
        ("mlmc:decay=0.5", "a roulette of infinite cost"),
        ("mlmc:decay=-.inf", "a roulette of infinite cost"),
        ("mlmc:decay=2", "a roulette of infinite variance: with decay = 2"),
        ("mlmc:max_level=-1", "max_level must be a whole number of at least 0, not -1"),
        ("mlmc:max_level=20", "max_level = 20 has 8,388,608 particles, more than 65,536"),
        ("mlmc:num_particles=65537", "at most 65,536 particles at level 0, not 65,537"),
        ("iwae+base-bound", "the base bound is defined for MLMC, not for IWAE"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_objective(text)


def test_numbers_of_particles_without_a_level_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"has levels of 2 · 2\^l particles, none of 6"):
        MLMC(2).value(torch.zeros(6, 1))
    with pytest.raises(ConfigError, match="none of 16"):
        MLMC(2, max_level=2).value(torch.zeros(16, 1))
