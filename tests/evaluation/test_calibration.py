"""Calibration of posteriors on simulated data: closed forms of the p-values, levels of the tests,
verdicts on exact and on broken posteriors, and what is refused.
"""

from collections.abc import Callable
from itertools import product

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from scipy import stats
from torch import Tensor

from pyroae import (
    Calibration,
    CalibrationSettings,
    TraceELBO,
    TrainConfig,
    calibration_to_datatree,
    fit,
    measure_calibration,
    plots,
    zoo,
)
from pyroae.errors import ConfigError, DataError, ProgramError, UndefinedLikelihoodError
from pyroae.evaluation.calibration.ranks import DENSITIES, normalized, p_values
from pyroae.evaluation.calibration.results import CALIBRATED, judged
from pyroae.evaluation.calibration.uniformity import (
    coverage,
    dispersion_test,
    holm,
    symmetry_test,
    uniformity_test,
)

SMALL = CalibrationSettings(num_simulations=200, num_draws=400, seed=1)
WEIGHTED = CalibrationSettings("importance", num_simulations=200, num_draws=400, seed=1)
Guide = Callable[[Tensor], None]


def verdicts(found: Calibration) -> dict[str, str]:
    return {quantity.name: quantity.verdict for quantity in found.quantities}


# z ~ N(0, 1), x ~ N(z, 1): the posterior is N(x/2, 1/2).


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide_of(variance: float, shift: float = 0.0) -> Guide:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + shift, variance**0.5))

    return guide


X = torch.zeros(1)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_p_values_follow_the_closed_form(ratio: float) -> None:
    """Pr(p ≤ u) = Φ(√v/s Φ⁻¹(u)) for q = N(μ, v) and the posterior N(μ, s²) (Yao 2018): 200
    repetitions, level .01. Uniformity is rejected where v ≠ s² by a factor of two or more.
    """
    settings = CalibrationSettings(num_simulations=200, num_draws=1000)
    found = measure_calibration(model, guide_of(ratio / 2), X, settings=settings)
    p = found.p_values[:, 0].numpy()

    def law(root: float) -> float:
        return stats.kstest(p, lambda u: stats.norm.cdf(root * stats.norm.ppf(u))).pvalue

    assert law(ratio**0.5) > 0.01
    of_z = found.quantities[0]
    assert of_z.spread.low < ratio**-0.5 < of_z.spread.high
    if ratio == 1:
        assert found.is_calibrated
        assert uniformity_test(p) > 0.01
        return
    assert law(ratio**-0.5) < 1e-3  # the closed form with v and s² exchanged
    assert of_z.verdict == ("too narrow" if ratio < 1 else "too wide")
    assert not found.is_calibrated
    assert of_z.coverage[1].high < 0.8 if ratio < 1 else of_z.coverage[1].low > 0.8


@pytest.mark.parametrize(("shift", "word"), [(0.3, "shifted high"), (-0.3, "shifted low")])
def test_a_shifted_posterior_is_called_shifted(shift: float, word: str) -> None:
    found = measure_calibration(model, guide_of(0.5, shift), X, settings=SMALL)
    assert found.quantities[0].verdict == word
    assert found.quantities[0].shift.low < -shift / 0.5**0.5 < found.quantities[0].shift.high
    assert word in found.verdict
    assert found.verdict.startswith("not calibrated")


def test_the_exact_posterior_of_ppca_is_calibrated() -> None:
    system = zoo.ppca(4, latent=2, exact=True)
    found = measure_calibration(system.model, system.guide, torch.zeros(3, 4), settings=SMALL)
    assert found.is_calibrated
    assert found.verdict.startswith(CALIBRATED)
    assert list(verdicts(found)) == ["z[0]", "z[1]", *DENSITIES]
    assert found.ranks.min() >= 0
    assert found.ranks.max() <= 400
    for quantity in found.quantities:
        for probability, covered in zip((0.5, 0.8, 0.95), quantity.coverage, strict=True):
            assert (
                abs(covered.value - probability)
                < 4 * (probability * (1 - probability) / 200) ** 0.5
            )


