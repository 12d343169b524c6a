"""The choice of settings for each entry of a comparison by its score on validation data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from pyroae.comparison.scores import Interval
from pyroae.errors import ConfigError

if TYPE_CHECKING:
    from pandas import DataFrame


class Trial(NamedTuple):
    """An entry at one value of every tuned setting.

    Attributes:
        entry: The entry as text, such as `iwae@8`.
        settings: The values of the tuned settings, by name.
        nll: The NLL of the validation data, in nats per datum; None if every training failed.
        evaluations: Decoder evaluations of its trainings.
        seconds: Seconds of its trainings.
    """

    entry: str
    settings: Mapping[str, Any]
    nll: Interval | None
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class Tuning:
    """The trials of every entry.

    Attributes:
        grid: The values of each tuned setting, in the order in which they were given.
        trials: One trial for each entry and point of the grid.

    >>> def trial(lr, nll):
    ...     return Trial("iwae@8", {"lr": lr}, Interval(nll, nll, nll), 100, 1.0)
    >>> tuning = Tuning({"lr": (0.1, 0.01)}, (trial(0.1, 90.0), trial(0.01, 89.0)))
    >>> dict(tuning.best("iwae@8").settings), tuning.at_end("iwae@8")
    ({'lr': 0.01}, ['lr'])
    """

    grid: Mapping[str, tuple[Any, ...]]
    trials: tuple[Trial, ...]

    @property
    def entries(self) -> tuple[str, ...]:
        """The entries, in the order of the trials."""
        return tuple(dict.fromkeys(trial.entry for trial in self.trials))

    def of(self, entry: str) -> list[Trial]:
        """List the trials of an entry.

        Args:
            entry: The entry as text.

        Returns:
            Its trials, in the order of the grid.
        """
        return [trial for trial in self.trials if trial.entry == entry]

    def best(self, entry: str) -> Trial:
        """Return the trial with the lowest NLL.

        Args:
            entry: The entry as text.

        Returns:
            The trial; the first of several equal ones.

        Raises:
            ConfigError: If every training of the entry failed.
        """
        scored = [trial for trial in self.of(entry) if trial.nll is not None]
        if not scored:
            raise ConfigError(f"every training of {entry} failed in tuning: give other values")
        return min(scored, key=lambda trial: trial.nll.value if trial.nll else 0.0)

    def at_end(self, entry: str) -> list[str]:
        """List the settings whose best value is at an end of its grid.

        Args:
            entry: The entry as text.

        Returns:
            Their names; a better value may lie outside the grid.
        """
        best = self.best(entry).settings
        return [
            name
            for name, values in self.grid.items()
            if len(values) > 1 and best[name] in (min(values), max(values))
        ]

    def cost(self, entry: str) -> tuple[int, float]:
        """Sum what the trials of an entry have cost.

        Args:
            entry: The entry as text.

        Returns:
            Decoder evaluations and seconds of training.
        """
        trials = self.of(entry)
        return sum(trial.evaluations for trial in trials), sum(trial.seconds for trial in trials)

    def table(self) -> "DataFrame":
        """Return the trials as a pandas DataFrame.

        Returns:
            One row for each trial: entry, settings, NLL of the validation data with its 95 %
            interval in nats per datum (nan if every training failed), whether it was chosen, and
            its cost.
        """
        from pandas import DataFrame

        return DataFrame([self._row(trial) for trial in self.trials])

    def _row(self, trial: Trial) -> dict[str, Any]:
        nll = trial.nll or Interval(math.nan, math.nan, math.nan)
        return {
            "entry": trial.entry,
            **trial.settings,
            "nll": nll.value,
            "nll_low": nll.low,
            "nll_high": nll.high,
            "chosen": trial is self.best(trial.entry),
            "evaluations": trial.evaluations,
            "seconds": trial.seconds,
        }


def combinations(choices: Mapping[str, tuple[Any, ...]]) -> dict[str, dict[str, Any]]:
    """Return every combination of the values of several settings.

    Args:
        choices: The values of each setting.

    Returns:
        The settings of each combination, by a name that lists them.

    Raises:
        ConfigError: For a value that is given twice.

    >>> list(combinations({"posterior": ("diagonal", "exact"), "latent": (2,)}))
    ['posterior=diagonal,latent=2', 'posterior=exact,latent=2']
    """
    rows = [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
    return named(rows)


def named(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return variants by their names.

    Args:
        rows: The settings of each variant.

    Returns:
        The settings by the name that lists them.

    Raises:
        ConfigError: For two variants of one name.
    """
    names = [name_of(row) for row in rows]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"the variant '{twice}' is given twice")
    return {name: dict(row) for name, row in zip(names, rows, strict=True)}


def name_of(settings: Mapping[str, Any]) -> str:
    """Return the name of a variant.

    Args:
        settings: Its settings.

    Returns:
        The settings as `name=value`, joined by commas; numbers in a tuple are joined by `x`.

    >>> name_of({"hidden": (200, 100), "lr": 0.001})
    'hidden=200x100,lr=0.001'
    """
    return ",".join(f"{name}={_text(value)}" for name, value in settings.items())


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
