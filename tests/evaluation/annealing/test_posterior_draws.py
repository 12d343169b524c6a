"""Draws of p(z|x) from annealing: moments of closed forms and of quadrature; what does not have
them is caught. The same draws by every way of execution.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz_stats.base as arrays
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyroae import linear_gaussian, zoo
from pyroae.config import AISSettings
from pyroae.errors import ConfigError
from pyroae.evaluation.annealing import bounds as ais_module
from pyroae.evaluation.annealing import checkpoint, chunks, hmc, posterior
from pyroae.evaluation.annealing.bounds import ais, bdmc
from pyroae.evaluation.annealing.posterior import systematic
from pyroae.programs.latents import Latents
from pyroae.programs.traces import prior_of
from pyroae.runtime.processes import Share
from tests.evaluation.annealing.test_ais import ppca, scales
from tests.evaluation.annealing.test_annealing import Interruption, finished
from tests.shares import played

pytestmark = pytest.mark.usefixtures("float64")
SHORT = AISSettings(16, 60, leapfrog_steps=4, posterior_draws=4, thinning=3)
TINY = AISSettings(3, 8, leapfrog_steps=2, posterior_draws=3, thinning=2)


def errors(draws: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Means and second moments of draws `[C, S, R, D]` from R repetitions, less the exact ones, in
    standard errors over the repetitions.
    """
    residual = draws.double() - mean
    second = residual[..., None] * residual[..., None, :] - covariance
    each = torch.cat([residual, second.flatten(-2)], -1).mean((0, 1))
    return each.mean(0) / (each.std(0) / math.sqrt(len(each)))


def identity(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """A broken copy of `systematic`: every chain is its own successor, whatever its weight."""
    return torch.arange(len(log_weights))[:, None].expand_as(log_weights)


def test_successors_are_as_many_as_the_weights_say() -> None:
    log_weights = (3 * torch.randn(6, 50)).requires_grad_(False)
    expected = 6 * log_weights.softmax(0)
    total = torch.zeros(6, 50)
    for v in (torch.arange(400) + 0.5) / 400:
        index = systematic(log_weights, v.expand(50))
        counts = torch.stack([(index == i).sum(0) for i in range(6)])
        assert ((counts - expected).abs() < 1).all()
        total += counts
    assert ((total / 400 - expected).abs() < 6 / 400).all()
    last = torch.tensor([-math.inf, 0.0, -math.inf])[:, None]
    for v in (0.0, 1 - 2**-53):  # chains without weight have no successor
        assert systematic(last, torch.tensor([v])).flatten().tolist() == [1, 1, 1]


def test_the_closed_form_of_ppca() -> None:
    system, x = ppca(copies=150)
    with torch.no_grad():
        loc, tril = linear_gaussian.posterior(x[0], *system.linear_gaussian())
    found = ais(system.model, None, x, settings=SHORT, seed=0)
    assert found.posterior["z"].shape == (16, 4, 150, 2)
    assert (errors(found.posterior["z"], loc, tril @ tril.mT).abs() < 4).all()
    assert found.posterior_acceptance is not None
    assert found.posterior_acceptance.shape == (150,)
    assert 0.3 < found.posterior_acceptance.mean() < 0.95
    assert not len(found.unreliable_posterior)


def test_the_estimate_has_the_same_bits_without_draws() -> None:
    system, x = ppca()
    plain = AISSettings(3, 8, leapfrog_steps=2)
    found, without = (
        ais(system.model, None, x, settings=settings, seed=0) for settings in (TINY, plain)
    )
    assert torch.equal(found.log_px, without.log_px)
    assert torch.equal(found.log_weights, without.log_weights)
    assert torch.equal(found.acceptance, without.acceptance)
    assert (without.posterior, without.posterior_acceptance) == ({}, None)


def test_without_resampling_a_short_path_gives_other_moments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From many chains on a path of four steps, with a single small move after it."""
    system, x = ppca(copies=60)
    with torch.no_grad():
        loc, tril = linear_gaussian.posterior(x[0], *system.linear_gaussian())
        away = (loc / tril.diagonal()).norm()
    assert away > 1  # the chains have some way to go
    settings = AISSettings(400, 4, leapfrog_steps=1, posterior_draws=1, thinning=1)
    monkeypatch.setattr(hmc, "WARM_UP", 0)
    found = ais(system.model, None, x, settings=settings, seed=0)
    assert (errors(found.posterior["z"], loc, tril @ tril.mT).abs() < 4).all()
    monkeypatch.setattr(posterior, "systematic", identity)
    broken = ais(system.model, None, x, settings=settings, seed=0)
    assert errors(broken.posterior["z"], loc, tril @ tril.mT).abs().max() > 8
    guide = system.guide
    with torch.no_grad():
        of_guide = poutine.trace(guide).get_trace(x.expand(400, 60, -1).reshape(-1, 6))
    drawn = of_guide.nodes["z"]["value"].reshape(400, 1, 60, 2)
    assert errors(drawn, loc, tril @ tril.mT).abs().max() > 8


@pytest.mark.slow
def test_the_quadrature_posterior_of_a_nonlinear_vae() -> None:
    """Two curved dimensions; the grid's moments do not change when it is made finer."""
    torch.manual_seed(1)
    system = zoo.vae(4, latent=2, hidden=(8,))
    with torch.no_grad():
        for parameter in system.decoder.parameters():
            parameter.mul_(6.0)
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0]]).expand(120, -1)

    def moments(count: int) -> tuple[Tensor, Tensor]:
        axis = torch.linspace(-5, 5, count)
        grid = torch.cartesian_prod(axis, axis)
        latents = Latents(system.model, prior_of(system.model), (x[:1],), len(grid))
        with torch.no_grad():
            weight = latents.log_joint(grid[:, None]).total.softmax(0)
        mean = (weight * grid).sum(0)
        return mean, ((grid - mean).mT * weight.T) @ (grid - mean)

    mean, covariance = moments(121)
    finer = moments(181)
    torch.testing.assert_close((mean, covariance), finer, rtol=1e-3, atol=1e-3)
    prior_errors = torch.cat([mean, (covariance - torch.eye(2)).flatten()])
    assert prior_errors.abs().max() > 0.2  # neither is it the prior
    found = ais(system.model, None, x, settings=SHORT, seed=0)
    assert (errors(found.posterior["z"], mean, covariance).abs() < 4).all()
    drawn = torch.randn(16, 4, 120, 2)
    assert errors(drawn, mean, covariance).abs().max() > 8


