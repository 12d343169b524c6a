"""Missing values: the bound of what is observed, against closed forms; imputation; commands."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyroae import (
    Dataset,
    TrainConfig,
    exact_log_likelihood,
    fit,
    impute,
    likelihoods,
    linear_gaussian,
    load,
    load_run,
    log_likelihood,
    posteriors,
    priors,
    zoo,
)
from pyroae.autoencoder import Autoencoder
from pyroae.cli import main
from pyroae.errors import ConfigError, DataError
from pyroae.likelihoods import LIKELIHOODS
from pyroae.likelihoods.observed import observed_log_prob
from pyroae.nn import MLP, Linear
from pyroae.objectives import parse_objective
from pyroae.weights import log_weights

pytestmark = pytest.mark.usefixtures("few_pictures")

D, M, N = 5, 2, 40
float64 = pytest.mark.usefixtures("float64")


def holes(x: Tensor, share: float = 0.3) -> Tensor:
    """The data with values missing at random, none in the first column."""
    is_missing = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < share
    is_missing[:, 0] = False
    return torch.where(is_missing, torch.nan, x)


def linear(exact: bool = True) -> tuple[Autoencoder, Tensor]:
    """A pPCA with a large W, and data of it with holes."""
    torch.manual_seed(0)
    system = zoo.ppca(D, M, exact=exact, likelihood=likelihoods.Normal(0.4), missing=True)
    with torch.no_grad():
        for parameter in system.decoder.parameters():
            parameter.normal_()
    system.eval()
    return system, holes(system.sample(N, noise=True))


def by_hand(system: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x_o), E[x | x_o] and Var[x_j | x_o] from the joint Gaussian of all features."""
    weight, bias, scale = (part.detach() for part in system.linear_gaussian())
    covariance = weight @ weight.t() + scale**2 * torch.eye(D)
    log_px, means, variances = [], [], []
    for row in x:
        o = (~row.isnan()).nonzero().flatten()
        inner = covariance[o][:, o]
        log_px.append(MultivariateNormal(bias[o], inner).log_prob(row[o]))
        gain = torch.linalg.solve(inner, covariance[o]).t()
        means.append(bias + gain @ (row[o] - bias[o]))
        variances.append((covariance - gain @ covariance[o]).diagonal())
    return torch.stack(log_px), torch.stack(means), torch.stack(variances)


# Closed forms


@float64
def test_the_evidence_of_observed_features() -> None:
    """log N(x_o; b_o, W_o W_oᵀ + σ²I): in closed form, and by the exact posterior, draw by draw."""
    system, x = linear()
    expected, _, _ = by_hand(system, x)
    torch.testing.assert_close(exact_log_likelihood(system, x), expected, rtol=0, atol=1e-10)
    weights = log_weights(system.model, system.guide, x, num_particles=3)
    torch.testing.assert_close(weights.log_weight, expected.expand(3, -1), rtol=0, atol=1e-9)


@float64
def test_importance_sampling_of_observed_features() -> None:
    system, x = linear(exact=False)
    expected, _, _ = by_hand(system, x)
    with torch.no_grad():  # a guide of its own, far from the posterior
        system.encoder.get_parameter("0.weight").mul_(0.1)
    found = log_likelihood(system.model, system.guide, x, num_particles=20_000, seed=0)
    assert ((found.log_px - expected) / found.se).abs().max() < 5


@float64
def test_a_mixture_as_the_prior() -> None:
    """Σ_c π_c N(x_o; …), against the same density of each datum by itself."""
    torch.manual_seed(2)
    mixture = priors.PRIORS.parse("mixture:components=3")
    system = zoo.ppca(D, M, prior=mixture, likelihood=likelihoods.Normal(0.4), missing=True).eval()
    x = holes(torch.randn(N, D))
    weight, bias, scale = (part.detach() for part in system.linear_likelihood())
    log_pi, loc, tril = (part.detach() for part in system.p_z().gaussians())
    for n, row in enumerate(x):
        o = (~row.isnan()).nonzero().flatten()
        w = weight[o] @ tril
        each = MultivariateNormal(
            loc @ weight[o].t() + bias[o], w @ w.mT + scale**2 * torch.eye(len(o))
        )
        expected = (log_pi + each.log_prob(row[o])).logsumexp(0)
        assert exact_log_likelihood(system, x)[n].item() == pytest.approx(expected.item(), abs=1e-9)