def test_false_alarms_are_as_frequent_as_the_level() -> None:
    """100 groups of 100 simulations: single tests at their level, verdicts at most at theirs."""
    system = zoo.ppca(3, latent=1, exact=True)
    settings = CalibrationSettings(num_simulations=10_000, num_draws=40)
    found = measure_calibration(system.model, system.guide, torch.zeros(1, 3), settings=settings)
    names = [quantity.name for quantity in found.quantities]
    groups = [judged(names, p, settings) for p in found.p_values.split(100)]
    single = np.array([[list(vars(q.tests).values()) for q in group] for group in groups])
    rates = (single < 0.05).mean((0, 1))  # of 400 tests each
    assert ((rates > 0.015) & (rates < 0.09)).all(), rates
    alarms = sum(any(q.verdict != CALIBRATED for q in group) for group in groups)
    assert alarms <= 12  # Pr(more) < .002 at the level .05


def test_weights_correct_a_guide_that_is_too_wide() -> None:
    found = measure_calibration(model, guide_of(1.0), X, settings=WEIGHTED)
    assert found.is_calibrated
    assert found.ess.max() < 400
    assert found.num_unreliable == 0
    forgotten = measure_calibration(model, guide_of(1.0), X, settings=SMALL)
    assert forgotten.quantities[0].verdict == "too wide"


def test_few_effective_draws_are_counted_and_too_narrow() -> None:
    settings = CalibrationSettings("importance", num_simulations=200, num_draws=20)
    found = measure_calibration(model, guide_of(0.05, 0.5), X, settings=settings)
    assert found.num_unreliable > 50
    assert not found.is_calibrated


def test_a_guide_that_ignores_the_data_is_caught_by_the_likelihood_alone() -> None:
    """The prior as q has uniform ranks of z on average over p(x) (Modrák et al. 2023)."""

    def almost_prior(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(1e-6 * x, 1.0))

    found = verdicts(measure_calibration(model, almost_prior, X, settings=SMALL))
    assert found["z"] == CALIBRATED
    assert found["log p(z)"] == CALIBRATED
    assert found["log p(x|z)"].startswith("draws too improbable")


# Discrete latents: ties.


def coin(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(y, 1.0), obs=x)


def coin_guide(x: Tensor) -> None:
    odds = 3 / 7 * (x - 0.5).exp()
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(odds / (1 + odds)))


def test_ties_of_discrete_latents_are_broken_at_random() -> None:
    assert measure_calibration(coin, coin_guide, X, settings=SMALL).is_calibrated

    def confident(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli((0.5 + (x > 0.5).float() - 0.5).clamp(0.02, 0.98)))

    found = measure_calibration(coin, confident, X, settings=SMALL)
    assert not found.is_calibrated
    truth, draws = (
        torch.bernoulli(torch.full((200,), 0.3)),
        torch.bernoulli(torch.full((400, 200), 0.3)),
    )
    assert uniformity_test(p_values(truth, draws, torch.rand(200)).numpy()) > 0.01
    strict = (draws < truth).double().mean(0).numpy()
    assert uniformity_test(strict) < 1e-6
    assert uniformity_test((draws <= truth).double().mean(0).numpy()) < 1e-6


# Programs.


def test_a_program_with_a_gamma_latent() -> None:
    def gamma(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample(
                "x", dist.Poisson(rate[..., None].expand(*rate.shape, 3)).to_event(1), obs=x
            )

    def exact(x: Tensor, factor: float = 1.0) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(factor * (2 + x.sum(-1)), torch.tensor(4.0 * factor)))

    x = torch.zeros(1, 3)
    assert measure_calibration(gamma, exact, x, settings=SMALL).is_calibrated
    found = measure_calibration(gamma, lambda x: exact(x, 3.0), x, settings=SMALL)
    assert "too narrow" in verdicts(found)["rate"]


