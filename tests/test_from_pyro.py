"""What a user of Pyro writes in pyroae instead: each row of docs/from-pyro.md, by its numbers."""

import math
import re
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    EnergyDistance,
    Importance,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTMC_ELBO,
    config_enumerate,
)
from pyro.infer.importance import psis_diagnostic, vectorized_importance_weights
from torch import Tensor, nn

import pyroae
from pyroae.objectives import (
    ELBO,
    IWAE,
    OBJECTIVES,
    AnalyticKL,
    Objective,
    Score,
    TraceELBO,
    WakeSleep,
)

pytestmark = pytest.mark.usefixtures("float64")
PAGE = Path(__file__).parents[1] / "docs" / "from-pyro.md"
X = (0.5, -1.0, 2.0, 0.3)
SEED = 3
JIT = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")  # deprecated by torch


class Pair(nn.Module):
    """z ~ N(0, 1), x ~ N(a + z, 1), and q(z|x) = N(w x, s²)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.1))
        self.w = nn.Parameter(torch.tensor(0.4))
        self.log_s = nn.Parameter(torch.tensor(-0.2))

    def model(self, x: Tensor) -> None:
        pyro.module("pair", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.a + z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("pair", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.w * x, self.log_s.exp()))


class Bits(nn.Module):
    """y ~ Bernoulli(½), x ~ N(2y, 1), and q(y|x) = Bernoulli(σ(w x))."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.7))

    def model(self, x: Tensor) -> None:
        pyro.module("bits", self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(2 * y, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("bits", self)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=self.w * x))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def data() -> Tensor:
    return torch.tensor(X)


def value_and_gradient(objective: Any, programs: Any, *args: Tensor) -> tuple[float, Tensor]:
    """The loss of a seed, and the gradient of all parameters."""
    programs.zero_grad()
    pyro.set_rng_seed(SEED)
    loss = float(objective.loss_and_grads(programs.model, programs.guide, *args))
    gradients = [torch.zeros(()) if p.grad is None else p.grad for p in programs.parameters()]
    return loss, torch.stack([g.sum() for g in gradients])


