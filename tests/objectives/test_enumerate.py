"""The objective `enumerate`: against brute force and Pyro's `TraceEnum_ELBO`."""

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.enum import config_enumerate
from pyro.optim import Adam
from torch import Tensor

from pyroae import fit, zoo
from pyroae.config import TrainConfig
from pyroae.errors import ConfigError, ProgramError
from pyroae.nn import MLP
from pyroae.objectives import enumerated, parse_objective
from tests.programs.test_model_sums import MARK, Given, N, Toy, X


class Toy2(Toy):
    """Guides over discrete sites."""

    def two(self, x: Tensor) -> None:
        """Two dependent sites."""
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Categorical(logits=self.pi))
            b = pyro.sample("b", dist.Bernoulli(logits=self.mu[a, 1]))
            pyro.sample("x", dist.Normal(self.mu[a] * (1 + b[..., None]), 0.5).to_event(1), obs=x)

    def two_guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            b = pyro.sample("b", dist.Bernoulli(logits=self.loc[:, 0]))
            pyro.sample("a", dist.Categorical(logits=self.table[b.long()] + self.loc[:, :1]))

    def inner(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("inner", 2, dim=-1):
            d = pyro.sample("d", dist.Categorical(logits=self.pi))
            pyro.sample("x", dist.Normal(self.mu[d, 0], 0.5), obs=x)

    def inner_discrete_guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("inner", 2, dim=-1):
            pyro.sample("d", dist.Categorical(logits=self.table[:2] + self.loc[..., None]))

    def mixture(self, x: Tensor) -> None:
        """A Gaussian mixture whose means are global latents."""
        means = pyro.sample("means", dist.Normal(torch.zeros(3, 2), 2.0).to_event(2))
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.pi))
            chosen = torch.nn.functional.one_hot(y, 3).to(x.dtype)[..., None]
            mean = (means * chosen).sum(-2)  # means are [K, 1, 3, 2]
            pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)

    def mixture_guide(self, x: Tensor) -> None:
        pyro.sample("means", Given(self.mu, torch.full((3, 2), 0.3)).to_event(2))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Categorical(logits=self.table[0] + self.loc[:, :1]))

    def local(self, x: Tensor) -> None:
        """A discrete site next to a continuous one, and a site that only the model has."""
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.pi))
            c = pyro.sample("c", dist.Bernoulli(logits=self.mu[y, 0]), infer=MARK)
            z = pyro.sample("z", dist.Normal(self.mu[y], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sin() + c[..., None], 0.5).to_event(1), obs=x)

    def local_guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.table[0] + self.loc[:, :1]))
            pyro.sample("z", Given(self.mu[y] + self.loc, torch.ones(N, 2)).to_event(1))


CASES = [
    ("two", "two_guide", 1),
    ("inner", "inner_discrete_guide", 2),
    ("mixture", "mixture_guide", 1),
    ("local", "local_guide", 1),
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("model", "guide", "depth"), CASES)
@pytest.mark.parametrize("k", [1, 3])
def test_bound_and_gradient_are_those_of_pyro(model: str, guide: str, depth: int, k: int) -> None:
    """With fixed noise of the continuous sites, so that both are the same for every K."""
    toy = Toy2()
    programs = getattr(toy, model), getattr(toy, guide)
    marked = programs[0], config_enumerate(programs[1], "parallel")
    pyros = TraceEnum_ELBO(max_plate_nesting=depth).differentiable_loss(*marked, X)
    ours = parse_objective("enumerate", k).differentiable_loss(*programs, X)
    torch.testing.assert_close(ours, pyros, rtol=0, atol=1e-10)
    one, other = (
        torch.autograd.grad(loss, toy.parameters, allow_unused=True, materialize_grads=True)
        for loss in (ours, pyros)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    assert sum(bool(g.abs().max() > 1e-3) for g in one) >= 2


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("categories", [None, 3])
@pytest.mark.parametrize("objective", ["enumerate", "elbo+enumerate", "enumerate:num_particles=4"])
def test_bits_and_one_hot_vectors_equal_brute_force(categories: int | None, objective: str) -> None:
    system = zoo.discrete_vae(8, latent=6, categories=categories, decoder=MLP((5,)))
    x = (torch.rand(3, 8) < 0.5).double()
    if categories is None:
        codes = [torch.tensor(bits) for bits in itertools.product((0.0, 1.0), repeat=6)]
    else:
        codes = [torch.cat(pair) for pair in itertools.product(torch.eye(3), torch.eye(3))]
    q, expected = system.q_z(x), torch.tensor(0.0)
    for z in codes:
        log_q = q.log_prob(z.expand(3, -1))
        log_x = dist.Bernoulli(logits=system.decoder(z)).log_prob(x).sum(-1)
        log_joint = log_x - torch.tensor(float(len(codes))).log()
        expected = expected + (log_q.exp() * (log_joint - log_q)).sum()
    found = parse_objective(objective)
    value, surrogate = found.bound(system.model, system.guide, x)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-10)
    parameters = list(system.parameters())
    one, other = (
        torch.autograd.grad(b, parameters, allow_unused=True, materialize_grads=True)
        for b in (surrogate, expected)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    assert found.is_noiseless
    assert found.evaluations == len(codes)


@pytest.mark.usefixtures("float64")
def test_marked_bits_are_summed_by_trace_elbo_too() -> None:
    logits = torch.randn(N, 2).requires_grad_()

    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1), infer=MARK)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.3)).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    losses = [parse_objective(o).loss(model, program, X) for o in ("trace-elbo", "enumerate")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-10)


