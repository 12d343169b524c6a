"""Scores corrected on a random subset: their intervals by simulation and on programs with a known
log p(x), what is told as a difference, and the choice of the stronger estimate.
"""

import math
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from pyroae import (
    AISSettings,
    Budget,
    Dataset,
    Scoring,
    TraceELBO,
    Variant,
    ais,
    compare_training,
    enumerated_log_likelihood,
    exact_log_likelihood,
    load,
    load_study,
    log_likelihood,
    quadrature,
    zoo,
)
from pyroae.comparison.results import Cell, Comparison, Entry, Outcome, indistinct
from pyroae.comparison.scores import Correction, Score, interval_of, sampling_variance
from pyroae.config import TrainConfig
from pyroae.errors import ConfigError, DataError
from pyroae.objectives.named import dreg, iwae
from pyroae.studies.scoring import corrected, method_for


def trusted(log_px: Tensor, correction: Correction | None = None, noise: float = 0.0) -> Score:
    count = len(log_px)
    return Score(
        log_px,
        torch.full((count,), noise),
        reliable=torch.ones(count, dtype=torch.bool),
        correction=correction,
    )


def exactly(index: Tensor, log_px: Tensor) -> Correction:
    count = len(index)
    return Correction("exact", index, log_px, torch.zeros(count), torch.ones(count) > 0)


def of_entry(name: str, scores: list[Score]) -> list[Outcome]:
    return [Outcome(Cell(name, 1, seed), s, {}, 1, 1, 1, 1.0) for seed, s in enumerate(scores)]


# The estimate and its intervals.


def test_the_corrected_mean_and_its_variance_by_hand() -> None:
    """a = 1, 2, 6 and corrections of .5 and −.1 for the first and third: mean 3 + .2."""
    values, index = torch.tensor([[1.0, 2.0, 6.0]]).double(), torch.tensor([0, 2])
    shifts = torch.tensor([[0.5, -0.1]]).double()
    found = interval_of(values, shifts, index)
    assert found.value == pytest.approx(3.2)
    by_values, by_shifts, both = 7.0, 0.18, -1.5
    t = stats.t.ppf(0.975, 1)
    squared = 1.959964**2 * (by_values / 3 + 2 * both / 3) + t**2 * by_shifts / 2
    assert found.high - found.value == pytest.approx(math.sqrt(squared))
    score = trusted(-values[0], exactly(index, -values[0][index] - shifts[0]))
    assert score.nll == pytest.approx(3.2)
    assert score.error == pytest.approx(math.sqrt(by_shifts / 2 / 3))


def test_a_correction_of_all_data_is_the_stronger_estimate() -> None:
    torch.manual_seed(0)
    weak, strong = -torch.rand(20).double(), torch.rand(20).double()
    everything = torch.arange(20)
    score = trusted(weak, exactly(everything, strong))
    assert score.nll == pytest.approx(-strong.mean().item())
    assert score.error == 0
    found = interval_of(-weak[None], -(strong - weak)[None], everything)
    t = stats.t.ppf(0.975, 19) / 1.959964
    half = 1.959964 * math.sqrt(strong.var().item() / 20)
    assert half < found.high - found.value < t * 2 * half


@pytest.mark.parametrize(
    ("num_data", "count"), [pytest.param(400, 80, marks=pytest.mark.slow), (100, 60)]
)
def test_coverage_where_the_correction_depends_on_the_value(num_data: int, count: int) -> None:
    """Corrections that are correlated with the values, as those of a poor proposal are."""
    torch.manual_seed(1)
    held, fixed = 0, 0
    repetitions = 2000
    for _ in range(repetitions):
        truth = torch.randn(num_data).double() - 80
        weak = truth - 0.3 * (truth + 81).square()
        index = torch.randperm(num_data)[:count].sort().values
        score = trusted(weak, exactly(index, truth[index]))
        found = Comparison(tuple(of_entry("a", [score]))).nll(Entry("a", 1))
        held += found.low <= 80 <= found.high
        fixed += abs(score.nll + truth.mean().item()) < score.margin
    assert 0.93 < held / repetitions < 0.975
    assert 0.92 < fixed / repetitions < 0.97


def test_the_variance_of_a_subset_of_all() -> None:
    assert sampling_variance(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 1.5]), 2) == 0.5
    assert sampling_variance(torch.tensor([1.0]), torch.zeros(1), 2) == math.inf


# What is told.


