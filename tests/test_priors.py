"""Learned priors against closed forms, written-out bounds and draws, in double precision."""

import copy
import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyroae
from pyroae import plots, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.data.loading import load
from pyroae.errors import ConfigError, DataError, UndefinedLikelihoodError
from pyroae.evaluation.exact import exact_log_likelihood
from pyroae.likelihoods import Normal as NormalLikelihood
from pyroae.nn import MLP, Linear
from pyroae.objectives import OBJECTIVES, AnalyticKL, TraceELBO, parse_objective
from pyroae.posteriors import Point
from pyroae.priors import PRIORS, Flow, GaussianMixture, Prior, Vamp
from tests.systems import FOR_GAUSSIANS

pytestmark = pytest.mark.usefixtures("float64")

D, M = 6, 2
NEW = (
    "mixture:components=3",
    "vamp:components=4,learn=true",
    "flow:transforms=2,hidden=6",
    "flow:kind=nsf,transforms=1,hidden=6",
    "flow:kind=coupling,transforms=2,hidden=6",
    "student:freedom=3",
)
FEW = ("mixture:components=3", "vamp:components=4", "student:freedom=3")


def binary(num_data: int = 5) -> Tensor:
    return (torch.rand(num_data, D) < 0.5).double()


def system_of(prior: Prior | str, latent: int = M, **choices: Any) -> Any:
    """A small system whose parameters are away from their start."""
    prior = PRIORS.parse(prior) if isinstance(prior, str) else prior
    system = Autoencoder(D, latent, prior=prior, **{"encoder": MLP((5,)), **choices})
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return system


def linear_system(prior: Prior) -> Any:
    return system_of(prior, likelihood=NormalLikelihood(0.7), encoder=Linear())


# Densities and draws.


@pytest.mark.parametrize("text", NEW)
def test_density_integrates_to_one_in_two_dimensions(text: str) -> None:
    side = torch.linspace(-5, 5, 301).sinh()
    with torch.no_grad():
        log_p = system_of(text).p_z().log_prob(torch.cartesian_prod(side, side))
    total = torch.trapezoid(torch.trapezoid(log_p.exp().reshape(301, 301), side), side)
    assert total.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("text", NEW)
