"""Log-weights: per datum, whatever the plates; scales divided out or kept as exponents."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyroae.errors import BrokenProgramError
from pyroae.evaluation.adaptive_quadrature import quadrature
from pyroae.evaluation.importance.likelihood import log_likelihood
from pyroae.objectives import OBJECTIVES
from pyroae.programs.context import evaluating
from pyroae.programs.particle_check import plate_nesting
from pyroae.weights import log_weights
from tests.objectives.test_objectives import DATA, hierarchical
from tests.systems import system_and_data

pytestmark = pytest.mark.usefixtures("float64")


def test_parts_are_the_log_densities() -> None:
    system, x = system_and_data("vae")
    system.eval()
    pyro.set_rng_seed(1)
    weights = log_weights(system.model, system.guide, x, num_particles=5)
    pyro.set_rng_seed(1)
    q = system.q_z(x)
    z = q.expand((5, len(x))).sample()
    torch.testing.assert_close(weights.log_lik, system.p_x(z).log_prob(x), rtol=1e-12, atol=0)
    torch.testing.assert_close(weights.log_prior, system.p_z().log_prob(z), rtol=1e-12, atol=0)
    torch.testing.assert_close(weights.log_post, q.log_prob(z), rtol=1e-12, atol=0)
    assert weights.scale == 1.0


def test_exact_posterior_gives_constant_weights() -> None:
    """log w = log p(x) at K = 1, to 1e-6 and better."""
    system, x = system_and_data("ppca-exact")
    weights = log_weights(system.model, system.guide, x, num_particles=1).log_weight[0]
    weight, bias, scale = system.linear_gaussian()
    covariance = weight @ weight.T + scale**2 * torch.eye(len(bias))
    expected = torch.distributions.MultivariateNormal(bias, covariance).log_prob(x)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("size", [None, 40])
def test_scales_common_to_the_plate_are_divided_out(size: int | None, scale: float) -> None:
    system, x = system_and_data("vae")
    system.eval()
    num_data = len(x)

    def subsampled(program: Any) -> Any:
        def within(x: Tensor) -> None:
            with poutine.scale(scale=scale * (1.0 if size is None else size / num_data)):
                program(x)

        return within

    pyro.set_rng_seed(1)
    plain = log_weights(system.model, system.guide, x, num_particles=3)
    pyro.set_rng_seed(1)
    scaled = log_weights(subsampled(system.model), subsampled(system.guide), x, num_particles=3)
    torch.testing.assert_close(scaled.log_weight, plain.log_weight, rtol=1e-12, atol=0)
    assert scaled.scale == pytest.approx(scale * (size or num_data) / num_data)
    per_datum = plain.log_weight.logsumexp(0)
    assert scaled.total(per_datum).item() == pytest.approx(
        float(scaled.scale) * per_datum.sum().item()
    )


def test_plate_subsampling_is_divided_out() -> None:
    model, guide, _ = hierarchical(40)
    weights = log_weights(model, guide, DATA.double(), num_particles=3)
    assert weights.scale == 10.0
    assert weights.log_weight.shape == (3, 4)
    assert weights.log_global.shape == (3,)


def test_a_scale_on_one_site_stays_as_an_exponent() -> None:
    system, x = system_and_data("vae")
    system.eval()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.5):
                z = pyro.sample("z", system.p_z())
            pyro.sample("x", system.p_x(z), obs=x)

    pyro.set_rng_seed(1)
    plain = log_weights(system.model, system.guide, x, num_particles=2)
    pyro.set_rng_seed(1)
    tempered = log_weights(model, system.guide, x, num_particles=2)
    torch.testing.assert_close(tempered.log_prior, 0.5 * plain.log_prior)
    torch.testing.assert_close(tempered.log_lik, plain.log_lik)
    assert tempered.scale == 1.0


def test_nested_plates_equal_a_loop_over_single_data() -> None:
    """With the draws fixed, each datum's weight does not depend on the others."""
    model, guide, _ = hierarchical()
    x = DATA.double()
    draws = poutine.trace(guide).get_trace(x)

    def fixed(index: Tensor) -> Any:
        values = {
            n: s["value"]
            for n, s in draws.nodes.items()
            if s["type"] == "sample" and n in ("level", "a", "b")
        }
        values = {n: v if n == "level" else v[index] for n, v in values.items()}

        def replay(x: Tensor) -> None:
            with _Fix(values):
                guide(x)

        return replay

    together = log_weights(model, fixed(torch.arange(4)), x)
    assert together.log_weight.shape == (1, 4)
    for n in range(4):
        alone = log_weights(model, fixed(torch.tensor([n])), x[n : n + 1])
        torch.testing.assert_close(
            alone.log_weight[0, 0], together.log_weight[0, n], rtol=1e-12, atol=0
        )
        torch.testing.assert_close(alone.log_global, together.log_global, rtol=1e-12, atol=0)


