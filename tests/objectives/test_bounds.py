"""Bounds: values against closed forms, derivatives against autograd, biases against the Gamma
oracle.
"""

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from pyroae.errors import ConfigError
from pyroae.objectives.bounds import (
    BOUNDS,
    CIWAE,
    ELBO,
    IWAE,
    JVI,
    MIWAE,
    TVO,
    BoundFunction,
    Renyi,
    log_mean_exp,
    log_sum_of_others,
)

pytestmark = pytest.mark.usefixtures("float64")
EVERY = [
    *(
        ELBO(6),
        IWAE(6),
        Renyi(6, 0.5),
        Renyi(6, -2.0),
        Renyi(6, 1.0),
        Renyi(6, -math.inf),
        Renyi(6, 3.0),
    ),
    *(MIWAE(6, 2), MIWAE(6, 3), CIWAE(6, 0.3), JVI(6, 1), JVI(6, 2), TVO(6), TVO(6, 1)),
]


def weights(num_particles: int = 6, num_data: int = 5, spread: float = 2.0) -> Tensor:
    return spread * torch.randn(num_particles, num_data)


@pytest.mark.parametrize("bound", EVERY, ids=str)
def test_derivatives_are_those_of_the_value(bound: BoundFunction) -> None:
    log_weight = weights()
    torch.testing.assert_close(
        bound.slope(log_weight), BoundFunction.slope(bound, log_weight), rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(
        bound.curvature(log_weight),
        BoundFunction.curvature(bound, log_weight),
        rtol=1e-9,
        atol=1e-12,
    )
    assert not bound.slope(log_weight).requires_grad


@pytest.mark.parametrize("bound", EVERY, ids=str)
def test_a_shift_of_all_weights_shifts_the_bound(bound: BoundFunction) -> None:
    """F(log w + a) = F(log w) + a: a bound on log p scales with p; so the slopes add up to 1."""
    log_weight = weights()
    torch.testing.assert_close(bound.value(log_weight + 3.7), bound.value(log_weight) + 3.7)
    torch.testing.assert_close(bound.slope(log_weight).sum(0), torch.ones(5))
    constant = torch.full((6, 5), -80.0)
    torch.testing.assert_close(bound.value(constant), torch.full((5,), -80.0))


@pytest.mark.parametrize("bound", [b for b in EVERY if not isinstance(b, MIWAE)], ids=str)
def test_leaving_out_is_the_bound_of_the_others(bound: BoundFunction) -> None:
    log_weight = weights()
    left = bound.without(log_weight, None)
    filled = bound.without(log_weight, log_weight + 1.0)
    for k in range(6):
        others = torch.cat([log_weight[:k], log_weight[k + 1 :]])
        torch.testing.assert_close(left[k], bound.value(others))
        torch.testing.assert_close(
            filled[k], bound.value(torch.cat([others, log_weight[k : k + 1] + 1.0]))
        )


def test_miwae_leaves_out_of_its_own_group() -> None:
    log_weight, bound = weights(), MIWAE(6, 2)
    for k, own in ((0, [1, 2]), (4, [3, 5])):
        other = [3, 4, 5] if k < 3 else [0, 1, 2]
        expected = (log_mean_exp(log_weight[own]) + log_mean_exp(log_weight[other])) / 2
        torch.testing.assert_close(bound.without(log_weight, None)[k], expected)


def test_known_relations() -> None:
    log_weight = weights()
    torch.testing.assert_close(Renyi(6, 0.0).value(log_weight), IWAE(6).value(log_weight))
    torch.testing.assert_close(
        Renyi(6, 1 - 1e-9).value(log_weight), ELBO(6).value(log_weight), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        Renyi(6, -1e4).value(log_weight), log_weight.max(0).values, rtol=0, atol=1e-3
    )
    values = torch.stack(
        [Renyi(6, a).value(log_weight) for a in (-math.inf, -2.0, 0.0, 0.5, 1.0, 3.0)]
    )
    assert (values.diff(dim=0) < 0).all()  # nonincreasing in α (Li & Turner 2016)
    torch.testing.assert_close(MIWAE(6, 1).value(log_weight), IWAE(6).value(log_weight))
    torch.testing.assert_close(MIWAE(6, 6).value(log_weight), ELBO(6).value(log_weight))
    torch.testing.assert_close(CIWAE(6, 1.0).value(log_weight), ELBO(6).value(log_weight))
    torch.testing.assert_close(
        TVO(6, 1).value(log_weight), ELBO(6).value(log_weight)
    )  # one partition: β = 0 alone


@pytest.mark.parametrize("order", [1, 2])
def test_jackknife_is_the_sum_over_subsets(order: int) -> None:
    log_weight, count = weights(spread=5.0), 6
    expected = torch.zeros(5)
    for j in range(order + 1):
        sign = (-1) ** j * (count - j) ** order / (math.factorial(order - j) * math.factorial(j))
        subsets = [log_mean_exp(log_weight[list(s)]) for s in combinations(range(count), count - j)]
        expected += sign * torch.stack(subsets).mean(0)
    torch.testing.assert_close(JVI(6, order).value(log_weight), expected, rtol=1e-10, atol=1e-10)


def test_others_where_one_weight_carries_the_sum() -> None:
    log_weight = torch.tensor([[0.0], [-300.0], [-301.0], [-800.0]])
    expected = torch.stack(
        [torch.cat([log_weight[:k], log_weight[k + 1 :]]).logsumexp(0) for k in range(4)]
    )
    torch.testing.assert_close(log_sum_of_others(log_weight), expected, rtol=1e-14, atol=1e-14)


def test_gamma_oracle() -> None:
    """w ~ Gamma(1, 1), log p = 0 (REFERENCES, item 1): n = 400,000 draws a bound, 5 standard
    errors.
    """
    biases = {
        IWAE: {1: -0.577216, 2: -0.270363, 5: -0.103320, 10: -0.050833},
        JVI: {2: 0.036490, 5: 0.004106, 10: 0.000923},
    }
    for make, by_count in biases.items():
        for count, bias in by_count.items():
            log_weight = (
                torch.distributions.Gamma(torch.tensor(1.0), torch.tensor(1.0))
                .sample((count, 400_000))
                .log()
            )
            values = make(count).value(log_weight)
            assert values.mean().item() == pytest.approx(
                bias, abs=5 * values.std().item() / math.sqrt(400_000)
            )


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="JVI needs num_particles of at least 2, not 1"):
        JVI(1)
    with pytest.raises(ConfigError, match="JVI needs num_particles of at least 3, not 2"):
        JVI(2, order=2)
    with pytest.raises(ConfigError, match="TVO needs num_particles of at least 2"):
        TVO(1)
    with pytest.raises(ConfigError, match="7 cannot be split into 2 equal groups"):
        MIWAE(7, 2)
    with pytest.raises(ConfigError, match=r"beta of CIWAE must be in \[0, 1\], not 1.5"):
        CIWAE(4, 1.5)
    with pytest.raises(ConfigError, match="alpha of a Rényi bound must be below infinity"):
        Renyi(4, math.inf)
    with pytest.raises(ConfigError, match="the order of JVI is 1 or 2"):
        JVI(4, 3)
    for choice in BOUNDS.values():
        with pytest.raises(ConfigError, match="num_particles"):
            choice(num_particles=0)
