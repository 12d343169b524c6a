"""Groups of the DataTree: posterior holds draws of p(z|x) or is missing; what the prior and the
model give; what cannot be made is left out.
"""

import math
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae import linear_gaussian, zoo
from pyroae.commands.evaluate import exact_draws
from pyroae.config import AISSettings, EvaluationSettings
from pyroae.errors import ConfigError, UndefinedLikelihoodError
from pyroae.evaluation.annealing.bounds import ais
from pyroae.evaluation.exact import exact_posterior_draws
from pyroae.evaluation.summary import evaluate
from pyroae.inference_data import to_datatree
from pyroae.likelihoods import Normal

SHORT = AISSettings(8, 60, leapfrog_steps=4, posterior_draws=40, thinning=3)


def summary(tree: Any) -> Any:
    return arviz.summary(tree, fmt="xarray", round_to="none")["z"]


def agrees(table: Any, loc: Tensor, scale: Tensor) -> bool:
    """Whether mean and sd of a summary lie within 4.5 of its own standard errors."""
    mean, sd, of_mean, of_sd = (
        torch.as_tensor(table.sel(summary=name).to_numpy().astype(float)).reshape(loc.shape)
        for name in ("mean", "sd", "mcse_mean", "mcse_sd")
    )
    return bool(
        ((mean - loc).abs() < 4.5 * of_mean).all() and ((sd - scale).abs() < 4.5 * of_sd).all()
    )


def test_a_summary_of_annealed_draws_is_that_of_the_closed_form(tmp_path: Path) -> None:
    system, x = zoo.ppca(6, 2), torch.randn(4, 6)
    annealed = ais(system.model, None, x, settings=SHORT, seed=0)
    made = to_datatree(system.model, system.guide, x, annealed=annealed, seed=0)
    made.to_netcdf(tmp_path / "evaluation.nc", engine="h5netcdf")
    tree: Any = arviz.from_netcdf(tmp_path / "evaluation.nc")
    with torch.no_grad():
        loc, tril = linear_gaussian.posterior(x, *system.linear_gaussian())
        weight, bias, scale = system.linear_gaussian()
    sd = tril.square().sum(-1).sqrt().expand(4, 2)
    table = summary(tree)
    assert agrees(table, loc, sd)
    assert float(table.sel(summary="r_hat").astype(float).max()) < 1.1
    of_guide = tree["guide"]["z"].values[None]  # a broken copy: the draws of another distribution
    broken = arviz.from_dict({"posterior": {"z": of_guide}})
    assert not agrees(summary(broken), loc, sd)

    attributes = tree["posterior"].attrs
    assert attributes["inference_library"] == "pyroae"
    assert {"inference_library_version", "created_at", "creation_library"} <= set(attributes)
    z = torch.as_tensor(tree["posterior"]["z"].values)
    assert z.shape == (8, 40, 4, 2)
    np.testing.assert_allclose(
        tree["log_prior"]["z"], dist.Normal(0.0, 1.0).log_prob(z).sum(-1), rtol=1e-4, atol=1e-5
    )
    stats = tree["sample_stats"]
    assert stats["log_weight"].dims == ("weighted_chain", "datum")
    np.testing.assert_array_equal(stats["log_weight"], annealed.log_weights)
    np.testing.assert_array_equal(stats["ess"], annealed.ess)
    assert annealed.posterior_acceptance is not None
    np.testing.assert_array_equal(stats["acceptance_rate"], annealed.posterior_acceptance)
    assert not stats["unreliable"].values.any()

    drawn = tree["posterior_predictive"]["x"]
    assert drawn.dims == ("chain", "draw", "datum", "pixel") == tree["prior_predictive"]["x"].dims
    assert drawn.sizes["chain"] * drawn.sizes["draw"] == 96
    at = z[:, drawn["draw"].values.tolist()]
    noise = (torch.as_tensor(drawn.values) - (at @ weight.mT + bias)) / scale
    assert noise.mean().abs() < 4 / math.sqrt(noise.numel())
    assert abs(noise.std() - 1) < 4 / math.sqrt(2 * noise.numel())
    prior, of_prior = (tree[group].to_dataset() for group in ("prior", "prior_predictive"))
    assert dict(prior["z"].sizes) == {"chain": 1, "draw": 100, "datum": 4, "latent": 2}
    residual = of_prior["x"].values - (prior["z"].values @ weight.mT.numpy() + bias.numpy())
    assert abs(residual.std() / float(scale) - 1) < 4 / math.sqrt(2 * residual.size)
    assert abs(prior["z"].values.std() - 1) < 4 / math.sqrt(2 * prior["z"].size)
    tree.close()