@pytest.mark.usefixtures("float64")
def test_a_sum_without_the_weights_q_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken copy, with a detached q(y_s|x), has the right value and another gradient."""
    toy = Toy2()
    right = enumerated.expected

    def loss() -> Tensor:
        return parse_objective("enumerate").differentiable_loss(toy.two, toy.two_guide, X)

    expected = torch.autograd.grad(
        loss(), toy.parameters, allow_unused=True, materialize_grads=True
    )
    monkeypatch.setattr(enumerated, "expected", lambda w, q: right(w, q.detach()))
    found = torch.autograd.grad(loss(), toy.parameters, allow_unused=True, materialize_grads=True)
    assert max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) > 1e-3


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_trains(compiled: bool) -> None:
    """The bound rises in `fit`, and without noise two trainings are the same."""
    x = (torch.rand(64, 8) < 0.3).float()
    histories = []
    for _ in range(2):
        pyro.set_rng_seed(0)
        system = zoo.discrete_vae(8, latent=3, decoder=MLP((5,)))
        result = fit(
            system,
            x,
            objective=parse_objective("enumerate"),
            config=TrainConfig(epochs=3, batch_size=16, lr=0.005),
            compile=compiled,
            progress=False,
        )
        histories.append([row.train_nelbo for row in result.history])
    assert histories[0] == histories[1]
    assert histories[0][-1] < histories[0][0]


def test_it_steps_in_svi() -> None:
    x = (torch.rand(16, 8) < 0.3).float()
    system = zoo.discrete_vae(8, latent=3, decoder=MLP((5,)))
    svi = SVI(system.model, system.guide, Adam({"lr": 0.005}), parse_objective("enumerate"))
    losses = [svi.step(x) for _ in range(10)]
    assert losses[-1] < losses[0]


# Refusals.


def outside(x: Tensor) -> None:
    pyro.sample("y", dist.Bernoulli(0.3))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def infinite(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Poisson(0.3))


def masked(x: Tensor) -> None:
    with pyro.plate("data", len(x)), pyro.poutine.mask(mask=torch.tensor([True] * 4 + [False])):
        pyro.sample("y", dist.Bernoulli(0.3))


def large(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(torch.full((9,), 0.5)).to_event(1))
        pyro.sample("c", dist.Categorical(torch.ones(10)))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (outside, "enumerate cannot sum over the guide's site 'y': it lies outside the data plate"),
        (infinite, r"site 'y': its values are not known to be finite \(Poisson\)"),
        (masked, "site 'y': it has a mask"),
        (large, r"'y' \(2\^9\) and 'c' \(10\) have 5,120 joint values per datum, .* of 4,096"),
    ],
)
def test_refused(program: Any, words: str) -> None:
    with pytest.raises(ProgramError, match=words):
        parse_objective("enumerate").loss(program, program, X)
    if program is large:
        assert parse_objective("enumerate:limit=5120").loss(program, program, X) == 0.0


@pytest.mark.parametrize("text", ["iwae+enumerate", "renyi+enumerate"])
def test_other_bounds_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="enumerate sums the ELBO over discrete sites; "):
        parse_objective(text)
    with pytest.raises(ConfigError, match="limit must be a whole number of at least 1, not 0"):
        parse_objective("enumerate:limit=0")


def test_a_program_without_a_plate_is_summed_anew_for_other_sizes() -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(logits=torch.zeros(len(x))).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Bernoulli(logits=x).to_event(1))

    objective = parse_objective("enumerate")
    for size in (2, 4, 3):
        x = torch.linspace(-1.0, 1.0, size)
        expected = sum(
            dist.Bernoulli(logits=one).log_prob(z).exp()
            * (
                dist.Normal(z, 1.0).log_prob(one)
                - math.log(2)
                - dist.Bernoulli(logits=one).log_prob(z)
            )
            for one in x
            for z in torch.tensor([0.0, 1.0])
        )
        torch.testing.assert_close(objective.bound(model, guide, x).value, expected)
