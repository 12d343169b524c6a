"""The objectives: equal to Pyro where Pyro is right, right where it is not, on any Pyro program."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions.transforms import AffineTransform
from torch.fx.experimental.proxy_tensor import make_fx

from pyroae import zoo
from pyroae._names import NAMES
from pyroae.autoencoder import announce_parameters
from pyroae.errors import ConfigError, ProgramError
from pyroae.objectives import OBJECTIVES, AnalyticKL, Objective, TraceELBO, named
from pyroae.objectives.scores import moves_support
from tests.covering import sampled, way_of
from tests.systems import (
    DISCRETE,
    FOR_BINARY,
    FOR_DISCRETE,
    FOR_GAUSSIANS,
    FOR_MIXTURES,
    PROPER,
    SYSTEMS,
    D,
    suited_to,
    system_and_data,
)

PYRO = {"trace-elbo": Trace_ELBO, "analytic-kl": TraceMeanField_ELBO}
float64 = pytest.mark.usefixtures("float64")


def gradients(module: torch.nn.Module) -> Tensor:
    return torch.cat(
        [
            torch.zeros(p.numel()) if p.grad is None else p.grad.flatten()
            for p in module.parameters()
        ]
    )


def run(
    objective: Any, module: torch.nn.Module, model: Any, guide: Any, *args: Any
) -> tuple[float, Tensor]:
    pyro.set_rng_seed(3)
    module.zero_grad()
    loss = float(objective.loss_and_grads(model, guide, *args))
    return loss, gradients(module)


@float64
@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize("objective", list(PYRO))
@pytest.mark.parametrize("name", list(SYSTEMS))
def test_equals_pyro(name: str, objective: str, num_particles: int) -> None:
    system, x = system_and_data(name)
    nesting = 1 if num_particles == 1 else 2
    pyros = PYRO[objective](
        num_particles=num_particles, vectorize_particles=True, max_plate_nesting=nesting
    )
    ours = OBJECTIVES[objective](num_particles=num_particles)
    loss, gradient = run(ours, system, system.model, system.guide, x)
    expected_loss, expected = run(pyros, system, system.model, system.guide, x)
    assert expected.abs().max() > 1e-3
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "objective"),
    sampled(
        [
            *((n, o) for n in SYSTEMS for o in PYRO),
            *((n, o) for n in PROPER for o in FOR_GAUSSIANS if o not in PYRO),
            *((n, o) for n in DISCRETE for o in FOR_DISCRETE),
            *(("discrete-vae", o) for o in FOR_BINARY),
            *(("vae-mixture", o) for o in FOR_MIXTURES),
        ]
    ),
)
def test_a_gradient_reaches_every_parameter(name: str, objective: str) -> None:
    system, x = system_and_data(name)
    OBJECTIVES[objective](num_particles=4).loss_and_grads(system.model, system.guide, x)
    for parameter_name, parameter in system.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("objective", NAMES["objective"])
def test_every_objective_is_named_in_one_module(objective: str) -> None:
    make = getattr(named, objective.replace("-", "_"))
    assert make is OBJECTIVES[objective]
    assert make(num_particles=4).num_particles == 4


@float64
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_three_paths_are_one(objective: str) -> None:
    """SVI's loss_and_grads, the differentiable loss, and the bound itself."""
    system, x = system_and_data(suited_to(objective))
    estimator = OBJECTIVES[objective](num_particles=4)
    loss, gradient = run(estimator, system, system.model, system.guide, x)
    pyro.set_rng_seed(3)
    system.zero_grad()
    differentiable = estimator(system.model, system.guide)(x)
    differentiable.backward()
    assert differentiable.item() == pytest.approx(loss, rel=1e-14)
    torch.testing.assert_close(gradients(system), gradient, rtol=0, atol=0)
    pyro.set_rng_seed(3)
    estimator.next_step()
    assert -estimator.bound(system.model, system.guide, x).value.item() == pytest.approx(
        loss, rel=1e-14
    )
    pyro.set_rng_seed(3)
    assert SVI(system.model, system.guide, pyro.optim.SGD({"lr": 0.0}), estimator).step(
        x
    ) == pytest.approx(loss, rel=1e-14)


