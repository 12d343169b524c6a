"""Several layers of z: closed forms of linear-Gaussian layers, densities written by hand, and every
part of the package on both guides.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyroae import ais, bdmc, log_likelihood, plots, priors, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.autoencoder.hierarchies import BottomUp, Hierarchy, TopDown, precision_weighted
from pyroae.cli import main
from pyroae.compilation.svi import Compiled
from pyroae.config import AISSettings, RunConfig, TrainConfig
from pyroae.errors import ConfigError, DataError, UndefinedLikelihoodError
from pyroae.evaluation.adaptive_quadrature import quadrature
from pyroae.evaluation.diagnostics import diagnose
from pyroae.evaluation.exact import exact_log_likelihood
from pyroae.evaluation.inference_gaps import gaps
from pyroae.likelihoods import Normal
from pyroae.nn import MLP, Linear
from pyroae.objectives import OBJECTIVES
from pyroae.objectives.apply import bound_of
from pyroae.posteriors import ExactLinear, Point
from pyroae.programs.traces import run
from pyroae.runs.run import Run
from pyroae.studies.variants import split_grid, variants_of
from pyroae.training.fitting import fit
from pyroae.training.lockstep import fit_ensemble
from pyroae.weights import log_weights
from tests import oracles
from tests.systems import FOR_GAUSSIANS

pytestmark = pytest.mark.usefixtures("float64")
D, SIZES = 5, (4, 3, 2)
BOTH = pytest.mark.parametrize("guide", [BottomUp, TopDown])


def small(hierarchy: Hierarchy, sizes: tuple[int, ...] = SIZES, **choices: Any) -> Autoencoder:
    return zoo.hierarchical_vae(D, sizes, hierarchy, **{"encoder": MLP((6,)), **choices})


def linear(
    guide: type[Hierarchy], sizes: tuple[int, ...], features: int = D, scale: float = 0.6
) -> Autoencoder:
    """Linear-Gaussian layers with random weights."""
    system = zoo.hierarchical_vae(
        features,
        sizes,
        guide((), scale=scale),
        encoder=Linear(),
        likelihood=Normal(0.5, learn=True),
    )
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return system


def marginal(system: Any) -> MultivariateNormal:
    """p(x) from the covariances of the layers, one after the other."""
    mean = torch.zeros(system.layers[-1])
    covariance = torch.eye(system.layers[-1])
    for layer in reversed(list(system.upper)):
        weight, bias = layer.decoder[0].weight, layer.decoder[0].bias
        mean = weight @ mean + bias
        covariance = weight @ covariance @ weight.T + layer.scale**2 * torch.eye(len(bias))
    weight, bias = system.decoder[0].weight, system.decoder[0].bias
    noise = system.learned_likelihood["log_scale"].exp() ** 2 * torch.eye(len(bias))
    return MultivariateNormal(weight @ mean + bias, weight @ covariance @ weight.T + noise)


# Linear-Gaussian layers.


@BOTH
@pytest.mark.parametrize("sizes", [(2,), (3, 2), (2, 3, 1)])
def test_evidence_of_linear_layers(guide: type[Hierarchy], sizes: tuple[int, ...]) -> None:
    system, x = linear(guide, sizes), torch.randn(7, D)
    with torch.no_grad():
        expected = marginal(system).log_prob(x)
    torch.testing.assert_close(exact_log_likelihood(system, x), expected, rtol=0, atol=1e-8)


def test_collapsed_layers_have_the_covariance_of_draws() -> None:
    system = linear(BottomUp, (2, 3))
    with torch.no_grad():
        weight, bias, _ = system.linear_gaussian()
        assert weight.shape == (D, 5)
        x = system.sample(200_000)  # the means of p(x|z)
    torch.testing.assert_close(x.mean(0), bias, atol=0.02, rtol=0)
    torch.testing.assert_close(x.T.cov(), weight @ weight.T, atol=0.05, rtol=0.02)


def at_posterior(guide: type[Hierarchy]) -> Any:
    """Layers of one unit, whose guide is the exact posterior in either order."""
    system: Any = linear(guide, (1, 1), features=1, scale=0.7)
    with torch.no_grad():
        (w,), b = system.decoder[0].weight[0], system.decoder[0].bias[0]
        layer = system.upper[0]
        (a,), c = layer.decoder[0].weight[0], layer.decoder[0].bias[0]
        noise, scale = system.learned_likelihood["log_scale"].exp() ** 2, torch.tensor(0.49)
        head = system.encoder[0]
        if guide is TopDown:  # μ̂, log σ̂² of z given x alone; then mean and log-variance of z2|x
            gain = w * a / ((w * a) ** 2 + w**2 * scale + noise)
            rows = [(1 / w, -b / w), (0 * w, (noise / w**2).log())]
            rows += [(gain, -gain * (w * c + b)), (0 * w, (1 - gain * w * a).log())]
        else:
            gain = w * (a**2 + scale) / (w**2 * (a**2 + scale) + noise)
            variance = (1 - gain * w) * (a**2 + scale)
            rows = [(gain, c - gain * (w * c + b)), (0 * w, variance.log())]
            up, above = layer.encoder[0], a / (a**2 + scale)
            up.weight.copy_(torch.stack([above, 0 * a])[:, None])
            up.bias.copy_(torch.stack([-above * c, (1 - above * a).log()]))
        head.weight.copy_(torch.stack([slope for slope, _ in rows])[:, None])
        head.bias.copy_(torch.stack([offset for _, offset in rows]))
    return system


@BOTH
def test_exact_posterior_makes_every_weight_the_evidence(guide: type[Hierarchy]) -> None:
    """The combined precisions of a ladder are those of p(z|x, z2) at the exact estimates."""
    system, x = at_posterior(guide), torch.randn(6, 1)
    weights = log_weights(system.model, system.guide, x, num_particles=5).log_weight
    expected = exact_log_likelihood(system, x).expand(5, -1)
    torch.testing.assert_close(weights.detach(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("guide", [BottomUp, pytest.param(TopDown, marks=pytest.mark.slow)])
def test_estimates_agree_with_the_closed_form(guide: type[Hierarchy]) -> None:
    """Importance sampling and annealing within 4 standard errors, quadrature to its error."""
    system = at_posterior(guide)
    with torch.no_grad():  # off the posterior, and wider
        system.encoder[0].bias.add_(0.3)
    x = system.sample(4, noise=True)
    exact = exact_log_likelihood(system, x)
    importance = log_likelihood(system.model, system.guide, x, num_particles=4000, seed=0)
    settings = AISSettings(64, 15)
    annealed = ais(system.model, system.guide, x, settings=settings, seed=0)
    for found in (importance, annealed):
        assert 0 < found.monte_carlo_se < 0.1
        assert abs(found.nll + exact.mean()) < 4 * found.monte_carlo_se
    grid = quadrature(system.model, system.guide, x)
    torch.testing.assert_close(grid.log_px, exact, rtol=0, atol=1e-6)


@BOTH
def test_full_local_gaussians_close_the_approximation_gap(guide: type[Hierarchy]) -> None:
    """The posterior over both layers together is a Gaussian with correlations."""
    system = linear(guide, (2, 2))
    x = system.sample(5, noise=True)
    found = gaps(system.model, system.guide, x, log_px=exact_log_likelihood(system, x), seed=0)
    full = found.families["full-rank"].approximation.values
    assert full.abs().max() < 1e-5
    assert found.families["diagonal"].approximation.values.min() > 1e-3


# Densities written by hand.


def run_layers(module: torch.nn.Module, x: Tensor) -> Tensor:
    layers = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
    return oracles.mlp(x, [(layer.weight, layer.bias) for layer in layers])


def by_hand(system: Autoencoder, x: Tensor, z: dict[str, Tensor]) -> Tensor:
    """log p(x, z) − log q(z|x) of three layers with one hidden layer of 6 and maps of 3."""
    z1, z2, z3 = z["z"], z["z2"], z["z3"]
    up, down = ([getattr(u, n) for u in system.upper] for n in ("encoder", "decoder"))

    def normal(value: Tensor, output: Tensor) -> Tensor:
        mean, log_variance = output.chunk(2, -1)
        return -oracles.normal_nll(value, mean, (0.5 * log_variance).exp())

    log_p = (
        -oracles.bernoulli_nll(x, run_layers(system.decoder, z1))
        + normal(z1, run_layers(down[0], z2))
        + normal(z2, run_layers(down[1], z3))
        - oracles.normal_nll(z3, torch.zeros(2))
    )
    if isinstance(system.hierarchy, BottomUp):
        first = normal(z1, run_layers(system.encoder, x))
        upper = normal(z2, run_layers(up[0], z1)) + normal(z3, run_layers(up[1], z2))
        return log_p - first - upper

    def combined(value: Tensor, estimate: Tensor, prior: Tensor) -> Tensor:
        (mean, s), (other, t) = estimate.chunk(2, -1), prior.chunk(2, -1)
        precision = 1 / s.exp() + 1 / t.exp()
        centre = (mean / s.exp() + other / t.exp()) / precision
        return -oracles.normal_nll(value, centre, precision**-0.5)

    first = run_layers(system.encoder, x)
    second = run_layers(up[0], torch.tanh(first[..., 8:]))
    third = run_layers(up[1], torch.tanh(second[..., 6:]))
    return (
        log_p
        - normal(z3, third)
        - combined(z2, second[..., :6], run_layers(down[1], z3))
        - combined(z1, first[..., :8], run_layers(down[0], z2))
    )


@BOTH
def test_log_weights_by_hand(guide: type[Hierarchy]) -> None:
    system, x = small(guide((3,))), (torch.rand(4, D) < 0.5).double()
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        pyro.set_rng_seed(1)
        weights = log_weights(system.model, system.guide, x, num_particles=7).log_weight
        pyro.set_rng_seed(1)
        traces = log_weights_traces(system, x)
        torch.testing.assert_close(weights, by_hand(system, x, traces), rtol=0, atol=1e-10)


def log_weights_traces(system: Autoencoder, x: Tensor) -> dict[str, Tensor]:
    """The draws of 7 particles by site, `[7, 4, m]`."""
    traces = run(system.model, system.guide, (x,), {}, 7)
    return {name: traces.guide.nodes[name]["value"].detach() for name in ("z", "z2", "z3")}


def test_combination_of_precisions_with_extreme_variances() -> None:
    one, other = (torch.tensor([1.0]), torch.tensor([-60.0])), (torch.zeros(1), torch.zeros(1))
    for first, second in ((one, other), (other, one)):
        loc, log_variance = precision_weighted(first, second)
        torch.testing.assert_close(loc, torch.ones(1))
        torch.testing.assert_close(log_variance, torch.tensor([-60.0]))


@BOTH
def test_kl_by_layer(guide: type[Hierarchy]) -> None:
    """From the top down the KL of each layer has a closed form; the layers add up to the rate."""
    system, x = small(guide((3,))), (torch.rand(40, D) < 0.5).double()
    found = diagnose(system.model, system.guide, x, num_particles=400, seed=0)
    upwards = ("z",) * 4 + ("z2",) * 3 + ("z3",) * 2
    assert found.site == (upwards if guide is BottomUp else upwards[::-1])
    assert sum(found.rate_per_site.values()) == pytest.approx(found.rate.mean().item(), abs=0.05)
    assert sum(found.active_per_site.values()) == found.active_units
    if guide is TopDown:
        assert min(found.rate_per_site.values()) >= 0
        mean, scale = system.q_z(x).mean, system.q_z(x).stddev
        top = oracles.gaussian_kl(mean, scale).mean().item()
        assert found.rate_per_site["z3"] == pytest.approx(top, rel=1e-10)


# Training.


def binary(num_data: int = 40) -> Tensor:
    return (torch.rand(num_data, D) < torch.linspace(0.1, 0.9, D)).double()


@BOTH
@pytest.mark.parametrize("objective", ["analytic-kl", "iwae", "dreg"])
def test_a_training_raises_the_bound(guide: type[Hierarchy], objective: str) -> None:
    system, x = small(guide((4,)), (3, 2)), binary()
    before = {name: p.clone() for name, p in system.named_parameters()}
    config = TrainConfig(epochs=6, batch_size=20, lr=0.02, precision="64-true")
    history = fit(system, x, OBJECTIVES[objective](num_particles=3), config).history
    assert history[-1].train_nelbo < history[0].train_nelbo
    for name, parameter in system.named_parameters():
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("objective", ["analytic-kl", "dreg", "vimco"])
def test_a_graph_has_the_numbers_of_eager_code(guide: type[Hierarchy], objective: str) -> None:
    system, x = small(guide((4,), scale=0.5), (3, 2)), binary(6)
    estimator = OBJECTIVES[objective](num_particles=3)
    graphs = Compiled(system, estimator, backend="eager")
    pyro.set_rng_seed(5)
    value, gradients = graphs.value_and_grads(x)
    assert graphs.is_compiled
    pyro.set_rng_seed(5)
    expected, surrogate = bound_of(system, estimator, (x,))
    torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=0)
    wanted = torch.autograd.grad(-surrogate, list(system.parameters()))
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("objective", FOR_GAUSSIANS)
@pytest.mark.parametrize("compile", [False, True])
def test_every_objective_trains(guide: type[Hierarchy], objective: str, compile: bool) -> None:
    """Compiled trainings end at the weights of eager ones, to 1e-5."""
    ends = []
    for setting in {False, compile}:
        torch.manual_seed(0)
        system, x = small(guide((4,)), (3, 2)), binary()
        config = TrainConfig(
            epochs=5, batch_size=20, lr=0.01, precision="64-true", keep="last", compile=setting
        )
        history = fit(system, x, OBJECTIVES[objective](num_particles=4), config).history
        assert history[-1].train_nelbo < history[0].train_nelbo
        ends.append(torch.cat([p.detach().flatten() for p in system.parameters()]))
    torch.testing.assert_close(ends[0], ends[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@BOTH
def test_an_ensemble_trains_as_its_members_do(guide: type[Hierarchy]) -> None:
    config = TrainConfig(epochs=3, batch_size=20, precision="64-true", compile=True, keep="last")

    def member(seed: int) -> Autoencoder:
        torch.manual_seed(seed)
        return small(guide((4,)), (3, 2))

    x = binary()
    members = [member(seed) for seed in (0, 1)]
    together = fit_ensemble(members, x, OBJECTIVES["iwae"](3), config, seeds=(0, 1))
    for seed, result in enumerate(together):
        alone = member(seed)
        fit(alone, x, OBJECTIVES["iwae"](3), replace(config, seed=seed, compile=False))
        for one, other in zip(result.system.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
@BOTH
def test_gradients_along_draws_have_one_mean(guide: type[Hierarchy]) -> None:
    """STL for K = 1 and DReG for K = 4 have the means of pathwise gradients, to 4.5 errors."""
    system, x = small(guide((3,)), (2, 2)), binary(1).expand(2000, D)
    parameters = list(system.encoder.parameters())
    for name, plain, k in (("stl", "trace-elbo", 1), ("dreg", "iwae", 4)):
        means = []
        for objective in (name, plain):
            estimator, rows = OBJECTIVES[objective](num_particles=k), []
            for _ in range(60):
                _, surrogate = bound_of(system, estimator, (x,))
                gradients = torch.autograd.grad(surrogate, parameters)
                rows.append(torch.cat([g.flatten() for g in gradients]) / len(x))
            means.append((torch.stack(rows).mean(0), torch.stack(rows).var(0) / len(rows)))
        (one, first), (other, second) = means
        z = (one - other) / (first + second).sqrt().clamp_min(1e-12)
        assert other.abs().max() > 1e-3
        assert z.abs().max() < 4.5


@pytest.mark.slow
@BOTH
def test_compiled_estimates_are_those_of_eager_code(guide: type[Hierarchy]) -> None:
    system, x = small(guide((4,)), (3, 2)), binary(5)
    settings = AISSettings(4, 6)
    for estimate, arguments in (
        (log_likelihood, {"num_particles": 200}),
        (ais, {"settings": settings}),
    ):
        one, other = (
            estimate(system.model, system.guide, x, seed=0, compile=compile, **arguments)
            for compile in (False, True)
        )
        torch.testing.assert_close(one.log_px, other.log_px, rtol=1e-5, atol=1e-5)
    gap = bdmc(system.model, system.guide, x, settings=settings, seed=0)
    assert gap.mean_gap > -3 * gap.mean_gap_se


# Codes and decodings.


@BOTH
def test_codes_and_decodings_of_layers(guide: type[Hierarchy]) -> None:
    system: Any = small(guide((3,)))
    x = binary(7)
    codes = system.codes(x)
    assert [tuple(code.shape) for code in codes] == [(7, size) for size in SIZES]
    for layer, code in enumerate(codes, 1):
        torch.testing.assert_close(system.encode(x, layer=layer), code)
        assert system.decode(code.expand(2, 7, -1), layer=layer).shape == (2, 7, D)
    with torch.no_grad():
        below = system.upper[0].below(system.upper[1].below(codes[2]).mean).mean
    torch.testing.assert_close(system.decode(codes[2], layer=3), system.decode(below))
    torch.testing.assert_close(system.reconstruct(x), system.decode(codes[0]))
    assert system.sample(3).shape == (3, D)
    first = codes[0] if guide is BottomUp else codes[2]
    torch.testing.assert_close(system.q_z(x).mean, first)
    assert system.p_z().event_shape == (SIZES[-1],)
    with pytest.raises(ConfigError, match="there is no layer 4 of z; there are 1 to 3"):
        system.encode(x, layer=4)
    with pytest.raises(DataError, match=r"this autoencoder decodes \[..., 3\]"):
        system.decode(codes[0], layer=2)


@BOTH
def test_single_precision_stays_single(guide: type[Hierarchy]) -> None:
    system, x = small(guide((3,), scale=0.3)).float(), binary(4).float()
    weights = log_weights(system.model, system.guide, x, num_particles=3)
    assert weights.log_weight.dtype == torch.float32
    traces = run(system.model, system.guide, (x,), {}, 3)
    for name, size in zip(("z", "z2", "z3"), SIZES, strict=True):
        value = traces.guide.nodes[name]["value"]
        assert (value.dtype, value.shape) == (torch.float32, (3, 4, size))


def test_one_layer_in_a_tuple_is_one_layer() -> None:
    systems = []
    for make in (
        lambda: zoo.vae(D, 3, encoder=MLP((6,))),
        lambda: small(BottomUp(), (3,)),
        lambda: small(TopDown(), (3,)),
    ):
        torch.manual_seed(0)
        systems.append(make())
    x = binary(4)
    for system in systems[1:]:
        assert system.latent == 3
        assert list(system.state_dict()) == list(systems[0].state_dict())
        torch.testing.assert_close(system.encode(x), systems[0].encode(x))


def test_manifold_and_scatter_of_the_top_layer() -> None:
    system, x = small(TopDown((3,)), (4, 2)), binary(9)
    axes = plots.manifold(system, num=3).axes[0]
    assert axes.get_xlabel().startswith("z2[0]")
    assert plots.latent_scatter(system, x, layer=2).axes[0].get_xlabel().startswith("z2[0]")
    assert plots.latent_scatter(system, x).axes[0].get_xlabel().startswith("z[")


# Refusals.


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: small(BottomUp(), ()), "at least one dimension"),
        (lambda: small(BottomUp(), (3, 0)), "at least one dimension"),
        (lambda: small(BottomUp(), posterior=Point()), "posterior with a density and an encoder"),
        (lambda: small(TopDown(), posterior=Point()), "combines diagonal Gaussians"),
        (
            lambda: small(BottomUp(), posterior=ExactLinear(), likelihood=Normal()),
            "posterior with a density and an encoder",
        ),
        (lambda: small(BottomUp(), tied=True), "real z and weights that are not tied, not tied"),
        (lambda: small(BottomUp(), prior=priors.Bernoulli()), "as the prior is over binary z"),
        (
            lambda: Autoencoder(
                D, (3, 2), prior=priors.Bernoulli(), posterior=zoo.posteriors.Bernoulli()
            ),
            r"real z and weights that are not tied, not Bernoulli\(",
        ),
        (lambda: BottomUp((3, 0)), "each width of a hierarchy must be at least 1"),
        (lambda: BottomUp(scale=0.0), "the scale of p\\(z|z2\\) must be positive and finite"),
        (lambda: TopDown(activation="rely"), "unknown activation 'rely'"),
        (lambda: small(BottomUp(), prior=OfPosterior()), "draws the top layer first, as TopDown"),
        (
            lambda: RunConfig(program="tests.registered_names:table", latent=(3, 2)),
            "is the whole of model and guide: leave out latent",
        ),
        (
            lambda: RunConfig(program="tests.registered_names:table", hierarchy="top-down"),
            "is the whole of model and guide: leave out hierarchy",
        ),
    ],
)
def test_what_is_refused(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


class OfPosterior(priors.Normal):
    """A prior that is made of the posterior: q(z|x) at x = 0."""

    def of(self, system: Any) -> Any:
        q_z = system.q_z(torch.zeros(1, D))
        return q_z.expand(()) if q_z.batch_shape == () else _first(q_z)


def _first(q_z: Any) -> Any:
    base = q_z.base_dist
    return type(base)(base.loc[0], base.scale[0]).to_event(1)


def test_a_prior_of_the_posterior_is_that_of_the_top_layer() -> None:
    system = small(TopDown((3,)), prior=OfPosterior())
    assert system.p_z().event_shape == (SIZES[-1],)
    estimate = log_likelihood(system.model, system.guide, binary(3), num_particles=20)
    assert estimate.log_px.isfinite().all()


def test_closed_forms_need_linear_layers() -> None:
    system = small(BottomUp(), encoder=Linear(), likelihood=Normal())
    with pytest.raises(UndefinedLikelihoodError, match="the hierarchy is BottomUp"):
        exact_log_likelihood(system, binary(3))


# The command line.


def commands(path: Path) -> list[str]:
    """The words of a small training; its data are a file."""
    generator = np.random.default_rng(0)
    np.save(path / "data.npy", generator.random((150, 16)).astype("float32"))
    words = ["--data", str(path / "data.npy"), "--system", "hierarchical-vae", "--latent", "4,2"]
    words += ["--hierarchy", "top-down:widths=[5]", "--hidden", "8", "--batch-size", "30"]
    return [*words, "--epochs", "2"]


def test_a_run_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert main(["train", *commands(tmp_path), "--out", str(path)]) == 0
    assert Run(path).config.latent == (4, 2)
    assert Run(path).autoencoder().hierarchy == TopDown((5,))
    assert RunConfig.from_yaml(path / "config.yaml") == Run(path).config
    assert main(["encode", str(path), "--out", str(tmp_path / "z.csv")]) == 0
    header = (tmp_path / "z.csv").read_text().splitlines()[0]
    assert header == "z0,z1,z2,z3,z2_0,z2_1"
    assert main(["sample", str(path), "--num", "4", "--out", str(tmp_path / "x.npy")]) == 0
    assert np.load(tmp_path / "x.npy").shape == (4, 16)


@pytest.mark.parametrize("text", ["100,", "a,b", "5,,2"])
def test_sizes_that_are_no_numbers(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["train", "--latent", text])
    words = f"argument --latent: invalid number or comma-separated numbers value: '{text}'"
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluated by every method, reported, reproduced and compared."""
    path = str(tmp_path / "run")
    assert main(["train", *commands(tmp_path), "--out", path]) == 0
    methods = ["--method", "is,ais,bdmc,gaps", "--num-chains", "4", "--num-distributions", "6"]
    few = ["--num-data", "5", "--num-particles", "20"]
    assert main(["evaluate", path, *methods, *few]) == 0
    shown = capsys.readouterr().out
    for label in ("rate, z2", "active units, z", "active units, z2"):
        assert label in shown
    figures = {file.stem for file in (tmp_path / "run" / "figures").iterdir()}
    assert {"manifold", "latent_scatter", "latent_scatter_z2"} <= figures
    assert main(["reproduce", path]) == 0
    assert main(["reconstruct", path, "--out", str(tmp_path / "x.npy")]) == 0
    assert main(["gradients", path, "--num-data", "3", "--objectives", "dreg"]) == 0
    vary = ["--objectives", "iwae", "--num-particles", "2", "--seeds", "1", "--budget", "epochs:1"]
    vary += ["--vary", "latent=4,2;3"]
    words = commands(tmp_path)[:-2]
    assert main(["compare", *words, *vary, "--out", str(tmp_path / "study")]) == 0


def test_lists_of_latent_in_studies() -> None:
    """Commas separate values, semicolons values that are lists; a list alone is no grid."""
    assert [v["latent"] for v in variants_of(["latent=2,5"]).values()] == [2, 5]
    assert [v["latent"] for v in variants_of(["latent=5,2;8"]).values()] == [(5, 2), (8,)]
    assert split_grid({"latent": (5, 2)}) == ({"latent": (5, 2)}, {})
