"""EUBO and CUBO: against closed forms and whole arrays, their intervals, and their flags."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae import linear_gaussian, zoo
from pyroae.commands.evaluate import per_datum
from pyroae.commands.evaluation_notes import notes_of
from pyroae.commands.evaluation_tables import results_table
from pyroae.config.evaluation import EvaluationSettings
from pyroae.evaluation.exact import exact_log_likelihood
from pyroae.evaluation.importance import above
from pyroae.evaluation.importance import sampler as sampling
from pyroae.evaluation.importance.above import UpperBound, UpperStream, cubo, eubo
from pyroae.evaluation.importance.likelihood import LikelihoodEstimate, log_likelihood
from pyroae.evaluation.summary import evaluate
from pyroae.programs.sites import Program
from tests.evaluation.importance.test_streams import chunked, weights
from tests.oracles import gaussian_divergences

pytestmark = pytest.mark.usefixtures("float64")
PUBLISHED = {"eubo": -1.496671, "cubo": -1.499377}
"""REFERENCES, items 3 of §4 and of §5."""


def toy(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def of_toy(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, math.sqrt(2 / 3)))


@pytest.fixture(scope="module")
def toy_estimate() -> LikelihoodEstimate:
    return log_likelihood(
        toy, of_toy, torch.ones(4000, dtype=torch.float64), num_particles=200, seed=3
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values_lie_within_intervals(name: str, toy_estimate: LikelihoodEstimate) -> None:
    """4,000 repetitions: 95 % of the intervals hold the value, and the mean less its bias is it."""
    bound, truth = getattr(toy_estimate, name), PUBLISHED[name]
    assert bound.num_flagged == 0
    assert bound.num_without_interval == 0
    low, high = bound.interval
    assert 0.935 < ((low < truth) & (truth < high)).double().mean() < 0.965
    corrected = bound.mean - bound.bias.mean().item()
    assert abs(corrected - truth) < 3 * bound.monte_carlo_se < 0.001
    assert bound.bias.mean() < 0
    assert bound.mean > -toy_estimate.nll + 10 * bound.monte_carlo_se  # the ELBO and log p̂ do not
    assert bound.mean_se == pytest.approx((bound.values.std() / math.sqrt(4000)).item())


def direct(log_weight: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Values and standard errors of both bounds, from all log-weights at once."""
    count, high = len(log_weight), log_weight.max(0).values
    w, log = (log_weight - high).exp(), (log_weight - high).clamp_min(-800)
    share = w / w.sum(0)
    mean = (share * log).sum(0)
    spread = (share.square() * (log - mean).square()).sum(0) * count / (count - 1)
    square = w.square()
    return {
        "eubo": (high + mean, spread.sqrt()),
        "cubo": (
            high + square.mean(0).log() / 2,
            square.std(0) / square.mean(0) / math.sqrt(count) / 2,
        ),
    }


def check_stream(log_weight: Tensor) -> None:
    stream = UpperStream(log_weight.shape[1], torch.device("cpu"))
    for part in chunked(log_weight):
        stream.add(part)
    ones = torch.ones(log_weight.shape[1])
    figures = (stream.sums, 0 * ones, 50 * ones, (len(log_weight) * ones).long())
    for name, bound in (("eubo", eubo(*figures)), ("cubo", cubo(*figures))):
        values, se = direct(log_weight)[name]
        torch.testing.assert_close(bound.values, values, rtol=0, atol=1e-10, msg=name)
        torch.testing.assert_close(bound.se, se, rtol=1e-6, atol=1e-12, msg=name)


@pytest.mark.parametrize("num_particles", [2, 30, 2000])
def test_streams_are_those_of_the_whole(num_particles: int) -> None:
    log_weight = weights(num_particles)
    check_stream(log_weight)
    check_stream(torch.cat([torch.full((90, 6), -math.inf), log_weight]))
    check_stream(log_weight.sort(0).values)  # each new weight is the largest