@float64
def test_a_scale_on_the_model_alone() -> None:
    """β on z in the model only: E[β log p(z) − log q(z)], which Pyro's mean-field ELBO ignores."""
    system, x = system_and_data("vae")
    beta = 3.0

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", system.p_z())
            pyro.sample("x", system.p_x(z), obs=x)

    with torch.no_grad():
        mean, log_variance = system.encoder(x).chunk(2, -1)
        variance = log_variance.exp()
        cross_entropy = 0.5 * (mean.square() + variance + torch.tensor(2 * torch.pi).log()).sum()
        entropy = 0.5 * (log_variance + 1 + torch.tensor(2 * torch.pi).log()).sum()
        pyro.set_rng_seed(3)
        z = mean + variance.sqrt() * torch.randn_like(mean)
        expected = -system.p_x(z).log_prob(x).sum() + beta * cross_entropy - entropy
    loss, _ = run(AnalyticKL(), system, model, system.guide, x)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    ignored, _ = run(TraceMeanField_ELBO(), system, model, system.guide, x)
    assert abs(ignored - loss) > 1  # the fault, as it stands in Pyro
    draws = TraceELBO(num_particles=40_000)
    sampled = draws.loss(model, system.guide, x)
    assert sampled == pytest.approx(
        AnalyticKL(num_particles=40_000).loss(model, system.guide, x), rel=2e-3
    )


# Any Pyro program.

DATA = torch.tensor([[0.3, -1.2], [2.0, 0.1], [-0.5, 0.4], [1.1, 1.3]])


def hierarchical(size: int | None = None) -> tuple[Any, Any, torch.nn.ParameterDict]:
    """A global scale, two local latents one of which lies in a plate nested in the data plate,
    subsampling.
    """
    q = torch.nn.ParameterDict(
        {n: torch.tensor(v) for n, v in (("g", 0.3), ("a", 0.2), ("b", -0.4), ("s", 0.7))}
    )
    shift = q["b"]

    def plate(x: Tensor) -> Any:
        return pyro.plate("data", size or len(x), subsample=torch.arange(len(x)), dim=-2)

    def model(x: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 2.0))
        with plate(x):
            a = pyro.sample("a", dist.Normal(level, 1.0))
            with pyro.plate("features", 2, dim=-1):
                b = pyro.sample("b", dist.Normal(a, 0.5))
                pyro.sample("x", dist.Normal(b, 0.8), obs=x)

    def guide(x: Tensor) -> None:
        announce_parameters("q", q)
        pyro.sample("level", dist.Normal(q["g"], 0.5))
        with plate(x):
            a = pyro.sample("a", dist.Normal(q["a"] * x.mean(1, keepdim=True), q["s"].exp()))
            with pyro.plate("features", 2, dim=-1):
                pyro.sample("b", dist.Normal(0.5 * a + shift + 0.1 * x, 0.6))

    return model, guide, q


@float64
@pytest.mark.parametrize("size", [None, 40])
@pytest.mark.parametrize("objective", list(PYRO))
def test_hierarchical_program_equals_pyro(objective: str, size: int | None) -> None:
    model, guide, q = hierarchical(size)
    for num_particles, nesting in ((1, 2), (5, 3)):
        pyros = PYRO[objective](
            num_particles=num_particles, vectorize_particles=True, max_plate_nesting=nesting
        )
        loss, gradient = run(OBJECTIVES[objective](num_particles), q, model, guide, DATA.double())
        expected_loss, expected = run(pyros, q, model, guide, DATA.double())
        assert loss == pytest.approx(expected_loss, rel=1e-12)
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


@float64
@pytest.mark.parametrize("objective", list(PYRO))
def test_masks_and_scales_equal_pyro(objective: str) -> None:
    system, x = system_and_data("vae")
    keep = torch.tensor([True, False, True, True, False, True])

    def masked(program: Any) -> Any:
        return poutine.scale(poutine.mask(program, mask=keep), scale=0.25)

    loss, gradient = run(
        OBJECTIVES[objective](), system, masked(system.model), masked(system.guide), x
    )
    expected_loss, expected = run(
        PYRO[objective](), system, masked(system.model), masked(system.guide), x
    )
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


