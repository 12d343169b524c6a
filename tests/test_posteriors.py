"""Posteriors beyond the diagonal: densities, gradients along paths and at stopped draws, and what
each can represent.
"""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyroae
from pyroae import AISSettings, TrainConfig, priors, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.distributions import marginals
from pyroae.errors import ConfigError
from pyroae.nn import MLP, Linear
from pyroae.objectives import parse_objective
from pyroae.posteriors import IAF, POSTERIORS, Flow, GaussianMixture, Posterior

pytestmark = pytest.mark.usefixtures("float64")

N, D, M, K = 4, 5, 3, 6
FLOWS = (
    "iaf:hidden=8,context=2",
    "nsf:hidden=8,context=2,bins=4",
    "nsf:hidden=8,context=2,bins=4,coupling=false",
)
NAMES = ("full-rank", "low-rank:rank=2", "mixture:components=3", *FLOWS[:2])
EVERY = pytest.mark.parametrize("name", NAMES)
SAMPLED = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name.startswith(("low", "nsf")) else [])
        for name in NAMES
    ],
)
"""Every posterior; two of them in the slow tests only."""


def build(name: str, latent: int = M, bend: float = 0.4) -> Autoencoder:
    """A system whose posterior is far from its start: the flows bend, the components differ."""
    torch.manual_seed(1)
    system = Autoencoder(D, latent, posterior=POSTERIORS.parse(name), encoder=MLP((6,)))
    for parameter in [*system.encoder.parameters(), *system.learned_posterior.parameters()]:
        parameter.data += bend * torch.randn_like(parameter)
    return system


def binary() -> Tensor:
    return (torch.rand(N, D, generator=torch.Generator().manual_seed(2)) < 0.5).double()


def of_guide(system: Autoencoder) -> list[Tensor]:
    return [*system.encoder.parameters(), *system.learned_posterior.parameters()]


def drawn(system: Autoencoder, x: Tensor) -> Tensor:
    """The draws of a guide with K particles at seed 3, `[K, N, M]`."""
    pyro.set_rng_seed(3)
    return system.q_z(x).expand((K, N)).rsample()


def without_cache(system: Autoencoder, x: Tensor, z: Tensor) -> Tensor:
    """The log q(z|x) of values that are no draws of the distribution that evaluates them."""
    return system.q_z(x).expand((K, N)).log_prob(z)


# Densities


@EVERY
def test_density_integrates_to_one_in_two_dimensions(name: str) -> None:
    """On a lattice, of which the density has the mean that the distribution says."""
    q_z = build(name, latent=2, bend=0.15).q_z(binary()[:1])
    line = torch.linspace(-8, 8, 161)
    z = torch.cartesian_prod(line, line)
    mass = q_z.log_prob(z[:, None]).exp() * (line[1] - line[0]) ** 2
    torch.testing.assert_close(mass.sum(0), torch.ones(1), rtol=0, atol=1e-3)
    mean = (mass[..., None] * z[:, None]).sum(0)
    spread = (mass[..., None] * (z[:, None] - mean) ** 2).sum(0).sqrt()
    tolerance = 0.02 if isinstance(q_z, Flow) else 2e-3
    assert ((q_z.mean - mean).abs() / spread < tolerance).all()


@pytest.mark.parametrize("name", FLOWS)
def test_log_det_is_that_of_the_jacobian(name: str) -> None:
    system, x = build(name), binary()
    q_z = system.q_z(x)
    z = q_z.rsample()
    noise = q_z.transform(q_z.context).inv((z - q_z.loc) / q_z.scale)
    for n in range(N):

        def moved(epsilon: Tensor, n: int = n) -> Tensor:
            part = q_z.transform(q_z.context[n])(epsilon)
            return q_z.loc[n] + q_z.scale[n] * part

        jacobian = torch.autograd.functional.jacobian(moved, noise[n])
        expected = dist.Normal(0.0, 1.0).log_prob(noise[n]).sum() - jacobian.slogdet()[1]
        torch.testing.assert_close(q_z.log_prob(z)[n], expected)
        off_diagonal = jacobian - jacobian.diag().diag()
        assert off_diagonal.abs().max() > 0.01  # the flow does couple its elements


