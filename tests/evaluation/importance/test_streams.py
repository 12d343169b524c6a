"""Log-weights as they stream by, against the same figures of the whole array."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats
from torch import Tensor

from pyroae.evaluation.importance.streams import (
    LEAST_FOR_PSIS,
    CurveStream,
    WeightStream,
    curve_sizes,
    skewed_interval,
    tail_length,
)

pytestmark = pytest.mark.usefixtures("float64")
SPREADS = torch.tensor([0.1, 0.5, 1.0, 1.5, 2.0, 3.0])
KS = (2, 24, 25, 30, 200, 226, 1000, 5000)


def weights(num_particles: int) -> Tensor:
    """`[K, 6]`, of ever heavier tails, from −300 to 300 nats."""
    torch.manual_seed(num_particles)
    return torch.randn(num_particles, 6) * SPREADS + torch.linspace(-300, 300, 6)


def chunked(log_weight: Tensor) -> Iterator[Tensor]:
    start = 0
    while start < len(log_weight):
        size = int(torch.randint(1, 90, ()))
        yield log_weight[start : start + size]
        start += size


def streamed(log_weight: Tensor) -> WeightStream:
    stream = WeightStream(log_weight.shape[1], torch.device("cpu"), len(log_weight))
    for part in chunked(log_weight):
        stream.add(part)
    return stream


@pytest.mark.parametrize("num_particles", KS)
def test_moments_are_those_of_the_whole(num_particles: int) -> None:
    log_weight = weights(num_particles)
    stream = streamed(log_weight)
    assert stream.count == num_particles
    w = (log_weight - log_weight.max(0).values).exp()
    torch.testing.assert_close(
        stream.log_px(), log_weight.logsumexp(0) - math.log(num_particles), rtol=0, atol=1e-11
    )
    torch.testing.assert_close(
        stream.se(), w.std(0) / w.mean(0) / math.sqrt(num_particles), rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(stream.ess(), w.sum(0) ** 2 / w.square().sum(0), rtol=1e-11, atol=0)


@pytest.mark.parametrize("num_particles", KS)
def test_the_jackknife_is_the_one_that_leaves_each_weight_out(num_particles: int) -> None:
    log_weight = weights(num_particles)
    whole = log_weight.logsumexp(0) - math.log(num_particles)
    left_out = [
        torch.cat([log_weight[:k], log_weight[k + 1 :]]).logsumexp(0) for k in range(num_particles)
    ]
    mean = torch.stack(left_out).mean(0) - math.log(num_particles - 1)
    found = streamed(log_weight).jackknife_bias()
    torch.testing.assert_close(found, (num_particles - 1) * (mean - whole), rtol=1e-6, atol=2e-7)


def test_one_draw_has_no_spread_and_no_bias_that_could_be_told() -> None:
    stream = streamed(torch.zeros(1, 2))
    assert torch.equal(stream.log_px(), torch.zeros(2))
    assert stream.se().isnan().all()
    assert stream.interval().isnan().all()
    assert stream.jackknife_bias().isnan().all()


@pytest.mark.parametrize("num_particles", [k for k in KS if k >= LEAST_FOR_PSIS])
def test_smoothing_is_that_of_arviz_on_all_draws(num_particles: int) -> None:
    """From the largest weights alone."""
    log_weight = weights(num_particles)
    smooth, khat = array_stats.psislw(-log_weight.T.numpy())
    lowest = log_weight.argmin(0)
    unsmoothed = log_weight[lowest, torch.arange(6)] - torch.from_numpy(
        smooth[np.arange(6), lowest]
    )
    expected = (torch.from_numpy(smooth).T + unsmoothed).logsumexp(0) - math.log(num_particles)
    found = streamed(log_weight).smoothed()
    torch.testing.assert_close(found.log_px, expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.khat.numpy(), khat, rtol=1e-9, atol=1e-10)
    assert bool(((found.interval[0] < found.log_px) & (found.log_px < found.interval[1])).all())


def test_too_few_draws_have_no_khat() -> None:
    found = streamed(weights(LEAST_FOR_PSIS - 1)).smoothed()
    assert found.khat.isnan().all()
    assert found.log_px.isnan().all()


def test_constant_weights_have_the_lightest_tail() -> None:
    found = streamed(torch.full((100, 2), -7.0))
    assert (found.smoothed().khat == -math.inf).all()
    torch.testing.assert_close(found.interval(), torch.full((2, 2), -7.0))
    torch.testing.assert_close(found.jackknife_bias(), torch.zeros(2), rtol=0, atol=2e-7)


def test_a_stream_that_ends_early_has_the_tail_of_what_it_has_seen() -> None:
    log_weight = weights(400)
    stream = WeightStream(6, torch.device("cpu"), most=100_000)
    for part in chunked(log_weight):
        stream.add(part)
    assert tail_length(100_000) > 400
    torch.testing.assert_close(
        stream.smoothed().khat, streamed(log_weight).smoothed().khat, rtol=0, atol=0
    )


def test_weights_of_zero_are_counted() -> None:
    log_weight = torch.tensor(
        [[-math.inf, -math.inf], [0.0, -math.inf], [-math.inf, -math.inf], [0.0, -math.inf]]
    )
    stream = WeightStream(2, torch.device("cpu"), 4)
    for row in log_weight:
        stream.add(row[None])
    assert stream.log_px()[0] == pytest.approx(math.log(0.5))
    assert stream.log_px()[1] == -math.inf


@pytest.mark.parametrize(
    ("tail_index", "least"), [(-0.5, 0.94), (0.2, 0.935), (0.4, 0.9), (0.55, 0.87)]
)
def test_intervals_cover(tail_index: float, least: float) -> None:
    """4,000 trials of K = 1,000 weights of p = N(0, 1), q = N(0, 1 − k): REFERENCES, item 9.

    By the plain delta method the last two cover 0.91 and 0.87 to 0.88.
    """
    torch.manual_seed(3)
    z = torch.randn(1000, 4000) * math.sqrt(1 - tail_index)
    log_weight = 0.5 * z**2 * (1 / (1 - tail_index) - 1) + 0.5 * math.log(1 - tail_index)
    stream = streamed(log_weight)
    low, high = stream.interval()
    covered = ((low < 0) & (high > 0)).double().mean().item()
    plain = (stream.log_px().abs() < 1.96 * stream.se()).double().mean().item()
    assert least < covered < 0.97
    assert covered > plain - 0.003


def test_the_interval_is_symmetric_where_weights_are() -> None:
    """Without skewness: log(1 ± 1.96 se)."""
    mean, variance = 1.0, 0.04
    sums = 100 * torch.tensor([mean, mean**2 + variance, mean**3 + 3 * mean * variance])[:, None]
    se = math.sqrt(variance * 100 / 99 / 100)
    expected = torch.tensor([math.log(1 - 1.959964 * se), math.log(1 + 1.959964 * se)])
    torch.testing.assert_close(skewed_interval(sums, 100)[:, 0], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("num_particles", [1, 7, 30, 1000])
def test_the_curve_is_of_all_whole_groups(num_particles: int) -> None:
    log_weight = weights(num_particles)
    curve = CurveStream(6, torch.device("cpu"), curve_sizes(num_particles))
    for part in chunked(log_weight):
        curve.add(part)
    found = curve.result()
    assert list(found) == curve_sizes(num_particles)
    for size, (mean, square) in found.items():
        groups = log_weight[: num_particles // size * size].reshape(-1, size, 6).logsumexp(
            1
        ) - math.log(size)
        torch.testing.assert_close(mean, groups.mean(0), rtol=1e-12, atol=1e-10)
        if len(groups) > 1:
            torch.testing.assert_close(square, groups.var(0) / len(groups), rtol=1e-7, atol=1e-10)
        else:
            assert square.isnan().all()


def test_sizes_of_the_curve() -> None:
    assert curve_sizes(1) == [1]
    assert curve_sizes(60) == [1, 2, 5, 10, 20, 50, 60]
    assert curve_sizes(1000)[-3:] == [200, 500, 1000]
