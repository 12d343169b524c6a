"""Paired comparisons of trainings: intervals against the formula and by simulation, pairing,
ranking, tables and figures.
"""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pyroae.comparison.budget import ENDLESS, Budget, evaluations_of
from pyroae.comparison.results import (
    Cell,
    Comparison,
    Entry,
    Outcome,
    Point,
    indistinct,
    interval_of,
)
from pyroae.comparison.scores import Score
from pyroae.errors import ConfigError, DataError
from pyroae.objectives import parse_objective
from pyroae.plots.comparison import differences, learning_curves
from pyroae.studies.comparison_tree import comparison_to_datatree

NAMES = ("trace-elbo", "iwae", "dreg")


def outcome(
    name: str,
    k: int,
    seed: int,
    log_px: Tensor,
    curve: tuple[Point, ...] = (),
    seconds: float = 2.0,
) -> Outcome:
    figures = {"nelbo": 90.0 + seed, "rate": 20.0, "distortion": 70.0 + seed, "active_units": 5}
    return Outcome(
        Cell(name, k, seed),
        Score(log_px, torch.full_like(log_px, 0.1), reliable=torch.ones(len(log_px))),
        figures,
        3,
        30,
        30 * k,
        seconds,
        curve,
    )


def made(num_data: int = 50, gain: float = 0.3, ks: tuple[int, ...] = (1, 8)) -> Comparison:
    """Three estimators: data and seeds have effects of their own; each is `gain` nats better than
    the one before.
    """
    torch.manual_seed(3)
    of_data, of_seeds = -80 - 5 * torch.rand(num_data).double(), 2 * torch.randn(3)
    outcomes = [
        outcome(
            name,
            k,
            seed,
            of_data + of_seeds[seed] + gain * i + 0.1 * torch.randn(num_data).double(),
            curve_of(k, seed),
        )
        for seed, (i, name), k in product(range(3), enumerate(NAMES), ks)
    ]
    return Comparison(tuple(outcomes))


def curve_of(k: int, seed: int) -> tuple[Point, ...]:
    return tuple(
        Point(e, 10 * e, 0.5 * e, 100 * e * k, 90.0 + 20 / e + seed)
        for e in range(1, 4 - (seed == 2))
    )


# Intervals


def test_interval_is_the_formula() -> None:
    values = torch.tensor([[1.0, 4.0, 2.0], [3.0, 5.0, 4.0]], dtype=torch.float64)
    of_seeds = np.var([7 / 3, 4.0], ddof=1) / 2
    of_data = np.var([2.0, 4.5, 3.0], ddof=1) / 3
    half = math.sqrt(stats.t.ppf(0.975, 1) ** 2 * of_seeds + stats.norm.ppf(0.975) ** 2 * of_data)
    found = interval_of(values)
    assert found.value == pytest.approx(19 / 6, rel=1e-12)
    assert (found.low, found.high) == pytest.approx((19 / 6 - half, 19 / 6 + half), rel=1e-6)


def test_interval_of_one_seed_is_over_the_data() -> None:
    found = interval_of(torch.tensor([[2.0, 4.0, 9.0]]))
    assert found.high - found.value == pytest.approx(
        1.959964 * np.std([2, 4, 9], ddof=1) / math.sqrt(3), rel=1e-6
    )
    assert math.isnan(interval_of(torch.ones(2, 1)).low)


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_datum", "left"),
    [(2, 0.1, 2, 2), (3, 0.3, 2, 2), (3, 0.0, 0, 2), (5, 0.1, 2, 2), (3, 0.05, 1, 3)],
)
def test_interval_covers(seeds: int, of_seed: float, of_datum: float, left: float) -> None:
    """2,000 tables of new seeds and new data, N = 200: at least 94.5 % of intervals hold 0,
    whatever the mix of the noise.

    The other way to err is caught too: where one part of the noise is all there is, no interval is
    twice as wide as needed.
    """
    torch.manual_seed(0)
    count = 2000
    values = of_seed * torch.randn(count, seeds, 1) + of_datum * torch.randn(count, 1, 200)
    values = values + left * torch.randn(count, seeds, 200)
    found = [interval_of(one) for one in values]
    covered = sum(interval.holds_zero for interval in found) / count
    assert covered > 0.945
    if not of_seed and not of_datum:
        assert np.mean([i.high - i.low for i in found]) < 2 * 2 * stats.t.ppf(
            0.975, 2
        ) * left / math.sqrt(seeds * 200)


