"""Draws of gamma, Dirichlet and Poisson distributions, made outside of compiled graphs by a
generator of each chunk: the numbers of eager code, in any number of threads.
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import pyroae
from pyroae.compilation.noise_inputs import NotLiftedError, ParametricDraw, lift_all_draws
from pyroae.evaluation.importance.compiled import CompiledDraws
from pyroae.programs.traces import run
from pyroae.runtime.randomness import fork_random
from pyroae.weights import reduce_log_weights

Program = Callable[[Tensor], None]


def gamma(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def gamma_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Gamma(1.5 + x.abs(), 1.0 + (0.1 * x).exp()))


def dirichlet(x: Tensor) -> None:
    """A Gaussian site before and a beta one after it: noise and other draws in one order."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Dirichlet(torch.ones(3)))
        b = pyro.sample("b", dist.Beta(2.0, 1.0))
        pyro.sample("x", dist.Normal(a + z[..., 0] * b, 1.0), obs=x)


def dirichlet_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("a", dist.Normal(0.3 * x, 1.0))
        alpha = torch.stack([0.5 + 0.5 * x.sigmoid(), torch.ones_like(x), 0.9 - 0.1 * x.cos()], -1)
        pyro.sample("z", dist.Dirichlet(alpha))
        pyro.sample("b", dist.Beta(1.5 + 0.2 * x.cos(), 0.9))


def poisson(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Poisson(2.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def poisson_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Poisson(1 + x.square()))


def tower(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        z = pyro.sample("z", dist.Gamma(2.0, rate))
        count = pyro.sample("count", dist.Poisson(z))
        pyro.sample("x", dist.Normal(count + z, 1.0), obs=x)


def tower_guide(x: Tensor) -> None:
    """The parameters of each draw are computed from those before."""
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0 + x.abs(), 1.5))
        z = pyro.sample("z", dist.Gamma(2.0 + rate.tanh(), rate + 0.1))
        pyro.sample("count", dist.Poisson(z * x.cos().square() + 0.2))


PAIRS = [
    (gamma, gamma_guide),
    (dirichlet, dirichlet_guide),
    (poisson, poisson_guide),
    (tower, tower_guide),
]


def eager(model: Program, guide: Program, x: Tensor, num_particles: int, seed: int) -> Tensor:
    with fork_random(x.device, seed), torch.no_grad(), pyro.validation_enabled(False):
        return reduce_log_weights(run(model, guide, (x,), {}, num_particles, 1)).log_weight


@pytest.mark.parametrize(("model", "guide"), PAIRS)
def test_the_numbers_are_those_of_eager_code(model: Program, guide: Program) -> None:
    x = torch.linspace(-1.0, 2.0, 5)
    draws = CompiledDraws(model, guide, (x,), 7, 1, backend="eager")
    assert draws.is_for_threads
    assert any(isinstance(each.draw, ParametricDraw) for each in draws._draws or [])
    weights = draws.prepare((x,))
    for seed in (0, 1):
        torch.testing.assert_close(weights(7, seed), eager(model, guide, x, 7, seed))
    part = draws.prepare((x[3:],))(4, 2)  # padded with repetitions of its data, and cut
    assert part.shape == (4, 2)
    assert part.isfinite().all()
    with pytest.raises(ValueError, match="6 data are more than the 5 of the graph"):
        draws.prepare((torch.zeros(6),))


@pytest.mark.parametrize(
    ("model", "guide"), [PAIRS[1], pytest.param(*PAIRS[3], marks=pytest.mark.slow)]
)
def test_the_number_of_threads_changes_no_bit(model: Program, guide: Program) -> None:
    """By inductor's code, in several chunks."""
    x = torch.linspace(-1.0, 2.0, 40)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            state = torch.get_rng_state()
            found.append(
                pyroae.log_likelihood(
                    model, guide, x, num_particles=3000, seed=0, compile=True
                ).log_px
            )
            assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    other = pyroae.log_likelihood(model, guide, x, num_particles=3000, seed=1, compile=False)
    assert (found[0] - other.log_px).abs().max() < 0.3
    assert not torch.equal(found[0], other.log_px)


def test_a_draw_that_is_changed_in_place_leaves_the_one_of_its_caller() -> None:
    def function(rate: Tensor) -> Tensor:
        first = torch._standard_gamma(rate)
        first.clamp_(min=1.0)
        return first + torch._standard_gamma(first)

    graph, draws = lift_all_draws(make_fx(function)(torch.full((3,), 0.5)))
    given = torch.tensor([0.5, 1.0, 2.0])
    assert graph(torch.ones(3), given, torch.zeros(3)).tolist() == [1.0, 1.0, 2.0]
    assert given.tolist() == [0.5, 1.0, 2.0]
    (parameters,) = draws[1].parameters(torch.ones(3), given)  # type: ignore[operator]
    assert parameters.tolist() == [1.0, 1.0, 2.0]


def test_a_draw_into_a_tensor_that_is_used_elsewhere_is_refused() -> None:
    def function(x: Tensor) -> Tensor:
        noise = torch.empty_like(x)
        view = noise.view(-1)
        noise.normal_()
        return view + x

    with pytest.raises(NotLiftedError, match="is made into a tensor that is used elsewhere"):
        lift_all_draws(make_fx(function)(torch.zeros(3)))
