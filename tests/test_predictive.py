"""`pyro.infer.Predictive` on the models of the zoo: the observed site is drawn where x is None."""

import re

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor

from pyroae import likelihoods, zoo
from pyroae.autoencoder import Autoencoder
from pyroae.errors import DataError, UndefinedLikelihoodError
from pyroae.likelihoods import LIKELIHOODS
from pyroae.nn import MLP
from pyroae.priors import PRIORS, Flat, Vamp
from tests.systems import ZOO, D, M

MAPS = MLP((5,))
MIXED = LIKELIHOODS.parse("mixed:columns=normal(feature)*2+categorical(4)+poisson+bernoulli*2")
OTHERS = {
    "conditional-vae": lambda: zoo.conditional_vae(D, M, encoder=MAPS, condition=3),
    "m2": lambda: zoo.m2(D, M, encoder=MAPS, condition=3),
    "missing": lambda: zoo.vae(D, M, encoder=MAPS, missing=True),
    "mixed": lambda: zoo.vae(6, M, encoder=MAPS, likelihood=MIXED),
    "counts": lambda: zoo.vae(
        D, M, encoder=MAPS, likelihood=likelihoods.NegativeBinomial(library="observed")
    ),
    "grey": lambda: zoo.vae(D, M, encoder=MAPS, likelihood=likelihoods.DiscretizedLogistic()),
    "vamp": lambda: zoo.vae(D, M, encoder=MAPS, prior=Vamp(4)),
    "flow": lambda: zoo.vae(D, M, encoder=MAPS, prior=PRIORS.parse("flow")),
}
EVERY = {**ZOO, **OTHERS}
FLAT = [name for name, make in EVERY.items() if isinstance(make().prior, Flat)]
SAMPLED = [name for name in EVERY if name not in FLAT]


def conditions(system: Autoencoder, count: int) -> tuple[Tensor, ...]:
    """One-hot conditions of `count` data, where the system takes them."""
    if not system.condition:
        return ()
    return (torch.eye(system.condition)[torch.arange(count) % system.condition],)


@pytest.mark.parametrize("name", SAMPLED)
def test_the_model_of_every_system_draws_x(name: str) -> None:
    """By default one datum, 3 by size or conditions, in a loop and at once, with its density."""
    pyro.set_rng_seed(0)
    system = EVERY[name]().double().eval()  # without the classification term of M2
    c = tuple(part.double() for part in conditions(system, 3))
    size = {} if c else {"size": 3}
    for parallel in (False, True):
        draws = Predictive(system.model, num_samples=4, parallel=parallel)(None, *c, **size)
        assert draws["x"].shape == (4, 3, system.features)
        assert draws["x"].dtype == torch.float64
        assert draws["x"].unique().numel() > 1
        system.likelihood.check(draws["x"][0], "the draws")
    one = (torch.eye(system.condition).double()[0],) if c else ()
    assert Predictive(system.model, num_samples=7)(None, *one)["x"].shape == (7, 1, system.features)
    drawn = poutine.trace(system.model).get_trace(None, *c, **size)
    x = drawn.nodes["x"]["value"]
    assert [f.name for f in drawn.nodes["x"]["cond_indep_stack"]] == ["data"]
    assert not drawn.nodes["x"]["is_observed"]
    observed = poutine.trace(poutine.replay(system.model, trace=drawn)).get_trace(x, *c)
    assert observed.nodes["x"]["is_observed"]
    torch.testing.assert_close(drawn.log_prob_sum(), observed.log_prob_sum())


@pytest.mark.parametrize("name", FLAT)
def test_a_flat_prior_is_refused_in_one_sentence(name: str) -> None:
    system = EVERY[name]()
    with pytest.raises(UndefinedLikelihoodError, match=r"^a Flat prior cannot be sampled"):
        system.model(None)
    with pytest.raises(UndefinedLikelihoodError, match=r"^a Flat prior cannot be sampled"):
        Predictive(system.model, num_samples=2)(None)


