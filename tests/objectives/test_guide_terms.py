"""Terms of a guide that are no density of a draw: factors, observed sites, Deltas with a
log-density. Values in closed form.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.easyguide import easy_guide
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyroae.errors import ProgramError, UndefinedLikelihoodError
from pyroae.evaluation.importance.likelihood import log_likelihood
from pyroae.objectives import (
    BOUNDS,
    ELBO,
    IWAE,
    OBJECTIVES,
    DoublyReparameterized,
    Objective,
    Score,
    StickingTheLanding,
    TraceELBO,
)
from pyroae.weights import log_weights
from tests.systems import FOR_GAUSSIANS

pytestmark = pytest.mark.usefixtures("float64")

X = torch.tensor([0.5, -1.0, 2.0])
HALF = math.sqrt(0.5)
EXACT = 5.109  # −Σ log N(x; 0, 2)
FOLLOWS_DRAWS = ("dreg", "rws-dreg", "rws", "vimco", "score", "tvo")
TERMS = ("factor", "delta", "observed")
DRAWS_ALONE = {"dais": "is no draw", "gdreg": "is a Delta, a factor or an observation"}
"""Objectives that refuse other sites of the guide than draws, and their words."""
TAKE_TERMS = sorted(set(FOR_GAUSSIANS) - set(DRAWS_ALONE))


def model(x: Tensor) -> None:
    """z ~ N(0, 1), x ~ N(z, 1): log p(x) = log N(x; 0, 2), posterior N(x/2, 1/2)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def posterior(term: str) -> Callable[[Tensor], None]:
    """The exact posterior as a Delta of a standard normal draw, its log|du/dz| as a term of one
    kind or another.
    """

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            log_slope = torch.full_like(u, -math.log(HALF))
            density = log_slope if term == "delta" else torch.zeros_like(u)
            pyro.sample("z", dist.Delta(x.to(u) / 2 + HALF * u, log_density=density))
            if term == "factor":
                pyro.factor("jacobian", log_slope, has_rsample=True)
            if term == "observed":  # log N(0; 0, σ) = log_slope
                scale = (-log_slope).exp() / math.sqrt(2 * math.pi)
                pyro.sample("jacobian", dist.Normal(0.0, scale), obs=torch.zeros_like(u))

    return guide


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("name", TAKE_TERMS)
def test_exact_posterior_reaches_log_px(name: str, term: str) -> None:
    x = X.double()
    expected = -dist.Normal(0.0, math.sqrt(2)).log_prob(x).sum().item()
    assert expected == pytest.approx(EXACT, abs=1e-3)
    objective = OBJECTIVES[name](num_particles=4)
    if name in ("analytic-kl", "beta-elbo"):  # log q and log p at the same draws, so exact too
        assert objective.loss(model, posterior(term), x) == pytest.approx(expected, rel=1e-12)
    assert objective.loss(model, posterior(term), x) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("name", sorted(DRAWS_ALONE))
def test_objectives_of_draws_alone_refuse_terms(name: str, term: str) -> None:
    with pytest.raises(ProgramError, match=rf"site '\w+' {DRAWS_ALONE[name]}"):
        OBJECTIVES[name](num_particles=4).loss(model, posterior(term), X.double())


@pytest.mark.parametrize("term", TERMS)
def test_evaluation_counts_the_terms(term: str) -> None:
    x = X.double()
    weights = log_weights(model, posterior(term), x, num_particles=5)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
    torch.testing.assert_close(weights.log_weight, exact.expand(5, 3), rtol=1e-12, atol=1e-12)
    estimate = log_likelihood(model, posterior(term), x, num_particles=50, seed=0)
    torch.testing.assert_close(estimate.log_px, exact, rtol=1e-12, atol=1e-12)