@float64
def test_order_of_sites_decides_whether_the_closed_form_is_right() -> None:
    """z2 given z1 in the model, z1 given z2 in the guide: the closed form does not apply, the draws
    do.
    """

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            one = pyro.sample("one", dist.Normal(0.0, 1.0))
            two = pyro.sample("two", dist.Normal(one, 1.0))
            pyro.sample("x", dist.Normal(two, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            two = pyro.sample("two", dist.Normal(0.4 * x, 0.7))
            pyro.sample("one", dist.Normal(0.5 * two, 0.7))

    x = DATA[:, 0].double()
    pyro.set_rng_seed(0)
    sampled = TraceELBO(num_particles=3).loss(model, guide, x)
    pyro.set_rng_seed(0)
    assert AnalyticKL(num_particles=3).loss(model, guide, x) == pytest.approx(sampled, rel=1e-12)


@float64
def test_a_program_without_a_plate_is_one_datum() -> None:
    """z ~ N(0, 1), x ~ N(z, 1) at x = 1 with q = N(.5, 2/3): L1 = −1.538338 (REFERENCES, item
    3).
    """

    def model() -> None:
        pyro.sample(
            "x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=torch.tensor(1.0)
        )

    def guide() -> None:
        pyro.sample("z", dist.Normal(0.5, (2 / 3) ** 0.5))

    weights = torch.tensor([-TraceELBO(num_particles=20_000).loss(model, guide) for _ in range(10)])
    assert weights.mean().item() == pytest.approx(-1.538338, abs=4e-3)
    assert AnalyticKL(50_000).loss(model, guide) == pytest.approx(1.538338, abs=1e-2)


def test_no_host_synchronization(monkeypatch: pytest.MonkeyPatch) -> None:
    systems = {suited_to(name): system_and_data(suited_to(name)) for name in OBJECTIVES}

    def refuse(*_: Any) -> None:
        raise AssertionError("a host synchronization on the gradient path")

    with pyro.validation_enabled(False), monkeypatch.context() as patch:
        for name in ("item", "__bool__", "__float__", "tolist", "__int__"):
            patch.setattr(Tensor, name, refuse)
        for name in OBJECTIVES:
            system, x = systems[suited_to(name)]
            objective = OBJECTIVES[name]
            objective().bound(system.model, system.guide, x).surrogate.backward()
        with pytest.raises(
            AssertionError, match="synchronization"
        ):  # Pyro's own: the check can fail
            Trace_ELBO().loss_and_grads(system.model, system.guide, x)


OF_EACH_WAY = {way_of(name): name for name in OBJECTIVES}.values()


@pytest.mark.parametrize(
    "objective",
    [n if n in OF_EACH_WAY else pytest.param(n, marks=pytest.mark.slow) for n in OBJECTIVES],
)
def test_traces_into_one_graph(objective: str) -> None:
    system, x = system_and_data(suited_to(objective))
    estimator = OBJECTIVES[objective](num_particles=4)
    parameters = dict(system.named_parameters())

    def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
        with pyro.validation_enabled(False):
            bound = torch.func.functional_call(
                _Bound(system, estimator), {f"system.{k}": v for k, v in values.items()}, (x,)
            )
        return bound

    estimator.bound(system.model, system.guide, x)
    graph = make_fx(loss)(parameters, x)
    pyro.set_rng_seed(5)
    traced = graph(parameters, x)
    pyro.set_rng_seed(5)
    eager = -estimator.bound(system.model, system.guide, x).value
    assert traced.item() == pytest.approx(eager.item(), rel=1e-6)


class _Bound(torch.nn.Module):
    def __init__(self, system: Any, estimator: Objective) -> None:
        super().__init__()
        self.system, self.estimator = system, estimator

    def forward(self, x: Tensor) -> Tensor:
        value, surrogate = self.estimator.bound(self.system.model, self.system.guide, x)
        return -(surrogate + (value - surrogate).detach())


# Refusals, each naming the site.


def bernoulli_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(torch.full((len(x), 3), 0.5)).to_event(1))


@pytest.mark.parametrize("objective", list(PYRO))
def test_refusals(objective: str) -> None:
    system, x = system_and_data("vae")
    estimator = OBJECTIVES[objective]()
    with pytest.raises(
        ProgramError,
        match=r"'z' is continuous in the model \(Normal\) and discrete in the guide \(Bern",
    ):
        estimator.loss(system.model, bernoulli_guide, x)
    with pytest.raises(ProgramError, match="latent site 'z' has no counterpart in the guide"):
        estimator.loss(system.model, lambda x: None, x)
    other = zoo.vae(D, 5)
    with pytest.raises(
        ProgramError, match=r"'z' has the event shape \(3,\) in the model and \(5,\) in the guide"
    ):
        estimator.loss(system.model, other.guide, x)

    def extra(x: Tensor) -> None:
        system.guide(x)
        pyro.sample("u", dist.Normal(0.0, 1.0))

    with pytest.raises(ProgramError, match="guide's site 'u' is no latent site of the model"):
        estimator.loss(system.model, extra, x)


@pytest.mark.parametrize("objective", sorted(set(FOR_GAUSSIANS) - set(FOR_DISCRETE)))
def test_pathwise_estimators_refuse_discrete_sites(objective: str) -> None:
    system, x = system_and_data("discrete-vae")
    with pytest.raises(
        ProgramError,
        match=r"site 'z' \(Bernoulli\) has none: use trace-elbo, iwae, vimco, rws, score or tvo",
    ):
        OBJECTIVES[objective](num_particles=4).loss_and_grads(system.model, system.guide, x)


@pytest.mark.parametrize("num_particles", [0, -1, 2.5, "3"])
def test_number_of_particles(num_particles: Any) -> None:
    with pytest.raises(ConfigError, match="num_particles must be a whole number of at least 1"):
        TraceELBO(num_particles)


@pytest.mark.usefixtures("float64")
def test_a_site_that_is_masked_whole_has_no_divergence() -> None:
    """−log N(x; z, 1) alone, its gradient for the location −(x − z)."""
    location = torch.nn.Parameter(torch.tensor(0.3))

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0).mask(False))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))

    pyro.set_rng_seed(1)
    z = 0.3 + 0.5 * torch.randn(()).item()
    pyro.set_rng_seed(1)
    loss = AnalyticKL().differentiable_loss(
        model, lambda: pyro.sample("z", dist.Normal(location, 0.5).mask(False))
    )
    assert loss.item() == pytest.approx(0.5 * math.log(2 * math.pi) + 0.5 * (2 - z) ** 2, rel=1e-12)
    assert torch.autograd.grad(loss, location)[0].item() == pytest.approx(z - 2, rel=1e-12)