@pytest.mark.parametrize("name", ["ppca", "vae-ladder", "discrete-vae", "conditional-vae", "m2"])
def test_draws_of_the_guide_are_decoded(name: str) -> None:
    pyro.set_rng_seed(0)
    system = EVERY[name]()
    c, x = conditions(system, 5), (torch.rand(5, D) < 0.4).float()
    z = Predictive(system.guide, num_samples=6)(x, *c)
    for parallel in (False, True):
        predictive = Predictive(system.model, z, return_sites=("x", "z"), parallel=parallel)
        draws = predictive(None, *c, **({} if c else {"size": 5}))
        assert draws["x"].shape == (6, 5, D)
        assert torch.equal(draws["z"], z["z"])
    if not c:
        with pytest.raises(DataError, match=r"are of 5 data, but the model draws 1: give size=5"):
            Predictive(system.model, z)(None)
    fresh = poutine.uncondition(system.model)
    draws = Predictive(fresh, guide=system.guide, num_samples=6)(x, *c)
    assert draws["x"].shape == (6, 5, D)
    assert not torch.equal(draws["x"][0], draws["x"][1])
    same = Predictive(system.model, guide=system.guide, num_samples=2)(x, *c)["x"]
    assert torch.equal(same, x.expand(2, 5, D))  # with x the site is observed
    with pytest.raises(DataError, match="x is a NoneType"):
        Predictive(system.model, guide=system.guide, num_samples=2)(None, *c)


def test_draws_of_ppca_have_its_moments() -> None:
    """x ~ N(b, WWᵀ + σ²I): mean within 5 standard errors, covariance within 5."""
    torch.manual_seed(1)
    system, draws = zoo.ppca(4, 2).double(), 40_000
    with torch.no_grad():
        weight, bias, scale = system.linear_gaussian()
        x = Predictive(system.model, num_samples=1)(None, size=draws)["x"][0]
        z = torch.randn(6, 2, dtype=torch.float64)
        posterior = Predictive(system.model, {"z": z.expand(draws // 4, 6, 2)}, parallel=True)
        decoded = posterior(None, size=6)["x"]
    covariance = weight @ weight.T + scale**2 * torch.eye(4)
    variance = covariance.diagonal()
    assert ((x.mean(0) - bias).abs() < 5 * (variance / draws).sqrt()).all()
    se = ((covariance**2 + variance[:, None] * variance) / draws).sqrt()
    assert ((x.T.cov() - covariance).abs() < 5 * se).all()
    without_noise = system.sample(draws).T.cov()  # a broken copy is caught
    assert ((without_noise - covariance).abs() > 5 * se).any()
    error = (decoded.mean(0) - system.decode(z)).abs()  # E[x̃|z] is the decoder's mean
    assert (error < 5 * scale / (draws / 4) ** 0.5).all()
    assert ((decoded.std(0) / scale - 1).abs() < 5 / (draws / 2) ** 0.5).all()


def test_labels_of_m2_are_kept_and_others_drawn() -> None:
    pyro.set_rng_seed(0)
    system = zoo.m2(D, M, encoder=MAPS, condition=3)
    c = torch.cat([torch.eye(3), torch.zeros(300, 3)])
    y = poutine.trace(system.model).get_trace(None, c).nodes["y"]["value"]
    assert torch.equal(y[:3], torch.eye(3))
    assert (y[3:].mean(0) - 1 / 3).abs().max() < 0.15


@pytest.mark.parametrize(
    ("arguments", "size", "words"),
    [
        ((None,), 0, "size, the number of data that are drawn, is at least 1, not 0"),
        ((None,), 2.5, "size, the number of data that are drawn, is at least 1, not 2.5"),
        ((torch.zeros(3, D),), 4, "the size is 4, but x holds 3 data"),
        ((None, torch.zeros(3, 2)), 4, "the size is 4, but c holds 3 conditions"),
    ],
)
def test_a_wrong_size_is_refused(
    arguments: tuple[Tensor | None, ...], size: int, words: str
) -> None:
    system = zoo.vae(D, M, encoder=MAPS, condition=2 * (len(arguments) == 2))
    with pytest.raises(DataError, match=f"^{re.escape(words)}"):
        system.model(*arguments, size=size)