def test_constrained_sites_in_nested_plates() -> None:
    """s | x by the trapezoidal rule, z | s, x in closed form."""
    x = torch.tensor([[0.3, -1.2, 2.0]]).expand(150, -1)
    settings = AISSettings(16, 40, leapfrog_steps=5, posterior_draws=4, thinning=4)
    found = ais(scales, None, x, settings=settings, seed=0)
    assert found.posterior["s"].shape == (16, 4, 150)
    assert found.posterior["z"].shape == (16, 4, 150, 3)
    s = torch.linspace(1e-4, 25, 8001)
    variance = s.square() + 0.25
    log_s = dist.Normal(0.0, variance.sqrt()).log_prob(x[0][:, None]).sum(0)
    weight = (log_s + dist.Gamma(3.0, 2.0).log_prob(s)).softmax(0)
    share = s.square() / variance
    mean = torch.stack([(weight * s).sum(), *((weight * share).sum() * x[0])])
    draws = torch.cat([found.posterior["s"][..., None], found.posterior["z"]], -1)
    at = torch.stack([s, *(share * value for value in x[0])], 1)
    covariance = ((at - mean) * weight[:, None]).mT @ (at - mean)
    covariance[1:, 1:] += torch.eye(3) * (weight * share * 0.25).sum()
    assert (errors(draws, mean, covariance).abs() < 4).all()


def two_modes(x: Tensor) -> None:
    """z ~ ½ N(−4, ½²) + ½ N(4, ½²), its side summed out; x ~ N(|z|, 1)."""
    with pyro.plate("data", len(x)):
        side = pyro.sample("side", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(8 * side - 4, 0.5))
        pyro.sample("x", dist.Normal(z.abs(), 1.0), obs=x)


def test_rhat_tells_chains_that_do_not_mix() -> None:
    """Half of the chains are in each mode and stay there; where there is one mode they agree."""
    x = torch.full((8,), 4.0)
    few = AISSettings(16, 30, leapfrog_steps=3, posterior_draws=8, thinning=2)
    found = ais(two_modes, None, x, settings=few, seed=0)
    assert list(found.posterior) == ["z"]
    z = found.posterior["z"]
    assert abs((z > 0).double().mean() - 0.5) < 4 * 0.5 / math.sqrt(16 * 8)
    assert (rhat(z) > 1.5).all()
    system, data = ppca()
    settings = AISSettings(16, 60, leapfrog_steps=4, posterior_draws=20, thinning=3)
    one = ais(system.model, None, data, settings=settings, seed=0).posterior["z"]
    assert (rhat(one) < 1.1).all()


def rhat(draws: Tensor) -> np.ndarray:
    """R-hat of each element of `[C, S, ...]`."""
    values = draws.flatten(2).numpy()
    return np.array([arrays.array_stats.rhat(values[..., i], 0, 1) for i in range(values.shape[2])])


