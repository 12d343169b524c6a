"""Rate and distortion along an annealing path: against closed forms, in blocks, on several
processes, compiled and resumed; broken copies are noticed.
"""

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyroae.config import AISSettings, EvaluationSettings
from pyroae.evaluation.annealing import bounds as ais_module
from pyroae.evaluation.annealing import checkpoint, chunks, hmc
from pyroae.evaluation.annealing.bounds import ais, bdmc
from pyroae.evaluation.annealing.chain_summaries import COLUMNS, summarize
from pyroae.evaluation.annealing.rate_distortion import RateDistortion
from pyroae.evaluation.summary import evaluate
from tests.evaluation.annealing.test_ais import TINY, ppca, scales
from tests.evaluation.annealing.test_annealing import Interruption, finished
from tests.oracles import ppca_rate_distortion
from tests.shares import played

pytestmark = pytest.mark.usefixtures("float64")


def curve_of(found: Any) -> RateDistortion:
    assert found.rate_distortion is not None
    return found.rate_distortion


def truth(system: Any, x: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
    """R and D in closed form, `[B, N]` each."""
    with torch.no_grad():
        weight, bias, scale = system.linear_gaussian()
        pairs = [ppca_rate_distortion(x, weight, bias, scale, b) for b in betas.tolist()]
    rates, distortions = zip(*pairs, strict=True)
    return torch.stack(rates), torch.stack(distortions)


def covered(interval: Tensor, exact: Tensor) -> Tensor:
    """The share of intervals that contain the exact value, `[B]`."""
    low, high = interval
    return ((low <= exact) & (exact <= high)).double().mean(1)


def repeated(num: int = 2000) -> tuple[RateDistortion, Tensor, Tensor]:
    """So many repetitions of one annealing, in one run, and the exact R and D."""
    system, x = ppca(copies=num)
    settings = AISSettings(num_chains=16, num_distributions=12, leapfrog_steps=2)
    curve = curve_of(ais(system.model, None, x, settings=settings, seed=1))
    return curve, *truth(system, x, curve.betas)


def wrong(curve: RateDistortion, rate: Tensor, distortion: Tensor) -> list[str]:
    """What is not as the closed form has it: means by more than three errors, or coverage."""
    found = []
    pairs = (
        ("rate", rate, curve.mean_rate, curve.mean_rate_error, curve.rate_interval),
        (
            "distortion",
            distortion,
            curve.mean_distortion,
            curve.mean_distortion_error,
            curve.distortion_interval,
        ),
    )
    for name, exact, mean, error, interval in pairs:
        if ((mean - exact[:, 0]).abs() > 3 * error + 1e-12).any():
            found.append(f"mean {name}")
        share = covered(interval, exact)[rate[:, 0] > 0.005]
        if not ((share > 0.91) & (share < 0.98)).all():
            found.append(f"{name} covered in {share.tolist()}")
    log_z = -(curve.mean_rate + curve.betas * curve.mean_distortion)
    exact = -(rate + curve.betas[:, None] * distortion)[:, 0]
    if ((log_z - exact).abs() > 3 * curve.curve_error + 1e-12).any():
        found.append("log Z")
    return found


def test_the_closed_form_of_ppca_lies_within_the_intervals() -> None:
    curve, rate, distortion = repeated()
    assert wrong(curve, rate, distortion) == []
    assert curve.mean_rate_error.max() < 0.02
    assert curve.mean_distortion_error.max() < 0.05
    assert rate[-1, 0] > 0.5
    assert (curve.rate[0] == 0).all()
    assert (curve.rate_interval[:, 0] == 0).all()
    # over repetitions of one datum the spread is the Monte-Carlo error alone
    ratio = curve.mean_distortion_se / (curve.distortion_se.square().mean(1) / 2000).sqrt()
    assert ((ratio - 1).abs() < 0.15).all()


def unweighted(log_weight: Tensor, log_lik: Tensor, beta: float) -> Tensor:
    """Weights enter log Z only."""
    equal = log_weight.logsumexp(0) - math.log(len(log_weight))
    return summarize(equal.expand_as(log_weight), log_lik, beta)


def of_another_sign(log_weight: Tensor, log_lik: Tensor, beta: float) -> Tensor:
    """R = −β D + log Z."""
    columns = summarize(log_weight, log_lik, beta).clone()
    log_z = log_weight.logsumexp(0) - math.log(len(log_weight))
    for name in ("rate", "rate_low", "rate_high"):
        columns[:, COLUMNS.index(name)] += 2 * log_z
    return columns


def of_the_wrong_temperature(log_weight: Tensor, log_lik: Tensor, beta: float) -> Tensor:
    """R with the square of β."""
    return summarize(log_weight, log_lik, beta**2)


@pytest.mark.parametrize("broken", [unweighted, of_another_sign, of_the_wrong_temperature])
def test_a_broken_copy_is_noticed(
    broken: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hmc, "summarize", broken)
    assert wrong(*repeated(1000)) != []


def test_at_the_posterior_the_sum_is_the_estimate_of_annealing() -> None:
    system, x = ppca()
    for settings in (AISSettings(5, 30, leapfrog_steps=2), AISSettings(4, 1)):
        found = ais(system.model, None, x, settings=settings, seed=0)
        curve = curve_of(found)
        total = curve.rate[-1] + curve.distortion[-1]
        torch.testing.assert_close(-total, found.log_px, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(curve.log_z_se[-1], found.se)
        torch.testing.assert_close(curve.ess[-1], found.ess)
        assert torch.equal(curve.betas, torch.tensor(settings.betas))


def test_one_step_is_importance_sampling_from_the_prior() -> None:
    """By hand: R̂ is then log C less the entropy of the weights."""
    system, x = ppca()
    found = ais(system.model, None, x, settings=AISSettings(6, 1), seed=0)
    curve, share = curve_of(found), found.log_weights.softmax(0)
    entropy = -(share * share.log()).sum(0)
    torch.testing.assert_close(curve.distortion[0], -found.log_weights.mean(0))
    torch.testing.assert_close(curve.distortion[1], -(share * found.log_weights).sum(0))
    torch.testing.assert_close(curve.rate[1], math.log(6) - entropy)


@pytest.mark.slow
def test_constrained_latents_in_nested_plates() -> None:
    """D_0 in closed form, and log Z_β = −∫ D dβ at every β."""
    x = torch.randn(1, 3).expand(400, 3).clone()
    settings = AISSettings(16, 40, leapfrog_steps=3)
    curve = curve_of(ais(scales, None, x, settings=settings, seed=0))
    prior = 1.5 * math.log(2 * math.pi * 0.25) + 2 * (x[0].square() + 3).sum()  # E z² = E s² = 3
    assert abs(curve.mean_distortion[0] - prior) < 3 * curve.mean_distortion_error[0]
    log_z = -(curve.mean_rate + curve.betas * curve.mean_distortion)
    integral = torch.cumulative_trapezoid(curve.mean_distortion, curve.betas)
    torch.testing.assert_close(log_z[1:], -integral, rtol=0.02, atol=0.02)
    assert (curve.mean_rate.diff() > 0).all()
    assert (curve.mean_distortion.diff() < 0).all()


def test_long_paths_keep_51_temperatures() -> None:
    system, x = ppca()
    settings = AISSettings(3, 120, leapfrog_steps=1)
    curve = curve_of(ais(system.model, None, x[:2], settings=settings, seed=0))
    assert curve.rate.shape == (51, 2)
    assert curve.betas[[0, 1, 25, 50]].tolist() == [settings.betas[i] for i in (0, 2, 60, 120)]
    assert (curve.betas.diff() > 0).all()


def test_a_path_from_the_guide_has_no_curve_and_a_single_chain_no_errors() -> None:
    system, x = ppca()
    from_guide = AISSettings(3, 4, "guide", leapfrog_steps=1)
    assert ais(system.model, system.guide, x, settings=from_guide, seed=0).rate_distortion is None
    alone = curve_of(ais(system.model, None, x, settings=AISSettings(1, 4, leapfrog_steps=1)))
    assert alone.rate.isfinite().all()
    assert alone.rate_se[1:].isnan().all()
    assert alone.distortion_interval.isnan().all()
    assert alone.unreliable.all()


def test_a_single_chain_with_all_the_weight_is_flagged() -> None:
    system, x = ppca()
    found = ais(system.model, None, 20 * x, settings=AISSettings(16, 1), seed=0)
    curve = curve_of(found)
    assert not curve.unreliable[0].any()
    assert curve.unreliable[1].tolist() == (found.ess < 2).tolist()
    assert curve.unreliable[1].sum() >= 3


def assert_same(one: RateDistortion, other: RateDistortion, tolerance: float = 0.0) -> None:
    for field in fields(RateDistortion):
        torch.testing.assert_close(
            getattr(one, field.name),
            getattr(other, field.name),
            rtol=tolerance,
            atol=tolerance,
            msg=field.name,
        )


def in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 2, 2 and 1."""
    monkeypatch.setattr(ais_module, "rows_of", lambda args: 6)
    monkeypatch.setattr(hmc, "WARM_UP", 5)


@pytest.mark.parametrize("function", [pytest.param(ais, marks=pytest.mark.slow), bdmc])
def test_an_interrupted_run_and_several_processes_have_the_same_curve(
    function: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_blocks(monkeypatch)
    monkeypatch.setattr(checkpoint, "SAVE_EVERY", 0.0)
    system, x = ppca()

    def run(**arguments: Any) -> RateDistortion:
        found = function(system.model, None, x, settings=TINY, seed=5, **arguments)
        return curve_of(found if function is ais else found.forward)

    whole = run()
    assert whole.rate.shape == (9, 5)
    assert (whole.rate_se[1:] > 0).all()
    for found in played(2, lambda share: run(share=share)):
        assert_same(whole, found)
    moments = [2, 14, *(torch.randperm(50)[:3] + 15).tolist()]
    Interruption(monkeypatch, moments)
    found, breaks = finished(lambda: run(checkpoint=tmp_path / "work.safetensors"))
    assert breaks == 5
    assert_same(whole, found)


def test_graphs_have_the_curve_of_eager_code(monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks(monkeypatch)
    monkeypatch.setattr(chunks, "inductor", lambda graph, inputs, same_draws, one_core: graph)
    system, x = ppca()
    run = [
        ais(system.model, None, x, settings=TINY, seed=5, compile=compile)
        for compile in (True, False)
    ]
    assert_same(curve_of(run[0]), curve_of(run[1]), 1e-9)


def test_the_results_of_an_evaluation_have_the_errors_of_the_chains() -> None:
    system, x = ppca()
    settings = EvaluationSettings(("ais",), annealing=TINY, seed=5)
    found = evaluate(system, x, settings)
    assert found.annealed is not None
    curve = curve_of(found.annealed)
    for name in ("rate", "distortion"):
        result = found.results[f"{name}_ais"]
        assert result.estimate == pytest.approx(getattr(curve, f"mean_{name}")[-1].item())
        error = getattr(curve, f"mean_{name}_error")[-1].item()
        assert result.monte_carlo_se == pytest.approx(error)
        assert result.monte_carlo_se > 0
        assert (result.method, result.num_particles) == (
            found.results["nll_ais"].method,
            TINY.num_chains,
        )
    total = found.results["rate_ais"].estimate + found.results["distortion_ais"].estimate
    assert total == pytest.approx(found.results["nll_ais"].estimate)
