"""Discrete sites of a model that its guide lacks: sums written out, and those of Pyro."""

import itertools
import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from pyroae.config import TrainConfig
from pyroae.errors import ProgramError
from pyroae.evaluation.adaptive_quadrature import quadrature
from pyroae.evaluation.enumeration import enumerated_log_likelihood
from pyroae.evaluation.importance.likelihood import log_likelihood
from pyroae.objectives import parse_objective
from pyroae.programs import model_sums
from pyroae.programs.traces import prior_of, run
from pyroae.training import fit
from pyroae.weights import log_weights

pytestmark = pytest.mark.usefixtures("float64")

MARK = {"enumerate": "parallel"}
N = 5
X = torch.linspace(-1.5, 2.0, 2 * N, dtype=torch.float64).reshape(N, 2)
LOGITS = torch.tensor([0.3, -0.5, 0.9], dtype=torch.float64)


class Given(dist.Normal):
    """A Gaussian whose draw has the noise 0.7 in every element: the same for all estimators."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Given":
        return Given(self.loc.expand(batch_shape), self.scale.expand(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + 0.7 * self.scale


class Toy:
    """Programs over parameters that all of them share."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        make = lambda *shape: torch.randn(*shape, generator=generator).double().requires_grad_()  # noqa: E731
        self.pi, self.mu, self.table, self.loc = make(3), make(3, 2), make(3, 3), make(N, 2)

    @property
    def parameters(self) -> list[Tensor]:
        return [self.pi, self.mu, self.table, self.loc]

    def nothing(self, x: Tensor) -> None: ...

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Given(self.loc, torch.ones_like(self.loc)).to_event(1))

    def inner_guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("inner", 2, dim=-1):
            pyro.sample("z", Given(self.loc, torch.ones_like(self.loc)))

    def prior(self, x: Tensor) -> None:
        """A mixture in the latent space."""
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.pi), infer=MARK)
            z = pyro.sample("z", dist.Normal(self.mu[y], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.cos(), 0.5).to_event(1), obs=x)

    def both(self, x: Tensor) -> None:
        """y reaches both z and x."""
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.pi), infer=MARK)
            z = pyro.sample("z", dist.Normal(self.mu[y], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z * self.mu[y].sin(), 0.5).to_event(1), obs=x)

    def bits(self, x: Tensor) -> None:
        """An event of two bits, and a one-hot site whose probabilities depend on them."""
        with pyro.plate("data", len(x), dim=-1):
            b = pyro.sample("b", dist.Bernoulli(logits=self.pi[:2]).to_event(1), infer=MARK)
            logits = self.table[0] * b[..., :1] + self.table[1] * b[..., 1:]
            c = pyro.sample("c", dist.OneHotCategorical(logits=logits), infer=MARK)
            pyro.sample("x", dist.Normal(c @ self.mu + b, 0.5).to_event(1), obs=x)

    def nested(self, x: Tensor) -> None:
        """c for each datum; d and z for each element of a nested plate."""
        with pyro.plate("data", len(x), dim=-2):
            c = pyro.sample("c", dist.Categorical(logits=self.pi), infer=MARK)
            with pyro.plate("inner", 2, dim=-1):
                d = pyro.sample("d", dist.Categorical(logits=self.table[c]), infer=MARK)
                z = pyro.sample("z", dist.Normal(self.mu[:, 0][d], 1.0))
                pyro.sample("x", dist.Normal(z * self.mu[:, 1][c] + d, 0.5), obs=x)

    def chain(self, x: Tensor) -> None:
        """A hidden Markov model of six steps."""
        with pyro.plate("data", len(x), dim=-1):
            s: Any = 0
            for t in range(6):
                s = pyro.sample(f"s{t}", dist.Categorical(logits=self.table[s]), infer=MARK)
                pyro.sample(f"x{t}", dist.Normal(self.mu[s, 0], 1.0), obs=x[:, t % 2])


CASES = [
    ("prior", "guide", 1),
    ("both", "guide", 1),
    ("nested", "inner_guide", 2),
    ("chain", "nothing", 1),
]