SAME: dict[str, tuple[type[nn.Module], Any, Any]] = {
    "Trace_ELBO": (
        Pair,
        Trace_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1),
        TraceELBO(5),
    ),
    "TraceMeanField_ELBO": (Pair, TraceMeanField_ELBO(), AnalyticKL()),
    "RenyiELBO": (
        Pair,
        RenyiELBO(alpha=0.3, num_particles=5, vectorize_particles=True, max_plate_nesting=1),
        OBJECTIVES["renyi"](num_particles=5, alpha=0.3),
    ),
    "RenyiELBO, IWAE": (
        Pair,
        RenyiELBO(alpha=0.0, num_particles=5, vectorize_particles=True, max_plate_nesting=1),
        OBJECTIVES["iwae"](num_particles=5),
    ),
    "TraceEnum_ELBO": (
        Bits,
        TraceEnum_ELBO(max_plate_nesting=1),
        OBJECTIVES["enumerate"](),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_value_and_gradient(name: str) -> None:
    make, pyros, ours = SAME[name]
    programs: Any = make()
    if name == "TraceEnum_ELBO":
        marked = config_enumerate(programs.guide, "parallel")
        loss = pyros.loss_and_grads(programs.model, marked, data())
        expected = float(loss), torch.stack([p.grad for p in programs.parameters()])
    else:
        expected = value_and_gradient(pyros, programs, data())
    found = value_and_gradient(ours, programs, data())
    assert found[0] == pytest.approx(expected[0], rel=1e-10)
    assert torch.allclose(found[1], expected[1], rtol=1e-8)
    assert found[1].abs().max() > 0.1


def test_marked_sites_are_summed_by_trace_elbo_and_others_drawn_without_a_warning() -> None:
    """The loss of a marked guide is that of TraceEnum_ELBO and the same for every seed."""
    bits = Bits()
    marked = config_enumerate(bits.guide, "parallel")
    expected = TraceEnum_ELBO(max_plate_nesting=1).loss(bits.model, marked, data())
    losses = [TraceELBO().loss(bits.model, marked, data()) for _ in range(2)]
    assert losses == pytest.approx([expected, expected], rel=1e-10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = {TraceELBO().loss(bits.model, bits.guide, data()) for _ in range(20)}
    assert len(drawn) > 1


def test_trace_graph_has_the_value_of_the_elbo_and_a_baseline_is_a_gradient() -> None:
    """One loss on the same draws; TraceGraph's and leave-one-out's gradients agree in the mean."""
    bits = Bits()
    pyro.set_rng_seed(SEED)
    expected = TraceGraph_ELBO().loss(bits.model, bits.guide, data())
    pyro.set_rng_seed(SEED)
    assert TraceELBO().loss(bits.model, bits.guide, data()) == pytest.approx(expected, rel=1e-10)
    exact = value_and_gradient(OBJECTIVES["enumerate"](), bits, data())[1]
    pyro.set_rng_seed(0)
    means = []
    for objective in (TraceGraph_ELBO(), Objective(ELBO(8), Score())):
        bits.zero_grad()
        draws = []
        for _ in range(100):
            bits.zero_grad()
            objective.loss_and_grads(bits.model, bits.guide, data())
            draws.append(bits.w.grad.item())  # type: ignore[union-attr]
        sample = torch.tensor(draws)
        assert abs(sample.mean() - exact[0]) < 4.5 * sample.std() / 10
        means.append(sample.std().item())
    assert means[1] < means[0]  # eight draws and a baseline


def test_reweighted_wake_sleep() -> None:
    """Pyro weights all data together, `joint=True` here; a bound of each datum is tighter."""
    pair = Pair()
    pyros = ReweightedWakeSleep(
        num_particles=6, vectorize_particles=True, max_plate_nesting=1, insomnia=1.0
    )
    pair.zero_grad()
    pyro.set_rng_seed(SEED)
    wake_theta, _ = pyros.loss_and_grads(pair.model, pair.guide, data())
    expected = torch.stack([p.grad for p in pair.parameters()])  # type: ignore[misc]
    together = Objective(IWAE(6), WakeSleep(), joint=True)
    loss, gradient = value_and_gradient(together, pair, data())
    assert loss == pytest.approx(float(wake_theta), rel=1e-10)
    assert torch.allclose(gradient, expected, rtol=1e-8)
    assert value_and_gradient(OBJECTIVES["rws"](num_particles=6), pair, data())[0] < loss


def test_tensor_monte_carlo_of_one_site_is_iwae() -> None:
    """TMC of one site with K draws is IWAE with K draws, in the mean."""
    bits = Bits()
    marked = poutine.infer_config(
        bits.guide, lambda site: {"num_samples": 40, "enumerate": "parallel", "expand": False}
    )
    pyro.set_rng_seed(SEED)
    tmc = TraceTMC_ELBO(max_plate_nesting=1)
    losses = torch.tensor([float(tmc.loss(bits.model, marked, data())) for _ in range(100)])
    iwae = OBJECTIVES["iwae"](num_particles=40)
    ours = torch.tensor([iwae.loss(bits.model, bits.guide, data()) for _ in range(100)])
    error = (losses.var() / 100 + ours.var() / 100).sqrt()
    assert abs(losses.mean() - ours.mean()) < 4.5 * error


def mean_model(pair: Any, x: Tensor) -> None:
    """x ~ N(a, 1) without z: the gradient of a, N (x̄ − a), does not depend on the draws."""
    pyro.param("a", pair.a)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(pair.a, 1.0), obs=x)


def prior_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def fit_mean(**settings: Any) -> float:
    """The `a` that `fit` finds in steps of SGD on all data, from a = 0.1."""
    pyro.clear_param_store()
    pair = Pair()
    config = pyroae.TrainConfig(
        batch_size=len(X), optimizer="SGD", lr=0.1, accelerator="cpu", precision="64-true",
        compile=False, keep="last", **settings,
    )  # fmt: skip
    programs = partial(mean_model, pair), prior_guide
    pyroae.fit(programs, data(), TraceELBO(), config, progress=False)
    return pair.a.item()


def test_the_loss_of_fit_is_that_of_svi_per_datum() -> None:
    """The gradient of fit is 1/N of that of SVI: with 1/N of the learning rate the same steps."""
    pair = Pair()
    optimizer = pyro.optim.SGD({"lr": 0.1 / len(X)})
    svi = SVI(partial(mean_model, pair), prior_guide, optimizer, loss=TraceELBO())
    for _ in range(3):
        svi.step(data())
    mean = data().mean()
    expected = (mean + (0.1 - mean) * 0.9**3).item()  # a ← a + 0.1 (x̄ − a)
    assert pair.a.item() == pytest.approx(expected, rel=1e-10)
    assert fit_mean(epochs=3) == pytest.approx(expected, rel=1e-10)


def test_a_cosine_schedule_is_that_of_torch_in_pyro() -> None:
    """Pyro's scheduler is stepped by hand; `fit` spreads its own over all steps."""
    pair = Pair()
    scheduler = pyro.optim.CosineAnnealingLR(
        {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1 / len(X)}, "T_max": 4}
    )
    svi = SVI(partial(mean_model, pair), prior_guide, scheduler, loss=TraceELBO())
    for _ in range(4):
        svi.step(data())
        scheduler.step()
    assert fit_mean(epochs=4, schedule="cosine") == pytest.approx(pair.a.item(), rel=1e-10)
    assert fit_mean(epochs=4) != pytest.approx(pair.a.item(), rel=1e-3)


