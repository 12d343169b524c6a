"""M2: bounds, gradients and log p(x) against sums that are written out here; training, commands."""

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyroae import likelihoods, zoo
from pyroae.autoencoder import M2, correct_classes
from pyroae.cli import main
from pyroae.config import AISSettings, RunConfig, TrainConfig
from pyroae.data.conditions import Conditioning
from pyroae.data.loading import load
from pyroae.data.partial_labels import partly_labelled
from pyroae.errors import PyroaeError
from pyroae.evaluation import ais, diagnose, gaps, log_likelihood, quadrature
from pyroae.nn import MLP
from pyroae.objectives import TraceELBO, parse_objective
from pyroae.training import State, fit
from tests.pictures import leave_out_pictures

X = np.random.default_rng(1).random((40, 16))
LABELS = np.array([0, 1, 2, -1] * 10)
HOW = Conditioning(optional=True)
DATA = partly_labelled(load((X, LABELS), binarize="dynamic", valid=0.2, test=0, condition=HOW))
CONFIG = TrainConfig(epochs=2, batch_size=8)


def small() -> M2:
    torch.manual_seed(0)
    return zoo.m2(DATA.train, 2, hidden=(5,))


def tiny(alpha: float = 0.7) -> tuple[M2, Tensor, Tensor]:
    """A system with one latent unit and two classes, and data of which two are labelled."""
    system = M2(3, 1, 2, alpha, encoder=MLP((4,)), likelihood=likelihoods.Normal(0.5, learn=True))
    return system, torch.randn(4, 3), torch.tensor([[1.0, 0], [0, 0], [0, 1], [0, 0]])


def bound_by_hand(system: M2, x: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
    """Σ_labelled [L(x, y) + α log q(y|x)] + Σ_unlabelled Σ_y q(y|x) [L(x, y) − log q(y|x)]."""
    log_q = system.classifier(x).log_softmax(-1)
    total = torch.tensor(0.0)
    for n in range(len(x)):
        parts = []
        for s in range(2):
            y = torch.eye(2)[s]
            loc, log_variance = system.encoder(torch.cat([x[n], y])).chunk(2)
            q_z = torch.distributions.Normal(loc, (0.5 * log_variance).exp())
            terms = []
            for eps in noise[s, :, n]:
                z = loc + q_z.scale * eps
                scale = system.learned_likelihood.get_parameter("log_scale").exp()
                p_x = torch.distributions.Normal(system.decoder(torch.cat([z, y])), scale)
                log_pz = torch.distributions.Normal(0.0, 1.0).log_prob(z)
                terms.append(
                    math.log(0.5) + p_x.log_prob(x[n]).sum() + (log_pz - q_z.log_prob(z)).sum()
                )
            parts.append(torch.stack(terms).mean())
        if labels[n].sum():
            s = int(labels[n].argmax())
            total = total + parts[s] + system.alpha * log_q[n, s]
        else:
            total = total + sum(log_q[n, s].exp() * (parts[s] - log_q[n, s]) for s in range(2))
    return total


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("num_particles", [1, 3])
def test_bound_and_gradient_are_those_of_brute_force(num_particles: int) -> None:
    system, x, labels = tiny()
    objective = TraceELBO(num_particles)
    torch.manual_seed(3)
    value, surrogate = objective.bound(system.model, system.guide, x, labels)
    torch.manual_seed(3)
    shape = (2 * num_particles, len(x), 1)
    noise = torch.normal(torch.zeros(shape), torch.ones(shape)).unflatten(0, (2, -1))
    expected = bound_by_hand(system, x, labels, noise)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-8)
    parameters = list(system.parameters())
    found = torch.autograd.grad(surrogate, parameters)
    correct = torch.autograd.grad(expected, parameters)
    for one, other in zip(found, correct, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)
        assert one.abs().max() > 1e-6


@pytest.mark.usefixtures("float64")
def test_log_px_sums_over_the_classes() -> None:
    system, x, labels = tiny()
    z = torch.linspace(-12, 12, 6001)[:, None]
    with torch.no_grad():
        log_joint = [
            math.log(0.5)
            + torch.distributions.Normal(0.0, 1.0).log_prob(z)
            + system.p_x(z[:, None], torch.eye(2)[s].expand(6001, 1, 2)).log_prob(x)
            for s in range(2)
        ]
        log_joint_of_y = torch.stack(log_joint).logsumexp(1) + math.log(24 / 6000)
    log_px = log_joint_of_y.logsumexp(0)
    estimate = quadrature(system.model, system.guide, x)
    torch.testing.assert_close(estimate.log_px, log_px, rtol=0, atol=1e-8)
    system.eval()
    bound = TraceELBO(2000).bound(system.model, system.guide, x, labels).value
    unlabelled = labels.sum(1) == 0
    exact = log_px[unlabelled].sum() + (log_joint_of_y.t() * labels).sum()
    assert bound < exact