@pytest.mark.parametrize(("model", "guide", "depth"), CASES)
@pytest.mark.parametrize("objective", ["trace-elbo", "enumerate", "iwae:num_particles=1"])
def test_bound_and_gradient_are_those_of_pyro(
    model: str, guide: str, depth: int, objective: str
) -> None:
    toy = Toy()
    programs = getattr(toy, model), getattr(toy, guide)
    pyros = TraceEnum_ELBO(max_plate_nesting=depth).differentiable_loss(*programs, X)
    ours = parse_objective(objective).differentiable_loss(*programs, X)
    torch.testing.assert_close(ours, pyros, rtol=0, atol=1e-10)
    one, other = (
        torch.autograd.grad(loss, toy.parameters, allow_unused=True, materialize_grads=True)
        for loss in (ours, pyros)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    assert sum(bool(g.abs().max() > 1e-3) for g in one) >= 2


def test_events_and_one_hot_vectors_are_summed() -> None:
    toy, terms = Toy(), []
    for bits in itertools.product((0.0, 1.0), repeat=2):
        b = torch.tensor(bits)
        log_b = dist.Bernoulli(logits=toy.pi[:2]).log_prob(b).sum()
        log_c = (toy.table[0] * b[0] + toy.table[1] * b[1]).log_softmax(-1)
        for c in range(3):
            log_x = dist.Normal(toy.mu[c] + b, 0.5).log_prob(X).sum(-1)
            terms.append(log_b + log_c[c] + log_x)
    expected = torch.stack(terms).logsumexp(0)
    for k in (1, 3):
        found = log_weights(toy.bits, toy.nothing, X, num_particles=k).log_weight
        torch.testing.assert_close(found, expected.expand(k, N), rtol=0, atol=1e-10)
    for guide in (toy.nothing, None):
        found = enumerated_log_likelihood(toy.bits, guide, X)
        torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-10)


def test_a_program_that_runs_particle_by_particle_is_summed_too() -> None:
    toy = Toy()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=toy.pi), infer=MARK)
            z = pyro.sample("z", dist.Normal(toy.mu[y], 1.0).to_event(1))
            assert z.shape == (N, 2)
            pyro.sample("x", dist.Normal(z.cos(), 0.5).to_event(1), obs=x)

    with pytest.warns(UserWarning, match="the particles are run sequentially"):
        found = parse_objective("iwae:num_particles=3").loss(model, toy.guide, X)
    assert found == pytest.approx(parse_objective("trace-elbo").loss(toy.prior, toy.guide, X))


def test_prior_and_likelihood_are_split() -> None:
    """log p(z) = log Σ_y p(y) p(z|y), and log p(x|z) is the rest."""
    toy = Toy()
    weights = log_weights(toy.both, toy.guide, X)
    z = toy.loc + 0.7
    parts = [dist.Normal(toy.mu[y], 1.0).log_prob(z).sum(-1) for y in range(3)]
    log_prior = (torch.stack(parts, -1) + toy.pi.log_softmax(0)).logsumexp(-1)
    torch.testing.assert_close(weights.log_prior[0], log_prior, rtol=0, atol=1e-10)
    liks = [dist.Normal(z * toy.mu[y].sin(), 0.5).log_prob(X).sum(-1) for y in range(3)]
    joint = (torch.stack(parts, -1) + torch.stack(liks, -1) + toy.pi.log_softmax(0)).logsumexp(-1)
    torch.testing.assert_close(weights.log_lik[0], joint - log_prior, rtol=0, atol=1e-10)


@pytest.mark.parametrize("infer", [MARK, {}])
def test_evaluators_take_the_marginal_model(infer: dict[str, str]) -> None:
    """log p(x) of a mixture in closed form; in evaluations the site need not be marked."""
    means, log_pi = torch.tensor([-2.0, 0.5, 3.0]), LOGITS.log_softmax(0)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=LOGITS), infer=infer)
            z = pyro.sample("z", dist.Normal(means[y], 0.6))
            pyro.sample("x", dist.Normal(z, 0.8), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], 2.0))

    terms = [log_pi[c] + dist.Normal(means[c], 1.0).log_prob(X[:, 0]) for c in range(3)]
    truth = torch.stack(terms).logsumexp(0)
    found = log_likelihood(model, guide, X, num_particles=4_000, seed=0)
    assert bool(((found.log_px - truth).abs() < 5 * found.se).all())
    if infer:
        torch.testing.assert_close(quadrature(model, guide, X).log_px, truth, rtol=0, atol=1e-8)


