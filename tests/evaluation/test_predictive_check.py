"""Predictive checks: p-values that are uniform where they should be, and extreme on wrong data."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.stats import kstest, norm
from torch import Tensor

from pyroae import zoo
from pyroae.autoencoder import Autoencoder
from pyroae.errors import ConfigError, ProgramError, UndefinedLikelihoodError
from pyroae.evaluation import replicates
from pyroae.evaluation.predictive_checks import predictive_check
from pyroae.evaluation.statistics_of_data import STATISTICS, mean
from pyroae.nn import MLP
from tests.systems import system_and_data

D = 4
MEAN = {"mean": mean}


@pytest.fixture(autouse=True)
def double() -> object:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield None
    torch.set_default_dtype(torch.float32)


def linear() -> tuple[Autoencoder, Tensor, Tensor, Tensor]:
    """pPCA with its mean, its covariance and σ."""
    system = zoo.ppca(D, 2, exact=True)
    with torch.no_grad():
        for one in (p for p in system.decoder.parameters() if p.dim() > 1):
            one.abs_().mul_(3)  # T sees z
        weight, bias, scale = system.linear_gaussian()
    return system, bias, weight @ weight.T + scale**2 * torch.eye(D), scale


def draws_of(system: Autoencoder, count: int) -> Tensor:
    return poutine.trace(system.model).get_trace(None, size=count).nodes["x"]["value"].detach()


def test_prior_p_values_are_those_of_the_closed_form() -> None:
    """T is the mean of a datum: p_n = 1 − Φ((T − b̄)/s), s² = 1ᵀ(WWᵀ + σ²I)1/d², uniform."""
    system, bias, covariance, _ = linear()
    x, draws = draws_of(system, 300), 600
    check = predictive_check(system.model, None, x, MEAN, num_draws=draws, seed=1)
    s = covariance.sum().sqrt() / D
    exact = 1 - torch.as_tensor(norm.cdf((x.mean(1) - bias.mean()) / s))
    p = check.statistics["mean"].p_per_datum
    assert ((p - exact).abs() < 4.5 * (exact * (1 - exact) / draws).sqrt() + 2 / draws).all()
    assert kstest(p, "uniform").pvalue > 0.001
    whole = check.statistics["mean"]
    expected = 1 - norm.cdf(float((x.mean() - bias.mean()) / (s / math.sqrt(300))))
    assert abs(whole.p - expected) < 4 * whole.p_se
    assert whole.draws.std() / (s / math.sqrt(300)) == pytest.approx(1, abs=0.1)


def test_posterior_p_values_of_the_same_data_crowd_around_a_half() -> None:
    """Their closed form: T(x̃) ~ N(mean of E[x̃|x], …); their variance is below that of 1/12."""
    system, bias, covariance, scale = linear()
    x, draws = draws_of(system, 300), 300
    check = predictive_check(system.model, system.guide, x, MEAN, num_draws=draws, seed=1)
    signal = covariance - scale**2 * torch.eye(D)  # WWᵀ
    gain = signal @ torch.linalg.inv(covariance)
    centre = (bias + (x - bias) @ gain.T).mean(1)
    variance = (signal - gain @ signal + scale**2 * torch.eye(D)).sum() / D**2
    exact = 1 - torch.as_tensor(norm.cdf((x.mean(1) - centre) / variance.sqrt()))
    p = check.statistics["mean"].p_per_datum
    assert ((p - exact).abs() < 4.5 * (exact * (1 - exact) / draws).sqrt() + 2 / draws).all()
    assert p.var() < 0.9 / 12
    assert check.group == "posterior_predictive"


def test_p_values_are_extreme_on_wrong_data() -> None:
    system, *_ = linear()
    x = 1.3 * draws_of(system, 400)
    check = predictive_check(system.model, None, x, num_draws=99, seed=0)
    assert check.statistics["sd"].p == 0.5 / 100
    assert "sd" in check.extreme
    assert "mean" not in check.extreme
    assert (check.statistics["sd"].p_per_feature < 0.05).all()


def test_a_check_that_repeats_the_data_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken copy that leaves x observed: all replicates equal x, all p are ½."""

    def broken(model, args, traces):  # type: ignore[no-untyped-def]
        nodes = poutine.trace(model).get_trace(*args).nodes
        return {"x": nodes["x"]["value"]}, {}

    system, *_ = linear()
    x = 1.3 * draws_of(system, 400)
    monkeypatch.setattr(replicates, "simulated", broken)
    check = predictive_check(system.model, None, x, num_draws=20, seed=0)
    assert check.statistics["sd"].is_constant
    assert check.extreme == ()
    assert kstest(check.statistics["mean"].p_per_datum, "uniform").pvalue < 1e-9