@float64
def test_nothing_missing_changes_nothing() -> None:
    x = (torch.rand(N, D) < 0.5).double()
    torch.manual_seed(3)
    one = zoo.vae(D, M, hidden=(4,))
    torch.manual_seed(3)
    other = zoo.vae(D, M, hidden=(4,), missing=True)
    values = []
    for system in (one, other):
        torch.manual_seed(4)
        values.append(log_weights(system.model, system.guide, x, num_particles=2).log_weight)
    torch.testing.assert_close(*values, rtol=0, atol=1e-12)


@float64
@pytest.mark.parametrize(
    ("likelihood", "values"),
    [
        ("bernoulli", 2),
        ("categorical:categories=3", 3),
        ("mixed:columns=bernoulli*2+categorical(3)", 3),
    ],
)
def test_missing_features_are_summed_out(likelihood: str, values: int) -> None:
    """p(x_o|z) is the sum of p(x|z) over the values of the missing features."""
    torch.manual_seed(5)
    choice = LIKELIHOODS.parse(likelihood)
    system = Autoencoder(3, M, likelihood=choice, encoder=MLP((4,)))
    p_x = system.p_x(torch.randn(4, M))
    x = torch.tensor([1.0, 0.0, 1.0])
    for is_observed in itertools.product((True, False), repeat=3):
        mask = torch.tensor(is_observed)
        limits = [2, 2, values] if "mixed" in likelihood else [values] * 3
        total = torch.zeros(4)
        for cell in itertools.product(*(range(limit) for limit in limits)):
            point = torch.tensor([float(value) for value in cell])
            if bool((point == x)[mask].all()):
                total = total + p_x.log_prob(point).exp()
        found = observed_log_prob(p_x, torch.where(mask, x, 0.0), mask)
        torch.testing.assert_close(found, total.log(), rtol=0, atol=1e-12)


@float64
@pytest.mark.parametrize("name", [n for n in LIKELIHOODS if n != "mixed"])
def test_the_value_at_a_missing_feature_has_no_influence(name: str) -> None:
    """Nor on gradients, which are finite; the parts of what is observed and missing are the sum."""
    torch.manual_seed(6)
    system = Autoencoder(D, M, likelihood=LIKELIHOODS.parse(name), missing=True)
    x = (torch.rand(N, D) < 0.5).double()
    z = torch.randn(N, M)
    gap = holes(x)
    p_x = system.p_x(z)
    parts = [observed_log_prob(p_x, x, mask) for mask in (gap.isnan(), ~gap.isnan())]
    torch.testing.assert_close(sum(parts), p_x.log_prob(x), rtol=0, atol=1e-9)
    of_observed, filled = system.of_observed(p_x, gap)
    torch.testing.assert_close(of_observed.log_prob(filled), parts[1], rtol=0, atol=1e-12)
    objective = parse_objective("iwae", 3)
    objective.differentiable_loss(system.model, system.guide, gap).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in system.parameters())


# Training


def test_a_pca_with_holes_is_learned() -> None:
    """The bound of the exact guide rises to within 0.1 nats of the system that made the data."""
    torch.manual_seed(7)
    truth, _ = linear()
    full = truth.sample(600, noise=True).float()
    data = Dataset.from_array(holes(full), missing=True)
    assert data.missing
    assert data.mean.isfinite().all()
    system = zoo.ppca(data, M, exact=True)
    assert system.missing
    config = TrainConfig(epochs=60, batch_size=100, lr=3e-2, keep="last")
    fit(system, data, config=config, progress=False)
    of_truth = exact_log_likelihood(truth.double(), data.x.double()).mean()
    assert exact_log_likelihood(system, data.x).mean() > of_truth - 0.1


