"""Trainings that would train nothing are refused before the first step, with the reason; what the
dry run lets pass trains.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import Tensor, nn

from pyroae import TraceELBO, TrainConfig, compile, fit
from pyroae.compilation.tracing import reason_of
from pyroae.errors import ConfigError, ProgramError

Programs = tuple[Callable[..., Any], Callable[..., Any]]


@pytest.fixture(autouse=True)
def seeded() -> None:
    pyro.clear_param_store()
    torch.manual_seed(0)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x[:, 0])


def guide_of(
    net: nn.Module, change: Callable[[Tensor], Tensor] = lambda loc: loc
) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(change(net(x)[:, 0]), 0.7))

    return guide


class Owner(nn.Module):
    """Programs as methods of the module whose parameters they announce."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)

    def model(self, x: Tensor) -> None:
        model(x)

    def guide(self, x: Tensor) -> None:
        guide_of(self.net)(x)


def fitted(programs: Any, objective: Any = None) -> None:
    fit(
        programs,
        torch.randn(20, 1),
        objective,
        TrainConfig(epochs=2, batch_size=10, lr=0.1),
        progress=False,
    )


def compiled(programs: Any, objective: Any = None) -> None:
    model, guide = programs if isinstance(programs, tuple) else (programs.model, programs.guide)
    svi = compile(
        model,
        guide,
        objective or TraceELBO(),
        lambda parameters: torch.optim.Adam(parameters, lr=0.1),
    )
    svi.step(torch.randn(20, 1))


WAYS: dict[str, Callable[..., None]] = {"fit": fitted, "compile": compiled}


# Weights that stay where they are


@pytest.mark.parametrize("way", list(WAYS))
def test_a_second_module_under_one_name(way: str) -> None:
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    before = first.weight.item()
    WAYS[way]((model, guide_of(first)))
    assert first.weight.item() != before
    with pytest.raises(
        ConfigError, match=r"weights of the module 'net' would not be trained: .* another module"
    ):
        WAYS[way]((model, guide_of(second)))


@pytest.mark.parametrize("way", list(WAYS))
def test_a_second_module_whose_programs_are_its_own(way: str) -> None:
    """It is trained for what it is, whatever Pyro's store holds under its name; the first one stays
    as it was.
    """
    for as_pair in (True, False):
        first, second = Owner(), Owner()
        for system in (first, second):
            before = system.net.weight.item()
            kept = first.net.weight.item()
            WAYS[way]((system.model, system.guide) if as_pair else system)
            assert system.net.weight.item() != before
        assert first.net.weight.item() == kept


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("objective", [TraceELBO(), Trace_ELBO()], ids=["pyroae", "Pyro"])
def test_a_path_that_is_cut(way: str, objective: Any) -> None:
    with pytest.raises(
        ConfigError, match="would move no parameter of the module 'net': the loss has no gradient"
    ):
        WAYS[way]((model, guide_of(nn.Linear(1, 1), Tensor.detach)), objective)


@pytest.mark.parametrize("way", list(WAYS))
def test_a_path_that_is_cut_in_one_of_two_modules(way: str) -> None:
    scale = nn.Linear(1, 1)

    def with_scale(x: Tensor) -> None:
        pyro.module("scale", scale)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale(torch.ones(1)).exp().detach()), obs=x[:, 0])

    with pytest.raises(ConfigError, match="would move no parameter of the module 'scale'"):
        WAYS[way]((with_scale, guide_of(nn.Linear(1, 1))))
    scale.requires_grad_(False)
    scale.eval()
    pyro.clear_param_store()
    WAYS[way]((with_scale, guide_of(nn.Linear(1, 1))))