def test_differences_are_paired() -> None:
    """Seeds differ by nats and data by more, but both entries share them: the difference is known
    to a hundredth.
    """
    comparison = made()
    one, other = Entry("iwae", 8), Entry("trace-elbo", 8)
    found = comparison.difference(one, other)
    assert found.estimate.value == pytest.approx(-0.3, abs=0.05)
    assert found.estimate.high - found.estimate.low < 0.2
    apart = comparison.nll(one)
    assert apart.high - apart.low > 5
    by_hand = [
        (other_o.score.log_px - one_o.score.log_px).mean().item()
        for one_o, other_o in zip(comparison.of(one), comparison.of(other), strict=True)
    ]
    assert found.per_seed.tolist() == pytest.approx(by_hand, rel=1e-12)
    back = comparison.difference(other, one).estimate
    assert (back.low, back.high) == pytest.approx((-found.estimate.high, -found.estimate.low))


def test_only_common_seeds_are_compared() -> None:
    """A study that was stopped: the last seed of one entry is missing."""
    whole = made()
    part = Comparison(whole.outcomes[:-1])
    missing, baseline = whole.outcomes[-1].cell.entry, Entry("trace-elbo", 1)
    assert (
        part.difference(missing, baseline).per_seed.tolist()
        == whole.difference(missing, baseline).per_seed.tolist()[:2]
    )
    alone = Comparison((outcome("iwae", 1, 0, torch.rand(3)), outcome("dreg", 1, 1, torch.rand(3))))
    with pytest.raises(ConfigError, match=r"iwae, K = 1 and dreg, K = 1 have no seed in common"):
        alone.difference(Entry("iwae", 1), Entry("dreg", 1))
    single = Comparison(tuple(o for o in whole.outcomes if o.cell.seed == 1))
    assert single.difference(missing, baseline).over_data
    assert not whole.difference(missing, baseline).over_data


def test_ranking() -> None:
    comparison = made()
    ranking = comparison.ranking()
    assert [row.nll.value for row in ranking] == sorted(row.nll.value for row in ranking)
    assert {row.entry for row in ranking[:2]} == {Entry("dreg", 1), Entry("dreg", 8)}
    assert ranking[0].from_best.estimate == (0, 0, 0)
    assert next(r for r in ranking if r.entry == Entry("trace-elbo", 1)).from_baseline.estimate == (
        0,
        0,
        0,
    )
    assert ranking[0].from_baseline.estimate.value == pytest.approx(-0.6, abs=0.05)
    assert indistinct(ranking) == [ranking[1].entry]  # the other K, which is no other
    assert len(indistinct(made(gain=0.0).ranking())) >= 3


def test_wrong_outcomes() -> None:
    with pytest.raises(DataError, match="at least one finished training"):
        Comparison(())
    one = outcome("iwae", 1, 0, torch.rand(3))
    with pytest.raises(DataError, match="occur twice"):
        Comparison((one, one))
    with pytest.raises(DataError, match="different numbers"):
        Comparison((one, outcome("dreg", 1, 0, torch.rand(4))))
    with pytest.raises(
        ConfigError, match=r"no finished training of vimco, K = 8; there are: iwae, K = 1"
    ):
        Comparison((one,)).nll(Entry("vimco", 8))


# Budgets


@pytest.mark.parametrize("num_particles", [1, 8, 64])
@pytest.mark.parametrize("amount", [5e4, 123456, 1e6])
def test_a_budget_of_evaluations_is_spent(num_particles: int, amount: float) -> None:
    """All of it, to less than one step."""
    budget, sizes = Budget("evaluations", amount), {"num_data": 950, "batch_size": 100}
    limits = budget.limits(num_particles, **sizes)
    spent = evaluations_of(limits["max_steps"], num_particles, **sizes)
    assert 0 <= amount - spent < num_particles * 100
    assert (limits["epochs"] - 1) * 10 < limits["max_steps"] <= limits["epochs"] * 10


def test_a_budget_counts_what_an_objective_states() -> None:
    """17.66 evaluations per datum of mlmc with K₀ = 8, K (T + 2) of dais."""
    limits = Budget("evaluations", 1e6).limits(parse_objective("mlmc", 8).evaluations, 1000, 100)
    assert limits["max_steps"] == 566
    assert evaluations_of(566, parse_objective("mlmc", 8).evaluations, 1000, 100) == 999378
    dais = parse_objective("dais:steps=4", 2)
    assert Budget("evaluations", 1e6).limits(dais.evaluations, 1000, 100)["max_steps"] == 833


