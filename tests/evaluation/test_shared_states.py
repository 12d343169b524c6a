"""Sums over joint values that share one decoder evaluation among all data."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae import zoo
from pyroae.errors import DataError
from pyroae.evaluation import blocks, enumeration, shared_states
from pyroae.evaluation.enumeration import enumerated_log_likelihood
from pyroae.nn import MLP
from pyroae.programs.sites import Program

N, M, D = 7, 9, 6


def both(
    monkeypatch: pytest.MonkeyPatch, model: Program, x: Any, shared: bool = True
) -> tuple[Tensor, Tensor]:
    """log p(x) in the shared form and in the plain one; whether the former was taken."""
    taken = list[bool]()
    right = shared_states.SharedStates.is_valid

    def recorded(self: shared_states.SharedStates) -> bool:
        taken.append(right(self))
        return taken[-1]

    with monkeypatch.context() as patch:
        patch.setattr(shared_states.SharedStates, "is_valid", recorded)
        one = enumerated_log_likelihood(model, None, x)
        patch.setattr(enumeration, "SHARED", 2**60)
        other = enumerated_log_likelihood(model, None, x)
    assert taken == [shared]
    return one, other


def program(likelihood: Any, decoder: MLP | None = None) -> Program:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(M, D, generator=generator).double()

    def model(x: Tensor, mask: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.linspace(0.1, 0.9, M)).to_event(1))
            with pyro.poutine.mask(mask=True if mask is None else mask):
                pyro.sample("x", likelihood(z @ weight, x), obs=x)

    return model


def of_missing(u: Tensor, x: Tensor) -> Any:
    return dist.Normal(u, 0.5).mask(~x.isnan()).to_event(1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("likelihood", "x"),
    [
        (lambda u, x: dist.Bernoulli(logits=u).to_event(1), torch.rand(N, D).round()),
        (lambda u, x: dist.Bernoulli(u.sigmoid()).to_event(1), torch.rand(N, D).round()),
        (lambda u, x: dist.Normal(u, 0.1 + u.abs()).to_event(1), torch.randn(N, D)),
        (lambda u, x: dist.Laplace(u, 0.5).to_event(1), torch.randn(N, D)),
        (lambda u, x: dist.Categorical(logits=u[..., :, None].expand(*u.shape, 3)), None),
    ],
)
@pytest.mark.parametrize("chunk", [None, 64 * 256])
def test_every_likelihood(
    likelihood: Any, x: Tensor | None, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matrix products for Bernoulli and Normal, broadcasts for others; in one chunk and in many."""
    if chunk is not None:
        monkeypatch.setattr(blocks, "CHUNK", chunk)
    if x is None:
        x, inner = torch.randint(0, 3, (N, D)), likelihood
        likelihood = lambda u, x: inner(u, x).to_event(1)  # noqa: E731
    x = x.double() if x.is_floating_point() else x
    one, other = both(monkeypatch, program(likelihood), x)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["bernoulli", "normal", "laplace"])
def test_masked_data(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, mask = torch.rand(N, D).round(), torch.arange(N) % 3 > 0
    x[~mask] = torch.nan
    likelihoods = {
        "bernoulli": lambda u, x: dist.Bernoulli(logits=u).to_event(1),
        "normal": lambda u, x: dist.Normal(u, 0.5).to_event(1),
        "laplace": lambda u, x: dist.Laplace(u, 0.5).to_event(1),
    }
    one, other = both(monkeypatch, program(likelihoods[kind]), (x, mask))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    assert bool((one[~mask].abs() < 1e-10).all())


@pytest.mark.usefixtures("float64")
def test_a_scaled_likelihood_in_a_nested_plate(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.linspace(-1, 1, M)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Bernoulli(torch.full((1, M), 0.3)).to_event(1))
            with pyro.plate("inner", D, dim=-1), pyro.poutine.scale(scale=0.5):
                pyro.sample("x", dist.Bernoulli(logits=(z * weight).sum(-1)), obs=x)

    one, other = both(monkeypatch, model, torch.rand(N, D).round())
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("where", ["prior", "likelihood", "one datum"])
def test_distributions_that_depend_on_the_data_take_the_plain_path(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = torch.linspace(-1, 1, N) if where != "one datum" else torch.eye(N)[-1]

    def model(x: Tensor, c: Tensor) -> None:
        with pyro.plate("data", len(x)):
            shift = c[:, None] * (where == "prior")
            logits = torch.linspace(-1, 1, M) + shift
            z = pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))
            mean = z[..., :D] + c[:, None] * (where != "prior")
            pyro.sample("x", dist.Bernoulli(logits=mean).to_event(1), obs=x)

    one, other = both(monkeypatch, model, (torch.rand(N, D).round(), c), shared=False)
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_rounding_in_single_precision() -> None:
    """Within 1e-4 nats of the sum in double precision, at 784 pixels and logits of about 5."""
    torch.manual_seed(0)
    system = zoo.discrete_vae(784, latent=9, decoder=MLP((20,))).float()
    with torch.no_grad():
        for parameter in system.decoder.parameters():
            parameter.mul_(6.0)
    x = (torch.rand(20, 784) < 0.2).float()
    found = enumerated_log_likelihood(system.model, system.guide, x)
    system.double()
    exact = enumerated_log_likelihood(system.model, system.guide, x.double())
    assert float((found - exact).abs().max()) < 1e-4


@pytest.mark.usefixtures("float64")
def test_data_that_are_not_numbers_are_refused() -> None:
    x = torch.rand(N, D).round()
    x[3, 0] = torch.nan
    model = program(lambda u, x: dist.Bernoulli(logits=u).to_event(1))
    with pytest.raises(DataError, match="of datum 3 is not finite"):
        enumerated_log_likelihood(model, None, x)


@pytest.mark.usefixtures("float64")
def test_a_form_that_is_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken copy, whose products lack softplus, is found by the comparison of all data."""
    monkeypatch.setattr(shared_states, "softplus", torch.zeros_like)
    model = program(lambda u, x: dist.Bernoulli(logits=u).to_event(1))
    assert torch.equal(*both(monkeypatch, model, torch.rand(N, D).round(), shared=False))
