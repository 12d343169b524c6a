"""Conditional systems: model and guide of (x, c), closed forms, training, runs and commands."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyroae import zoo
from pyroae.autoencoder import Autoencoder
from pyroae.cli import main
from pyroae.commands.train import train_run
from pyroae.config import AISSettings, Part, RunConfig, TrainConfig
from pyroae.data.dataset import Dataset
from pyroae.data.loading import load
from pyroae.errors import PyroaeError
from pyroae.evaluation import ais, bdmc, diagnose, evaluate, gaps, log_likelihood, quadrature
from pyroae.evaluation.exact import exact_log_likelihood
from pyroae.inference_data import to_datatree
from pyroae.nn import MLP, Conv
from pyroae.objectives import parse_objective
from pyroae.runs.data_of_run import part_of
from pyroae.runs.run import Run
from pyroae.training import State, fit, fit_ensemble
from pyroae.weights import log_weights
from tests.pictures import leave_out_pictures

X = np.random.default_rng(1).random((40, 16))
LABELS = np.arange(40) % 3
DATA = load((X, LABELS), binarize="dynamic", valid=0.2, test=0, condition="labels")
CONFIG = TrainConfig(epochs=2, batch_size=8)


def small() -> Autoencoder:
    torch.manual_seed(0)
    return zoo.conditional_vae(DATA.train, 2, hidden=(5,))


def gaussian(exact: bool) -> tuple[Autoencoder, Tensor, Tensor]:
    """A linear-Gaussian system with a condition, and its data."""
    return (
        zoo.ppca(4, 2, exact=exact, condition=3),
        torch.randn(6, 4),
        torch.cat([torch.eye(3), torch.randn(3, 3)]),
    )


@pytest.mark.usefixtures("float64")
def test_log_px_of_a_linear_gaussian_decoder_is_exact_at_every_condition() -> None:
    system, x, c = gaussian(exact=True)
    weight, _, sigma = system.linear_gaussian(c)
    covariance = weight @ weight.t() + sigma**2 * torch.eye(4)
    means = torch.stack([system.decoder(torch.cat([torch.zeros(2), one])) for one in c])
    log_px = MultivariateNormal(means, covariance).log_prob(x).detach()
    close: dict[str, Any] = {"rtol": 0.0, "atol": 1e-8}
    torch.testing.assert_close(exact_log_likelihood(system, x, c), log_px, **close)
    weights = log_weights(system.model, system.guide, x, c, num_particles=3).log_weight
    torch.testing.assert_close(weights.detach(), log_px.expand(3, 6), **close)
    mean_field, *_ = gaussian(exact=False)
    mean_field.load_state_dict(system.state_dict(), strict=False)
    estimate = quadrature(mean_field.model, mean_field.guide, (x, c)).log_px
    torch.testing.assert_close(estimate, log_px, **close)


@pytest.mark.usefixtures("float64")
def test_evaluators_take_x_and_c() -> None:
    system, x, c = gaussian(exact=False)
    exact = exact_log_likelihood(system, x, c)
    programs = (system.model, system.guide, (x, c))
    short = AISSettings(num_chains=4, num_distributions=25)
    found = log_likelihood(*programs, num_particles=2000)
    assert ((found.log_px - exact).abs() < 6 * found.se + 0.05).all()
    annealed = ais(*programs, settings=short, compile=False)
    assert ((annealed.log_px - exact).abs() < 6 * annealed.se + 0.05).all()
    assert abs(bdmc(*programs, settings=short, compile=False).mean_gap) < 0.5
    gap = gaps(*programs, log_px=exact)
    assert gap.inference.mean > 0
    assert diagnose(*programs).active_units == 2
    results = evaluate(system, (x, c)).results
    assert results["nll_exact"].estimate == pytest.approx(-exact.mean().item(), abs=1e-9)
    tree = to_datatree(*programs, num_draws=3)
    assert tree["observed_data"]["x_1"].shape == (6, 3)


@pytest.mark.parametrize("encoder", [MLP((5,)), Conv((3,), 6)])
def test_a_condition_changes_posterior_and_likelihood(encoder: Any) -> None:
    system = zoo.conditional_vae((4, 4), 2, condition=3, encoder=encoder)
    x, c = torch.rand(5, 16), torch.eye(3)[[0, 1, 2, 0, 1]]
    assert not torch.allclose(system.encode(x, c), system.encode(x, c.flip(0)))
    z = torch.randn(7, 5, 2)
    means = system.decode(z, c)
    torch.testing.assert_close(means[3, 1], system.decode(z[3, 1], c[1]))
    torch.testing.assert_close(system.encode(x[1:2], c[1:2]), system.encode(x, c)[1:2])
    system.guide(x, c)


def test_planes_of_channels_last_images_are_those_of_channels_first() -> None:
    form, first = Conv((3,), 6), (3, 8, 8)
    one = form.conditional_encoder(first, 2, 4)
    other = form.conditional_encoder((8, 8, 3), 2, 4)
    other.load_state_dict(one.state_dict())
    images, c = torch.rand(5, *first), torch.rand(5, 2)
    flat = [torch.cat([t.flatten(1), c], 1) for t in (images, images.movedim(1, -1))]
    torch.testing.assert_close(one(flat[0]), other(flat[1]))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["trace-elbo", "dreg"])
def test_a_compiled_training_is_the_eager_one(objective: str) -> None:
    losses = []
    for compiled in (False, True):
        result = fit(
            small(), DATA, parse_objective(objective, 2), CONFIG, compile=compiled, progress=False
        )
        losses.append([row.train_nelbo for row in result.history])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_a_resumed_training_is_the_uninterrupted_one() -> None:
    states: list[State] = []
    whole = fit(small(), DATA, config=CONFIG, on_epoch=states.append, progress=False)
    first: list[State] = []
    fit(small(), DATA, config=replace(CONFIG, epochs=1), on_epoch=first.append, progress=False)
    again = fit(small(), DATA, config=CONFIG, state=first[-1], progress=False)
    for name, value in whole.system.state_dict().items():
        assert torch.equal(value, again.system.state_dict()[name])


def test_pairs_of_tensors_train_a_conditional_system() -> None:
    x, c = (DATA.train.x > 0.5).float(), DATA.train.condition
    result = fit(small(), (x, c), config=CONFIG, progress=False)
    assert result.history[1].train_nelbo < result.history[0].train_nelbo


@pytest.mark.slow
def test_members_of_an_ensemble_have_the_losses_of_single_trainings() -> None:
    members = [small(), small()]
    config = replace(CONFIG, compile=True)
    together = fit_ensemble(members, DATA, config=config, seeds=(0, 1), progress=False)
    for seed, result in enumerate(together):
        alone = fit(small(), DATA, config=replace(config, seed=seed), progress=False)
        np.testing.assert_allclose(
            [row.train_nelbo for row in result.history],
            [row.train_nelbo for row in alone.history],
            rtol=1e-5,
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective", ["trace-elbo", "iwae", "stl", "dreg", "vimco", "rws", "score"]
)
@pytest.mark.parametrize("system", ["vae", "ppca", "discrete-vae", "denoising-ae"])
def test_systems_with_a_condition_train_under_every_objective(system: str, objective: str) -> None:
    data = load((X, LABELS), binarize="static", valid=0.2, test=0, condition="labels")
    made = zoo.SYSTEMS[system](data.train, 2)
    try:
        result = fit(made, data, parse_objective(objective, 3), CONFIG, progress=False)
    except PyroaeError:
        plain = load((X, LABELS), binarize="static", valid=0.2, test=0)
        unconditional = zoo.SYSTEMS[system](plain.train, 2)
        with pytest.raises(PyroaeError):  # a combination that is refused without a condition too
            fit(unconditional, plain, parse_objective(objective, 3), CONFIG, progress=False)
        return
    assert all(np.isfinite(row.train_nelbo) for row in result.history)


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (lambda: small().model(torch.ones(2, 16)), r"is conditional: give c, of shape \[N, 3\]"),
        (lambda: small().encode(torch.ones(2, 16)), "is conditional: give c"),
        (lambda: small().sample(2), "is conditional: give c"),
        (lambda: small().q_z(torch.ones(2, 16), torch.ones(2, 4)), r"takes \[N, 3\]"),
        (lambda: small().q_z(torch.ones(2, 16), torch.ones(3, 3)), "does not fit data or draws"),
        (lambda: small().q_z(torch.ones(2, 16), torch.ones(2, 3).double()), "convert one of them"),
        (lambda: zoo.vae(16, 2).model(torch.ones(2, 16), torch.ones(2, 3)), "has none"),
        (lambda: zoo.conditional_vae(16, 2), "a conditional VAE needs a condition"),
        (lambda: zoo.vae(16, 2, condition=3, tied=True), "tied weights need an encoder, no cond"),
        (
            lambda: fit(small(), Dataset.from_array(X), config=CONFIG, progress=False),
            "is conditional: give c",
        ),
        (
            lambda: fit(zoo.vae(16, 2), DATA, config=CONFIG, progress=False),
            "a condition c is given, but",
        ),
    ],
)
def test_refused(work: Any, words: str) -> None:
    with pytest.raises(PyroaeError, match=words):
        work()


def test_a_run_is_trained_sampled_and_evaluated_by_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out_pictures(monkeypatch, keep={"samples", "reconstructions"})
    run = str(tmp_path / "run")
    system = ["--system", "conditional-vae", "--condition", "labels", "--hidden", "8"]
    main(["train", *system, "--latent", "2", "--max-steps", "20", "--out", run])
    assert Run(run).condition_names == tuple("0123456789")
    main(["sample", run, "--label", "3", "--num", "4", "--out", f"{run}/three.csv"])
    rows = list(csv.DictReader((tmp_path / "run" / "three.csv").read_text().splitlines()))
    assert [row["label"] for row in rows] == ["3"] * 4
    main(["sample", run, "--num", "20"])
    main(["reconstruct", run, "--num-data", "3"])
    main(["encode", run, "--num-data", "3"])
    main(["evaluate", run, "--num-data", "5", "--num-particles", "20"])
    assert (tmp_path / "run" / "figures" / "samples.png").is_file()
    assert main(["sample", run, "--label", "12"]) == 2


def test_new_data_with_an_unseen_label_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=LABELS)
    np.savez(tmp_path / "b.npz", x=X, y=LABELS + 1)
    config = RunConfig(
        system="ppca",
        latent=2,
        data=str(tmp_path / "a.npz"),
        condition="labels",
        max_steps=2,
        batch_size=8,
    )
    run, _ = train_run(config, tmp_path / "run", False)
    with pytest.raises(PyroaeError, match=r"label '3' of datum 2 of b was never seen in training"):
        part_of(run, Part(data=str(tmp_path / "b.npz")))