@pytest.mark.parametrize("way", list(WAYS))
def test_parameters_of_the_store_that_nothing_depends_on(way: str) -> None:
    def guide(x: Tensor) -> None:
        location = pyro.param("location", torch.tensor(0.5))
        with pyro.plate("data", len(x)), torch.no_grad():
            pyro.sample("z", dist.Normal(location * x[:, 0], 1.0))

    for objective in (TraceELBO(), Trace_ELBO()):
        with pytest.raises(ConfigError, match="would move no parameter of model and guide"):
            WAYS[way]((model, guide), objective)


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
def test_pyros_words_for_no_gradient() -> None:
    with pytest.raises(ConfigError, match="would move no parameter of the module 'net'"):
        fitted(
            (model, guide_of(nn.Linear(1, 1), Tensor.detach)), TraceEnum_ELBO(max_plate_nesting=1)
        )


@pytest.mark.parametrize("way", list(WAYS))
def test_a_gradient_of_zero_is_fine(way: str) -> None:
    net = nn.Linear(1, 1)
    before = [p.detach().clone() for p in net.parameters()]
    WAYS[way]((model, guide_of(net, lambda loc: 0 * loc)))
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_an_error_without_words_has_its_name() -> None:
    assert reason_of(StopIteration()) == "StopIteration"


# Enumerated latents

WEIGHTS = torch.tensor([0.3, 0.7])
X = torch.tensor([0.5, -1.0, 2.0, 1.5])


def mixture(x: Tensor) -> None:
    means = pyro.param("means", torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", len(x)):
        which = pyro.sample("which", dist.Categorical(WEIGHTS), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(means[which], 1.0), obs=x)


@config_enumerate
def responsibilities(x: Tensor) -> None:
    weights = pyro.param("weights", torch.tensor([[0.0, 0.0], [0.1, -0.1]]))
    with pyro.plate("data", len(x)):
        pyro.sample("which", dist.Categorical(logits=weights[0] + x[:, None] * weights[1]))


def mixture_nelbo(x: Tensor, means: Tensor, weights: Tensor) -> float:
    """−Σ_n Σ_c q(c) (log p(c) + log p(x_n|c) − log q(c)), summed out by hand."""
    log_q = torch.log_softmax(weights[0] + x[:, None] * weights[1], -1)
    log_joint = WEIGHTS.log() - 0.5 * (x[:, None] - means) ** 2 - 0.5 * math.log(2 * math.pi)
    return -(log_q.exp() * (log_joint - log_q)).sum().item()


@pytest.mark.parametrize("kl_warmup", [0, 2])
def test_fit_by_an_elbo_that_sums_discrete_sites_out(kl_warmup: int) -> None:
    config = TrainConfig(epochs=120, batch_size=4, lr=0.1, kl_warmup=kl_warmup)
    result = fit(
        (mixture, responsibilities),
        X,
        TraceEnum_ELBO(max_plate_nesting=1),
        config,
        valid=X,
        progress=False,
    )
    first, last = result.history[0], result.history[-1]
    start = mixture_nelbo(X, torch.tensor([-1.0, 1.0]), torch.tensor([[0.0, 0.0], [0.1, -0.1]])) / 4
    if not kl_warmup:
        assert first.train_nelbo == pytest.approx(start, rel=1e-5)
    with torch.no_grad():
        means, weights = pyro.param("means"), pyro.param("weights")
        assert last.valid_nelbo == pytest.approx(mixture_nelbo(X, means, weights) / 4, rel=1e-5)
        exact = -torch.logsumexp(
            WEIGHTS.log() + dist.Normal(means, 1.0).log_prob(X[:, None]), 1
        ).mean()
    assert start - last.valid_nelbo > 0.5
    assert 0 <= last.valid_nelbo - exact < 0.01  # a logistic guide holds the exact posterior


def test_compile_by_an_elbo_that_sums_discrete_sites_out() -> None:
    objective = TraceEnum_ELBO(max_plate_nesting=1)
    svi = compile(
        mixture,
        responsibilities,
        objective,
        lambda parameters: torch.optim.Adam(parameters, lr=0.1),
    )
    expected = mixture_nelbo(X, torch.tensor([-1.0, 1.0]), torch.tensor([[0.0, 0.0], [0.1, -0.1]]))
    assert svi.step(X).item() == pytest.approx(expected, rel=1e-5)
    with pytest.warns(
        UserWarning, match=r"not compiled: .*site, 'x' of the model: a number is read out"
    ):
        assert svi.step(X).item() < expected
    assert svi.evaluate_loss(X).item() == pytest.approx(
        mixture_nelbo(X, pyro.param("means").detach(), pyro.param("weights").detach()), rel=1e-5
    )


@pytest.mark.parametrize(
    "objective", [TraceELBO(), TraceEnum_ELBO(max_plate_nesting=1)], ids=["pyroae", "Pyro"]
)
def test_latents_enumerated_in_the_model(objective: Any) -> None:
    """The bound of a guide without latents is log p(x): the sum over the components."""

    def empty(x: Tensor) -> None:
        pass

    log_joint = WEIGHTS.log() + dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).log_prob(X[:, None])
    exact = -log_joint.logsumexp(1).sum().item()
    config = TrainConfig(epochs=1, batch_size=4)
    history = fit((mixture, empty), X, objective, config, progress=False).history
    assert history[0].train_nelbo == pytest.approx(exact / 4, rel=1e-5)
    pyro.clear_param_store()
    loss = compile(mixture, empty, objective).step(X)
    assert loss.item() == pytest.approx(exact, rel=1e-5)


