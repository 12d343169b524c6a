"""The toys of the conformance checks: their sums over states, and what they catch that the
linear-Gaussian one does not.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pyroae.objectives import (
    ELBO,
    IWAE,
    OBJECTIVES,
    Bound,
    Coefficients,
    Objective,
    ObjectiveBase,
    Pathwise,
    ProgramGradient,
    Score,
    WakeSleep,
)
from pyroae.objectives.bounds import MIWAE, BoundFunction
from pyroae.programs.paired_traces import Traces
from pyroae.testing import (
    BernoulliToy,
    CategoricalToy,
    ConformanceError,
    EnumerableToy,
    MixedToy,
    check_objective,
)
from pyroae.testing.expectations import mean_gradient, mean_value, tuples
from pyroae.testing.toy_program import States
from pyroae.weights import log_weights, reduce_log_weights
from tests.caught import assert_caught, only

TOYS = [BernoulliToy, CategoricalToy, MixedToy, lambda: MixedToy(binary=False)]
each = pytest.mark.parametrize("make", TOYS)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


# Sums over states.


@each
def test_states_have_probability_one_and_the_evidence_of_importance_sampling(make: Any) -> None:
    toy, x = make(), torch.randn(3)
    states = toy.states(x)
    assert states.log_prob.logsumexp(0).item() == pytest.approx(0.0, abs=1e-9)
    log_p = toy.log_evidence(x[None]).item()
    # Σ_s q(s) w_s = p(x): exact for discrete sites, and of the quadrature's accuracy otherwise.
    total = (states.log_prob + states.log_p - states.log_q).logsumexp(0).item()
    assert total == pytest.approx(log_p, abs=1e-3 if isinstance(toy, MixedToy) else 1e-12)
    with torch.no_grad():
        draws = log_weights(toy.model, toy.guide, x.expand(400, 3), num_particles=100).log_weight
    assert draws.flatten().exp().mean().log().item() == pytest.approx(log_p, abs=0.02)


@each
def test_the_posterior_of_a_toy_is_exact(make: Any) -> None:
    toy, x = make().at_posterior(), torch.randn(5, 3)
    weights = toy.log_weights(x, torch.randn(7, 5, toy.noise_size))
    torch.testing.assert_close(weights, toy.log_evidence(x).expand(7, 5), atol=1e-9, rtol=0)


def _mean(bound: BoundFunction, states: States) -> Tensor:
    mean = mean_value(bound, states)
    assert mean is not None
    return mean


@pytest.mark.parametrize("bound", [ELBO(3), IWAE(3), MIWAE(4, 2)])
def test_means_over_tuples_are_brute_force(bound: BoundFunction) -> None:
    states = CategoricalToy().states(torch.randn(3))
    log_w = states.log_p - states.log_q
    rows = [list(row) for row in itertools.product(range(6), repeat=bound.num_particles)]
    terms = [states.log_prob[r].sum().exp() * bound.value(log_w[r][:, None])[0] for r in rows]
    expected = torch.stack(terms).sum()
    assert _mean(bound, states).item() == pytest.approx(expected.item(), rel=1e-12)


def test_means_are_left_out_beyond_a_number_of_tuples() -> None:
    assert tuples(20, 8, True) is None
    assert mean_value(IWAE(30), BernoulliToy().states(torch.zeros(3))) is None


@each
def test_gradients_of_sums_are_finite_differences(make: Any) -> None:
    toy, x, bound = make(), torch.randn(3), IWAE(2)
    found = mean_gradient(Pathwise(), bound, toy, x)
    assert found is not None
    at = 0
    for parameter in toy.parameters():
        for index in range(parameter.numel()):
            with torch.no_grad():
                ends = []
                for step in (1e-5, -2e-5):
                    parameter.view(-1)[index] += step
                    ends.append(_mean(bound, toy.states(x)).item())
                parameter.view(-1)[index] += 1e-5
            assert found[at].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-7)
            at += 1


def test_the_mean_of_a_score_estimator_is_the_gradient_of_the_sum() -> None:
    """E[Σ_k signal_k s_k] with VIMCO's coefficients is ∂ E F: a closed form against another."""
    toy: EnumerableToy
    for toy in (BernoulliToy(), CategoricalToy(), MixedToy()):
        x, bound = torch.randn(3), IWAE(3)
        exact = mean_gradient(Pathwise(), bound, toy, x)
        gradient = _Biased("geometric")
        torch.testing.assert_close(
            mean_gradient(gradient, bound, toy, x), exact, atol=5e-5, rtol=1e-3
        )