def test_other_budgets() -> None:
    assert Budget.parse("epochs:20").limits(8, 1000, 100) == {
        "epochs": 20,
        "max_steps": None,
        "max_seconds": None,
    }
    assert Budget.parse("seconds:1.5").limits(8, 1000, 100) == {
        "epochs": ENDLESS,
        "max_steps": None,
        "max_seconds": 1.5,
    }
    assert str(Budget.parse("evaluations:1e7")) == "evaluations:1e+07"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs", "a budget is epochs:N, evaluations:N or seconds:N, not 'epochs'"),
        ("epochs:many", "a budget is epochs:N"),
        ("epochs:2.5", "whole number, not 2.5"),
        ("seconds:0", "must be positive and finite, not 0"),
        ("seconds:-1", "must be positive"),
        ("evaluations:inf", "finite, not inf"),
        ("epocs:3", "unknown budget 'epocs': did you mean 'epochs'"),
    ],
)
def test_wrong_budgets(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Budget.parse(text)


def test_a_budget_below_one_step() -> None:
    with pytest.raises(
        ConfigError,
        match=r"6000 evaluations is less than one step of 100 data at 64 evaluations per datum",
    ):
        Budget("evaluations", 6000).limits(64, 1000, 100)


# DataTree and figures


def test_datatree_holds_the_outcomes() -> None:
    whole = made()
    comparison = Comparison(whole.outcomes[:-1])  # one cell is missing
    tree = comparison_to_datatree(comparison, Entry("iwae", 1))
    found, curves = tree["outcomes"].to_dataset(), tree["curves"].to_dataset()
    assert dict(found.sizes) == {"objective": 3, "particles": 2, "seed": 3, "datum": 50}
    for o in comparison.outcomes:
        at = {"objective": o.cell.objective, "particles": o.cell.num_particles, "seed": o.cell.seed}
        assert found["log_px"].sel(at).values.tolist() == o.score.log_px.tolist()
        assert found["nll"].sel(at).item() == o.nll
        assert found["active_units"].sel(at).item() == 5
        assert curves["nll"].sel(at).values[: len(o.curve)].tolist() == [p.nll for p in o.curve]
    missing = whole.outcomes[-1].cell
    at = {"objective": missing.objective, "particles": missing.num_particles, "seed": missing.seed}
    assert math.isnan(found["nll"].sel(at).item())
    row = next(r for r in comparison.ranking(Entry("iwae", 1)) if r.entry == Entry("dreg", 1))
    gaps = tree["differences"].sel(objective="dreg", particles=1)
    ends = tuple(
        gaps[name].item() for name in ("from_baseline", "from_baseline_low", "from_baseline_high")
    )
    assert ends == tuple(row.from_baseline.estimate)
    assert tree.attrs["baseline"] == "iwae, K = 1"


def test_figure_of_differences() -> None:
    comparison, baseline = made(), Entry("trace-elbo", 1)
    axes = differences(comparison, baseline).axes[0]
    rows = [row for row in comparison.ranking(baseline) if row.entry != baseline]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        str(row.entry) for row in rows
    ]
    for i, row in enumerate(rows):
        seeds, interval, point = axes.lines[1 + 3 * i : 4 + 3 * i]
        assert np.asarray(seeds.get_xdata()).tolist() == row.from_baseline.per_seed.tolist()
        assert np.asarray(interval.get_xdata()).tolist() == [
            row.from_baseline.estimate.low,
            row.from_baseline.estimate.high,
        ]
        assert np.asarray(point.get_xdata()).tolist() == [row.from_baseline.estimate.value]
    with pytest.raises(DataError, match="nothing to compare with the baseline"):
        differences(Comparison(comparison.outcomes[:1]))


def test_figure_of_curves() -> None:
    comparison = made()
    figure = learning_curves(comparison)
    for axes, name in zip(figure.axes, ("epoch", "seconds", "evaluations"), strict=True):
        for line, o in zip(axes.lines, comparison.outcomes, strict=True):
            assert np.asarray(line.get_xdata()).tolist() == [
                getattr(point, name) for point in o.curve
            ]
            assert np.asarray(line.get_ydata()).tolist() == [point.nll for point in o.curve]
    with pytest.raises(DataError, match="no learning curves"):
        learning_curves(Comparison((outcome("iwae", 1, 0, torch.rand(3)),)))