def test_clipped_adam_clips_elements_and_grad_clip_the_norm() -> None:
    """One step of SGD with grad_clip = c has the length lr c; Adam's first mean is 0.1 of g."""
    clip = 0.01
    pair = Pair()
    optimizer = pyro.optim.ClippedAdam({"lr": 0.1, "clip_norm": clip})
    SVI(pair.model, pair.guide, optimizer, loss=TraceELBO()).step(data())
    means = [o.state[p]["exp_avg"].abs().item() for p, o in optimizer.optim_objs.items()]
    assert means == pytest.approx([0.1 * clip] * 3)
    start, pair = Pair(), Pair()
    config = pyroae.TrainConfig(
        epochs=1, batch_size=len(X), optimizer="SGD", lr=0.1, grad_clip=clip, accelerator="cpu",
        precision="64-true", compile=False, keep="last",
    )  # fmt: skip
    pyroae.fit((pair.model, pair.guide), data(), TraceELBO(), config, progress=False)
    change = [(b - a).item() for a, b in zip(start.parameters(), pair.parameters(), strict=True)]
    assert torch.tensor(change).norm().item() == pytest.approx(0.1 * clip, rel=1e-4)
    assert max(map(abs, change)) < 0.99 * 0.1 * clip  # several elements share the norm


def traced_pair() -> tuple[Any, JitTrace_ELBO]:
    """Programs that Pyro has traced. It traces again where the `id` of a program is another, and
    each access to a method makes another object: here it is kept.
    """
    pair: Any = Pair()
    pair.model, pair.guide = pair.model, pair.guide
    jit = JitTrace_ELBO(ignore_jit_warnings=True)
    jit.loss_and_grads(pair.model, pair.guide, data())
    return pair, jit


@JIT
def test_jit_trace_elbo_has_the_loss_of_trace_elbo() -> None:
    pair, jit = traced_pair()
    expected = value_and_gradient(jit, pair, data())
    found = value_and_gradient(TraceELBO(), pair, data())
    assert found[0] == pytest.approx(expected[0], rel=1e-10)
    assert torch.allclose(found[1], expected[1], rtol=1e-8)


@JIT
@pytest.mark.slow
def test_a_compiled_step_has_the_loss_of_jit_trace_elbo() -> None:
    """The learning rate is 0, so that every step has the same parameters."""
    pair, jit = traced_pair()
    expected = value_and_gradient(jit, pair, data())[0]
    svi = pyroae.compile(
        pair.model, pair.guide, TraceELBO(), lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    )
    svi.step(data())  # the eager one
    for _ in range(2):
        pyro.set_rng_seed(SEED)
        assert svi.step(data()).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.slow
def test_pyro_optim_is_taken_by_compile() -> None:
    """The first step, which is eager, is that of SVI with the same optimizer."""
    first, second = Pair(), Pair()
    for programs, make in ((first, SVI), (second, pyroae.compile)):
        pyro.clear_param_store()
        pyro.set_rng_seed(SEED)
        optimizer = pyro.optim.Adam({"lr": 0.1})
        rest = (optimizer, TraceELBO()) if make is SVI else (TraceELBO(), optimizer)
        training: Any = make(programs.model, programs.guide, *rest)
        training.step(data())
    parameters = [torch.stack(list(p.parameters())) for p in (first, second)]
    assert torch.allclose(parameters[0], parameters[1], rtol=1e-10)
    assert first.a.item() != 0.1