class _Biased(Score):
    """VIMCO that does not claim to be unbiased, so that its coefficients are summed."""

    def unbiased(self, bound: BoundFunction) -> bool:
        return False


# What the toys catch.


def on(error: pytest.ExceptionInfo[ConformanceError]) -> set[str]:
    """The toys on which checks of the mean failed."""
    return {
        name
        for name in ("(BernoulliToy)", "(CategoricalToy)", "(MixedToy)")
        for part in str(error.value).split("; ")
        if "the mean" in part and name in part
    }


class OwnDraw(Score):
    """A baseline that contains the draw itself: F₋ₖ with particle k's own log-weight."""

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        slope = bound.slope(log_weight)
        learning = bound.value(log_weight) - log_weight
        return Coefficients(slope, whole=slope, learning=learning.expand_as(log_weight))


def test_a_baseline_that_depends_on_the_draw_is_caught_on_every_toy() -> None:
    words = "that of the sum over all states: off by"
    with only("enumerated_means"), pytest.raises(ConformanceError, match=words) as error:
        check_objective(Objective(IWAE(3), OwnDraw()))
    assert len(on(error)) == 3


class WithoutScores(Pathwise):
    """A pathwise gradient whose discrete draws have no score term."""

    def coefficients(self, bound: BoundFunction, log_weight: Tensor) -> Coefficients:
        right = super().coefficients(bound, log_weight)
        return Coefficients(right.theta, whole=right.whole, learning=0 * log_weight)


def test_a_missing_score_of_discrete_draws_is_caught_there_alone() -> None:
    with only("enumerated_means", "gradient_means"), pytest.raises(ConformanceError) as error:
        check_objective(Objective(IWAE(3), WithoutScores()))
    assert len(on(error)) == 3
    assert "the mean gradient is the bound's" not in str(error.value)


class DiscreteOnly(Score):
    """A score estimator that says it takes bits alone."""

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"binary"})


def test_kinds_select_the_toys() -> None:
    named = {
        check.name: check.detail for check in check_objective(Objective(ELBO(2), DiscreteOnly()))
    }
    assert "the mean gradient is the bound's" not in named
    assert {"(BernoulliToy)"} == {
        detail.split(" ")[-1] for name, detail in named.items() if "all states" in name
    }
    reparameterized = check_objective(OBJECTIVES["dreg"](num_particles=2))
    assert not any("all states" in check.name for check in reparameterized)


def test_a_wrong_mean_of_a_biased_gradient_is_caught_where_sites_are_discrete() -> None:
    class Claims(WakeSleep):
        @property
        def kinds(self) -> frozenset[str]:
            return frozenset({"categorical"})

        def same_mean(self, bound: BoundFunction) -> Any:
            return ((0.5, WakeSleep()),)

    assert_caught(Objective(IWAE(3), Claims()), "the one that the gradient names: off by")


# Draws that no noise fixes, and a random K.


class RandomSize(ObjectiveBase):
    """The ELBO of one draw with probability 2/3, and of four otherwise."""

    def __init__(self, share: float = 1 / 3, stated: float = 2.0) -> None:
        super().__init__(1)
        self.size, self.share, self.stated = 1, share, stated

    is_elbo = True

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"binary"})

    @property
    def evaluations(self) -> float:
        return self.stated

    @property
    def variant(self) -> int:
        return self.size

    def next_step(self) -> None:
        self.size = 4 if torch.rand(()).item() < self.share else 1

    def estimate(self, traces: Traces) -> Bound:
        raise NotImplementedError

    def estimate_on(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Bound:
        traces = self.run(model, guide, args, kwargs, self.size)
        return Objective(ELBO(self.size), Pathwise()).estimate(traces)


class OfAnyKind(RandomSize):
    """The same, with checks of means on the linear-Gaussian toy too."""

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"binary", "continuous"})


