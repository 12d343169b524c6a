"""Intervals of the gradient laboratory hold their own estimate, and are numbers wherever there is
an estimate.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyroae.errors import ProgramError
from pyroae.evaluation.gradient_lab.measure import measure_gradients, measure_slopes
from pyroae.evaluation.gradient_lab.statistics import BATCHES, Stream, basic_interval
from pyroae.objectives import TraceELBO
from pyroae.objectives.named import iwae, rws_dreg


def programs(noise: float = 1.0) -> tuple[Any, Any, dict[str, Tensor]]:
    """A model whose parameter `shift` has the same gradient, 1, in every replicate; `idle` has
    0.
    """
    parameters = {
        name: torch.tensor(value, requires_grad=True)
        for name, value in (("loc", 0.3), ("shift", 0.1), ("idle", 2.0))
    }

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(noise * z, 1.0), obs=x)
            pyro.factor("c", parameters["shift"] + 0 * z)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(parameters["loc"] + 0 * parameters["idle"], 1.0))

    return model, guide, parameters


def test_groups_with_constant_gradients() -> None:
    model, guide, parameters = programs()
    groups = {
        "noisy": ("loc",),
        "constant": ("shift",),
        "idle": ("idle",),
        "all": ("loc", "shift", "idle"),
    }
    found = measure_gradients(
        model,
        guide,
        torch.ones(3),
        {"elbo": TraceELBO(2), "iwae": iwae(2)},
        parameters=parameters,
        groups=groups,
        replicates=60,
    )
    for of_group in found.values():
        low, high = of_group["noisy"].snr_interval
        assert low <= of_group["noisy"].snr <= high < math.inf
        constant = of_group["constant"]
        assert constant.mean.item() == pytest.approx(1.0)
        assert constant.snr == math.inf
        assert constant.snr_interval == (math.inf, math.inf)
        assert (constant.directional_snr, constant.directional_snr_se) == (math.inf, 0.0)
        assert math.isnan(of_group["idle"].snr)  # 0 in all replicates: there is nothing to tell
        assert of_group["all"].snr == math.inf
        assert of_group["all"].snr_interval == (math.inf, math.inf)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e6 + 0.1, 3e-5])
@pytest.mark.parametrize("replicates", [20, 33, 100])
def test_rounding_is_no_noise(value: float, replicates: int) -> None:
    """The mean of 33 equal numbers is another one in the last digit: their SNR was 10⁷, with −∞ for
    an interval.
    """
    stream = Stream({"all": (slice(0, 2),)})
    for r in range(replicates):
        stream.add(r * BATCHES // replicates, torch.tensor([value, -2 * value]))
    found = stream.statistics(stream, 0, 0.0, 1)["all"]
    assert (found.variance == 0).all()
    assert found.snr_interval == (math.inf, math.inf) == (found.snr, found.directional_snr)
    assert found.bias == found.bias_interval[0] == found.bias_interval[1] == 0


def test_a_gradient_that_is_rarely_other_than_zero() -> None:
    """Bootstrap samples without any of them have no SNR and are left out."""
    stream = Stream({"all": (slice(0, 1),)})
    for r in range(100):
        stream.add(r // 5, torch.tensor([1.0 if r == 3 else 0.0]))
    found = stream.statistics(None, 0, 0.0, 1)["all"]
    low, high = found.snr_interval
    assert found.snr == pytest.approx(0.1)
    assert low <= found.snr <= high


@pytest.mark.parametrize("size", [1, 50, 1000])
@pytest.mark.parametrize("mean", [0.0, 0.05, 1.0])
def test_intervals_hold_their_estimate(size: int, mean: float) -> None:
    """Few replicates and many parameters: the bias of the bootstrap exceeds its noise
    (`0.127   0.0994 to 0.125`).
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        streams = [Stream({"all": (slice(0, size),)}) for _ in range(2)]
        for r in range(40):
            for stream in streams:
                stream.add(r // 2, mean + torch.randn(size, generator=generator))
        found = streams[0].statistics(streams[1], 0, 0.0, 1)["all"]
        assert found.snr_interval[0] <= found.snr <= found.snr_interval[1]
        assert found.bias_interval[0] <= found.bias <= found.bias_interval[1]


@settings(max_examples=100, deadline=None)
@given(
    st.floats(-1e6, 1e6),
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=40),
)
def test_the_basic_interval_of_anything(found: float, resampled: list[float]) -> None:
    low, high = basic_interval(found, torch.tensor([*resampled, found], dtype=torch.float64))
    assert low <= found <= high


def test_slopes_hold_their_estimate_and_zero_gradients_have_none() -> None:
    model, guide, parameters = programs()
    phi = {"loc": parameters["loc"]}
    found = measure_slopes(
        model,
        guide,
        torch.ones(3),
        {"rws-dreg": rws_dreg, "iwae": iwae},
        ks=(1, 2, 4),
        parameters=phi,
        replicates=40,
    )
    for of_group in found.values():
        slope = of_group["all"].slope
        assert slope.low <= slope.slope <= slope.high
    zero = found["rws-dreg"]["all"].statistics[0]  # K = 1: always 0
    assert math.isnan(zero.snr)
    assert all(math.isnan(end) for end in zero.snr_interval)


def test_gradients_that_are_not_finite_are_refused() -> None:
    model, guide, parameters = programs(noise=1e38)
    with pytest.raises(ProgramError, match="gradient of the objective 'elbo' is not finite"):
        measure_gradients(
            model,
            guide,
            torch.ones(3),
            {"elbo": TraceELBO(2)},
            parameters=parameters,
            replicates=20,
        )