def test_ties_of_discrete_data_count_half() -> None:
    """x̃ ~ Bernoulli(½)^2, T the number of ones: P(T > 1) + ½ P(T = 1) = ½, of T = 2: 1/8."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(torch.full_like(x, 0.5)).to_event(1), obs=x)

    x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    p = predictive_check(model, None, x, MEAN, num_draws=1000, seed=0).statistics["mean"]
    assert torch.allclose(p.p_per_datum, torch.tensor([0.5, 0.125, 0.875]), atol=0.06)


@pytest.mark.parametrize(
    "name", ["ae", "sparse-ae-map", "discrete-vae", "vae-ladder", "vae-mixture"]
)
def test_systems_of_the_zoo(name: str) -> None:
    torch.set_default_dtype(torch.float32)
    system, x = system_and_data(name)
    posterior = predictive_check(system.model, system.guide, x, num_draws=5, seed=0)
    assert set(posterior.statistics) == set(STATISTICS)
    assert posterior.statistics["mean"].draws.unique().numel() > 1
    if name == "ae":
        with pytest.raises(UndefinedLikelihoodError, match=r"^a Flat prior cannot be sampled"):
            predictive_check(system.model, None, x)
    else:
        prior = predictive_check(system.model, None, x, num_draws=5, seed=0)
        assert prior.statistics["mean"].p_per_datum.shape == (6,)


def test_missing_values_stay_missing_in_replicates() -> None:
    system = zoo.vae(D, 2, encoder=MLP((5,)), missing=True)
    x = (torch.rand(50, D) < 0.5).double()
    x[:, 0] = torch.nan
    seen = []

    def number_missing(values: Tensor) -> Tensor:
        seen.append(values)
        return values.isnan().sum((-2, -1)).double()

    check = predictive_check(system.model, None, x, {"missing": number_missing}, num_draws=2)
    assert check.statistics["missing"].observed == 50
    assert check.statistics["missing"].is_constant
    assert not torch.equal(seen[0].nan_to_num(), seen[3].nan_to_num())  # replicates are draws
    defaults = predictive_check(system.model, None, x, num_draws=3).statistics
    assert all(math.isfinite(found.observed) for found in defaults.values())
    assert defaults["mean"].p_per_feature.isnan().tolist() == [True, False, False, False]


def test_nested_plates_covariates_and_shared_latents() -> None:
    """x_nj ~ N(w c_n, 1) with w shared: replicates of a draw of w; rows are the data."""

    def model(x: Tensor, c: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-2), pyro.plate("parts", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(w * c.unsqueeze(-1), 0.01), obs=x)

    c = torch.linspace(-1, 1, 5)
    check = predictive_check(
        model, None, (2 * c[:, None].expand(5, 3), c), MEAN, num_draws=800, seed=0
    ).statistics["mean"]
    expected = torch.as_tensor(1 - norm.cdf(2.0))  # P(w > 2), where c > 0
    assert abs(check.p_per_datum[-1] - expected) < 0.025
    assert abs(check.p_per_datum[0] - (1 - expected)) < 0.025
    assert check.p_per_feature.shape == (3,)


def two_sites(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("a", dist.Normal(z, 1.0), obs=x[:, 0])
        pyro.sample("b", dist.Normal(z, 1.0), obs=x[:, 1])


def test_bad_input_is_refused() -> None:
    system, x = zoo.ppca(2, 1), torch.zeros(3, 2)
    model = system.model
    with pytest.raises(ConfigError, match="at least 1 draw, not 0"):
        predictive_check(model, None, x, num_draws=0)
    with pytest.raises(ConfigError, match=r"the statistic 'rows' has the shape \(3,\)"):
        predictive_check(model, None, x, {"rows": lambda values: values.mean(-1)}, num_draws=2)
    with pytest.raises(ProgramError, match="does not observe a site 'y', but x"):
        predictive_check(model, None, x, site="y")
    with pytest.raises(ProgramError, match="observes a, b: give one of them as site="):
        predictive_check(two_sites, None, x)
    assert predictive_check(two_sites, None, x, site="b", num_draws=3).site == "b"

    def mixture(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x[:, 0])

    def empty(x: Tensor) -> None:
        pass

    with pytest.raises(ProgramError, match="does not draw the latent site 'y'"):
        predictive_check(mixture, empty, x)


class Undrawn(dist.Normal):
    """A density without draws."""

    has_rsample = False

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        raise NotImplementedError("no draws")

    def expand(self, batch_shape: tuple[int, ...], _instance: object = None) -> "Undrawn":
        return Undrawn(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


def test_what_a_program_raises_is_told() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", Undrawn(z, torch.ones_like(z)), obs=x)

    with pytest.raises(ProgramError, match="cannot be drawn: NotImplementedError: no draws"):
        predictive_check(model, None, torch.zeros(3))


def test_a_datatree_has_arviz_groups() -> None:
    system, *_ = linear()
    check = predictive_check(system.model, system.guide, draws_of(system, 6), num_draws=7, seed=0)
    tree = check.to_datatree()
    assert dict(tree["posterior_predictive"]["sd"].sizes) == {"chain": 1, "draw": 7}
    assert float(tree["observed_data"]["sd"]) == check.statistics["sd"].observed
    assert dict(tree["per_datum"]["sd_p"].sizes) == {"datum": 6}
    assert dict(tree["per_feature"]["sd_p"].sizes) == {"feature": D}
    again = predictive_check(system.model, system.guide, draws_of(system, 6), num_draws=7, seed=0)
    assert repr(again).startswith("PredictiveCheck(")