def test_nested_plates_columns_and_masks() -> None:
    """One z per element of a nested plate; x in columns of an argument; some data masked."""

    def nested(x: Tensor, scale: Tensor, mask: Tensor) -> None:
        data = pyro.plate("data", len(x), dim=-2)
        with data, poutine.mask(mask=mask[:, None]), pyro.plate("item", 2, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale[:, None]), obs=x[:, 1:])

    def exact(x: Tensor, scale: Tensor, mask: Tensor) -> None:
        variance = scale[:, None].square()
        data = pyro.plate("data", len(x), dim=-2)
        with data, poutine.mask(mask=mask[:, None]), pyro.plate("item", 2, dim=-1):
            law = dist.Normal(x[:, 1:] / (1 + variance), (variance / (1 + variance)).sqrt())
            pyro.sample("z", law)

    args = (
        torch.zeros(4, 3),
        torch.tensor([0.5, 1.0, 2.0, 1.0]),
        torch.tensor([1, 1, 1, 0]).bool(),
    )
    found = measure_calibration(nested, exact, args, settings=SMALL)
    assert found.is_calibrated
    assert list(verdicts(found)) == ["z[0]", "z[1]", *DENSITIES]
    assert [q.num_simulations for q in found.quantities[:2]] == [150, 150]  # covariates in turn
    args = (args[0], args[1], torch.zeros(4).bool())
    found = measure_calibration(nested, exact, args, settings=SMALL)
    assert not found.is_calibrated
    assert "too few simulations" in found.verdict


def test_a_discrete_latent_that_is_summed_out() -> None:
    def mixture(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + 3 * y, 1.0), obs=x)

    def exact(x: Tensor) -> None:
        logits = torch.stack(
            [dist.Normal(m, 2**0.5).log_prob(x) + p.log() for m, p in ((0.0, P[0]), (3.0, P[1]))],
            -1,
        )
        parts = dist.Normal(torch.stack([x / 2, (x - 3) / 2], -1), 0.5**0.5)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(logits=logits), parts))

    P = torch.tensor([0.7, 0.3])
    assert measure_calibration(mixture, exact, X, settings=SMALL).is_calibrated