@pytest.mark.slow
def test_compiled_and_resumed_trainings_are_the_same() -> None:
    data = Dataset.from_array(holes((torch.rand(60, D) < 0.4).float()), missing=True)
    config = TrainConfig(epochs=3, batch_size=25, keep="last")
    systems: list[Autoencoder] = []
    states: list[Any] = []
    for compiled in (False, True):
        torch.manual_seed(8)
        systems.append(zoo.vae(data, M, hidden=(4,)))
        objective = parse_objective("dreg", 3)
        fit(
            systems[-1],
            data,
            objective,
            config,
            compile=compiled,
            on_epoch=states.append,
            progress=False,
        )
    for one, other in zip(*(s.parameters() for s in systems), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    torch.manual_seed(8)
    resumed = zoo.vae(data, M, hidden=(4,))
    fit(
        resumed,
        data,
        parse_objective("dreg", 3),
        config,
        state=states[0],
        compile=False,
        progress=False,
    )
    for name, value in systems[0].state_dict().items():
        assert value.equal(resumed.state_dict()[name])


def test_binarization_keeps_missing_values() -> None:
    grey = torch.rand(50, D)
    for binarize in ("threshold", "static", "dynamic"):
        splits = load(
            Dataset.from_array(holes(grey), missing=True),
            binarize=binarize,
        )
        assert splits.test is not None
        share = splits.test.x.isnan().float().mean()
        assert 0 < share < 0.5
        observed = splits.test.x[~splits.test.x.isnan()]
        assert set(observed.tolist()) <= {0.0, 1.0}
    from pyroae.data.batching import batches

    (batch,) = batches(splits.train, len(splits.train), seed=0, epoch=0)
    assert batch.isnan().sum() == splits.train.x.isnan().sum()
    assert set(batch[~batch.isnan()].tolist()) == {0.0, 1.0}


# Imputation


@float64
def test_imputation_against_the_conditional_gaussian() -> None:
    """Means within their errors, intervals and multiple imputations with the right spread."""
    system, x = linear()
    _, mean, variance = by_hand(system, x)
    found = impute(system, x, num_particles=4000, num_imputations=400, seed=0)
    gap = x.isnan()
    weight, bias, scale = (part.detach() for part in system.linear_gaussian())
    exact = linear_gaussian.conditional_mean(x, weight, bias, scale, ~gap)
    torch.testing.assert_close(exact[gap], mean[gap], rtol=0, atol=1e-10)
    torch.testing.assert_close(found.x[~gap], x[~gap])
    z = ((found.x - mean) / found.se)[gap]
    assert z.abs().max() < 5
    assert (found.se[~gap] == 0).all()
    assert 0.8 < z.std() < 1.2
    width = (found.high - found.low)[gap] / (2 * 1.96 * variance.sqrt()[gap])
    assert (width - 1).abs().max() < 0.2
    spread = (found.draws.var(0) / variance)[gap]
    assert spread.mean().item() == pytest.approx(1, abs=0.03)
    assert ((found.draws.mean(0) - mean) / (variance / 400).sqrt())[gap].abs().max() < 5
    torch.testing.assert_close(found.ess, torch.full((N,), 4000.0))
    assert found.draws.shape == (400, N, D)
    assert found.draws[:, ~gap].equal(x[~gap].expand(400, -1))


def test_codes_are_imputed_by_the_most_probable_one() -> None:
    """Of a table whose columns are equal: a missing code is that of the other column."""
    torch.manual_seed(9)
    codes = torch.randint(3, (400, 1)).float().expand(-1, 2)
    gap = codes.clone()
    gap[:100, 1] = torch.nan
    choice = LIKELIHOODS.parse("mixed:columns=categorical(3)*2")
    data = Dataset.from_array(gap, missing=True, value_range=(0, 1))
    system = zoo.vae(data, 2, hidden=(16,), likelihood=choice)
    fit(system, data, config=TrainConfig(epochs=30, batch_size=50, lr=2e-2), progress=False)
    found = impute(system, data.x, num_particles=200, num_imputations=3, seed=0)
    assert (found.x[:100, 1] == codes[:100, 1]).float().mean() > 0.9
    assert set(found.draws[:, :100, 1].flatten().tolist()) <= {0.0, 1.0, 2.0}
    assert found.low[:100, 1].isnan().all()


# Commands


def table(folder: Path, count: int = 200) -> Path:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(count, 1))
    values = z @ np.ones((1, 3)) + 0.3 * rng.normal(size=(count, 3)) + 5
    values[rng.random(values.shape) < 0.2] = np.nan
    path = folder / "table.csv"
    pd.DataFrame(values, columns=["height", "width", "depth"]).to_csv(path, index=False)
    return path


