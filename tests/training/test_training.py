"""Training: it reaches the closed-form optima, equals a plain SVI loop, and stops where it
should.
"""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA
from torch import Tensor

from pyroae import corruptions, linear_gaussian, zoo
from pyroae.config import TrainConfig
from pyroae.data.batching import batches
from pyroae.data.dataset import Dataset
from pyroae.data.loading import Splits, load
from pyroae.errors import ConfigError, DataError, NonFiniteLossError
from pyroae.evaluation.exact import exact_log_likelihood
from pyroae.evaluation.importance.likelihood import log_likelihood
from pyroae.nn import MLP
from pyroae.objectives import OBJECTIVES, AnalyticKL, TraceELBO
from pyroae.objectives.apply import KLWeight
from pyroae.training.fitting import fit
from pyroae.training.optimizers import schedule
from pyroae.training.state import State
from tests.systems import SYSTEMS

LONG = TrainConfig(epochs=120, lr=4e-2, schedule="cosine", batch_size=450)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", valid=0, test=0).train


@pytest.fixture(scope="module")
def binary() -> Splits:
    return load("digits", binarize="dynamic")


# Closed-form optima.


def test_linear_autoencoder_is_pca(digits: Dataset) -> None:
    system = zoo.linear_autoencoder(digits, latent=4)
    principal = PCA(4).fit(digits.x.double().numpy()).components_.T

    def angle() -> float:
        return subspace_angles(system.decoder[0].weight.detach().double().numpy(), principal).max()  # type: ignore[index]

    assert angle() > 0.5  # the start is not the optimum
    fit(system, digits, TraceELBO(), LONG, progress=False)
    assert angle() < 0.01
    error = (system.reconstruct(digits.x) - digits.x).double().square().sum(1).mean().item()
    assert error == pytest.approx(
        linear_gaussian.maximum_likelihood(digits.x, 4).discarded, rel=1e-3
    )


@pytest.mark.parametrize(
    "name", ["trace-elbo", pytest.param("analytic-kl", marks=pytest.mark.slow)]
)
def test_ppca_reaches_the_maximum_likelihood(digits: Dataset, name: str) -> None:
    system = zoo.ppca(digits, latent=4)
    best = linear_gaussian.maximum_likelihood(digits.x, 4).log_px
    assert exact_log_likelihood(system, digits.x).mean().item() < 0.9 * best
    config = TrainConfig(epochs=120, lr=5e-2, schedule="cosine", batch_size=300)
    fit(system, digits, OBJECTIVES[name](), config, progress=False)
    reached = exact_log_likelihood(system, digits.x).mean().item()
    assert best * (1 - 1e-3) < reached < best + 1e-6
    posterior = zoo.ppca(digits, latent=4, exact=True)
    posterior.load_state_dict(
        {k: v for k, v in system.state_dict().items() if not k.startswith("encoder")}
    )
    posterior.double()
    x = digits.x[:50].double()
    weights = log_likelihood(posterior.model, posterior.guide, x, num_particles=1, seed=0)
    torch.testing.assert_close(
        weights.log_px, exact_log_likelihood(posterior, x), rtol=0, atol=1e-6
    )


@pytest.mark.slow
def test_sparsity_grows_with_the_rate(digits: Dataset) -> None:
    config = TrainConfig(epochs=60, lr=3e-3, schedule="cosine")
    shares = []
    for rate in (0.01, 0.1, 0.2):
        torch.manual_seed(0)
        system = zoo.sparse_autoencoder(digits, latent=100, rate=rate, encoder=MLP((200,), "relu"))
        fit(system, digits, TraceELBO(), config, progress=False)
        shares.append((system.encode(digits.x).abs() < 1e-2).double().mean().item())
        atoms = system.decoder[0].atoms  # type: ignore[index]
        torch.testing.assert_close(atoms.norm(dim=0), torch.ones(100))
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > shares[0] + 0.2