def moving(end: Tensor, kind: str) -> Any:
    """Uniform(0, end), in one form or another, and distributions like it whose support stays."""
    unit, positive = dist.Uniform(torch.zeros(()), torch.ones(())), dist.Exponential(1.0)
    return {
        "uniform": lambda: dist.Uniform(torch.zeros(()), end),
        "independent": lambda: dist.Uniform(torch.zeros(1), end.expand(1)).to_event(1),
        "affine": lambda: dist.TransformedDistribution(unit, [AffineTransform(0.0, end)]),
        "shifted": lambda: dist.TransformedDistribution(positive, [AffineTransform(end, 1.0)]),
        "pareto": lambda: dist.Pareto(end, 3.0),
        "scaled": lambda: dist.TransformedDistribution(positive, [AffineTransform(0.0, end)]),
        "weibull": lambda: dist.Weibull(end, 2.0),
        "gumbel": lambda: dist.Gumbel(end, 1.0),
        "log-normal": lambda: dist.LogNormal(end, 1.0),
        "gamma": lambda: dist.Gamma(end, end),
    }[kind]()


@pytest.mark.parametrize("kind", ["uniform", "independent", "affine", "shifted", "pareto"])
def test_a_support_that_depends_on_parameters_has_no_score_of_mean_0(kind: str) -> None:
    """Pathwise gradients are right: of E_q[−z²/2 − log q] = −φ²/6 + log φ for z ~ U(0, φ), −φ/3 +
    1/φ.
    """
    end = torch.tensor(1.5, requires_grad=True)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", moving(end, kind))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            event = 1 if kind == "independent" else 0
            z = pyro.sample("z", dist.Normal(torch.zeros([1] * event), 1.0).to_event(event))
            pyro.sample("x", dist.Normal(0.0 * z.sum(-1) if event else 0.0 * z, 1.0), obs=x)

    x = torch.zeros(40_000)
    for name in ("stl", "dreg", "rws", "vimco", "score", "tvo", "rws-dreg", "iwae-stl"):
        with pytest.raises(
            ProgramError, match=r"where the support depends on parameters, as at the site 'z'"
        ):
            OBJECTIVES[name](num_particles=4).bound(model, guide, x[:2])
    for name in ("trace-elbo", "piwae", "iwae", "renyi"):
        surrogate = OBJECTIVES[name](num_particles=4).bound(model, guide, x).surrogate
        (gradient,) = torch.autograd.grad(surrogate, end)
        assert gradient.isfinite()
        if kind in ("uniform", "independent", "affine") and name == "trace-elbo":
            assert gradient.item() / len(x) == pytest.approx(-1.5 / 3 + 1 / 1.5, abs=0.01)


@pytest.mark.parametrize("kind", ["scaled", "weibull", "gumbel", "log-normal", "gamma"])
def test_a_support_that_stays_is_accepted(kind: str) -> None:
    assert not moves_support(moving(torch.tensor(1.5, requires_grad=True), kind))
