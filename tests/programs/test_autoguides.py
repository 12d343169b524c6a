"""Pyro's autoguides with global and local latents: what works, and what is refused."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, autoguide
from torch import Tensor

import pyroae
from pyroae.errors import ProgramError
from pyroae.objectives import OBJECTIVES, TraceELBO

N = 20
MODELS = ("global", "local", "both")


def only_global(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, s), obs=x)


def only_local(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def with_both(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


PROGRAMS: dict[str, Callable[[Tensor], None]] = {
    "global": only_global,
    "local": only_local,
    "both": with_both,
}


def of_list(model: Callable[..., Any]) -> Any:
    """An AutoGuideList: AutoNormal for the first latent site, AutoDiagonalNormal for others."""
    names = [name for name in ("w", "s", "z") if name in poutine.trace(model).get_trace(data())]
    guide = autoguide.AutoGuideList(model)
    guide.append(autoguide.AutoNormal(poutine.block(model, expose=names[:1])))
    if names[1:]:
        guide.append(autoguide.AutoDiagonalNormal(poutine.block(model, expose=names[1:])))
    return guide


GUIDES: dict[str, Callable[..., Any]] = {
    "AutoNormal": autoguide.AutoNormal,
    "AutoDelta": autoguide.AutoDelta,
    "AutoDiagonalNormal": autoguide.AutoDiagonalNormal,
    "AutoMultivariateNormal": autoguide.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": partial(autoguide.AutoLowRankMultivariateNormal, rank=1),
    "AutoIAFNormal": partial(autoguide.AutoIAFNormal, hidden_dim=[2 * N + 2]),
    "AutoLaplaceApproximation": autoguide.AutoLaplaceApproximation,
    "AutoStructured": partial(
        autoguide.AutoStructured, conditionals="normal", dependencies="linear"
    ),
    "AutoGaussian": autoguide.AutoGaussian,
    "AutoGuideList": of_list,
}
MESSENGERS = ("AutoNormalMessenger", "AutoHierarchicalNormalMessenger", "AutoRegressiveMessenger")
DENSITIES = ("AutoNormal",)
"""Guides of local latents whose draws have a density at fixed values."""


def data() -> Tensor:
    return torch.linspace(-1.0, 2.0, N)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


def pair(kind: str, name: str) -> tuple[Any, Any]:
    model = PROGRAMS[kind]
    guide = GUIDES[name](model)
    guide(data())  # makes its parameters
    return model, guide


def works(call: Callable[[], Any]) -> str:
    """An empty text, or the error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except ProgramError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", GUIDES)
def test_the_loss_is_that_of_pyro_and_fit_steps(kind: str, name: str) -> None:
    model, guide = pair(kind, name)
    pyro.set_rng_seed(1)
    expected = Trace_ELBO().loss(model, guide, data())
    pyro.set_rng_seed(1)
    assert TraceELBO().loss(model, guide, data()) == pytest.approx(expected, rel=1e-5)
    config = pyroae.TrainConfig(epochs=2, lr=0.01, batch_size=N, accelerator="cpu")
    before = {n: p.detach().clone() for n, p in pyro.get_param_store().named_parameters()}
    result = pyroae.fit((model, guide), data(), TraceELBO(), config, progress=False)
    assert len(result.history) == 2
    after = dict(pyro.get_param_store().named_parameters())
    assert any(not torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", GUIDES)
def test_bounds_of_several_particles(kind: str, name: str) -> None:
    """IWAE takes all; DReG those whose local draws have a density at fixed values."""
    model, guide = pair(kind, name)
    config = pyroae.TrainConfig(epochs=1, batch_size=N, accelerator="cpu")

    def run(objective: str) -> str:
        one = OBJECTIVES[objective](num_particles=3)
        return works(lambda: pyroae.fit((model, guide), data(), one, config, progress=False))

    assert run("iwae") == ""
    is_refused = kind != "global" and name not in DENSITIES
    if (kind, name) == ("local", "AutoGuideList"):  # it is one AutoNormal
        is_refused = False
    assert bool("is a Delta" in run("dreg")) == is_refused


@pytest.mark.parametrize("name", GUIDES)
def test_evaluation_with_global_latents(name: str) -> None:
    model, guide = pair("global", name)
    estimate = pyroae.log_likelihood(model, guide, data(), num_particles=4, seed=0)
    assert estimate.log_px.isfinite().all()
    parameters = dict(pyro.get_param_store().named_parameters())
    found = pyroae.measure_gradients(
        model, guide, data(), {"elbo": TraceELBO()}, parameters=parameters, replicates=20
    )
    assert list(found) == ["elbo"]
    assert list(pyroae.predictive_draws(model, guide, data(), num_draws=2)) == ["x"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["global", "local"])
@pytest.mark.parametrize("name", GUIDES)
def test_compiled(kind: str, name: str) -> None:
    """The losses of eager steps from the same seed; what cannot be compiled runs eagerly."""
    losses = []
    for make in (pyroae.compile, pyro.infer.SVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model, guide = pair(kind, name)
        pyro.set_rng_seed(1)
        optimizer = pyro.optim.SGD({"lr": 1e-3})
        rest = [TraceELBO(), optimizer]
        training: Any = make(model, guide, *(rest if make is pyroae.compile else rest[::-1]))
        losses.append([float(training.step(data())) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("name", GUIDES)
def test_log_likelihood_of_parameters_for_each_datum_is_refused(name: str) -> None:
    model, guide = pair("local", name)
    with pytest.raises(ProgramError, match="parameters of its own for each datum"):
        pyroae.log_likelihood(model, guide, data(), num_particles=4)


@pytest.mark.parametrize("name", MESSENGERS)
def test_messengers_are_refused(name: str) -> None:
    """Their trace has the observed site too: without a refusal the bound would lack log p(x|z)."""
    guide = getattr(autoguide, name)(only_local)
    with pytest.raises(ProgramError, match=f"the guide is a {name}, which runs the model"):
        TraceELBO().loss(only_local, guide, data())
    with pytest.raises(ProgramError, match=f"the guide is a {name}"):
        pyroae.log_likelihood(lambda x: only_local(x["x"]), partial(guide), {"x": data()})
