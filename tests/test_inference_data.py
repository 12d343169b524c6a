"""The DataTree: named dimensions, the same numbers, read back by ArviZ and drawn by arviz_plots."""

from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae import zoo
from pyroae.data.loading import load
from pyroae.evaluation.importance.likelihood import log_likelihood
from pyroae.inference_data import to_datatree
from pyroae.weights import log_weights


def values(tree: Any, group: str, name: str) -> Any:
    return tree[group][name]


def test_holds_draws_weights_data_and_labels(tmp_path: Path) -> None:
    digits = load("digits", binarize="static").test
    assert digits is not None
    assert digits.labels is not None
    vae = zoo.vae(digits, latent=3)
    x = digits.x[:20]
    estimate = log_likelihood(vae.model, vae.guide, x, num_particles=10, seed=0)
    tree = to_datatree(
        vae.model,
        vae.guide,
        x,
        labels=digits.labels[:20],
        shape=digits.shape,
        statistics={"log_px": estimate.log_px},
        num_draws=7,
        seed=1,
    )
    pyro.set_rng_seed(1)
    vae.eval()
    weights = log_weights(vae.model, vae.guide, x, num_particles=7)
    assert values(tree, "guide", "z").dims == ("sample", "datum", "latent")
    assert values(tree, "guide", "z").shape == (7, 20, 3)
    np.testing.assert_allclose(
        values(tree, "sample_stats_guide", "log_lik"), weights.log_lik.detach(), rtol=1e-6
    )
    np.testing.assert_allclose(
        values(tree, "sample_stats_guide", "log_weight"),
        weights.log_weight.detach(),
        rtol=1e-5,
        atol=1e-5,
    )
    np.testing.assert_array_equal(values(tree, "observed_data", "x"), x)
    np.testing.assert_array_equal(values(tree, "guide", "label"), digits.labels[:20])
    np.testing.assert_array_equal(values(tree, "per_datum", "log_px"), estimate.log_px)
    assert values(tree, "observed_data", "column").values[:9].tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        0,
    ]

    tree.to_netcdf(tmp_path / "evaluation.nc", engine="h5netcdf")
    again = arviz.from_netcdf(tmp_path / "evaluation.nc")
    np.testing.assert_array_equal(values(again, "guide", "z"), values(tree, "guide", "z"))
    np.testing.assert_array_equal(values(again, "per_datum", "label"), digits.labels[:20])
    again.close()


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
def test_arviz_plots_draws_it() -> None:
    import arviz_plots

    vae = zoo.vae(4, latent=2)
    tree = to_datatree(vae.model, vae.guide, torch.zeros(2, 4), num_draws=50, seed=0)
    drawn = arviz_plots.plot_dist(tree, group="guide", sample_dims=["sample"], backend="matplotlib")
    assert len(drawn.viz["plot"]["z"].values.ravel()) == 4  # a panel for each datum and latent unit


def test_slices_make_no_difference_to_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyroae.evaluation.tree_groups.CHUNK", 256 * 12)
    vae = zoo.vae(4, latent=2)
    tree = to_datatree(
        vae.model, vae.guide, torch.rand(10, 4).round(), num_draws=5
    )  # two data at a time
    assert dict(values(tree, "guide", "z").sizes) == {
        "sample": 5,
        "datum": 10,
        "latent": 2,
    }
    assert len(np.unique(values(tree, "guide", "z"))) == 100


def test_point_estimates() -> None:
    point = zoo.autoencoder(4, latent=2)
    x = torch.rand(3, 4)
    tree = to_datatree(point.model, point.guide, x, num_draws=2)
    for draw in range(2):
        np.testing.assert_allclose(values(tree, "guide", "z")[draw], point.encode(x), rtol=1e-6)


def test_a_program_with_two_latent_sites() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(a + b.sum(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(x, 1e-6))
            pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    tree = to_datatree(model, guide, torch.arange(3.0), num_draws=4)
    assert values(tree, "guide", "a").dims == ("sample", "datum")
    assert values(tree, "guide", "b").dims == ("sample", "datum", "b_latent")
    np.testing.assert_allclose(
        values(tree, "guide", "a").mean("sample"), [0.0, 1.0, 2.0], atol=1e-4
    )


def test_simulated_data_have_no_labels_of_the_data() -> None:
    """They may be of another number, too."""
    system, x = zoo.ppca(4, latent=2), torch.zeros(3, 4)
    lower = {"lower": torch.zeros(5)}
    tree = to_datatree(system.model, system.guide, x, labels=np.arange(3), simulated=lower)
    assert np.asarray(tree["guide"]["label"]).tolist() == [0, 1, 2]
    assert "label" not in tree["simulated"].coords
    assert tree["simulated"]["lower"].shape == (5,)


def test_loo_refuses_the_tree(tmp_path: Path) -> None:
    """With parameters fixed and z local it would be a harmonic mean; also when read from a file."""
    system, x = zoo.ppca(4, latent=2, exact=True), torch.randn(20, 4)
    tree: Any = to_datatree(system.model, system.guide, x, num_draws=50, seed=0)
    tree.to_netcdf(tmp_path / "evaluation.nc", engine="h5netcdf")
    again = arviz.from_netcdf(tmp_path / "evaluation.nc")
    for one in (tree, again):
        assert not any("log_likelihood" in name for name in one.groups)
        with pytest.raises(TypeError, match="log likelihood not found"):
            arviz.loo(one)
        with pytest.raises(TypeError, match="Encountered error"):
            arviz.compare({"one": one, "other": one})
    parts = tree["sample_stats_guide"]
    np.testing.assert_allclose(
        parts["log_weight"], parts["log_lik"] + parts["log_prior"] - parts["log_q"], rtol=1e-5
    )
    again.close()
