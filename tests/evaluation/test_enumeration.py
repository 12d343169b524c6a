"""log p(x) as a sum over all discrete latents: against loops written from the definition."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyroae import EvaluationSettings, evaluate, zoo
from pyroae.errors import DataError, ProgramError, PyroaeError, UndefinedLikelihoodError
from pyroae.evaluation import blocks
from pyroae.evaluation.enumeration import enumerated_log_likelihood
from pyroae.evaluation.importance.likelihood import log_likelihood
from pyroae.nn import MLP

pytestmark = pytest.mark.usefixtures("float64")

X = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-0.7, 1.1]], dtype=torch.float64)


def log_sum(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).logsumexp(0)


def assert_close(found: Tensor, truth: Tensor) -> None:
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-10)


# The zoo.


@pytest.mark.parametrize("categories", [None, 3])
@pytest.mark.parametrize("rows", [None, 64])
def test_discrete_vae(
    categories: int | None, rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bernoulli variables and one-hot vectors; in one chunk and in many, of which none is whole."""
    if rows is not None:
        monkeypatch.setattr(blocks, "CHUNK", rows * 256)
    system = zoo.discrete_vae(8, latent=6, categories=categories, decoder=MLP((5,)))
    x = (torch.rand(13, 8) < 0.5).double()
    if categories is None:
        codes = [torch.tensor(bits) for bits in itertools.product((0.0, 1.0), repeat=6)]
    else:
        eye = torch.eye(3)
        codes = [torch.cat(pair) for pair in itertools.product(eye, eye)]
    truth = log_sum(
        [
            dist.Bernoulli(logits=system.decoder(z)).log_prob(x).sum(-1) - math.log(len(codes))
            for z in codes
        ]
    ).detach()
    found = enumerated_log_likelihood(system.model, system.guide, x)
    assert_close(found, truth)
    assert_close(enumerated_log_likelihood(system.model, None, x), truth)
    if rows is None:
        estimate = log_likelihood(system.model, system.guide, x, num_particles=20_000, seed=0)
        assert bool(((estimate.log_px - found).abs() < 5 * estimate.se + 1e-9).all())


# Programs.


