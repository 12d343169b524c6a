"""Compare trainings by their held-out NLL: paired differences with intervals, and a ranking.

An entry is a pair of an objective and K; a cell is the training of one entry from one seed. For
each seed all entries start from the same weights and see the same batches. All cells are scored on
the same N held-out data by importance sampling.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pyroae.errors import ConfigError, DataError
from pyroae.runtime.short_repr import short_repr

NORMAL = 1.959964
"""The 97.5 % quantile of the standard normal distribution."""


class Entry(NamedTuple):
    """One estimator that is compared.

    Attributes:
        objective: The name of the objective.
        num_particles: K in training.
    """

    objective: str
    num_particles: int

    def __str__(self) -> str:
        return f"{self.objective}, K = {self.num_particles}"


class Cell(NamedTuple):
    """One training of a comparison.

    Attributes:
        objective: The name of the objective.
        num_particles: K in training.
        seed: The seed of the weights, the batches and the noise.
    """

    objective: str
    num_particles: int
    seed: int

    @property
    def entry(self) -> Entry:
        """The entry of the training, that is, the cell without its seed."""
        return Entry(self.objective, self.num_particles)

    def __str__(self) -> str:
        return f"{self.entry}, seed {self.seed}"


class Point(NamedTuple):
    """A point of a learning curve.

    Attributes:
        epoch: The number of epochs so far.
        step: The number of steps so far.
        seconds: The training time so far.
        evaluations: The number of decoder evaluations so far.
        nll: The NLL of the validation data by importance sampling, in nats per datum.
    """

    epoch: int
    step: int
    seconds: float
    evaluations: int
    nll: float


@dataclass(frozen=True)
class Outcome:
    """The result of one training.

    Attributes:
        cell: The training.
        log_px: log p(x) of the held-out data by importance sampling, `[N]`, float64, nats.
        log_px_se: The Monte-Carlo standard error of `log_px`, `[N]`, float64, nats.
        figures: nelbo, rate and distortion of the held-out data, in nats per datum, and
            active_units; those that were computed.
        epochs: The number of epochs.
        steps: The number of steps.
        evaluations: The number of decoder evaluations in training.
        seconds: The training time.
        curve: The learning curve.
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

    __repr__ = short_repr("nll")

    @property
    def nll(self) -> float:
        """The NLL of the held-out data, −mean log p(x), in nats per datum."""
        return -self.log_px.mean().item()

    @property
    def nll_se(self) -> float:
        """The standard error of `nll` as the mean of a sample of N data, in nats per datum."""
        return (self.log_px.std() / math.sqrt(len(self.log_px))).item()

    @property
    def monte_carlo_se(self) -> float:
        """The Monte-Carlo standard error of `nll` for these N data, in nats per datum."""
        return (self.log_px_se.square().sum().sqrt() / len(self.log_px_se)).item()


class Interval(NamedTuple):
    """An estimate with its 95 % interval.

    Attributes:
        value: The estimate.
        low: The lower end of the interval.
        high: The upper end of the interval.
    """

    value: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether the interval contains 0."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Difference:
    """The NLL of an entry less that of a baseline, from their common seeds; negative is better.

    Attributes:
        estimate: The mean difference with its 95 % interval for new seeds and data, in nats per
            datum.
        per_seed: The mean difference of each seed, `[S]`, in nats per datum.
        over_data: Whether the interval is for new data only, because there is a single seed.
    """

    estimate: Interval
    per_seed: Tensor
    over_data: bool

    __repr__ = short_repr()


class Row(NamedTuple):
    """An entry of a ranking.

    Attributes:
        entry: The estimator.
        nll: Its held-out NLL, in nats per datum.
        from_baseline: The difference from the baseline.
        from_best: The difference from the first entry of the ranking.
    """

    entry: Entry
    nll: Interval
    from_baseline: Difference
    from_best: Difference