def test_draws_follow_the_density(text: str) -> None:
    """Shares of draws in the cells of a grid against integrals of the density (χ² test)."""
    p_z, count = system_of(text).p_z(), 20_000
    z = p_z.sample((count,))
    edges = torch.quantile(z[: count // 2], torch.tensor([0.25, 0.5, 0.75]), dim=0)
    far = torch.full((1, M), 300.0)
    edges = torch.cat([-far, edges, far])
    expected = torch.empty(4, 4)
    with torch.no_grad():
        for i in range(4):
            for j in range(4):
                sides = [
                    _inside(edges[i, 0], edges[i + 1, 0]),
                    _inside(edges[j, 1], edges[j + 1, 1]),
                ]
                density = (
                    p_z.log_prob(torch.cartesian_prod(*sides)).exp().reshape(len(sides[0]), -1)
                )
                expected[i, j] = torch.trapezoid(torch.trapezoid(density, sides[1]), sides[0])
    rest = z[count // 2 :].contiguous()
    cells = [torch.bucketize(rest[:, k].contiguous(), edges[1:-1, k].contiguous()) for k in (0, 1)]
    found = torch.zeros(4, 4)
    found.index_put_(tuple(cells), torch.ones(len(rest)), accumulate=True)
    statistic = ((found - len(rest) * expected).square() / (len(rest) * expected)).sum()
    assert expected.sum().item() == pytest.approx(1, abs=3e-3)
    assert statistic < 45  # 15 degrees of freedom: exceeded with probability 8e-5


def _inside(low: Tensor, high: Tensor) -> Tensor:
    """Points of an interval, denser towards 0."""
    return torch.linspace(float(low.asinh()), float(high.asinh()), 161).sinh()


def test_mixture_is_the_sum_of_its_gaussians() -> None:
    p_z, z = system_of("mixture:components=3").p_z(), torch.randn(7, M)
    parts = [
        weight * dist.Normal(loc, scale).to_event(1).log_prob(z).exp()
        for weight, loc, scale in zip(
            p_z.log_weights.exp(), p_z.components.mean, p_z.components.stddev, strict=True
        )
    ]
    torch.testing.assert_close(p_z.log_prob(z).exp(), sum(parts), rtol=1e-10, atol=0)
    draws = p_z.sample((100_000,))
    for found, expected in ((draws.mean(0), p_z.mean), (draws.var(0), p_z.variance)):
        torch.testing.assert_close(found, expected, rtol=0.03, atol=0.02)


@pytest.mark.parametrize("learn", [False, True])
def test_vamp_is_the_mixture_of_its_posteriors(learn: bool) -> None:
    system, z = system_of(Vamp(4, learn=learn)), torch.randn(3, 7, M)
    pseudo: Any = system.learned_prior
    weights = pseudo.logits.softmax(0)
    assert (weights.std() > 0.01) == learn
    each = [system.q_z(u[None]).log_prob(z).exp() for u in pseudo()]
    expected = sum(w * p for w, p in zip(weights, each, strict=True)).log()
    torch.testing.assert_close(system.p_z().log_prob(z), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        system.p_z().expand((3, 7)).log_prob(z), expected, rtol=1e-10, atol=1e-10
    )


def test_mixture_starts_well_spread() -> None:
    """Near N(0, I), and no two of its means are close."""
    prior = GaussianMixture(10)
    p_z = prior.distribution(torch.zeros(M), prior.learned(M, D))
    assert p_z.mean.abs().max() < 0.3
    assert (p_z.variance - 1).abs().max() < 0.5
    assert torch.pdist(p_z.components.mean).min() > 0.15


@pytest.mark.parametrize("kind", ["maf", "nsf", "coupling"])
@pytest.mark.parametrize("latent", [1, 3])
def test_flows_start_near_the_standard_normal(kind: str, latent: int) -> None:
    prior, z = Flow(kind, hidden=8), torch.randn(50, latent)
    p_z = prior.distribution(torch.zeros(latent), prior.learned(latent, D))
    expected = dist.Normal(0.0, 1.0).expand((latent,)).to_event(1).log_prob(z)
    torch.testing.assert_close(p_z.log_prob(z), expected, rtol=0, atol=0.2)


def test_zuko_does_not_turn_off_validation() -> None:
    Flow(transforms=1, hidden=4).learned(2, 5)
    with pytest.raises(ValueError, match="to satisfy the constraint"):
        torch.distributions.Normal(0.0, -1.0)


# log p(x).


@pytest.mark.parametrize("prior", [GaussianMixture(3), Vamp(4), Vamp(3, learn=True)], ids=str)
def test_exact_log_likelihood_of_a_mixture(prior: Prior) -> None:
    """A linear decoder and a Normal likelihood: log p(x) is that of a mixture of Gaussians."""
    system, x = linear_system(prior), torch.randn(4, D)
    weight, bias, sigma = system.linear_likelihood()
    p_z = system.p_z()
    logs = torch.stack(
        [
            dist.MultivariateNormal(
                weight @ loc + bias, (weight * scale**2) @ weight.T + sigma**2 * torch.eye(D)
            ).log_prob(x)
            for loc, scale in zip(p_z.components.mean, p_z.components.stddev, strict=True)
        ]
    )
    expected = (p_z.log_weights[:, None] + logs).logsumexp(0).detach()
    found = exact_log_likelihood(system, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    by_quadrature = pyroae.quadrature(system.model, system.guide, x).log_px
    torch.testing.assert_close(by_quadrature, expected, rtol=0, atol=1e-8)
    weights = pyroae.log_weights(system.model, _exact_posterior(system, logs), x, num_particles=3)
    torch.testing.assert_close(weights.log_weight, expected.expand(3, -1), rtol=0, atol=1e-8)


def _exact_posterior(system: Any, logs: Tensor) -> Any:
    """The guide p(z|x), a mixture of Gaussians, from log N(x; component c), `[C, N]`."""
    weight, bias, sigma = system.linear_likelihood()
    p_z = system.p_z()
    precision = torch.diag_embed(1 / p_z.components.variance) + weight.T @ weight / sigma**2

    def guide(x: Tensor) -> None:
        shift = (x - bias) @ weight / sigma**2
        loc = shift[:, None] + p_z.components.mean / p_z.components.variance
        loc = torch.linalg.solve(precision, loc.unsqueeze(-1)).squeeze(-1)
        shares = dist.Categorical(logits=(p_z.log_weights[:, None] + logs).T)
        each = dist.MultivariateNormal(loc, precision_matrix=precision.expand(len(x), -1, M, M))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MixtureSameFamily(shares, each))

    return guide


def test_what_has_no_closed_form_is_refused() -> None:
    for prior, words in (("student", "the prior is Student"), ("flow", "the prior is Flow")):
        with pytest.raises(UndefinedLikelihoodError, match=words):
            exact_log_likelihood(linear_system(PRIORS.parse(prior)), torch.randn(2, D))
    with pytest.raises(UndefinedLikelihoodError, match="the likelihood is Bernoulli"):
        exact_log_likelihood(system_of("mixture:components=3"), binary(2))


def test_analytic_kl_falls_back_on_draws() -> None:
    """No pair with these priors has a closed form: the bound is that of the Monte-Carlo KL."""
    for text in NEW:
        system, x = system_of(text), binary()
        losses = []
        for objective in (AnalyticKL(num_particles=3), TraceELBO(num_particles=3)):
            pyro.set_rng_seed(1)
            losses.append(objective.loss(system.model, system.guide, x))
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)


# The encoder that the VampPrior shares with the guide.


class Copied(nn.Module):
    """The same system, whose prior has parameters of its own: nothing is shared."""

    def __init__(self, system: Autoencoder) -> None:
        super().__init__()
        self.guided, self.prior_part = copy.deepcopy(system), copy.deepcopy(system)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior_part.p_z())
            pyro.sample("x", self.guided.p_x(z), obs=x)

    def guide(self, x: Tensor) -> None:
        self.guided.guide(x)


@pytest.mark.parametrize("name", FOR_GAUSSIANS)
def test_gradients_of_model_and_guide_add_up_in_a_shared_encoder(name: str) -> None:
    """Draw by draw: the gradient is that by the model's copy plus that by the guide's."""
    system, x = system_of("vamp:components=4,learn=true"), binary()
    split = Copied(system)
    objective = OBJECTIVES[name](num_particles=4)
    for one in (system, split):
        pyro.set_rng_seed(2)
        objective.differentiable_loss(one.model, one.guide, x).backward()
    own = dict(split.guided.named_parameters()), dict(split.prior_part.named_parameters())
    for parameter_name, parameter in system.named_parameters():
        parts = [part[parameter_name].grad for part in own]
        assert parameter.grad is not None
        expected = sum(part for part in parts if part is not None)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-12)
        if parameter_name.startswith("encoder"):
            assert all(part is not None and (part != 0).any() for part in parts)