@pytest.mark.usefixtures("few_pictures")
def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, run = table(tmp_path), tmp_path / "run"
    flags = ["--data", str(path), "--system", "vae", "--likelihood", "normal:scale=feature"]
    flags += ["--latent", "1", "--hidden", "8", "--epochs", "20", "--lr", "1e-2"]
    assert main(["train", *flags, "--out", str(run)]) == 2
    assert "every value must be finite" in capsys.readouterr().err
    assert main(["train", *flags, "--missing", "--out", str(run)]) == 0
    assert main(["evaluate", str(run), "--num-particles", "50"]) == 0
    assert math.isfinite(load_run(run).results["nll"].estimate)
    assert math.isfinite(load_run(run).results["squared_error"].estimate)
    given = pd.read_csv(path)
    for suffix in ("csv", "parquet"):
        out = tmp_path / f"filled.{suffix}"
        more = ["--num-imputations", "2"] if suffix == "parquet" else []
        assert main(["impute", str(run), "--data", str(path), "--out", str(out), *more]) == 0
        filled = pd.read_csv(out) if suffix == "csv" else pd.read_parquet(out)
        assert filled.notna().to_numpy().all()
        assert list(filled.columns)[:3] == ["height", "width", "depth"]
        is_given = given.notna().to_numpy()
        first = filled.iloc[: len(given), :3].to_numpy()
        np.testing.assert_array_equal(first[is_given], given.to_numpy()[is_given])
        assert 3 < first[~is_given].mean() < 7
    assert filled["imputation"].tolist() == [i for i in range(3) for _ in range(len(given))]
    assert main(["impute", str(run), "--data", str(path), "--out", str(tmp_path / "a.npz")]) == 0
    arrays = np.load(tmp_path / "a.npz")
    assert (arrays["low"] <= arrays["x"]).all()
    assert (arrays["se"][arrays["is_missing"]] > 0).all()
    assert "values of 200 data filled" in capsys.readouterr().out
    assert main(["impute", str(run), "--data", str(path), "--out", str(tmp_path / "a.txt")]) == 2
    one = tmp_path / "one.csv"
    one.write_text("height,width,depth\n5.5,,4.5\n")
    assert (
        main(["impute", str(run), "--data", str(one), "--out", str(tmp_path / "one.parquet")]) == 0
    )
    assert 3 < pd.read_parquet(tmp_path / "one.parquet")["width"].item() < 7


def test_held_out_data_may_lack_a_column() -> None:
    x = torch.rand(40, 3)
    train, valid = (Dataset.from_array(part, missing=True) for part in (x[:30], x[30:].clone()))
    valid.x[:, 2] = torch.nan
    vae = zoo.vae(train, 1, hidden=(4,), likelihood=likelihoods.Normal("learned"), missing=True)
    config = TrainConfig(epochs=1, batch_size=10)
    result = fit(vae, train, config=config, valid=valid, progress=False)
    assert math.isfinite(result.history[0].valid_nelbo)


