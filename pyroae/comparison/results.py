"""Trainings compared by one metric, the held-out NLL by importance sampling: paired differences and their intervals.

Entries are pairs of an objective and K; a cell is the training of one entry from one seed. For a seed, every entry starts from
the same weights and sees the same batches; every cell is scored on the same N held-out data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pyroae.errors import ConfigError, DataError

NORMAL = 1.959964
"""The 97.5 % quantile of the standard normal distribution."""


class Entry(NamedTuple):
    """One estimator as it was trained: an objective's name and K."""

    objective: str
    num_particles: int

    def __str__(self) -> str:
        return f"{self.objective}, K = {self.num_particles}"


class Cell(NamedTuple):
    """One training of a comparison."""

    objective: str
    num_particles: int
    seed: int

    @property
    def entry(self) -> Entry:
        """What is trained, whatever the seed."""
        return Entry(self.objective, self.num_particles)

    def __str__(self) -> str:
        return f"{self.entry}, seed {self.seed}"


class Point(NamedTuple):
    """A point of a learning curve: the NLL of validation data by importance sampling, in nats per datum."""

    epoch: int
    step: int
    seconds: float
    evaluations: int
    nll: float


@dataclass(frozen=True)
class Outcome:
    """What one training came to, in nats.

    log_px, log_px_se: `[N]`, float64, of the held-out data by importance sampling, with Monte-Carlo errors. figures: nelbo,
    rate, distortion of the held-out data, and active_units where they are known. evaluations: of the decoder in training.
    seconds: of training. curve: along it.
    """

    cell: Cell
    log_px: Tensor
    log_px_se: Tensor
    figures: dict[str, float]
    epochs: int
    steps: int
    evaluations: int
    seconds: float
    curve: tuple[Point, ...] = ()

    @property
    def nll(self) -> float:
        """−mean log p(x) of the held-out data, nats per datum."""
        return -self.log_px.mean().item()

    @property
    def nll_se(self) -> float:
        """Standard error of `nll` over the data."""
        return (self.log_px.std() / math.sqrt(len(self.log_px))).item()

    @property
    def monte_carlo_se(self) -> float:
        """Standard error of `nll` for these very data."""
        return (self.log_px_se.square().sum().sqrt() / len(self.log_px_se)).item()


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether 0 lies within."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Difference:
    """NLL of an entry less that of another, from the seeds that both have, in nats per datum: below 0 is better.

    estimate: with its 95 % interval over seeds and data. per_seed: `[S]`. over_data: whether the interval is over the data
    alone, there being one seed.
    """

    estimate: Interval
    per_seed: Tensor
    over_data: bool


class Row(NamedTuple):
    """An entry in the order of the ranking: its NLL, and the difference from the baseline and from the first."""

    entry: Entry
    nll: Interval
    from_baseline: Difference
    from_best: Difference


