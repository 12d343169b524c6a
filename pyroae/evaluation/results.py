"""One figure of an evaluation, which says what it is of; evaluations united without loss."""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from pyroae.config import AISSettings, EvaluationSettings
from pyroae.evaluation.labels import rank_of
from pyroae.runtime.short_repr import Overview, Shown
from pyroae.runtime.short_text import with_error

NOT_NAMED = ("num_chains", "num_distributions", "posterior_draws", "thinning")
"""Settings of annealing: K, the number that is always named, and the draws after the path, which
do not change the estimate.
"""


@dataclass(frozen=True, repr=False)
class Result(Shown):
    """One figure of an evaluation, a mean over the data.

    Attributes:
        name: The name, such as `nll` or `rate`.
        estimate: The value; in nats per datum for bounds, log-likelihoods and gaps.
        se: The standard error as the mean of a sample of data, Monte-Carlo error included; nan if
            there is none.
        num_data: N.
        num_particles: K, the number of draws or chains per datum; 0 if nothing is drawn.
        seconds: The time of the method.
        method: The method, with the settings that tell it from others of its kind, such as
            `is, guide` or `ais, 1000 distributions`.
        monte_carlo_se: The standard error for these data, from the draws alone; nan where it is
            not known or nothing is drawn.
        data: The name of the data, with a fingerprint if they are not those of the run; empty if
            they are not known.
        split: Their part: test, valid or train.
        checkpoint: The weights, such as `best, epoch 57`; empty if they are not known.
    """

    name: str
    estimate: float
    se: float
    num_data: int
    num_particles: int
    seconds: float
    method: str = ""
    monte_carlo_se: float = math.nan
    data: str = ""
    split: str = ""
    checkpoint: str = ""

    def _overview(self) -> Overview:
        return Overview([f"{self.name} {with_error(self.estimate, self.se)}", *self._source])

    @property
    def _source(self) -> list[str]:
        """What the figure is of: N, K, the method, the data and the weights, as far as known."""
        draws = [f"K={self.num_particles}"] if self.num_particles else []
        said = (self.method, self.data, self.split, self.checkpoint)
        return [f"N={self.num_data}", *draws, *filter(None, said)]

    @property
    def identity(self) -> tuple[str | int, ...]:
        """What the figure is of: another one with the same identity replaces it."""
        where = (self.data, self.split, self.num_data, self.checkpoint)
        return (*where, self.name, self.method, self.num_particles)


class ResultList(Shown, list[Result]):
    """Results in a table."""

    def _overview(self) -> Overview:
        return result_table(self)


class Results(Shown, dict[str, Result]):
    """Results by name, in a table."""

    def _overview(self) -> Overview:
        return result_table(self.values())


def result_table(results: Collection[Result]) -> Overview:
    """Return results as rows: the name, the estimate with its error, and what it is of.

    Args:
        results: The results.

    Returns:
        The table.
    """
    rows = [
        (
            one.name,
            with_error(one.estimate, one.se),
            f"{one.num_data}",
            f"{one.num_particles or ''}",
            ", ".join(filter(None, (one.method, one.split, one.checkpoint))),
        )
        for one in results
    ]
    return Overview([f"{len(rows)} figures"], rows, ("figure", "estimate", "N", "K", "method"))


def united(before: Iterable[Result], after: Iterable[Result]) -> list[Result]:
    """Unite the results of two evaluations.

    Args:
        before: The results that there are.
        after: New results, each of which replaces the one of its identity.

    Returns:
        All results in the order of their data, split, N, weights, name and method: the same for
        evaluations in any order. An upper bound is left out where a new evaluation with the same
        settings says that most of its data are flagged.

    >>> rows = [Result("nll", 90.0, 1.0, 10, k, 0.1, "is, guide") for k in (50, 5)]
    >>> [row.num_particles for row in united(rows, [Result("nll", 91.0, 1.0, 10, 5, 0.2)])]
    [5, 5, 50]
    """
    rows = {row.identity: row for row in (*before, *after)}
    flags = {identity: row.estimate for identity, row in rows.items()}
    kept = (row for row in rows.values() if not _is_mostly_flagged(row, flags))
    return sorted(kept, key=_order)


