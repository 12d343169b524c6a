"""The same draws through Pyro's own estimators: values and gradients agree, or it is shown why
Pyro's are wrong.

Draws are the same either by the seed, where both sides sample one `[K, N]` tensor, or by a guide
whose noise is given. The model is z ~ N(W₀, I), x|z ~ N(W z + b, σ²I) with an amortized diagonal q:
θ and φ have their own parameters.
"""

import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import (
    Importance,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
)
from pyro.infer.importance import vectorized_importance_weights
from torch import Tensor

from pyroae.evaluation.importance.likelihood import log_likelihood
from pyroae.objectives import ELBO, IWAE, OBJECTIVES, Objective, Pathwise, Renyi, Score, WakeSleep
from pyroae.testing import Toy
from pyroae.weights import log_weights
from tests.objectives.test_objectives import run
from tests.objectives.test_oracles import Given, mean_and_error

pytestmark = pytest.mark.usefixtures("float64")
ALPHAS = (0.0, 0.5, -1.0)
MODEL_PARAMETERS = ("prior", "weight", "bias")


class Program(Toy):
    """The toy of the conformance tests, whose parameters Pyro is told of: its estimators skip a
    program that has none.
    """

    def model(self, x: Tensor) -> None:
        pyro.module("toy", self)
        super().model(x)

    def guide(self, x: Tensor) -> None:
        pyro.module("toy", self)
        super().guide(x)


def assert_same(found: tuple[float, Tensor], expected: tuple[float, Tensor]) -> None:
    assert expected[1].abs().max() > 1e-3  # the comparison is not one of zeros
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=1e-10)


# Rényi bounds.