@pytest.mark.parametrize("name", FLOWS)
def test_kept_density_of_a_draw_is_that_of_its_inverse(name: str) -> None:
    """Value and derivative, along the path; and it is not kept for other tensors."""
    system, x = build(name), binary()
    q_z = system.q_z(x).expand((K, N))
    z = q_z.rsample()
    kept, inverted = q_z.log_prob(z), without_cache(system, x, z)
    assert kept is not inverted
    torch.testing.assert_close(kept, inverted)
    one, other = (
        torch.autograd.grad(log_q.square().sum(), of_guide(system), retain_graph=True)
        for log_q in (kept, inverted)
    )
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", FLOWS)
def test_density_of_a_draw_without_gradients_still_has_one(name: str) -> None:
    """A draw under no_grad, and a draw that was changed in place, are computed anew."""
    system, x = build(name), binary()
    q_z = system.q_z(x)
    z = q_z.sample()
    assert q_z.log_prob(z).requires_grad
    torch.testing.assert_close(q_z.log_prob(z), system.q_z(x).log_prob(z))
    with torch.no_grad():
        z = q_z.rsample()
        before = q_z.log_prob(z)
        z.add_(0.5)
        assert (q_z.log_prob(z) - before).abs().max() > 1e-3


def test_gaussians_are_those_of_their_covariance() -> None:
    """full-rank: L = diag(σ) (I + N), row by row; low-rank: diag(σ²) + V Vᵀ."""
    x = binary()
    system = build("full-rank")
    loc, log_variance, lower = system.encoder(x).split([M, M, M], 1)
    tril = torch.eye(M).repeat(N, 1, 1)
    tril[:, 1, 0], tril[:, 2, 0], tril[:, 2, 1] = lower.unbind(1)
    tril = (log_variance / 2).exp().diag_embed() @ tril
    torch.testing.assert_close(system.q_z(x).covariance_matrix, tril @ tril.mT)
    torch.testing.assert_close(system.q_z(x).mean, loc)
    system = build("low-rank:rank=2")
    loc, log_variance, factor = system.encoder(x).split([M, M, 2 * M], 1)
    factor = factor.reshape(N, M, 2)
    expected = log_variance.exp().diag_embed() + factor @ factor.mT
    torch.testing.assert_close(system.q_z(x).covariance_matrix, expected)
    torch.testing.assert_close(system.q_z(x).mean, loc)


# Gradients


def reference(system: Autoencoder, x: Tensor, objective: str) -> Tensor:
    """A number whose derivative to the guide's parameters is the estimator, from a second guide.

    Path derivatives: a copy of the system whose parameters have no gradient evaluates log q at the
    attached draws. Scores: a new distribution evaluates log q at the detached draws.
    """
    frozen = copy.deepcopy(system).requires_grad_(False)
    z = drawn(system, x)
    at = z.detach()
    log_joint = system.p_z().log_prob(z) + system.p_x(z).log_prob(x)
    paths = log_joint - without_cache(frozen, x, z)
    log_w, score = paths.detach(), without_cache(system, x, at)
    weight = log_w.softmax(0)
    if objective == "stl":
        return paths.mean(0).sum()
    if objective == "dreg":
        return (weight**2 * paths).sum()
    if objective == "rws":
        return (weight * score).sum()
    if objective == "iwae":
        return (log_joint - without_cache(system, x, z)).logsumexp(0).sum()
    others = (log_w.sum(0) - log_w) / (K - 1)
    if objective == "score":
        return ((log_w.mean(0) - others) * score).sum()  # −score / K has mean 0
    assert objective == "vimco"
    total = log_w.logsumexp(0)
    rest = torch.stack(
        [torch.cat([log_w[:k], others[k : k + 1], log_w[k + 1 :]]).logsumexp(0) for k in range(K)]
    )
    return ((total - rest) * score - weight * score).sum()