@pytest.mark.usefixtures("float64")
def test_evaluators_take_x_alone() -> None:
    system, x, _ = tiny()
    exact = quadrature(system.model, system.guide, x).log_px
    programs = (system.model, system.guide, x)
    found = log_likelihood(*programs, num_particles=2000)
    assert ((found.log_px - exact).abs() < 6 * found.se + 0.1).all()
    annealed = ais(
        *programs, settings=AISSettings(num_chains=4, num_distributions=25), compile=False
    )
    assert ((annealed.log_px - exact).abs() < 6 * annealed.se + 0.2).all()
    assert gaps(*programs, log_px=exact).inference.mean > 0
    assert (diagnose(*programs).rate > -0.1).all()
    assert system.encode(x).shape == (4, 1)
    assert system.sample(5).shape == (5, 3)


@pytest.mark.slow
def test_a_compiled_training_is_the_eager_one() -> None:
    losses = []
    for compiled in (False, True):
        result = fit(small(), DATA, config=CONFIG, compile=compiled, progress=False)
        losses.append([row.train_nelbo for row in result.history])
        assert all(0 <= row.accuracy <= 1 for row in result.history)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_a_resumed_training_is_the_uninterrupted_one() -> None:
    whole = fit(small(), DATA, config=CONFIG, progress=False)
    first: list[State] = []
    fit(small(), DATA, config=replace(CONFIG, epochs=1), on_epoch=first.append, progress=False)
    again = fit(small(), DATA, config=CONFIG, state=first[-1], progress=False)
    for name, value in whole.system.state_dict().items():
        assert torch.equal(value, again.system.state_dict()[name])


def test_labels_teach_the_classifier() -> None:
    x = torch.eye(3).repeat_interleave(20, 0).repeat(1, 4)
    labels = np.arange(60) // 20
    splits = load((x, labels), valid=0.2, test=0, condition="labels")
    data = partly_labelled(splits, num_labels=6)
    system = zoo.m2(data.train, 1, hidden=(8,), classification=1.0)
    assert system.alpha == pytest.approx(48 / 6)
    result = fit(
        system, data, config=TrainConfig(epochs=60, batch_size=16, lr=0.02), progress=False
    )
    assert result.history[0].accuracy < 1
    assert result.history[-1].accuracy == 1
    assert data.valid is not None
    correct = correct_classes(system, data.valid.x, data.valid.labels, data.valid.condition_names)
    assert correct is not None
    assert correct.tolist() == [1.0] * 12


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["iwae", "vimco", "score"])
def test_other_objectives_draw_the_class(objective: str) -> None:
    with pytest.warns(UserWarning, match="the sites y of the guide are marked"):
        result = fit(small(), DATA, parse_objective(objective, 3), CONFIG, progress=False)
    assert all(math.isfinite(row.train_nelbo) for row in result.history)


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (lambda: zoo.m2(16, 2), "M2 needs labels"),
        (lambda: zoo.m2(16, 2, condition=1), "two or more classes"),
        (lambda: zoo.m2(16, 2, condition=3, classification=-1.0), "0 or more, not -1"),
        (lambda: zoo.m2(DATA.train.conditioned_on(np.zeros((32, 3))), 2), "none of the training"),
        (lambda: partly_labelled(DATA, 2), "at least the number of classes, 3"),
        (lambda: partly_labelled(DATA, 40), "fewer than num_labels of 40"),
        (lambda: partly_labelled(load(X), 4), "has no labels to be learned from"),
        (lambda: RunConfig(system="m2", condition="age"), "m2 learns from labels: leave out"),
        (lambda: RunConfig(num_labels=10), "num_labels hides labels from m2; vae uses"),
        (lambda: RunConfig(system="m2", classification=-1.0), "classification must be at least 0"),
    ],
)
def test_refused(work: Any, words: str) -> None:
    with pytest.raises(PyroaeError, match=words):
        work()


def test_a_run_is_trained_evaluated_and_sampled_by_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out_pictures(monkeypatch, keep={"samples", "reconstructions"})
    run = str(tmp_path / "run")
    settings = ["--num-labels", "50", "--latent", "2", "--hidden", "8", "--max-steps", "20"]
    assert main(["train", "--system", "m2", *settings, "--out", run]) == 0
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert 0 <= float(rows[-1]["accuracy"]) <= 1
    assert main(["evaluate", run, "--num-data", "5", "--num-particles", "20"]) == 0
    assert '"accuracy"' in (tmp_path / "run" / "results.json").read_text()
    assert main(["sample", run, "--label", "3", "--num", "4", "--out", f"{run}/three.csv"]) == 0
    assert main(["encode", run, "--num-data", "3"]) == 0
    assert main(["reconstruct", run, "--num-data", "3"]) == 0
