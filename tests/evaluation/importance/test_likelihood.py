"""Importance-sampled log p(x): against closed forms, whatever the chunks; refusals that say why."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae import linear_gaussian
from pyroae.compilation.bernoulli_rows import ROWS
from pyroae.config.evaluation import EvaluationSettings
from pyroae.errors import ConfigError, DataError, ProgramError, UndefinedLikelihoodError
from pyroae.evaluation import blocks
from pyroae.evaluation.diagnostics import diagnose
from pyroae.evaluation.exact import exact_log_likelihood
from pyroae.evaluation.importance import plan, streams
from pyroae.evaluation.importance import sampler as sampling
from pyroae.evaluation.importance.likelihood import log_likelihood
from pyroae.evaluation.summary import evaluate
from tests.objectives.test_objectives import DATA
from tests.systems import PROPER, SYSTEMS, M, system_and_data

pytestmark = pytest.mark.usefixtures("float64")


def test_exact_posterior_needs_one_particle() -> None:
    system, x = system_and_data("ppca-exact")
    found = log_likelihood(system.model, system.guide, x, num_particles=1, seed=0)
    torch.testing.assert_close(found.log_px, exact_log_likelihood(system, x), rtol=0, atol=1e-6)
    assert found.se.isnan().all()  # one draw has no spread
    many = log_likelihood(system.model, system.guide, x, num_particles=50, seed=0)
    torch.testing.assert_close(many.ess, torch.full_like(many.ess, 50.0))
    assert many.se.max() < 1e-6


def test_standard_errors_cover_the_truth() -> None:
    """pPCA with the posterior inflated by 1.5: 95 % intervals hold 95 % of the time, within what
    2,000 trials tell.
    """
    system, x = system_and_data("ppca-exact", num_data=2000)
    truth = exact_log_likelihood(system, x)

    def wide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, tril = linear_gaussian.posterior(x, *system.linear_gaussian())
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=1.5**0.5 * tril))

    found = log_likelihood(system.model, wide, x, num_particles=1000, seed=1)
    covered = ((found.log_px - truth).abs() < 1.96 * found.se).double().mean()
    assert 0.935 < covered < 0.965
    assert found.nll == pytest.approx(-found.log_px.mean().item())
    assert found.monte_carlo_se == pytest.approx(math.sqrt(found.se.square().sum().item()) / 2000)


def test_bias_is_that_of_the_gamma_oracle() -> None:
    """Weights w ~ Gamma(1, 1): E L_K − log 1 = ψ(K) − log K: −.577216, −.270363, −.103320
    (REFERENCES, item 1).
    """

    class LogGamma(dist.Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            return (
                super().log_prob(value) + (-torch.distributions.Normal(0, 1).cdf(value).log()).log()
            )

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", LogGamma(0.0, 1.0))
            pyro.sample("x", dist.Delta(x), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    for num_particles, bias in ((1, -0.577216), (2, -0.270363), (5, -0.103320)):
        found = log_likelihood(
            model, guide, torch.zeros(50_000), num_particles=num_particles, seed=0
        )
        assert -found.nll == pytest.approx(bias, abs=5 * found.nll_se)


@pytest.mark.parametrize("name", ["vae", "ppca"])
def test_counts_the_samples_drawn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """K = 1,000 in chunks of 300: the same draws as a plain log-mean-exp over 1,000, to the last
    digits.
    """
    system, x = system_and_data(name)
    system.eval()
    monkeypatch.setattr(plan, "chunk_sizes", lambda *_: [300, 300, 300, 100])
    found = log_likelihood(system.model, system.guide, x, num_particles=1000, seed=4)
    q, chunks = system.q_z(x), []
    for i, k in enumerate((300, 300, 300, 100)):
        torch.manual_seed(blocks.block_seed(4, 0, 0, i))
        z = q.expand((k, len(x))).sample()
        chunks.append(system.p_x(z).log_prob(x) + system.p_z().log_prob(z) - q.log_prob(z))
    log_w = torch.cat(chunks).detach()
    torch.testing.assert_close(
        found.log_px, log_w.logsumexp(0) - math.log(1000), rtol=1e-13, atol=1e-13
    )
    w = (log_w - log_w.max(0).values).exp()
    torch.testing.assert_close(found.ess, w.sum(0) ** 2 / w.square().sum(0), rtol=1e-10, atol=0)
    torch.testing.assert_close(found.se, w.std(0) / w.mean(0) / math.sqrt(1000), rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("num_data", "num_particles"), [(1, 1), (3, 1000), (5000, 7), (100, 70_001)]
)
def test_plan_covers_everything_once_within_the_budget(num_data: int, num_particles: int) -> None:
    x = torch.arange(num_data)[:, None].expand(num_data, 4)
    for compiled, rows in ((False, blocks.CHUNK // 256), (True, 86 * ROWS)):
        assert blocks.rows_of((x,), compiled) == rows
        size = plan.block_size(num_data, num_particles, rows, least=64)
        spans = blocks.spans(num_data, size)
        assert torch.equal(torch.cat([blocks.part_of((x,), span)[0] for span in spans]), x)
        chunks = plan.chunk_sizes(num_particles, size, rows)
        assert sum(chunks) == num_particles
        assert min(chunks) > 0
        assert max(chunks) * size <= rows


def test_memory_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor of log-weights is the same for 10 times the particles and the data,
    gathered or not.
    """
    system, x = system_and_data("vae", num_data=50)
    monkeypatch.setattr(blocks, "CHUNK", 2**16)
    sizes: list[int] = []
    add = streams.WeightStream.add

    def watched(stream: streams.WeightStream, log_weight: Tensor) -> None:
        sizes.append(log_weight.numel())
        add(stream, log_weight)

    monkeypatch.setattr(streams.WeightStream, "add", watched)
    for gathered in (1, 4000):
        monkeypatch.setattr(sampling, "FLUSH", gathered)
        log_likelihood(system.model, system.guide, x[:5], num_particles=100)
        log_likelihood(system.model, system.guide, x, num_particles=1000)
        assert gathered / 2.5 < max(sizes) < gathered + blocks.rows_of((x,))
        sizes.clear()


