"""The conformance suite: every valid pair passes it, and broken copies are caught, each by the
oracle made for it.
"""

import copy
import math
import re
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from pyroae import objectives
from pyroae.errors import ConfigError
from pyroae.objectives import (
    ARM,
    CIWAE,
    ELBO,
    IWAE,
    JVI,
    MIWAE,
    NVIL,
    OBJECTIVES,
    SELBO,
    SIWAE,
    TVO,
    AnalyticKL,
    Bound,
    BoundFunction,
    Coefficients,
    Covariance,
    DisARM,
    DoublyReparameterized,
    DoublyReparameterizedWakeSleep,
    Gradient,
    Objective,
    ObjectiveBase,
    Pathwise,
    Renyi,
    Score,
    StickingTheLanding,
    TwoBounds,
    WakeSleep,
    parse_objective,
)
from pyroae.programs.paired_traces import Traces
from pyroae.programs.sites import Program
from pyroae.testing import check_objective
from pyroae.testing.checks import Check
from pyroae.testing.gaussian import Toy
from pyroae.testing.gaussian_means import trend, value_means
from pyroae.testing.structure import structure
from pyroae.weights import LogWeights, reduce_log_weights
from tests.caught import assert_caught
from tests.conftest import sample_of
from tests.systems import CONFORMING

GAUSSIAN = {"continuous"}
"""The toy of these tests: those of discrete latents are in tests/test_toys.py."""
BOUNDS = [
    ELBO(4),
    IWAE(4),
    Renyi(4, 0.5),
    Renyi(4, -math.inf),
    MIWAE(4, 2),
    CIWAE(4, 0.3),
    JVI(4, 1),
    JVI(4, 2),
    TVO(4),
    SELBO(4),
    SIWAE(4),
]
GRADIENTS = [
    *(
        Pathwise(),
        StickingTheLanding(),
        DoublyReparameterized(),
        DoublyReparameterized(0.5),
        TwoBounds(),
    ),
    *(Score("none"), Score("leave-one-out"), Score("arithmetic"), Score("geometric")),
    *(WakeSleep(), DoublyReparameterizedWakeSleep(), Covariance()),
    *(DisARM(), ARM()),
    *(NVIL(8), NVIL(0), NVIL(8, normalize=True)),
]


def pairs() -> list[Objective]:
    found = []
    for bound, gradient in product(BOUNDS, GRADIENTS):
        try:
            found.append(Objective(bound, gradient))
        except ConfigError:
            continue
    return found


def test_pairs_are_many() -> None:
    assert len(pairs()) >= 75


PAIRS = pairs()


def types(objective: Objective) -> set[type]:
    return {type(objective.bound_function), type(objective.gradient)}


def few() -> list[Objective]:
    """Pairs with every bound and gradient that no named objective of `make test` has, those of
    tests/test_estimator_pages.py; `make study` runs all, and named ones that are no pair here.
    """
    named = [o for n in CONFORMING if isinstance(o := OBJECTIVES[n](num_particles=2), Objective)]
    left, chosen = PAIRS, list[Objective]()
    wanted = set[type]().union(*map(types, left)) - set[type]().union(*map(types, named))
    while wanted:
        chosen.append(max(left, key=lambda pair: len(types(pair) & wanted)))
        wanted -= types(chosen[-1])
    return chosen


FEW = few()


def test_the_sample_has_every_bound_and_gradient() -> None:
    named = [o for n in CONFORMING if isinstance(o := OBJECTIVES[n](num_particles=2), Objective)]
    run = set[type]().union(*map(types, [*FEW, *named]))
    assert run >= set[type]().union(*map(types, pairs()))
    assert 3 <= len(FEW) <= 8


@pytest.mark.parametrize(
    "objective",
    [
        pair if any(pair is other for other in FEW) else pytest.param(pair, marks=pytest.mark.slow)
        for pair in PAIRS
    ],
    ids=lambda o: f"{o.bound_function}-{o.gradient}",
)
def test_every_valid_pair_conforms(objective: Objective) -> None:
    """On all toys in `make study`; on the linear-Gaussian one in `make test`."""
    is_sampled = any(objective is other for other in FEW)
    checks = check_objective(objective, kinds=GAUSSIAN if is_sampled else None)
    named = {check.name for check in checks}
    of_bound = {
        "the mean gradient is the bound's",
        "the mean gradient is that of the sum over all states",
    }
    assert bool(named & of_bound) == objective.gradient.unbiased(objective.bound_function)
    assert len(named) >= 14