@pytest.mark.parametrize("num_data", [1, 6])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_renyi_equals_pyro(alpha: float, num_data: int) -> None:
    """A plate that holds every site is kept a datum in Pyro too: values and gradients of a batch
    agree.
    """
    toy, x = Program(), torch.randn(num_data, 3)
    pyros = RenyiELBO(alpha=alpha, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    found = run(Objective(Renyi(5, alpha)), toy, toy.model, toy.guide, x)
    assert_same(found, run(pyros, toy, toy.model, toy.guide, x))
    if alpha == 0:
        assert_same(run(Objective(IWAE(5)), toy, toy.model, toy.guide, x), found)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_renyi_with_a_nested_plate_equals_pyro(alpha: float) -> None:
    """Features in a plate of their own, which not all sites are in: summed before the bound is
    taken, on both sides.
    """
    q = torch.nn.ParameterDict({"loc": torch.tensor(0.4), "scale": torch.tensor(-0.2)})

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
            with pyro.plate("features", 3, dim=-1):
                pyro.sample("x", dist.Normal(z, 0.8), obs=x)

    def guide(x: Tensor) -> None:
        for name, parameter in q.items():
            pyro.param(name, parameter)
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(q["loc"] * x.mean(1, keepdim=True), q["scale"].exp()))

    x = torch.randn(4, 3)
    pyros = RenyiELBO(alpha=alpha, num_particles=5, vectorize_particles=True, max_plate_nesting=2)
    assert_same(run(Objective(Renyi(5, alpha)), q, model, guide, x), run(pyros, q, model, guide, x))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_renyi_of_subsamples(alpha: float) -> None:
    """The mean over all 15 pairs of 6 data of the subsampled bound is the bound of the 6, at given
    draws: ours to 1e-12.

    Pyro scales log w before its log-sum-exp: (1/(1−α)) log (1/K) Σ w^((1−α) N/n) is never below it.
    """
    toy, x, noise = Program(), torch.randn(6, 3), torch.randn(5, 6, 2)
    pyros = RenyiELBO(alpha=alpha, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    ours = Objective(Renyi(5, alpha))

    def bounds(index: list[int]) -> tuple[float, float]:
        toy.noise = noise[:, index]
        found, theirs = (
            run(objective, toy, toy.model, toy.guide, x[index])[0] for objective in (ours, pyros)
        )
        return -found, -theirs

    whole, theirs = bounds(list(range(6)))
    assert whole == pytest.approx(theirs, rel=1e-12)
    toy.size = 6
    pairs = [bounds(list(pair)) for pair in itertools.combinations(range(6), 2)]
    mean, mean_of_theirs = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    assert mean == pytest.approx(whole, rel=1e-12)
    assert mean_of_theirs > whole + 0.1

    toy.noise = noise[:, :2]  # what it is instead, in formulas
    log_weight = log_weights(toy.model, toy.guide, x[:2], num_particles=5).log_weight
    assert pairs[0][1] == pytest.approx(
        Renyi(5, alpha).value(3 * log_weight).sum().item(), rel=1e-12
    )


def test_subsampled_bound_stays_below_the_evidence() -> None:
    """A tenth of the data at a time, K = 64, n = 40,000 data in batches of 400: the mean bound a
    datum, times 10.

    Ours is below 10 log p(x) and near it; Pyro's above it: no bound. Each by more than 4 standard
    errors over 100 batches.
    """
    toy, x = Program(), torch.tensor([[0.5, -0.4, 0.8]]).expand(400, 3)
    toy.size = 4000
    pyros = RenyiELBO(alpha=0, num_particles=64, vectorize_particles=True, max_plate_nesting=1)
    covariance = toy.weight @ toy.weight.T + 0.49 * torch.eye(3)
    log_p = (
        torch.distributions.MultivariateNormal(toy.weight @ toy.prior + toy.bias, covariance)
        .log_prob(x[0])
        .item()
    )
    losses = [
        [float(o.loss(toy.model, toy.guide, x)) for o in (Objective(IWAE(64)), pyros)]
        for _ in range(100)
    ]
    gaps = -torch.tensor(losses) / 400 - 10 * log_p
    (ours, se), (theirs, other) = mean_and_error(gaps[:, 0]), mean_and_error(gaps[:, 1])
    assert -0.1 < ours < -4 * se
    assert theirs > 1 + 4 * other


def test_iwae_without_reparameterization() -> None:
    """Pyro's φ-gradient at α = 0 is exactly zero for draws that carry no gradient; VIMCO's has the
    pathwise mean.

    n = 100,000 data with a parameter each, 4.5 standard errors of the difference.
    """
    size = 100_000
    gradients = {}
    for name, kind, objective in (
        (
            "pyro",
            NonreparameterizedNormal,
            RenyiELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        ),
        ("vimco", NonreparameterizedNormal, OBJECTIVES["vimco"](num_particles=3)),
        ("pathwise", dist.Normal, Objective(IWAE(3), Pathwise())),
    ):
        loc = torch.full((size,), 0.9, requires_grad=True)

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample(
                    "x",
                    dist.Normal(pyro.sample("z", dist.Normal(torch.zeros(size), 1.0)), 1.0),
                    obs=x,
                )

        def guide(x: Tensor, loc: Tensor = loc, kind: Any = kind) -> None:
            pyro.clear_param_store()
            with pyro.plate("data", len(x)):
                pyro.sample("z", kind(pyro.param("loc", loc), 0.8))

        objective.loss_and_grads(model, guide, torch.ones(size))
        gradients[name] = torch.zeros(size) if loc.grad is None else -loc.grad
    assert (gradients["pyro"] == 0).all()
    difference, se = mean_and_error(gradients["vimco"] - gradients["pathwise"])
    assert abs(difference) < 4.5 * se
    assert gradients["pathwise"].mean() < -0.05


def test_what_pyros_estimators_lack() -> None:
    """`elbo(model, guide)` and `differentiable_loss`: absent from Pyro's Rényi and wake-sleep, here
    in every objective.
    """
    toy, x = Program(), torch.randn(4, 3)
    for pyros in (RenyiELBO(num_particles=2), ReweightedWakeSleep(num_particles=2)):
        with pytest.raises(AttributeError, match="no attribute 'differentiable_loss'"):
            pyros(_Module(toy.model), _Module(toy.guide))(x)
    for name in ("renyi", "rws"):
        assert OBJECTIVES[name](num_particles=2)(_Module(toy.model), _Module(toy.guide))(
            x
        ).requires_grad


class _Module(torch.nn.Module):
    """A program as the module that `elbo(model, guide)` wants."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.program = program

    def forward(self, x: Tensor) -> Any:
        return self.program(x)


# Reweighted wake-sleep.


def test_wake_sleep_equals_pyro() -> None:
    """One datum: wake-θ is the IWAE loss, and the wake-φ gradient is that of −Σ ŵ log q."""
    toy, x = Program(), torch.randn(1, 3)
    pyros = ReweightedWakeSleep(num_particles=5, insomnia=1.0, max_plate_nesting=1)
    loss, gradient = run(Objective(IWAE(5), WakeSleep()), toy, toy.model, toy.guide, x)
    pyro.set_rng_seed(3)
    toy.zero_grad()
    wake_theta, wake_phi = pyros.loss_and_grads(toy.model, toy.guide, x)
    expected = torch.cat([p.grad.flatten() for p in toy.parameters() if p.grad is not None])
    assert_same((loss, gradient), (wake_theta, expected))
    pyro.set_rng_seed(3)
    weights = log_weights(toy.model, toy.guide, x, num_particles=5)
    cross_entropy = -(weights.log_weight.softmax(0) * weights.log_post).sum().item()
    assert wake_phi == pytest.approx(cross_entropy, rel=1e-12)


def test_wake_sleep_of_a_batch() -> None:
    """Of several data ours is the sum of their own at the same draws; Pyro weighs whole batches,
    one weight a particle.
    """
    toy, x, noise = Program(), torch.randn(4, 3), torch.randn(5, 4, 2)
    ours = Objective(IWAE(5), WakeSleep())
    pyros = ReweightedWakeSleep(num_particles=5, insomnia=1.0, max_plate_nesting=1)

    def both(index: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        toy.noise = noise[:, index]
        loss, gradient = run(ours, toy, toy.model, toy.guide, x[index])
        return torch.tensor(loss), gradient, pyros.loss(toy.model, toy.guide, x[index])[0]

    whole = both([0, 1, 2, 3])
    losses, gradients, theirs = (
        torch.stack(column).sum(0) for column in zip(*(both([n]) for n in range(4)), strict=True)
    )
    assert whole[0].item() == pytest.approx(losses.item(), rel=1e-12)
    torch.testing.assert_close(whole[1], gradients, rtol=1e-10, atol=1e-10)
    assert theirs.item() == pytest.approx(
        losses.item(), rel=1e-12
    )  # one datum at a time Pyro has the same
    assert abs(whole[2].item() - losses.item()) > 0.01
    toy.noise = noise
    joint = log_weights(toy.model, toy.guide, x, num_particles=5).log_weight.sum(1)
    assert whole[2].item() == pytest.approx(-IWAE(5).value(joint[:, None]).item(), rel=1e-12)


# Importance weights.


def test_importance_weights_equal_pyro() -> None:
    """Pyro's are the products over the batch of ours; of one datum they are ours."""
    toy = Program()
    for num_data in (1, 4):
        x = torch.randn(num_data, 3)
        pyro.set_rng_seed(3)
        ours = log_weights(toy.model, toy.guide, x, num_particles=6).log_weight
        pyro.set_rng_seed(3)
        theirs, _, _ = vectorized_importance_weights(
            toy.model, toy.guide, x, num_samples=6, max_plate_nesting=1
        )
        assert ours.shape == (6, num_data)
        assert theirs.std() > 0.1
        torch.testing.assert_close(ours.sum(1), theirs, rtol=1e-12, atol=0)


def test_normalized_importance_weights_fail_in_pyro() -> None:
    """`normalized=True` takes a logsumexp without a dimension; the normalized weights are the
    slopes of IWAE.
    """
    toy, x = Program(), torch.randn(1, 3)
    with pytest.raises(TypeError, match="logsumexp"):
        vectorized_importance_weights(
            toy.model, toy.guide, x, num_samples=6, max_plate_nesting=1, normalized=True
        )
    share = IWAE(6).slope(log_weights(toy.model, toy.guide, x, num_particles=6).log_weight)
    torch.testing.assert_close(share.sum(0), torch.ones(1))


def test_importance_of_one_datum_equals_pyro() -> None:
    """`Importance` draws one after the other: the same draws, given in that order, have the same
    weights, log p̂ and ESS.
    """
    toy, x, noise = Program(), torch.randn(1, 3), torch.randn(12, 1, 2)
    toy.noise = noise
    ours = log_weights(toy.model, toy.guide, x, num_particles=12).log_weight[:, 0]
    draws = iter(noise)

    def one_by_one(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = x @ toy.encode.T + toy.shift
            pyro.sample(
                "z", Given(loc, toy.log_scale.exp().expand_as(loc), next(draws)[None]).to_event(1)
            )

    theirs = Importance(toy.model, one_by_one, num_samples=12).run(x)
    torch.testing.assert_close(torch.stack(theirs.log_weights), ours, rtol=1e-12, atol=0)
    assert theirs.get_log_normalizer().item() == pytest.approx(
        IWAE(12).value(ours[:, None]).item(), rel=1e-12
    )
    whole = log_likelihood(toy.model, toy.guide, x, num_particles=12)
    assert whole.log_px.item() == pytest.approx(theirs.get_log_normalizer().item(), rel=1e-12)
    assert whole.ess.item() == pytest.approx(theirs.get_ESS().item(), rel=1e-12)


# Score functions.


def no_path(toy: Program) -> Any:
    """The toy's guide with draws that carry no gradient."""

    def guide(x: Tensor) -> None:
        pyro.module("toy", toy)
        with toy.plate(x):
            loc = x @ toy.encode.T + toy.shift
            pyro.sample(
                "z", NonreparameterizedNormal(loc, toy.log_scale.exp().expand_as(loc)).to_event(1)
            )

    return guide


@pytest.mark.parametrize("pyros", [Trace_ELBO, TraceGraph_ELBO])
def test_score_gradient_of_one_draw_equals_pyro(pyros: Any) -> None:
    """K = 1, no baseline: log w · s. The score of mean 0 is dropped by both."""
    toy, x = Program(), torch.randn(5, 3)
    guide = no_path(toy)
    found = run(Objective(ELBO(1), Score("none")), toy, toy.model, guide, x)
    assert_same(found, run(pyros(), toy, toy.model, guide, x))


def test_score_gradients_have_pyros_mean() -> None:
    """K = 3, n = 100,000 data with a φ each: the mean of Pyro's, within 4.5 standard errors, at
    each baseline.

    Pyro credits each draw with its own log w, ours without a baseline with the mean of all three,
    which is noisier; the leave-one-out baseline is less noisy than either.
    """
    size = 100_000
    pyros = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    gradients = []
    for objective in (
        pyros,
        Objective(ELBO(3), Score("none")),
        Objective(ELBO(3), Score("leave-one-out")),
    ):
        loc = torch.full((size,), 0.9, requires_grad=True)

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample(
                    "x",
                    dist.Normal(pyro.sample("z", dist.Normal(torch.zeros(size), 1.0)), 1.0),
                    obs=x,
                )

        def guide(x: Tensor, loc: Tensor = loc) -> None:
            pyro.clear_param_store()
            with pyro.plate("data", len(x)):
                pyro.sample("z", NonreparameterizedNormal(pyro.param("loc", loc), 0.8))

        objective.loss_and_grads(model, guide, torch.ones(size))
        assert loc.grad is not None
        gradients.append(-loc.grad)
    for gradient in gradients:  # ∂_m E log w = 1 − 2 m
        mean, se = mean_and_error(gradient)
        assert mean == pytest.approx(-0.8, abs=4.5 * se)
        assert se < 0.02
    assert gradients[2].var() < 0.8 * gradients[0].var()
    assert gradients[0].var() < 0.8 * gradients[1].var()


@pytest.mark.filterwarnings("ignore:the sites z of the guide are marked for enumeration")
def test_score_gradient_of_a_discrete_latent_has_the_mean_that_pyro_enumerates() -> None:
    """TraceEnum_ELBO sums over the values of z: the exact ELBO and gradient.

    n = 100,000 data, 4.5 standard errors.
    """
    size = 100_000

    def gradient(num_data: int, objective: Any) -> tuple[Tensor, Tensor]:
        logits = torch.tensor([0.4, -0.3, 0.1]).repeat(num_data, 1).requires_grad_()

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
                pyro.sample("x", dist.Normal(torch.tensor([-1.0, 0.5, 2.0])[z], 1.0), obs=x)

        def guide(x: Tensor) -> None:
            pyro.clear_param_store()
            with pyro.plate("data", len(x)):
                pyro.sample(
                    "z",
                    dist.Categorical(logits=pyro.param("logits", logits)),
                    infer={"enumerate": "parallel"},
                )

        loss = torch.as_tensor(objective.loss_and_grads(model, guide, torch.ones(num_data)))
        assert logits.grad is not None
        return loss, -logits.grad

    exact_loss, exact = gradient(1, TraceEnum_ELBO(max_plate_nesting=1))
    loss, found = gradient(size, OBJECTIVES["score"](num_particles=2))
    for j in range(3):
        mean, se = mean_and_error(found[:, j])
        assert mean == pytest.approx(exact[0, j].item(), abs=4.5 * se)
    assert exact.abs().min() > 10 * se
    assert loss.item() / size == pytest.approx(exact_loss.item(), abs=0.02)


# Scales.


@pytest.mark.parametrize("objective", ["iwae", "rws", "vimco"])
def test_a_scale_is_taken_after_the_bound(objective: str) -> None:
    """`poutine.scale(…, 1/N)` of IWAE: ours is (1/N) log (1/K) Σ w; Pyro's log (1/K) Σ w^(1/N)."""
    toy, x = Program(), torch.randn(4, 3)
    scaled = [poutine.scale(program, scale=0.25) for program in (toy.model, toy.guide)]
    loss, gradient = run(OBJECTIVES[objective](num_particles=5), toy, toy.model, toy.guide, x)
    found = run(OBJECTIVES[objective](num_particles=5), toy, scaled[0], scaled[1], x)
    assert_same(found, (0.25 * loss, 0.25 * gradient))
    pyros = RenyiELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    theirs, _ = run(pyros, toy, scaled[0], scaled[1], x)
    pyro.set_rng_seed(3)
    log_weight = log_weights(toy.model, toy.guide, x, num_particles=5).log_weight
    assert theirs == pytest.approx(-IWAE(5).value(0.25 * log_weight).sum().item(), rel=1e-12)
    assert abs(theirs - found[0]) > 0.01
