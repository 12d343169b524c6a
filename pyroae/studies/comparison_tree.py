"""Convert a comparison of trainings to an ArviZ DataTree."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from pyroae.comparison.results import Comparison, Entry, Outcome
from pyroae.inference_data import filled_array

if TYPE_CHECKING:
    from xarray import DataTree

Getter = tuple[Callable[[Any], Any], bool]
"""A function from an outcome to a value, and whether the value is a row of numbers."""


def comparison_to_datatree(comparison: Comparison, baseline: Entry | None = None) -> "DataTree":
    """Convert a comparison of trainings to a DataTree.

    The dimensions are objective, particles, seed, datum and point, and variant where there are
    several. The groups are

    - outcomes: log_px of each held-out datum by importance sampling, its standard error, k̂ and ESS;
      the corrected nll, nll_is, shift and scoring_error; nelbo, rate, distortion and active_units;
      epochs, steps, decoder evaluations and seconds of the training;
    - corrections: log_px and log_px_se of the stronger estimate, on the dimension subset, which
      holds the indices of the data; only where scores are corrected;
    - differences: the NLL less that of the baseline and of the best entry, with 95 % intervals;
    - curves: the NLL of validation data along each training, with epoch, seconds and evaluations.

    Values are nan where an entry is not defined or not trained.

    Args:
        comparison: The trainings.
        baseline: The entry that differences are taken from; by default the first one.

    Returns:
        The DataTree; log-likelihoods and bounds are in nats per datum.

    >>> import torch
    >>> from pyroae.comparison.results import Cell, Outcome
    >>> from pyroae.comparison.scores import Score
    >>> cell, score = Cell("iwae", 8, 0), Score(torch.tensor([-1.0, -3.0]), torch.zeros(2))
    >>> outcome = Outcome(cell, score, {"rate": 0.5}, 1, 1, 1, 1.0)
    >>> tree = comparison_to_datatree(Comparison((outcome,)))
    >>> dict(tree["outcomes"]["log_px"].sizes), float(tree["outcomes"]["nll"].squeeze())
    ({'objective': 1, 'particles': 1, 'seed': 1, 'datum': 2}, 2.0)
    """
    from xarray import Dataset, DataTree

    baseline = comparison.entries[0] if baseline is None else baseline
    coords = _coordinates(comparison)
    outcomes = {_position(o.cell, coords): o for o in comparison.outcomes}
    gaps = {_position(r.entry, coords): r for r in comparison.ranking(baseline)}
    subset = comparison.subset.tolist()
    lengths = {
        "datum": comparison.num_data,
        "subset": len(subset),
        "point": max(len(outcome.curve) for outcome in comparison.outcomes),
    }
    recorded = {
        "baseline": str(baseline),
        "units": "nats per datum; seconds and decoder evaluations of training",
    }
    groups: dict[str, tuple[dict[str, Getter], dict[Any, Any], list[str], str]] = {
        "outcomes": (_outcome_values(comparison), outcomes, list(coords), "datum"),
        "corrections": (_correction_values(comparison), outcomes, list(coords), "subset"),
        "differences": (_difference_values(), gaps, [n for n in coords if n != "seed"], ""),
        "curves": (_curve_values(), outcomes, list(coords), "point"),
    }
    sets = {"/": Dataset(attrs=recorded)}
    for name, (values, found, dims, last) in groups.items():
        if not values or (last == "point" and not lengths["point"]):
            continue
        shape = tuple(len(coords[dim]) for dim in dims)
        arrays = {}
        for variable, (get, is_row) in values.items():
            cells = {index: get(each) for index, each in found.items()}
            length = lengths[last] if is_row else None
            arrays[variable] = (
                [*dims, last] if is_row else dims,
                filled_array(cells, shape, length),
            )
        own = {dim: coords[dim] for dim in dims}
        own |= {"subset": subset} if last == "subset" else {}
        sets[name] = Dataset(arrays, coords=own, attrs=recorded)
    return DataTree.from_dict(sets)


def _coordinates(comparison: Comparison) -> dict[str, list[Any]]:
    """The coordinates of the cells; variants only where there are some."""
    entries = comparison.entries
    variants = list(dict.fromkeys(entry.variant for entry in entries))
    return {
        **({"variant": variants} if any(variants) else {}),
        "objective": list(dict.fromkeys(entry.objective for entry in entries)),
        "particles": sorted({entry.num_particles for entry in entries}),
        "seed": list(comparison.seeds),
    }


def _position(one: Any, coords: Mapping[str, list[Any]]) -> tuple[int, ...]:
    """The index of a cell, or of the entry of a row, along each coordinate."""
    entry = getattr(one, "entry", one)
    of = {
        "variant": entry.variant,
        "objective": entry.objective,
        "particles": entry.num_particles,
        "seed": getattr(one, "seed", None),
    }
    dims = [name for name in coords if of[name] is not None]
    return tuple(coords[name].index(of[name]) for name in dims)


def _outcome_values(comparison: Comparison) -> dict[str, Getter]:
    figures = dict.fromkeys(name for outcome in comparison.outcomes for name in outcome.figures)
    spent = ("nll", "epochs", "steps", "evaluations", "seconds")
    values: dict[str, Getter] = {name: (attrgetter(name), False) for name in spent}
    values |= {
        "nll_is": (attrgetter("score.nll_uncorrected"), False),
        "shift": (attrgetter("score.shift.value"), False),
        "scoring_error": (attrgetter("score.error"), False),
        "log_px": (attrgetter("score.log_px"), True),
        "log_px_se": (attrgetter("score.se"), True),
    }
    for name in ("khat", "ess"):
        if all(getattr(outcome.score, name) is not None for outcome in comparison.outcomes):
            values[name] = (attrgetter(f"score.{name}"), True)
    for name in figures:
        values[name] = (partial(_figure, name), False)
    return values


def _figure(name: str, outcome: Outcome) -> float:
    return outcome.figures.get(name, math.nan)


def _correction_values(comparison: Comparison) -> dict[str, Getter]:
    corrected = [o.score.correction for o in comparison.outcomes]
    if any(c is None or not c.index.equal(comparison.subset) for c in corrected):
        return {}
    return {
        "log_px": (attrgetter("score.correction.log_px"), True),
        "log_px_se": (attrgetter("score.correction.se"), True),
    }


def _difference_values() -> dict[str, Getter]:
    return {
        f"{name}{end}": (attrgetter(f"{name}.estimate.{part}"), False)
        for name in ("from_baseline", "from_best")
        for end, part in (("", "value"), ("_low", "low"), ("_high", "high"))
    }


def _curve_values() -> dict[str, Getter]:
    return {
        name: (partial(_along, name), True) for name in ("epoch", "seconds", "evaluations", "nll")
    }


def _along(name: str, outcome: Outcome) -> list[float]:
    return [getattr(point, name) for point in outcome.curve]