def test_the_prior_is_the_marginal_one() -> None:
    toy = Toy()
    traces = run(toy.prior, prior_of(toy.prior), (X,), {}, num_particles=3)
    assert [name for name, _ in traces.draws()] == ["z"]
    assert isinstance(traces.guide.nodes["z"]["fn"].base_dist, dist.Normal)
    weights = log_weights(toy.prior, prior_of(toy.prior), X, num_particles=3)
    torch.testing.assert_close(weights.log_prior, weights.log_post)


def test_masks_act_inside_the_sum_and_common_scales_outside() -> None:
    """As in `TraceEnum_ELBO`."""
    toy, mask = Toy(), torch.tensor([True, False, True, True, False])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=3.0):
            y = pyro.sample("y", dist.Categorical(logits=toy.pi), infer=MARK)
            with poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(toy.mu[y], 0.5).to_event(1), obs=x)

    pyros = TraceEnum_ELBO(max_plate_nesting=1).loss(model, toy.nothing, X)
    assert parse_objective("trace-elbo").loss(model, toy.nothing, X) == pytest.approx(pyros)


# Refusals.


def scaled(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.3), infer=MARK)
        with poutine.scale(scale=2.0):
            pyro.sample("x", dist.Normal(y, 1.0), obs=x[:, 0])


def subsampled(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        y = pyro.sample("y", dist.Bernoulli(0.3), infer=MARK)
        with pyro.plate("inner", 4, subsample_size=2, dim=-2):
            pyro.sample("x", dist.Normal(y, 1.0), obs=x.t())


def outside(x: Tensor) -> None:
    y = pyro.sample("y", dist.Bernoulli(0.3), infer=MARK)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(y, 1.0), obs=x[:, 0])


def infinite(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Poisson(0.3), infer=MARK)
        pyro.sample("x", dist.Normal(y, 1.0), obs=x[:, 0])


def large(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(torch.full((13,), 0.5)).to_event(1), infer=MARK)
        pyro.sample("x", dist.Normal(y.sum(-1), 1.0), obs=x[:, 0])


def unmarked(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(y, 1.0), obs=x[:, 0])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (scaled, "the sum over the site 'y' needs one scale for all sites .* 'x' has another one"),
        (subsampled, "the sum over the site 'y' needs one scale .* 'x' has another one"),
        (outside, "'y', which is summed out, lies outside the data plate 'data', and 'x' within"),
        (infinite, r"'y' is marked .* not known to be finite \(Poisson\)"),
        (large, "'y' has 2^13 states per element, more than the 4,096"),
        (unmarked, "'y' has no counterpart in the guide, which has [].*: mark it with infer="),
    ],
)
def test_refused(model: Callable[[Tensor], None], words: str) -> None:
    pattern = re.sub(r"\[\]", r"\\[\\]", words.replace("2^13", r"2\^13"))
    with pytest.raises(ProgramError, match=pattern):
        parse_objective("trace-elbo").loss(model, lambda x: None, X)


def test_a_sum_without_the_prior_of_the_site_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy()
    pyros = TraceEnum_ELBO(max_plate_nesting=1).loss(toy.both, toy.guide, X)
    right = model_sums._Sums._contracted

    def broken(self: Any, component: Any, names: Any) -> Tensor:
        for name in component.summed:
            self._terms[name] = torch.zeros_like(self._terms[name])
        return right(self, component, names)

    monkeypatch.setattr(model_sums._Sums, "_contracted", broken)
    assert abs(parse_objective("trace-elbo").loss(toy.both, toy.guide, X) - pyros) > 0.1


class Mixture(nn.Module):
    """A mixture in the latent space, with a linear guide."""

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.tensor([-1.0, 0.5, 2.0]))
        self.logits = nn.Parameter(torch.zeros(3))
        self.slope = nn.Parameter(torch.tensor(0.3))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer=MARK)
            z = pyro.sample("z", dist.Normal(self.means[y], 0.7))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iwae", "dreg", "vimco"])
def test_a_summed_site_trains_under_compilation_as_without(name: str) -> None:
    losses = []
    for compiled in (False, True):
        pyro.set_rng_seed(0)
        result = fit(
            Mixture(),
            (torch.linspace(-2.0, 3.0, 16),),
            parse_objective(name, 4),
            TrainConfig(epochs=3, batch_size=8, lr=0.05),
            compile=compiled,
            progress=False,
        )
        losses.append([row.train_nelbo for row in result.history])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