def test_denoising_autoencoder_denoises(digits: Dataset) -> None:
    config = TrainConfig(epochs=10, lr=4e-3, schedule="cosine")
    noise, errors = corruptions.Masking(0.3), {}
    train, test = digits.subset(np.arange(1400)), digits.subset(np.arange(1400, 1797))
    torch.manual_seed(0)
    corrupted = noise(test.x)
    for name, corruption in (("denoising", noise), ("plain", corruptions.Identity())):
        torch.manual_seed(1)
        system = zoo.denoising_autoencoder(
            train, latent=32, corruption=corruption, encoder=MLP((200,))
        )
        fit(system, train, TraceELBO(), config, progress=False)
        errors[name] = (system.reconstruct(corrupted) - test.x).square().sum(1).mean().item()
    assert errors["denoising"] < 0.7 * errors["plain"]


# The same as a plain SVI loop.


@pytest.mark.parametrize("make", [TraceELBO, AnalyticKL, Trace_ELBO, TraceMeanField_ELBO])
def test_equals_a_plain_svi_loop(binary: Splits, make: Any) -> None:
    config = TrainConfig(epochs=3, batch_size=100, lr=1e-3, seed=7, precision="64-true")
    torch.manual_seed(0)
    system = zoo.vae(binary.train, latent=3, encoder=MLP((20,)))
    start = {k: v.clone() for k, v in system.state_dict().items()}
    result = fit(
        system, Splits(binary.train, None, None, "", "dynamic"), make(), config, progress=False
    )

    plain = zoo.vae(binary.train, latent=3, encoder=MLP((20,)))
    plain.load_state_dict(start)
    plain.double()
    pyro.set_rng_seed(7)
    nelbo = []
    optimizer = pyro.optim.Adam({"lr": 1e-3})
    svi = None
    for epoch in range(1, 4):
        total = 0.0
        for x in batches(binary.train, 100, seed=7, epoch=epoch):
            per_datum = 1 / len(x)  # fit follows the gradient of the bound in nats per datum
            if svi is None or per_datum != 1 / 100:
                model = poutine.scale(plain.model, scale=per_datum)
                svi = SVI(model, poutine.scale(plain.guide, scale=per_datum), optimizer, make())
            total += svi.step(x.double()) * len(x)
            svi = svi if per_datum == 1 / 100 else None
        nelbo.append(total / len(binary.train))
    assert [e.train_nelbo for e in result.history] == pytest.approx(nelbo, rel=1e-9)
    for name, value in system.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-7, atol=1e-9)


def test_generators_of_the_caller_are_left_alone(binary: Splits) -> None:
    system = zoo.vae(binary.train, 2)
    before = torch.get_rng_state()
    fit(system, binary, config=TrainConfig(epochs=1), progress=False)
    assert torch.equal(before, torch.get_rng_state())


def test_seeds(binary: Splits) -> None:
    def run(seed: int) -> list[float]:
        torch.manual_seed(0)
        system = zoo.vae(binary.train, 2, encoder=MLP((10,)))
        return [
            e.train_nelbo
            for e in fit(
                system, binary, config=TrainConfig(epochs=2, seed=seed), progress=False
            ).history
        ]

    assert run(1) == run(1)
    assert run(1) != run(2)


# Configuration.


@pytest.mark.parametrize("name", ["SGD", "adamw", "RMSprop", "LBFGS", "Adagrad"])
def test_any_optimizer_lowers_the_loss(digits: Dataset, name: str) -> None:
    config = TrainConfig(
        epochs=3, optimizer=name, lr=0.05 if name != "RMSprop" else 1e-3, batch_size=len(digits)
    )
    result = fit(zoo.linear_autoencoder(digits, 5), digits, config=config, progress=False)
    assert result.history[-1].train_nelbo < result.history[0].train_nelbo


@pytest.mark.parametrize("name", [n for n in SYSTEMS if n != "vae-conv"])
def test_every_system_trains(name: str) -> None:
    system = SYSTEMS[name]()
    x = (torch.rand(50, 16) < torch.rand(16)).float()
    config = TrainConfig(epochs=30, batch_size=25, lr=1e-2)
    result = fit(system, x, TraceELBO(), config, progress=False)
    assert result.history[-1].train_nelbo < result.history[0].train_nelbo - 0.1


