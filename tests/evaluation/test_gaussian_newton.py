"""Newton's method for Gaussians: against the conditions of optimality of Poisson rates exp(W z),
whose expectations under a Gaussian have closed forms; draws, far starts, data that are finished.
"""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae.evaluation.gaussian_newton import AVERAGED, directions
from pyroae.evaluation.local import LocalGaussian, fit_local
from pyroae.programs.latents import Latents
from pyroae.programs.sites import Program

pytestmark = pytest.mark.usefixtures("float64")

WEIGHT = torch.tensor(
    [[0.8, 0.3, 0.0], [0.7, -0.2, 0.4], [0.0, 0.9, 0.5], [0.4, 0.4, 0.4]], dtype=torch.float64
)
X = torch.tensor([[0, 1, 0, 2], [9, 4, 1, 3], [0, 0, 0, 0], [2, 7, 5, 6]], dtype=torch.float64)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Poisson((z @ WEIGHT.T).exp()).to_event(1), obs=x)


def start(loc: float, scale: float) -> Program:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.full((3,), loc), scale).to_event(1))

    return guide


def offence(fitted: LocalGaussian, family: str) -> Tensor:
    """What the conditions E ∇ log p = 0 and Σ⁻¹ = −E ∇² log p are off by, in units of Σ.

    The ELBO is below its optimum by about half of the square of this.
    """
    covariance = fitted.scale_tril @ fitted.scale_tril.mT
    rate = (
        fitted.loc @ WEIGHT.T + 0.5 * torch.einsum("ki,nij,kj->nk", WEIGHT, covariance, WEIGHT)
    ).exp()
    gradient = (X - rate) @ WEIGHT - fitted.loc
    precision = torch.eye(3) + torch.einsum("ki,nk,kj->nij", WEIGHT, rate, WEIGHT)
    if family == "diagonal":
        precision = torch.diag_embed(precision.diagonal(dim1=-2, dim2=-1))
    excess = fitted.scale_tril.mT @ precision @ fitted.scale_tril - torch.eye(3)
    of_mean = torch.einsum("nij,ni->nj", fitted.scale_tril, gradient)
    return (of_mean.square().sum(-1) + 0.5 * excess.square().sum((-1, -2))).sqrt()


@pytest.mark.parametrize("family", ["full-rank", "diagonal"])
@pytest.mark.parametrize(
    "guide", [start(0.0, 1.0), start(4.0, 0.01), start(0.0, 30.0)], ids=["near", "far", "wide"]
)
def test_the_conditions_of_optimality(family: Any, guide: Program) -> None:
    """Within 0.005 nats of the best ELBO. From the last start it is below −10³⁰ nats."""
    cut = fit_local(model, guide, (X,), family=family, steps=1, seed=0)
    assert not offence(cut, family).max() < 0.1
    fitted = fit_local(model, guide, (X,), family=family, seed=0)
    assert offence(fitted, family).max() < 0.1
    more = fit_local(model, guide, (X,), family=family, num_particles=5000, seed=0)
    assert offence(more, family).max() < 0.02
    assert fitted.steps < 60


def test_the_elbo_and_its_gain() -> None:
    fitted = fit_local(model, None, (X,), seed=0)
    latents = Latents(model, start(0.0, 1.0), (X,), 20_000)
    with torch.no_grad():
        u, log_q = fitted.draw(20_000)
        elbo = (latents.log_joint(u).total - log_q).mean(0)
    assert bool(((fitted.elbo - elbo).abs() < 5 * fitted.gain_se + 0.01).all())
    assert bool((fitted.gain.abs() < 5 * fitted.gain_se).all())
    assert fitted.gain_se.max() < 0.1


def test_scales_are_lower_triangular() -> None:
    for family in ("full-rank", "diagonal"):
        scale = fit_local(model, None, (X,), family=family, seed=0).scale_tril
        assert bool((scale.triu(1).abs() < 1e-12).all())
        assert bool((scale.diagonal(dim1=-2, dim2=-1) > 0).all())


def test_finished_data_are_removed_from_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three data start at their optimum, and one far away."""
    best = fit_local(model, None, (X,), seed=0)
    loc, scale = best.loc.clone(), best.scale_tril.clone()
    loc[3], scale[3] = loc[3] + 8.0, 0.001 * torch.eye(3)
    sizes: list[int] = []
    drawn = Latents.log_joint

    def watched(self: Latents, u: Tensor) -> Any:
        sizes.append(u.shape[1])
        return drawn(self, u)

    monkeypatch.setattr(Latents, "log_joint", watched)
    at = LocalGaussian(loc, scale, best.elbo, best.gain, best.gain_se, 0)
    fitted = fit_local(model, None, (X,), start=at, seed=0)
    assert offence(at, "full-rank")[3] > 1
    assert offence(fitted, "full-rank").max() < 0.1
    assert sizes[0] == 4
    assert sizes[-1] == 1
    assert sizes == sorted(sizes, reverse=True)
    assert sizes.count(4) > AVERAGED


def test_directions_are_standard_normal_and_orthogonal() -> None:
    torch.manual_seed(0)
    rows = torch.cat([directions(7, torch.zeros(3)) for _ in range(20_000)]).reshape(-1, 7, 3)
    for i in (0, 1, 2, 6):
        torch.testing.assert_close(rows[:, i].T.cov(), torch.eye(3), rtol=0, atol=0.04)
        along = rows[:, i] @ torch.tensor([0.6, 0.0, 0.8])
        assert along.mean().abs() < 0.04
        assert (along**4).mean().item() == pytest.approx(3, abs=0.25)
    inner = torch.einsum("nid,njd->nij", rows[:, :3], rows[:, :3])
    assert inner.triu(1).abs().max() < 1e-10
