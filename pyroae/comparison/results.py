"""Compare trainings by their held-out NLL: paired differences with intervals, and a ranking.

An entry is an objective, K and a variant of the settings; a cell is the training of one entry from
one seed. For each seed all entries see the same batches, and those of one system start from the
same weights. All cells are scored on the same N held-out data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyroae.comparison.outcomes import Cell, Difference, Entry, Outcome, Point, Ranking, Row
from pyroae.comparison.scores import (
    Correction,
    Interval,
    Score,
    common_subset,
    half_width,
    interval_of,
    interval_of_scores,
    sampling_variance,
)
from pyroae.comparison.tables import latex, ranking_table
from pyroae.comparison.tuning import Tuning
from pyroae.errors import ConfigError, DataError
from pyroae.runtime.short_repr import ROWS, Overview, Shown

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "Cell",
    "Comparison",
    "Difference",
    "Entry",
    "Interval",
    "Outcome",
    "Point",
    "Row",
    "indistinct",
    "interval_of",
]


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """The outcomes of the trainings that are compared.

    Attributes:
        outcomes: One outcome for each cell.
        tuning: How settings of each entry were chosen; None where they were given.
        data: The name of the held-out data, for tables; empty where it is not known.

    Raises:
        DataError: For no outcome, two outcomes of one cell, different numbers of held-out data, or
            corrections on different subsets.

    >>> def outcome(name, seed, gain):
    ...     log_px = torch.tensor([-1.0, -3.0]) + gain + 0.1 * seed
    ...     score = Score(log_px, torch.zeros(2), reliable=log_px < 0)
    ...     return Outcome(Cell(name, 1, seed), score, {}, 1, 1, 1, 1.0)
    >>> elbo = (outcome("trace-elbo", 0, 0.0), outcome("trace-elbo", 1, 0.0))
    >>> comparison = Comparison((*elbo, outcome("iwae", 0, 0.5), outcome("iwae", 1, 0.5)))
    >>> difference = comparison.difference(Entry("iwae", 1), Entry("trace-elbo", 1))
    >>> round(difference.estimate.value, 6), [str(row.entry) for row in comparison.ranking()]
    (-0.5, ['iwae, K = 1', 'trace-elbo, K = 1'])
    """

    outcomes: tuple[Outcome, ...]
    tuning: Tuning | None = None
    data: str = ""

    def __post_init__(self) -> None:
        if not self.outcomes:
            raise DataError("a comparison needs at least one finished training")
        if len(self._by_cell) < len(self.outcomes):
            raise DataError(
                "a comparison contains each training once: an entry and seed occur twice"
            )
        if len({len(outcome.score.log_px) for outcome in self.outcomes}) > 1:
            raise DataError(
                "trainings are compared on the same held-out data; these were scored on different "
                "numbers of data"
            )
        for outcome in self.outcomes:
            outcome.score.parts(self.subset)

    @cached_property
    def _by_cell(self) -> dict[Cell, Outcome]:
        return {outcome.cell: outcome for outcome in self.outcomes}

    def _overview(self) -> Overview:
        return self.overview

    @cached_property
    def overview(self) -> Overview:
        """The ranking as a table: the NLL of each entry and its difference from the best."""
        best = self._ordered[0][0]
        rows = [
            (
                str(rank),
                str(entry),
                f"{nll.value:.3f}",
                f"{nll.high - nll.value:.3f}",
                "best" if rank == 1 else self._from(entry, best),
            )
            for rank, (entry, nll) in enumerate(self._ordered[: ROWS + 1], 1)
        ]
        sizes = [f"{len(self.outcomes)} trainings", f"{len(self.entries)} entries"]
        data = [f"N={self.num_data}", *([self.data] if self.data else [])]
        columns = ("", "entry", "NLL, nats per datum", "± 95 %", "from the best")
        return Overview([*sizes, *data], rows, columns, len(self._ordered))

    def _from(self, entry: Entry, best: Entry) -> str:
        """The difference of an entry from the best, in words."""
        if not {o.cell.seed for o in self.of(entry)} & {o.cell.seed for o in self.of(best)}:
            return "no common seed"
        difference = self.difference(entry, best)
        return f"{difference.estimate.value:+.3f}, {difference.verdict}"

    @cached_property
    def _ordered(self) -> list[tuple[Entry, Interval]]:
        """The entries with their NLL, the lowest first."""
        return sorted(((e, self.nll(e)) for e in self.entries), key=lambda pair: pair[1].value)

    @cached_property
    def subset(self) -> Tensor:
        """The indices of the data on which scores are corrected, `[M]`."""
        return common_subset([outcome.score for outcome in self.outcomes])

    @property
    def num_data(self) -> int:
        """N, the number of held-out data."""
        return len(self.outcomes[0].score.log_px)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries, in the order of the outcomes."""
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
        cells = [Cell.of(entry, seed) for seed in self.seeds]
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
        return interval_of_scores([outcome.score for outcome in self.of(entry)], self.subset)

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
            {o.cell.seed: o.score for o in self.of(one)} for one in (entry, baseline)
        )
        seeds = [seed for seed in of_entry if seed in of_baseline]
        if not seeds:
            raise ConfigError(f"{entry} and {baseline} have no seed in common")
        pairs = [(of_entry[seed], of_baseline[seed]) for seed in seeds]
        parts = [(one.parts(self.subset), two.parts(self.subset)) for one, two in pairs]
        gaps = torch.stack([two[0] - one[0] for one, two in parts])
        shifts = torch.stack([two[1] - one[1] for one, two in parts])
        return Difference(
            interval_of(gaps, shifts, self.subset),
            gaps.mean(1) + shifts.mean(1),
            over_data=len(seeds) == 1,
            scoring_error=_scoring_error(pairs, shifts, self.num_data),
        )

    def ranking(self, baseline: Entry | None = None) -> Ranking:
        """Rank the entries from the lowest NLL to the highest.

        Args:
            baseline: The entry of `Row.from_baseline`; by default the first entry.

        Returns:
            One row for each entry.

        Raises:
            ConfigError: If the baseline has no outcome, or entries have no common seed.
        """
        baseline = self.entries[0] if baseline is None else baseline
        best = self._ordered[0][0]
        return Ranking(
            Row(entry, nll, self.difference(entry, baseline), self.difference(entry, best))
            for entry, nll in self._ordered
        )

    def table(self, baseline: Entry | None = None) -> "DataFrame":
        """Return the ranking as a pandas DataFrame.

        Args:
            baseline: The entry that differences are taken from; by default the first entry.

        Returns:
            One row for each entry, the lowest NLL first. NLL, differences, their 95 % intervals and
            the correction are in nats per datum; `verdict` is that of the difference from the
            best; costs are means over the seeds.
        """
        return ranking_table(self.ranking(baseline), self.of, self.tuning)

    def to_latex(self, baseline: Entry | None = None) -> str:
        """Return the ranking as a LaTeX table for a paper, with the package booktabs.

        Args:
            baseline: The entry that differences are taken from; by default the first entry.

        Returns:
            The table. Bold entries are within noise of the best; the note gives data, seeds, K of
            the scores, their method, k̂ and the correction.
        """
        base = self.entries[0] if baseline is None else baseline
        return latex(self.ranking(base), base, self.of, self.tuning, self.data)


def _scoring_error(pairs: Sequence[tuple[Score, Score]], shifts: Tensor, num_data: int) -> float:
    """Half the 95 % interval of the mean difference for these data, and the scores' biases."""
    biases = sum(one.bias + two.bias for one, two in pairs) / len(pairs)
    noise = (
        torch.stack(
            [best.se.double().square().mean() for pair in pairs for best in map(_best, pair)]
        ).sum()
        / len(pairs) ** 2
    )
    variance = sampling_variance(shifts.mean(0), noise, num_data)
    return half_width(variance, len(shifts[0])) + biases


def _best(score: Score) -> Score | Correction:
    return score if score.correction is None else score.correction


def indistinct(ranking: Sequence[Row]) -> list[Entry]:
    """List the entries that cannot be distinguished from the best at 95 %.

    Args:
        ranking: The rows of `Comparison.ranking`.

    Returns:
        The entries whose difference from the best is not told: its interval contains 0, or it may
        be an error of scoring. The best is not included.
    """
    return [row.entry for row in ranking[1:] if not row.from_best.is_told]