def test_a_random_number_of_draws_is_checked_in_the_mean() -> None:
    named = {check.name for check in check_objective(OfAnyKind(), kinds={"binary"})}
    assert {
        "the mean value is the sum over all states",
        "the mean gradient is that of the closed-form ELBO",
        "the decoder evaluations are those that are stated",
        "a batch's gradient is the sum over its data",
    } <= named
    assert "SVI's loss is the loss" not in named


@pytest.mark.parametrize(
    "wrong", [{"stated": 2.5}, pytest.param({"share": 0.6}, marks=pytest.mark.slow)]
)
def test_a_wrong_number_of_evaluations_is_caught(wrong: dict[str, float]) -> None:
    assert_caught(RandomSize(**wrong), "evaluations are those that are stated: off by")


class WrongProbability(RandomSize):
    """The value of four draws is weighted as if it had another probability."""

    def estimate_on(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Bound:
        value, surrogate = super().estimate_on(model, guide, args, kwargs)
        weight = 2.0 if self.size == 4 else 1.0
        return Bound(weight * value, weight * surrogate)


def test_a_wrong_probability_of_a_size_is_caught() -> None:
    words = "the mean value is the sum over all states: off by"
    assert_caught(WrongProbability(), words, by=("enumerated_means",))


def test_a_false_claim_of_no_bias_is_caught() -> None:
    claiming = type("Claiming", (RandomSize,), {"is_elbo": False, "is_unbiased": True})
    assert_caught(claiming(), r"the mean value is log p\(x\): off by", by=("enumerated_means",))


class Auxiliary(ProgramGradient):
    """Score("leave-one-out") whose draws are the first half of twice as many."""

    def __init__(self, together: bool = False) -> None:
        self.together = together

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"binary"})

    def estimate_on(self, objective: Any, model: Any, guide: Any, args: Any, kwargs: Any) -> Bound:
        from pyroae.objectives.surrogates import Detached

        count = objective.num_particles
        traces = objective.run(model, guide, args, kwargs, 2 * count, handler=Detached())
        weights = reduce_log_weights(traces)
        log_weight = weights.log_weight[:count]
        if self.together:  # the fault: one datum's baseline is that of the whole batch
            baseline = log_weight.detach().mean()
        else:
            baseline = weights.log_weight[count:].detach().mean(0)
        bound = objective.bound_function
        signal = bound.value(log_weight.detach()) - baseline
        terms = (signal * weights.log_draws[:count]).sum()
        value = (weights.scale * bound.value(log_weight)).sum()
        return Bound(value.detach(), value + weights.scale * terms)


class WithAuxiliary(Objective):
    """The cost of the pair with auxiliary draws."""

    @property
    def evaluations(self) -> float:
        return 2.0 * self.num_particles


def test_auxiliary_draws_are_checked_by_seeds_and_means() -> None:
    named = {check.name for check in check_objective(WithAuxiliary(IWAE(3), Auxiliary()))}
    assert "the value is the bound of the log-weights" not in named
    assert "the mean value is the sum over all states" in named
    assert "the mean gradient is that of the sum over all states" in named
    together = WithAuxiliary(IWAE(3), Auxiliary(together=True))
    assert_caught(together, "a batch's gradient is the sum over its data")
    assert_caught(Objective(IWAE(3), Auxiliary()), "evaluations are those that are stated")


def test_the_posterior_of_bits_has_the_closed_form() -> None:
    """One bit: log p(x) = log(½ N(x; b) + ½ N(x; w + b)) by hand."""
    toy, x = BernoulliToy(), torch.tensor([[0.3, -0.2, 0.5]])
    with torch.no_grad():
        toy.prior.zero_()
        toy.weight[:, 1:] = 0.0
    squares = [((x[0] - toy.bias - on * toy.weight[:, 0]) ** 2).sum() for on in (0, 1)]
    density = torch.stack([0.5 * torch.exp(-s / (2 * 0.49)) for s in squares]).sum()
    expected = density.log() - 1.5 * math.log(2 * math.pi * 0.49)
    assert toy.log_evidence(x).item() == pytest.approx(expected.item(), abs=1e-12)
