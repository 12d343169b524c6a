"""Sparse autoencoders: codes that are exactly zero, live atoms, a warning where none is alive."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import pyroae
from pyroae import zoo
from pyroae.autoencoder import Autoencoder
from pyroae.config import EvaluationSettings, TrainConfig
from pyroae.data.loading import Splits
from pyroae.errors import PyroaeError
from pyroae.evaluation.summary import evaluate
from pyroae.nn import MLP
from pyroae.objectives import parse_objective
from pyroae.posteriors import Posterior, SoftThreshold, TopK
from pyroae.training.fitting import fit
from pyroae.training.state import State
from tests.systems import FOR_GAUSSIANS

POSTERIORS = pytest.mark.parametrize(
    "posterior", [SoftThreshold(0.25), SoftThreshold(0.1, learn=True), TopK(3)], ids=str
)

NEED_A_DENSITY = ("dreg", "rws", "rws-dreg", "vimco", "score", "tvo")
"""Objectives that follow the density of the guide's draws, which a Delta does not have."""


@pytest.fixture(scope="module")
def digits() -> Splits:
    return pyroae.load("digits")


def system_of(digits: Splits, posterior: Posterior, **choices: Any) -> Autoencoder:
    torch.manual_seed(0)
    return zoo.sparse_autoencoder(
        digits.train, 12, posterior=posterior, encoder=MLP((16,)), **choices
    )


def figures(system: Autoencoder, digits: Splits) -> tuple[float, float, float]:
    """The share of zeros, of live units, and the squared error relative to the mean predictor's."""
    assert digits.test is not None
    x = digits.test.x
    found = evaluate(system, x, EvaluationSettings(num_particles=10)).results
    worst = (x - digits.train.mean).square().sum(1).mean().item()
    codes = system.encode(x)
    assert found["zero_share"].estimate == pytest.approx((codes == 0).double().mean().item())
    assert found["live_share"].estimate == (codes != 0).any(0).double().mean().item()
    return (
        found["zero_share"].estimate,
        found["live_share"].estimate,
        found["squared_error"].estimate / worst,
    )


@pytest.mark.parametrize(
    ("latent", "epochs"),
    [(20, 14), *(pytest.param(m, 50, marks=pytest.mark.slow) for m in (20, 100))],
)
def test_the_default_is_sparse_and_alive(digits: Splits, latent: int, epochs: int) -> None:
    torch.manual_seed(0)
    system = zoo.sparse_autoencoder(digits.train, latent)
    fit(system, digits, config=TrainConfig(epochs=epochs), progress=False)
    zeros, live, error = figures(system, digits)
    assert zeros >= 0.5
    assert live >= 0.9
    assert error < 0.5


@POSTERIORS
def test_codes_are_zero_as_the_posterior_says(digits: Splits, posterior: Posterior) -> None:
    system = system_of(digits, posterior)
    fit(system, digits, config=TrainConfig(epochs=1), progress=False)
    zeros, live, _ = figures(system, digits)
    assert live > 0
    assert zeros == 0.75 if isinstance(posterior, TopK) else 0.1 < zeros < 1


@POSTERIORS
def test_a_resumed_training_is_the_uninterrupted_one(digits: Splits, posterior: Posterior) -> None:
    states: list[State] = []
    whole, config = system_of(digits, posterior), TrainConfig(epochs=2)
    fit(whole, digits, config=config, on_epoch=states.append, progress=False)
    again = system_of(digits, posterior)
    fit(again, digits, config=config, state=states[0], progress=False)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.slow
@POSTERIORS
def test_compiled_training_is_the_eager_one(digits: Splits, posterior: Posterior) -> None:
    systems = [system_of(digits, posterior).double() for _ in range(2)]
    config = TrainConfig(epochs=2, precision="64-true")
    for system, compile in zip(systems, (False, True), strict=True):
        fit(system, digits, config=config, compile=compile, progress=False)
    for name, value in systems[0].state_dict().items():
        torch.testing.assert_close(value, systems[1].state_dict()[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("has_valid", [True, False])
def test_dead_units_are_warned_of(digits: Splits, has_valid: bool) -> None:
    system = system_of(digits, SoftThreshold(50.0))
    data = digits if has_valid else digits.train.first(100)
    with pytest.warns(UserWarning, match="every latent unit is dead: .* lower the rate"):
        fit(system, data, config=TrainConfig(epochs=1), progress=False)


def test_atoms_start_at_directions_of_the_data(digits: Splits) -> None:
    system = system_of(digits, SoftThreshold())
    atoms = system.decoder[0].atoms  # type: ignore[index]
    centred = digits.train.x - digits.train.mean
    units = centred / centred.norm(dim=1, keepdim=True)
    torch.testing.assert_close((units @ atoms).max(0).values, torch.ones(12))
    assert len({tuple(atom) for atom in atoms.t().tolist()}) == 12


@pytest.mark.parametrize("num_data", [1, 2, 5])
def test_more_atoms_than_data_keep_their_random_start(num_data: int) -> None:
    torch.manual_seed(0)
    x = torch.rand(num_data, 6)
    before = zoo.sparse_autoencoder(6, 9)
    weight = before.decoder[0].weight.detach().clone()  # type: ignore[index]
    before.start_at(x.mean(0), x)
    after = before.decoder[0].weight.detach()  # type: ignore[index]
    assert after.isfinite().all()
    changed = (after != weight).any(0).sum().item()
    assert changed == (0 if num_data == 1 else num_data)
    torch.testing.assert_close(after.norm(dim=0), weight.norm(dim=0))


@pytest.mark.parametrize(
    ("choices", "threshold"),
    [
        ({"rate": 0.5}, 0.5),
        ({"prior": pyroae.priors.Laplace(2.0)}, 2.0),
        ({"rate": 2.0, "likelihood": pyroae.likelihoods.Normal(0.1)}, 0.02),
        ({"rate": 0.5, "likelihood": pyroae.likelihoods.Bernoulli()}, 0.5),
    ],
)
def test_the_threshold_is_that_of_the_prior(choices: dict[str, Any], threshold: float) -> None:
    made: Callable[..., Autoencoder] = zoo.sparse_autoencoder
    posterior = made(6, 9, **choices).posterior
    assert isinstance(posterior, SoftThreshold)
    assert posterior.threshold == pytest.approx(threshold)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOR_GAUSSIANS)
@POSTERIORS
def test_every_objective_trains_or_refuses_a_point(
    digits: Splits, posterior: Posterior, name: str
) -> None:
    """Those that need the density of q refuse a Delta in words; the others lower their loss."""
    system, objective = system_of(digits, posterior), parse_objective(name, 2)
    config = TrainConfig(epochs=2, seed=1)
    if name in NEED_A_DENSITY:
        with pytest.raises(PyroaeError, match="its site 'z' is a Delta"):
            fit(system, digits, objective, config, progress=False)
        return
    history = fit(system, digits, objective, config, progress=False).history
    assert history[1].train_nelbo < history[0].train_nelbo