def test_without_draws_of_the_posterior_there_is_no_such_group() -> None:
    point, x = zoo.autoencoder(4, latent=2), torch.rand(3, 4).round()
    system = zoo.vae(4, latent=2)
    for one in (point, system):
        tree: Any = to_datatree(one.model, one.guide, x, num_draws=5)
        groups = {name.strip("/") for name in tree.groups}
        assert not groups & {"posterior", "log_prior", "posterior_predictive", "sample_stats"}
        assert dict(tree["guide"]["z"].sizes) == {"sample": 5, "datum": 3, "latent": 2}
        assert ("prior" in groups) == (one is system)  # the prior of the other is flat
        with pytest.raises(ValueError, match="Can not extract posterior"):
            arviz.summary(tree)
    annealed = ais(system.model, None, x, settings=AISSettings(4, 8, leapfrog_steps=2), seed=0)
    tree = to_datatree(system.model, system.guide, x, annealed=annealed, num_predictive=0)
    assert set(tree.groups) == {
        "/",
        "/guide",
        "/sample_stats_guide",
        "/observed_data",
        "/sample_stats",
    }
    assert set(tree["sample_stats"].data_vars) == {"log_weight", "ess"}


def rates(counts: Tensor, alpha: Tensor) -> None:
    """rate ~ Gamma(α, 1); in three nested parts w ~ N(0, 1) and n ~ Poisson(rate), y ~ N(w, 1)."""
    with pyro.plate("data", len(counts), dim=-2):
        rate = pyro.sample("rate", dist.Gamma(alpha[:, None], 1.0))
        with pyro.plate("parts", 3, dim=-1):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample("n", dist.Poisson(rate), obs=counts)
            pyro.factor("extra", -w.square())
            with pyro.poutine.scale(scale=2.0):
                pyro.sample("y", dist.Normal(w, 1.0), obs=torch.zeros(len(counts), 3))


def of_rates(counts: Tensor, alpha: Tensor) -> None:
    with pyro.plate("data", len(counts), dim=-2):
        pyro.sample("rate", dist.Gamma(alpha[:, None] + counts.sum(1, keepdim=True), 4.0))
        with pyro.plate("parts", 3, dim=-1):
            pyro.sample("w", dist.Normal(0.0, 0.5))


def test_a_program_of_nested_plates_keeps_the_shapes_of_its_sites() -> None:
    """Factors and scaled sites have no draws of x; the others are named by their site."""
    counts, alpha = torch.tensor([[1.0, 0.0, 2.0], [3.0, 5.0, 4.0]]), torch.tensor([2.0, 3.0])
    settings = AISSettings(8, 40, leapfrog_steps=4, posterior_draws=20, thinning=3)
    annealed = ais(rates, None, (counts, alpha), settings=settings, seed=0)
    tree: Any = to_datatree(
        rates, of_rates, (counts, alpha), annealed=annealed, num_predictive=24, seed=0
    )
    posterior = tree["posterior"].to_dataset()
    assert posterior["rate"].dims == ("chain", "draw", "datum")
    assert posterior["w"].dims == ("chain", "draw", "datum", "parts")
    exact = (alpha + counts.sum(1)) / 4
    table = arviz.summary(tree, var_names=["rate"], fmt="xarray", round_to="none")["rate"]
    error = table.sel(summary="mean").to_numpy().astype(float) - exact.numpy()
    assert (np.abs(error) < 4.5 * table.sel(summary="mcse_mean").to_numpy().astype(float)).all()
    rate = torch.as_tensor(posterior["rate"].values)
    np.testing.assert_allclose(
        tree["log_prior"]["rate"], dist.Gamma(alpha, 1.0).log_prob(rate), rtol=1e-4, atol=1e-4
    )
    w = torch.as_tensor(posterior["w"].values)
    np.testing.assert_allclose(
        tree["log_prior"]["w"], dist.Normal(0.0, 1.0).log_prob(w).sum(-1), rtol=1e-4, atol=1e-4
    )
    for group in ("prior_predictive", "posterior_predictive"):
        assert set(tree[group].data_vars) == {"n"}
        assert tree[group]["n"].shape[2:] == (2, 3)
        assert tree[group]["n"].shape[0] * tree[group]["n"].shape[1] == 24
    np.testing.assert_array_equal(tree["observed_data"]["n"], counts)
    np.testing.assert_array_equal(tree["observed_data"]["x_1"][:, 0], alpha)