@dataclass(frozen=True)
class Comparison:
    """The outcomes of a comparison of trainings. Raises DataError for none, for two of one cell, or for unequal held-out data.

    >>> outcomes = [
    ...     Outcome(Cell(name, 1, seed), torch.tensor([-1.0, -3.0]) + gain + 0.1 * seed, torch.zeros(2), {}, 1, 1, 1, 1.0)
    ...     for name, gain in (("trace-elbo", 0.0), ("iwae", 0.5)) for seed in (0, 1)
    ... ]
    >>> comparison = Comparison(tuple(outcomes))
    >>> found = comparison.difference(Entry("iwae", 1), Entry("trace-elbo", 1))
    >>> round(found.estimate.value, 6), [str(row.entry) for row in comparison.ranking()]
    (-0.5, ['iwae, K = 1', 'trace-elbo, K = 1'])
    """

    outcomes: tuple[Outcome, ...]

    def __post_init__(self) -> None:
        if not self.outcomes:
            raise DataError("a comparison needs at least one finished training")
        if len(self._by_cell) < len(self.outcomes):
            raise DataError(
                "a comparison holds each training once: an objective, K and seed stand twice"
            )
        if len({len(outcome.log_px) for outcome in self.outcomes}) > 1:
            raise DataError(
                "trainings are compared on the same held-out data; these were scored on different numbers of them"
            )

    @cached_property
    def _by_cell(self) -> dict[Cell, Outcome]:
        return {outcome.cell: outcome for outcome in self.outcomes}

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every pair of an objective and K, in the order of the outcomes."""
        return tuple(dict.fromkeys(outcome.cell.entry for outcome in self.outcomes))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed."""
        return tuple(sorted({outcome.cell.seed for outcome in self.outcomes}))

    def of(self, entry: Entry) -> list[Outcome]:
        """The outcomes of one entry, by seed. Raises ConfigError where it has none."""
        found = [
            self._by_cell[Cell(*entry, seed)]
            for seed in self.seeds
            if Cell(*entry, seed) in self._by_cell
        ]
        if not found:
            known = "; ".join(map(str, self.entries))
            raise ConfigError(f"there is no finished training of {entry}; there are: {known}")
        return found

    def nll(self, entry: Entry) -> Interval:
        """−log p(x) of an entry, mean over seeds and data, in nats per datum."""
        return interval_of(-torch.stack([outcome.log_px for outcome in self.of(entry)]))

    def difference(self, entry: Entry, baseline: Entry) -> Difference:
        """NLL of an entry less that of a baseline, paired by seed and datum. Raises ConfigError without a common seed."""
        of_entry, of_baseline = (
            {o.cell.seed: o.log_px for o in self.of(one)} for one in (entry, baseline)
        )
        seeds = [seed for seed in of_entry if seed in of_baseline]
        if not seeds:
            raise ConfigError(f"{entry} and {baseline} have no seed in common")
        gaps = torch.stack([of_baseline[seed] - of_entry[seed] for seed in seeds])
        return Difference(interval_of(gaps), gaps.mean(1), over_data=len(seeds) == 1)

    def ranking(self, baseline: Entry | None = None) -> list[Row]:
        """The entries from the lowest NLL to the highest. baseline: by default the first entry."""
        baseline = self.entries[0] if baseline is None else baseline
        ordered = sorted(self.entries, key=lambda entry: self.nll(entry).value)
        return [
            Row(
                entry,
                self.nll(entry),
                self.difference(entry, baseline),
                self.difference(entry, ordered[0]),
            )
            for entry in ordered
        ]


def interval_of(values: Tensor) -> Interval:
    """The mean of values `[S, N]` and its 95 % interval for new seeds and new data, both random and crossed.

        half-width² = (t_{S−1} s_seed)² + (1.96 s_data)²,   s_seed² = Var_s(mean_n) / S,   s_data² = Var_n(mean_s) / N

    t_{S−1}: Student's 97.5 % quantile. What is left when seed and datum are known is in both terms, so the interval is a
    little too wide: in simulations of 2 to 10 seeds it holds the truth in 96 to 99 % of cases. With one seed the first term is
    missing: the interval is then over the data alone. nan for one datum.

    >>> found = interval_of(torch.tensor([[1.0, 2.0, 3.0], [1.5, 2.5, 3.5]]))
    >>> round(found.value, 3), round(found.high - found.value, 2)
    (2.25, 3.37)
    """
    from scipy.stats import t

    values = values.double()
    seeds, data = values.shape
    squared = (NORMAL**2 * values.mean(0).var() / data).item() if data > 1 else math.nan
    if seeds > 1:
        squared += (t.ppf(0.975, seeds - 1) ** 2 * values.mean(1).var() / seeds).item()
    half, mean = math.sqrt(squared), values.mean().item()
    return Interval(mean, mean - half, mean + half)


def indistinct(ranking: Sequence[Row]) -> list[Entry]:
    """The entries that are not told from the best at 95 %, the best not among them."""
    return [row.entry for row in ranking[1:] if row.from_best.estimate.holds_zero]
