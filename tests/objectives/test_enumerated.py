"""Discrete sites of a guide that are summed exactly, against sums that are written out here."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor, nn

from pyroae.config import TrainConfig
from pyroae.errors import ProgramError
from pyroae.objectives import TraceELBO, parse_objective
from pyroae.objectives.base import Nesting
from pyroae.objectives.enumerated import Enumeration
from pyroae.programs.supports import Elements
from pyroae.training import fit

N, S, MARK = 4, 3, {"enumerate": "parallel"}


class Mixture(nn.Module):
    """y ~ Categorical, z | y ~ N, x | y, z ~ N; the guide draws y, then z given y.

    `noise` fixes the draws of z, `[K, N]`: those of each value of y are the same.
    """

    def __init__(self, infer: dict[str, str] | None = None) -> None:
        super().__init__()
        self.infer = MARK if infer is None else infer
        self.means = nn.Parameter(torch.tensor([-1.0, 0.3, 2.0]))
        self.prior = nn.Parameter(torch.tensor([0.1, -0.4, 0.2]))
        self.rows = nn.Parameter(torch.tensor([[0.5, -0.2, 0.1], [0.3, 0.9, -0.7]]))
        self.shift = nn.Parameter(torch.tensor([0.2, -0.1, 0.4]))
        self.noise: Tensor | None = None

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.prior))
            z = pyro.sample("z", dist.Normal(self.means[y], 1.0))
            pyro.sample("x", dist.Normal(z * self.means[y].cos(), 0.7), obs=x)

    def guide(self, x: Tensor) -> None:
        logits = self.rows[0] + x[:, None] * self.rows[1]
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=logits), infer=self.infer)
            loc = self.shift[y] * x
            if self.noise is None:
                pyro.sample("z", dist.Normal(loc, 1.5))
                return
            z = loc + 1.5 * self.noise.expand(S, *self.noise.shape).reshape(loc.shape)
            pyro.sample("z", Fixed(loc, z))

    def log_parts(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """log w and log q(y|x) by hand, `[S, K, N]`."""
        log_q = (self.rows[0] + x[:, None] * self.rows[1]).log_softmax(-1).t()[:, None]
        log_p = self.prior.log_softmax(-1)[:, None, None]
        means, loc = self.means[:, None, None], self.shift[:, None, None] * x
        z = loc + 1.5 * noise
        log_joint = log_p + normal(z, means, 1.0) + normal(x, z * means.cos(), 0.7)
        return log_joint - normal(z, loc, 1.5) - log_q, log_q.expand(S, *noise.shape)


class Fixed(dist.Normal):
    """A Gaussian whose draw is given."""

    def __init__(self, loc: Tensor, value: Tensor) -> None:
        super().__init__(loc, 1.5 * torch.ones_like(loc))
        self.value = value

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Fixed":
        return self

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.value


def normal(x: Tensor, mean: Tensor, scale: float) -> Tensor:
    return -0.5 * ((x - mean) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("num_particles", [1, 5])
def test_bound_and_gradient_are_those_of_brute_force(num_particles: int) -> None:
    toy = Mixture().double()
    x, toy.noise = torch.randn(N), torch.randn(num_particles, N)
    objective = TraceELBO(num_particles)
    # The draws are given for S·K particles: no trial runs.
    objective.cache.get("nesting", (toy.model, toy.guide), lambda: Nesting(1, {((N,),)}))
    plate = CondIndepStackFrame("data", -1, N, None)
    found = Enumeration((Elements("y", S, 1),), plate)
    objective.cache.get("enumerations", (toy.guide,), lambda: {(f"torch.Size([{N}])",): found})
    value, surrogate = objective.bound(toy.model, toy.guide, x)
    log_w, log_q = toy.log_parts(x, toy.noise)
    expected = (log_q.exp() * log_w).sum(0).mean(0).sum()
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-8)
    parameters = list(toy.parameters())
    grads = torch.autograd.grad(surrogate, parameters)
    correct = torch.autograd.grad(expected, parameters)
    for one, other in zip(grads, correct, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)
    assert all(bool(one.abs().max() > 1e-3) for one in correct)


@pytest.mark.usefixtures("float64")
def test_without_other_sites_bound_and_gradient_are_those_of_pyro() -> None:
    weights = torch.tensor([0.2, 0.5, 0.3])
    logits = torch.randn(N, S).requires_grad_()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(y * 1.5, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), infer=MARK)

    x = torch.randn(N)
    pyros = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, guide, x)
    ours = TraceELBO().differentiable_loss(model, guide, x)
    torch.testing.assert_close(ours, pyros, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, pyros)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_the_joint_values_of_several_sites_are_summed() -> None:
    logits = torch.randn(2, N, 2).requires_grad_()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(0.3))
            b = pyro.sample("b", dist.OneHotCategorical(torch.tensor([0.6, 0.4])))
            pyro.sample("x", dist.Normal(a - b[..., 1] + a * b[..., 0], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(logits=logits[0, :, 0]), infer=MARK)
            own = logits[1] + a[..., None]
            pyro.sample("b", dist.OneHotCategorical(logits=own), infer=MARK)

    x, total = torch.randn(N), torch.tensor(0.0)
    for a in (0.0, 1.0):
        log_a = dist.Bernoulli(logits=logits[0, :, 0]).log_prob(torch.tensor(a))
        for b in (0, 1):
            log_q = log_a + (logits[1] + a).log_softmax(-1)[:, b]
            prior = math.log(0.3 if a else 0.7) + math.log(0.4 if b else 0.6)
            mean = torch.tensor(a - b + a * (1 - b))
            total = total + (log_q.exp() * (prior + normal(x, mean, 1.0) - log_q)).sum()
    value, surrogate = TraceELBO(2).bound(model, guide, x)
    torch.testing.assert_close(value, total, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad(bound, logits)[0] for bound in (surrogate, total)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_programs_that_run_particle_by_particle_are_summed_too() -> None:
    logits = torch.randn(N, S)

    def model(x: Tensor, single: bool) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
            if single:
                assert y.shape == (N,)
            pyro.sample("x", dist.Normal(y * 1.5, 1.0), obs=x)

    def guide(x: Tensor, single: bool) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits), infer=MARK)

    x = torch.randn(N)
    expected = TraceELBO().bound(model, guide, x, False).value
    with pytest.warns(UserWarning, match="the particles are run sequentially"):
        found = TraceELBO(2).bound(model, guide, x, True).value
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_a_summed_site_trains_under_compilation_as_without() -> None:
    losses = []
    for compiled in (False, True):
        pyro.set_rng_seed(0)
        result = fit(
            Mixture(),
            (torch.linspace(-1, 2, 8),),
            config=TrainConfig(epochs=2, batch_size=4, lr=0.05),
            compile=compiled,
            progress=False,
        )
        losses.append([row.train_nelbo for row in result.history])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_other_draws_need_a_path_gradient() -> None:
    def program(x: Tensor | None = None) -> None:
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Bernoulli(0.5), infer=MARK)
            pyro.sample("b", dist.Bernoulli(0.5))

    with pytest.raises(
        ProgramError, match=r"sums over the site 'y' exactly, .* the guide's site 'b'"
    ):
        TraceELBO().bound(program, program)


@pytest.mark.parametrize("objective", ["iwae", "vimco", "score", "rws"])
def test_other_estimators_draw_marked_sites_with_a_warning(objective: str) -> None:
    toy = Mixture()
    with pytest.warns(UserWarning, match="the sites y of the guide are marked .* but drawn"):
        parse_objective(objective, 2).bound(toy.model, toy.guide, torch.randn(N))


def test_marked_sites_outside_the_data_plate_are_drawn_with_a_warning() -> None:
    def program(x: Tensor) -> None:
        pyro.sample("y", dist.Bernoulli(0.5), infer=MARK)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("b", dist.Normal(0.0, 1.0))

    with pytest.warns(UserWarning, match="are marked for enumeration, but drawn"):
        TraceELBO().bound(program, program, torch.zeros(3))
