"""The likelihoods: formulas, supports, starts, data that do not suit; the optimal scale; counts,
codes and mixed tables from a file to a score.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from pyroae import linear_gaussian, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.compilation.svi import Compiled
from pyroae.config import AISSettings, EvaluationSettings, RunConfig, TrainConfig
from pyroae.data.dataset import Dataset
from pyroae.errors import ConfigError, DataError, ProgramError, UndefinedLikelihoodError
from pyroae.evaluation.adaptive_quadrature import quadrature
from pyroae.evaluation.annealing.bounds import bdmc
from pyroae.evaluation.importance.likelihood import log_likelihood
from pyroae.evaluation.summary import evaluate
from pyroae.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    DiscretizedLogistic,
    Laplace,
    Mixed,
    NegativeBinomial,
    Normal,
    OptimalScale,
    Poisson,
    Student,
    ZeroInflatedNegativeBinomial,
)
from pyroae.likelihoods.count_distributions import MeanNegativeBinomial
from pyroae.likelihoods.scales import RATE
from pyroae.nn import MLP
from pyroae.objectives import TraceELBO, parse_objective
from pyroae.plots import column_errors
from pyroae.posteriors import Point
from pyroae.priors import Flat
from pyroae.runs.data_of_run import splits_of
from pyroae.training import fit, fit_ensemble
from pyroae.training.optimizers import optimizer_of
from pyroae.training.state import State
from tests.test_choices import TEXTS as NEEDED

pytestmark = pytest.mark.usefixtures("float64")

MIXED = "mixed:columns=normal(optimal)*2+categorical(3)+negative-binomial"
TEXTS = [
    *(name for name in LIKELIHOODS if name not in NEEDED),
    *("normal:scale=learned", "normal:scale=feature", "normal:scale=decoder"),
    *("normal:scale=optimal", "laplace:scale=optimal", "laplace:scale=decoder"),
    *("student:scale=decoder", "discretized-logistic:scale=feature", "categorical:categories=3"),
    *("poisson:library=100", "poisson:library=observed"),
    *("negative-binomial:dispersion=decoder", "negative-binomial:library=observed"),
    "zero-inflated-negative-binomial:library=observed,dispersion=decoder",
    MIXED,
]
COUNTS = ("poisson", "negative-binomial", "zero-inflated-negative-binomial")
D = 4
SLOW = pytest.mark.slow


def data_for(text: str, num_data: int = 30) -> Tensor:
    """Random data that suit a likelihood, `[N, 4]`."""
    name = text.partition(":")[0]
    if name == "mixed":
        counts = torch.poisson(torch.full((num_data, 1), 3.0))
        codes = torch.randint(3, (num_data, 1)).double()
        return torch.cat([torch.randn(num_data, 2), codes, counts], 1)
    if name in COUNTS:
        return torch.poisson(3 * torch.rand(num_data, D)) + torch.eye(D)[0]
    if name == "categorical":
        return torch.randint(3 if "=3" in text else 2, (num_data, D)).double()
    if name == "discretized-logistic":
        return torch.randint(256, (num_data, D)) / 255.0
    if "bernoulli" in name:
        return torch.randint(2, (num_data, D)).double()
    return torch.randn(num_data, D)


def system_for(text: str, x: Tensor | None = None) -> Autoencoder:
    """A small system with random weights, at the start for its data."""
    x = data_for(text) if x is None else x
    torch.manual_seed(2)
    likelihood = LIKELIHOODS.parse(text)
    return zoo.vae(Dataset.from_array(x), latent=2, hidden=(6,), likelihood=likelihood)


def given(optimizer: torch.optim.Optimizer, _: Any) -> torch.optim.Optimizer:
    """An optimizer that was made before."""
    return optimizer


# Every likelihood


@pytest.mark.parametrize("text", TEXTS)
def test_shapes_types_draws_and_points(text: str) -> None:
    x = data_for(text)
    for dtype in (torch.float32, torch.float64):
        system = system_for(text, x).to(dtype)
        p_x = system.p_x(torch.randn(3, 30, 2, dtype=dtype))
        assert (p_x.batch_shape, p_x.event_shape) == ((3, 30), (D,))
        log_p = p_x.log_prob(x.to(dtype))
        assert log_p.dtype == dtype
        assert log_p.isfinite().all()
        draws, points = p_x.sample(), system.likelihood.point(p_x)
        assert draws.dtype == points.dtype == dtype
        assert draws.shape == points.shape == (3, 30, D)
        assert points.isfinite().all()
        if "observed" not in text:  # draws may be without counts
            system.likelihood.check(draws.reshape(-1, D), "draws")
        single = system.p_x(torch.zeros(2, dtype=dtype))
        torch.testing.assert_close(
            single.expand((30,)).log_prob(x.to(dtype)), single.log_prob(x.to(dtype))
        )
        assert p_x.support.check(x.to(dtype)).all()
        assert single.sample((5,)).shape == (5, D)


@pytest.mark.parametrize("text", TEXTS)
def test_draws_have_the_mean(text: str) -> None:
    system = system_for(text)
    p_x = system.p_x(torch.zeros(2))
    draws, codes = p_x.sample((20_000,)), system.likelihood.codes(D)
    error = (draws.mean(0) - p_x.mean).abs() / draws.std(0)
    assert (error[~codes] < 5 / math.sqrt(20_000)).all()
    assert p_x.mean[codes].isnan().all()


@pytest.mark.parametrize("text", TEXTS)
def test_training_starts_at_the_data(text: str) -> None:
    x = data_for(text)
    system = system_for(text, x)
    with torch.no_grad():
        last = cast(nn.Linear, cast(nn.Sequential, system.decoder)[-1])
        last.weight.zero_()
    p_x = system.p_x(torch.zeros(2))
    codes = system.likelihood.codes(D)
    center = last.bias[:D] if text.startswith("discretized") else p_x.mean
    if "library" not in text:
        torch.testing.assert_close(center[~codes], x.mean(0)[~codes])
    elif "zero" not in text:  # shares of a size
        torch.testing.assert_close(center / center.sum(), x.mean(0) / x.mean(0).sum())
    if text in ("normal:scale=feature", "normal:scale=decoder"):
        torch.testing.assert_close(p_x.stddev, x.std(0, correction=0))
    if text in ("normal:scale=learned", "normal:scale=optimal"):
        spread = (x - x.mean(0)).square().mean().sqrt()
        torch.testing.assert_close(p_x.stddev, spread.expand(D))
    if text == "categorical:categories=3":
        shares = torch.stack([(x == c).double().sum(0) + 1 for c in range(3)], -1) / 33
        torch.testing.assert_close(p_x.base_dist.logits.softmax(-1), shares)


@pytest.mark.parametrize(
    "text",
    [
        text if text in (MIXED, "normal:scale=optimal") else pytest.param(text, marks=SLOW)
        for text in TEXTS
    ],
)
def test_the_traced_step_is_the_eager_step(text: str) -> None:
    """The graph that is compiled, before code is made of it; with gradients that are clipped."""
    x, results = data_for(text), []
    for backend in ("eager", None):
        system = system_for(text, x)
        optimizer = optimizer_of(TrainConfig(lr=0.01), system)
        step = Compiled(
            system, TraceELBO(2), partial(given, optimizer), grad_clip=1.0, backend="eager"
        )
        pyro.set_rng_seed(1)
        losses = [step.step(x, divisor=30.0)]
        losses += [
            step.step(x, divisor=30.0) if backend else step.eager.step((x,), None, 30.0)
            for _ in range(3)
        ]
        weights = torch.cat([p.flatten() for p in system.parameters()])
        results.append((torch.stack(losses), weights))
    assert results[0][0][-1] < results[0][0][0]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


# Formulas


def log_prob(likelihood: Any, output: Tensor, x: Tensor, learned: Any = None) -> Tensor:
    learned = likelihood.learned(x.shape[-1]) if learned is None else learned
    return likelihood.distribution(output, learned).log_prob(x).detach()


def test_negative_binomial_is_that_of_scipy() -> None:
    x = torch.tensor([0.0, 1, 2, 7, 50, 1000, 30_000])
    for log_mean in (-6.0, 0.3, 4.0, 9.0):
        for log_theta in (-7.0, -1.0, 0.0, 2.0, math.log(30.0), 3.5, 6.0, 12.0):
            theta = math.exp(log_theta)
            found = MeanNegativeBinomial(
                torch.tensor(log_mean).expand(7), torch.tensor(log_theta)
            ).log_prob(x)
            expected = scipy.stats.nbinom.logpmf(
                x.numpy(), theta, theta / (theta + math.exp(log_mean))
            )
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-8)


def test_negative_binomial_keeps_its_digits_in_single_precision() -> None:
    """With a large dispersion it is a Poisson; differences of log Γ would be off by whole nats."""
    x, mean = torch.arange(40, dtype=torch.float32), torch.tensor(10.0, dtype=torch.float32)
    log_theta = torch.tensor(math.log(1e8), dtype=torch.float32)
    found = MeanNegativeBinomial(mean.log().expand(40), log_theta).log_prob(x)
    np.testing.assert_allclose(found, scipy.stats.poisson.logpmf(x, 10.0), atol=2e-4)


def test_zero_inflated_negative_binomial_formula() -> None:
    likelihood, x = ZeroInflatedNegativeBinomial(), torch.tensor([[0.0, 3.0, 0.0, 120.0]])
    output, learned = torch.randn(1, 8), likelihood.learned(4)
    with torch.no_grad():
        cast(Tensor, learned.log_dispersion).copy_(torch.tensor([-1.0, 0.5, 2.0, 5.0]))
    mean, gate = output[0, :4].exp().numpy(), torch.sigmoid(output[0, 4:]).numpy()
    theta = cast(Tensor, learned.log_dispersion).detach().exp().numpy()
    nb = scipy.stats.nbinom.pmf(x[0].numpy(), theta, theta / (theta + mean))
    expected = np.log(gate * (x[0].numpy() == 0) + (1 - gate) * nb)
    found = log_prob(likelihood, output, x, learned)
    np.testing.assert_allclose(found.numpy(), [expected.sum()], rtol=1e-8)


def test_discretized_logistic_formula() -> None:
    """In the bulk, where the plain formula has its digits; and at the open bins."""
    x, location, scale = torch.arange(256) / 255, torch.linspace(0.3, 0.7, 256), 0.08
    found = DiscretizedLogistic(scale).distribution(location, nn.Module()).base_dist
    upper = torch.sigmoid((x + 1 / 510 - location) / scale)
    lower = torch.sigmoid((x - 1 / 510 - location) / scale)
    upper[-1], lower[0] = 1.0, 0.0
    torch.testing.assert_close(found.log_prob(x), (upper - lower).log(), rtol=1e-8, atol=1e-8)
    far = DiscretizedLogistic(1e-3).distribution(torch.tensor([0.0]), nn.Module())
    inside = far.log_prob(torch.tensor([128 / 255])).item()  # a logistic tail: −a + log(e^w − 1)
    a, width = (128 / 255 + 1 / 510) / 1e-3, (1 / 255) / 1e-3
    assert inside == pytest.approx(-a + math.log(math.expm1(width)), rel=1e-8)


def test_other_formulas() -> None:
    output, real = torch.randn(5, D), torch.randn(5, D)
    counts, scale = torch.poisson(torch.full((5, D), 4.0)), torch.rand(D) + 0.5
    learned = Normal("feature").learned(D)
    with torch.no_grad():
        cast(Tensor, learned.log_scale).copy_(scale.log())
    values: list[tuple[Any, Tensor, Tensor, Any, Any]] = [
        (Normal("feature"), output, real, learned, scipy.stats.norm(output, scale).logpdf),
        (
            Normal("decoder"),
            torch.cat([output, scale.log().expand(5, D)], -1),
            real,
            None,
            scipy.stats.norm(output, scale).logpdf,
        ),
        (Laplace(0.7), output, real, None, scipy.stats.laplace(output, 0.7).logpdf),
        (Student(3.0), output, real, learned, scipy.stats.t(3.0, output, scale).logpdf),
        (Poisson(), output, counts, None, scipy.stats.poisson(output.exp()).logpmf),
        (
            Poisson(100.0),
            output,
            counts,
            None,
            scipy.stats.poisson(100 * output.softmax(-1)).logpmf,
        ),
        (
            Poisson("observed"),
            output,
            counts,
            None,
            scipy.stats.poisson(counts.sum(-1, keepdim=True) * output.softmax(-1)).logpmf,
        ),
    ]
    for likelihood, at, x, parts, expected in values:
        found = log_prob(likelihood, at, x, parts)
        np.testing.assert_allclose(found, expected(x).sum(-1), rtol=1e-8, err_msg=str(likelihood))
    logits, codes = torch.randn(5, 3 * D), torch.randint(3, (5, D)).double()
    table = logits.unflatten(-1, (3, D)).log_softmax(1)
    expected = sum(table[torch.arange(5), codes[:, j].long(), j] for j in range(D))
    torch.testing.assert_close(log_prob(Categorical(3), logits, codes), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "text",
    [
        *COUNTS,
        *("poisson:library=5", "negative-binomial:dispersion=decoder"),
        *("categorical:categories=3", "discretized-logistic", "discretized-logistic:scale=1e-3"),
    ],
)
def test_discrete_ones_sum_to_one(text: str, dtype: torch.dtype) -> None:
    likelihood = LIKELIHOODS.parse(text)
    outputs = [
        [level] + [0.3 * level] * (likelihood.outputs - 1) for level in (-8.0, -1.0, 0.2, 0.7, 2.0)
    ]
    output = torch.tensor(outputs, dtype=dtype)
    p_x = likelihood.distribution(output, likelihood.learned(1).to(dtype))
    if text.startswith("discretized"):
        support = torch.arange(256, dtype=dtype) / 255
    else:
        support = torch.arange(3 if "categorical" in text else 3000, dtype=dtype)
    total = p_x.log_prob(support[:, None, None].expand(-1, 5, 1)).exp().sum(0)
    torch.testing.assert_close(
        total, torch.ones_like(total), rtol=0, atol=1e-8 if dtype == torch.float64 else 1e-4
    )


def test_given_an_observed_total_the_counts_sum_to_one() -> None:
    """For a total that is fixed; the total of x itself is a covariate."""
    likelihood = NegativeBinomial("observed")
    p_x = likelihood.distribution(torch.randn(2), likelihood.learned(2))
    counts = p_x.counts(torch.tensor(7.0).log())
    grid = torch.cartesian_prod(torch.arange(400.0), torch.arange(400.0))
    assert counts.log_prob(grid).exp().sum().item() == pytest.approx(1, abs=1e-8)
    x = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(p_x.log_prob(x), counts.log_prob(x))


@pytest.mark.parametrize("text", ["laplace:scale=0.3", "student:freedom=3,scale=learned"])
def test_continuous_ones_integrate_to_one(text: str) -> None:
    likelihood, grid = LIKELIHOODS.parse(text), torch.linspace(-2000, 2000, 400_001)
    p_x = likelihood.distribution(torch.tensor([0.4]), likelihood.learned(1))
    total = torch.trapezoid(p_x.log_prob(grid[:, None]).exp(), grid)
    assert total.item() == pytest.approx(1, abs=1e-4)


def test_mean_of_grey_values_is_the_sum_over_all() -> None:
    p_x = DiscretizedLogistic(0.3).distribution(torch.tensor([-0.2, 0.1, 0.9]), nn.Module())
    grid = torch.arange(256) / 255
    mass = p_x.base_dist.log_prob(grid[:, None].expand(256, 3)).exp()
    torch.testing.assert_close(p_x.mean, (mass * grid[:, None]).sum(0))


# The optimal scale


@pytest.mark.parametrize(("text", "power"), [("normal", 2), ("laplace", 1)])
@pytest.mark.parametrize("settings", [{}, {"grad_clip": 1e-3}, {"nonfinite": "skip"}], ids=str)
def test_optimal_scale_is_the_running_mean_of_the_error(
    text: str, power: int, settings: dict[str, Any]
) -> None:
    """Of a deterministic system whose weights stand still, in closed form after T steps."""
    x = 2 * torch.randn(40, D)
    system = Autoencoder(
        D,
        2,
        prior=Flat(),
        posterior=Point(),
        likelihood=LIKELIHOODS.parse(f"{text}:scale=optimal"),
        encoder=MLP((4,)),
    )
    error = (x - system.reconstruct(x)).abs().pow(power).mean().item()
    assert abs(error - 1) > 0.05
    config = TrainConfig(
        epochs=12, lr=1e-30, batch_size=40, precision="64-true", compile=False, **settings
    )
    fit(system, Dataset.from_array(x), config=config, progress=False)
    found = log_scale_of(system).exp().pow(power).item()
    assert found == pytest.approx(error + (1 - RATE) ** 12 * (1 - error), rel=1e-9)


def log_scale_of(system: Autoencoder) -> Tensor:
    """The parameter log σ."""
    return cast(Tensor, system.learned_likelihood.log_scale)


def trained(text: str, x: Tensor, objective: str = "trace-elbo", **settings: Any) -> Autoencoder:
    system = system_for(text, x)
    state, on_epoch = settings.pop("state", None), settings.pop("on_epoch", None)
    config = TrainConfig(**{"compile": False, "precision": "64-true", "lr": 0.01, **settings})
    fit(
        system,
        Dataset.from_array(x),
        parse_objective(objective),
        config,
        state=state,
        on_epoch=on_epoch,
        progress=False,
    )
    return system


def test_optimal_scale_is_the_mean_squared_error_at_convergence() -> None:
    """Of a linear-Gaussian system, the maximum-likelihood σ of pPCA in closed form."""
    x = torch.randn(200, 2) @ torch.randn(2, 6) + 0.3 * torch.randn(200, 6)
    system = zoo.ppca(Dataset.from_array(x), 2, exact=True, likelihood=Normal("optimal"))
    scale = log_scale_of(system)
    best = linear_gaussian.maximum_likelihood(x, 2).scale
    assert scale.exp().item() > 2 * best.item()
    config = TrainConfig(
        epochs=40, batch_size=50, lr=0.03, schedule="linear", precision="64-true", compile=False
    )
    fit(system, Dataset.from_array(x), config=config, progress=False)
    assert scale.exp().item() == pytest.approx(best.item(), rel=0.02)
    with torch.no_grad():
        errors = (system.p_x(system.q_z(x).sample((200,))).mean - x).square()
    assert scale.exp().item() == pytest.approx(errors.mean().sqrt().item(), rel=0.02)


def test_optimal_scale_of_an_importance_weighted_bound_has_its_weights() -> None:
    x, system = torch.randn(6, D), system_for("normal:scale=optimal", torch.randn(6, D))
    objective = parse_objective("iwae")
    pyro.set_rng_seed(3)
    objective.differentiable_loss(system.model, system.guide, x).backward()
    pyro.set_rng_seed(3)
    with torch.no_grad():
        q_z = system.q_z(x)
        z = q_z.rsample((objective.num_particles,))
        p_x = system.p_x(z)
        log_w = p_x.log_prob(x) + system.p_z().log_prob(z) - q_z.log_prob(z)
        errors = (p_x.mean - x).square().mean(-1)
        expected = (log_w.softmax(0) * errors).sum(0).mean()
    scale = log_scale_of(system)
    assert scale.grad is not None
    found = scale.exp().square() * (1 - scale.grad / 6 / D)
    torch.testing.assert_close(found.detach().squeeze(), expected)


def test_optimal_scale_is_frozen_in_evaluation() -> None:
    """It is the same after every evaluation, and the density of a datum has no company."""
    x = data_for("normal:scale=optimal")
    system = trained("normal:scale=optimal", x, epochs=2, batch_size=10)
    before = {name: value.clone() for name, value in system.state_dict().items()}
    whole = quadrature(system.model, system.guide, x[:4], progress=False).log_px
    alone = quadrature(system.model, system.guide, x[2:3], progress=False).log_px
    log_likelihood(system.model, system.guide, x, num_particles=5, progress=False)
    torch.testing.assert_close(whole[2:3], alone)
    assert all(value.equal(before[name]) for name, value in system.state_dict().items())


@pytest.mark.parametrize("text", ["normal:scale=optimal", MIXED])
def test_a_resumed_training_is_the_same_to_the_last_bit(text: str) -> None:
    x, states = data_for(text), list[State]()
    settings: dict[str, Any] = {"epochs": 4, "batch_size": 8}
    whole = trained(text, x, on_epoch=states.append, **settings)
    again = trained(text, x, state=states[1], **settings)
    assert len(states) == 4
    for one, other in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert one.equal(other)


def test_a_user_s_optimizer_learns_the_optimal_scale() -> None:
    """As `pyro.infer.SVI` steps it: by its gradient."""
    system, x = system_for("normal:scale=optimal"), data_for("normal")
    before = log_scale_of(system).item()
    svi = pyro.infer.SVI(
        system.model, system.guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO()
    )
    svi.step(x)
    assert abs(log_scale_of(system).item() - before) == pytest.approx(0.01, rel=1e-3)


def test_scaled_gradients_are_refused() -> None:
    with pytest.raises(ConfigError, match="an optimal scale needs gradients that are not scaled"):
        optimizer_of(TrainConfig(precision="16-mixed"), system_for("normal:scale=optimal"))
    assert isinstance(system_for("normal:scale=optimal").learned_likelihood, OptimalScale)


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_compiled_training_and_scores_equal_eager_ones(text: str) -> None:
    x, scores = data_for(text, 40), []
    for compiled in (True, False):
        system = trained(text, x, epochs=4, batch_size=20, compile=compiled, grad_clip=1.0)
        estimate = log_likelihood(
            system.model, system.guide, x, num_particles=50, compile=compiled, progress=False
        )
        scores.append((torch.cat([p.flatten() for p in system.parameters()]), estimate.log_px))
    torch.testing.assert_close(scores[0][0], scores[1][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores[0][1], scores[1][1], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["normal:scale=optimal", "negative-binomial", MIXED])
def test_an_ensemble_equals_its_members(text: str) -> None:
    x = data_for(text, 40)
    config = TrainConfig(epochs=4, batch_size=20, lr=0.01, precision="64-true", compile=True)
    members = [system_for(text, x) for _ in range(2)]
    fit_ensemble(members, Dataset.from_array(x), config=config, seeds=(0, 1), progress=False)
    alone = trained(text, x, epochs=4, batch_size=20, seed=1)
    for one, other in zip(members[1].parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["trace-elbo", "analytic-elbo", "iwae", "dreg", "vimco"])
@pytest.mark.parametrize("text", TEXTS)
def test_every_likelihood_trains_under_every_objective(text: str, objective: str) -> None:
    x = data_for(text, 60)
    start, system = system_for(text, x), trained(text, x, objective, epochs=15, batch_size=20)
    bounds = []
    for one in (start, system):
        pyro.set_rng_seed(0)
        bounds.append(TraceELBO(200).loss(one.model, one.guide, x))
    assert bounds[1] < bounds[0]


# Data that do not suit


@pytest.mark.parametrize(
    ("text", "x", "words"),
    [
        ("poisson", [[1.0, 2.0], [3.0, 0.5]], "table holds 0.5 at row 1, column 1: a Poisson"),
        ("negative-binomial", [[1.0, -2.0]], "holds -2 at row 0, column 1: a negative-binomial"),
        (
            "negative-binomial:library=observed",
            [[1.0, 2.0], [0.0, 0.0]],
            "holds 0 at row 1, column 0: the datum has no counts",
        ),
        (
            "categorical:categories=3",
            [[1.0, 2.0], [0.0, 3.0]],
            r"holds 3 at row 1, column 1: a categorical likelihood of 3 categories needs codes 0, ",
        ),
        ("discretized-logistic", [[0.0, 200.0]], r"from 0 to 200; .* give value_range=\(0, 255\)"),
        ("discretized-logistic", [[0.0, 0.3]], "holds 0.3 at row 0, column 1: a discretized-log"),
        (
            "mixed:columns=normal*2+categorical(3)*2+poisson",
            [[0.5, 0.5, 2.0, 0.0, 1.0], [0.5, 0.5, 2.0, 4.0, 1.0]],
            "table, columns 2 to 3, holds 4 at row 1, column 3: a categorical likelihood",
        ),
        (
            "mixed:columns=normal*2+poisson",
            [[0.5, 0.5, 2.5]],
            "table, column 2, holds 2.5 at row 0, column 2: a Poisson likelihood needs counts",
        ),
    ],
)
def test_data_that_do_not_suit_are_refused(text: str, x: list[list[float]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        LIKELIHOODS.parse(text).check(torch.tensor(x), "table")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("normal:scale=wide", "one of learned, feature, decoder, optimal, not 'wide'"),
        ("normal:scale=true", "scale takes a number, not True"),
        ("normal:scale=feature,learn=true", "learn=true starts from a number"),
        ("normal:scale=-1", "scale of a Normal likelihood must be positive and finite, not -1"),
        ("student:scale=optimal", "one of learned, feature, decoder, not 'optimal'"),
        ("student:freedom=0", "the freedom of a Student likelihood must be positive"),
        ("laplace:scale=0", "scale of a Laplace likelihood must be positive"),
        ("discretized-logistic:scale=optimal", "one of learned, feature, decoder, not"),
        ("categorical:categories=1", "at least 2 categories, not 1"),
        ("poisson:library=some", "is none, observed or a positive number, not some"),
        ("poisson:library=-1", "is none, observed or a positive number, not -1"),
        ("negative-binomial:dispersion=datum", "is feature or decoder, not 'datum'"),
        ("mixed", "needs its columns, as in mixed:columns=VALUE"),
        ("mixed:columns=normal*0", "groups of one or more columns, not"),
        ("mixed:columns=normal**2", "are not of the form NAME, NAME"),
        ("mixed:columns=normel*2", "unknown likelihood 'normel': did you mean 'normal'"),
        ("mixed:columns=categorical(x)", "categories takes int, not 'x'"),
    ],
)
def test_settings_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LIKELIHOODS.parse(text)


def test_mixed_is_the_sum_of_its_parts() -> None:
    text = "mixed:columns=student(freedom=3,scale=learned)*2 + categorical(3) + bernoulli"
    likelihood = LIKELIHOODS.parse(text)
    assert likelihood == Mixed(((Student(3, "learned"), 2), (Categorical(3), 1), (Bernoulli(), 1)))
    assert likelihood.layout((4,)) == ((6,), 1)
    x = torch.cat([torch.randn(5, 2), torch.tensor([[2.0, 1.0]]).expand(5, 2)], 1)
    output, learned = torch.randn(5, 6), likelihood.learned(4)
    expected = (
        log_prob(Student(3, "learned"), output[:, :2], x[:, :2])
        + log_prob(Categorical(3), output[:, 2:5], x[:, 2:3])
        + log_prob(Bernoulli(), output[:, 5:], x[:, 3:])
    )
    torch.testing.assert_close(log_prob(likelihood, output, x, learned), expected)
    with pytest.raises(ConfigError, match="the mixed likelihood have 4 columns, the data 7"):
        Autoencoder(7, 2, likelihood=likelihood)


def test_closed_forms_need_one_scale() -> None:
    with pytest.raises(UndefinedLikelihoodError, match="closed forms need one σ for all features"):
        zoo.ppca(D, 2, likelihood=Normal("feature")).linear_gaussian()
    assert zoo.ppca(D, 2, likelihood=Normal("optimal")).linear_gaussian()[2].item() == 1.0


# From a file to a score


@pytest.mark.parametrize("suffix", ["npy", "csv", "parquet"])
def test_counts_and_codes_are_loaded_as_stored(tmp_path: Path, suffix: str) -> None:
    import pandas as pd

    values = np.random.default_rng(0).poisson(90.0, (50, 3)).astype(np.uint8)
    path, table = tmp_path / f"counts.{suffix}", pd.DataFrame(values, columns=["a", "b", "c"])
    if suffix == "npy":
        np.save(path, values)
    elif suffix == "csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)
    kinds = {"negative-binomial": (None, 1.0), "normal": ("255", 255.0), "laplace": ("none", 1.0)}
    for likelihood, (scale, divisor) in kinds.items():
        config = RunConfig(
            data=str(path),
            likelihood=likelihood,
            scale=scale,
            test_fraction=0.0,
            valid_fraction=0.0,
        )
        torch.testing.assert_close(splits_of(config).train.x, torch.tensor(values / divisor))
    if suffix != "csv":  # a text has no uint8
        with pytest.raises(DataError, match="may be grey levels, counts or codes"):
            splits_of(RunConfig(data=str(path), likelihood="normal"))
    scaled = Dataset.from_array(values, scale="255")
    with pytest.raises(DataError, match=r"needs counts .* value_range=\(0, 1\) leaves values as"):
        NegativeBinomial().check(scaled.x, "counts")


def test_bits_per_dimension_of_an_evaluation() -> None:
    text = "discretized-logistic"
    x, settings = data_for(text), EvaluationSettings(num_particles=20)
    results = evaluate(system_for(text, x), x, settings).results
    nats = D * math.log(2)
    assert results["bits_per_dimension"].estimate == pytest.approx(results["nll"].estimate / nats)
    bound = results["bits_per_dimension_bound"]
    assert bound.estimate == pytest.approx(results["nelbo"].estimate / nats)
    assert bound.estimate > 7  # uniform noise needs 8 bits
    other = evaluate(system_for("normal"), data_for("normal"), settings).results
    assert "bits_per_dimension" not in other


def test_errors_of_codes_are_counted_and_not_squared() -> None:
    x, settings = data_for(MIXED), EvaluationSettings(num_particles=5)
    system = system_for(MIXED, x)
    results, found = evaluate(system, x, settings).results, system.reconstruct(x)
    wrong, own = found[:, 2] != x[:, 2], [0, 1, 3]
    assert 0 < wrong.double().mean() < 1
    assert results["wrong_codes"].estimate == pytest.approx(wrong.double().mean().item())
    squared = (found - x)[:, own].square().sum(1).mean().item()
    assert results["squared_error"].estimate == pytest.approx(squared)
    codes = evaluate(system_for("categorical"), data_for("categorical"), settings).results
    assert "squared_error" not in codes


def test_figure_of_the_errors_of_columns() -> None:
    x = data_for(MIXED)
    system = system_for(MIXED, x)
    bars: list[Any] = list(column_errors(system, x).axes[0].patches)
    heights = [bar.get_height() for bar in bars]
    found = system.reconstruct(x)
    expected = (found - x)[:, 0].square().mean().sqrt() / x[:, 0].std(correction=0)
    assert heights[0] == pytest.approx(expected.item())
    shares = torch.bincount(x[:, 2].long()) / len(x)
    wrong = (found[:, 2] != x[:, 2]).double().mean()
    assert heights[2] == pytest.approx((wrong / (1 - shares.max())).item())
    with pytest.raises(ConfigError, match="of tables of at most 100 columns"):
        column_errors(Autoencoder((8, 8), 2), torch.rand(3, 64))


def test_data_given_their_total_are_not_simulated() -> None:
    text = "poisson:library=observed"
    x = data_for(text, 4)
    system, settings = system_for(text, x), AISSettings(num_distributions=5, num_chains=2)
    with pytest.raises(ProgramError, match="the site 'x' is given the total of its own value"):
        bdmc(system.model, system.guide, x, settings=settings, progress=False)


@pytest.mark.parametrize("text", ["negative-binomial", "normal:scale=optimal", MIXED])
def test_importance_sampling_agrees_with_quadrature(text: str) -> None:
    x = data_for(text)[:3]
    system = system_for(text).eval()
    exact = quadrature(system.model, system.guide, x, progress=False).log_px
    found = log_likelihood(
        system.model, system.guide, x, num_particles=5000, progress=False, seed=1
    )
    assert ((found.log_px - exact).abs() < 5 * found.se + 1e-3).all()