def test_a_difference_within_the_error_of_scoring_is_not_told() -> None:
    torch.manual_seed(2)
    truth = -80 + torch.randn(300).double()
    one = of_entry("one", [trusted(truth) for _ in range(3)])
    clear = Comparison((*one, *of_entry("two", [trusted(truth + 0.5) for _ in range(3)])))
    assert indistinct(clear.ranking()) == []
    noisy = Comparison((*one, *of_entry("two", [trusted(truth + 0.5, noise=1.0)] * 3)))
    row = noisy.ranking()[1]
    assert not row.from_best.estimate.holds_zero
    assert row.from_best.scoring_error > 0.5  # a bias of up to .5 nats
    assert indistinct(noisy.ranking()) == [Entry("one", 1)]


def test_an_unreliable_score_is_never_told() -> None:
    """Fails closed: too many flags, or none known."""
    truth = -torch.rand(50).double()
    some = torch.ones(50, dtype=torch.bool)
    some[:6] = False
    for reliable in (None, some):
        score = Score(truth + 9, torch.zeros(50), reliable=reliable)
        assert score.error == math.inf
        found = Comparison((*of_entry("a", [trusted(truth)]), *of_entry("b", [score])))
        assert indistinct(found.ranking()) == [Entry("a", 1)]
    some[0] = True
    assert Score(truth, torch.zeros(50), reliable=some).error == 0
    index = torch.arange(30)
    strong = Correction("local", index, truth[:30], torch.zeros(30), some[:30])
    assert Score(truth, torch.zeros(50), reliable=some, correction=strong).error == math.inf


def test_corrections_on_different_subsets_are_refused() -> None:
    truth = -torch.rand(10).double()
    scores = [trusted(truth, exactly(i, truth[i])) for i in map(torch.tensor, ([0, 1], [2, 3]))]
    with pytest.raises(DataError, match="their corrections have the same data"):
        Comparison((*of_entry("a", scores[:1]), *of_entry("b", scores[1:])))


def test_exact_scores_beside_corrected_ones() -> None:
    """One system has exact values for all data, the other a correction on a subset."""
    truth = -torch.rand(40).double()
    index = torch.arange(0, 40, 2)
    whole = trusted(truth - 5, exactly(torch.arange(40), truth))
    part = trusted(truth - 1.25, exactly(index, truth[index] - 0.25))
    found = Comparison((*of_entry("whole", [whole]), *of_entry("part", [part])))
    difference = found.difference(Entry("part", 1), Entry("whole", 1))
    assert difference.estimate.value == pytest.approx(0.25)
    assert difference.is_told


# Programs with a known log p(x): the guide is a poor proposal.


class Library(nn.Module):
    """z ~ N(0, I₂), u ~ Gamma(a, a), x ~ Poisson(u · lib · softmax(W z)); `lib` a covariate.

    The guide is too narrow around a linear function of log(1 + x).
    """

    rate = 3.0

    def __init__(self, features: int = 6, width: float = 0.25) -> None:
        super().__init__()
        self.maps = nn.Linear(2, features)
        self.encoder = nn.Linear(features, 2)
        self.width = width

    def model(self, x: Tensor, lib: Tensor) -> None:
        pyro.module("library", self)
        a = torch.tensor(self.rate).to(lib)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(lib.new_zeros(2), 1.0).to_event(1))
            u = pyro.sample("u", dist.Gamma(a, a))
            mean = (u * lib).unsqueeze(-1) * self.maps(z).softmax(-1)
            pyro.sample("x", dist.Poisson(mean).to_event(1), obs=x)

    def guide(self, x: Tensor, lib: Tensor) -> None:
        pyro.module("library", self)
        count = x.sum(-1)
        with pyro.plate("data", len(x), dim=-1):
            loc = self.encoder(x.log1p())
            pyro.sample("z", dist.Normal(loc, self.width).to_event(1))
            pyro.sample("u", dist.Gamma(self.rate + count, self.rate + lib))

    def summed_out(self, x: Tensor, lib: Tensor) -> None:
        """The model with u integrated: Γ(a+n)/Γ(a) a^a lib^n / (a+lib)^(a+n) Π p_j^x_j / x_j!."""
        a, n = torch.tensor(self.rate).to(lib), x.sum(-1)
        constant = (a + n).lgamma() - a.lgamma() + a * a.log() + n * lib.log()
        constant = constant - (a + n) * (a + lib).log() - (x + 1).lgamma().sum(-1)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(lib.new_zeros(2), 1.0).to_event(1))
            pyro.factor("x", constant + (x * self.maps(z).log_softmax(-1)).sum(-1))

    def only_z(self, x: Tensor, lib: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x.log1p()), 1.0).to_event(1))