def test_evaluate_loss_is_the_loss_of_the_objective() -> None:
    pair = Pair()
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({}), loss=TraceELBO())
    pyro.set_rng_seed(SEED)
    expected = svi.evaluate_loss(data())
    pyro.set_rng_seed(SEED)
    assert TraceELBO().loss(pair.model, pair.guide, data()) == pytest.approx(expected, rel=1e-12)


def test_retain_graph_is_that_of_torch() -> None:
    pair = Pair()
    loss = TraceELBO().differentiable_loss(pair.model, pair.guide, data())
    loss.backward(retain_graph=True)
    first = pair.w.grad.clone()  # type: ignore[union-attr]
    loss.backward()
    assert torch.allclose(pair.w.grad, 2 * first)  # type: ignore[arg-type]


def test_importance_weights_and_psis() -> None:
    """The same log-weights; k̂ of each datum where Pyro has one of all data together."""
    pair = Pair()
    pyro.set_rng_seed(SEED)
    expected, *_ = vectorized_importance_weights(
        pair.model, pair.guide, data(), num_samples=50, max_plate_nesting=1, normalized=False
    )
    pyro.set_rng_seed(SEED)
    found = pyroae.log_weights(pair.model, pair.guide, data(), num_particles=50).log_weight
    assert torch.allclose(found.sum(1), expected, rtol=1e-10)
    estimate = pyroae.log_likelihood(pair.model, pair.guide, data(), num_particles=2000, seed=0)
    exact = dist.Normal(pair.a, 2**0.5).log_prob(data())
    assert torch.allclose(estimate.log_px.double(), exact, atol=0.1)
    assert estimate.smoothed.khat.shape == (len(X),)
    assert isinstance(
        psis_diagnostic(pair.model, pair.guide, data(), num_particles=500, max_plate_nesting=1),
        float,
    )


def test_importance_estimates_log_px() -> None:
    """Under q = p(z|x) all weights are equal, and both are exact: Pyro's of all data together."""
    pair = Pair()
    with torch.no_grad():
        pair.a.fill_(0.0)
        pair.w.fill_(0.5)
        pair.log_s.fill_(0.5 * math.log(0.5))
    exact = dist.Normal(0.0, 2**0.5).log_prob(data())
    together = Importance(pair.model, pair.guide, num_samples=3).run(data()).get_log_normalizer()
    assert together.item() == pytest.approx(exact.sum().item(), rel=1e-10)
    estimate = pyroae.log_likelihood(pair.model, pair.guide, data(), num_particles=3, seed=0)
    assert torch.allclose(estimate.log_px.double(), exact, rtol=1e-6)
    assert (estimate.se < 1e-6).all()


def test_predictive() -> None:
    """The posterior predictive mean E_q[a + z] = a + w x of both."""
    pair = Pair()
    pyro.set_rng_seed(SEED)
    program = poutine.uncondition(pair.model)
    expected = Predictive(program, guide=pair.guide, num_samples=500)(data())["x"].mean(0)
    draws = pyroae.predictive_draws(pair.model, pair.guide, data(), num_draws=100, seed=0)["x"]
    mean = (pair.a + pair.w * data()).detach()
    assert torch.allclose(expected.squeeze(), mean, atol=4.5 * 1.3 / 500**0.5)
    assert torch.allclose(draws.replicates.mean(0).squeeze(-1), mean, atol=4.5 * 1.3 / 10)
    assert torch.allclose(draws.means.squeeze(-1), mean, atol=4.5 * 0.82 / 10)


def test_annealing_draws_from_the_posterior_where_one_would_run_mcmc() -> None:
    """p(z|x) = N((x − a)/2, ½)."""
    pair = Pair()
    settings = pyroae.AISSettings(32, 20, leapfrog_steps=3, posterior_draws=2)
    found = pyroae.ais(pair.model, pair.guide, data(), settings=settings, seed=0)
    z = found.posterior["z"].flatten(0, 1)
    exact = (data() - pair.a.detach()) / 2
    assert torch.allclose(z.mean(0).double(), exact, atol=4.5 * 0.5**0.5 / 32**0.5)
    assert ((z.std(0).double() - 0.5**0.5).abs() < 0.25).all()