def test_collapsed_weights_and_moves_that_fail_are_flagged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All chains of one ancestor start at one z, and small steps leave them there."""
    system, x = ppca()
    monkeypatch.setattr(hmc, "WARM_UP", 0)
    x = x + 30 * (torch.arange(5) == 2)[:, None]
    settings = AISSettings(8, 2, leapfrog_steps=1, posterior_draws=20, thinning=1)
    found = ais(system.model, None, x, settings=settings, seed=0)
    assert found.ess[2] < 2
    assert 2 in found.unreliable_posterior.tolist()
    assert rhat(found.posterior["z"][:, :, 2:3]).max() > 1.1
    stuck = ais(
        system.model,
        None,
        x,
        settings=AISSettings(8, 40, leapfrog_steps=4, target_acceptance=0.001, posterior_draws=4),
        seed=0,
    )
    assert stuck.posterior_acceptance is not None
    low = (stuck.posterior_acceptance < 0.05).nonzero().flatten().tolist()
    assert low
    assert set(low) <= set(stuck.unreliable_posterior.tolist())


def test_masked_elements_have_no_draws() -> None:
    def program(x: Tensor, there: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("parts", 2, dim=-1):
            with poutine.mask(mask=there):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=there):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x, there = torch.randn(3, 2), torch.tensor([[True, True], [True, False], [False, True]])
    z = ais(program, None, (x, there), settings=TINY, seed=0).posterior["z"]
    assert torch.equal(z.isnan(), ~there.expand(3, 3, 3, 2))


def test_simplices_and_simulated_data() -> None:
    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Dirichlet(torch.ones(3)))
            pyro.sample("x", dist.Categorical(z), obs=x)

    x = torch.tensor([0, 2])
    z = ais(program, None, x, settings=TINY, seed=0).posterior["z"]
    assert z.shape == (3, 3, 2, 3)
    torch.testing.assert_close(z.sum(-1), torch.ones(3, 3, 2))
    assert bdmc(program, None, x, settings=TINY, seed=0).forward.posterior == {}


def assert_same(one: Any, other: Any, rtol: float = 0.0, atol: float = 0.0) -> None:
    for name in ("log_px", "log_weights", "step_sizes", "posterior_acceptance"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=rtol, atol=atol)
    torch.testing.assert_close(one.posterior, other.posterior, rtol=rtol, atol=atol)


def in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 2, 2 and 1 data."""
    monkeypatch.setattr(ais_module, "rows_of", lambda args: 2 * TINY.num_chains)
    monkeypatch.setattr(checkpoint, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(hmc, "WARM_UP", 5)


def test_interrupted_at_every_stage_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, x = ppca()
    in_blocks(monkeypatch)
    arguments: dict[str, Any] = {"settings": TINY, "seed": 5}
    whole = ais(system.model, None, x, **arguments)
    per_block = 5 + 7 + 7 + 6  # pilot, chains, draws
    moments = [3, 15, *range(20, 26), per_block + 21, 3 * per_block]
    interruption = Interruption(monkeypatch, moments)
    file = tmp_path / "work.safetensors"
    found, breaks = finished(lambda: ais(system.model, None, x, checkpoint=file, **arguments))
    assert breaks == len(moments)
    assert_same(whole, found)
    count = interruption.count
    assert_same(whole, ais(system.model, None, x, checkpoint=file, **arguments))
    assert interruption.count == count  # a finished file holds the draws
    other = AISSettings(3, 8, leapfrog_steps=2, posterior_draws=3)
    with pytest.raises(ConfigError, match="another run: this one has thinning = 5, not 2"):
        ais(system.model, None, x, checkpoint=file, settings=other, seed=5)


def test_shared_and_compiled_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    system, x = ppca()
    in_blocks(monkeypatch)
    monkeypatch.setattr(chunks, "inductor", lambda graph, inputs, same_draws, one_core: graph)

    def work(share: Share, compile: bool = False) -> Any:
        return ais(system.model, None, x, settings=TINY, seed=5, share=share, compile=compile)

    whole = work(Share())
    for found in played(2, work):
        assert_same(whole, found)
    assert_same(whole, work(Share(), compile=True), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (lambda: AISSettings(posterior_draws=-1), "posterior_draws must be a whole number of"),
        (lambda: AISSettings(thinning=0), "thinning must be a whole number of at least 1"),
        (lambda: AISSettings(4, 1, posterior_draws=2), "needs num_distributions of at least 2"),
        (
            lambda: AISSettings(4, 8, posterior_draws=10**13),
            r"posterior_draws=10,000,000,000,000: 40,000,000,000,000 draws of each of 5 data take "
            r"2,980,232\.2 GiB, more than the .* use fewer draws",
        ),
    ],
)
def test_what_is_refused(settings: Callable[[], AISSettings], reason: str) -> None:
    system, x = ppca()
    with pytest.raises(ConfigError, match=reason):
        ais(system.model, None, x, settings=settings(), seed=0)