def moving(m: Tensor, log_s: Tensor) -> Callable[[Tensor], None]:
    """u ~ N(0, 1), z = m + s u, factor −log s."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample(
                "u", dist.Normal(torch.zeros(len(x)), 1.0), infer={"is_auxiliary": True}
            )
            pyro.sample("z", dist.Delta(m + log_s.exp() * u))
            pyro.factor("jacobian", -log_s.expand(len(x)), has_rsample=True)

    return guide


@pytest.mark.parametrize(
    "name", ["trace-elbo", "stl", "iwae", "iwae-stl", "piwae", "analytic-kl", "beta-elbo"]
)
def test_gradient_of_a_delta_that_moves(name: str) -> None:
    """log w_k = log p(x, z_k) + ½u_k² + log s: ∂/∂m = x − 2z, ∂/∂log s = (x − 2z) s u + 1, averaged
    by c_k.
    """
    x = X.double()
    m, log_s = torch.tensor(0.3, requires_grad=True), torch.tensor(-0.4, requires_grad=True)
    pyro.set_rng_seed(1)
    OBJECTIVES[name](num_particles=4).loss_and_grads(model, moving(m, log_s), x)
    pyro.set_rng_seed(1)
    u, s = torch.randn(4, 3), math.exp(-0.4)
    z = 0.3 + s * u
    log_w = (
        dist.Normal(0.0, 1.0).log_prob(z)
        + dist.Normal(z, 1.0).log_prob(x)
        - dist.Normal(0.0, 1.0).log_prob(u)
        - 0.4
    )
    if name == "piwae":
        c = log_w.unflatten(0, (2, 2)).softmax(1).flatten(0, 1) / 2
    else:
        c = log_w.softmax(0) if "iwae" in name else torch.full((4, 3), 0.25)
    assert m.grad is not None
    assert log_s.grad is not None
    assert -m.grad.item() == pytest.approx((c * (x - 2 * z)).sum().item(), rel=1e-10)
    assert -log_s.grad.item() == pytest.approx(
        (c * ((x - 2 * z) * s * u + 1)).sum().item(), rel=1e-10
    )


@pytest.mark.parametrize("name", FOLLOWS_DRAWS)
def test_a_delta_that_moves_is_refused(name: str) -> None:
    m, log_s = torch.tensor(0.3, requires_grad=True), torch.tensor(-0.4, requires_grad=True)
    with pytest.raises(
        ProgramError,
        match="its site 'z' is a Delta, which has none, and its value depends on parameters",
    ):
        OBJECTIVES[name](num_particles=4).loss(model, moving(m, log_s), X.double())


def with_factor(m: Tensor, a: Tensor, b: Tensor, kind: str) -> Callable[[Tensor], None]:
    """z ~ N(m, 1) and a term a z + b in log q, by a factor or by an observed site."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(m.expand(len(x)), 1.0))
            if kind == "factor":
                pyro.factor("extra", a * z + b, has_rsample=True)
            else:
                pyro.sample("extra", dist.Exponential((a * z + b).exp()), obs=torch.zeros_like(z))

    return guide


def parts(num_particles: int, m: float, a: float, b: float) -> tuple[Tensor, Tensor, Tensor]:
    pyro.set_rng_seed(2)
    z = m + torch.randn(num_particles, 3)
    normal, x = dist.Normal(0.0, 1.0), X.double()
    log_w = normal.log_prob(z) + normal.log_prob(x - z) - normal.log_prob(z - m) - (a * z + b)
    return z, log_w, x - 2 * z + (z - m) - a


@pytest.mark.parametrize("kind", ["factor", "observed"])
@pytest.mark.parametrize(
    "name", ["trace-elbo", "stl", "iwae", "iwae-stl", "dreg", "score", "vimco", "analytic-kl"]
)
def test_gradient_of_a_factor(name: str, kind: str) -> None:
    """The term is differentiated whole with c_k; through the draws with the coefficient of the
    path.
    """
    m, a, b = (torch.tensor(v, requires_grad=True) for v in (0.3, 0.5, -0.2))
    guide = with_factor(m, a, b, kind)
    pyro.set_rng_seed(2)
    objective = OBJECTIVES[name](num_particles=4)
    if name in ("score", "vimco"):
        objective.bound(model, guide, X.double())  # finds out once how the draws carry gradients
    pyro.set_rng_seed(2)
    objective.loss_and_grads(model, guide, X.double())
    z, log_w, path = parts(4, 0.3, 0.5, -0.2)
    c = (
        log_w.softmax(0)
        if name in ("iwae", "iwae-stl", "dreg", "vimco")
        else torch.full((4, 3), 0.25)
    )
    score = z - 0.3
    if name in ("trace-elbo", "iwae"):
        expected = (
            c * path
        ).sum()  # the score of a location is minus the derivative through z: P − s
        expected = (c * (path - score)).sum()
    elif name == "analytic-kl":  # KL(N(m, 1) ‖ N(0, 1)) = m²/2: its derivative is m
        expected = (c * (X.double() - z - 0.5)).sum() - 3 * 0.3
    elif name in ("stl", "iwae-stl"):
        expected = (c * path).sum()
    elif name == "dreg":
        expected = (c**2 * path).sum()
    else:
        others = (log_w.sum(0) - log_w) / 3
        value = log_w.mean(0) if name == "score" else log_w.logsumexp(0) - math.log(4)
        if name == "score":
            without = others
        else:
            filled = [
                torch.cat([log_w[:k], others[k : k + 1], log_w[k + 1 :]]).logsumexp(0) - math.log(4)
                for k in range(4)
            ]
            without = torch.stack(filled)
        # Σ_k s_k / K has mean 0, and the score of the ELBO leaves it out.
        own = torch.zeros_like(c) if name == "score" else c
        expected = ((value - without - own) * score).sum()
    assert m.grad is not None
    assert a.grad is not None
    assert b.grad is not None
    assert -m.grad.item() == pytest.approx(expected.item(), rel=1e-9)
    assert -a.grad.item() == pytest.approx(-(c * z).sum().item(), rel=1e-9)
    assert -b.grad.item() == pytest.approx(-c.sum().item(), rel=1e-9)