def hierarchical(x: Tensor) -> None:
    t = pyro.sample("t", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(t, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def hierarchical_guide(factor: float) -> Guide:
    def guide(x: Tensor) -> None:
        variance = 1 / (1 + len(x) / 2)
        t = pyro.sample("t", dist.Normal(variance * x.sum() / 2, factor * variance**0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + t) / 2, 0.5**0.5))

    return guide


def test_latents_outside_the_plate_have_a_repetition_per_data_set() -> None:
    settings = CalibrationSettings(num_simulations=150, num_draws=200)
    found = measure_calibration(
        hierarchical, hierarchical_guide(1.0), torch.zeros(5), settings=settings
    )
    assert found.is_calibrated
    assert found.p_values.shape == (150, 5)
    found = measure_calibration(
        hierarchical, hierarchical_guide(0.5), torch.zeros(5), settings=settings
    )
    assert verdicts(found)["t"] == "too narrow"


def test_a_program_without_a_plate() -> None:
    def whole(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def exact(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))

    settings = CalibrationSettings(num_simulations=100, num_draws=100)
    found = measure_calibration(whole, exact, torch.zeros(2), settings=settings)
    assert found.is_calibrated
    assert list(verdicts(found))[:2] == ["z[0]", "z[1]"]


def test_systems_with_classes_conditions_and_missing_values() -> None:
    """Weights correct guides that are not trained; missing values stay missing for the guide."""
    c = torch.eye(3)[torch.arange(6) % 3]
    x = torch.zeros(6, 4)
    x[::2, 1] = torch.nan
    m2 = zoo.m2(4, 2, condition=3)
    found = measure_calibration(m2.model, m2.guide, (x.nan_to_num(), 0 * c), settings=WEIGHTED)
    assert found.is_calibrated
    assert list(verdicts(found))[:3] == ["y[0]", "y[1]", "y[2]"]
    with pytest.raises(ProgramError, match="'label' is a factor: no x can be drawn"):
        measure_calibration(m2.model, m2.guide, (x.nan_to_num(), c), settings=WEIGHTED)
    conditional = zoo.conditional_vae(4, 2, condition=3)
    args = (x.nan_to_num(), c)
    assert measure_calibration(
        conditional.model, conditional.guide, args, settings=WEIGHTED
    ).is_calibrated
    missing = zoo.vae(4, 2, missing=True)
    seen: list[Tensor] = []

    def watched(x: Tensor) -> None:
        seen.append(x)
        missing.guide(x)

    assert measure_calibration(missing.model, watched, x, settings=WEIGHTED).is_calibrated
    assert all(
        bool(part[:, 1].isnan().any()) and not part[:, 0].isnan().any() for part in seen[-2:]
    )


@pytest.mark.slow
def test_a_trained_vae_is_less_calibrated_than_with_weights() -> None:
    torch.manual_seed(0)
    z = torch.randn(400, 2)
    x = (torch.rand(400, 8) < torch.sigmoid(2 * torch.tanh(z @ torch.randn(2, 8)))).float()
    vae = zoo.vae(8, latent=2)
    fit(vae, x, TraceELBO(), TrainConfig(epochs=8, batch_size=50, lr=1e-2, seed=0))
    guide = measure_calibration(
        vae.model, vae.guide, x, settings=CalibrationSettings(num_draws=300)
    )
    weighted = measure_calibration(
        vae.model, vae.guide, x, settings=CalibrationSettings("importance", num_draws=1000)
    )
    assert weighted.is_calibrated
    tests = [
        min(min(vars(q.tests).values()) for q in found.quantities) for found in (guide, weighted)
    ]
    assert tests[0] < tests[1]


# Tests of p-values.


def test_the_symmetry_test_is_exact() -> None:
    """Over all signs of 8 values, at most the share α of samples has a p-value of α or less, and
    each p-value is that share.
    """
    sizes = np.linspace(0.05, 0.45, 8)
    found = np.array([symmetry_test(0.5 + sizes * s) for s in product((-1, 1), repeat=8)])
    for value in np.unique(found):
        assert (found <= value + 1e-12).mean() == pytest.approx(value)
    assert len(np.unique(found)) > 4


def test_tests_of_uniform_values_and_of_others() -> None:
    generator = np.random.default_rng(0)
    many = generator.uniform(size=(400, 100))
    for test in (symmetry_test, dispersion_test, uniformity_test):
        assert 0.02 < np.mean([test(p) < 0.05 for p in many]) < 0.085
    wide = stats.norm.cdf(0.7 * generator.normal(size=200))
    assert dispersion_test(wide) < 1e-6
    assert symmetry_test(wide) > 0.01
    high = stats.norm.cdf(0.5 + generator.normal(size=200))
    assert symmetry_test(high) < 1e-4
    assert dispersion_test(high) > 0.01


def test_adjusted_p_values_and_coverage() -> None:
    np.testing.assert_allclose(holm([0.01, np.nan, 0.02, 0.5]), [0.03, np.nan, 0.04, 0.5])
    share, low, high = coverage(np.linspace(0.0005, 0.9995, 1000), 0.8)
    assert share == pytest.approx(0.8)
    assert low < 0.8 < high


def test_equal_weights_are_no_weights() -> None:
    truth, draws, u = torch.randn(5), torch.randn(30, 5), torch.rand(5)
    equal = torch.full((30, 5), 1 / 30)
    torch.testing.assert_close(p_values(truth, draws, u), p_values(truth, draws, u, equal).double())
    with pytest.raises(DataError, match="weights of 1 simulated data are all zero"):
        normalized(torch.tensor([[0.0, -torch.inf], [0.0, -torch.inf]]))


# Results.


def test_the_seed_decides_and_the_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, other = (measure_calibration(model, guide_of(0.5), X, settings=SMALL) for _ in range(2))
    assert torch.equal(one.p_values, other.p_values)
    assert torch.equal(state, torch.get_rng_state())
    settings = CalibrationSettings(num_simulations=200, num_draws=400, seed=2)
    again = measure_calibration(model, guide_of(0.5), X, settings=settings)
    assert not torch.equal(one.p_values, again.p_values)


def test_a_datatree_and_figures() -> None:
    from arviz_plots import plot_ecdf_pit
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    found = measure_calibration(model, guide_of(0.2), X, settings=SMALL)
    tree = calibration_to_datatree(found)["calibration"]
    np.testing.assert_array_equal(tree["p_value"], found.p_values)
    np.testing.assert_array_equal(tree["rank"], found.ranks)
    assert tree["spread"].sel(quantity="z") == found.quantities[0].spread.value
    assert tree["coverage"].sel(quantity="z", probability=0.8) < 0.8
    assert tree.attrs["num_draws"] == 400
    assert str(tree.to_dataset()["verdict"].values[0]) == "too narrow"
    plot_ecdf_pit(
        tree.root,
        group="calibration",
        var_names="p_value",
        sample_dims=["simulation"],
        backend="none",
    )
    figure = plots.calibration_summary(found)
    assert [axes.get_title() for axes in figure.axes][1:] == ["Shift and spread", "Coverage"]
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert "z" in [text.get_text() for text in legend.get_texts()]
    whole = Figure()
    assert plots.calibration_histograms(found, 2, ax=whole.subplots(1, 2)) is whole
    heights = [bar.get_height() for bar in whole.axes[0].patches if isinstance(bar, Rectangle)]
    assert sum(heights) == 200
    assert heights[0] + heights[-1] > 0.2 * 200


# Refusals.


def test_flat_priors_and_points_are_refused() -> None:
    x = torch.zeros(2, 4)
    flat = zoo.autoencoder(4, latent=2)
    with pytest.raises(
        UndefinedLikelihoodError, match="the prior of 'z' is flat and has no draws; c"
    ):
        measure_calibration(flat.model, flat.guide, x)
    point = zoo.sparse_autoencoder(4, latent=2)
    with pytest.raises(UndefinedLikelihoodError, match="'z' is a Delta: a point is no posterior"):
        measure_calibration(point.model, point.guide, x)


def fitted(x: Tensor) -> None:
    t = pyro.sample("t", dist.Normal(torch.tensor(0.1), 0.3))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x + t) / 2, 0.5**0.5))