@EVERY
@pytest.mark.parametrize("objective", ["stl", "dreg", "rws", "iwae", "score", "vimco"])
def test_gradient_is_that_of_a_second_guide(name: str, objective: str) -> None:
    system, x = build(name), binary()
    estimator = parse_objective(f"{objective}:num_particles={K}")
    expected = torch.autograd.grad(reference(system, x, objective), of_guide(system))
    estimator.differentiable_loss(system.model, system.guide, x)  # the trial runs of a first call
    pyro.set_rng_seed(3)
    surrogate = estimator.bound(system.model, system.guide, x).surrogate
    found = torch.autograd.grad(surrogate, of_guide(system))
    assert max(g.abs().max() for g in expected) > 1e-3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", FLOWS)
def test_a_step_of_a_flow_inverts_it_only_where_draws_are_stopped(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ELBO and IWAE take the kept density of their draws; STL and scores need the inverse."""
    inverses: list[int] = []
    log_prob = Flow.log_prob

    def counted(self: Flow, value: Tensor) -> Tensor:
        inverses.append(self._drawn is None or value is not self._drawn[0])
        return log_prob(self, value)

    monkeypatch.setattr(Flow, "log_prob", counted)
    system, x = build(name), binary()
    for objective, count in (("trace-elbo", 0), ("iwae", 0), ("stl", 1), ("rws", 1)):
        estimator = parse_objective(f"{objective}:num_particles={K}")
        estimator.differentiable_loss(system.model, system.guide, x)
        inverses.clear()
        estimator.differentiable_loss(system.model, system.guide, x)
        assert sum(inverses) == count, objective


def test_mixture_draws_have_the_gradient_of_their_mean() -> None:
    """The derivative of E f(z) to means, scales and logits, from an integral over a lattice."""
    torch.manual_seed(4)
    parts = [torch.randn(3, 2), 0.3 * torch.randn(3, 2), torch.randn(3)]
    leaves = [part.requires_grad_() for part in parts]

    def q() -> GaussianMixture:
        loc, log_scale, logits = leaves
        return GaussianMixture(
            dist.Categorical(logits=logits), dist.Normal(loc, log_scale.exp()).to_event(1)
        )

    def f(z: Tensor) -> Tensor:
        return torch.sin(z[..., 0]) * z[..., 1] + torch.cos(2 * z[..., 1]) + z[..., 0] ** 2

    line = torch.linspace(-9, 9, 361)
    z = torch.cartesian_prod(line, line)
    exact = (q().log_prob(z).exp() * f(z)).sum() * (line[1] - line[0]) ** 2
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(exact, leaves)])
    many = torch.Size((400,))
    gradients = [torch.autograd.grad(f(q().rsample(many)).mean(), leaves) for _ in range(60)]
    estimates = torch.stack([torch.cat([g.flatten() for g in each]) for each in gradients])
    error = estimates.std(0) / math.sqrt(60)
    assert (expected.abs() > 10 * error).sum() > 10
    assert ((estimates.mean(0) - expected).abs() < 4.5 * error).all()


def test_mixture_of_one_component_is_the_diagonal() -> None:
    """The same draw and the same gradient; far in a tail too."""
    loc = torch.randn(N, M, requires_grad=True)
    scale = torch.rand(N, M).add(0.5).requires_grad_()
    q = GaussianMixture(
        dist.Categorical(logits=torch.zeros(N, 1)),
        dist.Normal(loc[:, None], scale[:, None]).to_event(1),
    )
    z = q.rsample()
    noise = ((z - loc) / scale).detach()
    slope = torch.randn(N, M)
    found = torch.autograd.grad((z * slope).sum(), [loc, scale])
    torch.testing.assert_close(found[0], slope)
    torch.testing.assert_close(found[1], slope * noise)
    torch.testing.assert_close(marginals(q).log_prob(z), q.log_prob(z))


# What each can represent


def of_columns(posterior: Posterior, latent: int = 2) -> tuple[Autoencoder, Tensor]:
    """A pPCA with a fixed W whose columns are nearly parallel, and data drawn from it."""
    system = zoo.ppca(4, latent, posterior=posterior)
    torch.manual_seed(5)
    common, own = torch.randn(4, 1), torch.randn(4, latent)
    with torch.no_grad():
        system.decoder.get_parameter("0.weight").copy_(common + 0.28 * own)
        for parameter in system.learned_likelihood.parameters():
            parameter.copy_(torch.full_like(parameter, math.log(0.6)))
        x = system.sample(500, noise=True)
    for part in (system.decoder, system.learned_likelihood):
        part.requires_grad_(False)
    return system, x


def short_by(system: Autoencoder) -> float:
    """How far the best diagonal Gaussian stays below log p(x): ½ (Σ_j log M_jj − log det M)."""
    weight, _, sigma = system.linear_gaussian()
    precision = weight.T @ weight + sigma**2 * torch.eye(weight.shape[1])
    return 0.5 * (precision.diag().log().sum() - precision.logdet()).item()


def gap(system: Autoencoder, x: Tensor) -> tuple[float, float]:
    """The mean of log p(x) − ELBO in nats, and the half-width of its 95 % interval."""
    log_weight = pyroae.log_weights(system.model, system.guide, x, num_particles=200).log_weight
    exact = pyroae.exact_log_likelihood(system, x)
    error = 1.96 * (log_weight.var(0) / 200).sum().sqrt().item() / len(x)
    return (exact - log_weight.mean(0)).mean().item(), error


def train(system: Autoencoder, x: Tensor, schedule: tuple[tuple[float, int], ...]) -> None:
    for lr, epochs in schedule:
        config = TrainConfig(epochs=epochs, batch_size=100, seed=0, lr=lr, keep="last")
        pyroae.fit(system, x, parse_objective("stl"), config)


SCHEDULE = ((0.05, 40), (0.01, 25), (0.001, 15))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("full-rank", -0.001, 0.01),
        pytest.param("diagonal", 0.3, 0.33, marks=pytest.mark.slow),
        pytest.param("low-rank:rank=2", -0.001, 0.01, marks=pytest.mark.slow),
        pytest.param("mixture:components=4", -0.001, 0.25, marks=pytest.mark.slow),
        pytest.param("iaf", -0.001, 0.05, marks=pytest.mark.slow),
    ],
)
def test_gap_of_a_ppca(name: str, low: float, high: float) -> None:
    """θ is fixed, and only q is trained. The diagonal stays 0.318 nats below log p(x)."""
    system, x = of_columns(POSTERIORS.parse(name))
    assert short_by(system) == pytest.approx(0.3183, abs=1e-3)
    assert gap(system, x)[0] > 0.5  # it has yet to be trained
    train(system, x, SCHEDULE)
    found, error = gap(system, x)
    assert low < found - error
    assert found + error < high
    if name == "diagonal":
        assert abs(found - short_by(system)) < error + 2e-3


def test_kl_of_units_of_a_ppca_are_those_of_the_exact_posterior() -> None:
    """`diagnose`: with the total correlation they add up to the KL of the whole."""
    torch.manual_seed(0)
    system = zoo.ppca(D, M, exact=True)
    x = torch.randn(50, D)
    found = pyroae.diagnose(system.model, system.guide, x, num_particles=2, seed=0)
    weight, _, sigma = system.linear_gaussian()
    precision = (weight.T @ weight + sigma**2 * torch.eye(M)) / sigma**2
    covariance, mean = precision.inverse(), system.encode(x)
    variance = covariance.diag()
    expected = 0.5 * (mean**2 + variance - 1 - variance.log()).mean(0)
    torch.testing.assert_close(found.kl_per_unit, expected)
    correlation = 0.5 * (variance.log().sum() - covariance.logdet())
    torch.testing.assert_close(found.total_correlation, correlation)


# Evaluators, dtypes, settings


@SAMPLED
def test_evaluators_agree_with_quadrature(name: str) -> None:
    """IS and AIS from the guide within their errors; the mean of q is that of its draws."""
    system, x = build(name, latent=2, bend=0.1), binary()
    exact = pyroae.quadrature(system.model, system.guide, x).log_px
    found = pyroae.log_likelihood(system.model, system.guide, x, num_particles=2000, seed=0)
    assert ((found.log_px - exact).abs() < 5 * found.se + 1e-3).all()
    settings = AISSettings(num_chains=16, num_distributions=20, leapfrog_steps=2, start="guide")
    annealed = pyroae.ais(system.model, system.guide, x, settings=settings, seed=0, compile=False)
    assert ((annealed.log_px - exact).abs() < 5 * annealed.se + 0.02).all()
    draws = system.q_z(x).sample((4000,))
    error = draws.std(0) / math.sqrt(4000)
    assert ((draws.mean(0) - system.encode(x)).abs() < 5 * error + 0.02 * draws.std(0)).all()


@EVERY
def test_single_precision_stays_single(name: str) -> None:
    system, x = build(name).float(), binary().float()
    q_z = system.q_z(x).expand((K, N))
    z = q_z.rsample()
    assert z.shape == (K, N, M)
    assert q_z.log_prob(z).shape == (K, N)
    assert {t.dtype for t in (z, q_z.log_prob(z), q_z.mean)} == {torch.float32}
    torch.testing.assert_close(q_z.log_prob(z), q_z.log_prob(z.clone()), rtol=1e-3, atol=1e-3)
    pyro.set_rng_seed(3)
    double = build(name).q_z(binary()).log_prob(z[0].double())
    torch.testing.assert_close(q_z.log_prob(z.clone())[0].double(), double, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@SAMPLED
def test_compiled_training_is_that_of_eager_code(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traced graph of a step, without the minute that code takes."""
    for module in ("compilation.step_graphs", "evaluation.importance.compiled"):
        monkeypatch.setattr(
            f"pyroae.{module}.inductor", lambda graph, inputs, same_draws, **settings: graph
        )
    systems, x = [], binary().repeat(5, 1)
    for compile in (False, True):
        system = build(name)
        config = TrainConfig(epochs=2, batch_size=10, seed=0, keep="last", compile=compile)
        pyroae.fit(system, x, parse_objective("dreg:num_particles=3"), config)
        systems.append(system)
    for one, other in zip(*(s.parameters() for s in systems), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    one, other = (
        pyroae.log_likelihood(
            system.model, system.guide, x[:3], num_particles=37, seed=0, compile=compile
        ).log_px
        for compile in (False, True)
    )
    torch.testing.assert_close(one, other)


@EVERY
def test_mixed_precision_trains(name: str) -> None:
    """Outputs of the encoder in bfloat16: no triangular system is solved in it."""
    torch.set_default_dtype(torch.float32)
    system = build(name, bend=0.1)
    config = TrainConfig(epochs=1, batch_size=N, precision="bf16-mixed", keep="last")
    result = pyroae.fit(system, binary().float(), parse_objective("stl"), config)
    assert math.isfinite(result.history[-1].train_nelbo)


def test_importing_zuko_leaves_validation_as_it_was() -> None:
    """Its import turns the validation of all distributions off."""
    IAF().learned(2)
    assert torch.distributions.Distribution._validate_args
    with pytest.raises(ValueError, match="scale"):
        torch.distributions.Normal(0.0, -1.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("low-rank:rank=0", "rank of a low-rank posterior must be at least 1, not 0"),
        ("low-rank:rank=4", "the rank of a low-rank posterior is at most the size of z, 3, not 4"),
        ("mixture:components=0", "components of a mixture posterior must be at least 1, not 0"),
        ("iaf:transforms=0", "transforms of a flow posterior must be at least 1, not 0"),
        ("iaf:hidden=-1", "hidden of a flow posterior must be at least 1, not -1"),
        ("nsf:context=0", "context of a flow posterior must be at least 1, not 0"),
        ("nsf:bins=0", "bins of a flow posterior must be at least 1, not 0"),
        ("iaf:activation=ell", "unknown activation 'ell'"),
    ],
)
def test_bad_settings_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(text)


@EVERY
def test_discrete_priors_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="as the prior is over binary z"):
        Autoencoder(D, M, prior=priors.Bernoulli(), posterior=POSTERIORS.parse(name))


@EVERY
def test_tied_weights_are_those_of_the_mean(name: str) -> None:
    """The first m outputs of the encoder are the mean, or the mean of the first component."""
    system = Autoencoder(D, M, posterior=POSTERIORS.parse(name), encoder=Linear(), tied=True)
    z = torch.randn(N, M)
    weight = system.encoder.get_parameter("0.weight")[:M]
    bias = system.decoder.get_parameter("biases.0")
    torch.testing.assert_close(system.decoder(z), z @ weight + bias)
