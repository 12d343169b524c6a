"""Gradient estimators: their means, per-sample identities and variances, on linear-Gaussian
programs with known answers.
"""

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae import zoo
from pyroae.errors import ConfigError, ProgramError
from pyroae.nn import MLP
from pyroae.objectives import (
    CIWAE,
    ELBO,
    IWAE,
    JVI,
    MIWAE,
    OBJECTIVES,
    TVO,
    BoundFunction,
    Covariance,
    DoublyReparameterized,
    DoublyReparameterizedWakeSleep,
    Gradient,
    Objective,
    Pathwise,
    Renyi,
    Score,
    StickingTheLanding,
    TwoBounds,
    WakeSleep,
)
from tests.objectives.test_objectives import DATA, hierarchical
from tests.systems import FOR_GAUSSIANS

pytestmark = pytest.mark.usefixtures("float64")
BOUNDS = [
    ELBO(4),
    IWAE(4),
    Renyi(4, 0.5),
    Renyi(4, -2.0),
    MIWAE(4, 2),
    CIWAE(4, 0.3),
    JVI(4),
    JVI(4, 2),
    TVO(4),
]


def toy(num_data: int) -> tuple[Any, Any, Tensor, Tensor, Tensor]:
    """z ~ N(θ, 1), x|z ~ N(z, 1), x = 1; q = N(φ_n, 2/3), φ = .8, one for each datum: gradients
    come a datum at a time.
    """
    theta, phi = (
        torch.zeros(num_data, requires_grad=True),
        torch.full((num_data,), 0.8, requires_grad=True),
    )

    def model(x: Tensor) -> None:
        with pyro.plate("data", num_data):
            z = pyro.sample("z", dist.Normal(theta, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", num_data):
            pyro.sample("z", dist.Normal(phi, (2 / 3) ** 0.5))

    return model, guide, torch.ones(num_data), theta, phi


def replicates(objective: Any, num_data: int = 50_000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Independent ascent gradients, θ's and φ's, `[num_data]`."""
    model, guide, x, theta, phi = toy(num_data)
    pyro.set_rng_seed(seed)
    objective.loss_and_grads(model, guide, x)
    assert theta.grad is not None
    assert phi.grad is not None
    return -theta.grad, -phi.grad


@cache
def pathwise(bound: BoundFunction) -> tuple[Tensor, Tensor]:
    """Those of the pathwise gradient, for several estimators that they are compared with."""
    return replicates(Objective(bound, Pathwise()))


def same_mean(one: Tensor, other: Tensor, bias: float = 0.0) -> bool:
    """Paired: within 4.5 standard errors of the difference (and the spread is not zero)."""
    difference = one - other
    se = difference.std() / math.sqrt(len(difference))
    return bool((difference.mean() - bias).abs() < 4.5 * se + 1e-12)


@pytest.mark.parametrize(
    ("gradient", "bound"),
    [
        pytest.param(
            gradient,
            bound,
            id=f"{gradient}-{bound}",
            marks=pytest.mark.slow if i > 1 and j % 2 != i % 2 else (),
        )
        for i, gradient in enumerate(
            (DoublyReparameterized(), Score(), Score("geometric"), Score("none"))
        )
        for j, bound in enumerate(BOUNDS)
    ],
)
def test_unbiased_pairs_have_the_pathwise_mean(bound: BoundFunction, gradient: Gradient) -> None:
    if gradient == Score() and bound.num_particles <= bound.least_particles:
        pytest.skip("not defined")
    theta, phi = pathwise(bound)
    other_theta, other_phi = replicates(Objective(bound, gradient))
    assert same_mean(phi, other_phi)
    torch.testing.assert_close(
        theta, other_theta, rtol=1e-8, atol=1e-10
    )  # θ's is the same, draw by draw


@pytest.mark.parametrize("bound", [b for b in BOUNDS if b != ELBO(4)], ids=str)
def test_sticking_the_landing_is_biased_beyond_the_elbo(bound: BoundFunction) -> None:
    """The comparison above can fail: STL with K > 1 does."""
    _, phi = pathwise(bound)
    _, stuck = replicates(Objective(bound, StickingTheLanding()))
    assert not same_mean(phi, stuck)


def test_sticking_the_landing_is_unbiased_for_the_elbo() -> None:
    pathwise, stuck = (
        replicates(Objective(ELBO(2), g))[1] for g in (Pathwise(), StickingTheLanding())
    )
    assert same_mean(pathwise, stuck)


def test_published_means() -> None:
    """REFERENCES, item 6: mean φ-gradients of IWAE, DReG, STL: −.258, −.256, −.514 (K=2); −.0076,
    −.0065, −.452 (K=64).
    """
    expected = {2: (-0.257, -0.257, -0.514), 64: (-0.007, -0.007, -0.452)}
    for count, means in expected.items():
        for gradient, mean in zip(
            (Pathwise(), DoublyReparameterized(), StickingTheLanding()), means, strict=True
        ):
            _, phi = replicates(Objective(IWAE(count), gradient), num_data=40_000)
            se = phi.std().item() / math.sqrt(40_000)
            assert phi.mean().item() == pytest.approx(mean, abs=4 * se + 1e-3)


@pytest.mark.slow
def test_signal_to_noise() -> None:
    """REFERENCES, item 6: SNR from K=8 to 64: IWAE .106 → .043, DReG 2.88 → 8.22 (n = 40,000)."""
    for gradient, ratios in ((Pathwise(), (0.106, 0.043)), (DoublyReparameterized(), (2.88, 8.22))):
        for count, ratio in zip((8, 64), ratios, strict=True):
            _, phi = replicates(Objective(IWAE(count), gradient), num_data=40_000)
            found = (phi.mean().abs() / phi.std()).item()
            assert found == pytest.approx(
                ratio, abs=4 * math.sqrt((1 + ratio**2 / 2) / 40_000) + 0.01 * ratio
            )


@pytest.mark.parametrize("count", [1, 2, 8])
def test_sticking_the_landing_is_the_sum_of_the_two_doubly_reparameterized(count: int) -> None:
    """Per sample: STL = DReG + RWS-DReG (Bauer & Mnih 2021)."""
    _, stl = replicates(Objective(IWAE(count), StickingTheLanding()), 1000)
    _, dreg = replicates(Objective(IWAE(count), DoublyReparameterized()), 1000)
    _, rws = replicates(Objective(IWAE(count), DoublyReparameterizedWakeSleep()), 1000)
    torch.testing.assert_close(stl, dreg + rws, rtol=0, atol=1e-10)
    if count == 1:
        torch.testing.assert_close(stl, dreg, rtol=0, atol=1e-12)
    _, mixed = replicates(Objective(IWAE(count), DoublyReparameterized(alpha=0.3)), 1000)
    torch.testing.assert_close(mixed, 0.7 * dreg + 0.3 * rws, rtol=0, atol=1e-10)


def test_wake_sleep_means_agree() -> None:
    _, plain = replicates(Objective(IWAE(4), WakeSleep()))
    _, doubly = replicates(Objective(IWAE(4), DoublyReparameterizedWakeSleep()))
    assert same_mean(plain, doubly)
    assert plain.var() > doubly.var()


def test_doubly_reparameterized_has_less_variance_near_the_posterior() -> None:
    for bound in BOUNDS:
        _, pathwise = replicates(Objective(bound, Pathwise()), 20_000)
        _, doubly = replicates(Objective(bound, DoublyReparameterized()), 20_000)
        assert doubly.var() < pathwise.var(), bound


def test_sticking_the_landing_at_the_exact_posterior_is_zero() -> None:
    system = zoo.ppca(5, 2)
    weight, bias, scale = (part.detach() for part in system.linear_gaussian())
    from pyroae import linear_gaussian

    loc = torch.zeros(30, 2, requires_grad=True)
    _, tril = linear_gaussian.posterior(torch.zeros(5), weight, bias, scale)
    x = torch.randn(30, 5)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            exact, _ = linear_gaussian.posterior(x, weight, bias, scale)
            pyro.sample("z", dist.MultivariateNormal(exact + loc, scale_tril=tril))

    for num_particles in (1, 4):
        loc.grad = None
        Objective(ELBO(num_particles), StickingTheLanding()).loss_and_grads(system.model, guide, x)
        assert loc.grad is not None
        assert loc.grad.abs().max() < 1e-12
        loc.grad = None
        Objective(ELBO(num_particles), Pathwise()).loss_and_grads(system.model, guide, x)
        assert loc.grad is not None
        assert loc.grad.abs().max() > 1e-3  # the other estimator is not zero there


def test_tvo_covariance_is_the_plain_formula() -> None:
    """Masrani 2019, with samples held: Σ_s Δ_s [E_π ∂f + K/(K−1) Cov_π(∂ log π̃_β, f)], term by
    term.
    """
    count, num_data = 5, 7
    model, guide, x, theta, phi = toy(num_data)
    bound = TVO(count, 3)
    pyro.set_rng_seed(2)
    Objective(bound, Covariance()).loss_and_grads(model, guide, x)
    pyro.set_rng_seed(2)
    z = (0.8 + (2 / 3) ** 0.5 * torch.randn(count, num_data)).detach()
    log_p = -0.5 * z**2 - 0.5 * (1 - z) ** 2 - math.log(2 * math.pi)
    log_q = -0.5 * (z - 0.8) ** 2 / (2 / 3) - 0.5 * math.log(2 * math.pi * 2 / 3)
    f, d_theta, d_phi = log_p - log_q, z, (z - 0.8) / (2 / 3)
    expected_theta, expected_phi = torch.zeros(num_data), torch.zeros(num_data)
    betas = bound.betas()
    for beta, after in pairwise(betas):
        w = (beta * f).softmax(0)

        def mean(v: Tensor, w: Tensor = w) -> Tensor:
            return (w * v).sum(0)

        def covariance(a: Tensor, b: Tensor) -> Tensor:
            return count / (count - 1) * (mean(a * b) - mean(a) * mean(b))

        expected_theta += (after - beta) * (mean(d_theta) + beta * covariance(d_theta, f))
        expected_phi += (after - beta) * (-mean(d_phi) + (1 - beta) * covariance(d_phi, f))
    assert theta.grad is not None
    assert phi.grad is not None
    torch.testing.assert_close(-theta.grad, expected_theta, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(-phi.grad, expected_phi, rtol=1e-9, atol=1e-9)


def test_piwae_takes_its_two_gradients_from_two_bounds() -> None:
    theta, phi = replicates(Objective(MIWAE(8, 2), TwoBounds()), 500)
    theta_iwae, _ = replicates(Objective(IWAE(8), Pathwise()), 500)
    theta_miwae, phi_miwae = replicates(Objective(MIWAE(8, 2), Pathwise()), 500)
    torch.testing.assert_close(theta, theta_iwae, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(phi, phi_miwae, rtol=1e-9, atol=1e-12)
    assert (theta - theta_miwae).abs().max() > 1e-3


def test_two_bounds_survive_weights_that_underflow() -> None:
    """Where one group's weights vanish beside the other's, φ still hears from both."""
    torch.set_default_dtype(torch.float32)
    phi = torch.zeros(4, requires_grad=True)

    def model(x: Tensor) -> None:
        with pyro.plate("data", 1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
            pyro.sample("x", dist.Normal(z, 0.02), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 1):
            pyro.sample("z", dist.Normal(phi.sum(), 1.0))

    gradients: list[Tensor] = []
    for gradient in (TwoBounds(), Pathwise()):
        phi.grad = None
        pyro.set_rng_seed(1)
        Objective(MIWAE(4, 2), gradient).loss_and_grads(model, guide, torch.zeros(1))
        assert phi.grad is not None
        gradients.append(phi.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


# Hierarchical and discrete programs.


def chain(num_data: int) -> tuple[Any, Any, Tensor, torch.nn.ParameterDict]:
    """z1 → z2 → x, and a guide in which z2 hangs on z1: the stopped posterior needs its second
    run.
    """
    q = torch.nn.ParameterDict(
        {n: torch.tensor(v) for n, v in (("a", 0.3), ("b", 0.6), ("s", -0.4))}
    )

    def model(x: Tensor) -> None:
        with pyro.plate("data", num_data):
            one = pyro.sample("one", dist.Normal(0.0, 1.0))
            two = pyro.sample("two", dist.Normal(one, 1.0))
            pyro.sample("x", dist.Normal(two, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", num_data):
            one = pyro.sample("one", dist.Normal(q["a"] * x, 0.8))
            pyro.sample("two", dist.Normal(q["b"] * one + 0.3 * x, q["s"].exp()))

    return model, guide, torch.ones(num_data), q


def test_stopped_posterior_of_a_hierarchical_guide() -> None:
    """By hand: P = (∂ log p/∂z − ∂ log q/∂z) ∂z/∂φ along both draws, with q's own parameters
    held.
    """
    model, guide, x, q = chain(50)
    pyro.set_rng_seed(3)
    Objective(ELBO(), StickingTheLanding()).loss_and_grads(model, guide, x)
    pyro.set_rng_seed(3)
    e1, e2 = torch.randn(50), torch.randn(50)
    held = {n: p.detach() for n, p in q.items()}
    one = q["a"] * x + 0.8 * e1
    two = q["b"] * one + 0.3 * x + q["s"].exp() * e2
    log_p = -0.5 * one**2 - 0.5 * (two - one) ** 2 - 0.5 * (x - two) ** 2
    spread = held["s"].exp()
    log_q = (
        -0.5 * ((one - held["a"] * x) / 0.8) ** 2
        - 0.5 * ((two - held["b"] * one - 0.3 * x) / spread) ** 2
    )
    expected = torch.autograd.grad((log_p - log_q).sum(), list(q.values()))
    for parameter, gradient in zip(q.values(), expected, strict=True):
        assert parameter.grad is not None
        assert parameter.requires_grad
        torch.testing.assert_close(-parameter.grad, gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "gradient",
    [DoublyReparameterized(), pytest.param(Score("geometric"), marks=pytest.mark.slow)],
    ids=str,
)
def test_hierarchical_means_agree(gradient: Gradient) -> None:
    found = []
    for estimator in (Pathwise(), gradient):
        model, guide, x, q = chain(1)
        rows = []
        for seed in range(20):
            model, guide, x, q = chain(4000)
            pyro.set_rng_seed(seed)
            Objective(IWAE(3), estimator).loss_and_grads(model, guide, x)
            rows.append(torch.stack([-p.grad / 4000 for p in q.values()]))
        found.append(torch.stack(rows))
    difference = found[0] - found[1]
    assert (difference.mean(0).abs() < 4.5 * difference.std(0) / math.sqrt(20)).all()


def discrete(num_data: int) -> tuple[Any, Any, Tensor, Tensor]:
    logit = torch.full((num_data,), 0.4, requires_grad=True)

    def model(x: Tensor) -> None:
        with pyro.plate("data", num_data):
            z = pyro.sample("z", dist.Bernoulli(torch.full((num_data,), 0.3)))
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", num_data):
            pyro.sample("z", dist.Bernoulli(logits=logit))

    return model, guide, torch.ones(num_data), logit


@pytest.mark.parametrize(
    "make", [OBJECTIVES["score"], OBJECTIVES["vimco"], OBJECTIVES["rws"], OBJECTIVES["tvo"]]
)
def test_discrete_guides(make: Callable[..., Objective]) -> None:
    """ELBO of a Bernoulli latent in closed form: the score estimator has its gradient; the others
    run, and move φ.
    """
    num_data = 100_000
    model, guide, x, logit = discrete(num_data)
    objective = make(num_particles=2)
    pyro.set_rng_seed(0)
    objective.loss_and_grads(model, guide, x)
    assert logit.grad is not None
    found = -logit.grad
    q = torch.tensor(0.4).sigmoid()
    gain = (
        math.log(0.3) - 0.5 - (math.log(0.7) - 0.5) - (q.log() - (1 - q).log())
    )  # log w at z = 1 less that at z = 0
    exact_elbo = (q * (1 - q) * gain).item()
    if isinstance(objective.bound_function, ELBO):
        assert found.mean().item() == pytest.approx(
            exact_elbo, abs=4.5 * found.std().item() / math.sqrt(num_data)
        )
    else:
        assert found.mean().abs() > 4.5 * found.std() / math.sqrt(num_data)
    with pytest.raises(ProgramError, match=r"site 'z' \(Bernoulli\) has none"):
        Objective(IWAE(2), DoublyReparameterized()).loss(model, guide, x)


# Every pair, any program.


def pairs() -> list[Objective]:
    gradients = [
        Pathwise(),
        StickingTheLanding(),
        DoublyReparameterized(),
        Score(),
        Score("geometric"),
        TwoBounds(),
    ]
    found = [Objective(bound, gradient) for bound in BOUNDS for gradient in gradients]
    named = (OBJECTIVES[name](num_particles=4) for name in FOR_GAUSSIANS)
    return [
        *found,
        *(o for o in named if isinstance(o, Objective) and o.evaluations == 4),  # four draws each
    ]


@pytest.mark.parametrize("objective", pairs(), ids=lambda o: f"{o.bound_function}-{o.gradient}")
def test_splitting_and_permuting_the_batch_changes_nothing(
    objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Per datum: with the draws held, the bound and the gradient of a batch are sums over its
    data.
    """
    torch.manual_seed(0)
    system, x = zoo.vae(6, 2, encoder=MLP((4,))), (torch.rand(6, 6) < 0.5).double()
    system.eval()
    noise = torch.randn(4, 6, 2)
    monkeypatch.setattr(
        objective, "_nesting_of", lambda *_: 1
    )  # trial runs have one or two particles, and the noise has four
    monkeypatch.setattr(objective, "_globals_of", lambda *_: frozenset())
    objective.prepare(system.model, system.guide, (x,), {})

    def run(index: Tensor) -> tuple[Tensor, Tensor]:
        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                loc, log_variance = system.encoder(x).chunk(2, -1)
                pyro.sample(
                    "z", _Fixed(loc, (0.5 * log_variance).exp(), noise[:, index]).to_event(1)
                )

        system.zero_grad()
        loss = objective.loss_and_grads(system.model, guide, x[index])
        return torch.tensor(loss), torch.cat([p.grad.flatten() for p in system.parameters()])  # type: ignore[union-attr]

    whole, gradient = run(torch.arange(6))
    assert gradient.abs().max() > 1e-3
    parts = [run(index) for index in (torch.tensor([4, 1]), torch.tensor([0, 5, 2, 3]))]
    torch.testing.assert_close(whole, parts[0][0] + parts[1][0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, parts[0][1] + parts[1][1], rtol=1e-8, atol=1e-10)


class _Fixed(dist.Normal):
    """A Normal whose standardized draws are given."""

    def __init__(self, loc: Tensor, scale: Tensor, noise: Tensor) -> None:
        self.noise = noise
        super().__init__(loc, scale)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_Fixed":
        return _Fixed(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.noise)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + self.scale * self.noise.reshape(self.loc.shape)


@pytest.mark.parametrize("name", ["trace-elbo", "analytic-kl"])
def test_global_latents_under_the_elbo_and_not_under_wake_sleep(name: str) -> None:
    model, guide, _ = hierarchical()
    assert OBJECTIVES[name](num_particles=3).loss(model, guide, DATA.double()) > 0
    with pytest.raises(ProgramError, match="the latent site 'level' lies outside the data plate"):
        Objective(IWAE(3), WakeSleep()).loss(model, guide, DATA.double())


def test_a_delta_has_no_score() -> None:
    system = zoo.autoencoder(6, 2, encoder=MLP((4,)))
    for gradient in (Score(), WakeSleep()):
        with pytest.raises(ProgramError, match="its site 'z' is a Delta, which has none"):
            Objective(IWAE(3), gradient).loss(system.model, system.guide, torch.rand(3, 6))


def test_undefined_pairs_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs num_particles of at least 2, not 1"):
        Objective(IWAE(1), Score())
    with pytest.raises(ConfigError, match="needs num_particles of at least 3, not 2"):
        Objective(JVI(2), Score())
    with pytest.raises(ConfigError, match="not defined for Renyi"):
        Objective(Renyi(2), WakeSleep())
    with pytest.raises(ConfigError, match="has discontinuous slopes"):
        Objective(Renyi(2, -math.inf), DoublyReparameterized())
    with pytest.raises(ConfigError, match="covariance gradient is defined for TVO, not for IWAE"):
        Objective(IWAE(2), Covariance())
    with pytest.raises(ConfigError, match=r"alpha of DReG\(α\) must be in \[0, 1\]"):
        DoublyReparameterized(alpha=2.0)
    with pytest.raises(ConfigError, match="unknown baseline 'mean'"):
        Score("mean")  # type: ignore[arg-type]