@pytest.mark.parametrize("broken", ["linear", "square"])
def test_a_stream_that_forgets_to_move_its_sums_is_caught(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums that are scaled, but whose logarithms stay relative to the former largest weight."""
    shifted = above._shifted

    def wrong(sums: Tensor, shift: Tensor) -> Tensor:
        right, at = shifted(sums, shift), 1 if broken == "linear" else 4
        right[at] = sums[at] * (shift.clamp_min(-1000) * (1 if at == 1 else 2)).exp()
        return right

    monkeypatch.setattr(above, "_shifted", wrong)
    with pytest.raises(AssertionError, match="eubo"):
        check_stream(weights(300).sort(0).values)


def shifted_posterior(system: Any, x: Tensor, inflation: float, shift: float) -> dict[str, Tensor]:
    loc, tril = linear_gaussian.posterior(x, *system.linear_gaussian())
    return {"loc": loc + shift, "scale_tril": math.sqrt(inflation) * tril}


def guide_of(system: Any, inflation: float, shift: float = 0.0) -> Program:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            q = dist.MultivariateNormal(**shifted_posterior(system, x, inflation, shift))
            pyro.sample("z", q)

    return guide


def closed_forms(system: Any, x: Tensor, inflation: float, shift: float) -> dict[str, Tensor]:
    p, q = (shifted_posterior(system, x, *at) for at in ((1.0, 0.0), (inflation, shift)))
    covariances = [each["scale_tril"] @ each["scale_tril"].mT for each in (q, p)]
    gaps = gaussian_divergences(q["loc"], covariances[0], p["loc"], covariances[1])
    log_px = exact_log_likelihood(system, x)
    return dict(zip(("eubo", "cubo"), (log_px + gap for gap in gaps), strict=True))


def test_the_closed_form_is_an_integral() -> None:
    """For N(.3, .8²) under N(0, 1), by the trapezoidal rule."""
    z = torch.linspace(-12, 12, 20_001)
    p, q = dist.Normal(0.3, 0.8), dist.Normal(0.0, 1.0)
    ratio = p.log_prob(z) - q.log_prob(z)
    kl = torch.trapezoid(p.log_prob(z).exp() * ratio, z)
    chi = torch.trapezoid(q.log_prob(z).exp() * (2 * ratio).exp(), z).log() / 2
    zero, one = torch.zeros(1), torch.eye(1)
    found = gaussian_divergences(zero, one, zero + 0.3, 0.64 * one)
    torch.testing.assert_close(torch.stack(found), torch.stack([kl, chi]))


def test_linear_gaussian_bounds_are_the_closed_forms() -> None:
    """pPCA under its posterior, 1.3 times as wide and moved: an error in σ has variance 1."""
    torch.manual_seed(0)
    system, x = zoo.ppca(6, latent=2).double(), torch.randn(400, 6)
    q = guide_of(system, 1.3, 0.1)
    found, truth = (
        log_likelihood(system.model, q, x, num_particles=2000, seed=0),
        closed_forms(system, x, 1.3, 0.1),
    )
    for name in ("eubo", "cubo"):
        bound = getattr(found, name)
        assert bound.num_flagged == 0
        z = (bound.values - bound.bias - truth[name]) / bound.se
        assert 0.8 < z.square().mean() < 1.2, name
        assert z.mean().abs() < 0.2, name
        assert (truth[name] - exact_log_likelihood(system, x)).mean() > 20 * bound.monte_carlo_se


TAILS = {
    -0.5: (0, 0, 0, 0),
    0.1: (0, 0, 0, None),
    0.375: (0, None, 0, 1),
    0.75: (None, 1, 1, 1),
    0.95: (1, 1, 1, 1),
}
"""By tail index, whether the EUBO is flagged and without an interval, and the CUBO likewise."""


@pytest.mark.parametrize("tail_index", TAILS)
def test_data_are_flagged_where_moments_do_not_exist(tail_index: float) -> None:
    """Zero-mean Gaussians: REFERENCES, item 9. None lies too near a limit for 10,000 draws."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), math.sqrt(1 - tail_index)))

    found = log_likelihood(model, guide, torch.zeros(40), num_particles=10_000, seed=0)
    of = [(b.flagged, b.interval.isnan().any(0)) for b in (found.eubo, found.cubo)]
    shares = [share.double().mean().item() for pair in of for share in pair]
    for share, expected in zip(shares, TAILS[tail_index], strict=True):
        assert expected is None or abs(share - expected) < 0.15, shares
    assert found.cubo.is_reported == (tail_index < 0.5)
    assert math.isnan(found.cubo.mean) == (tail_index > 0.5)


def test_verdicts_fail_closed() -> None:
    ones = torch.ones(5)
    nan, stream = math.nan, UpperStream(5, torch.device("cpu"))
    stream.add(torch.randn(1000, 5) / 10)
    khat = torch.tensor([0.1, nan, 0.5, 0.3, -math.inf])
    ess, draws = 900 * ones, (1000 * ones).long()
    of: Any = partial(cubo, stream.sums, draws=draws)
    assert of(khat, ess).flagged.tolist() == [False, True, True, False, False]
    assert of(khat, ess).interval[0].isnan().tolist() == [False, True, True, True, False]
    assert of(khat, ess * 0 + 5).flagged.all()
    assert of(khat, ess * nan).flagged.all()
    above_it: Any = partial(eubo, stream.sums, draws=draws)
    assert above_it(khat, ess).flagged.tolist() == [False, True, False, False, False]
    assert above_it(khat, ess).interval[0].isnan().tolist() == [False, True, True, False, False]
    assert above_it(khat + 0.6, ess).flagged.tolist() == [True, True, True, True, False]
    assert above_it(khat, ess * nan).flagged.all()


@pytest.mark.parametrize("num_particles", [1, 24])
def test_too_few_draws_have_no_bound(num_particles: int) -> None:
    found = log_likelihood(toy, of_toy, torch.ones(3), num_particles=num_particles, seed=0)
    for bound in (found.eubo, found.cubo):
        assert bound.flagged.all()
        assert bound.interval.isnan().all()
        assert bound.se.isnan().all() == (num_particles == 1)
        assert math.isnan(bound.mean)
        assert math.isnan(bound.mean_se)


def test_an_exact_posterior_has_no_gap() -> None:
    system, x = zoo.ppca(6, latent=2, exact=True).double(), torch.randn(5, 6)
    found = log_likelihood(system.model, system.guide, x, num_particles=25, seed=0)
    for bound in (found.eubo, found.cubo):
        assert bound.num_without_interval == 0
        torch.testing.assert_close(bound.values, exact_log_likelihood(system, x))
        assert bound.se.max() < 1e-6


def test_a_mean_says_how_many_are_flagged_and_no_more_than_half_may_be() -> None:
    one = torch.ones(4)
    flagged = torch.tensor([True, True, False, False])
    bound = UpperBound(2 * one, one, torch.stack([one, one]), 0 * one, flagged)
    assert (bound.mean, bound.num_flagged, bound.monte_carlo_se) == (2.0, 2, 0.5)
    ends = torch.stack([one, torch.tensor([1.0, 1.0, 1.0, math.nan])])
    assert math.isnan(replace(bound, interval=ends).monte_carlo_se)
    most = replace(bound, flagged=torch.tensor([True, True, True, False]))
    assert math.isnan(most.mean)


def test_another_proposal_replaces_both_bounds() -> None:
    torch.manual_seed(0)
    system, x = zoo.ppca(6, latent=2).double(), torch.randn(50, 6)
    narrow, wide = guide_of(system, 0.02), guide_of(system, 1.3)
    settings: Any = {"num_particles": 1000, "seed": 0}
    first = log_likelihood(system.model, narrow, x, **settings)
    assert first.cubo.num_flagged == 50
    found = log_likelihood(system.model, narrow, x, retry=wide, **settings)
    truth = closed_forms(system, x, 1.3, 0.0)
    for name in ("eubo", "cubo"):
        bound = getattr(found, name)
        assert bound.num_flagged == 0
        assert ((bound.values - truth[name]).abs() < 5 * bound.se).all()


def test_compiled_draws_give_the_same_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the graph itself: code of it is compared elsewhere."""
    monkeypatch.setattr(
        "pyroae.evaluation.importance.compiled.inductor", lambda graph, inputs, **settings: graph
    )
    monkeypatch.setattr(sampling, "rows_of", lambda args, compiled=False: 7 * 64)
    system, x = zoo.ppca(6, latent=2).double(), torch.randn(7, 6)
    settings: Any = {"num_particles": 4 * 64, "seed": 0}
    plain, compiled = (
        log_likelihood(system.model, system.guide, x, compile=which, **settings)
        for which in (False, True)
    )
    for name in ("eubo", "cubo"):
        one, other = getattr(plain, name), getattr(compiled, name)
        for of in (lambda b: b.values, lambda b: b.se, lambda b: b.interval, lambda b: b.bias):
            torch.testing.assert_close(of(other), of(one), rtol=1e-9, atol=1e-9, equal_nan=True)


def test_an_evaluation_has_them_as_upper_sides_of_log_px() -> None:
    torch.manual_seed(0)
    system, x = zoo.ppca(6, latent=2).double(), torch.randn(20, 6)
    found = evaluate((system.model, guide_of(system, 1.3)), x, EvaluationSettings(seed=0))
    nll, over, chi = (found.results[name].estimate for name in ("nll", "eubo", "cubo"))
    assert -nll < chi
    assert -nll < over
    bounds = found.sandwich()
    assert list(bounds)[-2:] == ["EUBO, upper", "CUBO, upper"]
    assert bounds["CUBO, upper"][0] == chi
    table = results_table(found.results.values())
    assert "log p(x) ≲ EUBO" in list(table.columns[0].cells)
    told = "\n".join(notes_of(found))
    assert "EUBO: an upper bound as K → ∞ only" in told
    assert "CUBO: an upper bound as K → ∞ only" in told
    assert "0 of 20 data flagged" in told
    columns = per_datum(found)
    assert columns["cubo_flagged"].dtype == torch.bool
    assert (columns["eubo_low"] < columns["eubo_high"]).all()
    assert columns["cubo"].mean().item() == pytest.approx(chi)


def test_a_mean_of_data_most_of_which_are_flagged_is_not_printed() -> None:
    torch.manual_seed(0)
    system, x = zoo.ppca(6, latent=2).double(), torch.randn(20, 6)
    found = evaluate((system.model, guide_of(system, 0.1)), x, EvaluationSettings(seed=0))
    assert "nll" in found.results
    assert not {"eubo", "cubo"} & set(found.results)
    assert not [name for name in found.sandwich() if "UBO" in name]
    assert "CUBO: no mean, with 20 of 20 data flagged" in "\n".join(notes_of(found))