@pytest.mark.parametrize(
    "bound",
    [BOUNDS.parse(name, num_particles=3) for name in ("iwae", "renyi", "ciwae", "jvi")],
    ids=str,
)
def test_doubly_reparameterized_with_a_factor_is_unbiased(bound: Any) -> None:
    """The mean φ-gradient is that of the pathwise estimator, of a whole that it does not compute
    term by term.
    """
    size = 40_000

    def gradient(estimator: Objective) -> Tensor:
        m, a = (
            torch.full((size,), 0.3, requires_grad=True),
            torch.full((size,), 0.5, requires_grad=True),
        )

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(m, 1.0))
                pyro.factor("extra", a * z.square() / 4, has_rsample=True)

        pyro.set_rng_seed(0)
        estimator.loss_and_grads(model, guide, torch.ones(size))
        return torch.stack([m.grad, a.grad])  # type: ignore[list-item]

    difference = gradient(Objective(bound, DoublyReparameterized())) - gradient(Objective(bound))
    assert (difference.mean(1).abs() < 4.5 * difference.std(1) / math.sqrt(size) + 1e-12).all()


@pytest.mark.parametrize("name", ["rws", "rws-dreg"])
@pytest.mark.parametrize("kind", ["factor", "observed"])
def test_wake_sleep_refuses_terms_that_depend_on_phi(name: str, kind: str) -> None:
    m, a, b = (torch.tensor(v, requires_grad=True) for v in (0.3, 0.5, -0.2))
    objective = OBJECTIVES[name](num_particles=4)
    with pytest.raises(
        ProgramError,
        match="the guide's site 'extra' is no draw, and its log-density depends on parameters",
    ):
        objective.loss(model, with_factor(m, a, b, kind), X.double())
    loss = objective.loss(model, with_factor(m, a.detach(), b.detach(), kind), X.double())
    pyro.set_rng_seed(2)
    assert objective.loss(model, with_factor(m, a.detach(), b.detach(), kind), X.double()) != loss
    _, log_w, _ = parts(4, 0.3, 0.5, -0.2)
    pyro.set_rng_seed(2)
    found = objective.loss(model, with_factor(m, a.detach(), b.detach(), kind), X.double())
    assert -found == pytest.approx((log_w.logsumexp(0) - math.log(4)).sum().item(), rel=1e-12)


@pytest.mark.parametrize("term", ["classifier"])
def test_a_classifier_in_the_guide_learns(term: str) -> None:
    """scANVI's classification loss, a factor −α log q(y|x) in the guide: ∂ of the bound is α ∂ log
    q(y|x).
    """
    logit = torch.tensor(0.2, requires_grad=True)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, HALF))
            pyro.factor(
                term,
                -3.0 * dist.Bernoulli(logits=logit).log_prob(torch.ones(len(x))),
                has_rsample=False,
            )

    for name in ("trace-elbo", "iwae", "dreg", "vimco"):
        logit.grad = None
        OBJECTIVES[name](num_particles=4).loss_and_grads(model, guide, X.double())
        assert logit.grad is not None
        assert -logit.grad.item() == pytest.approx(
            3 * 3.0 * (1 - torch.tensor(0.2).sigmoid().item()), rel=1e-10
        )


# Guides whose Deltas are functions of their draws alone.