def test_latents_that_neither_the_guide_draws_nor_the_model_sums() -> None:
    """An objective of Pyro warns of such a site itself."""
    objective = TraceELBO()

    def empty(x: Tensor) -> None:
        pass

    def unmarked(x: Tensor) -> None:
        means = pyro.param("means", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            which = pyro.sample("which", dist.Categorical(WEIGHTS))
            pyro.sample("x", dist.Normal(means[which], 1.0), obs=x)

    words = (
        r"latent site 'which' has no counterpart in the guide.*mark it with infer=.*"
        "or give the guide a site 'which'"
    )
    for work in (
        lambda: fit((unmarked, empty), X, objective, TrainConfig(batch_size=4), progress=False),
        lambda: compile(unmarked, empty, objective).step(X),
    ):
        with pytest.raises(ProgramError, match=words):
            work()


# Batch normalization


class Normed(nn.Module):
    """A guide with batch normalization of N vectors, or of N images."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(1, 3), nn.Unflatten(1, (3,)), norm, nn.Flatten(), nn.LazyLinear(1)
        )
        self.net(torch.randn(4, 1))

    def model(self, x: Tensor) -> None:
        model(x)

    def guide(self, x: Tensor) -> None:
        guide_of(self.net)(x)


def test_batch_normalization_of_one_datum() -> None:
    x = torch.randn(21, 1)
    system = Normed(nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in system.state_dict().items()}
    with pytest.raises(
        ConfigError,
        match=r"last of the batches of 10 of 21 data has one datum.*'net\.2'.*another batch_size",
    ):
        fit(system, x, config=TrainConfig(batch_size=10), progress=False)
    assert all(torch.equal(before[name], value) for name, value in system.state_dict().items())
    assert system.training
    with pytest.raises(ConfigError, match="last of the batches of 1 of 21 data has one datum"):
        fit(system, x, config=TrainConfig(batch_size=1), progress=False)
    fit(system, x, config=TrainConfig(batch_size=7, epochs=1), progress=False)
    fit(system, x[:20], config=TrainConfig(batch_size=10, epochs=1), progress=False)


def test_batch_normalization_of_one_image() -> None:
    """Its pixels have a variance."""
    system = Normed(nn.Sequential(nn.Unflatten(1, (1, 3)), nn.BatchNorm1d(1)))
    result = fit(
        system, torch.randn(21, 1), config=TrainConfig(batch_size=10, epochs=1), progress=False
    )
    assert result.history[-1].step == 3