@pytest.mark.parametrize("make", [TraceELBO, AnalyticKL, Trace_ELBO, TraceMeanField_ELBO])
def test_kl_weight_weighs_the_kl_alone(make: Any, float64: None) -> None:
    system, x = SYSTEMS["vae"](), (torch.rand(6, 16) < 0.4).double()
    with torch.no_grad():
        mean, log_variance = system.encoder(x).chunk(2, -1)
    pyro.set_rng_seed(1)
    epsilon = torch.randn_like(mean)
    z = mean + (0.5 * log_variance).exp() * epsilon
    closed = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
    sampled = 0.5 * (z.square() - epsilon.square() - log_variance).sum()
    kl = closed if make in (AnalyticKL, TraceMeanField_ELBO) else sampled
    pyro.set_rng_seed(1)
    with KLWeight(0.3):
        loss = float(make().loss(system.model, system.guide, x))
    assert loss == pytest.approx((0.3 * kl - system.p_x(z).log_prob(x).sum()).item(), rel=1e-12)


def test_kl_warmup_and_validation(binary: Splits) -> None:
    """Warm-up lets the code carry more at first; the validation bound is always the full one:
    distortion + rate.
    """
    results = []
    for warmup in (4, 0):
        torch.manual_seed(0)
        system = zoo.vae(binary.train, 5, encoder=MLP((50,)))
        config = TrainConfig(epochs=4, kl_warmup=warmup, lr=3e-3)
        results.append(fit(system, binary, AnalyticKL(), config, progress=False).history)
        for epoch in results[-1]:
            assert epoch.valid_nelbo == pytest.approx(epoch.distortion + epoch.rate, abs=0.5)
    warm, cold = results
    assert warm[0].rate > cold[0].rate + 0.5
    assert warm[0].train_nelbo < cold[0].train_nelbo


def test_early_stopping_keeps_the_best(binary: Splits) -> None:
    few = Splits(binary.train.subset(np.arange(100)), binary.valid, None, "", "dynamic")
    few = Splits(Dataset("few", (few.train.x > 0.5).float(), (8, 8)), few.valid, None, "", "static")
    system = zoo.vae(few.train, 10, encoder=MLP((200,)))
    config = TrainConfig(epochs=300, batch_size=50, lr=5e-3, patience=10)
    result = fit(system, few, AnalyticKL(), config, progress=False)
    assert result.stopped_early
    assert len(result.history) == result.best_epoch + 10
    valid = [e.valid_nelbo for e in result.history]
    assert min(valid) == valid[result.best_epoch - 1]
    assert few.valid is not None
    pyro.set_rng_seed(config.seed)
    kept = AnalyticKL().loss(system.model, system.guide, few.valid.x) / len(few.valid)
    assert kept == pytest.approx(min(valid), abs=0.2)
    assert kept < valid[-1] - 0.2