def positive(x: Tensor) -> None:
    """z = e^v, v ~ N(0, 1), x ~ N(log z, 1): the same as above, with a positive latent."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.LogNormal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z.log(), 1.0), obs=x)


def automatic(x: Tensor, loc: Tensor, scale: Tensor) -> Any:
    guide = AutoNormal(positive)
    guide(x)
    guide.locs.z.data.copy_(loc)
    guide.scales.z = scale
    return guide


@pytest.mark.parametrize("name", TAKE_TERMS)
def test_autonormal_of_local_latents(name: str) -> None:
    """At the posterior's parameters every bound is log p(x)."""
    x = X.double()
    guide = automatic(x, x / 2, torch.full((3,), HALF))
    loss = OBJECTIVES[name](num_particles=4).loss(positive, guide, x)
    assert loss == pytest.approx(-dist.Normal(0.0, math.sqrt(2)).log_prob(x).sum().item(), rel=1e-9)


@pytest.mark.parametrize("name", ["dreg", "rws", "vimco", "score", "stl", "rws-dreg", "tvo"])
def test_autonormal_has_the_gradient_of_the_draws(name: str) -> None:
    """The same gradient as a LogNormal guide, whose draws are z itself."""
    x, gradients = X.double(), []
    auto = automatic(x, torch.tensor([0.1, 0.2, 0.3]), torch.full((3,), 0.8))
    loc = torch.tensor([0.1, 0.2, 0.3], requires_grad=True)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(loc, 0.8))

    for program, parameter in (
        (auto, auto.locs.z_unconstrained if hasattr(auto.locs, "z_unconstrained") else auto.locs.z),
        (guide, loc),
    ):
        objective = OBJECTIVES[name](num_particles=4)
        objective.loss(positive, program, x)
        pyro.set_rng_seed(5)
        objective.loss_and_grads(positive, program, x)
        gradients.append(parameter.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-10)
    assert gradients[1] is not None
    assert gradients[1].abs().max() > 1e-4


def easy(x: Tensor) -> Any:
    @easy_guide(positive)
    def guide(self: Any, x: Tensor) -> None:
        group = self.group(match="z")
        with self.plate("data", len(x)):
            group.sample("packed", dist.Normal((x / 2).unsqueeze(-1), HALF).to_event(1))

    guide(x)
    return guide


def test_easyguide_is_a_proposal() -> None:
    x = X.double()
    guide = easy(x)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
    for name in ("iwae", "vimco", "rws", "dreg"):
        assert -OBJECTIVES[name](num_particles=3).loss(positive, guide, x) == pytest.approx(
            exact.sum().item(), rel=1e-9
        )
    one = x[:1]
    estimate = log_likelihood(positive, easy(one), one, num_particles=20, seed=0)
    torch.testing.assert_close(estimate.log_px, exact[:1], rtol=1e-9, atol=1e-9)
    again = automatic(one, one / 2, torch.full((1,), HALF))
    torch.testing.assert_close(
        log_likelihood(positive, again, one, num_particles=20, seed=0).log_px, exact[:1]
    )


def test_a_delta_of_no_draw_is_no_proposal() -> None:
    def point(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(x / 2))

    with pytest.raises(
        UndefinedLikelihoodError,
        match="its site 'z' is a Delta, which has no density as a proposal",
    ):
        log_likelihood(model, point, X.double(), num_particles=10)


# Programs at the edge.


@pytest.mark.parametrize("name", sorted(FOR_GAUSSIANS))
def test_empty_programs(name: str) -> None:
    def nothing(x: Tensor) -> None:
        pass

    if name == "dais":  # without latent sites there is nothing to anneal
        with pytest.raises(ProgramError, match="the program has no latent site"):
            OBJECTIVES[name](num_particles=4).loss(nothing, nothing, X)
        return
    assert OBJECTIVES[name](num_particles=4).loss_and_grads(nothing, nothing, X) == pytest.approx(
        0.0, abs=1e-14
    )


