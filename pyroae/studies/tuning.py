"""Tune settings of each entry of a study: its variants at every point of a grid, and the best."""

from collections.abc import Iterable, Mapping
from typing import Any

from pyroae.comparison.results import Cell, Comparison, Entry, Outcome
from pyroae.comparison.tuning import Trial, Tuning, combinations
from pyroae.errors import ConfigError

TUNING_SEED = 1000
"""The seed of the trainings of a tuning, which no training of the study itself may have."""


FOLDER = "tuning"
"""The folder of a study that holds the trainings of its tuning."""


Grid = Mapping[str, tuple[Any, ...]]
"""The values of each tuned setting."""


def crossed(variants: Mapping[str, Mapping[str, Any]], grid: Grid) -> dict[str, dict[str, Any]]:
    """Return every variant at every point of the grid.

    Args:
        variants: the settings of each variant, by its name.
        grid: the values of the tuned settings.

    Returns:
        Settings by the joined names.

    Raises:
        ConfigError: for a setting that a variant gives already.

    >>> crossed({"prior=vamp": {"prior": "vamp"}}, {"lr": (0.1,)})
    {'prior=vamp,lr=0.1': {'prior': 'vamp', 'lr': 0.1}}
    """
    for variant, settings in variants.items():
        for name in settings:
            if name in grid:
                raise ConfigError(f"{name} is tuned, and the variant '{variant}' gives it too")
    return {
        joined(variant, point): {**settings, **values}
        for variant, settings in variants.items()
        for point, values in combinations(grid).items()
    }


def joined(variant: str, point: str) -> str:
    """Return the name of a variant at a point of a grid.

    Args:
        variant: the name of the variant; empty for the only one.
        point: the name of the point.

    Returns:
        Both names, joined by a comma.
    """
    return f"{variant},{point}" if variant else point


def check_tuning_seeds(seeds: Iterable[int]) -> None:
    """Refuse seeds of a study that its tuning has used.

    Args:
        seeds: the seeds of the study.

    Raises:
        ConfigError: for the seed of the tuning.
    """
    if TUNING_SEED in seeds:
        raise ConfigError(
            f"the seed {TUNING_SEED} is that of the tuning: give other seeds to the study"
        )


def tuning_of(entries: Iterable[Entry], grid: Grid, found: Mapping[Cell, Outcome | str]) -> Tuning:
    """Return the trials of a tuning.

    Args:
        entries: the entries of the study.
        grid: the values of the tuned settings.
        found: the outcome of every training of the tuning, or why it failed.

    Returns:
        One trial for each entry and point of the grid.

    Raises:
        ConfigError: if every training of an entry failed.
    """
    trials = [
        _trial(entry, point, settings, found)
        for entry in dict.fromkeys(entries)
        for point, settings in combinations(grid).items()
    ]
    tuning = Tuning(grid, tuple(trials))
    for entry in tuning.entries:
        tuning.best(entry)
    return tuning


def _trial(
    entry: Entry, point: str, settings: Mapping[str, Any], found: Mapping[Cell, Outcome | str]
) -> Trial:
    at = Entry(entry.objective, entry.num_particles, joined(entry.variant, point))
    outcomes = [o for cell, o in found.items() if cell.entry == at and isinstance(o, Outcome)]
    return Trial(
        entry.short,
        settings,
        Comparison(tuple(outcomes)).nll(at) if outcomes else None,
        sum(outcome.evaluations for outcome in outcomes),
        sum(outcome.seconds for outcome in outcomes),
    )
