"""Held-out log p(x) as ELPD data: `arviz.compare` ranks it as formulas by hand do."""

import math
from dataclasses import replace

import arviz
import numpy as np
import pytest
import torch
from torch import Tensor

from pyroae import exact_log_likelihood, quadrature, to_elpd, zoo
from pyroae.config import AISSettings
from pyroae.errors import ConfigError, DataError
from pyroae.evaluation.annealing.bounds import ais
from pyroae.evaluation.importance.likelihood import LikelihoodEstimate, log_likelihood


def sample(num_data: int = 120) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(num_data, 4)


def exact_estimate(latent: int, x: Tensor) -> LikelihoodEstimate:
    """Of pPCA with its exact posterior: weights are constant, and the estimate has no error."""
    torch.manual_seed(latent)
    system = zoo.ppca(4, latent, exact=True)
    return log_likelihood(system.model, system.guide, x, num_particles=100, seed=0)


def test_compare_ranks_by_held_out_likelihood() -> None:
    """Σ Δ and √(N Var Δ) of paired differences, with the variance's factor 1/N."""
    x = sample()
    entries = {"one": exact_estimate(1, x), "two": exact_estimate(2, x)}
    table = arviz.compare({n: to_elpd(e) for n, e in entries.items()}, round_to="none")
    totals = {name: estimate.log_px.sum().item() for name, estimate in entries.items()}
    assert table.index.tolist() == sorted(totals, key=lambda name: -totals[name])
    best, worst = table.index
    gaps = (entries[worst].log_px - entries[best].log_px).numpy()
    assert table.elpd_diff[worst] == pytest.approx(gaps.sum(), abs=1e-9)
    centred = gaps - gaps.sum() / 120
    assert table.dse[worst] == pytest.approx(math.sqrt((centred**2).sum()), rel=1e-9)
    assert table.dse[worst] > 1e-3
    for name, estimate in entries.items():
        assert table.elpd[name] == pytest.approx(-120 * estimate.nll, abs=1e-9)
        ours = 120 * estimate.nll_se * math.sqrt(119 / 120)  # `nll_se` has the factor 1/(N − 1)
        assert table.se[name] == pytest.approx(ours, rel=1e-9)
    assert (table.diag_elpd == "").all()


def test_the_ranking_does_not_depend_on_the_order() -> None:
    low, high = torch.linspace(-4.0, -2.0, 150), torch.linspace(-3.0, -1.0, 150)
    for names in (("low", "high"), ("high", "low")):
        models = {"low": to_elpd(low), "high": to_elpd(high)}
        table = arviz.compare({name: models[name] for name in names})
        assert table.index.tolist() == ["high", "low"]


def test_a_likelihood_estimate_brings_its_khat() -> None:
    estimate = exact_estimate(2, sample())
    found = to_elpd(estimate)
    assert not found.warning
    assert found.n_samples == 100
    assert found.n_data_points == 120
    assert found.good_k == pytest.approx(1 - 1 / math.log10(100))
    assert math.isnan(found.p)
    np.testing.assert_array_equal(found.elpd_i, estimate.log_px)
    assert found.elpd_i.dims == ("datum",)


def test_compare_counts_the_unreliable_data() -> None:
    """A k̂ above the limit; one that is nan, as where weights underflow; a low ESS."""
    estimate = exact_estimate(2, sample())
    khat, ess = torch.full((120,), 0.25).double(), torch.full((120,), 50.0).double()
    khat[3], khat[5], ess[7] = 0.9, math.nan, 9.0
    wrong = replace(estimate, ess=ess, smoothed=replace(estimate.smoothed, khat=khat))
    assert wrong.unreliable.tolist() == [3, 5, 7]
    found = to_elpd(wrong)
    assert found.warning
    assert found.pareto_k.values[[2, 3, 5, 7]].tolist() == [0.25, 0.9, np.inf, np.inf]
    table = arviz.compare({"wrong": found, "right": to_elpd(estimate)})
    assert table.diag_elpd["wrong"] == "3 k̂ > 0.50"
    assert table.diag_elpd["right"] == ""