def chain(x: Tensor, mask: Tensor | bool = True) -> None:
    """Two sites, the second of which depends on the first; the mean depends on both."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        b = pyro.sample("b", dist.Bernoulli(0.1 + 0.4 * (a == 1).double() + 0.2 * (a == 2)))
        mean = torch.stack([a.double(), a * b - 1.0], -1)
        with pyro.poutine.mask(mask=mask):
            pyro.sample("x", dist.Normal(mean, 0.7).to_event(1), obs=x)


def truth_of_chain(x: Tensor) -> Tensor:
    terms = []
    for a, b in itertools.product(range(3), range(2)):
        one = 0.1 + 0.4 * (a == 1) + 0.2 * (a == 2)
        prior = math.log([0.2, 0.5, 0.3][a]) + math.log(one if b else 1 - one)
        mean = torch.tensor([a, a * b - 1.0])
        terms.append(prior + dist.Normal(mean, 0.7).log_prob(x).sum(-1))
    return log_sum(terms)


def chain_guide(x: Tensor, mask: Tensor | bool = True) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("a", dist.Categorical(torch.ones(3)))
        pyro.sample("b", dist.Bernoulli(torch.full((len(x),), 0.5)))


def test_two_dependent_sites() -> None:
    found = enumerated_log_likelihood(chain, chain_guide, X)
    assert_close(found, truth_of_chain(X))
    estimate = log_likelihood(chain, chain_guide, X, num_particles=50_000, seed=1)
    assert bool(((estimate.log_px - found).abs() < 5 * estimate.se).all())


def test_a_mask_on_an_observed_site() -> None:
    """Masked data have log p(x) = 0, whatever their values."""
    x, mask = X.clone(), torch.tensor([True, False, True])
    x[1] = math.nan
    found = enumerated_log_likelihood(chain, chain_guide, (x, mask))
    assert_close(found, torch.where(mask, truth_of_chain(X), 0.0))


def steps(x: Tensor, mask: Tensor) -> None:
    """One binary latent for each step of a nested plate; padded steps are masked."""
    data, step = pyro.plate("data", len(x), dim=-2), pyro.plate("steps", x.shape[1], dim=-1)
    with data, step, pyro.poutine.mask(mask=mask):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)


def test_nested_plates_and_masked_latents() -> None:
    """A masked element is no coordinate: it adds no factor 2."""
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    each = log_sum(
        [math.log(p) + dist.Normal(2.0 * z, 1.0).log_prob(X) for z, p in ((0, 0.7), (1, 0.3))]
    )
    found = enumerated_log_likelihood(steps, None, (X, mask))
    assert_close(found, torch.where(mask, each, 0.0).sum(1))


def mixture(batch: dict[str, Tensor]) -> None:
    """One-hot z within an event, whose probabilities depend on the second argument."""
    with pyro.plate("data", len(batch["x"])):
        logits = torch.stack([batch["c"], -batch["c"]], -1)
        z = pyro.sample(
            "z", dist.OneHotCategorical(logits=logits.unsqueeze(-2).expand(-1, 2, 2)).to_event(1)
        )
        pyro.sample("x", dist.Normal(z[..., 0] - z[..., 1], 0.5).to_event(1), obs=batch["x"])


def test_two_arguments_as_a_tuple_and_a_dict() -> None:
    c = torch.tensor([0.3, -1.0, 2.0])
    log_p = torch.stack([c, -c], -1).log_softmax(-1)
    each = log_sum(
        [log_p[:, i, None] + dist.Normal(1.0 - 2 * i, 0.5).log_prob(X) for i in range(2)]
    )
    assert_close(enumerated_log_likelihood(mixture, None, {"x": X, "c": c}), each.sum(1))

    def of_two(x: Tensor, c: Tensor) -> None:
        mixture({"x": x, "c": c})

    assert_close(enumerated_log_likelihood(of_two, None, (X, c)), each.sum(1))


def test_particles_that_are_run_one_by_one() -> None:
    """A program whose control flow depends on a value, the same for all data of a run."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.25)).expand([len(x)]))
            means = torch.stack([torch.full((2,), 3.0 if v else -1.0) for v in a.tolist()])
            pyro.sample("x", dist.Normal(means, 1.0).to_event(1), obs=x)

    terms = [
        math.log(p) + dist.Normal(mean, 1.0).log_prob(X).sum(-1)
        for p, mean in ((0.75, -1.0), (0.25, 3.0))
    ]
    with pytest.warns(UserWarning, match="the particles are run sequentially"):
        found = enumerated_log_likelihood(model, None, X)
    assert_close(found, log_sum(terms))


def test_memory_that_runs_out_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = enumerated_log_likelihood(chain, None, X)
    monkeypatch.setattr(blocks, "CHUNK", 64 * 256)
    sizes = list[int]()

    def small(x: Tensor) -> None:
        sizes.append(len(x))
        if len(x) > 2:
            raise MemoryError
        chain(x)

    with pytest.warns(UserWarning, match="memory ran out with 64 values at once"):
        found = enumerated_log_likelihood(small, None, X)
    assert_close(found, whole)
    assert max(sizes) == 3


# Refusals.


def both(mean: Tensor) -> Any:
    """The distribution of both elements of a datum."""
    return dist.Normal(torch.stack([mean, mean], -1), 1.0).to_event(1)


def program(site: Callable[[Tensor], Any], name: str = "z") -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample(name, site(x))
            pyro.sample(
                "x",
                both(z.double()),
                obs=x,
            )

    return model


def mixed(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Bernoulli(0.5))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("x", both(b), obs=x)


def with_global(x: Tensor) -> None:
    w = pyro.sample("w", dist.Bernoulli(0.5))
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Bernoulli(0.5))
        pyro.sample("x", both(w + a), obs=x)


