"""The conformance suite: every valid pair passes it, and broken copies are caught, each by the oracle made for it."""

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from pyroae.errors import ConfigError
from pyroae.objectives import (
    CIWAE,
    ELBO,
    IWAE,
    JVI,
    MIWAE,
    OBJECTIVES,
    TVO,
    AnalyticKL,
    Bound,
    Coefficients,
    Covariance,
    DoublyReparameterized,
    DoublyReparameterizedWakeSleep,
    Objective,
    ObjectiveBase,
    Pathwise,
    Renyi,
    Score,
    StickingTheLanding,
    TwoBounds,
    WakeSleep,
)
from pyroae.testing import ConformanceError, check_objective
from pyroae.weights import Traces, reduce_log_weights

BOUNDS = [ELBO(4), IWAE(4), Renyi(4, 0.5), Renyi(4, -math.inf), MIWAE(4, 2), CIWAE(4, 0.3), JVI(4, 1), JVI(4, 2), TVO(4)]
GRADIENTS = [
    *(Pathwise(), StickingTheLanding(), DoublyReparameterized(), DoublyReparameterized(0.5), TwoBounds()),
    *(Score("none"), Score("leave-one-out"), Score("arithmetic"), Score("geometric")),
    *(WakeSleep(), DoublyReparameterizedWakeSleep(), Covariance()),
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


@pytest.mark.parametrize("objective", pairs(), ids=lambda o: f"{o.bound_function}-{o.gradient}")
def test_every_valid_pair_conforms(objective: Objective) -> None:
    checks = check_objective(objective)
    named = {check.name for check in checks}
    assert ("the mean gradient is the bound's" in named) == objective.gradient.unbiased(objective.bound_function)
    assert len(named) >= 11


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("num_particles", [2, 6])
def test_every_named_objective_conforms(name: str, num_particles: int) -> None:
    assert all(check.passed for check in check_objective(OBJECTIVES[name](num_particles=num_particles)))


def test_an_objective_that_is_no_pair_may_claim_to_be_unbiased() -> None:
    assert "the mean gradient is the bound's" in {check.name for check in check_objective(AnalyticKL(3), unbiased=True)}
    with pytest.raises(ConformanceError, match="the mean gradient is the bound's"):
        check_objective(NoGradientForTheta(4), unbiased=True)


def test_the_biased_say_so() -> None:
    assert not StickingTheLanding().unbiased(IWAE(4))
    assert StickingTheLanding().unbiased(ELBO(4))
    assert not DoublyReparameterized(alpha=0.5).unbiased(IWAE(4))
    with pytest.raises(ConformanceError, match=r"the mean gradient is the bound's: off by \d+"):
        check_objective(Objective(IWAE(4), StickingTheLanding()), unbiased=True)


# Broken copies.


@dataclass(frozen=True)
class WrongSign(DoublyReparameterized):
    """DReG with the sign of its path derivative turned."""

    def coefficients(self, bound: Any, log_weight: Tensor) -> Coefficients:
        right = super().coefficients(bound, log_weight)
        assert right.path is not None
        return Coefficients(right.theta, path=-right.path)


@dataclass(frozen=True)
class NotStopped(DoublyReparameterized):
    """DReG with q's parameters left in."""

    def coefficients(self, bound: Any, log_weight: Tensor) -> Coefficients:
        right = super().coefficients(bound, log_weight)
        return Coefficients(right.theta, whole=right.path)


@dataclass(frozen=True)
class NotNormalized(IWAE):
    """IWAE with weights that do not add up to 1."""

    def slope(self, log_weight: Tensor) -> Tensor:
        return log_weight.detach().exp()


class ScaledTooEarly(ObjectiveBase):
    """IWAE with the plate's scale inside the log-mean-exp, as Pyro's RenyiELBO has it."""

    def estimate(self, traces: Traces) -> Bound:
        weights = reduce_log_weights(traces)
        value = (weights.scale * weights.log_weight).logsumexp(0).sum() - weights.log_weight.shape[1] * math.log(4)
        return Bound(value, value)


class SummedOverTheBatch(ObjectiveBase):
    """IWAE of the whole batch's joint weight."""

    def estimate(self, traces: Traces) -> Bound:
        weights = reduce_log_weights(traces)
        value = weights.scale * (weights.log_weight.sum(1).logsumexp(0) - math.log(4))
        assert isinstance(value, Tensor)
        return Bound(value, value)


class NoGradientForTheta(ObjectiveBase):
    """The ELBO with log p detached."""

    def estimate(self, traces: Traces) -> Bound:
        weights = reduce_log_weights(traces)
        value = weights.total(weights.log_weight.mean(0))
        return Bound(value, -weights.total(weights.log_post.mean(0)))


BROKEN = {
    "sign": (Objective(IWAE(4), WrongSign()), "the mean gradient is the bound's"),
    "missing detach": (Objective(IWAE(4), NotStopped()), "the mean gradient is the bound's"),
    "not normalized": (Objective(NotNormalized(4), DoublyReparameterized()), "the mean gradient is the bound's"),
    "scale before log-mean-exp": (ScaledTooEarly(4), "a scale multiplies the bound"),
    "sum over the batch": (SummedOverTheBatch(4), "a batch's bound is the sum over its data"),
    "no gradient": (NoGradientForTheta(4), "a gradient reaches every parameter"),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_broken_copies_are_caught(case: str) -> None:
    objective, words = BROKEN[case]
    with pytest.raises(ConformanceError, match=words):
        check_objective(objective)


def test_the_default_dtype_and_generator_are_left_alone() -> None:
    before = torch.get_rng_state()
    check_objective(Objective(ELBO(1), Pathwise()))
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(before, torch.get_rng_state())