def mixture(x: Tensor) -> None:
    """y ~ Bernoulli(0.3) is summed out; z ~ N(±3, 1), x ~ N(z + 10 y, 0.1)."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(6 * y - 3, 1.0))
        pyro.sample("x", dist.Normal(z + 10 * y, 0.1), obs=x)


def of_mixture(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 0.1))


def test_sites_that_are_summed_out() -> None:
    """Prior draws are of the joint; x given z depends on what z tells of y: there are none."""
    x = torch.tensor([-3.0, -2.0])
    few = AISSettings(4, 10, leapfrog_steps=2, posterior_draws=2)
    annealed = ais(mixture, None, x, settings=few, seed=0)
    tree: Any = to_datatree(mixture, of_mixture, x, annealed=annealed, num_predictive=200, seed=0)
    assert set(tree["posterior"].data_vars) == {"z"} == set(tree["prior"].data_vars)
    assert "posterior_predictive" not in tree
    z, drawn = tree["prior"]["z"].values, tree["prior_predictive"]["x"].values[..., 0]
    shift = np.round((drawn - z) / 10)
    assert set(np.unique(shift)) == {0.0, 1.0}
    assert abs(shift.mean() - 0.3) < 4 * math.sqrt(0.21 / 400)
    assert np.abs(z - (6 * shift - 3)).mean() < 1  # z and x are of one y


def test_draws_in_closed_form() -> None:
    """Of complete and of missing data; other systems have none."""
    system = zoo.ppca(5, 2, missing=True)
    x = torch.randn(3, 5)
    x[1, 2] = x[2, 0] = torch.nan
    draws = exact_posterior_draws(system, x, num_chains=8, num_draws=500, seed=0)["z"]
    assert draws.shape == (8, 500, 3, 2)
    for n, row in enumerate(x.double()):
        there = ~row.isnan()
        weight, bias, scale = (part.detach().double() for part in system.linear_gaussian())
        loc, tril = linear_gaussian.posterior(row[there], weight[there], bias[there], scale)
        z = draws[:, :, n].flatten(0, 1)
        sd, exact = tril.square().sum(-1).sqrt(), tril @ tril.mT
        assert ((z.mean(0) - loc).abs() < 4.5 * sd / math.sqrt(4000)).all()
        error = (exact.square() + torch.outer(sd, sd).square()).sqrt() / math.sqrt(4000)
        assert ((z.T.cov() - exact).abs() < 4.5 * error).all()
    found = evaluate(system, x, EvaluationSettings(num_particles=10))
    settings = EvaluationSettings(annealing=AISSettings(3, posterior_draws=4))
    one = exact_draws(system, x, found, settings)
    assert one is not None
    assert one["z"].shape == (3, 4, 3, 2)
    tree: Any = to_datatree(system.model, system.guide, x, posterior=one)
    assert tree["posterior"].to_dataset().sizes["chain"] == 3
    assert "sample_stats" not in tree
    none = EvaluationSettings(annealing=AISSettings(3))
    assert exact_draws(system, x, found, none) is None
    with pytest.raises(UndefinedLikelihoodError, match="decoder"):
        exact_posterior_draws(zoo.vae(5, latent=2, likelihood=Normal(1.0)), x[:1])


def test_draws_of_other_sites_or_data_are_refused() -> None:
    system, x = zoo.ppca(4, 2), torch.randn(3, 4)
    with pytest.raises(ConfigError, match=r"of the sites \['w'\], but the latent .* are \['z'\]"):
        to_datatree(system.model, system.guide, x, posterior={"w": torch.zeros(2, 5, 3, 2)})
    with pytest.raises(ConfigError, match="posterior draws of 3 data need the shape"):
        to_datatree(system.model, system.guide, x, posterior={"z": torch.zeros(2, 5, 4, 2)})


def test_the_predictive_groups_are_small_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyroae.inference_data.PREDICTIVE_BYTES", 4 * 3 * 4 * 6)
    system, x = zoo.ppca(4, 2), torch.randn(3, 4)
    draws = {"z": torch.randn(4, 10, 3, 2)}
    tree: Any = to_datatree(system.model, system.guide, x, posterior=draws)
    assert tree["prior_predictive"]["x"].shape == (1, 6, 3, 4)
    assert tree["posterior_predictive"]["x"].shape == (4, 1, 3, 4)
    assert tree["posterior_predictive"]["draw"].values.tolist() == [9]