def test_weights_that_differ_by_rounding_are_not_counted() -> None:
    """Their k̂ is that of the rounding: nan, or above the limit, of reliable data."""
    estimate = exact_estimate(2, sample())
    assert estimate.smoothed.khat.isnan().any()
    assert not len(estimate.unreliable)
    assert (to_elpd(estimate).pareto_k < to_elpd(estimate).good_k).all()


def test_too_few_particles_for_khat_are_unreliable() -> None:
    torch.manual_seed(1)
    system = zoo.ppca(4, 2)
    found = to_elpd(log_likelihood(system.model, system.guide, sample(), num_particles=5, seed=0))
    assert found.warning
    assert np.isposinf(found.pareto_k).all()


def test_data_that_needed_fewer_draws_have_another_limit() -> None:
    """The k̂ of datum 0 is above the limit for its K of 100, but below that for 1000."""
    estimate = exact_estimate(2, sample())
    draws, khat = torch.full((120,), 1000), torch.full((120,), 0.6).double()
    draws[0] = 100
    mixed = replace(
        estimate, draws=draws, ess=draws / 2.0, smoothed=replace(estimate.smoothed, khat=khat)
    )
    assert mixed.unreliable.tolist() == [0]
    found = to_elpd(mixed)
    assert (found.pareto_k > found.good_k).values.nonzero()[0].tolist() == [0]


def test_annealing_and_quadrature_have_no_khat() -> None:
    x = sample(3)
    torch.manual_seed(1)
    system = zoo.ppca(4, 1)
    annealed = ais(
        system.model, None, x, settings=AISSettings(num_chains=6, num_distributions=20), seed=0
    )
    grid = quadrature(system.model, system.guide, x)
    for estimate, draws, reliable in (
        (annealed, 6, not len(annealed.unreliable)),
        (grid, 0, True),
        (replace(grid, converged=torch.tensor([True, False, True])), 0, False),
    ):
        found = to_elpd(estimate)
        assert (found.pareto_k, found.good_k, found.n_samples) == (None, None, draws)
        assert found.warning is not reliable
    exact = to_elpd(exact_log_likelihood(system, x))
    assert to_elpd(grid).elpd == pytest.approx(exact.elpd, abs=1e-4)


def test_a_tensor_with_its_khat() -> None:
    found = to_elpd(torch.tensor([-1.0, -2.0]), khat=torch.tensor([0.1, 0.8]), num_particles=50)
    assert (found.good_k, found.warning, found.n_samples) == (0.7, True, 50)
    assert not to_elpd(torch.tensor([-1.0, -2.0])).warning


def test_likelihoods_that_underflow_are_ranked_by_another_method() -> None:
    """Below −745 nats exp(log p(x)) is 0, and the weights of stacking are nan."""
    models = {"low": to_elpd(torch.linspace(-904.0, -902.0, 150))}
    models["high"] = to_elpd(torch.linspace(-903.0, -901.0, 150))
    with pytest.warns(RuntimeWarning, match="divide"):
        arviz.compare(models)
    table = arviz.compare(models, method="BB-pseudo-BMA")
    assert table.index.tolist() == ["high", "low"]
    assert table.weight["high"] == 1


def test_refusals() -> None:
    values = torch.tensor([-1.0, -2.0])
    for wrong, message in (
        (values[:1], r"two data or more, a tensor \[N\], not of shape \[1\]"),
        (values[None], r"not of shape \[1, 2\]"),
        (torch.tensor([-1.0, math.nan]), r"log p\(x\) of datum 1 is nan"),
        ([-1.0, -2.0], "not of a list"),
    ):
        with pytest.raises(DataError, match=message):
            to_elpd(wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"there are 2 data, but k̂ is of shape \[3\]"):
        to_elpd(values, khat=torch.zeros(3))
    with pytest.raises(ConfigError, match="an estimate has its own"):
        to_elpd(exact_estimate(1, sample()), khat=torch.zeros(120))