@cache
def library(count: int) -> tuple[Library, tuple[Tensor, ...], Tensor]:
    """The program, a population of data from other weights, and their exact log p(x)."""
    torch.manual_seed(5)
    system = Library().double()
    for weights in (system.maps.weight, system.encoder.weight):
        nn.init.normal_(weights, std=0.7)
    with torch.no_grad():
        lib = torch.empty(count).double().uniform_(10, 40)
        z, u = torch.randn(count, 2).double(), dist.Gamma(3.0, 3.0).sample((count,)).double()
        mean = (u * lib)[:, None] * (1.2 * z @ system.maps.weight.T).softmax(-1)
        x = torch.poisson(mean)
    exact = quadrature(system.summed_out, system.only_z, (x, lib)).log_px
    return system, (x, lib), exact


@cache
def linear(count: int) -> tuple[Any, tuple[Tensor, ...], Tensor]:
    """pPCA with a guide that is too narrow, a population, and its exact log p(x)."""
    torch.manual_seed(6)
    system = zoo.ppca(8, latent=3).double()
    with torch.no_grad():
        for name, parameter in system.named_parameters():
            parameter.normal_(0, 0.5) if "weight" in name else None
    x = 1.5 * torch.randn(count, 8).double()
    return system, (x,), exact_log_likelihood(system, x)


POPULATIONS = {"library": library, "linear": linear}


def coverage(name: str, repetitions: int, size: int = 2000) -> tuple[float, float, float]:
    """How often the interval holds the mean of the population, that of the error the mean of the
    data, and that of importance sampling alone the mean of the data.
    """
    system, population, exact = POPULATIONS[name](size)
    held = fixed = alone = 0
    torch.manual_seed(0)
    for seed in range(repetitions):
        at = torch.randperm(size)[:200]
        x = tuple(t[at] for t in population)
        scoring = Scoring(num_particles=50, method="local", subset=60, seed=seed)
        likelihood = log_likelihood(
            system.model, system.guide, x, num_particles=50, seed=seed, compile=False
        )
        score = corrected(likelihood, system, x, scoring)
        found = Comparison(tuple(of_entry("a", [score]))).nll(Entry("a", 1))
        held += found.low <= -exact.mean().item() <= found.high
        mean = -exact[at].mean().item()
        fixed += abs(score.nll - mean) < score.margin
        alone += abs(likelihood.nll - mean) < 1.96 * likelihood.monte_carlo_se
    return held / repetitions, fixed / repetitions, alone / repetitions


@pytest.mark.parametrize("name", [pytest.param("library", marks=pytest.mark.slow), "linear"])
def test_corrected_scores_hold_the_truth_and_others_do_not(name: str) -> None:
    held, fixed, alone = coverage(name, 8, 600)
    assert held >= 0.75
    assert fixed >= 0.75
    assert alone <= 0.4


@pytest.mark.slow
@pytest.mark.parametrize("name", list(POPULATIONS))
def test_coverage_over_200_repetitions(name: str) -> None:
    held, fixed, alone = coverage(name, 200)
    print(f"{name}: interval {held:.3f}, error {fixed:.3f}, importance sampling {alone:.3f}")
    assert 0.92 <= held <= 0.98
    assert alone < 0.5


# The choice of the stronger estimate.


def test_the_method_is_what_the_system_allows() -> None:
    digits = load("digits", binarize="dynamic")
    assert digits.test is not None
    x, auto = digits.test.x[:3], Scoring()
    assert method_for(zoo.vae(digits.train, latent=2), x, auto) == "local"
    assert method_for(zoo.ppca(64, latent=2), x, auto) == "exact"
    with pytest.raises(ConfigError, match=r"'ais' cannot be used here: .*'z' is discrete"):
        method_for(zoo.discrete_vae(digits.train, 4), x, Scoring(method="ais"))
    with pytest.raises(ConfigError, match=r"'exact' cannot be used here"):
        method_for(zoo.vae(digits.train, latent=2), x, Scoring(method="exact"))
    assert method_for(zoo.ppca(64, latent=2), x, Scoring(method="is")) == "is"
    assert method_for(zoo.discrete_vae(digits.train, 20), x, auto) == "is"
    by_sums = Scoring(method="enumeration")
    assert method_for(zoo.discrete_vae(digits.train, 20), x, by_sums) == "enumeration"
    with pytest.raises(ConfigError, match=r"'enumeration' cannot be used here: .*more than the"):
        method_for(zoo.discrete_vae(digits.train, 24), x, by_sums)