def shown(rows: Iterable[Result]) -> list[Result]:
    """Choose the results that a table shows: of each figure and method that with the most draws.

    Args:
        rows: Results of one part of the data, with the same weights.

    Returns:
        A part of them, in the order of `united`.

    >>> rows = [Result("nll", 90.0, 1.0, 10, k, 0.1, "is, guide") for k in (50, 5)]
    >>> [row.num_particles for row in shown(rows)]
    [50]
    """
    best = {(row.name, row.method): row for row in sorted(rows, key=_precision)}
    return sorted(best.values(), key=_order)


def by_name(rows: Iterable[Result]) -> Results:
    """Choose one result of each name: that with the most draws.

    Args:
        rows: Results of one part of the data, with the same weights.

    Returns:
        Results by name. Of equal numbers of draws, that of the method with the larger numbers, such
        as more distributions, is chosen.
    """
    return Results((row.name, row) for row in sorted(rows, key=_precision))


def method_of(method: str, settings: EvaluationSettings) -> str:
    """Name a method with the settings that tell it from others of its kind.

    Args:
        method: One of `METHODS`.
        settings: The settings of the evaluation.

    Returns:
        The name: the proposal of importance sampling; of annealing the number of distributions and
        the settings that are not the default, without those of the draws of the posterior, which
        do not change the estimate.

    >>> method_of("is", EvaluationSettings(retry="local"))
    'is, guide, retry local'
    >>> method_of("bdmc", EvaluationSettings(annealing=AISSettings(num_distributions=50)))
    'bdmc, 50 distributions'
    >>> method_of("ais", EvaluationSettings(annealing=AISSettings(posterior_draws=9)))
    'ais, 1000 distributions'
    """
    words = [method]
    if method == "is":
        words.append(settings.proposal)
        words += [] if settings.retry is None else [f"retry {settings.retry}"]
        words += [] if settings.tolerance is None else [f"tolerance {settings.tolerance:g}"]
    if method in ("ais", "bdmc"):
        of, usual = settings.annealing, AISSettings()
        words.append(f"{of.num_distributions} distributions")
        for name in (f.name for f in fields(of)):
            value = getattr(of, name)
            if name not in NOT_NAMED and value != getattr(usual, name):
                text = name.replace("_", " ")
                words.append(text if value is True else f"{text} {value}")
    return ", ".join(words)


def settings_in(method: str) -> str:
    """Return the settings in the name of a method.

    Args:
        method: A text of `method_of`.

    Returns:
        The text after the name of the method; empty if there is none.

    >>> settings_in("ais, 50 distributions"), settings_in("exact")
    ('50 distributions', '')
    """
    return method.partition(", ")[2]


def precision(method: str, num_particles: int) -> tuple[int, Sequence[float], str]:
    """Return a key by which the estimate with the most draws is the last.

    Args:
        method: The method, as of `method_of`.
        num_particles: K.

    Returns:
        A key to sort by: K, the numbers in the method, and the method.
    """
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", method)]
    return num_particles, numbers, method


def _is_mostly_flagged(row: Result, flags: Mapping[tuple[str | int, ...], float]) -> bool:
    """Whether more than half of the data of a bound are flagged; False for other results."""
    count = flags.get(replace(row, name=f"{row.name}_flagged").identity, 0.0)
    return count > row.num_data / 2


def _precision(row: Result) -> tuple[int, Sequence[float], str]:
    return precision(row.method, row.num_particles)


def _order(row: Result) -> tuple[object, ...]:
    where = (row.data, row.split, -row.num_data, row.checkpoint)
    return (*where, rank_of(row.name), row.method, row.num_particles)