def test_gradient_clipping(digits: Dataset) -> None:
    """With SGD a clipped step moves the parameters by at most lr times the clip."""
    system = zoo.linear_autoencoder(digits, 5)
    before = torch.cat([p.detach().flatten().clone() for p in system.parameters()])
    config = TrainConfig(epochs=1, batch_size=len(digits), optimizer="SGD", lr=0.5, grad_clip=1e-3)
    fit(system, digits, config=config, progress=False)
    after = torch.cat([p.detach().flatten() for p in system.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.5e-3, rel=1e-2)


def test_schedules() -> None:
    assert schedule("constant", 0.9) == 1.0
    assert schedule("linear", 0.25) == 0.75
    assert schedule("cosine", 0.5) == pytest.approx(0.5)
    starts = [(3**i - 1) / 2 / 3280 for i in range(8)]  # Burda 2016: 3^i passes at 10^(−i/7)
    assert [schedule("burda", s + 1e-9) for s in starts] == pytest.approx(
        [10 ** (-i / 7) for i in range(8)]
    )


def test_history_is_written(binary: Splits, tmp_path: Path) -> None:
    result = fit(zoo.vae(binary.train, 2), binary, config=TrainConfig(epochs=2), progress=False)
    result.to_csv(tmp_path / "metrics.csv")
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert list(rows[0]) == [
        "epoch",
        "step",
        "seconds",
        "train_nelbo",
        "valid_nelbo",
        "distortion",
        "rate",
        "accuracy",
    ]
    assert [float(r["valid_nelbo"]) for r in rows] == [e.valid_nelbo for e in result.history]
    assert [int(r["step"]) for r in rows] == [15, 30]


def test_resumed_training_takes_the_same_steps(binary: Splits) -> None:
    states: list[State] = []
    config = TrainConfig(epochs=4, schedule="cosine")
    torch.manual_seed(0)
    system = zoo.vae(binary.train, 2, encoder=MLP((10,)))
    whole = fit(system, binary, config=config, on_epoch=states.append, progress=False)
    other = zoo.vae(binary.train, 2, encoder=MLP((10,)))
    rest = fit(other, binary, config=config, state=states[1], progress=False)
    assert [e.train_nelbo for e in rest.history] == [e.train_nelbo for e in whole.history]
    for name, value in system.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


# Refusals and faults.


def test_refusals(binary: Splits, digits: Dataset) -> None:
    vae = zoo.vae(binary.train, 2)
    with pytest.raises(
        ConfigError, match="batch_size of 5000 is larger than the 1455 training data"
    ):
        fit(vae, binary, config=TrainConfig(batch_size=5000))
    with pytest.raises(DataError, match="grey values, for which a Bernoulli has no density"):
        fit(vae, digits)
    with pytest.raises(
        DataError, match="values from 0 to 16; a Bernoulli likelihood needs values in"
    ):
        fit(vae, digits.x * 16)
    with pytest.raises(
        DataError, match=r"x has the shape \(1, 5\); this autoencoder takes \[N, 64\]"
    ):
        fit(vae, torch.eye(200)[:, :5])
    with pytest.raises(ConfigError, match="unknown optimizer 'Adan': did you mean 'Adam'"):
        fit(vae, binary, config=TrainConfig(optimizer="Adan"))
    with pytest.raises(ConfigError, match="Adam does not accept"):
        fit(vae, binary, config=TrainConfig(optimizer_args={"momentom": 1}))
    with pytest.raises(ConfigError, match="RenyiELBO has no differentiable_loss"):
        fit(vae, binary, RenyiELBO())
    with pytest.raises(ConfigError, match="accelerator 'abacus'"):
        fit(vae, binary, config=TrainConfig(accelerator="abacus"))


@pytest.mark.parametrize("epochs_before", [0, 2])
def test_a_loss_that_becomes_nan(digits: Dataset, epochs_before: int) -> None:
    """It stops, says at which step, and puts the last good weights back."""
    system = zoo.linear_autoencoder(digits, 3)
    good: list[dict[str, Tensor]] = [{k: v.clone() for k, v in system.state_dict().items()}]
    config = TrainConfig(epochs=5, batch_size=len(digits) // 3)
    poison = epochs_before * 3 + 1
    calls = 0

    class Poisoned(TraceELBO):
        def estimate(self, traces: Any) -> Any:
            nonlocal calls
            calls += 1
            bound = super().estimate(traces)
            return (
                type(bound)(*(b * math.nan for b in bound)) if calls == poison + 2 else bound
            )  # one call before the start

    def keep(state: State) -> None:
        good.append(state.weights)

    with pytest.raises(
        NonFiniteLossError,
        match=rf"NaN or infinite at step {poison + 1}, in epoch {epochs_before + 1}, "
        "on a batch .* kept",
    ):
        fit(system, digits, Poisoned(), config, on_epoch=keep, progress=False)
    assert len(good) == epochs_before + 1
    for name, value in system.state_dict().items():
        assert torch.equal(value, good[-1][name])
        assert torch.isfinite(value).all()


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(SYSTEMS))
def test_trains_on_a_gpu(name: str) -> None:
    system = SYSTEMS[name]()
    x = (torch.rand(50, 16) < torch.rand(16)).float()
    result = fit(
        system,
        x,
        config=TrainConfig(epochs=20, batch_size=25, lr=1e-2, accelerator="cuda"),
        progress=False,
    )
    assert next(system.parameters()).is_cuda
    assert result.history[-1].train_nelbo < result.history[0].train_nelbo