class _Fix(poutine.messenger.Messenger):
    """Gives sites fixed values, without making them observed."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def test_masked_data_have_no_weight() -> None:
    system, x = system_and_data("vae")
    keep = torch.tensor([True, False, True, True, True, False])
    weights = log_weights(
        poutine.mask(system.model, mask=keep),
        poutine.mask(system.guide, mask=keep),
        x,
        num_particles=2,
    )
    assert (weights.log_weight[:, ~keep] == 0).all()
    assert (weights.log_weight[:, keep] != 0).all()


def test_nesting_is_found_without_touching_the_generator() -> None:
    model, guide, _ = hierarchical()
    before = torch.get_rng_state()
    assert plate_nesting(model, guide, (DATA.double(),), {}) == 2
    assert plate_nesting(lambda: None, lambda: None, (), {}) == 0
    assert torch.equal(before, torch.get_rng_state())


def test_several_latent_sites_of_several_shapes() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(a + b.sum(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(x / 2, 1.0))
            pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    x = torch.arange(5.0)
    pyro.set_rng_seed(1)
    weights = log_weights(model, guide, x, num_particles=7)
    pyro.set_rng_seed(1)
    a = x / 2 + torch.randn(7, 5)
    assert weights.log_weight.shape == (7, 5)
    torch.testing.assert_close(
        weights.log_prior - weights.log_post, x.square() / 8 - x * a / 2
    )  # b's terms cancel


def test_evaluation_mode_is_left_as_it_was() -> None:
    system, _ = system_and_data("denoising-ae")
    system.decoder.eval()
    with evaluating(system.model, system.guide):
        assert not system.training
        assert not torch.is_grad_enabled()
    assert system.training
    assert not system.decoder.training
    assert torch.is_grad_enabled()


BROKEN: dict[str, Any] = {
    "scale 0": lambda z: poutine.scale(scale=0.0).__enter__(),
    "shapes": lambda z: torch.zeros(2, 3) @ torch.zeros(2, 3),
    "index": lambda z: z[7],
    "nothing": lambda z: None + z,
    "own": lambda z: {"a": 1}["key"],
    "name": lambda z: pyro.sample("z", dist.Normal(z, 1.0)),
}


@pytest.mark.parametrize("why", BROKEN)
def test_an_error_of_the_program_is_a_sentence_that_names_the_last_site(why: str) -> None:
    """Of Pyro's, torch's and the program's own; the error itself is the cause."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            BROKEN[why](z)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    x = torch.zeros(3)
    works: list[Callable[[], Any]] = [
        lambda: log_likelihood(model, guide, x),
        lambda: quadrature(model, guide, x),
    ]
    works += [
        partial(OBJECTIVES[name](num_particles=4).bound, model, guide, x) for name in OBJECTIVES
    ]
    for work in works:
        with pytest.raises(
            BrokenProgramError, match=r"^the model fails after the site 'z': [A-Z]\w+: .+"
        ) as refusal:
            work()
        assert "\n" not in str(refusal.value)
        assert refusal.value.__cause__ is not None