@pytest.mark.parametrize("name", ["trace-elbo", "iwae"])
def test_gradient_of_a_written_out_bound(name: str) -> None:
    """Reparameterized draws with fixed noise, p(z) and log w written in plain torch."""
    system, x = system_of(Vamp(4)), binary()
    objective = OBJECTIVES[name](num_particles=3)
    pyro.set_rng_seed(4)
    found = torch.autograd.grad(
        objective.differentiable_loss(system.model, system.guide, x), list(system.parameters())
    )
    pyro.set_rng_seed(4)
    loc, log_variance = system.encoder(x).chunk(2, -1)
    z = loc + (log_variance / 2).exp() * torch.randn(3, len(x), M)
    centre, log_width = system.encoder(system.learned_prior.free).chunk(2, -1)
    log_p = _normal(z[..., None, :], centre, log_width).logsumexp(-1) - math.log(4)
    output = system.decoder(z)
    log_lik = (x * output - nn.functional.softplus(output)).sum(-1)
    log_w = log_lik + log_p - _normal(z, loc, log_variance)
    bound = log_w.mean(0) if name == "trace-elbo" else log_w.logsumexp(0) - math.log(3)
    expected = torch.autograd.grad(-bound.sum(), list(system.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def _normal(z: Tensor, loc: Tensor, log_variance: Tensor) -> Tensor:
    squares = (z - loc).square() / log_variance.exp()
    return -0.5 * (squares + log_variance + math.log(2 * math.pi)).sum(-1)


@pytest.mark.parametrize(
    "name",
    ["dreg", *(pytest.param(name, marks=pytest.mark.slow) for name in ("stl", "vimco"))],
)
def test_mean_gradients_are_those_of_the_bound(name: str) -> None:
    """Paired with `trace-elbo` or `iwae`: the mean difference is 0 within its error."""
    system, x = system_of(Vamp(4)), binary(1).expand(400, D)
    reference = "trace-elbo" if name == "stl" else "iwae"
    measured = pyroae.measure_gradients(
        system.model,
        system.guide,
        x,
        {k: OBJECTIVES[k](num_particles=3) for k in (reference, name)},
        parameters=dict(system.named_parameters()),
        groups=pyroae.parameter_groups(
            system.model, system.guide, x[:2], dict(system.named_parameters())
        ),
        replicates=60,
        reference=reference,
    )
    for group, statistics in measured[name].items():
        assert statistics.bias < 4 * statistics.bias_se + 1e-10, group


def test_groups_of_a_shared_encoder() -> None:
    system, x = system_of(Vamp(4)), binary()
    parameters = dict(system.named_parameters())
    groups = pyroae.parameter_groups(system.model, system.guide, x, parameters)
    assert set(groups["shared"]) == {n for n in parameters if n.startswith("encoder")}
    assert "learned_prior.free" in groups["θ"]
    assert "φ" not in groups


@pytest.mark.parametrize("corruption", ["none", "masking:probability=0.5"])
def test_vamp_does_not_depend_on_batch_dropout_or_corruption(corruption: str) -> None:
    from pyroae.corruptions import CORRUPTIONS

    system = system_of(Vamp(4), corruption=CORRUPTIONS.parse(corruption))
    hidden = system.encoder[0].out_features
    system.encoder.insert(1, nn.BatchNorm1d(hidden).double())
    system.encoder.insert(2, nn.Dropout(0.5))
    z = torch.randn(5, M)
    system.train()
    system.q_z(torch.randn(50, D))  # one update of the running statistics
    before = [buffer.clone() for buffer in system.buffers()]
    one, other = system.p_z().log_prob(z), system.p_z().log_prob(z)
    draws = system.p_z().sample((3,))
    assert one.equal(other)
    assert draws.shape == (3, M)
    assert all(a.equal(b) for a, b in zip(before, system.buffers(), strict=True))
    assert all(module.training for module in system.modules())
    assert one.equal(system.eval().p_z().log_prob(z))
    one.sum().backward()
    assert (system.encoder[0].weight.grad != 0).any()


# Pseudo-inputs.


def test_pseudo_inputs_start_at_data_and_stay_in_their_range() -> None:
    grey = torch.rand(30, D)
    system = system_of(Vamp(7))
    system.start_at(grey.mean(0), grey)
    pseudo: Any = system.learned_prior
    distance = (pseudo()[:, None] - grey.clamp(0.01, 0.99)).abs().amax(-1)
    assert distance.min(1).values.max() < 1e-9
    assert len(set(distance.argmin(1).tolist())) == 7
    with torch.no_grad():
        pseudo.free.add_(100 * torch.randn_like(pseudo.free))
    assert ((pseudo() >= 0) & (pseudo() <= 1)).all()


def test_pseudo_inputs_of_other_data_are_free() -> None:
    x = 3 * torch.randn(30, D)
    system = system_of(Vamp(7), likelihood=NormalLikelihood())
    system.start_at(x.mean(0), x)
    assert (system.learned_prior()[:, None] == x).all(-1).any(1).all()
    other = system_of(Vamp(7), likelihood=NormalLikelihood())
    other.load_state_dict(system.state_dict())
    assert other.learned_prior().equal(system.learned_prior())


def test_fewer_data_than_pseudo_inputs_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"7 pseudo-inputs start at 7 training data.*there are 5"):
        system_of(Vamp(7)).start_at(torch.zeros(D), binary(5))


# Trained, saved, compiled, evaluated.


@pytest.fixture(scope="module")
def digits() -> Any:
    data = load("digits", binarize="static")
    assert data.valid is not None
    return type(data)(data.train.first(90), data.valid.first(30), None, data.fingerprint, "static")


def trained(text: str, data: Any, objective: str, state: Any = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    system = zoo.vae(data.train, latent=M, hidden=(5,), prior=PRIORS.parse(text))
    config = pyroae.TrainConfig(**{"epochs": 3, "batch_size": 30, "lr": 1e-2, **changes})
    on_epoch = changes.pop("on_epoch", None)
    return pyroae.fit(
        system,
        data,
        parse_objective(objective, 2),
        config,
        state=state,
        on_epoch=on_epoch,
        progress=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "objective"),
    [
        ("mixture:components=3", "analytic-kl"),
        ("vamp:components=4", "dreg"),
        ("flow:kind=nsf,transforms=1,hidden=6", "trace-elbo"),
        ("student:freedom=3", "iwae"),
        *[
            pytest.param(text, objective, marks=pytest.mark.slow)
            for text in NEW
            for objective in FOR_GAUSSIANS
        ],
    ],
)
def test_compiled_training_is_that_of_eager_code(
    text: str, objective: str, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a graph, which is not made into code here; the first step is run as it is."""
    from pyroae.compilation import step_graphs

    made: list[Any] = []

    def keep(graph: Any, *_: Any, **settings: Any) -> Any:
        made.append(graph)
        return graph

    monkeypatch.setattr(step_graphs, "inductor", keep)
    eager, compiled = (trained(text, digits, objective, compile=c) for c in (False, True))
    assert made
    weights = zip(
        eager.system.state_dict().items(), compiled.system.state_dict().items(), strict=True
    )
    for (name, one), (_, other) in weights:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, msg=name)
    assert eager.history[-1].train_nelbo < eager.history[0].train_nelbo


@pytest.mark.parametrize(
    "text",
    ["vamp:components=4,learn=true", *(pytest.param(t, marks=pytest.mark.slow) for t in NEW)],
)
def test_a_run_is_saved_loaded_and_resumed(text: str, tmp_path: Path) -> None:
    from pyroae.cli import main

    torch.set_default_dtype(torch.float32)
    common = ["train", "--prior", text, "--latent", "2", "--hidden", "5", "--batch-size", "500"]
    whole, part = str(tmp_path / "whole"), str(tmp_path / "part")
    assert main([*common, "--epochs", "2", "--out", whole]) == 0
    assert main([*common, "--epochs", "1", "--out", part]) == 0
    assert main(["train", "--resume", part, "--epochs", "2"]) == 0
    one, other = (pyroae.load_run(path).system.state_dict() for path in (whole, part))
    assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize(
    "text", ["vamp:components=4", pytest.param("mixture:components=3", marks=pytest.mark.slow)]
)
def test_annealing_agrees_with_quadrature(text: str) -> None:
    system, x = system_of(text), binary(2)
    settings = pyroae.AISSettings(num_chains=6, num_distributions=60, leapfrog_steps=3)
    exact = pyroae.quadrature(system.model, system.guide, x).log_px
    annealed = pyroae.ais(system.model, None, x, settings=settings, seed=0, compile=False)
    assert (annealed.log_px - exact).abs().max() < 0.25


@pytest.mark.parametrize("text", [FEW[1], *(pytest.param(t, marks=pytest.mark.slow) for t in NEW)])
def test_every_evaluator_takes_the_prior(text: str) -> None:
    system, x = system_of(text).eval(), binary(3)
    programs = (system.model, system.guide)
    exact = pyroae.quadrature(*programs, x).log_px
    drawn = pyroae.log_likelihood(*programs, x, num_particles=20_000, seed=0)
    assert ((drawn.log_px - exact).abs() < 5 * drawn.se + 2e-3).all()
    gap = pyroae.gaps(*programs, x, log_px=exact, seed=0)
    assert (gap.inference.values > -5 * gap.inference.se).all()
    found = pyroae.diagnose(*programs, x, num_particles=500)
    assert found.rate.isfinite().all()
    assert system.sample(4).shape == (4, D)


def test_single_precision_stays() -> None:
    for text in NEW:
        system = system_of(text).float()
        assert system.p_z().sample((3,)).dtype == torch.float32
        assert system.p_z().log_prob(torch.zeros(3, M, dtype=torch.float32)).dtype == torch.float32


# Refusals.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mixture:components=0", "a mixture prior needs at least one component, not 0"),
        ("vamp:components=-1", "a VampPrior needs at least one component, not -1"),
        ("student:freedom=0", "degrees of freedom of a Student prior must be positive and finite"),
        ("student:freedom=.inf", "must be positive and finite, not inf"),
        ("flow:kind=mfa", "unknown kind of flow 'mfa': did you mean 'maf'"),
        ("flow:hidden=0", "hidden of a flow prior must be at least 1, not 0"),
        ("flow:transforms=0", "transforms of a flow prior must be at least 1, not 0"),
        ("mixture:components=2.5", "components takes int, not 2.5"),
    ],
)
def test_bad_settings(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PRIORS.parse(text)


def test_vamp_refuses_a_posterior_without_density() -> None:
    with pytest.raises(ConfigError, match=r"mixture of densities q\(z\|u\): Point\(\) has none"):
        system_of(Vamp(3), posterior=Point())
    with pytest.raises(ConfigError, match="made of the posterior: use `of"):
        Vamp(3).distribution(torch.zeros(2), nn.ParameterDict())


def test_picture_of_pseudo_inputs() -> None:
    system = system_of(Vamp(4))
    assert plots.pseudo_inputs(system, 3).axes[0].get_title() == "Pseudo-inputs of the prior"
    with pytest.raises(ConfigError, match="pseudo-inputs belong to a VampPrior"):
        plots.pseudo_inputs(system_of("mixture:components=3"))
    with pytest.raises(DataError, match="pseudo-inputs"):
        plots.pseudo_inputs(system, 0)