@pytest.mark.parametrize("name", ["analytic-kl", "beta-elbo", "trace-elbo"])
def test_no_observed_site(name: str) -> None:
    """−KL(N(m, 1) ‖ N(0, 1)) = −m²/2."""
    m = torch.tensor(0.6, requires_grad=True)

    def prior() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide() -> None:
        pyro.sample("z", dist.Normal(m, 1.0))

    loss = OBJECTIVES[name]().loss_and_grads(prior, guide)
    assert m.grad is not None
    if name != "trace-elbo":
        assert loss == pytest.approx(0.18, rel=1e-12)
        assert m.grad.item() == pytest.approx(0.6, rel=1e-12)
    else:
        assert math.isfinite(loss)


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize(
    "gradient", [StickingTheLanding(), DoublyReparameterized()], ids=lambda g: type(g).__name__
)
def test_a_scalar_site_in_no_plate(gradient: Any, num_particles: int) -> None:
    """z ~ N(0, 1), x ~ N(z, 1), x = 1, q = N(m, 1): ∂/∂m by the path is (1 − 2z) + (z − m)."""
    m = torch.tensor(0.3, requires_grad=True)

    def program() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        pyro.sample("z", dist.Normal(m, 1.0))

    pyro.set_rng_seed(3)
    Objective(ELBO(num_particles), gradient).loss_and_grads(program, guide)
    pyro.set_rng_seed(3)
    z = 0.3 + torch.randn(num_particles)
    assert m.grad is not None
    assert -m.grad.item() == pytest.approx((1 - 2 * z + z - 0.3).mean().item(), rel=1e-12)


def test_rws_dreg_of_a_scalar_site_at_one_particle() -> None:
    """ŵ − ŵ² = 0 at K = 1."""
    m = torch.tensor(0.3, requires_grad=True)

    def guide() -> None:
        pyro.sample("z", dist.Normal(m, 1.0))

    def program() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    OBJECTIVES["rws-dreg"](num_particles=1).loss_and_grads(program, guide)
    assert m.grad is not None
    assert m.grad.item() == 0


def test_a_flow_without_an_inverse() -> None:
    """Pyro caches the inverse of the last draw: pathwise objectives take it, the others say that
    they cannot.
    """
    pyro.set_rng_seed(0)
    flow = dist.transforms.Planar(2)

    def plain(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("flow", flow)
        base = dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    x = X.double()
    flow.double()
    pyro.set_rng_seed(1)
    ours = TraceELBO().loss(plain, guide, x)
    pyro.set_rng_seed(1)
    assert ours == pytest.approx(Trace_ELBO().loss(plain, guide, x), rel=1e-12)
    estimate = log_likelihood(plain, guide, x, num_particles=4000, seed=0)
    exact = dist.Normal(0.0, math.sqrt(3)).log_prob(x)
    assert ((estimate.log_px - exact).abs() < 5 * estimate.se).all()
    for name in ("stl", "dreg", "rws", "vimco"):
        with pytest.raises(ProgramError, match="site 'z' has a transform without an inverse"):
            OBJECTIVES[name](num_particles=2).loss(plain, guide, x)


# Inside Pyro's SVI.


@pytest.mark.parametrize("name", sorted(FOR_GAUSSIANS))
def test_losses_are_numbers(name: str) -> None:
    m = torch.tensor(0.3, requires_grad=True)

    def guide(x: Tensor) -> None:
        location = pyro.param("m", m.detach().clone())
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(location.expand(len(x)), 1.0))

    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.01}), OBJECTIVES[name](num_particles=4))
    assert type(svi.loss(model, guide, X.double())) is float
    assert type(svi.loss_and_grads(model, guide, X.double())) is float
    assert math.isfinite(svi.step(X.double()))
    assert math.isfinite(svi.evaluate_loss(X.double()))
    tensor = OBJECTIVES[name](num_particles=4).differentiable_loss(model, guide, X.double())
    assert isinstance(tensor, Tensor)
    assert tensor.requires_grad


def test_a_loss_that_is_nan_warns_as_pyros() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))
            pyro.factor("nan", torch.full((len(x),), math.nan), has_rsample=True)

    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="Encountered NaN: loss"):
        assert math.isnan(TraceELBO().loss(model, guide, X.double()))


def test_a_scale_on_the_guide_under_doubly_reparameterized_and_score() -> None:
    """With β log q in the weight the mean gradient is still that of the pathwise estimator."""
    size = 60_000

    def tempered(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with pyro.poutine.scale(scale=0.4):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def gradient(objective: Objective) -> Tensor:
        m = torch.full((size,), 0.1, requires_grad=True)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)), pyro.poutine.scale(scale=0.4):
                pyro.sample("z", dist.Normal(m, 1.0))

        pyro.set_rng_seed(0)
        objective.loss_and_grads(tempered, guide, torch.full((size,), 1.5))
        assert m.grad is not None
        return m.grad

    path = gradient(Objective(IWAE(3)))
    for estimator in (DoublyReparameterized(), Score()):
        difference = gradient(Objective(IWAE(3), estimator)) - path
        assert difference.mean().abs() < 4.5 * difference.std() / math.sqrt(size)