# Bad input


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"takes one data set, not Splits: .* data.train"):
        zoo.vae(load(torch.rand(20, 3)), 1)  # type: ignore[arg-type]
    x = torch.rand(20, 3)
    x[:, 1] = torch.nan
    empty = Dataset.from_array(x, missing=True)
    with pytest.raises(DataError, match="column 1 of array has no observed value: leave it out"):
        zoo.vae(empty, 1, likelihood=likelihoods.Normal())
    with pytest.raises(DataError, match=r"column 1 of array .training data. has no observed value"):
        fit(
            zoo.vae(3, 1, likelihood=likelihoods.Normal(), missing=True),
            empty,
            config=TrainConfig(batch_size=10),
            progress=False,
        )
    with pytest.raises(DataError, match="array has no observed value"):
        Dataset.from_array(torch.full((2, 3), torch.nan), missing=True)
    x[0, 1], x[1, 0] = 1.0, math.inf
    with pytest.raises(DataError, match="holds inf at row 1, column 0"):
        Dataset.from_array(x, missing=True)
    x[1, 0] = 0.5
    data = Dataset.from_array(x, missing=True)
    with pytest.raises(DataError, match="every value must be finite"):
        Dataset.from_array(x)
    config = TrainConfig(batch_size=10)
    with pytest.raises(DataError, match="has missing values, for which the autoencoder was not"):
        fit(zoo.vae(3, 1, likelihood=likelihoods.Normal()), data, config=config, progress=False)
    with pytest.raises(ConfigError, match="scale=learned or scale=feature"):
        zoo.vae(data, 1, likelihood=likelihoods.Normal("optimal"))
    with pytest.raises(ConfigError, match="the total of a datum with missing values"):
        zoo.vae(data, 1, likelihood=LIKELIHOODS.parse("poisson:library=observed"))
    with pytest.raises(ConfigError, match="made for missing values, with missing=True"):
        impute(zoo.vae(3, 1), x)
    with pytest.raises(ConfigError, match="particles must be at least 2, not 1"):
        impute(zoo.vae(3, 1, missing=True), x, num_particles=1)
    with pytest.raises(ConfigError, match="does not say how its features factorize"):
        observed_log_prob(
            MultivariateNormal(torch.zeros(3), torch.eye(3)),
            torch.zeros(3),
            torch.ones(3, dtype=torch.bool),
        )


def test_other_choices_take_missing_values(float64: None) -> None:
    """Full-rank and flow posteriors, a corruption, convolutions, M2: bounds are finite."""
    x = holes((torch.rand(6, 16) < 0.5).double())
    makes: list[Any] = [
        zoo.vae(16, M, posterior=posteriors.POSTERIORS.parse("full-rank"), missing=True),
        zoo.vae(16, M, corruption=zoo.corruptions.SaltAndPepper(0.3), missing=True),
        zoo.vae((4, 4), M, encoder=zoo.MAPS.parse("conv:channels=[3],width=4"), missing=True),
        zoo.autoencoder(16, M, encoder=Linear(), missing=True),
    ]
    for system in makes:
        loss = parse_objective("trace-elbo").loss(system.model, system.guide, x)
        assert math.isfinite(loss)
        assert system.reconstruct(x).isfinite().all()


@float64
def test_imputation_by_a_guide_that_is_not_the_posterior() -> None:
    """The weights correct it: means within their errors of those of the exact guide."""
    system, x = linear()
    _, mean, _ = by_hand(system, x)
    wide = zoo.ppca(D, M, likelihood=likelihoods.Normal(0.4), missing=True).eval()
    with torch.no_grad():
        wide.decoder.load_state_dict(system.decoder.state_dict())
        for parameter in wide.encoder.parameters():
            parameter.zero_()  # q is N(0, I), the prior
    found = impute(wide, x, num_particles=20_000, seed=0)
    gap = x.isnan() & (found.ess > 200)[:, None]
    assert gap.sum() > 20
    assert ((found.x - mean) / found.se)[gap].abs().max() < 5