def test_scores_by_exact_sums_have_no_error() -> None:
    """They replace importance sampling for all data; the bound of a poor guide is corrected."""
    torch.manual_seed(0)
    system, x = zoo.discrete_vae(6, latent=10), (torch.rand(20, 6) < 0.4).float()
    scoring = Scoring(num_particles=5, num_data=None, method="enumeration")
    likelihood = log_likelihood(system.model, system.guide, x, num_particles=5, seed=0)
    found = corrected(likelihood, system, x, scoring)
    truth = enumerated_log_likelihood(system.model, None, x)
    assert found.method == "enumeration"
    assert found.error == 0.0
    assert found.nll == pytest.approx(-truth.mean().item(), abs=1e-9)


def test_a_subset_larger_than_the_data() -> None:
    with pytest.raises(ConfigError, match="subset of the correction has 50 data, more than the 40"):
        Scoring(num_data=40, subset=50)
    x = torch.rand(30, 4).round()
    with pytest.raises(ConfigError, match="more than the 30 held-out data"):
        compare_training(
            lambda: zoo.vae(4, 2),
            objectives={"iwae": iwae},
            train=Dataset.from_array(x),
            held_out=Dataset.from_array(x),
            budget=Budget("epochs", 1),
            scoring=Scoring(num_data=None, subset=31),
        )
    with pytest.raises(ConfigError, match="unknown score method 'locl': did you mean 'local'"):
        Scoring(method="locl")


# The null: one estimator under two names.


@pytest.mark.slow
def test_one_estimator_under_two_names() -> None:
    """Their initial weights differ: told as different in at most 3 of 20 studies."""
    digits = load("digits", binarize="dynamic")

    def second() -> nn.Module:
        torch.rand(1)
        return zoo.vae(digits.train, latent=4)

    told = 0
    for study in range(20):
        found = compare_training(
            {"one": Variant(lambda: zoo.vae(digits.train, latent=4)), "two": Variant(second)},
            digits,
            {"iwae": iwae},
            ks=(4,),
            seeds=[3 * study + i for i in range(3)],
            budget=Budget("epochs", 10),
            config=TrainConfig(lr=3e-3, keep="last"),
            scoring=Scoring(num_particles=500, method="local"),
            progress=False,
        )
        told += not indistinct(found.ranking())
    print(f"told as different: {told} of 20")
    assert told <= 3


@pytest.mark.slow
def test_corrected_scores_of_mnist_agree_with_annealing(mnist_root: Path) -> None:
    """784-200-200-50, 20,000 images, 10 epochs: the correction on 60 images moves both scores to
    what annealing finds on all; scores by importance sampling favour one estimator.
    """
    splits = load("mnist", data_root=mnist_root, binarize="dynamic")
    assert splits.test is not None
    train, held_out = splits.train.first(20_000), splits.test.x[:200]
    make = partial(zoo.vae, train, latent=50, hidden=(200, 200))
    settings: dict[str, Any] = {
        "train": train,
        "held_out": held_out,
        "seeds": (0,),
        "budget": Budget("epochs", 10),
        "scoring": Scoring(num_data=None, method="local", subset=60),
        "out": "runs/mnist-scores",
        "progress": False,
    }
    elbo = compare_training(
        make, objectives={"trace-elbo": lambda k: TraceELBO(num_particles=k)}, ks=(1,), **settings
    )
    settings["out"] = "runs/mnist-scores-dreg"
    drawn = compare_training(make, objectives={"dreg": dreg}, ks=(8,), **settings)
    annealing = AISSettings(start="guide", num_distributions=500, leapfrog_steps=5)
    off = {}
    for found, folder in ((elbo, "mnist-scores"), (drawn, "mnist-scores-dreg")):
        (outcome,) = found.outcomes
        system: Any = load_study(f"runs/{folder}", make).trained(outcome.cell).system
        annealed = ais(system.model, system.guide, held_out, settings=annealing, seed=0)
        score, name, noise = outcome.score, outcome.cell.objective, annealed.monte_carlo_se
        half = math.hypot(score.margin, 1.96 * noise)
        assert score.correction is not None
        bad = 1 - score.correction.reliable.double().mean().item()
        print(
            f"{name}: IS {score.nll_uncorrected:.3f}, corrected {score.nll:.3f} ± "
            f"{score.margin:.3f}, annealing {annealed.nll:.3f} ± {1.96 * noise:.3f}, k̂ or ESS bad "
            f"{score.unreliable_share:.2f}, of the correction {bad:.2f}"
        )
        assert abs(score.nll - annealed.nll) < half
        off[name] = (score.nll_uncorrected - annealed.nll) / half
    assert off["trace-elbo"] > 1
    assert off["dreg"] > 1
