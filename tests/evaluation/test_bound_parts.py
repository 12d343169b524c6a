"""The ELBO and its parts against closed forms, and one ELBO in one evaluation."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae import AISSettings, EvaluationSettings, evaluate, gaps, zoo
from pyroae.errors import DataError
from pyroae.evaluation.bound_parts import bound_parts
from pyroae.evaluation.inference_gaps.estimates import PerDatum

X = torch.linspace(-2.0, 2.0, 6, dtype=torch.float64)
SCALE = 0.5


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2 + 0.3, SCALE))


def closed_forms() -> dict[str, Tensor]:
    """z ~ N(0, 1), x ~ N(z, 1), q = N(x/2 + 0.3, 0.25)."""
    mean = X / 2 + 0.3
    rate = 0.5 * (SCALE**2 + mean.square() - 1) - math.log(SCALE)
    distortion = 0.5 * (math.log(2 * math.pi) + (X - mean).square() + SCALE**2)
    return {"rate": rate, "distortion": distortion, "nelbo": rate + distortion}


@pytest.mark.parametrize("count", [1_000, 4_001])
def test_the_parts_are_the_closed_forms_within_their_errors(count: int) -> None:
    """Data in one block, and in blocks of which each takes several chunks of draws."""
    parts = bound_parts(model, guide, X, num_particles=count, seed=0)
    for name, truth in closed_forms().items():
        found = parts[name]
        assert bool(((found.values - truth).abs() < 5 * found.se).all()), name
        assert bool((found.se < 3 / math.sqrt(count)).all()), name
    torch.testing.assert_close(
        parts["nelbo"].values, parts["rate"].values + parts["distortion"].values
    )


def test_the_errors_are_the_spread_over_seeds() -> None:
    several = [bound_parts(model, guide, X, num_particles=20, seed=seed) for seed in range(100)]
    for name in ("rate", "distortion", "nelbo"):
        spread = torch.stack([parts[name].values for parts in several]).std(0)
        error = torch.stack([parts[name].se for parts in several]).square().mean(0).sqrt()
        torch.testing.assert_close(error, spread, rtol=0.25, atol=0)
    mean = PerDatum(spread, spread).monte_carlo_se
    means = torch.tensor([parts["nelbo"].mean for parts in several])
    assert means.std().item() == pytest.approx(mean, rel=0.25)


def test_one_draw_has_no_error_and_a_datum_without_density_is_named() -> None:
    assert bool(bound_parts(model, guide, X, num_particles=1)["rate"].se.isnan().all())
    bad = torch.cat([X, X.new_tensor([math.nan])])
    with pyro.validation_enabled(False), pytest.raises(DataError, match="the bound of datum 6 is"):
        bound_parts(model, guide, bad, num_particles=2)


def test_an_evaluation_has_one_elbo() -> None:
    """The table, the sandwich and the gaps have the same, of the same draws."""
    system, x = zoo.ppca(5, latent=2), torch.randn(6, 5)
    settings = EvaluationSettings(("is", "gaps"), 60, annealing=AISSettings(2, 3))
    found = evaluate(system, x, settings)
    rows = found.results
    nelbo = rows["nelbo"]
    assert found.gaps is not None
    assert nelbo.num_particles == 2000
    assert nelbo.estimate == pytest.approx(rows["rate"].estimate + rows["distortion"].estimate)
    assert nelbo.estimate == pytest.approx(found.diagnostics.nelbo.mean().item())
    assert -found.gaps.elbo.mean == pytest.approx(nelbo.estimate)
    assert found.gaps.elbo.monte_carlo_se == pytest.approx(nelbo.monte_carlo_se)
    gap = nelbo.estimate - rows["nll_local"].estimate
    assert rows["inference_gap"].estimate == pytest.approx(gap)
    value, half = found.sandwich()["ELBO"]
    assert value == pytest.approx(-nelbo.estimate)
    assert half == pytest.approx(1.96 * nelbo.monte_carlo_se, rel=1e-3)
    with pytest.raises(DataError, match=r"elbo is of the shape \(2,\), where there are 6 data"):
        gaps(system.model, system.guide, x, elbo=PerDatum(torch.zeros(2), torch.zeros(2)))
