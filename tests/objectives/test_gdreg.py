"""GDReG: by hand, unbiased on a hierarchy with a closed form, of less variance, and broken."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyroae.errors import ConfigError, ProgramError
from pyroae.objectives import (
    ELBO,
    IWAE,
    Bound,
    DoublyReparameterized,
    Objective,
    Pathwise,
    Renyi,
)
from pyroae.objectives.gdreg import GeneralizedDoublyReparameterized, gdreg
from pyroae.objectives.prior_transforms import through_prior
from tests.caught import assert_caught


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


class Hierarchy(nn.Module):
    """u ~ N(m, t²), z|u ~ N(a u + b, s²), x|z ~ N(w z, r²); q(z|x) then q(u|z), linear Gaussian."""

    def __init__(self) -> None:
        super().__init__()
        values = {"m": 0.3, "t": -0.2, "a": 0.8, "b": 0.1, "s": -0.7, "w": 0.9}
        values |= {"zx": 0.5, "zb": 0.2, "zs": -0.6, "uz": 0.4, "ub": -0.1, "us": -0.3}
        for name, value in values.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value)))
        self.noise: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)

    prior = ("m", "t", "a", "b", "s")

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(self.m, self.t.exp()))
            z = pyro.sample("z", dist.Normal(self.a * u + self.b, self.s.exp()))
            pyro.sample("x", dist.Normal(self.w * z, 1.5), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.zx * x + self.zb, self.zs.exp()))
            pyro.sample("u", dist.Normal(self.uz * z + self.ub, self.us.exp()))

    def log_weight(self, x: Tensor, noise: Tensor, stopped: Tensor | None = None) -> Tensor:
        """Log w at standardized draws `[2, ...]`."""
        normal = torch.distributions.Normal
        z = self.zx * x + self.zb + self.zs.exp() * noise[0]
        u = self.uz * z + self.ub + self.us.exp() * noise[1]
        log_p = normal(self.m, self.t.exp()).log_prob(u)
        log_p = log_p + normal(self.a * u + self.b, self.s.exp()).log_prob(z)
        log_p = log_p + normal(self.w * z, 1.5).log_prob(x)
        log_q = normal(self.zx * x + self.zb, self.zs.exp()).log_prob(z)
        return log_p - log_q - normal(self.uz * z + self.ub, self.us.exp()).log_prob(u)


def gradients(objective: Objective, size: int, seed: int = 0) -> dict[str, Tensor]:
    """The ascent gradient of each datum, for data that are copies of one."""
    torch.manual_seed(seed)
    toy, x = Hierarchy(), torch.full((size,), 1.2)
    rows = {}
    for name, parameter in list(toy.named_parameters()):
        value = parameter.detach()
        delattr(toy, name)
        rows[name] = value.expand(size).clone().requires_grad_()
        setattr(toy, name, rows[name])
    objective.loss_and_grads(toy.model, toy.guide, x)
    return {name: -row.grad for name, row in rows.items() if row.grad is not None}


def test_elbo_of_a_hierarchy_has_its_closed_form_gradient() -> None:
    """log w is quadratic in the noise: a Gauss–Hermite rule of 3 × 3 nodes is exact."""
    from numpy.polynomial.hermite_e import hermegauss

    toy = Hierarchy()
    nodes, weights = (torch.tensor(v) for v in hermegauss(3))
    grid = torch.stack(torch.meshgrid(nodes, nodes, indexing="ij")).flatten(1)
    probability = torch.outer(weights, weights).flatten() / weights.sum() ** 2
    elbo = (probability * toy.log_weight(torch.tensor(1.2), grid)).sum()
    exact = dict(
        zip(
            dict(toy.named_parameters()),
            torch.autograd.grad(elbo, list(toy.parameters())),
            strict=True,
        )
    )
    found = gradients(Objective(ELBO(2), GeneralizedDoublyReparameterized()), 20_000)
    assert set(found) == set(exact)
    for name, rows in found.items():
        error = (rows.std() / len(rows) ** 0.5).item()
        assert rows.mean().item() == pytest.approx(exact[name].item(), abs=5 * error + 1e-12), name


@pytest.mark.parametrize("bound", [IWAE(4), Renyi(3, 0.5)])
def test_means_in_a_hierarchy_are_those_of_the_pathwise_gradient(bound: Any) -> None:
    found = gradients(Objective(bound, GeneralizedDoublyReparameterized()), 40_000)
    reference = gradients(Objective(bound, Pathwise()), 40_000, seed=1)
    for name in found:
        variance = found[name].var() + reference[name].var()
        error = (variance / 40_000).sqrt().item()
        difference = (found[name].mean() - reference[name].mean()).item()
        assert abs(difference) < 5 * error, name


def test_the_prior_has_less_variance_than_under_dreg() -> None:
    found = gradients(gdreg(16), 20_000)
    others = gradients(Objective(IWAE(16), DoublyReparameterized()), 20_000)
    ratio = {name: (found[name].var() / others[name].var()).item() for name in found}
    assert max(ratio[name] for name in ("a", "b", "s")) < 0.75, ratio
    for name in ("w", "zx", "zb", "zs", "uz", "ub", "us"):  # θ of x|z and φ are those of DReG
        assert ratio[name] == pytest.approx(1.0, rel=1e-9)


def by_hand(toy: Hierarchy, x: Tensor, z: Tensor, u: Tensor, num_particles: int) -> Tensor:
    """The gradient of b and m of IWAE: derivatives of Normal densities written out."""
    s2, t2, r2 = (2 * toy.s).exp(), (2 * toy.t).exp(), 1.5**2
    with torch.no_grad():
        noise_z = (z - toy.zx * x - toy.zb) / toy.zs.exp()
        noise_u = (u - toy.uz * z - toy.ub) / toy.us.exp()
        w = toy.log_weight(x, torch.stack([noise_z, noise_u])).softmax(0)
        up = (z - toy.a * u - toy.b) / s2
        prior_z, prior_u = -up, -(u - toy.m) / t2
        post_z = -noise_z / toy.zs.exp() + toy.uz * noise_u / toy.us.exp()
        post_u = -noise_u / toy.us.exp()
        joint_z = prior_z + toy.w * (x - toy.w * z) / r2
        joint_u = prior_u + toy.a * up
        h = w * (1 - w)
        of_b = h * (joint_z - post_z) + w * (post_z - prior_z)  # ∂T/∂b = 1
        of_m = h * (joint_u - post_u) + w * (post_u - prior_u)
    return torch.stack([of_b.sum(), of_m.sum()])


def test_the_gradient_is_the_formula_draw_by_draw() -> None:
    toy, x = Hierarchy(), torch.tensor([0.4, -1.1, 2.0])
    drawn: dict[str, Tensor] = {}

    def guide(x: Tensor) -> None:
        toy.guide(x)

    class Record(poutine.messenger.Messenger):
        def _pyro_post_sample(self, msg: Any) -> None:
            if not msg["is_observed"] and msg["value"].dim() == 2:
                drawn.setdefault(msg["name"], msg["value"].detach())

    with Record():
        gdreg(3).loss_and_grads(toy.model, guide, x)
    found = torch.stack([-toy.b.grad, -toy.m.grad])
    torch.testing.assert_close(found, by_hand(toy, x, drawn["z"], drawn["u"], 3))


# Families.


@pytest.mark.parametrize(
    "make",
    [
        dist.Normal,
        dist.Laplace,
        dist.Gumbel,
        dist.LogNormal,
        dist.Cauchy,
        lambda a, b: dist.StudentT(5.0, a, b),
        lambda a, b: dist.Normal(a.expand(2, 3), b.expand(2, 3)).to_event(2),
        lambda a, b: dist.MultivariateNormal(a.expand(3), scale_tril=b * torch.eye(3)),
    ],
)
def test_transforms_of_priors_are_those_of_their_draws(make: Any) -> None:
    """∂_θ T at the noise of a draw is ∂_θ of that draw by `rsample`."""
    a, b = (torch.tensor(v, requires_grad=True) for v in (0.4, 1.3))
    p = make(a, b)
    z = p.rsample()
    expected = torch.autograd.grad(z.sum(), [a, b], retain_graph=True)
    drawn = through_prior(p, z)
    assert drawn is not None
    torch.testing.assert_close(drawn, z)
    for found, value in zip(torch.autograd.grad(drawn.sum(), [a, b]), expected, strict=True):
        torch.testing.assert_close(found, value)


def one_site(make_prior: Any, make_posterior: Any) -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", make_prior())
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", make_posterior(x))

    return model, guide


def test_a_prior_without_a_transform_keeps_its_plain_gradient() -> None:
    rate, loc = (torch.tensor(v, requires_grad=True) for v in (1.3, 0.2))
    for posterior in (lambda x: dist.LogNormal(loc + 0 * x, 0.5), lambda x: dist.LogNormal(x, 0.5)):
        model, guide = one_site(lambda: dist.Gamma(2.0, rate), posterior)
        found: list[Tensor] = []
        for gradient in (GeneralizedDoublyReparameterized(), DoublyReparameterized()):
            torch.manual_seed(3)
            rate.grad = loc.grad = None
            Objective(IWAE(4), gradient).loss_and_grads(model, guide, torch.ones(5))
            found.append(torch.stack([leaf.grad for leaf in (rate, loc) if leaf.grad is not None]))
        torch.testing.assert_close(*found)


# Refusals and broken copies.


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="discontinuous slopes"):
        Objective(Renyi(4, -float("inf")), GeneralizedDoublyReparameterized())
    x = torch.ones(3)
    model, guide = one_site(lambda: dist.Bernoulli(0.5), lambda x: dist.Bernoulli(0.5 + 0 * x))
    with pytest.raises(ProgramError, match=r"site 'z' \(Bernoulli\) has none"):
        gdreg(2).loss(model, guide, x)
    model, guide = one_site(lambda: dist.Normal(0.0, 1.0), lambda x: dist.Normal(0 * x, 1.0))

    def tempered(x: Tensor) -> None:
        with poutine.scale(scale=0.5):
            guide(x)

    with pytest.raises(ProgramError, match=r"one scale for all sites .* the latent site 'z'"):
        gdreg(2).loss(model, tempered, x)

    def with_factor(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * x, 1.0))
            pyro.factor("extra", 0 * x, has_rsample=False)

    with pytest.raises(ProgramError, match="the guide's site 'extra'"):
        gdreg(2).loss(model, with_factor, x)


@dataclass(frozen=True)
class Broken(GeneralizedDoublyReparameterized):
    """A copy with one factor wrong."""

    fault: str = ""

    def weights_of_path(self, *parts: Tensor) -> Tensor:
        c, h, of_weight, of_post, of_prior = parts
        if self.fault == "sign":
            return -super().weights_of_path(*parts)
        if self.fault == "no q":
            return h * of_weight - c * of_prior
        return c * of_weight + c * (of_post - of_prior)  # c in place of its derivative


@pytest.mark.parametrize(
    "fault", ["sign", *(pytest.param(f, marks=pytest.mark.slow) for f in ("no q", "no curvature"))]
)
def test_broken_copies_are_caught(fault: str) -> None:
    words = "the mean gradient is the bound's: off by"
    assert_caught(Objective(IWAE(4), Broken(fault)), words, by=("gradient_means",))


PLAIN = Objective(IWAE(4), DoublyReparameterized())


@dataclass(frozen=True)
class PriorTwice(GeneralizedDoublyReparameterized):
    """The plain gradient of the prior is not taken out."""

    def estimate_on(self, objective: Any, *programs: Any) -> Bound:
        value, surrogate = super().estimate_on(objective, *programs)
        return Bound(value, surrogate + PLAIN.estimate_on(*programs).surrogate)


def test_counting_the_prior_twice_is_caught() -> None:
    words = "the mean gradient is the bound's: off by"
    assert_caught(Objective(IWAE(4), PriorTwice()), words, by=("gradient_means",))