def registered_pairs() -> list[str]:
    """The pairs of registered bounds and gradients, with their defaults, that are defined and are
    not among those above.
    """
    above = {(type(o.bound_function), type(o.gradient)) for o in pairs()}
    found = []
    for bound, gradient in product(objectives.BOUNDS, objectives.GRADIENTS):
        try:
            pair = parse_objective(f"{bound}+{gradient}", 4)
        except ConfigError:
            continue
        assert isinstance(pair, Objective)
        if (type(pair.bound_function), type(pair.gradient)) not in above:
            found.append(f"{bound}+{gradient}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("text", registered_pairs())
def test_every_registered_pair_conforms(text: str) -> None:
    assert check_objective(parse_objective(text, 4))


def test_two_bounds_of_a_random_number_of_particles_are_refused() -> None:
    with pytest.raises(ConfigError, match="has a random number of particles"):
        parse_objective("mlmc+two-bounds", 4)


@pytest.mark.parametrize(("name", "num_particles"), sample_of(product(OBJECTIVES, (2, 6)), 41))
def test_every_named_objective_conforms(name: str, num_particles: int) -> None:
    """All of them with K = 4: tests/test_estimator_pages.py."""
    assert all(
        check.passed for check in check_objective(OBJECTIVES[name](num_particles=num_particles))
    )


def test_an_objective_that_is_no_pair_may_claim_to_be_unbiased() -> None:
    assert "the mean gradient is the bound's" in {
        check.name for check in check_objective(AnalyticKL(3), unbiased=True, kinds=GAUSSIAN)
    }
    assert_caught(
        NoGradientForTheta(4),
        "the mean gradient is the bound's",
        ("gradient_means",),
        unbiased=True,
        kinds=GAUSSIAN,
    )


def test_the_biased_say_so() -> None:
    assert not StickingTheLanding().unbiased(IWAE(4))
    assert StickingTheLanding().unbiased(ELBO(4))
    assert not DoublyReparameterized(alpha=0.5).unbiased(IWAE(4))
    assert_caught(
        Objective(IWAE(4), StickingTheLanding()),
        r"the mean gradient is the bound's: off by \d+",
        ("gradient_means",),
        unbiased=True,
        kinds=GAUSSIAN,
    )


# Broken copies: five faults of each of five estimators.

ESTIMATORS: dict[str, tuple[BoundFunction, Gradient]] = {
    "iwae-stl": (IWAE(4), StickingTheLanding()),
    "dreg": (IWAE(4), DoublyReparameterized()),
    "ciwae-dreg": (CIWAE(4, 0.3), DoublyReparameterized()),
    "vimco": (IWAE(4), Score("arithmetic")),
    "rws": (IWAE(4), WakeSleep()),
}


def altered[T](original: T, name: str, method: Callable[..., Any]) -> T:
    """A copy of a bound or gradient with one method replaced."""
    altered = copy.copy(original)
    object.__setattr__(altered, name, method)
    return altered


def wrong_sign(bound: BoundFunction, gradient: Gradient) -> Objective:
    """φ descends."""

    def turned(bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        right = gradient.coefficients(bound, log_weight)
        path, whole, score, learning = (
            None if c is None else -c
            for c in (right.path, right.whole, right.score, right.learning)
        )
        return Coefficients(right.theta, path, whole, score, learning)

    return Objective(bound, altered(gradient, "coefficients", turned))


class DrawsNotStopped(Objective):
    """A score-function estimator whose draws carry a gradient too."""

    def estimate_on(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Bound:
        return self._by_score(self.run(model, guide, args, kwargs))


def missing_detach(bound: BoundFunction, gradient: Gradient) -> Objective:
    """The guide's parameters, or for a score-function estimator its draws, are left in."""

    def whole(bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        right = gradient.coefficients(bound, log_weight)
        return Coefficients(right.theta, whole=right.path)

    if gradient.detached:
        return DrawsNotStopped(bound, gradient)
    return Objective(bound, altered(gradient, "coefficients", whole))


def not_normalized(bound: BoundFunction, gradient: Gradient) -> Objective:
    """Weights w in place of w / Σ w."""
    return Objective(
        altered(bound, "slope", lambda log_weight: log_weight.detach().exp()), gradient
    )


class ScaledTooEarly(Objective):
    """The plate's scale inside the log-mean-exp, as Pyro's RenyiELBO has it."""

    def _parts(self, traces: Traces) -> tuple[LogWeights, Tensor, Coefficients]:
        weights = reduce_log_weights(traces)
        log_weight = (weights.scale * weights.log_weight).detach()
        return (
            weights,
            self.bound_function.value(log_weight).sum(),
            self.gradient.coefficients(self.bound_function, log_weight),
        )


class SummedOverTheBatch(Objective):
    """The bound of the whole batch's joint weight."""

    def _parts(self, traces: Traces) -> tuple[LogWeights, Tensor, Coefficients]:
        weights = reduce_log_weights(traces)
        joint = weights.log_weight.detach().sum(1, keepdim=True).expand_as(weights.log_weight)
        value = weights.scale * self.bound_function.value(joint)[0]
        assert isinstance(value, Tensor)
        return weights, value, self.gradient.coefficients(self.bound_function, joint)


MEAN = "the mean gradient is the bound's|the mean φ-gradient is the one that the gradient names"
FAULTS: dict[str, tuple[Callable[[BoundFunction, Gradient], Objective], str]] = {
    "sign": (wrong_sign, MEAN),
    "missing detach": (missing_detach, MEAN),
    "weights not normalized": (
        not_normalized,
        "the mean gradient is that of log p.x. at the exact posterior",
    ),
    "scale before log-mean-exp": (ScaledTooEarly, "a scale multiplies the bound"),
    "sum over the batch": (SummedOverTheBatch, "a batch's bound is the sum over its data"),
}


@pytest.mark.parametrize(
    ("fault", "estimator"), sample_of(product(FAULTS, ESTIMATORS), len(ESTIMATORS) + 1)
)
def test_broken_copies_are_caught(fault: str, estimator: str) -> None:
    broken, words = FAULTS[fault]
    assert_caught(broken(*ESTIMATORS[estimator]), words, kinds=GAUSSIAN)


class NoGradientForTheta(ObjectiveBase):
    """The ELBO with log p detached."""

    def estimate(self, traces: Traces) -> Bound:
        weights = reduce_log_weights(traces)
        value = weights.total(weights.log_weight.mean(0))
        return Bound(value, -weights.total(weights.log_post.mean(0)))


def test_a_parameter_that_no_gradient_reaches_is_named() -> None:
    words = "a gradient reaches every parameter: none reaches prior, weight, bias"
    assert_caught(NoGradientForTheta(4), words, kinds=GAUSSIAN)


# False claims.


CLAIMS: dict[str, tuple[BoundFunction, str, Any, str]] = {
    "is_lower": (Renyi(4, -2.0), "is_lower", True, "the mean value is below log p.x.: off by"),
    "falls": (IWAE(4), "trend", -1, "the mean value never rises with K: off by"),
    "rises": (Renyi(4, 2.0), "trend", 1, "the mean value never falls with K: off by"),
    "constant": (IWAE(4), "trend", 0, "the mean value is the same for every K: off by"),
    "symmetric": (
        MIWAE(4, 2),
        "is_symmetric",
        True,
        "the particles may change places in the bound: differs by",
    ),
}


def claiming(claim: str) -> Objective:
    """A pair whose bound makes a false claim."""
    bound, name, value, _ = CLAIMS[claim]
    return Objective(type(type(bound).__name__, (type(bound),), {name: value})(**vars(bound)))


@pytest.mark.slow
@pytest.mark.parametrize("claim", list(CLAIMS))
def test_false_claims_of_a_bound_are_caught(claim: str) -> None:
    assert_caught(claiming(claim), CLAIMS[claim][-1], kinds=GAUSSIAN)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("claim", list(CLAIMS))
def test_false_claims_of_a_bound_are_caught_by_their_oracle(claim: str) -> None:
    """By the checks that `check_objective` makes of that claim, and by no others of them."""
    oracles: dict[str, Callable[[Objective], Iterator[Check]]] = {
        "is_lower": value_means,
        "symmetric": lambda objective: structure(objective, Toy()),
    }
    checks = list(oracles.get(claim, trend)(claiming(claim)))
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.passed]
    assert len(failed) == (2 if claim == "symmetric" else 1)  # that of the gradient too
    assert re.match(CLAIMS[claim][-1], failed[0])


def test_false_claims_of_a_gradient_are_caught() -> None:
    gradient = altered(WakeSleep(), "same_mean", lambda bound: ((1.0, Pathwise()),))
    words = "the mean φ-gradient is the one that the gradient names: off by"
    assert_caught(Objective(IWAE(4), gradient), words, ("stated_means",), kinds=GAUSSIAN)


def test_what_is_not_claimed_is_not_checked() -> None:
    named = {
        check.name for check in check_objective(Objective(JVI(4, 1), TwoBounds()), kinds=GAUSSIAN)
    }
    assert not any("with K" in name or "below log p(x)" in name for name in named)
    assert "the mean φ-gradient is the one that the gradient names" in named
    torch.set_default_dtype(torch.float64)
    of_miwae = [check.name for check in structure(Objective(MIWAE(4, 2)), Toy())]
    assert of_miwae
    assert not any("change places" in name for name in of_miwae)


def test_the_default_dtype_and_generator_are_left_alone() -> None:
    before = torch.get_rng_state()
    check_objective(Objective(ELBO(1), Pathwise()), kinds=GAUSSIAN)
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(before, torch.get_rng_state())
