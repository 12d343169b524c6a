"""Annealed importance sampling and bidirectional Monte Carlo: against closed forms and quadrature;
refusals that say why.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyroae import zoo
from pyroae.autoencoder import Autoencoder
from pyroae.config import AISSettings
from pyroae.errors import ConfigError, DataError, ProgramError, UndefinedLikelihoodError
from pyroae.evaluation.annealing import bounds as ais_module
from pyroae.evaluation.annealing import hmc
from pyroae.evaluation.annealing.bounds import ais, bdmc
from pyroae.evaluation.annealing.estimates import BDMC, AISEstimate
from pyroae.evaluation.blocks import block_seed
from pyroae.evaluation.exact import exact_log_likelihood
from pyroae.programs.annealing_path import Path
from tests.systems import system_and_data

pytestmark = pytest.mark.usefixtures("float64")
SHORT = AISSettings(num_chains=16, num_distributions=20, leapfrog_steps=4)
TINY = AISSettings(num_chains=3, num_distributions=8, leapfrog_steps=2)


def ppca(copies: int = 0) -> tuple[Autoencoder, Tensor]:
    """A system and data drawn from N(0, I); with `copies`, so many of one datum, for as many
    repetitions in one run.
    """
    system = zoo.ppca(6, 2)
    x = torch.randn(5, 6)
    return system, x[:1].expand(copies, -1).clone() if copies else x


def scales(x: Tensor) -> None:
    """s ~ Gamma(3, 2), z_j ~ N(0, s²), x_j ~ N(2z_j / 2, ½²), j = 1, 2, 3 in a nested plate."""
    with pyro.plate("data", len(x), dim=-2):
        s = pyro.sample("s", dist.Gamma(3.0, 2.0))
        with pyro.plate("parts", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, s))
            twice = pyro.deterministic("twice", 2 * z, event_dim=0)
            pyro.sample("x", dist.Normal(twice / 2, 0.5), obs=x)


def scales_guide(x: Tensor) -> None:
    """A guide of another family, with its sites in another order."""
    with pyro.plate("data", len(x), dim=-2):
        with pyro.plate("parts", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.8 * x, 0.6))
        pyro.sample("s", dist.LogNormal(z.square().mean(-1, keepdim=True).add(0.3).log() / 2, 0.5))


def scales_exact(x: Tensor) -> Tensor:
    """z integrated in closed form, s by the trapezoidal rule."""
    s = torch.linspace(1e-4, 25, 4001)
    inner = dist.Normal(0.0, (s.square() + 0.25).sqrt()).log_prob(x[..., None]).sum(1)
    return torch.logsumexp(inner + dist.Gamma(3.0, 2.0).log_prob(s), -1) + math.log(25 / 4000)


@pytest.mark.parametrize("schedule", [pytest.param("sigmoid", marks=pytest.mark.slow), "linear"])
def test_within_its_error_of_the_exact_value(schedule: str) -> None:
    """Other tests have the schedule `sigmoid`, the default."""
    system, x = ppca()
    exact = exact_log_likelihood(system, x)
    settings = AISSettings(16, 40, schedule=schedule, leapfrog_steps=4)
    found = ais(system.model, None, x, settings=settings, seed=0)
    assert found.se.max() < 0.3
    assert ((found.log_px - exact).abs() < 4 * found.se).all()
    assert found.nll == pytest.approx(-exact.mean().item(), abs=4 * found.monte_carlo_se)
    assert found.log_px.dtype == found.log_weights.dtype == torch.float64
    w = found.log_weights.exp()
    torch.testing.assert_close(found.se, w.std(0) / w.mean(0) / 4)
    torch.testing.assert_close(found.ess, w.sum(0) ** 2 / w.square().sum(0))


def coverage(found: AISEstimate, exact: Tensor) -> float:
    low, high = found.interval
    return ((low < exact) & (exact < high)).double().mean().item()


def test_weights_are_unbiased_and_intervals_cover() -> None:
    """500 repetitions: E w = p(x), which step sizes that adapt along the way would break; and E log
    p̂ ≤ log p.
    """
    system, x = ppca(copies=500)
    exact = exact_log_likelihood(system, x)
    found = ais(system.model, None, x, settings=SHORT, seed=0)
    relative = (found.log_weights - exact).exp().mean(0)
    assert relative.mean().item() == pytest.approx(
        1, abs=4 * relative.std().item() / math.sqrt(500)
    )
    assert relative.std() > 0.02
    assert (found.log_px - exact).mean() < 0
    assert 0.9 < coverage(found, exact) < 0.99


@pytest.mark.slow
@pytest.mark.parametrize(("num_chains", "num_distributions"), [(4, 50), (16, 20), (16, 100)])
def test_intervals_cover_whatever_the_settings(num_chains: int, num_distributions: int) -> None:
    system, x = system_and_data("ppca")
    x = torch.randn(1, x.shape[1]).expand(200, -1)
    found = ais(system.model, None, x, settings=AISSettings(num_chains, num_distributions), seed=0)
    print(num_chains, num_distributions, coverage(found, exact_log_likelihood(system, x)))
    assert 0.9 <= coverage(found, exact_log_likelihood(system, x)) <= 0.99


@pytest.mark.slow
def test_the_error_falls_with_the_number_of_distributions() -> None:
    """Per-chain variance of log w of a smooth path falls about as 1/T (Neal 2001)."""
    system, x = ppca(copies=100)
    spread = [
        ais(system.model, None, x, settings=AISSettings(4, t, leapfrog_steps=5), seed=0)
        .log_weights.var()
        .item()
        for t in (10, 40)
    ]
    assert 2.5 < spread[0] / spread[1] < 9


@pytest.mark.parametrize("schedule", ["sigmoid", "linear"])
def test_exact_posterior_as_start_gives_constant_weights(schedule: str) -> None:
    system, x = system_and_data("ppca-exact")
    found = ais(
        system.model, system.guide, x, settings=AISSettings(3, 5, "guide", schedule, 2), seed=0
    )
    torch.testing.assert_close(
        found.log_weights, exact_log_likelihood(system, x).expand(3, -1), rtol=0, atol=1e-6
    )
    order = torch.tensor([3, 1, 0, 2, 5, 4])
    again = ais(
        system.model,
        system.guide,
        x[order],
        settings=AISSettings(3, 5, "guide", schedule, 2),
        seed=0,
    )
    torch.testing.assert_close(again.log_px, found.log_px[order], rtol=0, atol=1e-6)


def test_one_distribution_is_importance_sampling() -> None:
    system, x = ppca()
    found = ais(system.model, system.guide, x, settings=AISSettings(200, 1, "guide"), seed=3)
    torch.manual_seed(block_seed(3, 0))
    q = system.q_z(x)
    z = q.expand((200, len(x))).sample()
    log_w = system.p_x(z).log_prob(x) + system.p_z().log_prob(z) - q.log_prob(z)
    torch.testing.assert_close(found.log_weights, log_w.detach())
    assert math.isnan(found.acceptance_rate)


@pytest.mark.slow
def test_the_order_of_the_data_does_not_matter() -> None:
    system, x = ppca()
    order = torch.tensor([4, 2, 0, 1, 3])
    one, other = (
        ais(system.model, None, y, settings=SHORT, seed=s) for s, y in enumerate((x, x[order]))
    )
    assert (
        (one.log_px[order] - other.log_px).abs() < 4 * (one.se[order] ** 2 + other.se**2).sqrt()
    ).all()


def test_blocks_make_no_difference_but_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    system, x = ppca()
    sizes = []
    at = Path.at

    def watched(path: Path, u: Tensor) -> hmc.Point:
        sizes.append(u.shape[1])
        return at(path, u)

    monkeypatch.setattr(Path, "at", watched)
    monkeypatch.setattr(ais_module, "rows_of", lambda args: 32)
    found = ais(system.model, None, x, settings=SHORT, seed=0)
    assert max(sizes) == 2
    assert found.log_weights.shape == (16, 5)
    assert found.acceptance.shape == found.step_sizes.shape == (1, 5)
    assert ((found.log_px - exact_log_likelihood(system, x)).abs() < 5 * found.se).all()


@pytest.mark.parametrize("target", [0.5, pytest.param(0.8, marks=pytest.mark.slow)])
def test_acceptance_is_near_the_target(target: float) -> None:
    """The default is 0.65."""
    system, x = ppca()
    settings = AISSettings(8, 80, leapfrog_steps=3, target_acceptance=target)
    found = ais(system.model, None, x, settings=settings, seed=1)
    assert found.acceptance_rate == pytest.approx(target, abs=0.06)
    assert (found.acceptance_per_datum - target).abs().max() < 0.12
    assert found.acceptance_per_segment.shape == (7,)


@pytest.mark.parametrize("start", ["guide", pytest.param("prior", marks=pytest.mark.slow)])
def test_nested_plates_and_constrained_latents_equal_quadrature(start: str) -> None:
    x = torch.tensor([[0.1, -0.3, 0.2], [2.0, -1.5, 3.0], [0.0, 4.0, 1.0]])
    settings = AISSettings(32, 60 if start == "prior" else 30, start, leapfrog_steps=4)
    found = ais(scales, scales_guide if start == "guide" else None, x, settings=settings, seed=0)
    assert found.se.max() < 0.5
    assert ((found.log_px - scales_exact(x)).abs() < 4 * found.se).all()


def counts(x: Tensor, alpha: Tensor) -> None:
    with pyro.plate("data", len(x)):
        p = pyro.sample("p", dist.Dirichlet(alpha))
        pyro.sample("x", dist.Multinomial(10, p), obs=x)


def test_dirichlet_latents_and_several_arguments_equal_the_closed_form() -> None:
    x = torch.tensor([[2.0, 3.0, 5.0], [10.0, 0.0, 0.0], [0.0, 1.0, 9.0]])
    alpha = torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.0, 2.0], [3.0, 1.0, 1.5]])
    found = ais(counts, None, (x, alpha), settings=AISSettings(16, 40, leapfrog_steps=5), seed=0)
    exact = dist.DirichletMultinomial(alpha, 10).log_prob(x)
    assert ((found.log_px - exact).abs() < 4 * found.se).all()
    both = bdmc(counts, None, (x.repeat(30, 1), alpha.repeat(30, 1)), settings=SHORT, seed=0)
    exact = dist.DirichletMultinomial(alpha.repeat(30, 1), 10).log_prob(both.x["x"])
    assert_sandwiched(both, exact)


def assert_sandwiched(found: BDMC, exact: Tensor) -> None:
    count = math.sqrt(len(exact))
    for error in (found.lower - exact, exact - found.upper):
        assert error.mean() < 3 * error.std() / count
    assert found.mean_gap > -3 * found.mean_gap_se
    assert (found.mean_gap_se, found.mean_gap) == (
        pytest.approx(found.gap.std().item() / count),
        pytest.approx((found.upper - found.lower).mean().item()),
    )


def test_exact_value_lies_in_the_sandwich_and_the_gap_shrinks() -> None:
    system, x = ppca(copies=300)
    gaps = []
    for num_distributions in (10, 40):
        found = bdmc(
            system.model,
            None,
            x,
            settings=AISSettings(8, num_distributions, leapfrog_steps=4),
            seed=1,
        )
        exact = exact_log_likelihood(system, found.x["x"])
        assert_sandwiched(found, exact)
        for w in (
            (found.forward.log_weights - exact).exp(),
            (found.reverse_log_weights + exact).exp(),
        ):
            mean = w.mean(0)
            assert mean.mean().item() == pytest.approx(
                1, abs=5 * mean.std().item() / math.sqrt(300)
            )
        gaps.append(found.mean_gap)
        assert (found.gap_se > 0).all()
    assert 0 < gaps[1] < gaps[0] / 2


def test_what_is_simulated_comes_from_the_model() -> None:
    x = torch.zeros(400, 3)
    found = bdmc(scales, None, x, settings=AISSettings(4, 20, leapfrog_steps=4), seed=0)
    assert found.z["s"].shape == (400, 1)
    assert found.z["z"].shape == found.x["x"].shape == (400, 3)
    assert sorted(found.x) == ["x"]  # the deterministic site follows z
    assert (found.x["x"] - found.z["z"]).std().item() == pytest.approx(0.5, abs=0.05)
    assert found.z["s"].mean().item() == pytest.approx(1.5, abs=0.2)
    assert_sandwiched(found, scales_exact(found.x["x"]))


def test_simulation_with_the_guide_as_start() -> None:
    """With the exact posterior both bounds are the exact value; any other guide that sees x̃ leaves
    it between them.
    """
    system, x = system_and_data("ppca-exact")
    found = bdmc(
        system.model, system.guide, x, settings=AISSettings(3, 5, "guide", leapfrog_steps=2), seed=0
    )
    exact = exact_log_likelihood(system, found.x["x"])
    torch.testing.assert_close(found.lower, exact, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.upper, exact, rtol=0, atol=1e-6)
    x = torch.randn(200, 3)
    both = bdmc(
        scales, scales_guide, x, settings=AISSettings(8, 20, "guide", leapfrog_steps=3), seed=0
    )
    assert_sandwiched(both, scales_exact(both.x["x"]))

    def unseen(x: Tensor) -> None:
        poutine.condition(scales, data={"x": x.square()})(x)

    with pytest.raises(
        ConfigError,
        match=r"the site 'x', but its observed value is none of the arguments; use start=.prior",
    ):
        bdmc(unseen, scales_guide, x, settings=AISSettings(2, 2, "guide"))


def test_double_precision_and_back() -> None:
    torch.set_default_dtype(torch.float32)
    system, x = ppca()
    weights = {name: p.data_ptr() for name, p in system.named_parameters()}
    exact = exact_log_likelihood(system, x)
    exactly, _ = system_and_data("ppca-exact")
    data = torch.randn(4, 16)
    settings = AISSettings(2, 4, "guide", double=True)
    found = ais(exactly.model, exactly.guide, data, settings=settings, seed=0)
    torch.testing.assert_close(
        found.log_weights[0], exact_log_likelihood(exactly, data), rtol=0, atol=1e-7
    )
    for double in (False, True):
        found = ais(
            system.model,
            None,
            x,
            settings=AISSettings(16, 20, leapfrog_steps=4, double=double),
            seed=0,
        )
        assert ((found.log_px - exact).abs() < 5 * found.se).all()
        assert found.log_weights.dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32
    assert {name: p.data_ptr() for name, p in system.named_parameters()} == weights
    matrix = torch.ones(1, 6)

    def single(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ matrix, 1.0).to_event(1), obs=x)

    with pytest.raises(ConfigError, match="the program does not run in double precision"):
        ais(single, None, x, settings=AISSettings(2, 2, double=True))


def test_an_improper_start_and_what_has_no_likelihood_are_refused() -> None:
    for name in ("linear-ae", "ae"):
        system, x = system_and_data(name)
        for guide in (None, system.guide):
            with pytest.raises(UndefinedLikelihoodError, match="prior of 'z' is flat"):
                ais(system.model, guide, x)
    system, x = system_and_data("sparse-ae")
    with pytest.raises(UndefinedLikelihoodError, match="'z' is a Delta"):
        ais(system.model, system.guide, x, settings=AISSettings(2, 2, "guide"))
    assert ais(system.model, system.guide, x, settings=TINY).log_px.isfinite().all()
    system, x = system_and_data("discrete-vae")
    with pytest.raises(ProgramError, match="latent site 'z' is discrete"):
        ais(system.model, None, x)
    with pytest.raises(ConfigError, match=r"needs a guide: give one, or use start=.prior"):
        ais(system.model, None, x, settings=AISSettings(start="guide"))


def test_weight_priors_of_the_decoder_are_no_part_of_the_likelihood() -> None:
    system, x = system_and_data("sparse-ae-map")
    one = ais(system.model, None, x, settings=TINY, seed=0)
    system.weight_prior = None
    torch.testing.assert_close(ais(system.model, None, x, settings=TINY, seed=0).log_px, one.log_px)
    assert bdmc(system.model, None, x, settings=TINY, seed=0).upper.isfinite().all()


def program(change: str) -> Callable[[Tensor], None]:
    """A program that breaks one thing."""

    def model(x: Tensor) -> None:
        if change == "global":
            pyro.sample("all", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=2.0 if change == "scaled z" else 1.0):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if change == "factor":
                pyro.factor("penalty", -z.square())
            with poutine.scale(scale=2.0 if change == "scaled x" else 1.0):
                pyro.sample(
                    "x",
                    dist.Normal(torch.where(x == 3, torch.inf, z), 1.0, validate_args=False),
                    obs=x,
                )

    return model


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("global", "'all' lies outside the data plate"),
        ("scaled z", "'z' is scaled in the model"),
        ("scaled x", "'x' is scaled: draws from the model"),
        ("factor", "'penalty' is a factor"),
    ],
)
def test_programs_that_cannot_be_annealed_are_refused(change: str, reason: str) -> None:
    x = torch.zeros(4)
    with pytest.raises(ProgramError, match=reason):
        bdmc(program(change), None, x, settings=TINY)
    if change in ("scaled x", "factor"):
        assert ais(program(change), None, x, settings=TINY, seed=0).log_px.isfinite().all()


def test_a_datum_without_weight_is_named() -> None:
    with pytest.raises(DataError, match="log-weights of datum 3 give log p"):
        ais(program(""), None, torch.arange(5.0), settings=TINY)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"num_chains": 0}, "num_chains must be a whole number of at least 1, not 0"),
        ({"num_distributions": 2.5}, "num_distributions must be a whole number"),
        ({"leapfrog_steps": True}, "leapfrog_steps must be a whole number"),
        ({"target_acceptance": 1.0}, "target_acceptance must lie between 0 and 1"),
        ({"start": "guides"}, "unknown start 'guides': did you mean 'guide'"),
        ({"schedule": "cosine"}, "unknown schedule 'cosine'"),
    ],
)
def test_bad_settings(bad: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        AISSettings(**bad)


def test_schedules_rise_from_0_to_1() -> None:
    for schedule in ("sigmoid", "linear"):
        for num_distributions in (1, 2, 7, 1000):
            betas = torch.tensor(
                AISSettings(num_distributions=num_distributions, schedule=schedule).betas
            )
            assert (betas[0], betas[-1]) == (0, 1)
            assert (betas.diff() > 0).all()
            torch.testing.assert_close(betas, 1 - betas.flip(0))


def test_seeds_and_generators_of_the_caller() -> None:
    system, x = ppca()
    system.train()
    state = torch.get_rng_state()
    one, other = (ais(system.model, None, x, settings=TINY, seed=2) for _ in range(2))
    assert torch.equal(one.log_weights, other.log_weights)
    assert torch.equal(state, torch.get_rng_state())
    assert system.training
    assert one.interval.shape == (2, 5)
    single = ais(system.model, None, x, settings=AISSettings(1, 4), seed=0)
    assert single.se.isnan().all()
    assert single.interval.isnan().all()
