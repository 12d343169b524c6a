"""The β-ELBO and its free bits, against formulas written out."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyroae import zoo
from pyroae.config import TrainConfig
from pyroae.errors import ConfigError, ProgramError
from pyroae.objectives import AnalyticKL, BetaELBO, parse_objective
from pyroae.testing import check_objective
from pyroae.training.fitting import fit
from tests.objectives.test_objectives import DATA, hierarchical, run
from tests.oracles import gaussian_kl
from tests.systems import system_and_data

float64 = pytest.mark.usefixtures("float64")


def parts(num_particles: int = 1) -> tuple[Any, Tensor, Tensor, Tensor]:
    """A VAE, its data, the distortion at the draws of seed 3 and the KL of each unit, `[N, m]`."""
    system, x = system_and_data("vae")
    with torch.no_grad():
        mean, log_variance = system.encoder(x).chunk(2, -1)
        pyro.set_rng_seed(3)
        z = mean + (0.5 * log_variance).exp() * torch.randn(num_particles, *mean.shape)
        distortion = -system.p_x(z).log_prob(x).mean(0).sum()
        units = gaussian_kl(mean.unsqueeze(-1), (0.5 * log_variance).exp().unsqueeze(-1))
    return system, x, distortion, units


@float64
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_beta_weighs_the_kl(beta: float, num_particles: int) -> None:
    system, x, distortion, units = parts(num_particles)
    loss, _ = run(BetaELBO(num_particles, beta), system, system.model, system.guide, x)
    assert loss == pytest.approx((distortion + beta * units.sum()).item(), rel=1e-12)


@float64
def test_beta_of_one_is_analytic_kl() -> None:
    system, x = system_and_data("vae")
    for objectives in ((BetaELBO(4), AnalyticKL(4)), (BetaELBO(4, 1.0, 1e-9), AnalyticKL(4))):
        (loss, gradient), (expected_loss, expected) = (
            run(o, system, system.model, system.guide, x) for o in objectives
        )
        assert loss == pytest.approx(expected_loss, rel=1e-12)
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@float64
def test_free_bits_are_those_of_the_batch_mean() -> None:
    """Σ_j max(λ, batch-mean KL_j): λ between the units, so that some pay and some do not."""
    system, x, distortion, units = parts()
    mean = units.mean(0)
    free = mean.sort().values[:2].mean().item()
    assert (mean < free).any()
    assert (mean > free).any()
    loss, gradient = run(BetaELBO(1, 2.0, free), system, system.model, system.guide, x)
    assert loss == pytest.approx(
        (distortion + 2 * len(x) * mean.clamp_min(free).sum()).item(), rel=1e-12
    )
    # a unit below λ gets no gradient from its KL: what is left is that of the distortion
    quiet = int(mean.argmin())
    _, without = run(BetaELBO(1, 0.0), system, system.model, system.guide, x)
    sizes = [p.numel() for p in system.parameters()]
    names = [n for n, _ in system.named_parameters()]
    of_bias = dict(
        zip(names, zip(gradient.split(sizes), without.split(sizes), strict=True), strict=True)
    )
    last = max(n for n in names if n.startswith("encoder") and n.endswith("bias"))
    with_kl, no_kl = of_bias[last]
    same = torch.isclose(with_kl, no_kl, rtol=1e-10, atol=1e-12).chunk(2)
    assert [bool(s[quiet]) for s in same] == [True, True]
    assert sum(int((~s).sum()) for s in same) >= 2


@float64
def test_free_bits_under_scale_mask_and_subsampling() -> None:
    system, x, _, units = parts()
    system.eval()
    keep = torch.tensor([True, False, True, True, True, False])
    objective = BetaELBO(1, 1.0, units[keep].mean().item())
    programs = [poutine.mask(program, mask=keep) for program in (system.model, system.guide)]
    loss, gradient = run(objective, system, *programs, x)
    pyro.set_rng_seed(3)
    kept = units[keep].mean(0).clamp_min(objective.free_bits).sum() * keep.sum()
    lik = BetaELBO(1, 0.0)
    assert loss == pytest.approx(run(lik, system, *programs, x)[0] + kept.item(), rel=1e-12)
    scaled = run(
        objective, system, *(poutine.scale(program, scale=0.25) for program in programs), x
    )
    assert scaled[0] == pytest.approx(0.25 * loss, rel=1e-12)
    torch.testing.assert_close(scaled[1], 0.25 * gradient)


@float64
@pytest.mark.parametrize("size", [None, 40])
def test_free_bits_on_a_hierarchical_program(size: int | None) -> None:
    """Elements of the nested plate are units; λ = 0 and a tiny λ agree, and a large λ is N_total
    (units λ) of KL.
    """
    model, guide, q = hierarchical(size)
    x = DATA.double()
    plain, tiny, none = (
        run(BetaELBO(5, 1.0, free), q, model, guide, x)[0] for free in (0.0, 1e-12, 100.0)
    )
    assert tiny == pytest.approx(plain, rel=1e-12)
    lik = run(BetaELBO(5, 0.0), q, model, guide, x)[0]
    of_level = gaussian_kl(torch.tensor([0.3 / 2]), torch.tensor([0.5 / 2])).item()
    assert none - lik == pytest.approx(of_level + 3 * 100.0 * (size or 4), rel=1e-12)


def test_conformance() -> None:
    assert len(check_objective(BetaELBO(3), unbiased=True)) >= 11
    assert check_objective(BetaELBO(3, beta=4.0), unbiased=True)
    names = {check.name for check in check_objective(BetaELBO(3, free_bits=0.1))}
    assert "a batch's bound is the sum over its data" not in names
    assert "a scale multiplies the bound" in names


def test_it_trains_with_warm_up() -> None:
    """β² as the weight of the KL would show: the rate of a β-VAE is below that of a VAE, with
    warm-up too.
    """
    x = (torch.rand(200, 16, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    x[:100, :8] = 1
    rates = {}
    for beta in (0.2, 1.0, 8.0):
        torch.manual_seed(0)
        vae = zoo.vae(16, latent=2)
        fit(
            vae,
            x,
            BetaELBO(beta=beta),
            TrainConfig(epochs=15, batch_size=50, lr=2e-2, kl_warmup=5),
            progress=False,
        )
        with torch.no_grad():
            mean, log_variance = vae.encoder(x).chunk(2, -1)
        rates[beta] = gaussian_kl(mean, (0.5 * log_variance).exp()).mean().item()
    assert rates[0.2] > 1.3 * rates[1.0] > 1.3 * rates[8.0]


def test_refusals() -> None:
    system, x = system_and_data("vae")
    for beta in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="beta of a β-ELBO must be at least 0 and finite"):
            BetaELBO(beta=beta)
    with pytest.raises(
        ConfigError, match="free_bits of a β-ELBO must be at least 0 and finite, not -1"
    ):
        parse_objective("beta-elbo:free_bits=-1.0")
    discrete, binary = system_and_data("discrete-vae")
    with pytest.raises(
        ProgramError,
        match=r"beta-elbo needs a path gradient at every draw; the guide's site 'z' \(Bernoulli\)",
    ):
        BetaELBO().loss(discrete.model, discrete.guide, binary)

    def tempered(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.5):
                z = pyro.sample("z", system.p_z())
            pyro.sample("x", dist.Bernoulli(logits=system.decoder(z)).to_event(1), obs=x)

    with pytest.raises(ProgramError, match="free bits take one scale for the latent site 'z'"):
        BetaELBO(free_bits=0.1).loss(tempered, system.guide, x)