@pytest.mark.parametrize("name", PROPER)
def test_every_proper_system_has_a_likelihood(name: str) -> None:
    """K = 3,000 and K = 30 bracket: the bound rises, and stays above the ELBO."""
    system, x = system_and_data(name, num_data=20)
    few = log_likelihood(system.model, system.guide, x, num_particles=30, seed=0)
    many = log_likelihood(system.model, system.guide, x, num_particles=3000, seed=0)
    elbo = -diagnose(system.model, system.guide, x, num_particles=200, seed=0).nelbo.mean()
    assert -many.nll >= -few.nll - 3 * few.monte_carlo_se
    assert -many.nll >= elbo.item() - 0.05
    again = log_likelihood(system.model, system.guide, x, num_particles=30, seed=0)
    assert torch.equal(again.log_px, few.log_px)


@pytest.mark.parametrize("name", [n for n in SYSTEMS if n not in PROPER and n != "denoising-vae"])
def test_undefined_likelihoods_are_refused(name: str) -> None:
    system, x = system_and_data(name)
    reason = "guide.*Delta" if name.startswith("sparse") else "prior of 'z' is flat"
    with pytest.raises(UndefinedLikelihoodError, match=reason):
        log_likelihood(system.model, system.guide, x)
    found = evaluate(system, x, EvaluationSettings(num_particles=5))
    assert "nll" not in found.results
    assert "log p(x)" in found.undefined
    with pytest.raises(UndefinedLikelihoodError, match=reason):
        evaluate(system, x, EvaluationSettings(("is",)))


def test_an_explicit_proposal_serves_where_the_prior_is_proper() -> None:
    """A sparse system with its prior as the proposal: equal to quadrature in one dimension."""
    system, x = SYSTEMS["vae-laplace"](), torch.zeros(2, 16)
    from pyroae import zoo

    system = zoo.sparse_autoencoder(16, 1)

    def prior(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", system.p_z())

    found = log_likelihood(system.model, prior, x, num_particles=20_000, seed=0)
    z = torch.linspace(-30, 30, 200_001)[:, None]
    joint = system.p_x(z).log_prob(x[:1]) + system.p_z().log_prob(z)
    exact = joint.logsumexp(0) + math.log(60 / 200_000)
    assert found.log_px[0].item() == pytest.approx(exact.item(), abs=5 * found.se[0].item())


def test_subsampled_plates_are_refused() -> None:
    def subsampled(x: Tensor) -> None:
        with pyro.plate("data", 40, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def proposal(x: Tensor) -> None:
        with pyro.plate("data", 40, subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ProgramError, match="plate 'data' is subsampled: evaluate with all 40 data"):
        log_likelihood(subsampled, proposal, DATA.double())


def test_a_datum_that_the_proposal_misses_is_named() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample(
                "x", dist.Normal(torch.where(x == 3, torch.inf, z), 1.0, validate_args=False), obs=x
            )

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    words = r"log-weights of datum 3 give .*: its site 'x' has no finite log-density"
    with pytest.raises(DataError, match=words), pyro.validation_enabled(False):
        log_likelihood(model, guide, torch.arange(5.0))


@pytest.mark.parametrize("bad", [0, -3, 1.5])
def test_bad_numbers_of_particles(bad: Any) -> None:
    system, x = system_and_data("vae")
    with pytest.raises(ConfigError, match="num_particles must be a whole number of at least 1"):
        log_likelihood(system.model, system.guide, x, num_particles=bad)


def test_exact_names_what_is_not_linear_gaussian() -> None:
    for name, part in (
        ("vae", "likelihood is Bernoulli"),
        ("linear-ae", "prior is Flat"),
        ("vae-normal", "decoder is MLP"),
    ):
        system, x = system_and_data(name)
        with pytest.raises(UndefinedLikelihoodError, match=part):
            exact_log_likelihood(system, x)


def test_diagnostics_are_the_closed_forms() -> None:
    system, x = system_and_data("vae", num_data=50)
    found = diagnose(system.model, system.guide, x, num_particles=2000, seed=0)
    with torch.no_grad():
        mean, log_variance = system.encoder(x).chunk(2, -1)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    torch.testing.assert_close(found.kl_per_unit, kl.mean(0))
    torch.testing.assert_close(found.activity, mean.var(0, correction=0))
    assert found.rate.mean().item() == pytest.approx(kl.sum(1).mean().item(), abs=0.02)
    assert found.active_units == int((mean.var(0, correction=0) > 0.01).sum())
    torch.testing.assert_close(found.nelbo, found.rate + found.distortion)


def test_diagnostics_of_point_estimates() -> None:
    system, x = system_and_data("sparse-ae", num_data=5)
    found = diagnose(system.model, system.guide, x)
    assert found.kl_per_unit.isnan().all()
    torch.testing.assert_close(found.rate, -system.p_z().log_prob(system.encode(x)))
    assert diagnose(system.model, system.guide, x).activity.shape == (20,)
    assert M == 3