def test_mcmc_takes_the_programs_of_a_system() -> None:
    """NUTS on a PPCA: draws around the exact posterior mean, M⁻¹ Wᵀ(x − b), of two data."""
    system: Any = pyroae.zoo.ppca(4, latent=1, exact=True).double()
    x = torch.tensor([[1.0, 0.5, -0.5, 2.0], [-1.0, 0.0, 1.5, 0.2]])
    mcmc = MCMC(NUTS(system.model), num_samples=60, warmup_steps=30, disable_progbar=True)
    mcmc.run(x)
    (z,) = mcmc.get_samples().values()
    posterior = poutine.trace(system.guide).get_trace(x).nodes["z"]["fn"]
    assert z.shape == (60, 2, 1)
    assert ((z.mean(0) - posterior.mean).abs() < 4.5 * posterior.stddev / 15**0.5).all()


@pytest.mark.parametrize("what", ["scale", "mask", "subsample"])
def test_handlers_and_subsampling(what: str) -> None:
    """A scale of all sites, a mask, a subsample: the loss of Trace_ELBO on the same draws."""
    pair: Any = Pair()
    model, guide = pair.model, pair.guide
    if what == "scale":
        model, guide = (poutine.scale(program, scale=3.0) for program in (model, guide))
    elif what == "mask":
        mask = torch.tensor([True, False, True, True])
        model, guide = (poutine.mask(program, mask=mask) for program in (model, guide))
    else:

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x), subsample_size=2) as index:
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x), subsample_size=2) as index:
                pyro.sample("z", dist.Normal(0.4 * x[index], 0.8))

    losses = []
    for objective in (Trace_ELBO(), TraceELBO()):
        pyro.set_rng_seed(SEED)
        losses.append(objective.loss(model, guide, data()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)
    pyro.set_rng_seed(SEED)
    assert losses[0] != pytest.approx(Trace_ELBO().loss(pair.model, pair.guide, data()), rel=1e-3)


def test_block_hides_a_site_of_both() -> None:
    """A latent site that is hidden in both is drawn from the prior; the loss lacks its terms."""
    pair = Pair()
    hidden = [poutine.block(program, hide=["z"]) for program in (pair.model, pair.guide)]
    losses = []
    for objective in (Trace_ELBO(), TraceELBO()):
        pyro.set_rng_seed(SEED)
        losses.append(objective.loss(*hidden, data()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)


def test_the_param_store() -> None:
    """Parameters of modules stay theirs, those of pyro.param are in the store; fit trains both."""

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.8), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.4 * x, scale))

    pair = Pair()
    config = pyroae.TrainConfig(
        epochs=2, batch_size=len(X), lr=0.1, accelerator="cpu", precision="64-true"
    )
    pyroae.fit((pair.model, guide), data(), TraceELBO(), config, progress=False)
    assert pyro.param("scale").item() != pytest.approx(0.8)
    assert pair.a.item() != pytest.approx(0.1)
    pyro.clear_param_store()
    system = pyroae.zoo.ppca(4, latent=2)
    TraceELBO().loss(system.model, system.guide, torch.zeros(3, 4))
    assert not list(pyro.get_param_store())


def test_energy_distance_stays_with_pyro() -> None:
    """A loss of Pyro without a density; the systems of pyroae are ordinary programs for it."""
    system = pyroae.zoo.vae(4, latent=2, likelihood=pyroae.likelihoods.Normal(0.5)).double()
    EnergyDistance(num_particles=2)(system.model, system.guide, torch.randn(3, 4)).backward()
    assert all(p.grad is not None for p in system.decoder.parameters())


def test_every_name_of_the_page_has_a_row() -> None:
    text = PAGE.read_text()
    names = ("Trace_ELBO", "TraceMeanField_ELBO", "TraceGraph_ELBO", "TraceEnum_ELBO",
                 "RenyiELBO", "ReweightedWakeSleep", "TraceTMC_ELBO", "JitTrace_ELBO", "SVI",
                 "Predictive", "psis_diagnostic", "MCMC", "poutine.scale", "subsample_size",
                 "config_enumerate", "Importance", "ClippedAdam", "vectorized_importance_weights",
                 "pyro.optim", "EnergyDistance", "max_plate_nesting")  # fmt: skip
    for name in names:
        assert re.search(rf"^\| [^|]*\b{re.escape(name)}\b", text, re.MULTILINE), name