@dataclass(frozen=True)
class Comparison:
    """The outcomes of the trainings that are compared.

    Attributes:
        outcomes: One outcome for each cell.

    Raises:
        DataError: For no outcome, two outcomes of one cell, or different numbers of held-out data.

    >>> def outcome(name, seed, gain):
    ...     log_px = torch.tensor([-1.0, -3.0]) + gain + 0.1 * seed
    ...     return Outcome(Cell(name, 1, seed), log_px, torch.zeros(2), {}, 1, 1, 1, 1.0)
    >>> elbo = (outcome("trace-elbo", 0, 0.0), outcome("trace-elbo", 1, 0.0))
    >>> comparison = Comparison((*elbo, outcome("iwae", 0, 0.5), outcome("iwae", 1, 0.5)))
    >>> difference = comparison.difference(Entry("iwae", 1), Entry("trace-elbo", 1))
    >>> round(difference.estimate.value, 6), [str(row.entry) for row in comparison.ranking()]
    (-0.5, ['iwae, K = 1', 'trace-elbo, K = 1'])
    """

    outcomes: tuple[Outcome, ...]

    __repr__ = short_repr("entries", "seeds")

    def __post_init__(self) -> None:
        if not self.outcomes:
            raise DataError("a comparison needs at least one finished training")
        if len(self._by_cell) < len(self.outcomes):
            raise DataError(
                "a comparison contains each training once: an objective, K and seed occur twice"
            )
        if len({len(outcome.log_px) for outcome in self.outcomes}) > 1:
            raise DataError(
                "trainings are compared on the same held-out data; these were scored on different "
                "numbers of data"
            )

    @cached_property
    def _by_cell(self) -> dict[Cell, Outcome]:
        return {outcome.cell: outcome for outcome in self.outcomes}

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All pairs of an objective and K, in the order of the outcomes."""
        return tuple(dict.fromkeys(outcome.cell.entry for outcome in self.outcomes))

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds, in rising order."""
        return tuple(sorted({outcome.cell.seed for outcome in self.outcomes}))

    def of(self, entry: Entry) -> list[Outcome]:
        """List the outcomes of one entry.

        Args:
            entry: The estimator.

        Returns:
            The outcomes in the order of their seeds.

        Raises:
            ConfigError: If the entry has no outcome.
        """
        cells = [Cell(*entry, seed) for seed in self.seeds]
        outcomes = [self._by_cell[cell] for cell in cells if cell in self._by_cell]
        if not outcomes:
            finished = "; ".join(map(str, self.entries))
            raise ConfigError(f"there is no finished training of {entry}; there are: {finished}")
        return outcomes

    def nll(self, entry: Entry) -> Interval:
        """Compute the NLL of an entry, the mean of −log p(x) over seeds and data.

        Args:
            entry: The estimator.

        Returns:
            The NLL with its 95 % interval, in nats per datum.

        Raises:
            ConfigError: If the entry has no outcome.
        """
        return interval_of(-torch.stack([outcome.log_px for outcome in self.of(entry)]))

    def difference(self, entry: Entry, baseline: Entry) -> Difference:
        """Compute the NLL of an entry less that of a baseline, paired by seed and datum.

        Args:
            entry: The estimator.
            baseline: The estimator that it is compared with.

        Returns:
            The difference, in nats per datum; negative if the entry is better.

        Raises:
            ConfigError: If one of them has no outcome, or they have no common seed.
        """
        of_entry, of_baseline = (
            {o.cell.seed: o.log_px for o in self.of(one)} for one in (entry, baseline)
        )
        seeds = [seed for seed in of_entry if seed in of_baseline]
        if not seeds:
            raise ConfigError(f"{entry} and {baseline} have no seed in common")
        gaps = torch.stack([of_baseline[seed] - of_entry[seed] for seed in seeds])
        return Difference(interval_of(gaps), gaps.mean(1), over_data=len(seeds) == 1)

    def ranking(self, baseline: Entry | None = None) -> list[Row]:
        """Rank the entries from the lowest NLL to the highest.

        Args:
            baseline: The entry of `Row.from_baseline`; by default the first entry.

        Returns:
            One row for each entry.

        Raises:
            ConfigError: If the baseline has no outcome, or entries have no common seed.
        """
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
    """Compute the mean of values and its 95 % interval for new seeds and new data.

        half-width² = (t_{S−1} s_seed)² + (1.96 s_data)²
        s_seed² = Var_s(mean_n) / S,   s_data² = Var_n(mean_s) / N

    t_{S−1} is Student's 97.5 % quantile. Seeds and data are random and crossed. The residual
    variance, of neither seed nor datum, is in both terms, so that the interval is slightly too
    wide: in simulations with 2 to 10 seeds it contains the truth in 96 to 99 % of cases.

    Args:
        values: `[S, N]`, for each seed and datum.

    Returns:
        The mean and its interval. With one seed the first term is missing, and the interval is for
        new data only. The ends are nan for one datum.

    >>> mean = interval_of(torch.tensor([[1.0, 2.0, 3.0], [1.5, 2.5, 3.5]]))
    >>> round(mean.value, 3), round(mean.high - mean.value, 2)
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
    """List the entries that cannot be distinguished from the best at 95 %.

    Args:
        ranking: The rows of `Comparison.ranking`.

    Returns:
        The entries whose difference from the best has an interval that contains 0; the best is not
        included.
    """
    return [row.entry for row in ranking[1:] if row.from_best.estimate.holds_zero]