def sizes(x: Tensor) -> None:
    """The values of b depend on a; those of a first draw are not all."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Bernoulli(0.5))
        b = pyro.sample("b", dist.Binomial(1 + a, 0.5))
        pyro.sample("x", both(b), obs=x)


def affine(x: Tensor) -> Any:
    return dist.TransformedDistribution(
        dist.Bernoulli(0.5), [dist.transforms.AffineTransform(1.0, 2.0)]
    )


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        (mixed, UndefinedLikelihoodError, r"the latent site 'b' is continuous \(Normal\)"),
        (with_global, UndefinedLikelihoodError, "the latent site 'w' lies outside the data plate"),
        (
            program(lambda _: dist.Poisson(2.0)),
            UndefinedLikelihoodError,
            r"the latent site 'z' does not have finitely many values that are known \(Poisson\)",
        ),
        (
            program(lambda _: dist.Geometric(0.5), "count"),
            UndefinedLikelihoodError,
            r"the latent site 'count' does not have finitely .* \(Geometric\)",
        ),
        (program(affine), UndefinedLikelihoodError, "the latent site 'z' does not have finitely"),
        (
            program(lambda _: dist.Categorical(torch.ones(2**22 + 1))),
            UndefinedLikelihoodError,
            r"the latent site 'z' \(4194305\) has 4,194,305 joint values, more than the 4,194,304",
        ),
        (sizes, ProgramError, "sum to 0.875, not 1: the values that a site takes depend on"),
    ],
)
@pytest.mark.filterwarnings("ignore:the particles are run sequentially")
def test_refused(model: Any, kind: type[PyroaeError], words: str) -> None:
    with pytest.raises(kind, match=words):
        enumerated_log_likelihood(model, None, X)


def test_refused_data_and_limits() -> None:
    x = X.clone()
    x[1, 0] = math.nan
    with pytest.raises(DataError, match="of datum 1 is not finite"):
        enumerated_log_likelihood(chain, None, x)
    with pytest.raises(DataError, match="have no data"):
        enumerated_log_likelihood(chain, None, X[:0])
    with pytest.raises(
        UndefinedLikelihoodError,
        match=r"sites 'a' \(3\) and 'b' \(2\) have 6 joint values, more than the 5",
    ):
        enumerated_log_likelihood(chain, None, X, limit=5)
    with pytest.raises(ProgramError, match="site 'a' is scaled in the model"):
        enumerated_log_likelihood(scaled, None, X)


def scaled(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        with pyro.poutine.scale(scale=2.0):
            a = pyro.sample("a", dist.Bernoulli(0.5))
        pyro.sample("x", both(a), obs=x)


def without_plate(x: Tensor) -> None:
    a = pyro.sample("a", dist.Bernoulli(0.25))
    pyro.sample("x", both(a.unsqueeze(-1).expand(*a.shape, len(x))).to_event(1), obs=x)


def test_a_program_without_a_plate_is_one_datum() -> None:
    """All of x is one datum; several have no log p(x)."""
    terms = [
        math.log(p) + dist.Normal(mean, 1.0).log_prob(X[:1]).sum(-1)
        for p, mean in ((0.75, 0.0), (0.25, 1.0))
    ]
    assert_close(enumerated_log_likelihood(without_plate, None, X[:1]), log_sum(terms))
    with pytest.raises(UndefinedLikelihoodError, match="no plate holds the data"):
        enumerated_log_likelihood(without_plate, None, X)


# In an evaluation.


def test_evaluate_has_the_sum() -> None:
    """By default where it has no more terms than there are particles; on request up to 2^16."""
    system = zoo.discrete_vae(8, latent=6, decoder=MLP((5,)))
    x = (torch.rand(13, 8) < 0.5).double()
    truth = enumerated_log_likelihood(system.model, None, x)
    for settings in (
        EvaluationSettings(num_particles=64),
        EvaluationSettings(("exact",), num_particles=5),
    ):
        found = evaluate(system, x, settings)
        assert found.exact is not None
        assert_close(found.exact, truth)
        assert found.results["nll_exact"].estimate == pytest.approx(-truth.mean().item())
    assert evaluate(system, x, EvaluationSettings(num_particles=63)).exact is None
    pair = evaluate((chain, chain_guide), X, EvaluationSettings(num_particles=20))
    assert pair.exact is not None
    assert_close(pair.exact, truth_of_chain(X))
    with pytest.raises(UndefinedLikelihoodError, match="the latent site 'b' is continuous"):
        evaluate((mixed, mixed_guide), X, EvaluationSettings(("exact",)))


def mixed_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("a", dist.Bernoulli(torch.full((len(x),), 0.5)))
        pyro.sample("b", dist.Normal(torch.zeros(len(x)), 1.0))
