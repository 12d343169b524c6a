"""Conformance over every registered prior, posterior, likelihood and corruption, and the formula of
each by name.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyroae import linear_gaussian, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.autoencoder.hierarchies import HIERARCHIES
from pyroae.corruptions import CORRUPTIONS, Gaussian, Masking, SaltAndPepper
from pyroae.errors import ConfigError, DataError, UndefinedLikelihoodError
from pyroae.evaluation.diagnostics import diagnose
from pyroae.likelihoods import LIKELIHOODS, Bernoulli, ContinuousBernoulli, Likelihood
from pyroae.likelihoods import Normal as NormalLikelihood
from pyroae.nn import MLP, Linear, Map
from pyroae.objectives import TraceELBO, parse_objective
from pyroae.posteriors import POSTERIORS, Diagonal, ExactLinear, Point, SoftThreshold
from pyroae.posteriors.sparse import sparsity
from pyroae.priors import PRIORS, Flat, GaussianWeights, Laplace
from pyroae.priors import Normal as NormalPrior
from pyroae.registry import Registry
from tests import oracles
from tests.scripts import script

pytestmark = pytest.mark.usefixtures("float64")

REGISTRIES: list[Registry[Any]] = [PRIORS, POSTERIORS, LIKELIHOODS, CORRUPTIONS, HIERARCHIES]
EVERY = [(registry, name) for registry in REGISTRIES for name in registry]
IMPROPER, DISCRETE = ("flat",), ("bernoulli", "categorical")
POINT = ("point", "soft-threshold", "top-k")
CONTINUOUS = [name for name in PRIORS if name not in (*IMPROPER, *DISCRETE)]
DEFAULT = ("normal", "diagonal", "bernoulli", "none")
N, D, M = 8, 5, 3
BASIC = ("bernoulli", "continuous-bernoulli", "normal")
"""Likelihoods of one output per feature; tests/test_likelihoods.py runs over all."""
TEXTS = {"top-k": "top-k:k=3", "mixed": "mixed:columns=normal(feature)*2+categorical+bernoulli*2"}
"""Choices that need settings."""


def integral(density: Tensor, grid: Tensor) -> Tensor:
    return torch.trapezoid(density, grid, dim=0)


def combinations() -> Iterator[tuple[str, str, str, str]]:
    """Every pair of two choices, with defaults that go with them for the other two."""
    names = [TEXTS.get(name, name) for name in LIKELIHOODS]
    posteriors = [TEXTS.get(name, name) for name in POSTERIORS]
    tables = (PRIORS, posteriors, [*names, "normal:learn=true"], CORRUPTIONS)
    found: dict[tuple[str, str, str, str], None] = {}
    for first, second in itertools.combinations(range(4), 2):
        for pair in itertools.product(tables[first], tables[second]):
            given = dict(zip((first, second), pair, strict=True))
            prior, posterior, likelihood, corruption = (
                given.get(i, default) for i, default in enumerate(DEFAULT)
            )
            if prior in DISCRETE and 1 not in given:
                posterior = prior
            if posterior in DISCRETE and 0 not in given:
                prior = posterior
            if posterior == "exact-linear" and 2 not in given:
                likelihood = "normal"
            found[prior, posterior, likelihood, corruption] = None
    return iter(found)


def is_valid(combination: tuple[str, str, str, str]) -> bool:
    """An exact posterior needs a linear-Gaussian system; discrete z go with their like; everything
    else goes together.
    """
    prior, posterior, likelihood, _ = combination
    if prior in DISCRETE or posterior in DISCRETE:
        return prior == posterior
    if prior == "vamp" and posterior.partition(":")[0] in POINT:
        return False
    return posterior != "exact-linear" or (prior == "normal" and likelihood.startswith("normal"))


def build(combination: tuple[str, str, str, str], maps: Map | None = None) -> Autoencoder:
    prior, posterior, likelihood, corruption = combination
    return Autoencoder(
        D,
        M,
        prior=PRIORS.parse("vamp:components=4" if prior == "vamp" else prior),
        posterior=POSTERIORS.parse(posterior),
        likelihood=LIKELIHOODS.parse(likelihood),
        corruption=CORRUPTIONS.parse(corruption),
        encoder=maps or (Linear() if posterior == "exact-linear" else MLP((4,))),
    )


def binary() -> Tensor:
    return (torch.rand(N, D) < 0.5).double()


TOGETHER = [c for c in combinations() if is_valid(c)]


# Every choice


def test_the_page_of_all_choices_is_that_of_the_registries() -> None:
    """docs/choices.md, as `python docs/_choices.py` writes it."""
    module = script("docs/_choices.py")
    assert module.PAGE.read_text(encoding="utf-8") == module.page()


@pytest.mark.parametrize(
    ("registry", "name"), EVERY, ids=lambda value: getattr(value, "kind", value)
)
def test_choice_is_a_frozen_value(registry: Registry[Any], name: str) -> None:
    one, two = (registry.parse(TEXTS.get(name, name)) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    for field in fields(one):
        with pytest.raises(FrozenInstanceError):
            setattr(one, field.name, 0)


@pytest.mark.parametrize("combination", TOGETHER, ids=" ".join)
def test_gradient_reaches_every_parameter(combination: tuple[str, str, str, str]) -> None:
    system = build(combination)
    objective = parse_objective("vimco") if combination[0] in DISCRETE else TraceELBO()
    objective.differentiable_loss(system.model, system.guide, binary()).backward()
    parameters = dict(system.named_parameters())
    assert "decoder.0.weight" in parameters
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize(
    "combination",
    [pytest.param(c, marks=pytest.mark.slow if i % 4 else ()) for i, c in enumerate(TOGETHER)],
    ids=" ".join,
)
def test_state_goes_from_one_system_to_another(combination: tuple[str, str, str, str]) -> None:
    one, two, x = build(combination), build(combination), binary()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.1)

    def loss(system: Autoencoder) -> float:
        pyro.set_rng_seed(3)
        objective = parse_objective("vimco") if combination[0] in DISCRETE else TraceELBO()
        return objective.loss(system.model, system.guide, x)

    assert loss(one) != loss(two)
    two.load_state_dict(one.state_dict())
    assert loss(one) == loss(two)


@pytest.mark.parametrize(
    "combination", [c for c in combinations() if not is_valid(c)], ids=" ".join
)
def test_other_combinations_are_refused(combination: tuple[str, str, str, str]) -> None:
    words = (
        r"as the prior is over"
        if set(combination[:2]) & set(DISCRETE)
        else "a VampPrior is a mixture of"
        if combination[0] == "vamp"
        else r"a linear-Gaussian system; the (prior|likelihood) is"
    )
    with pytest.raises((ConfigError, UndefinedLikelihoodError), match=words):
        build(combination).guide(binary())


def test_exact_posterior_needs_a_linear_decoder() -> None:
    with pytest.raises(
        (ConfigError, UndefinedLikelihoodError),
        match="a linear-Gaussian system; the decoder is MLP",
    ):
        build(("normal", "exact-linear", "normal", "none"), MLP((4,))).guide(binary())


def test_choices_that_do_not_go_together_are_refused_at_once() -> None:
    """Autoencoder: "Raises ConfigError for choices that do not go together"; not at the first
    batch.
    """
    with pytest.raises((ConfigError, UndefinedLikelihoodError), match="linear-Gaussian"):
        build(("normal", "exact-linear", "bernoulli", "none"))


# Priors


GRID = torch.linspace(-12, 12, 100_001, dtype=torch.float64).sinh()
"""Points whose distances grow with |z|, for heavy tails."""


def p_z_of(name: str, latent: int, dtype: torch.dtype = torch.float64) -> Any:
    """The prior of a small system."""
    posterior = POSTERIORS.parse(name) if name in DISCRETE else Diagonal()
    text = "vamp:components=4" if name == "vamp" else name
    system = Autoencoder(
        D, latent, prior=PRIORS.parse(text), posterior=posterior, encoder=MLP((4,))
    )
    return system.to(dtype).p_z()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_prior_integrates_to_one(name: str) -> None:
    grid = GRID
    log_prob = p_z_of(name, 1).log_prob(grid[:, None])
    assert integral(log_prob.exp(), grid).item() == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("name", list(PRIORS))
def test_prior_shapes_and_dtype(name: str) -> None:
    z = torch.randn(4, 2, M)
    z = torch.nn.functional.one_hot(torch.randint(M, (4, 2)), M).double() if name in DISCRETE else z
    p_z = p_z_of(name, M)
    assert (p_z.batch_shape, p_z.event_shape) == ((), (M,))
    assert p_z.expand((4, 2)).log_prob(z).shape == (4, 2)
    torch.testing.assert_close(p_z.expand((4, 2)).log_prob(z), p_z.log_prob(z))
    single = p_z_of(name, M, torch.float32)
    assert single.log_prob(z.float()).dtype == torch.float32


@pytest.mark.parametrize("name", CONTINUOUS)
def test_prior_draws_have_the_mean_density_of_its_entropy(name: str) -> None:
    """E log p(z) over draws against the same integral on a grid."""
    p_z, grid = p_z_of(name, 1), GRID
    on_grid, drawn = p_z.log_prob(grid[:, None]), p_z.log_prob(p_z.sample((100_000,)))
    expected = integral(on_grid.exp() * on_grid.clamp_min(-1000), grid)
    assert abs(drawn.mean() - expected) < 4 * drawn.std() / math.sqrt(100_000)


def test_prior_formulas() -> None:
    z, zeros = torch.randn(4, M), torch.zeros(M)

    def minus_log(prior: NormalPrior | Laplace | Flat) -> Tensor:
        return -prior.distribution(zeros, prior.learned(M, D)).log_prob(z)

    torch.testing.assert_close(minus_log(NormalPrior()), oracles.normal_nll(z, zeros))
    torch.testing.assert_close(minus_log(Laplace(2.5)), oracles.laplace_penalty(z, 2.5))
    assert (minus_log(Flat()) == 0).all()


def test_flat_prior_has_no_gradient_and_no_samples() -> None:
    system, z = build(("flat", "point", "normal", "none")), torch.randn(4, M, requires_grad=True)
    (gradient,) = torch.autograd.grad(system.p_z().log_prob(z).sum(), [z])
    assert (gradient == 0).all()
    with pytest.raises(
        UndefinedLikelihoodError, match="a Flat prior cannot be sampled: it is not a probability"
    ):
        system.sample(3)


def test_weight_prior() -> None:
    w = torch.randn(6)
    torch.testing.assert_close(
        -GaussianWeights(0.7, 10).distribution(w).log_prob(w), oracles.normal_nll(w, w * 0, 0.7)
    )


# Discrete z


ENUMERATED = {
    "bernoulli": torch.tensor(list(itertools.product((0.0, 1.0), repeat=4))),
    "categorical:categories=2": torch.tensor(
        list(itertools.product((0.0, 1.0), repeat=2))
    ).repeat_interleave(2, 1),
}
ENUMERATED["categorical:categories=2"][:, 1::2] = 1 - ENUMERATED["categorical:categories=2"][:, ::2]


@pytest.mark.parametrize("text", list(ENUMERATED))
@pytest.mark.parametrize("learn", [False, True])
def test_discrete_choices_add_up_to_one(text: str, learn: bool) -> None:
    """Over every z of size 4; the mean of the density is that of `mean`, and draws have it."""
    torch.manual_seed(0)
    posterior = POSTERIORS.parse(text)
    prior = PRIORS.parse(text + ("," if ":" in text else ":") + f"learn={str(learn).lower()}")
    system = Autoencoder(D, 4, prior=prior, posterior=posterior, encoder=MLP((4,)))
    for parameter in system.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    z, x = ENUMERATED[text].double(), binary()
    for fn, shape in ((system.p_z(), ()), (system.q_z(x), (N,))):
        assert (fn.batch_shape, fn.event_shape) == (shape, (4,))
        density = fn.log_prob(z.reshape(-1, *[1] * len(shape), 4).expand(-1, *shape, 4)).exp()
        torch.testing.assert_close(density.sum(0), torch.ones(shape))
        torch.testing.assert_close(torch.tensordot(density, z, ([0], [0])), fn.mean)
        drawn = fn.sample((20_000,))
        assert (drawn.mean(0) - fn.mean).abs().max() < 5 * 0.5 / math.sqrt(20_000)
        assert (density.std(0) > 0.01).all() == (learn or shape == (N,))
        entropy = -(density * density.log()).sum(0)
        torch.testing.assert_close(fn.entropy(), entropy)


@pytest.mark.parametrize("text", list(ENUMERATED))
def test_discrete_kl_is_the_sum_over_all_states(text: str) -> None:
    torch.manual_seed(1)
    system = zoo.discrete_vae(D, 4, None if text == "bernoulli" else 2, encoder=MLP((4,)))
    x, z = binary(), ENUMERATED[text].double()
    log_q = system.q_z(x).log_prob(z[:, None].expand(-1, N, 4))
    expected = (log_q.exp() * (log_q - system.p_z().log_prob(z)[:, None])).sum(0)
    torch.testing.assert_close(
        torch.distributions.kl_divergence(system.q_z(x), system.p_z().expand((N,))), expected
    )
    found = diagnose(system.model, system.guide, x, num_particles=3)
    assert (
        found.kl_per_unit.shape == found.activity.shape == ((4,) if text == "bernoulli" else (2,))
    )
    assert found.kl_per_unit.sum().item() == pytest.approx(expected.mean().item())


def test_discrete_and_continuous_do_not_go_together() -> None:
    for prior, posterior in (
        ("normal", "bernoulli"),
        ("bernoulli", "diagonal"),
        ("categorical", "bernoulli"),
        ("flat", "categorical"),
    ):
        with pytest.raises(
            ConfigError, match=r"as the prior is over .* z, .* as the posterior over"
        ):
            build((prior, posterior, "bernoulli", "none"))
    with pytest.raises(
        ConfigError, match="z of size 4 does not hold whole variables of 3 categories"
    ):
        zoo.discrete_vae(D, 4, categories=3)
    with pytest.raises(
        ConfigError, match="probability of a Bernoulli prior must be between 0 and 1"
    ):
        PRIORS.parse("bernoulli:probability=1.0")


# Posteriors


@pytest.mark.parametrize("name", [name for name in POSTERIORS if name not in (*POINT, *DISCRETE)])
def test_posterior_integrates_to_one(name: str) -> None:
    system = Autoencoder(
        1, 1, posterior=POSTERIORS.parse(name), likelihood=NormalLikelihood(0.5), encoder=Linear()
    )
    grid, x = torch.linspace(-30, 30, 100_001), torch.randn(2, 1)
    q_z = system.q_z(x)
    assert (q_z.batch_shape, q_z.event_shape) == ((2,), (1,))
    density = q_z.log_prob(grid[:, None, None].expand(-1, 2, 1)).exp()
    torch.testing.assert_close(integral(density, grid), torch.ones(2), rtol=0, atol=1e-8)
    # The mean of a spline is one over fixed draws; at its start the spline is nearly straight.
    atol = 1e-3 if name == "nsf" else 1e-8
    mean = integral(density * grid[:, None], grid)
    torch.testing.assert_close(mean, system.encode(x).squeeze(1), rtol=0, atol=atol)


@pytest.mark.parametrize("name", [name for name in POSTERIORS if name not in DISCRETE])
def test_posterior_is_reparameterized(name: str) -> None:
    system = build(("normal", name, "normal", "none"))
    z = system.q_z(torch.randn(N, D)).rsample()
    part = system.decoder if name == "exact-linear" else system.encoder
    gradients = torch.autograd.grad(
        z.square().sum(), [p for p in part.parameters() if p.dim() == 2]
    )
    assert all((g != 0).any() for g in gradients)


def test_point_is_the_encoder() -> None:
    system, x = build(("flat", "point", "normal", "none")), torch.randn(N, D)
    q_z, z = system.q_z(x), system.encoder(x)
    torch.testing.assert_close(q_z.sample(), z)
    assert (q_z.log_prob(z) == 0).all()
    assert (q_z.log_prob(z + 1e-3) == -math.inf).all()


def test_soft_threshold_is_the_proximal_map_of_the_laplace_prior() -> None:
    """z = argmin ½(z − a)² + θ|z|, compared with the minimum over a grid of steps of 1e-3."""
    system, x = build(("laplace", "soft-threshold:threshold=0.3", "normal", "none")), 2 * binary()
    z, a = system.encode(x), system.encoder(x)
    grid = torch.arange(-4000, 4001) / 1000
    cost = 0.5 * (grid - a[..., None]).square() + 0.3 * grid.abs()
    assert (z - grid[cost.argmin(-1)]).abs().max() <= 0.5e-3 + 1e-9
    assert 0 < (z == 0).double().mean() < 1
    torch.testing.assert_close(z == 0, a.abs() <= 0.3)
    assert (system.q_z(x).log_prob(z) == 0).all()


def test_learned_thresholds_have_the_gradient_of_the_proximal_map() -> None:
    """dz/dθ_j = −sign(a_j) where |a_j| > θ_j, else 0; the parameter is log θ_j."""
    system, x = build(("laplace", "soft-threshold:learn=true", "normal", "none")), binary()
    (parameter,) = system.learned_posterior.parameters()
    torch.testing.assert_close(parameter.exp(), torch.full((M,), 0.1))
    (gradient,) = torch.autograd.grad(system.q_z(x).rsample().sum(), [parameter])
    a = system.encoder(x)
    expected = -(a.sign() * (a.abs() > 0.1)).sum(0) * 0.1
    assert (expected != 0).any()
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("k", [1, 2, M])
def test_top_k_keeps_the_largest_outputs(k: int) -> None:
    system, x = build(("flat", f"top-k:k={k}", "normal", "none")), torch.randn(N, D)
    z, a = system.q_z(x).sample(), system.encoder(x)
    order = a.abs().sort(dim=1, descending=True).indices
    for row, (codes, outputs) in enumerate(zip(z, a, strict=True)):
        torch.testing.assert_close(codes[order[row, :k]], outputs[order[row, :k]])
        assert (codes[order[row, k:]] == 0).all()


def test_sparsity_counts_zeros_and_live_units() -> None:
    found = sparsity(torch.tensor([[0.0, 1e-30, 0.0, -2.0], [0.0, 0.0, 0.0, 3.0]]))
    assert found.zeros.tolist() == [0.5, 0.75]
    assert (found.uses.tolist(), found.live_share) == ([0, 0.5, 0, 1], 0.5)
    assert build(("normal", "diagonal", "normal", "none")).sparsity(binary()) is None


def test_diagonal_is_mean_plus_deviation_times_noise() -> None:
    system, x = build(("normal", "diagonal", "normal", "none")), torch.randn(N, D)
    mean, log_variance = system.encoder(x).split(M, dim=1)
    pyro.set_rng_seed(4)
    z = system.q_z(x).rsample()
    pyro.set_rng_seed(4)
    torch.testing.assert_close(z, mean + (log_variance / 2).exp() * torch.randn(N, M))
    torch.testing.assert_close(
        -system.q_z(x).log_prob(z).sum(), _diagonal_nll(z, mean, log_variance)
    )


def _diagonal_nll(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    return (
        0.5 * ((z - mean).square() / log_variance.exp() + log_variance) + oracles.HALF_LOG_2PI
    ).sum()


def test_exact_linear_is_the_closed_form() -> None:
    system, x = build(("normal", "exact-linear", "normal:learn=true", "none")), torch.randn(N, D)
    expected = linear_gaussian.posterior_distribution(x, *system.linear_gaussian())
    torch.testing.assert_close(system.q_z(x).mean, expected.mean)
    torch.testing.assert_close(system.q_z(x).covariance_matrix, expected.covariance_matrix)


# Likelihoods


def total(likelihood: Likelihood, output: Tensor) -> Tensor:
    """The mass of p(x|z) for one feature and each output `[n]`, in double precision."""
    p_x = likelihood.distribution(output[:, None], likelihood.learned(1).to(output.dtype))
    if p_x.has_enumerate_support or p_x.support.is_discrete:
        grid = torch.tensor([0.0, 1.0])
    elif p_x.support.check(torch.tensor([-5.0], dtype=output.dtype)):
        grid = torch.linspace(-100, 100, 40_001)
    else:
        grid = torch.linspace(0, 1, 40_001)
    density = (
        p_x.log_prob(grid.to(output.dtype)[:, None, None].expand(-1, len(output), 1)).double().exp()
    )
    return density.sum(0) if len(grid) == 2 else integral(density, grid)


@pytest.mark.parametrize("name", [*BASIC, "normal:scale=0.1", "normal:scale=0.3,learn=true"])
def test_likelihood_integrates_to_one(name: str) -> None:
    likelihood = LIKELIHOODS.parse(name)
    output = torch.tensor([-12, -3, -0.1, 0, 1e-4, 0.5, 12]).repeat_interleave(likelihood.outputs)
    torch.testing.assert_close(total(likelihood, output), torch.ones(7), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", BASIC)
def test_likelihood_integrates_to_one_far_out(name: str, dtype: torch.dtype) -> None:
    """Where the output goes for pixels that are always black, or white."""
    output = torch.tensor([-50.0, -30.0, -18.0, 18.0, 30.0, 50.0], dtype=dtype)
    torch.testing.assert_close(
        total(LIKELIHOODS.parse(name), output), torch.ones(6), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("name", [*BASIC, "normal:scale=0.1", "normal:learn=true"])
def test_likelihood_shapes(name: str) -> None:
    likelihood = LIKELIHOODS.parse(name)
    p_x = likelihood.distribution(
        torch.randn(4, 2, likelihood.outputs * D), likelihood.learned(D).double()
    )
    assert (p_x.batch_shape, p_x.event_shape) == ((4, 2), (D,))
    assert p_x.mean.shape == (4, 2, D)


@pytest.mark.parametrize("name", BASIC)
def test_bias_gives_back_the_mean(name: str) -> None:
    likelihood, mean = LIKELIHOODS.parse(name), torch.linspace(0.04, 0.96, 93)
    p_x = likelihood.distribution(likelihood.bias(mean), likelihood.learned(93))
    torch.testing.assert_close(p_x.mean, mean, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", BASIC)
def test_bias_gives_back_a_mean_near_an_end_in_single_precision(name: str) -> None:
    """The mean grey value of a pixel at the border of an image."""
    likelihood, mean = (
        LIKELIHOODS.parse(name),
        torch.tensor([0.025, 0.05, 0.95, 0.975], dtype=torch.float32),
    )
    p_x = likelihood.distribution(likelihood.bias(mean), likelihood.learned(4).float())
    torch.testing.assert_close(p_x.mean, mean, rtol=0, atol=1e-4)


def test_likelihood_formulas() -> None:
    output, x = torch.randn(4, D), torch.rand(4, D)
    learned = NormalLikelihood(0.3, learn=True).learned(D)
    odd = 1 - 2 * torch.sigmoid(output)
    log_c = (2 * torch.atanh(odd) / odd).log().sum(-1)  # Loaiza-Ganem & Cunningham 2019, eq. 7
    for likelihood, expected in (
        (Bernoulli(), oracles.bernoulli_nll(x.round(), output)),
        (ContinuousBernoulli(), oracles.bernoulli_nll(x, output) - log_c),
        (NormalLikelihood(0.3), oracles.normal_nll(x, output, 0.3)),
        (NormalLikelihood(0.3, learn=True), oracles.normal_nll(x, output, 0.3)),
    ):
        at = x.round() if isinstance(likelihood, Bernoulli) else x
        torch.testing.assert_close(-likelihood.distribution(output, learned).log_prob(at), expected)


def test_learned_scale_starts_at_the_given_one_and_is_learned() -> None:
    system = build(("normal", "diagonal", "normal:scale=0.3,learn=true", "none"))
    assert system.p_x(torch.zeros(M)).stddev.tolist() == pytest.approx([0.3] * D)
    fixed = build(("normal", "diagonal", "normal:scale=0.3", "none"))
    assert len(list(system.parameters())) == len(list(fixed.parameters())) + 1


GREY = torch.tensor([[0.0, 0.25], [1.0, 0.5]])


@pytest.mark.parametrize(
    ("likelihood", "x", "words"),
    [
        (
            Bernoulli(),
            GREY,
            "pixels holds grey values, for which a Bernoulli has no density: binarize them",
        ),
        (
            Bernoulli(),
            GREY * 4,
            r"pixels has values from 0 to 4; a Bernoulli likelihood needs values in \[0, 1\]",
        ),
        (
            Bernoulli(),
            GREY - 1,
            r"pixels has values from -1 to 0; a Bernoulli likelihood needs values in \[0, 1\]",
        ),
        (ContinuousBernoulli(), GREY * 4, "from 0 to 4; a continuous Bernoulli likelihood needs"),
        (ContinuousBernoulli(), GREY - 1, "from -1 to 0; a continuous Bernoulli likelihood needs"),
    ],
)
def test_likelihood_refuses_data_without_density(
    likelihood: Likelihood, x: Tensor, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        likelihood.check(x, "pixels")


@pytest.mark.parametrize("name", BASIC)
def test_likelihood_has_a_density_where_it_lets_data_pass(name: str) -> None:
    likelihood = LIKELIHOODS.parse(name)
    for x in (GREY, GREY.round(), GREY * 4, GREY - 1):
        try:
            likelihood.check(x, "pixels")
        except DataError:
            continue
        p_x = likelihood.distribution(torch.zeros(2, 2 * likelihood.outputs), likelihood.learned(2))
        assert p_x.support.check(x).all()
        assert p_x.log_prob(x).isfinite().all()
    likelihood.check(GREY.round(), "pixels")  # every one of them takes black and white


# Corruptions


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_corruption_copies(name: str) -> None:
    corruption, x = CORRUPTIONS.parse(name), torch.rand(50, D, dtype=torch.float32)
    before = x.clone()
    pyro.set_rng_seed(1)
    one, two = corruption(x), corruption(x)
    pyro.set_rng_seed(1)
    again = corruption(x)
    assert x.equal(before)
    assert (one.shape, one.dtype) == (x.shape, x.dtype)
    assert one.equal(again)
    assert one.equal(two) == (name == "none")
    assert one.equal(x) == (name == "none")


def close(found: Tensor, expected: float, variance: float, count: int) -> bool:
    return bool(abs(found.double().mean() - expected) < 4 * math.sqrt(variance / count))


def test_masking_statistics() -> None:
    x = torch.rand(1000, 100) + 0.5
    noisy = Masking(0.3)(x)
    masked = noisy == 0
    assert close(masked, 0.3, 0.21, 100_000)
    assert noisy[~masked].equal(x[~masked])
    assert close(
        masked[:, 1:] & masked[:, :-1], 0.09, 0.09 * 0.91 * 3, 99_000
    )  # features fall independently
    assert (Masking(1.0)(x) == 0).all()


def test_salt_and_pepper_statistics() -> None:
    x = torch.rand(1000, 100) * 0.5 + 0.25
    noisy = SaltAndPepper(0.3)(x)
    salt, pepper = noisy == 1, noisy == 0
    for part in (salt, pepper):
        assert close(part, 0.15, 0.15 * 0.85, 100_000)
    assert noisy[~salt & ~pepper].equal(x[~salt & ~pepper])
    assert SaltAndPepper(1.0)(x).unique().tolist() == [0, 1]


def test_gaussian_statistics() -> None:
    x = torch.rand(1000, 100)
    noise = Gaussian(0.3)(x) - x
    assert close(noise, 0.0, 0.09, 100_000)
    assert close(noise.square(), 0.09, 2 * 0.09**2, 100_000)
    assert close(noise**4, 3 * 0.09**2, 96 * 0.09**4, 100_000)
    assert close(noise[:, 1:] * noise[:, :-1], 0.0, 0.09**2, 99_000)


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_corruption_reaches_the_guide_only_and_in_training_only(name: str) -> None:
    """The encoder hands on what it is given: a Point posterior with W = I."""
    system, x = build(("flat", "point", "normal", name), Linear()), torch.rand(N, D) + 0.1
    system.encoder = torch.nn.Identity()

    def seen() -> Tensor:
        pyro.set_rng_seed(2)
        return poutine.trace(system.guide).get_trace(x).nodes["z"]["value"]

    def target() -> Tensor:
        data = {"z": torch.zeros(N, M)}
        return (
            poutine.trace(poutine.condition(system.model, data=data))
            .get_trace(x)
            .nodes["x"]["value"]
        )

    pyro.set_rng_seed(2)
    corrupted = system.corruption(x)
    system.train()
    assert seen().equal(corrupted)
    assert target().equal(x)
    system.eval()
    assert seen().equal(x)
    assert target().equal(x)
    assert system.train().encode(x).equal(x)  # nor does it touch what a user encodes


# Bad parameters


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Laplace, "the rate of a Laplace prior must be positive"),
        (SoftThreshold, "the threshold of a soft-threshold posterior must be positive"),
        (NormalLikelihood, "the scale of a Normal likelihood must be positive"),
        (Gaussian, "the scale of a Gaussian corruption must be positive"),
        (lambda value: GaussianWeights(value, 10), "a weight prior takes a positive scale"),
    ],
    ids=["laplace", "threshold", "normal", "gaussian", "weights"],
)
def test_refused_scales(make: Any, words: str, value: float) -> None:
    with pytest.raises(ConfigError, match=words):
        make(value)


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, math.nan])
@pytest.mark.parametrize("make", [Masking, SaltAndPepper])
def test_refused_probabilities(make: Any, value: float) -> None:
    with pytest.raises(
        ConfigError, match=rf"the probability of a corruption must be in \(0, 1\], not {value}"
    ):
        make(value)


def test_refused_numbers_of_codes() -> None:
    with pytest.raises(ConfigError, match="k of a top-k posterior must be at least 1, not 0"):
        POSTERIORS.parse("top-k:k=0")
    with pytest.raises(ConfigError, match="cannot keep k = 4 of 3 latent features"):
        build(("flat", "top-k:k=4", "normal", "none"))


def test_weight_prior_needs_data() -> None:
    with pytest.raises(ConfigError, match="at least one datum"):
        GaussianWeights(1.0, 0)


def test_outputs_of_the_posteriors() -> None:
    assert [p.outputs(M) for p in (Point(), Diagonal(), ExactLinear())] == [M, 2 * M, 0]
