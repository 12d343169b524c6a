"""What trainings of a comparison came to: entries, cells, outcomes and their differences."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from pyroae.comparison.scores import NORMAL, Interval, Score, common_subset, interval_of_scores
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import duration, number, text_of, with_error


class Entry(NamedTuple):
    """What is compared: an estimator and a variant of the settings.

    Attributes:
        objective: The name of the objective.
        num_particles: K in training.
        variant: The name of the variant; empty where the settings of all entries are the same.
    """

    objective: str
    num_particles: int
    variant: str = ""

    def __str__(self) -> str:
        variant = f", {self.variant}" if self.variant else ""
        return f"{self.objective}, K = {self.num_particles}{variant}"

    @property
    def short(self) -> str:
        """The entry as `objective@K`, with its variant in brackets.

        >>> Entry("iwae", 8, "posterior=iaf").short
        'iwae@8[posterior=iaf]'
        """
        variant = f"[{self.variant}]" if self.variant else ""
        return f"{self.objective}@{self.num_particles}{variant}"


class Cell(NamedTuple):
    """One training of a comparison.

    Attributes:
        objective: The name of the objective.
        num_particles: K in training.
        seed: The seed of the weights, the batches and the noise.
        variant: The name of the variant.
    """

    objective: str
    num_particles: int
    seed: int
    variant: str = ""

    @classmethod
    def of(cls, entry: Entry, seed: int) -> "Cell":
        """Return the training of an entry from a seed."""
        return cls(entry.objective, entry.num_particles, seed, entry.variant)

    @property
    def entry(self) -> Entry:
        """The entry of the training, that is, the cell without its seed."""
        return Entry(self.objective, self.num_particles, self.variant)

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


@dataclass(frozen=True, repr=False)
class Outcome(Shown):
    """The result of one training.

    Attributes:
        cell: The training.
        score: Estimates of log p(x) of the held-out data.
        figures: nelbo, rate and distortion of the held-out data, in nats per datum, and
            active_units; those that were computed.
        epochs: The number of epochs.
        steps: The number of steps.
        evaluations: The number of decoder evaluations in training.
        seconds: The training time.
        curve: The learning curve.
    """

    cell: Cell
    score: Score
    figures: dict[str, float]
    epochs: int
    steps: int
    evaluations: int
    seconds: float
    curve: tuple[Point, ...] = ()

    def _overview(self) -> Overview:
        figures = [(name, number(value, 5)) for name, value in self.figures.items()]
        cost = f"{self.epochs} epochs, {self.steps} steps, {self.evaluations} decoder evaluations"
        rows = [
            ("score", text_of(self.score)),
            *figures,
            ("cost", f"{cost}, {duration(self.seconds)}"),
            ("curve", f"{len(self.curve)} points"),
        ]
        return Overview(self.summary, rows)

    @property
    def summary(self) -> list[str]:
        """The training and its NLL, in words."""
        return [str(self.cell), f"NLL {with_error(self.nll, self.nll_se, 'nats')}"]

    @property
    def nll(self) -> float:
        """The NLL of the held-out data, corrected where it can be, in nats per datum."""
        return self.score.nll

    @property
    def nll_se(self) -> float:
        """The standard error of `nll` as that of a sample of N data, in nats per datum."""
        interval = interval_of_scores([self.score], common_subset([self.score]))
        return (interval.high - interval.low) / (2 * NORMAL)


@dataclass(frozen=True, repr=False)
class Difference(Shown):
    """The NLL of an entry less that of a baseline, from their common seeds; negative is better.

    Attributes:
        estimate: The mean difference with its 95 % interval for new seeds and data, in nats per
            datum.
        per_seed: The mean difference of each seed, `[S]`, in nats per datum.
        over_data: Whether the interval is for new data only, because there is a single seed.
        scoring_error: How far scoring alone may move the estimate for these data: 1.96 standard
            errors and the biases of the scores, in nats per datum. Infinite if the error of a score
            is not known.
    """

    estimate: Interval
    per_seed: Tensor
    over_data: bool
    scoring_error: float

    def _overview(self) -> Overview:
        low, high = (number(end, 3) for end in (self.estimate.low, self.estimate.high))
        ends = f"95 % interval {low} to {high}"
        head = [f"{number(self.estimate.value, 3)} nats", ends, self.verdict]
        return Overview([*head, f"{len(self.per_seed)} seeds"])

    @property
    def is_told(self) -> bool:
        """Whether the entries differ: the interval excludes 0, and scoring cannot explain it."""
        return not self.estimate.holds_zero and abs(self.estimate.value) > self.scoring_error

    @property
    def verdict(self) -> str:
        """What can be said of the difference.

        `better` or `worse` if it is told; `score not known` if the error of a score is not known;
        else `within noise`.
        """
        if self.is_told:
            return "better" if self.estimate.value < 0 else "worse"
        return "within noise" if math.isfinite(self.scoring_error) else "score not known"


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

    def __repr__(self) -> str:
        verdict = self.from_best.verdict
        return f"Row({self.entry}: NLL {self.nll.value:.3f} nats, from the best: {verdict})"


class Ranking(Shown, list[Row]):
    """Entries from the lowest NLL to the highest, in a table."""

    def _overview(self) -> Overview:
        rows = [
            (
                str(rank),
                str(row.entry),
                f"{row.nll.value:.3f}",
                *(_ends(one.estimate) for one in (row.from_best, row.from_baseline)),
                "best" if rank == 1 else row.from_best.verdict,
            )
            for rank, row in enumerate(self, 1)
        ]
        columns = ("", "entry", "NLL", "from the best", "from the baseline", "verdict")
        return Overview([f"{len(rows)} entries", "nats per datum"], rows, columns)


def _ends(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