def test_guides_that_are_not_amortized_are_refused() -> None:
    automatic = AutoNormal(model)
    automatic(torch.zeros(5))
    with pytest.raises(ProgramError, match="a guide that takes any data, and with 1 of them: site"):
        measure_calibration(model, automatic, torch.zeros(5), settings=SMALL)
    with pytest.raises(ProgramError, match="'t' lies outside the data plate and has the same"):
        measure_calibration(hierarchical, fitted, torch.zeros(5), settings=SMALL)

    def blind(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ProgramError, match="'z' has the same distribution for any data"):
        measure_calibration(model, blind, X, settings=SMALL)
    assert measure_calibration(model, blind, X, settings=WEIGHTED).p_values.shape == (200, 4)


def test_models_and_guides_that_cannot_be_simulated_are_refused() -> None:
    def chain(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x0", dist.Normal(z, 1.0), obs=x[:, 0])
            pyro.sample("x1", dist.Normal(z + x[:, 0], 1.0), obs=x[:, 1])

    def of_chain(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 1.0))

    with pytest.raises(ProgramError, match="density of the site 'x1' depends on observed values"):
        measure_calibration(chain, of_chain, torch.zeros(2, 2), settings=SMALL)

    def with_factor(x: Tensor) -> None:
        guide_of(0.5)(x)
        pyro.factor("f", torch.ones(len(x)), has_rsample=False)

    with pytest.raises(ProgramError, match="factor or observed site 'f', which its draws do not"):
        measure_calibration(model, with_factor, X, settings=SMALL)

    def transformed(x: Tensor) -> None:
        model(x**2 + 1)

    with pytest.raises(ConfigError, match="site 'x', but its observed value is none of the arg"):
        measure_calibration(transformed, guide_of(0.5), torch.full((2,), 3.0), settings=SMALL)

    def scaled(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.scale(scale=0.5):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ProgramError, match="the site 'x' is scaled: draws"):
        measure_calibration(scaled, guide_of(0.5), X, settings=SMALL)


def test_settings_out_of_range_are_refused() -> None:
    for given, words in (
        ({"draws": "ais"}, "unknown draws 'ais'"),
        ({"num_simulations": 5}, "num_simulations must be at least 20, not 5"),
        ({"num_draws": 1}, "num_draws must be at least 10"),
        ({"level": 1.5}, "level must lie between 0 and 1, not 1.5"),
        ({"level": "x"}, "level takes float"),
    ):
        with pytest.raises(ConfigError, match=words):
            CalibrationSettings(**given)
